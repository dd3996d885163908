//! `keybearer completions` and `keybearer man`: what the command line says of itself, for shells and for man(1).

use std::{fs, io, path::PathBuf};

use clap::Args;
use clap_complete::Shell;

use super::Exit;

#[derive(Args, Debug)]
pub(super) struct Completions {
    /// For which shell.
    shell: Shell,
}

#[derive(Args, Debug)]
pub(super) struct Man {
    /// Where to.
    #[arg(default_value = ".")]
    directory: PathBuf,
}

impl Completions {
    pub(super) fn run(self, command: &mut clap::Command) -> Result<(), Exit> {
        clap_complete::generate(self.shell, command, "keybearer", &mut io::stdout());
        Ok(())
    }
}

impl Man {
    pub(super) fn run(self, command: clap::Command) -> Result<(), Exit> {
        fs::create_dir_all(&self.directory)?;
        clap_mangen::generate_to(command, &self.directory)?;
        Ok(())
    }
}

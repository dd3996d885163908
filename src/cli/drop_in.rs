//! `keybearer drop-in`: a unit of this host, moved over. In goes its name; out comes the text of a drop-in, which somebody reads and
//! puts into place: nothing is changed here.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use clap::Args;

use super::{ConfigFile, Exit, environment, paint};
use crate::{
    clock::SystemClock,
    config::{Listen, Settings, load},
    policy::Identity,
    shim::drop_in::{Places, Unit, Way, drop_in},
};

#[derive(Args, Debug)]
pub(super) struct DropIn {
    /// The unit, as NAME.service.
    unit: String,
    /// The identity that its programs are; by default the one whose match names this unit.
    #[arg(long = "for", value_name = "IDENTITY")]
    identity: Option<String>,
    /// load-credential, exec or env-file; by default load-credential if that will do, else exec.
    #[arg(long)]
    way: Option<Way>,
    #[command(flatten)]
    settings: ConfigFile,
}

impl DropIn {
    pub(super) fn run(self) -> Result<(), Exit> {
        if !self.unit.ends_with(".service") {
            return Err(Exit::new(Exit::USAGE, "name a service, as payments.service"));
        }
        let config = &self.settings.config;
        let settings = load(config, &environment(), SystemClock::shared().wall()).map_err(|mistakes| {
            let told: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
            Exit::new(Exit::CONFIG, told.join("\n"))
        })?;
        let identity = self.of(&settings)?;
        let unit = Unit {
            text: said(&["cat", "--", &self.unit]),
            systemd: said(&["--version"]).as_deref().and_then(version),
            name: self.unit,
        };
        let program = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("/usr/bin/keybearer"));
        let workload = &*settings.listen.workload.path;
        let places = Places {
            program: &program,
            workload: Some(workload).filter(|path| *path != Path::new(Listen::WORKLOAD)),
            systemd: &settings.listen.systemd.path,
        };
        match drop_in(&unit, identity, places, self.way) {
            Ok(text) => paint::line(text.trim_end()),
            Err(no) => Err(Exit::new(Exit::CONFIG, no.to_string())),
        }
    }

    fn of<'a>(&self, settings: &'a Settings) -> Result<&'a Identity, Exit> {
        let mut identities = settings.policy.identities();
        if let Some(name) = &self.identity {
            let found = identities.find(|identity| *identity.name == **name);
            return found.ok_or_else(|| Exit::new(Exit::CONFIG, format!("there is no [identities.{name}]")));
        }
        let names_it = |identity: &&Identity| {
            identity.selectors.iter().any(|selectors| selectors.unit.as_deref() == Some(&self.unit))
        };
        let found: Vec<&Identity> = identities.filter(names_it).collect();
        match found[..] {
            [one] => Ok(one),
            [] => Err(Exit::new(
                Exit::CONFIG,
                format!(
                    "no identity has match = {{ unit = {:?} }}: add one, or name it with --for",
                    self.unit
                ),
            )),
            _ => Err(Exit::new(Exit::CONFIG, "several identities match this unit: name one with --for")),
        }
    }
}

/// What systemctl says; nothing where there is none, or no such unit.
pub(super) fn said(arguments: &[&str]) -> Option<String> {
    let output =
        Command::new("systemctl").args(arguments).stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// From `systemd 252 (252.39-1~deb12u2)`.
fn version(said: &str) -> Option<u32> {
    said.strip_prefix("systemd ")?.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_read_as_systemctl_prints_it() {
        assert_eq!(version("systemd 252 (252.39-1~deb12u2)\n+PAM"), Some(252));
        assert_eq!(version("systemd 260~rc1 (260)"), Some(260));
        for other in ["", "systemd", "systemd x", "elogind 252"] {
            assert_eq!(version(other), None, "{other}");
        }
    }
}

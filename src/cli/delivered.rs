//! What `env-file` and `template` have in common: whose a file is, where it may be, and how it is kept fresh. In go the agent's socket
//! and what is wanted; out comes a file, once or at each rotation until the right to a credential ends.
//!
//! With `--watch` nothing that was written is taken back by a failure: not by an agent that is away, not by a full disk, not by a new
//! value that the file cannot carry. Each is told once, and tried again.

use std::{
    collections::BTreeSet,
    io::{IsTerminal as _, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use clap::Args;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{Instant, sleep_until},
};

use super::Exit;
use crate::{
    clock::SystemDice,
    secret::{Fingerprint, Secret},
    shim::{
        FetchError, Fetched, Rotations, Turn, fetch,
        file::{Access, Directory, FileError, Medium},
        leave_no_core_beside,
    },
};

/// Between two attempts to write: doubled each time, up to the longest.
const FIRST_WAIT: Duration = Duration::from_secs(5);
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Whose a file is, and where it may be.
#[derive(Args, Debug)]
pub(super) struct Place {
    /// Its permissions, in octal: for its owner, and perhaps a group, and never for others. [default: 0400]
    #[arg(long, value_name = "MODE")]
    mode: Option<String>,
    /// Whose it is, if not yours: a name or a number. Only root gives files away.
    #[arg(long, value_name = "USER")]
    owner: Option<String>,
    /// Its group, if not yours.
    #[arg(long, value_name = "GROUP")]
    group: Option<String>,
    /// It may be on a disk, where what is written outlives the file. Otherwise only a tmpfs will do, as below /run.
    #[arg(long)]
    allow_disk: bool,
}

/// For how long.
#[derive(Args, Debug)]
pub(super) struct Freshness {
    /// Stay, and write the file again at each rotation. Tells the service manager when it is there (Type=notify).
    #[arg(long)]
    pub(super) watch: bool,
    /// How many seconds the first values may take.
    #[arg(long, default_value_t = 30, value_name = "SECONDS")]
    start_timeout: u64,
}

/// Where the bytes go.
#[derive(Debug)]
pub(super) struct Output {
    path: PathBuf,
    access: Access,
    medium: Medium,
}

impl Place {
    /// For what is to be written at `path`: `-` is standard output, where nothing is watched.
    pub(super) fn output(&self, path: &Path, freshness: &Freshness) -> Result<Output, Exit> {
        let usage = |why: String| Exit::new(Exit::USAGE, why);
        let access = Access::read(self.mode.as_deref(), self.owner.as_deref(), self.group.as_deref())
            .map_err(usage)?;
        let medium = if self.allow_disk { Medium::Any } else { Medium::Memory };
        let output = Output { path: path.into(), access, medium };
        if output.is_standard() {
            if freshness.watch {
                return Err(usage("--watch writes a file again and again: name one".into()));
            }
            // Somebody asked for it by name, and a pipe has a reader who did; a terminal keeps what it shows, and shows it to whoever
            // looks. There is no other way here for a secret to get onto standard output.
            if std::io::stdout().is_terminal() {
                return Err(usage(
                    "standard output is a terminal, which is no place for secrets: name a file, or pipe it"
                        .into(),
                ));
            }
        }
        Ok(output)
    }
}

impl Output {
    fn is_standard(&self) -> bool {
        self.path.as_os_str() == "-"
    }

    /// Says so, once, if secrets are going to a disk.
    pub(super) fn warn_of_disk(&self) -> Result<(), Exit> {
        if !self.is_standard() {
            let (directory, _) = Directory::around(&self.path, self.medium, self.access.owner)?;
            warn_of_disk(&directory, &self.path);
        }
        Ok(())
    }

    /// Opens the directory of a set of files that go along.
    pub(super) fn beside(&self, path: &Path) -> Result<Directory, Exit> {
        Ok(Directory::open(path, self.medium, self.access.owner)?)
    }

    /// Writes the files of a set, which switch together.
    pub(super) fn write_set(&self, directory: &Path, files: &[(&str, &[u8])]) -> Result<(), Exit> {
        Ok(self.beside(directory)?.replace_set(files, self.access, &*SystemDice::shared())?)
    }

    /// Writes the file. Its directory is opened anew: it may be another one by now.
    pub(super) fn write(&self, bytes: &Secret) -> Result<(), Exit> {
        if self.is_standard() {
            let mut out = std::io::stdout().lock();
            return Ok(out.write_all(bytes.expose()).and_then(|()| out.flush())?);
        }
        let (directory, name) = Directory::around(&self.path, self.medium, self.access.owner)?;
        Ok(directory.write(name, bytes.expose(), self.access, &*SystemDice::shared())?)
    }
}

/// Says so if secrets in this directory are on a disk.
pub(super) fn warn_of_disk(directory: &Directory, path: &Path) {
    if let Some(filesystem) = directory.disk() {
        eprintln!(
            "keybearer: {} is on a disk ({filesystem}): what is written there outlives the file",
            path.display()
        );
    }
}

impl From<FileError> for Exit {
    fn from(error: FileError) -> Self {
        let code = match error {
            FileError::Place { .. } | FileError::Disk { .. } => Self::CONFIG,
            FileError::Failed { .. } => Self::IO,
        };
        Self::new(code, error.to_string())
    }
}

impl Freshness {
    /// How long the first values may take.
    pub(super) fn start_timeout(&self) -> Duration {
        Duration::from_secs(self.start_timeout)
    }

    /// Fetches what is wanted and has it written; with `--watch`, again at each rotation, until the right to it or this process ends.
    pub(super) async fn deliver(
        &self,
        socket: &Path,
        wanted: &BTreeSet<Arc<str>>,
        mut write: impl FnMut(&Fetched) -> Result<(), Exit>,
    ) -> Result<(), Exit> {
        // Before there is anything to leave behind.
        leave_no_core_beside(socket);
        // Before anything is written, so that no signal ends this between two steps.
        let mut ends = [signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?];
        let [term, int] = &mut ends;
        let fetched = tokio::select! {
            fetched = fetch(socket, wanted, self.start_timeout()) => fetched?,
            _ = term.recv() => return Err(Exit::new(128 + 15, "")),
            _ = int.recv() => return Err(Exit::new(128 + 2, "")),
        };
        write(&fetched)?;
        if !self.watch {
            return Ok(());
        }
        tell_manager(&[sd_notify::NotifyState::Ready]);
        let mut rotations = Rotations::of(fetched, socket);
        let mut trouble = Trouble::default();
        let mut wait = FIRST_WAIT;
        let mut again: Option<Instant> = None;
        loop {
            let written = tokio::select! {
                _ = term.recv() => return Ok(()),
                _ = int.recv() => return Ok(()),
                () = at(again) => write(rotations.fetched()),
                turn = rotations.next() => match turn.map_err(the_end)? {
                    Turn::Fresh(fetched) => write(fetched),
                    Turn::Interrupted(error) => {
                        trouble.tell(&Exit::from(error).message);
                        continue;
                    }
                },
            };
            match written {
                Ok(()) => {
                    trouble.over();
                    (again, wait) = (None, FIRST_WAIT);
                }
                Err(exit) => {
                    trouble.tell(&exit.message);
                    again = Some(Instant::now() + wait);
                    wait = (wait * 2).min(LONGEST_WAIT);
                }
            }
        }
    }
}

/// The right has ended; what it was good for last is not this command's to take away from whoever reads it.
fn the_end(error: FetchError) -> Exit {
    let Exit { code, message } = error.into();
    Exit { code, message: format!("{message}\nthe file is kept fresh no more; it stays as it is") }
}

async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// What is in the way, told once and not at each attempt.
#[derive(Default)]
struct Trouble(Option<String>);

impl Trouble {
    fn tell(&mut self, message: &str) {
        if self.0.as_deref() != Some(message) {
            eprintln!("keybearer: {message}; what was written before stays, and this is tried again");
            // One line: another would be another message to the manager.
            tell_manager(&[sd_notify::NotifyState::Status(message.lines().next().unwrap_or_default())]);
            self.0 = Some(message.to_owned());
        }
    }

    fn over(&mut self) {
        if self.0.take().is_some() {
            eprintln!("keybearer: what was in the way is gone, and all is fresh again");
            tell_manager(&[sd_notify::NotifyState::Status("")]);
        }
    }
}

/// Without a service manager there is nobody to tell; with one that cannot be told, there is nothing to be done.
fn tell_manager(state: &[sd_notify::NotifyState<'_>]) {
    let _ = sd_notify::notify(state);
}

/// What is written is written again only if it is something else.
#[derive(Default)]
pub(super) struct Last(Option<Fingerprint>);

impl Last {
    /// Whether these bytes are not the ones before.
    pub(super) fn differs(&self, bytes: &[u8]) -> bool {
        self.0 != Some(Fingerprint::of(bytes))
    }

    /// These are there now.
    pub(super) fn is(&mut self, bytes: &[u8]) {
        self.0 = Some(Fingerprint::of(bytes));
    }
}

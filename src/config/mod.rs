//! agent.toml: what the operator wrote becomes what the agent means. In goes a path; out come [`Settings`] whose every
//! part is in its room's own type, or every mistake at once, each with its file, line and key. The same code runs
//! for `keybearer check`, at start and at reload, so a file that passes one passes all.

mod acme;
mod certificate;
mod delivery;
mod est;
mod file;
mod identities;
mod issuers;
mod openbao;
mod pins;
mod reader;
mod registrations;
mod sealed;
mod settings;
mod step;
mod terms;
mod wants;

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
};

use jiff::Timestamp;

use crate::journal;

pub use issuers::IssuerSettings;
pub use settings::{Listen, Log, LogFormat, Settings};

/// Where the settings are if nobody says otherwise.
pub const DEFAULT_PATH: &str = "/etc/keybearer/agent.toml";

/// Reads the settings at `path`, with `environment` for overrides.
///
/// # Errors
/// Every [`Mistake`] at once.
pub fn load(
    path: &Path,
    environment: &BTreeMap<String, String>,
    now: Timestamp,
) -> Result<Settings, Vec<Mistake>> {
    let written = file::Written::read(path, environment)?;
    // Where the service manager puts what it gives to this unit alone (systemd.exec(5)).
    let credentials = environment.get("CREDENTIALS_DIRECTORY").map(PathBuf::from);
    let credentials = credentials.filter(|directory| directory.is_absolute());
    // Whether what this program says on standard error goes to the journal.
    let journaled =
        journal::is_behind(environment.get("JOURNAL_STREAM").map(String::as_str), std::io::stderr());
    settings::mean(&written, credentials, journaled, now).map_err(|mistakes| {
        let mut mistakes: Vec<Mistake> =
            mistakes.into_iter().map(|(key, message)| written.mistake(path, &key, message)).collect();
        mistakes.sort_by(|one, other| {
            (&one.file, one.line, &one.key).cmp(&(&other.file, other.line, &other.key))
        });
        mistakes.dedup();
        mistakes
    })
}

/// Something wrong with the settings, and where.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Mistake {
    /// The file.
    pub file: PathBuf,
    /// The line, from 1, where there is one.
    pub line: Option<usize>,
    /// The key; empty if it is about the whole file.
    pub key: String,
    /// What is wrong and what to do. Never a value.
    pub message: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        if !self.key.is_empty() {
            write!(f, ": {}", self.key)?;
        }
        write!(f, ": {}", self.message)
    }
}

#[cfg(test)]
mod tests;

//! The ledger: one chained record per exchange, on disk before on the wire. In goes an [`Entry`]; out comes a
//! [`Receipt`], without which nobody answers anything. Each record names the hash of the one before; a Merkle tree
//! over all of them is signed from time to time, so that whoever holds a checkpoint can tell that nothing before it
//! was changed.

mod book;
mod chain;
mod copy;
mod counts;
mod export;
mod files;
mod ledger;
mod line;
mod pen;
#[cfg(any(test, fuzzing))]
pub(crate) mod properties;
mod prove;
mod read;
mod record;
mod scribe;
mod tree;
mod turn;
mod verify;

use std::{path::PathBuf, time::Duration};

pub use counts::Sort;
pub use export::{Format, Standing, Timeless, line};
pub use ledger::{Health, Ledger, Receipt, open};
pub use line::{Line, Told};
pub use prove::{ProveError, prove};
pub use read::{every_line, exists, last, read};
pub use record::{
    Agent, ApiPart, CredentialPart, Entry, ErrandPart, Event, EventType, ExePart, HolderPart, Host,
    IssuerPart, LedgerPart, Outcome, PeerPart, PolicyPart, ProcessPart, Record, TargetPart, UnitPart,
    WorkloadPart,
};
pub use scribe::Scribe;
pub use verify::{Fault, Report, VerifyError, verify};

/// Where the ledger is and how it behaves.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LedgerSettings {
    /// Its directory, mode 0700, the agent's.
    pub directory: PathBuf,
    /// The name its checkpoints carry.
    pub origin: String,
    /// When records reach the disk.
    pub sync: Sync,
    /// What to do if a record cannot be written.
    pub on_failure: OnFailure,
    /// How often a checkpoint is signed if there is anything new.
    pub checkpoint_every: Duration,
    /// After how many records a checkpoint is signed earlier.
    pub checkpoint_records: u64,
    /// How long the file that is written may be, in bytes, before the next one is begun. It is looked at with each checkpoint.
    pub rotate_at: u64,
    /// How old records may grow before they are deleted, a file at a time; none if they stay.
    pub keep: Option<Duration>,
    /// The socket of the host's journal, if records go there too.
    pub journal: Option<PathBuf>,
}

impl LedgerSettings {
    /// Those that hold unless somebody says otherwise, of the ledger in `directory` that signs as `origin`.
    pub fn new(directory: PathBuf, origin: String) -> Self {
        Self {
            directory,
            origin,
            sync: Sync::Checkpoint,
            on_failure: OnFailure::Deny,
            checkpoint_every: Duration::from_secs(60),
            checkpoint_records: 1000,
            rotate_at: 64 << 20,
            keep: None,
            journal: None,
        }
    }
}

/// When records reach the disk. Either way they are with the kernel before the answer leaves.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Sync {
    /// Before each answer: they survive a power cut. Costs a disk flush per group of callers.
    Always,
    /// With each checkpoint: they survive the end of the agent at any moment, but not a power cut.
    Checkpoint,
}

/// What to do if a record cannot be written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum OnFailure {
    /// Answer all the same, count, and say so once writing works again.
    Allow,
    /// Answer nobody.
    Deny,
}

/// Why there is no receipt.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The files do not fit together: they were changed behind our back.
    #[error(
        "the ledger in {directory} is broken at record {seq}: {what}. Nothing was changed. Keep the directory as \
         evidence, look with `keybearer audit verify --dir {directory}`, then move it away to begin a new ledger"
    )]
    Broken {
        /// Where.
        directory: PathBuf,
        /// At which record.
        seq: u64,
        /// How.
        what: String,
    },
    /// The scribe has ended.
    #[error("the ledger is closed: the agent is shutting down")]
    Closed,
    /// Another agent writes it.
    #[error("another agent holds the ledger in {0}: stop it first")]
    InUse(PathBuf),
    /// The checkpoint key cannot be had.
    #[error("the checkpoint key: {0}")]
    Key(#[from] crate::keys::FileError),
    /// It cannot be opened.
    #[error("the ledger in {directory}: {what}")]
    Open {
        /// Where.
        directory: PathBuf,
        /// Why.
        what: String,
    },
    /// The record could not be written, so there is no answer.
    #[error("the ledger cannot be written: {0}")]
    Unwritable(std::io::ErrorKind),
}

#[cfg(test)]
mod tests;

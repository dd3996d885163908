//! Who is calling.

pub mod kernel;
mod peer;
mod process;

use std::io;

pub use peer::{Hold, Peer};

/// Why a caller could not be attested. An attestor that fails, fails the request: absence of evidence is never a
/// default value. The names are those of records.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum AttestError {
    /// The process has other ids now than when it connected (ATT-07).
    #[error("the caller's ids changed since it connected")]
    CredChanged,
    /// Exec, setuid or a move to another cgroup between connect and answer (ATT-16).
    #[error("the caller's {0} changed since it connected: it has to open a new connection")]
    EvidenceChanged(&'static str),
    /// A kernel call failed.
    #[error("{call}: {what}")]
    Kernel {
        /// The call.
        call: &'static str,
        /// What the kernel said.
        what: io::ErrorKind,
    },
    /// The process is gone (ATT-09).
    #[error("the caller has exited")]
    PeerExited,
    /// In a namespace this agent cannot look into (ATT-06).
    #[error("the caller is in a PID or user namespace that this agent cannot see into")]
    PeerInvisible,
    /// A file of /proc was unreadable or not of the form the kernel writes.
    #[error("/proc/PID/{file}: {what}")]
    Proc {
        /// Which file.
        file: &'static str,
        /// What is wrong with it.
        what: String,
    },
    /// Another process wrote on the caller's connection (ATT-05).
    #[error("pid {sender} wrote on the connection of pid {pinned}")]
    SenderChanged {
        /// Who connected.
        pinned: u32,
        /// Who wrote.
        sender: u32,
    },
    /// Descriptors came along, or the kernel did not say who wrote (ATT-04).
    #[error("the caller passed descriptors, or the kernel did not stamp what it wrote")]
    Smuggled,
}

impl AttestError {
    /// A failed kernel call.
    pub fn kernel(call: &'static str, error: &io::Error) -> Self {
        Self::Kernel { call, what: error.kind() }
    }

    /// The stable name, for records.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::CredChanged => "CRED_CHANGED",
            Self::EvidenceChanged(_) => "EVIDENCE_CHANGED",
            Self::Kernel { .. } => "KERNEL",
            Self::PeerExited => "PEER_EXITED",
            Self::PeerInvisible => "PEER_INVISIBLE",
            Self::Proc { .. } => "PROC",
            Self::SenderChanged { .. } => "SENDER_CHANGED",
            Self::Smuggled => "SMUGGLED",
        }
    }
}

//! The Unix socket as bytes. In go connections; out come requests of a pinned [`crate::attest::Peer`], every chunk of
//! which that very process wrote. Nothing of what a request means is known here; a connection on which somebody
//! else speaks ends.

mod calls;
mod connection;
mod descriptors;
mod frames;
mod hpack;
mod inherited;
mod listener;
#[cfg(any(test, fuzzing))]
pub(crate) mod properties;
mod share;
mod stream;
mod users;

use std::{path::PathBuf, time::Duration};

pub use connection::{Ended, Limits, Protocol, serve};
pub use frames::FrameError;
pub use inherited::Inherited;
pub use listener::{Accepted, Admission, Arrival, Knock, Listener, Permit};
pub use share::{Share, Shares, Voucher};
pub use stream::{Corked, Fate, Stamped, stamped};
pub use users::Users;

/// One listening socket.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ListenSettings {
    /// Its path; never abstract (ATT-01).
    pub path: PathBuf,
    /// The mode of the socket file: who may connect at all (ATT-11).
    pub mode: u32,
    /// The group of the socket file, if not the agent's.
    pub group: Option<u32>,
    /// Connections at once, all users together (ATT-26).
    pub max_connections: usize,
    /// Connections at once of one user (ATT-26).
    pub max_per_uid: usize,
    /// How long a connection may be open before its first whole request.
    pub first_bytes_within: Duration,
    /// HTTP/2 streams at once on one connection.
    pub max_streams: u32,
}

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The directory could be tampered with.
    #[error(
        "{path}: its directory {what}: a socket there could be replaced; chown it to root or this agent and chmod go-w it"
    )]
    Directory {
        /// The socket.
        path: PathBuf,
        /// What is wrong with its directory.
        what: String,
    },
    /// The service manager handed over what it should not have.
    #[error("the service manager handed over {name:?}, and {what}")]
    HandedOver {
        /// What the service manager calls it (`FileDescriptorName=`).
        name: String,
        /// What is wrong with it, and what to do.
        what: String,
    },
    /// Somebody answers there.
    #[error("{0}: another agent listens there: stop it first")]
    InUse(PathBuf),
    /// A call failed.
    #[error("{path}: {doing}: {error}")]
    Io {
        /// The socket.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// What the kernel said.
        error: std::io::Error,
    },
    /// Something else is there.
    #[error("{0}: there is something that is not a socket of this agent: look at it and move it away")]
    Occupied(PathBuf),
}

//! The development servers: an OAuth 2.0 authorization server that knows no shared secret and is as strict
//! as a good one, and a resource server that believes only what that issuer signed. In go
//! requests over plain HTTP on 127.0.0.1; out come short-lived tokens, and refusals that say what was wrong.
//!
//! They never listen on any other address, never start where `environment` is production, and never touch a
//! key of the agent: the issuer's key is made at its start and is gone at its stop. Every answer carries the
//! header `keybearer-development`.

mod api;
mod http;
mod issuer;
mod nonce;
mod once;
mod possession;
mod proof;
mod target;

pub use api::{DemoApi, DemoApiSettings};
pub use issuer::{
    Client, Counts, DevIssuer, DevIssuerSettings, Diary, DiaryEntry, DiaryProof, Fault, FaultError,
    Federated, Handle, RegisterError,
};

/// Why a development server does not start, or had to stop.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum DevError {
    /// The operating system gave no socket.
    #[error("127.0.0.1:{port} cannot be listened on ({kind}): choose another port, or 0 for any free one")]
    Bind {
        /// The port asked for.
        port: u16,
        /// What the system said.
        kind: std::io::ErrorKind,
    },
    /// A production host.
    #[error(
        "the development issuer does not run where environment = \"{name}\": configure a real issuer there, \
         or set environment = \"dev\""
    )]
    Environment {
        /// The environment's name, as set.
        name: String,
    },
    /// No key could be made.
    #[error("the development issuer could not make its signing key: start it again")]
    Key,
    /// A setting that makes no sense.
    #[error("{key} cannot be used: {what}")]
    Setting {
        /// Which one.
        key: &'static str,
        /// What to write there.
        what: &'static str,
    },
}

#[cfg(test)]
mod tests;

//! Credential helpers: clients of somebody else's ask in words of their own (git on standard input, kubectl in a variable), and are
//! answered in them. In go what the client said, what the agent offers and the credential; out comes the answer as the client reads
//! it, or why there is none. Pure: `cli` reads, asks the agent and writes. One file for each client; what several of them do is in
//! `place` (which credential is for which host) and `login` (what goes as user name and password).
//!
//! Whatever a client names, it gets nothing that is not for that very place, and nothing that it cannot use: no token that a key
//! binds, for these clients send no proofs, and nothing that ends with the process that got it, for a helper ends at once.

pub mod aws;
pub mod docker;
pub mod gcp;
pub mod git;
pub mod kubectl;
mod login;
mod place;
#[cfg(any(test, fuzzing))]
pub(crate) mod properties;

use std::fmt;

pub use login::Login;
pub use place::{Place, choose};
use serde::Serialize;

use crate::{
    proto::v1::{Credential, Offer, credential::Kind},
    secret::Secret,
};

/// Whose words are spoken.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Tool {
    /// The AWS SDKs and their `credential_process`.
    Aws,
    /// docker, podman and their like.
    Docker,
    /// Google's auth libraries and their executable credential source.
    Gcp,
    /// git.
    Git,
    /// kubectl, and whatever else reads a kubeconfig.
    Kubectl,
}

impl fmt::Display for Tool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Aws => "aws",
            Self::Docker => "docker",
            Self::Gcp => "gcp",
            Self::Git => "git",
            Self::Kubectl => "kubectl",
        })
    }
}

/// Why there is no answer. No text of these holds a secret, or repeats what a client said.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ToolError {
    /// What was asked breaks the contract: whoever made the client ask may mean ill.
    #[error("{tool} asks in a way that is not answered: {why}")]
    Asked {
        /// Who asks.
        tool: Tool,
        /// What is wrong with it, and what to do.
        why: &'static str,
    },
    /// Over something else than https, where whoever listens would have the credential. Another helper may answer.
    #[error(
        "{tool} asks for something else than https, and only that keeps a credential to itself: use an https:// address"
    )]
    Plain {
        /// Who asks.
        tool: Tool,
    },
    /// The settings have to change before this client can use this credential.
    #[error("{credential} is nothing that {tool} can use: {why}")]
    Useless {
        /// Who asks.
        tool: Tool,
        /// The credential.
        credential: String,
        /// Why, and what to do.
        why: String,
    },
    /// It is for another place than the client names.
    #[error("{credential} is not for the place that {tool} names: {why}")]
    Elsewhere {
        /// Who asks.
        tool: Tool,
        /// The credential.
        credential: String,
        /// Where it is for, and what to do.
        why: String,
    },
    /// More than one would do.
    #[error("{} are all for the place that {tool} names: {why}", .credentials.join(", "))]
    Several {
        /// Who asks.
        tool: Tool,
        /// The credentials.
        credentials: Vec<String>,
        /// What to do.
        why: &'static str,
    },
}

/// What is wrong where an agent says something that it never does.
const OTHER_VERSION: &str =
    "what the agent says of it is not understood: bring the command and the agent to one version";

impl ToolError {
    fn useless(tool: Tool, credential: &str, why: impl Into<String>) -> Self {
        Self::Useless { tool, credential: credential.to_owned(), why: why.into() }
    }
}

/// Whether `tool` can do anything with what is offered. Asked before the credential is: what is of no use stays where it is.
///
/// # Errors
/// [`ToolError::Useless`].
pub fn usable(tool: Tool, offer: &Offer) -> Result<(), ToolError> {
    if offer.per == "process" {
        let why = "it ends with the process that got it, and a helper ends at once: say per = \"identity\" for this credential, or \
                   start the program with `keybearer exec`";
        return Err(ToolError::useless(tool, &offer.name, why));
    }
    if offer.per != "identity" {
        return Err(ToolError::useless(tool, &offer.name, OTHER_VERSION));
    }
    unbound(tool, &offer.name, &offer.binding)
}

/// Whether it works without a proof. A certificate, and a token that is bound to one, is of use to kubectl alone, which gets the key
/// with it or nothing.
fn unbound(tool: Tool, name: &str, binding: &str) -> Result<(), ToolError> {
    let way_out = "have the agent make the calls (forward), or say binding = \"bearer\" with a dated exception for this client";
    let why = match binding {
        "bearer" => return Ok(()),
        "mtls" if tool == Tool::Kubectl => return Ok(()),
        "dpop" => {
            format!("a key binds it, and this client sends no proofs: {way_out}")
        }
        "mtls" => {
            format!("it is, or is bound to, a certificate, and this client would not show that: {way_out}")
        }
        _ => OTHER_VERSION.to_owned(),
    };
    Err(ToolError::useless(tool, name, why))
}

/// When it ends, in seconds since 1970.
fn ends(tool: Tool, credential: &Credential) -> Result<i64, ToolError> {
    let ends = credential.expires_at.map(|at| at.seconds).filter(|at| *at > 0);
    ends.ok_or_else(|| ToolError::useless(tool, &credential.name, OTHER_VERSION))
}

/// The same as RFC 3339 writes it, whole seconds in UTC.
fn ends_at(tool: Tool, credential: &Credential) -> Result<String, ToolError> {
    let at = jiff::Timestamp::from_second(ends(tool, credential)?);
    at.map(|at| at.to_string()).map_err(|_| ToolError::useless(tool, &credential.name, OTHER_VERSION))
}

/// The token, of a credential that is one.
fn token(tool: Tool, credential: &Credential) -> Result<&str, ToolError> {
    match &credential.kind {
        Some(Kind::AccessToken(token)) => Ok(&token.token),
        _ => Err(ToolError::useless(tool, &credential.name, "it is no token: name a credential that is one")),
    }
}

/// JSON that holds a secret, on one line.
fn json(answer: &impl Serialize) -> Secret {
    // Room enough that no half-written copy is left behind by a larger one.
    let mut text = Vec::with_capacity(32 * 1024);
    serde_json::to_writer(&mut text, answer).expect("these are strings and numbers, and a Vec takes all");
    text.push(b'\n');
    Secret::new(text)
}

#[cfg(test)]
mod tests;

//! Metadata that an operator has looked at and pinned (OA-05). In goes a document; out comes whether it is still that one,
//! and if not, in words that an operator can act on.

use ring::digest;
use serde_json::Value;

use super::OAuthSettings;
use crate::{
    issuer::{IssueError, Reason},
    secret::{hex, scrubbed},
};

/// What to do when pinned metadata change.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum OnChange {
    /// Say so in the log and in every record, and go on: all other rules for metadata hold.
    #[default]
    Warn,
    /// Sign nothing until an operator has changed the pin.
    Strict,
}

/// What is pinned of an issuer's metadata.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Pins {
    /// The SHA-256 of the document.
    pub document: Option<[u8; 32]>,
    /// Endpoints, by their names in the document.
    pub endpoints: Vec<(String, String)>,
    /// What to do when they change.
    pub on_change: OnChange,
}

impl Pins {
    /// Whether anything is pinned.
    pub(super) fn is_empty(&self) -> bool {
        self.document.is_none() && self.endpoints.is_empty()
    }
}

/// Holds a document against the pins. Whether it has changed, where that is allowed.
pub(super) fn check(bytes: &[u8], document: &Value, settings: &OAuthSettings) -> Result<bool, IssueError> {
    let pins = &settings.pins;
    let mut changes = Vec::new();
    let sum = digest::digest(&digest::SHA256, bytes);
    if pins.document.is_some_and(|pinned| pinned != sum.as_ref()) {
        changes.push(format!("the document is now metadata_pin = \"sha256:{}\"", hex(sum.as_ref())));
    }
    for (name, pinned) in &pins.endpoints {
        match document.get(name).and_then(Value::as_str) {
            Some(now) if now == pinned => {}
            Some(now) => changes.push(format!("{name} is now {}", scrubbed(now, 200))),
            None => changes.push(format!("{name} is gone")),
        }
    }
    if changes.is_empty() {
        return Ok(false);
    }
    let changes = changes.join("; ");
    match pins.on_change {
        OnChange::Warn => {
            tracing::warn!(issuer = %settings.name, "METADATA_CHANGED: {changes}: find out why, then change the pin");
            Ok(true)
        }
        OnChange::Strict => Err(IssueError::Misconfigured {
            reason: Reason::MetadataChanged,
            detail: format!("the pinned metadata have changed: {changes}: find out why, then change the pin"),
        }),
    }
}

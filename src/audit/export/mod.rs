//! Records in the words of others, for whoever gathers logs: OCSF, ECS and CEF. In goes a record; out comes one line. Pure:
//! nothing is looked up, so what the ledger does not say is left out, never invented (AUD-04). An issuer goes by its name in the
//! settings, which is what the ledger has.

mod cef;
mod ecs;
mod ocsf;
#[cfg(test)]
mod tests;

use std::fmt::Write as _;

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::{EventType, Outcome, Record};
use crate::{journal::Priority, secret::is_obeyed};

/// Whose words.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Format {
    /// ArcSight Common Event Format, version 0.
    Cef,
    /// Elastic Common Schema, 9.4.
    Ecs,
    /// Open Cybersecurity Schema Framework, 1.7.
    Ocsf,
}

/// Whether the ledger vouches for a record.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Standing {
    /// It is whole up to here.
    Sound,
    /// It is broken here or before. Each line says so.
    Unsound,
}

/// A record whose time is none: nothing could be done with it anywhere.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("record {0} has no time")]
pub struct Timeless(pub u64);

/// The record as one line of `format`, without a line feed.
///
/// # Errors
/// [`Timeless`] if its time cannot be read, which the ledger never wrote.
pub fn line(format: Format, record: &Record, standing: Standing) -> Result<String, Timeless> {
    let view = View::new(record, standing)?;
    Ok(match format {
        Format::Cef => cef::line(&view),
        Format::Ecs => one_line(ecs::event(&view)),
        Format::Ocsf => one_line(ocsf::event(&view)),
    })
}

/// What a record is about, coarsely.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Matter {
    /// Somebody is given a credential, or is not, or has it no more.
    Access,
    /// The agent itself.
    Agent,
    /// A proof, or a call of an API.
    Api,
    /// What somebody may have.
    Entitlement,
    /// Keys, identities and what is registered of them.
    Identity,
}

fn matter(kind: EventType) -> Matter {
    match kind {
        EventType::AttestationFailure
        | EventType::CredentialIssue
        | EventType::CredentialRelease
        | EventType::CredentialRenew
        | EventType::CredentialReturn
        | EventType::CredentialRevoke
        | EventType::Denial
        | EventType::HumanSession
        | EventType::IssueFailure
        | EventType::NewPlace
        | EventType::ReuseDetected
        | EventType::TwoPlaces => Matter::Access,
        EventType::AgentStart
        | EventType::AgentStop
        | EventType::ConfigLoad
        | EventType::ConfigRefused
        | EventType::LedgerGap
        | EventType::LedgerRepaired
        | EventType::LedgerTurned => Matter::Agent,
        EventType::ForwardAnswer | EventType::ForwardSend | EventType::ProofMint | EventType::Protocol => {
            Matter::Api
        }
        EventType::Describe | EventType::Explain => Matter::Entitlement,
        EventType::CertificateEnding
        | EventType::ExceptionEnding
        | EventType::IdentityDisable
        | EventType::IdentityEnable
        | EventType::KeyOpen
        | EventType::KeyRegister
        | EventType::KeyRotate
        | EventType::OperatorRevoke
        | EventType::SecretSeal => Matter::Identity,
    }
}

/// How soon somebody should look.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Severity {
    Informational,
    Medium,
    High,
    Critical,
}

pub(super) fn severity(kind: EventType, outcome: Outcome) -> Severity {
    match (kind, outcome) {
        (EventType::LedgerGap, _) => Severity::Critical,
        (EventType::ReuseDetected, _) => Severity::High,
        (
            EventType::CertificateEnding
            | EventType::ExceptionEnding
            | EventType::HumanSession
            | EventType::NewPlace
            | EventType::TwoPlaces,
            _,
        ) => Severity::Medium,
        (_, Outcome::Success) => Severity::Informational,
        (_, Outcome::Denied | Outcome::Failed) => Severity::Medium,
    }
}

impl From<Severity> for Priority {
    fn from(severity: Severity) -> Self {
        match severity {
            Severity::Informational => Self::Info,
            Severity::Medium => Self::Warning,
            Severity::High => Self::Error,
            Severity::Critical => Self::Critical,
        }
    }
}

/// A record, and what all formats want to know of it.
#[derive(Debug)]
struct View<'a> {
    record: &'a Record,
    standing: Standing,
    at: Timestamp,
    /// The event's type and its outcome, as records write them.
    kind: String,
    outcome: String,
    matter: Matter,
    severity: Severity,
}

impl<'a> View<'a> {
    fn new(record: &'a Record, standing: Standing) -> Result<Self, Timeless> {
        let event = &record.entry.event;
        Ok(Self {
            record,
            standing,
            at: record.time.parse().map_err(|_| Timeless(record.seq))?,
            kind: super::record::snake(&event.kind),
            outcome: super::record::snake(&event.outcome),
            matter: matter(event.kind),
            severity: severity(event.kind, event.outcome),
        })
    }

    /// One name for this record among all of all hosts.
    fn id(&self) -> String {
        format!("{}/{}", self.record.agent.instance, self.record.seq)
    }

    /// When the process at the other end began. Its start is counted in ticks of a hundredth of a second since boot, which is
    /// the kernel's promise to programs (proc(5), USER_HZ).
    fn process_start(&self) -> Option<Timestamp> {
        let ticks = self.record.entry.peer.as_ref()?.start;
        let since_boot = SignedDuration::from_nanos(i64::try_from(self.record.boot_ns).ok()?);
        let boot = self.at.checked_sub(since_boot).ok()?;
        boot.checked_add(SignedDuration::from_millis(i64::try_from(ticks.checked_mul(10)?).ok()?)).ok()
    }

    /// One name for the process at the other end among all of all boots.
    fn process_id(&self) -> Option<String> {
        let peer = self.record.entry.peer.as_ref()?;
        Some(format!("{}/{}/{}", self.record.boot_id, peer.pid, peer.start))
    }

    /// The end of the credential's life.
    fn credential_end(&self) -> Option<Timestamp> {
        self.record.entry.credential.as_ref()?.not_after.as_deref()?.parse().ok()
    }

    /// The host that a call of an API is for.
    fn target_host(&self) -> Option<&'a str> {
        let origin = self.record.entry.target.as_ref()?.origin.split_once("://")?.1;
        let host = match origin.strip_prefix('[') {
            Some(bracketed) => bracketed.split_once(']')?.0,
            None => origin.split(':').next()?,
        };
        (!host.is_empty()).then_some(host)
    }

    /// Names without a counterpart elsewhere, and what they say.
    fn rest(&self) -> Vec<(&'static str, Option<String>)> {
        let entry = &self.record.entry;
        let (who, what) = (entry.workload.as_ref(), entry.credential.as_ref());
        let (peer, policy) = (entry.peer.as_ref(), entry.policy.as_ref());
        let unit = peer.and_then(|peer| peer.unit.as_ref());
        let mut rest = vec![
            ("environment", who.map(|who| who.env.clone())),
            ("owner", who.and_then(|who| who.owner.clone())),
            ("assurance", who.and_then(|who| who.assurance.clone())),
            ("level", peer.and_then(|peer| peer.level.clone())),
            ("unit", unit.map(|unit| unit.name.clone())),
            ("unit_invocation", unit.and_then(|unit| unit.invocation_id.clone())),
            ("socket", entry.socket.clone()),
            ("credential", what.and_then(|what| what.name.clone())),
            ("client_id", what.and_then(|what| what.client_id.clone())),
            ("resource", what.and_then(|what| what.resource.clone())),
            ("scope_requested", what.map(|what| what.scope_requested.join(" "))),
            ("scope_granted", what.and_then(|what| Some(what.scope_granted.as_ref()?.join(" ")))),
            ("binding", what.and_then(|what| what.binding.clone())),
            ("thumbprint", what.and_then(|what| what.thumbprint.clone())),
            ("token_hash", what.and_then(|what| what.token_hash.clone())),
            ("kid", what.and_then(|what| what.kid.clone())),
            ("source", what.and_then(|what| what.source.clone())),
            ("decision", policy.map(|policy| policy.decision.clone())),
            ("exception_until", policy.and_then(|policy| policy.exception_until.clone())),
            ("missing", policy.map(|policy| policy.missing.join("; "))),
            ("holder", entry.holder.as_ref().map(|holder| format!("{}.{}", holder.id, holder.credential))),
            ("config_digest", Some(self.record.agent.config_digest.clone())),
        ];
        if self.standing == Standing::Unsound {
            rest.push(("ledger", Some("broken here or before".into())));
        }
        rest.retain(|(_, text)| text.as_ref().is_some_and(|text| !text.is_empty()));
        rest
    }
}

/// `value` without what is not known: members that are null and objects that are empty.
fn known(value: Value) -> Value {
    match value {
        Value::Object(members) => {
            let members = members.into_iter().map(|(name, value)| (name, known(value)));
            let told = |value: &Value| {
                !value.is_null() && value.as_object().is_none_or(|members| !members.is_empty())
            };
            Value::Object(members.filter(|(_, value)| told(value)).collect())
        }
        Value::Array(all) => Value::Array(all.into_iter().map(known).collect()),
        value => value,
    }
}

/// JSON on one line, also for those who take other characters than a line feed for the end of one, or turn lines round (AUD-07).
fn one_line(value: Value) -> String {
    let text = known(value).to_string();
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        // Outside of strings, JSON of ours has ASCII only.
        if is_obeyed(c) {
            // Writing to a String cannot fail.
            let _ = write!(out, "\\u{:04x}", u32::from(c));
        } else {
            out.push(c);
        }
    }
    out
}

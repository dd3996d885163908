//! The report as plain data, as JSON has it: a field keeps its meaning, and `v` goes up if a reader of the old form would be misled.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Control, Remedy, Verdict};
use crate::policy::Humans;

/// How far a ledger can be believed.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Trust {
    /// There is none yet.
    Missing,
    /// It is not what was written: only the part before the fault counts, as far as the records after it or a checkpoint vouch for it.
    Tampered {
        /// The first record that is wrong.
        seq: u64,
        /// What is wrong with it.
        fault: String,
    },
    /// It is what was written.
    Whole {
        /// How many records.
        records: u64,
        /// How many of them a checkpoint has signed.
        signed: u64,
        /// Whether the checkpoints were held against a key that was kept elsewhere, and not against the one beside the ledger.
        key_given: bool,
    },
}

/// The posture of one host.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The version of this form.
    pub v: u32,
    /// When it was made, RFC 3339.
    pub time: String,
    /// From when on use counts as use, RFC 3339.
    pub since: String,
    /// The environment.
    pub environment: String,
    /// SHA-256 of the settings it was made from.
    pub config_digest: String,
    /// The ledger it was made from.
    pub ledger: LedgerPart,
    /// How far the host has come (S30).
    pub maturity: Maturity,
    /// What to do, the most needed first (S47).
    pub remedies: Vec<Remedy>,
    /// The controls of OWASP NHI 2025, OWASP Agentic 2026 and SP 800-63 (S16).
    pub controls: Vec<Control>,
    /// Each identity.
    pub identities: Vec<IdentityPart>,
    /// Identities that the ledger knows and the settings do not.
    pub gone: Vec<GonePart>,
}

impl Report {
    /// The identity of that name.
    pub fn identity(&self, name: &str) -> Option<&IdentityPart> {
        self.identities.iter().find(|identity| identity.name == name)
    }

    /// How many controls have this verdict.
    pub fn count(&self, verdict: Verdict) -> usize {
        self.controls.iter().filter(|control| control.verdict == verdict).count()
    }
}

/// The ledger of a report.
#[derive(Clone, Debug, Serialize)]
pub struct LedgerPart {
    /// How far it can be believed.
    #[serde(flatten)]
    pub trust: Trust,
    /// How many records were counted.
    pub counted: u64,
    /// The time of the first of them.
    pub first: Option<String>,
    /// The time of the last.
    pub last: Option<String>,
    /// Whether it goes back as far as was asked: if not, nobody can tell what was not used.
    pub covers: bool,
}

/// Where credentials stand on the way from static to bound (S30).
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
pub struct Maturity {
    /// All credentials.
    pub credentials: usize,
    /// Secrets that stay the same, handed out.
    #[serde(rename = "static")]
    pub fixed: usize,
    /// Secrets that stay the same, which no program sees.
    pub bridged: usize,
    /// Made anew, good for whoever has them.
    pub dynamic: usize,
    /// Made anew, good only with a key.
    pub bound: usize,
    /// Those of all whose program is attested by more than its user.
    pub attested: usize,
    /// The same in one sentence.
    pub sentence: String,
}

/// What a credential is.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// It stays the same, and is handed out.
    Static,
    /// It stays the same, and the agent alone uses it.
    Bridged,
    /// It is made anew, and good for whoever has it.
    Dynamic,
    /// It is made anew, and good only with a key.
    Bound,
}

impl Kind {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Static => "static",
            Self::Bridged => "bridged",
            Self::Dynamic => "dynamic",
            Self::Bound => "bound",
        }
    }
}

/// Whether an identity is used (NHI-1).
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Life {
    /// Within the time asked for.
    Used,
    /// Not within that time, and the ledger goes back as far.
    Stale,
    /// Not in the ledger, which does not go back far enough to tell.
    Unknown,
}

/// One identity.
#[derive(Clone, Debug, Serialize)]
pub struct IdentityPart {
    /// Its name.
    pub name: String,
    /// What a process must be, in words; any of them.
    pub matches: Vec<String>,
    /// Who answers for it.
    pub owner: String,
    /// What it demands.
    pub assurance: String,
    /// The least level of evidence that it demands.
    pub demands: String,
    /// Whether more is told of its program than the user it runs as.
    pub attested: bool,
    /// Whether each of its selectors names the program.
    pub by_program: bool,
    /// Whether each of its selectors names the program by content.
    pub by_content: bool,
    /// Whether one of its selectors names neither a unit, nor a user, nor a program: any of many programs is it.
    pub by_group_only: bool,
    /// The strongest evidence that anything was handed out on, in the time asked for.
    pub level_best: Option<String>,
    /// The weakest.
    pub level_worst: Option<String>,
    /// Why an operator has switched it off.
    pub disabled: Option<String>,
    /// Its key, if it has one.
    pub key: Option<KeyPart>,
    /// Its client certificate, if it has one.
    pub certificate: Option<CertificatePart>,
    /// Its credentials.
    pub credentials: Vec<CredentialPart>,
    /// Whether it is used.
    pub life: Life,
    /// When anything was handed out last, RFC 3339.
    pub last_used: Option<String>,
    /// How often something was handed out, in the time asked for.
    pub handed_out: u64,
    /// How often something was denied it, in that time.
    pub denied: u64,
    /// The units that it was seen in, in that time.
    pub units: Vec<String>,
    /// What becomes of a person who comes as it: told, refused or allowed.
    pub people: &'static str,
    /// How many processes with a person behind them were served, by what gave them away, in that time.
    pub humans: BTreeMap<String, u64>,
    /// What whoever takes it over has (S15).
    pub reach: Reach,
}

impl IdentityPart {
    /// Whether people may come as it, as its settings say.
    pub(super) fn is_for_people(&self) -> bool {
        self.people == Humans::Allowed.as_str()
    }
}

/// A key that proves who asks.
#[derive(Clone, Debug, Serialize)]
pub struct KeyPart {
    /// file or memory.
    pub custody: &'static str,
    /// What it signs with.
    pub algorithm: String,
    /// How old it may become, in seconds (K57-1).
    pub age_limit_s: u64,
    /// Whether a copy of its file is worth nothing; unknown where only the agent could say, and the ledger does not.
    pub sealed: Option<bool>,
}

/// A client certificate.
#[derive(Clone, Debug, Serialize)]
pub struct CertificatePart {
    /// Where its key is: file or memory.
    pub custody: &'static str,
    /// Whether a copy of the key's file is worth nothing; unknown where only the agent could say, and the ledger does not.
    pub sealed: Option<bool>,
    /// The longest it lives, in seconds, where the agent makes it.
    pub life_s: Option<u64>,
    /// Whether its key may be handed out.
    pub export: bool,
}

/// One credential.
#[derive(Clone, Debug, Serialize)]
pub struct CredentialPart {
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// token, certificate, lease or sealed.
    pub wants: &'static str,
    /// What binds it.
    pub binding: &'static str,
    /// What keeps it from being given to a false server: channel, name or none (N63-1).
    pub phishing_resistance: &'static str,
    /// The issuer.
    pub issuer: String,
    /// The client it is asked for as.
    pub client_id: String,
    /// How the issuer learns who asks.
    pub client_auth: &'static str,
    /// A token of others' that is brought along, and what has to be in it.
    pub brought: Vec<BroughtPart>,
    /// Whether somebody else's right is used without saying who uses it.
    pub impersonates: bool,
    /// The one API it is for.
    pub audience: Option<String>,
    /// Whether a token must name that.
    pub audience_checked: bool,
    /// Its scope.
    pub scope: Vec<String>,
    /// Whether it is for particular things beside its scope (RFC 9396).
    pub details: bool,
    /// Where proofs and calls may go.
    pub origins: Vec<String>,
    /// never, allowed or only.
    pub forward: &'static str,
    /// identity or process.
    pub per: &'static str,
    /// How often one may be handed out.
    pub max_uses: Option<u32>,
    /// Whether the key that binds it is handed out with it.
    pub key_export: bool,
    /// Where the key is of a certificate that a CA gives: file or memory.
    pub key_custody: Option<&'static str>,
    /// Whether a copy of that file is worth nothing; unknown where only the agent could say, and the ledger does not.
    pub key_sealed: Option<bool>,
    /// The variables that programs get it in.
    pub variables: Vec<String>,
    /// The longest it may live here, in seconds. A secret that stays the same has to be asked for again then, and lives on.
    pub life_allowed_s: u64,
    /// The longest that was handed out, in seconds, in the time asked for.
    pub life_seen_s: Option<u64>,
    /// Why it may be weaker than it should, and until when.
    pub exception: Option<ExceptionPart>,
    /// How often it was handed out, in the time asked for.
    pub handed_out: u64,
    /// When last, RFC 3339.
    pub last_used: Option<String>,
    /// For how many days the ledger has known it.
    pub known_for_days: Option<i64>,
    /// Scopes that no token had in the time asked for, though there were tokens (NHI-5). Empty where the ledger cannot tell.
    pub scopes_unused: Vec<String>,
    /// Scopes that were had only as part of everything, never asked for by name: whether they are needed, the ledger cannot tell.
    pub scopes_unproven: Vec<String>,
    /// Scopes that tokens had and the settings do not.
    pub scopes_beyond: Vec<String>,
    /// The record with which it came to nothing last, if nothing was handed out since.
    pub failing_since: Option<u64>,
}

/// A token of others'.
#[derive(Clone, Debug, Serialize)]
pub struct BroughtPart {
    /// What it is used as.
    pub role: &'static str,
    /// Whether what it must say of its subject is written out.
    pub conditions: bool,
}

/// A weakness that somebody answers for.
#[derive(Clone, Debug, Serialize)]
pub struct ExceptionPart {
    /// Who.
    pub owner: String,
    /// Why.
    pub reason: String,
    /// When it ends, RFC 3339.
    pub until: String,
    /// In how many days; negative if it has ended.
    pub days_left: i64,
}

/// What whoever takes an identity over has (S15).
#[derive(Clone, Debug, Serialize)]
pub struct Reach {
    /// The APIs.
    pub audiences: Vec<String>,
    /// The scopes, all together.
    pub scopes: Vec<String>,
    /// The places that calls and proofs may go to.
    pub origins: Vec<String>,
    /// For how long what was taken is good, in seconds; none if it is good until somebody changes it.
    pub longest_life_s: Option<u64>,
    /// audiences x scopes x hours: a number to compare by, no more.
    pub size: u64,
    /// What else the same key opens, a line for each client at an issuer.
    pub same_key: Vec<String>,
}

/// An identity that the ledger knows and the settings do not.
#[derive(Clone, Debug, Serialize)]
pub struct GonePart {
    /// Its name, as recorded.
    pub name: String,
    /// When anything was handed out last, RFC 3339.
    pub last_used: Option<String>,
    /// Until when something that was handed out lives still, RFC 3339.
    pub lives_until: Option<String>,
}

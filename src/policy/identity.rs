//! What an operator grants: identities, their credentials, and the dated exceptions among them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;

use super::{Reason, Selectors};
use crate::{
    attest::Level,
    credential::Binding,
    issuer::{Scope, terms::Terms},
    proof::Target,
    secret::scrubbed,
};

/// What an owner looks like, for messages.
pub const OWNER_FORM: &str = "a mail address or team name, 3 to 128 printable characters";

/// A distinct non-human identity.
#[derive(Clone, Debug, PartialEq)]
pub struct Identity {
    /// Its name.
    pub name: Arc<str>,
    /// Who answers for it.
    pub owner: String,
    /// What it demands.
    pub assurance: Assurance,
    /// Any of these makes a process this identity; within one, all must match.
    pub selectors: Vec<Selectors>,
    /// Its credentials, by name.
    pub credentials: BTreeMap<Arc<str>, Arc<CredentialRule>>,
    /// The one of them whose certificate it shows to issuers and APIs.
    pub shows: Option<Arc<str>>,
}

/// One credential an identity may have.
#[derive(Clone, Debug, PartialEq)]
pub struct CredentialRule {
    /// Its name within the identity.
    pub name: Arc<str>,
    /// The issuer's name in the settings.
    pub issuer: Arc<str>,
    /// The OAuth client to be.
    pub client_id: Arc<str>,
    /// The one resource it is for.
    pub resource: Option<Arc<str>>,
    /// Whether a JWT must name the resource as audience.
    pub require_aud: bool,
    /// The scope, sorted, without duplicates.
    pub scope: Scope,
    /// What binds it.
    pub binding: Binding,
    /// Whether the key of the certificate that binds it is handed out with it (MT-11).
    pub key_export: bool,
    /// How it is asked for.
    pub terms: Arc<Terms>,
    /// Where proofs for it may go, by origin, and with which methods (DPOP-19, DPOP-21).
    pub proofs: Proofs,
    /// Who shares it.
    pub per: Per,
    /// How often one may be handed out, if that is limited (S29).
    pub max_uses: Option<u32>,
    /// The longest life it may have here.
    pub max_ttl: Duration,
    /// Why it may be weaker than it should, and until when.
    pub exception: Option<Exception>,
}

impl CredentialRule {
    /// The scope a caller gets who asks for `wanted`: all of it, or less, never more.
    pub(super) fn narrowed(&self, wanted: &[String]) -> Result<Scope, String> {
        if wanted.is_empty() {
            return Ok(Arc::clone(&self.scope));
        }
        let granted = |want: &String| {
            self.scope.iter().find(|scope| ***scope == **want).cloned().ok_or_else(|| want.clone())
        };
        let mut narrowed = wanted.iter().map(granted).collect::<Result<Vec<_>, _>>()?;
        narrowed.sort();
        narrowed.dedup();
        Ok(narrowed.into())
    }
}

/// The longest a certificate lives unless the settings say otherwise (S2), and the longest they may say (K57-3).
pub const CERTIFICATE_TTL: Duration = Duration::from_secs(24 * 60 * 60);
pub(super) const LONGEST_CERTIFICATE_TTL: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// Who shares a credential.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Per {
    /// All processes of the identity.
    #[default]
    Identity,
    /// Nobody: each process has its own, which is revoked when it exits (S37).
    Process,
}

/// What proofs of possession may be made for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Proofs {
    /// Origins, as `https://api.example:8443`.
    pub origins: BTreeSet<String>,
    /// Methods, as they are sent.
    pub methods: BTreeSet<String>,
    /// Whether an origin may be plain HTTP on this host: development only.
    pub plain: bool,
}

impl Default for Proofs {
    fn default() -> Self {
        let methods = Self::METHODS.map(str::to_owned).into();
        Self { origins: BTreeSet::new(), methods, plain: false }
    }
}

impl Proofs {
    /// The methods of an API, if the settings name none (DPOP-21).
    pub const METHODS: [&str; 6] = ["DELETE", "GET", "HEAD", "PATCH", "POST", "PUT"];

    /// Why no proof is made for this request; `None` if one is.
    pub(super) fn refuse(&self, wanted: &Proving<'_>) -> Option<(Reason, String)> {
        let target = wanted.target;
        if !self.origins.contains(target.origin()) || !self.plain && !target.is_https() {
            let allowed: Vec<&str> = self.origins.iter().map(String::as_str).collect();
            let missed = format!("{} is not among the origins {allowed:?}", scrubbed(target.origin(), 200));
            return Some((Reason::HtuNotAllowed, missed));
        }
        if !self.methods.contains(wanted.method) {
            let missed = format!("the method {:?} is not among those allowed", scrubbed(wanted.method, 32));
            return Some((Reason::HtmNotAllowed, missed));
        }
        None
    }
}

/// A request that a proof is wanted for.
#[derive(Clone, Copy, Debug)]
pub struct Proving<'a> {
    /// Its method.
    pub method: &'a str,
    /// Where it goes.
    pub target: &'a Target,
}

/// A weakness somebody answers for, for a while (S36).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Exception {
    /// Who answers for it.
    pub owner: String,
    /// Why.
    pub reason: String,
    /// When it ends: afterwards the credential is denied.
    pub until: Timestamp,
}

/// What an identity demands of evidence and credentials (S38).
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Assurance {
    /// Signed assertions as a step on the way (S40): L2, an hour.
    Interim,
    /// The default one strives for: L3, fifteen minutes.
    Standard,
    /// Bound credentials, L4, five minutes (S39).
    High,
}

impl Assurance {
    /// The least level of evidence.
    pub fn level(self) -> Level {
        match self {
            Self::Interim => Level::L2,
            Self::Standard => Level::L3,
            Self::High => Level::L4,
        }
    }

    /// The longest life a credential may have (S2).
    pub fn max_ttl(self) -> Duration {
        match self {
            Self::Interim => Duration::from_secs(3600),
            Self::Standard => Duration::from_secs(900),
            Self::High => Duration::from_secs(300),
        }
    }

    /// As config and records write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Interim => "interim",
            Self::Standard => "standard",
            Self::High => "high",
        }
    }
}

impl FromStr for Assurance {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        [Self::Interim, Self::Standard, Self::High].into_iter().find(|known| known.as_str() == name).ok_or(())
    }
}

impl fmt::Display for Assurance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whether a name may name an identity, a credential or an issuer: it goes into paths, records and commands.
pub fn name_is_sound(name: &str) -> bool {
    let mut bytes = name.bytes();
    name.len() <= 63
        && bytes.next().is_some_and(|first| first.is_ascii_lowercase() || first.is_ascii_digit())
        && bytes
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'_')
}

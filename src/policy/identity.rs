//! What an operator grants: identities, their credentials, and the dated exceptions among them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::PathBuf,
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;

use super::{Purpose, Reason, Selectors};
use crate::{
    api::{Carry, Path},
    attest::Level,
    credential::Binding,
    deliver::Delivery,
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
    /// What becomes of a person who comes as this identity (NHI-10).
    pub humans: Humans,
    /// Whether the host's service manager may ask for it before its program runs, by the unit alone.
    pub service_manager: bool,
    /// What its programs get that know no gRPC.
    pub delivery: Arc<Delivery>,
}

/// What becomes of a person's session that is, by its evidence, a service (NHI-10).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Humans {
    /// It is served, and that is on record: the identity is one for people, such as for an emergency.
    Allowed,
    /// It is not served, nor is one of which it cannot be told.
    Refused,
    /// It is served, on record, and operators are told.
    Told,
}

impl Humans {
    /// As config writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Refused => "refused",
            Self::Told => "told",
        }
    }
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
    /// Where proofs for it may go, by origin, and with which methods (DPOP-19, DPOP-21). Calls of the agent's go nowhere else, nor do
    /// the credential helpers hand it to a client that names another place.
    pub proofs: Proofs,
    /// The user name that goes with it where a client asks for one (git, docker).
    pub username: Option<Arc<str>>,
    /// Whether the agent calls its API for the program, and how (MT-11).
    pub forward: Option<Forward>,
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

    /// Why it needs an exception, in words for a list.
    pub fn weakness(&self) -> &'static str {
        if self.terms.wants.is_static() { "a static secret" } else { self.binding.as_str() }
    }

    /// Whether it is there for that, and where a call with it goes if it is a call that is wanted; or why not, in a word and in
    /// words.
    pub(super) fn purpose(&self, purpose: &Purpose<'_>) -> Result<Option<Target>, (Reason, String)> {
        let only = self.forward.as_ref().is_some_and(|forward| forward.only);
        match purpose {
            Purpose::Forward(_) if self.forward.is_none() => {
                Err((Reason::ForwardNotAllowed, "the agent calls nobody with it".into()))
            }
            Purpose::Forward(wanted) => self.proofs.target(wanted).map(Some),
            Purpose::Nothing => Ok(None),
            Purpose::Prove(_) | Purpose::Take if only => {
                Err((Reason::ForwardOnly, "it does not leave the agent, which calls its API itself".into()))
            }
            Purpose::Prove(_) if self.binding != Binding::Dpop => {
                Err((Reason::NotBound, format!("it is {}, and nothing is proved with it", self.binding)))
            }
            Purpose::Prove(wanted) => match self.proofs.refuse(wanted) {
                Some(no) => Err(no),
                None => Ok(None),
            },
            Purpose::Take => Ok(None),
        }
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

impl Per {
    /// As config writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Process => "process",
        }
    }
}

/// How the agent calls an API for a program.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Forward {
    /// Whether that is all that the program gets: neither the credential nor proofs for it (DR-08).
    pub only: bool,
    /// In which header it goes to the API, where it is no token (S46).
    pub carry: Option<Arc<Carry>>,
    /// The only roots to trust for the API, PEM; without it, the host's.
    pub ca_file: Option<PathBuf>,
    /// How long nothing may move on the way to the API and back.
    pub patience: Duration,
}

/// A call that the agent is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Forwarding<'a> {
    /// Its method.
    pub method: &'a str,
    /// The origin, if it is not the first of the credential's.
    pub origin: Option<&'a str>,
    /// Where to at that origin.
    pub path: &'a Path,
}

/// What proofs of possession may be made for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Proofs {
    /// Origins, as `https://api.example:8443`. The first is where the agent's own calls go if nobody says otherwise.
    pub origins: Vec<String>,
    /// Methods, as they are sent.
    pub methods: BTreeSet<String>,
    /// Whether an origin may be plain HTTP on this host: development only.
    pub plain: bool,
}

impl Default for Proofs {
    fn default() -> Self {
        let methods = Self::METHODS.map(str::to_owned).into();
        Self { origins: Vec::new(), methods, plain: false }
    }
}

impl Proofs {
    /// The methods of an API, if the settings name none (DPOP-21).
    pub const METHODS: [&str; 6] = ["DELETE", "GET", "HEAD", "PATCH", "POST", "PUT"];

    /// Why no proof is made for this request; `None` if one is.
    pub(super) fn refuse(&self, wanted: &Proving<'_>) -> Option<(Reason, String)> {
        let target = wanted.target;
        if !self.origins.iter().any(|origin| origin == target.origin()) || !self.plain && !target.is_https() {
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

    /// Where a call goes, if it goes anywhere: to an origin that the operator named, whatever the caller says.
    pub(super) fn target(&self, wanted: &Forwarding<'_>) -> Result<Target, (Reason, String)> {
        let nowhere = |missed: String| (Reason::HtuNotAllowed, missed);
        let origin = match wanted.origin {
            Some(named) => named,
            None => self.origins.first().ok_or_else(|| nowhere("it has no origin".into()))?,
        };
        let target = wanted
            .path
            .at(origin)
            .map_err(|error| nowhere(format!("the origin {:?}: {error}", scrubbed(origin, 200))))?;
        // What is more than an origin would have become part of the path.
        if target.origin() != origin {
            return Err(nowhere(format!("{:?} is no origin", scrubbed(origin, 200))));
        }
        match self.refuse(&Proving { method: wanted.method, target: &target }) {
            Some(no) => Err(no),
            None => Ok(target),
        }
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

    /// What becomes of people, unless the identity says otherwise: a developer's machine has to work, and what matters most is no
    /// place for them (NHI-10).
    pub fn humans(self) -> Humans {
        match self {
            Self::Interim | Self::Standard => Humans::Told,
            Self::High => Humans::Refused,
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

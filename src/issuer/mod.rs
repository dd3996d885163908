//! Where credentials come from. In goes an [`Order`]; out comes a [`Credential`] whose every claim was held
//! against the order, or an [`IssueError`] whose variant says what to do next. Nothing is cached here and
//! nothing is retried here: that is the broker's.

mod answer;
mod assertion;
mod bootstrap;
pub mod conditions;
mod contact;
mod door;
pub mod http;
pub mod json;
pub mod oauth;
pub mod openbao;
pub mod registration;
mod route;
#[cfg(test)]
mod script;
pub mod sealed;
pub mod skew;
pub mod spiffe;
pub mod stream;
pub mod terms;
pub mod token_file;
pub mod token_type;
pub mod x509;

use std::{fmt, future::Future, hash, path::Path, pin::Pin, sync::Arc, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use self::{
    registration::{Access, Ask, Registration},
    terms::{CertificateTerms, Terms, Wants},
};
use crate::{
    credential::{Binding, Credential},
    jose::Signer,
    keys::ClientCertificate,
    proof::Target,
};

/// Words of a scope, sorted, without duplicates. Shared, because one rule serves many orders.
pub type Scope = Arc<[Arc<str>]>;

/// What we ask an issuer for. Two orders are equal if the same credential would do for both (CLK-08): the shelf is keyed
/// by them. With which keys it is placed is no part of it: a key that rotates changes no credential that lives.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Order {
    /// The identity it is for.
    pub identity: Arc<str>,
    /// The name of the credential within the identity.
    pub credential: Arc<str>,
    /// The name of the issuer in the settings.
    pub issuer: Arc<str>,
    /// The OAuth client to be.
    pub client_id: Arc<str>,
    /// The one resource the credential is for (OA-21).
    pub resource: Option<Arc<str>>,
    /// The scope to ask for, sorted, without duplicates.
    pub scope: Scope,
    /// Whether a JWT must name the resource as its audience.
    pub require_aud: bool,
    /// The longest life we use; what is longer is cut to it.
    pub max_ttl: Duration,
    /// What must bind it.
    pub binding: Binding,
    /// How it is asked for.
    pub terms: Arc<Terms>,
    /// How often it may be handed out, if that is limited (S29).
    pub max_uses: Option<u32>,
    /// The one process it is for, if it dies with it.
    pub instance: Option<Instance>,
}

/// One run of one process: a pid alone is given to others afterwards.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct Instance {
    /// Its process id.
    pub pid: u32,
    /// When it started, in clock ticks since boot.
    pub start: u64,
}

/// The keys that an order is placed with, as they are at that moment.
#[derive(Clone, Debug)]
pub struct Signers {
    /// Proves who asks; none where the order has that proved by something else.
    pub client: Option<Arc<dyn Signer>>,
    /// The one that did before, while the issuer may not know the new one yet (KEY-06).
    pub before: Option<Arc<dyn Signer>>,
    /// Binds what comes, if the order wants it bound by DPoP (DPOP-14).
    pub dpop: Option<Arc<dyn Signer>>,
    /// The certificates to show where TLS proves who asks, or binds what comes: the one in use, then the one before, which an
    /// issuer may know instead (MT-05).
    pub certificates: Vec<Arc<ClientCertificate>>,
}

/// What it is, and how it is to be used.
type Key<'a> = (
    (&'a str, &'a str, &'a str, &'a str, Option<&'a str>, &'a [Arc<str>]),
    (bool, Duration, Binding, Option<u32>, Option<Instance>),
);

impl Order {
    fn key(&self) -> Key<'_> {
        (
            (
                &self.identity,
                &self.credential,
                &self.issuer,
                &self.client_id,
                self.resource.as_deref(),
                &self.scope,
            ),
            (self.require_aud, self.max_ttl, self.binding, self.max_uses, self.instance),
        )
    }
}

impl Order {
    /// The same order, for a credential of its own that is kept nowhere and takes the place of none.
    #[must_use]
    pub fn apart(self) -> Self {
        let Wants::Certificate(certificate) = &self.terms.wants else { return self };
        let certificate = CertificateTerms { path: None, same_key: false, ..certificate.clone() };
        let terms = Terms { wants: Wants::Certificate(certificate), ..Terms::clone(&self.terms) };
        Self { terms: Arc::new(terms), ..self }
    }

    /// Where what comes is kept for the next start; nowhere, if it is for one process.
    pub fn kept_at(&self) -> Option<&Path> {
        match &self.terms.wants {
            Wants::Certificate(certificate) if self.instance.is_none() => certificate.path.as_deref(),
            _ => None,
        }
    }

    /// Whether it is placed over a connection that shows the identity's certificate.
    pub fn shows_certificate(&self) -> bool {
        self.terms.client_auth.is_mtls() || self.binding == Binding::Mtls && self.terms.wants == Wants::Token
    }
}

impl PartialEq for Order {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key() && self.terms == other.terms
    }
}

impl Eq for Order {}

impl hash::Hash for Order {
    fn hash<H: hash::Hasher>(&self, state: &mut H) {
        // Not the terms: they are the same for all orders of a rule, and every call hashes its order.
        self.key().hash(state);
    }
}

/// A future that a trait object can return.
pub type Pending<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Whoever mints credentials.
pub trait Issuer: fmt::Debug + Send + Sync {
    /// Asks once. The answer has been doubted: a credential that comes out fits the order. `held` is what is live under the order,
    /// for issuers that renew what they gave.
    fn issue<'a>(
        &'a self,
        order: &'a Order,
        signers: &'a Signers,
        held: Option<&'a Credential>,
    ) -> Pending<'a, Issued>;

    /// Gives a credential back, so that it dies before its time (RFC 7009).
    fn revoke<'a>(
        &'a self,
        order: &'a Order,
        signers: &'a Signers,
        credential: &'a Credential,
    ) -> Pending<'a, Result<(), IssueError>>;

    /// When the issuer would have a credential renewed that it gave, if it has a say in that (RFC 9773).
    fn advice<'a>(&'a self, _order: &'a Order, _credential: &'a Credential) -> Pending<'a, Option<Advice>> {
        Box::pin(async { None })
    }

    /// Whether it takes a client's next key because the one before vouches for it, and in no other way (RFC 8555 7.3.5).
    fn adopts_keys(&self) -> bool {
        false
    }

    /// Its own endpoints, as far as it has told them. No workload gets a proof for one: it could ask for tokens with the agent's
    /// key (DPOP-20).
    fn endpoints(&self) -> Arc<Vec<Target>>;

    /// Reads or replaces what it has on its books about a client (RFC 7592). What comes may hold another right to it, which has to
    /// be kept before anything else is done.
    fn registration<'a>(
        &'a self,
        access: &'a Access,
        ask: Ask,
    ) -> Pending<'a, Result<Registration, IssueError>> {
        let _ = (access, ask);
        let detail = "issuers of this kind have no registration of clients".into();
        Box::pin(async { Err(IssueError::Misconfigured { reason: Reason::IssuerConfig, detail }) })
    }
}

/// When a credential should be renewed, as its issuer sees it (ACM-04).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Advice {
    /// From when until when, by the wall; none if it did not say, or nothing that makes sense.
    pub window: Option<(Timestamp, Timestamp)>,
    /// When it is to be asked again.
    pub again: Duration,
}

/// What one asking came to, and what the ledger should know about it either way.
#[derive(Debug)]
pub struct Issued {
    /// The credential, or why there is none.
    pub result: Result<Credential, IssueError>,
    /// How it went.
    pub facts: IssueFacts,
}

/// How one exchange with an issuer went. Holds no secret and no free text of the issuer.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct IssueFacts {
    /// The status of the issuer's last answer, if one came.
    pub http_status: Option<u16>,
    /// The `error` code of that answer, cleaned (ER-13).
    pub oauth_error: Option<String>,
    /// From asking to knowing, on the boot clock.
    pub latency: Duration,
    /// How far the issuer's `Date` was ahead of our wall clock, in milliseconds (CLK-02).
    pub date_skew_ms: Option<i64>,
    /// The life it gave, where policy allows less and it was cut (CLK-04).
    pub cut_life_from: Option<Duration>,
    /// Whether it took the key before, and not yet the one that signs now (KEY-06).
    pub key_fallback: bool,
    /// Whether it sent a refresh token, which was thrown away (OA-29).
    pub refresh_token_ignored: bool,
    /// Whether it said that a one-time value of ours had been used before (ER-10).
    pub one_time_reuse: bool,
    /// Whether its metadata are not those that are pinned (OA-05).
    pub metadata_changed: bool,
    /// Why a lease that was held goes on no longer, where there is another one instead.
    pub lease_replaced: Option<&'static str>,
}

/// Why there is no credential, sorted by what to do next.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum IssueError {
    /// It may work later: try again, not before `after` if that is given (CLK-05, CLK-06).
    #[error("{reason}: {detail}")]
    Retry {
        /// The class of trouble.
        reason: Reason,
        /// What happened, for the ledger and the log, not for callers: never a secret; what it quotes of the
        /// issuer is cut and cleaned first (ER-13).
        detail: String,
        /// The issuer's own wish for when to come back.
        after: Option<Duration>,
    },
    /// The issuer is at it, or something is missing here: this order comes back after `after`, others are not held up (EST-02).
    #[error("{reason}: {detail}")]
    Later {
        /// What it is at.
        reason: Reason,
        /// What happened.
        detail: String,
        /// When to come back.
        after: Duration,
    },
    /// The issuer understood and said no. Asking again the same way is of no use.
    #[error("{reason}: {detail}")]
    Refused {
        /// The class of refusal.
        reason: Reason,
        /// What happened.
        detail: String,
    },
    /// A person has to change a setting, here or at the issuer.
    #[error("{reason}: {detail}")]
    Misconfigured {
        /// What is set wrong.
        reason: Reason,
        /// What happened.
        detail: String,
    },
}

impl IssueError {
    /// The class, whatever the next move.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Retry { reason, .. }
            | Self::Later { reason, .. }
            | Self::Refused { reason, .. }
            | Self::Misconfigured { reason, .. } => *reason,
        }
    }
}

/// What is wrong with a certificate that a CA sent (X5-02).
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Rejected {
    /// It may sign others.
    Ca,
    /// It does not lead to the root that was configured.
    Chain,
    /// It cannot be read.
    Form,
    /// It is for another key.
    Key,
    /// It lives longer than policy allows, or has ended.
    Life,
    /// It names others than were asked for, or not all of them.
    Names,
    /// It may not be used as it has to be.
    Usage,
}

impl Rejected {
    fn as_str(self) -> &'static str {
        match self {
            Self::Ca => "CERT_REJECTED_CA",
            Self::Chain => "CERT_REJECTED_CHAIN",
            Self::Form => "CERT_REJECTED_FORM",
            Self::Key => "CERT_REJECTED_KEY",
            Self::Life => "CERT_REJECTED_LIFE",
            Self::Names => "CERT_REJECTED_NAMES",
            Self::Usage => "CERT_REJECTED_USAGE",
        }
    }
}

/// The classes of trouble with an issuer; the names are those of `ErrorInfo.reason` (ER-01..13).
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Reason {
    /// ER-01: the issuer could not read our request.
    AgentBugRequest,
    /// ER-09: the issuer wants an attestation of the client, which this agent does not make.
    AttestationRejected,
    /// ER-06: `invalid_target`.
    AudienceDenied,
    /// MT-01: the issuer does not list the client's way to prove who it is.
    AuthmUnsupported,
    /// OA-21: the token is not for the resource.
    AudMismatch,
    /// EST-02: the CA has not decided yet.
    CaPending,
    /// X5-02: the certificate is not the one that was asked for.
    CertRejected(Rejected),
    /// MT-14: the client certificate could not be shown, or was refused in TLS.
    CertNotAccepted,
    /// PKJ-05: the pinned token endpoint and the metadata differ.
    CfgAudPin,
    /// ER-02: `invalid_client`.
    ClientAuthRejected,
    /// CLK-03: our clock and the issuer's are too far apart.
    ClockUntrusted,
    /// ER-08: a DPoP proof was refused.
    DpopRejected,
    /// OA-04: the metadata names a host that is not the issuer's.
    EndpointForeign,
    /// ER-03: `invalid_grant`.
    GrantRejected,
    /// ER-04: `unauthorized_client`, `unsupported_grant_type`, or no algorithm in common.
    IssuerConfig,
    /// OA-02, OA-09: somebody else's metadata or token.
    IssuerMismatch,
    /// The answer breaks the protocol (OA-03, OA-44, OA-45, CLK-04).
    IssuerProtocol,
    /// ER-11: 429.
    IssuerRateLimit,
    /// PKJ-17: a redirect where none is allowed.
    IssuerRedirect,
    /// ER-12: TLS failed.
    IssuerTls,
    /// ER-12: out of reach, 5xx, or silent.
    IssuerUnavailable,
    /// Custody could not sign.
    KeyUnavailable,
    /// OA-05: the metadata are not those that are pinned.
    MetadataChanged,
    /// ER-10: the issuer says our one-time value was used before.
    OneTimeReuse,
    /// ER-07: `invalid_authorization_details`.
    RarDenied,
    /// OA-27: other or wider authorization details came back than were asked for.
    RarEscalated,
    /// ER-05: `invalid_scope`.
    ScopeDenied,
    /// OA-20: more scope came back than was asked.
    ScopeEscalated,
    /// A secret that is kept on this host cannot be had: nobody has put it in, or it does not open (S1).
    SecretUnavailable,
    /// A token that something else on this host provides cannot be had (WIM-11).
    SourceTokenUnavailable,
    /// Such a token does not say what the settings demand (WIM-11).
    SourceTokenUnfit,
    /// OA-42: the issuer does not know the token that it has just made.
    TokenInactive,
    /// The token's binding is not the one asked for.
    TokenNotBound,
}

impl Reason {
    /// The stable name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AgentBugRequest => "AGENT_BUG_REQUEST",
            Self::AttestationRejected => "ATTESTATION_REJECTED",
            Self::AudienceDenied => "AUDIENCE_DENIED",
            Self::AudMismatch => "AUD_MISMATCH",
            Self::AuthmUnsupported => "AUTHM_UNSUPPORTED",
            Self::CaPending => "CA_PENDING",
            Self::CertNotAccepted => "CERT_NOT_ACCEPTED",
            Self::CertRejected(by) => by.as_str(),
            Self::CfgAudPin => "CFG_AUD_PIN",
            Self::ClientAuthRejected => "CLIENT_AUTH_REJECTED",
            Self::ClockUntrusted => "CLOCK_UNTRUSTED",
            Self::DpopRejected => "DPOP_REJECTED",
            Self::EndpointForeign => "ENDPOINT_FOREIGN",
            Self::GrantRejected => "GRANT_REJECTED",
            Self::IssuerConfig => "ISSUER_CONFIG",
            Self::IssuerMismatch => "ISSUER_MISMATCH",
            Self::IssuerProtocol => "ISSUER_PROTOCOL",
            Self::IssuerRateLimit => "ISSUER_RATE_LIMIT",
            Self::IssuerRedirect => "ISSUER_REDIRECT",
            Self::IssuerTls => "ISSUER_TLS",
            Self::IssuerUnavailable => "ISSUER_UNAVAILABLE",
            Self::KeyUnavailable => "KEY_UNAVAILABLE",
            Self::MetadataChanged => "METADATA_CHANGED",
            Self::OneTimeReuse => "ONE_TIME_REUSE",
            Self::RarDenied => "RAR_DENIED",
            Self::RarEscalated => "RAR_ESCALATED",
            Self::ScopeDenied => "SCOPE_DENIED",
            Self::ScopeEscalated => "SCOPE_ESCALATED",
            Self::SecretUnavailable => "SECRET_UNAVAILABLE",
            Self::SourceTokenUnavailable => "SOURCE_TOKEN_UNAVAILABLE",
            Self::SourceTokenUnfit => "SOURCE_TOKEN_UNFIT",
            Self::TokenInactive => "TOKEN_INACTIVE",
            Self::TokenNotBound => "TOKEN_NOT_BOUND",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

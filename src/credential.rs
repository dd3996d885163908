//! What we hand out: the secret, when it ends, what binds it, and what may be said about it in a log.
//! Made by the room `issuer` after it has doubted the issuer's answer; handed on unchanged.

use std::{
    borrow::Cow,
    fmt,
    sync::{Arc, LazyLock, OnceLock},
    time::Duration,
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    clock::Boot,
    jose::Signer,
    keys::ClientCertificate,
    secret::{Fingerprint, Secret},
};

/// What makes a stolen credential useless.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub enum Binding {
    /// Nothing: whoever has it can use it until it ends. Only under a dated exception (BCP-01).
    Bearer,
    /// A key of the agent's, by a proof with each request (RFC 9449).
    Dpop,
    /// A client certificate, by the TLS connection that a request comes over (RFC 8705).
    Mtls,
}

impl Binding {
    /// As config, API and records write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bearer => "bearer",
            Self::Dpop => "dpop",
            Self::Mtls => "mtls",
        }
    }

    /// The scheme under which it goes into an Authorization header; an issuer names the same as `token_type`.
    pub fn scheme(self) -> &'static str {
        match self {
            // RFC 8705 3: what binds a token to a certificate is TLS, not the scheme.
            Self::Bearer | Self::Mtls => "Bearer",
            Self::Dpop => "DPoP",
        }
    }
}

impl fmt::Display for Binding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What binds a credential, with the key where a key does it.
#[derive(Clone, Debug)]
pub enum Bound {
    /// Nothing.
    Bearer,
    /// This key, which lives as long as a credential needs it (MT-08 in spirit): a key that rotates strands nobody.
    Dpop(Arc<dyn Signer>),
    /// This certificate, with its key (MT-08).
    Mtls(Arc<ClientCertificate>),
}

impl Bound {
    /// The kind.
    pub fn binding(&self) -> Binding {
        match self {
            Self::Bearer => Binding::Bearer,
            Self::Dpop(_) => Binding::Dpop,
            Self::Mtls(_) => Binding::Mtls,
        }
    }

    /// The thumbprint of the key (RFC 7638), as `cnf.jkt` has it, or of the certificate, as `cnf["x5t#S256"]` does (RFC 8705).
    pub fn thumbprint(&self) -> Option<&str> {
        match self {
            Self::Bearer => None,
            Self::Dpop(key) => Some(key.kid()),
            Self::Mtls(certificate) => Some(certificate.thumbprint()),
        }
    }
}

/// From when until when, on both clocks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Window {
    /// When the answer was received.
    pub from: Boot,
    /// When it ends: the clock that decides (CLK-01).
    pub until: Boot,
    /// When it ends by the wall, for people and programs to read.
    pub until_wall: Timestamp,
    /// How much of its life was over when it came: nothing, but for what was kept over a restart.
    pub spent: Duration,
}

impl Window {
    /// A window that opens now and stays open for `life`.
    pub fn opening(now: Boot, wall: Timestamp, life: Duration) -> Self {
        let life_signed = jiff::SignedDuration::try_from(life).unwrap_or(jiff::SignedDuration::MAX);
        Self {
            from: now,
            until: now + life,
            until_wall: wall.checked_add(life_signed).unwrap_or(Timestamp::MAX),
            spent: Duration::ZERO,
        }
    }

    /// Ends it `life` from now, if it would be open for longer.
    pub fn shorten(&mut self, now: Boot, wall: Timestamp, life: Duration) {
        let shorter = Self::opening(now, wall, life);
        if shorter.until < self.until {
            *self = Self { from: self.from, spent: self.spent, ..shorter };
        }
    }

    /// Its whole length.
    pub fn life(&self) -> Duration {
        self.until.since(self.from)
    }

    /// What is left of it.
    pub fn left(&self, now: Boot) -> Duration {
        self.until.since(now)
    }
}

/// What a credential is.
#[derive(Debug)]
pub enum Payload {
    /// An access token, as the issuer wrote it.
    Token(Secret),
    /// A certificate, its key, and the roots that vouch for it and its peers.
    Certificate {
        /// The chain, with the key.
        certificate: Arc<ClientCertificate>,
        /// The roots in PEM.
        bundle: Arc<str>,
    },
    /// Values by name, such as a user and a password that are good for a while.
    Values {
        /// They, in the order of their names.
        values: Vec<(String, Secret)>,
        /// What its issuer is told to end it: what it hangs on there.
        handle: Secret,
    },
    /// Values by name that stay as they are, in the order of their names: nobody can end them but where they are checked (S1).
    Static(Vec<(String, Secret)>),
}

/// What a static secret hangs on: nothing.
static NOTHING: LazyLock<Secret> = LazyLock::new(|| Secret::new([]));

/// A live credential. Shared by reference: its secret is wiped when the last holder lets go.
#[derive(Debug)]
pub struct Credential {
    /// What it is.
    pub payload: Payload,
    /// Its validity.
    pub window: Window,
    /// What binds it to its holder.
    pub bound: Bound,
    /// The scope it was granted, sorted.
    pub scope: Vec<String>,
    /// The audience it was asked for, if the order named one.
    pub audience: Option<String>,
    /// What may be logged about it (AUD-05).
    pub fingerprint: Fingerprint,
    /// The fingerprint of its `jti`, where it is a JWT with one (AUD-05).
    pub jti: Option<Fingerprint>,
    /// How it is told to callers.
    pub form: Form,
}

/// How a credential is told, spelled out by whoever tells it first: the same for everybody as long as it lives, and wiped
/// with it.
#[derive(Debug, Default)]
pub struct Form(OnceLock<(String, Secret)>);

impl Form {
    /// The form under `name`, made by `spell` if it is not there yet.
    pub fn get_or_spell(&self, name: &str, spell: impl Fn() -> Vec<u8>) -> Cow<'_, [u8]> {
        let (told_as, form) = self.0.get_or_init(|| (name.to_owned(), Secret::new(spell())));
        // One credential has one name; what would be told under another is not taken from here.
        if told_as == name { Cow::Borrowed(form.expose()) } else { Cow::Owned(spell()) }
    }
}

impl Payload {
    /// As records name the kind.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Token(_) => "access_token",
            Self::Certificate { .. } => "x509_certificate",
            Self::Values { handle, .. } if handle.is_empty() => "unleased_values",
            Self::Values { .. } => "leased_values",
            Self::Static(_) => "static_values",
        }
    }
}

impl Credential {
    /// The kind of its binding.
    pub fn binding(&self) -> Binding {
        self.bound.binding()
    }

    /// The access token, if it is one.
    pub fn token(&self) -> Option<&Secret> {
        match &self.payload {
            Payload::Token(token) => Some(token),
            Payload::Certificate { .. } | Payload::Values { .. } | Payload::Static(_) => None,
        }
    }

    /// The certificate, if it is one.
    pub fn certificate(&self) -> Option<&Arc<ClientCertificate>> {
        match &self.payload {
            Payload::Certificate { certificate, .. } => Some(certificate),
            Payload::Token(_) | Payload::Values { .. } | Payload::Static(_) => None,
        }
    }

    /// The value of that name of a secret that stays as it is.
    pub fn static_value(&self, field: &str) -> Option<&Secret> {
        let Payload::Static(values) = &self.payload else { return None };
        values.iter().find(|(name, _)| name == field).map(|(_, value)| value)
    }

    /// Whether `next` is the same for longer: a lease that was renewed, a secret that stays as it is, and no other credential.
    pub fn goes_on_as(&self, next: &Self) -> bool {
        let lasts = |one: &Self| matches!(one.payload, Payload::Values { .. } | Payload::Static(_));
        lasts(self) && lasts(next) && self.fingerprint == next.fingerprint
    }

    /// What its issuer is told to end it before its time: the token itself, the certificate (base64url of its DER), or what leased
    /// values hang on; nothing, where there is nobody to tell.
    pub fn handle(&self) -> &Secret {
        match &self.payload {
            Payload::Token(token) => token,
            Payload::Certificate { certificate, .. } => certificate.handle(),
            Payload::Values { handle, .. } => handle,
            Payload::Static(_) => &NOTHING,
        }
    }
}

//! Who is asking. In goes a client assertion (RFC 7523, draft-ietf-oauth-rfc7523bis, FAPI 2.0); out comes a
//! client that has proved itself, or the one rule that was broken. Every rule that the standards ask our agent to
//! keep is enforced here, so that a slip of the agent fails its own tests. No claim is believed before the
//! signature is.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::register::Client;
use crate::{
    dev::once::Spent,
    jose::{Algorithm, JoseError, Unverified},
};

/// The one value of `client_assertion_type` (PKJ-01).
pub(super) const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// How far the client's clock may be off, in seconds.
const SKEW: i64 = 15;

/// The longest `jti` (PKJ-09).
const MAX_JTI: usize = 64;

/// What an assertion is held against.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules<'a> {
    /// The issuer identifier, which `aud` must be.
    pub(super) issuer: &'a str,
    /// The longest `exp - iat`, in seconds.
    pub(super) max_life: i64,
}

/// What a good assertion proves.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Proof {
    /// Who asks.
    pub(super) client_id: String,
    /// The one-time value, still to be burnt.
    pub(super) jti: String,
    /// Until when the one-time value must be remembered, in seconds since the epoch.
    pub(super) until: i64,
}

/// Only for the diary, and to know which rules apply: who the assertion says it is from, and its one-time value. Not
/// believed.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
pub(super) struct Glimpse {
    #[serde(default)]
    pub(super) iss: Option<String>,
    #[serde(default)]
    pub(super) sub: Option<String>,
    #[serde(default)]
    pub(super) jti: Option<String>,
}

impl Glimpse {
    pub(super) fn of(assertion: &str) -> Self {
        Unverified::parse(assertion).and_then(|jws| jws.claims()).unwrap_or_default()
    }
}

#[derive(Deserialize)]
struct Claims {
    iss: String,
    sub: String,
    aud: Value,
    exp: Option<i64>,
    iat: Option<i64>,
    nbf: Option<i64>,
    jti: Option<String>,
}

/// Holds `assertion` against everything but replay, at `now` in seconds since the epoch.
pub(super) fn check(
    assertion: &str,
    clients: &BTreeMap<String, Client>,
    rules: Rules<'_>,
    now: i64,
) -> Result<Proof, AssertionError> {
    let jws = Unverified::parse(assertion).map_err(|_| AssertionError::Form)?;
    let claims: Claims = jws.claims().map_err(|_| AssertionError::Form)?;
    if jws.header_str("typ") != Some("client-authentication+jwt") {
        return Err(AssertionError::Typ);
    }
    let client = clients.get(&claims.sub).ok_or(AssertionError::Client)?;
    let kid = jws.header_str("kid").ok_or(AssertionError::Key)?;
    let (key, algorithm) =
        client.keys.iter().find(|(key, _)| key.thumbprint() == kid).ok_or(AssertionError::Key)?;
    // The key says which algorithm is used, not the token (RFC 8725 3.1).
    jws.verify(key, &[*algorithm]).map_err(|error| match error {
        JoseError::Algorithm => AssertionError::Algorithm { registered: *algorithm },
        JoseError::Header => AssertionError::Header,
        JoseError::Form | JoseError::Key(_) | JoseError::Signature => AssertionError::Signature,
    })?;
    if claims.iss != claims.sub {
        return Err(AssertionError::Issuer);
    }
    // Simple string comparison: no list, no endpoint, no slash more or less (PKJ-03).
    if claims.aud.as_str() != Some(rules.issuer) {
        return Err(AssertionError::Audience);
    }
    let (Some(exp), Some(iat)) = (claims.exp, claims.iat) else { return Err(AssertionError::Life) };
    if !exp.checked_sub(iat).is_some_and(|life| (1..=rules.max_life).contains(&life)) {
        return Err(AssertionError::Life);
    }
    if iat > now + SKEW || claims.nbf.is_some_and(|nbf| nbf > now + SKEW) {
        return Err(AssertionError::Future);
    }
    if exp + SKEW <= now {
        return Err(AssertionError::Expired);
    }
    let jti = claims.jti.filter(|jti| (1..=MAX_JTI).contains(&jti.len())).ok_or(AssertionError::Jti)?;
    Ok(Proof { client_id: claims.sub, jti, until: exp + SKEW })
}

/// The rule an assertion broke.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum AssertionError {
    /// PKJ-10.
    #[error("alg is not the one the key is registered for: sign with {registered}")]
    Algorithm {
        /// What it is registered for.
        registered: Algorithm,
    },
    /// PKJ-03.
    #[error("aud must be the issuer identifier, as one JSON string: no list, no endpoint, no other slash")]
    Audience,
    /// Never registered.
    #[error("the client is not registered: POST /dev/clients registers it")]
    Client,
    /// The assertion's life is over.
    #[error("the assertion has expired: make a new one, and look at the clock")]
    Expired,
    /// Three base64url parts, with the claims of RFC 7523.
    #[error("the assertion is not a compact JWS with iss, sub and aud")]
    Form,
    /// Too many one-time values in flight.
    #[error("too many assertions are remembered: try again in a minute")]
    Full,
    /// PKJ-08.
    #[error("iat or nbf is more than 15 seconds ahead: look at the clock")]
    Future,
    /// PKJ-11.
    #[error("the header must not hold crit, jwk, jku or x5u")]
    Header,
    /// PKJ-02.
    #[error("iss must equal sub")]
    Issuer,
    /// PKJ-09.
    #[error("jti is required, at most 64 characters")]
    Jti,
    /// PKJ-10.
    #[error("kid names no registered key of this client: it is the RFC 7638 thumbprint")]
    Key,
    /// PKJ-07.
    #[error("iat and exp are required, and exp - iat must not pass the limit (60 s by default)")]
    Life,
    /// PKJ-12.
    #[error("jti was used before: make a new assertion for every attempt")]
    Replay,
    /// Not signed by that key.
    #[error("the signature does not verify")]
    Signature,
    /// PKJ-10.
    #[error("typ must be client-authentication+jwt")]
    Typ,
}

impl From<Spent> for AssertionError {
    fn from(spent: Spent) -> Self {
        match spent {
            Spent::Before => Self::Replay,
            Spent::Full => Self::Full,
        }
    }
}

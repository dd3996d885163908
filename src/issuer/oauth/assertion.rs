//! The client assertion (RFC 7523, rfc7523bis): who we are, to one issuer, for one attempt. Made fresh each time; never
//! kept, logged or handed to anybody but that issuer (PKJ-12, PKJ-15).

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use super::OAuthSettings;
use crate::{
    clock::Dice,
    issuer::Order,
    jose::{Header, SignError, b64, sign},
    secret::Secret,
};

/// The `typ` of assertions (PKJ-10).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum AssertionTyp {
    /// `client-authentication+jwt`, as rfc7523bis demands.
    ClientAuthentication,
    /// `JWT`, for issuers that know only that.
    Jwt,
}

impl AssertionTyp {
    fn as_str(self) -> &'static str {
        match self {
            Self::ClientAuthentication => "client-authentication+jwt",
            Self::Jwt => "JWT",
        }
    }
}

#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a str,
    sub: &'a str,
    aud: &'a str,
    jti: &'a str,
    iat: i64,
    exp: i64,
}

/// An issuer whose clock is a little behind ours still takes it (PKJ-08).
const BACKDATED: SignedDuration = SignedDuration::from_secs(5);

/// The assertion for one attempt; `now` is our wall clock corrected to the issuer's.
pub(super) fn assertion(
    settings: &OAuthSettings,
    audience: &str,
    order: &Order,
    now: Timestamp,
    dice: &dyn Dice,
) -> Result<Secret, SignError> {
    let mut jti = [0; 18];
    dice.fill(&mut jti);
    let iat = now.as_second() - BACKDATED.as_secs();
    let life = i64::try_from(settings.assertion_life.as_secs()).unwrap_or(60);
    let claims = Claims {
        iss: &order.client_id,
        sub: &order.client_id,
        aud: audience,
        jti: &b64(&jti),
        iat,
        exp: iat + life,
    };
    sign(&*order.signer, Header { typ: settings.assertion_typ.as_str() }, &claims)
}

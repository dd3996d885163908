//! The tokens. In goes a proven client and what it asks for; out comes an RFC 9068 access token, or the OAuth
//! error that RFC 6749 and RFC 8707 name for it. A token is never wider than the client's registration, unless
//! a fault was set to make it so.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{details, faults::Fault, form::Form, refusal::Refusal, register::Client};
use crate::{
    clock::Dice,
    jose::{self, Algorithm, Header, SignError, Signer, Unverified, b64},
    secret::Secret,
};

/// How many revoked tokens are remembered; beyond that a revocation is put off, never forgotten.
const MAX_REVOKED: usize = 100_000;

/// What `wrong_issuer` signs in the name of.
pub(super) const OTHER_ISSUER: &str = "https://other-issuer.invalid";

/// Whom `wrong_audience` names.
const OTHER_AUDIENCE: &str = "https://other-audience.invalid";

/// Whom a token is about.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Subject {
    /// `sub`.
    pub(super) name: String,
    /// Who acts for them (RFC 8693 4.1).
    pub(super) act: Option<Value>,
}

/// What kind of token is handed out, and what the answer says of it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Issued {
    /// An access token by exchange.
    Exchanged,
    /// By exchange, a JWT that is for somebody else to judge: no access token (RFC 8693 2.2.1, `N_A`).
    Jwt,
    /// An access token, about which nothing more is to be said.
    Plain,
}

impl Issued {
    /// `issued_token_type`, which only an exchange has (OA-23).
    pub(super) fn as_urn(self) -> Option<&'static str> {
        match self {
            Self::Exchanged => Some("urn:ietf:params:oauth:token-type:access_token"),
            Self::Jwt => Some("urn:ietf:params:oauth:token-type:jwt"),
            Self::Plain => None,
        }
    }
}

/// What a client asks for, within what it may.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Wish {
    /// Whom the token is about.
    pub(super) subject: Subject,
    /// What kind of token it is.
    pub(super) issued: Issued,
    /// Sorted, without duplicates.
    pub(super) scope: Vec<String>,
    /// The one resource, if one was named.
    pub(super) resource: Option<String>,
    /// The thumbprint of the key that the token is bound to.
    pub(super) binding: Option<String>,
    /// What it asks for beyond scope (RFC 9396).
    pub(super) details: Option<Value>,
}

impl Wish {
    /// Reads what `form` asks for, about `subject`, and holds it against the registration. An exchange may name its target
    /// as `audience`, too (RFC 8693 2.1).
    pub(super) fn read(
        form: &Form,
        client: &Client,
        subject: Subject,
        issued: Issued,
    ) -> Result<Self, Refusal> {
        let mut resources: Vec<&str> = form.all("resource").collect();
        if issued != Issued::Plain {
            resources.extend(form.one("audience"));
        }
        let resource = resources.first().copied();
        if resources.iter().any(|other| Some(*other) != resource) || form.all("resource").nth(1).is_some() {
            return Err(Refusal::new("invalid_target", "ask for one resource per token"));
        }
        if resource.is_some_and(|asked| !client.resources.iter().any(|known| known == asked)) {
            return Err(Refusal::new("invalid_target", "the resource is not registered for this client"));
        }
        let scope = match form.one("scope") {
            None => client.scope.clone(),
            Some(asked) => {
                let mut words: Vec<String> = asked.split(' ').map(str::to_owned).collect();
                words.sort();
                words.dedup();
                if !words.iter().all(|word| client.scope.contains(word)) {
                    return Err(Refusal::new("invalid_scope", "a scope is not registered for this client"));
                }
                words
            }
        };
        Ok(Self {
            subject,
            issued,
            scope,
            resource: resource.map(str::to_owned),
            binding: None,
            details: details::read(form, client)?,
        })
    }
}

/// The claims of RFC 9068, as far as they are known here.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(super) struct Claims {
    pub(super) iss: String,
    pub(super) sub: String,
    pub(super) aud: String,
    pub(super) client_id: String,
    pub(super) scope: String,
    pub(super) iat: i64,
    pub(super) exp: i64,
    pub(super) jti: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) cnf: Option<Confirmation>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) act: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) authorization_details: Option<Value>,
}

impl Claims {
    /// How the token is used (RFC 9449 5, RFC 6750).
    pub(super) fn token_type(&self) -> &'static str {
        if self.cnf.is_some() { "DPoP" } else { "Bearer" }
    }
}

/// Whose key a token needs (RFC 7800, RFC 9449 6).
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(super) struct Confirmation {
    /// The RFC 7638 thumbprint (DPOP-05).
    pub(super) jkt: String,
}

/// The claims of a token for `client_id`, bent by `fault`.
pub(super) fn claims(
    issuer: &str,
    client_id: &str,
    wish: Wish,
    life: Duration,
    fault: &Fault,
    now: i64,
    dice: &dyn Dice,
) -> Claims {
    let mut jti = [0; 16];
    dice.fill(&mut jti);
    let mut made = Claims {
        iss: issuer.to_owned(),
        sub: wish.subject.name,
        aud: wish.resource.unwrap_or_else(|| issuer.to_owned()),
        client_id: client_id.to_owned(),
        scope: wish.scope.join(" "),
        iat: now,
        exp: now.saturating_add_unsigned(life.as_secs()),
        jti: b64(&jti),
        cnf: wish.binding.map(|jkt| Confirmation { jkt }),
        act: wish.subject.act,
        authorization_details: details::granted(wish.details, fault),
    };
    match fault {
        Fault::LongLife => made.exp = now + 365 * 24 * 3600,
        Fault::ShortLife { life } => made.exp = now.saturating_add_unsigned(life.as_secs()),
        Fault::WiderScope => made.scope = format!("{} admin", made.scope).trim_start().to_owned(),
        Fault::WrongAudience => OTHER_AUDIENCE.clone_into(&mut made.aud),
        Fault::WrongIssuer => OTHER_ISSUER.clone_into(&mut made.iss),
        _ => {}
    }
    made
}

/// Signs `claims` as a token of that kind. What is no access token must not look like one (RFC 9068 2.1).
pub(super) fn sign(key: &dyn Signer, claims: &Claims, issued: Issued) -> Result<Secret, SignError> {
    let typ = if issued == Issued::Jwt { "JWT" } else { "at+jwt" };
    jose::sign(key, Header { typ }, claims)
}

/// The claims of `token` if this issuer signed it and it has not expired. Anything else is unknown, whatever
/// the reason: RFC 7009 and RFC 7662 ask for one answer to all of it.
pub(super) fn recognise(token: &str, key: &dyn Signer, now: i64) -> Option<Claims> {
    let jws = Unverified::parse(token).ok()?;
    jws.verify(key.public(), &[Algorithm::Es256]).ok()?;
    if jws.header_str("typ") != Some("at+jwt") {
        return None;
    }
    jws.claims().ok().filter(|claims: &Claims| claims.exp > now)
}

/// The tokens that died before their time.
#[derive(Debug, Default)]
pub(super) struct Revoked(BTreeMap<String, i64>);

impl Revoked {
    /// Ends the token with `claims`. False if the memory is full, and then it lives on.
    #[must_use]
    pub(super) fn add(&mut self, claims: &Claims, now: i64) -> bool {
        if self.0.len() >= MAX_REVOKED {
            self.0.retain(|_, exp| *exp > now);
        }
        if self.0.len() >= MAX_REVOKED {
            return false;
        }
        self.0.insert(claims.jti.clone(), claims.exp);
        true
    }

    /// Whether the token with this `jti` was revoked.
    pub(super) fn holds(&self, jti: &str) -> bool {
        self.0.contains_key(jti)
    }
}

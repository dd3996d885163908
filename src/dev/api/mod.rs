//! The demo API: a resource server on 127.0.0.1 with one thing to fetch, `GET /orders`. In goes a request; out
//! come orders, or a refusal as RFC 6750 and RFC 9449 write it. It believes only what the development issuer signed for
//! this API, unexpired, wide enough and not revoked; a token that is bound to a key comes with a proof by that key,
//! made for this request. The token is read from the header and nowhere else (BCP-04).

mod denial;
mod token;

use std::{
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use http::{HeaderValue, Method, StatusCode, header};
use serde_json::json;

use self::{
    denial::{Denial, Scheme},
    token::Rules,
};
use crate::{
    clock::Clock,
    dev::{
        DevError,
        http::{Answer, Ask, Door, NOTE, allow, json, refuse},
        issuer::{Handle, is_scope_token},
        possession::Possession,
        proof::{Expected, Proof, ProofError},
    },
    jose::Algorithm,
};

/// What there is to fetch.
const PATH: &str = "/orders";

/// What a proof may be signed with: the `algs` of the challenge.
const ALGORITHMS: [Algorithm; 2] = [Algorithm::Es256, Algorithm::EdDsa];

/// The longest token that is looked at (OA-45).
const MAX_TOKEN: usize = 16 * 1024;

/// How the demo API is set up.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DemoApiSettings {
    /// The port on 127.0.0.1; 0 takes any free one.
    pub port: u16,
    /// What the token's `aud` must name: the resource that clients register and ask for.
    pub audience: String,
    /// The scope that `GET /orders` needs.
    pub scope: String,
    /// Whether a DPoP proof needs a nonce of the API's (RFC 9449 9); it does by default (DPOP-08).
    pub dpop_nonces: bool,
    /// Whether only tokens that are bound to a key are taken; by default, bearer tokens are too.
    pub require_bound: bool,
}

impl Default for DemoApiSettings {
    /// What can be left to us. Audience and scope cannot: an API is nobody's without them.
    fn default() -> Self {
        Self {
            port: 0,
            audience: String::new(),
            scope: String::new(),
            dpop_nonces: true,
            require_bound: false,
        }
    }
}

/// The demo API, bound but not running.
#[derive(Debug)]
pub struct DemoApi {
    door: Door,
    desk: Arc<Desk>,
}

impl DemoApi {
    /// Binds the port. Keys, issuer identifier, revocations and dice come from `issuer`, in memory, so a revoked
    /// token is refused at once.
    ///
    /// # Errors
    /// [`DevError::Setting`] for an empty audience or a scope that is no word, [`DevError::Bind`] from below.
    pub fn bind(settings: DemoApiSettings, issuer: Handle, clock: Arc<dyn Clock>) -> Result<Self, DevError> {
        if settings.audience.is_empty() {
            return Err(DevError::Setting { key: "audience", what: "name the API's own resource URI" });
        }
        if !is_scope_token(&settings.scope) {
            return Err(DevError::Setting {
                key: "scope",
                what: "write one scope word, such as orders.read",
            });
        }
        let door = Door::bind(settings.port)?;
        let possession = Mutex::new(Possession::new(settings.dpop_nonces));
        let desk = Desk { url: door.url(), settings, issuer, clock, possession };
        Ok(Self { door, desk: Arc::new(desk) })
    }

    /// Where it is: `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        self.door.url()
    }

    /// Serves until `shutdown` ends, then a second more for answers under way.
    ///
    /// # Errors
    /// [`DevError::Bind`] if the socket cannot be served.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), DevError> {
        let clock = Arc::clone(&self.desk.clock);
        let desk = self.desk;
        let answer = move |ask: Ask| {
            let answer = desk.answer(&ask);
            async move { answer }
        };
        self.door.serve(clock, answer, shutdown).await
    }
}

#[derive(Debug)]
struct Desk {
    url: String,
    settings: DemoApiSettings,
    issuer: Handle,
    clock: Arc<dyn Clock>,
    possession: Mutex<Possession>,
}

impl Desk {
    fn answer(&self, ask: &Ask) -> Answer {
        if ask.uri().path() != PATH {
            return refuse(StatusCode::NOT_FOUND, "there is GET /orders");
        }
        if ask.method() != Method::GET {
            return allow("GET");
        }
        let (scheme, token) = match presented(ask) {
            Ok(presented) => presented,
            Err(denial) => return denial.answer(Scheme::Bearer, &self.settings),
        };
        let proven = if scheme == Scheme::Dpop { self.prove(ask, token) } else { Ok(None) };
        let mut answer = match self.admit(scheme, token, &proven) {
            Ok(client_id) => json(
                StatusCode::OK,
                &json!({
                    "note": NOTE,
                    "client_id": client_id,
                    "orders": [{"id": 1, "item": "blue kettle"}, {"id": 2, "item": "two cups"}],
                }),
            ),
            Err(denial) => denial.answer(scheme, &self.settings),
        };
        let nonce = self.possession().nonce_for(&proven, self.clock.boot(), self.issuer.dice());
        if let Some(nonce) = nonce {
            // Base64url is visible ASCII.
            let nonce = HeaderValue::from_str(&nonce).expect("a nonce is visible ASCII");
            answer.headers_mut().insert("dpop-nonce", nonce);
        }
        answer
    }

    /// The proof that came with `token`, used up.
    fn prove(&self, ask: &Ask, token: &str) -> Result<Option<Proof>, ProofError> {
        let url = format!("{}{PATH}", self.url);
        let expected = Expected {
            algorithms: &ALGORITHMS,
            method: ask.method().as_str(),
            url: &url,
            token: Some(token),
            now: self.clock.wall().as_second(),
        };
        self.possession().prove(ask.headers(), expected, self.clock.boot(), self.issuer.dice())
    }

    fn admit(
        &self,
        scheme: Scheme,
        token: &str,
        proven: &Result<Option<Proof>, ProofError>,
    ) -> Result<String, Denial> {
        let rules = Rules {
            issuer: self.issuer.url(),
            audience: &self.settings.audience,
            scope: &self.settings.scope,
        };
        let claims = token::check(token, &self.issuer.keys(), rules, self.clock.wall().as_second())?;
        if self.issuer.is_revoked(&claims.jti) {
            return Err(Denial::Revoked);
        }
        match (scheme, claims.cnf) {
            (Scheme::Bearer, Some(_)) => return Err(Denial::Bound),
            (Scheme::Bearer, None) if self.settings.require_bound => return Err(Denial::Unbound),
            (Scheme::Bearer, None) => {}
            (Scheme::Dpop, cnf) => {
                let bound = cnf.and_then(|cnf| cnf.jkt).ok_or(Denial::Unbound)?;
                let proof = proven.as_ref().map_err(|error| Denial::Proof(*error))?;
                let proof = proof.as_ref().ok_or(Denial::Proof(ProofError::Missing))?;
                if proof.jkt != bound {
                    return Err(Denial::OtherKey);
                }
            }
        }
        Ok(claims.client_id)
    }

    /// The memory, held for a moment.
    fn possession(&self) -> MutexGuard<'_, Possession> {
        self.possession.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The token of the one `Authorization` header, and how it was sent.
fn presented(ask: &Ask) -> Result<(Scheme, &str), Denial> {
    let in_query = ask
        .uri()
        .query()
        .is_some_and(|query| query.split('&').any(|pair| pair.split('=').next() == Some("access_token")));
    if in_query {
        return Err(Denial::Query);
    }
    let mut all = ask.headers().get_all(header::AUTHORIZATION).iter();
    let Some(value) = all.next() else { return Err(Denial::Missing) };
    if all.next().is_some() {
        return Err(Denial::Malformed);
    }
    let (scheme, token) =
        value.to_str().ok().and_then(|value| value.split_once(' ')).ok_or(Denial::Malformed)?;
    let scheme = match scheme {
        bearer if bearer.eq_ignore_ascii_case("bearer") => Scheme::Bearer,
        dpop if dpop.eq_ignore_ascii_case("dpop") => Scheme::Dpop,
        _ => return Err(Denial::Missing),
    };
    // RFC 6750 2.1, `b64token`; RFC 9449 7.1, `token68`.
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte);
    if token.is_empty() || token.len() > MAX_TOKEN || !token.bytes().all(known) {
        return Err(Denial::Malformed);
    }
    Ok((scheme, token))
}

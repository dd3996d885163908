//! What stands behind the socket: who is let in, and what each endpoint answers. In goes a whole request; out
//! comes an answer, and a line in the diary. Locks are held for a moment and never while waiting.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use http::{HeaderValue, Method, StatusCode, header};
use serde_json::{Value, json};
use tokio::time::sleep;

use super::{
    DevIssuerSettings,
    assertion::{self, ASSERTION_TYPE, AssertionError, Glimpse, Proof, Rules},
    diary::Diary,
    faults::{Fault, Knob},
    form::Form,
    register::{Client, MAX_CLIENTS, RegisterError},
    token::{self, Claims, OTHER_ISSUER, Revoked, Wish},
};
use crate::{
    clock::{Clock, Dice},
    dev::{
        http::{Answer, Ask, NOTE, allow, json, refuse},
        once::Once,
    },
    jose::Signer,
    keys::Key,
};

/// Where a request goes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Endpoint {
    /// What a resource server asks.
    Introspect,
    /// The keys.
    Jwks,
    /// RFC 8414.
    Metadata,
    /// The end of a token.
    Revoke,
    /// The beginning of a token.
    Token,
}

impl Endpoint {
    fn path(self) -> &'static str {
        match self {
            Self::Introspect => "/introspect",
            Self::Jwks => "/jwks",
            Self::Metadata => "/.well-known/oauth-authorization-server",
            Self::Revoke => "/revoke",
            Self::Token => "/token",
        }
    }

    fn at(path: &str) -> Option<Self> {
        let all = [Self::Introspect, Self::Jwks, Self::Metadata, Self::Revoke, Self::Token];
        all.into_iter().find(|endpoint| endpoint.path() == path)
    }
}

/// An OAuth error (RFC 6749 5.2), and the rule that was broken.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Refusal {
    status: StatusCode,
    error: &'static str,
    why: String,
}

impl Refusal {
    pub(super) fn new(error: &'static str, why: impl fmt::Display) -> Self {
        Self { status: StatusCode::BAD_REQUEST, error, why: why.to_string() }
    }

    pub(super) fn request(why: impl fmt::Display) -> Self {
        Self::new("invalid_request", why)
    }

    fn client(why: impl fmt::Display) -> Self {
        Self { status: StatusCode::UNAUTHORIZED, ..Self::new("invalid_client", why) }
    }

    fn busy(why: impl fmt::Display) -> Self {
        Self { status: StatusCode::SERVICE_UNAVAILABLE, ..Self::new("temporarily_unavailable", why) }
    }

    fn answer(&self) -> Answer {
        let mut answer =
            json(self.status, &json!({"error": self.error, "error_description": self.why, "note": NOTE}));
        if self.status == StatusCode::UNAUTHORIZED {
            // RFC 9110 15.5.2 wants a challenge. There is no header that would meet it: the method is in the name.
            let challenge = HeaderValue::from_static("PrivateKeyJwt realm=\"keybearer development issuer\"");
            answer.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        }
        answer
    }
}

/// Everything the issuer is, behind the socket.
pub(super) struct Desk {
    pub(super) url: String,
    pub(super) key: Key,
    settings: DevIssuerSettings,
    pub(super) clock: Arc<dyn Clock>,
    dice: Arc<dyn Dice>,
    books: Mutex<Books>,
}

/// What changes while it runs.
pub(super) struct Books {
    clients: BTreeMap<String, Client>,
    used: Once,
    pub(super) revoked: Revoked,
    pub(super) knob: Knob,
    pub(super) diary: Diary,
}

impl Desk {
    pub(super) fn new(
        url: String,
        key: Key,
        settings: DevIssuerSettings,
        clock: Arc<dyn Clock>,
        dice: Arc<dyn Dice>,
    ) -> Self {
        let books = Mutex::new(Books {
            clients: BTreeMap::new(),
            used: Once::default(),
            revoked: Revoked::default(),
            knob: Knob::off(),
            diary: Diary::default(),
        });
        Self { url, key, settings, clock, dice, books }
    }

    pub(super) async fn answer(&self, ask: Ask) -> Answer {
        let path = ask.uri().path();
        if path.starts_with("/dev/") {
            return self.develop(&ask);
        }
        let endpoint = Endpoint::at(path);
        let number = self.books().diary.open(self.clock.wall(), endpoint.map_or("other", Endpoint::path));
        let (answer, outcome, detail) = match endpoint {
            None => {
                let answer = refuse(StatusCode::NOT_FOUND, "see /.well-known/oauth-authorization-server");
                (answer, "not_found".into(), None)
            }
            Some(Endpoint::Jwks | Endpoint::Metadata) if ask.method() != Method::GET => {
                (allow("GET"), "invalid_request".into(), None)
            }
            Some(Endpoint::Jwks) => (public(&self.jwks()), "ok".into(), None),
            Some(Endpoint::Metadata) => {
                let fault = self.books().knob.bite(Endpoint::Metadata);
                (public(&self.metadata(&fault)), outcome_of(&fault), None)
            }
            Some(_) if ask.method() != Method::POST => (allow("POST"), "invalid_request".into(), None),
            Some(endpoint) => self.oauth(endpoint, &ask, number).await,
        };
        self.books().diary.close(number, answer.status().as_u16(), outcome, detail);
        answer
    }

    /// The three endpoints that want a client to prove itself.
    async fn oauth(&self, endpoint: Endpoint, ask: &Ask, number: u64) -> (Answer, String, Option<String>) {
        let (proven, fault) = {
            let mut books = self.books();
            let proven = self.authenticate(&mut books, ask, number);
            (proven, books.knob.bite(endpoint))
        };
        // The assertion is used up by now: a client that sends it again after this answer is found out (PKJ-12).
        match &fault {
            Fault::Hang => std::future::pending().await,
            Fault::Slow { delay } => sleep(*delay).await,
            _ => {}
        }
        if let Some(answer) = fault.answer() {
            return (answer, outcome_of(&fault), None);
        }
        let served = proven.and_then(|(form, client)| match endpoint {
            Endpoint::Introspect => self.introspect(&form),
            Endpoint::Revoke => self.revoke(&form, &client),
            _ => self.token(&form, &client, &fault),
        });
        match served {
            Ok(answer) => (answer, outcome_of(&fault), None),
            Err(refusal) => (refusal.answer(), refusal.error.into(), Some(refusal.why)),
        }
    }

    /// The form and the client that sent it, its assertion used up.
    fn authenticate(&self, books: &mut Books, ask: &Ask, number: u64) -> Result<(Form, Client), Refusal> {
        let form = Form::parse(ask.headers(), ask.body()).map_err(Refusal::request)?;
        let assertion = form.one("client_assertion");
        let glimpse = assertion.map(Glimpse::of).unwrap_or_default();
        books.diary.sign(
            number,
            glimpse.sub.or_else(|| form.one("client_id").map(str::to_owned)),
            glimpse.jti,
        );

        // One method, and it is this one (PKJ-13).
        if ask.headers().contains_key(header::AUTHORIZATION) {
            return Err(Refusal::client(
                "no Authorization header: send a client_assertion (private_key_jwt)",
            ));
        }
        if form.one("client_secret").is_some() {
            return Err(Refusal::client("no client_secret: send a client_assertion (private_key_jwt)"));
        }
        let assertion = assertion
            .ok_or_else(|| Refusal::client("client_assertion is missing: only private_key_jwt is known"))?;
        if form.one("client_assertion_type") != Some(ASSERTION_TYPE) {
            return Err(Refusal::client(format!("client_assertion_type must be {ASSERTION_TYPE}")));
        }
        let now = self.now();
        let max_life = i64::try_from(self.settings.assertion_life.as_secs()).unwrap_or(i64::MAX);
        let rules = Rules { issuer: &self.url, max_life };
        let proof: Proof =
            assertion::check(assertion, &books.clients, rules, now).map_err(Refusal::client)?;
        if form.one("client_id").is_some_and(|client_id| client_id != proof.client_id) {
            return Err(Refusal::client("client_id must equal sub, or be left out"));
        }
        let spent = books.used.burn(&proof.client_id, &proof.jti, proof.until, now);
        spent.map_err(|spent| match AssertionError::from(spent) {
            full @ AssertionError::Full => Refusal::busy(full),
            error => Refusal::client(error),
        })?;
        let client = books.clients.get(&proof.client_id).cloned();
        client.map(|client| (form, client)).ok_or_else(|| Refusal::client(AssertionError::Client))
    }

    fn token(&self, form: &Form, client: &Client, fault: &Fault) -> Result<Answer, Refusal> {
        let wish = Wish::read(form, client)?;
        let life = self.settings.token_life;
        let claims = token::claims(&self.url, &client.client_id, wish, life, fault, self.now(), &*self.dice);
        let signed =
            token::sign(&self.key, &claims).map_err(|_| Refusal::busy("the key did not sign: try again"))?;
        self.books().diary.token();
        Ok(json(
            StatusCode::OK,
            &json!({
                "access_token": signed.expose_str(),
                "token_type": "Bearer",
                "expires_in": claims.exp - claims.iat,
                "scope": claims.scope,
            }),
        ))
    }

    /// RFC 7009: 200 for whatever is not a live token; another client's token stays as it is.
    fn revoke(&self, form: &Form, client: &Client) -> Result<Answer, Refusal> {
        let token = form.one("token").ok_or_else(|| Refusal::request("token is missing"))?;
        let now = self.now();
        if let Some(claims) = token::recognise(token, &self.key, now) {
            if claims.client_id != client.client_id {
                return Err(Refusal::new("invalid_grant", "the token was issued to another client"));
            }
            if !self.books().revoked.add(&claims, now) {
                return Err(Refusal::busy("too many revoked tokens are remembered: try again in a minute"));
            }
        }
        Ok(json(StatusCode::OK, &json!({})))
    }

    /// RFC 7662: every registered client may ask, since a resource server is one too.
    fn introspect(&self, form: &Form) -> Result<Answer, Refusal> {
        let token = form.one("token").ok_or_else(|| Refusal::request("token is missing"))?;
        let live = token::recognise(token, &self.key, self.now())
            .filter(|claims: &Claims| !self.books().revoked.holds(&claims.jti));
        let Some(claims) = live else { return Ok(json(StatusCode::OK, &json!({"active": false}))) };
        // Claims are strings and numbers, which always serialize to an object.
        let mut body = serde_json::to_value(&claims).expect("claims serialize");
        body["active"] = json!(true);
        body["token_type"] = json!("Bearer");
        Ok(json(StatusCode::OK, &body))
    }

    fn metadata(&self, fault: &Fault) -> Value {
        let at = |endpoint: Endpoint| format!("{}{}", self.url, endpoint.path());
        let issuer = if *fault == Fault::WrongIssuer { OTHER_ISSUER } else { self.url.as_str() };
        let methods = json!(["private_key_jwt"]);
        let algorithms = json!(["ES256", "EdDSA", "PS256", "RS256"]);
        json!({
            "issuer": issuer,
            "token_endpoint": at(Endpoint::Token),
            "jwks_uri": at(Endpoint::Jwks),
            "revocation_endpoint": at(Endpoint::Revoke),
            "introspection_endpoint": at(Endpoint::Introspect),
            // RFC 8414 2: required even of a server that has no authorization endpoint, and then empty.
            "response_types_supported": [],
            "grant_types_supported": ["client_credentials"],
            "token_endpoint_auth_methods_supported": methods,
            "token_endpoint_auth_signing_alg_values_supported": algorithms,
            "revocation_endpoint_auth_methods_supported": methods,
            "revocation_endpoint_auth_signing_alg_values_supported": algorithms,
            "introspection_endpoint_auth_methods_supported": methods,
            "introspection_endpoint_auth_signing_alg_values_supported": algorithms,
            "keybearer_development": NOTE,
        })
    }

    /// What only a development issuer has. JSON must be named as such: a web page cannot send that here
    /// without asking first, and it would be told no.
    fn develop(&self, ask: &Ask) -> Answer {
        let path = ask.uri().path();
        if path == "/dev/diary" {
            if ask.method() != Method::GET {
                return allow("GET");
            }
            // The diary is strings and numbers, which always serialize.
            let diary = serde_json::to_value(&self.books().diary).expect("the diary serializes");
            return json(StatusCode::OK, &diary);
        }
        if path != "/dev/clients" && path != "/dev/fault" {
            return refuse(StatusCode::NOT_FOUND, "there are /dev/clients, /dev/diary and /dev/fault");
        }
        if ask.method() != Method::POST {
            return allow("POST");
        }
        if ask.headers().get(header::CONTENT_TYPE).is_none_or(|value| value != "application/json") {
            return refuse(StatusCode::UNSUPPORTED_MEDIA_TYPE, "send Content-Type: application/json");
        }
        if path == "/dev/fault" {
            return match Fault::from_json(ask.body()) {
                Ok((fault, times)) => {
                    let set = json!({"fault": fault.as_str(), "times": times, "note": NOTE});
                    self.books().knob.set(fault, times);
                    json(StatusCode::OK, &set)
                }
                Err(error) => refuse(StatusCode::BAD_REQUEST, &error.to_string()),
            };
        }
        match Client::from_json(ask.body()).and_then(|client| self.register(client)) {
            Ok(client_id) => {
                json(StatusCode::CREATED, &json!({"client_id": client_id, "issuer": self.url, "note": NOTE}))
            }
            Err(error) => refuse(StatusCode::BAD_REQUEST, &error.to_string()),
        }
    }

    pub(super) fn register(&self, client: Client) -> Result<String, RegisterError> {
        let client = client.checked()?;
        let mut books = self.books();
        if books.clients.len() >= MAX_CLIENTS && !books.clients.contains_key(&client.client_id) {
            return Err(RegisterError::Full);
        }
        let client_id = client.client_id.clone();
        books.clients.insert(client_id.clone(), client);
        Ok(client_id)
    }

    pub(super) fn jwks(&self) -> Value {
        json!({"keys": [self.key.public().jwk(self.key.algorithm())]})
    }

    fn now(&self) -> i64 {
        self.clock.wall().as_second()
    }

    /// The books, held for a moment and never while waiting.
    pub(super) fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Desk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Desk({})", self.url)
    }
}

fn outcome_of(fault: &Fault) -> String {
    match fault {
        Fault::None => "ok".into(),
        fault => format!("fault:{}", fault.as_str()),
    }
}

/// JSON that may be kept for five minutes: metadata and keys.
fn public(body: &Value) -> Answer {
    let mut answer = json(StatusCode::OK, body);
    let headers = answer.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=300"));
    headers.remove(header::PRAGMA);
    answer
}

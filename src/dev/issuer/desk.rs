//! What stands behind the socket: which endpoint answers, and what the issuer remembers. In goes a whole request; out
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
    authority::{Authority, Certified},
    diary::Diary,
    faults::{Fault, Knob},
    register::{Client, MAX_CLIENTS, RegisterError},
    registration::Rights,
    token::Revoked,
    trust::Trust,
};
use crate::{
    clock::{Clock, Dice},
    dev::{
        http::{Answer, Ask, allow, json, refuse},
        once::Once,
        possession::Possession,
    },
    jose::Signer,
    keys::Key,
};

/// Where a request goes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Endpoint {
    /// The beginning of a certificate.
    Certify,
    /// The end of a certificate.
    Decertify,
    /// What a resource server asks.
    Introspect,
    /// The keys.
    Jwks,
    /// RFC 8414.
    Metadata,
    /// A certificate for another key, by the one that is held.
    Rekey,
    /// Another certificate, by the one that is held.
    Renew,
    /// RFC 7592, with a client behind it.
    Register,
    /// The end of a token.
    Revoke,
    /// The root of the CA, by its sum.
    Root,
    /// The roots of the CA.
    Roots,
    /// The beginning of a token.
    Token,
}

impl Endpoint {
    pub(super) fn path(self) -> &'static str {
        match self {
            Self::Certify => "/1.0/sign",
            Self::Decertify => "/1.0/revoke",
            Self::Introspect => "/introspect",
            Self::Jwks => "/jwks",
            Self::Metadata => "/.well-known/oauth-authorization-server",
            Self::Rekey => "/1.0/rekey",
            Self::Renew => "/1.0/renew",
            Self::Register => "/register",
            Self::Revoke => "/revoke",
            Self::Root => "/root/",
            Self::Roots => "/roots",
            Self::Token => "/token",
        }
    }

    fn at(path: &str) -> Option<Self> {
        let all = [
            Self::Certify,
            Self::Decertify,
            Self::Introspect,
            Self::Jwks,
            Self::Metadata,
            Self::Rekey,
            Self::Renew,
            Self::Revoke,
            Self::Roots,
            Self::Token,
        ];
        let found = all.into_iter().find(|endpoint| endpoint.path() == path);
        let below = |prefix: &str, endpoint| path.starts_with(prefix).then_some(endpoint);
        found.or_else(|| below("/root/", Self::Root)).or_else(|| below("/register/", Self::Register))
    }
}

/// Everything the issuer is, behind the socket.
pub(super) struct Desk {
    pub(super) url: String,
    pub(super) key: Key,
    pub(super) authority: Authority,
    pub(super) settings: DevIssuerSettings,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) dice: Arc<dyn Dice>,
    books: Mutex<Books>,
}

/// What changes while it runs.
pub(super) struct Books {
    pub(super) clients: BTreeMap<String, Client>,
    pub(super) trust: Trust,
    pub(super) used: Once,
    pub(super) possession: Possession,
    pub(super) revoked: Revoked,
    pub(super) certified: Certified,
    pub(super) rights: Rights,
    pub(super) knob: Knob,
    pub(super) diary: Diary,
}

impl Desk {
    pub(super) fn new(
        url: String,
        key: Key,
        authority: Authority,
        settings: DevIssuerSettings,
        clock: Arc<dyn Clock>,
        dice: Arc<dyn Dice>,
    ) -> Self {
        let books = Mutex::new(Books {
            clients: BTreeMap::new(),
            trust: Trust::default(),
            used: Once::default(),
            possession: Possession::new(settings.dpop_nonces),
            revoked: Revoked::default(),
            certified: Certified::default(),
            rights: Rights::default(),
            knob: Knob::off(),
            diary: Diary::default(),
        });
        Self { url, key, authority, settings, clock, dice, books }
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
            Some(Endpoint::Jwks | Endpoint::Metadata | Endpoint::Root | Endpoint::Roots)
                if ask.method() != Method::GET =>
            {
                (allow("GET"), "invalid_request".into(), None)
            }
            Some(Endpoint::Jwks) => (public(&self.jwks()), "ok".into(), None),
            Some(Endpoint::Metadata) => {
                let fault = self.books().knob.bite(Endpoint::Metadata);
                (public(&self.metadata(&fault)), outcome_of(&fault), None)
            }
            Some(Endpoint::Register) if ![Method::GET, Method::PUT].contains(ask.method()) => {
                (allow("GET, PUT"), "invalid_request".into(), None)
            }
            Some(Endpoint::Register) => self.registration(&ask).await,
            Some(endpoint @ (Endpoint::Root | Endpoint::Roots)) => {
                self.authority(endpoint, &ask, number).await
            }
            Some(_) if ask.method() != Method::POST => (allow("POST"), "invalid_request".into(), None),
            Some(endpoint @ (Endpoint::Introspect | Endpoint::Revoke | Endpoint::Token)) => {
                self.oauth(endpoint, &ask, number).await
            }
            Some(endpoint) => self.authority(endpoint, &ask, number).await,
        };
        self.books().diary.close(number, answer.status().as_u16(), outcome, detail);
        answer
    }

    /// The three endpoints that want a client to prove itself.
    async fn oauth(&self, endpoint: Endpoint, ask: &Ask, number: u64) -> (Answer, String, Option<String>) {
        let (asker, proven, fault) = {
            let mut books = self.books();
            let asker = self.authenticate(&mut books, ask, number);
            let mut proven = Ok(None);
            if endpoint == Endpoint::Token {
                books.diary.show(number, ask.headers());
                if asker.is_ok() {
                    proven = self.possession(&mut books, ask);
                }
            }
            (asker, proven, books.knob.bite(endpoint))
        };
        // Assertion and proof are used up by now: a client that sends either again after this answer is found out
        // (PKJ-12, DPOP-12).
        match &fault {
            Fault::Hang => std::future::pending().await,
            Fault::Slow { delay } => sleep(*delay).await,
            _ => {}
        }
        if let Some(mut answer) = fault.answer() {
            self.add_nonces(&mut answer, &proven, &fault);
            return (answer, outcome_of(&fault), None);
        }
        let served = asker.and_then(|(form, client)| match endpoint {
            Endpoint::Introspect => self.introspect(&form),
            Endpoint::Revoke => self.revoke(&form, &client),
            _ => self.token(&form, &client, &proven, &fault),
        });
        let (mut answer, outcome, detail) = match served {
            Ok(answer) => (answer, outcome_of(&fault), None),
            Err(refusal) => (refusal.answer(), refusal.error.into(), Some(refusal.why)),
        };
        self.add_nonces(&mut answer, &proven, &fault);
        (answer, outcome, detail)
    }

    pub(super) fn register(&self, client: Client) -> Result<String, RegisterError> {
        let client = client.checked()?;
        let mut books = self.books();
        if books.clients.len() >= MAX_CLIENTS && !books.clients.contains_key(&client.client_id) {
            return Err(RegisterError::Full);
        }
        let same = |other: &&Client| {
            other.client_id != client.client_id
                && ((client.federated.is_some() && other.federated == client.federated)
                    || (client.spiffe_id.is_some() && other.spiffe_id == client.spiffe_id))
        };
        if let Some(other) = books.clients.values().find(same) {
            return Err(RegisterError::Taken(other.client_id.clone()));
        }
        let client_id = client.client_id.clone();
        books.clients.insert(client_id.clone(), client);
        Ok(client_id)
    }

    pub(super) fn jwks(&self) -> Value {
        json!({"keys": [self.key.public().jwk(self.key.algorithm())]})
    }

    pub(super) fn now(&self) -> i64 {
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

pub(super) fn outcome_of(fault: &Fault) -> String {
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

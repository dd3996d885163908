//! A client's own way to its registration (RFC 7592). In go reads and replacements with the right to them; out come the registration
//! and, with each answer, another right: the one before is good no more. A replacement is whole: what it leaves out is gone.

use std::collections::BTreeMap;

use http::{HeaderValue, Method, StatusCode, header};
use serde_json::{Map, Value, json};
use tokio::time::sleep;

use super::{
    desk::{Desk, Endpoint},
    faults::Fault,
    grants::GRANTS,
    refusal::Refusal,
    register::{Client, RegisterError},
};
use crate::{
    dev::{
        http::{Answer, Ask, json},
        nonce::throw,
    },
    jose::b64,
    secret::Secret,
};

/// What a client may not send back (RFC 7592 2.2).
const OURS: [&str; 4] = [
    "client_id_issued_at",
    "client_secret_expires_at",
    "registration_access_token",
    "registration_client_uri",
];

/// The method that all registered clients have.
const METHOD: &str = "private_key_jwt";

/// How each right begins, so that it is known wherever it should not be.
const RIGHT: &str = "dev-registration-";

/// The right to each registration, by client.
#[derive(Default)]
pub(super) struct Rights(BTreeMap<String, Secret>);

/// The client of a path.
fn place(client_id: &str) -> String {
    format!("{}/{}", Endpoint::Register.path(), b64(client_id.as_bytes()))
}

impl Desk {
    /// Where the registration of a client is, and another right to it. None if there is no such client.
    pub(super) fn right(&self, client_id: &str) -> Option<(String, String)> {
        let mut books = self.books();
        books.clients.get(client_id)?;
        let right = format!("{RIGHT}{}{}", throw(&*self.dice), throw(&*self.dice));
        books.rights.0.insert(client_id.to_owned(), Secret::new(right.as_str()));
        Some((format!("{}{}", self.url, place(client_id)), right))
    }

    pub(super) async fn registration(&self, ask: &Ask) -> (Answer, String, Option<String>) {
        let fault = self.books().knob.bite(Endpoint::Register);
        let registered = self.registered(ask, &fault);
        // What was asked for is done by now, and the right before is good no more.
        if let Fault::Slow { delay } = fault {
            sleep(delay).await;
        }
        match registered {
            Ok((answer, outcome)) => (answer, outcome, None),
            Err(refusal) => {
                let mut answer = refusal.answer();
                if answer.status() == StatusCode::UNAUTHORIZED {
                    let challenge = HeaderValue::from_static("Bearer error=\"invalid_token\"");
                    answer.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
                }
                (answer, refusal.error.into(), Some(refusal.why))
            }
        }
    }

    fn registered(&self, ask: &Ask, fault: &Fault) -> Result<(Answer, String), Refusal> {
        let client_id = self.holder(ask)?;
        if ask.method() == Method::PUT {
            if let Some(answer) = fault.answer() {
                return Ok((answer, format!("fault:{}", fault.as_str())));
            }
            self.replace(&client_id, ask.body())?;
        }
        let client = self.books().clients.get(&client_id).cloned();
        let (client, right) = client.zip(self.right(&client_id)).ok_or_else(unknown)?;
        let mut document = written(&client);
        (document["registration_client_uri"], document["registration_access_token"]) =
            (Value::from(right.0), Value::from(right.1));
        Ok((json(StatusCode::OK, &document), "ok".into()))
    }

    /// The client whose registration this is, if who asks has the right to it.
    fn holder(&self, ask: &Ask) -> Result<String, Refusal> {
        let books = self.books();
        let client_id = books.clients.keys().find(|client_id| place(client_id) == ask.uri().path());
        let client_id = client_id.ok_or_else(unknown)?;
        let shown = ask.headers().get(header::AUTHORIZATION).and_then(|shown| shown.to_str().ok());
        let shown = shown.and_then(|shown| shown.strip_prefix("Bearer ")).unwrap_or_default();
        match books.rights.0.get(client_id) {
            Some(right) if right.expose() == shown.as_bytes() => Ok(client_id.clone()),
            _ => Err(unknown()),
        }
    }

    fn replace(&self, client_id: &str, body: &[u8]) -> Result<(), Refusal> {
        let sent: Map<String, Value> =
            serde_json::from_slice(body).map_err(|_| Refusal::request("send the registration as JSON"))?;
        if let Some(ours) = OURS.iter().find(|name| sent.contains_key(**name)) {
            return Err(Refusal::request(format!("{ours} is the issuer's to say: leave it out")));
        }
        let invalid = |why: &str| Err(Refusal::new("invalid_client_metadata", why));
        if sent.get("client_id").and_then(Value::as_str) != Some(client_id) {
            return invalid("client_id must be that of the registration");
        }
        if sent.get("token_endpoint_auth_method").and_then(Value::as_str) != Some(METHOD) {
            return invalid("token_endpoint_auth_method must be private_key_jwt");
        }
        // As a client registers itself, with the same checks; what is only ever set there stays.
        let kept = ["client_id", "jwks", "scope", "resources", "dpop_bound_access_tokens"];
        let kept: Map<String, Value> =
            sent.into_iter().filter(|(name, _)| kept.contains(&name.as_str())).collect();
        let wrong = |error: RegisterError| Refusal::new("invalid_client_metadata", error);
        let read = Client::from_json(Value::Object(kept).to_string().as_bytes()).map_err(wrong)?;
        let before = self.books().clients.get(client_id).cloned().ok_or_else(unknown)?;
        let after = Client {
            keys: read.keys,
            scope: read.scope,
            resources: read.resources,
            dpop_bound_access_tokens: read.dpop_bound_access_tokens,
            ..before
        };
        self.register(after).map(drop).map_err(wrong)
    }
}

/// RFC 7592 2.1: who has no right to it learns nothing of it.
fn unknown() -> Refusal {
    Refusal { error: "invalid_token", ..Refusal::client("there is no such registration with this token") }
}

/// The registration as it is told.
fn written(client: &Client) -> Value {
    let keys: Vec<Value> = client.keys.iter().map(|(key, algorithm)| key.jwk(*algorithm)).collect();
    json!({
        "client_id": client.client_id,
        "client_id_issued_at": 0,
        "token_endpoint_auth_method": METHOD,
        "grant_types": GRANTS,
        "response_types": [],
        "redirect_uris": [],
        "scope": client.scope.join(" "),
        "resources": client.resources,
        "dpop_bound_access_tokens": client.dpop_bound_access_tokens,
        "jwks": {"keys": keys},
    })
}

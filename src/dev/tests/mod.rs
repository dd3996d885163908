//! Both servers from outside, over a socket: a client that is as good or as bad as a test wants it.

mod api;
mod authority;
mod bound_api;
mod details;
mod faults;
mod grants;
mod holder;
mod issuer;
mod possession;
mod registration;
mod vouched;

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::oneshot,
    task::JoinHandle,
};

pub(in crate::dev) use holder::Holder;

use super::*;
use crate::{
    clock::{Clock as _, ManualClock, SeededDice},
    jose::{self, Algorithm, Header, PublicKey, SignError, Signer, SigningInput},
    keys::Key,
};

const TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
const ORDERS: &str = "https://orders.test";

/// A running issuer, a running API, and the client `shop`.
struct Rig {
    clock: Arc<ManualClock>,
    issuer: Handle,
    api: String,
    key: Key,
    holder: Holder,
    stop: Option<(oneshot::Sender<()>, oneshot::Sender<()>)>,
    tasks: Vec<JoinHandle<Result<(), DevError>>>,
}

impl Rig {
    async fn start() -> Self {
        Self::with(DevIssuerSettings::default())
    }

    fn with(settings: DevIssuerSettings) -> Self {
        Self::with_api(settings, DemoApiSettings::default())
    }

    fn with_api(settings: DevIssuerSettings, api: DemoApiSettings) -> Self {
        let clock = ManualClock::at(Timestamp::from_second(1_800_000_000).unwrap());
        let issuer = DevIssuer::bind(settings, clock.clone(), SeededDice::from_seed(1)).unwrap();
        let handle = issuer.handle();
        let settings = DemoApiSettings { audience: ORDERS.into(), scope: "orders.read".into(), ..api };
        let api = DemoApi::bind(settings, handle.clone(), clock.clone()).unwrap();
        let url = api.url();
        let key = Key::generate(Algorithm::EdDsa).unwrap();
        handle.register(client("shop", &key)).unwrap();
        let (first, second) = (oneshot::channel(), oneshot::channel());
        let tasks = vec![
            tokio::spawn(issuer.run(async { _ = first.1.await })),
            tokio::spawn(api.run(async { _ = second.1.await })),
        ];
        let holder = Holder::from_seed(1);
        Self { clock, issuer: handle, api: url, key, holder, stop: Some((first.0, second.0)), tasks }
    }

    fn now(&self) -> i64 {
        self.clock.wall().as_second()
    }

    /// Good claims, with a `jti` nobody used before.
    fn claims(&self) -> Value {
        let now = self.now();
        json!({
            "iss": "shop", "sub": "shop", "aud": self.issuer.url(), "iat": now - 5, "exp": now + 55,
            "jti": self.jti(),
        })
    }

    /// A one-time value that nobody used before.
    fn jti(&self) -> String {
        crate::clock::uuid_v7(self.clock.wall(), &*crate::clock::SystemDice::shared()).to_string()
    }

    fn assertion(&self) -> String {
        sign(&self.key, "client-authentication+jwt", &self.claims())
    }

    async fn post(&self, path: &str, form: &[(&str, &str)]) -> Reply {
        post(self.issuer.url(), path, form, "").await
    }

    /// A good request for a token for the orders API.
    async fn token(&self) -> Reply {
        self.token_with(&self.assertion(), &[("resource", ORDERS), ("scope", "orders.read")]).await
    }

    async fn token_with(&self, assertion: &str, more: &[(&str, &str)]) -> Reply {
        self.authenticated("/token", assertion, &[&[("grant_type", "client_credentials")], more].concat())
            .await
    }

    /// A good request for a token for the orders API, with `DPoP` headers.
    async fn token_proved(&self, assertion: &str, proofs: &[String]) -> Reply {
        let form = [
            ("client_assertion_type", TYPE),
            ("client_assertion", assertion),
            ("grant_type", "client_credentials"),
            ("resource", ORDERS),
            ("scope", "orders.read"),
        ];
        let headers: String = proofs.iter().map(|proof| format!("DPoP: {proof}\r\n")).collect();
        post(self.issuer.url(), "/token", &form, &headers).await
    }

    async fn authenticated(&self, path: &str, assertion: &str, more: &[(&str, &str)]) -> Reply {
        let mut form = vec![("client_assertion_type", TYPE), ("client_assertion", assertion)];
        form.extend(more);
        self.post(path, &form).await
    }

    async fn orders(&self, token: &str) -> Reply {
        get(&self.api, "/orders", &format!("Authorization: Bearer {token}\r\n")).await
    }

    async fn stop(mut self) {
        drop(self.stop.take());
        for task in self.tasks.drain(..) {
            task.await.unwrap().unwrap();
        }
    }
}

fn client(name: &str, key: &Key) -> Client {
    Client {
        client_id: name.into(),
        keys: vec![(key.public().clone(), key.algorithm())],
        scope: vec!["orders.write".into(), "orders.read".into()],
        resources: vec![ORDERS.into(), "https://stock.test".into()],
        ..Client::default()
    }
}

fn sign(signer: &dyn Signer, typ: &str, claims: &Value) -> String {
    jose::sign(signer, Header { typ }, claims).unwrap().expose_str().unwrap().to_owned()
}

/// Signs with one key and claims another algorithm or another name for it.
#[derive(Debug)]
struct Liar<'a> {
    key: &'a Key,
    algorithm: Algorithm,
    kid: String,
}

impl Signer for Liar<'_> {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    fn public(&self) -> &PublicKey {
        self.key.public()
    }

    fn kid(&self) -> &str {
        &self.kid
    }

    fn sign(&self, input: SigningInput<'_>) -> Result<Vec<u8>, SignError> {
        self.key.sign(input)
    }
}

/// An answer, read to the end of the connection.
#[derive(Debug)]
struct Reply {
    status: u16,
    head: String,
    body: String,
}

impl Reply {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers(name).first().copied()
    }

    fn headers(&self, name: &str) -> Vec<&str> {
        self.head
            .lines()
            .skip(1)
            .filter_map(|line| line.split_once(": "))
            .filter_map(|(other, value)| other.eq_ignore_ascii_case(name).then_some(value))
            .collect()
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("{self:?}"))
    }

    /// The status and the OAuth error.
    fn error(&self) -> (u16, String) {
        (self.status, self.json()["error"].as_str().unwrap_or_default().to_owned())
    }

    fn access_token(&self) -> String {
        assert_eq!(self.status, 200, "{self:?}");
        self.json()["access_token"].as_str().unwrap().to_owned()
    }
}

async fn get(base: &str, path: &str, headers: &str) -> Reply {
    let host = base.strip_prefix("http://").unwrap();
    exchange(base, &format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{headers}\r\n"))
        .await
}

async fn post(base: &str, path: &str, form: &[(&str, &str)], headers: &str) -> Reply {
    let body: Vec<String> = form.iter().map(|(name, value)| format!("{name}={}", encode(value))).collect();
    let headers = format!("Content-Type: application/x-www-form-urlencoded\r\n{headers}");
    send(base, path, &body.join("&"), &headers).await
}

async fn post_json(base: &str, path: &str, body: &Value) -> Reply {
    send(base, path, &body.to_string(), "Content-Type: application/json\r\n").await
}

async fn send(base: &str, path: &str, body: &str, headers: &str) -> Reply {
    let host = base.strip_prefix("http://").unwrap();
    let length = body.len();
    exchange(
        base,
        &format!(
            "POST {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: {length}\r\n\
             {headers}\r\n{body}"
        ),
    )
    .await
}

async fn exchange(base: &str, request: &str) -> Reply {
    let mut stream = TcpStream::connect(base.strip_prefix("http://").unwrap()).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let reply = Reply { status, head: head.to_owned(), body: body.to_owned() };
    assert_eq!(reply.header("keybearer-development"), Some("for development only"), "every answer says so");
    reply
}

fn encode(value: &str) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~".contains(byte);
    value
        .bytes()
        .map(|byte| if plain(&byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

#[tokio::test]
async fn production_is_refused() {
    for name in ["prod", "production", " Prod", "PRODUCTION"] {
        let settings = DevIssuerSettings { environment: name.into(), ..DevIssuerSettings::default() };
        let clock = ManualClock::at(Timestamp::UNIX_EPOCH);
        let refused = DevIssuer::bind(settings, clock, SeededDice::from_seed(1));
        assert_eq!(refused.err(), Some(DevError::Environment { name: name.into() }));
    }
}

#[tokio::test]
async fn a_stop_ends_the_servers_and_frees_the_port() {
    let rig = Rig::start().await;
    let address = rig.issuer.url().strip_prefix("http://").unwrap().to_owned();
    // A client that never says anything does not hold the stop up.
    let silent = TcpStream::connect(&address).await.unwrap();
    assert_eq!(rig.token().await.status, 200);
    tokio::time::timeout(Duration::from_secs(5), rig.stop()).await.unwrap();
    assert!(TcpStream::connect(&address).await.is_err());
    drop(silent);
}

#[tokio::test]
async fn a_taken_port_and_senseless_settings_are_refused() {
    let rig = Rig::start().await;
    let port = rig.issuer.url().rsplit(':').next().unwrap().parse().unwrap();
    let bind = |settings| DevIssuer::bind(settings, rig.clock.clone(), SeededDice::from_seed(1)).err();
    let taken = bind(DevIssuerSettings { port, ..DevIssuerSettings::default() });
    assert_eq!(taken, Some(DevError::Bind { port, kind: std::io::ErrorKind::AddrInUse }));
    let dead = bind(DevIssuerSettings { token_life: Duration::ZERO, ..DevIssuerSettings::default() });
    assert!(matches!(dead, Some(DevError::Setting { key: "token_life", .. })), "{dead:?}");
    let long = bind(DevIssuerSettings { assertion_life: Duration::MAX, ..DevIssuerSettings::default() });
    assert!(matches!(long, Some(DevError::Setting { key: "assertion_life", .. })), "{long:?}");
    let short = bind(DevIssuerSettings { certificate_life: Duration::ZERO, ..DevIssuerSettings::default() });
    assert!(matches!(short, Some(DevError::Setting { key: "certificate_life", .. })), "{short:?}");
    let bind = |audience: &str, scope: &str| {
        let settings =
            DemoApiSettings { audience: audience.into(), scope: scope.into(), ..DemoApiSettings::default() };
        DemoApi::bind(settings, rig.issuer.clone(), rig.clock.clone()).err()
    };
    assert!(matches!(bind("", "a"), Some(DevError::Setting { key: "audience", .. })));
    assert!(matches!(bind("a", "a b"), Some(DevError::Setting { key: "scope", .. })));
}

//! An issuer and an API behind one TLS listener, for calls that an agent makes. It asks for certificates and takes any: the
//! token of each client is bound to the one it showed. The API says what a test put into its script, keeps a diary of what it
//! was sent, and takes a token only over a connection that shows the certificate it is bound to, as RFC 8705 3 has it.
#![allow(dead_code, reason = "each test program uses its part")]

use std::{
    collections::VecDeque,
    fs,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};
use keybearer::{
    audit::{Entry, EventType},
    clock::SystemClock,
};
use ring::digest::{SHA256, digest};
use rustls::ServerConfig;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::Notify,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::support::{RESOURCE, Setup, TestAgent, http, mutual::localhost};

/// What the API does with one request.
pub enum Says {
    /// A whole answer with these headers, each with its line's end. The connection stays open.
    Full(u16, &'static str, String),
    /// Nothing, until the client hangs up.
    Nothing,
    /// It hangs up.
    HangUp,
    /// A piece of an answer; the next when it is notified, and so on; then it hangs up.
    Pieces(Vec<&'static str>, Arc<Notify>),
    /// As much as the client takes.
    Endless(Arc<AtomicUsize>),
}

/// That the token is not good.
pub fn invalid_token() -> Says {
    Says::Full(
        401,
        "www-authenticate: Bearer realm=\"x\", error=\"invalid_token\"\r\n",
        "{\"no\":true}".into(),
    )
}

/// One request to the API.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Its first line.
    pub line: String,
    /// All of its head, in small letters but for the first line.
    pub head: String,
    /// How long its body was, and its first bytes.
    pub body: (usize, String),
    /// Which connection it came over.
    pub connection: usize,
    /// The token.
    pub token: String,
    /// Whether the connection showed the certificate that it is bound to.
    pub is_bound: bool,
}

#[derive(Default)]
struct Book {
    script: Mutex<VecDeque<Says>>,
    diary: Mutex<Vec<Seen>>,
    tokens: Mutex<Vec<String>>,
    connections: AtomicUsize,
    hung_up: AtomicUsize,
}

/// A running one. It ends with the test.
pub struct Vault {
    pub url: String,
    pub root: String,
    pub tls: Arc<ServerConfig>,
    book: Arc<Book>,
}

impl Vault {
    pub async fn open() -> Self {
        Self::asking(true).await
    }

    /// One that asks for certificates, or for none.
    pub async fn asking(for_certificates: bool) -> Self {
        let (tls, root) = localhost(for_certificates);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://localhost:{}", listener.local_addr().unwrap().port());
        let book = Arc::<Book>::default();
        let (acceptor, issuer, kept) = (TlsAcceptor::from(Arc::clone(&tls)), url.clone(), Arc::clone(&book));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(acceptor.clone(), stream, issuer.clone(), Arc::clone(&kept)));
            }
        });
        Self { url, root, tls, book }
    }

    /// Settings of an agent with the credential `vault`, whose API is here; `more` stands in its table.
    pub fn setup(&self, api: &str, more: &str) -> Setup {
        let setup = Setup::new(&self.url);
        let root = setup.dir.path().join("root.pem");
        fs::write(&root, &self.root).unwrap();
        setup.with("dev = true", &format!("ca_file = {root:?}")).and(&format!(
            r#"
[identities.shop.certificate]
san_uri = "spiffe://example.org/shop"

[identities.shop.credentials.vault]
issuer = "dev"
client_id = "shop-mtls"
client_auth = "self_signed_tls_client_auth"
resource = "{RESOURCE}"
scope = ["orders:read"]
binding = "mtls"
origins = ["{api}"]
api_ca_file = {root:?}
{more}
"#
        ))
    }

    /// An agent that calls the API here, and hands out nothing of the credential.
    pub fn agent(&self) -> TestAgent {
        self.setup(&self.url, "forward = \"only\"").start(None)
    }

    /// Adds to the end of the script. Beyond it, requests are answered with 200.
    pub fn will(&self, says: impl IntoIterator<Item = Says>) {
        self.book.script.lock().unwrap().extend(says);
    }

    /// What the API was sent.
    pub fn diary(&self) -> Vec<Seen> {
        self.book.diary.lock().unwrap().clone()
    }

    /// All tokens that were issued.
    pub fn tokens(&self) -> Vec<String> {
        self.book.tokens.lock().unwrap().clone()
    }

    /// Waits until clients hung up so often on a request that has no whole answer.
    pub async fn hung_up(&self, times: usize) {
        let look = async {
            while self.book.hung_up.load(Ordering::SeqCst) < times {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), look).await.expect("nobody hung up");
    }

    /// Waits until the API was sent so many requests.
    pub async fn asked(&self, times: usize) {
        let look = async {
            while self.diary().len() < times {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), look).await.expect("nobody asked");
    }
}

async fn serve(acceptor: TlsAcceptor, stream: TcpStream, issuer: String, book: Arc<Book>) {
    // A client that distrusts us hangs up here.
    let Ok(mut stream) = acceptor.accept(stream).await else { return };
    let connection = book.connections.fetch_add(1, Ordering::SeqCst);
    let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let thumbprint = shown.map(|leaf| BASE64URL.encode(digest(&SHA256, leaf)));
    while let Some((head, body)) = request(&mut stream).await {
        let line = head.lines().next().unwrap_or_default().to_owned();
        let answer = match line.split(' ').nth(1).unwrap_or_default() {
            "/token" => {
                let (answer, token) =
                    token(&issuer, thumbprint.as_deref(), book.tokens.lock().unwrap().len());
                book.tokens.lock().unwrap().push(token);
                Says::Full(200, "content-type: application/json\r\ncache-control: no-store\r\n", answer)
            }
            path if path.starts_with("/.well-known/") => {
                Says::Full(200, "content-type: application/json\r\n", metadata(&issuer))
            }
            _ => {
                note(&book, line, &head, body, connection, thumbprint.as_deref());
                let next = book.script.lock().unwrap().pop_front();
                next.unwrap_or_else(|| {
                    Says::Full(200, "content-type: application/json\r\n", "{\"ok\":true}".into())
                })
            }
        };
        match answer {
            Says::Full(status, headers, body) => {
                let length = if status == 304 || status == 204 { 7 } else { body.len() };
                let text = format!("HTTP/1.1 {status} x\r\n{headers}content-length: {length}\r\n\r\n{body}");
                if stream.write_all(text.as_bytes()).await.is_err() {
                    return;
                }
            }
            Says::HangUp => return,
            Says::Nothing => {
                let _ = stream.read_u8().await;
                book.hung_up.fetch_add(1, Ordering::SeqCst);
                return;
            }
            Says::Pieces(pieces, next) => {
                for (at, piece) in pieces.into_iter().enumerate() {
                    if at > 0 {
                        next.notified().await;
                    }
                    if stream.write_all(piece.as_bytes()).await.is_err() {
                        return;
                    }
                    let _ = stream.flush().await;
                }
                let _ = stream.shutdown().await;
                return;
            }
            Says::Endless(count) => {
                let _ = stream.write_all(b"HTTP/1.1 200 x\r\n\r\n").await;
                while stream.write_all(&[b'x'; 16 << 10]).await.is_ok() {
                    count.fetch_add(16 << 10, Ordering::SeqCst);
                }
                book.hung_up.fetch_add(1, Ordering::SeqCst);
                return;
            }
        }
        let _ = stream.flush().await;
    }
}

fn note(book: &Book, line: String, head: &str, body: Vec<u8>, connection: usize, thumbprint: Option<&str>) {
    let rest = head.split_once("\r\n").map(|(_, rest)| rest).unwrap_or_default();
    let authorization = rest.lines().find_map(|line| {
        line.split_once(": ")
            .filter(|(name, _)| name.eq_ignore_ascii_case("authorization"))
            .map(|(_, value)| value)
    });
    let token = authorization.unwrap_or_default().split(' ').next_back().unwrap_or_default().to_owned();
    let claims = token.split('.').nth(1).and_then(|claims| BASE64URL.decode(claims).ok()).unwrap_or_default();
    let claims: Value = serde_json::from_slice(&claims).unwrap_or_default();
    let is_bound = thumbprint.is_some() && claims["cnf"]["x5t#S256"].as_str() == thumbprint;
    let first = String::from_utf8_lossy(&body[..body.len().min(64)]).into_owned();
    let head = rest.to_lowercase();
    let seen = Seen { line, head, body: (body.len(), first), connection, token, is_bound };
    book.diary.lock().unwrap().push(seen);
}

/// One request, whole; its body may come in chunks.
async fn request(stream: &mut TlsStream<TcpStream>) -> Option<(String, Vec<u8>)> {
    let mut read = vec![];
    while !read.ends_with(b"\r\n\r\n") {
        read.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(read[..read.len() - 4].to_vec()).ok()?;
    let value = |name: &str| {
        let named = |line: &str| line.to_lowercase().strip_prefix(name).map(|value| value.trim().to_owned());
        head.lines().find_map(named)
    };
    let mut body = vec![];
    if value("transfer-encoding:").is_some() {
        loop {
            let mut size = vec![];
            while !size.ends_with(b"\r\n") {
                size.push(stream.read_u8().await.ok()?);
            }
            let size = usize::from_str_radix(std::str::from_utf8(&size).ok()?.trim(), 16).ok()?;
            let mut chunk = vec![0; size + 2];
            stream.read_exact(&mut chunk).await.ok()?;
            if size == 0 {
                break;
            }
            body.extend_from_slice(&chunk[..size]);
        }
    } else if let Some(length) = value("content-length:").and_then(|length| length.parse().ok()) {
        body.resize(length, 0);
        stream.read_exact(&mut body).await.ok()?;
    }
    Some((head, body))
}

fn metadata(issuer: &str) -> String {
    json!({
        "issuer": issuer, "token_endpoint": format!("{issuer}/token"),
        "token_endpoint_auth_methods_supported": ["self_signed_tls_client_auth"],
        "tls_client_certificate_bound_access_tokens": true,
    })
    .to_string()
}

fn token(issuer: &str, thumbprint: Option<&str>, number: usize) -> (String, String) {
    let now = SystemClock::shared().wall().as_second();
    let claims = json!({
        "iss": issuer, "aud": RESOURCE, "iat": now, "exp": now + 300, "scope": "orders:read",
        "jti": format!("canary-{number}"), "cnf": {"x5t#S256": thumbprint},
    });
    let part = |text: &str| BASE64URL.encode(text);
    let token =
        format!("{}.{}.c2lnbmF0dXJl", part(r#"{"alg":"ES256","typ":"at+jwt"}"#), part(&claims.to_string()));
    let answer = json!({"access_token": token, "token_type": "Bearer", "expires_in": 300});
    (answer.to_string(), token)
}

/// The records about calls, in order.
pub fn calls(agent: &TestAgent) -> Vec<Entry> {
    let entries = agent.records().into_iter().map(|record| record.entry);
    entries
        .filter(|entry| matches!(entry.event.kind, EventType::ForwardSend | EventType::ForwardAnswer))
        .collect()
}

/// Waits until there is a record of this reason.
pub async fn on_record(agent: &TestAgent, reason: &str) -> Entry {
    let look = async {
        loop {
            let found = calls(agent).into_iter().find(|entry| entry.event.reason.as_deref() == Some(reason));
            match found {
                Some(entry) => return entry,
                None => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), look)
        .await
        .unwrap_or_else(|_| panic!("no record of {reason}"))
}

/// A request with a body.
pub fn post(socket: &Path, path: &str, body: &str) -> (u16, String) {
    let head = format!("POST {path} HTTP/1.1\r\nhost: x\r\nkeybearer: v1\r\nconnection: close\r\n");
    http(socket, &format!("{head}content-length: {}\r\n\r\n{body}", body.len()))
}

/// Runs what waits for a socket where it holds up nobody.
pub async fn apart<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(call).await.unwrap()
}

//! An issuer that says exactly what a test wants, byte by byte, and counts what it was asked. Its metadata are in order
//! unless the test says otherwise. Where it says `@ASSERTION@` it throws back the assertion that it was sent.
#![allow(dead_code, reason = "each test program uses its part")]

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use keybearer::clock::SystemClock;

/// What it does with a request.
#[derive(Clone, Debug)]
pub enum Says {
    /// These bytes, and hangs up.
    Bytes(Vec<u8>),
    /// One after another, and the last for ever.
    InTurn(Vec<Vec<u8>>),
    /// Nothing, and keeps the connection until the other side ends it.
    Nothing,
}

/// A running one. It ends with the test.
pub struct Scripted {
    pub url: String,
    shared: Arc<Shared>,
}

struct Shared {
    metadata: Mutex<Says>,
    token: Says,
    asked: AtomicUsize,
    waiting: AtomicUsize,
    skew: AtomicI64,
    assertion: Mutex<String>,
}

impl Scripted {
    pub fn start(token: Says) -> Self {
        Self::skewed(token, 0)
    }

    /// One whose `Date` is off by so many seconds.
    pub fn skewed(token: Says, skew: i64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let metadata = Mutex::new(Says::Bytes(json(200, &metadata(&url))));
        let (asked, waiting) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let (skew, assertion) = (AtomicI64::new(skew), Mutex::default());
        let shared = Arc::new(Shared { metadata, token, asked, waiting, skew, assertion });
        let serving = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&serving);
                std::thread::spawn(move || shared.serve(stream));
            }
        });
        Self { url, shared }
    }

    pub fn metadata_is(&self, metadata: Says) {
        *self.shared.metadata.lock().unwrap() = metadata;
    }

    /// From now on its `Date` is off by so many seconds.
    pub fn skewed_by(&self, skew: i64) {
        self.shared.skew.store(skew, Ordering::SeqCst);
    }

    /// How many token requests came.
    pub fn asked(&self) -> usize {
        self.shared.asked.load(Ordering::SeqCst)
    }

    /// The last assertion that came.
    pub fn assertion(&self) -> String {
        self.shared.assertion.lock().unwrap().clone()
    }

    /// How many of them have no answer and are still open.
    pub fn waiting(&self) -> usize {
        self.shared.waiting.load(Ordering::SeqCst)
    }
}

impl Shared {
    fn serve(&self, mut stream: TcpStream) {
        let Some((path, form)) = request(&mut stream) else { return };
        let assertion = form.split('&').find_map(|field| field.strip_prefix("client_assertion="));
        if let Some(assertion) = assertion {
            assertion.clone_into(&mut self.assertion.lock().unwrap());
        }
        let says = if path.starts_with("/.well-known/") {
            self.metadata.lock().unwrap().clone()
        } else {
            let before = self.asked.fetch_add(1, Ordering::SeqCst);
            match &self.token {
                Says::InTurn(all) => Says::Bytes(all[before.min(all.len() - 1)].clone()),
                says => says.clone(),
            }
        };
        match says {
            Says::Bytes(bytes) => {
                let now = SystemClock::shared().wall().as_second() + self.skew.load(Ordering::SeqCst);
                let date = jiff::Timestamp::from_second(now)
                    .unwrap()
                    .strftime("%a, %d %b %Y %H:%M:%S GMT")
                    .to_string();
                let bytes = replaced(&bytes, b"@DATE@", date.as_bytes());
                let bytes = replaced(&bytes, b"@ASSERTION@", assertion.unwrap_or_default().as_bytes());
                // An agent that has had enough hangs up.
                let _ = stream.write_all(&bytes);
                let _ = stream.shutdown(std::net::Shutdown::Write);
                let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
                let _ = stream.read(&mut [0; 64]);
            }
            Says::InTurn(_) => unreachable!("only tokens come in turn"),
            Says::Nothing => {
                self.waiting.fetch_add(1, Ordering::SeqCst);
                let _ = stream.read(&mut [0; 64]);
                self.waiting.fetch_sub(1, Ordering::SeqCst);
            }
        }
    }
}

/// Reads a request whole, and gives its path and its form.
fn request(stream: &mut TcpStream) -> Option<(String, String)> {
    let mut bytes = vec![];
    let mut chunk = [0; 4096];
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| {
                line.to_ascii_lowercase().strip_prefix("content-length:")?.trim().parse::<usize>().ok()
            });
            if body.len() >= length.unwrap_or(0) {
                return head.split(' ').nth(1).map(|path| (path.to_owned(), body.to_owned()));
            }
        }
        match stream.read(&mut chunk) {
            Ok(0) | Err(_) => return None,
            Ok(len) => bytes.extend_from_slice(&chunk[..len]),
        }
    }
}

fn replaced(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    match bytes.windows(from.len()).position(|window| window == from) {
        Some(at) => [&bytes[..at], to, &bytes[at + from.len()..]].concat(),
        None => bytes.to_vec(),
    }
}

/// Metadata as they should be (RFC 8414).
pub fn metadata(url: &str) -> String {
    format!(
        r#"{{"issuer":"{url}","token_endpoint":"{url}/token","token_endpoint_auth_methods_supported":["private_key_jwt"],"grant_types_supported":["client_credentials"]}}"#
    )
}

/// An answer in JSON, with the right length and the issuer's date.
pub fn json(status: u16, body: &str) -> Vec<u8> {
    with(status, "content-type: application/json\r\n", body)
}

/// An answer with these headers, each with its line's end.
pub fn with(status: u16, headers: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("HTTP/1.1 {status} x\r\ndate: @DATE@\r\n{headers}content-length: {length}\r\nconnection: close\r\n\r\n{body}")
        .into_bytes()
}

/// The answer of an honest issuer, with an opaque token.
pub fn token() -> Vec<u8> {
    json(200, r#"{"access_token":"honest-and-opaque","token_type":"Bearer","expires_in":300}"#)
}

//! Somebody who leases values, as OpenBao does, and says exactly what a test wants. In go values; out comes a server that lets anybody
//! log in, leases these values for a few seconds, and renews nothing.
#![allow(dead_code, reason = "each test program uses its part")]

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
};

use serde_json::{Value, json};

/// A running one. It ends with the test.
pub struct Lessor {
    pub url: String,
    values: Arc<Mutex<(u64, BTreeMap<String, String>)>>,
}

impl Lessor {
    /// One who leases these for so many seconds.
    pub fn of(seconds: u64, values: &[(&str, &str)]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let lessor = Self { url, values: Arc::default() };
        lessor.leases(seconds, values);
        let values = Arc::clone(&lessor.values);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let values = Arc::clone(&values);
                std::thread::spawn(move || drop(answer(stream, &values)));
            }
        });
        lessor
    }

    /// What is leased from now on.
    pub fn leases(&self, seconds: u64, values: &[(&str, &str)]) {
        let values = values.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        *self.values.lock().unwrap() = (seconds, values.collect());
    }

    /// The settings of the credential `name` of the identity `shop`.
    pub fn settings(&self, name: &str) -> String {
        format!(
            r#"
[issuers.lessor]
kind = "openbao"
url = "{}"
dev = true

[identities.shop.credentials.{name}]
issuer = "lessor"
client_id = "shop"
lease = {{ at = "database/creds/shop" }}
max_ttl = "5m"
"#,
            self.url
        )
    }
}

fn answer(mut stream: TcpStream, values: &Mutex<(u64, BTreeMap<String, String>)>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let (mut first, mut length) = (String::new(), 0);
    reader.read_line(&mut first)?;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        if let Some(told) = line.to_lowercase().strip_prefix("content-length:") {
            length = told.trim().parse().unwrap();
        }
        if line.trim().is_empty() {
            break;
        }
    }
    reader.read_exact(&mut vec![0; length])?;
    let (status, body) = if first.contains("/login") {
        let auth = json!({"client_token": "s.of-a-test", "accessor": "a", "policies": ["default"], "lease_duration": 300,
            "renewable": true, "token_type": "service", "orphan": true, "mfa_requirement": null, "num_uses": 0});
        (200, json!({"request_id": "r", "lease_id": "", "lease_duration": 0, "data": null, "auth": auth}))
    } else if first.starts_with("GET ") {
        let (seconds, data) = values.lock().unwrap().clone();
        (
            200,
            json!({"lease_id": "database/creds/shop/1", "lease_duration": seconds, "renewable": false, "data": data}),
        )
    } else {
        (204, Value::Null)
    };
    let body = if body.is_null() { String::new() } else { body.to_string() };
    write!(
        stream,
        "HTTP/1.1 {status} x\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )
}

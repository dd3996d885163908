//! Certificates on the real binary: a token that is bound to one, the key that goes out with it only where that is allowed,
//! and what an issuer has to know of it.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::{
    collections::BTreeSet, fs, os::unix::fs::PermissionsExt as _, path::Path, sync::Arc, time::Duration,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};
use keybearer::{audit::EventType, clock::SystemClock, proto::v1::credential::Kind};
use ring::digest::{SHA256, digest};
use rustls::{ClientConfig, RootCertStore, crypto::ring::default_provider};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _};
use serde_json::{Value, json};
use support::{RESOURCE, Setup, TestAgent, body, get, mutual::localhost};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// An issuer and an API behind one TLS listener, which asks for certificates and takes any: the token of each client is bound
/// to the one it showed, and `/whose` says which was shown.
struct Bank {
    url: String,
    root: String,
}

impl Bank {
    async fn open() -> Self {
        let (tls, root) = localhost(true);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://localhost:{}", listener.local_addr().unwrap().port());
        let (acceptor, issuer) = (TlsAcceptor::from(tls), url.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, issuer) = (acceptor.clone(), issuer.clone());
                tokio::spawn(serve(acceptor, stream, issuer));
            }
        });
        Self { url, root }
    }

    /// An agent with one credential whose key goes out and one whose key does not.
    fn agent(&self) -> TestAgent {
        let setup = Setup::new(&self.url);
        let root = setup.dir.path().join("root.pem");
        fs::write(&root, &self.root).unwrap();
        setup
            .with("dev = true", &format!("ca_file = {root:?}"))
            .and(&format!(
                r#"
[identities.shop.certificate]
san_uri = "spiffe://example.org/shop"

[identities.shop.credentials.open]
issuer = "dev"
client_id = "shop-mtls"
client_auth = "self_signed_tls_client_auth"
resource = "{RESOURCE}"
scope = ["orders:read"]
binding = "mtls"
key_export = "allowed"

[identities.shop.credentials.closed]
issuer = "dev"
client_id = "shop-mtls"
client_auth = "self_signed_tls_client_auth"
resource = "{RESOURCE}"
scope = ["orders:write"]
binding = "mtls"
"#
            ))
            .start(None)
    }

    /// Who a program is to the API that shows this chain with this key.
    async fn whose(&self, chain: &str, key: &str) -> String {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.root.as_bytes()).unwrap()).unwrap();
        let chain = CertificateDer::pem_slice_iter(chain.as_bytes()).collect::<Result<_, _>>().unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap())
            .unwrap();
        let stream = TcpStream::connect(self.url.trim_start_matches("https://")).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
        stream.write_all(b"GET /whose HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer).await;
        body(&answer)["thumbprint"].as_str().unwrap().to_owned()
    }
}

async fn serve(acceptor: TlsAcceptor, stream: TcpStream, issuer: String) {
    // A client that distrusts us hangs up here.
    let Ok(mut stream) = acceptor.accept(stream).await else { return };
    let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let thumbprint = shown.map(|leaf| BASE64URL.encode(digest(&SHA256, leaf)));
    let mut read = vec![];
    loop {
        let text = String::from_utf8_lossy(&read).to_lowercase();
        if let Some((head, form)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
            if form.len() >= length.unwrap_or(0) {
                break;
            }
        }
        match stream.read_u8().await {
            Ok(byte) => read.push(byte),
            Err(_) => return,
        }
    }
    let text = String::from_utf8(read).unwrap();
    let answer = match text.split(' ').nth(1).unwrap() {
        "/token" => token(&issuer, &text, thumbprint.as_deref()),
        "/whose" => json!({"thumbprint": thumbprint}),
        _ => json!({
            "issuer": issuer, "token_endpoint": format!("{issuer}/token"),
            "token_endpoint_auth_methods_supported": ["self_signed_tls_client_auth"],
            "tls_client_certificate_bound_access_tokens": true,
        }),
    };
    let (answer, kind) = (answer.to_string(), "content-type: application/json\r\ncache-control: no-store");
    let length = answer.len();
    let whole =
        format!("HTTP/1.1 200 x\r\n{kind}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{answer}");
    let _ = stream.write_all(whole.as_bytes()).await;
    let _ = stream.shutdown().await;
}

fn token(issuer: &str, request: &str, thumbprint: Option<&str>) -> Value {
    assert!(request.contains("client_id=shop-mtls") && !request.contains("client_assertion"), "{request}");
    let now = SystemClock::shared().wall().as_second();
    let scope = if request.contains("scope=orders%3Awrite") { "orders:write" } else { "orders:read" };
    let claims = json!({
        "iss": issuer, "aud": RESOURCE, "iat": now, "exp": now + 300, "scope": scope,
        "cnf": {"x5t#S256": thumbprint},
    });
    let part = |text: &str| BASE64URL.encode(text);
    let token = format!("{}.{}.c2ln", part(r#"{"alg":"ES256","typ":"at+jwt"}"#), part(&claims.to_string()));
    json!({"access_token": token, "token_type": "Bearer", "expires_in": 300})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bound_token_comes_with_its_certificate_and_with_the_key_only_where_that_is_allowed() {
    // MT-07, MT-11
    let bank = Bank::open().await;
    let agent = bank.agent();
    let mut client = agent.client().await;
    let open = client.get("open", &[]).await.unwrap();
    let closed = client.get("closed", &[]).await.unwrap();
    let Some(Kind::AccessToken(token)) = &open.kind else { panic!("not a token") };
    assert_eq!((open.binding.as_str(), token.token_type.as_str()), ("mtls", "Bearer"));
    let shown = open.client_certificate.unwrap();
    let claims: Value =
        serde_json::from_slice(&BASE64URL.decode(token.token.split('.').nth(1).unwrap()).unwrap()).unwrap();
    assert_eq!(claims["cnf"]["x5t#S256"], open.thumbprint);
    // What came is enough to be that client.
    assert_eq!(bank.whose(&shown.chain_pem, &shown.key_pem).await, open.thumbprint);
    // The other is bound to the same certificate, and its key stays here.
    assert_eq!(closed.thumbprint, open.thumbprint);
    let kept = closed.client_certificate.unwrap();
    assert_eq!((kept.chain_pem, kept.key_pem.as_str()), (shown.chain_pem, ""));

    let by_http = |name: &str| body(&get(&agent.socket("http.sock"), &format!("/v1/credentials/{name}")).1);
    assert_eq!(by_http("open")["client_certificate"]["key_pem"], shown.key_pem);
    assert_eq!(by_http("closed")["client_certificate"]["key_pem"], Value::Null);
    let by_command = agent.keybearer(&["get", "open", "--json"]);
    let by_command: Value = serde_json::from_slice(&by_command.stdout).unwrap();
    assert_eq!(by_command["client_certificate"]["key_pem"], shown.key_pem);

    // Each time it went out is on record, and no other time.
    let exported = |name: &str| -> BTreeSet<Option<String>> {
        let records = agent.records_but_of_people().into_iter().filter(|record| {
            record.entry.credential.as_ref().is_some_and(|what| what.name.as_deref() == Some(name))
        });
        records.map(|record| record.entry.event.reason).collect()
    };
    assert_eq!(exported("open"), [Some("KEY_EXPORTED".to_owned())].into());
    assert_eq!(exported("closed"), [None].into());
    let mut records = agent.records_but_of_people().into_iter();
    let record = records.find(|record| record.entry.event.reason.is_some()).unwrap();
    assert_eq!(record.entry.credential.unwrap().thumbprint, Some(open.thumbprint));
    let told = agent.keybearer(&["audit", "explain", &record.seq.to_string()]);
    assert!(String::from_utf8(told.stdout).unwrap().contains("success (KEY_EXPORTED)"));

    let ledger = agent.ledger();
    let dir = Arc::clone(&agent.dir);
    let (code, log) = agent.stop();
    assert_eq!(code, Some(0));
    let secret = shown.key_pem.lines().nth(1).unwrap();
    let state = fs::read_dir(&ledger).unwrap().map(|file| fs::read(file.unwrap().path()).unwrap());
    for text in state.chain([log.into_bytes()]) {
        assert!(!String::from_utf8_lossy(&text).contains(secret), "the key is on record or in the log");
    }
    assert!(
        fs::read_to_string(key_file(dir.path())).unwrap().contains(secret),
        "and it is the key that was looked for"
    );
}

fn key_file(dir: &Path) -> std::path::PathBuf {
    dir.join("state/keys/shop.client-certificate.pem")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_issuer_is_told_all_that_it_has_to_know() {
    // MT-04, MT-05, DPOP-15
    let bank = Bank::open().await;
    let agent = bank.agent();
    let thumbprint = agent.client().await.get("closed", &[]).await.unwrap().thumbprint;
    let told = |arguments: &[&str]| agent.keybearer(arguments);
    let json = |arguments: &[&str]| -> Value {
        let output = told(arguments);
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"))
    };
    let keys = json(&["keys", "export"]);
    let certified: Vec<&Value> =
        keys["keys"].as_array().unwrap().iter().filter(|jwk| jwk.get("x5c").is_some()).collect();
    assert_eq!((certified.len(), &certified[0]["x5t#S256"]), (1, &thumbprint.clone().into()));
    assert!(keys["keys"].as_array().unwrap().iter().all(|jwk| jwk.get("d").is_none()));
    let pem = told(&["keys", "export", "--format", "cert"]).stdout;
    let leaf = CertificateDer::from_pem_slice(&pem).unwrap();
    assert_eq!(BASE64URL.encode(digest(&SHA256, &leaf)), thumbprint);
    let listed = String::from_utf8(told(&["keys", "list"]).stdout).unwrap();
    assert!(listed.contains(&thumbprint), "{listed}");

    let several = told(&["keys", "export", "--registration"]);
    assert_eq!(several.status.code(), Some(64), "it is also the client of a bearer token: {several:?}");
    let narrowed = agent.dir.path().join("agent.toml");
    let text = fs::read_to_string(&narrowed).unwrap();
    let (before, rest) = text.split_once("[identities.shop.credentials.orders]").unwrap();
    let (_, after) = rest.split_once("[identities.shop.certificate]").unwrap();
    fs::write(&narrowed, format!("{before}[identities.shop.certificate]{after}")).unwrap();
    let metadata = json(&["keys", "export", "--registration", "--identity", "shop"]);
    assert_eq!(metadata["token_endpoint_auth_method"], "self_signed_tls_client_auth");
    assert_eq!(metadata["scope"], "orders:read orders:write");
    assert_eq!(
        (&metadata["dpop_bound_access_tokens"], &metadata["client_id"]),
        (&false.into(), &"shop-mtls".into())
    );
    assert_eq!(metadata["tls_client_certificate_bound_access_tokens"], true);
    assert_eq!(metadata["jwks"]["keys"][0]["x5t#S256"], thumbprint);
    let named = |metadata: &Value| {
        let names = metadata.as_object().unwrap().keys();
        names.filter(|name| name.starts_with("tls_client_auth_")).cloned().collect::<Vec<_>>()
    };
    assert!(named(&metadata).is_empty());

    // The same certificate, once a CA vouches for such.
    let text = fs::read_to_string(&narrowed).unwrap();
    let chain = agent.dir.path().join("shop.crt");
    fs::write(&chain, &pem).unwrap();
    let table = format!("certificate = {chain:?}\nkey = {:?}", key_file(agent.dir.path()));
    let text = text
        .replace("san_uri = \"spiffe://example.org/shop\"", &table)
        .replace("self_signed_tls_client_auth", "tls_client_auth");
    fs::write(&narrowed, text).unwrap();
    let metadata = json(&["keys", "export", "--registration"]);
    assert_eq!(named(&metadata), ["tls_client_auth_san_uri"]);
    assert_eq!(metadata["tls_client_auth_san_uri"], "spiffe://example.org/shop");
    assert!(metadata.get("jwks").is_none());
    // As long as there is a key that signs, there is one that is told.
    let text = fs::read_to_string(&narrowed).unwrap();
    let dpop = text
        .replace("binding = \"mtls\"\nkey_export = \"allowed\"", "binding = \"dpop\"")
        .replace("binding = \"mtls\"", "binding = \"dpop\"")
        .replace("client_auth = \"tls_client_auth\"\n", "")
        .replace(&format!("[identities.shop.certificate]\n{table}\n"), "");
    fs::write(&narrowed, dpop).unwrap();
    let metadata = json(&["keys", "export", "--registration"]);
    assert_eq!(metadata["dpop_bound_access_tokens"], true);
    assert_eq!(metadata["tls_client_certificate_bound_access_tokens"], false);
    assert_eq!(
        (&metadata["token_endpoint_auth_method"], &metadata["token_endpoint_auth_signing_alg"]),
        (&"private_key_jwt".into(), &"ES256".into())
    );
    assert_eq!(metadata["jwks"]["keys"][0]["kid"].as_str().unwrap().len(), 43);
}

fn said(agent: &TestAgent, arguments: &[&str]) -> (bool, String) {
    let output = agent.keybearer(arguments);
    let words = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(words).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_has_the_certificate_make_room_and_in_an_emergency_destroyed() {
    // MT-05, KEY-05, KEY-07
    let bank = Bank::open().await;
    let agent = bank.agent();
    let thumbprint =
        async || agent.client().await.get("closed", &[]).await.map(|credential| credential.thumbprint);
    let first = thumbprint().await.unwrap();
    let (_, words) = said(&agent, &["rotate", "shop"]);
    assert!(words.contains("the next certificate") && words.contains("is published"), "{words}");
    let exported = said(&agent, &["keys", "export", "--identity", "shop", "--format", "cert"]).1;
    assert_eq!(exported.matches("BEGIN CERTIFICATE").count(), 2, "what is shown, and what will be");
    // The bank takes any: it is tried, and shown.
    said(&agent, &["rotate", "shop"]);
    let shown = || {
        let records = agent.records().into_iter().filter_map(|record| record.entry.detail);
        records.filter(|detail| detail.contains("is shown from now on")).count()
    };
    let waited = tokio::time::timeout(Duration::from_secs(10), async {
        while shown() == 0 {
            tokio::task::yield_now().await;
        }
    });
    waited.await.expect("it is taken");
    assert!(said(&agent, &["revoke", "shop"]).0);
    let second = thumbprint().await.unwrap();
    assert_ne!(first, second);

    let before = fs::read_to_string(key_file(agent.dir.path())).unwrap();
    let (done, words) = said(&agent, &["revoke", "shop", "--keys"]);
    assert!(done, "{words}");
    for expected in ["register the new certificate", "register the new key", "live credentials of shop"] {
        assert!(words.contains(expected), "{words}");
    }
    let third = thumbprint().await.unwrap();
    assert!(third != first && third != second);
    let keys = fs::read_dir(agent.dir.path().join("state/keys")).unwrap();
    for file in keys.map(|file| file.unwrap().path()) {
        assert_ne!(fs::read_to_string(&file).unwrap(), before, "{file:?}");
        assert!(!file.to_string_lossy().contains("client-certificate.pem."), "{file:?}");
    }
    agent.verify().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_a_ca_that_ends_is_told_in_status_and_check_before_anything_is_ordered() {
    // X5-03
    let bank = Bank::open().await;
    let setup = Setup::new(&bank.url);
    let at = |name: &str| setup.dir.path().join(name);
    let (root, chain, private) = (at("root.pem"), at("shop.crt"), at("shop.key"));
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
    (params.not_before, params.not_after) =
        (rcgen::date_time_ymd(2020, 1, 1), rcgen::date_time_ymd(2021, 1, 1));
    fs::write(&root, &bank.root).unwrap();
    fs::write(&chain, params.self_signed(&key).unwrap().pem()).unwrap();
    fs::write(&private, key.serialize_pem()).unwrap();
    fs::set_permissions(&private, fs::Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(setup.dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let agent = setup
        .with("dev = true", &format!("ca_file = {root:?}"))
        .and(&format!(
            r#"
[identities.shop.certificate]
certificate = {chain:?}
key = {private:?}

[identities.shop.credentials.closed]
issuer = "dev"
client_id = "shop-mtls"
client_auth = "tls_client_auth"
resource = "{RESOURCE}"
binding = "mtls"
"#
        ))
        .start(None);
    let records = agent.records();
    let told = records.iter().find(|record| record.entry.event.kind == EventType::CertificateEnding).unwrap();
    assert_eq!(told.entry.event.reason.as_deref(), Some("CERTIFICATE_ENDED"));
    let config = agent.dir.path().join("agent.toml");
    for command in [&["status"][..], &["check", config.to_str().unwrap()]] {
        let (done, words) = said(&agent, command);
        assert!(done && words.contains("has ended") && words.contains("2021-01-01"), "{words}");
        assert!(words.contains("shop.crt") && words.contains("keybearer reload"), "{words}");
        let notes: Vec<&str> = words.lines().filter(|line| line.starts_with("note ")).collect();
        let told: std::collections::BTreeSet<&&str> = notes.iter().collect();
        assert!(!notes.is_empty() && told.len() == notes.len(), "each note is said once: {words}");
    }
    let (done, words) = said(&agent, &["revoke", "shop", "--keys"]);
    assert!(!done && words.contains("is not the agent's to make") && words.contains("shop.crt"), "{words}");
}

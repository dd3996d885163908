//! ACME against a server out of a script, which answers what a test wrote for it.

use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::hmac;

use super::*;
use crate::{
    clock::ManualClock,
    issuer::{
        script::{Answer, Script, Seen},
        terms::{CertificateTerms, Terms, Wants},
        x509::tests::{order, root, signed},
    },
    jose::{Algorithm, Unverified},
    keys::{Enrolment, Key, KeyKind},
};

/// What the CA gave to begin with: base64url, as CAs print it.
const GIVEN: &str = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W";

struct Stage {
    script: Script,
    acme: Acme,
    key: Arc<dyn Signer>,
    order: Order,
    directory: tempfile::TempDir,
}

fn settings(directory: String, roots: PathBuf) -> AcmeSettings {
    AcmeSettings {
        name: "edge".into(),
        directory,
        ca_file: None,
        roots,
        agree_to_terms: true,
        dev: true,
        timeout: Duration::from_secs(5),
    }
}

fn clock() -> Arc<ManualClock> {
    ManualClock::at(jiff::Timestamp::from_second(1_700_000_000).unwrap())
}

fn signer() -> Arc<dyn Signer> {
    Arc::new(Key::generate(Algorithm::Es256).unwrap())
}

fn subject() -> Subject {
    Subject {
        dns: vec!["Payments.example.org".into()],
        ips: vec!["192.0.2.7".parse().unwrap()],
        ..Subject::default()
    }
}

impl Stage {
    /// An account that is there already, or one that is begun with a key in a file.
    async fn new(begins: bool) -> Self {
        let (script, directory) = (Script::plain().await, tempfile::tempdir().unwrap());
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let path = directory.path().join("once");
        fs::write(&path, GIVEN).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let client_auth = if begins { ClientAuth::Bootstrap(path) } else { ClientAuth::PrivateKeyJwt };
        let order = order(CertificateTerms { subject: subject(), ..CertificateTerms::default() });
        let order = Order {
            client_id: "kid-1".into(),
            terms: Arc::new(Terms { client_auth, ..Terms::clone(&order.terms) }),
            ..order
        };
        let stage = Self { acme: fresh(&script), script, key: signer(), order, directory };
        assert!(stage.secret().exists());
        stage
    }

    fn secret(&self) -> PathBuf {
        self.directory.path().join("once")
    }

    fn signers(&self) -> Signers {
        Signers { client: Some(Arc::clone(&self.key)), before: None, dpop: None, certificates: vec![] }
    }

    async fn sign(&self, request: &Enrolment) -> Result<Signed, IssueError> {
        self.sign_with(request, &self.signers()).await
    }

    async fn sign_with(&self, request: &Enrolment, signers: &Signers) -> Result<Signed, IssueError> {
        let Wants::Certificate(terms) = &self.order.terms.wants else { panic!("a certificate") };
        let ask = Ask { order: &self.order, terms, signers, request, held: None };
        self.acme.sign(ask, &mut IssueFacts::default()).await
    }

    fn will(&self, answers: impl IntoIterator<Item = Answer>) {
        self.script.will(answers);
    }

    /// An answer at a place of its own.
    fn at(&self, status: u16, place: &str, body: Value) -> Answer {
        say(status, body).with("location", &format!("{}/{place}", self.script.url))
    }

    fn placed(&self, status: &str) -> Answer {
        let at = |name: &str| format!("{}/{name}", self.script.url);
        let mut body = json!({
            "status": status, "identifiers": [], "authorizations": [at("authz/1")], "finalize": at("order/1/finalize"),
        });
        if status == "valid" {
            body["certificate"] = json!(at("certificate/1"));
        }
        self.at(200, "order/1", body)
    }

    /// Directory, nonce and account.
    fn known(&self) -> [Answer; 3] {
        [directory(&self.script.url), nonce(), self.at(200, "account/1", json!({"status": "valid"}))]
    }

    fn lines(&self) -> Vec<String> {
        let lines = self.script.diary().into_iter().map(|seen| seen.line);
        lines.map(|line| line.trim_end_matches(" HTTP/1.1").to_owned()).collect()
    }
}

fn fresh(script: &Script) -> Acme {
    Acme::new(settings(format!("{}/directory", script.url), "/nowhere".into()), clock()).unwrap()
}

fn directory(url: &str) -> Answer {
    let at = |name: &str| format!("{url}/{name}");
    Answer::json(
        200,
        json!({
            "newNonce": at("new-nonce"), "newAccount": at("new-account"), "newOrder": at("new-order"),
            "revokeCert": at("revoke"), "keyChange": at("key-change"),
            "meta": {"termsOfService": "https://elsewhere.example/terms", "profiles": {"short": "an hour"}},
        }),
    )
}

fn nonce() -> Answer {
    Answer::Full { status: 200, headers: vec![("replay-nonce", "nonce-0".into())], body: String::new() }
}

fn say(status: u16, body: Value) -> Answer {
    Answer::json(status, body).with("replay-nonce", &format!("nonce-{status}"))
}

fn problem(status: u16, kind: &str) -> Answer {
    let body = json!({"type": format!("urn:ietf:params:acme:error:{kind}"), "detail": "it said why", "instance": "https://e.example/terms"});
    say(status, body).with("content-type", "application/problem+json")
}

fn chain(all: &[&CertificateDer<'_>]) -> Answer {
    let body = all.iter().map(|one| crate::keys::certificate_pem(one)).collect();
    let headers = vec![
        ("content-type", "application/pem-certificate-chain".to_owned()),
        ("replay-nonce", "nonce-9".to_owned()),
    ];
    Answer::Full { status: 200, headers, body }
}

/// The protected header and the payload of a flattened JWS, whose signature is this key's.
fn opened(seen: &Seen, key: &dyn Signer) -> (Value, Value) {
    read(&serde_json::from_str(&seen.body).unwrap(), key)
}

fn read(jws: &Value, key: &dyn Signer) -> (Value, Value) {
    assert_eq!(jws.as_object().unwrap().len(), 3, "{jws}");
    let part = |name: &str| jws[name].as_str().unwrap();
    let text = format!("{}.{}.{}", part("protected"), part("payload"), part("signature"));
    let read = Unverified::parse(&text).unwrap();
    if read.header.contains_key("jwk") {
        assert_eq!(&read.verify_possession(&[Algorithm::Es256]).unwrap(), key.public());
    } else {
        read.verify(key.public(), &[Algorithm::Es256]).unwrap();
    }
    let payload = if read.payload.is_empty() { Value::Null } else { read.claims().unwrap() };
    (Value::Object(read.header.clone()), payload)
}

fn request() -> Enrolment {
    Enrolment::begin(&subject(), KeyKind::P256).unwrap()
}

#[tokio::test]
async fn an_order_for_exactly_these_names_becomes_a_chain() {
    // ACM-01, ACM-03
    let stage = Stage::new(false).await;
    let (ca, top) = root("top");
    let request = request();
    let leaf = signed(&ca, &request);
    stage.will(stage.known());
    stage.will([
        stage.placed("pending").with("retry-after", "1"),
        stage.placed("pending"),
        say(200, json!({"status": "valid", "identifier": {"type": "dns", "value": "payments.example.org"}})),
        stage.placed("ready"),
        stage.placed("processing"),
        stage.placed("valid"),
        chain(&[&leaf, &top]),
    ]);
    let Signed::Chain(got) = stage.sign(&request).await.unwrap() else { panic!("a chain") };
    assert_eq!(got, [leaf]);
    assert_eq!(
        stage.lines(),
        [
            "GET /directory",
            "HEAD /new-nonce",
            "POST /new-account",
            "POST /new-order",
            "POST /order/1",
            "POST /authz/1",
            "POST /order/1",
            "POST /order/1/finalize",
            "POST /order/1",
            "POST /certificate/1",
        ]
    );
    let url = &stage.script.url;
    let account = format!("{url}/account/1");
    let mut nonces = vec![];
    for (at, seen) in stage.script.posts().iter().enumerate() {
        assert!(seen.head.contains("content-type: application/jose+json"), "{}", seen.head);
        let (mut header, payload) = opened(seen, &*stage.key);
        nonces.push(header["nonce"].take());
        let path = seen.line.split(' ').nth(1).unwrap();
        let mut wanted = json!({"alg": "ES256", "nonce": null, "url": format!("{url}{path}")});
        match at {
            0 => wanted["jwk"] = header["jwk"].clone(),
            _ => wanted["kid"] = json!(account),
        }
        assert_eq!(header, wanted);
        let wanted = match path {
            "/new-account" => json!({"onlyReturnExisting": true}),
            "/new-order" => json!({"identifiers": [
                {"type": "dns", "value": "payments.example.org"}, {"type": "ip", "value": "192.0.2.7"},
            ]}),
            "/order/1/finalize" => json!({"csr": jose::b64(request.csr())}),
            // POST-as-GET.
            _ => Value::Null,
        };
        assert_eq!(payload, wanted, "{path}");
    }
    assert_eq!(
        nonces[..3],
        [json!("nonce-0"), json!("nonce-200"), json!("nonce-200")],
        "the one of the answer before"
    );
    // The next one needs no account looked up.
    stage.will([directory(url), nonce(), stage.placed("valid"), stage.placed("valid"), chain(&[&top])]);
    assert_eq!(stage.sign(&request).await.unwrap_err().reason().as_str(), "CERT_REJECTED_KEY");
    assert_eq!(stage.lines()[12], "POST /new-order");
}

#[tokio::test]
async fn a_nonce_that_is_not_taken_is_replaced() {
    // ACM-01: three of them.
    let stage = Stage::new(false).await;
    let (ca, _) = root("top");
    let request = request();
    let leaf = signed(&ca, &request);
    let bad = |name: &str| problem(400, "badNonce").with("replay-nonce", name);
    stage.will([directory(&stage.script.url), nonce(), bad("one"), bad("two"), bad("three")]);
    stage.will([stage.at(200, "account/1", json!({}))]);
    stage.will([stage.placed("valid"), stage.placed("valid"), chain(&[&leaf])]);
    stage.sign(&request).await.unwrap();
    let used: Vec<Value> = stage
        .script
        .posts()
        .iter()
        .take(4)
        .map(|seen| opened(seen, &*stage.key).0["nonce"].clone())
        .collect();
    assert_eq!(used, [json!("nonce-0"), json!("one"), json!("two"), json!("three")]);
    // One that takes none is not asked for ever.
    stage.will([directory(&stage.script.url), nonce()]);
    stage.will((0..NONCES_SENT).map(|_| bad("again")));
    let error = stage.sign(&request).await.unwrap_err();
    assert!(matches!(&error, IssueError::Retry { reason: Reason::IssuerProtocol, .. }), "{error}");
    // What would end a header is no nonce.
    stage.will([directory(&stage.script.url), nonce().with("replay-nonce", "a b")]);
    assert_eq!(stage.sign(&request).await.unwrap_err().reason(), Reason::IssuerProtocol);
}

const NONCES_SENT: usize = 5;

#[tokio::test]
async fn an_account_is_begun_once_and_what_began_it_is_destroyed() {
    // ACM-02
    let stage = Stage::new(true).await;
    let request = request();
    stage.will(stage.known());
    stage.will([problem(500, "serverInternal")]);
    stage.sign(&request).await.unwrap_err();
    assert!(!stage.secret().exists(), "the account is there, whatever comes of the order");
    let url = &stage.script.url;
    let (_, payload) = opened(&stage.script.posts()[0], &*stage.key);
    assert_eq!(payload["termsOfServiceAgreed"], json!(true));
    let bound = &payload["externalAccountBinding"];
    let part = |name: &str| bound[name].as_str().unwrap();
    let decoded = |name: &str| URL_SAFE_NO_PAD.decode(part(name)).unwrap();
    let header: Value = serde_json::from_slice(&decoded("protected")).unwrap();
    assert_eq!(header, json!({"alg": "HS256", "kid": "kid-1", "url": format!("{url}/new-account")}));
    let jwk: Value = serde_json::from_slice(&decoded("payload")).unwrap();
    assert_eq!(&jose::PublicKey::from_jwk(&jwk).unwrap(), stage.key.public());
    let key = hmac::Key::new(hmac::HMAC_SHA256, &URL_SAFE_NO_PAD.decode(GIVEN).unwrap());
    let over = format!("{}.{}", part("protected"), part("payload"));
    hmac::verify(&key, over.as_bytes(), &decoded("signature")).unwrap();
    // After a restart the account is found by its key alone; and where it is not, nothing can begin it any more.
    let again = Stage { acme: fresh(&stage.script), ..stage };
    again.will(again.known());
    again.will([problem(500, "serverInternal")]);
    again.sign(&request).await.unwrap_err();
    assert_eq!(opened(&again.script.posts()[2], &*again.key).1, json!({"onlyReturnExisting": true}));
    let lost = Stage { acme: fresh(&again.script), ..again };
    lost.will([directory(&lost.script.url), nonce(), problem(400, "accountDoesNotExist")]);
    let error = lost.sign(&request).await.unwrap_err();
    assert!(matches!(error, IssueError::Misconfigured { .. }), "{error}");
    assert!(error.to_string().contains("put the file there"), "{error}");
}

#[tokio::test]
async fn what_begins_an_account_is_kept_until_it_has() {
    // ACM-02
    let stage = Stage::new(true).await;
    for answer in [problem(403, "unauthorized"), problem(503, "serverInternal"), Answer::HangUp] {
        stage.will([directory(&stage.script.url), nonce(), answer]);
        stage.sign(&request()).await.unwrap_err();
        assert!(stage.secret().exists());
    }
    fs::write(stage.secret(), "this/is+no*key").unwrap();
    stage.will([directory(&stage.script.url)]);
    let error = stage.sign(&request()).await.unwrap_err();
    assert!(
        error.to_string().contains("no key in base64url") && !error.to_string().contains("no*key"),
        "{error}"
    );
}

#[tokio::test]
async fn no_account_is_begun_with_terms_that_nobody_has_agreed_to() {
    // ACM-02
    let stage = Stage::new(true).await;
    let unread = AcmeSettings { agree_to_terms: false, ..stage.acme.settings.clone() };
    let stage = Stage { acme: Acme::new(unread, clock()).unwrap(), ..stage };
    stage.will([directory(&stage.script.url)]);
    let error = stage.sign(&request()).await.unwrap_err();
    assert!(matches!(error, IssueError::Misconfigured { .. }), "{error}");
    let (told, terms) = (error.to_string(), "https://elsewhere.example/terms");
    assert!(told.contains("agree_to_terms = true") && told.contains(terms), "{told}");
    assert_eq!(stage.lines(), ["GET /directory"], "neither the key nor its MAC is sent");
    assert!(stage.secret().exists());
}

#[tokio::test]
async fn a_key_that_was_rotated_takes_over_the_account() {
    // KEY-06, RFC 8555 7.3.5
    let stage = Stage::new(false).await;
    let (old, new) = (signer(), Arc::clone(&stage.key));
    let signers = Signers { before: Some(Arc::clone(&old)), ..stage.signers() };
    stage.will([directory(&stage.script.url), nonce(), problem(400, "accountDoesNotExist")]);
    stage.will([stage.at(200, "account/1", json!({})), say(200, json!({})), problem(500, "serverInternal")]);
    stage.sign_with(&request(), &signers).await.unwrap_err();
    let posts = stage.script.posts();
    let account = format!("{}/account/1", stage.script.url);
    let (header, inner) = opened(&posts[2], &*old);
    assert_eq!((&header["kid"], posts[2].line.as_str()), (&json!(account), "POST /key-change HTTP/1.1"));
    let (header, payload) = read(&inner, &*new);
    assert_eq!(header["url"], json!(format!("{}/key-change", stage.script.url)));
    assert!(header.get("nonce").is_none() && header.get("jwk").is_some());
    assert_eq!(payload["account"], json!(account));
    assert_eq!(&jose::PublicKey::from_jwk(&payload["oldKey"]).unwrap(), old.public());
    let (header, _) = opened(&posts[3], &*new);
    assert_eq!((&header["kid"], posts[3].line.as_str()), (&json!(account), "POST /new-order HTTP/1.1"));
}

#[tokio::test]
async fn no_challenge_is_ever_answered() {
    // ACM-06
    for status in ["pending", "invalid", "expired", "deactivated"] {
        let stage = Stage::new(false).await;
        stage.will(stage.known());
        let authorization = json!({
            "status": status, "identifier": {"type": "dns", "value": "payments.example.org"},
            "challenges": [{"type": "http-01", "url": format!("{}/challenge/1", stage.script.url), "token": "t"}],
        });
        stage.will([stage.placed("pending"), stage.placed("pending"), say(200, authorization)]);
        let error = stage.sign(&request()).await.unwrap_err();
        assert!(matches!(error, IssueError::Misconfigured { .. }), "{error}");
        let told = error.to_string();
        assert!(told.contains("payments.example.org") && told.contains("answers none"), "{told}");
        assert!(!stage.lines().iter().any(|line| line.contains("challenge")));
    }
}

#[tokio::test]
async fn an_order_that_takes_its_time_is_found_again() {
    // ACM-03: it polls no sooner than it is told to.
    let stage = Stage::new(false).await;
    let (ca, _) = root("top");
    let wanted = request();
    let leaf = signed(&ca, &wanted);
    stage.will(stage.known());
    stage.will([
        stage.placed("ready"),
        stage.placed("ready"),
        stage.placed("processing").with("retry-after", "40"),
    ]);
    let later = stage.sign(&wanted).await.unwrap();
    assert!(matches!(later, Signed::Later(after) if after.as_secs() == 40), "{later:?}");
    // Out of reach for a while, and there again: no second order.
    stage.will([directory(&stage.script.url), nonce(), say(503, json!({}))]);
    assert_eq!(stage.sign(&wanted).await.unwrap_err().reason(), Reason::IssuerUnavailable);
    stage.will([directory(&stage.script.url), nonce(), stage.placed("valid"), chain(&[&leaf])]);
    let Signed::Chain(got) = stage.sign(&wanted).await.unwrap() else { panic!("a chain") };
    assert_eq!(got, [leaf]);
    let orders = |stage: &Stage| stage.lines().iter().filter(|line| line.ends_with("/new-order")).count();
    assert_eq!(orders(&stage), 1);
    // Another request is another order.
    stage.will([directory(&stage.script.url), nonce(), stage.placed("processing").with("retry-after", "40")]);
    stage.will([stage.placed("processing").with("retry-after", "40")]);
    stage.sign(&wanted).await.unwrap();
    stage.will([directory(&stage.script.url), nonce(), problem(500, "serverInternal")]);
    stage.sign(&request()).await.unwrap_err();
    assert_eq!(orders(&stage), 3);
}

#[tokio::test]
async fn what_a_server_says_is_sorted_by_what_to_do_next() {
    // ACM-03
    let stage = Stage::new(false).await;
    stage.will(stage.known());
    stage.will([problem(500, "serverInternal")]);
    stage.sign(&request()).await.unwrap_err();
    for (status, kind, reason, next) in [
        (429, "rateLimited", "ISSUER_RATE_LIMIT", "retry after 7"),
        (403, "userActionRequired", "ISSUER_CONFIG", "misconfigured"),
        (400, "badCSR", "GRANT_REJECTED", "refused"),
        (403, "unauthorized", "CLIENT_AUTH_REJECTED", "refused"),
        (403, "externalAccountRequired", "ISSUER_CONFIG", "misconfigured"),
        (400, "badPublicKey", "ISSUER_CONFIG", "misconfigured"),
        (400, "rejectedIdentifier", "GRANT_REJECTED", "refused"),
        (400, "malformed", "AGENT_BUG_REQUEST", "refused"),
        (500, "serverInternal", "ISSUER_UNAVAILABLE", "retry after 7"),
        (503, "somethingNew", "ISSUER_UNAVAILABLE", "retry after 7"),
        (404, "", "ISSUER_CONFIG", "misconfigured"),
    ] {
        let known = lock(&stage.acme.accounts).is_empty().then(|| stage.at(200, "account/1", json!({})));
        stage.will([directory(&stage.script.url), nonce()]);
        stage.will(known);
        stage.will([problem(status, kind).with("retry-after", "7")]);
        let error = stage.sign(&request()).await.unwrap_err();
        let is = match &error {
            IssueError::Retry { after, .. } => format!("retry after {}", after.unwrap().as_secs()),
            IssueError::Later { .. } => "later".into(),
            IssueError::Refused { .. } => "refused".into(),
            IssueError::Misconfigured { .. } => "misconfigured".into(),
        };
        assert_eq!((error.reason().as_str(), is.as_str()), (reason, next), "{kind}");
    }
    // An order that failed has the same words in it.
    let failed = json!({"status": "invalid", "finalize": "", "error": {"type": "urn:ietf:params:acme:error:badCSR", "detail": "no"}});
    stage.will(stage.known());
    stage.will([stage.placed("pending"), say(200, failed)]);
    assert_eq!(stage.sign(&request()).await.unwrap_err().reason(), Reason::GrantRejected);
}

#[tokio::test]
async fn an_order_that_failed_is_not_asked_after_for_ever() {
    // ACM-03: the CA works at it, and gives up for reasons that pass. The next attempt needs an order of its own.
    let stage = Stage::new(false).await;
    let wanted = request();
    stage.will(stage.known());
    stage.will([stage.placed("ready"), stage.placed("processing").with("retry-after", "40")]);
    assert!(matches!(stage.sign(&wanted).await, Ok(Signed::Later(_))));
    for (kind, reason) in [("rateLimited", "ISSUER_RATE_LIMIT"), ("serverInternal", "ISSUER_UNAVAILABLE")] {
        let error = json!({"type": format!("urn:ietf:params:acme:error:{kind}"), "detail": "later"});
        let failed = say(200, json!({"status": "invalid", "error": error}));
        stage.will([directory(&stage.script.url), nonce(), failed]);
        let error = stage.sign(&wanted).await.unwrap_err();
        assert!(matches!(error, IssueError::Retry { .. }) && error.reason().as_str() == reason, "{error}");
        assert!(lock(&stage.acme.under_way).0.is_empty());
        stage.will([directory(&stage.script.url), nonce(), stage.placed("ready")]);
        stage.will([stage.placed("processing").with("retry-after", "40")]);
        assert!(matches!(stage.sign(&wanted).await, Ok(Signed::Later(_))));
    }
    assert_eq!(stage.lines().iter().filter(|line| line.ends_with("/new-order")).count(), 3);
}

#[tokio::test]
async fn an_account_that_is_gone_is_looked_up_again() {
    // ACM-01: a CA that was set up anew knows the key under another URL, or not at all.
    let stage = Stage::new(false).await;
    stage.will(stage.known());
    stage.will([problem(400, "accountDoesNotExist")]);
    stage.sign(&request()).await.unwrap_err();
    stage.will([directory(&stage.script.url), nonce(), stage.at(200, "account/2", json!({}))]);
    stage.will([problem(500, "serverInternal")]);
    stage.sign(&request()).await.unwrap_err();
    let (header, _) = opened(stage.script.posts().last().unwrap(), &*stage.key);
    assert_eq!(header["kid"], json!(format!("{}/account/2", stage.script.url)));
    // A revocation learns of it as well, and is not told no for ever.
    stage.will([directory(&stage.script.url), nonce(), problem(400, "accountDoesNotExist")]);
    stage.acme.revoke(&stage.order, &stage.signers(), b"certificate").await.unwrap_err();
    stage.will([directory(&stage.script.url), nonce(), stage.at(200, "account/3", json!({}))]);
    stage.will([say(200, json!({}))]);
    stage.acme.revoke(&stage.order, &stage.signers(), b"certificate").await.unwrap();
}

#[tokio::test]
async fn an_order_without_end_keeps_nobody_busy() {
    // ACM-06: a hostile server lists as many authorizations as fit.
    let stage = Stage::new(false).await;
    stage.will(stage.known());
    let all = vec![format!("{}/authz/1", stage.script.url); AUTHORIZATIONS + 1];
    let order = say(200, json!({"status": "pending", "authorizations": all, "finalize": ""}));
    stage.will([stage.placed("pending"), order]);
    let error = stage.sign(&request()).await.unwrap_err();
    assert!(matches!(error, IssueError::Misconfigured { .. }), "{error}");
    assert!(!stage.lines().iter().any(|line| line.contains("authz")));
}

#[tokio::test]
async fn nothing_is_signed_for_another_host() {
    // ACM-01, OA-04
    let stage = Stage::new(false).await;
    let elsewhere = directory("https://elsewhere.example");
    stage.will([elsewhere]);
    assert_eq!(stage.sign(&request()).await.unwrap_err().reason(), Reason::EndpointForeign);
    let account = say(200, json!({})).with("location", "https://elsewhere.example/account/1");
    stage.will([directory(&stage.script.url), nonce(), account]);
    assert_eq!(stage.sign(&request()).await.unwrap_err().reason(), Reason::EndpointForeign);
    let place =
        |certificate: &str| say(200, json!({"status": "valid", "finalize": "", "certificate": certificate}));
    for url in ["https://elsewhere.example/1", "/certificate/1", "http://127.0.0.1:1/certificate", ""] {
        stage.will(stage.known());
        stage.will([stage.placed("pending"), place(url)]);
        assert_eq!(stage.sign(&request()).await.unwrap_err().reason(), Reason::EndpointForeign, "{url}");
        lock(&stage.acme.accounts).clear();
    }
}

#[tokio::test]
async fn a_certificate_is_revoked_by_the_account_that_has_it() {
    // X5-07, ACM-01
    let stage = Stage::new(false).await;
    stage.will(stage.known());
    stage.will([say(200, json!({}))]);
    stage.acme.revoke(&stage.order, &stage.signers(), b"certificate").await.unwrap();
    let posts = stage.script.posts();
    assert_eq!(posts[1].line, "POST /revoke HTTP/1.1");
    assert_eq!(opened(&posts[1], &*stage.key).1, json!({"certificate": jose::b64(b"certificate")}));
    stage.will([directory(&stage.script.url), nonce(), problem(400, "alreadyRevoked")]);
    stage.acme.revoke(&stage.order, &stage.signers(), b"certificate").await.unwrap();
    stage.will([directory(&stage.script.url), nonce(), problem(503, "serverInternal")]);
    let error = stage.acme.revoke(&stage.order, &stage.signers(), b"certificate").await.unwrap_err();
    assert!(matches!(error, IssueError::Retry { .. }), "it is tried again");
}

#[tokio::test]
async fn a_profile_is_one_that_the_server_has() {
    // ACM-03
    let stage = Stage::new(false).await;
    let of = |at: &str| {
        let Wants::Certificate(terms) = stage.order.terms.wants.clone() else { panic!("a certificate") };
        let wants = Wants::Certificate(CertificateTerms { at: Some(at.into()), ..terms });
        Order { terms: Arc::new(Terms { wants, ..Terms::clone(&stage.order.terms) }), ..stage.order.clone() }
    };
    for (at, sent) in [("short", true), ("long", false)] {
        let order = of(at);
        let Wants::Certificate(terms) = &order.terms.wants else { panic!("a certificate") };
        stage.will(stage.known());
        stage.will(sent.then(|| problem(400, "badCSR")));
        let (signers, wanted) = (stage.signers(), request());
        let ask = Ask { order: &order, terms, signers: &signers, request: &wanted, held: None };
        let error = stage.acme.sign(ask, &mut IssueFacts::default()).await.unwrap_err();
        if sent {
            assert_eq!(opened(&stage.script.posts()[1], &*stage.key).1["profile"], json!("short"));
        } else {
            assert!(error.to_string().contains("it has short"), "{error}");
        }
        lock(&stage.acme.accounts).clear();
    }
}

#[test]
fn settings_that_cannot_work_are_told_with_their_key() {
    // ACM-01
    let good = || settings("https://ca.example/directory".into(), "/roots.pem".into());
    assert_eq!(problems(&good()), []);
    for (wrong, key) in [
        (AcmeSettings { directory: "http://ca.example/directory".into(), ..good() }, "directory"),
        (AcmeSettings { directory: "http://127.0.0.1/d".into(), dev: false, ..good() }, "directory"),
        (AcmeSettings { directory: "https://a@ca.example/d".into(), ..good() }, "directory"),
        (AcmeSettings { directory: "/directory".into(), ..good() }, "directory"),
        (AcmeSettings { timeout: Duration::from_secs(61), ..good() }, "timeout"),
    ] {
        let found = problems(&wrong);
        assert_eq!(found.iter().map(|(key, _)| *key).collect::<Vec<_>>(), [key], "{wrong:?}");
    }
}

/// A directory that advises.
fn advising(url: &str) -> Answer {
    let at = |name: &str| format!("{url}/{name}");
    Answer::json(
        200,
        json!({
            "newNonce": at("new-nonce"), "newAccount": at("new-account"), "newOrder": at("new-order"),
            "renewalInfo": at("renewal-info"),
        }),
    )
}

#[tokio::test]
async fn a_server_is_asked_when_it_would_have_a_certificate_renewed() {
    // ACM-04
    let stage = Stage::new(false).await;
    let (ca, _) = root("top");
    let leaf = signed(&ca, &request());
    let id = renewal::id(&leaf).unwrap();
    let (key_id, serial) = id.split_once('.').unwrap();
    assert!(
        URL_SAFE_NO_PAD.decode(key_id).unwrap().len() >= 20
            && !URL_SAFE_NO_PAD.decode(serial).unwrap().is_empty()
    );
    let info = |start: &str, end: &str| json!({"suggestedWindow": {"start": start, "end": end}, "explanationURL": "https://e.example/why"});
    let (start, end) = ("2023-11-15T00:00:00Z", "2023-11-16T00:00:00+00:00");
    let hours = |hours: u64| Duration::from_secs(hours * 3600);
    let moment = |text: &str| text.parse::<jiff::Timestamp>().unwrap();
    let window = Some((moment(start), moment(end)));
    for (answer, window, again) in [
        (Answer::json(200, info(start, end)).with("retry-after", "7200"), window, hours(2)),
        (Answer::json(200, info(start, end)).with("retry-after", "1"), window, Duration::from_secs(60)),
        (Answer::json(200, info(start, end)).with("retry-after", "999999"), window, hours(24)),
        (Answer::json(200, info(start, end)), window, hours(6)),
        // A window that is none, and what is no answer: asked again later.
        (Answer::json(200, info(end, start)).with("retry-after", "60"), None, hours(6)),
        (Answer::json(200, info(start, start)), None, hours(6)),
        (Answer::json(200, json!({"suggestedWindow": {}})), None, hours(6)),
        (Answer::json(200, info("soon", "later")), None, hours(6)),
        (Answer::json(503, json!({})).with("retry-after", "60"), None, hours(6)),
        (Answer::HangUp, None, hours(6)),
    ] {
        stage.will(
            [advising(&stage.script.url)].into_iter().filter(|_| lock(&stage.acme.renewal_info).is_none()),
        );
        stage.will([answer]);
        assert_eq!(stage.acme.advice(&leaf).await, Some(Advice { window, again }));
    }
    let asked: Vec<String> = stage.lines();
    assert_eq!(asked[..2], ["GET /directory".to_owned(), format!("GET /renewal-info/{id}")]);
    assert!(stage.script.posts().is_empty(), "nothing of it is signed");
    // Out of reach when the agent starts: it is asked again, it may advise all the same.
    *lock(&stage.acme.renewal_info) = None;
    stage.will([Answer::HangUp]);
    assert_eq!(stage.acme.advice(&leaf).await, Some(Advice { window: None, again: hours(6) }));
    // One that does not advise is not asked.
    let quiet = Stage::new(false).await;
    quiet.will([directory(&quiet.script.url)]);
    assert_eq!(quiet.acme.advice(&leaf).await, None);
    assert_eq!(quiet.lines(), ["GET /directory"]);
}

#[test]
fn a_certificate_has_the_name_that_the_standard_gives_it() {
    // ACM-04: the example of RFC 9773 4.1.
    let request = request();
    let key = rcgen::KeyPair::generate().unwrap();
    let mut ca = rcgen::CertificateParams::default();
    ca.key_identifier_method = rcgen::KeyIdMethod::PreSpecified(vec![
        0x69, 0x88, 0x5b, 0x6b, 0x87, 0x46, 0x40, 0x41, 0xe1, 0xb3, 0x7b, 0x84, 0x7b, 0xa0, 0xae, 0x2c, 0xde,
        0x01, 0xc8, 0xd4,
    ]);
    let mut read = rcgen::CertificateSigningRequestParams::from_der(&request.csr().into()).unwrap();
    read.params.serial_number = Some(vec![0x87, 0x65, 0x43, 0x21].into());
    read.params.use_authority_key_identifier_extension = true;
    let signed = read.signed_by(&rcgen::Issuer::new(ca, key)).unwrap();
    assert_eq!(renewal::id(signed.der()).as_deref(), Some("aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE"));
    // One that does not say who signed it has none, and what is none has none.
    let own = rcgen::generate_simple_self_signed(vec!["a.example".into()]).unwrap();
    assert_eq!(renewal::id(own.cert.der()), None);
    assert_eq!(renewal::id(b"certificate"), None);
}

#[tokio::test]
async fn an_order_says_what_it_replaces_where_the_server_knows_the_word() {
    // ACM-04
    let (ca, top) = root("top");
    let request = request();
    let leaf = signed(&ca, &request);
    let held = Arc::new(request.finish(vec![leaf.clone()], false, None).unwrap());
    for (advises, already) in [(true, false), (true, true), (false, false)] {
        let stage = Stage::new(false).await;
        let [plain, nonce, account] = stage.known();
        stage.will([if advises { advising(&stage.script.url) } else { plain }, nonce, account]);
        stage.will(already.then(|| problem(409, "alreadyReplaced")));
        stage.will([stage.placed("valid"), stage.placed("valid"), chain(&[&leaf, &top])]);
        let Wants::Certificate(terms) = &stage.order.terms.wants else { panic!("a certificate") };
        let signers = stage.signers();
        let ask = Ask { order: &stage.order, terms, signers: &signers, request: &request, held: Some(&held) };
        stage.acme.sign(ask, &mut IssueFacts::default()).await.unwrap();
        let orders = stage.script.posts().into_iter().filter(|seen| seen.line.contains("/new-order"));
        let said: Vec<Value> = orders.map(|seen| opened(&seen, &*stage.key).1["replaces"].take()).collect();
        let id = json!(renewal::id(&leaf).unwrap());
        let wanted = match (advises, already) {
            (true, false) => vec![id],
            (true, true) => vec![id, Value::Null],
            _ => vec![Value::Null],
        };
        assert_eq!(said, wanted);
    }
}

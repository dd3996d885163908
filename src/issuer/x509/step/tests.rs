//! The engine against a step-ca out of a script: what it is sent, letter by letter, and what each of its answers leads to.

use std::{os::unix::fs::PermissionsExt as _, path::PathBuf, time::Duration};

use http::{HeaderMap, HeaderValue, header};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer as Ca, KeyPair, KeyUsagePurpose, date_time_ymd,
};
use ring::digest::{SHA256, digest};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use serde_json::Value;

use super::*;
use crate::{
    clock::{ManualClock, SeededDice},
    credential::{Binding, Bound, Credential, Form, Payload, Window},
    issuer::{
        Issued,
        http::MAX_BODY,
        script::{Answer, Asks, Script, Seen},
        terms::{CertificateTerms, ClientAuth, Terms, Wants},
    },
    jose::{Algorithm, Signer, Unverified, b64},
    keys::{Key, PairFile, Subject, Vault},
    secret::Secret,
};

const NOW: i64 = 1_700_000_000;
const URI: &str = "spiffe://example.org/payments";
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Who signs, and the chain above the leaf.
struct Signs {
    ca: Ca<'static, KeyPair>,
    chain: Vec<String>,
}

fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.not_after = date_time_ymd(2040, 1, 1);
    params
}

impl Signs {
    /// A root and one below it; the root in PEM.
    fn new() -> (Self, String) {
        let (root_key, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let (root, below) = (authority("root"), authority("below"));
        let root_pem = root.self_signed(&root_key).unwrap().pem();
        let below_pem = below.signed_by(&key, &Ca::from_params(&root, &root_key)).unwrap().pem();
        (Self { ca: Ca::new(below, key), chain: vec![below_pem] }, root_pem)
    }

    fn leaf(&self, csr: &str, until: i64) -> String {
        let mut request = CertificateSigningRequestParams::from_pem(csr).unwrap();
        let at = |seconds: i64| date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds.try_into().unwrap());
        (request.params.not_before, request.params.not_after) = (at(NOW - 60), at(until));
        request.params.is_ca = IsCa::ExplicitNoCa;
        request.signed_by(&self.ca).unwrap().pem()
    }

    /// As a step-ca answers to a request for a certificate.
    fn answer(self: &Arc<Self>) -> Answer {
        let signs = Arc::clone(self);
        Answer::Made(Box::new(move |seen: &Seen| {
            let body: Value = serde_json::from_str(&seen.body).unwrap();
            let leaf = signs.leaf(body["csr"].as_str().unwrap(), NOW + 86_000);
            let chain = json!([leaf, signs.chain[0]]);
            Answer::json(
                201,
                json!({"crt": leaf, "ca": signs.chain[0], "certChain": chain, "tlsOptions": {"minVersion": 1.2}}),
            )
        }))
    }
}

struct Stage {
    script: Script,
    signs: Arc<Signs>,
    settings: StepSettings,
    clock: Arc<ManualClock>,
    directory: tempfile::TempDir,
    key: Arc<Key>,
    issuer: Arc<dyn Issuer>,
}

impl Stage {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        let (script, ca_file) = Script::asking(&directory, &["localhost"], Some(Asks::anybody())).await;
        let (signs, root) = Signs::new();
        let roots = directory.path().join("root.pem");
        std::fs::write(&roots, root).unwrap();
        let settings = StepSettings {
            name: "mesh".into(),
            url: script.url.clone(),
            roots: RootSource::File(roots),
            ca_file: Some(ca_file),
            kept_root: None,
            dev: false,
            timeout: Duration::from_secs(10),
        };
        let clock = ManualClock::at(Timestamp::from_second(NOW).unwrap());
        let key = Arc::new(Key::generate(Algorithm::Es256).unwrap());
        let issuer = made(&settings, &clock);
        Self { script, signs: Arc::new(signs), settings, clock, directory, key, issuer }
    }

    fn signers(&self) -> Signers {
        Signers { client: Some(Arc::clone(&self.key) as _), before: None, dpop: None, certificates: vec![] }
    }

    async fn issue(&self, order: &Order, signers: &Signers, held: Option<&Credential>) -> Issued {
        self.issuer.issue(order, signers, held).await
    }

    async fn first(&self) -> Credential {
        self.script.will([self.signs.answer()]);
        self.issue(&order(), &self.signers(), None).await.result.unwrap()
    }

    fn root_sum(&self) -> String {
        let RootSource::File(path) = &self.settings.roots else { panic!("a file") };
        sum_of(path)
    }
}

fn made(settings: &StepSettings, clock: &Arc<ManualClock>) -> Arc<dyn Issuer> {
    issuer(settings.clone(), Vault::default(), Arc::clone(clock) as _, SeededDice::from_seed(7)).unwrap()
}

fn sum_of(path: &PathBuf) -> String {
    hex(digest(&SHA256, &CertificateDer::from_pem_file(path).unwrap()).as_ref())
}

fn order_by(client_auth: ClientAuth, change: impl FnOnce(&mut CertificateTerms)) -> Order {
    let mut certificate = CertificateTerms {
        subject: Subject { uris: vec![URI.into()], ..Subject::default() },
        ..CertificateTerms::default()
    };
    change(&mut certificate);
    Order {
        identity: "payments".into(),
        credential: "tls".into(),
        issuer: "mesh".into(),
        client_id: "payments prod".into(),
        resource: None,
        scope: Arc::from([]),
        require_aud: false,
        max_ttl: DAY,
        binding: Binding::Mtls,
        terms: Arc::new(Terms { wants: Wants::Certificate(certificate), client_auth, ..Terms::default() }),
        max_uses: None,
        instance: None,
    }
}

fn order() -> Order {
    order_by(ClientAuth::PrivateKeyJwt, |_| {})
}

fn body(seen: &Seen) -> Value {
    serde_json::from_str(&seen.body).unwrap()
}

/// The header and the claims of a token, whose signature by `key` is right.
fn told(ott: &Value, key: &dyn Signer) -> (Value, Value) {
    let token = Unverified::parse(ott.as_str().unwrap()).unwrap();
    token.verify(key.public(), &[key.algorithm()]).unwrap();
    (Value::Object(token.header.clone()), token.claims().unwrap())
}

fn line(seen: &Seen) -> String {
    seen.line.trim_end_matches(" HTTP/1.1").to_owned()
}

fn no(status: u16) -> Answer {
    let message = "The request lacked necessary authorization to be completed. Please see the certificate authority logs for more info.";
    Answer::json(status, json!({"status": status, "message": message}))
}

#[tokio::test]
async fn a_certificate_is_asked_for_with_a_token_for_this_one_request() {
    // CA-01
    let stage = Stage::new().await;
    let credential = stage.first().await;
    assert_eq!(credential.certificate().unwrap().chain().len(), 2, "with the intermediate");
    let seen = stage.script.diary().remove(0);
    assert_eq!((line(&seen), seen.certificate.is_some()), ("POST /1.0/sign".into(), false));
    let mut sent = body(&seen);
    let (ott, csr) = (sent["ott"].take(), sent["csr"].take());
    assert_eq!(sent, json!({"csr": null, "ott": null, "notAfter": "86400s"}));
    let (header, mut claims) = told(&ott, &*stage.key);
    assert_eq!(header, json!({"alg": "ES256", "kid": stage.key.kid(), "typ": "JWT"}));
    let jti = claims["jti"].take();
    assert_eq!(jti.as_str().unwrap().len(), 22);
    let csr = pem_of(csr.as_str().unwrap());
    assert_eq!(
        claims,
        json!({
            "iss": "payments prod", "sub": URI, "sans": [URI], "aud": format!("{}/1.0/sign", stage.script.url),
            "iat": NOW, "nbf": NOW, "exp": NOW + 60, "jti": null, "sha": stage.root_sum(),
            "cnf": {"x5rt#S256": b64(digest(&SHA256, &csr).as_ref())},
        })
    );
    // All its names, each in its place; and never the same token twice (PKJ-09).
    let order = order_by(ClientAuth::PrivateKeyJwt, |terms| {
        terms.subject.dns = vec!["payments.example.org".into()];
        terms.subject.ips = vec!["192.0.2.7".parse().unwrap(), "2001:db8::7".parse().unwrap()];
        terms.subject.common_name = Some("payments".into());
    });
    stage.script.will([stage.signs.answer()]);
    stage.issue(&order, &stage.signers(), None).await.result.unwrap();
    let (_, again) = told(&body(&stage.script.diary()[1])["ott"], &*stage.key);
    assert_eq!(again["sans"], json!([URI, "payments.example.org", "192.0.2.7", "2001:db8::7"]));
    assert_eq!(again["sub"], "payments");
    assert_ne!(again["jti"], jti);
}

fn pem_of(csr: &str) -> Vec<u8> {
    assert!(csr.starts_with("-----BEGIN CERTIFICATE REQUEST-----"));
    rustls_pki_types::CertificateSigningRequestDer::from_pem_slice(csr.as_bytes()).unwrap().to_vec()
}

/// A certificate of this identity, from some CA, good until `until`.
fn shown(stage: &Stage, until: i64) -> Arc<ClientCertificate> {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec![]).unwrap();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.not_after = date_time_ymd(1970, 1, 1) + Duration::from_secs(until.try_into().unwrap());
    let leaf = params.signed_by(&key, &stage.signs.ca).unwrap();
    let path = stage.directory.path().join(format!("shown-{until}.pem"));
    std::fs::write(&path, format!("{}{}{}", key.serialize_pem(), leaf.pem(), stage.signs.chain[0])).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    Arc::new(PairFile::new(&path, &Vault::default(), "payments", "tls").read(false).unwrap().unwrap())
}

#[tokio::test]
async fn an_x5c_provisioner_is_shown_the_chain() {
    // CA-01
    let stage = Stage::new().await;
    let order = order_by(ClientAuth::TlsClientAuth, |_| {});
    let certificate = shown(&stage, NOW + 3600);
    let signers =
        Signers { client: None, before: None, dpop: None, certificates: vec![Arc::clone(&certificate)] };
    stage.script.will([stage.signs.answer()]);
    stage.issue(&order, &signers, None).await.result.unwrap();
    let seen = stage.script.diary().remove(0);
    assert!(seen.certificate.is_none(), "the token carries it, not TLS");
    let sent = body(&seen);
    // It may not outlive what vouches for it.
    assert_eq!(sent["notAfter"], "2023-11-14T23:13:20Z");
    let (header, claims) = told(&sent["ott"], &*certificate.signer().unwrap());
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let x5c: Vec<String> = certificate.chain().iter().map(|one| STANDARD.encode(one)).collect();
    assert_eq!(header, json!({"alg": "ES256", "typ": "JWT", "x5c": x5c}));
    assert_eq!(claims["aud"], format!("{}/1.0/sign#x5c/payments%20prod", stage.script.url));
    // One that lives long enough is no limit; none at all is told.
    let signers = Signers { certificates: vec![shown(&stage, NOW + 900_000)], ..signers };
    stage.script.will([stage.signs.answer()]);
    stage.issue(&order, &signers, None).await.result.unwrap();
    assert_eq!(body(&stage.script.diary()[1])["notAfter"], "86400s");
    let none = Signers { certificates: vec![], ..signers };
    let error = stage.issue(&order, &none, None).await.result.unwrap_err();
    assert!(
        matches!(&error, IssueError::Misconfigured { reason: Reason::ClientAuthRejected, .. }),
        "{error}"
    );
    assert_eq!(stage.script.diary().len(), 2);
}

#[tokio::test]
async fn what_is_held_is_shown_to_renew_it() {
    // CA-02, X5-05
    let stage = Stage::new().await;
    let first = stage.first().await;
    stage.script.will([stage.signs.answer()]);
    let second = stage.issue(&order(), &stage.signers(), Some(&first)).await.result.unwrap();
    let kid = |credential: &Credential| credential.certificate().unwrap().kid().to_owned();
    assert_ne!(kid(&first), kid(&second));
    let seen = stage.script.diary().remove(1);
    assert_eq!(line(&seen), "POST /1.0/rekey");
    assert_eq!(seen.certificate.as_ref(), first.certificate().unwrap().chain().first());
    assert_eq!(
        body(&seen).as_object().unwrap().keys().collect::<Vec<_>>(),
        ["csr"],
        "no token, nothing else"
    );
    // MT-08: nothing that was opened to show it keeps its key.
    let shown = Arc::downgrade(first.certificate().unwrap());
    drop(first);
    assert!(shown.upgrade().is_none());
    // With the same key, where policy says so: the CA makes it from what is shown.
    let path = stage.directory.path().join("pair.pem");
    let same = order_by(ClientAuth::PrivateKeyJwt, |terms| {
        (terms.same_key, terms.path) = (true, Some(path.clone()));
    });
    stage.script.will([stage.signs.answer()]);
    let held = stage.issue(&same, &stage.signers(), None).await.result.unwrap();
    let csr = body(&stage.script.diary()[2])["csr"].as_str().unwrap().to_owned();
    let signs = Arc::clone(&stage.signs);
    stage.script.will([Answer::Made(Box::new(move |_| {
        Answer::json(201, json!({"crt": signs.leaf(&csr, NOW + 86_300), "ca": signs.chain[0]}))
    }))]);
    let renewed = stage.issue(&same, &stage.signers(), Some(&held)).await.result.unwrap();
    let seen = stage.script.diary().remove(3);
    assert_eq!((line(&seen), seen.body.as_str()), ("POST /1.0/renew".into(), "{}"));
    assert_eq!(kid(&held), kid(&renewed));
}

#[tokio::test]
async fn what_may_not_be_renewed_is_asked_for_anew_once() {
    // CA-02: disableRenewal, revoked, or a proxy that ends TLS.
    let stage = Stage::new().await;
    let first = stage.first().await;
    for status in [401, 403, 400, 404] {
        let before = stage.script.diary().len();
        stage.script.will([no(status), stage.signs.answer()]);
        stage.issue(&order(), &stage.signers(), Some(&first)).await.result.unwrap();
        let lines: Vec<String> = stage.script.diary()[before..].iter().map(line).collect();
        assert_eq!(lines, ["POST /1.0/rekey", "POST /1.0/sign"], "{status}");
    }
    // One in trouble is not asked twice at once.
    let before = stage.script.diary().len();
    stage.script.will([no(503).with("retry-after", "7")]);
    let error = stage.issue(&order(), &stage.signers(), Some(&first)).await.result.unwrap_err();
    assert!(
        matches!(&error, IssueError::Retry { after: Some(after), .. } if after.as_secs() == 7),
        "{error}"
    );
    assert_eq!(stage.script.diary().len(), before + 1);
}

#[tokio::test]
async fn a_token_that_was_used_is_drawn_anew_once_and_told() {
    // ER-10
    let stage = Stage::new().await;
    let used = || Answer::json(401, json!({"status": 401, "message": "token already used"}));
    stage.script.will([used(), stage.signs.answer()]);
    let issued = stage.issue(&order(), &stage.signers(), None).await;
    issued.result.unwrap();
    assert!(issued.facts.one_time_reuse);
    let jti = |seen: &Seen| told(&body(seen)["ott"], &*stage.key).1["jti"].clone();
    let diary = stage.script.diary();
    assert_ne!(jti(&diary[0]), jti(&diary[1]));
    stage.script.will([used(), used()]);
    let error = stage.issue(&order(), &stage.signers(), None).await.result.unwrap_err();
    assert!(matches!(&error, IssueError::Refused { reason: Reason::OneTimeReuse, .. }), "{error}");
    assert_eq!(stage.script.diary().len(), 4);
}

#[tokio::test]
async fn the_key_before_vouches_while_the_new_one_is_not_known() {
    // KEY-06
    let stage = Stage::new().await;
    let before = Arc::new(Key::generate(Algorithm::EdDsa).unwrap());
    let signers = Signers { before: Some(Arc::clone(&before) as _), ..stage.signers() };
    stage.script.will([no(401), stage.signs.answer()]);
    let issued = stage.issue(&order(), &signers, None).await;
    issued.result.unwrap();
    assert!(issued.facts.key_fallback);
    let (header, _) = told(&body(&stage.script.diary()[1])["ott"], &*before);
    assert_eq!(header["kid"], before.kid());
    stage.script.will([no(401), no(401)]);
    let issued = stage.issue(&order(), &signers, None).await;
    assert_eq!(issued.result.unwrap_err().reason(), Reason::ClientAuthRejected);
    assert!(!issued.facts.key_fallback);
    assert_eq!(stage.script.diary().len(), 4);
}

#[tokio::test]
async fn a_clock_that_is_far_off_signs_nothing() {
    // CLK-03
    let stage = Stage::new().await;
    let far = "Tue, 14 Nov 2023 23:13:20 GMT";
    stage.script.will([no(503).with("date", far)]);
    stage.issue(&order(), &stage.signers(), None).await.result.unwrap_err();
    let error = stage.issue(&order(), &stage.signers(), None).await.result.unwrap_err();
    assert_eq!((error.reason(), stage.script.diary().len()), (Reason::ClockUntrusted, 1));
}

fn response(status: u16, kind: &'static str, body: &str) -> Response {
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    Response { status, headers, body: Secret::new(body) }
}

#[test]
fn each_no_has_its_next_move() {
    // ER-11, ER-12, CA-02, X5-07
    #[derive(Debug, PartialEq)]
    enum Next {
        Misconfigured,
        Refused,
        Retry,
    }
    use Asked::{Renew, Revoke, Sign};
    let long = "The request was forbidden by the certificate authority: requested duration of 25h1m0s is more than the authorized \
                maximum certificate duration of 24h1m0s.";
    let outlives = "The request was forbidden by the certificate authority: requested certificate notAfter (2026-11-26 04:49:05 +0000 \
                    UTC) is after the expiration of the provisioning credential.";
    for (status, asked, words, next, reason) in [
        (400, Sign, "missing ott", Next::Refused, Reason::AgentBugRequest),
        (400, Renew, "missing client certificate", Next::Refused, Reason::GrantRejected),
        (400, Revoke, "'x' is not a valid serial number", Next::Refused, Reason::AgentBugRequest),
        (401, Sign, "lacked necessary authorization", Next::Misconfigured, Reason::ClientAuthRejected),
        (401, Renew, "lacked necessary authorization", Next::Refused, Reason::GrantRejected),
        (401, Revoke, "lacked necessary authorization", Next::Misconfigured, Reason::ClientAuthRejected),
        (403, Sign, "does not contain the valid URIs", Next::Refused, Reason::GrantRejected),
        (403, Sign, long, Next::Misconfigured, Reason::IssuerConfig),
        (403, Sign, outlives, Next::Misconfigured, Reason::IssuerConfig),
        (404, Sign, "404 page not found", Next::Misconfigured, Reason::IssuerConfig),
        (418, Sign, "", Next::Misconfigured, Reason::IssuerConfig),
        (429, Sign, "", Next::Retry, Reason::IssuerRateLimit),
        (500, Renew, "Internal Server Error", Next::Retry, Reason::IssuerUnavailable),
        (501, Revoke, "no persistence layer", Next::Refused, Reason::IssuerConfig),
        (501, Sign, "", Next::Retry, Reason::IssuerUnavailable),
        (503, Revoke, "", Next::Retry, Reason::IssuerUnavailable),
    ] {
        let answer =
            response(status, "application/json", &json!({"status": status, "message": words}).to_string());
        let error = reply::refusal(&answer, asked, Timestamp::UNIX_EPOCH);
        let got = match &error {
            IssueError::Misconfigured { .. } => Next::Misconfigured,
            IssueError::Refused { .. } => Next::Refused,
            IssueError::Retry { .. } | IssueError::Later { .. } => Next::Retry,
        };
        assert_eq!((got, error.reason()), (next, reason), "{status} {asked:?} {words}: {error}");
        assert_eq!(error.to_string().contains("max_ttl"), [long, outlives].contains(&words), "{error}");
    }
    // ER-13
    let foul =
        json!({"message": format!("no\u{1b}[31m\r\n{} {}", "eyJhbGciOiJFUzI1NiJ9.x.y", "a".repeat(3000))});
    let error =
        reply::refusal(&response(403, "application/json", &foul.to_string()), Sign, Timestamp::UNIX_EPOCH);
    let error = error.to_string();
    assert!(error.len() < 500 && !error.contains("eyJ") && !error.contains(['\u{1b}', '\n']), "{error}");
    let html = reply::refusal(&response(403, "text/html", "<b>no</b>"), Sign, Timestamp::UNIX_EPOCH);
    assert!(!html.to_string().contains("<b>"), "{html}");
}

#[tokio::test]
async fn what_is_no_answer_of_a_step_ca_is_no_certificate() {
    // X5-02, PKJ-17, OA-03
    let stage = Stage::new().await;
    let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let json_of = |answer: Value| Answer::json(201, answer);
    for (answer, reason) in [
        (Answer::json(200, "<html>").with("content-type", "text/html"), "ISSUER_PROTOCOL"),
        (Answer::json(200, "{"), "ISSUER_PROTOCOL"),
        (Answer::json(200, r#"{"crt": "a", "crt": "b"}"#), "ISSUER_PROTOCOL"),
        (json_of(json!({"status": "ok"})), "ISSUER_PROTOCOL"),
        (json_of(json!({"certChain": [7]})), "CERT_REJECTED_FORM"),
        (json_of(json!({"certChain": ["no PEM"]})), "CERT_REJECTED_FORM"),
        (json_of(json!({"certChain": [garbage]})), "CERT_REJECTED_FORM"),
        (json_of(json!({"crt": "-----BEGIN CERTIFICATE-----\n", "ca": garbage})), "CERT_REJECTED_FORM"),
        (json_of(json!({"certChain": vec![garbage; 100]})), "CERT_REJECTED_FORM"),
        (Answer::json(200, "x".repeat(MAX_BODY + 1)), "ISSUER_PROTOCOL"),
        (Answer::json(302, "{}").with("location", "https://elsewhere.example/1.0/sign"), "ISSUER_REDIRECT"),
        (Answer::HangUp, "ISSUER_UNAVAILABLE"),
    ] {
        stage.script.will([answer]);
        let error = stage.issue(&order(), &stage.signers(), None).await.result.unwrap_err();
        assert_eq!(error.reason().as_str(), reason, "{error}");
    }
}

#[test]
fn whatever_comes_is_sorted_and_fit_to_be_written() {
    // X5-02, ER-13: answers with some of their bytes changed, and cut at any place.
    let (signs, root) = Signs::new();
    let good = json!({"crt": root, "ca": signs.chain[0], "certChain": [root, signs.chain[0]], "message": "token already used"});
    let good = good.to_string().into_bytes();
    let dice = SeededDice::from_seed(11);
    for round in 0..4000_usize {
        let mut chance = [0; 8];
        dice.fill(&mut chance);
        let mut bytes = good.clone();
        let at = usize::from(u16::from_le_bytes([chance[0], chance[1]])) % bytes.len();
        match round % 3 {
            0 => bytes[at] = chance[2],
            1 => bytes.truncate(at),
            _ => drop(bytes.splice(at..at, chance[2..].iter().copied())),
        }
        let mut answer = response([200, 201, 400, 401, 403, 500][round % 6], "application/json", "");
        answer.body = Secret::new(bytes);
        let told = [
            reply::chain(&answer).err(),
            Some(reply::refusal(
                &answer,
                [Asked::Sign, Asked::Renew, Asked::Revoke][round % 3],
                Timestamp::UNIX_EPOCH,
            )),
        ];
        for error in told.into_iter().flatten() {
            let text = error.to_string();
            assert!(text.len() < 800 && text.chars().all(|c| c == ' ' || c.is_ascii_graphic()), "{text}");
        }
    }
}

#[tokio::test]
async fn the_leaf_of_another_root_is_refused_and_another_intermediate_is_not() {
    // CA-03, X5-02
    let stage = Stage::new().await;
    let (foreign, _) = Signs::new();
    stage.script.will([Arc::new(foreign).answer()]);
    let error = stage.issue(&order(), &stage.signers(), None).await.result.unwrap_err();
    assert_eq!(error.reason().as_str(), "CERT_REJECTED_CHAIN");
    // One that the first intermediate signed stands for one that the same root did.
    let key = KeyPair::generate().unwrap();
    let params = authority("another");
    let pem = params.signed_by(&key, &stage.signs.ca).unwrap().pem();
    let another =
        Arc::new(Signs { ca: Ca::new(params, key), chain: vec![format!("{pem}{}", stage.signs.chain[0])] });
    stage.script.will([another.answer()]);
    stage.issue(&order(), &stage.signers(), None).await.result.unwrap();
}

#[tokio::test]
async fn a_root_is_had_by_its_sum_and_by_nothing_else() {
    // CA-03
    let stage = Stage::new().await;
    let server_root = stage.settings.ca_file.clone().unwrap();
    let (root, sum) = (std::fs::read_to_string(&server_root).unwrap(), sum_of(&server_root));
    let pin =
        <[u8; 32]>::try_from(digest(&SHA256, &CertificateDer::from_pem_file(&server_root).unwrap()).as_ref())
            .unwrap();
    let kept_root = stage.directory.path().join("mesh.root.pem");
    let settings = StepSettings {
        roots: RootSource::Pinned(pin),
        ca_file: None,
        kept_root: Some(kept_root.clone()),
        ..stage.settings.clone()
    };
    let ca = made(&settings, &stage.clock);
    let signers = stage.signers();
    let certificate = b64(&CertificateDer::from_pem_slice(stage.signs.chain[0].as_bytes()).unwrap());
    let credential = left_behind(&certificate, &*stage.clock);
    let ask = async |ca: &Arc<dyn Issuer>| ca.revoke(&order(), &signers, &credential).await;
    // Neither a wrong one nor no one is trusted, and nothing else is sent before it is known.
    let other = Signs::new().1;
    for (answer, reason) in [
        (Answer::json(200, json!({"ca": other})), "ISSUER_MISMATCH"),
        (no(404), "ISSUER_MISMATCH"),
        (Answer::json(200, json!({"ca": "garbage"})), "ISSUER_PROTOCOL"),
        (Answer::json(200, "<html>").with("content-type", "text/html"), "ISSUER_PROTOCOL"),
        (Answer::json(302, "{}").with("location", "https://elsewhere.example"), "ISSUER_REDIRECT"),
        (no(503), "ISSUER_UNAVAILABLE"),
    ] {
        stage.script.will([answer]);
        let error = ask(&ca).await.unwrap_err();
        assert_eq!(error.reason().as_str(), reason, "{error}");
        let seen = stage.script.diary().pop().unwrap();
        assert_eq!(line(&seen), format!("GET /root/{sum}"));
        assert!(seen.body.is_empty() && seen.certificate.is_none());
        assert!(!kept_root.exists());
    }
    // With it, the server is trusted, and TLS is doubted by it from then on.
    let other_and_root = format!("{other}{root}");
    stage
        .script
        .will([Answer::json(200, json!({"ca": other_and_root})), Answer::json(200, json!({"status": "ok"}))]);
    ask(&ca).await.unwrap();
    assert_eq!(line(&stage.script.diary().pop().unwrap()), "POST /1.0/revoke");
    let elsewhere = tempfile::tempdir().unwrap();
    let (stranger, _) = Script::tls(&elsewhere, &["localhost"]).await;
    let misled = StepSettings { url: stranger.url.clone(), ..settings.clone() };
    // The next start has it kept: nothing is asked of whoever answers there.
    let error = ask(&made(&misled, &stage.clock)).await.unwrap_err();
    assert_eq!((error.reason(), stranger.diary().len()), (Reason::IssuerTls, 0));
    stage.script.will([Answer::json(200, json!({"status": "ok"}))]);
    ask(&made(&settings, &stage.clock)).await.unwrap();
    // What is kept is believed by its sum too.
    std::fs::write(&kept_root, &other).unwrap();
    stage.script.will([Answer::json(200, json!({"ca": root})), Answer::json(200, json!({"status": "ok"}))]);
    ask(&made(&settings, &stage.clock)).await.unwrap();
    assert_eq!(sum_of(&kept_root), sum);
    // With roots for the server, these vouch for the first word too.
    std::fs::remove_file(&kept_root).unwrap();
    let careful =
        StepSettings { ca_file: stage.settings.ca_file.clone(), url: stranger.url.clone(), ..settings };
    let error = ask(&made(&careful, &stage.clock)).await.unwrap_err();
    assert_eq!((error.reason(), stranger.diary().len()), (Reason::IssuerTls, 0));
}

/// What an agent before this one left to be revoked: no more than what the CA has to be told.
fn left_behind(certificate: &str, clock: &dyn Clock) -> Credential {
    let token = Secret::new(certificate);
    Credential {
        fingerprint: token.fingerprint(),
        payload: Payload::Token(token),
        window: Window::opening(clock.boot(), clock.wall(), DAY),
        bound: Bound::Bearer,
        scope: vec![],
        audience: None,
        jti: None,
        form: Form::default(),
    }
}

#[tokio::test]
async fn a_certificate_is_revoked_by_its_number() {
    // X5-07
    let stage = Stage::new().await;
    let credential = stage.first().await;
    let revoke = async || stage.issuer.revoke(&order(), &stage.signers(), &credential).await;
    stage.script.will([Answer::json(200, json!({"status": "ok"}))]);
    revoke().await.unwrap();
    let seen = stage.script.diary().remove(1);
    assert_eq!(line(&seen), "POST /1.0/revoke");
    let mut sent = body(&seen);
    let ott = sent["ott"].take();
    let serial = serial(&credential.certificate().unwrap().chain()[0]).unwrap();
    assert!(serial.bytes().all(|byte| byte.is_ascii_digit()) && serial.len() > 20, "{serial}");
    assert_eq!(sent, json!({"serial": serial, "ott": null, "reasonCode": 5, "passive": true}));
    let (_, mut claims) = told(&ott, &*stage.key);
    claims["jti"].take();
    assert_eq!(
        claims,
        json!({
            "iss": "payments prod", "sub": serial, "aud": format!("{}/1.0/revoke", stage.script.url), "iat": NOW, "nbf": NOW,
            "exp": NOW + 60, "jti": null, "sha": stage.root_sum(),
        })
    );
    let already =
        "The request could not be completed: certificate with serial number '1' is already revoked.";
    stage.script.will([Answer::json(400, json!({"message": already}))]);
    revoke().await.unwrap();
    // Down: whoever asks tries again.
    stage.script.will([no(503), Answer::HangUp]);
    for _ in 0..2 {
        assert!(matches!(revoke().await, Err(IssueError::Retry { .. })));
    }
    stage.script.will([no(401)]);
    assert_eq!(revoke().await.unwrap_err().reason(), Reason::ClientAuthRejected);
}

#[tokio::test]
async fn its_endpoints_are_known_from_the_start() {
    // DPOP-20
    let stage = Stage::new().await;
    let endpoints = stage.issuer.endpoints();
    for end in ["/1.0/sign", "/1.0/renew", "/1.0/rekey", "/1.0/revoke", "/sign", "/re-sign"] {
        let target = Target::parse(&format!("{}{end}", stage.script.url)).unwrap();
        assert!(endpoints.contains(&target), "{end}");
    }
}

#[test]
fn mistakes_in_its_settings_are_told() {
    // CA-01
    let good = StepSettings {
        name: "mesh".into(),
        url: "https://ca.example.com:9000".into(),
        roots: RootSource::Pinned([0; 32]),
        ca_file: None,
        kept_root: None,
        dev: false,
        timeout: Duration::from_secs(10),
    };
    assert_eq!(problems(&good), []);
    for (url, told) in [
        ("http://ca.example.com", true),
        ("https://ca.example.com/", true),
        ("https://ca.example.com?a", true),
        ("https://ca.example.com#a", true),
        ("https://a@ca.example.com", true),
        ("ca.example.com", true),
        ("https://ca.example.com/step", false),
    ] {
        let found = problems(&StepSettings { url: url.into(), ..good.clone() });
        assert_eq!(found.iter().any(|(key, _)| *key == "url"), told, "{url}: {found:?}");
    }
    let plain = StepSettings { url: "http://127.0.0.1:9000".into(), dev: true, ..good.clone() };
    assert_eq!(problems(&plain), []);
    assert_eq!(problems(&StepSettings { timeout: Duration::ZERO, ..good })[0].0, "timeout");
    for (auth, fits) in [
        (ClientAuth::PrivateKeyJwt, true),
        (ClientAuth::TlsClientAuth, true),
        (ClientAuth::SelfSignedTlsClientAuth, false),
        (ClientAuth::Bootstrap("/b".into()), false),
    ] {
        assert_eq!(misfit(&auth).is_none(), fits);
    }
}

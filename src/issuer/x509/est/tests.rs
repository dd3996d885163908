//! EST against a server out of a script, which answers what a test wrote for it.

use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf};

use rcgen::{IsCa, Issuer as Ca, KeyPair};
use rustls_pki_types::CertificateDer;

use super::{pkcs7::Unreadable, *};
use crate::{
    clock::ManualClock,
    issuer::{
        Issuer as _,
        script::{Answer, Asks, Script},
        terms::{CertificateTerms, Terms, Wants},
        x509::tests::{order, root, signed},
    },
    keys::{Enrolment, Subject, Vault},
    secret::hex,
};

const URI: &str = "spiffe://example.org/payments";

fn tlv(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    let length = u32::try_from(content.len()).unwrap().to_be_bytes();
    [&[tag, 0x84], &length[..], &content].concat()
}

const SIGNED_DATA: &[u8] = &[0x06, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x02];
const DATA: &[u8] = &[0x30, 11, 0x06, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x01];

/// SignedData with these certificates and with `more` behind them.
fn degenerate(certificates: &[&[u8]], more: &[u8]) -> Vec<u8> {
    let (version, none) = ([2, 1, 1], [0x31, 0]);
    let set = tlv(0xa0, certificates);
    let signed = tlv(0x30, &[&version, &none, DATA, &set, more, &none]);
    tlv(0x30, &[SIGNED_DATA, &tlv(0xa0, &[&signed])])
}

/// The same as an answer, in lines as RFC 7030 had it.
fn sent(certificates: &[&CertificateDer<'_>]) -> Answer {
    let all: Vec<&[u8]> = certificates.iter().map(|one| one.as_ref()).collect();
    let text = STANDARD.encode(degenerate(&all, &[]));
    let lines: Vec<&str> =
        text.as_bytes().chunks(76).map(|line| std::str::from_utf8(line).unwrap()).collect();
    as_certificates(lines.join("\r\n"))
}

fn as_certificates(body: String) -> Answer {
    let headers = vec![("content-type", "application/pkcs7-mime; smime-type=certs-only".to_owned())];
    Answer::Full { status: 200, headers, body }
}

fn status(status: u16) -> Answer {
    Answer::Full { status, headers: vec![], body: String::new() }
}

struct Stage {
    script: Script,
    est: Est,
    ca: Ca<'static, KeyPair>,
    root: CertificateDer<'static>,
    order: Order,
    directory: tempfile::TempDir,
}

fn settings(url: &str, roots: RootSource) -> EstSettings {
    EstSettings {
        name: "mesh".into(),
        url: url.into(),
        label: None,
        ca_file: None,
        roots,
        kept_root: None,
        csr_attributes: true,
        dev: true,
        timeout: Duration::from_secs(5),
    }
}

fn clock() -> Arc<ManualClock> {
    ManualClock::at(jiff::Timestamp::from_second(1_700_000_000).unwrap())
}

impl Stage {
    /// A server without TLS, and who asks by this secret.
    async fn bootstrapped(secret: &str) -> Self {
        let (script, directory) = (Script::plain().await, tempfile::tempdir().unwrap());
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let path = directory.path().join("once");
        fs::write(&path, secret).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        Self::with(script, directory, ClientAuth::Bootstrap(path), |_| ())
    }

    fn with(
        script: Script,
        directory: tempfile::TempDir,
        client_auth: ClientAuth,
        change: impl FnOnce(&mut EstSettings),
    ) -> Self {
        let (ca, root) = root("root");
        let pem = directory.path().join("roots.pem");
        fs::write(&pem, crate::keys::certificate_pem(&root)).unwrap();
        let mut settings = settings(&script.url, RootSource::File(pem));
        change(&mut settings);
        let est = Est::new(settings, clock()).unwrap();
        Self { script, est, ca, root, order: asked_by(client_auth), directory }
    }

    fn secret(&self) -> PathBuf {
        self.directory.path().join("once")
    }

    fn signed(&self, request: &Enrolment) -> CertificateDer<'static> {
        signed(&self.ca, request)
    }

    async fn sign(
        &self,
        request: &Enrolment,
        held: Option<&Arc<ClientCertificate>>,
        certificates: Vec<Arc<ClientCertificate>>,
    ) -> Result<Signed, IssueError> {
        let Wants::Certificate(terms) = &self.order.terms.wants else { panic!("a certificate") };
        let signers = Signers { client: None, before: None, dpop: None, certificates };
        let ask = Ask { order: &self.order, terms, signers: &signers, request, held };
        self.est.sign(ask, &mut IssueFacts::default()).await
    }
}

fn asked_by(client_auth: ClientAuth) -> Order {
    let terms = CertificateTerms { subject: subject(URI), ..CertificateTerms::default() };
    let order = order(terms);
    let terms = Terms { client_auth, ..Terms::clone(&order.terms) };
    Order { terms: Arc::new(terms), ..order }
}

fn subject(uri: &str) -> Subject {
    Subject { uris: vec![uri.into()], ..Subject::default() }
}

fn request(uri: &str) -> Enrolment {
    Enrolment::begin(&subject(uri), KeyKind::P256).unwrap()
}

fn chain(signed: Result<Signed, IssueError>) -> Vec<CertificateDer<'static>> {
    match signed.unwrap() {
        Signed::Chain(chain) => chain,
        Signed::Later(after) => panic!("later, in {after:?}"),
    }
}

#[tokio::test]
async fn roots_are_named_or_pinned_and_never_trusted_on_first_use() {
    // EST-01, CA-03
    let (_, trusted) = root("trusted");
    let (_, other) = root("other");
    let sum = ring::digest::digest(&ring::digest::SHA256, &trusted);
    let pin = RootSource::Pinned(sum.as_ref().try_into().unwrap());
    let script = Script::plain().await;
    let auth = || ClientAuth::TlsClientAuth;
    let pinned = || {
        let directory = tempfile::tempdir().unwrap();
        Stage::with(script.clone(), directory, auth(), |settings| {
            settings.roots = pin.clone();
            settings.label = Some("devices".into());
        })
    };
    // In lines, in one, and asked for once.
    let stage = pinned();
    script.will([sent(&[&other, &trusted])]);
    for _ in 0..2 {
        let roots = stage.est.trusted(&mut IssueFacts::default()).await.unwrap();
        assert_eq!(roots.pem().matches("BEGIN").count(), 1, "the one that the pin is for");
    }
    script.will([as_certificates(STANDARD.encode(degenerate(&[&trusted], &[])))]);
    // X5-03: kept for the next start, which may not find the server there, and believed by its sum only.
    let kept_root = stage.directory.path().join("mesh.root.pem");
    let keeping = || {
        Stage::with(script.clone(), tempfile::tempdir().unwrap(), auth(), |settings| {
            (settings.roots, settings.kept_root) = (pin.clone(), Some(kept_root.clone()));
            settings.label = Some("devices".into());
        })
    };
    for _ in 0..2 {
        keeping().est.trusted(&mut IssueFacts::default()).await.unwrap();
    }
    fs::write(&kept_root, crate::keys::certificate_pem(&other)).unwrap();
    script.will([status(503)]);
    keeping().est.trusted(&mut IssueFacts::default()).await.unwrap_err();
    let diary = script.diary();
    assert_eq!(diary.len(), 3);
    assert_eq!(diary[0].line, "GET /.well-known/est/devices/cacerts HTTP/1.1");
    assert!(diary[0].head.contains("accept: application/pkcs7-mime"), "{}", diary[0].head);
    // Somebody else's.
    script.will([sent(&[&other])]);
    let error = pinned().est.trusted(&mut IssueFacts::default()).await.unwrap_err();
    assert!(matches!(error, IssueError::Misconfigured { .. }));
    let told = error.to_string();
    assert!(told.contains("nothing is trusted on first use") && told.contains(&hex(sum.as_ref())), "{told}");
    // A server that is no EST server.
    script.will([Answer::Full { status: 200, headers: vec![], body: "<html>".into() }, status(404)]);
    for reason in [Reason::IssuerProtocol, Reason::IssuerConfig] {
        let error = pinned().est.trusted(&mut IssueFacts::default()).await.unwrap_err();
        assert_eq!(error.reason(), reason);
    }
}

#[tokio::test]
async fn a_secret_enrols_once_and_is_gone() {
    // EST-02, ACM-02
    for (secret, shown) in [
        ("payments:Kb.C4n4ry\n", format!("authorization: Basic {}", STANDARD.encode("payments:Kb.C4n4ry"))),
        ("Kb.C4n4ry.one.time", "authorization: Bearer Kb.C4n4ry.one.time".into()),
    ] {
        let stage = Stage::bootstrapped(secret).await;
        let request = request(URI);
        let leaf = stage.signed(&request);
        stage.script.will([sent(&[&stage.root, &leaf])]);
        let got = chain(stage.sign(&request, None, vec![]).await);
        assert_eq!(got, [leaf], "the leaf first, and no root");
        let seen = &stage.script.diary()[0];
        assert_eq!(seen.line, "POST /.well-known/est/simpleenroll HTTP/1.1");
        assert!(seen.head.contains(&shown), "{}", seen.head);
        assert!(seen.head.contains("content-type: application/pkcs10"), "{}", seen.head);
        assert!(seen.head.contains("content-transfer-encoding: base64"), "RFC 7030 4.2: {}", seen.head);
        assert_eq!(STANDARD.decode(&seen.body).unwrap(), request.csr());
        // Gone when what came is kept, not before: who is killed between finds it still.
        assert!(stage.secret().exists());
        stage.est.settled(&stage.order);
        assert!(!stage.secret().exists());
        let error = stage.sign(&request, None, vec![]).await.unwrap_err();
        assert!(matches!(error, IssueError::Misconfigured { .. }), "{error}");
        assert!(error.to_string().contains("good once") && !error.to_string().contains("C4n4ry"), "{error}");
        assert_eq!(stage.script.diary().len(), 1, "nothing is sent without it");
    }
}

#[tokio::test]
async fn what_a_server_says_is_sorted_by_what_to_do_next() {
    // EST-02
    let stage = Stage::bootstrapped("secret").await;
    let request = request(URI);
    for (wish, wait) in [(Some("17"), 17), (Some("999999"), 3600), (None, 60), (Some("soon"), 60)] {
        stage.script.will([wish.iter().fold(status(202), |answer, wish| answer.with("retry-after", wish))]);
        let answered = stage.sign(&request, None, vec![]).await.unwrap();
        assert!(matches!(answered, Signed::Later(after) if after.as_secs() == wait), "{answered:?}");
    }
    // The same request again each time.
    let bodies: std::collections::HashSet<String> =
        stage.script.diary().into_iter().map(|seen| seen.body).collect();
    assert_eq!(bodies.len(), 1);
    for (answer, reason, next) in [
        (401, "CLIENT_AUTH_REJECTED", "refused"),
        (403, "CLIENT_AUTH_REJECTED", "refused"),
        (400, "GRANT_REJECTED", "refused"),
        (422, "GRANT_REJECTED", "refused"),
        (404, "ISSUER_CONFIG", "misconfigured"),
        (501, "ISSUER_CONFIG", "misconfigured"),
        (429, "ISSUER_RATE_LIMIT", "retry"),
        (500, "ISSUER_UNAVAILABLE", "retry"),
        (503, "ISSUER_UNAVAILABLE", "retry"),
        (204, "ISSUER_PROTOCOL", "retry"),
        (200, "ISSUER_PROTOCOL", "retry"),
    ] {
        stage.script.will([status(answer).with("retry-after", "7")]);
        let error = stage.sign(&request, None, vec![]).await.unwrap_err();
        let is = match &error {
            IssueError::Retry { after, .. } => {
                let told = matches!(answer, 429 | 500 | 503).then_some(Duration::from_secs(7));
                assert_eq!(*after, told, "{answer}");
                "retry"
            }
            IssueError::Later { .. } => "later",
            IssueError::Refused { .. } => "refused",
            IssueError::Misconfigured { .. } => "misconfigured",
        };
        assert_eq!((error.reason().as_str(), is), (reason, next), "{answer}");
    }
    assert!(stage.secret().exists(), "it is kept until something came of it");
}

#[tokio::test]
async fn a_renewal_shows_what_is_held_and_names_nobody_else() {
    // EST-03
    let directory = tempfile::tempdir().unwrap();
    let (script, ca_file) = Script::asking(&directory, &["localhost"], Some(Asks::anybody())).await;
    let stage = Stage::with(script, directory, ClientAuth::TlsClientAuth, |settings| {
        settings.ca_file = Some(ca_file);
    });
    let first = request(URI);
    let held = Arc::new(first.finish(vec![stage.signed(&first)], false, None).unwrap());
    let next = request(URI);
    let leaf = stage.signed(&next);
    stage.script.will([sent(&[&leaf])]);
    assert_eq!(chain(stage.sign(&next, Some(&held), vec![]).await), [leaf]);
    let seen = stage.script.diary().remove(0);
    assert_eq!(seen.line, "POST /.well-known/est/simplereenroll HTTP/1.1");
    assert_eq!(seen.certificate.as_ref(), held.chain().first());
    assert!(!seen.head.contains("authorization"));
    // Another name, one more, one less, another subject: nobody is asked.
    let more = Subject { dns: vec!["payments.example".into()], ..subject(URI) };
    let named = Subject { common_name: Some("payments".into()), ..subject(URI) };
    let none = Subject { common_name: Some("payments".into()), ..Subject::default() };
    for other in [subject("spiffe://example.org/admin"), more, named, none] {
        let other = Enrolment::begin(&other, KeyKind::P256).unwrap();
        let error = stage.sign(&other, Some(&held), vec![]).await.unwrap_err();
        assert_eq!(error.reason().as_str(), "CERT_REJECTED_NAMES");
        assert!(
            matches!(&error, IssueError::Refused { detail, .. } if detail.starts_with("not sent")),
            "{error}"
        );
    }
    assert_eq!(stage.script.diary().len(), 1);
    // The first is asked for with the identity's own.
    stage.script.will([status(403)]);
    let _ = stage.sign(&next, None, vec![Arc::clone(&held)]).await.unwrap_err();
    let seen = stage.script.diary().remove(1);
    assert_eq!(seen.line, "POST /.well-known/est/simpleenroll HTTP/1.1");
    assert_eq!(seen.certificate.as_ref(), held.chain().first());
    let error = stage.sign(&next, None, vec![]).await.unwrap_err();
    assert!(matches!(error, IssueError::Misconfigured { .. }), "{error}");
}

/// What a server wants, in DER.
fn wishes(each: &[&[u8]]) -> Vec<u8> {
    tlv(0x30, each)
}

const EC: &[u8] = &[6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
const P256: &[u8] = &[6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const P384: &[u8] = &[6, 5, 0x2b, 0x81, 0x04, 0x00, 0x22];
const ED25519: &[u8] = &[6, 3, 0x2b, 0x65, 0x70];
const UNKNOWN: &[u8] = &[6, 4, 0x2a, 0x03, 0x04, 0x05];
const TEMPLATE: &[u8] = &[6, 11, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x10, 0x02, 0x3d];

fn attribute(kind: &[u8], value: &[u8]) -> Vec<u8> {
    tlv(0x30, &[kind, &tlv(0x31, &[value])])
}

/// RFC 9908 3.4: a subject, the algorithm of the key, and a subjectAltName that nobody here asked for.
fn template(algorithm: &[&[u8]]) -> Vec<u8> {
    let subject = tlv(0x30, &[&tlv(0x31, &[&tlv(0x30, &[&[6, 3, 0x55, 4, 3]])])]);
    let key = tlv(0xa0, &[&tlv(0x30, algorithm)]);
    let attributes = tlv(0xa1, &[&attribute(&[6, 3, 0x55, 0x1d, 0x11], b"\x04\x02hi")]);
    attribute(TEMPLATE, &tlv(0x30, &[&[2, 1, 0], &subject, &key, &attributes]))
}

#[test]
fn the_kind_of_key_is_the_servers_wish_and_nothing_else_is() {
    // EST-04
    let rsa: &[u8] = &[6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
    let (p384, p256) = (attribute(EC, P384), attribute(EC, P256));
    for (wanted, kind) in [
        (wishes(&[]), None),
        (wishes(&[UNKNOWN]), None),
        (wishes(&[&p384]), Some(KeyKind::P384)),
        (wishes(&[UNKNOWN, &attribute(UNKNOWN, UNKNOWN), &p384, UNKNOWN]), Some(KeyKind::P384)),
        (wishes(&[ED25519]), Some(KeyKind::Ed25519)),
        (wishes(&[EC, P256]), Some(KeyKind::P256)),
        (wishes(&[&attribute(rsa, &[2, 2, 0x10, 0])]), None),
        (wishes(&[&template(&[EC, P384])]), Some(KeyKind::P384)),
        (wishes(&[&template(&[ED25519])]), Some(KeyKind::Ed25519)),
        (wishes(&[&template(&[rsa, &[5, 0]])]), None),
        // A template counts more than what stands beside it (RFC 9908 3.4).
        (wishes(&[&p256, &template(&[EC, P384])]), Some(KeyKind::P384)),
    ] {
        assert_eq!(csrattrs::key_kind(&wanted), Ok(kind));
        assert_eq!(csrattrs::key_kind(STANDARD.encode(&wanted).as_bytes()), Ok(kind));
        for cut in 1..wanted.len() {
            assert!(csrattrs::key_kind(&wanted[..cut]).is_err(), "cut at {cut}");
        }
    }
    let many: Vec<&[u8]> = vec![UNKNOWN; 1000];
    assert_eq!(csrattrs::key_kind(&wishes(&many)), Err(Unreadable::TooMany));
}

#[tokio::test]
async fn a_request_has_the_key_that_the_server_wants_and_the_names_that_policy_says() {
    // EST-04, X5-01
    let stage = Stage::bootstrapped("secret").await;
    let engine = X509::new(stage.est, Vault::default(), clock());
    let asked = |diary: &[crate::issuer::script::Seen]| {
        let csr = STANDARD.decode(&diary.last().unwrap().body).unwrap();
        let (_, read) = X509CertificationRequest::from_der(&csr).unwrap();
        let extensions = format!("{:?}", read.requested_extensions().unwrap().collect::<Vec<_>>());
        assert!(extensions.contains(URI) && !extensions.contains("hi\""), "{extensions}");
        assert_eq!(read.certification_request_info.subject.iter().count(), 0);
        read.certification_request_info.subject_pki.subject_public_key.data.len()
    };
    let wants = |body: &[u8]| {
        let headers = vec![("content-type", "application/csrattrs".to_owned())];
        Answer::Full { status: 200, headers, body: STANDARD.encode(body) }
    };
    let signers = Signers { client: None, before: None, dpop: None, certificates: vec![] };
    for (answer, length) in [
        (wants(&wishes(&[UNKNOWN, &template(&[EC, P384])])), 97),
        (wants(&wishes(&[UNKNOWN])), 65),
        // It has none, or tells them to nobody yet.
        (status(204), 65),
        (status(404), 65),
        (status(401), 65),
        (status(501), 65),
    ] {
        stage.script.will([answer, status(400)]);
        engine.issue(&stage.order, &signers, None).await.result.unwrap_err();
        assert_eq!(asked(&stage.script.diary()), length);
    }
    assert_eq!(stage.script.diary()[0].line, "GET /.well-known/est/csrattrs HTTP/1.1");
    // One that is in trouble is not asked for anything, and one that sends rubbish neither.
    for (answer, reason) in [(status(503), "ISSUER_UNAVAILABLE"), (wants(b"0x"), "ISSUER_PROTOCOL")] {
        let before = stage.script.posts().len();
        stage.script.will([answer]);
        let error = engine.issue(&stage.order, &signers, None).await.result.unwrap_err();
        assert_eq!((error.reason().as_str(), stage.script.posts().len()), (reason, before));
    }
}

#[tokio::test]
async fn nothing_is_asked_of_a_server_but_this() {
    // EST-05, EST-06: no key is ever made there, and nobody asks when to renew.
    let stage = Stage::bootstrapped("secret").await;
    let request = request(URI);
    let leaf = stage.signed(&request);
    let (script, order) = (stage.script.clone(), stage.order.clone());
    script.will([status(204), sent(&[&leaf])]);
    let signers = Signers { client: None, before: None, dpop: None, certificates: vec![] };
    let engine = X509::new(stage.est, Vault::default(), clock());
    // It is for another key than the one that is asked for now.
    let error = engine.issue(&order, &signers, None).await.result.unwrap_err();
    assert_eq!(error.reason().as_str(), "CERT_REJECTED_KEY");
    let lines: Vec<String> = script.diary().into_iter().map(|seen| seen.line).collect();
    assert_eq!(
        lines,
        ["GET /.well-known/est/csrattrs HTTP/1.1", "POST /.well-known/est/simpleenroll HTTP/1.1"]
    );
    let named = EstSettings {
        label: Some("serverkeygen".into()),
        ..settings("https://ca.example", RootSource::Pinned([0; 32]))
    };
    assert_eq!(problems(&named)[0].0, "label");
    let told = engine.endpoints();
    let told: Vec<&str> = told.iter().map(Target::htu).map(|url| url.rsplit('/').next().unwrap()).collect();
    assert_eq!(told, ["simpleenroll", "simplereenroll"]);
}

#[test]
fn what_is_no_list_of_certificates_is_refused_with_its_reason() {
    // EST-01, EST-02
    let (_, one) = root("one");
    let good = degenerate(&[&one], &[]);
    assert_eq!(pkcs7::certificates(&good).unwrap(), std::slice::from_ref(&one));
    for cut in 1..good.len() {
        assert!(pkcs7::certificates(&good[..cut]).is_err(), "cut at {cut}");
    }
    // Lengths that are not known beforehand, as Java writes them.
    let signed =
        [&[0x30, 0x80, 2, 1, 1, 0x31, 0][..], DATA, &[0xa0, 0x80], &one, &[0, 0, 0x31, 0, 0, 0]].concat();
    let ber = [&[0x30, 0x80][..], SIGNED_DATA, &[0xa0, 0x80], &signed, &[0, 0, 0, 0]].concat();
    assert_eq!(pkcs7::certificates(&ber).unwrap(), std::slice::from_ref(&one));
    let no_crls = degenerate(&[&one], &[0xa1, 0]);
    assert_eq!(pkcs7::certificates(&no_crls).unwrap().len(), 1);
    let many: Vec<&[u8]> = vec![&one; 1000];
    let data = tlv(0x30, &[&DATA[2..], &tlv(0xa0, &[&[4, 0]])]);
    for (wrong, why) in [
        (degenerate(&many, &[]), Unreadable::TooMany),
        (degenerate(&[], &[]), Unreadable::Empty),
        (degenerate(&[&one], &tlv(0xa1, &[&tlv(0x30, &[])])), Unreadable::Crls),
        // An attribute certificate.
        (degenerate(&[&one, &tlv(0xa2, &[])], &[]), Unreadable::Foreign),
        (data, Unreadable::NotSignedData),
        ([&good[..], &[0]].concat(), Unreadable::Trailing),
        (one.to_vec(), Unreadable::Form),
        (b"<html>".to_vec(), Unreadable::Encoding),
        (vec![], Unreadable::Form),
    ] {
        assert_eq!(pkcs7::certificates(&wrong), Err(why));
    }
}

#[test]
fn a_chain_begins_with_our_key_whatever_order_it_came_in() {
    // EST-02, X5-02
    let (above, top) = root("top");
    let key = KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::CommonName, "between");
    params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let between = params.signed_by(&key, &above).unwrap().der().clone();
    let between_ca = Ca::new(params, key);
    let (wanted, other) = (request(URI), request(URI));
    let (leaf, stranger) = (signed(&between_ca, &wanted), signed(&between_ca, &other));
    for sent in [
        vec![leaf.clone(), between.clone(), top.clone()],
        vec![top.clone(), between.clone(), leaf.clone()],
        vec![between.clone(), stranger.clone(), leaf.clone(), leaf.clone()],
    ] {
        let ordered = chain::for_request(wanted.csr(), sent).unwrap();
        assert_eq!(ordered, [leaf.clone(), between.clone()]);
    }
    for (sent, reason) in [
        (vec![stranger, between, top], "CERT_REJECTED_KEY"),
        (vec![], "CERT_REJECTED_FORM"),
        (vec![leaf, CertificateDer::from(vec![0x30, 0])], "CERT_REJECTED_FORM"),
    ] {
        assert_eq!(chain::for_request(wanted.csr(), sent).unwrap_err().reason().as_str(), reason);
    }
}

#[test]
fn settings_that_cannot_work_are_told_with_their_key() {
    // EST-01, EST-02
    let good = || settings("https://ca.example:8443", RootSource::Pinned([0; 32]));
    assert_eq!(problems(&good()), []);
    assert_eq!(problems(&EstSettings { label: Some("devices-1".into()), ..good() }), []);
    for (wrong, key) in [
        (EstSettings { url: "http://ca.example".into(), ..good() }, "url"),
        (EstSettings { url: "http://127.0.0.1".into(), dev: false, ..good() }, "url"),
        (EstSettings { url: "https://ca.example/.well-known/est".into(), ..good() }, "url"),
        (EstSettings { url: "https://user@ca.example".into(), ..good() }, "url"),
        (EstSettings { url: "ca.example".into(), ..good() }, "url"),
        (EstSettings { label: Some("a/b".into()), ..good() }, "label"),
        (EstSettings { label: Some("..".into()), ..good() }, "label"),
        (EstSettings { label: Some("cacerts".into()), ..good() }, "label"),
        (EstSettings { timeout: Duration::ZERO, ..good() }, "timeout"),
    ] {
        let found = problems(&wrong);
        assert_eq!(found.iter().map(|(key, _)| *key).collect::<Vec<_>>(), [key], "{wrong:?}");
    }
}

//! The engine against a CA in this process that does as it is told, for good or ill.

use std::{
    net::Ipv4Addr,
    sync::atomic::{AtomicUsize, Ordering},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer as Ca, KeyPair, KeyUsagePurpose, SanType, date_time_ymd,
};
use x509_parser::{certification_request::X509CertificationRequest, prelude::FromDer as _};

use super::*;
use crate::{
    clock::ManualClock,
    credential::Binding,
    issuer::terms::Terms,
    keys::{KeyKind, Subject},
};

const NOW: i64 = 1_700_000_000;
const URI: &str = "spiffe://example.org/payments";
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A CA that signs what it is asked for, after `bend` had its way with it.
#[derive(Debug)]
struct Scripted {
    ca: Ca<'static, KeyPair>,
    roots: Arc<Roots>,
    will: Mutex<Vec<Will>>,
    asked: AtomicUsize,
    renewed: AtomicUsize,
    clock: Arc<ManualClock>,
}

/// What it does next; by default, as it is asked.
enum Will {
    Bend(Box<dyn Fn(&mut CertificateParams) + Send>),
    AnotherKey,
    NoChain,
    Foreign,
    Later(u64),
    Refuse,
    Down,
}

impl std::fmt::Debug for Will {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Will")
    }
}

pub(super) fn root(name: &str) -> (Ca<'static, KeyPair>, CertificateDer<'static>) {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.not_after = date_time_ymd(2040, 1, 1);
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    (Ca::new(params, key), certificate.der().clone())
}

impl Scripted {
    fn sign_it(&self, ask: Ask<'_>, will: Option<&Will>) -> Vec<CertificateDer<'static>> {
        let mut request = CertificateSigningRequestParams::from_der(&ask.request.csr().into()).unwrap();
        let params = &mut request.params;
        let now = self.clock.wall().as_second();
        let at = |seconds: i64| date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds.try_into().unwrap());
        (params.not_before, params.not_after) = (at(now - 30), at(now + 86_000));
        params.is_ca = IsCa::ExplicitNoCa;
        if let Some(Will::Bend(bend)) = will {
            bend(params);
        }
        let signed = match will {
            Some(Will::AnotherKey) => params.signed_by(&KeyPair::generate().unwrap(), &self.ca),
            Some(Will::Foreign) => params.signed_by(&request.public_key, &root("foreign").0),
            _ => params.signed_by(&request.public_key, &self.ca),
        };
        match will {
            Some(Will::NoChain) => vec![],
            _ => vec![signed.unwrap().der().clone()],
        }
    }
}

impl Authority for Scripted {
    fn roots<'a>(&'a self, _: &'a mut IssueFacts) -> Pending<'a, Result<Arc<Roots>, IssueError>> {
        Box::pin(async { Ok(Arc::clone(&self.roots)) })
    }

    fn sign<'a>(&'a self, ask: Ask<'a>, _: &'a mut IssueFacts) -> Pending<'a, Result<Signed, IssueError>> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        self.renewed.fetch_add(usize::from(ask.held.is_some()), Ordering::SeqCst);
        let will = {
            let mut will = self.will.lock().unwrap();
            if will.is_empty() { None } else { Some(will.remove(0)) }
        };
        Box::pin(async move {
            match &will {
                Some(Will::Later(after)) => Ok(Signed::Later(Duration::from_secs(*after))),
                Some(Will::Refuse) => {
                    Err(IssueError::Refused { reason: Reason::GrantRejected, detail: "no".into() })
                }
                Some(Will::Down) => Err(IssueError::Retry {
                    reason: Reason::IssuerUnavailable,
                    detail: "down".into(),
                    after: None,
                }),
                will => Ok(Signed::Chain(self.sign_it(ask, will.as_ref()))),
            }
        })
    }

    fn revoke<'a>(
        &'a self,
        _: &'a Order,
        _: &'a Signers,
        certificate: &'a [u8],
    ) -> Pending<'a, Result<(), IssueError>> {
        Box::pin(async move {
            X509CertificationRequest::from_der(certificate).unwrap_err();
            x509_parser::parse_x509_certificate(certificate).unwrap();
            Ok(())
        })
    }

    fn endpoints(&self) -> Arc<Vec<Target>> {
        Arc::default()
    }
}

struct Stage {
    engine: X509<Scripted>,
    clock: Arc<ManualClock>,
    order: Order,
    directory: tempfile::TempDir,
}

impl Stage {
    fn new(path: bool) -> Self {
        use std::os::unix::fs::PermissionsExt as _;
        let clock = ManualClock::at(Timestamp::from_second(NOW).unwrap());
        let (ca, certificate) = root("root");
        let roots = Arc::new(Roots::of(vec![certificate]).unwrap());
        let authority = Scripted {
            ca,
            roots,
            will: Mutex::default(),
            asked: AtomicUsize::new(0),
            renewed: AtomicUsize::new(0),
            clock: Arc::clone(&clock),
        };
        let directory = tempfile::tempdir().unwrap();
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        let terms = CertificateTerms {
            subject: Subject { uris: vec![URI.into()], ..Subject::default() },
            path: path.then(|| directory.path().join("pair.pem")),
            ..CertificateTerms::default()
        };
        let engine = X509::new(authority, Vault::default(), Arc::clone(&clock) as Arc<dyn Clock>);
        Self { engine, order: order(terms), clock, directory }
    }

    fn will(&self, will: impl IntoIterator<Item = Will>) {
        self.engine.authority().will.lock().unwrap().extend(will);
    }

    fn terms(&mut self, change: impl FnOnce(&mut CertificateTerms)) {
        let Wants::Certificate(mut terms) = self.order.terms.wants.clone() else { panic!("a certificate") };
        change(&mut terms);
        self.order = order(terms);
    }

    async fn issue(&self, held: Option<&Credential>) -> Result<Credential, IssueError> {
        let signers = Signers { client: None, before: None, dpop: None, certificates: vec![] };
        self.engine.issue(&self.order, &signers, held).await.result
    }

    fn counts(&self) -> (usize, usize) {
        let authority = self.engine.authority();
        (authority.asked.load(Ordering::SeqCst), authority.renewed.load(Ordering::SeqCst))
    }
}

/// The certificate for `request`, good on the day that the clock of these tests shows.
pub(super) fn signed(ca: &Ca<'static, KeyPair>, request: &Enrolment) -> CertificateDer<'static> {
    let mut read = CertificateSigningRequestParams::from_der(&request.csr().into()).unwrap();
    (read.params.not_before, read.params.not_after) =
        (date_time_ymd(2023, 11, 14), date_time_ymd(2023, 11, 15));
    read.params.is_ca = IsCa::ExplicitNoCa;
    read.params.use_authority_key_identifier_extension = true;
    read.signed_by(ca).unwrap().der().clone()
}

pub(super) fn order(terms: CertificateTerms) -> Order {
    Order {
        identity: "payments".into(),
        credential: "tls".into(),
        issuer: "ca".into(),
        client_id: "payments".into(),
        resource: None,
        scope: Arc::from([]),
        require_aud: false,
        max_ttl: DAY,
        binding: Binding::Mtls,
        terms: Arc::new(Terms { wants: Wants::Certificate(terms), ..Terms::default() }),
        max_uses: None,
        instance: None,
    }
}

fn reason(result: Result<Credential, IssueError>) -> &'static str {
    result.expect_err("it had to be refused").reason().as_str()
}

/// Where the stage keeps its pair.
fn file(path: &std::path::Path) -> PairFile<'_> {
    static PLAIN: std::sync::LazyLock<Vault> = std::sync::LazyLock::new(Vault::default);
    PairFile::new(path, &PLAIN, "payments", "tls")
}

#[tokio::test]
async fn a_request_says_exactly_what_policy_says() {
    // X5-01
    for kind in [KeyKind::P256, KeyKind::P384, KeyKind::Ed25519] {
        let subject = Subject {
            uris: vec![URI.into()],
            dns: vec!["payments.example".into()],
            ips: vec![Ipv4Addr::LOCALHOST.into()],
            common_name: None,
            server: true,
        };
        let request = Enrolment::begin(&subject, kind).unwrap();
        let (_, read) = X509CertificationRequest::from_der(request.csr()).unwrap();
        assert_eq!(read.certification_request_info.subject.iter().count(), 0, "an empty subject");
        let extensions: Vec<_> = read.requested_extensions().unwrap().collect();
        let text = format!("{extensions:?}");
        for said in
            [URI, "payments.example", "client_auth: true", "server_auth: true", "KeyUsage { flags: 1 }"]
        {
            assert!(text.contains(said), "{said} in {text}");
        }
        assert_eq!(extensions.len(), 3, "{text}");
        let named = Subject { common_name: Some("payments".into()), server: false, ..subject };
        let request = Enrolment::begin(&named, kind).unwrap();
        let (_, read) = X509CertificationRequest::from_der(request.csr()).unwrap();
        assert_eq!(read.certification_request_info.subject.to_string(), "CN=payments");
    }
}

#[tokio::test]
async fn what_was_asked_for_is_a_credential() {
    // X5-02, MT-08
    let stage = Stage::new(false);
    let credential = stage.issue(None).await.unwrap();
    assert_eq!(credential.binding(), Binding::Mtls);
    assert_eq!(credential.window.life(), Duration::from_secs(86_000));
    let Payload::Certificate { certificate, bundle } = &credential.payload else { panic!("a certificate") };
    assert_eq!(certificate.name().value, URI);
    assert!(bundle.starts_with("-----BEGIN CERTIFICATE-----"));
    assert!(certificate.private_pem().is_none());
    assert_eq!(
        stage
            .engine
            .revoke(
                &stage.order,
                &Signers { client: None, before: None, dpop: None, certificates: vec![] },
                &credential
            )
            .await,
        Ok(())
    );
}

#[tokio::test]
async fn whatever_is_wrong_with_a_certificate_has_its_reason() {
    // X5-02: one mutation for each check.
    let bend = |bend: fn(&mut CertificateParams)| Will::Bend(Box::new(bend));
    let name = |name: &str| SanType::DnsName(name.try_into().unwrap());
    let _ = name;
    for (will, wanted) in [
        (
            bend(|params| {
                params.subject_alt_names.push(SanType::DnsName("*.example.org".try_into().unwrap()))
            }),
            "CERT_REJECTED_NAMES",
        ),
        (
            bend(|params| {
                params.subject_alt_names.push(SanType::URI("spiffe://example.org/admin".try_into().unwrap()))
            }),
            "CERT_REJECTED_NAMES",
        ),
        (
            bend(|params| {
                params.subject_alt_names.push(SanType::Rfc822Name("a@example.org".try_into().unwrap()))
            }),
            "CERT_REJECTED_NAMES",
        ),
        (bend(|params| params.subject_alt_names.clear()), "CERT_REJECTED_NAMES"),
        (bend(|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)), "CERT_REJECTED_CA"),
        (bend(|params| params.key_usages.push(KeyUsagePurpose::KeyCertSign)), "CERT_REJECTED_CA"),
        (bend(|params| params.key_usages = vec![KeyUsagePurpose::KeyEncipherment]), "CERT_REJECTED_USAGE"),
        (bend(|params| params.key_usages.clear()), "CERT_REJECTED_USAGE"),
        (
            bend(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]),
            "CERT_REJECTED_USAGE",
        ),
        (bend(|params| params.extended_key_usages.clear()), "CERT_REJECTED_USAGE"),
        (
            bend(|params| params.extended_key_usages.push(ExtendedKeyUsagePurpose::CodeSigning)),
            "CERT_REJECTED_USAGE",
        ),
        (bend(|params| params.not_after += DAY), "CERT_REJECTED_LIFE"),
        (bend(|params| params.not_after -= DAY), "CERT_REJECTED_LIFE"),
        (Will::AnotherKey, "CERT_REJECTED_KEY"),
        (Will::NoChain, "CERT_REJECTED_FORM"),
        (Will::Foreign, "CERT_REJECTED_CHAIN"),
    ] {
        let stage = Stage::new(true);
        stage.will([will]);
        assert_eq!(reason(stage.issue(None).await), wanted);
        assert!(!stage.directory.path().join("pair.pem").exists(), "nothing refused is kept");
    }
}

#[tokio::test(start_paused = true)]
async fn a_certificate_of_the_near_future_is_waited_for() {
    // X5-04
    let begins = |seconds: u64| {
        Will::Bend(Box::new(move |params: &mut CertificateParams| {
            params.not_before += Duration::from_secs(30 + seconds);
        }))
    };
    let stage = Stage::new(false);
    stage.will([begins(30), begins(120)]);
    let started = tokio::time::Instant::now();
    stage.issue(None).await.unwrap();
    assert_eq!(started.elapsed().as_secs(), 30);
    assert_eq!(reason(stage.issue(None).await), "CLOCK_UNTRUSTED");
}

#[tokio::test]
async fn each_certificate_has_a_key_of_its_own_unless_policy_says_otherwise() {
    // X5-05
    let mut stage = Stage::new(true);
    let first = stage.issue(None).await.unwrap();
    let second = stage.issue(Some(&first)).await.unwrap();
    let kid = |credential: &Credential| credential.certificate().unwrap().kid().to_owned();
    assert_ne!(kid(&first), kid(&second));
    stage.terms(|terms| terms.same_key = true);
    let third = stage.issue(Some(&second)).await.unwrap();
    assert_eq!((kid(&second), stage.counts()), (kid(&third), (3, 2)));
    assert_ne!(second.bound.thumbprint(), third.bound.thumbprint(), "MT-08: the certificate is another");
}

#[tokio::test]
async fn a_restart_asks_for_nothing_that_is_kept() {
    // X5-03
    let mut stage = Stage::new(true);
    let first = stage.issue(None).await.unwrap();
    let again = stage.issue(None).await.unwrap();
    assert_eq!(first.bound.thumbprint(), again.bound.thumbprint());
    assert_eq!(stage.counts(), (1, 0));
    stage.clock.advance(Duration::from_secs(50_000));
    let again = stage.issue(None).await.unwrap();
    assert_eq!((again.window.spent.as_secs(), again.window.life().as_secs()), (50_030, 36_000));
    // Past two thirds it is renewed by what is kept, and when it has ended it is asked for anew (CA-02).
    stage.clock.advance(Duration::from_secs(10_000));
    let renewed = stage.issue(None).await.unwrap();
    assert_ne!(first.bound.thumbprint(), renewed.bound.thumbprint());
    assert_eq!(stage.counts(), (2, 1));
    stage.clock.advance(2 * DAY);
    stage.issue(Some(&renewed)).await.unwrap();
    assert_eq!(stage.counts(), (3, 1), "one that has ended proves nothing");
    // What is kept under other settings is not what is wanted now.
    stage.terms(|terms| terms.subject.uris = vec!["spiffe://example.org/other".into()]);
    assert_eq!(
        stage.issue(None).await.unwrap().certificate().unwrap().name().value,
        "spiffe://example.org/other"
    );
}

#[tokio::test]
async fn what_has_to_die_is_not_taken_up_by_the_next_start() {
    // X5-07
    let stage = Stage::new(true);
    let path = stage.directory.path().join("pair.pem");
    let leaf = |credential: &Credential| credential.certificate().unwrap().chain()[0].clone();
    let first = stage.issue(None).await.unwrap();
    let second = stage.issue(Some(&first)).await.unwrap();
    assert!(!file(&path).forget(&leaf(&first)).unwrap(), "another one is kept by now");
    assert!(file(&path).forget(&leaf(&second)).unwrap());
    assert!(!path.exists() && !file(&path).forget(&leaf(&second)).unwrap());
    let third = stage.issue(None).await.unwrap();
    assert_ne!(second.bound.thumbprint(), third.bound.thumbprint());
}

#[tokio::test]
async fn one_for_a_trial_or_for_one_process_is_kept_nowhere_and_takes_the_place_of_none() {
    // KEY-06, X5-06
    let mut stage = Stage::new(true);
    let path = stage.directory.path().join("pair.pem");
    let lives = stage.issue(None).await.unwrap();
    let of_process = Order { instance: Some(Instance { pid: 7, start: 7 }), ..stage.order.clone() };
    for order in [stage.order.clone().apart(), of_process] {
        stage.order = order;
        let other = stage.issue(None).await.unwrap();
        assert_ne!(lives.bound.thumbprint(), other.bound.thumbprint(), "the CA was asked");
        let kept = file(&path).read(false).unwrap().unwrap();
        assert_eq!(lives.bound.thumbprint(), Some(kept.thumbprint()));
    }
}

#[tokio::test]
async fn what_is_kept_is_used_while_it_lasts_if_the_ca_is_gone_at_a_restart() {
    // X5-03: past two thirds of its life it would be renewed first.
    let stage = Stage::new(true);
    let first = stage.issue(None).await.unwrap();
    stage.clock.advance(Duration::from_secs(70_000));
    stage.will([Will::Down, Will::Later(60), Will::Refuse, Will::Refuse]);
    for _ in 0..3 {
        let kept = stage.issue(None).await.unwrap();
        assert_eq!(first.bound.thumbprint(), kept.bound.thumbprint());
        assert_eq!(kept.window.life(), Duration::from_secs(16_000), "and no longer than it lasts");
        assert_eq!(kept.window.spent, Duration::from_secs(70_030), "and renewed as soon as that can be");
    }
    assert_ne!(first.bound.thumbprint(), stage.issue(None).await.unwrap().bound.thumbprint());
    // One that has ended is no way out.
    stage.clock.advance(2 * DAY);
    stage.will([Will::Down]);
    assert_eq!(reason(stage.issue(None).await), "ISSUER_UNAVAILABLE");
}

#[tokio::test]
async fn a_file_that_is_no_use_is_not_the_cas_trouble() {
    // CLK-07: one identity's file holds up nobody else at the CA, and costs it few certificates.
    let mut stage = Stage::new(true);
    stage.terms(|terms| terms.same_key = true);
    let first = stage.issue(None).await.unwrap();
    let path = stage.directory.path().join("pair.pem");
    std::fs::remove_file(&path).unwrap();
    let waits = |result: Result<Credential, IssueError>| {
        let error = result.unwrap_err();
        assert!(matches!(&error, IssueError::Later { after, .. } if after.as_secs() >= 60), "{error}");
        assert_eq!(error.reason(), Reason::KeyUnavailable);
    };
    waits(stage.issue(Some(&first)).await);
    std::fs::create_dir(&path).unwrap();
    waits(stage.issue(None).await);
    assert_eq!(stage.counts().0, 1, "nothing was asked for");
}

#[tokio::test]
async fn what_may_not_be_renewed_is_asked_for_anew_once() {
    // CA-02
    let stage = Stage::new(false);
    let first = stage.issue(None).await.unwrap();
    stage.will([Will::Refuse]);
    stage.issue(Some(&first)).await.unwrap();
    assert_eq!(stage.counts(), (3, 1));
    stage.will([Will::Refuse, Will::Refuse]);
    assert_eq!(reason(stage.issue(Some(&first)).await), "GRANT_REJECTED");
    assert_eq!(stage.counts(), (5, 2));
    // One that is down is not asked twice at once.
    stage.will([Will::Down]);
    assert_eq!(reason(stage.issue(Some(&first)).await), "ISSUER_UNAVAILABLE");
    assert_eq!(stage.counts(), (6, 3));
}

#[tokio::test]
async fn what_is_undecided_is_asked_again_with_the_same_request() {
    // EST-02
    let stage = Stage::new(false);
    stage.will([Will::Later(60), Will::Later(60)]);
    for _ in 0..2 {
        let error = stage.issue(None).await.unwrap_err();
        assert!(matches!(&error, IssueError::Later { after, .. } if after.as_secs() == 60), "{error}");
    }
    let sent = Arc::clone(&stage.engine.undecided().0[&slot(&stage.order)].1);
    let credential = stage.issue(None).await.unwrap();
    let (_, read) = X509CertificationRequest::from_der(sent.csr()).unwrap();
    let leaf = &credential.certificate().unwrap().chain()[0];
    let (_, made) = x509_parser::parse_x509_certificate(leaf).unwrap();
    assert_eq!(read.certification_request_info.subject_pki.raw, made.public_key().raw);
    assert!(stage.engine.undecided().0.is_empty());
}

#[tokio::test]
async fn what_is_undecided_outlives_a_ca_that_is_down() {
    // EST-02: a person may be approving the very request that was sent.
    let stage = Stage::new(false);
    stage.will([Will::Later(60), Will::Down, Will::Later(60), Will::Refuse]);
    let mut sent = Vec::new();
    for _ in 0..3 {
        stage.issue(None).await.unwrap_err();
        sent.push(stage.engine.undecided().0[&slot(&stage.order)].1.csr().to_vec());
    }
    assert!(sent.iter().all(|csr| *csr == sent[0]));
    stage.issue(None).await.unwrap_err();
    assert!(stage.engine.undecided().0.is_empty(), "it was decided");
}

#[tokio::test]
async fn what_nobody_orders_again_is_let_go_with_its_key() {
    // EST-02: processes come and go while a person thinks.
    let mut stage = Stage::new(false);
    let of = |pid| Some(Instance { pid, start: 7 });
    for pid in 1..=3 {
        stage.order.instance = of(pid);
        stage.will([Will::Later(60)]);
        stage.issue(None).await.unwrap_err();
        stage.clock.advance(DAY / 4);
    }
    // The last of them is still there, and asks again.
    stage.clock.advance(DAY / 2);
    stage.will([Will::Later(60)]);
    stage.issue(None).await.unwrap_err();
    let left: Vec<_> = stage.engine.undecided().0.keys().filter_map(|(.., instance, _)| *instance).collect();
    assert_eq!(left, [Instance { pid: 3, start: 7 }]);
}

#[tokio::test]
async fn a_trial_does_not_use_up_what_is_being_decided() {
    // EST-02, MT-05: what comes of a trial is given back, and a person has approved the other request.
    let stage = Stage::new(true);
    stage.will([Will::Later(60)]);
    stage.issue(None).await.unwrap_err();
    let sent = Arc::clone(&stage.engine.undecided().0[&slot(&stage.order)].1);
    let signers = Signers { client: None, before: None, dpop: None, certificates: vec![] };
    let trial = stage.order.clone().apart();
    let tried = stage.engine.issue(&trial, &signers, None).await.result.unwrap();
    let of = |csr: &[u8]| {
        let (_, read) = X509CertificationRequest::from_der(csr).unwrap();
        read.certification_request_info.subject_pki.raw.to_vec()
    };
    let leaf = &tried.certificate().unwrap().chain()[0];
    let (_, made) = x509_parser::parse_x509_certificate(leaf).unwrap();
    assert_ne!(of(sent.csr()), made.public_key().raw);
    assert!(Arc::ptr_eq(&sent, &stage.engine.undecided().0[&slot(&stage.order)].1), "it still waits");
}

#[tokio::test]
async fn what_a_ca_was_asked_before_it_went_away_is_asked_again() {
    // ACM-03: the order was placed, or even fulfilled, and is found again by its request; unless other names are wanted now.
    let stage = Stage::new(false);
    stage.will([Will::Down]);
    assert_eq!(reason(stage.issue(None).await), "ISSUER_UNAVAILABLE");
    let sent = stage.engine.undecided().remove(&slot(&stage.order)).unwrap();
    let Wants::Certificate(terms) = &stage.order.terms.wants else { panic!() };
    assert!(sent.is_for(&terms.subject));
    let other = Subject { dns: vec!["other.example".into()], ..terms.subject.clone() };
    assert!(!sent.is_for(&other));
    stage.engine.undecided().insert(slot(&stage.order), Arc::clone(&sent), stage.clock.boot());
    let credential = stage.issue(None).await.unwrap();
    let (_, read) = X509CertificationRequest::from_der(sent.csr()).unwrap();
    let leaf = &credential.certificate().unwrap().chain()[0];
    let (_, made) = x509_parser::parse_x509_certificate(leaf).unwrap();
    assert_eq!(read.certification_request_info.subject_pki.raw, made.public_key().raw);
    assert!(stage.engine.undecided().remove(&slot(&stage.order)).is_none());
}

#[tokio::test]
async fn readers_never_see_a_key_beside_another_keys_certificate() {
    // X5-06: a thousand rotations, read all the while.
    let stage = Stage::new(true);
    let path = stage.directory.path().join("pair.pem");
    let mut held = stage.issue(None).await.unwrap();
    let done = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let reader = std::thread::spawn({
        let (path, done) = (path.clone(), Arc::clone(&done));
        move || {
            let mut read = 0_u32;
            while !done.load(Ordering::Relaxed) {
                // ClientCertificate::new refuses a pair that does not fit.
                file(&path).read(false).unwrap().expect("there is one at every moment");
                read += 1;
            }
            read
        }
    });
    for _ in 0..1000 {
        held = stage.issue(Some(&held)).await.unwrap();
    }
    done.store(true, Ordering::Relaxed);
    assert!(reader.join().unwrap() > 0);
    let kept = file(&path).read(false).unwrap().unwrap();
    assert_eq!(Some(kept.thumbprint()), held.bound.thumbprint());
}

#[test]
fn a_root_is_taken_by_its_sum_or_not_at_all() {
    // CA-03
    let (one, other) = (root("one").1, root("other").1);
    let sum = |der: &CertificateDer<'_>| {
        let sum = ring::digest::digest(&ring::digest::SHA256, der);
        <[u8; 32]>::try_from(sum.as_ref()).unwrap()
    };
    let roots = Roots::pinned(vec![other.clone(), one.clone()], &sum(&one)).unwrap();
    assert_eq!(roots.pem().matches("BEGIN").count(), 1, "nothing comes along with it");
    let wrong = Roots::pinned(vec![other], &sum(&one)).unwrap_err();
    assert!(wrong.to_string().contains("nothing is trusted on first use"), "{wrong}");
    assert!(matches!(Roots::read(std::path::Path::new("/nowhere")), Err(RootsError::File { .. })));
}

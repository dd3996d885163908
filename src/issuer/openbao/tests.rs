//! Whole exchanges with a server in a script: what is sent, what is not, and what comes of each answer.

use std::{collections::BTreeMap, fs};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, IsCa, Issuer as Ca,
    KeyPair, date_time_ymd,
};
use serde_json::{Value, json};

use super::*;
use crate::{
    clock::{ManualClock, SystemDice},
    credential::{Binding, Payload},
    issuer::{
        Reason, Rejected,
        conditions::{Conditions, tests::jwt},
        script::{Answer, Asks, Script, Seen},
        terms::{CertificateTerms, ClientAuth, LeaseTerms, Terms},
        token_file::TokenFile,
        x509::{Ask, Authority as _, Signed},
    },
    jose::{Algorithm, Signer, Unverified},
    keys::{
        CertificateSettings, Certificates, ClientCertificate, Custody, Enrolment, Key, KeyKind, Keyring,
        SignedBy, Subject,
    },
};
use std::time::Duration;

const NOW: i64 = 1_700_000_000;
const URI: &str = "spiffe://example.org/payments";
const TOKEN: &str = "s.canary-of-a-token";
const LEASE: &str = "database/creds/payments/canary-of-a-lease";

struct Stage {
    script: Script,
    bao: OpenBao,
    clock: Arc<ManualClock>,
    order: Order,
    signers: Signers,
    directory: tempfile::TempDir,
}

fn settings(url: &str) -> OpenBaoSettings {
    OpenBaoSettings {
        name: "bao".into(),
        url: url.into(),
        namespace: None,
        auth_mount: None,
        audience: Some("https://bao.example".into()),
        inline_auth: false,
        ca_file: None,
        roots: None,
        dev: true,
        timeout: Duration::from_secs(10),
    }
}

fn database(fields: &[&str]) -> Wants {
    let fields = fields.iter().map(|field| (*field).to_owned()).collect();
    Wants::Lease(LeaseTerms { at: "database/creds/payments".into(), fields })
}

fn signed_at(at: &str) -> CertificateTerms {
    CertificateTerms {
        subject: Subject {
            uris: vec![URI.into()],
            dns: vec!["a.example".into(), "b.example".into()],
            ips: vec![[192, 0, 2, 7].into()],
            ..Subject::default()
        },
        at: Some(at.into()),
        ..CertificateTerms::default()
    }
}

impl Stage {
    async fn new(wants: Wants) -> Self {
        Self::with(wants, |_| {}).await
    }

    async fn with(wants: Wants, change: impl FnOnce(&mut OpenBaoSettings)) -> Self {
        Self::of(Script::plain().await, tempfile::tempdir().unwrap(), wants, change)
    }

    /// One that asks for client certificates.
    async fn asking(wants: Wants) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (script, root) = Script::asking(&directory, &["localhost"], Some(Asks::anybody())).await;
        let mut stage = Self::of(script, directory, wants, |settings| settings.ca_file = Some(root));
        stage.proved_by(ClientAuth::TlsClientAuth);
        stage.signers.certificates = vec![certificate("one"), certificate("before")];
        stage
    }

    fn of(
        script: Script,
        directory: tempfile::TempDir,
        wants: Wants,
        change: impl FnOnce(&mut OpenBaoSettings),
    ) -> Self {
        let mut settings = settings(&script.url);
        change(&mut settings);
        let clock = ManualClock::at(Timestamp::from_second(NOW).unwrap());
        let bao = OpenBao::new(settings, Arc::clone(&clock) as _, SystemDice::shared()).unwrap();
        let binding = if matches!(wants, Wants::Lease(_)) { Binding::Bearer } else { Binding::Mtls };
        let order = Order {
            identity: "payments".into(),
            credential: "database".into(),
            issuer: "bao".into(),
            client_id: "payments".into(),
            resource: None,
            scope: Arc::from([]),
            require_aud: false,
            max_ttl: Duration::from_secs(900),
            binding,
            terms: Arc::new(Terms { wants, ..Terms::default() }),
            max_uses: None,
            instance: None,
        };
        let key: Arc<dyn Signer> = Arc::new(Key::generate(Algorithm::Es256).unwrap());
        let signers = Signers { client: Some(key), before: None, dpop: None, certificates: Vec::new() };
        Self { script, bao, clock, order, signers, directory }
    }

    fn proved_by(&mut self, client_auth: ClientAuth) {
        Arc::make_mut(&mut self.order.terms).client_auth = client_auth;
        self.signers.client = None;
    }

    async fn issue(&self, held: Option<&Credential>) -> Issued {
        self.bao.issue(&self.order, &self.signers, held).await
    }

    async fn get(&self) -> Result<Credential, IssueError> {
        self.issue(None).await.result
    }

    async fn reason(&self) -> Reason {
        self.get().await.unwrap_err().reason()
    }

    fn lines(&self) -> Vec<String> {
        let lines = self.script.diary().into_iter().map(|seen| seen.line);
        lines.map(|line| line.trim_end_matches(" HTTP/1.1").replace("/v1/", "")).collect()
    }

    fn last(&self) -> Seen {
        self.script.diary().pop().unwrap()
    }
}

fn certificate(identity: &str) -> Arc<ClientCertificate> {
    let settings = CertificateSettings {
        custody: Custody::Memory,
        signed_by: SignedBy::Itself,
        san_uri: None,
        lifetime: Duration::from_secs(30 * 24 * 3600),
        export: false,
    };
    let wanted = BTreeMap::from([(Arc::from(identity), settings)]);
    let now = Timestamp::from_second(NOW).unwrap();
    let opened = Certificates::open(&wanted, &Certificates::default(), &Keyring::default(), now).unwrap();
    opened.of(&identity.into(), now).remove(0)
}

fn header(seen: &Seen, name: &str) -> Option<String> {
    let mut all = seen.head.lines().filter_map(|line| line.split_once(": "));
    all.find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned())
}

fn body(seen: &Seen) -> Value {
    serde_json::from_str(&seen.body).unwrap()
}

fn login() -> Answer {
    logged_in(json!({}))
}

fn logged_in(with: Value) -> Answer {
    let mut auth = json!({
        "client_token": TOKEN, "accessor": "a", "policies": ["default"], "lease_duration": 300, "renewable": true,
        "token_type": "service", "orphan": true, "mfa_requirement": null, "num_uses": 0,
    });
    for (name, value) in with.as_object().unwrap() {
        auth[name] = value.clone();
    }
    Answer::json(
        200,
        json!({"request_id": "r", "lease_id": "", "lease_duration": 0, "data": null, "auth": auth}),
    )
}

fn renewed_login(seconds: u64) -> Answer {
    logged_in(json!({"lease_duration": seconds}))
}

fn leased(seconds: u64) -> Answer {
    values(seconds, &json!({"username": "v-payments-1", "password": "canary-1"}))
}

fn values(seconds: u64, data: &Value) -> Answer {
    let all = json!({"lease_id": LEASE, "lease_duration": seconds, "renewable": true, "data": data});
    Answer::json(200, all)
}

fn renewed(seconds: u64) -> Answer {
    Answer::json(200, json!({"lease_id": LEASE, "lease_duration": seconds, "renewable": true, "data": null}))
}

fn done() -> Answer {
    Answer::json(204, "")
}

fn refused(status: u16, words: &[&str]) -> Answer {
    Answer::json(status, json!({ "errors": words }))
}

fn told(credential: &Credential) -> Vec<(&str, &str)> {
    let Payload::Values { values, .. } = &credential.payload else { panic!("values") };
    values.iter().map(|(name, value)| (name.as_str(), value.expose_str().unwrap())).collect()
}

#[tokio::test]
async fn a_lease_has_a_login_of_its_own_that_ends_with_it() {
    // CA-04, S37, PKJ-12
    let stage = Stage::with(database(&["username", "password"]), |settings| {
        settings.namespace = Some("team/payments".into());
    })
    .await;
    stage.script.will([login(), leased(300)]);
    let issued = stage.issue(None).await;
    assert_eq!(issued.facts.http_status, Some(200));
    let credential = issued.result.unwrap();
    assert_eq!(told(&credential), [("password", "canary-1"), ("username", "v-payments-1")]);
    assert_eq!((credential.window.life().as_secs(), credential.binding()), (300, Binding::Bearer));
    assert_eq!(stage.lines(), ["POST auth/jwt/login", "GET database/creds/payments"]);
    let [asked, read] = &stage.script.diary()[..] else { panic!("two requests") };
    let said = body(asked);
    assert_eq!((said["role"].as_str(), said.as_object().unwrap().len()), (Some("payments"), 2));
    let claims: Value = Unverified::parse(said["jwt"].as_str().unwrap()).unwrap().claims().unwrap();
    assert_eq!(
        (&claims["iss"], &claims["sub"], &claims["aud"]),
        (&json!("payments"), &json!("payments"), &json!("https://bao.example"))
    );
    for seen in [asked, read] {
        assert_eq!(header(seen, "x-vault-request").as_deref(), Some("true"));
        assert_eq!(header(seen, "x-vault-namespace").as_deref(), Some("team/payments"));
    }
    assert_eq!(
        (header(asked, "x-vault-token"), header(read, "x-vault-token").as_deref()),
        (None, Some(TOKEN))
    );
    // Nothing of it is shown by accident.
    let shown = format!("{:?} {credential:?}", stage.bao);
    assert!(!shown.contains("canary"), "{shown}");

    stage.script.will([done()]);
    stage.bao.revoke(&stage.order, &stage.signers, &credential).await.unwrap();
    assert_eq!(stage.last().line, "POST /v1/auth/token/revoke-self HTTP/1.1");
    assert_eq!(header(&stage.last(), "x-vault-token").as_deref(), Some(TOKEN));

    // Another attempt is another login by another assertion.
    stage.script.will([login(), leased(300)]);
    let again = stage.get().await.unwrap();
    assert_eq!(again.fingerprint, credential.fingerprint, "over the values, and nothing else");
    let posts = stage.script.posts();
    assert_ne!(body(&posts[0])["jwt"], body(&posts[2])["jwt"]);
}

#[tokio::test]
async fn whoever_proves_who_asks_is_shown_where_it_is_known() {
    // CA-04, WIM-11, MT-03
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    let written = jwt(
        json!({"alg": "RS256"}),
        json!({"sub": "system:a:b", "aud": ["https://bao.example"], "exp": NOW + 60}),
    );
    fs::write(&path, &written).unwrap();
    let conditions =
        Conditions { claims: [("sub".into(), "system:a:b".into())].into(), ..Conditions::default() };
    let mut stage =
        Stage::with(database(&[]), |settings| settings.auth_mount = Some("kubernetes".into())).await;
    stage.proved_by(ClientAuth::FederatedJwt(TokenFile { path, conditions }));
    stage.script.will([login(), leased(300)]);
    stage.get().await.unwrap();
    let asked = &stage.script.diary()[0];
    assert_eq!(asked.line, "POST /v1/auth/kubernetes/login HTTP/1.1");
    assert_eq!(body(asked), json!({"role": "payments", "jwt": written}));

    let stage = Stage::asking(database(&[])).await;
    stage.script.will([login(), leased(300)]);
    let credential = stage.get().await.unwrap();
    let [asked, read] = &stage.script.diary()[..] else { panic!("two requests") };
    assert_eq!(asked.line, "POST /v1/auth/cert/login HTTP/1.1");
    assert_eq!(body(asked), json!({"name": "payments"}));
    let ours = &stage.signers.certificates[0].chain()[0];
    assert_eq!([asked.certificate.as_ref(), read.certificate.as_ref()], [Some(ours), Some(ours)]);
    stage.script.will([done()]);
    stage.bao.revoke(&stage.order, &stage.signers, &credential).await.unwrap();
    assert_eq!(stage.last().certificate.as_ref(), Some(ours));
}

#[tokio::test]
async fn the_key_and_the_certificate_before_stand_in_until_the_server_knows_the_new_ones() {
    // KEY-06, MT-05
    let mut stage = Stage::new(database(&[])).await;
    stage.signers.before = Some(Arc::new(Key::generate(Algorithm::Es256).unwrap()));
    stage.script.will([refused(400, &["error validating token"]), login(), leased(300)]);
    let issued = stage.issue(None).await;
    assert!(issued.facts.key_fallback);
    issued.result.unwrap();
    let kids: Vec<String> = stage
        .script
        .posts()
        .iter()
        .map(|post| {
            let said = body(post);
            let token = Unverified::parse(said["jwt"].as_str().unwrap()).unwrap();
            token.header["kid"].as_str().unwrap().to_owned()
        })
        .collect();
    let known = |key: &Option<Arc<dyn Signer>>| key.as_ref().unwrap().kid().to_owned();
    assert_eq!(kids, [known(&stage.signers.client), known(&stage.signers.before)]);

    let stage = Stage::asking(database(&[])).await;
    stage.script.will([refused(400, &["invalid certificate"]), login(), leased(300)]);
    assert!(stage.issue(None).await.facts.key_fallback);
    let before = &stage.signers.certificates[1].chain()[0];
    assert_eq!(stage.last().certificate.as_ref(), Some(before));
    // The second no holds.
    stage.script.will([refused(400, &["invalid certificate"]), refused(403, &["permission denied"])]);
    assert_eq!(stage.reason().await, Reason::ClientAuthRejected);
    // Without any, nothing is sent.
    let mut stage = Stage::asking(database(&[])).await;
    stage.signers.certificates.clear();
    assert_eq!(stage.reason().await, Reason::KeyUnavailable);
    assert!(stage.script.diary().is_empty());
}

#[tokio::test]
async fn a_login_may_go_with_the_request_where_nothing_is_leased() {
    // CA-04: OpenBao's inline auth.
    let kv = Wants::Lease(LeaseTerms { at: "secret/data/app".into(), fields: vec!["key".into()] });
    let stage = Stage::with(kv, |settings| {
        settings.inline_auth = true;
        settings.namespace = Some("team".into());
    })
    .await;
    let entry = json!({"lease_id": "", "lease_duration": 0, "renewable": false,
        "data": {"data": {"key": "canary", "other": "o"}, "metadata": {"version": 1}}});
    stage.script.will([Answer::json(200, entry)]);
    let credential = stage.get().await.unwrap();
    assert_eq!(told(&credential), [("key", "canary")]);
    assert_eq!(stage.lines(), ["GET secret/data/app"]);
    let seen = stage.last();
    assert_eq!(header(&seen, "x-vault-inline-auth-path").as_deref(), Some("auth/jwt/login"));
    assert_eq!(header(&seen, "x-vault-token"), None);
    let parameter = |name: &str| -> Value {
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(header(&seen, name).unwrap()).unwrap()).unwrap()
    };
    assert_eq!(parameter("x-vault-inline-auth-parameter-1"), json!({"key": "role", "value": "payments"}));
    let jwt = parameter("x-vault-inline-auth-parameter-2");
    assert_eq!(jwt["key"], "jwt");
    Unverified::parse(jwt["value"].as_str().unwrap()).unwrap();
    // Whose failure it is, is told by a header.
    let failed = refused(403, &["permission denied"]).with("x-vault-inline-auth-failed", "true");
    stage.script.will([failed, refused(403, &["1 error occurred:\n\t* permission denied\n\n"])]);
    assert_eq!(stage.reason().await, Reason::ClientAuthRejected);
    let error = stage.get().await.unwrap_err();
    assert!(
        matches!(&error, IssueError::Refused { detail, .. } if detail.contains("a policy for secret/data/app")),
        "{error}"
    );
    assert!(error.to_string().contains("inline_auth = false"), "{error}");

    // What is leased is had with a token, and the server is not asked twice for what it said once.
    let stage = Stage::with(database(&[]), |settings| settings.inline_auth = true).await;
    let no = || refused(400, &["requests with inline authentication cannot generate leases"]);
    stage.script.will([no(), login(), leased(300), login(), leased(300)]);
    stage.get().await.unwrap();
    stage.get().await.unwrap();
    let at = "GET database/creds/payments";
    assert_eq!(stage.lines(), [at, "POST auth/jwt/login", at, "POST auth/jwt/login", at]);
    // With a certificate.
    let mut stage = Stage::asking(database(&[])).await;
    let (script, directory) = (stage.script.clone(), tempfile::tempdir().unwrap());
    let root = stage.directory.path().join("localhost.pem");
    let other = Stage::of(script, directory, database(&[]), |settings| {
        (settings.ca_file, settings.inline_auth) = (Some(root), true);
    });
    stage.bao = other.bao;
    stage.script.will([Answer::json(200, json!({"data": {"a": "b"}, "lease_id": ""}))]);
    stage.get().await.unwrap();
    let seen = stage.last();
    let named = URL_SAFE_NO_PAD.decode(header(&seen, "x-vault-inline-auth-parameter-1").unwrap()).unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&named).unwrap(), json!({"key": "name", "value": "payments"}));
    assert_eq!(header(&seen, "x-vault-inline-auth-path").as_deref(), Some("auth/cert/login"));
    assert!(seen.certificate.is_some());
}

#[tokio::test]
async fn a_lease_is_renewed_with_its_login_for_as_long_as_it_was_given_first() {
    // CA-04, CLK-08
    let stage = Stage::new(database(&[])).await;
    stage.script.will([login(), leased(300)]);
    let first = stage.get().await.unwrap();
    stage.clock.advance(Duration::from_secs(200));
    stage.script.will([renewed_login(300), renewed(300)]);
    let issued = stage.issue(Some(&first)).await;
    assert!(!issued.facts.lease_replaced);
    let second = issued.result.unwrap();
    assert_eq!((told(&second), second.fingerprint), (told(&first), first.fingerprint));
    assert_eq!(second.window.until.since(first.window.until).as_secs(), 200);
    assert_eq!(stage.lines()[2..], ["POST auth/token/renew-self", "POST sys/leases/renew"]);
    let diary = stage.script.diary();
    assert_eq!(
        (body(&diary[2]), body(&diary[3])),
        (json!({"increment": "300s"}), json!({"lease_id": LEASE, "increment": 300}))
    );
    assert!(diary[2..].iter().all(|seen| header(seen, "x-vault-token").as_deref() == Some(TOKEN)));
    assert!(diary.iter().all(|seen| !seen.line.contains("canary")), "no lease id stands in a URL");
    // A server in trouble is no reason for another lease: the one that is held goes on until it ends.
    for trouble in [refused(503, &["Vault is sealed"]), refused(429, &["rate limit"]), Answer::HangUp] {
        stage.script.will([trouble]);
        let error = stage.issue(Some(&second)).await.result.unwrap_err();
        assert!(matches!(error, IssueError::Retry { .. }), "{error}");
    }
    // One that has ended is not renewed.
    stage.clock.advance(Duration::from_secs(301));
    stage.script.will([login(), leased(300)]);
    stage.issue(Some(&second)).await.result.unwrap();
    assert_eq!(stage.lines()[7..], ["POST auth/jwt/login", "GET database/creds/payments"]);
}

#[tokio::test]
async fn where_the_server_gives_less_there_is_another_lease_in_time() {
    // CA-04: a lease that shrinks, because its max_ttl is near; one that is gone; one that cannot be renewed.
    let stage = Stage::new(database(&["password"])).await;
    let other = || values(300, &json!({"username": "v-2", "password": "canary-2"}));
    stage.script.will([login(), leased(300)]);
    let first = stage.get().await.unwrap();
    // Half of it is of use still.
    stage.script.will([renewed_login(300), renewed(150)]);
    let second = stage.issue(Some(&first)).await.result.unwrap();
    assert_eq!((second.window.life().as_secs(), second.fingerprint), (150, first.fingerprint));
    // Less is not, whichever of the two gives it.
    for (of_login, of_lease) in [(300, 149), (149, 300)] {
        stage.script.will([renewed_login(of_login), renewed(of_lease), login(), other()]);
        let issued = stage.issue(Some(&second)).await;
        assert!(issued.facts.lease_replaced);
        let third = issued.result.unwrap();
        assert_eq!((told(&third), third.window.life().as_secs()), (vec![("password", "canary-2")], 300));
        assert_ne!(third.fingerprint, first.fingerprint);
    }
    // If no other can be had, a little more of the old one is better than none.
    stage.clock.advance(Duration::from_secs(100));
    stage.script.will([renewed_login(300), renewed(149), refused(503, &["Vault is sealed"])]);
    let fourth = stage.issue(Some(&second)).await.result.unwrap();
    assert_eq!((fourth.window.life().as_secs(), fourth.fingerprint), (149, first.fingerprint));
    stage.script.will([renewed_login(300), renewed(20), refused(503, &["Vault is sealed"])]);
    assert_eq!(stage.issue(Some(&second)).await.result.unwrap_err().reason(), Reason::IssuerUnavailable);
    // Somebody revoked it.
    stage.script.will([renewed_login(300), refused(400, &["lease not found"]), login(), other()]);
    assert!(stage.issue(Some(&second)).await.facts.lease_replaced);
    stage.script.will([refused(403, &["permission denied"]), login(), other()]);
    assert!(stage.issue(Some(&second)).await.facts.lease_replaced);

    let fixed =
        json!({"lease_id": LEASE, "lease_duration": 300, "renewable": false, "data": {"password": "x"}});
    stage.script.will([login(), Answer::json(200, fixed)]);
    let fixed = stage.get().await.unwrap();
    let before = stage.lines().len();
    stage.script.will([login(), other()]);
    assert!(stage.issue(Some(&fixed)).await.facts.lease_replaced);
    assert_eq!(
        stage.lines()[before..],
        ["POST auth/jwt/login", "GET database/creds/payments"],
        "it is not tried"
    );
}

#[tokio::test]
async fn nothing_at_the_server_outlives_what_is_handed_out() {
    // CLK-04, S36: a host that is gone ends nothing.
    let stage = Stage::new(database(&[])).await;
    stage.script.will([
        logged_in(json!({"lease_duration": 2_764_800})),
        leased(3600),
        renewed_login(900),
        renewed(900),
    ]);
    let issued = stage.issue(None).await;
    assert_eq!(issued.facts.cut_life_from, Some(Duration::from_secs(3600)));
    assert_eq!(issued.result.unwrap().window.life().as_secs(), 900);
    assert_eq!(stage.lines()[2..], ["POST auth/token/renew-self", "POST sys/leases/renew"]);
    let diary = stage.script.diary();
    assert_eq!(
        (body(&diary[2])["increment"].clone(), body(&diary[3])["increment"].clone()),
        (json!("900s"), json!(900))
    );
    // The login ends first: so does the lease.
    stage.script.will([
        logged_in(json!({"lease_duration": 60})),
        leased(300),
        renewed_login(60),
        renewed(60),
    ]);
    assert_eq!(stage.get().await.unwrap().window.life().as_secs(), 60);
    // Where it may not be shortened, it is used no longer all the same, and never renewed.
    let denied = || refused(403, &["1 error occurred:\n\t* permission denied\n\n"]);
    stage.script.will([logged_in(json!({"lease_duration": 7200})), leased(3600), denied()]);
    let held = stage.get().await.unwrap();
    assert_eq!(held.window.life().as_secs(), 900);
    stage.script.will([login(), leased(300)]);
    assert!(stage.issue(Some(&held)).await.facts.lease_replaced);
}

#[tokio::test]
async fn a_login_by_certificate_is_renewed_over_the_same_one_or_not_at_all() {
    // CA-04, GHSA-7ccv-rp6m-rffr
    let mut stage = Stage::asking(database(&[])).await;
    stage.script.will([login(), leased(300)]);
    let held = stage.get().await.unwrap();
    stage.signers.certificates.insert(0, certificate("next"));
    stage.script.will([renewed_login(300), renewed(300)]);
    let held = stage.issue(Some(&held)).await.result.unwrap();
    let same = &stage.signers.certificates[1].chain()[0];
    assert_eq!(stage.last().certificate.as_ref(), Some(same));
    stage.signers.certificates.remove(1);
    stage.script.will([login(), leased(300)]);
    let issued = stage.issue(Some(&held)).await;
    assert!(issued.facts.lease_replaced);
    issued.result.unwrap();
    assert_eq!(stage.lines()[4..], ["POST auth/cert/login", "GET database/creds/payments"]);
}

#[tokio::test]
async fn a_lease_hangs_on_no_login_that_could_not_be_ended() {
    // CA-04, S37
    for (with, told) in [
        (json!({"token_type": "batch", "renewable": false}), "token_type to \"service\""),
        (json!({"num_uses": 2}), "token_num_uses to 0"),
    ] {
        let stage = Stage::new(database(&[])).await;
        stage.script.will([logged_in(with), leased(300), done()]);
        let error = stage.get().await.unwrap_err();
        assert!(
            matches!(error, IssueError::Misconfigured { .. }) && error.to_string().contains(told),
            "{error}"
        );
        assert_eq!(stage.lines().last().unwrap(), "POST auth/token/revoke-self");
    }
    for (with, reason) in [
        (json!({"client_token": "", "mfa_requirement": {"mfa_request_id": "m"}}), Reason::ClientAuthRejected),
        (json!({"client_token": ""}), Reason::IssuerProtocol),
        (json!({"client_token": "two words"}), Reason::IssuerProtocol),
        (json!({"client_token": 7}), Reason::IssuerProtocol),
    ] {
        let stage = Stage::new(database(&[])).await;
        stage.script.will([logged_in(with.clone())]);
        assert_eq!(stage.reason().await, reason, "{with}");
        assert_eq!(stage.script.diary().len(), 1);
    }
}

#[tokio::test]
async fn a_lease_is_over_when_its_login_is_and_only_then() {
    // CA-04, OA-43
    let stage = Stage::new(database(&[])).await;
    stage.script.will([login(), leased(300)]);
    let held = stage.get().await.unwrap();
    let end = || stage.bao.revoke(&stage.order, &stage.signers, &held);
    for over in [
        done(),
        refused(403, &["permission denied"]),
        refused(403, &["2 errors occurred:\n\t* permission denied\n\t* invalid token\n\n"]),
    ] {
        stage.script.will([over]);
        end().await.unwrap();
    }
    stage.script.will([refused(403, &["1 error occurred:\n\t* permission denied\n\n"])]);
    let error = end().await.unwrap_err();
    assert!(
        matches!(&error, IssueError::Refused { detail, .. } if detail.contains("auth/token/revoke-self")),
        "{error}"
    );
    for again in [refused(503, &["Vault is sealed"]), refused(500, &["x"]), Answer::HangUp] {
        stage.script.will([again]);
        assert!(matches!(end().await, Err(IssueError::Retry { .. })));
    }
}

#[tokio::test]
async fn what_has_no_lease_is_read_again_and_its_login_ended_at_once() {
    // CA-04: KV, versions 1 and 2.
    let wants = |fields: &[&str]| {
        let fields = fields.iter().map(|field| (*field).to_owned()).collect();
        Wants::Lease(LeaseTerms { at: "secret/data/app".into(), fields })
    };
    let kv = |seconds: u64, data: Value| {
        Answer::json(
            200,
            json!({"lease_id": "", "lease_duration": seconds, "renewable": false, "data": data}),
        )
    };
    let two = || json!({"data": {"a": "1", "n": 7, "b": true, "o": {"x": [1]}}, "metadata": {"version": 3}});
    let stage = Stage::new(wants(&[])).await;
    stage.script.will([login(), kv(0, two()), done()]);
    let held = stage.get().await.unwrap();
    assert_eq!(told(&held), [("a", "1"), ("b", "true"), ("n", "7"), ("o", "{\"x\":[1]}")]);
    assert_eq!(held.window.life().as_secs(), 900, "as long as policy has it");
    assert_eq!(stage.lines(), ["POST auth/jwt/login", "GET secret/data/app", "POST auth/token/revoke-self"]);
    // The same again is the same.
    stage.script.will([login(), kv(0, two()), done()]);
    let issued = stage.issue(Some(&held)).await;
    assert!(!issued.facts.lease_replaced);
    assert_eq!(issued.result.unwrap().fingerprint, held.fingerprint);
    // What may be guessed is not told by its fingerprint: another agent has another.
    let other = Stage::new(wants(&[])).await;
    other.script.will([login(), kv(0, two()), done()]);
    assert_ne!(other.get().await.unwrap().fingerprint, held.fingerprint);
    let error = stage.bao.revoke(&stage.order, &stage.signers, &held).await.unwrap_err();
    assert!(matches!(error, IssueError::Refused { .. }), "nobody says that it is over: {error}");

    let stage = Stage::new(wants(&["a"])).await;
    stage.script.will([login(), kv(60, json!({"a": "1", "data": "d"})), done()]);
    let held = stage.get().await.unwrap();
    assert_eq!((told(&held), held.window.life().as_secs()), (vec![("a", "1")], 60));
    for data in [json!({"b": "canary"}), json!({"a": null}), json!({}), Value::Null, json!("text")] {
        stage.script.will([login(), kv(0, data.clone()), done()]);
        let error = stage.get().await.unwrap_err();
        assert!(matches!(error, IssueError::Misconfigured { .. }), "{data}: {error}");
        assert!(!error.to_string().contains("canary"), "{error}");
    }
}

#[tokio::test]
async fn each_error_is_sorted_by_the_next_move() {
    // CA-04, ER-11, ER-12, ER-13
    #[derive(Debug, PartialEq)]
    enum Next {
        Retry(Option<u64>),
        Refused,
        Misconfigured,
    }
    let next = |error: &IssueError| match error {
        IssueError::Retry { after, .. } => Next::Retry(after.map(|after| after.as_secs())),
        IssueError::Refused { .. } => Next::Refused,
        IssueError::Misconfigured { .. } => Next::Misconfigured,
        IssueError::Later { .. } => panic!("no such answer"),
    };
    let stage = Stage::new(database(&[])).await;
    let cases: [(u16, &str, Next, Reason, &str); 13] = [
        (400, "no such role", Next::Refused, Reason::GrantRejected, "role's settings"),
        (
            403,
            "1 error occurred",
            Next::Refused,
            Reason::GrantRejected,
            "a policy for database/creds/payments",
        ),
        (404, "", Next::Misconfigured, Reason::IssuerConfig, "nothing at database/creds/payments"),
        (405, "unsupported operation", Next::Misconfigured, Reason::IssuerConfig, "cannot be used this way"),
        (412, "required index state not present", Next::Retry(None), Reason::IssuerUnavailable, "behind"),
        (418, "", Next::Misconfigured, Reason::IssuerConfig, "manual"),
        (429, "rate limit quota exceeded", Next::Retry(Some(7)), Reason::IssuerRateLimit, "fewer requests"),
        (472, "", Next::Retry(None), Reason::IssuerUnavailable, "standby"),
        (473, "", Next::Retry(None), Reason::IssuerUnavailable, "standby"),
        (500, "internal error", Next::Retry(None), Reason::IssuerUnavailable, "internal error"),
        (502, "", Next::Retry(None), Reason::IssuerUnavailable, "502"),
        (503, "Vault is sealed", Next::Retry(None), Reason::IssuerUnavailable, "unseal it"),
        (503, "", Next::Retry(Some(9)), Reason::IssuerUnavailable, "503"),
    ];
    for (status, words, expected, reason, told) in cases {
        let mut answer = if words.is_empty() { refused(status, &[]) } else { refused(status, &[words]) };
        if let Next::Retry(Some(after)) = &expected {
            answer = answer.with("retry-after", &after.to_string());
        }
        stage.script.will([login(), answer, done()]);
        let issued = stage.issue(None).await;
        assert_eq!(issued.facts.http_status, Some(status));
        let error = issued.result.unwrap_err();
        assert_eq!((next(&error), error.reason()), (expected, reason), "{status}: {error}");
        assert!(error.to_string().contains(told), "{status}: {error}");
        assert_eq!(
            stage.lines().last().unwrap(),
            "POST auth/token/revoke-self",
            "a login of no more use is ended"
        );
    }
    for status in [400, 401, 403, 404] {
        stage.script.will([refused(status, &["role could not be found"])]);
        let error = stage.get().await.unwrap_err();
        assert_eq!(
            (next(&error), error.reason()),
            (Next::Misconfigured, Reason::ClientAuthRejected),
            "{status}"
        );
    }
    stage.script.will([refused(503, &["Vault is sealed"])]);
    assert!(stage.get().await.unwrap_err().to_string().contains("unseal it"));
    // What the server says is cut and cleaned; what is not JSON is not quoted.
    let jwt = "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJhIn0.c2ln";
    stage.script.will([refused(400, &[&format!("bad \u{1b}[31m {jwt} {}", "x ".repeat(500))])]);
    let told = stage.get().await.unwrap_err().to_string();
    assert!(!told.contains("eyJ") && !told.contains('\u{1b}') && told.len() < 500, "{told}");
    let page = Answer::json(400, "<html>canary</html>").with("content-type", "text/html");
    stage.script.will([page]);
    assert!(!stage.get().await.unwrap_err().to_string().contains("canary"));
    for body in ["", "[]", "{\"auth\":1,\"auth\":2}", "null"] {
        stage.script.will([Answer::json(200, body)]);
        assert_eq!(stage.reason().await, Reason::IssuerProtocol, "{body}");
    }
    stage.script.will([Answer::json(307, "").with("location", "https://elsewhere.example/")]);
    assert_eq!(stage.reason().await, Reason::IssuerRedirect);
}

/// A root, an intermediate, and the certificate that the latter makes for a request.
struct Cas {
    root: rcgen::Certificate,
    between: rcgen::Certificate,
    signs: Ca<'static, KeyPair>,
}

impl Cas {
    fn new() -> Self {
        let authority = |name: &str| {
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, name);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.not_after = date_time_ymd(2040, 1, 1);
            (params, KeyPair::generate().unwrap())
        };
        let ((above, above_key), (below, below_key)) = (authority("root"), authority("between"));
        let root = above.self_signed(&above_key).unwrap();
        let between = below.signed_by(&below_key, &Ca::new(above, above_key)).unwrap();
        Self { root, between, signs: Ca::new(below, below_key) }
    }

    fn answer(&self, request: &Enrolment, change: impl FnOnce(&mut Value)) -> Answer {
        let mut params = CertificateSigningRequestParams::from_der(&request.csr().into()).unwrap();
        let at = |seconds: i64| date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds.try_into().unwrap());
        (params.params.not_before, params.params.not_after) = (at(NOW - 30), at(NOW + 900));
        params.params.serial_number = Some(vec![0xf1, 2, 3].into());
        params.params.is_ca = IsCa::ExplicitNoCa;
        let leaf = params.signed_by(&self.signs).unwrap();
        let mut said = json!({"lease_id": "", "lease_duration": 0, "data": {
            "certificate": leaf.pem(), "issuing_ca": self.between.pem(), "serial_number": "f1:02:03",
            "ca_chain": [self.between.pem(), self.root.pem()],
        }});
        change(&mut said);
        Answer::json(200, said)
    }
}

/// Has a certificate signed, with the edge alone: the engine has tests of its own.
async fn sign(stage: &Stage, request: &Enrolment) -> Result<Vec<Vec<u8>>, IssueError> {
    let Wants::Certificate(terms) = &stage.order.terms.wants else { panic!("a certificate") };
    let ask = Ask { order: &stage.order, terms, signers: &stage.signers, request, held: None };
    match stage.bao.certificates.authority().sign(ask, &mut IssueFacts::default()).await? {
        Signed::Chain(chain) => Ok(chain.into_iter().map(|one| one.to_vec()).collect()),
        Signed::Later(_) => panic!("this one never says later"),
    }
}

#[tokio::test]
async fn a_certificate_is_asked_for_by_all_its_names_and_its_chain_comes_without_the_root() {
    // CA-04, X5-01, X5-02
    let cas = Cas::new();
    let terms = signed_at("team/pki/sign/payments");
    let request = Enrolment::begin(&terms.subject, KeyKind::P256).unwrap();
    let stage = Stage::new(Wants::Certificate(terms)).await;
    stage.script.will([login(), cas.answer(&request, |_| {}), done()]);
    let chain = sign(&stage, &request).await.unwrap();
    assert_eq!((chain.len(), chain[1].as_slice()), (2, cas.between.der().as_ref()));
    assert_eq!(
        stage.lines(),
        ["POST auth/jwt/login", "POST team/pki/sign/payments", "POST auth/token/revoke-self"]
    );
    assert_eq!(
        body(&stage.script.diary()[1]),
        json!({
            "csr": request.csr_pem(), "common_name": "", "uri_sans": URI, "alt_names": "a.example,b.example",
            "ip_sans": "192.0.2.7", "ttl": "900s", "exclude_cn_from_sans": true, "format": "pem",
        })
    );
    // A server that sends no chain sends who signed.
    stage.script.will([login(), cas.answer(&request, |said| said["data"]["ca_chain"] = Value::Null), done()]);
    assert_eq!(sign(&stage, &request).await.unwrap().len(), 2);
    // With the login in the request there is no token to end.
    let inline = Stage::with(stage.order.terms.wants.clone(), |settings| settings.inline_auth = true).await;
    inline.script.will([cas.answer(&request, |_| {})]);
    sign(&inline, &request).await.unwrap();
    assert_eq!(inline.lines(), ["POST team/pki/sign/payments"]);

    let bend: [(fn(&mut Value), Reason); 6] = [
        (|said| said["data"]["certificate"] = "none".into(), Reason::CertRejected(Rejected::Form)),
        (|said| said["data"]["certificate"] = Value::Null, Reason::CertRejected(Rejected::Form)),
        (|said| said["data"]["serial_number"] = "f1:02:04".into(), Reason::CertRejected(Rejected::Form)),
        (|said| said["data"]["serial_number"] = Value::Null, Reason::CertRejected(Rejected::Form)),
        (|said| said["data"]["ca_chain"] = json!(["none"]), Reason::CertRejected(Rejected::Form)),
        (|said| said["lease_id"] = "pki/sign/payments/l".into(), Reason::IssuerConfig),
    ];
    for (at, (bend, reason)) in bend.into_iter().enumerate() {
        stage.script.will([login(), cas.answer(&request, bend), done()]);
        assert_eq!(sign(&stage, &request).await.unwrap_err().reason(), reason, "{at}");
    }
    let late = "cannot satisfy request, as TTL would result in notAfter of X that is beyond the expiration of the CA certificate at Y";
    stage.script.will([login(), refused(400, &[late]), done()]);
    let error = sign(&stage, &request).await.unwrap_err();
    assert!(
        matches!(&error, IssueError::Misconfigured { detail, .. } if detail.contains("lower max_ttl")),
        "{error}"
    );
}

#[tokio::test]
async fn the_whole_way_to_a_certificate_needs_the_roots() {
    // CA-04, X5-02
    let stage = Stage::new(Wants::Certificate(signed_at("pki/sign/payments"))).await;
    let error = stage.get().await.unwrap_err();
    assert!(
        matches!(&error, IssueError::Misconfigured { detail, .. } if detail.contains("set roots")),
        "{error}"
    );
    let nowhere = Some("/nowhere/roots.pem".into());
    let stage =
        Stage::with(Wants::Certificate(signed_at("pki/sign/payments")), |settings| settings.roots = nowhere)
            .await;
    assert!(stage.get().await.unwrap_err().to_string().contains("/nowhere/roots.pem"));
    assert!(stage.script.diary().is_empty(), "nothing is asked for that could not be checked");
    let stage = Stage::new(Wants::Token).await;
    assert_eq!(stage.reason().await, Reason::IssuerConfig);
}

#[tokio::test]
async fn a_certificate_is_revoked_by_its_serial_at_its_own_engine() {
    // X5-07
    let cas = Cas::new();
    let terms = signed_at("team/pki/issuer/default/sign/payments");
    let request = Enrolment::begin(&terms.subject, KeyKind::P256).unwrap();
    let stage = Stage::new(Wants::Certificate(terms)).await;
    stage.script.will([login(), cas.answer(&request, |_| {}), done()]);
    let leaf = sign(&stage, &request).await.unwrap().remove(0);
    let pki = stage.bao.certificates.authority();
    stage.script.will([login(), Answer::json(200, json!({"data": {"revocation_time": NOW}})), done()]);
    pki.revoke(&stage.order, &stage.signers, &leaf).await.unwrap();
    assert_eq!(
        stage.lines()[3..],
        ["POST auth/jwt/login", "POST team/pki/revoke", "POST auth/token/revoke-self"]
    );
    // DER has a zero before it, and the server's index has none.
    assert_eq!(body(&stage.script.diary()[4]), json!({"serial_number": "f1:02:03"}));
    stage.script.will([login(), refused(503, &["Vault is sealed"]), done()]);
    assert!(matches!(pki.revoke(&stage.order, &stage.signers, &leaf).await, Err(IssueError::Retry { .. })));
    let garbage = pki.revoke(&stage.order, &stage.signers, b"garbage").await.unwrap_err();
    assert!(matches!(garbage, IssueError::Refused { .. }), "{garbage}");
}

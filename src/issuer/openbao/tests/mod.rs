//! Whole exchanges with a server in a script: what is sent, what is not, and what comes of each answer.

mod certificates;
mod leases;
mod logins;

use std::{collections::BTreeMap, fs, time::Duration};

use jiff::Timestamp;
use serde_json::{Value, json};

use super::*;
use crate::{
    clock::{ManualClock, SystemDice},
    credential::{Binding, Payload},
    issuer::{
        Reason,
        script::{Answer, Asks, Script, Seen},
        terms::{CertificateTerms, ClientAuth, LeaseTerms, Terms},
    },
    jose::{Algorithm, Signer, Unverified},
    keys::{
        CertificateSettings, Certificates, ClientCertificate, Custody, Key, Keyring, SignedBy, Subject, Vault,
    },
};

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
    Wants::Lease(LeaseTerms { at: "database/creds/payments".into(), fields, unleased: false })
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
        let bao =
            OpenBao::new(settings, Vault::default(), Arc::clone(&clock) as _, SystemDice::shared()).unwrap();
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

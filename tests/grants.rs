//! Grants and clients that rest on tokens of others, on the real binary, against an issuer that enforces them: exchange, JWT
//! grants, assertions of a platform, JWT-SVIDs from a file.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::{fs, path::Path, sync::Arc};

use keybearer::{
    clock::SystemClock,
    dev::Client,
    jose::{self, Algorithm, Header, Signer as _, Unverified},
    keys::Key,
};
use serde_json::{Value, json};
use support::{Issuer, RESOURCE, Setup, TestAgent, body, get, issuer, register};

const PLATFORM: &str = "https://platform.test";
const SUBJECT: &str = "system:serviceaccount:shop:orders";
const SPIFFE_ID: &str = "spiffe://shop.test/orders";

/// Whoever writes tokens on this host; the issuer trusts it.
struct Platform {
    key: Key,
    issuer: Issuer,
    dir: tempfile::TempDir,
}

impl Platform {
    fn start() -> Self {
        let issuer = issuer(300);
        let key = Key::generate(Algorithm::Es256).unwrap();
        let jwks = json!({"keys": [key.public().jwk(Algorithm::Es256)]});
        issuer.handle.trust(PLATFORM, &jwks).unwrap();
        issuer.handle.trust("spiffe://shop.test", &jwks).unwrap();
        Self { key, issuer, dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> String {
        self.dir.path().join("token").display().to_string()
    }

    /// Writes a token for the issuer, with some claims of its own.
    fn write(&self, claims: Value) {
        let now = SystemClock::shared().wall().as_second();
        let mut all = json!({
            "iss": PLATFORM, "aud": [self.issuer.handle.url()], "iat": now, "exp": now + 250, "ref": "refs/heads/main",
        });
        for (name, value) in claims.as_object().unwrap() {
            all[name] = value.clone();
        }
        let token = jose::sign(&self.key, Header { typ: "JWT" }, &all).unwrap();
        // Renamed into place, as the kubelet does it: the agent never reads half a token.
        let beside = self.dir.path().join("beside");
        fs::write(&beside, token.expose()).unwrap();
        fs::rename(&beside, self.path()).unwrap();
    }

    /// An agent whose credential is asked for with these lines too.
    fn setup(&self, lines: &str) -> Setup {
        Setup::new(self.issuer.handle.url())
            .with("client_id = \"shop\"", &format!("client_id = \"shop\"\n{lines}"))
    }

    fn subject(&self) -> String {
        format!(
            "subject = {{ file = \"{}\", issuer = \"{PLATFORM}\", audience = \"{}\", claims = {{ ref = \"refs/heads/main\" }} }}",
            self.path(),
            self.issuer.handle.url(),
        )
    }

    /// A client without a key, known by what others say of it.
    fn know(&self, client: Client) {
        let scope = vec!["orders:read".into(), "orders:write".into()];
        let client = Client { client_id: "shop".into(), scope, resources: vec![RESOURCE.into()], ..client };
        self.issuer.handle.register(client).unwrap();
    }

    /// How many tokens it made.
    fn made(&self) -> u64 {
        self.issuer.handle.diary().counts.tokens
    }
}

/// What came of asking: the claims of the token, or the reason.
fn ask(agent: &TestAgent) -> Result<Value, String> {
    let (status, answer) = get(&agent.socket("http.sock"), "/v1/credentials/orders");
    let said = body(&answer);
    match (status, said["access_token"].as_str()) {
        (200, Some(token)) => Ok(Unverified::parse(token).unwrap().claims().unwrap()),
        _ => Err(said["error"].as_str().unwrap_or_default().to_owned()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ci_token_is_exchanged_for_a_token_about_its_job() {
    // OA-22, OA-23, WIM-11, S44
    let platform = Platform::start();
    let setup = platform.setup(&format!("grant = \"token_exchange\"\n{}", platform.subject()));
    platform.write(json!({"sub": "job:7", "ref": "refs/heads/feature"}));
    let agent = setup.start(Some(&platform.issuer.handle));
    assert_eq!(ask(&agent), Err("SOURCE_TOKEN_UNFIT".into()));
    assert_eq!(platform.made(), 0, "nothing was sent");
    let record = agent.records().pop().unwrap();
    assert!(record.entry.detail.unwrap().contains("its ref is not what the settings demand"));

    platform.write(json!({"sub": "job:8"}));
    let agent = again(agent, &setup);
    let claims = ask(&agent).unwrap();
    assert_eq!((&claims["sub"], &claims["client_id"]), (&json!("job:8"), &json!("shop")));
    assert_eq!(claims.get("act"), None, "nobody is claimed to act");
    silent(agent, &platform);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_jwt_grant_is_used_once_and_then_read_anew() {
    // OA-26, ER-03, PKJ-18
    let platform = Platform::start();
    let setup = platform.setup(&format!("grant = \"jwt_bearer\"\n{}", platform.subject()));
    platform.write(json!({"sub": "job:1", "jti": "one"}));
    let agent = setup.start(Some(&platform.issuer.handle));
    assert_eq!(ask(&agent).unwrap()["sub"], "job:1");
    let agent = again(agent, &setup);
    assert_eq!(ask(&agent), Err("GRANT_REJECTED".into()), "the same grant is no good twice");
    platform.write(json!({"sub": "job:2", "jti": "two"}));
    let agent = again(agent, &setup);
    assert_eq!(ask(&agent).unwrap()["sub"], "job:2");
    silent(agent, &platform);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_platforms_token_proves_who_asks_and_no_key_is_made() {
    // WIM-11, NHI-6
    let platform = Platform::start();
    let federated = json!({"issuer": PLATFORM, "subject": SUBJECT});
    platform
        .know(Client { federated: Some(serde_json::from_value(federated).unwrap()), ..Client::default() });
    platform.write(json!({"sub": SUBJECT}));
    let setup = platform.setup(&format!(
        "client_auth = \"federated_jwt\"\nassertion = {{ file = \"{}\", subject = \"{SUBJECT}\", issuer = \"{PLATFORM}\" }}",
        platform.path(),
    ));
    let agent = setup.start(None);
    let claims = ask(&agent).unwrap();
    assert_eq!(claims["sub"], "shop");
    assert!(!keys(&agent).exists(), "none is needed, so none is made");
    // Given back with the same proof (PKJ-16).
    agent.client().await.release("orders", &[]).await.unwrap();
    assert!(platform.issuer.handle.is_revoked(claims["jti"].as_str().unwrap()));
    platform.write(json!({"sub": "system:serviceaccount:shop:other"}));
    assert_eq!(ask(&agent), Err("SOURCE_TOKEN_UNFIT".into()));
    assert_eq!(platform.made(), 1);
    silent(agent, &platform);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_jwt_svid_proves_who_asks() {
    // DR-05, SPF-03
    let platform = Platform::start();
    platform.know(Client { spiffe_id: Some(SPIFFE_ID.into()), ..Client::default() });
    platform.write(json!({"sub": SPIFFE_ID}));
    let setup = platform.setup(&format!(
        "client_auth = \"spiffe_jwt\"\nassertion = {{ file = \"{}\", subject = \"{SPIFFE_ID}\" }}",
        platform.path(),
    ));
    let agent = setup.start(None);
    assert_eq!(ask(&agent).unwrap()["aud"], RESOURCE);
    assert!(!keys(&agent).exists());
    silent(agent, &platform);
}

#[tokio::test(flavor = "multi_thread")]
async fn details_are_granted_and_held_against_the_order() {
    // OA-27
    let platform = Platform::start();
    let setup = platform.setup("authorization_details = [ { type = \"orders\", actions = [\"read\"] } ]");
    let config = setup.write();
    register(&platform.issuer.handle, &config);
    let agent = TestAgent::start(Arc::clone(&setup.dir));
    // The client may not ask for them yet: the issuer knows no such type, and nothing is asked for.
    assert_eq!(ask(&agent), Err("ISSUER_CONFIG".into()));
    platform.know(Client { authorization_details_types: vec!["orders".into()], ..known(&setup) });
    let agent = again(agent, &setup);
    assert_eq!(
        ask(&agent).unwrap()["authorization_details"],
        json!([{"type": "orders", "actions": ["read"]}])
    );
    agent.stop();
}

/// The client with the key that the agent made.
fn known(setup: &Setup) -> Client {
    let pem = setup.dir.path().join("state/keys/shop.client-auth.pem");
    let body: String =
        fs::read_to_string(pem).unwrap().lines().filter(|line| !line.starts_with("-----")).collect();
    let der = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, body).unwrap();
    let key = Key::from_pkcs8(&keybearer::secret::Secret::new(der), Algorithm::Es256).unwrap();
    Client { keys: vec![(key.public().clone(), Algorithm::Es256)], ..Client::default() }
}

fn keys(agent: &TestAgent) -> std::path::PathBuf {
    agent.dir.path().join("state/keys/shop.client-auth.pem")
}

/// The agent, killed and started anew: nothing is on its shelf and no refusal is remembered.
fn again(agent: TestAgent, setup: &Setup) -> TestAgent {
    agent.kill();
    TestAgent::start(Arc::clone(&setup.dir))
}

/// Stops the agent: neither its log at TRACE nor its ledger holds the token of the file (PKJ-15).
fn silent(agent: TestAgent, platform: &Platform) {
    let ledger = agent.ledger();
    agent.verify().unwrap();
    let (code, log) = agent.stop();
    assert_eq!(code, Some(0), "{log}");
    let token = fs::read_to_string(platform.path()).unwrap();
    let signature = token.rsplit('.').next().unwrap();
    assert!(log.contains("ready") && !log.contains(signature));
    for file in files(&ledger) {
        assert!(
            !String::from_utf8_lossy(&fs::read(&file).unwrap()).contains(signature),
            "{}",
            file.display()
        );
    }
}

fn files(at: &Path) -> Vec<std::path::PathBuf> {
    let found: Vec<_> = fs::read_dir(at).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(!found.is_empty());
    found
}

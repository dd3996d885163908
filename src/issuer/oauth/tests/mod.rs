//! Whole attempts against an issuer in a script: what is sent, what is not, and what comes of each answer.

mod clients;
mod details;
mod dpop;
mod grants;
mod introspection;
mod metadata;
mod mtls;
mod once;
mod pins;
mod registration;
mod reply;

use std::{io, sync::Mutex};

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::*;
use crate::{
    clock::{ManualClock, SystemDice},
    credential::{Binding, Payload},
    issuer::{
        script::{Answer, Script, Seen},
        terms::{LeaseTerms, Terms, Wants},
    },
    jose::{Algorithm, Signer, Unverified},
    keys::Key,
    secret::{Fingerprint, Secret},
};

const NOW: i64 = 1_700_000_000;

pub(super) fn settings(issuer: &str) -> OAuthSettings {
    OAuthSettings {
        name: "corp".into(),
        issuer: issuer.into(),
        well_known: WellKnown::Both,
        audience: Audience::Issuer,
        allowed_endpoint_hosts: Vec::new(),
        ca_file: None,
        dev: true,
        assertion_life: Duration::from_secs(60),
        assertion_typ: AssertionTyp::ClientAuthentication,
        client_auth_methods: Vec::new(),
        send_client_id: false,
        pins: Pins::default(),
        timeout: Duration::from_secs(10),
    }
}

/// An issuer in a script, our side of it, and the clock of our side.
struct Stage {
    script: Script,
    oauth: OAuth,
    clock: Arc<ManualClock>,
    order: Order,
    signers: Signers,
}

impl Stage {
    async fn new() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut OAuthSettings)) -> Self {
        let script = Script::plain().await;
        let mut settings = settings(&script.url);
        change(&mut settings);
        Self::of(script, settings)
    }

    fn of(script: Script, settings: OAuthSettings) -> Self {
        let clock = ManualClock::at(Timestamp::from_second(NOW).unwrap());
        let oauth = OAuth::new(settings, Arc::clone(&clock) as _, SystemDice::shared()).unwrap();
        Self { script, oauth, clock, order: order(), signers: signers() }
    }

    fn metadata(&self) -> Value {
        let url = &self.script.url;
        json!({
            "issuer": url, "token_endpoint": format!("{url}/token"), "revocation_endpoint": format!("{url}/revoke"),
        })
    }

    async fn issue(&self) -> Issued {
        self.oauth.issue(&self.order, &self.signers, None).await
    }

    async fn reason(&self) -> Reason {
        self.issue().await.result.unwrap_err().reason()
    }
}

fn order() -> Order {
    Order {
        identity: "billing".into(),
        credential: "orders".into(),
        issuer: "corp".into(),
        client_id: "billing:1&x=y".into(),
        resource: Some("https://api.example/v1?x=1".into()),
        scope: ["orders.read".into(), "orders.write".into()].into(),
        require_aud: false,
        max_ttl: Duration::from_secs(900),
        binding: Binding::Bearer,
        terms: Arc::default(),
        max_uses: None,
        instance: None,
    }
}

fn signers() -> Signers {
    let key = || -> Arc<dyn Signer> { Arc::new(Key::generate(Algorithm::Es256).unwrap()) };
    Signers { client: Some(key()), before: None, dpop: Some(key()), certificates: Vec::new() }
}

fn token() -> Answer {
    Answer::json(200, json!({"access_token": "canary-token", "token_type": "Bearer", "expires_in": 300}))
}

fn error(status: u16, code: &str) -> Answer {
    Answer::json(status, json!({"error": code, "error_description": "because"}))
}

fn dated(answer: Answer, second: i64) -> Answer {
    let at = Timestamp::from_second(second).unwrap();
    let date = jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&at).unwrap();
    answer.with("date", &date)
}

fn claims(seen: &Seen) -> Value {
    let assertions = seen.form("client_assertion");
    assert_eq!(assertions.len(), 1);
    Unverified::parse(&assertions[0]).unwrap().claims().unwrap()
}

#[tokio::test]
async fn the_token_request_is_this_and_nothing_else() {
    // PKJ-01, PKJ-02, PKJ-03, PKJ-10, PKJ-13, PKJ-14, OA-01, OA-20, OA-21
    let stage = Stage::new().await;
    stage.script.will([Answer::json(200, stage.metadata()), token()]);
    let issued = stage.issue().await;
    let credential = issued.result.unwrap();
    assert_eq!(credential.handle().expose(), b"canary-token");
    assert_eq!(credential.window.life(), Duration::from_secs(300));
    assert_eq!(issued.facts, IssueFacts { http_status: Some(200), ..IssueFacts::default() });
    let diary = stage.script.diary();
    assert_eq!(diary[0].line, "GET /.well-known/oauth-authorization-server HTTP/1.1");
    let post = &diary[1];
    assert_eq!(post.line, "POST /token HTTP/1.1");
    let head = post.head.to_ascii_lowercase();
    assert!(head.contains("content-type: application/x-www-form-urlencoded\r\n"), "{head}");
    assert!(!head.contains("authorization:") && !head.contains("cookie:"), "{head}");
    assert!(
        post.body.contains(
            "client_assertion_type=urn%3Aietf%3Aparams%3Aoauth%3Aclient-assertion-type%3Ajwt-bearer"
        )
    );
    let names: Vec<_> = post.body.split('&').map(|pair| pair.split('=').next().unwrap()).collect();
    assert_eq!(names, ["grant_type", "scope", "resource", "client_assertion_type", "client_assertion"]);
    assert_eq!(post.form("grant_type"), ["client_credentials"]);
    assert_eq!(post.form("scope"), ["orders.read orders.write"]);
    assert_eq!(post.form("resource"), ["https://api.example/v1?x=1"]);
    assert_eq!(post.form("client_assertion_type"), [client::JWT_BEARER]);
    let assertion = &post.form("client_assertion")[0];
    let assertion = Unverified::parse(assertion).unwrap();
    assertion.verify(stage.signers.client.as_ref().unwrap().public(), &[Algorithm::Es256]).unwrap();
    assert_eq!(assertion.header_str("typ"), Some("client-authentication+jwt"));
    let claims = claims(post);
    assert_eq!(claims["aud"], json!(stage.script.url));
    assert_eq!((&claims["iss"], &claims["sub"]), (&json!("billing:1&x=y"), &json!("billing:1&x=y")));
}

#[tokio::test]
async fn a_profile_may_change_typ_audience_and_client_id() {
    // PKJ-05, PKJ-10, PKJ-14
    let stage = Stage::with(|settings| {
        settings.assertion_typ = AssertionTyp::Jwt;
        settings.send_client_id = true;
        settings.audience = Audience::TokenEndpoint { pinned: format!("{}/token", settings.issuer) };
    })
    .await;
    stage.script.will([Answer::json(200, stage.metadata()), token()]);
    stage.issue().await.result.unwrap();
    let post = &stage.script.posts()[0];
    assert_eq!(post.form("client_id"), ["billing:1&x=y"]);
    assert_eq!(claims(post)["aud"], json!(format!("{}/token", stage.script.url)));
    let assertion = &post.form("client_assertion")[0];
    assert_eq!(Unverified::parse(assertion).unwrap().header_str("typ"), Some("JWT"));
}

#[tokio::test]
async fn no_assertion_leaves_while_anything_disagrees() {
    // OA-02, OA-03, OA-04, OA-08, PKJ-04, PKJ-05, PKJ-10
    let victim = Script::plain().await;
    let pinned = |settings: &mut OAuthSettings| {
        settings.audience = Audience::TokenEndpoint { pinned: format!("{}/other", settings.issuer) };
    };
    let foreign = victim.url.replace("127.0.0.1", "localhost");
    type Change = fn(&mut OAuthSettings);
    let cases: [(Change, &str, Value, Reason); 6] = [
        (|_| {}, "issuer", json!(victim.url), Reason::IssuerMismatch),
        (|_| {}, "token_endpoint", json!(format!("{foreign}/token")), Reason::EndpointForeign),
        (|_| {}, "token_endpoint", json!(7), Reason::IssuerProtocol),
        (pinned, "x", json!(7), Reason::CfgAudPin),
        (|_| {}, "token_endpoint_auth_signing_alg_values_supported", json!(["HS256"]), Reason::IssuerConfig),
        (
            |_| {},
            "token_endpoint_auth_methods_supported",
            json!(["client_secret_post"]),
            Reason::IssuerConfig,
        ),
    ];
    for (change, member, value, expected) in cases {
        let stage = Stage::with(change).await;
        let mut metadata = stage.metadata();
        metadata[member] = value;
        stage.script.will([Answer::json(200, metadata), token()]);
        assert_eq!(stage.reason().await, expected, "{member}");
        assert_eq!(stage.script.posts().len(), 0);
    }
    assert!(victim.diary().is_empty());
}

#[tokio::test]
async fn an_assertion_at_a_listed_host_still_names_the_issuer() {
    // PKJ-04
    let victim = Script::plain().await;
    let elsewhere = victim.url.replace("127.0.0.1", "localhost");
    let stage = Stage::with(|settings| settings.allowed_endpoint_hosts = vec!["localhost".into()]).await;
    let mut metadata = stage.metadata();
    metadata["token_endpoint"] = json!(format!("{elsewhere}/token"));
    stage.script.will([Answer::json(200, metadata)]);
    victim.will([error(401, "invalid_client")]);
    assert_eq!(stage.reason().await, Reason::ClientAuthRejected);
    assert_eq!(claims(&victim.posts()[0])["aud"], json!(stage.script.url));
}

#[tokio::test]
async fn the_second_address_is_tried_where_the_first_has_nothing() {
    // OA-01
    let stage = Stage::new().await;
    let page = || Answer::json(200, "<html>").with("content-type", "text/html");
    stage.script.will([page(), Answer::json(200, stage.metadata()), token()]);
    stage.issue().await.result.unwrap();
    assert_eq!(stage.script.diary()[1].line, "GET /.well-known/openid-configuration HTTP/1.1");
    let stage = Stage::new().await;
    stage.script.will([Answer::json(404, ""), page()]);
    assert_eq!(stage.reason().await, Reason::IssuerProtocol);
    let stage = Stage::new().await;
    stage.script.will([Answer::json(503, "").with("retry-after", "7")]);
    let error = stage.issue().await.result.unwrap_err();
    assert!(matches!(error, IssueError::Retry { after: Some(after), .. } if after.as_secs() == 7), "{error}");
    assert_eq!(stage.script.diary().len(), 1);
}

#[tokio::test]
async fn each_attempt_has_an_assertion_of_its_own() {
    // PKJ-06, PKJ-12: whatever came of the one before, and never two in one attempt.
    let stage = Stage::new().await;
    stage.script.will([
        Answer::json(200, stage.metadata()),
        error(400, "use_dpop_nonce"),
        error(503, "temporarily_unavailable"),
        error(429, "slow_down"),
        Answer::HangUp,
        error(401, "invalid_client"),
    ]);
    for _ in 0..5 {
        stage.issue().await.result.unwrap_err();
    }
    stage.script.will([token()]);
    stage.issue().await.result.unwrap();
    let posts = stage.script.posts();
    assert_eq!(posts.len(), 6);
    let mut jtis: Vec<_> = posts.iter().map(|post| claims(post)["jti"].to_string()).collect();
    jtis.sort();
    jtis.dedup();
    assert_eq!(jtis.len(), 6);
}

#[tokio::test]
async fn a_redirect_gets_no_assertion() {
    // PKJ-17
    let elsewhere = Script::plain().await;
    let stage = Stage::new().await;
    let redirect = Answer::json(307, "").with("location", &format!("{}/token", elsewhere.url));
    stage.script.will([Answer::json(200, stage.metadata()), redirect]);
    let issued = stage.issue().await;
    assert_eq!(issued.result.unwrap_err().reason(), Reason::IssuerRedirect);
    assert_eq!(issued.facts.http_status, Some(307));
    assert!(elsewhere.diary().is_empty());
}

#[tokio::test]
async fn the_facts_of_a_refusal_are_kept_and_its_words_are_not() {
    // ER-05, ER-13
    let stage = Stage::new().await;
    stage.script.will([Answer::json(200, stage.metadata()), error(400, "invalid_scope")]);
    let issued = stage.issue().await;
    assert_eq!(issued.facts.http_status, Some(400));
    assert_eq!(issued.facts.oauth_error.as_deref(), Some("invalid_scope"));
    assert!(matches!(issued.result, Err(IssueError::Refused { reason: Reason::ScopeDenied, .. })));
}

#[tokio::test]
async fn metadata_is_kept_and_doubted_at_most_once_a_minute() {
    // OA-07
    let stage = Stage::new().await;
    let metadata = || Answer::json(200, stage.metadata()).with("cache-control", "max-age=600");
    stage.script.will([metadata(), token(), token(), error(401, "invalid_client"), token()]);
    let fetches = || stage.script.diary().iter().filter(|seen| seen.line.starts_with("GET ")).count();
    for _ in 0..4 {
        let _ = stage.issue().await;
    }
    assert_eq!(fetches(), 1);
    stage.clock.advance(Duration::from_secs(60));
    stage.script.will([metadata(), error(404, "gone"), token()]);
    assert!(stage.issue().await.result.is_err());
    assert_eq!(fetches(), 2);
    stage.issue().await.result.unwrap();
    assert_eq!(fetches(), 2);
    stage.clock.advance(Duration::from_secs(60));
    stage.script.will([metadata(), token(), token()]);
    stage.issue().await.result.unwrap();
    assert_eq!(fetches(), 3);
    stage.clock.advance(Duration::from_secs(599));
    stage.issue().await.result.unwrap();
    assert_eq!(fetches(), 3);
    stage.clock.advance(Duration::from_secs(1));
    // It cannot be renewed: the old one stands in, and is not asked for again at once.
    stage.script.will([Answer::json(503, ""), token(), token()]);
    stage.issue().await.result.unwrap();
    stage.issue().await.result.unwrap();
    assert_eq!(fetches(), 4);
    stage.clock.advance(Duration::from_secs(24 * 60 * 60));
    stage.script.will([Answer::json(503, "")]);
    assert_eq!(stage.reason().await, Reason::IssuerUnavailable);
    assert_eq!(stage.script.posts().len(), 10);
}

#[tokio::test]
async fn many_callers_make_one_fetch() {
    // OA-07: also when it fails.
    let stage = Stage::new().await;
    stage.script.will([Answer::json(500, "")]);
    let (first, second, third) = tokio::join!(stage.reason(), stage.reason(), stage.reason());
    assert_eq!([first, second, third], [Reason::IssuerUnavailable; 3]);
    assert_eq!(stage.script.diary().len(), 1);
    stage.script.will([Answer::json(200, stage.metadata()), token(), token(), token()]);
    let (first, second, third) = tokio::join!(stage.issue(), stage.issue(), stage.issue());
    assert!(first.result.is_ok() && second.result.is_ok() && third.result.is_ok());
    assert_eq!(stage.script.diary().len(), 5);
}

#[tokio::test]
async fn iat_is_corrected_by_the_issuers_clock() {
    // CLK-02, PKJ-08: we are 90 s fast.
    let stage = Stage::new().await;
    stage.script.will([dated(Answer::json(200, stage.metadata()), NOW - 90), dated(token(), NOW - 90)]);
    let issued = stage.issue().await;
    issued.result.unwrap();
    assert_eq!(issued.facts.date_skew_ms, Some(-90_000));
    assert_eq!(stage.oauth.skew_ms(), Some(-90_000));
    let claims = claims(&stage.script.posts()[0]);
    assert_eq!(claims["iat"], json!(NOW - 95));
    assert_eq!(claims["exp"], json!(NOW - 35));
}

#[tokio::test]
async fn nothing_is_signed_while_the_clocks_are_far_apart() {
    // CLK-03
    let stage = Stage::new().await;
    stage.script.will([dated(Answer::json(200, stage.metadata()), NOW + 3600)]);
    let error = stage.issue().await.result.unwrap_err();
    assert!(matches!(error, IssueError::Retry { reason: Reason::ClockUntrusted, .. }), "{error}");
    assert_eq!(stage.reason().await, Reason::ClockUntrusted);
    assert_eq!(stage.script.diary().len(), 1);
    // Somebody sets our clock: it works at once.
    stage.clock.step_wall(SignedDuration::from_secs(3600));
    stage.script.will([token()]);
    stage.issue().await.result.unwrap();
    // The issuer's clock is what is wrong, and is mended: its next metadata tell.
    stage.clock.step_wall(SignedDuration::from_secs(-3600));
    stage.clock.advance(Duration::from_secs(60));
    stage.script.will([Answer::json(503, "")]);
    // No news is not good news.
    assert_eq!(stage.reason().await, Reason::ClockUntrusted);
    stage.clock.advance(Duration::from_secs(60));
    stage.script.will([dated(Answer::json(200, stage.metadata()), NOW + 120), token()]);
    stage.issue().await.result.unwrap();
    assert_eq!(stage.oauth.skew_ms(), Some(0));
}

#[tokio::test]
async fn a_date_out_of_a_cache_tells_nothing() {
    // CLK-02
    let stage = Stage::new().await;
    let old = dated(Answer::json(200, stage.metadata()), NOW - 3600).with("age", "3600");
    stage.script.will([old, token()]);
    stage.issue().await.result.unwrap();
    assert_eq!(stage.oauth.skew_ms(), None);
}

#[tokio::test]
async fn what_another_issuer_made_is_not_told_to_this_one() {
    // OA-43, S37: a name in the settings may be another kind of issuer's after a restart.
    let stage = Stage::new().await;
    stage.script.will([Answer::json(200, stage.metadata()), token(), Answer::json(200, "")]);
    let credential = stage.issue().await.result.unwrap();
    let handle = Secret::new("s.canary lease 300 -");
    let foreign = Credential { payload: Payload::Values { values: vec![], handle }, ..credential };
    let wants = Wants::Lease(LeaseTerms { at: "database/creds/a".into(), fields: vec![], unleased: false });
    let terms = Arc::new(Terms { wants, ..Terms::clone(&stage.order.terms) });
    let order = Order { terms, ..stage.order.clone() };
    let posts = stage.script.posts().len();
    for order in [&order, &stage.order] {
        let error = stage.oauth.revoke(order, &stage.signers, &foreign).await.unwrap_err();
        assert!(matches!(error, IssueError::Refused { .. }), "{error}");
    }
    assert_eq!(stage.script.posts().len(), posts, "nothing was sent");
}

#[tokio::test]
async fn revoking_proves_who_asks_like_any_other_request() {
    // PKJ-16
    let stage = Stage::new().await;
    stage.script.will([
        Answer::json(200, stage.metadata()),
        token(),
        Answer::json(200, ""),
        Answer::json(503, ""),
    ]);
    let credential = stage.issue().await.result.unwrap();
    assert_eq!(credential.fingerprint, Fingerprint::of(b"canary-token"));
    stage.oauth.revoke(&stage.order, &stage.signers, &credential).await.unwrap();
    let post = &stage.script.posts()[1];
    assert_eq!(post.line, "POST /revoke HTTP/1.1");
    assert_eq!(post.form("token"), ["canary-token"]);
    assert_eq!(post.form("token_type_hint"), ["access_token"]);
    assert_eq!(claims(post)["aud"], json!(stage.script.url));
    let error = stage.oauth.revoke(&stage.order, &stage.signers, &credential).await.unwrap_err();
    assert!(matches!(error, IssueError::Retry { .. }), "{error}");

    let stage = Stage::new().await;
    let mut metadata = stage.metadata();
    metadata["revocation_endpoint"] = Value::Null;
    stage.script.will([Answer::json(200, metadata)]);
    let error = stage.oauth.revoke(&stage.order, &stage.signers, &credential).await.unwrap_err();
    assert!(matches!(error, IssueError::Refused { reason: Reason::IssuerConfig, .. }), "{error}");
}

#[tokio::test]
async fn it_works_over_tls_and_only_with_the_right_root() {
    // OA-06, ER-12, PKJ-17
    let directory = tempfile::tempdir().unwrap();
    let (right, root) = Script::tls(&directory, &["localhost"]).await;
    let (_, wrong_root) = Script::tls(&directory, &["other.example"]).await;
    for (ca_file, works) in [(root, true), (wrong_root, false)] {
        let settings = OAuthSettings { ca_file: Some(ca_file), dev: false, ..settings(&right.url) };
        let stage = Stage::of(right.clone(), settings);
        if works {
            right.will([Answer::json(200, stage.metadata()), token()]);
            stage.issue().await.result.unwrap();
        } else {
            let error = stage.issue().await.result.unwrap_err();
            assert!(matches!(error, IssueError::Retry { reason: Reason::IssuerTls, .. }), "{error}");
        }
    }
    assert_eq!(right.diary().len(), 2);
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn assertions_and_tokens_are_in_no_log() {
    // PKJ-15
    let log = Log::default();
    let sink = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::TRACE)
        .with_writer(move || sink.clone())
        .finish();
    let guard = tracing::subscriber::set_default(subscriber);
    let stage = Stage::new().await;
    let echo =
        json!({"error": "invalid_client", "error_description": "eyJhbGciOiJ9.eyJjYW5hcnki.c2lnLWNhbmFyeQ"});
    let careless = token().with("cache-control", "private");
    stage.script.will([Answer::json(200, stage.metadata()), careless, Answer::json(401, echo)]);
    let first = stage.issue().await;
    let second = stage.issue().await;
    let shown = format!("{:?} {first:?} {second:?}", stage.oauth);
    drop(guard);
    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap() + &shown;
    // OA-44
    assert!(log.contains("no-store"), "{log}");
    for post in stage.script.posts() {
        let assertion = &post.form("client_assertion")[0];
        assert!(!log.contains(assertion.rsplit('.').next().unwrap()));
    }
    assert!(!log.contains("canary-token") && !log.contains("c2lnLWNhbmFyeQ"), "{log}");
}

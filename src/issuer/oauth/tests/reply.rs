//! A token reply against the order it answers: every member and claim that matters, right and wrong.

use std::{sync::Arc, time::Duration};

use http::{HeaderMap, HeaderValue, header};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::{
    clock::Boot,
    credential::{Binding, Bound, Credential},
    issuer::{
        IssueError, IssueFacts, Order, Reason,
        http::Response,
        oauth::reply::{self, MAX_TOKEN, Moment},
    },
    jose::{Algorithm, Signer, b64},
    keys::Key,
    secret::{Fingerprint, Secret},
};

const ISSUER: &str = "https://issuer.example/a";
const NOW: i64 = 1_700_000_000;

fn order() -> Order {
    Order {
        identity: "billing".into(),
        credential: "orders".into(),
        issuer: "corp".into(),
        client_id: "billing".into(),
        resource: Some("https://api.example".into()),
        scope: ["orders.read".into(), "orders.write".into()].into(),
        require_aud: true,
        max_ttl: Duration::from_secs(900),
        binding: Binding::Bearer,
        terms: Arc::default(),
        max_uses: None,
        instance: None,
    }
}

fn now() -> Moment {
    let boot = Boot::from_nanos(3_600_000_000_000);
    let wall = Timestamp::from_second(NOW).unwrap();
    Moment { sent: boot, received: boot, wall, correction: SignedDuration::ZERO }
}

fn answer(body: impl ToString) -> Response {
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Response { status: 200, headers, body: Secret::new(body.to_string()) }
}

fn opaque() -> Value {
    json!({"access_token": "canary-token", "token_type": "Bearer", "expires_in": 300})
}

fn claims() -> Value {
    json!({
        "iss": ISSUER, "aud": ["https://other.example", "https://api.example"], "sub": "billing",
        "client_id": "billing", "iat": NOW, "exp": NOW + 300, "jti": "j-1", "scope": "orders.read",
    })
}

fn jwt(claims: &Value) -> Value {
    let part = |value: &Value| b64(value.to_string().as_bytes());
    let token = format!("{}.{}.c2ln", part(&json!({"alg": "ES256", "typ": "JWT"})), part(claims));
    json!({"access_token": token, "token_type": "bearer", "expires_in": 300})
}

fn accept(response: &Response, order: &Order, issuer: &str, now: Moment) -> Result<Credential, IssueError> {
    reply::accept(response, order, Bound::Bearer, issuer, now, &mut IssueFacts::default())
}

fn key() -> &'static Arc<dyn Signer> {
    static KEY: std::sync::OnceLock<Arc<dyn Signer>> = std::sync::OnceLock::new();
    KEY.get_or_init(|| Arc::new(Key::generate(Algorithm::Es256).unwrap()))
}

fn judge_bound(reply: &Value) -> Result<Credential, IssueError> {
    let order = Order { binding: Binding::Dpop, ..order() };
    let bound = Bound::Dpop(Arc::clone(key()));
    reply::accept(&answer(reply), &order, bound, ISSUER, now(), &mut IssueFacts::default())
}

#[test]
fn a_bound_token_names_our_key_or_is_thrown_away() {
    // DPOP-04, DPOP-05, S4
    let named =
        |jkt: Value| with(jwt(&with(claims(), "cnf", json!({"jkt": jkt}))), "token_type", json!("dPoP"));
    let credential = judge_bound(&named(json!(key().kid()))).unwrap();
    assert_eq!(credential.binding(), Binding::Dpop);
    assert_eq!(credential.bound.thumbprint(), Some(key().kid()));
    // Opaque: the issuer is taken at its word.
    assert!(judge_bound(&with(opaque(), "token_type", json!("DPoP"))).is_ok());
    for bad in [
        opaque(),
        named(json!("0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I")),
        named(json!(null)),
        named(json!([key().kid()])),
        with(jwt(&claims()), "token_type", json!("DPoP")),
        with(jwt(&with(claims(), "cnf", json!({"x5t#S256": key().kid()}))), "token_type", json!("DPoP")),
        with(jwt(&with(claims(), "cnf", json!("eyJ"))), "token_type", json!("DPoP")),
        with(named(json!(key().kid())), "token_type", json!("Bearer")),
        with(named(json!(key().kid())), "token_type", json!("N_A")),
    ] {
        assert_eq!(reason(judge_bound(&bad)), Reason::TokenNotBound, "{bad}");
    }
    assert_eq!(reason(judge(&named(json!(key().kid())))), Reason::TokenNotBound, "nor the other way round");
}

fn judge(reply: &Value) -> Result<Credential, IssueError> {
    accept(&answer(reply), &order(), ISSUER, now())
}

fn with(mut value: Value, member: &str, new: Value) -> Value {
    value[member] = new;
    value
}

fn reason(result: Result<Credential, IssueError>) -> Reason {
    result.unwrap_err().reason()
}

#[test]
fn a_good_reply_becomes_a_credential() {
    let credential = judge(&jwt(&claims())).unwrap();
    assert_eq!(credential.window.life(), Duration::from_secs(300));
    assert_eq!(credential.window.until_wall.as_second(), NOW + 300);
    assert_eq!(credential.scope, ["orders.read"]);
    assert_eq!(credential.audience.as_deref(), Some("https://api.example"));
    assert_eq!(credential.jti, Some(Fingerprint::of(b"j-1")));
    assert_eq!(credential.fingerprint, credential.handle().fingerprint());
    let credential = judge(&opaque()).unwrap();
    assert_eq!(credential.handle().expose(), b"canary-token");
    assert_eq!((credential.scope.len(), credential.jti), (2, None));
}

#[test]
fn expires_in_is_read_leniently_and_held_to_policy() {
    // CLK-04
    for (said, expected) in [
        (json!(300), Some(300)),
        (json!("300"), Some(300)),
        (json!(299.9), Some(299)),
        (json!("299.9"), Some(299)),
        (json!(1e9), Some(900)),
        (json!(1e300), Some(900)),
        (json!(null), Some(60)),
        (json!(0), None),
        (json!(0.5), None),
        (json!(-1), None),
        (json!("-1"), None),
        (json!(""), None),
        (json!("inf"), None),
        (json!("soon"), None),
        (json!(true), None),
        (json!([300]), None),
    ] {
        let result = judge(&with(opaque(), "expires_in", said.clone()));
        match expected {
            Some(seconds) => {
                let mut facts = IssueFacts::default();
                let reply = answer(with(opaque(), "expires_in", said.clone()));
                reply::accept(&reply, &order(), Bound::Bearer, ISSUER, now(), &mut facts).unwrap();
                assert_eq!(
                    facts.cut_life_from.is_some(),
                    said.as_f64().is_some_and(|said| said > 900.0),
                    "{said}"
                );
                assert_eq!(result.unwrap().window.life(), Duration::from_secs(seconds), "{said}")
            }
            None => assert_eq!(reason(result), Reason::IssuerProtocol, "{said}"),
        }
    }
    for (exp, life) in [(NOW + 30, 30), (NOW + 300, 60)] {
        let unsaid = with(jwt(&with(claims(), "exp", json!(exp))), "expires_in", Value::Null);
        assert_eq!(judge(&unsaid).unwrap().window.life(), Duration::from_secs(life));
    }
}

#[test]
fn a_life_is_counted_from_the_asking() {
    let late = |millis| Moment { received: now().sent + Duration::from_millis(millis), ..now() };
    let credential = accept(&answer(opaque()), &order(), ISSUER, late(1500)).unwrap();
    assert_eq!(credential.window.until, now().sent + Duration::from_secs(300));
    assert!(accept(&answer(opaque()), &order(), ISSUER, late(300_000)).is_err());
}

#[test]
fn every_claim_that_matters_is_held_against_the_order() {
    // OA-40, OA-09, OA-20, OA-21, CLK-04
    for (claim, value, expected) in [
        ("iss", json!("https://issuer.example/a/"), Err(Reason::IssuerMismatch)),
        ("iss", json!(7), Err(Reason::IssuerMismatch)),
        ("aud", json!("https://other.example"), Err(Reason::AudMismatch)),
        ("aud", json!([]), Err(Reason::AudMismatch)),
        ("aud", json!(null), Err(Reason::AudMismatch)),
        ("aud", json!("https://api.example"), Ok(300)),
        ("exp", json!(NOW), Err(Reason::IssuerProtocol)),
        ("exp", json!("later"), Err(Reason::IssuerProtocol)),
        ("exp", json!(NOW + 100), Ok(100)),
        ("iat", json!(NOW + 10), Ok(290)),
        ("iat", json!(NOW - 100), Ok(300)),
        ("scope", json!("orders.read admin"), Err(Reason::ScopeEscalated)),
        ("scope", json!(7), Err(Reason::IssuerProtocol)),
        ("scope", json!(["orders.write"]), Ok(300)),
        ("cnf", json!({"jkt": "x"}), Err(Reason::TokenNotBound)),
        // Not ours to judge.
        ("sub", json!("somebody"), Ok(300)),
        ("client_id", json!("somebody"), Ok(300)),
        ("jti", json!(7), Ok(300)),
    ] {
        let result = judge(&jwt(&with(claims(), claim, value.clone())));
        let result =
            result.map(|credential| credential.window.life().as_secs()).map_err(|error| error.reason());
        assert_eq!(result, expected, "{claim} {value}");
    }
    let scp = with(with(claims(), "scope", Value::Null), "scp", json!(["admin"]));
    let mut scp_only = scp.clone();
    scp_only.as_object_mut().unwrap().remove("scope");
    assert_eq!(reason(judge(&jwt(&scp_only))), Reason::ScopeEscalated);
}

#[test]
fn an_audience_is_only_demanded_where_policy_demands_it() {
    // OA-21
    let foreign = jwt(&with(claims(), "aud", json!("https://other.example")));
    let lax = Order { require_aud: false, ..order() };
    assert!(accept(&answer(&foreign), &lax, ISSUER, now()).is_ok());
}

#[test]
fn more_scope_than_asked_is_thrown_away() {
    // OA-20
    let granted = |scope: Value| judge(&with(opaque(), "scope", scope));
    assert_eq!(granted(json!("orders.write")).unwrap().scope, ["orders.write"]);
    assert_eq!(granted(json!("")).unwrap().scope, Vec::<String>::new());
    assert_eq!(reason(granted(json!("orders.read orders.write admin"))), Reason::ScopeEscalated);
    assert_eq!(reason(granted(json!("ORDERS.READ"))), Reason::ScopeEscalated);
}

#[test]
fn a_token_is_opaque_bytes_within_bounds() {
    // OA-45
    for token in ["a\r\nX: y", "a b", "a\u{0}", "\u{fc}", "", "===", "a=b", "a\"b", "a,b"] {
        let error = judge(&with(opaque(), "access_token", json!(token))).unwrap_err();
        assert!(matches!(error, IssueError::Refused { reason: Reason::IssuerProtocol, .. }), "{token:?}");
    }
    assert!(judge(&with(opaque(), "access_token", json!("a-._~+/9=="))).is_ok());
    assert!(judge(&with(opaque(), "access_token", json!("x".repeat(MAX_TOKEN)))).is_ok());
    assert!(judge(&with(opaque(), "access_token", json!("x".repeat(MAX_TOKEN + 1)))).is_err());
}

#[test]
fn the_reply_itself_is_held_to_the_protocol() {
    // OA-03, OA-09, OA-44
    for kind in ["text/html", "", "application/jsonx", "text/json"] {
        let mut page = answer(opaque());
        page.headers.insert(header::CONTENT_TYPE, HeaderValue::from_str(kind).unwrap());
        let error = accept(&page, &order(), ISSUER, now()).unwrap_err();
        assert!(matches!(error, IssueError::Retry { reason: Reason::IssuerProtocol, .. }), "{kind}");
    }
    let twice = r#"{"access_token":"a","access_token":"b","token_type":"Bearer"}"#;
    assert_eq!(reason(accept(&answer(twice), &order(), ISSUER, now())), Reason::IssuerProtocol);
    let mismatch = with(opaque(), "iss", json!("https://issuer.example"));
    assert_eq!(reason(judge(&mismatch)), Reason::IssuerMismatch);
    for (member, value, expected) in [
        ("token_type", json!(null), Reason::IssuerProtocol),
        ("token_type", json!("DPoP"), Reason::TokenNotBound),
        ("token_type", json!("N_A"), Reason::TokenNotBound),
        ("access_token", json!(7), Reason::IssuerProtocol),
        ("scope", json!({}), Reason::IssuerProtocol),
    ] {
        assert_eq!(reason(judge(&with(opaque(), member, value))), expected, "{member}");
    }
    let refreshing = with(opaque(), "refresh_token", json!("canary-refresh"));
    assert!(!format!("{:?}", judge(&refreshing)).contains("canary"));
    assert_eq!(reason(judge(&json!([opaque()]))), Reason::IssuerProtocol);
}

//! The client configuration endpoint (RFC 7592): what is sent there, where it is not sent, and what each answer means.

use super::*;
use crate::issuer::registration::{Access, Ask, Registration};

fn access(stage: &Stage) -> Access {
    let uri = format!("{}/register/payments?x=1", stage.script.url);
    Access { uri, token: crate::secret::Secret::new("canary-right") }
}

fn document() -> Value {
    json!({"client_id": "payments", "jwks": {"keys": []}, "client_name": "P"})
}

async fn read(stage: &Stage) -> Result<Registration, IssueError> {
    Issuer::registration(&stage.oauth, &access(stage), Ask::Read).await
}

async fn answered(answer: Answer) -> Result<Registration, IssueError> {
    let stage = Stage::new().await;
    stage.script.will([answer]);
    read(&stage).await
}

#[tokio::test]
async fn the_two_requests_are_these_and_nothing_else() {
    // KEY-09, RFC 7592 2.1, 2.2, RFC 6750 2.1
    let stage = Stage::new().await;
    stage.script.will([Answer::json(200, document()), Answer::json(200, document())]);
    let told = read(&stage).await.unwrap();
    assert_eq!(Value::Object(told.metadata), document());
    assert!(told.renewed.is_none() && told.misplaced.is_none());
    stage.oauth.registration(&access(&stage), Ask::Replace(document())).await.unwrap();
    let diary = stage.script.diary();
    assert_eq!(diary[0].line, "GET /register/payments?x=1 HTTP/1.1");
    assert_eq!((&*diary[1].line, &*diary[0].body), ("PUT /register/payments?x=1 HTTP/1.1", ""));
    assert_eq!(serde_json::from_str::<Value>(&diary[1].body).unwrap(), document());
    for seen in &diary {
        let head = seen.head.to_ascii_lowercase();
        assert_eq!(head.matches("authorization: bearer canary-right\r\n").count(), 1, "{head}");
        assert!(!head.contains("dpop") && !head.contains("cookie"), "{head}");
    }
    let kind = |at: usize| diary[at].head.to_ascii_lowercase().contains("content-type: application/json\r\n");
    assert_eq!((kind(0), kind(1)), (false, true));
}

#[tokio::test]
async fn the_right_goes_to_no_other_host() {
    // KEY-09, OA-01, OA-04
    let (stage, elsewhere) = (Stage::new().await, Script::plain().await);
    let foreign = elsewhere.url.replace("127.0.0.1", "localhost");
    for uri in [foreign.as_str(), "http://192.0.2.1/r", "https://u@127.0.0.1/r", "ftp://127.0.0.1/r", ""] {
        let access = Access { uri: uri.into(), ..access(&stage) };
        let error = stage.oauth.registration(&access, Ask::Read).await.unwrap_err();
        assert_eq!(error.reason(), Reason::EndpointForeign, "{uri}: {error}");
        assert!(!error.to_string().contains("canary"), "{error}");
    }
    stage.script.will([Answer::json(307, "{}").with("location", &elsewhere.url)]);
    assert_eq!(read(&stage).await.unwrap_err().reason(), Reason::IssuerRedirect);
    assert!(elsewhere.diary().is_empty());
}

#[tokio::test]
async fn another_right_and_another_place_are_told_apart_from_the_metadata() {
    // KEY-09, RFC 7592 3
    let stage = Stage::new().await;
    let with = |token: Value, uri: Value| {
        let mut document = document();
        document["registration_access_token"] = token;
        document["registration_client_uri"] = uri;
        Answer::json(200, document)
    };
    let (same, moved) = (access(&stage).uri, format!("{}/moved", stage.script.url));
    let cases = [
        (json!("canary-right"), json!(same), None),
        (json!("canary-next"), json!(same), Some(("canary-next", &same))),
        (Value::Null, json!(moved), Some(("canary-right", &moved))),
        (json!("canary-next"), json!(moved), Some(("canary-next", &moved))),
    ];
    for (token, uri, expected) in cases {
        stage.script.will([with(token, uri)]);
        let told = read(&stage).await.unwrap();
        assert_eq!(Value::Object(told.metadata.clone()), document(), "nothing of them is left in it");
        let renewed = told.renewed.as_ref();
        let renewed = renewed.map(|renewed| (renewed.token.expose_str().unwrap(), &renewed.uri));
        assert_eq!(renewed, expected);
        assert!(told.misplaced.is_none() && !format!("{told:?}").contains("canary"));
    }
    // The old right may be gone: the new one counts, though the place does not.
    let elsewhere = json!("https://elsewhere.example/r");
    stage.script.will([with(json!("canary-next"), elsewhere.clone()), with(Value::Null, elsewhere)]);
    let told = read(&stage).await.unwrap();
    let renewed = told.renewed.unwrap();
    assert_eq!((renewed.token.expose(), renewed.uri), (&b"canary-next"[..], same));
    assert_eq!(told.misplaced.unwrap().reason(), Reason::EndpointForeign);
    assert!(read(&stage).await.unwrap().renewed.is_none());
    for bad in [json!(""), json!("a b"), json!("x".repeat(9000)), json!(7)] {
        stage.script.will([with(json!("canary-next"), bad)]);
        let told = read(&stage).await.unwrap();
        assert_eq!(told.renewed.unwrap().token.expose(), b"canary-next");
        assert_eq!(told.misplaced.unwrap().reason(), Reason::IssuerProtocol);
    }
    for bad in [json!(""), json!("a b"), json!("a\r\nb"), json!("x".repeat(9000)), json!(7)] {
        stage.script.will([with(bad, Value::Null)]);
        let error = read(&stage).await.unwrap_err();
        assert_eq!(error.reason(), Reason::IssuerProtocol, "{error}");
    }
}

#[tokio::test]
async fn each_answer_that_is_no_registration_has_its_next_move() {
    // KEY-09, ER-11, ER-12, ER-13
    #[derive(Debug, PartialEq)]
    enum Next {
        Misconfigured,
        Refused,
        Retry,
    }
    let token = "0123456789abcdef0123456789abcdef0123456789abcdef";
    let cases = [
        (401, "invalid_token", Next::Misconfigured, Reason::ClientAuthRejected, "token_file"),
        (403, "insufficient_scope", Next::Misconfigured, Reason::ClientAuthRejected, "token_file"),
        (404, "", Next::Misconfigured, Reason::IssuerConfig, "take the registration out"),
        (405, "", Next::Misconfigured, Reason::IssuerConfig, "take the registration out"),
        (501, "", Next::Misconfigured, Reason::IssuerConfig, "take the registration out"),
        (400, "invalid_client_metadata", Next::Refused, Reason::IssuerConfig, "bad [removed]"),
        (400, "", Next::Refused, Reason::IssuerConfig, "400 without an OAuth error"),
        (422, "", Next::Refused, Reason::IssuerConfig, "422"),
        (409, "", Next::Retry, Reason::IssuerUnavailable, "409"),
        (429, "slow_down", Next::Retry, Reason::IssuerRateLimit, "429"),
        (500, "", Next::Retry, Reason::IssuerUnavailable, "500"),
        (503, "temporarily_unavailable", Next::Retry, Reason::IssuerUnavailable, "503"),
        (204, "", Next::Retry, Reason::IssuerUnavailable, "204"),
    ];
    for (status, code, next, reason, words) in cases {
        let body = match code {
            "" => json!({}),
            code => json!({"error": code, "error_description": format!("\u{1b}[31mbad {token}")}),
        };
        let error = answered(Answer::json(status, body).with("retry-after", "7")).await.unwrap_err();
        let is = match &error {
            IssueError::Misconfigured { .. } => Next::Misconfigured,
            IssueError::Refused { .. } => Next::Refused,
            IssueError::Later { .. } => panic!("nobody asks it to wait"),
            IssueError::Retry { after, .. } => {
                assert_eq!(*after, Some(Duration::from_secs(7)), "{status}");
                Next::Retry
            }
        };
        assert_eq!((is, error.reason()), (next, reason), "{status}: {error}");
        let text = error.to_string();
        assert!(text.contains(words) && !text.contains(token) && !text.contains('\u{1b}'), "{text}");
    }
}

#[tokio::test]
async fn what_is_no_json_object_is_no_registration() {
    // OA-03, KEY-09
    for answer in [
        Answer::json(200, "[]"),
        Answer::json(200, r#"{"client_id":"a","client_id":"b"}"#),
        Answer::json(200, "{").with("content-type", "application/json"),
        Answer::json(200, "{}").with("content-type", "text/html"),
        Answer::json(200, format!("{{\"a\":\"{}\"}}", "x".repeat(300 * 1024))),
    ] {
        assert_eq!(answered(answer).await.unwrap_err().reason(), Reason::IssuerProtocol);
    }
}

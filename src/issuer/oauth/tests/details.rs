//! Authorization details, sent and held against what comes back.

use serde_json::{Value, json};

use super::*;
use crate::{issuer::terms::Terms, jose::b64};

async fn stage() -> Stage {
    let mut stage = Stage::new().await;
    let details = vec![json!({"type": "account", "actions": ["read", "list"]})];
    stage.order.terms = Arc::new(Terms { details, ..Terms::default() });
    stage
}

fn reply(details: Value) -> Value {
    json!({"access_token": "canary-token", "token_type": "Bearer", "expires_in": 300, "authorization_details": details})
}

#[tokio::test]
async fn details_are_sent_as_json_and_come_back_the_same_or_less() {
    // OA-27
    let stage = stage().await;
    let wider = json!([{"type": "account", "actions": ["read", "list", "write"]}]);
    let inner = |details: &Value| {
        let claims = json!({"exp": NOW + 300, "authorization_details": details});
        let jwt = format!("{}.{}.c2ln", b64(br#"{"alg":"ES256"}"#), b64(claims.to_string().as_bytes()));
        json!({"access_token": jwt, "token_type": "Bearer", "expires_in": 300})
    };
    let fine = json!([{"type": "account", "actions": ["read"]}]);
    let mut both = inner(&wider);
    both["authorization_details"] = fine.clone();
    stage.script.will([Answer::json(200, stage.metadata())]);
    for (answer, expected) in [
        (reply(fine.clone()), None),
        (inner(&fine), None),
        (reply(wider.clone()), Some(Reason::RarEscalated)),
        (inner(&wider), Some(Reason::RarEscalated)),
        (both, Some(Reason::RarEscalated)),
        (reply(Value::Null), Some(Reason::RarEscalated)),
    ] {
        stage.script.will([Answer::json(200, &answer)]);
        let reason = stage.issue().await.result.err().map(|error| error.reason());
        assert_eq!(reason, expected, "{answer}");
    }
    let sent = stage.script.posts()[0].form("authorization_details");
    assert_eq!(serde_json::from_str::<Value>(&sent[0]).unwrap(), json!(stage.order.terms.details));
    stage.script.will([error(400, "invalid_authorization_details")]);
    // ER-07
    assert_eq!(stage.reason().await, Reason::RarDenied);
}

#[tokio::test]
async fn details_nobody_asked_for_are_refused() {
    // OA-27
    let stage = Stage::new().await;
    let answer = reply(json!([{"type": "account"}]));
    stage.script.will([Answer::json(200, stage.metadata()), Answer::json(200, answer)]);
    assert_eq!(stage.reason().await, Reason::RarEscalated);
    assert!(stage.script.posts()[0].form("authorization_details").is_empty());
}

#[tokio::test]
async fn only_types_that_the_issuer_knows_are_asked_for() {
    // OA-27
    for (listed, known) in
        [(json!(["payment", "account"]), true), (json!(["payment"]), false), (json!([]), false)]
    {
        let stage = stage().await;
        let mut metadata = stage.metadata();
        metadata["authorization_details_types_supported"] = listed.clone();
        let answer = reply(json!(stage.order.terms.details));
        stage.script.will([Answer::json(200, metadata), Answer::json(200, answer)]);
        let reason = stage.issue().await.result.err().map(|error| error.reason());
        assert_eq!(reason, (!known).then_some(Reason::IssuerConfig), "{listed}");
        assert_eq!(stage.script.posts().len(), usize::from(known));
    }
}

#[test]
fn other_details_are_another_order() {
    // CLK-08
    let with = |details| Order { terms: Arc::new(Terms { details, ..Terms::default() }), ..order() };
    let read = || vec![json!({"type": "account", "actions": ["read"]})];
    assert_eq!(with(read()), with(read()));
    assert_ne!(with(read()), with(vec![]));
    assert_ne!(with(read()), with(vec![json!({"type": "account", "actions": ["list"]})]));
}

//! Opaque tokens that have to be bound, looked up at the issuer.

use serde_json::{Value, json};

use super::*;
use crate::issuer::terms::Terms;

impl Stage {
    async fn looking(introspect: bool) -> Self {
        let mut stage = Self::new().await;
        stage.order.binding = Binding::Dpop;
        stage.order.require_aud = true;
        stage.order.terms = Arc::new(Terms { introspect, ..Terms::default() });
        let mut metadata = stage.metadata();
        metadata["introspection_endpoint"] = json!(format!("{}/introspect", stage.script.url));
        let bound = json!({"access_token": "canary-token", "token_type": "DPoP", "expires_in": 300});
        stage.script.will([Answer::json(200, metadata), Answer::json(200, bound)]);
        stage
    }

    fn said(&self) -> Value {
        let jkt = self.signers.dpop.as_ref().unwrap().kid();
        json!({
            "active": true, "token_type": "DPoP", "cnf": {"jkt": jkt}, "scope": "orders.read", "exp": NOW + 300,
            "aud": "https://api.example/v1?x=1", "iss": self.script.url,
        })
    }
}

#[tokio::test]
async fn a_token_that_does_not_speak_for_itself_is_looked_up_once() {
    // OA-42, DPOP-16, PKJ-16
    let stage = Stage::looking(true).await;
    stage.script.will([Answer::json(200, stage.said())]);
    stage.issue().await.result.unwrap();
    let posts = stage.script.posts();
    assert_eq!(posts.len(), 2);
    assert_eq!(posts[1].line, "POST /introspect HTTP/1.1");
    assert_eq!(posts[1].form("token"), ["canary-token"]);
    assert_eq!(posts[1].form("token_type_hint"), ["access_token"]);
    assert_eq!(claims(&posts[1])["aud"], json!(stage.script.url));
    assert_ne!(claims(&posts[0])["jti"], claims(&posts[1])["jti"]);
    assert!(!posts[1].head.to_ascii_lowercase().contains("dpop:"), "no token is asked for");
    // What it says of the token's end counts, if that is sooner than the reply said.
    for (exp, life) in [(NOW + 120, 120), (NOW + 900, 300)] {
        let stage = Stage::looking(true).await;
        let mut said = stage.said();
        said["exp"] = json!(exp);
        stage.script.will([Answer::json(200, said)]);
        let window = stage.issue().await.result.unwrap().window;
        assert!(window.life().as_secs().abs_diff(life) <= 5, "{:?}", window.life());
    }
}

#[tokio::test]
async fn what_the_issuer_says_of_it_has_to_fit() {
    // OA-42, DPOP-16, OA-20, OA-21
    for (member, value, expected) in [
        ("token_type", Value::Null, None),
        ("token_type", json!("dpop"), None),
        ("aud", json!(["https://api.example/v1?x=1"]), None),
        ("exp", Value::Null, None),
        ("active", json!(false), Some(Reason::TokenInactive)),
        ("active", json!("true"), Some(Reason::TokenInactive)),
        ("token_type", json!("Bearer"), Some(Reason::TokenNotBound)),
        ("cnf", Value::Null, Some(Reason::TokenNotBound)),
        ("cnf", json!({"jkt": "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"}), Some(Reason::TokenNotBound)),
        ("scope", json!("orders.read orders.delete"), Some(Reason::ScopeEscalated)),
        ("aud", json!("https://other.example"), Some(Reason::AudMismatch)),
        ("aud", json!(["https://api.example/v1?x=1", "https://other.example"]), Some(Reason::AudMismatch)),
        ("aud", Value::Null, Some(Reason::AudMismatch)),
        ("iss", json!("https://other.example"), Some(Reason::IssuerMismatch)),
        ("authorization_details", json!([{"type": "account"}]), Some(Reason::RarEscalated)),
        ("exp", json!(NOW), Some(Reason::IssuerProtocol)),
    ] {
        let stage = Stage::looking(true).await;
        let mut said = stage.said();
        said[member] = value.clone();
        stage.script.will([Answer::json(200, said)]);
        let reason = stage.issue().await.result.err().map(|error| error.reason());
        assert_eq!(reason, expected, "{member}: {value}");
    }
    for (answer, expected) in [
        (error(401, "invalid_client"), Reason::ClientAuthRejected),
        (Answer::json(503, ""), Reason::IssuerUnavailable),
        (Answer::json(200, "{}").with("content-type", "text/html"), Reason::IssuerProtocol),
        (Answer::json(200, r#"{"active":true,"active":false}"#), Reason::IssuerProtocol),
    ] {
        let stage = Stage::looking(true).await;
        stage.script.will([answer]);
        assert_eq!(stage.reason().await, expected);
    }
}

#[tokio::test]
async fn what_need_not_be_looked_up_is_not() {
    // OA-42
    let stage = Stage::looking(false).await;
    stage.issue().await.result.unwrap();
    assert_eq!(stage.script.posts().len(), 1);
    let mut stage = Stage::new().await;
    stage.order.binding = Binding::Dpop;
    stage.order.terms = Arc::new(Terms { introspect: true, ..Terms::default() });
    // It offers none.
    let bound = json!({"access_token": "canary-token", "token_type": "DPoP", "expires_in": 300});
    stage.script.will([Answer::json(200, stage.metadata()), Answer::json(200, bound)]);
    assert_eq!(stage.reason().await, Reason::IssuerConfig);
}

//! `authorization_details`, from registration to introspection.

use super::*;

async fn ask(rig: &Rig, details: &str) -> Reply {
    rig.token_with(&rig.assertion(), &[("resource", ORDERS), ("authorization_details", details)]).await
}

/// The shop, registered from outside for these types.
async fn register(rig: &Rig, types: &[&str]) {
    let wish = json!({
        "client_id": "shop", "jwks": {"keys": [rig.key.public().jwk(rig.key.algorithm())]},
        "scope": "orders.read", "resources": [ORDERS], "authorization_details_types": types,
    });
    assert_eq!(post_json(rig.issuer.url(), "/dev/clients", &wish).await.status, 201);
}

#[tokio::test]
async fn details_are_granted_as_asked_and_are_in_answer_token_and_introspection() {
    // OA-27, RFC 9396 7 and 9
    let rig = Rig::start().await;
    register(&rig, &["orders", "refunds"]).await;
    let asked = json!([
        {"type": "orders", "actions": ["read"], "locations": [ORDERS]},
        {"type": "refunds", "amount": {"currency": "EUR", "most": "20"}},
    ]);
    let reply = ask(&rig, &asked.to_string()).await;
    assert_eq!(reply.json()["authorization_details"], asked);
    let token = reply.access_token();
    let claims: Value = jose::Unverified::parse(&token).unwrap().claims().unwrap();
    assert_eq!(claims["authorization_details"], asked);
    let seen = rig.authenticated("/introspect", &rig.assertion(), &[("token", &token)]).await.json();
    assert_eq!(seen["authorization_details"], asked);
    let metadata = get(rig.issuer.url(), "/.well-known/oauth-authorization-server", "").await.json();
    assert_eq!(metadata["authorization_details_types_supported"], json!(["orders", "refunds"]));
    assert_eq!(rig.token().await.json().get("authorization_details"), None, "none were asked for");
}

#[tokio::test]
async fn details_of_another_form_or_type_are_refused() {
    // OA-27, ER-07
    let rig = Rig::start().await;
    register(&rig, &["orders"]).await;
    for details in [
        "orders",
        "[",
        "{}",
        "[]",
        "[7]",
        "[\"orders\"]",
        "[{}]",
        "[{\"type\": 7}]",
        "[{\"type\": \"Orders\"}]",
        "[{\"type\": \"orders\"}, {\"type\": \"refunds\"}]",
    ] {
        let reply = ask(&rig, details).await;
        assert_eq!(reply.error(), (400, "invalid_authorization_details".into()), "{details}: {reply:?}");
    }
    assert_eq!(rig.issuer.diary().counts.tokens, 0);
    register(&rig, &[]).await;
    let reply = ask(&rig, "[{\"type\": \"orders\"}]").await;
    assert_eq!(reply.error(), (400, "invalid_authorization_details".into()));
}

#[tokio::test]
async fn details_go_wider_than_asked_as_named() {
    // OA-27
    let rig = Rig::start().await;
    register(&rig, &["orders"]).await;
    rig.issuer.set_fault(Fault::WiderDetails, None);
    for (asked, granted) in [
        (json!([{"type": "orders"}]), json!([{"type": "orders", "actions": ["admin"]}])),
        (
            json!([{"type": "orders", "actions": ["read"]}]),
            json!([{"type": "orders", "actions": ["read", "admin"]}]),
        ),
    ] {
        let reply = ask(&rig, &asked.to_string()).await;
        assert_eq!(reply.json()["authorization_details"], granted);
        let claims: Value = jose::Unverified::parse(&reply.access_token()).unwrap().claims().unwrap();
        assert_eq!(claims["authorization_details"], granted);
    }
    assert_eq!(rig.issuer.diary().entries.back().unwrap().outcome, "fault:wider_details");
    let bare = rig.token().await;
    assert_eq!(bare.json().get("authorization_details"), None, "nothing to widen");
}

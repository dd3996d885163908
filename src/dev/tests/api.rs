//! What the demo API believes, over the socket; claim by claim it is tested where it is written.

use super::*;

#[tokio::test]
async fn orders_are_for_bearers_of_a_good_token_only() {
    // RFC 6750, BCP-04
    let rig = Rig::start().await;
    let token = rig.token().await.access_token();
    let ask = async |path: &str, headers: &str| get(&rig.api, path, headers).await;

    let bare = ask("/orders", "").await;
    assert_eq!(bare.status, 401);
    assert_eq!(bare.header("www-authenticate"), Some("Bearer realm=\"keybearer demo API\""), "no error code");
    assert_eq!(ask("/orders", "Authorization: Basic c2hvcDpz\r\n").await.status, 401);
    let good = format!("Authorization: Bearer {token}\r\n");
    for (path, headers) in [
        (format!("/orders?access_token={token}"), String::new()),
        (format!("/orders?a=b&access_token={token}"), good.clone()),
        ("/orders".into(), format!("{good}{good}")),
        ("/orders".into(), "Authorization: Bearer \r\n".into()),
        ("/orders".into(), "Authorization: Bearer a b\r\n".into()),
        ("/orders".into(), format!("Authorization: Bearer {}\r\n", "a".repeat(16 * 1024 + 1))),
    ] {
        let reply = ask(&path, &headers).await;
        assert_eq!(reply.error(), (400, "invalid_request".into()), "{path}");
        assert!(reply.header("www-authenticate").unwrap().starts_with("Bearer error=\"invalid_request\""));
    }
    assert_eq!(ask("/orders", &good.replace("Bearer", "bearer")).await.status, 200);
    assert_eq!(ask("/", &good).await.status, 404);
    assert_eq!(post(&rig.api, "/orders", &[], &good).await.status, 405);
}

#[tokio::test]
async fn a_token_for_another_api_or_for_less_is_refused() {
    // BCP-02, OA-21
    let rig = Rig::start().await;
    let stock = rig.token_with(&rig.assertion(), &[("resource", "https://stock.test")]).await.access_token();
    let reply = rig.orders(&stock).await;
    assert_eq!(reply.error(), (401, "invalid_token".into()));
    assert!(reply.header("www-authenticate").unwrap().starts_with("Bearer error=\"invalid_token\""));

    let narrow = [("resource", ORDERS), ("scope", "orders.write")];
    let narrow = rig.token_with(&rig.assertion(), &narrow).await.access_token();
    let reply = rig.orders(&narrow).await;
    assert_eq!(reply.error(), (403, "insufficient_scope".into()));
    assert!(reply.header("www-authenticate").unwrap().ends_with("scope=\"orders.read\""));

    assert_eq!(
        rig.orders(&rig.assertion()).await.error(),
        (401, "invalid_token".into()),
        "not an access token"
    );
}

#[tokio::test]
async fn a_token_ends_on_the_second() {
    let settings = DevIssuerSettings { token_life: Duration::from_secs(30), ..DevIssuerSettings::default() };
    let rig = Rig::with(settings);
    let reply = rig.token().await;
    assert_eq!(reply.json()["expires_in"], 30);
    let token = reply.access_token();
    rig.clock.advance(Duration::from_secs(29));
    assert_eq!(rig.orders(&token).await.status, 200);
    rig.clock.advance(Duration::from_secs(1));
    let refused = rig.orders(&token).await;
    assert_eq!(refused.error(), (401, "invalid_token".into()));
    assert!(refused.header("www-authenticate").unwrap().contains("expired"));
}

#[tokio::test]
async fn a_token_of_another_issuer_is_refused() {
    // OA-09
    let (ours, theirs) = (Rig::start().await, Rig::start().await);
    let token = theirs.token().await.access_token();
    assert_eq!(theirs.orders(&token).await.status, 200);
    assert_eq!(ours.orders(&token).await.error(), (401, "invalid_token".into()));
}

//! RFC 7592 as the issuer holds it: with each answer another right, and nothing for who has none.

use super::*;

async fn asked(rig: &Rig, method: &str, uri: &str, right: &str, body: &str) -> Reply {
    let path = uri.strip_prefix(rig.issuer.url()).unwrap();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nAuthorization: Bearer {right}\r\nContent-Type: \
         application/json\r\nContent-Length: {}\r\n\r\n{body}",
        rig.issuer.url().strip_prefix("http://").unwrap(),
        body.len()
    );
    exchange(rig.issuer.url(), &request).await
}

#[tokio::test]
async fn each_answer_gives_another_right_and_ends_the_one_before() {
    // KEY-09, RFC 7592 2, 3
    let rig = Rig::start().await;
    assert!(rig.issuer.registration("nobody").is_none());
    let (uri, first) = rig.issuer.registration("shop").unwrap();
    let read = asked(&rig, "GET", &uri, &first, "").await.json();
    assert_eq!((&read["client_id"], &read["registration_client_uri"]), (&json!("shop"), &json!(uri)));
    let second = read["registration_access_token"].as_str().unwrap().to_owned();
    for wrong in [first.as_str(), "", &second[1..]] {
        let refused = asked(&rig, "GET", &uri, wrong, "").await;
        assert_eq!(refused.error(), (401, "invalid_token".into()));
        assert!(refused.header("www-authenticate").unwrap().starts_with("Bearer"));
    }
    assert_eq!(asked(&rig, "GET", &format!("{uri}x"), &second, "").await.status, 401);
    assert_eq!(asked(&rig, "DELETE", &uri, &second, "").await.status, 405);

    let next = Key::generate(Algorithm::EdDsa).unwrap();
    let mut document = read.clone();
    let keys = document["jwks"]["keys"].as_array_mut().unwrap();
    keys.push(next.public().jwk(Algorithm::EdDsa));
    let sent = document.clone();
    let refused = asked(&rig, "PUT", &uri, &second, &sent.to_string()).await;
    assert_eq!(refused.error(), (400, "invalid_request".into()), "what is the issuer's to say was sent back");
    for ours in ["client_id_issued_at", "registration_access_token", "registration_client_uri"] {
        document.as_object_mut().unwrap().remove(ours);
    }
    for (name, value) in [("client_id", json!("other")), ("token_endpoint_auth_method", json!("none"))] {
        let mut wrong = document.clone();
        wrong[name] = value;
        let refused = asked(&rig, "PUT", &uri, &second, &wrong.to_string()).await;
        assert_eq!(refused.error(), (400, "invalid_client_metadata".into()));
    }
    rig.issuer.set_fault(Fault::InvalidMetadata, Some(1));
    let refused = asked(&rig, "PUT", &uri, &second, &document.to_string()).await;
    assert_eq!(refused.error(), (400, "invalid_client_metadata".into()));
    let put = asked(&rig, "PUT", &uri, &second, &document.to_string()).await.json();
    assert_eq!(put["jwks"], sent["jwks"]);
    assert_eq!(put["scope"], "orders.read orders.write");
    assert_ne!(put["registration_access_token"].as_str(), Some(second.as_str()));
    // The new key is as good as the old one.
    let assertion = sign(&next, "client-authentication+jwt", &rig.claims());
    rig.token_with(&assertion, &[("resource", ORDERS)]).await.access_token();
    // A replacement is whole.
    document.as_object_mut().unwrap().remove("scope");
    let third = put["registration_access_token"].as_str().unwrap();
    assert_eq!(asked(&rig, "PUT", &uri, third, &document.to_string()).await.json()["scope"], "");
    rig.stop().await;
}

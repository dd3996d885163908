//! The small CA from outside: each rule of its own, broken once.

use ring::digest::{SHA256, digest};

use super::*;
use crate::keys::{Enrolment, KeyKind, Subject};

const NAME: &str = "spiffe://example.org/shop";

/// A request for the certificate of whoever has this name.
fn request(name: &str) -> Enrolment {
    Enrolment::begin(&Subject { uris: vec![name.into()], ..Subject::default() }, KeyKind::P256).unwrap()
}

impl Rig {
    /// A rig whose client may have a certificate.
    async fn with_ca() -> Self {
        let rig = Self::start().await;
        rig.issuer
            .register(Client { certificate_names: vec![NAME.into()], ..client("shop", &rig.key) })
            .unwrap();
        rig
    }

    /// Good claims for `request`.
    fn for_sign(&self, request: &Enrolment) -> Value {
        let now = self.now();
        json!({
            "iss": "shop", "sub": NAME, "sans": [NAME], "aud": format!("{}/1.0/sign", self.issuer.url()), "iat": now, "nbf": now,
            "exp": now + 60, "jti": self.jti(), "sha": self.issuer.root_sum(),
            "cnf": {"x5rt#S256": jose::b64(digest(&SHA256, request.csr()).as_ref())},
        })
    }

    async fn sign(&self, request: &Enrolment, claims: &Value, not_after: Option<&str>) -> Reply {
        let mut body = json!({"csr": request.csr_pem(), "ott": sign(&self.key, "JWT", claims)});
        if let Some(not_after) = not_after {
            body["notAfter"] = json!(not_after);
        }
        post_json(self.issuer.url(), "/1.0/sign", &body).await
    }
}

#[tokio::test]
async fn a_token_for_one_request_is_good_for_one_certificate() {
    // CA-01, PKJ-12
    let rig = Rig::with_ca().await;
    let request = request(NAME);
    let claims = rig.for_sign(&request);
    let made = rig.sign(&request, &claims, Some("3600s")).await;
    assert_eq!(made.status, 201, "{made:?}");
    assert_eq!(made.json()["certChain"].as_array().unwrap().len(), 2);
    let again = rig.sign(&request, &claims, Some("3600s")).await;
    assert_eq!((again.status, &again.json()["message"]), (401, &json!("token already used")));
    // Each rule, broken once.
    let (now, other) = (rig.now(), rig.for_sign(&self::request(NAME))["cnf"].clone());
    for (name, value, status) in [
        ("iss", json!("nobody"), 401),
        ("aud", json!(rig.issuer.url()), 401),
        ("aud", json!([format!("{}/1.0/sign", rig.issuer.url())]), 401),
        ("exp", json!(now + 301), 401),
        ("exp", json!(now), 401),
        ("iat", json!(now + 61), 401),
        ("nbf", json!(now + 61), 401),
        ("jti", json!(""), 401),
        ("sub", json!(""), 401),
        ("sha", json!("00"), 401),
        ("sans", json!([NAME, "spiffe://example.org/admin"]), 403),
        ("sans", json!([]), 403),
        ("sans", Value::Null, 403),
        ("cnf", other, 403),
        ("cnf", Value::Null, 403),
    ] {
        let mut claims = rig.for_sign(&request);
        claims[name] = value.clone();
        let denied = rig.sign(&request, &claims, None).await;
        assert_eq!(denied.status, status, "{name} {value}: {denied:?}");
    }
    for (not_after, status) in [
        ("86401s", 403),
        ("0s", 403),
        ("soon", 400),
        ("1999-01-01T00:00:00Z", 400),
        ("2100-01-01T00:00:00Z", 403),
        ("86400s", 201),
    ] {
        let answer = rig.sign(&request, &rig.for_sign(&request), Some(not_after)).await;
        assert_eq!(answer.status, status, "{not_after}: {answer:?}");
    }
    // A name that the client is not registered for; and a key that it is not.
    let foreign = self::request("spiffe://example.org/admin");
    let mut claims = rig.for_sign(&foreign);
    (claims["sub"], claims["sans"]) =
        (json!("spiffe://example.org/admin"), json!(["spiffe://example.org/admin"]));
    assert_eq!(rig.sign(&foreign, &claims, None).await.status, 403);
    let stranger = Key::generate(Algorithm::EdDsa).unwrap();
    let ott = sign(&stranger, "JWT", &rig.for_sign(&request));
    let body = json!({"csr": request.csr_pem(), "ott": ott});
    assert_eq!(post_json(rig.issuer.url(), "/1.0/sign", &body).await.status, 401);
    // Nothing that is no request is read, and nothing is renewed.
    for (path, body, status) in [
        ("/1.0/sign", json!({"csr": "x"}), 400),
        ("/1.0/sign", json!({"csr": "x", "ott": sign(&rig.key, "JWT", &rig.for_sign(&request))}), 400),
        ("/1.0/renew", json!({}), 401),
        ("/1.0/rekey", json!({"csr": request.csr_pem()}), 401),
    ] {
        assert_eq!(post_json(rig.issuer.url(), path, &body).await.status, status, "{path} {body}");
    }
}

#[tokio::test]
async fn only_whoever_got_a_certificate_ends_it_and_once() {
    // X5-07
    let rig = Rig::with_ca().await;
    let request = request(NAME);
    assert_eq!(rig.sign(&request, &rig.for_sign(&request), None).await.status, 201);
    let serial = rig.issuer.certificates("shop")[0].0.clone();
    let revoke = async |key: &Key, iss: &str, serial: &str, sub: &str| {
        let now = rig.now();
        let claims = json!({
            "iss": iss, "sub": sub, "aud": format!("{}/1.0/revoke", rig.issuer.url()), "iat": now, "nbf": now, "exp": now + 60,
            "jti": rig.jti(), "sha": rig.issuer.root_sum(),
        });
        let body =
            json!({"serial": serial, "ott": sign(key, "JWT", &claims), "reasonCode": 5, "passive": true});
        post_json(rig.issuer.url(), "/1.0/revoke", &body).await
    };
    let other = Key::generate(Algorithm::EdDsa).unwrap();
    rig.issuer.register(client("other", &other)).unwrap();
    assert_eq!(revoke(&other, "other", &serial, &serial).await.status, 403);
    assert_eq!(revoke(&rig.key, "shop", &serial, "7").await.status, 403);
    assert_eq!(revoke(&rig.key, "shop", "7", "7").await.status, 403);
    assert_eq!(rig.issuer.certificates("shop"), [(serial.clone(), false)]);
    assert_eq!(revoke(&rig.key, "shop", &serial, &serial).await.status, 200);
    assert_eq!(rig.issuer.certificates("shop"), [(serial.clone(), true)]);
    let again = revoke(&rig.key, "shop", &serial, &serial).await;
    assert!(again.status == 400 && again.body.contains("already revoked"), "{again:?}");
}

#[tokio::test]
async fn its_root_is_found_by_its_sum() {
    // CA-03
    let rig = Rig::with_ca().await;
    let sum = rig.issuer.root_sum();
    let found = get(rig.issuer.url(), &format!("/root/{sum}"), "").await;
    let all = get(rig.issuer.url(), "/roots", "").await;
    assert_eq!((found.status, all.status), (200, 201));
    assert_eq!(found.json()["ca"], all.json()["crts"][0]);
    assert_eq!(get(rig.issuer.url(), &format!("/root/{}", "0".repeat(64)), "").await.status, 404);
    assert_eq!(post_json(rig.issuer.url(), &format!("/root/{sum}"), &json!({})).await.status, 405);
}

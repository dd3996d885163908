//! Clients that prove themselves by the word of somebody who is trusted.

use super::*;

const CI: &str = "https://ci.test";
const DOMAIN: &str = "spiffe://example.org";
const SPIFFE_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-spiffe";

/// Trusts a new key as that of `issuer`.
fn trusted(rig: &Rig, issuer: &str) -> Key {
    let key = Key::generate(Algorithm::Es256).unwrap();
    rig.issuer.trust(issuer, &json!({"keys": [key.public().jwk(Algorithm::Es256)]})).unwrap();
    key
}

/// A client without a key of its own.
fn keyless(name: &str) -> Client {
    Client { client_id: name.into(), scope: vec!["orders.read".into()], ..Client::default() }
}

async fn ask(rig: &Rig, kind: &str, assertion: &str, more: &[(&str, &str)]) -> Reply {
    let form = [
        ("client_assertion_type", kind),
        ("client_assertion", assertion),
        ("grant_type", "client_credentials"),
    ];
    rig.post("/token", &[&form, more].concat()).await
}

fn client_of(reply: &Reply) -> Value {
    let claims: Value = jose::Unverified::parse(&reply.access_token()).unwrap().claims().unwrap();
    assert_eq!(claims["sub"], claims["client_id"]);
    claims["client_id"].clone()
}

fn assert_refused(reply: &Reply, hint: &str) {
    assert_eq!(reply.error(), (401, "invalid_client".into()), "{hint}: {reply:?}");
    assert!(reply.json()["error_description"].as_str().unwrap().contains(hint), "{hint}: {reply:?}");
}

#[tokio::test]
async fn a_jwt_of_a_trusted_issuer_stands_for_the_client_of_its_subject() {
    // RFC 7523 3, PKJ-03, PKJ-14
    let rig = Rig::start().await;
    let ci = trusted(&rig, CI);
    let federated = Federated { issuer: CI.into(), subject: "repo:shop".into() };
    rig.issuer.register(Client { federated: Some(federated.clone()), ..keyless("build") }).unwrap();
    let taken = rig.issuer.register(Client { federated: Some(federated), ..keyless("other") });
    assert_eq!(taken, Err(RegisterError::Taken("build".into())));

    let us = rig.issuer.url().to_owned();
    let good = json!({"iss": CI, "sub": "repo:shop", "aud": us, "iat": rig.now(), "exp": rig.now() + 3600});
    let signed = |name: &str, value: Value| {
        let mut claims = good.clone();
        claims[name] = value;
        sign(&ci, "JWT", &claims)
    };
    let whole = signed("more", Value::Null);
    for more in [&[][..], &[("client_id", "build")]] {
        assert_eq!(client_of(&ask(&rig, TYPE, &whole, more).await), "build", "it is shown until it expires");
    }
    assert_eq!(rig.issuer.diary().entries[0].client_id.as_deref(), Some("build"));
    assert_refused(&ask(&rig, TYPE, &whole, &[("client_id", "shop")]).await, "client_id must name");
    for (assertion, hint) in [
        (signed("sub", json!("repo:other")), "no client is registered"),
        (signed("aud", json!([us, "https://other.test"])), "aud must"),
        (signed("aud", json!(format!("{us}/token"))), "aud must"),
        (signed("exp", json!(rig.now())), "expired"),
        (signed("exp", json!(rig.now() + 3601)), "at most 3600"),
        (sign(&ci, "at+jwt", &good), "typ is of another kind"),
        (sign(&Key::generate(Algorithm::Es256).unwrap(), "JWT", &good), "kid names no key"),
        // Whoever is trusted does not speak for clients that nobody registered for it.
        (signed("sub", json!("shop")), "no client is registered"),
    ] {
        assert_refused(&ask(&rig, TYPE, &assertion, &[]).await, hint);
    }
    // The same JWT is not a grant as well (PKJ-18).
    let both = json!({"iss": CI, "sub": "repo:shop", "aud": us, "jti": "1", "exp": rig.now() + 60});
    let both = sign(&ci, "JWT", &both);
    let form = [
        ("client_assertion_type", TYPE),
        ("client_assertion", both.as_str()),
        ("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer"),
        ("assertion", both.as_str()),
    ];
    assert_eq!(rig.post("/token", &form).await.error(), (400, "invalid_grant".into()));
    // Nor does an issuer that is not trusted speak for anybody.
    let foreign = signed("iss", json!("https://other.test"));
    assert_refused(&ask(&rig, TYPE, &foreign, &[]).await, "typ must be client-authentication+jwt");
}

#[tokio::test]
async fn a_jwt_svid_stands_for_the_client_of_its_spiffe_id() {
    // DR-05, SPF-03
    let rig = Rig::start().await;
    let domain = trusted(&rig, DOMAIN);
    for (name, pattern) in [("whole", "/*"), ("some", "/shop/*"), ("one", "/shop/till")] {
        let spiffe_id = Some(format!("{DOMAIN}{pattern}"));
        rig.issuer.register(Client { spiffe_id, ..keyless(name) }).unwrap();
    }
    let us = rig.issuer.url().to_owned();
    let svid = |key: &Key, typ: &str, id: &str, aud: &Value| {
        sign(key, typ, &json!({"sub": id, "aud": aud, "exp": rig.now() + 300}))
    };
    let of = |path: &str| svid(&domain, "JWT", &format!("{DOMAIN}{path}"), &json!([us]));
    for (path, client) in
        [("/shop/till", "one"), ("/shop/till/1", "some"), ("/shop/cellar", "some"), ("/shops", "whole")]
    {
        assert_eq!(client_of(&ask(&rig, SPIFFE_TYPE, &of(path), &[]).await), client, "{path}");
    }
    let till = of("/shop/till");
    for name in ["one", "spiffe://example.org/shop/till"] {
        assert_eq!(client_of(&ask(&rig, SPIFFE_TYPE, &till, &[("client_id", name)]).await), "one");
    }
    for name in ["some", "spiffe://example.org/shop/*"] {
        let reply = ask(&rig, SPIFFE_TYPE, &till, &[("client_id", name)]).await;
        assert_refused(&reply, "client_id must name");
    }
    let id = format!("{DOMAIN}/shop/till");
    for (assertion, hint) in [
        (svid(&domain, "client-authentication+jwt", &id, &json!(us)), "typ is of another kind"),
        (svid(&domain, "JWT", &id, &json!([us, "https://other.test"])), "aud must"),
        (svid(&domain, "JWT", "spiffe://other.test/shop/till", &json!(us)), "not trusted"),
        (svid(&domain, "JWT", "shop", &json!(us)), "no SPIFFE ID"),
        (svid(&rig.key, "JWT", &id, &json!(us)), "header of a JWT-SVID"),
        (svid(&Key::generate(Algorithm::Es256).unwrap(), "JWT", &id, &json!(us)), "kid names no key"),
        (rig.assertion(), "header of a JWT-SVID"),
    ] {
        assert_refused(&ask(&rig, SPIFFE_TYPE, &assertion, &[]).await, hint);
    }
    // Under the other type it is an assertion of its own, and a bad one.
    assert_refused(&ask(&rig, TYPE, &till, &[]).await, "not a compact JWS with iss");
    let metadata = get(rig.issuer.url(), "/.well-known/oauth-authorization-server", "").await.json();
    assert_eq!(metadata["token_endpoint_auth_methods_supported"][1], "spiffe_jwt");
}

#[tokio::test]
async fn an_outside_program_registers_by_its_issuer_or_by_its_spiffe_id() {
    // DR-05, BCP-03
    let rig = Rig::start().await;
    let url = rig.issuer.url();
    let (ci, domain) = (trusted(&rig, CI), trusted(&rig, DOMAIN));
    for wish in [
        json!({"client_id": "build", "federated": {"issuer": CI, "subject": "repo:shop"}}),
        json!({"client_id": "till", "spiffe_id": format!("{DOMAIN}/till")}),
    ] {
        assert_eq!(post_json(url, "/dev/clients", &wish).await.status, 201, "{wish}");
    }
    let exp = rig.now() + 60;
    let build = sign(&ci, "JWT", &json!({"iss": CI, "sub": "repo:shop", "aud": url, "exp": exp}));
    assert_eq!(client_of(&ask(&rig, TYPE, &build, &[]).await), "build");
    let svid = json!({"sub": format!("{DOMAIN}/till"), "aud": url, "exp": exp});
    assert_eq!(client_of(&ask(&rig, SPIFFE_TYPE, &sign(&domain, "JWT", &svid), &[]).await), "till");
    for (wish, hint) in [
        (json!({"client_id": "bare"}), "at least one public key"),
        (json!({"client_id": "till2", "spiffe_id": format!("{DOMAIN}/till")}), "each has one client"),
        (json!({"client_id": "bad", "spiffe_id": DOMAIN}), "spiffe_id must be"),
        (json!({"client_id": "bad", "federated": {"issuer": CI}}), "send JSON"),
    ] {
        let reply = post_json(url, "/dev/clients", &wish).await;
        assert_eq!(reply.status, 400, "{wish}");
        assert!(reply.body.contains(hint), "{hint}: {reply:?}");
    }
}

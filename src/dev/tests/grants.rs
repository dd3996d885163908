//! Tokens about somebody else: exchanged, or granted by an issuer that is trusted.

use super::*;

const EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
const JWT_BEARER: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";
const ACCESS_TOKEN: &str = "urn:ietf:params:oauth:token-type:access_token";
const ID_TOKEN: &str = "urn:ietf:params:oauth:token-type:id_token";
const JWT: &str = "urn:ietf:params:oauth:token-type:jwt";
const CI: &str = "https://ci.test";

/// An issuer that the rig's issuer trusts.
fn trusted(rig: &Rig) -> Key {
    let key = Key::generate(Algorithm::Es256).unwrap();
    rig.issuer.trust(CI, &json!({"keys": [key.public().jwk(Algorithm::Es256)]})).unwrap();
    key
}

/// A good JWT about `subject` for the rig's issuer, with one claim changed.
fn about(rig: &Rig, key: &Key, subject: &str, change: (&str, Value)) -> String {
    let mut claims = json!({
        "iss": CI, "sub": subject, "aud": rig.issuer.url(), "iat": rig.now(), "exp": rig.now() + 300, "jti": rig.jti(),
    });
    claims[change.0] = change.1;
    sign(key, "JWT", &claims)
}

const AS_IS: (&str, Value) = ("more", Value::Null);

async fn ask(rig: &Rig, form: &[(&str, &str)]) -> Reply {
    rig.authenticated("/token", &rig.assertion(), form).await
}

async fn exchange(rig: &Rig, more: &[(&str, &str)]) -> Reply {
    ask(rig, &[&[("grant_type", EXCHANGE)], more].concat()).await
}

fn inside(reply: &Reply) -> Value {
    jose::Unverified::parse(&reply.access_token()).unwrap().claims().unwrap()
}

#[tokio::test]
async fn an_exchanged_token_is_about_the_subject_and_names_an_actor_only_if_one_came() {
    // OA-22, OA-23, OA-24, OA-25
    let rig = Rig::start().await;
    let ci = trusted(&rig);
    let job = about(&rig, &ci, "job:7", AS_IS);
    let subject = [("subject_token", job.as_str()), ("subject_token_type", ID_TOKEN)];
    let target = [("resource", ORDERS), ("scope", "orders.read")];
    let reply = exchange(&rig, &[subject, target].concat()).await;
    let answer = reply.json();
    assert_eq!(
        (&answer["issued_token_type"], &answer["token_type"], &answer["expires_in"], &answer["scope"]),
        (&json!(ACCESS_TOKEN), &json!("Bearer"), &json!(300), &json!("orders.read"))
    );
    assert_eq!(answer.get("refresh_token"), None);
    let claims = inside(&reply);
    assert_eq!((&claims["sub"], &claims["client_id"]), (&json!("job:7"), &json!("shop")));
    assert_eq!((&claims["aud"], claims.get("act")), (&json!(ORDERS), None));
    assert_eq!(rig.orders(&reply.access_token()).await.status, 200);

    // For somebody, with whoever acts for them; and who acted before stays on record.
    let first = about(&rig, &ci, "agent:1", AS_IS);
    let actor = [("actor_token", first.as_str()), ("actor_token_type", JWT)];
    let reply = exchange(&rig, &[&subject[..], &actor, &[("audience", ORDERS)]].concat()).await;
    assert_eq!(inside(&reply)["act"], json!({"iss": CI, "sub": "agent:1"}));
    let (ours, second) = (reply.access_token(), about(&rig, &ci, "agent:2", AS_IS));
    let again = [
        ("subject_token", ours.as_str()),
        ("subject_token_type", ACCESS_TOKEN),
        ("actor_token", second.as_str()),
        ("actor_token_type", JWT),
        ("requested_token_type", ACCESS_TOKEN),
    ];
    let reply = exchange(&rig, &again).await;
    assert_eq!(inside(&reply)["sub"], "job:7");
    let chain = json!({"iss": CI, "sub": "agent:2", "act": {"iss": CI, "sub": "agent:1"}});
    assert_eq!(inside(&reply)["act"], chain);
    let seen = rig.authenticated("/introspect", &rig.assertion(), &[("token", &reply.access_token())]).await;
    assert_eq!(seen.json()["act"], chain);
    let grant = rig.issuer.diary().entries.iter().rev().find_map(|entry| entry.grant.clone());
    assert_eq!(grant.as_deref(), Some(EXCHANGE));
}

#[tokio::test]
async fn an_exchange_is_complete_and_its_tokens_are_believed() {
    // OA-22, OA-24, RFC 8693 2.2.2
    let rig = Rig::start().await;
    let ci = trusted(&rig);
    let good = about(&rig, &ci, "job:7", AS_IS);
    let subject = [("subject_token", good.as_str()), ("subject_token_type", JWT)];
    let refused = async |form: &[(&str, &str)], hint: &str| {
        let reply = exchange(&rig, form).await;
        assert_eq!(reply.error(), (400, "invalid_request".into()), "{hint}: {reply:?}");
        assert!(reply.body.contains(hint), "{hint}: {reply:?}");
    };
    refused(&[], "subject_token").await;
    refused(&subject[..1], "subject_token_type together").await;
    refused(&subject[1..], "subject_token_type together").await;
    refused(&[subject[0], subject[1], ("actor_token", &good)], "actor_token_type together").await;
    refused(&[subject[0], subject[1], ("actor_token_type", JWT)], "actor_token_type together").await;
    for kind in
        ["jwt", "urn:ietf:params:oauth:token-type:saml2", "urn:ietf:params:oauth:token-type:refresh_token"]
    {
        refused(&[subject[0], ("subject_token_type", kind)], "must be access_token, jwt or id_token").await;
        refused(&[subject[0], subject[1], ("requested_token_type", kind)], "requested_token_type must").await;
    }
    let own = rig.token().await.access_token();
    for (token, kind, hint) in [
        (good.as_str(), ACCESS_TOKEN, "no live access token"),
        (&own, JWT, "typ is of another kind"),
        (&about(&rig, &ci, "job:7", ("iss", json!("https://other.test"))), JWT, "not trusted"),
        (&about(&rig, &ci, "job:7", ("aud", json!("https://other.test"))), JWT, "aud must"),
        (&about(&rig, &ci, "job:7", ("exp", json!(rig.now() + 3601))), JWT, "live at most 3600"),
        (&about(&rig, &ci, "shop", AS_IS), JWT, "name of a client"),
    ] {
        refused(&[("subject_token", token), ("subject_token_type", kind)], hint).await;
        refused(&[subject[0], subject[1], ("actor_token", token), ("actor_token_type", kind)], hint).await;
    }
    assert_eq!(rig.authenticated("/revoke", &rig.assertion(), &[("token", &own)]).await.status, 200);
    refused(&[("subject_token", &own), ("subject_token_type", ACCESS_TOKEN)], "no live access token").await;
    assert_eq!(exchange(&rig, &subject).await.status, 200);
}

#[tokio::test]
async fn an_exchange_is_for_one_known_target() {
    // OA-21, OA-22, RFC 8693 2.2.2
    let rig = Rig::start().await;
    let ci = trusted(&rig);
    let good = about(&rig, &ci, "job:7", AS_IS);
    let ask = async |more: &[(&str, &str)]| {
        exchange(&rig, &[&[("subject_token", good.as_str()), ("subject_token_type", JWT)], more].concat())
            .await
    };
    for target in [
        &[("resource", "https://other.test")][..],
        &[("audience", "https://other.test")],
        &[("resource", ORDERS), ("audience", "https://stock.test")],
        &[("resource", ORDERS), ("resource", "https://stock.test")],
    ] {
        assert_eq!(ask(target).await.error(), (400, "invalid_target".into()), "{target:?}");
    }
    assert_eq!(ask(&[("scope", "admin")]).await.error(), (400, "invalid_scope".into()));
    for target in [&[("audience", ORDERS)][..], &[("resource", ORDERS), ("audience", ORDERS)]] {
        assert_eq!(inside(&ask(target).await)["aud"], ORDERS);
    }
}

#[tokio::test]
async fn an_exchanged_token_is_bound_and_revoked_as_any_other() {
    // DPOP-05, OA-43
    let rig = Rig::with(DevIssuerSettings { dpop_nonces: false, ..DevIssuerSettings::default() });
    let ci = trusted(&rig);
    let good = about(&rig, &ci, "job:7", AS_IS);
    let proof = || {
        let url = format!("{}/token", rig.issuer.url());
        rig.holder.proof(&json!({"jti": rig.jti(), "htm": "POST", "htu": url, "iat": rig.now()}))
    };
    let ask = async |kind: &str| {
        let assertion = rig.assertion();
        let form = [
            ("client_assertion_type", TYPE),
            ("client_assertion", &assertion),
            ("grant_type", EXCHANGE),
            ("subject_token", &good),
            ("subject_token_type", JWT),
            ("requested_token_type", kind),
        ];
        post(rig.issuer.url(), "/token", &form, &format!("DPoP: {}\r\n", proof())).await
    };
    let bound = ask(ACCESS_TOKEN).await;
    assert_eq!(bound.json()["token_type"], "DPoP");
    assert_eq!(inside(&bound)["cnf"]["jkt"], rig.holder.jkt());
    let token = bound.access_token();
    let introspect = async || {
        rig.authenticated("/introspect", &rig.assertion(), &[("token", &token)]).await.json()["active"]
            .clone()
    };
    assert_eq!(introspect().await, true);
    assert_eq!(rig.authenticated("/revoke", &rig.assertion(), &[("token", &token)]).await.status, 200);
    assert_eq!(introspect().await, false);

    // What is no access token passes for none (OA-23).
    let other = ask(JWT).await;
    assert_eq!(
        (&other.json()["token_type"], &other.json()["issued_token_type"]),
        (&json!("N_A"), &json!(JWT))
    );
    assert_eq!(inside(&other).get("cnf"), None);
    assert_eq!(rig.orders(&other.access_token()).await.error(), (401, "invalid_token".into()));
    let seen = rig.authenticated("/introspect", &rig.assertion(), &[("token", &other.access_token())]).await;
    assert_eq!(seen.json(), json!({"active": false}));
}

#[tokio::test]
async fn an_assertion_is_granted_once_soon_and_here_only() {
    // OA-26, DR-02, PKJ-18
    let rig = Rig::start().await;
    let ci = trusted(&rig);
    let grant = async |assertion: &str| {
        ask(&rig, &[("grant_type", JWT_BEARER), ("assertion", assertion), ("resource", ORDERS)]).await
    };
    let good = about(&rig, &ci, "job:7", AS_IS);
    let reply = grant(&good).await;
    let claims = inside(&reply);
    assert_eq!((&claims["sub"], &claims["client_id"]), (&json!("job:7"), &json!("shop")));
    for absent in ["refresh_token", "issued_token_type"] {
        assert_eq!(reply.json().get(absent), None);
    }
    let url = rig.issuer.url();
    for (assertion, hint) in [
        (good, "used before"),
        (about(&rig, &ci, "job:7", ("aud", json!([url, "https://other.test"]))), "aud must"),
        (about(&rig, &ci, "job:7", ("aud", json!(format!("{url}/token")))), "aud must"),
        (about(&rig, &ci, "job:7", ("exp", json!(rig.now() + 301))), "live at most 300"),
        (about(&rig, &ci, "job:7", ("exp", json!(rig.now()))), "expired"),
        (about(&rig, &ci, "job:7", ("jti", Value::Null)), "jti must"),
        (about(&rig, &ci, "job:7", ("jti", json!("j".repeat(129)))), "jti must"),
        (about(&rig, &ci, "shop", AS_IS), "name of a client"),
        (rig.token().await.access_token(), "typ is of another kind"),
        (rig.assertion(), "typ is of another kind"),
        ("x".into(), "not a compact JWS"),
    ] {
        let reply = grant(&assertion).await;
        assert_eq!(reply.error(), (400, "invalid_grant".into()), "{hint}: {reply:?}");
        assert!(reply.body.contains(hint), "{hint}: {reply:?}");
    }
    let bare = ask(&rig, &[("grant_type", JWT_BEARER)]).await;
    assert_eq!(bare.error(), (400, "invalid_request".into()));
    // Used up by a request that got nothing.
    let used = about(&rig, &ci, "job:7", AS_IS);
    let form = [("grant_type", JWT_BEARER), ("assertion", used.as_str()), ("scope", "admin")];
    assert_eq!(ask(&rig, &form).await.error(), (400, "invalid_scope".into()));
    assert!(grant(&used).await.body.contains("used before"));
    // Remembered until it expires.
    rig.clock.advance(Duration::from_secs(299));
    assert!(grant(&used).await.body.contains("used before"));
}

#[tokio::test]
async fn one_issuer_passes_a_subject_on_to_another() {
    // DR-02, OA-24
    let (here, there) = (Rig::start().await, Rig::start().await);
    let ci = trusted(&here);
    there.issuer.trust(here.issuer.url(), &here.issuer.jwks()).unwrap();
    let mut shop = client("shop", &here.key);
    shop.resources.push(there.issuer.url().into());
    here.issuer.register(shop).unwrap();
    let good = about(&here, &ci, "job:7", AS_IS);
    let form = [
        ("subject_token", good.as_str()),
        ("subject_token_type", JWT),
        ("requested_token_type", JWT),
        ("audience", there.issuer.url()),
    ];
    let grant = exchange(&here, &form).await.access_token();
    let form =
        [("grant_type", JWT_BEARER), ("assertion", &grant), ("resource", ORDERS), ("scope", "orders.read")];
    let reply = ask(&there, &form).await;
    assert_eq!(inside(&reply)["sub"], "job:7");
    assert_eq!(there.orders(&reply.access_token()).await.status, 200);
    assert_eq!(ask(&there, &form).await.error(), (400, "invalid_grant".into()));
}

#[tokio::test]
async fn an_outside_program_says_whom_to_trust() {
    // OA-26
    let rig = Rig::start().await;
    let url = rig.issuer.url();
    let ci = Key::generate(Algorithm::Es256).unwrap();
    let wish = json!({"issuer": CI, "jwks": {"keys": [ci.public().jwk(Algorithm::Es256)]}});
    let assertion = about(&rig, &ci, "job:7", AS_IS);
    let form = [("grant_type", JWT_BEARER), ("assertion", assertion.as_str())];
    assert!(ask(&rig, &form).await.body.contains("POST /dev/trust"));
    let reply = post_json(url, "/dev/trust", &wish).await;
    assert_eq!((reply.status, &reply.json()["trusted"]), (201, &json!(CI)));
    assert_eq!(ask(&rig, &form).await.status, 200);
    let unnamed = post_json(url, "/dev/trust", &json!({"issuer": "ci", "jwks": wish["jwks"]})).await;
    assert_eq!(unnamed.status, 400);
    assert!(unnamed.body.contains("https://"), "{unnamed:?}");
    assert_eq!(post_json(url, "/dev/trust", &json!({"issuer": CI, "key": 1})).await.status, 400);
    assert_eq!(get(url, "/dev/trust", "").await.status, 405);
}

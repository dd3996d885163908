//! Bound tokens at the demo API: what the proof of a request must be.

use super::*;

/// A token that is bound to the holder's key.
async fn bound(rig: &Rig) -> String {
    let claims = |nonce: Option<&str>| {
        let url = format!("{}/token", rig.issuer.url());
        json!({"jti": rig.jti(), "htm": "POST", "htu": url, "iat": rig.now(), "nonce": nonce})
    };
    let refused = rig.token_proved(&rig.assertion(), &[rig.holder.proof(&claims(None))]).await;
    let nonce = refused.header("dpop-nonce").unwrap().to_owned();
    let proof = rig.holder.proof(&claims(Some(&nonce)));
    rig.token_proved(&rig.assertion(), &[proof]).await.access_token()
}

/// The claims of a good proof for the orders, with a `jti` nobody used before.
fn claims(rig: &Rig, token: &str, nonce: Option<&str>) -> Value {
    let ath = jose::b64(ring::digest::digest(&ring::digest::SHA256, token.as_bytes()).as_ref());
    json!({
        "jti": rig.jti(), "htm": "GET", "htu": format!("{}/orders", rig.api), "iat": rig.now(), "ath": ath,
        "nonce": nonce,
    })
}

async fn ask(rig: &Rig, token: &str, proofs: &[String]) -> Reply {
    let proofs: String = proofs.iter().map(|proof| format!("DPoP: {proof}\r\n")).collect();
    get(&rig.api, "/orders", &format!("Authorization: DPoP {token}\r\n{proofs}")).await
}

/// The API's nonce, as everybody gets it: by a proof without one.
async fn nonce(rig: &Rig, token: &str) -> String {
    let reply = ask(rig, token, &[rig.holder.proof(&claims(rig, token, None))]).await;
    assert_eq!(reply.error(), (401, "use_dpop_nonce".into()), "{reply:?}");
    let challenge = reply.header("www-authenticate").unwrap();
    assert!(challenge.starts_with("DPoP error=\"use_dpop_nonce\", "), "{challenge}");
    assert!(challenge.ends_with(", algs=\"ES256 EdDSA\""), "{challenge}");
    assert_eq!(reply.headers("dpop-nonce").len(), 1);
    assert_eq!(reply.header("cache-control"), Some("no-store"));
    reply.header("dpop-nonce").unwrap().to_owned()
}

#[tokio::test]
async fn a_bound_token_comes_with_a_proof_for_each_request() {
    // DPOP-06, DPOP-08, DPOP-12
    let rig = Rig::start().await;
    let token = bound(&rig).await;
    let nonce = nonce(&rig, &token).await;
    let proof = [rig.holder.proof(&claims(&rig, &token, Some(&nonce)))];
    let reply = ask(&rig, &token, &proof).await;
    assert_eq!((reply.status, &reply.json()["client_id"]), (200, &json!("shop")));
    assert!(reply.headers("dpop-nonce").is_empty(), "it has the current one");
    let again = ask(&rig, &token, &proof).await;
    assert_eq!(again.error(), (401, "invalid_dpop_proof".into()), "{again:?}");
    assert!(again.body.contains("used before"));
    let scheme = format!("Authorization: dpop {token}\r\nDPoP: {}\r\n", {
        rig.holder.proof(&claims(&rig, &token, Some(&nonce)))
    });
    assert_eq!(get(&rig.api, "/orders", &scheme).await.status, 200);
    // The scope still counts, and a revoked token is dead, whatever its key says.
    assert_eq!(rig.authenticated("/revoke", &rig.assertion(), &[("token", &token)]).await.status, 200);
    let reply = ask(&rig, &token, &[rig.holder.proof(&claims(&rig, &token, Some(&nonce)))]).await;
    assert_eq!(reply.error(), (401, "invalid_token".into()));
    let challenge = reply.header("www-authenticate").unwrap();
    assert!(
        challenge.starts_with("DPoP error=\"invalid_token\"") && challenge.contains("revoked"),
        "{challenge}"
    );
}

#[tokio::test]
async fn a_stolen_token_is_worth_nothing_without_its_key() {
    // DPOP-06, RFC 9449 7.1 and 7.2
    let rig = Rig::start().await;
    let token = bound(&rig).await;
    let nonce = nonce(&rig, &token).await;
    let thief = Holder::from_seed(9);
    let bearer = rig.orders(&token).await;
    assert_eq!(bearer.error(), (401, "invalid_token".into()), "{bearer:?}");
    assert!(bearer.header("www-authenticate").unwrap().starts_with("DPoP error=\"invalid_token\""));
    let other = ask(&rig, &token, &[thief.proof(&claims(&rig, &token, Some(&nonce)))]).await;
    assert_eq!(other.error(), (401, "invalid_token".into()));
    assert!(other.body.contains("another key"), "{other:?}");
    // Under the owner's key in the header, but signed by the thief's.
    let forged = thief.sign(&rig.holder.header(), &claims(&rig, &token, Some(&nonce)));
    assert_eq!(ask(&rig, &token, &[forged]).await.error(), (401, "invalid_dpop_proof".into()));
    // Sent as bearer with a good proof beside it: the scheme is what counts.
    let headers = format!(
        "Authorization: Bearer {token}\r\nDPoP: {}\r\n",
        rig.holder.proof(&claims(&rig, &token, Some(&nonce)))
    );
    assert_eq!(get(&rig.api, "/orders", &headers).await.error(), (401, "invalid_token".into()));
    let both = format!("Authorization: Bearer {token}\r\nAuthorization: DPoP {token}\r\n");
    assert_eq!(get(&rig.api, "/orders", &both).await.error(), (400, "invalid_request".into()));
}

#[tokio::test]
async fn a_proof_is_for_this_request_and_this_token() {
    // DPOP-02, DPOP-03: each rule is tested where it is written; here, that they are asked.
    let rig = Rig::start().await;
    let token = bound(&rig).await;
    let nonce = nonce(&rig, &token).await;
    let refused = async |proofs: &[String], hint: &str| {
        let reply = ask(&rig, &token, proofs).await;
        assert_eq!(reply.error(), (401, "invalid_dpop_proof".into()), "{hint}: {reply:?}");
        assert!(reply.body.contains(hint), "{hint}: {reply:?}");
    };
    let good = || claims(&rig, &token, Some(&nonce));
    for (name, value, hint) in [
        ("htm", json!("POST"), "htm is not"),
        ("htu", json!(format!("{}/order", rig.api)), "htu is not"),
        ("htu", json!(format!("{}/token", rig.issuer.url())), "htu is not"),
        ("iat", json!(rig.now() + 61), "60 seconds"),
        ("ath", Value::Null, "ath must"),
        ("ath", json!("fUHyO2r2Z3DZ53EsNrWBb0xWXoaNy59IiKCAqksmQEo"), "ath must"),
    ] {
        let mut claims = good();
        claims[name] = value;
        refused(&[rig.holder.proof(&claims)], hint).await;
    }
    refused(&[], "send a DPoP header").await;
    refused(&[rig.holder.proof(&good()), rig.holder.proof(&good())], "not two").await;
    refused(&["x".into()], "compact JWS").await;
    // The algorithms of the challenge, and no others.
    let mut ps256 = rig.holder.header();
    ps256["alg"] = json!("PS256");
    refused(&[rig.holder.sign(&ps256, &good())], "alg is not").await;
    // However the target is spelled.
    let mut spelled = good();
    spelled["htu"] = json!(format!("{}/a/../%6Frders", rig.api.replace("http", "HTTP")));
    assert_eq!(ask(&rig, &token, &[rig.holder.proof(&spelled)]).await.status, 200);
}

#[tokio::test]
async fn a_nonce_is_the_apis_own_and_grows_old() {
    // DPOP-09, DPOP-10
    let settings =
        DevIssuerSettings { token_life: Duration::from_secs(3600), ..DevIssuerSettings::default() };
    let rig = Rig::with(settings);
    let token = bound(&rig).await;
    let refused = rig.token_proved(&rig.assertion(), &[rig.holder.proof(&json!({
        "jti": rig.jti(), "htm": "POST", "htu": format!("{}/token", rig.issuer.url()), "iat": rig.now(),
    }))]).await;
    let issuers = refused.header("dpop-nonce").unwrap();
    let reply = ask(&rig, &token, &[rig.holder.proof(&claims(&rig, &token, Some(issuers)))]).await;
    assert_eq!(reply.error(), (401, "use_dpop_nonce".into()));
    let first = nonce(&rig, &token).await;
    rig.clock.advance(Duration::from_secs(300));
    let reply = ask(&rig, &token, &[rig.holder.proof(&claims(&rig, &token, Some(&first)))]).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    let second = reply.header("dpop-nonce").unwrap().to_owned();
    rig.clock.advance(Duration::from_secs(300));
    let reply = ask(&rig, &token, &[rig.holder.proof(&claims(&rig, &token, Some(&first)))]).await;
    assert_eq!(reply.error(), (401, "use_dpop_nonce".into()));
    let reply = ask(&rig, &token, &[rig.holder.proof(&claims(&rig, &token, Some(&second)))]).await;
    assert_eq!(reply.status, 200);
}

#[tokio::test]
async fn an_api_can_do_without_nonces_and_without_bearers() {
    // DPOP-06, BCP-01
    let settings = DemoApiSettings { dpop_nonces: false, require_bound: true, ..DemoApiSettings::default() };
    let rig = Rig::with_api(DevIssuerSettings::default(), settings);
    let bare = get(&rig.api, "/orders", "").await;
    assert_eq!(bare.headers("www-authenticate"), ["DPoP algs=\"ES256 EdDSA\""]);
    let bearer = rig.token().await.access_token();
    let refused = rig.orders(&bearer).await;
    assert_eq!(refused.error(), (401, "invalid_token".into()));
    assert!(refused.header("www-authenticate").unwrap().starts_with("DPoP "), "{refused:?}");
    let token = bound(&rig).await;
    assert_eq!(ask(&rig, &token, &[rig.holder.proof(&claims(&rig, &token, None))]).await.status, 200);
    // Where bearers are welcome, both ways are named, and a bearer token is still no bound one.
    let rig = Rig::start().await;
    let bare = get(&rig.api, "/orders", "").await;
    let both = ["Bearer realm=\"keybearer demo API\"", "DPoP algs=\"ES256 EdDSA\""];
    assert_eq!(bare.headers("www-authenticate"), both);
    let bearer = rig.token().await.access_token();
    let reply = ask(&rig, &bearer, &[rig.holder.proof(&claims(&rig, &bearer, None))]).await;
    assert_eq!(reply.error(), (401, "invalid_token".into()));
    assert!(reply.body.contains("bound to no key"), "{reply:?}");
}

//! Tokens bound to a key, at the issuer: what a proof must be, and what the answer brings.

use super::*;

/// The claims of a good proof for the token endpoint, with a `jti` nobody used before.
fn claims(rig: &Rig, nonce: Option<&str>) -> Value {
    json!({
        "jti": rig.jti(), "htm": "POST", "htu": format!("{}/token", rig.issuer.url()), "iat": rig.now(),
        "nonce": nonce,
    })
}

/// A token request with these proofs.
async fn ask(rig: &Rig, proofs: &[String]) -> Reply {
    rig.token_proved(&rig.assertion(), proofs).await
}

/// The issuer's nonce, as everybody gets it: by a proof without one.
async fn nonce(rig: &Rig) -> String {
    let reply = ask(rig, &[rig.holder.proof(&claims(rig, None))]).await;
    assert_eq!(reply.error(), (400, "use_dpop_nonce".into()), "{reply:?}");
    let nonces = reply.headers("dpop-nonce");
    assert_eq!(nonces.len(), 1, "{reply:?}");
    nonces[0].to_owned()
}

#[tokio::test]
async fn a_proof_gets_a_bound_token_once_it_has_the_nonce() {
    // DPOP-04, DPOP-05, DPOP-07, DPOP-16, DPOP-17, PKJ-12
    let rig = Rig::start().await;
    let assertion = rig.assertion();
    let refused = rig.token_proved(&assertion, &[rig.holder.proof(&claims(&rig, None))]).await;
    assert_eq!(refused.error(), (400, "use_dpop_nonce".into()));
    assert_eq!(refused.header("cache-control"), Some("no-store"));
    assert_eq!(rig.issuer.diary().counts.tokens, 0);
    let nonce = refused.headers("dpop-nonce")[0].to_owned();
    let again = rig.token_proved(&assertion, &[rig.holder.proof(&claims(&rig, Some(&nonce)))]).await;
    assert_eq!(again.error(), (401, "invalid_client".into()), "the assertion is used up: {again:?}");

    let reply = ask(&rig, &[rig.holder.proof(&claims(&rig, Some(&nonce)))]).await;
    assert_eq!(reply.json()["token_type"], "DPoP");
    assert!(reply.headers("dpop-nonce").is_empty(), "it has the current one");
    let token = reply.access_token();
    let inside: Value = jose::Unverified::parse(&token).unwrap().claims().unwrap();
    assert_eq!(inside["cnf"], json!({"jkt": rig.holder.jkt()}));
    let seen = rig.authenticated("/introspect", &rig.assertion(), &[("token", &token)]).await.json();
    assert_eq!((&seen["token_type"], &seen["cnf"]), (&json!("DPoP"), &inside["cnf"]));
    assert_eq!(rig.authenticated("/revoke", &rig.assertion(), &[("token", &token)]).await.status, 200);
    let seen = rig.authenticated("/introspect", &rig.assertion(), &[("token", &token)]).await.json();
    assert_eq!(seen, json!({"active": false}));

    // Without a proof it is a bearer token, and says nothing of a key.
    let token = rig.token().await.access_token();
    let inside: Value = jose::Unverified::parse(&token).unwrap().claims().unwrap();
    assert_eq!(inside.get("cnf"), None);
    let seen = rig.authenticated("/introspect", &rig.assertion(), &[("token", &token)]).await.json();
    assert_eq!((&seen["token_type"], seen.get("cnf")), (&json!("Bearer"), None));
}

#[tokio::test]
async fn a_bad_proof_gets_no_token() {
    // DPOP-01, DPOP-02, DPOP-03, DPOP-12: each rule is tested where it is written; here, that they are asked.
    let rig = Rig::start().await;
    let nonce = nonce(&rig).await;
    let good = || claims(&rig, Some(&nonce));
    let refused = async |proofs: &[String], hint: &str| {
        let reply = ask(&rig, proofs).await;
        assert_eq!(reply.error(), (400, "invalid_dpop_proof".into()), "{hint}: {reply:?}");
        assert!(reply.body.contains(hint), "{hint}: {reply:?}");
    };
    for (name, value, hint) in [
        ("htm", json!("GET"), "htm is not"),
        ("htu", json!(rig.issuer.url()), "htu is not"),
        ("htu", json!("https://other.test/token"), "htu is not"),
        ("iat", json!(rig.now() - 61), "60 seconds"),
        ("ath", json!("fUHyO2r2Z3DZ53EsNrWBb0xWXoaNy59IiKCAqksmQEo"), "ath must"),
    ] {
        let mut claims = good();
        claims[name] = value;
        refused(&[rig.holder.proof(&claims)], hint).await;
    }
    refused(&[rig.holder.proof(&good()), rig.holder.proof(&good())], "not two").await;
    refused(&["x".into()], "compact JWS").await;
    let mut rs256 = rig.holder.header();
    rs256["alg"] = json!("RS256");
    refused(&[rig.holder.sign(&rs256, &good())], "alg is not").await;
    let proof = rig.holder.proof(&good());
    assert_eq!(ask(&rig, std::slice::from_ref(&proof)).await.status, 200);
    refused(&[proof], "used before").await;
    assert_eq!(rig.issuer.diary().counts.tokens, 1);
}

#[tokio::test]
async fn a_client_that_must_prove_gets_no_bearer_token() {
    // DPOP-15
    let rig = Rig::start().await;
    let url = rig.issuer.url();
    let jwk = rig.key.public().jwk(rig.key.algorithm());
    let wish = json!({
        "client_id": "shop", "jwks": {"keys": [jwk]}, "scope": "orders.read", "resources": [ORDERS],
        "dpop_bound_access_tokens": true,
    });
    assert_eq!(post_json(url, "/dev/clients", &wish).await.status, 201);
    assert_eq!(rig.token().await.error(), (400, "invalid_dpop_proof".into()));
    let nonce = nonce(&rig).await;
    assert_eq!(ask(&rig, &[rig.holder.proof(&claims(&rig, Some(&nonce)))]).await.status, 200);
    let metadata = get(url, "/.well-known/oauth-authorization-server", "").await.json();
    assert_eq!(metadata["dpop_signing_alg_values_supported"], json!(["ES256", "EdDSA", "PS256"]));
}

#[tokio::test]
async fn a_nonce_grows_old_and_the_next_rides_on_an_answer() {
    // DPOP-09
    let rig = Rig::start().await;
    let first = nonce(&rig).await;
    rig.clock.advance(Duration::from_secs(300));
    let reply = ask(&rig, &[rig.holder.proof(&claims(&rig, Some(&first)))]).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    let second = reply.headers("dpop-nonce")[0].to_owned();
    assert_ne!(first, second);
    rig.clock.advance(Duration::from_secs(300));
    let reply = ask(&rig, &[rig.holder.proof(&claims(&rig, Some(&first)))]).await;
    assert_eq!(reply.error(), (400, "use_dpop_nonce".into()));
    assert_ne!(reply.headers("dpop-nonce"), [&first]);
    assert_eq!(ask(&rig, &[rig.holder.proof(&claims(&rig, Some(&second)))]).await.status, 200);
}

#[tokio::test]
async fn nonces_can_be_left_out() {
    let rig = Rig::with(DevIssuerSettings { dpop_nonces: false, ..DevIssuerSettings::default() });
    let reply = ask(&rig, &[rig.holder.proof(&claims(&rig, None))]).await;
    assert_eq!(reply.json()["token_type"], "DPoP");
    assert!(reply.headers("dpop-nonce").is_empty());
}

#[tokio::test]
async fn a_proof_is_used_up_by_whoever_it_proves_and_by_nobody_else() {
    // DPOP-12
    let rig = Rig::start().await;
    let nonce = nonce(&rig).await;
    let proof = [rig.holder.proof(&claims(&rig, Some(&nonce)))];
    let reply = rig.token_proved("x", &proof).await;
    assert_eq!(reply.error(), (401, "invalid_client".into()));
    assert!(reply.headers("dpop-nonce").is_empty(), "a stranger gets no nonce");
    assert_eq!(ask(&rig, &proof).await.status, 200);
    // An answer that went wrong uses it up as well.
    let proof = [rig.holder.proof(&claims(&rig, Some(&nonce)))];
    rig.issuer.set_fault(Fault::Unavailable, Some(1));
    assert_eq!(ask(&rig, &proof).await.status, 503);
    assert_eq!(ask(&rig, &proof).await.error(), (400, "invalid_dpop_proof".into()));
}

#[tokio::test]
async fn bindings_and_nonces_go_wrong_as_named() {
    // DPOP-04, DPOP-05, DPOP-07, DPOP-09
    let rig = Rig::start().await;
    let good = nonce(&rig).await;
    let ask = async |fault: Fault, nonce: Option<&str>| {
        rig.issuer.set_fault(fault.clone(), Some(1));
        let reply = ask(&rig, &[rig.holder.proof(&claims(&rig, nonce))]).await;
        if reply.status == 200 {
            let outcome = rig.issuer.diary().entries.back().unwrap().outcome.clone();
            assert_eq!(outcome, format!("fault:{}", fault.as_str()));
        }
        reply
    };
    let inside = |reply: &Reply| -> Value {
        jose::Unverified::parse(&reply.access_token()).unwrap().claims().unwrap()
    };

    let unbound = ask(Fault::Unbound, None).await;
    assert_eq!((&unbound.json()["token_type"], inside(&unbound).get("cnf")), (&json!("Bearer"), None));
    assert!(unbound.headers("dpop-nonce").is_empty());

    let foreign = ask(Fault::ForeignCnf, Some(&good)).await;
    let jkt = inside(&foreign)["cnf"]["jkt"].as_str().unwrap().to_owned();
    assert_eq!((&foreign.json()["token_type"], jkt.len()), (&json!("DPoP"), 43));
    assert_ne!(jkt, rig.holder.jkt());

    for nonce in [None, Some(good.as_str())] {
        let bad = ask(Fault::BadNonce, nonce).await;
        assert_eq!(bad.status, if nonce.is_some() { 200 } else { 400 });
        assert_eq!(bad.headers("dpop-nonce"), ["a \"bad\\\" nonce\tof ours"]);

        let two = ask(Fault::TwoNonces, nonce).await;
        assert_eq!(two.status, if nonce.is_some() { 200 } else { 400 });
        let nonces = two.headers("dpop-nonce");
        assert!(nonces.len() == 2 && nonces[0] != nonces[1], "{two:?}");
        assert_eq!(nonces[0] == good, nonce.is_none(), "the first would do");

        let silent = ask(Fault::NoNonceHeader, nonce).await;
        assert_eq!(silent.error(), (400, "use_dpop_nonce".into()));
        assert!(silent.headers("dpop-nonce").is_empty());
    }
    let mut before = good.clone();
    for _ in 0..3 {
        let stubborn = ask(Fault::StubbornNonce, Some(&before)).await;
        assert_eq!(stubborn.error(), (400, "use_dpop_nonce".into()));
        let next = stubborn.headers("dpop-nonce");
        assert!(next.len() == 1 && next[0] != before, "{stubborn:?}");
        next[0].clone_into(&mut before);
    }
    // Nobody is let in by any of them.
    for fault in [Fault::Unbound, Fault::ForeignCnf, Fault::BadNonce, Fault::TwoNonces] {
        rig.issuer.set_fault(fault, Some(1));
        let reply = rig.token_proved("x", &[rig.holder.proof(&claims(&rig, Some(&good)))]).await;
        assert_eq!(reply.error(), (401, "invalid_client".into()));
    }
}

#[tokio::test]
async fn the_diary_has_the_names_of_a_proof_and_never_the_proof() {
    // DPOP-12
    let rig = Rig::start().await;
    let nonce = nonce(&rig).await;
    let claims = claims(&rig, Some(&nonce));
    let proof = rig.holder.proof(&claims);
    assert_eq!(ask(&rig, std::slice::from_ref(&proof)).await.status, 200);
    assert_eq!(rig.token().await.status, 200);
    let diary = rig.issuer.diary();
    let [_, proved, bare] = diary.entries.iter().collect::<Vec<_>>()[..] else { panic!("{diary:?}") };
    assert_eq!(proved.grant.as_deref(), Some("client_credentials"));
    let names = DiaryProof {
        jkt: Some(rig.holder.jkt()),
        jti: claims["jti"].as_str().map(str::to_owned),
        nonce: Some(nonce),
    };
    assert_eq!((proved.proof.as_ref(), bare.proof.as_ref()), (Some(&names), None));
    let seen = get(rig.issuer.url(), "/dev/diary", "").await;
    assert_eq!(seen.json()["entries"][1]["proof"]["jkt"], rig.holder.jkt());
    assert!(!seen.body.contains(proof.rsplit('.').next().unwrap()));
}

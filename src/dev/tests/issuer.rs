//! What the issuer enforces, one broken rule at a time.

use super::*;

/// The answer to an assertion with `change` made to its claims.
async fn changed(rig: &Rig, change: impl FnOnce(&mut Value)) -> Reply {
    let mut claims = rig.claims();
    change(&mut claims);
    rig.token_with(&sign(&rig.key, "client-authentication+jwt", &claims), &[]).await
}

/// Refused as `invalid_client`, for the rule that `hint` names, and no token left the house.
fn assert_refused(rig: &Rig, reply: &Reply, hint: &str) {
    assert_eq!(reply.error(), (401, "invalid_client".into()), "{hint}: {reply:?}");
    assert!(reply.json()["error_description"].as_str().unwrap().contains(hint), "{hint}: {reply:?}");
    assert!(reply.header("www-authenticate").is_some());
    assert_eq!(reply.header("cache-control"), Some("no-store"));
    let diary = rig.issuer.diary();
    let last = diary.entries.back().unwrap();
    assert_eq!((last.status, last.outcome.as_str()), (401, "invalid_client"));
    assert_eq!(diary.counts.tokens, 0);
}

#[tokio::test]
async fn a_good_request_gets_an_rfc_9068_token() {
    // PKJ-01, OA-20, OA-21, OA-40
    let rig = Rig::start().await;
    let reply = rig.token().await;
    let answer = reply.json();
    assert_eq!(answer["token_type"], "Bearer");
    assert_eq!(answer["expires_in"], 300);
    assert_eq!(answer["scope"], "orders.read");
    assert_eq!(reply.header("cache-control"), Some("no-store"));
    assert_eq!(reply.header("content-type"), Some("application/json"));
    assert_eq!(reply.header("date"), Some("Fri, 15 Jan 2027 08:00:00 GMT"), "by our clock");

    let token = reply.access_token();
    let jws = jose::Unverified::parse(&token).unwrap();
    assert_eq!(jws.header_str("typ"), Some("at+jwt"));
    let jwk = &get(rig.issuer.url(), "/jwks", "").await.json()["keys"][0];
    assert_eq!(jws.header_str("kid"), jwk["kid"].as_str());
    jws.verify(&PublicKey::from_jwk(jwk).unwrap(), &[Algorithm::Es256]).unwrap();
    let claims: Value = jws.claims().unwrap();
    let now = rig.now();
    assert_eq!(claims["iss"], rig.issuer.url());
    assert_eq!(claims["aud"], ORDERS);
    assert_eq!((&claims["sub"], &claims["client_id"]), (&json!("shop"), &json!("shop")));
    assert_eq!((&claims["iat"], &claims["exp"]), (&json!(now), &json!(now + 300)));
    assert_eq!(claims["scope"], "orders.read");
    assert_eq!(claims["jti"].as_str().unwrap().len(), 22, "128 bits");
    let orders = rig.orders(&token).await;
    assert_eq!((orders.status, &orders.json()["client_id"]), (200, &json!("shop")));
    rig.stop().await;
}

#[tokio::test]
async fn without_resource_and_scope_it_is_for_the_issuer_and_all_that_is_registered() {
    let rig = Rig::start().await;
    let reply = rig.token_with(&rig.assertion(), &[("client_id", "shop")]).await;
    assert_eq!(reply.json()["scope"], "orders.read orders.write");
    let token = reply.access_token();
    let claims: Value = jose::Unverified::parse(&token).unwrap().claims().unwrap();
    assert_eq!(claims["aud"], rig.issuer.url());
}

#[tokio::test]
async fn the_metadata_says_what_is_there_and_may_be_cached() {
    // OA-01, OA-02, OA-07
    let rig = Rig::start().await;
    let url = rig.issuer.url();
    let reply = get(url, "/.well-known/oauth-authorization-server", "").await;
    let metadata = reply.json();
    assert_eq!(reply.header("cache-control"), Some("public, max-age=300"));
    assert_eq!(metadata["issuer"], url);
    let uri = |name: &str| format!("urn:ietf:params:oauth:grant-type:{name}");
    let grants = json!(["client_credentials", uri("token-exchange"), uri("jwt-bearer")]);
    assert_eq!(metadata["grant_types_supported"], grants);
    let methods = json!(["private_key_jwt", "spiffe_jwt"]);
    assert_eq!(metadata["token_endpoint_auth_methods_supported"], methods);
    let algorithms = &metadata["token_endpoint_auth_signing_alg_values_supported"];
    assert_eq!(algorithms, &json!(["ES256", "EdDSA", "PS256", "RS256"]));
    assert!(url.starts_with("http://127.0.0.1:"));
    for (name, path) in [
        ("token_endpoint", "/token"),
        ("jwks_uri", "/jwks"),
        ("revocation_endpoint", "/revoke"),
        ("introspection_endpoint", "/introspect"),
    ] {
        assert_eq!(metadata[name], format!("{url}{path}"));
    }
    let jwks = get(url, "/jwks", "").await.json();
    assert_eq!(jwks, rig.issuer.jwks());
    assert!(jwks["keys"][0].get("d").is_none());
}

#[tokio::test]
async fn the_audience_is_the_issuer_as_one_string() {
    // PKJ-03, PKJ-16
    let rig = Rig::start().await;
    let url = rig.issuer.url().to_owned();
    for aud in [
        json!([url]),
        json!([url, "https://other.test"]),
        json!(format!("{url}/token")),
        json!(format!("{url}/")),
        json!(url.replace("127.0.0.1", "localhost")),
        json!(url.replace("http", "HTTP")),
        json!("https://other.test"),
        json!(""),
        json!(null),
    ] {
        let reply = changed(&rig, |claims| claims["aud"] = aud.clone()).await;
        assert_refused(&rig, &reply, "aud must be the issuer identifier");
        let mut claims = rig.claims();
        claims["aud"] = aud.clone();
        let assertion = sign(&rig.key, "client-authentication+jwt", &claims);
        for path in ["/revoke", "/introspect"] {
            let reply = rig.authenticated(path, &assertion, &[("token", "x")]).await;
            assert_refused(&rig, &reply, "aud must be the issuer identifier");
        }
    }
}

#[tokio::test]
async fn iss_sub_and_client_id_are_one() {
    // PKJ-02, PKJ-14
    let rig = Rig::start().await;
    assert_refused(&rig, &changed(&rig, |claims| claims["iss"] = json!("Shop")).await, "iss must equal sub");
    assert_refused(&rig, &changed(&rig, |claims| claims["sub"] = json!("else")).await, "not registered");
    let reply = rig.token_with(&rig.assertion(), &[("client_id", "other")]).await;
    assert_refused(&rig, &reply, "client_id must equal sub");
}

#[tokio::test]
async fn an_assertion_is_short_and_of_now() {
    // PKJ-07, PKJ-08
    let rig = Rig::start().await;
    let now = rig.now();
    for (iat, exp, hint) in [
        (json!(now), json!(now + 61), "exp - iat"),
        (json!(now), json!(now), "exp - iat"),
        (json!(now), json!(now - 1), "exp - iat"),
        (json!(now), Value::Null, "iat and exp are required"),
        (Value::Null, json!(now + 30), "iat and exp are required"),
        (json!(now), json!("soon"), "not a compact JWS with"),
        (json!(now + 16), json!(now + 60), "15 seconds ahead"),
        (json!(now - 75), json!(now - 15), "has expired"),
        (json!(i64::MIN), json!(i64::MAX), "exp - iat"),
        (json!(i64::MAX - 60), json!(i64::MAX), "15 seconds ahead"),
    ] {
        let reply = changed(&rig, |claims| (claims["iat"], claims["exp"]) = (iat, exp)).await;
        assert_refused(&rig, &reply, hint);
    }
    let reply = changed(&rig, |claims| claims["nbf"] = json!(now + 16)).await;
    assert_refused(&rig, &reply, "15 seconds ahead");
    // The edges that are still good.
    for (iat, exp) in [(now + 15, now + 75), (now - 74, now - 14), (now, now + 60)] {
        let reply = changed(&rig, |claims| (claims["iat"], claims["exp"]) = (json!(iat), json!(exp))).await;
        assert_eq!(reply.status, 200, "{reply:?}");
    }
}

#[tokio::test]
async fn the_longest_assertion_can_be_set() {
    // PKJ-07
    let settings = DevIssuerSettings { assertion_life: Duration::from_secs(300), ..Default::default() };
    let rig = Rig::with(settings);
    let now = rig.now();
    let life =
        |life| move |claims: &mut Value| (claims["iat"], claims["exp"]) = (json!(now), json!(now + life));
    assert_refused(&rig, &changed(&rig, life(301)).await, "exp - iat");
    assert_eq!(changed(&rig, life(300)).await.status, 200);
}

#[tokio::test]
async fn the_header_is_typed_named_and_signed_as_registered() {
    // PKJ-10, PKJ-11
    let rig = Rig::start().await;
    for typ in ["JWT", "", "at+jwt", "Client-Authentication+JWT"] {
        let reply = rig.token_with(&sign(&rig.key, typ, &rig.claims()), &[]).await;
        assert_refused(&rig, &reply, "typ must be");
    }
    let stranger = Key::generate(Algorithm::EdDsa).unwrap();
    let typ = "client-authentication+jwt";
    let reply = rig.token_with(&sign(&stranger, typ, &rig.claims()), &[]).await;
    assert_refused(&rig, &reply, "kid names no registered key");
    let kid = rig.key.kid().to_owned();
    let liar = Liar { key: &stranger, algorithm: Algorithm::EdDsa, kid: kid.clone() };
    let reply = rig.token_with(&sign(&liar, typ, &rig.claims()), &[]).await;
    assert_refused(&rig, &reply, "does not verify");
    for algorithm in [Algorithm::Es256, Algorithm::Ps256, Algorithm::Rs256] {
        let liar = Liar { key: &rig.key, algorithm, kid: kid.clone() };
        let reply = rig.token_with(&sign(&liar, typ, &rig.claims()), &[]).await;
        assert_refused(&rig, &reply, "sign with EdDSA");
    }
    for (name, value) in [("crit", json!(["exp"])), ("jwk", stranger.public().jwk(Algorithm::EdDsa))] {
        let mut header = json!({"alg": "EdDSA", "kid": kid, "typ": typ});
        header[name] = value;
        let reply = rig.token_with(&forged(&header, &rig.claims(), b"x"), &[]).await;
        assert_refused(&rig, &reply, "must not hold crit");
    }
    for alg in ["none", "HS256"] {
        let header = json!({"alg": alg, "kid": kid, "typ": typ});
        let reply = rig.token_with(&forged(&header, &rig.claims(), b""), &[]).await;
        assert_refused(&rig, &reply, "sign with EdDSA");
    }
    for text in ["x", "a.b.c", "....."] {
        assert_refused(&rig, &rig.token_with(text, &[]).await, "not a compact JWS");
    }
}

fn forged(header: &Value, claims: &Value, signature: &[u8]) -> String {
    let part = |value: &Value| jose::b64(value.to_string().as_bytes());
    format!("{}.{}.{}", part(header), part(claims), jose::b64(signature))
}

#[tokio::test]
async fn kid_chooses_among_a_clients_keys_and_no_other_clients() {
    // PKJ-10, KEY-01
    let rig = Rig::start().await;
    let (second, other) =
        (Key::generate(Algorithm::Es256).unwrap(), Key::generate(Algorithm::Es256).unwrap());
    let mut both = client("shop", &rig.key);
    both.keys.push((second.public().clone(), Algorithm::Es256));
    rig.issuer.register(both).unwrap();
    rig.issuer.register(client("stock", &other)).unwrap();
    let typ = "client-authentication+jwt";
    let reply = rig.token_with(&sign(&other, typ, &rig.claims()), &[]).await;
    assert_refused(&rig, &reply, "kid names no registered key");
    for key in [&rig.key, &second] {
        assert_eq!(rig.token_with(&sign(key, typ, &rig.claims()), &[]).await.status, 200);
    }
}

#[tokio::test]
async fn every_assertion_is_good_once() {
    // PKJ-09, PKJ-12
    let rig = Rig::start().await;
    for jti in [Value::Null, json!(""), json!("x".repeat(65))] {
        let reply = changed(&rig, |claims| claims["jti"] = jti).await;
        assert_refused(&rig, &reply, "jti is required");
    }
    let used = rig.assertion();
    assert_eq!(rig.token_with(&used, &[("scope", "too.much")]).await.error().1, "invalid_scope");
    // Used up by a request that got nothing, and at every endpoint.
    for path in ["/token", "/revoke", "/introspect"] {
        let form = [("token", "x"), ("grant_type", "client_credentials")];
        assert_refused(&rig, &rig.authenticated(path, &used, &form).await, "was used before");
    }
    // Remembered as long as it could be good, skew and all: from then on it has expired.
    rig.clock.advance(Duration::from_secs(55 + 14));
    assert_refused(&rig, &rig.token_with(&used, &[]).await, "was used before");
    rig.clock.advance(Duration::from_secs(1));
    assert_refused(&rig, &rig.token_with(&used, &[]).await, "has expired");
    assert_eq!(rig.token().await.status, 200);
}

#[tokio::test]
async fn there_is_one_way_to_prove_oneself() {
    // PKJ-01, PKJ-13, BCP-03
    let rig = Rig::start().await;
    let assertion = rig.assertion();
    let grant = ("grant_type", "client_credentials");
    let good = [("client_assertion_type", TYPE), ("client_assertion", assertion.as_str()), grant];
    let basic = "Authorization: Basic c2hvcDpzZWNyZXQ=\r\n";
    for form in [&[grant][..], &good] {
        let reply = post(rig.issuer.url(), "/token", form, basic).await;
        assert_refused(&rig, &reply, "no Authorization header");
    }
    let secret = [&good[..], &[("client_secret", "s")]].concat();
    assert_refused(&rig, &rig.post("/token", &secret).await, "no client_secret");
    let secret = [("client_id", "shop"), ("client_secret", "s"), grant];
    assert_refused(&rig, &rig.post("/token", &secret).await, "no client_secret");
    let bare = [("client_id", "shop"), grant];
    assert_refused(&rig, &rig.post("/token", &bare).await, "only private_key_jwt");
    for kind in ["", "urn:ietf:params:oauth:client-assertion-type:saml2-bearer", "jwt-bearer"] {
        let form = [("client_assertion_type", kind), good[1], grant];
        assert_refused(&rig, &rig.post("/token", &form).await, "client_assertion_type must be");
    }
    // None of it used the assertion up.
    assert_eq!(rig.post("/token", &good).await.status, 200);
}

#[tokio::test]
async fn the_request_is_a_form_with_each_parameter_once() {
    // PKJ-01, RFC 6749 3.2
    let rig = Rig::start().await;
    let url = rig.issuer.url();
    let assertion = rig.assertion();
    for twice in [("grant_type", "client_credentials"), ("client_assertion", assertion.as_str())] {
        let reply = rig.token_with(&assertion, &[("scope", "orders.read"), twice]).await;
        assert_eq!(reply.error(), (400, "invalid_request".into()), "{reply:?}");
    }
    let reply = post_json(url, "/token", &json!({"grant_type": "client_credentials"})).await;
    assert_eq!(reply.error(), (400, "invalid_request".into()));
    let reply = rig.authenticated("/token", &assertion, &[]).await;
    assert_eq!(reply.error(), (400, "invalid_request".into()), "no grant_type");
    for grant in ["password", "authorization_code", "refresh_token", "CLIENT_CREDENTIALS"] {
        let reply = rig.authenticated("/token", &rig.assertion(), &[("grant_type", grant)]).await;
        assert_eq!(reply.error(), (400, "unsupported_grant_type".into()));
    }
    let reply = get(url, "/token?grant_type=client_credentials", "").await;
    assert_eq!((reply.status, reply.header("allow")), (405, Some("POST")));
    assert_eq!(post(url, "/jwks", &[], "").await.status, 405);
    assert_eq!(get(url, "/.well-known/openid-configuration", "").await.status, 404);
    let form = "Content-Type: application/x-www-form-urlencoded\r\n";
    assert_eq!(send(url, "/token", &"a".repeat(64 * 1024 + 1), form).await.status, 413);
    assert_eq!(send(url, "/token", &format!("a={}", "b".repeat(64 * 1024 - 2)), form).await.status, 401);
}

#[tokio::test]
async fn scope_and_resource_stay_within_the_registration() {
    // OA-20, OA-21
    let rig = Rig::start().await;
    let ask = async |more: &[(&str, &str)]| rig.token_with(&rig.assertion(), more).await;
    for scope in ["admin", "orders.read admin", "Orders.Read", "orders.read  orders.write", " "] {
        assert_eq!(ask(&[("scope", scope)]).await.error(), (400, "invalid_scope".into()), "{scope:?}");
    }
    for resource in ["https://other.test", "https://orders.test/", "orders"] {
        assert_eq!(
            ask(&[("resource", resource)]).await.error(),
            (400, "invalid_target".into()),
            "{resource}"
        );
    }
    let two = [("resource", ORDERS), ("resource", "https://stock.test")];
    assert_eq!(ask(&two).await.error(), (400, "invalid_target".into()));
    assert_eq!(rig.issuer.diary().counts.tokens, 0);
    let reply = ask(&[("scope", "orders.write orders.read orders.write")]).await;
    assert_eq!(reply.json()["scope"], "orders.read orders.write");
}

#[tokio::test]
async fn a_revoked_token_is_dead_everywhere_at_once() {
    // OA-42, OA-43, PKJ-16
    let rig = Rig::start().await;
    let token = rig.token().await.access_token();
    let introspect = async |token: &str| {
        rig.authenticated("/introspect", &rig.assertion(), &[("token", token)]).await.json()
    };
    let revoke =
        async |token: &str| rig.authenticated("/revoke", &rig.assertion(), &[("token", token)]).await;
    let live = introspect(&token).await;
    assert_eq!(live["active"], true);
    assert_eq!(
        (&live["client_id"], &live["aud"], &live["scope"]),
        (&json!("shop"), &json!(ORDERS), &json!("orders.read"))
    );
    assert_eq!(live["exp"], rig.now() + 300);
    assert_eq!(rig.orders(&token).await.status, 200);

    assert_eq!(revoke(&token).await.status, 200);
    assert_eq!(introspect(&token).await, json!({"active": false}));
    let refused = rig.orders(&token).await;
    assert_eq!(refused.error(), (401, "invalid_token".into()));
    assert!(refused.header("www-authenticate").unwrap().contains("revoked"));
    assert_eq!(revoke(&token).await.status, 200, "twice is fine");

    for unknown in ["x", "a.b.c", &rig.assertion()] {
        assert_eq!(revoke(unknown).await.status, 200, "RFC 7009 2.2");
        assert_eq!(introspect(unknown).await, json!({"active": false}));
    }
    for path in ["/revoke", "/introspect"] {
        let reply = rig.authenticated(path, &rig.assertion(), &[]).await;
        assert_eq!(reply.error(), (400, "invalid_request".into()));
        let reply = rig.post(path, &[("token", &token)]).await;
        assert_eq!(reply.error(), (401, "invalid_client".into()));
    }
}

#[tokio::test]
async fn an_expired_token_is_inactive_and_another_clients_token_stays() {
    // OA-42, OA-43
    let rig = Rig::start().await;
    let token = rig.token().await.access_token();
    let other = Key::generate(Algorithm::Es256).unwrap();
    rig.issuer.register(client("stock", &other)).unwrap();
    let theirs = || {
        let mut claims = rig.claims();
        (claims["iss"], claims["sub"]) = (json!("stock"), json!("stock"));
        sign(&other, "client-authentication+jwt", &claims)
    };
    let reply = rig.authenticated("/revoke", &theirs(), &[("token", &token)]).await;
    assert_eq!(reply.error(), (400, "invalid_grant".into()));
    let introspect = async || rig.authenticated("/introspect", &theirs(), &[("token", &token)]).await.json();
    assert_eq!(introspect().await["active"], true);
    rig.clock.advance(Duration::from_secs(300));
    assert_eq!(introspect().await, json!({"active": false}));
}

#[tokio::test]
async fn an_outside_program_registers_itself_but_never_as_a_person() {
    // BCP-06
    let rig = Rig::start().await;
    let url = rig.issuer.url();
    let key = Key::generate(Algorithm::Es256).unwrap();
    let wish = |name: &str| {
        json!({
            "client_id": name, "jwks": {"keys": [key.public().jwk(Algorithm::Es256)]},
            "scope": "orders.read", "resources": [ORDERS],
        })
    };
    let reply = post_json(url, "/dev/clients", &wish("user:anna")).await;
    assert_eq!(reply.status, 400);
    assert!(reply.body.contains("user:"), "{reply:?}");
    assert_eq!(post_json(url, "/dev/clients", &wish("stock")).await.status, 201);
    let mut claims = rig.claims();
    (claims["iss"], claims["sub"]) = (json!("stock"), json!("stock"));
    let assertion = sign(&key, "client-authentication+jwt", &claims);
    let token = rig.token_with(&assertion, &[("resource", ORDERS)]).await.access_token();
    assert_eq!(rig.orders(&token).await.json()["client_id"], "stock");

    let form = "Content-Type: text/plain\r\n";
    assert_eq!(send(url, "/dev/clients", &wish("page").to_string(), form).await.status, 415);
    assert_eq!(get(url, "/dev/clients", "").await.status, 405);
    assert_eq!(get(url, "/dev/else", "").await.status, 404);
}

#[tokio::test]
async fn a_web_page_that_points_its_own_name_here_is_turned_away() {
    let rig = Rig::start().await;
    let request = "GET /dev/diary HTTP/1.1\r\nHost: evil.test\r\nConnection: close\r\n\r\n";
    for base in [rig.issuer.url(), &rig.api] {
        assert_eq!(exchange(base, request).await.status, 421);
    }
}

#[tokio::test]
async fn the_diary_knows_every_request_and_no_secret() {
    // PKJ-15
    let rig = Rig::start().await;
    let assertion = rig.assertion();
    let token = rig.token_with(&assertion, &[]).await.access_token();
    rig.token_with(&assertion, &[]).await;
    get(rig.issuer.url(), "/somewhere", "").await;
    let diary = rig.issuer.diary();
    assert_eq!((diary.requests("/token"), diary.requests("other"), diary.counts.tokens), (2, 1, 1));
    let ends: Vec<(&str, u16)> =
        diary.entries.iter().map(|entry| (entry.outcome.as_str(), entry.status)).collect();
    assert_eq!(ends, [("ok", 200), ("invalid_client", 401), ("not_found", 404)]);
    assert_eq!(diary.entries[0].client_id.as_deref(), Some("shop"));
    assert_eq!(diary.entries[0].jti, diary.entries[1].jti);
    assert!(diary.entries[1].detail.as_ref().unwrap().contains("used before"));

    let seen = get(rig.issuer.url(), "/dev/diary", "").await;
    assert_eq!(seen.json()["entries"][0]["at"], "2027-01-15T08:00:00Z");
    assert_eq!(seen.json()["counts"]["requests"]["/token"], 2);
    for secret in [&assertion, &token] {
        let signature = secret.rsplit('.').next().unwrap();
        assert!(!seen.body.contains(signature) && !format!("{diary:?}").contains(signature));
    }
    assert_eq!(rig.issuer.diary(), diary, "reading it does not write it");
}

//! Faults do what they say, as often as they were set, and let nobody in.

use super::*;

fn outcome(rig: &Rig) -> String {
    rig.issuer.diary().entries.back().unwrap().outcome.clone()
}

#[tokio::test]
async fn answers_go_bad_as_often_as_asked_and_use_the_assertion_up() {
    // PKJ-12, CLK-06, ER-02, ER-11, ER-12, OA-44
    let rig = Rig::start().await;
    for (fault, status, content_type, body) in [
        (
            Fault::RateLimited { retry_after: Duration::from_secs(7) },
            429,
            "application/json",
            "temporarily_unavailable",
        ),
        (Fault::Unavailable, 503, "application/json", "temporarily_unavailable"),
        (Fault::InvalidClient, 401, "application/json", "invalid_client"),
        (Fault::Html, 200, "text/html", "<!doctype html>"),
        (Fault::Garbage, 200, "application/json", "cut off"),
    ] {
        rig.issuer.set_fault(fault.clone(), Some(1));
        let assertion = rig.assertion();
        let reply = rig.token_with(&assertion, &[]).await;
        assert_eq!((reply.status, reply.header("content-type")), (status, Some(content_type)), "{fault:?}");
        assert!(reply.body.contains(body), "{reply:?}");
        let retry = matches!(fault, Fault::RateLimited { .. }).then_some("7");
        assert_eq!(reply.header("retry-after"), retry);
        assert_eq!(outcome(&rig), format!("fault:{}", fault.as_str()));
        let again = rig.token_with(&assertion, &[]).await;
        assert!(again.body.contains("used before"), "the jti is gone: {again:?}");
        assert_eq!(rig.token().await.status, 200, "once was asked");
    }
    assert!(serde_json::from_str::<Value>("{\"access_token\": \"cut off h").is_err());
    for path in ["/revoke", "/introspect"] {
        rig.issuer.set_fault(Fault::Unavailable, Some(1));
        assert_eq!(rig.authenticated(path, &rig.assertion(), &[("token", "x")]).await.status, 503);
    }
}

#[tokio::test]
async fn a_fault_stays_until_it_is_taken_back() {
    let rig = Rig::start().await;
    rig.issuer.set_fault(Fault::Unavailable, None);
    for _ in 0..3 {
        assert_eq!(rig.token().await.status, 503);
    }
    rig.issuer.set_fault(Fault::None, None);
    assert_eq!(rig.token().await.status, 200);
}

#[tokio::test]
async fn faults_of_the_token_let_nobody_in() {
    let rig = Rig::start().await;
    rig.issuer.set_fault(Fault::WiderScope, None);
    assert_eq!(rig.token_with("x", &[]).await.error(), (401, "invalid_client".into()));
    rig.issuer.set_fault(Fault::Slow { delay: Duration::ZERO }, None);
    assert_eq!(rig.token_with("x", &[]).await.error(), (401, "invalid_client".into()));
}

#[tokio::test]
async fn tokens_go_wrong_as_named() {
    // OA-09, OA-20, OA-21, CLK-04
    let rig = Rig::start().await;
    let now = rig.now();
    for (fault, claim, value, api) in [
        (Fault::WiderScope, "scope", json!("orders.read admin"), 200),
        (Fault::WrongAudience, "aud", json!("https://other-audience.invalid"), 401),
        (Fault::WrongIssuer, "iss", json!("https://other-issuer.invalid"), 401),
        (Fault::ShortLife { life: Duration::from_secs(3) }, "exp", json!(now + 3), 200),
        (Fault::LongLife, "exp", json!(now + 31_536_000), 200),
    ] {
        rig.issuer.set_fault(fault.clone(), Some(1));
        let reply = rig.token().await;
        let token = reply.access_token();
        let claims: Value = jose::Unverified::parse(&token).unwrap().claims().unwrap();
        assert_eq!(claims[claim], value, "{fault:?}");
        assert_eq!(reply.json()["scope"], claims["scope"]);
        assert_eq!(reply.json()["expires_in"], claims["exp"].as_i64().unwrap() - now);
        assert_eq!(rig.orders(&token).await.status, api, "{fault:?}");
        assert_eq!(outcome(&rig), format!("fault:{}", fault.as_str()));
    }
}

#[tokio::test]
async fn metadata_in_anothers_name() {
    // OA-02
    let rig = Rig::start().await;
    rig.issuer.set_fault(Fault::WrongIssuer, Some(1));
    let issuer = async || {
        let reply = get(rig.issuer.url(), "/.well-known/oauth-authorization-server", "").await;
        reply.json()["issuer"].as_str().unwrap().to_owned()
    };
    assert_eq!(issuer().await, "https://other-issuer.invalid");
    assert_eq!(issuer().await, rig.issuer.url());
}

#[tokio::test]
async fn a_redirect_keeps_the_method_and_bites_token_only() {
    // PKJ-17
    let rig = Rig::start().await;
    rig.issuer.set_fault(Fault::Redirect { to: "http://127.0.0.1:1/steal".into() }, Some(1));
    let reply = rig.authenticated("/introspect", &rig.assertion(), &[("token", "x")]).await;
    assert_eq!(reply.json(), json!({"active": false}));
    let reply = rig.token().await;
    assert_eq!((reply.status, reply.header("location")), (307, Some("http://127.0.0.1:1/steal")));
    rig.issuer.set_fault(Fault::Redirect { to: "a\r\nb: c".into() }, Some(1));
    assert_eq!(rig.token().await.header("location"), Some("/elsewhere"), "no header is smuggled in");
}

#[tokio::test]
async fn a_slow_answer_is_the_right_one() {
    let rig = Rig::start().await;
    let delay = Duration::from_millis(80);
    rig.issuer.set_fault(Fault::Slow { delay }, Some(1));
    let early = tokio::time::timeout(delay / 4, rig.token()).await;
    assert!(early.is_err());
    rig.issuer.set_fault(Fault::Slow { delay }, Some(1));
    assert_eq!(rig.token().await.status, 200);
    assert_eq!(outcome(&rig), "fault:slow");
}

#[tokio::test]
async fn a_hanging_request_is_in_the_diary_and_does_not_hold_up_others_or_the_stop() {
    let rig = Rig::start().await;
    rig.issuer.set_fault(Fault::Hang, Some(1));
    assert!(tokio::time::timeout(Duration::from_millis(100), rig.token()).await.is_err());
    let entry = rig.issuer.diary().entries.back().unwrap().clone();
    assert_eq!(
        (entry.outcome.as_str(), entry.status, entry.client_id.as_deref()),
        ("pending", 0, Some("shop"))
    );
    assert_eq!(rig.token().await.status, 200);
    rig.issuer.set_fault(Fault::Hang, Some(1));
    let (url, assertion) = (rig.issuer.url().to_owned(), rig.assertion());
    let form = format!("client_assertion={assertion}");
    let mut stream = TcpStream::connect(url.strip_prefix("http://").unwrap()).await.unwrap();
    let head = format!(
        "POST /token HTTP/1.1\r\nHost: {}\r\nContent-Length: {}\r\n\
         Content-Type: application/x-www-form-urlencoded\r\n\r\n{form}",
        url.strip_prefix("http://").unwrap(),
        form.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    while rig.issuer.diary().requests("/token") < 3 {
        tokio::task::yield_now().await;
    }
    tokio::time::timeout(Duration::from_secs(5), rig.stop()).await.unwrap();
    let mut rest = Vec::new();
    // The stop closed the connection; no answer was ever sent.
    _ = stream.read_to_end(&mut rest).await;
    assert!(rest.is_empty());
}

#[tokio::test]
async fn an_outside_program_sets_faults_too() {
    let rig = Rig::start().await;
    let url = rig.issuer.url();
    let fault = json!({"fault": "rate_limited", "times": 1, "seconds": 4});
    assert_eq!(post_json(url, "/dev/fault", &fault).await.status, 200);
    assert_eq!(rig.token().await.header("retry-after"), Some("4"));
    assert_eq!(rig.token().await.status, 200);
    let reply = post_json(url, "/dev/fault", &json!({"fault": "polite"})).await;
    assert_eq!(reply.status, 400);
    assert!(reply.body.contains("wider_scope"), "{reply:?}");
}

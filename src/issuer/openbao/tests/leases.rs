//! What is leased, for how long, and how it ends.

use super::*;

#[tokio::test]
async fn a_lease_has_a_login_of_its_own_that_ends_with_it() {
    // CA-04, S37, PKJ-12
    let stage = Stage::with(database(&["username", "password"]), |settings| {
        settings.namespace = Some("team/payments".into());
    })
    .await;
    stage.script.will([login(), leased(300)]);
    let issued = stage.issue(None).await;
    assert_eq!(issued.facts.http_status, Some(200));
    let credential = issued.result.unwrap();
    assert_eq!(told(&credential), [("password", "canary-1"), ("username", "v-payments-1")]);
    assert_eq!((credential.window.life().as_secs(), credential.binding()), (300, Binding::Bearer));
    assert_eq!(stage.lines(), ["POST auth/jwt/login", "GET database/creds/payments"]);
    let [asked, read] = &stage.script.diary()[..] else { panic!("two requests") };
    let said = body(asked);
    assert_eq!((said["role"].as_str(), said.as_object().unwrap().len()), (Some("payments"), 2));
    let claims: Value = Unverified::parse(said["jwt"].as_str().unwrap()).unwrap().claims().unwrap();
    assert_eq!(
        (&claims["iss"], &claims["sub"], &claims["aud"]),
        (&json!("payments"), &json!("payments"), &json!("https://bao.example"))
    );
    for seen in [asked, read] {
        assert_eq!(header(seen, "x-vault-request").as_deref(), Some("true"));
        assert_eq!(header(seen, "x-vault-namespace").as_deref(), Some("team/payments"));
    }
    assert_eq!(
        (header(asked, "x-vault-token"), header(read, "x-vault-token").as_deref()),
        (None, Some(TOKEN))
    );
    // Nothing of it is shown by accident.
    let shown = format!("{:?} {credential:?}", stage.bao);
    assert!(!shown.contains("canary"), "{shown}");

    stage.script.will([done()]);
    stage.bao.revoke(&stage.order, &stage.signers, &credential).await.unwrap();
    assert_eq!(stage.last().line, "POST /v1/auth/token/revoke-self HTTP/1.1");
    assert_eq!(header(&stage.last(), "x-vault-token").as_deref(), Some(TOKEN));

    // Another attempt is another login by another assertion.
    stage.script.will([login(), leased(300)]);
    let again = stage.get().await.unwrap();
    assert_eq!(again.fingerprint, credential.fingerprint, "over the values, and nothing else");
    let posts = stage.script.posts();
    assert_ne!(body(&posts[0])["jwt"], body(&posts[2])["jwt"]);
}

#[tokio::test]
async fn a_lease_is_renewed_with_its_login_for_as_long_as_it_was_given_first() {
    // CA-04, CLK-08
    let stage = Stage::new(database(&[])).await;
    stage.script.will([login(), leased(300)]);
    let first = stage.get().await.unwrap();
    stage.clock.advance(Duration::from_secs(200));
    stage.script.will([renewed_login(300), renewed(300)]);
    let issued = stage.issue(Some(&first)).await;
    assert_eq!(issued.facts.lease_replaced, None);
    let second = issued.result.unwrap();
    assert_eq!((told(&second), second.fingerprint), (told(&first), first.fingerprint));
    assert_eq!(second.window.until.since(first.window.until).as_secs(), 200);
    assert_eq!(stage.lines()[2..], ["POST auth/token/renew-self", "POST sys/leases/renew"]);
    let diary = stage.script.diary();
    assert_eq!(
        (body(&diary[2]), body(&diary[3])),
        (json!({"increment": "300s"}), json!({"lease_id": LEASE, "increment": 300}))
    );
    assert!(diary[2..].iter().all(|seen| header(seen, "x-vault-token").as_deref() == Some(TOKEN)));
    assert!(diary.iter().all(|seen| !seen.line.contains("canary")), "no lease id stands in a URL");
    // A server in trouble is no reason for another lease: the one that is held goes on until it ends.
    for trouble in [refused(503, &["Vault is sealed"]), refused(429, &["rate limit"]), Answer::HangUp] {
        stage.script.will([trouble]);
        let error = stage.issue(Some(&second)).await.result.unwrap_err();
        assert!(matches!(error, IssueError::Retry { .. }), "{error}");
    }
    // One that has ended is not renewed.
    stage.clock.advance(Duration::from_secs(301));
    stage.script.will([login(), leased(300)]);
    stage.issue(Some(&second)).await.result.unwrap();
    assert_eq!(stage.lines()[7..], ["POST auth/jwt/login", "GET database/creds/payments"]);
}

#[tokio::test]
async fn where_the_server_gives_less_there_is_another_lease_in_time() {
    // CA-04: a lease that shrinks, because its max_ttl is near; one that is gone; one that cannot be renewed.
    let stage = Stage::new(database(&["password"])).await;
    let other = || values(300, &json!({"username": "v-2", "password": "canary-2"}));
    stage.script.will([login(), leased(300)]);
    let first = stage.get().await.unwrap();
    // Half of it is of use still.
    stage.script.will([renewed_login(300), renewed(150)]);
    let second = stage.issue(Some(&first)).await.result.unwrap();
    assert_eq!((second.window.life().as_secs(), second.fingerprint), (150, first.fingerprint));
    // Less is not, whichever of the two gives it.
    for (of_login, of_lease) in [(300, 149), (149, 300)] {
        stage.script.will([renewed_login(of_login), renewed(of_lease), login(), other()]);
        let issued = stage.issue(Some(&second)).await;
        assert_eq!(issued.facts.lease_replaced, Some("MAX_TTL_NEAR"));
        let third = issued.result.unwrap();
        assert_eq!((told(&third), third.window.life().as_secs()), (vec![("password", "canary-2")], 300));
        assert_ne!(third.fingerprint, first.fingerprint);
    }
    // If no other can be had, a little more of the old one is better than none.
    stage.clock.advance(Duration::from_secs(100));
    stage.script.will([renewed_login(300), renewed(149), refused(503, &["Vault is sealed"])]);
    let issued = stage.issue(Some(&second)).await;
    assert_eq!(issued.facts.lease_replaced, None);
    let fourth = issued.result.unwrap();
    assert_eq!((fourth.window.life().as_secs(), fourth.fingerprint), (149, first.fingerprint));
    stage.script.will([renewed_login(300), renewed(20), refused(503, &["Vault is sealed"])]);
    assert_eq!(stage.issue(Some(&second)).await.result.unwrap_err().reason(), Reason::IssuerUnavailable);
    // Somebody revoked it.
    stage.script.will([renewed_login(300), refused(400, &["lease not found"]), login(), other()]);
    assert_eq!(stage.issue(Some(&second)).await.facts.lease_replaced, Some("RENEWAL_REFUSED"));
    stage.script.will([refused(403, &["permission denied"]), login(), other()]);
    assert_eq!(stage.issue(Some(&second)).await.facts.lease_replaced, Some("RENEWAL_REFUSED"));

    let fixed =
        json!({"lease_id": LEASE, "lease_duration": 300, "renewable": false, "data": {"password": "x"}});
    stage.script.will([login(), Answer::json(200, fixed)]);
    let fixed = stage.get().await.unwrap();
    let before = stage.lines().len();
    stage.script.will([login(), other()]);
    assert_eq!(stage.issue(Some(&fixed)).await.facts.lease_replaced, Some("NOT_RENEWABLE"));
    assert_eq!(
        stage.lines()[before..],
        ["POST auth/jwt/login", "GET database/creds/payments"],
        "it is not tried"
    );
}

#[tokio::test]
async fn nothing_at_the_server_outlives_what_is_handed_out() {
    // CLK-04, S36: a host that is gone ends nothing.
    let stage = Stage::new(database(&[])).await;
    stage.script.will([
        logged_in(json!({"lease_duration": 2_764_800})),
        leased(3600),
        renewed_login(900),
        renewed(900),
    ]);
    let issued = stage.issue(None).await;
    assert_eq!(issued.facts.cut_life_from, Some(Duration::from_secs(3600)));
    assert_eq!(issued.result.unwrap().window.life().as_secs(), 900);
    assert_eq!(stage.lines()[2..], ["POST auth/token/renew-self", "POST sys/leases/renew"]);
    let diary = stage.script.diary();
    assert_eq!(
        (body(&diary[2])["increment"].clone(), body(&diary[3])["increment"].clone()),
        (json!("900s"), json!(900))
    );
    // The login ends first: so does the lease.
    stage.script.will([
        logged_in(json!({"lease_duration": 60})),
        leased(300),
        renewed_login(60),
        renewed(60),
    ]);
    assert_eq!(stage.get().await.unwrap().window.life().as_secs(), 60);
    // Where it may not be shortened, it is used no longer all the same, and never renewed.
    let denied = || refused(403, &["1 error occurred:\n\t* permission denied\n\n"]);
    stage.script.will([logged_in(json!({"lease_duration": 7200})), leased(3600), denied()]);
    let held = stage.get().await.unwrap();
    assert_eq!(held.window.life().as_secs(), 900);
    stage.script.will([login(), leased(300)]);
    assert_eq!(stage.issue(Some(&held)).await.facts.lease_replaced, Some("NOT_RENEWABLE"));
    // A server that is only in trouble for a moment takes nothing from what comes later.
    stage.script.will([logged_in(json!({"lease_duration": 7200})), leased(3600), refused(503, &["x"])]);
    let held = stage.get().await.unwrap();
    stage.script.will([renewed_login(900), renewed(900)]);
    assert_eq!(stage.issue(Some(&held)).await.facts.lease_replaced, None);
}

#[tokio::test]
async fn a_login_by_certificate_is_renewed_over_the_same_one_or_not_at_all() {
    // CA-04, GHSA-7ccv-rp6m-rffr
    let mut stage = Stage::asking(database(&[])).await;
    stage.script.will([login(), leased(300)]);
    let held = stage.get().await.unwrap();
    stage.signers.certificates.insert(0, certificate("next"));
    stage.script.will([renewed_login(300), renewed(300)]);
    let held = stage.issue(Some(&held)).await.result.unwrap();
    let same = &stage.signers.certificates[1].chain()[0];
    assert_eq!(stage.last().certificate.as_ref(), Some(same));
    stage.signers.certificates.remove(1);
    stage.script.will([login(), leased(300)]);
    let issued = stage.issue(Some(&held)).await;
    assert_eq!(issued.facts.lease_replaced, Some("CERTIFICATE_ROTATED"));
    issued.result.unwrap();
    assert_eq!(stage.lines()[4..], ["POST auth/cert/login", "GET database/creds/payments"]);
}

#[tokio::test]
async fn a_lease_hangs_on_no_login_that_could_not_be_ended() {
    // CA-04, S37
    for (with, told) in [
        (json!({"token_type": "batch", "renewable": false}), "token_type to \"service\""),
        (json!({"num_uses": 2}), "token_num_uses to 0"),
    ] {
        let stage = Stage::new(database(&[])).await;
        stage.script.will([logged_in(with), leased(300), done()]);
        let error = stage.get().await.unwrap_err();
        assert!(
            matches!(error, IssueError::Misconfigured { .. }) && error.to_string().contains(told),
            "{error}"
        );
        assert_eq!(stage.lines().last().unwrap(), "POST auth/token/revoke-self");
    }
    for (with, reason) in [
        (json!({"client_token": "", "mfa_requirement": {"mfa_request_id": "m"}}), Reason::ClientAuthRejected),
        (json!({"client_token": ""}), Reason::IssuerProtocol),
        (json!({"client_token": "two words"}), Reason::IssuerProtocol),
        (json!({"client_token": 7}), Reason::IssuerProtocol),
    ] {
        let stage = Stage::new(database(&[])).await;
        stage.script.will([logged_in(with.clone())]);
        assert_eq!(stage.reason().await, reason, "{with}");
        assert_eq!(stage.script.diary().len(), 1);
    }
}

#[tokio::test]
async fn a_lease_is_over_when_its_login_is_and_only_then() {
    // CA-04, OA-43
    let stage = Stage::new(database(&[])).await;
    stage.script.will([login(), leased(300)]);
    let held = stage.get().await.unwrap();
    let end = || stage.bao.revoke(&stage.order, &stage.signers, &held);
    for over in [
        done(),
        refused(403, &["permission denied"]),
        refused(403, &["2 errors occurred:\n\t* permission denied\n\t* invalid token\n\n"]),
    ] {
        stage.script.will([over]);
        end().await.unwrap();
    }
    stage.script.will([refused(403, &["1 error occurred:\n\t* permission denied\n\n"])]);
    let error = end().await.unwrap_err();
    assert!(
        matches!(&error, IssueError::Refused { detail, .. } if detail.contains("auth/token/revoke-self")),
        "{error}"
    );
    for again in [refused(503, &["Vault is sealed"]), refused(500, &["x"]), Answer::HangUp] {
        stage.script.will([again]);
        assert!(matches!(end().await, Err(IssueError::Retry { .. })));
    }
}

#[tokio::test]
async fn what_has_no_lease_is_read_again_and_its_login_ended_at_once() {
    // CA-04: KV, versions 1 and 2.
    let wants = |fields: &[&str]| {
        let fields = fields.iter().map(|field| (*field).to_owned()).collect();
        Wants::Lease(LeaseTerms { at: "secret/data/app".into(), fields, unleased: true })
    };
    let kv = |seconds: u64, data: Value| {
        Answer::json(
            200,
            json!({"lease_id": "", "lease_duration": seconds, "renewable": false, "data": data}),
        )
    };
    let two = || json!({"data": {"a": "1", "n": 7, "b": true, "o": {"x": [1]}}, "metadata": {"version": 3}});
    let stage = Stage::new(wants(&[])).await;
    stage.script.will([login(), kv(0, two()), done()]);
    let held = stage.get().await.unwrap();
    assert_eq!(told(&held), [("a", "1"), ("b", "true"), ("n", "7"), ("o", "{\"x\":[1]}")]);
    assert_eq!(held.window.life().as_secs(), 900, "as long as policy has it");
    assert_eq!(stage.lines(), ["POST auth/jwt/login", "GET secret/data/app", "POST auth/token/revoke-self"]);
    // The same again is the same.
    stage.script.will([login(), kv(0, two()), done()]);
    let issued = stage.issue(Some(&held)).await;
    assert_eq!(issued.facts.lease_replaced, None);
    assert_eq!(issued.result.unwrap().fingerprint, held.fingerprint);
    // What may be guessed is not told by its fingerprint: another agent has another.
    let other = Stage::new(wants(&[])).await;
    other.script.will([login(), kv(0, two()), done()]);
    assert_ne!(other.get().await.unwrap().fingerprint, held.fingerprint);
    let error = stage.bao.revoke(&stage.order, &stage.signers, &held).await.unwrap_err();
    assert!(matches!(error, IssueError::Refused { .. }), "nobody says that it is over: {error}");

    let stage = Stage::new(wants(&["a"])).await;
    stage.script.will([login(), kv(60, json!({"a": "1", "data": "d"})), done()]);
    let held = stage.get().await.unwrap();
    assert_eq!((told(&held), held.window.life().as_secs()), (vec![("a", "1")], 60));
    for data in [json!({"b": "canary"}), json!({"a": null}), json!({}), Value::Null, json!("text")] {
        stage.script.will([login(), kv(0, data.clone()), done()]);
        let error = stage.get().await.unwrap_err();
        assert!(matches!(error, IssueError::Misconfigured { .. }), "{data}: {error}");
        assert!(!error.to_string().contains("canary"), "{error}");
    }
}

#[tokio::test]
async fn what_has_no_lease_is_given_out_under_an_exception_only() {
    // S36: what comes, nobody can tell from the settings.
    let answer =
        json!({"lease_id": "", "lease_duration": 0, "renewable": false, "data": {"username": "canary"}});
    let stage = Stage::new(database(&[])).await;
    stage.script.will([login(), Answer::json(200, answer), done()]);
    let error = stage.get().await.unwrap_err();
    let IssueError::Misconfigured { reason: Reason::IssuerConfig, detail } = &error else {
        panic!("{error}")
    };
    assert!(detail.contains("exception = {") && !detail.contains("canary"), "{detail}");
    assert_eq!(stage.lines().last().unwrap(), "POST auth/token/revoke-self");
}

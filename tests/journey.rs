//! The whole journey over the real binary and real sockets: allow, deny, expire, outage, reload, restart, stop.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::{process::Command, time::Duration};

use keybearer::{
    audit::{EventType, Outcome},
    client::operator,
    dev::Fault,
    proto::v1::{ReloadRequest, credential::Kind},
};
use serde_json::Value;
use support::{BINARY, RESOURCE, Setup, body, get, http, issuer, issuer_at};
use tonic::Code;
use tonic_types::StatusExt as _;

fn token(credential: &keybearer::proto::v1::Credential) -> &str {
    let Some(Kind::AccessToken(token)) = &credential.kind else { panic!("not a token") };
    &token.token
}

#[tokio::test(flavor = "multi_thread")]
async fn every_way_in_gets_the_same_credential_and_each_is_on_record() {
    let issuer = issuer(300);
    let agent = Setup::new(issuer.handle.url()).start(Some(&issuer.handle));

    let mut client = agent.client().await;
    let by_grpc = client.get("orders", &[]).await.unwrap();
    assert_eq!((by_grpc.audience.as_str(), by_grpc.binding.as_str()), (RESOURCE, "bearer"));
    assert!(token(&by_grpc).starts_with("eyJ"));
    assert!((290..=300).contains(&by_grpc.expires_in.unwrap().seconds));

    let (status, answer) = get(&agent.socket("http.sock"), "/v1/credentials/orders");
    assert_eq!(status, 200, "{answer}");
    assert_eq!(body(&answer)["access_token"], token(&by_grpc));
    assert_eq!(body(&answer)["fingerprint"], by_grpc.fingerprint);

    let by_command = agent.keybearer(&["get", "orders"]);
    assert_eq!(String::from_utf8(by_command.stdout).unwrap().trim(), token(&by_grpc));
    let header = agent.keybearer(&["get", "orders", "--header"]);
    assert_eq!(
        String::from_utf8(header.stdout).unwrap().trim(),
        format!("Authorization: Bearer {}", token(&by_grpc))
    );
    assert_eq!(issuer.handle.diary().requests("/token"), 1, "one call to the issuer for all of them");

    let who: Value = serde_json::from_slice(&agent.keybearer(&["whoami", "--json"]).stdout).unwrap();
    assert_eq!((who["identity"].as_str(), who["level"].as_str()), (Some("shop"), Some("L2")));

    let records = agent.records();
    let released: Vec<_> = records
        .iter()
        .filter(|record| {
            matches!(record.entry.event.kind, EventType::CredentialIssue | EventType::CredentialRelease)
        })
        .collect();
    // S27: as many records as exchanges, the first from the issuer.
    assert_eq!(released.len(), 4);
    assert_eq!(released[0].entry.event.kind, EventType::CredentialIssue);
    let what = released[0].entry.credential.as_ref().unwrap();
    assert_eq!(what.token_hash.as_deref(), Some(by_grpc.fingerprint.as_str()));
    assert!(answer.contains(&format!("keybearer-exchange: {}", released[1].entry.exchange_id.0)), "{answer}");
    // AUD-01: start, key, four exchanges, whoami.
    let kinds: Vec<EventType> = records.iter().map(|record| record.entry.event.kind).collect();
    assert_eq!(kinds[..2], [EventType::AgentStart, EventType::KeyOpen]);
    assert!(kinds.contains(&EventType::Describe));
    agent.verify().unwrap();

    // S28: each record answers the four questions.
    let explained = agent.keybearer(&["audit", "explain", &released[0].seq.to_string()]);
    let explained = String::from_utf8(explained.stdout).unwrap();
    for answer in [
        "who           shop in test",
        "from where    pid",
        "what          orders from dev",
        "decision      grant by shop.orders",
    ] {
        assert!(explained.contains(answer), "{answer}\n{explained}");
    }

    let (code, _) = agent.stop();
    assert_eq!(code, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_is_refused_and_recorded_and_only_the_operator_learns_why() {
    // ATT-27, TM-02
    let issuer = issuer(300);
    let agent = Setup::matching(issuer.handle.url(), "match = { uid = 54321 }").start(Some(&issuer.handle));
    let mut client = agent.client().await;
    let stranger = client.get("orders", &[]).await.unwrap_err();
    assert_eq!(stranger.code(), Code::PermissionDenied);
    assert_eq!(stranger.get_details_error_info().unwrap().reason, "NOT_ENTITLED");
    let unknown = client.get("no-such-thing", &[]).await.unwrap_err();
    assert_eq!(
        (stranger.code(), stranger.message(), stranger.details()),
        (unknown.code(), unknown.message(), unknown.details())
    );
    assert_eq!(issuer.handle.diary().requests("/token"), 0, "no call to the issuer without a grant");

    let (status, answer) = get(&agent.socket("http.sock"), "/v1/credentials/orders");
    assert_eq!((status, body(&answer)["error"].as_str()), (403, Some("NOT_ENTITLED")));

    let denial =
        agent.records().into_iter().find(|record| record.entry.event.kind == EventType::Denial).unwrap();
    let exchange = stranger.metadata().get("keybearer-exchange").unwrap().to_str().unwrap();
    assert_eq!(denial.entry.exchange_id.0.to_string(), exchange);
    assert_eq!(denial.entry.event.reason.as_deref(), Some("NO_IDENTITY"));
    let uid = rustix::process::geteuid().as_raw();
    assert_eq!(denial.entry.policy.unwrap().missing, [format!("shop: user should be 54321, is {uid}")]);

    let explained = agent.keybearer(&["explain", "--pid", &std::process::id().to_string(), "orders"]);
    let text = String::from_utf8(explained.stdout).unwrap();
    assert!(text.contains("no, NO_IDENTITY") && text.contains("user should be 54321"), "{text}");

    let refused = agent.keybearer(&["get", "orders"]);
    assert_eq!(refused.status.code(), Some(77));
    let told = String::from_utf8(refused.stderr).unwrap();
    assert!(told.contains("NOT_ENTITLED") && told.contains("keybearer explain --pid"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_that_leave_at_once_raise_no_alarm() {
    // The last words of a program that exits may be read after it is gone: that is no attack.
    let issuer = issuer(300);
    let agent = Setup::new(issuer.handle.url()).start(Some(&issuer.handle));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..4 {
                    assert!(agent.keybearer(&["get", "orders"]).status.success());
                    assert!(agent.keybearer(&["status"]).status.success());
                }
            });
        }
    });
    let ledger = agent.ledger();
    let dir = std::sync::Arc::clone(&agent.dir);
    assert_eq!(agent.stop().0, Some(0));
    let records: Vec<_> = keybearer::audit::read(&ledger, 0).unwrap().collect();
    drop(dir);
    let alarms: Vec<_> =
        records.iter().filter(|record| record.entry.event.kind == EventType::AttestationFailure).collect();
    assert!(records.len() > 15 && alarms.is_empty(), "{alarms:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_break_the_rules_are_told_so_and_recorded() {
    // ATT-28
    let issuer = issuer(300);
    let agent = Setup::new(issuer.handle.url()).start(Some(&issuer.handle));
    let socket = agent.socket("http.sock");
    let (status, _) =
        http(&socket, "GET /v1/credentials/orders HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    assert_eq!(status, 400, "without the header `keybearer: v1`");
    assert_eq!(get(&socket, "/v1/credentials/orders?token=x").0, 400);
    assert_eq!(get(&socket, "/v1/credentials/..%2f").0, 400);
    assert_eq!(get(&socket, "/etc/passwd").0, 404);
    assert_eq!(http(&socket, "POST /live HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").0, 405);
    assert_eq!(http(&socket, "nonsense\r\n\r\n").0, 400);

    let mut client = agent.client().await;
    assert_eq!(client.get("Not Sound", &[]).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(client.get("orders", &["x".repeat(300)]).await.unwrap_err().code(), Code::InvalidArgument);
    let wider = client.get("orders", &["admin".into()]).await.unwrap_err();
    assert_eq!(wider.code(), Code::PermissionDenied);
    let narrow = client.get("orders", &["orders:read".into()]).await.unwrap();
    assert_eq!(narrow.scope, ["orders:read"]);
    // HTTP/1.1 on the gRPC socket, a header block without end, a frame too large: the connection ends, nobody else's.
    for junk in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\x00\x00\x00\x00\x00\x01",
    ] {
        use std::io::{Read as _, Write as _};
        let mut stream = std::os::unix::net::UnixStream::connect(agent.socket("agent.sock")).unwrap();
        stream.write_all(junk).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut rest = vec![];
        stream.read_to_end(&mut rest).ok();
    }
    client.get("orders", &[]).await.unwrap();
    let protocol =
        agent.records().into_iter().filter(|record| record.entry.event.kind == EventType::Protocol).count();
    assert_eq!(protocol, 5);
    let cut = agent
        .records()
        .into_iter()
        .filter(|record| record.entry.event.reason.as_deref() == Some("PROTOCOL"))
        .count();
    assert_eq!(cut, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_is_survived_with_what_is_live_and_told_when_nothing_is() {
    // CLK-07
    let issuer = issuer(300);
    let agent = Setup::new(issuer.handle.url()).start(Some(&issuer.handle));
    let mut client = agent.client().await;
    let before = client.get("orders", &[]).await.unwrap();
    assert_eq!(body(&get(&agent.socket("http.sock"), "/ready").1)["state"], "ready");
    issuer.handle.set_fault(Fault::Unavailable, None);
    let during = client.get("orders", &[]).await.unwrap();
    assert_eq!(before.fingerprint, during.fingerprint);

    // Another order of the same issuer, which is not live.
    let mut request = tonic::Request::new(keybearer::proto::v1::GetRequest {
        name: "orders".into(),
        scope: vec!["orders:read".into()],
        min_ttl: None,
    });
    request.set_timeout(Duration::from_millis(1500));
    let failed = tokio::time::timeout(Duration::from_secs(20), get_narrow(&agent, request))
        .await
        .unwrap()
        .unwrap_err();
    assert!(
        matches!(failed.code(), Code::Unavailable | Code::Cancelled | Code::DeadlineExceeded),
        "{failed:?}"
    );
    let ready = get(&agent.socket("http.sock"), "/ready");
    assert_eq!((ready.0, body(&ready.1)["state"].as_str()), (200, Some("stale")));
    assert!(agent.keybearer(&["health"]).status.success());
    let status = String::from_utf8(agent.keybearer(&["status"]).stdout).unwrap();
    assert!(status.contains("failing") && status.contains("503"), "{status}");

    issuer.handle.set_fault(Fault::None, None);
    let mut narrow = Err(tonic::Status::unknown("not asked"));
    for _ in 0..10 {
        narrow = client.get("orders", &["orders:read".into()]).await;
        if narrow.is_ok() {
            break;
        }
    }
    narrow.unwrap();
    let mut failures =
        agent.records().into_iter().filter(|record| record.entry.event.kind == EventType::IssueFailure);
    let failure = failures.next_back().unwrap();
    assert_eq!(failure.entry.event.reason.as_deref(), Some("ISSUER_UNAVAILABLE"));
    assert_eq!(failure.entry.issuer_response.unwrap().http_status, Some(503));
}

async fn get_narrow(
    agent: &support::TestAgent,
    mut request: tonic::Request<keybearer::proto::v1::GetRequest>,
) -> Result<(), tonic::Status> {
    request.metadata_mut().insert("keybearer", "v1".parse().unwrap());
    let path = agent.socket("agent.sock");
    let connector = tower::service_fn(move |_: tonic::transport::Uri| {
        let path = path.clone();
        async move {
            Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(
                tokio::net::UnixStream::connect(path).await?,
            ))
        }
    });
    let channel =
        tonic::transport::Endpoint::from_static("http://localhost").connect_with_connector(connector).await;
    let mut client = keybearer::proto::v1::credentials_client::CredentialsClient::new(channel.unwrap());
    client.get(request).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_issuer_that_refuses_is_told_by_its_row_and_asked_no_more_often() {
    // ER-02, ER-12, OA-20, OA-21, PKJ-17, OA-44: each fault once, on the real binary.
    let issuer = issuer(300);
    for (fault, code, reason) in [
        (Fault::InvalidClient, Code::Unavailable, "CLIENT_AUTH_REJECTED"),
        (Fault::WiderScope, Code::FailedPrecondition, "SCOPE_ESCALATED"),
        (Fault::WrongAudience, Code::FailedPrecondition, "AUD_MISMATCH"),
        (Fault::Redirect { to: "http://127.0.0.1:1/".into() }, Code::FailedPrecondition, "ISSUER_REDIRECT"),
    ] {
        let agent = Setup::new(issuer.handle.url()).start(Some(&issuer.handle));
        let asked = issuer.handle.diary().requests("/token");
        issuer.handle.set_fault(fault.clone(), None);
        let mut client = agent.client().await;
        let failed = client.get("orders", &[]).await.unwrap_err();
        assert_eq!(failed.code(), code, "{fault:?}");
        assert_eq!(failed.get_details_error_info().unwrap().reason, reason, "{fault:?}");
        client.get("orders", &[]).await.unwrap_err();
        assert_eq!(issuer.handle.diary().requests("/token"), asked + 1, "{fault:?}: a refusal is remembered");
        issuer.handle.set_fault(Fault::None, None);
        let failure =
            agent.records().into_iter().find(|record| record.entry.event.kind == EventType::IssueFailure);
        assert_eq!(failure.unwrap().entry.event.reason.as_deref(), Some(reason));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_hears_rotations_and_ends_with_the_right() {
    let issuer = issuer(4);
    let setup = Setup::new(issuer.handle.url());
    let agent = setup.start(Some(&issuer.handle));
    let mut client = agent.client().await;
    let mut stream = client.watch("orders", &[]).await.unwrap();
    let mut seen = vec![];
    for _ in 0..3 {
        let message =
            tokio::time::timeout(Duration::from_secs(15), stream.message()).await.unwrap().unwrap().unwrap();
        seen.push(message.credential.unwrap().fingerprint);
    }
    seen.dedup();
    assert_eq!(seen.len(), 3, "three different credentials");

    // The identity is somebody else from now on: the stream ends with a denial.
    let uid = rustix::process::geteuid().as_raw();
    setup.with(&format!("uid = {uid}"), "uid = 54321").write();
    let reloaded = agent.keybearer(&["reload"]);
    assert!(reloaded.status.success(), "{reloaded:?}");
    assert!(String::from_utf8(reloaded.stdout).unwrap().contains("identity shop was changed"));
    let end = tokio::time::timeout(Duration::from_secs(15), async {
        loop {
            match stream.message().await {
                Ok(Some(_)) => {}
                end => return end,
            }
        }
    });
    assert_eq!(end.await.unwrap().unwrap_err().code(), Code::PermissionDenied);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_released_credential_is_revoked_at_the_issuer() {
    // OA-43, PKJ-16
    let issuer = issuer(300);
    let agent = Setup::new(issuer.handle.url()).start(Some(&issuer.handle));
    let mut client = agent.client().await;
    let first = client.get("orders", &[]).await.unwrap();
    assert!(client.release("orders", &[]).await.unwrap());
    assert_eq!(issuer.handle.diary().requests("/revoke"), 1);
    let second = client.get("orders", &[]).await.unwrap();
    assert_ne!(first.fingerprint, second.fingerprint);
    let returned =
        agent.records().into_iter().find(|record| record.entry.event.kind == EventType::CredentialReturn);
    assert_eq!(returned.unwrap().entry.event.outcome, Outcome::Success);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_good_reload_takes_effect_and_a_broken_one_changes_nothing() {
    let issuer = issuer(300);
    let setup = Setup::new(issuer.handle.url());
    let agent = setup.start(Some(&issuer.handle));
    let mut client = agent.client().await;
    let before = client.get("orders", &[]).await.unwrap();

    let setup = setup.with("scope = [\"orders:read\", \"orders:write\"]", "scope = [\"orders:read\"]");
    setup.write();
    let mut operator = operator(&agent.socket("operator.sock")).await.unwrap();
    let answer = operator.reload(ReloadRequest {}).await.unwrap().into_inner();
    assert!(answer.reloaded, "{:?}", answer.messages);
    // S18: for connections that are open, too.
    let narrowed = client.get("orders", &[]).await.unwrap();
    assert_eq!(narrowed.scope, ["orders:read"]);
    assert_ne!(before.fingerprint, narrowed.fingerprint);

    let broken = setup.with("assurance = \"interim\"", "assurance = \"intermin\"");
    broken.write();
    let answer = operator.reload(ReloadRequest {}).await.unwrap().into_inner();
    assert!(!answer.reloaded);
    assert!(answer.messages[0].contains("identities.shop.assurance"), "{:?}", answer.messages);
    assert_eq!(client.get("orders", &[]).await.unwrap().fingerprint, narrowed.fingerprint);
    let status = String::from_utf8(agent.keybearer(&["status"]).stdout).unwrap();
    assert!(status.contains("older than the file"), "{status}");
    let kinds: Vec<EventType> = agent.records().iter().map(|record| record.entry.event.kind).collect();
    assert!(kinds.contains(&EventType::ConfigLoad) && kinds.contains(&EventType::ConfigRefused));

    // SIGHUP does the same.
    broken.with("intermin", "interim").write();
    let loads =
        || agent.records().iter().filter(|record| record.entry.event.kind == EventType::ConfigLoad).count();
    let before = loads();
    agent.signal("-HUP");
    while loads() == before {
        tokio::task::yield_now().await;
    }
    let checked = agent.keybearer(&["check"]);
    assert!(checked.status.success(), "{checked:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_and_a_crash_lose_no_record() {
    // AUD-22
    let issuer = issuer(300);
    let setup = Setup::new(issuer.handle.url());
    let agent = setup.start(Some(&issuer.handle));
    let first = agent.client().await.get("orders", &[]).await.unwrap();
    let dir = std::sync::Arc::clone(&agent.dir);
    agent.kill();
    let agent = support::TestAgent::start(std::sync::Arc::clone(&dir));
    assert_eq!(agent.verify().unwrap().records, agent.records().len() as u64);
    let hashes: Vec<Option<String>> = agent
        .records()
        .into_iter()
        .filter_map(|record| record.entry.credential?.token_hash)
        .map(Some)
        .collect();
    assert_eq!(hashes, [Some(first.fingerprint)], "what was handed out before the crash is on record");
    agent.client().await.get("orders", &[]).await.unwrap();
    let (code, _) = agent.stop();
    assert_eq!(code, Some(0));
    let agent = support::TestAgent::start(dir);
    let report = agent.verify().unwrap();
    assert!(report.checkpoints >= 1, "a stop signs what is written");
}

#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_callers_at_once_are_one_call_to_the_issuer() {
    // CLK-08
    let issuer = issuer(300);
    let agent = Setup::new(issuer.handle.url()).start(Some(&issuer.handle));
    let client = agent.client().await;
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..500 {
        let mut client = client.clone();
        callers.spawn(async move { client.get("orders", &[]).await.unwrap().fingerprint });
    }
    let mut prints = callers.join_all().await;
    prints.dedup();
    assert_eq!(prints.len(), 1);
    assert_eq!(issuer.handle.diary().requests("/token"), 1);
    agent.verify().unwrap();
    assert_eq!(
        agent.records_but_of_people().len(),
        503,
        "start, key, the exception that ends soon, and one record each"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_issuer_that_is_not_there_yet_is_waited_for() {
    let issuer = issuer(300);
    let port: u16 = issuer.handle.url().rsplit(':').next().unwrap().parse().unwrap();
    let setup = Setup::new(issuer.handle.url());
    let config = setup.write();
    drop(issuer);
    let agent = setup.start(None);
    let mut client = agent.client().await;
    let waiting = tokio::spawn(async move { client.get("orders", &[]).await });
    // The first try has failed once it is on the issuer's account.
    loop {
        let status: Value = serde_json::from_slice(&agent.keybearer(&["status", "--json"]).stdout).unwrap();
        if status["issuers"][0]["failures"].as_u64() > Some(0) {
            break;
        }
    }
    let issuer = loop {
        // The port may take a moment to be free again.
        if let Ok(issuer) = std::panic::catch_unwind(|| issuer_at(port, 300)) {
            break issuer;
        }
    };
    support::register(&issuer.handle, &config);
    waiting.await.unwrap().unwrap();
}

#[test]
fn the_command_line_has_its_exit_codes() {
    let run = |arguments: &[&str]| Command::new(BINARY).args(arguments).output().unwrap();
    assert_eq!(run(&["get"]).status.code(), Some(64), "EX_USAGE");
    let nobody = run(&["get", "x", "--socket", "/nonexistent/agent.sock"]);
    assert_eq!(nobody.status.code(), Some(69), "EX_UNAVAILABLE");
    assert!(String::from_utf8(nobody.stderr).unwrap().contains("keybearer agent"));
    let dir = tempfile::tempdir().unwrap();
    let bad = dir.path().join("bad.toml");
    std::fs::write(&bad, "colour = 1\n").unwrap();
    let checked = run(&["check", bad.to_str().unwrap()]);
    assert_eq!(checked.status.code(), Some(78), "EX_CONFIG");
    assert!(String::from_utf8(checked.stdout).unwrap().contains("bad.toml:1: colour"));
    assert!(run(&["completions", "bash"]).stdout.starts_with(b"_keybearer"));
    let man = run(&["man", dir.path().to_str().unwrap()]);
    assert!(man.status.success() && dir.path().join("keybearer-get.1").exists(), "{man:?}");
    assert_eq!(run(&["--version"]).status.code(), Some(0));
}

#[test]
fn the_story_of_dev_comes_true() {
    let told = Command::new(BINARY).args(["dev", "--once"]).output().unwrap();
    let text = String::from_utf8(told.stdout).unwrap();
    assert!(told.status.success(), "{text}\n{}", String::from_utf8_lossy(&told.stderr));
    for sentence in [
        "is attested as demo-shop",
        "a dpop token",
        "with the nonce that the API wants",
        "200 to the workload",
        "a certificate for spiffe://dev.example/demo-shop, whose key never left the agent",
        "as DPoP 401: send a DPoP header; as Bearer 401: the token is bound to a key",
        "NOT_ENTITLED",
        "verified",
    ] {
        assert!(text.contains(sentence), "{sentence}\n{text}");
    }
    // What went wrong is kept to be looked at: here, where it goes with the test.
    let kept = tempfile::tempdir().unwrap();
    let production = Command::new(BINARY)
        .args(["dev", "--once"])
        .env("TMPDIR", kept.path())
        .env("KEYBEARER_CONFIG__ENVIRONMENT", "prod")
        .output()
        .unwrap();
    assert_eq!(production.status.code(), Some(78), "S11: {}", String::from_utf8_lossy(&production.stderr));
}

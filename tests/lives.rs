//! What credentials die of before their time, on the real binary: the end of their process, their use, new settings; and that an
//! agent which is killed meanwhile finishes the work when it comes back. How long it took is printed.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "support/puppet.rs"]
mod puppet;
mod support;

use std::{fs, os::unix::fs::PermissionsExt as _, sync::Arc, time::Duration};

use keybearer::{
    audit::{Entry, EventType, Outcome},
    clock::SystemClock,
    dev::Fault,
    jose::Unverified,
    proto::v1::credential::Kind,
};
use puppet::Puppet;
use serde_json::Value;
use support::{Api, Issuer, Setup, TestAgent, demo_api, issuer};
use tonic::Code;

/// Settings with bound tokens, each for one process alone.
fn per_process(issuer: &Issuer, api: &Api) -> Setup {
    Setup::new(issuer.handle.url()).bound(&api.url).per_process()
}

/// Whether the issuer ended this token.
fn is_revoked(issuer: &Issuer, token: &str) -> bool {
    let claims: Value = Unverified::parse(token).unwrap().claims().unwrap();
    issuer.handle.is_revoked(claims["jti"].as_str().unwrap())
}

/// Waits until something is so.
async fn until(what: &str, is_so: impl Fn() -> bool) {
    let waited = tokio::time::timeout(Duration::from_secs(30), async {
        while !is_so() {
            tokio::task::yield_now().await;
        }
    });
    assert!(waited.await.is_ok(), "never: {what}");
}

/// What became in the end of credentials that had to die, once there are so many records of it. One that has to wait is on record before.
async fn revocations(agent: &TestAgent, count: usize) -> Vec<Entry> {
    let is_over = |entry: &Entry| {
        let waits =
            entry.detail.as_deref().is_some_and(|detail| detail.contains("is tried again until it ends"));
        entry.event.kind == EventType::CredentialRevoke && !waits
    };
    let all = || {
        let entries = agent.records().into_iter().map(|record| record.entry);
        entries.filter(is_over).collect::<Vec<_>>()
    };
    until("on record", || all().len() >= count).await;
    all()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_one_process_alone_is_revoked_within_a_second_of_its_end() {
    // ATT-09, S37, DPOP-23, OA-43
    const ROUNDS: usize = 10;
    let (issuer, clock) = (issuer(300), SystemClock::shared());
    let api = demo_api(&issuer);
    let agent = per_process(&issuer, &api).start(Some(&issuer.handle));
    let mut stays = Puppet::start(&agent);
    let (kept, _) = stays.get();
    let mut took = vec![];
    for _ in 0..ROUNDS {
        let mut goes = Puppet::start(&agent);
        let (token, fingerprint) = goes.get();
        assert_ne!(token, kept, "each process has its own");
        assert_eq!(goes.get().0, token, "and keeps it");
        let pasted = stays.ask(&format!("prove orders {fingerprint} GET {}", api.orders()));
        assert_eq!(pasted["error"], "NOT_HELD", "DPOP-18: one process makes no proofs with another's");
        assert!(!is_revoked(&issuer, &token));
        let before = clock.boot();
        goes.kill();
        until("revoked", || is_revoked(&issuer, &token)).await;
        took.push(clock.boot().since(before));
    }
    took.sort();
    println!(
        "from exit to revocation at the issuer: median {:?}, longest {:?}",
        took[ROUNDS / 2],
        took[ROUNDS - 1]
    );
    assert!(took[ROUNDS - 1] < Duration::from_secs(1), "{took:?}");
    assert!(!is_revoked(&issuer, &kept));
    assert_eq!(stays.ask(&format!("errand {}", api.orders()))["api_statuses"], serde_json::json!([401, 200]));
    let ended = revocations(&agent, ROUNDS).await;
    assert_eq!(ended.len(), ROUNDS);
    for entry in ended {
        assert_eq!(
            (entry.event.outcome, entry.event.reason.as_deref()),
            (Outcome::Success, Some("process_exited"))
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_be_used_once_is_handed_out_once_and_none_outlives_its_process() {
    // S29, S41, S37
    let issuer = issuer(300);
    let api = demo_api(&issuer);
    let setup = per_process(&issuer, &api).with("per = \"process\"", "per = \"process\"\nmax_uses = 1");
    let agent = setup.start(Some(&issuer.handle));
    let mut goes = Puppet::start(&agent);
    let mut held: Vec<(String, String)> = (0..4).map(|_| goes.get()).collect();
    // Each is still its holder's to prove, however many came after it.
    for (_, fingerprint) in &held {
        let proof = goes.ask(&format!("prove orders {fingerprint} GET {}", api.orders()));
        assert!(proof["proof"].is_string(), "{proof}");
    }
    goes.kill();
    held.sort();
    held.dedup();
    assert_eq!(held.len(), 4, "four uses, four tokens");
    let issued =
        agent.records().into_iter().filter(|record| record.entry.event.kind == EventType::CredentialIssue);
    assert_eq!(issued.count(), 4);
    until("all revoked", || held.iter().all(|(token, _)| is_revoked(&issuer, token))).await;
    assert_eq!(revocations(&agent, 4).await.len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_settings_grant_no_more_is_revoked_and_its_stream_ends() {
    // S18, S26, OA-43
    let issuer = issuer(300);
    let api = demo_api(&issuer);
    let setup = Setup::new(issuer.handle.url()).bound(&api.url);
    let agent = setup.start(Some(&issuer.handle));
    let mut client = agent.client().await;
    let mut stream = client.watch("orders", &[]).await.unwrap();
    let credential = stream.message().await.unwrap().unwrap().credential.unwrap();
    let Some(Kind::AccessToken(token)) = &credential.kind else { panic!("not a token") };
    // The identity is taken out.
    let path = setup.write();
    let settings = fs::read_to_string(&path).unwrap();
    fs::write(&path, settings.split("[identities.shop]").next().unwrap()).unwrap();
    let reloaded = agent.keybearer(&["reload"]);
    assert!(reloaded.status.success(), "{reloaded:?}");
    let end = tokio::time::timeout(Duration::from_secs(10), stream.message()).await.unwrap().unwrap_err();
    assert_eq!(end.code(), Code::PermissionDenied, "{end:?}");
    until("revoked", || is_revoked(&issuer, &token.token)).await;
    let ended = revocations(&agent, 1).await;
    assert_eq!(
        (ended[0].event.outcome, ended[0].event.reason.as_deref()),
        (Outcome::Success, Some("settings"))
    );
    let no = client.prove(&credential, "GET", &api.orders(), None).await.unwrap_err();
    assert_eq!(no.code(), Code::PermissionDenied, "{no:?}");
    client.get("orders", &[]).await.unwrap_err();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_agent_could_not_revoke_the_next_one_does() {
    // OA-43, S37
    let issuer = issuer(300);
    let api = demo_api(&issuer);
    let agent = per_process(&issuer, &api).start(Some(&issuer.handle));
    let dir = Arc::clone(&agent.dir);
    let mut goes = Puppet::start(&agent);
    let (token, _) = goes.get();
    issuer.handle.set_fault(Fault::Unavailable, None);
    goes.kill();
    let tried = || issuer.handle.diary().requests("/revoke") > 0;
    until("tried", tried).await;
    assert!(!is_revoked(&issuer, &token));
    agent.kill();
    issuer.handle.set_fault(Fault::None, None);
    let agent = TestAgent::start(dir);
    until("revoked", || is_revoked(&issuer, &token)).await;
    let ended = revocations(&agent, 1).await;
    assert_eq!(
        (ended[0].event.outcome, ended[0].event.reason.as_deref()),
        (Outcome::Success, Some("process_exited"))
    );
    agent.verify().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_to_be_revoked_outlives_the_host_where_keys_are_sealed() {
    // OA-43, KEY-11: beside a key that lies open it would be a token on the disk.
    for sealed in [false, true] {
        let issuer = issuer(300);
        let api = demo_api(&issuer);
        let mut setup = per_process(&issuer, &api);
        if sealed {
            let key = setup.dir.path().join("sealing-key");
            fs::write(&key, "a sealing key that is kept elsewhere").unwrap();
            fs::set_permissions(&key, fs::Permissions::from_mode(0o400)).unwrap();
            setup = setup.and(&format!("\n[keys]\nsealing_key = \"{}\"\n", key.display()));
        }
        let agent = setup.start(Some(&issuer.handle));
        let dir = Arc::clone(&agent.dir);
        let at = |place: &str| dir.path().join(place).join("revocations");
        let mut goes = Puppet::start(&agent);
        let (token, _) = goes.get();
        issuer.handle.set_fault(Fault::Unavailable, None);
        goes.kill();
        until("tried", || issuer.handle.diary().requests("/revoke") > 0).await;
        agent.stop();
        assert_eq!((at("state").exists(), at("run").exists()), (sealed, !sealed));
        let left = fs::read(at(if sealed { "state" } else { "run" })).unwrap();
        assert!(!left.windows(token.len()).any(|window| window == token.as_bytes()));
        // What a host that starts has of it.
        fs::remove_dir_all(dir.path().join("run")).unwrap();
        issuer.handle.set_fault(Fault::None, None);
        let agent = TestAgent::start(Arc::clone(&dir));
        if sealed {
            until("revoked", || is_revoked(&issuer, &token)).await;
            assert_eq!(revocations(&agent, 1).await.len(), 1);
            until("taken away", || !at("state").exists()).await;
        }
        agent.verify().unwrap();
    }
}

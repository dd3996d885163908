//! The agent is stopped and started again while programs live on and the issuer is down: what was live is live again, what was
//! one process's alone still dies with it, and nothing of it lies about. On the real binary.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "support/puppet.rs"]
mod puppet;
mod support;

use std::{fs, path::PathBuf, process::Command, sync::Arc, time::Duration};

use keybearer::{audit::EventType, dev::Fault, jose::Unverified};
use puppet::Puppet;
use serde_json::{Value, json};
use support::{BINARY, Issuer, Setup, TestAgent, demo_api, issuer};

fn is_revoked(issuer: &Issuer, token: &str) -> bool {
    let claims: Value = Unverified::parse(token).unwrap().claims().unwrap();
    issuer.handle.is_revoked(claims["jti"].as_str().unwrap())
}

async fn until_revoked(issuer: &Issuer, token: &str) {
    let revoked = tokio::time::timeout(Duration::from_secs(30), async {
        while !is_revoked(issuer, token) {
            tokio::task::yield_now().await;
        }
    });
    assert!(revoked.await.is_ok(), "it lives on");
}

/// What the agent leaves in its runtime directory.
fn left(agent: &TestAgent) -> [PathBuf; 2] {
    ["live", "proofs"].map(|name| agent.dir.path().join("run").join(name))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_while_the_issuer_is_down_costs_nobody_a_credential() {
    let issuer = issuer(300);
    let api = demo_api(&issuer);
    let agent = Setup::new(issuer.handle.url()).bound(&api.url).start(Some(&issuer.handle));
    let mut program = Puppet::start(&agent);
    let (token, fingerprint) = program.get();
    issuer.handle.set_fault(Fault::Unavailable, None);

    let (dir, files) = (Arc::clone(&agent.dir), left(&agent));
    assert_eq!(agent.stop().0, Some(0));
    for file in &files {
        let kept = fs::read(file).unwrap();
        assert!(
            !kept.windows(4).any(|window| token.as_bytes().starts_with(window) || window == b"shop"),
            "sealed"
        );
    }
    // A start that comes to nothing loses nothing.
    let in_the_way = dir.path().join("run/http.sock");
    fs::write(&in_the_way, "no socket").unwrap();
    let mut failing = Command::new("timeout");
    failing.args(["20", BINARY, "agent", "--config"]).arg(dir.path().join("agent.toml"));
    let failed = failing.output().unwrap();
    assert!(String::from_utf8_lossy(&failed.stderr).contains("http.sock"), "{failed:?}");
    fs::remove_file(&in_the_way).unwrap();
    let agent = TestAgent::start(dir);
    assert_eq!(program.get(), (token.clone(), fingerprint.clone()));
    assert!(!files.iter().any(|file| file.exists()), "it is taken up once");
    // With the key that it is bound to: a proof of it is taken by the API.
    let errand = program.ask(&format!("errand {}", api.orders()));
    assert_eq!(errand["api_statuses"], json!([401, 200]), "{errand}");
    // Another program of the identity gets the same, and who was given it before is not taken for a thief.
    assert_eq!(Puppet::start(&agent).get().0, token);
    assert!(!agent.records().iter().any(|record| record.entry.event.kind == EventType::ReuseDetected));

    // An agent that is killed leaves nothing: what nobody keeps cannot be copied either.
    let dir = Arc::clone(&agent.dir);
    agent.kill();
    let agent = TestAgent::start(dir);
    let refused = program.ask("get orders");
    assert_eq!(refused["error"], "ISSUER_UNAVAILABLE", "{refused}");
    issuer.handle.set_fault(Fault::None, None);
    assert!(agent.verify().is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_one_process_alone_dies_with_it_though_the_agent_is_another_by_then() {
    // S37, ATT-09
    let issuer = issuer(300);
    let api = demo_api(&issuer);
    let setup = Setup::new(issuer.handle.url()).bound(&api.url).per_process();
    let agent = setup.start(Some(&issuer.handle));
    let (mut stays, mut goes, mut gone) =
        (Puppet::start(&agent), Puppet::start(&agent), Puppet::start(&agent));
    let [kept, ends, ended] = [&mut stays, &mut goes, &mut gone].map(|program| program.get().0);
    let dir = Arc::clone(&agent.dir);
    assert_eq!(agent.stop().0, Some(0));
    gone.kill();
    assert!(!is_revoked(&issuer, &ended), "nobody is there who could");
    let agent = TestAgent::start(dir);
    until_revoked(&issuer, &ended).await;
    goes.kill();
    until_revoked(&issuer, &ends).await;
    assert_eq!(stays.get().0, kept);
    assert!(!is_revoked(&issuer, &kept));
    assert!(agent.verify().is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_settings_grant_no_more_when_it_starts_again_is_revoked() {
    // S18, OA-43
    let issuer = issuer(300);
    let api = demo_api(&issuer);
    let setup = Setup::new(issuer.handle.url()).bound(&api.url);
    let agent = setup.start(Some(&issuer.handle));
    let (token, _) = Puppet::start(&agent).get();
    let dir = Arc::clone(&agent.dir);
    assert_eq!(agent.stop().0, Some(0));
    let path = dir.path().join("agent.toml");
    let settings = fs::read_to_string(&path).unwrap();
    let narrower = settings.replace("[\"orders:read\", \"orders:write\"]", "[\"orders:read\"]");
    assert_ne!(settings, narrower);
    fs::write(&path, narrower).unwrap();
    let agent = TestAgent::start(dir);
    until_revoked(&issuer, &token).await;
    assert_ne!(Puppet::start(&agent).get().0, token);
}

//! The host in trouble under the real binary: what a caller is told, what is on record, and that it passes.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "support/disk.rs"]
mod disk;
mod support;
#[path = "support/vault.rs"]
mod vault;

use std::{os::unix::net::UnixStream, process::Command, sync::Arc, thread};

use disk::Disk;
use keybearer::dev::Fault;
use support::{BINARY, Setup, TestAgent, body, get, is_root, issuer, skip};
use vault::Vault;

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_means_no_credential_and_passes() {
    // AUD-02: what cannot be recorded is not answered, and nothing is torn by it.
    if !is_root() {
        return skip("a_full_disk_means_no_credential_and_passes", "only root can mount a small disk");
    }
    let issuer = issuer(300);
    let setup = Setup::new(issuer.handle.url());
    let state = setup.dir.path().join("state");
    let Some(disk) = Disk::mount(&state) else {
        return skip("a_full_disk_means_no_credential_and_passes", "a tmpfs cannot be mounted here");
    };
    let agent = setup.start(Some(&issuer.handle));
    let socket = agent.socket("http.sock");
    let ask = || get(&socket, "/v1/credentials/orders");
    assert_eq!(ask().0, 200, "the control");

    disk.fill();
    // The last page of the ledger may still have room for a record or two.
    let (status, answer) = (0..8).map(|_| ask()).find(|(status, _)| *status != 200).unwrap();
    assert_eq!(status, 503, "{answer}");
    assert_eq!(body(&answer)["error"], "AUDIT_UNAVAILABLE", "{answer}");
    assert!(!answer.contains("access_token"), "{answer}");
    let asked = String::from_utf8(agent.keybearer(&["status"]).stdout).unwrap();
    assert!(asked.contains("cannot be written"), "{asked}");
    assert_ne!(get(&socket, "/ready").0, 200, "readiness tells");
    assert!(!agent.verify().unwrap().torn);

    disk.clear();
    assert_eq!(ask().0, 200, "it passes with its cause");
    assert_eq!(get(&socket, "/ready").0, 200);
    let (code, _) = agent.stop();
    assert_eq!(code, Some(0));
    keybearer::audit::verify(&state.join("audit"), None).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_cannot_be_recorded_loses_nothing_of_what_was_live() {
    // AUD-02: an agent that is not on record does not run, and takes up nothing.
    let test = "a_start_that_cannot_be_recorded_loses_nothing_of_what_was_live";
    if !is_root() {
        return skip(test, "only root can mount a small disk");
    }
    let issuer = issuer(300);
    let setup = Setup::new(issuer.handle.url());
    let Some(disk) = Disk::mount(&setup.dir.path().join("state")) else {
        return skip(test, "a tmpfs cannot be mounted here");
    };
    let agent = setup.start(Some(&issuer.handle));
    let ask = |agent: &TestAgent| get(&agent.socket("http.sock"), "/v1/credentials/orders");
    let token = |answer: &str| body(answer)["access_token"].as_str().unwrap().to_owned();
    let held = token(&ask(&agent).1);
    issuer.handle.set_fault(Fault::Unavailable, None);
    disk.fill();
    while ask(&agent).0 == 200 {}
    let dir = Arc::clone(&agent.dir);
    agent.stop();

    let mut starts = Command::new("timeout");
    let failed = starts.args(["20", BINARY, "agent", "--config"]).arg(dir.path().join("agent.toml")).output();
    let failed = failed.unwrap();
    assert_eq!(failed.status.code(), Some(74), "{failed:?}");
    assert!(dir.path().join("run/live").exists());
    disk.clear();
    let agent = TestAgent::start(dir);
    let (status, answer) = ask(&agent);
    assert_eq!((status, token(&answer)), (200, held));
    agent.verify().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_means_no_call_either() {
    // AUD-02: what cannot be recorded does not leave.
    if !is_root() {
        return skip("a_full_disk_means_no_call_either", "only root can mount a small disk");
    }
    let vault = Vault::open().await;
    let setup = vault.setup(&vault.url, "forward = \"only\"");
    let state = setup.dir.path().join("state");
    let Some(disk) = Disk::mount(&state) else {
        return skip("a_full_disk_means_no_call_either", "a tmpfs cannot be mounted here");
    };
    let agent = setup.start(None);
    let socket = agent.socket("http.sock");
    let call = || get(&socket, "/v1/forward/vault/x");
    assert_eq!(call().0, 200, "the control");

    disk.fill();
    // The last page of the ledger may still have room for a record or two: then for the call, and perhaps not for its answer.
    let mut answered = 1;
    let (status, answer) = loop {
        let (status, answer) = call();
        match status {
            200 => answered += 1,
            _ => break (status, answer),
        }
    };
    assert_eq!((status, body(&answer)["error"].as_str()), (503, Some("AUDIT_UNAVAILABLE")), "{answer}");
    assert_eq!(vault.diary().len(), answered, "nothing left that is not on record");

    disk.clear();
    assert_eq!(call().0, 200, "it passes with its cause");
    agent.verify().unwrap();
    let (code, _) = agent.stop();
    assert_eq!(code, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn out_of_descriptors_it_waits_and_goes_on() {
    // ATT-26, TM-20
    let issuer = issuer(300);
    let agent = Setup::new(issuer.handle.url())
        .and("\n[limits]\nconnections_per_uid = 1000\n")
        .start(Some(&issuer.handle));
    let socket = agent.socket("http.sock");
    assert_eq!(get(&socket, "/v1/credentials/orders").0, 200, "the control");
    // Descriptors for five connections; what is open already is among the 64 that are kept for the agent itself.
    let limited =
        Command::new("prlimit").args(["--pid", &agent.pid().to_string(), "--nofile=104:104"]).status();
    assert!(limited.unwrap().success());

    let mut held = vec![];
    for _ in 0..5 {
        let mut client = agent.client().await;
        client.get("orders", &[]).await.unwrap();
        held.push(client);
    }
    let late = thread::spawn(move || get(&socket, "/v1/credentials/orders"));
    let crowd: Vec<UnixStream> =
        (0..60).map(|_| UnixStream::connect(agent.socket("agent.sock")).unwrap()).collect();
    // Everybody on the agent's one thread has had a turn between two answers: by then it has seen that there are none left.
    for _ in 0..3 {
        held[0].get("orders", &[]).await.unwrap();
    }
    drop((held, crowd));
    let (status, answer) = late.join().unwrap();
    assert_eq!(status, 200, "it goes on once there are descriptors: {answer}");
    agent.verify().unwrap();
    let (code, log) = agent.stop();
    assert_eq!(code, Some(0));
    assert!(log.contains("no descriptors for more connections"), "{log}");
}

//! An operator's orders to the real binary: rotate, revoke, disable, enable. In go commands; out comes what the agent still
//! hands out, what its issuer was told, and what is on record.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::{path::Path, time::Duration};

use keybearer::{
    audit::{EventType, Outcome},
    dev::{Fault, Handle},
    proto::v1::credential::Kind,
};
use support::{Setup, TestAgent, issuer, register};
use tokio::time::timeout;

const PROPAGATION: &str = "\n[identities.shop.key]\npropagation = \"0s\"\n";

async fn token(agent: &TestAgent) -> Result<String, tonic::Status> {
    let credential = agent.client().await.get("orders", &[]).await?;
    let Some(Kind::AccessToken(token)) = credential.kind else { panic!("an access token") };
    Ok(token.token)
}

fn said(agent: &TestAgent, arguments: &[&str]) -> (bool, String) {
    let output = agent.keybearer(arguments);
    let words = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(words).unwrap())
}

/// Waits until something is on record: it is written by another task than the one that answered.
async fn recorded(agent: &TestAgent, wanted: impl Fn(EventType, Outcome, &str) -> bool) -> String {
    let look = async {
        loop {
            let found = agent.records().into_iter().find_map(|record| {
                let entry = record.entry;
                let detail = entry.detail.unwrap_or_default();
                wanted(entry.event.kind, entry.event.outcome, &detail).then_some(detail)
            });
            match found {
                Some(detail) => return detail,
                None => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    timeout(Duration::from_secs(10), look).await.expect("it is on record")
}

fn revocations(handle: &Handle) -> usize {
    handle.diary().entries.iter().filter(|entry| entry.path == "/revoke" && entry.status == 200).count()
}

#[tokio::test]
async fn disabled_is_disabled_at_once_for_whoever_listens_and_across_a_restart() {
    // GA-10, NHI-1
    let issuer = issuer(300);
    let agent = Setup::new(issuer.handle.url()).start(Some(&issuer.handle));
    token(&agent).await.unwrap();
    let mut client = agent.client().await;
    let mut watching = client.watch("orders", &[]).await.unwrap();
    watching.message().await.unwrap().unwrap();

    let (done, words) = said(&agent, &["disable", "shop", "--reason", "its host was broken into"]);
    assert!(done && words.contains("1 live credentials are being revoked"), "{words}");
    let refused = token(&agent).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::PermissionDenied);
    let ended = timeout(Duration::from_secs(1), watching.message()).await.expect("within a second");
    assert_eq!(ended.unwrap_err().code(), tonic::Code::PermissionDenied);
    recorded(&agent, |kind, outcome, _| kind == EventType::CredentialRevoke && outcome == Outcome::Success)
        .await;
    assert_eq!(revocations(&issuer.handle), 1);
    let denials: Vec<_> =
        agent.records().into_iter().filter_map(|record| record.entry.event.reason).collect();
    assert!(denials.iter().any(|reason| reason == "DISABLED"), "{denials:?}");
    let (_, status) = said(&agent, &["status"]);
    assert!(status.contains("disabled: its host was broken into"), "{status}");

    // Neither a reload nor a restart lets it in again.
    assert!(said(&agent, &["reload"]).0);
    token(&agent).await.unwrap_err();
    let dir = agent.dir.clone();
    agent.stop();
    let agent = TestAgent::start(dir);
    token(&agent).await.unwrap_err();
    let (done, words) = said(&agent, &["enable", "shop"]);
    assert!(done, "{words}");
    token(&agent).await.unwrap();
    agent.verify().unwrap();
    let (done, words) = said(&agent, &["disable", "shopp", "--reason", "a slip of the pen"]);
    assert!(!done && words.contains("there is no such identity; there are shop"), "{words}");
}

#[tokio::test]
async fn a_ledger_is_exported_as_far_as_it_is_whole_and_no_further_unless_asked() {
    // AUD-24
    let issuer = issuer(300);
    let agent = Setup::new(issuer.handle.url()).start(Some(&issuer.handle));
    for _ in 0..3 {
        token(&agent).await.unwrap();
    }
    let (dir, ledger) = (agent.dir.clone(), agent.ledger());
    agent.stop();
    let export = |more: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_keybearer"));
        let output = command.args(["audit", "export", "--dir"]).arg(&ledger).args(more).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let path = ledger.join("ledger.jsonl");
    let whole = std::fs::read_to_string(&path).unwrap();
    let records = whole.lines().count();
    for format in ["ocsf", "ecs", "cef"] {
        let (code, lines, told) = export(&["--format", format]);
        assert_eq!((code, lines.lines().count(), &*told), (Some(0), records, ""));
        // One that gathers goes on where it stopped.
        let (_, rest, _) = export(&["--format", format, "--since", &(records - 1).to_string()]);
        assert_eq!(rest.lines().last(), lines.lines().last());
        assert_eq!(rest.lines().count(), 1);
    }
    assert_eq!(export(&["--format", "cef", "--since", "2100-01-01T00:00:00Z"]).1, "");
    assert_eq!(export(&["--format", "cef", "--since", "yesterday"]).0, Some(64));

    let at = whole.lines().position(|line| line.contains("credential_release")).unwrap();
    let lines: Vec<String> = whole.lines().map(str::to_owned).collect();
    let mut changed = lines.clone();
    changed[at] = changed[at].replace("credential_release", "credential_return");
    changed[at + 1] = "no record at all".into();
    std::fs::write(&path, changed.join("\n") + "\n").unwrap();
    let (code, told, why) = export(&["--format", "ecs"]);
    assert_eq!((code, told.lines().count()), (Some(65), at), "{why}");
    assert!(why.contains(&format!("record {}", at + 1)) && why.contains("--anyway"), "{why}");
    let (code, told, why) = export(&["--format", "ecs", "--anyway"]);
    assert_eq!((code, told.lines().count()), (Some(0), records - 1), "{why}");
    assert!(why.contains("1 lines are no records"), "{why}");
    let marked = told.lines().filter(|line| line.contains("broken here or before")).count();
    assert!(
        marked >= records - 1 - at - 1 && told.lines().take(at).all(|line| !line.contains("broken")),
        "{told}"
    );
    drop(dir);
}

#[tokio::test]
async fn disabled_counts_for_a_call_whose_token_is_on_its_way() {
    // GA-10
    let issuer = issuer(300);
    let agent = Setup::new(issuer.handle.url()).start(Some(&issuer.handle));
    issuer.handle.set_fault(Fault::Slow { delay: Duration::from_secs(2) }, Some(1));
    let asked = async { token(&agent).await.unwrap_err() };
    let disabled = async {
        let arrived = || issuer.handle.diary().entries.iter().any(|entry| entry.path == "/token");
        while !arrived() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        said(&agent, &["disable", "shop", "--reason", "its host was broken into"])
    };
    let (refused, (done, words)) = tokio::join!(asked, disabled);
    assert!(done, "{words}");
    assert_eq!(refused.code(), tonic::Code::PermissionDenied, "{refused:?}");
    recorded(&agent, |kind, outcome, _| kind == EventType::CredentialRevoke && outcome == Outcome::Success)
        .await;
    let tokens = issuer.handle.diary().entries.iter().filter(|entry| entry.path == "/token").count();
    assert_eq!(
        (tokens, revocations(&issuer.handle)),
        (1, 1),
        "the one that came is revoked, and none comes after"
    );
}

#[tokio::test]
async fn revoked_tokens_are_dead_at_the_issuer_and_the_next_is_another() {
    // OA-43
    let issuer = issuer(300);
    let agent = Setup::new(issuer.handle.url()).start(Some(&issuer.handle));
    let first = token(&agent).await.unwrap();
    let (done, words) = said(&agent, &["revoke", "shop", "orders"]);
    assert!(done && words.contains("1 live credentials of shop.orders"), "{words}");
    assert_ne!(token(&agent).await.unwrap(), first);
    let detail = recorded(&agent, |kind, _, _| kind == EventType::CredentialRevoke).await;
    assert!(detail.starts_with("its issuer confirmed; 1 tries"), "{detail}");
    assert_eq!(revocations(&issuer.handle), 1);
}

#[tokio::test]
async fn an_emergency_ends_the_keys_and_a_new_one_has_to_be_registered() {
    // KEY-07
    let issuer = issuer(300);
    let setup = Setup::new(issuer.handle.url());
    let agent = setup.start(Some(&issuer.handle));
    token(&agent).await.unwrap();
    let kid = || {
        let (_, words) = said(&agent, &["keys", "list"]);
        words.split_whitespace().last().unwrap().to_owned()
    };
    let before = kid();
    let (done, words) = said(&agent, &["revoke", "shop", "--keys"]);
    assert!(done && words.contains("register the new key"), "{words}");
    assert_ne!(kid(), before);
    let refused = token(&agent).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unavailable, "the issuer does not know the new key: {refused:?}");
    register(&issuer.handle, &agent.dir.path().join("agent.toml"));
    // What waited to be revoked is, now that the issuer knows who asks.
    let revoked = |kind, outcome, _: &str| kind == EventType::CredentialRevoke && outcome == Outcome::Success;
    recorded(&agent, revoked).await;
    timeout(Duration::from_secs(10), async { while token(&agent).await.is_err() {} }).await.unwrap();
}

#[tokio::test]
async fn a_rotation_waits_for_the_issuer_and_then_signs() {
    // KEY-05
    let issuer = issuer(300);
    let agent = Setup::new(issuer.handle.url()).and(PROPAGATION).start(Some(&issuer.handle));
    let (done, words) = said(&agent, &["rotate", "shop"]);
    assert!(done && words.contains("is published"), "{words}");
    let exported = said(&agent, &["keys", "export"]).1;
    let keys: serde_json::Value = serde_json::from_str(&exported).unwrap();
    assert_eq!(keys["keys"].as_array().unwrap().len(), 2, "both are to be registered");
    recorded(&agent, |kind, outcome, words| {
        kind == EventType::KeyRotate && outcome == Outcome::Failed && words.contains("not taken yet")
    })
    .await;
    token(&agent).await.unwrap();
    register(&issuer.handle, &agent.dir.path().join("agent.toml"));
    assert!(said(&agent, &["rotate", "shop"]).0);
    recorded(&agent, |_, _, words| words.contains("signs from now on")).await;
    let (_, status) = said(&agent, &["status"]);
    let next = keys["keys"]
        .as_array()
        .unwrap()
        .iter()
        .find(|key| status.contains(key["kid"].as_str().unwrap().get(..8).unwrap()));
    assert!(next.is_some(), "{status}");
    assert!(said(&agent, &["revoke", "shop"]).0);
    token(&agent).await.unwrap();
    agent.verify().unwrap();
}

#[tokio::test]
async fn the_keys_of_who_is_no_more_are_told_of_and_destroyed_by_hand() {
    // NHI-1
    let issuer = issuer(300);
    let agent = Setup::new(issuer.handle.url()).also("old", "interim", "match = { uid = 4242 }").start(None);
    let (done, words) = said(&agent, &["keys", "destroy", "old"]);
    assert!(!done && words.contains("revoke old --keys"), "{words}");
    let config = agent.dir.path().join("agent.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, &text[..text.find("[identities.old]").unwrap()]).unwrap();
    assert!(said(&agent, &["reload"]).0);
    let key = agent.dir.path().join("state/keys/old.client-auth.pem");
    assert!(key.exists(), "a reload destroys nothing by itself");
    let (_, status) = said(&agent, &["status"]);
    assert!(status.contains("keybearer keys destroy old"), "{status}");
    let (done, words) = said(&agent, &["keys", "destroy", "old"]);
    assert!(done && words.starts_with("destroyed ") && !key.exists(), "{words}");
    assert!(!said(&agent, &["keys", "destroy", "old"]).0, "there is none any more");
}

/// A `status --watch` whose output goes into a pipe, and its lines as they come.
struct Watching {
    child: std::process::Child,
    lines: std::sync::mpsc::Receiver<String>,
}

impl Watching {
    fn of(socket: &Path) -> Self {
        let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_keybearer"))
            .args(["status", "--watch", "--socket"])
            .arg(socket)
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let (heard, lines) = std::sync::mpsc::channel();
        let output = std::io::BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in std::io::BufRead::lines(output).map_while(Result::ok) {
                if heard.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, lines }
    }

    /// The next line that says this, and how many tables began on the way.
    fn until(&self, words: &str) -> (String, usize) {
        let mut begun = 0;
        loop {
            let line = self.lines.recv_timeout(Duration::from_secs(20));
            let line = line.unwrap_or_else(|_| panic!("{words:?} was not said in 20 s"));
            begun += usize::from(line.starts_with("READY  ") || line.starts_with("STALE  "));
            if line.contains(words) {
                return (line, begun);
            }
        }
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_watches_is_told_of_each_change_once_and_of_an_agent_that_goes_and_comes() {
    let issuer = issuer(300);
    let agent = Setup::new(issuer.handle.url()).start(Some(&issuer.handle));
    let socket = agent.socket("operator.sock");
    let mut watching = Watching::of(&socket);
    assert_eq!(watching.until("READY  keybearer ").1, 1);
    watching.until("memory ");
    // Nothing but times and counts changes meanwhile.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert!(said(&agent, &["disable", "shop", "--reason", "a drill"]).0);
    let (_, begun) = watching.until("disabled: a drill");
    assert_eq!(begun, 1, "one table for one change");
    let dir = agent.dir.clone();
    agent.stop();
    let (gone, _) = watching.until("NOT THERE");
    assert!(gone.contains(" since 20") && gone.contains('Z'), "{gone}");
    let agent = TestAgent::start(dir);
    let (_, begun) = watching.until("disabled: a drill");
    assert_eq!(begun, 1, "and again when it is back");
    let pid = watching.child.id().to_string();
    assert!(std::process::Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    assert_eq!(watching.child.wait().unwrap().code(), Some(0));
    drop(agent);

    // What is no agent's socket is not waited for.
    let nobody = tempfile::tempdir().unwrap();
    std::fs::write(nobody.path().join("operator.sock"), "").unwrap();
    let mut refused = Watching::of(&nobody.path().join("operator.sock"));
    assert_eq!(refused.child.wait().unwrap().code(), Some(69));
}

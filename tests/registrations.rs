//! Keys that register themselves (RFC 7592), by the real binary at an issuer whose every answer gives another right to the
//! registration. In go rotations and refusals; out comes what the issuer knows, who signs, and what is on record.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::Path,
    time::{Duration, SystemTime},
};

use keybearer::{
    audit::{EventType, Outcome},
    clock::SystemClock,
    dev::{Fault, Handle},
    proto::v1::credential::Kind,
};
use support::{Issuer, Setup, TestAgent, issuer, register};
use tokio::time::timeout;

/// How each right of the development issuer begins.
const RIGHT: &str = "dev-registration-";

/// An agent that may put its registration right, at an issuer where its first key is registered.
fn start(issuer: &Issuer) -> TestAgent {
    let setup = Setup::new(issuer.handle.url()).and("\n[identities.shop.key]\npropagation = \"0s\"\n");
    let config = setup.write();
    register(&issuer.handle, &config);
    let (uri, right) = issuer.handle.registration("shop").unwrap();
    assert!(right.starts_with(RIGHT));
    let directory = setup.dir.path().join("state/registrations");
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory).unwrap();
    give(&directory.join("shop.dev.token"), &right);
    let table = format!(
        "\n[identities.shop.registrations.dev]\nissuer = \"dev\"\nclient_id = \"shop\"\nuri = \"{uri}\"\n"
    );
    setup.and(&table).start(None)
}

fn give(at: &Path, right: &str) {
    let mut file =
        fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(at).unwrap();
    writeln!(file, "{right}").unwrap();
}

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

/// Waits until so many records of a kind have these words.
async fn recorded(agent: &TestAgent, kind: EventType, outcome: Outcome, words: &str, times: usize) -> String {
    let look = async {
        loop {
            let records = agent.records().into_iter().map(|record| record.entry);
            let details = records.filter(|entry| (entry.event.kind, entry.event.outcome) == (kind, outcome));
            let mut found: Vec<String> =
                details.filter_map(|entry| entry.detail).filter(|detail| detail.contains(words)).collect();
            if found.len() >= times {
                return found.pop().unwrap();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let waited = timeout(Duration::from_secs(30), look).await;
    waited.unwrap_or_else(|_| panic!("{kind:?} {words}: {:?}", agent.records()))
}

/// The keys that the issuer has for `shop`, in order. Whoever asked before has no right any more.
fn known(issuer: &Handle) -> Vec<String> {
    let (uri, right) = issuer.registration("shop").unwrap();
    let host = issuer.url().strip_prefix("http://").unwrap();
    let path = uri.strip_prefix(issuer.url()).unwrap();
    let mut stream = std::net::TcpStream::connect(host).unwrap();
    let request = format!(
        "GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\nauthorization: Bearer {right}\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let document = support::body(&answer);
    let keys = document["jwks"]["keys"].as_array().unwrap_or_else(|| panic!("{answer}"));
    let mut kids: Vec<String> = keys.iter().map(|key| key["kid"].as_str().unwrap().to_owned()).collect();
    kids.sort();
    kids
}

/// The keys that should be registered, in order.
fn exported(agent: &TestAgent) -> Vec<String> {
    let (_, jwks) = said(agent, &["keys", "export"]);
    let jwks: serde_json::Value = serde_json::from_str(&jwks).unwrap();
    let keys = jwks["keys"].as_array().unwrap().iter();
    let mut kids: Vec<String> = keys.map(|key| key["kid"].as_str().unwrap().to_owned()).collect();
    kids.sort();
    kids
}

/// Whether the beginning of a right stands in any file below `at`.
fn leaks(at: &Path) -> bool {
    if at.is_dir() {
        return fs::read_dir(at).unwrap().any(|entry| leaks(&entry.unwrap().path()));
    }
    let given = at.file_name().unwrap() == "shop.dev.token";
    let bytes = if at.is_file() { fs::read(at).unwrap() } else { vec![] };
    !given && bytes.windows(RIGHT.len()).any(|window| window == RIGHT.as_bytes())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_registers_itself_and_finishes_with_nobodys_help() {
    // KEY-05, KEY-09
    let issuer = issuer(300);
    let agent = start(&issuer);
    // At the start it is looked at, so that a right that is no good is known long before it is needed.
    recorded(&agent, EventType::KeyRegister, Outcome::Success, "dev knows the keys of client shop", 1).await;
    let first = exported(&agent);
    token(&agent).await.unwrap();
    let (done, words) = said(&agent, &["rotate", "shop"]);
    assert!(done && words.contains("is published"), "{words}");
    let told = recorded(&agent, EventType::KeyRegister, Outcome::Success, &first[0], 2).await;
    recorded(&agent, EventType::KeyRotate, Outcome::Success, "signs from now on", 1).await;
    let both = exported(&agent);
    assert!(both.len() == 2 && both.iter().all(|kid| told.contains(kid.as_str())), "{told}");
    assert!(said(&agent, &["revoke", "shop"]).0);
    token(&agent).await.unwrap();
    let refused = issuer.handle.diary().entries.iter().filter(|entry| entry.status >= 400).count();
    assert_eq!(refused, 0, "it was never tried where it was not known");

    // When the overlap is over, by the files' own dates, the one before is destroyed, and taken out there.
    let dir = agent.dir.clone();
    let (code, log) = agent.stop();
    assert!(code == Some(0) && !log.contains(RIGHT), "{log}");
    let keys = dir.path().join("state/keys");
    let now = u64::try_from(SystemClock::shared().wall().as_second()).unwrap();
    let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(now - 3600);
    for name in ["shop.client-auth.pem", "shop.client-auth.pem.before"] {
        let file = fs::File::options().write(true).open(keys.join(name)).unwrap();
        file.set_modified(long_ago).unwrap();
    }
    let agent = TestAgent::start(dir);
    let told = recorded(&agent, EventType::KeyRegister, Outcome::Success, "taken out there", 1).await;
    assert!(told.ends_with(&format!("taken out there: {}", first[0])), "{told}");
    let last = exported(&agent);
    assert!(last.len() == 1 && last != first);
    token(&agent).await.unwrap();
    agent.verify().unwrap();
    assert!(!said(&agent, &["status"]).1.contains(RIGHT));
    assert!(!leaks(agent.dir.path()), "no right is anywhere but where the operator put it");
    let (_, log) = agent.stop();
    assert!(!log.contains(RIGHT));
    assert_eq!(known(&issuer.handle), last);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_update_leaves_the_old_key_signing_and_says_what_to_do() {
    // KEY-09
    let issuer = issuer(300);
    let agent = start(&issuer);
    recorded(&agent, EventType::KeyRegister, Outcome::Success, "dev knows", 1).await;
    let first = exported(&agent);
    issuer.handle.set_fault(Fault::InvalidMetadata, None);
    assert!(said(&agent, &["rotate", "shop"]).0);
    let why = recorded(&agent, EventType::KeyRegister, Outcome::Failed, "invalid_client_metadata", 1).await;
    assert!(why.contains("what signed before goes on"), "{why}");
    // It is tried all the same, in case a person registered it, and is not taken.
    recorded(&agent, EventType::KeyRotate, Outcome::Failed, "not taken yet", 1).await;
    let (_, status) = said(&agent, &["status"]);
    for words in
        ["is not up to date", "keys export --registration --identity shop --issuer dev --client shop"]
    {
        assert!(status.contains(words), "{words}: {status}");
    }
    assert!(said(&agent, &["revoke", "shop"]).0);
    token(&agent).await.unwrap();
    let signed = |word: &str| {
        agent
            .records()
            .into_iter()
            .filter_map(|record| record.entry.detail)
            .any(|detail| detail.contains(word))
    };
    assert!(!signed("signs from now on"));

    // Mended; an operator does not wait, and whichever comes first, it ends well.
    issuer.handle.set_fault(Fault::None, None);
    assert!(said(&agent, &["rotate", "shop"]).0);
    recorded(&agent, EventType::KeyRotate, Outcome::Success, "signs from now on", 1).await;
    assert!(!said(&agent, &["status"]).1.contains("is not up to date"));
    assert!(exported(&agent).contains(&first[0]));
    let both = exported(&agent);
    agent.verify().unwrap();
    drop(agent);
    assert_eq!(known(&issuer.handle), both);
}

#[tokio::test(flavor = "multi_thread")]
async fn in_an_emergency_the_issuer_is_told_at_once_and_knows_the_old_key_no_more() {
    // KEY-07, KEY-09
    let issuer = issuer(300);
    let agent = start(&issuer);
    recorded(&agent, EventType::KeyRegister, Outcome::Success, "dev knows", 1).await;
    token(&agent).await.unwrap();
    let (done, words) = said(&agent, &["revoke", "shop", "--keys"]);
    assert!(done && words.contains("are told of the new key"), "{words}");
    recorded(&agent, EventType::KeyRegister, Outcome::Success, "taken out there", 1).await;
    timeout(Duration::from_secs(20), async { while token(&agent).await.is_err() {} }).await.unwrap();
    let now = exported(&agent);
    drop(agent);
    assert_eq!(known(&issuer.handle), now);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_right_that_is_good_no_more_is_told_with_its_remedy_and_another_is_taken() {
    // KEY-09, KEY-11
    let issuer = issuer(300);
    let agent = start(&issuer);
    recorded(&agent, EventType::KeyRegister, Outcome::Success, "dev knows", 1).await;
    // Somebody else asked by it: what the agent has is good no more.
    let (_, right) = issuer.handle.registration("shop").unwrap();
    assert!(said(&agent, &["rotate", "shop"]).0);
    let why = recorded(&agent, EventType::KeyRegister, Outcome::Failed, "good no more", 1).await;
    assert!(why.contains("put it into token_file"), "{why}");
    token(&agent).await.unwrap();
    // One that others could read is not used.
    let file = agent.dir.path().join("state/registrations/shop.dev.token");
    give(&file, &right);
    let mode = |mode| fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    mode(0o644);
    let (done, words) = said(&agent, &["reload"]);
    assert!(!done && words.contains("identities.shop.registrations: KEY_PERM"), "{words}");
    assert!(said(&agent, &["rotate", "shop"]).0);
    recorded(&agent, EventType::KeyRegister, Outcome::Failed, "KEY_PERM", 1).await;
    mode(0o600);
    assert!(said(&agent, &["reload"]).0);
    recorded(&agent, EventType::KeyRegister, Outcome::Success, "dev knows", 2).await;
    recorded(&agent, EventType::KeyRotate, Outcome::Success, "signs from now on", 1).await;
    assert!(!leaks(&agent.dir.path().join("state/audit")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_between_making_a_key_and_registering_it_costs_nothing() {
    // KEY-05, KEY-09
    let issuer = issuer(300);
    let agent = start(&issuer);
    recorded(&agent, EventType::KeyRegister, Outcome::Success, "dev knows", 1).await;
    issuer.handle.set_fault(Fault::InvalidMetadata, None);
    assert!(said(&agent, &["rotate", "shop"]).0);
    recorded(&agent, EventType::KeyRegister, Outcome::Failed, "invalid_client_metadata", 1).await;
    let dir = agent.dir.clone();
    let both = exported(&agent);
    agent.kill();
    issuer.handle.set_fault(Fault::None, None);
    let agent = TestAgent::start(dir);
    recorded(&agent, EventType::KeyRotate, Outcome::Success, "signs from now on", 1).await;
    assert_eq!(exported(&agent), both, "no other key was made");
    token(&agent).await.unwrap();
    drop(agent);
    assert_eq!(known(&issuer.handle), both);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_stops_waits_for_the_right_that_is_on_its_way() {
    // KEY-09: what the issuer has done is done, and its answer is the only right that there is.
    let issuer = issuer(300);
    let agent = start(&issuer);
    recorded(&agent, EventType::KeyRegister, Outcome::Success, "dev knows", 1).await;
    let asked = || issuer.handle.diary().entries.iter().filter(|entry| entry.path == "/register").count();
    let before = asked();
    issuer.handle.set_fault(Fault::Slow { delay: Duration::from_secs(1) }, Some(1));
    assert!(said(&agent, &["rotate", "shop"]).0);
    while asked() == before {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let dir = agent.dir.clone();
    let (code, log) = agent.stop();
    assert_eq!(code, Some(0), "{log}");
    let agent = TestAgent::start(dir);
    recorded(&agent, EventType::KeyRotate, Outcome::Success, "signs from now on", 1).await;
    let failed = agent.records().into_iter().map(|record| record.entry.event);
    let failed =
        failed.filter(|event| event.kind == EventType::KeyRegister && event.outcome == Outcome::Failed);
    assert_eq!(failed.count(), 0);
    let both = exported(&agent);
    drop(agent);
    assert_eq!(known(&issuer.handle), both);
}

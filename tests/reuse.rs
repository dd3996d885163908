//! What was given to one is used by another (S10), on the real binary over real sockets: an alarm is on record before anything is
//! answered, in status and in the log; and ordinary use raises none.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "support/puppet.rs"]
mod puppet;
#[path = "support/scripted.rs"]
mod scripted;
mod support;

use std::{fs, time::Duration};

use keybearer::{
    audit::{EventType, Outcome, Record},
    clock::SystemClock,
    secret::{Secret, hex},
};
use puppet::Puppet;
use ring::digest;
use scripted::{Says, Scripted, json, token};
use serde_json::Value;
use support::{Api, BINARY, Issuer, Setup, TestAgent, demo_api, install, issuer, register_as};

/// The alarms on record.
fn alarms(agent: &TestAgent) -> Vec<Record> {
    let all = agent.records().into_iter();
    all.filter(|record| record.entry.event.kind == EventType::ReuseDetected).collect()
}

/// What an alarm says: how it ended, why, who used it, which process, whose it is, and the processes that it was given to.
fn said(alarm: &Record) -> (Outcome, &str, Option<&str>, u32, &str, Vec<u32>) {
    let entry = &alarm.entry;
    let holder = entry.holder.as_ref().unwrap();
    (
        entry.event.outcome,
        entry.event.reason.as_deref().unwrap(),
        entry.workload.as_ref().map(|workload| workload.id.as_str()),
        entry.peer.as_ref().unwrap().pid,
        &holder.id,
        holder.processes.iter().map(|process| process.pid).collect(),
    )
}

fn warnings(agent: &TestAgent) -> Vec<String> {
    let status: Value = serde_json::from_slice(&agent.keybearer(&["status", "--json"]).stdout).unwrap();
    let warnings = status["warnings"].as_array().unwrap().iter();
    let words = warnings.map(|warning| warning.as_str().unwrap().to_owned());
    words.filter(|warning| warning.contains("reuse detected")).collect()
}

fn prove(who: &mut Puppet, handle: &str, api: &Api) -> Value {
    who.ask(&format!("prove orders {handle} GET {}", api.orders()))
}

fn matching(program: &[u8]) -> String {
    let uid = rustix::process::geteuid().as_raw();
    let sum = hex(digest::digest(&digest::SHA256, program).as_ref());
    format!("match = {{ uid = {uid}, sha256 = \"{sum}\" }}")
}

/// A program like this one, and another to the agent.
fn copy(dir: &tempfile::TempDir, name: &str, program: &[u8]) -> std::path::PathBuf {
    let (bytes, copy) = (dir.path().join("bytes"), dir.path().join(name));
    fs::write(&bytes, program).unwrap();
    install(&bytes, &copy);
    copy
}

#[tokio::test(flavor = "multi_thread")]
async fn the_handle_of_another_identity_raises_an_alarm_before_it_is_refused() {
    // S10, NHI-9, DPOP-18
    let (issuer, clock) = (issuer(300), SystemClock::shared());
    let api = demo_api(&issuer);
    let dir = tempfile::tempdir().unwrap();
    let own = fs::read(BINARY).unwrap();
    let (carts, strangers) = ([&own[..], &[0]].concat(), [&own[..], &[1]].concat());
    let (cart, stranger) = (copy(&dir, "cart", &carts), copy(&dir, "stranger", &strangers));
    let setup =
        Setup::matching(issuer.handle.url(), &matching(&own)).also("cart", "interim", &matching(&carts));
    let agent = setup.bound(&api.url).start(Some(&issuer.handle));
    register_as(&issuer.handle, &agent.dir.path().join("agent.toml"), "cart");

    let (mut shop, mut cart) = (Puppet::start(&agent), Puppet::of(&cart, &agent));
    let (token, handle) = shop.get();
    cart.get();
    assert!(prove(&mut shop, &handle, &api)["proof"].is_string());
    assert_eq!((alarms(&agent).len(), warnings(&agent).len()), (0, 0));

    // The handle can be told from the token: whoever found the one has the other.
    let stolen = Secret::new(token.as_str()).fingerprint().to_string();
    let began = clock.boot();
    assert_eq!(prove(&mut cart, &stolen, &api)["error"], "NOT_HELD");
    let found = alarms(&agent);
    let took = clock.boot().since(began);
    println!("from the use of another's handle to the alarm on record: at most {took:?}");
    assert!(took < Duration::from_secs(1), "{took:?}");
    let foreign = (Outcome::Denied, "FOREIGN_IDENTITY", Some("cart"), cart.pid(), "shop", vec![shop.pid()]);
    assert_eq!((found.len(), said(&found[0])), (1, foreign));
    assert_eq!(found[0].entry.credential.as_ref().unwrap().token_hash.as_deref(), Some(stolen.as_str()));
    let refusal =
        agent.records().into_iter().find(|record| record.entry.event.reason.as_deref() == Some("NOT_HELD"));
    let refusal = refusal.unwrap();
    assert!(found[0].seq < refusal.seq, "before anything is answered");
    assert_eq!(found[0].entry.exchange_id, refusal.entry.exchange_id);

    // Once more is on record as a refusal; nobody who asks in a loop drowns the alarm.
    assert_eq!(prove(&mut cart, &stolen, &api)["error"], "NOT_HELD");
    assert_eq!(alarms(&agent).len(), 1);

    // Whoever is nobody here, and what nothing is made for.
    let mut stranger = Puppet::of(&stranger, &agent);
    assert_eq!(prove(&mut stranger, &stolen, &api)["error"], "NOT_ENTITLED");
    let nobody = (Outcome::Denied, "FOREIGN_IDENTITY", None, stranger.pid(), "shop", vec![shop.pid()]);
    assert_eq!(said(&alarms(&agent)[1]), nobody);
    let mut another = Puppet::of(&dir.path().join("cart"), &agent);
    let elsewhere = another.ask(&format!("prove orders {stolen} GET https://elsewhere.example/"));
    assert_eq!(elsewhere["error"], "HTU_NOT_ALLOWED");
    assert_eq!(said(&alarms(&agent)[2]).3, another.pid());

    // What is revoked is known as its holder's until it would have ended.
    assert_eq!(shop.ask("release orders")["revoked"], true);
    let mut late = Puppet::of(&dir.path().join("cart"), &agent);
    assert_eq!(prove(&mut late, &stolen, &api)["error"], "NOT_HELD");
    assert_eq!(said(&alarms(&agent)[3]).3, late.pid());

    let told = warnings(&agent);
    // Two of a kind for each identity, the newest, and how many more: one who raises many takes nobody else's place.
    assert_eq!(told.len(), 3, "{told:#?}");
    let is_by = |at: usize, process: &Puppet| told[at].contains(&format!("pid {} of uid", process.pid()));
    assert!(is_by(0, &late) && is_by(1, &another) && is_by(2, &stranger), "{told:#?}");
    assert!(told[1].contains("shop.orders") && told[1].ends_with("(and 1 more of reuse detected by cart)"));
    agent.verify().unwrap();
    let (_, log) = agent.stop();
    let line = log.lines().find(|line| line.contains("reuse detected")).unwrap();
    let line: Value = serde_json::from_str(line).unwrap();
    assert_eq!(line["level"], "ERROR");
    assert!(!log.contains(&token));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_process_has_alone_raises_an_alarm_in_another() {
    // S10, DPOP-18
    let issuer = issuer(300);
    let api = demo_api(&issuer);
    let scope = "scope = [\"orders:read\", \"orders:write\"]";
    let setup = Setup::new(issuer.handle.url()).bound(&api.url);
    let agent = setup.with(scope, &format!("{scope}\nper = \"process\"")).start(Some(&issuer.handle));
    let (mut one, mut other) = (Puppet::start(&agent), Puppet::start(&agent));
    let ((_, ones), (_, others)) = (one.get(), other.get());
    assert!(prove(&mut one, &ones, &api)["proof"].is_string());
    assert!(prove(&mut other, &others, &api)["proof"].is_string());
    assert_eq!(alarms(&agent).len(), 0);
    assert_eq!(prove(&mut other, &ones, &api)["error"], "NOT_HELD");
    let expected = (Outcome::Denied, "FOREIGN_PROCESS", Some("shop"), other.pid(), "shop", vec![one.pid()]);
    assert_eq!(said(&alarms(&agent)[0]), expected);
}

/// Settings whose token all processes of an identity share.
fn shared(issuer: &Issuer) -> (Api, TestAgent) {
    let api = demo_api(issuer);
    let agent = Setup::new(issuer.handle.url()).bound(&api.url).start(Some(&issuer.handle));
    (api, agent)
}

#[tokio::test(flavor = "multi_thread")]
async fn who_never_got_what_it_uses_raises_an_alarm_and_is_served_what_its_identity_may_have() {
    // S10
    let issuer = issuer(300);
    let (api, agent) = shared(&issuer);
    let (mut one, mut other) = (Puppet::apart(&agent), Puppet::apart(&agent));
    let (_, handle) = one.get();
    assert!(prove(&mut other, &handle, &api)["proof"].is_string());
    let never = (Outcome::Success, "NEVER_GIVEN", Some("shop"), other.pid(), "shop", vec![one.pid()]);
    assert_eq!(said(&alarms(&agent)[0]), never);
    assert!(warnings(&agent)[0].contains("never given to it"));
}

#[tokio::test(flavor = "multi_thread")]
async fn ordinary_use_raises_no_alarm() {
    // S10: two that each got it; one of the same family; another token in between; calls over HTTP by one process each.
    let issuer = issuer(300);
    let (api, agent) = shared(&issuer);
    let (mut one, mut other) = (Puppet::apart(&agent), Puppet::apart(&agent));
    let ((_, ones), (_, others)) = (one.get(), other.get());
    assert_eq!(ones, others);
    assert!(prove(&mut one, &ones, &api)["proof"].is_string());
    assert!(prove(&mut other, &ones, &api)["proof"].is_string());
    assert!(agent.keybearer(&["revoke", "shop"]).status.success());
    let (_, next) = one.get();
    assert_ne!(next, ones);
    // What it still had in hand has ended; that is no theft.
    assert_eq!(prove(&mut other, &others, &api)["error"], "NOT_HELD");
    assert_eq!(other.get().1, next);
    assert!(prove(&mut other, &next, &api)["proof"].is_string());

    let mut kin = Puppet::after_a_sibling(&agent);
    let (_, handle) = kin.get();
    assert!(prove(&mut kin, &handle, &api)["proof"].is_string());
    let peers = agent.records().into_iter().filter_map(|record| record.entry.peer);
    let by_kin = peers.filter(|peer| peer.pid == kin.pid()).count();
    assert!(by_kin > 0, "by another process than the one that was given it");
    assert!(agent.keybearer(&["prove", "orders", "GET", &api.orders()]).status.success());
    assert_eq!(alarms(&agent).iter().map(said).collect::<Vec<_>>(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_issuer_that_has_seen_our_value_before_raises_an_alarm() {
    // S10, ER-10, NHI-9: whoever has our key made it.
    let said = r#"{"error":"jti_known","error_description":"The jti was already used."}"#;
    let issuer = Scripted::start(Says::Bytes(json(400, said)));
    let agent = Setup::new(&issuer.url).start(None);
    let no = agent.client().await.get("orders", &[]).await.unwrap_err();
    assert_eq!(no.code(), tonic::Code::Internal);
    let waited = tokio::time::timeout(Duration::from_secs(1), async {
        while alarms(&agent).is_empty() {
            tokio::task::yield_now().await;
        }
    });
    waited.await.expect("within a second");
    let alarm = &alarms(&agent)[0].entry;
    assert_eq!(
        (alarm.event.outcome, alarm.event.reason.as_deref()),
        (Outcome::Failed, Some("ONE_TIME_REUSE"))
    );
    assert_eq!(alarm.workload.as_ref().unwrap().id, "shop");
    assert!(alarm.issuer_response.as_ref().unwrap().one_time_reuse);
    assert!(warnings(&agent)[0].contains("keybearer revoke shop --keys"));
    assert_eq!(alarms(&agent).len(), 1, "one asking, one alarm");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_issuer_has_seen_before_is_on_record_before_what_it_issues_to_another_value() {
    // S10, S17, ER-10
    let said = r#"{"error":"jti_known","error_description":"The jti was already used."}"#;
    let issuer = Scripted::start(Says::InTurn(vec![json(400, said), token()]));
    let agent = Setup::new(&issuer.url).start(None);
    for _ in 0..3 {
        agent.client().await.get("orders", &[]).await.unwrap();
    }
    let [alarm] = &alarms(&agent)[..] else { panic!("{:?}", alarms(&agent)) };
    let event = &alarm.entry.event;
    assert_eq!((event.outcome, event.reason.as_deref()), (Outcome::Success, Some("ONE_TIME_REUSE")));
    let mut issued = agent.records().into_iter();
    let issued = issued.find(|record| record.entry.event.kind == EventType::CredentialIssue).unwrap();
    assert!(alarm.seq < issued.seq, "{} {}", alarm.seq, issued.seq);
}

//! `keybearer posture`, the real binary over a real ledger: an agent at work that a few calls were made to. In go its settings and what it
//! wrote down; out comes what a security team reads.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::{fs, os::unix::fs::PermissionsExt as _, process::Output};

use keybearer::audit::{EventType, Outcome};
use serde_json::Value;
use support::{Setup, TestAgent, issuer};

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn posture(agent: &TestAgent, arguments: &[&str]) -> (Option<i32>, String) {
    let output = agent.keybearer(&[&["posture"], arguments].concat());
    (output.status.code(), said(&output))
}

fn json(agent: &TestAgent, arguments: &[&str]) -> (Option<i32>, Value) {
    let output = agent.keybearer(&[&["posture", "--json"], arguments].concat());
    let told = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", said(&output)));
    (output.status.code(), told)
}

fn control<'a>(report: &'a Value, id: &str) -> &'a Value {
    report["controls"].as_array().unwrap().iter().find(|one| one["id"] == id).unwrap()
}

/// An agent that has handed out a token, one of them with less than all scopes, and denied one.
async fn used() -> (support::Issuer, TestAgent) {
    let issuer = issuer(300);
    let setup = Setup::new(issuer.handle.url());
    let agent = setup.start(Some(&issuer.handle));
    let mut client = agent.client().await;
    client.get("orders", &["orders:read".into()]).await.unwrap();
    client.get("orders", &["orders:read".into()]).await.unwrap();
    client.get("orders", &["orders:delete".into()]).await.unwrap_err();
    (issuer, agent)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_at_work_is_told_of_as_it_is() {
    // S13, S15, S16, S30, S47
    let (_issuer, agent) = used().await;
    let (code, report) = json(&agent, &[]);
    assert_eq!(code, Some(65), "a bearer token fails a control");
    assert_eq!(report["ledger"]["state"], "whole");
    assert_eq!(report["ledger"]["counted"].as_u64(), Some(agent.records().len() as u64));
    let shop = &report["identities"][0];
    assert_eq!((&shop["name"], &shop["life"], &shop["denied"]), (&"shop".into(), &"used".into(), &1.into()));
    assert_eq!(shop["handed_out"], 2);
    let level = agent.records().into_iter().find_map(|record| record.entry.peer?.level).unwrap();
    assert_eq!((&shop["level_best"], &shop["level_worst"]), (&level.as_str().into(), &level.as_str().into()));
    let orders = &shop["credentials"][0];
    assert_eq!((&orders["kind"], &orders["binding"]), (&"dynamic".into(), &"bearer".into()));
    assert!((290..=300).contains(&orders["life_seen_s"].as_u64().unwrap()), "{orders}");
    assert_eq!(orders["exception"]["days_left"], 0);
    // The ledger is of today, and says nothing yet of what is not used.
    assert_eq!(orders["scopes_unused"], Value::Array(vec![]));
    assert_eq!(control(&report, "NHI-5")["verdict"], "not_applicable");
    assert_eq!(control(&report, "N63-8")["verdict"], "pass");
    assert_eq!(control(&report, "N63-1")["verdict"], "fail");
    let codes: Vec<&str> =
        report["remedies"].as_array().unwrap().iter().map(|one| one["code"].as_str().unwrap()).collect();
    assert!(codes.contains(&"NOT_BOUND") && codes.contains(&"EXCEPTION_ENDING"), "{codes:?}");
    assert_eq!(report["maturity"]["dynamic"], 1);

    let (code, text) = posture(&agent, &[]);
    assert_eq!(code, Some(65));
    assert!(text.contains("NOT_BOUND  shop.orders") && text.contains("Controls: "), "{text}");
    let (code, text) = posture(&agent, &["shop"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("reaches     https://orders.example"), "{text}");
    assert!(text.contains("may         orders:read, orders:write"), "{text}");
    let (code, text) = posture(&agent, &["nobody"]);
    assert!(code == Some(65) && text.contains("there are shop"), "{text}");
    for bad in [&["--since", "0d"][..], &["--json", "--html", "x"], &["--since", "month"]] {
        assert_eq!(posture(&agent, bad).0, Some(64), "{bad:?}");
    }
    let (code, text) = posture(&agent, &["--dir", "/nowhere"]);
    assert!(code == Some(74) && text.contains("is this the ledger's directory"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_mended_is_gone_from_the_list() {
    // S47
    let issuer = issuer(300);
    let setup = Setup::new(issuer.handle.url()).bound("https://orders.example");
    let agent = setup.start(Some(&issuer.handle));
    agent.client().await.get("orders", &[]).await.unwrap();
    let (_, report) = json(&agent, &[]);
    let codes = report["remedies"].to_string();
    assert!(!codes.contains("NOT_BOUND") && !codes.contains("EXCEPTION"), "{codes}");
    assert_eq!(control(&report, "N63-1")["verdict"], "pass");
    assert_eq!(report["identities"][0]["credentials"][0]["kind"], "bound");
    // The agent said at its start that key files are plain.
    assert_eq!(control(&report, "NHI-2")["verdict"], "fail", "{report:#}");
    // An operator switches it off: it is told, with the reason.
    assert!(agent.keybearer(&["disable", "shop", "--reason", "left"]).status.success());
    let (_, report) = json(&agent, &[]);
    assert_eq!(report["identities"][0]["disabled"], "left");
    let denied = agent.client().await.get("orders", &[]).await;
    assert!(denied.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_switched_off_while_the_issuer_is_down_has_what_works_and_posture_says_so() {
    // GA-10: it is on record that the revocation waits, at most.
    let (issuer, agent) = used().await;
    assert_eq!(control(&json(&agent, &[]).1, "GA-10")["verdict"], "not_applicable");
    drop(issuer);
    assert!(agent.keybearer(&["disable", "shop", "--reason", "stolen"]).status.success());
    let events: Vec<_> = agent.records().into_iter().map(|record| record.entry.event).collect();
    let is = |kind| events.iter().any(|event| event.kind == kind && event.outcome == Outcome::Success);
    assert!(is(EventType::IdentityDisable) && !is(EventType::CredentialRevoke));
    let (code, report) = json(&agent, &[]);
    let rogue = control(&report, "GA-10");
    assert_eq!((code, &rogue["verdict"]), (Some(65), &"fail".into()));
    assert!(rogue["evidence"].as_str().unwrap().contains("shop ("), "{rogue}");
}

#[tokio::test(flavor = "multi_thread")]
async fn it_says_which_key_vouched_for_the_ledger() {
    // N63-8
    let (_issuer, agent) = used().await;
    let records = |arguments: &[&str]| {
        let told = control(&json(&agent, arguments).1, "N63-8").clone();
        assert_eq!(told["verdict"], "pass");
        told["evidence"].as_str().unwrap().to_owned()
    };
    assert!(records(&[]).contains("only the key beside the ledger"), "{}", records(&[]));
    let key = agent.dir.path().join("checkpoint.pub");
    fs::copy(agent.ledger().join("checkpoint.pub"), &key).unwrap();
    let named = records(&["--key", key.to_str().unwrap()]);
    assert!(named.contains("the key that you named"), "{named}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tampered_ledger_is_said_first_and_only_its_sound_part_counts() {
    let (_issuer, agent) = used().await;
    let ledger = agent.ledger().join("ledger.jsonl");
    let text = fs::read_to_string(&ledger).unwrap();
    let denial = agent.records().iter().position(|one| one.entry.event.kind == EventType::Denial).unwrap();
    // Whoever did not get something would rather have had it. Something follows it, so that it cannot be said again.
    let _ = agent.client().await.get("orders", &["orders:read".into()]).await.unwrap();
    let grown = fs::read_to_string(&ledger).unwrap();
    assert!(grown.len() > text.len());
    let lines: Vec<String> = grown
        .lines()
        .enumerate()
        .map(
            |(at, line)| {
                if at == denial { line.replace("\"denied\"", "\"success\"") } else { line.to_owned() }
            },
        )
        .collect();
    let copy = tempfile::tempdir().unwrap();
    for file in ["checkpoint.pub", "checkpoint", "checkpoints"] {
        let _ = fs::copy(agent.ledger().join(file), copy.path().join(file));
    }
    fs::write(copy.path().join("ledger.jsonl"), lines.join("\n") + "\n").unwrap();
    let place = ["--dir", copy.path().to_str().unwrap()];

    let (code, report) = json(&agent, &place);
    assert_eq!(code, Some(65));
    assert_eq!(
        (&report["ledger"]["state"], report["ledger"]["seq"].as_u64()),
        (&"tampered".into(), Some(denial as u64))
    );
    assert!(report["ledger"]["counted"].as_u64() <= Some(denial as u64), "{}", report["ledger"]);
    assert_eq!(report["identities"][0]["denied"], 0, "what is not sound does not count");
    assert_eq!(control(&report, "N63-8")["verdict"], "fail");
    let (code, text) = posture(&agent, &place);
    assert!(code == Some(65) && text.starts_with("THE LEDGER IS NOT WHAT WAS WRITTEN"), "{text}");
    // Of one identity too.
    let (code, text) = posture(&agent, &[&["shop"], &place[..]].concat());
    assert!(code == Some(65) && text.starts_with("THE LEDGER IS NOT WHAT WAS WRITTEN"), "{text}");
    // The true one is as it was.
    assert_eq!(json(&agent, &[]).1["ledger"]["state"], "whole");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_is_one_file_of_its_owners_own_and_holds_no_credential() {
    let (_issuer, agent) = used().await;
    let token = agent.keybearer(&["get", "orders"]);
    let token = String::from_utf8(token.stdout).unwrap().trim().to_owned();
    assert!(token.len() > 100);
    let file = agent.dir.path().join("page.html");
    // An older one, which everybody could read and somebody has open.
    fs::write(&file, "old").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    let (code, told) = posture(&agent, &["--html", file.to_str().unwrap()]);
    assert!(code == Some(65) && told.contains("28 controls"), "{told}");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let page = fs::read_to_string(&file).unwrap();
    assert!(page.starts_with("<!doctype html>") && page.ends_with("</html>\n"));
    assert!(page.contains("prefers-color-scheme: dark") && page.contains("@media print"));
    assert!(page.contains("default-src 'none'") && !page.contains("<script") && !page.contains("src="));
    assert!(!page.contains(&token), "no token");
    let (code, told) = posture(&agent, &["--html", "/nowhere/page.html"]);
    assert!(code == Some(74) && told.contains("/nowhere/page.html"), "{told}");
    assert!(!agent.dir.path().join("page.html.new").exists());
}

#[test]
fn before_the_first_start_the_settings_alone_are_told_of() {
    let setup = Setup::new("http://127.0.0.1:9");
    let config = setup.write();
    let output = std::process::Command::new(support::BINARY)
        .args(["posture", "--json", "--config"])
        .arg(config)
        .output()
        .unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["ledger"]["state"], "missing");
    assert_eq!(report["identities"][0]["life"], "unknown");
    assert_eq!(control(&report, "N63-8")["verdict"], "not_applicable");
    assert_eq!(control(&report, "NHI-2")["verdict"], "not_applicable");
}

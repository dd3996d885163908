//! The page of metrics, by the real binary: what is on it, how much it can grow, and who may read it.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::process::Command;

use keybearer::proto::v1::credential::Kind;
use serde_json::Value;
use support::{Setup, TestAgent, attacker, get, http, is_root, issuer, skip};

/// A group that every host has.
const METRICS_GROUP: &str = "daemon";

/// The page, without the headers of HTTP.
fn page(agent: &TestAgent) -> String {
    // Prometheus sends no header of ours.
    let (status, answer) =
        http(&agent.socket("http.sock"), "GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    assert_eq!(status, 200, "{answer}");
    assert!(
        answer.to_ascii_lowercase().contains("content-type: application/openmetrics-text; version=1.0.0"),
        "{answer}"
    );
    answer.split_once("\r\n\r\n").unwrap().1.to_owned()
}

/// The value of the one series that begins like this.
fn value(page: &str, series: &str) -> f64 {
    let lines: Vec<_> = page.lines().filter(|line| line.starts_with(series)).collect();
    assert_eq!(lines.len(), 1, "{series}: {lines:?} in\n{page}");
    lines[0].rsplit_once(' ').unwrap().1.parse().unwrap()
}

#[tokio::test]
async fn it_says_how_things_are_in_names_of_the_settings_and_never_a_secret() {
    let issuer = issuer(300);
    let agent = Setup::new(issuer.handle.url()).start(Some(&issuer.handle));
    let mut client = agent.client().await;
    let mut tokens = vec![];
    for _ in 0..3 {
        let Some(Kind::AccessToken(token)) = client.get("orders", &[]).await.unwrap().kind else { panic!() };
        tokens.push(token.token);
    }
    // What callers ask for is counted, and named nowhere.
    for n in 0..40 {
        client.get(&format!("stranger{n}"), &[]).await.unwrap_err();
        assert_eq!(get(&agent.socket("http.sock"), &format!("/v1/credentials/stranger{n}")).0, 403);
    }
    let text = page(&agent);
    assert!(text.ends_with("# EOF\n"), "{text}");
    assert!(!text.contains("stranger") && !text.contains(&*tokens[0]), "{text}");
    let exchanges = |event: &str, outcome: &str, face: &str| {
        format!(
            r#"keybearer_exchanges_total{{event="{event}",outcome="{outcome}",face="{face}",level="L2"}}"#
        )
    };
    assert_eq!(value(&text, &exchanges("credential_issue", "success", "workload")), 1.0);
    assert_eq!(value(&text, &exchanges("credential_release", "success", "workload")), 2.0);
    assert_eq!(value(&text, &exchanges("denial", "denied", "workload")), 40.0);
    assert_eq!(value(&text, r#"keybearer_denials_total{reason="NO_CREDENTIAL",face="http"}"#), 40.0);
    let orders = r#"{identity="shop",credential="orders"}"#;
    assert_eq!(value(&text, &format!("keybearer_credentials_live{orders}")), 1.0);
    let left = value(&text, &format!("keybearer_credential_expiry_seconds{orders}"));
    let age = value(&text, &format!("keybearer_credential_age_seconds{orders}"));
    assert!((200.0..=300.0).contains(&left) && (0.0..100.0).contains(&age), "{left} {age}");
    assert!(value(&text, &format!("keybearer_credential_refresh_seconds{orders}")) < left);
    assert_eq!(value(&text, r#"keybearer_issuer_up{issuer="dev"}"#), 1.0);
    assert_eq!(value(&text, r#"keybearer_issuer_failures{issuer="dev"}"#), 0.0);
    let month = 30.0 * 86_400.0;
    let rotation = value(&text, r#"keybearer_key_rotation_seconds{identity="shop"}"#);
    assert!((month - 100.0..=month).contains(&rotation), "{rotation}");
    let exception = value(&text, &format!("keybearer_exception_expiry_seconds{orders}"));
    assert!((86_000.0..=86_400.0).contains(&exception), "{exception}");
    assert_eq!(value(&text, "keybearer_ledger_healthy"), 1.0);
    let records = value(&text, "keybearer_ledger_records_total");
    assert!(records >= 83.0 && value(&text, "keybearer_ledger_unsigned_records") <= records, "{records}");
    assert!(value(&text, "keybearer_ledger_last_write_age_seconds") < 60.0);
    assert_eq!(value(&text, "keybearer_ledger_files"), 1.0);
    assert!(value(&text, "keybearer_ledger_size_bytes") > 300.0 * records);
    assert_eq!(value(&text, "keybearer_revocations_pending"), 0.0);
    assert!(value(&text, r#"keybearer_connections{face="workload"}"#) >= 1.0);
    // The size of the page is that of the settings: another forty strangers add no line.
    let lines = text.lines().count();
    for n in 40..80 {
        client.get(&format!("stranger{n}"), &[]).await.unwrap_err();
    }
    assert_eq!(page(&agent).lines().count(), lines);

    // What is refused is no page, and what is asked of another method is none either.
    let (status, _) = http(
        &agent.socket("http.sock"),
        "POST /metrics HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
    );
    assert_eq!(status, 405);
    issuer.handle.set_fault(keybearer::dev::Fault::Unavailable, None);
    client.get("orders", &["orders:read".into()]).await.unwrap_err();
    let text = page(&agent);
    assert_eq!(value(&text, r#"keybearer_issuer_up{issuer="dev"}"#), 0.0);
    assert!(value(&text, r#"keybearer_issuer_failures{issuer="dev"}"#) >= 1.0);
    assert!(
        value(&text, r#"keybearer_failures_total{event="issue_failure",reason="ISSUER_UNAVAILABLE"}"#) >= 1.0
    );
}

/// Asks as somebody else; the status, and whether anything of the page came with it.
fn ask_as(agent: &TestAgent, uid: u32, gid: u32, groups: &[u32]) -> (u16, bool) {
    let mut command = Command::new("setpriv");
    let listed: Vec<String> = groups.iter().map(u32::to_string).collect();
    command.args([format!("--reuid={uid}"), format!("--regid={gid}")]);
    match listed.as_slice() {
        [] => command.arg("--clear-groups"),
        listed => command.arg(format!("--groups={}", listed.join(","))),
    };
    command.arg(attacker(agent)).arg("honest").arg(agent.socket("http.sock")).arg("/metrics");
    let output = command.output().unwrap();
    let heard: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    let answer = heard["answer"].as_str().unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (status, answer.contains("identity_info") || answer.contains("shop"))
}

#[tokio::test]
async fn workloads_on_the_same_socket_may_not_read_it() {
    if !is_root() {
        return skip("workloads_on_the_same_socket_may_not_read_it", "only root can become another user");
    }
    let groups = std::fs::read_to_string("/etc/group").unwrap();
    let line = groups.lines().find(|line| line.starts_with(&format!("{METRICS_GROUP}:"))).unwrap();
    let group: u32 = line.split(':').nth(2).unwrap().parse().unwrap();
    let issuer = issuer(300);
    let agent = Setup::new(issuer.handle.url())
        .with("[listen]\n", &format!("[listen]\nmetrics_group = \"{METRICS_GROUP}\"\n"))
        .start(Some(&issuer.handle));
    assert_eq!(ask_as(&agent, 0, 0, &[]), (200, true));
    assert_eq!(ask_as(&agent, 65_533, 65_533, &[]), (403, false));
    assert_eq!(ask_as(&agent, 65_533, 65_533, &[group + 1]), (403, false));
    assert_eq!(ask_as(&agent, 65_533, 65_533, &[7, group]), (200, true));
    assert_eq!(ask_as(&agent, 65_533, group, &[]), (200, true));
    // Those who may not even order anything: the operators' socket has mode 0600 here, so its group counts for nothing.
    assert_eq!(ask_as(&agent, 65_533, 65_533, &[0]), (403, false));
    let refused = agent.records().into_iter().filter(|record| {
        record.entry.detail.as_deref().is_some_and(|detail| detail.contains("metrics are for"))
    });
    assert_eq!(refused.count(), 3, "each is on record");
}

//! The page of metrics, by the real binary: what is on it, how much it can grow, and who may read it.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    process::Command,
};

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

/// What each family of a page is called by those who ask for it, with the labels that its series have here.
fn families(page: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut families = BTreeMap::new();
    for line in page.lines() {
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|line| line.split_once(' ')) {
            let total = if kind == "counter" { "_total" } else { "" };
            families.insert(format!("{name}{total}"), BTreeSet::new());
        } else if let Some((name, labels)) = line.split_once('{').filter(|_| !line.starts_with('#')) {
            let labels = labels.split("=\"").filter_map(|piece| piece.rsplit([',', '"']).next());
            let labels = labels.filter(|label| !label.is_empty() && !label.contains(['}', ' ']));
            families.get_mut(name).unwrap().extend(labels.map(str::to_owned));
        }
    }
    families
}

/// A question to Prometheus: the families that it names, and all labels that it names with them.
fn asked(question: &str) -> (BTreeSet<String>, BTreeSet<String>) {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let (mut names, mut labels) = (BTreeSet::new(), BTreeSet::new());
    for (at, _) in question.match_indices("keybearer_") {
        names.insert(question[at..].split(|c| !word(c)).next().unwrap().to_owned());
    }
    for braces in question.split('{').skip(1).filter_map(|rest| rest.split('}').next()) {
        labels.extend(
            braces.split(',').filter_map(|one| Some(one.split_once(['=', '!'])?.0.trim().to_owned())),
        );
    }
    for by in ["by (", "on (", "without ("] {
        for list in question.split(by).skip(1).filter_map(|rest| rest.split(')').next()) {
            labels.extend(list.split(',').map(|label| label.trim().to_owned()));
        }
    }
    (names, labels)
}

/// Every question of a dashboard, with the labels that its legend names.
fn questions(value: &Value, found: &mut Vec<(String, Vec<String>)>) {
    match value {
        Value::Object(map) => {
            if let Some(Value::String(question)) = map.get("expr") {
                let texts = ["legendFormat", "textFormat"].iter().filter_map(|key| map.get(*key)?.as_str());
                found.push((question.clone(), texts.flat_map(|text| named(text, "{{", "}}")).collect()));
            }
            map.values().for_each(|value| questions(value, found));
        }
        Value::Array(values) => values.iter().for_each(|value| questions(value, found)),
        _ => {}
    }
}

/// What stands between two marks.
fn named(text: &str, open: &str, close: &str) -> Vec<String> {
    let pieces = text.split(open).skip(1).filter_map(|rest| rest.split(close).next());
    pieces.map(|piece| piece.trim().to_owned()).collect()
}

/// Holds questions against what an agent really says.
fn hold(families: &BTreeMap<String, BTreeSet<String>>, question: &str, told: &[String]) -> BTreeSet<String> {
    let (names, mut labels) = asked(question);
    labels.extend(told.iter().cloned());
    for name in &names {
        assert!(families.contains_key(name), "no agent says {name}: {question}");
    }
    for label in labels {
        // What the scraper adds.
        let there = label == "instance" || names.iter().any(|name| families[name].contains(&label));
        assert!(there, "no series of {names:?} has the label {label}: {question}");
    }
    names
}

// The issuer answers while this test waits for the agent.
#[tokio::test(flavor = "multi_thread")]
async fn the_dashboard_and_the_alerts_ask_for_what_an_agent_says_and_for_all_of_it() {
    let issuer = issuer(300);
    let agent = Setup::new(issuer.handle.url()).start(Some(&issuer.handle));
    let mut client = agent.client().await;
    client.get("orders", &[]).await.unwrap();
    client.get("stranger", &[]).await.unwrap_err();
    issuer.handle.set_fault(keybearer::dev::Fault::Unavailable, None);
    client.get("orders", &["orders:read".into()]).await.unwrap_err();
    let mut families = families(&page(&agent));
    // What did not happen here has no series; its labels are those of `src/serve/metrics.rs`.
    for (name, labels) in
        [("keybearer_signals_total", &["event", "reason"][..]), ("keybearer_alarms_total", &["reason"])]
    {
        families.get_mut(name).unwrap().extend(labels.iter().map(ToString::to_string));
    }
    for (name, labels) in &families {
        let bare = ["ledger", "evidence", "reload", "revocations", "start"];
        let bare = bare.iter().any(|word| name.starts_with(&format!("keybearer_{word}_")));
        assert_eq!(labels.is_empty(), bare, "{name}: {labels:?}");
    }
    let packaging = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging");
    let text = std::fs::read_to_string(packaging.join("grafana/keybearer.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let mut asked_for = BTreeSet::new();
    let mut all = vec![];
    questions(&dashboard, &mut all);
    for (question, told) in &all {
        asked_for.extend(hold(&families, question, told));
    }
    assert!(all.len() > 30);
    // Who an identity belongs to is for those who join it to something else.
    let left_out = BTreeSet::from(["keybearer_identity_info".to_owned()]);
    let there: BTreeSet<String> = families.keys().cloned().collect();
    assert_eq!(there.difference(&asked_for).cloned().collect::<BTreeSet<_>>(), left_out);
    // Each panel says what it shows, in a unit, from a source that whoever imports it chooses.
    for panel in dashboard["panels"].as_array().unwrap().iter().filter(|panel| panel["type"] != "row") {
        let title = panel["title"].as_str().unwrap();
        assert!(panel["description"].as_str().is_some_and(|text| text.len() > 20), "{title}");
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{title}");
        let text = panel["fieldConfig"].to_string();
        assert!(text.contains("\"unit\"") && text.contains("\"thresholds\""), "{title}");
    }
    let ids: Vec<_> =
        dashboard["panels"].as_array().unwrap().iter().map(|panel| panel["id"].as_i64()).collect();
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len());

    let rules = std::fs::read_to_string(packaging.join("prometheus/keybearer.rules.yml")).unwrap();
    let mut alerts = BTreeSet::new();
    for alert in rules.split("- alert: ").skip(1) {
        let line = |key: &str| {
            let found = alert.lines().find_map(|line| line.trim().strip_prefix(key)?.strip_prefix(": "));
            found.unwrap_or_else(|| panic!("no {key} in {alert}")).to_owned()
        };
        let told = [line("summary"), line("description")].concat();
        let told =
            named(&told, "$labels.", " ").into_iter().map(|label| label.trim_end_matches("}}").to_owned());
        hold(&families, &line("expr"), &told.collect::<Vec<_>>());
        assert!(line("labels").contains("severity: "), "{alert}");
        alerts.insert(alert.lines().next().unwrap().to_owned());
    }
    for name in ["CredentialNearExpiry", "IssuerDown", "LedgerUnhealthy", "DenialsRising", "ClockSkew"] {
        assert!(alerts.contains(&format!("Keybearer{name}")), "{alerts:?}");
    }
    // Whoever has Prometheus has its own reader of such files.
    let checked = Command::new("promtool")
        .args(["check", "rules"])
        .arg(packaging.join("prometheus/keybearer.rules.yml"))
        .output();
    match checked {
        Ok(checked) => assert!(checked.status.success(), "{checked:?}"),
        Err(_) => skip(
            "the_dashboard_and_the_alerts_ask_for_what_an_agent_says_and_for_all_of_it (promtool)",
            "it is not here",
        ),
    }
}

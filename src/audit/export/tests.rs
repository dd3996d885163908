//! Each format over records of all kinds, with names that strangers chose to be somebody else's line.

use serde_json::json;

use super::*;
use crate::audit::{
    CredentialPart, Entry, ExePart, PeerPart, PolicyPart, TargetPart, UnitPart, WorkloadPart,
};

/// What a stranger can call a file, a unit or a credential.
const HOSTILE: [&str; 12] = [
    "a|b\\|c",
    "x=1 suid=root outcome=success",
    "back\\slash\\",
    "end\nCEF:0|Evil|evil|1|x|x|10|suid=root",
    "cr\rlf\r\n{\"seq\":1}",
    "\"},\"status_id\":1,\"x\":{\"y\":\"",
    "sep\u{2028}\u{2029}\u{85}\u{b}\u{c}\u{1c}arated",
    "right\u{202e}left\u{2066}isolated",
    "nul\0esc\u{1b}[31mred",
    "trailing = \\= ",
    "\\n is no line feed",
    "caf\u{e9} \u{1f511}",
];

const KINDS: [EventType; 30] = [
    EventType::AgentStart,
    EventType::AgentStop,
    EventType::AttestationFailure,
    EventType::CertificateEnding,
    EventType::ConfigLoad,
    EventType::ConfigRefused,
    EventType::CredentialIssue,
    EventType::CredentialRelease,
    EventType::CredentialRenew,
    EventType::CredentialReturn,
    EventType::CredentialRevoke,
    EventType::Describe,
    EventType::Denial,
    EventType::ExceptionEnding,
    EventType::Explain,
    EventType::ForwardAnswer,
    EventType::ForwardSend,
    EventType::IdentityDisable,
    EventType::IdentityEnable,
    EventType::IssueFailure,
    EventType::KeyOpen,
    EventType::KeyRegister,
    EventType::KeyRotate,
    EventType::LedgerGap,
    EventType::LedgerRepaired,
    EventType::LedgerTurned,
    EventType::OperatorRevoke,
    EventType::ProofMint,
    EventType::Protocol,
    EventType::SecretSeal,
];

const SIGNALS: [EventType; 4] =
    [EventType::HumanSession, EventType::NewPlace, EventType::ReuseDetected, EventType::TwoPlaces];

fn record(kind: EventType, outcome: Outcome) -> Record {
    Record {
        v: 1,
        seq: 7,
        time: "2026-01-01T00:01:00.500Z".into(),
        boot_ns: 60_000_000_000,
        boot_id: "boot".into(),
        host: crate::audit::Host { id: Some("machine".into()), name: "web1".into() },
        agent: crate::audit::Agent {
            version: "0.1.0".into(),
            instance: "run".into(),
            config_digest: "d1".into(),
        },
        entry: Entry::new(kind, outcome, uuid::Uuid::from_u64_pair(1, 2)),
        prev: "0".repeat(64),
    }
}

/// With every name set to `name`.
fn full(kind: EventType, outcome: Outcome, name: &str) -> Record {
    let text = || name.to_owned();
    let mut record = record(kind, outcome);
    record.entry.event.reason = Some("NO_IDENTITY".into());
    record.entry.trace_id = Some("4bf92f3577b34da6a3ce929d0e0e4736".into());
    record.entry.workload = Some(WorkloadPart {
        id: "payments".into(),
        env: "prod".into(),
        owner: Some("p@example.com".into()),
        assurance: Some("high".into()),
    });
    record.entry.peer = Some(PeerPart {
        pid: 4711,
        start: 3000,
        uid: 1000,
        gid: 1000,
        exe: Some(ExePart { dev: 1, ino: 2, sha256: Some("ab".repeat(32)), path_hint: Some(text()) }),
        unit: Some(UnitPart { name: text(), invocation_id: None, manager: "system".into() }),
        level: Some("L4".into()),
        ..PeerPart::default()
    });
    record.entry.credential = Some(CredentialPart {
        name: Some(text()),
        kind: Some("token".into()),
        issuer: Some("corp".into()),
        client_id: Some("payments".into()),
        resource: Some("https://ledger.example.com".into()),
        scope_requested: vec![text(), "read".into()],
        ttl_s: Some(300),
        not_after: Some("2026-01-01T00:06:00Z".into()),
        binding: Some("dpop".into()),
        thumbprint: Some("jkt".into()),
        token_hash: Some("cd".repeat(16)),
        ..CredentialPart::default()
    });
    record.entry.policy = Some(PolicyPart {
        rule: Some("payments.ledger".into()),
        decision: "grant".into(),
        digest: "d1".into(),
        exception_until: None,
        missing: vec![text()],
    });
    record.entry.target = Some(TargetPart {
        htm: "GET".into(),
        origin: "https://ledger.example.com:8443".into(),
        path: Some("/orders".into()),
        jti_hash: None,
    });
    record.entry.socket = Some("/run/keybearer/agent.sock".into());
    record.entry.detail = Some(text());
    record
}

fn told(format: Format, record: &Record) -> String {
    line(format, record, Standing::Sound).unwrap()
}

/// A reader of CEF extensions of the test's own, by the rules of the format: `key=value` with `\=`, `\\`, `\n`, `\r`.
fn extension(line: &str) -> std::collections::BTreeMap<String, String> {
    let mut parts = 0;
    let start = line.char_indices().find_map(|(at, c)| {
        parts += usize::from(c == '|');
        (parts == 7).then_some(at + 1)
    });
    let (mut read, mut key, mut value) = (std::collections::BTreeMap::new(), String::new(), String::new());
    let mut rest = line[start.unwrap()..].chars();
    while let Some(c) = rest.next() {
        match c {
            '\\' => match rest.next().unwrap() {
                'n' => value.push('\n'),
                'r' => value.push('\r'),
                c => value.push(c),
            },
            '=' => {
                let (before, next) =
                    value.rsplit_once(' ').map_or(("", &*value), |(before, next)| (before, next));
                let next = next.to_owned();
                if !key.is_empty() {
                    read.insert(std::mem::take(&mut key), before.to_owned());
                }
                (key, value) = (next, String::new());
            }
            c => value.push(c),
        }
    }
    read.insert(key, value);
    read
}

#[test]
fn whatever_strangers_call_things_it_is_one_line_and_says_what_the_record_says() {
    // AUD-07
    for kind in KINDS.into_iter().chain(SIGNALS) {
        for name in HOSTILE {
            let record = full(kind, Outcome::Denied, name);
            for format in [Format::Cef, Format::Ecs, Format::Ocsf] {
                let line = told(format, &record);
                assert!(!line.chars().any(is_obeyed), "{format:?} {line:?}");
                assert!(line.len() < 16 << 10);
            }
            let ecs: Value = serde_json::from_str(&told(Format::Ecs, &record)).unwrap();
            assert_eq!(ecs["process.executable"], name);
            assert_eq!(ecs["labels"]["credential"], name);
            assert_eq!((&ecs["event.outcome"], &ecs["user.id"]), (&json!("failure"), &json!("payments")));
            let ocsf: Value = serde_json::from_str(&told(Format::Ocsf, &record)).unwrap();
            assert_eq!((&ocsf["status_id"], &ocsf["action_id"]), (&json!(2), &json!(2)));
            assert_eq!(ocsf["unmapped"]["credential"], name);
            if !matches!(matter(kind), Matter::Agent) {
                assert_eq!(ocsf["actor"]["process"]["file"]["path"], name);
            }
            let cef = extension(&told(Format::Cef, &record));
            let spelled: String = name
                .chars()
                .map(|c| {
                    if is_obeyed(c) && !"\r\n".contains(c) {
                        format!("\\u{:04x}", u32::from(c))
                    } else {
                        c.into()
                    }
                })
                .collect();
            assert_eq!(cef["sproc"], spelled);
            assert_eq!(cef["cs4"], spelled);
            assert_eq!((&*cef["suid"], &*cef["outcome"]), ("payments", "denied"));
        }
    }
}

#[test]
fn the_twelve_fields_of_the_mapping_come_through() {
    // STANDARDS 9.3: class, time, outcome, workload, process, host, issuer, life, policy, correlation, program, reason
    let record = full(EventType::CredentialIssue, Outcome::Success, "/usr/bin/pay");
    let ocsf: Value = serde_json::from_str(&told(
        Format::Ocsf,
        &Record { entry: Entry { target: None, ..record.entry.clone() }, ..record.clone() },
    ))
    .unwrap();
    for (at, is) in [
        ("/class_uid", json!(3002)),
        ("/type_uid", json!(300_201)),
        ("/time", json!(1_767_225_660_500_i64)),
        ("/status_id", json!(1)),
        ("/status_detail", json!("NO_IDENTITY")),
        ("/auth_protocol", json!("OAuth 2.0/OIDC")),
        ("/user/uid", json!("payments")),
        ("/actor/process/pid", json!(4711)),
        // 30 s after the boot, which was 60 s before the record.
        ("/actor/process/created_time", json!(1_767_225_630_500_i64)),
        ("/actor/process/file/hashes/0/value", json!("ab".repeat(32))),
        ("/device/uid", json!("machine")),
        ("/device/hostname", json!("web1")),
        ("/dst_endpoint/hostname", json!("corp")),
        ("/service/name", json!("corp")),
        ("/authentication_token/expiration_time", json!(1_767_225_960_000_i64)),
        ("/authentication_token/created_time", json!(1_767_225_660_000_i64)),
        ("/authentication_token/is_renewable", json!(false)),
        ("/policy/name", json!("payments.ledger")),
        ("/policy/version", json!("d1")),
        ("/policy/is_applied", json!(true)),
        ("/metadata/correlation_uid", json!("00000000-0000-0001-0000-000000000002")),
        ("/metadata/uid", json!("run/7")),
    ] {
        assert_eq!(ocsf.pointer(at), Some(&is), "{at}");
    }
    assert_eq!(ocsf.pointer("/authentication_token/value"), None);
    let ecs: Value = serde_json::from_str(&told(Format::Ecs, &record)).unwrap();
    for (name, is) in [
        ("event.kind", json!("event")),
        ("event.category", json!(["authentication"])),
        ("event.type", json!(["start"])),
        ("@timestamp", json!("2026-01-01T00:01:00.500Z")),
        ("event.outcome", json!("success")),
        ("event.reason", json!("NO_IDENTITY")),
        ("user.id", json!("payments")),
        ("service.name", json!("payments")),
        ("process.pid", json!(4711)),
        ("process.entity_id", json!("boot/4711/3000")),
        ("host.id", json!("machine")),
        ("host.name", json!("web1")),
        ("destination.domain", json!("ledger.example.com")),
        ("rule.id", json!("payments.ledger")),
        ("trace.id", json!("4bf92f3577b34da6a3ce929d0e0e4736")),
        ("transaction.id", json!("00000000-0000-0001-0000-000000000002")),
    ] {
        assert_eq!(ecs[name], is, "{name}");
    }
    assert_eq!(ecs["labels"]["token_exp"], "2026-01-01T00:06:00Z");
    let cef = told(Format::Cef, &record);
    assert!(cef.starts_with(
        "CEF:0|Keybearer|keybearer|0.1.0|credential_issue|credential issue|3|rt=1767225660500 "
    ));
    let cef = extension(&cef);
    for (key, is) in [
        ("outcome", "success"),
        ("reason", "NO_IDENTITY"),
        ("suid", "payments"),
        ("spid", "4711"),
        ("sproc", "/usr/bin/pay"),
        ("dvchost", "web1"),
        ("dhost", "ledger.example.com"),
        ("cs1", "payments.ledger"),
        ("cs1Label", "rule"),
        ("cs2", "2026-01-01T00:06:00Z"),
        ("cn1", "300"),
        ("externalId", "00000000-0000-0001-0000-000000000002"),
    ] {
        assert_eq!(cef[key], is, "{key}");
    }
}

#[test]
fn what_is_not_known_is_not_there_and_what_nobody_vouches_for_says_so() {
    // AUD-04, AUD-24
    for kind in KINDS {
        let bare = record(kind, Outcome::Success);
        for format in [Format::Ecs, Format::Ocsf] {
            let line = told(format, &bare);
            assert!(!line.contains("null") && !line.contains("{}"), "{line}");
            assert!(!line.contains("broken here"), "{line}");
        }
        assert!(!told(Format::Cef, &bare).contains("suid="));
        for format in [Format::Cef, Format::Ecs, Format::Ocsf] {
            let line = line(format, &bare, Standing::Unsound).unwrap();
            assert!(line.contains("broken here or before"), "{line}");
        }
    }
    let timeless = Record { time: "yesterday".into(), ..record(EventType::Denial, Outcome::Denied) };
    assert_eq!(line(Format::Cef, &timeless, Standing::Unsound), Err(Timeless(7)));
}

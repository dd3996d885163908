use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::PermissionsExt as _,
};

use serde_json::{Value, json};

use super::*;
use crate::{
    audit::Record,
    config::{Mistake, load},
};

const NOW: &str = "2026-11-25T12:00:00Z";

/// Settings under which as much passes as can.
const SOUND: &str = r#"
environment = "prod"

[keys]
sealing_key = "/run/elsewhere/key"

[issuers.corp]
kind = "oauth"
issuer = "https://idp.example.com"

[issuers.partner]
kind = "oauth"
issuer = "https://login.partner.example.net"

[identities.payments]
owner = "payments@example.com"
assurance = "high"
match = { unit = "payments.service", uid = 1000, sha256 = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" }

[identities.payments.credentials.ledger]
issuer = "corp"
client_id = "payments"
resource = "https://ledger.example.com"
scope = ["ledger:read", "ledger:write"]
forward = "only"

[identities.edi]
owner = "edi@example.com"
assurance = "standard"
match = { unit = "edi.service", uid = 1001, exe = "/usr/bin/edi" }

[identities.edi.credentials.orders]
issuer = "partner"
client_id = "edi"
resource = "https://api.partner.example.net"
scope = ["orders:read"]
"#;

/// One more identity, and what it is like.
const MAILER: &str = r#"
[identities.mailer]
owner = "mail@example.com"
assurance = "interim"
match = { unit = "mailer.service", uid = 1002, exe = "/usr/bin/mailer" }
"#;

fn sealed(more: &str) -> String {
    format!(
        "{MAILER}\n[identities.mailer.credentials.smtp]\nkind = \"sealed\"\nfields = [\"password\"]\n{more}\nexception = {{ owner = \
         \"mail@example.com\", reason = \"no OAuth yet\", until = \"2026-12-31\" }}\n"
    )
}

/// An identity that shows a certificate of the agent's own making and has no other key; no sealing key is named.
fn certified(more: &str) -> String {
    format!(
        "environment = \"prod\"\n[issuers.corp]\nkind = \"oauth\"\nissuer = \"https://idp.example.com\"\n[identities.edi]\nowner = \
         \"edi@example.com\"\nassurance = \"standard\"\nmatch = {{ unit = \"edi.service\", uid = 1001, exe = \"/usr/bin/edi\" \
         }}\n[identities.edi.certificate]\n{more}\n[identities.edi.credentials.orders]\nissuer = \"corp\"\nclient_id = \"edi\"\nresource = \
         \"https://api.example.com\"\nscope = [\"orders:read\"]\nclient_auth = \"self_signed_tls_client_auth\"\n"
    )
}

/// The same, of a CA's making; its other key is in memory.
fn meshed(more: &str) -> String {
    format!(
        "environment = \"prod\"\n[issuers.mesh]\nkind = \"step-ca\"\nurl = \"https://ca.example.com\"\nroots = \"/ca.pem\"\n\
         [identities.edi]\nowner = \"edi@example.com\"\nassurance = \"standard\"\nmatch = {{ unit = \"edi.service\", uid = 1001, exe = \
         \"/usr/bin/edi\" }}\n[identities.edi.key]\ncustody = \"memory\"\n[identities.edi.credentials.tls]\nissuer = \"mesh\"\nclient_id = \
         \"edi\"\ncertificate = {{ uri = [\"spiffe://example.com/edi\"], {more} }}\n"
    )
}

/// What is read at an OpenBao.
fn leased(at: &str) -> String {
    format!(
        "{SOUND}[issuers.bao]\nkind = \"openbao\"\nurl = \"https://bao.example.net\"\n[identities.edi.credentials.app]\nissuer = \
         \"bao\"\nclient_id = \"edi\"\nlease = {{ at = \"{at}\" }}\n"
    )
}

/// No token anywhere.
fn only_sealed() -> String {
    format!("environment = \"prod\"\n[keys]\nsealing_key = \"/run/elsewhere/key\"\n{}", sealed(""))
}

fn settings(text: &str) -> Settings {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("agent.toml");
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    load(&path, &BTreeMap::new(), NOW.parse().unwrap())
        .map_err(|mistakes| mistakes.iter().map(Mistake::to_string).collect::<Vec<_>>())
        .unwrap()
}

/// A record so many hours before now, and what is different about it, by JSON pointer.
fn record(hours: i64, kind: &str, who: &str, credential: &str, differs: &[(&str, Value)]) -> Record {
    let time = NOW.parse::<Timestamp>().unwrap().checked_sub(SignedDuration::from_hours(hours)).unwrap();
    let until = time.checked_add(SignedDuration::from_mins(5)).unwrap();
    let mut record = json!({
        "v": 1, "seq": 7, "time": time.to_string(), "boot_ns": 1, "boot_id": "b", "host": {"id": null, "name": "h"},
        "agent": {"version": "1", "instance": "i", "config_digest": "d"},
        "event": {"type": kind, "outcome": "success", "reason": null},
        "exchange_id": "01990000-0000-7000-8000-000000000000", "trace_id": null,
        "workload": {"id": who, "env": "prod", "owner": null, "assurance": null},
        "peer": {"pid": 1, "start": 1, "uid": 1, "gid": 1, "loginuid": null, "exe": null,
            "unit": {"name": format!("{who}.service"), "invocation_id": null, "manager": "system"},
            "container": null, "same_userns": true, "mntns": 1, "level": "L4"},
        "socket": "workload",
        "credential": {"name": credential, "kind": "access_token", "issuer": "corp", "client_id": null, "resource": null,
            "scope_requested": [], "scope_granted": [], "ttl_s": 300, "not_after": until.to_string(), "binding": null,
            "thumbprint": format!("key of {who}"), "token_hash": format!("{who}.{credential}.{hours}"), "jti_hash": null, "kid": null,
            "source": "issuer"},
        "policy": null, "issuer_response": {"http_status": 200}, "detail": null, "prev": ""
    });
    for (pointer, value) in differs {
        let (at, name) = pointer.rsplit_once('/').unwrap();
        record.pointer_mut(at).unwrap()[name] = value.clone();
    }
    serde_json::from_value(record).unwrap()
}

/// What a ledger says in which all is well, 40 days long.
fn calm() -> Vec<Record> {
    let mut all = vec![record(
        960,
        "agent_start",
        "payments",
        "ledger",
        &[
            ("/workload", Value::Null),
            ("/credential", Value::Null),
            ("/detail", json!("environment prod; key files are sealed by a file; and more")),
        ],
    )];
    for hours in [958, 48] {
        let ledger = json!(["ledger:read", "ledger:write"]);
        all.push(record(
            hours,
            "credential_issue",
            "payments",
            "ledger",
            &[("/credential/scope_granted", ledger.clone()), ("/credential/scope_requested", ledger)],
        ));
        let orders = json!(["orders:read"]);
        all.push(record(
            hours,
            "credential_issue",
            "edi",
            "orders",
            &[("/credential/scope_granted", orders.clone()), ("/credential/scope_requested", orders)],
        ));
    }
    all
}

/// A whole ledger, all of which is signed.
fn signed(records: usize) -> Trust {
    let records = records as u64;
    Trust::Whole { records, signed: records, key_given: true }
}

/// The report of these settings and records.
fn made(text: &str, records: &[Record]) -> Report {
    told(text, records, &signed(records.len()), &[])
}

fn told(text: &str, records: &[Record], ledger: &Trust, off: &[&str]) -> Report {
    let now: Timestamp = NOW.parse().unwrap();
    let since = now.checked_sub(SignedDuration::from_hours(720)).unwrap();
    let signed = if let Trust::Whole { signed, .. } = ledger { *signed } else { 0 };
    let mut heard = Heard::since(since).signed(signed);
    for (seq, record) in records.iter().enumerate() {
        heard.hear(&Record { seq: seq as u64, ..record.clone() });
    }
    let disabled = off.iter().map(|name| (Arc::from(*name), "left".to_owned())).collect();
    let settings = settings(text);
    report(&Asked { settings: &settings, disabled: &disabled, heard: &heard, ledger, since, now })
}

fn verdict(report: &Report, id: &str) -> Verdict {
    report.controls.iter().find(|control| control.id == id).unwrap_or_else(|| panic!("{id}")).verdict
}

fn with(record: Record) -> Vec<Record> {
    calm().into_iter().chain([record]).collect()
}

/// The calm ledger, with one more sealed secret that is used.
fn with_mailer() -> Vec<Record> {
    with(record(2, "credential_issue", "mailer", "smtp", &[]))
}

fn but(from: &str, to: &str) -> String {
    assert!(SOUND.contains(from), "{from}");
    SOUND.replacen(from, to, 1)
}

#[test]
fn where_all_is_well_nothing_fails_and_there_is_nothing_to_do() {
    // S16, S47
    let report = made(SOUND, &calm());
    let failing: Vec<_> =
        report.controls.iter().filter(|one| one.verdict == Verdict::Fail).map(|one| one.id).collect();
    assert_eq!(failing, Vec::<&str>::new());
    assert!(report.remedies.is_empty(), "{:?}", report.remedies);
    let ids: Vec<String> = (1..=10)
        .map(|n| format!("NHI-{n}"))
        .chain((1..=10).map(|n| format!("GA-{n:02}")))
        .chain((1..=8).map(|n| format!("N63-{n}")))
        .collect();
    let told: Vec<&str> = report.controls.iter().map(|one| one.id).collect();
    assert_eq!(told, ids, "every row of the catalogues, once");
    // What this agent does not check is no pass, whatever the settings.
    let open: Vec<_> = report
        .controls
        .iter()
        .filter(|one| one.verdict == Verdict::NotApplicable)
        .map(|one| one.id)
        .collect();
    assert_eq!(open, ["NHI-6", "GA-09", "GA-10", "N63-3", "N63-6"]);
}

/// Each violation, made in settings or ledger, turns its control over (S16). The first of a pair is what is there without it.
#[test]
fn each_control_turns_over_when_it_is_violated() {
    use Verdict::{Fail, NotApplicable, Pass};
    let bearer = "binding = \"bearer\"\nexception = { owner = \"edi@example.com\", reason = \"no proofs\", until = \"2026-12-31\" }\n\
                  scope = [\"orders:read\"]";
    let orders = |more: &str| but("scope = [\"orders:read\"]", &format!("scope = [\"orders:read\"]\n{more}"));
    let interim = |more: &str| {
        format!(
            "{SOUND}{MAILER}\n[identities.mailer.credentials.mail]\nissuer = \"corp\"\nclient_id = \"mailer\"\n{more}\n"
        )
    };
    let mail = || with(record(2, "credential_issue", "mailer", "mail", &[]));
    let exchange = |claims: &str, actor: &str| {
        orders(&format!(
            "grant = \"token_exchange\"\nsubject = {{ file = \"/t\", type = \"jwt\", issuer = \"https://ci.example.com\", audience = \
             \"https://idp.example.com\"{claims} }}\n{actor}"
        ))
    };
    let sub = ", claims = { sub = \"job\" }";
    let actor = "actor = { file = \"/a\", type = \"jwt\", claims = { sub = \"edi\" } }";
    let exported =
        orders("binding = \"mtls\"\nkey_export = \"allowed\"") + "\n[identities.edi.certificate]\n";
    let used = |differs: &[(&str, Value)]| with(record(1, "credential_release", "edi", "orders", differs));
    let event = |kind: &str, differs: &[(&str, Value)]| with(record(1, kind, "edi", "orders", differs));
    let revoked = |hours: i64| {
        event(
            "credential_revoke",
            &[
                ("/event/outcome", json!("failed")),
                (
                    "/credential/not_after",
                    json!(
                        Timestamp::from_second(NOW.parse::<Timestamp>().unwrap().as_second() + hours * 3600)
                            .unwrap()
                            .to_string()
                    ),
                ),
            ],
        )
    };
    let gone = |hours: i64| with(record(hours, "credential_issue", "old", "x", &[]));
    let details = |more: &str| orders(&format!("authorization_details = [{{ type = \"payment\" }}]\n{more}"));
    let register = |outcome: &str| {
        event(
            "key_register",
            &[
                ("/event/outcome", json!(outcome)),
                ("/detail", json!("edi: partner could not be told of the keys")),
            ],
        )
    };
    let sound = || SOUND.to_owned();
    let plain = but("sealing_key = \"/run/elsewhere/key\"", "");
    let unsealed = || {
        let mut all = calm();
        all[0].entry.detail = Some("environment prod".into());
        all
    };
    let by_unit = "unit = \"edi.service\", uid = 1001, exe = \"/usr/bin/edi\"";
    let by_users_unit =
        but(by_unit, "user_unit = \"edi.service\", uid = 1001").replace("\"standard\"", "\"interim\"");
    let in_users_unit = ("/peer/unit/manager", json!("user:1001"));
    let errand =
        ("/service_manager", json!({"unit": "edi.service", "credential": "orders", "promised": ["uid"]}));
    let told_long_ago = |pid: u32| {
        let mut all = with(record(900, "human_session", "edi", "", &[("/event/reason", json!("TERMINAL"))]));
        all.push(record(2, "credential_release", "edi", "orders", &[("/peer/pid", json!(pid))]));
        all
    };
    let refused = || {
        let denied = [("/event/reason", json!("TERMINAL")), ("/event/outcome", json!("denied"))];
        with(record(3, "human_session", "edi", "", &denied))
    };
    let lease = |hours, kind: &str| {
        record(hours, "credential_issue", "edi", "app", &[("/credential/kind", json!(kind))])
    };
    type Case = (&'static str, Verdict, String, Vec<Record>);
    let cases: Vec<Case> = vec![
        ("NHI-1", Pass, sound(), calm()),
        (
            "NHI-1",
            Fail,
            sound(),
            calm()
                .into_iter()
                .filter(|one| {
                    *one.time < *"2026-10-20" || one.entry.workload.as_ref().is_none_or(|who| who.id != "edi")
                })
                .collect(),
        ),
        // Something of a removed identity lives still; then it has ended.
        ("NHI-1", Fail, sound(), gone(0)),
        ("NHI-1", Pass, sound(), gone(2)),
        // The same of one credential of an identity that stays; what names none is no credential's.
        ("NHI-1", Fail, sound(), with(record(0, "credential_issue", "edi", "before", &[]))),
        ("NHI-1", Pass, sound(), with(record(2, "credential_issue", "edi", "before", &[]))),
        ("NHI-1", Pass, sound(), with(record(0, "credential_issue", "edi", "orders", &[]))),
        ("NHI-1", Pass, sound(), with(record(0, "credential_issue", "edi", "", &[]))),
        // A ledger that is too young cannot tell who is stale.
        ("NHI-1", NotApplicable, sound(), vec![record(2, "credential_issue", "edi", "orders", &[])]),
        ("NHI-2", Pass, sound(), calm()),
        (
            "NHI-2",
            Fail,
            sound() + &sealed("") + "[identities.mailer.deliver]\nenv = { SMTP = \"smtp.password\" }\n",
            with_mailer(),
        ),
        ("NHI-2", Pass, sound() + &sealed(""), with_mailer()),
        ("NHI-2", Fail, exported.clone(), calm()),
        ("NHI-2", Fail, plain.clone(), unsealed()),
        ("NHI-2", NotApplicable, plain.clone(), calm()[1..].to_vec()),
        // The key of a certificate is a key too, whether the agent made the certificate or a CA.
        ("NHI-2", Fail, certified(""), unsealed()),
        ("NHI-2", Pass, certified("custody = \"memory\""), unsealed()),
        ("NHI-2", Pass, certified(""), calm()),
        ("NHI-2", NotApplicable, certified(""), calm()[1..].to_vec()),
        ("NHI-2", Fail, meshed("path = \"/var/lib/keybearer/tls.pem\""), unsealed()),
        ("NHI-2", Pass, meshed("custody = \"memory\""), unsealed()),
        ("NHI-2", Pass, meshed("path = \"/var/lib/keybearer/tls.pem\""), calm()),
        ("NHI-3", Pass, sound(), calm()),
        (
            "NHI-3",
            Fail,
            sound()
                + "[identities.edi.credentials.own]\nissuer = \"corp\"\nclient_id = \"edi-own\"\nresource = \"https://own.example.com\"\n",
            calm(),
        ),
        ("NHI-3", Fail, sound(), used(&[("/issuer_response", json!({"metadata_changed": true}))])),
        (
            "NHI-3",
            NotApplicable,
            but("https://login.partner.example.net", "https://login.example.com"),
            calm(),
        ),
        ("NHI-4", Pass, sound(), calm()),
        ("NHI-4", Fail, sound() + &sealed(""), with_mailer()),
        (
            "NHI-4",
            Pass,
            sound()
                + &sealed(
                    "forward = \"only\"\nforward_as = \"X: {password}\"\norigins = [\"https://m.example.com\"]",
                ),
            with_mailer(),
        ),
        ("NHI-5", Pass, sound(), calm()),
        ("NHI-5", Fail, but("[\"orders:read\"]", "[\"orders:admin\", \"orders:read\"]"), calm()),
        ("NHI-5", Fail, sound(), used(&[("/credential/scope_granted", json!(["orders:admin"]))])),
        ("NHI-6", NotApplicable, sound(), calm()),
        ("NHI-6", Fail, exchange("", actor), calm()),
        ("NHI-6", Pass, exchange(sub, actor), calm()),
        ("NHI-7", Pass, sound(), calm()),
        // An entry of a key-value store stays as it is: by its path, or by what came.
        ("NHI-7", Pass, leased("database/creds/edi"), calm()),
        ("NHI-7", Fail, leased("secret/data/edi"), calm()),
        ("NHI-7", Fail, leased("team/kv/data/edi"), calm()),
        ("NHI-7", Pass, leased("kv/edi"), calm()),
        ("NHI-7", Fail, leased("kv/edi"), with(lease(3, "unleased_values"))),
        (
            "NHI-7",
            Pass,
            leased("kv/edi"),
            [calm(), vec![lease(3, "unleased_values"), lease(2, "leased_values")]].concat(),
        ),
        (
            "NHI-7",
            Fail,
            sound()
                + &sealed(
                    "forward = \"only\"\nforward_as = \"X: {password}\"\norigins = [\"https://m.example.com\"]",
                ),
            with_mailer(),
        ),
        ("NHI-8", Pass, sound(), calm()),
        ("NHI-8", Fail, sound(), used(&[("/workload/env", json!("test"))])),
        (
            "NHI-8",
            Fail,
            but("\"prod\"", "\"staging\"").replace(
                "example.net\"\n\n[identities.payments]",
                "example.net\"\ndev = true\n\n[identities.payments]",
            ),
            calm()
                .into_iter()
                .skip(1)
                .map(|mut one| {
                    one.entry.workload.as_mut().unwrap().env = "staging".into();
                    one
                })
                .collect(),
        ),
        ("NHI-9", Pass, sound(), calm()),
        ("NHI-9", Fail, sound(), event("reuse_detected", &[("/event/reason", json!("FOREIGN_IDENTITY"))])),
        ("NHI-9", Fail, sound(), event("two_places", &[])),
        ("NHI-9", Fail, sound(), used(&[("/credential/thumbprint", json!("key of payments"))])),
        ("NHI-9", Fail, sound(), used(&[("/peer/unit/name", json!("other.service"))])),
        ("NHI-10", Pass, sound(), calm()),
        ("NHI-10", Fail, sound(), event("human_session", &[("/event/reason", json!("LOGIN_UID"))])),
        ("NHI-10", Pass, sound(), event("human_session", &[("/event/outcome", json!("denied"))])),
        // Who logged in is on record with what was handed out; to the service manager it says nothing.
        ("NHI-10", Fail, sound(), used(&[("/peer/loginuid", json!(1000))])),
        (
            "NHI-10",
            Pass,
            sound(),
            event("denial", &[("/peer/loginuid", json!(1000)), ("/event/outcome", json!("denied"))]),
        ),
        ("NHI-10", Pass, sound(), used(&[("/peer/loginuid", json!(1000)), errand.clone()])),
        ("NHI-10", Fail, sound(), used(&[("/peer/loginuid", json!(1000)), in_users_unit.clone()])),
        (
            "NHI-10",
            NotApplicable,
            by_users_unit.clone(),
            used(&[("/peer/loginuid", json!(1000)), in_users_unit.clone()]),
        ),
        ("NHI-10", Fail, by_users_unit.clone(), used(&[("/peer/loginuid", json!(1000))])),
        (
            "NHI-10",
            Pass,
            but("owner = \"edi@example.com\"", "owner = \"edi@example.com\"\nhumans = \"allowed\""),
            used(&[("/peer/loginuid", json!(1000))]),
        ),
        // A process is told of once. That was before the time that counts, and it is served still; or another is.
        ("NHI-10", Fail, sound(), told_long_ago(1)),
        ("NHI-10", Pass, sound(), told_long_ago(2)),
        // Nor is one that was refused, and is served under other settings.
        (
            "NHI-10",
            Fail,
            sound(),
            [refused(), vec![record(1, "credential_release", "edi", "orders", &[])]].concat(),
        ),
        ("NHI-10", Pass, sound(), refused()),
        (
            "NHI-10",
            NotApplicable,
            but("unit = \"edi.service\", uid = 1001, exe = \"/usr/bin/edi\"", "uid = 1001")
                .replace("\"standard\"", "\"interim\""),
            calm(),
        ),
        ("GA-01", Pass, sound(), calm()),
        ("GA-01", NotApplicable, only_sealed(), with_mailer()),
        ("GA-01", Fail, interim("scope = [\"mail:send\"]\norigins = [\"https://m.example.com\"]"), mail()),
        ("GA-02", Pass, sound(), calm()),
        ("GA-02", Fail, orders("origins = [\"https://a.example.net\", \"https://b.example.net\"]"), calm()),
        ("GA-02", Fail, orders("require_aud = false"), calm()),
        ("GA-03", Pass, sound(), calm()),
        (
            "GA-03",
            Fail,
            but(
                "unit = \"edi.service\", uid = 1001, exe = \"/usr/bin/edi\"",
                "slice = \"edi.slice\", gid = 1001",
            )
            .replace("uid = 1000, ", "gid = 1000, ")
            .replace("\"standard\"", "\"interim\""),
            calm(),
        ),
        ("GA-03", Fail, exchange(sub, ""), calm()),
        ("GA-03", Pass, exchange(sub, actor), calm()),
        ("GA-04", Pass, sound(), calm()),
        (
            "GA-04",
            Fail,
            but(
                "sha256 = \"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\"",
                "exe = \"/usr/bin/pay\"",
            ),
            calm(),
        ),
        ("GA-05", Pass, sound(), calm()),
        ("GA-05", Fail, but(", exe = \"/usr/bin/edi\"", ""), calm()),
        ("GA-05", Fail, sound() + "[identities.edi.deliver]\nenv = { T = \"orders.token\" }\n", calm()),
        ("GA-06", Pass, sound(), calm()),
        (
            "GA-06",
            Fail,
            sound()
                + "[identities.payments.credentials.risk]\nissuer = \"corp\"\nclient_id = \"payments\"\nresource = \"https://risk.example.com\"\n",
            calm(),
        ),
        ("GA-06", NotApplicable, but("forward = \"only\"", ""), calm()),
        ("GA-07", Pass, sound(), calm()),
        ("GA-07", Fail, but("scope = [\"orders:read\"]", bearer), calm()),
        ("GA-08", Pass, sound(), calm()),
        ("GA-08", Fail, sound(), event("issue_failure", &[("/event/outcome", json!("failed"))])),
        ("GA-09", NotApplicable, sound(), calm()),
        ("GA-09", Fail, details(""), calm()),
        ("GA-09", NotApplicable, details("max_uses = 1"), calm()),
        ("GA-10", NotApplicable, sound(), calm()),
        ("GA-10", Pass, sound(), event("credential_revoke", &[])),
        ("GA-10", Fail, sound(), revoked(1)),
        // It has ended by itself.
        ("GA-10", NotApplicable, sound(), revoked(-1)),
        ("N63-1", Pass, sound(), calm()),
        ("N63-1", Fail, but("scope = [\"orders:read\"]", bearer), calm()),
        ("N63-2", Pass, sound(), calm()),
        ("N63-2", Fail, sound(), event("reuse_detected", &[("/event/reason", json!("ONE_TIME_REUSE"))])),
        (
            "N63-2",
            Fail,
            orders(
                "client_auth = \"spiffe_jwt\"\nassertion = { socket = \"/s\", subject = \"spiffe://example.com/edi\" }",
            ),
            calm(),
        ),
        (
            "N63-2",
            Fail,
            orders("client_auth = \"federated_jwt\"\nassertion = { file = \"/t\", subject = \"edi\" }"),
            calm(),
        ),
        ("N63-3", NotApplicable, sound(), calm()),
        ("N63-3", Fail, exported.clone(), calm()),
        ("N63-3", Fail, plain, unsealed()),
        ("N63-3", Fail, certified(""), unsealed()),
        ("N63-3", NotApplicable, certified("custody = \"memory\""), unsealed()),
        ("N63-3", Fail, meshed("path = \"/var/lib/keybearer/tls.pem\""), unsealed()),
        ("N63-4", Pass, sound(), calm()),
        ("N63-4", Fail, orders("max_ttl = \"1m\""), calm()),
        ("N63-5", Pass, sound(), calm()),
        ("N63-5", Fail, orders("require_aud = false"), calm()),
        ("N63-6", NotApplicable, sound(), calm()),
        ("N63-6", Pass, sound(), register("success")),
        ("N63-6", Fail, sound(), register("failed")),
        ("N63-7", Pass, sound(), calm()),
        (
            "N63-7",
            Fail,
            but("environment = \"prod\"", "environment = \"test\"")
                .replace("\"https://login.partner.example.net\"", "\"http://127.0.0.1:9\"\ndev = true"),
            calm(),
        ),
        ("N63-8", Pass, sound(), calm()),
        ("N63-8", Fail, sound(), event("ledger_gap", &[])),
        ("N63-8", Fail, sound() + "[audit]\non_failure = \"allow\"\n", calm()),
    ];
    let wrong: Vec<String> = cases
        .iter()
        .enumerate()
        .filter_map(|(at, (id, expected, text, records))| {
            let report = made(text, records);
            let is = report.controls.iter().find(|one| one.id == *id).unwrap();
            assert_eq!(is.remedy.is_some(), is.verdict == Fail, "{id}: who fails is told what to do");
            (is.verdict != *expected).then(|| {
                format!("case {at}, {id}: should be {expected:?}, is {:?}: {}", is.verdict, is.evidence)
            })
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // None is without a violation.
    let violated: BTreeSet<&str> =
        cases.iter().filter(|(_, expected, ..)| *expected == Fail).map(|(id, ..)| *id).collect();
    let all: BTreeSet<&str> = made(SOUND, &calm()).controls.iter().map(|one| one.id).collect();
    assert_eq!(violated, all);
}

#[test]
fn who_was_switched_off_and_has_what_works_still_is_told_before_its_issuer_is_asked() {
    // GA-10: nothing is on record of a revocation that waits for its issuer.
    let told = |records: &[Record], off: &[&str]| {
        let report = told(SOUND, records, &signed(records.len()), off);
        let one = report.controls.into_iter().find(|one| one.id == "GA-10").unwrap();
        (one.verdict, one.evidence)
    };
    let live = with(record(0, "credential_issue", "edi", "orders", &[]));
    let (verdict, evidence) = told(&live, &["edi"]);
    assert!(verdict == Verdict::Fail && evidence.contains("edi (until 2026-11-25T12:05:00Z)"), "{evidence}");
    // Taken out of the settings too, it has it all the same.
    let other = with(record(0, "credential_issue", "old", "x", &[]));
    assert_eq!(told(&other, &["old"]).0, Verdict::Fail);
    // Another is off; it has ended; it was revoked.
    assert_eq!(told(&live, &["payments"]).0, Verdict::Pass);
    assert_eq!(told(&calm(), &["edi"]).0, Verdict::Pass);
    let hash = ("/credential/token_hash", json!("edi.orders.0"));
    let dead = [live, vec![record(0, "credential_revoke", "edi", "orders", &[hash])]].concat();
    assert_eq!(told(&dead, &["edi"]).0, Verdict::Pass);
    // A lease that goes on is the one that was handed out; another that was had in its place is nobody's yet.
    let renewed = |whose: &str| {
        let hash = ("/credential/token_hash", json!(whose));
        let issued = record(1, "credential_issue", "edi", "orders", &[]);
        [calm(), vec![issued, record(0, "credential_renew", "edi", "orders", &[hash])]].concat()
    };
    assert_eq!(told(&renewed("edi.orders.1"), &["edi"]).0, Verdict::Fail);
    assert_eq!(told(&renewed("another"), &["edi"]).0, Verdict::Pass);
}

#[test]
fn records_that_no_checkpoint_signs_are_believed_for_two_hours() {
    // N63-8: the last checkpoint that is left may be one of long ago, before somebody wrote what he liked.
    let records: Vec<Record> =
        [960, 48, 3, 1, 0].map(|hours| record(hours, "credential_issue", "edi", "orders", &[])).into();
    let told = |signed, key_given| {
        let report = told(SOUND, &records, &Trust::Whole { records: 5, signed, key_given }, &[]);
        let one = report.controls.into_iter().find(|one| one.id == "N63-8").unwrap();
        (one.verdict, one.evidence)
    };
    for (signed, expected) in
        [(0, Verdict::Fail), (1, Verdict::Fail), (2, Verdict::Fail), (3, Verdict::Pass), (5, Verdict::Pass)]
    {
        assert_eq!(told(signed, true).0, expected, "{signed} are signed");
    }
    // Held against the agent's own clock too: what is dated ahead is no younger for it.
    let ahead = [record(1, "denial", "edi", "orders", &[]), record(-2, "denial", "edi", "orders", &[])];
    let unsigned = Trust::Whole { records: 2, signed: 0, key_given: true };
    assert_eq!(verdict(&super::tests::told(SOUND, &ahead, &unsigned, &[]), "N63-8"), Verdict::Fail);
    // And a key that lies beside the ledger is whoever's who can write there.
    assert!(told(5, false).1.contains("only the key beside the ledger"), "{}", told(5, false).1);
    assert!(told(5, true).1.contains("the key that you named"), "{}", told(5, true).1);
}

#[test]
fn a_tampered_ledger_fails_the_control_of_records_and_is_told_first() {
    let fault = Trust::Tampered { seq: 3, fault: "it was changed".into() };
    let report = told(SOUND, &calm()[..3], &fault, &[]);
    assert_eq!(verdict(&report, "N63-8"), Verdict::Fail);
    assert!(text(&report).starts_with("THE LEDGER IS NOT WHAT WAS WRITTEN: record 3"));
    assert!(blast(&report, &report.identities[0]).starts_with("THE LEDGER IS NOT"));
    assert!(page(&report).contains("role=\"alert\""));
    assert_eq!(report.ledger.counted, 3);
    // Nor is one believed whose checkpoints are gone.
    let unsigned = Trust::Whole { records: 5, signed: 0, key_given: true };
    assert_eq!(verdict(&told(SOUND, &calm(), &unsigned, &[]), "N63-8"), Verdict::Fail);
    let young = [record(1, "credential_issue", "edi", "orders", &[])];
    assert_eq!(verdict(&told(SOUND, &young, &unsigned, &[]), "N63-8"), Verdict::Pass);
    assert_eq!(verdict(&told(SOUND, &[], &Trust::Missing, &[]), "N63-8"), Verdict::NotApplicable);
}

/// Settings with something to do of every kind of place.
fn burdened() -> String {
    let bearer = "binding = \"bearer\"\nexception = { owner = \"edi@example.com\", reason = \"no proofs\", until = \"2026-12-05\" }\n\
                  scope = [\"orders:read\"]";
    but("scope = [\"orders:read\"]", bearer)
        .replace("\"ledger:write\"]", "\"ledger:never\", \"ledger:write\"]")
        + "[identities.edi.deliver]\nenv = { T = \"orders.token\" }\n"
        + &sealed("")
        + "[identities.mailer.credentials.sms]\nkind = \"sealed\"\nfields = [\"key\"]\nforward = \"only\"\nforward_as = \"X: {key}\"\norigins = \
           [\"https://sms.example\"]\nexception = { owner = \"mail@example.com\", reason = \"static only\", until = \"2026-11-20\" }\n"
}

fn codes(report: &Report) -> Vec<String> {
    let about = |one: &Remedy| match &one.credential {
        Some(credential) => format!("{}.{credential} {}", one.identity, one.code),
        None => format!("{} {}", one.identity, one.code),
    };
    report.remedies.iter().map(about).collect()
}

#[test]
fn what_to_do_is_sorted_by_assurance_exposure_and_age_and_gone_once_done() {
    // S47
    let mut records = with_mailer();
    records.push(record(1, "human_session", "mailer", "smtp", &[("/event/reason", json!("TERMINAL"))]));
    let all = codes(&made(&burdened(), &records));
    assert_eq!(
        all,
        [
            "payments.ledger SCOPE_UNUSED",
            "edi.orders EXCEPTION_ENDING",
            "edi.orders IN_ENVIRONMENT",
            "edi.orders NOT_BOUND",
            "mailer HUMAN_USE",
            "mailer.smtp STATIC",
            "mailer.sms EXCEPTION_ENDED",
            "mailer.sms STATIC_BRIDGED",
        ]
    );
    let without = |gone: &str| all.iter().filter(|one| *one != gone).cloned().collect::<Vec<_>>();
    let mended = burdened().replace("\"ledger:never\", ", "");
    assert_eq!(codes(&made(&mended, &records)), without("payments.ledger SCOPE_UNUSED"));
    let mended = burdened().replace("env = { T", "file = { T");
    // What is no more in the environment is exposed less, and is still to be bound.
    assert_eq!(codes(&made(&mended, &records)), without("edi.orders IN_ENVIRONMENT"));
    records.pop();
    assert_eq!(codes(&made(&burdened(), &records)), without("mailer HUMAN_USE"));
}

#[test]
fn a_key_that_lies_plain_is_something_to_do_whatever_it_is_for() {
    // NHI-2, S47
    let unsealed = || {
        let mut all = calm();
        all[0].entry.detail = Some("environment prod".into());
        all
    };
    let plain = |text: &str, records: &[Record]| {
        codes(&made(text, records)).into_iter().filter(|one| one.ends_with("KEY_PLAIN")).collect::<Vec<_>>()
    };
    assert_eq!(plain(&certified(""), &unsealed()), ["edi KEY_PLAIN"]);
    assert_eq!(plain(&meshed("path = \"/var/lib/keybearer/tls.pem\""), &unsealed()), ["edi.tls KEY_PLAIN"]);
    assert_eq!(plain(&certified(""), &calm()), [""; 0]);
    assert_eq!(plain(&certified("custody = \"memory\""), &unsealed()), [""; 0]);
    // Two keys of one identity are one thing to do.
    let both = certified("")
        .replace("client_auth = \"self", "binding = \"mtls\"\nclient_auth = \"private_key_jwt\" # ");
    let report = made(&both, &unsealed());
    let what: Vec<&str> = report.remedies.iter().map(|one| one.what.as_str()).collect();
    assert!(what.iter().any(|what| what.starts_with("its key and its certificate's key: plain")), "{what:?}");
    assert!(text(&report).contains("certificate its key in file, plain"), "{}", text(&report));
}

#[test]
fn people_are_counted_once_for_each_process_and_so_many_are_kept() {
    // NHI-10, TM-20
    let humans = |processes: u32, times: usize| {
        let came = |pid: u32| {
            let differs = [("/peer/pid", json!(pid)), ("/peer/loginuid", json!(1000))];
            vec![record(1, "credential_release", "edi", "orders", &differs); times]
        };
        let records: Vec<Record> = (1..=processes).flat_map(came).collect();
        made(SOUND, &records).identity("edi").unwrap().humans.clone()
    };
    assert_eq!(humans(2, 3), BTreeMap::from([("LOGIN_UID".into(), 2)]));
    assert_eq!(humans(5000, 1), BTreeMap::from([("LOGIN_UID".into(), 4096)]));
}

#[test]
fn of_two_that_lie_as_open_the_older_comes_first() {
    // S47
    let two = SOUND.to_owned()
        + &sealed("")
        + &sealed("")
            .replace("identities.mailer", "identities.another")
            .replace("mailer.service", "another.service")
            .replace("1002", "1003")
            .replace("bin/mailer", "bin/another");
    let smtp = |who: &str, hours| record(hours, "credential_issue", who, "smtp", &[]);
    let records = |another, mailer| {
        let mut all = calm();
        all.extend([smtp("another", another), smtp("mailer", mailer)]);
        all
    };
    let static_ones = |another, mailer| codes(&made(&two, &records(another, mailer)));
    assert_eq!(static_ones(480, 48), ["another.smtp STATIC", "mailer.smtp STATIC"]);
    assert_eq!(static_ones(48, 480), ["mailer.smtp STATIC", "another.smtp STATIC"]);
}

#[test]
fn an_identity_that_is_not_used_is_stale_only_if_the_ledger_goes_back_so_far() {
    // NHI-1
    let old = [record(960, "credential_issue", "edi", "orders", &[])];
    let young = [record(48, "credential_issue", "edi", "orders", &[])];
    let life = |records: &[Record], who: &str| made(SOUND, records).identity(who).unwrap().life;
    assert_eq!((life(&old, "edi"), life(&old, "payments")), (Life::Stale, Life::Stale));
    assert_eq!((life(&young, "edi"), life(&young, "payments")), (Life::Used, Life::Unknown));
    // One that is switched off needs nothing done.
    let whole = signed(1);
    let off = told(SOUND, &old, &whole, &["edi", "payments"]);
    assert!(off.remedies.is_empty() && verdict(&off, "NHI-1") == Verdict::Pass);
    assert_eq!(off.identities[0].disabled.as_deref(), Some("left"));
}

#[test]
fn of_scopes_the_report_says_what_the_ledger_can_tell_and_no_more() {
    // NHI-5, S13
    let ledger = |report: &Report| {
        let one = &report.identity("payments").unwrap().credentials[0];
        (one.scopes_unused.clone(), one.scopes_unproven.clone())
    };
    let none = Vec::<String>::new;
    assert_eq!(ledger(&made(SOUND, &calm())), (none(), none()));
    // Everything each time: in use, but whether it is needed, nobody said.
    let both = json!(["ledger:read", "ledger:write"]);
    let used =
        |hours, differs: &[(&str, Value)]| record(hours, "credential_issue", "payments", "ledger", differs);
    let lazy = [used(960, &[]), used(2, &[("/credential/scope_granted", both)])];
    assert_eq!(ledger(&made(SOUND, &lazy)), (none(), vec!["ledger:read".into(), "ledger:write".into()]));
    // Only one of two, for as long as was asked.
    let read = json!(["ledger:read"]);
    let narrow = [
        used(960, &[]),
        used(2, &[("/credential/scope_granted", read.clone()), ("/credential/scope_requested", read)]),
    ];
    assert_eq!(ledger(&made(SOUND, &narrow)), (vec!["ledger:write".into()], none()));
    // The same, in a ledger that is too young to say so; and one in which nothing was handed out at all.
    assert_eq!(ledger(&made(SOUND, &narrow[1..])), (none(), none()));
    assert_eq!(ledger(&made(SOUND, &narrow[..1])), (none(), none()));
}

#[test]
fn the_blast_radius_is_what_the_settings_say() {
    // S15
    let report = made(&burdened(), &calm());
    let reach = &report.identity("payments").unwrap().reach;
    assert_eq!(reach.audiences, ["https://ledger.example.com"]);
    assert_eq!(reach.scopes, ["ledger:never", "ledger:read", "ledger:write"]);
    assert_eq!(reach.origins, ["https://ledger.example.com"]);
    assert_eq!((reach.longest_life_s, reach.size), (Some(300), 3));
    assert_eq!(reach.same_key, ["client payments at corp"]);
    // What stays the same is good until somebody changes it.
    assert_eq!(report.identity("mailer").unwrap().reach.longest_life_s, None);
}

#[test]
fn maturity_counts_each_credential_once() {
    // S30
    let Maturity { credentials, fixed, bridged, dynamic, bound, attested, sentence } =
        made(&burdened(), &calm()).maturity;
    assert_eq!((credentials, fixed, bridged, dynamic, bound, attested), (4, 1, 1, 1, 1, 4));
    assert_eq!(sentence, "Of 4, 2 are still static (1 of them seen by no program), 1 is bound to a key.");
    assert_eq!(
        made(SOUND, &calm()).maturity.sentence,
        "All 2 credentials are bound to a key, and each program attested by more than its user."
    );
}

#[test]
fn names_that_strangers_chose_are_text_and_nothing_else() {
    let hostile = "</title><script>alert(1)</script><img src=x onerror=\"x\">'&\u{202e}";
    let records = with(record(0, "credential_issue", hostile, hostile, &[]));
    let mut all = records.clone();
    for pointer in
        ["/peer/unit/name", "/credential/issuer", "/workload/env", "/peer/level", "/credential/thumbprint"]
    {
        all.push(record(1, "credential_issue", "edi", "orders", &[(pointer, json!(hostile))]));
    }
    let scope = json!([hostile]);
    all.push(record(1, "credential_issue", "edi", "orders", &[("/credential/scope_granted", scope)]));
    all.push(record(1, "reuse_detected", hostile, hostile, &[("/event/reason", json!(hostile))]));
    let failed = [("/event/outcome", json!("failed")), ("/detail", json!(hostile))];
    all.push(record(1, "key_register", hostile, hostile, &failed));
    let whole = Trust::Tampered { seq: 1, fault: hostile.into() };
    let owner = SOUND.replace("payments@example.com", "<b onclick=x>\\u202e&</b>");
    let page = page(&told(&owner, &all, &whole, &["edi"]));
    assert!(page.contains("&lt;script&gt;") && page.contains("&lt;b onclick=x&gt;"));
    for bad in ["<script", "<img", "<b onclick", "\u{202e}", "</title><script"] {
        assert!(!page.contains(bad), "{bad}");
    }
    let text = text(&told(&owner, &all, &whole, &[]));
    assert!(!text.chars().any(|c| c == '\u{202e}' || c.is_control() && c != '\n'));
}

#[test]
fn the_page_needs_nothing_and_closes_what_it_opens() {
    let page = page(&made(&burdened(), &with_mailer()));
    for outside in
        ["<script", "<link", "src=", "@import", "url(", "http-equiv=\"refresh\"", "<iframe", "xlink"]
    {
        assert!(!page.contains(outside), "{outside}");
    }
    // No address is followed: the only link is within the page.
    assert_eq!(page.matches("href=").count(), page.matches("href=\"#main\"").count());
    for element in [
        "html", "head", "body", "main", "header", "footer", "section", "figure", "svg", "table", "caption",
        "desc", "article",
    ] {
        let opened =
            page.matches(&format!("<{element}>")).count() + page.matches(&format!("<{element} ")).count();
        assert_eq!(opened, page.matches(&format!("</{element}>")).count(), "{element}");
        assert!(opened > 0, "{element}");
    }
    // Each table has a caption, each picture a name.
    assert_eq!(page.matches("<table").count(), page.matches("<caption>").count());
    assert_eq!(page.matches("<svg").count(), page.matches("role=\"img\" aria-label").count());
    // A host without anything has a page too.
    let bare =
        "environment = \"prod\"\n[issuers.corp]\nkind = \"oauth\"\nissuer = \"https://idp.example.com\"\n";
    let empty = super::page(&told(bare, &[], &Trust::Missing, &[]));
    assert!(empty.contains("There are no credentials") && empty.ends_with("</html>\n"));
}

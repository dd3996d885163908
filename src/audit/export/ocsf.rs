//! OCSF 1.7: Authentication 3002 for credentials given and refused, Authorize Session 3003 for what somebody may have, Entity
//! Management 3004 for keys and identities, API Activity 6003 for proofs and calls of APIs, Application Lifecycle 6002 for the
//! agent itself. In goes a record; out comes an event as the schema has it.

use serde_json::{Value, json};

use super::{Matter, Severity, View};
use crate::audit::{EventType, Outcome};

/// The version of the schema.
const VERSION: &str = "1.7.0";

/// The methods that the schema has a name for.
const METHODS: [&str; 9] = ["CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"];

pub(super) fn event(view: &View<'_>) -> Value {
    let (record, entry) = (view.record, &view.record.entry);
    let (class, activity) = class(view);
    let (allowed, alarm) = (entry.event.outcome != Outcome::Denied, entry.event.kind.is_signal());
    let mut event = json!({
        "activity_id": activity,
        "activity_name": view.kind,
        "category_uid": class / 1000,
        "class_uid": class,
        "type_uid": class * 100 + activity,
        "time": view.at.as_millisecond(),
        "severity_id": match view.severity {
            Severity::Informational => 1,
            Severity::Medium => 3,
            Severity::High => 4,
            Severity::Critical => 5,
        },
        "status_id": if entry.event.outcome == Outcome::Success { 1 } else { 2 },
        "status": view.outcome,
        "status_detail": entry.event.reason,
        "message": view.record.entry.sentence(),
        "metadata": {
            "version": VERSION,
            "product": {"name": "keybearer", "vendor_name": "Keybearer", "version": record.agent.version},
            "profiles": ["host", "security_control"],
            "correlation_uid": entry.exchange_id,
            "uid": view.id(),
            "sequence": record.seq,
            "log_name": "ledger",
            "log_version": record.v.to_string(),
            "event_code": view.kind,
            "original_time": record.time,
        },
        "device": {
            "uid": record.host.id,
            "hostname": record.host.name,
            "type_id": 0,
            "boot_uid": record.boot_id,
        },
        "action_id": if allowed { 1 } else { 2 },
        "disposition_id": match (alarm, allowed) {
            (true, _) => 19,
            (false, true) => 1,
            (false, false) => 2,
        },
        "is_alert": alarm.then_some(true),
        "policy": entry.policy.as_ref().map(|policy| json!({
            "name": policy.rule,
            "uid": policy.rule.as_deref().unwrap_or("deny by default"),
            "version": policy.digest,
            "is_applied": true,
        })),
        "actor": {"process": process(view), "app_name": entry.peer.is_none().then_some("keybearer")},
        "unmapped": unmapped(view),
    });
    let of_class = match view.matter {
        Matter::Access => access(view),
        Matter::Agent => {
            json!({"app": {"name": "keybearer", "vendor_name": "Keybearer", "version": record.agent.version}})
        }
        Matter::Api => api(view),
        Matter::Entitlement => json!({"user": user(view), "privileges": privileges(view)}),
        Matter::Identity => json!({"entity": entity(view), "comment": entry.detail}),
    };
    if let (Some(event), Value::Object(of_class)) = (event.as_object_mut(), of_class) {
        event.extend(of_class);
        if matches!(view.matter, Matter::Agent) {
            // This class has no actor: whoever started the agent is none of its business.
            event.remove("actor");
        }
        if let (Matter::Api, Some(actor)) = (view.matter, event.get_mut("actor")) {
            actor["user"] = user(view);
        }
    }
    event
}

/// The class and the activity within it.
fn class(view: &View<'_>) -> (u32, u32) {
    let kind = view.record.entry.event.kind;
    let activity = match kind {
        EventType::CredentialReturn | EventType::CredentialRevoke => 2,
        EventType::AgentStart => 3,
        EventType::AgentStop => 4,
        EventType::ConfigLoad | EventType::ConfigRefused => 8,
        EventType::ForwardAnswer | EventType::ForwardSend => method_activity(view),
        EventType::ProofMint => 1,
        EventType::IdentityDisable => 9,
        EventType::IdentityEnable => 8,
        EventType::KeyOpen => 10,
        EventType::KeyRegister => 6,
        EventType::KeyRotate | EventType::SecretSeal => 3,
        EventType::OperatorRevoke => 7,
        EventType::CertificateEnding
        | EventType::ExceptionEnding
        | EventType::LedgerGap
        | EventType::LedgerRepaired
        | EventType::LedgerTurned
        | EventType::Protocol => 99,
        EventType::AttestationFailure
        | EventType::CredentialIssue
        | EventType::CredentialRelease
        | EventType::CredentialRenew
        | EventType::Denial
        | EventType::Describe
        | EventType::Explain
        | EventType::HumanSession
        | EventType::IssueFailure
        | EventType::NewPlace
        | EventType::ReuseDetected
        | EventType::TwoPlaces => 1,
    };
    let class = match view.matter {
        Matter::Access => 3002,
        Matter::Agent => 6002,
        Matter::Api => 6003,
        Matter::Entitlement => 3003,
        Matter::Identity => 3004,
    };
    (class, activity)
}

fn method_activity(view: &View<'_>) -> u32 {
    match view.record.entry.target.as_ref().map(|target| target.htm.as_str()) {
        Some("GET" | "HEAD" | "OPTIONS") => 2,
        Some("POST") => 1,
        Some("PUT" | "PATCH") => 3,
        Some("DELETE") => 4,
        _ => 99,
    }
}

fn access(view: &View<'_>) -> Value {
    let what = view.record.entry.credential.as_ref();
    let issuer = what.and_then(|what| what.issuer.as_deref());
    let token = what.and_then(|what| what.kind.as_deref()) == Some("token");
    let end = view.credential_end().map(|end| end.as_millisecond());
    let life = what.and_then(|what| i64::try_from(what.ttl_s?.checked_mul(1000)?).ok());
    json!({
        "user": user(view),
        "auth_protocol_id": 6,
        "auth_protocol": "OAuth 2.0/OIDC",
        "logon_type_id": 5,
        "is_remote": false,
        // One of the two is always told.
        "service": {"name": issuer.unwrap_or("keybearer")},
        "dst_endpoint": issuer.map(|issuer| json!({"hostname": issuer, "type_id": 1})),
        "authentication_token": end.map(|end| json!({
            "type_id": 99,
            "type": what.and_then(|what| what.kind.as_deref()),
            "expiration_time": end,
            "created_time": life.and_then(|life| end.checked_sub(life)),
            // No refresh token is ever kept.
            "is_renewable": token.then_some(false),
        })),
    })
}

fn api(view: &View<'_>) -> Value {
    let (record, entry) = (view.record, &view.record.entry);
    let target = entry.target.as_ref();
    let method = target.map(|target| target.htm.as_str()).filter(|method| METHODS.contains(method));
    let host = view.target_host();
    json!({
        "api": {"operation": view.kind, "service": host.map(|host| json!({"name": host}))},
        "src_endpoint": {"hostname": record.host.name, "uid": record.host.id, "type_id": 0},
        "dst_endpoint": host.map(|host| json!({"hostname": host, "type_id": 1})),
        "http_request": target.map(|target| json!({
            "http_method": method,
            "url": {
                "url_string": format!("{}{}", target.origin, target.path.as_deref().unwrap_or_default()),
                "hostname": host,
                "path": target.path,
            },
        })),
        "http_response": entry.api_response.as_ref().and_then(|said| Some(json!({
            "code": said.http_status?,
            "latency": said.latency_ms,
        }))),
    })
}

/// Who: an identity, or for want of one the account that the kernel names.
fn user(view: &View<'_>) -> Value {
    let entry = &view.record.entry;
    match (&entry.workload, &entry.peer) {
        (Some(who), _) => json!({"uid": who.id, "name": who.id, "type_id": 4, "type": "Service"}),
        (None, Some(peer)) => json!({"name": format!("uid {}", peer.uid), "type_id": 0}),
        (None, None) => json!({"name": "unknown", "type_id": 0}),
    }
}

fn privileges(view: &View<'_>) -> Vec<String> {
    let entry = &view.record.entry;
    let scope = entry.credential.as_ref().map(|what| what.scope_requested.clone()).unwrap_or_default();
    let rule = entry.policy.as_ref().and_then(|policy| policy.rule.clone());
    let mut privileges: Vec<String> = rule.into_iter().chain(scope).collect();
    if privileges.is_empty() {
        privileges.push("none".into());
    }
    privileges
}

/// What is looked after: an identity or a rule of the policy. Which key or certificate it was, the ledger says in words.
fn entity(view: &View<'_>) -> Value {
    let entry = &view.record.entry;
    match (entry.event.kind, &entry.workload) {
        (EventType::ExceptionEnding, _) => json!({
            "type_id": 5,
            "name": entry.credential.as_ref().and_then(|what| what.name.as_deref()).unwrap_or("an exception"),
        }),
        (_, Some(who)) => json!({"type_id": 2, "uid": who.id, "name": who.id, "user": user(view)}),
        (_, None) => json!({"type_id": 0, "name": view.kind}),
    }
}

fn process(view: &View<'_>) -> Option<Value> {
    let peer = view.record.entry.peer.as_ref()?;
    let exe = peer.exe.as_ref();
    let path = exe.and_then(|exe| exe.path_hint.as_deref());
    let name = path.map(|path| path.rsplit('/').next().unwrap_or(path));
    let sum = exe.and_then(|exe| exe.sha256.as_deref());
    Some(json!({
        "pid": peer.pid,
        "uid": view.process_id(),
        "created_time": view.process_start().map(|began| began.as_millisecond()),
        "name": name,
        "user": {"uid": peer.uid.to_string(), "type_id": 0},
        // The schema wants a name of each file.
        "file": name.map(|name| json!({
            "name": name,
            "path": path,
            "type_id": 1,
            "hashes": sum.map(|sum| json!([{"algorithm_id": 3, "algorithm": "SHA-256", "value": sum}])),
        })),
        "container": peer.container.as_ref().map(|container| json!({"uid": container})),
    }))
}

fn unmapped(view: &View<'_>) -> Value {
    let mut unmapped: serde_json::Map<_, _> =
        view.rest().into_iter().map(|(name, text)| (name.to_owned(), json!(text))).collect();
    let entry = &view.record.entry;
    unmapped.insert("trace_id".into(), json!(entry.trace_id));
    unmapped.insert("issuer_response".into(), json!(entry.issuer_response));
    unmapped.into()
}

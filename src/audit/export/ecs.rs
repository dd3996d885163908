//! ECS 9.4. In goes a record; out comes an event with the field names of the schema, dotted, as an index takes them. What has no
//! field of its own is a label.

use serde_json::{Map, Value, json};

use super::{Matter, Severity, View};
use crate::audit::{EventType, Outcome};

/// The version of the schema.
const VERSION: &str = "9.4.0";

pub(super) fn event(view: &View<'_>) -> Value {
    let (record, entry) = (view.record, &view.record.entry);
    let (peer, what) = (entry.peer.as_ref(), entry.credential.as_ref());
    let (target, policy) = (entry.target.as_ref(), entry.policy.as_ref());
    let exe = peer.and_then(|peer| peer.exe.as_ref());
    let issuer = what.and_then(|what| what.issuer.as_deref());
    let certificate =
        what.filter(|what| what.binding.as_deref() == Some("mtls")).and_then(|what| what.thumbprint.clone());
    let happened = json!({
        "@timestamp": record.time,
        "ecs.version": VERSION,
        "message": view.record.entry.sentence(),
        "event.kind": if entry.event.kind.is_signal() { "alert" } else { "event" },
        "event.category": [category(view.matter)],
        "event.type": types(view),
        "event.action": view.kind,
        "event.outcome": if entry.event.outcome == Outcome::Success { "success" } else { "failure" },
        "event.reason": entry.event.reason,
        "event.severity": match view.severity {
            Severity::Informational => 1,
            Severity::Medium => 3,
            Severity::High => 4,
            Severity::Critical => 5,
        },
        "event.id": view.id(),
        "event.sequence": record.seq,
        "event.module": "keybearer",
        "event.dataset": "keybearer.ledger",
        "event.provider": "keybearer",
        "observer.vendor": "Keybearer",
        "observer.product": "keybearer",
        "observer.version": record.agent.version,
        "trace.id": entry.trace_id,
        "transaction.id": entry.exchange_id,
    });
    let who = json!({
        "host.id": record.host.id,
        "host.name": record.host.name,
        "host.boot.id": record.boot_id,
        "user.id": entry.workload.as_ref().map(|who| &who.id),
        "service.name": entry.workload.as_ref().map(|who| &who.id),
        "service.environment": entry.workload.as_ref().map(|who| &who.env),
        "process.pid": peer.map(|peer| peer.pid),
        "process.entity_id": view.process_id(),
        "process.start": view.process_start().map(|began| format!("{began:.3}")),
        "process.user.id": peer.map(|peer| peer.uid.to_string()),
        "process.group.id": peer.map(|peer| peer.gid.to_string()),
        "process.executable": exe.and_then(|exe| exe.path_hint.as_deref()),
        "process.hash.sha256": exe.and_then(|exe| exe.sha256.as_deref()),
        "container.id": peer.and_then(|peer| peer.container.as_deref()),
    });
    let what_for = json!({
        "destination.domain": view.target_host().or(issuer),
        "url.domain": view.target_host().or(issuer),
        "url.full": target.map(|target| format!("{}{}", target.origin, target.path.as_deref().unwrap_or_default())),
        "url.path": target.and_then(|target| target.path.as_deref()),
        "http.request.method": target.map(|target| target.htm.as_str()),
        "http.response.status_code": entry.api_response.as_ref().and_then(|said| said.http_status),
        "tls.client.hash.sha256": certificate,
        "rule.id": policy.and_then(|policy| policy.rule.as_deref()),
        "rule.ruleset": policy.map(|_| "agent.toml"),
        "rule.version": policy.map(|policy| &policy.digest),
        "error.code": entry.issuer_response.as_ref().and_then(|said| said.oauth_error.as_deref()),
    });
    let mut labels: Map<String, Value> =
        view.rest().into_iter().map(|(name, text)| (name.to_owned(), json!(text))).collect();
    labels.insert("issuer".into(), json!(issuer));
    labels.insert("token_exp".into(), json!(what.and_then(|what| what.not_after.as_deref())));
    let parts = [happened, who, what_for, json!({"labels": labels})];
    let members = parts.into_iter().filter_map(|part| match part {
        Value::Object(members) => Some(members),
        _ => None,
    });
    members.flatten().collect::<Map<_, _>>().into()
}

fn category(matter: Matter) -> &'static str {
    match matter {
        Matter::Access | Matter::Entitlement => "authentication",
        Matter::Agent => "configuration",
        Matter::Api => "api",
        Matter::Identity => "iam",
    }
}

fn types(view: &View<'_>) -> Vec<&'static str> {
    let kind = view.record.entry.event.kind;
    let is = match view.matter {
        Matter::Access if matches!(kind, EventType::CredentialReturn | EventType::CredentialRevoke) => "end",
        Matter::Access => "start",
        Matter::Agent | Matter::Identity => "change",
        Matter::Api => "access",
        Matter::Entitlement => "info",
    };
    match view.record.entry.event.outcome {
        Outcome::Denied => vec![is, "denied"],
        Outcome::Failed | Outcome::Success => vec![is],
    }
}

//! CEF version 0. In goes a record; out comes `CEF:0|vendor|product|version|event type|name|severity|extension`. Nothing that a
//! stranger chose is in the header, and everything is escaped: pipes and backslashes there, equals signs, backslashes and the
//! ends of lines in the extension.

use std::fmt::Write as _;

use super::{Severity, View};
use crate::secret::is_obeyed;

pub(super) fn line(view: &View<'_>) -> String {
    let (record, entry) = (view.record, &view.record.entry);
    let mut out = String::from("CEF:0");
    let severity = match view.severity {
        Severity::Informational => "3",
        Severity::Medium => "6",
        Severity::High => "8",
        Severity::Critical => "10",
    };
    let name = view.kind.replace('_', " ");
    for field in ["Keybearer", "keybearer", &record.agent.version, &view.kind, &name, severity] {
        out.push('|');
        put(field, &['|', '\\'], &mut out);
    }
    out.push('|');
    let (peer, what) = (entry.peer.as_ref(), entry.credential.as_ref());
    let exe = peer.and_then(|peer| peer.exe.as_ref());
    let issuer = what.and_then(|what| what.issuer.as_deref());
    let text = |text: Option<&str>| text.map(str::to_owned);
    let rest = view.rest();
    let rest_of = |name: &str| rest.iter().find(|(of, _)| *of == name).and_then(|(_, text)| text.clone());
    let target = entry.target.as_ref();
    let rule = entry.policy.as_ref().map(|policy| policy.rule.as_deref().unwrap_or("deny by default"));
    let mut fields: Vec<(&str, Option<String>)> = vec![
        ("rt", Some(view.at.as_millisecond().to_string())),
        ("outcome", Some(view.outcome.clone())),
        ("reason", entry.event.reason.clone()),
        ("suid", entry.workload.as_ref().map(|who| who.id.clone())),
        ("spid", peer.map(|peer| peer.pid.to_string())),
        ("sproc", text(exe.and_then(|exe| exe.path_hint.as_deref()))),
        ("fileHash", text(exe.and_then(|exe| exe.sha256.as_deref()))),
        ("dvchost", Some(record.host.name.clone())),
        ("deviceExternalId", record.host.id.clone()),
        ("dhost", text(view.target_host().or(issuer))),
        ("externalId", Some(entry.exchange_id.0.to_string())),
        ("act", entry.policy.as_ref().map(|policy| policy.decision.clone())),
        ("requestMethod", target.map(|target| target.htm.clone())),
        (
            "request",
            target.map(|target| format!("{}{}", target.origin, target.path.as_deref().unwrap_or_default())),
        ),
        ("msg", Some(view.record.entry.sentence())),
    ];
    let numbers = [
        ("cn1", "tokenLifeSeconds", what.and_then(|what| what.ttl_s)),
        ("cn2", "sourceUid", peer.map(|peer| u64::from(peer.uid))),
        ("cn3", "sequence", Some(record.seq)),
    ];
    let strings = [
        ("cs1", "rule", text(rule)),
        ("cs2", "tokenExpires", what.and_then(|what| what.not_after.clone())),
        ("cs3", "level", rest_of("level")),
        ("cs4", "unit", rest_of("unit").or_else(|| peer.and_then(|peer| peer.container.clone()))),
        ("cs5", "credential", rest_of("credential")),
        ("cs6", "binding", bound(what.and_then(|what| what.binding.as_deref()), rest_of("thumbprint"))),
        ("flexString1", "ledger", rest_of("ledger")),
        ("flexString2", "traceId", entry.trace_id.clone()),
    ];
    let labels = ["cn1Label", "cn2Label", "cn3Label"].into_iter();
    for ((key, label, value), label_key) in numbers.into_iter().zip(labels) {
        if let Some(value) = value {
            fields.extend([(key, Some(value.to_string())), (label_key, Some(label.to_owned()))]);
        }
    }
    let labels = [
        "cs1Label",
        "cs2Label",
        "cs3Label",
        "cs4Label",
        "cs5Label",
        "cs6Label",
        "flexString1Label",
        "flexString2Label",
    ];
    for ((key, label, value), label_key) in strings.into_iter().zip(labels) {
        if value.is_some() {
            fields.extend([(key, value), (label_key, Some(label.to_owned()))]);
        }
    }
    let mut first = true;
    for (key, value) in fields.iter().filter_map(|(key, value)| Some((key, value.as_ref()?))) {
        if !std::mem::take(&mut first) {
            out.push(' ');
        }
        out.push_str(key);
        out.push('=');
        put(value, &['=', '\\'], &mut out);
    }
    out
}

/// The kind of the binding, and the key that it binds to.
fn bound(binding: Option<&str>, thumbprint: Option<String>) -> Option<String> {
    let binding = binding?;
    Some(thumbprint.map_or_else(|| binding.to_owned(), |thumbprint| format!("{binding} {thumbprint}")))
}

/// Appends `text` on one line, with a backslash before each of `special`. The format has an escape for line feeds and carriage
/// returns; what else could end a line is spelled out as JSON would.
fn put(text: &str, special: &[char], out: &mut String) {
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            c if special.contains(&c) => out.extend(['\\', c]),
            c if is_obeyed(c) => {
                // Writing to a String cannot fail.
                let _ = write!(out, "\\\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
}

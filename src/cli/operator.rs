//! `keybearer status`, `explain`, `reload`, `rotate`, `revoke`, `disable`, `enable`: an operator's questions and orders.

use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};

use super::{Exit, OperatorSocket, drop_in::said, paint, print_json};
use crate::{
    client::operator,
    proto::v1::{
        ActResponse, DisableRequest, EnableRequest, ExplainRequest, ExplainResponse, ReloadRequest,
        RevokeRequest, RotateRequest, StatusRequest, StatusResponse,
    },
};

#[derive(Args, Debug)]
pub(super) struct StatusCommand {
    /// For machines.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: OperatorSocket,
}

#[derive(Args, Debug)]
pub(super) struct Explain {
    /// The process.
    #[arg(long, required_unless_present = "unit")]
    pid: Option<u32>,
    /// Instead, a systemd unit, as if the service manager asked for it before its program runs (LoadCredential=).
    #[arg(long, conflicts_with = "pid")]
    unit: Option<String>,
    /// The credential; without it, only who the process is.
    name: Option<String>,
    /// For machines.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: OperatorSocket,
}

#[derive(Args, Debug)]
pub(super) struct Rotate {
    /// The identity.
    identity: String,
    #[command(flatten)]
    socket: OperatorSocket,
}

#[derive(Args, Debug)]
pub(super) struct Revoke {
    /// The identity.
    identity: String,
    /// Only this credential of it.
    credential: Option<String>,
    /// Destroy its keys too, that of its certificate among them, at once. Nothing is issued to it until the new one is registered.
    #[arg(long)]
    keys: bool,
    #[command(flatten)]
    socket: OperatorSocket,
}

#[derive(Args, Debug)]
pub(super) struct Disable {
    /// The identity.
    identity: String,
    /// Why; it is on record.
    #[arg(long)]
    reason: String,
    #[command(flatten)]
    socket: OperatorSocket,
}

#[derive(Args, Debug)]
pub(super) struct Enable {
    /// The identity.
    identity: String,
    #[command(flatten)]
    socket: OperatorSocket,
}

impl Rotate {
    pub(super) async fn run(self) -> Result<(), Exit> {
        let request = RotateRequest { identity: self.identity };
        told(operator(&self.socket.socket).await?.rotate(request).await?.into_inner())
    }
}

impl Revoke {
    pub(super) async fn run(self) -> Result<(), Exit> {
        let credential = self.credential.unwrap_or_default();
        let request = RevokeRequest { identity: self.identity, credential, keys: self.keys };
        told(operator(&self.socket.socket).await?.revoke(request).await?.into_inner())
    }
}

impl Disable {
    pub(super) async fn run(self) -> Result<(), Exit> {
        let request = DisableRequest { identity: self.identity, reason: self.reason };
        told(operator(&self.socket.socket).await?.disable(request).await?.into_inner())
    }
}

impl Enable {
    pub(super) async fn run(self) -> Result<(), Exit> {
        let request = EnableRequest { identity: self.identity };
        told(operator(&self.socket.socket).await?.enable(request).await?.into_inner())
    }
}

pub(super) fn told(answer: ActResponse) -> Result<(), Exit> {
    let words = answer.messages.join("\n");
    if answer.done { paint::line(&words) } else { Err(Exit::new(Exit::DATA, words)) }
}

pub(super) async fn reload(socket: PathBuf) -> Result<(), Exit> {
    let answer = operator(&socket).await?.reload(ReloadRequest {}).await?.into_inner();
    if answer.reloaded {
        return paint::line(&answer.messages.join("\n"));
    }
    Err(Exit::new(Exit::CONFIG, format!("the old settings stay:\n{}", answer.messages.join("\n"))))
}

impl StatusCommand {
    pub(super) async fn run(self) -> Result<(), Exit> {
        let status = operator(&self.socket.socket).await?.status(StatusRequest {}).await?.into_inner();
        if self.json { print_json(&as_json(&status)) } else { print(&status) }
    }
}

fn seconds(length: Option<prost_types::Duration>) -> Option<i64> {
    length.map(|length| length.seconds)
}

/// A moment as people and machines read it.
fn day(at: prost_types::Timestamp) -> String {
    jiff::Timestamp::from_second(at.seconds).map(|at| at.to_string()).unwrap_or_default()
}

fn as_json(status: &StatusResponse) -> Value {
    let ledger = status.ledger.clone().unwrap_or_default();
    json!({
        "version": status.version,
        "environment": status.environment,
        "config_digest": status.config_digest,
        "uptime_s": seconds(status.uptime),
        "max_level": status.max_level,
        "max_level_why": status.max_level_why,
        "connections": status.connections,
        "turned_away": status.turned_away,
        "identities": status.identities.iter().map(|it| json!({
            "name": it.name, "owner": it.owner, "assurance": it.assurance, "credentials": it.credentials,
            "kid": it.kid, "algorithm": it.algorithm,
        })).collect::<Vec<_>>(),
        "issuers": status.issuers.iter().map(|it| json!({
            "name": it.name, "url": it.url, "state": it.state, "failures": it.failures,
            "next_try_s": seconds(it.next_try), "skew_ms": it.skew_ms, "last_error": it.last_error,
        })).collect::<Vec<_>>(),
        "shelf": status.shelf.iter().map(|it| json!({
            "identity": it.identity, "credential": it.credential, "issuer": it.issuer,
            "expires_in_s": seconds(it.expires_in), "refresh_in_s": seconds(it.refresh_in),
            "scope": it.scope, "fingerprint": it.fingerprint, "last_error": it.last_error,
        })).collect::<Vec<_>>(),
        "ledger": {"directory": ledger.directory, "records": ledger.records, "healthy": ledger.healthy},
        "sealed": status.sealed.iter().map(|it| json!({
            "identity": it.identity, "credential": it.credential, "fields": it.fields,
            "since": it.since.map(day), "until": it.until.map(day), "reason": it.reason, "owner": it.owner,
            "systemd_credential": it.systemd_credential, "fingerprint": it.fingerprint, "trouble": it.trouble,
        })).collect::<Vec<_>>(),
        "warnings": status.warnings,
        "reload_error": status.reload_error,
    })
}

fn print(status: &StatusResponse) -> Result<(), Exit> {
    let uptime = paint::length(seconds(status.uptime).unwrap_or(0));
    paint::line(&format!(
        "{} {}  environment {}, up {uptime}, {} connected, settings {}",
        paint::bold("keybearer"),
        status.version,
        status.environment,
        status.connections,
        status.config_digest.get(..12).unwrap_or_default()
    ))?;
    paint::line(&format!("evidence up to {}: {}", status.max_level, status.max_level_why))?;
    let ledger = status.ledger.clone().unwrap_or_default();
    let health = if ledger.healthy { paint::good("healthy") } else { paint::bad("cannot be written") };
    paint::line(&format!("ledger   {health}, {} records in {}", ledger.records, ledger.directory))?;
    // What somebody has to do comes before what is as it should be.
    if !status.reload_error.is_empty() {
        paint::line(&format!(
            "{}\n{}",
            paint::bad("the settings in force are older than the file:"),
            status.reload_error
        ))?;
    }
    for warning in &status.warnings {
        paint::line(&format!("{} {warning}", paint::bold("note")))?;
    }
    section(
        "issuers",
        status.issuers.iter().map(|it| {
            let next = seconds(it.next_try)
                .map(|wait| format!("next try in {}", paint::length(wait)))
                .unwrap_or_default();
            vec![it.name.clone(), it.state.clone(), it.url.clone(), next, it.last_error.clone()]
        }),
    )?;
    section(
        "identities",
        status.identities.iter().map(|it| {
            let kid = it.kid.get(..8).unwrap_or_default();
            vec![
                it.name.clone(),
                it.assurance.clone(),
                format!("{} {kid}", it.algorithm),
                it.credentials.join(" "),
                it.owner.clone(),
                match (&*it.disabled, &*it.next_kid) {
                    ("", "") => String::new(),
                    ("", next) => format!("next key {} is published", next.get(..8).unwrap_or_default()),
                    (why, _) => paint::bad(&format!("disabled: {why}")),
                },
            ]
        }),
    )?;
    section(
        "live credentials",
        status.shelf.iter().map(|it| {
            let left = seconds(it.expires_in)
                .map_or("none".into(), |left| format!("ends in {}", paint::length(left)));
            let refresh = seconds(it.refresh_in)
                .map(|wait| format!("refresh in {}", paint::length(wait)))
                .unwrap_or_default();
            vec![
                format!("{}.{}", it.identity, it.credential),
                it.issuer.clone(),
                left,
                refresh,
                it.last_error.clone(),
            ]
        }),
    )?;
    if !status.sealed.is_empty() {
        section(
            "static secrets, until they are dynamic",
            status.sealed.iter().map(|it| {
                let since = match (it.since, &*it.systemd_credential) {
                    (Some(since), _) => format!("sealed {}", day(since)),
                    (None, "") => paint::bad("not there"),
                    (None, name) => format!("systemd credential {name}"),
                };
                vec![
                    format!("{}.{}", it.identity, it.credential),
                    it.fields.join(" "),
                    since,
                    format!("denied from {}", it.until.map(day).unwrap_or_default()),
                    it.reason.clone(),
                    it.owner.clone(),
                ]
            }),
        )?;
    }
    Ok(())
}

fn section(name: &str, rows: impl Iterator<Item = Vec<String>>) -> Result<(), Exit> {
    let rows: Vec<Vec<String>> = rows.collect();
    paint::line(&paint::bold(name))?;
    if rows.is_empty() { paint::line("  none") } else { paint::line(paint::table(&rows).trim_end()) }
}

impl Explain {
    pub(super) async fn run(self) -> Result<(), Exit> {
        let slice =
            self.unit.as_ref().and_then(|unit| said(&["show", "--property=Slice", "--value", "--", unit]));
        let request = ExplainRequest {
            pid: self.pid.unwrap_or_default(),
            name: self.name.clone().unwrap_or_default(),
            unit: self.unit.clone().unwrap_or_default(),
            slice: slice.map(|slice| slice.trim().to_owned()).unwrap_or_default(),
        };
        let answer = operator(&self.socket.socket).await?.explain(request).await?.into_inner();
        if self.json {
            let whom = match &self.unit {
                Some(unit) => ("unit", json!(unit)),
                None => ("pid", json!(self.pid)),
            };
            return print_json(&explained_json(whom, &answer));
        }
        let whom = match &self.unit {
            Some(unit) => format!("{unit}, for which the service manager asks,"),
            None => format!("pid {}", self.pid.unwrap_or_default()),
        };
        let asked =
            self.name.as_deref().map_or("an identity".to_owned(), |name| format!("credential {name}"));
        let verdict =
            if answer.granted { paint::good("yes") } else { paint::bad(&format!("no, {}", answer.reason)) };
        let who = if answer.identity.is_empty() { "nobody".to_owned() } else { answer.identity.clone() };
        paint::line(&format!(
            "{whom} is {} at level {}; {asked}: {verdict}",
            paint::bold(&who),
            answer.level
        ))?;
        if !answer.rule.is_empty() {
            paint::line(&format!("rule {}", answer.rule))?;
        }
        for missing in &answer.missing {
            paint::line(&format!("  missing: {missing}"))?;
        }
        for near in answer.near.iter().filter(|_| answer.identity.is_empty()) {
            paint::line(&format!(
                "not {} ({} of {} selectors missed):",
                paint::bold(&near.identity),
                near.missed.len(),
                near.selectors
            ))?;
            for missed in &near.missed {
                paint::line(&format!("  {missed}"))?;
            }
        }
        if !answer.remedy.is_empty() {
            paint::line(&format!("what to do: {}", answer.remedy))?;
        }
        paint::line(&paint::bold("evidence"))?;
        let rows: Vec<Vec<String>> = answer
            .evidence
            .iter()
            .map(|fact| {
                let missing = || format!("- {}", fact.missing);
                vec![fact.name.clone(), if fact.missing.is_empty() { fact.value.clone() } else { missing() }]
            })
            .collect();
        paint::line(paint::table(&rows).trim_end())
    }
}

fn explained_json((whom, is): (&str, Value), answer: &ExplainResponse) -> Value {
    let evidence: serde_json::Map<String, Value> = answer
        .evidence
        .iter()
        .map(|fact| {
            let value =
                if fact.missing.is_empty() { json!(fact.value) } else { json!({"missing": fact.missing}) };
            (fact.name.clone(), value)
        })
        .collect();
    json!({
        whom: is,
        "granted": answer.granted,
        "reason": answer.reason,
        "remedy": answer.remedy,
        "identity": answer.identity,
        "rule": answer.rule,
        "level": answer.level,
        "missing": answer.missing,
        "near": answer.near.iter().map(|near| json!({
            "identity": near.identity, "selectors": near.selectors, "missed": near.missed,
        })).collect::<Vec<_>>(),
        "evidence": evidence,
    })
}

//! `keybearer explain`, `reload`, `rotate`, `revoke`, `disable`, `enable`: an operator's questions and orders.

use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};

use super::{Exit, OperatorSocket, drop_in::said, paint, print_json};
use crate::{
    client::operator,
    proto::v1::{
        ActResponse, DisableRequest, EnableRequest, ExplainRequest, ExplainResponse, NearMiss, ReloadRequest,
        RevokeRequest, RotateRequest,
    },
};

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
    /// The scope that it asks for, if not for all of it.
    #[arg(long, num_args = 1.., conflicts_with = "unit")]
    scope: Vec<String>,
    /// The exported socket that it asks at, by name or path, if it is not one of the agent's own.
    #[arg(long, value_name = "EXPORT", conflicts_with = "unit")]
    at: Option<String>,
    /// Tell of every identity that it is not, not only of the nearest.
    #[arg(long)]
    all: bool,
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

impl Explain {
    pub(super) async fn run(self) -> Result<(), Exit> {
        let slice =
            self.unit.as_ref().and_then(|unit| said(&["show", "--property=Slice", "--value", "--", unit]));
        let request = ExplainRequest {
            pid: self.pid.unwrap_or_default(),
            name: self.name.clone().unwrap_or_default(),
            unit: self.unit.clone().unwrap_or_default(),
            slice: slice.map(|slice| slice.trim().to_owned()).unwrap_or_default(),
            scope: self.scope.clone(),
            export: self.at.clone().unwrap_or_default(),
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
        paint::line(explained(&whom, self.name.as_deref(), self.all, &answer).trim_end())
    }
}

/// How many identities are told of in full, unless all are asked for.
const NEAREST: usize = 3;

/// What an operator reads who was woken for it: the answer, what missed, what to change, and only then all that is known.
fn explained(whom: &str, name: Option<&str>, all: bool, answer: &ExplainResponse) -> String {
    let asked = name.map_or("an identity".to_owned(), |name| format!("credential {name}"));
    let verdict = match answer.granted {
        true => paint::good("yes"),
        false => paint::bad(&format!("no, {}", answer.reason)),
    };
    let who = if answer.identity.is_empty() { "nobody" } else { &answer.identity };
    let mut lines =
        vec![format!("{whom} is {} at level {}; {asked}: {verdict}", paint::bold(who), answer.level)];
    if !answer.rule.is_empty() {
        lines.push(format!("rule {}", answer.rule));
    }
    let missing = if answer.granted { "" } else { "missing: " };
    lines.extend(answer.missing.iter().map(|it| format!("  {missing}{it}")));
    let near: &[NearMiss] = if answer.identity.is_empty() { &answer.near } else { &[] };
    let shown = if all { near.len() } else { near.len().min(NEAREST) };
    for near in near.iter().take(shown) {
        let (missed, of) = (near.missed.len(), near.selectors);
        lines.push(format!("not {}, {missed} of {of} selectors missed:", paint::bold(&near.identity)));
        for (at, missed) in near.missed.iter().enumerate() {
            lines.push(format!("  {missed}"));
            // With one that missed, what to do is said once, below.
            if let Some(remedy) = near.remedies.get(at).filter(|_| near.missed.len() > 1) {
                lines.push(format!("    {}", paint::dim(remedy)));
            }
        }
    }
    match near.len() - shown {
        0 => {}
        1 => lines.push("and 1 other identity, further off (--all)".into()),
        more => lines.push(format!("and {more} other identities, further off (--all)")),
    }
    if !answer.remedy.is_empty() {
        lines.push(format!("{} {}", paint::bold("what to do:"), answer.remedy));
    }
    if answer.granted {
        lines.push("if it was refused all the same, its record says why: keybearer audit tail".into());
    }
    lines.push(paint::bold("evidence"));
    let rows: Vec<Vec<String>> = answer
        .evidence
        .iter()
        .map(|fact| {
            let missing = || format!("- {}", fact.missing);
            vec![fact.name.clone(), if fact.missing.is_empty() { fact.value.clone() } else { missing() }]
        })
        .collect();
    lines.push(paint::table(&rows));
    lines.join("\n")
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
            "remedies": near.remedies,
        })).collect::<Vec<_>>(),
        "evidence": evidence,
    })
}

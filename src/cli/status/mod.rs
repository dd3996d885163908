//! `keybearer status`: how the agent, its issuers, what it keeps live and its ledger are. In goes the answer of a running agent; out
//! comes one calm table (`table.rs`), the same again whenever it changes (`watch.rs`), or JSON for machines.

mod table;
mod watch;

use std::io::IsTerminal as _;

use clap::Args;
use serde_json::{Value, json};

use self::table::{Look, table};
use super::{Exit, OperatorSocket, paint, print_json};
use crate::{
    client::operator,
    proto::v1::{StatusRequest, StatusResponse},
};

#[derive(Args, Debug)]
pub(super) struct StatusCommand {
    /// For machines.
    #[arg(long)]
    json: bool,
    /// Go on looking: on a terminal the table is kept up to date; elsewhere it is printed again when more than times and counts
    /// changed. An agent that goes away is waited for. Ctrl-C ends it.
    #[arg(long, short, conflicts_with = "json")]
    watch: bool,
    #[command(flatten)]
    socket: OperatorSocket,
}

impl StatusCommand {
    pub(super) async fn run(self) -> Result<(), Exit> {
        if self.watch {
            return watch::run(&self.socket.socket).await;
        }
        let status = operator(&self.socket.socket).await?.status(StatusRequest {}).await?.into_inner();
        if self.json {
            return print_json(&as_json(&status));
        }
        paint::line(&table(&status, &look()).join("\n"))
    }
}

/// What whoever reads this can be shown.
fn look() -> Look {
    let terminal = std::io::stdout().is_terminal();
    let columns = rustix::termios::tcgetwinsize(std::io::stdout()).ok().map(|size| usize::from(size.ws_col));
    let columns = columns.filter(|columns| terminal && *columns > 0);
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().filter_map(std::env::var_os);
    let locale = locale.into_iter().find(|value| !value.is_empty()).unwrap_or_default();
    let locale = locale.to_string_lossy().to_ascii_lowercase();
    Look {
        painted: paint::wanted(),
        ascii: !locale.contains("utf-8") && !locale.contains("utf8"),
        // A sentence is one line for whoever searches it, and words in lines for whoever reads them.
        wrap: terminal.then(|| columns.unwrap_or(80).clamp(40, table::WIDTH)),
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

//! `keybearer audit`: the ledger, without an agent.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Subcommand};
use serde_json::json;

use super::{ConfigFile, Exit, agent::mistaken, environment, paint, print_json};
use crate::{
    audit::{Fault, Record, read, verify},
    clock::SystemClock,
    config::load,
    keys::Verifier,
};

#[derive(Args, Debug)]
pub(super) struct Audit {
    #[command(subcommand)]
    command: AuditCommand,
}

#[derive(Debug, Subcommand)]
enum AuditCommand {
    /// Who, what, from where, under which decision: one record in words.
    Explain {
        #[command(flatten)]
        place: Place,
        /// The record's number.
        seq: u64,
    },
    /// The last records, and those to come.
    Tail {
        #[command(flatten)]
        place: Place,
        /// How many of the last.
        #[arg(short = 'n', long, default_value_t = 10)]
        lines: u64,
        /// Go on as records are added.
        #[arg(short, long)]
        follow: bool,
        /// Only this exchange.
        #[arg(long, value_name = "ID")]
        exchange: Option<String>,
        /// The records as they are.
        #[arg(long)]
        json: bool,
    },
    /// Hold every record against the one before and all against the signed checkpoints.
    Verify {
        #[command(flatten)]
        place: Place,
        /// The checkpoint key to trust (`checkpoint.pub`, kept elsewhere), instead of the one beside the ledger.
        #[arg(long, value_name = "FILE")]
        key: Option<PathBuf>,
        /// For machines.
        #[arg(long)]
        json: bool,
    },
}

/// Where the ledger is.
#[derive(Args, Debug)]
struct Place {
    #[command(flatten)]
    file: ConfigFile,
    /// The ledger's directory, instead of the one the settings name.
    #[arg(long, value_name = "DIRECTORY")]
    dir: Option<PathBuf>,
}

impl Place {
    fn directory(self) -> Result<PathBuf, Exit> {
        match self.dir {
            Some(dir) => Ok(dir),
            None => {
                let settings = load(&self.file.config, &environment(), SystemClock::shared().wall());
                Ok(settings.map_err(mistaken)?.audit.directory)
            }
        }
    }
}

impl Audit {
    pub(super) fn run(self) -> Result<(), Exit> {
        match self.command {
            AuditCommand::Explain { place, seq } => {
                let directory = place.directory()?;
                let record = read(&directory, seq).map_err(|error| unreadable(&directory, &error))?.next();
                let record = record.filter(|record| record.seq == seq);
                let record =
                    record.ok_or_else(|| Exit::new(Exit::DATA, format!("there is no record {seq}")))?;
                paint::line(record.explain().trim_end())
            }
            AuditCommand::Tail { place, lines, follow, exchange, json } => {
                tail(&place.directory()?, lines, follow, exchange.as_deref(), json)
            }
            AuditCommand::Verify { place, key, json } => verified(place, key, json),
        }
    }
}

fn verified(place: Place, key: Option<PathBuf>, json: bool) -> Result<(), Exit> {
    let directory = place.directory()?;
    let trusted = match key {
        Some(file) => {
            let text = std::fs::read_to_string(&file)
                .map_err(|error| Exit::new(Exit::IO, format!("{}: {error}", file.display())))?;
            Some(
                Verifier::parse(&text)
                    .map_err(|error| Exit::new(Exit::DATA, format!("{}: {error}", file.display())))?,
            )
        }
        None => None,
    };
    match verify(&directory, trusted.as_ref()) {
        Ok(report) if json => print_json(&json!({
            "ok": true, "records": report.records, "checkpoints": report.checkpoints, "signed": report.signed,
            "torn": report.torn, "checkpoint": report.last,
        })),
        Ok(report) => {
            let tail = report.records - report.signed;
            paint::line(&format!(
                "{}: {} records whole, {} checkpoints, {tail} records after the last{}",
                directory.display(),
                report.records,
                report.checkpoints,
                if report.torn { "; the end is torn and will be mended at the next start" } else { "" }
            ))
        }
        Err(error) => {
            if json {
                print_json(&json!({"ok": false, "seq": error.seq, "fault": error.fault.to_string()}))?;
            }
            let code = if matches!(error.fault, Fault::Unreadable { .. }) { Exit::IO } else { Exit::DATA };
            Err(Exit::new(code, format!("{}: {error}", directory.display())))
        }
    }
}

fn tail(
    directory: &std::path::Path,
    lines: u64,
    follow: bool,
    exchange: Option<&str>,
    json: bool,
) -> Result<(), Exit> {
    let open = |from| read(directory, from).map_err(|error| unreadable(directory, &error));
    let mut next = 0;
    let mut last: std::collections::VecDeque<Record> = Default::default();
    for record in open(0)? {
        next = record.seq + 1;
        if exchange.is_none_or(|id| record.entry.exchange_id.0.to_string() == id) {
            last.push_back(record);
            if last.len() as u64 > lines {
                last.pop_front();
            }
        }
    }
    if last.is_empty() && !follow {
        return Err(Exit::new(Exit::DATA, "there is no such record"));
    }
    for record in &last {
        show(record, json)?;
    }
    if !follow {
        return Ok(());
    }
    loop {
        // A file has no event for "longer" that reaches every file system; twice a second is soon enough for eyes.
        std::thread::sleep(Duration::from_millis(500));
        for record in open(next)? {
            next = record.seq + 1;
            if exchange.is_none_or(|id| record.entry.exchange_id.0.to_string() == id) {
                show(&record, json)?;
            }
        }
    }
}

fn show(record: &Record, json: bool) -> Result<(), Exit> {
    if json {
        let line =
            serde_json::to_string(record).map_err(|error| Exit::new(Exit::SOFTWARE, error.to_string()))?;
        return paint::line(&line);
    }
    let entry = &record.entry;
    let word = |value: serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let kind = word(json!(entry.event.kind));
    let outcome = word(json!(entry.event.outcome));
    let who = entry.workload.as_ref().map_or("-", |who| who.id.as_str());
    let what = entry.credential.as_ref().and_then(|what| what.name.as_deref()).unwrap_or("-");
    let from =
        entry.peer.as_ref().map_or_else(|| "-".into(), |peer| format!("pid {} uid {}", peer.pid, peer.uid));
    let reason = entry.event.reason.as_deref().unwrap_or_default();
    let painted = match outcome.as_str() {
        "success" => outcome,
        _ => paint::bad(&outcome),
    };
    let detail = entry.detail.as_deref().unwrap_or_default();
    paint::line(
        format!(
            "{:>6} {} {kind} {painted} {reason} {who} {what} {from} {}",
            record.seq,
            record.time,
            paint::dim(detail)
        )
        .trim_end(),
    )
}

fn unreadable(directory: &std::path::Path, error: &std::io::Error) -> Exit {
    Exit::new(
        Exit::IO,
        format!("{}: {error}: is this the ledger's directory, and are you its owner?", directory.display()),
    )
}

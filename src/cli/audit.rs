//! `keybearer audit`: the ledger, without an agent.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, Subcommand, ValueEnum};
use jiff::Timestamp;
use serde_json::json;

use super::{ConfigFile, Exit, agent::mistaken, environment, paint, print_json};
use crate::{
    audit::{
        Fault, Format, ProveError, Record, Standing, Timeless, every_line, last, line, prove, read, verify,
    },
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
    /// The records as another system takes them, one a line. What is not whole is not exported.
    Export {
        #[command(flatten)]
        place: Place,
        /// Whose words.
        #[arg(long, value_enum)]
        format: ExportFormat,
        /// From this record on, or from this time on (RFC 3339).
        #[arg(long, value_name = "NUMBER|TIME", value_parser = since)]
        since: Option<Since>,
        /// The checkpoint key to trust, as for verify.
        #[arg(long, value_name = "FILE")]
        key: Option<PathBuf>,
        /// Export also what is no longer vouched for. Each such line says so.
        #[arg(long)]
        anyway: bool,
    },
    /// That a record is in the ledger, for somebody who has only the checkpoint key (C2SP tlog-proof).
    Prove {
        #[command(flatten)]
        place: Place,
        /// The record's number.
        seq: u64,
        /// The checkpoint key to trust, as for verify.
        #[arg(long, value_name = "FILE")]
        key: Option<PathBuf>,
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

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ExportFormat {
    /// ArcSight Common Event Format.
    Cef,
    /// Elastic Common Schema, as JSON.
    Ecs,
    /// Open Cybersecurity Schema Framework, as JSON.
    Ocsf,
}

/// Where an export begins.
#[derive(Clone, Copy, Debug)]
enum Since {
    Record(u64),
    Time(Timestamp),
}

fn since(text: &str) -> Result<Since, String> {
    match text.parse() {
        Ok(seq) => Ok(Since::Record(seq)),
        Err(_) => text
            .parse()
            .map(Since::Time)
            .map_err(|_| "it is the number of a record, or a time such as 2026-01-31T08:00:00Z".into()),
    }
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
                match record {
                    Some(record) if record.seq == seq => paint::line(record.explain().trim_end()),
                    Some(kept) if kept.seq > seq => Err(Exit::new(
                        Exit::DATA,
                        format!(
                            "record {seq} was deleted by retention (audit.keep); records are kept from {} on, and of those \
                             before their hashes",
                            kept.seq
                        ),
                    )),
                    _ => Err(Exit::new(Exit::DATA, format!("there is no record {seq}"))),
                }
            }
            AuditCommand::Export { place, format, since, key, anyway } => {
                export(&place.directory()?, format, since, key, anyway)
            }
            AuditCommand::Prove { place, seq, key } => {
                let directory = place.directory()?;
                let proof = prove(&directory, seq, trusted(key)?.as_ref()).map_err(|error| {
                    let unread = matches!(&error, ProveError::Ledger(error) if matches!(error.fault, Fault::Unreadable { .. }));
                    let code = if unread { Exit::IO } else { Exit::DATA };
                    Exit::new(code, format!("{}: {error}", directory.display()))
                })?;
                paint::line(proof.trim_end_matches('\n'))
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
    let trusted = trusted(key)?;
    match verify(&directory, trusted.as_ref()) {
        Ok(report) if json => print_json(&json!({
            "ok": true, "records": report.records, "checkpoints": report.checkpoints, "signed": report.signed,
            "torn": report.torn, "files": report.files, "kept_from": report.kept_from, "checkpoint": report.last,
        })),
        Ok(report) => {
            let tail = report.records - report.signed;
            paint::line(&format!(
                "{}: {} records whole, {} checkpoints, {tail} records after the last{}{}",
                directory.display(),
                report.records,
                report.checkpoints,
                match report.kept_from {
                    0 => String::new(),
                    from => format!("; of those before {from}, the hashes are: retention took the records"),
                },
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

/// The key that checkpoints are held against, if one was named.
fn trusted(key: Option<PathBuf>) -> Result<Option<Verifier>, Exit> {
    let Some(file) = key else { return Ok(None) };
    let text = std::fs::read_to_string(&file)
        .map_err(|error| Exit::new(Exit::IO, format!("{}: {error}", file.display())))?;
    let verifier = Verifier::parse(&text)
        .map_err(|error| Exit::new(Exit::DATA, format!("{}: {error}", file.display())))?;
    Ok(Some(verifier))
}

/// Exports what is whole. A gatherer that is told of a break by the exit code has everything before it, and nothing after it
/// that somebody may have written instead.
fn export(
    directory: &Path,
    format: ExportFormat,
    since: Option<Since>,
    key: Option<PathBuf>,
    anyway: bool,
) -> Result<(), Exit> {
    let format = match format {
        ExportFormat::Cef => Format::Cef,
        ExportFormat::Ecs => Format::Ecs,
        ExportFormat::Ocsf => Format::Ocsf,
    };
    let broken = match verify(directory, trusted(key)?.as_ref()) {
        Ok(report) => Ok(report.records),
        Err(error) if matches!(error.fault, Fault::Unreadable { .. }) => {
            return Err(Exit::new(Exit::IO, format!("{}: {error}", directory.display())));
        }
        Err(error) => Err(error),
    };
    let sound = match &broken {
        Ok(records) => *records,
        Err(error) => error.sound,
    };
    let last = if broken.is_err() && anyway { u64::MAX } else { sound };
    let (mut unreadable_lines, mut block) = (Vec::new(), String::new());
    for (here, record) in every_line(directory).map_err(|error| unreadable(directory, &error))? {
        if here >= last {
            break;
        }
        let standing = if here < sound { Standing::Sound } else { Standing::Unsound };
        let told = record.ok_or(here).and_then(|record| {
            let wanted = match since {
                None => true,
                Some(Since::Record(first)) => here >= first,
                Some(Since::Time(first)) => record.time.parse::<Timestamp>().is_ok_and(|time| time >= first),
            };
            wanted.then(|| line(format, &record, standing)).transpose().map_err(|Timeless(seq)| seq)
        });
        match told {
            Ok(Some(told)) => {
                block.push_str(&told);
                block.push('\n');
            }
            Ok(None) => {}
            Err(seq) => unreadable_lines.push(seq),
        }
        // A write for each of a million lines would be most of the time.
        if block.len() > 64 << 10 {
            paint::verbatim(std::mem::take(&mut block).trim_end_matches('\n'))?;
        }
    }
    if !block.is_empty() {
        paint::verbatim(block.trim_end_matches('\n'))?;
    }
    let skipped = match unreadable_lines.as_slice() {
        [] => String::new(),
        [first, ..] => {
            format!(
                "; {} lines are no records and were left out, the first at {first}",
                unreadable_lines.len()
            )
        }
    };
    match broken {
        Ok(_) if unreadable_lines.is_empty() => Ok(()),
        Ok(_) => Err(Exit::new(Exit::DATA, format!("{}{skipped}", directory.display()))),
        Err(error) if anyway => {
            eprintln!(
                "keybearer: {}: {error}. Lines from record {sound} on are marked: nothing vouches for them{skipped}",
                directory.display()
            );
            Ok(())
        }
        Err(error) => Err(Exit::new(
            Exit::DATA,
            format!(
                "{}: {error}. Exported is what comes before record {sound}; --anyway exports the rest, marked{skipped}",
                directory.display()
            ),
        )),
    }
}

fn tail(directory: &Path, lines: u64, follow: bool, exchange: Option<&str>, json: bool) -> Result<(), Exit> {
    let asked = |record: &Record| exchange.is_none_or(|id| record.entry.exchange_id.0.to_string() == id);
    let most = usize::try_from(lines).unwrap_or(usize::MAX);
    let (last, mut next) = last(directory, most, asked).map_err(|error| unreadable(directory, &error))?;
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
        for record in read(directory, next).map_err(|error| unreadable(directory, &error))? {
            next = record.seq + 1;
            if asked(&record) {
                show(&record, json)?;
            }
        }
    }
}

fn show(record: &Record, json: bool) -> Result<(), Exit> {
    if json {
        let line =
            serde_json::to_string(record).map_err(|error| Exit::new(Exit::SOFTWARE, error.to_string()))?;
        return paint::verbatim(&line);
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

fn unreadable(directory: &Path, error: &std::io::Error) -> Exit {
    Exit::new(
        Exit::IO,
        format!("{}: {error}: is this the ledger's directory, and are you its owner?", directory.display()),
    )
}

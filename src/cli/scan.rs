//! `keybearer scan`: static secrets, where they stand and what takes their place. Never the secret, nor a part of it.

use std::{os::unix::ffi::OsStrExt as _, path::PathBuf};

use clap::Args;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Exit, paint, print_json};
use crate::{
    clock::{SystemClock, SystemDice},
    scan::{Accepted, Exposure, Finding, Looked, Pattern, Place, Salt, Scope, Weight, Why, shown, walk},
    secret::{hex, scrubbed},
};

/// What is named of what was not looked at, unless more is asked for.
const NAMED: usize = 10;

/// How many other places of a secret are named.
const PLACES: usize = 3;

#[derive(Args, Debug)]
pub(super) struct Scan {
    /// Files and directories to look through.
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Leave out what has such a name, or such a path if there is a slash in it (*, ** and ?). Can be given again.
    #[arg(long, value_name = "GLOB")]
    exclude: Vec<String>,
    /// A list of findings to live with for now: lines of ID, last day, owner, reason. At most 90 days ahead.
    #[arg(long, value_name = "FILE")]
    accept: Option<PathBuf>,
    /// The largest file that is read, in KiB.
    #[arg(long, value_name = "KIB", default_value_t = 1024, value_parser = clap::value_parser!(u64).range(1..=65_536))]
    max_size: u64,
    /// Name everything that was not looked at.
    #[arg(long)]
    verbose: bool,
    /// For machines.
    #[arg(long)]
    json: bool,
}

impl Scan {
    pub(super) fn run(self) -> Result<(), Exit> {
        let now = SystemClock::shared().wall();
        let accepted = match &self.accept {
            None => Accepted::default(),
            Some(file) => {
                let text = std::fs::read_to_string(file)
                    .map_err(|error| Exit::new(Exit::IO, format!("{}: {error}", shown(file))))?;
                Accepted::parse(&text, now)
                    .map_err(|error| Exit::new(Exit::CONFIG, format!("{}: {error}", shown(file))))?
            }
        };
        let exclude = self.exclude.iter().map(|text| Pattern::new(text)).collect();
        let scope = Scope { largest: self.max_size * 1024, exclude };
        let mut looked = walk(&self.paths, &scope, now, &Salt::new(&*SystemDice::shared()));
        let all = looked.findings.len();
        looked.findings.retain(|finding| !accepted.has(finding, now));
        let lived_with = all - looked.findings.len();
        if self.json {
            print_json(&machine(&looked, lived_with))?;
        } else {
            paint::line(&people(&looked, lived_with, self.verbose, now))?;
        }
        match looked.unread().count() {
            _ if !looked.findings.is_empty() => Err(Exit::new(Exit::DATA, "")),
            // Nothing was found, but not everything was looked at: that is not the same.
            0 => Ok(()),
            1 => Err(Exit::new(
                Exit::IO,
                "1 place could not be read: look as root, or leave it out (--exclude)",
            )),
            unread => Err(Exit::new(
                Exit::IO,
                format!("{unread} places could not be read: look as root, or leave them out (--exclude)"),
            )),
        }
    }
}

fn people(looked: &Looked, accepted: usize, verbose: bool, now: Timestamp) -> String {
    let mut out = vec![];
    let files = count(looked.files, "file");
    match looked.findings.len() {
        0 => out.push(format!("No static secret found in {files}.")),
        found => out.push(format!(
            "{} in {files}. What opens most, lies most open and is oldest comes first.",
            paint::bold(&count(found, "static secret"))
        )),
    }
    for (at, finding) in looked.findings.iter().enumerate() {
        out.push(String::new());
        out.extend(one(at + 1, finding, looked, now));
    }
    let mut rest = vec![];
    if accepted > 0 {
        rest.push(format!("{} accepted for now (--accept).", count(accepted, "finding")));
    }
    if looked.links > 0 {
        rest.push(format!("{} not followed.", count(looked.links, "link")));
    }
    // What is no text holds no settings; the rest is worth a look.
    let silent = |why: &Why| matches!(why, Why::Binary | Why::NoFile) && !verbose;
    let (quiet, told): (Vec<_>, Vec<_>) = looked.left_out.iter().partition(|(_, why)| silent(why));
    if !quiet.is_empty() {
        rest.push(format!("{} no text file (--verbose names them).", are(quiet.len())));
    }
    if !told.is_empty() {
        rest.push(format!("{} not looked at:", are(told.len())));
        let most = if verbose { told.len() } else { NAMED };
        let row = |(path, why): &&(PathBuf, Why)| vec![shown(path), paint::dim(&scrubbed(&why.words(), 200))];
        let rows: Vec<Vec<String>> = told.iter().take(most).map(row).collect();
        rest.extend(paint::table(&rows).lines().map(str::to_owned));
        if told.len() > most {
            rest.push(format!("  and {} more (--verbose names them)", told.len() - most));
        }
    }
    if !rest.is_empty() {
        out.push(String::new());
        out.extend(rest);
    }
    if !looked.findings.is_empty() {
        out.push(String::new());
        out.push("Whatever lay in a file has to be changed where it is checked, once its place is taken. For the files of one".into());
        out.push("program, keybearer migrate FILE... proposes how.".into());
    }
    out.join("\n")
}

/// One finding, in four lines or five.
fn one(number: usize, finding: &Finding, looked: &Looked, now: Timestamp) -> Vec<String> {
    let hit = &finding.hit;
    let place = match hit.place {
        Place::Text => String::new(),
        place => format!(" {}", place.words()),
    };
    let name = hit.name.as_deref().map(|name| format!("  {name}")).unwrap_or_default();
    let what = hit.kind.words();
    let what = match hit.kind.weight() {
        Weight::High => paint::bad(&what),
        _ => paint::bold(&what),
    };
    let age = now.duration_since(finding.modified).as_secs().max(0);
    let mut lines = vec![
        format!("{number:3}. {}:{}{}", shown(&finding.path), hit.line, paint::bold(&name)),
        format!("     {what}{place}"),
        format!("     {}; unchanged for {}", open_to(finding), paint::length(age)),
    ];
    if finding.repository {
        lines.push("     in a git repository, whose history may keep it".into());
    }
    let others = same(finding, looked);
    if !others.is_empty() {
        let shown: Vec<String> = others.iter().take(PLACES).map(|other| place_of(other)).collect();
        let more = others.len().saturating_sub(PLACES);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        lines.push(format!("     the same as in {}{more}", shown.join(", ")));
    }
    lines.extend(wrapped("     instead: ", hit.kind.next()));
    lines.push(paint::dim(&format!("     id {}", finding.id())));
    lines
}

/// In lines of a terminal's width, the later ones under the text of the first.
fn wrapped(head: &str, text: &str) -> Vec<String> {
    let mut lines = vec![head.to_owned()];
    for word in text.split(' ') {
        let line = lines.last_mut().expect("there is one from the start");
        if line.len() + word.len() > 100 {
            lines.push(format!("{}{word} ", " ".repeat(head.len())));
        } else {
            line.push_str(word);
            line.push(' ');
        }
    }
    lines.iter().map(|line| line.trim_end().to_owned()).collect()
}

fn open_to(finding: &Finding) -> String {
    let mode = finding.mode;
    match (finding.exposure, finding.hit.place) {
        (_, Place::UnitEnvironment) => "every user can read it: systemctl show tells it".into(),
        (_, Place::UnitArguments) => "every user can read it: /proc shows the command line".into(),
        (Exposure::Everybody, _) => format!("every user can read it (mode {mode:04o})"),
        (Exposure::Group, _) => format!("its group can read it (mode {mode:04o})"),
        (Exposure::Owner, _) => format!("its owner can read it (mode {mode:04o})"),
    }
}

fn same<'a>(finding: &Finding, looked: &'a Looked) -> Vec<&'a Finding> {
    let other = |one: &&Finding| {
        one.is_like(finding) && (&one.path, one.hit.line) != (&finding.path, finding.hit.line)
    };
    looked.findings.iter().filter(other).collect()
}

fn place_of(finding: &Finding) -> String {
    format!("{}:{}", shown(&finding.path), finding.hit.line)
}

fn machine(looked: &Looked, accepted: usize) -> Value {
    let path = |path: &PathBuf| {
        let plain = shown(path);
        // What was changed to be printed is told exactly too.
        let bytes = path.as_os_str().as_bytes();
        let exact = if plain.as_bytes() == bytes || plain.contains("[secret]") {
            Value::Null
        } else {
            json!(hex(bytes))
        };
        (plain, exact)
    };
    let findings = looked.findings.iter().map(|finding| {
        let (hit, (path, exact)) = (&finding.hit, path(&finding.path));
        let mut told = json!({
            "id": finding.id(),
            "path": path,
            "line": hit.line,
            "name": hit.name,
            "kind": hit.kind.code(),
            "what": hit.kind.words(),
            "where": hit.place.words(),
            "weight": hit.kind.weight().as_str(),
            "exposure": finding.exposure.as_str(),
            "mode": format!("{:04o}", finding.mode),
            "modified": finding.modified.to_string(),
            "repository": finding.repository,
            "same_as": same(finding, looked).into_iter().map(place_of).collect::<Vec<_>>(),
            "instead": hit.kind.next(),
        });
        if !exact.is_null() {
            told["path_hex"] = exact;
        }
        told
    });
    let left_out = looked.left_out.iter().map(|(left, why)| {
        let (path, exact) = path(left);
        let mut told = json!({ "path": path, "why": scrubbed(&why.words(), 200) });
        if !exact.is_null() {
            told["path_hex"] = exact;
        }
        told
    });
    json!({
        "findings": findings.collect::<Vec<_>>(),
        "accepted": accepted,
        "files": looked.files,
        "links": looked.links,
        "left_out": left_out.collect::<Vec<_>>(),
    })
}

fn are(number: usize) -> String {
    if number == 1 { "1 place is".into() } else { format!("{number} places are") }
}

fn count(number: usize, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}

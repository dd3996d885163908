//! `keybearer posture`: how safe this host's credentials are, from settings and ledger, without an agent.

use std::{
    collections::BTreeMap, io::Write as _, os::unix::fs::OpenOptionsExt as _, path::PathBuf, sync::Arc,
};

use clap::Args;
use jiff::{SignedDuration, Timestamp};

use super::{ConfigFile, Exit, agent::mistaken, environment, paint, print_json};
use crate::{
    audit::{Fault, read, verify},
    clock::SystemClock,
    config::{Settings, load},
    keys::Verifier,
    posture::{Asked, Heard, Report, Trust, Verdict, blast, page, report, text},
};

/// What is static, bridged, dynamic and bound, how strongly programs are attested, what to do first, and how the controls of OWASP and
/// NIST stand.
///
/// It reads the settings and the ledger and changes nothing. It ends with 65 if a control fails or the ledger was tampered with,
/// whatever is printed; with 0 if not.
#[derive(Args, Debug)]
pub(super) struct Posture {
    /// One identity only: what whoever takes it over has. Ends with 0, unless the ledger was tampered with.
    identity: Option<String>,
    #[command(flatten)]
    file: ConfigFile,
    /// The ledger's directory, instead of the one the settings name.
    #[arg(long, value_name = "DIRECTORY")]
    dir: Option<PathBuf>,
    /// The checkpoint key to trust (`checkpoint.pub`, kept elsewhere), instead of the one beside the ledger.
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// From when on use counts as use: days or hours before now.
    #[arg(long, value_name = "TIME", default_value = "30d", value_parser = days_or_hours)]
    since: SignedDuration,
    /// For machines.
    #[arg(long, conflicts_with = "html")]
    json: bool,
    /// Write one page of HTML, which needs nothing else to be read.
    #[arg(long, value_name = "FILE", conflicts_with = "identity")]
    html: Option<PathBuf>,
}

fn days_or_hours(given: &str) -> Result<SignedDuration, String> {
    let wrong = || "days or hours, such as 30d or 12h, up to 3650d".to_owned();
    let (number, hours) = match (given.strip_suffix('d'), given.strip_suffix('h')) {
        (Some(days), _) => (days, 24),
        (_, Some(hours)) => (hours, 1),
        _ => return Err(wrong()),
    };
    let number: i64 = number.parse().map_err(|_| wrong())?;
    match number.checked_mul(hours) {
        Some(hours @ 1..=87_600) => Ok(SignedDuration::from_hours(hours)),
        _ => Err(wrong()),
    }
}

impl Posture {
    pub(super) fn run(self) -> Result<(), Exit> {
        let now = SystemClock::shared().wall();
        let settings = load(&self.file.config, &environment(), now).map_err(mistaken)?;
        let since = now.checked_sub(self.since).unwrap_or(Timestamp::MIN);
        let (ledger, heard) = self.hear(&settings, since)?;
        let disabled = disabled(&settings)?;
        let (settings, disabled, heard, ledger) = (&settings, &disabled, &heard, &ledger);
        let made = report(&Asked { settings, disabled, heard, ledger, since, now });
        let tampered = matches!(ledger, Trust::Tampered { .. });
        if let Some(name) = &self.identity {
            let Some(one) = made.identity(name) else {
                let known: Vec<&str> = made.identities.iter().map(|one| one.name.as_str()).collect();
                let message = format!("there is no such identity; there are {}", known.join(", "));
                return Err(Exit::new(Exit::DATA, message));
            };
            if self.json {
                let mut told = json(one)?;
                told["ledger"] = json(&made.ledger)?;
                print_json(&told)?;
            } else {
                paint::line(&blast(&made, one))?;
            }
            return if tampered { Err(Exit::new(Exit::DATA, "")) } else { Ok(()) };
        }
        match &self.html {
            Some(file) => write_page(file, &made)?,
            None if self.json => print_json(&json(&made)?)?,
            None => paint::line(&text(&made))?,
        }
        match made.count(Verdict::Fail) {
            0 if !tampered => Ok(()),
            _ => Err(Exit::new(Exit::DATA, "")),
        }
    }

    /// What the sound part of the ledger tells.
    fn hear(&self, settings: &Settings, since: Timestamp) -> Result<(Trust, Heard), Exit> {
        let directory = self.dir.as_ref().unwrap_or(&settings.audit.directory);
        let unreadable = |why: &dyn std::fmt::Display| {
            let what = "is this the ledger's directory, and are you its owner?";
            Exit::new(Exit::IO, format!("{}: {why}: {what}", directory.display()))
        };
        let mut heard = Heard::since(since);
        match std::fs::metadata(directory) {
            // One that is named has to be there; one that the agent would make need not be yet.
            Err(error) if self.dir.is_none() && error.kind() == std::io::ErrorKind::NotFound => {
                return Ok((Trust::Missing, heard));
            }
            Err(error) => return Err(unreadable(&error)),
            Ok(_) => {}
        }
        let trusted = match &self.key {
            None => None,
            Some(file) => {
                let said = |error: &dyn std::fmt::Display| format!("{}: {error}", file.display());
                let text =
                    std::fs::read_to_string(file).map_err(|error| Exit::new(Exit::IO, said(&error)))?;
                Some(Verifier::parse(&text).map_err(|error| Exit::new(Exit::DATA, said(&error)))?)
            }
        };
        let (trust, most) = match verify(directory, trusted.as_ref()) {
            Ok(whole) => {
                heard = heard.signed(whole.signed);
                let (records, signed, key_given) = (whole.records, whole.signed, trusted.is_some());
                (Trust::Whole { records, signed, key_given }, whole.records)
            }
            Err(error) if matches!(error.fault, Fault::Unreadable { .. }) => {
                return Err(Exit::new(Exit::IO, format!("{}: {error}", directory.display())));
            }
            Err(error) => (Trust::Tampered { seq: error.seq, fault: error.fault.to_string() }, error.sound),
        };
        let records = read(directory, 0).map_err(|error| unreadable(&error))?;
        records.take_while(|record| record.seq < most).for_each(|record| heard.hear(&record));
        Ok((trust, heard))
    }
}

/// Those that an operator has switched off, as the agent keeps them.
fn disabled(settings: &Settings) -> Result<BTreeMap<Arc<str>, String>, Exit> {
    let path = &settings.kept.disabled;
    let said = |error: &dyn std::fmt::Display| {
        let what = "it names the identities that are switched off: are you its owner?";
        Exit::new(Exit::IO, format!("{}: {error}: {what}", path.display()))
    };
    match std::fs::read_to_string(path) {
        Ok(text) => serde_json::from_str(&text).map_err(|error| said(&error)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(BTreeMap::new()),
        Err(error) => Err(said(&error)),
    }
}

fn json(value: &impl serde::Serialize) -> Result<serde_json::Value, Exit> {
    serde_json::to_value(value).map_err(|error| Exit::new(Exit::SOFTWARE, error.to_string()))
}

/// Whoever reads the page learns where to look: it is its owner's alone, and takes the place of an older one whole.
fn write_page(file: &std::path::Path, made: &Report) -> Result<(), Exit> {
    let said = |error: std::io::Error| Exit::new(Exit::IO, format!("{}: {error}", file.display()));
    let mut beside = file.as_os_str().to_owned();
    beside.push(".new");
    let mut new = std::fs::OpenOptions::new();
    let _ = std::fs::remove_file(&beside);
    let mut new = new.write(true).create_new(true).mode(0o600).open(&beside).map_err(said)?;
    let done = new.write_all(page(made).as_bytes()).and_then(|()| std::fs::rename(&beside, file));
    done.map_err(|error| {
        // Half a page is no page.
        let _ = std::fs::remove_file(&beside);
        said(error)
    })?;
    let fails = made.count(Verdict::Fail);
    paint::line(&format!("{}: {} controls, {fails} fail", file.display(), made.controls.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_days_or_hours() {
        assert_eq!(days_or_hours("30d"), Ok(SignedDuration::from_hours(720)));
        assert_eq!(days_or_hours("12h"), Ok(SignedDuration::from_hours(12)));
        for bad in
            ["", "30", "d", "0d", "-1d", "3651d", "1.5d", "99999999999999999999h", "9223372036854775807d"]
        {
            assert!(days_or_hours(bad).is_err(), "{bad}");
        }
    }
}

//! `keybearer check`: the settings, read as the agent reads them; and the dates of certificates that only a CA can make anew.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::{Exit, environment, paint, print_json};
use crate::{
    clock::SystemClock,
    config::{DEFAULT_PATH, load},
    keys::{CertificateError, Ending, endings},
};

#[derive(Args, Debug)]
pub(super) struct Check {
    /// The settings.
    #[arg(env = "KEYBEARER_CONFIG", default_value = DEFAULT_PATH)]
    file: PathBuf,
    /// For machines.
    #[arg(long)]
    json: bool,
}

impl Check {
    pub(super) fn run(self) -> Result<(), Exit> {
        let now = SystemClock::shared().wall();
        let checked = load(&self.file, &environment(), now);
        // X5-03. The settings are sound all the same.
        let mut warnings: Vec<String> = checked.as_ref().map_or_else(
            |_| vec![],
            |settings| {
                let words = |ending: Result<Ending, CertificateError>| match ending {
                    Ok(ending) => ending.words(now),
                    Err(error) => Some(error.to_string()),
                };
                endings(&settings.certificates).filter_map(words).collect()
            },
        );
        let mistakes = checked.as_ref().err().map(Vec::as_slice).unwrap_or_default();
        // Whether the unit is given a credential, only the agent knows.
        if let Ok(settings) = &checked
            && !settings.kept.sealing.names_a_key()
        {
            warnings.push(format!(
                "unless the service manager gives the agent a sealing key (keybearer status tells), {}",
                settings.kept.sealing.advice()
            ));
        }
        if let Ok(settings) = &checked
            && settings.has_sealed()
            && !settings.kept.sealing.names_a_key()
        {
            let message = "unless the service manager gives the agent a sealing key, it does not start: kind = \"sealed\" needs one";
            warnings.push(message.into());
        }
        if self.json {
            let list: Vec<_> = mistakes
                .iter()
                .map(|it| json!({"file": it.file, "line": it.line, "key": it.key, "message": it.message}))
                .collect();
            print_json(&json!({"ok": checked.is_ok(), "mistakes": list, "warnings": warnings}))?;
        } else {
            for mistake in mistakes {
                paint::line(&mistake.to_string())?;
            }
            for warning in &warnings {
                paint::line(&format!("{} {warning}", paint::bold("note")))?;
            }
        }
        match checked {
            Ok(settings) if !self.json => {
                let identities = settings.policy.identities().count();
                paint::line(&format!(
                    "{}: sound, {identities} identities, {} issuers, environment {}",
                    self.file.display(),
                    settings.issuers.len(),
                    settings.environment
                ))
            }
            Ok(_) => Ok(()),
            Err(_) if self.json => Err(Exit::new(Exit::CONFIG, "")),
            Err(mistakes) => {
                Err(Exit::new(Exit::CONFIG, format!("{} to mend", count(mistakes.len(), "mistake"))))
            }
        }
    }
}

fn count(number: usize, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}

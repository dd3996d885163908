//! What is wrong with this host as a place for the agent, and what to do about it. In go the settings; out come findings, each
//! with its remedy. Each check gathers facts and then judges them without looking at anything else. Nothing is changed, no
//! credential is asked for or sent, no secret is said; an agent need not run.

mod agent;
mod host;
mod issuers;
mod kept;

use std::{collections::BTreeMap, path::Path, sync::Arc};

use jiff::Timestamp;

use crate::{
    clock::{Clock, Dice},
    config::{Settings, load},
};

/// How something is.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Verdict {
    /// It does not work, or is not safe.
    Fail,
    /// It works; it could be better, or soon will not.
    Warn,
    /// As it should be.
    Ok,
}

impl Verdict {
    /// In a word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fail => "fail",
            Self::Warn => "warn",
            Self::Ok => "ok",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Finding {
    /// What was looked at, such as `issuers.corp tls`.
    pub about: String,
    /// How it is.
    pub verdict: Verdict,
    /// How it is, in words.
    pub what: String,
    /// What to do about it; empty where there is nothing to do.
    pub remedy: String,
}

fn ok(about: impl Into<String>, what: impl Into<String>) -> Finding {
    Finding { about: about.into(), verdict: Verdict::Ok, what: what.into(), remedy: String::new() }
}

fn warn(about: impl Into<String>, what: impl Into<String>, remedy: impl Into<String>) -> Finding {
    Finding { about: about.into(), verdict: Verdict::Warn, what: what.into(), remedy: remedy.into() }
}

fn fail(about: impl Into<String>, what: impl Into<String>, remedy: impl Into<String>) -> Finding {
    Finding { verdict: Verdict::Fail, ..warn(about, what, remedy) }
}

/// Looks at everything that the settings at `path` name.
pub async fn examine(
    path: &Path,
    environment: &BTreeMap<String, String>,
    clock: &dyn Clock,
    dice: Arc<dyn Dice>,
) -> Vec<Finding> {
    let settings = load(path, environment, clock.wall());
    let mut found = match &settings {
        Ok(settings) => settings_found(path, settings),
        Err(mistakes) => mistakes
            .iter()
            .map(|mistake| {
                let line = mistake.line.map(|line| format!(":{line}")).unwrap_or_default();
                let place = format!("{}{line}", mistake.file.display());
                let key =
                    if mistake.key.is_empty() { place.clone() } else { format!("{} ({place})", mistake.key) };
                fail("settings", key, mistake.message.clone())
            })
            .collect(),
    };
    found.extend(host::judge(&host::look(), settings.as_ref().ok()));
    // What cannot be read names nothing else to look at.
    let Ok(settings) = settings else { return found };
    found.extend(kept::judge(&kept::look(&settings, dice), &settings));
    found.extend(exceptions(&settings, clock.wall()));
    found.extend(agent::sockets(&settings));
    found.extend(agent::running(&settings).await);
    found.extend(issuers::examine(&settings, clock).await);
    found
}

fn settings_found(path: &Path, settings: &Settings) -> Vec<Finding> {
    let identities = settings.policy.identities().count();
    let what =
        format!("{}: sound, {identities} identities, {} issuers", path.display(), settings.issuers.len());
    vec![ok("settings", what)]
}

/// Exceptions that are soon over: whoever rests on one gets nothing from then on.
fn exceptions(settings: &Settings, now: Timestamp) -> Vec<Finding> {
    const SOON: i64 = 14 * 24 * 60 * 60;
    let rules = settings.policy.identities().flat_map(|identity| {
        identity.credentials.values().filter_map(move |rule| Some((identity, rule, rule.exception.as_ref()?)))
    });
    rules
        .map(|(identity, rule, exception)| {
            let about = format!("identities.{}.credentials.{}", identity.name, rule.name);
            let left = exception.until.as_second().saturating_sub(now.as_second());
            let what = format!("its exception ends {:.0} ({})", exception.until, exception.reason);
            let remedy = format!(
                "ask {} to bind it (binding = \"dpop\" or \"mtls\"), or to agree on another date: afterwards it is denied",
                exception.owner
            );
            match left {
                ..=0 => fail(about, format!("its exception ended {:.0}", exception.until), remedy),
                left if left < SOON => warn(about, what, remedy),
                _ => ok(about, what),
            }
        })
        .collect()
}

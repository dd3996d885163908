//! The report for a terminal. In goes a [`Report`]; out come lines. Names are scrubbed of what a terminal would obey.

use super::{CredentialPart, IdentityPart, Kind, Report, Trust, Verdict, count, length};
use crate::secret::scrubbed;

/// The whole report.
pub fn text(report: &Report) -> String {
    let mut out = vec![];
    out.extend(warning(report));
    out.push(format!("Posture of {} at {}", clean(&report.environment), report.time));
    out.push(ledger(report));
    out.push(String::new());
    let now = &report.maturity;
    out.push(format!(
        "{}: {} static, {} bridged, {} dynamic, {} bound; {} attested",
        count(now.credentials as u64, "credential"),
        now.fixed,
        now.bridged,
        now.dynamic,
        now.bound,
        now.attested
    ));
    out.push(now.sentence.clone());
    out.push(String::new());
    out.push(match report.remedies.len() {
        0 => "Nothing to do.".into(),
        _ => "To do, the most needed first (by assurance, exposure, age):".into(),
    });
    for (at, one) in report.remedies.iter().enumerate() {
        let about = match &one.credential {
            Some(credential) => format!("{}.{credential}", one.identity),
            None => one.identity.clone(),
        };
        let age = one.age_days.map(|days| format!(", known {days} d")).unwrap_or_default();
        out.push(format!(
            "{:3}. {}  {} ({}, {}{age})",
            at + 1,
            one.code,
            clean(&about),
            one.assurance,
            one.exposure.as_str()
        ));
        out.push(format!("     {}", clean(&one.what)));
        out.push(format!("     {}", clean(&one.remedy)));
    }
    out.push(String::new());
    out.push(format!(
        "Controls: {} pass, {} fail, {} not applicable",
        report.count(Verdict::Pass),
        report.count(Verdict::Fail),
        report.count(Verdict::NotApplicable)
    ));
    for one in &report.controls {
        out.push(format!("  {:<4}  {:<6}  {}", one.verdict.as_str(), one.id, one.title));
        out.push(format!("                {}", clean(&one.evidence)));
        if let Some(remedy) = &one.remedy {
            out.push(format!("                -> {}", clean(remedy)));
        }
    }
    for identity in &report.identities {
        out.push(String::new());
        out.extend(of_identity(identity));
    }
    for gone in &report.gone {
        let lives = match &gone.lives_until {
            Some(until) => format!("; something of it lives until {until}"),
            None => String::new(),
        };
        out.push(String::new());
        out.push(format!("{}: in the ledger, not in the settings{lives}", clean(&gone.name)));
    }
    out.join("\n")
}

/// What whoever takes one identity over has (S15).
pub fn blast(report: &Report, identity: &IdentityPart) -> String {
    let mut out: Vec<String> = warning(report).into_iter().collect();
    out.extend(of_identity(identity));
    let reach = &identity.reach;
    let list = |all: &[String]| if all.is_empty() { "none".into() } else { clean(&all.join(", ")) };
    out.push(String::new());
    out.push("Whoever takes it over".into());
    out.push(format!("  reaches     {}", list(&reach.audiences)));
    out.push(format!("  may         {}", list(&reach.scopes)));
    out.push(format!("  at          {}", list(&reach.origins)));
    out.push(match reach.longest_life_s {
        Some(life) => format!("  for         {} after it is stopped, at most", length(life)),
        None => "  for         as long as nobody changes the static secret where it is checked".into(),
    });
    out.push(format!("  same key    {}", list(&reach.same_key)));
    out.push(format!("  size        {} (audiences x scopes x hours, to compare by)", reach.size));
    out.push(format!("To stop it: keybearer disable {}", clean(&identity.name)));
    out.join("\n")
}

fn warning(report: &Report) -> Option<String> {
    match &report.ledger.trust {
        Trust::Tampered { seq, fault } => Some(format!(
            "THE LEDGER IS NOT WHAT WAS WRITTEN: record {seq}: {}.\nOnly its {} before the fault were counted. \
             Keep the directory as evidence.\n",
            clean(fault),
            count(report.ledger.counted, "record")
        )),
        Trust::Missing | Trust::Whole { .. } => None,
    }
}

fn ledger(report: &Report) -> String {
    let ledger = &report.ledger;
    match (&ledger.trust, &ledger.first, &ledger.last) {
        (Trust::Missing, ..) | (_, None, _) | (_, _, None) => {
            "No ledger yet: what is used, nobody can tell.".into()
        }
        (_, Some(first), Some(last)) => {
            let short = if ledger.covers { "" } else { "; it does not go back that far" };
            format!(
                "From {} of {first} to {last}; use counts since {}{short}",
                count(ledger.counted, "record"),
                report.since
            )
        }
    }
}

fn of_identity(identity: &IdentityPart) -> Vec<String> {
    let mut out = vec![format!("{}  {}", clean(&identity.name), identity.assurance)];
    if let Some(why) = &identity.disabled {
        out.push(format!("  switched off: {}", clean(why)));
    }
    out.push(format!("  is          {}", clean(&identity.matches.join("; or "))));
    out.push(format!("  owner       {}", clean(&identity.owner)));
    let seen = match (&identity.level_worst, &identity.level_best) {
        (Some(worst), Some(best)) if worst == best => format!("{worst} each time"),
        (Some(worst), Some(best)) => format!("{worst} to {best}"),
        _ => "never".into(),
    };
    out.push(format!("  evidence    demands {}, seen {}", identity.demands, clean(&seen)));
    let last = identity.last_used.as_deref().unwrap_or("never, as far as the ledger tells");
    out.push(format!(
        "  used        {} lately, {} denied; last {last}",
        count(identity.handed_out, "time"),
        identity.denied
    ));
    if let Some(key) = &identity.key {
        let sealed = sealed(key.custody, key.sealed);
        out.push(format!(
            "  key         {} in {}{sealed}, replaced after {}",
            key.algorithm,
            key.custody,
            length(key.age_limit_s)
        ));
    }
    if let Some(own) = &identity.certificate {
        out.push(format!("  certificate its key in {}{}", own.custody, sealed(own.custody, own.sealed)));
    }
    for one in &identity.credentials {
        out.push(format!("  {}: {}", clean(&one.name), clean(&of_credential(identity, one))));
    }
    out
}

/// How a key lies where it is kept, for both renderings.
pub(super) fn sealed(custody: &str, sealed: Option<bool>) -> &'static str {
    match (custody, sealed) {
        ("file", Some(true)) => ", sealed",
        ("file", Some(false)) => ", plain",
        _ => "",
    }
}

/// One credential in a sentence, for both renderings.
pub(super) fn of_credential(identity: &IdentityPart, one: &CredentialPart) -> String {
    let mut parts = vec![what_it_is(identity, one)];
    let place = one.audience.as_deref().or(one.origins.first().map(String::as_str));
    parts.push(format!("from {} for {}", one.issuer, place.unwrap_or("no API in particular")));
    if !one.scope.is_empty() {
        parts.push(format!("scope {}", one.scope.join(" ")));
    }
    let seen = one.life_seen_s.map_or_else(String::new, |seen| format!(", seen {}", length(seen)));
    parts.push(format!("life {}{seen}", length(one.life_allowed_s)));
    if let Some(exception) = &one.exception {
        parts.push(format!(
            "exception of {} ({}) {}",
            exception.owner,
            exception.reason,
            days_left(exception.days_left)
        ));
    }
    if !one.scopes_unused.is_empty() {
        parts.push(format!("unused: {}", one.scopes_unused.join(" ")));
    }
    parts.join("; ")
}

/// What it is: kind, binding, attested.
pub(super) fn what_it_is(identity: &IdentityPart, one: &CredentialPart) -> String {
    let kind = match one.kind {
        Kind::Bound => format!("bound ({})", one.binding),
        Kind::Static => "static (sealed)".into(),
        kind => kind.as_str().into(),
    };
    let kind = if one.kind == Kind::Static && one.wants == "lease" { "static".into() } else { kind };
    if identity.attested { format!("{kind}, attested") } else { kind }
}

pub(super) fn days_left(days: i64) -> String {
    match days {
        ..0 => "has ended".into(),
        0 => "ends today".into(),
        days => format!("ends in {}", count(days.unsigned_abs(), "day")),
    }
}

/// Fit for a terminal.
fn clean(text: &str) -> String {
    scrubbed(text, 2048)
}

//! How safe this host's credentials are. In go the settings, what the ledger tells and the time; out comes a [`Report`], plain data,
//! and three renderings of it: text, JSON and one page of HTML. Pure: nothing here reads a file or a clock, nothing here changes
//! anything, and a record that nobody vouches for is not counted.

mod controls;
mod heard;
mod identity;
mod page;
mod remedies;
mod report;
#[cfg(test)]
mod tests;
mod text;

use std::{collections::BTreeMap, sync::Arc};

use jiff::{SignedDuration, Timestamp};

pub use controls::{Control, Verdict};
pub use heard::Heard;
use heard::Use;
pub use page::page;
pub use remedies::{Exposure, Remedy};
pub use report::{
    BroughtPart, CertificatePart, CredentialPart, ExceptionPart, GonePart, IdentityPart, KeyPart, Kind,
    LedgerPart, Life, Maturity, Reach, Report, Trust,
};
pub use text::{blast, text};

use crate::{
    audit::OnFailure,
    config::{IssuerSettings, Settings},
};

/// What is asked.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// The settings, as the agent reads them.
    pub settings: &'a Settings,
    /// The identities that an operator has switched off, with the reason.
    pub disabled: &'a BTreeMap<Arc<str>, String>,
    /// What the sound part of the ledger tells.
    pub heard: &'a Heard,
    /// How far the ledger can be believed.
    pub ledger: &'a Trust,
    /// From when on use counts as use.
    pub since: Timestamp,
    /// Now.
    pub now: Timestamp,
}

/// What is true of the host, for the controls.
#[derive(Clone, Debug)]
struct Host {
    environment: String,
    issuers: Vec<IssuerFacts>,
    unrecorded_allowed: bool,
}

#[derive(Clone, Debug)]
struct IssuerFacts {
    name: String,
    address: String,
    dev: bool,
}

/// Everything that a control looks at.
#[derive(Clone, Debug)]
struct Facts<'a> {
    host: Host,
    identities: Vec<IdentityPart>,
    gone: Vec<GonePart>,
    ledger: LedgerPart,
    heard: &'a Heard,
    /// Those that are switched off, whether or not the settings know them still.
    disabled: &'a BTreeMap<Arc<str>, String>,
    days: i64,
    now: Timestamp,
}

/// Makes the report.
pub fn report(asked: &Asked<'_>) -> Report {
    let facts = facts(asked);
    Report {
        v: 1,
        time: seconds(asked.now),
        since: seconds(asked.since),
        environment: facts.host.environment.clone(),
        config_digest: asked.settings.digest.clone(),
        maturity: maturity(&facts.identities),
        remedies: remedies::remedies(&facts.identities),
        controls: controls::controls(&facts),
        ledger: facts.ledger,
        identities: facts.identities,
        gone: facts.gone,
    }
}

fn facts<'a>(asked: &Asked<'a>) -> Facts<'a> {
    let heard = asked.heard;
    let covers = heard.first.is_some_and(|first| first <= asked.since);
    let identities: Vec<IdentityPart> =
        asked.settings.policy.identities().map(|identity| identity::part(asked, identity, covers)).collect();
    let known = |name: &str| identities.iter().any(|identity| identity.name == name);
    let gone = heard.names().filter(|name| !known(name)).map(|name| gone(heard, name, asked.now)).collect();
    Facts {
        host: Host {
            environment: asked.settings.environment.clone(),
            issuers: asked.settings.issuers.iter().map(|(name, settings)| issuer(name, settings)).collect(),
            unrecorded_allowed: asked.settings.audit.on_failure == OnFailure::Allow,
        },
        ledger: LedgerPart {
            trust: asked.ledger.clone(),
            counted: heard.records,
            first: heard.first.map(seconds),
            last: heard.last.map(seconds),
            covers,
        },
        identities,
        gone,
        heard,
        disabled: asked.disabled,
        days: days(asked.now.duration_since(asked.since)),
        now: asked.now,
    }
}

fn gone(heard: &Heard, name: &str, now: Timestamp) -> GonePart {
    let all = || heard.of(name).map(|(_, used)| used);
    GonePart {
        name: name.into(),
        last_used: all().filter_map(|used| used.last).max().map(seconds),
        lives_until: all().filter_map(Use::lives_until).max().filter(|until| *until > now).map(seconds),
    }
}

fn issuer(name: &str, settings: &IssuerSettings) -> IssuerFacts {
    let (address, dev) = match settings {
        IssuerSettings::Acme(acme) => (&acme.directory, acme.dev),
        IssuerSettings::Est(est) => (&est.url, est.dev),
        IssuerSettings::OAuth(oauth) => (&oauth.issuer, oauth.dev),
        IssuerSettings::OpenBao(bao) => (&bao.url, bao.dev),
        IssuerSettings::StepCa(step) => (&step.url, step.dev),
    };
    IssuerFacts { name: name.into(), address: address.clone(), dev }
}

fn maturity(identities: &[IdentityPart]) -> Maturity {
    let all =
        || identities.iter().flat_map(|identity| identity.credentials.iter().map(move |one| (identity, one)));
    let of = |kind| all().filter(|(_, credential)| credential.kind == kind).count();
    let mut maturity = Maturity {
        credentials: all().count(),
        fixed: of(Kind::Static),
        bridged: of(Kind::Bridged),
        dynamic: of(Kind::Dynamic),
        bound: of(Kind::Bound),
        attested: all().filter(|(identity, _)| identity.attested).count(),
        sentence: String::new(),
    };
    let (total, still) = (maturity.credentials, maturity.fixed + maturity.bridged);
    maturity.sentence = match maturity {
        Maturity { credentials: 0, .. } => "There are no credentials yet.".into(),
        Maturity { bound, attested, .. } if bound == total && attested == total => {
            format!("{} bound to a key, and each program attested by more than its user.", all_are(total))
        }
        Maturity { bound, .. } if bound == total => {
            let rest = total - maturity.attested;
            format!("{} bound to a key; {rest} rest on the user alone: match the unit too.", all_are(total))
        }
        _ if still == 0 => format!(
            "No static secret is left: of {total}, {} bound to a key, {} good for whoever has it.",
            is_or_are(maturity.bound),
            is_or_are(maturity.dynamic)
        ),
        _ => format!(
            "Of {total}, {} still static ({} of them seen by no program), {} bound to a key.",
            is_or_are(still),
            maturity.bridged,
            is_or_are(maturity.bound)
        ),
    };
    maturity
}

fn is_or_are(number: usize) -> String {
    format!("{number} {}", if number == 1 { "is" } else { "are" })
}

fn all_are(total: usize) -> String {
    if total == 1 { "The one credential is".into() } else { format!("All {total} credentials are") }
}

/// A moment to the second, RFC 3339.
fn seconds(time: Timestamp) -> String {
    format!("{time:.0}")
}

/// Whole days, rounded down.
fn days(length: SignedDuration) -> i64 {
    length.as_secs().div_euclid(86_400)
}

/// A length of time in words.
fn length(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// So many of these.
fn count(number: impl Into<u64>, what: &str) -> String {
    match number.into() {
        1 => format!("1 {what}"),
        number if what.ends_with("ity") => format!("{number} {}ies", what.trim_end_matches('y')),
        number => format!("{number} {what}s"),
    }
}

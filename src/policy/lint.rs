//! What a policy may not say. In go identities as the operator meant them; out comes every mistake, with the key it
//! stands under and the row it breaks.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};

use super::{
    Assurance, CredentialRule, Exports, Identity, Per, Proofs,
    identity::{CERTIFICATE_TTL, LONGEST_CERTIFICATE_TTL, OWNER_FORM},
};
use crate::{
    credential::Binding,
    issuer::terms::{self, Wants},
    proof::Target,
};

/// A mistake in the settings, and where.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Problem {
    /// The key, as `identities.payments.match`.
    pub key: String,
    /// What is wrong and what to do.
    pub message: String,
}

/// The longest an exception may last (S36).
const MAX_EXCEPTION_DAYS: i64 = 90;

/// Programs that run whatever they are given: their digest or path says nothing about who calls (ATT-18).
const INTERPRETERS: [&str; 26] = [
    "ash", "awk", "bash", "busybox", "cat", "curl", "dash", "deno", "env", "java", "ksh", "lua", "nc",
    "ncat", "node", "nodejs", "perl", "php", "python", "ruby", "sh", "socat", "tclsh", "tee", "wget", "zsh",
];

pub(super) fn problems(
    identities: &[Identity],
    exports: &Exports,
    environment: &str,
    now: Timestamp,
) -> Vec<Problem> {
    let mut problems = Vec::new();
    for identity in identities {
        let key = format!("identities.{}", identity.name);
        of_identity(&mut problems, &key, identity);
        for rule in identity.credentials.values() {
            of_credential(&mut problems, &format!("{key}.credentials.{}", rule.name), identity, rule, now);
        }
    }
    overlaps(&mut problems, identities);
    shared_subjects(&mut problems, identities);
    of_exports(&mut problems, identities, exports);
    if environment.trim().is_empty() {
        add(&mut problems, "environment", "name the environment, for example \"prod\" or \"dev\"");
    }
    problems
}

fn of_identity(problems: &mut Vec<Problem>, key: &str, identity: &Identity) {
    let owner = &identity.owner;
    if !(3..=128).contains(&owner.len()) || owner.chars().any(char::is_control) {
        add(problems, format!("{key}.owner"), format!("an owner is {OWNER_FORM}"));
    }
    if identity.selectors.is_empty() || identity.selectors.iter().any(super::Selectors::is_empty) {
        add(
            problems,
            format!("{key}.match"),
            "it matches nothing: name at least one selector, such as unit and user",
        );
    }
    if identity.credentials.is_empty() {
        add(
            problems,
            format!("{key}.credentials"),
            "it has none: add [identities.NAME.credentials.CREDENTIAL]",
        );
    }
    if identity.service_manager {
        of_service_manager(problems, &format!("{key}.service_manager"), identity);
    }
    for selectors in &identity.selectors {
        if let Some(exe) = &selectors.exe {
            let resolved = exe.canonicalize().unwrap_or_else(|_| exe.clone());
            if !exe.is_absolute() {
                add(problems, format!("{key}.match.exe"), "a program is named by its absolute path");
            } else if [exe, &resolved].into_iter().any(|path| is_interpreter(path)) {
                let message =
                    "it runs whatever script it is given, so it identifies nobody (ATT-18): match the unit";
                add(problems, format!("{key}.match.exe"), message);
            }
        }
        let owns_a_place = selectors.unit.is_some() || selectors.user.is_some();
        if identity.assurance >= Assurance::Standard && !owns_a_place && !selectors.is_empty() {
            let message = format!(
                "assurance \"{}\" needs a unit or a user of its own, not only a program or a group (ATT-18)",
                identity.assurance
            );
            add(problems, format!("{key}.match"), message);
        }
    }
}

/// What the service manager may ask for has to be told by the unit alone.
fn of_service_manager(problems: &mut Vec<Problem>, key: &str, identity: &Identity) {
    let named = |of: fn(&super::Selectors) -> bool| identity.selectors.iter().any(of);
    if !named(|selectors| selectors.unit.is_some()) {
        let message = "the service manager asks for a unit: name one in match, as unit = \"NAME.service\"";
        add(problems, key, message);
    }
    if named(super::Selectors::rest_on_the_program) {
        let message = "exe and sha256 cannot be told before the program runs: take this out and start it with keybearer exec, or \
                       match the unit alone";
        add(problems, key, message);
    }
    if identity.assurance == Assurance::High {
        let message = "\"high\" is only for a program that answers for itself (L4): take this out and start it with keybearer exec";
        add(problems, key, message);
    }
}

fn of_credential(
    problems: &mut Vec<Problem>,
    key: &str,
    identity: &Identity,
    rule: &CredentialRule,
    now: Timestamp,
) {
    let is_token = rule.terms.wants == Wants::Token;
    let longest = match (&rule.terms.wants, identity.assurance) {
        (Wants::Certificate(_), Assurance::High) => CERTIFICATE_TTL,
        (Wants::Certificate(_), _) => LONGEST_CERTIFICATE_TTL,
        (Wants::Token | Wants::Lease(_) | Wants::Sealed(_), assurance) => assurance.max_ttl(),
    };
    if rule.max_ttl > longest || rule.max_ttl.as_secs() < 10 {
        let message = format!(
            "it is {} s; assurance \"{}\" allows 10 to {} s (S2)",
            rule.max_ttl.as_secs(),
            identity.assurance,
            longest.as_secs()
        );
        add(problems, format!("{key}.max_ttl"), message);
    }
    if is_token && rule.resource.is_none() && identity.assurance > Assurance::Interim {
        let message = format!(
            "name the one API it is for; only \"interim\" may leave it out, not \"{}\" (BCP-02)",
            identity.assurance
        );
        add(problems, format!("{key}.resource"), message);
    }
    if let Some(resource) = &rule.resource {
        let absolute = resource.split_once("://").is_some_and(|(scheme, rest)| {
            !scheme.is_empty() && !rest.is_empty() && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric())
        });
        if !absolute || resource.contains('#') || resource.chars().any(char::is_whitespace) {
            add(
                problems,
                format!("{key}.resource"),
                "a resource is an absolute URI without a fragment (RFC 8707)",
            );
        }
    }
    if is_token && rule.scope.is_empty() && rule.resource.is_none() {
        add(
            problems,
            format!("{key}.scope"),
            "name a scope or a resource: a credential for everything is refused (S41)",
        );
    }
    for scope in &*rule.scope {
        if **scope == *"*" || scope.ends_with("/.default") || scope.ends_with(":*") {
            add(
                problems,
                format!("{key}.scope"),
                "one of them stands for all scopes (*, NAME:* or /.default): name those it needs (S41)",
            );
        }
        if scope.is_empty() || !scope.bytes().all(|byte| matches!(byte, 0x21 | 0x23..=0x5b | 0x5d..=0x7e)) {
            add(
                problems,
                format!("{key}.scope"),
                "a scope is printable ASCII without blanks, quotes and backslashes",
            );
        }
    }
    if rule.client_id.is_empty() || rule.client_id.chars().any(char::is_control) {
        add(problems, format!("{key}.client_id"), "name the client that the issuer knows this identity by");
    }
    for (under, message) in terms::problems(&rule.terms, rule.binding != Binding::Bearer) {
        add(problems, format!("{key}.{under}"), message);
    }
    if identity.assurance == Assurance::High && rule.binding == Binding::Bearer {
        let message = "\"high\" is only for credentials that a key binds, whatever the exception (S39, MT-12): binding = \"dpop\" or \"mtls\"";
        add(problems, format!("{key}.binding"), message);
    }
    if rule.forward.is_some() || rule.binding == Binding::Dpop && rule.exception.is_none() {
        let message = "name where it is used, as origins = [\"https://api.example.com\"]: without a resource that is a URL \
                       there is no place to use it at (DPOP-19)";
        if rule.proofs.origins.is_empty() {
            add(problems, format!("{key}.origins"), message);
        }
    }
    of_proofs(problems, key, &rule.proofs, rule.binding);
    if rule.forward.as_ref().is_some_and(|forward| forward.only) && rule.key_export {
        let message = "with forward = \"only\" nothing leaves the agent: take key_export out, or say forward = \"allowed\"";
        add(problems, format!("{key}.forward"), message);
    }
    match (&rule.exception, rule.binding) {
        (None, Binding::Dpop | Binding::Mtls) => {}
        (Some(_), Binding::Dpop | Binding::Mtls) => {
            let message = "a bound credential needs none: take it out, or say binding = \"bearer\" (BCP-01)";
            add(problems, format!("{key}.exception"), message);
        }
        (None, Binding::Bearer) if rule.terms.wants.is_static() => {
            let message = "a secret that stays as it is needs exception = { owner = \"..\", reason = \"what it takes to make it \
                           dynamic\", until = \"YYYY-MM-DD\" }, at most 90 days ahead (S1, S36)";
            add(problems, format!("{key}.exception"), message);
        }
        // What a process leases is of no use once it is gone.
        (None, Binding::Bearer) if !is_token && rule.per == Per::Process => {}
        (None, Binding::Bearer) if !is_token => {
            let message = "whoever steals leased values can use them: say per = \"process\", or add exception = { owner = \"..\", \
                           reason = \"..\", until = \"YYYY-MM-DD\" }, at most 90 days ahead (S36)";
            add(problems, format!("{key}.exception"), message);
        }
        (None, Binding::Bearer) => {
            let message = "whoever steals a bearer token can use it: add exception = { owner = \"..\", reason = \"..\", \
                           until = \"YYYY-MM-DD\" }, at most 90 days ahead (BCP-01, S36)";
            add(problems, format!("{key}.exception"), message);
        }
        (Some(exception), Binding::Bearer) => {
            if exception.owner.trim().len() < 3 || exception.reason.trim().len() < 3 {
                add(problems, format!("{key}.exception"), "an exception has an owner and a reason (S36)");
            }
            let longest = now
                .checked_add(SignedDuration::from_hours(24 * MAX_EXCEPTION_DAYS))
                .unwrap_or(Timestamp::MAX);
            if exception.until > longest {
                let message =
                    format!("it ends {}, more than {MAX_EXCEPTION_DAYS} days ahead (S36)", exception.until);
                add(problems, format!("{key}.exception.until"), message);
            }
        }
    }
}

fn of_proofs(problems: &mut Vec<Problem>, key: &str, proofs: &Proofs, binding: Binding) {
    for origin in &proofs.origins {
        let sound = Target::parse(origin).is_ok_and(|target| {
            // A certificate is shown in TLS or not at all.
            let plain = proofs.plain && binding != Binding::Mtls;
            target.origin() == origin && (target.is_https() || plain && target.is_loopback())
        });
        if !sound {
            let message = "an origin is https://HOST or https://HOST:PORT in small letters, with nothing after it; plain http \
                           is for development issuers and loopback only (DPOP-19)";
            add(problems, format!("{key}.origins"), message);
        }
    }
    for method in &proofs.methods {
        // Not those that open a tunnel or send back what they were sent.
        if method.is_empty()
            || !method.bytes().all(|byte| byte.is_ascii_uppercase())
            || ["CONNECT", "TRACE"].contains(&method.as_str())
        {
            let message = "a method is written in capitals, and neither CONNECT nor TRACE is one (DPOP-21)";
            add(problems, format!("{key}.methods"), message);
        }
    }
}

fn overlaps(problems: &mut Vec<Problem>, identities: &[Identity]) {
    for (index, one) in identities.iter().enumerate() {
        for other in &identities[index + 1..] {
            let clash =
                one.selectors.iter().any(|ours| other.selectors.iter().any(|theirs| !ours.excludes(theirs)));
            if clash {
                let message = format!(
                    "one process could match both identities.{} and identities.{}: give them selectors that exclude \
                     each other, such as different units, users or programs",
                    one.name, other.name
                );
                add(problems, format!("identities.{}.match", other.name), message);
            }
            let unit = |of: &Identity| {
                of.selectors.iter().filter_map(|selectors| selectors.unit.clone()).collect::<Vec<_>>()
            };
            if (one.service_manager || other.service_manager)
                && unit(one).iter().any(|ours| unit(other).contains(ours))
            {
                let named = if one.service_manager { one } else { other };
                let message = format!(
                    "identities.{} and identities.{} name the same unit, and the service manager asks by the unit alone: give each \
                     its own, or take this out",
                    one.name, other.name
                );
                add(problems, format!("identities.{}.service_manager", named.name), message);
            }
        }
    }
}

fn of_exports(problems: &mut Vec<Problem>, identities: &[Identity], exports: &Exports) {
    for (name, export) in exports {
        let key = format!("exports.{name}.identities");
        if export.identities.is_empty() {
            add(problems, key, "it is for nobody: name the identities that are behind this socket (ATT-23)");
        } else if export
            .identities
            .iter()
            .any(|name| identities.iter().all(|identity| identity.name != *name))
        {
            add(problems, key, "one of them is no [identities.NAME]: correct it, or add the identity first");
        }
    }
}

/// Two identities that show the same subject are one client to the issuer (NHI-9, WIM-03).
fn shared_subjects(problems: &mut Vec<Problem>, identities: &[Identity]) {
    let mut shown: BTreeMap<(&str, &str), &str> = BTreeMap::new();
    for identity in identities {
        for rule in identity.credentials.values() {
            let Some(subject) = rule.terms.client_auth.subject() else { continue };
            match shown.insert((&rule.issuer, subject), &identity.name) {
                Some(other) if *other != *identity.name => {
                    let key =
                        format!("identities.{}.credentials.{}.assertion.subject", identity.name, rule.name);
                    let message = format!(
                        "identities.{other} shows the same subject to this issuer: each identity has its own (NHI-9)"
                    );
                    add(problems, key, message);
                }
                _ => {}
            }
        }
    }
}

fn is_interpreter(path: &std::path::Path) -> bool {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    // python3.11, perl5.36, node20: the version does not change what it is.
    let stem = name.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.' || c == '-');
    INTERPRETERS.contains(&stem) || INTERPRETERS.contains(&&*name)
}

fn add(problems: &mut Vec<Problem>, key: impl Into<String>, message: impl Into<String>) {
    problems.push(Problem { key: key.into(), message: message.into() });
}

//! OWASP Non-Human Identities Top 10, 2025.

use std::collections::{BTreeMap, BTreeSet};

use super::{Check, Said, fail, names, not_applicable, pass};
use crate::posture::{Facts, Kind, Life, count, heard::Use, length};

pub(super) const ALL: [(&str, &str, Check); 10] = [
    ("NHI-1", "Improper Offboarding", offboarding),
    ("NHI-2", "Secret Leakage", leakage),
    ("NHI-3", "Vulnerable Third-Party NHI", third_party),
    ("NHI-4", "Insecure Authentication", authentication),
    ("NHI-5", "Overprivileged NHI", privilege),
    ("NHI-6", "Insecure Cloud Deployment Configurations", deployment),
    ("NHI-7", "Long-Lived Secrets", lifetimes),
    ("NHI-8", "Environment Isolation", isolation),
    ("NHI-9", "NHI Reuse", reuse),
    ("NHI-10", "Human Use of NHI", humans),
];

fn offboarding(facts: &Facts<'_>) -> Said {
    let living: Vec<String> =
        facts.gone.iter().filter(|one| one.lives_until.is_some()).map(|one| one.name.clone()).collect();
    if !living.is_empty() {
        return fail(
            format!(
                "gone from the settings, while something that was handed out lives still: {}",
                names(&living)
            ),
            "revoke it at its issuer, or wait until it ends; before you take out the next one: keybearer disable NAME",
        );
    }
    let lives = |used: &Use| used.lives_until().is_some_and(|until| until > facts.now);
    let taken_out: Vec<String> = facts
        .identities
        .iter()
        .flat_map(|identity| facts.heard.of(&identity.name).map(move |(name, used)| (identity, name, used)))
        .filter(|(identity, name, used)| {
            // What names no credential is no credential's.
            !name.is_empty() && !identity.credentials.iter().any(|one| one.name == *name) && lives(used)
        })
        .map(|(identity, name, _)| format!("{}.{name}", identity.name))
        .collect();
    if !taken_out.is_empty() {
        return fail(
            format!(
                "taken out of the settings, while something that was handed out lives still: {}",
                names(&taken_out)
            ),
            "revoke it at its issuer, or wait until it ends; before you take out the next one: keybearer revoke NAME CREDENTIAL",
        );
    }
    let of = |life| facts.who(|one| one.life == life && one.disabled.is_none());
    let (stale, unknown) = (of(Life::Stale), of(Life::Unknown));
    if !stale.is_empty() {
        return fail(
            format!("nothing was handed out in {} days to {}", facts.days, names(&stale)),
            "ask the owner; then keybearer disable NAME, and take it out of the settings and the issuer's books",
        );
    }
    if !unknown.is_empty() || facts.identities.is_empty() {
        return not_applicable(format!(
            "the ledger does not go back {} days, so nobody can tell yet whether {} are in use",
            facts.days,
            if unknown.is_empty() { "identities".into() } else { names(&unknown) }
        ));
    }
    pass(format!(
        "{}, each with an owner, in use within {} days or switched off; nothing lives of what was removed",
        count(facts.identities.len() as u64, "identity"),
        facts.days
    ))
}

fn leakage(facts: &Facts<'_>) -> Said {
    let open =
        facts.those(|_, one| matches!(one.kind, Kind::Static | Kind::Bridged) && !one.variables.is_empty());
    if !open.is_empty() {
        return fail(
            format!("static, and in the environment of programs: {}", names(&open)),
            "deliver them as files, or better, forward = \"only\"",
        );
    }
    let exported = facts.those(|_, one| one.key_export);
    if !exported.is_empty() {
        return fail(
            format!("handed out with its private key: {}", names(&exported)),
            "forward = \"allowed\", key_export = \"never\"",
        );
    }
    let (plain, unknown) = (facts.key_files(Some(false)), facts.key_files(None));
    if !plain.is_empty() {
        return fail(
            format!("key files that are plain: those of {}", names(&plain)),
            "give the agent a sealing key: the credential keybearer.sealing-key, or keys.sealing_key",
        );
    }
    if !unknown.is_empty() {
        return not_applicable(format!(
            "whether the key files of {} are sealed, only an agent can say, and the ledger tells of no start",
            names(&unknown)
        ));
    }
    pass(
        "no key lies on this host's disk unsealed, none is handed out, and by the settings no static secret is in an environment; what other files hold, keybearer scan tells",
    )
}

fn third_party(facts: &Facts<'_>) -> Said {
    if let Some((issuer, seq)) = facts.heard.changed.iter().next() {
        return fail(
            format!("issuer {issuer} answers with other metadata than those that are pinned (record {seq})"),
            "ask the issuer's people what changed; then pin the new ones, or change the issuer's keys and secrets",
        );
    }
    let domains: BTreeMap<&str, &str> =
        facts.host.issuers.iter().map(|one| (one.name.as_str(), domain(&one.address))).collect();
    let of = |issuer: &str| domains.get(issuer).copied();
    let mixed = facts.who(|identity| {
        identity.credentials.iter().filter_map(|one| of(&one.issuer)).collect::<BTreeSet<_>>().len() > 1
    });
    if !mixed.is_empty() {
        return fail(
            format!("one identity deals with issuers of several domains: {}", names(&mixed)),
            "give each party an identity of its own, so that one of them can be disabled alone",
        );
    }
    let domains: BTreeSet<&str> = domains.into_values().collect();
    match domains.len() {
        0 => not_applicable("there is no issuer"),
        1 => not_applicable("all issuers are of one domain, so the settings show no third party"),
        more => pass(format!(
            "issuers of {more} domains, and no identity deals with more than one of these; each can be disabled alone"
        )),
    }
}

/// The end of a host's name, by which parties are told apart: its last two labels, or all of an address.
fn domain(address: &str) -> &str {
    let rest = address.split_once("://").map_or(address, |(_, rest)| rest);
    let authority = rest.split(['/', '?']).next().unwrap_or(rest);
    let host = match authority.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or(v6),
        None => authority.split(':').next().unwrap_or(authority),
    };
    if host.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
        return host;
    }
    let mut dots = host.rmatch_indices('.').map(|(at, _)| at);
    dots.nth(1).map_or(host, |at| &host[at + 1..])
}

fn authentication(facts: &Facts<'_>) -> Said {
    let fixed = facts.those(|_, one| one.kind == Kind::Static);
    if !fixed.is_empty() {
        return fail(
            format!("handed out, and proof of nothing but that somebody knows a secret: {}", names(&fixed)),
            "have an issuer make them anew; until then forward = \"only\"",
        );
    }
    let methods: BTreeSet<&str> = facts.credentials().map(|(_, one)| one.client_auth).collect();
    let bridged = facts.those(|_, one| one.kind == Kind::Bridged);
    let methods = methods.into_iter().filter(|method| *method != "none").collect::<Vec<_>>().join(", ");
    match (methods.is_empty(), bridged.is_empty()) {
        (true, true) => not_applicable("there are no credentials"),
        (false, true) => pass(format!("issuers learn who asks by {methods}, and by no password")),
        (_, false) => pass(format!(
            "no secret that stays the same is handed out; the agent alone uses {}, under exceptions that end",
            names(&bridged)
        )),
    }
}

fn privilege(facts: &Facts<'_>) -> Said {
    let beyond = facts.those(|_, one| !one.scopes_beyond.is_empty());
    if !beyond.is_empty() {
        return fail(
            format!("scopes that the settings do not name (any more) were in tokens of {}", names(&beyond)),
            "see that they have ended (keybearer revoke NAME), and what the issuer gives to this client",
        );
    }
    let unused: Vec<String> = facts
        .credentials()
        .flat_map(|(identity, one)| {
            one.scopes_unused.iter().map(move |scope| format!("{}.{} {scope}", identity.name, one.name))
        })
        .collect();
    if !unused.is_empty() {
        return fail(
            format!("granted, and in no token for {} days: {}", facts.days, names(&unused)),
            "take them out of scope",
        );
    }
    let scopes: usize = facts.credentials().map(|(_, one)| one.scope.len()).sum();
    let unproven: usize = facts.credentials().map(|(_, one)| one.scopes_unproven.len()).sum();
    if scopes == 0 {
        return not_applicable("no credential has a scope");
    }
    if !facts.ledger.covers || facts.handed_out() == 0 {
        return not_applicable(format!(
            "the ledger tells of too little use in {} days to say which scopes are not needed",
            facts.days
        ));
    }
    if unproven > 0 {
        return pass(format!(
            "each scope that was granted was in tokens; {unproven} of {scopes} only because programs ask for all at once: \
             whether an API needs them, the ledger cannot tell"
        ));
    }
    pass(format!("each of {scopes} scopes was asked for by name or alone in {} days", facts.days))
}

fn deployment(facts: &Facts<'_>) -> Said {
    let brings: Vec<_> = facts.credentials().filter(|(_, one)| !one.brought.is_empty()).collect();
    if brings.is_empty() {
        return not_applicable("no credential rests on a token that a platform or a CI writes");
    }
    let loose = facts.those(|_, one| one.brought.iter().any(|token| !token.conditions));
    if !loose.is_empty() {
        return fail(
            format!("a platform's token is taken whoever it speaks of: {}", names(&loose)),
            "name whose it must be, letter by letter: claims = { sub = \"..\" }",
        );
    }
    pass(format!(
        "each token that a platform writes for {} has to name its issuer, its audience and its subject, letter by letter",
        count(brings.len() as u64, "credential")
    ))
}

fn lifetimes(facts: &Facts<'_>) -> Said {
    let fixed = facts.those(|_, one| matches!(one.kind, Kind::Static | Kind::Bridged));
    if !fixed.is_empty() {
        return fail(
            format!("good until somebody changes it where it is checked: {}", names(&fixed)),
            "have an issuer make them anew before their exception ends",
        );
    }
    let Some(longest) = facts.credentials().map(|(_, one)| one.life_allowed_s).max() else {
        return not_applicable("there are no credentials");
    };
    let oldest = facts.identities.iter().filter_map(|one| Some(one.key.as_ref()?.age_limit_s)).max();
    let keys = oldest.map_or_else(String::new, |age| format!("; keys are replaced after {}", length(age)));
    pass(format!("nothing lives longer than {}{keys}", length(longest)))
}

/// Environments whose name says that they are for trying things out.
const FOR_TRYING: [&str; 9] =
    ["ci", "dev", "development", "lab", "local", "playground", "sandbox", "test", "testing"];

fn isolation(facts: &Facts<'_>) -> Said {
    let here = &facts.host.environment;
    let others: Vec<String> = facts.heard.environments.iter().filter(|one| *one != here).cloned().collect();
    if !others.is_empty() {
        return fail(
            format!("this ledger has exchanges of environment {} beside {here}", names(&others)),
            "give each environment an agent of its own: state directory, keys, issuers",
        );
    }
    let dev: Vec<String> =
        facts.host.issuers.iter().filter(|one| one.dev).map(|one| one.name.clone()).collect();
    if !dev.is_empty() && !FOR_TRYING.contains(&here.to_lowercase().as_str()) {
        return fail(
            format!("the environment is {here}, and here are development issuers: {}", names(&dev)),
            "take dev = true out, or name the environment for what it is",
        );
    }
    pass(format!("one environment, {here}, in the settings and in every exchange on record"))
}

fn reuse(facts: &Facts<'_>) -> Said {
    if let Some((seq, who, reason)) = facts.heard.alarms.last() {
        let alarms = count(facts.heard.alarms.len() as u64, "alarm");
        return fail(
            format!("{alarms} in {} days, the last about {who}: {reason} (record {seq})", facts.days),
            "look: keybearer audit explain SEQ; if it was not you: keybearer revoke NAME --keys",
        );
    }
    let shared = facts.heard.thumbprints.values().find(|who| who.len() > 1);
    if let Some(who) = shared {
        let who: Vec<String> = who.iter().cloned().collect();
        return fail(
            format!("one key binds credentials of {}", names(&who)),
            "give each identity a key of its own",
        );
    }
    let several = facts.who(|one| one.units.len() > 1);
    if !several.is_empty() {
        return fail(
            format!("served in several units as one identity: {}", names(&several)),
            "make an identity for each unit, and match it",
        );
    }
    pass(
        "no identity was used by two units, no key by two identities, and no handle by anybody it was not given to",
    )
}

fn humans(facts: &Facts<'_>) -> Said {
    let served = facts.who(|one| !one.humans.is_empty() && !one.is_for_people());
    if !served.is_empty() {
        return fail(
            format!("people were served as {}", names(&served)),
            "humans = \"refused\", or match the unit, so that a shell of the same user is somebody else",
        );
    }
    if facts.handed_out() == 0 {
        return not_applicable(format!("nothing was handed out in {} days", facts.days));
    }
    let alone = facts.who(|one| !one.attested && one.handed_out > 0);
    if !alone.is_empty() {
        return not_applicable(format!(
            "nobody was told of, but whoever hides all signs of a session is a service to what rests on the user alone: {}",
            names(&alone)
        ));
    }
    let theirs = facts.who(|one| one.is_for_people());
    let theirs = if theirs.is_empty() {
        String::new()
    } else {
        format!("; for people, as the settings say: {}", names(&theirs))
    };
    pass(format!(
        "no person was served as a service, and each identity is matched by more than its user{theirs}"
    ))
}

//! NIST SP 800-63-4, which is written for people, mapped to programs; the mapping is ours.

use jiff::SignedDuration;

use super::{Check, Said, fail, names, not_applicable, pass};
use crate::posture::{Facts, Trust, count, length, seconds};

pub(super) const ALL: [(&str, &str, Check); 8] = [
    ("N63-1", "Phishing (verifier impersonation) resistance", phishing),
    ("N63-2", "Replay resistance", replay),
    ("N63-3", "Key protection (AAL2/AAL3)", protection),
    ("N63-4", "Reauthentication and session limits", sessions),
    ("N63-5", "Assertions: holder of key, audience (FAL)", federation),
    ("N63-6", "Binding of authenticators", binding),
    ("N63-7", "Approved cryptography", cryptography),
    ("N63-8", "Records of authenticator events", records),
];

/// How old a record may be that no checkpoint signs: `audit.checkpoint_every` is an hour at most.
const UNSIGNED: SignedDuration = SignedDuration::from_hours(2);

fn phishing(facts: &Facts<'_>) -> Said {
    let open = facts.those(|_, one| one.wants != "certificate" && one.phishing_resistance == "none");
    if !open.is_empty() {
        return fail(
            format!("a false server that was given it could use it: {}", names(&open)),
            "binding = \"mtls\" (channel) or \"dpop\" (name), once the API checks it",
        );
    }
    let of = |how: &str| facts.those(|_, one| one.phishing_resistance == how).len();
    match (of("channel"), of("name")) {
        (0, 0) => not_applicable("there are no credentials"),
        (channel, name) => pass(format!("{channel} are bound to the channel, {name} to the server's name")),
    }
}

fn replay(facts: &Facts<'_>) -> Said {
    let seen = facts.heard.alarms.iter().find(|(_, _, reason)| reason == "ONE_TIME_REUSE");
    if let Some((seq, who, _)) = seen {
        return fail(
            format!("an issuer has seen a one-time value of {who} before (record {seq})"),
            "if it was not sent twice on the way: keybearer revoke NAME --keys",
        );
    }
    let again = facts.those(|_, one| one.brought.iter().any(|token| token.role == "assertion"));
    if !again.is_empty() {
        return fail(
            format!("who asks is proved by a token that can be shown again: {}", names(&again)),
            "client_auth = \"private_key_jwt\" or a certificate; or have the platform make it for minutes only",
        );
    }
    let asking = facts.those(|_, one| one.client_auth != "none").len();
    if asking == 0 {
        return not_applicable("no issuer is asked for anything");
    }
    pass(
        "each issuer is asked with an assertion that is good once, or over a connection that shows a certificate",
    )
}

fn protection(facts: &Facts<'_>) -> Said {
    let exported = facts.those(|_, one| one.key_export);
    if !exported.is_empty() {
        return fail(
            format!("its key leaves custody: {}", names(&exported)),
            "key_export = \"never\"; forward = \"allowed\" where the program cannot do without",
        );
    }
    let plain = facts.key_files(Some(false));
    if !plain.is_empty() {
        return fail(
            format!("keys that can be copied from the disk: those of {}", names(&plain)),
            "give the agent a sealing key, best from a TPM (systemd-creds)",
        );
    }
    not_applicable(
        "keys are held in software, so AAL3 is nowhere reached; this agent has no custody in hardware yet",
    )
}

fn sessions(facts: &Facts<'_>) -> Said {
    let longer = facts.those(|_, one| one.life_seen_s.is_some_and(|seen| seen > one.life_allowed_s));
    if !longer.is_empty() {
        return fail(
            format!("handed out for longer than the settings allow now: {}", names(&longer)),
            "keybearer revoke NAME, so that what is out ends; the next ones are shorter",
        );
    }
    let seen = facts.credentials().filter_map(|(_, one)| one.life_seen_s).max();
    let Some(seen) = seen else {
        return not_applicable(format!("nothing was handed out in {} days", facts.days));
    };
    pass(format!(
        "nothing was handed out for longer than {}, and each program is attested anew before each answer",
        length(seen)
    ))
}

fn federation(facts: &Facts<'_>) -> Said {
    let tokens = facts.those(|_, one| one.wants == "token");
    if tokens.is_empty() {
        return not_applicable("no identity has a token");
    }
    let open =
        facts.those(|_, one| one.wants == "token" && (one.audience.is_none() || !one.audience_checked));
    if !open.is_empty() {
        return fail(
            format!("it need not name whom it is for: {}", names(&open)),
            "name the resource, and leave require_aud as it is",
        );
    }
    let bound = facts.those(|_, one| one.wants == "token" && one.binding != "bearer").len();
    pass(format!(
        "each of {} has one audience; {bound} are bound to a key as FAL3 asks, the rest as FAL2 allows",
        count(tokens.len() as u64, "token")
    ))
}

fn binding(facts: &Facts<'_>) -> Said {
    let told: Vec<String> =
        facts.heard.unregistered.iter().map(|(who, seq)| format!("{who} (record {seq})")).collect();
    if !told.is_empty() {
        return fail(
            format!("an issuer could not be told which keys are whose: {}", names(&told)),
            "see what it says: keybearer status; or register by hand: keybearer keys export",
        );
    }
    match facts.heard.registered {
        0 => not_applicable(
            "which key is whose was told to the issuers by hand, and is in their records, not in this ledger",
        ),
        times => {
            pass(format!("issuers were told of keys by the agent {times} times, and took the last of each"))
        }
    }
}

fn cryptography(facts: &Facts<'_>) -> Said {
    let open: Vec<String> = facts
        .host
        .issuers
        .iter()
        .filter(|one| one.address.starts_with("http://"))
        .map(|one| one.name.clone())
        .collect();
    let origins: Vec<String> =
        facts.those(|_, one| one.origins.iter().any(|origin| origin.starts_with("http://")));
    if !open.is_empty() || !origins.is_empty() {
        return fail(
            format!("plain HTTP on this host's loopback: {}", names(&[open, origins].concat())),
            "that is for development: name an https URL",
        );
    }
    let mut algorithms: Vec<String> =
        facts.identities.iter().filter_map(|one| Some(one.key.as_ref()?.algorithm.clone())).collect();
    algorithms.sort();
    algorithms.dedup();
    if facts.host.issuers.is_empty() {
        return not_applicable("there is no issuer to speak to");
    }
    let keys = if algorithms.is_empty() { "none".into() } else { algorithms.join(", ") };
    pass(format!(
        "TLS to every issuer and API; keys that prove who asks: {keys}, each of 112 bits of strength or more"
    ))
}

fn records(facts: &Facts<'_>) -> Said {
    match &facts.ledger.trust {
        Trust::Tampered { seq, fault } => {
            return fail(
                format!("the ledger is not what was written, from record {seq} on: {fault}"),
                "keep the directory as evidence, find out who wrote there, then move it away to begin a new ledger",
            );
        }
        Trust::Missing => return not_applicable("there is no ledger yet"),
        Trust::Whole { .. } => {}
    }
    if let Some(seq) = facts.heard.gaps.last() {
        return fail(
            format!("records are missing: the ledger says so itself (record {seq})"),
            "see that its disk has room; audit.on_failure = \"deny\"",
        );
    }
    if facts.host.unrecorded_allowed {
        return fail("what cannot be recorded is answered all the same", "audit.on_failure = \"deny\"");
    }
    let Trust::Whole { records, signed, key_given } = facts.ledger.trust else {
        return not_applicable("there is no ledger yet");
    };
    // A checkpoint is due within the hour: where there is none, somebody may have taken those away that were, and written what he
    // liked after the last that he left.
    let latest = facts.heard.last.map_or(facts.now, |last| last.max(facts.now));
    if let Some(since) = facts.heard.unsigned_since
        && latest.duration_since(since) > UNSIGNED
    {
        return fail(
            format!(
                "{records} records, and no checkpoint signs those from {} on: {signed} are signed",
                seconds(since)
            ),
            "if the agent stands still, start it: it signs what is there; if not, where are the checkpoints that it signed? Hold the ledger against a copy of one",
        );
    }
    let vouched = match key_given {
        true => "the key that you named vouches for it",
        false => {
            "only the key beside the ledger vouches for it: --key with a copy that was kept elsewhere tells more"
        }
    };
    pass(format!(
        "{records} records, each chained to the one before, {signed} of them signed, {vouched}; what cannot be recorded is not answered"
    ))
}

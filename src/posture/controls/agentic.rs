//! OWASP Top 10 for Agentic Applications, 2026. The settings do not say which programs are AI agents, so each is held against it as if
//! it were one.

use std::collections::BTreeMap;

use super::{Check, Said, fail, names, not_applicable, pass};
use crate::posture::{Facts, count, seconds};

pub(super) const ALL: [(&str, &str, Check); 10] = [
    ("GA-01", "ASI01 Agent Goal Hijack", goals),
    ("GA-02", "ASI02 Tool Misuse and Exploitation", tools),
    ("GA-03", "ASI03 Identity and Privilege Abuse", abuse),
    ("GA-04", "ASI04 Agentic Supply Chain Vulnerabilities", supply),
    ("GA-05", "ASI05 Unexpected Code Execution (RCE)", execution),
    ("GA-06", "ASI06 Memory and Context Poisoning", memory),
    ("GA-07", "ASI07 Insecure Inter-Agent Communication", communication),
    ("GA-08", "ASI08 Cascading Failures", failures),
    ("GA-09", "ASI09 Human-Agent Trust Exploitation", approval),
    ("GA-10", "ASI10 Rogue Agents", rogue),
];

fn goals(facts: &Facts<'_>) -> Said {
    if facts.those(|_, one| one.wants == "token").is_empty() {
        return not_applicable("no identity has a token that could be capped by an API and a scope");
    }
    let open = facts.those(|_, one| one.wants == "token" && (one.audience.is_none() || one.scope.is_empty()));
    if !open.is_empty() {
        return fail(
            format!("not capped by both an API and a scope: {}", names(&open)),
            "name resource and scope: a hijacked program gets that and no more",
        );
    }
    let widest =
        facts.identities.iter().max_by_key(|one| (one.reach.scopes.len(), one.reach.audiences.len()));
    match widest {
        None => not_applicable("there are no identities"),
        Some(widest) => pass(format!(
            "every token is capped by one API and its scope; the widest identity, {}, reaches {} with {}",
            widest.name,
            count(widest.reach.audiences.len() as u64, "API"),
            count(widest.reach.scopes.len() as u64, "scope")
        )),
    }
}

fn tools(facts: &Facts<'_>) -> Said {
    let tokens = facts.those(|_, one| one.wants == "token");
    if tokens.is_empty() {
        return not_applicable("no identity has a token for a tool");
    }
    let broad = facts.those(|_, one| {
        one.wants == "token" && (one.audience.is_none() || !one.audience_checked || one.origins.len() > 1)
    });
    if !broad.is_empty() {
        return fail(
            format!("good for more than one tool, or for none in particular: {}", names(&broad)),
            "one credential for each tool: its own resource, one origin, require_aud as it is",
        );
    }
    pass(format!("each of {} is for one tool, and says so", count(tokens.len() as u64, "token")))
}

fn abuse(facts: &Facts<'_>) -> Said {
    let anybody = facts.who(|one| one.by_group_only);
    if !anybody.is_empty() {
        return fail(
            format!("whoever is in a group or a slice is {}", names(&anybody)),
            "match the unit or the user, so that each agent is an identity of its own",
        );
    }
    let silent = facts.those(|_, one| one.impersonates);
    if !silent.is_empty() {
        return fail(
            format!("somebody's right is used without saying who acts: {}", names(&silent)),
            "name the actor = { .. } of the exchange, so that the API sees who acts",
        );
    }
    if facts.identities.is_empty() {
        return not_applicable("there are no identities");
    }
    pass("each identity is a program or a user of its own, and whoever acts for another says so")
}

fn supply(facts: &Facts<'_>) -> Said {
    let high = facts.who(|one| one.assurance == "high");
    if high.is_empty() {
        return not_applicable("no identity demands that its program is known (assurance \"high\")");
    }
    let loose = facts.who(|one| one.assurance == "high" && !one.by_content);
    if !loose.is_empty() {
        return fail(
            format!("a program that was exchanged would be served still: {}", names(&loose)),
            "match the program by sha256, and change it with each release",
        );
    }
    pass(format!("each identity of assurance \"high\" ({}) is one program by its content", names(&high)))
}

fn execution(facts: &Facts<'_>) -> Said {
    let open = facts.those(|_, one| !one.variables.is_empty());
    if !open.is_empty() {
        return fail(
            format!("in the environment, which every child inherits: {}", names(&open)),
            "deliver them as files, or have the program ask",
        );
    }
    let loose = facts.who(|one| !one.by_program);
    if !loose.is_empty() {
        return fail(
            format!("what its program starts is the same identity: {}", names(&loose)),
            "match the program as well (exe or sha256), where it is no interpreter",
        );
    }
    if facts.identities.is_empty() {
        return not_applicable("there are no identities");
    }
    pass("each identity is one program, which has to answer for itself: what it starts is nobody")
}

fn memory(facts: &Facts<'_>) -> Said {
    let only = |one: &crate::posture::CredentialPart| one.forward == "only";
    let some = facts.who(|one| one.credentials.iter().any(only));
    if some.is_empty() {
        return not_applicable(
            "the settings do not say which programs are language models, and keep nothing from any (forward = \"only\")",
        );
    }
    let leaks = facts.those(|identity, one| some.contains(&identity.name) && !only(one));
    if !leaks.is_empty() {
        return fail(
            format!("handed to programs that other credentials are kept from: {}", names(&leaks)),
            "forward = \"only\" for all of that identity",
        );
    }
    pass(format!("the agent calls the APIs, and what it uses is never seen by {}", names(&some)))
}

fn communication(facts: &Facts<'_>) -> Said {
    let tokens = facts.those(|_, one| one.wants == "token");
    if tokens.is_empty() {
        return not_applicable("no identity has a token to show to others");
    }
    let open =
        facts.those(|_, one| one.wants == "token" && (one.binding == "bearer" || one.audience.is_none()));
    if !open.is_empty() {
        return fail(
            format!("whoever was shown it can show it again: {}", names(&open)),
            "binding = \"dpop\" or \"mtls\", and a resource",
        );
    }
    pass(format!("each of {} is for one API and bound to a key", count(tokens.len() as u64, "token")))
}

fn failures(facts: &Facts<'_>) -> Said {
    let down: Vec<String> = facts
        .credentials()
        .filter_map(|(identity, one)| {
            Some(format!("{}.{} (record {})", identity.name, one.name, one.failing_since?))
        })
        .collect();
    if !down.is_empty() {
        return fail(
            format!("nothing came since the last failure for {}", names(&down)),
            "keybearer status tells what its issuer says; keybearer audit explain SEQ, what it said then",
        );
    }
    if facts.handed_out() == 0 {
        return not_applicable(format!("nothing was handed out in {} days", facts.days));
    }
    let troubled: BTreeMap<_, _> =
        facts.heard.issuers.iter().filter(|(_, (_, failed))| *failed > 0).collect();
    match troubled.iter().next() {
        None => pass(format!("no issuer failed in {} days", facts.days)),
        Some((issuer, (_, failed))) => pass(format!(
            "every credential was had again after trouble; issuer {issuer} failed {failed} times{}",
            if troubled.len() > 1 { format!(", and {} more did", troubled.len() - 1) } else { String::new() }
        )),
    }
}

fn approval(facts: &Facts<'_>) -> Said {
    let again = facts.those(|_, one| one.details && one.max_uses != Some(1));
    if !again.is_empty() {
        return fail(
            format!("meant for a particular request, and good for several: {}", names(&again)),
            "max_uses = 1, so that what was approved once is used once; the approval itself is the issuer's to ask for",
        );
    }
    not_applicable("the agent asks no person for approval: where an issuer does, it alone knows")
}

fn rogue(facts: &Facts<'_>) -> Said {
    let lives: Vec<String> =
        facts.heard.unrevoked(facts.now).map(|(who, seq)| format!("{who} (record {seq})")).collect();
    if !lives.is_empty() {
        return fail(
            format!("what should be dead could not be revoked and lives still: {}", names(&lives)),
            "switch the client off at its issuer, or wait until it ends",
        );
    }
    // While an issuer is down, nothing is on record yet of what waits to be revoked there.
    let lives: Vec<String> = facts
        .disabled
        .keys()
        .filter_map(|name| Some((name, facts.heard.lives_until(name).filter(|until| *until > facts.now)?)))
        .map(|(name, until)| format!("{name} (until {})", seconds(until)))
        .collect();
    if !lives.is_empty() {
        return fail(
            format!("switched off, and what was handed out before lives still: {}", names(&lives)),
            "keybearer status tells whether its revocation waits for an issuer; switch the client off there, or wait until it ends",
        );
    }
    let off = facts.who(|one| one.disabled.is_some());
    if off.is_empty() && facts.heard.revoked == 0 {
        return not_applicable(format!("nobody was switched off and nothing revoked in {} days", facts.days));
    }
    pass(format!(
        "{} switched off; {} confirmed, and nothing lives that should not",
        count(off.len() as u64, "identity"),
        count(facts.heard.revoked, "revocation")
    ))
}

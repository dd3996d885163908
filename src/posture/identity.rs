//! One identity. In go its settings and how the ledger saw it used; out comes its part of the report.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Asked, BroughtPart, CertificatePart, CredentialPart, ExceptionPart, IdentityPart, KeyPart, Kind, Life,
    Reach, days, heard::Use, seconds,
};
use crate::{
    attest::Level,
    credential::Binding,
    issuer::{
        terms::{ClientAuth, GrantType, SvidSource, Terms, Wants},
        token_file::TokenFile,
    },
    keys::{Custody, SignedBy},
    policy::{CredentialRule, Identity, Selectors},
    secret::hex,
};

pub(super) fn part(asked: &Asked<'_>, identity: &Identity, covers: bool) -> IdentityPart {
    let used: BTreeMap<&str, &Use> = asked.heard.of(&identity.name).collect();
    let all = || used.values().copied();
    let last = all().filter_map(|used| used.last).max();
    let handed_out = all().map(|used| used.handed_out).sum();
    let levels: BTreeSet<&String> = all().flat_map(|used| &used.levels).collect();
    let credentials: Vec<CredentialPart> = identity
        .credentials
        .values()
        .map(|rule| credential(asked, identity, rule, used.get(&*rule.name).copied(), covers))
        .collect();
    let key = asked.settings.keys.get(&identity.name).filter(|key| key.client).map(|key| KeyPart {
        custody: custody(&key.custody),
        algorithm: key.algorithm.to_string(),
        age_limit_s: key.rotation.every.as_secs(),
        sealed: sealed(asked),
    });
    let certificate = asked.settings.certificates.get(&identity.name).map(|own| CertificatePart {
        custody: custody(&own.custody),
        sealed: sealed(asked),
        life_s: (own.signed_by == SignedBy::Itself).then_some(own.lifetime.as_secs()),
        export: own.export,
    });
    let every = |of: fn(&Selectors) -> bool| identity.selectors.iter().all(of);
    IdentityPart {
        name: identity.name.to_string(),
        matches: identity.selectors.iter().map(words).collect(),
        owner: identity.owner.clone(),
        assurance: identity.assurance.as_str().into(),
        demands: identity.assurance.level().to_string(),
        attested: identity.assurance.level() >= Level::L3
            || every(|one| one.unit.is_some() || one.slice.is_some() || one.rest_on_the_program()),
        by_program: every(Selectors::rest_on_the_program),
        by_content: every(|one| one.sha256.is_some()),
        by_group_only: identity.selectors.iter().any(|one| {
            let owns = one.unit.is_some() || one.user_unit.is_some() || one.user.is_some();
            !owns && !one.rest_on_the_program()
        }),
        level_best: levels.last().map(ToString::to_string),
        level_worst: levels.first().map(ToString::to_string),
        disabled: asked.disabled.get(&identity.name).cloned(),
        key,
        certificate,
        life: match last {
            Some(last) if last >= asked.since => Life::Used,
            _ if covers => Life::Stale,
            _ => Life::Unknown,
        },
        last_used: last.map(seconds),
        handed_out,
        denied: all().map(|used| used.denied).sum(),
        units: all()
            .flat_map(|used| used.units.iter().cloned())
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect(),
        people: identity.humans.as_str(),
        humans: asked
            .heard
            .humans(&identity.name, identity.selectors.iter().any(|one| one.user_unit.is_some())),
        reach: reach(asked, identity, &credentials),
        credentials,
    }
}

fn credential(
    asked: &Asked<'_>,
    identity: &Identity,
    rule: &CredentialRule,
    used: Option<&Use>,
    covers: bool,
) -> CredentialPart {
    let nothing = Use::default();
    let used = used.unwrap_or(&nothing);
    let in_custody = match &rule.terms.wants {
        Wants::Certificate(terms) => Some(terms.path.is_some()),
        Wants::Token | Wants::Lease(_) | Wants::Sealed(_) => None,
    };
    let scope: Vec<String> = rule.scope.iter().map(ToString::to_string).collect();
    // Where nothing was handed out, its scopes are not what is too much; and of what is kept sealed, nobody hears a scope.
    let told = covers && used.handed_out > 0 && !used.carried.is_empty();
    let pick = |wanted: bool, keep: &dyn Fn(&String) -> bool| -> Vec<String> {
        if wanted { scope.iter().filter(|scope| keep(scope)).cloned().collect() } else { vec![] }
    };
    let unused = pick(told, &|scope| !used.carried.contains(scope));
    let unproven =
        pick(scope.len() > 1, &|scope| used.carried.contains(scope) && !used.named.contains(scope));
    CredentialPart {
        name: rule.name.to_string(),
        kind: kind(rule, used),
        wants: match &rule.terms.wants {
            Wants::Token => "token",
            Wants::Certificate(_) => "certificate",
            Wants::Lease(_) => "lease",
            Wants::Sealed(_) => "sealed",
        },
        binding: rule.binding.as_str(),
        phishing_resistance: match rule.binding {
            Binding::Mtls => "channel",
            Binding::Dpop => "name",
            Binding::Bearer => "none",
        },
        issuer: rule.issuer.to_string(),
        client_id: rule.client_id.to_string(),
        client_auth: rule.terms.client_auth.as_str(),
        brought: brought(&rule.terms),
        impersonates: matches!(&rule.terms.grant, GrantType::TokenExchange(exchange) if exchange.actor.is_none()),
        audience: rule.resource.as_deref().map(str::to_owned),
        audience_checked: rule.require_aud,
        scopes_beyond: used.carried.iter().filter(|had| !scope.contains(had)).cloned().collect(),
        scope,
        details: !rule.terms.details.is_empty(),
        origins: rule.proofs.origins.clone(),
        forward: match &rule.forward {
            None => "never",
            Some(forward) if forward.only => "only",
            Some(_) => "allowed",
        },
        per: rule.per.as_str(),
        max_uses: rule.max_uses,
        key_export: rule.key_export,
        key_custody: in_custody.map(|in_file| if in_file { "file" } else { "memory" }),
        key_sealed: in_custody.and_then(|_| sealed(asked)),
        variables: identity
            .delivery
            .env
            .iter()
            .filter(|(_, source)| *source.credential == *rule.name)
            .map(|(variable, _)| variable.to_string())
            .collect(),
        life_allowed_s: rule.max_ttl.as_secs(),
        life_seen_s: used.longest_s,
        exception: rule.exception.as_ref().map(|exception| ExceptionPart {
            owner: exception.owner.clone(),
            reason: exception.reason.clone(),
            until: seconds(exception.until),
            days_left: days(exception.until.duration_since(asked.now)),
        }),
        handed_out: used.handed_out,
        last_used: used.last.map(seconds),
        known_for_days: used.first.map(|first| days(asked.now.duration_since(first)).max(0)),
        scopes_unused: unused,
        scopes_unproven: unproven,
        failing_since: used.failing_since,
    }
}

fn kind(rule: &CredentialRule, used: &Use) -> Kind {
    let only = rule.forward.as_ref().is_some_and(|forward| forward.only);
    match &rule.terms.wants {
        Wants::Sealed(_) if only => Kind::Bridged,
        Wants::Sealed(_) => Kind::Static,
        // An entry of a key-value store: it is leased to nobody and stays as it is. Those of version 2 show it by their path, behind
        // a mount of one name or several; those of version 1 by what came.
        Wants::Lease(lease) if used.unleased || lease.at.contains("/data/") => {
            if only {
                Kind::Bridged
            } else {
                Kind::Static
            }
        }
        Wants::Certificate(_) => Kind::Bound,
        Wants::Token | Wants::Lease(_) if rule.binding == Binding::Bearer => Kind::Dynamic,
        Wants::Token | Wants::Lease(_) => Kind::Bound,
    }
}

fn brought(terms: &Terms) -> Vec<BroughtPart> {
    let part = |role, file: &TokenFile| BroughtPart { role, conditions: !file.conditions.claims.is_empty() };
    let mut all = match &terms.client_auth {
        ClientAuth::FederatedJwt(file) | ClientAuth::SpiffeJwt(SvidSource::File(file)) => {
            vec![part("assertion", file)]
        }
        // Made for this, and still good for whoever has it until it ends. Its subject is held against the settings.
        ClientAuth::SpiffeJwt(SvidSource::WorkloadApi { .. }) => {
            vec![BroughtPart { role: "assertion", conditions: true }]
        }
        _ => vec![],
    };
    match &terms.grant {
        GrantType::ClientCredentials => {}
        GrantType::JwtBearer(file) => all.push(part("subject", file)),
        GrantType::TokenExchange(exchange) => {
            all.push(part("subject", &exchange.subject.file));
            all.extend(exchange.actor.as_ref().map(|actor| part("actor", &actor.file)));
        }
    }
    all
}

fn custody(custody: &Custody) -> &'static str {
    match custody {
        Custody::Memory => "memory",
        Custody::File { .. } => "file",
    }
}

/// Whether key files are sealed: as the settings have it, or as the agent said when it started last.
fn sealed(asked: &Asked<'_>) -> Option<bool> {
    match (asked.settings.kept.sealing.names_a_key(), &asked.heard.sealed_by) {
        (true, _) => Some(true),
        (false, Some(by)) => Some(by.is_some()),
        (false, None) => None,
    }
}

fn reach(asked: &Asked<'_>, identity: &Identity, credentials: &[CredentialPart]) -> Reach {
    let all = |of: &dyn Fn(&CredentialPart) -> Vec<String>| -> Vec<String> {
        credentials.iter().flat_map(of).collect::<BTreeSet<_>>().into_iter().collect()
    };
    let audiences = all(&|one| one.audience.iter().cloned().collect());
    let scopes = all(&|one| one.scope.clone());
    let fixed = credentials.iter().any(|one| matches!(one.kind, Kind::Static | Kind::Bridged));
    let longest = credentials.iter().map(|one| one.life_allowed_s).max().unwrap_or(0);
    let size = |one: &CredentialPart| {
        let life = match one.kind {
            Kind::Static | Kind::Bridged => {
                one.exception.as_ref().map_or(90, |it| it.days_left.max(1)).unsigned_abs() * 24
            }
            Kind::Dynamic | Kind::Bound => one.life_allowed_s.div_ceil(3600),
        };
        u64::try_from(one.scope.len()).unwrap_or(u64::MAX).max(1).saturating_mul(life)
    };
    let same_key = match asked.settings.keys.get(&identity.name) {
        Some(key) if key.client => {
            let clients = credentials.iter().filter(|one| one.client_auth == "private_key_jwt");
            let clients: BTreeSet<String> =
                clients.map(|one| format!("client {} at {}", one.client_id, one.issuer)).collect();
            clients.into_iter().collect()
        }
        _ => vec![],
    };
    Reach {
        audiences,
        scopes,
        origins: all(&|one| one.origins.clone()),
        longest_life_s: (!fixed).then_some(longest),
        size: credentials.iter().map(size).fold(0, u64::saturating_add),
        same_key,
    }
}

/// What a process must be, as people say it.
fn words(selectors: &Selectors) -> String {
    let named = |what: &str, value: &dyn std::fmt::Display| format!("{what} {value}");
    let all = [
        selectors.unit.as_ref().map(|unit| named("unit", unit)),
        selectors.user_unit.as_ref().map(|unit| named("user's unit", unit)),
        selectors.slice.as_ref().map(|slice| named("below", slice)),
        selectors.user.as_ref().map(|user| named("user", user)),
        selectors.group.as_ref().map(|group| named("group", group)),
        selectors.supplementary.as_ref().map(|group| named("also in group", group)),
        selectors.exe.as_ref().map(|exe| named("program", &exe.display())),
        selectors.sha256.as_ref().map(|sum| format!("program of sha256 {}…", &hex(sum)[..12])),
    ];
    all.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

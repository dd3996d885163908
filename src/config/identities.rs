//! `[identities.NAME]` as meant: who is somebody, the keys that are its own, and the credentials that it may have.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use jiff::{Timestamp, civil::Date, tz::TimeZone};
use nix::unistd::{Group, User};

use super::{
    certificate,
    delivery::delivery,
    issuers::IssuerSettings,
    reader::{Reader, parse_sha256},
    registrations::{Registrations, registrations},
    sealed,
    terms::terms,
    wants::wants,
};
use crate::{
    credential::Binding,
    jose::Algorithm,
    keys::{
        CLIENT_AUTH, CertificateSettings, Custody, KeySettings, RotationSettings, default_path,
        rotation::MAX_AGE,
    },
    policy::{
        self, Assurance, CredentialRule, Exception, Forward, Humans, Identity, Named, Per, Proofs, Selectors,
    },
    proof::Target,
};

type Keys = BTreeMap<Arc<str>, KeySettings>;

pub(super) fn identities(
    top: &mut Reader<'_>,
    state: &std::path::Path,
    issuers: &BTreeMap<Arc<str>, IssuerSettings>,
) -> (Vec<Identity>, Keys, certificate::Wanted, Registrations) {
    let (mut identities, mut registered) = (Vec::new(), Vec::new());
    let (mut keys, mut certificates) = (BTreeMap::new(), BTreeMap::new());
    for (name, mut reader) in top.named_tables("identities") {
        let name: Arc<str> = name.into();
        let owner = reader.required("owner", "owner = \"team@example.com\"").unwrap_or_default();
        let words =
            [("interim", Assurance::Interim), ("standard", Assurance::Standard), ("high", Assurance::High)];
        if !reader.has("assurance") {
            reader.wrong("assurance", "say how much it matters: \"high\", \"standard\" or \"interim\" (S38)");
        }
        let assurance = reader.word("assurance", Assurance::Standard, &words);
        let selectors = reader.table_or_tables("match").into_iter().map(selectors).collect();
        let words = [("allowed", Humans::Allowed), ("refused", Humans::Refused), ("told", Humans::Told)];
        let humans = reader.word("humans", assurance.humans(), &words);
        let service_manager = reader.word("service_manager", false, &[("refused", false), ("allowed", true)]);
        let mut settings = key(&mut reader, &name, state);
        let (certificate, shows) = certificate::certificate(&mut reader, &name, state);
        let credentials: BTreeMap<_, _> = reader
            .named_tables("credentials")
            .into_iter()
            .map(|(credential_name, reader)| {
                credential(reader, (&name, credential_name), state, assurance, issuers)
            })
            .map(|rule| (Arc::clone(&rule.name), Arc::new(rule)))
            .collect();
        let bound = credentials.values().filter(|rule| rule.binding == Binding::Dpop);
        settings.dpop = bound.map(|rule| Arc::clone(&rule.issuer)).collect();
        let at_acme =
            |rule: &CredentialRule| matches!(issuers.get(&rule.issuer), Some(IssuerSettings::Acme(_)));
        settings.client =
            credentials.values().any(|rule| rule.terms.client_auth.needs_key() || at_acme(rule));
        if settings.custody == Custody::Memory && credentials.values().any(|rule| at_acme(rule)) {
            let what = "an \"acme\" issuer knows this identity by its key: say custody = \"file\", or its account is lost at each start";
            reader.wrong("key.custody", what);
        }
        keys.insert(Arc::clone(&name), settings);
        if let Some(certificate) = certificate {
            let export = credentials.values().any(|rule| rule.key_export);
            certificates.insert(Arc::clone(&name), CertificateSettings { export, ..certificate });
        }
        let delivery = Arc::new(delivery(&mut reader, &credentials));
        registered.extend(registrations(&mut reader, &name, state, issuers, &credentials));
        reader.finish();
        identities.push(Identity {
            name,
            owner,
            assurance,
            selectors,
            credentials,
            shows,
            humans,
            service_manager,
            delivery,
        });
    }
    (identities, keys, certificates, registered)
}

fn selectors(mut reader: Reader<'_>) -> Selectors {
    let uid = reader.id("uid").map(|id| Named { id, name: None });
    let gid = reader.id("gid").map(|id| Named { id, name: None });
    let named_user = reader.string("user").and_then(|name| match User::from_name(&name) {
        Ok(Some(user)) => Some(Named { id: user.uid.as_raw(), name: Some(name) }),
        _ => {
            reader.wrong("user", "this host knows no such user: create it first, or match its uid");
            None
        }
    });
    if uid.is_some() && named_user.is_some() {
        reader.wrong("uid", "give the user or the uid, not both");
    }
    let named_group = group(&mut reader, "group");
    if gid.is_some() && named_group.is_some() {
        reader.wrong("gid", "give the group or the gid, not both");
    }
    let sha256 = reader.string("sha256").and_then(|text| {
        let sum = parse_sha256(&text);
        if sum.is_none() {
            reader.wrong("sha256", "it has to be 64 hexadecimal digits, as sha256sum prints them");
        }
        sum
    });
    let unit_named = |reader: &mut Reader<'_>, key, kinds: &[&str]| {
        let name = reader.string(key)?;
        if kinds.iter().any(|kind| name.ends_with(kind)) {
            return Some(name);
        }
        reader.wrong(key, format!("it has to end in {}", kinds.join(" or ")));
        None
    };
    let selectors = Selectors {
        user: named_user.or(uid),
        group: named_group.or(gid),
        supplementary: group(&mut reader, "supplementary_group"),
        exe: reader.path("exe"),
        sha256,
        unit: unit_named(&mut reader, "unit", &[".service", ".scope", ".socket"]),
        slice: unit_named(&mut reader, "slice", &[".slice"]),
        user_unit: unit_named(&mut reader, "user_unit", &[".service", ".scope", ".socket"]),
    };
    reader.finish();
    selectors
}

fn key(reader: &mut Reader<'_>, identity: &str, state: &std::path::Path) -> KeySettings {
    let default = default_path(&state.join("keys"), identity, CLIENT_AUTH);
    let Some(mut reader) = reader.table("key") else {
        let custody = Custody::File { path: default };
        let rotation = RotationSettings::default();
        return KeySettings {
            custody,
            algorithm: Algorithm::Es256,
            client: true,
            rotation,
            dpop: BTreeSet::new(),
        };
    };
    let algorithms = [
        ("ES256", Algorithm::Es256),
        ("EdDSA", Algorithm::EdDsa),
        ("Ed25519", Algorithm::EdDsa),
        ("PS256", Algorithm::Ps256),
        ("RS256", Algorithm::Rs256),
    ];
    let algorithm = reader.word("algorithm", Algorithm::Es256, &algorithms);
    let in_memory = reader.word("custody", false, &[("file", false), ("memory", true)]);
    let path = reader.path("path");
    if in_memory && path.is_some() {
        reader.wrong("path", "a key in memory has no path");
    }
    let usual = RotationSettings::default();
    let rotation = RotationSettings {
        every: reader.duration("rotate_every", usual.every),
        propagation: reader.duration("propagation", usual.propagation),
    };
    if !(Duration::from_secs(3600)..=MAX_AGE).contains(&rotation.every) {
        reader.wrong(
            "rotate_every",
            "it has to be from 1h to 365d: a key that never rotates is no key (KEY-08, S51)",
        );
    }
    if rotation.propagation > Duration::from_secs(7 * 24 * 3600) {
        reader.wrong("propagation", "it has to be at most 7d");
    }
    reader.finish();
    let custody = if in_memory { Custody::Memory } else { Custody::File { path: path.unwrap_or(default) } };
    KeySettings { custody, algorithm, client: true, rotation, dpop: BTreeSet::new() }
}

fn credential(
    mut reader: Reader<'_>,
    (identity, name): (&str, String),
    state: &std::path::Path,
    assurance: Assurance,
    issuers: &BTreeMap<Arc<str>, IssuerSettings>,
) -> CredentialRule {
    if reader.has("kind") {
        return sealed::credential(reader, (identity, name), assurance);
    }
    for key in ["fields", "forward_as", "systemd_credential"] {
        if reader.has(key) {
            reader.wrong(key, "it is for a secret that stays as it is: say kind = \"sealed\"");
        }
    }
    let issuer: Arc<str> = reader.required("issuer", "issuer = \"corp\"").unwrap_or_default().into();
    if !issuer.is_empty() && !issuers.contains_key(&issuer) {
        reader.wrong("issuer", "there is no [issuers.NAME] of that name");
    }
    let client_id = reader.required("client_id", "client_id = \"payments\"").unwrap_or_default().into();
    let kind = if reader.has("certificate") {
        Kind::Certificate
    } else if reader.has("lease") {
        Kind::Lease
    } else {
        Kind::Token
    };
    for key in [
        "authorization_details",
        "binding",
        "forward",
        "grant",
        "introspect",
        "require_aud",
        "resource",
        "scope",
    ] {
        if kind != Kind::Token && reader.has(key) {
            reader.wrong(key, "it is for access tokens: a certificate or a lease has none of it");
        }
    }
    if kind == Kind::Certificate && reader.has("max_uses") {
        reader.wrong("max_uses", "a certificate is used without being asked for: its life is what limits it");
    }
    if kind == Kind::Lease && reader.has("max_uses") {
        reader.wrong("max_uses", "a lease is one and the same for as long as it is renewed: leave it out");
    }
    // What is leased dies with whom it was leased for.
    let usual = if kind == Kind::Lease { Per::Process } else { Per::Identity };
    let per = reader.word("per", usual, &[("identity", Per::Identity), ("process", Per::Process)]);
    let binding = match kind {
        // Bound unless somebody says otherwise (BCP-01).
        Kind::Token => {
            let words = [("dpop", Binding::Dpop), ("mtls", Binding::Mtls), ("bearer", Binding::Bearer)];
            reader.word("binding", Binding::Dpop, &words)
        }
        Kind::Certificate => Binding::Mtls,
        Kind::Lease => Binding::Bearer,
    };
    if binding != Binding::Mtls && reader.has("key_export") {
        reader.wrong("key_export", "it is only used with binding = \"mtls\"");
    }
    let key_export = reader.word("key_export", false, &[("never", false), ("allowed", true)]);
    let mut scope: Vec<Arc<str>> = reader.strings("scope").into_iter().map(Arc::from).collect();
    scope.sort();
    scope.dedup();
    let resource: Option<Arc<str>> = reader.string("resource").map(Arc::from);
    let dev = matches!(issuers.get(&issuer), Some(IssuerSettings::OAuth(oauth)) if oauth.dev);
    let forward = forward(&mut reader);
    let used = binding == Binding::Dpop || forward.is_some();
    let proofs = proofs(&mut reader, resource.as_deref(), kind, used, dev);
    let username = username(&mut reader, binding);
    let excepted = reader.table("exception").and_then(exception);
    let rule = CredentialRule {
        name: name.as_str().into(),
        issuer,
        client_id,
        require_aud: reader.boolean("require_aud", resource.is_some()),
        resource,
        scope: scope.into(),
        binding,
        key_export,
        terms: {
            let place = state.join("keys").join(format!("{identity}.{name}.certificate.pem"));
            // One file is for one key: processes that have their own keep them in memory.
            let place = Some(place).filter(|_| per == Per::Identity);
            let wants = wants(&mut reader, place, key_export, excepted.is_some());
            Arc::new(terms(&mut reader, wants))
        },
        proofs,
        username,
        forward,
        per,
        max_uses: reader
            .has("max_uses")
            .then(|| reader.integer("max_uses", 1, 1..=1_000_000))
            .and_then(|uses| u32::try_from(uses).ok()),
        max_ttl: match kind {
            Kind::Certificate => reader.duration("max_ttl", policy::CERTIFICATE_TTL),
            Kind::Token | Kind::Lease => reader.duration("max_ttl", assurance.max_ttl()),
        },
        exception: excepted,
    };
    if rule.require_aud && rule.resource.is_none() {
        reader.wrong("require_aud", "without a resource there is no audience to require");
    }
    reader.finish();
    rule
}

/// What a credential is, by its table.
#[derive(Clone, Copy, Eq, PartialEq)]
pub(super) enum Kind {
    Certificate,
    Lease,
    Token,
}

/// Whether the agent calls the API for programs, and how.
pub(super) fn forward(reader: &mut Reader<'_>) -> Option<Forward> {
    const SECOND: Duration = Duration::from_secs(1);
    let words = [("never", None), ("allowed", Some(false)), ("only", Some(true))];
    let forward = reader.word("forward", None, &words);
    let ca_file = reader.path("api_ca_file");
    let patience = reader.duration("api_timeout", Duration::from_secs(30));
    if !(SECOND..=600 * SECOND).contains(&patience) {
        reader.wrong("api_timeout", "it has to be from 1s to 10m");
    }
    for key in ["api_ca_file", "api_timeout"] {
        if forward.is_none() && reader.has(key) {
            reader.wrong(key, "it is only used with forward = \"allowed\" or \"only\"");
        }
    }
    forward.map(|only| Forward { only, carry: None, ca_file, patience })
}

/// Where proofs, calls and the credential itself may go: by default to the API that it is for.
pub(super) fn proofs(
    reader: &mut Reader<'_>,
    resource: Option<&str>,
    kind: Kind,
    used: bool,
    dev: bool,
) -> Proofs {
    if !used && reader.has("methods") {
        reader.wrong("methods", "it is only used with binding = \"dpop\", or with forward");
    }
    if kind == Kind::Certificate && reader.has("origins") {
        reader.wrong("origins", "a certificate may be shown to any server: its key is not sent to it");
    }
    let mut proofs = Proofs { plain: dev, ..Proofs::default() };
    if reader.has("methods") {
        proofs.methods = reader.strings("methods").into_iter().collect();
    }
    let home = resource.and_then(|resource| Target::parse(resource).ok());
    // Where nothing of the agent's goes, an origin only says which hosts a client may take it to, and none by plain HTTP.
    let home = home.filter(|home| used || home.is_https());
    proofs.origins = if reader.has("origins") {
        reader.strings("origins").into_iter().collect()
    } else {
        home.map(|home| home.origin().to_owned()).into_iter().collect()
    };
    proofs
}

/// The user name that goes with a token or a lease, for clients that send it as a password.
fn username(reader: &mut Reader<'_>, binding: Binding) -> Option<Arc<str>> {
    let username = reader.string("username")?;
    if binding != Binding::Bearer {
        reader.wrong(
            "username",
            "it is only used with binding = \"bearer\": what sends names and passwords sends no proofs",
        );
    }
    // It goes before a colon (RFC 7617 2).
    if !(1..=255).contains(&username.len()) || username.contains(':') {
        reader.wrong("username", "it has to be 1 to 255 characters without a colon");
    }
    Some(username.into())
}

pub(super) fn exception(mut reader: Reader<'_>) -> Option<Exception> {
    let owner = reader.required("owner", "owner = \"team@example.com\"");
    let reason = reader.required("reason", "reason = \"the API cannot check bindings yet\"");
    let until = reader.required("until", "until = \"2027-01-31\"").and_then(|text| {
        let until = end_of(&text);
        if until.is_none() {
            reader.wrong(
                "until",
                "it has to be a date such as \"2027-01-31\", or a moment as RFC 3339 writes it",
            );
        }
        until
    });
    reader.finish();
    Some(Exception { owner: owner?, reason: reason?, until: until? })
}

/// The end of a day in UTC, or a moment.
fn end_of(text: &str) -> Option<Timestamp> {
    if let Ok(moment) = text.parse::<Timestamp>() {
        return Some(moment);
    }
    let next_day = text.parse::<Date>().ok()?.tomorrow().ok()?;
    next_day.to_zoned_datetime(TimeZone::UTC).ok().map(|start| start.timestamp())
}

pub(super) fn group(reader: &mut Reader<'_>, key: &'static str) -> Option<Named> {
    let name = reader.string(key)?;
    match Group::from_name(&name) {
        Ok(Some(group)) => Some(Named { id: group.gid.as_raw(), name: Some(name) }),
        _ => {
            reader.wrong(key, "this host knows no such group: create it first");
            None
        }
    }
}

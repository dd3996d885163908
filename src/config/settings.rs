//! agent.toml as meant. In goes the tree as written; out comes each part in its room's own type, with the defaults
//! filled in. What two rooms have to agree on is checked here, because only here both are seen.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    path::{Component, PathBuf},
    sync::Arc,
    time::Duration,
};

use jiff::{Timestamp, civil::Date, tz::TimeZone};
use nix::unistd::{Group, User};

use super::{
    certificate,
    file::Written,
    pins::pins,
    reader::{Mistakes, Reader},
    terms::terms,
};
use crate::{
    audit::{LedgerSettings, OnFailure, Sync},
    credential::Binding,
    issuer::{
        oauth::{self, AssertionTyp, Audience, OAuthSettings, WellKnown},
        terms::ClientAuth,
    },
    jose::Algorithm,
    keys::{CertificateSettings, Custody, KeySettings, RotationSettings, rotation::MAX_AGE},
    policy::{
        Assurance, CredentialRule, Exception, Export, Exports, Identity, Named, Per, Policy, Proofs,
        Selectors,
    },
    proof::Target,
    wire::ListenSettings,
};

/// What the daemon runs on.
#[derive(Debug)]
pub struct Settings {
    /// The name of the environment; development issuers refuse to be used in "prod".
    pub environment: String,
    /// SHA-256 of what was written, hexadecimal.
    pub digest: String,
    /// The sockets.
    pub listen: Listen,
    /// The sockets for one trust boundary each, by name. Which identities count there is a matter of policy (ATT-23).
    pub exports: BTreeMap<Arc<str>, ListenSettings>,
    /// The ledger.
    pub audit: LedgerSettings,
    /// The keys of each identity.
    pub keys: BTreeMap<Arc<str>, KeySettings>,
    /// The client certificates of those that have one.
    pub certificates: BTreeMap<Arc<str>, CertificateSettings>,
    /// The issuers, by name.
    pub issuers: BTreeMap<Arc<str>, IssuerSettings>,
    /// The identities, proved sound.
    pub policy: Arc<Policy>,
    /// The log.
    pub log: Log,
    /// How long calls under way may take at the end.
    pub drain: Duration,
    /// Where what has to survive a restart is kept.
    pub kept: Kept,
}

/// Where what has to survive a restart is kept.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Kept {
    /// Revocations that wait, sealed; in the runtime directory, so gone with the host's power.
    pub revocations: PathBuf,
    /// The key that seals; in the state directory.
    pub sealing_key: PathBuf,
    /// The identities that an operator has switched off.
    pub disabled: PathBuf,
}

/// The sockets.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Listen {
    /// The workloads' gRPC socket.
    pub workload: ListenSettings,
    /// The operators' gRPC socket.
    pub operator: ListenSettings,
    /// The HTTP socket, for curl and health checks.
    pub http: ListenSettings,
    /// Whether the workload socket describes its API to whoever asks.
    pub reflection: bool,
}

impl Settings {
    /// Whether what is only read at start differs: a reload has to say so.
    pub fn listen_differs(&self, other: &Self) -> bool {
        self.listen != other.listen || self.exports != other.exports || self.audit != other.audit
    }
}

/// One issuer, by kind.
#[derive(Clone, Debug)]
pub enum IssuerSettings {
    /// `kind = "oauth"`.
    OAuth(OAuthSettings),
}

/// The log, which is for people; the ledger is for evidence.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Log {
    /// What to log, as a `tracing` filter.
    pub filter: String,
    /// How.
    pub format: LogFormat,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    Auto,
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

/// Gives every part its meaning.
pub(super) fn mean(written: &Written, now: Timestamp) -> Result<Settings, Vec<(String, String)>> {
    let mistakes: Mistakes = RefCell::new(vec![]);
    let mut top = Reader::new(&written.tree, "", &mistakes);

    let environment = top.required("environment", "environment = \"prod\"").unwrap_or_default();
    let state = top.path("state_directory").unwrap_or_else(|| "/var/lib/keybearer".into());
    let runtime = top.path("runtime_directory").unwrap_or_else(|| "/run/keybearer".into());
    let drain = top.duration("drain", Duration::from_secs(10));
    let listen = listen(&mut top, &runtime);
    let audit = audit(&mut top, &state);
    let log = log(&mut top);
    let issuers = issuers(&mut top, &environment);
    let (identities, keys, certificates) = identities(&mut top, &state, &issuers);
    let (exports, served) = exports(&mut top, &listen);
    top.finish();

    let mut mistakes = mistakes.into_inner();
    mistakes.extend(agreements(&identities, &audit));
    mistakes.extend(certificate::agreements(&identities, &certificates, &issuers));
    let policy = Policy::new(identities, served, &environment, now);
    match policy {
        Ok(policy) if mistakes.is_empty() => Ok(Settings {
            environment,
            digest: written.digest.clone(),
            listen,
            exports,
            audit,
            keys,
            certificates,
            issuers,
            policy: Arc::new(policy),
            log,
            drain,
            kept: Kept {
                revocations: runtime.join("revocations"),
                sealing_key: state.join("keys/sealing.pem"),
                disabled: state.join("disabled.json"),
            },
        }),
        Ok(_) => Err(mistakes),
        Err(problems) => {
            let told: BTreeSet<String> = mistakes.iter().map(|(key, _)| key.clone()).collect();
            // A key that could not be read has been told already; its default is not worth a second line.
            mistakes.extend(
                problems
                    .into_iter()
                    .filter(|problem| !told.contains(&problem.key))
                    .map(|problem| (problem.key, problem.message)),
            );
            Err(mistakes)
        }
    }
}

fn listen(top: &mut Reader<'_>, runtime: &std::path::Path) -> Listen {
    let mut limits = top.table("limits");
    let mut limit =
        |key, default, range| limits.as_mut().map_or(default, |limits| limits.integer(key, default, range));
    let max_connections = limit("connections", 1024, 1..=1_000_000);
    let max_per_uid = limit("connections_per_uid", 64, 1..=1_000_000);
    let max_streams = limit("streams_per_connection", 128, 1..=10_000);
    let first_bytes_within = limits.as_mut().map_or(Duration::from_secs(5), |limits| {
        limits.duration("first_request_within", Duration::from_secs(5))
    });
    if let Some(limits) = limits {
        limits.finish();
    }
    let count = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
    let mut sockets = top.table("listen");
    let mut socket = |path_key, file: &str, mode_key, default_mode: u32, group_key| {
        let mut settings = ListenSettings {
            path: runtime.join(file),
            mode: default_mode,
            group: None,
            max_connections: count(max_connections),
            max_per_uid: count(max_per_uid),
            first_bytes_within,
            max_streams: u32::try_from(max_streams).unwrap_or(u32::MAX),
        };
        if let Some(sockets) = &mut sockets {
            settings.path = sockets.path(path_key).unwrap_or(settings.path);
            settings.mode = mode(sockets, mode_key, default_mode);
            settings.group = group(sockets, group_key).map(|group| group.id);
        }
        settings
    };
    let workload = socket("workload", "agent.sock", "workload_mode", 0o660, "workload_group");
    let operator = socket("operator", "operator.sock", "operator_mode", 0o660, "operator_group");
    let http = socket("http", "http.sock", "http_mode", 0o660, "http_group");
    let reflection = sockets.as_mut().is_some_and(|sockets| sockets.boolean("reflection", false));
    if let Some(sockets) = sockets {
        let paths = [&workload.path, &operator.path, &http.path];
        if paths.iter().collect::<BTreeSet<_>>().len() < paths.len() {
            sockets.wrong("workload", "each socket has a path of its own");
        }
        if operator.mode & 0o007 != 0 {
            sockets.wrong("operator_mode", "the operators' socket is never open to everybody");
        }
        sockets.finish();
    }
    Listen { workload, operator, http, reflection }
}

/// Sockets for one trust boundary each: where they are, and for whom.
fn exports(top: &mut Reader<'_>, listen: &Listen) -> (BTreeMap<Arc<str>, ListenSettings>, Exports) {
    let (mut exports, mut served) = (BTreeMap::new(), Exports::new());
    let mut taken =
        vec![listen.workload.path.clone(), listen.operator.path.clone(), listen.http.path.clone()];
    let mut given: Vec<PathBuf> = vec![];
    for (name, mut reader) in top.named_tables("exports") {
        let name: Arc<str> = name.into();
        let identities = reader.strings("identities").into_iter().map(Arc::from).collect();
        if !reader.has("path") {
            reader.wrong("path", "it is required, for example \"/run/keybearer-web/agent.sock\"");
        }
        let path = reader.path("path");
        served.insert(Arc::clone(&name), Export { path: path.clone().unwrap_or_default(), identities });
        let (mode, group) = (mode(&mut reader, "mode", 0o660), group(&mut reader, "group"));
        if let Some(path) = path {
            // Whoever is given the directory of a socket, as containers are, is given all that is in it.
            let directory = path.parent().unwrap_or(&path).to_owned();
            let crowded = taken.iter().any(|other| other.starts_with(&directory));
            let climbs = path.components().any(|part| part == Component::ParentDir);
            if crowded || climbs || given.iter().any(|other| path.starts_with(other)) {
                let message = "it needs a directory of its own, with no other socket in or below it, and named without \"..\"";
                reader.wrong("path", message);
            }
            taken.push(path.clone());
            given.push(directory);
            let group = group.map(|group| group.id);
            exports.insert(name, ListenSettings { path, mode, group, ..listen.workload.clone() });
        }
        reader.finish();
    }
    (exports, served)
}

fn audit(top: &mut Reader<'_>, state: &std::path::Path) -> LedgerSettings {
    let host = host_name();
    let mut settings = LedgerSettings {
        directory: state.join("audit"),
        origin: format!("keybearer/{host}"),
        sync: Sync::Checkpoint,
        on_failure: OnFailure::Deny,
        checkpoint_every: Duration::from_secs(60),
        checkpoint_records: 1000,
    };
    if let Some(mut audit) = top.table("audit") {
        settings.directory = audit.path("directory").unwrap_or(settings.directory);
        if let Some(origin) = audit.string("origin") {
            if origin.is_empty() || origin.contains(['+', ' ']) || !origin.is_ascii() {
                audit.wrong("origin", "an origin is ASCII without blanks and plus signs (C2SP signed-note)");
            }
            settings.origin = origin;
        }
        settings.sync =
            audit.word("sync", settings.sync, &[("checkpoint", Sync::Checkpoint), ("always", Sync::Always)]);
        settings.on_failure = audit.word(
            "on_failure",
            settings.on_failure,
            &[("deny", OnFailure::Deny), ("allow", OnFailure::Allow)],
        );
        settings.checkpoint_every = audit.duration("checkpoint_every", settings.checkpoint_every);
        if !(1..=3600).contains(&settings.checkpoint_every.as_secs()) {
            audit.wrong("checkpoint_every", "it has to be from 1 s to 1 h");
        }
        settings.checkpoint_records =
            audit.integer("checkpoint_records", settings.checkpoint_records, 1..=1_000_000);
        audit.finish();
    }
    settings
}

fn log(top: &mut Reader<'_>) -> Log {
    let mut settings = Log { filter: "info".into(), format: LogFormat::Auto };
    if let Some(mut log) = top.table("log") {
        if let Some(filter) = log.string("filter") {
            if filter.parse::<tracing_subscriber::filter::Targets>().is_err() {
                log.wrong("filter", "it has to be a filter such as \"info\" or \"keybearer=debug\"");
            }
            settings.filter = filter;
        }
        let formats = [("auto", LogFormat::Auto), ("json", LogFormat::Json), ("text", LogFormat::Text)];
        settings.format = log.word("format", settings.format, &formats);
        log.finish();
    }
    settings
}

fn issuers(top: &mut Reader<'_>, environment: &str) -> BTreeMap<Arc<str>, IssuerSettings> {
    let mut issuers = BTreeMap::new();
    for (name, mut reader) in top.named_tables("issuers") {
        let name: Arc<str> = name.into();
        match reader.required("kind", "kind = \"oauth\"").as_deref() {
            Some("oauth") => {
                let settings = oauth_issuer(&mut reader, &name, environment);
                issuers.insert(name, IssuerSettings::OAuth(settings));
                reader.finish();
            }
            Some(_) => reader.wrong("kind", "this version knows the kind \"oauth\""),
            None => reader.finish(),
        }
    }
    issuers
}

fn oauth_issuer(reader: &mut Reader<'_>, name: &Arc<str>, environment: &str) -> OAuthSettings {
    let issuer = reader.required("issuer", "issuer = \"https://idp.example.com\"").unwrap_or_default();
    let pinned = reader.string("token_endpoint");
    let by_endpoint = reader.word("audience", false, &[("issuer", false), ("token_endpoint", true)]);
    let well_known = reader.word(
        "well_known",
        WellKnown::Both,
        &[
            ("both", WellKnown::Both),
            ("oauth-authorization-server", WellKnown::OAuth),
            ("openid-configuration", WellKnown::OpenId),
        ],
    );
    let typ = [("client-authentication+jwt", AssertionTyp::ClientAuthentication), ("JWT", AssertionTyp::Jwt)];
    if !by_endpoint && pinned.is_some() {
        reader.wrong("token_endpoint", "it is only used with audience = \"token_endpoint\"");
    }
    let settings = OAuthSettings {
        name: Arc::clone(name),
        issuer,
        well_known,
        // CFG_AUD_PIN: an empty pin is told by oauth::problems.
        audience: if by_endpoint {
            Audience::TokenEndpoint { pinned: pinned.unwrap_or_default() }
        } else {
            Audience::Issuer
        },
        allowed_endpoint_hosts: reader.strings("allowed_endpoint_hosts"),
        ca_file: reader.path("ca_file"),
        dev: reader.boolean("dev", false),
        assertion_life: reader.duration("assertion_life", Duration::from_secs(60)),
        assertion_typ: reader.word("assertion_typ", AssertionTyp::ClientAuthentication, &typ),
        client_auth_methods: reader.words("client_auth_methods", &CERTIFICATE_METHODS),
        send_client_id: reader.boolean("send_client_id", false),
        pins: pins(reader),
        timeout: reader.duration("timeout", Duration::from_secs(10)),
    };
    if settings.dev && ["prod", "production"].contains(&environment) {
        reader.wrong("dev", "a development issuer is never used in production (S11)");
    }
    for (key, message) in oauth::problems(&settings) {
        reader.wrong(key, message);
    }
    settings
}

type Keys = BTreeMap<Arc<str>, KeySettings>;

const CERTIFICATE_METHODS: [(&str, ClientAuth); 2] = [
    ("tls_client_auth", ClientAuth::TlsClientAuth),
    ("self_signed_tls_client_auth", ClientAuth::SelfSignedTlsClientAuth),
];

fn identities(
    top: &mut Reader<'_>,
    state: &std::path::Path,
    issuers: &BTreeMap<Arc<str>, IssuerSettings>,
) -> (Vec<Identity>, Keys, certificate::Wanted) {
    let mut identities = Vec::new();
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
        let mut settings = key(&mut reader, &name, state);
        let certificate = certificate::certificate(&mut reader, &name, state);
        let credentials: BTreeMap<_, _> = reader
            .named_tables("credentials")
            .into_iter()
            .map(|(name, reader)| credential(reader, name, assurance, issuers))
            .map(|rule| (Arc::clone(&rule.name), Arc::new(rule)))
            .collect();
        let bound = credentials.values().filter(|rule| rule.binding == Binding::Dpop);
        settings.dpop = bound.map(|rule| Arc::clone(&rule.issuer)).collect();
        settings.client = credentials.values().any(|rule| rule.terms.client_auth.needs_key());
        keys.insert(Arc::clone(&name), settings);
        if let Some(certificate) = certificate {
            let export = credentials.values().any(|rule| rule.key_export);
            certificates.insert(Arc::clone(&name), CertificateSettings { export, ..certificate });
        }
        reader.finish();
        identities.push(Identity { name, owner, assurance, selectors, credentials });
    }
    (identities, keys, certificates)
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
    let default = state.join("keys").join(format!("{identity}.client-auth.pem"));
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
    name: String,
    assurance: Assurance,
    issuers: &BTreeMap<Arc<str>, IssuerSettings>,
) -> CredentialRule {
    let issuer: Arc<str> = reader.required("issuer", "issuer = \"corp\"").unwrap_or_default().into();
    if !issuer.is_empty() && !issuers.contains_key(&issuer) {
        reader.wrong("issuer", "there is no [issuers.NAME] of that name");
    }
    let client_id = reader.required("client_id", "client_id = \"payments\"").unwrap_or_default().into();
    // Bound unless somebody says otherwise (BCP-01).
    let bindings = [("dpop", Binding::Dpop), ("mtls", Binding::Mtls), ("bearer", Binding::Bearer)];
    let binding = reader.word("binding", Binding::Dpop, &bindings);
    if binding != Binding::Mtls && reader.has("key_export") {
        reader.wrong("key_export", "it is only used with binding = \"mtls\"");
    }
    let key_export = reader.word("key_export", false, &[("never", false), ("allowed", true)]);
    let mut scope: Vec<Arc<str>> = reader.strings("scope").into_iter().map(Arc::from).collect();
    scope.sort();
    scope.dedup();
    let resource: Option<Arc<str>> = reader.string("resource").map(Arc::from);
    let dev = matches!(issuers.get(&issuer), Some(IssuerSettings::OAuth(oauth)) if oauth.dev);
    let proofs = proofs(&mut reader, resource.as_deref(), binding, dev);
    let rule = CredentialRule {
        name: name.into(),
        issuer,
        client_id,
        require_aud: reader.boolean("require_aud", resource.is_some()),
        resource,
        scope: scope.into(),
        binding,
        key_export,
        terms: Arc::new(terms(&mut reader)),
        proofs,
        per: reader.word("per", Per::Identity, &[("identity", Per::Identity), ("process", Per::Process)]),
        max_uses: reader
            .has("max_uses")
            .then(|| reader.integer("max_uses", 1, 1..=1_000_000))
            .and_then(|uses| u32::try_from(uses).ok()),
        max_ttl: reader.duration("max_ttl", assurance.max_ttl()),
        exception: reader.table("exception").and_then(exception),
    };
    if rule.require_aud && rule.resource.is_none() {
        reader.wrong("require_aud", "without a resource there is no audience to require");
    }
    reader.finish();
    rule
}

/// Where proofs may go: by default to the API that the credential is for.
fn proofs(reader: &mut Reader<'_>, resource: Option<&str>, binding: Binding, dev: bool) -> Proofs {
    for key in ["origins", "methods"] {
        if binding != Binding::Dpop && reader.has(key) {
            reader.wrong(key, "it is only used with binding = \"dpop\"");
        }
    }
    let mut proofs = Proofs { plain: dev, ..Proofs::default() };
    if reader.has("methods") {
        proofs.methods = reader.strings("methods").into_iter().collect();
    }
    let home = resource.and_then(|resource| Target::parse(resource).ok());
    proofs.origins = if reader.has("origins") {
        reader.strings("origins").into_iter().collect()
    } else {
        home.map(|home| home.origin().to_owned()).into_iter().collect()
    };
    proofs
}

fn exception(mut reader: Reader<'_>) -> Option<Exception> {
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

fn group(reader: &mut Reader<'_>, key: &'static str) -> Option<Named> {
    let name = reader.string(key)?;
    match Group::from_name(&name) {
        Ok(Some(group)) => Some(Named { id: group.gid.as_raw(), name: Some(name) }),
        _ => {
            reader.wrong(key, "this host knows no such group: create it first");
            None
        }
    }
}

fn mode(reader: &mut Reader<'_>, key: &'static str, default: u32) -> u32 {
    let Some(text) = reader.string(key) else { return default };
    match u32::from_str_radix(&text, 8) {
        Ok(mode) if mode & !0o777 == 0 && mode & 0o111 == 0 => mode,
        _ => {
            reader.wrong(key, "it has to be an octal mode in quotes without execute bits, such as \"0660\"");
            default
        }
    }
}

pub(super) fn parse_sha256(text: &str) -> Option<[u8; 32]> {
    let digits = text.as_bytes();
    let mut sum = [0; 32];
    if digits.len() != 64 {
        return None;
    }
    for (byte, pair) in sum.iter_mut().zip(digits.chunks(2)) {
        let high = char::from(pair[0]).to_digit(16)?;
        let low = char::from(pair[1]).to_digit(16)?;
        *byte = u8::try_from(high * 16 + low).ok()?;
    }
    Some(sum)
}

fn host_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let name: String = name.chars().filter(|c| c.is_ascii_alphanumeric() || "-._".contains(*c)).collect();
    if name.is_empty() { "host".into() } else { name }
}

/// What two rooms have to agree on.
fn agreements(identities: &[Identity], audit: &LedgerSettings) -> Vec<(String, String)> {
    let mut mistakes = Vec::new();
    let mut clients: BTreeMap<(&str, &str), &str> = BTreeMap::new();
    for identity in identities {
        if identity.assurance == Assurance::Interim && audit.on_failure == OnFailure::Allow {
            let message = "\"interim\" is only for as long as every exchange is on record (S40): audit.on_failure = \"deny\"";
            mistakes.push((format!("identities.{}.assurance", identity.name), message.into()));
        }
        for rule in identity.credentials.values() {
            let slot = (&*rule.issuer, &*rule.client_id);
            match clients.insert(slot, &identity.name) {
                Some(other) if *other != *identity.name => {
                    let key = format!("identities.{}.credentials.{}.client_id", identity.name, rule.name);
                    let message = format!(
                        "identities.{other} is the same client of this issuer: each identity has its own (NHI-9)"
                    );
                    mistakes.push((key, message));
                }
                _ => {}
            }
        }
    }
    mistakes
}

/// Where things are by default, for `--help` and for clients.
impl Listen {
    /// The workloads' socket if nobody says otherwise.
    pub const WORKLOAD: &str = "/run/keybearer/agent.sock";
    /// The operators' socket if nobody says otherwise.
    pub const OPERATOR: &str = "/run/keybearer/operator.sock";
    /// The HTTP socket if nobody says otherwise.
    pub const HTTP: &str = "/run/keybearer/http.sock";
}

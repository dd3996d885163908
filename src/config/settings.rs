//! agent.toml as meant. In goes the tree as written; out comes each part in its room's own type, with the defaults
//! filled in. What two rooms have to agree on is checked here, because only here both are seen.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    path::{Component, PathBuf},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;

use super::{
    certificate,
    file::Written,
    identities::{group, identities},
    issuers::{IssuerSettings, issuers},
    reader::{Mistakes, Reader},
    registrations::Registrations,
};
use crate::{
    audit::{LedgerSettings, OnFailure, Sync},
    issuer::terms::{SealedBy, SealedTerms, Wants},
    journal,
    keys::{CertificateSettings, Custody, Home, KeySettings, MACHINE_ID, SealSettings, SignedBy, Workshop},
    policy::{Assurance, Export, Exports, Identity, Policy},
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
    /// The registrations that are kept true (KEY-09).
    pub registrations: Registrations,
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
    /// Revocations that wait, sealed; in the runtime directory, so gone with the host's power: the key that opens them lies in the
    /// state directory.
    pub revocations: PathBuf,
    /// The same in the state directory, where that key is sealed itself: they outlive the host's power.
    pub revocations_at_rest: PathBuf,
    /// What is live when the agent stops, sealed; there too.
    pub live: PathBuf,
    /// The keys that it is bound to, sealed; there too.
    pub proofs: PathBuf,
    /// The key that seals these; in the state directory.
    pub sealing_key: PathBuf,
    /// Where the key comes from that seals key files, that one too.
    pub sealing: SealSettings,
    /// How a copy of the state directory is known for one; none if it is not to be.
    pub home: Option<Home>,
    /// The identities that an operator has switched off.
    pub disabled: PathBuf,
    /// From where identities were used.
    pub places: PathBuf,
    /// Where secrets lie that cannot be dynamic yet.
    pub sealed: PathBuf,
    /// Where keys are made that the settings name no other place for.
    pub keys: Workshop,
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
    /// The socket at which the host's service manager asks for units (`LoadCredential=`): root's alone.
    pub systemd: ListenSettings,
    /// Whether the workload socket describes its API to whoever asks.
    pub reflection: bool,
    /// The group that may read metrics on the HTTP socket, beside operators.
    pub metrics_group: Option<u32>,
}

impl Settings {
    /// The files with keys in them, where the settings have them.
    pub fn key_files(&self) -> impl Iterator<Item = &std::path::Path> {
        key_files(&self.keys, &self.certificates)
    }

    /// Whether there is a secret that the agent keeps sealed, for which it needs a key.
    pub fn has_sealed(&self) -> bool {
        let mut rules = self.policy.identities().flat_map(|identity| identity.credentials.values());
        rules.any(|rule| matches!(&rule.terms.wants, Wants::Sealed(terms) if terms.keeper == SealedBy::Agent))
    }

    /// Whether what is only read at start differs: a reload has to say so.
    pub fn listen_differs(&self, other: &Self) -> bool {
        let kept = self.kept.sealing != other.kept.sealing || self.kept.home != other.kept.home;
        self.listen != other.listen || self.exports != other.exports || self.audit != other.audit || kept
    }
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
pub(super) fn mean(
    written: &Written,
    credentials: Option<PathBuf>,
    journaled: bool,
    now: Timestamp,
) -> Result<Settings, Vec<(String, String)>> {
    let mistakes: Mistakes = RefCell::new(vec![]);
    let mut top = Reader::new(&written.tree, "", &mistakes);

    let environment = top.required("environment", "environment = \"prod\"").unwrap_or_default();
    let state = top.path("state_directory").unwrap_or_else(|| "/var/lib/keybearer".into());
    let runtime = top.path("runtime_directory").unwrap_or_else(|| "/run/keybearer".into());
    let drain = top.duration("drain", Duration::from_secs(10));
    let listen = listen(&mut top, &runtime);
    let audit = audit(&mut top, &state, journaled);
    let log = log(&mut top);
    let (sealing, home) = sealing(&mut top, &state, credentials);
    let issuers = issuers(&mut top, &environment, &state);
    let (identities, keys, certificates, registrations) = identities(&mut top, &state, &issuers);
    let (exports, served) = exports(&mut top, &listen);
    top.finish();

    let mut mistakes = mistakes.into_inner();
    mistakes.extend(agreements(&identities, &audit));
    mistakes.extend(certificate::agreements(&identities, &certificates, &issuers));
    mistakes.extend(certificate::places(&identities, &named(&keys, &certificates, &[])));
    let workshop =
        Workshop { directory: state.join("keys"), named: named(&keys, &certificates, &identities) };
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
            registrations,
            issuers,
            policy: Arc::new(policy),
            log,
            drain,
            kept: Kept {
                revocations: runtime.join("revocations"),
                revocations_at_rest: state.join("revocations"),
                live: runtime.join("live"),
                proofs: runtime.join("proofs"),
                sealing_key: state.join("keys/sealing.pem"),
                sealing,
                home,
                disabled: state.join("disabled.json"),
                places: state.join("places.json"),
                sealed: state.join("sealed"),
                keys: workshop,
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

/// The files with keys in them.
fn key_files<'a>(
    keys: &'a BTreeMap<Arc<str>, KeySettings>,
    certificates: &'a BTreeMap<Arc<str>, CertificateSettings>,
) -> impl Iterator<Item = &'a std::path::Path> {
    let custodies =
        keys.values().map(|key| &key.custody).chain(certificates.values().map(|one| &one.custody));
    custodies.filter_map(|custody| match custody {
        Custody::File { path } => Some(path.as_path()),
        Custody::Memory => None,
    })
}

/// The files of keys and certificates that are in use.
fn named(
    keys: &BTreeMap<Arc<str>, KeySettings>,
    certificates: &BTreeMap<Arc<str>, CertificateSettings>,
    identities: &[Identity],
) -> BTreeSet<PathBuf> {
    let chains = certificates.values().filter_map(|one| match &one.signed_by {
        SignedBy::Others(path) => Some(path.as_path()),
        SignedBy::Itself => None,
    });
    let rules = identities.iter().flat_map(|identity| identity.credentials.values());
    let kept = rules.filter_map(|rule| match &rule.terms.wants {
        Wants::Certificate(terms) => terms.path.as_ref(),
        Wants::Token | Wants::Lease(_) | Wants::Sealed(_) => None,
    });
    let kept = kept.map(PathBuf::as_path);
    key_files(keys, certificates).chain(chains).chain(kept).map(PathBuf::from).collect()
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
    // Nobody but root is served there, whatever an operator would say; and root starts many units at once.
    let systemd = ListenSettings { path: runtime.join("systemd.sock"), mode: 0o600, ..http.clone() };
    let path = sockets.as_mut().and_then(|sockets| sockets.path("systemd"));
    let systemd = ListenSettings {
        path: path.unwrap_or(systemd.path),
        group: None,
        max_per_uid: systemd.max_connections,
        ..systemd
    };
    let metrics_group =
        sockets.as_mut().and_then(|sockets| group(sockets, "metrics_group")).map(|group| group.id);
    let reflection = sockets.as_mut().is_some_and(|sockets| sockets.boolean("reflection", false));
    if let Some(sockets) = sockets {
        let paths = [&workload.path, &operator.path, &http.path, &systemd.path];
        if paths.iter().collect::<BTreeSet<_>>().len() < paths.len() {
            sockets.wrong("workload", "each socket has a path of its own");
        }
        if operator.mode & 0o007 != 0 {
            sockets.wrong("operator_mode", "the operators' socket is never open to everybody");
        }
        sockets.finish();
    }
    Listen { workload, operator, http, systemd, reflection, metrics_group }
}

/// Sockets for one trust boundary each: where they are, and for whom.
fn exports(top: &mut Reader<'_>, listen: &Listen) -> (BTreeMap<Arc<str>, ListenSettings>, Exports) {
    let (mut exports, mut served) = (BTreeMap::new(), Exports::new());
    let mut taken = [&listen.workload, &listen.operator, &listen.http, &listen.systemd]
        .map(|socket| socket.path.clone())
        .to_vec();
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

fn audit(top: &mut Reader<'_>, state: &std::path::Path, journaled: bool) -> LedgerSettings {
    let host = host_name();
    let mut settings = LedgerSettings::new(state.join("audit"), format!("keybearer/{host}"));
    settings.journal = journaled.then(|| journal::SOCKET.into());
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
        settings.rotate_at = audit.integer("rotate_at", settings.rotate_at, 1 << 16..=1 << 40);
        let copied = audit.word("journal", journaled, &[("auto", journaled), ("on", true), ("off", false)]);
        settings.journal = copied.then(|| journal::SOCKET.into());
        settings.keep = audit.duration_unless("keep", "forever");
        if settings.keep.is_some_and(|keep| keep < Duration::from_secs(24 * 60 * 60)) {
            audit.wrong(
                "keep",
                "it has to be \"forever\" or at least a day: what is deleted can be asked about no more",
            );
        }
        audit.finish();
    }
    settings
}

/// Where the key comes from that seals key files, and whether a copy of them is looked out for.
fn sealing(
    top: &mut Reader<'_>,
    state: &std::path::Path,
    credentials: Option<PathBuf>,
) -> (SealSettings, Option<Home>) {
    let directory = state.join("keys");
    let mut settings = SealSettings { credentials, directory, ..SealSettings::default() };
    let mut clone_detection = true;
    if let Some(mut keys) = top.table("keys") {
        settings.key = keys.path("sealing_key");
        settings.old_key = keys.path("old_sealing_key");
        settings.required = keys.word("sealed", false, &[("if_possible", false), ("required", true)]);
        clone_detection = keys.boolean("clone_detection", true);
        for (key, path) in [("sealing_key", &settings.key), ("old_sealing_key", &settings.old_key)] {
            let Some(path) = path else { continue };
            let climbs = path.components().any(|part| part == Component::ParentDir);
            if climbs || path.starts_with(state) {
                let message = "whoever copies the state directory must not get it too: it has to be outside, and named \
                               without \"..\"";
                keys.wrong(key, message);
            }
        }
        keys.finish();
    }
    let home = clone_detection.then(|| Home { state: state.into(), machine_id: MACHINE_ID.into() });
    (settings, home)
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

fn host_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let name: String = name.chars().filter(|c| c.is_ascii_alphanumeric() || "-._".contains(*c)).collect();
    if name.is_empty() { "host".into() } else { name }
}

/// What two rooms have to agree on.
fn agreements(identities: &[Identity], audit: &LedgerSettings) -> Vec<(String, String)> {
    let mut mistakes = Vec::new();
    let mut clients: BTreeMap<(&str, &str), &str> = BTreeMap::new();
    let mut given: BTreeMap<&str, &str> = BTreeMap::new();
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
            let Wants::Sealed(SealedTerms { keeper: SealedBy::ServiceManager(name), .. }) = &rule.terms.wants
            else {
                continue;
            };
            match given.insert(name, &identity.name) {
                Some(other) if *other != *identity.name => {
                    let key =
                        format!("identities.{}.credentials.{}.systemd_credential", identity.name, rule.name);
                    let message = format!(
                        "identities.{other} has {name:?} too: a secret is one identity's (NHI-9); give each a LoadCredentialEncrypted= \
                         of its own"
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
    /// The service manager's socket if nobody says otherwise.
    pub const SYSTEMD: &str = "/run/keybearer/systemd.sock";
}

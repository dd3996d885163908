//! The composition root. In go settings; out comes a daemon that is whole and inert, and then, once told to run, one that
//! runs until it is told to stop. Reload builds everything new before it lets go of anything old.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    future::Future,
    path::PathBuf,
    sync::Arc,
};

use arc_swap::ArcSwap;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
    task::JoinSet,
};
use uuid::Uuid;

use crate::{
    attest::{Attestor, Evidence, Hold, Interests, Level, Proc, Sources},
    audit::{self, Agent as AgentPart, EventType, Host, LedgerError, Outcome, Scribe},
    broker::{self, Books, Broker, Keeper, PendingFile, Revoked},
    clock::{Boot, Clock, Dice, uuid_v7},
    config::{IssuerSettings, Mistake, Settings, load},
    issuer::{Issuer, Order, http::HttpError, oauth::OAuth},
    journey::{Journey, Rules},
    keys::{CertificateError, Certificates, FileError, KeyError, Keyring, SealingKey},
    policy::{Door, Policy},
    serve::{
        self, grpc,
        http::Face as HttpFace,
        operator::{Face as OperatorFace, Facts, Reload},
    },
    wire::{Listener, WireError},
};

/// Why there is no daemon.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// Client certificates cannot be had.
    #[error("{}", lines(.0))]
    Certificates(Vec<CertificateError>),
    /// An issuer's client cannot be made.
    #[error("issuers.{0}: {1}")]
    Issuer(String, HttpError),
    /// Keys cannot be had.
    #[error("{}", lines(.0))]
    Keys(Vec<KeyError>),
    /// The ledger cannot be written.
    #[error("{0}")]
    Ledger(#[from] LedgerError),
    /// The sealing key cannot be had.
    #[error("the key that seals what is kept for the next start: {0}")]
    Sealing(FileError),
    /// A socket cannot be made.
    #[error("{0}")]
    Wire(#[from] WireError),
}

fn lines<T: ToString>(errors: &[T]) -> String {
    errors.iter().map(T::to_string).collect::<Vec<_>>().join("\n")
}

/// Where the settings came from, to read them again.
#[derive(Clone, Debug)]
pub struct Origin {
    /// The file.
    pub path: PathBuf,
    /// The environment at start.
    pub environment: BTreeMap<String, String>,
}

/// A daemon, whole and inert: sockets bound, ledger and keys open, nothing running.
#[derive(Debug)]
pub struct Daemon {
    journey: Arc<Journey>,
    keeper: Keeper,
    revoked: mpsc::UnboundedReceiver<Revoked>,
    scribe: Scribe,
    workload: Listener,
    operator: Listener,
    http: Listener,
    exports: Vec<Listener>,
    settings: Settings,
    keys: Keyring,
    certificates: Certificates,
    origin: Origin,
    facts: Arc<ArcSwap<Facts>>,
    clock: Arc<dyn Clock>,
    dice: Arc<dyn Dice>,
    started: Boot,
}

impl Daemon {
    /// Opens and binds everything that `settings` name.
    ///
    /// # Errors
    /// [`BuildError`] if anything cannot be had; nothing runs then.
    pub fn build(
        settings: Settings,
        origin: Origin,
        clock: Arc<dyn Clock>,
        dice: Arc<dyn Dice>,
    ) -> Result<Self, BuildError> {
        let keys = Keyring::open(&settings.keys, &Keyring::default()).map_err(BuildError::Keys)?;
        let certificates =
            Certificates::open(&settings.certificates, &Certificates::default(), &keys, clock.wall())
                .map_err(BuildError::Certificates)?;
        let books = books(&settings, &keys, &certificates, &clock, &dice)?;
        let agent = AgentPart {
            version: env!("CARGO_PKG_VERSION").into(),
            instance: uuid_v7(clock.wall(), &*dice).to_string(),
            config_digest: settings.digest.clone(),
        };
        let (ledger, scribe) = audit::open(
            settings.audit.clone(),
            host(),
            boot_id(),
            agent,
            Arc::clone(&clock),
            Arc::clone(&dice),
        )?;
        let (told, revoked) = mpsc::unbounded_channel();
        let sealing = SealingKey::open(&settings.kept.sealing_key).map_err(BuildError::Sealing)?;
        let pending = PendingFile::new(settings.kept.revocations.clone(), sealing, Arc::clone(&dice));
        let (broker, keeper) = broker::new(books, Arc::clone(&clock), Arc::clone(&dice), told, Some(pending));
        let attestor = Attestor::new(Proc::at("/proc"), Sources::default());
        let probed = attestor.evidence(std::process::id(), Hold::Socket, &Interests::default()).ok();
        let rules = rules(&settings);
        let journey = Journey::new(attestor, rules, broker, ledger, Arc::clone(&clock), Arc::clone(&dice));
        let facts = facts(&settings, &keys, probed.as_ref());
        let exports = settings.exports.values().cloned().map(Listener::bind).collect::<Result<_, _>>()?;
        Ok(Self {
            journey: Arc::new(journey),
            keeper,
            revoked,
            scribe,
            workload: Listener::bind(settings.listen.workload.clone())?,
            operator: Listener::bind(settings.listen.operator.clone())?,
            http: Listener::bind(settings.listen.http.clone())?,
            exports,
            facts: Arc::new(ArcSwap::from_pointee(facts)),
            started: clock.boot(),
            settings,
            keys,
            certificates,
            origin,
            clock,
            dice,
        })
    }

    /// The rooms, for whoever runs the daemon in its own process.
    pub fn journey(&self) -> &Arc<Journey> {
        &self.journey
    }

    /// The keys, whose public halves an issuer has to know.
    pub fn keys(&self) -> &Keyring {
        &self.keys
    }

    /// Runs until `shutdown`, then lets calls under way finish, and closes the ledger last.
    ///
    /// # Errors
    /// [`LedgerError`] if not even the start can be recorded.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), LedgerError> {
        let Self {
            journey,
            keeper,
            revoked,
            scribe,
            workload,
            operator,
            http,
            exports,
            settings,
            keys,
            certificates,
            origin,
            facts,
            clock,
            dice,
            started,
        } = self;
        let scribe = tokio::spawn(scribe.run());
        let keeper = tokio::spawn(keeper.run());
        tokio::spawn({
            let journey = Arc::clone(&journey);
            async move { journey.write_down(revoked).await }
        });
        record(&journey, EventType::AgentStart, format!("environment {}", settings.environment)).await?;
        for (identity, purpose, key) in keys.iter() {
            record(
                &journey,
                EventType::KeyOpen,
                format!("{identity} {purpose} {} {}", key.algorithm(), key.kid()),
            )
            .await?;
        }
        for (identity, all) in certificates.to_register() {
            for certificate in all {
                let what = format!(
                    "{identity} client-certificate {} {}",
                    certificate.kid(),
                    certificate.thumbprint()
                );
                record(&journey, EventType::KeyOpen, what).await?;
            }
        }

        let (stop, stopped) = watch::channel(false);
        let (reload, mut reloads) = mpsc::channel::<Reload>(1);
        let listeners = [&workload, &operator, &http].into_iter().chain(&exports);
        let admissions = listeners.map(|listener| Arc::clone(listener.admission())).collect();
        let operator_face = OperatorFace {
            journey: Arc::clone(&journey),
            facts: Arc::clone(&facts),
            admissions,
            reload,
            clock: Arc::clone(&clock),
            started,
        };
        let http_face =
            HttpFace { journey: Arc::clone(&journey), clock: Arc::clone(&clock), stop: stopped.clone() };
        let drain = settings.drain;
        let workloads = grpc::workloads(
            Arc::clone(&journey),
            Arc::clone(&clock),
            stopped.clone(),
            settings.listen.reflection,
        );
        let mut faces = JoinSet::new();
        for listener in exports {
            let door = Door::Export(listener.settings().path.as_path().into());
            let (journey, workloads) = (Arc::clone(&journey), workloads.clone());
            faces.spawn(serve::grpc_on(listener, door, journey, workloads, stopped.clone(), drain));
        }
        // Moved, like all that holds the journey: the ledger is closed when the last of them is gone.
        faces.spawn(serve::grpc_on(
            workload,
            Door::Own,
            Arc::clone(&journey),
            workloads,
            stopped.clone(),
            drain,
        ));
        faces.spawn(serve::grpc_on(
            operator,
            Door::Own,
            Arc::clone(&journey),
            operator_face.routes().prepare(),
            stopped.clone(),
            drain,
        ));
        let answer = move |session, request| http_face.clone().answer(session, request);
        faces.spawn(serve::http_on(http, Arc::clone(&journey), answer, stopped, drain));

        let mut reloader = Reloader {
            journey: Arc::clone(&journey),
            settings,
            keys,
            certificates,
            origin,
            facts,
            clock,
            dice,
        };
        tell_manager(&[sd_notify::NotifyState::Ready]);
        tracing::info!(identities = reloader.settings.policy.identities().count(), "ready");
        let mut hangup = signal(SignalKind::hangup()).ok();
        let mut shutdown = std::pin::pin!(shutdown);
        loop {
            tokio::select! {
                () = &mut shutdown => break,
                Some(answer) = reloads.recv() => {
                    // The operator may have hung up; the reload counts all the same.
                    let _ = answer.send(reloader.reload().await);
                }
                _ = hung_up(&mut hangup) => drop(reloader.reload().await),
            }
        }
        tell_manager(&[sd_notify::NotifyState::Stopping]);
        tracing::info!("stopping: calls under way may finish");
        let _ = stop.send(true);
        while faces.join_next().await.is_some() {}
        let last = record(&journey, EventType::AgentStop, "asked to stop".into()).await;
        drop((journey, reloader, reloads));
        keeper.abort();
        // The scribe ends when the last way to the ledger is gone, and signs what is written.
        if let Err(error) = scribe.await {
            tracing::error!(%error, "the ledger was not closed in order");
        }
        last
    }
}

async fn hung_up(hangup: &mut Option<tokio::signal::unix::Signal>) {
    let heard = match hangup {
        Some(hangup) => hangup.recv().await,
        None => None,
    };
    if heard.is_none() {
        std::future::pending::<()>().await;
    }
}

/// Reads the settings again: all of them, or nothing.
struct Reloader {
    journey: Arc<Journey>,
    settings: Settings,
    keys: Keyring,
    certificates: Certificates,
    origin: Origin,
    facts: Arc<ArcSwap<Facts>>,
    clock: Arc<dyn Clock>,
    dice: Arc<dyn Dice>,
}

impl Reloader {
    async fn reload(&mut self) -> Result<Vec<String>, Vec<String>> {
        if let Ok(now) = sd_notify::NotifyState::monotonic_usec_now() {
            tell_manager(&[sd_notify::NotifyState::Reloading, now]);
        }
        let done = self.try_reload();
        let (kind, outcome, told) = match &done {
            Ok(changes) => (EventType::ConfigLoad, Outcome::Success, changes.join("; ")),
            Err(mistakes) => (EventType::ConfigRefused, Outcome::Failed, mistakes.join("; ")),
        };
        if let Err(mistakes) = &done {
            for mistake in mistakes {
                tracing::error!("reload refused, the old settings stay: {mistake}");
            }
            let reload_error = mistakes.join("\n");
            self.facts.store(Arc::new(Facts { reload_error, ..Facts::clone(&self.facts.load()) }));
        } else {
            tracing::info!("reloaded: {told}");
        }
        let entry = self.journey.entry(kind, outcome).detail(told);
        if let Err(error) = self.journey.ledger().record(entry).await {
            tracing::error!(%error, "the reload could not be recorded");
        }
        tell_manager(&[sd_notify::NotifyState::Ready]);
        done
    }

    fn try_reload(&mut self) -> Result<Vec<String>, Vec<String>> {
        let words = |mistakes: Vec<Mistake>| mistakes.iter().map(ToString::to_string).collect::<Vec<_>>();
        let settings = load(&self.origin.path, &self.origin.environment, self.clock.wall()).map_err(words)?;
        let keys = Keyring::open(&settings.keys, &self.keys)
            .map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>())?;
        let certificates =
            Certificates::open(&settings.certificates, &self.certificates, &keys, self.clock.wall())
                .map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>())?;
        let books = books(&settings, &keys, &certificates, &self.clock, &self.dice)
            .map_err(|error| vec![error.to_string()])?;

        // From here on nothing can fail.
        let mut changes = changes(&self.settings.policy, &settings.policy);
        if settings.listen_differs(&self.settings) {
            let message =
                "[listen], [limits], [audit] and the sockets of [exports] change at the next restart";
            changes.push(message.into());
        }
        self.journey.ledger().use_config(&settings.digest);
        self.journey.follow(rules(&settings));
        let keep = orders(&books, &settings.policy, self.journey.broker());
        self.journey.broker().replace(books, keep);
        let mut facts = facts(&settings, &keys, None);
        facts.max_level = self.facts.load().max_level.clone();
        self.facts.store(Arc::new(facts));
        (self.settings, self.keys, self.certificates) = (settings, keys, certificates);
        Ok(changes)
    }
}

fn changes(old: &Policy, new: &Policy) -> Vec<String> {
    let names = |policy: &Policy| {
        policy.identities().map(|identity| identity.name.to_string()).collect::<HashSet<_>>()
    };
    let (before, after) = (names(old), names(new));
    let mut changes: Vec<String> = Vec::new();
    changes.extend(after.difference(&before).map(|name| format!("identity {name} was added")));
    changes.extend(before.difference(&after).map(|name| format!("identity {name} was removed")));
    for identity in new.identities() {
        if old.identities().any(|other| other.name == identity.name && other != identity) {
            changes.push(format!("identity {} was changed", identity.name));
        }
    }
    for (name, export) in old.exports() {
        match new.exports().get(name) {
            None => changes.push(format!("export {name} is for nobody from now on")),
            Some(now) if now.path != export.path => {
                changes.push(format!("export {name} moves: where it is now, it is for nobody from now on"))
            }
            Some(now) if now != export => changes.push(format!("export {name} is for others than before")),
            Some(_) => {}
        }
    }
    changes.sort();
    if changes.is_empty() {
        changes.push("no identity changed".into());
    }
    changes
}

/// The orders on the shelf that the new settings would place in the same way.
fn orders(books: &Books, policy: &Policy, broker: &Broker) -> HashSet<Order> {
    let still_placed = |order: &Order| {
        let identity = policy.identities().find(|identity| identity.name == order.identity)?;
        let rule = identity.credentials.get(&order.credential)?;
        let within = order.scope.iter().all(|scope| rule.scope.contains(scope));
        let placed = books.order_for(&identity.name, rule, Arc::clone(&order.scope)).ok()?;
        (within && placed == *order).then_some(placed)
    };
    broker.report().shelf.iter().filter_map(|shelved| still_placed(&shelved.order)).collect()
}

fn books(
    settings: &Settings,
    keys: &Keyring,
    certificates: &Certificates,
    clock: &Arc<dyn Clock>,
    dice: &Arc<dyn Dice>,
) -> Result<Books, BuildError> {
    let mut issuers: HashMap<Arc<str>, Arc<dyn Issuer>> = HashMap::new();
    for (name, issuer) in &settings.issuers {
        match issuer {
            IssuerSettings::OAuth(oauth) => {
                let made = OAuth::new(oauth.clone(), Arc::clone(clock), Arc::clone(dice))
                    .map_err(|error| BuildError::Issuer(name.to_string(), error))?;
                issuers.insert(Arc::clone(name), Arc::new(made));
            }
        }
    }
    Ok(Books { issuers, keys: keys.clone(), certificates: certificates.clone() })
}

fn rules(settings: &Settings) -> Rules {
    Rules::new(Arc::clone(&settings.policy), settings.environment.clone(), settings.digest.clone())
}

fn facts(settings: &Settings, keys: &Keyring, probed: Option<&Evidence>) -> Facts {
    let url = |issuer: &IssuerSettings| match issuer {
        IssuerSettings::OAuth(oauth) => oauth.issuer.clone(),
    };
    let mut warnings = Vec::new();
    for identity in settings.policy.identities() {
        for rule in identity.credentials.values() {
            if let Some(exception) = &rule.exception {
                warnings.push(format!(
                    "{}.{} is {} until {}: {} (owner {})",
                    identity.name,
                    rule.name,
                    rule.binding,
                    exception.until,
                    exception.reason,
                    exception.owner
                ));
            }
        }
    }
    Facts {
        environment: settings.environment.clone(),
        max_level: max_level(probed),
        keys: keys
            .iter()
            .map(|(identity, _, key)| {
                (identity.to_owned(), (key.kid().to_owned(), key.algorithm().to_string()))
            })
            .collect(),
        issuers: settings.issuers.iter().map(|(name, issuer)| (name.to_string(), url(issuer))).collect(),
        warnings,
        reload_error: String::new(),
    }
}

/// The strongest level this host and these privileges can prove (ATT-03), by trying on ourselves.
fn max_level(probed: Option<&Evidence>) -> (String, String) {
    let pinned = std::os::unix::net::UnixStream::pair()
        .ok()
        .and_then(|(ours, _theirs)| crate::attest::Peer::pin(&ours).ok().map(|peer| peer.hold()));
    let systemd = std::path::Path::new("/run/systemd/system").is_dir();
    let root = rustix::process::geteuid().is_root();
    let (level, why) = match (pinned, probed) {
        (Some(Hold::Socket), Some(_)) if systemd => {
            (Level::L4, "for identities that name a program, which then answers the challenge")
        }
        (Some(Hold::Socket), Some(_)) => (Level::L2, "no systemd runs here to vouch for units"),
        (Some(Hold::Opened), _) => (Level::L1, "this kernel has no SO_PEERPIDFD (Linux 6.5)"),
        _ => (Level::L0, "this kernel does not let a process be pinned, or /proc cannot be read"),
    };
    let mut why = why.to_owned();
    if !root && level >= Level::L2 {
        why.push_str("; programs of other users need CAP_SYS_PTRACE");
    }
    (level.to_string(), why)
}

fn host() -> Host {
    let id = std::fs::read_to_string("/etc/machine-id").ok().map(|id| id.trim().to_owned());
    Host {
        id: id.filter(|id| !id.is_empty()),
        name: rustix::system::uname().nodename().to_string_lossy().into_owned(),
    }
}

fn boot_id() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    text.trim().parse::<Uuid>().unwrap_or_default().to_string()
}

async fn record(journey: &Journey, kind: EventType, detail: String) -> Result<(), LedgerError> {
    let receipt = journey.ledger().record(journey.entry(kind, Outcome::Success).detail(detail)).await?;
    tracing::debug!(seq = receipt.seq(), ?kind, "recorded");
    Ok(())
}

/// Tells the service manager, if there is one.
fn tell_manager(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "the service manager was not told");
    }
}

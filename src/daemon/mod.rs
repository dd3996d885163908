//! The composition root. In go settings; out comes a daemon that is whole and inert, and then, once told to run, one that
//! runs until it is told to stop. Reload builds everything new before it lets go of anything old.
//! Over 400 lines, because what is begun in an order has to end in the reverse of it, and that can only be seen in one place.

mod books;
mod facts;
mod lockdown;
mod memory;
mod pulse;
mod seal;
mod steward;

use std::{
    collections::{BTreeMap, HashSet},
    future::Future,
    path::PathBuf,
    sync::Arc,
};

use arc_swap::ArcSwap;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
    task::JoinSet,
    time::timeout,
};
use uuid::Uuid;

pub use lockdown::{LockdownError, give_up};
pub use memory::{Memory, SwapError, keep_out_of_swap};

use crate::{
    api::ApiError,
    attest::{Attestor, Hold, Interests, Proc, Sources},
    audit::{self, Agent as AgentPart, EventType, Host, LedgerError, Outcome, Scribe},
    broker::{self, Keeper, News, PendingFile, Registrar, Rights, Rotor, StowFile},
    clock::{Boot, Clock, Dice, uuid_v7},
    config::{Listen, Settings},
    issuer::{http::HttpError, sealed::Sealed, x509::Unbuilt},
    journey::{Journey, Remembered},
    keys::{
        CertificateError, Certificates, FileError, HomeError, KeyError, Keyring, Now, ProofKeeper, Safe,
        SealingKey, Vault,
    },
    policy::Door,
    serve::{
        Common, Speaks,
        grpc::Workloads,
        http::Face as HttpFace,
        metrics::Metrics,
        operator::{Face as OperatorFace, Facts, Operators, Ordered},
        serve_on,
        service_manager::serve_manager,
    },
    wire::{Inherited, Listener, Shares, WireError},
};
use books::{books, can_be_had, registrable, rules};
use facts::facts;
use pulse::Pulse;
use steward::{Steward, disabled_before};

/// Why there is no daemon.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// An API cannot be called as it is set up.
    #[error("{0}: {1}")]
    Api(String, ApiError),
    /// Client certificates cannot be had.
    #[error("{}", lines(.0))]
    Certificates(Vec<CertificateError>),
    /// An issuer that is a CA cannot be reached or doubted.
    #[error("issuers.{0}: {1}")]
    Authority(String, Unbuilt),
    /// An issuer's client cannot be made.
    #[error("issuers.{0}: {1}")]
    Issuer(String, HttpError),
    /// Keys cannot be had.
    #[error("{}", lines(.0))]
    Keys(Vec<KeyError>),
    /// The ledger cannot be written.
    #[error("{0}")]
    Ledger(#[from] LedgerError),
    /// Who was switched off cannot be told.
    #[error(
        "{0} names the identities that are disabled, and cannot be read: {1}: mend it, or take it away on purpose"
    )]
    Disabled(PathBuf, std::io::Error),
    /// The right to a registration lies open.
    #[error("{}", lines(.0))]
    Registrations(Vec<String>),
    /// The state directory is another machine's.
    #[error("{0}")]
    Home(#[from] HomeError),
    /// A secret that cannot be dynamic yet cannot be kept here, or is not there.
    #[error("{}", lines(.0))]
    Sealed(Vec<String>),
    /// The key that seals what is kept cannot be had.
    #[error("the key that seals what is kept for the next start: {0}")]
    Sealing(FileError),
    /// The key that seals key files cannot be had.
    #[error("{0}")]
    Vault(FileError),
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
    news: mpsc::UnboundedReceiver<News>,
    disabled: BTreeMap<Arc<str>, String>,
    scribe: Scribe,
    workload: Listener,
    operator: Listener,
    http: Listener,
    systemd: Listener,
    exports: Vec<Listener>,
    settings: Settings,
    keys: Keyring,
    certificates: Certificates,
    registrar: Registrar,
    sealed: Arc<Sealed>,
    origin: Origin,
    facts: Arc<ArcSwap<Facts>>,
    clock: Arc<dyn Clock>,
    dice: Arc<dyn Dice>,
    /// What was known of from where identities are used, and is lost.
    forgot: Option<String>,
    /// Whether an operator made the state directory this machine's since the last start.
    adopted: bool,
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
        Self::build_on(Inherited::default(), settings, origin, clock, dice)
    }

    /// The same on sockets that the service manager listens on, as far as it does.
    ///
    /// # Errors
    /// [`BuildError`] if anything cannot be had; nothing runs then.
    pub fn build_on(
        mut inherited: Inherited,
        settings: Settings,
        origin: Origin,
        clock: Arc<dyn Clock>,
        dice: Arc<dyn Dice>,
    ) -> Result<Self, BuildError> {
        let kept = &settings.kept;
        // Whose the directory is comes before anything in it.
        let known =
            kept.home.as_ref().map(|home| Ok((home, home.look()?))).transpose().map_err(BuildError::Home)?;
        let vault = Vault::open(&kept.sealing, Arc::clone(&dice)).map_err(BuildError::Vault)?;
        let sealing = SealingKey::open(&kept.sealing_key, &vault).map_err(BuildError::Sealing)?;
        let safe = Arc::new(Safe::new(
            vault.clone(),
            kept.sealed.clone(),
            kept.home.clone(),
            kept.sealing.credentials.clone(),
            Arc::clone(&dice),
        ));
        // Before it is settled: whoever is killed here begins again.
        if known.as_ref().is_some_and(|(_, known)| known.is_adopted()) {
            safe.adopt();
        }
        let adopted = match known {
            Some((home, known)) => home.settle(known, &sealing, &*dice)?,
            None => false,
        };
        let boot = boot_id(&*clock, &*dice);
        let proofs =
            ProofKeeper::taking_up(kept.proofs.clone(), sealing.clone(), boot.clone(), Arc::clone(&dice));
        let none = Keyring::within(vault.clone()).keeping_proofs(proofs);
        let keys = Keyring::open(&settings.keys, &none, Now::by(&*clock)).map_err(BuildError::Keys)?;
        let certificates =
            Certificates::open(&settings.certificates, &Certificates::default(), &keys, clock.wall())
                .map_err(BuildError::Certificates)?;
        can_be_had(&settings, &safe).map_err(BuildError::Sealed)?;
        let sealed = Arc::new(Sealed::new(safe, Arc::clone(&clock), &*dice));
        let books = books(&settings, &keys, &certificates, &sealed, &clock, &dice)?;
        let agent = AgentPart {
            version: env!("CARGO_PKG_VERSION").into(),
            instance: uuid_v7(clock.wall(), &*dice).to_string(),
            config_digest: settings.digest.clone(),
        };
        let (ledger, scribe) = audit::open(
            settings.audit.clone(),
            host(),
            boot.clone(),
            agent,
            &vault,
            Arc::clone(&clock),
            Arc::clone(&dice),
        )?;
        let (told, news) = mpsc::unbounded_channel();
        registrable(&settings).map_err(BuildError::Registrations)?;
        let registrar = Registrar::new(Rights::new(sealing.clone(), Arc::clone(&dice)), Arc::clone(&dice));
        // Beside a key that anybody could read who has the disk, they would be nothing but tokens.
        let (at, before) = match vault.sealed_by() {
            Some(_) => (&kept.revocations_at_rest, &kept.revocations),
            None => (&kept.revocations, &kept.revocations_at_rest),
        };
        let pending =
            PendingFile::new(at.clone(), sealing.clone(), Arc::clone(&dice)).moved_from(before.clone());
        let stow = StowFile::new(settings.kept.live.clone(), sealing, boot, Arc::clone(&dice));
        let (broker, keeper) = broker::new(books, Arc::clone(&clock), Arc::clone(&dice), told, Some(pending));
        let keeper = keeper.stowing(stow);
        let attestor = Attestor::new(Proc::at("/proc"), Sources::default());
        let probed = attestor.evidence(std::process::id(), Hold::Socket, &Interests::default()).ok();
        let disabled = disabled_before(&settings.kept.disabled)
            .map_err(|error| BuildError::Disabled(settings.kept.disabled.clone(), error))?;
        let rules = rules(&settings, &disabled);
        let (places, lost) = Remembered::open(kept.places.clone());
        let forgot = lost.map(|error| {
            format!(
                "{}: {error}: from where identities were used is forgotten, and what comes next counts as usual (S17)",
                kept.places.display()
            )
        });
        if let Some(forgot) = &forgot {
            tracing::error!("{forgot}");
        }
        let journey = Journey::new(attestor, rules, broker, ledger, Arc::clone(&clock), Arc::clone(&dice))
            .remembering(places);
        let mut facts = facts(&settings, &keys, &certificates, sealed.safe(), probed.as_ref(), clock.boot());
        facts.disabled = disabled.iter().map(|(name, why)| (name.to_string(), why.clone())).collect();
        let mut open = |socket| Listener::open(socket, &mut inherited);
        let exports = settings.exports.values().cloned().map(&mut open).collect::<Result<_, _>>()?;
        let workload = open(settings.listen.workload.clone())?;
        // Whoever may connect there may order: where the settings name no group it is the agent's own, whoever made the socket.
        let mut of_operators = settings.listen.operator.clone();
        of_operators.group.get_or_insert_with(|| rustix::process::getegid().as_raw());
        let operator = open(of_operators)?;
        let http = open(settings.listen.http.clone())?;
        let systemd = open(settings.listen.systemd.clone())?;
        inherited.finish()?;
        Ok(Self {
            journey: Arc::new(journey),
            keeper,
            news,
            disabled,
            scribe,
            workload,
            operator,
            http,
            systemd,
            exports,
            facts: Arc::new(ArcSwap::from_pointee(facts)),
            started: clock.boot(),
            settings,
            keys,
            certificates,
            registrar,
            sealed,
            origin,
            clock,
            dice,
            forgot,
            adopted,
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
            news,
            disabled,
            scribe,
            workload,
            operator,
            http,
            systemd,
            exports,
            settings,
            keys,
            certificates,
            registrar,
            sealed,
            origin,
            facts,
            clock,
            dice,
            forgot,
            adopted,
            started,
        } = self;
        // From here on it is no reason to end.
        let mut hangup = signal(SignalKind::hangup()).ok();
        let scribe = tokio::spawn(scribe.run());
        tokio::spawn({
            let journey = Arc::clone(&journey);
            async move { journey.write_down(news).await }
        });
        let mut what = format!("environment {}", settings.environment);
        if let Some(by) = keys.vault().sealed_by() {
            what.push_str(&format!("; key files are sealed by {by}"));
        }
        if adopted {
            what.push_str("; an operator adopted the state directory for this machine");
        }
        if let Some(forgot) = forgot {
            what.push_str(&format!("; {forgot}"));
        }
        record(&journey, EventType::AgentStart, what).await?;
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

        // What an agent before this one left is taken up, and away, by one that is on record as running: where that cannot be, it waits.
        keys.forget_left();
        let keeper = tokio::spawn(keeper.run());

        let (stop, stopped) = watch::channel(false);
        let (orders, mut ordered) = mpsc::channel::<Ordered>(1);
        let listeners = [&workload, &operator, &http, &systemd].into_iter().chain(&exports);
        let admissions: Vec<_> = listeners.map(|listener| Arc::clone(listener.admission())).collect();
        let names = ["workload", "operator", "http", "systemd"].map(str::to_owned).into_iter();
        let names = names.chain(settings.exports.keys().map(|name| format!("exports.{name}")));
        let paths = [&workload, &operator, &http, &systemd].into_iter().chain(&exports);
        let paths = paths.map(|listener| listener.settings().path.display().to_string());
        let sockets = paths.zip(names).zip(&admissions);
        let metrics = Metrics {
            journey: Arc::clone(&journey),
            facts: Arc::clone(&facts),
            sockets: sockets.map(|((path, name), admission)| (path, name, Arc::clone(admission))).collect(),
            groups: metrics_groups(&settings.listen),
            clock: Arc::clone(&clock),
            started: clock.wall(),
        };
        let operator_face = OperatorFace {
            journey: Arc::clone(&journey),
            facts: Arc::clone(&facts),
            admissions,
            orders,
            clock: Arc::clone(&clock),
            started,
            stop: stopped.clone(),
        };
        let http_face = HttpFace {
            journey: Arc::clone(&journey),
            clock: Arc::clone(&clock),
            stop: stopped.clone(),
            metrics: Some(Arc::new(metrics)),
        };
        let drain = settings.drain;
        let common = Common {
            journey: Arc::clone(&journey),
            shares: Arc::new(Shares::new(Arc::clone(&clock))),
            stop: stopped,
            drain,
        };
        let workloads = Workloads::new(
            Arc::clone(&journey),
            Arc::clone(&clock),
            common.stop.clone(),
            settings.listen.reflection,
        );
        let operators = Operators::new(operator_face);
        let mut faces = JoinSet::new();
        // What holds the journey is moved: the ledger is closed when the last of it is gone.
        for (listener, door) in [(workload, Door::Own)].into_iter().chain(exports.into_iter().map(exported)) {
            let workloads = workloads.clone();
            let answer = move |session, request| workloads.answer(session, request);
            faces.spawn(serve_on(listener, door, Speaks::Grpc, common.clone(), answer));
        }
        drop(workloads);
        let answer = move |session, request| operators.answer(session, request);
        faces.spawn(serve_on(operator, Door::Own, Speaks::Grpc, common.clone(), answer));
        let answer = move |session, request| http_face.clone().answer(session, request);
        faces.spawn(serve_on(http, Door::Own, Speaks::Http, common.clone(), answer));
        faces.spawn(serve_manager(systemd, common));

        let rotor = Rotor::new(
            keys,
            certificates,
            Arc::clone(&settings.policy),
            journey.broker().clone(),
            Arc::clone(&clock),
        )
        .telling(registrar);
        let journey_kept = Arc::clone(&journey);
        let (told, told_ends) = (HashSet::new(), HashSet::new());
        let next_look = clock.boot() + steward::LOOK;
        let mut steward = Steward {
            journey: journey_kept,
            settings,
            rotor,
            sealed,
            disabled,
            origin,
            facts,
            clock,
            dice,
            told,
            told_ends,
            next_look,
        };
        steward.look().await;
        steward.settle();
        steward.tend();
        tell_manager(&[sd_notify::NotifyState::Ready]);
        tracing::info!(identities = steward.settings.policy.identities().count(), "ready");
        let mut pulse = Pulse::begin(sd_notify::watchdog_enabled());
        let mut shutdown = std::pin::pin!(shutdown);
        loop {
            tokio::select! {
                () = &mut shutdown => break,
                Some((act, answer)) = ordered.recv() => {
                    // The operator may have hung up; the act counts all the same.
                    let _ = answer.send(steward.act(act).await);
                }
                _ = hung_up(&mut hangup) => drop(steward.reload().await),
                () = pulse.due(journey.ledger()) => pulse::beat(),
                // What came is seen to here, where no operator's act ends it half done.
                due = steward.attend() => steward.see_to(due).await,
            }
        }
        tell_manager(&[sd_notify::NotifyState::Stopping]);
        tracing::info!("stopping: calls under way may finish");
        let _ = stop.send(true);
        let end = async {
            while faces.join_next().await.is_some() {}
            let left = journey.broker().leave().await;
            if let Err(error) = steward.rotor.keys().leave_proofs(steward.clock.boot()) {
                tracing::error!(%error, "keys that bind tokens are not left for the next start, which fetches anew: make room");
            }
            tracing::info!(left, "what is live is left for the next start");
            if timeout(drain, steward.rotor.finish()).await.is_err() {
                tracing::error!(
                    "an issuer is silent that was being told of keys: its registration may have to be renewed"
                );
            }
        };
        pulse.beside(journey.ledger(), end).await;
        journey.tell_of_cuts().await;
        let last = record(&journey, EventType::AgentStop, "asked to stop".into()).await;
        drop((journey, steward, ordered));
        keeper.abort();
        // The scribe ends when the last way to the ledger is gone, and signs what is written. Whoever still holds one by then
        // holds up nobody: what was answered is written, and the next checkpoint is the next agent's.
        match timeout(drain, scribe).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "the ledger was not closed in order"),
            Err(_) => {
                tracing::error!("the ledger was still in use at the end: its last checkpoint is not signed")
            }
        }
        last
    }
}

/// The groups that may read metrics: whoever may open the operators' socket, and who is named for it.
fn metrics_groups(listen: &Listen) -> Vec<u32> {
    let own = || rustix::process::getegid().as_raw();
    let operators = (listen.operator.mode & 0o020 != 0).then(|| listen.operator.group.unwrap_or_else(own));
    operators.into_iter().chain(listen.metrics_group).collect()
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

/// An exported socket, and what it is to policy.
fn exported(listener: Listener) -> (Listener, Door) {
    let door = Door::Export(listener.settings().path.as_path().into());
    (listener, door)
}

fn host() -> Host {
    let id = std::fs::read_to_string("/etc/machine-id").ok().map(|id| id.trim().to_owned());
    Host {
        id: id.filter(|id| !id.is_empty()),
        name: rustix::system::uname().nodename().to_string_lossy().into_owned(),
    }
}

/// Which boot this is. Where the kernel does not tell, it is like no other: what an agent before this one left counts for nothing then.
fn boot_id(clock: &dyn Clock, dice: &dyn Dice) -> String {
    let told = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok();
    let told = told.and_then(|text| text.trim().parse::<Uuid>().ok());
    told.unwrap_or_else(|| uuid_v7(clock.wall(), dice)).to_string()
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

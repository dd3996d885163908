//! `keybearer agent`: the daemon.

use std::{io::IsTerminal as _, path::Path};

use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::{
    filter::Targets,
    layer::SubscriberExt as _,
    registry::LookupSpan,
    util::{SubscriberInitExt as _, TryInitError},
};

use super::{Exit, environment, on_runtime};
use crate::{
    clock::{SystemClock, SystemDice},
    config::{Log, LogFormat, Mistake, load},
    daemon::{BuildError, Daemon, Origin, give_up, keep_out_of_swap},
    journal,
    wire::Inherited,
};

pub(super) fn run(path: &Path) -> Result<(), Exit> {
    // First: what was handed over is told by number, and a number can be given to what is opened next.
    let inherited = Inherited::from_manager().map_err(|error| unbuilt(error.into()))?;
    let clock = SystemClock::shared();
    let environment = environment();
    let settings = load(path, &environment, clock.wall()).map_err(mistaken)?;
    begin_log(&settings.log);
    harden();
    raise_descriptors();
    on_runtime(async {
        let stop = told_to_stop();
        let origin = Origin { path: path.to_owned(), environment };
        let daemon =
            Daemon::build_on(inherited, settings, origin, clock, SystemDice::shared()).map_err(unbuilt)?;
        // The sockets are bound and the files are open: from here on, less is needed.
        if let Err(error) = give_up() {
            tracing::warn!(%error, "no system calls are given up: see whether the kernel has seccomp");
        }
        daemon.run(stop).await.map_err(|error| Exit::new(Exit::IO, error.to_string()))
    })
}

/// All mistakes, a line each.
pub(super) fn mistaken(mistakes: Vec<Mistake>) -> Exit {
    let lines: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
    Exit::new(Exit::CONFIG, format!("the settings cannot be used:\n{}", lines.join("\n")))
}

pub(super) fn unbuilt(error: BuildError) -> Exit {
    let code = match &error {
        BuildError::Api(..)
        | BuildError::Authority(..)
        | BuildError::Certificates(_)
        | BuildError::Issuer(..)
        | BuildError::Home(_)
        | BuildError::Keys(_)
        | BuildError::Registrations(_)
        | BuildError::Sealed(_)
        | BuildError::Sealing(_)
        | BuildError::Vault(_) => Exit::CONFIG,
        BuildError::Disabled(..) | BuildError::Ledger(_) => Exit::IO,
        BuildError::Wire(_) => Exit::UNAVAILABLE,
    };
    Exit::new(code, error.to_string())
}

/// SIGTERM or SIGINT, from the moment that this is called: whoever is told to stop while it starts stops in order.
pub(super) fn told_to_stop() -> impl Future<Output = ()> {
    let signals = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
    async move {
        let (Ok(mut terminate), Ok(mut interrupt)) = signals else {
            return std::future::pending().await;
        };
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    }
}

/// The log, on standard error: text on a terminal, fields where that goes to the journal, JSON elsewhere.
pub(super) fn begin_log(log: &Log) {
    let filter =
        log.filter.parse::<Targets>().unwrap_or_else(|_| Targets::new().with_default(tracing::Level::INFO));
    let json = match log.format {
        LogFormat::Auto => !std::io::stderr().is_terminal(),
        LogFormat::Json => true,
        LogFormat::Text => false,
    };
    let registry = tracing_subscriber::registry().with(filter);
    let stream = environment().remove("JOURNAL_STREAM");
    let journaled = log.format == LogFormat::Auto && journal::is_behind(stream.as_deref(), std::io::stderr());
    let begun = match journaled.then(|| journal::Log::to(Path::new(journal::SOCKET))) {
        Some(Ok(journal)) => registry.with(journal).try_init(),
        _ => on_standard_error(registry, json),
    };
    if let Err(error) = begun {
        eprintln!("keybearer: the log cannot begin: {error}");
    }
}

fn on_standard_error<S>(registry: S, json: bool) -> Result<(), TryInitError>
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
{
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    if json {
        registry.with(layer.json()).try_init()
    } else {
        registry.with(layer.with_target(false).with_ansi(std::env::var_os("NO_COLOR").is_none())).try_init()
    }
}

/// As many descriptors as we are allowed: the low limit one begins with is for programs that use `select(2)`.
fn raise_descriptors() {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limit.maximum, ..limit };
    if let Err(error) = rustix::process::setrlimit(rustix::process::Resource::Nofile, raised) {
        tracing::warn!(%error, "the limit of open files stays at its lower value");
    }
}

/// No core dumps, no tracing by others of the same user, and no swap where that can be had: keys are in this memory (KEY-02).
fn harden() {
    let undumpable = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
    let none = rustix::process::Rlimit { current: Some(0), maximum: Some(0) };
    let coreless = rustix::process::setrlimit(rustix::process::Resource::Core, none);
    for failed in [undumpable, coreless].into_iter().filter_map(Result::err) {
        tracing::warn!(error = %failed, "memory could not be made undumpable");
    }
    if let Err(error) = keep_out_of_swap() {
        tracing::warn!(%error, "keys and tokens are not kept out of swap");
    }
}

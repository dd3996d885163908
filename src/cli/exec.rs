//! `keybearer exec`: becomes, or supervises, an unmodified program with what its identity may have. In go flags, or what agent.toml
//! declares for whoever runs this; out comes the program's own exit status.

use std::{collections::BTreeMap, ffi::OsString, path::PathBuf, time::Duration};

use clap::Args;

use super::{Exit, WorkloadSocket, on_runtime};
use crate::{
    clock::{SystemClock, SystemDice},
    deliver::{AtRotation, Delivery, Signal, Source, Variable},
    shim::{
        declared,
        exec::{self, ExecError, Mode, Order, Passes, Places},
    },
};

#[derive(Args, Debug)]
#[command(after_help = "Without --env and --file the program gets what agent.toml declares for it \
                        ([identities.NAME.deliver]), so that a unit needs no more than: keybearer exec -- PROGRAM")]
pub(super) struct Exec {
    /// Set a variable to a field of a credential; may be repeated.
    #[arg(long, value_name = "NAME=CREDENTIAL.FIELD", value_parser = assignment)]
    env: Vec<(Variable, Source)>,
    /// Set a variable to the path of a file with a field of a credential, which is kept fresh; may be repeated.
    #[arg(long, value_name = "NAME=CREDENTIAL.FIELD", value_parser = assignment)]
    file: Vec<(Variable, Source)>,
    /// Pass nothing on of our own environment but what is kept by name.
    #[arg(long)]
    clean_env: bool,
    /// Pass this variable on, even with --clean-env or if it says where the agent is; may be repeated.
    #[arg(long, value_name = "NAME")]
    keep: Vec<Variable>,
    /// How long to try for everything before giving up.
    #[arg(long, value_name = "TIME", value_parser = length, default_value = "30s")]
    start_timeout: Duration,
    /// What a rotation of a credential does to the program: none, restart, signal:HUP or command:/PATH; may be repeated.
    #[arg(long, value_name = "CREDENTIAL=ACTION", value_parser = rotation)]
    at_rotation: Vec<(String, AtRotation)>,
    /// Stay, and keep files fresh, even if nothing asks for it.
    #[arg(long, conflicts_with = "handover")]
    supervise: bool,
    /// Become the program even if there are files, which then are written once.
    #[arg(long)]
    handover: bool,
    /// A restart or signal waits a while of chance, up to this long.
    #[arg(long, value_name = "TIME", value_parser = length)]
    splay: Option<Duration>,
    /// What asks the program to end before it is started again.
    #[arg(long, value_name = "SIGNAL")]
    stop_signal: Option<Signal>,
    /// How long it has for that before it is killed.
    #[arg(long, value_name = "TIME", value_parser = length)]
    stop_timeout: Option<Duration>,
    /// Make the files in this directory, whatever kind of file system it is on.
    #[arg(long, value_name = "DIRECTORY")]
    file_directory: Option<PathBuf>,
    /// Let --env and --file set variables that a loader or an interpreter obeys, such as LD_PRELOAD.
    #[arg(long)]
    loader_variables: bool,
    #[command(flatten)]
    socket: WorkloadSocket,
    /// For tests, which have no time.
    #[arg(long, hide = true, value_name = "TIME", value_parser = length, default_value = "2s")]
    debounce: Duration,
    /// For tests, which have no time.
    #[arg(long, hide = true, value_name = "TIME", value_parser = length, default_value = "1s")]
    back_off: Duration,
    /// The program and its arguments, passed on as they are. There is no shell in between.
    #[arg(last = true, required = true, value_name = "PROGRAM")]
    command: Vec<OsString>,
}

impl Exec {
    /// Comes back only where there is no program.
    pub(super) fn run(self) -> Result<(), Exit> {
        let ending = on_runtime(async {
            let order = self.order().await?;
            Ok(exec::run(order, SystemClock::shared(), SystemDice::shared()).await?)
        })?;
        exec::end_as(ending)
    }

    async fn order(self) -> Result<Order, Exit> {
        let delivery = self.delivery().await?;
        let mut command = self.command.into_iter();
        let program = command.next().ok_or_else(|| Exit::new(Exit::USAGE, "there is no program to run"))?;
        let passes = Passes { clean: self.clean_env, keep: self.keep.into_iter().collect() };
        let mode = match (self.handover, self.supervise) {
            (true, _) => Some(Mode::HandOver),
            (_, true) => Some(Mode::Supervise),
            _ => None,
        };
        Ok(Order {
            socket: self.socket.socket,
            program,
            arguments: command.collect(),
            delivery,
            base: exec::base(std::env::vars_os(), &passes),
            mode,
            start_timeout: self.start_timeout,
            places: Places { named: self.file_directory, given: given_places(), uncleaned: true },
            debounce: self.debounce,
            back_off: self.back_off,
        })
    }

    /// What is delivered: what flags say, or else what is declared; and what flags say about either.
    async fn delivery(&self) -> Result<Delivery, Exit> {
        let mut delivery = match self.env.is_empty() && self.file.is_empty() {
            true => declared(&self.socket.socket, self.start_timeout).await?,
            false => Delivery {
                env: once("--env", &self.env)?,
                files: once("--file", &self.file)?,
                ..Delivery::default()
            },
        };
        let at_rotation =
            self.at_rotation.iter().map(|(credential, does)| (credential.as_str().into(), does.clone()));
        delivery.at_rotation.extend(at_rotation);
        delivery.splay = self.splay.unwrap_or(delivery.splay);
        delivery.stop_signal = self.stop_signal.unwrap_or(delivery.stop_signal);
        delivery.stop_timeout = self.stop_timeout.unwrap_or(delivery.stop_timeout);
        delivery.loader_variables |= self.loader_variables;
        match delivery.problems().into_iter().next() {
            Some((key, why)) => Err(Exit::new(Exit::CONFIG, format!("{key}: {why}"))),
            None => Ok(delivery),
        }
    }
}

/// The hidden command that a supervised program starts as.
#[derive(Args, Debug)]
pub(super) struct Stage {
    #[arg(long)]
    supervisor: i32,
    #[arg(long)]
    unblock: Vec<i32>,
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

impl Stage {
    pub(super) fn run(self) -> Result<(), Exit> {
        let Some((program, arguments)) = self.command.split_first() else {
            return Err(Exit::new(Exit::USAGE, "there is no program to run"));
        };
        let environment = std::env::vars_os().collect();
        Err(exec::become_staged(self.supervisor, &self.unblock, program, arguments, environment).into())
    }
}

impl From<ExecError> for Exit {
    fn from(error: ExecError) -> Self {
        let code = match error {
            ExecError::Fetch(error) => return error.into(),
            ExecError::Nothing | ExecError::NobodyStays { .. } | ExecError::Uncarried(_) => Self::CONFIG,
            ExecError::Files(exec::FilesError::NoPlace(_)) => Self::CONFIG,
            ExecError::Files(_) | ExecError::Unwritten { .. } | ExecError::Io(_) => Self::IO,
            ExecError::NotFound(_) => Self::NOT_FOUND,
            ExecError::CannotRun { .. } => Self::CANNOT_RUN,
            ExecError::Orphaned => Self::SOFTWARE,
        };
        Self::new(code, error.to_string())
    }
}

/// What the service manager or the login gives us for the time that we run.
fn given_places() -> Vec<PathBuf> {
    let first = |list: OsString| std::env::split_paths(&list).next();
    let runtime = std::env::var_os("RUNTIME_DIRECTORY").and_then(first);
    let login = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    runtime.into_iter().chain(login).filter(|place| place.is_absolute()).collect()
}

/// One meaning a name.
fn once(flag: &str, values: &[(Variable, Source)]) -> Result<BTreeMap<Variable, Source>, Exit> {
    let mut all = BTreeMap::new();
    for (variable, source) in values {
        if all.insert(variable.clone(), source.clone()).is_some() {
            return Err(Exit::new(Exit::USAGE, format!("{flag} {variable} is said twice")));
        }
    }
    Ok(all)
}

fn assignment(text: &str) -> Result<(Variable, Source), String> {
    let (variable, source) =
        text.split_once('=').ok_or("write NAME=CREDENTIAL.FIELD, as in TOKEN=ledger.token")?;
    Ok((variable.parse()?, source.parse()?))
}

fn rotation(text: &str) -> Result<(String, AtRotation), String> {
    let (credential, does) = text.split_once('=').ok_or("write CREDENTIAL=ACTION, as in ledger=restart")?;
    Ok((credential.to_owned(), does.parse()?))
}

fn length(text: &str) -> Result<Duration, String> {
    let read = text.parse::<jiff::SignedDuration>().ok().and_then(|length| Duration::try_from(length).ok());
    read.ok_or_else(|| "it has to be a length of time, such as 30s or 5m".into())
}

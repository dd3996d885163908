//! `keybearer exec`: an unmodified program is started with what its identity may have, in variables and in files. In go an order
//! (what is delivered, to which program, how); out comes that program. A client of the agent like any other: the agent attests
//! this process, and hands out what it may have.
//!
//! There are two ways, and which one is taken is decided here:
//!
//! - **hand-over**: everything is fetched, and this process becomes the program (`handover`). Nobody stands between the program and
//!   whoever started it, so nothing can go wrong there.
//! - **supervision**: we stay (`supervise`). That is for what hand-over cannot do: a rotation that restarts or tells the program; files,
//!   which somebody has to keep fresh while the program runs, and to remove; and for the first process of a PID namespace, which
//!   has to reap what others leave behind, and to which the kernel sends no signal that it does not handle.
//!
//! With hand-over, what was given to this process alone (`per = "process"`) lives as long as the program, which is the same process.
//! Under supervision the supervisor is the process it was given to, and the program ends before it.
//!
//! A program that cannot have everything is not started. Secrets are never in an argument, nor in a word of ours.

mod environment;
mod files;
mod handover;
mod parcel;
mod stage;
mod supervise;

use std::{
    collections::BTreeSet,
    ffi::{OsStr, OsString},
    io,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

pub use environment::{Environment, Passes, Uncarried, base};
pub use files::{FilesError, Places};
pub use stage::{COMMAND as STAGE, become_program as become_staged};
pub use supervise::{Ending, end_as};

use self::{environment::add, files::Files, parcel::Parcel};
use super::{FetchError, fetch};
use crate::{
    clock::{Clock, Dice},
    deliver::{AtRotation, Delivery, NoField, Source},
};

/// Changes are collected for so long before anything follows from them.
pub const DEBOUNCE: Duration = Duration::from_secs(2);

/// The first wait between two starts; it doubles.
pub const BACK_OFF: Duration = Duration::from_secs(1);

/// What is to be run, and with what. No `Debug`: the environment that we were started with is not ours to show.
#[derive(Clone)]
pub struct Order {
    /// Where the agent listens.
    pub socket: PathBuf,
    /// The program, looked for along PATH if it has no `/`.
    pub program: OsString,
    /// Its arguments, passed on as they are.
    pub arguments: Vec<OsString>,
    /// What it gets.
    pub delivery: Delivery,
    /// What it gets besides.
    pub base: Environment,
    /// The way that somebody asked for.
    pub mode: Option<Mode>,
    /// How long there is to fetch everything.
    pub start_timeout: Duration,
    /// Where files may be made.
    pub places: Places,
    /// See [`DEBOUNCE`].
    pub debounce: Duration,
    /// See [`BACK_OFF`].
    pub back_off: Duration,
}

/// The two ways.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mode {
    /// This process becomes the program.
    HandOver,
    /// We stay.
    Supervise,
}

/// Why there is no program.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// Not everything can be had.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// It cannot be in a variable.
    #[error(transparent)]
    Uncarried(Uncarried),
    /// There is no place for files.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// It could not be written.
    #[error("{source_of}: {error}")]
    Unwritten {
        /// What.
        source_of: Source,
        /// Why.
        error: FilesError,
    },
    /// Nobody said what the program is to get.
    #[error(
        "nothing is declared for this program: say what it is to get with --env NAME=CREDENTIAL.FIELD, or in \
         [identities.NAME.deliver]"
    )]
    Nothing,
    /// It is to be restarted or told, and nobody is to stay for that.
    #[error(
        "--handover leaves nobody to do {does} at a rotation of {credential}: leave it out, or say --at-rotation \
         {credential}=none"
    )]
    NobodyStays {
        /// Whose rotation.
        credential: Arc<str>,
        /// What is to be done.
        does: AtRotation,
    },
    /// There is no such program.
    #[error("{}: there is no such program", .0.display())]
    NotFound(OsString),
    /// There is, and it cannot be run.
    #[error("{}: {error}", .program.display())]
    CannotRun {
        /// The program.
        program: OsString,
        /// What the kernel said.
        error: io::Error,
    },
    /// The supervisor ended while it was starting the program.
    #[error("the supervisor is gone")]
    Orphaned,
    /// The kernel would not do something that it does for everybody.
    #[error("the program cannot be supervised: {0}")]
    Io(#[from] io::Error),
}

impl ExecError {
    fn cannot_run(program: &OsStr, error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Self::NotFound(program.to_owned()),
            _ => Self::CannotRun { program: program.to_owned(), error },
        }
    }
}

impl From<NoField> for ExecError {
    fn from(error: NoField) -> Self {
        FetchError::from(error).into()
    }
}

impl Order {
    /// The credentials that something is delivered of.
    fn credentials(&self) -> impl Iterator<Item = Arc<str>> {
        let names: BTreeSet<Arc<str>> =
            self.delivery.sources().map(|source| Arc::clone(&source.credential)).collect();
        names.into_iter()
    }

    /// Which way it is, for a process that is, or is not, the first of its namespace.
    ///
    /// # Errors
    /// A way that cannot do what is asked for.
    pub fn way(&self, is_first: bool) -> Result<Mode, ExecError> {
        let does = self.delivery.at_rotation.iter().find(|(_, does)| **does != AtRotation::Nothing);
        match (self.mode, does) {
            (Some(Mode::HandOver), Some((credential, does))) => {
                Err(ExecError::NobodyStays { credential: Arc::clone(credential), does: does.clone() })
            }
            (Some(mode), _) => Ok(mode),
            (None, None) if self.delivery.files.is_empty() && !is_first => Ok(Mode::HandOver),
            (None, _) => Ok(Mode::Supervise),
        }
    }
}

/// Runs the program. With hand-over this never comes back but with an error.
///
/// # Errors
/// [`ExecError`], and then nothing was started.
pub async fn run(order: Order, clock: Arc<dyn Clock>, dice: Arc<dyn Dice>) -> Result<Ending, ExecError> {
    if order.delivery.sources().next().is_none() {
        return Err(ExecError::Nothing);
    }
    match order.way(std::process::id() == 1)? {
        Mode::Supervise => supervise::supervise(order, clock, dice).await,
        Mode::HandOver => Err(hand_over(order, &dice).await),
    }
}

/// Fetches everything and becomes the program.
async fn hand_over(order: Order, dice: &Arc<dyn Dice>) -> ExecError {
    match equipped(&order, dice).await {
        // The files are removed again if there is no program.
        Ok((environment, _files)) => handover::become_program(&order.program, &order.arguments, environment),
        Err(error) => error,
    }
}

async fn equipped(order: &Order, dice: &Arc<dyn Dice>) -> Result<(Environment, Option<Files>), ExecError> {
    let fetched = fetch(&order.socket, &order.credentials().collect(), order.start_timeout).await?;
    let parcel = Parcel::gather(&order.delivery, None, |source| fetched.value(source))?;
    // Nobody will be there to remove files: they go only where somebody else does.
    let places = Places { uncleaned: false, ..order.places.clone() };
    let mut files = if parcel.files.is_empty() { None } else { Some(Files::make(&places, dice)?) };
    write(files.as_mut(), &order.delivery, &parcel)?;
    Ok((environment(&order.base, [&parcel], files.as_ref()), files))
}

/// Writes the files of a parcel.
fn write(files: Option<&mut Files>, delivery: &Delivery, parcel: &Parcel) -> Result<(), ExecError> {
    let Some(files) = files else { return Ok(()) };
    for (variable, value) in &parcel.files {
        let source_of = &delivery.files[variable];
        files
            .write(variable, value)
            .map_err(|error| ExecError::Unwritten { source_of: source_of.clone(), error })?;
    }
    Ok(())
}

/// The program's environment: what it gets anyway, values, and the paths of files.
fn environment<'a>(
    base: &Environment,
    parcels: impl IntoIterator<Item = &'a Parcel>,
    files: Option<&Files>,
) -> Environment {
    let mut environment = base.clone();
    for parcel in parcels {
        add(&mut environment, &parcel.env);
        for variable in parcel.files.keys() {
            let path = files.map(|files| files.path(variable)).unwrap_or_default();
            environment.insert(variable.as_str().into(), path.into());
        }
    }
    environment
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(file: bool, does: &str, mode: Option<Mode>) -> Order {
        let value = [("T".parse().unwrap(), "ledger.token".parse().unwrap())].into();
        let (env, files) = if file { (Default::default(), value) } else { (value, Default::default()) };
        let at_rotation = [("ledger".into(), does.parse().unwrap())].into();
        Order {
            socket: "/run/a.sock".into(),
            program: "app".into(),
            arguments: vec![],
            delivery: Delivery { env, files, at_rotation, ..Delivery::default() },
            base: Environment::new(),
            mode,
            start_timeout: Duration::from_secs(30),
            places: Places::default(),
            debounce: DEBOUNCE,
            back_off: BACK_OFF,
        }
    }

    #[test]
    fn we_stay_only_where_somebody_has_to() {
        // LEGACY 2.2 step 1.
        assert_eq!(order(false, "none", None).way(false).unwrap(), Mode::HandOver);
        assert_eq!(order(false, "restart", None).way(false).unwrap(), Mode::Supervise);
        assert_eq!(order(false, "signal:HUP", None).way(false).unwrap(), Mode::Supervise);
        assert_eq!(order(true, "none", None).way(false).unwrap(), Mode::Supervise);
        assert_eq!(order(false, "none", None).way(true).unwrap(), Mode::Supervise);
        assert_eq!(order(true, "none", Some(Mode::HandOver)).way(true).unwrap(), Mode::HandOver);
        assert_eq!(order(false, "none", Some(Mode::Supervise)).way(false).unwrap(), Mode::Supervise);
        let nobody = order(false, "restart", Some(Mode::HandOver)).way(false).unwrap_err().to_string();
        assert!(nobody.contains("ledger=none") && nobody.contains("restart"), "{nobody}");
    }

    #[test]
    fn a_program_that_is_not_there_is_told_apart_from_one_that_cannot_be_run() {
        let kind = |kind: io::ErrorKind| ExecError::cannot_run(OsStr::new("app"), kind.into());
        assert!(matches!(kind(io::ErrorKind::NotFound), ExecError::NotFound(_)));
        assert!(matches!(kind(io::ErrorKind::PermissionDenied), ExecError::CannotRun { .. }));
    }
}

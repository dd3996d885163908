//! Supervision: we stay, start the program, keep its files fresh, tell it or start it again when a rotation says so, and end as
//! it ends. In go an order and everything that happens meanwhile; out comes how the program ended. What comes next is decided in
//! `course`, from whom signals are in `signals`, what the program is as processes in `program`, and credentials come by `feed`; this
//! file only carries what happens to the one and what is to be done to the others.
//!
//! While the agent or an issuer is in trouble the program keeps what it has, and people are told once.

mod course;
mod feed;
mod program;
mod signals;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, VecDeque},
    path::Path,
    sync::Arc,
};

use nix::unistd::{getpid, getsid};
use rustix::process::Signal;
use tokio::{
    sync::mpsc::{UnboundedReceiver, unbounded_channel},
    task::JoinSet,
};
use tonic::Status;

pub use course::Ending;
pub use signals::end_as;

use self::{
    course::{Act, Course, Terms},
    feed::News,
    program::{Found, Program},
    signals::{Caught, Signals, after, forwards},
};
use super::{
    ExecError, Order,
    environment::Environment,
    files::Files,
    parcel::{Parcel, Scales},
};
use crate::{
    clock::{Clock, Dice},
    shim::FetchError,
};

/// Runs the program until it ends.
///
/// # Errors
/// [`ExecError`], and then nothing was started.
pub async fn supervise(
    order: Order,
    clock: Arc<dyn Clock>,
    dice: Arc<dyn Dice>,
) -> Result<Ending, ExecError> {
    // Before there is anything that could be interrupted half way.
    let mut signals = Signals::catch()?;
    let (listener, mut news) = unbounded_channel();
    let mut feeds = JoinSet::new();
    let socket: Arc<Path> = order.socket.as_path().into();
    for credential in order.credentials() {
        feeds.spawn(feed::follow(Arc::clone(&socket), credential, Arc::clone(&dice), listener.clone()));
    }
    let parcels = match first(&order, &mut signals, &mut news).await? {
        First::All(parcels) => parcels,
        First::Interrupted(signal) => return Ok(Ending::Signal(signal.as_raw())),
    };
    let mut files = match order.delivery.files.is_empty() {
        true => None,
        false => Some(Files::make(&order.places, &dice)?),
    };
    for parcel in parcels.values() {
        super::write(files.as_mut(), &order.delivery, parcel)?;
    }
    let mut argv = vec![order.program.clone()];
    argv.extend(order.arguments.iter().cloned());
    let mut program = Program::new(argv, signals.blocked().collect())?;
    program.start(&super::environment(&order.base, parcels.values(), files.as_ref()))?;
    let scales = Scales::new(&*dice);
    let given = parcels.iter().map(|(name, parcel)| (Arc::clone(name), scales.weigh(parcel))).collect();
    let course = Course::started(terms(&order), given, clock.boot());
    let (troubles, unwritten) = (BTreeMap::new(), BTreeMap::new());
    let watch =
        Watch { order, clock, dice, signals, program, course, parcels, files, scales, troubles, unwritten };
    Ok(watch.run(news).await)
}

fn terms(order: &Order) -> Terms {
    Terms {
        at_rotation: order.delivery.at_rotation.clone(),
        splay: order.delivery.splay,
        stop_timeout: order.delivery.stop_timeout,
        debounce: order.debounce,
        back_off: order.back_off,
    }
}

enum First {
    All(BTreeMap<Arc<str>, Parcel>),
    Interrupted(Signal),
}

/// All that the program is to start with, or why it cannot start.
async fn first(
    order: &Order,
    signals: &mut Signals,
    news: &mut UnboundedReceiver<News>,
) -> Result<First, ExecError> {
    let mut parcels = BTreeMap::new();
    let mut troubles: BTreeMap<Arc<str>, FetchError> = BTreeMap::new();
    let late = tokio::time::sleep(order.start_timeout);
    tokio::pin!(late);
    while let Some(missing) = order.credentials().find(|name| !parcels.contains_key(name)) {
        tokio::select! {
            caught = signals.next() => match caught {
                // As it would have ended the program.
                Caught::Heard { signal, .. }
                    if [Signal::TERM, Signal::INT, Signal::QUIT, Signal::HUP].contains(&signal)
                        && !signals.is_ignored(signal) => return Ok(First::Interrupted(signal)),
                _ => {}
            },
            Some(News { credential, what }) = news.recv() => match what {
                Ok(fresh) => {
                    let parcel = Parcel::gather(&order.delivery, Some(&credential), |source| source.value(&fresh))?;
                    parcels.insert(credential, parcel);
                }
                Err(trouble) if trouble.may_pass() => drop(troubles.insert(credential, trouble)),
                Err(trouble) => return Err(trouble.into()),
            },
            () = &mut late => {
                let status = Status::deadline_exceeded("the agent did not answer in time");
                let trouble = troubles.remove(&missing);
                return Err(trouble.unwrap_or(FetchError::Refused { credential: missing, status }).into());
            }
        }
    }
    Ok(First::All(parcels))
}

/// All of one supervision.
struct Watch {
    order: Order,
    clock: Arc<dyn Clock>,
    dice: Arc<dyn Dice>,
    signals: Signals,
    program: Program,
    course: Course,
    /// What the credentials are now.
    parcels: BTreeMap<Arc<str>, Parcel>,
    files: Option<Files>,
    scales: Scales,
    /// What people were told about a credential last.
    troubles: BTreeMap<Arc<str>, String>,
    /// The same about its files.
    unwritten: BTreeMap<Arc<str>, String>,
}

impl Watch {
    async fn run(mut self, mut news: UnboundedReceiver<News>) -> Ending {
        loop {
            let wait = self.course.next().map(|next| next.since(self.clock.boot()));
            let acts = tokio::select! {
                caught = self.signals.next() => self.on_caught(caught),
                Some(news) = news.recv() => {
                    self.on_news(news);
                    vec![]
                }
                () = after(wait) => self.course.on_time(self.clock.boot(), &*self.dice),
            };
            let mut acts = VecDeque::from(acts);
            while let Some(act) = acts.pop_front() {
                match act {
                    Act::Exit(ending) => return ending,
                    act => acts.extend(self.perform(act)),
                }
            }
        }
    }

    fn on_caught(&mut self, caught: Caught) -> Vec<Act> {
        match caught {
            Caught::Child => self.reap(),
            Caught::Heard { signal, by_kernel } => {
                let leads_session = getsid(None).is_ok_and(|session| session == getpid());
                let is_ours = forwards(signal, by_kernel, self.program.shares_group, leads_session);
                // The program ignores it too, unless it says otherwise itself.
                let counts = !self.signals.is_ignored(signal);
                match self.course.on_signal(signal, is_ours) {
                    acts if counts || matches!(acts.as_slice(), [Act::Forward(_)]) => acts,
                    _ => vec![],
                }
            }
        }
    }

    fn reap(&mut self) -> Vec<Act> {
        let mut acts = vec![];
        for found in self.program.reap() {
            match found {
                Found::Ended(ending) => acts.extend(self.course.on_end(ending, self.clock.boot())),
                Found::Stopped => signals::stop(),
                Found::Beside(_, Ending::Code(0)) => {}
                Found::Beside(path, ending) => say(&format!("{}: {ending}", path.display())),
            }
        }
        acts.extend(match self.program.is_gone() {
            true => self.course.on_nothing_left(self.clock.boot()),
            false => self.course.on_something_left(),
        });
        acts
    }

    fn on_news(&mut self, News { credential, what }: News) {
        let gathered = what.map_err(ExecError::from).and_then(|fresh| {
            Parcel::gather(&self.order.delivery, Some(&credential), |source| source.value(&fresh))
        });
        match gathered {
            Ok(parcel) => {
                if self.troubles.remove(&credential).is_some() {
                    say(&format!("{credential}: there is one again"));
                }
                self.course.on_value(Arc::clone(&credential), self.scales.weigh(&parcel), self.clock.boot());
                self.parcels.insert(credential, parcel);
            }
            Err(trouble) => {
                let trouble = trouble.to_string();
                if self.troubles.get(&credential) != Some(&trouble) {
                    say(&format!("{trouble}; the program keeps what it has"));
                    self.troubles.insert(credential, trouble);
                }
            }
        }
    }

    fn environment(&self) -> Environment {
        super::environment(&self.order.base, self.parcels.values(), self.files.as_ref())
    }

    /// Does it; what follows at once is to be done too.
    fn perform(&mut self, act: Act) -> Vec<Act> {
        match act {
            Act::Write(credentials) => {
                for credential in credentials {
                    let Some(parcel) = self.parcels.get(&credential) else { continue };
                    match super::write(self.files.as_mut(), &self.order.delivery, parcel) {
                        Ok(()) => drop(self.unwritten.remove(&credential)),
                        Err(error) => {
                            self.course.on_unwritten(&credential, self.clock.boot());
                            let error = error.to_string();
                            if self.unwritten.get(&credential) != Some(&error) {
                                say(&error);
                                self.unwritten.insert(credential, error);
                            }
                        }
                    }
                }
            }
            Act::Start => {
                let environment = self.environment();
                if let Err(error) = self.program.start(&environment) {
                    say(&format!("nothing can be started: {error}"));
                    let mut acts = self.course.on_end(Ending::Code(126), self.clock.boot());
                    acts.extend(self.course.on_nothing_left(self.clock.boot()));
                    return acts;
                }
            }
            Act::Forward(signal) => self.program.forward(signal),
            Act::Tell(signal) => self.program.tell(signal),
            Act::Stop => self.program.ask(self.order.delivery.stop_signal.raw()),
            Act::Kill => self.program.kill(),
            Act::Run(path) => {
                let environment = self.environment();
                if let Err(error) = self.program.run_beside(&path, &environment) {
                    say(&format!("{}: {error}", path.display()));
                }
            }
            Act::Say(words) => say(&words),
            Act::Exit(_) => {}
        }
        vec![]
    }
}

/// For people, beside what the program itself says.
fn say(words: &str) {
    eprintln!("keybearer: {words}");
}

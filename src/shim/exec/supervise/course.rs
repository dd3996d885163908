//! What comes next for a program under supervision. In go what happened and when; out comes what is to be done. Pure: the clock and
//! the dice are arguments, and nothing is started, told or ended here.
//!
//! A program that ends by itself is not started again: whoever started us sees how it ended and decides. It is started again only
//! when a rotation says so. If it then fails at once, it was we who ended the one that worked, so it is tried again, later each
//! time and not for ever. Between two starts there is a while that grows as long as they follow each other closely, so that no
//! issuer and no rotation can keep a program from its work; the old one runs on meanwhile.
//!
//! No clock of ours runs when somebody else asks the program to end: whoever asked has one.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use rustix::process::Signal;

use crate::{
    clock::{Boot, Dice, fraction},
    deliver::AtRotation,
    shim::exec::parcel::Sum,
};

/// A program that fails within this time after it was started again did not take what it was given.
const TRIAL: Duration = Duration::from_secs(10);

/// How often it is tried in a row before we end as it did.
const MOST_FAILURES: u32 = 5;

/// Between two starts, at most.
const LONGEST_BACK_OFF: Duration = Duration::from_secs(60);

/// A program that has run so long is started again at once the next time.
const CALM: Duration = Duration::from_secs(120);

/// A file that could not be written is tried again after this time.
const WRITE_AGAIN: Duration = Duration::from_secs(10);

/// What is left after it was killed is given up after this time, if we are to end.
const GIVE_UP: Duration = Duration::from_secs(10);

/// What holds for one program.
#[derive(Clone, Debug)]
pub struct Terms {
    /// What the rotation of a credential does.
    pub at_rotation: BTreeMap<Arc<str>, AtRotation>,
    /// A restart or signal waits up to this long.
    pub splay: Duration,
    /// How long a program that is to be started again has to end.
    pub stop_timeout: Duration,
    /// Changes are collected for this long.
    pub debounce: Duration,
    /// The first wait between two starts; it doubles.
    pub back_off: Duration,
}

/// How a program ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Ending {
    /// By itself, with a code.
    Code(i32),
    /// By a signal.
    Signal(i32),
}

/// What is to be done.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Act {
    /// The files of these credentials are to be written anew.
    Write(Vec<Arc<str>>),
    /// The program is to be started, with what there is now.
    Start,
    /// A signal that came is for it.
    Forward(Signal),
    /// It is to be told that something is new.
    Tell(Signal),
    /// It, or what is left of it, is to be asked to end.
    Stop,
    /// All of it is to be killed.
    Kill,
    /// This is to be run beside it.
    Run(PathBuf),
    /// People are to be told.
    Say(String),
    /// We are to end in the same way.
    Exit(Ending),
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    /// The program runs.
    Running,
    /// It is ending, or what is left of it is.
    Ending { again: bool, deadline: Boot, killed: bool },
    /// Nothing runs until then.
    Resting { until: Boot },
}

/// The course of one program.
#[derive(Debug)]
pub struct Course {
    terms: Terms,
    state: State,
    /// What the credentials are now.
    fresh: BTreeMap<Arc<str>, Sum>,
    /// What the program was given.
    given: BTreeMap<Arc<str>, Sum>,
    /// Changed, written, and not acted upon yet.
    pending: BTreeSet<Arc<str>>,
    settle_at: Option<Boot>,
    act_at: Option<Boot>,
    started: Boot,
    /// Starts that followed each other closely.
    close: u32,
    /// Starts that failed at once.
    failures: u32,
    /// How the program that ran last has ended.
    ended: Option<Ending>,
    /// Whether somebody asked the program to end for good.
    last: bool,
    /// Whether somebody sent it a signal that ends programs, since it was started.
    asked: bool,
    /// Whether it runs because we started it again.
    restarted: bool,
}

impl Course {
    /// A program that was started just now, with these values.
    pub fn started(terms: Terms, given: BTreeMap<Arc<str>, Sum>, now: Boot) -> Self {
        Self {
            terms,
            state: State::Running,
            fresh: given.clone(),
            given,
            pending: BTreeSet::new(),
            settle_at: None,
            act_at: None,
            started: now,
            close: 0,
            failures: 0,
            ended: None,
            last: false,
            asked: false,
            restarted: false,
        }
    }

    /// A credential came. Nothing follows at once.
    pub fn on_value(&mut self, credential: Arc<str>, sum: Sum, now: Boot) {
        self.fresh.insert(credential, sum);
        if self.state == State::Running && self.settle_at.is_none() && !self.changed().is_empty() {
            self.settle_at = Some(now + self.terms.debounce);
        }
    }

    /// The files of a credential could not be written: the program has what it had.
    pub fn on_unwritten(&mut self, credential: &Arc<str>, now: Boot) {
        self.given.remove(credential);
        self.pending.remove(credential);
        self.settle_at = Some(now + WRITE_AGAIN);
    }

    /// A signal came that is for the program.
    pub fn on_signal(&mut self, signal: Signal, for_program: bool) -> Vec<Act> {
        let ends = [Signal::TERM, Signal::INT, Signal::QUIT, Signal::HUP].contains(&signal);
        self.asked |= ends;
        // Others have other meanings to many programs: interactive ones go on after an INT, servers read their settings at a HUP.
        self.last |= signal == Signal::TERM && for_program;
        match self.state {
            // There is none that could be told. What would have ended it ends us.
            State::Resting { .. } if ends => vec![Act::Exit(Ending::Signal(signal.as_raw()))],
            State::Resting { .. } => vec![],
            _ if for_program => vec![Act::Forward(signal)],
            _ => vec![],
        }
    }

    /// The program has ended; of what it has started there may be something left.
    pub fn on_end(&mut self, ending: Ending, now: Boot) -> Vec<Act> {
        self.ended = Some(ending);
        if let State::Ending { .. } = self.state {
            return vec![Act::Stop]; // what it left behind is to end too
        }
        let on_trial = self.restarted && now.since(self.started) < TRIAL;
        let failed = ending != Ending::Code(0);
        let again = on_trial && failed && !self.asked && self.failures < MOST_FAILURES;
        let mut acts = vec![];
        if again {
            self.failures += 1;
            let of = MOST_FAILURES + 1;
            acts.push(Act::Say(format!(
                "the program failed right after it was started again ({ending}): attempt {} of {of} follows",
                self.failures + 1
            )));
        }
        acts.extend(self.ends(again, now));
        acts
    }

    /// Nothing is left of it.
    pub fn on_nothing_left(&mut self, now: Boot) -> Vec<Act> {
        let State::Ending { again, .. } = self.state else { return vec![] };
        let Some(ending) = self.ended else { return vec![] };
        if !again || self.last {
            return vec![Act::Exit(ending)];
        }
        let earliest = self.earliest_start();
        if now < earliest {
            self.state = State::Resting { until: earliest };
            return vec![];
        }
        self.start(now)
    }

    /// Something is left of it still.
    pub fn on_something_left(&self) -> Vec<Act> {
        match self.state {
            State::Ending { killed: true, .. } => vec![Act::Kill],
            State::Ending { .. } if self.ended.is_some() => vec![Act::Stop],
            _ => vec![],
        }
    }

    /// When there is something to do next.
    pub fn next(&self) -> Option<Boot> {
        match self.state {
            State::Running => [self.settle_at, self.act_at].into_iter().flatten().min(),
            State::Ending { deadline, .. } => Some(deadline),
            State::Resting { until } => Some(until),
        }
    }

    /// Time has passed.
    pub fn on_time(&mut self, now: Boot, dice: &dyn Dice) -> Vec<Act> {
        match self.state {
            State::Running => {
                if self.settle_at.is_some_and(|at| at <= now) {
                    // What follows from it comes the next time, when it is known whether the files could be written.
                    return self.settle(now, dice);
                }
                if self.act_at.is_some_and(|at| at <= now) { self.act(now) } else { vec![] }
            }
            State::Ending { again, deadline, killed } if deadline <= now => {
                self.state = State::Ending { again, deadline: now + GIVE_UP, killed: true };
                match self.ended {
                    Some(ending) if killed && (!again || self.last) => vec![Act::Exit(ending)],
                    _ => vec![Act::Kill],
                }
            }
            State::Resting { until } if until <= now => self.start(now),
            State::Ending { .. } | State::Resting { .. } => vec![],
        }
    }

    /// Those that are not what the program was given.
    fn changed(&self) -> Vec<Arc<str>> {
        let is_changed = |(name, sum): &(&Arc<str>, &Sum)| self.given.get(*name) != Some(*sum);
        self.fresh.iter().filter(is_changed).map(|(name, _)| Arc::clone(name)).collect()
    }

    fn settle(&mut self, now: Boot, dice: &dyn Dice) -> Vec<Act> {
        self.settle_at = None;
        let changed = self.changed();
        if changed.is_empty() {
            return vec![]; // there and back
        }
        for name in &changed {
            self.given.insert(Arc::clone(name), self.fresh[name]);
        }
        self.pending.extend(changed.iter().cloned());
        if self.act_at.is_none() {
            self.act_at = Some(now + self.terms.splay.mul_f64(fraction(dice)));
        }
        vec![Act::Write(changed)]
    }

    fn act(&mut self, now: Boot) -> Vec<Act> {
        self.act_at = None;
        let pending = std::mem::take(&mut self.pending);
        let at_rotation = |name: &Arc<str>| self.terms.at_rotation.get(name).cloned().unwrap_or_default();
        let (restarts, others): (BTreeSet<_>, BTreeSet<_>) =
            pending.into_iter().partition(|name| at_rotation(name) == AtRotation::Restart);
        // What was asked to end for good is not started again.
        let wanted = !restarts.is_empty() && !self.last;
        let restarts_now = wanted && self.earliest_start() <= now;
        let mut acts: Vec<Act> = vec![];
        for name in others {
            let act = match at_rotation(&name) {
                AtRotation::Command(path) => Act::Run(path),
                // What is started again need not be told before.
                AtRotation::Signal(signal) if !restarts_now => Act::Tell(signal.raw()),
                AtRotation::Signal(_) | AtRotation::Restart | AtRotation::Nothing => continue,
            };
            if !acts.contains(&act) {
                acts.push(act);
            }
        }
        if restarts_now {
            if now.since(self.started) >= TRIAL {
                self.failures = 0;
            }
            acts.extend(self.ends(true, now));
        } else if wanted {
            self.pending = restarts;
            self.act_at = Some(self.earliest_start()); // until then the old one works
        }
        acts
    }

    fn ends(&mut self, again: bool, now: Boot) -> Vec<Act> {
        self.state = State::Ending { again, deadline: now + self.terms.stop_timeout, killed: false };
        vec![Act::Stop]
    }

    fn earliest_start(&self) -> Boot {
        let doubled = self.terms.back_off.saturating_mul(1 << self.close.min(16));
        self.started + doubled.min(LONGEST_BACK_OFF)
    }

    fn start(&mut self, now: Boot) -> Vec<Act> {
        let ran = now.since(self.started);
        self.close = if ran >= CALM { 0 } else { self.close + 1 };
        self.state = State::Running;
        self.started = now;
        (self.ended, self.asked, self.restarted) = (None, false, true);
        (self.settle_at, self.act_at) = (None, None);
        self.pending.clear();
        let changed = self.changed();
        self.given = self.fresh.clone();
        let write = (!changed.is_empty()).then_some(Act::Write(changed));
        write.into_iter().chain([Act::Start]).collect()
    }
}

impl std::fmt::Display for Ending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
        }
    }
}

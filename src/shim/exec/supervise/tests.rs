use std::{sync::Arc, time::Duration};

use rustix::process::Signal;

use super::{
    course::{Act, Course, Ending, Terms},
    signals::forwards,
};
use crate::{
    clock::{Boot, SeededDice},
    secret::Secret,
    shim::exec::parcel::{Parcel, Scales, Sum},
};

/// A course with a clock: credentials `r` (restart), `s` (signal), `c` (command) and `n` (nothing).
struct Stage {
    course: Course,
    now: Boot,
    dice: Arc<SeededDice>,
}

fn sum(value: &str) -> Sum {
    let env = [("V".parse().unwrap(), Secret::new(value))].into();
    Scales::new(&*SeededDice::from_seed(1)).weigh(&Parcel { env, ..Parcel::default() })
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn names(names: &[&str]) -> Vec<Arc<str>> {
    names.iter().map(|name| (*name).into()).collect()
}

impl Stage {
    fn new() -> Self {
        Self::with(Duration::ZERO)
    }

    fn with(splay: Duration) -> Self {
        let rules = [("r", "restart"), ("s", "signal:HUP"), ("c", "command:/bin/reload"), ("n", "none")];
        let terms = Terms {
            at_rotation: rules.map(|(name, does)| (name.into(), does.parse().unwrap())).into(),
            splay,
            stop_timeout: seconds(30),
            debounce: seconds(2),
            back_off: seconds(1),
        };
        let now = Boot::from_nanos(1_000_000_000_000);
        let given = rules.map(|(name, _)| (name.into(), sum("old"))).into();
        Self { course: Course::started(terms, given, now), now, dice: SeededDice::from_seed(9) }
    }

    fn value(&mut self, name: &str, value: &str) {
        self.course.on_value(name.into(), sum(value), self.now);
    }

    /// Goes on for so long; what was done, and after how many seconds.
    fn pass(&mut self, length: Duration) -> Vec<(u64, Act)> {
        let (began, end) = (self.now, self.now + length);
        let mut done = vec![];
        while let Some(next) = self.course.next().filter(|next| *next <= end) {
            self.now = self.now.max(next);
            let acts = self.course.on_time(self.now, &*self.dice);
            done.extend(acts.into_iter().map(|act| (self.now.since(began).as_secs(), act)));
        }
        self.now = end;
        done
    }

    /// Goes on to where something is to be done, and does it.
    fn step(&mut self) -> Vec<Act> {
        self.now = self.now.max(self.course.next().expect("there is something to come"));
        self.course.on_time(self.now, &*self.dice)
    }

    /// Goes on until this is to be done; after how many seconds.
    fn until(&mut self, wanted: &Act) -> u64 {
        let began = self.now;
        while !self.step().contains(wanted) {}
        self.now.since(began).as_secs()
    }

    fn end(&mut self, ending: Ending) -> Vec<Act> {
        self.course.on_end(ending, self.now)
    }

    fn gone(&mut self) -> Vec<Act> {
        self.course.on_nothing_left(self.now)
    }

    /// A long time, and a rotation that restarts: the program runs anew.
    fn restarted(&mut self, value: &str) {
        self.pass(seconds(3600));
        self.value("r", value);
        let done = self.pass(seconds(3));
        assert!(matches!(done.as_slice(), [(2, Act::Write(_)), (2, Act::Stop)]), "{done:?}");
        assert_eq!(self.end(Ending::Signal(15)), [Act::Stop]);
        assert_eq!(self.gone(), [Act::Start]);
    }
}

#[test]
fn nothing_happens_at_a_rotation_unless_it_is_asked_for() {
    // LEGACY 2.3: no "do nothing, just rewrite".
    let mut stage = Stage::new();
    stage.value("n", "new");
    assert_eq!(stage.pass(seconds(1000)), [(2, Act::Write(names(&["n"])))]);
}

#[test]
fn nothing_changed_nothing_happens() {
    // LEGACY 2.3: restart although nothing changed.
    let mut stage = Stage::new();
    stage.value("r", "old");
    assert_eq!(stage.pass(seconds(100)), []);
    stage.value("r", "new");
    stage.pass(seconds(1));
    stage.value("r", "old");
    assert_eq!(stage.pass(seconds(100)), [], "there and back within the debounce");
}

#[test]
fn changes_that_come_together_make_one_restart() {
    // LEGACY 2.3: restart storms. LEGACY 2.2 step 8: debounce.
    let mut stage = Stage::new();
    stage.pass(seconds(60));
    stage.value("r", "1");
    stage.pass(seconds(1));
    stage.value("s", "1");
    stage.value("c", "1");
    stage.value("r", "2");
    let done = stage.pass(seconds(25));
    let run = Act::Run("/bin/reload".into());
    assert_eq!(
        done,
        [(1, Act::Write(names(&["c", "r", "s"]))), (1, run), (1, Act::Stop)],
        "and it need not be told"
    );
}

#[test]
fn a_signal_is_sent_once_and_a_command_is_run_once() {
    let mut stage = Stage::new();
    stage.value("s", "1");
    assert_eq!(stage.pass(seconds(9)), [(2, Act::Write(names(&["s"]))), (2, Act::Tell(Signal::HUP))]);
    stage.value("c", "1");
    let run = Act::Run("/bin/reload".into());
    assert_eq!(stage.pass(seconds(9)), [(2, Act::Write(names(&["c"]))), (2, run)]);
}

#[test]
fn a_splay_spreads_restarts_and_not_files() {
    // LEGACY 2.2 step 8.
    let mut stage = Stage::with(seconds(1000));
    stage.value("s", "1");
    let done = stage.pass(seconds(2000));
    assert_eq!(done[0], (2, Act::Write(names(&["s"]))));
    assert!(done[1].0 > 2 && done[1].0 < 1002 && done[1].1 == Act::Tell(Signal::HUP), "{done:?}");
}

#[test]
fn a_restart_waits_for_the_end_of_all_of_it() {
    // LEGACY 2.3: agent exits during intended restart; the new one beside the old one.
    let mut stage = Stage::new();
    stage.pass(seconds(60));
    stage.value("r", "new");
    stage.pass(seconds(2));
    assert_eq!(stage.end(Ending::Code(0)), [Act::Stop], "what it left behind is asked too");
    assert_eq!(stage.course.on_something_left(), [Act::Stop]);
    assert_eq!(stage.pass(seconds(31)), [(30, Act::Kill)]);
    assert_eq!(stage.course.on_something_left(), [Act::Kill]);
    assert_eq!(stage.gone(), [Act::Start]);
    assert_eq!(stage.pass(seconds(100)), []);
}

#[test]
fn a_program_that_does_not_end_is_killed_and_started_again() {
    let mut stage = Stage::new();
    stage.restarted("1");
    stage.pass(seconds(60));
    stage.value("r", "2");
    assert_eq!(stage.pass(seconds(33))[2..], [(32, Act::Kill)]);
    assert_eq!(stage.end(Ending::Signal(9)), [Act::Stop]);
    assert_eq!(stage.gone(), [Act::Start]);
}

#[test]
fn what_comes_while_it_is_restarted_is_what_it_starts_with() {
    let mut stage = Stage::new();
    stage.pass(seconds(60));
    stage.value("r", "1");
    stage.pass(seconds(2));
    stage.value("r", "2");
    stage.end(Ending::Code(0));
    assert_eq!(stage.gone(), [Act::Write(names(&["r"])), Act::Start]);
    assert_eq!(stage.pass(seconds(100)), [], "and no second restart follows");
}

#[test]
fn a_program_that_ends_by_itself_is_not_started_again() {
    // LEGACY 2.3: wrapper does not die when the child dies; exit code lost.
    for ending in [Ending::Code(0), Ending::Code(3), Ending::Signal(11)] {
        let mut stage = Stage::new();
        stage.pass(seconds(5));
        assert_eq!(stage.end(ending), [Act::Stop]);
        assert_eq!(stage.gone(), [Act::Exit(ending)]);
    }
}

#[test]
fn what_it_left_behind_has_its_time_and_is_killed() {
    // LEGACY 2.3: grandchildren survive.
    let mut stage = Stage::new();
    stage.end(Ending::Code(3));
    assert_eq!(stage.pass(seconds(31)), [(30, Act::Kill)]);
    assert_eq!(stage.pass(seconds(12)), [(9, Act::Exit(Ending::Code(3)))], "and then we end, come what may");
}

#[test]
fn restarts_that_follow_each_other_wait_longer_each_time_and_the_old_one_runs_on() {
    // LEGACY 2.2 step 8: 1 s doubling to 60 s.
    let mut stage = Stage::new();
    stage.restarted("0");
    let mut waited = vec![];
    for round in 1..9 {
        stage.value("r", &round.to_string());
        waited.push(stage.until(&Act::Stop));
        stage.end(Ending::Signal(15));
        assert_eq!(stage.gone(), [Act::Start]);
    }
    assert_eq!(waited, [2, 2, 4, 8, 16, 32, 60, 60]);
}

#[test]
fn a_signal_does_not_wait_for_somebody_elses_restart() {
    // LEGACY 2.3: back-off is per credential.
    let mut stage = Stage::new();
    stage.restarted("0");
    for round in 1..6 {
        stage.value("r", &round.to_string());
        stage.until(&Act::Stop);
        stage.end(Ending::Signal(15));
        stage.gone();
    }
    stage.value("r", "last");
    stage.value("s", "new");
    let done = stage.pass(seconds(100));
    assert_eq!(done[1], (2, Act::Tell(Signal::HUP)), "{done:?}");
    assert!(done[2].0 > 2 && done[2].1 == Act::Stop, "{done:?}");
}

#[test]
fn a_program_that_does_not_take_what_is_new_is_tried_some_times_and_then_we_end_as_it_did() {
    // LEGACY 2.2 step 8: count, give up, exit with the child's code.
    let mut stage = Stage::new();
    stage.restarted("new");
    let mut starts = 0;
    let ended = loop {
        stage.pass(Duration::from_millis(100));
        assert_eq!(stage.end(Ending::Code(7)).last(), Some(&Act::Stop));
        let mut acts = stage.gone();
        if acts.is_empty() {
            acts = stage.step();
        }
        match acts.as_slice() {
            [Act::Start] => starts += 1,
            [Act::Exit(ending)] => break *ending,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((starts, ended), (5, Ending::Code(7)));
}

#[test]
fn what_somebody_asked_to_end_is_not_started_again() {
    // LEGACY 2.3: SIGTERM ends the wrapper at once, child not given time.
    let mut stage = Stage::new();
    assert_eq!(stage.course.on_signal(Signal::TERM, true), [Act::Forward(Signal::TERM)]);
    stage.value("r", "new");
    assert_eq!(stage.pass(seconds(3600)), [(2, Act::Write(names(&["r"])))], "no clock of ours runs");
    assert_eq!(stage.end(Ending::Signal(15)), [Act::Stop]);
    assert_eq!(stage.gone(), [Act::Exit(Ending::Signal(15))]);
}

#[test]
fn whoever_asks_it_to_end_during_a_restart_is_heard() {
    let mut stage = Stage::new();
    stage.pass(seconds(60));
    stage.value("r", "new");
    stage.pass(seconds(2));
    assert_eq!(stage.course.on_signal(Signal::TERM, true), [Act::Forward(Signal::TERM)]);
    stage.end(Ending::Code(0));
    assert_eq!(stage.gone(), [Act::Exit(Ending::Code(0))]);
}

#[test]
fn whoever_asks_while_nothing_runs_ends_us() {
    let mut stage = Stage::new();
    stage.restarted("1");
    stage.end(Ending::Code(1));
    assert_eq!(stage.gone(), [], "it waits");
    assert_eq!(stage.course.on_signal(Signal::USR1, true), []);
    assert_eq!(stage.course.on_signal(Signal::INT, false), [Act::Exit(Ending::Signal(2))]);
}

#[test]
fn one_that_was_interrupted_right_after_a_restart_is_not_tried_again() {
    let mut stage = Stage::new();
    stage.restarted("1");
    assert_eq!(stage.course.on_signal(Signal::INT, false), [], "the terminal told it");
    stage.end(Ending::Signal(2));
    assert_eq!(stage.gone(), [Act::Exit(Ending::Signal(2))]);
}

#[test]
fn a_file_that_could_not_be_written_is_tried_again_and_nobody_is_told_before() {
    let mut stage = Stage::new();
    stage.value("s", "new");
    stage.now = stage.now + seconds(2);
    assert_eq!(stage.course.on_time(stage.now, &*stage.dice), [Act::Write(names(&["s"]))]);
    stage.course.on_unwritten(&"s".into(), stage.now);
    let done = stage.pass(seconds(60));
    assert_eq!(done[0], (10, Act::Write(names(&["s"]))), "{done:?}");
    assert_eq!(done[1].1, Act::Tell(Signal::HUP));
    assert_eq!(done.len(), 2);
}

#[test]
fn a_terminals_signal_is_the_childs_already() {
    // LEGACY 2.3: Ctrl-C delivered twice. LEGACY 2.2 step 7.
    let kernels = true;
    for signal in [Signal::INT, Signal::QUIT, Signal::TSTP, Signal::WINCH, Signal::HUP] {
        assert!(!forwards(signal, kernels, true, false), "{signal:?}");
        assert!(forwards(signal, !kernels, true, false), "{signal:?}: somebody sent it to us alone");
        assert!(forwards(signal, kernels, false, false), "{signal:?}: the child is in a group of its own");
    }
    // A terminal that goes away tells the leader of its session, and nobody else.
    assert!(forwards(Signal::HUP, kernels, true, true));
    assert!(!forwards(Signal::INT, kernels, true, true));
    for signal in [Signal::TERM, Signal::USR1, Signal::USR2, Signal::CONT] {
        assert!(forwards(signal, !kernels, true, false) && forwards(signal, !kernels, false, false));
    }
}

#[test]
fn noise_of_the_kernel_is_never_forwarded() {
    // LEGACY 2.3: SIGURG and SIGCHLD forwarded.
    for signal in [Signal::CHILD, Signal::URG, Signal::PIPE, Signal::WINCH] {
        let known = super::signals::HEARD.iter().any(|heard| *heard as i32 == signal.as_raw());
        assert_eq!(known, signal == Signal::WINCH, "{signal:?}");
    }
}

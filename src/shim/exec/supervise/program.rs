//! The program as processes: the one that was started, and whatever comes of it. In go what is to be started, asked and killed;
//! out comes how the one ended, and whether anything is left.
//!
//! What a program starts cannot get away. We are the reaper of all that comes of it (`PR_SET_CHILD_SUBREAPER`, or the first process
//! of a namespace): whoever loses its parent becomes our child, whatever group or session it made for itself, so after the program
//! has ended, what is left of it is our children, and theirs once those have ended. A cgroup of its own and `cgroup.kill` would do
//! no more, and would need a place in a hierarchy that belongs to the service manager; the agent takes no word of a unit from
//! there.
//!
//! Nobody else reaps our children, so a pid of one of them is nobody else's until `reap` has returned it. The program itself is
//! held by a pidfd.
//!
//! It gets a process group of its own where there is no terminal, so that what asks it to end reaches all of it at once. On a terminal
//! it stays in ours: in another one it would be in the background.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fs, io,
    io::IsTerminal as _,
    os::{fd::OwnedFd, unix::process::CommandExt as _},
    path::{Path, PathBuf},
    process::Command,
};

use rustix::{
    io::Errno,
    process::{
        Pid, PidfdFlags, Signal, WaitOptions, WaitStatus, getpid, kill_process, kill_process_group,
        pidfd_open, pidfd_send_signal, set_child_subreaper, test_kill_process_group, wait, waitpid,
    },
};

use super::course::Ending;
use crate::shim::exec::{environment::Environment, stage};

/// What `reap` found.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Found {
    /// The program has ended.
    Ended(Ending),
    /// It was stopped by a key, or because it is in the background.
    Stopped,
    /// What was run beside it has ended.
    Beside(PathBuf, Ending),
}

/// A program and what comes of it.
pub struct Program {
    /// Its name and its arguments.
    argv: Vec<OsString>,
    /// What it has to have unblocked.
    unblock: Vec<i32>,
    /// Whether it is in our process group.
    pub shares_group: bool,
    main: Option<(Pid, OwnedFd)>,
    /// The group of the one that was started last.
    group: Option<Pid>,
    /// Whoever was asked to end since then.
    asked: BTreeSet<i32>,
    beside: BTreeMap<i32, PathBuf>,
}

impl Program {
    /// Of this name and these arguments. Nothing is started yet.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn new(argv: Vec<OsString>, unblock: Vec<i32>) -> io::Result<Self> {
        set_child_subreaper(Some(getpid()))?;
        Ok(Self {
            argv,
            unblock,
            shares_group: on_a_terminal(),
            main: None,
            group: None,
            asked: BTreeSet::new(),
            beside: BTreeMap::new(),
        })
    }

    /// Starts it.
    ///
    /// # Errors
    /// What the kernel says about starting anything; what it says about this program is its exit code (126 or 127).
    pub fn start(&mut self, environment: &Environment) -> io::Result<()> {
        let pid = self.spawn(self.argv.clone(), environment, !self.shares_group)?;
        // It cannot be reaped before we do so, so this is no other process.
        let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(error) => {
                // Nobody could see it end, or end it: what is not held does not run.
                let _ = kill_process(pid, Signal::KILL);
                let _ = waitpid(Some(pid), WaitOptions::empty());
                let words = format!("it cannot be held by a pidfd ({error}), and was killed");
                return Err(io::Error::new(io::Error::from(error).kind(), words));
            }
        };
        self.main = Some((pid, pidfd));
        self.group = (!self.shares_group).then_some(pid);
        self.asked.clear();
        Ok(())
    }

    /// Runs something beside it, unless that still runs.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn run_beside(&mut self, path: &Path, environment: &Environment) -> io::Result<()> {
        if self.beside.values().any(|running| running == path) {
            return Err(io::Error::other("it still runs from the last time"));
        }
        let pid = self.spawn(vec![path.into()], environment, true)?;
        self.beside.insert(pid.as_raw_nonzero().get(), path.into());
        Ok(())
    }

    fn spawn(&self, argv: Vec<OsString>, environment: &Environment, own_group: bool) -> io::Result<Pid> {
        let mut command = Command::new("/proc/self/exe");
        command.arg0("keybearer").args(stage::arguments(getpid(), &self.unblock)).args(argv);
        command.env_clear().envs(environment);
        if own_group {
            command.process_group(0);
        }
        Ok(Pid::from_child(&command.spawn()?))
    }

    /// Tells the program something.
    pub fn tell(&self, signal: Signal) {
        if let Some((_, pidfd)) = &self.main {
            let _ = pidfd_send_signal(pidfd, signal); // it may have ended this moment
        }
    }

    /// Passes a signal on: what asks to end, to stop and to go on is for all of its group; the rest says something to the program.
    pub fn forward(&self, signal: Signal) {
        match (&self.main, self.group) {
            (Some(_), Some(group)) if ![Signal::HUP, Signal::USR1, Signal::USR2].contains(&signal) => {
                let _ = kill_process_group(group, signal); // its leader is not reaped: no other group has that id
            }
            _ => self.tell(signal),
        }
    }

    /// Asks it to end; or what is left of it, each once.
    pub fn ask(&mut self, signal: Signal) {
        if let Some((pid, _)) = &self.main {
            self.asked.insert(pid.as_raw_nonzero().get());
            match self.group {
                Some(group) => drop(kill_process_group(group, signal)),
                None => self.tell(signal),
            }
            self.forward(Signal::CONT); // one that is stopped would not hear it
            return;
        }
        let Some(left) = self.left() else { return self.signal_unseen(signal) };
        let group = self.group.map(|group| group.as_raw_nonzero().get());
        let asked_group = group.filter(|group| self.asked.contains(group));
        for pid in left {
            let with_group = asked_group.is_some() && asked_group == group_of(pid);
            if self.asked.insert(pid.as_raw_nonzero().get()) && !with_group {
                let _ = kill_process(pid, signal);
                let _ = kill_process(pid, Signal::CONT);
            }
        }
    }

    /// Kills it and what is left of it.
    pub fn kill(&self) {
        if self.main.is_some() {
            self.tell(Signal::KILL);
            if let Some(group) = self.group {
                let _ = kill_process_group(group, Signal::KILL);
            }
        }
        match self.left() {
            Some(left) => left.into_iter().for_each(|pid| {
                let _ = kill_process(pid, Signal::KILL);
            }),
            None => self.signal_unseen(Signal::KILL),
        }
    }

    /// Takes the ends of children, ours and those that became ours.
    pub fn reap(&mut self) -> Vec<Found> {
        let mut found = vec![];
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG | WaitOptions::UNTRACED) {
            let number = pid.as_raw_nonzero().get();
            let is_main = self.main.as_ref().is_some_and(|(main, _)| *main == pid);
            match ending(status) {
                Some(ending) if is_main => {
                    self.main = None;
                    found.push(Found::Ended(ending));
                }
                Some(ending) => {
                    self.asked.remove(&number);
                    found.extend(self.beside.remove(&number).map(|path| Found::Beside(path, ending)));
                }
                None if is_main && self.shares_group && by_a_key(status) => found.push(Found::Stopped),
                None => {}
            }
        }
        found
    }

    /// Whether neither the program is there nor anything that came of it.
    pub fn is_gone(&self) -> bool {
        if self.main.is_some() {
            return false;
        }
        if wait_without_taking() == Err(Errno::CHILD) {
            return true;
        }
        match self.left() {
            Some(left) => left.is_empty(),
            None if is_first() => false,
            None => self.group.is_none_or(|group| test_kill_process_group(group).is_err()),
        }
    }

    /// Our children, but for those that run beside the program; `None` where they cannot be seen.
    fn left(&self) -> Option<Vec<Pid>> {
        let main = self.main.as_ref().map(|(pid, _)| *pid);
        let mut children = children()?;
        children.retain(|pid| Some(*pid) != main && !self.beside.contains_key(&pid.as_raw_nonzero().get()));
        Some(children)
    }

    /// For where there is no /proc of our own namespace: its first process can signal all the others, and anybody a group.
    fn signal_unseen(&self, signal: Signal) {
        let all = is_first().then_some(Pid::INIT).or(self.group);
        if let Some(all) = all {
            let _ = kill_process_group(all, signal); // with INIT: kill(-1, ...)
        }
    }
}

fn is_first() -> bool {
    getpid() == Pid::INIT
}

/// Which process group this is in; 0 for one that has no id in our namespace.
fn group_of(pid: Pid) -> Option<i32> {
    let pid = nix::unistd::Pid::from_raw(pid.as_raw_nonzero().get());
    nix::unistd::getpgid(Some(pid)).ok().map(nix::unistd::Pid::as_raw)
}

/// Whether any child is there at all.
fn wait_without_taking() -> Result<(), Errno> {
    use rustix::process::{WaitId, WaitIdOptions, waitid};
    let options = WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT | WaitIdOptions::EXITED;
    waitid(WaitId::All, options).map(drop)
}

fn ending(status: WaitStatus) -> Option<Ending> {
    let code = status.exit_status().map(Ending::Code);
    code.or_else(|| status.terminating_signal().map(Ending::Signal))
}

/// Not `SIGSTOP`, which somebody sent to it alone, and will have it continued alone.
fn by_a_key(status: WaitStatus) -> bool {
    let keys = [Signal::TSTP, Signal::TTIN, Signal::TTOU].map(Signal::as_raw);
    status.stopping_signal().is_some_and(|signal| keys.contains(&signal))
}

/// Whether somebody sits at a terminal that sends signals to groups. What counts is whether there is one that controls our session,
/// or that the program reads from; not where its output goes.
fn on_a_terminal() -> bool {
    io::stdin().is_terminal() || fs::File::open("/dev/tty").is_ok()
}

/// Processes whose parent we are, from /proc: `None` if that is not of our namespace.
fn children() -> Option<Vec<Pid>> {
    let own = getpid().as_raw_nonzero().get();
    let is_ours = fs::read_link("/proc/self").ok()?.to_str()?.parse::<i32>() == Ok(own);
    let pids = fs::read_dir("/proc").ok().filter(|_| is_ours)?;
    let numbers = pids.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    let is_child = |pid: &i32| {
        let stat = fs::read(format!("/proc/{pid}/stat")).unwrap_or_default();
        parent_in(&stat) == Some(own)
    };
    Some(numbers.filter(is_child).filter_map(Pid::from_raw).collect())
}

/// The parent's pid in `/proc/PID/stat`: the second field after the name, which ends with the last `)` (proc(5)).
fn parent_in(stat: &[u8]) -> Option<i32> {
    let after = &stat[stat.iter().rposition(|byte| *byte == b')')? + 1..];
    let mut fields = after.split(|byte| *byte == b' ').filter(|field| !field.is_empty());
    std::str::from_utf8(fields.nth(1)?).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parent_is_read_whatever_the_program_is_called() {
        assert_eq!(parent_in(b"12 (sh) S 7 12 12 0"), Some(7));
        assert_eq!(parent_in(b"12 (a) S 1 (b)) R 8 12"), Some(8));
        assert_eq!(parent_in(b""), None);
        assert_eq!(parent_in(b"12 (sh) S"), None);
    }
}

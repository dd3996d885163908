//! Signals that come to us and are meant for the program. In goes nothing; out come those of an explicit list, with who sent them,
//! and whether the program has them already. They are blocked, and read from a descriptor: no handler is installed, so what whoever
//! started us ignores stays ignored, for us and for the program, and none is lost between two looks. Last comes the way to end as
//! the program did.

use std::{io, time::Duration};

use nix::sys::{
    signal::{SigSet, SigmaskHow, Signal as Number, raise},
    signalfd::{SfdFlags, SignalFd},
};
use rustix::process::Signal;
use tokio::{
    io::{Interest, unix::AsyncFd},
    signal::unix::SignalKind,
};

use super::course::Ending;
use crate::shim::leave_no_core;

/// What is forwarded. All others do to us what they do to any program: what the kernel says about children, sockets and timers of
/// ours (CHLD, URG, PIPE, ALRM) is nothing to the program.
pub const HEARD: [Number; 9] = [
    Number::SIGHUP,
    Number::SIGINT,
    Number::SIGQUIT,
    Number::SIGTERM,
    Number::SIGUSR1,
    Number::SIGUSR2,
    Number::SIGCONT,
    Number::SIGTSTP,
    Number::SIGWINCH,
];

/// `si_code` of a signal that the kernel sent, for instance because of a key (sigaction(2)).
const SI_KERNEL: i32 = 0x80;

/// One signal.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Caught {
    /// A child changed its state.
    Child,
    /// One of [`HEARD`].
    Heard {
        /// Which.
        signal: Signal,
        /// Whether no process sent it.
        by_kernel: bool,
    },
}

/// Where they come from.
pub struct Signals {
    descriptor: AsyncFd<SignalFd>,
    /// Those that were not blocked before.
    blocked: Vec<Number>,
    ignored: u64,
    /// Only so that children are not reaped by the kernel where whoever started us ignores their end.
    _child: tokio::signal::unix::Signal,
}

impl Signals {
    /// From here on they wait to be read. To be called before there is another thread or a child.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn catch() -> io::Result<Self> {
        let ignored = ignored();
        let child = tokio::signal::unix::signal(SignalKind::child())?;
        let mut mask = SigSet::empty();
        HEARD.iter().for_each(|signal| mask.add(*signal));
        mask.add(Number::SIGCHLD);
        let before = mask.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
        let blocked = mask.iter().filter(|signal| !before.contains(*signal)).collect();
        let descriptor = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        #[expect(
            deprecated,
            reason = "its successor is unsafe; here the descriptor is owned by what waits on it"
        )]
        let descriptor = AsyncFd::with_interest(descriptor, Interest::READABLE)?;
        Ok(Self { descriptor, blocked, ignored, _child: child })
    }

    /// Those that a program has to have unblocked to start as we did.
    pub fn blocked(&self) -> impl Iterator<Item = i32> {
        self.blocked.iter().map(|signal| *signal as i32)
    }

    /// Whether this one does nothing to us or the program, because whoever started us said so (nohup(1)).
    pub fn is_ignored(&self, signal: Signal) -> bool {
        self.ignored >> (signal.as_raw() - 1) & 1 == 1
    }

    /// The next one.
    pub async fn next(&mut self) -> Caught {
        loop {
            let Ok(mut ready) = self.descriptor.readable().await else {
                // The runtime's own poll is gone: we are ending.
                return std::future::pending().await;
            };
            let Ok(Some(caught)) = ready.get_inner().read_signal() else {
                ready.clear_ready();
                continue;
            };
            let number = i32::try_from(caught.ssi_signo).unwrap_or_default();
            match Signal::from_named_raw(number) {
                Some(Signal::CHILD) => return Caught::Child,
                Some(signal) => return Caught::Heard { signal, by_kernel: caught.ssi_code == SI_KERNEL },
                None => {}
            }
        }
    }
}

/// Whether the program has to be told of a signal that we got. Of those that a terminal sends, the kernel tells the whole foreground
/// group, in which the program is too if it `shares_group` with us; only the leader of a session hears alone that its terminal is
/// gone. What a process sent to us it sent to us alone, as far as anybody can know.
pub fn forwards(signal: Signal, by_kernel: bool, shares_group: bool, leads_session: bool) -> bool {
    !by_kernel || !shares_group || (leads_session && matches!(signal, Signal::HUP | Signal::CONT))
}

/// Which signals this process was started to ignore, as bits.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    line.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).unwrap_or_default()
}

/// Ends this process as the program ended, so that whoever waits for us sees what it would have seen. A signal that does not end us,
/// because it unknown or because we are the first process of a namespace, is told as a shell tells it.
pub fn end_as(ending: Ending) -> ! {
    match ending {
        Ending::Code(code) => std::process::exit(code),
        Ending::Signal(number) => {
            // What dumped core was the program. Ours would hold what we were given.
            leave_no_core();
            // To the first process of a namespace no signal does what it does by default.
            if std::process::id() != 1 {
                let _ = signal_hook::low_level::emulate_default_handler(number);
            }
            std::process::exit(128 + number)
        }
    }
}

/// Stops this process as the program was stopped, until somebody continues both.
pub fn stop() {
    let _ = raise(Number::SIGSTOP);
}

/// Waits so long; for ever, if there is nothing to wait for.
pub async fn after(length: Option<Duration>) {
    match length {
        Some(length) => tokio::time::sleep(length).await,
        None => std::future::pending().await,
    }
}

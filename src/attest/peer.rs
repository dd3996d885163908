//! The kernel's word on the other end of a connection. In goes a live socket; out comes a [`Peer`], which holds
//! a pidfd: as long as that process lives its pid cannot be given to another, so *the sender's pid equals the
//! pinned pid* is proof of who wrote a chunk (ATT-05).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, pidfd_open},
};
use tokio::io::{Interest, unix::AsyncFd};

use super::{
    AttestError, kernel,
    kernel::{Ids, Sender},
    process::{self, Origin, Proc, Process},
};

/// The uid the kernel shows for one that this user namespace does not know (ATT-06).
const OVERFLOW_UID: u32 = 65534;

/// How the process is held.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Hold {
    /// By `pidfd_open` after the fact, on kernels before 6.5. Caps the level at L1 (ATT-03).
    Opened,
    /// By `SO_PEERPIDFD`: the kernel pinned it when it connected.
    Socket,
}

/// The process at the other end, held so that it can become nobody else, and not looked at yet. Only a live socket makes one.
#[derive(Debug)]
pub struct Pinned {
    pid: u32,
    uid: u32,
    gid: u32,
    pidfd: OwnedFd,
    hold: Hold,
}

impl Pinned {
    /// Pins the process that connected `socket`: two calls of the kernel.
    ///
    /// # Errors
    /// [`AttestError::PeerInvisible`] for one this agent's namespaces cannot see, [`AttestError::PeerExited`]
    /// for one that is gone, [`AttestError::Kernel`] where a call fails.
    pub fn by(socket: impl AsFd) -> Result<Self, AttestError> {
        let socket = socket.as_fd();
        let cred = kernel::peer_cred(socket).map_err(|error| AttestError::kernel("SO_PEERCRED", &error))?;
        if cred.pid == 0 || cred.uid == OVERFLOW_UID {
            return Err(AttestError::PeerInvisible);
        }
        let by_socket =
            kernel::peer_pidfd(socket).map_err(|error| AttestError::kernel("SO_PEERPIDFD", &error))?;
        let (pidfd, hold) = match by_socket {
            Some(pidfd) => (pidfd, Hold::Socket),
            None => (open(cred.pid)?, Hold::Opened),
        };
        Ok(Self { pid: cred.pid, uid: cred.uid, gid: cred.gid, pidfd, hold })
    }

    /// The uid it connected with.
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// Looks at it.
    ///
    /// # Errors
    /// [`AttestError::PeerExited`] if it is gone, [`AttestError`] if it cannot be looked at.
    pub fn look(self) -> Result<Peer, AttestError> {
        let Self { pid, uid, gid, pidfd, hold } = self;
        // Opened under the hold: if the pinned process lives afterwards, this directory is its own.
        let process = Proc::at("/proc").open(pid)?;
        let Origin { start, session, terminal } = process.origin()?;
        let peer = Peer { pid, uid, gid, start, session, terminal, process, pidfd, hold };
        if peer.alive() { Ok(peer) } else { Err(AttestError::PeerExited) }
    }
}

/// The process at the other end, pinned and looked at.
#[derive(Debug)]
pub struct Peer {
    pid: u32,
    uid: u32,
    gid: u32,
    start: u64,
    session: Option<u32>,
    terminal: bool,
    process: Process,
    pidfd: OwnedFd,
    hold: Hold,
}

impl Peer {
    /// Pins the process that connected `socket`, and looks at it.
    ///
    /// # Errors
    /// Those of [`Pinned::by`] and [`Pinned::look`].
    pub fn pin(socket: impl AsFd) -> Result<Self, AttestError> {
        Pinned::by(socket)?.look()
    }

    /// Its process id, valid while [`Peer::alive`].
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The uid it connected with.
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// The gid it connected with.
    pub fn gid(&self) -> u32 {
        self.gid
    }

    /// When it started, in clock ticks since boot: with the pid, a name for the process in records.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// The session it was in when it connected (setsid(2)): a process is born into that of its parent, and can leave it but not
    /// join another. Tells who is of one family; never evidence of who somebody is. None where it cannot be seen.
    pub fn session(&self) -> Option<u32> {
        self.session
    }

    /// Whether it had a controlling terminal when it connected.
    pub fn has_terminal(&self) -> bool {
        self.terminal
    }

    /// How it is held.
    pub fn hold(&self) -> Hold {
        self.hold
    }

    /// The pidfd: readable once the process has exited.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Its directory in /proc: this process, or nothing.
    pub(super) fn process(&self) -> &Process {
        &self.process
    }

    /// Who it is now, in one call; None where the kernel cannot say.
    pub(super) fn ids(&self) -> Result<Option<Ids>, AttestError> {
        kernel::ids(&self.pidfd).map_err(|error| AttestError::kernel("PIDFD_GET_INFO", &error))
    }

    /// Ends when the process does, however long that is after its connection.
    ///
    /// # Errors
    /// [`AttestError::Kernel`] if no descriptor is left to wait on: whoever cannot be watched is given nothing to keep.
    pub fn outlived(&self) -> Result<impl Future<Output = ()> + Send + 'static, AttestError> {
        // A descriptor of its own: the connection waits on the other.
        ended(self.pidfd.try_clone().map_err(|error| AttestError::kernel("dup", &error))?)
    }

    /// Whether the process still runs.
    pub fn alive(&self) -> bool {
        let mut polled = [PollFd::new(&self.pidfd, PollFlags::IN)];
        matches!(poll(&mut polled, Some(&Timespec::default())), Ok(0))
    }

    /// Whether `sender` is this process, and with the ids it connected with (ATT-05, ATT-07).
    ///
    /// # Errors
    /// [`AttestError::SenderChanged`] if another process wrote, [`AttestError::CredChanged`] if this one has
    /// become somebody else, [`AttestError::PidReused`] if it is gone and another process has its pid,
    /// [`AttestError::PeerExited`] if it is gone: last words, which nobody is there to hear the answer of.
    pub fn wrote(&self, sender: Sender) -> Result<(), AttestError> {
        if sender.pid != self.pid {
            return Err(AttestError::SenderChanged { pinned: self.pid, sender: sender.pid });
        }
        if sender.uid != self.uid {
            return Err(AttestError::CredChanged);
        }
        if self.alive() {
            return Ok(());
        }
        let taken = process::start_time(self.pid).is_ok_and(|start| start != self.start);
        Err(if taken { AttestError::PidReused(self.pid) } else { AttestError::PeerExited })
    }
}

/// Ends when the process does that had this pid and started at `start`, in clock ticks since boot.
///
/// # Errors
/// [`AttestError::PeerExited`] if it is gone, whoever has its pid now; [`AttestError::Kernel`] if it cannot be watched.
pub fn outlived(pid: u32, start: u64) -> Result<impl Future<Output = ()> + Send + 'static, AttestError> {
    let pidfd = open(pid)?;
    // Read under the hold: while the process lives, the pid is its own.
    let started = process::start_time(pid).map_err(|_| AttestError::PeerExited)?;
    if started != start { Err(AttestError::PeerExited) } else { ended(pidfd) }
}

/// Ends when the process of `pidfd` does.
fn ended(pidfd: OwnedFd) -> Result<impl Future<Output = ()> + Send + 'static, AttestError> {
    #[expect(
        deprecated,
        reason = "its successor is unsafe; here the descriptor is owned by what waits on it"
    )]
    let pidfd = AsyncFd::with_interest(pidfd, Interest::READABLE)
        .map_err(|error| AttestError::kernel("epoll_ctl", &error))?;
    Ok(async move {
        // An error would come at once and mean the same: nobody is watched.
        let _ = pidfd.readable().await;
    })
}

fn open(pid: u32) -> Result<OwnedFd, AttestError> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(AttestError::PeerInvisible)?;
    pidfd_open(pid, PidfdFlags::empty()).map_err(|_| AttestError::PeerExited)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_peer_is_the_process_that_connected() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let peer = Peer::pin(&ours).unwrap();
        assert_eq!(peer.pid(), std::process::id());
        assert!(peer.alive());
        let sender = Sender { pid: peer.pid(), uid: peer.uid(), gid: peer.gid() };
        assert_eq!(peer.wrote(sender), Ok(()));
    }

    #[test]
    fn another_sender_or_another_uid_is_told_apart() {
        // ATT-05, ATT-07
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let peer = Peer::pin(&ours).unwrap();
        let other = Sender { pid: 1, uid: peer.uid(), gid: peer.gid() };
        assert_eq!(peer.wrote(other), Err(AttestError::SenderChanged { pinned: peer.pid(), sender: 1 }));
        let become_other = Sender { pid: peer.pid(), uid: peer.uid() + 1, gid: peer.gid() };
        assert_eq!(peer.wrote(become_other), Err(AttestError::CredChanged));
    }
}

//! Who is calling. In goes a [`Peer`] that the kernel vouches for; out comes a [`Workload`] with the evidence about
//! it, read while the process is held. Evidence that cannot be had is [`Missing`] with its reason, never a
//! default; a process that changes under our eyes is nobody.
//!
//! Containers get their room here when they come; until then a process in a user namespace of its own is refused
//! (ATT-13), and cgroup paths of container runtimes name no unit.

pub mod kernel;
mod peer;
mod challenge;
mod errand;
mod login;
mod process;
mod executable;
#[cfg(any(test, fuzzing))]
pub(crate) mod properties;
mod turns;
mod unit;

use std::{fmt, io, os::fd::AsFd, path::PathBuf, sync::Arc};

pub use challenge::Challenge;
pub use errand::Errand;
pub use executable::{Digests, Executable};
pub use login::{Login, Sign};
pub use peer::{Hold, Peer, Pinned, outlived};
pub use process::{Proc, Status};
pub use turns::Turns;
pub use unit::{Manager, Sources, Unit};

use kernel::Ids;
use process::{Image, Namespace, Process};

/// How strong the evidence is. What a kernel cannot prove lowers it.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Level {
    /// The permission to open the socket.
    L0,
    /// The uid that connected.
    L1,
    /// And each chunk is the pinned process's own, in this user namespace.
    L2,
    /// And it runs in a unit that the service manager vouches for.
    L3,
    /// And its program is known and has answered the challenge.
    L4,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// Why a piece of evidence is not there.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, thiserror::Error)]
pub enum Missing {
    /// The text of /proc/PID/cgroup is not what the kernel writes for a unit of this host.
    #[error("its cgroup is outside this host's tree or not of the form systemd makes")]
    CgroupForm,
    /// v1 and v2 name different units.
    #[error("its v1 and v2 cgroups name different units")]
    CgroupsDisagree,
    /// A cgroup above it is not root's alone.
    #[error("it runs below a cgroup that is delegated to somebody else")]
    Delegated,
    /// The program file was deleted, replaced, or changed while it was read.
    #[error("its program file was deleted, replaced or changed since it started: restart it")]
    ExeReplaced,
    /// Too large to hash.
    #[error("its program is larger than the 512 MiB that are hashed")]
    ExeTooLarge,
    /// EXE_WRITABLE: its own user can change the program.
    #[error("EXE_WRITABLE: its own user can change the program file, so its path proves nothing")]
    ExeWritable,
    /// The process is gone.
    #[error("it has exited")]
    Exited,
    /// In a mount namespace of its own, where paths mean other files.
    #[error("it has a mount namespace of its own, where paths are other files: match its sha256")]
    MountNamespace,
    /// Its protocol has no challenge.
    #[error(
        "its program counts only if it answers the challenge, which HTTP/1.1 cannot carry: ask on the gRPC socket"
    )]
    NotChallenged,
    /// The kernel knows of no logins.
    #[error("this kernel keeps no login uids (it is built without audit)")]
    NoAudit,
    /// systemd does not run here.
    #[error("no service manager runs here to vouch for a unit")]
    NoServiceManager,
    /// It runs in no unit.
    #[error("it runs in no unit of this host")]
    NoUnit,
    /// Nobody asked for it.
    #[error("no identity asks for it, so it was not read")]
    NotAsked,
    /// This agent lacks the privilege.
    #[error("this agent may not read it: give it CAP_SYS_PTRACE")]
    NotPermitted,
    /// Who reads the connection is not the process that made it, or it does not speak HTTP/2 well.
    #[error("the process that connected has not answered the challenge, so somebody else may be reading")]
    Unanswered,
    /// systemd does not know the unit.
    #[error("the service manager does not know its unit")]
    UnitUnknown,
    /// Any other failure to read.
    #[error("it could not be read ({0})")]
    Unreadable(io::ErrorKind),
}

impl Missing {
    fn of(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::PermissionDenied => Self::NotPermitted,
            io::ErrorKind::NotFound => Self::Exited,
            _ if error.raw_os_error() == Some(libc::ESRCH) => Self::Exited,
            kind => Self::Unreadable(kind),
        }
    }
}

/// What is known about a process, and why the rest is not.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Evidence {
    /// Its process id.
    pub pid: u32,
    /// When it started, in clock ticks since boot.
    pub start: u64,
    /// Its real, effective, saved and file-system uid, now.
    pub uids: [u32; 4],
    /// The same of its primary group.
    pub gids: [u32; 4],
    /// Its groups and hardening, now, if an identity can rest on them.
    pub status: Result<Status, Missing>,
    /// Whether a person is behind it.
    pub login: Login,
    /// Its program.
    pub exe: Result<Executable, Missing>,
    /// Which of the paths that identities name are its program.
    pub exe_paths: Result<Vec<PathBuf>, Missing>,
    /// The SHA-256 of its program.
    pub sha256: Result<[u8; 32], Missing>,
    /// The link text of its program: a hint for people, never compared.
    pub path_hint: Option<String>,
    /// Whether its image is held, so that an exec would be told (ATT-16).
    pub exec: Result<(), Missing>,
    /// Whether it answered the challenge: it, and not another, reads the connection (ATT-17).
    pub answered: Result<(), Missing>,
    /// Its systemd unit.
    pub unit: Result<Unit, Missing>,
    /// Whether it lives in this agent's user namespace.
    pub same_user_namespace: Result<bool, Missing>,
    /// Its mount namespace.
    pub mount_namespace: Result<u64, Missing>,
    /// Whether paths are the host's files there, or the agent's own.
    pub hosts_files: Result<bool, Missing>,
    /// The cgroup text it was read from.
    pub cgroup: String,
    /// How it is held.
    pub hold: Hold,
}

impl Evidence {
    /// Its uid.
    pub fn uid(&self) -> u32 {
        self.uids[1]
    }

    /// Its primary gid.
    pub fn gid(&self) -> u32 {
        self.gids[1]
    }

    /// How strong all of this is.
    pub fn level(&self) -> Level {
        let held = self.hold == Hold::Socket && self.same_user_namespace == Ok(true) && self.exec.is_ok();
        match &self.unit {
            _ if !held => Level::L1,
            Ok(unit) if unit.manager == Manager::System => {
                if self.exe.is_ok() && self.answered.is_ok() {
                    Level::L4
                } else {
                    Level::L3
                }
            }
            _ => Level::L2,
        }
    }

    /// Why it is no stronger, in words; None for the strongest.
    pub fn weakness(&self) -> Option<String> {
        let said = |why: &Missing| Some(why.to_string());
        match (self.level(), &self.unit) {
            (Level::L0 | Level::L1, _) => match (self.hold, self.same_user_namespace) {
                (Hold::Opened, _) => Some("the kernel does not say by the socket who connected".into()),
                (_, Ok(false)) => Some("it has a user namespace of its own".into()),
                (_, Err(why)) => Some(format!("of its user namespace it is only known that {why}")),
                _ => self.exec.as_ref().err().and_then(said),
            },
            (Level::L2, Err(why)) => said(why),
            (Level::L2, Ok(_)) => {
                Some("its unit is of a user's own manager, whose word is that user's".into())
            }
            (Level::L3, _) => self.exe.as_ref().err().or(self.answered.as_ref().err()).and_then(said),
            (Level::L4, _) => None,
        }
    }
}

/// An attested process. Only this room makes one, from a [`Peer`].
#[derive(Debug)]
pub struct Workload {
    peer: Arc<Peer>,
    image: Arc<Image>,
    evidence: Evidence,
    ids: Option<Ids>,
    interests: Arc<Interests>,
}

impl Workload {
    /// The evidence about it.
    pub fn evidence(&self) -> &Evidence {
        &self.evidence
    }

    /// The process it is.
    pub fn peer(&self) -> &Arc<Peer> {
        &self.peer
    }

    /// The same process as `before`, read anew: it may not have become another program in between (ATT-16).
    ///
    /// # Errors
    /// [`AttestError::EvidenceChanged`] if it has.
    pub fn follows(self, before: &Self) -> Result<Self, AttestError> {
        let (then, now) = (&before.evidence, &self.evidence);
        if then.exe == now.exe && before.image.lives() == then.exec.map(|()| true) {
            return Ok(self);
        }
        Err(AttestError::EvidenceChanged("program"))
    }

    /// The same, with what came of the challenge. What it sent back after its evidence was taken, and before it is taken
    /// again, was sent by that very program: an exec in between would be told.
    #[must_use]
    pub fn with_answer(&self, answered: Result<(), Missing>) -> Self {
        Self {
            peer: Arc::clone(&self.peer),
            image: Arc::clone(&self.image),
            evidence: Evidence { answered, ..self.evidence.clone() },
            ids: self.ids,
            interests: Arc::clone(&self.interests),
        }
    }

    /// Takes the evidence again, right before the answer: nothing that a decision rests on may have changed (ATT-16).
    /// One call tells ids and cgroup where the kernel has it, one read that it is the same run of the same program; what is
    /// not told so is read, if an identity asks for it.
    ///
    /// # Errors
    /// [`AttestError`] naming what changed.
    pub fn confirm(&self) -> Result<(), AttestError> {
        let (process, then) = (self.peer.process(), &self.evidence);
        let changed = |what| Err(AttestError::EvidenceChanged(what));
        let ids = self.peer.ids()?;
        if let (Some(now), Some(then)) = (ids, self.ids)
            && now != then
        {
            if now.uids != then.uids || now.gids != then.gids {
                return Err(AttestError::CredChanged);
            }
            if self.interests.unit {
                return changed("cgroup");
            }
        }
        if ids.is_none() || self.interests.groups {
            let now = process.status()?;
            let same_groups = match &then.status {
                Ok(then) => now.groups == then.groups,
                // Groups that nobody asked for decide nothing.
                Err(_) => !self.interests.groups,
            };
            if now.uids != then.uids || now.gids != then.gids || !same_groups {
                return Err(AttestError::CredChanged);
            }
        }
        let cgroup_told = ids.is_some_and(|ids| ids.cgroup.is_some()) && unit::is_in_unified(&then.cgroup);
        if self.interests.unit && !cgroup_told && process.cgroup()? != then.cgroup {
            return changed("cgroup");
        }
        if self.image.lives() != then.exec.map(|()| true) {
            return changed("program");
        }
        if self.interests.challenge && Executable::of(process) != then.exe {
            return changed("program");
        }
        if !self.interests.exe_paths.is_empty() && process.namespace(Namespace::Mount) != then.mount_namespace
        {
            return changed("mount namespace");
        }
        if self.peer.alive() { Ok(()) } else { Err(AttestError::PeerExited) }
    }
}

/// What identities want to know, so that nothing else is read.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Interests {
    /// The program paths that identities name.
    pub exe_paths: Vec<PathBuf>,
    /// Whether any identity names a digest.
    pub sha256: bool,
    /// Whether any identity names a supplementary group.
    pub groups: bool,
    /// Whether any identity names a unit, or a level that only a unit gives.
    pub unit: bool,
    /// Whether any identity rests on the program, which then has to answer the challenge.
    pub challenge: bool,
}

impl Interests {
    /// Whether the groups or the hardening of a process can decide: its groups say whether it could write its program, and
    /// what demands a program may demand that nobody traces it.
    fn status(&self) -> bool {
        self.groups || self.challenge || !self.exe_paths.is_empty()
    }
}

/// What is known of a process before its evidence is read. Ids only where the kernel tells them by number.
struct Known {
    pid: u32,
    start: u64,
    ids: Option<Ids>,
    terminal: bool,
    hold: Hold,
}

/// Takes evidence. Shared by all connections.
#[derive(Debug)]
pub struct Attestor {
    proc: Proc,
    own: Result<Process, AttestError>,
    own_namespaces: OwnNamespaces,
    sources: Sources,
    digests: Arc<Digests>,
}

/// The agent's own namespaces, and the host's. Nobody leaves these, so they are looked at once.
#[derive(Debug)]
struct OwnNamespaces {
    mount: Result<u64, Missing>,
    /// The mount namespace of the first process: the host's, where the agent is locked into one of its own (`ProtectSystem=`).
    host_mount: Result<u64, Missing>,
    user: Result<u64, Missing>,
}

impl OwnNamespaces {
    /// Whether a path is the same file in this mount namespace as for who wrote the settings. That the agent itself sees less
    /// than the host takes nothing away: a path that it cannot look up matches nobody, and what it looks up is compared as an
    /// inode.
    fn shows_the_hosts_files(&self, mount: u64) -> bool {
        self.mount == Ok(mount) || self.host_mount == Ok(mount)
    }
}

impl Attestor {
    /// An attestor over this host's /proc, cgroups and service manager.
    pub fn new(proc: Proc, sources: Sources) -> Self {
        let own = proc.open(std::process::id());
        let namespace =
            |handle| own.as_ref().map_err(|_| Missing::Exited).and_then(|own| own.namespace(handle));
        let first = proc.open(1).map_err(|_| Missing::Exited);
        let own_namespaces = OwnNamespaces {
            mount: namespace(Namespace::Mount),
            host_mount: first.and_then(|first| first.namespace(Namespace::Mount)),
            user: namespace(Namespace::User),
        };
        Self { own, own_namespaces, proc, sources, digests: Arc::default() }
    }

    /// Takes all evidence about `peer` (ATT-16, the first time).
    ///
    /// # Errors
    /// [`AttestError`] if it is not the process that connected any more, lives in another user namespace, or
    /// /proc cannot be read.
    pub fn attest(&self, peer: &Arc<Peer>, interests: &Arc<Interests>) -> Result<Workload, AttestError> {
        let process = peer.process();
        let image = process.image();
        let ids = peer.ids()?;
        let known = Known {
            pid: peer.pid(),
            start: peer.start(),
            ids,
            terminal: peer.has_terminal(),
            hold: peer.hold(),
        };
        let mut evidence = self.read(process, known, interests)?;
        evidence.exec = image.held();
        if !peer.alive() {
            return Err(AttestError::PeerExited);
        }
        if evidence.uid() != peer.uid() || evidence.gid() != peer.gid() {
            return Err(AttestError::CredChanged);
        }
        if evidence.same_user_namespace == Ok(false) {
            return Err(AttestError::UserNamespace);
        }
        // The cgroup that was read and the one that will be compared are the same only if it did not move meanwhile.
        if peer.ids()? != ids {
            return Err(AttestError::EvidenceChanged("cgroup"));
        }
        let interests = Arc::clone(interests);
        Ok(Workload { peer: Arc::clone(peer), image: Arc::new(image), evidence, ids, interests })
    }

    /// The evidence about any process, for an operator who asks why, as if it held a connection and answered the challenge. No
    /// workload comes of it.
    ///
    /// # Errors
    /// [`AttestError`] if the process is gone or /proc cannot be read.
    pub fn evidence(&self, pid: u32, hold: Hold, interests: &Interests) -> Result<Evidence, AttestError> {
        let process = self.proc.open(pid)?;
        let process::Origin { start, terminal, .. } = process.origin()?;
        let known = Known { pid, start, ids: None, terminal, hold };
        let evidence = self.read(&process, known, interests)?;
        Ok(Evidence { exec: process.image().held(), answered: Ok(()), ..evidence })
    }

    fn read(&self, process: &Process, known: Known, interests: &Interests) -> Result<Evidence, AttestError> {
        let own = self.own.as_ref().map_err(Clone::clone)?;
        // The dearest text of all, and where the kernel tells ids by number mostly not needed.
        let (uids, gids, status) = match known.ids {
            Some(ids) if !interests.status() => (ids.uids, ids.gids, Err(Missing::NotAsked)),
            _ => {
                let status = process.status()?;
                (status.uids, status.gids, Ok(status))
            }
        };
        let cgroup = process.cgroup()?;
        let exe = Executable::of(process);
        let mount_namespace = process.namespace(Namespace::Mount);
        let exe_paths = match (&exe, &mount_namespace) {
            (Err(missing), _) | (_, Err(missing)) => Err(*missing),
            (_, Ok(theirs)) if !self.own_namespaces.shows_the_hosts_files(*theirs) => {
                Err(Missing::MountNamespace)
            }
            (Ok(exe), ..) => status
                .as_ref()
                .map_err(|why| *why)
                .and_then(|status| exe.known_as(&interests.exe_paths, uids[1], &status.groups)),
        };
        let sha256 = match &exe {
            Err(missing) => Err(*missing),
            Ok(_) if !interests.sha256 => Err(Missing::NotAsked),
            Ok(exe) => match self.digests.known(exe) {
                Some(sum) => Ok(sum),
                None => self.digests.read(process, exe),
            },
        };
        // All of it is of one process: its directory in /proc is that process or nothing (ATT-08).
        Ok(Evidence {
            pid: known.pid,
            start: known.start,
            uids,
            gids,
            login: Login::of(process.login_uid(), Ok(known.terminal), &cgroup),
            path_hint: process.path_hint(),
            exec: Err(Missing::NotAsked),
            answered: Err(Missing::NotAsked),
            unit: self.sources.unit(&cgroup),
            same_user_namespace: process.shares_user_namespace(own, self.own_namespaces.user),
            status,
            exe,
            exe_paths,
            sha256,
            hosts_files: mount_namespace.map(|theirs| self.own_namespaces.shows_the_hosts_files(theirs)),
            mount_namespace,
            cgroup,
            hold: known.hold,
        })
    }

    /// Whether the digest of this program would have to be read from disk: work for a thread that may wait.
    pub fn must_read(&self, peer: &Peer, interests: &Interests) -> bool {
        let unknown = |exe: &Executable| self.digests.known(exe).is_none();
        interests.sha256 && Executable::of(peer.process()).is_ok_and(|exe| unknown(&exe))
    }
}

/// Whether a connection to a server may be trusted with a request: its process runs as root or as `uid` (ATT-24).
///
/// # Errors
/// [`AttestError::Kernel`] if the kernel does not say.
pub fn server_is_trusted(socket: impl AsFd, uid: u32) -> Result<bool, AttestError> {
    let server = kernel::peer_cred(socket).map_err(|error| AttestError::kernel("SO_PEERCRED", &error))?;
    Ok(server.uid == 0 || server.uid == uid)
}

/// Why a caller could not be attested. An attestor that fails, fails the request: absence of evidence is never a
/// default value. The names are those of records.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum AttestError {
    /// The process has other ids now than when it connected (ATT-07).
    #[error("the caller's ids changed since it connected")]
    CredChanged,
    /// Exec, setuid or a move to another cgroup between connect and answer (ATT-16).
    #[error("the caller's {0} changed since it connected: it has to open a new connection")]
    EvidenceChanged(&'static str),
    /// A kernel call failed.
    #[error("{call}: {what}")]
    Kernel {
        /// The call.
        call: &'static str,
        /// What the kernel said.
        what: io::ErrorKind,
    },
    /// At the service manager's door, somebody else (LEGACY 2.6).
    #[error("whoever asks is not the service manager of this host: {0}")]
    NotServiceManager(&'static str),
    /// The process is gone (ATT-09).
    #[error("the caller has exited")]
    PeerExited,
    /// In a namespace this agent cannot look into (ATT-06).
    #[error("the caller is in a PID or user namespace that this agent cannot see into")]
    PeerInvisible,
    /// Another process has the pid of the one that connected (ATT-08).
    #[error("pid {0} connected and exited, and another process with that pid wrote")]
    PidReused(u32),
    /// A file of /proc was unreadable or not of the form the kernel writes.
    #[error("/proc/PID/{file}: {what}")]
    Proc {
        /// Which file.
        file: &'static str,
        /// What is wrong with it.
        what: String,
    },
    /// Another process wrote on the caller's connection (ATT-05).
    #[error("pid {sender} wrote on the connection of pid {pinned}")]
    SenderChanged {
        /// Who connected.
        pinned: u32,
        /// Who wrote.
        sender: u32,
    },
    /// Descriptors came along, or the kernel did not say who wrote (ATT-04).
    #[error("the caller passed descriptors, or the kernel did not stamp what it wrote")]
    Smuggled,
    /// In another user namespace, where it may be whoever it likes (ATT-13).
    #[error("the caller is in another user namespace than this agent")]
    UserNamespace,
}

impl AttestError {
    /// A failed kernel call.
    pub fn kernel(call: &'static str, error: &io::Error) -> Self {
        Self::Kernel { call, what: error.kind() }
    }

    /// The stable name, for records.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::CredChanged => "CRED_CHANGED",
            Self::EvidenceChanged(_) => "EVIDENCE_CHANGED",
            Self::Kernel { .. } => "KERNEL",
            Self::NotServiceManager(_) => "NOT_SERVICE_MANAGER",
            Self::PeerExited => "PEER_EXITED",
            Self::PeerInvisible => "PEER_INVISIBLE",
            Self::PidReused(_) => "PID_REUSED",
            Self::Proc { .. } => "PROC",
            Self::SenderChanged { .. } => "SENDER_CHANGED",
            Self::Smuggled => "SMUGGLED",
            Self::UserNamespace => "USER_NAMESPACE",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write as _,
        os::unix::net::UnixStream,
        process::{Command, Stdio},
    };

    use super::*;

    fn attestor() -> Attestor {
        Attestor::new(Proc::at("/proc"), Sources::default())
    }

    fn own_peer() -> Arc<Peer> {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        Arc::new(Peer::pin(&ours).unwrap())
    }

    #[test]
    fn this_test_is_attested() {
        let interests = Arc::new(Interests { sha256: true, ..Interests::default() });
        let workload = attestor().attest(&own_peer(), &interests).unwrap();
        let evidence = workload.evidence();
        assert_eq!(evidence.pid, std::process::id());
        assert_eq!(evidence.uid(), rustix::process::geteuid().as_raw());
        assert!(evidence.sha256.is_ok());
        assert!(evidence.level() >= Level::L1);
        assert_eq!(workload.confirm(), Ok(()));
    }

    #[test]
    fn a_process_that_became_another_program_is_told_whatever_is_asked_of_it() {
        // ATT-16
        let attestor = attestor();
        let script = "read go && exec sleep 60";
        let mut child = Command::new("sh").args(["-c", script]).stdin(Stdio::piped()).spawn().unwrap();
        let process = attestor.proc.open(child.id()).unwrap();
        let mut workload = attestor.attest(&own_peer(), &Arc::default()).unwrap();
        let before = Executable::of(&process);
        let start = process.start_time();
        workload.image = Arc::new(process.image());
        assert_eq!(workload.confirm(), Ok(()));
        child.stdin.take().unwrap().write_all(b"go\n").unwrap();
        while Executable::of(&process) == before {
            std::thread::yield_now();
        }
        assert_eq!(workload.confirm(), Err(AttestError::EvidenceChanged("program")));
        // E20: the start time would not have told.
        assert_eq!(process.start_time(), start);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_change_between_connect_and_answer_is_told() {
        // ATT-16
        let attestor = attestor();
        let interests = Arc::new(Interests { groups: true, unit: true, ..Interests::default() });
        let mut workload = attestor.attest(&own_peer(), &interests).unwrap();
        workload.evidence.cgroup = "0::/\n9:name=systemd:/elsewhere\n".into();
        assert_eq!(workload.confirm(), Err(AttestError::EvidenceChanged("cgroup")));
        let mut workload = attestor.attest(&own_peer(), &interests).unwrap();
        if let Some(ids) = &mut workload.ids {
            ids.cgroup = Some(7);
            assert_eq!(workload.confirm(), Err(AttestError::EvidenceChanged("cgroup")));
            workload.ids.as_mut().unwrap().uids[3] = 7;
            assert_eq!(workload.confirm(), Err(AttestError::CredChanged));
        }
        let mut workload = attestor.attest(&own_peer(), &interests).unwrap();
        workload.evidence.status.as_mut().unwrap().groups.push(4_000_000);
        assert_eq!(workload.confirm(), Err(AttestError::CredChanged));
        // Where it was not kept but is asked for, nothing says that it is the same.
        workload.evidence.status = Err(Missing::NotAsked);
        assert_eq!(workload.confirm(), Err(AttestError::CredChanged));
    }

    #[test]
    fn what_no_identity_asks_for_is_not_read_and_says_so() {
        let attestor = attestor();
        let peer = own_peer();
        let of = |interests| attestor.attest(&peer, &Arc::new(interests)).unwrap().evidence().clone();
        let all = of(Interests { groups: true, ..Interests::default() });
        assert!(all.status.is_ok());
        let little = of(Interests::default());
        assert_eq!((little.uids, little.gids), (all.uids, all.gids));
        // On kernels before 6.13 the same text tells the ids.
        let by_number = peer.ids().unwrap().is_some();
        assert_eq!(little.status, if by_number { Err(Missing::NotAsked) } else { all.status });
        assert!(of(Interests { exe_paths: vec!["/bin/sh".into()], ..Interests::default() }).status.is_ok());
        assert!(of(Interests { challenge: true, ..Interests::default() }).status.is_ok());
    }

    #[test]
    fn a_weaker_hold_lowers_the_level() {
        // ATT-03
        let mut evidence =
            attestor().evidence(std::process::id(), Hold::Socket, &Interests::default()).unwrap();
        evidence.same_user_namespace = Ok(true);
        evidence.exec = Ok(());
        evidence.unit = Err(Missing::NoUnit);
        assert_eq!(evidence.level(), Level::L2);
        evidence.hold = Hold::Opened;
        assert_eq!(evidence.level(), Level::L1);
        evidence.hold = Hold::Socket;
        evidence.same_user_namespace = Err(Missing::NotPermitted);
        assert_eq!(evidence.level(), Level::L1);
    }

    #[test]
    fn a_process_that_is_gone_is_nobody() {
        // ATT-08
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = child.id();
        child.wait().unwrap();
        let gone = attestor().evidence(pid, Hold::Socket, &Interests::default());
        assert_eq!(gone.unwrap_err(), AttestError::PeerExited);
    }
}

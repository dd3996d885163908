//! What /proc says about one process, while its pidfd is held. In goes a pid that is pinned; out come facts, or
//! why a fact cannot be had. Link texts and command lines are never evidence: a process chooses them itself.

use std::{
    io,
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, CWD, Mode, OFlags, Stat, openat, readlinkat, statat},
    io::{Errno, pread, read},
};

use super::{AttestError, Missing};
use crate::secret::is_obeyed;

/// More than any file of /proc/PID that we read has to say.
const MAX_TEXT: usize = 64 << 10;

/// What is read at once. Less than a page: then the kernel gives less only at the end, and need not be asked again to hear so.
const CHUNK: usize = 2048;

/// Where /proc is. An argument, so that every text of it can be tried.
#[derive(Clone, Debug)]
pub struct Proc(PathBuf);

impl Proc {
    /// A /proc mounted at `root`.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self(root.into())
    }

    /// Opens the directory of a process. What is read through it is of that very process or nothing, even if its
    /// pid is given to another.
    pub(super) fn open(&self, pid: u32) -> Result<Process, AttestError> {
        let path = self.0.join(pid.to_string());
        match openat(CWD, &path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) {
            Ok(dir) => Ok(Process { dir }),
            Err(error) => Err(gone(error)),
        }
    }
}

/// When the process started, from the real /proc.
pub(super) fn start_time(pid: u32) -> Result<u64, AttestError> {
    Proc::at(Path::new("/proc")).open(pid)?.start_time()
}

/// One process, as its directory in /proc.
#[derive(Debug)]
pub(super) struct Process {
    dir: OwnedFd,
}

impl Process {
    /// The ids and what changes hands with privileges (proc_pid_status(5)).
    pub(super) fn status(&self) -> Result<Status, AttestError> {
        Status::parse(&String::from_utf8_lossy(&self.text("status").map_err(gone)?))
    }

    /// When it started, in clock ticks since boot (field 22 of stat).
    pub(super) fn start_time(&self) -> Result<u64, AttestError> {
        Ok(self.origin()?.start)
    }

    /// When it started, and in which session.
    pub(super) fn origin(&self) -> Result<Origin, AttestError> {
        parse_origin(&self.text("stat").map_err(gone)?)
            .ok_or(AttestError::Proc { file: "stat", what: "it has no start time".into() })
    }

    /// The text of its cgroup file.
    pub(super) fn cgroup(&self) -> Result<String, AttestError> {
        String::from_utf8(self.text("cgroup").map_err(gone)?)
            .map_err(|_| AttestError::Proc { file: "cgroup", what: "it is not UTF-8".into() })
    }

    /// The uid that logged in, if any: who started it all (proc_pid_loginuid(5)).
    pub(super) fn login_uid(&self) -> Result<Option<u32>, Missing> {
        let text = match self.text("loginuid") {
            Ok(text) => text,
            // The directory is held, so the process had one if this kernel keeps any; a process that is gone says so otherwise.
            Err(Errno::NOENT) => return Err(Missing::NoAudit),
            Err(error) => return Err(missing(error)),
        };
        let uid = std::str::from_utf8(&text).ok().and_then(|text| text.trim().parse().ok());
        let uid: u32 = uid.ok_or(Missing::Unreadable(io::ErrorKind::InvalidData))?;
        Ok((uid != u32::MAX).then_some(uid))
    }

    /// A namespace of it, as the inode number of its handle.
    pub(super) fn namespace(&self, handle: Namespace) -> Result<u64, Missing> {
        Ok(self.stat(handle.path()).map_err(missing)?.st_ino)
    }

    /// Whether it lives in the same user namespace as `other`, which lives in `others` (ATT-13). Where a handle may not be
    /// read, the maps tell: only a privileged process can give another namespace the same full map.
    pub(super) fn shares_user_namespace(
        &self,
        other: &Self,
        others: Result<u64, Missing>,
    ) -> Result<bool, Missing> {
        if let (Ok(this), Ok(that)) = (self.namespace(Namespace::User), others) {
            return Ok(this == that);
        }
        let same = |name| Ok(self.text(name).map_err(missing)? == other.text(name).map_err(missing)?);
        Ok(same("uid_map")? && same("gid_map")?)
    }

    /// The image that it runs now, held.
    pub(super) fn image(&self) -> Image {
        Image(self.open("maps").map_err(missing))
    }

    /// The link text of its executable: a hint for people, never compared (ATT-12).
    pub(super) fn path_hint(&self) -> Option<String> {
        let link = readlinkat(&self.dir, "exe", Vec::with_capacity(256)).ok()?;
        // Whoever named it may have put in it what a terminal obeys, or what looks like another line (TM-27).
        Some(link.to_string_lossy().chars().map(|c| if is_obeyed(c) { '?' } else { c }).collect())
    }

    /// What the inode of its executable is.
    pub(super) fn exe_stat(&self) -> Result<Stat, Missing> {
        self.stat("exe").map_err(missing)
    }

    /// Its executable, opened.
    pub(super) fn exe_file(&self) -> Result<std::fs::File, Missing> {
        Ok(self.open("exe").map_err(missing)?.into())
    }

    fn stat(&self, name: &str) -> Result<Stat, Errno> {
        statat(&self.dir, name, AtFlags::empty())
    }

    fn open(&self, name: &str) -> Result<OwnedFd, Errno> {
        openat(self.dir.as_fd(), name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
    }

    fn text(&self, name: &str) -> Result<Vec<u8>, Errno> {
        let file = self.open(name)?;
        let mut text = Vec::new();
        let mut space = [MaybeUninit::uninit(); CHUNK];
        loop {
            let (chunk, rest) = read(&file, &mut space)?;
            text.extend_from_slice(chunk);
            if !rest.is_empty() {
                return Ok(text);
            }
            if text.len() >= MAX_TEXT {
                return Err(Errno::FBIG);
            }
        }
    }
}

/// One run of one program, as the opened list of its mappings.
#[derive(Debug)]
pub(super) struct Image(Result<OwnedFd, Missing>);

impl Image {
    /// Whether it could be taken hold of: for a process of another user that takes CAP_SYS_PTRACE, and no more.
    pub(super) fn held(&self) -> Result<(), Missing> {
        self.0.as_ref().map(drop).map_err(|why| *why)
    }

    /// Whether it still runs: one read, which finds nothing once the process has become another program or is gone (ATT-16).
    /// A process can keep its image alive by sharing it, but never get one back: what the evidence was taken of is what
    /// still runs.
    pub(super) fn lives(&self) -> Result<bool, Missing> {
        let maps = self.0.as_ref().map_err(|why| *why)?;
        Ok(pread(maps, &mut [0; 16], 0).map_err(missing)? > 0)
    }
}

/// The namespaces that count.
#[derive(Clone, Copy, Debug)]
pub(super) enum Namespace {
    Mount,
    User,
}

impl Namespace {
    fn path(self) -> &'static str {
        match self {
            Self::Mount => "ns/mnt",
            Self::User => "ns/user",
        }
    }
}

fn gone(error: Errno) -> AttestError {
    match error {
        Errno::NOENT | Errno::SRCH => AttestError::PeerExited,
        error => AttestError::kernel("read /proc", &error.into()),
    }
}

fn missing(error: Errno) -> Missing {
    Missing::of(&io::Error::from(error))
}

/// What `status` says that we use.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Status {
    /// Real, effective, saved and file-system uid.
    pub uids: [u32; 4],
    /// Real, effective, saved and file-system gid.
    pub gids: [u32; 4],
    /// Supplementary groups, sorted (ATT-10).
    pub groups: Vec<u32>,
    /// Who traces it; 0 for nobody (ATT-19).
    pub tracer: u32,
    /// Whether it can never gain privileges (ATT-19).
    pub no_new_privs: bool,
    /// The seccomp mode; 0 for none (ATT-19).
    pub seccomp: u32,
}

impl Status {
    pub(super) fn parse(text: &str) -> Result<Self, AttestError> {
        const NAMES: [&str; 6] = ["TracerPid", "Uid", "Gid", "Groups", "NoNewPrivs", "Seccomp"];
        let wrong = |what: &str| AttestError::Proc { file: "status", what: what.into() };
        let mut lines = [None; NAMES.len()];
        for (name, value) in text.lines().filter_map(|line| line.split_once(':')) {
            // The kernel writes each once; a name with a line feed in it is escaped there.
            if let Some(at) = NAMES.iter().position(|wanted| *wanted == name)
                && lines[at].replace(value).is_some()
            {
                return Err(wrong(&format!("it has two {name} lines")));
            }
        }
        let line = |name: &str| {
            let found = NAMES.iter().zip(lines).find_map(|(known, line)| line.filter(|_| *known == name));
            found.ok_or_else(|| wrong(&format!("it has no {name} line")))
        };
        let numbers = |name: &str| {
            line(name)?
                .split_ascii_whitespace()
                .map(|word| word.parse().map_err(|_| wrong(&format!("its {name} line holds no number"))))
                .collect::<Result<Vec<u32>, _>>()
        };
        let four = |name: &str| {
            <[u32; 4]>::try_from(numbers(name)?)
                .map_err(|_| wrong(&format!("its {name} line has not four ids")))
        };
        let one = |name: &str| {
            numbers(name)?.first().copied().ok_or_else(|| wrong(&format!("its {name} is empty")))
        };
        let mut groups = numbers("Groups")?;
        groups.sort_unstable();
        Ok(Self {
            uids: four("Uid")?,
            gids: four("Gid")?,
            groups,
            tracer: one("TracerPid")?,
            no_new_privs: one("NoNewPrivs")? == 1,
            seccomp: one("Seccomp").unwrap_or(0),
        })
    }
}

/// Where a process comes from (proc_pid_stat(5)).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Origin {
    /// When it started, in clock ticks since boot (field 22).
    pub(super) start: u64,
    /// The session it was born in or made (field 6; setsid(2)). None where its leader is out of this namespace's sight.
    pub(super) session: Option<u32>,
    /// Whether it has a controlling terminal (field 7).
    pub(super) terminal: bool,
}

pub(super) fn parse_origin(stat: &[u8]) -> Option<Origin> {
    // The command name may hold anything, blanks and parentheses included: the fields begin after the last one.
    let after = stat.iter().rposition(|byte| *byte == b')')? + 1;
    let fields = std::str::from_utf8(stat.get(after..)?).ok()?;
    let mut fields = fields.split_ascii_whitespace();
    let session = fields.nth(3)?.parse().ok().filter(|session| *session != 0);
    let terminal = fields.next()?.parse::<i64>().ok()? != 0;
    Some(Origin { start: fields.nth(14)?.parse().ok()?, session, terminal })
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str = "Name:\tsh\\nUid:\t0\nTracerPid:\t0\nUid:\t1000\t1000\t1000\t1000\n\
        Gid:\t100\t100\t100\t100\nGroups:\t27 4 \nNoNewPrivs:\t1\nSeccomp:\t2\n";

    #[test]
    fn status_is_read_by_name() {
        let status = Status::parse(STATUS).unwrap();
        assert_eq!(status.uids, [1000; 4]);
        assert_eq!(status.groups, [4, 27]);
        assert!(status.no_new_privs);
        assert_eq!((status.tracer, status.seccomp), (0, 2));
    }

    #[test]
    fn broken_status_is_an_error_and_never_a_default() {
        for (broken, names) in [
            ("", "Groups"),
            (&STATUS.replace("Uid:\t1000", "Uid:\tx"), "Uid"),
            (&STATUS.replace("\t1000\n", "\n"), "Uid"),
            (&STATUS.replace("NoNewPrivs:\t1", "NoNewPrivs:"), "NoNewPrivs"),
            (&format!("{STATUS}Uid:\t0\t0\t0\t0\n"), "two Uid"),
        ] {
            let error = Status::parse(broken).unwrap_err();
            assert!(error.to_string().contains(names), "{error}");
        }
    }

    #[test]
    fn a_start_time_survives_a_hostile_name() {
        let fields = (3..=52).map(|field| (field * 10).to_string()).collect::<Vec<_>>().join(" ");
        let stat = format!("42 (a) R 1 (b\n) {fields}");
        assert_eq!(
            parse_origin(stat.as_bytes()),
            Some(Origin { start: 220, session: Some(60), terminal: true })
        );
        for broken in [&b""[..], b"42 (a", b"42 (a) R 1 2", b"42 (a) \xff"] {
            assert_eq!(parse_origin(broken), None);
        }
        let apart = stat.replacen(" 70 ", " 0 ", 1);
        assert!(!parse_origin(apart.as_bytes()).unwrap().terminal);
        // A session whose leader cannot be seen, and what a process has that is going.
        for unseen in ["0", "-1"] {
            let stat = stat.replacen(" 60 ", &format!(" {unseen} "), 1);
            assert_eq!(
                parse_origin(stat.as_bytes()),
                Some(Origin { start: 220, session: None, terminal: true })
            );
        }
    }

    #[test]
    fn this_process_is_in_its_own_user_namespace() {
        // ATT-13
        let this = Proc::at("/proc").open(std::process::id()).unwrap();
        let own = this.namespace(Namespace::User);
        assert_eq!(this.shares_user_namespace(&this, own), Ok(true));
        // Where the handle may not be read, the maps tell.
        assert_eq!(this.shares_user_namespace(&this, Err(Missing::NotPermitted)), Ok(true));
        assert_eq!(this.image().lives(), Ok(true));
    }
}

//! What /proc says about one process, while its pidfd is held. In goes a pid that is pinned; out come facts, or
//! why a fact cannot be had. Link texts and command lines are never evidence: a process chooses them itself.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use ring::digest;

use super::{AttestError, Missing};

/// Where /proc is. An argument, so that every text of it can be tried.
#[derive(Clone, Debug)]
pub struct Proc(PathBuf);

impl Proc {
    /// A /proc mounted at `root`.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self(root.into())
    }

    pub(super) fn file(&self, pid: u32, name: &str) -> PathBuf {
        self.0.join(pid.to_string()).join(name)
    }

    /// The files that change hands with the process's privileges (status(5) of proc).
    pub(super) fn status(&self, pid: u32) -> Result<Status, AttestError> {
        let text = fs::read(self.file(pid, "status")).map_err(gone)?;
        Status::parse(&String::from_utf8_lossy(&text))
    }

    /// When it started, in clock ticks since boot (field 22 of stat).
    pub(super) fn start_time(&self, pid: u32) -> Result<u64, AttestError> {
        let text = fs::read(self.file(pid, "stat")).map_err(gone)?;
        parse_start_time(&text).ok_or(AttestError::Proc { file: "stat", what: "it has no start time".into() })
    }

    /// The text of its cgroup file.
    pub(super) fn cgroup(&self, pid: u32) -> Result<String, AttestError> {
        let text = fs::read(self.file(pid, "cgroup")).map_err(gone)?;
        String::from_utf8(text)
            .map_err(|_| AttestError::Proc { file: "cgroup", what: "it is not UTF-8".into() })
    }

    /// The uid that logged in, if any: who started it all, for records only.
    pub(super) fn login_uid(&self, pid: u32) -> Option<u32> {
        let uid = fs::read_to_string(self.file(pid, "loginuid")).ok()?.trim().parse().ok()?;
        (uid != u32::MAX).then_some(uid)
    }

    /// A namespace of it, as the inode number of its handle.
    pub(super) fn namespace(&self, pid: u32, kind: &str) -> Result<u64, Missing> {
        let handle =
            fs::metadata(self.file(pid, &format!("ns/{kind}"))).map_err(|error| Missing::of(&error))?;
        Ok(handle.ino())
    }

    /// Whether it lives in the user namespace of this agent (ATT-13). Where its handle may not be read, its
    /// maps tell: only a privileged process can give another namespace the same full map.
    pub(super) fn same_user_namespace(&self, pid: u32) -> Result<bool, Missing> {
        let own = std::process::id();
        match (self.namespace(pid, "user"), self.namespace(own, "user")) {
            (Ok(theirs), Ok(ours)) => Ok(theirs == ours),
            _ => {
                let map =
                    |pid, name| fs::read_to_string(self.file(pid, name)).map_err(|error| Missing::of(&error));
                Ok(map(pid, "uid_map")? == map(own, "uid_map")?
                    && map(pid, "gid_map")? == map(own, "gid_map")?)
            }
        }
    }

    /// A value that changes at each exec: the auxiliary vector holds the addresses and the random bytes of this
    /// very image (ATT-16).
    pub(super) fn exec_generation(&self, pid: u32) -> Result<[u8; 32], Missing> {
        let vector = fs::read(self.file(pid, "auxv")).map_err(|error| Missing::of(&error))?;
        if vector.is_empty() {
            return Err(Missing::Exited);
        }
        let mut generation = [0; 32];
        generation.copy_from_slice(digest::digest(&digest::SHA256, &vector).as_ref());
        Ok(generation)
    }

    /// The link text of its executable: a hint for people, never compared (ATT-12).
    pub(super) fn path_hint(&self, pid: u32) -> Option<String> {
        let link = fs::read_link(self.file(pid, "exe")).ok()?;
        Some(link.to_string_lossy().into_owned())
    }
}

/// When the process started, from the real /proc.
pub(super) fn start_time(pid: u32) -> Result<u64, AttestError> {
    Proc::at(Path::new("/proc")).start_time(pid)
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
    fn parse(text: &str) -> Result<Self, AttestError> {
        let wrong = |what: &str| AttestError::Proc { file: "status", what: what.into() };
        let line = |name: &str| {
            let mut found = text.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            let first = found.next().ok_or_else(|| wrong(&format!("it has no {name} line")));
            // The kernel writes each once; a name with a line feed in it is escaped there.
            if found.next().is_some() { Err(wrong(&format!("it has two {name} lines"))) } else { first }
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

fn parse_start_time(stat: &[u8]) -> Option<u64> {
    // The command name may hold anything, blanks and parentheses included: the fields begin after the last one.
    let after = stat.iter().rposition(|byte| *byte == b')')? + 1;
    let fields = std::str::from_utf8(stat.get(after..)?).ok()?;
    fields.split_ascii_whitespace().nth(19)?.parse().ok()
}

fn gone(error: io::Error) -> AttestError {
    match error.kind() {
        io::ErrorKind::NotFound => AttestError::PeerExited,
        _ if error.raw_os_error() == Some(libc::ESRCH) => AttestError::PeerExited,
        _ => AttestError::kernel("read /proc", &error),
    }
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
        assert_eq!(parse_start_time(stat.as_bytes()), Some(220));
        for broken in [&b""[..], b"42 (a", b"42 (a) R 1 2", b"42 (a) \xff"] {
            assert_eq!(parse_start_time(broken), None);
        }
    }

    #[test]
    fn this_process_is_in_its_own_user_namespace() {
        // ATT-13
        assert_eq!(Proc::at("/proc").same_user_namespace(std::process::id()), Ok(true));
        assert!(Proc::at("/proc").exec_generation(std::process::id()).is_ok());
    }
}

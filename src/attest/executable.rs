//! The program that runs, as the opened inode: device, inode and the SHA-256 of that descriptor (ATT-12). In
//! goes a pinned pid; out comes the file that is really mapped, whatever its path is called today.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::Read as _,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use ring::digest;
use rustix::fs::{Stat, fstat};

use super::{Missing, process::Process};

/// No program of this size is hashed: whoever starts one to keep us busy is not told apart by its digest (ATT-14).
const MAX_HASHED: u64 = 512 << 20;

/// How many digests are remembered.
const MAX_REMEMBERED: usize = 1024;

/// The file that a process executes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Executable {
    /// Device number.
    pub dev: u64,
    /// Inode number.
    pub ino: u64,
    /// Size in bytes.
    pub size: u64,
    /// Last change of content, nanoseconds since 1970.
    pub mtime: i128,
    /// Last change of inode, nanoseconds since 1970.
    pub ctime: i128,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Mode bits.
    pub mode: u32,
    /// Whether a name still leads to it; a deleted or replaced program has none.
    pub linked: bool,
}

impl Executable {
    /// The executable of a process.
    pub(super) fn of(process: &Process) -> Result<Self, Missing> {
        Ok(Self::from_stat(&process.exe_stat()?))
    }

    fn from_stat(stat: &Stat) -> Self {
        let nanos = |seconds: i64, nanos| i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
        Self {
            dev: stat.st_dev,
            ino: stat.st_ino,
            size: stat.st_size.unsigned_abs(),
            mtime: nanos(stat.st_mtime, stat.st_mtime_nsec),
            ctime: nanos(stat.st_ctime, stat.st_ctime_nsec),
            uid: stat.st_uid,
            gid: stat.st_gid,
            mode: stat.st_mode,
            linked: stat.st_nlink > 0,
        }
    }

    /// Which of `paths`, opened in this agent's own mount namespace, are this very file (ATT-12). A program that
    /// its own user could have changed proves nothing by its path: `EXE_WRITABLE`.
    pub(super) fn known_as(
        &self,
        paths: &[PathBuf],
        uid: u32,
        groups: &[u32],
    ) -> Result<Vec<PathBuf>, Missing> {
        if !self.linked {
            return Err(Missing::ExeReplaced);
        }
        if self.writable_by(uid, groups) {
            return Err(Missing::ExeWritable);
        }
        Ok(paths.iter().filter(|path| self.is_at(path)).cloned().collect())
    }

    fn is_at(&self, path: &Path) -> bool {
        fs::metadata(path).is_ok_and(|meta| meta.dev() == self.dev && meta.ino() == self.ino)
    }

    fn writable_by(&self, uid: u32, groups: &[u32]) -> bool {
        // Root can change every file; a rule that trusts a program of root trusts root.
        if uid == 0 {
            return false;
        }
        // An owner can always grant itself the write bit.
        self.uid == uid || (self.mode & 0o020 != 0 && groups.contains(&self.gid)) || self.mode & 0o002 != 0
    }
}

/// Digests by the identity of the file, so that a program is read once and not at each call (ATT-14).
#[derive(Debug, Default)]
pub struct Digests(Mutex<Known>);

/// Device, inode, size, and when content and inode last changed; and the digest of that file.
type Known = HashMap<(u64, u64, u64, i128, i128), [u8; 32]>;

impl Digests {
    /// What is remembered of `exe`.
    pub(super) fn known(&self, exe: &Executable) -> Option<[u8; 32]> {
        self.lock().get(&key(exe)).copied()
    }

    /// Reads and hashes the executable of a process: blocking, for a thread that may wait.
    pub(super) fn read(&self, process: &Process, exe: &Executable) -> Result<[u8; 32], Missing> {
        let file = process.exe_file()?;
        let opened = |file: &File| {
            fstat(file).map(|stat| Executable::from_stat(&stat)).map_err(|error| Missing::of(&error.into()))
        };
        if opened(&file)? != *exe {
            return Err(Missing::ExeReplaced);
        }
        if exe.size > MAX_HASHED {
            return Err(Missing::ExeTooLarge);
        }
        let mut context = digest::Context::new(&digest::SHA256);
        let mut buffer = vec![0; 256 << 10];
        let mut reader = (&file).take(MAX_HASHED);
        loop {
            match reader.read(&mut buffer).map_err(|error| Missing::of(&error))? {
                0 => break,
                read => context.update(&buffer[..read]),
            }
        }
        if opened(&file)? != *exe {
            return Err(Missing::ExeReplaced);
        }
        let mut sum = [0; 32];
        sum.copy_from_slice(context.finish().as_ref());
        let mut known = self.lock();
        if known.len() >= MAX_REMEMBERED {
            known.clear();
        }
        known.insert(key(exe), sum);
        Ok(sum)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key(exe: &Executable) -> (u64, u64, u64, i128, i128) {
    (exe.dev, exe.ino, exe.size, exe.mtime, exe.ctime)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attest::process::Proc;

    fn own() -> (Process, Executable) {
        let process = Proc::at("/proc").open(std::process::id()).unwrap();
        let exe = Executable::of(&process).unwrap();
        (process, exe)
    }

    #[test]
    fn a_path_counts_only_if_it_is_the_same_inode() {
        // ATT-12
        let (_, exe) = own();
        let exe = Executable { uid: 0, mode: 0o755, ..exe };
        let own_path = std::env::current_exe().unwrap();
        let paths = [own_path.clone(), "/bin/sh".into(), "/nonexistent".into()];
        assert_eq!(exe.known_as(&paths, 1000, &[1000]), Ok(vec![own_path]));
    }

    #[test]
    fn a_program_its_user_could_change_proves_nothing() {
        // ATT-12, EXE_WRITABLE
        let (_, exe) = own();
        for (uid, gid, mode) in [(1000, 0, 0o555), (0, 7, 0o775), (0, 0, 0o757)] {
            let exe = Executable { uid, gid, mode, ..exe.clone() };
            assert_eq!(exe.known_as(&[], 1000, &[7]), Err(Missing::ExeWritable));
        }
        let gone = Executable { linked: false, ..exe };
        assert_eq!(gone.known_as(&[], 0, &[]), Err(Missing::ExeReplaced));
    }

    #[test]
    fn a_digest_is_read_once() {
        // ATT-14
        let (process, exe) = own();
        let digests = Digests::default();
        assert_eq!(digests.known(&exe), None);
        let sum = digests.read(&process, &exe).unwrap();
        assert_eq!(digests.known(&exe), Some(sum));
        let bytes = fs::read(std::env::current_exe().unwrap()).unwrap();
        assert_eq!(digest::digest(&digest::SHA256, &bytes).as_ref(), sum);
        let touched = Executable { ctime: exe.ctime + 1, ..exe };
        assert_eq!(digests.known(&touched), None);
        assert_eq!(digests.read(&process, &touched), Err(Missing::ExeReplaced));
    }
}

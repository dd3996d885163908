//! Files with secrets in them. In go a place, bytes, and whose the file is to be; out comes a file that is there whole or not at all,
//! or why not, with what was there before untouched.
//!
//! The place is a directory that is opened once, and everything after that happens below its descriptor: no path is resolved twice,
//! so nobody swaps a link or a directory in between. On the way there no symbolic link is followed. A directory that others could
//! write to is refused, since they could put a file of theirs in our file's place, and so is one that belongs to somebody else than
//! root, the caller, or the user that the file is for: the last is what `RuntimeDirectory=` of a unit makes, and who owns the
//! directory gets no more by it than the file that is his anyway.
//!
//! The file is made under a name of chance (`O_CREAT|O_EXCL|O_NOFOLLOW`), with no permissions, and gets its owner before its bytes and
//! its mode after them, so that nobody opens half of it; it is flushed, and renamed over the old one, and the directory is
//! flushed. Whatever fails on the way, the new file goes and the old one stays. A process that is killed half way leaves the new one
//! behind: it is under a name that says whose it was, and the next to write there removes what belongs to no process any more.
//!
//! A secret belongs into memory: a directory that is not on a tmpfs is refused, unless somebody says that it may be one on a disk, and
//! then its file system is told, because what was written to a disk outlives its file. (A tmpfs may be swapped out; mount it
//! `noswap` where there is swap that is not encrypted.)
//!
//! Small on purpose: [`Directory::open`], [`Directory::write`], and [`Directory::replace_set`] for files that switch together.

mod set;
#[cfg(test)]
mod tests;

use std::{
    ffi::OsStr,
    fmt,
    io::{self, Write as _},
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{
        AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Uid, fchmod, fchown, fstat,
        fstatfs, fsync, openat, openat2, renameat, statat, unlinkat,
    },
    io::Errno,
    process::{Pid, geteuid, getpid, test_kill_process},
};

use crate::{clock::Dice, secret::hex};

/// What the names of unfinished files begin with; the pid of their maker follows.
const UNFINISHED: &str = ".keybearer.";

/// Why a file was not written.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It must not be there: another place, or another owner or mode of this one, would do.
    #[error("{}: {why}", .path.display())]
    Place {
        /// Where it was to be.
        path: PathBuf,
        /// What is wrong with that.
        why: String,
    },
    /// It would be on a disk, and nobody said that it may.
    #[error(
        "{} is on a disk ({filesystem}), where a secret outlives its file: write below /run or another tmpfs, or say --allow-disk",
        .path.display()
    )]
    Disk {
        /// The directory.
        path: PathBuf,
        /// Its file system.
        filesystem: Filesystem,
    },
    /// The system would not: no room, no right, no directory any more.
    #[error("{}: cannot {doing}: {error}{}", .path.display(), if *doing == FLUSH { "" } else { "; what was there is untouched" })]
    Failed {
        /// The file or its directory.
        path: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// What the kernel said.
        error: io::Error,
    },
}

/// The one step after which the new file is there already.
const FLUSH: &str = "be sure that the new file survives a power cut";

/// On what a directory may lie.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Medium {
    /// In memory only (tmpfs, ramfs).
    Memory,
    /// Anywhere.
    Any,
}

/// Whose a file is, and who may read it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Access {
    /// Permissions of owner and group.
    pub mode: u32,
    /// Its owner, if not the caller.
    pub owner: Option<Uid>,
    /// Its group, if not the caller's.
    pub group: Option<Gid>,
}

/// For its owner to read, who is the caller.
impl Default for Access {
    fn default() -> Self {
        Self { mode: 0o400, owner: None, group: None }
    }
}

/// What lies under a directory, by its name.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Filesystem(u64);

/// A directory that files with secrets may be in, open for as long as this lives.
#[derive(Debug)]
pub struct Directory {
    fd: OwnedFd,
    path: PathBuf,
    filesystem: Filesystem,
}

impl Directory {
    /// Opens the directory at `path` for files that will belong to `owner` (the caller, if it is none). It has to be there.
    ///
    /// # Errors
    /// [`FileError::Place`] if a link is on the way or others could put files there, [`FileError::Disk`], [`FileError::Failed`].
    pub fn open(path: &Path, medium: Medium, owner: Option<Uid>) -> Result<Self, FileError> {
        let place = |why: String| FileError::Place { path: path.into(), why };
        let failed = |error: Errno| match error {
            Errno::LOOP => place(format!("{}; name the place itself", link_on_the_way(path))),
            Errno::NOTDIR => place("it is no directory".into()),
            error => {
                FileError::Failed { path: path.into(), doing: "open the directory", error: error.into() }
            }
        };
        let here = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = openat2(CWD, here, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS).map_err(failed)?;
        let stat = fstat(&fd).map_err(failed)?;
        if stat.st_mode & 0o022 != 0 && stat.st_mode & 0o1000 == 0 {
            let mode = stat.st_mode & 0o7777;
            return Err(place(format!(
                "others can put files into this directory (mode {mode:04o}): chmod go-w"
            )));
        }
        let trusted = [0, geteuid().as_raw()].contains(&stat.st_uid)
            || owner.is_some_and(|it| it.as_raw() == stat.st_uid);
        if !trusted {
            let uid = stat.st_uid;
            return Err(place(format!(
                "this directory belongs to uid {uid}, who is neither root, nor you, nor the file's owner (--owner)"
            )));
        }
        let filesystem = Filesystem(fstatfs(&fd).map_err(failed)?.f_type as u64 & 0xFFFF_FFFF);
        if medium == Medium::Memory && !filesystem.is_memory() {
            return Err(FileError::Disk { path: path.into(), filesystem });
        }
        Ok(Self { fd, path: path.into(), filesystem })
    }

    /// Opens the directory that `file` is to be in; with it, the file's name there.
    ///
    /// # Errors
    /// Those of [`Directory::open`], and [`FileError::Place`] if that is no name of a file.
    pub fn around(file: &Path, medium: Medium, owner: Option<Uid>) -> Result<(Self, &OsStr), FileError> {
        let ends = file.as_os_str().as_bytes().last() == Some(&b'/');
        match (file.parent(), file.file_name()) {
            (Some(parent), Some(name)) if !ends => Ok((Self::open(parent, medium, owner)?, name)),
            _ => Err(FileError::Place { path: file.into(), why: "this names no file".into() }),
        }
    }

    /// The file system, if what is written here is written to a disk.
    pub fn disk(&self) -> Option<Filesystem> {
        Some(self.filesystem).filter(|filesystem| !filesystem.is_memory())
    }

    /// Writes the file `name`, whole or not at all, over a regular file or over none.
    ///
    /// # Errors
    /// [`FileError::Place`], [`FileError::Failed`]. Then a file that was there is there still, as it was.
    pub fn write(
        &self,
        name: &OsStr,
        bytes: &[u8],
        access: Access,
        dice: &dyn Dice,
    ) -> Result<(), FileError> {
        self.sweep();
        let path = self.path.join(name);
        match statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW)
            .map(|stat| FileType::from_raw_mode(stat.st_mode))
        {
            Ok(FileType::RegularFile) | Err(Errno::NOENT) => {}
            Ok(other) => {
                let why = format!("{} is there, and only a file is replaced", kind(other));
                return Err(FileError::Place { path, why });
            }
            Err(error) => return Err(self.failed(name, "look at what is there", error)),
        }
        Unfinished::write(self.fd.as_fd(), bytes, access, dice)
            .and_then(|new| new.becomes(name).map_err(|error| ("put the new file there", error)))
            .map_err(|(doing, error)| self.failed(name, doing, error))?;
        fsync(&self.fd).map_err(|error| self.failed(name, FLUSH, error))
    }

    /// Removes what writers that live no more left unfinished. Nothing depends on it.
    fn sweep(&self) {
        for name in self.names() {
            if left_over(&name, UNFINISHED) {
                let _ = unlinkat(&self.fd, name.as_slice(), AtFlags::empty());
            }
        }
    }

    fn names(&self) -> Vec<Vec<u8>> {
        let Ok(entries) = Dir::read_from(&self.fd) else { return vec![] };
        entries.flatten().map(|entry| entry.file_name().to_bytes().to_vec()).collect()
    }

    fn failed(&self, name: &OsStr, doing: &'static str, error: Errno) -> FileError {
        FileError::Failed { path: self.path.join(name), doing, error: error.into() }
    }
}

/// A file under a name of chance, which is gone again unless it gets its own.
struct Unfinished<'a> {
    around: BorrowedFd<'a>,
    name: String,
}

impl<'a> Unfinished<'a> {
    fn write(
        around: BorrowedFd<'a>,
        bytes: &[u8],
        access: Access,
        dice: &dyn Dice,
    ) -> Result<Self, (&'static str, Errno)> {
        let name = by_chance(UNFINISHED, dice);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(around, &name, flags, Mode::empty()).map_err(|error| ("make a new file", error))?;
        let new = Self { around, name };
        if access.owner.is_some() || access.group.is_some() {
            fchown(&fd, access.owner, access.group)
                .map_err(|error| ("give the file to its owner or group", error))?;
        }
        let mut file = std::fs::File::from(fd);
        file.write_all(bytes)
            .map_err(|error| ("write it", Errno::from_io_error(&error).unwrap_or(Errno::IO)))?;
        fchmod(&file, Mode::from_raw_mode(access.mode)).map_err(|error| ("set its mode", error))?;
        // Some file systems take owners and modes and do nothing.
        let stat = fstat(&file).map_err(|error| ("look at it", error))?;
        if !access.is_of(&stat) {
            return Err((
                "set owner, group and mode, which this file system does not keep",
                Errno::OPNOTSUPP,
            ));
        }
        fsync(&file).map_err(|error| ("flush it", error))?;
        Ok(new)
    }

    fn becomes(mut self, name: impl rustix::path::Arg) -> Result<(), Errno> {
        renameat(self.around, self.name.as_str(), self.around, name)?;
        // It goes by another name now, and there is nothing to remove.
        self.name.clear();
        Ok(())
    }
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        // If it cannot be removed now, the next writer will.
        if !self.name.is_empty() {
            let _ = unlinkat(self.around, self.name.as_str(), AtFlags::empty());
        }
    }
}

/// A name nobody can foretell, which says who makes it.
fn by_chance(begins: &str, dice: &dyn Dice) -> String {
    let mut chance = [0; 16];
    dice.fill(&mut chance);
    format!("{begins}{}.{}", getpid().as_raw_nonzero(), hex(&chance))
}

/// Whether this is the name of something whose maker lives no more. A pid that lives again as somebody else's only delays it; a maker
/// in another pid namespace seems dead, loses its new file, and fails with the old one in place.
fn left_over(name: &[u8], begins: &str) -> bool {
    let maker = std::str::from_utf8(name)
        .ok()
        .and_then(|name| name.strip_prefix(begins)?.split('.').next()?.parse().ok());
    maker.and_then(Pid::from_raw).is_some_and(|pid| test_kill_process(pid) == Err(Errno::SRCH))
}

/// Which part of a path is a symbolic link.
fn link_on_the_way(path: &Path) -> String {
    let link = path.ancestors().filter(|part| part.is_symlink()).last();
    link.map_or("a symbolic link is on the way there".into(), |link| {
        format!("{} is a symbolic link", link.display())
    })
}

fn kind(of: FileType) -> &'static str {
    match of {
        FileType::Directory => "a directory",
        FileType::Symlink => "a symbolic link",
        FileType::Fifo => "a pipe",
        FileType::Socket => "a socket",
        _ => "something that is no file",
    }
}

impl Access {
    /// From what a command line says: a mode in octal, a user and a group by name or number.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn read(mode: Option<&str>, owner: Option<&str>, group: Option<&str>) -> Result<Self, String> {
        let mut access = Self::default();
        if let Some(mode) = mode {
            access.mode =
                u32::from_str_radix(mode, 8).map_err(|_| format!("mode {mode:?} is no octal number"))?;
            if access.mode & !0o660 != 0 || access.mode & 0o400 == 0 {
                return Err(format!(
                    "mode {mode} is not for a secret: its owner reads it, a group may, and nobody else (0400, 0440, 0600, 0640)"
                ));
            }
        }
        if let Some(owner) = owner {
            let of = |name: &str| Ok(nix::unistd::User::from_name(name)?.map(|user| user.uid.as_raw()));
            access.owner = Some(Uid::from_raw(id("user", owner, of)?));
        }
        if let Some(group) = group {
            let of = |name: &str| Ok(nix::unistd::Group::from_name(name)?.map(|group| group.gid.as_raw()));
            access.group = Some(Gid::from_raw(id("group", group, of)?));
        }
        Ok(access)
    }

    fn is_of(self, stat: &Stat) -> bool {
        stat.st_mode & 0o7777 == self.mode
            && self.owner.is_none_or(|owner| owner.as_raw() == stat.st_uid)
            && self.group.is_none_or(|group| group.as_raw() == stat.st_gid)
    }
}

fn id(what: &str, name: &str, of: impl Fn(&str) -> nix::Result<Option<u32>>) -> Result<u32, String> {
    // The highest number is none: to chown(2) it means "leave it".
    match name.parse().map_or_else(|_| of(name), |number| Ok(Some(number))) {
        Ok(Some(number)) if number != u32::MAX => Ok(number),
        Ok(_) => Err(format!("there is no {what} {name:?} on this host")),
        Err(error) => Err(format!("{what} {name:?} cannot be looked up: {error}")),
    }
}

impl Filesystem {
    const TMPFS: u64 = 0x0102_1994;
    const RAMFS: u64 = 0x8584_58f6;

    fn is_memory(self) -> bool {
        [Self::TMPFS, Self::RAMFS].contains(&self.0)
    }
}

impl fmt::Display for Filesystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // statfs(2)
        let name = match self.0 {
            Self::TMPFS => "tmpfs",
            Self::RAMFS => "ramfs",
            0xEF53 => "ext4",
            0x5846_5342 => "xfs",
            0x9123_683E => "btrfs",
            0x794c_7630 => "overlayfs",
            0x6969 => "nfs",
            0x2fc1_2fc1 => "zfs",
            0xF2F5_2010 => "f2fs",
            other => return write!(f, "file system {other:#x}"),
        };
        f.write_str(name)
    }
}

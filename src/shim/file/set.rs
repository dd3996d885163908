//! Files that switch together: a key and the chain that goes with it, or all files of one program. In go names and bytes; out comes a
//! directory in which every name leads to the new bytes, or every name to the old ones.
//!
//! As kubelet does it: the files are written into a new directory below this one, `..data` is a link to that, and what programs open,
//! `NAME`, is a link to `..data/NAME`. One rename of `..data` switches them all. Whoever has opened one file just before may open
//! the next one just after: the directory before stays until the next switch, so its files can still be read through a
//! descriptor of it (open `..data` once, and the files below it); a program that opens names one by one and gets ENOENT opens again.

use std::{ffi::OsStr, os::fd::AsFd as _};

use rustix::{
    fs::{
        AtFlags, FileType, Mode, OFlags, fchmod, fchown, fsync, mkdirat, openat, readlinkat, renameat,
        statat, symlinkat, unlinkat,
    },
    io::Errno,
    process::getpid,
};

use super::{Access, Directory, FLUSH, FileError, UNFINISHED, Unfinished, by_chance, kind, left_over};
use crate::clock::Dice;

/// The link that is switched.
const DATA: &str = "..data";

/// What the names of the directories begin with that it leads to.
const VERSION: &str = "..keybearer.";

impl Directory {
    /// Replaces all files of a set, and forgets those that are in it no more. The set is all that links in this directory
    /// lead to; two sets need two directories.
    ///
    /// # Errors
    /// [`FileError::Place`] if something else goes by one of the names; [`FileError::Failed`]. Then the set that was there is
    /// there still, as it was.
    pub fn replace_set(
        &self,
        files: &[(&str, &[u8])],
        access: Access,
        dice: &dyn Dice,
    ) -> Result<(), FileError> {
        self.sweep();
        let before = self.leads_to(DATA, |_| true)?;
        for (name, _) in files {
            self.leads_to(name, |target| target == through(name))?;
        }
        let version = by_chance(VERSION, dice);
        let failed = |(doing, error)| self.failed(OsStr::new(DATA), doing, error);
        let switched =
            self.write_version(&version, files, access, dice).and_then(|()| self.switch(&version, dice));
        if let Err(error) = switched {
            self.remove(version.as_bytes());
            return Err(failed(error));
        }
        for (name, _) in files {
            match symlinkat(through(name), &self.fd, *name) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(self.failed(OsStr::new(name), "make its link", error)),
            }
        }
        fsync(&self.fd).map_err(|error| failed((FLUSH, error)))?;
        self.forget(&version, before.as_deref(), files);
        Ok(())
    }

    /// Where a link leads; None if nothing goes by that name.
    fn leads_to(&self, name: &str, ours: impl Fn(&str) -> bool) -> Result<Option<String>, FileError> {
        let stat = match statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(None),
            other => other.map_err(|error| self.failed(OsStr::new(name), "look at what is there", error))?,
        };
        let kind_of = FileType::from_raw_mode(stat.st_mode);
        let target = readlinkat(&self.fd, name, vec![]).ok().and_then(|target| target.into_string().ok());
        match target.filter(|target| ours(target)) {
            Some(target) => Ok(Some(target)),
            None => {
                let why = format!(
                    "{} is there that is not ours; take it away, or name another directory",
                    kind(kind_of)
                );
                Err(FileError::Place { path: self.path.join(name), why })
            }
        }
    }

    fn write_version(
        &self,
        version: &str,
        files: &[(&str, &[u8])],
        access: Access,
        dice: &dyn Dice,
    ) -> Result<(), (&'static str, Errno)> {
        mkdirat(&self.fd, version, Mode::RWXU).map_err(|error| ("make a new directory", error))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let within = openat(&self.fd, version, flags, Mode::empty()).map_err(|error| ("open it", error))?;
        for (name, bytes) in files {
            let new = Unfinished::write(within.as_fd(), bytes, access, dice)?;
            new.becomes(*name).map_err(|error| ("put a new file there", error))?;
        }
        if access.owner.is_some() || access.group.is_some() {
            fchown(&within, access.owner, access.group)
                .map_err(|error| ("give it to its owner or group", error))?;
        }
        // Whoever may read the files may come to them.
        let group = if access.mode & 0o040 == 0 { Mode::empty() } else { Mode::RGRP | Mode::XGRP };
        fchmod(&within, Mode::RWXU | group).map_err(|error| ("set its mode", error))?;
        fsync(&within).map_err(|error| ("flush it", error))
    }

    fn switch(&self, version: &str, dice: &dyn Dice) -> Result<(), (&'static str, Errno)> {
        let next = by_chance(UNFINISHED, dice);
        symlinkat(version, &self.fd, next.as_str()).map_err(|error| ("make a link", error))?;
        renameat(&self.fd, next.as_str(), &self.fd, DATA).map_err(|error| {
            let _ = unlinkat(&self.fd, next.as_str(), AtFlags::empty());
            ("switch to the new files", error)
        })
    }

    /// Removes versions but this one and the one before, and links to what is in the set no more.
    fn forget(&self, version: &str, before: Option<&str>, files: &[(&str, &[u8])]) {
        let own = format!("{VERSION}{}.", getpid().as_raw_nonzero());
        for entry in self.names() {
            let Ok(name) = std::str::from_utf8(&entry) else { continue };
            let kept = name == version || before == Some(name);
            if name.starts_with(&own) || left_over(&entry, VERSION) {
                if !kept {
                    self.remove(&entry);
                }
            } else if !files.iter().any(|(file, _)| *file == name)
                && readlinkat(&self.fd, name, vec![])
                    .is_ok_and(|target| target.to_str() == Ok(&through(name)))
            {
                let _ = unlinkat(&self.fd, name, AtFlags::empty());
            }
        }
    }

    /// Removes a version with its files. What cannot be removed now is tried again at the next switch.
    fn remove(&self, version: &[u8]) {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        if let Ok(within) = openat(&self.fd, version, flags, Mode::empty()) {
            let entries = rustix::fs::Dir::read_from(&within).into_iter().flatten().flatten();
            for entry in entries {
                let _ = unlinkat(&within, entry.file_name(), AtFlags::empty());
            }
        }
        let _ = unlinkat(&self.fd, version, AtFlags::REMOVEDIR);
    }
}

fn through(name: &str) -> String {
    format!("{DATA}/{name}")
}

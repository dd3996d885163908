//! The files that variables name. In go values; out come paths of files that nobody else can read, in a directory of our own on a
//! file system that lies in memory. A file is replaced whole by a rename, so its path stays and whoever reads it sees one value or
//! the next. All of it is gone when we end, but not when we are killed: what is left then lies in memory, readable to its user only.

use std::{
    io::Write as _,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{self, AtFlags, CWD, Mode, OFlags},
    io::Errno,
    process::geteuid,
};

use crate::{
    clock::Dice,
    deliver::Variable,
    secret::{Secret, hex},
};

/// File systems that never touch a disk, but to swap (statfs(2)).
const IN_MEMORY: [u64; 2] = [0x0102_1994, 0x8584_58f6];

/// Why there is no file.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// No place that keeps off the disk.
    #[error("there is no place in memory for the files ({0}): name a directory with --file-directory")]
    NoPlace(String),
    /// A directory that was named cannot be used.
    #[error("{path}: {why}")]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// A file could not be written. The one before it, if there was one, is still there.
    #[error("the file of {variable} could not be written ({error}); what was there before is kept")]
    Write {
        /// Which.
        variable: Variable,
        /// What the kernel said.
        error: std::io::Error,
    },
}

/// Where files may be made.
#[derive(Clone, Debug, Default)]
pub struct Places {
    /// What somebody named, who then knows what kind of file system it is.
    pub named: Option<PathBuf>,
    /// What the service manager or the login gives and takes away (`RUNTIME_DIRECTORY`, `XDG_RUNTIME_DIR`).
    pub given: Vec<PathBuf>,
    /// Whether a place will do that nobody but us cleans.
    pub uncleaned: bool,
}

/// A directory of our own.
#[derive(Debug)]
pub struct Files {
    directory: OwnedFd,
    path: PathBuf,
    names: Vec<Variable>,
}

impl Files {
    /// Makes the directory, in the first place that is fit.
    ///
    /// # Errors
    /// [`FilesError`].
    pub fn make(places: &Places, dice: &dyn Dice) -> Result<Self, FilesError> {
        if let Some(path) = places.named.clone() {
            return Self::within(&path, dice).map_err(|why| FilesError::Directory { path, why });
        }
        let mut candidates = places.given.clone();
        if places.uncleaned {
            candidates.push(format!("/run/user/{}", geteuid().as_raw()).into());
            candidates.push("/dev/shm".into());
        }
        let mut tried = vec![];
        for candidate in candidates {
            match in_memory(&candidate).and_then(|()| Self::within(&candidate, dice)) {
                Ok(files) => return Ok(files),
                Err(why) => tried.push(format!("{}: {why}", candidate.display())),
            }
        }
        if tried.is_empty() {
            tried.push("neither RUNTIME_DIRECTORY nor XDG_RUNTIME_DIR is set".into());
        }
        Err(FilesError::NoPlace(tried.join("; ")))
    }

    fn within(place: &Path, dice: &dyn Dice) -> Result<Self, String> {
        let said = |error: Errno| std::io::Error::from(error).to_string();
        let around =
            fs::openat(CWD, place, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).map_err(said)?;
        let status = fs::fstat(&around).map_err(said)?;
        let open_to_others = status.st_mode & 0o022 != 0 && status.st_mode & 0o1000 == 0;
        if open_to_others || ![0, geteuid().as_raw()].contains(&status.st_uid) {
            return Err(format!(
                "others could put something else in our place (uid {}, mode {:04o})",
                status.st_uid,
                status.st_mode & 0o7777
            ));
        }
        let mut tail = [0; 8];
        dice.fill(&mut tail);
        let name = format!("keybearer-exec-{}", hex(&tail));
        // It has to be new: what somebody else put there is not ours to write into.
        fs::mkdirat(&around, &name, Mode::RWXU).map_err(said)?;
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = fs::openat(&around, &name, flags, Mode::empty()).map_err(said)?;
        fs::fchmod(&directory, Mode::RWXU).map_err(said)?; // whatever the umask made of it
        let place = place.canonicalize().unwrap_or_else(|_| place.to_owned());
        Ok(Self { directory, path: place.join(name), names: vec![] })
    }

    /// Where the file of a variable is.
    pub fn path(&self, variable: &Variable) -> PathBuf {
        self.path.join(variable.as_str())
    }

    /// Writes a file, or replaces it.
    ///
    /// # Errors
    /// [`FilesError::Write`].
    pub fn write(&mut self, variable: &Variable, value: &Secret) -> Result<(), FilesError> {
        replace(&self.directory, variable.as_str(), value)
            .map_err(|error| FilesError::Write { variable: variable.clone(), error })?;
        if !self.names.contains(variable) {
            self.names.push(variable.clone());
        }
        Ok(())
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = fs::unlinkat(&self.directory, name.as_str(), AtFlags::empty());
        }
        let _ = std::fs::remove_dir(&self.path); // only if it is empty
    }
}

/// Whether a place lies in memory.
fn in_memory(place: &Path) -> Result<(), String> {
    let place = fs::openat(CWD, place, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let status = place.and_then(fs::fstatfs).map_err(|error| std::io::Error::from(error).to_string())?;
    // The field is signed on some machines and unsigned on others, and its values fit 32 bits.
    let kind = u64::from(status.f_type as u32);
    if IN_MEMORY.contains(&kind) { Ok(()) } else { Err("it is on a disk".into()) }
}

/// Writes a new file beside the old one and puts it in its place.
fn replace(directory: &OwnedFd, name: &str, value: &Secret) -> std::io::Result<()> {
    // Nobody else writes in here, and we do so one after another: a name of its own is enough.
    let fresh = format!(".{name}.new");
    let _ = fs::unlinkat(directory, &fresh, AtFlags::empty());
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let written =
        fs::openat(directory, &fresh, flags, Mode::RUSR).map_err(std::io::Error::from).and_then(|file| {
            fs::fchmod(&file, Mode::RUSR)?;
            let mut file = std::fs::File::from(file);
            file.write_all(value.expose())?;
            file.sync_all()?;
            Ok(fs::renameat(directory, &fresh, directory, name)?)
        });
    if written.is_err() {
        let _ = fs::unlinkat(directory, &fresh, AtFlags::empty());
    }
    written
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;
    use crate::clock::SeededDice;

    fn made(named: &Path) -> Files {
        let places = Places { named: Some(named.to_owned()), ..Places::default() };
        Files::make(&places, &*SeededDice::from_seed(3)).unwrap()
    }

    #[test]
    fn files_are_our_users_alone_and_gone_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = made(dir.path());
        let name: Variable = "TLS_KEY".parse().unwrap();
        files.write(&name, &Secret::new("one")).unwrap();
        let path = files.path(&name);
        let before = std::fs::metadata(&path).unwrap();
        assert_eq!(before.mode() & 0o7777, 0o400);
        assert_eq!(std::fs::metadata(path.parent().unwrap()).unwrap().mode() & 0o7777, 0o700);
        let old = std::fs::File::open(&path).unwrap();
        files.write(&name, &Secret::new("two")).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two", "the path stays");
        assert_eq!(std::io::read_to_string(old).unwrap(), "one", "whoever reads, reads one of them");
        assert_ne!(std::fs::metadata(&path).unwrap().ino(), before.ino());
        drop(files);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_place_where_others_could_replace_ours_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let places = Places { named: Some(dir.path().to_owned()), ..Places::default() };
        for (mode, is_fit) in [(0o777, false), (0o775, false), (0o1777, true), (0o755, true)] {
            std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(Files::make(&places, &*SeededDice::from_seed(3)).is_ok(), is_fit, "{mode:o}");
        }
        let elsewhere = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(elsewhere.path(), &link).unwrap();
        let files = made(&link);
        assert!(
            files.path(&"A".parse().unwrap()).starts_with(elsewhere.path()),
            "a path of ours has no link in it"
        );
    }

    #[test]
    fn what_somebody_put_in_our_way_is_not_written_into() {
        // The same dice make the same name: as if somebody had known it before.
        let dir = tempfile::tempdir().unwrap();
        let taken = made(dir.path()).path.clone();
        std::fs::create_dir(&taken).unwrap();
        let places = Places { named: Some(dir.path().to_owned()), ..Places::default() };
        assert!(Files::make(&places, &*SeededDice::from_seed(3)).is_err());
        std::fs::remove_dir(&taken).unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), &taken).unwrap();
        assert!(Files::make(&places, &*SeededDice::from_seed(3)).is_err());
        assert_eq!(std::fs::read_dir(elsewhere.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_write_that_fails_keeps_the_old_file_and_leaves_no_part() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = made(dir.path());
        let name: Variable = "A".parse().unwrap();
        files.write(&name, &Secret::new("one")).unwrap();
        let path = files.path(&name);
        // A directory in the way of the new file: nothing can be made by that name, whoever we are.
        let way = path.parent().unwrap().join(".A.new");
        std::fs::create_dir(&way).unwrap();
        let error = files.write(&name, &Secret::new("canary")).unwrap_err().to_string();
        assert!(error.contains('A') && error.contains("kept") && !error.contains("canary"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"one");
        std::fs::remove_dir(way).unwrap();
        files.write(&name, &Secret::new("two")).unwrap();
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn a_place_on_a_disk_is_passed_over_and_named() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap_or_else(|_| tempfile::tempdir().unwrap());
        let places = Places { given: vec![dir.path().into(), "/nowhere".into()], ..Places::default() };
        if in_memory(dir.path()).is_ok() {
            return; // this whole machine lies in memory
        }
        let error = Files::make(&places, &*SeededDice::from_seed(3)).unwrap_err().to_string();
        assert!(error.contains("on a disk") && error.contains("/nowhere"), "{error}");
        assert!(error.contains("--file-directory"), "{error}");
    }
}

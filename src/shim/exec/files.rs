//! The files that variables name. In go values; out come paths of files that nobody else can read, in a directory of our own on a
//! file system that lies in memory. A file is replaced whole by a rename, so its path stays and whoever reads it sees one value or
//! the next. All of it is gone when we end. What is left by one of us that was killed lies in memory, readable to its user only, until that
//! user's next one comes by and takes it away: whoever stays holds a lock on its directory. One that became its program cannot, and
//! its directory has a name that nobody takes away; that is only where the service manager or the login does.

use std::{
    ffi::OsStr,
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::{
    fs::{AtFlags, Dir, FlockOperation, OFlags, flock, unlinkat},
    process::geteuid,
};

use crate::{
    clock::Dice,
    deliver::Variable,
    secret::{Secret, hex},
    shim::file::{Access, Directory, FileError, Medium},
};

/// What begins the name of a directory whose maker stays, and holds a lock on it.
const HELD: &str = "keybearer-exec-";

/// What begins the name of one whose maker becomes its program.
const LEFT: &str = "keybearer-once-";

/// How many names are tried, where others of us are starting and sweeping.
const TRIES: u32 = 8;

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
    #[error("the file of {variable} could not be written; what was there before is kept: {error}")]
    Write {
        /// Which.
        variable: Variable,
        /// Why.
        error: FileError,
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
    directory: Directory,
    path: PathBuf,
    /// Keeps others from taking the directory for one that was left.
    _lock: File,
    names: Vec<Variable>,
    dice: Arc<dyn Dice>,
}

impl Files {
    /// Makes the directory, in the first place that is fit.
    ///
    /// # Errors
    /// [`FilesError`].
    pub fn make(places: &Places, dice: &Arc<dyn Dice>) -> Result<Self, FilesError> {
        if let Some(path) = places.named.clone() {
            return Self::within(&path, Medium::Any, places.uncleaned, dice)
                .map_err(|why| FilesError::Directory { path, why });
        }
        let mut candidates = places.given.clone();
        if places.uncleaned {
            candidates.push(format!("/run/user/{}", geteuid().as_raw()).into());
            candidates.push("/dev/shm".into());
        }
        let mut tried = vec![];
        for candidate in candidates {
            match Self::within(&candidate, Medium::Memory, places.uncleaned, dice) {
                Ok(files) => return Ok(files),
                Err(why) => tried.push(format!("{}: {why}", candidate.display())),
            }
        }
        if tried.is_empty() {
            tried.push("neither RUNTIME_DIRECTORY nor XDG_RUNTIME_DIR is set".into());
        }
        Err(FilesError::NoPlace(tried.join("; ")))
    }

    fn within(place: &Path, medium: Medium, stays: bool, dice: &Arc<dyn Dice>) -> Result<Self, String> {
        let said = |error: std::io::Error| error.to_string();
        let unfit = |error: FileError| match error {
            FileError::Disk { filesystem, .. } => format!("it is on a disk ({filesystem})"),
            FileError::Place { why, .. } => why,
            FileError::Failed { error, .. } => error.to_string(),
        };
        let place = place.canonicalize().map_err(said)?;
        // Nobody else can put something in the place of what we make there.
        Directory::open(&place, medium, None).map_err(unfit)?;
        sweep(&place);
        let mut why = String::new();
        for _ in 0..TRIES {
            let mut tail = [0; 8];
            dice.fill(&mut tail);
            let path = place.join(format!("{}{}", if stays { HELD } else { LEFT }, hex(&tail)));
            // It has to be new: what somebody else put there is not ours to write into.
            DirBuilder::new().mode(0o700).create(&path).map_err(said)?;
            // Another one of us that came by in this moment took it for one that was left: then it is held, or gone.
            let ours = || {
                fs::set_permissions(&path, Permissions::from_mode(0o700)).map_err(said)?; // whatever the umask made of it
                let lock = held(&path).map_err(said)?;
                Ok((lock, Directory::open(&path, medium, None).map_err(unfit)?))
            };
            match ours() {
                Ok((lock, directory)) => {
                    return Ok(Self { directory, path, _lock: lock, names: vec![], dice: Arc::clone(dice) });
                }
                Err(error) => why = error,
            }
            let _ = fs::remove_dir(&path);
        }
        Err(why)
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
        self.directory
            .write(OsStr::new(variable.as_str()), value.expose(), Access::default(), &*self.dice)
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
            let _ = fs::remove_file(self.path(name));
        }
        let _ = fs::remove_dir(&self.path); // only if it is empty
    }
}

/// Takes away what those of our user left who were killed. What cannot be taken away is left as it is: it is in nobody's way.
fn sweep(place: &Path) {
    let Ok(entries) = fs::read_dir(place) else { return };
    let ours =
        entries.flatten().filter(|entry| entry.file_name().as_encoded_bytes().starts_with(HELD.as_bytes()));
    for path in ours.map(|entry| entry.path()) {
        // Held until all of it is gone. What is removed is in the directory that was looked at, whatever its path leads to by now.
        let Ok(directory) = held(&path) else { continue };
        for file in Dir::read_from(&directory).into_iter().flatten().flatten() {
            let _ = unlinkat(&directory, file.file_name(), AtFlags::empty());
        }
        let _ = fs::remove_dir(&path); // only if it is empty
    }
}

/// Locks a directory that is our user's alone, and that nobody holds.
fn held(path: &Path) -> io::Result<File> {
    let flags = (OFlags::DIRECTORY | OFlags::NOFOLLOW).bits();
    let directory = OpenOptions::new().read(true).custom_flags(flags.cast_signed()).open(path)?;
    let meta = directory.metadata()?;
    if meta.uid() != geteuid().as_raw() || meta.mode() & 0o077 != 0 {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    flock(&directory, FlockOperation::NonBlockingLockExclusive)?;
    Ok(directory)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{SeededDice, SystemDice};

    fn dice() -> Arc<dyn Dice> {
        SeededDice::from_seed(3)
    }

    fn made(named: &Path) -> Files {
        let places = Places { named: Some(named.to_owned()), ..Places::default() };
        Files::make(&places, &dice()).unwrap()
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
    fn what_one_that_was_killed_left_the_next_one_takes_away_and_nothing_else() {
        // LEGACY 2.5
        let dir = tempfile::tempdir().unwrap();
        let make = |stays| {
            let places = Places { named: Some(dir.path().to_owned()), uncleaned: stays, ..Places::default() };
            let mut files = Files::make(&places, &SystemDice::shared()).unwrap();
            files.write(&"TOKEN".parse().unwrap(), &Secret::new("canary")).unwrap();
            files
        };
        let there = |path: &Path| path.join("TOKEN").exists();
        let (runs, killed, program) = (make(true), make(true), make(false));
        let paths = [&runs, &killed, &program].map(|files| files.path.clone());
        // As the kernel does it for whoever is killed, or becomes another program: what is open is closed, and nothing is run.
        for files in [killed, program] {
            let files = std::mem::ManuallyDrop::new(files);
            flock(&files._lock, FlockOperation::Unlock).unwrap();
        }
        let link = dir.path().join(format!("{HELD}link"));
        std::os::unix::fs::symlink(&paths[2], &link).unwrap();
        let open = dir.path().join(format!("{HELD}open"));
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, Permissions::from_mode(0o755)).unwrap();

        drop(make(true));
        assert_eq!(paths.each_ref().map(|path| there(path)), [true, false, true]);
        assert!(!paths[1].exists() && link.is_symlink() && open.exists());
        drop(runs);
        assert!(!paths[0].exists());
    }

    #[test]
    fn many_that_start_at_once_are_in_nobodys_way() {
        // As the units of one user at boot: each sweeps while the others make theirs.
        let dir = tempfile::tempdir().unwrap();
        let makes = || {
            let places = Places { named: Some(dir.path().to_owned()), uncleaned: true, ..Places::default() };
            for _ in 0..50 {
                let mut files = Files::make(&places, &SystemDice::shared()).unwrap();
                files.write(&"TOKEN".parse().unwrap(), &Secret::new("canary")).unwrap();
                assert!(files.path.join("TOKEN").exists());
            }
        };
        std::thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(makes))));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_place_where_others_could_replace_ours_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let places = Places { named: Some(dir.path().to_owned()), ..Places::default() };
        for (mode, is_fit) in [(0o777, false), (0o775, false), (0o1777, true), (0o755, true)] {
            std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(Files::make(&places, &dice()).is_ok(), is_fit, "{mode:o}");
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
        assert!(Files::make(&places, &dice()).is_err());
        std::fs::remove_dir(&taken).unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), &taken).unwrap();
        assert!(Files::make(&places, &dice()).is_err());
        assert_eq!(std::fs::read_dir(elsewhere.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_write_that_fails_names_its_variable_and_not_its_value() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = made(dir.path());
        std::fs::remove_dir(&files.path).unwrap();
        let error = files.write(&"A".parse().unwrap(), &Secret::new("canary")).unwrap_err().to_string();
        assert!(error.contains('A') && error.contains("kept") && !error.contains("canary"), "{error}");
    }

    #[test]
    fn a_place_on_a_disk_is_passed_over_and_named() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap_or_else(|_| tempfile::tempdir().unwrap());
        let places = Places { given: vec![dir.path().into(), "/nowhere".into()], ..Places::default() };
        if Directory::open(dir.path(), Medium::Memory, None).is_ok() {
            return; // this whole machine lies in memory
        }
        let error = Files::make(&places, &dice()).unwrap_err().to_string();
        assert!(error.contains("on a disk") && error.contains("/nowhere"), "{error}");
        assert!(error.contains("--file-directory"), "{error}");
    }
}

//! The way through directories. In go paths; out come findings, in their order, and what was not looked at and why. A file is opened
//! only if it is one: nothing here waits on a pipe or touches a device, follows a link that it was not given by name, leaves the file
//! system it began on, or changes anything.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs::File,
    io::{self, Read as _},
    os::{fd::OwnedFd, unix::ffi::OsStrExt as _},
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, fstat, openat, statat};
use zeroize::Zeroizing;

use super::{Exposure, Finding, Form, Hit, Pattern, Place, Salt, look, reading};

/// How deep directories are followed. Each level holds a descriptor.
const DEEPEST: usize = 100;

/// What is looked at.
#[derive(Clone, Debug)]
pub struct Scope {
    /// The largest file that is read, in bytes.
    pub largest: u64,
    /// What is left out.
    pub exclude: Vec<Pattern>,
}

impl Default for Scope {
    fn default() -> Self {
        Self { largest: 1 << 20, exclude: vec![] }
    }
}

/// Why something was not looked at.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Why {
    /// It could not be read, for this reason. Something may be in it.
    Unreadable(String),
    /// It is larger than what is read.
    TooLarge,
    /// It is further down than directories are followed.
    TooDeep,
    /// It has a NUL in it, so it is no text.
    Binary,
    /// The repository's own store; name it to have it looked at.
    Git,
    /// It is on another file system; name it to have it looked at.
    OtherFileSystem,
    /// A pipe, a socket or a device.
    NoFile,
}

impl Why {
    /// The words for it.
    pub fn words(&self) -> String {
        match self {
            Self::Unreadable(why) => format!("could not be read: {why}"),
            Self::TooLarge => "larger than --max-size".into(),
            Self::TooDeep => format!("more than {DEEPEST} directories deep"),
            Self::Binary => "no text".into(),
            Self::Git => "git's own store; name it to have it looked at".into(),
            Self::OtherFileSystem => "on another file system; name it to have it looked at".into(),
            Self::NoFile => "a pipe, a socket or a device".into(),
        }
    }
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Looked {
    /// What was found, the most pressing first.
    pub findings: Vec<Finding>,
    /// How many files were read.
    pub files: usize,
    /// How many symbolic links were not followed.
    pub links: usize,
    /// What was not looked at, in order.
    pub left_out: Vec<(PathBuf, Why)>,
}

impl Looked {
    /// What could not be read, and may hold something.
    pub fn unread(&self) -> impl Iterator<Item = &(PathBuf, Why)> {
        self.left_out.iter().filter(|(_, why)| matches!(why, Why::Unreadable(_)))
    }
}

/// Looks through `paths`, each a file or a directory.
pub fn walk(paths: &[PathBuf], scope: &Scope, now: Timestamp, salt: &Salt) -> Looked {
    let mut walk = Walk { scope, now, salt, seen: BTreeSet::new(), also: vec![], looked: Looked::default() };
    for path in paths {
        walk.root(path, true);
    }
    // What units read their environment from belongs to them, wherever it is.
    for path in std::mem::take(&mut walk.also) {
        if !scope.exclude.iter().any(|pattern| pattern.has(&path)) {
            walk.named_by_a_unit(&path);
        }
    }
    let mut looked = walk.looked;
    looked.findings.sort_by_cached_key(Finding::order);
    looked.left_out.sort();
    looked
}

struct Walk<'a> {
    scope: &'a Scope,
    now: Timestamp,
    salt: &'a Salt,
    /// Device and inode of every file that was read: none is read twice, by whatever name.
    seen: BTreeSet<(u64, u64)>,
    also: Vec<PathBuf>,
    looked: Looked,
}

/// What is known on the way down.
#[derive(Clone, Copy)]
struct Way {
    device: u64,
    depth: usize,
    /// Whether everybody can come here.
    open: bool,
    repository: bool,
}

impl Walk<'_> {
    /// What was named, a link or not.
    fn root(&mut self, path: &Path, with_directories: bool) {
        let stat = match statat(CWD, path, AtFlags::empty()) {
            Ok(stat) => stat,
            Err(error) => return self.left(path, Why::Unreadable(words(error))),
        };
        if !with_directories && FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            return;
        }
        let whole = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let above: Vec<&Path> = whole.ancestors().skip(1).collect();
        let way = Way {
            device: stat.st_dev,
            depth: 0,
            open: above.iter().all(|directory| open_to_all(directory)),
            repository: whole.ancestors().any(|directory| directory.join(".git").symlink_metadata().is_ok()),
        };
        self.entry(CWD, path.as_os_str(), path, stat, OFlags::empty(), way);
    }

    fn named_by_a_unit(&mut self, path: &Path) {
        match statat(CWD, path, AtFlags::empty()) {
            // Nobody reads an environment from a directory: whoever wrote the unit does not say how far we look.
            Ok(_) => self.root(path, false),
            // It may come to be there at run time only.
            Err(rustix::io::Errno::NOENT) => {}
            Err(error) => self.left(path, Why::Unreadable(words(error))),
        }
    }

    fn left(&mut self, path: &Path, why: Why) {
        self.looked.left_out.push((path.to_owned(), why));
    }

    fn entry(
        &mut self,
        at: impl rustix::fd::AsFd,
        name: &OsStr,
        path: &Path,
        stat: Stat,
        links: OFlags,
        way: Way,
    ) {
        let directory = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => true,
            FileType::RegularFile => false,
            FileType::Symlink => return self.looked.links += 1,
            // Named, it is expected to be looked at.
            _ if way.depth == 0 => {
                return self.left(path, Why::Unreadable("it is a pipe, a socket or a device".into()));
            }
            _ => return self.left(path, Why::NoFile),
        };
        if !directory && stat.st_size.unsigned_abs() > self.scope.largest {
            return self.left(path, Why::TooLarge);
        }
        if directory && way.depth > DEEPEST {
            return self.left(path, Why::TooDeep);
        }
        if !directory && self.seen.contains(&(stat.st_dev, stat.st_ino)) {
            return;
        }
        // Whatever it has become since, it is not waited for.
        let kind = if directory { OFlags::DIRECTORY } else { OFlags::NONBLOCK | OFlags::NOCTTY };
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | links | kind;
        let opened = openat(at, name, flags, Mode::empty());
        match opened.and_then(|file| fstat(&file).map(|stat| (file, stat))) {
            Err(error) => self.left(path, Why::Unreadable(words(error))),
            Ok((_, now)) if now.st_dev != stat.st_dev || now.st_ino != stat.st_ino => {
                self.left(path, Why::Unreadable("it was replaced while it was opened".into()));
            }
            Ok((file, stat)) if directory => self.directory(file, path, &stat, way),
            Ok((file, stat)) => self.file(file, path, &stat, way),
        }
    }

    fn directory(&mut self, file: OwnedFd, path: &Path, stat: &Stat, way: Way) {
        if way.depth > 0 && stat.st_dev != way.device {
            return self.left(path, Why::OtherFileSystem);
        }
        let names = Dir::read_from(&file).and_then(|directory| {
            directory
                .map(|entry| entry.map(|entry| entry.file_name().to_bytes().to_vec()))
                .collect::<Result<Vec<_>, _>>()
        });
        let mut names = match names {
            Ok(names) => names,
            Err(error) => return self.left(path, Why::Unreadable(words(error))),
        };
        names.retain(|name| name != b"." && name != b"..");
        names.sort();
        let repository = way.repository || names.iter().any(|name| name == b".git");
        let open = way.open && stat.st_mode & 0o001 != 0;
        let way = Way { depth: way.depth + 1, open, repository, ..way };
        for name in &names {
            let name = OsStr::from_bytes(name);
            let path = path.join(name);
            if self.scope.exclude.iter().any(|pattern| pattern.has(&path)) {
                continue;
            }
            if name == ".git" {
                self.left(&path, Why::Git);
                continue;
            }
            match statat(&file, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => self.entry(&file, name, &path, stat, OFlags::NOFOLLOW, way),
                // Gone since: it is not here any more.
                Err(rustix::io::Errno::NOENT) => {}
                Err(error) => self.left(&path, Why::Unreadable(words(error))),
            }
        }
    }

    fn file(&mut self, file: OwnedFd, path: &Path, stat: &Stat, way: Way) {
        let bytes = match read(file, self.scope.largest) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return self.left(path, Why::TooLarge),
            Err(error) => return self.left(path, Why::Unreadable(error.kind().to_string())),
        };
        if !self.seen.insert((stat.st_dev, stat.st_ino)) {
            return;
        }
        if bytes.contains(&0) {
            return self.left(path, Why::Binary);
        }
        self.looked.files += 1;
        let text = Zeroizing::new(String::from_utf8_lossy(&bytes).into_owned());
        if Form::of(path, &text) == Form::Unit {
            self.also.extend(reading::environment_files(&text).into_iter().map(PathBuf::from));
        }
        let modified = Timestamp::from_second(stat.st_mtime).unwrap_or(Timestamp::UNIX_EPOCH);
        for hit in look(path, &text, self.now, self.salt) {
            let exposure = exposure(&hit, stat.st_mode, way.open);
            self.looked.findings.push(Finding {
                path: path.to_owned(),
                hit,
                exposure,
                mode: stat.st_mode & 0o7777,
                modified,
                repository: way.repository,
            });
        }
    }
}

/// Who can read it. A unit that is loaded is told to everybody, whatever the mode of its file.
fn exposure(hit: &Hit, mode: u32, open: bool) -> Exposure {
    match hit.place {
        Place::UnitEnvironment | Place::UnitArguments => Exposure::Everybody,
        _ if open && mode & 0o004 != 0 => Exposure::Everybody,
        _ if mode & 0o040 != 0 => Exposure::Group,
        _ => Exposure::Owner,
    }
}

fn open_to_all(directory: &Path) -> bool {
    statat(CWD, directory, AtFlags::empty()).is_ok_and(|stat| stat.st_mode & 0o001 != 0)
}

/// All of a file, or nothing if there is more of it than `most`.
fn read(file: OwnedFd, most: u64) -> io::Result<Option<Zeroizing<Vec<u8>>>> {
    let mut bytes = Zeroizing::new(Vec::new());
    File::from(file).take(most + 1).read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= most).then_some(bytes))
}

fn words(error: rustix::io::Errno) -> String {
    io::Error::from(error).kind().to_string()
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _, time::Duration};

    use super::*;
    use crate::clock::SeededDice;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn looked(paths: &[PathBuf], scope: &Scope) -> Looked {
        walk(paths, scope, NOW, &Salt::new(&*SeededDice::from_seed(1)))
    }

    fn all(directory: &Path) -> Looked {
        looked(&[directory.to_owned()], &Scope::default())
    }

    #[test]
    fn what_is_no_file_is_never_opened_and_links_are_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        rustix::fs::mkfifoat(CWD, at("pipe.env"), Mode::RUSR | Mode::WUSR).unwrap();
        fs::write(at("a.env"), "DB_PASSWORD=Harbour-Lights-7\n").unwrap();
        fs::hard_link(at("a.env"), at("b.env")).unwrap();
        std::os::unix::fs::symlink("a.env", at("c.env")).unwrap();
        std::os::unix::fs::symlink(".", at("loop")).unwrap();
        let (said, hears) = std::sync::mpsc::channel();
        let path = directory.path().to_owned();
        std::thread::spawn(move || said.send(all(&path)));
        let looked = hears.recv_timeout(Duration::from_secs(20)).expect("it waits for nobody");
        assert_eq!((looked.files, looked.links), (1, 2));
        assert_eq!(looked.findings.len(), 1);
        assert_eq!(looked.left_out, [(at("pipe.env"), Why::NoFile)]);
    }

    #[test]
    fn what_was_not_looked_at_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::create_dir(at(".git")).unwrap();
        fs::write(at(".git/config"), "password = Harbour-Lights-7\n").unwrap();
        fs::write(at("binary.env"), "DB_PASSWORD=Harbour-Lights-7\0\n").unwrap();
        fs::write(at("large.env"), "x".repeat(2000)).unwrap();
        let scope = Scope { largest: 1000, ..Scope::default() };
        let seen = looked(&[directory.path().to_owned(), at("none")], &scope);
        let why =
            |name: &str| seen.left_out.iter().find(|(path, _)| *path == at(name)).map(|(_, why)| why.clone());
        assert_eq!(why(".git"), Some(Why::Git));
        assert_eq!(why("binary.env"), Some(Why::Binary));
        assert_eq!(why("large.env"), Some(Why::TooLarge));
        assert!(matches!(why("none"), Some(Why::Unreadable(_))));
        assert!(seen.findings.is_empty());
        // Named, it is looked at.
        assert_eq!(all(&at(".git")).findings.len(), 1);
        let scope = Scope { exclude: vec![Pattern::new("*.env")], ..Scope::default() };
        assert_eq!(looked(&[directory.path().to_owned()], &scope).left_out, [(at(".git"), Why::Git)]);
    }

    #[test]
    fn the_most_pressing_comes_first() {
        // S47: by what it opens, then by who can read it, then by age.
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let put = |name: &str, text: &str, mode: u32, days: u64| {
            let path = directory.path().join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let then = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(days * 86_400);
            File::options().write(true).open(&path).unwrap().set_modified(then).unwrap();
        };
        put("open.env", "SMTP_PASSWORD=Harbour-Lights-1\n", 0o644, 10);
        put("older.env", "SMTP_PASSWORD=Harbour-Lights-2\n", 0o644, 5);
        put("group.env", "SMTP_PASSWORD=Harbour-Lights-3\n", 0o640, 1);
        put("closed.env", "SMTP_PASSWORD=Harbour-Lights-4\n", 0o600, 1);
        put("url.env", "A=postgres://a:Harbour-Lights-5@db/a\n", 0o600, 9);
        put("key.pem", &["-----BEGIN ", "PRIVATE KEY-----\nZm9ydHktdHdvIGlzIG5vIGtleQ\n"].concat(), 0o600, 9);
        put("shop.service", "[Service]\nEnvironment=SMTP_PASSWORD=Harbour-Lights-6\n", 0o600, 20);
        let seen = all(directory.path());
        let order: Vec<_> =
            seen.findings.iter().map(|finding| finding.path.file_name().unwrap().to_str().unwrap()).collect();
        // The temporary directory may be closed to others; then nothing in it is open to everybody but what a unit tells.
        let open = seen
            .findings
            .iter()
            .any(|finding| finding.path.ends_with("open.env") && finding.exposure == Exposure::Everybody);
        if open {
            assert_eq!(
                order,
                ["key.pem", "url.env", "older.env", "open.env", "shop.service", "group.env", "closed.env"]
            );
        } else {
            assert_eq!(
                order,
                ["key.pem", "url.env", "shop.service", "group.env", "older.env", "open.env", "closed.env"]
            );
        }
    }

    #[test]
    fn the_environment_files_of_a_unit_are_looked_at_with_it() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::create_dir(at("units")).unwrap();
        fs::write(at("shop.env"), "DB_PASSWORD=Harbour-Lights-7\n").unwrap();
        let unit = format!(
            "[Service]\nEnvironmentFile=-{}\nEnvironmentFile=/nowhere/at.all\nEnvironmentFile={}\n",
            at("shop.env").display(),
            at("others").display()
        );
        // A unit that somebody else wrote does not make all of the host be looked at.
        fs::create_dir(at("others")).unwrap();
        fs::write(at("others/other.env"), "DB_PASSWORD=Harbour-Lights-8\n").unwrap();
        fs::write(at("units/shop.service"), unit).unwrap();
        let seen = all(&at("units"));
        assert_eq!(seen.findings.iter().map(|one| one.path.clone()).collect::<Vec<_>>(), [at("shop.env")]);
        assert!(seen.left_out.is_empty());
    }
}

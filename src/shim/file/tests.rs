//! Whole or not at all, in the right place, the right person's, and the old one kept: against links, swaps and strangers. What a full
//! disk does is tried in `tests/env_files.rs`, which can mount one.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use super::*;
use crate::clock::SystemDice;

struct Place {
    dir: tempfile::TempDir,
    dice: Arc<dyn Dice>,
}

fn place() -> Place {
    Place { dir: tempfile::tempdir().unwrap(), dice: SystemDice::shared() }
}

impl Place {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn open(&self) -> Directory {
        Directory::open(self.dir.path(), Medium::Any, None).unwrap()
    }

    fn write(&self, name: &str, bytes: &str) -> Result<(), FileError> {
        self.open().write(OsStr::new(name), bytes.as_bytes(), Access::default(), &*self.dice)
    }

    fn replace(&self, files: &[(&str, &str)]) -> Result<(), FileError> {
        let files: Vec<(&str, &[u8])> = files.iter().map(|(name, text)| (*name, text.as_bytes())).collect();
        self.open().replace_set(&files, Access::default(), &*self.dice)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir.path()).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn versions(&self) -> usize {
        self.names().iter().filter(|name| name.starts_with("..keybearer.")).count()
    }
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn refused(result: Result<impl std::fmt::Debug, FileError>) -> String {
    match result {
        Err(error @ FileError::Place { .. }) => error.to_string(),
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn a_file_is_its_owners_to_read_and_nothing_is_left_beside_it() {
    // LEGACY 2.5, consul-template and Infisical with 0644: default 0400.
    let place = place();
    place.write("env", "one").unwrap();
    place.write("env", "two").unwrap();
    assert_eq!(place.read("env"), "two");
    assert_eq!(place.names(), ["env"]);
    let meta = fs::metadata(place.path("env")).unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.nlink()), (0o400, 1));
}

#[test]
fn owner_group_and_mode_are_there_before_the_file_is() {
    // consul-template sets its owner after the rename; vault #9806 not at all in silence.
    let place = place();
    if !geteuid().is_root() {
        let access = Access { owner: Some(Uid::ROOT), ..Access::default() };
        let error = place.open().write(OsStr::new("env"), b"x", access, &*place.dice).unwrap_err();
        assert!(error.to_string().contains("owner"), "{error}");
        assert_eq!(place.names(), [""; 0]);
        return;
    }
    let access = Access::read(Some("0640"), Some("65533"), Some("65532")).unwrap();
    place.open().write(OsStr::new("env"), b"x", access, &*place.dice).unwrap();
    let meta = fs::metadata(place.path("env")).unwrap();
    assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (65533, 65532, 0o640));
}

#[test]
fn a_reader_sees_the_old_file_or_the_new_one_and_never_half() {
    // tbot, Roles Anywhere and Infisical truncate in place: readers see partial files.
    let place = place();
    let long = "n".repeat(300_000);
    place.write("env", "old").unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut reads = 0;
            while !done.load(Ordering::Relaxed) || reads == 0 {
                let read = place.read("env");
                assert!(read == "old" || read == long, "{} bytes", read.len());
                reads += 1;
            }
        });
        for _ in 0..50 {
            place.write("env", &long).unwrap();
            place.write("env", "old").unwrap();
        }
        done.store(true, Ordering::Relaxed);
        reader.join().unwrap();
    });
}

#[test]
fn a_link_in_the_files_place_is_not_followed_and_not_replaced() {
    // consul-template GH-2083, nomad CVE-2026-8052.
    let place = place();
    fs::write(place.path("victim"), "victim").unwrap();
    symlink("victim", place.path("env")).unwrap();
    assert!(refused(place.write("env", "x")).contains("a symbolic link is there"));
    assert_eq!(place.read("victim"), "victim");
    assert_eq!(place.names(), ["env", "victim"]);
}

#[test]
fn only_a_file_is_replaced() {
    let place = place();
    fs::create_dir(place.path("env")).unwrap();
    assert!(refused(place.write("env", "x")).contains("a directory is there"));
    let fifo = place.path("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    assert!(refused(place.write("pipe", "x")).contains("a pipe is there"));
    for nothing in ["", "..", "a/"] {
        refused(Directory::around(&place.path(nothing), Medium::Any, None).map(|_| ()).and_then(|()| {
            let (directory, name) = Directory::around(Path::new(nothing), Medium::Any, None)?;
            directory.write(name, b"x", Access::default(), &*place.dice)
        }));
    }
}

#[test]
fn no_link_is_followed_on_the_way_and_the_message_names_it() {
    let place = place();
    fs::create_dir_all(place.path("real/deep")).unwrap();
    symlink("real", place.path("way")).unwrap();
    let told = refused(Directory::open(&place.path("way/deep"), Medium::Any, None));
    assert!(told.contains(&format!("{} is a symbolic link", place.path("way").display())), "{told}");
    Directory::open(&place.path("real/deep"), Medium::Any, None).unwrap();
}

#[test]
fn a_directory_that_others_can_write_to_is_refused() {
    let place = place();
    for mode in [0o777, 0o775, 0o757] {
        chmod(place.dir.path(), mode);
        assert!(refused(Directory::open(place.dir.path(), Medium::Any, None)).contains("chmod go-w"));
    }
    // As /tmp: others can add files there, and take nobody's away.
    chmod(place.dir.path(), 0o1777);
    place.write("env", "x").unwrap();
    chmod(place.dir.path(), 0o755);
    place.write("env", "y").unwrap();
}

#[test]
fn a_directory_of_somebody_elses_is_refused_unless_the_file_is_his() {
    if !geteuid().is_root() {
        return; // Nobody else can give a directory away.
    }
    let place = place();
    std::os::unix::fs::chown(place.dir.path(), Some(65533), None).unwrap();
    let told = refused(Directory::open(place.dir.path(), Medium::Any, None));
    assert!(told.contains("uid 65533"), "{told}");
    refused(Directory::open(place.dir.path(), Medium::Any, Some(Uid::from_raw(65532))));
    // RuntimeDirectory= of a unit with a User=, filled by ExecStartPre=+.
    Directory::open(place.dir.path(), Medium::Any, Some(Uid::from_raw(65533))).unwrap();
}

#[test]
fn a_directory_swapped_meanwhile_gets_nothing() {
    // The time between check and use: the descriptor is the directory that was checked.
    let place = place();
    fs::create_dir_all(place.path("ours")).unwrap();
    fs::create_dir_all(place.path("theirs")).unwrap();
    let open = Directory::open(&place.path("ours"), Medium::Any, None).unwrap();
    fs::rename(place.path("ours"), place.path("moved")).unwrap();
    symlink("theirs", place.path("ours")).unwrap();
    open.write(OsStr::new("env"), b"x", Access::default(), &*place.dice).unwrap();
    assert_eq!(fs::read_dir(place.path("theirs")).unwrap().count(), 0);
    assert_eq!(place.read("moved/env"), "x");
}

#[test]
fn a_directory_that_has_gone_is_an_error() {
    let place = place();
    fs::create_dir(place.path("gone")).unwrap();
    let open = Directory::open(&place.path("gone"), Medium::Any, None).unwrap();
    fs::remove_dir(place.path("gone")).unwrap();
    let error =
        open.write(OsStr::new("env"), b"canary", Access::default(), &*place.dice).unwrap_err().to_string();
    assert!(error.contains("cannot make a new file") && error.contains("untouched"), "{error}");
    assert!(!error.contains("canary"));
    let error = Directory::open(&place.path("gone"), Medium::Any, None).unwrap_err().to_string();
    assert!(error.contains("cannot open the directory"), "{error}");
}

#[test]
fn a_disk_is_refused_unless_somebody_says_that_it_may_be_one() {
    let place = place();
    if place.open().disk().is_none() {
        return; // Here /tmp is memory: there is no disk to refuse.
    }
    let error = Directory::open(place.dir.path(), Medium::Memory, None).unwrap_err();
    assert!(
        matches!(&error, FileError::Disk { .. }) && error.to_string().contains("--allow-disk"),
        "{error}"
    );
}

#[test]
fn memory_is_known() {
    let Ok(dir) = tempfile::tempdir_in("/dev/shm") else { return };
    let open = Directory::open(dir.path(), Medium::Memory, None).unwrap();
    assert_eq!(open.disk(), None);
}

#[test]
fn what_a_killed_writer_left_is_removed_by_the_next_and_a_living_ones_is_not() {
    let place = place();
    let mut child = std::process::Command::new("true").spawn().unwrap();
    let dead = child.id();
    child.wait().unwrap();
    let living = std::process::id();
    for pid in [dead, living] {
        fs::write(place.path(&format!(".keybearer.{pid}.00")), "half").unwrap();
    }
    fs::write(place.path(".keybearer.no"), "another's").unwrap();
    place.write("env", "x").unwrap();
    let mut left = [".keybearer.no".to_owned(), format!(".keybearer.{living}.00"), "env".to_owned()];
    left.sort();
    assert_eq!(place.names(), left);
}

#[test]
fn modes_for_others_are_no_modes_for_a_secret() {
    // nomad #11900: world-readable tokens.
    for good in ["0400", "400", "0440", "600", "0640", "660"] {
        assert!(Access::read(Some(good), None, None).is_ok(), "{good}");
    }
    for bad in ["", "644", "0404", "0700", "4400", "0200", "0", "8", "rw", "-1", "99999999999"] {
        assert!(Access::read(Some(bad), None, None).is_err(), "{bad}");
    }
    assert_eq!(Access::read(None, Some("root"), Some("root")).unwrap().owner, Some(Uid::ROOT));
    assert!(Access::read(None, Some("4294967295"), None).is_err(), "it would leave the owner as he is");
    assert!(Access::read(None, Some("no such user"), None).unwrap_err().contains("no such user"));
    assert!(Access::read(None, None, Some("no such group")).unwrap_err().contains("group"));
}

#[test]
fn a_set_switches_together() {
    // LEGACY 2.5: kubelet's ..data.
    let place = place();
    place.replace(&[("KEY", "k1"), ("CHAIN", "c1")]).unwrap();
    assert_eq!((place.read("KEY"), place.read("CHAIN")), ("k1".into(), "c1".into()));
    let meta = fs::metadata(place.path("KEY")).unwrap();
    assert_eq!(meta.mode() & 0o7777, 0o400);
    assert_eq!(fs::metadata(place.path("..data")).unwrap().mode() & 0o7777, 0o700);
    // Whoever is between the two opens goes on with those of before.
    let before = openat(CWD, place.path("..data").as_path(), OFlags::RDONLY, Mode::empty()).unwrap();
    place.replace(&[("KEY", "k2"), ("CHAIN", "c2")]).unwrap();
    assert_eq!((place.read("KEY"), place.read("CHAIN")), ("k2".into(), "c2".into()));
    let old = openat(&before, "CHAIN", OFlags::RDONLY, Mode::empty()).unwrap();
    assert_eq!(io::read_to_string(fs::File::from(old)).unwrap(), "c1");
    assert_eq!(place.versions(), 2);
    place.replace(&[("KEY", "k3")]).unwrap();
    assert_eq!(place.versions(), 2, "the one before the last is gone");
    assert!(openat(&before, "CHAIN", OFlags::RDONLY, Mode::empty()).is_err());
    assert!(!place.names().contains(&"CHAIN".to_owned()), "what is in it no more leads nowhere");
}

#[test]
fn a_reader_of_a_set_never_sees_one_of_each() {
    let place = place();
    place.replace(&[("KEY", "0"), ("CHAIN", "0")]).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut pairs = 0;
            while !done.load(Ordering::Relaxed) || pairs == 0 {
                let data =
                    openat(CWD, place.path("..data").as_path(), OFlags::RDONLY, Mode::empty()).unwrap();
                let read = |name| {
                    let file = openat(&data, name, OFlags::RDONLY, Mode::empty()).ok()?;
                    io::read_to_string(fs::File::from(file)).ok()
                };
                // Two switches meanwhile take it away altogether: opened again.
                if let (Some(key), Some(chain)) = (read("KEY"), read("CHAIN")) {
                    assert_eq!(key, chain);
                    pairs += 1;
                }
            }
        });
        for at in 1..100 {
            let text = at.to_string();
            place.replace(&[("KEY", &text), ("CHAIN", &text)]).unwrap();
        }
        done.store(true, Ordering::Relaxed);
        reader.join().unwrap();
    });
}

#[test]
fn a_set_takes_nobodys_name_and_keeps_what_it_had() {
    let place = place();
    place.replace(&[("KEY", "k1")]).unwrap();
    fs::write(place.path("CHAIN"), "another's").unwrap();
    assert!(refused(place.replace(&[("KEY", "k2"), ("CHAIN", "c2")])).contains("CHAIN"));
    symlink("/etc/passwd", place.path("BUNDLE")).unwrap();
    assert!(refused(place.replace(&[("KEY", "k2"), ("BUNDLE", "b2")])).contains("BUNDLE"));
    assert_eq!((place.read("KEY"), place.read("CHAIN")), ("k1".into(), "another's".into()));
    assert_eq!(place.versions(), 1);
    fs::remove_file(place.path("..data")).unwrap();
    fs::create_dir(place.path("..data")).unwrap();
    assert!(refused(place.replace(&[("KEY", "k2")])).contains("..data"));
}

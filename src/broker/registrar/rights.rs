//! The right to a client's registration, which is itself a secret and may be another after each answer (RFC 7592 3). In go a file
//! that an operator put there, and what the issuer gave since; out comes the right to use now. What the issuer gave is sealed
//! and on the disk before anything else is done, and the one before it stays until the one after it is there.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};
use zeroize::{Zeroize as _, Zeroizing};

use super::RegistrationSettings;
use crate::{
    clock::Dice,
    issuer::{IssueError, Reason, registration::Access},
    keys::{FileError, SealingKey, put_whole, read_secret},
    secret::Secret,
};

/// What the bytes are sealed for, before whose they are.
const PURPOSE: &str = "registration";

/// Where rights are kept.
#[derive(Debug)]
pub struct Rights {
    key: SealingKey,
    dice: Arc<dyn Dice>,
    /// What could not be written, by where it belongs: nowhere else is it known.
    unwritten: Mutex<BTreeMap<PathBuf, Vec<u8>>>,
}

/// What is kept of one registration.
#[derive(Deserialize, Serialize)]
pub(super) struct Kept {
    /// What the operator gave: where another is given, that counts.
    given: Given,
    now: Right,
    /// The one that `now` took the place of: an issuer that failed half way may know it instead.
    before: Option<Right>,
    /// What the keys are recognised by that the issuer confirmed last.
    pub(super) known: Option<BTreeSet<String>>,
}

#[derive(Deserialize, Eq, PartialEq, Serialize)]
struct Given {
    uri: String,
    fingerprint: String,
}

#[derive(Deserialize, Serialize)]
struct Right {
    uri: String,
    token: String,
}

impl Drop for Right {
    fn drop(&mut self) {
        self.token.zeroize();
    }
}

impl Right {
    fn access(&self) -> Access {
        Access { uri: self.uri.clone(), token: Secret::new(self.token.as_str()) }
    }

    fn of(access: &Access) -> Self {
        let token = access.token.expose_str().unwrap_or_default().to_owned();
        Self { uri: access.uri.clone(), token }
    }
}

impl Kept {
    /// Where to ask, and by what right.
    pub(super) fn access(&self) -> Access {
        self.now.access()
    }

    /// The same as it was before the last answer.
    pub(super) fn access_before(&self) -> Option<Access> {
        self.before.as_ref().map(Right::access)
    }

    /// The issuer gave another.
    pub(super) fn renew(&mut self, renewed: &Access) {
        self.before = Some(std::mem::replace(&mut self.now, Right::of(renewed)));
    }

    /// It is the one before that is good.
    pub(super) fn go_back(&mut self) {
        if let Some(before) = self.before.take() {
            self.now = before;
        }
    }
}

impl Rights {
    /// Those whose files are sealed with `key`.
    pub fn new(key: SealingKey, dice: Arc<dyn Dice>) -> Self {
        Self { key, dice, unwritten: Mutex::default() }
    }

    /// The right to a registration: what the issuer gave last, unless the operator has put another file there since.
    pub(super) fn open(&self, of: &RegistrationSettings) -> Result<Kept, IssueError> {
        let path = of.token_file.display();
        let given = match read_secret(&of.token_file) {
            Ok(token) => Some(token),
            Err(FileError::Io { error, .. }) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(no_right(format!("the registration access token: {error}"))),
        };
        let kept = self.read(of).filter(|kept| {
            kept.given.uri == of.uri
                && given
                    .as_ref()
                    .is_none_or(|given| given.fingerprint().to_string() == kept.given.fingerprint)
        });
        if let Some(kept) = kept {
            return Ok(kept);
        }
        let Some(given) = given else {
            return Err(no_right(format!(
                "{path} is not there: put the registration access token into it that the issuer gave, with mode 0600 in \
                 a directory of mode 0700"
            )));
        };
        let token = given
            .expose_str()
            .filter(|token| !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic()));
        let Some(token) = token else {
            return Err(no_right(format!(
                "{path} has to hold one registration access token and nothing else"
            )));
        };
        Ok(Kept {
            given: Given { uri: of.uri.clone(), fingerprint: given.fingerprint().to_string() },
            now: Right { uri: of.uri.clone(), token: token.to_owned() },
            before: None,
            known: None,
        })
    }

    /// Writes `kept` down, so that neither a crash nor the end of the power takes it. What cannot be written is remembered and
    /// found again by [`Self::open`].
    pub(super) fn keep(&self, of: &RegistrationSettings, kept: &Kept) -> Result<(), IssueError> {
        let failed = |error: io::Error| IssueError::Retry {
            reason: Reason::SourceTokenUnavailable,
            detail: format!(
                "{}: the right to the registration cannot be kept: {error}: make room, or mend the directory",
                of.kept.display()
            ),
            after: None,
        };
        // Room for all at once: a buffer that grows leaves copies of the token behind.
        let mut plain = Zeroizing::new(Vec::with_capacity(32 * 1024));
        serde_json::to_writer(&mut *plain, kept).map_err(|error| failed(error.into()))?;
        let plain = Secret::new(std::mem::take(&mut *plain));
        let sealed = self.key.seal(purpose(of), &plain, &*self.dice);
        let sealed = sealed.ok_or_else(|| failed(io::Error::other("it cannot be sealed")))?;
        match write(&of.kept, &sealed) {
            Ok(()) => {
                self.unwritten().remove(&of.kept);
                Ok(())
            }
            Err(error) => {
                self.unwritten().insert(of.kept.clone(), sealed);
                Err(failed(error))
            }
        }
    }

    fn read(&self, of: &RegistrationSettings) -> Option<Kept> {
        let path = of.kept.display();
        let unwritten = self.unwritten().get(&of.kept).cloned();
        let sealed = match unwritten.map_or_else(|| fs::read(&of.kept), Ok) {
            Ok(sealed) => sealed,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::error!(%error, %path, "the right to a registration that is kept there cannot be read");
                return None;
            }
        };
        let opened = self.key.unseal(purpose(of), &sealed);
        let kept = opened.and_then(|plain| serde_json::from_slice(plain.expose()).ok());
        if kept.is_none() {
            tracing::error!(%path, "the right to a registration was sealed by another key or for another registration, or \
                                    changed: what token_file holds is used instead");
        }
        kept
    }

    fn unwritten(&self) -> MutexGuard<'_, BTreeMap<PathBuf, Vec<u8>>> {
        self.unwritten.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One registration's right does not open as another's.
fn purpose(of: &RegistrationSettings) -> String {
    format!("{PURPOSE} {} {} {}", of.identity, of.issuer, of.client_id)
}

fn write(path: &Path, sealed: &[u8]) -> io::Result<()> {
    if let Some(directory) = path.parent().filter(|directory| !directory.exists()) {
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    }
    put_whole(path, sealed)
}

fn no_right(detail: String) -> IssueError {
    IssueError::Misconfigured { reason: Reason::SourceTokenUnavailable, detail }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::OpenOptions,
        io::Write as _,
        os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    };

    use super::*;
    use crate::{broker::registrar::tests::settings, clock::SeededDice};

    fn house() -> (tempfile::TempDir, RegistrationSettings) {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let of = RegistrationSettings {
            token_file: dir.path().join("given"),
            kept: dir.path().join("kept/payments.ledger.sealed"),
            ..settings()
        };
        (dir, of)
    }

    fn give(of: &RegistrationSettings, token: &str) {
        let _ = fs::remove_file(&of.token_file);
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(&of.token_file).unwrap();
        writeln!(file, "{token}").unwrap();
    }

    fn rights() -> Rights {
        Rights::new(SealingKey::of(&Secret::new("seed")), SeededDice::from_seed(5))
    }

    fn token(kept: &Kept) -> String {
        kept.access().token.expose_str().unwrap().to_owned()
    }

    fn renewed(token: &str) -> Access {
        Access { uri: "https://idp.example/moved".into(), token: Secret::new(token) }
    }

    #[test]
    fn what_the_issuer_gave_outlives_the_process_until_the_operator_gives_another() {
        // KEY-09
        let (_dir, of) = house();
        give(&of, "canary-given");
        let mut kept = rights().open(&of).unwrap();
        assert_eq!((token(&kept), kept.access().uri), ("canary-given".into(), of.uri.clone()));
        kept.renew(&renewed("canary-second"));
        kept.known = Some(["a".to_owned()].into());
        rights().keep(&of, &kept).unwrap();
        let mut again = rights().open(&of).unwrap();
        assert_eq!((token(&again), again.known.clone()), ("canary-second".into(), kept.known.clone()));
        assert_eq!(again.access().uri, "https://idp.example/moved");
        // Nothing of it can be read, and no other registration's opens.
        let sealed = fs::read(&of.kept).unwrap();
        assert!(!sealed.windows(6).any(|window| window == b"canary"));
        assert_eq!(fs::metadata(&of.kept).unwrap().permissions().mode() & 0o777, 0o600);
        let other = RegistrationSettings { client_id: "other".into(), ..of.clone() };
        assert_eq!(token(&rights().open(&other).unwrap()), "canary-given");
        // The one before is there as long as the one after it is new.
        assert_eq!(again.access_before().unwrap().token.expose(), b"canary-given");
        again.go_back();
        assert_eq!(token(&again), "canary-given");
        // Once the issuer's is kept, the first is needed no more.
        fs::remove_file(&of.token_file).unwrap();
        assert_eq!(token(&rights().open(&of).unwrap()), "canary-second");
        // Another file, or another place, is the operator's word.
        give(&of, "canary-third");
        let third = rights().open(&of).unwrap();
        assert_eq!((token(&third), third.known.is_none()), ("canary-third".into(), true));
        let elsewhere = RegistrationSettings { uri: "https://idp.example/other".into(), ..of };
        assert_eq!(token(&rights().open(&elsewhere).unwrap()), "canary-third");
    }

    #[test]
    fn a_token_that_others_could_read_or_that_is_none_is_not_used() {
        // KEY-09, KEY-11
        let (dir, of) = house();
        let why = |of: &RegistrationSettings| rights().open(of).err().unwrap().to_string();
        assert!(why(&of).contains("is not there"), "{}", why(&of));
        for bad in ["", "two tokens", "a\nb", "caf\u{e9}"] {
            give(&of, bad);
            assert!(why(&of).contains("one registration access token"), "{bad:?}: {}", why(&of));
        }
        give(&of, "canary");
        fs::set_permissions(&of.token_file, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(why(&of).contains("KEY_PERM") && !why(&of).contains("canary"), "{}", why(&of));
        give(&of, "canary");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        assert!(why(&of).contains("KEY_PERM"), "{}", why(&of));
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let real = dir.path().join("real");
        fs::rename(&of.token_file, &real).unwrap();
        std::os::unix::fs::symlink(&real, &of.token_file).unwrap();
        assert!(rights().open(&of).is_err(), "a link is not followed");
    }

    #[test]
    fn on_a_full_disk_the_new_right_is_remembered_and_the_old_file_stays_whole() {
        // KEY-09
        let (_dir, of) = house();
        give(&of, "canary-given");
        let rights = rights();
        let mut kept = rights.open(&of).unwrap();
        rights.keep(&of, &kept).unwrap();
        let before = fs::read(&of.kept).unwrap();
        // As a disk that is full, also if we are root.
        fs::create_dir(of.kept.with_extension("new")).unwrap();
        kept.renew(&renewed("canary-second"));
        let error = rights.keep(&of, &kept).unwrap_err();
        assert!(
            matches!(&error, IssueError::Retry { detail, .. } if detail.contains("make room")),
            "{error}"
        );
        assert_eq!(fs::read(&of.kept).unwrap(), before);
        assert_eq!(token(&rights.open(&of).unwrap()), "canary-second", "nobody else knows it");
        fs::remove_dir(of.kept.with_extension("new")).unwrap();
        rights.keep(&of, &rights.open(&of).unwrap()).unwrap();
        assert_eq!(token(&self::rights().open(&of).unwrap()), "canary-second", "and so does the next agent");
        // Half of one that was killed while it wrote is written over.
        fs::write(of.kept.with_extension("new"), "half").unwrap();
        rights.keep(&of, &kept).unwrap();
    }
}

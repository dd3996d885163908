//! What somebody else made and a program needs until it can be made anew for it (S1, S36, S46): a password, an API key. In go
//! values by name, and whose they are; out come the same values, on this machine and for that credential only.
//!
//! They lie in one file a credential, sealed as key files are (`vault/`), by a key that does not lie beside them; without one,
//! nothing is kept here. What stands open behind what is sealed says since when it lies there, by which names, and on which
//! machine, and is sealed with it: not one byte of it can be changed. Nothing of a value stands open, not even a sum: what people
//! chose can be guessed. So the fingerprint is drawn, once for each time that somebody puts something in.
//!
//! Or the service manager keeps it (LoadCredentialEncrypted=), and it is read where that puts it.

use std::{
    collections::BTreeMap,
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{FileError, Home, Vault, durable::settled, file, vault::Slot};
use crate::{
    clock::Dice,
    secret::{Fingerprint, Secret},
};

/// What the values of a credential are sealed as.
pub const SEALED_VALUES: &str = "sealed-values";

/// The longest value, and the most of all that one credential has, in bytes.
const LONGEST: usize = 16 * 1024;
const MOST: usize = 32 * 1024;

/// What is put behind the names of identity and credential. Names hold no dots.
const SUFFIX: &str = ".sealed";

/// Values by name.
pub type Values = BTreeMap<String, Secret>;

/// Where such values lie.
#[derive(Clone, Debug)]
pub struct Safe {
    vault: Vault,
    directory: PathBuf,
    /// This machine; none if it is not looked at.
    home: Option<Home>,
    /// Where the service manager puts credentials.
    given: Option<PathBuf>,
    dice: Arc<dyn Dice>,
}

/// What may be told of what lies there.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Kept {
    /// Drawn when it was put in.
    pub fingerprint: Fingerprint,
    /// The names of the values.
    pub fields: Vec<String>,
    /// When it was put in.
    pub since: Timestamp,
    machine: Option<String>,
}

/// The same as it stands in the file.
#[derive(Deserialize, Serialize)]
struct Open {
    fingerprint: String,
    fields: Vec<String>,
    since: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    machine: Option<String>,
}

/// Why something is not to be had, or not to be put in, and of whom.
#[derive(Debug, thiserror::Error)]
pub struct SafeError {
    /// Whose.
    pub identity: String,
    /// What it is for.
    pub credential: String,
    /// Why.
    #[source]
    pub why: NotSafe,
}

/// The same, without whose it is.
#[derive(Debug, thiserror::Error)]
pub enum NotSafe {
    /// It cannot be read or written, or others could.
    #[error("{0}")]
    File(#[from] FileError),
    /// The service manager gives none of that name.
    #[error(
        "the service manager gives the agent no credential {0}: say LoadCredentialEncrypted={0} in the agent's unit, make it with \
         systemd-creds encrypt --name={0}, and restart the unit"
    )]
    NotGiven(String),
    /// There is nothing yet.
    #[error("nothing is sealed for it yet")]
    Nothing,
    /// It belongs to another machine.
    #[error("{0} was sealed on another machine")]
    OtherMachine(PathBuf),
    /// Something else is there.
    #[error("{0} holds nothing that this agent sealed")]
    Strange(PathBuf),
    /// It does not open.
    #[error(
        "{0} does not open: it was sealed by another key, as that of another host or an older one (keys.old_sealing_key), or for \
         another credential, or was changed"
    )]
    Shut(PathBuf),
    /// A value that cannot be kept or handed out.
    #[error("{field} {what}")]
    Unfit {
        /// Which.
        field: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// There is no key to seal with.
    #[error(
        "keys.sealed: a secret that stays as it is lies sealed or not at all, and there is no sealing key: give the unit the \
         credential keybearer.sealing-key (systemd-creds), or name a file as keys.sealing_key, and restart the agent"
    )]
    Unsealed,
}

impl fmt::Display for SafeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { identity, credential, why } = self;
        write!(f, "{identity}.{credential}: {why}")?;
        match why {
            NotSafe::Nothing => write!(f, ": keybearer seal {identity} {credential}"),
            NotSafe::OtherMachine(_) | NotSafe::Strange(_) | NotSafe::Shut(_) => {
                write!(f, ": put the secret in anew: keybearer seal {identity} {credential}")
            }
            NotSafe::File(_) | NotSafe::NotGiven(_) | NotSafe::Unfit { .. } | NotSafe::Unsealed => Ok(()),
        }
    }
}

/// What is wrong with a value, if it is not text that every API of ours can hand out.
pub fn unfit(value: &Secret) -> Option<&'static str> {
    if value.is_empty() {
        return Some("is empty");
    }
    if value.len() > LONGEST {
        return Some("is longer than 16 KiB");
    }
    match value.expose_str() {
        None => Some("is no UTF-8: write it in base64, if whoever uses it reads that"),
        Some(text) if text.contains('\0') => Some("has a NUL byte in it, which no program could be given"),
        Some(_) => None,
    }
}

impl Safe {
    /// A safe in `directory`, whose files are sealed as `vault` has it, on the machine of `home` if that is looked at. `given` is
    /// where the service manager puts credentials.
    pub fn new(
        vault: Vault,
        directory: PathBuf,
        home: Option<Home>,
        given: Option<PathBuf>,
        dice: Arc<dyn Dice>,
    ) -> Self {
        Self { vault, directory, home, given, dice }
    }

    /// Whether there is a key to seal with.
    ///
    /// # Errors
    /// [`NotSafe::Unsealed`] with what to do.
    pub fn can_seal(&self, identity: &str, credential: &str) -> Result<(), SafeError> {
        let sealed = self.vault.sealed_by().map(|_| ()).ok_or(NotSafe::Unsealed);
        sealed.map_err(named(identity, credential))
    }

    /// Seals `values` in the place of what lies there, which stays until they are on disk.
    ///
    /// # Errors
    /// [`SafeError`]; what lay there lies there still.
    pub fn put(
        &self,
        identity: &str,
        credential: &str,
        values: &Values,
        now: Timestamp,
    ) -> Result<Kept, SafeError> {
        self.can_seal(identity, credential)?;
        let unfit = values.iter().find_map(|(field, value)| {
            unfit(value).map(|what| NotSafe::Unfit { field: field.clone(), what })
        });
        let all: usize = values.iter().map(|(name, value)| name.len() + value.len()).sum();
        let too_much = || {
            let what = "and the others together are longer than 32 KiB";
            (all > MOST).then(|| NotSafe::Unfit { field: "it".into(), what })
        };
        if let Some(why) = unfit.or_else(too_much) {
            return Err(named(identity, credential)(why));
        }
        let mut drawn = [0; 16];
        self.dice.fill(&mut drawn);
        let kept = Kept {
            fingerprint: Fingerprint::of(&drawn),
            fields: values.keys().cloned().collect(),
            since: now,
            machine: None,
        };
        self.write(identity, credential, values, kept).map_err(named(identity, credential))
    }

    /// What is sealed for a credential.
    ///
    /// # Errors
    /// [`SafeError`] if there is nothing that opens here.
    pub fn open(&self, identity: &str, credential: &str) -> Result<(Values, Kept), SafeError> {
        let opened = self.opened(identity, credential).and_then(|(values, kept)| {
            let here = self.home.as_ref().map(Home::id);
            match (&kept.machine, here) {
                (Some(machine), Some(here)) if here.as_ref() != Some(machine) => {
                    Err(NotSafe::OtherMachine(self.path(identity, credential)))
                }
                _ => Ok((values, kept)),
            }
        });
        opened.map_err(named(identity, credential))
    }

    /// What may be told of what lies there, without a key that opens it; none if nothing does.
    ///
    /// # Errors
    /// [`SafeError`] if others could read or replace it, or it is nothing of ours.
    pub fn look(&self, identity: &str, credential: &str) -> Result<Option<Kept>, SafeError> {
        let path = self.path(identity, credential);
        let looked = match file::read_private(&path) {
            Err(error) if is_gone(&error) => Ok(None),
            Err(error) => Err(error.into()),
            Ok((text, _)) => {
                let open = super::vault::parts(&text).and_then(|(_, open)| Kept::read(open));
                open.map(Some).ok_or(NotSafe::Strange(path))
            }
        };
        looked.map_err(named(identity, credential))
    }

    /// Takes away what is sealed for a credential, and has the directory forget it. Whether there was anything.
    ///
    /// # Errors
    /// [`SafeError`]: it is there still.
    pub fn remove(&self, identity: &str, credential: &str) -> Result<bool, SafeError> {
        let path = self.path(identity, credential);
        if fs::symlink_metadata(&path).is_err() {
            return Ok(false);
        }
        let removed = file::destroy(&path).and_then(|()| {
            settled(&path).map_err(|error| FileError::Io { path: self.directory.clone(), error })
        });
        removed.map(|()| true).map_err(|error| named(identity, credential)(error.into()))
    }

    /// The value that the service manager gives under this name: the whole file, but for one line feed at its end.
    ///
    /// # Errors
    /// [`SafeError`].
    pub fn given(&self, identity: &str, credential: &str, name: &str) -> Result<Secret, SafeError> {
        let not_given = || NotSafe::NotGiven(name.to_owned());
        let read = match self.given.as_ref().map(|directory| file::read_entrusted(&directory.join(name))) {
            None => Err(not_given()),
            Some(Err(error)) if is_gone(&error) => Err(not_given()),
            Some(Err(error)) => Err(error.into()),
            Some(Ok(mut text)) => {
                if text.last() == Some(&b'\n') {
                    text.pop();
                }
                Ok(Secret::new(std::mem::take(&mut *text)))
            }
        };
        let fit = read.and_then(|value| match unfit(&value) {
            None => Ok(value),
            Some(what) => Err(NotSafe::Unfit { field: format!("the credential {name}"), what }),
        });
        fit.map_err(named(identity, credential))
    }

    /// For which credentials something lies there, by identity and credential. Nothing, where it cannot be looked.
    pub fn all(&self) -> Vec<(String, String)> {
        let entries = fs::read_dir(&self.directory).into_iter().flatten().flatten();
        let mut all: Vec<_> = entries
            .filter_map(|entry| {
                let name = entry.file_name().into_string().ok()?;
                let (identity, credential) = name.strip_suffix(SUFFIX)?.split_once('.')?;
                Some((identity.to_owned(), credential.to_owned()))
            })
            .collect();
        all.sort();
        all
    }

    /// Makes all that lies there this machine's, as an operator said of the whole state directory. What does not open is left as
    /// it is, and told of when it is wanted.
    pub fn adopt(&self) {
        for (identity, credential) in self.all() {
            let adopted = self
                .opened(&identity, &credential)
                .and_then(|(values, kept)| self.write(&identity, &credential, &values, kept));
            if let Err(error) = adopted.map_err(named(&identity, &credential)) {
                tracing::error!(%error, "it does not become this machine's");
            }
        }
    }

    /// What is sealed, on whichever machine.
    fn opened(&self, identity: &str, credential: &str) -> Result<(Values, Kept), NotSafe> {
        let (path, whose) = (self.path(identity, credential), whose(identity, credential));
        let slot = Slot::of(&self.vault, SEALED_VALUES, &whose);
        let again = |found: &super::vault::Found| Ok(String::from_utf8_lossy(&found.open).into_owned());
        let found = match file::read_keeping(&path, slot, again) {
            Err(error) if is_gone(&error) => return Err(NotSafe::Nothing),
            Err(FileError::Sealed { .. }) => return Err(NotSafe::Shut(path)),
            Err(FileError::NotPkcs8 { .. }) => return Err(NotSafe::Strange(path)),
            Err(FileError::NoSealingKey { .. }) => return Err(NotSafe::Unsealed),
            other => other?,
        };
        let plain = found.pkcs8.ok_or(NotSafe::Unsealed)?;
        // Of a key that lies here plain, what stands open is all of it, and reads as nothing.
        let read = Kept::read(&found.open).zip(read_values(&plain));
        read.map(|(kept, values)| (values, kept)).ok_or(NotSafe::Strange(path))
    }

    fn write(&self, identity: &str, credential: &str, values: &Values, kept: Kept) -> Result<Kept, NotSafe> {
        let (path, whose) = (self.path(identity, credential), whose(identity, credential));
        let kept = Kept { machine: self.home.as_ref().and_then(Home::id), ..kept };
        let slot = Slot::of(&self.vault, SEALED_VALUES, &whose);
        if !slot.seals() {
            return Err(NotSafe::Unsealed);
        }
        let text = slot.text(&path, &written_values(values), &kept.written())?;
        file::replace_private(&path, &text)?;
        Ok(kept)
    }

    fn path(&self, identity: &str, credential: &str) -> PathBuf {
        path_in(&self.directory, identity, credential)
    }
}

fn path_in(directory: &Path, identity: &str, credential: &str) -> PathBuf {
    directory.join(format!("{identity}.{credential}{SUFFIX}"))
}

/// What it is sealed for: it opens in no other place.
fn whose(identity: &str, credential: &str) -> String {
    format!("{identity}.{credential}")
}

fn named(identity: &str, credential: &str) -> impl Fn(NotSafe) -> SafeError {
    move |why| SafeError { identity: identity.into(), credential: credential.into(), why }
}

fn is_gone(error: &FileError) -> bool {
    matches!(error, FileError::Io { error, .. } if error.kind() == io::ErrorKind::NotFound)
}

impl Kept {
    fn written(&self) -> String {
        let open = Open {
            fingerprint: self.fingerprint.to_string(),
            fields: self.fields.clone(),
            since: self.since.to_string(),
            machine: self.machine.clone(),
        };
        serde_json::to_string(&open).map(|line| line + "\n").unwrap_or_default()
    }

    fn read(open: &[u8]) -> Option<Self> {
        let Open { fingerprint, fields, since, machine } = serde_json::from_slice(open).ok()?;
        Some(Self { fingerprint: fingerprint.parse().ok()?, fields, since: since.parse().ok()?, machine })
    }
}

/// Names and values in turn, each behind its length: no parser that makes copies comes near them.
fn written_values(values: &Values) -> Secret {
    let room = values.iter().map(|(name, value)| name.len() + value.len() + 8).sum();
    // Room for all at once: a buffer that grows leaves copies behind.
    let mut all = Zeroizing::new(Vec::with_capacity(room));
    for (name, value) in values {
        for bytes in [name.as_bytes(), value.expose()] {
            all.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
            all.extend_from_slice(bytes);
        }
    }
    Secret::new(std::mem::take(&mut *all))
}

fn read_values(plain: &Secret) -> Option<Values> {
    let mut rest = plain.expose();
    let mut next = || {
        let (length, behind) = rest.split_first_chunk()?;
        let (bytes, behind) = behind.split_at_checked(usize::try_from(u32::from_be_bytes(*length)).ok()?)?;
        rest = behind;
        Some((bytes, behind.is_empty()))
    };
    let mut values = Values::new();
    loop {
        let (name, _) = next()?;
        let (value, last) = next()?;
        values.insert(std::str::from_utf8(name).ok()?.to_owned(), Secret::new(value));
        if last {
            return Some(values);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;
    use crate::{clock::SystemDice, keys::SealSettings};

    const NOW: &str = "2026-01-01T00:00:00Z";
    const ONE: &str = "3d1219c7c4c5404aaa1f6d2a48adfda4\n";
    const OTHER: &str = "aaaa19c7c4c5404aaa1f6d2a48adfda4\n";
    const CANARY: &str = "canary of a password that people chose";

    struct Host(tempfile::TempDir);

    impl Host {
        fn new() -> Self {
            let host = Self(tempfile::tempdir().unwrap());
            fs::set_permissions(host.0.path(), fs::Permissions::from_mode(0o700)).unwrap();
            host.give("keybearer.sealing-key", b"a sealing key of more than 32 bytes, one");
            host.is(ONE);
            host
        }

        fn give(&self, name: &str, text: &[u8]) {
            let path = self.0.path().join(name);
            let _ = fs::remove_file(&path);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
        }

        fn is(&self, id: &str) {
            fs::write(self.0.path().join("machine-id"), id).unwrap();
        }

        fn settings(&self) -> SealSettings {
            let directory = self.0.path().join("state/keys");
            SealSettings { credentials: Some(self.0.path().into()), directory, ..SealSettings::default() }
        }

        fn safe(&self) -> Safe {
            self.safe_with(Vault::open(&self.settings(), SystemDice::shared()).unwrap())
        }

        fn safe_with(&self, vault: Vault) -> Safe {
            let home =
                Home { state: self.0.path().join("state"), machine_id: self.0.path().join("machine-id") };
            Safe::new(
                vault,
                self.0.path().join("state/sealed"),
                Some(home),
                Some(self.0.path().into()),
                SystemDice::shared(),
            )
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join("state/sealed").join(name)
        }
    }

    fn values(all: &[(&str, &str)]) -> Values {
        all.iter().map(|(name, value)| ((*name).to_owned(), Secret::new(*value))).collect()
    }

    fn told(opened: Result<(Values, Kept), SafeError>) -> Vec<(String, String)> {
        let (values, _) = opened.unwrap();
        values.iter().map(|(name, value)| (name.clone(), value.expose_str().unwrap().to_owned())).collect()
    }

    fn put(safe: &Safe, value: &str) -> Result<Kept, SafeError> {
        safe.put("shop", "smtp", &values(&[("password", value)]), NOW.parse().unwrap())
    }

    #[test]
    fn what_is_put_in_comes_out_and_no_byte_of_it_lies_open() {
        // S1
        let (host, two) = (Host::new(), [("password", CANARY), ("username", "us\ner")]);
        let safe = host.safe();
        let nothing = safe.open("shop", "smtp").unwrap_err().to_string();
        assert_eq!(nothing, "shop.smtp: nothing is sealed for it yet: keybearer seal shop smtp");
        assert!(safe.look("shop", "smtp").unwrap().is_none() && safe.all().is_empty());
        let kept = safe.put("shop", "smtp", &values(&two), NOW.parse().unwrap()).unwrap();
        let expected = two.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(told(safe.open("shop", "smtp")), expected);
        assert_eq!(told(host.safe().open("shop", "smtp")), expected, "over a restart");
        assert_eq!((safe.look("shop", "smtp").unwrap().as_ref(), kept.fields.len()), (Some(&kept), 2));
        assert_eq!(safe.all(), [("shop".to_owned(), "smtp".to_owned())]);
        let text = fs::read_to_string(host.path("shop.smtp.sealed")).unwrap();
        assert!(!text.contains("canary") && !text.contains(ONE.trim()), "{text}");
        assert_eq!(fs::metadata(host.path("shop.smtp.sealed")).unwrap().mode_bits(), 0o600);
        assert_eq!(fs::read_dir(host.path("")).unwrap().count(), 1, "nothing is left beside it");
        // The same value again is another putting in: nobody can tell by the fingerprint what it is.
        assert_ne!(put(&safe, "a").unwrap().fingerprint, put(&safe, "a").unwrap().fingerprint);
        // Where there is no key, as in an operator's shell, what may be told is.
        let shell = host.safe_with(Vault::to_look(&SealSettings::default(), SystemDice::shared()).unwrap());
        assert_eq!(shell.look("shop", "smtp").unwrap().unwrap().fields, ["password"]);
        assert!(matches!(shell.open("shop", "smtp").unwrap_err().why, NotSafe::Unsealed));
        assert!(safe.remove("shop", "smtp").unwrap() && !safe.remove("shop", "smtp").unwrap());
        assert!(matches!(safe.open("shop", "smtp").unwrap_err().why, NotSafe::Nothing));
    }

    trait ModeBits {
        fn mode_bits(&self) -> u32;
    }

    impl ModeBits for fs::Metadata {
        fn mode_bits(&self) -> u32 {
            self.permissions().mode() & 0o7777
        }
    }

    #[test]
    fn a_copy_opens_nowhere_else() {
        // S1, S9, TM-14: not for another credential or identity, not by another key, not on another machine.
        let host = Host::new();
        put(&host.safe(), CANARY).unwrap();
        let kept = fs::read(host.path("shop.smtp.sealed")).unwrap();
        for (identity, credential) in [("shop", "imap"), ("cart", "smtp")] {
            let name = format!("{identity}.{credential}.sealed");
            fs::write(host.path(&name), &kept).unwrap();
            fs::set_permissions(host.path(&name), fs::Permissions::from_mode(0o600)).unwrap();
            let error = host.safe().open(identity, credential).unwrap_err();
            assert!(matches!(error.why, NotSafe::Shut(_)), "{error}");
            let text = error.to_string();
            assert!(text.starts_with(&format!("{identity}.{credential}: ")), "{text}");
            assert!(text.ends_with(&format!("keybearer seal {identity} {credential}")), "{text}");
            fs::remove_file(host.path(&name)).unwrap();
        }
        host.is(OTHER);
        let error = host.safe().open("shop", "smtp").unwrap_err();
        assert!(matches!(error.why, NotSafe::OtherMachine(_)), "{error}");
        host.is("uninitialized\n");
        assert!(matches!(host.safe().open("shop", "smtp").unwrap_err().why, NotSafe::OtherMachine(_)));
        host.is(OTHER);
        host.safe().adopt();
        assert_eq!(told(host.safe().open("shop", "smtp"))[0].1, CANARY, "an operator said that it is ours");
        host.is(ONE);
        assert!(host.safe().open("shop", "smtp").is_err(), "and the other's no more");
        host.is(OTHER);
        host.give("keybearer.sealing-key", b"a sealing key of more than 32 bytes, two");
        let error = host.safe().open("shop", "smtp").unwrap_err();
        assert!(matches!(error.why, NotSafe::Shut(_)), "{error}");
        // K57-6: the one before opens it still, and it is sealed anew, with the same fingerprint.
        let before = host.safe().look("shop", "smtp").unwrap();
        host.give("keybearer.old-sealing-key", b"a sealing key of more than 32 bytes, one");
        assert_eq!(told(host.safe().open("shop", "smtp"))[0].1, CANARY);
        fs::remove_file(host.0.path().join("keybearer.old-sealing-key")).unwrap();
        assert_eq!(told(host.safe().open("shop", "smtp"))[0].1, CANARY);
        assert_eq!(host.safe().look("shop", "smtp").unwrap(), before);
    }

    #[test]
    fn not_one_byte_can_be_changed_and_nothing_else_is_taken_for_it() {
        // S1, KEY-11
        let host = Host::new();
        put(&host.safe(), CANARY).unwrap();
        let (safe, path) = (host.safe(), host.path("shop.smtp.sealed"));
        let kept = fs::read(&path).unwrap();
        for at in 0..kept.len() {
            let mut changed = kept.clone();
            changed[at] ^= 1;
            fs::write(&path, changed).unwrap();
            let error = safe.open("shop", "smtp").unwrap_err().to_string();
            assert!(error.starts_with("shop.smtp: ") && !error.contains("canary"), "byte {at}: {error}");
        }
        let key = rcgen::KeyPair::generate().unwrap().serialize_pem();
        let open = String::from_utf8(kept.clone()).unwrap().lines().last().unwrap().to_owned();
        for garbage in ["", "hunter2\n", &key, &format!("{open}\n{key}"), &format!("{key}{open}\n")] {
            fs::write(&path, garbage).unwrap();
            let error = safe.open("shop", "smtp").unwrap_err();
            assert!(matches!(error.why, NotSafe::Strange(_)), "{garbage}: {error}");
            assert!(safe.look("shop", "smtp").is_err());
        }
        // What is there is replaced all the same by whoever puts in all of it.
        put(&safe, "b").unwrap();
        for half in 1..kept.len() {
            fs::write(&path, &kept[..half]).unwrap();
            assert!(safe.open("shop", "smtp").is_err(), "{half} bytes of it");
        }
    }

    #[test]
    fn a_file_or_directory_that_others_could_touch_is_refused() {
        // KEY-11
        let host = Host::new();
        put(&host.safe(), CANARY).unwrap();
        let (safe, path) = (host.safe(), host.path("shop.smtp.sealed"));
        for mode in [0o640, 0o604, 0o620, 0o700] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let error = safe.open("shop", "smtp").unwrap_err().to_string();
            assert!(error.starts_with("shop.smtp: KEY_PERM: "), "{mode:o}: {error}");
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let directory = host.path("");
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o770)).unwrap();
        assert!(safe.open("shop", "smtp").is_err() && put(&safe, "b").is_err());
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o700)).unwrap();
        assert_eq!(told(safe.open("shop", "smtp"))[0].1, CANARY, "nothing was lost");
        // A link is not followed, neither to be read nor to be written.
        let elsewhere = host.0.path().join("elsewhere");
        fs::rename(&path, &elsewhere).unwrap();
        symlink(&elsewhere, &path).unwrap();
        assert!(safe.open("shop", "smtp").is_err());
        let before = fs::read(&elsewhere).unwrap();
        put(&safe, "b").unwrap();
        assert_eq!(
            (fs::read(&elsewhere).unwrap(), told(safe.open("shop", "smtp"))[0].1.as_str()),
            (before, "b")
        );
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&path, Some(65533), None).unwrap();
            assert!(safe.open("shop", "smtp").unwrap_err().to_string().contains("KEY_PERM"));
        }
    }

    #[test]
    fn without_a_sealing_key_nothing_is_kept_and_what_cannot_be_kept_is_told() {
        // S1
        let host = Host::new();
        let plain = host.safe_with(Vault::default());
        let error = put(&plain, CANARY).unwrap_err().to_string();
        assert!(error.starts_with("shop.smtp: keys.sealed: ") && error.contains("systemd-creds"), "{error}");
        assert!(plain.can_seal("shop", "smtp").is_err() && !host.path("").exists());
        let safe = host.safe();
        put(&safe, CANARY).unwrap();
        let long = "x".repeat(LONGEST + 1);
        for (value, what) in
            [("", "password is empty"), ("a\0b", "has a NUL byte"), (&long, "is longer than 16 KiB")]
        {
            let error = put(&safe, value).unwrap_err().to_string();
            assert!(error.contains(what) && !error.contains("xx"), "{error}");
        }
        let raw = Values::from([("password".into(), Secret::new([0xff]))]);
        let error = safe.put("shop", "smtp", &raw, NOW.parse().unwrap()).unwrap_err().to_string();
        assert!(error.contains("is no UTF-8"), "{error}");
        let long = "x".repeat(LONGEST);
        let three = values(&[("a", &long), ("b", &long), ("c", &long)]);
        let error = safe.put("shop", "smtp", &three, NOW.parse().unwrap()).unwrap_err().to_string();
        assert!(error.contains("longer than 32 KiB"), "{error}");
        assert_eq!(told(safe.open("shop", "smtp"))[0].1, CANARY, "what lay there lies there still");
        let two = values(&[("a", &long), ("b", &long[..LONGEST - 2])]);
        safe.put("shop", "smtp", &two, NOW.parse().unwrap()).unwrap();
        assert_eq!(told(safe.open("shop", "smtp")).len(), 2, "as much as there may be");
    }

    #[test]
    fn what_the_service_manager_gives_is_read_anew_and_checked() {
        // S1
        let host = Host::new();
        let safe = host.safe();
        let given = |safe: &Safe| safe.given("shop", "smtp", "smtp-password");
        let error = given(&safe).unwrap_err().to_string();
        assert!(
            error.contains("shop.smtp: ") && error.contains("LoadCredentialEncrypted=smtp-password"),
            "{error}"
        );
        for (text, value) in [("one\n", "one"), ("two", "two"), ("thr\nee\n\n", "thr\nee\n")] {
            host.give("smtp-password", text.as_bytes());
            assert_eq!(given(&safe).unwrap().expose_str(), Some(value));
        }
        for text in ["", "\n", "a\0"] {
            host.give("smtp-password", text.as_bytes());
            assert!(
                given(&safe).unwrap_err().to_string().contains("the credential smtp-password "),
                "{text:?}"
            );
        }
        host.give("smtp-password", b"one");
        let path = host.0.path().join("smtp-password");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(given(&safe).unwrap_err().to_string().contains("KEY_PERM"));
        let nowhere = Safe { given: None, ..safe };
        assert!(matches!(given(&nowhere).unwrap_err().why, NotSafe::NotGiven(_)));
    }
}

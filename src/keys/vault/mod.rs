//! How key files are kept: sealed by a key that does not lie beside them, or as they are (KEY-11, S9). In go where a sealing
//! key may come from, and what a file is; out comes the text of that file, or the key that is in it.
//!
//! The sealing key is the service manager's to give, as a credential that only this host can decrypt, or lies in a file
//! outside the state directory. Whoever copies the state directory, or its backup, has nothing then. It never comes into
//! being here: one that was made in place of a lost one would open nothing.
//!
//! A sealed file begins with a PEM block of our own. Behind it stands what anybody may know: the public JWK, or the certificate,
//! so that public halves can be listed and exported where there is no sealing key, as in an operator's shell. What is sealed is
//! sealed for the file's role, whose it is, and all that stands open, and the text has one form only: a file opens at no other
//! identity's place, and not with one byte changed. It does open as another stage of the same key's rotation, for that is
//! done by renaming.
//!
//! What an older agent, or an operator, put there plain still opens. Where the name is one that we chose, it is sealed in place;
//! a file that an operator named is the operator's, and is only told of.

use std::{
    fmt, fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rustls_pki_types::{PrivatePkcs8KeyDer, pem::PemObject as _};
use zeroize::Zeroizing;

use super::{FileError, SealingKey, file};
use crate::{clock::Dice, secret::Secret};

/// The credential's name, as LoadCredentialEncrypted= has it.
pub const CREDENTIAL: &str = "keybearer.sealing-key";

/// The same for the key that sealed before, while files are sealed anew.
pub const OLD_CREDENTIAL: &str = "keybearer.old-sealing-key";

/// The label of what is sealed.
const LABEL: &str = "KEYBEARER SEALED KEY";

/// Where the key that seals key files comes from.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct SealSettings {
    /// Where the service manager puts credentials, if there is one (`$CREDENTIALS_DIRECTORY`). What is there comes first.
    pub credentials: Option<PathBuf>,
    /// A file outside the state directory.
    pub key: Option<PathBuf>,
    /// One that sealed before: it opens, and what it opened is sealed anew (K57-6).
    pub old_key: Option<PathBuf>,
    /// Whether there is no start without one.
    pub required: bool,
    /// Where keys are made that the settings name no other place for.
    pub directory: PathBuf,
}

impl SealSettings {
    /// Whether these alone, whatever the service manager gives, have key files sealed.
    pub fn names_a_key(&self) -> bool {
        self.key.is_some() || self.required
    }

    /// What to tell an operator whose key files are not sealed.
    pub fn advice(&self) -> String {
        format!(
            "key files are not sealed: whoever copies {} or its backup is the client until the keys are rotated; to change that, \
             give the unit the credential {CREDENTIAL} (systemd-creds encrypt), or name a file elsewhere as keys.sealing_key",
            self.directory.display()
        )
    }
}

/// How key files are kept here. By default as they are.
#[derive(Clone, Debug, Default)]
pub struct Vault(How);

#[derive(Clone, Debug, Default)]
enum How {
    #[default]
    Plain,
    Sealed(Arc<Lock>),
    /// There is no sealing key, and only public halves are wanted.
    Shut {
        required: bool,
    },
}

/// A sealing key, and what is done with it.
struct Lock {
    key: SealingKey,
    old: Vec<SealingKey>,
    /// Where the key is from, in words.
    from: String,
    /// Where the names are ours.
    directory: PathBuf,
    required: bool,
    /// Whether plain files are sealed where they are: the agent's to do, which is one.
    reseals: bool,
    dice: Arc<dyn Dice>,
}

impl Vault {
    /// The agent's.
    ///
    /// # Errors
    /// [`FileError`] if there is a sealing key that cannot be used, or none where one is required.
    pub fn open(settings: &SealSettings, dice: Arc<dyn Dice>) -> Result<Self, FileError> {
        match Lock::open(settings, true, dice)? {
            Some(lock) => Ok(Self(How::Sealed(Arc::new(lock)))),
            None if settings.required => Err(FileError::Unsealed),
            None => Ok(Self::default()),
        }
    }

    /// One for whoever only looks: nothing is sealed anew, and without a sealing key public halves can be had.
    ///
    /// # Errors
    /// [`FileError`] if there is a sealing key that cannot be used.
    pub fn to_look(settings: &SealSettings, dice: Arc<dyn Dice>) -> Result<Self, FileError> {
        let lock = Lock::open(settings, false, dice)?;
        Ok(Self(lock.map_or(How::Shut { required: settings.required }, |lock| How::Sealed(Arc::new(lock)))))
    }

    /// Where the key is from that seals, in words; none if nothing is sealed.
    pub fn sealed_by(&self) -> Option<&str> {
        match &self.0 {
            How::Sealed(lock) => Some(&lock.from),
            How::Plain | How::Shut { .. } => None,
        }
    }
}

impl Lock {
    fn open(settings: &SealSettings, reseals: bool, dice: Arc<dyn Dice>) -> Result<Option<Self>, FileError> {
        let credential = |name: &str| match &settings.credentials {
            Some(directory) => match sealing_key(&directory.join(name)) {
                Err(FileError::Io { error, .. }) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                key => key.map(Some),
            },
            None => Ok(None),
        };
        let named = |path: &PathBuf| match sealing_key(path) {
            Err(FileError::Io { error, path }) if error.kind() == io::ErrorKind::NotFound => {
                Err(FileError::SealingKey { path, what: "is not there" })
            }
            key => key,
        };
        let old = [credential(OLD_CREDENTIAL)?, settings.old_key.as_ref().map(named).transpose()?];
        let (key, from) = match (credential(CREDENTIAL)?, &settings.key) {
            (Some(key), _) => (key, format!("the credential {CREDENTIAL}")),
            (None, Some(path)) => (named(path)?, path.display().to_string()),
            (None, None) => return Ok(None),
        };
        let (directory, required) = (settings.directory.clone(), settings.required);
        Ok(Some(Self {
            key,
            old: old.into_iter().flatten().collect(),
            from,
            directory,
            required,
            reseals,
            dice,
        }))
    }
}

/// Reads a sealing key: chance, as many bytes as there are.
fn sealing_key(path: &Path) -> Result<SealingKey, FileError> {
    let seed = file::read_entrusted(path)?;
    let wrong = |what| Err(FileError::SealingKey { path: path.into(), what });
    if seed.len() < 32 {
        return wrong("is shorter than 32 bytes");
    }
    // What a disk that was full, or a power cut, leaves of a file.
    if seed.iter().all(|byte| *byte == seed[0]) {
        return wrong("holds one byte over and over");
    }
    Ok(SealingKey::of(&Secret::new(seed.as_slice())))
}

impl fmt::Debug for Lock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lock({})", self.from)
    }
}

/// What a key file is, and how it is kept: it opens as nothing else.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot<'a> {
    vault: &'a Vault,
    role: &'static str,
    /// Which identity's; the agent's own if none.
    whose: Option<&'a str>,
}

/// What was found in a key file.
pub(super) struct Found {
    /// The key; none if it is sealed and only public halves are wanted.
    pub(super) pkcs8: Option<Secret>,
    /// What stands open in it.
    pub(super) open: Zeroizing<Vec<u8>>,
    /// Whether it should be sealed, or sealed anew.
    pub(super) stale: bool,
}

impl<'a> Slot<'a> {
    /// The key of an identity.
    pub(super) fn of(vault: &'a Vault, role: &'static str, identity: &'a str) -> Self {
        Self { vault, role, whose: Some(identity) }
    }

    /// A key of the agent's own.
    pub(super) fn own(vault: &'a Vault, role: &'static str) -> Self {
        Self { vault, role, whose: None }
    }

    /// Whether what is written is sealed.
    pub(super) fn seals(&self) -> bool {
        matches!(self.vault.0, How::Sealed(_))
    }

    /// Whether a file that cannot be sealed is no file.
    pub(super) fn insists(&self) -> bool {
        matches!(&self.vault.0, How::Sealed(lock) if lock.required)
    }

    /// The text of a file with `pkcs8` in it and `open` beside it.
    pub(super) fn text(
        &self,
        path: &Path,
        pkcs8: &Secret,
        open: &str,
    ) -> Result<Zeroizing<String>, FileError> {
        let lock = match &self.vault.0 {
            How::Sealed(lock) => lock,
            // A key that is made plain here would lie beside sealed ones.
            How::Shut { required } if *required || holds_sealed(path) => {
                return Err(FileError::NoSealingKey { path: path.into() });
            }
            How::Plain | How::Shut { .. } => {
                let key = file::pem("PRIVATE KEY", pkcs8.expose());
                // A string that grows leaves a copy of the key behind.
                let mut text = Zeroizing::new(String::with_capacity(key.len() + open.len()));
                text.extend([key.as_str(), open]);
                return Ok(text);
            }
        };
        let sealed = lock.key.seal(self.purpose(open.as_bytes()), pkcs8, &*lock.dice);
        let sealed = sealed.ok_or(FileError::Unusable)?;
        Ok(Zeroizing::new(format!("{}{open}", *file::pem(LABEL, &sealed))))
    }

    /// What is in the file at `path`, whose text this is.
    pub(super) fn found(&self, path: &Path, text: &[u8]) -> Result<Found, FileError> {
        let Some((sealed, open)) = parts(text) else {
            let der = PrivatePkcs8KeyDer::from_pem_slice(text)
                .map_err(|_| FileError::NotPkcs8 { path: path.into() })?;
            let pkcs8 = Some(Secret::new(der.secret_pkcs8_der()));
            let stale =
                matches!(&self.vault.0, How::Sealed(lock) if lock.reseals && self.is_named_by_us(path, lock));
            return Ok(Found { pkcs8, open: Zeroizing::new(text.to_vec()), stale });
        };
        let found = |pkcs8, stale| Found { pkcs8, open: Zeroizing::new(open.to_vec()), stale };
        let purpose = self.purpose(open);
        let lock = match &self.vault.0 {
            How::Plain => return Err(FileError::NoSealingKey { path: path.into() }),
            How::Shut { .. } => return Ok(found(None, false)),
            How::Sealed(lock) => lock,
        };
        if let Some(pkcs8) = lock.key.unseal(&purpose, &sealed) {
            return Ok(found(Some(pkcs8), false));
        }
        let opened = lock.old.iter().find_map(|old| old.unseal(&purpose, &sealed));
        let pkcs8 = opened.ok_or_else(|| FileError::Sealed { path: path.into(), what: self.to_string() })?;
        Ok(found(Some(pkcs8), lock.reseals))
    }

    /// What the key of a file is sealed for. No name has a line feed in it.
    fn purpose(&self, open: &[u8]) -> Vec<u8> {
        let what = format!("key file\n{}\n{}\n", self.role, self.whose.unwrap_or_default());
        [what.as_bytes(), open].concat()
    }

    /// Whether the file has the name that we give it where the settings name none, or stands beside one that has.
    fn is_named_by_us(&self, path: &Path, lock: &Lock) -> bool {
        let Some(whose) = self.whose else { return true };
        let home = default_path(&lock.directory, whose, self.role);
        path == home || file::STAGES.iter().any(|stage| path == file::beside(&home, stage))
    }
}

impl fmt::Display for Slot<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.whose {
            Some(whose) => write!(f, "{} key of {whose}", self.role),
            None => write!(f, "{} key", self.role),
        }
    }
}

/// Where the key of an identity is, if the settings name no other place.
pub fn default_path(directory: &Path, identity: &str, role: &str) -> PathBuf {
    directory.join(format!("{identity}.{role}.pem"))
}

/// The sealed bytes, and what stands open behind them. None if nothing is sealed in it. The text has one form only: what was
/// written in another was not written by us, and does not open.
pub(super) fn parts(text: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let (begin, end) = (format!("-----BEGIN {LABEL}-----\n"), format!("-----END {LABEL}-----\n"));
    let body = text.strip_prefix(begin.as_bytes())?;
    let at = body.windows(end.len()).position(|window| window == end.as_bytes()).unwrap_or(body.len());
    let (body, open) = body.split_at(at);
    let open = open.get(end.len()..).unwrap_or_default();
    let joined: Vec<u8> = body.iter().copied().filter(|byte| *byte != b'\n').collect();
    let sealed = STANDARD.decode(joined).unwrap_or_default();
    let same = file::pem(LABEL, &sealed).as_bytes() == &text[..text.len() - open.len()];
    Some((if same { sealed } else { vec![] }, open))
}

/// Whether the file at `path` is sealed. False where it is not there, or cannot be read.
fn is_sealed(path: &Path) -> bool {
    let begin = format!("-----BEGIN {LABEL}-----\n");
    let mut first = vec![0; begin.len()];
    let read = file::open_itself(path).is_ok_and(|mut file| file.read_exact(&mut first).is_ok());
    read && first == begin.as_bytes()
}

/// Whether keys beside `path` are sealed.
fn holds_sealed(path: &Path) -> bool {
    let entries = path.parent().and_then(|directory| fs::read_dir(directory).ok());
    entries.into_iter().flatten().flatten().any(|entry| is_sealed(&entry.path()))
}

/// Those of `files`, and of what lies beside them, that are there and not sealed: whoever copies them can use them.
pub fn unsealed<'a>(files: impl IntoIterator<Item = &'a Path>) -> Vec<PathBuf> {
    let stages = |path: &Path| {
        let beside = file::STAGES.map(|stage| file::beside(path, stage));
        [path.to_owned()].into_iter().chain(beside)
    };
    let there = files.into_iter().flat_map(stages).filter(|path| path.exists());
    there.filter(|path| !is_sealed(path)).collect()
}

#[cfg(test)]
mod tests;

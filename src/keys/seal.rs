//! What has to outlive the process and must not be read: sealed. In go bytes and what they are for; out come bytes that only
//! the same key opens, and only for the same use.
//!
//! There are two such keys. The one of the vault (`vault.rs`) is given to the agent and seals key files. The one that is opened
//! here is a key file like every other (KEY-11), sealed by the first where there is one; what it seals is kept elsewhere, so
//! that neither place alone tells anything.

use std::{
    fmt,
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use ring::{aead, hkdf};
use serde::{Serialize, de::DeserializeOwned};
use zeroize::Zeroizing;

use super::{FileError, Vault, file, vault::Slot};
use crate::{clock::Dice, jose::Algorithm, secret::Secret};

/// The key that seals.
#[derive(Clone)]
pub struct SealingKey(hkdf::Prk);

impl SealingKey {
    /// Opens the key at `path`, or makes one there, as `vault` keeps files.
    ///
    /// # Errors
    /// [`FileError`] as for every key file.
    pub fn open(path: &Path, vault: &Vault) -> Result<Self, FileError> {
        let slot = Slot::own(vault, "revocations");
        // The file is that of an Ed25519 key, whose form and checks are there; it signs nothing, its bytes are the seed.
        Ok(Self::of(&file::open_or_make_pkcs8(path, Algorithm::EdDsa, slot)?))
    }

    /// The key of this seed.
    pub fn of(seed: &Secret) -> Self {
        Self(hkdf::Salt::new(hkdf::HKDF_SHA256, b"keybearer sealing key").extract(seed.expose()))
    }

    /// Seals `plain` for `purpose`. None if it is longer than anything can be sealed at once.
    pub fn seal(&self, purpose: impl AsRef<[u8]>, plain: &Secret, dice: &dyn Dice) -> Option<Vec<u8>> {
        let mut chance = [0; aead::NONCE_LEN];
        dice.fill(&mut chance);
        let mut sealed = plain.expose().to_vec();
        let nonce = aead::Nonce::assume_unique_for_key(chance);
        self.key(purpose.as_ref())?.seal_in_place_append_tag(nonce, aead::Aad::empty(), &mut sealed).ok()?;
        Some([&chance[..], &sealed].concat())
    }

    /// Opens what was sealed for `purpose`. None if it was not, or by another key, or was changed.
    pub fn unseal(&self, purpose: impl AsRef<[u8]>, sealed: &[u8]) -> Option<Secret> {
        let (chance, sealed) = sealed.split_at_checked(aead::NONCE_LEN)?;
        let nonce = aead::Nonce::try_assume_unique_for_key(chance).ok()?;
        let mut opened = sealed.to_vec();
        let length =
            self.key(purpose.as_ref())?.open_in_place(nonce, aead::Aad::empty(), &mut opened).ok()?.len();
        opened.truncate(length);
        Some(Secret::new(opened))
    }

    /// A key of its own for each use: what is sealed for one opens for no other.
    fn key(&self, purpose: &[u8]) -> Option<aead::LessSafeKey> {
        let info = [purpose];
        let okm = self.0.expand(&info, &aead::AES_256_GCM).ok()?;
        Some(aead::LessSafeKey::new(okm.into()))
    }
}

impl fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SealingKey(..)")
    }
}

/// What one agent leaves for the next, in one sealed file.
#[derive(Debug)]
pub struct SealedFile {
    path: PathBuf,
    key: SealingKey,
    /// What the bytes are sealed for.
    purpose: &'static str,
    dice: Arc<dyn Dice>,
}

/// Why what was left cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SealedFileError {
    /// The file system said no.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Another key sealed it, or for something else; it was changed, or written by an agent of another version.
    #[error("it was sealed by another key or changed, or it is of another version")]
    Foreign,
}

impl SealedFile {
    /// A file at `path`, sealed with `key` for `purpose`.
    pub fn new(path: PathBuf, key: SealingKey, purpose: &'static str, dice: Arc<dyn Dice>) -> Self {
        Self { path, key, purpose, dice }
    }

    /// One for the same at another place.
    #[must_use]
    pub fn elsewhere(&self, path: PathBuf) -> Self {
        Self { path, key: self.key.clone(), purpose: self.purpose, dice: Arc::clone(&self.dice) }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Leaves this; there is always what was left before or this, whole.
    ///
    /// # Errors
    /// What was left before is there still.
    pub fn write(&self, what: &impl Serialize) -> io::Result<()> {
        let mut plain = plain(what)?;
        let plain = Secret::new(std::mem::take(&mut *plain));
        let sealed = self.key.seal(self.purpose, &plain, &*self.dice);
        let sealed = sealed.ok_or_else(|| io::Error::other("it cannot be sealed"))?;
        let beside = self.path.with_extension("new");
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
        file.write_all(&sealed)?;
        fs::rename(&beside, &self.path)
    }

    /// What was left; nothing if there is no file.
    ///
    /// # Errors
    /// [`SealedFileError`].
    pub fn read<T: DeserializeOwned>(&self) -> Result<Option<T>, SealedFileError> {
        let sealed = match fs::read(&self.path) {
            Ok(sealed) => sealed,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let plain = self.key.unseal(self.purpose, &sealed).ok_or(SealedFileError::Foreign)?;
        serde_json::from_slice(plain.expose()).map(Some).map_err(|_| SealedFileError::Foreign)
    }

    /// Takes the file away, if it is there.
    ///
    /// # Errors
    /// It is there still.
    pub fn remove(&self) -> io::Result<()> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// As JSON, in room for exactly that: a buffer that grows leaves copies of secrets behind, and an estimate of the room knows nothing of
/// the characters that JSON escapes. So it is counted first.
fn plain(what: &impl Serialize) -> io::Result<Zeroizing<Vec<u8>>> {
    struct Counted(usize);
    impl io::Write for Counted {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut counted = Counted(0);
    serde_json::to_writer(&mut counted, what)?;
    let mut plain = Zeroizing::new(Vec::with_capacity(counted.0));
    serde_json::to_writer(&mut *plain, what)?;
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemDice;

    #[test]
    fn what_is_kept_is_written_once_and_nowhere_left_behind() {
        // KEY-02: each of these characters is six in JSON.
        for value in ["\u{1}".repeat(100_000), "\"\\".repeat(1000), String::new()] {
            let plain = plain(&serde_json::json!({ "token": value })).unwrap();
            assert_eq!(plain.capacity(), plain.len(), "it did not grow");
        }
    }

    #[test]
    fn what_is_sealed_opens_for_the_same_key_and_use_only() {
        let dice = SystemDice::shared();
        let (key, other) = (SealingKey::of(&Secret::new("seed")), SealingKey::of(&Secret::new("seeds")));
        let sealed = key.seal("a", &Secret::new("canary"), &*dice).unwrap();
        assert!(!sealed.windows(6).any(|window| window == b"canary"));
        assert_eq!(key.unseal("a", &sealed).unwrap().expose(), b"canary");
        assert!(key.unseal("b", &sealed).is_none() && other.unseal("a", &sealed).is_none());
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(key.unseal("a", &changed).is_none(), "byte {at}");
        }
        assert!(key.unseal("a", b"short").is_none());
        assert_ne!(
            key.seal("a", &Secret::new("canary"), &*dice).unwrap(),
            sealed,
            "never the same bytes twice"
        );
    }

    #[test]
    fn the_key_file_is_checked_like_any_other() {
        // KEY-11
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        let path = dir.path().join("seal.pem");
        let sealed = SealingKey::open(&path, &Vault::default())
            .unwrap()
            .seal("a", &Secret::new("x"), &*SystemDice::shared())
            .unwrap();
        assert_eq!(
            SealingKey::open(&path, &Vault::default()).unwrap().unseal("a", &sealed).unwrap().expose(),
            b"x"
        );
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(SealingKey::open(&path, &Vault::default()), Err(FileError::Perm { .. })));
    }
}

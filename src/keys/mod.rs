//! Custody: keys go in, signatures come out. In goes a purpose; out comes a [`Signer`]. Private bytes never
//! leave this room: no type here returns them.

mod certificate;
mod file;
mod memory;
mod note;
mod seal;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::PathBuf,
    sync::Arc,
};

pub use certificate::{
    CertificateError, CertificateSettings, Certificates, ClientCertificate, Name, NotShown, Showing, SignedBy,
};
pub use file::FileError;
pub use memory::Key;
pub use note::{Checkpoint, CheckpointKey, NoteError, Verifier};
pub use seal::SealingKey;

use crate::jose::{Algorithm, Signer};

/// What a key is for. Each purpose has a key of its own (KEY-01).
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Purpose {
    /// Signs client assertions (private_key_jwt).
    ClientAuth,
    /// Signs proofs for the tokens of this issuer (DPOP-14). In memory only: a token that it binds is no older than the agent.
    Dpop(Arc<str>),
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ClientAuth => f.write_str("client-auth"),
            Self::Dpop(issuer) => write!(f, "dpop at {issuer}"),
        }
    }
}

/// Where one identity's keys live.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Custody {
    /// Made at each start, gone at each stop: the issuer must learn it anew, so for development and tests.
    Memory,
    /// A PKCS#8 file, mode 0600 in a directory of mode 0700. Made at first use unless the operator put one there.
    File {
        /// The file.
        path: PathBuf,
    },
}

/// One identity's wish for its keys.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct KeySettings {
    /// Where the key lives.
    pub custody: Custody,
    /// What it signs with.
    pub algorithm: Algorithm,
    /// The issuers whose tokens it wants bound by DPoP.
    pub dpop: BTreeSet<Arc<str>>,
}

/// A key that binds tokens. ES256, which every server that knows DPoP can read.
fn proof_key() -> Result<Arc<dyn Signer>, FileError> {
    Ok(Arc::new(Key::generate(Algorithm::Es256)?))
}

/// All keys in custody, by identity and purpose. Keys of different identities are never the same key.
#[derive(Clone, Debug, Default)]
pub struct Keyring(BTreeMap<(Arc<str>, Purpose), Arc<dyn Signer>>);

impl Keyring {
    /// Opens or makes the keys that `wanted` asks for. A key in memory that `before` holds under the same
    /// settings stays, so that a reload does not make the issuer forget us.
    ///
    /// # Errors
    /// Every [`KeyError`], not only the first, so that one look mends all.
    pub fn open(wanted: &BTreeMap<Arc<str>, KeySettings>, before: &Self) -> Result<Self, Vec<KeyError>> {
        let mut ring = BTreeMap::new();
        let mut errors = Vec::new();
        for (identity, settings) in wanted {
            let slot = (Arc::clone(identity), Purpose::ClientAuth);
            let kept = before
                .0
                .get(&slot)
                .filter(|kept| settings.custody == Custody::Memory && kept.algorithm() == settings.algorithm);
            let opened: Result<Arc<dyn Signer>, FileError> = match (&settings.custody, kept) {
                (Custody::Memory, Some(kept)) => Ok(Arc::clone(kept)),
                (Custody::Memory, None) => Key::generate(settings.algorithm).map(|key| Arc::new(key) as _),
                (Custody::File { path }, _) => {
                    file::open_or_make(path, settings.algorithm).map(|key| Arc::new(key) as _)
                }
            };
            match opened {
                Ok(key) => {
                    ring.insert(slot, key);
                }
                Err(error) => errors.push(KeyError { identity: Arc::clone(identity), error }),
            }
            for issuer in &settings.dpop {
                let slot = (Arc::clone(identity), Purpose::Dpop(Arc::clone(issuer)));
                let kept = before.0.get(&slot).cloned();
                match kept.map_or_else(proof_key, Ok) {
                    Ok(key) => {
                        ring.insert(slot, key);
                    }
                    Err(error) => errors.push(KeyError { identity: Arc::clone(identity), error }),
                }
            }
        }
        // KEY-01: two identities that share a file share a key; that is refused however it came about.
        let mut seen: BTreeMap<&str, &Arc<str>> = BTreeMap::new();
        for ((identity, _), key) in &ring {
            if let Some(other) = seen.insert(key.kid(), identity) {
                let error = FileError::Shared { other: other.to_string() };
                errors.push(KeyError { identity: Arc::clone(identity), error });
            }
        }
        if errors.is_empty() { Ok(Self(ring)) } else { Err(errors) }
    }

    /// The key of `identity` for `purpose`.
    pub fn signer(&self, identity: &Arc<str>, purpose: Purpose) -> Option<Arc<dyn Signer>> {
        self.0.get(&(Arc::clone(identity), purpose)).cloned()
    }

    /// Every key, for listings and exports; public halves are all one gets from them.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Purpose, &dyn Signer)> {
        self.0.iter().map(|((identity, purpose), key)| (&**identity, purpose, &**key))
    }

    /// The keys that issuers have to know: those that prove who asks.
    pub fn to_register(&self) -> impl Iterator<Item = (&str, &dyn Signer)> {
        self.iter()
            .filter(|(_, purpose, _)| **purpose == Purpose::ClientAuth)
            .map(|(name, _, key)| (name, key))
    }
}

/// A key that could not be opened, and whose it is.
#[derive(Debug, thiserror::Error)]
#[error("identities.{identity}.key: {error}")]
pub struct KeyError {
    /// The identity that wants it.
    pub identity: Arc<str>,
    /// What is wrong.
    #[source]
    pub error: FileError,
}

#[cfg(test)]
mod tests;

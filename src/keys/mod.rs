//! Custody: keys go in, signatures come out. In goes a purpose; out comes a [`Signer`]. Private bytes never
//! leave this room: no type here returns them.

pub mod bootstrap;
mod certificate;
mod file;
mod look;
mod machine;
mod memory;
mod note;
mod proofs;
mod remains;
pub mod rotation;
mod safe;
mod seal;
mod vault;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

pub use certificate::{
    CertificateError, CertificateSettings, Certificates, ClientCertificate, Ending, Enrolment, KeyKind, Name,
    NotShown, PairFile, Place, Rotated, Showing, SignedBy, Subject, Urgency, certificate_pem, endings,
};
pub use file::{FileError, read_secret};
pub use look::{Looked, looked};
pub use machine::{Home, HomeError, MACHINE_ID};
pub use memory::Key;
pub use note::{Checkpoint, CheckpointKey, NoteError, Verifier};
pub use proofs::ProofKeeper;
use proofs::{Sealed, Whose};
pub use remains::{Workshop, destroy, remains};
pub use rotation::{Due, Now};
use rotation::{Held, Stage};
pub use safe::{Kept, NotSafe, SEALED_VALUES, Safe, SafeError, Values, unfit};
pub use seal::{SealedFile, SealedFileError, SealingKey};
use vault::Slot;
pub use vault::{CREDENTIAL, SealSettings, Vault, default_path, unsealed};

use crate::{
    clock::Boot,
    jose::{Algorithm, Signer},
};

/// What a key is for. Each purpose has a key of its own (KEY-01).
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Purpose {
    /// Signs client assertions (private_key_jwt).
    ClientAuth,
    /// Signs proofs for the tokens of this issuer (DPOP-14). In memory, and over a restart sealed beside the tokens that it binds.
    Dpop(Arc<str>),
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ClientAuth => f.write_str(CLIENT_AUTH),
            Self::Dpop(issuer) => write!(f, "dpop at {issuer}"),
        }
    }
}

/// What the file of such a key is called.
pub const CLIENT_AUTH: &str = "client-auth";

/// What the file is called that has the key of a client certificate in it.
pub const CLIENT_CERTIFICATE: &str = "client-certificate";

/// What the file is called that has the key of a certificate of a CA's in it, behind the name of the credential.
pub const CREDENTIAL_CERTIFICATE: &str = "certificate";

/// Where one identity's keys live.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Custody {
    /// Made at each start, gone at each stop: the issuer must learn it anew, so for development and tests.
    Memory,
    /// A file, sealed or PKCS#8 as it is, mode 0600 in a directory of mode 0700. Made at first use unless the operator put one there.
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
    /// When it makes room for another.
    pub rotation: RotationSettings,
    /// Whether it proves who asks with a key of its own: where nothing does, none is made.
    pub client: bool,
    /// The issuers whose tokens it wants bound by DPoP.
    pub dpop: BTreeSet<Arc<str>>,
}

/// When a key makes room for another.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RotationSettings {
    /// How old it may become; at most [`rotation::MAX_AGE`] (KEY-08).
    pub every: Duration,
    /// How long the next is published before it signs (KEY-05).
    pub propagation: Duration,
}

impl Default for RotationSettings {
    fn default() -> Self {
        Self { every: Duration::from_secs(30 * 24 * 60 * 60), propagation: rotation::PROPAGATION }
    }
}

/// All keys in custody, by identity and purpose. Keys of different identities are never the same key.
#[derive(Clone, Debug, Default)]
pub struct Keyring {
    held: BTreeMap<(Arc<str>, Purpose), Held>,
    settings: BTreeMap<Arc<str>, KeySettings>,
    vault: Vault,
    /// How keys that bind tokens are kept over a restart; without it, they are not.
    keeper: Option<Arc<ProofKeeper>>,
    /// Those of them that are held, sealed.
    sealed: BTreeMap<Whose, Sealed>,
}

impl Keyring {
    /// No keys yet; the files of those that come are kept as `vault` says.
    pub fn within(vault: Vault) -> Self {
        Self { vault, ..Self::default() }
    }

    /// The same, whose keys that bind tokens are kept over a restart.
    #[must_use]
    pub fn keeping_proofs(self, keeper: ProofKeeper) -> Self {
        Self { keeper: Some(Arc::new(keeper)), ..self }
    }

    /// Leaves the keys that bind tokens for the next agent.
    ///
    /// # Errors
    /// They are not left: what they bind is nothing to the next agent.
    pub fn leave_proofs(&self, now: Boot) -> io::Result<()> {
        let Some(keeper) = &self.keeper else { return Ok(()) };
        keeper.leave(self.sealed.iter().filter_map(|(whose, sealed)| {
            let held = self.held.get(&(Arc::clone(&whose.0), Purpose::Dpop(Arc::clone(&whose.1))))?;
            Some((whose, sealed, now - held.since.age(now)))
        }))
    }

    /// Takes away what an agent before this one left: from now on, this one runs.
    pub fn forget_left(&self) {
        if let Some(keeper) = &self.keeper {
            keeper.forget();
        }
    }

    /// A fresh key that binds tokens. ES256, which every server that knows DPoP can read.
    fn fresh_proof(&mut self, whose: &Whose, now: Now) -> Result<Held, FileError> {
        let (key, sealed) = match &self.keeper {
            Some(keeper) => keeper.fresh(whose)?,
            None => (Arc::new(Key::generate(Algorithm::Es256)?) as _, None),
        };
        match sealed {
            Some(sealed) => self.sealed.insert(whose.clone(), sealed),
            None => self.sealed.remove(whose),
        };
        Ok(Held::fresh(key, now))
    }

    /// How the files are kept.
    pub fn vault(&self) -> &Vault {
        &self.vault
    }

    /// Opens or makes the keys that `wanted` asks for, in the vault of `before`. A key in memory that `before` holds under the
    /// same settings stays, so that a reload does not make the issuer forget us.
    ///
    /// # Errors
    /// Every [`KeyError`], not only the first, so that one look mends all.
    pub fn open(
        wanted: &BTreeMap<Arc<str>, KeySettings>,
        before: &Self,
        now: Now,
    ) -> Result<Self, Vec<KeyError>> {
        let mut ring = Self { keeper: before.keeper.clone(), ..Self::within(before.vault.clone()) };
        let mut held = BTreeMap::new();
        let mut errors = Vec::new();
        for (identity, settings) in wanted {
            let client = (Arc::clone(identity), Purpose::ClientAuth);
            let kept = before.held.get(&client).filter(|kept| {
                settings.custody == Custody::Memory && kept.signing.algorithm() == settings.algorithm
            });
            let opened = settings.client.then(|| match (&settings.custody, kept) {
                (Custody::Memory, Some(kept)) => Ok(kept.clone()),
                (Custody::Memory, None) => {
                    Key::generate(settings.algorithm).map(|key| Held::fresh(Arc::new(key), now))
                }
                (Custody::File { path }, _) => {
                    Held::open(path, settings, Slot::of(&before.vault, CLIENT_AUTH, identity), now)
                }
            });
            let mut proofs = Vec::new();
            for issuer in &settings.dpop {
                let slot = (Arc::clone(identity), Purpose::Dpop(Arc::clone(issuer)));
                let whose = (Arc::clone(identity), Arc::clone(issuer));
                let sealed = before.sealed.get(&whose).cloned();
                let kept = before.held.get(&slot).map(|held| (held.clone(), sealed));
                let left = || before.left_proof(&whose).map(|(held, sealed)| (held, Some(sealed)));
                let held = match kept.or_else(left) {
                    Some((held, sealed)) => {
                        ring.sealed.extend(sealed.map(|sealed| (whose, sealed)));
                        Ok(held)
                    }
                    None => ring.fresh_proof(&whose, now),
                };
                proofs.push((slot, held));
            }
            for (slot, opened) in opened.map(|opened| (client, opened)).into_iter().chain(proofs) {
                match opened {
                    Ok(key) => drop(held.insert(slot, key)),
                    Err(error) => errors.push(KeyError { identity: Arc::clone(identity), error }),
                }
            }
        }
        // KEY-01: two identities that share a file share a key; that is refused however it came about.
        let mut seen: BTreeMap<&str, &Arc<str>> = BTreeMap::new();
        for ((identity, _), held) in &held {
            for key in held.published() {
                if let Some(other) = seen.insert(key.kid(), identity) {
                    let error = FileError::Shared { other: other.to_string() };
                    errors.push(KeyError { identity: Arc::clone(identity), error });
                }
            }
        }
        if errors.is_empty() { Ok(Self { held, settings: wanted.clone(), ..ring }) } else { Err(errors) }
    }

    /// The key of `identity` that signs for `purpose` now.
    pub fn signer(&self, identity: &Arc<str>, purpose: Purpose) -> Option<Arc<dyn Signer>> {
        self.held.get(&(Arc::clone(identity), purpose)).map(|held| Arc::clone(&held.signing))
    }

    /// The key that proved who `identity` is before the one that does now, while it is kept (KEY-06).
    pub fn before(&self, identity: &Arc<str>) -> Option<Arc<dyn Signer>> {
        match &self.client(identity)?.stage {
            Stage::Overlap { before, .. } => Some(Arc::clone(before)),
            _ => None,
        }
    }

    /// The key that will prove who `identity` is, if it is published.
    pub fn next(&self, identity: &Arc<str>) -> Option<Arc<dyn Signer>> {
        match &self.client(identity)?.stage {
            Stage::Published { next, .. } => Some(Arc::clone(next)),
            _ => None,
        }
    }

    /// How long the next key of `identity` is published before it is tried.
    pub fn propagation(&self, identity: &Arc<str>) -> Option<Duration> {
        self.settings.get(identity).map(|settings| settings.rotation.propagation)
    }

    /// How long `identity`'s key has signed.
    pub fn age(&self, identity: &Arc<str>, now: Boot) -> Option<Duration> {
        Some(self.client(identity)?.since.age(now))
    }

    /// What is due with whose key.
    pub fn due(&self, now: Boot) -> Vec<(Arc<str>, Due)> {
        let due = self.settings.iter().filter_map(|(identity, settings)| {
            Some((Arc::clone(identity), self.client(identity)?.due(settings, now)?))
        });
        due.collect()
    }

    /// The same keys, with the next one of `identity` made and published (KEY-05).
    ///
    /// # Errors
    /// [`KeyError`]; what there was stays.
    pub fn begin(&self, identity: &Arc<str>, now: Now) -> Result<Self, KeyError> {
        self.turned(identity, |held, settings, slot| held.begin(settings, slot, now))
    }

    /// The same, with the next one signing.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn switch(&self, identity: &Arc<str>, now: Now) -> Result<Self, KeyError> {
        self.turned(identity, |held, settings, _| held.switch(settings, now))
    }

    /// The same, with the one before destroyed.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn finish(&self, identity: &Arc<str>) -> Result<Self, KeyError> {
        self.turned(identity, |held, settings, _| held.finish(settings))
    }

    /// The same, with another key at once and whatever there was destroyed (KEY-07). Those that bind tokens
    /// stay.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn replace(&self, identity: &Arc<str>, now: Now) -> Result<Self, KeyError> {
        self.turned(identity, |held, settings, slot| held.replace(settings, slot, now))
    }

    /// The same, with other keys for what is bound from now on; what is bound already keeps its own (DPOP-14).
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn with_new_proofs(&self, identity: &Arc<str>, now: Now) -> Result<Self, KeyError> {
        let mut ring = self.clone();
        for slot in self.held.keys().filter(|(name, _)| name == identity) {
            let (_, Purpose::Dpop(issuer)) = slot else { continue };
            let fresh = ring.fresh_proof(&(Arc::clone(identity), Arc::clone(issuer)), now);
            let fresh = fresh.map_err(|error| KeyError { identity: Arc::clone(identity), error })?;
            ring.held.insert(slot.clone(), fresh);
        }
        Ok(ring)
    }

    /// Those whose keys for proofs are older than `age` (K57-2).
    pub fn with_old_proofs(&self, age: Duration, now: Boot) -> BTreeSet<Arc<str>> {
        let old = self
            .held
            .iter()
            .filter(|((_, purpose), held)| matches!(purpose, Purpose::Dpop(_)) && held.since.age(now) >= age);
        old.map(|((identity, _), _)| Arc::clone(identity)).collect()
    }

    /// Every key that signs, for listings; public halves are all one gets from them.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Purpose, &dyn Signer)> {
        self.held.iter().map(|((identity, purpose), held)| (&**identity, purpose, &*held.signing))
    }

    /// The keys that issuers have to know: those that prove who asks, the next and the one before too.
    pub fn to_register(&self) -> impl Iterator<Item = (&str, &dyn Signer)> {
        let theirs = self.held.iter().filter(|((_, purpose), _)| *purpose == Purpose::ClientAuth);
        theirs.flat_map(|((name, _), held)| held.published().map(move |key| (&**name, &**key)))
    }

    /// What an agent before this one left, for the first that asks for it: whoever has keys already has had it.
    fn left_proof(&self, whose: &Whose) -> Option<(Held, Sealed)> {
        if self.settings.is_empty() { self.keeper.as_ref()?.left(whose) } else { None }
    }

    fn client(&self, identity: &Arc<str>) -> Option<&Held> {
        self.held.get(&(Arc::clone(identity), Purpose::ClientAuth))
    }

    fn turned(
        &self,
        identity: &Arc<str>,
        turn: impl FnOnce(&mut Held, &KeySettings, Slot<'_>) -> Result<(), FileError>,
    ) -> Result<Self, KeyError> {
        let mut ring = self.clone();
        let slot = (Arc::clone(identity), Purpose::ClientAuth);
        if let (Some(held), Some(settings)) = (ring.held.get_mut(&slot), self.settings.get(identity)) {
            let slot_of_file = Slot::of(&self.vault, CLIENT_AUTH, identity);
            turn(held, settings, slot_of_file)
                .map_err(|error| KeyError { identity: Arc::clone(identity), error })?;
        }
        Ok(ring)
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

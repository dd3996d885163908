//! Keys that bind tokens (DPoP), made here and kept in memory. In goes whose key it is to be; out comes a [`Held`] key. What a token
//! is bound to has to live as long as the token, over a restart of the agent too: so each key is sealed when it is made, the
//! sealed bytes are all that is remembered of its private half beside the key itself, and they are left for the next agent of the
//! same boot when this one stops in order. What was left is there until an agent runs with it: a start that fails loses nothing.

use std::{
    collections::BTreeMap,
    fmt, io,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};

use super::{
    FileError, Key, SealedFile, SealingKey,
    rotation::{Held, Since},
};
use crate::{
    clock::{Boot, Dice},
    jose::{Algorithm, Signer},
};

/// What the file is sealed for.
const PURPOSE: &str = "keys of proofs";

/// Whose key, and for the tokens of which issuer.
pub(super) type Whose = (Arc<str>, Arc<str>);

/// How keys that bind tokens are made, and where they are left.
pub struct ProofKeeper {
    file: SealedFile,
    sealing: SealingKey,
    /// Moments of one boot mean nothing in another.
    boot: String,
    dice: Arc<dyn Dice>,
    left: Mutex<BTreeMap<Whose, Left>>,
}

/// All that is left.
#[derive(Deserialize, Serialize)]
struct Kept {
    boot: String,
    keys: Vec<Left>,
}

/// One key that is left.
#[derive(Clone, Deserialize, Serialize)]
struct Left {
    identity: Arc<str>,
    issuer: Arc<str>,
    sealed: String,
    /// When it was made, in nanoseconds since boot.
    made: u64,
}

/// The private half of a key, for the sealing key alone.
pub(super) type Sealed = Arc<[u8]>;

impl ProofKeeper {
    /// Keys that are sealed with `sealing` and left in a file at `path`, for agents of the boot of this id; what is left there is
    /// taken up.
    pub fn taking_up(path: PathBuf, sealing: SealingKey, boot: String, dice: Arc<dyn Dice>) -> Self {
        let file = SealedFile::new(path, sealing.clone(), PURPOSE, Arc::clone(&dice));
        let path = file.path().display();
        let left = match file.read::<Kept>() {
            Ok(kept) => kept.filter(|kept| kept.boot == boot).map_or_else(Vec::new, |kept| kept.keys),
            Err(error) => {
                tracing::warn!(%error, %path, "keys that bind tokens cannot be taken up: what they bound is fetched anew");
                vec![]
            }
        };
        let left =
            left.into_iter().map(|left| ((Arc::clone(&left.identity), Arc::clone(&left.issuer)), left));
        Self { left: Mutex::new(left.collect()), file, sealing, boot, dice }
    }

    /// Takes away what was left: the agent runs, and leaves its own when it stops. What nobody has taken up by now, nobody will: a key
    /// that is replaced later does not come back.
    pub(super) fn forget(&self) {
        self.left.lock().unwrap_or_else(PoisonError::into_inner).clear();
        if let Err(error) = self.file.remove() {
            let path = self.file.path().display();
            tracing::error!(%error, %path, "keys that an agent before this one left cannot be taken away: remove the file");
        }
    }

    /// The key that was left, if one was.
    pub(super) fn left(&self, whose: &Whose) -> Option<(Held, Sealed)> {
        let left = self.left.lock().unwrap_or_else(PoisonError::into_inner).get(whose)?.clone();
        let sealed = STANDARD.decode(&left.sealed).ok()?;
        let pkcs8 = self.sealing.unseal(purpose(whose), &sealed)?;
        let key = Key::from_pkcs8(&pkcs8, Algorithm::Es256).ok()?;
        Some((Held::since(Arc::new(key), Since::at(Boot::from_nanos(left.made))), sealed.into()))
    }

    /// A key of its own.
    pub(super) fn fresh(&self, whose: &Whose) -> Result<(Arc<dyn Signer>, Option<Sealed>), FileError> {
        let pkcs8 = Key::generate_pkcs8(Algorithm::Es256)?;
        let key = Key::from_pkcs8(&pkcs8, Algorithm::Es256)?;
        let sealed = self.sealing.seal(purpose(whose), &pkcs8, &*self.dice);
        Ok((Arc::new(key), sealed.map(Arc::from)))
    }

    /// Leaves these for the next agent.
    pub(super) fn leave<'a>(
        &self,
        keys: impl Iterator<Item = (&'a Whose, &'a Sealed, Boot)>,
    ) -> io::Result<()> {
        let keys: Vec<Left> = keys
            .map(|((identity, issuer), sealed, made)| Left {
                identity: Arc::clone(identity),
                issuer: Arc::clone(issuer),
                sealed: STANDARD.encode(sealed),
                made: made.as_nanos(),
            })
            .collect();
        if keys.is_empty() {
            return self.file.remove();
        }
        self.file.write(&Kept { boot: self.boot.clone(), keys })
    }
}

/// One identity's key does not open as another's.
fn purpose((identity, issuer): &Whose) -> String {
    format!("key of proofs {identity} {issuer}")
}

impl fmt::Debug for ProofKeeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ProofKeeper({})", self.file.path().display())
    }
}

//! A private key in this process: made or read once, asked to sign, never shown. *ring* keeps it and does not
//! wipe it on drop; that residue is why the process is not dumpable.

use std::fmt;

use ring::{
    rand::SystemRandom,
    signature::{self, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RsaKeyPair},
};

use super::FileError;
use crate::{
    jose::{Algorithm, PublicKey, SignError, Signer, SigningInput},
    secret::Secret,
};

/// A key in memory.
pub struct Key {
    algorithm: Algorithm,
    pair: Pair,
    public: PublicKey,
    kid: String,
    chance: SystemRandom,
}

enum Pair {
    P256(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
    Rsa(Box<RsaKeyPair>),
}

impl Key {
    /// A new key.
    ///
    /// # Errors
    /// [`FileError::NoRsaKey`] for RSA, which *ring* cannot make.
    pub fn generate(algorithm: Algorithm) -> Result<Self, FileError> {
        Self::from_pkcs8(&Self::generate_pkcs8(algorithm)?, algorithm)
    }

    /// Whether a new one can be made here: *ring* makes no RSA keys.
    pub(super) fn can_be_made(algorithm: Algorithm) -> bool {
        matches!(algorithm, Algorithm::Es256 | Algorithm::EdDsa)
    }

    /// A new key as PKCS#8, to be put into a file by this room.
    pub(super) fn generate_pkcs8(algorithm: Algorithm) -> Result<Secret, FileError> {
        let chance = system_random();
        let made = match algorithm {
            Algorithm::Es256 => {
                EcdsaKeyPair::generate_pkcs8(&signature::ECDSA_P256_SHA256_FIXED_SIGNING, &chance)
            }
            Algorithm::EdDsa => Ed25519KeyPair::generate_pkcs8(&chance),
            Algorithm::Ps256 | Algorithm::Rs256 => return Err(FileError::NoRsaKey),
        };
        made.map(|document| Secret::new(document.as_ref())).map_err(|_| FileError::Unusable)
    }

    /// Reads PKCS#8.
    ///
    /// # Errors
    /// [`FileError::Unusable`] if it is no key for this algorithm, or too weak a one (KEY-01: RSA from 2048).
    pub fn from_pkcs8(pkcs8: &Secret, algorithm: Algorithm) -> Result<Self, FileError> {
        let chance = system_random();
        let (pair, public) = match algorithm {
            Algorithm::Es256 => {
                let signing = &signature::ECDSA_P256_SHA256_FIXED_SIGNING;
                let pair = EcdsaKeyPair::from_pkcs8(signing, pkcs8.expose(), &chance)
                    .map_err(|_| FileError::Unusable)?;
                // An uncompressed point: 0x04, x, y (SEC 1, 2.3.3).
                let point = pair.public_key().as_ref();
                let (x, y) =
                    point.get(1..).and_then(|xy| xy.split_at_checked(32)).ok_or(FileError::Unusable)?;
                let public = PublicKey::P256 { x: array(x)?, y: array(y)? };
                (Pair::P256(pair), public)
            }
            Algorithm::EdDsa => {
                let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(pkcs8.expose())
                    .map_err(|_| FileError::Unusable)?;
                let public = PublicKey::Ed25519 { x: array(pair.public_key().as_ref())? };
                (Pair::Ed25519(pair), public)
            }
            Algorithm::Ps256 | Algorithm::Rs256 => {
                let pair = RsaKeyPair::from_pkcs8(pkcs8.expose()).map_err(|_| FileError::Unusable)?;
                let parts = ring::rsa::PublicKeyComponents::<Vec<u8>>::from(pair.public_key());
                (Pair::Rsa(Box::new(pair)), PublicKey::Rsa { n: parts.n, e: parts.e })
            }
        };
        let kid = public.thumbprint();
        Ok(Self { algorithm, pair, public, kid, chance })
    }
}

impl Signer for Key {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    fn public(&self) -> &PublicKey {
        &self.public
    }

    fn kid(&self) -> &str {
        &self.kid
    }

    fn sign(&self, input: SigningInput<'_>) -> Result<Vec<u8>, SignError> {
        let message = input.as_bytes();
        match &self.pair {
            Pair::P256(pair) => {
                pair.sign(&self.chance, message).map(|sig| sig.as_ref().to_vec()).map_err(|_| SignError)
            }
            Pair::Ed25519(pair) => Ok(pair.sign(message).as_ref().to_vec()),
            Pair::Rsa(pair) => {
                let mut sig = vec![0; pair.public().modulus_len()];
                let padding: &dyn signature::RsaEncoding = if self.algorithm == Algorithm::Ps256 {
                    &signature::RSA_PSS_SHA256
                } else {
                    &signature::RSA_PKCS1_SHA256
                };
                pair.sign(padding, &self.chance, message, &mut sig).map_err(|_| SignError)?;
                Ok(sig)
            }
        }
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({} {})", self.algorithm, self.kid)
    }
}

/// The public half of a key that is sealed here: it can be shown, and cannot sign.
#[derive(Debug)]
pub(super) struct PublicHalf {
    algorithm: Algorithm,
    public: PublicKey,
    kid: String,
}

impl PublicHalf {
    /// None if a key for this algorithm has no such half.
    pub(super) fn new(public: PublicKey, algorithm: Algorithm) -> Option<Self> {
        let fits = match &public {
            PublicKey::P256 { .. } => algorithm == Algorithm::Es256,
            PublicKey::Ed25519 { .. } => algorithm == Algorithm::EdDsa,
            PublicKey::Rsa { .. } => matches!(algorithm, Algorithm::Ps256 | Algorithm::Rs256),
        };
        let kid = public.thumbprint();
        fits.then_some(Self { algorithm, public, kid })
    }
}

impl Signer for PublicHalf {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    fn public(&self) -> &PublicKey {
        &self.public
    }

    fn kid(&self) -> &str {
        &self.kid
    }

    fn sign(&self, _input: SigningInput<'_>) -> Result<Vec<u8>, SignError> {
        Err(SignError)
    }
}

fn array(bytes: &[u8]) -> Result<[u8; 32], FileError> {
    bytes.try_into().map_err(|_| FileError::Unusable)
}

#[expect(clippy::disallowed_methods, reason = "ring's generators are sealed: custody cannot be handed dice")]
fn system_random() -> SystemRandom {
    SystemRandom::new()
}

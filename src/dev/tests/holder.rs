//! Whoever holds a proof key, and makes good proofs with it or bad ones.

use ring::signature::{Ed25519KeyPair, KeyPair as _};
use serde_json::{Value, json};

use crate::jose::{PublicKey, b64};

/// An Ed25519 key that signs whatever a test wants, which no key of custody does.
pub(in crate::dev) struct Holder(Ed25519KeyPair);

impl Holder {
    pub(in crate::dev) fn from_seed(seed: u8) -> Self {
        Self(Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap())
    }

    pub(in crate::dev) fn jkt(&self) -> String {
        PublicKey::Ed25519 { x: self.0.public_key().as_ref().try_into().unwrap() }.thumbprint()
    }

    /// The header of a good proof.
    pub(in crate::dev) fn header(&self) -> Value {
        let jwk = json!({"kty": "OKP", "crv": "Ed25519", "x": b64(self.0.public_key().as_ref())});
        json!({"typ": "dpop+jwt", "alg": "EdDSA", "jwk": jwk})
    }

    pub(in crate::dev) fn proof(&self, claims: &Value) -> String {
        self.sign(&self.header(), claims)
    }

    pub(in crate::dev) fn sign(&self, header: &Value, claims: &Value) -> String {
        let signed = [header, claims].map(|part| b64(part.to_string().as_bytes())).join(".");
        let signature = b64(self.0.sign(signed.as_bytes()).as_ref());
        format!("{signed}.{signature}")
    }
}

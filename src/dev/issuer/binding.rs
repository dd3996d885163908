//! To whose key a token is bound (RFC 9449 5 to 8). In goes a token request of a proven client; out comes the thumbprint of
//! the key that made its proof, or why the proof does not count, and the nonces that the answer brings.

use http::HeaderValue;

use super::{
    desk::{Books, Desk, Endpoint},
    faults::Fault,
    refusal::Refusal,
    register::Client,
};
use crate::{
    dev::{
        http::{Answer, Ask},
        nonce::throw,
        proof::{Expected, Proof, ProofError},
    },
    jose::{Algorithm, Signer as _},
};

/// What a proof may be signed with: `dpop_signing_alg_values_supported`.
pub(super) const ALGORITHMS: [Algorithm; 3] = [Algorithm::Es256, Algorithm::EdDsa, Algorithm::Ps256];

impl Desk {
    /// The proof of a token request, used up.
    pub(super) fn possession(&self, books: &mut Books, ask: &Ask) -> Result<Option<Proof>, ProofError> {
        let url = format!("{}{}", self.url, Endpoint::Token.path());
        let expected = Expected {
            algorithms: &ALGORITHMS,
            method: ask.method().as_str(),
            url: &url,
            token: None,
            now: self.now(),
        };
        books.possession.prove(ask.headers(), expected, self.clock.boot(), &*self.dice)
    }

    /// The thumbprint that a token for `client` is bound to; none makes a bearer token of it.
    pub(super) fn binding(
        &self,
        proven: &Result<Option<Proof>, ProofError>,
        client: &Client,
        fault: &Fault,
    ) -> Result<Option<String>, Refusal> {
        match (proven, fault) {
            // An issuer that knows nothing of DPoP does not read the header.
            (_, Fault::Unbound) => Ok(None),
            (Err(ProofError::Full), _) => Err(Refusal::busy(ProofError::Full)),
            (Err(error), _) => Err(Refusal::new(error.code(), error)),
            (Ok(None), _) if client.dpop_bound_access_tokens => {
                Err(Refusal::new(ProofError::Missing.code(), ProofError::Missing))
            }
            (Ok(None), _) => Ok(None),
            (Ok(Some(_)), Fault::ForeignCnf) => Ok(Some(self.key.kid().to_owned())),
            (Ok(Some(proof)), _) => Ok(Some(proof.jkt.clone())),
        }
    }

    /// Puts the nonces on an answer: the current one for whoever does not have it, or what the fault says.
    pub(super) fn add_nonces(
        &self,
        answer: &mut Answer,
        proven: &Result<Option<Proof>, ProofError>,
        fault: &Fault,
    ) {
        let current = || self.books().possession.nonce_for(proven, self.clock.boot(), &*self.dice);
        // Base64url is visible ASCII.
        let value = |nonce: String| HeaderValue::from_str(&nonce).expect("a nonce is visible ASCII");
        let nonces = match fault {
            Fault::NoNonceHeader | Fault::Unbound => vec![],
            // All that HTTP lets through and RFC 9449 8.1 does not: NQCHAR has no space, quote, backslash or tab.
            Fault::BadNonce => vec![HeaderValue::from_static("a \"bad\\\" nonce\tof ours")],
            Fault::StubbornNonce => vec![value(throw(&*self.dice))],
            Fault::TwoNonces => {
                let first = current().unwrap_or_else(|| throw(&*self.dice));
                vec![value(first), value(throw(&*self.dice))]
            }
            _ => current().map(value).into_iter().collect(),
        };
        for nonce in nonces {
            answer.headers_mut().append("dpop-nonce", nonce);
        }
    }
}

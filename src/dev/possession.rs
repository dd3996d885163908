//! What a server remembers of the proofs it saw: which were used, and which nonces it gave out. In goes the `DPoP` header
//! of a request; out comes whose key made it. Each server has a memory of its own, so that a nonce of one is no nonce
//! of the other (DPOP-10).

use http::HeaderMap;

use super::{
    nonce::Nonces,
    once::Once,
    proof::{self, Expected, Proof, ProofError},
};
use crate::clock::{Boot, Dice};

/// The memory of one server.
#[derive(Debug)]
pub(super) struct Possession {
    used: Once,
    nonces: Option<Nonces>,
}

impl Possession {
    /// A memory that wants nonces in proofs, or does not.
    pub(super) fn new(nonces: bool) -> Self {
        Self { used: Once::default(), nonces: nonces.then(Nonces::default) }
    }

    /// The proof of a request, held against all of RFC 9449 4.3 and used up; none if none came.
    pub(super) fn prove(
        &mut self,
        headers: &HeaderMap,
        expected: Expected<'_>,
        boot: Boot,
        dice: &dyn Dice,
    ) -> Result<Option<Proof>, ProofError> {
        let Some(text) = proof::sole(headers)? else { return Ok(None) };
        let proof = proof::check(text, expected)?;
        // Used up before its nonce is looked at: the next try needs a new proof, not only a new nonce (DPOP-12).
        self.used.burn(&proof.jkt, &proof.jti, proof.until, expected.now)?;
        if let Some(nonces) = &mut self.nonces {
            let good = proof.nonce.as_deref().is_some_and(|nonce| nonces.take(nonce, boot, dice));
            if !good {
                return Err(ProofError::Nonce);
            }
        }
        Ok(Some(proof))
    }

    /// The nonce to send with the answer to a request that ended so: to whoever has none or an old one (RFC 9449 8.2).
    pub(super) fn nonce_for(
        &mut self,
        proven: &Result<Option<Proof>, ProofError>,
        boot: Boot,
        dice: &dyn Dice,
    ) -> Option<String> {
        let current = self.nonces.as_mut()?.current(boot, dice);
        let had = match proven {
            Ok(Some(proof)) => proof.nonce.as_deref(),
            Err(ProofError::Nonce) => None,
            Ok(None) | Err(_) => return None,
        };
        (had != Some(current)).then(|| current.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::HeaderValue;
    use serde_json::json;

    use super::*;
    use crate::{clock::SeededDice, dev::tests::Holder, jose::Algorithm};

    const NOW: i64 = 1_800_000_000;

    fn headers(jti: &str, nonce: Option<&str>) -> HeaderMap {
        let claims = json!({"jti": jti, "htm": "GET", "htu": "http://a.test/", "iat": NOW, "nonce": nonce});
        let proof = Holder::from_seed(1).proof(&claims);
        HeaderMap::from_iter([("dpop".parse().unwrap(), HeaderValue::from_str(&proof).unwrap())])
    }

    fn expected() -> Expected<'static> {
        let algorithms = &[Algorithm::EdDsa];
        Expected { algorithms, method: "GET", url: "http://a.test/", token: None, now: NOW }
    }

    #[test]
    fn a_proof_is_used_up_even_by_a_refusal_for_its_nonce() {
        // DPOP-07, DPOP-09, DPOP-12
        let (dice, boot) = (SeededDice::from_seed(1), Boot::default());
        let mut memory = Possession::new(true);
        let refused = memory.prove(&headers("1", None), expected(), boot, &*dice);
        assert_eq!(refused, Err(ProofError::Nonce));
        let nonce = memory.nonce_for(&refused, boot, &*dice).unwrap();
        let again = memory.prove(&headers("1", Some(&nonce)), expected(), boot, &*dice);
        assert_eq!(again, Err(ProofError::Replay));
        assert_eq!(memory.nonce_for(&again, boot, &*dice), None);
        let good = memory.prove(&headers("2", Some(&nonce)), expected(), boot, &*dice);
        assert_eq!(good.as_ref().unwrap().as_ref().unwrap().jti, "2");
        assert_eq!(memory.nonce_for(&good, boot, &*dice), None, "it has the current one");
        // The one before is still good, and the answer brings the new one.
        let boot = boot + Duration::from_secs(300);
        let old = memory.prove(&headers("3", Some(&nonce)), expected(), boot, &*dice);
        assert!(old.is_ok());
        assert_ne!(memory.nonce_for(&old, boot, &*dice).unwrap(), nonce);
        let boot = boot + Duration::from_secs(300);
        assert_eq!(
            memory.prove(&headers("4", Some(&nonce)), expected(), boot, &*dice),
            Err(ProofError::Nonce)
        );
    }

    #[test]
    fn a_nonce_of_another_server_is_none_of_ours_and_one_that_was_not_asked_for_is_nothing() {
        // DPOP-10
        let (dice, boot) = (SeededDice::from_seed(1), Boot::default());
        let (mut ours, mut theirs) = (Possession::new(true), Possession::new(true));
        let refused = theirs.prove(&headers("1", None), expected(), boot, &*dice);
        let nonce = theirs.nonce_for(&refused, boot, &*dice).unwrap();
        assert_eq!(ours.prove(&headers("2", Some(&nonce)), expected(), boot, &*dice), Err(ProofError::Nonce));
        let mut plain = Possession::new(false);
        let taken = plain.prove(&headers("3", Some(&nonce)), expected(), boot, &*dice);
        assert!(taken.is_ok());
        assert_eq!(plain.nonce_for(&taken, boot, &*dice), None);
        assert_eq!(plain.prove(&HeaderMap::new(), expected(), boot, &*dice), Ok(None));
    }
}

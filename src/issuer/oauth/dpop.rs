//! The token request's proof of possession (RFC 9449 5, 8). In goes what should bind the token and where the request goes;
//! out comes a proof made for it alone, with the nonce that this server wants to see, and what the answer says of the next.

use std::sync::{Arc, Mutex, PoisonError};

use jiff::SignedDuration;

use super::{
    metadata::Metadata,
    mtls::{self, Way},
};
use crate::{
    clock::{Clock, Dice},
    credential::{Binding, Bound},
    issuer::{IssueError, Reason, Signers, assertion::no_signature, http::Response},
    proof::{Claim, Nonces, Target, Told},
    secret::Secret,
};

/// What binds the tokens of an order: the key for it, where this issuer can read its proofs (DPOP-01), or the certificate that
/// this request shows.
pub(super) fn bound(
    wanted: Binding,
    signers: &Signers,
    way: &Way,
    metadata: &Metadata,
) -> Result<Bound, IssueError> {
    match (wanted, &signers.dpop) {
        (Binding::Bearer, _) => Ok(Bound::Bearer),
        (Binding::Mtls, _) => way.certificate.clone().map(Bound::Mtls).ok_or_else(mtls::no_certificate),
        (Binding::Dpop, Some(key)) => {
            metadata.accepts_proofs(key.algorithm())?;
            Ok(Bound::Dpop(Arc::clone(key)))
        }
        (Binding::Dpop, None) => Err(IssueError::Misconfigured {
            reason: Reason::KeyUnavailable,
            detail: "this identity has no key for DPoP proofs: reload the settings".into(),
        }),
    }
}

/// What an answer said about the next proof.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Heard {
    /// A nonce, which is kept now.
    New,
    /// Nothing.
    Nothing,
    /// Something that is not to be used, and why (DPOP-09, DPOP-10).
    Unusable(&'static str),
}

/// Makes the proofs for one issuer, and keeps its nonces apart from everybody's (DPOP-10).
pub(super) struct Prover {
    nonces: Mutex<Nonces>,
    clock: Arc<dyn Clock>,
    dice: Arc<dyn Dice>,
}

impl Prover {
    pub(super) fn new(clock: Arc<dyn Clock>, dice: Arc<dyn Dice>) -> Self {
        Self { nonces: Mutex::default(), clock, dice }
    }

    /// A proof for one POST to `endpoint`; none if nothing is to be bound.
    pub(super) fn prove(
        &self,
        bound: &Bound,
        endpoint: &str,
        correction: SignedDuration,
    ) -> Result<Option<Secret>, IssueError> {
        let Bound::Dpop(key) = bound else { return Ok(None) };
        let target = Target::parse(endpoint).map_err(|error| IssueError::Misconfigured {
            reason: Reason::IssuerConfig,
            detail: format!("the issuer's endpoint cannot be named in a proof: {error}"),
        })?;
        let wall = self.clock.wall();
        let nonce = self.nonces().current(key.kid(), target.origin(), self.clock.boot());
        let claim = Claim {
            method: "POST",
            target: &target,
            token: None,
            nonce: nonce.as_ref(),
            now: wall.checked_add(correction).unwrap_or(wall),
        };
        Ok(Some(claim.sign(&**key, &*self.dice).map_err(no_signature)?.text))
    }

    /// Takes the nonce of any answer, whatever its status (DPOP-09).
    pub(super) fn hear(&self, bound: &Bound, endpoint: &str, response: &Response) -> Heard {
        let (Bound::Dpop(key), Ok(target)) = (bound, Target::parse(endpoint)) else { return Heard::Nothing };
        match Told::by(&response.headers) {
            Told::Nothing => Heard::Nothing,
            Told::Unusable(why) => Heard::Unusable(why),
            Told::New(nonce) => {
                self.nonces().keep(key.kid(), target.origin(), nonce, self.clock.boot());
                Heard::New
            }
        }
    }

    fn nonces(&self) -> std::sync::MutexGuard<'_, Nonces> {
        self.nonces.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The issuer wants a nonce in the proof and does not say which (DPOP-07).
pub(super) fn no_usable_nonce(heard: &Heard) -> IssueError {
    let why = match heard {
        Heard::Unusable(what) => what,
        _ => "there is none",
    };
    IssueError::Refused {
        reason: Reason::DpopRejected,
        detail: format!("the issuer wants a nonce in the proof, but its DPoP-Nonce cannot be used: {why}"),
    }
}

//! A proof's whole way: attest, decide, find the credential that the caller holds, confirm, sign, record, answer. The key stays
//! with the agent; what leaves is good for one request to one place that policy names (DPOP-18 to DPOP-26).

use std::{
    sync::{Arc, MutexGuard, PoisonError},
    time::Duration,
};

use super::{Account, Call, Journey, Refusal, Request, Session};
use crate::{
    attest::Workload,
    audit::Receipt,
    credential::{Bound, Credential},
    jose::Signer,
    policy::{self, Grant, Purpose, Reason},
    proof::{Claim, Nonce, Proof, Target},
    secret::{Fingerprint, Secret},
};

/// The request that a proof is wanted for.
#[derive(Clone, Debug)]
pub struct Proving {
    /// The credential that goes with it, which the caller holds (DPOP-18).
    pub credential: Fingerprint,
    /// The method, as it will be sent.
    pub method: String,
    /// Where it goes.
    pub target: Target,
    /// What the API wants to see in the proof, if it said so last (DPOP-25).
    pub nonce: Option<Nonce>,
}

impl Proving {
    pub(super) fn wanted(&self) -> policy::Proving<'_> {
        policy::Proving { method: &self.method, target: &self.target }
    }
}

/// A proof, on record.
#[derive(Debug)]
pub struct Proved {
    proof: Proof,
    receipt: Receipt,
}

impl Proved {
    /// The value of the `DPoP` header.
    pub fn proof(&self) -> &Secret {
        &self.proof.text
    }

    /// Where it is on record.
    pub fn receipt(&self) -> &Receipt {
        &self.receipt
    }
}

impl Journey {
    /// One proof for one request.
    ///
    /// # Errors
    /// A [`Refusal`], on record.
    pub async fn prove(&self, call: &Call, request: &Request, proving: &Proving) -> Result<Proved, Refusal> {
        let session: &Session = call;
        loop {
            let rules = self.rules();
            let (account, workload, grant) = self
                .admit(session, request, (Purpose::Prove(proving.wanted()), Some(proving.credential)), &rules)
                .await?;
            if self.broker().is_issuers(&proving.target) {
                let detail =
                    "the URL is an endpoint of an issuer: a proof for it could fetch tokens (DPOP-20)";
                let reason = Reason::HtuNotAllowed;
                let receipt = self.unproved(account, &workload, &grant, reason.as_str(), detail).await?;
                return Err(Refusal::OffLimits(receipt, reason));
            }
            if let Err(wait) = self.paced(&grant) {
                let detail = "more than 200 proofs a second for this identity (DPOP-22)";
                let receipt = self.unproved(account, &workload, &grant, "PROOF_RATE", detail).await?;
                return Err(Refusal::TooFast(receipt, wait));
            }
            let Some(held) = self.broker().held(&grant, proving.credential) else {
                let detail = "no live credential of this identity has that fingerprint";
                let receipt = self.unproved(account, &workload, &grant, "NOT_HELD", detail).await?;
                return Err(Refusal::NotHeld(receipt));
            };
            if let Err(error) = session.confirm(&workload).await {
                return Err(self.unattested(account, &error).await?);
            }
            if !self.in_force(&rules) {
                continue;
            }
            return match self.sign(proving, &held) {
                Some(proof) => {
                    let entry = account.proved(&workload, &grant, &held, &proof);
                    let receipt = self.ledger().record(entry).await?;
                    Ok(Proved { proof, receipt })
                }
                None => {
                    let detail = "custody did not sign, or the credential was bound by no key when it came";
                    let receipt = self.unproved(account, &workload, &grant, "NOT_HELD", detail).await?;
                    Err(Refusal::NotHeld(receipt))
                }
            };
        }
    }

    fn sign(&self, proving: &Proving, held: &Credential) -> Option<Proof> {
        let Bound::Dpop(key) = &held.bound else { return None };
        if let Some(nonce) = &proving.nonce {
            self.nonces().keep(key.kid(), proving.target.origin(), nonce.clone(), self.clock.boot());
        }
        self.proof(&proving.method, &proving.target, key, held)
    }

    /// A proof for one request, with the nonce that its API wants to see (DPOP-09, DPOP-11). None if custody does not sign.
    pub(super) fn proof(
        &self,
        method: &str,
        target: &Target,
        key: &Arc<dyn Signer>,
        held: &Credential,
    ) -> Option<Proof> {
        let nonce = self.nonces().current(key.kid(), target.origin(), self.clock.boot());
        let claim =
            Claim { method, target, token: held.token(), nonce: nonce.as_ref(), now: self.clock.wall() };
        claim.sign(&**key, &*self.dice).ok()
    }

    async fn unproved(
        &self,
        account: Account<'_>,
        workload: &Arc<Workload>,
        grant: &Grant,
        reason: &str,
        detail: &str,
    ) -> Result<Receipt, Refusal> {
        Ok(self.ledger().record(account.unproved(workload, grant, reason, detail)).await?)
    }

    /// Whether the identity may have another proof or call now, or when.
    pub(super) fn paced(&self, grant: &Grant) -> Result<(), Duration> {
        let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
        pace.take(grant.identity(), self.clock.boot())
    }

    pub(super) fn nonces(&self) -> MutexGuard<'_, crate::proof::Nonces> {
        self.nonces.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

//! OpenBao, and HashiCorp Vault, which speaks the same API (CA-04). In goes an order for a certificate or a lease; out comes what
//! the server gives, doubted, or the next move. It is logged in for each request anew and for no longer than needed; what is
//! left of a login is in memory, wiped, and ended at the server where nothing hangs on it.

mod ask;
mod lease;
mod login;
mod pki;
mod reply;
mod server;
mod settings;
#[cfg(test)]
mod tests;

use std::sync::Arc;

pub use self::settings::{OpenBaoSettings, misfit, problems};
use self::{lease::Leases, pki::Pki, server::Server};
use super::{
    IssueError, IssueFacts, Issued, Issuer, Order, Pending, Signers, http::HttpError, terms::Wants,
    x509::X509,
};
use crate::{
    clock::{Clock, Dice},
    credential::Credential,
    keys::Vault,
    proof::Target,
};

/// One server.
#[derive(Debug)]
pub struct OpenBao {
    certificates: X509<Pki>,
    leases: Leases,
    clock: Arc<dyn Clock>,
}

impl OpenBao {
    /// A client of the server that `settings` name. Nothing is sent yet.
    ///
    /// # Errors
    /// [`HttpError::CaFile`] or [`HttpError::NoRoots`].
    pub fn new(
        settings: OpenBaoSettings,
        vault: Vault,
        clock: Arc<dyn Clock>,
        dice: Arc<dyn Dice>,
    ) -> Result<Self, HttpError> {
        let server = Arc::new(Server::new(settings, Arc::clone(&clock), dice)?);
        let certificates = X509::new(Pki::new(Arc::clone(&server)), vault, Arc::clone(&clock));
        Ok(Self { certificates, leases: Leases::new(server), clock })
    }
}

impl Issuer for OpenBao {
    fn issue<'a>(
        &'a self,
        order: &'a Order,
        signers: &'a Signers,
        held: Option<&'a Credential>,
    ) -> Pending<'a, Issued> {
        if matches!(order.terms.wants, Wants::Certificate(_)) {
            return self.certificates.issue(order, signers, held);
        }
        Box::pin(async move {
            let started = self.clock.boot();
            let mut facts = IssueFacts::default();
            let result = self.leases.attempt(order, signers, held, &mut facts).await;
            facts.latency = self.clock.boot().since(started);
            Issued { result, facts }
        })
    }

    fn revoke<'a>(
        &'a self,
        order: &'a Order,
        signers: &'a Signers,
        credential: &'a Credential,
    ) -> Pending<'a, Result<(), IssueError>> {
        if matches!(order.terms.wants, Wants::Certificate(_)) {
            return self.certificates.revoke(order, signers, credential);
        }
        Box::pin(self.leases.end(order, signers, credential))
    }

    fn endpoints(&self) -> Arc<Vec<Target>> {
        // It takes no proofs, so none of them could be turned against it (DPOP-20).
        Arc::default()
    }
}

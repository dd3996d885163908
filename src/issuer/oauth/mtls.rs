//! What certificates ask of a request (RFC 8705). In goes an order and the keys it is placed with; out come the ways to place
//! it, the next one for an issuer that does not know the one before it (MT-02, MT-03).

use std::sync::Arc;

use super::client;
use crate::{
    credential::Binding,
    issuer::{IssueError, Order, Reason, Signers},
    jose::Signer,
    keys::ClientCertificate,
};

/// How one request proves who asks: by an assertion, of our own or of others, or by the certificate alone.
#[derive(Clone, Debug)]
pub(super) struct Way {
    /// Signs the assertion, where it is our own.
    pub(super) client: Option<Arc<dyn Signer>>,
    /// The certificate that TLS shows.
    pub(super) certificate: Option<Arc<ClientCertificate>>,
}

impl Way {
    /// The ways to place `order`: the key or certificate in use, then the one before it, which an issuer may know instead
    /// (KEY-06, MT-05). Never empty.
    pub(super) fn all(order: &Order, signers: &Signers) -> Result<Vec<Self>, IssueError> {
        let (certificates, auth) = (&signers.certificates, &order.terms.client_auth);
        if certificates.is_empty() && (auth.is_mtls() || order.binding == Binding::Mtls) {
            return Err(no_certificate());
        }
        if auth.is_mtls() {
            let showing = |certificate| Self { client: None, certificate: Some(certificate) };
            return Ok(certificates.iter().cloned().map(showing).collect());
        }
        let shown = certificates.first().filter(|_| order.binding == Binding::Mtls);
        let by =
            |client: Option<&Arc<dyn Signer>>| Self { client: client.cloned(), certificate: shown.cloned() };
        let key = client::key(order, signers)?;
        let before = signers.before.as_ref().filter(|_| key.is_some());
        Ok([Some(by(key)), before.map(|before| by(Some(before)))].into_iter().flatten().collect())
    }

    /// The way to give a credential back: as all other requests but those that bind, without a certificate unless that says who
    /// asks.
    pub(super) fn plain(order: &Order, signers: &Signers) -> Result<Self, IssueError> {
        let way = Self::all(order, signers)?.into_iter().next().ok_or_else(no_certificate)?;
        Ok(Self { certificate: way.certificate.filter(|_| order.terms.client_auth.is_mtls()), ..way })
    }
}

pub(super) fn no_certificate() -> IssueError {
    IssueError::Misconfigured {
        reason: Reason::KeyUnavailable,
        detail: "this identity has no client certificate that has not ended: renew the file that its certificate table names, \
                 then reload the settings"
            .into(),
    }
}

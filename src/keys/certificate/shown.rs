//! A certificate in a handshake. In goes a TLS configuration; out comes one that shows the certificate, and a note of whether
//! it was shown: a server that does not ask for it, or asks for others, would take us for somebody without one (MT-14).

use std::sync::{Arc, OnceLock};

use rustls::{
    ClientConfig, SignatureScheme,
    client::{ResolvesClientCert, Resumption},
    sign::CertifiedKey,
};

use super::ClientCertificate;

impl ClientCertificate {
    /// Makes `tls` one for connections of this certificate alone: nothing of a session is kept for another (MT-10).
    pub fn confine(&self, tls: &mut ClientConfig) {
        tls.resumption = Resumption::disabled();
        tls.enable_early_data = false;
    }

    /// The configuration for one connection, and what came of it.
    pub fn shown_by(self: &Arc<Self>, tls: &ClientConfig) -> (ClientConfig, Showing) {
        let showing = Showing(Arc::default());
        let mut tls = tls.clone();
        tls.client_auth_cert_resolver =
            Arc::new(Card { certificate: Arc::clone(self), shown: Arc::clone(&showing.0) });
        (tls, showing)
    }
}

/// Whether the certificate was shown on one connection.
#[derive(Debug)]
pub struct Showing(Arc<OnceLock<Result<(), NotShown>>>);

impl Showing {
    /// What came of it, once the handshake is over.
    ///
    /// # Errors
    /// [`NotShown`] says why the server has not seen it.
    pub fn outcome(&self) -> Result<(), NotShown> {
        self.0.get().copied().unwrap_or(Err(NotShown::NotAsked))
    }
}

/// Why a server has not seen the certificate.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum NotShown {
    /// It did not ask for one.
    #[error(
        "the server asks for no client certificate: have it ask at this endpoint, or name the one that does in \
         mtls_endpoint_aliases"
    )]
    NotAsked,
    /// It wants one of other authorities.
    #[error(
        "the server takes certificates of other authorities only than those that signed ours: have it trust ours, or use one \
         of its own"
    )]
    OtherAuthorities,
    /// It takes no signature that the key can make.
    #[error("the server takes no signature that this certificate's key can make: use a key of another kind")]
    OtherSignatures,
}

/// What rustls asks in a handshake.
#[derive(Debug)]
struct Card {
    certificate: Arc<ClientCertificate>,
    shown: Arc<OnceLock<Result<(), NotShown>>>,
}

impl ResolvesClientCert for Card {
    fn resolve(&self, authorities: &[&[u8]], signatures: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let ours = &self.certificate;
        let trusted = authorities.is_empty()
            || authorities.iter().any(|named| ours.issuers.iter().any(|issuer| issuer == named));
        let outcome = if !trusted {
            Err(NotShown::OtherAuthorities)
        } else if ours.key.key.choose_scheme(signatures).is_none() {
            Err(NotShown::OtherSignatures)
        } else {
            Ok(())
        };
        // A connection has one handshake: nothing of ours renegotiates.
        let _ = self.shown.set(outcome);
        outcome.ok().map(|()| Arc::clone(&ours.key))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

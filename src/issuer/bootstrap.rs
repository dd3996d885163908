//! The first word with a CA that nothing vouches for yet. In goes the SHA-256 of its root, which an operator wrote; out comes
//! the root with that sum, or an error (CA-03). TLS cannot be doubted before the root is here: whoever is at the other end is
//! listened to all the same. That is safe for this one question because the answer is held against the pin before anybody
//! sees it, the question tells nothing that is not public, and nothing else is ever sent this way: the client of it lives in
//! this function and shows no certificate, and what comes after is said over TLS that the root vouches for.

use std::sync::Arc;

use rustls::{
    CertificateError, DigitallySignedStruct, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{
        WebPkiSupportedAlgorithms, ring::default_provider, verify_tls12_signature, verify_tls13_signature,
    },
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject as _};
use serde_json::Value;

use super::{
    IssueError, Reason,
    answer::{self, is_json},
    http::{Http, HttpSettings, Request, Response, speech},
    json,
    x509::{Roots, RootsError},
};
use crate::secret::hex;

/// Asks `url` for the root whose SHA-256 is `pin`. Where the settings name roots for the server itself, TLS is doubted by
/// these as ever.
///
/// # Errors
/// [`IssueError::Retry`] where no answer came, [`IssueError::Misconfigured`] where it is not the root of the pin.
pub(super) async fn pinned_root(
    settings: HttpSettings,
    url: String,
    pin: &[u8; 32],
) -> Result<Roots, IssueError> {
    let http = match settings.ca_file {
        Some(_) => Http::new(settings),
        None => {
            let mut tls = speech()
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(Anybody))
                .with_no_client_auth();
            // No session of this is ever taken up again.
            tls.resumption = Resumption::disabled();
            Http::speaking(settings, tls)
        }
    };
    let http = http.map_err(|error| answer::unanswered(&error))?;
    let response = http.send(Request::get(url)).await.map_err(|error| answer::unanswered(&error))?;
    believe(&response, pin)
}

/// The root in an answer, if it is the one of the pin.
fn believe(response: &Response, pin: &[u8; 32]) -> Result<Roots, IssueError> {
    let mismatch = |detail: String| IssueError::Misconfigured { reason: Reason::IssuerMismatch, detail };
    match response.status {
        200 | 201 => {}
        404 => {
            return Err(mismatch(format!(
                "the CA has no root with the SHA-256 {}: compare root_sha256 with `step certificate fingerprint root_ca.crt` \
                 there, and url with the CA's",
                hex(pin)
            )));
        }
        status => {
            return Err(IssueError::Retry {
                reason: Reason::IssuerUnavailable,
                detail: format!("the CA answered {status} when asked for its root"),
                after: None,
            });
        }
    }
    let garbled = || IssueError::Retry {
        reason: Reason::IssuerProtocol,
        detail: "what the CA sent as its root is none: see whether url is that of a CA".into(),
        after: None,
    };
    let answer = is_json(response).then(|| json::parse(response.body.expose()).ok()).flatten();
    let pem =
        answer.as_ref().and_then(|answer| answer.get("ca")).and_then(Value::as_str).ok_or_else(garbled)?;
    let sent = CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<Vec<_>, _>>();
    let sent = sent.ok().filter(|sent| !sent.is_empty()).ok_or_else(garbled)?;
    Roots::pinned(sent, pin).map_err(|error| match error {
        RootsError::Pin { .. } => mismatch(error.to_string()),
        RootsError::File { .. } | RootsError::Unusable(_) => garbled(),
    })
}

/// Takes any certificate, but only from whoever has its key. For the one question above, and nothing else.
#[derive(Debug)]
struct Anybody;

impl Anybody {
    fn algorithms() -> WebPkiSupportedAlgorithms {
        default_provider().signature_verification_algorithms
    }
}

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if end_entity.is_empty() {
            return Err(rustls::Error::InvalidCertificate(CertificateError::BadEncoding));
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &Self::algorithms())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &Self::algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        Self::algorithms().supported_schemes()
    }
}

//! Whether an issuer can do what a credential asks of it, by its metadata alone. In goes the document; out comes what an order would
//! run into, before there is one. Nothing is sent.

use super::{OAuthSettings, metadata};
use crate::{
    credential::Binding,
    issuer::{IssueError, Reason, terms::Terms},
    jose::Algorithm,
};

/// What a credential asks of its issuer.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// How.
    pub terms: &'a Terms,
    /// Bound by what.
    pub binding: Binding,
    /// With which algorithm the identity's key signs, if it has one.
    pub algorithm: Option<Algorithm>,
}

/// Where the issuer's metadata may be, in the order in which it is looked for (OA-01).
pub fn metadata_addresses(settings: &OAuthSettings) -> Vec<String> {
    metadata::addresses(settings)
}

/// What is wrong with `document` as metadata of this issuer (OA-02..05), and what each of `wanted` would run into.
///
/// # Errors
/// [`IssueError`] if the document is of no use; an item, if that credential cannot be had.
pub fn capable(
    document: &[u8],
    settings: &OAuthSettings,
    wanted: &[Wanted<'_>],
) -> Result<Vec<Result<(), IssueError>>, IssueError> {
    let metadata = metadata::Metadata::read(document, settings)?;
    let judge = |wanted: &Wanted<'_>| {
        let method = &wanted.terms.client_auth;
        if method.is_mtls() {
            metadata.accepts_certificate(method, settings)?;
        } else {
            metadata.accepts(method, wanted.algorithm)?;
        }
        metadata.accepts_details(&wanted.terms.details)?;
        match wanted.binding {
            // Keys for proofs are the agent's own choice.
            Binding::Dpop => metadata.accepts_proofs(Algorithm::Es256),
            Binding::Mtls if !metadata.binds_to_certificates => Err(IssueError::Misconfigured {
                reason: Reason::AuthmUnsupported,
                detail: "the issuer does not say that it binds tokens to certificates \
                         (tls_client_certificate_bound_access_tokens): switch it on there"
                    .into(),
            }),
            Binding::Mtls | Binding::Bearer => Ok(()),
        }
    };
    Ok(wanted.iter().map(judge).collect())
}

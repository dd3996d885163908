//! Who asks. In go an order and the keys it is placed with; out comes one client assertion, made or read for one attempt:
//! our own (RFC 7523), a platform's that the issuer trusts, or a JWT-SVID. `aud` is the issuer's name as the settings have
//! it, whoever made the assertion (PKJ-03, PKJ-04).

use std::sync::Arc;

use jiff::Timestamp;

use super::{Audience, OAuth, assertion::Assertion, no_signature};
use crate::{
    issuer::{
        IssueError, Order, Reason, Signers,
        conditions::Form,
        spiffe,
        terms::{ClientAuth, SvidSource},
        token_file::TokenFile,
    },
    jose::Signer,
    secret::Secret,
};

/// RFC 7523 2.2.
pub(super) const JWT_BEARER: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// draft-ietf-oauth-spiffe-client-auth (DR-05).
pub(super) const JWT_SPIFFE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-spiffe";

/// A client assertion, with its type.
pub(super) type Shown = (&'static str, Secret);

/// Which of the identity's keys proves who asks: none where something else does.
pub(super) fn key<'a>(
    order: &Order,
    signers: &'a Signers,
) -> Result<Option<&'a Arc<dyn Signer>>, IssueError> {
    match (&signers.client, order.terms.client_auth.needs_key()) {
        (Some(key), true) => Ok(Some(key)),
        (_, false) => Ok(None),
        (None, true) => Err(IssueError::Misconfigured {
            reason: Reason::KeyUnavailable,
            detail: "this identity has no key for client assertions: reload the settings".into(),
        }),
    }
}

impl OAuth {
    /// One assertion for one attempt at `now`, the issuer's time (PKJ-12). `key` is what [`key`] said, or the one before it.
    pub(super) async fn show(
        &self,
        order: &Order,
        key: Option<&Arc<dyn Signer>>,
        now: Timestamp,
    ) -> Result<Shown, IssueError> {
        let file = async |file: &TokenFile, audience: &str, form| {
            let mut file = file.clone();
            file.conditions.audience = Some(audience.to_owned());
            file.read(form, now).await.map_err(IssueError::from)
        };
        let issuer = &*self.settings.issuer;
        match (&order.terms.client_auth, key) {
            (ClientAuth::FederatedJwt(from), _) => {
                Ok((JWT_BEARER, file(from, self.audience(), Form::Assertion).await?))
            }
            // The draft leaves no choice of audience.
            (ClientAuth::SpiffeJwt(SvidSource::File(from)), _) => {
                Ok((JWT_SPIFFE, file(from, issuer, Form::JwtSvid).await?))
            }
            (ClientAuth::SpiffeJwt(SvidSource::WorkloadApi { socket, spiffe_id }), _) => {
                let fetching = spiffe::fetch_jwt_svid(socket, spiffe_id, issuer, now, self.settings.timeout);
                Ok((JWT_SPIFFE, fetching.await?))
            }
            (ClientAuth::PrivateKeyJwt, Some(key)) => {
                let assertion = Assertion {
                    typ: self.settings.assertion_typ.as_str(),
                    client_id: &order.client_id,
                    audience: self.audience(),
                    now,
                    life: self.settings.assertion_life.as_secs(),
                };
                Ok((JWT_BEARER, assertion.sign(&**key, &*self.dice).map_err(no_signature)?))
            }
            // A certificate says who asks without one.
            (ClientAuth::PrivateKeyJwt, None)
            | (ClientAuth::TlsClientAuth | ClientAuth::SelfSignedTlsClientAuth, _) => {
                Err(no_signature(crate::jose::SignError))
            }
        }
    }

    fn audience(&self) -> &str {
        match &self.settings.audience {
            Audience::Issuer => &self.settings.issuer,
            Audience::TokenEndpoint { pinned } => pinned,
        }
    }
}

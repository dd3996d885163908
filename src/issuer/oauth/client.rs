//! Who asks. In go an order and the keys it is placed with; out comes one client assertion for one attempt, with its type.

use std::sync::Arc;

use jiff::Timestamp;

use super::{Audience, OAuth};
use crate::{
    issuer::{
        IssueError, Order, Reason, Signers,
        assertion::{Assertion, Showing},
        terms::ClientAuth,
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
        let auth = &order.terms.client_auth;
        let kind = if matches!(auth, ClientAuth::SpiffeJwt(_)) { JWT_SPIFFE } else { JWT_BEARER };
        let own = Assertion {
            typ: self.settings.assertion_typ.as_str(),
            client_id: &order.client_id,
            audience: self.audience(),
            now,
            life: self.settings.assertion_life.as_secs(),
        };
        // The draft leaves no choice of audience.
        let svid_audience = &*self.settings.issuer;
        let showing = Showing { own, svid_audience, timeout: self.settings.timeout };
        Ok((kind, showing.take(auth, key, &*self.dice).await?))
    }

    fn audience(&self) -> &str {
        match &self.settings.audience {
            Audience::Issuer => &self.settings.issuer,
            Audience::TokenEndpoint { pinned } => pinned,
        }
    }
}

//! What the issuer says of a token that says nothing itself (RFC 7662). In go an opaque token that has to be bound and the
//! order it should fit; out comes how long it lives, if that is said, or why the token is thrown away (OA-42, DPOP-16). It is asked once, after the
//! token was made; whoever the token is for may ask again.

use std::time::Duration;

use serde_json::Value;

use super::{
    OAuth, Placed, details,
    metadata::Metadata,
    mtls::Way,
    reply::{self, Moment},
};
use crate::{
    credential::{Binding, Bound, Credential},
    issuer::{IssueError, IssueFacts, Order, Reason, Signers, answer, http::Response, json},
};

impl OAuth {
    /// Looks `credential` up, if the order wants that and the token does not speak for itself. How long it lives from now on, if
    /// the issuer says.
    pub(super) async fn look_up(
        &self,
        order: &Order,
        signers: &Signers,
        credential: &Credential,
        metadata: &Metadata,
        facts: &mut IssueFacts,
    ) -> Result<Option<Duration>, IssueError> {
        let opaque = reply::jwt_claims(credential.handle())?.is_none();
        if !(order.terms.introspect && opaque && credential.binding() != Binding::Bearer) {
            return Ok(None);
        }
        let way = Way::plain(order, signers)?;
        let endpoint = metadata.introspection_endpoint(way.certificate.is_some())?.ok_or_else(|| {
            IssueError::Misconfigured {
                reason: Reason::IssuerConfig,
                detail: "the issuer offers no introspection: set introspect = false, or have it make JWTs"
                    .into(),
            }
        })?;
        // What came out of `reply` is ASCII.
        let token = credential.handle().expose_str().unwrap_or_default();
        let fields = [("token", token), ("token_type_hint", "access_token")];
        let sent = self.clock.boot();
        let (response, _) =
            self.post(Placed { order, signers, way: &way }, &Bound::Bearer, endpoint, &fields, facts).await?;
        if response.status != 200 {
            return Err(self.refused(&response));
        }
        check(&response, order, &credential.bound, &self.settings.issuer, self.moment(sent))
    }
}

/// Holds what the issuer says of a token against the order.
fn check(
    response: &Response,
    order: &Order,
    bound: &Bound,
    issuer: &str,
    now: Moment,
) -> Result<Option<Duration>, IssueError> {
    let garbled = |detail: String| IssueError::Retry { reason: Reason::IssuerProtocol, detail, after: None };
    if !answer::is_json(response) {
        return Err(garbled("the issuer's introspection is not JSON (Content-Type)".into()));
    }
    let said = json::parse(response.body.expose())
        .map_err(|error| garbled(format!("the issuer's introspection: {error}")))?;
    if said.get("active") != Some(&Value::Bool(true)) {
        return Err(IssueError::Refused {
            reason: Reason::TokenInactive,
            detail: "the issuer calls the token that it has just made inactive: see whether this client may introspect its \
                     own tokens"
                .into(),
        });
    }
    if said.get("token_type").is_some_and(|named| !named.is_null()) {
        reply::check_type(said.get("token_type"), bound)?;
    }
    let asked = order.scope.iter().map(|scope| &**scope).collect();
    reply::check_claims(&said, order, bound, issuer, &asked)?;
    // RFC 7662 2.2: no token of ours is for anybody beside the API it was ordered for.
    let others = match (said.get("aud"), order.resource.as_deref()) {
        (Some(Value::Array(list)), Some(resource)) => list.iter().any(|one| one.as_str() != Some(resource)),
        _ => false,
    };
    if others && order.require_aud {
        return Err(IssueError::Refused {
            reason: Reason::AudMismatch,
            detail: "the token is for others beside the resource: have the issuer honour resource".into(),
        });
    }
    let detailed = said.get("authorization_details");
    if detailed.is_some() {
        details::check(detailed, &order.terms.details)?;
    }
    reply::jwt_life(&said, now)
}

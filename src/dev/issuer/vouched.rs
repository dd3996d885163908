//! Clients whom somebody else vouches for. In goes a JWT of a trusted issuer, or a JWT-SVID of a trusted trust domain; out
//! comes the client that was registered for its subject. Such a JWT is not used up: a workload gets it ready-made and
//! shows it until it expires, so what bounds it is its audience, which is this issuer alone, and its life.

use super::{
    desk::Books,
    register::Client,
    spiffe,
    trust::{Demands, Foreign, ForeignError},
};

/// The other value of `client_assertion_type` (DR-05).
pub(super) const SPIFFE_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-spiffe";

/// The longest such a JWT may still live, in seconds.
const MOST: i64 = 3600;

/// The client that is registered for the issuer and the subject of `assertion`.
pub(super) fn federated(
    assertion: &str,
    books: &Books,
    audience: &str,
    now: i64,
) -> Result<Client, ForeignError> {
    let kinds = &[None, Some("JWT"), Some("client-authentication+jwt")];
    let foreign = books.trust.check(assertion, Demands { audience, kinds, most: MOST, now })?;
    let is_it = |client: &&Client| {
        let named = client.federated.as_ref();
        named.is_some_and(|named| named.issuer == foreign.issuer && named.subject == foreign.subject)
    };
    books.clients.values().find(is_it).cloned().ok_or(ForeignError::Client)
}

/// The client that is registered for the SPIFFE ID of a JWT-SVID, and that ID. The pattern that says most wins.
pub(super) fn spiffe(
    assertion: &str,
    books: &Books,
    audience: &str,
    now: i64,
) -> Result<(Client, String), ForeignError> {
    let kinds = &[None, Some("JWT"), Some("JOSE")];
    let Foreign { subject, .. } =
        books.trust.check_svid(assertion, Demands { audience, kinds, most: MOST, now })?;
    let pattern = |client: &&Client| client.spiffe_id.clone().unwrap_or_default();
    let fitting = books.clients.values().filter(|client| spiffe::fits(&pattern(client), &subject));
    // The ID itself says more than any pattern, and a longer pattern more than a shorter one.
    let says = |client: &&Client| (pattern(client) == subject, pattern(client).len());
    let client = fitting.max_by_key(says).cloned().ok_or(ForeignError::Client)?;
    Ok((client, subject))
}

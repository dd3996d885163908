//! The JWT authorization grant (RFC 7523 2.1), as identity chaining uses it. In goes an assertion that a trusted issuer made
//! for us; out comes whom the token is about. An assertion is good once, and not for long.

use super::{
    desk::Desk,
    form::Form,
    refusal::Refusal,
    token::Subject,
    trust::{Demands, ForeignError},
};
use crate::dev::once::Spent;

/// The value of `grant_type` (OA-26).
pub(super) const GRANT: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";

/// The longest an assertion may still live, in seconds (OA-26).
const MOST: i64 = 300;

/// The longest `jti`.
const MAX_JTI: usize = 128;

impl Desk {
    /// Whom the assertion is about; it is used up.
    pub(super) fn chain(&self, form: &Form) -> Result<Subject, Refusal> {
        let assertion = form.one("assertion").ok_or_else(|| Refusal::request("assertion is missing"))?;
        let invalid = |why: ForeignError| Refusal::new("invalid_grant", format!("assertion: {why}"));
        // A grant says whom a token is about; it is not what the client proves itself with (PKJ-18).
        if form.one("client_assertion") == Some(assertion) {
            return Err(invalid(ForeignError::Kind));
        }
        let kinds = &[None, Some("JWT"), Some("authorization-grant+jwt")];
        let demands = Demands { audience: &self.url, kinds, most: MOST, now: self.now() };
        let mut books = self.books();
        let grant = books.trust.check(assertion, demands).map_err(invalid)?;
        if books.clients.contains_key(&grant.subject) {
            return Err(invalid(ForeignError::Subject));
        }
        let jti = grant.jti.filter(|jti| (1..=MAX_JTI).contains(&jti.len()));
        let jti = jti.ok_or_else(|| invalid(ForeignError::Jti))?;
        books.used.burn(&grant.issuer, &jti, grant.exp, demands.now).map_err(|spent| match spent {
            Spent::Before => invalid(ForeignError::Replay),
            Spent::Full => Refusal::busy("too many assertions are remembered: try again in a minute"),
        })?;
        Ok(Subject { name: grant.subject, act: None })
    }
}

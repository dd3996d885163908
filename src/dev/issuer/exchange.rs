//! Token exchange (RFC 8693). In goes a token about somebody, and perhaps one about who acts for them; out comes whom the new
//! token is about. A token is believed if it is one of ours, or a JWT that a trusted issuer made for us.

use serde_json::{Value, json};

use super::{
    desk::Desk,
    form::Form,
    refusal::Refusal,
    token::{self, Issued, Subject},
    trust::{Demands, ForeignError},
};

/// The value of `grant_type` (OA-22).
pub(super) const GRANT: &str = "urn:ietf:params:oauth:grant-type:token-exchange";

/// What begins every token type (OA-24).
const TYPES: &str = "urn:ietf:params:oauth:token-type:";

/// The longest a token of somebody else may still live, in seconds.
const MOST: i64 = 3600;

/// Whom a presented token is about.
struct Presented {
    issuer: String,
    subject: String,
    act: Option<Value>,
}

impl Desk {
    /// Whom the exchanged token is about, and what kind of token it is. Every fault of either token is
    /// `invalid_request` (RFC 8693 2.2.2).
    pub(super) fn exchange(&self, form: &Form) -> Result<(Subject, Issued), Refusal> {
        let issued = match form.one("requested_token_type").map(|kind| kind.strip_prefix(TYPES)) {
            None | Some(Some("access_token")) => Issued::Exchanged,
            Some(Some("jwt")) => Issued::Jwt,
            Some(_) => {
                return Err(Refusal::request("requested_token_type must be access_token or jwt, as URN"));
            }
        };
        let subject = self
            .presented(form, "subject_token", "subject_token_type")?
            .ok_or_else(|| Refusal::request("subject_token and subject_token_type are missing"))?;
        let actor = self.presented(form, "actor_token", "actor_token_type")?;
        // Who acted before stays on record behind who acts now (OA-25).
        let act = actor.map(|actor| {
            let mut act = json!({"iss": actor.issuer, "sub": actor.subject});
            if let Some(before) = subject.act {
                act["act"] = before;
            }
            act
        });
        Ok((Subject { name: subject.subject, act }, issued))
    }

    /// The token that is called `name`, if one is; it has a type if and only if it is there (OA-22).
    fn presented(&self, form: &Form, name: &str, its_type: &str) -> Result<Option<Presented>, Refusal> {
        let (token, kind) = match (form.one(name), form.one(its_type)) {
            (None, None) => return Ok(None),
            (Some(token), Some(kind)) => (token, kind),
            _ => return Err(Refusal::request(format!("send {name} and {its_type} together"))),
        };
        let presented = match kind.strip_prefix(TYPES) {
            Some("access_token") => self.own(token),
            Some("jwt" | "id_token") => self.foreign(token).map_err(|error| error.to_string()),
            _ => Err(format!("{its_type} must be access_token, jwt or id_token, as URN")),
        };
        presented.map(Some).map_err(|why| Refusal::request(format!("{name}: {why}")))
    }

    /// An access token of ours that is alive.
    fn own(&self, token: &str) -> Result<Presented, String> {
        token::recognise(token, &self.key, self.now())
            .filter(|claims| !self.books().revoked.holds(&claims.jti))
            .map(|claims| Presented { issuer: claims.iss, subject: claims.sub, act: claims.act })
            .ok_or_else(|| "it is no live access token of this issuer".into())
    }

    fn foreign(&self, token: &str) -> Result<Presented, ForeignError> {
        let demands =
            Demands { audience: &self.url, kinds: &[None, Some("JWT")], most: MOST, now: self.now() };
        let books = self.books();
        let foreign = books.trust.check(token, demands)?;
        // No stranger passes for a client of ours (BCP-06).
        if books.clients.contains_key(&foreign.subject) {
            return Err(ForeignError::Subject);
        }
        Ok(Presented { issuer: foreign.issuer, subject: foreign.subject, act: foreign.act })
    }
}

//! What becomes of a token: it is asked about, or ended. In goes a token; out comes what is known of it (RFC 7662), or that
//! it is over (RFC 7009).

use http::StatusCode;
use serde_json::json;

use super::{
    desk::Desk,
    form::Form,
    refusal::Refusal,
    register::Client,
    token::{self, Claims},
};
use crate::dev::http::{Answer, json};

impl Desk {
    /// RFC 7009: 200 for whatever is not a live token; another client's token stays as it is.
    pub(super) fn revoke(&self, form: &Form, client: &Client) -> Result<Answer, Refusal> {
        let token = form.one("token").ok_or_else(|| Refusal::request("token is missing"))?;
        let now = self.now();
        if let Some(claims) = token::recognise(token, &self.key, now) {
            if claims.client_id != client.client_id {
                return Err(Refusal::new("invalid_grant", "the token was issued to another client"));
            }
            if !self.books().revoked.add(&claims, now) {
                return Err(Refusal::busy("too many revoked tokens are remembered: try again in a minute"));
            }
        }
        Ok(json(StatusCode::OK, &json!({})))
    }

    /// RFC 7662: every registered client may ask, since a resource server is one too.
    pub(super) fn introspect(&self, form: &Form) -> Result<Answer, Refusal> {
        let token = form.one("token").ok_or_else(|| Refusal::request("token is missing"))?;
        let live = token::recognise(token, &self.key, self.now())
            .filter(|claims: &Claims| !self.books().revoked.holds(&claims.jti));
        let Some(claims) = live else { return Ok(json(StatusCode::OK, &json!({"active": false}))) };
        // Claims are strings and numbers, which always serialize to an object.
        let mut body = serde_json::to_value(&claims).expect("claims serialize");
        body["active"] = json!(true);
        body["token_type"] = json!(claims.token_type());
        Ok(json(StatusCode::OK, &body))
    }
}

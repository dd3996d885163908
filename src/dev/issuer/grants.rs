//! The token endpoint, behind the entrance. In goes what a proven client wants; out comes a token, or the error that is named
//! for it.

use http::StatusCode;
use serde_json::json;

use super::{
    desk::Desk,
    faults::Fault,
    form::Form,
    refusal::Refusal,
    register::Client,
    token::{self, Wish},
};
use crate::dev::http::{Answer, json};

impl Desk {
    pub(super) fn token(&self, form: &Form, client: &Client, fault: &Fault) -> Result<Answer, Refusal> {
        let wish = Wish::read(form, client)?;
        let life = self.settings.token_life;
        let claims = token::claims(&self.url, &client.client_id, wish, life, fault, self.now(), &*self.dice);
        let signed =
            token::sign(&self.key, &claims).map_err(|_| Refusal::busy("the key did not sign: try again"))?;
        self.books().diary.token();
        Ok(json(
            StatusCode::OK,
            &json!({
                "access_token": signed.expose_str(),
                "token_type": "Bearer",
                "expires_in": claims.exp - claims.iat,
                "scope": claims.scope,
            }),
        ))
    }
}

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
use crate::dev::{
    http::{Answer, json},
    proof::{Proof, ProofError},
};

impl Desk {
    pub(super) fn token(
        &self,
        form: &Form,
        client: &Client,
        proven: &Result<Option<Proof>, ProofError>,
        fault: &Fault,
    ) -> Result<Answer, Refusal> {
        let binding = self.binding(proven, client, fault)?;
        let wish = Wish { binding, ..Wish::read(form, client)? };
        let life = self.settings.token_life;
        let claims = token::claims(&self.url, &client.client_id, wish, life, fault, self.now(), &*self.dice);
        let signed =
            token::sign(&self.key, &claims).map_err(|_| Refusal::busy("the key did not sign: try again"))?;
        self.books().diary.token();
        Ok(json(
            StatusCode::OK,
            &json!({
                "access_token": signed.expose_str(),
                "token_type": claims.token_type(),
                "expires_in": claims.exp - claims.iat,
                "scope": claims.scope,
            }),
        ))
    }
}

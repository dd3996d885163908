//! The token endpoint, behind the entrance. In goes what a proven client wants; out comes a token, or the error that is named
//! for it.

use http::StatusCode;
use serde_json::{Value, json};

use super::{
    chaining,
    desk::Desk,
    exchange,
    faults::Fault,
    form::Form,
    refusal::Refusal,
    register::Client,
    token::{self, Issued, Subject, Wish},
};
use crate::dev::{
    http::{Answer, json},
    proof::{Proof, ProofError},
};

/// The grants that are served: `grant_types_supported`.
pub(super) const GRANTS: [&str; 3] = [CLIENT_CREDENTIALS, exchange::GRANT, chaining::GRANT];

const CLIENT_CREDENTIALS: &str = "client_credentials";

impl Desk {
    pub(super) fn token(
        &self,
        form: &Form,
        client: &Client,
        proven: &Result<Option<Proof>, ProofError>,
        fault: &Fault,
    ) -> Result<Answer, Refusal> {
        let binding = self.binding(proven, client, fault)?;
        let (subject, issued) = self.granted(form, client)?;
        let wish = Wish::read(form, client, subject, issued)?;
        // What is no access token is used nowhere with a proof.
        let wish = Wish { binding: binding.filter(|_| issued != Issued::Jwt), ..wish };
        let life = self.settings.token_life;
        let claims = token::claims(&self.url, &client.client_id, wish, life, fault, self.now(), &*self.dice);
        let signed = token::sign(&self.key, &claims, issued)
            .map_err(|_| Refusal::busy("the key did not sign: try again"))?;
        self.books().diary.token();
        let mut body = json!({
            "access_token": signed.expose_str(),
            "token_type": if issued == Issued::Jwt { "N_A" } else { claims.token_type() },
            "expires_in": claims.exp - claims.iat,
            "scope": claims.scope,
        });
        if let Some(urn) = issued.as_urn() {
            body["issued_token_type"] = Value::from(urn);
        }
        if let Some(details) = claims.authorization_details {
            body["authorization_details"] = details;
        }
        Ok(json(StatusCode::OK, &body))
    }

    /// Whom the grant of `form` is about, and what kind of token it leads to.
    fn granted(&self, form: &Form, client: &Client) -> Result<(Subject, Issued), Refusal> {
        match form.one("grant_type") {
            None => Err(Refusal::request("grant_type is missing: send client_credentials")),
            Some(CLIENT_CREDENTIALS) => {
                Ok((Subject { name: client.client_id.clone(), act: None }, Issued::Plain))
            }
            Some(exchange::GRANT) => self.exchange(form),
            Some(chaining::GRANT) => Ok((self.chain(form)?, Issued::Plain)),
            Some(_) => {
                let why = format!("grant_type must be one of {}", GRANTS.join(", "));
                Err(Refusal::new("unsupported_grant_type", why))
            }
        }
    }
}

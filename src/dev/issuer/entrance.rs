//! Who comes in. In goes a request; out come its form and the client that sent it, by an assertion of its own, which is used
//! up, or by the word of somebody who is trusted.

use http::header;

use super::{
    assertion::{self, ASSERTION_TYPE, AssertionError, Glimpse, Proof, Rules},
    desk::{Books, Desk},
    form::Form,
    refusal::Refusal,
    register::Client,
    trust::ForeignError,
    vouched::{self, SPIFFE_TYPE},
};
use crate::dev::http::Ask;

impl Desk {
    /// The form and the client that sent it.
    pub(super) fn authenticate(
        &self,
        books: &mut Books,
        ask: &Ask,
        number: u64,
    ) -> Result<(Form, Client), Refusal> {
        let form = Form::parse(ask.headers(), ask.body()).map_err(Refusal::request)?;
        let assertion = form.one("client_assertion");
        let glimpse = assertion.map(Glimpse::of).unwrap_or_default();
        books.diary.sign(
            number,
            glimpse.sub.or_else(|| form.one("client_id").map(str::to_owned)),
            glimpse.jti,
            form.one("grant_type").map(str::to_owned),
        );

        // One method, and it is this one (PKJ-13).
        if ask.headers().contains_key(header::AUTHORIZATION) {
            return Err(Refusal::client(
                "no Authorization header: send a client_assertion (private_key_jwt)",
            ));
        }
        if form.one("client_secret").is_some() {
            return Err(Refusal::client("no client_secret: send a client_assertion (private_key_jwt)"));
        }
        let assertion = assertion.ok_or_else(|| {
            Refusal::client("client_assertion is missing: only private_key_jwt and spiffe_jwt are known")
        })?;
        let vouched = |why: ForeignError| Refusal::client(format!("client_assertion: {why}"));
        let (client, also) = match form.one("client_assertion_type") {
            Some(ASSERTION_TYPE) if glimpse.iss.is_some_and(|iss| books.trust.knows(&iss)) => {
                (vouched::federated(assertion, books, &self.url, self.now()).map_err(vouched)?, None)
            }
            Some(ASSERTION_TYPE) => (self.own_assertion(books, assertion, &form)?, None),
            Some(SPIFFE_TYPE) => {
                let found = vouched::spiffe(assertion, books, &self.url, self.now());
                let (client, id) = found.map_err(vouched)?;
                (client, Some(id))
            }
            _ => {
                let why = format!("client_assertion_type must be {ASSERTION_TYPE} or {SPIFFE_TYPE}");
                return Err(Refusal::client(why));
            }
        };
        // A workload may know itself by its SPIFFE ID only (DR-05).
        if form.one("client_id").is_some_and(|name| name != client.client_id && Some(name) != also.as_deref())
        {
            return Err(Refusal::client("client_id must name the client of the assertion, or be left out"));
        }
        books.diary.identify(number, &client.client_id);
        Ok((form, client))
    }

    /// The client whose key signed `assertion`, which is used up.
    fn own_assertion(&self, books: &mut Books, assertion: &str, form: &Form) -> Result<Client, Refusal> {
        let now = self.now();
        let max_life = i64::try_from(self.settings.assertion_life.as_secs()).unwrap_or(i64::MAX);
        let rules = Rules { issuer: &self.url, max_life };
        let proof: Proof =
            assertion::check(assertion, &books.clients, rules, now).map_err(Refusal::client)?;
        // Before it is used up: a mistake beside the assertion does not cost it.
        if form.one("client_id").is_some_and(|client_id| client_id != proof.client_id) {
            return Err(Refusal::client("client_id must equal sub, or be left out"));
        }
        let spent = books.used.burn(&proof.client_id, &proof.jti, proof.until, now);
        spent.map_err(|spent| match AssertionError::from(spent) {
            full @ AssertionError::Full => Refusal::busy(full),
            error => Refusal::client(error),
        })?;
        books.clients.get(&proof.client_id).cloned().ok_or_else(|| Refusal::client(AssertionError::Client))
    }
}

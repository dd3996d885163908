//! What a token request says beside who asks. In goes an order; out comes its form, gathered for one attempt: a token of
//! others that goes with it is read anew each time, and held against its conditions before anything is sent (WIM-11).

use jiff::Timestamp;
use serde_json::Value;
use zeroize::Zeroizing;

use crate::{
    issuer::{
        IssueError, Order, Reason,
        conditions::Form,
        terms::{Brought, GrantType, Terms},
        token_file::TokenFile,
    },
    secret::{Fingerprint, Secret},
};

/// The fields of one token request.
#[derive(Debug)]
pub(super) struct Asked {
    terms: std::sync::Arc<Terms>,
    scope: String,
    resource: Option<std::sync::Arc<str>>,
    details: Option<String>,
    /// The kinds of what is brought, as URIs.
    kinds: [Option<String>; 3],
    subject: Option<Secret>,
    actor: Option<Secret>,
}

impl Asked {
    /// Reads all that `order` needs, at `now`, the issuer's time.
    pub(super) async fn gather(order: &Order, now: Timestamp) -> Result<Self, IssueError> {
        let read = async |file: &TokenFile| file.read(Form::Subject, now).await.map_err(IssueError::from);
        let uri = |brought: &Brought| brought.kind.uri();
        let (mut subject, mut actor, mut kinds) = (None, None, [const { None }; 3]);
        match &order.terms.grant {
            GrantType::ClientCredentials => {}
            GrantType::JwtBearer(file) => subject = Some(read(file).await?),
            GrantType::TokenExchange(exchange) => {
                subject = Some(read(&exchange.subject.file).await?);
                if let Some(acting) = &exchange.actor {
                    actor = Some(read(&acting.file).await?);
                }
                let requested = exchange.requested.map(|kind| kind.uri());
                kinds = [Some(uri(&exchange.subject)), exchange.actor.as_ref().map(uri), requested];
            }
        }
        let details = &order.terms.details;
        Ok(Self {
            terms: std::sync::Arc::clone(&order.terms),
            scope: order.scope.join(" "),
            resource: order.resource.clone(),
            details: (!details.is_empty()).then(|| Value::from(details.clone()).to_string()),
            kinds,
            subject,
            actor,
        })
    }

    /// The fields, in order.
    pub(super) fn fields<'a>(&'a self) -> Vec<(&'a str, &'a str)> {
        let mut fields = vec![("grant_type", self.terms.grant.as_str())];
        let mut add = |name, value: Option<&'a str>| fields.extend(value.map(|value| (name, value)));
        let [subject_kind, actor_kind, requested] = self.kinds.each_ref().map(Option::as_deref);
        match &self.terms.grant {
            GrantType::ClientCredentials => {}
            GrantType::JwtBearer(_) => add("assertion", text(self.subject.as_ref())),
            GrantType::TokenExchange(_) => {
                add("subject_token", text(self.subject.as_ref()));
                add("subject_token_type", subject_kind);
                add("actor_token", text(self.actor.as_ref()));
                add("actor_token_type", actor_kind);
                add("requested_token_type", requested);
            }
        }
        add("scope", Some(&*self.scope).filter(|scope| !scope.is_empty()));
        add("resource", self.resource.as_deref());
        add("authorization_details", self.details.as_deref());
        fields
    }

    /// Which tokens are brought: the same again would be refused again (ER-03).
    pub(super) fn brings(&self) -> [Option<Fingerprint>; 2] {
        [&self.subject, &self.actor].map(|secret| secret.as_ref().map(Secret::fingerprint))
    }
}

/// Whether an error code is about the grant: what the subject of an exchange lacks is told as if the request were wrong
/// (RFC 8693 2.2.2).
pub(super) fn is_refused_grant(order: &Order, code: &str) -> bool {
    let exchange = matches!(order.terms.grant, GrantType::TokenExchange(_));
    code == "invalid_grant" || exchange && code == "invalid_request"
}

/// What a refusal means for this order: not everything that is called our fault is (ER-01, ER-03).
pub(super) fn meant(order: &Order, error: IssueError) -> IssueError {
    match error {
        IssueError::Refused { reason: Reason::AgentBugRequest, detail }
            if matches!(order.terms.grant, GrantType::TokenExchange(_)) =>
        {
            IssueError::Refused { reason: Reason::GrantRejected, detail }
        }
        error => error,
    }
}

/// A JWT is ASCII.
fn text(token: Option<&Secret>) -> Option<&str> {
    token?.expose_str()
}

/// `application/x-www-form-urlencoded`, with everything encoded that is not a letter, a digit or `*-._` (PKJ-01).
pub(super) fn encode(fields: &[(&str, &str)]) -> Secret {
    // Room for all of it at once: a buffer that grows leaves copies of the assertion behind.
    let longest = fields.iter().map(|(name, value)| 3 * (name.len() + value.len()) + 2).sum();
    let mut form = Zeroizing::new(Vec::with_capacity(longest));
    for (name, value) in fields {
        if !form.is_empty() {
            form.push(b'&');
        }
        encode_part(&mut form, name);
        form.push(b'=');
        encode_part(&mut form, value);
    }
    Secret::new(std::mem::take(&mut *form))
}

fn encode_part(form: &mut Vec<u8>, part: &str) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for byte in part.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'*' | b'-' | b'.' | b'_' => form.push(byte),
            b' ' => form.push(b'+'),
            _ => form.extend([b'%', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_is_encoded_to_the_letter() {
        // PKJ-01
        let form = encode(&[("a b", "x:y/z?&=+%~"), ("u", "\u{e9}*-._")]);
        assert_eq!(form.expose_str(), Some("a+b=x%3Ay%2Fz%3F%26%3D%2B%25%7E&u=%C3%A9*-._"));
    }
}

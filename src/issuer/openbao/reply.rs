//! What the server answers, read strictly. In go answers; out come documents whose texts are wiped when they are let go, or the
//! next move (ER-13). What the server wrote is quoted only after it was cut and cleaned.

use std::time::Duration;

use http::{HeaderName, header};
use jiff::Timestamp;
use serde_json::Value;
use zeroize::Zeroize as _;

use crate::{
    issuer::{
        IssueError, Reason,
        answer::{clean, is_json, retry_after},
        http::Response,
        json,
    },
    secret::Secret,
};

/// How much of the server's own words is kept (ER-13).
const LONGEST_QUOTE: usize = 200;

/// Says that it was the login inside a request that failed.
const INLINE_FAILED: HeaderName = HeaderName::from_static("x-vault-inline-auth-failed");

/// What a request was for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Step<'a> {
    /// To log in.
    LogIn,
    /// To do something at a path, with a token.
    Do(&'a str),
    /// The same, with the login in it.
    DoInline(&'a str),
}

/// A whole answer.
pub(super) struct Document(Value);

impl Document {
    /// What the server said yes with.
    ///
    /// # Errors
    /// [`IssueError`] if it did not say yes, or not in JSON.
    pub(super) fn read(response: &Response, step: Step<'_>, now: Timestamp) -> Result<Self, IssueError> {
        if response.status != 200 {
            return Err(refused(response, step, now));
        }
        let garbled = |detail| IssueError::Retry { reason: Reason::IssuerProtocol, detail, after: None };
        if !is_json(response) {
            return Err(garbled(
                "the server answered 200 with something that is not JSON: see what stands at url".into(),
            ));
        }
        let read = json::parse(response.body.expose())
            .map_err(|error| garbled(format!("the server's answer: {error}")))?;
        Ok(Self(read))
    }

    /// A text out of it, which is wiped by whoever has it.
    pub(super) fn take(&mut self, pointer: &str) -> Option<Secret> {
        match self.0.pointer_mut(pointer)?.take() {
            Value::String(text) => Some(Secret::new(text)).filter(|text| !text.is_empty()),
            _ => None,
        }
    }

    /// A part of it.
    pub(super) fn part(&mut self, pointer: &str) -> Option<Self> {
        self.0.pointer_mut(pointer).map(Value::take).filter(|part| !part.is_null()).map(Self)
    }

    pub(super) fn value(&self) -> &Value {
        &self.0
    }

    pub(super) fn value_mut(&mut self) -> &mut Value {
        &mut self.0
    }

    pub(super) fn text(&self, pointer: &str) -> Option<&str> {
        self.0.pointer(pointer)?.as_str().filter(|text| !text.is_empty())
    }

    pub(super) fn flag(&self, pointer: &str) -> bool {
        self.0.pointer(pointer).and_then(Value::as_bool).unwrap_or_default()
    }

    pub(super) fn number(&self, pointer: &str) -> u64 {
        self.0.pointer(pointer).and_then(Value::as_u64).unwrap_or_default()
    }

    pub(super) fn seconds(&self, pointer: &str) -> Duration {
        Duration::from_secs(self.number(pointer))
    }
}

impl Drop for Document {
    fn drop(&mut self) {
        wipe(&mut self.0);
    }
}

fn wipe(value: &mut Value) {
    match value {
        Value::String(text) => text.zeroize(),
        Value::Array(items) => items.iter_mut().for_each(wipe),
        Value::Object(members) => members.values_mut().for_each(wipe),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Sorts an answer that is no yes. `now` is the wall clock, for a `Retry-After` that is a date.
pub(super) fn refused(response: &Response, step: Step<'_>, now: Timestamp) -> IssueError {
    let (status, words) = (response.status, words(response));
    let said = if words.is_empty() {
        format!("the server answered {status}")
    } else {
        format!("the server answered {status}: \"{words}\"")
    };
    let retry = |reason, hint: &str| IssueError::Retry {
        reason,
        detail: format!("{said}{hint}"),
        after: retry_after(response, now),
    };
    let misconfigured =
        |reason, hint: &str| IssueError::Misconfigured { reason, detail: format!("{said}: {hint}") };
    let logging_in = step == Step::LogIn || response.header(INLINE_FAILED) == Some("true");
    match status {
        429 => retry(Reason::IssuerRateLimit, ": it wants fewer requests"),
        412 => retry(Reason::IssuerUnavailable, ": this node is behind the others"),
        472 | 473 => retry(
            Reason::IssuerUnavailable,
            ": this node is a standby that does not serve: name the active one",
        ),
        503 if words.contains("sealed") => retry(Reason::IssuerUnavailable, ": it is sealed: unseal it"),
        500.. => retry(Reason::IssuerUnavailable, ""),
        400 | 401 | 403 | 404 if logging_in => misconfigured(
            Reason::ClientAuthRejected,
            "compare auth_mount, client_id (the role), audience and what the role is bound to with the server",
        ),
        _ => match step {
            Step::LogIn => {
                misconfigured(Reason::IssuerConfig, "see whether url and auth_mount lead to an auth method")
            }
            Step::Do(at) | Step::DoInline(at) => not_done(status, &words, &said, at, step),
        },
    }
}

fn not_done(status: u16, words: &str, said: &str, at: &str, step: Step<'_>) -> IssueError {
    let refused =
        |hint: &str| IssueError::Refused { reason: Reason::GrantRejected, detail: format!("{said}: {hint}") };
    let misconfigured = |hint: String| IssueError::Misconfigured {
        reason: Reason::IssuerConfig,
        detail: format!("{said}: {hint}"),
    };
    match status {
        // Its own words for a certificate that would outlive its CA.
        400 if words.contains("beyond the expiration") => misconfigured(
            "the CA itself ends before such a certificate would: renew the CA, or lower max_ttl".into(),
        ),
        400 => refused("look at the role's settings at the server"),
        401 | 403 if matches!(step, Step::DoInline(_)) => refused(&format!(
            "give the role a policy for {at}; a server that knows no inline auth (HashiCorp Vault) says the same: inline_auth = false"
        )),
        401 | 403 => refused(&format!("give the role a policy for {at}")),
        404 => misconfigured(format!("there is nothing at {at}: correct the path or make the role")),
        405 => {
            misconfigured(format!("{at} cannot be used this way: name a path that can be read, or signed at"))
        }
        _ => misconfigured("look this status up in the server's manual".into()),
    }
}

/// Whether a request with a token was refused because there is no such token any more; one that its policy forbids is answered in
/// other words.
pub(super) fn is_unknown_token(response: &Response) -> bool {
    let words = words(response);
    response.status == 403
        && (words.trim() == "permission denied"
            || words.contains("invalid token")
            || words.contains("bad token"))
}

/// Whether a request with its login in it was refused because it would have made a lease (OpenBao, GH-3343).
pub(super) fn leases_something(response: &Response) -> bool {
    response.status == 400 && words(response).contains("inline auth") && words(response).contains("lease")
}

/// The server's words, if it used any.
fn words(response: &Response) -> String {
    if !is_json(response) && response.header(header::CONTENT_TYPE).is_some() {
        return String::new();
    }
    let Ok(said) = json::parse(response.body.expose()).map(Document) else { return String::new() };
    let errors = said.value().get("errors").and_then(Value::as_array);
    let errors: Vec<&str> = errors.into_iter().flatten().filter_map(Value::as_str).collect();
    clean(&errors.join("; "), LONGEST_QUOTE)
}

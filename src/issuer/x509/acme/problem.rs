//! What an ACME server says when it says no (RFC 8555 6.7, RFC 7807). In goes an answer; out come its kind and the next move.

use http::header;
use jiff::Timestamp;
use serde::Deserialize;

use crate::issuer::{IssueError, Reason, answer, http::Response};

/// What all kinds of them begin with.
const PREFIX: &str = "urn:ietf:params:acme:error:";

/// A problem document.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(default)]
pub(super) struct Problem {
    #[serde(rename = "type")]
    kind: String,
    detail: String,
    instance: String,
}

impl Problem {
    /// That of an answer; an empty one if it holds none.
    pub(super) fn of(response: &Response) -> Self {
        let kind = response.header(header::CONTENT_TYPE).unwrap_or_default();
        let is_problem = kind
            .split(';')
            .next()
            .is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/problem+json"));
        if is_problem {
            serde_json::from_slice(response.body.expose()).unwrap_or_default()
        } else {
            Self::default()
        }
    }

    /// `badNonce` and so on; empty for one that RFC 8555 does not know.
    pub(super) fn name(&self) -> &str {
        self.kind.strip_prefix(PREFIX).unwrap_or_default()
    }

    /// What to do next. `status` is that of the answer it came with; an order that failed is told as a 400.
    pub(super) fn next(&self, status: u16, response: &Response, now: Timestamp) -> IssueError {
        let said = answer::clean(&self.detail, 160);
        let name = if self.name().is_empty() { "no problem document" } else { self.name() };
        let detail = format!("the ACME server answered {status} ({}: {said})", answer::clean(name, 40));
        let after = || answer::retry_after(response, now);
        let misconfigured = |what: &str| IssueError::Misconfigured {
            reason: Reason::IssuerConfig,
            detail: format!("{detail}: {what}"),
        };
        match self.name() {
            // ACM-03: it says when to come back.
            "rateLimited" => IssueError::Retry { reason: Reason::IssuerRateLimit, detail, after: after() },
            // As a status it says the same; an order that failed has no other.
            "serverInternal" => {
                IssueError::Retry { reason: Reason::IssuerUnavailable, detail, after: after() }
            }
            "userActionRequired" => misconfigured(&format!(
                "a person has to do something there first, such as agree to its terms ({})",
                answer::clean(&self.instance, 120)
            )),
            "externalAccountRequired" => misconfigured(
                "it wants its own key for a first account: say client_auth = \"bootstrap\" with the file that holds it",
            ),
            "accountDoesNotExist" => misconfigured(
                "this identity's key has no account there: make one, or say client_auth = \"bootstrap\" with the key it gave for one",
            ),
            "badPublicKey" | "badSignatureAlgorithm" => {
                misconfigured("say another algorithm in [identities.NAME.key]: every CA takes ES256")
            }
            "unauthorized" => IssueError::Refused { reason: Reason::ClientAuthRejected, detail },
            "badCSR"
            | "caa"
            | "rejectedIdentifier"
            | "unsupportedIdentifier"
            | "orderNotReady"
            | "dns"
            | "connection"
            | "incorrectResponse"
            | "tls"
            | "compound" => IssueError::Refused { reason: Reason::GrantRejected, detail },
            _ => match status {
                429 => IssueError::Retry { reason: Reason::IssuerRateLimit, detail, after: after() },
                408 | 425 | 500.. => {
                    IssueError::Retry { reason: Reason::IssuerUnavailable, detail, after: after() }
                }
                401 | 403 => IssueError::Refused { reason: Reason::ClientAuthRejected, detail },
                404 | 405 => misconfigured("look at directory"),
                400..=499 => IssueError::Refused { reason: Reason::AgentBugRequest, detail },
                _ => IssueError::Retry { reason: Reason::IssuerProtocol, detail, after: None },
            },
        }
    }
}

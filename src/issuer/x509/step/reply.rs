//! What a step-ca answers. In goes an answer; out comes a chain that nobody has doubted yet, or the next move. The CA's words
//! are quoted only after they were cut and cleaned (ER-13); current ones say little anyway, and send people to their log.

use jiff::Timestamp;
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use serde_json::Value;

use crate::issuer::{
    IssueError, Reason, Rejected,
    answer::{clean, is_json, retry_after},
    http::Response,
    json,
    x509::rejected,
};

/// How much of the CA's own words is kept (ER-13).
const LONGEST_QUOTE: usize = 200;

/// The chain in an answer that is a yes, leaf first.
pub(super) fn chain(response: &Response) -> Result<Vec<CertificateDer<'static>>, IssueError> {
    let garbled = |what: &str| IssueError::Retry {
        reason: Reason::IssuerProtocol,
        detail: format!(
            "the CA answered {} with {what}: see whether url is that of a step-ca",
            response.status
        ),
        after: None,
    };
    if !is_json(response) {
        return Err(garbled("something that is not JSON (Content-Type)"));
    }
    let answer = json::parse(response.body.expose()).map_err(|error| garbled(&format!("this: {error}")))?;
    let listed: Vec<&Value> = match answer.get("certChain").and_then(Value::as_array) {
        Some(listed) if !listed.is_empty() => listed.iter().collect(),
        // As old versions have it.
        _ => ["crt", "ca"].iter().filter_map(|name| answer.get(name)).collect(),
    };
    if listed.is_empty() {
        return Err(garbled("JSON that holds no certificate"));
    }
    let unreadable = || rejected(Rejected::Form, "what the CA sent is no chain of certificates in PEM");
    let mut chain = Vec::new();
    for one in listed {
        let pem = one.as_str().ok_or_else(unreadable)?;
        let read = CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<Vec<_>, _>>();
        chain.extend(read.map_err(|_| unreadable())?);
    }
    Ok(chain)
}

/// What was asked for, which decides what a no means.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Asked {
    /// A certificate, with a one-time token.
    Sign,
    /// Another one, by the one that is held.
    Renew,
    /// The end of one.
    Revoke,
}

/// Sorts an answer that is no yes. `now` is the wall clock, for a `Retry-After` that is a date.
pub(super) fn refusal(response: &Response, asked: Asked, now: Timestamp) -> IssueError {
    let status = response.status;
    let said = message(response);
    let detail = match &said {
        Some(words) => format!("the CA answered {status}: \"{words}\""),
        None => format!("the CA answered {status}"),
    };
    let retry =
        |reason| IssueError::Retry { reason, detail: detail.clone(), after: retry_after(response, now) };
    let refused = |reason, hint: &str| IssueError::Refused { reason, detail: format!("{detail}{hint}") };
    let misconfigured =
        |reason, hint: &str| IssueError::Misconfigured { reason, detail: format!("{detail}; {hint}") };
    match (status, asked) {
        (429, _) => retry(Reason::IssuerRateLimit),
        (501, Asked::Revoke) => {
            refused(Reason::IssuerConfig, "; it cannot revoke: give it a database (\"db\" in its ca.json)")
        }
        (408 | 500.., _) => retry(Reason::IssuerUnavailable),
        _ if is_reuse(response) => refused(Reason::OneTimeReuse, ""),
        // CA-02: renewal may be switched off, or the certificate revoked.
        (400..=403, Asked::Renew) => {
            refused(Reason::GrantRejected, "; it renews nothing for this certificate")
        }
        (401, _) => misconfigured(
            Reason::ClientAuthRejected,
            "compare client_id with the provisioner's name there, its key with `keybearer keys export` (or the roots of an X5C \
             provisioner with this identity's certificate), and url with the CA's dnsNames; the CA's log has the cause",
        ),
        (400 | 403, Asked::Sign) if is_about_life(said.as_deref()) => misconfigured(
            Reason::IssuerConfig,
            "lower max_ttl for this credential, or raise maxTLSCertDuration (or lower minTLSCertDuration) in the claims of the \
             provisioner",
        ),
        (400, _) => refused(Reason::AgentBugRequest, ""),
        (403, _) => refused(
            Reason::GrantRejected,
            "; allow the names of this certificate for the provisioner: see its policy and template",
        ),
        (404 | 405, _) => misconfigured(Reason::IssuerConfig, "there is no step-ca at this url"),
        _ => misconfigured(Reason::IssuerConfig, "look at the CA's log"),
    }
}

/// Whether the CA says that it has seen a one-time token of ours before (ER-10). Current versions only log it.
pub(super) fn is_reuse(response: &Response) -> bool {
    response.status == 401 && message(response).is_some_and(|said| said.contains("token already used"))
}

/// Whether it says that the certificate has an end already: nothing is left to do.
pub(super) fn is_revoked_already(response: &Response) -> bool {
    response.status == 400 && message(response).is_some_and(|said| said.contains("is already revoked"))
}

fn is_about_life(said: Option<&str>) -> bool {
    said.is_some_and(|said| {
        ["requested duration", "notAfter", "notBefore"].iter().any(|word| said.contains(word))
    })
}

fn message(response: &Response) -> Option<String> {
    if !is_json(response) {
        return None;
    }
    let answer = json::parse(response.body.expose()).ok()?;
    Some(clean(answer.get("message")?.as_str()?, LONGEST_QUOTE)).filter(|said| !said.is_empty())
}

//! What all kinds of issuers answer with, beside what they give. In go answers, and failures to get one; out come the next move, a
//! wait, and words that may be logged.

use std::time::Duration;

use http::header;
use jiff::Timestamp;

use super::{
    IssueError, Reason,
    http::{HttpError, Response, printable},
    skew,
};

/// The longest we let an issuer send us away for (CLK-06).
const LONGEST_WAIT: Duration = Duration::from_secs(60 * 60);

/// A run of token characters from this length on may be a token, whatever it looks like.
const TOKEN_LIKE: usize = 40;

/// Sorts a failure to get any answer (ER-12, PKJ-17).
pub(super) fn unanswered(error: &HttpError) -> IssueError {
    let detail = error.to_string();
    match error {
        HttpError::CaFile { .. } | HttpError::NoRoots | HttpError::Plain => {
            IssueError::Misconfigured { reason: Reason::IssuerConfig, detail }
        }
        HttpError::CertNotAccepted(_) => {
            IssueError::Misconfigured { reason: Reason::CertNotAccepted, detail }
        }
        HttpError::Redirect { .. } => IssueError::Misconfigured { reason: Reason::IssuerRedirect, detail },
        HttpError::Connect(_) | HttpError::Protocol | HttpError::Timeout => {
            IssueError::Retry { reason: Reason::IssuerUnavailable, detail, after: None }
        }
        HttpError::Tls(_) => IssueError::Retry { reason: Reason::IssuerTls, detail, after: None },
        HttpError::TooLarge => IssueError::Retry { reason: Reason::IssuerProtocol, detail, after: None },
    }
}

/// How long the issuer asks us to stay away (CLK-06): seconds or a date, at most an hour. `None` if it does not
/// say, or says nonsense.
pub(super) fn retry_after(response: &Response, now: Timestamp) -> Option<Duration> {
    retry_after_up_to(response, now, LONGEST_WAIT)
}

/// The same, at most `longest`.
pub(super) fn retry_after_up_to(response: &Response, now: Timestamp, longest: Duration) -> Option<Duration> {
    let text = response.header(header::RETRY_AFTER)?.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // More digits than a u64 holds is longer than that all the same.
        return Some(text.parse().map_or(longest, |seconds| Duration::from_secs(seconds).min(longest)));
    }
    let until = skew::http_date(text)?;
    // Read against the issuer's own clock where it tells it: ours may be off.
    let now = response.header(header::DATE).and_then(skew::http_date).unwrap_or(now);
    Duration::try_from(until.duration_since(now)).ok().map(|wait| wait.min(longest))
}

/// Whether the body says it is JSON (OA-44).
pub(super) fn is_json(response: &Response) -> bool {
    let kind = response.header(header::CONTENT_TYPE).unwrap_or_default();
    kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"))
}

/// A stranger's words made fit for a log: printable, short, and without anything that may be a token (ER-13).
pub(super) fn clean(text: &str, longest: usize) -> String {
    let in_token = |c: char| c.is_ascii_alphanumeric() || "-_.~+/=".contains(c);
    let mut cleaned = String::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let run = rest.find(|c| !in_token(c)).unwrap_or(rest.len());
        if run == 0 {
            cleaned.push(first);
            rest = &rest[first.len_utf8()..];
            continue;
        }
        let word = &rest[..run];
        // "eyJ" is how base64url writes the `{"` that every JOSE header starts with.
        let is_token = word.contains("eyJ") || word.len() >= TOKEN_LIKE;
        cleaned.push_str(if is_token { "[removed]" } else { word });
        rest = &rest[run..];
    }
    printable(&cleaned, longest)
}

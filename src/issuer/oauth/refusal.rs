//! An answer that is not a yes. In goes the answer; out comes an [`IssueError`], whose variant is the next move
//! (rows ER-01 to ER-13). What the issuer wrote is quoted only after it was cut and cleaned.

use jiff::Timestamp;
use serde_json::Value;

use crate::issuer::{
    IssueError, Reason,
    answer::{clean, is_json, retry_after},
    http::Response,
    json,
};

/// How much of an issuer's own words is kept (ER-13).
const LONGEST_QUOTE: usize = 200;

/// Sorts an answer whose status is not 200. `now` is the wall clock, for a `Retry-After` that is a date.
pub(super) fn classify(response: &Response, now: Timestamp) -> IssueError {
    let status = response.status;
    let retry = |reason, detail| IssueError::Retry { reason, detail, after: retry_after(response, now) };
    if status == 429 {
        return retry(Reason::IssuerRateLimit, "the issuer answered 429: it wants fewer requests".into());
    }
    let Some(code) = oauth_error(response) else {
        if is_of_client(response) {
            return IssueError::Misconfigured {
                reason: Reason::ClientAuthRejected,
                detail: format!(
                    "the issuer, or something on the way to it, answered {status} and gave no reason; compare client_id, the \
                     registered public key or certificate and audience with the issuer, whose log may say more"
                ),
            };
        }
        return retry(
            Reason::IssuerUnavailable,
            format!("the issuer answered {status} without an OAuth error"),
        );
    };
    let detail = format!("the issuer answered {}", quoted(response));
    if status >= 500 {
        return retry(Reason::IssuerUnavailable, detail);
    }
    let refused = |reason| IssueError::Refused { reason, detail: detail.clone() };
    let misconfigured =
        |reason, hint| IssueError::Misconfigured { reason, detail: format!("{detail}; {hint}") };
    match code.as_str() {
        _ if is_reuse(response) => refused(Reason::OneTimeReuse),
        "invalid_authorization_details" => refused(Reason::RarDenied),
        "invalid_client" => misconfigured(
            Reason::ClientAuthRejected,
            "compare client_id, the registered public key and audience with the issuer",
        ),
        "invalid_client_attestation" | "use_attestation_challenge" | "use_fresh_attestation" => {
            misconfigured(
                Reason::AttestationRejected,
                "this agent proves clients by assertions, not by attestations: register the client for one of these",
            )
        }
        "invalid_dpop_proof" | "use_dpop_nonce" => misconfigured(
            Reason::DpopRejected,
            "set binding = \"dpop\" for this credential; if it is, compare the clocks of both sides",
        ),
        // What a client that may only have bound tokens hears without a proof: RFC 9449 has no code for that.
        "invalid_grant" => IssueError::Refused {
            reason: Reason::GrantRejected,
            detail: format!(
                "{detail}; if binding is \"bearer\", see whether the issuer wants this client's tokens bound"
            ),
        },
        "invalid_request" => refused(Reason::AgentBugRequest),
        "invalid_scope" => refused(Reason::ScopeDenied),
        "invalid_target" => refused(Reason::AudienceDenied),
        "server_error" | "temporarily_unavailable" | "slow_down" => retry(Reason::IssuerUnavailable, detail),
        "unauthorized_client" | "unsupported_grant_type" => misconfigured(
            Reason::IssuerConfig,
            "allow this client the grant that the settings name at the issuer",
        ),
        _ => misconfigured(Reason::IssuerConfig, "look this error up in the issuer's manual"),
    }
}

/// Whether the issuer does not take the client for who it says it is (ER-02). Not all say so in words: what a 401 and a 403 mean
/// without them is that asking again is of no use, while an outage is none of the two (RFC 9110 15.5.2, 15.5.4; RFC 6749 5.2).
pub(super) fn is_of_client(response: &Response) -> bool {
    match oauth_error(response) {
        Some(code) => code == "invalid_client",
        None => matches!(response.status, 401 | 403),
    }
}

/// Whether the issuer says that it has seen a one-time value of ours before (ER-10). There is no code for it: each product
/// has words of its own.
pub(super) fn is_reuse(response: &Response) -> bool {
    if response.status == 200 {
        return false;
    }
    let words = member(response, "error_description").unwrap_or_default().to_ascii_lowercase();
    match member(response, "error").as_deref() {
        // Ory Hydra.
        Some("jti_known") => true,
        // Keycloak; oidc-provider.
        Some("invalid_client") => {
            ["token reuse detected", "must only be used once"].iter().any(|known| words.contains(known))
        }
        _ => false,
    }
}

/// The `error` code of an answer that is no success, cleaned for the ledger. `None` if there is none.
pub(super) fn oauth_error(response: &Response) -> Option<String> {
    if response.status == 200 {
        return None;
    }
    let code = member(response, "error")?;
    Some(clean(&code, 64)).filter(|code| !code.is_empty())
}

/// The status, the `error` and what it says of it, cut and cleaned (ER-13).
pub(super) fn quoted(response: &Response) -> String {
    let status = response.status;
    match (oauth_error(response), description(response)) {
        (Some(code), Some(words)) => format!("{status} {code}: \"{words}\""),
        (Some(code), None) => format!("{status} {code}"),
        (None, _) => format!("{status} without an OAuth error"),
    }
}

fn description(response: &Response) -> Option<String> {
    Some(clean(&member(response, "error_description")?, LONGEST_QUOTE)).filter(|words| !words.is_empty())
}

fn member(response: &Response, name: &str) -> Option<String> {
    if !is_json(response) {
        return None;
    }
    match json::parse(response.body.expose()).ok()?.get_mut(name)?.take() {
        Value::String(text) => Some(text),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::{HeaderMap, HeaderName, HeaderValue, header};
    use serde_json::json;

    use super::*;
    use crate::{
        issuer::{answer::unanswered, http::HttpError, skew},
        secret::Secret,
    };

    fn now() -> Timestamp {
        skew::http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap()
    }

    fn answer(status: u16, headers: &[(&'static str, &str)], body: &str) -> Response {
        let mut map = HeaderMap::new();
        map.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json;charset=UTF-8"));
        for (name, value) in headers {
            map.insert(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
        }
        Response { status, headers: map, body: Secret::new(body) }
    }

    #[derive(Debug, PartialEq)]
    enum Next {
        Misconfigured,
        Refused,
        Retry,
    }

    fn next(error: &IssueError) -> Next {
        match error {
            IssueError::Misconfigured { .. } => Next::Misconfigured,
            IssueError::Refused { .. } => Next::Refused,
            IssueError::Retry { .. } | IssueError::Later { .. } => Next::Retry,
        }
    }

    #[test]
    fn every_error_code_has_its_next_move() {
        let table = [
            // ER-01
            (400, "invalid_request", Next::Refused, Reason::AgentBugRequest),
            // ER-02
            (400, "invalid_client", Next::Misconfigured, Reason::ClientAuthRejected),
            (401, "invalid_client", Next::Misconfigured, Reason::ClientAuthRejected),
            // ER-03
            (400, "invalid_grant", Next::Refused, Reason::GrantRejected),
            // ER-04
            (400, "unauthorized_client", Next::Misconfigured, Reason::IssuerConfig),
            (400, "unsupported_grant_type", Next::Misconfigured, Reason::IssuerConfig),
            // ER-05
            (400, "invalid_scope", Next::Refused, Reason::ScopeDenied),
            // ER-06
            (400, "invalid_target", Next::Refused, Reason::AudienceDenied),
            // ER-07
            (400, "invalid_authorization_details", Next::Refused, Reason::RarDenied),
            // ER-08
            (400, "use_dpop_nonce", Next::Misconfigured, Reason::DpopRejected),
            (400, "invalid_dpop_proof", Next::Misconfigured, Reason::DpopRejected),
            // ER-09
            (400, "use_attestation_challenge", Next::Misconfigured, Reason::AttestationRejected),
            (400, "use_fresh_attestation", Next::Misconfigured, Reason::AttestationRejected),
            (401, "invalid_client_attestation", Next::Misconfigured, Reason::AttestationRejected),
            // ER-10
            (400, "jti_known", Next::Refused, Reason::OneTimeReuse),
            // ER-11
            (429, "invalid_client", Next::Retry, Reason::IssuerRateLimit),
            // ER-12
            (500, "invalid_client", Next::Retry, Reason::IssuerUnavailable),
            (503, "temporarily_unavailable", Next::Retry, Reason::IssuerUnavailable),
            (400, "server_error", Next::Retry, Reason::IssuerUnavailable),
            (400, "something_new", Next::Misconfigured, Reason::IssuerConfig),
        ];
        for (status, code, move_next, reason) in table {
            let error = classify(&answer(status, &[], &json!({"error": code}).to_string()), now());
            assert_eq!((next(&error), error.reason()), (move_next, reason), "{status} {code}");
        }
    }

    #[test]
    fn an_answer_without_an_oauth_error_is_trouble_not_refusal() {
        // ER-12
        for (status, kind, body) in [
            (400, "text/html", "<html>"),
            (404, "application/json", r#"{"error":7}"#),
            (400, "application/json", r#"{"error":"invalid_scope","error":"invalid_client"}"#),
            (404, "text/plain", ""),
            (405, "text/plain", ""),
            (407, "text/plain", ""),
            (500, "text/plain", ""),
            (502, "text/plain", ""),
            (503, "application/json", "{}"),
            (204, "application/json", ""),
        ] {
            let error = classify(&answer(status, &[("content-type", kind)], body), now());
            assert_eq!(
                (next(&error), error.reason()),
                (Next::Retry, Reason::IssuerUnavailable),
                "{status} {body}"
            );
        }
    }

    #[test]
    fn a_refusal_of_the_client_without_words_is_no_outage() {
        // ER-02, CLK-05: Glewlwyd answers 403 and nothing.
        for status in [401, 403] {
            for (kind, body) in [
                ("text/plain", ""),
                ("text/html", "<html>"),
                ("application/json", "{}"),
                ("application/json", "not json"),
                ("application/json", r#"{"error":7}"#),
                ("application/json", r#"{"error":""}"#),
                ("application/json", r#"{"error":"invalid_scope","error":"invalid_client"}"#),
                ("text/plain", r#"{"error":"invalid_scope"}"#),
            ] {
                let response = answer(status, &[("content-type", kind), ("retry-after", "9")], body);
                let error = classify(&response, now());
                assert_eq!(
                    (next(&error), error.reason(), is_of_client(&response)),
                    (Next::Misconfigured, Reason::ClientAuthRejected, true),
                    "{status} {body}"
                );
                assert!(error.to_string().contains(&format!("answered {status} and gave no reason")));
            }
        }
        for (status, code, is) in [
            (400, "invalid_client", true),
            (401, "invalid_client", true),
            (401, "invalid_grant", false),
            (403, "invalid_dpop_proof", false),
            (403, "unauthorized_client", false),
        ] {
            let response = answer(status, &[], &json!({"error": code}).to_string());
            assert_eq!(is_of_client(&response), is, "{status} {code}");
        }
        assert!(!is_of_client(&answer(200, &[], "")) && !is_of_client(&answer(400, &[], "")));
    }

    #[test]
    fn without_an_answer_the_kind_of_silence_decides() {
        // ER-12, PKJ-17
        for (error, move_next, reason) in [
            (HttpError::Connect("refused".into()), Next::Retry, Reason::IssuerUnavailable),
            (HttpError::Timeout, Next::Retry, Reason::IssuerUnavailable),
            (HttpError::Protocol, Next::Retry, Reason::IssuerUnavailable),
            (HttpError::Tls("unknown issuer".into()), Next::Retry, Reason::IssuerTls),
            (HttpError::TooLarge, Next::Retry, Reason::IssuerProtocol),
            (HttpError::Redirect { status: 307 }, Next::Misconfigured, Reason::IssuerRedirect),
            (HttpError::Plain, Next::Misconfigured, Reason::IssuerConfig),
        ] {
            let error = unanswered(&error);
            assert_eq!((next(&error), error.reason()), (move_next, reason));
        }
    }

    #[test]
    fn retry_after_is_read_and_bounded() {
        // CLK-06
        for (text, expected) in [
            ("3", Some(3)),
            (" 120 ", Some(120)),
            ("0", Some(0)),
            ("3600", Some(3600)),
            ("86400", Some(3600)),
            ("99999999999999999999999", Some(3600)),
            ("Sun, 06 Nov 1994 08:50:07 GMT", Some(30)),
            ("Mon, 07 Nov 1994 08:50:07 GMT", Some(3600)),
            ("Sun, 06 Nov 1994 08:00:00 GMT", None),
            ("-3", None),
            ("3.5", None),
            ("soon", None),
            ("", None),
        ] {
            let expected = expected.map(Duration::from_secs);
            assert_eq!(retry_after(&answer(429, &[("retry-after", text)], ""), now()), expected, "{text}");
            let error = classify(&answer(503, &[("retry-after", text)], ""), now());
            assert!(matches!(error, IssueError::Retry { after, .. } if after == expected), "{text}");
        }
        let dated =
            [("retry-after", "Sun, 06 Nov 1994 10:00:10 GMT"), ("date", "Sun, 06 Nov 1994 10:00:00 GMT")];
        assert_eq!(retry_after(&answer(503, &dated, ""), now()), Some(Duration::from_secs(10)));
    }

    #[test]
    fn the_issuers_words_are_cut_and_cleaned() {
        // ER-13
        let token = "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJjYW5hcnkifQ.c2lnbmF0dXJlLWNhbmFyeQ";
        let opaque = "0123456789abcdef0123456789abcdef0123456789abcdef";
        let words = format!("\x1b[31mbad\r\nkey\u{202e} {token} and ({opaque}); {}", "long ".repeat(100));
        let body =
            json!({"error": "invalid_scope", "error_description": words, "error_uri": "http://elsewhere"});
        let IssueError::Refused { detail, .. } = classify(&answer(400, &[], &body.to_string()), now()) else {
            panic!("refused");
        };
        assert!(detail.contains("[31mbadkey [removed] and ([removed]); long"), "{detail}");
        assert!(detail.chars().all(|c| c == ' ' || c.is_ascii_graphic()), "{detail}");
        assert!(!detail.contains("elsewhere") && detail.len() < 260, "{detail}");
        let quoted = detail.split('"').nth(1).unwrap();
        assert_eq!(quoted.len(), 200);
        let body = json!({"error": format!("x {token}\n")}).to_string();
        assert_eq!(oauth_error(&answer(400, &[], &body)).as_deref(), Some("x [removed]"));
    }
}

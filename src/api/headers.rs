//! Which headers go on to an API, and which come back. In go those of a request or an answer; out come those that belong to
//! the two ends. What speaks of one connection ends there (RFC 9110 7.6.1); what would say who calls is the agent's to say,
//! and a program's word for it is dropped (MT-13, DPOP-06); what would have the API do something else than was decided
//! is refused.

use http::{HeaderMap, HeaderName, HeaderValue, header};

/// Names of one connection only, whether or not `Connection` lists them. `Expect` is answered by our own side, lengths are
/// written anew.
const HOP_BY_HOP: [&str; 13] = [
    "connection",
    "content-length",
    "expect",
    "http2-settings",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authentication-info",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// What says who calls, or on whose behalf, or by which way: the agent's business. A cookie is a bearer credential that nobody
/// weighed.
const OURS: [&str; 12] = [
    "authorization",
    "client-cert",
    "client-cert-chain",
    "cookie",
    "cookie2",
    "dpop",
    "forwarded",
    "host",
    "remote-user",
    "true-client-ip",
    "x-host",
    "x-real-ip",
];

/// The same by how a name begins: proxies that end TLS or log users in write who was there into such headers (MT-13).
const OURS_BEGIN: [&str; 23] = [
    "cf-client-cert",
    "cf-connecting",
    "client-verif",
    "keybearer",
    "ssl-",
    "tls-client",
    "workload-identity",
    "workload-proof",
    "x-amzn-mtls-",
    "x-arr-clientcert",
    "x-auth-request-",
    "x-authenticated-",
    "x-client-cert",
    "x-client-dn",
    "x-client-s-dn",
    "x-client-verif",
    "x-forwarded",
    "x-http-host",
    "x-original-",
    "x-remote-",
    "x-ssl-",
    "x-tls-",
    "x-webauth-",
];

/// What makes another request of the one that was decided about: another method, another path.
const DISGUISES: [&str; 6] = [
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
    "x-original-method",
    "x-original-url",
    "x-rewrite-url",
];

/// What of an answer is not the program's: sessions that need no token, what the agent remembers itself, and where else the
/// API can be reached.
const NOT_BACK: [&str; 4] = ["alt-svc", "dpop-nonce", "set-cookie", "set-cookie2"];

/// Why a request does not go on.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum HeaderError {
    /// It would become another request on its way.
    #[error(
        "a header names another method or path (X-HTTP-Method-Override, X-Original-URL and their like): send the request as \
         what it is"
    )]
    Disguise,
    /// `Connection` cannot be read.
    #[error("the Connection header holds no list of names (RFC 9110 7.6.1)")]
    Connection,
}

/// Whether a header says neither who calls nor anything of one connection, and makes no other request of this one.
pub(super) fn is_free(name: &HeaderName) -> bool {
    let name = name.as_str().replace('_', "-");
    let name = name.as_str();
    let taken = [&HOP_BY_HOP[..], &OURS, &DISGUISES, &["via"]];
    !taken.iter().any(|names| names.contains(&name))
        && !OURS_BEGIN.iter().any(|begin| name.starts_with(begin))
}

/// The headers that go on.
///
/// # Errors
/// [`HeaderError`] if the request should not go on at all.
pub fn onward(headers: &HeaderMap) -> Result<HeaderMap, HeaderError> {
    let listed = listed(headers).ok_or(HeaderError::Connection)?;
    let mut onward = HeaderMap::with_capacity(headers.len());
    for (name, value) in headers {
        // CGI and its heirs read an underscore as a dash.
        let as_read = name.as_str().replace('_', "-");
        if DISGUISES.contains(&&*as_read) {
            return Err(HeaderError::Disguise);
        }
        let ours = OURS.contains(&&*as_read) || OURS_BEGIN.iter().any(|begin| as_read.starts_with(begin));
        if !ours && !HOP_BY_HOP.contains(&&*as_read) && !listed.contains(name) {
            onward.append(name, value.clone());
        }
    }
    // RFC 9110 7.6.3: whoever stands between says so, and has no other name here.
    onward.append(header::VIA, HeaderValue::from_static("1.1 keybearer"));
    Ok(onward)
}

/// The headers that come back.
pub fn back(headers: &HeaderMap) -> HeaderMap {
    // A list that cannot be read lists nothing: what always ends here ends here all the same.
    let listed = listed(headers).unwrap_or_default();
    let passes = |name: &HeaderName| {
        let text = name.as_str();
        !HOP_BY_HOP.contains(&text)
            && !NOT_BACK.contains(&text)
            && !text.starts_with("keybearer")
            && !listed.contains(name)
    };
    headers
        .iter()
        .filter(|(name, _)| passes(name))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

/// The names that `Connection` lists.
fn listed(headers: &HeaderMap) -> Option<Vec<HeaderName>> {
    let mut listed = Vec::new();
    for value in headers.get_all(header::CONNECTION) {
        let names = value.to_str().ok()?.split(',').map(str::trim).filter(|name| !name.is_empty());
        for name in names {
            listed.push(name.parse().ok()?);
        }
    }
    Some(listed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(lines: &[(&str, &str)]) -> HeaderMap {
        let line = |(name, value): &(&str, &str)| {
            (name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap())
        };
        lines.iter().map(line).collect()
    }

    #[test]
    fn what_is_of_one_connection_ends_there_and_who_calls_is_ours_to_say() {
        // MT-13, DPOP-06, DPOP-27, RFC 9110 7.6.1: the table of what does not go on.
        for name in [
            "Connection",
            "Keep-Alive",
            "Proxy-Connection",
            "Proxy-Authorization",
            "Proxy-Authenticate",
            "TE",
            "Trailer",
            "Transfer-Encoding",
            "Upgrade",
            "HTTP2-Settings",
            "Expect",
            "Content-Length",
            "Host",
            "Authorization",
            "DPoP",
            "Cookie",
            "Keybearer",
            "Keybearer-Origin",
            "Forwarded",
            "X-Forwarded-For",
            "X-Forwarded-Host",
            "X-Forwarded-Client-Cert",
            "X-Real-IP",
            "Client-Cert",
            "Client-Cert-Chain",
            "X-Client-Cert",
            "X_Client_Cert",
            "X-SSL-Client-Cert",
            "SSL-Client-Cert",
            "SSL_CLIENT_S_DN",
            "X-SSL-Client-Verify",
            "X-ARR-ClientCert",
            "X-Amzn-Mtls-Clientcert-Leaf",
            "X-TLS-Client-Subject",
            "CF-Client-Cert-DER-Base64",
            "Workload-Identity-Token",
            "Remote-User",
            "X-Remote-User",
            "X-Auth-Request-Email",
            "X-Original-Host",
            "X-HTTP-Host-Override",
            "X-Host",
        ] {
            assert_eq!(onward(&of(&[(name, "close")])), Ok(of(&[("via", "1.1 keybearer")])), "{name}");
        }
        let listed =
            [("Connection", "close, X-Mine"), ("connection", " Accept "), ("X-Mine", "1"), ("Accept", "*/*")];
        assert_eq!(onward(&of(&listed)), Ok(of(&[("via", "1.1 keybearer")])));
        for name in [
            "X-HTTP-Method-Override",
            "X-Method-Override",
            "X_HTTP_Method",
            "X-Original-URL",
            "X-Rewrite-URL",
        ] {
            assert_eq!(onward(&of(&[(name, "DELETE")])), Err(HeaderError::Disguise), "{name}");
        }
        assert_eq!(onward(&of(&[("Connection", "a b")])), Err(HeaderError::Connection));
        let theirs = [
            ("accept", "*/*"),
            ("content-type", "a/b"),
            ("idempotency-key", "7"),
            ("if-match", "\"x\""),
            ("accept", "text/html"),
            ("traceparent", "00-x"),
            ("user-agent", "shop/1"),
            ("range", "bytes=0-1"),
            ("via", "1.0 proxy"),
            ("via", "1.1 keybearer"),
        ];
        assert_eq!(onward(&of(&theirs[..9])), Ok(of(&theirs)));
    }

    #[test]
    fn no_session_and_no_word_of_a_connection_comes_back() {
        for name in [
            "Connection",
            "Keep-Alive",
            "Proxy-Authenticate",
            "Trailer",
            "Transfer-Encoding",
            "Upgrade",
            "Content-Length",
            "Set-Cookie",
            "DPoP-Nonce",
            "Alt-Svc",
            "Keybearer-Exchange",
            "Keybearer-Error",
        ] {
            assert_eq!(back(&of(&[(name, "x")])), HeaderMap::new(), "{name}");
        }
        let theirs = [
            ("content-type", "a/b"),
            ("location", "https://elsewhere.example/"),
            ("www-authenticate", "Bearer"),
            ("etag", "\"x\""),
            ("retry-after", "3"),
            ("vary", "a"),
            ("vary", "b"),
        ];
        assert_eq!(back(&of(&theirs)), of(&theirs));
        let listed = [("Connection", "X-Theirs"), ("X-Theirs", "1"), ("etag", "x")];
        assert_eq!(back(&of(&listed)), of(&[("etag", "x")]));
    }
}

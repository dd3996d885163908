//! Calls of APIs, as programs ask for them over HTTP: `/v1/forward/CREDENTIAL/PATH?QUERY`, with the method, headers and body that
//! the API is to get; in HTTP/1.1 on the socket for it, or in HTTP/2 on a workloads' socket, which can put the challenge. In goes
//! such a request; out comes what the API answered, or a refusal of the agent's own, which has the header `keybearer-error`: no
//! API's answer has that.

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Response, Version};
use http_body_util::{BodyExt as _, Either, Full};
use hyper::body::Incoming;

use super::{
    http::{self as face, Body, Face},
    status::{EXCHANGE, Told, told},
};
use crate::{
    api::{Answering, HeaderError, Path, PathError, onward},
    journey::{Call, Forwarding},
};

/// What every such path begins with.
const PREFIX: &str = "/v1/forward/";

/// Names the origin to call, of several that the credential is for.
const ORIGIN: HeaderName = HeaderName::from_static("keybearer-origin");

/// Tells an answer of the agent's own from one of the API, and why there is none of the API.
const ERROR: HeaderName = HeaderName::from_static("keybearer-error");

/// Whether a request is meant for an API.
pub(super) fn is_meant<B>(request: &Request<B>) -> bool {
    request.uri().path().starts_with(PREFIX)
}

impl Face {
    /// Answers one call.
    pub(super) async fn forward(&self, call: &Call, request: Request<Incoming>) -> Response<Body> {
        match self.pass(call, request).await {
            Ok(answer) => answer.map(Either::Right),
            Err(no) => refused(&no).map(Either::Left),
        }
    }

    async fn pass(&self, call: &Call, request: Request<Incoming>) -> Result<Response<Answering>, Told> {
        let rest = request.uri().path().strip_prefix(PREFIX).unwrap_or_default();
        let (name, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let asked = self.asked(call, name, vec![], request.headers()).await?;
        let forwarding = match forwarding(path, &request) {
            Ok(forwarding) => forwarding,
            Err(what) => return Err(self.broke(call, what).await),
        };
        let body = request.into_body().map_err(Into::into).boxed_unsync();
        let forwarded = self.journey.forward(call, &asked, &forwarding, body).await;
        let (mut response, receipt) = forwarded.map_err(|no| told(&no))?.into_parts();
        if let Ok(exchange) = HeaderValue::from_str(&receipt.exchange().to_string()) {
            response.headers_mut().insert(EXCHANGE, exchange);
        }
        Ok(response)
    }
}

/// A refusal, marked as one of the agent's own.
fn refused(no: &Told) -> Response<Full<Bytes>> {
    let mut response = face::refused(no);
    response.headers_mut().insert(ERROR, HeaderValue::from_static(no.reason));
    response
}

/// The call that a request asks for; the error says what is wrong with it.
fn forwarding<B>(path: &str, request: &Request<B>) -> Result<Forwarding, &'static str> {
    let uri = request.uri();
    // In HTTP/1.1, whoever stands between could go by the one or the other; in HTTP/2 there is always an authority, which
    // means nothing here.
    if request.version() < Version::HTTP_2 && (uri.scheme().is_some() || uri.authority().is_some()) {
        return Err("the request line has a path, not a whole URL: GET /v1/forward/CREDENTIAL/PATH");
    }
    let path = Path::parse(path, uri.query()).map_err(|error| match error {
        PathError::Form => "the path is no path: write /PATH?QUERY in the characters of RFC 3986, others percent-encoded UTF-8",
        PathError::Hidden => "a path holds no %2F, %5C or control character, and nothing that is encoded twice",
        PathError::Long => "path and query are longer than 8 KiB",
        PathError::Steps => "a path holds no `.`, `..` or empty step (`//`), however it is written",
        PathError::Token => "a query holds no access_token: the agent adds the token, as a header",
    })?;
    let headers = onward(request.headers()).map_err(|error| match error {
        HeaderError::Connection => "the Connection header holds no list of names (RFC 9110 7.6.1)",
        HeaderError::Disguise => "a header names another method or path (X-HTTP-Method-Override and its like): send it as what it is",
    })?;
    let mut named = request.headers().get_all(ORIGIN).iter();
    let origin = match (named.next(), named.next()) {
        (None, _) => None,
        (Some(one), None) => Some(one.to_str().map_err(|_| NO_ORIGIN)?.to_owned()),
        _ => return Err(NO_ORIGIN),
    };
    Ok(Forwarding { method: request.method().clone(), origin, path, headers })
}

const NO_ORIGIN: &str = "keybearer-origin is one of the credential's origins, once: https://HOST";

#[cfg(test)]
mod tests {
    use super::*;

    fn request(target: &str, headers: &[(&str, &str)]) -> Request<()> {
        let mut request = Request::post(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap()
    }

    #[test]
    fn a_call_is_named_by_path_and_headers_and_by_nothing_else() {
        // DPOP-27
        let whole =
            request("/v1/forward/ledger/entries?a=b", &[("authorization", "Bearer x"), ("accept", "a/b")]);
        let call = forwarding("/entries", &whole).unwrap();
        assert_eq!((call.method.as_str(), call.origin, call.path.as_str()), ("POST", None, "/entries"));
        assert_eq!(call.headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["accept", "via"]);
        let other = request("/", &[("keybearer-origin", "https://b.example")]);
        assert_eq!(forwarding("", &other).unwrap().origin.as_deref(), Some("https://b.example"));
        let twice = [("keybearer-origin", "https://a.example"), ("keybearer-origin", "https://b.example")];
        for (path, bad) in [
            ("/entries", request("http://keybearer/v1/forward/ledger/entries", &[])),
            ("/entries", request("https://me@evil.example/v1/forward/ledger/entries", &[])),
            ("/../token", request("/", &[])),
            ("/a%2fb", request("/", &[])),
            ("/", request("/?access_token=x", &[])),
            ("/", request("/", &twice)),
            ("/", request("/", &[("x-http-method-override", "DELETE")])),
        ] {
            assert!(forwarding(path, &bad).is_err(), "{path} {bad:?}");
        }
    }
}

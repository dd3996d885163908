//! HTTP/1.1 on a Unix socket of its own: for curl, for probes, for programs without gRPC. In goes a request of an attested
//! session; out comes JSON, or an API's answer (`forward.rs`). Credentials are walked for like any other; `/live` and `/ready` say how the agent is, and
//! nothing about anybody.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use serde_json::{Map, Value, json};
use tokio::sync::watch;
use tonic::Code;

use super::{
    forward,
    metrics::{CONTENT_TYPE, Metrics},
    proving,
    ready::Readiness,
    status::{EXCHANGE, Told, invalid, told},
};
use crate::{
    api::Answering,
    clock::Clock,
    credential::Payload,
    journey::{self, Answer, Call, Journey, Session, trace_id},
    policy::name_is_sound,
    secret::Secret,
};

/// What is answered: JSON of our own, or an API's answer as it comes.
pub type Body = Either<Full<Bytes>, Answering>;

/// The face.
#[derive(Clone, Debug)]
pub struct Face {
    /// The way to credentials.
    pub journey: Arc<Journey>,
    /// For what is left of a life.
    pub clock: Arc<dyn Clock>,
    /// Whether the agent stops.
    pub stop: watch::Receiver<bool>,
    /// What operators may read, where they may.
    pub metrics: Option<Arc<Metrics>>,
}

impl Face {
    /// Answers one request.
    pub async fn answer(self, session: Arc<Session>, request: Request<Incoming>) -> Response<Body> {
        if forward::is_meant(&request) {
            return self.forward(&session.enter(), request).await;
        }
        self.tell(session, request).await.map(Either::Left)
    }

    /// Answers one that is about the agent or a credential.
    async fn tell(self, session: Arc<Session>, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let path = request.uri().path().to_owned();
        if request.method() != Method::GET {
            return json_response(
                StatusCode::METHOD_NOT_ALLOWED,
                None,
                &json!({"error": "only GET is spoken here"}),
            );
        }
        match path.as_str() {
            "/live" => json_response(StatusCode::OK, None, &json!({"state": "live"})),
            "/ready" => self.ready(),
            "/metrics" => match &self.metrics {
                Some(metrics) => self.page(metrics, &session).await.unwrap_or_else(|no| refused(&no)),
                None => nothing_there(),
            },
            _ => match path.strip_prefix("/v1/credentials/") {
                Some(name) => {
                    let (headers, query) = (request.headers(), request.uri().query().unwrap_or_default());
                    let answered = match name.strip_suffix("/proof") {
                        Some(name) => self.proof(&session.enter(), name, query, headers).await,
                        None => self.credential(&session.enter(), name, query, headers).await,
                    };
                    answered.unwrap_or_else(|no| refused(&no))
                }
                None => nothing_there(),
            },
        }
    }

    /// Metrics, for those who may read them. A scraper needs no header of ours: nothing here is a credential.
    async fn page(&self, metrics: &Metrics, session: &Session) -> Result<Response<Full<Bytes>>, Told> {
        if !metrics.may_read(session) {
            let what = "metrics are for root, the agent's user, operators and listen.metrics_group";
            let told = self.broke(session, what).await;
            return Err(Told { code: Code::PermissionDenied, reason: "NOT_AN_OPERATOR", ..told });
        }
        let Ok(page) = metrics.page() else {
            return Ok(json_response(StatusCode::INTERNAL_SERVER_ERROR, None, &json!({"error": "no page"})));
        };
        let mut response = Response::new(Full::new(Bytes::from(page)));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static(CONTENT_TYPE));
        headers.insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-store"));
        Ok(response)
    }

    async fn credential(
        &self,
        call: &Call,
        name: &str,
        query: &str,
        headers: &HeaderMap,
    ) -> Result<Response<Full<Bytes>>, Told> {
        let Some((scope, min_ttl)) = parameters(query) else {
            return Err(self.broke(call, "the query is scope=A+B and min_ttl=SECONDS, nothing else").await);
        };
        let asked = journey::Request { min_ttl, ..self.asked(call, name, scope, headers).await? };
        let answer = self.journey.fulfil(call, &asked).await.map_err(|no| told(&no))?;
        let exchange = answer.receipt().exchange().to_string();
        Ok(json_response(StatusCode::OK, Some(&exchange), &self.shown(&asked.name, &answer)))
    }

    async fn proof(
        &self,
        call: &Call,
        name: &str,
        query: &str,
        headers: &HeaderMap,
    ) -> Result<Response<Full<Bytes>>, Told> {
        let wanted = proof_parameters(query)
            .ok_or("the query is fingerprint=F, method=M, url=U, and perhaps nonce=N, nothing else")
            .and_then(|wanted| {
                let ProofParameters { fingerprint, method, url, nonce } = wanted;
                proving(&fingerprint, method, &url, &nonce)
            });
        let proving = match wanted {
            Ok(wanted) => wanted,
            Err(what) => return Err(self.broke(call, what).await),
        };
        let asked = self.asked(call, name, vec![], headers).await?;
        let proved = self.journey.prove(call, &asked, &proving).await.map_err(|no| told(&no))?;
        let exchange = proved.receipt().exchange().to_string();
        let shown = json!({"proof": proved.proof().expose_str().unwrap_or_default()});
        Ok(json_response(StatusCode::OK, Some(&exchange), &shown))
    }

    /// What every request for a credential has to have.
    pub(super) async fn asked(
        &self,
        session: &Session,
        name: &str,
        scope: Vec<String>,
        headers: &HeaderMap,
    ) -> Result<journey::Request, Told> {
        // ATT-28: a gadget that can make somebody fetch a URL cannot set a header.
        if headers.get("keybearer").is_none_or(|value| value != "v1") {
            return Err(self
                .broke(session, "every request for a credential carries the header `keybearer: v1`")
                .await);
        }
        if !name_is_sound(name) {
            return Err(self.broke(session, "a name is 1 to 63 of a-z, 0-9, - and _").await);
        }
        let traceparent = headers.get("traceparent").and_then(|value| value.to_str().ok());
        Ok(journey::Request {
            name: name.to_owned(),
            scope,
            min_ttl: Duration::ZERO,
            patience: Duration::from_secs(30),
            trace_id: traceparent.and_then(trace_id),
        })
    }

    fn shown(&self, name: &str, answer: &Answer) -> Value {
        let credential = answer.credential();
        let mut shown = json!({
            "name": name,
            "expires_at": format!("{:.0}", credential.window.until_wall),
            "expires_in": credential.window.left(self.clock.boot()).as_secs(),
            "scope": credential.scope.join(" "),
            "audience": credential.audience,
            "binding": credential.binding().as_str(),
            "fingerprint": credential.fingerprint.to_string(),
            "thumbprint": credential.bound.thumbprint(),
        });
        match &credential.payload {
            Payload::Token(token) => {
                shown["access_token"] = json!(token.expose_str());
                shown["token_type"] = json!(credential.binding().scheme());
            }
            Payload::Certificate { bundle, .. } => shown["bundle_pem"] = json!(&**bundle),
            Payload::Values { values, .. } | Payload::Static(values) => {
                let values = values.iter().map(|(name, value)| (name.clone(), json!(value.expose_str())));
                shown["values"] = values.collect::<Map<_, _>>().into();
            }
        }
        if let Payload::Static(_) = &credential.payload {
            shown["static"] = json!(true);
        }
        if let Some((certificate, key)) = answer.client_certificate() {
            shown["client_certificate"] = json!({
                "chain_pem": certificate.chain_pem(),
                "key_pem": key.and_then(Secret::expose_str),
            });
        }
        shown
    }

    pub(super) async fn broke(&self, session: &Session, what: &'static str) -> Told {
        match self.journey.broke_protocol(session, what).await {
            Ok(receipt) => Told { exchange: Some(receipt.exchange().to_string()), ..invalid(what) },
            Err(refusal) => told(&refusal),
        }
    }

    fn ready(&self) -> Response<Full<Bytes>> {
        let Readiness { state, why } = Readiness::of(&self.journey, *self.stop.borrow());
        let status = if state == "down" { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
        json_response(status, None, &json!({"state": state, "why": why}))
    }
}

fn nothing_there() -> Response<Full<Bytes>> {
    let what = "there are /live, /ready, /metrics, /v1/credentials/NAME, /v1/credentials/NAME/proof and /v1/forward/NAME/PATH";
    json_response(StatusCode::NOT_FOUND, None, &json!({"error": what}))
}

pub(super) fn refused(no: &Told) -> Response<Full<Bytes>> {
    let status = StatusCode::from_u16(no.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let body = json!({"error": no.reason, "message": no.message, "exchange": no.exchange});
    let mut response = json_response(status, no.exchange.as_deref(), &body);
    if let Some(wait) = no.retry_after {
        response.headers_mut().insert(header::RETRY_AFTER, wait.as_secs().max(1).into());
    }
    response
}

fn json_response(status: StatusCode, exchange: Option<&str>, body: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(format!("{body}\n"))));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-store"));
    if let Some(exchange) = exchange.and_then(|id| header::HeaderValue::from_str(id).ok()) {
        headers.insert(EXCHANGE, exchange);
    }
    response
}

/// `scope=A+B&min_ttl=SECONDS`.
fn parameters(query: &str) -> Option<(Vec<String>, Duration)> {
    let (mut scope, mut min_ttl) = (None, None);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=')? {
            ("scope", words) if scope.is_none() => {
                let words: Vec<String> = decoded(words)?.split(' ').map(str::to_owned).collect();
                if words.len() > 64 || words.iter().any(|word| word.is_empty() || word.len() > 256) {
                    return None;
                }
                scope = Some(words);
            }
            ("min_ttl", seconds) if min_ttl.is_none() => {
                min_ttl =
                    Some(Duration::from_secs(seconds.parse().ok().filter(|seconds| *seconds <= 86_400)?));
            }
            _ => return None,
        }
    }
    Some((scope.unwrap_or_default(), min_ttl.unwrap_or_default()))
}

/// What the query for a proof says.
#[derive(Debug, Default, PartialEq)]
struct ProofParameters {
    fingerprint: String,
    method: String,
    url: String,
    nonce: String,
}

/// `fingerprint=F&method=M&url=U&nonce=N`, each once.
fn proof_parameters(query: &str) -> Option<ProofParameters> {
    let mut said = ProofParameters::default();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, text) = pair.split_once('=')?;
        let place = match name {
            "fingerprint" => &mut said.fingerprint,
            "method" => &mut said.method,
            "url" => &mut said.url,
            "nonce" => &mut said.nonce,
            _ => return None,
        };
        if !place.is_empty() {
            return None;
        }
        *place = decoded(text)?;
    }
    Some(said)
}

/// Percent-decoding of ASCII.
fn decoded(text: &str) -> Option<String> {
    let mut out = String::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let byte = match byte {
            b'+' => b' ',
            b'%' => {
                let digits = [bytes.next()?, bytes.next()?];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            other => other,
        };
        if !(byte.is_ascii_graphic() || byte == b' ') {
            return None;
        }
        out.push(char::from(byte));
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_proof_is_for_is_said_once_and_decoded() {
        let said =
            proof_parameters("fingerprint=ab&method=GET&url=https%3A%2F%2Fa.example%2Fb&nonce=n").unwrap();
        assert_eq!((said.url.as_str(), said.nonce.as_str()), ("https://a.example/b", "n"));
        for bad in ["method=GET&method=PUT", "x=1", "url", "url=%0d%0a", "scope=a"] {
            assert_eq!(proof_parameters(bad), None, "{bad}");
        }
    }

    #[test]
    fn parameters_are_few_and_checked() {
        let scope = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        assert_eq!(parameters(""), Some((vec![], Duration::ZERO)));
        assert_eq!(
            parameters("scope=a+b%3Ac&min_ttl=60"),
            Some((scope(&["a", "b:c"]), Duration::from_secs(60)))
        );
        for bad in [
            "scope",
            "scope=a&scope=b",
            "min_ttl=-1",
            "min_ttl=99999999",
            "x=1",
            "scope=%0a",
            "scope=%zz",
            "scope=a++b",
        ] {
            assert_eq!(parameters(bad), None, "{bad}");
        }
    }
}

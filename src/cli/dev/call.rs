//! One call to an API, as any program makes it. In go a method, a URL, and the two headers that prove something; out comes what
//! the API said.

use bytes::Bytes;
use http::header;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::{client::legacy::Client as HttpClient, rt::TokioExecutor};
use serde_json::Value;

use crate::cli::Exit;

/// What an API said.
pub(super) struct Heard {
    pub(super) status: u16,
    pub(super) body: String,
    /// What it wants to see in the next proof.
    pub(super) nonce: Option<String>,
}

impl Heard {
    /// The status, and why where it is a no: in the API's own words, without its advice.
    pub(super) fn in_short(&self) -> String {
        let said: Value = serde_json::from_str(&self.body).unwrap_or_default();
        match said["error_description"].as_str().and_then(|why| why.split([':', ',']).next()) {
            Some(why) => format!("{}: {why}", self.status),
            None => self.status.to_string(),
        }
    }
}

/// Sends one request and hears the answer out.
pub(super) async fn call(
    method: &str,
    url: &str,
    authorization: Option<&str>,
    proof: Option<&str>,
) -> Result<Heard, Exit> {
    let failed = |error: &dyn std::fmt::Display| Exit::new(Exit::UNAVAILABLE, format!("{url}: {error}"));
    let mut request = http::Request::builder().method(method).uri(url);
    for (name, value) in [("authorization", authorization), ("dpop", proof)] {
        if let Some(value) = value {
            request = request.header(name, value);
        }
    }
    let request = request
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| failed(&error))?;
    let client: HttpClient<_, Empty<Bytes>> = HttpClient::builder(TokioExecutor::new()).build_http();
    let response = client.request(request).await.map_err(|error| failed(&error))?;
    let status = response.status().as_u16();
    let nonce = response.headers().get("dpop-nonce").and_then(|nonce| nonce.to_str().ok()).map(str::to_owned);
    let body =
        Limited::new(response.into_body(), 64 << 10).collect().await.map_err(|error| failed(&error))?;
    Ok(Heard { status, body: String::from_utf8_lossy(&body.to_bytes()).into_owned(), nonce })
}

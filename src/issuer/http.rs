//! The one way out of this house. In goes a request; out comes the whole answer, or an [`HttpError`]. Nothing
//! is sent without TLS (a development issuer on loopback excepted), no redirect is followed, nothing is sent
//! twice, and nothing is read for longer or further than the limits below.
//!
//! Each issuer has a client of its own, with its own roots and its own connections (OA-06, OA-08); and each certificate that
//! is shown to it has one more (MT-10).

use std::{
    error::Error,
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header};
use http_body::Body as HttpBody;
use http_body_util::{BodyExt as _, Full};
use hyper_util::{
    client::legacy::Client,
    rt::{TokioExecutor, TokioTimer},
};
use rustls::{AlertDescription, ClientConfig, ConfigBuilder, RootCertStore, WantsVerifier};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use serde_json::Value;
use zeroize::Zeroizing;

pub use super::route::{has_proxy, is_loopback};
use super::{door::Door, route::Route};
use crate::{
    keys::{ClientCertificate, NotShown},
    secret::Secret,
};

/// The longest body that is read (OA-03).
pub const MAX_BODY: usize = 256 * 1024;

/// The longest header block that is read, and the most headers in it.
const MAX_HEADER_BYTES: u32 = 32 * 1024;
const MAX_HEADERS: usize = 64;

/// How long an unused connection is kept. Short, because a connection that the issuer closed meanwhile costs
/// a failed attempt: nothing here replays a request (PKJ-12).
const IDLE: Duration = Duration::from_secs(20);

/// How this agent introduces itself.
pub const USER_AGENT: &str = concat!("keybearer/", env!("CARGO_PKG_VERSION"));

/// How to reach one issuer.
#[derive(Clone, Debug)]
pub struct HttpSettings {
    /// The only roots to trust, PEM; without it, the host's (OA-06).
    pub ca_file: Option<PathBuf>,
    /// Whether `http://` to a loopback host is allowed: development only (OA-01).
    pub allow_plain_loopback: bool,
    /// The longest a whole exchange may take, from name lookup to the last byte.
    pub timeout: Duration,
    /// How we introduce ourselves.
    pub user_agent: String,
}

/// One request.
#[derive(Debug)]
pub struct Request {
    /// Where to.
    pub url: String,
    /// How.
    pub method: Method,
    /// What goes with it.
    pub body: Option<Body>,
    /// Headers of its own. Their values may be secret: none is shown, and all are wiped.
    pub headers: Vec<(HeaderName, Secret)>,
}

/// What goes with a request. It may hold an assertion, so it is wiped after sending.
#[derive(Debug)]
pub struct Body {
    /// What it is.
    pub media_type: &'static str,
    /// It.
    pub content: Secret,
}

impl Request {
    /// A GET.
    pub fn get(url: impl Into<String>) -> Self {
        Self { url: url.into(), method: Method::GET, body: None, headers: Vec::new() }
    }

    /// A POST of an encoded form.
    pub fn form(url: impl Into<String>, content: Secret) -> Self {
        Self::post(url, Body { media_type: "application/x-www-form-urlencoded", content })
    }

    /// A POST of a JSON document.
    pub fn json(url: impl Into<String>, document: &Value) -> Self {
        Self::post(url, Body { media_type: "application/json", content: Secret::new(document.to_string()) })
    }

    /// A POST.
    pub fn post(url: impl Into<String>, body: Body) -> Self {
        Self { method: Method::POST, body: Some(body), ..Self::get(url) }
    }

    /// The same with one header more, which takes the place of what is sent otherwise.
    pub fn with(mut self, name: HeaderName, value: Secret) -> Self {
        self.headers.push((name, value));
        self
    }
}

/// A whole answer that is not a redirect.
pub struct Response {
    /// The status code.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body, which may hold a token.
    pub body: Secret,
}

impl Response {
    /// A header, if it is there and is text.
    pub fn header(&self, name: header::HeaderName) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

impl fmt::Debug for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Headers may carry cookies; the status is all that is safe to show.
        write!(f, "Response({}, {} bytes)", self.status, self.body.len())
    }
}

/// A client for one issuer.
pub struct Http {
    client: Client<Door, Full<Bytes>>,
    door: Door,
    allow_plain_loopback: bool,
    timeout: Duration,
    user_agent: HeaderValue,
}

impl Http {
    /// Reads the roots and builds the client. Nothing is sent yet. Must be called again to see new roots.
    ///
    /// # Errors
    /// [`HttpError::CaFile`] or [`HttpError::NoRoots`]; [`HttpError::Protocol`] if the user agent is no header.
    pub fn new(settings: HttpSettings) -> Result<Self, HttpError> {
        let door = door(settings.ca_file.as_deref(), settings.allow_plain_loopback)?;
        Self::through(settings, door)
    }

    /// The same, for a server that `roots` and nobody else vouch for, whatever the settings say.
    ///
    /// # Errors
    /// [`HttpError::Tls`] for what is no root, [`HttpError::Protocol`] if the user agent is no header.
    pub fn trusting(settings: HttpSettings, roots: &[CertificateDer<'static>]) -> Result<Self, HttpError> {
        let mut store = RootCertStore::empty();
        for root in roots {
            store.add(root.clone()).map_err(|error| HttpError::Tls(printable(&error.to_string(), 200)))?;
        }
        Self::speaking(settings, speech().with_root_certificates(store).with_no_client_auth())
    }

    /// A client that speaks TLS in this way.
    pub(super) fn speaking(settings: HttpSettings, tls: ClientConfig) -> Result<Self, HttpError> {
        Self::through(settings, Door::new(Route::from_environment(), tls))
    }

    fn through(settings: HttpSettings, door: Door) -> Result<Self, HttpError> {
        Ok(Self {
            client: client(door.clone()),
            door,
            allow_plain_loopback: settings.allow_plain_loopback,
            timeout: settings.timeout,
            user_agent: HeaderValue::from_str(&settings.user_agent).map_err(|_| HttpError::Protocol)?,
        })
    }

    /// A client like this one that shows `certificate` on each of its connections, which are its own (MT-10). The server's
    /// certificate is doubted as ever (MT-06).
    pub fn showing(&self, certificate: Arc<ClientCertificate>) -> Self {
        let door = self.door.showing(certificate);
        Self { client: client(door.clone()), door, user_agent: self.user_agent.clone(), ..*self }
    }

    /// Sends `request` once and reads the whole answer.
    ///
    /// # Errors
    /// [`HttpError`], by what went wrong. After an error the issuer may or may not have seen the request.
    pub async fn send(&self, request: Request) -> Result<Response, HttpError> {
        let target: Uri = request.url.parse().map_err(|_| HttpError::Plain)?;
        may_go(&target, &self.door, self.allow_plain_loopback)?;
        let builder = http::Request::builder().uri(target).method(request.method);
        let (body, media_type) = match request.body {
            None => (Full::default(), None),
            Some(body) => (Full::new(Bytes::from_owner(Wiped(body.content))), Some(body.media_type)),
        };
        let mut built = builder.body(body).map_err(|_| HttpError::Protocol)?;
        let headers = built.headers_mut();
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        headers.insert(header::USER_AGENT, self.user_agent.clone());
        headers.extend(
            media_type.map(|media_type| (header::CONTENT_TYPE, HeaderValue::from_static(media_type))),
        );
        for (name, value) in &request.headers {
            let mut value = HeaderValue::from_bytes(value.expose()).map_err(|_| HttpError::Protocol)?;
            value.set_sensitive(true);
            headers.insert(name, value);
        }
        match tokio::time::timeout(self.timeout, self.exchange(built)).await {
            Ok(done) => done,
            Err(_) => Err(HttpError::Timeout),
        }
    }

    async fn exchange(&self, request: http::Request<Full<Bytes>>) -> Result<Response, HttpError> {
        let answer = self.client.request(request).await.map_err(|error| fault(&error))?;
        let (head, mut body) = answer.into_parts();
        let status = head.status.as_u16();
        if head.status.is_redirection() {
            return Err(HttpError::Redirect { status });
        }
        // Room for the longest body at once: a buffer that grows leaves copies of a token behind.
        let mut read = Zeroizing::new(Vec::with_capacity(MAX_BODY));
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| fault(&error))?;
            let Some(piece) = frame.data_ref() else { continue };
            if read.len() + piece.len() > MAX_BODY {
                return Err(HttpError::TooLarge);
            }
            read.extend_from_slice(piece);
        }
        Ok(Response { status, headers: head.headers, body: Secret::new(std::mem::take(&mut *read)) })
    }
}

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Http(timeout {:?})", self.timeout)
    }
}

/// Why there is no answer, or none that may be used.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum HttpError {
    /// The file of roots cannot be used.
    #[error("ca_file {path}: {what}: name a readable PEM file with the issuer's root certificates")]
    CaFile {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The client certificate was not shown, or the server would not have it (MT-14).
    #[error("the client certificate is of no use here: {0}")]
    CertNotAccepted(String),
    /// No connection.
    #[error("no connection to the issuer: {0}: check its name, the network and the proxy")]
    Connect(String),
    /// The host's trust store is empty.
    #[error("the host has no root certificates: install ca-certificates or set ca_file")]
    NoRoots,
    /// The URL is not `https` (nor loopback in development), so nothing was sent.
    #[error("the URL is not https, so nothing was sent: use an https URL")]
    Plain,
    /// What came back is not HTTP, or broke off.
    #[error("the connection broke off or did not speak HTTP: look at the issuer and what stands before it")]
    Protocol,
    /// The issuer sent us elsewhere, which is never followed (PKJ-17).
    #[error("the issuer answered {status}, a redirect, which is never followed: set the final URL")]
    Redirect {
        /// The status.
        status: u16,
    },
    /// It took too long.
    #[error("the issuer did not answer in time: see whether it is overloaded")]
    Timeout,
    /// TLS failed: mostly, the certificate is not to be trusted.
    #[error("TLS with the issuer failed: {0}: check its certificate and ca_file")]
    Tls(String),
    /// The answer is longer than we read.
    #[error("the issuer's answer is too large: see whether the URL is that of an issuer")]
    TooLarge,
}

/// How TLS is spoken, before it is said who is trusted.
pub(super) fn speech() -> ConfigBuilder<ClientConfig, WantsVerifier> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring speaks TLS 1.2 and 1.3")
}

/// Whether anything is sent to `target`: over TLS, or within this host where development allows that; and not past a
/// certificate that should be shown.
pub(super) fn may_go(target: &Uri, door: &Door, allow_plain_loopback: bool) -> Result<(), HttpError> {
    let allowed = match target.scheme_str() {
        Some("https") => true,
        Some("http") => allow_plain_loopback && is_loopback(target),
        _ => false,
    };
    if !allowed {
        return Err(HttpError::Plain);
    }
    if door.shows_certificate() && target.scheme_str() == Some("http") {
        return Err(HttpError::CertNotAccepted("the endpoint is plain http, which carries none".into()));
    }
    Ok(())
}

/// A door without a certificate, behind which only these roots are trusted: the one place where TLS is set up (MT-06).
pub(super) fn door(ca_file: Option<&Path>, allow_plain_loopback: bool) -> Result<Door, HttpError> {
    let tls = speech().with_root_certificates(roots(ca_file, allow_plain_loopback)?).with_no_client_auth();
    Ok(Door::new(Route::from_environment(), tls))
}

/// A pool of connections through `door`.
pub(super) fn client<B>(door: Door) -> Client<Door, B>
where
    B: HttpBody<Data: Send> + Send,
{
    Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE)
        .http1_max_headers(MAX_HEADERS)
        .http1_max_buf_size(MAX_HEADER_BYTES as usize)
        .http2_max_header_list_size(MAX_HEADER_BYTES)
        // PKJ-12: a replayed POST would carry the same assertion twice.
        .retry_canceled_requests(false)
        .build(door)
}

/// `text` of a stranger, made fit for a log: printable ASCII, at most `longest` characters (ER-13).
pub(super) fn printable(text: &str, longest: usize) -> String {
    text.chars().filter(|c| *c == ' ' || c.is_ascii_graphic()).take(longest).collect()
}

/// The body of a request, wiped when the connection is done with it. What TLS buffers is out of our hands.
pub(super) struct Wiped(pub(super) Secret);

impl AsRef<[u8]> for Wiped {
    fn as_ref(&self) -> &[u8] {
        self.0.expose()
    }
}

fn roots(ca_file: Option<&Path>, allow_plain_loopback: bool) -> Result<RootCertStore, HttpError> {
    let mut store = RootCertStore::empty();
    let Some(path) = ca_file else {
        store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        return if store.is_empty() && !allow_plain_loopback { Err(HttpError::NoRoots) } else { Ok(store) };
    };
    let unusable = |what: String| HttpError::CaFile { path: path.to_owned(), what };
    let listed = CertificateDer::pem_file_iter(path).map_err(|error| unusable(error.to_string()))?;
    for certificate in listed {
        let certificate = certificate.map_err(|error| unusable(error.to_string()))?;
        store.add(certificate).map_err(|error| unusable(error.to_string()))?;
    }
    if store.is_empty() { Err(unusable("it holds no certificate".into())) } else { Ok(store) }
}

/// Sorts what the layers below report, which wrap one another in errors without kinds.
pub(super) fn fault(error: &(dyn Error + 'static)) -> HttpError {
    if let Some(not_shown) = find::<NotShown>(error) {
        return HttpError::CertNotAccepted(not_shown.to_string());
    }
    if let Some(rustls::Error::AlertReceived(alert)) = find::<rustls::Error>(error)
        && is_about_ours(*alert)
    {
        return HttpError::CertNotAccepted(format!(
            "the server refused it ({alert:?}): register it there, or have the server trust who signed it"
        ));
    }
    if let Some(tls) = find::<rustls::Error>(error) {
        // Its text quotes names from the other side's certificate.
        return HttpError::Tls(printable(&tls.to_string(), 200));
    }
    if find::<hyper::Error>(error).is_some_and(hyper::Error::is_parse_too_large) {
        return HttpError::TooLarge;
    }
    let connecting =
        error.downcast_ref::<hyper_util::client::legacy::Error>().is_some_and(|error| error.is_connect());
    if connecting {
        HttpError::Connect(printable(&deepest(error).to_string(), 200))
    } else {
        HttpError::Protocol
    }
}

/// Whether an alert of the server is about the client's certificate: about its own, it is we who would send one.
fn is_about_ours(alert: AlertDescription) -> bool {
    use AlertDescription as Alert;
    matches!(
        alert,
        Alert::AccessDenied
            | Alert::BadCertificate
            | Alert::CertificateExpired
            | Alert::CertificateRequired
            | Alert::CertificateRevoked
            | Alert::CertificateUnknown
            | Alert::UnknownCA
            | Alert::UnsupportedCertificate
    )
}

fn find<'e, E: Error + 'static>(error: &'e (dyn Error + 'static)) -> Option<&'e E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        next = cause(error);
    }
    None
}

fn deepest<'e>(error: &'e (dyn Error + 'static)) -> &'e (dyn Error + 'static) {
    let mut deepest = error;
    while let Some(below) = cause(deepest) {
        deepest = below;
    }
    deepest
}

/// What stands behind `error`. An `io::Error` around another error names that one's source as its own and
/// skips the error itself.
fn cause<'e>(error: &'e (dyn Error + 'static)) -> Option<&'e (dyn Error + 'static)> {
    match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        Some(inner) => Some(inner),
        None => error.source(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::issuer::script::{Answer, Script};

    fn settings(ca_file: Option<PathBuf>) -> HttpSettings {
        HttpSettings {
            ca_file,
            allow_plain_loopback: true,
            timeout: Duration::from_secs(10),
            user_agent: "keybearer/test".into(),
        }
    }

    fn get(url: &str) -> Request {
        Request::get(url)
    }

    fn post(url: &str) -> Request {
        Request::form(url, Secret::new("a=b"))
    }

    #[tokio::test]
    async fn only_https_or_loopback_in_development_is_spoken() {
        // OA-01, PKJ-17
        let script = Script::plain().await;
        let strict = Http::new(HttpSettings { allow_plain_loopback: false, ..settings(None) });
        // A host without a trust store says so instead.
        if let Ok(strict) = strict {
            assert_eq!(strict.send(post(&script.url)).await.unwrap_err(), HttpError::Plain);
        }
        let lax = Http::new(settings(None)).unwrap();
        for url in ["http://192.0.2.1/", "http://localhost.example/", "ftp://127.0.0.1/", "/path", ""] {
            assert_eq!(lax.send(post(url)).await.unwrap_err(), HttpError::Plain, "{url}");
        }
        assert!(script.diary().is_empty());
        script.will([Answer::json(200, "{}")]);
        assert_eq!(lax.send(post(&script.url)).await.unwrap().status, 200);
    }

    #[tokio::test]
    async fn only_the_issuers_roots_and_name_are_trusted() {
        // OA-06
        let directory = tempfile::tempdir().unwrap();
        let (right, right_root) = Script::tls(&directory, &["localhost"]).await;
        let (misnamed, misnamed_root) = Script::tls(&directory, &["elsewhere.example"]).await;
        right.will([Answer::json(200, r#"{"a":1}"#)]);
        let http = Http::new(settings(Some(right_root))).unwrap();
        assert_eq!(http.send(get(&right.url)).await.unwrap().body.expose(), br#"{"a":1}"#);
        let misled = http.send(post(&misnamed.url)).await.unwrap_err();
        assert!(
            matches!(&misled, HttpError::Tls(why) if why.contains("invalid peer certificate")),
            "{misled}"
        );
        let http = Http::new(settings(Some(misnamed_root))).unwrap();
        let misled = http.send(post(&misnamed.url)).await.unwrap_err();
        assert!(matches!(&misled, HttpError::Tls(why) if why.contains("localhost")), "{misled}");
        assert!(misnamed.diary().is_empty());
    }

    #[test]
    fn roots_that_cannot_be_used_are_named() {
        // OA-06
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("roots.pem");
        for content in
            [None, Some(""), Some("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")]
        {
            if let Some(content) = content {
                std::fs::write(&path, content).unwrap();
            }
            let error = Http::new(settings(Some(path.clone()))).unwrap_err();
            assert!(error.to_string().contains("roots.pem"), "{error}");
        }
    }

    #[tokio::test]
    async fn a_redirect_goes_nowhere() {
        // PKJ-17
        let (first, second) = (Script::plain().await, Script::plain().await);
        let http = Http::new(settings(None)).unwrap();
        for status in [301, 302, 303, 307, 308] {
            first.will([Answer::json(status, "{}").with("location", &second.url)]);
            assert_eq!(http.send(post(&first.url)).await.unwrap_err(), HttpError::Redirect { status });
        }
        assert_eq!(first.diary().len(), 5);
        assert!(second.diary().is_empty());
    }

    #[tokio::test]
    async fn size_is_bounded() {
        // OA-03
        let script = Script::plain().await;
        let http = Http::new(settings(None)).unwrap();
        script.will([Answer::json(200, "x".repeat(MAX_BODY)), Answer::json(200, "x".repeat(MAX_BODY + 1))]);
        assert_eq!(http.send(get(&script.url)).await.unwrap().body.len(), MAX_BODY);
        assert_eq!(http.send(get(&script.url)).await.unwrap_err(), HttpError::TooLarge);
        script.will([Answer::json(200, "{}").with("x-long", &"x".repeat(4 * MAX_HEADER_BYTES as usize))]);
        assert_eq!(http.send(get(&script.url)).await.unwrap_err(), HttpError::TooLarge);
    }

    #[tokio::test]
    async fn patience_is_bounded() {
        // ER-12
        let script = Script::plain().await;
        let short = HttpSettings { timeout: Duration::from_millis(200), ..settings(None) };
        script.will([Answer::Half]);
        assert_eq!(Http::new(short).unwrap().send(get(&script.url)).await.unwrap_err(), HttpError::Timeout);
    }

    #[tokio::test]
    async fn nothing_is_sent_twice() {
        // PKJ-12: the second POST dies on a connection that was used before, where libraries like to try again.
        let script = Script::plain().await;
        let http = Http::new(settings(None)).unwrap();
        script.will([Answer::KeptOpen { body: "{}".into() }, Answer::HangUp, Answer::json(200, "{}")]);
        assert_eq!(http.send(post(&script.url)).await.unwrap().status, 200);
        assert_eq!(http.send(post(&script.url)).await.unwrap_err(), HttpError::Protocol);
        assert_eq!(script.posts().len(), 2);
    }

    #[tokio::test]
    async fn nobody_there_is_no_connection() {
        // ER-12
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        drop(listener);
        let error = Http::new(settings(None)).unwrap().send(get(&url)).await.unwrap_err();
        assert!(matches!(error, HttpError::Connect(_)), "{error}");
    }
}

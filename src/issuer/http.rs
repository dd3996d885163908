//! The one outbound client. In goes a request; out comes a whole answer of bounded size, or what kind of trouble there
//! was. It follows no redirect, repeats no body, and speaks plain HTTP with nobody but a development issuer on this
//! host's loopback.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::{
        legacy::{
            Client,
            connect::{HttpConnector, proxy::Tunnel},
        },
        proxy::matcher::Matcher,
    },
    rt::{TokioExecutor, TokioTimer},
};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use tokio::time::timeout;
use zeroize::Zeroizing;

use crate::secret::{Secret, scrubbed};

/// No answer we can use is larger (OA-03).
const MAX_BODY: usize = 256 << 10;

/// What an issuer's client is made of.
#[derive(Clone, Debug)]
pub struct HttpSettings {
    /// The roots to trust instead of the host's (OA-06).
    pub ca_file: Option<PathBuf>,
    /// Whether `http://` to this host's loopback is allowed: for development issuers.
    pub allow_plain_loopback: bool,
    /// For a whole exchange, connecting included.
    pub timeout: Duration,
}

/// A whole answer.
#[derive(Debug)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body, which may be a token.
    pub body: Secret,
}

impl Answer {
    /// Whether its body says it is JSON (OA-44).
    pub fn is_json(&self) -> bool {
        let kind =
            self.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        kind == "application/json" || (kind.starts_with("application/") && kind.ends_with("+json"))
    }
}

/// A client of one issuer. Its connections are never another issuer's (OA-08).
#[derive(Debug)]
pub struct Http {
    direct: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    proxied: Option<(Matcher, Arc<ClientConfig>)>,
    settings: HttpSettings,
}

impl Http {
    /// A client with these settings.
    ///
    /// # Errors
    /// [`HttpError::Roots`] if there is nothing to trust.
    pub fn new(settings: HttpSettings) -> Result<Self, HttpError> {
        let roots = match &settings.ca_file {
            Some(file) => file_roots(file)?,
            None if settings.allow_plain_loopback => RootCertStore::empty(),
            None => host_roots()?,
        };
        // Said aloud, so that no other crate's default provider is ever used.
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| HttpError::Roots(error.to_string()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let direct = client(
            HttpsConnectorBuilder::new()
                .with_tls_config(tls.clone())
                .https_or_http()
                .enable_all_versions()
                .build(),
        );
        let matcher = Matcher::from_env();
        Ok(Self { direct, proxied: Some((matcher, Arc::new(tls))), settings })
    }

    /// Sends once and waits for the whole answer.
    ///
    /// # Errors
    /// [`HttpError`], sorted by what it says about the other side.
    pub async fn send(&self, method: Method, url: &str, form: Option<&str>) -> Result<Answer, HttpError> {
        let uri: Uri = url.parse().map_err(|_| HttpError::Url)?;
        let loopback = self.check_scheme(&uri)?;
        let mut request = Request::builder()
            .method(method)
            .uri(uri.clone())
            .header(header::ACCEPT, "application/json")
            .header(header::USER_AGENT, concat!("keybearer/", env!("CARGO_PKG_VERSION")));
        if form.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
        }
        let body = Full::new(Bytes::copy_from_slice(form.unwrap_or_default().as_bytes()));
        let request = request.body(body).map_err(|_| HttpError::Url)?;
        let exchange = async {
            let proxy = self.proxied.as_ref().filter(|_| !loopback);
            let proxy = proxy.and_then(|(matcher, tls)| Some((matcher.intercept(&uri)?, tls)));
            let response = match proxy {
                Some((proxy, tls)) => {
                    let mut tunnel = Tunnel::new(proxy.uri().clone(), plain_connector());
                    if let Some(auth) = proxy.basic_auth() {
                        tunnel = tunnel.with_auth(auth.clone());
                    }
                    let connector = HttpsConnectorBuilder::new()
                        .with_tls_config(ClientConfig::clone(tls))
                        .https_only()
                        .enable_all_versions()
                        .wrap_connector(tunnel);
                    client(connector).request(request).await
                }
                None => self.direct.request(request).await,
            };
            let (head, body) = response.map_err(|error| classify(&error))?.into_parts();
            // A 307 would have us send the assertion to whoever it names (PKJ-17).
            if head.status.is_redirection() {
                return Err(HttpError::Redirect(head.status.as_u16()));
            }
            let collected = Limited::new(body, MAX_BODY).collect().await.map_err(|error| {
                if error.is::<http_body_util::LengthLimitError>() {
                    HttpError::TooLarge
                } else {
                    HttpError::Broken
                }
            })?;
            let bytes = Zeroizing::new(collected.to_bytes().to_vec());
            Ok(Answer { status: head.status, headers: head.headers, body: Secret::new(bytes.as_slice()) })
        };
        timeout(self.settings.timeout, exchange).await.map_err(|_| HttpError::Timeout)?
    }

    fn check_scheme(&self, uri: &Uri) -> Result<bool, HttpError> {
        let host = uri.host().ok_or(HttpError::Url)?;
        let loopback = is_loopback(host);
        match uri.scheme_str() {
            Some("https") => Ok(false),
            Some("http") if self.settings.allow_plain_loopback && loopback => Ok(true),
            _ => Err(HttpError::Plain),
        }
    }
}

/// Whether a host is this host.
pub(super) fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

fn client<C>(connector: C) -> Client<C, Full<Bytes>>
where
    C: hyper_util::client::legacy::connect::Connect + Clone,
{
    Client::builder(TokioExecutor::new())
        // The library would send a body twice on a connection that died early; each attempt of ours has an
        // assertion of its own (PKJ-12).
        .retry_canceled_requests(false)
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(Duration::from_secs(30))
        .pool_max_idle_per_host(4)
        .http1_max_buf_size(64 << 10)
        .build(connector)
}

fn plain_connector() -> HttpConnector {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector
}

fn file_roots(file: &Path) -> Result<RootCertStore, HttpError> {
    let wrong = |what: String| HttpError::Roots(format!("{}: {what}", file.display()));
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(file).map_err(|error| wrong(error.to_string()))? {
        let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
        roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
    }
    if roots.is_empty() { Err(wrong("it holds no certificate (PEM)".into())) } else { Ok(roots) }
}

fn host_roots() -> Result<RootCertStore, HttpError> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let why = found.errors.first().map_or_else(|| "none are installed".into(), ToString::to_string);
        return Err(HttpError::Roots(format!(
            "this host trusts no certificates ({why}): install ca-certificates or set ca_file"
        )));
    }
    Ok(roots)
}

fn classify(error: &(dyn std::error::Error + 'static)) -> HttpError {
    let mut cause = Some(error);
    let mut last = error.to_string();
    while let Some(error) = cause {
        last = error.to_string();
        if let Some(tls) = error.downcast_ref::<rustls::Error>() {
            return HttpError::Tls(scrubbed(&tls.to_string(), 200));
        }
        if let Some(inner) = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
            cause = Some(inner);
            continue;
        }
        cause = error.source();
    }
    HttpError::Connect(scrubbed(&last, 200))
}

/// What went wrong.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum HttpError {
    /// The answer broke off.
    #[error("the answer broke off")]
    Broken,
    /// No connection.
    #[error("no connection: {0}")]
    Connect(String),
    /// Plain HTTP, or another scheme.
    #[error("only https is spoken here; http only to a development issuer (dev = true) on this host")]
    Plain,
    /// PKJ-17.
    #[error(
        "it answered with a redirect ({0}), which is never followed: put the right URL into the settings"
    )]
    Redirect(u16),
    /// Nothing to trust.
    #[error("no roots to trust: {0}")]
    Roots(String),
    /// No answer in time.
    #[error("no answer in time")]
    Timeout,
    /// ER-12.
    #[error("TLS: {0}")]
    Tls(String),
    /// OA-03.
    #[error("the answer is larger than 256 KiB")]
    TooLarge,
    /// Not a URL.
    #[error("that is not a URL")]
    Url,
}

//! TLS to an issuer, and the client certificate that is shown in it. In goes a way to the issuer's host; out comes a connection,
//! or an error before anything was sent on it: one that should have shown a certificate and did not would make a stranger of
//! us, or a token that nothing binds (MT-14).

use std::{error::Error, future::Future, pin::Pin, sync::Arc, task};

use http::Uri;
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use tokio::net::TcpStream;
use tower::Service;

use super::route::Route;
use crate::keys::ClientCertificate;

/// Opens connections of one client: all of them with its certificate, or all without one.
#[derive(Clone)]
pub(super) struct Door {
    route: Route,
    tls: Arc<ClientConfig>,
    certificate: Option<Arc<ClientCertificate>>,
}

impl Door {
    /// A door without a certificate. What it may speak over TLS is settled here.
    pub(super) fn new(route: Route, mut tls: ClientConfig) -> Self {
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Self { route, tls: Arc::new(tls), certificate: None }
    }

    /// A door like this one for one certificate, which shares nothing of a session with it (MT-10).
    pub(super) fn showing(&self, certificate: Arc<ClientCertificate>) -> Self {
        let mut tls = ClientConfig::clone(&self.tls);
        certificate.confine(&mut tls);
        Self { route: self.route.clone(), tls: Arc::new(tls), certificate: Some(certificate) }
    }

    pub(super) fn shows_certificate(&self) -> bool {
        self.certificate.is_some()
    }
}

impl Service<Uri> for Door {
    type Response = MaybeHttpsStream<TokioIo<TcpStream>>;
    type Error = Box<dyn Error + Send + Sync>;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut task::Context<'_>) -> task::Poll<Result<(), Self::Error>> {
        self.route.poll_ready(context)
    }

    fn call(&mut self, target: Uri) -> Self::Future {
        // Plain http is stopped in `Http::send`, which knows what is loopback; the connector does not.
        let Some(certificate) = &self.certificate else {
            return HttpsConnector::from((self.route.clone(), Arc::clone(&self.tls))).call(target);
        };
        let (tls, showing) = certificate.shown_by(&self.tls);
        let connecting = HttpsConnector::from((self.route.clone(), tls)).call(target);
        Box::pin(async move {
            let stream = connecting.await?;
            // The handshake is over: whether the server asked is known now, before a byte of the request is out.
            showing.outcome()?;
            Ok(stream)
        })
    }
}

//! The way to an issuer's host. In goes where to; out comes a connection, straight there or through a proxy.

use std::{error::Error, future::Future, net::IpAddr, pin::Pin, sync::Arc, task};

use http::Uri;
use hyper_util::{
    client::{
        legacy::connect::{HttpConnector, proxy::Tunnel},
        proxy::matcher::Matcher,
    },
    rt::TokioIo,
};
use tokio::net::TcpStream;
use tower::Service;

/// Connects directly, or through the proxy that `HTTPS_PROXY` and `NO_PROXY` name. TLS is inside the tunnel, so
/// a proxy sees host names and nothing else; loopback never goes through one.
#[derive(Clone)]
pub(super) struct Route {
    direct: HttpConnector,
    proxies: Arc<Matcher>,
}

impl Route {
    /// The way that `HTTPS_PROXY` and `NO_PROXY` say.
    pub(super) fn from_environment() -> Self {
        let mut direct = HttpConnector::new();
        direct.enforce_http(false);
        direct.set_nodelay(true);
        Self { direct, proxies: Arc::new(Matcher::from_env()) }
    }
}

impl Service<Uri> for Route {
    type Response = TokioIo<TcpStream>;
    type Error = Box<dyn Error + Send + Sync>;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut task::Context<'_>) -> task::Poll<Result<(), Self::Error>> {
        self.direct.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, target: Uri) -> Self::Future {
        let proxied = target.scheme_str() == Some("https") && !is_loopback(&target);
        let Some(proxy) = self.proxies.intercept(&target).filter(|_| proxied) else {
            let connecting = self.direct.call(target);
            return Box::pin(async move { connecting.await.map_err(Into::into) });
        };
        if proxy.uri().scheme_str() != Some("http") {
            return Box::pin(async { Err("only an http:// proxy can be used".into()) });
        }
        let mut tunnel = Tunnel::new(proxy.uri().clone(), self.direct.clone());
        if let Some(login) = proxy.basic_auth() {
            tunnel = tunnel.with_auth(login.clone());
        }
        let connecting = tunnel.call(target);
        Box::pin(async move { connecting.await.map_err(Into::into) })
    }
}

/// Whether the environment names a proxy for `url`, which then looks its name up.
pub fn has_proxy(url: &str) -> bool {
    url.parse().is_ok_and(|target: Uri| Matcher::from_env().intercept(&target).is_some())
}

/// Whether the host of `target` is this machine, by address or as `localhost`.
pub fn is_loopback(target: &Uri) -> bool {
    let host = target.host().unwrap_or_default();
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    host.eq_ignore_ascii_case("localhost") || bare.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::issuer::script::{Answer, Script};

    #[tokio::test]
    async fn a_proxy_sees_a_tunnel_and_loopback_sees_no_proxy() {
        // OA-06
        let (proxy, issuer) = (Script::plain().await, Script::plain().await);
        let proxies = Arc::new(Matcher::builder().all(proxy.url.as_str()).build());
        let mut route = Route { proxies, ..Route::from_environment() };
        proxy.will([Answer::json(200, ""), Answer::json(407, "")]);
        for works in [true, false] {
            let target = Uri::from_static("https://issuer.example/token");
            assert_eq!(route.call(target).await.is_ok(), works);
        }
        assert_eq!(proxy.diary()[0].line, "CONNECT issuer.example:443 HTTP/1.1");
        let local = issuer.url.replace("http:", "https:").parse().unwrap();
        assert!(route.call(local).await.is_ok());
        assert_eq!(proxy.diary().len(), 2);
    }
}

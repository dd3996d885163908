//! What the operator says about a step-ca. In goes the room `config`'s reading; out comes every mistake in it. Nothing here
//! touches the network.

use std::{path::PathBuf, sync::Arc, time::Duration};

use crate::issuer::{oauth::fault_of_url, terms::ClientAuth, x509::RootSource};

/// One step-ca, as the operator describes it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct StepSettings {
    /// Our name for it.
    pub name: Arc<str>,
    /// Where it is: a host that its `dnsNames` list, since its tokens are addressed to it.
    pub url: String,
    /// What its certificates have to lead to (CA-03).
    pub roots: RootSource,
    /// The only roots to trust for its own TLS, PEM; without it, those of its certificates: it makes its own.
    pub ca_file: Option<PathBuf>,
    /// Where a pinned root is kept, so that a start does not need the CA. What is there is held against the pin each time.
    pub kept_root: Option<PathBuf>,
    /// Whether `http` on loopback is allowed: for development.
    pub dev: bool,
    /// The longest one HTTP exchange may take.
    pub timeout: Duration,
}

/// What is wrong with `settings`: all of it, as a key and what to do about it.
pub fn problems(settings: &StepSettings) -> Vec<(&'static str, String)> {
    let mut found = Vec::new();
    if let Some(fault) = fault_of_url(&settings.url, settings.dev) {
        found.push(("url", fault.to_owned()));
    } else if settings.url.ends_with('/') || settings.url.contains('?') {
        // Tokens are addressed to what is built from it, letter by letter.
        found.push((
            "url",
            "write it without a slash or a query at its end: \"https://ca.example.com:9000\"".into(),
        ));
    }
    if settings.timeout.is_zero() || settings.timeout > Duration::from_secs(60) {
        found.push(("timeout", "it is not between 1ms and 60s: 10s is usual".into()));
    }
    found
}

/// What is wrong with proving who asks in this way, if anything.
pub fn misfit(auth: &ClientAuth) -> Option<String> {
    match auth {
        ClientAuth::PrivateKeyJwt | ClientAuth::TlsClientAuth => None,
        ClientAuth::SelfSignedTlsClientAuth
        | ClientAuth::FederatedJwt(_)
        | ClientAuth::SpiffeJwt(_)
        | ClientAuth::Bootstrap(_)
        | ClientAuth::Nobody => Some(format!(
            "a step-ca knows two ways here: \"private_key_jwt\", a JWK provisioner with this identity's key, or \
             \"tls_client_auth\", an X5C provisioner with its certificate; not {:?}",
            auth.as_str()
        )),
    }
}

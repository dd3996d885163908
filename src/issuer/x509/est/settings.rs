//! What the operator says about an EST server. In goes the room `config`'s reading; out comes every mistake in it. Nothing here
//! touches the network.

use std::{path::PathBuf, sync::Arc, time::Duration};

use http::Uri;

use crate::issuer::route::is_loopback;
use crate::issuer::x509::RootSource;

/// One EST server (RFC 7030).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct EstSettings {
    /// Our name for it.
    pub name: Arc<str>,
    /// Its host: `https://ca.internal:8443`.
    pub url: String,
    /// Which CA behind it (RFC 7030 3.2.2).
    pub label: Option<String>,
    /// The only roots to trust for the server itself, PEM; without it, the host's.
    pub ca_file: Option<PathBuf>,
    /// What its certificates have to lead to (EST-01).
    pub roots: RootSource,
    /// Where a pinned root is kept, so that a start does not need the server. What is there is held against the pin each time.
    pub kept_root: Option<PathBuf>,
    /// Whether it is asked what kind of key it wants (EST-04).
    pub csr_attributes: bool,
    /// Whether `http` on loopback is allowed: for development.
    pub dev: bool,
    /// The longest one HTTP exchange may take.
    pub timeout: Duration,
}

/// The operations, which no label may be called like.
const OPERATIONS: [&str; 6] =
    ["cacerts", "csrattrs", "fullcmc", "serverkeygen", "simpleenroll", "simplereenroll"];

/// What is wrong with `settings`: all of it, as a key and what to do about it.
pub fn problems(settings: &EstSettings) -> Vec<(&'static str, String)> {
    let mut found = Vec::new();
    if let Some(fault) = fault_of(&settings.url, settings.dev) {
        found.push(("url", fault.to_owned()));
    }
    if let Some(label) = &settings.label {
        let sound = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
        let is_segment =
            !label.is_empty() && label.bytes().all(sound) && !label.bytes().all(|byte| byte == b'.');
        if !is_segment || OPERATIONS.contains(&label.as_str()) {
            let what =
                "it is one word of a URL (letters, digits, - . _ ~) and none of EST's own (RFC 7030 3.2.2)";
            found.push(("label", what.into()));
        }
    }
    if settings.timeout.is_zero() || settings.timeout > Duration::from_secs(60) {
        found.push(("timeout", "it is not between 1ms and 60s: 10s is usual".into()));
    }
    found
}

fn fault_of(url: &str, dev: bool) -> Option<&'static str> {
    let Ok(uri) = url.parse::<Uri>() else {
        return Some("it is not a URL: write it as https://host or https://host:port");
    };
    let plain = uri.scheme_str() == Some("http") && dev && is_loopback(&uri);
    if uri.scheme_str() != Some("https") && !plain {
        return Some("it is not https: use https");
    }
    let foreign = uri.host().is_none_or(str::is_empty)
        || uri.authority().is_some_and(|authority| authority.as_str().contains('@'));
    if foreign || uri.path() != "/" || url.contains(['?', '#']) {
        return Some(
            "it is the host and port alone: what follows is always /.well-known/est (RFC 7030 3.2.2)",
        );
    }
    None
}

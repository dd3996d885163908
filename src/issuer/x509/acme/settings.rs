//! What the operator says about an ACME server. In goes the room `config`'s reading; out comes every mistake in it. Nothing here
//! touches the network.

use std::{path::PathBuf, sync::Arc, time::Duration};

use http::Uri;

use crate::issuer::route::is_loopback;

/// One ACME server (RFC 8555).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AcmeSettings {
    /// Our name for it.
    pub name: Arc<str>,
    /// Its directory. Whatever it leads to has to be at the same host.
    pub directory: String,
    /// The only roots to trust for the server itself, PEM; without it, the host's.
    pub ca_file: Option<PathBuf>,
    /// What its certificates have to lead to.
    pub roots: PathBuf,
    /// Whether a person has agreed to its terms (RFC 8555 7.3.3).
    pub agree_to_terms: bool,
    /// Whether `http` on loopback is allowed: for development.
    pub dev: bool,
    /// The longest one HTTP exchange may take.
    pub timeout: Duration,
}

/// What is wrong with `settings`: all of it, as a key and what to do about it.
pub fn problems(settings: &AcmeSettings) -> Vec<(&'static str, String)> {
    let mut found = Vec::new();
    if let Some(fault) = fault_of(&settings.directory, settings.dev) {
        found.push(("directory", fault.to_owned()));
    }
    if settings.timeout.is_zero() || settings.timeout > Duration::from_secs(60) {
        found.push(("timeout", "it is not between 1ms and 60s: 10s is usual".into()));
    }
    found
}

fn fault_of(url: &str, dev: bool) -> Option<&'static str> {
    let Some(uri) = url.parse::<Uri>().ok().filter(|uri| uri.host().is_some_and(|host| !host.is_empty()))
    else {
        return Some("it is not a URL: write it as https://host/directory");
    };
    if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) || url.contains('#') {
        return Some("it holds a user name or a fragment: leave them out");
    }
    let plain = uri.scheme_str() == Some("http") && dev && is_loopback(&uri);
    (uri.scheme_str() != Some("https") && !plain).then_some("it is not https: use https")
}

/// Scheme, host and port of `url`, if it is one.
pub(super) fn origin(url: &str) -> Option<(String, String)> {
    let uri: Uri = url.parse().ok()?;
    Some((uri.scheme_str()?.to_owned(), uri.authority()?.as_str().to_ascii_lowercase()))
}

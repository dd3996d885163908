//! What the operator says about an OAuth issuer. In goes the room `config`'s reading; out comes every mistake in
//! it. Nothing here touches the network.

use std::{path::PathBuf, sync::Arc, time::Duration};

use super::{OnChange, Pins, metadata};
use crate::issuer::assertion;
use crate::issuer::terms::ClientAuth;

/// One OAuth issuer, as the operator describes it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct OAuthSettings {
    /// Our name for it.
    pub name: Arc<str>,
    /// Its own name, to the last slash (OA-02).
    pub issuer: String,
    /// Where its metadata is.
    pub well_known: WellKnown,
    /// What `aud` of our assertions says.
    pub audience: Audience,
    /// Hosts outside its own that its endpoints may be at (OA-04).
    pub allowed_endpoint_hosts: Vec<String>,
    /// The only roots to trust, PEM; without it, the host's (OA-06).
    pub ca_file: Option<PathBuf>,
    /// Whether `http` on loopback is allowed: for development (OA-01).
    pub dev: bool,
    /// How long an assertion lives: 10 to 60 s (PKJ-07).
    pub assertion_life: Duration,
    /// The `typ` of an assertion (PKJ-10).
    pub assertion_typ: AssertionTyp,
    /// Ways of client authentication that it takes though its metadata does not list them (MT-01).
    pub client_auth_methods: Vec<ClientAuth>,
    /// Whether `client_id` is sent beside the assertion (PKJ-14).
    pub send_client_id: bool,
    /// What is pinned of its metadata (OA-05).
    pub pins: Pins,
    /// The longest one HTTP exchange may take.
    pub timeout: Duration,
}

/// Where an issuer's metadata is (OA-01).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum WellKnown {
    /// RFC 8414 first, then OpenID Connect Discovery.
    #[default]
    Both,
    /// RFC 8414 only.
    OAuth,
    /// OpenID Connect Discovery only.
    OpenId,
}

/// What `aud` of our assertions says (PKJ-03, PKJ-05).
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum Audience {
    /// The issuer's name, as the settings have it.
    #[default]
    Issuer,
    /// The token endpoint, for issuers that take nothing else. Written down by a person, never learned.
    TokenEndpoint {
        /// The URL; the metadata must say the same.
        pinned: String,
    },
}

/// The `typ` of an assertion (PKJ-10).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum AssertionTyp {
    /// `client-authentication+jwt`.
    #[default]
    ClientAuthentication,
    /// `JWT`, for issuers that choke on the other.
    Jwt,
}

impl AssertionTyp {
    /// The `typ` value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ClientAuthentication => "client-authentication+jwt",
            Self::Jwt => "JWT",
        }
    }
}

/// What is wrong with `settings`: all of it, as a key and what to do about it.
pub fn problems(settings: &OAuthSettings) -> Vec<(&'static str, String)> {
    let mut found = Vec::new();
    if let Some(fault) = metadata::fault_of(&settings.issuer, settings.dev) {
        found.push(("issuer", fault.to_owned()));
    }
    if settings.issuer.contains('?') {
        found.push(("issuer", "it has a query: leave the ? and what follows out".into()));
    }
    if let Audience::TokenEndpoint { pinned } = &settings.audience {
        if pinned.is_empty() {
            let what =
                "CFG_AUD_PIN: an audience of token_endpoint needs the URL pinned here: set token_endpoint";
            found.push(("token_endpoint", what.into()));
        } else if let Some(fault) = metadata::fault_of(pinned, settings.dev) {
            found.push(("token_endpoint", format!("CFG_AUD_PIN: {fault}")));
        } else if !metadata::is_at_home(pinned, settings) {
            let what = "CFG_AUD_PIN: it is not a host of this issuer: add the host to allowed_endpoint_hosts";
            found.push(("token_endpoint", what.into()));
        }
    }
    for host in &settings.allowed_endpoint_hosts {
        // What is written as a URL or with a port would never match a host, and nobody would know why.
        if host.is_empty() || host.contains(['/', '@', '?', '#', '*', ' ']) || is_with_port(host) {
            let what = "one of them is not a host name: write the name alone, without scheme, port and path";
            found.push(("allowed_endpoint_hosts", what.into()));
        }
    }
    for (name, url) in &settings.pins.endpoints {
        if !name.ends_with("_endpoint") || metadata::fault_of(url, settings.dev).is_some() {
            let what = "each is the name of an endpoint in the metadata and its URL: token_endpoint = \"https://host/path\"";
            found.push(("endpoint_pins", what.into()));
        }
    }
    if settings.pins.on_change == OnChange::Strict && settings.pins.is_empty() {
        let what = "strict about what? Set metadata_pin or endpoint_pins (OA-05)";
        found.push(("metadata_change", what.into()));
    }
    let seconds = settings.assertion_life.as_secs();
    if !assertion::LIFE.contains(&seconds) || settings.assertion_life.subsec_nanos() != 0 {
        found.push(("assertion_life", "it is not between 10s and 60s in whole seconds: 60s is usual".into()));
    }
    if settings.timeout.is_zero() || settings.timeout > Duration::from_secs(60) {
        found.push(("timeout", "it is not between 1ms and 60s: 10s is usual".into()));
    }
    found
}

/// What is wrong with `url` as a place to send this issuer's secrets to; `None` if nothing is (OA-04).
pub fn misplaced(url: &str, settings: &OAuthSettings) -> Option<String> {
    if let Some(fault) = metadata::fault_of(url, settings.dev) {
        return Some(fault.to_owned());
    }
    let foreign =
        "it is not at a host of this issuer: if it is right, add the host to allowed_endpoint_hosts";
    (!metadata::is_at_home(url, settings)).then(|| foreign.to_owned())
}

fn is_with_port(host: &str) -> bool {
    !host.starts_with('[') && host.contains(':')
}

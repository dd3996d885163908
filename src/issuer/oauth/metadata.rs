//! What an issuer says of itself (RFC 8414). In goes an answer; out comes the little of it that we use, or the reason to
//! trust none of it. The issuer identifier is ours and not the document's: a document that says otherwise is
//! somebody else's (OA-02, PKJ-04).

use std::time::Duration;

use http::{Uri, header};
use jiff::Timestamp;
use serde::Deserialize;

use super::{Audience, OAuthSettings, reply};
use crate::{
    issuer::{IssueError, Reason, http::Answer, json},
    jose::Algorithm,
};

/// Where metadata is looked for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum WellKnown {
    /// First the one, then the other.
    Both,
    /// `/.well-known/oauth-authorization-server` between host and path (RFC 8414 3).
    OAuth,
    /// `/.well-known/openid-configuration` after the path (OpenID Connect Discovery 4).
    OpenId,
}

/// The URLs to try, in order (OA-01).
pub(super) fn places(issuer: &str, well_known: WellKnown) -> Vec<String> {
    let trimmed = issuer.trim_end_matches('/');
    let origin =
        trimmed.find("://").and_then(|scheme| trimmed[scheme + 3..].find('/').map(|path| scheme + 3 + path));
    let (origin, path) = trimmed.split_at(origin.unwrap_or(trimmed.len()));
    let oauth = format!("{origin}/.well-known/oauth-authorization-server{path}");
    let openid = format!("{trimmed}/.well-known/openid-configuration");
    match well_known {
        WellKnown::Both => vec![oauth, openid],
        WellKnown::OAuth => vec![oauth],
        WellKnown::OpenId => vec![openid],
    }
}

/// The host of a URL.
pub(super) fn host_of(url: &str) -> Option<&str> {
    let rest = url.split_once("://")?.1;
    let authority = rest.split(['/', '?', '#']).next()?;
    // No user names in URLs: they hide where it really goes.
    if authority.contains('@') || url.parse::<Uri>().ok()?.host().is_none() {
        return None;
    }
    let host = match authority.rfind(':') {
        Some(colon) if !authority[colon..].contains(']') => &authority[..colon],
        _ => authority,
    };
    (!host.is_empty()).then_some(host)
}

/// What we use of the document.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
pub(super) struct Metadata {
    issuer: String,
    pub(super) token_endpoint: String,
    pub(super) revocation_endpoint: Option<String>,
    token_endpoint_auth_methods_supported: Option<Vec<String>>,
    token_endpoint_auth_signing_alg_values_supported: Option<Vec<String>>,
}

impl Metadata {
    /// What the assertion is addressed to: from our settings alone (PKJ-03..05).
    pub(super) fn audience<'a>(&self, settings: &'a OAuthSettings) -> Result<&'a str, IssueError> {
        match &settings.audience {
            Audience::Issuer => Ok(&settings.issuer),
            Audience::TokenEndpoint { pinned } if *pinned == self.token_endpoint => Ok(pinned),
            Audience::TokenEndpoint { .. } => Err(IssueError::Misconfigured {
                reason: Reason::CfgAudPin,
                detail: "the issuer's token endpoint is not the pinned one: if it really moved, change token_endpoint".into(),
            }),
        }
    }

    /// Whether the issuer takes assertions, and of this algorithm (PKJ-10). Silence is consent: RFC 8414 makes both
    /// lists optional.
    pub(super) fn accepts(&self, algorithm: Algorithm) -> Result<(), IssueError> {
        let config = |detail: String| IssueError::Misconfigured { reason: Reason::IssuerConfig, detail };
        if let Some(methods) = &self.token_endpoint_auth_methods_supported
            && !methods.iter().any(|method| method == "private_key_jwt")
        {
            return Err(config("the issuer does not take private_key_jwt: switch it on there".into()));
        }
        match &self.token_endpoint_auth_signing_alg_values_supported {
            Some(known) if !known.iter().any(|name| name.parse() == Ok(algorithm)) => {
                let usable: Vec<&str> = known
                    .iter()
                    .filter_map(|name| name.parse::<Algorithm>().ok())
                    .map(Algorithm::as_str)
                    .collect();
                Err(config(if usable.is_empty() {
                    "the issuer takes no algorithm that this agent signs with (ES256, EdDSA, PS256, RS256)"
                        .into()
                } else {
                    format!(
                        "the issuer does not take {algorithm}: set key.algorithm to one of {}",
                        usable.join(", ")
                    )
                }))
            }
            _ => Ok(()),
        }
    }
}

/// What a document has to be.
pub(super) struct Wanted<'a> {
    pub(super) settings: &'a OAuthSettings,
}

impl Wanted<'_> {
    /// The document in `answer`, and how long it may be relied on (OA-03, OA-07).
    pub(super) fn read(&self, answer: &Answer, now: Timestamp) -> Result<(Metadata, Duration), IssueError> {
        if answer.status.as_u16() != 200 {
            return Err(reply::trouble(answer, now));
        }
        let protocol = |what: &str| IssueError::Retry {
            reason: Reason::IssuerProtocol,
            detail: format!("its metadata cannot be used: {what}"),
            after: None,
        };
        if !answer.is_json() {
            return Err(protocol("it is not JSON"));
        }
        let metadata: Metadata = json::parse_as(answer.body.expose()).map_err(protocol)?;
        if metadata.issuer != self.settings.issuer {
            return Err(IssueError::Misconfigured {
                reason: Reason::IssuerMismatch,
                detail: "its metadata names another issuer; they are compared byte for byte, a slash at the end included".into(),
            });
        }
        self.at_home(&metadata.token_endpoint)?;
        metadata.revocation_endpoint.as_deref().map_or(Ok(()), |endpoint| self.at_home(endpoint))?;
        Ok((metadata, fresh_for(answer)))
    }

    /// OA-04. Without a list of public suffixes "the same registrable domain" cannot be told, so less is allowed: the
    /// issuer's host, hosts below it, and those the operator lists.
    fn at_home(&self, endpoint: &str) -> Result<(), IssueError> {
        let issuer = &self.settings.issuer;
        let foreign = |what: &str| IssueError::Misconfigured {
            reason: Reason::EndpointForeign,
            detail: format!("its metadata names an endpoint {what}"),
        };
        let scheme = |url: &str| url.split_once("://").map(|(scheme, _)| scheme.to_owned());
        if scheme(endpoint) != scheme(issuer) {
            return Err(foreign("that is not https"));
        }
        let host = host_of(endpoint).ok_or_else(|| foreign("that is not a URL"))?;
        let home = host_of(issuer).unwrap_or_default();
        let below = host.strip_suffix(home).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
        if below || self.settings.allowed_endpoint_hosts.iter().any(|allowed| allowed == host) {
            Ok(())
        } else {
            Err(foreign("on another host: if it is right, add the host to allowed_endpoint_hosts"))
        }
    }
}

/// As long as `Cache-Control` says, within five minutes and a day (OA-07).
fn fresh_for(answer: &Answer) -> Duration {
    let said = answer
        .headers
        .get_all(header::CACHE_CONTROL)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .find_map(|directive| directive.trim().strip_prefix("max-age=")?.parse().ok());
    Duration::from_secs(said.unwrap_or(3600)).clamp(Duration::from_secs(300), Duration::from_secs(86_400))
}

//! What an issuer says about itself (RFC 8414), doubted. In goes a document; out come the endpoints, once the
//! document is the right issuer's and sends us to no foreign host. Never does anything of it reach `aud`.

use std::time::Duration;

use http::{HeaderMap, Uri, header};
use serde_json::Value;

use super::{Audience, OAuthSettings, WellKnown, pins};
use crate::{
    issuer::{IssueError, Reason, json, route::is_loopback, terms::ClientAuth},
    jose::Algorithm,
    proof::Target,
    secret::scrubbed,
};

/// The bounds of the life of a document (OA-07), and what holds when the issuer says nothing.
const SHORTEST: Duration = Duration::from_secs(5 * 60);
const USUAL: Duration = Duration::from_secs(60 * 60);
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// What we use of an issuer's metadata.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Metadata {
    token_endpoint: String,
    revocation_endpoint: Option<String>,
    introspection_endpoint: Option<String>,
    /// Where the same is for requests that show a certificate (RFC 8705 5), if that is elsewhere. One at a foreign host is no
    /// trouble to those who do not go there.
    token_alias: Option<Result<String, IssueError>>,
    revocation_alias: Option<Result<String, IssueError>>,
    introspection_alias: Option<Result<String, IssueError>>,
    /// Whether it says that it binds tokens to certificates (RFC 8705 3.3).
    pub(super) binds_to_certificates: bool,
    /// Whether they are not those that are pinned, and may be used all the same (OA-05).
    pub(super) changed: bool,
    /// All endpoints that are the issuer's own business, this agent's and others': no workload gets a proof for one (DPOP-20).
    pub(super) endpoints: Vec<Target>,
    algorithms: Option<Vec<String>>,
    methods: Option<Vec<String>>,
    proof_algorithms: Option<Vec<String>>,
    details: Option<Vec<String>>,
}

impl Metadata {
    /// Reads a document and holds it against the settings (OA-02, OA-03, OA-04, PKJ-05).
    pub(super) fn read(bytes: &[u8], settings: &OAuthSettings) -> Result<Self, IssueError> {
        let document =
            json::parse(bytes).map_err(|error| broken(format!("the issuer's metadata: {error}")))?;
        let named = document.get("issuer").and_then(Value::as_str).unwrap_or_default();
        if named != settings.issuer {
            return Err(IssueError::Misconfigured {
                reason: Reason::IssuerMismatch,
                detail: format!(
                    "the metadata names the issuer \"{}\", not \"{}\": set issuer to the exact name, to the last slash",
                    scrubbed(named, 200),
                    settings.issuer,
                ),
            });
        }
        let endpoint = |name: &str| match document.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(url)) => check_endpoint(name, url, settings).map(|()| Some(url.clone())),
            Some(_) => Err(broken(format!("the issuer's metadata: {name} is not text"))),
        };
        let token_endpoint = endpoint("token_endpoint")?
            .ok_or_else(|| broken("the issuer's metadata names no token_endpoint".into()))?;
        if let Audience::TokenEndpoint { pinned } = &settings.audience
            && *pinned != token_endpoint
        {
            return Err(IssueError::Misconfigured {
                reason: Reason::CfgAudPin,
                detail: format!(
                    "the pinned token_endpoint is {pinned}, the metadata says {}: find out which is right, \
                         then set the pin",
                    scrubbed(&token_endpoint, 200),
                ),
            });
        }
        let aliases = document.get("mtls_endpoint_aliases");
        let alias = |name: &'static str| match aliases?.get(name)? {
            Value::Null => None,
            Value::String(url) => {
                let named = format!("mtls_endpoint_aliases.{name}");
                Some(check_endpoint(&named, url, settings).map(|()| url.clone()))
            }
            _ => {
                Some(Err(broken(format!("the issuer's metadata: mtls_endpoint_aliases.{name} is not text"))))
            }
        };
        Ok(Self {
            token_alias: alias("token_endpoint"),
            revocation_alias: alias("revocation_endpoint"),
            introspection_alias: alias("introspection_endpoint"),
            binds_to_certificates: document.get("tls_client_certificate_bound_access_tokens")
                == Some(&Value::Bool(true)),
            token_endpoint,
            revocation_endpoint: endpoint("revocation_endpoint")?,
            introspection_endpoint: endpoint("introspection_endpoint")?,
            changed: pins::check(bytes, &document, settings)?,
            endpoints: endpoints(&document),
            algorithms: names(&document, "token_endpoint_auth_signing_alg_values_supported"),
            methods: names(&document, "token_endpoint_auth_methods_supported"),
            proof_algorithms: names(&document, "dpop_signing_alg_values_supported"),
            details: names(&document, "authorization_details_types_supported"),
        })
    }

    /// Where tokens are had: for a request that shows a certificate, where the issuer asks for one (MT-03).
    pub(super) fn token_endpoint(&self, shows_certificate: bool) -> Result<&str, IssueError> {
        let alias = self.token_alias.as_ref().filter(|_| shows_certificate);
        Ok(aliased(alias, None)?.unwrap_or(&self.token_endpoint))
    }

    /// Where tokens are given back, if anywhere.
    pub(super) fn revocation_endpoint(&self, shows_certificate: bool) -> Result<Option<&str>, IssueError> {
        let alias = self.revocation_alias.as_ref().filter(|_| shows_certificate);
        aliased(alias, self.revocation_endpoint.as_deref())
    }

    /// Where tokens are looked up, if anywhere.
    pub(super) fn introspection_endpoint(&self, shows_certificate: bool) -> Result<Option<&str>, IssueError> {
        let alias = self.introspection_alias.as_ref().filter(|_| shows_certificate);
        aliased(alias, self.introspection_endpoint.as_deref())
    }

    /// Whether the issuer takes a certificate as proof of who asks (MT-01). Where it does not say, it does not: without the list
    /// all it takes is client_secret_basic (RFC 8414 2).
    pub(super) fn accepts_certificate(
        &self,
        method: &ClientAuth,
        settings: &OAuthSettings,
    ) -> Result<(), IssueError> {
        let listed = self.methods.as_deref().unwrap_or_default();
        if listed.iter().any(|name| name == method.as_str()) || settings.client_auth_methods.contains(method)
        {
            return Ok(());
        }
        Err(IssueError::Misconfigured {
            reason: Reason::AuthmUnsupported,
            detail: format!(
                "the issuer does not list {0} among its client authentication methods ({1}): switch it on there, or if \
                 it is on, set client_auth_methods = [\"{0}\"]",
                method.as_str(),
                listing(listed),
            ),
        })
    }

    /// Whether the issuer learns who asks by the assertion of `method`, and takes those that our key signs with `algorithm`
    /// (PKJ-10). Where it does not say, it may.
    pub(super) fn accepts(
        &self,
        method: &ClientAuth,
        algorithm: Option<Algorithm>,
    ) -> Result<(), IssueError> {
        // An issuer that takes assertions of others lists the same method as for a client's own; a JWT-SVID has a name of
        // its own since not long (DR-05).
        let names: &[&str] = match method {
            ClientAuth::SpiffeJwt(_) => &["spiffe_jwt", "private_key_jwt"],
            _ => &["private_key_jwt"],
        };
        if let Some(methods) = &self.methods
            && !methods.iter().any(|method| names.contains(&method.as_str()))
        {
            return Err(misconfigured(format!(
                "the issuer does not list {} among its client authentication methods ({}): switch it on there",
                names[0],
                listing(methods),
            )));
        }
        match (&self.algorithms, algorithm) {
            (Some(known), Some(ours)) if !known.iter().any(|name| name.parse() == Ok(ours)) => {
                Err(misconfigured(format!(
                    "this identity's key signs with {ours}, the issuer takes {}: set key.algorithm to one of these",
                    listing(known),
                )))
            }
            _ => Ok(()),
        }
    }

    /// Whether the issuer knows the types of `details` (OA-27). Where it does not say, it may.
    pub(super) fn accepts_details(&self, details: &[Value]) -> Result<(), IssueError> {
        let Some(known) = &self.details else { return Ok(()) };
        let named = details.iter().filter_map(|detail| detail.get("type").and_then(Value::as_str));
        match named.into_iter().find(|name| !known.iter().any(|known| known == name)) {
            None => Ok(()),
            Some(name) => Err(misconfigured(format!(
                "the issuer does not know authorization_details of the type {}; it knows {}",
                scrubbed(name, 200),
                listing(known),
            ))),
        }
    }
}

impl Metadata {
    /// Whether the issuer reads proofs signed with `algorithm` (RFC 9449 5.1). Where it does not say, it may.
    pub(super) fn accepts_proofs(&self, algorithm: Algorithm) -> Result<(), IssueError> {
        match &self.proof_algorithms {
            Some(known) if !known.iter().any(|name| name.parse() == Ok(algorithm)) => {
                Err(IssueError::Misconfigured {
                    reason: Reason::IssuerConfig,
                    detail: format!(
                        "proofs of this agent are signed with {algorithm}, the issuer reads {}: allow {algorithm} there",
                        listing(known),
                    ),
                })
            }
            _ => Ok(()),
        }
    }
}

/// The alias of an endpoint if there is one, even one that may not be used; the endpoint otherwise.
fn aliased<'a>(
    alias: Option<&'a Result<String, IssueError>>,
    endpoint: Option<&'a str>,
) -> Result<Option<&'a str>, IssueError> {
    match alias {
        Some(alias) => alias.as_deref().map(Some).map_err(Clone::clone),
        None => Ok(endpoint),
    }
}

/// Where to look for metadata, in order (OA-01).
pub(super) fn addresses(settings: &OAuthSettings) -> Vec<String> {
    let issuer = settings.issuer.trim_end_matches('/');
    let authority = issuer.find("://").map_or(0, |at| at + 3);
    let path = issuer[authority..].find('/').map_or(issuer.len(), |at| authority + at);
    let oauth = format!("{}/.well-known/oauth-authorization-server{}", &issuer[..path], &issuer[path..]);
    let openid = format!("{issuer}/.well-known/openid-configuration");
    match settings.well_known {
        WellKnown::Both => vec![oauth, openid],
        WellKnown::OAuth => vec![oauth],
        WellKnown::OpenId => vec![openid],
    }
}

/// How long a document may be used, by its `Cache-Control` within our bounds (OA-07).
pub(super) fn life(headers: &HeaderMap) -> Duration {
    let mut life = USUAL;
    let values = headers.get_all(header::CACHE_CONTROL).into_iter().filter_map(|value| value.to_str().ok());
    for directive in values.flat_map(|value| value.split(',')) {
        let directive = directive.trim().to_ascii_lowercase();
        if matches!(directive.as_str(), "no-store" | "no-cache") {
            return SHORTEST;
        }
        if let Some(seconds) =
            directive.strip_prefix("max-age=").and_then(|text| text.trim_matches('"').parse().ok())
        {
            life = Duration::from_secs(seconds);
        }
    }
    life.clamp(SHORTEST, LONGEST)
}

/// What is wrong with `url` as an issuer of these settings, or as a pinned endpoint; `None` if nothing is.
pub(in crate::issuer) fn fault_of(url: &str, dev: bool) -> Option<&'static str> {
    // http::Uri drops a fragment in silence, so it is looked for first.
    if url.contains('#') {
        return Some("it has a fragment: leave the # and what follows out");
    }
    let Ok(uri) = url.parse::<Uri>() else {
        return Some("it is not a URL: write it as https://host/path");
    };
    if uri.host().is_none_or(str::is_empty) {
        return Some("it names no host: write it as https://host/path");
    }
    if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return Some("it holds a user name: leave out everything before the @");
    }
    match uri.scheme_str() {
        Some("https") => None,
        Some("http") if dev && is_loopback(&uri) => None,
        Some("http") if dev => Some("it is http to another host: use https, or a loopback address"),
        _ => Some("it is not https: use https"),
    }
}

/// Whether `url` is at the issuer's own host, below it, or at a host the settings list (OA-04). The row speaks of
/// the registrable domain; without a list of public suffixes that cannot be told, and this rule is the narrower:
/// a sibling host has to be listed.
pub(super) fn is_at_home(url: &str, settings: &OAuthSettings) -> bool {
    let host = |url: &str| url.parse::<Uri>().ok()?.host().map(str::to_ascii_lowercase);
    let (Some(theirs), Some(home)) = (host(url), host(&settings.issuer)) else { return false };
    theirs == home
        || theirs.strip_suffix(&home).is_some_and(|below| below.ends_with('.') && !is_address(&home))
        || settings.allowed_endpoint_hosts.iter().any(|listed| listed.eq_ignore_ascii_case(&theirs))
}

/// Every URL that the document calls an endpoint. What is at `userinfo_endpoint` is an API like any other.
fn endpoints(document: &Value) -> Vec<Target> {
    let named = |members: &Value| -> Vec<Target> {
        let members = members.as_object().into_iter().flatten();
        let endpoint = |(name, url): (&String, &Value)| {
            (name.ends_with("_endpoint") && name != "userinfo_endpoint")
                .then(|| Target::parse(url.as_str()?).ok())
                .flatten()
        };
        members.filter_map(endpoint).collect()
    };
    [named(document), document.get("mtls_endpoint_aliases").map(named).unwrap_or_default()].concat()
}

fn is_address(host: &str) -> bool {
    host.starts_with('[') || host.parse::<std::net::Ipv4Addr>().is_ok()
}

fn check_endpoint(name: &str, url: &str, settings: &OAuthSettings) -> Result<(), IssueError> {
    let foreign = |what: &str| IssueError::Misconfigured {
        reason: Reason::EndpointForeign,
        detail: format!("the metadata's {name} is {}: {what}", scrubbed(url, 200)),
    };
    if let Some(fault) = fault_of(url, settings.dev) {
        return Err(foreign(fault));
    }
    if !is_at_home(url, settings) {
        return Err(foreign("not a host of this issuer: if it is right, add it to allowed_endpoint_hosts"));
    }
    Ok(())
}

fn misconfigured(detail: String) -> IssueError {
    IssueError::Misconfigured { reason: Reason::IssuerConfig, detail }
}

fn broken(detail: String) -> IssueError {
    IssueError::Retry { reason: Reason::IssuerProtocol, detail, after: None }
}

fn names(document: &Value, member: &str) -> Option<Vec<String>> {
    let listed = document.get(member)?.as_array()?;
    Some(listed.iter().filter_map(Value::as_str).map(str::to_owned).collect())
}

fn listing(names: &[String]) -> String {
    if names.is_empty() { "none".into() } else { scrubbed(&names.join(", "), 200) }
}

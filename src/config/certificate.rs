//! `[identities.NAME.certificate]`, and what has to fit it. In goes the table as written; out come the settings of the room
//! `keys`, and every mistake that only shows beside the credentials that use the certificate.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use fluent_uri::Uri;

use super::{issuers::IssuerSettings, reader::Reader};
use crate::{
    credential::Binding,
    issuer::terms::{ClientAuth, Wants},
    keys::{CLIENT_CERTIFICATE, CertificateSettings, Custody, SignedBy, default_path},
    policy::{CredentialRule, Identity, Per},
};

/// How long a certificate of our own making lives, and within what bounds.
const LIFETIME: Duration = days(30);
const LIFETIMES: std::ops::RangeInclusive<Duration> = days(1)..=days(365);

const fn days(days: u64) -> Duration {
    Duration::from_secs(days * 24 * 60 * 60)
}

/// The certificates that identities want.
pub(super) type Wanted = BTreeMap<Arc<str>, CertificateSettings>;

/// Reads the table, if there is one.
pub(super) fn certificate(
    reader: &mut Reader<'_>,
    identity: &str,
    state: &Path,
) -> (Option<CertificateSettings>, Option<Arc<str>>) {
    let Some(mut reader) = reader.table("certificate") else { return (None, None) };
    let shows: Option<Arc<str>> = reader.string("credential").map(Arc::from);
    let path = reader.path("key");
    let certificate: Option<PathBuf> = reader.path("certificate");
    if shows.is_some() && certificate.is_none() {
        for made_here in ["custody", "key", "lifetime", "san_uri"] {
            if reader.has(made_here) {
                reader.wrong(
                    made_here,
                    "it is for a certificate of the agent's own making: that of a credential is the CA's",
                );
            }
        }
        reader.finish();
        return (None, shows);
    }
    let in_memory = reader.word("custody", false, &[("file", false), ("memory", true)]);
    let san_uri = reader.string("san_uri");
    if san_uri.as_deref().is_some_and(|uri| Uri::parse(uri).is_err()) {
        reader.wrong("san_uri", "it has to be an absolute URI such as \"spiffe://example.org/payments\"");
    }
    let lifetime = reader.duration("lifetime", LIFETIME);
    if !LIFETIMES.contains(&lifetime) {
        reader.wrong("lifetime", "it has to be between \"1d\" and \"365d\"; 30 days are usual (KEY-08)");
    }
    if in_memory && path.is_some() {
        reader.wrong("key", "a key in memory has no path");
    }
    if certificate.is_some() {
        if in_memory {
            reader.wrong(
                "custody",
                "a certificate that was made elsewhere has its key in a file: say where, as key",
            );
        }
        for made_elsewhere in ["san_uri", "lifetime"] {
            if reader.has(made_elsewhere) {
                reader.wrong(
                    made_elsewhere,
                    "it is only for certificates that the agent makes: take certificate out",
                );
            }
        }
        if path.is_none() && !in_memory {
            reader.wrong("key", "name the file with the key that the certificate was made for");
        }
    }
    reader.finish();
    let default = || default_path(&state.join("keys"), identity, CLIENT_CERTIFICATE);
    let custody =
        if in_memory { Custody::Memory } else { Custody::File { path: path.unwrap_or_else(default) } };
    let signed_by = certificate.map_or(SignedBy::Itself, SignedBy::Others);
    (Some(CertificateSettings { custody, signed_by, san_uri, lifetime, export: false }), shows)
}

/// What credentials and the certificate of their identity have to agree on, and with the issuer.
pub(super) fn agreements(
    identities: &[Identity],
    certificates: &Wanted,
    issuers: &BTreeMap<Arc<str>, IssuerSettings>,
) -> Vec<(String, String)> {
    let mut mistakes = Vec::new();
    for identity in identities {
        let key = format!("identities.{}", identity.name);
        let certificate = certificates.get(&identity.name);
        let users: Vec<&Arc<CredentialRule>> =
            identity.credentials.values().filter(|rule| uses_certificate(rule)).collect();
        if let Some(shows) = &identity.shows {
            let rule = identity.credentials.get(shows);
            if !rule.is_some_and(|rule| {
                matches!(rule.terms.wants, Wants::Certificate(_)) && rule.per == Per::Identity
            }) {
                let message = "it has to be one of this identity's credentials that is a certificate, for all its processes";
                mistakes.push((format!("{key}.certificate.credential"), message.into()));
            }
        }
        if (certificate.is_some() || identity.shows.is_some()) && users.is_empty() {
            let message = "none of its credentials uses it: set client_auth = \"tls_client_auth\" or binding = \"mtls\" for one, \
                           or take the table out";
            mistakes.push((format!("{key}.certificate"), message.into()));
        }
        for rule in users {
            let what = if rule.terms.client_auth.is_mtls() { "client_auth" } else { "binding" };
            let key = format!("{key}.credentials.{}.{what}", rule.name);
            // A CA vouches for what a credential holds; to get that one, another certificate has to be shown.
            if identity.shows.as_ref().is_some_and(|shows| *shows != rule.name) {
                continue;
            }
            if let Some(message) = fault(rule, certificate, issuers.get(&rule.issuer)) {
                mistakes.push((key, message));
            }
        }
        for rule in identity.credentials.values() {
            if let Some((what, message)) = issuers.get(&rule.issuer).and_then(|issuer| issuer.misfit(rule)) {
                mistakes.push((format!("{key}.credentials.{}.{what}", rule.name), message));
            }
        }
        methods(&mut mistakes, &key, identity);
    }
    mistakes
}

/// Where certificates are kept: each in a file of its own, which is written anew at each renewal (KEY-01, X5-06). `taken` are the
/// files of everything else.
pub(super) fn places(identities: &[Identity], taken: &BTreeSet<PathBuf>) -> Vec<(String, String)> {
    let mut mistakes = Vec::new();
    let mut taken = taken.clone();
    for identity in identities {
        for rule in identity.credentials.values() {
            if let Wants::Certificate(terms) = &rule.terms.wants
                && let Some(path) = &terms.path
                && !taken.insert(path.clone())
            {
                let key = format!("identities.{}.credentials.{}.certificate.path", identity.name, rule.name);
                let message =
                    "another key or certificate is in this file, and would be overwritten: name another";
                mistakes.push((key, message.into()));
            }
        }
    }
    mistakes
}

fn uses_certificate(rule: &CredentialRule) -> bool {
    rule.terms.client_auth.is_mtls() || rule.binding == Binding::Mtls && rule.terms.wants == Wants::Token
}

fn fault(
    rule: &CredentialRule,
    certificate: Option<&CertificateSettings>,
    issuer: Option<&IssuerSettings>,
) -> Option<String> {
    let Some(certificate) = certificate else {
        return Some("it needs a certificate: add [identities.NAME.certificate] (RFC 8705)".into());
    };
    if rule.terms.client_auth == ClientAuth::TlsClientAuth && certificate.signed_by == SignedBy::Itself {
        return Some(
            "it is for certificates that a CA vouches for: name one as certificate.certificate, or say \
             \"self_signed_tls_client_auth\" (RFC 8705 2.1)"
                .into(),
        );
    }
    match issuer {
        Some(IssuerSettings::OAuth(oauth)) if oauth.issuer.starts_with("http:") => Some(
            "this issuer speaks plain http, which carries no certificate: it needs one with https".into(),
        ),
        _ => None,
    }
}

/// One client proves itself in one way: issuers register a method with each.
fn methods(mistakes: &mut Vec<(String, String)>, key: &str, identity: &Identity) {
    let mut seen: BTreeMap<(&str, &str), &CredentialRule> = BTreeMap::new();
    for rule in identity.credentials.values() {
        let first = seen.entry((&rule.issuer, &rule.client_id)).or_insert(rule);
        if first.terms.client_auth.as_str() != rule.terms.client_auth.as_str() {
            let message = format!(
                "credentials.{} is the same client and says {}: an issuer knows one way for each client",
                first.name,
                first.terms.client_auth.as_str()
            );
            mistakes.push((format!("{key}.credentials.{}.client_auth", rule.name), message));
        }
    }
}

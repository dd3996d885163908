//! What a credential is, where it is no token: `certificate = { .. }` and `lease = { .. }` in its table. In goes the table; out
//! comes what is wanted. What it may not say together with the rest is the lint's to tell (`policy`).

use std::{net::IpAddr, path::PathBuf};

use fluent_uri::Uri;

use super::reader::Reader;
use crate::{
    issuer::terms::{CertificateTerms, LeaseTerms, Wants},
    keys::{KeyKind, Subject},
};

/// Reads what is wanted. The key of a certificate is kept at `place` unless the table says otherwise, and in memory if there is no
/// place for it. Whether what is leased may turn out to have no lease, its exception says.
pub(super) fn wants(reader: &mut Reader<'_>, place: Option<PathBuf>, export: bool, exception: bool) -> Wants {
    let certificate = reader.table("certificate");
    let lease = reader.table("lease");
    if certificate.is_some() && lease.is_some() {
        reader.wrong("lease", "it is a certificate or a lease, not both: make two credentials of it");
    }
    if let Some(mut table) = certificate {
        let terms = certificate_terms(&mut table, place, export);
        table.finish();
        return Wants::Certificate(terms);
    }
    let Some(mut table) = lease else { return Wants::Token };
    let at = table.required("at", "at = \"database/creds/payments\"").unwrap_or_default();
    let fields = table.strings("fields");
    table.finish();
    Wants::Lease(LeaseTerms { at, fields, unleased: exception })
}

fn certificate_terms(reader: &mut Reader<'_>, place: Option<PathBuf>, export: bool) -> CertificateTerms {
    let uris = reader.strings("uri");
    if uris.iter().any(|uri| Uri::parse(uri.as_str()).is_err() || uri.contains('*')) {
        reader.wrong("uri", "each has to be an absolute URI such as \"spiffe://example.org/payments\"");
    }
    let dns = reader.strings("dns");
    if dns.iter().any(|host| !is_host(host)) {
        reader.wrong("dns", "each has to be a host name in ASCII, without wildcards");
    }
    let ips: Vec<IpAddr> = reader.strings("ip").iter().filter_map(|ip| ip.parse().ok()).collect();
    if reader.has("ip") && ips.len() != reader.strings("ip").len() {
        reader.wrong("ip", "each has to be an address such as \"192.0.2.7\"");
    }
    if uris.is_empty() && dns.is_empty() && ips.is_empty() {
        reader.wrong("uri", "name whom it is for, best as uri = [\"spiffe://example.org/payments\"] (X5-01)");
    }
    let common_name = reader.string("common_name");
    if common_name.as_deref().is_some_and(|name| name.is_empty() || name.chars().any(char::is_control)) {
        reader.wrong("common_name", "it has to be printable; leave it out if the CA does not ask for it");
    }
    let kinds = [
        ("P-256", KeyKind::P256),
        ("ES256", KeyKind::P256),
        ("P-384", KeyKind::P384),
        ("ES384", KeyKind::P384),
        ("Ed25519", KeyKind::Ed25519),
        ("EdDSA", KeyKind::Ed25519),
    ];
    let key = reader.word("algorithm", KeyKind::P256, &kinds);
    let same_key = reader.word("renewal", false, &[("new_key", false), ("same_key", true)]);
    let in_memory = reader.word("custody", place.is_none(), &[("file", false), ("memory", true)]);
    let path = reader.path("path");
    if !in_memory && place.is_none() {
        reader.wrong("custody", "with per = \"process\" each process has a key of its own, in memory only");
    }
    if in_memory && path.is_some() {
        reader.wrong("path", "a key in memory has no path");
    }
    if in_memory && same_key {
        reader.wrong("renewal", "a key is kept over renewals in a file only: say custody = \"file\"");
    }
    CertificateTerms {
        subject: Subject { uris, dns, ips, common_name, server: reader.boolean("server", false) },
        key,
        same_key,
        path: path.or(place).filter(|_| !in_memory),
        export,
        at: reader.string("at"),
    }
}

fn is_host(host: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    host.len() <= 253 && host.split('.').all(label)
}

//! `kind = "acme"` in `[issuers.NAME]`: an ACME server as meant, and which credentials it can be asked for.

use std::{sync::Arc, time::Duration};

use super::reader::Reader;
use crate::{
    issuer::{
        terms::{ClientAuth, Wants},
        x509::acme::{self, AcmeSettings},
    },
    policy::CredentialRule,
};

pub(super) fn acme_issuer(reader: &mut Reader<'_>, name: &Arc<str>, environment: &str) -> AcmeSettings {
    if !reader.has("roots") {
        reader.wrong("roots", "it is required: nothing that a CA sends is trusted on first use (CA-03)");
    }
    let settings = AcmeSettings {
        name: Arc::clone(name),
        directory: reader
            .required("directory", "directory = \"https://ca.example.com/directory\"")
            .unwrap_or_default(),
        ca_file: reader.path("ca_file"),
        roots: reader.path("roots").unwrap_or_default(),
        agree_to_terms: reader.boolean("agree_to_terms", false),
        dev: reader.boolean("dev", false),
        timeout: reader.duration("timeout", Duration::from_secs(10)),
    };
    if settings.dev && ["prod", "production"].contains(&environment) {
        reader.wrong("dev", "a development issuer is never used in production (S11)");
    }
    for (key, message) in acme::problems(&settings) {
        reader.wrong(key, message);
    }
    settings
}

/// What is wrong with asking an ACME server for `rule`.
pub(super) fn misfit(rule: &CredentialRule) -> Option<(&'static str, String)> {
    let Wants::Certificate(terms) = &rule.terms.wants else {
        let what = "an \"acme\" issuer gives certificates only: say certificate = { dns = [\"..\"] } for this credential";
        return Some(("certificate", what.into()));
    };
    if !matches!(rule.terms.client_auth, ClientAuth::PrivateKeyJwt | ClientAuth::Bootstrap(_)) {
        let what = "an \"acme\" issuer knows accounts by the identity's key: say \"private_key_jwt\" for an account that is \
                    there, or \"bootstrap\" with the key that the CA gave for a first one (ACM-02)";
        return Some(("client_auth", what.into()));
    }
    if !terms.subject.uris.is_empty() {
        let what = "ACME certifies names of hosts and addresses only: say dns or ip, or take another kind of issuer (RFC 8555 9.7.7)";
        return Some(("certificate.uri", what.into()));
    }
    let among = |name: &String| terms.subject.dns.iter().any(|host| host.eq_ignore_ascii_case(name));
    if terms.subject.common_name.as_ref().is_some_and(|name| !among(name)) {
        let what = "with ACME it can only be one of dns: leave it out (RFC 8555 7.4)";
        return Some(("certificate.common_name", what.into()));
    }
    None
}

//! `kind = "est"` in `[issuers.NAME]`: an EST server as meant, and which credentials it can be asked for.

use std::{path::Path, sync::Arc, time::Duration};

use super::reader::{Reader, parse_sha256};
use crate::{
    issuer::{
        terms::{ClientAuth, Wants},
        x509::{
            RootSource,
            est::{self, EstSettings},
        },
    },
    policy::CredentialRule,
};

pub(super) fn est_issuer(
    reader: &mut Reader<'_>,
    name: &Arc<str>,
    state: &Path,
    environment: &str,
) -> EstSettings {
    let roots = roots(reader);
    let settings = EstSettings {
        name: Arc::clone(name),
        url: reader.required("url", "url = \"https://ca.example.com\"").unwrap_or_default(),
        label: reader.string("label"),
        ca_file: reader.path("ca_file"),
        kept_root: matches!(roots, RootSource::Pinned(_)).then(|| state.join(format!("{name}.root.pem"))),
        roots,
        csr_attributes: reader.boolean("csr_attributes", true),
        dev: reader.boolean("dev", false),
        timeout: reader.duration("timeout", Duration::from_secs(10)),
    };
    if settings.dev && ["prod", "production"].contains(&environment) {
        reader.wrong("dev", "a development issuer is never used in production (S11)");
    }
    for (key, message) in est::problems(&settings) {
        reader.wrong(key, message);
    }
    settings
}

/// What is wrong with asking an EST server for `rule`.
pub(super) fn misfit(rule: &CredentialRule) -> Option<(&'static str, String)> {
    let Wants::Certificate(terms) = &rule.terms.wants else {
        let what = "an \"est\" issuer gives certificates only: say certificate = { uri = [\"..\"] } for this credential";
        return Some(("certificate", what.into()));
    };
    match &rule.terms.client_auth {
        ClientAuth::TlsClientAuth => {}
        ClientAuth::Bootstrap(_) if terms.path.is_none() => {
            let what =
                "what a secret began that is good once has to outlive the agent: say custody = \"file\"";
            return Some(("certificate.custody", what.into()));
        }
        ClientAuth::Bootstrap(_) => {}
        _ => {
            let what = "an \"est\" issuer takes \"tls_client_auth\" or \"bootstrap\" (RFC 7030 3.2.3)";
            return Some(("client_auth", what.into()));
        }
    }
    terms
        .at
        .is_some()
        .then(|| ("certificate.at", "an \"est\" issuer has one place: say label in its table".into()))
}

/// EST-01: roots are named, or pinned.
fn roots(reader: &mut Reader<'_>) -> RootSource {
    let file = reader.path("roots");
    let pin = reader.string("root_sha256");
    let sum = pin.as_deref().and_then(parse_sha256);
    if pin.is_some() && sum.is_none() {
        reader.wrong(
            "root_sha256",
            "it has to be 64 hexadecimal digits: openssl x509 -in root.pem -outform der | sha256sum",
        );
    }
    match (file, sum) {
        (Some(_), Some(_)) => {
            reader.wrong("root_sha256", "give the file with the roots or the sum of one, not both")
        }
        (None, Some(sum)) => return RootSource::Pinned(sum),
        (None, None) if pin.is_none() && !reader.has("roots") => reader.wrong(
            "roots",
            "it is required, or root_sha256: nothing that a CA sends is trusted on first use (EST-01)",
        ),
        (Some(file), None) => return RootSource::File(file),
        (None, None) => {}
    }
    // Told already, and never used: a file with a mistake in it does not load.
    RootSource::Pinned([0; 32])
}

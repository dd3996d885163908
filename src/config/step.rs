//! `[issuers.NAME]` of kind "step-ca". In goes the table; out come the settings of `issuer::x509::step`.

use std::{path::Path, sync::Arc, time::Duration};

use super::reader::{Reader, parse_sha256};
use crate::{
    issuer::{
        terms::Wants,
        x509::{
            RootSource,
            step::{self, StepSettings},
        },
    },
    policy::CredentialRule,
};

/// Reads the table of the issuer `name`; what it has to keep is kept below `state`.
pub(super) fn step_ca(
    reader: &mut Reader<'_>,
    name: &Arc<str>,
    state: &Path,
    is_production: bool,
) -> StepSettings {
    let url = reader.required("url", "url = \"https://ca.example.com:9000\"").unwrap_or_default();
    let file = reader.path("roots");
    let pin = reader.string("root_sha256").and_then(|text| {
        // As `step certificate fingerprint` prints it, or with colons between, as openssl does.
        let sum = parse_sha256(&text.replace(':', ""));
        if sum.is_none() {
            let what = "it has to be 64 hexadecimal digits, as `step certificate fingerprint root_ca.crt` prints them";
            reader.wrong("root_sha256", what);
        }
        sum
    });
    let roots = match (file, pin) {
        (Some(_), Some(_)) => {
            reader.wrong("root_sha256", "give the roots or the sum of one, not both");
            RootSource::File("/".into())
        }
        (Some(path), None) => RootSource::File(path),
        (None, Some(pin)) => RootSource::Pinned(pin),
        (None, None) => {
            if !reader.has("roots") && !reader.has("root_sha256") {
                let what = "say what its certificates lead to: roots = \"/etc/keybearer/ca.pem\", or root_sha256 = \"64 \
                            hexadecimal digits\" (CA-03)";
                reader.wrong("roots", what);
            }
            RootSource::File("/".into())
        }
    };
    let settings = StepSettings {
        name: Arc::clone(name),
        url,
        kept_root: matches!(roots, RootSource::Pinned(_)).then(|| state.join(format!("{name}.root.pem"))),
        roots,
        ca_file: reader.path("ca_file"),
        dev: reader.boolean("dev", false),
        timeout: reader.duration("timeout", Duration::from_secs(10)),
    };
    if settings.dev && is_production {
        reader.wrong("dev", "a development issuer is never used in production (S11)");
    }
    for (key, message) in step::problems(&settings) {
        reader.wrong(key, message);
    }
    settings
}

/// What is wrong with asking a step-ca for `rule`.
pub(super) fn misfit(rule: &CredentialRule) -> Option<(&'static str, String)> {
    match &rule.terms.wants {
        Wants::Token => {
            let what = "a \"step-ca\" makes certificates: say which, as certificate = { uri = [\"spiffe://example.org/payments\"] }";
            Some(("certificate", what.into()))
        }
        Wants::Lease(_) => Some(("lease", "a \"step-ca\" leases nothing: name an issuer that does".into())),
        Wants::Sealed(_) => Some(super::issuers::sealed_here()),
        Wants::Certificate(terms) if terms.at.is_some() => {
            let what = "a \"step-ca\" has one place for them: leave it out (client_id names the provisioner)";
            Some(("certificate.at", what.into()))
        }
        Wants::Certificate(_) => step::misfit(&rule.terms.client_auth).map(|what| ("client_auth", what)),
    }
}

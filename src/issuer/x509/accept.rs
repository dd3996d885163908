//! A chain that a CA sent, held against what was asked for (X5-02). In go the chain, the terms, the roots and the time; out
//! comes nothing, or the first thing that is wrong with it. Whatever a CA adds is refused, not ignored: it is this identity
//! that would be known by it.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use jiff::Timestamp;
use rustls_pki_types::CertificateDer;
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, prelude::FromDer as _};

use super::{
    super::{IssueError, Reason, Rejected, http::printable, terms::CertificateTerms},
    Roots, SOON, rejected,
};
use crate::keys::Subject;

/// How far back a CA may date a certificate, beyond what policy lets it live: 30 s at Vault, a minute at step-ca (X5-04).
const BACKDATED: i64 = 300;

/// So many certificates are in a chain at most.
const LONGEST_CHAIN: usize = 8;

/// Whether `chain` is what was asked for. That it is for our key is checked where the key is.
pub(super) fn check(
    chain: &[CertificateDer<'_>],
    terms: &CertificateTerms,
    roots: &Roots,
    longest: Duration,
    now: Timestamp,
) -> Result<(), IssueError> {
    let Some(leaf) = chain.first() else {
        return Err(rejected(Rejected::Form, "the CA sent no certificate"));
    };
    if chain.len() > LONGEST_CHAIN {
        return Err(rejected(Rejected::Form, format!("the CA sent more than {LONGEST_CHAIN} certificates")));
    }
    let (_, certificate) = X509Certificate::from_der(leaf)
        .map_err(|_| rejected(Rejected::Form, "what the CA sent first is no certificate (RFC 5280)"))?;
    may_not_sign(&certificate)?;
    names(&certificate, &terms.subject)?;
    usage(&certificate, terms.subject.server)?;
    life(&certificate, longest, now)?;
    // Held against the moment from which it will be used: it may begin a little ahead of our clock (X5-04).
    let begins = certificate.validity().not_before.timestamp();
    let moment = u64::try_from(now.as_second().max(begins)).unwrap_or_default();
    roots.lead_to(chain, moment).map_err(|error| {
        let what = printable(&error.to_string(), 200);
        rejected(
            Rejected::Chain,
            format!("it does not lead to the root in the settings ({what}): compare roots with the CA's, or have it send its \
                     intermediates"),
        )
    })
}

fn may_not_sign(certificate: &X509Certificate<'_>) -> Result<(), IssueError> {
    let constraints = certificate.basic_constraints();
    let constraints =
        constraints.map_err(|_| rejected(Rejected::Form, "its basicConstraints cannot be read"))?;
    if constraints.is_some_and(|constraints| constraints.value.ca) {
        return Err(rejected(Rejected::Ca, "it is a CA certificate: whoever held it could make others"));
    }
    Ok(())
}

/// Exactly the names that were asked for: no other, none missing.
fn names(certificate: &X509Certificate<'_>, asked: &Subject) -> Result<(), IssueError> {
    let found = certificate
        .subject_alternative_name()
        .map_err(|_| rejected(Rejected::Form, "its subjectAltName cannot be read"))?;
    let found = found.map(|names| names.value.general_names.as_slice()).unwrap_or_default();
    let has: BTreeSet<String> = found.iter().map(spelled).collect();
    let uris = asked.uris.iter().map(|uri| format!("URI:{uri}"));
    let dns = asked.dns.iter().map(|host| format!("DNS:{}", host.to_ascii_lowercase()));
    let ips = asked.ips.iter().map(|ip| format!("IP:{ip}"));
    let wanted: BTreeSet<String> = uris.chain(dns).chain(ips).collect();
    let told = |names: Vec<&String>| {
        printable(&names.into_iter().map(String::as_str).collect::<Vec<_>>().join(", "), 200)
    };
    if let more @ [_, ..] = has.difference(&wanted).collect::<Vec<_>>().as_slice() {
        return Err(rejected(
            Rejected::Names,
            format!(
                "it says names that were not asked for ({}): look at the CA's role or template",
                told(more.to_vec())
            ),
        ));
    }
    if let missing @ [_, ..] = wanted.difference(&has).collect::<Vec<_>>().as_slice() {
        return Err(rejected(
            Rejected::Names,
            format!(
                "it does not say {}: allow these names for this client at the CA",
                told(missing.to_vec())
            ),
        ));
    }
    Ok(())
}

fn spelled(name: &GeneralName<'_>) -> String {
    match name {
        GeneralName::URI(uri) => format!("URI:{uri}"),
        GeneralName::DNSName(host) => format!("DNS:{}", host.to_ascii_lowercase()),
        GeneralName::IPAddress(bytes) => match (<[u8; 4]>::try_from(*bytes), <[u8; 16]>::try_from(*bytes)) {
            (Ok(four), _) => format!("IP:{}", IpAddr::from(four)),
            (_, Ok(sixteen)) => format!("IP:{}", IpAddr::from(sixteen)),
            _ => "IP:?".into(),
        },
        GeneralName::RFC822Name(mail) => format!("email:{mail}"),
        _ => "a name of another kind".into(),
    }
}

fn usage(certificate: &X509Certificate<'_>, server: bool) -> Result<(), IssueError> {
    let form = |_| rejected(Rejected::Form, "its key usage cannot be read");
    let usage = certificate.key_usage().map_err(form)?;
    let Some(usage) = usage.filter(|usage| usage.value.digital_signature()) else {
        return Err(rejected(Rejected::Usage, "its key usage is not digitalSignature"));
    };
    if usage.value.key_cert_sign() || usage.value.crl_sign() {
        return Err(rejected(Rejected::Ca, "its key may sign certificates or revocation lists"));
    }
    let extended = certificate.extended_key_usage().map_err(form)?;
    let Some(extended) = extended.map(|extended| extended.value) else {
        return Err(rejected(Rejected::Usage, "it has no extended key usage: have the CA write clientAuth"));
    };
    if !extended.client_auth {
        return Err(rejected(
            Rejected::Usage,
            "its extended key usage is not clientAuth: have the CA write it; one that certifies servers only, as public CAs do, \
             is of no use here",
        ));
    }
    if server && !extended.server_auth {
        return Err(rejected(Rejected::Usage, "it was asked for servers too, and does not say serverAuth"));
    }
    if extended.any || extended.code_signing || extended.time_stamping || extended.ocsp_signing {
        return Err(rejected(Rejected::Usage, "it may be used for more than TLS"));
    }
    Ok(())
}

fn life(certificate: &X509Certificate<'_>, longest: Duration, now: Timestamp) -> Result<(), IssueError> {
    let validity = certificate.validity();
    let (from, until) = (validity.not_before.timestamp(), validity.not_after.timestamp());
    let now = now.as_second();
    if until <= now || until <= from {
        return Err(rejected(
            Rejected::Life,
            "it has ended already: compare the clocks of this host and the CA",
        ));
    }
    if from - now > SOON.as_secs() {
        return Err(IssueError::Retry {
            reason: Reason::ClockUntrusted,
            detail: format!(
                "the certificate begins {} s from now ({} s at most): set the clock of this host, or the CA's",
                from - now,
                SOON.as_secs()
            ),
            after: None,
        });
    }
    let allowed = i64::try_from(longest.as_secs()).unwrap_or(i64::MAX).saturating_add(BACKDATED);
    if until - from > allowed {
        return Err(rejected(
            Rejected::Life,
            format!(
                "it lives {} s and policy allows {} s: have the CA make shorter ones, or raise max_ttl",
                until - from,
                longest.as_secs()
            ),
        ));
    }
    Ok(())
}

//! When an ACME server would have a certificate renewed (RFC 9773, ACM-04). In go the certificate and what the server answers; out
//! come the name that the server knows it by, and its advice. Nothing here is signed: whoever knows a certificate may ask.

use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;
use x509_parser::{certificate::X509Certificate, extensions::ParsedExtension, prelude::FromDer as _};

use crate::{
    issuer::{Advice, answer, http::Response},
    jose::b64,
};

/// It is asked again no sooner and no later than that, whatever it says (RFC 9773 4.3.3).
const SOONEST: Duration = Duration::from_secs(60);
const LATEST: Duration = Duration::from_secs(24 * 60 * 60);

/// When it did not answer, or nothing that makes sense, it is asked again after this (RFC 9773 4.3.3).
const LATER: Duration = Duration::from_secs(6 * 60 * 60);

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Info {
    suggested_window: Window,
    #[serde(rename = "explanationURL", default)]
    explanation: Option<String>,
}

#[derive(Deserialize)]
struct Window {
    start: String,
    end: String,
}

/// How the server knows a certificate: by who signed it, and as which (RFC 9773 4.1). None for one that does not say who.
pub(super) fn id(leaf: &[u8]) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(leaf).ok()?;
    let authority =
        certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::AuthorityKeyIdentifier(authority) => authority.key_identifier.as_ref(),
            _ => None,
        })?;
    Some(format!("{}.{}", b64(authority.0), b64(certificate.raw_serial())))
}

/// What its answer means; where there is none, it is asked again later.
pub(super) fn advice(response: Option<&Response>, now: Timestamp) -> Advice {
    let nothing = Advice { window: None, again: LATER };
    let Some(response) = response.filter(|response| response.status == 200 && answer::is_json(response))
    else {
        return nothing;
    };
    let Ok(info) = serde_json::from_slice::<Info>(response.body.expose()) else { return nothing };
    let moment = |text: &str| text.parse::<Timestamp>().ok();
    let window = moment(&info.suggested_window.start).zip(moment(&info.suggested_window.end));
    // RFC 9773 4.2: such a window is no answer.
    let Some((start, end)) = window.filter(|(start, end)| start < end) else { return nothing };
    if let Some(explanation) = info.explanation {
        // A person should read it: a CA that moves a window is about to revoke.
        tracing::warn!(
            explanation = %answer::clean(&explanation, 200), %start, %end,
            "the ACME server says why it would have a certificate renewed then"
        );
    }
    let said = answer::retry_after_up_to(response, now, LATEST);
    Advice { window: Some((start, end)), again: said.unwrap_or(LATER).clamp(SOONEST, LATEST) }
}

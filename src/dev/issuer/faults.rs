//! The knobs that make the issuer behave badly, one at a time. In goes a [`Fault`], from Rust or as JSON; out
//! comes the fault that bites this request, if one does. Every request is authenticated first, so a fault never
//! lets anybody in, and a one-time value is used up whatever the answer is (PKJ-12).

use std::time::Duration;

use http::{HeaderValue, StatusCode, header};
use serde::Deserialize;
use serde_json::json;

use super::desk::Endpoint;
use crate::dev::http::{Answer, NOTE, json, typed};

/// A way to behave badly. Faults of the answer bite `/token`, `/revoke` and `/introspect`; faults of the token
/// and of the nonce bite `/token` only; that of a registration
/// bites `/register`, and so does slowness.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Fault {
    /// `DPoP-Nonce` with characters that no nonce has (RFC 9449 8.1).
    BadNonce,
    /// A token that is bound to somebody else's key (DPOP-05).
    ForeignCnf,
    /// 200, and bytes that are not JSON under a JSON content type.
    Garbage,
    /// The connection stays open and no answer comes.
    Hang,
    /// 200, and a page of HTML.
    Html,
    /// 400 `invalid_client_metadata` to a replacement of a registration, which stays as it was (RFC 7592). A read is answered, and
    /// counts.
    InvalidMetadata,
    /// 401 `invalid_client`, though the client is fine.
    InvalidClient,
    /// A token that lives for a year.
    LongLife,
    /// 400 `use_dpop_nonce` to whatever comes, and no `DPoP-Nonce` (DPOP-07).
    NoNonceHeader,
    /// No fault: what is set is taken back.
    None,
    /// 429 with `Retry-After`.
    RateLimited {
        /// When to come back; whole seconds are sent.
        retry_after: Duration,
    },
    /// 307 from `/token`: whoever follows it hands the assertion to somebody else (PKJ-17).
    Redirect {
        /// Where to.
        to: String,
    },
    /// A token that is over soon.
    ShortLife {
        /// After how long; whole seconds are sent.
        life: Duration,
    },
    /// The right answer, late.
    Slow {
        /// How late.
        delay: Duration,
    },
    /// 400 `use_dpop_nonce` to whatever comes, with another `DPoP-Nonce` each time (DPOP-07).
    StubbornNonce,
    /// Two `DPoP-Nonce` headers, of which the first would do (DPOP-09).
    TwoNonces,
    /// 503.
    Unavailable,
    /// A bearer token, whatever proof came: the issuer knows nothing of DPoP (DPOP-04).
    Unbound,
    /// A token and an answer with the action `admin` in each of the `authorization_details` (OA-27).
    WiderDetails,
    /// A token and an answer with `admin` in the scope, which nobody asked for.
    WiderScope,
    /// A token for somebody else.
    WrongAudience,
    /// Metadata and tokens in the name of another issuer.
    WrongIssuer,
}

impl Fault {
    /// As JSON and the diary write it.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::BadNonce => "bad_nonce",
            Self::ForeignCnf => "foreign_cnf",
            Self::Garbage => "garbage",
            Self::Hang => "hang",
            Self::Html => "html",
            Self::InvalidClient => "invalid_client",
            Self::InvalidMetadata => "invalid_metadata",
            Self::LongLife => "long_life",
            Self::NoNonceHeader => "no_nonce_header",
            Self::None => "none",
            Self::RateLimited { .. } => "rate_limited",
            Self::Redirect { .. } => "redirect",
            Self::ShortLife { .. } => "short_life",
            Self::Slow { .. } => "slow",
            Self::StubbornNonce => "stubborn_nonce",
            Self::TwoNonces => "two_nonces",
            Self::Unavailable => "unavailable",
            Self::Unbound => "unbound",
            Self::WiderDetails => "wider_details",
            Self::WiderScope => "wider_scope",
            Self::WrongAudience => "wrong_audience",
            Self::WrongIssuer => "wrong_issuer",
        }
    }

    /// Reads `{"fault": name, "times": n, "seconds": n, "to": url}`, where only `fault` is always needed.
    /// `seconds` is the `Retry-After` of `rate_limited` (3 if left out), the delay of `slow` (2) and the life of
    /// `short_life` (5).
    ///
    /// # Errors
    /// [`FaultError`] for anything that is not exactly that.
    pub(super) fn from_json(body: &[u8]) -> Result<(Self, Option<u32>), FaultError> {
        let written: Written = serde_json::from_slice(body).map_err(|_| FaultError::Json)?;
        let seconds = |default: u32| Duration::from_secs(written.seconds.unwrap_or(default).into());
        let fault = match written.fault.as_str() {
            "bad_nonce" => Self::BadNonce,
            "foreign_cnf" => Self::ForeignCnf,
            "garbage" => Self::Garbage,
            "hang" => Self::Hang,
            "html" => Self::Html,
            "invalid_client" => Self::InvalidClient,
            "invalid_metadata" => Self::InvalidMetadata,
            "long_life" => Self::LongLife,
            "no_nonce_header" => Self::NoNonceHeader,
            "none" => Self::None,
            "rate_limited" => Self::RateLimited { retry_after: seconds(3) },
            "redirect" => Self::Redirect { to: written.to.clone().ok_or(FaultError::Target)? },
            "short_life" => Self::ShortLife { life: seconds(5) },
            "slow" => Self::Slow { delay: seconds(2) },
            "stubborn_nonce" => Self::StubbornNonce,
            "two_nonces" => Self::TwoNonces,
            "unavailable" => Self::Unavailable,
            "unbound" => Self::Unbound,
            "wider_details" => Self::WiderDetails,
            "wider_scope" => Self::WiderScope,
            "wrong_audience" => Self::WrongAudience,
            "wrong_issuer" => Self::WrongIssuer,
            _ => return Err(FaultError::Name),
        };
        Ok((fault, written.times))
    }

    /// The answer that replaces ours, if this fault replaces it.
    pub(super) fn answer(&self) -> Option<Answer> {
        match self {
            Self::Garbage => {
                Some(typed(StatusCode::OK, "application/json", "{\"access_token\": \"cut off h"))
            }
            Self::Html => {
                let page = format!("<!doctype html><title>{NOTE}</title><p>Please sign in.");
                Some(typed(StatusCode::OK, "text/html", page))
            }
            Self::InvalidClient => Some(error(StatusCode::UNAUTHORIZED, "invalid_client")),
            Self::InvalidMetadata => Some(error(StatusCode::BAD_REQUEST, "invalid_client_metadata")),
            Self::RateLimited { retry_after } => {
                let mut answer = error(StatusCode::TOO_MANY_REQUESTS, "temporarily_unavailable");
                answer.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(retry_after.as_secs()));
                Some(answer)
            }
            Self::Redirect { to } => {
                let mut answer = typed(StatusCode::TEMPORARY_REDIRECT, "text/plain", NOTE);
                let to = HeaderValue::from_str(to).unwrap_or(HeaderValue::from_static("/elsewhere"));
                answer.headers_mut().insert(header::LOCATION, to);
                Some(answer)
            }
            Self::Unavailable => Some(error(StatusCode::SERVICE_UNAVAILABLE, "temporarily_unavailable")),
            Self::NoNonceHeader | Self::StubbornNonce => {
                Some(error(StatusCode::BAD_REQUEST, "use_dpop_nonce"))
            }
            Self::BadNonce
            | Self::ForeignCnf
            | Self::Hang
            | Self::LongLife
            | Self::None
            | Self::ShortLife { .. }
            | Self::Slow { .. }
            | Self::TwoNonces
            | Self::Unbound
            | Self::WiderDetails
            | Self::WiderScope
            | Self::WrongAudience
            | Self::WrongIssuer => None,
        }
    }

    fn bites(&self, endpoint: Endpoint) -> bool {
        match self {
            Self::None => false,
            Self::InvalidMetadata => endpoint == Endpoint::Register,
            Self::Slow { .. } => !matches!(endpoint, Endpoint::Jwks | Endpoint::Metadata),
            Self::WrongIssuer => matches!(endpoint, Endpoint::Metadata | Endpoint::Token),
            Self::BadNonce
            | Self::ForeignCnf
            | Self::LongLife
            | Self::NoNonceHeader
            | Self::Redirect { .. }
            | Self::ShortLife { .. }
            | Self::StubbornNonce
            | Self::TwoNonces
            | Self::Unbound
            | Self::WiderDetails
            | Self::WiderScope
            | Self::WrongAudience => endpoint == Endpoint::Token,
            Self::Garbage
            | Self::Hang
            | Self::Html
            | Self::InvalidClient
            | Self::RateLimited { .. }
            | Self::Unavailable => {
                matches!(
                    endpoint,
                    Endpoint::Certify
                        | Endpoint::Decertify
                        | Endpoint::Introspect
                        | Endpoint::Revoke
                        | Endpoint::Token
                )
            }
        }
    }
}

/// The fault that is set, and how often it will still bite.
#[derive(Debug)]
pub(super) struct Knob {
    fault: Fault,
    left: Option<u32>,
}

impl Knob {
    /// A knob that does nothing.
    pub(super) fn off() -> Self {
        Self { fault: Fault::None, left: None }
    }

    /// Sets `fault` for the next `times` requests it bites, or until further notice.
    pub(super) fn set(&mut self, fault: Fault, times: Option<u32>) {
        *self = Self { fault, left: times };
    }

    /// The fault that bites a request to `endpoint`, used up by one.
    pub(super) fn bite(&mut self, endpoint: Endpoint) -> Fault {
        if !self.fault.bites(endpoint) {
            return Fault::None;
        }
        match &mut self.left {
            Some(0) => return Fault::None,
            Some(left) => *left -= 1,
            None => {}
        }
        self.fault.clone()
    }
}

/// Why a fault was not set.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum FaultError {
    /// Not the JSON that was expected.
    #[error("send JSON {{fault, times, seconds, to}}, of which only fault is always needed")]
    Json,
    /// A fault nobody knows.
    #[error(
        "fault must be one of none, bad_nonce, foreign_cnf, garbage, hang, html, invalid_client, invalid_metadata, \
         long_life, no_nonce_header, rate_limited, redirect, short_life, slow, stubborn_nonce, two_nonces, unavailable, \
         unbound, wider_details, wider_scope, wrong_audience, wrong_issuer"
    )]
    Name,
    /// A redirect to nowhere.
    #[error("redirect needs \"to\": the URL to send callers to")]
    Target,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    fault: String,
    times: Option<u32>,
    seconds: Option<u32>,
    to: Option<String>,
}

fn error(status: StatusCode, name: &str) -> Answer {
    let why = "a fault that was set at /dev/fault: set none to end it";
    json(status, &json!({"error": name, "error_description": why, "note": NOTE}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_bites_as_often_as_it_was_set_and_where_it_belongs() {
        let mut knob = Knob::off();
        assert_eq!(knob.bite(Endpoint::Token), Fault::None);
        knob.set(Fault::WiderScope, Some(2));
        assert_eq!(knob.bite(Endpoint::Revoke), Fault::None);
        assert_eq!(knob.bite(Endpoint::Token), Fault::WiderScope);
        assert_eq!(knob.bite(Endpoint::Token), Fault::WiderScope);
        assert_eq!(knob.bite(Endpoint::Token), Fault::None);
        knob.set(Fault::Unavailable, None);
        for endpoint in [Endpoint::Introspect, Endpoint::Revoke, Endpoint::Token] {
            assert_eq!(knob.bite(endpoint), Fault::Unavailable);
        }
        assert_eq!(knob.bite(Endpoint::Metadata), Fault::None);
    }

    #[test]
    fn every_name_reads_back_as_itself() {
        for name in [
            "none",
            "bad_nonce",
            "foreign_cnf",
            "garbage",
            "hang",
            "html",
            "invalid_client",
            "invalid_metadata",
            "long_life",
            "no_nonce_header",
            "rate_limited",
            "redirect",
            "short_life",
            "slow",
            "stubborn_nonce",
            "two_nonces",
            "unavailable",
            "unbound",
            "wider_details",
            "wider_scope",
            "wrong_audience",
            "wrong_issuer",
        ] {
            let body = json!({"fault": name, "times": 3, "to": "http://127.0.0.1:1/"}).to_string();
            let (fault, times) = Fault::from_json(body.as_bytes()).unwrap();
            assert_eq!((fault.as_str(), times), (name, Some(3)));
            assert!(FaultError::Name.to_string().contains(name));
        }
        assert_eq!(Fault::from_json(br#"{"fault": "polite"}"#), Err(FaultError::Name));
        assert_eq!(Fault::from_json(br#"{"fault": "redirect"}"#), Err(FaultError::Target));
        assert_eq!(Fault::from_json(br#"{"fault": "html", "tmes": 1}"#), Err(FaultError::Json));
    }
}

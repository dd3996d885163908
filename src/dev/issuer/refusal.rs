//! The issuer's no. In goes the rule that was broken; out comes an OAuth error as RFC 6749 5.2 writes it.

use std::fmt;

use http::{HeaderValue, StatusCode, header};
use serde_json::json;

use crate::dev::http::{Answer, NOTE, json};

/// An OAuth error (RFC 6749 5.2), and the rule that was broken.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) error: &'static str,
    pub(super) why: String,
}

impl Refusal {
    pub(super) fn new(error: &'static str, why: impl fmt::Display) -> Self {
        Self { status: StatusCode::BAD_REQUEST, error, why: why.to_string() }
    }

    pub(super) fn request(why: impl fmt::Display) -> Self {
        Self::new("invalid_request", why)
    }

    pub(super) fn client(why: impl fmt::Display) -> Self {
        Self { status: StatusCode::UNAUTHORIZED, ..Self::new("invalid_client", why) }
    }

    pub(super) fn busy(why: impl fmt::Display) -> Self {
        Self { status: StatusCode::SERVICE_UNAVAILABLE, ..Self::new("temporarily_unavailable", why) }
    }

    pub(super) fn answer(&self) -> Answer {
        let mut answer =
            json(self.status, &json!({"error": self.error, "error_description": self.why, "note": NOTE}));
        if self.status == StatusCode::UNAUTHORIZED {
            // RFC 9110 15.5.2 wants a challenge. There is no header that would meet it: the method is in the name.
            let challenge = HeaderValue::from_static("PrivateKeyJwt realm=\"keybearer development issuer\"");
            answer.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        }
        answer
    }
}

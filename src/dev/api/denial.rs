//! The demo API's no. In goes the rule that was broken; out comes a refusal as RFC 6750 3 and RFC 9449 7.1 write it.

use http::{HeaderValue, StatusCode, header};
use serde_json::json;

use super::{ALGORITHMS, DemoApiSettings};
use crate::dev::{
    http::{Answer, NOTE, json},
    proof::ProofError,
};

/// How a token is sent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Scheme {
    /// RFC 6750: having it is enough.
    Bearer,
    /// RFC 9449: its key has to be proved.
    Dpop,
}

/// Why a request gets no orders.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum Denial {
    #[error("the token is for another audience: ask for one with this API as the resource")]
    Audience,
    #[error("the token is bound to a key: send Authorization: DPoP TOKEN and a proof by that key")]
    Bound,
    #[error("the token has expired: ask for a new one")]
    Expired,
    #[error("the token is not a JWT with the claims of RFC 9068")]
    Form,
    #[error("the token was issued in the future: look at the clocks")]
    Future,
    #[error("the token is from another issuer")]
    Issuer,
    #[error("the token's kid names no key of the issuer")]
    Key,
    #[error("send one header: Authorization: DPoP TOKEN, or Bearer where the token is not bound")]
    Malformed,
    #[error("send Authorization: DPoP TOKEN, or Bearer where the token is not bound")]
    Missing,
    #[error("the proof is by another key than the token is bound to")]
    OtherKey,
    #[error("{0}")]
    Proof(ProofError),
    #[error("a token in the URL ends up in logs: send it in the Authorization header")]
    Query,
    #[error("the token was revoked")]
    Revoked,
    #[error("the token's scope is too narrow")]
    Scope,
    #[error("the token's signature or algorithm is not the issuer's")]
    Signature,
    #[error("the token's typ is not at+jwt")]
    Typ,
    #[error("the token is bound to no key of a proof: ask the issuer for one with a DPoP proof")]
    Unbound,
}

impl Denial {
    /// The status and the error code of RFC 6750 3.1 and RFC 9449 7.1; no code where nothing was tried.
    fn code(self) -> (StatusCode, Option<&'static str>) {
        match self {
            Self::Missing => (StatusCode::UNAUTHORIZED, None),
            Self::Malformed | Self::Query => (StatusCode::BAD_REQUEST, Some("invalid_request")),
            Self::Proof(ProofError::Full) => (StatusCode::SERVICE_UNAVAILABLE, Some(ProofError::Full.code())),
            Self::Proof(error) => (StatusCode::UNAUTHORIZED, Some(error.code())),
            Self::Scope => (StatusCode::FORBIDDEN, Some("insufficient_scope")),
            Self::Audience
            | Self::Bound
            | Self::Expired
            | Self::Form
            | Self::Future
            | Self::Issuer
            | Self::Key
            | Self::OtherKey
            | Self::Revoked
            | Self::Signature
            | Self::Typ
            | Self::Unbound => (StatusCode::UNAUTHORIZED, Some("invalid_token")),
        }
    }

    /// The refusal to whoever sent a token by `scheme`.
    pub(super) fn answer(self, scheme: Scheme, settings: &DemoApiSettings) -> Answer {
        let (status, code) = self.code();
        let mut answer =
            json(status, &json!({"error": code, "error_description": self.to_string(), "note": NOTE}));
        for challenge in self.challenges(scheme, settings) {
            // Our own words and a checked scope word: visible ASCII, which a header holds.
            let challenge = HeaderValue::from_str(&challenge).expect("the challenge is visible ASCII");
            answer.headers_mut().append(header::WWW_AUTHENTICATE, challenge);
        }
        answer
    }

    /// One challenge for each way in that is worth a try.
    fn challenges(self, scheme: Scheme, settings: &DemoApiSettings) -> Vec<String> {
        let algorithms = ALGORITHMS.map(|algorithm| algorithm.as_str()).join(" ");
        let (_, Some(code)) = self.code() else {
            let bearer = (!settings.require_bound).then(|| "Bearer realm=\"keybearer demo API\"".to_owned());
            return bearer.into_iter().chain([format!("DPoP algs=\"{algorithms}\"")]).collect();
        };
        let what = format!("error=\"{code}\", error_description=\"{self}\"");
        let scope = &settings.scope;
        let by_proof = scheme == Scheme::Dpop || matches!(self, Self::Bound | Self::Unbound);
        vec![match self {
            Self::Proof(_) => format!("DPoP {what}, algs=\"{algorithms}\""),
            _ if by_proof => format!("DPoP {what}, scope=\"{scope}\", algs=\"{algorithms}\""),
            _ => format!("Bearer {what}, scope=\"{scope}\""),
        }]
    }
}

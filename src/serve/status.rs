//! How little a stranger learns. In goes a refusal; out comes a status: a code, one stable reason, when to come back.
//! Whether there is no such credential or it is somebody else's, the bytes are the same (ATT-27); the ledger has the
//! rest, under the exchange's id.

use std::{collections::HashMap, time::Duration};

use tonic::{Code, Status, metadata::AsciiMetadataValue};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::{
    api::ApiError,
    audit::Receipt,
    broker::Failure,
    issuer::{IssueError, Reason},
    journey::Refusal,
    policy,
};

/// The domain of every reason.
const DOMAIN: &str = "keybearer";

/// The metadata that names the record.
pub const EXCHANGE: &str = "keybearer-exchange";

/// A refusal, as any protocol may tell it.
#[derive(Debug, Eq, PartialEq)]
pub struct Told {
    /// The class.
    pub code: Code,
    /// The stable reason.
    pub reason: &'static str,
    /// What the caller may do.
    pub message: &'static str,
    /// When to come back.
    pub retry_after: Option<Duration>,
    /// The exchange, if it is on record.
    pub exchange: Option<String>,
}

/// What a caller is told.
pub fn told(refusal: &Refusal) -> Told {
    let told = |code, reason, message, retry_after, receipt: Option<&Receipt>| Told {
        code,
        reason,
        message,
        retry_after,
        exchange: receipt.map(|receipt| receipt.exchange().to_string()),
    };
    match refusal {
        Refusal::Denied(receipt, _) => told(
            Code::PermissionDenied,
            "NOT_ENTITLED",
            "not entitled; an operator can see why with `keybearer explain` or in the ledger",
            None,
            Some(receipt),
        ),
        // The caller has the credential; that its request is not for it is no secret to it.
        Refusal::OffLimits(receipt, reason) => {
            told(Code::PermissionDenied, reason.as_str(), of_request(*reason), None, Some(receipt))
        }
        Refusal::NotHeld(receipt) => told(
            Code::FailedPrecondition,
            "NOT_HELD",
            "the credential with this fingerprint has ended: get it again, and ask with its fingerprint",
            None,
            Some(receipt),
        ),
        Refusal::TooFast(receipt, wait) => told(
            Code::ResourceExhausted,
            "PROOF_RATE",
            "so many proofs and calls in so short a time are not made",
            Some(*wait),
            Some(receipt),
        ),
        Refusal::Api(receipt, error) => {
            let (code, message, retry_after) = of_api(error);
            told(code, error.reason(), message, retry_after, Some(receipt))
        }
        Refusal::Unattested(receipt) => told(
            Code::PermissionDenied,
            "NOT_ATTESTED",
            "the caller could not be attested, or has changed since it connected: open a new connection",
            None,
            Some(receipt),
        ),
        Refusal::Unavailable(receipt, failure) => {
            let (code, reason, message, retry_after) = of_failure(failure);
            told(code, reason, message, retry_after, Some(receipt))
        }
        Refusal::Unrecorded(_) => told(
            Code::Unavailable,
            "AUDIT_UNAVAILABLE",
            "the agent cannot record the exchange, so it does not answer it",
            Some(Duration::from_secs(5)),
            None,
        ),
    }
}

impl Told {
    /// As a gRPC status with `google.rpc.ErrorInfo` and `RetryInfo`.
    pub fn status(&self) -> Status {
        let mut details = ErrorDetails::with_error_info(self.reason, DOMAIN, HashMap::new());
        if self.retry_after.is_some() {
            details.set_retry_info(self.retry_after);
        }
        let mut status = Status::with_error_details(self.code, self.message, details);
        if let Some(exchange) =
            self.exchange.as_ref().and_then(|id| AsciiMetadataValue::try_from(id.as_str()).ok())
        {
            status.metadata_mut().insert(EXCHANGE, exchange);
        }
        status
    }

    /// As an HTTP status.
    pub fn http_status(&self) -> u16 {
        match self.code {
            Code::InvalidArgument => 400,
            Code::PermissionDenied => 403,
            Code::FailedPrecondition => 409,
            Code::ResourceExhausted => 429,
            Code::Internal => 500,
            // Only a call of an API ends in one of these.
            Code::Unknown => 502,
            Code::DeadlineExceeded => 504,
            _ => 503,
        }
    }
}

/// A call that breaks the rules of the API.
pub fn invalid(message: &'static str) -> Told {
    Told {
        code: Code::InvalidArgument,
        reason: "INVALID_REQUEST",
        message,
        retry_after: None,
        exchange: None,
    }
}

fn of_request(reason: policy::Reason) -> &'static str {
    match reason {
        policy::Reason::ForwardNotAllowed => {
            "the agent does not call this credential's API for programs; an operator can allow it with forward = \"allowed\""
        }
        policy::Reason::ForwardOnly => {
            "the agent calls this credential's API itself and hands out nothing of it: call /v1/forward/CREDENTIAL/PATH on its HTTP \
             socket"
        }
        _ => "this request is not for this credential; an operator can see why in the ledger",
    }
}

/// Whether the API may have acted is what a program needs to know before it tries again.
fn of_api(error: &ApiError) -> (Code, &'static str, Option<Duration>) {
    const MAY_HAVE: &str = "the API may have acted on it all the same: look before you send it again";
    const OPERATOR: &str = "the agent cannot reach the API as it is set up, and sent nothing; an operator can see why in the ledger";
    match error {
        ApiError::Body(_) => {
            (Code::InvalidArgument, "the request's body did not come: send it whole and without pauses", None)
        }
        ApiError::Broken => (Code::Unknown, MAY_HAVE, None),
        ApiError::Busy => (
            Code::ResourceExhausted,
            "as many calls of this identity are under way as there may be: wait for one to end",
            Some(Duration::from_secs(1)),
        ),
        ApiError::Late => (Code::DeadlineExceeded, MAY_HAVE, None),
        ApiError::Unreachable(_) => (
            Code::Unknown,
            "the API cannot be reached, and nothing was sent: try again",
            Some(Duration::from_secs(5)),
        ),
        ApiError::Certificate(_) | ApiError::Tls(_) | ApiError::Unusable(_) => {
            (Code::Unknown, OPERATOR, None)
        }
    }
}

type OfFailure = (Code, &'static str, &'static str, Option<Duration>);

fn of_failure(failure: &Failure) -> OfFailure {
    match failure {
        Failure::Issue { error, retry_after, .. } => {
            let reason = error.reason();
            let (code, message) = of_reason(reason);
            let again = matches!(error, IssueError::Retry { .. }) || code == Code::Unavailable;
            (code, reason.as_str(), message, retry_after.or(again.then_some(Duration::from_secs(5))))
        }
        Failure::TtlUnmet { .. } => (
            Code::FailedPrecondition,
            "TTL_UNMET",
            "the issuer's credentials do not live as long as asked",
            None,
        ),
        Failure::Closed => {
            let message = "the agent is shutting down";
            (Code::Unavailable, "SHUTTING_DOWN", message, Some(Duration::from_secs(1)))
        }
    }
}

/// ER-01..13, one arm a row.
fn of_reason(reason: Reason) -> (Code, &'static str) {
    const OPERATOR: &str = "the issuer cannot be used as it is set up; an operator has to act";
    const LATER: &str = "the issuer cannot be reached or does not answer well: try again";
    match reason {
        Reason::AgentBugRequest | Reason::OneTimeReuse => {
            (Code::Internal, "the agent and the issuer misunderstand each other; an operator has to look")
        }
        Reason::AudienceDenied | Reason::ScopeDenied | Reason::RarDenied => {
            (Code::PermissionDenied, "the issuer denies this scope or resource")
        }
        Reason::AudMismatch
        | Reason::IssuerMismatch
        | Reason::RarEscalated
        | Reason::ScopeEscalated
        | Reason::TokenInactive
        | Reason::TokenNotBound
        | Reason::CertRejected(_) => {
            (Code::FailedPrecondition, "the issuer gave something else than was ordered, so it was discarded")
        }
        Reason::GrantRejected
        | Reason::IssuerConfig
        | Reason::AuthmUnsupported
        | Reason::CertNotAccepted
        | Reason::CfgAudPin
        | Reason::EndpointForeign
        | Reason::IssuerRedirect
        | Reason::MetadataChanged
        | Reason::SourceTokenUnfit => (Code::FailedPrecondition, OPERATOR),
        // ER-02: never the caller's fault, and an operator is at it.
        Reason::AttestationRejected
        | Reason::CaPending
        | Reason::ClientAuthRejected
        | Reason::ClockUntrusted
        | Reason::KeyUnavailable
        | Reason::SourceTokenUnavailable => (Code::Unavailable, OPERATOR),
        Reason::DpopRejected | Reason::IssuerProtocol | Reason::IssuerTls | Reason::IssuerUnavailable => {
            (Code::Unavailable, LATER)
        }
        Reason::SecretUnavailable => (
            Code::Unavailable,
            "the secret is not there to be handed out: an operator has to put it in (keybearer seal), or can see why in the ledger",
        ),
        Reason::IssuerRateLimit => (Code::ResourceExhausted, "the issuer asked to slow down"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::issuer::IssueFacts;

    fn failure(error: IssueError, retry_after: Option<Duration>) -> Failure {
        Failure::Issue { error, retry_after, attempts: 1, facts: IssueFacts::default() }
    }

    #[test]
    fn each_row_has_its_code_and_reason() {
        // ER-01..08, ER-11, ER-12
        let detail = String::new;
        let retry = |reason| IssueError::Retry { reason, detail: detail(), after: None };
        let refused = |reason| IssueError::Refused { reason, detail: detail() };
        let config = |reason| IssueError::Misconfigured { reason, detail: detail() };
        for (error, code, name) in [
            (config(Reason::AgentBugRequest), Code::Internal, "AGENT_BUG_REQUEST"),
            (config(Reason::ClientAuthRejected), Code::Unavailable, "CLIENT_AUTH_REJECTED"),
            (refused(Reason::GrantRejected), Code::FailedPrecondition, "GRANT_REJECTED"),
            (config(Reason::IssuerConfig), Code::FailedPrecondition, "ISSUER_CONFIG"),
            (refused(Reason::ScopeDenied), Code::PermissionDenied, "SCOPE_DENIED"),
            (refused(Reason::AudienceDenied), Code::PermissionDenied, "AUDIENCE_DENIED"),
            (refused(Reason::RarDenied), Code::PermissionDenied, "RAR_DENIED"),
            (retry(Reason::DpopRejected), Code::Unavailable, "DPOP_REJECTED"),
            (retry(Reason::IssuerRateLimit), Code::ResourceExhausted, "ISSUER_RATE_LIMIT"),
            (retry(Reason::IssuerUnavailable), Code::Unavailable, "ISSUER_UNAVAILABLE"),
            (retry(Reason::IssuerTls), Code::Unavailable, "ISSUER_TLS"),
        ] {
            let (is, reason, message, _) = of_failure(&failure(error, None));
            assert_eq!((is, reason), (code, name));
            assert!(!message.is_empty());
        }
    }

    #[test]
    fn a_status_carries_its_reason_and_when_to_come_back() {
        let wait = Duration::from_secs(3);
        let error =
            IssueError::Retry { reason: Reason::IssuerRateLimit, detail: "canary".into(), after: None };
        let (code, reason, message, retry_after) = of_failure(&failure(error, Some(wait)));
        let status = Told { code, reason, message, retry_after, exchange: None }.status();
        let details = status.get_error_details();
        let info = details.error_info().unwrap();
        assert_eq!((info.domain.as_str(), info.reason.as_str()), ("keybearer", "ISSUER_RATE_LIMIT"));
        assert_eq!(details.retry_info().unwrap().retry_delay, Some(wait));
        // ER-13: the issuer's words stay in the ledger.
        assert!(!format!("{status:?}").contains("canary"));
    }
}

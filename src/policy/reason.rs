//! Policy's no in one word, and what an operator can do about it. One line each, so that the whole list can be read at once.

use std::fmt;

/// Why not. For the ledger; a stranger gets the same answer for all of them (ATT-27).
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Reason {
    /// Two identities match.
    Ambiguous,
    /// An operator has switched the identity off.
    Disabled,
    /// Its dated exception is over (S36).
    ExceptionExpired,
    /// The agent does not call this credential's API for programs.
    ForwardNotAllowed,
    /// The agent calls this credential's API, and hands out nothing of it.
    ForwardOnly,
    /// The method is none that a proof is made for (DPOP-21).
    HtmNotAllowed,
    /// The URL is none that a proof is made for (DPOP-19, DPOP-20).
    HtuNotAllowed,
    /// A person is behind the process, and the identity is a service's; or it cannot be told whether one is (NHI-10).
    HumanSession,
    /// The evidence is weaker than the identity demands.
    Level,
    /// The identity has no credential of that name.
    NoCredential,
    /// No identity matches.
    NoIdentity,
    /// The credential is for one process, and the service manager asks before there is one.
    NoProcess,
    /// The credential is not bound by a key, so there is nothing to prove.
    NotBound,
    /// Its identity is not one of those that count at this exported socket (ATT-23).
    NotAtThisSocket,
    /// The service manager asks, and the identity does not say that it may.
    NotForServiceManager,
    /// More scope than policy grants (OA-20).
    Scope,
    /// Somebody traces the process (ATT-19).
    Traced,
    /// Who asks as the service manager names another unit than the kernel.
    UnitConflict,
}

impl Reason {
    /// The stable name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ambiguous => "AMBIGUOUS",
            Self::Disabled => "DISABLED",
            Self::ExceptionExpired => "EXCEPTION_EXPIRED",
            Self::ForwardNotAllowed => "FORWARD_NOT_ALLOWED",
            Self::ForwardOnly => "FORWARD_ONLY",
            Self::HtmNotAllowed => "HTM_NOT_ALLOWED",
            Self::HtuNotAllowed => "HTU_NOT_ALLOWED",
            Self::HumanSession => "HUMAN_SESSION",
            Self::Level => "LEVEL",
            Self::NoCredential => "NO_CREDENTIAL",
            Self::NoIdentity => "NO_IDENTITY",
            Self::NoProcess => "NO_PROCESS",
            Self::NotBound => "NOT_BOUND",
            Self::NotAtThisSocket => "NOT_AT_THIS_SOCKET",
            Self::NotForServiceManager => "NOT_FOR_SERVICE_MANAGER",
            Self::Scope => "SCOPE",
            Self::Traced => "TRACED",
            Self::UnitConflict => "UNIT_CONFLICT",
        }
    }

    /// Whether a caller may hear it: it is told only to one who has the credential, of a request that is not for it.
    pub fn is_about_the_request(self) -> bool {
        matches!(
            self,
            Self::ForwardNotAllowed
                | Self::ForwardOnly
                | Self::HtmNotAllowed
                | Self::HtuNotAllowed
                | Self::NotBound
        )
    }

    /// What an operator can do about it, whoever IDENTITY and whatever CREDENTIAL is.
    pub fn remedy(self) -> &'static str {
        match self {
            Self::Ambiguous => "make the selectors of these identities exclude each other",
            Self::Disabled => "keybearer enable IDENTITY, once it may have credentials again",
            Self::ExceptionExpired => {
                "bind the credential, or have its owner renew the exception: until in [identities.IDENTITY.credentials.CREDENTIAL]"
            }
            Self::ForwardNotAllowed => {
                "set forward = \"allowed\" for CREDENTIAL, or have the program call its API itself"
            }
            Self::ForwardOnly => {
                "have the program call its API through /v1/forward, or set forward = \"allowed\" for CREDENTIAL"
            }
            Self::HtmNotAllowed => "use one of the credential's methods, or add this one to them",
            Self::HtuNotAllowed => {
                "send the request to an origin of the credential, or add this one to its origins; never an issuer's endpoint"
            }
            Self::HumanSession => {
                "have the service manager run it; for an emergency, give people an identity of their own with humans = \"allowed\""
            }
            Self::Level => "run it as a systemd unit, or lower the assurance of IDENTITY on purpose",
            Self::NoCredential => {
                "ask for one that it has, or add [identities.IDENTITY.credentials.CREDENTIAL] to agent.toml"
            }
            Self::NoIdentity => {
                "add an identity that matches this evidence, or mend the one that nearly does"
            }
            Self::NoProcess => {
                "start the program with keybearer exec, which asks as the process that it becomes, or set per = \"identity\""
            }
            Self::NotBound => "set binding = \"dpop\" for the credential, or send it without a proof",
            Self::NotAtThisSocket => {
                "have it ask at a socket that is for it, or add IDENTITY to the identities of this export on purpose"
            }
            Self::NotForServiceManager => {
                "set service_manager = \"allowed\" for IDENTITY, or start its program with keybearer exec"
            }
            Self::Scope => "have it ask for less, or add the scope to CREDENTIAL",
            Self::Traced => "detach the debugger",
            Self::UnitConflict => {
                "find out who asks: no service manager names another unit than the one that its process is in"
            }
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

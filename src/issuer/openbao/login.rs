//! Logging in, for one request or for one lease, and never for longer. In go an order and the keys it is placed with; out comes a
//! token, or a request that carries its login along. Each attempt shows an assertion of its own (PKJ-12).

use std::{sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use http::HeaderName;
use serde::Serialize;

use super::{
    reply::{Document, Step},
    server::{Caller, Server, is_one_word, text},
};
use crate::{
    issuer::{
        IssueError, IssueFacts, Reason,
        assertion::{Assertion, Showing},
        contact::Shown,
        http::{Body, Request},
    },
    jose::Signer,
    keys::ClientCertificate,
    secret::Secret,
};

const INLINE_PATH: HeaderName = HeaderName::from_static("x-vault-inline-auth-path");
const INLINE_FIRST: HeaderName = HeaderName::from_static("x-vault-inline-auth-parameter-1");
const INLINE_SECOND: HeaderName = HeaderName::from_static("x-vault-inline-auth-parameter-2");

/// One thing that can be shown to log in.
#[derive(Clone, Copy)]
pub(super) enum Way<'a> {
    Certificate(&'a Arc<ClientCertificate>),
    /// An assertion: of our own with this key, or of others.
    Jwt(Option<&'a Arc<dyn Signer>>),
}

/// What was logged in as.
pub(super) struct Login {
    /// The token: whatever is leased with it ends with it.
    pub(super) token: Secret,
    /// How long it lives.
    pub(super) life: Duration,
    /// Whether it can live longer.
    pub(super) renewable: bool,
    /// The certificate that it was had with: it is renewed over the same only (GHSA-7ccv-rp6m-rffr).
    pub(super) certificate: Option<Arc<ClientCertificate>>,
    /// What a lease must not hang on, if it is one such.
    pub(super) unfit: Option<&'static str>,
}

impl Server {
    /// Logs in.
    ///
    /// # Errors
    /// [`IssueError`]; [`Reason::ClientAuthRejected`] if the server would not have it.
    pub(super) async fn log_in(
        &self,
        way: Way<'_>,
        caller: Caller<'_>,
        facts: &mut IssueFacts,
    ) -> Result<Login, IssueError> {
        #[derive(Serialize)]
        struct ByJwt<'a> {
            role: &'a str,
            jwt: &'a str,
        }
        #[derive(Serialize)]
        struct ByName<'a> {
            name: &'a str,
        }
        let client: &str = &caller.order.client_id;
        let body = match way {
            Way::Certificate(_) => spelled(&ByName { name: client })?,
            Way::Jwt(key) => {
                let jwt = self.assertion(key, caller).await?;
                spelled(&ByJwt { role: client, jwt: text(&jwt) })?
            }
        };
        let url = self.settings.at(&self.settings.login_path(&caller.order.terms.client_auth));
        let request = Request::post(url, Body { media_type: "application/json", content: body });
        let response = self.send(way.shown(caller), request, facts).await?;
        let mut document = Document::read(&response, Step::LogIn, self.clock.wall())?;
        if document.value().pointer("/auth/mfa_requirement").is_some_and(|wanted| !wanted.is_null()) {
            return Err(IssueError::Misconfigured {
                reason: Reason::ClientAuthRejected,
                detail: "the server wants a second factor of this role, which no program has: take the role out of its login MFA".into(),
            });
        }
        let token =
            document.take("/auth/client_token").filter(is_one_word).ok_or_else(|| IssueError::Retry {
                reason: Reason::IssuerProtocol,
                detail: "the server's login answer holds no token that could be sent".into(),
                after: None,
            })?;
        let unfit = if document.text("/auth/token_type") == Some("batch") {
            Some("the role gives batch tokens, which cannot be revoked: set its token_type to \"service\"")
        } else if document.number("/auth/num_uses") != 0 {
            Some(
                "the role's tokens end after a number of uses, and a lease with them: set its token_num_uses to 0",
            )
        } else {
            None
        };
        Ok(Login {
            token,
            life: document.seconds("/auth/lease_duration"),
            renewable: document.flag("/auth/renewable"),
            certificate: match way {
                Way::Certificate(certificate) => Some(Arc::clone(certificate)),
                Way::Jwt(_) => None,
            },
            unfit,
        })
    }

    /// `request` with its login in it: no token is made for it (OpenBao's inline auth).
    ///
    /// # Errors
    /// [`IssueError`] if there is nothing to log in with.
    pub(super) async fn carrying(
        &self,
        request: Request,
        way: Way<'_>,
        caller: Caller<'_>,
    ) -> Result<Request, IssueError> {
        let path = self.settings.login_path(&caller.order.terms.client_auth);
        let request = request.with(INLINE_PATH, Secret::new(path));
        match way {
            Way::Certificate(_) => {
                Ok(request.with(INLINE_FIRST, parameter("name", &caller.order.client_id)?))
            }
            Way::Jwt(key) => {
                let jwt = self.assertion(key, caller).await?;
                let request = request.with(INLINE_FIRST, parameter("role", &caller.order.client_id)?);
                Ok(request.with(INLINE_SECOND, parameter("jwt", text(&jwt))?))
            }
        }
    }

    async fn assertion(
        &self,
        key: Option<&Arc<dyn Signer>>,
        caller: Caller<'_>,
    ) -> Result<Secret, IssueError> {
        let audience = self.settings.audience();
        let own = Assertion {
            typ: "JWT",
            client_id: &caller.order.client_id,
            audience,
            now: self.contact.now()?,
            life: 60,
        };
        let showing = Showing { own, svid_audience: audience, timeout: self.settings.timeout };
        showing.take(&caller.order.terms.client_auth, key, &*self.dice).await
    }
}

impl<'a> Way<'a> {
    /// The certificate to show, if it is one.
    pub(super) fn shown(self, caller: Caller<'a>) -> Option<Shown<'a>> {
        match self {
            Self::Certificate(certificate) => Some(caller.shown(certificate)),
            Self::Jwt(_) => None,
        }
    }
}

/// The one in use, then the one before.
pub(super) fn ways(caller: Caller<'_>) -> Result<Vec<Way<'_>>, IssueError> {
    let Caller { order, signers } = caller;
    let auth = &order.terms.client_auth;
    let ways: Vec<Way<'_>> = if auth.is_mtls() {
        signers.certificates.iter().map(Way::Certificate).collect()
    } else if auth.needs_key() {
        signers.client.iter().chain(&signers.before).map(|key| Way::Jwt(Some(key))).collect()
    } else {
        vec![Way::Jwt(None)]
    };
    if ways.is_empty() { Err(nothing_to_show()) } else { Ok(ways) }
}

pub(super) fn nothing_to_show() -> IssueError {
    // Not the server's trouble: others log in with keys of their own.
    IssueError::Later {
        reason: Reason::KeyUnavailable,
        detail: "there is no key or certificate of this identity to log in with: see whether it is still where it was".into(),
        after: Duration::ZERO,
    }
}

/// A parameter of a login that goes with a request.
fn parameter(key: &str, value: &str) -> Result<Secret, IssueError> {
    #[derive(Serialize)]
    struct Parameter<'a> {
        key: &'a str,
        value: &'a str,
    }
    let spelled = spelled(&Parameter { key, value })?;
    Ok(Secret::new(URL_SAFE_NO_PAD.encode(spelled.expose())))
}

/// As JSON, without leaving copies behind.
fn spelled(what: &impl Serialize) -> Result<Secret, IssueError> {
    // Room for the longest at once: a buffer that grows leaves copies.
    let mut room = zeroize::Zeroizing::new(Vec::with_capacity(64 * 1024));
    serde_json::to_writer(&mut *room, what).map_err(|_| IssueError::Refused {
        reason: Reason::AgentBugRequest,
        detail: "a login cannot be written down".into(),
    })?;
    Ok(Secret::new(std::mem::take(&mut *room)))
}

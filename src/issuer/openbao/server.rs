//! One server, and the way to it. In go requests, whoever makes them, and tokens; out come answers. Here tokens are ended too, when
//! nothing hangs on them any more that anybody wants.

use std::{fmt, sync::Arc};

use http::HeaderName;

use super::{
    reply::{self, Step},
    settings::OpenBaoSettings,
};
use crate::{
    clock::{Clock, Dice},
    issuer::{
        IssueError, IssueFacts, Order, Reason, Signers,
        contact::{Contact, Shown},
        http::{Body, HttpError, HttpSettings, Request, Response, USER_AGENT},
    },
    keys::ClientCertificate,
    secret::Secret,
};

const NAMESPACE: HeaderName = HeaderName::from_static("x-vault-namespace");
/// Servers that stand behind an agent of their own want to see it.
const REQUEST: HeaderName = HeaderName::from_static("x-vault-request");
/// Who has it may do what its policies say.
pub(super) const TOKEN: HeaderName = HeaderName::from_static("x-vault-token");

/// The longest token or lease id that is taken.
const LONGEST: usize = 8 * 1024;

/// One server, and the way to it.
pub(super) struct Server {
    pub(super) settings: OpenBaoSettings,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) dice: Arc<dyn Dice>,
    pub(super) contact: Contact,
}

/// Who asks, and with which keys.
#[derive(Clone, Copy)]
pub(super) struct Caller<'a> {
    pub(super) order: &'a Order,
    pub(super) signers: &'a Signers,
}

impl Server {
    pub(super) fn new(
        settings: OpenBaoSettings,
        clock: Arc<dyn Clock>,
        dice: Arc<dyn Dice>,
    ) -> Result<Self, HttpError> {
        let http = HttpSettings {
            ca_file: settings.ca_file.clone(),
            allow_plain_loopback: settings.dev,
            timeout: settings.timeout,
            user_agent: USER_AGENT.into(),
        };
        let contact = Contact::new(http, Arc::clone(&clock))?;
        Ok(Self { settings, clock, dice, contact })
    }

    /// Asks as the holder of a token, over the connections of `certificate` where there is one.
    pub(super) async fn ask_with(
        &self,
        token: &str,
        (caller, certificate): (Caller<'_>, Option<&Arc<ClientCertificate>>),
        (at, body): (&str, &str),
        facts: &mut IssueFacts,
    ) -> Result<Response, IssueError> {
        let shown = certificate.map(|certificate| caller.shown(certificate));
        let content = Secret::new(body);
        let request = Request::post(self.settings.at(at), Body { media_type: "application/json", content });
        self.send(shown, request.with(TOKEN, Secret::new(token)), facts).await
    }

    /// Ends a token, and with it whatever was leased with it. One that has ended already is as good.
    ///
    /// # Errors
    /// [`IssueError`] if it lives still, as far as is known.
    pub(super) async fn end(&self, token: &str, caller: Caller<'_>) -> Result<(), IssueError> {
        const AT: &str = "auth/token/revoke-self";
        let certificate =
            caller.signers.certificates.first().filter(|_| caller.order.terms.client_auth.is_mtls());
        let response =
            self.ask_with(token, (caller, certificate), (AT, "{}"), &mut IssueFacts::default()).await?;
        match response.status {
            200 | 204 => Ok(()),
            _ if reply::is_unknown_token(&response) => Ok(()),
            403 => Err(IssueError::Refused {
                reason: Reason::GrantRejected,
                detail: format!(
                    "the server does not let the role's tokens end themselves: give them a policy for {AT}, as \"default\" does"
                ),
            }),
            _ => Err(reply::refused(&response, Step::Do(AT), self.clock.wall())),
        }
    }

    /// Ends a token that nothing hangs on. What is left of one that cannot be ended now ends by itself.
    pub(super) async fn let_go(&self, token: &Secret, caller: Caller<'_>) {
        if let Err(error) = self.end(text(token), caller).await {
            tracing::warn!(issuer = %self.settings.name, %error, "a login of no more use is left to end by itself");
        }
    }

    pub(super) async fn send(
        &self,
        shown: Option<Shown<'_>>,
        request: Request,
        facts: &mut IssueFacts,
    ) -> Result<Response, IssueError> {
        let mut request = request.with(REQUEST, Secret::new("true"));
        if let Some(namespace) = &self.settings.namespace {
            request = request.with(NAMESPACE, Secret::new(namespace.as_str()));
        }
        self.contact.send(shown, request, facts).await
    }
}

impl<'a> Caller<'a> {
    /// With this certificate.
    pub(super) fn shown(self, certificate: &'a Arc<ClientCertificate>) -> Shown<'a> {
        Shown { certificate, order: self.order, signers: self.signers }
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OpenBao({} at {})", self.settings.name, self.settings.url)
    }
}

/// Whether it can be sent in a header and kept beside others: printable, without blanks.
pub(super) fn is_one_word(word: &Secret) -> bool {
    (1..=LONGEST).contains(&word.len()) && word.expose().iter().all(u8::is_ascii_graphic)
}

/// What is known to be ASCII, as text.
pub(super) fn text(secret: &Secret) -> &str {
    secret.expose_str().unwrap_or_default()
}

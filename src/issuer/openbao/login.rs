//! Logging in, for one request or for one lease, and never for longer. In go an order and the keys it is placed with; out comes an
//! answer, and the token where something hangs on it. Each attempt shows an assertion of its own (PKJ-12); an issuer that does
//! not know the new key or certificate yet is shown the one before (KEY-06, MT-05).

use std::{fmt, sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{HeaderName, Method};
use serde::Serialize;

use super::{
    super::{
        IssueError, IssueFacts, Order, Reason, Signers,
        assertion::{Assertion, Showing},
        contact::{Contact, Shown},
        http::{Body, HttpError, HttpSettings, Request, Response, USER_AGENT},
    },
    reply::{self, Document, Step},
    settings::OpenBaoSettings,
};
use crate::{
    clock::{Clock, Dice},
    jose::Signer,
    keys::ClientCertificate,
    secret::Secret,
};

const INLINE_PATH: HeaderName = HeaderName::from_static("x-vault-inline-auth-path");
const INLINE_FIRST: HeaderName = HeaderName::from_static("x-vault-inline-auth-parameter-1");
const INLINE_SECOND: HeaderName = HeaderName::from_static("x-vault-inline-auth-parameter-2");
const NAMESPACE: HeaderName = HeaderName::from_static("x-vault-namespace");
/// Servers that stand behind an agent of their own want to see it.
const REQUEST: HeaderName = HeaderName::from_static("x-vault-request");
const TOKEN: HeaderName = HeaderName::from_static("x-vault-token");

/// The longest token or lease id that is taken.
const LONGEST: usize = 8 * 1024;

/// One server, and the way to it.
pub(super) struct Server {
    pub(super) settings: OpenBaoSettings,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) dice: Arc<dyn Dice>,
    contact: Contact,
}

/// Who asks, and with which keys.
#[derive(Clone, Copy)]
pub(super) struct Caller<'a> {
    pub(super) order: &'a Order,
    pub(super) signers: &'a Signers,
}

/// One thing that can be shown to log in.
#[derive(Clone, Copy)]
enum Way<'a> {
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

/// What is asked of the server, beside who asks.
#[derive(Clone, Copy)]
pub(super) struct Wish<'a> {
    /// The path, without `/v1/`.
    pub(super) at: &'a str,
    /// What is written there, as JSON; without it, the path is read.
    pub(super) body: Option<&'a str>,
    /// Whether the login may go with the request.
    pub(super) inline: bool,
}

/// An answer, and who it was given to.
pub(super) struct Answered {
    pub(super) document: Document,
    /// None where the login went with the request.
    pub(super) login: Option<Login>,
}

/// A yes, a no that holds, or a no that only says that the request has to be made with a token.
enum Inline {
    Done(Document),
    NeedsToken,
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

    /// Asks once, as somebody who has just logged in for it. Whatever was logged in as is for the caller to end.
    pub(super) async fn ask(
        &self,
        caller: Caller<'_>,
        wish: Wish<'_>,
        facts: &mut IssueFacts,
    ) -> Result<Answered, IssueError> {
        let mut ways = ways(caller)?.into_iter().peekable();
        let mut fell_back = false;
        while let Some(way) = ways.next() {
            match self.ask_by(way, caller, wish, facts).await {
                Err(IssueError::Misconfigured { reason: Reason::ClientAuthRejected, .. })
                    if ways.peek().is_some() =>
                {
                    tracing::warn!(issuer = %self.settings.name, "the new key or certificate is not known yet: falling back to the one before");
                    fell_back = true;
                }
                answered => {
                    facts.key_fallback = fell_back && answered.is_ok();
                    return answered;
                }
            }
        }
        Err(nothing_to_show())
    }

    async fn ask_by(
        &self,
        way: Way<'_>,
        caller: Caller<'_>,
        wish: Wish<'_>,
        facts: &mut IssueFacts,
    ) -> Result<Answered, IssueError> {
        if wish.inline
            && let Inline::Done(document) = self.ask_inline(way, caller, wish, facts).await?
        {
            return Ok(Answered { document, login: None });
        }
        let login = self.log_in(way, caller, facts).await?;
        let shown = way.shown(caller);
        let request = wish.request(&self.settings).with(TOKEN, copy(&login.token));
        let answered = match self.send(shown, request, facts).await {
            Ok(response) => Document::read(&response, Step::Do(wish.at), self.clock.wall()),
            Err(error) => Err(error),
        };
        match answered {
            Ok(document) => Ok(Answered { document, login: Some(login) }),
            Err(error) => {
                self.let_go(&login.token, caller).await;
                Err(error)
            }
        }
    }

    /// The request with its login in it: no token is made for it (OpenBao's inline auth).
    async fn ask_inline(
        &self,
        way: Way<'_>,
        caller: Caller<'_>,
        wish: Wish<'_>,
        facts: &mut IssueFacts,
    ) -> Result<Inline, IssueError> {
        let path = self.settings.login_path(&caller.order.terms.client_auth);
        let mut request = wish.request(&self.settings).with(INLINE_PATH, Secret::new(path));
        request = match way {
            Way::Certificate(_) => request.with(INLINE_FIRST, parameter("name", &caller.order.client_id)?),
            Way::Jwt(key) => {
                let jwt = self.assertion(key, caller).await?;
                request
                    .with(INLINE_FIRST, parameter("role", &caller.order.client_id)?)
                    .with(INLINE_SECOND, parameter("jwt", text(&jwt))?)
            }
        };
        let response = self.send(way.shown(caller), request, facts).await?;
        if reply::leases_something(&response) {
            return Ok(Inline::NeedsToken);
        }
        Document::read(&response, Step::DoInline(wish.at), self.clock.wall()).map(Inline::Done)
    }

    async fn log_in(
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
            tracing::debug!(issuer = %self.settings.name, %error, "a login that is of no more use ends by itself");
        }
    }

    async fn send(
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

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OpenBao({} at {})", self.settings.name, self.settings.url)
    }
}

impl<'a> Caller<'a> {
    fn shown(self, certificate: &'a Arc<ClientCertificate>) -> Shown<'a> {
        Shown { certificate, order: self.order, signers: self.signers }
    }
}

impl<'a> Way<'a> {
    fn shown(self, caller: Caller<'a>) -> Option<Shown<'a>> {
        match self {
            Self::Certificate(certificate) => Some(caller.shown(certificate)),
            Self::Jwt(_) => None,
        }
    }
}

impl Wish<'_> {
    fn request(self, settings: &OpenBaoSettings) -> Request {
        match self.body {
            Some(body) => {
                let content = Secret::new(body);
                Request::post(settings.at(self.at), Body { media_type: "application/json", content })
            }
            None => Request { method: Method::GET, ..Request::get(settings.at(self.at)) },
        }
    }
}

/// The one in use, then the one before.
fn ways(caller: Caller<'_>) -> Result<Vec<Way<'_>>, IssueError> {
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

fn nothing_to_show() -> IssueError {
    IssueError::Retry {
        reason: Reason::KeyUnavailable,
        detail: "there is no key or certificate of this identity to log in with: see whether it is still where it was".into(),
        after: None,
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

/// Whether it can be sent in a header and kept beside others: printable, without blanks.
pub(super) fn is_one_word(word: &Secret) -> bool {
    (1..=LONGEST).contains(&word.len()) && word.expose().iter().all(u8::is_ascii_graphic)
}

/// What is known to be ASCII, as text.
pub(super) fn text(secret: &Secret) -> &str {
    secret.expose_str().unwrap_or_default()
}

fn copy(secret: &Secret) -> Secret {
    Secret::new(secret.expose())
}

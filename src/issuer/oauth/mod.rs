//! OAuth 2.0: client_credentials with private_key_jwt (RFC 6749, RFC 7523, RFC 8707). In goes an order; out comes an access
//! token that was held against it. One call is one attempt with one assertion; when to try again is not decided
//! here.

mod assertion;
mod metadata;
mod reply;

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use http::{Method, header};
use url_form::encoded;

pub use assertion::AssertionTyp;
pub use metadata::WellKnown;

use crate::{
    clock::{Boot, Clock, Dice},
    credential::Credential,
    issuer::{
        IssueError, IssueFacts, Issued, Issuer, Order, Pending, Reason,
        http::{Answer, Http, HttpError, HttpSettings, is_loopback},
        skew::Skew,
    },
    secret::{Secret, scrubbed},
};
use assertion::assertion;
use metadata::{Metadata, Wanted};

/// The grant, as the form writes it.
const CLIENT_CREDENTIALS: &str = "client_credentials";

/// PKJ-01.
const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// An OAuth issuer, as the operator means it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct OAuthSettings {
    /// Its name in the settings.
    pub name: Arc<str>,
    /// The issuer identifier, byte for byte (OA-02).
    pub issuer: String,
    /// Where its metadata is looked for (OA-01).
    pub well_known: WellKnown,
    /// What assertions are addressed to (PKJ-03, PKJ-05).
    pub audience: Audience,
    /// Hosts beside the issuer's own that its endpoints may be on (OA-04).
    pub allowed_endpoint_hosts: Vec<String>,
    /// The roots to trust instead of the host's (OA-06).
    pub ca_file: Option<PathBuf>,
    /// Whether it is a development issuer, which may speak plain HTTP on this host.
    pub dev: bool,
    /// `exp - iat` of assertions (PKJ-07).
    pub assertion_life: Duration,
    /// `typ` of assertions (PKJ-10).
    pub assertion_typ: AssertionTyp,
    /// Whether `client_id` stands in the form (PKJ-14).
    pub send_client_id: bool,
    /// For one exchange.
    pub timeout: Duration,
}

/// What assertions are addressed to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Audience {
    /// The issuer identifier, as rfc7523bis and FAPI 2.0 demand.
    Issuer,
    /// The token endpoint, for issuers that take nothing else (Ory Hydra, Microsoft Entra). Pinned, because a
    /// learned one would let metadata choose whom our assertions are good for.
    TokenEndpoint {
        /// The endpoint, as the operator wrote it.
        pinned: String,
    },
}

/// What is wrong with the settings of an issuer: the key, and what to do.
pub fn problems(settings: &OAuthSettings) -> Vec<(&'static str, String)> {
    let mut problems = Vec::new();
    let mut wrong = |key, message: &str| problems.push((key, message.to_owned()));
    let url = &settings.issuer;
    let host = metadata::host_of(url);
    match (url.split_once("://"), host) {
        (_, None) if url.is_empty() => {}
        (Some(("https", _)), Some(_)) => {}
        (Some(("http", _)), Some(host)) if settings.dev && is_loopback(host) => {}
        (Some(("http", _)), Some(_)) => {
            wrong(
                "issuer",
                "it has to be https; http is only for a development issuer (dev = true) on this host's loopback",
            );
        }
        _ => wrong("issuer", "it has to be an https URL (OA-01)"),
    }
    if url.contains(['?', '#']) || url.chars().any(char::is_whitespace) {
        wrong("issuer", "an issuer identifier has no query and no fragment (RFC 8414)");
    }
    if let Audience::TokenEndpoint { pinned } = &settings.audience {
        if pinned.is_empty() {
            wrong(
                "token_endpoint",
                "CFG_AUD_PIN: audience = \"token_endpoint\" needs the endpoint pinned: token_endpoint = \"https://..\"",
            );
        } else if metadata::host_of(pinned).is_none() || !(pinned.starts_with("https://") || settings.dev) {
            wrong("token_endpoint", "it has to be an https URL");
        }
    }
    if !(10..=60).contains(&settings.assertion_life.as_secs()) {
        wrong("assertion_life", "it has to be from 10 to 60 s (PKJ-07)");
    }
    if !(1..=60).contains(&settings.timeout.as_secs()) {
        wrong("timeout", "it has to be from 1 to 60 s");
    }
    if settings.allowed_endpoint_hosts.iter().any(|host| host.contains(['/', ':', '*']) || host.is_empty()) {
        wrong("allowed_endpoint_hosts", "each is the name of one host, without scheme, port and wildcard");
    }
    problems
}

/// An OAuth issuer at work.
#[derive(Debug)]
pub struct OAuth {
    settings: OAuthSettings,
    http: Http,
    state: Mutex<State>,
    learning: tokio::sync::Mutex<()>,
    clock: Arc<dyn Clock>,
    dice: Arc<dyn Dice>,
}

#[derive(Debug, Default)]
struct State {
    skew: Skew,
    metadata: Option<(Arc<Metadata>, Boot)>,
    learned_at: Option<Boot>,
}

impl OAuth {
    /// An issuer with these settings. Asks nothing of the network yet.
    ///
    /// # Errors
    /// [`HttpError::Roots`] if there is nothing to trust.
    pub fn new(
        settings: OAuthSettings,
        clock: Arc<dyn Clock>,
        dice: Arc<dyn Dice>,
    ) -> Result<Self, HttpError> {
        let http = Http::new(HttpSettings {
            ca_file: settings.ca_file.clone(),
            allow_plain_loopback: settings.dev,
            timeout: settings.timeout,
        })?;
        Ok(Self {
            settings,
            http,
            state: Mutex::default(),
            learning: tokio::sync::Mutex::new(()),
            clock,
            dice,
        })
    }

    /// How far the issuer's clock is ahead of ours, in milliseconds, if it said.
    pub fn skew_ms(&self) -> Option<i64> {
        self.state().skew.median().and_then(|skew| i64::try_from(skew.as_millis()).ok())
    }

    async fn issue_once(&self, order: &Order, facts: &mut IssueFacts) -> Result<Credential, IssueError> {
        let metadata = self.metadata().await?;
        let audience = metadata.audience(&self.settings)?;
        metadata.accepts(order.signer.algorithm())?;
        let mut form = vec![("grant_type", CLIENT_CREDENTIALS)];
        let scope = order.scope.join(" ");
        if !scope.is_empty() {
            form.push(("scope", &scope));
        }
        if let Some(resource) = &order.resource {
            form.push(("resource", resource));
        }
        let answer = self.post(&metadata.token_endpoint, form, audience, order).await?;
        facts.http_status = Some(answer.status.as_u16());
        if answer.status.as_u16() == 404 {
            self.doubt_metadata();
        }
        let asked = reply::Asked { order, issuer: &self.settings.issuer };
        let (now, wall) = (self.clock.boot(), self.clock.wall());
        reply::credential(&asked, &answer, now, wall, facts).inspect_err(|error| {
            if error.reason() == Reason::ClientAuthRejected {
                self.doubt_metadata();
            }
        })
    }

    async fn revoke_once(&self, order: &Order, credential: &Credential) -> Result<(), IssueError> {
        let metadata = self.metadata().await?;
        let endpoint = metadata.revocation_endpoint.as_ref().ok_or_else(|| IssueError::Refused {
            reason: Reason::IssuerConfig,
            detail: "the issuer offers no revocation: the credential lives until it expires".into(),
        })?;
        let token = credential.token.expose_str().unwrap_or_default();
        let form = vec![("token", token), ("token_type_hint", "access_token")];
        // PKJ-16: the audience is the same for every endpoint.
        let answer = self.post(endpoint, form, metadata.audience(&self.settings)?, order).await?;
        reply::revoked(&answer, self.clock.wall())
    }

    /// One authenticated POST, with an assertion of its own (PKJ-12).
    async fn post(
        &self,
        endpoint: &str,
        mut form: Vec<(&str, &str)>,
        audience: &str,
        order: &Order,
    ) -> Result<Answer, IssueError> {
        let skew = self.state().skew.correction().map_err(|skew| IssueError::Retry {
            reason: Reason::ClockUntrusted,
            detail: format!(
                "the issuer's clock is {} s from ours, more than 300: set the clock (NTP)",
                skew.as_secs()
            ),
            after: Some(Duration::from_secs(60)),
        })?;
        let wall = self.clock.wall().saturating_add(skew).map_err(|_| IssueError::Retry {
            reason: Reason::ClockUntrusted,
            detail: "the clock is beyond all dates".into(),
            after: None,
        })?;
        let assertion: Secret =
            assertion(&self.settings, audience, order, wall, &*self.dice).map_err(|_| IssueError::Retry {
                reason: Reason::KeyUnavailable,
                detail: "the key could not sign".into(),
                after: None,
            })?;
        form.push(("client_assertion_type", ASSERTION_TYPE));
        form.push(("client_assertion", assertion.expose_str().unwrap_or_default()));
        if self.settings.send_client_id {
            form.push(("client_id", &order.client_id));
        }
        let body = zeroize::Zeroizing::new(encoded(&form));
        let sent = self.http.send(Method::POST, endpoint, Some(&body)).await;
        self.hear(sent)
    }

    /// Notes what an answer says about the issuer's clock, and sorts trouble on the way to it.
    fn hear(&self, sent: Result<Answer, HttpError>) -> Result<Answer, IssueError> {
        let answer = sent.map_err(from_http)?;
        let date = answer.headers.get(header::DATE).and_then(|date| date.to_str().ok());
        self.state().skew.sample(date, self.clock.wall());
        Ok(answer)
    }

    async fn metadata(&self) -> Result<Arc<Metadata>, IssueError> {
        // Single flight: who comes second finds what the first has learned.
        let _learning = self.learning.lock().await;
        let now = self.clock.boot();
        if let Some((metadata, until)) = &self.state().metadata
            && now < *until
        {
            return Ok(Arc::clone(metadata));
        }
        let mut last = None;
        for url in metadata::places(&self.settings.issuer, self.settings.well_known) {
            let answer = self.hear(self.http.send(Method::GET, &url, None).await)?;
            if answer.status.as_u16() == 404 {
                last = Some(url);
                continue;
            }
            let wanted = Wanted { settings: &self.settings };
            let (metadata, fresh_for) = wanted.read(&answer, self.clock.wall())?;
            let metadata = Arc::new(metadata);
            let mut state = self.state();
            state.metadata = Some((Arc::clone(&metadata), now + fresh_for));
            state.learned_at = Some(now);
            return Ok(metadata);
        }
        Err(IssueError::Retry {
            reason: Reason::IssuerUnavailable,
            detail: format!("it has no metadata at {}", last.unwrap_or_default()),
            after: None,
        })
    }

    /// What we know of the issuer may be out of date: learn it anew, at most once a minute (OA-07).
    fn doubt_metadata(&self) {
        let now = self.clock.boot();
        let mut state = self.state();
        if state.learned_at.is_none_or(|learned| now.since(learned) >= Duration::from_secs(60)) {
            state.metadata = None;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Issuer for OAuth {
    fn issue<'a>(&'a self, order: &'a Order) -> Pending<'a, Issued> {
        Box::pin(async move {
            let started = self.clock.boot();
            let mut facts = IssueFacts::default();
            let result = self.issue_once(order, &mut facts).await;
            facts.latency = self.clock.boot().since(started);
            facts.date_skew_ms = self.skew_ms();
            Issued { result, facts }
        })
    }

    fn revoke<'a>(
        &'a self,
        order: &'a Order,
        credential: &'a Credential,
    ) -> Pending<'a, Result<(), IssueError>> {
        Box::pin(self.revoke_once(order, credential))
    }
}

/// ER-12, PKJ-17.
fn from_http(error: HttpError) -> IssueError {
    let detail = scrubbed(&error.to_string(), 300);
    let retry = |reason| IssueError::Retry { reason, detail: detail.clone(), after: None };
    match error {
        HttpError::Broken | HttpError::Connect(_) | HttpError::Timeout => retry(Reason::IssuerUnavailable),
        HttpError::Tls(_) => retry(Reason::IssuerTls),
        HttpError::TooLarge => retry(Reason::IssuerProtocol),
        HttpError::Redirect(_) => IssueError::Misconfigured { reason: Reason::IssuerRedirect, detail },
        HttpError::Plain | HttpError::Roots(_) | HttpError::Url => {
            IssueError::Misconfigured { reason: Reason::IssuerConfig, detail }
        }
    }
}

/// application/x-www-form-urlencoded (WHATWG URL 5).
mod url_form {
    /// The form as a body.
    pub(super) fn encoded(form: &[(&str, &str)]) -> String {
        let mut body = String::new();
        for (name, value) in form {
            if !body.is_empty() {
                body.push('&');
            }
            put(name, &mut body);
            body.push('=');
            put(value, &mut body);
        }
        body
    }

    fn put(text: &str, body: &mut String) {
        for byte in text.bytes() {
            match byte {
                b' ' => body.push('+'),
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'*' => {
                    body.push(char::from(byte))
                }
                _ => body.push_str(&format!("%{byte:02X}")),
            }
        }
    }
}

#[cfg(test)]
mod tests;

//! What is leased: the user of a database, and whatever else a path gives that is read. Each lease has a login of its own, whose
//! token it hangs on: to end the token is to end the lease, at once and also after a restart, and no other policy is needed for
//! it. In go an order and what is held; out come values, and until when they are good. A lease is renewed as long as the server
//! gives enough; then another one is had, and what is held stays good until it ends (S36, S37). What has no lease, such as a KV
//! entry, is read anew.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    ask::{Answered, Wish},
    login::Login,
    reply::{Document, Step},
    server::{Caller, Server, is_one_word, text},
};
use crate::{
    clock::Boot,
    credential::{Bound, Credential, Form, Payload, Window},
    issuer::{
        IssueError, IssueFacts, Order, Reason, Signers,
        http::printable,
        terms::{LeaseTerms, Wants},
    },
    keys::ClientCertificate,
    secret::{Fingerprint, Secret},
};

/// Where a login and a lease of it are renewed. The lease is named in the body: a URL stands in logs.
const RENEW_LOGIN: &str = "auth/token/renew-self";
const RENEW_LEASE: &str = "sys/leases/renew";

/// By name.
type Values = Vec<(String, Secret)>;

/// The leases of a server.
#[derive(Debug)]
pub(super) struct Leases {
    server: Arc<Server>,
    /// Drawn anew at each start: what has no lease may be guessed, and its fingerprint must not tell.
    salt: [u8; 32],
    /// Paths that were seen to lease something: no login goes with a request for one.
    leasing: Mutex<HashSet<String>>,
}

impl Leases {
    pub(super) fn new(server: Arc<Server>) -> Self {
        let mut salt = [0; 32];
        server.dice.fill(&mut salt);
        Self { server, salt, leasing: Mutex::default() }
    }

    /// The values of `order`: those that are held, for longer, or others.
    ///
    /// # Errors
    /// [`IssueError`]; what is held stays good until it ends.
    pub(super) async fn attempt(
        &self,
        order: &Order,
        signers: &Signers,
        held: Option<&Credential>,
        facts: &mut IssueFacts,
    ) -> Result<Credential, IssueError> {
        let Wants::Lease(terms) = &order.terms.wants else {
            return Err(IssueError::Misconfigured {
                reason: Reason::IssuerConfig,
                detail: "an \"openbao\" issuer gives certificates and leases only".into(),
            });
        };
        let caller = Caller { order, signers };
        let now = self.server.clock.boot();
        let held = held.filter(|held| now < held.window.until);
        let held = held.and_then(|held| Some((held, Handle::of(held)?)));
        let Some((held, handle)) = held else { return self.lease(caller, terms, facts).await };
        let (why, short, said) = match self.renew(caller, held, handle, facts).await {
            Ok((renewed, true)) => return Ok(renewed),
            Ok((renewed, false)) => {
                ("MAX_TTL_NEAR", Some(renewed), "the server gives it no more time".to_owned())
            }
            // Whoever is in trouble may be out of it before what is held ends.
            Err(Unrenewed {
                error: error @ (IssueError::Retry { .. } | IssueError::Later { .. }), ..
            }) => {
                return Err(error);
            }
            Err(Unrenewed { why, error }) => (why, None, error.to_string()),
        };
        tracing::info!(identity = %order.identity, credential = %order.credential, why, %said,
            "LEASE_REPLACED: another lease is asked for; this one stays good until it ends");
        match (self.lease(caller, terms, facts).await, short) {
            // A little more of the old is better than none.
            (Err(error), Some(short)) if short.window.until > held.window.until => {
                tracing::warn!(identity = %order.identity, credential = %order.credential, %error, "no other lease can be had yet");
                Ok(short)
            }
            (made, _) => {
                facts.lease_replaced = made.is_ok().then_some(why);
                made
            }
        }
    }

    /// Ends the lease with the login that it hangs on.
    pub(super) async fn end(
        &self,
        order: &Order,
        signers: &Signers,
        credential: &Credential,
    ) -> Result<(), IssueError> {
        let handle = Handle::of(credential).ok_or_else(|| IssueError::Refused {
            reason: Reason::IssuerConfig,
            detail: "it has no lease that could be ended: it is good until somebody changes it at the server"
                .into(),
        })?;
        self.server.end(handle.token, Caller { order, signers }).await
    }

    async fn lease(
        &self,
        caller: Caller<'_>,
        terms: &LeaseTerms,
        facts: &mut IssueFacts,
    ) -> Result<Credential, IssueError> {
        let sent = self.server.clock.boot();
        let inline = self.server.settings.inline_auth && !self.leasing().contains(&terms.at);
        let wish = Wish { at: &terms.at, body: None, inline };
        let Answered { mut document, login } = self.server.ask(caller, wish, facts).await?;
        if inline && login.is_some() {
            self.leasing().insert(terms.at.clone());
        }
        let made = self.accept(caller, terms, &mut document, login.as_ref(), sent, facts).await;
        match (&made, login) {
            (Ok(made), Some(_)) if !made.handle().is_empty() => {}
            // Nothing hangs on it that anybody wants.
            (_, Some(login)) => self.server.let_go(&login.token, caller).await,
            (_, None) => {}
        }
        made
    }

    async fn accept(
        &self,
        caller: Caller<'_>,
        terms: &LeaseTerms,
        document: &mut Document,
        login: Option<&Login>,
        sent: Boot,
        facts: &mut IssueFacts,
    ) -> Result<Credential, IssueError> {
        let lease = document.take("/lease_id");
        if lease.is_none() && !terms.unleased {
            let what = "what it gives has no lease, so it stays as it is: it needs exception = { owner = \"..\", reason = \"what it takes \
                        to make it dynamic\", until = \"YYYY-MM-DD\" } (S36)";
            return Err(missing(&terms.at, what));
        }
        let given = document.seconds("/lease_duration");
        let renewable = document.flag("/renewable");
        let values = values(document, terms, lease.is_none())?;
        let longest = caller.order.max_ttl;
        let (Some(lease), Some(login)) = (lease, login) else {
            // A KV entry may say how often to look at it.
            let life = if given.is_zero() { longest } else { given.min(longest) };
            return self.credential((values, Secret::new([])), &self.salt, (sent, life));
        };
        if !is_one_word(&lease) {
            return Err(garbled("the server's answer names a lease that could not be renewed".into()));
        }
        if let Some(unfit) = login.unfit {
            return Err(IssueError::Misconfigured { reason: Reason::IssuerConfig, detail: unfit.into() });
        }
        let all = given.min(login.life_or(given));
        let life = all.min(longest);
        facts.cut_life_from = (all > longest).then_some(all);
        let mut handle = Handle {
            token: text(&login.token),
            lease: text(&lease),
            asked: if renewable && login.renewable { life.as_secs() } else { 0 },
            shown: login.certificate.as_ref().map_or("-", |certificate| certificate.thumbprint()),
        };
        let mut life = life;
        // Neither is to outlive what is handed out: if this host is gone, nobody ends them.
        if handle.asked > 0 && (given > life || login.life_or(given) > life) {
            match self.extend(caller, handle, &mut IssueFacts::default()).await {
                Ok(left) => life = life.min(left),
                Err(Unrenewed { error, .. }) => {
                    tracing::warn!(issuer = %self.server.settings.name, %error, "a lease could not be cut to what policy allows");
                    // What may not be renewed now will not be later: another one is had each time.
                    if !matches!(error, IssueError::Retry { .. }) {
                        handle.asked = 0;
                    }
                }
            }
        }
        self.credential((values, handle.written()), &[], (sent, life))
    }

    /// The same values for longer, and whether that is long enough to be of use.
    async fn renew(
        &self,
        caller: Caller<'_>,
        held: &Credential,
        handle: Handle<'_>,
        facts: &mut IssueFacts,
    ) -> Result<(Credential, bool), Unrenewed> {
        let Payload::Values { values, handle: kept } = &held.payload else {
            return Err(cannot("NOT_RENEWABLE", "it is no lease"));
        };
        if handle.asked == 0 {
            return Err(cannot("NOT_RENEWABLE", "the server does not let it be renewed"));
        }
        let sent = self.server.clock.boot();
        let left = self.extend(caller, handle, facts).await?;
        let life = left.min(caller.order.max_ttl);
        let copy = |secret: &Secret| Secret::new(secret.expose());
        let values = values.iter().map(|(name, value)| (name.clone(), copy(value))).collect();
        let renewed = self.credential((values, copy(kept)), &[], (sent, life))?;
        Ok((renewed, life.as_secs() * 2 >= handle.asked))
    }

    /// Asks for as much time again as was given first; how much there is.
    async fn extend(
        &self,
        caller: Caller<'_>,
        handle: Handle<'_>,
        facts: &mut IssueFacts,
    ) -> Result<Duration, Unrenewed> {
        let certificate = match handle.shown {
            "-" => None,
            thumbprint => {
                let mut all = caller.signers.certificates.iter();
                let same = all.find(|certificate| certificate.thumbprint() == thumbprint);
                Some(same.ok_or_else(|| {
                    cannot("CERTIFICATE_ROTATED", "the certificate that it was had with is shown no more")
                })?)
            }
        };
        let increment = handle.asked;
        let body = json!({ "increment": format!("{increment}s") }).to_string();
        let login = self.extended(caller, certificate, handle.token, (RENEW_LOGIN, &body), facts).await?;
        let body = json!({ "lease_id": handle.lease, "increment": increment }).to_string();
        let lease = self.extended(caller, certificate, handle.token, (RENEW_LEASE, &body), facts).await?;
        let left = lease.seconds("/lease_duration");
        Ok(left.min(Duration::from_secs(login.number("/auth/lease_duration"))))
    }

    async fn extended(
        &self,
        caller: Caller<'_>,
        certificate: Option<&Arc<ClientCertificate>>,
        token: &str,
        what: (&str, &str),
        facts: &mut IssueFacts,
    ) -> Result<Document, IssueError> {
        let response = self.server.ask_with(token, (caller, certificate), what, facts).await?;
        Document::read(&response, Step::Do(what.0), self.server.clock.wall())
    }

    fn credential(
        &self,
        (values, handle): (Values, Secret),
        salt: &[u8],
        (sent, life): (Boot, Duration),
    ) -> Result<Credential, IssueError> {
        let (now, wall): (Boot, Timestamp) = (self.server.clock.boot(), self.server.clock.wall());
        let left = life.saturating_sub(now.since(sent));
        if left.is_zero() {
            return Err(garbled("the server's answer took longer than its lease lasts".into()));
        }
        Ok(Credential {
            fingerprint: fingerprint(&values, salt),
            payload: Payload::Values { values, handle },
            window: Window::opening(now, wall, left),
            bound: Bound::Bearer,
            scope: Vec::new(),
            audience: None,
            jti: None,
            form: Form::default(),
        })
    }

    fn leasing(&self) -> MutexGuard<'_, HashSet<String>> {
        self.leasing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Login {
    /// A token without an end lives as long as whatever hangs on it.
    fn life_or(&self, other: Duration) -> Duration {
        if self.life.is_zero() { other } else { self.life }
    }
}

/// Why a lease goes on no longer.
struct Unrenewed {
    /// As the ledger has it.
    why: &'static str,
    /// What happened.
    error: IssueError,
}

impl From<IssueError> for Unrenewed {
    fn from(error: IssueError) -> Self {
        Self { why: "RENEWAL_REFUSED", error }
    }
}

/// What a lease hangs on, in words that hold no blank: enough to renew it and to end it, whoever wrote it down.
#[derive(Clone, Copy)]
struct Handle<'a> {
    token: &'a str,
    lease: &'a str,
    /// How many seconds are asked for at each renewal; none if it cannot be renewed.
    asked: u64,
    /// The thumbprint of the certificate that was logged in with, or "-".
    shown: &'a str,
}

impl<'a> Handle<'a> {
    fn of(credential: &'a Credential) -> Option<Self> {
        let mut words = credential.handle().expose_str()?.split(' ');
        let (token, lease, asked, shown) = (words.next()?, words.next()?, words.next()?, words.next()?);
        Some(Self { token, lease, asked: asked.parse().ok()?, shown })
    }

    fn written(&self) -> Secret {
        let asked = self.asked.to_string();
        let words = [self.token, self.lease, &asked, self.shown];
        // Room for all at once: a buffer that grows leaves copies behind.
        let mut room = String::with_capacity(words.iter().map(|word| word.len() + 1).sum());
        for (at, word) in words.into_iter().enumerate() {
            room.push_str(if at == 0 { "" } else { " " });
            room.push_str(word);
        }
        Secret::new(room)
    }
}

/// The values that were asked for, in the order of their names; all of them if none was named.
fn values(document: &mut Document, terms: &LeaseTerms, unleased: bool) -> Result<Values, IssueError> {
    // A KV entry of version 2 wraps its values once more, beside what it says of itself.
    let wrapped = unleased
        && document.value().pointer("/data/data").is_some_and(Value::is_object)
        && document.value().pointer("/data/metadata").is_some_and(Value::is_object);
    let part = document.part(if wrapped { "/data/data" } else { "/data" });
    let Some(mut part) = part else {
        return Err(missing(&terms.at, "it gives no values"));
    };
    let Value::Object(members) = part.value_mut() else {
        return Err(missing(&terms.at, "what it gives are no values by name"));
    };
    let mut names: Vec<String> =
        if terms.fields.is_empty() { members.keys().cloned().collect() } else { terms.fields.clone() };
    names.sort();
    names.dedup();
    let mut values = Vec::with_capacity(names.len());
    for name in names {
        let value = match members.get_mut(&name).map(Value::take) {
            Some(Value::String(text)) => Secret::new(text),
            Some(Value::Null) if terms.fields.is_empty() => continue,
            Some(Value::Null) | None => {
                let there: Vec<&str> = members.keys().map(String::as_str).collect();
                let there = printable(&there.join(", "), 200);
                return Err(missing(
                    &terms.at,
                    &format!("it gives no {}, but {there}: correct fields", printable(&name, 64)),
                ));
            }
            Some(other) => Secret::new(other.to_string()),
        };
        values.push((name, value));
    }
    if values.is_empty() { Err(missing(&terms.at, "it gives no values")) } else { Ok(values) }
}

/// Over the values, each with its length, so that none can stand for another; nothing of them can be had back.
fn fingerprint(values: &[(String, Secret)], salt: &[u8]) -> Fingerprint {
    let room = values.iter().map(|(name, value)| name.len() + value.len() + 16).sum::<usize>();
    let mut all = Vec::with_capacity(salt.len() + room);
    all.extend_from_slice(salt);
    for (name, value) in values {
        for bytes in [name.as_bytes(), value.expose()] {
            all.extend_from_slice(&u64::try_from(bytes.len()).unwrap_or(u64::MAX).to_be_bytes());
            all.extend_from_slice(bytes);
        }
    }
    Secret::new(all).fingerprint()
}

fn missing(at: &str, what: &str) -> IssueError {
    IssueError::Misconfigured { reason: Reason::IssuerConfig, detail: format!("{at}: {what}") }
}

fn cannot(why: &'static str, detail: &str) -> Unrenewed {
    Unrenewed { why, error: IssueError::Refused { reason: Reason::GrantRejected, detail: detail.into() } }
}

fn garbled(detail: String) -> IssueError {
    IssueError::Retry { reason: Reason::IssuerProtocol, detail, after: None }
}

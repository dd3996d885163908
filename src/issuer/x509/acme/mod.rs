//! ACME (RFC 8555): certificates for names that the account may have already. In goes a request for a certificate; out comes the
//! chain. The account's key is the identity's own, which signs every request and is certified by nobody. This agent answers no
//! challenge (ACM-06): a host agent has no port that a CA could come to, and no say over DNS; the CA has to know beforehand that
//! the account may have the names.

mod problem;
mod renewal;
mod session;
mod settings;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    io,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use serde::Deserialize;
use serde_json::{Value, json};

use self::session::{By, Session, at_home, location, protocol, read};
pub use self::settings::{AcmeSettings, problems};
use super::{
    super::{
        Advice, IssueError, IssueFacts, Issuer, Order, Pending, Reason, Rejected, Signers, answer,
        assertion::no_signature,
        contact::Contact,
        http::{HttpError, HttpSettings, Request, Response, USER_AGENT},
        terms::ClientAuth,
    },
    Ask, Authority, PutOff, Roots, Signed, X509, chain, rejected, slot,
};
use crate::{
    clock::Clock,
    jose::{self, SignError, Signer},
    keys::{FileError, Subject, Vault, bootstrap},
    proof::Target,
};

/// How long an order is asked after within one attempt, and how often at least; after that it waits for the next one.
const PATIENCE: Duration = Duration::from_secs(15);
const PAUSE: Duration = Duration::from_secs(1);

/// How long an order waits that the CA works at, where it does not say.
const UNDECIDED: Duration = Duration::from_secs(10);

/// So many authorizations of an order are looked at: CAs take a hundred names for one certificate.
const AUTHORIZATIONS: usize = 128;

/// So many certificates are read of a chain.
const MOST: usize = 32;

/// The issuer that `settings` describe. Nothing is sent yet.
///
/// # Errors
/// [`HttpError::CaFile`] or [`HttpError::NoRoots`].
pub fn open(
    settings: AcmeSettings,
    vault: Vault,
    clock: Arc<dyn Clock>,
) -> Result<Arc<dyn Issuer>, HttpError> {
    Ok(Arc::new(X509::new(Acme::new(settings, Arc::clone(&clock))?, vault, clock)))
}

/// One ACME server.
#[derive(Debug)]
struct Acme {
    settings: AcmeSettings,
    contact: Contact,
    clock: Arc<dyn Clock>,
    /// The accounts, by the thumbprint of their keys.
    accounts: Mutex<HashMap<String, String>>,
    /// Orders that the CA works at, with the request that each was made for.
    under_way: Mutex<PutOff<(String, Vec<u8>)>>,
    endpoints: Mutex<Arc<Vec<Target>>>,
    /// Where it tells when to renew, if its directory said so.
    renewal_info: Mutex<Option<String>>,
}

/// An order (RFC 8555 7.1.3).
#[derive(Debug, Deserialize)]
struct Placed {
    status: Status,
    #[serde(default)]
    authorizations: Vec<String>,
    #[serde(default)]
    finalize: String,
    #[serde(default)]
    certificate: Option<String>,
    #[serde(default)]
    error: problem::Problem,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Status {
    Pending,
    Ready,
    Processing,
    Valid,
    Invalid,
}

/// What an account may have (RFC 8555 7.1.4).
#[derive(Debug, Deserialize)]
struct Authorization {
    status: String,
    #[serde(default)]
    identifier: Identifier,
}

#[derive(Debug, Default, Deserialize)]
struct Identifier {
    #[serde(default)]
    value: String,
}

impl Acme {
    fn new(settings: AcmeSettings, clock: Arc<dyn Clock>) -> Result<Self, HttpError> {
        let http = HttpSettings {
            ca_file: settings.ca_file.clone(),
            allow_plain_loopback: settings.dev,
            timeout: settings.timeout,
            user_agent: USER_AGENT.into(),
        };
        let contact = Contact::new(http, Arc::clone(&clock))?;
        let endpoints = Target::parse(&settings.directory).ok().into_iter().collect();
        Ok(Self {
            settings,
            contact,
            clock,
            accounts: Mutex::default(),
            under_way: Mutex::default(),
            endpoints: Mutex::new(Arc::new(endpoints)),
            renewal_info: Mutex::default(),
        })
    }

    async fn begin<'a>(&'a self, facts: &'a mut IssueFacts) -> Result<Session<'a>, IssueError> {
        let session = Session::begin(&self.settings, &self.contact, &*self.clock, facts).await?;
        let directory = &session.directory;
        let known =
            [Some(&self.settings.directory), Some(&directory.new_account), Some(&directory.new_order)];
        let more = [directory.revoke_cert.as_ref(), directory.key_change.as_ref()];
        let all = known.into_iter().chain(more).flatten().filter_map(|url| Target::parse(url).ok());
        *lock(&self.endpoints) = Arc::new(all.collect());
        lock(&self.renewal_info).clone_from(&directory.renewal_info);
        Ok(session)
    }

    /// The URL of the account that `order` is placed by, made if the CA gave a key to begin with (ACM-02).
    async fn account(
        &self,
        session: &mut Session<'_>,
        order: &Order,
        signers: &Signers,
        key: &Arc<dyn Signer>,
    ) -> Result<String, IssueError> {
        if let Some(known) = lock(&self.accounts).get(key.kid()) {
            return Ok(known.clone());
        }
        let url = session.directory.new_account.clone();
        let begun = match &order.terms.client_auth {
            ClientAuth::Bootstrap(path) => {
                binding(path, &order.client_id, &url, key)?.map(|binding| (path, binding))
            }
            _ => None,
        };
        let by = By { key, account: None };
        let account = match begun {
            Some((path, binding)) => {
                agreed(&self.settings, session.directory.meta.terms_of_service.as_deref())?;
                let mut wanted = json!({"externalAccountBinding": binding});
                if self.settings.agree_to_terms {
                    wanted["termsOfServiceAgreed"] = json!(true);
                }
                let made = session.ask(by, &url, Some(&wanted)).await?;
                let account = location(&made)?;
                // The account is there from now on, and its key is in custody: what began it has done its work.
                if let Err(error) = bootstrap::spend(path) {
                    tracing::error!(
                        identity = %order.identity, %error,
                        "the key to begin with has been used and is on disk still: take it away"
                    );
                }
                account
            }
            None => match (
                session.post(by, &url, Some(&json!({"onlyReturnExisting": true}))).await?,
                &signers.before,
            ) {
                (Ok(found), _) => location(&found)?,
                // KEY-06: the account is known by the key before this one still.
                (Err((problem, _)), Some(before)) if problem.name() == "accountDoesNotExist" => {
                    self.change_key(session, before, key).await?
                }
                (Err((problem, next)), _) => return Err(never_begun(order, &problem, next)),
            },
        };
        at_home(&self.settings, &account)?;
        lock(&self.accounts).insert(key.kid().to_owned(), account.clone());
        Ok(account)
    }

    /// Has the CA know the account of `old` by `new` (RFC 8555 7.3.5).
    async fn change_key(
        &self,
        session: &mut Session<'_>,
        old: &Arc<dyn Signer>,
        new: &Arc<dyn Signer>,
    ) -> Result<String, IssueError> {
        let url = session.directory.new_account.clone();
        let by = By { key: old, account: None };
        let found = session.ask(by, &url, Some(&json!({"onlyReturnExisting": true}))).await?;
        let account = location(&found)?;
        at_home(&self.settings, &account)?;
        let url = session.directory.key_change.clone();
        let url = url
            .ok_or_else(|| misconfigured("the ACME server changes no keys: register the new one by hand"))?;
        let inner = jose::sign_key_change(&**new, old.public(), &url, &account).map_err(no_signature)?;
        session.ask(By { key: old, account: Some(&account) }, &url, Some(&inner)).await?;
        lock(&self.accounts).remove(old.kid());
        Ok(account)
    }

    async fn attempt(&self, ask: Ask<'_>, facts: &mut IssueFacts) -> Result<Signed, IssueError> {
        let key = key(ask.signers)?;
        let mut session = self.begin(facts).await?;
        let account = self.account(&mut session, ask.order, ask.signers, key).await?;
        let by = By { key, account: Some(&account) };
        let done = self.ordered(&mut session, by, ask).await;
        if matches!(done, Err(IssueError::Refused { .. } | IssueError::Misconfigured { .. })) {
            // It may have been taken away, or made again at another place: it is looked up anew next time.
            lock(&self.accounts).remove(key.kid());
        }
        done
    }

    async fn ordered(
        &self,
        session: &mut Session<'_>,
        by: By<'_>,
        ask: Ask<'_>,
    ) -> Result<Signed, IssueError> {
        let slot = slot(ask.order);
        // An order that the CA is at is for one request: another one needs another order.
        let before = lock(&self.under_way).remove(&slot).filter(|(_, csr)| csr == ask.request.csr());
        let url = match before {
            Some((url, _)) => url,
            None => self.place(session, by, ask).await?,
        };
        let pursued = self.pursue(session, by, &url, ask.request.csr()).await;
        // While it is out of reach it may be at it all the same; an order that has ended is never asked after again.
        if matches!(pursued, Ok(Ok(Signed::Later(_))) | Err(IssueError::Retry { .. })) {
            let placed = (url, ask.request.csr().to_vec());
            lock(&self.under_way).insert(slot, placed, self.clock.boot());
        }
        pursued?
    }

    /// ACM-03: an order for exactly the names that policy says.
    async fn place(&self, session: &mut Session<'_>, by: By<'_>, ask: Ask<'_>) -> Result<String, IssueError> {
        let mut wanted = json!({"identifiers": identifiers(&ask.terms.subject)});
        if let Some(profile) = &ask.terms.at {
            if !session.directory.meta.profiles.contains_key(profile) {
                return Err(misconfigured(format!(
                    "the ACME server has no profile of the name that certificate.at says; it has {}",
                    listing(session.directory.meta.profiles.keys())
                )));
            }
            wanted["profile"] = json!(profile);
        }
        // ACM-04: the CA may let what it wants renewed pass its limits. Only one that advises knows the word.
        let replaced = ask.held.and_then(|held| renewal::id(held.chain().first()?));
        if let Some(replaced) = replaced.filter(|_| session.directory.renewal_info.is_some()) {
            wanted["replaces"] = json!(replaced);
        }
        let url = session.directory.new_order.clone();
        let placed = match session.post(by, &url, Some(&wanted)).await? {
            Ok(placed) => placed,
            Err((problem, _)) if problem.name() == "alreadyReplaced" => {
                wanted.as_object_mut().map(|wanted| wanted.remove("replaces"));
                session.ask(by, &url, Some(&wanted)).await?
            }
            Err((_, next)) => return Err(next),
        };
        location(&placed)
    }

    /// Follows the order at `url` to its end, which is the inner result, or for as long as somebody may wait for it.
    async fn pursue(
        &self,
        session: &mut Session<'_>,
        by: By<'_>,
        url: &str,
        csr: &[u8],
    ) -> Result<Result<Signed, IssueError>, IssueError> {
        let started = self.clock.boot();
        let mut finalized = false;
        let mut response = session.ask(by, url, None).await?;
        loop {
            let order: Placed = read(&response)?;
            let pause = answer::retry_after(&response, session.now());
            match (order.status, order.certificate) {
                (Status::Pending, _) if !finalized => {
                    self.authorized(session, by, &order.authorizations).await?
                }
                (Status::Ready, _) if !finalized => {
                    finalized = true;
                    let wanted = json!({"csr": jose::b64(csr)});
                    response = session.ask(by, &order.finalize, Some(&wanted)).await?;
                    continue;
                }
                (Status::Valid, Some(certificate)) => {
                    let response = session.ask(by, &certificate, None).await?;
                    let chain = pem(&response).and_then(|sent| chain::for_request(csr, sent));
                    return Ok(chain.map(Signed::Chain));
                }
                (Status::Invalid, _) => return Ok(Err(order.error.next(400, &response, session.now()))),
                (Status::Valid, None) => {
                    return Ok(Err(protocol(
                        "the ACME server made a certificate and does not say where it is",
                    )));
                }
                (Status::Pending | Status::Ready | Status::Processing, _) => {}
            }
            let pause = pause.unwrap_or(PAUSE).max(PAUSE);
            if self.clock.boot().since(started) + pause > PATIENCE {
                return Ok(Ok(Signed::Later(pause.max(UNDECIDED))));
            }
            tokio::time::sleep(pause).await;
            response = session.ask(by, url, None).await?;
        }
    }

    /// ACM-06: whatever is not authorized already will not be.
    async fn authorized(
        &self,
        session: &mut Session<'_>,
        by: By<'_>,
        all: &[String],
    ) -> Result<(), IssueError> {
        if all.len() > AUTHORIZATIONS {
            return Err(misconfigured(format!(
                "the ACME server wants {} authorizations for one order: more than {AUTHORIZATIONS} are not looked at",
                all.len()
            )));
        }
        for url in all {
            let authorization: Authorization = read(&session.ask(by, url, None).await?)?;
            if authorization.status != "valid" {
                return Err(misconfigured(format!(
                    "the ACME server wants a challenge answered for {} (its authorization is {}), and this agent answers none: \
                     that takes a port that the CA can come to, or a say over DNS. Have the CA authorize the account \
                     beforehand, or take a kind of issuer that knows its clients",
                    answer::clean(&authorization.identifier.value, 80),
                    answer::clean(&authorization.status, 20),
                )));
            }
        }
        Ok(())
    }

    async fn give_back(
        &self,
        order: &Order,
        signers: &Signers,
        certificate: &[u8],
    ) -> Result<(), IssueError> {
        let key = key(signers)?;
        let mut facts = IssueFacts::default();
        let mut session = self.begin(&mut facts).await?;
        let Some(url) = session.directory.revoke_cert.clone() else {
            return Err(IssueError::Refused {
                reason: Reason::IssuerConfig,
                detail: "the ACME server revokes nothing: the certificate ends by itself".into(),
            });
        };
        let account = self.account(&mut session, order, signers, key).await?;
        let by = By { key, account: Some(&account) };
        match session.post(by, &url, Some(&json!({"certificate": jose::b64(certificate)}))).await? {
            Ok(_) => Ok(()),
            Err((problem, _)) if problem.name() == "alreadyRevoked" => Ok(()),
            Err((_, next)) => {
                if !matches!(next, IssueError::Retry { .. }) {
                    lock(&self.accounts).remove(key.kid());
                }
                Err(next)
            }
        }
    }
}

impl Authority for Acme {
    fn roots<'a>(&'a self, _: &'a mut IssueFacts) -> Pending<'a, Result<Arc<Roots>, IssueError>> {
        Box::pin(async {
            Roots::read(&self.settings.roots).map(Arc::new).map_err(|error| misconfigured(error.to_string()))
        })
    }

    fn sign<'a>(
        &'a self,
        ask: Ask<'a>,
        facts: &'a mut IssueFacts,
    ) -> Pending<'a, Result<Signed, IssueError>> {
        Box::pin(self.attempt(ask, facts))
    }

    fn revoke<'a>(
        &'a self,
        order: &'a Order,
        signers: &'a Signers,
        certificate: &'a [u8],
    ) -> Pending<'a, Result<(), IssueError>> {
        Box::pin(self.give_back(order, signers, certificate))
    }

    fn advice<'a>(&'a self, certificate: &'a [u8]) -> Pending<'a, Option<Advice>> {
        Box::pin(async move {
            let id = renewal::id(certificate)?;
            if lock(&self.renewal_info).is_none() {
                // A certificate that was kept over a restart came without a word of this server.
                if self.begin(&mut IssueFacts::default()).await.is_err() {
                    // It may advise all the same, once it is back.
                    return Some(renewal::advice(None, self.clock.wall()));
                }
            }
            let url = lock(&self.renewal_info).clone()?;
            let url = format!("{}/{id}", url.trim_end_matches('/'));
            let sent = self.contact.send(None, Request::get(url), &mut IssueFacts::default()).await;
            Some(renewal::advice(sent.ok().as_ref(), self.clock.wall()))
        })
    }

    fn adopts_keys(&self) -> bool {
        // The account is its key: once the key before is destroyed, nobody could speak for it any more.
        true
    }

    fn endpoints(&self) -> Arc<Vec<Target>> {
        Arc::clone(&lock(&self.endpoints))
    }
}

/// ACM-02: what binds the key of the account to the one that the CA gave. None if the file is not there: it was used.
fn binding(path: &Path, kid: &str, url: &str, key: &Arc<dyn Signer>) -> Result<Option<Value>, IssueError> {
    let secret = match bootstrap::Bootstrap::read(path) {
        Ok(secret) => secret,
        Err(FileError::Io { error, .. }) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(misconfigured(error.to_string())),
    };
    let bound = jose::external_account_binding(key.public(), kid, url, |input| secret.mac(input));
    bound.map(Some).map_err(|SignError| {
        misconfigured(format!("{}: it is no key in base64url, as the CA gave it", path.display()))
    })
}

/// The key of the account.
fn key(signers: &Signers) -> Result<&Arc<dyn Signer>, IssueError> {
    signers.client.as_ref().ok_or_else(|| no_signature(SignError))
}

/// RFC 8555 7.3.3: a server with terms begins no account of anybody who has not agreed to them, and each says so in its own way.
fn agreed(settings: &AcmeSettings, terms: Option<&str>) -> Result<(), IssueError> {
    match terms {
        Some(terms) if !settings.agree_to_terms => Err(misconfigured(format!(
            "no account is begun: the ACME server has terms ({}). Once a person has agreed to them, say agree_to_terms = true in \
             [issuers.{}]",
            answer::clean(terms, 120),
            settings.name
        ))),
        _ => Ok(()),
    }
}

/// There is no account, and what would begin one is not there.
fn never_begun(order: &Order, problem: &problem::Problem, next: IssueError) -> IssueError {
    match &order.terms.client_auth {
        ClientAuth::Bootstrap(path) if problem.name() == "accountDoesNotExist" => misconfigured(format!(
            "{}: the key to begin with is not there, and the CA knows no account of this identity's key: put the file there \
             (mode 0600, owned by the agent)",
            path.display()
        )),
        _ => next,
    }
}

/// ACM-03: the names of the request and no other. ACME has no URIs; the settings are refused that say some.
fn identifiers(subject: &Subject) -> Vec<Value> {
    let dns = subject.dns.iter().map(|name| json!({"type": "dns", "value": name.to_ascii_lowercase()}));
    let ips = subject.ips.iter().map(|ip| json!({"type": "ip", "value": ip.to_string()}));
    dns.chain(ips).collect()
}

/// application/pem-certificate-chain (RFC 8555 9.1).
fn pem(response: &Response) -> Result<Vec<CertificateDer<'static>>, IssueError> {
    let read =
        CertificateDer::pem_slice_iter(response.body.expose()).take(MOST).collect::<Result<Vec<_>, _>>();
    read.map_err(|_| rejected(Rejected::Form, "what the ACME server sent is no chain in PEM (RFC 8555 9.1)"))
}

fn listing<'a>(names: impl Iterator<Item = &'a String>) -> String {
    let all = names.map(String::as_str).collect::<Vec<_>>().join(", ");
    if all.is_empty() { "none".into() } else { answer::clean(&all, 120) }
}

fn misconfigured(detail: impl Into<String>) -> IssueError {
    IssueError::Misconfigured { reason: Reason::IssuerConfig, detail: detail.into() }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

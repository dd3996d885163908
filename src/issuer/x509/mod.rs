//! Certificates from a CA (RFC 5280): a request out, a chain in, and the chain doubted. One engine for every kind of CA; what
//! differs between them is behind `Authority`, at the edge. In goes an [`Order`] and the certificate that is held; out comes
//! a certificate with its key, or why there is none. When to renew, how often to try and whom to spare is the broker's, as
//! for every other credential; what is held stays good until it ends, whatever comes of a renewal (X5-03).

mod accept;
pub mod acme;
mod chain;
pub mod est;
mod roots;
pub mod step;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use rustls_pki_types::CertificateDer;

pub use self::roots::{RootSource, Roots, RootsError};
use super::{
    Advice, Instance, IssueError, IssueFacts, Issued, Issuer, Order, Pending, Reason, Rejected, Signers,
    http::HttpError,
    terms::{CertificateTerms, Wants},
};
use crate::{
    clock::{Boot, Clock},
    credential::{Bound, Credential, Form, Payload, Window},
    keys::{ClientCertificate, Enrolment, FileError, KeyKind, PairFile, Vault},
    proof::Target,
    secret::Fingerprint,
};

/// A certificate that begins so soon is waited for (X5-04): the CA's clock is a little ahead of ours.
const SOON: SignedDuration = SignedDuration::from_secs(60);

/// How long an order waits whose pair cannot be read or kept here: each time that it cannot be kept has cost the CA a certificate.
const UNKEPT: Duration = Duration::from_secs(60);

/// What was put off and not ordered again for so long is let go, with its key: its process may have exited. Whoever waits for a
/// person's word asks at least every hour.
const LET_GO: Duration = Duration::from_secs(24 * 60 * 60);

/// Why there is no issuer of a kind of CA.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Unbuilt {
    /// Its client cannot be made.
    #[error("{0}")]
    Http(#[from] HttpError),
    /// Its roots cannot be used.
    #[error("roots: {0}")]
    Roots(#[from] RootsError),
}

/// A kind of CA.
pub(super) trait Authority: std::fmt::Debug + Send + Sync {
    /// The roots that its certificates have to lead to, as the settings have them or vouch for them (CA-03).
    fn roots<'a>(&'a self, facts: &'a mut IssueFacts) -> Pending<'a, Result<Arc<Roots>, IssueError>>;

    /// Has a certificate made, leaf first. Nothing of it has to be doubted yet.
    fn sign<'a>(&'a self, ask: Ask<'a>, facts: &'a mut IssueFacts)
    -> Pending<'a, Result<Signed, IssueError>>;

    /// The kind of key that it wants certified, where it says so (EST-04); asked before a key is made.
    fn key_kind<'a>(
        &'a self,
        _order: &'a Order,
        _signers: &'a Signers,
        _facts: &'a mut IssueFacts,
    ) -> Pending<'a, Result<Option<KeyKind>, IssueError>> {
        Box::pin(async { Ok(None) })
    }

    /// Hears that the certificate of `order` is good and kept: what was only to begin with has done its work (EST-02).
    fn settled(&self, _order: &Order) {}

    /// Revokes a certificate, given in DER (X5-07).
    fn revoke<'a>(
        &'a self,
        order: &'a Order,
        signers: &'a Signers,
        certificate: &'a [u8],
    ) -> Pending<'a, Result<(), IssueError>>;

    /// As [`Issuer::advice`], for a certificate in DER.
    fn advice<'a>(&'a self, _certificate: &'a [u8]) -> Pending<'a, Option<Advice>> {
        Box::pin(async { None })
    }

    /// As [`Issuer::adopts_keys`].
    fn adopts_keys(&self) -> bool {
        false
    }

    /// As [`Issuer::endpoints`].
    fn endpoints(&self) -> Arc<Vec<Target>>;
}

/// What a CA is asked for.
#[derive(Clone, Copy)]
pub(super) struct Ask<'a> {
    /// The order.
    pub(super) order: &'a Order,
    /// What its certificate has to be.
    pub(super) terms: &'a CertificateTerms,
    /// The keys to ask with.
    pub(super) signers: &'a Signers,
    /// The request for a certificate. Where the key stays, it is for the key of `held`.
    pub(super) request: &'a Enrolment,
    /// What is held and good, where it is to be renewed; without it, the CA is asked as if for the first time.
    pub(super) held: Option<&'a Arc<ClientCertificate>>,
}

/// What a CA said, if it did not refuse.
#[derive(Debug)]
pub(super) enum Signed {
    /// This is the chain, leaf first.
    Chain(Vec<CertificateDer<'static>>),
    /// Not yet: the same request has to be sent again after this long (EST-02).
    Later(Duration),
}

/// One CA and its certificates.
#[derive(Debug)]
pub(super) struct X509<A> {
    authority: A,
    /// How pairs are kept over a restart.
    vault: Vault,
    clock: Arc<dyn Clock>,
    /// Requests that the CA has not decided yet, or may have before it went away, by whose they are: sent again with the same key.
    undecided: Mutex<PutOff<Arc<Enrolment>>>,
}

impl<A: Authority> X509<A> {
    pub(super) fn new(authority: A, vault: Vault, clock: Arc<dyn Clock>) -> Self {
        Self { authority, vault, clock, undecided: Mutex::default() }
    }

    #[cfg(test)]
    pub(super) fn authority(&self) -> &A {
        &self.authority
    }

    async fn attempt(
        &self,
        order: &Order,
        signers: &Signers,
        held: Option<&Credential>,
        facts: &mut IssueFacts,
    ) -> Result<Credential, IssueError> {
        let Wants::Certificate(terms) = &order.terms.wants else {
            return Err(IssueError::Misconfigured {
                reason: Reason::IssuerConfig,
                detail: "this issuer gives certificates only: say certificate = { .. } for this credential"
                    .into(),
            });
        };
        let roots = self.authority.roots(facts).await?;
        if let Some(held) = held.and_then(Credential::certificate) {
            return self.renew(order, signers, terms, &roots, Some(Arc::clone(held)), facts).await;
        }
        // The agent has just been started, or has none.
        let kept = self.kept(order, terms, &roots)?;
        if let Some(kept) = kept.as_ref().filter(|kept| self.clock.wall() < renewal(kept)) {
            // Whoever kept it may have been killed before it could say so.
            self.authority.settled(order);
            return Ok(self.taken_up(Arc::clone(kept), &roots));
        }
        match (self.renew(order, signers, terms, &roots, kept.clone(), facts).await, kept) {
            // Valid is never replaced by failed: it is renewed later, as what is held is.
            (Err(error), Some(kept)) => {
                tracing::warn!(
                    identity = %order.identity, credential = %order.credential, %error, until = %kept.until(),
                    "what is kept cannot be renewed yet and is used while it lasts"
                );
                Ok(self.taken_up(kept, &roots))
            }
            (renewed, _) => renewed,
        }
    }

    /// Asks for a certificate, by what is held if anything is.
    async fn renew(
        &self,
        order: &Order,
        signers: &Signers,
        terms: &CertificateTerms,
        roots: &Roots,
        held: Option<Arc<ClientCertificate>>,
        facts: &mut IssueFacts,
    ) -> Result<Credential, IssueError> {
        // One that has ended proves nothing any more (CA-02).
        let held = held.filter(|held| self.clock.wall() < held.until());
        let ask = |request, held| Ask { order, terms, signers, request, held };
        let sent_before = self.undecided().remove(&slot(order)).filter(|sent| sent.is_for(&terms.subject));
        let is_undecided = sent_before.is_some();
        let request = match sent_before {
            Some(sent) => sent,
            None => self.request((order, signers), terms, held.as_ref(), facts).await?,
        };
        let answered = match (self.authority.sign(ask(&request, held.as_ref()), facts).await, &held) {
            // CA-02: it may renew nothing, or not this. Asked for the first time it may well say yes.
            (Err(IssueError::Refused { detail, .. } | IssueError::Misconfigured { detail, .. }), Some(_)) => {
                tracing::info!(identity = %order.identity, credential = %order.credential, %detail, "not renewed: asked for anew");
                self.authority.sign(ask(&request, None), facts).await
            }
            (answered, _) => answered,
        };
        let chain = match answered {
            Ok(Signed::Chain(chain)) => chain,
            Ok(Signed::Later(after)) => {
                self.undecided().insert(slot(order), request, self.clock.boot());
                return Err(IssueError::Later {
                    reason: Reason::CaPending,
                    detail: "the CA has not decided yet: it may wait for a person to approve".into(),
                    after,
                });
            }
            // A CA that is out of reach may be deciding all the same, or have certified what it had no chance to hand out.
            Err(error)
                if matches!(error, IssueError::Retry { .. })
                    || is_undecided && matches!(error, IssueError::Later { .. }) =>
            {
                self.undecided().insert(slot(order), request, self.clock.boot());
                return Err(error);
            }
            Err(error) => return Err(error),
        };
        accept::check(&chain, terms, roots, order.max_ttl, self.clock.wall())?;
        let certificate = request
            .finish(chain, terms.export, self.file(order).as_ref())
            .map_err(|error| unusable(&error))?;
        self.authority.settled(order);
        self.until_good(&certificate).await?;
        Ok(self.credential(Arc::new(certificate), roots))
    }

    /// What to send: a request for a fresh key, or for the one that is held.
    async fn request(
        &self,
        (order, signers): (&Order, &Signers),
        terms: &CertificateTerms,
        held: Option<&Arc<ClientCertificate>>,
        facts: &mut IssueFacts,
    ) -> Result<Arc<Enrolment>, IssueError> {
        let made = match (self.file(order), held) {
            (Some(file), Some(_)) if terms.same_key => Enrolment::again(&terms.subject, &file),
            _ => {
                let kind = self.authority.key_kind(order, signers, facts).await?;
                Enrolment::begin(&terms.subject, kind.unwrap_or(terms.key))
            }
        };
        made.map(Arc::new).map_err(|error| unusable(&error))
    }

    /// What an agent before this one kept, if it is still what the settings want.
    fn kept(
        &self,
        order: &Order,
        terms: &CertificateTerms,
        roots: &Roots,
    ) -> Result<Option<Arc<ClientCertificate>>, IssueError> {
        let Some(file) = self.file(order) else { return Ok(None) };
        let kept = file.read(terms.export).map_err(|error| unusable(&error))?;
        Ok(kept.map(Arc::new).filter(|kept| {
            match accept::check(kept.chain(), terms, roots, order.max_ttl, self.clock.wall()) {
                Ok(()) => true,
                Err(error) => {
                    tracing::info!(path = %file.path().display(), %error, "what is kept is not what is wanted now: asked for anew");
                    false
                }
            }
        }))
    }

    fn file<'a>(&'a self, order: &'a Order) -> Option<PairFile<'a>> {
        let path = order.kept_at()?;
        Some(PairFile::new(path, &self.vault, &order.identity, &order.credential))
    }

    /// Waits until a certificate has begun, if that is soon.
    async fn until_good(&self, certificate: &ClientCertificate) -> Result<(), IssueError> {
        let ahead = certificate.from().duration_since(self.clock.wall());
        match Duration::try_from(ahead) {
            Ok(ahead) if !ahead.is_zero() => {
                // accept::check has held it against what is soon.
                tokio::time::sleep(ahead).await;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// What was kept, with the part of its life that is over: it is renewed when it would have been without a restart.
    fn taken_up(&self, kept: Arc<ClientCertificate>, roots: &Roots) -> Credential {
        let spent = Duration::try_from(self.clock.wall().duration_since(kept.from())).unwrap_or_default();
        let mut credential = self.credential(kept, roots);
        credential.window.spent = spent;
        credential
    }

    fn credential(&self, certificate: Arc<ClientCertificate>, roots: &Roots) -> Credential {
        let (boot, wall) = (self.clock.boot(), self.clock.wall());
        let left = Duration::try_from(certificate.until().duration_since(wall)).unwrap_or_default();
        Credential {
            fingerprint: Fingerprint::of(certificate.chain().first().map_or(&[][..], |leaf| leaf)),
            window: Window::opening(boot, wall, left),
            bound: Bound::Mtls(Arc::clone(&certificate)),
            payload: Payload::Certificate { certificate, bundle: roots.pem() },
            scope: Vec::new(),
            audience: None,
            jti: None,
            form: Form::default(),
        }
    }

    fn undecided(&self) -> MutexGuard<'_, PutOff<Arc<Enrolment>>> {
        self.undecided.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<A: Authority> Issuer for X509<A> {
    fn issue<'a>(
        &'a self,
        order: &'a Order,
        signers: &'a Signers,
        held: Option<&'a Credential>,
    ) -> Pending<'a, Issued> {
        Box::pin(async move {
            let started = self.clock.boot();
            let mut facts = IssueFacts::default();
            let result = self.attempt(order, signers, held, &mut facts).await;
            facts.latency = self.clock.boot().since(started);
            Issued { result, facts }
        })
    }

    fn revoke<'a>(
        &'a self,
        order: &'a Order,
        signers: &'a Signers,
        credential: &'a Credential,
    ) -> Pending<'a, Result<(), IssueError>> {
        Box::pin(async move {
            use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
            let certificate =
                URL_SAFE_NO_PAD.decode(credential.handle().expose()).map_err(|_| IssueError::Refused {
                    reason: Reason::AgentBugRequest,
                    detail: "what is kept of this certificate is none: it ends by itself".into(),
                })?;
            self.authority.revoke(order, signers, &certificate).await
        })
    }

    fn advice<'a>(&'a self, _: &'a Order, credential: &'a Credential) -> Pending<'a, Option<Advice>> {
        match credential.certificate().and_then(|certificate| certificate.chain().first()) {
            Some(leaf) => self.authority.advice(leaf),
            None => Box::pin(async { None }),
        }
    }

    fn adopts_keys(&self) -> bool {
        self.authority.adopts_keys()
    }

    fn endpoints(&self) -> Arc<Vec<Target>> {
        self.authority.endpoints()
    }
}

/// Whose request: the identity's by the name of the credential, or one process's; and whether what comes is kept, which what comes
/// of a trial never is: a trial must not use up what a person has approved.
type Slot = (Arc<str>, Arc<str>, Option<Instance>, bool);

pub(super) fn slot(order: &Order) -> Slot {
    (Arc::clone(&order.identity), Arc::clone(&order.credential), order.instance, order.kept_at().is_some())
}

/// What is taken up again when the same is ordered again; nobody says that it never will be, so it is let go in time.
#[derive(Debug)]
pub(super) struct PutOff<T>(HashMap<Slot, (Boot, T)>);

impl<T> PutOff<T> {
    pub(super) fn insert(&mut self, slot: Slot, what: T, now: Boot) {
        self.0.retain(|_, (since, _)| now.since(*since) < LET_GO);
        self.0.insert(slot, (now, what));
    }

    pub(super) fn remove(&mut self, slot: &Slot) -> Option<T> {
        self.0.remove(slot).map(|(_, what)| what)
    }
}

impl<T> Default for PutOff<T> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

/// When a certificate that was kept over a restart is renewed before it is used: past two thirds of its life (X5-03).
fn renewal(of: &ClientCertificate) -> Timestamp {
    let life = of.until().as_second() - of.from().as_second();
    of.from().saturating_add(SignedDuration::from_secs(life / 3 * 2)).unwrap_or(of.until())
}

pub(super) fn rejected(by: Rejected, detail: impl Into<String>) -> IssueError {
    IssueError::Refused { reason: Reason::CertRejected(by), detail: detail.into() }
}

/// A key that cannot be made, kept or fitted to what came.
fn unusable(error: &FileError) -> IssueError {
    match error {
        FileError::Certificate { .. } => rejected(Rejected::Key, error.to_string()),
        // Not the CA's trouble: one identity's file is no reason to keep all others waiting.
        _ => IssueError::Later {
            reason: Reason::KeyUnavailable,
            detail: format!("{error}: nothing is asked for that could not be kept"),
            after: UNKEPT,
        },
    }
}

//! How every kind of issuer is talked to: by one client, with connections of its own for each certificate that is shown (MT-10),
//! by a clock that is compared with the issuer's. In goes a request; out comes the answer, and what it tells beside its content.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use http::header;
use jiff::{SignedDuration, Timestamp};

use super::{
    IssueError, IssueFacts, Order, Reason, Signers, answer,
    http::{Http, HttpError, HttpSettings, Request, Response},
    skew::{Estimate, Skew},
};
use crate::{clock::Clock, keys::ClientCertificate};

/// One issuer's host. Nothing of it is shared with another (OA-08).
pub(super) struct Contact {
    http: Http,
    pools: Pools,
    clock: Arc<dyn Clock>,
    skew: Mutex<Skew>,
}

/// The certificate that a request shows, for an order and among those it is placed with.
#[derive(Clone, Copy)]
pub(super) struct Shown<'a> {
    pub(super) certificate: &'a Arc<ClientCertificate>,
    pub(super) order: &'a Order,
    pub(super) signers: &'a Signers,
}

impl Contact {
    /// Reads the roots and makes the client. Nothing is sent yet.
    ///
    /// # Errors
    /// [`HttpError::CaFile`] or [`HttpError::NoRoots`].
    pub(super) fn new(settings: HttpSettings, clock: Arc<dyn Clock>) -> Result<Self, HttpError> {
        Ok(Self::over(Http::new(settings)?, clock))
    }

    /// The same with a client that is there already.
    pub(super) fn over(http: Http, clock: Arc<dyn Clock>) -> Self {
        Self { http, pools: Pools::default(), clock, skew: Mutex::default() }
    }

    /// Sends once, over a connection that shows a certificate or over one that shows none, and notes what the answer tells beside
    /// its content.
    ///
    /// # Errors
    /// [`IssueError`] if no answer came that may be read.
    pub(super) async fn send(
        &self,
        shown: Option<Shown<'_>>,
        request: Request,
        facts: &mut IssueFacts,
    ) -> Result<Response, IssueError> {
        let done = match shown {
            Some(shown) => self.pools.of(shown, &self.http).send(request).await,
            None => self.http.send(request).await,
        };
        let response = done.map_err(|error| {
            facts.http_status = match error {
                HttpError::Redirect { status } => Some(status),
                _ => None,
            };
            answer::unanswered(&error)
        })?;
        facts.http_status = Some(response.status);
        // An answer from a cache was dated when it was put there.
        let fresh = response.header(header::AGE).is_none_or(|age| age.trim() == "0");
        if let Some(date) = response.header(header::DATE).filter(|_| fresh) {
            let ahead = self.skew().note(date, self.clock.wall(), self.clock.boot());
            facts.date_skew_ms = ahead.and_then(|ahead| i64::try_from(ahead.as_millis()).ok());
        }
        Ok(response)
    }

    /// Ends the connections that show `certificate`: it was shown for the last time, and its key goes with the last credential
    /// that needs it (MT-08).
    pub(super) fn let_go(&self, certificate: &Arc<ClientCertificate>) {
        let mut pools = self.pools.0.lock().unwrap_or_else(PoisonError::into_inner);
        pools.retain(|pool| !Arc::ptr_eq(&pool.certificate, certificate));
    }

    /// What to add to the wall clock for what is signed now.
    ///
    /// # Errors
    /// CLK-03: the clocks are so far apart that nothing may be signed.
    pub(super) fn correction(&self) -> Result<SignedDuration, IssueError> {
        match self.estimate() {
            Estimate::Untrusted(offset) => Err(IssueError::Retry {
                reason: Reason::ClockUntrusted,
                detail: format!(
                    "the issuer's clock is {} s away from ours (300 s at most): set the clock of this host, or the \
                     issuer's",
                    offset.as_secs(),
                ),
                after: None,
            }),
            within => Ok(within.correction()),
        }
    }

    /// The issuer's now, if anything may be signed or sent by it.
    ///
    /// # Errors
    /// As [`Contact::correction`].
    pub(super) fn now(&self) -> Result<Timestamp, IssueError> {
        let wall = self.clock.wall();
        Ok(wall.checked_add(self.correction()?).unwrap_or(wall))
    }

    /// How far the issuer's clock is from ours.
    pub(super) fn estimate(&self) -> Estimate {
        self.skew().offset(self.clock.wall(), self.clock.boot())
    }

    fn skew(&self) -> MutexGuard<'_, Skew> {
        self.skew.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Contact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Contact({:?})", self.http)
    }
}

/// The connections of each certificate at one issuer: never one for two (MT-10).
#[derive(Debug, Default)]
struct Pools(Mutex<Vec<Pool>>);

#[derive(Debug)]
struct Pool {
    identity: Arc<str>,
    certificate: Arc<ClientCertificate>,
    http: Arc<Http>,
}

impl Pools {
    /// The client that shows `certificate` for `order`, made from `plain` at first use. Those of its identity's certificates
    /// that are no longer shown are let go, so that a key ends with the last credential bound to it (MT-08).
    fn of(&self, Shown { certificate, order, signers }: Shown<'_>, plain: &Http) -> Arc<Http> {
        let mut pools = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_shown =
            |pool: &Pool| signers.certificates.iter().any(|one| Arc::ptr_eq(one, &pool.certificate));
        pools.retain(|pool| pool.identity != order.identity || is_shown(pool));
        if let Some(pool) = pools.iter().find(|pool| Arc::ptr_eq(&pool.certificate, certificate)) {
            return Arc::clone(&pool.http);
        }
        let http = Arc::new(plain.showing(Arc::clone(certificate)));
        pools.push(Pool {
            identity: Arc::clone(&order.identity),
            certificate: Arc::clone(certificate),
            http: Arc::clone(&http),
        });
        http
    }
}

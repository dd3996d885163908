//! A call's whole way: attest, decide, fetch, confirm, record, send, record, answer. In goes a program's request to an API; out
//! comes the API's answer. Token and key stay with the agent (MT-11, DPOP-27). What leaves is on record before it leaves. It
//! leaves once more only where the API said that it did not take it: with the nonce that it asked for (RFC 9449 9), and with
//! another token (MT-09), each at most once.

use std::{sync::Arc, time::Duration};

use http::{HeaderMap, Method, Response, StatusCode};
use hyper::body::Incoming;
use tokio::{runtime::Handle, sync::OwnedSemaphorePermit};

use super::{Account, Call, Journey, Refusal, Request, Rules, Session, account::Went, wish};
use crate::{
    api::{self, Answering, ApiError, Asking, Asks, Attempt, Coming, MayGoOn, Path, Reach, asks},
    attest::Workload,
    audit::{Entry, Ledger, Receipt},
    broker::Fetched,
    clock::Boot,
    credential::Bound,
    policy::{self, Denial, Forward, Grant, Purpose, Reason, Wish},
    proof::{Proof, Target, Told},
};

/// How long another token may take, while the API's refusal of the one before waits to be handed on.
const RENEW_WITHIN: Duration = Duration::from_secs(10);

/// The request that the agent is asked to make: everything but its body.
#[derive(Clone, Debug)]
pub struct Forwarding {
    /// The method, as it will be sent.
    pub method: Method,
    /// The origin, if it is not the first of the credential's.
    pub origin: Option<String>,
    /// Where to at that origin.
    pub path: Path,
    /// The headers, as far as they go on ([`api::onward`]).
    pub headers: HeaderMap,
}

impl Forwarding {
    fn wanted(&self) -> policy::Forwarding<'_> {
        policy::Forwarding { method: self.method.as_str(), origin: self.origin.as_deref(), path: &self.path }
    }
}

/// An API's answer, the call on record.
pub struct Forwarded {
    response: Response<Answering>,
    receipt: Receipt,
}

impl Forwarded {
    /// The answer as the program gets it, and where the call is on record.
    pub fn into_parts(self) -> (Response<Answering>, Receipt) {
        (self.response, self.receipt)
    }
}

impl Journey {
    /// One call of an API.
    ///
    /// # Errors
    /// A [`Refusal`], on record.
    pub async fn forward(
        self: &Arc<Self>,
        call: &Call,
        request: &Request,
        forwarding: &Forwarding,
        body: Coming,
    ) -> Result<Forwarded, Refusal> {
        let session: &Arc<Session> = call;
        let (mut coming, mut taken) = (Some(body), None);
        loop {
            let rules = self.rules();
            let purpose = Purpose::Forward(forwarding.wanted());
            let (account, workload, grant) = self.admit(session, request, (purpose, None), &rules).await?;
            let Some((target, how)) = grant.forward() else {
                let why = (Reason::ForwardNotAllowed, "the grant is for no call");
                return Err(self.off_limits(&account, &workload, &grant, why).await?);
            };
            let account = account.bound_for(target);
            if let Err(wait) = self.paced(&grant) {
                let why = "more than 200 proofs and calls a second for this identity (DPOP-22)";
                let entry = account.unforwarded(&workload, &grant, "PROOF_RATE", why);
                let receipt = self.ledger.record(entry).await?;
                return Err(Refusal::TooFast(receipt, wait));
            }
            let place = match self.apis.enter(grant.identity()) {
                Ok(place) => place,
                Err(error) => return Err(self.not_sent(&account, &workload, &grant, error).await?),
            };
            // Before the credential, which would grow old meanwhile; after the decision, without which no body is read.
            if let Some(body) = coming.take() {
                match self.apis.take(body, how.patience).await {
                    Ok(whole) => taken = Some(whole),
                    Err(error) => return Err(self.not_sent(&account, &workload, &grant, error).await?),
                }
            }
            let fetched = match self.broker.fetch(&grant, request.min_ttl, request.patience).await {
                Ok(fetched) => fetched,
                Err(_) if !self.in_force(&rules) => continue,
                Err(failure) => return Err(self.failed(account, &workload, &grant, failure).await?),
            };
            // What its issuer has said of it comes first (S17).
            self.tell_of_reuse().await;
            // Its endpoints are known once it was asked. A certificate or a proof that is shown there could fetch tokens.
            if self.broker.is_issuers(target) {
                let why = (Reason::HtuNotAllowed, "the URL is an endpoint of an issuer (DPOP-20)");
                return Err(self.off_limits(&account, &workload, &grant, why).await?);
            }
            // A program can take its time to send a body, and an issuer to answer, and the program become another meanwhile.
            if let Err(error) = session.confirm(&workload).await {
                return Err(self.unattested(account, &error).await?);
            }
            if !self.in_force(&rules) {
                continue;
            }
            let mut body = taken.take().unwrap_or_default();
            let reach = Reach { ca_file: how.ca_file.clone(), plain: grant.rule().proofs.plain };
            let trip = Trip {
                journey: self,
                session,
                request,
                forwarding,
                rules: &rules,
                account,
                workload: &workload,
                grant: &grant,
                target,
                how,
                reach,
                began: self.clock.boot(),
            };
            return trip.make(fetched, &mut body, place).await;
        }
    }

    /// A call that policy grants as far as policy can tell, and that is not made.
    async fn off_limits(
        &self,
        account: &Account<'_>,
        workload: &Workload,
        grant: &Grant,
        (reason, why): (Reason, &str),
    ) -> Result<Refusal, Refusal> {
        let receipt = self.ledger.record(account.unforwarded(workload, grant, reason.as_str(), why)).await?;
        Ok(Refusal::OffLimits(receipt, reason))
    }

    /// A call that policy grants and that was not made.
    async fn not_sent(
        &self,
        account: &Account<'_>,
        workload: &Workload,
        grant: &Grant,
        error: ApiError,
    ) -> Result<Refusal, Refusal> {
        let went = Went { error: Some((error.reason(), &error.to_string())), ..Went::default() };
        let receipt = self.ledger.record(account.forwarded(workload, grant, None, went)).await?;
        Ok(Refusal::Api(receipt, error))
    }
}

/// A call that may be made.
struct Trip<'a> {
    journey: &'a Arc<Journey>,
    session: &'a Arc<Session>,
    request: &'a Request,
    forwarding: &'a Forwarding,
    rules: &'a Arc<Rules>,
    account: Account<'a>,
    workload: &'a Arc<Workload>,
    grant: &'a Grant,
    target: &'a Target,
    how: &'a Forward,
    reach: Reach,
    began: Boot,
}

/// What was used up of the chances to send it once more.
#[derive(Default)]
struct Used {
    nonce: bool,
    token: bool,
}

impl Trip<'_> {
    /// Sends it, and once more where the API asks for that.
    async fn make(
        self,
        mut fetched: Fetched,
        body: &mut Asking,
        place: OwnedSemaphorePermit,
    ) -> Result<Forwarded, Refusal> {
        let (mut used, mut attempts) = (Used::default(), 0);
        loop {
            let proof = match self.proof(&fetched) {
                Ok(proof) => proof,
                Err(error) => return Err(self.no_answer(&fetched, attempts, error, None).await?),
            };
            let entry = self.account.forwarding(self.workload, self.grant, &fetched, proof.as_ref());
            let receipt = self.journey.ledger.record(entry).await?;
            attempts += 1;
            let unheard = self.unheard(&fetched, attempts);
            let answer = self.send(&fetched, proof, body).await;
            let answer = match answer {
                Ok(answer) => answer,
                Err(error) => {
                    unheard.was_heard();
                    return Err(self.no_answer(&fetched, attempts, error, Some(receipt)).await?);
                }
            };
            let again = self.again(&answer, &fetched, body.is_whole(), &mut used).await;
            // Whoever is not who it was gets nothing of it, neither this answer nor another (ATT-16).
            if let Err(error) = self.session.confirm(self.workload).await {
                unheard.was_heard();
                return Err(self.journey.unattested(self.account, &error).await?);
            }
            match again {
                Some(next) if self.journey.in_force(self.rules) => {
                    api::let_go(answer).await;
                    unheard.was_heard();
                    fetched = next;
                }
                _ => {
                    unheard.was_heard();
                    // Not even its head goes to whoever is entitled no more (GA-10).
                    if let Some(denial) = self.denied_since() {
                        return Err(self.journey.denied(self.account, self.workload, &denial).await?);
                    }
                    return Ok(self.hand_on(answer, &fetched, attempts, place, receipt).await);
                }
            }
        }
    }

    /// The proof for one attempt, where the credential needs one (DPOP-12).
    fn proof(&self, fetched: &Fetched) -> Result<Option<Proof>, ApiError> {
        let Bound::Dpop(key) = &fetched.credential.bound else { return Ok(None) };
        let method = self.forwarding.method.as_str();
        let proof = self.journey.proof(method, self.target, key, &fetched.credential);
        proof.map(Some).ok_or_else(|| ApiError::Unusable("custody did not sign the proof".into()))
    }

    async fn send(
        &self,
        fetched: &Fetched,
        proof: Option<Proof>,
        body: &mut Asking,
    ) -> Result<Response<Incoming>, ApiError> {
        let url = self.forwarding.path.url(self.target);
        let attempt = Attempt {
            method: &self.forwarding.method,
            url: &url,
            headers: &self.forwarding.headers,
            credential: &fetched.credential,
            carry: self.how.carry.as_deref(),
            proof: proof.map(|proof| proof.text),
            identity: self.grant.identity(),
            reach: &self.reach,
            patience: self.how.patience,
        };
        self.journey.apis.send(attempt, body).await
    }

    /// What to send it once more with, if that makes sense. Nonces of any answer are remembered (DPOP-09).
    async fn again(
        &self,
        answer: &Response<Incoming>,
        fetched: &Fetched,
        is_whole: bool,
        used: &mut Used,
    ) -> Option<Fetched> {
        let key = match &fetched.credential.bound {
            Bound::Dpop(key) => Some(key),
            Bound::Bearer | Bound::Mtls(_) => None,
        };
        let told = key.map(|key| (key, Told::by(answer.headers())));
        let has_nonce = matches!(told, Some((_, Told::New(_))));
        if let Some((key, Told::New(nonce))) = told {
            let now = self.journey.clock.boot();
            self.journey.nonces().keep(key.kid(), self.target.origin(), nonce, now);
        }
        if answer.status() != StatusCode::UNAUTHORIZED {
            return None;
        }
        match asks(answer.headers()) {
            Asks::Nonce if has_nonce && is_whole && !used.nonce => {
                used.nonce = true;
                Some(fetched.clone())
            }
            Asks::Token if !used.token => {
                used.token = true;
                let rejected = &fetched.credential;
                // Where this request cannot be sent once more, the next ones have the other token.
                let fresh = self.journey.broker.renew(self.grant, rejected, RENEW_WITHIN).await.ok()?;
                let is_another = !Arc::ptr_eq(&fresh.credential, rejected)
                    // The same secret once more is one more failed login, and nothing else.
                    && !rejected.goes_on_as(&fresh.credential);
                (is_whole && is_another).then_some(fresh)
            }
            Asks::Nonce | Asks::Token | Asks::Nothing => None,
        }
    }

    /// The answer, once it is on record. That the call was made is on record since before it was: if the rest cannot be written,
    /// the answer is handed on all the same, for to whoever has none the call looks as if it was not made. The ledger's health
    /// tells.
    async fn hand_on(
        &self,
        answer: Response<Incoming>,
        fetched: &Fetched,
        attempts: u32,
        place: OwnedSemaphorePermit,
        sent: Receipt,
    ) -> Forwarded {
        let went = Went {
            status: Some(answer.status().as_u16()),
            latency: Some(self.journey.clock.boot().since(self.began)),
            attempts,
            error: None,
        };
        let entry = self.account.forwarded(self.workload, self.grant, Some(&fetched.credential), went);
        let receipt = self.journey.ledger.record(entry).await.unwrap_or_else(|error| {
            tracing::error!(%error, "an API's answer could not be recorded");
            sent
        });
        let (method, patience) = (&self.forwarding.method, self.how.patience);
        Forwarded { response: api::answer(answer, method, patience, self.may_go_on(), place), receipt }
    }

    /// The call failed. If that cannot be written, it is told all the same where the call itself is on record: whoever is told
    /// that nothing was done does it again.
    async fn no_answer(
        &self,
        fetched: &Fetched,
        attempts: u32,
        error: ApiError,
        sent: Option<Receipt>,
    ) -> Result<Refusal, Refusal> {
        let went = Went {
            status: None,
            latency: Some(self.journey.clock.boot().since(self.began)),
            attempts,
            error: Some((error.reason(), &error.to_string())),
        };
        let entry = self.account.forwarded(self.workload, self.grant, Some(&fetched.credential), went);
        match (self.journey.ledger.record(entry).await, sent) {
            (Ok(receipt), _) | (Err(_), Some(receipt)) => Ok(Refusal::Api(receipt, error)),
            (Err(unwritten), None) => Err(unwritten.into()),
        }
    }

    /// Why the program may not have the answer any more, if the rules have changed and it may not.
    fn denied_since(&self) -> Option<Denial> {
        if self.journey.in_force(self.rules) {
            return None;
        }
        let purpose = Purpose::Forward(self.forwarding.wanted());
        let wish = Wish { purpose, ..wish(self.session, self.request) };
        self.journey.rules().policy.decide(self.workload, &wish, self.journey.clock.wall()).err()
    }

    /// Whether a program still may have what comes: asked anew whenever the rules have changed (GA-10).
    fn may_go_on(&self) -> MayGoOn {
        let (journey, session, workload) =
            (Arc::clone(self.journey), Arc::clone(self.session), Arc::clone(self.workload));
        let (request, forwarding) = (self.request.clone(), self.forwarding.clone());
        let mut rules = Arc::clone(self.rules);
        Box::new(move || {
            if journey.in_force(&rules) {
                return true;
            }
            let now = journey.rules();
            let wish = Wish { purpose: Purpose::Forward(forwarding.wanted()), ..wish(&session, &request) };
            let granted = now.policy.decide(&workload, &wish, journey.clock.wall()).is_ok();
            if granted {
                rules = now;
            }
            granted
        })
    }

    /// Sees to it that a call is on record as unheard if its program hangs up before there is an answer.
    fn unheard(&self, fetched: &Fetched, attempts: u32) -> Unheard {
        let why = "the program hung up before the API answered, which may have acted all the same";
        let went = Went { attempts, error: Some(("CALLER_GONE", why)), ..Went::default() };
        let entry = self.account.forwarded(self.workload, self.grant, Some(&fetched.credential), went);
        Unheard { ledger: self.journey.ledger.clone(), entry: Some(entry) }
    }
}

/// A call whose end nobody may be there to hear of.
struct Unheard {
    ledger: Ledger,
    entry: Option<Entry>,
}

impl Unheard {
    fn was_heard(mut self) {
        self.entry = None;
    }
}

impl Drop for Unheard {
    fn drop(&mut self) {
        let (Some(entry), Ok(runtime)) = (self.entry.take(), Handle::try_current()) else { return };
        let ledger = self.ledger.clone();
        runtime.spawn(async move {
            if let Err(error) = ledger.record(entry).await {
                tracing::error!(%error, "a call that nobody waited for could not be recorded");
            }
        });
    }
}

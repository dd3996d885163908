//! A request's whole way: attest, decide, fetch, confirm, record, answer. In go a session and a wish; out comes an
//! [`Answer`] or a [`Refusal`], and neither without a [`Receipt`]. Every face of the agent comes through here; there
//! is no other way to a credential.

mod account;
mod alarms;
mod bucket;
mod explain;
mod floods;
mod forward;
mod lives;
mod news;
mod pace;
mod places;
mod prove;
mod remembered;
mod reuse;
mod session;
mod signals;

use std::{
    sync::{Arc, Mutex, atomic::AtomicUsize},
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::time::timeout;

use crate::{
    api::{ApiError, Apis},
    attest::{AttestError, Attestor, Challenge, Interests, Missing, Peer, Turns, Workload},
    audit::{Entry, EventType, Ledger, LedgerError, Outcome, Receipt},
    broker::{Broker, Failure, Fetched, Subscription},
    clock::{Clock, Dice, uuid_v7},
    credential::{Bound, Credential},
    keys::ClientCertificate,
    policy::{Denial, Door, Entitlement, Grant, Policy, Purpose, Reason, Wish},
    proof::Nonces,
    secret::{Fingerprint, Secret},
};
use account::Account;
use alarms::Alarms;
pub use explain::Explained;
use floods::{Cuts, Refusals};
pub use forward::{Forwarded, Forwarding};
use lives::Lives;
use pace::Pace;
pub use prove::{Proved, Proving};
pub use remembered::Remembered;
use reuse::{Handles, Party};
pub use session::{Call, Session};
use signals::People;

/// How long a process may take to answer the challenge: clients do it on their own, in a fraction of a millisecond.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// The whole way, shared by all sessions.
#[derive(Debug)]
pub struct Journey {
    attestor: Arc<Attestor>,
    turns: Turns,
    rules: ArcSwap<Rules>,
    broker: Broker,
    ledger: Ledger,
    /// What APIs want to see in the next proof, as callers handed it back or as they told the agent.
    nonces: Mutex<Nonces>,
    pace: Mutex<Pace>,
    apis: Apis,
    lives: Lives,
    /// Who was given which credential.
    handles: Handles,
    alarms: Alarms,
    /// From where identities are used.
    places: Remembered,
    /// The people who came as a service, and were told of.
    people: People,
    /// What was noticed of who uses identities and from where, for status.
    signals: Alarms,
    /// Held by whoever raises a signal, so that none is raised twice.
    noticing: tokio::sync::Mutex<()>,
    calls: Arc<AtomicUsize>,
    /// What those who flood leave in the ledger.
    cuts: Cuts,
    refusals: Refusals,
    clock: Arc<dyn Clock>,
    dice: Arc<dyn Dice>,
}

/// The part of the settings that decides. Swapped whole at reload.
#[derive(Debug)]
pub struct Rules {
    /// Who may what.
    pub policy: Arc<Policy>,
    /// What evidence that needs.
    pub interests: Arc<Interests>,
    /// Where we are.
    pub environment: String,
    /// SHA-256 of the settings they were read from.
    pub digest: String,
}

impl Rules {
    /// The rules of a policy.
    pub fn new(policy: Arc<Policy>, environment: String, digest: String) -> Self {
        Self { interests: Arc::new(policy.interests()), policy, environment, digest }
    }
}

/// What a caller asks for.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// The credential's name.
    pub name: String,
    /// A narrower scope; empty for all.
    pub scope: Vec<String>,
    /// The least life it must have.
    pub min_ttl: Duration,
    /// How long the caller waits.
    pub patience: Duration,
    /// The caller's trace, if it sent a valid one (AUD-08).
    pub trace_id: Option<String>,
}

/// A yes, on record.
#[derive(Debug)]
pub struct Answer {
    credential: Arc<Credential>,
    exports_key: bool,
    receipt: Receipt,
}

impl Answer {
    /// The credential.
    pub fn credential(&self) -> &Credential {
        &self.credential
    }

    /// The certificate that binds it, and its private key in PEM if that is handed out: the record says so (MT-11).
    pub fn client_certificate(&self) -> Option<(&ClientCertificate, Option<&Secret>)> {
        let Bound::Mtls(certificate) = &self.credential.bound else { return None };
        Some((certificate, certificate.private_pem().filter(|_| self.exports_key)))
    }

    /// Where it is on record.
    pub fn receipt(&self) -> &Receipt {
        &self.receipt
    }
}

/// A no.
#[derive(Debug)]
pub enum Refusal {
    /// Policy said no. Why is for operators, never for the caller.
    Denied(Receipt, Reason),
    /// The credential that goes with the proof is not, or no longer, there.
    NotHeld(Receipt),
    /// Policy grants the credential, and not what it is wanted for.
    OffLimits(Receipt, Reason),
    /// The API was not asked, or did not answer.
    Api(Receipt, ApiError),
    /// So many proofs and calls in so short a time are not made.
    TooFast(Receipt, Duration),
    /// The caller is not, or no longer, who connected.
    Unattested(Receipt),
    /// Policy said yes, the issuer did not.
    Unavailable(Receipt, Failure),
    /// It cannot be recorded, so it is not answered (AUD-02).
    Unrecorded(LedgerError),
}

impl From<LedgerError> for Refusal {
    fn from(error: LedgerError) -> Self {
        tracing::error!(%error, "an exchange was refused because it cannot be recorded");
        Self::Unrecorded(error)
    }
}

impl Journey {
    /// The way through these rooms.
    pub fn new(
        attestor: Attestor,
        rules: Rules,
        broker: Broker,
        ledger: Ledger,
        clock: Arc<dyn Clock>,
        dice: Arc<dyn Dice>,
    ) -> Self {
        Self {
            attestor: Arc::new(attestor),
            turns: Turns::new(Arc::clone(&clock)),
            rules: ArcSwap::from_pointee(rules),
            broker,
            ledger,
            nonces: Mutex::default(),
            pace: Mutex::default(),
            apis: Apis::new(Arc::clone(&clock)),
            lives: Lives::default(),
            handles: Handles::default(),
            alarms: Alarms::default(),
            places: Remembered::default(),
            people: People::default(),
            signals: Alarms::default(),
            noticing: tokio::sync::Mutex::default(),
            calls: Arc::default(),
            cuts: Cuts::default(),
            refusals: Refusals::default(),
            clock,
            dice,
        }
    }

    /// The same, knowing from where identities were used before.
    #[must_use]
    pub fn remembering(self, places: Remembered) -> Self {
        Self { places, ..self }
    }

    /// From now on, these rules decide: for open connections too.
    pub fn follow(&self, rules: Rules) {
        self.rules.store(Arc::new(rules));
        self.apis.forget();
    }

    /// The rules in force.
    pub fn rules(&self) -> Arc<Rules> {
        self.rules.load_full()
    }

    /// The broker, for status.
    pub fn broker(&self) -> &Broker {
        &self.broker
    }

    /// The ledger, for status and for what the daemon itself does.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Somebody connected to the socket at this path: its evidence is taken at once, before it can become somebody else
    /// (ATT-16).
    pub async fn begin(&self, peer: Arc<Peer>, socket: Arc<str>, door: Door) -> Session {
        let calls = Arc::clone(&self.calls);
        let session = Session::new(peer, socket, door, Challenge::new(&*self.dice), calls);
        // An error is kept like a success: whoever asks on this connection gets it, on record.
        let _ = self.read_evidence(&session, &self.rules.load_full()).await;
        session
    }

    /// One credential.
    ///
    /// # Errors
    /// A [`Refusal`], on record.
    pub async fn fulfil(&self, call: &Call, request: &Request) -> Result<Answer, Refusal> {
        let session: &Session = call;
        loop {
            let rules = self.rules.load_full();
            let (account, workload, grant) =
                self.admit(session, request, (Purpose::Take, None), &rules).await?;
            let fetched = match self.broker.fetch(&grant, request.min_ttl, request.patience).await {
                Ok(fetched) => fetched,
                Err(_) if !self.in_force(&rules) => continue,
                Err(failure) => {
                    self.tell_of_reuse().await;
                    return Err(self.failed(account, &workload, &grant, failure).await?);
                }
            };
            if let Err(error) = session.confirm(&workload).await {
                return Err(self.unattested(account, &error).await?);
            }
            if !self.in_force(&rules) {
                continue;
            }
            let Fetched { credential, source } = fetched;
            let (line, anew) = account.released(&workload, &grant, &credential, &source);
            if anew {
                self.give(session, &grant, &credential);
                // What its issuer has said of it comes first (S17).
                self.tell_of_reuse().await;
            }
            let receipt = match call.is_alone() {
                true => self.ledger.record_alone(line).await?,
                false => self.ledger.record(line).await?,
            };
            let exports_key = account::exports_key(&grant, &credential);
            return Ok(Answer { exports_key, credential, receipt });
        }
    }

    /// Whether these still are the rules. A caller can take its time to answer a challenge, and an issuer to answer at all; if
    /// the rules changed meanwhile, the way is walked again, so that a no counts from its moment on (GA-10).
    fn in_force(&self, rules: &Arc<Rules>) -> bool {
        Arc::ptr_eq(&self.rules.load(), rules)
    }

    /// The first half of every request for a credential: who calls, and may it, for this purpose, with the handle of what it says it
    /// holds.
    async fn admit<'a>(
        &self,
        session: &'a Session,
        request: &'a Request,
        (purpose, handle): (Purpose<'a>, Option<Fingerprint>),
        rules: &'a Arc<Rules>,
    ) -> Result<(Account<'a>, Arc<Workload>, Grant), Refusal> {
        let account = Account::open(self, session, request, rules).about(&purpose).with(handle);
        let workload = match self.attest(session, rules).await {
            Ok(workload) => workload,
            Err(error) => {
                self.look_out(&account, None, None).await?;
                return Err(self.unattested(account, &error).await?);
            }
        };
        let wish = Wish { purpose, ..wish(session, request) };
        let grant = match rules.policy.decide(&workload, &wish, self.clock.wall()) {
            Ok(grant) => grant,
            Err(denial) => {
                self.look_out(&account, Some(&workload), denial.explanation.identity.as_ref()).await?;
                self.turn_away(&account, &workload, &denial).await?;
                return Err(self.denied(account, &workload, &denial).await?);
            }
        };
        self.look_out(&account, Some(&workload), Some(grant.identity())).await?;
        self.notice(&account, session, &workload, &grant).await?;
        if let Some(instance) = grant.instance()
            && let Err(error) = self.lives.watch(instance, session.peer(), &self.broker)
        {
            return Err(self.unattested(account, &error).await?);
        }
        session.note_granted();
        Ok((account, workload, grant))
    }

    /// One credential now, and a way to wait for the next.
    ///
    /// # Errors
    /// A [`Refusal`], on record.
    pub async fn watch(&self, call: &Call, request: &Request) -> Result<(Answer, Watching), Refusal> {
        let session: &Session = call;
        let rules = self.rules.load_full();
        // Listening begins before the first answer, so that no rotation falls between the two.
        let listening = match self.attest(session, &rules).await {
            Ok(workload) => {
                match rules.policy.decide(&workload, &wish(session, request), self.clock.wall()) {
                    Ok(grant) => self.broker.watch(&grant).await.ok(),
                    Err(_) => None,
                }
            }
            Err(_) => None,
        };
        let answer = self.fulfil(call, request).await?;
        match listening {
            Some(mut listening) => {
                listening.catch_up();
                Ok((answer, Watching(listening)))
            }
            None => Err(Refusal::Unavailable(answer.receipt, Failure::Closed)),
        }
    }

    /// The next credential of one who listens: the full state, walked the whole way again.
    ///
    /// # Errors
    /// A [`Refusal`], on record, when the right has ended.
    pub async fn next(
        &self,
        session: &Arc<Session>,
        request: &Request,
        watching: &mut Watching,
    ) -> Result<Answer, Refusal> {
        let mut heard = false;
        loop {
            // Trouble too is walked through: the policy may have changed, and then the answer is a denial.
            if !heard {
                let _ = watching.0.changed().await;
            }
            // Boxed: the way is long, and nearly all the time one who listens only waits.
            let fulfilled = Box::pin(async {
                let call = session.enter_with_others();
                self.fulfil(&call, request).await
            });
            match fulfilled.await {
                Err(Refusal::Unavailable(_, failure)) if failure != Failure::Closed => {
                    let wait = match &failure {
                        Failure::Issue { retry_after: Some(wait), .. } => *wait,
                        _ => Duration::from_secs(30),
                    };
                    // What was heard while it waited is not waited for again: it may be the last for long.
                    heard = tokio::time::timeout(wait, watching.0.changed()).await.is_ok();
                }
                done => return done,
            }
        }
    }

    /// Who the caller is and what it may have.
    ///
    /// # Errors
    /// A [`Refusal`], on record.
    pub async fn describe(
        &self,
        session: &Session,
        request: &Request,
    ) -> Result<(Arc<Workload>, Entitlement, Receipt), Refusal> {
        let rules = self.rules.load_full();
        let account = Account::open(self, session, request, &rules);
        let workload = match self.attest(session, &rules).await {
            Ok(workload) => workload,
            Err(error) => return Err(self.unattested(account, &error).await?),
        };
        let entitlement = match rules.policy.describe(&workload, &session.door, self.clock.wall()) {
            Ok(entitlement) => entitlement,
            Err(denial) => return Err(self.denied(account, &workload, &denial).await?),
        };
        if let Err(error) = session.confirm(&workload).await {
            return Err(self.unattested(account, &error).await?);
        }
        let receipt = self.ledger.record(account.described(&workload, &entitlement)).await?;
        Ok((workload, entitlement, receipt))
    }

    /// Gives a credential back. True if the issuer confirmed that it is revoked.
    ///
    /// # Errors
    /// A [`Refusal`], on record.
    pub async fn release(&self, session: &Session, request: &Request) -> Result<(bool, Receipt), Refusal> {
        let rules = self.rules.load_full();
        let (account, workload, grant) =
            self.admit(session, request, (Purpose::Nothing, None), &rules).await?;
        // Whoever is not who it was ends nobody's credential.
        if let Err(error) = session.confirm(&workload).await {
            return Err(self.unattested(account, &error).await?);
        }
        let (revoked, detail) = match self.broker.release(&grant).await {
            Ok(true) => (true, "revoked at the issuer".to_owned()),
            Ok(false) => (false, "there was none".to_owned()),
            Err(failure) => (false, format!("forgotten here, and tried again until it ends: {failure}")),
        };
        let receipt = self.ledger.record(account.returned(&workload, &grant, revoked, &detail)).await?;
        Ok((revoked, receipt))
    }

    /// Whether the process is in one of `groups`, by its own ids now and not by what a directory of users says. What cannot be
    /// read is no.
    pub fn is_in_group(&self, session: &Session, groups: &[u32]) -> bool {
        let peer = session.peer();
        let interests = Arc::new(Interests { groups: true, ..Interests::default() });
        groups.contains(&peer.gid())
            || self.attestor.attest(peer, &interests).is_ok_and(|workload| {
                let status = workload.evidence().status.as_ref();
                status.is_ok_and(|status| status.groups.iter().any(|group| groups.contains(group)))
            })
    }

    /// A call that broke the rules of the API, on record.
    ///
    /// # Errors
    /// [`Refusal::Unrecorded`] if it cannot be.
    pub async fn broke_protocol(&self, session: &Session, what: &str) -> Result<Receipt, Refusal> {
        self.refusals.turn(session.peer().uid(), &*self.clock).await;
        let mut entry = self.entry(EventType::Protocol, Outcome::Denied).detail(what);
        entry.peer = Some(account::bare_peer(session.peer()));
        entry.service_manager = account::errand(&session.door);
        entry.socket = Some(session.socket.to_string());
        Ok(self.ledger.record(entry).await?)
    }

    /// A connection that ended because somebody else spoke on it, or could not be pinned. Of a user who has many cut, most are
    /// gathered, and told with the last of them.
    pub async fn cut(&self, peer: Option<&Peer>, socket: &str, reason: &str, detail: &str) {
        let mut entry =
            self.entry(EventType::AttestationFailure, Outcome::Denied).because(reason).detail(detail);
        entry.peer = peer.map(account::bare_peer);
        entry.socket = Some(socket.to_owned());
        if let Some(entry) = self.cuts.note(peer.map(Peer::uid), entry, self.clock.boot()) {
            self.record_cut(entry).await;
        }
    }

    /// Writes down what was gathered of cut connections.
    pub async fn tell_of_cuts(&self) {
        for entry in self.cuts.told() {
            self.record_cut(entry).await;
        }
    }

    async fn record_cut(&self, entry: Entry) {
        // Nobody is answered, so nothing is held back if it cannot be written; the ledger's health says so.
        if let Err(error) = self.ledger.record(entry).await {
            tracing::error!(%error, "a cut connection could not be recorded");
        }
    }

    /// An entry that says only what happened, now.
    pub fn entry(&self, kind: EventType, outcome: Outcome) -> Entry {
        Entry::new(kind, outcome, uuid_v7(self.clock.wall(), &*self.dice))
    }

    /// What was attested when the connection came, and whether the process answers, if the rules rest on that.
    async fn attest(&self, session: &Session, rules: &Rules) -> Result<Arc<Workload>, AttestError> {
        let workload = self.read_evidence(session, rules).await?;
        if !rules.interests.challenge || workload.evidence().answered != Err(Missing::NotAsked) {
            return Ok(workload);
        }
        let answered = timeout(ANSWER_WITHIN, session.challenge().answered()).await;
        let workload = Arc::new(workload.with_answer(answered.unwrap_or(Err(Missing::Unanswered))));
        session.keep((Arc::clone(&rules.interests), Ok(Arc::clone(&workload))));
        Ok(workload)
    }

    /// What was read when the connection came; read anew only if the rules want to know more now.
    async fn read_evidence(&self, session: &Session, rules: &Rules) -> Result<Arc<Workload>, AttestError> {
        let before = match session.attested() {
            None => None,
            Some((interests, Ok(workload))) if interests != rules.interests => Some(workload),
            Some((_, attested)) => return attested,
        };
        let (peer, interests) = (Arc::clone(session.peer()), Arc::clone(&rules.interests));
        let attested = if self.attestor.must_read(&peer, &interests) {
            // A program not seen before is read from disk: not on the thread that serves everybody, and not at any pace.
            let (attestor, uid) = (Arc::clone(&self.attestor), peer.uid());
            let read = self.turns.take(uid, move || attestor.attest(&peer, &interests)).await;
            read.unwrap_or(Err(AttestError::PeerExited))
        } else {
            self.attestor.attest(&peer, &interests)
        };
        let attested = attested.and_then(|workload| match before {
            Some(before) => workload.follows(&before).map(Arc::new),
            None => Ok(Arc::new(workload)),
        });
        session.keep((Arc::clone(&rules.interests), attested.clone()));
        attested
    }

    async fn unattested(&self, account: Account<'_>, error: &AttestError) -> Result<Refusal, Refusal> {
        self.refusals.turn(account.uid(), &*self.clock).await;
        Ok(Refusal::Unattested(self.ledger.record(account.unattested(error)).await?))
    }

    async fn denied(
        &self,
        account: Account<'_>,
        workload: &Workload,
        denial: &Denial,
    ) -> Result<Refusal, Refusal> {
        self.refusals.turn(account.uid(), &*self.clock).await;
        let receipt = self.ledger.record(account.denied(workload, denial)).await?;
        Ok(match denial.reason {
            reason if reason.is_about_the_request() => Refusal::OffLimits(receipt, reason),
            reason => Refusal::Denied(receipt, reason),
        })
    }

    async fn failed(
        &self,
        account: Account<'_>,
        workload: &Workload,
        grant: &Grant,
        failure: Failure,
    ) -> Result<Refusal, Refusal> {
        let receipt = self.ledger.record(account.failed(workload, grant, &failure)).await?;
        Ok(Refusal::Unavailable(receipt, failure))
    }
}

/// One who listens for rotations.
#[derive(Debug)]
pub struct Watching(Subscription);

fn wish<'a>(session: &'a Session, request: &'a Request) -> Wish<'a> {
    Wish { credential: &request.name, scope: &request.scope, door: &session.door, purpose: Purpose::Take }
}

/// The trace id of a `traceparent` (W3C Trace Context), if it is valid (AUD-08).
pub fn trace_id(traceparent: &str) -> Option<String> {
    let mut parts = traceparent.split('-');
    let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let hex = |text: &str, length: usize| {
        text.len() == length && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let nonzero = |text: &str| text.bytes().any(|byte| byte != b'0');
    let valid = hex(version, 2) && version != "ff" && hex(trace, 32) && nonzero(trace);
    (valid && hex(span, 16) && nonzero(span) && hex(flags, 2)).then(|| trace.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_valid_trace_is_copied() {
        // AUD-08
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(trace_id(good).as_deref(), Some("4bf92f3577b34da6a3ce929d0e0e4736"));
        for bad in [
            "",
            "00-x-y-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
        ] {
            assert_eq!(trace_id(bad), None, "{bad}");
        }
    }
}

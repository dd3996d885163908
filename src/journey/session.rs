//! One connection and what was attested when it came. Every answer on it needs the evidence to be taken again; a crowd of
//! calls that wait for that in the same moment share one reading. Which is a crowd and which is alone, calls tell by
//! being counted from when they came.

use std::{
    future::poll_fn,
    ops::Deref,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::Poll,
};

use tokio::sync::oneshot;

use super::Rules;
use crate::{
    attest::{AttestError, Challenge, Errand, Interests, Peer, Workload},
    audit::Told,
    clock::Boot,
    credential::Credential,
    policy::Door,
};

/// One connection and what was attested when it came.
#[derive(Debug)]
pub struct Session {
    peer: Arc<Peer>,
    pub(super) socket: Arc<str>,
    pub(super) door: Door,
    challenge: Arc<Challenge>,
    attested: Mutex<Option<Attested>>,
    round: Mutex<Option<Round>>,
    calls: AtomicUsize,
    all_calls: Arc<AtomicUsize>,
    last: Mutex<Option<(Release, Told)>>,
    noticed: Mutex<Option<Noticed>>,
    granted: AtomicBool,
}

/// For whom use was looked at, and when it is again.
#[derive(Debug)]
struct Noticed {
    workload: Weak<Workload>,
    identity: Arc<str>,
    again: Boot,
}

/// All that a record of a cached release says, beside the exchange. Nothing here keeps a secret alive.
#[derive(Debug)]
pub(super) struct Release {
    pub(super) workload: Weak<Workload>,
    pub(super) rules: Weak<Rules>,
    pub(super) credential: Weak<Credential>,
    pub(super) name: String,
    pub(super) scope: Vec<String>,
}

impl PartialEq for Release {
    fn eq(&self, other: &Self) -> bool {
        Weak::ptr_eq(&self.workload, &other.workload)
            && Weak::ptr_eq(&self.rules, &other.rules)
            && Weak::ptr_eq(&self.credential, &other.credential)
            && self.name == other.name
            && self.scope == other.scope
    }
}

pub(super) type Attested = (Arc<Interests>, Result<Arc<Workload>, AttestError>);

/// Those who wait for the next reading, and of what.
#[derive(Debug)]
struct Round {
    workload: Arc<Workload>,
    waiting: Vec<oneshot::Sender<Result<(), AttestError>>>,
}

impl Session {
    /// `all_calls` counts those of all connections.
    pub(super) fn new(
        peer: Arc<Peer>,
        socket: Arc<str>,
        door: Door,
        challenge: Challenge,
        all_calls: Arc<AtomicUsize>,
    ) -> Self {
        Self {
            peer,
            socket,
            door,
            challenge: Arc::new(challenge),
            attested: Mutex::default(),
            round: Mutex::default(),
            calls: AtomicUsize::new(0),
            all_calls,
            last: Mutex::default(),
            noticed: Mutex::default(),
            granted: AtomicBool::new(false),
        }
    }

    /// What the process has to answer, for the wire to put.
    pub fn challenge(&self) -> &Arc<Challenge> {
        &self.challenge
    }

    /// What the host's service manager came for, if it is the one who connected.
    pub fn errand(&self) -> Option<&Errand> {
        self.door.errand()
    }

    /// The process at the other end.
    pub fn peer(&self) -> &Arc<Peer> {
        &self.peer
    }

    /// Whether policy has said yes to anything that was asked for on it.
    pub fn was_granted(&self) -> bool {
        self.granted.load(Ordering::Relaxed)
    }

    pub(super) fn note_granted(&self) {
        self.granted.store(true, Ordering::Relaxed);
    }

    pub(super) fn attested(&self) -> Option<Attested> {
        lock(&self.attested).clone()
    }

    pub(super) fn keep(&self, attested: Attested) {
        *lock(&self.attested) = Some(attested);
    }

    /// Whether use of `identity` by `workload` was looked at of late: one comparison, for nearly every call.
    pub(super) fn is_noticed(&self, workload: &Arc<Workload>, identity: &Arc<str>, now: Boot) -> bool {
        lock(&self.noticed).as_ref().is_some_and(|noticed| {
            now < noticed.again
                && noticed.identity == *identity
                && std::ptr::eq(noticed.workload.as_ptr(), Arc::as_ptr(workload))
        })
    }

    pub(super) fn notice(&self, workload: &Arc<Workload>, identity: &Arc<str>, again: Boot) {
        let (workload, identity) = (Arc::downgrade(workload), Arc::clone(identity));
        *lock(&self.noticed) = Some(Noticed { workload, identity, again });
    }

    /// What was told of the last release, if it was this very one.
    pub(super) fn told(&self, of: &Release) -> Option<Told> {
        lock(&self.last).as_ref().filter(|(release, _)| release == of).map(|(_, told)| told.clone())
    }

    pub(super) fn tell(&self, of: Release, told: &Told) {
        *lock(&self.last) = Some((of, told.clone()));
    }

    /// A call on this connection, until what this returns is dropped. To be called when the call comes, before anything is
    /// done for it: only so those who come together know of each other.
    pub fn enter(self: &Arc<Self>) -> Call {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.all_calls.fetch_add(1, Ordering::Relaxed);
        Call { session: Arc::clone(self), with_others: false }
    }

    /// The same for a call that something woke which wakes others too: a rotation is for all who listen.
    pub(super) fn enter_with_others(self: &Arc<Self>) -> Call {
        let mut call = self.enter();
        call.with_others = true;
        call
    }

    /// Takes the evidence again, right before the answer (ATT-16). The reading begins after this was called; whoever calls
    /// before it begins is told what it found.
    pub(super) async fn confirm(&self, workload: &Arc<Workload>) -> Result<(), AttestError> {
        loop {
            match self.join(workload) {
                Place::Told(told) => {
                    // Whoever reads for us may be cancelled: then there is another round.
                    if let Ok(result) = told.await {
                        return result;
                    }
                }
                Place::Reader(reader) => {
                    // One alone is not kept waiting.
                    if self.calls.load(Ordering::Relaxed) > 1 {
                        after_others().await;
                    }
                    let waiting = reader.begin();
                    let result = workload.confirm();
                    for waiting in waiting {
                        // A caller that has gone away needs no answer.
                        drop(waiting.send(result.clone()));
                    }
                    return result;
                }
                Place::Alone => return workload.confirm(),
            }
        }
    }

    fn join(&self, workload: &Arc<Workload>) -> Place<'_> {
        let mut round = lock(&self.round);
        match &mut *round {
            None => {
                *round = Some(Round { workload: Arc::clone(workload), waiting: vec![] });
                Place::Reader(Reader(Some(self)))
            }
            Some(round) if Arc::ptr_eq(&round.workload, workload) => {
                let (waiting, told) = oneshot::channel();
                round.waiting.push(waiting);
                Place::Told(told)
            }
            Some(_) => Place::Alone,
        }
    }
}

/// A call that is under way.
#[derive(Debug)]
#[must_use = "a call counts as long as this is held"]
pub struct Call {
    session: Arc<Session>,
    with_others: bool,
}

impl Call {
    /// Whether no other is under way, on any connection.
    pub(super) fn is_alone(&self) -> bool {
        !self.with_others && self.session.all_calls.load(Ordering::Relaxed) <= 1
    }
}

impl Deref for Call {
    type Target = Arc<Session>;

    fn deref(&self) -> &Arc<Session> {
        &self.session
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.session.calls.fetch_sub(1, Ordering::Relaxed);
        self.session.all_calls.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Lets everybody go on who can, and comes back: without a look at the sockets in between, which `yield_now` has.
async fn after_others() {
    let mut waited = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut waited, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// What a call does in a round.
enum Place<'a> {
    /// It is the first: it reads for all who come until it begins.
    Reader(Reader<'a>),
    /// It is told what the first finds.
    Told(oneshot::Receiver<Result<(), AttestError>>),
    /// New rules came in between, and with them evidence of its own.
    Alone,
}

/// The first of a round. If it is dropped before it begins, so is the round, and those in it find another.
struct Reader<'a>(Option<&'a Session>);

impl Reader<'_> {
    /// Ends the gathering: whoever comes from now on is in the next round.
    fn begin(mut self) -> Vec<oneshot::Sender<Result<(), AttestError>>> {
        self.take()
    }

    fn take(&mut self) -> Vec<oneshot::Sender<Result<(), AttestError>>> {
        let round = self.0.take().and_then(|session| lock(&session.round).take());
        round.map(|round| round.waiting).unwrap_or_default()
    }
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        self.take();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::{
        future::poll_fn,
        os::unix::net::UnixStream,
        pin::Pin,
        task::Poll::{self, Pending, Ready},
    };

    use super::*;
    use crate::{
        attest::{Attestor, Proc, Sources},
        clock::SeededDice,
    };

    fn session() -> (Arc<Session>, Arc<Workload>) {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let peer = Arc::new(Peer::pin(&ours).unwrap());
        let attestor = Attestor::new(Proc::at("/proc"), Sources::default());
        let workload = attestor.attest(&peer, &Arc::default()).unwrap();
        let challenge = Challenge::new(&*SeededDice::from_seed(1));
        (
            Arc::new(Session::new(peer, "test".into(), Door::Own, challenge, Arc::default())),
            Arc::new(workload),
        )
    }

    type Confirm<'a> = Pin<Box<dyn Future<Output = Result<(), AttestError>> + 'a>>;

    /// Lets a call go on once, as far as it can.
    async fn turn(call: &mut Confirm<'_>) -> Poll<Result<(), AttestError>> {
        poll_fn(|context| Ready(call.as_mut().poll(context))).await
    }

    #[tokio::test]
    async fn a_crowd_is_told_by_one_reading() {
        let (session, workload) = session();
        let _calls = [session.enter(), session.enter()];
        let mut first: Confirm<'_> = Box::pin(session.confirm(&workload));
        let mut second: Confirm<'_> = Box::pin(session.confirm(&workload));
        assert_eq!(turn(&mut first).await, Pending);
        assert_eq!(turn(&mut second).await, Pending);
        assert_eq!(first.await, Ok(()));
        // It needs no turn of its own: the answer lies there.
        assert_eq!(turn(&mut second).await, Ready(Ok(())));
    }

    #[tokio::test]
    async fn a_reader_that_is_cancelled_leaves_nobody_waiting() {
        let (session, workload) = session();
        let _calls = [session.enter(), session.enter()];
        let mut first: Confirm<'_> = Box::pin(session.confirm(&workload));
        let mut second: Confirm<'_> = Box::pin(session.confirm(&workload));
        assert_eq!(turn(&mut first).await, Pending);
        assert_eq!(turn(&mut second).await, Pending);
        drop(first);
        assert_eq!(second.await, Ok(()));
    }

    #[tokio::test]
    async fn whoever_comes_after_the_reading_began_is_not_told_by_it() {
        // ATT-16: what was read before a call came is no evidence for its answer.
        let (session, workload) = session();
        let _calls = [session.enter(), session.enter()];
        session.confirm(&workload).await.unwrap();
        let mut later: Confirm<'_> = Box::pin(session.confirm(&workload));
        assert_eq!(turn(&mut later).await, Pending, "it reads for itself");
        assert_eq!(later.await, Ok(()));
    }

    #[tokio::test]
    async fn one_alone_is_not_kept_waiting() {
        let (session, workload) = session();
        let _call = session.enter();
        assert_eq!(turn(&mut (Box::pin(session.confirm(&workload)) as Confirm<'_>)).await, Ready(Ok(())));
    }
}

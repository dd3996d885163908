//! The task that owns the shelf: it hears what is asked, asks issuers, tells those who wait and those who listen, and sees to it
//! that what has to die does. In go requests, answers of issuers, and the time; out come answers and what is published.
//! Over 400 lines, because whatever is heard of the shelf is heard by this one task, between two looks at it.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, atomic::Ordering},
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
    time::sleep,
};

use super::{
    Books, Failure, Fetched, Live, News, PendingFile, Renewed, Report, Request, Shared, Shelved, Topic, ask,
    pending::Left,
    revocations::{Cause, Placed, Revocation, Revocations, Revoked},
    shelf::{Action, Event, Shelf, Source, WaiterId},
    stowed::{Found, StowFile, StowedLive},
};
use crate::{
    clock::{Boot, Dice, fraction},
    credential::{Credential, Payload},
    issuer::{Advice, IssueError, IssueFacts, Issued, Order, Reason, sealed},
    keys::{Now, PairFile, Vault},
    secret::Fingerprint,
};

/// A sleep is never longer: after a suspend the time since boot has jumped, and only a look at it tells.
const LONGEST_SLEEP: Duration = Duration::from_secs(10);

/// So many revocations that wait are written down at every change; more, or in vain, once in so long.
const FEW: usize = 64;
const KEEP_AGAIN: Duration = Duration::from_secs(1);

/// How far apart those are on average that are had without being asked for, and how long all of them take at most to begin: a
/// host that starts is no flood.
const APART: Duration = Duration::from_millis(50);
const LONGEST_SPREAD: Duration = Duration::from_secs(60);

/// How long what is under way may take to come when the agent stops: what an issuer has made by then is left for the next start.
const LEAVE_WITHIN: Duration = Duration::from_secs(1);

/// How long an order waits for the certificate that it has to show.
const CERTIFICATE_PATIENCE: Duration = Duration::from_secs(20);

/// The task that owns the shelf.
#[derive(Debug)]
pub struct Keeper {
    shelf: Shelf,
    shared: Arc<Shared>,
    receiver: mpsc::UnboundedReceiver<Request>,
    /// For orders that need another one first. It keeps nobody alive.
    own_way: mpsc::WeakUnboundedSender<Request>,
    waiting: HashMap<WaiterId, oneshot::Sender<Result<Fetched, Failure>>>,
    topics: HashMap<Order, watch::Sender<Topic>>,
    /// With the settings they were placed by.
    fetches: JoinSet<(Order, Arc<Books>, Issued)>,
    revocations: Revocations,
    attempts: JoinSet<(u64, Arc<Revocation>, Result<(), IssueError>)>,
    /// Who waits to hear what came of the first try to revoke what was given back.
    returning: HashMap<Fingerprint, oneshot::Sender<Result<(), IssueError>>>,
    advices: JoinSet<(Order, Arc<Credential>, Option<Advice>)>,
    told: mpsc::UnboundedSender<News>,
    pending: Option<PendingFile>,
    stow: Option<StowFile>,
    /// The agent stops: nothing new is asked for.
    leaving: Option<Leaving>,
    /// What was left before whose certificate is not on the shelf yet.
    unbound: Vec<StowedLive>,
    dice: Arc<dyn Dice>,
    next_waiter: WaiterId,
    /// The settings by which what is being ended was made, where those of now do not do.
    before: Option<Arc<Books>>,
    /// Whether revocations came or went since they were kept for the next start.
    unkept: bool,
    /// Not kept before.
    keep_at: Boot,
}

/// What is under way is waited for.
#[derive(Debug)]
struct Leaving {
    by: Boot,
    /// Who waits to hear how much was left; nobody once that is said.
    done: Option<oneshot::Sender<usize>>,
}

impl Keeper {
    /// A keeper of an empty shelf.
    pub(super) fn new(
        shared: Arc<Shared>,
        (receiver, own_way): (mpsc::UnboundedReceiver<Request>, mpsc::WeakUnboundedSender<Request>),
        dice: Arc<dyn Dice>,
        told: mpsc::UnboundedSender<News>,
        pending: Option<PendingFile>,
    ) -> Self {
        Self {
            shelf: Shelf::default(),
            shared,
            receiver,
            own_way,
            waiting: HashMap::new(),
            topics: HashMap::new(),
            fetches: JoinSet::new(),
            revocations: Revocations::default(),
            attempts: JoinSet::new(),
            returning: HashMap::new(),
            advices: JoinSet::new(),
            told,
            pending,
            stow: None,
            leaving: None,
            unbound: Vec::new(),
            dice,
            next_waiter: 0,
            before: None,
            unkept: false,
            keep_at: Boot::from_nanos(0),
        }
    }

    /// What is live is left in `file` when the agent stops, and what was left there is taken up.
    #[must_use]
    pub fn stowing(self, file: StowFile) -> Self {
        Self { stow: Some(file), ..self }
    }

    /// Works until every [`super::Broker`] is gone.
    pub async fn run(mut self) {
        self.take_up();
        loop {
            self.shared.revoking.store(self.revocations.len(), Ordering::Relaxed);
            let now = self.shared.clock.boot();
            self.keep_pending(now);
            self.leave(now);
            for (id, revocation) in self.revocations.due(now) {
                let shared = Arc::clone(&self.shared);
                self.attempts.spawn(async move {
                    let tried = revocation.attempt(&shared).await;
                    (id, revocation, tried)
                });
            }
            let due = [self.shelf.next_due(), self.revocations.next_due()].into_iter().flatten().min();
            let due = due.into_iter().chain(self.unkept.then_some(self.keep_at)).chain(self.leave_by()).min();
            let nap = due.map_or(LONGEST_SLEEP, |due| due.since(now).min(LONGEST_SLEEP));
            let event = tokio::select! {
                request = self.receiver.recv() => match request {
                    None => {
                        self.keep_pending(self.keep_at.max(now));
                        return;
                    }
                    Some(request) => self.heard(request),
                },
                Some(fetched) = self.fetches.join_next() => match fetched {
                    Ok((order, books, issued)) => {
                        self.shared.look_out(&order, &issued);
                        let another_since = books.who(&order) != self.shared.books.load().who(&order);
                        self.before = another_since.then_some(books);
                        let chance = (fraction(&*self.dice), fraction(&*self.dice));
                        Some(Event::Fetched { order, issued: Box::new(issued), chance })
                    }
                    // The runtime is coming down.
                    Err(_) => return,
                },
                Some(tried) = self.attempts.join_next() => match tried {
                    Ok((id, revocation, result)) => {
                        self.tell_who_returned(revocation.credential.fingerprint, result.clone());
                        let chance = fraction(&*self.dice);
                        let over = self.revocations.tried(id, result, chance, self.shared.clock.boot());
                        self.over(over);
                        None
                    }
                    Err(_) => return,
                },
                Some(advised) = self.advices.join_next() => match advised {
                    Ok((order, credential, advice)) => advice.map(|advice| self.advised(order, credential, advice)),
                    Err(_) => return,
                },
                () = sleep(nap) => Some(Event::Tick),
            };
            if let Some(event) = event {
                let now = self.shared.clock.boot();
                let fetched = match &event {
                    Event::Fetched { order, .. } => Some(order.clone()),
                    _ => None,
                };
                let mut actions = self.shelf.on(event, now);
                // What is due by now is not left for the next nap.
                if self.shelf.next_due().is_some_and(|due| due <= now) {
                    actions.extend(self.shelf.on(Event::Tick, now));
                }
                let unheard = self.carry_out(actions);
                // Everybody who asked has gone: what the issuer made is on record all the same.
                if let (Some(order), Some((credential, facts))) = (fetched, unheard) {
                    // Nobody listens only when the agent ends.
                    let _ = self.told.send(News::Renewed(Renewed { order, result: Ok(credential), facts }));
                }
                self.revive();
                self.publish_report();
            }
        }
    }

    fn heard(&mut self, request: Request) -> Option<Event> {
        Some(match request {
            Request::Ask { order, min_ttl, deadline, answer } => {
                self.next_waiter += 1;
                self.waiting.insert(self.next_waiter, answer);
                Event::Asked { order, waiter: self.next_waiter, min_ttl, deadline }
            }
            Request::Keep { keeps, before } => {
                let now = self.shared.books.load_full();
                // Another issuer may go by that name now, to which what the one before made is nothing.
                let keeps = |order: &Order| keeps(order) && before.who(order) == now.who(order);
                // What the settings do not grant any more dies.
                self.end_unbound(|order| !keeps(order), Cause::Settings, Some(&before));
                let keep = self.shelf.orders().filter(|order| keeps(order)).cloned().collect();
                self.before = Some(before);
                Event::Kept { keep }
            }
            Request::Leave(done) => {
                let by = self.shared.clock.boot() + LEAVE_WITHIN;
                self.leaving = Some(Leaving { by, done: Some(done) });
                return None;
            }
            Request::Release(order, done) => {
                // Of what somebody else has taken off the shelf already, or has ended, nothing will be tried.
                let now = self.shared.clock.boot();
                let live = self.shared.live.load();
                if let Some(live) = live.get(&order).filter(|live| now < live.credential.window.until) {
                    self.returning.insert(live.credential.fingerprint, done);
                }
                Event::Released { order }
            }
            Request::Reject { order, rejected, deadline, answer } => {
                self.next_waiter += 1;
                self.waiting.insert(self.next_waiter, answer);
                Event::Rejected { order, credential: rejected, waiter: self.next_waiter, deadline }
            }
            Request::Retire { which, cause, done } => {
                let waited = self.end_unbound(|order| which.takes(order), cause, None);
                let count = self.shelf.count(&which) + waited;
                // Whoever asked may be gone again.
                let _ = done.send(count);
                Event::Retired { which, cause }
            }
            Request::Unclaimed(order, credential) => {
                self.revoke(order, credential, Cause::Unclaimed, None);
                return None;
            }
            Request::Tend(orders) => {
                let spread = APART * u32::try_from(orders.len()).unwrap_or(u32::MAX);
                let now = self.shared.clock.boot();
                let orders = orders.into_iter().map(|order| {
                    let after = spread.min(LONGEST_SPREAD).mul_f64(fraction(&*self.dice));
                    (order, now + after)
                });
                Event::Tended { orders: orders.collect() }
            }
            Request::Unwatch(order) => {
                self.topics.retain(|_, topic| topic.receiver_count() > 0);
                Event::Unwatched { order }
            }
            Request::Watch { order, topic } => {
                let live = self.shared.live.load().get(&order).cloned();
                let sender = self
                    .topics
                    .entry(order.clone())
                    .or_insert_with(|| watch::Sender::new(Topic { live, trouble: None }));
                // Whoever asked may be gone again; its drop says so.
                let _ = topic.send(sender.subscribe());
                Event::Watched { order }
            }
        })
    }

    /// What an issuer made for callers, if none of them is there any more to hear of it.
    fn carry_out(&mut self, actions: Vec<Action>) -> Option<(Arc<Credential>, IssueFacts)> {
        let (mut heard, mut unheard) = (false, None);
        let mut published: Option<HashMap<Order, Arc<Live>>> = None;
        // What the settings do not name any more is ended with what they named before.
        let before = self.before.take();
        for action in actions {
            match action {
                Action::Answer(waiter, answer) => {
                    let Some(waiting) = self.waiting.remove(&waiter) else { continue };
                    match waiting.send(answer) {
                        Ok(()) => heard = true,
                        // A caller that hung up needs no answer.
                        Err(Ok(Fetched { credential, source: Source::Issuer(facts) })) => {
                            unheard = Some((credential, facts));
                        }
                        Err(_) => {}
                    }
                }
                // What another agent will want, it fetches itself.
                Action::Fetch(_) if self.leaving.is_some() => {}
                Action::Fetch(order) => self.fetch(order),
                Action::Advise(order, credential) => {
                    let issuer = self.shared.books.load().issuers.get(&order.issuer).cloned();
                    self.advices.spawn(async move {
                        let advice = match issuer {
                            Some(issuer) => issuer.advice(&order, &credential).await,
                            None => None,
                        };
                        (order, credential, advice)
                    });
                }
                Action::Tell(renewed) => {
                    // Nobody listens only when the agent ends.
                    let _ = self.told.send(News::Renewed(*renewed));
                }
                Action::Publish(order, live) => {
                    let map = published.get_or_insert_with(|| self.shared.live.load().as_ref().clone());
                    match &live {
                        Some(live) => map.insert(order.clone(), Arc::clone(live)),
                        None => map.remove(&order),
                    };
                    if let Some(topic) = self.topics.get(&order) {
                        topic.send_if_modified(|now| {
                            let same = match (&now.live, &live) {
                                // Whoever has a lease need not be told that it goes on.
                                (Some(now), Some(live)) => {
                                    Arc::ptr_eq(&now.credential, &live.credential)
                                        || now.credential.goes_on_as(&live.credential)
                                }
                                (None, None) => true,
                                _ => false,
                            };
                            *now = Topic { live, trouble: None };
                            !same
                        });
                    }
                }
                Action::Revoke(order, credential, cause) => {
                    self.revoke(order, credential, cause, before.as_deref());
                }
                Action::Trouble(order, failure) => {
                    if let Some(topic) = self.topics.get(&order) {
                        topic.send_modify(|now| *now = Topic { live: None, trouble: Some(failure) });
                    }
                }
            }
        }
        if let Some(map) = published {
            self.shared.live.store(Arc::new(map));
        }
        unheard.filter(|_| !heard)
    }

    fn fetch(&mut self, order: Order) {
        // The keys of this moment: whichever come next, an order is placed with those that are right now.
        let now = Now::by(&*self.shared.clock);
        let books = self.shared.books.load();
        books.certificates.tend(&order.identity, now);
        let first = books.shown_by(&order).cloned();
        drop(books);
        let (shared, keeper) = (Arc::clone(&self.shared), self.own_way.clone());
        self.fetches.spawn(async move {
            if let Some(certificate) = first
                && let Err(error) = had(&shared, &keeper, certificate).await
            {
                let issued = Issued { result: Err(error), facts: IssueFacts::default() };
                return (order, shared.books.load_full(), issued);
            }
            let books = shared.books.load_full();
            let placed = shared.placed(&books, &order);
            let held = shared.live.load().get(&order).map(|live| Arc::clone(&live.credential));
            let issued = match placed {
                Ok((issuer, signers)) => issuer.issue(&order, &signers, held.as_deref()).await,
                Err(error) => Issued { result: Err(error), facts: IssueFacts::default() },
            };
            (order, books, issued)
        });
    }

    /// Where in the window an issuer named chance falls, on the clock that decides: at once, if that is past (ACM-04).
    fn advised(&self, order: Order, credential: Arc<Credential>, advice: Advice) -> Event {
        let (now, wall) = (self.shared.clock.boot(), self.shared.clock.wall());
        let window = advice.window.map(|(start, end)| (start.as_second(), end.as_second()));
        let ahead = advice.window.map(|(start, end)| {
            let length = Duration::try_from(end.duration_since(start)).unwrap_or_default();
            let drawn = length.mul_f64(fraction(&*self.dice));
            let until_start = start.duration_since(wall);
            match Duration::try_from(until_start) {
                Ok(until_start) => until_start + drawn,
                Err(_) => drawn.saturating_sub(until_start.unsigned_abs()),
            }
        });
        let renew_at = now + ahead.unwrap_or_default();
        Event::Advised { order, credential, window, renew_at, again: Some(now + advice.again) }
    }

    /// At the issuer that `books` have, or those of now.
    fn revoke(&mut self, order: Order, credential: Arc<Credential>, cause: Cause, books: Option<&Books>) {
        let of_now = self.shared.books.load_full();
        let books = books.unwrap_or(&of_now);
        let (placed, who) = (self.shared.placed(books, &order), books.who(&order).to_owned());
        self.revoke_at(placed, who, order, credential, cause);
    }

    fn revoke_at(
        &mut self,
        placed: Result<Placed, IssueError>,
        who: String,
        order: Order,
        credential: Arc<Credential>,
        cause: Cause,
    ) {
        // Before another is fetched: whatever its issuer comes to say, it is not handed out again.
        forget(&order, &credential, self.shared.books.load().keys.vault());
        // Nothing of it is at its issuer, as of an entry that was only read: to drop it is all.
        if credential.handle().is_empty() {
            let is_static = matches!(credential.payload, Payload::Static(_));
            let ended = if is_static { Err(sealed::not_ours_to_end()) } else { Ok(()) };
            return self.tell_who_returned(credential.fingerprint, ended);
        }
        let (now, fingerprint) = (self.shared.clock.boot(), credential.fingerprint);
        let revocation = Revocation { order, credential, cause, placed, who, since: now };
        let over = self.revocations.add(revocation, now);
        if let Some(Revoked { credential, error: Some(error), .. }) = &over
            && credential.fingerprint == fingerprint
        {
            let (reason, detail) = (Reason::IssuerUnavailable, error.clone());
            self.tell_who_returned(fingerprint, Err(IssueError::Retry { reason, detail, after: None }));
        }
        self.over(over);
    }

    /// Whoever gave it back hears what came of that; whoever hung up meanwhile, of the record only.
    fn tell_who_returned(&mut self, credential: Fingerprint, tried: Result<(), IssueError>) {
        if let Some(waiting) = self.returning.remove(&credential) {
            let _ = waiting.send(tried);
        }
    }

    /// Tells what became of a credential that had to die.
    fn over(&mut self, over: Option<Revoked>) {
        if let Some(over) = over {
            // Nobody listens only when the agent ends.
            let _ = self.told.send(News::Revoked(over));
        }
        self.unkept = true;
    }

    /// When what is under way is given up.
    fn leave_by(&self) -> Option<Boot> {
        self.leaving.as_ref().filter(|leaving| leaving.done.is_some()).map(|leaving| leaving.by)
    }

    /// Leaves what is live for the next start, if the agent stops and nothing more is to come.
    fn leave(&mut self, now: Boot) {
        let under_way = self.fetches.len();
        let Some(leaving) = self.leaving.as_mut().filter(|leaving| under_way == 0 || leaving.by <= now)
        else {
            return;
        };
        let Some(done) = leaving.done.take() else { return };
        if under_way > 0 {
            tracing::warn!(under_way, "issuers are silent: what they may still make ends by itself");
        }
        let books = self.shared.books.load();
        let unbound = std::mem::take(&mut self.unbound);
        let left = self.stow.as_ref().map(|stow| stow.leave(self.shelf.held(), unbound, &books, now));
        // Whoever asked waits for it to end; how many there are is for the log.
        let _ = done.send(left.unwrap_or_default());
    }

    /// Before anything is tried: what is tried in vain when the agent is killed is tried again. Where many wait, or nothing can
    /// be written, not more than once a second: callers have the same thread.
    fn keep_pending(&mut self, now: Boot) {
        if !self.unkept || now < self.keep_at {
            return;
        }
        let all = self.revocations.all();
        let few = all.len() <= FEW;
        let kept = self.pending.as_ref().is_none_or(|pending| pending.keep(all));
        self.unkept = !kept;
        self.keep_at = if kept && few { now } else { now + KEEP_AGAIN };
    }

    /// What an agent before this one left, and what it could not finish.
    fn take_up(&mut self) {
        let (left, books) = (self.stow.as_ref().map(StowFile::take), self.shared.books.load_full());
        // Another issuer goes by that name now. It is not even told that there was something to revoke: that would be to tell it a secret.
        let is_known = |left: &StowedLive| {
            !books.who.contains_key(&left.order.issuer) || books.who(&left.order) == left.who
        };
        let (known, strange): (Vec<_>, Vec<_>) = left.unwrap_or_default().into_iter().partition(is_known);
        for StowedLive { order, .. } in &strange {
            tracing::warn!(
                identity = %order.identity, credential = %order.credential, issuer = %order.issuer,
                "what was live before is of another issuer of that name: it is fetched anew, and the old one ends by itself"
            );
        }
        self.unbound = known;
        self.revive();
        self.publish_report();
        self.take_up_pending();
    }

    /// Makes live again what was left before, as far as what it is bound to is there.
    fn revive(&mut self) {
        let (now, wall) = (self.shared.clock.boot(), self.shared.clock.wall());
        for left in std::mem::take(&mut self.unbound) {
            let order = &left.order;
            let placed = self.shared.placed(&self.shared.books.load(), order);
            match placed.map(|(_, signers)| left.revived(&signers, now, wall)) {
                Ok(Found::Live(live)) => {
                    // Nobody listens only when the agent ends.
                    let _ = self.told.send(News::TakenUp(order.clone(), live.still_held(now)));
                    let actions = self.shelf.on(Event::TakenUp { order: order.clone(), live }, now);
                    let _ = self.carry_out(actions); // nothing was fetched
                }
                Ok(Found::Unbound) => self.unbound.push(left),
                // What the settings do not place any more is ended when they are held against it.
                Err(_) => self.unbound.push(left),
                Ok(Found::Over) => tracing::debug!(
                    identity = %order.identity, credential = %order.credential,
                    "what was live before has ended, or its key is gone"
                ),
            }
        }
    }

    /// Of what was left and is not live again, that which `dies` has to: otherwise it would come back with its certificate. For how
    /// many orders that was.
    fn end_unbound(&mut self, dies: impl Fn(&Order) -> bool, cause: Cause, books: Option<&Books>) -> usize {
        let (now, wall) = (self.shared.clock.boot(), self.shared.clock.wall());
        let dropped: Vec<_> = self.unbound.extract_if(.., |left| dies(&left.order)).collect();
        for left in &dropped {
            for credential in left.to_revoke(now, wall) {
                self.revoke(left.order.clone(), Arc::new(credential), cause, books);
            }
        }
        dropped.len()
    }

    /// What an agent before this one could not finish.
    fn take_up_pending(&mut self) {
        let left = self.pending.as_ref().map(|pending| pending.left_behind(&*self.shared.clock));
        let books = self.shared.books.load_full();
        for Left { who, order, credential, cause } in left.unwrap_or_default() {
            let placed = if books.who(&order) == who {
                self.shared.placed(&books, &order)
            } else {
                // It is not even told that there was something to revoke: that would be to tell it a secret.
                let detail = "another issuer goes by that name now; at the one that made it, revoke by hand";
                Err(IssueError::Refused { reason: Reason::IssuerConfig, detail: detail.into() })
            };
            self.revoke_at(placed, who, order, Arc::new(credential), cause);
        }
    }

    fn publish_report(&self) {
        let shelf = self
            .shelf
            .entries()
            .map(|(order, live, error)| Shelved {
                order: order.clone(),
                credential: live.map(|live| Arc::clone(&live.credential)),
                refresh_at: live.map(|live| live.refresh_at),
                last_error: error.map(str::to_owned),
            })
            .collect();
        let report = Report { shelf, issuers: self.shelf.issuers().clone() };
        *self.shared.report.write().unwrap_or_else(PoisonError::into_inner) = report;
    }
}

/// Destroys what is kept for the next start of a credential that has to die before its time (X5-07).
fn forget(order: &Order, credential: &Credential, vault: &Vault) {
    let leaf = credential.certificate().and_then(|certificate| certificate.chain().first());
    let (Some(path), Some(leaf)) = (order.kept_at(), leaf) else { return };
    let file = PairFile::new(path, vault, &order.identity, &order.credential);
    if let Err(error) = file.forget(leaf) {
        tracing::error!(%error, path = %path.display(), "a certificate that is revoked is still kept: take its file away");
    }
}

/// Sees to it that the certificate of `order` is on the shelf, which another order has to show.
async fn had(
    shared: &Shared,
    keeper: &mpsc::WeakUnboundedSender<Request>,
    order: Order,
) -> Result<(), IssueError> {
    let now = shared.clock.boot();
    if shared.live.load().get(&order).is_some_and(|live| now < live.serve_until) {
        return Ok(());
    }
    let closing = || IssueError::Retry {
        reason: Reason::KeyUnavailable,
        detail: "the agent is shutting down".into(),
        after: None,
    };
    let keeper = keeper.upgrade().ok_or_else(closing)?;
    let name = Arc::clone(&order.credential);
    match ask(&keeper, order, Duration::ZERO, now + CERTIFICATE_PATIENCE).await {
        Ok(_) => Ok(()),
        // Its issuer's trouble, not that of the issuer which is not even asked.
        Err(Failure::Issue { error, retry_after, .. }) => Err(IssueError::Later {
            reason: error.reason(),
            detail: format!("the certificate to show, credential {name}, cannot be had: {error}"),
            after: retry_after.unwrap_or(Duration::ZERO),
        }),
        Err(_) => Err(closing()),
    }
}

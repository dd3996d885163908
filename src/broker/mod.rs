//! The shelf and who fills it. In goes a [`Grant`]; out comes a credential: from the shelf at once, or from the issuer,
//! asked once however many wait. One task owns the shelf; a live credential is read without troubling it.

mod pending;
mod revocations;
mod rotor;
mod shelf;
mod timing;

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
    time::sleep,
};

pub use pending::PendingFile;
pub use revocations::{Cause, Revoked};
use revocations::{Placed, Revocation, Revocations};
pub use rotor::{Rotor, Turn, Turned};
use shelf::{Action, Event, Shelf, WaiterId};
pub use shelf::{Failure, Fetched, Health, Live, Source, Which};

use crate::{
    clock::{Boot, Clock, Dice, fraction},
    credential::Credential,
    issuer::{IssueError, IssueFacts, Issued, Issuer, Order, Reason, Scope, Signers},
    jose::Signer,
    keys::{Certificates, Keyring, Purpose},
    policy::{CredentialRule, Grant},
    proof::Target,
    secret::Fingerprint,
};

/// A sleep is never longer: after a suspend the time since boot has jumped, and only a look at it tells.
const LONGEST_SLEEP: Duration = Duration::from_secs(10);

/// Issuers and keys, as the settings in force have them.
#[derive(Clone, Debug, Default)]
pub struct Books {
    /// By name.
    pub issuers: HashMap<Arc<str>, Arc<dyn Issuer>>,
    /// By identity.
    pub keys: Keyring,
    /// By identity.
    pub certificates: Certificates,
}

impl Books {
    fn order(&self, grant: &Grant) -> Result<Order, Failure> {
        let order = self.order_for(grant.identity(), grant.rule(), Arc::clone(grant.scope()))?;
        Ok(Order { instance: grant.instance(), ..order })
    }

    /// The order that `identity` places for a credential that its processes share.
    ///
    /// # Errors
    /// [`Failure::Issue`] if the issuer is not there.
    pub fn order_for(
        &self,
        identity: &Arc<str>,
        rule: &CredentialRule,
        scope: Scope,
    ) -> Result<Order, Failure> {
        if !self.issuers.contains_key(&rule.issuer) {
            return Err(missing(identity, "issuer"));
        }
        Ok(Order {
            instance: None,
            max_uses: rule.max_uses,
            identity: Arc::clone(identity),
            credential: Arc::clone(&rule.name),
            issuer: Arc::clone(&rule.issuer),
            client_id: Arc::clone(&rule.client_id),
            resource: rule.resource.clone(),
            scope,
            require_aud: rule.require_aud,
            max_ttl: rule.max_ttl,
            binding: rule.binding,
            terms: Arc::clone(&rule.terms),
        })
    }

    /// The issuer that `order` is for, and the keys to place it with at `now`.
    fn placed(&self, order: &Order, now: Timestamp) -> Result<Placed, IssueError> {
        let issuer = self.issuers.get(&order.issuer).ok_or_else(|| absent(&order.identity, "issuer"))?;
        let key = |purpose| self.keys.signer(&order.identity, purpose);
        let client = key(Purpose::ClientAuth);
        if client.is_none() && order.terms.client_auth.needs_key() {
            return Err(absent(&order.identity, "key"));
        }
        let dpop = key(Purpose::Dpop(Arc::clone(&order.issuer)));
        let certificates = self.certificates.of(&order.identity, now);
        let before = self.keys.before(&order.identity);
        Ok((Arc::clone(issuer), Signers { client, before, dpop, certificates }))
    }
}

/// A broker and the task that works for it. Nothing runs until [`Keeper::run`] does. What becomes of credentials that are
/// revoked before their time is told to `told`; those that still wait at the end are kept in `pending`.
pub fn new(
    books: Books,
    clock: Arc<dyn Clock>,
    dice: Arc<dyn Dice>,
    told: mpsc::UnboundedSender<Revoked>,
    pending: Option<PendingFile>,
) -> (Broker, Keeper) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let shared = Arc::new(Shared {
        live: ArcSwap::default(),
        books: ArcSwap::from_pointee(books),
        report: RwLock::default(),
        clock,
    });
    let keeper = Keeper {
        shelf: Shelf::default(),
        shared: Arc::clone(&shared),
        receiver,
        waiting: HashMap::new(),
        topics: HashMap::new(),
        fetches: JoinSet::new(),
        revocations: Revocations::default(),
        attempts: JoinSet::new(),
        told,
        pending,
        dice,
        next_waiter: 0,
        before: None,
        unkept: false,
    };
    (Broker { shared, sender }, keeper)
}

/// A way to credentials. Cheap to clone; the keeper ends when the last one is gone.
#[derive(Clone, Debug)]
pub struct Broker {
    shared: Arc<Shared>,
    sender: mpsc::UnboundedSender<Request>,
}

#[derive(Debug)]
struct Shared {
    live: ArcSwap<HashMap<Order, Arc<Live>>>,
    books: ArcSwap<Books>,
    report: RwLock<Report>,
    clock: Arc<dyn Clock>,
}

/// What the broker has and how its issuers are, for status.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// What is on the shelf.
    pub shelf: Vec<Shelved>,
    /// How the issuers are, by name; one that was never asked is not there.
    pub issuers: HashMap<Arc<str>, Health>,
}

/// One order on the shelf.
#[derive(Clone, Debug)]
pub struct Shelved {
    /// What was ordered.
    pub order: Order,
    /// What is live under it.
    pub credential: Option<Arc<Credential>>,
    /// When it is refreshed.
    pub refresh_at: Option<Boot>,
    /// The last trouble with it.
    pub last_error: Option<String>,
}

enum Request {
    Ask { order: Order, min_ttl: Duration, deadline: Boot, answer: oneshot::Sender<Result<Fetched, Failure>> },
    Keep { keep: HashSet<Order>, before: Arc<Books> },
    Release(Order),
    Retire { which: Which, cause: Cause, done: oneshot::Sender<usize> },
    Revoke(Order, Arc<Credential>, Cause),
    Unwatch(Order),
    Watch { order: Order, topic: oneshot::Sender<watch::Receiver<Topic>> },
}

/// What those who listen hear.
#[derive(Clone, Debug, Default)]
struct Topic {
    live: Option<Arc<Live>>,
    trouble: Option<Failure>,
}

impl Broker {
    /// The credential of `grant`, with at least `min_ttl` of life. Waits for an issuer no longer than `patience`.
    ///
    /// # Errors
    /// [`Failure`] with what to do next.
    pub async fn fetch(
        &self,
        grant: &Grant,
        min_ttl: Duration,
        patience: Duration,
    ) -> Result<Fetched, Failure> {
        let order = self.shared.books.load().order(grant)?;
        self.fetch_order(order, min_ttl, patience).await
    }

    async fn fetch_order(
        &self,
        order: Order,
        min_ttl: Duration,
        patience: Duration,
    ) -> Result<Fetched, Failure> {
        let now = self.shared.clock.boot();
        if let Some(live) = self.shared.live.load().get(&order)
            && now < live.serve_until
            && live.credential.window.left(now) >= min_ttl
            && live.take_use()
        {
            return Ok(Fetched { credential: Arc::clone(&live.credential), source: Source::Cache });
        }
        let (answer, answered) = oneshot::channel();
        let request = Request::Ask { order, min_ttl, deadline: now + patience, answer };
        self.sender.send(request).map_err(|_| Failure::Closed)?;
        answered.await.map_err(|_| Failure::Closed)?
    }

    /// Listens for rotations of the credential of `grant`; as long as somebody does, it is kept fresh.
    ///
    /// # Errors
    /// [`Failure`] if the issuer or key is not there, or the broker has ended.
    pub async fn watch(&self, grant: &Grant) -> Result<Subscription, Failure> {
        self.watch_order(self.shared.books.load().order(grant)?).await
    }

    async fn watch_order(&self, order: Order) -> Result<Subscription, Failure> {
        let (topic, given) = oneshot::channel();
        self.sender.send(Request::Watch { order: order.clone(), topic }).map_err(|_| Failure::Closed)?;
        let topic = given.await.map_err(|_| Failure::Closed)?;
        Ok(Subscription { topic, order, sender: self.sender.clone() })
    }

    /// Takes the credential of `grant` off the shelf and revokes it at its issuer. False if there was none.
    ///
    /// # Errors
    /// [`Failure`] if the issuer did not confirm; it is off the shelf all the same.
    pub async fn release(&self, grant: &Grant) -> Result<bool, Failure> {
        let books = self.shared.books.load_full();
        let order = books.order(grant)?;
        let Some(live) = self.shared.live.load().get(&order).cloned() else { return Ok(false) };
        self.sender.send(Request::Release(order.clone())).map_err(|_| Failure::Closed)?;
        let failed =
            |error| Failure::Issue { error, retry_after: None, attempts: 1, facts: IssueFacts::default() };
        let (issuer, signers) = books.placed(&order, self.shared.clock.wall()).map_err(failed)?;
        match issuer.revoke(&order, &signers, &live.credential).await {
            Ok(()) => Ok(true),
            Err(error) => {
                // It is tried again until it ends; the keeper is gone only when the agent is.
                let credential = Arc::clone(&live.credential);
                let _ = self.sender.send(Request::Revoke(order, credential, Cause::GivenBack));
                Err(failed(error))
            }
        }
    }

    /// Ends these credentials now: they are handed out no more, and revoked. How many there were. Whoever listens and is still
    /// entitled gets another.
    ///
    /// # Errors
    /// [`Failure::Closed`] if the broker has ended.
    pub async fn retire(&self, which: Which, cause: Cause) -> Result<usize, Failure> {
        let (done, given) = oneshot::channel();
        self.sender.send(Request::Retire { which, cause, done }).map_err(|_| Failure::Closed)?;
        given.await.map_err(|_| Failure::Closed)
    }

    /// The credential of `grant` that a caller holds, by its fingerprint and whatever its scope: one on the shelf, or one
    /// before it, until it ends; where processes have their own, its own. Proofs are made for these only (DPOP-18).
    pub fn held(&self, grant: &Grant, fingerprint: Fingerprint) -> Option<Arc<Credential>> {
        let now = self.shared.clock.boot();
        let fits = |held: &&Arc<Credential>| held.fingerprint == fingerprint && now < held.window.until;
        let live = self.shared.live.load();
        let theirs = live.iter().filter(|(order, _)| {
            order.identity == *grant.identity()
                && order.credential == grant.rule().name
                && order.instance == grant.instance()
        });
        theirs.flat_map(|(_, live)| std::iter::once(&live.credential).chain(&live.before)).find(fits).cloned()
    }

    /// Whether `target` is an endpoint of any issuer in the settings (DPOP-20).
    pub fn is_issuers(&self, target: &Target) -> bool {
        self.shared.books.load().issuers.values().any(|issuer| issuer.owns(target))
    }

    /// From now on, these issuers and keys. What `keep` does not name is taken off the shelf.
    pub fn replace(&self, books: Books, keep: HashSet<Order>) {
        let before = self.shared.books.swap(Arc::new(books));
        // The keeper is gone only when the agent is.
        let _ = self.sender.send(Request::Keep { keep, before });
    }

    /// From now on, orders are placed with these keys. What is live stays.
    pub fn rekey(&self, keys: Keyring) {
        self.shared.books.rcu(|books| Books { keys: keys.clone(), ..Books::clone(books) });
    }

    /// Whether the issuer of `rule` takes `next` as the key of `identity`: it is asked for a credential, which is given back.
    ///
    /// # Errors
    /// What the issuer said instead.
    async fn try_key(
        &self,
        identity: &Arc<str>,
        rule: &CredentialRule,
        next: &Arc<dyn Signer>,
    ) -> Result<(), IssueError> {
        let books = self.shared.books.load_full();
        let order = match books.order_for(identity, rule, Arc::clone(&rule.scope)) {
            Ok(order) => order,
            Err(Failure::Issue { error, .. }) => return Err(error),
            Err(_) => return Err(absent(identity, "issuer")),
        };
        let (issuer, signers) = books.placed(&order, self.shared.clock.wall())?;
        let signers = Signers { client: Some(Arc::clone(next)), before: None, ..signers };
        let credential = issuer.issue(&order, &signers).await.result?;
        let _ = self.sender.send(Request::Revoke(order, Arc::new(credential), Cause::Unclaimed));
        Ok(())
    }

    /// How things are.
    pub fn report(&self) -> Report {
        self.shared.report.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What is live for any identity right now, for readiness: name of issuer and whether it can still be served.
    pub fn live_count(&self) -> usize {
        let now = self.shared.clock.boot();
        self.shared.live.load().values().filter(|live| now < live.serve_until).count()
    }
}

/// One who listens.
#[derive(Debug)]
pub struct Subscription {
    topic: watch::Receiver<Topic>,
    order: Order,
    sender: mpsc::UnboundedSender<Request>,
}

impl Subscription {
    /// Waits until the credential has been replaced, or cannot be had any more.
    ///
    /// # Errors
    /// [`Failure`] when waiting longer is of no use.
    pub async fn changed(&mut self) -> Result<(), Failure> {
        loop {
            self.topic.changed().await.map_err(|_| Failure::Closed)?;
            let topic = self.topic.borrow_and_update();
            match (&topic.live, &topic.trouble) {
                (Some(_), _) => return Ok(()),
                (None, Some(trouble)) => return Err(trouble.clone()),
                // It lapsed; the keeper is at work to replace it.
                (None, None) => {}
            }
        }
    }

    /// Forgets what came until now: only what comes from now on counts as changed.
    pub fn catch_up(&mut self) {
        self.topic.mark_unchanged();
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let _ = self.sender.send(Request::Unwatch(self.order.clone()));
    }
}

/// The task that owns the shelf.
#[derive(Debug)]
pub struct Keeper {
    shelf: Shelf,
    shared: Arc<Shared>,
    receiver: mpsc::UnboundedReceiver<Request>,
    waiting: HashMap<WaiterId, oneshot::Sender<Result<Fetched, Failure>>>,
    topics: HashMap<Order, watch::Sender<Topic>>,
    fetches: JoinSet<(Order, Issued)>,
    revocations: Revocations,
    attempts: JoinSet<(u64, Result<(), IssueError>)>,
    told: mpsc::UnboundedSender<Revoked>,
    pending: Option<PendingFile>,
    dice: Arc<dyn Dice>,
    next_waiter: WaiterId,
    /// The settings before a reload, for as long as it is carried out.
    before: Option<Arc<Books>>,
    /// Whether revocations came or went since they were kept for the next start.
    unkept: bool,
}

impl Keeper {
    /// Works until every [`Broker`] is gone.
    pub async fn run(mut self) {
        self.take_up();
        loop {
            let now = self.shared.clock.boot();
            self.keep_pending();
            for (id, revocation) in self.revocations.due(now) {
                self.attempts.spawn(async move { (id, revocation.attempt().await) });
            }
            let due = [self.shelf.next_due(), self.revocations.next_due()].into_iter().flatten().min();
            let nap = due.map_or(LONGEST_SLEEP, |due| due.since(now).min(LONGEST_SLEEP));
            let event = tokio::select! {
                request = self.receiver.recv() => match request {
                    None => return,
                    Some(request) => self.heard(request),
                },
                Some(fetched) = self.fetches.join_next() => match fetched {
                    Ok((order, issued)) => {
                        let chance = (fraction(&*self.dice), fraction(&*self.dice));
                        Some(Event::Fetched { order, issued: Box::new(issued), chance })
                    }
                    // The runtime is coming down.
                    Err(_) => return,
                },
                Some(tried) = self.attempts.join_next() => match tried {
                    Ok((id, result)) => {
                        let chance = fraction(&*self.dice);
                        let over = self.revocations.tried(id, result, chance, self.shared.clock.boot());
                        self.over(over);
                        None
                    }
                    Err(_) => return,
                },
                () = sleep(nap) => Some(Event::Tick),
            };
            if let Some(event) = event {
                let now = self.shared.clock.boot();
                let mut actions = self.shelf.on(event, now);
                // What is due by now is not left for the next nap.
                if self.shelf.next_due().is_some_and(|due| due <= now) {
                    actions.extend(self.shelf.on(Event::Tick, now));
                }
                self.carry_out(actions);
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
            Request::Keep { keep, before } => {
                self.before = Some(before);
                Event::Kept { keep }
            }
            Request::Release(order) => Event::Released { order },
            Request::Retire { which, cause, done } => {
                let count = self.shelf.count(&which);
                // Whoever asked may be gone again.
                let _ = done.send(count);
                Event::Retired { which, cause }
            }
            Request::Revoke(order, credential, cause) => {
                self.revoke(order, credential, cause, None);
                return None;
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

    fn carry_out(&mut self, actions: Vec<Action>) {
        let mut published: Option<HashMap<Order, Arc<Live>>> = None;
        // What the settings do not name any more is ended with what they named before.
        let before = self.before.take();
        for action in actions {
            match action {
                Action::Answer(waiter, answer) => {
                    if let Some(waiting) = self.waiting.remove(&waiter) {
                        // A caller that hung up needs no answer.
                        let _ = waiting.send(answer);
                    }
                }
                Action::Fetch(order) => self.fetch(order),
                Action::Publish(order, live) => {
                    let map = published.get_or_insert_with(|| self.shared.live.load().as_ref().clone());
                    match &live {
                        Some(live) => map.insert(order.clone(), Arc::clone(live)),
                        None => map.remove(&order),
                    };
                    if let Some(topic) = self.topics.get(&order) {
                        topic.send_if_modified(|now| {
                            let same = match (&now.live, &live) {
                                (Some(now), Some(live)) => Arc::ptr_eq(&now.credential, &live.credential),
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
    }

    fn fetch(&mut self, order: Order) {
        // The keys of this moment: whichever come next, an order is placed with those that are right now.
        let placed = self.shared.books.load().placed(&order, self.shared.clock.wall());
        self.fetches.spawn(async move {
            let issued = match placed {
                Ok((issuer, signers)) => issuer.issue(&order, &signers).await,
                Err(error) => Issued { result: Err(error), facts: IssueFacts::default() },
            };
            (order, issued)
        });
    }

    fn revoke(&mut self, order: Order, credential: Arc<Credential>, cause: Cause, books: Option<&Books>) {
        let (now, wall) = (self.shared.clock.boot(), self.shared.clock.wall());
        let placed = match books {
            Some(books) => books.placed(&order, wall),
            None => self.shared.books.load().placed(&order, wall),
        };
        let over = self.revocations.add(Revocation { order, credential, cause, placed, since: now }, now);
        self.over(over);
    }

    /// Tells what became of a credential that had to die.
    fn over(&mut self, over: Option<Revoked>) {
        if let Some(over) = over {
            // Nobody listens only when the agent ends.
            let _ = self.told.send(over);
        }
        self.unkept = true;
    }

    /// Before anything is tried: what is tried in vain when the agent is killed is tried again.
    fn keep_pending(&mut self) {
        if std::mem::take(&mut self.unkept)
            && let Some(pending) = &self.pending
        {
            pending.keep(self.revocations.all());
        }
    }

    /// What an agent before this one could not finish.
    fn take_up(&mut self) {
        let left = self.pending.as_ref().map(|pending| pending.left_behind(&*self.shared.clock));
        for (order, credential, cause) in left.unwrap_or_default() {
            self.revoke(order, Arc::new(credential), cause, None);
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

fn missing(identity: &str, what: &str) -> Failure {
    let error = absent(identity, what);
    Failure::Issue { error, retry_after: None, attempts: 0, facts: IssueFacts::default() }
}

fn absent(identity: &str, what: &str) -> IssueError {
    IssueError::Misconfigured {
        reason: Reason::IssuerConfig,
        detail: format!("the {what} of identity {identity} is not there: reload the settings"),
    }
}

#[cfg(test)]
mod tests;

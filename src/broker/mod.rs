//! The shelf and who fills it. In goes a [`Grant`]; out comes a credential: from the shelf at once, or from the issuer,
//! asked once however many wait. One task owns the shelf; a live credential is read without troubling it.

mod keeper;
mod pending;
mod registrar;
mod revocations;
mod rotor;
mod shelf;
mod stowed;
mod timing;

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use tokio::sync::{Notify, mpsc, oneshot, watch};

pub use keeper::Keeper;
pub use pending::PendingFile;
pub use registrar::{Registrar, RegistrationSettings, Rights};
use revocations::Placed;
pub use revocations::{Cause, Revoked};
pub use rotor::{Rotor, Turn, Turned};
pub use shelf::{Failure, Fetched, Health, Live, Source, Which};
pub use stowed::StowFile;

use crate::{
    clock::{Boot, Clock, Dice},
    credential::Credential,
    issuer::{IssueError, IssueFacts, Issued, Issuer, Order, Reason, Scope, Signers},
    jose::Signer,
    keys::{Certificates, ClientCertificate, Ending, Keyring, Place, Purpose},
    policy::{CredentialRule, Grant},
    proof::Target,
    secret::Fingerprint,
};

/// Issuers and keys, as the settings in force have them.
#[derive(Clone, Debug, Default)]
pub struct Books {
    /// By name.
    pub issuers: HashMap<Arc<str>, Arc<dyn Issuer>>,
    /// By identity.
    pub keys: Keyring,
    /// By identity.
    pub certificates: Certificates,
    /// Those whose certificate a CA makes: the order for it, by identity. It is shown wherever the identity shows one, but where
    /// it is ordered itself.
    pub shown: HashMap<Arc<str>, Order>,
    /// The registrations that are kept true.
    pub registrations: Vec<Arc<RegistrationSettings>>,
    /// Who each issuer is, by name: a name can be given to another, and what the one before made is nothing to that.
    pub who: HashMap<Arc<str>, String>,
}

/// What is live, by order.
type Shelves = HashMap<Order, Arc<Live>>;

impl Books {
    /// Who the issuer of `order` is.
    fn who(&self, order: &Order) -> &str {
        self.who.get(&order.issuer).map_or("", String::as_str)
    }

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

    /// The order for the certificate that `order` has to show, if a CA makes it.
    fn shown_by(&self, order: &Order) -> Option<&Order> {
        // By name: for a trial, or when it is taken up after a restart, the same is ordered on other terms.
        let shown = self.shown.get(&order.identity)?;
        (order.shows_certificate() && shown.credential != order.credential).then_some(shown)
    }

    /// The issuer that `order` is for, and the keys to place it with at `now`: a certificate from a CA is what is `live` of it.
    fn placed(&self, order: &Order, now: Timestamp, live: &Shelves) -> Result<Placed, IssueError> {
        let issuer = self.issuers.get(&order.issuer).ok_or_else(|| absent(&order.identity, "issuer"))?;
        let key = |purpose| self.keys.signer(&order.identity, purpose);
        let client = key(Purpose::ClientAuth);
        if client.is_none() && order.terms.client_auth.needs_key() {
            return Err(absent(&order.identity, "key"));
        }
        let dpop = key(Purpose::Dpop(Arc::clone(&order.issuer)));
        let certificates = match self.shown_by(order) {
            Some(shown) => live.get(shown).map(|live| live.certificates(now)).unwrap_or_default(),
            None => self.certificates.of(&order.identity, now),
        };
        let before = self.keys.before(&order.identity);
        Ok((Arc::clone(issuer), Signers { client, before, dpop, certificates }))
    }
}

/// What happened that no caller is answered with.
#[derive(Clone, Debug)]
pub enum News {
    /// A credential that had to die before its time has, or has not.
    Revoked(Revoked),
    /// An issuer was asked for nobody in particular.
    Renewed(Renewed),
    /// What an agent before this one left is live again: callers may hold these.
    TakenUp(Order, Vec<Arc<Credential>>),
}

/// What came of asking an issuer so that a credential stays fresh.
#[derive(Clone, Debug)]
pub struct Renewed {
    /// What was ordered.
    pub order: Order,
    /// What is live now, or why the one before goes on, if there is one.
    pub result: Result<Arc<Credential>, IssueError>,
    /// How it went.
    pub facts: IssueFacts,
}

/// A broker and the task that works for it. Nothing runs until [`Keeper::run`] does. What happens that no caller is answered
/// with is told to `told`; revocations that still wait at the end are kept in `pending`.
pub fn new(
    books: Books,
    clock: Arc<dyn Clock>,
    dice: Arc<dyn Dice>,
    told: mpsc::UnboundedSender<News>,
    pending: Option<PendingFile>,
) -> (Broker, Keeper) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let own_way = sender.downgrade();
    let shared = Arc::new(Shared {
        live: ArcSwap::default(),
        books: ArcSwap::from_pointee(books),
        remembered: ArcSwap::default(),
        report: RwLock::default(),
        reused: Mutex::default(),
        heard_of_reuse: Notify::new(),
        revoking: AtomicUsize::new(0),
        clock,
    });
    let keeper = Keeper::new(Arc::clone(&shared), (receiver, own_way), dice, told, pending);
    (Broker { shared, sender }, keeper)
}

/// A way to credentials. Cheap to clone; the keeper ends when the last one is gone.
#[derive(Clone, Debug)]
pub struct Broker {
    shared: Arc<Shared>,
    sender: mpsc::UnboundedSender<Request>,
}

/// So many that nobody has heard of yet wait; an issuer that says so at every asking adds nothing with more.
const MOST_REUSED: usize = 64;

/// An issuer says that it has seen a one-time value of ours before (ER-10).
#[derive(Clone, Debug)]
pub struct Reused {
    /// What was ordered.
    pub order: Order,
    /// Whether it was issued all the same, to a value drawn anew.
    pub was_issued: bool,
    /// How the asking went.
    pub facts: IssueFacts,
}

impl Shared {
    /// Tells of it, if `issued` says that it was so.
    fn look_out(&self, order: &Order, issued: &Issued) {
        if issued.facts.one_time_reuse {
            let (was_issued, facts) = (issued.result.is_ok(), issued.facts.clone());
            let mut reused = self.reused.lock().unwrap_or_else(PoisonError::into_inner);
            // Whoever hears of it has enough to hear already.
            if reused.len() < MOST_REUSED {
                reused.push_back(Reused { order: order.clone(), was_issued, facts });
            }
            self.heard_of_reuse.notify_one();
        }
    }
}

#[derive(Debug)]
struct Shared {
    live: ArcSwap<Shelves>,
    books: ArcSwap<Books>,
    /// What issuers told of their endpoints before the settings were read again: those of now may not have been asked yet.
    remembered: ArcSwap<HashMap<Arc<str>, Arc<Vec<Target>>>>,
    report: RwLock<Report>,
    reused: Mutex<VecDeque<Reused>>,
    heard_of_reuse: Notify,
    /// How many revocations wait.
    revoking: AtomicUsize,
    clock: Arc<dyn Clock>,
}

impl Shared {
    fn placed(&self, books: &Books, order: &Order) -> Result<Placed, IssueError> {
        books.placed(order, self.clock.wall(), &self.live.load())
    }
}

/// What the broker has and how its issuers are, for status.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// What is on the shelf.
    pub shelf: Vec<Shelved>,
    /// How the issuers are, by name; one that was never asked is not there.
    pub issuers: HashMap<Arc<str>, Health>,
}

impl Report {
    /// When the certificates on the shelf end.
    pub fn endings(&self) -> impl Iterator<Item = Ending> {
        self.shelf.iter().filter_map(|shelved| {
            let certificate = shelved.credential.as_ref()?.certificate()?;
            let (name, trouble) = (Arc::clone(&shelved.order.credential), shelved.last_error.clone());
            Some(Ending::of(&shelved.order.identity, Place::Credential { name, trouble }, certificate))
        })
    }
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

/// Whether what is on the shelf under an order stays there.
type Keeps = Box<dyn Fn(&Order) -> bool + Send>;

enum Request {
    Ask {
        order: Order,
        min_ttl: Duration,
        deadline: Boot,
        answer: oneshot::Sender<Result<Fetched, Failure>>,
    },
    Keep {
        keeps: Keeps,
        before: Arc<Books>,
    },
    /// What is live is left for the next agent.
    Leave(oneshot::Sender<usize>),
    Reject {
        order: Order,
        rejected: Arc<Credential>,
        deadline: Boot,
        answer: oneshot::Sender<Result<Fetched, Failure>>,
    },
    /// The issuer's word to the first try is for whoever waits; nobody's, if there was nothing to give back.
    Release(Order, oneshot::Sender<Result<(), IssueError>>),
    Retire {
        which: Which,
        cause: Cause,
        done: oneshot::Sender<usize>,
    },
    /// It came for nobody, and has to die.
    Unclaimed(Order, Arc<Credential>),
    Tend(Vec<Order>),
    Unwatch(Order),
    Watch {
        order: Order,
        topic: oneshot::Sender<watch::Receiver<Topic>>,
    },
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

    /// The credential of `grant` after `rejected`, which an API did not take: another, unless one was rejected just before. What
    /// comes is `rejected` itself then, and of no more use than before (MT-09).
    ///
    /// # Errors
    /// [`Failure`] with what to do next.
    pub async fn renew(
        &self,
        grant: &Grant,
        rejected: &Arc<Credential>,
        patience: Duration,
    ) -> Result<Fetched, Failure> {
        self.renew_order(self.shared.books.load().order(grant)?, rejected, patience).await
    }

    async fn renew_order(
        &self,
        order: Order,
        rejected: &Arc<Credential>,
        patience: Duration,
    ) -> Result<Fetched, Failure> {
        let deadline = self.shared.clock.boot() + patience;
        let (answer, answered) = oneshot::channel();
        let request = Request::Reject { order, rejected: Arc::clone(rejected), deadline, answer };
        self.sender.send(request).map_err(|_| Failure::Closed)?;
        answered.await.map_err(|_| Failure::Closed)?
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
        ask(&self.sender, order, min_ttl, now + patience).await
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
        let (done, tried) = oneshot::channel();
        // Whoever hangs up meanwhile has given it back all the same: it is the keeper's from here on.
        self.sender.send(Request::Release(books.order(grant)?, done)).map_err(|_| Failure::Closed)?;
        let failed =
            |error| Failure::Issue { error, retry_after: None, attempts: 1, facts: IssueFacts::default() };
        match tried.await {
            Ok(Ok(())) => Ok(true),
            Ok(Err(error)) => Err(failed(error)),
            Err(_) => Ok(false),
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

    /// Whether `target` is an endpoint of any issuer in the settings, or one that the issuer may take for such (DPOP-20).
    pub fn is_issuers(&self, target: &Target) -> bool {
        let among = |endpoints: &[Target]| endpoints.iter().any(|endpoint| endpoint.resembles(target));
        let told = |issuer: &Arc<dyn Issuer>| among(&issuer.endpoints());
        self.shared.books.load().issuers.values().any(told)
            || self.shared.remembered.load().values().any(|endpoints| among(endpoints))
    }

    /// From now on, these issuers and keys. Orders that are not placed any more by `keeps` are ended.
    pub fn replace(&self, books: Books, keeps: impl Fn(&Order) -> bool + Send + 'static) {
        let before = self.shared.books.load_full();
        let told = |name: &Arc<str>| {
            let endpoints = before.issuers.get(name)?.endpoints();
            let remembered = || self.shared.remembered.load().get(name).cloned();
            if endpoints.is_empty() { remembered() } else { Some(endpoints) }
        };
        let told = books.issuers.keys().filter_map(|name| Some((Arc::clone(name), told(name)?))).collect();
        self.shared.remembered.store(Arc::new(told));
        let before = self.shared.books.swap(Arc::new(books));
        // The keeper is gone only when the agent is.
        let _ = self.sender.send(Request::Keep { keeps: Box::new(keeps), before });
    }

    /// The issuers and keys of now.
    pub fn books(&self) -> Arc<Books> {
        self.shared.books.load_full()
    }

    /// Ends orders that are not placed any more by `keeps`, as far as an agent before this one left any: the settings or what an
    /// operator has switched off may have changed since.
    pub fn settle(&self, keeps: impl Fn(&Order) -> bool + Send + 'static) {
        let before = self.shared.books.load_full();
        // The keeper is gone only when the agent is.
        let _ = self.sender.send(Request::Keep { keeps: Box::new(keeps), before });
    }

    /// Leaves what is live for the next agent of this host. How many orders that are.
    pub async fn leave(&self) -> usize {
        let (done, left) = oneshot::channel();
        // The keeper is gone only when the agent is.
        let _ = self.sender.send(Request::Leave(done));
        left.await.unwrap_or_default()
    }

    /// The order that `identity` places by `rule` for what its processes share, if its issuer is there.
    pub fn order_for(&self, identity: &Arc<str>, rule: &CredentialRule) -> Option<Order> {
        self.shared.books.load().order_for(identity, rule, Arc::clone(&rule.scope)).ok()
    }

    /// From now on these, and no others, are had and kept fresh without being asked for.
    pub fn tend(&self, orders: Vec<Order>) {
        // The keeper is gone only when the agent is.
        let _ = self.sender.send(Request::Tend(orders));
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
        let adopts =
            self.shared.books.load().issuers.get(&rule.issuer).is_some_and(|issuer| issuer.adopts_keys());
        // Where something else has begun it, the key is only an issuer's business that knows its client by that.
        if !adopts && !rule.terms.client_auth.needs_key() {
            return Ok(());
        }
        let with = |signers: Signers| {
            // Elsewhere the one before would say nothing of this one.
            let before = signers.client.filter(|_| adopts);
            Signers { client: Some(Arc::clone(next)), before, ..signers }
        };
        self.try_with(identity, rule, with).await
    }

    /// The same for `next` as the client certificate of `identity`.
    ///
    /// # Errors
    /// What the issuer said instead.
    async fn try_certificate(
        &self,
        identity: &Arc<str>,
        rule: &CredentialRule,
        next: &Arc<ClientCertificate>,
    ) -> Result<(), IssueError> {
        let with = |signers| Signers { certificates: vec![Arc::clone(next)], ..signers };
        self.try_with(identity, rule, with).await
    }

    async fn try_with(
        &self,
        identity: &Arc<str>,
        rule: &CredentialRule,
        with: impl FnOnce(Signers) -> Signers,
    ) -> Result<(), IssueError> {
        let books = self.shared.books.load_full();
        let order = match books.order_for(identity, rule, Arc::clone(&rule.scope)) {
            // What is kept of one that lives would say nothing of the key.
            Ok(order) => order.apart(),
            Err(Failure::Issue { error, .. }) => return Err(error),
            Err(_) => return Err(absent(identity, "issuer")),
        };
        let (issuer, signers) = self.shared.placed(&books, &order)?;
        let issued = issuer.issue(&order, &with(signers), None).await;
        self.shared.look_out(&order, &issued);
        let credential = issued.result?;
        let _ = self.sender.send(Request::Unclaimed(order, Arc::new(credential)));
        Ok(())
    }

    /// Waits until an issuer says that it has seen a one-time value of ours before (ER-10). For one listener.
    pub async fn hears_of_reuse(&self) {
        self.shared.heard_of_reuse.notified().await;
    }

    /// The first of what issuers have said of that, and that nobody has taken yet: it is there before anybody is answered with what
    /// came of the asking.
    pub fn reused(&self) -> Option<Reused> {
        self.shared.reused.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    /// How things are.
    pub fn report(&self) -> Report {
        self.shared.report.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many revocations wait for their issuers to confirm them.
    pub fn revoking(&self) -> usize {
        self.shared.revoking.load(Ordering::Relaxed)
    }

    /// What is live for any identity right now, for readiness: name of issuer and whether it can still be served.
    pub fn live_count(&self) -> usize {
        let now = self.shared.clock.boot();
        self.shared.live.load().values().filter(|live| now < live.serve_until).count()
    }
}

/// Has the keeper see to an order.
async fn ask(
    keeper: &mpsc::UnboundedSender<Request>,
    order: Order,
    min_ttl: Duration,
    deadline: Boot,
) -> Result<Fetched, Failure> {
    let (answer, answered) = oneshot::channel();
    keeper.send(Request::Ask { order, min_ttl, deadline, answer }).map_err(|_| Failure::Closed)?;
    answered.await.map_err(|_| Failure::Closed)?
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
mod namesakes;
#[cfg(test)]
mod restarts;
#[cfg(test)]
mod tended;
#[cfg(test)]
mod tests;

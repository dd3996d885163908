//! The shelf as a state machine: which credentials are live, who waits for which, when to ask an issuer again. In go
//! events with the moment they happened; out come actions for the task to carry out. No clock, no dice, no lock, no
//! wait: its tests are tables. Over 400 lines, because what one event does to a slot can only be judged beside what the others do.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;

use super::{
    Renewed,
    revocations::Cause,
    timing::{MAX_RETRY_AFTER, advisable, back_off, left_alone, margin, refresh_at},
};
use crate::{
    clock::Boot,
    credential::Credential,
    issuer::{Instance, IssueError, IssueFacts, Issued, Order, Reason, terms::Wants},
    keys::ClientCertificate,
};

/// After so many failures in a row an issuer is left alone until its back-off is over (CLK-07).
const BREAKER: u32 = 5;

/// A caller waits through so many failures at most (CLK-05).
const TRIES: u32 = 5;

/// A refusal is remembered so long: a caller that asks in a loop does not become our loop at the issuer (TM-20).
const REMEMBERED: Duration = Duration::from_secs(5);

/// So many of one order are remembered at once; those before them end by themselves, without proofs.
const MOST_HELD: usize = 4096;

/// So many that nobody waits for are fetched at once at one issuer: a host that starts, or an issuer that is back, is no flood.
const AT_ONCE: usize = 16;

/// A credential younger than this is not fetched anew for want of life: the issuer gives no longer ones.
const FRESH: Duration = Duration::from_secs(5);

/// Names a waiting caller.
pub type WaiterId = u64;

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// An issuer said when it would have `credential` renewed: within this window of wall-clock seconds, of which `renew_at` is
    /// where chance fell; and from when on it is to be asked again, if at all.
    Advised {
        order: Order,
        credential: Arc<Credential>,
        window: Option<(i64, i64)>,
        renew_at: Boot,
        again: Option<Boot>,
    },
    /// A caller wants a credential with at least so much life, by a deadline.
    Asked { order: Order, waiter: WaiterId, min_ttl: Duration, deadline: Boot },
    /// An issuer answered. `chance` is two draws from `0.0..1.0`.
    Fetched { order: Order, issued: Box<Issued>, chance: (f64, f64) },
    /// Settings changed: only what `keep` says stays.
    Kept { keep: HashSet<Order> },
    /// A caller wants another credential than this one, which an API did not take.
    Rejected { order: Order, credential: Arc<Credential>, waiter: WaiterId, deadline: Boot },
    /// These end now, whoever has them.
    Retired { which: Which, cause: Cause },
    /// This credential was given back.
    Released { order: Order },
    /// What an agent before this one left is live again.
    TakenUp { order: Order, live: Box<Live> },
    /// These, and no others, are had and kept fresh without being asked for: each from the moment beside it on.
    Tended { orders: HashMap<Order, Boot> },
    /// Time passed.
    Tick,
    /// Nobody listens any more.
    Unwatched { order: Order },
    /// Somebody listens: it stays fresh without being asked for.
    Watched { order: Order },
}

/// What to do.
#[derive(Debug)]
pub enum Action {
    /// Ask the issuer when it would have this renewed.
    Advise(Order, Arc<Credential>),
    /// Tell a caller.
    Answer(WaiterId, Result<Fetched, Failure>),
    /// Ask the issuer.
    Fetch(Order),
    /// Somebody should write down what came of asking for nobody in particular.
    Tell(Box<Renewed>),
    /// This is what is live under the order from now on.
    Publish(Order, Option<Arc<Live>>),
    /// Have the issuer end it before its time.
    Revoke(Order, Arc<Credential>, Cause),
    /// Those who listen learn of trouble that ends their right to wait quietly.
    Trouble(Order, Failure),
}

/// Which credentials.
#[derive(Clone, Debug)]
pub enum Which {
    /// Those of one process, which has exited.
    Instance(Instance),
    /// Those of an identity, or only the one of this name.
    Identity(Arc<str>, Option<Arc<str>>),
    /// Those of an identity that an operator has switched off: no other comes after them.
    Disabled(Arc<str>),
}

impl Which {
    pub(super) fn takes(&self, order: &Order) -> bool {
        match self {
            Self::Instance(instance) => order.instance == Some(*instance),
            Self::Disabled(identity) => order.identity == *identity,
            Self::Identity(identity, credential) => {
                order.identity == *identity
                    && credential.as_ref().is_none_or(|name| order.credential == *name)
            }
        }
    }
}

/// A credential on the shelf.
#[derive(Debug)]
pub struct Live {
    /// It.
    pub credential: Arc<Credential>,
    /// When it is refreshed.
    pub refresh_at: Boot,
    /// Until when it is handed out.
    pub serve_until: Boot,
    /// Those that it replaced and that live still, newest first: callers may hold them. More than one where each may be used so
    /// often only.
    pub before: Vec<Arc<Credential>>,
    /// Whether it was handed out from the shelf since it came.
    pub asked: AtomicBool,
    /// How often it may still be handed out, if that is limited.
    pub uses_left: Option<AtomicU32>,
}

impl Live {
    /// Uses it once more, if it may be.
    pub fn take_use(&self) -> bool {
        self.asked.store(true, Ordering::Relaxed);
        self.uses_left.as_ref().is_none_or(|left| {
            left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
        })
    }

    /// Whether it was handed out since it came.
    pub fn was_asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }

    /// How often it may still be handed out, if that is limited.
    pub fn uses_left(&self) -> Option<u32> {
        self.uses_left.as_ref().map(|left| left.load(Ordering::Relaxed))
    }

    /// The same, to be refreshed at another moment.
    fn renewed_at(&self, refresh_at: Boot) -> Self {
        Self {
            credential: Arc::clone(&self.credential),
            refresh_at,
            serve_until: self.serve_until,
            before: self.before.clone(),
            asked: self.was_asked().into(),
            uses_left: self.uses_left().map(Into::into),
        }
    }

    /// The certificates in it, where it is one: the one in use, then those before it that are good still.
    pub fn certificates(&self, now: Timestamp) -> Vec<Arc<ClientCertificate>> {
        let all = std::iter::once(&self.credential).chain(&self.before);
        let certificates = all.filter_map(|credential| credential.certificate());
        certificates.filter(|certificate| now < certificate.until()).cloned().collect()
    }

    /// Until when callers may hold any of it.
    fn held_until(&self) -> Boot {
        let all = std::iter::once(&self.credential).chain(&self.before);
        all.map(|credential| credential.window.until).max().unwrap_or(self.serve_until)
    }

    /// What callers may hold of it: itself and those before it, as far as they live.
    pub fn still_held(&self, now: Boot) -> Vec<Arc<Credential>> {
        let all = std::iter::once(&self.credential).chain(&self.before);
        all.filter(|credential| now < credential.window.until).take(MOST_HELD).cloned().collect()
    }
}

/// A credential, and where it came from.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// It.
    pub credential: Arc<Credential>,
    /// How it came.
    pub source: Source,
}

/// Where a credential came from.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// It was on the shelf.
    Cache,
    /// It was fetched for this caller, or for one who asked at the same time.
    Issuer(IssueFacts),
}

/// Why there is no credential.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Failure {
    /// The issuer gave none.
    #[error("{error}")]
    Issue {
        /// Why.
        error: IssueError,
        /// When to come back, if that makes sense.
        retry_after: Option<Duration>,
        /// How often it was tried for this caller.
        attempts: u32,
        /// How the last try went.
        facts: IssueFacts,
    },
    /// The issuer's credentials do not live as long as was asked.
    #[error("the issuer gives no credential that lives as long as asked; it gives {} s", .life.as_secs())]
    TtlUnmet {
        /// How long they live.
        life: Duration,
    },
    /// The broker has ended.
    #[error("the agent is shutting down")]
    Closed,
}

/// How an issuer has been lately.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Health {
    /// Failures in a row.
    pub failures: u32,
    /// Not asked before.
    pub next_try: Option<Boot>,
    /// Why the last one failed.
    pub last_error: Option<String>,
    /// The same in one word: whoever comes while it is left alone is told the cause, not that it is left alone.
    pub last_reason: Option<Reason>,
    /// When it last answered well.
    pub last_ok: Option<Boot>,
    /// When the first of these failures was.
    pub failing_since: Option<Boot>,
    /// How far its clock was ahead of ours when it last said, in milliseconds (CLK-02).
    pub skew_ms: Option<i64>,
}

impl Health {
    /// Whether it is left alone for now.
    pub fn open(&self, now: Boot) -> bool {
        self.failures >= BREAKER && self.waiting(now)
    }

    /// How many may be asked for at once that nobody waits for: while it fails, one, to see whether it is back.
    fn room(&self) -> usize {
        if self.failures > 0 { 1 } else { AT_ONCE }
    }

    fn waiting(&self, now: Boot) -> bool {
        self.next_try.is_some_and(|next| now < next)
    }
}

/// All of it.
#[derive(Debug, Default)]
pub struct Shelf {
    slots: HashMap<Order, Slot>,
    issuers: HashMap<Arc<str>, Health>,
}

#[derive(Debug, Default)]
struct Slot {
    live: Option<Arc<Live>>,
    waiters: Vec<Waiter>,
    fetching: bool,
    /// What is being fetched was ordered before the last of its kind was retired: it is not to be used.
    outdated: bool,
    /// What is live is handed out no more, but callers may hold it still.
    lapsed: bool,
    watchers: usize,
    /// From when on it is kept fresh without being asked for.
    tended: Option<Boot>,
    /// When its issuer is asked next when to renew it, and the window that it named last.
    advise_at: Option<Boot>,
    advised: Option<(i64, i64)>,
    /// When an API last rejected what was live, and another was asked for.
    rejected_at: Option<Boot>,
    refused: Option<(Boot, IssueError, IssueFacts)>,
    /// How often in a row, and until when it is not asked for again unless somebody does.
    refusals: u32,
    left_alone_until: Boot,
    last_error: Option<String>,
}

#[derive(Debug)]
struct Waiter {
    id: WaiterId,
    min_ttl: Duration,
    deadline: Boot,
    failures: u32,
}

impl Shelf {
    /// Takes one event in.
    pub fn on(&mut self, event: Event, now: Boot) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Advised { order, credential, window, renew_at, again } => {
                if let Some(slot) = self.slots.get_mut(&order) {
                    slot.advised(order, &credential, window, renew_at, again, &mut actions);
                }
            }
            Event::Asked { order, waiter, min_ttl, deadline } => {
                let waiter = Waiter { id: waiter, min_ttl, deadline, failures: 0 };
                self.asked(order, waiter, now, &mut actions);
            }
            Event::Fetched { order, issued, chance } => {
                self.fetched(order, *issued, chance, now, &mut actions)
            }
            Event::Kept { keep } => {
                self.end(|order| !keep.contains(order), Cause::Settings, now, &mut actions);
            }
            // Nobody is there any more who could be given another: what is on its way is revoked when it comes.
            Event::Retired { which: which @ (Which::Instance(_) | Which::Disabled(_)), cause } => {
                self.end(|order| which.takes(order), cause, now, &mut actions);
            }
            Event::Retired { which, cause } => {
                for (order, slot) in self.slots.iter_mut().filter(|(order, _)| which.takes(order)) {
                    slot.outdated = slot.fetching;
                    // An operator acted: what was refused may be given now.
                    slot.refused = None;
                    revoke_all(order, slot, cause, now, &mut actions);
                    actions.push(Action::Publish(order.clone(), None));
                    if slot.watchers > 0 && !slot.fetching {
                        slot.fetching = true;
                        actions.push(Action::Fetch(order.clone()));
                    }
                }
            }
            Event::Released { order } => {
                if let Some(slot) = self.slots.get_mut(&order)
                    && let Some(live) = slot.live.take()
                {
                    // What it is being renewed to ends with it: a lease that goes on is the one that was given back.
                    slot.outdated = slot.fetching;
                    // Those before it go the same way (OA-43), for the caller wants none.
                    let held = live.still_held(now).into_iter();
                    actions.extend(held.map(|held| Action::Revoke(order.clone(), held, Cause::GivenBack)));
                    actions.push(Action::Publish(order, None));
                }
            }
            Event::Tended { orders } => {
                for (order, slot) in &mut self.slots {
                    // Of one that is tended already, the moment is not drawn again.
                    slot.tended = slot.tended.filter(|_| orders.contains_key(order));
                }
                for (order, from) in orders {
                    let slot = self.slots.entry(order).or_default();
                    slot.tended.get_or_insert(from);
                    // The settings were read again, or an operator acted: what was refused may be given now.
                    (slot.refusals, slot.left_alone_until) = (0, from);
                }
            }
            Event::Rejected { order, credential, waiter, deadline } => {
                let waiter = Waiter { id: waiter, min_ttl: Duration::ZERO, deadline, failures: 0 };
                self.rejected(order, &credential, waiter, now, &mut actions);
            }
            Event::TakenUp { order, live } => self.taken_up(order, *live, now, &mut actions),
            Event::Tick => self.tick(now, &mut actions),
            Event::Unwatched { order } => {
                if let Some(slot) = self.slots.get_mut(&order) {
                    slot.watchers = slot.watchers.saturating_sub(1);
                }
            }
            Event::Watched { order } => self.slots.entry(order).or_default().watchers += 1,
        }
        actions
    }

    /// When the next [`Event::Tick`] is due.
    pub fn next_due(&self) -> Option<Boot> {
        let busy = self.busy();
        let due = |(order, slot): (&Order, &Slot)| {
            let next_try = self.issuers.get(&order.issuer).and_then(|health| health.next_try);
            let live = slot.live.as_ref();
            let room = self.issuers.get(&order.issuer).map_or(AT_ONCE, Health::room);
            let free = !slot.fetching && busy.get(&order.issuer).is_none_or(|busy| *busy < room);
            let refresh = live.map(|live| live.refresh_at).filter(|_| wanted(slot));
            let lacking = slot.lacking_from();
            let refresh = [refresh, lacking].into_iter().flatten().min().filter(|_| free);
            let refresh = refresh.map(|at| at.max(next_try.unwrap_or_default()));
            let lapse = live.map(|live| if slot.lapsed { live.held_until() } else { live.serve_until });
            let retry = next_try.filter(|_| !slot.fetching && !slot.waiters.is_empty());
            let deadline = slot.waiters.iter().map(|waiter| waiter.deadline).min();
            let advice = slot.advise_at.filter(|_| live.is_some());
            [refresh, lapse, retry, deadline, advice].into_iter().flatten().min()
        };
        self.slots.iter().filter_map(due).min()
    }

    /// How many fetches are under way, by issuer.
    fn busy(&self) -> HashMap<Arc<str>, usize> {
        let mut busy = HashMap::new();
        for (order, _) in self.slots.iter().filter(|(_, slot)| slot.fetching) {
            *busy.entry(Arc::clone(&order.issuer)).or_default() += 1;
        }
        busy
    }

    /// What is on it, for status: the order, the credential, the last trouble.
    pub fn entries<'a>(
        &'a self,
    ) -> impl Iterator<Item = (&'a Order, Option<&'a Arc<Live>>, Option<&'a str>)> {
        let served = |slot: &'a Slot| slot.live.as_ref().filter(|_| !slot.lapsed);
        self.slots.iter().map(move |(order, slot)| (order, served(slot), slot.last_error.as_deref()))
    }

    /// What callers may hold, by order.
    pub fn held(&self) -> impl Iterator<Item = (&Order, &Arc<Live>)> {
        self.slots.iter().filter_map(|(order, slot)| Some((order, slot.live.as_ref()?)))
    }

    /// What is ordered, or was and is live.
    pub fn orders(&self) -> impl Iterator<Item = &Order> {
        self.slots.keys()
    }

    /// How many of these are live.
    pub fn count(&self, which: &Which) -> usize {
        self.slots.iter().filter(|(order, slot)| slot.live.is_some() && which.takes(order)).count()
    }

    /// How the issuers are, by name.
    pub fn issuers(&self) -> &HashMap<Arc<str>, Health> {
        &self.issuers
    }

    fn asked(&mut self, order: Order, waiter: Waiter, now: Boot, actions: &mut Vec<Action>) {
        let slot = self.slots.entry(order.clone()).or_default();
        if let Some(live) = &slot.live
            && now < live.serve_until
        {
            let window = &live.credential.window;
            let lasts = window.left(now) >= waiter.min_ttl;
            if lasts && live.take_use() {
                let credential = Arc::clone(&live.credential);
                actions.push(Action::Answer(waiter.id, Ok(Fetched { credential, source: Source::Cache })));
                return;
            }
            if !lasts && now.since(window.from) < FRESH {
                actions.push(Action::Answer(waiter.id, Err(Failure::TtlUnmet { life: window.life() })));
                return;
            }
        }
        self.wait_for_issuer(order, waiter, now, actions);
    }

    /// Another for one that an API did not take: the one that came since, or a new one. Not again at once: an API that takes
    /// nothing at all is no reason to ask an issuer for ever (TM-20); who comes then is given the same. Until the new one is
    /// there, the old one stays, for one API's word is not the issuer's; then it goes the way of all that are replaced.
    fn rejected(
        &mut self,
        order: Order,
        credential: &Arc<Credential>,
        waiter: Waiter,
        now: Boot,
        actions: &mut Vec<Action>,
    ) {
        let slot = self.slots.entry(order.clone()).or_default();
        if let Some(live) = slot.live.as_ref().filter(|live| now < live.serve_until) {
            let is_another = !Arc::ptr_eq(&live.credential, credential);
            let just_before = slot.rejected_at.is_some_and(|before| now.since(before) < FRESH);
            if (is_another || just_before && !slot.fetching) && live.take_use() {
                let credential = Arc::clone(&live.credential);
                actions.push(Action::Answer(waiter.id, Ok(Fetched { credential, source: Source::Cache })));
                return;
            }
            slot.rejected_at = Some(now);
        }
        self.wait_for_issuer(order, waiter, now, actions);
    }

    fn wait_for_issuer(&mut self, order: Order, waiter: Waiter, now: Boot, actions: &mut Vec<Action>) {
        let health = self.issuers.entry(Arc::clone(&order.issuer)).or_default();
        let slot = self.slots.entry(order.clone()).or_default();
        if let Some((until, error, facts)) = &slot.refused
            && now < *until
        {
            let failure =
                Failure::Issue { error: error.clone(), retry_after: None, attempts: 0, facts: facts.clone() };
            actions.push(Action::Answer(waiter.id, Err(failure)));
            return;
        }
        if health.waiting(now) && !slot.fetching {
            let next = health.next_try.unwrap_or(now);
            if health.open(now) || next > waiter.deadline {
                actions.push(Action::Answer(waiter.id, Err(unavailable(health, next.since(now), 0))));
                return;
            }
        }
        slot.waiters.push(waiter);
        if !slot.fetching && !health.waiting(now) {
            slot.fetching = true;
            actions.push(Action::Fetch(order));
        }
    }

    fn fetched(
        &mut self,
        order: Order,
        issued: Issued,
        chance: (f64, f64),
        now: Boot,
        actions: &mut Vec<Action>,
    ) {
        let health = self.issuers.entry(Arc::clone(&order.issuer)).or_default();
        health.skew_ms = issued.facts.date_skew_ms.or(health.skew_ms);
        let Some(slot) = self.slots.get_mut(&order) else {
            // Forgotten meanwhile: nobody is entitled to it any more.
            if let Ok(credential) = issued.result {
                actions.push(Action::Revoke(order, Arc::new(credential), Cause::Unclaimed));
            }
            return;
        };
        slot.fetching = false;
        if std::mem::take(&mut slot.outdated) {
            if let Ok(credential) = issued.result {
                actions.push(Action::Revoke(order.clone(), Arc::new(credential), Cause::Unclaimed));
            }
            if slot.watchers > 0 || !slot.waiters.is_empty() {
                slot.fetching = true;
                actions.push(Action::Fetch(order));
            }
            return;
        }
        let unasked = slot.waiters.is_empty();
        let tell = |result, facts| {
            let renewed = Renewed { order: order.clone(), result, facts };
            unasked.then(|| Action::Tell(Box::new(renewed)))
        };
        let error = match issued.result {
            Ok(credential) => {
                *health = Health { last_ok: Some(now), skew_ms: health.skew_ms, ..Health::default() };
                (slot.refused, slot.last_error, slot.refusals) = (None, None, 0);
                let window = credential.window;
                // What is leased for longer is what its process has, which may never ask for it again (S37).
                let goes_on = dies_with_its_process(&order)
                    && slot.live.as_ref().is_some_and(|live| {
                        live.credential.goes_on_as(&credential) && live.asked.load(Ordering::Relaxed)
                    });
                let mut before = slot.live.as_ref().map_or_else(Vec::new, |live| live.still_held(now));
                before.retain(|before| !before.goes_on_as(&credential));
                let live = Arc::new(Live {
                    refresh_at: refresh_at(&window, chance.0),
                    serve_until: window.until - margin(window.life()),
                    before,
                    asked: (goes_on || !slot.waiters.is_empty()).into(),
                    credential: Arc::new(credential),
                    uses_left: order.max_uses.map(AtomicU32::new),
                });
                let mut more = Vec::new();
                for waiter in slot.waiters.drain(..) {
                    if window.left(now) >= waiter.min_ttl && !live.take_use() {
                        more.push(waiter);
                        continue;
                    }
                    let answer = if window.left(now) >= waiter.min_ttl {
                        let credential = Arc::clone(&live.credential);
                        Ok(Fetched { credential, source: Source::Issuer(issued.facts.clone()) })
                    } else {
                        Err(Failure::TtlUnmet { life: window.life() })
                    };
                    actions.push(Action::Answer(waiter.id, answer));
                }
                actions.extend(tell(Ok(Arc::clone(&live.credential)), issued.facts));
                (slot.advise_at, slot.advised) = (None, None);
                if live.credential.certificate().is_some() {
                    actions.push(Action::Advise(order.clone(), Arc::clone(&live.credential)));
                }
                (slot.live, slot.lapsed) = (Some(Arc::clone(&live)), false);
                actions.push(Action::Publish(order.clone(), Some(live)));
                // It may not be used as often as there are callers: the rest wait for another.
                if !more.is_empty() {
                    (slot.waiters, slot.fetching) = (more, true);
                    actions.push(Action::Fetch(order));
                }
                return;
            }
            Err(error) => error,
        };
        slot.last_error = Some(error.to_string());
        actions.extend(tell(Err(error.clone()), issued.facts.clone()));
        match &error {
            IssueError::Retry { after, .. } => {
                health.failures += 1;
                health.failing_since.get_or_insert(now);
                (health.last_error, health.last_reason) = (Some(error.to_string()), Some(error.reason()));
                let wait = back_off(health.failures, *after, chance.1);
                let next = now + wait;
                health.next_try = Some(next);
                let (health, facts) = (health.clone(), &issued.facts);
                for waiter in &mut slot.waiters {
                    waiter.failures += 1;
                }
                let gives_up = |waiter: &mut Waiter| {
                    health.open(now) || waiter.failures >= TRIES || waiter.deadline < next
                };
                for waiter in slot.waiters.extract_if(.., gives_up) {
                    let failure = Failure::Issue {
                        error: error.clone(),
                        retry_after: Some(wait),
                        attempts: waiter.failures,
                        facts: facts.clone(),
                    };
                    actions.push(Action::Answer(waiter.id, Err(failure)));
                }
            }
            IssueError::Later { .. } | IssueError::Refused { .. } | IssueError::Misconfigured { .. } => {
                // The issuer is there and speaks: its health is not in doubt, only this order.
                health.last_ok = Some(now);
                let retry_after = match &error {
                    IssueError::Later { after, .. } => Some((*after).clamp(REMEMBERED, MAX_RETRY_AFTER)),
                    _ => None,
                };
                let again = now + retry_after.unwrap_or(REMEMBERED);
                slot.refused = Some((again, error.clone(), issued.facts.clone()));
                // A person has to act: nobody is helped by asking every few seconds until then.
                slot.left_alone_until = again.max(now + left_alone(slot.refusals));
                slot.refusals += 1;
                let failure = Failure::Issue { error, retry_after, attempts: 1, facts: issued.facts };
                answer_all(std::mem::take(&mut slot.waiters), &failure, actions);
                if slot.live.is_none() || slot.lapsed {
                    actions.push(Action::Trouble(order, failure));
                } else if let Some(live) = &mut slot.live {
                    // Valid is never replaced by failed; it is looked at again later, not in a loop.
                    let later = now + back_off(6, retry_after, chance.1.max(0.5));
                    let later = later.max(slot.left_alone_until);
                    *live = Arc::new(live.renewed_at(later));
                    actions.push(Action::Publish(order, Some(Arc::clone(live))));
                }
            }
        }
    }

    fn taken_up(&mut self, order: Order, live: Live, now: Boot, actions: &mut Vec<Action>) {
        let slot = self.slots.entry(order.clone()).or_default();
        if let Some(newer) = &slot.live {
            // Another was fetched meanwhile: what callers hold from before is found still.
            let mut newer = newer.renewed_at(newer.refresh_at);
            newer.before.extend(live.still_held(now));
            let newer = Arc::new(newer);
            slot.live = Some(Arc::clone(&newer));
            actions.push(Action::Publish(order, Some(newer)));
            return;
        }
        let live = Arc::new(live);
        let window = live.credential.window;
        let serves = |waiter: &mut Waiter| {
            now < live.serve_until && window.left(now) >= waiter.min_ttl && live.take_use()
        };
        for waiter in slot.waiters.extract_if(.., serves) {
            let fetched = Fetched { credential: Arc::clone(&live.credential), source: Source::Cache };
            actions.push(Action::Answer(waiter.id, Ok(fetched)));
        }
        slot.live = Some(Arc::clone(&live));
        actions.push(Action::Publish(order, Some(live)));
    }

    fn tick(&mut self, now: Boot, actions: &mut Vec<Action>) {
        let (mut forgotten, mut busy) = (Vec::new(), self.busy());
        for (order, slot) in &mut self.slots {
            let health = self.issuers.entry(Arc::clone(&order.issuer)).or_default();
            // What callers may hold stays where it is found, for proofs and for its end before its time (TM-08).
            slot.lapsed = slot.live.as_ref().is_some_and(|live| live.serve_until <= now);
            if slot.lapsed && slot.live.as_ref().is_some_and(|live| live.held_until() <= now) {
                (slot.live, slot.lapsed) = (None, false);
                actions.push(Action::Publish(order.clone(), None));
            }
            if let Some(live) = slot.live.as_ref().filter(|_| slot.advise_at.is_some_and(|at| at <= now)) {
                // Of one that has ended, or is replaced, nothing is asked any more.
                slot.advise_at = None;
                if now < live.credential.window.until {
                    actions.push(Action::Advise(order.clone(), Arc::clone(&live.credential)));
                }
            }
            let over = |waiter: &mut Waiter| waiter.deadline <= now;
            for waiter in slot.waiters.extract_if(.., over) {
                let wait = health.next_try.unwrap_or(now).since(now);
                actions.push(Action::Answer(waiter.id, Err(unavailable(health, wait, waiter.failures))));
            }
            let due = slot.live.as_ref().is_some_and(|live| live.refresh_at <= now) && wanted(slot);
            let lacking = slot.lacking_from().is_some_and(|from| from <= now);
            let busy = busy.entry(Arc::clone(&order.issuer)).or_default();
            let unasked = (due || lacking) && *busy < health.room();
            if !slot.fetching && !health.waiting(now) && (unasked || !slot.waiters.is_empty()) {
                slot.fetching = true;
                *busy += 1;
                actions.push(Action::Fetch(order.clone()));
            }
            let idle = slot.live.is_none()
                && slot.waiters.is_empty()
                && slot.watchers == 0
                && slot.tended.is_none()
                && !slot.fetching;
            if idle && slot.refused.as_ref().is_none_or(|(until, ..)| *until <= now) {
                forgotten.push(order.clone());
            }
        }
        for order in forgotten {
            self.slots.remove(&order);
        }
    }

    /// Ends those orders. What is on its way for one is revoked when it comes, and is nobody's who may order the same again before
    /// that.
    fn end(&mut self, takes: impl Fn(&Order) -> bool, cause: Cause, now: Boot, actions: &mut Vec<Action>) {
        let ended: Vec<_> = self.slots.extract_if(|order, _| takes(order)).collect();
        for (order, slot) in ended {
            if slot.fetching {
                let awaited = Slot { fetching: true, outdated: true, ..Slot::default() };
                self.slots.insert(order.clone(), awaited);
            }
            end(order, slot, cause, now, actions);
        }
    }
}

impl Slot {
    /// Takes in when the issuer would have `credential` renewed, if that is what is live still. The moment within a window is
    /// drawn once: drawn again at each answer, all would be renewed at its beginning (ACM-04).
    fn advised(
        &mut self,
        order: Order,
        credential: &Arc<Credential>,
        window: Option<(i64, i64)>,
        renew_at: Boot,
        again: Option<Boot>,
        actions: &mut Vec<Action>,
    ) {
        let Some(live) = self.live.as_mut().filter(|live| Arc::ptr_eq(&live.credential, credential)) else {
            return;
        };
        self.advise_at = again;
        if window.is_none() || window == self.advised {
            return;
        }
        self.advised = window;
        let (earliest, latest) = advisable(&live.credential.window);
        *live = Arc::new(live.renewed_at(renew_at.clamp(earliest, latest)));
        actions.push(Action::Publish(order, Some(Arc::clone(live))));
    }

    /// From when on it is fetched for want of one, if somebody listens or it is tended.
    fn lacking_from(&self) -> Option<Boot> {
        if self.live.is_some() && !self.lapsed {
            return None;
        }
        if self.watchers > 0 {
            return Some(self.refused.as_ref().map(|(until, ..)| *until).unwrap_or_default());
        }
        self.tended.map(|from| from.max(self.left_alone_until))
    }
}

/// A credential is kept fresh for those who use it, and lapses when nobody does.
fn wanted(slot: &Slot) -> bool {
    // One that is used up is replaced when it is asked for, not before; so is one that lapsed, unless somebody listens.
    let asked = |live: &Arc<Live>| live.uses_left.is_none() && live.asked.load(Ordering::Relaxed);
    !slot.lapsed && (slot.watchers > 0 || slot.tended.is_some() || slot.live.as_ref().is_some_and(asked))
}

/// Whether it is leased for one process: until that exits, somebody uses it.
fn dies_with_its_process(order: &Order) -> bool {
    order.instance.is_some() && matches!(order.terms.wants, Wants::Lease(_))
}

/// The end of an order: of those who wait for it, of what is live under it, of those who listen.
fn end(order: Order, mut slot: Slot, cause: Cause, now: Boot, actions: &mut Vec<Action>) {
    let failure = closed_order(&order);
    answer_all(std::mem::take(&mut slot.waiters), &failure, actions);
    revoke_all(&order, &mut slot, cause, now, actions);
    actions.push(Action::Publish(order.clone(), None));
    actions.push(Action::Trouble(order, failure));
}

fn revoke_all(order: &Order, slot: &mut Slot, cause: Cause, now: Boot, actions: &mut Vec<Action>) {
    let Some(live) = slot.live.take() else { return };
    let all = live.still_held(now).into_iter();
    actions.extend(all.map(|credential| Action::Revoke(order.clone(), credential, cause)));
}

fn answer_all(waiters: Vec<Waiter>, failure: &Failure, actions: &mut Vec<Action>) {
    actions.extend(waiters.into_iter().map(|waiter| Action::Answer(waiter.id, Err(failure.clone()))));
}

fn unavailable(health: &Health, wait: Duration, attempts: u32) -> Failure {
    let error = IssueError::Retry {
        reason: health.last_reason.unwrap_or(Reason::IssuerUnavailable),
        detail: health.last_error.clone().unwrap_or_else(|| "it has not answered in time".into()),
        after: Some(wait),
    };
    Failure::Issue { error, retry_after: Some(wait), attempts, facts: IssueFacts::default() }
}

fn closed_order(order: &Order) -> Failure {
    let error = IssueError::Misconfigured {
        reason: Reason::IssuerConfig,
        detail: format!(
            "{}.{} was taken out of the settings, changed, or switched off by an operator",
            order.identity, order.credential
        ),
    };
    Failure::Issue { error, retry_after: None, attempts: 0, facts: IssueFacts::default() }
}

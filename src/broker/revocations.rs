//! Credentials that have to die before their time, until their issuer has confirmed it or they have ended by themselves. In go
//! credentials and what came of trying; out come those to try now and, in the end, what became of each. Pure, but for what
//! it carries along to try with.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use super::{Shared, timing::back_off};
use crate::{
    clock::Boot,
    credential::Credential,
    issuer::{IssueError, Issuer, Order, Reason, Signers},
};

/// So many are tried at once at one issuer: a host that goes down is no flood for it, and one that hangs is in nobody else's
/// way.
const AT_ONCE: usize = 16;

/// So many wait at most for one issuer; what comes then is told as not revoked.
const MOST: usize = 4096;

/// Why a credential is revoked before its time.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Cause {
    /// The process it was for has exited.
    Exited,
    /// Whoever had it gave it back.
    GivenBack,
    /// An operator said so.
    Operator,
    /// The settings do not grant it any more.
    Settings,
    /// It came when nobody was entitled to it any more.
    Unclaimed,
}

impl Cause {
    const ALL: [Self; 5] = [Self::Exited, Self::GivenBack, Self::Operator, Self::Settings, Self::Unclaimed];

    /// As records write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Exited => "process_exited",
            Self::GivenBack => "given_back",
            Self::Operator => "operator",
            Self::Settings => "settings",
            Self::Unclaimed => "unclaimed",
        }
    }

    pub(super) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|cause| cause.as_str() == name)
    }
}

/// The issuer of an order, and the keys to talk to it with.
pub(super) type Placed = (Arc<dyn Issuer>, Signers);

/// A credential that has to die.
#[derive(Debug)]
pub(super) struct Revocation {
    pub(super) order: Order,
    pub(super) credential: Arc<Credential>,
    pub(super) cause: Cause,
    /// As they were when it was taken off the shelf: the settings may name neither any more.
    pub(super) placed: Result<Placed, IssueError>,
    /// Who that issuer is; a name can be given to another.
    pub(super) who: String,
    pub(super) since: Boot,
}

impl Revocation {
    /// Asks the issuer once.
    pub(super) async fn attempt(&self, shared: &Shared) -> Result<(), IssueError> {
        let (issuer, signers) = self.placed.as_ref().map_err(Clone::clone)?;
        let books = shared.books.load_full();
        if !signers.certificates.is_empty() || books.shown_by(&self.order).is_none() {
            return issuer.revoke(&self.order, signers, &self.credential).await;
        }
        // After a restart, what it has to show is there only once its CA was asked.
        let (_, now) = shared.placed(&books, &self.order)?;
        if now.certificates.is_empty() {
            return Err(IssueError::Later {
                reason: Reason::KeyUnavailable,
                detail: "the certificate to show is not there yet".into(),
                after: Duration::ZERO,
            });
        }
        let signers = Signers { certificates: now.certificates, ..signers.clone() };
        issuer.revoke(&self.order, &signers, &self.credential).await
    }

    fn over(&self, tries: u32, error: Option<String>, now: Boot) -> Revoked {
        Revoked {
            order: self.order.clone(),
            credential: Arc::clone(&self.credential),
            cause: self.cause,
            tries,
            took: now.since(self.since),
            error,
            waits: false,
        }
    }
}

/// What became of it.
#[derive(Clone, Debug)]
pub struct Revoked {
    /// What it was ordered as.
    pub order: Order,
    /// It.
    pub credential: Arc<Credential>,
    /// Why it had to die.
    pub cause: Cause,
    /// How often its issuer was asked.
    pub tries: u32,
    /// From the cause to the end.
    pub took: Duration,
    /// Why it was not revoked, if it was not: it works until it ends by itself.
    pub error: Option<String>,
    /// Whether it is tried again until then, and what became of it is told once more.
    pub waits: bool,
}

/// All that wait.
#[derive(Debug, Default)]
pub(super) struct Revocations {
    waiting: BTreeMap<u64, Waiting>,
    next: u64,
}

#[derive(Debug)]
struct Waiting {
    revocation: Arc<Revocation>,
    tries: u32,
    at: Boot,
    under_way: bool,
}

impl Revocations {
    /// Takes one more; what became at once of it, or of one that makes room for it, if there are too many. What an operator orders
    /// finds room: whatever a program has left to be revoked makes way for it.
    pub(super) fn add(&mut self, revocation: Revocation, now: Boot) -> Option<Revoked> {
        let issuer = Arc::clone(&revocation.order.issuer);
        let of_it = |waiting: &&Waiting| waiting.revocation.order.issuer == issuer;
        let mut over = None;
        if self.waiting.values().filter(of_it).count() >= MOST {
            let error =
                format!("{MOST} revocations wait for {issuer} already: it works until it ends by itself");
            let gives_way =
                |waiting: &&Waiting| !waiting.under_way && waiting.revocation.cause != Cause::Operator;
            let others = self.waiting.iter().filter(|(_, waiting)| of_it(waiting) && gives_way(waiting));
            let soonest = others.min_by_key(|(_, waiting)| waiting.revocation.credential.window.until);
            let makes_way = soonest.map(|(id, _)| *id).filter(|_| revocation.cause == Cause::Operator);
            let displaced = makes_way.and_then(|id| self.waiting.remove(&id));
            let Some(displaced) = displaced else { return Some(revocation.over(0, Some(error), now)) };
            over = Some(displaced.revocation.over(displaced.tries, Some(error), now));
        }
        self.next += 1;
        let revocation = Arc::new(revocation);
        self.waiting.insert(self.next, Waiting { revocation, tries: 0, at: now, under_way: false });
        over
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Those to try now. Each has to come back through [`Revocations::tried`].
    pub(super) fn due(&mut self, now: Boot) -> Vec<(u64, Arc<Revocation>)> {
        let mut busy = self.busy();
        let due = self.waiting.iter_mut().filter(|(_, waiting)| !waiting.under_way && waiting.at <= now);
        // What an operator orders does not queue behind what programs leave.
        let mut due: Vec<_> = due.collect();
        due.sort_by_key(|(_, waiting)| waiting.revocation.cause != Cause::Operator);
        due.into_iter()
            .filter_map(|(id, waiting)| {
                let busy = busy.entry(Arc::clone(&waiting.revocation.order.issuer)).or_default();
                if *busy >= AT_ONCE {
                    return None;
                }
                *busy += 1;
                (waiting.under_way, waiting.tries) = (true, waiting.tries + 1);
                Some((*id, Arc::clone(&waiting.revocation)))
            })
            .collect()
    }

    /// How many are under way, by issuer.
    fn busy(&self) -> HashMap<Arc<str>, usize> {
        let mut busy = HashMap::new();
        for waiting in self.waiting.values().filter(|waiting| waiting.under_way) {
            *busy.entry(Arc::clone(&waiting.revocation.order.issuer)).or_default() += 1;
        }
        busy
    }

    /// What came of trying; what became of it, once that is known, and before that once, if it has to wait (OA-43).
    pub(super) fn tried(
        &mut self,
        id: u64,
        result: Result<(), IssueError>,
        chance: f64,
        now: Boot,
    ) -> Option<Revoked> {
        let waiting = self.waiting.get_mut(&id)?;
        waiting.under_way = false;
        let error = match result {
            Ok(()) => None,
            Err(error) => match again(&error) {
                None => Some(error.to_string()),
                Some(after) => {
                    waiting.at = now + back_off(waiting.tries, after, chance);
                    if waiting.at < waiting.revocation.credential.window.until {
                        let waits = waiting.revocation.over(1, Some(error.to_string()), now);
                        return (waiting.tries == 1).then_some(Revoked { waits: true, ..waits });
                    }
                    Some(format!("it ended by itself before its issuer confirmed: {error}"))
                }
            },
        };
        let waiting = self.waiting.remove(&id)?;
        Some(waiting.revocation.over(waiting.tries, error, now))
    }

    /// When one is to be tried next, if there is room to.
    pub(super) fn next_due(&self) -> Option<Boot> {
        let busy = self.busy();
        let room = |issuer| busy.get(issuer).is_none_or(|busy| *busy < AT_ONCE);
        let idle = self.waiting.values().filter(|waiting| !waiting.under_way);
        idle.filter(|waiting| room(&waiting.revocation.order.issuer)).map(|waiting| waiting.at).min()
    }

    /// All of them, to be kept for the next start.
    pub(super) fn all(&self) -> impl ExactSizeIterator<Item = &Revocation> {
        self.waiting.values().map(|waiting| &*waiting.revocation)
    }
}

/// Whether it is of use to try again, and not before when, if the issuer said so.
fn again(error: &IssueError) -> Option<Option<Duration>> {
    match error {
        IssueError::Retry { after, .. } => Some(*after),
        IssueError::Later { after, .. } => Some(Some(*after)),
        // A new key, after an emergency, may be registered before the credential ends (KEY-07).
        IssueError::Misconfigured { reason: Reason::ClientAuthRejected, .. } => Some(None),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::tests::{credential, order};

    fn revocation(life: u64) -> Revocation {
        let error = IssueError::Refused { reason: Reason::IssuerConfig, detail: "none here".into() };
        Revocation {
            order: order("corp", "ledger"),
            credential: Arc::new(credential(at(0), Duration::from_secs(life))),
            cause: Cause::Exited,
            placed: Err(error),
            who: String::new(),
            since: at(0),
        }
    }

    fn at(seconds: u64) -> Boot {
        Boot::from_nanos(seconds * 1_000_000_000)
    }

    fn down(after: Option<u64>) -> Result<(), IssueError> {
        let after = after.map(Duration::from_secs);
        Err(IssueError::Retry { reason: Reason::IssuerUnavailable, detail: "503".into(), after })
    }

    #[test]
    fn it_is_tried_until_it_is_confirmed() {
        // OA-43
        let mut all = Revocations::default();
        assert!(all.add(revocation(300), at(0)).is_none());
        let (id, _) = all.due(at(0)).remove(0);
        assert!(all.due(at(0)).is_empty(), "one at a time");
        assert!(all.tried(id, down(Some(7)), 0.0, at(1)).unwrap().waits);
        assert_eq!(all.next_due(), Some(at(8)), "not before the issuer said");
        assert!(all.due(at(7)).is_empty());
        assert_eq!(all.due(at(8)).len(), 1);
        let done = all.tried(id, Ok(()), 0.0, at(9)).unwrap();
        assert_eq!((done.tries, done.took, done.error), (2, Duration::from_secs(9), None));
        assert_eq!((all.next_due(), all.all().count()), (None, 0));
    }

    #[test]
    fn it_is_given_up_when_it_has_ended_or_the_issuer_says_no() {
        // OA-43
        let mut all = Revocations::default();
        all.add(revocation(5), at(0));
        let (id, _) = all.due(at(0)).remove(0);
        let over = all.tried(id, down(Some(10)), 0.0, at(1)).unwrap();
        assert!(over.error.unwrap().starts_with("it ended by itself"));
        all.add(revocation(300), at(0));
        let (id, _) = all.due(at(0)).remove(0);
        let no = IssueError::Refused { reason: Reason::IssuerConfig, detail: "no revocation".into() };
        assert!(all.tried(id, Err(no), 0.0, at(1)).unwrap().error.unwrap().contains("no revocation"));
        // What is missing here may be there again before it ends.
        all.add(revocation(300), at(0));
        let (id, _) = all.due(at(0)).remove(0);
        let (reason, after) = (Reason::KeyUnavailable, Duration::from_secs(5));
        let missing = IssueError::Later { reason, detail: "no key".into(), after };
        assert!(all.tried(id, Err(missing), 0.0, at(1)).unwrap().waits);
        assert_eq!(all.next_due(), Some(at(6)));
    }

    #[test]
    fn what_an_operator_orders_finds_room_and_comes_first() {
        // GA-10: a program that asks for many and leaves them all keeps nobody else's from being revoked.
        let mut all = Revocations::default();
        for life in 0..MOST {
            assert!(all.add(revocation(300 + life as u64), at(0)).is_none());
        }
        let ordered = || Revocation { cause: Cause::Operator, ..revocation(900) };
        let displaced = all.add(ordered(), at(0)).unwrap();
        assert_eq!((displaced.cause, displaced.credential.window.until), (Cause::Exited, at(300)));
        assert!(displaced.error.is_some(), "told, not forgotten");
        assert_eq!(all.due(at(0))[0].1.cause, Cause::Operator);
        for _ in 1..MOST - AT_ONCE {
            assert_eq!(all.add(ordered(), at(0)).unwrap().cause, Cause::Exited);
        }
        assert_eq!(all.len(), MOST);
    }

    #[test]
    fn what_has_to_wait_is_told_at_once_and_once() {
        // AUD-02: whoever has it meanwhile could use it.
        let mut all = Revocations::default();
        assert!(all.add(revocation(300), at(0)).is_none());
        let (id, _) = all.due(at(0)).remove(0);
        let waits = all.tried(id, down(Some(10)), 0.0, at(1)).unwrap();
        assert!(waits.waits && waits.error.is_some());
        let (id, _) = all.due(at(20)).remove(0);
        assert!(all.tried(id, down(Some(10)), 0.0, at(20)).is_none());
        let (id, _) = all.due(at(40)).remove(0);
        let over = all.tried(id, Ok(()), 0.0, at(40)).unwrap();
        assert!(!over.waits && over.error.is_none());
    }

    #[test]
    fn a_host_that_goes_down_is_no_flood() {
        let mut all = Revocations::default();
        for _ in 0..MOST {
            assert!(all.add(revocation(300), at(0)).is_none());
        }
        assert!(all.add(revocation(300), at(0)).unwrap().error.is_some(), "told, not forgotten");
        let first = all.due(at(0));
        assert_eq!((first.len(), all.due(at(0)).len(), all.next_due()), (AT_ONCE, 0, None));
        all.tried(first[0].0, Ok(()), 0.0, at(0));
        assert_eq!(all.due(at(0)).len(), 1);
        // Nor is one issuer's silence another's.
        let elsewhere = Revocation { order: order("other", "ledger"), ..revocation(300) };
        assert!(all.add(elsewhere, at(0)).is_none());
        assert_eq!(all.next_due(), Some(at(0)));
        assert_eq!(&*all.due(at(0)).remove(0).1.order.issuer, "other");
    }
}

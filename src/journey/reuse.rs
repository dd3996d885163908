//! Who was given which credential. In go hand-outs and uses, by the handle that is told with each credential (its fingerprint);
//! out comes an alarm where one is used by somebody to whom it was not given (S10, NHI-9, DPOP-18). Pure but for the lock.
//!
//! A use is a `Prove`, the one call that names a handle; a `Release` names none, and ends only what the caller's own grant finds.
//! A hand-out is noted when its record is spelled anew, which is once for each connection and credential: the cached release that
//! is like the last one on its connection touches nothing here. What is known is bounded, and what did not fit raises no alarm.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crate::{attest::Peer, clock::Boot, issuer::Instance, secret::Fingerprint};

/// So many handles are known at once; of more, those that end first are forgotten.
const MOST_HANDLES: usize = 8192;

/// So many processes are known to have got one that an identity's processes share, and so many all together. Where there are
/// more, nobody can be told to be the one who did not.
const MOST_TAKERS: usize = 256;
const MOST_TAKERS_OF_ALL: usize = 32_768;

/// So many processes raise one alarm each about one handle; those after them one at each use.
const MOST_TOLD: usize = 64;

/// So many holders are named in an alarm.
const NAMED: usize = 4;

/// What has ended is forgotten so often.
const FORGET: Duration = Duration::from_secs(60);

/// A process, and the session that it shares with those it was born among.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Party {
    instance: Instance,
    session: Option<u32>,
}

impl Party {
    pub(super) fn of(peer: &Peer) -> Self {
        Self { instance: Instance { pid: peer.pid(), start: peer.start() }, session: peer.session() }
    }

    /// Whether one was born among the other's kin: what a process has, those it forks have, and a script's commands hand on.
    fn is_kin(&self, other: &Self) -> bool {
        self.session.is_some() && self.session == other.session
    }
}

/// Whose a handle is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Owner {
    /// The identity.
    pub(super) identity: Arc<str>,
    /// The credential's name.
    pub(super) credential: Arc<str>,
    /// The one process that may use it, where each has its own.
    pub(super) instance: Option<Instance>,
}

/// A handle in the wrong hands.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct Reuse {
    /// What is wrong.
    pub(super) why: Why,
    /// Whose it is.
    pub(super) owner: Owner,
    /// To whom it was given: the first few.
    pub(super) given_to: Vec<Instance>,
}

/// What is wrong.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Why {
    /// It belongs to another identity.
    ForeignIdentity,
    /// It belongs to another process of the same identity.
    ForeignProcess,
    /// The identity's processes share it, but this one never got it, and is of no family with one that did.
    NeverGiven,
}

impl Why {
    /// The reason code.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::ForeignIdentity => "FOREIGN_IDENTITY",
            Self::ForeignProcess => "FOREIGN_PROCESS",
            Self::NeverGiven => "NEVER_GIVEN",
        }
    }

    /// Whether what was asked for is refused for it, too: what processes share, they may use.
    pub(super) fn is_refused(self) -> bool {
        self != Self::NeverGiven
    }
}

/// Every handle that is known.
#[derive(Debug, Default)]
pub(super) struct Handles(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    handles: HashMap<Fingerprint, Handle>,
    /// How many takers all of them have.
    takers: usize,
    forget_at: Boot,
}

#[derive(Debug)]
struct Handle {
    owner: Owner,
    until: Boot,
    takers: Vec<Party>,
    /// Whether there were too many to know them all.
    crowded: bool,
    /// Who raised an alarm about it already.
    told: Vec<Instance>,
}

impl Handles {
    /// `handle`, which ends at `until`, is given to `party`.
    pub(super) fn give(
        &self,
        handle: Fingerprint,
        owner: impl FnOnce() -> Owner,
        party: Party,
        until: Boot,
        now: Boot,
    ) {
        self.known().give(handle, owner, party, until, now);
    }

    /// `handle` was given by an agent before this one: to whom, nobody knows any more.
    pub(super) fn take_up(&self, handle: Fingerprint, owner: Owner, until: Boot, now: Boot) {
        let mut known = self.known();
        known.make_room(now);
        known.handles.insert(handle, Handle { owner, until, takers: vec![], crowded: true, told: vec![] });
    }

    /// `handle` is used by `party`, who is `identity` or nobody.
    pub(super) fn used(
        &self,
        handle: Fingerprint,
        party: Party,
        identity: Option<&str>,
        now: Boot,
    ) -> Option<Reuse> {
        self.known().used(handle, party, identity, now)
    }

    /// The alarm about this use is on record: one is enough. Not before, so that a full disk costs none.
    pub(super) fn told(&self, handle: Fingerprint, party: Party) {
        self.known().told(handle, party);
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn give(
        &mut self,
        fingerprint: Fingerprint,
        owner: impl FnOnce() -> Owner,
        party: Party,
        until: Boot,
        now: Boot,
    ) {
        if !self.handles.contains_key(&fingerprint) {
            self.make_room(now);
        }
        let handle = self.handles.entry(fingerprint).or_insert_with(|| Handle {
            owner: owner(),
            until,
            takers: vec![],
            crowded: false,
            told: vec![],
        });
        if handle.crowded || handle.takers.contains(&party) {
            return;
        }
        if handle.takers.len() >= MOST_TAKERS || self.takers >= MOST_TAKERS_OF_ALL {
            self.takers -= handle.takers.len();
            (handle.takers, handle.crowded) = (vec![], true);
            return;
        }
        handle.takers.push(party);
        self.takers += 1;
    }

    fn used(
        &self,
        fingerprint: Fingerprint,
        party: Party,
        identity: Option<&str>,
        now: Boot,
    ) -> Option<Reuse> {
        let handle = self.handles.get(&fingerprint).filter(|handle| now < handle.until)?;
        let why = handle.judge(party, identity)?;
        if handle.told.contains(&party.instance) {
            return None;
        }
        let given_to = handle.takers.iter().take(NAMED).map(|taker| taker.instance).collect();
        Some(Reuse { why, owner: handle.owner.clone(), given_to })
    }

    fn told(&mut self, fingerprint: Fingerprint, party: Party) {
        if let Some(handle) = self.handles.get_mut(&fingerprint)
            && handle.told.len() < MOST_TOLD
        {
            handle.told.push(party.instance);
        }
    }

    /// Forgets what has ended, and what ends first if that is not enough.
    fn make_room(&mut self, now: Boot) {
        let full = self.handles.len() >= MOST_HANDLES;
        if full || now >= self.forget_at {
            self.handles.retain(|_, handle| now < handle.until);
            self.forget_at = now + FORGET;
        }
        if self.handles.len() >= MOST_HANDLES {
            let first = self.handles.iter().min_by_key(|(_, handle)| handle.until);
            if let Some(first) = first.map(|(fingerprint, _)| *fingerprint) {
                self.handles.remove(&first);
            }
        }
        self.takers = self.handles.values().map(|handle| handle.takers.len()).sum();
    }
}

impl Handle {
    fn judge(&self, party: Party, identity: Option<&str>) -> Option<Why> {
        // What a process was given stays its own, whoever it is by rules that came later.
        if self.takers.iter().any(|taker| taker.instance == party.instance) {
            return None;
        }
        let known = self.crowded || self.takers.is_empty();
        match (identity, self.owner.instance) {
            (Some(identity), _) if identity != &*self.owner.identity => Some(Why::ForeignIdentity),
            (None, _) => Some(Why::ForeignIdentity),
            (Some(_), Some(instance)) => (instance != party.instance).then_some(Why::ForeignProcess),
            (Some(_), None) if known => None,
            (Some(_), None) => {
                (!self.takers.iter().any(|taker| taker.is_kin(&party))).then_some(Why::NeverGiven)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFE: Duration = Duration::from_secs(300);

    fn at(seconds: u64) -> Boot {
        Boot::from_nanos(0) + Duration::from_secs(seconds)
    }

    fn party(pid: u32, session: u32) -> Party {
        Party { instance: Instance { pid, start: 7 }, session: Some(session) }
    }

    fn handle(n: u64) -> Fingerprint {
        Fingerprint::of(&n.to_be_bytes())
    }

    fn shops(instance: Option<Instance>) -> impl Fn() -> Owner {
        move || Owner { identity: "shop".into(), credential: "orders".into(), instance }
    }

    /// A handle that `to` were given.
    fn given(to: &[Party]) -> Known {
        let mut known = Known::default();
        for party in to {
            known.give(handle(1), shops(None), *party, at(0) + LIFE, at(0));
        }
        known
    }

    /// What alarm is raised and told.
    fn why(known: &mut Known, party: Party, identity: Option<&str>) -> Option<Why> {
        let reuse = known.used(handle(1), party, identity, at(1))?;
        known.told(handle(1), party);
        Some(reuse.why)
    }

    #[test]
    fn a_handle_in_the_wrong_hands_raises_one_alarm() {
        // S10, DPOP-18
        let mut known = given(&[party(10, 10)]);
        let untold = || known.used(handle(1), party(20, 20), Some("cart"), at(1));
        assert!(untold().is_some() && untold().is_some(), "until it is on record");
        for (who, by, alarm) in [
            (party(20, 20), Some("cart"), Why::ForeignIdentity),
            (party(21, 10), Some("cart"), Why::ForeignIdentity),
            (party(22, 22), None, Why::ForeignIdentity),
            (party(23, 23), Some("shop"), Why::NeverGiven),
        ] {
            assert_eq!(why(&mut known, who, by), Some(alarm));
            assert_eq!(why(&mut known, who, by), None, "told already");
        }
        let reuse = known.used(handle(1), party(24, 24), Some("cart"), at(2)).unwrap();
        assert_eq!((reuse.owner, reuse.given_to), (shops(None)(), vec![party(10, 10).instance]));
        // Another process by the same pid is another.
        let later = Party { instance: Instance { pid: 20, start: 8 }, ..party(20, 20) };
        assert_eq!(why(&mut known, later, Some("cart")), Some(Why::ForeignIdentity));
    }

    #[test]
    fn what_one_process_has_alone_no_other_uses_not_even_its_child() {
        // S10, DPOP-18
        let owner = party(10, 10);
        let mut known = Known::default();
        known.give(handle(1), shops(Some(owner.instance)), owner, at(0) + LIFE, at(0));
        assert_eq!(why(&mut known, owner, Some("shop")), None);
        assert_eq!(why(&mut known, party(11, 10), Some("shop")), Some(Why::ForeignProcess));
    }

    #[test]
    fn ordinary_use_raises_none() {
        // S10: processes that each fetched it; one that was forked; one of unknown family where nobody is known to have it.
        let mut known = given(&[party(10, 10), party(20, 20)]);
        for who in [party(10, 10), party(20, 20), party(11, 10)] {
            assert_eq!(why(&mut known, who, Some("shop")), None);
        }
        assert_eq!(
            why(&mut known, party(10, 10), Some("renamed")),
            None,
            "it was given it under another name"
        );
        // A rotation in between: the one before is known until it ends.
        known.give(handle(2), shops(None), party(10, 10), at(400), at(100));
        assert_eq!(known.used(handle(1), party(20, 20), Some("shop"), at(101)), None);
        // What nobody was given says nothing.
        assert_eq!(known.used(handle(3), party(30, 30), Some("cart"), at(101)), None);
    }

    #[test]
    fn a_process_whose_session_cannot_be_seen_is_nobodys_kin() {
        // S10
        let hidden = |pid| Party { session: None, ..party(pid, 0) };
        let mut known = given(&[hidden(10)]);
        assert_eq!(why(&mut known, hidden(11), Some("shop")), Some(Why::NeverGiven));
    }

    #[test]
    fn what_has_ended_is_forgotten() {
        // S10
        let mut known = given(&[party(10, 10)]);
        assert_eq!(known.used(handle(1), party(20, 20), Some("cart"), at(300)), None);
        known.give(handle(2), shops(None), party(10, 10), at(700), at(400));
        assert_eq!((known.handles.len(), known.takers), (1, 1));
    }

    #[test]
    fn what_is_known_is_bounded_and_too_much_raises_no_false_alarm() {
        // S10, TM-20
        let mut known = Known::default();
        for n in 0..MOST_HANDLES as u64 + 100 {
            known.give(handle(n), shops(None), party(10, 10), at(1000 + n), at(0));
        }
        assert_eq!((known.handles.len(), known.takers), (MOST_HANDLES, MOST_HANDLES));
        assert!(known.handles.contains_key(&handle(MOST_HANDLES as u64 + 99)), "those that end first went");
        assert!(!known.handles.contains_key(&handle(99)));

        let crowd: Vec<Party> = (1..=MOST_TAKERS as u32 + 1).map(|pid| party(pid, pid)).collect();
        let mut known = given(&crowd);
        assert_eq!((known.takers, known.handles[&handle(1)].takers.len()), (0, 0));
        assert_eq!(why(&mut known, party(9999, 9999), Some("shop")), None);
        assert_eq!(why(&mut known, party(9999, 9999), Some("cart")), Some(Why::ForeignIdentity));

        for n in 0..MOST_TAKERS_OF_ALL as u64 {
            let (n, pid) = (n / 250, n as u32);
            known.give(handle(100 + n), shops(None), party(pid, pid), at(1000), at(0));
        }
        assert!(known.takers <= MOST_TAKERS_OF_ALL);
        for pid in 0..1000 {
            assert!(why(&mut known, party(pid, pid), Some("cart")).is_some(), "each is an alarm");
        }
        assert_eq!(known.handles[&handle(1)].told.len(), MOST_TOLD);
    }
}

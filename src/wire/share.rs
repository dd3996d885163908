//! How much a user may take who is granted nothing of the one thread that serves everybody. In go how long turns took, and who is granted
//! something; out comes how long the user's next turn has to wait. Whoever may have something is never counted: what he asks for is
//! what the agent is there for (ATT-26, TM-20).

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use crate::clock::{Boot, Clock};

/// So much at once, after a pause: some hundred programs that come together, until the first of them is granted something.
const AT_ONCE: Duration = Duration::from_millis(50);

/// And then one part in so many.
const PART: u32 = 10;

/// Whoever was granted something is not counted for so long after the last connection on which he was has ended.
const TRUST: Duration = Duration::from_secs(600);

/// More users are not told apart: a host has fewer.
const MOST_USERS: usize = 1024;

/// All beyond those.
const OTHERS: u32 = u32::MAX;

/// Whoever waits is told of so often in the log at most.
const TELL: Duration = Duration::from_secs(60);

/// The shares of all users, on all sockets together.
#[derive(Debug)]
pub struct Shares {
    clock: Arc<dyn Clock>,
    users: Mutex<HashMap<u32, Arc<Share>>>,
}

/// The share of one user.
#[derive(Debug)]
pub struct Share {
    uid: u32,
    clock: Arc<dyn Clock>,
    account: Mutex<Account>,
}

#[derive(Debug, Default)]
struct Account {
    /// How many of the user's connections were granted something.
    granted: usize,
    trusted_until: Boot,
    /// What was taken and is not made up for yet, as of `since`.
    taken: Duration,
    since: Boot,
    tell_again: Boot,
}

/// What may be done now.
#[derive(Debug, PartialEq)]
pub(super) enum Turn {
    /// It is not counted.
    Free,
    /// It counts from this moment on.
    From(Boot),
    /// None, before so long has passed.
    After(Duration),
}

impl Shares {
    /// Nobody has taken anything yet.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, users: Mutex::default() }
    }

    /// The share of this user.
    pub fn of(&self, uid: u32) -> Arc<Share> {
        let mut users = lock(&self.users);
        if users.len() >= MOST_USERS && !users.contains_key(&uid) {
            let now = self.clock.boot();
            users.retain(|_, share| Arc::strong_count(share) > 1 || !lock(&share.account).is_blank(now));
        }
        let uid = if users.len() >= MOST_USERS && !users.contains_key(&uid) { OTHERS } else { uid };
        let new = || Arc::new(Share { uid, clock: Arc::clone(&self.clock), account: Mutex::default() });
        Arc::clone(users.entry(uid).or_insert_with(new))
    }
}

impl Share {
    /// What its user may do now.
    pub(super) fn turn(&self) -> Turn {
        // Root is not held back: it could as well end the agent.
        if self.uid == 0 {
            return Turn::Free;
        }
        let mut account = lock(&self.account);
        if account.granted > 0 {
            return Turn::Free;
        }
        let now = self.clock.boot();
        let turn = account.turn(now);
        if matches!(turn, Turn::After(_)) && account.tell_again <= now {
            account.tell_again = now + TELL;
            tracing::warn!(
                uid = self.uid,
                "a user who is granted nothing takes more than a tenth of the agent: it waits"
            );
        }
        turn
    }

    /// A turn that began at `from` is over.
    pub(super) fn took(&self, from: Boot) {
        let now = self.clock.boot();
        lock(&self.account).take(now.since(from), now);
    }
}

impl Account {
    fn turn(&mut self, now: Boot) -> Turn {
        if self.is_trusted(now) {
            return Turn::Free;
        }
        self.make_up(now);
        match self.taken.checked_sub(AT_ONCE) {
            None | Some(Duration::ZERO) => Turn::From(now),
            Some(over) => Turn::After(over * PART),
        }
    }

    fn take(&mut self, took: Duration, now: Boot) {
        self.make_up(now);
        self.taken += took;
    }

    fn make_up(&mut self, now: Boot) {
        self.taken = self.taken.saturating_sub(now.since(self.since) / PART);
        self.since = now;
    }

    fn is_trusted(&self, now: Boot) -> bool {
        self.granted > 0 || now < self.trusted_until
    }

    /// Whether it tells no more than a new one would.
    fn is_blank(&mut self, now: Boot) -> bool {
        self.make_up(now);
        !self.is_trusted(now) && self.taken.is_zero()
    }
}

/// A connection, which may speak for its user: as long as it is there and was granted something, the user is not counted.
#[derive(Debug)]
pub struct Voucher {
    share: Arc<Share>,
    vouches: AtomicBool,
}

impl Voucher {
    /// It has been granted nothing yet.
    pub fn new(share: Arc<Share>) -> Self {
        Self { share, vouches: AtomicBool::new(false) }
    }

    /// It was granted something.
    pub fn vouch(&self) {
        // One load, for nearly every call.
        if !self.vouches.load(Ordering::Relaxed) && !self.vouches.swap(true, Ordering::Relaxed) {
            lock(&self.share.account).granted += 1;
        }
    }
}

impl Drop for Voucher {
    fn drop(&mut self) {
        if self.vouches.load(Ordering::Relaxed) {
            let now = self.share.clock.boot();
            let mut account = lock(&self.share.account);
            account.granted -= 1;
            account.trusted_until = now + TRUST;
        }
    }
}

/// Never held across a turn or a wait.
fn lock<T>(held: &Mutex<T>) -> MutexGuard<'_, T> {
    held.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;

    const MS: Duration = Duration::from_millis(1);

    fn shares() -> (Arc<ManualClock>, Shares) {
        let clock = ManualClock::at("2026-01-01T00:00:00Z".parse().unwrap());
        (Arc::clone(&clock), Shares::new(clock))
    }

    /// One turn of so long, if it may be had now.
    fn take(share: &Share, clock: &ManualClock, long: Duration) -> bool {
        match share.turn() {
            Turn::After(_) => false,
            Turn::Free => {
                clock.advance(long);
                true
            }
            Turn::From(began) => {
                clock.advance(long);
                share.took(began);
                true
            }
        }
    }

    #[test]
    fn whoever_is_granted_nothing_has_a_tenth() {
        // ATT-26, TM-20
        let (clock, shares) = shares();
        let share = shares.of(65_533);
        let began = clock.boot();
        let mut had = Duration::ZERO;
        while clock.boot().since(began) < Duration::from_secs(10) {
            match share.turn() {
                Turn::After(wait) => {
                    assert!(wait <= 10 * MS, "{wait:?}");
                    clock.advance(wait);
                }
                _ => {
                    assert!(take(&share, &clock, MS));
                    had += MS;
                }
            }
        }
        let most = AT_ONCE + Duration::from_secs(1);
        assert!((most - 5 * MS..=most + 5 * MS).contains(&had), "{had:?} of 10 s");
        // After a pause it has as much at once as in the beginning, and no more.
        clock.advance(Duration::from_secs(3600));
        let at_once = (0..1000).take_while(|_| take(&share, &clock, MS)).count();
        assert!((50..=60).contains(&at_once), "{at_once}");
    }

    #[test]
    fn one_user_waits_for_another_no_more_than_before() {
        let (clock, shares) = shares();
        let (hostile, other) = (shares.of(65_533), shares.of(1000));
        while take(&hostile, &clock, MS) {}
        assert!(take(&other, &clock, MS));
        // It is the same one on whatever socket it comes.
        assert!(!take(&shares.of(65_533), &clock, MS));
    }

    #[test]
    fn whoever_was_granted_something_and_root_are_not_counted() {
        let (clock, shares) = shares();
        let share = shares.of(1000);
        let (first, second) = (Voucher::new(Arc::clone(&share)), Voucher::new(Arc::clone(&share)));
        while take(&share, &clock, MS) {}
        first.vouch();
        first.vouch();
        second.vouch();
        let goes_on = || (0..1000).all(|_| take(&share, &clock, MS));
        assert!(goes_on());
        drop(first);
        clock.advance(2 * TRUST);
        assert!(goes_on(), "the second still is there");
        drop(second);
        assert!(goes_on(), "whoever comes for each call anew");
        clock.advance(TRUST);
        assert!(!goes_on());
        assert!((0..1000).all(|_| take(&shares.of(0), &clock, MS)));
    }

    #[test]
    fn no_more_users_are_remembered_than_there_is_something_to_tell_of() {
        let (clock, shares) = shares();
        for uid in 1..=3 * MOST_USERS as u32 {
            shares.of(uid);
            assert!(lock(&shares.users).len() <= MOST_USERS);
        }
        let all: Vec<_> = (1..=2 * MOST_USERS as u32).map(|uid| shares.of(uid)).collect();
        assert!(lock(&shares.users).len() <= MOST_USERS + 1);
        // Those beyond share one.
        assert!(Arc::ptr_eq(&all[all.len() - 1], &all[all.len() - 2]));
        while take(&all[0], &clock, MS) {}
        drop(all);
        shares.of(u32::MAX - 1);
        assert!(!take(&shares.of(1), &clock, MS), "who waits is not forgotten");
    }
}

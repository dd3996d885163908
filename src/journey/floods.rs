//! What one who floods leaves in the ledger. In go connections that were cut, and refusals, by whose they are; out comes what is
//! written now, what is gathered, and who waits: a user's first are written each by itself and at once, as ever, and no flood fills
//! a disk faster than an operator can look (TM-20). Nothing is left out: what is gathered is counted, and told with the last of it;
//! who waits is refused on record, later.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::sleep};

use super::bucket::{Bucket, Measure};
use crate::{
    audit::Entry,
    clock::{Boot, Clock},
};

/// So many cut connections of a user are written one by one, and then one in so long.
const CUTS: Measure = Measure { size: 20.0, rate: 1.0 / 60.0 };

/// So many refusals of a user come at once, and then so many a second.
const REFUSALS: Measure = Measure { size: 200.0, rate: 10.0 };

/// What is gathered is written after so long at the latest.
const TOLD_WITHIN: Duration = Duration::from_secs(60);

/// More users are not told apart: a host has fewer.
const MOST_USERS: usize = 1024;

/// Whoever could not be told at all, and all beyond those.
const OTHERS: u32 = u32::MAX;

/// The one of whom is asked, or all others in one.
fn place<T>(users: &mut HashMap<u32, T>, uid: u32, is_idle: impl Fn(&T) -> bool) -> u32 {
    if users.len() >= MOST_USERS && !users.contains_key(&uid) {
        users.retain(|_, user| !is_idle(user));
    }
    if users.len() >= MOST_USERS && !users.contains_key(&uid) { OTHERS } else { uid }
}

/// Connections that were cut.
#[derive(Debug, Default)]
pub(super) struct Cuts {
    users: Mutex<Gathered>,
    gathers: Notify,
}

#[derive(Debug, Default)]
struct Gathered {
    users: HashMap<u32, Cut>,
    /// When what is gathered is told.
    due: Option<Boot>,
}

#[derive(Debug)]
struct Cut {
    bucket: Bucket,
    /// How many were not written, and the last of them.
    gathered: Option<(u64, Box<Entry>)>,
}

impl Cuts {
    /// One more of this user's. What is to be written now, if anything.
    pub(super) fn note(&self, uid: Option<u32>, entry: Entry, now: Boot) -> Option<Entry> {
        let mut all = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = |cut: &Cut| cut.gathered.is_none() && cut.bucket.is_full(now);
        let uid = place(&mut all.users, uid.unwrap_or(OTHERS), idle);
        let cut =
            all.users.entry(uid).or_insert_with(|| Cut { bucket: Bucket::full(CUTS, now), gathered: None });
        if cut.gathered.is_none() && cut.bucket.take(now).is_ok() {
            return Some(entry);
        }
        let before = cut.gathered.take().map_or(0, |(many, _)| many);
        cut.gathered = Some((before + 1, Box::new(entry)));
        if all.due.is_none() {
            all.due = Some(now + TOLD_WITHIN);
            self.gathers.notify_one();
        }
        None
    }

    /// Waits until something gathered is to be told. For one listener.
    pub(super) async fn are_due(&self, clock: &dyn Clock) {
        loop {
            let due = self.users.lock().unwrap_or_else(PoisonError::into_inner).due;
            match due {
                None => self.gathers.notified().await,
                Some(due) => return sleep(due.since(clock.boot())).await,
            }
        }
    }

    /// All that is gathered: of each user the last, which says how many it stands for.
    pub(super) fn told(&self) -> Vec<Entry> {
        let mut all = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        all.due = None;
        let gathered = all.users.values_mut().filter_map(|cut| cut.gathered.take());
        gathered
            .map(|(many, last)| {
                let detail = last.detail.clone().unwrap_or_default();
                last.detail(format!("{detail}; the last of {many} connections of this user's that were cut"))
            })
            .collect()
    }
}

/// Those who were refused.
#[derive(Debug, Default)]
pub(super) struct Refusals(Mutex<HashMap<u32, Arc<tokio::sync::Mutex<Bucket>>>>);

impl Refusals {
    /// Returns when a refusal of this user's may be written: at once, but for one who floods. Those who wait stand in line.
    pub(super) async fn turn(&self, uid: u32, clock: &dyn Clock) {
        let bucket = {
            let now = clock.boot();
            let mut users = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let idle = |bucket: &Arc<tokio::sync::Mutex<Bucket>>| {
                bucket.try_lock().is_ok_and(|bucket| bucket.is_full(now))
            };
            let uid = place(&mut users, uid, idle);
            let new = || Arc::new(tokio::sync::Mutex::new(Bucket::full(REFUSALS, now)));
            Arc::clone(users.entry(uid).or_insert_with(new))
        };
        let mut bucket = bucket.lock().await;
        while let Err(wait) = bucket.take(clock.boot()) {
            sleep(wait).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::{
        audit::{EventType, Outcome},
        clock::{ManualClock, SeededDice, uuid_v7},
    };

    fn entry(n: u64) -> Entry {
        let now = jiff::Timestamp::UNIX_EPOCH;
        let id = uuid_v7(now, &*SeededDice::from_seed(n));
        Entry::new(EventType::AttestationFailure, Outcome::Denied, id).detail(format!("number {n}"))
    }

    fn at(seconds: u64) -> Boot {
        Boot::from_nanos(0) + Duration::from_secs(seconds)
    }

    #[test]
    fn a_flood_of_cut_connections_is_a_few_records_and_each_is_counted() {
        // TM-20
        let cuts = Cuts::default();
        let written = |uid, from, many: u64| {
            (from..from + many).filter(|n| cuts.note(Some(uid), entry(*n), at(0)).is_some()).count()
        };
        assert_eq!(written(65_533, 0, 100_000), 20, "the first, each by itself");
        assert_eq!(written(1000, 0, 5), 5, "nobody pays for another");
        let told = cuts.told();
        assert_eq!(told.len(), 1);
        let words = told[0].detail.clone().unwrap();
        assert_eq!(words, "number 99999; the last of 99980 connections of this user's that were cut");
        assert!(cuts.told().is_empty());
        // One a minute comes back, and what was gathered before is not torn apart.
        assert!(cuts.note(Some(65_533), entry(1), at(59)).is_none());
        assert!(cuts.note(Some(65_533), entry(2), at(61)).is_none());
        assert!(cuts.told()[0].detail.as_ref().unwrap().contains("the last of 2"));
        assert!(cuts.note(Some(65_533), entry(3), at(62)).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_gathered_is_told_within_a_minute() {
        let (cuts, clock) = (Arc::new(Cuts::default()), ManualClock::at(jiff::Timestamp::UNIX_EPOCH));
        let waiting = tokio::spawn({
            let (cuts, clock) = (Arc::clone(&cuts), Arc::clone(&clock));
            async move { cuts.are_due(&*clock).await }
        });
        tokio::task::yield_now().await;
        let start = Instant::now();
        for n in 0..30 {
            let _ = cuts.note(None, entry(n), clock.boot());
        }
        waiting.await.unwrap();
        assert_eq!(start.elapsed().as_secs(), 60);
        assert_eq!(cuts.told().len(), 1);
    }

    #[test]
    fn users_without_end_are_one() {
        let cuts = Cuts::default();
        let written = (0..100_000).filter(|uid| cuts.note(Some(*uid), entry(1), at(0)).is_some()).count();
        assert_eq!(written, MOST_USERS + 20);
        assert_eq!(cuts.users.lock().unwrap().users.len(), MOST_USERS + 1);
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_refused_without_end_waits_and_nobody_else_does() {
        // TM-20
        #[derive(Debug)]
        struct Paused(Instant);
        impl Clock for Paused {
            fn wall(&self) -> jiff::Timestamp {
                jiff::Timestamp::UNIX_EPOCH
            }

            fn boot(&self) -> Boot {
                Boot::from_nanos(0) + self.0.elapsed()
            }
        }
        let (refusals, start) = (Refusals::default(), Instant::now());
        let clock = Paused(start);
        for _ in 0..200 {
            refusals.turn(65_533, &clock).await;
        }
        assert!(
            start.elapsed().is_zero(),
            "a program that asks for the wrong name a few times notices nothing"
        );
        for _ in 0..100 {
            refusals.turn(65_533, &clock).await;
        }
        let waited = start.elapsed().as_secs_f64();
        assert!((9.9..10.3).contains(&waited), "{waited}");
        // Whoever gives up waiting leaves the line.
        let gives_up = tokio::time::timeout(Duration::from_millis(1), refusals.turn(65_533, &clock));
        assert!(gives_up.await.is_err());
        let before = Instant::now();
        refusals.turn(1000, &clock).await;
        assert!(before.elapsed().is_zero());
    }
}

//! How many records of each sort were written since the start, for metrics. A line carries the place where it is counted, found
//! once and kept with what is said again: a record like the last one costs one addition.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{Entry, EventType, Outcome};

/// More sorts than there are reasons, sockets and levels. Whatever comes beyond is counted without its particulars.
const MOST: usize = 1024;

/// What a record is counted as. Each part is one of a few words of this program, or a socket of its settings; never a caller's.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Sort {
    /// What happened.
    pub kind: EventType,
    /// How it ended.
    pub outcome: Outcome,
    /// The reason code.
    pub reason: Option<Arc<str>>,
    /// By which socket.
    pub socket: Option<Arc<str>>,
    /// How strong the evidence was.
    pub level: Option<Arc<str>>,
}

/// Where a line is counted once it is written.
#[derive(Debug)]
pub(super) struct Tally {
    sort: Sort,
    place: OnceLock<Arc<AtomicU64>>,
}

impl Tally {
    pub(super) fn of(entry: &Entry) -> Self {
        let word = |word: Option<&String>| word.map(|word| Arc::from(word.as_str()));
        let event = &entry.event;
        let sort = Sort {
            kind: event.kind,
            outcome: event.outcome,
            reason: word(event.reason.as_ref()),
            socket: word(entry.socket.as_ref()),
            level: word(entry.peer.as_ref().and_then(|peer| peer.level.as_ref())),
        };
        Self { sort, place: OnceLock::new() }
    }
}

/// All that was counted.
#[derive(Debug, Default)]
pub(super) struct Counts(Mutex<BTreeMap<Sort, Arc<AtomicU64>>>);

impl Counts {
    /// One more of its sort.
    pub(super) fn count(&self, tally: &Tally) {
        tally.place.get_or_init(|| self.place(&tally.sort)).fetch_add(1, Ordering::Relaxed);
    }

    /// What was counted by now.
    pub(super) fn read(&self) -> Vec<(Sort, u64)> {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.iter().map(|(sort, count)| (sort.clone(), count.load(Ordering::Relaxed))).collect()
    }

    fn place(&self, sort: &Sort) -> Arc<AtomicU64> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let sort = match counts.len() >= MOST && !counts.contains_key(sort) {
            true => Sort { reason: None, socket: None, level: None, ..sort.clone() },
            false => sort.clone(),
        };
        Arc::clone(counts.entry(sort).or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_bounded_whatever_it_is_called() {
        let counts = Counts::default();
        for n in 0..5000 {
            let entry = Entry::new(EventType::Denial, Outcome::Denied, uuid::Uuid::nil());
            let tally = Tally::of(&entry.because(format!("REASON_{n}")));
            counts.count(&tally);
            counts.count(&tally);
        }
        let read = counts.read();
        assert!(read.len() <= MOST + 1, "{}", read.len());
        assert_eq!(read.iter().map(|(_, count)| count).sum::<u64>(), 10_000);
    }
}

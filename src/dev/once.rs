//! What is good once: the `jti` of assertions, grants and proofs. In goes a value and until when it could be sent
//! again; out comes whether this was the first time. Nothing is forgotten before its time: when the memory is full,
//! nobody gets in, rather than somebody twice (PKJ-12). What has had its time is forgotten, so that an issuer which runs for
//! days holds no more than was used of late.

use std::collections::BTreeMap;

/// How many values are remembered.
const MOST: usize = 100_000;

/// So many are kept before those are looked for that have had their time.
const FEW: usize = 64;

/// The values that were used and could still be sent again, by whose they are.
#[derive(Debug, Default)]
pub(super) struct Once {
    used: BTreeMap<(String, String), i64>,
    /// How many there are when it is cleared next: twice as many as were left the last time, so that a look through all of them
    /// comes once in as many values.
    clear_at: usize,
}

impl Once {
    /// Uses up `value` of `whose`, to be remembered as long as `now < until`; both in seconds since the epoch.
    pub(super) fn burn(&mut self, whose: &str, value: &str, until: i64, now: i64) -> Result<(), Spent> {
        if self.used.len() >= self.clear_at.clamp(FEW, MOST) {
            self.used.retain(|_, until| *until > now);
            self.clear_at = 2 * self.used.len();
        }
        if self.used.len() >= MOST {
            return Err(Spent::Full);
        }
        let slot = (whose.to_owned(), value.to_owned());
        if self.used.get(&slot).is_some_and(|until| *until > now) {
            return Err(Spent::Before);
        }
        self.used.insert(slot, until);
        Ok(())
    }
}

/// Why a value does not count.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Spent {
    /// It was used before.
    Before,
    /// Too many are in flight to remember another.
    Full,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_its_owners_own_and_lasts_as_long_as_it_could_be_sent_again() {
        // PKJ-12, DPOP-12
        let mut once = Once::default();
        assert_eq!(once.burn("a", "1", 100, 50), Ok(()));
        assert_eq!(once.burn("a", "1", 100, 99), Err(Spent::Before));
        assert_eq!(once.burn("b", "1", 100, 99), Ok(()));
        assert_eq!(once.burn("a", "1", 200, 100), Ok(()));
    }

    #[test]
    fn a_full_memory_lets_nobody_in_until_something_expires() {
        // PKJ-12: forgetting would open the door to a replay.
        let mut once = Once::default();
        for number in 0..MOST {
            assert_eq!(once.burn("a", &number.to_string(), 100, 50), Ok(()));
        }
        assert_eq!(once.burn("a", "new", 100, 50), Err(Spent::Full));
        assert_eq!(once.burn("a", "new", 200, 100), Ok(()));
        assert_eq!(once.used.len(), 1);
    }

    #[test]
    fn what_has_had_its_time_is_forgotten() {
        let mut once = Once::default();
        for number in 0..100_000 {
            assert_eq!(once.burn("a", &number.to_string(), number + 60, number), Ok(()));
        }
        assert!(once.used.len() <= 2 * FEW, "{} are remembered, 60 could be sent again", once.used.len());
        // PKJ-12: and nothing else is.
        assert_eq!(once.burn("a", "99999", 200_000, 100_058), Err(Spent::Before));
    }
}

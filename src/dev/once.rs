//! What is good once: the `jti` of assertions, grants and proofs. In goes a value and until when it could be sent
//! again; out comes whether this was the first time. Nothing is forgotten before its time: when the memory is full,
//! nobody gets in, rather than somebody twice (PKJ-12).

use std::collections::BTreeMap;

/// How many values are remembered.
const MOST: usize = 100_000;

/// The values that were used and could still be sent again, by whose they are.
#[derive(Debug, Default)]
pub(super) struct Once(BTreeMap<(String, String), i64>);

impl Once {
    /// Uses up `value` of `whose`, to be remembered as long as `now < until`; both in seconds since the epoch.
    pub(super) fn burn(&mut self, whose: &str, value: &str, until: i64, now: i64) -> Result<(), Spent> {
        if self.0.len() >= MOST {
            self.0.retain(|_, until| *until > now);
        }
        if self.0.len() >= MOST {
            return Err(Spent::Full);
        }
        let slot = (whose.to_owned(), value.to_owned());
        if self.0.get(&slot).is_some_and(|until| *until > now) {
            return Err(Spent::Before);
        }
        self.0.insert(slot, until);
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
        assert_eq!(once.0.len(), 1);
    }
}

//! A bucket of turns, refilled at a pace: so many at once after a pause, and then so many a second. In go moments; out comes whether
//! another turn may be had now, or when. Pure.

use std::time::Duration;

use crate::clock::Boot;

/// How many turns there are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Measure {
    /// At once, after a pause. No more are saved up.
    pub(super) size: f64,
    /// A second.
    pub(super) rate: f64,
}

/// What is left of them.
#[derive(Debug)]
pub(super) struct Bucket {
    of: Measure,
    left: f64,
    since: Boot,
}

impl Bucket {
    pub(super) fn full(of: Measure, now: Boot) -> Self {
        Self { of, left: of.size, since: now }
    }

    /// Takes one; if there is none, how long until there is.
    pub(super) fn take(&mut self, now: Boot) -> Result<(), Duration> {
        (self.left, self.since) = (self.left_at(now), now);
        if self.left < 1.0 {
            return Err(Duration::from_secs_f64((1.0 - self.left) / self.of.rate));
        }
        self.left -= 1.0;
        Ok(())
    }

    /// Whether it tells no more than a new one would.
    pub(super) fn is_full(&self, now: Boot) -> bool {
        self.left_at(now) >= self.of.size
    }

    fn left_at(&self, now: Boot) -> f64 {
        (self.left + now.since(self.since).as_secs_f64() * self.of.rate).min(self.of.size)
    }
}

//! How far an issuer's clock is from ours. In go the `Date` headers of its answers and our wall clock at that moment; out
//! comes the median of the last five (CLK-02), or the verdict that the clocks cannot be reconciled (CLK-03). Never
//! used to lengthen the life of anything received.

use std::collections::VecDeque;

use jiff::{SignedDuration, Timestamp, fmt::rfc2822};

/// Samples kept.
const SAMPLES: usize = 5;

/// Beyond this nothing is signed.
const MAX_SKEW: SignedDuration = SignedDuration::from_secs(300);

/// `Date` has whole seconds and an answer takes time: less than this is no skew.
const NOISE: SignedDuration = SignedDuration::from_secs(2);

/// One issuer's samples.
#[derive(Clone, Debug, Default)]
pub(super) struct Skew(VecDeque<SignedDuration>);

impl Skew {
    /// Takes the `Date` of an answer that came at `now`.
    pub(super) fn sample(&mut self, date: Option<&str>, now: Timestamp) {
        if let Some(theirs) = date.and_then(http_date) {
            self.0.push_back(theirs.duration_since(now));
            if self.0.len() > SAMPLES {
                self.0.pop_front();
            }
        }
    }

    /// How far the issuer is ahead of us; None if it never said.
    pub(super) fn median(&self) -> Option<SignedDuration> {
        let mut sorted: Vec<SignedDuration> = self.0.iter().copied().collect();
        sorted.sort();
        sorted.get(sorted.len() / 2).copied()
    }

    /// What to add to our clock for `iat`.
    ///
    /// # Errors
    /// The skew, if it is beyond what is trusted.
    pub(super) fn correction(&self) -> Result<SignedDuration, SignedDuration> {
        match self.median() {
            Some(skew) if skew.abs() > MAX_SKEW => Err(skew),
            Some(skew) if skew.abs() > NOISE => Ok(skew),
            _ => Ok(SignedDuration::ZERO),
        }
    }
}

/// An HTTP-date (RFC 9110 5.6.7).
pub(super) fn http_date(text: &str) -> Option<Timestamp> {
    rfc2822::DateTimeParser::new().parse_timestamp(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(samples: &[i64]) -> Skew {
        let now: Timestamp = "1994-11-06T08:49:37Z".parse().unwrap();
        let mut skew = Skew::default();
        for seconds in samples {
            let ours = now - SignedDuration::from_secs(*seconds);
            skew.sample(Some("Sun, 06 Nov 1994 08:49:37 GMT"), ours);
        }
        skew
    }

    #[test]
    fn the_median_of_five_decides() {
        // CLK-02
        let correction = |samples: &[i64]| after(samples).correction().map(|skew| skew.as_secs());
        assert_eq!(correction(&[]), Ok(0));
        assert_eq!(correction(&[1, -2, 2]), Ok(0), "noise");
        assert_eq!(correction(&[-90]), Ok(-90));
        assert_eq!(correction(&[90, 90, 9000, 90, -9000]), Ok(90), "two liars of five");
        assert_eq!(correction(&[9000, 9000, 9000, 5, 5, 5, 5, 5]), Ok(5), "old samples go");
    }

    #[test]
    fn an_hour_apart_is_beyond_trust() {
        // CLK-03
        assert_eq!(after(&[3600]).correction(), Err(SignedDuration::from_secs(3600)));
        assert_eq!(after(&[-301]).correction(), Err(SignedDuration::from_secs(-301)));
        assert!(after(&[300]).correction().is_ok());
    }

    #[test]
    fn garbage_is_no_sample() {
        let mut skew = Skew::default();
        for date in ["", "now", "Sun, 99 Nov 1994 08:49:37 GMT", "1994-11-06"] {
            skew.sample(Some(date), Timestamp::UNIX_EPOCH);
        }
        skew.sample(None, Timestamp::UNIX_EPOCH);
        assert_eq!(skew.median(), None);
    }
}

//! How far the issuer's clock is from ours. In go `Date` headers of answers that TLS vouched for; out comes a
//! correction for `iat`, or the verdict that one of the clocks is not to be trusted (CLK-02, CLK-03). It never
//! makes anything live longer.
//!
//! A sample ties the issuer's clock to our time since boot, not to our wall clock: when somebody sets the wall
//! clock right, the old samples stay true and the correction shrinks by itself.

use std::collections::VecDeque;

use jiff::{SignedDuration, Timestamp, fmt::rfc2822::DateTimeParser};

use crate::clock::Boot;

/// Samples kept; their median survives two outliers.
const KEPT: usize = 5;

/// `Date` counts whole seconds and travels for a while: less than this is no skew at all.
const NOISE: SignedDuration = SignedDuration::from_secs(2);

/// More than this is more than a server need forgive a proof.
const TELLING: SignedDuration = SignedDuration::from_secs(5);

/// More than this is not drift but a broken clock (CLK-03).
const LIMIT: SignedDuration = SignedDuration::from_secs(300);

/// The last samples of one issuer's clock.
#[derive(Debug, Default)]
pub struct Skew(VecDeque<SignedDuration>);

/// What the samples say about our wall clock.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Estimate {
    /// No answer with a `Date` yet: the wall clock is taken as it is.
    Unknown,
    /// The issuer is so far from us that nothing may be signed (CLK-03).
    Untrusted(SignedDuration),
    /// Add this to the wall clock to read the issuer's; zero within the noise.
    Within(SignedDuration),
}

impl Estimate {
    /// What to add to the wall clock; zero where nothing is known or nothing is believed.
    pub fn correction(self) -> SignedDuration {
        match self {
            Self::Unknown | Self::Untrusted(_) => SignedDuration::ZERO,
            Self::Within(offset) => offset,
        }
    }

    /// Whether it explains why a proof was refused that was dated by our own clock (DPOP-13).
    pub fn is_telling(self) -> bool {
        self.correction().abs() > TELLING
    }

    /// The offset in milliseconds, believed or not.
    pub fn millis(self) -> Option<i64> {
        match self {
            Self::Unknown => None,
            Self::Untrusted(offset) | Self::Within(offset) => i64::try_from(offset.as_millis()).ok(),
        }
    }
}

impl Skew {
    /// Takes in a `Date` header that was received at `boot`, which was `wall` here. Returns how far this one
    /// was ahead of our wall clock; `None` if it is no HTTP-date.
    pub fn note(&mut self, date: &str, wall: Timestamp, boot: Boot) -> Option<SignedDuration> {
        let theirs = http_date(date)?;
        // While the clocks are not trusted nothing is signed and samples are rare: the next one decides alone, so
        // that a mended clock is believed at once. Until it is here, the old verdict stands.
        if matches!(self.offset(wall, boot), Estimate::Untrusted(_)) {
            self.0.clear();
        }
        if self.0.len() == KEPT {
            self.0.pop_front();
        }
        self.0.push_back(theirs.duration_since(Timestamp::UNIX_EPOCH) - since_boot(boot));
        Some(theirs.duration_since(wall))
    }

    /// How far the issuer is ahead of us (behind us, if negative), by the median.
    pub fn offset(&self, wall: Timestamp, boot: Boot) -> Estimate {
        let mut sorted: Vec<_> = self.0.iter().copied().collect();
        sorted.sort_unstable();
        let Some(median) = sorted.get(sorted.len().saturating_sub(1) / 2) else {
            return Estimate::Unknown;
        };
        let ours = wall.duration_since(Timestamp::UNIX_EPOCH) - since_boot(boot);
        let offset = *median - ours;
        if offset.abs() > LIMIT {
            Estimate::Untrusted(offset)
        } else if offset.abs() <= NOISE {
            Estimate::Within(SignedDuration::ZERO)
        } else {
            Estimate::Within(offset)
        }
    }
}

/// Reads an HTTP-date in the one form that may be sent (RFC 9110 5.6.7).
pub fn http_date(text: &str) -> Option<Timestamp> {
    let text = text.trim();
    if !text.ends_with(" GMT") {
        return None;
    }
    DateTimeParser::new().parse_timestamp(text).ok()
}

fn since_boot(boot: Boot) -> SignedDuration {
    // A host that is up for 292 years may be wrong about this.
    SignedDuration::from_nanos(i64::try_from(boot.as_nanos()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const WALL: i64 = 784_111_777; // Sun, 06 Nov 1994 08:49:37 GMT (RFC 9110 5.6.7)

    fn wall(ahead: i64) -> Timestamp {
        Timestamp::from_second(WALL + ahead).unwrap()
    }

    fn boot() -> Boot {
        Boot::from_nanos(3_600_000_000_000)
    }

    fn date(ahead: i64) -> String {
        jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&wall(ahead)).unwrap()
    }

    #[test]
    fn only_an_http_date_is_a_sample() {
        assert_eq!(http_date("Sun, 06 Nov 1994 08:49:37 GMT"), Some(wall(0)));
        for text in
            ["", "now", "784111777", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun, 06 Nov 1994 08:49:37 +0900"]
        {
            assert_eq!(http_date(text), None, "{text}");
        }
    }

    #[test]
    fn the_median_of_the_last_five_decides() {
        // CLK-02
        let mut skew = Skew::default();
        assert_eq!(skew.offset(wall(0), boot()), Estimate::Unknown);
        for ahead in [90, 91, -4000, 90, 91, 9000, 89, 90] {
            let _ = skew.note(&date(ahead), wall(0), boot());
        }
        assert_eq!(skew.offset(wall(0), boot()), Estimate::Within(SignedDuration::from_secs(90)));
    }

    #[test]
    fn small_differences_are_noise_and_large_ones_are_not_believed() {
        // CLK-02, CLK-03
        for (ahead, expected) in [
            (0, Estimate::Within(SignedDuration::ZERO)),
            (2, Estimate::Within(SignedDuration::ZERO)),
            (-2, Estimate::Within(SignedDuration::ZERO)),
            (3, Estimate::Within(SignedDuration::from_secs(3))),
            (-300, Estimate::Within(SignedDuration::from_secs(-300))),
            (300, Estimate::Within(SignedDuration::from_secs(300))),
            (301, Estimate::Untrusted(SignedDuration::from_secs(301))),
            (-3600, Estimate::Untrusted(SignedDuration::from_secs(-3600))),
        ] {
            let mut skew = Skew::default();
            assert_eq!(skew.note(&date(ahead), wall(0), boot()), Some(SignedDuration::from_secs(ahead)));
            assert_eq!(skew.offset(wall(0), boot()), expected, "{ahead}");
        }
    }

    #[test]
    fn a_step_of_our_wall_clock_is_followed_at_once() {
        // CLK-03: an hour wrong, then set right ten seconds later.
        let mut skew = Skew::default();
        let _ = skew.note(&date(3600), wall(0), boot());
        let later = boot() + Duration::from_secs(10);
        assert_eq!(skew.offset(wall(3610), later), Estimate::Within(SignedDuration::ZERO));
    }
}

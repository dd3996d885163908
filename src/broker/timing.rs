//! When to refresh, how long to hand out, when to try again. Pure: lifetimes, attempts and chance go in, moments and
//! lengths come out.

use std::time::Duration;

use crate::{clock::Boot, credential::Window};

/// The first back-off (CLK-05).
const BASE: Duration = Duration::from_secs(1);

/// The longest (CLK-05).
const CAP: Duration = Duration::from_secs(60);

/// Not even chance makes it shorter.
const LEAST: Duration = Duration::from_millis(100);

/// An issuer may ask for no longer (CLK-06).
pub const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);

/// When a credential is to be refreshed: at 2/3 of its life, give or take a tenth of it (CLK-08). Drawn once and kept
/// with the credential; drawing again at each look would pull all instants to the early edge. What was spent before a restart
/// counts (X5-03).
pub fn refresh_at(window: &Window, chance: f64) -> Boot {
    let life = window.spent + window.life();
    window.from + life.mul_f64((2.0 / 3.0) + (chance - 0.5) * 0.2).saturating_sub(window.spent)
}

/// How long before its end a credential is not handed out any more (CLK-07).
pub fn margin(life: Duration) -> Duration {
    (life / 10).min(Duration::from_secs(30))
}

/// How long to wait after the `failures`th failure in a row: full jitter (CLK-05), and never less than the issuer
/// asked for (CLK-06).
pub fn back_off(failures: u32, asked: Option<Duration>, chance: f64) -> Duration {
    let ceiling = BASE.saturating_mul(1 << failures.saturating_sub(1).min(6)).min(CAP);
    let drawn = ceiling.mul_f64(chance).max(LEAST);
    drawn.max(asked.unwrap_or_default().min(MAX_RETRY_AFTER))
}

/// From when until when an issuer may have a credential renewed: not as soon as it is given, or one that always says "now" would be
/// asked for ever; and while there is time to try again (X5-03).
pub fn advisable(window: &Window) -> (Boot, Boot) {
    let life = window.life();
    let earliest = (life / 10).clamp(Duration::from_secs(10), Duration::from_secs(300));
    let latest = life.mul_f64(0.9).max(earliest);
    (window.from + earliest, window.from + latest)
}

/// How long what was refused is left alone if nobody asks for it, by how often it was refused before: 5 seconds, then twice as
/// long each time, up to ten minutes.
pub fn left_alone(refusals: u32) -> Duration {
    Duration::from_secs(5).saturating_mul(1 << refusals.min(7)).min(Duration::from_secs(600))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(life: u64) -> Window {
        Window::opening(Boot::from_nanos(0), jiff::Timestamp::UNIX_EPOCH, Duration::from_secs(life))
    }

    #[test]
    fn a_refresh_falls_around_two_thirds() {
        // CLK-08
        let at = |chance| refresh_at(&window(300), chance).since(Boot::default()).as_secs();
        assert_eq!((at(0.0), at(0.5), at(0.9999)), (170, 200, 229));
        // X5-03: of what was kept over a restart, two thirds of its whole life; at once, if they are over.
        let kept = |spent, left| {
            let window = Window { spent: Duration::from_secs(spent), ..window(left) };
            refresh_at(&window, 0.5).since(Boot::default()).as_secs()
        };
        assert_eq!((kept(150, 150), kept(199, 101), kept(250, 50)), (50, 1, 0));
    }

    #[test]
    fn advice_is_followed_within_reason() {
        // ACM-04, X5-03
        let of = |life| {
            let (earliest, latest) = advisable(&window(life));
            (earliest.since(Boot::default()).as_secs(), latest.since(Boot::default()).as_secs())
        };
        assert_eq!((of(86_400), of(1000), of(20), of(5)), ((300, 77_760), (100, 900), (10, 18), (10, 10)));
    }

    #[test]
    fn the_margin_is_a_tenth_and_half_a_minute_at_most() {
        // CLK-07
        assert_eq!(margin(Duration::from_secs(60)), Duration::from_secs(6));
        assert_eq!(margin(Duration::from_secs(3600)), Duration::from_secs(30));
    }

    #[test]
    fn back_off_doubles_to_a_minute_and_hears_the_issuer() {
        // CLK-05, CLK-06
        let most = |failures| back_off(failures, None, 1.0).as_secs();
        assert_eq!([1, 2, 3, 6, 7, 50].map(most), [1, 2, 4, 32, 60, 60]);
        assert_eq!(back_off(1, None, 0.0), LEAST);
        let asked = |seconds| Some(Duration::from_secs(seconds));
        assert_eq!(back_off(1, asked(3), 0.0), Duration::from_secs(3));
        assert_eq!(back_off(1, asked(1_000_000), 0.0), MAX_RETRY_AFTER);
    }
}

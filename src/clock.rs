//! The only source of time and of chance. Every other room takes a [`Clock`] or a [`Dice`], or better a
//! value drawn from one, as an argument; clippy bans the rest.
//!
//! Two times, never mixed: the wall, which people and issuers read and which may be stepped, and the time
//! since boot, which counts suspend, never steps, and alone decides when something ends (CLK-01).

use std::{
    fmt,
    ops::{Add, Sub},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use ring::rand::SecureRandom;
use rustix::time::{ClockId, clock_gettime};
use zeroize::Zeroize as _;

/// A moment on `CLOCK_BOOTTIME`: counts suspend, ignores every step of the wall clock.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Boot(Duration);

impl Boot {
    /// A moment so many nanoseconds after boot.
    pub fn from_nanos(nanos: u64) -> Self {
        Self(Duration::from_nanos(nanos))
    }

    /// Nanoseconds since boot, as audit records carry them (AUD-06).
    pub fn as_nanos(self) -> u64 {
        u64::try_from(self.0.as_nanos()).unwrap_or(u64::MAX)
    }

    /// How long from `earlier` to here; zero if it is not earlier.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Boot {
    type Output = Self;

    fn add(self, life: Duration) -> Self {
        Self(self.0.saturating_add(life))
    }
}

impl Sub<Duration> for Boot {
    type Output = Self;

    fn sub(self, life: Duration) -> Self {
        Self(self.0.saturating_sub(life))
    }
}

/// Where time comes from.
pub trait Clock: fmt::Debug + Send + Sync {
    /// The wall clock: for `iat`, `exp` and records, never for a deadline.
    fn wall(&self) -> Timestamp;

    /// The time since boot: for every deadline.
    fn boot(&self) -> Boot;
}

/// Where chance comes from: 128-bit identifiers, jitter, keys' nonces.
pub trait Dice: fmt::Debug + Send + Sync {
    /// Fills `out` with bytes nobody can foretell.
    fn fill(&self, out: &mut [u8]);
}

/// A number in `0.0..1.0` from `dice`, for jitter.
pub fn fraction(dice: &dyn Dice) -> f64 {
    let mut bytes = [0; 8];
    dice.fill(&mut bytes);
    // 53 bits: what an f64 holds exactly.
    (u64::from_le_bytes(bytes) >> 11) as f64 / (1u64 << 53) as f64
}

/// A UUIDv7 (RFC 9562) from `now` and `dice`: sortable by time, unguessable in its tail.
pub fn uuid_v7(now: Timestamp, dice: &dyn Dice) -> uuid::Uuid {
    let mut tail = [0; 10];
    dice.fill(&mut tail);
    let millis = u64::try_from(now.as_millisecond()).unwrap_or(0);
    uuid::Builder::from_unix_timestamp_millis(millis, &tail).into_uuid()
}

/// The kernel's clocks.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock(());

impl SystemClock {
    /// The system's clock, to be handed down from `main`.
    pub fn shared() -> Arc<dyn Clock> {
        Arc::new(Self(()))
    }
}

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the place it comes from")]
    fn wall(&self) -> Timestamp {
        Timestamp::now()
    }

    fn boot(&self) -> Boot {
        let now = clock_gettime(ClockId::Boottime);
        let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
        let nanos = u32::try_from(now.tv_nsec).unwrap_or(0);
        Boot(Duration::new(seconds, nanos))
    }
}

/// The operating system's random numbers, fetched for many throws at once.
pub struct SystemDice {
    source: ring::rand::SystemRandom,
    ahead: Mutex<Ahead>,
}

/// Bytes that nobody has seen yet, from the end on.
struct Ahead {
    bytes: [u8; 512],
    left: usize,
}

impl SystemDice {
    /// The system's dice, to be handed down from `main`.
    #[expect(clippy::disallowed_methods, reason = "this is the place they come from")]
    pub fn shared() -> Arc<dyn Dice> {
        let ahead = Mutex::new(Ahead { bytes: [0; 512], left: 0 });
        Arc::new(Self { source: ring::rand::SystemRandom::new(), ahead })
    }
}

impl Dice for SystemDice {
    fn fill(&self, out: &mut [u8]) {
        // getrandom(2) cannot fail for a valid buffer once the pool is seeded. Without chance there is no
        // safe way on, so a kernel that breaks this ends the program.
        let fetch = |into: &mut [u8]| self.source.fill(into).expect("the kernel gives random bytes");
        let mut ahead = self.ahead.lock().unwrap_or_else(PoisonError::into_inner);
        if out.len() > ahead.bytes.len() {
            return fetch(out);
        }
        if ahead.left < out.len() {
            fetch(&mut ahead.bytes);
            ahead.left = ahead.bytes.len();
        }
        let from = ahead.left - out.len();
        let thrown = from..ahead.left;
        out.copy_from_slice(&ahead.bytes[thrown.clone()]);
        // Thrown once, and not to be found here afterwards.
        ahead.bytes[thrown].zeroize();
        ahead.left = from;
    }
}

impl fmt::Debug for SystemDice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SystemDice")
    }
}

/// A clock that stands where it is put, for tests of everything that depends on time.
#[derive(Debug)]
pub struct ManualClock(Mutex<(Timestamp, Boot)>);

impl ManualClock {
    /// A clock standing at `wall`, an hour after boot.
    pub fn at(wall: Timestamp) -> Arc<Self> {
        Arc::new(Self(Mutex::new((wall, Boot(Duration::from_secs(3600))))))
    }

    /// Both clocks go on by `life`.
    pub fn advance(&self, life: Duration) {
        let mut now = self.hands();
        now.0 += jiff::SignedDuration::try_from(life).unwrap_or(jiff::SignedDuration::MAX);
        now.1 = now.1 + life;
    }

    /// The wall clock is stepped; the time since boot is not.
    pub fn step_wall(&self, by: jiff::SignedDuration) {
        self.hands().0 += by;
    }

    fn hands(&self) -> std::sync::MutexGuard<'_, (Timestamp, Boot)> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Clock for ManualClock {
    fn wall(&self) -> Timestamp {
        self.hands().0
    }

    fn boot(&self) -> Boot {
        self.hands().1
    }
}

/// Dice that fall the same way each time from the same seed, for tests. They keep no secret.
#[derive(Debug)]
pub struct SeededDice(Mutex<u64>);

impl SeededDice {
    /// Dice that start from `seed`.
    pub fn from_seed(seed: u64) -> Arc<Self> {
        Arc::new(Self(Mutex::new(seed)))
    }
}

impl Dice for SeededDice {
    fn fill(&self, out: &mut [u8]) {
        let mut state = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for byte in out {
            // splitmix64: well spread, reproducible, not secret.
            *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut mixed = *state;
            mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            *byte = (mixed >> 56) as u8;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boot_time_never_goes_below_zero() {
        let early = Boot::from_nanos(5);
        assert_eq!(early.since(early + Duration::from_secs(1)), Duration::ZERO);
        assert_eq!((early - Duration::from_secs(1)).as_nanos(), 0);
    }

    #[test]
    fn the_system_clock_moves_forward() {
        let clock = SystemClock::shared();
        let first = clock.boot();
        assert!(clock.boot() >= first);
        assert!(clock.wall().as_second() > 1_600_000_000);
    }

    #[test]
    fn the_systems_dice_never_give_the_same_bytes_twice() {
        let dice = SystemDice::shared();
        let mut seen = std::collections::HashSet::new();
        for _ in 0..200 {
            let mut short = [0; 16];
            dice.fill(&mut short);
            assert!(seen.insert(short.to_vec()));
            let mut long = [0; 1024];
            dice.fill(&mut long);
            assert!(seen.insert(long.to_vec()));
        }
    }

    #[test]
    fn a_fraction_stays_below_one() {
        let dice = SeededDice::from_seed(7);
        for _ in 0..1000 {
            let drawn = fraction(&*dice);
            assert!((0.0..1.0).contains(&drawn));
        }
    }

    #[test]
    fn an_exchange_id_is_a_version_7_uuid_of_its_moment() {
        let now = Timestamp::from_millisecond(1_700_000_000_123).unwrap();
        let id = uuid_v7(now, &*SeededDice::from_seed(1));
        assert_eq!(id.get_version_num(), 7);
        assert_eq!(id.as_u128() >> 80, 1_700_000_000_123);
    }
}

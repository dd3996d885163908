//! The nonces that a server of ours wants in proofs (RFC 9449 8 and 9). In go the time since boot and the dice; out
//! comes the nonce of the hour. It is made from dice alone, so that it tells nobody the time, and the one before
//! stays good for a turn, so that nobody is refused for having been slow.

use std::time::Duration;

use crate::{
    clock::{Boot, Dice},
    jose::b64,
};

/// How long a nonce is the current one.
const TURN: Duration = Duration::from_secs(300);

/// The current nonce and the one before.
#[derive(Debug, Default)]
pub(super) struct Nonces {
    current: Option<(String, Boot)>,
    before: Option<String>,
}

impl Nonces {
    /// The current nonce: a new one if its turn is over.
    pub(super) fn current(&mut self, now: Boot, dice: &dyn Dice) -> &str {
        let made = self.current.as_ref().map(|(_, made)| *made);
        if made.is_none_or(|made| now.since(made) >= TURN) {
            // The one before has had its time, too, if nobody asked for two turns.
            let slept = made.is_some_and(|made| now.since(made) >= 2 * TURN);
            self.before = self.current.take().filter(|_| !slept).map(|(nonce, _)| nonce);
        }
        let (nonce, _) = self.current.get_or_insert_with(|| (throw(dice), now));
        nonce
    }

    /// Whether a proof with `nonce` is good at `now`.
    pub(super) fn take(&mut self, nonce: &str, now: Boot, dice: &dyn Dice) -> bool {
        self.current(now, dice) == nonce || self.before.as_deref() == Some(nonce)
    }
}

/// A nonce that nobody could foretell.
pub(super) fn throw(dice: &dyn Dice) -> String {
    let mut thrown = [0; 16];
    dice.fill(&mut thrown);
    b64(&thrown)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SeededDice;

    #[test]
    fn a_nonce_has_its_turn_and_one_more() {
        // DPOP-07, DPOP-09
        let dice = SeededDice::from_seed(1);
        let start = Boot::from_nanos(7);
        let mut nonces = Nonces::default();
        let first = nonces.current(start, &*dice).to_owned();
        assert_eq!(nonces.current(start + TURN - Duration::from_nanos(1), &*dice), first);
        let second = nonces.current(start + TURN, &*dice).to_owned();
        assert_ne!(first, second);
        assert!(nonces.take(&first, start + TURN, &*dice));
        assert!(nonces.take(&second, start + TURN, &*dice));
        assert!(!nonces.take("", start + TURN, &*dice));
        let later = start + 2 * TURN;
        assert!(!nonces.take(&first, later, &*dice));
        assert!(nonces.take(&second, later, &*dice));
        // Nobody asked for two turns: what was current then is as old as what was before.
        let third = nonces.current(later, &*dice).to_owned();
        assert!(!nonces.take(&third, later + 2 * TURN, &*dice));
    }
}

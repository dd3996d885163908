//! A question that only the attested process can answer. In go eight bytes of chance, sent to whoever reads the connection;
//! out comes whether the process that connected has sent them back. Evidence says what that process is; only the
//! answer says that it is the one that reads: a process can ask, become a trusted program by exec, and leave the
//! socket with somebody else (E21). The wire carries the question as an HTTP/2 PING, which every client must
//! acknowledge (RFC 9113 6.7), and every chunk it reads is the pinned process's own.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::SetOnce;

use super::Missing;
use crate::clock::Dice;

/// One connection's question (ATT-17).
#[derive(Debug)]
pub struct Challenge {
    nonce: [u8; 8],
    put: AtomicBool,
    answered: SetOnce<()>,
}

impl Challenge {
    /// A question that nobody can foretell.
    pub fn new(dice: &dyn Dice) -> Self {
        let mut nonce = [0; 8];
        dice.fill(&mut nonce);
        Self { nonce, put: AtomicBool::new(false), answered: SetOnce::new() }
    }

    /// What the other end has to send back. It counts as put from now on.
    pub fn put(&self) -> [u8; 8] {
        self.put.store(true, Ordering::Relaxed);
        self.nonce
    }

    /// Takes what the pinned process sent back. False if it is not the answer.
    pub fn answer(&self, echoed: [u8; 8]) -> bool {
        let right = self.put.load(Ordering::Relaxed) && echoed == self.nonce;
        if right {
            // Said twice is said.
            let _ = self.answered.set(());
        }
        right
    }

    /// Waits for the answer.
    ///
    /// # Errors
    /// [`Missing::NotChallenged`] at once, if the question was never put.
    pub async fn answered(&self) -> Result<(), Missing> {
        if !self.put.load(Ordering::Relaxed) {
            return Err(Missing::NotChallenged);
        }
        self.answered.wait().await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SeededDice;

    #[tokio::test]
    async fn only_what_was_asked_answers() {
        // ATT-17
        let challenge = Challenge::new(&*SeededDice::from_seed(1));
        assert!(!challenge.answer(challenge.nonce), "nobody has asked yet");
        assert_eq!(challenge.answered().await, Err(Missing::NotChallenged));
        let asked = challenge.put();
        assert!(!challenge.answer([0; 8]));
        assert!(challenge.answer(asked) && challenge.answer(asked));
        assert_eq!(challenge.answered().await, Ok(()));
    }
}

//! Whose turn it is to have a program read. Hashing one of 400 MB is a quarter of a second of a core, and whoever can
//! change a file can ask for it again and again (ATT-14). In goes work for a user; out comes its result, one at a time
//! for each user, and with a pause after it of thrice what it took: nobody gets more than a quarter of a core.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::{
    task::{JoinError, spawn_blocking},
    time::sleep,
};

use crate::clock::{Boot, Clock};

/// The pause after work, in times of what it took.
const PAUSE: u32 = 3;

/// Users that are remembered before those who wait for nothing are forgotten.
const MAX_REMEMBERED: usize = 256;

/// When a user's next work may begin. Locked while one is under way.
type Slot = Arc<tokio::sync::Mutex<Boot>>;

/// The turns of all users.
#[derive(Debug)]
pub struct Turns {
    clock: Arc<dyn Clock>,
    slots: Mutex<HashMap<u32, Slot>>,
}

impl Turns {
    /// Nobody has had a turn yet.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, slots: Mutex::default() }
    }

    /// Does `work` for `uid` on a thread that may wait, when it is its turn.
    ///
    /// # Errors
    /// [`JoinError`] if the work panicked or the runtime ends.
    pub async fn take<T: Send + 'static>(
        &self,
        uid: u32,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, JoinError> {
        let slot = self.slot(uid);
        let mut next = slot.lock().await;
        sleep(next.since(self.clock.boot())).await;
        let began = self.clock.boot();
        let done = spawn_blocking(work).await;
        let now = self.clock.boot();
        *next = now + now.since(began) * PAUSE;
        done
    }

    fn slot(&self, uid: u32) -> Slot {
        let now = self.clock.boot();
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if slots.len() >= MAX_REMEMBERED {
            slots.retain(|_, slot| {
                slot.try_lock().is_ok_and(|next| *next > now) || Arc::strong_count(slot) > 1
            });
        }
        Arc::clone(slots.entry(uid).or_insert_with(|| Arc::new(tokio::sync::Mutex::new(now))))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::*;
    use crate::clock::ManualClock;

    #[tokio::test(start_paused = true)]
    async fn a_user_that_had_much_work_done_waits_and_others_do_not() {
        // ATT-14
        let clock = ManualClock::at("2026-01-01T00:00:00Z".parse().unwrap());
        let turns = Turns::new(Arc::clone(&clock) as Arc<dyn Clock>);
        let long = || {
            let clock = Arc::clone(&clock);
            move || clock.advance(Duration::from_millis(270))
        };
        let start = Instant::now();
        turns.take(1000, long()).await.unwrap();
        turns.take(1001, long()).await.unwrap();
        assert!(start.elapsed() < Duration::from_millis(100), "first turns come at once");
        turns.take(1000, || ()).await.unwrap();
        // 270 ms of the pause passed while the other user's work was done.
        assert!(start.elapsed() >= Duration::from_millis(2 * 270), "{:?}", start.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_users_are_remembered_than_wait() {
        let clock = ManualClock::at("2026-01-01T00:00:00Z".parse().unwrap());
        let turns = Turns::new(clock);
        for uid in 0..2 * MAX_REMEMBERED as u32 {
            turns.take(uid, || ()).await.unwrap();
        }
        assert!(turns.slots.lock().unwrap().len() <= MAX_REMEMBERED);
    }
}

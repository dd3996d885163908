//! The heartbeat that a service manager may ask for (`WatchdogSec=`). In goes how long it waits; out comes a beat each time the one
//! who waits for it can wait, and the ledger answers: an agent that hangs beats no more, and is started anew. What an agent that
//! is well cannot do, for want of an issuer or of room on the disk, is no matter of this: a new one could not do it either.

use std::{future::Future, time::Duration};

use tokio::time::{Instant, sleep_until};

use super::tell_manager;
use crate::audit::Ledger;

/// When to beat. Both clocks stand still while the host sleeps: the service manager's for this is the same.
#[derive(Debug)]
pub(super) struct Pulse {
    every: Option<Duration>,
    next: Instant,
}

impl Pulse {
    /// As often as the service manager asks for, if it asks: it waits `watchdog` for a beat, so there are two in that time
    /// (sd_watchdog_enabled(3)).
    pub(super) fn begin(watchdog: Option<Duration>) -> Self {
        Self { every: watchdog.map(|watchdog| watchdog / 2), next: Instant::now() }
    }

    /// Waits until a beat is due and may be given; for ever, if nobody asks for one or the ledger does not answer. Whoever stops
    /// waiting loses nothing.
    pub(super) async fn due(&mut self, ledger: &Ledger) {
        let Some(every) = self.every else { return std::future::pending().await };
        sleep_until(self.next).await;
        if !ledger.answers().await {
            return std::future::pending().await;
        }
        self.next = Instant::now() + every;
    }

    /// Beats while `work` goes on.
    pub(super) async fn beside<T>(&mut self, ledger: &Ledger, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                () = self.due(ledger) => beat(),
            }
        }
    }
}

/// Tells the service manager that all is well.
pub(super) fn beat() {
    tell_manager(&[sd_notify::NotifyState::Watchdog]);
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;
    use crate::{
        audit::{Agent, Host, LedgerSettings, Scribe, open},
        clock::{ManualClock, SeededDice},
        keys::Vault,
    };

    const WATCHDOG: Duration = Duration::from_secs(30);

    fn ledger(directory: &std::path::Path) -> (Ledger, Scribe) {
        let settings = LedgerSettings::new(directory.join("audit"), "keybearer/test".into());
        let host = Host { id: None, name: "h".into() };
        let agent = Agent { version: "0".into(), instance: "i".into(), config_digest: "d".into() };
        let clock = ManualClock::at("2026-01-01T00:00:00Z".parse().unwrap());
        open(settings, host, "b".into(), agent, &Vault::default(), clock, SeededDice::from_seed(1)).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn it_beats_twice_in_the_time_and_only_where_it_is_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let (ledger, scribe) = ledger(dir.path());
        tokio::spawn(scribe.run());
        let mut pulse = Pulse::begin(Some(WATCHDOG));
        let began = Instant::now();
        for beats in 0..4 {
            pulse.due(&ledger).await;
            assert_eq!(began.elapsed(), WATCHDOG / 2 * beats);
        }
        // Whoever is interrupted waits no longer for that.
        assert!(timeout(WATCHDOG / 4, pulse.due(&ledger)).await.is_err());
        pulse.due(&ledger).await;
        assert_eq!(began.elapsed(), WATCHDOG / 2 * 4);
        assert!(timeout(WATCHDOG * 100, Pulse::begin(None).due(&ledger)).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn where_the_ledger_does_not_answer_there_is_no_beat() {
        let dir = tempfile::tempdir().unwrap();
        let (ledger, scribe) = ledger(dir.path());
        let mut pulse = Pulse::begin(Some(WATCHDOG));
        assert!(timeout(WATCHDOG * 10, pulse.due(&ledger)).await.is_err(), "its scribe does not run");
        let scribe = tokio::spawn(scribe.run());
        timeout(WATCHDOG, pulse.due(&ledger)).await.expect("now it does");
        scribe.abort();
        assert!(scribe.await.unwrap_err().is_cancelled());
        assert!(timeout(WATCHDOG * 10, pulse.due(&ledger)).await.is_err(), "it has died");
    }

    #[tokio::test(start_paused = true)]
    async fn it_beats_beside_what_takes_long_until_that_is_done() {
        let dir = tempfile::tempdir().unwrap();
        let (ledger, scribe) = ledger(dir.path());
        tokio::spawn(scribe.run());
        let mut pulse = Pulse::begin(Some(WATCHDOG));
        let work = async {
            tokio::time::sleep(WATCHDOG * 3).await;
            "done"
        };
        assert_eq!(pulse.beside(&ledger, work).await, "done");
        // The last beat was no longer ago than it may be.
        assert!(pulse.next.duration_since(Instant::now()) <= WATCHDOG / 2);
    }
}

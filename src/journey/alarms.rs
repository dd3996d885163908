//! Alarms about what was given to one and used by another (S10). In go hand-outs, uses, and what issuers say; out comes, before
//! anything is answered, a record with both parties, a line in the log, and words for status.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use super::{
    Journey, Refusal, Session,
    account::{self, Account},
    reuse::{Owner, Party},
};
use crate::{
    attest::Workload,
    audit::{EventType, Outcome},
    broker::Reused,
    clock::Boot,
    credential::Credential,
    policy::Grant,
};

/// So long, and so many, are shown to an operator.
const SHOWN_FOR: Duration = Duration::from_secs(24 * 60 * 60);
const MOST_SHOWN: usize = 8;

impl Journey {
    /// Notes to whom a credential is given. What is told anew is noted: whoever gets the same again on the same connection is
    /// known already, and that is nearly every call.
    pub(super) fn give(&self, session: &Session, grant: &Grant, credential: &Credential) {
        let owner = || Owner {
            identity: Arc::clone(grant.identity()),
            credential: Arc::clone(&grant.rule().name),
            instance: grant.instance(),
        };
        let (party, until) = (Party::of(session.peer()), credential.window.until);
        self.handles.give(credential.fingerprint, owner, party, until, self.clock.boot());
    }

    /// Raises an alarm, on record, if the handle that a proof is wanted for is another's (S10). Whatever is answered then, this
    /// comes first.
    pub(super) async fn look_out(
        &self,
        account: &Account<'_>,
        workload: Option<&Workload>,
        identity: Option<&Arc<str>>,
    ) -> Result<(), Refusal> {
        let Some((party, handle)) = account.uses() else { return Ok(()) };
        let identity = identity.map(|identity| &**identity);
        let Some(reuse) = self.handles.used(handle, party, identity, self.clock.boot()) else {
            return Ok(());
        };
        let entry = account.reused(workload, identity, &reuse);
        self.alarm(entry.detail.as_deref().unwrap_or_default());
        self.ledger.record(entry).await.map(drop)?;
        self.handles.told(handle, party);
        Ok(())
    }

    fn alarm(&self, words: &str) {
        tracing::error!("reuse detected: {words}");
        let shown = format!("{:.0} reuse detected: {words}", self.clock.wall());
        self.alarms.raise(shown.clone(), shown, self.clock.boot());
    }

    /// Alarms of the last day, and then the signals, newest first, for status: so many signals take the place of no alarm.
    pub fn alarms(&self) -> Vec<String> {
        let now = self.clock.boot();
        [self.alarms.of_late(now), self.signals.of_late(now)].concat()
    }

    /// Writes down what issuers have said of reuse so far. When this returns, all of it is on record, whoever did it.
    pub(super) async fn tell_of_reuse(&self) {
        let _raising = self.noticing.lock().await;
        while let Some(reused) = self.broker.reused() {
            self.seen_before(&reused).await;
        }
    }

    /// ER-10: nobody but this agent has our keys, and it uses no value twice. So somebody else has them, or it has a fault.
    async fn seen_before(&self, reused: &Reused) {
        let outcome = if reused.was_issued { Outcome::Success } else { Outcome::Failed };
        let entry = self.entry(EventType::ReuseDetected, outcome);
        let entry = account::seen_before(entry, reused, &self.rules.load().environment);
        self.alarm(entry.detail.as_deref().unwrap_or_default());
        if let Err(error) = self.ledger.record(entry).await {
            tracing::error!(%error, "an alarm could not be recorded");
        }
    }
}

/// Alarms that operators have not had the time to see: shown for a day, the last few in words.
#[derive(Debug, Default)]
pub(super) struct Alarms(Mutex<VecDeque<Alarm>>);

#[derive(Debug)]
struct Alarm {
    at: Boot,
    about: String,
    words: String,
}

impl Alarms {
    /// One more, in place of one about the same.
    pub(super) fn raise(&self, about: String, words: String, now: Boot) {
        let mut alarms = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        alarms.retain(|alarm| alarm.about != about);
        alarms.push_front(Alarm { at: now, about, words });
        alarms.truncate(MOST_SHOWN);
    }

    /// Those of the last day, newest first.
    pub(super) fn of_late(&self, now: Boot) -> Vec<String> {
        let alarms = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let late = alarms.iter().take_while(|alarm| now.since(alarm.at) < SHOWN_FOR);
        late.map(|alarm| alarm.words.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Boot {
        Boot::from_nanos(0) + Duration::from_secs(seconds)
    }

    #[test]
    fn alarms_are_shown_for_a_day_the_last_few() {
        // S10
        let alarms = Alarms::default();
        for n in 0..20 {
            alarms.raise(n.to_string(), n.to_string(), at(n * 3600));
        }
        assert_eq!(alarms.of_late(at(19 * 3600))[..2], ["19", "18"]);
        assert_eq!(alarms.of_late(at(19 * 3600)).len(), MOST_SHOWN);
        assert_eq!(alarms.of_late(at(41 * 3600)), ["19", "18"]);
        assert_eq!(alarms.of_late(at(43 * 3600)), [""; 0]);
        for words in ["once", "twice"] {
            alarms.raise("the same".into(), words.into(), at(50 * 3600));
        }
        assert_eq!(alarms.of_late(at(50 * 3600)), ["twice"]);
    }
}

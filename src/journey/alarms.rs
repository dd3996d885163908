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

/// So long, and so many of one kind about one identity, are shown to an operator; so many of these are counted.
const SHOWN_FOR: Duration = Duration::from_secs(24 * 60 * 60);
const MOST_OF_ONE: usize = 2;
const MOST_COUNTED: usize = 64;

/// So many kinds and identities are kept apart. The settings name these, so nobody makes more of them.
const MOST_GROUPS: usize = 64;

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
        self.alarm(identity, entry.detail.as_deref().unwrap_or_default());
        self.ledger.record(entry).await.map(drop)?;
        self.handles.told(handle, party);
        Ok(())
    }

    /// An alarm about who did it, as far as that is known.
    fn alarm(&self, identity: Option<&str>, words: &str) {
        tracing::error!("reuse detected: {words}");
        let shown = format!("{:.0} reuse detected: {words}", self.clock.wall());
        let of = format!("reuse detected by {}", identity.unwrap_or("nobody known"));
        self.alarms.raise(&of, shown.clone(), shown, self.clock.boot());
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
        self.alarm(Some(&reused.order.identity), entry.detail.as_deref().unwrap_or_default());
        if let Err(error) = self.ledger.record(entry).await {
            tracing::error!(%error, "an alarm could not be recorded");
        }
    }
}

/// Alarms that operators have not had the time to see: shown for a day, the last few in words. Of one kind about one identity, two:
/// whoever is that identity can raise as many as he likes, and must not make room for himself among those of others.
#[derive(Debug, Default)]
pub(super) struct Alarms(Mutex<VecDeque<Group>>);

/// All of one kind about one identity, newest first.
#[derive(Debug)]
struct Group {
    of: String,
    alarms: VecDeque<Alarm>,
}

#[derive(Debug)]
struct Alarm {
    at: Boot,
    about: String,
    words: String,
}

impl Alarms {
    /// One more of a kind and an identity, in place of one about the same.
    pub(super) fn raise(&self, of: &str, about: String, words: String, now: Boot) {
        let mut groups = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = groups.iter().position(|group| group.of == of).and_then(|at| groups.remove(at));
        let mut group = known.unwrap_or_else(|| Group { of: of.to_owned(), alarms: VecDeque::new() });
        group.alarms.retain(|alarm| alarm.about != about);
        group.alarms.push_front(Alarm { at: now, about, words });
        group.alarms.truncate(MOST_COUNTED);
        groups.push_front(group);
        groups.truncate(MOST_GROUPS);
    }

    /// Those of the last day, newest first; what is left out of one kind about one identity is counted.
    pub(super) fn of_late(&self, now: Boot) -> Vec<String> {
        let groups = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all = Vec::new();
        for group in groups.iter() {
            let late = group.alarms.iter().take_while(|alarm| now.since(alarm.at) < SHOWN_FOR);
            let late: Vec<&str> = late.map(|alarm| alarm.words.as_str()).collect();
            let shown = late.len().min(MOST_OF_ONE);
            all.extend(late[..shown].iter().map(|words| (*words).to_owned()));
            match (late.len() - shown, all.last_mut()) {
                (0, _) | (_, None) => {}
                (more, Some(last)) if late.len() == MOST_COUNTED => {
                    last.push_str(&format!(" (and {more} more of {}, or more than that)", group.of));
                }
                (more, Some(last)) => last.push_str(&format!(" (and {more} more of {})", group.of)),
            }
        }
        all
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
        for n in 0..20_u64 {
            alarms.raise(&format!("kind {}", n % 10), n.to_string(), n.to_string(), at(n * 3600));
        }
        assert_eq!(alarms.of_late(at(19 * 3600))[..4], ["19", "9", "18", "8"]);
        assert_eq!(alarms.of_late(at(19 * 3600)).len(), 20);
        assert_eq!(alarms.of_late(at(41 * 3600)), ["19", "18"]);
        assert_eq!(alarms.of_late(at(43 * 3600)), [""; 0]);
        for words in ["once", "twice"] {
            alarms.raise("kind", "the same".into(), words.into(), at(50 * 3600));
        }
        assert_eq!(alarms.of_late(at(50 * 3600)), ["twice"]);
    }

    #[test]
    fn whoever_raises_many_takes_the_place_of_nobody_else() {
        // TM-20, S17
        let alarms = Alarms::default();
        alarms.raise("new place of cart", "cart".into(), "cart from b".into(), at(0));
        for n in 0..9 {
            alarms.raise("new place of shop", n.to_string(), format!("shop from {n}"), at(1 + n));
        }
        alarms.raise("two places of shop", "two".into(), "shop from 1 and 2".into(), at(20));
        let seven = "shop from 7 (and 7 more of new place of shop)";
        assert_eq!(alarms.of_late(at(30)), ["shop from 1 and 2", "shop from 8", seven, "cart from b"]);
        // Those of the day before are counted no more.
        let day = SHOWN_FOR.as_secs();
        assert_eq!(alarms.of_late(at(day + 7))[2], "shop from 7");
        for n in 0..1000 {
            alarms.raise("new place of shop", n.to_string(), format!("shop from {n}"), at(100));
        }
        let all = alarms.of_late(at(100));
        assert_eq!(all.len(), 4);
        assert!(all[1].ends_with("(and 62 more of new place of shop, or more than that)"), "{all:?}");
        for n in 0..1000 {
            alarms.raise(&n.to_string(), String::new(), String::new(), at(100));
        }
        assert_eq!(alarms.of_late(at(100)).len(), MOST_GROUPS, "what is kept is bounded");
    }
}

//! Signals: what operators want to know of a use before anything is handed out for it (S17). In go who asks, as attested, and the grant;
//! out comes a record of each thing that is new about it, a line in the log and words for status, and only then does the call go on:
//! a person who comes as a service (`human_session`, NHI-10), a place that the identity was never used from (`new_place`), two places
//! that use it at once (`two_places`, NHI-9). That a proof or a value was used twice is `reuse.rs`' and `alarms.rs`'.
//!
//! The way of a cached credential pays one comparison for it: a connection is looked at when it first asks for an identity, and once a
//! minute while it goes on asking, because two places can come to be in use long after both connected. Nothing more is read for it
//! either: what tells a person was read with the evidence, in the texts that were read before there were signals.
//!
//! A signal that cannot be recorded refuses the call, like anything that cannot be; one that was recorded and not yet noted when its
//! caller went away is raised once more.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::task::spawn_blocking;

use super::{
    Journey, Refusal, Session,
    account::Account,
    places::{JUDGE_AGAIN, News, Place},
};
use crate::{
    attest::{Sign, Workload},
    audit::{EventType, Outcome},
    issuer::Instance,
    policy::{Denial, Grant, Humans, Reason},
};

/// So many processes with a person behind them are known to be told of; of more, the first are told of once more.
const MOST_PEOPLE: usize = 4096;

impl Journey {
    /// Raises what is new about this use, on record (S17). Whatever is fetched or answered then, this comes first.
    pub(super) async fn notice(
        &self,
        account: &Account<'_>,
        session: &Session,
        workload: &Arc<Workload>,
        grant: &Grant,
    ) -> Result<(), Refusal> {
        let (identity, now) = (grant.identity(), self.clock.boot());
        if session.is_noticed(workload, identity, now) {
            return Ok(());
        }
        let place = Place::of(workload.evidence(), self.clock.wall());
        let life = grant.rule().max_ttl;
        let human = grant.explanation().human;
        let is_known = human.is_none() || self.people.knows(workload, identity);
        // In one step, so that of two first places at once one is the measure and the other new.
        let noted = self.places.with(|places| {
            let nothing_new = is_known && places.news(identity, &place, now).is_empty();
            nothing_new.then(|| places.note(identity, &place, life, now))
        });
        let is_to_keep = match noted {
            Some(is_to_keep) => is_to_keep,
            None => {
                // Whoever raises the same meanwhile has raised it when this is held.
                let _raising = self.noticing.lock().await;
                if let Some(sign) = human {
                    self.raise_human(account, workload, (identity, grant.humans()), sign).await?;
                }
                for news in self.places.with(|places| places.news(identity, &place, now)) {
                    self.raise_news(account, workload, identity, &place, news).await?;
                }
                self.places.with(|places| places.note(identity, &place, life, now))
            }
        };
        if is_to_keep {
            self.keep_places().await;
        }
        session.notice(workload, identity, now + JUDGE_AGAIN);
        Ok(())
    }

    /// Raises that a person was refused, once for each process; each refusal has a record of its own.
    pub(super) async fn turn_away(
        &self,
        account: &Account<'_>,
        workload: &Workload,
        denial: &Denial,
    ) -> Result<(), Refusal> {
        let Some(identity) = denial.explanation.identity.as_ref() else { return Ok(()) };
        match denial.explanation.human {
            Some(sign) if denial.reason == Reason::HumanSession => {
                let _raising = self.noticing.lock().await;
                self.raise_human(account, workload, (identity, Humans::Refused), sign).await
            }
            _ => Ok(()),
        }
    }

    async fn raise_human(
        &self,
        account: &Account<'_>,
        workload: &Workload,
        (identity, humans): (&Arc<str>, Humans),
        sign: Sign,
    ) -> Result<(), Refusal> {
        if self.people.knows(workload, identity) {
            return Ok(());
        }
        let (outcome, then) = match humans {
            Humans::Allowed => (Outcome::Success, "as it may"),
            Humans::Refused => (Outcome::Denied, "and is refused"),
            Humans::Told => (Outcome::Success, "and is served: humans = \"refused\" would end that"),
        };
        let words = format!("{}, came as {identity}, {then}: {}", who(workload), sign.words());
        let entry =
            account.signal((EventType::HumanSession, outcome), workload, identity, (sign.as_str(), &words));
        self.ledger.record(entry).await.map(drop)?;
        self.people.told(workload, identity);
        if humans == Humans::Allowed {
            tracing::info!("human session: {words}");
        } else {
            let about = format!("{identity} {} {humans:?}", sign.words());
            self.signal(identity, "human session", &about, &words);
        }
        Ok(())
    }

    async fn raise_news(
        &self,
        account: &Account<'_>,
        workload: &Workload,
        identity: &Arc<str>,
        place: &Place,
        news: News,
    ) -> Result<(), Refusal> {
        let (who, here) = (who(workload), place.words());
        let (kind, reason, name, words) = match news {
            News::NewPlace(before) => (
                EventType::NewPlace,
                "NEW_PLACE",
                "new place",
                format!(
                    "{who}, uses {identity} from {here}, for the first time; it was used from {before} other places"
                ),
            ),
            News::TwoPlaces(other) => (
                EventType::TwoPlaces,
                "TWO_PLACES",
                "two places",
                format!("{who}, uses {identity} from {here}, while {other} uses it too"),
            ),
        };
        let about = format!("{identity} {name} {here}");
        let entry = account.signal((kind, Outcome::Success), workload, identity, (reason, &words));
        self.ledger.record(entry).await.map(drop)?;
        self.signal(identity, name, &about, &words);
        Ok(())
    }

    fn signal(&self, identity: &str, name: &str, about: &str, words: &str) {
        tracing::warn!("{name}: {words}");
        let shown = format!("{:.0} {name}: {words}", self.clock.wall());
        self.signals.raise(&format!("{name} of {identity}"), about.to_owned(), shown, self.clock.boot());
    }

    /// The ledger has the signal; what is lost with the file is only that it was raised.
    async fn keep_places(&self) {
        let places = self.places.clone();
        let kept = spawn_blocking(move || places.keep()).await;
        let error = match kept {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        tracing::error!(error, "from where identities are used is not kept for the next start: make room");
    }
}

/// The process, in words.
fn who(workload: &Workload) -> String {
    format!("pid {} of uid {}", workload.peer().pid(), workload.peer().uid())
}

/// Processes with a person behind them that were told of, each with the identity it came as.
#[derive(Debug, Default)]
pub(super) struct People(Mutex<VecDeque<(Instance, Arc<str>)>>);

impl People {
    fn knows(&self, workload: &Workload, identity: &Arc<str>) -> bool {
        self.is_known(instance(workload), identity)
    }

    fn told(&self, workload: &Workload, identity: &Arc<str>) {
        self.tell(instance(workload), identity);
    }

    fn is_known(&self, instance: Instance, identity: &str) -> bool {
        let people = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        people.iter().rev().any(|(known, whose)| *known == instance && **whose == *identity)
    }

    fn tell(&self, instance: Instance, identity: &Arc<str>) {
        let mut people = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if people.len() >= MOST_PEOPLE {
            people.pop_front();
        }
        people.push_back((instance, Arc::clone(identity)));
    }
}

fn instance(workload: &Workload) -> Instance {
    Instance { pid: workload.peer().pid(), start: workload.peer().start() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_person_is_told_of_once_for_each_process_and_identity() {
        // NHI-10, TM-20
        let people = People::default();
        let (shop, cart): (Arc<str>, Arc<str>) = ("shop".into(), "cart".into());
        let process = |pid| Instance { pid, start: 1 };
        assert!(!people.is_known(process(1), &shop));
        people.tell(process(1), &shop);
        assert!(people.is_known(process(1), &shop));
        assert!(!people.is_known(process(1), &cart));
        assert!(!people.is_known(Instance { start: 2, ..process(1) }, &shop), "another by the same pid");
        for pid in 2..=MOST_PEOPLE as u32 + 1 {
            people.tell(process(pid), &shop);
        }
        assert!(!people.is_known(process(1), &shop), "the first made room");
        assert!(people.is_known(process(2), &shop));
    }
}

//! What the ledger tells of use. In go records, one after the other; out comes [`Heard`]: who was handed what, when, on which
//! evidence, and what went wrong. What a record does not say is not guessed.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use crate::audit::{Entry, EventType, Outcome, Record};

/// What the start of an agent says before it names what seals its key files.
const SEALED: &str = "key files are sealed by ";

/// What a ledger told, up to now.
#[derive(Clone, Debug, Default)]
pub struct Heard {
    /// From when on use counts; before, only what was known is kept.
    since: Option<Timestamp>,
    pub(super) records: u64,
    pub(super) first: Option<Timestamp>,
    pub(super) last: Option<Timestamp>,
    uses: BTreeMap<String, BTreeMap<String, Use>>,
    /// What the agent that started last said of its key files.
    pub(super) sealed_by: Option<Option<String>>,
    /// The records that say that others are missing.
    pub(super) gaps: Vec<u64>,
    /// Environments that identities were served in.
    pub(super) environments: BTreeSet<String>,
    /// Alarms: the record, who, the reason.
    pub(super) alarms: Vec<(u64, String, String)>,
    /// Which identities had something bound to the same key, by its thumbprint.
    pub(super) thumbprints: BTreeMap<String, BTreeSet<String>>,
    /// Issuers whose metadata are not those that are pinned, with the record.
    pub(super) changed: BTreeMap<String, u64>,
    /// How issuers did: how often they gave, how often not.
    pub(super) issuers: BTreeMap<String, (u64, u64)>,
    /// What the last word on each registration was, by what it is about, if it failed: the record.
    pub(super) unregistered: BTreeMap<String, u64>,
    /// How many registrations were put right.
    pub(super) registered: u64,
    /// Credentials that could not be revoked, by their hash: whose, until when, the record.
    unrevoked: BTreeMap<String, (String, Option<Timestamp>, u64)>,
    /// Revocations that were confirmed.
    pub(super) revoked: u64,
}

/// How one credential was used.
#[derive(Clone, Debug, Default)]
pub(super) struct Use {
    /// When it was handed out first.
    pub(super) first: Option<Timestamp>,
    /// And last.
    pub(super) last: Option<Timestamp>,
    /// How often, since the time asked for; so all that follows.
    pub(super) handed_out: u64,
    pub(super) denied: u64,
    pub(super) levels: BTreeSet<String>,
    /// Scopes that tokens had.
    pub(super) carried: BTreeSet<String>,
    /// Scopes that were asked for by name.
    pub(super) named: BTreeSet<String>,
    pub(super) longest_s: Option<u64>,
    pub(super) units: BTreeSet<String>,
    /// Processes with a person behind them that were served, by what gave them away.
    pub(super) humans: BTreeMap<String, u64>,
    /// The record with which nothing came, if nothing came since.
    pub(super) failing_since: Option<u64>,
    /// What was handed out and may live, by its hash, until when.
    live: BTreeMap<String, Timestamp>,
}

impl Use {
    /// Until when anything that was handed out lives, as far as it was not given back or revoked.
    pub(super) fn lives_until(&self) -> Option<Timestamp> {
        self.live.values().max().copied()
    }
}

impl Heard {
    /// Nothing yet; use from `since` on will count.
    pub fn since(since: Timestamp) -> Self {
        Self { since: Some(since), ..Self::default() }
    }

    /// The identities that were told of.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.uses.keys().map(String::as_str)
    }

    /// How the credentials of an identity were used, by name.
    pub(super) fn of(&self, identity: &str) -> impl Iterator<Item = (&str, &Use)> {
        self.uses.get(identity).into_iter().flatten().map(|(name, used)| (name.as_str(), used))
    }

    /// What could not be revoked and lives still: whose, and the record.
    pub(super) fn unrevoked(&self, now: Timestamp) -> impl Iterator<Item = (&str, u64)> {
        let lives = move |until: &Option<Timestamp>| until.is_none_or(|until| until > now);
        self.unrevoked
            .values()
            .filter(move |(_, until, _)| lives(until))
            .map(|(whose, _, seq)| (&**whose, *seq))
    }

    /// Takes the next record.
    pub fn hear(&mut self, record: &Record) {
        self.records += 1;
        let Ok(time) = record.time.parse::<Timestamp>() else { return };
        self.first.get_or_insert(time);
        self.last = Some(time);
        let counts = self.since.is_none_or(|since| time >= since);
        let entry = &record.entry;
        self.of_the_agent(record, counts);
        self.of_issuers(record, counts);
        let Some(who) = &entry.workload else { return };
        if counts {
            self.environments.insert(who.env.clone());
        }
        let name = entry.credential.as_ref().and_then(|what| what.name.clone()).unwrap_or_default();
        let used = self.uses.entry(who.id.clone()).or_default().entry(name).or_default();
        match (entry.event.kind, entry.event.outcome) {
            (kind, Outcome::Success) if hands_out(kind) => {
                used.first.get_or_insert(time);
                used.last = Some(time);
                used.failing_since = None;
                if counts {
                    used.hear(entry);
                }
                used.remember(entry);
                let thumbprint = entry.credential.as_ref().and_then(|what| what.thumbprint.clone());
                if let Some(thumbprint) = thumbprint.filter(|_| counts) {
                    self.thumbprints.entry(thumbprint).or_default().insert(who.id.clone());
                }
            }
            (EventType::CredentialRenew, Outcome::Success) => used.failing_since = None,
            (EventType::IssueFailure, _) => used.failing_since = Some(record.seq),
            (EventType::Denial, _) if counts => used.denied += 1,
            (EventType::HumanSession, Outcome::Success) if counts => {
                *used.humans.entry(entry.event.reason.clone().unwrap_or_default()).or_default() += 1;
            }
            (EventType::CredentialReturn | EventType::CredentialRevoke, outcome) => {
                let what = entry.credential.as_ref();
                let hash = what.and_then(|what| what.token_hash.clone()).unwrap_or_default();
                let until = what.and_then(|what| what.not_after.as_ref()?.parse().ok());
                if outcome == Outcome::Success {
                    used.live.remove(&hash);
                    self.unrevoked.remove(&hash);
                    self.revoked += u64::from(counts);
                } else if entry.event.kind == EventType::CredentialRevoke {
                    self.unrevoked.insert(hash, (who.id.clone(), until, record.seq));
                }
            }
            _ => {}
        }
    }

    fn of_the_agent(&mut self, record: &Record, counts: bool) {
        let entry = &record.entry;
        let detail = entry.detail.as_deref().unwrap_or_default();
        match entry.event.kind {
            EventType::AgentStart => {
                let by =
                    detail.split_once(SEALED).map(|(_, by)| by.split(';').next().unwrap_or(by).to_owned());
                self.sealed_by = Some(by);
            }
            EventType::LedgerGap if counts => self.gaps.push(record.seq),
            EventType::ReuseDetected | EventType::TwoPlaces if counts => {
                let who = entry.workload.as_ref().map_or("nobody known", |who| &who.id);
                let reason = entry.event.reason.clone().unwrap_or_default();
                self.alarms.push((record.seq, who.to_owned(), reason));
            }
            EventType::KeyRegister => {
                // "IDENTITY: ISSUER ..": what it is about are the first two words.
                let about = detail.split(' ').take(2).collect::<Vec<_>>().join(" ");
                if entry.event.outcome == Outcome::Success {
                    self.registered += u64::from(counts);
                    self.unregistered.remove(&about);
                } else {
                    self.unregistered.insert(about, record.seq);
                }
            }
            _ => {}
        }
    }

    fn of_issuers(&mut self, record: &Record, counts: bool) {
        let entry = &record.entry;
        let named = entry.credential.as_ref().and_then(|what| what.issuer.clone());
        let (Some(issuer), Some(said)) = (named.filter(|_| counts), &entry.issuer_response) else { return };
        if said.metadata_changed {
            self.changed.insert(issuer.clone(), record.seq);
        }
        let (gave, failed) = self.issuers.entry(issuer).or_default();
        *(if entry.event.outcome == Outcome::Success { gave } else { failed }) += 1;
    }
}

impl Use {
    fn hear(&mut self, entry: &Entry) {
        self.handed_out += 1;
        if let Some(what) = &entry.credential {
            self.carried.extend(what.scope_granted.iter().flatten().cloned());
            self.named.extend(what.scope_requested.iter().cloned());
            self.longest_s = self.longest_s.max(what.ttl_s);
        }
        if let Some(peer) = &entry.peer {
            self.levels.extend(peer.level.clone());
            self.units.extend(peer.unit.as_ref().map(|unit| unit.name.clone()));
        }
    }

    fn remember(&mut self, entry: &Entry) {
        let Some(what) = &entry.credential else { return };
        let until = what.not_after.as_ref().and_then(|until| until.parse().ok());
        if let (Some(hash), Some(until)) = (what.token_hash.clone(), until) {
            self.live.insert(hash, until);
            // The ledger is long and most of it has ended: what lives longest is all that is asked for.
            if self.live.len() > 256
                && let Some(soonest) =
                    self.live.iter().min_by_key(|(_, until)| **until).map(|(hash, _)| hash.clone())
            {
                self.live.remove(&soonest);
            }
        }
    }
}

/// Whether somebody has the credential, or its use, from then on.
fn hands_out(kind: EventType) -> bool {
    matches!(
        kind,
        EventType::CredentialIssue
            | EventType::CredentialRelease
            | EventType::ForwardSend
            | EventType::ProofMint
    )
}

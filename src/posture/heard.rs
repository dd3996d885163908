//! What the ledger tells of use. In go records, one after the other; out comes [`Heard`]: who was handed what, when, on which
//! evidence, and what went wrong. What a record does not say is not guessed.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use crate::audit::{Entry, EventType, Outcome, Record};

/// What the start of an agent says before it names what seals its key files.
const SEALED: &str = "key files are sealed by ";

/// The kind, as records have it, of values that came without a lease: they stay as they are at their issuer.
const UNLEASED: &str = "unleased_values";

/// So many processes with a person behind them are kept of one identity; of more, that many are told of.
const MOST_PEOPLE: usize = 4096;

/// What a ledger told, up to now.
#[derive(Clone, Debug, Default)]
pub struct Heard {
    /// From when on use counts; before, only what was known is kept.
    since: Option<Timestamp>,
    /// How many records, from the first on, a checkpoint has signed.
    signed: u64,
    /// The earliest time that a record tells which no checkpoint has signed.
    pub(super) unsigned_since: Option<Timestamp>,
    pub(super) records: u64,
    pub(super) first: Option<Timestamp>,
    pub(super) last: Option<Timestamp>,
    uses: BTreeMap<String, BTreeMap<String, Use>>,
    people: BTreeMap<String, People>,
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
    /// Whether what was handed out last came without a lease.
    pub(super) unleased: bool,
    /// The record with which nothing came, if nothing came since.
    pub(super) failing_since: Option<u64>,
    /// What was handed out and may live, by its hash, until when.
    live: BTreeMap<String, Timestamp>,
}

/// The processes with a person behind them that came as one identity.
#[derive(Clone, Debug, Default)]
struct People {
    /// Those that were told of, whenever that was, and what gave them away: each is told of once, and may be served for months.
    told: BTreeMap<Process, String>,
    /// Those that were served in the time asked for.
    served: BTreeMap<Process, Sign>,
}

/// A process: its boot, its pid, and when it started.
type Process = (String, u32, u64);

/// What gave a person away.
#[derive(Clone, Debug)]
struct Sign {
    reason: String,
    /// It is a login uid and no more, in a unit of a user's own manager: where that is meant to run it, this tells nothing.
    of_the_manager: bool,
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

    /// The same, of a ledger whose last checkpoint covers so many records. Without it, nobody has signed any of them.
    #[must_use]
    pub fn signed(self, signed: u64) -> Self {
        Self { signed, ..self }
    }

    /// The identities that were told of.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.uses.keys().map(String::as_str)
    }

    /// How the credentials of an identity were used, by name.
    pub(super) fn of(&self, identity: &str) -> impl Iterator<Item = (&str, &Use)> {
        self.uses.get(identity).into_iter().flatten().map(|(name, used)| (name.as_str(), used))
    }

    /// Until when anything lives that was handed out to an identity.
    pub(super) fn lives_until(&self, identity: &str) -> Option<Timestamp> {
        self.of(identity).filter_map(|(_, used)| used.lives_until()).max()
    }

    /// How many processes with a person behind them were served as an identity, by what gave them away. In a unit of a user's own
    /// manager, `users_units` says that it is meant to be there, so that the user's login tells nothing.
    pub(super) fn humans(&self, identity: &str, users_units: bool) -> BTreeMap<String, u64> {
        let served = self.people.get(identity).into_iter().flat_map(|people| people.served.values());
        let mut all = BTreeMap::new();
        for sign in served.filter(|sign| !(users_units && sign.of_the_manager)) {
            *all.entry(sign.reason.clone()).or_default() += 1;
        }
        all
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
        let time = record.time.parse::<Timestamp>();
        if record.seq >= self.signed {
            let told = time.as_ref().map_or(Timestamp::MIN, |time| *time);
            self.unsigned_since = Some(self.unsigned_since.map_or(told, |since| since.min(told)));
        }
        let Ok(time) = time else { return };
        self.first.get_or_insert(time);
        self.last = Some(time);
        let counts = self.since.is_none_or(|since| time >= since);
        let entry = &record.entry;
        self.of_the_agent(record, counts);
        self.of_issuers(record, counts);
        self.of_people(record, counts);
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
            (EventType::CredentialRenew, Outcome::Success) => {
                used.failing_since = None;
                used.lengthen(entry);
            }
            (EventType::IssueFailure, _) => used.failing_since = Some(record.seq),
            (EventType::Denial, _) if counts => used.denied += 1,
            (EventType::CredentialReturn | EventType::CredentialRevoke, outcome) => {
                let what = entry.credential.as_ref();
                let hash = what.and_then(|what| what.token_hash.clone()).unwrap_or_default();
                let until = what.and_then(|what| what.not_after.as_ref()?.parse().ok());
                if outcome == Outcome::Success {
                    used.live.remove(&hash);
                    self.unrevoked.remove(&hash);
                    // Of what was given back, the record of its return is about the same revocation.
                    let is_its_own = entry.event.kind == EventType::CredentialRevoke;
                    self.revoked += u64::from(counts && is_its_own);
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

    /// A person is told of once for each process, and that may have been long ago; and who logged in is on record with each hand-out.
    fn of_people(&mut self, record: &Record, counts: bool) {
        let entry = &record.entry;
        let (Some(who), Some(peer)) = (&entry.workload, &entry.peer) else { return };
        // The service manager's process is nobody's, whoever told it to start a unit.
        if entry.service_manager.is_some() {
            return;
        }
        let process = (record.boot_id.clone(), peer.pid, peer.start);
        let is_told = entry.event.kind == EventType::HumanSession;
        let is_served = entry.event.outcome == Outcome::Success;
        if !(is_told || is_served && hands_out(entry.event.kind)) {
            return;
        }
        let people = self.people.entry(who.id.clone()).or_default();
        if is_told {
            keep(&mut people.told, process.clone(), entry.event.reason.clone().unwrap_or_default());
        }
        let of_a_user = peer.unit.as_ref().is_some_and(|unit| unit.manager.starts_with("user:"));
        let sign = match people.told.get(&process) {
            Some(reason) => Some(Sign { reason: reason.clone(), of_the_manager: false }),
            None => peer.loginuid.map(|_| Sign { reason: "LOGIN_UID".into(), of_the_manager: of_a_user }),
        };
        // One that was refused is not told of again if other settings serve it later.
        if let Some(sign) = sign.filter(|_| counts && is_served) {
            keep(&mut people.served, process, sign);
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

    /// What somebody has already goes on: a lease was renewed. Another in its place is nobody's yet.
    fn lengthen(&mut self, entry: &Entry) {
        if let Some((hash, until)) = lives(entry)
            && let Some(known) = self.live.get_mut(&hash)
        {
            *known = until.max(*known);
        }
    }

    fn remember(&mut self, entry: &Entry) {
        let Some(what) = &entry.credential else { return };
        if let Some(kind) = &what.kind {
            self.unleased = kind == UNLEASED;
        }
        if let Some((hash, until)) = lives(entry) {
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

/// What a record is about, by its hash, and until when that lives.
fn lives(entry: &Entry) -> Option<(String, Timestamp)> {
    let what = entry.credential.as_ref()?;
    Some((what.token_hash.clone()?, what.not_after.as_ref()?.parse().ok()?))
}

/// Keeps what is told of a process, as long as there is room.
fn keep<T>(all: &mut BTreeMap<Process, T>, process: Process, told: T) {
    if all.len() < MOST_PEOPLE || all.contains_key(&process) {
        all.insert(process, told);
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

//! Whoever does what an operator orders, and what time brings: settings read again, keys that make room for others, identities
//! switched off and on, exceptions and certificates that come to their end. One task; it owns the settings and the keys. In go acts and
//! moments; out come words for the operator, and a record of each.
//! Over 400 lines, because all of it changes the same settings and keys, one thing at a time.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fs, io,
    path::Path,
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::time::sleep;

use super::{
    Origin,
    books::{books, can_be_had, registrable, rules, tended},
    facts::facts,
    tell_manager,
};
use crate::{
    audit::{Entry, EventType, Outcome},
    broker::{Books, Cause, Rotor, Turn, Turned, Which},
    clock::{Boot, Clock, Dice},
    config::{Mistake, Settings, load},
    issuer::{Order, sealed::Sealed},
    journey::Journey,
    keys::{Certificates, Ending, Keyring, Now, Urgency, put_whole},
    policy::{Per, Policy},
    serve::operator::{Act, Facts},
};

/// How often exceptions and certificates are looked at, at least.
pub(super) const LOOK: Duration = Duration::from_secs(3600);

/// So many days before its end an exception is told of (S36).
const COUNTDOWN: [i64; 3] = [30, 7, 1];

/// Looks that a certificate of a short life asks for are so far apart at least.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

pub(super) type Said = Result<Vec<String>, Vec<String>>;

/// What was done, and what could not be.
#[derive(Default)]
struct Noted {
    said: Vec<String>,
    failed: Vec<String>,
}

impl Noted {
    /// All of it in one answer, and what could not be done last: that is what the operator has to see to.
    fn into_said(mut self) -> Said {
        let whole = self.failed.is_empty();
        self.said.append(&mut self.failed);
        if whole { Ok(self.said) } else { Err(self.said) }
    }
}

/// What time has brought.
#[derive(Debug)]
pub(super) enum Due {
    /// Keys were turned: it is to be written down.
    Turns(Vec<Turn>),
    /// Exceptions and certificates are to be looked at.
    Look,
}

/// The one who owns settings and keys.
pub(super) struct Steward {
    pub(super) journey: Arc<Journey>,
    pub(super) settings: Settings,
    pub(super) rotor: Rotor,
    /// What cannot be dynamic yet.
    pub(super) sealed: Arc<Sealed>,
    /// Those switched off, and why.
    pub(super) disabled: BTreeMap<Arc<str>, String>,
    pub(super) origin: Origin,
    pub(super) facts: Arc<ArcSwap<Facts>>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) dice: Arc<dyn Dice>,
    /// Which exceptions have been told of, and how many days before their end.
    pub(super) told: HashSet<(String, i64)>,
    /// Which certificates have been told of, and how urgently.
    pub(super) told_ends: HashSet<(String, Urgency)>,
    /// When exceptions and certificates are looked at again. Kept, so that nobody who interrupts puts it off.
    pub(super) next_look: Boot,
}

impl Steward {
    /// Waits until time has brought something. Whoever stops waiting loses nothing: what came is seen to by
    /// [`Self::see_to`], which is not to be stopped.
    pub(super) async fn attend(&mut self) -> Due {
        let rest = self.next_look.since(self.clock.boot());
        tokio::select! {
            turns = self.rotor.turn() => Due::Turns(turns),
            () = sleep(rest) => Due::Look,
        }
    }

    /// Sees to what time has brought.
    pub(super) async fn see_to(&mut self, due: Due) {
        match due {
            Due::Turns(turns) => drop(self.note(turns).await),
            Due::Look => self.look().await,
        }
    }

    /// Does what an operator ordered.
    pub(super) async fn act(&mut self, act: Act) -> Said {
        match act {
            Act::Reload => self.reload().await,
            Act::Rotate { identity } => {
                let identity = self.known(&identity)?;
                let turns = self.rotor.rotate(&identity);
                self.note(turns).await.into_said()
            }
            Act::Revoke { identity, credential, keys } => {
                let identity = self.known(&identity)?;
                self.revoke(identity, credential.map(Arc::from), keys).await
            }
            Act::Disable { identity, reason } => {
                let identity = self.known(&identity)?;
                self.disable(identity, reason).await
            }
            Act::Enable { identity } => self.enable(&identity).await,
            Act::Seal { identity, credential, values, by } => {
                self.seal((identity, credential), Some(values), &by).await
            }
            Act::Unseal { identity, credential, by } => self.seal((identity, credential), None, &by).await,
        }
    }

    fn known(&self, name: &str) -> Result<Arc<str>, Vec<String>> {
        let known = self.settings.policy.identities().find(|identity| *identity.name == *name);
        known.map(|identity| Arc::clone(&identity.name)).ok_or_else(|| {
            let names: Vec<&str> =
                self.settings.policy.identities().map(|identity| &*identity.name).collect();
            vec![format!("there is no such identity; there are {}", names.join(", "))]
        })
    }

    /// GA-10: from this moment nothing more is answered; then what there is is revoked.
    async fn disable(&mut self, identity: Arc<str>, reason: String) -> Said {
        self.disabled.insert(Arc::clone(&identity), reason.clone());
        self.journey.follow(rules(&self.settings, &self.disabled));
        let kept = keep_disabled(&self.settings.kept.disabled, &self.disabled);
        let count = self.retire(Which::Disabled(Arc::clone(&identity))).await;
        self.refresh_facts();
        let mut said = vec![format!("{identity} is disabled; {count} live credentials are being revoked")];
        if let Err(error) = &kept {
            let path = self.settings.kept.disabled.display();
            said.push(format!(
                "it would be enabled again at the next start: {path}: {error}: make room there"
            ));
        }
        let detail = format!("{identity}: {reason}; {}", said.join("; "));
        self.record(self.entry(EventType::IdentityDisable, Outcome::Success).detail(detail)).await;
        Ok(said)
    }

    async fn enable(&mut self, name: &str) -> Said {
        if self.disabled.remove(name).is_none() {
            return Err(vec![format!("{name} is not disabled")]);
        }
        let kept = keep_disabled(&self.settings.kept.disabled, &self.disabled);
        if let Err(error) = kept {
            tracing::error!(%error, "an identity that was enabled will be disabled again at the next start");
        }
        self.journey.follow(rules(&self.settings, &self.disabled));
        self.refresh_facts();
        self.tend();
        let entry = self.entry(EventType::IdentityEnable, Outcome::Success).detail(name);
        self.record(entry).await;
        Ok(vec![format!("{name} is enabled")])
    }

    /// KEY-07: if keys too, they are destroyed first, so that nothing more is signed by them.
    async fn revoke(&mut self, identity: Arc<str>, credential: Option<Arc<str>>, keys: bool) -> Said {
        let mut noted = Noted::default();
        if keys {
            let turns = self.rotor.replace(&identity);
            let any = |is: fn(&Turned) -> bool| turns.iter().any(|turn| is(&turn.what));
            let signs = any(|what| matches!(what, Turned::Signs { .. }));
            let shown = any(|what| matches!(what, Turned::CertificateShown { .. }));
            let kept = any(|what| matches!(what, Turned::Failed(_) | Turned::CertificateFailed(_)));
            noted = self.note(turns).await;
            if signs {
                let told = self.rotor.registers(&identity);
                noted.said.push(match told {
                    true => "the issuers whose registration the settings name are told of the new key; register it at \
                             the others: keybearer keys export"
                        .into(),
                    false => "register the new key at the issuer: keybearer keys export".into(),
                });
            }
            if shown {
                noted.said.push(format!(
                    "register the new certificate at the issuer, which takes nothing until then: \
                     keybearer keys export --identity {identity}"
                ));
            }
            if kept {
                noted.failed.push(format!(
                    "what signed before may sign still: mend that and run this again, or run: \
                     keybearer disable {identity}"
                ));
            }
        }
        // Whatever became of the keys: in an emergency, the half that can be done is done.
        let count = self.retire(Which::Identity(Arc::clone(&identity), credential.clone())).await;
        let what = credential.map_or_else(|| identity.to_string(), |name| format!("{identity}.{name}"));
        noted.said.push(format!(
            "{count} live credentials of {what} are being revoked; the ledger tells what became of each"
        ));
        let outcome = if noted.failed.is_empty() { Outcome::Success } else { Outcome::Failed };
        let done = noted.into_said();
        let (Ok(lines) | Err(lines)) = &done;
        self.record(self.entry(EventType::OperatorRevoke, outcome).detail(lines.join("; "))).await;
        done
    }

    pub(super) async fn retire(&self, which: Which) -> usize {
        // The broker is gone only when the agent is.
        self.journey.broker().retire(which, Cause::Operator).await.unwrap_or(0)
    }

    /// Writes down what was done with keys, and says it.
    async fn note(&self, turns: Vec<Turn>) -> Noted {
        let mut noted = Noted::default();
        for Turn { identity, what } in turns {
            let kind = match &what {
                Turned::Registered { .. } | Turned::NotRegistered { .. } => EventType::KeyRegister,
                _ => EventType::KeyRotate,
            };
            let (outcome, words) = match &what {
                Turned::Published { kid } => {
                    let told = match self.rotor.registers(&identity) {
                        true => "where a registration is named, the issuer is told of it",
                        false => "keybearer keys export",
                    };
                    let words = format!(
                        "{identity}: the next key {kid} is published ({told}); it signs once every issuer takes it"
                    );
                    (Outcome::Success, words)
                }
                Turned::Signs { kid } => {
                    (Outcome::Success, format!("{identity}: key {kid} signs from now on"))
                }
                Turned::NotTaken { kid, why } => (
                    Outcome::Failed,
                    format!("{identity}: the next key {kid} is not taken yet, the one before goes on: {why}"),
                ),
                Turned::Destroyed => (Outcome::Success, format!("{identity}: the key before is destroyed")),
                Turned::Registered { issuer, client_id, kids, removed } => {
                    let mut words = format!(
                        "{identity}: {issuer} knows the keys of client {client_id}: {}",
                        kids.join(", ")
                    );
                    if !removed.is_empty() {
                        words.push_str(&format!("; taken out there: {}", removed.join(", ")));
                    }
                    (Outcome::Success, words)
                }
                Turned::NotRegistered { issuer, client_id, why } => (
                    Outcome::Failed,
                    format!(
                        "{identity}: {issuer} could not be told of the keys of client {client_id}, and is again later; \
                         what signed before goes on: {why}"
                    ),
                ),
                Turned::Proofs => {
                    (Outcome::Success, format!("{identity}: another key for what is bound from now on"))
                }
                Turned::CertificatePublished { thumbprint } => (
                    Outcome::Success,
                    format!(
                        "{identity}: the next certificate {thumbprint} is published (keybearer keys export --identity \
                         {identity}); it is shown once every issuer takes it, or when the one before is near its end"
                    ),
                ),
                Turned::CertificateShown { thumbprint } => {
                    (Outcome::Success, format!("{identity}: certificate {thumbprint} is shown from now on"))
                }
                Turned::CertificateNotTaken { thumbprint, why } => (
                    Outcome::Failed,
                    format!(
                        "{identity}: the next certificate {thumbprint} is not taken yet, the one before goes on: {why}"
                    ),
                ),
                Turned::CertificateFailed(error) => (Outcome::Failed, error.to_string()),
                Turned::NotOurs { instead } => (
                    Outcome::Failed,
                    format!("the certificate of {identity} is not the agent's to make: {instead}"),
                ),
                Turned::Failed(error) => (Outcome::Failed, error.to_string()),
                Turned::NoKey { instead } => {
                    (Outcome::Failed, format!("{identity} has no key that signs assertions: {instead}"))
                }
            };
            if outcome == Outcome::Failed {
                tracing::warn!("{words}");
            }
            let undone = matches!(
                what,
                Turned::CertificateFailed(_)
                    | Turned::Failed(_)
                    | Turned::NoKey { .. }
                    | Turned::NotOurs { .. }
            );
            if undone {
                noted.failed.push(words.clone())
            } else {
                noted.said.push(words.clone())
            }
            self.record(self.entry(kind, outcome).detail(words)).await;
        }
        self.refresh_facts();
        noted
    }

    /// Has certificates kept fresh, as the settings and the operators have it now.
    pub(super) fn tend(&self) {
        let broker = self.journey.broker();
        broker.tend(tended(&self.settings, &self.disabled, broker));
    }

    /// Tells of what comes to its end, and sees when the next look is due: certificates may live shorter than the time between.
    pub(super) async fn look(&mut self) {
        self.count_down().await;
        self.certificates_end().await;
        let now = self.clock.wall();
        let next = self.endings().iter().filter_map(|ending| ending.next(now)).min();
        let wait = next.and_then(|next| Duration::try_from(next.duration_since(now)).ok());
        let wait = wait.map_or(LOOK, |wait| wait.clamp(LOOK_AGAIN, LOOK));
        self.next_look = self.clock.boot() + wait;
    }

    /// The certificates that somebody may have to see to.
    fn endings(&self) -> Vec<Ending> {
        let mut all = self.rotor.certificates().of_others();
        all.extend(self.journey.broker().report().endings());
        all
    }

    /// X5-03: certificates that the agent cannot make anew, or not now, each told of once for each step.
    async fn certificates_end(&mut self) {
        let (now, endings) = (self.clock.wall(), self.endings());
        self.told_ends.retain(|(told, _)| endings.iter().any(|ending| ending.thumbprint == *told));
        for ending in endings {
            let (Some(urgency), Some(words)) = (ending.urgency(now), ending.words(now)) else { continue };
            if !self.told_ends.insert((ending.thumbprint, urgency)) {
                continue;
            }
            match urgency {
                Urgency::Soon => tracing::warn!("{words}"),
                Urgency::Critical | Urgency::Ended => tracing::error!("{words}"),
            }
            let entry = self.entry(EventType::CertificateEnding, Outcome::Success);
            self.record(entry.because(urgency.as_str()).detail(words)).await;
        }
    }

    /// S36: exceptions that end soon, each told of once for each step.
    async fn count_down(&mut self) {
        let now = self.clock.wall();
        let mut ending = Vec::new();
        for identity in self.settings.policy.identities() {
            for rule in identity.credentials.values() {
                let Some(exception) = &rule.exception else { continue };
                let days = exception.until.duration_since(now).as_hours() / 24;
                let step = COUNTDOWN.into_iter().filter(|step| days < *step).min();
                let name = format!("{}.{}", identity.name, rule.name);
                if let Some(step) = step.filter(|step| self.told.insert((name.clone(), *step))) {
                    let (until, owner) = (exception.until, &exception.owner);
                    ending.push(format!(
                        "{name} is {} until {until}, in less than {step} days; then it is denied (owner {owner})",
                        rule.weakness()
                    ));
                }
            }
        }
        for words in ending {
            tracing::warn!("{words}");
            self.record(self.entry(EventType::ExceptionEnding, Outcome::Success).detail(words)).await;
        }
    }

    /// Reads the settings again: all of them, or nothing.
    pub(super) async fn reload(&mut self) -> Said {
        if let Ok(now) = sd_notify::NotifyState::monotonic_usec_now() {
            tell_manager(&[sd_notify::NotifyState::Reloading, now]);
        }
        let done = self.try_reload();
        let (kind, outcome, told) = match &done {
            Ok(changes) => (EventType::ConfigLoad, Outcome::Success, changes.join("; ")),
            Err(mistakes) => (EventType::ConfigRefused, Outcome::Failed, mistakes.join("; ")),
        };
        if let Err(mistakes) = &done {
            for mistake in mistakes {
                tracing::error!("reload refused, the old settings stay: {mistake}");
            }
            let reload_error = mistakes.join("\n");
            self.facts.store(Arc::new(Facts { reload_error, ..Facts::clone(&self.facts.load()) }));
        } else {
            tracing::info!("reloaded: {told}");
        }
        self.record(self.entry(kind, outcome).detail(told)).await;
        // Files that were read now may say other dates.
        self.look().await;
        tell_manager(&[sd_notify::NotifyState::Ready]);
        done
    }

    fn try_reload(&mut self) -> Said {
        let words = |mistakes: Vec<Mistake>| mistakes.iter().map(ToString::to_string).collect::<Vec<_>>();
        let settings = load(&self.origin.path, &self.origin.environment, self.clock.wall()).map_err(words)?;
        let keys = Keyring::open(&settings.keys, self.rotor.keys(), Now::by(&*self.clock))
            .map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>())?;
        let certificates =
            Certificates::open(&settings.certificates, self.rotor.certificates(), &keys, self.clock.wall())
                .map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>())?;
        let books = books(&settings, &keys, &certificates, &self.sealed, &self.clock, &self.dice)
            .map_err(|error| vec![error.to_string()])?;

        registrable(&settings)?;
        can_be_had(&settings, self.sealed.safe())?;

        // From here on nothing can fail.
        let mut changes = changes(&self.settings.policy, &settings.policy);
        if settings.listen_differs(&self.settings) {
            let message =
                "[keys], [listen], [limits], [audit] and the sockets of [exports] change at the next restart";
            changes.push(message.into());
        }
        self.journey.ledger().use_config(&settings.digest);
        self.journey.follow(rules(&settings, &self.disabled));
        let keeps = placed_by(Arc::new(books.clone()), Arc::clone(&settings.policy));
        self.journey.broker().replace(books, keeps);
        self.rotor.follow(keys, certificates, Arc::clone(&settings.policy));
        self.settings = settings;
        self.refresh_facts();
        self.tend();
        Ok(changes)
    }

    /// Holds what an agent before this one left against the settings of now, and what is switched off.
    pub(super) fn settle(&self) {
        let broker = self.journey.broker();
        let placed = placed_by(broker.books(), Arc::clone(&self.settings.policy));
        let disabled = names(&self.disabled);
        broker.settle(move |order| !disabled.contains(&order.identity) && placed(order));
    }

    pub(super) fn refresh_facts(&self) {
        let (keys, certificates) = (self.rotor.keys(), self.rotor.certificates());
        let mut facts =
            facts(&self.settings, keys, certificates, self.sealed.safe(), None, self.clock.boot());
        facts.warnings.extend(self.rotor.troubles());
        let before = self.facts.load();
        facts.max_level = before.max_level.clone();
        facts.disabled =
            self.disabled.iter().map(|(identity, reason)| (identity.to_string(), reason.clone())).collect();
        self.facts.store(Arc::new(facts));
    }

    pub(super) fn entry(&self, kind: EventType, outcome: Outcome) -> Entry {
        self.journey.entry(kind, outcome)
    }

    pub(super) async fn record(&self, entry: Entry) {
        // What was done is done; that it is not on record, the ledger's health says.
        if let Err(error) = self.journey.ledger().record(entry).await {
            tracing::error!(%error, "what the agent did could not be recorded");
        }
    }
}

/// Those that were switched off when the agent stopped. A file that cannot be read is an error: nobody is enabled by accident.
///
/// # Errors
/// What is wrong with the file.
pub(super) fn disabled_before(path: &Path) -> io::Result<BTreeMap<Arc<str>, String>> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(error),
    };
    let read: BTreeMap<String, String> = serde_json::from_str(&text)?;
    Ok(read.into_iter().map(|(identity, reason)| (identity.into(), reason)).collect())
}

fn keep_disabled(path: &Path, disabled: &BTreeMap<Arc<str>, String>) -> io::Result<()> {
    let plain: BTreeMap<&str, &str> =
        disabled.iter().map(|(identity, reason)| (&**identity, reason.as_str())).collect();
    // To stay: a power cut that brought the old file back would bring back somebody who is switched off.
    put_whole(path, serde_json::to_string_pretty(&plain)?.as_bytes())
}

/// The names of those switched off.
pub(super) fn names(disabled: &BTreeMap<Arc<str>, String>) -> BTreeSet<Arc<str>> {
    disabled.keys().cloned().collect()
}

fn changes(old: &Policy, new: &Policy) -> Vec<String> {
    let names = |policy: &Policy| {
        policy.identities().map(|identity| identity.name.to_string()).collect::<HashSet<_>>()
    };
    let (before, after) = (names(old), names(new));
    let mut changes: Vec<String> = Vec::new();
    changes.extend(after.difference(&before).map(|name| format!("identity {name} was added")));
    changes.extend(before.difference(&after).map(|name| format!("identity {name} was removed")));
    for identity in new.identities() {
        if old.identities().any(|other| other.name == identity.name && other != identity) {
            changes.push(format!("identity {} was changed", identity.name));
        }
    }
    for (name, export) in old.exports() {
        match new.exports().get(name) {
            None => changes.push(format!("export {name} is for nobody from now on")),
            Some(now) if now.path != export.path => {
                changes.push(format!("export {name} moves: where it is now, it is for nobody from now on"))
            }
            Some(now) if now != export => changes.push(format!("export {name} is for others than before")),
            Some(_) => {}
        }
    }
    changes.sort();
    if changes.is_empty() {
        changes.push("no identity changed".into());
    }
    changes
}

/// Whether an order on the shelf would be placed in the same way by the settings of now.
fn placed_by(books: Arc<Books>, policy: Arc<Policy>) -> impl Fn(&Order) -> bool + Send {
    move |order| {
        let identity = policy.identities().find(|identity| identity.name == order.identity);
        let rule = identity.and_then(|identity| identity.credentials.get(&order.credential));
        let Some(rule) = rule else { return false };
        let within = order.scope.iter().all(|scope| rule.scope.contains(scope));
        let placed = books.order_for(&order.identity, rule, Arc::clone(&order.scope));
        // One of a process stays that process's.
        let instance = order.instance.filter(|_| rule.per == Per::Process);
        within && placed.is_ok_and(|placed| Order { instance, ..placed } == *order)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use jiff::Timestamp;
    use tokio::time::{Instant, timeout};

    use super::*;
    use crate::{
        audit::{Record, read},
        clock::SeededDice,
        daemon::Daemon,
        keys::settled,
    };

    const BEGAN: &str = "2026-01-01T00:00:00Z";

    /// Both times are tokio's paused one.
    #[derive(Debug)]
    struct Paused(Instant);

    impl Clock for Paused {
        fn wall(&self) -> Timestamp {
            let began: Timestamp = BEGAN.parse().unwrap();
            began.checked_add(jiff::SignedDuration::try_from(self.0.elapsed()).unwrap()).unwrap()
        }

        fn boot(&self) -> Boot {
            Boot::from_nanos(1) + self.0.elapsed()
        }
    }

    struct House {
        dir: tempfile::TempDir,
        steward: Steward,
    }

    impl House {
        fn records(&self, kind: EventType) -> Vec<Record> {
            let health = self.steward.journey.ledger().health();
            let records = read(&health.directory, 0).unwrap();
            records.filter(|record| record.entry.event.kind == kind).collect()
        }

        /// As a disk that is full: no key can be made, also if we are root.
        fn shut(&self, shut: bool) {
            let mode = if shut { 0o755 } else { 0o700 };
            let keys = &self.steward.settings.kept.keys.directory;
            assert!(keys.starts_with(self.dir.path()));
            fs::set_permissions(keys, fs::Permissions::from_mode(mode)).unwrap();
        }
    }

    async fn house() -> House {
        house_with(|_| String::new()).await
    }

    /// With more in the settings, which may name files in the directory.
    async fn house_with(more: impl FnOnce(&Path) -> String) -> House {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let at = dir.path().display();
        let text = format!(
            r#"
environment = "dev"
state_directory = "{at}/state"
runtime_directory = "{at}"

[issuers.corp]
kind = "oauth"
issuer = "https://idp.example.com"

[identities.shop]
owner = "shop@example.com"
assurance = "interim"
match = {{ uid = 1000 }}

[identities.shop.credentials.orders]
issuer = "corp"
client_id = "shop"
resource = "https://orders.example.com"
origins = ["https://orders.example.com"]

[identities.shop.credentials.old]
issuer = "corp"
client_id = "shop"
resource = "https://old.example.com"
binding = "bearer"
exception = {{ owner = "shop@example.com", reason = "not bound yet", until = "2026-01-20" }}

[identities.web]
owner = "web@example.com"
assurance = "interim"
match = {{ uid = 1001 }}

[identities.web.certificate]

[identities.web.credentials.pages]
issuer = "corp"
client_id = "web"
client_auth = "self_signed_tls_client_auth"
resource = "https://pages.example.com"
binding = "mtls"
"#
        );
        let path = dir.path().join("agent.toml");
        fs::write(&path, text + &more(dir.path())).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let clock: Arc<dyn Clock> = Arc::new(Paused(Instant::now()));
        let settings = load(&path, &BTreeMap::new(), clock.wall())
            .map_err(|mistakes| mistakes.iter().map(ToString::to_string).collect::<Vec<_>>())
            .unwrap();
        let origin = Origin { path, environment: BTreeMap::new() };
        let dice = SeededDice::from_seed(7);
        let built = Daemon::build(settings, origin, Arc::clone(&clock), dice).unwrap();
        let Daemon { journey, keeper, scribe, settings, keys, .. } = built;
        tokio::spawn(scribe.run());
        tokio::spawn(keeper.run());
        let broker = journey.broker().clone();
        let steward = Steward {
            rotor: Rotor::new(
                keys,
                built.certificates,
                Arc::clone(&settings.policy),
                broker,
                Arc::clone(&clock),
            ),
            journey,
            settings,
            sealed: built.sealed,
            disabled: built.disabled,
            origin: built.origin,
            facts: built.facts,
            next_look: clock.boot() + LOOK,
            clock,
            dice: built.dice,
            told: HashSet::new(),
            told_ends: HashSet::new(),
        };
        House { dir, steward }
    }

    fn revoke(identity: &str) -> Act {
        Act::Revoke { identity: identity.into(), credential: None, keys: true }
    }

    #[tokio::test(start_paused = true)]
    async fn in_an_emergency_credentials_are_revoked_whatever_becomes_of_the_keys() {
        // KEY-07
        let mut house = house().await;
        house.shut(true);
        let said = house.steward.act(revoke("shop")).await.unwrap_err().join("\n");
        for words in ["KEY_PERM", "keybearer disable shop", "0 live credentials of shop are being revoked"] {
            assert!(said.contains(words), "{said}");
        }
        assert!(!said.contains("register the new key"), "{said}");
        let records = house.records(EventType::OperatorRevoke);
        assert_eq!(records.len(), 1);
        assert_eq!(records[0].entry.event.outcome, Outcome::Failed);

        house.shut(false);
        let said = house.steward.act(revoke("shop")).await.unwrap().join("\n");
        assert!(said.contains("register the new key"), "{said}");
        let records = house.records(EventType::OperatorRevoke);
        assert_eq!(records[1].entry.event.outcome, Outcome::Success);
    }

    #[tokio::test(start_paused = true)]
    async fn the_key_of_a_certificate_is_destroyed_with_the_others() {
        // KEY-07, MT-05
        let mut house = house().await;
        let said = house.steward.act(Act::Rotate { identity: "web".into() }).await.unwrap().join("\n");
        assert!(said.contains("the next certificate") && said.contains("is published"), "{said}");
        house.shut(true);
        let said = house.steward.act(revoke("web")).await.unwrap_err().join("\n");
        for words in ["KEY_PERM", "keybearer disable web", "0 live credentials of web are being revoked"] {
            assert!(said.contains(words), "{said}");
        }
        assert!(!said.contains("register the new"), "{said}");
        house.shut(false);
        let said = house.steward.act(revoke("web")).await.unwrap().join("\n");
        for words in ["is shown from now on", "register the new certificate", "0 live credentials of web"] {
            assert!(said.contains(words), "{said}");
        }
        assert!(!said.contains("register the new key"), "{said}");
        assert!(house.records(EventType::KeyRotate).len() >= 3, "each is on record");
    }

    /// An identity that shows a certificate of a CA, which lives for a hundred minutes from when the house began.
    fn of_a_ca(dir: &Path) -> String {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
        params.not_before = rcgen::date_time_ymd(2026, 1, 1);
        params.not_after = params.not_before + Duration::from_secs(100 * 60);
        let (chain, private) = (dir.join("pay.crt"), dir.join("pay.key"));
        for (path, text) in
            [(&chain, params.self_signed(&key).unwrap().pem()), (&private, key.serialize_pem())]
        {
            fs::write(path, text).unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
        }
        format!(
            r#"
[identities.pay]
owner = "pay@example.com"
assurance = "interim"
match = {{ uid = 1002 }}

[identities.pay.certificate]
certificate = {chain:?}
key = {private:?}

[identities.pay.credentials.bank]
issuer = "corp"
client_id = "pay"
client_auth = "tls_client_auth"
resource = "https://bank.example.com"
binding = "mtls"
"#
        )
    }

    #[tokio::test(start_paused = true)]
    async fn a_certificate_of_a_ca_is_told_of_before_it_ends_though_nobody_orders_anything() {
        // X5-03
        let mut house = house_with(of_a_ca).await;
        house.steward.look().await;
        let began = house.steward.clock.boot();
        let mut told = Vec::new();
        while told.len() < 3 {
            let due = house.steward.attend().await;
            house.steward.see_to(due).await;
            for record in house.records(EventType::CertificateEnding).split_off(told.len()) {
                let (at, event) = (house.steward.clock.boot().since(began).as_secs(), record.entry.event);
                let detail = record.entry.detail.unwrap();
                for words in ["pay.crt", "2026-01-01T01:40:00Z", "keybearer reload"] {
                    assert!(detail.contains(words), "{detail}");
                }
                told.push((at, event.reason.unwrap()));
            }
        }
        let expected = [(80, "CERTIFICATE_ENDING"), (90, "CERTIFICATE_CRITICAL"), (100, "CERTIFICATE_ENDED")];
        for ((at, reason), (minute, expected)) in told.iter().zip(expected) {
            assert_eq!(reason, expected);
            assert!((minute * 60..minute * 60 + 10).contains(at), "{reason} after {at} s");
        }
        // Nothing is made in its place, and what is to be done is said.
        for act in [Act::Rotate { identity: "pay".into() }, revoke("pay")] {
            let said = house.steward.act(act).await.unwrap_err().join("\n");
            assert!(said.contains("is not the agent's to make") && said.contains("pay.crt"), "{said}");
            assert!(!said.contains("register the new"), "{said}");
        }
        // Reissued, it counts from the reload on.
        let again = of_a_ca(house.dir.path()).contains("pay.crt");
        assert!(again && house.steward.act(Act::Reload).await.is_ok());
        let records = house.records(EventType::CertificateEnding);
        assert_eq!(records.len(), 4, "another certificate with the same dates is another");
    }

    #[tokio::test(start_paused = true)]
    async fn neither_a_turn_of_keys_nor_a_look_is_lost_to_whoever_interrupts() {
        // S36, K57-2: an operator comes every ten minutes.
        let mut house = house().await;
        let (mut looks, mut turned) = (0, 0);
        while turned == 0 {
            let came = timeout(Duration::from_secs(600), house.steward.attend()).await;
            let Ok(due) = came else { continue };
            match &due {
                Due::Look => looks += 1,
                Due::Turns(turns) => turned += turns.len(),
            }
            house.steward.see_to(due).await;
        }
        assert!((23..=24).contains(&looks), "one an hour, for a day: {looks}");
        assert_eq!(house.records(EventType::KeyRotate).len(), turned);
        assert_eq!(house.records(EventType::ExceptionEnding).len(), 1);
    }

    #[test]
    fn who_is_switched_off_is_found_again_and_a_directory_that_is_not_there_is_told() {
        // GA-10
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disabled.json");
        let disabled: BTreeMap<Arc<str>, String> = [("shop".into(), "stolen".to_owned())].into();
        keep_disabled(&path, &disabled).unwrap();
        assert_eq!(disabled_before(&path).unwrap(), disabled);
        keep_disabled(&path, &BTreeMap::new()).unwrap();
        assert_eq!(disabled_before(&path).unwrap(), BTreeMap::new());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
        let gone = settled(&dir.path().join("none/disabled.json")).unwrap_err();
        assert_eq!(gone.kind(), io::ErrorKind::NotFound);
        settled(Path::new("disabled.json")).unwrap();
    }
}

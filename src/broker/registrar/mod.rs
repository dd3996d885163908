//! What issuers have on their books about our clients, kept true (KEY-09, RFC 7592). In go the registrations that the settings
//! name and the keys as they are; out come turns: who knows which keys now, or why not. It looks at what should be and not at
//! what happened: a key that came or went, an emergency and a crash half way are all the same to it.
//!
//! Nothing here lets a key sign: whether an issuer takes the next one is found out by trying it there (`rotor.rs`).

mod rights;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use serde_json::Value;
use tokio::task::JoinSet;

use rights::Kept;
pub use rights::Rights;

use super::{Books, Turn, Turned, timing::back_off};
use crate::{
    clock::{Boot, Clock, Dice, fraction},
    issuer::{
        IssueError, Issuer, Reason,
        registration::{Ask, Registration, Wanted},
        terms::ClientAuth,
    },
    keys::{FileError, read_secret, rotation::RETRY},
    secret::scrubbed,
};

/// So many are under way at once: an agent that starts with many is no flood.
const AT_ONCE: usize = 16;

/// One client's registration, as the settings name it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RegistrationSettings {
    /// Whose client it is.
    pub identity: Arc<str>,
    /// At which issuer, by its name in the settings.
    pub issuer: Arc<str>,
    /// Which client.
    pub client_id: Arc<str>,
    /// How it proves who asks.
    pub client_auth: ClientAuth,
    /// The grants that it uses.
    pub grants: BTreeSet<&'static str>,
    /// Where the registration is (`registration_client_uri`), until the issuer says otherwise.
    pub uri: String,
    /// The file with the right to it (`registration_access_token`), until the issuer gives another.
    pub token_file: PathBuf,
    /// Where the one is kept that the issuer gave, sealed.
    pub kept: PathBuf,
}

impl RegistrationSettings {
    /// Whether the file with the right to it, if it is there, is one that only we can read and replace: an agent with another does
    /// not start, as with a key (KEY-11).
    ///
    /// # Errors
    /// [`FileError`] as for every key file.
    pub fn check(&self) -> Result<(), FileError> {
        match read_secret(&self.token_file) {
            Err(FileError::Io { error, .. }) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            checked => checked.map(drop),
        }
    }
}

/// What is known of one registration.
#[derive(Debug)]
struct Slot {
    settings: Arc<RegistrationSettings>,
    /// What the keys are recognised by that the issuer confirmed last; none if nobody ever looked.
    known: Option<BTreeSet<String>>,
    /// When that was, if it was in the life of this process.
    confirmed: Option<Boot>,
    under_way: bool,
    failures: u32,
    not_before: Option<Boot>,
    /// What is wrong, as it was told.
    trouble: Option<String>,
}

/// An update that ended.
#[derive(Debug)]
struct Done {
    settings: Arc<RegistrationSettings>,
    wanted: BTreeSet<String>,
    result: Result<Vec<String>, IssueError>,
}

/// All registrations, and the updates under way.
#[derive(Debug)]
pub struct Registrar {
    rights: Arc<Rights>,
    dice: Arc<dyn Dice>,
    slots: BTreeMap<PathBuf, Slot>,
    updates: JoinSet<Done>,
}

impl Registrar {
    /// Nothing is asked yet.
    pub fn new(rights: Rights, dice: Arc<dyn Dice>) -> Self {
        Self { rights: Arc::new(rights), dice, slots: BTreeMap::new(), updates: JoinSet::new() }
    }

    /// Begins what is due by `books`: each registration whose keys are not those that its issuer confirmed last.
    pub(super) fn look(&mut self, books: &Books, now: Boot) {
        // One that is under way has the right to its registration, whatever the settings say since.
        self.slots.retain(|_, slot| slot.under_way || books.registrations.contains(&slot.settings));
        for settings in &books.registrations {
            let slot = self.slots.entry(settings.kept.clone()).or_insert_with(|| Slot {
                settings: Arc::clone(settings),
                known: self.rights.open(settings).ok().and_then(|kept| kept.known),
                confirmed: None,
                under_way: false,
                failures: 0,
                not_before: None,
                trouble: None,
            });
            let keys = keys(books, settings);
            let ids: BTreeSet<String> = keys.iter().map(|(id, _)| id.clone()).collect();
            let waits = slot.not_before.is_some_and(|then| now < then);
            // Where there is none, there is nothing to say: an empty set would lock the client out.
            let busy = self.updates.len() >= AT_ONCE;
            if busy || slot.under_way || waits || ids.is_empty() || slot.known.as_ref() == Some(&ids) {
                continue;
            }
            slot.under_way = true;
            let (settings, rights) = (Arc::clone(settings), Arc::clone(&self.rights));
            let issuer = books.issuers.get(&settings.issuer).cloned();
            self.updates.spawn(async move {
                let result = match (issuer, wanted(&settings, keys)) {
                    (Some(issuer), Ok(wanted)) => {
                        Update { issuer, settings: &settings, rights }.run(&wanted).await
                    }
                    (None, _) => Err(super::absent(&settings.identity, "issuer")),
                    (_, Err(error)) => Err(error),
                };
                Done { settings, wanted: ids, result }
            });
        }
    }

    /// Waits until an update has ended. None if none is under way. Whoever stops waiting loses nothing.
    pub(super) async fn ended(&mut self, clock: &dyn Clock) -> Option<Option<Turn>> {
        match self.updates.join_next().await? {
            Ok(done) => Some(self.done(done, clock.boot())),
            // One that panicked is one that is done again, by and by.
            Err(_) => {
                let then = clock.boot() + RETRY;
                for slot in self.slots.values_mut().filter(|slot| slot.under_way) {
                    (slot.under_way, slot.not_before) = (false, Some(then));
                }
                Some(None)
            }
        }
    }

    /// Lets the updates under way end: what they are answered may be the only right to a registration that there is.
    pub(super) async fn finish(&mut self) {
        while self.updates.join_next().await.is_some() {}
    }

    /// An operator does not wait: what is due for `identity`, or for anybody, is tried at once.
    pub(super) fn hurry(&mut self, identity: Option<&str>) {
        let theirs = |slot: &&mut Slot| identity.is_none_or(|identity| *slot.settings.identity == *identity);
        for slot in self.slots.values_mut().filter(theirs) {
            slot.not_before = None;
        }
    }

    /// Whether trying the next key of `identity` is too early: its issuers are being told of it, or were so less than `propagation`
    /// ago, and may have older keys in a cache (KEY-05). One that could not be told holds up nothing: a person may do that.
    pub(super) fn is_telling(&self, books: &Books, identity: &str, propagation: Duration, now: Boot) -> bool {
        let theirs = books.registrations.iter().filter(|settings| *settings.identity == *identity);
        theirs.into_iter().any(|settings| match self.slots.get(&settings.kept) {
            None => true,
            Some(slot) => {
                let ids = keys(books, settings).into_iter().map(|(id, _)| id).collect();
                let known = slot.known.as_ref() == Some(&ids);
                (!known && slot.trouble.is_none())
                    || (known && slot.confirmed.is_some_and(|then| now.since(then) < propagation))
            }
        })
    }

    /// When an issuer last confirmed the keys of `identity`, if one did.
    pub(super) fn told(&self, identity: &str) -> Option<Boot> {
        let theirs = self.slots.values().filter(|slot| *slot.settings.identity == *identity);
        theirs.filter_map(|slot| slot.confirmed).max()
    }

    /// What is wrong, for an operator.
    pub(super) fn troubles(&self) -> impl Iterator<Item = String> {
        self.slots.values().filter_map(|slot| {
            let RegistrationSettings { identity, issuer, client_id, .. } = &*slot.settings;
            let trouble = slot.trouble.as_ref()?;
            Some(format!(
                "the registration of client {client_id} at {issuer} is not up to date, so no other key of {identity} can \
                 take over: {trouble}; until that is mended, register by hand: keybearer keys export --registration \
                 --identity {identity} --issuer {issuer} --client {client_id}"
            ))
        })
    }

    fn done(&mut self, Done { settings, wanted, result }: Done, now: Boot) -> Option<Turn> {
        let slot = self.slots.get_mut(&settings.kept)?;
        slot.under_way = false;
        let RegistrationSettings { identity, issuer, client_id, .. } = &*settings;
        let (identity, issuer, client_id) = (Arc::clone(identity), Arc::clone(issuer), Arc::clone(client_id));
        let what = match result {
            Ok(removed) => {
                (slot.failures, slot.not_before, slot.trouble) = (0, None, None);
                (slot.known, slot.confirmed) = (Some(wanted.clone()), Some(now));
                let kids = wanted.into_iter().collect();
                Turned::Registered { issuer, client_id, kids, removed }
            }
            Err(error) => {
                slot.failures = slot.failures.saturating_add(1);
                let wait = match &error {
                    IssueError::Retry { after, .. } => back_off(slot.failures, *after, fraction(&*self.dice)),
                    // A person has to act first.
                    _ => RETRY,
                };
                slot.not_before = Some(now + wait);
                let why = error.to_string();
                // Once for each kind of trouble: an issuer that is down for a day does not fill the ledger.
                if slot.trouble.replace(why.clone()).is_some_and(|told| told == why) {
                    return None;
                }
                Turned::NotRegistered { issuer, client_id, why }
            }
        };
        Some(Turn { identity, what })
    }
}

/// One update.
struct Update<'a> {
    issuer: Arc<dyn Issuer>,
    settings: &'a RegistrationSettings,
    rights: Arc<Rights>,
}

impl Update<'_> {
    /// Puts the registration right if it is not; which of its keys were not ours, and are there no more.
    async fn run(&self, wanted: &Wanted) -> Result<Vec<String>, IssueError> {
        let mut kept = self.rights.open(self.settings)?;
        // Before anything is asked: an answer may hold what has to be kept.
        self.rights.keep(self.settings, &kept)?;
        let there = match self.ask(&mut kept, Ask::Read).await {
            // It may have answered with another right that it then did not keep itself.
            Err(refused @ IssueError::Misconfigured { reason: Reason::ClientAuthRejected, .. }) => {
                let Some(before) = kept.access_before() else { return Err(refused) };
                let Ok(there) = self.issuer.registration(&before, Ask::Read).await else {
                    return Err(refused);
                };
                kept.go_back();
                self.accept(&mut kept, there)?
            }
            there => there?,
        };
        let mut removed = Vec::new();
        if let Some(document) = there.revised(wanted)? {
            let after = self.ask(&mut kept, Ask::Replace(document.clone())).await?;
            after.confirm(&document, wanted)?;
            removed = there.ids().difference(&wanted.ids()).map(|id| scrubbed(id, 100)).collect();
        }
        kept.known = Some(wanted.ids());
        self.rights.keep(self.settings, &kept)?;
        Ok(removed)
    }

    async fn ask(&self, kept: &mut Kept, ask: Ask) -> Result<Registration, IssueError> {
        let answered = self.issuer.registration(&kept.access(), ask).await?;
        self.accept(kept, answered)
    }

    /// Keeps the right that came with an answer before anything is made of the rest.
    fn accept(&self, kept: &mut Kept, mut answered: Registration) -> Result<Registration, IssueError> {
        if let Some(renewed) = answered.renewed.take() {
            kept.renew(&renewed);
        }
        self.rights.keep(self.settings, kept)?;
        match answered.misplaced.take() {
            Some(misplaced) => Err(misplaced),
            None => Ok(answered),
        }
    }
}

/// The keys that the issuer should know now, by what they are recognised by. None as a JWK where this house writes none down.
fn keys(books: &Books, of: &RegistrationSettings) -> Vec<(String, Option<Value>)> {
    let identity = &*of.identity;
    match of.client_auth {
        ClientAuth::SelfSignedTlsClientAuth => {
            let theirs = books.certificates.to_register().filter(|(name, _)| *name == identity);
            theirs.flat_map(|(_, all)| all).map(|one| (one.thumbprint().to_owned(), one.jwk())).collect()
        }
        _ => {
            let theirs = books.keys.to_register().filter(|(name, _)| *name == identity);
            theirs.map(|(_, key)| (key.kid().to_owned(), Some(key.public().jwk(key.algorithm())))).collect()
        }
    }
}

fn wanted(of: &RegistrationSettings, keys: Vec<(String, Option<Value>)>) -> Result<Wanted, IssueError> {
    let keys = keys.into_iter().map(|(id, jwk)| {
        jwk.map(|jwk| (id, jwk)).ok_or_else(|| IssueError::Misconfigured {
            reason: Reason::IssuerConfig,
            detail: "a certificate has a key that no JWK is written for: use one with P-256, Ed25519 or RSA"
                .into(),
        })
    });
    Ok(Wanted {
        client_id: Arc::clone(&of.client_id),
        client_auth: of.client_auth.clone(),
        grants: of.grants.clone(),
        keys: keys.collect::<Result<_, _>>()?,
    })
}

#[cfg(test)]
mod tests;

//! All client certificates in custody, by identity. In goes what the operator wants; out come certificates: those of a CA as
//! their files have them, the others made here, and made anew before they end. A new one is made and can be registered at
//! two thirds of the life of the old one, is shown from five sixths on, and the old one stays at hand until it ends, so that
//! an issuer that does not know the new one yet is not lost (MT-05, KEY-05, KEY-06).
//!
//! Certificates end by the wall clock, and that may be wrong: one step forward must not cost a registered key.
//! So a look does one stage at most. Opening only makes what is missing. What switches or destroys is done
//! later, and only if it was due for some time since boot, which no step of the wall can feign (CLK-01). A
//! switch that was wrong is taken back.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};

use super::{
    ClientCertificate,
    made::{Made, chain},
};
use crate::{
    clock::Boot,
    keys::{
        CLIENT_CERTIFICATE, Custody, FileError, Keyring, Now, Vault, file, rotation::settled, vault::Slot,
    },
};

/// A switch has to be due for so long. Much shorter than the sixth of a life that there is for it.
const SWITCH_AFTER: Duration = Duration::from_secs(10 * 60);

/// The same where it costs a key that was made before: that cannot be taken back.
const REPLACE_AFTER: Duration = Duration::from_secs(60 * 60);

/// A key has to have ended for so long before it is destroyed for no other reason: that does not press.
const DESTROY_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

/// One identity's wish for its certificate.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CertificateSettings {
    /// Where the key lives, and the certificate with it if the identity signs it itself.
    pub custody: Custody,
    /// Who signs it.
    pub signed_by: SignedBy,
    /// The URI in a certificate of our own making, such as a SPIFFE ID.
    pub san_uri: Option<String>,
    /// How long a certificate of our own making lives.
    pub lifetime: Duration,
    /// Whether a credential of this identity may be handed out with the key (MT-11).
    pub export: bool,
}

/// Who signs a certificate.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum SignedBy {
    /// The identity itself: it is made here.
    Itself,
    /// A CA, or whoever made it elsewhere: the chain is in this PEM file, leaf first.
    Others(PathBuf),
}

/// All client certificates.
#[derive(Clone, Debug, Default)]
pub struct Certificates(BTreeMap<Arc<str>, Arc<Custodian>>);

/// Who keeps one identity's.
#[derive(Debug)]
pub(super) struct Custodian {
    pub(super) identity: Arc<str>,
    pub(super) settings: CertificateSettings,
    pub(super) vault: Vault,
    held: Mutex<Held>,
}

/// What an identity has.
#[derive(Clone, Debug)]
pub(super) struct Held {
    /// What it shows.
    pub(super) now: Arc<ClientCertificate>,
    /// What it showed before, until that ends.
    before: Option<Arc<ClientCertificate>>,
    /// What it will show, so that it can be registered.
    pub(super) next: Option<Arc<ClientCertificate>>,
    /// What is due, and when that was first seen.
    due: Option<(Stage, Boot)>,
}

/// What is to be done.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ready {
    pub(super) stage: Stage,
    /// Whether somebody wants it now, due or not.
    pub(super) ordered: bool,
}

/// What can be due, or ordered.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Stage {
    /// The next one has to be made.
    Make,
    /// The next one cannot be shown: it has ended, or a clock that was ahead made it. It makes room for another.
    Remake,
    /// The next one has to be shown.
    Switch,
    /// The clock was ahead when it switched: the one before is good, and the one shown is not yet.
    Back,
    /// The one before has ended.
    Destroy,
    /// All keys are destroyed, and another is shown at once. Never due, only ordered (KEY-07).
    Replace,
}

impl Held {
    fn alone(now: Arc<ClientCertificate>) -> Self {
        Self { now, before: None, next: None, due: None }
    }

    /// What is due by the wall.
    fn due(&self, signed_by: &SignedBy, now: Timestamp) -> Option<Stage> {
        let good = |one: &ClientCertificate| one.is_good(now);
        if *signed_by != SignedBy::Itself {
            return None;
        }
        match &self.next {
            _ if now < self.now.from && self.before.as_deref().is_some_and(good) => Some(Stage::Back),
            None if now >= renewal(&self.now) => Some(Stage::Make),
            Some(next) if now >= renewal(&self.now) && !good(next) => Some(Stage::Remake),
            Some(_) if now >= change(&self.now) => Some(Stage::Switch),
            _ if self.before.as_ref().is_some_and(|before| now >= before.until) => Some(Stage::Destroy),
            _ => None,
        }
    }

    /// How long `stage` has to be due before it is done.
    fn wait(&self, stage: Stage) -> Duration {
        match stage {
            Stage::Make | Stage::Back | Stage::Replace => Duration::ZERO,
            Stage::Switch if self.before.is_none() => SWITCH_AFTER,
            Stage::Switch | Stage::Remake => REPLACE_AFTER,
            Stage::Destroy => DESTROY_AFTER,
        }
    }

    /// What is to be done now: what is due, once it has been due for long enough.
    fn ready(&mut self, signed_by: &SignedBy, now: Now) -> Option<Stage> {
        let due = self.due(signed_by, now.wall);
        if self.due.map(|(stage, _)| stage) != due {
            self.due = due.map(|stage| (stage, now.boot));
        }
        let (stage, seen) = self.due?;
        (now.boot.since(seen) >= self.wait(stage)).then_some(stage)
    }
}

impl Certificates {
    /// Opens or makes what `wanted` asks for. What `before` made in memory under the same settings stays. None has a key that
    /// another of them or of `ring` has (KEY-01). Files are kept as those of `ring` are.
    ///
    /// # Errors
    /// Every [`CertificateError`], not only the first.
    pub fn open(
        wanted: &BTreeMap<Arc<str>, CertificateSettings>,
        before: &Self,
        ring: &Keyring,
        now: Timestamp,
    ) -> Result<Self, Vec<CertificateError>> {
        let (mut opened, mut errors) = (BTreeMap::new(), Vec::new());
        let mut seen: BTreeMap<String, String> =
            ring.iter().map(|(name, _, key)| (key.kid().to_owned(), name.to_owned())).collect();
        for (identity, settings) in wanted {
            let kept = before
                .0
                .get(identity)
                .filter(|kept| kept.settings == *settings && settings.custody == Custody::Memory);
            let held = match kept {
                Some(kept) => Ok(kept.held().clone()),
                None => settle(identity, settings, ring.vault(), None, now),
            };
            let error = match held {
                Ok(held) => match seen.insert(held.now.kid().to_owned(), identity.to_string()) {
                    Some(other) => FileError::Shared { other },
                    None => {
                        let (identity, settings) = (Arc::clone(identity), settings.clone());
                        let (vault, held) = (ring.vault().clone(), Mutex::new(held));
                        let custodian = Custodian { identity, settings, vault, held };
                        opened.insert(Arc::clone(&custodian.identity), Arc::new(custodian));
                        continue;
                    }
                },
                Err(error) => error,
            };
            errors.push(CertificateError { identity: Arc::clone(identity), error });
        }
        if errors.is_empty() { Ok(Self(opened)) } else { Err(errors) }
    }

    /// What `identity` shows: first what it has now, then what it had before and issuers may know instead. Empty if it has no
    /// certificate, or none that has not ended.
    pub fn of(&self, identity: &Arc<str>, now: Timestamp) -> Vec<Arc<ClientCertificate>> {
        let Some(custodian) = self.0.get(identity) else { return Vec::new() };
        let held = custodian.held();
        let all = [Some(&held.now), held.before.as_ref()].into_iter().flatten();
        let mut shown: Vec<_> = all.filter(|one| now < one.until()).cloned().collect();
        // One that a clock made that was ahead is the last resort.
        shown.sort_by_key(|one| now < one.from);
        shown
    }

    /// Goes on by one stage with what `identity` has, if it is time. To be called with each order.
    pub fn tend(&self, identity: &Arc<str>, now: Now) {
        let Some(custodian) = self.0.get(identity) else { return };
        let mut held = custodian.held();
        let Some(stage) = held.ready(&custodian.settings.signed_by, now) else { return };
        let ready = Ready { stage, ordered: false };
        match settle(identity, &custodian.settings, &custodian.vault, Some((&held, ready)), now.wall) {
            Ok(settled) => *held = settled,
            // The old one is good for a while yet, and this is tried again with each order.
            Err(error) => tracing::error!(%identity, %error, "its next certificate cannot be made"),
        }
    }

    /// Every certificate that issuers have to know, by identity: what is shown, and what will be or was.
    pub fn to_register(&self) -> impl Iterator<Item = (&str, Vec<Arc<ClientCertificate>>)> {
        self.0.iter().map(|(identity, custodian)| {
            let held = custodian.held();
            let all = [Some(&held.now), held.next.as_ref(), held.before.as_ref()];
            (&**identity, all.into_iter().flatten().cloned().collect())
        })
    }
}

impl Certificates {
    pub(super) fn custodian(&self, identity: &Arc<str>) -> Option<&Arc<Custodian>> {
        self.0.get(identity)
    }

    pub(super) fn custodians(&self) -> impl Iterator<Item = &Arc<Custodian>> {
        self.0.values()
    }
}

impl Custodian {
    /// Does a stage.
    pub(super) fn does(&self, ready: Ready, now: Timestamp) -> Result<(), CertificateError> {
        let mut held = self.held();
        let settled = settle(&self.identity, &self.settings, &self.vault, Some((&held, ready)), now);
        *held = settled.map_err(|error| CertificateError { identity: Arc::clone(&self.identity), error })?;
        Ok(())
    }

    pub(super) fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// When the next one is made.
fn renewal(of: &ClientCertificate) -> Timestamp {
    part(of, 2, 3)
}

/// When the next one is shown.
fn change(of: &ClientCertificate) -> Timestamp {
    part(of, 5, 6)
}

fn part(of: &ClientCertificate, numerator: i64, denominator: i64) -> Timestamp {
    let life = of.until.as_second() - of.from.as_second();
    of.from.saturating_add(SignedDuration::from_secs(life / denominator * numerator)).unwrap_or(of.until)
}

/// Opens what an identity has, or does the stage that is ready, as long as that is due by what is found or was ordered. What was read from files is read again: another agent or
/// command may have been here first.
fn settle(
    identity: &str,
    settings: &CertificateSettings,
    vault: &Vault,
    ready: Option<(&Held, Ready)>,
    now: Timestamp,
) -> Result<Held, FileError> {
    let slot = Slot::of(vault, CLIENT_CERTIFICATE, identity);
    match (&settings.custody, &settings.signed_by) {
        (Custody::File { path }, SignedBy::Others(certificate)) => {
            let pkcs8 = file::read(path, slot)?.pkcs8;
            let pem = file::read_public(certificate)?;
            let place = certificate.display().to_string();
            let made = Made { pkcs8, chain: chain(certificate, &pem)? };
            Ok(Held::alone(Arc::new(made.certificate(&place, settings.export)?)))
        }
        (Custody::Memory, SignedBy::Others(certificate)) => Err(FileError::Certificate {
            place: certificate.display().to_string(),
            what: "its key cannot be one in memory: name the key's file".into(),
        }),
        (Custody::Memory, SignedBy::Itself) => {
            let make =
                || Made::now(identity, settings, now)?.certificate("memory", settings.export).map(Arc::new);
            match ready.map(|(held, ready)| (held, ready.stage)) {
                None | Some((_, Stage::Replace)) => Ok(Held::alone(make()?)),
                // Nobody could register one beforehand that only this process has: it is shown at once.
                Some((held, Stage::Make)) => {
                    Ok(Held { before: Some(Arc::clone(&held.now)), ..Held::alone(make()?) })
                }
                Some((held, Stage::Remake)) => Ok(Held { next: Some(make()?), ..held.clone() }),
                Some((held, Stage::Switch)) => {
                    let shown = held.next.clone().ok_or(FileError::Unusable)?;
                    Ok(Held { before: Some(Arc::clone(&held.now)), ..Held::alone(shown) })
                }
                Some((held, Stage::Back)) => {
                    let shown = held.before.clone().ok_or(FileError::Unusable)?;
                    Ok(Held { next: Some(Arc::clone(&held.now)), ..Held::alone(shown) })
                }
                Some((held, Stage::Destroy)) => Ok(Held { before: None, ..held.clone() }),
            }
        }
        (Custody::File { path }, SignedBy::Itself) => {
            settle_files(identity, settings, (path, slot), ready.map(|(_, ready)| ready), now)
        }
    }
}

fn settle_files(
    identity: &str,
    settings: &CertificateSettings,
    (path, slot): (&Path, Slot<'_>),
    ready: Option<Ready>,
    now: Timestamp,
) -> Result<Held, FileError> {
    let (next_path, before_path) = (file::beside(path, ".next"), file::beside(path, ".before"));
    let rename = |from: &Path, to: &Path| {
        fs::rename(from, to).map_err(|error| FileError::Io { path: from.into(), error })
    };
    let load = |path: &Path| match Made::read(path, slot) {
        Ok(made) => made.certificate(&path.display().to_string(), settings.export).map(Arc::new).map(Some),
        Err(FileError::Io { error, .. }) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    };
    let make = |path: &Path| {
        let made = Made::now(identity, settings, now)?;
        made.write(path, slot)?;
        made.certificate(&path.display().to_string(), settings.export).map(Arc::new)
    };
    if ready.is_some_and(|ready| ready.stage == Stage::Replace) {
        // The other is made first: where it cannot be, nothing is lost. Whatever else lies there, it need not be readable.
        file::destroy(&next_path)?;
        let made = make(&next_path)?;
        file::destroy(&before_path)?;
        file::destroy(path)?;
        rename(&next_path, path)?;
        settled(path).map_err(|error| FileError::Io { path: path.into(), error })?;
        return Ok(Held::alone(made));
    }
    let (next, before) = (load(&next_path)?, load(&before_path)?);
    let held = match (load(path)?, next) {
        (Some(shown), next) => Held { now: shown, before, next, due: None },
        // Whoever renamed stopped half way.
        (None, Some(next)) => {
            rename(&next_path, path)?;
            return Ok(Held { before, ..Held::alone(next) });
        }
        (None, None) => return Ok(Held { before, ..Held::alone(make(path)?) }),
    };
    let due = held.due(&settings.signed_by, now);
    let stage = match ready {
        Some(Ready { stage, ordered: true }) => Some(stage),
        _ => due.filter(|due| *due == Stage::Make || ready.is_some_and(|ready| ready.stage == *due)),
    };
    match stage {
        None | Some(Stage::Replace) => Ok(held),
        // Another agent or command was here first.
        Some(Stage::Make) if held.next.is_some() => Ok(held),
        Some(Stage::Make) => Ok(Held { next: Some(make(&next_path)?), ..held }),
        Some(Stage::Remake) => {
            file::destroy(&next_path)?;
            Ok(Held { next: Some(make(&next_path)?), ..held })
        }
        Some(Stage::Switch) => {
            let shown = held.next.ok_or(FileError::Unusable)?;
            rename(path, &before_path)?;
            rename(&next_path, path)?;
            Ok(Held { before: Some(held.now), ..Held::alone(shown) })
        }
        Some(Stage::Back) => {
            let shown = held.before.ok_or(FileError::Unusable)?;
            rename(path, &next_path)?;
            rename(&before_path, path)?;
            Ok(Held { next: Some(held.now), ..Held::alone(shown) })
        }
        Some(Stage::Destroy) => {
            // MT-08: what is bound to it has ended long ago, and a key that is of no use is a danger.
            file::destroy(&before_path)?;
            Ok(Held { before: None, ..held })
        }
    }
}

/// Whether what an identity shows is there and fits together, for whoever only looks: nothing is made.
pub(in crate::keys) fn look(
    identity: &str,
    settings: &CertificateSettings,
    vault: &Vault,
) -> Result<bool, FileError> {
    match (&settings.custody, &settings.signed_by) {
        (Custody::File { path }, SignedBy::Itself) if !path.exists() => Ok(false),
        (Custody::File { path }, SignedBy::Itself) => {
            let made = Made::read(path, Slot::of(vault, CLIENT_CERTIFICATE, identity))?;
            made.certificate(&path.display().to_string(), false).map(|_| true)
        }
        // Nothing is due with one of others.
        (_, SignedBy::Others(_)) => {
            settle(identity, settings, vault, None, Timestamp::UNIX_EPOCH).map(|_| true)
        }
        (Custody::Memory, SignedBy::Itself) => Ok(false),
    }
}

/// A certificate that could not be opened, and whose it is.
#[derive(Debug, thiserror::Error)]
#[error("identities.{identity}.certificate: {error}")]
pub struct CertificateError {
    /// The identity that wants it.
    pub identity: Arc<str>,
    /// What is wrong.
    #[source]
    pub error: FileError,
}

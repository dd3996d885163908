//! All client certificates in custody, by identity. In goes what the operator wants; out come certificates: those of a CA as
//! their files have them, the others made here, and made anew before they end. A new one is made and can be registered at
//! two thirds of the life of the old one, is shown from five sixths on, and the old one stays at hand until it ends, so that
//! an issuer that does not know the new one yet is not lost (MT-05, KEY-05, KEY-06).

use std::{
    collections::BTreeMap,
    ffi::OsString,
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
use crate::keys::{Custody, FileError, Keyring, file};

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

#[derive(Debug)]
struct Custodian {
    identity: Arc<str>,
    settings: CertificateSettings,
    held: Mutex<Held>,
}

/// What an identity has.
#[derive(Clone, Debug)]
struct Held {
    /// What it shows.
    now: Arc<ClientCertificate>,
    /// What it showed before, until that ends.
    before: Option<Arc<ClientCertificate>>,
    /// What it will show, so that it can be registered.
    next: Option<Arc<ClientCertificate>>,
}

impl Certificates {
    /// Opens or makes what `wanted` asks for. What `before` made in memory under the same settings stays. None has a key that
    /// another of them or of `ring` has (KEY-01).
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
                None => settle(identity, settings, None, now),
            };
            let error = match held {
                Ok(held) => match seen.insert(held.now.kid().to_owned(), identity.to_string()) {
                    Some(other) => FileError::Shared { other },
                    None => {
                        let (identity, settings) = (Arc::clone(identity), settings.clone());
                        let custodian = Custodian { identity, settings, held: Mutex::new(held) };
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
    /// certificate, or none that has not ended. Makes a new one when it is time.
    pub fn of(&self, identity: &Arc<str>, now: Timestamp) -> Vec<Arc<ClientCertificate>> {
        let Some(custodian) = self.0.get(identity) else { return Vec::new() };
        let mut held = custodian.held();
        if custodian.settings.signed_by == SignedBy::Itself && is_due(&held, now) {
            match settle(identity, &custodian.settings, Some(&held), now) {
                Ok(renewed) => *held = renewed,
                // The old one is good for a while yet, and this is tried again with each order.
                Err(error) => tracing::error!(%identity, %error, "its next certificate cannot be made"),
            }
        }
        let shown = [Some(&held.now), held.before.as_ref()].into_iter().flatten();
        shown.filter(|one| now < one.until()).cloned().collect()
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

impl Custodian {
    fn held(&self) -> MutexGuard<'_, Held> {
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

fn is_due(held: &Held, now: Timestamp) -> bool {
    now >= if held.next.is_some() { change(&held.now) } else { renewal(&held.now) }
        || held.before.as_ref().is_some_and(|before| now >= before.until())
}

/// Brings what an identity has to where it should be at `now`. What was read from files is read again: another agent or
/// command may have been here first.
fn settle(
    identity: &str,
    settings: &CertificateSettings,
    held: Option<&Held>,
    now: Timestamp,
) -> Result<Held, FileError> {
    match (&settings.custody, &settings.signed_by) {
        (Custody::File { path }, SignedBy::Others(certificate)) => {
            let key = file::open(path)?;
            let pem = file::read_public(certificate)?;
            let place = certificate.display().to_string();
            let made = ClientCertificate::new(chain(certificate, &pem)?, &key, &place, settings.export)?;
            Ok(Held { now: Arc::new(made), before: None, next: None })
        }
        (Custody::Memory, SignedBy::Others(certificate)) => Err(FileError::Certificate {
            place: certificate.display().to_string(),
            what: "its key cannot be one in memory: name the key's file".into(),
        }),
        (Custody::Memory, SignedBy::Itself) => {
            let make =
                || Made::now(identity, settings, now)?.certificate("memory", settings.export).map(Arc::new);
            match held {
                // Nobody could register one beforehand that only this process has: it is shown at once.
                Some(held) if now >= renewal(&held.now) => {
                    Ok(Held { now: make()?, before: Some(Arc::clone(&held.now)), next: None })
                }
                Some(held) => Ok(Held { before: None, ..held.clone() }),
                None => Ok(Held { now: make()?, before: None, next: None }),
            }
        }
        (Custody::File { path }, SignedBy::Itself) => settle_files(identity, settings, path, now),
    }
}

fn settle_files(
    identity: &str,
    settings: &CertificateSettings,
    path: &Path,
    now: Timestamp,
) -> Result<Held, FileError> {
    let (next_path, before_path) = (beside(path, ".next"), beside(path, ".before"));
    let io = |path: &Path, error| FileError::Io { path: path.into(), error };
    let load = |path: &Path| match Made::read(path) {
        Ok(made) => made.certificate(&path.display().to_string(), settings.export).map(Arc::new).map(Some),
        Err(FileError::Io { error, .. }) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    };
    let make = |path: &Path| {
        let made = Made::now(identity, settings, now)?;
        made.write(path)?;
        made.certificate(&path.display().to_string(), settings.export).map(Arc::new)
    };
    let mut next = load(&next_path)?;
    let mut shown = match (load(path)?, &next) {
        (Some(shown), _) => shown,
        // Whoever renamed stopped half way.
        (None, Some(_)) => {
            fs::rename(&next_path, path).map_err(|error| io(&next_path, error))?;
            next.take().ok_or(FileError::Unusable)?
        }
        (None, None) => make(path)?,
    };
    if now >= renewal(&shown) && next.is_none() {
        next = Some(make(&next_path)?);
    }
    if now >= change(&shown)
        && let Some(new) = next.take()
    {
        fs::rename(path, &before_path).map_err(|error| io(path, error))?;
        fs::rename(&next_path, path).map_err(|error| io(&next_path, error))?;
        shown = new;
    }
    let mut before = load(&before_path)?;
    if before.as_ref().is_some_and(|before| now >= before.until()) {
        // MT-08: what is bound to it has ended long ago, and a key that is of no use is a danger.
        fs::remove_file(&before_path).map_err(|error| io(&before_path, error))?;
        before = None;
    }
    Ok(Held { now: shown, before, next })
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
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

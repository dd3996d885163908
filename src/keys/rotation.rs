//! How one key takes another's place: the new one is made and published; when the issuer knows it, it signs; the one before is
//! kept for as long as what it signed is good, and destroyed (KEY-05). In go a key's settings and moments; out come its
//! stage and what is due. Where the key is a file, each stage is one too, beside it: a restart goes on where it was.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use jiff::Timestamp;

use super::{
    Custody, FileError, Key, KeySettings,
    durable::settled,
    file::{self, destroy},
    vault::Slot,
};
use crate::{
    clock::{Boot, Clock},
    jose::Signer,
};

/// How long a published key waits at least before it signs: until caches of the set it is in have ended.
pub const PROPAGATION: Duration = Duration::from_secs(20 * 60);

/// How long the one before is kept: the life of an assertion, and twice the skew that is borne.
pub const OVERLAP: Duration = Duration::from_secs(5 * 60);

/// No key signs for longer (KEY-08, K57-1).
pub const MAX_AGE: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// A new key that the issuer does not know yet is tried again after so long.
pub const RETRY: Duration = Duration::from_secs(10 * 60);

/// This moment, by both clocks: files know only the wall's.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// By the wall.
    pub wall: Timestamp,
    /// Since boot.
    pub boot: Boot,
}

impl Now {
    /// What `clock` says.
    pub fn by(clock: &dyn Clock) -> Self {
        Self { wall: clock.wall(), boot: clock.boot() }
    }
}

/// A key for one purpose, and the one that comes or goes.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) signing: Arc<dyn Signer>,
    pub(super) since: Since,
    pub(super) stage: Stage,
}

/// Where a key's rotation is.
#[derive(Clone, Debug)]
pub(super) enum Stage {
    /// There is one key.
    Settled,
    /// The next is published, and does not sign yet.
    Published { next: Arc<dyn Signer>, since: Since },
    /// The next signs; the one before is still known.
    Overlap { before: Arc<dyn Signer>, since: Since },
}

/// How old something is. What is known of the time before this process is an age; from then on the time since boot counts.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Since {
    age: Duration,
    at: Boot,
}

impl Since {
    pub(super) fn now(now: Now) -> Self {
        Self { age: Duration::ZERO, at: now.boot }
    }

    /// From this moment of the same boot on.
    pub(super) fn at(made: Boot) -> Self {
        Self { age: Duration::ZERO, at: made }
    }

    fn file(meta: &fs::Metadata, now: Now) -> Self {
        // A date that lies ahead is no age.
        let age = u64::try_from(now.wall.as_second() - meta.mtime()).unwrap_or(0);
        Self { age: Duration::from_secs(age), at: now.boot }
    }

    pub(super) fn age(self, now: Boot) -> Duration {
        self.age + now.since(self.at)
    }
}

/// What is due with a key.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Due {
    /// The next has to be made and published: this one is as old as the settings allow.
    Begin,
    /// The next is to be tried at its issuers: they have had time to hear of it.
    Try,
    /// The one before is to be destroyed: nothing it signed is good any more.
    Finish,
}

impl Held {
    pub(super) fn fresh(signing: Arc<dyn Signer>, now: Now) -> Self {
        Self::since(signing, Since::now(now))
    }

    /// A key that is so old.
    pub(super) fn since(signing: Arc<dyn Signer>, since: Since) -> Self {
        Self { signing, since, stage: Stage::Settled }
    }

    /// Opens a key in a file, and what lies beside it.
    pub(super) fn open(
        path: &Path,
        settings: &KeySettings,
        slot: Slot<'_>,
        now: Now,
    ) -> Result<Self, FileError> {
        let beside = Beside::of(path);
        let io = |error| FileError::Io { path: path.into(), error };
        // Stopped between the two steps of a switch: the next is the key now.
        if !path.exists() && beside.next.exists() {
            fs::rename(&beside.next, path).map_err(io)?;
        }
        let open = |path: &Path| file::open_or_make(path, settings.algorithm, slot);
        let since = |path: &Path| fs::metadata(path).map(|meta| Since::file(&meta, now)).map_err(io);
        let signing = open(path)?;
        let stage = if beside.next.exists() {
            Stage::Published { next: open(&beside.next)?, since: since(&beside.next)? }
        } else if beside.before.exists() {
            Stage::Overlap { before: open(&beside.before)?, since: since(&beside.before)? }
        } else {
            Stage::Settled
        };
        Ok(Self { signing, since: since(path)?, stage })
    }

    /// What is due now.
    pub(super) fn due(&self, settings: &KeySettings, now: Boot) -> Option<Due> {
        match &self.stage {
            Stage::Settled => {
                let old = self.since.age(now) >= settings.rotation.every;
                (old && Key::can_be_made(settings.algorithm)).then_some(Due::Begin)
            }
            Stage::Published { since, .. } => {
                (since.age(now) >= settings.rotation.propagation).then_some(Due::Try)
            }
            Stage::Overlap { since, .. } => (since.age(now) >= OVERLAP).then_some(Due::Finish),
        }
    }

    /// Makes the next key and publishes it. Nothing, if there is one already.
    pub(super) fn begin(
        &mut self,
        settings: &KeySettings,
        slot: Slot<'_>,
        now: Now,
    ) -> Result<(), FileError> {
        if matches!(self.stage, Stage::Published { .. }) {
            return Ok(());
        }
        self.finish(settings)?;
        let next: Arc<dyn Signer> = match &settings.custody {
            Custody::Memory => Arc::new(Key::generate(settings.algorithm)?),
            Custody::File { path } => file::open_or_make(&Beside::of(path).next, settings.algorithm, slot)?,
        };
        self.stage = Stage::Published { next, since: Since::now(now) };
        Ok(())
    }

    /// The next key signs from now on.
    pub(super) fn switch(&mut self, settings: &KeySettings, now: Now) -> Result<(), FileError> {
        let Stage::Published { next, .. } = &self.stage else { return Ok(()) };
        if let Custody::File { path } = &settings.custody {
            let beside = Beside::of(path);
            let io = |error| FileError::Io { path: path.clone(), error };
            // One that failed half way goes on where it was: to move again would overwrite the key before.
            if beside.next.exists() {
                if path.exists() {
                    fs::rename(path, &beside.before).map_err(io)?;
                }
                fs::rename(&beside.next, path).map_err(io)?;
            }
            dated(&beside.before, now)
                .and_then(|()| dated(path, now))
                .and_then(|()| settled(path))
                .map_err(io)?;
        }
        let next = Arc::clone(next);
        let before = std::mem::replace(&mut self.signing, next);
        (self.since, self.stage) = (Since::now(now), Stage::Overlap { before, since: Since::now(now) });
        Ok(())
    }

    /// The one before is destroyed.
    pub(super) fn finish(&mut self, settings: &KeySettings) -> Result<(), FileError> {
        if let Custody::File { path } = &settings.custody {
            destroy(&Beside::of(path).before)?;
        }
        if matches!(self.stage, Stage::Overlap { .. }) {
            self.stage = Stage::Settled;
        }
        Ok(())
    }

    /// Emergency: whatever there was is destroyed, and another key signs at once (KEY-07).
    pub(super) fn replace(
        &mut self,
        settings: &KeySettings,
        slot: Slot<'_>,
        now: Now,
    ) -> Result<(), FileError> {
        let made: Arc<dyn Signer> = match &settings.custody {
            Custody::Memory => Arc::new(Key::generate(settings.algorithm)?),
            Custody::File { path } => {
                let beside = Beside::of(path);
                destroy(&beside.next)?;
                let made = file::open_or_make(&beside.next, settings.algorithm, slot)?;
                destroy(path)?;
                fs::rename(&beside.next, path)
                    .and_then(|()| settled(path))
                    .map_err(|error| FileError::Io { path: path.clone(), error })?;
                destroy(&beside.before)?;
                made
            }
        };
        *self = Self::fresh(made, now);
        Ok(())
    }

    /// Every key of it that an issuer has to know now.
    pub(super) fn published(&self) -> impl Iterator<Item = &Arc<dyn Signer>> {
        let other = match &self.stage {
            Stage::Settled => None,
            Stage::Published { next: other, .. } | Stage::Overlap { before: other, .. } => Some(other),
        };
        [Some(&self.signing), other].into_iter().flatten()
    }
}

/// The files beside a key's own.
struct Beside {
    next: PathBuf,
    before: PathBuf,
}

impl Beside {
    fn of(path: &Path) -> Self {
        Self { next: file::beside(path, ".next"), before: file::beside(path, ".before") }
    }
}

/// A stage began now, by the file's own date: that is all a restart has to go by.
fn dated(path: &Path, now: Now) -> io::Result<()> {
    let seconds = u64::try_from(now.wall.as_second()).unwrap_or(0);
    let date = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    File::options().write(true).open(path)?.set_modified(date)
}

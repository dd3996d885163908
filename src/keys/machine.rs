//! The machine that a state directory belongs to (TM-14). In go the directory, and the file with the machine's id; out comes
//! leave to open what is in it, or the finding that it was copied here: two agents with the same keys are one client in two
//! places, and no issuer can tell which of them it was.
//!
//! What is kept is no id, which is not for others to see (machine-id(5)), but a hash that only this program makes of it. A tag
//! by the key of `seal.rs` stands beside it: whoever edits it has to have that key, or to say that he adopts the directory. This
//! finds mistakes, such as an image that was made of a host in use. It holds no thief: he has his own program. Nor does it see a
//! disk that was copied whole, machine-id and all. Against both there is sealing (`vault.rs`).
//!
//! A machine that has no id proves nothing: a directory that belongs to nobody yet is taken as it is, which is told; one that
//! belongs to a machine is refused. The boot id is not looked at, for it changes with each boot.

use std::{fs, io, path::PathBuf};

use ring::hmac;

use super::{SealingKey, durable::put_whole};
use crate::{
    clock::Dice,
    secret::{Secret, hex},
};

/// Where the machine's id is (machine-id(5)).
pub const MACHINE_ID: &str = "/etc/machine-id";

/// What the hash is of, beside the id.
const OF: &[u8] = b"keybearer state directory";

/// What stands in place of a tag where an operator adopted the directory, until the agent's next start.
const ADOPTED: &str = "adopted";

/// A state directory, and how to know the machine.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Home {
    /// The directory.
    pub state: PathBuf,
    /// The file with the machine's id.
    pub machine_id: PathBuf,
}

/// Why a state directory is not opened.
#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    /// It belongs to another machine.
    #[error(
        "CLONE_DETECTED: {state} belongs to another machine: its keys may be in use there, and two hosts must not be one \
         client. Move the directory away and start again: keys are made here, and you register those. Only if the other host \
         is gone for good, or this is that host with a new machine-id: keybearer keys adopt. Where it is new at each start, as in \
         some containers: keys.clone_detection = false"
    )]
    Clone {
        /// Which.
        state: PathBuf,
    },
    /// What says whose it is was changed.
    #[error(
        "{path} says which machine this state directory belongs to, and was changed, or the key that vouches for it was: if \
         this host is the one, keybearer keys adopt"
    )]
    Changed {
        /// Which file.
        path: PathBuf,
    },
    /// It cannot be read or written.
    #[error("{path}: {error}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the file system said.
        error: io::Error,
    },
    /// It belongs to a machine, and this one has no id.
    #[error(
        "{state} belongs to a machine with an id, and {machine_id} has none: make one (systemd-machine-id-setup), or, where it \
         changes with each start, as in some containers: keys.clone_detection = false"
    )]
    Nameless {
        /// Which directory.
        state: PathBuf,
        /// Where an id should be.
        machine_id: PathBuf,
    },
}

/// What is known of a directory before its keys are opened: it is not another machine's.
#[must_use = "it has yet to be held against the key, or written down"]
#[derive(Debug)]
pub struct Known {
    id: Option<String>,
    tag: Option<String>,
}

impl Known {
    /// Whether an operator made the directory this machine's since the last start, which is yet to be settled.
    pub fn is_adopted(&self) -> bool {
        self.tag.as_deref() == Some(ADOPTED)
    }
}

impl Home {
    /// Whether the machine can be known.
    pub fn has_machine_id(&self) -> bool {
        self.id().is_some()
    }

    /// Holds the directory against the machine. To be done before anything in it is opened.
    ///
    /// # Errors
    /// [`HomeError`] if it belongs to another machine, or that cannot be told.
    pub fn look(&self) -> Result<Known, HomeError> {
        let id = self.id();
        let text = match fs::read_to_string(self.path()) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Known { id, tag: None }),
            Err(error) => return Err(self.io(error)),
        };
        let Some((owner, tag)) = text.trim_end().split_once(' ') else {
            return Err(HomeError::Changed { path: self.path() });
        };
        match &id {
            None => {
                Err(HomeError::Nameless { state: self.state.clone(), machine_id: self.machine_id.clone() })
            }
            Some(id) if id == owner => Ok(Known { id: Some(id.clone()), tag: Some(tag.to_owned()) }),
            Some(_) => Err(HomeError::Clone { state: self.state.clone() }),
        }
    }

    /// Holds what is `known` against the key that vouches for it, and writes it down where it is not yet. Whether an operator
    /// adopted the directory, which is to go on record.
    ///
    /// # Errors
    /// [`HomeError`] if it was changed, or cannot be written.
    pub fn settle(&self, known: Known, key: &SealingKey, dice: &dyn Dice) -> Result<bool, HomeError> {
        let adopted = known.is_adopted();
        let Known { id: Some(id), tag } = known else { return Ok(false) };
        let purpose = format!("machine\n{id}");
        if let Some(tag) = tag.filter(|_| !adopted) {
            let tag = from_hex(&tag).and_then(|tag| key.unseal(&purpose, &tag));
            return tag.map(|_| false).ok_or_else(|| HomeError::Changed { path: self.path() });
        }
        // Nothing is sealed: what is left is the tag over what it is for.
        let tag = key.seal(&purpose, &Secret::new([]), dice).unwrap_or_default();
        self.write(&id, &hex(&tag))?;
        Ok(adopted)
    }

    /// Makes the directory this machine's.
    ///
    /// # Errors
    /// [`HomeError`] if there is no machine-id, or it cannot be written.
    pub fn adopt(&self) -> Result<(), HomeError> {
        let id = self.id().ok_or_else(|| HomeError::Nameless {
            state: self.state.clone(),
            machine_id: self.machine_id.clone(),
        })?;
        self.write(&id, ADOPTED)
    }

    /// What is kept of the machine's id, if it has one.
    pub(super) fn id(&self) -> Option<String> {
        let id = fs::read_to_string(&self.machine_id).ok()?;
        let id = id.trim();
        // An image that has not been started yet has "uninitialized" there, or nothing.
        if id.len() != 32 || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        let key = hmac::Key::new(hmac::HMAC_SHA256, id.as_bytes());
        Some(hex(hmac::sign(&key, OF).as_ref()))
    }

    fn path(&self) -> PathBuf {
        self.state.join("machine")
    }

    fn io(&self, error: io::Error) -> HomeError {
        HomeError::Io { path: self.path(), error }
    }

    fn write(&self, id: &str, tag: &str) -> Result<(), HomeError> {
        put_whole(&self.path(), format!("{id} {tag}\n").as_bytes()).map_err(|error| self.io(error))
    }
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> =
        text.chars().map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok())).collect();
    let digits = digits.filter(|digits| digits.len().is_multiple_of(2))?;
    Some(digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemDice;

    const ONE: &str = "3d1219c7c4c5404aaa1f6d2a48adfda4\n";
    const OTHER: &str = "aaaa19c7c4c5404aaa1f6d2a48adfda4\n";

    struct Host {
        dir: tempfile::TempDir,
        home: Home,
        key: SealingKey,
    }

    impl Host {
        fn with(id: &str) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let home = Home { state: dir.path().into(), machine_id: dir.path().join("machine-id") };
            fs::write(&home.machine_id, id).unwrap();
            Self { dir, home, key: SealingKey::of(&Secret::new("seed")) }
        }

        fn start(&self) -> Result<bool, HomeError> {
            self.home.settle(self.home.look()?, &self.key, &*SystemDice::shared())
        }

        fn becomes(&self, id: &str) {
            fs::write(&self.home.machine_id, id).unwrap();
        }
    }

    #[test]
    fn a_copy_on_another_machine_is_refused_until_it_is_adopted() {
        // TM-14
        let host = Host::with(ONE);
        assert!(!host.start().unwrap() && !host.start().unwrap());
        let kept = fs::read_to_string(host.dir.path().join("machine")).unwrap();
        assert!(!kept.contains(ONE.trim()), "the id itself is nobody else's to see: {kept}");
        host.becomes(OTHER);
        let refusal = host.start().unwrap_err();
        assert!(matches!(refusal, HomeError::Clone { .. }), "{refusal}");
        assert!(refusal.to_string().starts_with("CLONE_DETECTED"), "{refusal}");
        assert_eq!(fs::read_to_string(host.dir.path().join("machine")).unwrap(), kept, "nothing is changed");
        host.home.adopt().unwrap();
        assert!(host.start().unwrap(), "it goes on record once");
        assert!(!host.start().unwrap());
        host.becomes(ONE);
        assert!(matches!(host.start().unwrap_err(), HomeError::Clone { .. }), "and is the other's no more");
    }

    #[test]
    fn a_machine_without_an_id_takes_what_is_nobodys_and_nothing_else() {
        // TM-14
        for none in ["", "uninitialized\n", "3d12"] {
            let host = Host::with(none);
            assert!(
                !host.start().unwrap()
                    && !host.dir.path().join("machine").exists()
                    && !host.home.has_machine_id()
            );
            assert!(matches!(host.home.adopt(), Err(HomeError::Nameless { .. })));
            host.becomes(ONE);
            host.start().unwrap();
            host.becomes(none);
            assert!(matches!(host.start().unwrap_err(), HomeError::Nameless { .. }), "{none:?}");
        }
    }

    #[test]
    fn what_says_whose_it_is_cannot_be_edited_without_the_key() {
        // TM-14
        let host = Host::with(ONE);
        host.start().unwrap();
        let path = host.dir.path().join("machine");
        let kept = fs::read(&path).unwrap();
        for at in 0..kept.len() - 1 {
            let mut changed = kept.clone();
            changed[at] ^= 1;
            fs::write(&path, changed).unwrap();
            assert!(host.start().is_err(), "byte {at}");
        }
        fs::write(&path, kept).unwrap();
        host.start().unwrap();
        let other = Host { key: SealingKey::of(&Secret::new("seeds")), ..host };
        assert!(matches!(other.start().unwrap_err(), HomeError::Changed { .. }));
    }
}

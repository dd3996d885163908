//! The key of the ledger's checkpoints. In goes a tree's size and root; out comes a signed note in the form of C2SP
//! `tlog-checkpoint` and `signed-note` (AUD-21). The body is built here, so this key can sign nothing else.

use std::{fmt, path::Path};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ring::{
    digest,
    signature::{self, Ed25519KeyPair, KeyPair as _},
};

use super::{FileError, Vault, file, memory::Key, vault::Slot};
use crate::{
    jose::Algorithm,
    secret::{Secret, hex},
};

/// The signature type of Ed25519 in signed notes.
const ED25519: u8 = 0x01;

/// A tree of so many records has this root.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Checkpoint {
    /// The log's name, which is also the key's.
    pub origin: String,
    /// How many records.
    pub size: u64,
    /// The RFC 6962 root over their leaf hashes.
    pub root: [u8; 32],
}

impl Checkpoint {
    fn body(&self) -> String {
        format!("{}\n{}\n{}\n", self.origin, self.size, STANDARD.encode(self.root))
    }

    fn parse(body: &str) -> Option<Self> {
        let mut lines = body.split('\n');
        let origin = lines.next().filter(|origin| !origin.is_empty())?.to_owned();
        let size = lines.next()?;
        let canonical = size.parse::<u64>().ok().filter(|number| number.to_string() == size)?;
        let root = STANDARD.decode(lines.next()?).ok()?.try_into().ok()?;
        // Nothing may follow: an extension line would be unsigned meaning to us.
        (lines.next() == Some("") && lines.next().is_none()).then_some(Self { origin, size: canonical, root })
    }
}

/// The key that signs checkpoints: a key of its own (AUD-27).
pub struct CheckpointKey {
    pair: Ed25519KeyPair,
    verifier: Verifier,
}

impl CheckpointKey {
    /// Opens the key at `path`, or makes one there, as `vault` keeps files.
    ///
    /// # Errors
    /// [`FileError`] as for every key file.
    pub fn open(path: &Path, origin: &str, vault: &Vault) -> Result<Self, FileError> {
        let slot = Slot::own(vault, "checkpoint");
        Self::from_pkcs8(&file::open_or_make_pkcs8(path, Algorithm::EdDsa, slot)?, origin)
    }

    /// A key that is gone with the process, for tests.
    ///
    /// # Errors
    /// [`FileError::Unusable`] if *ring* cannot make one.
    pub fn generate(origin: &str) -> Result<Self, FileError> {
        Self::from_pkcs8(&Key::generate_pkcs8(Algorithm::EdDsa)?, origin)
    }

    pub(crate) fn from_pkcs8(pkcs8: &Secret, origin: &str) -> Result<Self, FileError> {
        let pair =
            Ed25519KeyPair::from_pkcs8_maybe_unchecked(pkcs8.expose()).map_err(|_| FileError::Unusable)?;
        let public = pair.public_key().as_ref().try_into().map_err(|_| FileError::Unusable)?;
        Ok(Self { pair, verifier: Verifier { name: origin.to_owned(), public } })
    }

    /// The signed note of `size` records with this `root`.
    pub fn sign(&self, size: u64, root: [u8; 32]) -> String {
        let body = Checkpoint { origin: self.verifier.name.clone(), size, root }.body();
        let signed = [&self.verifier.id()[..], self.pair.sign(body.as_bytes()).as_ref()].concat();
        format!("{body}\n\u{2014} {} {}\n", self.verifier.name, STANDARD.encode(signed))
    }

    /// Its public half.
    pub fn verifier(&self) -> &Verifier {
        &self.verifier
    }
}

impl fmt::Debug for CheckpointKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CheckpointKey({})", self.verifier)
    }
}

/// The public half of a checkpoint key; its text is a `vkey` of C2SP signed-note.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Verifier {
    name: String,
    public: [u8; 32],
}

impl Verifier {
    /// Reads a `vkey`: `name+id+base64(type || key)`.
    ///
    /// # Errors
    /// [`NoteError::Key`] if it is none, or of another type.
    pub fn parse(text: &str) -> Result<Self, NoteError> {
        let mut parts = text.trim().splitn(3, '+');
        let (Some(name), Some(id), Some(key)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(NoteError::Key);
        };
        let key = STANDARD.decode(key).map_err(|_| NoteError::Key)?;
        let (ED25519, public) = key.split_first().map(|(kind, rest)| (*kind, rest)).ok_or(NoteError::Key)?
        else {
            return Err(NoteError::Key);
        };
        let public = public.try_into().map_err(|_| NoteError::Key)?;
        let verifier = Self { name: name.to_owned(), public };
        if verifier.hex_id() == id { Ok(verifier) } else { Err(NoteError::Key) }
    }

    /// The checkpoint in `note`, if this key signed it.
    ///
    /// # Errors
    /// [`NoteError::Form`] if it is no signed note, [`NoteError::Signature`] if this key did not sign it.
    pub fn verify(&self, note: &str) -> Result<Checkpoint, NoteError> {
        let (body, signatures) = note.split_once("\n\n").ok_or(NoteError::Form)?;
        let body = format!("{body}\n");
        let checkpoint = Checkpoint::parse(&body).ok_or(NoteError::Form)?;
        let mine = signatures.lines().find_map(|line| {
            let (name, signed) = line.strip_prefix("\u{2014} ")?.split_once(' ')?;
            let signed = STANDARD.decode(signed).ok().filter(|_| name == self.name)?;
            signed.strip_prefix(&self.id()[..]).map(<[u8]>::to_vec)
        });
        signature::UnparsedPublicKey::new(&signature::ED25519, self.public)
            .verify(body.as_bytes(), &mine.ok_or(NoteError::Signature)?)
            .map_err(|_| NoteError::Signature)?;
        if checkpoint.origin == self.name { Ok(checkpoint) } else { Err(NoteError::Signature) }
    }

    fn id(&self) -> [u8; 4] {
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(self.name.as_bytes());
        context.update(&[b'\n', ED25519]);
        context.update(&self.public);
        let mut id = [0; 4];
        id.copy_from_slice(&context.finish().as_ref()[..4]);
        id
    }

    fn hex_id(&self) -> String {
        hex(&self.id())
    }
}

impl fmt::Display for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = STANDARD.encode([&[ED25519], &self.public[..]].concat());
        write!(f, "{}+{}+{key}", self.name, self.hex_id())
    }
}

/// What is wrong with a note or a verifier key.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum NoteError {
    /// Not a signed note.
    #[error("it is not a signed checkpoint (C2SP tlog-checkpoint)")]
    Form,
    /// Not a verifier key.
    #[error("it is not a verifier key of Ed25519 (C2SP signed-note, name+id+key)")]
    Key,
    /// Not signed by this key.
    #[error("its signature is not by the checkpoint key")]
    Signature,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_has_the_form_of_c2sp_and_verifies() {
        // AUD-21
        let key = CheckpointKey::generate("keybearer/test").unwrap();
        let note = key.sign(7, [3; 32]);
        let lines: Vec<&str> = note.split('\n').collect();
        assert_eq!(&lines[..4], ["keybearer/test", "7", &*STANDARD.encode([3; 32]), ""]);
        assert!(lines[4].starts_with("\u{2014} keybearer/test "));
        assert_eq!(lines.len(), 6, "five lines and the end of the last");
        let verifier = Verifier::parse(&key.verifier().to_string()).unwrap();
        let checkpoint = verifier.verify(&note).unwrap();
        assert_eq!((checkpoint.size, checkpoint.root), (7, [3; 32]));
    }

    #[test]
    fn a_changed_or_foreign_note_is_refused() {
        let key = CheckpointKey::generate("keybearer/test").unwrap();
        let other = CheckpointKey::generate("keybearer/test").unwrap();
        let note = key.sign(7, [3; 32]);
        assert_eq!(other.verifier().verify(&note), Err(NoteError::Signature));
        assert_eq!(key.verifier().verify(&note.replacen("\n7\n", "\n8\n", 1)), Err(NoteError::Signature));
        assert_eq!(key.verifier().verify(&note.replacen("\n7\n", "\n07\n", 1)), Err(NoteError::Form));
        assert_eq!(key.verifier().verify(&note.replacen("\n\n", "\nmore\n\n", 1)), Err(NoteError::Form));
        for broken in ["", "\n\n", "a\n1\nAAAA\n\n", "a+b+c"] {
            assert!(key.verifier().verify(broken).is_err());
            assert_eq!(Verifier::parse(broken), Err(NoteError::Key));
        }
    }
}

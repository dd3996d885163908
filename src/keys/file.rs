//! A private key at rest: a PEM file of mode 0600 in a directory of mode 0700, both ours (KEY-11); sealed, or PKCS#8 as it is,
//! as `vault.rs` has it. What is checked is the descriptor that was opened, not the path that was named.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rustix::fs::OFlags;
use zeroize::Zeroizing;

use super::{
    durable::settled,
    memory::{Key, PublicHalf},
    vault::{Found, Slot},
};
use crate::{
    jose::{Algorithm, PublicKey, Signer},
    secret::Secret,
};

/// Larger than any key we can use; a longer file is not a key.
const MAX_FILE: u64 = 64 * 1024;

/// What is put behind a key's name while it makes room for another.
pub(super) const STAGES: [&str; 2] = [".next", ".before"];

/// Opens the key at `path`, or makes one there. A file that is there is never overwritten. Where it is sealed and only public
/// halves are wanted, it is one.
pub(super) fn open_or_make(
    path: &Path,
    algorithm: Algorithm,
    slot: Slot<'_>,
) -> Result<Arc<dyn Signer>, FileError> {
    let unfit = || FileError::NotForAlgorithm { path: path.into(), algorithm };
    let pkcs8 = match read(path, slot) {
        Err(FileError::Io { error, .. }) if error.kind() == io::ErrorKind::NotFound => {
            make(path, algorithm, slot)?
        }
        Err(error) => return Err(error),
        Ok(Found { pkcs8: Some(pkcs8), .. }) => pkcs8,
        Ok(Found { open, .. }) => {
            let jwk = serde_json::from_slice(&open).ok();
            let public = jwk.and_then(|jwk| PublicKey::from_jwk(&jwk).ok()).ok_or_else(unfit)?;
            return Ok(Arc::new(PublicHalf::new(public, algorithm).ok_or_else(unfit)?));
        }
    };
    Ok(Arc::new(Key::from_pkcs8(&pkcs8, algorithm).map_err(|_| unfit())?))
}

/// The same, as PKCS#8, for the other keys of this room.
pub(super) fn open_or_make_pkcs8(
    path: &Path,
    algorithm: Algorithm,
    slot: Slot<'_>,
) -> Result<Secret, FileError> {
    match open(path, slot) {
        Err(FileError::Io { error, .. }) if error.kind() == io::ErrorKind::NotFound => {
            make(path, algorithm, slot)
        }
        done => done,
    }
}

/// The PKCS#8 key in the file at `path`.
pub(super) fn open(path: &Path, slot: Slot<'_>) -> Result<Secret, FileError> {
    read(path, slot)?.pkcs8.ok_or_else(|| FileError::NoSealingKey { path: path.into() })
}

/// What is in the key file at `path`.
pub(super) fn read(path: &Path, slot: Slot<'_>) -> Result<Found, FileError> {
    read_keeping(path, slot, |found| Ok(found.pkcs8.as_ref().map(public_line).unwrap_or_default()))
}

/// What is in a key file. One that should be sealed, or sealed anew, is, with what `open` makes of it standing open.
pub(super) fn read_keeping(
    path: &Path,
    slot: Slot<'_>,
    open: impl FnOnce(&Found) -> Result<String, FileError>,
) -> Result<Found, FileError> {
    let (text, meta) = read_private(path)?;
    let found = slot.found(path, &text)?;
    if let (true, Some(pkcs8)) = (found.stale, &found.pkcs8) {
        let sealed = slot.text(path, pkcs8, &open(&found)?)?;
        match put_in_place_of(path, &meta, &sealed) {
            Ok(()) => tracing::info!(path = %path.display(), "sealed"),
            Err(error) if slot.insists() => return Err(FileError::Io { path: path.into(), error }),
            // It can be used all the same, and the next start tries again.
            Err(error) => tracing::error!(%error, path = %path.display(), "it is not sealed yet: make room"),
        }
    }
    Ok(found)
}

/// The public JWK of a key, in a line. Empty for one that has none here.
fn public_line(pkcs8: &Secret) -> String {
    let algorithms = [Algorithm::Es256, Algorithm::EdDsa, Algorithm::Rs256];
    let key = algorithms.iter().find_map(|algorithm| Key::from_pkcs8(pkcs8, *algorithm).ok());
    key.map(|key| format!("{}\n", key.public().members())).unwrap_or_default()
}

/// What is in a file that only we can read and replace.
pub(super) fn read_private(path: &Path) -> Result<(Zeroizing<Vec<u8>>, fs::Metadata), FileError> {
    if let Some(directory) = path.parent() {
        check_directory(directory)?;
    }
    let file = open_itself(path)?;
    let meta = check_file(path, &file)?;
    refuse_wide(path, &meta, 0o177, 0o600)?;
    if meta.nlink() > 1 {
        forget_link(path, &meta)?;
    }
    Ok((read_whole(path, &file)?, meta))
}

/// What is in a file that we or root gave us to read. That of root may be read by a group: so does the service manager show
/// that we alone may, by an access control list whose mask stands where the group's mode is.
pub(super) fn read_entrusted(path: &Path) -> Result<Zeroizing<Vec<u8>>, FileError> {
    let file = open_itself(path)?;
    let meta = check_file(path, &file)?;
    let directory = path.parent().unwrap_or(Path::new("/"));
    let around = fs::metadata(directory).map_err(|error| FileError::Io { path: directory.into(), error })?;
    let by_group = if rustix::process::geteuid().is_root() { 0 } else { 0o040 };
    for (path, meta, forbidden) in [(directory, &around, 0o022), (path, &meta, 0o077)] {
        let root = meta.uid() == 0;
        if !root {
            refuse_foreign(path, meta)?;
        }
        let forbidden = if root { forbidden & !by_group } else { forbidden };
        if meta.mode() & forbidden != 0 {
            let wanted = meta.mode() & 0o7777 & !forbidden;
            return Err(FileError::Perm { path: path.into(), mode: meta.mode() & 0o7777, wanted });
        }
    }
    read_whole(path, &file)
}

/// A secret of another kind in a file that is checked like a key (KEY-11): its text, without the white space behind it.
///
/// # Errors
/// [`FileError`] as for every key file.
pub fn read_secret(path: &Path) -> Result<Secret, FileError> {
    let (mut text, _) = read_private(path)?;
    let end = text.iter().rposition(|byte| !byte.is_ascii_whitespace()).map_or(0, |last| last + 1);
    text.truncate(end);
    Ok(Secret::new(std::mem::take(&mut *text)))
}

/// What is in a file that anybody may read, but only we or root can replace.
pub(super) fn read_public(path: &Path) -> Result<Zeroizing<Vec<u8>>, FileError> {
    let file = open_itself(path)?;
    let meta = check_file(path, &file)?;
    if meta.uid() != 0 {
        refuse_foreign(path, &meta)?;
    }
    if meta.mode() & 0o022 != 0 {
        return Err(FileError::Perm { path: path.into(), mode: meta.mode() & 0o7777, wanted: 0o644 });
    }
    read_whole(path, &file)
}

/// Opens what is at `path` itself: no link is followed, and no pipe waited for.
pub(super) fn open_itself(path: &Path) -> Result<File, FileError> {
    let nofollow = (OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK).bits();
    let opened = OpenOptions::new().read(true).custom_flags(nofollow.cast_signed()).open(path);
    opened.map_err(|error| FileError::Io { path: path.into(), error })
}

fn read_whole(path: &Path, file: &File) -> Result<Zeroizing<Vec<u8>>, FileError> {
    // Room for all of it at once: a buffer that grows leaves copies of a key behind.
    let mut read = Zeroizing::new(Vec::with_capacity(MAX_FILE as usize));
    file.take(MAX_FILE).read_to_end(&mut read).map_err(|error| FileError::Io { path: path.into(), error })?;
    Ok(read)
}

fn make(path: &Path, algorithm: Algorithm, slot: Slot<'_>) -> Result<Secret, FileError> {
    let pkcs8 = Key::generate_pkcs8(algorithm)?;
    let open = if slot.seals() { public_line(&pkcs8) } else { String::new() };
    write_private(path, &slot.text(path, &pkcs8, &open)?)?;
    Ok(pkcs8)
}

/// PEM (RFC 7468), wiped when it is let go.
pub(super) fn pem(label: &str, der: &[u8]) -> Zeroizing<String> {
    let body = Zeroizing::new(STANDARD.encode(der));
    let mut text = Zeroizing::new(String::with_capacity(body.len() + body.len() / 64 + 2 * label.len() + 64));
    text.push_str(&format!("-----BEGIN {label}-----\n"));
    for line in body.as_bytes().chunks(64) {
        text.extend(line.iter().map(|byte| char::from(*byte)));
        text.push('\n');
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}

/// Puts `pem` into a new file that is ours alone. A file that is there is never overwritten.
pub(super) fn write_private(path: &Path, pem: &str) -> Result<(), FileError> {
    let io = |error| FileError::Io { path: path.into(), error };
    private_directory(path)?;

    // Written beside and linked into place: nobody ever reads half a key, and a file that appeared
    // meanwhile is left alone.
    let beside = unfinished(path);
    // Whoever made it was killed: it is half a key, or a second link to one that was moved on.
    unlink(&beside)?;
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
        file.write_all(pem.as_bytes())?;
        file.sync_all()?;
        fs::hard_link(&beside, path)?;
        if !is_same(&file.metadata()?, &fs::symlink_metadata(path)?) {
            // Theirs is at `path` then: ours must not be used, for a restart would not find it.
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "another agent or command made it at the same moment: start again",
            ));
        }
        settled(path)
    })();
    let swept = unlink(&beside);
    written.map_err(io).and(swept)
}

/// Puts `text` in the place of what was read at `path`, of which nothing keeps its name. Whatever happens meanwhile, one of the
/// two is there whole. It keeps its date, which says how old the key is.
fn put_in_place_of(path: &Path, was: &fs::Metadata, text: &str) -> io::Result<()> {
    let beside = unfinished(path);
    let gone = |error: io::Error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) };
    fs::remove_file(&beside).or_else(gone)?;
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
        file.write_all(text.as_bytes())?;
        file.set_modified(was.modified()?)?;
        file.sync_all()?;
        if !is_same(was, &fs::symlink_metadata(path)?) {
            return Err(io::Error::other("another agent or command replaced it at the same moment"));
        }
        fs::rename(&beside, path)?;
        settled(path)
    })();
    if written.is_err() {
        fs::remove_file(&beside).or_else(gone)?;
    }
    written
}

/// Puts `text` at `path`, whatever is there: one of the two is there whole at any moment, and on disk when this returns.
pub(super) fn replace_private(path: &Path, text: &str) -> Result<(), FileError> {
    let io = |error| FileError::Io { path: path.into(), error };
    private_directory(path)?;
    let beside = unfinished(path);
    // Half of one, of whoever was killed while he wrote it.
    unlink(&beside)?;
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        settled(path)
    })();
    if written.is_err() {
        unlink(&beside)?;
    }
    written.map_err(io)
}

/// Makes the directory that `path` is to be in, ours alone, or sees that it is.
fn private_directory(path: &Path) -> Result<(), FileError> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    if !directory.exists() {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
        made.map_err(|error| FileError::Io { path: path.into(), error })?;
    }
    check_directory(directory)
}

/// Where a file is written before it is at `path`.
fn unfinished(path: &Path) -> PathBuf {
    beside(path, ".new")
}

/// The file beside `path` that has its whole name and `suffix` behind it.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn is_same(one: &fs::Metadata, other: &fs::Metadata) -> bool {
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

/// Whoever made the key at `path` was killed before the name it was written under was gone. A rotation moves
/// the key to another name, and would not find that one.
fn forget_link(path: &Path, meta: &fs::Metadata) -> Result<(), FileError> {
    let beside = unfinished(path);
    match fs::symlink_metadata(&beside) {
        Ok(other) if is_same(meta, &other) => unlink(&beside),
        _ => Ok(()),
    }
}

/// Unlinks a key, if it is there, and what is left of its making, which may be a second link to it. Its blocks
/// are the file system's: encrypt the disk, or keep keys in hardware (K57-7).
pub(super) fn destroy(path: &Path) -> Result<(), FileError> {
    unlink(&unfinished(path))?;
    unlink(path)
}

fn unlink(path: &Path) -> Result<(), FileError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(FileError::Io { path: path.into(), error })
        }
        _ => Ok(()),
    }
}

fn check_directory(directory: &Path) -> Result<(), FileError> {
    let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
    let meta = fs::metadata(directory).map_err(|error| FileError::Io { path: directory.into(), error })?;
    refuse_wide(directory, &meta, 0o077, 0o700)
}

fn check_file(path: &Path, file: &File) -> Result<fs::Metadata, FileError> {
    let meta = file.metadata().map_err(|error| FileError::Io { path: path.into(), error })?;
    if !meta.is_file() {
        return Err(FileError::NotAFile { path: path.into() });
    }
    Ok(meta)
}

fn refuse_wide(path: &Path, meta: &fs::Metadata, forbidden: u32, wanted: u32) -> Result<(), FileError> {
    refuse_foreign(path, meta)?;
    if meta.mode() & forbidden != 0 {
        return Err(FileError::Perm { path: path.into(), mode: meta.mode() & 0o7777, wanted });
    }
    Ok(())
}

fn refuse_foreign(path: &Path, meta: &fs::Metadata) -> Result<(), FileError> {
    let ours = rustix::process::geteuid().as_raw();
    if meta.uid() == ours {
        return Ok(());
    }
    Err(FileError::Owner { path: path.into(), uid: meta.uid(), ours })
}

/// Why a key, or the certificate for it, cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// A certificate that cannot be used, or not with this key.
    #[error("{place}: {what}")]
    Certificate {
        /// Where it is, or was to be made.
        place: String,
        /// What is wrong and what to do.
        what: String,
    },
    /// The file system said no.
    #[error("{path}: {error}")]
    Io {
        /// Where.
        path: PathBuf,
        /// What it said.
        error: io::Error,
    },
    /// *ring* makes no RSA keys.
    #[error(
        "an RSA key has to be made elsewhere: openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:3072, \
         then name it with key.custody = \"file\" and key.path"
    )]
    NoRsaKey,
    /// A directory, a device, a pipe.
    #[error("{path} is not a regular file")]
    NotAFile {
        /// Which.
        path: PathBuf,
    },
    /// A key, but of another kind.
    #[error("{path} holds no key for {algorithm}: set key.algorithm to what it is, or move the file away")]
    NotForAlgorithm {
        /// Which.
        path: PathBuf,
        /// What was wanted.
        algorithm: Algorithm,
    },
    /// It is sealed, and there is no key for it.
    #[error(
        "{path} is sealed, or has to be, and there is no sealing key here: the agent is given one as the credential \
         keybearer.sealing-key (systemd-creds) or by keys.sealing_key, and makes at its start what is not there yet"
    )]
    NoSealingKey {
        /// Which.
        path: PathBuf,
    },
    /// No PKCS#8 PEM in it.
    #[error("{path} is no PKCS#8 PEM (BEGIN PRIVATE KEY): openssl pkcs8 -topk8 -nocrypt converts a key")]
    NotPkcs8 {
        /// Which.
        path: PathBuf,
    },
    /// Somebody else's file.
    #[error("KEY_PERM: {path} belongs to uid {uid}, not to this agent (uid {ours}): chown {ours} {path}")]
    Owner {
        /// Which.
        path: PathBuf,
        /// Whose it is.
        uid: u32,
        /// Who we are.
        ours: u32,
    },
    /// Others could read or replace it.
    #[error("KEY_PERM: {path} has mode {mode:04o}: chmod {wanted:04o} {path}")]
    Perm {
        /// Which.
        path: PathBuf,
        /// What it has.
        mode: u32,
        /// What it should have.
        wanted: u32,
    },
    /// It is sealed, and does not open.
    #[error(
        "{path} is sealed, and does not open as the {what}: by another sealing key, as that of another host or an older one, \
         for another use, or it was changed. Give the agent that key, an older one as keys.old_sealing_key; if it is lost, \
         move the file away, and register the key that is made instead"
    )]
    Sealed {
        /// Which.
        path: PathBuf,
        /// What it was to be.
        what: String,
    },
    /// The sealing key is none.
    #[error(
        "the sealing key {path} {what}: 32 bytes of chance or more, as head -c 32 /dev/urandom gives, are one"
    )]
    SealingKey {
        /// Where it is.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
    /// Two identities, one key.
    #[error("it is the same key as that of identity {other}: each identity has its own (KEY-01)")]
    Shared {
        /// Whose it also is.
        other: String,
    },
    /// Keys have to be sealed, and there is no sealing key.
    #[error(
        "keys.sealed = \"required\", and there is no sealing key: give the unit the credential keybearer.sealing-key \
         (systemd-creds), or name a file as keys.sealing_key"
    )]
    Unsealed,
    /// Not a key *ring* accepts.
    #[error("it is not a usable private key")]
    Unusable,
}

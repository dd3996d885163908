//! The ledger's files. In go whole batches of lines; each is on file or not at all. Nothing here knows what a record
//! means.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufRead as _, BufReader, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};
use serde::Deserialize;

use super::{
    LedgerError,
    tree::{Frontier, Hash, leaf},
};
use crate::keys::{CheckpointKey, Vault, Verifier, put_whole};

/// The names in the directory.
pub(super) const LINES: &str = "ledger.jsonl";
pub(super) const LATEST: &str = "checkpoint";
pub(super) const HISTORY: &str = "checkpoints";
pub(super) const KEY: &str = "checkpoint.key";
pub(super) const VERIFIER: &str = "checkpoint.pub";

/// No line is longer: a longer one was not written by us.
pub(super) const MAX_LINE: usize = 64 << 10;

/// Where lines go. The second implementation is the one that fails, in tests.
pub(super) trait Sink: Send {
    /// Appends all of `bytes`, or fails; what it left behind of them is cut off by [`Sink::cut`].
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Cuts everything beyond `length`.
    fn cut(&mut self, length: u64) -> io::Result<()>;

    /// A second handle, to flush while the first goes on.
    fn flusher(&self) -> io::Result<File>;
}

impl Sink for File {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_all(bytes)
    }

    fn cut(&mut self, length: u64) -> io::Result<()> {
        self.set_len(length)
    }

    fn flusher(&self) -> io::Result<File> {
        self.try_clone()
    }
}

/// The ledger as found on disk, checked.
pub(super) struct Book {
    pub(super) file: File,
    pub(super) length: u64,
    pub(super) frontier: Frontier,
    pub(super) prev: Hash,
    pub(super) key: CheckpointKey,
    /// Bytes of a torn end that were cut off.
    pub(super) torn: u64,
    /// Records that the last checkpoint covers.
    pub(super) signed: u64,
}

impl Book {
    /// Opens the ledger in `directory`, or begins one. Holds it against its last checkpoint (AUD-22).
    pub(super) fn open(directory: &Path, origin: &str, vault: &Vault) -> Result<Self, LedgerError> {
        let cannot = |what: String| LedgerError::Open { directory: directory.into(), what };
        let io = |doing: &str, error: &io::Error| cannot(format!("{doing}: {error}"));
        if !directory.exists() {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(directory)
                .map_err(|error| io("create the directory", &error))?;
        }
        let meta = fs::metadata(directory).map_err(|error| io("look at the directory", &error))?;
        let ours = rustix::process::geteuid().as_raw();
        if meta.uid() != ours || meta.mode() & 0o077 != 0 {
            return Err(cannot(format!(
                "it has mode {:04o} and belongs to uid {}: chown {ours} and chmod 0700 it",
                meta.mode() & 0o7777,
                meta.uid()
            )));
        }
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .custom_flags((rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::CLOEXEC).bits().cast_signed())
            .open(directory.join(LINES))
            .map_err(|error| io("open ledger.jsonl", &error))?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| LedgerError::InUse(directory.into()))?;
        let key = CheckpointKey::open(&directory.join(KEY), origin, vault)?;
        let verifier = format!("{}\n", key.verifier());
        fs::write(directory.join(VERIFIER), verifier).map_err(|error| io("write checkpoint.pub", &error))?;

        let signed = last_checkpoint(directory, key.verifier())?;
        let broken =
            |seq, what: &str| LedgerError::Broken { directory: directory.into(), seq, what: what.into() };
        let mut frontier = Frontier::default();
        let mut prev = [0; 32];
        let mut length = 0;
        let mut torn = 0;
        let total = file.metadata().map_err(|error| io("measure ledger.jsonl", &error))?.len();
        for line in Lines::new(&file) {
            let line = line.map_err(|error| io("read ledger.jsonl", &error))?;
            let seq = frontier.size();
            match line.link() {
                Ok((number, before)) if number == seq && before == prev => {}
                Ok(_) => return Err(broken(seq, "it does not follow the record before it")),
                // Only the very end can be torn by a crash, and only beyond what was signed.
                Err(_)
                    if length + line.bytes.len() as u64 == total
                        && signed.as_ref().is_none_or(|(size, _)| *size <= seq) =>
                {
                    torn = line.bytes.len() as u64;
                    break;
                }
                Err(what) => return Err(broken(seq, what)),
            }
            prev = leaf(line.text());
            frontier.push(prev);
            length += line.bytes.len() as u64;
            if signed
                .as_ref()
                .is_some_and(|(size, root)| *size == frontier.size() && *root != frontier.root())
            {
                return Err(broken(seq, "the records up to here are not those that were signed"));
            }
        }
        let signed_size = signed.map_or(0, |(size, _)| size);
        if signed_size > frontier.size() {
            return Err(broken(frontier.size(), "records that were signed are gone"));
        }
        if torn > 0 {
            file.cut(length).map_err(|error| io("cut the torn end", &error))?;
        }
        Ok(Self { file, length, frontier, prev, key, torn, signed: signed_size })
    }
}

/// Keeps a signed note: in the history, and as the latest. Durable before it is told to anybody (AUD-22).
pub(super) fn keep_checkpoint(directory: &Path, note: &str) -> io::Result<()> {
    let history = OpenOptions::new().append(true).create(true).mode(0o600).open(directory.join(HISTORY))?;
    (&history).write_all(note.as_bytes())?;
    history.sync_data()?;
    put_whole(&directory.join(LATEST), note.as_bytes())
}

fn last_checkpoint(directory: &Path, verifier: &Verifier) -> Result<Option<(u64, Hash)>, LedgerError> {
    let note = match fs::read_to_string(directory.join(LATEST)) {
        Ok(note) => note,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            return Err(LedgerError::Open {
                directory: directory.into(),
                what: format!("read checkpoint: {error}"),
            });
        }
    };
    match verifier.verify(&note) {
        Ok(checkpoint) => Ok(Some((checkpoint.size, checkpoint.root))),
        Err(error) => Err(LedgerError::Broken {
            directory: directory.into(),
            seq: 0,
            what: format!("its last checkpoint cannot be trusted: {error}"),
        }),
    }
}

/// One line with its line feed, if it has one.
pub(super) struct Line {
    pub(super) bytes: Vec<u8>,
}

impl Line {
    /// Without the line feed.
    pub(super) fn text(&self) -> &[u8] {
        self.bytes.strip_suffix(b"\n").unwrap_or(&self.bytes)
    }

    /// Its number and the hash it names.
    pub(super) fn link(&self) -> Result<(u64, Hash), &'static str> {
        #[derive(Deserialize)]
        struct Link<'a> {
            seq: u64,
            prev: &'a str,
        }
        if !self.bytes.ends_with(b"\n") {
            return Err("it is torn");
        }
        let link: Link<'_> = serde_json::from_slice(self.text()).map_err(|_| "it is not a record")?;
        Ok((link.seq, from_hex(link.prev).ok_or("it names no record before it")?))
    }
}

/// The lines of a ledger, one at a time.
pub(super) struct Lines<R>(BufReader<R>);

impl<R: io::Read> Lines<R> {
    pub(super) fn new(reader: R) -> Self {
        Self(BufReader::with_capacity(256 << 10, reader))
    }
}

impl<R: io::Read> Iterator for Lines<R> {
    type Item = io::Result<Line>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut bytes = Vec::new();
        loop {
            let (used, done) = match self.0.fill_buf() {
                Ok([]) => (0, true),
                Ok(buffer) => {
                    let end = buffer.iter().position(|byte| *byte == b'\n').map(|end| end + 1);
                    let used = end.unwrap_or(buffer.len());
                    bytes.extend_from_slice(&buffer[..used]);
                    (used, end.is_some() || bytes.len() > MAX_LINE)
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Some(Err(error)),
            };
            self.0.consume(used);
            if done {
                return (!bytes.is_empty()).then_some(Ok(Line { bytes }));
            }
        }
    }
}

fn from_hex(text: &str) -> Option<Hash> {
    let digits = text.as_bytes();
    let mut hash = [0; 32];
    if digits.len() != 64 {
        return None;
    }
    for (byte, pair) in hash.iter_mut().zip(digits.chunks(2)) {
        let digit = |index: usize| char::from(pair[index]).to_digit(16);
        *byte = u8::try_from(digit(0)? * 16 + digit(1)?).ok()?;
    }
    Some(hash)
}

/// The directory of a ledger, for messages.
pub(super) fn lines_path(directory: &Path) -> PathBuf {
    directory.join(LINES)
}

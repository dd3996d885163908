//! Which files a ledger has, and how they are named.
//!
//! | file | is |
//! |---|---|
//! | `ledger.jsonl` | the records that are written now |
//! | `ledger-FIRST.jsonl` | older records from number FIRST on (20 digits), up to the next file; its last one is a `ledger_turned` |
//! | `ledger-FIRST.leaves` | their leaf hashes, 32 bytes each, written once the file is closed; it stays when the records are deleted |
//! | `ledger.next` | what will be `ledger.jsonl`, for the moment of a turn |
//! | `checkpoint`, `checkpoints` | the last signed checkpoint, and all of them |
//! | `checkpoint.key`, `checkpoint.pub` | what they are signed and verified with |
//!
//! Nothing here judges: whoever looks is told what lies there.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::Path,
};

use super::{
    EventType, LedgerPart, Record,
    chain::{Line, Lines, MAX_LINE},
    tree::Hash,
};

/// The names in the directory.
pub(super) const LINES: &str = "ledger.jsonl";
pub(super) const NEXT: &str = "ledger.next";
pub(super) const LATEST: &str = "checkpoint";
pub(super) const HISTORY: &str = "checkpoints";
pub(super) const KEY: &str = "checkpoint.key";
pub(super) const VERIFIER: &str = "checkpoint.pub";

/// The closed file whose first record is `first`.
pub(super) fn lines_from(first: u64) -> String {
    format!("ledger-{first:020}.jsonl")
}

/// What is kept of the hashes of its records.
pub(super) fn leaves_from(first: u64) -> String {
    format!("ledger-{first:020}.leaves")
}

/// One closed file: its records, their hashes, or both.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Closed {
    /// The number of its first record.
    pub(super) first: u64,
    /// How long its records are, in bytes, if they are there.
    pub(super) lines: Option<u64>,
    /// How long the file of their hashes is, if there is one.
    pub(super) leaves: Option<u64>,
}

impl Closed {
    /// All that lie in `directory`, by number.
    pub(super) fn all(directory: &Path) -> io::Result<Vec<Self>> {
        let mut all = std::collections::BTreeMap::new();
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            let name = entry.file_name();
            let Some((first, kind)) = name.to_str().and_then(parse) else { continue };
            let length = match entry.metadata() {
                Ok(meta) => meta.len(),
                // Retention was there between the two calls.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            let closed = all.entry(first).or_insert(Self { first, lines: None, leaves: None });
            match kind {
                Kind::Lines => closed.lines = Some(length),
                Kind::Leaves => closed.leaves = Some(length),
            }
        }
        Ok(all.into_values().collect())
    }

    /// The number of the record after its last one, as far as its hashes tell.
    pub(super) fn end(&self) -> Option<u64> {
        self.leaves.map(|bytes| self.first + bytes / 32)
    }

    /// Its records. The file that is there and no other: a link in its place is an error.
    pub(super) fn open_lines(&self, directory: &Path) -> io::Result<File> {
        open(&directory.join(lines_from(self.first)))
    }

    /// The hashes that are kept, if there is a file of them and it is one.
    pub(super) fn read_leaves(&self, directory: &Path) -> io::Result<Option<Vec<Hash>>> {
        let mut bytes = Vec::new();
        match open(&directory.join(leaves_from(self.first))) {
            Ok(mut file) => file.read_to_end(&mut bytes)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let (leaves, rest) = bytes.as_chunks::<32>();
        match leaves {
            [_, ..] if rest.is_empty() => Ok(Some(leaves.to_vec())),
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "it is no list of hashes")),
        }
    }
}

enum Kind {
    Leaves,
    Lines,
}

fn parse(name: &str) -> Option<(u64, Kind)> {
    let (number, kind) = name.strip_prefix("ledger-")?.split_once('.')?;
    let kind = match kind {
        "jsonl" => Kind::Lines,
        "leaves" => Kind::Leaves,
        _ => return None,
    };
    let digits = number.len() == 20 && number.bytes().all(|byte| byte.is_ascii_digit());
    Some((number.parse().ok().filter(|_| digits)?, kind))
}

fn open(path: &Path) -> io::Result<File> {
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::CLOEXEC;
    OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path)
}

/// A ledger as it lies there in one moment, perhaps of an agent at work.
#[derive(Debug)]
pub(super) struct Layout {
    /// The closed files, by number.
    pub(super) closed: Vec<Closed>,
    /// What is written now.
    pub(super) current: File,
}

impl Layout {
    /// Looks into `directory`. The current file is opened first, and whatever was closed since then is left out: it is the one
    /// that was opened, or comes after it.
    ///
    /// # Errors
    /// What the file system says; not found if there is no current file.
    pub(super) fn look(directory: &Path) -> io::Result<Self> {
        let current = File::open(directory.join(LINES))?;
        let mut closed = Closed::all(directory)?;
        for at in 0..closed.len() {
            if is_at(&current, &directory.join(lines_from(closed[at].first)))? {
                closed.truncate(at);
                break;
            }
        }
        Ok(Self { closed, current })
    }
}

/// Whether `path` is a name of `file`.
pub(super) fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let ours = file.metadata()?;
    match fs::symlink_metadata(path) {
        Ok(meta) => Ok((meta.dev(), meta.ino()) == (ours.dev(), ours.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// The first and the last line of a closed file, without what lies between.
pub(super) fn ends(file: &mut File) -> io::Result<Option<(Line, Line)>> {
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(0))?;
    let Some(first) = Lines::new(&*file).next().transpose()? else { return Ok(None) };
    file.seek(SeekFrom::Start(length.saturating_sub(2 * MAX_LINE as u64)))?;
    let mut end = Vec::new();
    file.read_to_end(&mut end)?;
    let from = match end.strip_suffix(b"\n").unwrap_or(&end).iter().rposition(|byte| *byte == b'\n') {
        Some(feed) => feed + 1,
        None => 0,
    };
    Ok(Some((first, Line { bytes: end.split_off(from) })))
}

/// What the last record of a closed file says, and when it was written, if it is one that closes a file.
pub(super) fn closing(line: &Line) -> Option<(LedgerPart, jiff::Timestamp)> {
    let record: Record = serde_json::from_slice(line.text()).ok()?;
    let closes = line.is_whole() && record.entry.event.kind == EventType::LedgerTurned;
    Some((record.entry.ledger.filter(|_| closes)?, record.time.parse().ok()?))
}

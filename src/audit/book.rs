//! The ledger as it is found at the start. In goes a directory; out comes where to go on, or what is broken. Nothing here knows
//! what a record means.
//!
//! How long a start takes must not grow with all that was ever written, and nothing that a checkpoint signed may be different when
//! the agent goes on. So the start reads
//!
//! - **the file that is written** from end to end, each record against the one before it: it is at most as long as `rotate_at`
//!   and what comes between two checkpoints;
//! - **of each closed file the hashes** that were kept of its records, 32 bytes for each of about 1 KB, and puts the tree together from
//!   them. The root over all of them, and over the file that is written, has to be the one that the last checkpoint signed, so a
//!   hash that was changed, added, taken out or moved is found, whatever is left of the records themselves;
//! - **of each closed file its first and its last record**, which have to have the first and the last of those hashes: a file that
//!   is cut short, in another's place or from another ledger is found. The last one closes the file and says from where
//!   on records are kept: one that is gone without having been let go is found.
//!
//! What a checkpoint does not cover yet, the hashes could say anything of. A closed file that goes beyond the last checkpoint is
//! read like the one that is written: it is the last one, if the agent ended before it signed again. So is one whose hashes
//! were not written yet.
//!
//! A record in the middle of a closed file can be changed without the start finding it. What is signed from then on is right all the
//! same, because it rests on the hashes, and `audit verify` finds the record: it reads everything (`verify.rs`).

use std::{
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::Path,
};

use rustix::fs::{FlockOperation, flock};

use super::{
    LedgerError,
    chain::{Break, Chain, Lines},
    files::{
        Closed, HISTORY, KEY, LATEST, LINES, NEXT, VERIFIER, closing, ends, is_at, leaves_from, lines_from,
    },
    tree::{Frontier, Hash, leaf},
    turn::{Unfinished, trim},
};
use crate::keys::{CheckpointKey, Vault, Verifier, put_whole};

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
    /// The tree before the first record of `file`.
    pub(super) began: Frontier,
    pub(super) length: u64,
    pub(super) chain: Chain,
    pub(super) key: CheckpointKey,
    /// Bytes of a torn end that were cut off.
    pub(super) torn: u64,
    /// Records that the last checkpoint covers.
    pub(super) signed: u64,
    /// The first record that is kept as such.
    pub(super) kept_from: u64,
    /// The closed files, and how many bytes they have.
    pub(super) closed: u64,
    pub(super) closed_bytes: u64,
    /// The last closed file, if its hashes were not kept yet.
    pub(super) unfinished: Option<Unfinished>,
}

impl Book {
    /// Opens the ledger in `directory`, or begins one. Holds it against its last checkpoint (AUD-22).
    pub(super) fn open(directory: &Path, origin: &str, vault: &Vault) -> Result<Self, LedgerError> {
        private(directory)?;
        let io = |doing: &str, error: &io::Error| cannot(directory, format!("{doing}: {error}"));
        let read = |error| io("read the directory", &error);
        let old = Closed::all(directory).map_err(read)?;
        let file = current(directory, &old)?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| LedgerError::InUse(directory.into()))?;
        // Whoever held it meanwhile may have turned to another file: then this is a closed one.
        if !is_at(&file, &directory.join(LINES)).map_err(read)? {
            return Err(LedgerError::InUse(directory.into()));
        }
        let key = CheckpointKey::open(&directory.join(KEY), origin, vault)?;
        let verifier = format!("{}\n", key.verifier());
        fs::write(directory.join(VERIFIER), verifier).map_err(|error| io("write checkpoint.pub", &error))?;
        let old = Closed::all(directory).map_err(read)?;
        let old = without_half_a_turn(directory, &file, old).map_err(|error| io("undo a turn", &error))?;
        let mut opening = Opening {
            directory,
            signed: last_checkpoint(directory, key.verifier())?,
            chain: Chain::default(),
        };
        let (kept_from, unfinished) = opening.closed(&old)?;
        let began = opening.chain.tree.clone();
        let (length, torn) = opening.current(&file)?;
        let signed = opening.signed.map_or(0, |(size, _)| size);
        if signed > opening.chain.size() {
            return Err(broken(directory, opening.chain.size(), "records that were signed are gone"));
        }
        if torn > 0 {
            file.set_len(length).map_err(|error| io("cut the torn end", &error))?;
        }
        let bytes = |closed: &Closed| closed.lines.unwrap_or(0) + closed.leaves.unwrap_or(0);
        // What an agent said that it would let go, and did not come to.
        let gone = trim(directory, kept_from).map_err(|error| io("delete old records", &error))?;
        let closed_bytes = old.iter().map(bytes).sum::<u64>().saturating_sub(gone);
        let (chain, closed) = (opening.chain, old.len() as u64);
        Ok(Self {
            file,
            began,
            length,
            chain,
            key,
            torn,
            signed,
            kept_from,
            closed,
            closed_bytes,
            unfinished,
        })
    }
}

fn cannot(directory: &Path, what: String) -> LedgerError {
    LedgerError::Open { directory: directory.into(), what }
}

fn broken(directory: &Path, seq: u64, what: impl Into<String>) -> LedgerError {
    LedgerError::Broken { directory: directory.into(), seq, what: what.into() }
}

/// Makes the directory if there is none; it has to be ours alone.
fn private(directory: &Path) -> Result<(), LedgerError> {
    let io = |doing: &str, error: &io::Error| cannot(directory, format!("{doing}: {error}"));
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
        let (mode, uid) = (meta.mode() & 0o7777, meta.uid());
        let what = format!("it has mode {mode:04o} and belongs to uid {uid}: chown {ours} and chmod 0700 it");
        return Err(cannot(directory, what));
    }
    Ok(())
}

/// The file that is written. A new one is begun only where no other is: a turn never leaves the directory without it.
fn current(directory: &Path, old: &[Closed]) -> Result<File, LedgerError> {
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::CLOEXEC;
    let opened = OpenOptions::new()
        .read(true)
        .append(true)
        .create(old.is_empty())
        .mode(0o600)
        .custom_flags(flags.bits().cast_signed())
        .open(directory.join(LINES));
    opened.map_err(|error| match old.last() {
        Some(last) if error.kind() == ErrorKind::NotFound => broken(
            directory,
            last.first,
            format!("{LINES} is gone; {} comes before it", lines_from(last.first)),
        ),
        _ => cannot(directory, format!("open {LINES}: {error}")),
    })
}

/// The closed files but the one that is `file` still: an agent ended between the steps of a turn.
fn without_half_a_turn(directory: &Path, file: &File, mut old: Vec<Closed>) -> io::Result<Vec<Closed>> {
    match fs::remove_file(directory.join(NEXT)) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    if let Some(last) = old.last() {
        let path = directory.join(lines_from(last.first));
        if is_at(file, &path)? {
            fs::remove_file(path)?;
            old.pop();
        }
    }
    Ok(old)
}

/// A start under way.
struct Opening<'a> {
    directory: &'a Path,
    /// The last checkpoint: how many records, and their root.
    signed: Option<(u64, Hash)>,
    chain: Chain,
}

impl Opening<'_> {
    fn broken(&self, seq: u64, what: impl Into<String>) -> LedgerError {
        broken(self.directory, seq, what)
    }

    fn read(&self, name: &str, error: &io::Error) -> LedgerError {
        cannot(self.directory, format!("read {name}: {error}"))
    }

    /// Whether the records up to here are those that were signed, if the last checkpoint is of as many.
    fn held(&self) -> Result<(), LedgerError> {
        let size = self.chain.size();
        match self.signed {
            Some((signed, root)) if signed == size && root != self.chain.tree.root() => {
                Err(self.broken(size - 1, "the records up to here are not those that were signed"))
            }
            _ => Ok(()),
        }
    }

    /// The closed files: from where on records are kept, and the last one if its hashes are not.
    fn closed(&mut self, old: &[Closed]) -> Result<(u64, Option<Unfinished>), LedgerError> {
        let (mut kept_from, mut unfinished) = (0, None);
        for (at, closed) in old.iter().enumerate() {
            let (first, name) = (closed.first, lines_from(closed.first));
            if first != self.chain.size() {
                let what = format!("no file begins with it: the next one that is there is {name}");
                return Err(self.broken(self.chain.size(), what));
            }
            let leaves = closed.read_leaves(self.directory).map_err(|error| match error.kind() {
                ErrorKind::InvalidData => self.broken(first, format!("{}: {error}", leaves_from(first))),
                _ => self.read(&leaves_from(first), &error),
            })?;
            if leaves.is_none() && at + 1 < old.len() {
                return Err(self.broken(first, format!("{} is gone", leaves_from(first))));
            }
            let covered = |leaves: &Vec<Hash>| {
                self.signed.is_some_and(|(signed, _)| first + leaves.len() as u64 <= signed)
            };
            match &leaves {
                Some(leaves) if covered(leaves) => {
                    for leaf in leaves {
                        self.chain.push(*leaf);
                        self.held()?;
                    }
                }
                _ if closed.lines.is_none() => {
                    return Err(self.broken(first, format!("{name} is gone before it was signed")));
                }
                leaves => {
                    let began = self.chain.tree.clone();
                    self.whole(closed, leaves.as_deref())?;
                    if leaves.is_none() {
                        unfinished = Some(Unfinished { first, began, ended: self.chain.tree.clone() });
                    }
                }
            }
            if closed.lines.is_some() {
                kept_from = self.ends(closed, leaves.as_deref())?.max(kept_from);
            }
        }
        match old.iter().find(|closed| closed.lines.is_none() && closed.first >= kept_from) {
            Some(gone) => {
                let what = format!("{} is gone, and retention did not take it", lines_from(gone.first));
                Err(self.broken(gone.first, what))
            }
            None => Ok((kept_from, unfinished)),
        }
    }

    /// A closed file record by record, which is what it takes where nothing is signed yet or nothing is kept.
    fn whole(&mut self, closed: &Closed, leaves: Option<&[Hash]>) -> Result<(), LedgerError> {
        let name = lines_from(closed.first);
        let file = closed.open_lines(self.directory).map_err(|error| self.read(&name, &error))?;
        for line in Lines::new(file) {
            let line = line.map_err(|error| self.read(&name, &error))?;
            let seq = self.chain.size();
            let leaf = self.chain.follow(&line).map_err(|wrong| self.broken(seq, wrong.what()))?;
            let kept =
                leaves.map(|leaves| usize::try_from(seq - closed.first).ok().and_then(|at| leaves.get(at)));
            if kept.is_some_and(|kept| kept != Some(&leaf)) {
                let what = format!("{} says otherwise", leaves_from(closed.first));
                return Err(self.broken(seq, what));
            }
            self.held()?;
        }
        let records = self.chain.size() - closed.first;
        match leaves {
            Some(leaves) if leaves.len() as u64 != records => {
                Err(self.broken(self.chain.size(), format!("{name} ends before it was closed")))
            }
            _ => Ok(()),
        }
    }

    /// The first and the last record of a closed file against their hashes; from where on records are kept, as the last one says.
    fn ends(&self, closed: &Closed, leaves: Option<&[Hash]>) -> Result<u64, LedgerError> {
        let (first, name) = (closed.first, lines_from(closed.first));
        let mut file = closed.open_lines(self.directory).map_err(|error| self.read(&name, &error))?;
        let found = ends(&mut file).map_err(|error| self.read(&name, &error))?;
        let Some((head, end)) = found else {
            return Err(self.broken(first, format!("{name} is empty")));
        };
        if leaves.is_some_and(|leaves| leaves.first() != Some(&leaf(head.text()))) {
            return Err(self.broken(first, format!("{name} does not begin with it")));
        }
        let last = self.chain.size() - 1;
        if self.chain.prev != leaf(end.text()) {
            return Err(self.broken(last, format!("{name} does not end with it")));
        }
        match closing(&end) {
            Some((part, _)) if part.first == first && part.kept_from <= first => Ok(part.kept_from),
            _ => Err(self.broken(last, format!("{name} does not end as a closed file does"))),
        }
    }

    /// The file that is written: how long what is whole of it is, and how long what is torn.
    fn current(&mut self, file: &File) -> Result<(u64, u64), LedgerError> {
        let mut length = 0;
        let total = file.metadata().map_err(|error| self.read(LINES, &error))?.len();
        for line in Lines::new(file) {
            let line = line.map_err(|error| self.read(LINES, &error))?;
            let (seq, bytes) = (self.chain.size(), line.bytes.len() as u64);
            match self.chain.follow(&line) {
                Ok(_) => length += bytes,
                // Only the very end can be torn by a crash, and only beyond what was signed.
                Err(Break::Form(_))
                    if length + bytes == total && self.signed.is_none_or(|(size, _)| size <= seq) =>
                {
                    return Ok((length, bytes));
                }
                Err(wrong) => return Err(self.broken(seq, wrong.what())),
            }
            self.held()?;
        }
        Ok((length, 0))
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
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(cannot(directory, format!("read {LATEST}: {error}"))),
    };
    match verifier.verify(&note) {
        Ok(checkpoint) => Ok(Some((checkpoint.size, checkpoint.root))),
        Err(error) => Err(broken(directory, 0, format!("its last checkpoint cannot be trusted: {error}"))),
    }
}

//! The ledger at work: many callers, one pen. A caller that knows of no other takes the pen and writes at once, without
//! leaving its task. In a crowd, callers wait until their record is written: the scribe takes all that wait and writes them
//! at once, so that they share one write (group commit). The pen, which is the file and the chain, lies behind a lock that
//! is held for one write and never across a wait. A batch that cannot be written leaves no trace in the file. While the pen turns to
//! the next file, everybody waits with the scribe.

use std::{
    fs::File,
    io::{self, ErrorKind},
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use arc_swap::ArcSwap;
use tokio::sync::{Notify, mpsc, oneshot};
use uuid::Uuid;

use super::{
    Agent, Entry, EventType, Host, LedgerError, LedgerSettings, Line, OnFailure, Outcome, Scribe, Sync,
    book::Book,
    copy::{Copies, copies},
    counts::{Counts, Sort},
    pen::{Origin, Pen},
};
use crate::{
    clock::{Boot, Clock, Dice},
    keys::{Vault, settled},
};

/// How many callers may wait at once; more wait for a place.
const QUEUE: usize = 4096;

/// Opens the ledger, whose key is kept as `vault` says. Nothing runs until [`Scribe::run`] does.
///
/// # Errors
/// [`LedgerError`] if it is broken, in use or not to be written.
pub fn open(
    settings: LedgerSettings,
    host: Host,
    boot_id: String,
    agent: Agent,
    vault: &Vault,
    clock: Arc<dyn Clock>,
    dice: Arc<dyn Dice>,
) -> Result<(Ledger, Scribe), LedgerError> {
    let book = Book::open(&settings.directory, &settings.origin, vault)?;
    let (sender, receiver) = mpsc::channel(QUEUE);
    let (calls, called) = mpsc::channel(1);
    let pen = Pen {
        sink: Box::new(book.file),
        length: book.length,
        chain: book.chain,
        began: book.began,
        kept_from: book.kept_from,
        closed: book.closed,
        closed_bytes: book.closed_bytes,
        resting: false,
        unsettled: book.closed > 0,
        signed: book.signed,
        sign_at: book.signed.saturating_add(settings.checkpoint_records),
        torn: false,
        lost: 0,
        written: Boot::from_nanos(0),
        buffer: Vec::new(),
        clock,
        dice,
    };
    let (copies, copyist) = settings.journal.clone().map(copies).unzip();
    let shared = Arc::new(Shared {
        records: AtomicU64::new(pen.chain.size()),
        pen: Mutex::new(pen),
        sign: Notify::new(),
        counts: Counts::default(),
        written: AtomicU64::new(0),
        kept: AtomicU64::new(0),
        healthy: AtomicBool::new(true),
        signing: AtomicBool::new(true),
        whole: AtomicBool::new(true),
        copies,
        origin: ArcSwap::from_pointee(Origin::new(boot_id, host, agent)),
        settings,
    });
    if book.torn > 0 {
        let id = shared.pen().id();
        let entry = Entry::new(EventType::LedgerRepaired, Outcome::Success, id).detail(format!(
            "a torn end of {} bytes was cut off; nothing that was answered is lost",
            book.torn
        ));
        shared.write(&[&entry.into()]).map_err(LedgerError::Unwritable)?;
    }
    let ledger = Ledger { sender, calls, shared: Arc::clone(&shared) };
    Ok((ledger, Scribe::new(receiver, called, shared, book.key, book.unfinished, copyist)))
}

/// A line, and who waits for it to be written.
pub(super) type Waiting = (Line, oneshot::Sender<Result<Receipt, LedgerError>>);

/// A way to have things recorded. Cheap to clone; the scribe ends when the last one is gone.
#[derive(Clone, Debug)]
pub struct Ledger {
    sender: mpsc::Sender<Waiting>,
    calls: mpsc::Sender<oneshot::Sender<()>>,
    shared: Arc<Shared>,
}

impl Ledger {
    /// Records `line`, together with those of others who come in the same moment. When this returns a receipt, the record is
    /// with the kernel, and with the disk if [`Sync::Always`] (AUD-02).
    ///
    /// # Errors
    /// [`LedgerError::Unwritable`] if it cannot be written, [`LedgerError::Closed`] at the end.
    pub async fn record(&self, line: impl Into<Line>) -> Result<Receipt, LedgerError> {
        let (answer, answered) = oneshot::channel();
        self.sender.send((line.into(), answer)).await.map_err(|_| LedgerError::Closed)?;
        answered.await.map_err(|_| LedgerError::Closed)?
    }

    /// The same for a caller that knows of no other: it writes itself, at once. Not where each record is flushed, which has
    /// to be waited for, and not past those who wait.
    ///
    /// # Errors
    /// As [`Ledger::record`].
    pub async fn record_alone(&self, line: impl Into<Line>) -> Result<Receipt, LedgerError> {
        let nobody_waits = self.sender.capacity() == QUEUE;
        if self.shared.settings.sync == Sync::Always || !nobody_waits || self.sender.is_closed() {
            return self.record(line).await;
        }
        let line = line.into();
        match self.shared.write_now(&line) {
            Some(written) => self.shared.judge(written, 1).receipt(0, &line),
            None => self.record(line).await,
        }
    }

    /// Whether the scribe is there: this waits until it answers, and writes nothing. `false` once it has ended.
    pub async fn answers(&self) -> bool {
        let (answer, answered) = oneshot::channel();
        self.calls.send(answer).await.is_ok() && answered.await.is_ok()
    }

    /// From now on, records name these settings.
    pub fn use_config(&self, digest: &str) {
        let before = self.shared.origin.load();
        let agent = Agent { config_digest: digest.to_owned(), ..before.agent.clone() };
        self.shared.origin.store(Arc::new(Origin::new(before.boot_id.clone(), before.host.clone(), agent)));
    }

    /// The settings that records name now.
    pub fn config_digest(&self) -> String {
        self.shared.origin.load().agent.config_digest.clone()
    }

    /// How many records of each sort were written since the start.
    pub fn counts(&self) -> Vec<(Sort, u64)> {
        self.shared.counts.read()
    }

    /// How it is.
    pub fn health(&self) -> Health {
        let since_start = |at: &AtomicU64| match at.load(Ordering::Relaxed) {
            0 => None,
            nanos => Some(Boot::from_nanos(nanos)),
        };
        let records = self.shared.records.load(Ordering::Relaxed);
        let pen = self.shared.pen();
        let (signed, files, bytes) = (pen.signed, pen.closed + 1, pen.closed_bytes + pen.length);
        let kept_from = pen.kept_from;
        drop(pen);
        Health {
            directory: self.shared.settings.directory.clone(),
            records,
            files,
            bytes,
            kept_from,
            uncopied: self.shared.copies.as_ref().map(Copies::lost),
            unsigned: records.saturating_sub(signed),
            written: since_start(&self.shared.written),
            kept: since_start(&self.shared.kept),
            healthy: self.shared.healthy.load(Ordering::Relaxed)
                && self.shared.signing.load(Ordering::Relaxed)
                && self.shared.whole.load(Ordering::Relaxed),
        }
    }
}

/// How the ledger is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Health {
    /// Where it is.
    pub directory: PathBuf,
    /// How many records it has.
    pub records: u64,
    /// How many files were begun, the one that is written among them: of some, perhaps only the hashes are left.
    pub files: u64,
    /// How many bytes its records have, and what is kept of those that were deleted.
    pub bytes: u64,
    /// The first record that retention left.
    pub kept_from: u64,
    /// How many records have no copy in the host's journal, if they go there.
    pub uncopied: Option<u64>,
    /// Whether the last write, and the last checkpoint, went well, and no file was changed behind our back as far as we saw.
    pub healthy: bool,
    /// How many records no checkpoint covers yet.
    pub unsigned: u64,
    /// When a record was last written, if one was since the start.
    pub written: Option<Boot>,
    /// When what is written was last flushed and signed, if it was since the start.
    pub kept: Option<Boot>,
}

/// Proof that an exchange is on record. Only what was written, or judged lost by the operator's choice, makes one.
#[derive(Debug, Eq, PartialEq)]
#[must_use = "an answer without its receipt is an answer without a record"]
pub struct Receipt {
    seq: Option<u64>,
    exchange: Uuid,
}

impl Receipt {
    /// The record's number. None if it could not be written and the operator chose to go on (`on_failure`).
    pub fn seq(&self) -> Option<u64> {
        self.seq
    }

    /// The exchange it records.
    pub fn exchange(&self) -> Uuid {
        self.exchange
    }
}

/// What callers and the scribe share.
#[derive(Debug)]
pub(super) struct Shared {
    pen: Mutex<Pen>,
    /// So much was written that a checkpoint is due.
    pub(super) sign: Notify,
    records: AtomicU64,
    counts: Counts,
    /// When it was last written, and when last flushed and signed, in nanoseconds since boot; 0 if not since the start.
    written: AtomicU64,
    pub(super) kept: AtomicU64,
    /// Whether the last write went well, and whether the last checkpoint did: a write does not mend a checkpoint.
    healthy: AtomicBool,
    pub(super) signing: AtomicBool,
    /// Whether every file was, when it was closed, what had been written. Nothing mends that.
    pub(super) whole: AtomicBool,
    copies: Option<Copies>,
    origin: ArcSwap<Origin>,
    pub(super) settings: LedgerSettings,
}

impl Shared {
    /// The pen. Never kept across a wait.
    pub(super) fn pen(&self) -> MutexGuard<'_, Pen> {
        self.pen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes `lines`, all or none; the number of the first.
    pub(super) fn write(&self, lines: &[&Line]) -> Result<u64, ErrorKind> {
        self.write_with(self.pen(), lines)
    }

    /// Writes one, unless the pen rests.
    fn write_now(&self, line: &Line) -> Option<Result<u64, ErrorKind>> {
        let pen = self.pen();
        (!pen.resting).then(|| self.write_with(pen, &[line]))
    }

    /// Writes the last line of the file, after which the pen rests; a handle to flush it all.
    pub(super) fn write_last(&self, line: &Line) -> Result<File, ErrorKind> {
        let mut pen = self.pen();
        let flusher = pen.sink.flusher().map_err(|error| error.kind())?;
        // Before it is written: no other record may come after it.
        pen.resting = true;
        self.write_with(pen, &[line]).inspect_err(|_| self.pen().resting = false)?;
        Ok(flusher)
    }

    fn write_with(&self, mut pen: MutexGuard<'_, Pen>, lines: &[&Line]) -> Result<u64, ErrorKind> {
        let (first, gap) = pen.write(lines, &self.origin.load())?;
        self.records.store(pen.chain.size(), Ordering::Relaxed);
        self.written.store(pen.written.as_nanos(), Ordering::Relaxed);
        if pen.chain.size() >= pen.sign_at {
            pen.sign_at = pen.chain.size().saturating_add(self.settings.checkpoint_records);
            self.sign.notify_one();
        }
        drop(pen);
        for line in lines {
            self.counts.count(line.tally());
        }
        if let Some(copies) = &self.copies {
            let from = first - u64::from(gap.is_some());
            (from..)
                .zip(gap.iter().chain(lines.iter().copied()))
                .for_each(|(seq, line)| copies.put(seq, line));
        }
        Ok(first)
    }

    /// What puts everything that is written by now on disk. It waits for it, so it is for another thread.
    pub(super) fn flush(&self) -> impl FnOnce() -> io::Result<()> + Send + 'static {
        let pen = self.pen();
        let (file, unsettled) = (pen.sink.flusher(), pen.unsettled);
        let lines = self.settings.directory.join(super::files::LINES);
        move || {
            file?.sync_data()?;
            if unsettled { settled(&lines) } else { Ok(()) }
        }
    }

    /// What became of `count` lines, for the health and for those who wait.
    pub(super) fn judge(&self, written: Result<u64, ErrorKind>, count: usize) -> Judged {
        self.healthy.store(written.is_ok(), Ordering::Relaxed);
        let on_failure = self.settings.on_failure;
        if written.is_err() && on_failure == OnFailure::Allow {
            self.pen().lost += count as u64;
        }
        Judged { written, on_failure }
    }
}

/// A batch that was written, or was not.
#[derive(Clone, Copy)]
pub(super) struct Judged {
    written: Result<u64, ErrorKind>,
    on_failure: OnFailure,
}

impl Judged {
    /// The receipt of the line at `at` of the batch.
    pub(super) fn receipt(self, at: u64, line: &Line) -> Result<Receipt, LedgerError> {
        let exchange = line.exchange();
        match (self.written, self.on_failure) {
            (Ok(first), _) => Ok(Receipt { seq: Some(first + at), exchange }),
            (Err(_), OnFailure::Allow) => Ok(Receipt { seq: None, exchange }),
            (Err(kind), OnFailure::Deny) => Err(LedgerError::Unwritable(kind)),
        }
    }
}

//! The ledger at work: many callers, one pen. A caller that knows of no other takes the pen and writes at once, without
//! leaving its task. In a crowd, callers wait until their record is written: the scribe takes all that wait and writes them
//! at once, so that they share one write (group commit). The pen, which is the file and the chain, lies behind a lock that
//! is held for one write and never across a wait. A batch that cannot be written leaves no trace in the file.

use std::{
    fs::File,
    io::{self, ErrorKind, Write as _},
    mem,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use arc_swap::ArcSwap;
use serde::Serialize;
use tokio::{
    sync::{Notify, mpsc, oneshot},
    task::{JoinHandle, spawn_blocking, yield_now},
    time::{Instant, sleep_until},
};
use uuid::Uuid;

use super::{
    Agent, Entry, EventType, Host, LedgerError, LedgerSettings, Line, OnFailure, Outcome, Sync,
    book::{Book, Sink, keep_checkpoint},
    counts::{Counts, Sort},
    line::members,
    tree::{Frontier, Hash, leaf},
};
use crate::{
    clock::{Boot, Clock, Dice, uuid_v7},
    keys::{CheckpointKey, Vault},
    secret::put_hex,
};

/// How many callers may wait at once; more wait for a place.
const QUEUE: usize = 4096;

/// How many records share a write at most. Their callers are answered before the next are written, so that a crowd on one
/// connection reads its first answers while we write its last.
const BATCH: usize = 16;

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
        frontier: book.frontier,
        prev: book.prev,
        signed: book.signed,
        sign_at: book.signed.saturating_add(settings.checkpoint_records),
        torn: false,
        lost: 0,
        written: Boot::from_nanos(0),
        buffer: Vec::new(),
        clock,
        dice,
    };
    let shared = Arc::new(Shared {
        records: AtomicU64::new(pen.frontier.size()),
        pen: Mutex::new(pen),
        sign: Notify::new(),
        counts: Counts::default(),
        written: AtomicU64::new(0),
        kept: AtomicU64::new(0),
        healthy: AtomicBool::new(true),
        signing: AtomicBool::new(true),
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
    Ok((ledger, Scribe { receiver, called, shared, key: Arc::new(book.key) }))
}

/// A line, and who waits for it to be written.
type Waiting = (Line, oneshot::Sender<Result<Receipt, LedgerError>>);

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
        let written = self.shared.write(&[&line]);
        self.shared.judge(written, 1).receipt(0, &line)
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
        Health {
            directory: self.shared.settings.directory.clone(),
            records,
            unsigned: records.saturating_sub(self.shared.pen().signed),
            written: since_start(&self.shared.written),
            kept: since_start(&self.shared.kept),
            healthy: self.shared.healthy.load(Ordering::Relaxed)
                && self.shared.signing.load(Ordering::Relaxed),
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
    /// Whether the last write, and the last checkpoint, went well.
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
struct Shared {
    pen: Mutex<Pen>,
    /// So much was written that a checkpoint is due.
    sign: Notify,
    records: AtomicU64,
    counts: Counts,
    /// When it was last written, and when last flushed and signed, in nanoseconds since boot; 0 if not since the start.
    written: AtomicU64,
    kept: AtomicU64,
    /// Whether the last write went well, and whether the last checkpoint did: a write does not mend a checkpoint.
    healthy: AtomicBool,
    signing: AtomicBool,
    origin: ArcSwap<Origin>,
    settings: LedgerSettings,
}

impl Shared {
    /// The pen. Never kept across a wait.
    fn pen(&self) -> MutexGuard<'_, Pen> {
        self.pen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes `lines`, all or none; the number of the first.
    fn write(&self, lines: &[&Line]) -> Result<u64, ErrorKind> {
        let mut pen = self.pen();
        let first = pen.write(lines, &self.origin.load())?;
        self.records.store(pen.frontier.size(), Ordering::Relaxed);
        self.written.store(pen.written.as_nanos(), Ordering::Relaxed);
        if pen.frontier.size() >= pen.sign_at {
            pen.sign_at = pen.frontier.size().saturating_add(self.settings.checkpoint_records);
            self.sign.notify_one();
        }
        drop(pen);
        for line in lines {
            self.counts.count(line.tally());
        }
        Ok(first)
    }

    /// What became of `count` lines, for the health and for those who wait.
    fn judge(&self, written: Result<u64, ErrorKind>, count: usize) -> Judged {
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
struct Judged {
    written: Result<u64, ErrorKind>,
    on_failure: OnFailure,
}

impl Judged {
    /// The receipt of the line at `at` of the batch.
    fn receipt(self, at: u64, line: &Line) -> Result<Receipt, LedgerError> {
        let exchange = line.exchange();
        match (self.written, self.on_failure) {
            (Ok(first), _) => Ok(Receipt { seq: Some(first + at), exchange }),
            (Err(_), OnFailure::Allow) => Ok(Receipt { seq: None, exchange }),
            (Err(kind), OnFailure::Deny) => Err(LedgerError::Unwritable(kind)),
        }
    }
}

/// What all records of this run share, and the same spelled out.
#[derive(Debug)]
struct Origin {
    boot_id: String,
    host: Host,
    agent: Agent,
    spelled: String,
}

impl Origin {
    fn new(boot_id: String, host: Host, agent: Agent) -> Self {
        #[derive(Serialize)]
        struct Members<'a> {
            boot_id: &'a str,
            host: &'a Host,
            agent: &'a Agent,
        }
        let spelled = members(&Members { boot_id: &boot_id, host: &host, agent: &agent });
        Self { boot_id, host, agent, spelled }
    }
}

/// The file and the chain: whoever holds it writes.
struct Pen {
    sink: Box<dyn Sink>,
    length: u64,
    frontier: Frontier,
    prev: Hash,
    /// How many records the last checkpoint covers, and with how many the next is due before its time.
    signed: u64,
    sign_at: u64,
    /// What was half written is there still: nothing may come after it.
    torn: bool,
    lost: u64,
    written: Boot,
    buffer: Vec<u8>,
    clock: Arc<dyn Clock>,
    dice: Arc<dyn Dice>,
}

impl Pen {
    /// Appends `lines` in one write, or leaves the file as it was. A gap before them is told first. The number of the first.
    fn write(&mut self, lines: &[&Line], origin: &Origin) -> Result<u64, ErrorKind> {
        self.mend()?;
        let mut buffer = mem::take(&mut self.buffer);
        buffer.clear();
        let (mut frontier, mut prev) = (self.frontier.clone(), self.prev);
        let gap = (self.lost > 0).then(|| {
            let entry = Entry::new(EventType::LedgerGap, Outcome::Failed, self.id());
            Line::from(entry.detail(format!(
                "{} records could not be written and are lost (audit.on_failure = allow)",
                self.lost
            )))
        });
        let first = frontier.size() + u64::from(gap.is_some());
        let time = self.clock.wall();
        let now = self.clock.boot();
        let boot = now.as_nanos();
        for line in gap.iter().chain(lines.iter().copied()) {
            let (start, seq) = (buffer.len(), frontier.size());
            // A Vec takes every byte.
            let _ = write!(
                buffer,
                r#"{{"v":1,"seq":{seq},"time":"{time:.3}","boot_ns":{boot},{},"#,
                origin.spelled
            );
            line.write(&mut buffer);
            buffer.extend_from_slice(b",\"prev\":\"");
            put_hex(&prev, &mut buffer);
            buffer.extend_from_slice(b"\"}");
            prev = leaf(&buffer[start..]);
            frontier.push(prev);
            buffer.push(b'\n');
        }
        let appended = self.sink.append(&buffer).map_err(|error| error.kind());
        let added = buffer.len() as u64;
        buffer.shrink_to(1 << 20);
        self.buffer = buffer;
        if let Err(kind) = appended {
            tracing::error!(%kind, "the ledger cannot be written");
            self.torn = true;
            // If it fails, it is told, and tried again before the next record.
            let _ = self.mend();
            return Err(kind);
        }
        (self.frontier, self.prev, self.length, self.lost) = (frontier, prev, self.length + added, 0);
        self.written = now;
        Ok(first)
    }

    /// Cuts off what was half written, if anything was: a record after it would damage the ledger.
    fn mend(&mut self) -> Result<(), ErrorKind> {
        if self.torn {
            self.sink.cut(self.length).map_err(|error| {
                tracing::error!(%error, "what was half written to the ledger cannot be cut off: nothing is written after it");
                error.kind()
            })?;
            self.torn = false;
        }
        Ok(())
    }

    fn id(&self) -> Uuid {
        uuid_v7(self.clock.wall(), &*self.dice)
    }
}

impl std::fmt::Debug for Pen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pen({} records)", self.frontier.size())
    }
}

/// Who writes for a crowd, and signs. One task.
#[derive(Debug)]
pub struct Scribe {
    receiver: mpsc::Receiver<Waiting>,
    /// Those who only want to know whether it is there.
    called: mpsc::Receiver<oneshot::Sender<()>>,
    shared: Arc<Shared>,
    key: Arc<CheckpointKey>,
}

type Signing = JoinHandle<io::Result<u64>>;

impl Scribe {
    /// Writes until every [`Ledger`] is gone, and signs a last checkpoint.
    pub async fn run(mut self) {
        let every = self.shared.settings.checkpoint_every;
        let mut next = Instant::now() + every;
        let mut signing: Option<Signing> = None;
        let mut due = false;
        loop {
            tokio::select! {
                signed = async {
                    match signing.as_mut() {
                        Some(signing) => ended(signing.await),
                        None => std::future::pending().await,
                    }
                } => {
                    signing = None;
                    self.note_signed(signed);
                }
                first = self.receiver.recv() => {
                    let Some(first) = first else { break };
                    // In a crowd, whoever is ready in this moment joins the batch. One alone is not kept waiting.
                    if !self.receiver.is_empty() {
                        yield_now().await;
                    }
                    let mut batch = vec![first];
                    while batch.len() < BATCH && let Ok(next) = self.receiver.try_recv() {
                        batch.push(next);
                    }
                    self.commit(batch).await;
                }
                Some(answer) = self.called.recv() => {
                    // Nobody writes without the pen.
                    drop(self.shared.pen());
                    // Whoever called may have stopped waiting.
                    let _ = answer.send(());
                }
                () = self.shared.sign.notified() => due = true,
                () = sleep_until(next) => {
                    next = Instant::now() + every;
                    due = true;
                }
            }
            if due && signing.is_none() {
                due = false;
                signing = self.sign();
            }
        }
        if let Some(signing) = signing {
            self.note_signed(ended(signing.await));
        }
        if let Some(signing) = self.sign() {
            self.note_signed(ended(signing.await));
        }
    }

    /// Writes a batch and answers everybody in it, all with a receipt or none.
    async fn commit(&mut self, batch: Vec<Waiting>) {
        let mut written = self.shared.write(&batch.iter().map(|(line, _)| line).collect::<Vec<_>>());
        if self.shared.settings.sync == Sync::Always
            && written.is_ok()
            && let Err(kind) = self.flush().await
        {
            written = Err(kind);
        }
        let judged = self.shared.judge(written, batch.len());
        for (at, (line, answer)) in batch.into_iter().enumerate() {
            // A caller that has gone away has its record all the same.
            drop(answer.send(judged.receipt(at as u64, &line)));
        }
    }

    async fn flush(&self) -> Result<(), ErrorKind> {
        let flusher = self.flusher().map_err(|error| error.kind())?;
        ended(spawn_blocking(move || flusher.sync_data()).await).map_err(|error| error.kind())
    }

    fn flusher(&self) -> io::Result<File> {
        self.shared.pen().sink.flusher()
    }

    /// Signs what is written by now, if anything is new, off this task: a slow disk delays nobody's record.
    fn sign(&self) -> Option<Signing> {
        let (size, root) = {
            let mut pen = self.shared.pen();
            if pen.frontier.size() == pen.signed {
                return None;
            }
            pen.sign_at = pen.frontier.size().saturating_add(self.shared.settings.checkpoint_records);
            (pen.frontier.size(), pen.frontier.root())
        };
        let (key, directory) = (Arc::clone(&self.key), self.shared.settings.directory.clone());
        let flusher = self.flusher();
        Some(spawn_blocking(move || {
            flusher?.sync_data()?;
            keep_checkpoint(&directory, &key.sign(size, root))?;
            Ok(size)
        }))
    }

    fn note_signed(&self, signed: io::Result<u64>) {
        match signed {
            Ok(size) => {
                let mut pen = self.shared.pen();
                pen.signed = size;
                self.shared.kept.store(pen.clock.boot().as_nanos(), Ordering::Relaxed);
                drop(pen);
                self.shared.signing.store(true, Ordering::Relaxed);
                tracing::debug!(size, "checkpoint");
            }
            Err(error) => {
                self.shared.signing.store(false, Ordering::Relaxed);
                tracing::error!(%error, "the ledger's checkpoint cannot be kept; trying again at the next one");
            }
        }
    }
}

/// A blocking task ends with its result, or with a panic that counts as one that failed.
fn ended<T>(joined: Result<io::Result<T>, tokio::task::JoinError>) -> io::Result<T> {
    joined.unwrap_or_else(|error| Err(io::Error::other(error)))
}

#[cfg(test)]
impl Scribe {
    /// With another place to write to.
    pub(super) fn writing_to(self, sink: Box<dyn Sink>) -> Self {
        self.shared.pen().sink = sink;
        self
    }
}

//! The ledger at work: many callers, one scribe. Callers wait until their record is written; the scribe takes all
//! that wait and writes them at once, so that a crowd shares one write (group commit). A batch that cannot be
//! written leaves no trace in the file.

use std::{
    io::Write as _,
    mem,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use arc_swap::ArcSwap;
use serde::Serialize;
use tokio::{
    sync::{mpsc, oneshot},
    task::{JoinHandle, spawn_blocking, yield_now},
    time::{Instant, sleep_until},
};
use uuid::Uuid;

use super::{
    Agent, Entry, EventType, Host, LedgerError, LedgerSettings, Line, OnFailure, Outcome, Sync,
    book::{Book, Sink, keep_checkpoint},
    line::members,
    tree::{Frontier, Hash, leaf},
};
use crate::{
    clock::{Clock, Dice, uuid_v7},
    keys::CheckpointKey,
    secret::hex,
};

/// How many callers may wait at once; more wait for a place.
const QUEUE: usize = 4096;

/// How many records share a write at most. Their callers are answered before the next are written, so that a crowd on one
/// connection reads its first answers while we write its last.
const BATCH: usize = 16;

/// Opens the ledger. Nothing runs until [`Scribe::run`] does.
///
/// # Errors
/// [`LedgerError`] if it is broken, in use or not to be written.
pub fn open(
    settings: LedgerSettings,
    host: Host,
    boot_id: String,
    agent: Agent,
    clock: Arc<dyn Clock>,
    dice: Arc<dyn Dice>,
) -> Result<(Ledger, Scribe), LedgerError> {
    let book = Book::open(&settings.directory, &settings.origin)?;
    let (sender, receiver) = mpsc::channel(QUEUE);
    let shared = Arc::new(Shared {
        records: AtomicU64::new(book.frontier.size()),
        healthy: AtomicBool::new(true),
        origin: ArcSwap::from_pointee(Origin::new(boot_id, host, agent)),
        directory: settings.directory.clone(),
    });
    let ledger = Ledger { sender, shared: Arc::clone(&shared) };
    let mut scribe = Scribe {
        sink: Box::new(book.file),
        length: book.length,
        frontier: book.frontier,
        prev: book.prev,
        signed: book.signed,
        key: Arc::new(book.key),
        lost: 0,
        writes: 0,
        receiver,
        shared,
        settings,
        clock,
        dice,
        buffer: Vec::new(),
    };
    if book.torn > 0 {
        let entry = Entry::new(EventType::LedgerRepaired, Outcome::Success, scribe.id()).detail(format!(
            "a torn end of {} bytes was cut off; nothing that was answered is lost",
            book.torn
        ));
        scribe.write(&[&entry.into()]).map_err(LedgerError::Unwritable)?;
    }
    Ok((ledger, scribe))
}

/// A line, and who waits for it to be written.
type Waiting = (Line, oneshot::Sender<Result<Receipt, LedgerError>>);

/// A way to have things recorded. Cheap to clone; the scribe ends when the last one is gone.
#[derive(Clone, Debug)]
pub struct Ledger {
    sender: mpsc::Sender<Waiting>,
    shared: Arc<Shared>,
}

impl Ledger {
    /// Records `line`. When this returns a receipt, the record is with the kernel, and with the disk if
    /// [`Sync::Always`] (AUD-02).
    ///
    /// # Errors
    /// [`LedgerError::Unwritable`] if it cannot be written, [`LedgerError::Closed`] at the end.
    pub async fn record(&self, line: impl Into<Line>) -> Result<Receipt, LedgerError> {
        let (answer, answered) = oneshot::channel();
        self.sender.send((line.into(), answer)).await.map_err(|_| LedgerError::Closed)?;
        answered.await.map_err(|_| LedgerError::Closed)?
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

    /// How it is.
    pub fn health(&self) -> Health {
        Health {
            directory: self.shared.directory.clone(),
            records: self.shared.records.load(Ordering::Relaxed),
            healthy: self.shared.healthy.load(Ordering::Relaxed),
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
}

/// Proof that an exchange is on record. Only the scribe makes one.
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

#[derive(Debug)]
struct Shared {
    records: AtomicU64,
    healthy: AtomicBool,
    origin: ArcSwap<Origin>,
    directory: PathBuf,
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

/// Who writes. One task; it owns the file and the chain.
pub struct Scribe {
    sink: Box<dyn Sink>,
    length: u64,
    frontier: Frontier,
    prev: Hash,
    signed: u64,
    key: Arc<CheckpointKey>,
    lost: u64,
    writes: u64,
    receiver: mpsc::Receiver<Waiting>,
    shared: Arc<Shared>,
    settings: LedgerSettings,
    clock: Arc<dyn Clock>,
    dice: Arc<dyn Dice>,
    buffer: Vec<u8>,
}

type Signing = JoinHandle<std::io::Result<u64>>;

impl Scribe {
    /// Writes until every [`Ledger`] is gone, and signs a last checkpoint.
    pub async fn run(mut self) {
        let every = self.settings.checkpoint_every;
        let mut due = Instant::now() + every;
        let mut signing: Option<Signing> = None;
        loop {
            let mut tick = false;
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
                () = sleep_until(due) => {
                    due = Instant::now() + every;
                    tick = true;
                }
            }
            let unsigned = self.frontier.size() - self.signed;
            if signing.is_none() && unsigned > 0 && (tick || unsigned >= self.settings.checkpoint_records) {
                signing = Some(self.sign());
            }
        }
        if let Some(signing) = signing {
            self.note_signed(ended(signing.await));
        }
        if self.frontier.size() > self.signed {
            let signed = ended(self.sign().await);
            self.note_signed(signed);
        }
    }

    /// Writes a batch and answers everybody in it, all with a receipt or none.
    async fn commit(&mut self, batch: Vec<Waiting>) {
        let first = self.frontier.size() + u64::from(self.lost > 0);
        let mut written = self.write(&batch.iter().map(|(line, _)| line).collect::<Vec<_>>());
        if written.is_ok() && self.settings.sync == Sync::Always {
            written = self.flush().await;
        }
        self.shared.healthy.store(written.is_ok(), Ordering::Relaxed);
        if written.is_err() && self.settings.on_failure == OnFailure::Allow {
            self.lost += batch.len() as u64;
        }
        for (at, (line, answer)) in batch.into_iter().enumerate() {
            let exchange = line.exchange();
            let receipt = match (written, self.settings.on_failure) {
                (Ok(()), _) => Ok(Receipt { seq: Some(first + at as u64), exchange }),
                (Err(_), OnFailure::Allow) => Ok(Receipt { seq: None, exchange }),
                (Err(kind), OnFailure::Deny) => Err(LedgerError::Unwritable(kind)),
            };
            // A caller that has gone away has its record all the same.
            drop(answer.send(receipt));
        }
    }

    /// Appends `lines` in one write, or leaves the file as it was. A gap before them is told first.
    fn write(&mut self, lines: &[&Line]) -> Result<(), std::io::ErrorKind> {
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
        let time = format!("{:.3}", self.clock.wall());
        let boot = self.clock.boot().as_nanos();
        let origin = self.shared.origin.load();
        for line in gap.iter().chain(lines.iter().copied()) {
            let (start, seq) = (buffer.len(), frontier.size());
            // A Vec takes every byte.
            let _ =
                write!(buffer, r#"{{"v":1,"seq":{seq},"time":"{time}","boot_ns":{boot},{},"#, origin.spelled);
            line.write(&mut buffer);
            buffer.extend_from_slice(b",\"prev\":\"");
            buffer.extend_from_slice(hex(&prev).as_bytes());
            buffer.extend_from_slice(b"\"}");
            prev = leaf(&buffer[start..]);
            frontier.push(prev);
            buffer.push(b'\n');
        }
        self.writes += 1;
        let appended = self.sink.append(&buffer).map_err(|error| error.kind());
        let added = buffer.len() as u64;
        buffer.shrink_to(1 << 20);
        self.buffer = buffer;
        if let Err(kind) = appended {
            tracing::error!(%kind, "the ledger cannot be written");
            if let Err(error) = self.sink.cut(self.length) {
                tracing::error!(%error, "and what was half written cannot be cut off; the next start will");
            }
            return Err(kind);
        }
        (self.frontier, self.prev, self.length, self.lost) = (frontier, prev, self.length + added, 0);
        self.shared.records.store(self.frontier.size(), Ordering::Relaxed);
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), std::io::ErrorKind> {
        let flusher = self.sink.flusher().map_err(|error| error.kind())?;
        ended(spawn_blocking(move || flusher.sync_data()).await).map_err(|error| error.kind())
    }

    /// Signs what is written by now, off this task: a slow disk delays nobody's record.
    fn sign(&self) -> Signing {
        let (size, note) = (self.frontier.size(), self.key.sign(self.frontier.size(), self.frontier.root()));
        let directory = self.settings.directory.clone();
        let flusher = self.sink.flusher();
        spawn_blocking(move || {
            flusher?.sync_data()?;
            keep_checkpoint(&directory, &note)?;
            Ok(size)
        })
    }

    fn note_signed(&mut self, signed: std::io::Result<u64>) {
        match signed {
            Ok(size) => {
                self.signed = size;
                tracing::debug!(size, "checkpoint");
            }
            Err(error) => {
                self.shared.healthy.store(false, Ordering::Relaxed);
                tracing::error!(%error, "the ledger's checkpoint cannot be kept; trying again at the next one");
            }
        }
    }

    fn id(&self) -> Uuid {
        uuid_v7(self.clock.wall(), &*self.dice)
    }
}

/// A blocking task ends with its result, or with a panic that counts as one that failed.
fn ended<T>(joined: Result<std::io::Result<T>, tokio::task::JoinError>) -> std::io::Result<T> {
    joined.unwrap_or_else(|error| Err(std::io::Error::other(error)))
}

impl std::fmt::Debug for Scribe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Scribe({} records, {} writes)", self.frontier.size(), self.writes)
    }
}

#[cfg(test)]
impl Scribe {
    /// With another place to write to.
    pub(super) fn writing_to(mut self, sink: Box<dyn Sink>) -> Self {
        self.sink = sink;
        self
    }
}

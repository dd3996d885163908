//! Who writes for a crowd, signs, and turns to the next file. One task; what waits for a disk runs on threads beside it, one such thing at a
//! time. A slow disk so delays nobody's record, but for the flush and the rename between two files, and where each record is
//! flushed (`sync = "always"`).

use std::{
    io::{self, ErrorKind},
    sync::{Arc, atomic::Ordering},
};

use tokio::{
    sync::{mpsc, oneshot},
    task::{JoinHandle, spawn_blocking, yield_now},
    time::{Instant, sleep_until},
};

use super::{
    Entry, EventType, LedgerPart, Line, Outcome, Sync,
    book::keep_checkpoint,
    copy::Copyist,
    files::lines_from,
    ledger::{Shared, Waiting},
    turn::{self, Prepared, Unfinished},
};
use crate::keys::CheckpointKey;

/// How many records share a write at most. Their callers are answered before the next are written, so that a crowd on one
/// connection reads its first answers while we write its last.
const BATCH: usize = 16;

/// Who writes for a crowd, signs, and turns. One task.
#[derive(Debug)]
pub struct Scribe {
    receiver: mpsc::Receiver<Waiting>,
    /// Those who only want to know whether it is there.
    called: mpsc::Receiver<oneshot::Sender<()>>,
    shared: Arc<Shared>,
    key: Arc<CheckpointKey>,
    /// A file that is closed, and its hashes are not kept.
    unfinished: Option<Unfinished>,
    /// What runs beside this task.
    work: Option<Work>,
    /// Who copies records to the host's journal.
    copyist: Option<Copyist>,
}

/// What waits for a disk.
#[derive(Debug)]
enum Work {
    Signing(JoinHandle<io::Result<u64>>),
    Preparing(JoinHandle<io::Result<Prepared>>),
    Turning(JoinHandle<(Prepared, io::Result<()>)>),
    Finishing(JoinHandle<io::Result<(u64, u64)>>),
}

/// What came of it.
enum Done {
    Signed(io::Result<u64>),
    Prepared(io::Result<Prepared>),
    Turned(Prepared, io::Result<()>),
    Finished(io::Result<(u64, u64)>),
    /// It panicked. What it was about is tried again after the next checkpoint.
    Lost(tokio::task::JoinError),
}

impl Scribe {
    pub(super) fn new(
        receiver: mpsc::Receiver<Waiting>,
        called: mpsc::Receiver<oneshot::Sender<()>>,
        shared: Arc<Shared>,
        key: CheckpointKey,
        unfinished: Option<Unfinished>,
        copyist: Option<Copyist>,
    ) -> Self {
        Self { receiver, called, shared, key: Arc::new(key), unfinished, work: None, copyist }
    }

    /// Writes until every [`super::Ledger`] is gone, and signs a last checkpoint.
    pub async fn run(mut self) {
        let every = self.shared.settings.checkpoint_every;
        let mut next = Instant::now() + every;
        let mut due = false;
        self.work = self.finish();
        let copying = self.copyist.take().map(|copyist| {
            let (stop, stopped) = oneshot::channel();
            (stop, tokio::spawn(copyist.run(stopped)))
        });
        loop {
            let turning = matches!(self.work, Some(Work::Turning(_)));
            tokio::select! {
                done = done(&mut self.work) => {
                    self.work = None;
                    // What comes after a turn is signed soon: until then a start has to read the closed file too.
                    due |= matches!(done, Done::Finished(Ok(_)));
                    self.work = self.go_on(done);
                }
                first = self.receiver.recv(), if !turning => {
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
            if due && self.work.is_none() {
                due = false;
                self.work = self.sign();
            }
        }
        self.end().await;
        if let Some((stop, copying)) = copying {
            drop(stop);
            // It waits for nobody any more.
            drop(copying.await);
        }
    }

    /// The end: what is under way comes to its end, no turn begins, and what is written is signed.
    async fn end(&mut self) {
        while self.work.is_some() {
            let done = done(&mut self.work).await;
            self.work = match done {
                Done::Prepared(Ok(prepared)) => {
                    turn::undo(&self.shared.settings.directory, prepared.first);
                    None
                }
                Done::Signed(signed) => {
                    self.note_signed(signed);
                    None
                }
                done => self.go_on(done),
            };
        }
        self.work = self.sign();
        if self.work.is_some()
            && let Done::Signed(signed) = done(&mut self.work).await
        {
            self.note_signed(signed);
        }
    }

    /// What to do once something is done.
    fn go_on(&mut self, done: Done) -> Option<Work> {
        match done {
            Done::Signed(signed) => {
                let went_well = signed.is_ok();
                self.note_signed(signed);
                let full = self.shared.pen().length >= self.shared.settings.rotate_at;
                match went_well {
                    true if self.unfinished.is_some() => self.finish(),
                    true if full => Some(self.prepare()),
                    _ => None,
                }
            }
            Done::Prepared(Ok(prepared)) => self.turn(prepared),
            Done::Turned(prepared, Ok(())) => {
                let mut pen = self.shared.pen();
                let began = pen.began.clone();
                pen.kept_from = prepared.kept_from;
                pen.take(Box::new(prepared.next));
                let ended = pen.began.clone();
                drop(pen);
                self.unfinished = Some(Unfinished { first: prepared.first, began, ended });
                self.finish()
            }
            Done::Turned(prepared, Err(error)) => {
                self.shared.pen().resting = false;
                turn::undo(&self.shared.settings.directory, prepared.first);
                failed(&error);
                None
            }
            Done::Finished(Ok((came, went))) => {
                self.unfinished = None;
                let mut pen = self.shared.pen();
                pen.closed_bytes = (pen.closed_bytes + came).saturating_sub(went);
                tracing::info!(files = pen.closed + 1, "the ledger goes on in its next file");
                None
            }
            Done::Finished(Err(error)) => {
                if error.kind() == ErrorKind::InvalidData {
                    self.shared.whole.store(false, Ordering::Relaxed);
                }
                tracing::error!(%error, "the hashes of the ledger's closed file cannot be kept; trying again at the next checkpoint");
                None
            }
            Done::Prepared(Err(error)) => {
                failed(&error);
                None
            }
            Done::Lost(error) => {
                self.shared.pen().resting = false;
                self.shared.signing.store(false, Ordering::Relaxed);
                tracing::error!(%error, "a checkpoint or a turn of the ledger ended in the middle");
                None
            }
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

    /// Waits for the disk. Nothing turns meanwhile, because this task does not.
    async fn flush(&self) -> Result<(), ErrorKind> {
        let flushed = spawn_blocking(self.shared.flush()).await;
        flushed.unwrap_or_else(|error| Err(io::Error::other(error))).map_err(|error| error.kind())?;
        self.shared.pen().unsettled = false;
        Ok(())
    }

    /// Signs what is written by now, if anything is new, off this task: a slow disk delays nobody's record.
    fn sign(&self) -> Option<Work> {
        let (size, root) = {
            let mut pen = self.shared.pen();
            let size = pen.chain.size();
            if size == pen.signed {
                return None;
            }
            pen.sign_at = size.saturating_add(self.shared.settings.checkpoint_records);
            (size, pen.chain.tree.root())
        };
        let (key, directory) = (Arc::clone(&self.key), self.shared.settings.directory.clone());
        let flush = self.shared.flush();
        Some(Work::Signing(spawn_blocking(move || {
            flush()?;
            keep_checkpoint(&directory, &key.sign(size, root))?;
            Ok(size)
        })))
    }

    fn note_signed(&self, signed: io::Result<u64>) {
        match signed {
            Ok(size) => {
                let mut pen = self.shared.pen();
                pen.signed = size;
                // No turn was made while it was signed.
                pen.unsettled = false;
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

    /// What the next file takes, made while everybody writes.
    fn prepare(&self) -> Work {
        let pen = self.shared.pen();
        let (first, kept_from, now) = (pen.began.size(), pen.kept_from, pen.clock.wall());
        drop(pen);
        let (directory, keep) = (self.shared.settings.directory.clone(), self.shared.settings.keep);
        Work::Preparing(spawn_blocking(move || turn::prepare(&directory, first, kept_from, keep, now)))
    }

    /// Closes the file, and has the next one take its place. Nobody writes meanwhile.
    fn turn(&self, prepared: Prepared) -> Option<Work> {
        let Prepared { first, kept_from, .. } = prepared;
        let mut entry = Entry::new(EventType::LedgerTurned, Outcome::Success, self.shared.pen().id());
        entry.ledger = Some(LedgerPart { first, kept_from });
        let kept = match kept_from {
            0 => "all records are kept".into(),
            from => format!("records are kept from {from} on, and of those before their hashes"),
        };
        let line =
            Line::from(entry.detail(format!("this is the last record of {}; {kept}", lines_from(first))));
        let directory = self.shared.settings.directory.clone();
        match self.shared.write_last(&line) {
            Ok(current) => Some(Work::Turning(spawn_blocking(move || {
                let swapped = turn::swap(&directory, &current);
                (prepared, swapped)
            }))),
            Err(kind) => {
                turn::undo(&directory, first);
                failed(&kind.into());
                None
            }
        }
    }

    /// Keeps the hashes of the file that was closed, and lets go of what is old, if there is such a file.
    fn finish(&self) -> Option<Work> {
        let closed = self.unfinished.clone()?;
        let (directory, kept_from) = (self.shared.settings.directory.clone(), self.shared.pen().kept_from);
        Some(Work::Finishing(spawn_blocking(move || turn::finish(&directory, &closed, kept_from))))
    }
}

fn failed(error: &io::Error) {
    tracing::error!(%error, "the ledger cannot go on in another file and goes on in this one; trying again at the next checkpoint");
}

/// Waits for what is under way; for ever, if nothing is. Whoever stops waiting loses nothing.
async fn done(work: &mut Option<Work>) -> Done {
    let done = match work {
        None => std::future::pending().await,
        Some(Work::Signing(work)) => work.await.map(Done::Signed),
        Some(Work::Preparing(work)) => work.await.map(Done::Prepared),
        Some(Work::Turning(work)) => work.await.map(|(prepared, swapped)| Done::Turned(prepared, swapped)),
        Some(Work::Finishing(work)) => work.await.map(Done::Finished),
    };
    done.unwrap_or_else(Done::Lost)
}

#[cfg(test)]
impl Scribe {
    /// With another place to write to.
    pub(super) fn writing_to(self, sink: Box<dyn super::book::Sink>) -> Self {
        self.shared.pen().sink = sink;
        self
    }
}

//! Whoever holds the pen writes. In go lines; out come records on file, each naming the one before, or none and a file as it was.

use std::{
    fmt,
    io::{ErrorKind, Write as _},
    mem,
    sync::Arc,
};

use serde::Serialize;
use uuid::Uuid;

use super::{
    Agent, Entry, EventType, Host, Line, Outcome,
    book::Sink,
    chain::Chain,
    line::members,
    tree::{Frontier, leaf},
};
use crate::{
    clock::{Boot, Clock, Dice, uuid_v7},
    secret::put_hex,
};

/// What all records of this run share, and the same spelled out.
#[derive(Debug)]
pub(super) struct Origin {
    pub(super) boot_id: String,
    pub(super) host: Host,
    pub(super) agent: Agent,
    spelled: String,
}

impl Origin {
    pub(super) fn new(boot_id: String, host: Host, agent: Agent) -> Self {
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
pub(super) struct Pen {
    pub(super) sink: Box<dyn Sink>,
    /// How long the file is.
    pub(super) length: u64,
    pub(super) chain: Chain,
    /// The tree before the first record of the file.
    pub(super) began: Frontier,
    /// The first record that is kept as such, and how many files were closed, with all their bytes.
    pub(super) kept_from: u64,
    pub(super) closed: u64,
    pub(super) closed_bytes: u64,
    /// The file is closed and the next one is not there yet: nothing is written.
    pub(super) resting: bool,
    /// The file has its name, but a power cut could take it again: nothing is on disk before the directory is.
    pub(super) unsettled: bool,
    /// How many records the last checkpoint covers, and with how many the next is due before its time.
    pub(super) signed: u64,
    pub(super) sign_at: u64,
    /// What was half written is there still: nothing may come after it.
    pub(super) torn: bool,
    pub(super) lost: u64,
    pub(super) written: Boot,
    pub(super) buffer: Vec<u8>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) dice: Arc<dyn Dice>,
}

impl Pen {
    /// Appends `lines` in one write, or leaves the file as it was. A gap before them is told first. The number of the first, and what
    /// was told of a gap right before it.
    pub(super) fn write(
        &mut self,
        lines: &[&Line],
        origin: &Origin,
    ) -> Result<(u64, Option<Line>), ErrorKind> {
        self.mend()?;
        let mut buffer = mem::take(&mut self.buffer);
        buffer.clear();
        let mut chain = self.chain.clone();
        let gap = (self.lost > 0).then(|| {
            let entry = Entry::new(EventType::LedgerGap, Outcome::Failed, self.id());
            Line::from(entry.detail(format!(
                "{} records could not be written and are lost (audit.on_failure = allow)",
                self.lost
            )))
        });
        let first = chain.size() + u64::from(gap.is_some());
        let time = self.clock.wall();
        let now = self.clock.boot();
        let boot = now.as_nanos();
        for line in gap.iter().chain(lines.iter().copied()) {
            let (start, seq) = (buffer.len(), chain.size());
            // A Vec takes every byte.
            let _ = write!(
                buffer,
                r#"{{"v":1,"seq":{seq},"time":"{time:.3}","boot_ns":{boot},{},"#,
                origin.spelled
            );
            line.write(&mut buffer);
            buffer.extend_from_slice(b",\"prev\":\"");
            put_hex(&chain.prev, &mut buffer);
            buffer.extend_from_slice(b"\"}");
            chain.push(leaf(&buffer[start..]));
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
        (self.chain, self.length, self.lost) = (chain, self.length + added, 0);
        self.written = now;
        Ok((first, gap))
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

    /// Goes on in `next`, which has the file's name by now.
    pub(super) fn take(&mut self, next: Box<dyn Sink>) {
        self.sink = next;
        self.length = 0;
        self.began = self.chain.tree.clone();
        self.closed += 1;
        (self.unsettled, self.resting) = (true, false);
    }

    pub(super) fn id(&self) -> Uuid {
        uuid_v7(self.clock.wall(), &*self.dice)
    }
}

impl fmt::Debug for Pen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pen({} records)", self.chain.size())
    }
}

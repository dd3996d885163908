//! Whether a ledger is what was written. In goes a directory, perhaps of an agent at work; out
//! comes a report, or the first record that is not what it should be. Needs no agent and changes nothing.
//!
//! Everything is read that is there: every record is held against the one before it, over all files; against the hash that was kept of
//! it, where its file is closed; and all hashes against every checkpoint. Of records that retention took, the hashes are held against the
//! checkpoints, and the first record after them against the last of these. That they were let go, and not taken away, is said by a record
//! that is kept: the last one of a closed file.

use std::{fs, io, path::Path};

use super::{
    chain::{Break, Chain, Line, Lines},
    files::{Closed, HISTORY, LATEST, LINES, Layout, VERIFIER, closing, leaves_from, lines_from},
    tree::Hash,
};
use crate::keys::{Checkpoint, Verifier};

/// A ledger that is whole.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Report {
    /// How many records.
    pub records: u64,
    /// How many signed checkpoints were held against them.
    pub checkpoints: u64,
    /// How many records the last checkpoint covers.
    pub signed: u64,
    /// The last checkpoint, as signed.
    pub last: Option<String>,
    /// How many files were begun, the one that is written among them: of some, perhaps only the hashes are left.
    pub files: u64,
    /// The first record that is kept as such; of those before it, only the hashes are, which are held against the checkpoints.
    pub kept_from: u64,
    /// Whether the end is torn: an agent stopped in the middle of a write. The next start mends it.
    pub torn: bool,
}

/// A ledger that is not whole, and where.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("record {seq}: {fault}")]
pub struct VerifyError {
    /// The first record that is wrong.
    pub seq: u64,
    /// What is wrong with it.
    pub fault: Fault,
    /// How many records from the first on can be relied on all the same: up to the one that was changed, or, where that cannot be
    /// told, up to the last checkpoint that agrees.
    pub sound: u64,
}

/// What can be wrong.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Fault {
    /// A checkpoint is not signed by the key.
    #[error("a checkpoint is not signed by the trusted key, or is no checkpoint")]
    Checkpoint,
    /// It does not name the record before it.
    #[error("it was changed, or the record before it was changed, added or removed")]
    Chain,
    /// A file ends otherwise than a closed one does.
    #[error("{0} does not end as a closed file does")]
    Closing(String),
    /// Not a record.
    #[error("it is not a record: {0}")]
    Form(&'static str),
    /// Records are gone that nobody let go.
    #[error("{0} is gone, and retention did not take it")]
    Gone(String),
    /// What is kept of its hash is something else.
    #[error("it does not have the hash that {0} keeps of it")]
    Kept(String),
    /// The records are not those that were signed.
    #[error("the records up to here are not those that checkpoint {0} signed")]
    Root(u64),
    /// Signed records are gone.
    #[error("the ledger ends here, but a checkpoint signed {0} records")]
    Short(u64),
    /// A file cannot be read.
    #[error("{file} cannot be read ({kind}); is this the ledger's directory, and are you its owner?")]
    Unreadable {
        /// Which.
        file: String,
        /// Why.
        kind: std::io::ErrorKind,
    },
}

/// Holds every record against the one before, and all against every checkpoint, of the ledger in `directory`. The
/// checkpoints are held against `trusted`, or for want of it against the key beside the ledger, which whoever
/// changed the ledger could have changed too (AUD-24).
///
/// # Errors
/// [`VerifyError`] with the first bad record.
pub fn verify(directory: &Path, trusted: Option<&Verifier>) -> Result<Report, VerifyError> {
    let verifier = match trusted {
        Some(verifier) => verifier.clone(),
        None => {
            let text = fs::read_to_string(directory.join(VERIFIER))
                .map_err(|error| unreadable(VERIFIER.into(), &error))?;
            Verifier::parse(&text).map_err(|_| VerifyError { seq: 0, fault: Fault::Checkpoint, sound: 0 })?
        }
    };
    // The checkpoints first: records that are added meanwhile only make the ledger longer.
    let (checkpoints, last) = checkpoints(directory, &verifier)?;
    let look = || Layout::look(directory).map_err(|error| unreadable(LINES.into(), &error));
    let (mut layout, mut left) = (look()?, LOOKS);
    loop {
        left -= 1;
        let seen = layout.closed.clone();
        let walked = Walk::new(directory, &checkpoints).all(layout);
        layout = look()?;
        // An agent at work may have let go of a file while it was looked for, or closed one between two looks at the directory.
        let same = |(now, then): (&Closed, &Closed)| now.lines == then.lines;
        let moved = layout.closed.len() != seen.len() || !layout.closed.iter().zip(&seen).all(same);
        match walked {
            Err(_) if moved && left > 0 => {}
            walked => return walked.map(|report| Report { last: last.clone(), ..report }),
        }
    }
}

/// How often it is looked again at a ledger that moves: whoever moves it for ever is told of what was found.
const LOOKS: u32 = 32;

fn unreadable(file: String, error: &io::Error) -> VerifyError {
    VerifyError { seq: 0, fault: Fault::Unreadable { file, kind: error.kind() }, sound: 0 }
}

/// A ledger that is walked through, as far as it came.
struct Walk<'a> {
    directory: &'a Path,
    checkpoints: &'a [Checkpoint],
    due: std::slice::Iter<'a, Checkpoint>,
    chain: Chain,
    /// How many records a checkpoint vouches for.
    signed: u64,
    /// From where on records are kept, by their own word.
    kept_from: u64,
    /// The first record after those of which only the hashes are kept.
    gone: u64,
}

impl<'a> Walk<'a> {
    fn new(directory: &'a Path, checkpoints: &'a [Checkpoint]) -> Self {
        let (due, chain) = (checkpoints.iter(), Chain::default());
        Self { directory, checkpoints, due, chain, signed: 0, kept_from: 0, gone: 0 }
    }

    fn all(mut self, Layout { closed, current }: Layout) -> Result<Report, VerifyError> {
        for (at, file) in closed.iter().enumerate() {
            self.closed(file, at + 1 == closed.len())?;
        }
        let torn = self.records(Lines::new(current), LINES, None)?.is_some_and(|last| !last.is_whole());
        if let Some(beyond) = self.due.next() {
            return Err(self.fault(self.chain.size(), Fault::Short(beyond.size), self.signed));
        }
        // Whoever takes records away could do it with all from the first one on, and leave what comes after them sound.
        let taken = |file: &&Closed| file.lines.is_none() && file.first >= self.kept_from;
        if let Some(Closed { first, .. }) = closed.iter().find(taken) {
            return Err(self.fault(*first, Fault::Gone(lines_from(*first)), *first));
        }
        Ok(Report {
            records: self.chain.size(),
            checkpoints: self.checkpoints.len() as u64,
            signed: self.checkpoints.last().map_or(0, |checkpoint| checkpoint.size),
            last: None,
            files: closed.len() as u64 + 1,
            kept_from: self.gone,
            torn,
        })
    }

    fn fault(&self, seq: u64, fault: Fault, sound: u64) -> VerifyError {
        VerifyError { seq, fault, sound }
    }

    /// A record is vouched for by the one after it, or by a checkpoint.
    fn vouched(&self) -> u64 {
        self.chain.size().saturating_sub(1).max(self.signed)
    }

    fn closed(&mut self, file: &Closed, last: bool) -> Result<(), VerifyError> {
        let (seq, name) = (self.chain.size(), lines_from(file.first));
        if file.first != seq {
            return Err(self.fault(seq, Fault::Gone(lines_from(seq)), self.vouched()));
        }
        let leaves = file.read_leaves(self.directory).map_err(|error| match error.kind() {
            io::ErrorKind::InvalidData => self.fault(seq, Fault::Kept(leaves_from(seq)), self.vouched()),
            _ => unreadable(leaves_from(seq), &error),
        })?;
        let Some(leaves) = leaves else {
            // The agent ended, or is, between closing a file and keeping its hashes.
            if !last {
                return Err(self.fault(seq, Fault::Gone(leaves_from(seq)), self.vouched()));
            }
            return self.closed_records(file, &name, None);
        };
        if file.lines.is_some() {
            return self.closed_records(file, &name, Some(&leaves));
        }
        for leaf in leaves {
            self.chain.push(leaf);
            self.hold()?;
        }
        self.gone = self.chain.size();
        Ok(())
    }

    fn closed_records(
        &mut self,
        file: &Closed,
        name: &str,
        leaves: Option<&[Hash]>,
    ) -> Result<(), VerifyError> {
        let lines = file.open_lines(self.directory).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => self.fault(file.first, Fault::Gone(name.into()), self.vouched()),
            _ => unreadable(name.into(), &error),
        })?;
        let last = self.records(Lines::new(lines), name, leaves.map(|leaves| (file.first, leaves)))?;
        let end = self.chain.size();
        if let Some(leaves) = leaves.filter(|leaves| file.first + leaves.len() as u64 != end) {
            let short = Fault::Short(file.first + leaves.len() as u64);
            return Err(self.fault(end, short, self.signed.min(end)));
        }
        match last.as_ref().and_then(closing) {
            Some((part, _)) if part.first == file.first => {
                self.kept_from = self.kept_from.max(part.kept_from);
                Ok(())
            }
            _ => Err(self.fault(end.saturating_sub(1), Fault::Closing(name.into()), self.vouched())),
        }
    }

    /// The records of one file; its last line, which in the last file may be torn.
    fn records(
        &mut self,
        lines: Lines<fs::File>,
        name: &str,
        kept: Option<(u64, &[Hash])>,
    ) -> Result<Option<Line>, VerifyError> {
        let mut lines = lines.peekable();
        let mut last = None;
        while let Some(line) = lines.next() {
            let seq = self.chain.size();
            let line = line.map_err(|error| unreadable(name.into(), &error))?;
            match self.chain.follow(&line) {
                Ok(leaf) => {
                    let hash = kept.and_then(|(first, leaves)| {
                        Some(usize::try_from(seq - first).ok().and_then(|at| leaves.get(at))? == &leaf)
                    });
                    if kept.is_some() && hash != Some(true) {
                        let first = kept.map_or(0, |(first, _)| first);
                        return Err(self.fault(seq, Fault::Kept(leaves_from(first)), seq.max(self.signed)));
                    }
                }
                // The hash this record names is that of the record before, so that one is where it went wrong.
                Err(Break::Before) if seq > 0 => {
                    return Err(self.fault(seq - 1, Fault::Chain, self.vouched()));
                }
                Err(Break::Before | Break::Number) => {
                    return Err(self.fault(seq, Fault::Chain, self.vouched()));
                }
                Err(Break::Form(_)) if name == LINES && lines.peek().is_none() && !line.is_whole() => {
                    return Ok(Some(line));
                }
                Err(Break::Form(what)) => return Err(self.fault(seq, Fault::Form(what), self.vouched())),
            }
            self.hold()?;
            last = Some(line);
        }
        Ok(last)
    }

    /// Holds what is there by now against the checkpoints of as many records.
    fn hold(&mut self) -> Result<(), VerifyError> {
        let size = self.chain.size();
        while let Some(checkpoint) = self.due.as_slice().first().filter(|next| next.size == size) {
            if checkpoint.root != self.chain.tree.root() {
                return Err(self.fault(size - 1, Fault::Root(size), self.signed));
            }
            self.signed = size;
            self.due.next();
        }
        Ok(())
    }
}

fn checkpoints(
    directory: &Path,
    verifier: &Verifier,
) -> Result<(Vec<Checkpoint>, Option<String>), VerifyError> {
    let fault = |fault| VerifyError { seq: 0, fault, sound: 0 };
    let text = |file: &'static str| match fs::read_to_string(directory.join(file)) {
        Ok(text) => Ok(text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(fault(Fault::Unreadable { file: file.into(), kind: error.kind() })),
    };
    let latest = text(LATEST)?;
    let mut all = text(HISTORY)?;
    all.push_str(&latest);
    let lines: Vec<&str> = all.split_inclusive('\n').collect();
    let mut checkpoints = Vec::new();
    // A note is five lines: origin, size, root, a blank one, the signature.
    for note in lines.chunks(5) {
        let checkpoint = verifier.verify(&note.concat()).map_err(|_| fault(Fault::Checkpoint))?;
        checkpoints.push(checkpoint);
    }
    checkpoints.retain(|checkpoint| checkpoint.size > 0);
    checkpoints.sort_by_key(|checkpoint| checkpoint.size);
    if let Some(pair) =
        checkpoints.windows(2).find(|pair| pair[0].size == pair[1].size && pair[0].root != pair[1].root)
    {
        let size = pair[0].size;
        return Err(VerifyError { seq: size.saturating_sub(1), fault: Fault::Root(size), sound: 0 });
    }
    checkpoints.dedup();
    Ok((checkpoints, (!latest.is_empty()).then_some(latest)))
}

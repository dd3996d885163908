//! Whether a ledger is what was written, and what it says. In goes a directory, perhaps of an agent at work; out
//! comes a report, or the first record that is not what it should be. Needs no agent and changes nothing.

use std::{
    fs::{self, File},
    path::Path,
};

use super::{
    Record,
    book::{HISTORY, LATEST, Lines, VERIFIER, lines_path},
    tree::{Frontier, leaf},
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
    /// Not a record.
    #[error("it is not a record: {0}")]
    Form(&'static str),
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
        file: &'static str,
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
    let fault = |seq, fault, sound| VerifyError { seq, fault, sound };
    let unreadable =
        |file, error: &std::io::Error| fault(0, Fault::Unreadable { file, kind: error.kind() }, 0);
    let verifier = match trusted {
        Some(verifier) => verifier.clone(),
        None => {
            let text = fs::read_to_string(directory.join(VERIFIER))
                .map_err(|error| unreadable("checkpoint.pub", &error))?;
            Verifier::parse(&text).map_err(|_| fault(0, Fault::Checkpoint, 0))?
        }
    };
    // The checkpoints first: records that are added meanwhile only make the ledger longer.
    let (checkpoints, last) = checkpoints(directory, &verifier)?;
    let mut due = checkpoints.iter().peekable();
    let file = File::open(lines_path(directory)).map_err(|error| unreadable("ledger.jsonl", &error))?;
    let mut frontier = Frontier::default();
    let mut prev = [0; 32];
    let mut torn = false;
    let mut signed = 0;
    let mut lines = Lines::new(file).peekable();
    while let Some(line) = lines.next() {
        let seq = frontier.size();
        let line = line.map_err(|error| unreadable("ledger.jsonl", &error))?;
        // A record is vouched for by the one after it, or by a checkpoint.
        let vouched = |seq: u64| seq.saturating_sub(1).max(signed);
        match line.link() {
            Ok((number, before)) if number == seq && before == prev => {}
            // The hash this record names is that of the record before, so that one is where it went wrong.
            Ok((number, _)) if number == seq && seq > 0 => {
                return Err(fault(seq - 1, Fault::Chain, vouched(seq)));
            }
            Ok(_) => return Err(fault(seq, Fault::Chain, vouched(seq))),
            Err(_) if lines.peek().is_none() && !line.bytes.ends_with(b"\n") => {
                torn = true;
                break;
            }
            Err(what) => return Err(fault(seq, Fault::Form(what), vouched(seq))),
        }
        prev = leaf(line.text());
        frontier.push(prev);
        while let Some(checkpoint) = due.next_if(|checkpoint| checkpoint.size == frontier.size()) {
            if checkpoint.root != frontier.root() {
                return Err(fault(seq, Fault::Root(checkpoint.size), signed));
            }
            signed = checkpoint.size;
        }
    }
    if let Some(beyond) = due.next() {
        return Err(fault(frontier.size(), Fault::Short(beyond.size), signed));
    }
    Ok(Report {
        records: frontier.size(),
        checkpoints: checkpoints.len() as u64,
        signed: checkpoints.last().map_or(0, |checkpoint| checkpoint.size),
        last,
        torn,
    })
}

fn checkpoints(
    directory: &Path,
    verifier: &Verifier,
) -> Result<(Vec<Checkpoint>, Option<String>), VerifyError> {
    let fault = |fault| VerifyError { seq: 0, fault, sound: 0 };
    let text = |file: &'static str| match fs::read_to_string(directory.join(file)) {
        Ok(text) => Ok(text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(fault(Fault::Unreadable { file, kind: error.kind() })),
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

/// The records from `from` on, as they are written; those that cannot be read end it.
///
/// # Errors
/// What opening the file says.
pub fn read(directory: &Path, from: u64) -> std::io::Result<impl Iterator<Item = Record>> {
    let file = File::open(lines_path(directory))?;
    let records = Lines::new(file).map_while(|line| serde_json::from_slice::<Record>(line.ok()?.text()).ok());
    Ok(records.skip_while(move |record| record.seq < from))
}

/// Every line from the first on, also those that are no record; those are told by where they stand. What comes after the last
/// line feed is not there yet.
///
/// # Errors
/// What opening the file says; an item is [`Err`] for a line that cannot be read.
pub fn every_line(directory: &Path) -> std::io::Result<impl Iterator<Item = Result<Record, u64>>> {
    let file = File::open(lines_path(directory))?;
    let whole = Lines::new(file).map_while(Result::ok).filter(|line| line.bytes.ends_with(b"\n"));
    Ok((0..).zip(whole).map(|(at, line)| serde_json::from_slice(line.text()).map_err(|_| at)))
}

//! That a record is in the ledger, for somebody who has nothing of it but a checkpoint's key. In go a directory and a number; out comes
//! a proof in the form of C2SP `tlog-proof`: the record as it was written, the hashes beside its way to the root, and the signed
//! checkpoint that has this root. Of a record that retention took, its hash is still proved; what it said is not there to go with it.

use std::{fmt::Write as _, fs, path::Path};

use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::{
    Fault, VerifyError,
    chain::Lines,
    files::{LATEST, LINES, Layout, VERIFIER, leaves_from, lines_from},
    read::line,
    tree::{Frontier, Hash, leaf, path},
};
use crate::keys::Verifier;

/// Why there is no proof.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ProveError {
    /// The ledger is not what was written, or cannot be read.
    #[error("{0}")]
    Ledger(#[from] VerifyError),
    /// No checkpoint covers it.
    #[error(
        "the last checkpoint signed {0} records, which do not have it: one is signed every minute, and when the agent stops"
    )]
    Unsigned(u64),
}

/// The proof that record `seq` of the ledger in `directory` is in the last checkpoint (AUD-24), which is held against `trusted`, or for
/// want of it against the key beside the ledger.
///
/// # Errors
/// [`ProveError`].
pub fn prove(directory: &Path, seq: u64, trusted: Option<&Verifier>) -> Result<String, ProveError> {
    let fault = |seq, fault| VerifyError { seq, fault, sound: 0 };
    let unreadable = |file: &str, error: &std::io::Error| {
        fault(0, Fault::Unreadable { file: file.into(), kind: error.kind() })
    };
    let verifier = match trusted {
        Some(verifier) => verifier.clone(),
        None => {
            let text =
                fs::read_to_string(directory.join(VERIFIER)).map_err(|error| unreadable(VERIFIER, &error))?;
            Verifier::parse(&text).map_err(|_| fault(0, Fault::Checkpoint))?
        }
    };
    let note = fs::read_to_string(directory.join(LATEST)).map_err(|error| unreadable(LATEST, &error))?;
    let checkpoint = verifier.verify(&note).map_err(|_| fault(0, Fault::Checkpoint))?;
    if seq >= checkpoint.size {
        return Err(ProveError::Unsigned(checkpoint.size));
    }
    let mut leaves = hashes(directory)?;
    let size = leaves.len() as u64;
    if size < checkpoint.size {
        return Err(fault(size, Fault::Short(checkpoint.size)).into());
    }
    leaves.truncate(usize::try_from(checkpoint.size).unwrap_or(usize::MAX));
    let mut tree = Frontier::default();
    leaves.iter().for_each(|leaf| tree.push(*leaf));
    if tree.root() != checkpoint.root {
        return Err(fault(checkpoint.size - 1, Fault::Root(checkpoint.size)).into());
    }
    let at = usize::try_from(seq).unwrap_or(usize::MAX);
    let record = line(directory, seq).map_err(|error| unreadable(LINES, &error))?;
    let mut proof = String::from("c2sp.org/tlog-proof@v1\n");
    // Writing to a String cannot fail.
    if let Some(record) = record {
        if leaves.get(at) != Some(&leaf(record.text())) {
            return Err(fault(seq, Fault::Chain).into());
        }
        let _ = writeln!(proof, "extra {}", STANDARD.encode(record.text()));
    }
    let _ = writeln!(proof, "index {seq}");
    for hash in path(leaves, at) {
        let _ = writeln!(proof, "{}", STANDARD.encode(hash));
    }
    let _ = write!(proof, "\n{note}");
    Ok(proof)
}

/// The hashes of all records: kept ones of closed files, those of the records of others.
fn hashes(directory: &Path) -> Result<Vec<Hash>, VerifyError> {
    let unreadable = |file: String, error: &std::io::Error| VerifyError {
        seq: 0,
        fault: Fault::Unreadable { file, kind: error.kind() },
        sound: 0,
    };
    let Layout { closed, current } =
        Layout::look(directory).map_err(|error| unreadable(LINES.into(), &error))?;
    let mut all = Vec::new();
    let read = |file: fs::File, name: String, all: &mut Vec<Hash>| {
        for line in Lines::new(file) {
            let line = line.map_err(|error| unreadable(name.clone(), &error))?;
            if line.is_whole() {
                all.push(leaf(line.text()));
            }
        }
        Ok(())
    };
    for file in closed {
        let name = leaves_from(file.first);
        match file.read_leaves(directory).map_err(|error| unreadable(name, &error))? {
            Some(leaves) => all.extend(leaves),
            None => {
                let name = lines_from(file.first);
                let lines = file.open_lines(directory).map_err(|error| unreadable(name.clone(), &error))?;
                read(lines, name, &mut all)?;
            }
        }
    }
    read(current, LINES.into(), &mut all)?;
    Ok(all)
}

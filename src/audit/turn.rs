//! From one file of the ledger to the next, and the end of old ones (AUD-25). In go the directory and what the pen knows; out comes a
//! file to go on with. All of this waits for disks, so it runs off the tasks that answer; `scribe.rs` has the order:
//!
//! 1. [`prepare`], while records are written as ever: the next file, empty and locked, beside the current one, and the second name
//!    that the current one will keep. Both are on disk before anything else happens.
//! 2. The pen writes the record that closes the file, and rests. [`swap`]: what was written is flushed, and the next file takes the
//!    name of the current one, in one step. This is what callers wait for: one flush and one rename.
//! 3. The pen goes on in the next file. [`finish`]: the closed file is read once more, has to lead to the tree that the pen made
//!    of it, and its leaf hashes are kept. Only then may retention take records.
//!
//! An agent that ends between any two of these leaves a directory that the next one starts on: after 1, two names of one file, of which the
//! newer goes; after 2, a closed file whose hashes are not kept yet. A step that fails, on a full disk for instance, is undone:
//! records go on in the file that there is, and it is tried again after the next checkpoint.
//!
//! Retention goes by age, not by number or room. By those, whoever may cause records could cause so many that the ones about him
//! go; by age, a flood only fills the disk, and then nobody gets anything until somebody looks. No more than [`MOST_AT_ONCE`] files
//! go with a turn, so a clock that is wrong by years takes little before it is noticed. What goes is said in the ledger first.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    time::Duration,
};

use jiff::Timestamp;
use rustix::fs::{FlockOperation, flock};

use super::{
    chain::Lines,
    files::{Closed, LINES, NEXT, closing, ends, is_at, leaves_from, lines_from},
    tree::{Frontier, leaf},
};
use crate::keys::{put_whole, settled};

/// How many files may be let go with one turn. Two, because with one what is too old already would stay for ever.
pub(super) const MOST_AT_ONCE: usize = 2;

/// A file that was closed and whose hashes are not kept yet.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Unfinished {
    /// The number of its first record.
    pub(super) first: u64,
    /// The tree before its first record, and after its last one.
    pub(super) began: Frontier,
    pub(super) ended: Frontier,
}

/// A turn that can be made.
#[derive(Debug)]
pub(super) struct Prepared {
    /// The next file.
    pub(super) next: File,
    /// The number of the first record of the current one.
    pub(super) first: u64,
    /// The first record that retention leaves.
    pub(super) kept_from: u64,
}

/// What it takes to turn away from the file that begins with record `first`. What was let go before ends at `kept_from`; what
/// is older than `keep` at the time `now` may go too.
///
/// # Errors
/// What the file system says; nothing is changed then.
pub(super) fn prepare(
    directory: &Path,
    first: u64,
    kept_from: u64,
    keep: Option<Duration>,
    now: Timestamp,
) -> io::Result<Prepared> {
    let kept_from = kept(directory, kept_from, keep, now)?;
    let made = prepare_files(directory, first);
    if made.is_err() {
        undo(directory, first);
    }
    Ok(Prepared { next: made?, first, kept_from })
}

fn prepare_files(directory: &Path, first: u64) -> io::Result<File> {
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::CLOEXEC;
    let next = OpenOptions::new()
        .read(true)
        .append(true)
        .create_new(true)
        .mode(0o600)
        .custom_flags(flags.bits().cast_signed())
        .open(directory.join(NEXT))?;
    flock(&next, FlockOperation::NonBlockingLockExclusive)?;
    next.sync_all()?;
    fs::hard_link(directory.join(LINES), directory.join(lines_from(first)))?;
    settled(&directory.join(NEXT))?;
    Ok(next)
}

/// The first record that is to be kept.
fn kept(directory: &Path, before: u64, keep: Option<Duration>, now: Timestamp) -> io::Result<u64> {
    let Some(since) = keep.and_then(|keep| now.checked_sub(keep).ok()) else { return Ok(before) };
    let all = Closed::all(directory)?;
    let mut kept_from = before;
    for pair in all.windows(2).filter(|pair| pair[0].first >= before).take(MOST_AT_ONCE) {
        let [old, next] = pair else { break };
        // Only what can be proved later may go, one after the other, and never one whose age is not known.
        if old.first != kept_from || old.leaves != Some((next.first - old.first) * 32) {
            break;
        }
        // Nor one whose age somebody made: what is said of it has to be what was written.
        let hash = old.read_leaves(directory)?.and_then(|leaves| leaves.last().copied());
        let last = ends(&mut old.open_lines(directory)?)?
            .filter(|(_, last)| hash == Some(leaf(last.text())))
            .and_then(|(_, last)| closing(&last));
        match last {
            Some((_, closed)) if closed < since => kept_from = next.first,
            _ => break,
        }
    }
    Ok(kept_from)
}

/// Puts the next file in the place of the current one, once `current` is on disk. The directory is not flushed here: nothing may be
/// signed before that.
///
/// # Errors
/// What the file system says; the current file is the current one then.
pub(super) fn swap(directory: &Path, current: &File) -> io::Result<()> {
    current.sync_data()?;
    fs::rename(directory.join(NEXT), directory.join(LINES))
}

/// Takes back what [`prepare`] did. A file that was closed by then stays what it is.
pub(super) fn undo(directory: &Path, first: u64) {
    // What cannot be taken back now is taken back at the next start.
    let _ = fs::remove_file(directory.join(NEXT));
    let path = directory.join(lines_from(first));
    if File::open(directory.join(LINES)).is_ok_and(|current| is_at(&current, &path).unwrap_or(false)) {
        let _ = fs::remove_file(path);
    }
}

/// Keeps the hashes of a closed file, and deletes what comes before record `kept_from`. How many bytes came, and how many went.
///
/// # Errors
/// What the file system says; [`ErrorKind::InvalidData`] if the file is not what was written.
pub(super) fn finish(directory: &Path, closed: &Unfinished, kept_from: u64) -> io::Result<(u64, u64)> {
    let file = Closed { first: closed.first, lines: None, leaves: None }.open_lines(directory)?;
    let changed = || {
        let what = format!("{} is not what was written: somebody changed it", lines_from(closed.first));
        io::Error::new(ErrorKind::InvalidData, what)
    };
    let mut tree = closed.began.clone();
    let mut kept = Vec::new();
    for line in Lines::new(&file) {
        let hash = leaf(line?.text());
        tree.push(hash);
        kept.extend_from_slice(&hash);
    }
    if tree != closed.ended {
        return Err(changed());
    }
    put_whole(&directory.join(leaves_from(closed.first)), &kept)?;
    Ok((file.metadata()?.len() + kept.len() as u64, trim(directory, kept_from)?))
}

/// Deletes the records before `kept_from`, as far as their hashes are kept. How many bytes they were.
pub(super) fn trim(directory: &Path, kept_from: u64) -> io::Result<u64> {
    let all = Closed::all(directory)?;
    let mut gone = 0;
    for pair in all.windows(2) {
        let [old, next] = pair else { break };
        let proved = old.leaves == Some((next.first - old.first) * 32);
        if let Some(lines) = old.lines.filter(|_| proved && next.first <= kept_from) {
            fs::remove_file(directory.join(lines_from(old.first)))?;
            gone += lines;
        }
    }
    Ok(gone)
}

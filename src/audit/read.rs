//! What a ledger says, over all its files. In goes a directory, perhaps of an agent at work; out come records as they are written. Nobody
//! here says that they are whole: that is `verify.rs`.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
};

use super::{
    Record,
    chain::{Line, Lines},
    files::{Closed, LINES, Layout},
};

/// Whether there is a ledger in `directory`, whole or not.
pub fn exists(directory: &Path) -> bool {
    directory.join(LINES).exists() || Closed::all(directory).is_ok_and(|closed| !closed.is_empty())
}

/// The records from `from` on, as they are written; those that cannot be read end it. It begins with the first one that is kept, and what
/// retention takes while it is read is left out.
///
/// # Errors
/// What opening the files says.
pub fn read(directory: &Path, from: u64) -> io::Result<impl Iterator<Item = Record>> {
    let lines = AllLines::from(directory, from)?;
    let records = lines.map_while(|line| serde_json::from_slice::<Record>(line.ok()?.1.text()).ok());
    Ok(records.skip_while(move |record| record.seq < from))
}

/// The line of record `seq`, if it is kept. Nobody says here that it is that record's.
pub(super) fn line(directory: &Path, seq: u64) -> io::Result<Option<Line>> {
    for line in AllLines::from(directory, seq)? {
        let (at, line) = line?;
        if at >= seq {
            return Ok((at == seq && line.is_whole()).then_some(line));
        }
    }
    Ok(None)
}

/// Every line from the first that is kept on, with the number of the record that it is; [`None`] if it is none. What comes after
/// the last line feed is not there yet.
///
/// # Errors
/// What opening the files says.
pub fn every_line(directory: &Path) -> io::Result<impl Iterator<Item = (u64, Option<Record>)>> {
    let lines = AllLines::from(directory, 0)?.map_while(Result::ok);
    let whole = lines.filter(|(_, line)| line.is_whole());
    Ok(whole.map(|(at, line)| (at, serde_json::from_slice(line.text()).ok())))
}

/// The last `most` records that are `wanted`, the oldest first, and the number of the record that comes next. The newest files are read
/// first, and no more of them than it takes.
///
/// # Errors
/// What opening the files says.
pub fn last(
    directory: &Path,
    most: usize,
    wanted: impl Fn(&Record) -> bool,
) -> io::Result<(VecDeque<Record>, u64)> {
    let Layout { closed, current } = Layout::look(directory)?;
    let mut next = None;
    let mut found = VecDeque::new();
    let files = closed.iter().rev().map(|closed| closed.open_lines(directory));
    for file in std::iter::once(Ok(current)).chain(files) {
        let file = match file {
            // From here on, only hashes are kept.
            Err(error) if error.kind() == ErrorKind::NotFound => break,
            file => file?,
        };
        let records =
            Lines::new(file).map_while(|line| serde_json::from_slice::<Record>(line.ok()?.text()).ok());
        let (mut here, mut seq) = (VecDeque::new(), None);
        for record in records {
            seq = Some(record.seq);
            if wanted(&record) {
                here.push_back(record);
                if here.len() > most - found.len() {
                    here.pop_front();
                }
            }
        }
        next = next.or(seq.map(|seq| seq + 1));
        here.append(&mut found);
        found = here;
        if found.len() >= most {
            break;
        }
    }
    Ok((found, next.unwrap_or(0)))
}

/// Lines over files, each with the number of the record that it should be.
struct AllLines {
    directory: PathBuf,
    closed: VecDeque<Closed>,
    current: Option<File>,
    here: Option<Lines<File>>,
    /// The number of the next line.
    at: u64,
}

impl AllLines {
    /// The lines of all files in which a record from `from` on can be.
    fn from(directory: &Path, from: u64) -> io::Result<Self> {
        let Layout { closed, current } = Layout::look(directory)?;
        let mut after = closed.iter().skip(1).map(|next| Some(next.first));
        let mut at = 0;
        let mut wanted = VecDeque::new();
        for closed in &closed {
            // Where the hashes are not kept yet, only reading it tells where the last closed file ends.
            let end = after.next().unwrap_or_else(|| closed.end());
            if closed.lines.is_some() && end.is_none_or(|end| end > from) {
                wanted.push_back(closed.clone());
            }
            at = end.unwrap_or(at);
        }
        Ok(Self { directory: directory.into(), closed: wanted, current: Some(current), here: None, at })
    }
}

impl Iterator for AllLines {
    type Item = io::Result<(u64, Line)>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(line) = self.here.as_mut().and_then(Iterator::next) {
                let seq = self.at;
                self.at += 1;
                return Some(line.map(|line| (seq, line)));
            }
            let opened = match self.closed.pop_front() {
                Some(closed) => {
                    self.at = closed.first;
                    closed.open_lines(&self.directory)
                }
                None => Ok(self.current.take()?),
            };
            match opened {
                Ok(file) => self.here = Some(Lines::new(file)),
                // Retention was faster: only its hashes are kept.
                Err(error) if error.kind() == ErrorKind::NotFound => self.here = None,
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

//! The chain through the ledger's lines. In go lines, one at a time, from any file; out come their leaf hashes, or where the
//! chain breaks. Nothing here knows what a record means beyond its number and the hash that it names.

use std::io::{self, BufRead as _, BufReader};

use serde::Deserialize;

use super::tree::{Frontier, Hash, leaf};

/// No line is longer: a longer one was not written by us.
pub(super) const MAX_LINE: usize = 64 << 10;

/// Where the next record goes: the tree up to here, and the hash that it has to name.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Chain {
    pub(super) tree: Frontier,
    pub(super) prev: Hash,
}

/// Why a line is not the next record.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Break {
    /// It does not name the record before it.
    Before,
    /// It is none.
    Form(&'static str),
    /// It has another number.
    Number,
}

impl Break {
    pub(super) fn what(self) -> &'static str {
        match self {
            Self::Before | Self::Number => "it does not follow the record before it",
            Self::Form(what) => what,
        }
    }
}

impl Chain {
    /// How many records.
    pub(super) fn size(&self) -> u64 {
        self.tree.size()
    }

    /// Takes the leaf hash of the next record.
    pub(super) fn push(&mut self, leaf: Hash) {
        self.prev = leaf;
        self.tree.push(leaf);
    }

    /// Takes the next record, if `line` is it.
    pub(super) fn follow(&mut self, line: &Line) -> Result<Hash, Break> {
        let (number, before) = line.link().map_err(Break::Form)?;
        match () {
            () if number != self.size() => Err(Break::Number),
            () if before != self.prev => Err(Break::Before),
            () => {
                let leaf = leaf(line.text());
                self.push(leaf);
                Ok(leaf)
            }
        }
    }
}

/// One line with its line feed, if it has one.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) bytes: Vec<u8>,
}

impl Line {
    /// Without the line feed.
    pub(super) fn text(&self) -> &[u8] {
        self.bytes.strip_suffix(b"\n").unwrap_or(&self.bytes)
    }

    /// Whether all of it is there.
    pub(super) fn is_whole(&self) -> bool {
        self.bytes.ends_with(b"\n")
    }

    /// Its number and the hash it names.
    fn link(&self) -> Result<(u64, Hash), &'static str> {
        #[derive(Deserialize)]
        struct Link<'a> {
            seq: u64,
            prev: &'a str,
        }
        if !self.is_whole() {
            return Err("it is torn");
        }
        let link: Link<'_> = serde_json::from_slice(self.text()).map_err(|_| "it is not a record")?;
        Ok((link.seq, from_hex(link.prev).ok_or("it names no record before it")?))
    }
}

/// The lines of one file, one at a time.
#[derive(Debug)]
pub(super) struct Lines<R>(BufReader<R>);

impl<R: io::Read> Lines<R> {
    pub(super) fn new(reader: R) -> Self {
        Self(BufReader::with_capacity(256 << 10, reader))
    }
}

impl<R: io::Read> Iterator for Lines<R> {
    type Item = io::Result<Line>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut bytes = Vec::new();
        loop {
            let (used, done) = match self.0.fill_buf() {
                Ok([]) => (0, true),
                Ok(buffer) => {
                    let end = buffer.iter().position(|byte| *byte == b'\n').map(|end| end + 1);
                    let used = end.unwrap_or(buffer.len());
                    bytes.extend_from_slice(&buffer[..used]);
                    (used, end.is_some() || bytes.len() > MAX_LINE)
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Some(Err(error)),
            };
            self.0.consume(used);
            if done {
                return (!bytes.is_empty()).then_some(Ok(Line { bytes }));
            }
        }
    }
}

fn from_hex(text: &str) -> Option<Hash> {
    let digits = text.as_bytes();
    let mut hash = [0; 32];
    if digits.len() != 64 {
        return None;
    }
    for (byte, pair) in hash.iter_mut().zip(digits.chunks(2)) {
        let digit = |index: usize| char::from(pair[index]).to_digit(16);
        *byte = u8::try_from(digit(0)? * 16 + digit(1)?).ok()?;
    }
    Some(hash)
}

//! What must hold of the bytes of any connection, whoever wrote them.

use std::sync::Arc;

use super::frames::{FrameError, Frames};
use crate::{attest::Challenge, clock::SeededDice};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// In any pieces the same; never much more than came in; and what was mended needs no mending.
pub fn frames(bytes: &[u8]) {
    let whole = through(&[PREFACE, bytes]);
    let pieces: Vec<&[u8]> = bytes.chunk_by(|one, _| one % 3 != 0).collect();
    assert_eq!(through(&[&[PREFACE], &pieces[..]].concat()), whole);
    if let Ok(out) = whole {
        assert!(out.len() <= PREFACE.len() + 2 * bytes.len());
        assert_eq!(through(&[&out]).as_ref(), Ok(&out));
    }
}

fn through(pieces: &[&[u8]]) -> Result<Vec<u8>, FrameError> {
    let mut frames = Frames::new(Arc::new(Challenge::new(&*SeededDice::from_seed(1))));
    let mut out = vec![];
    for piece in pieces {
        frames.push(piece, &mut out)?;
    }
    Ok(out)
}

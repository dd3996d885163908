//! What must hold of the bytes of any connection, whoever wrote them.

use std::sync::Arc;

use http::uri::Authority;

use super::{
    frames::{FrameError, Frames},
    hpack::{integer, mended, text},
};
use crate::{attest::Challenge, clock::SeededDice};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// In any pieces the same; never much more than came in; and what was mended needs no mending. The same bytes are tried as a
/// connection and as a header block.
pub fn frames(bytes: &[u8]) {
    let whole = through(&[PREFACE, bytes]);
    let uneven: Vec<&[u8]> = bytes.chunk_by(|one, _| one % 3 != 0).collect();
    let single: Vec<&[u8]> = bytes.chunks(1).collect();
    for pieces in [uneven, single] {
        assert_eq!(through(&[&[PREFACE], &pieces[..]].concat()), whole);
    }
    if let Ok(out) = whole {
        assert!(out.len() <= PREFACE.len() + 2 * bytes.len());
        assert_eq!(through(&[&out]).as_ref(), Ok(&out));
    }
    block(&bytes[..bytes.len().min(16_384)]);
}

/// A block that needs no mending passes byte for byte; a mended one says the same but for an authority that h2 takes.
fn block(block: &[u8]) {
    let length = (block.len() as u32).to_be_bytes();
    let sent = [PREFACE, &length[1..], &[1, 4, 0, 0, 0, 1], block].concat();
    let seen = through(&[&sent]).expect("a whole frame of headers is in order");
    let Some(out) = mended(block) else { return assert_eq!(seen, sent) };
    let (before, after) = (fields(block), fields(&out));
    let (before, after) = (before.expect("what was mended was read"), after.expect("and can be read"));
    assert_eq!(before.len(), after.len());
    for (before, after) in before.iter().zip(&after) {
        if before == after {
            continue;
        }
        let (Field::Literal(how, name, was), Field::Literal(now_how, now_name, is)) = (before, after) else {
            panic!("{before:?} became {after:?}")
        };
        assert_eq!((how, name), (now_how, now_name));
        assert!(*name == Name::Index(1) || *name == Name::Text(b":authority".to_vec()), "{before:?}");
        assert!(was.len() == is.len() && Authority::try_from(&is[..]).is_ok(), "{before:?} became {after:?}");
        assert!(was.iter().zip(is).all(|(was, is)| was == is || *is == b'-'));
    }
}

/// One representation of RFC 7541 6, its text decoded.
#[derive(Debug, PartialEq)]
enum Field {
    Indexed(usize),
    /// With what its first byte says of indexing.
    Literal(u8, Name, Vec<u8>),
    TableSize(usize),
}

#[derive(Debug, PartialEq)]
enum Name {
    Index(usize),
    Text(Vec<u8>),
}

fn fields(block: &[u8]) -> Option<Vec<Field>> {
    let (mut fields, mut at) = (vec![], 0);
    while let Some(first) = block.get(at) {
        fields.push(match first {
            0x80.. => Field::Indexed(integer(block, &mut at, 7)?),
            0x20..0x40 => Field::TableSize(integer(block, &mut at, 5)?),
            _ => {
                let (how, prefix) = if *first >= 0x40 { (0x40, 6) } else { (first & 0xf0, 4) };
                let name = match integer(block, &mut at, prefix)? {
                    0 => Name::Text(text(block, &mut at)?.decoded()?),
                    index => Name::Index(index),
                };
                // Only an authority is ever decoded, so any other value may be broken.
                let value = text(block, &mut at)?;
                Field::Literal(how, name, value.decoded().unwrap_or_default())
            }
        });
    }
    Some(fields)
}

fn through(pieces: &[&[u8]]) -> Result<Vec<u8>, FrameError> {
    let mut frames = Frames::new(Arc::new(Challenge::new(&*SeededDice::from_seed(1))));
    let mut out = vec![];
    for piece in pieces {
        frames.push(piece, &mut out)?;
    }
    Ok(out)
}

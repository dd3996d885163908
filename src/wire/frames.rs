//! The boundaries of HTTP/2 frames (RFC 9113), followed byte by byte. In goes what a client wrote, in any pieces; out
//! comes the same, with the header blocks mended that h2 would reset ([`super::hpack`]), and without the answer to our
//! challenge, which is none of h2's business. Everything else passes as it is; what cannot be a client of ours ends the
//! connection before h2 sees it.

use std::sync::Arc;

use super::hpack;
use crate::attest::Challenge;

const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The largest frame we announce (RFC 9113 4.2: the least a receiver may).
const MAX_FRAME: usize = 16_384;

/// A whole header block, its CONTINUATIONs included, is never larger.
const MAX_BLOCK: usize = 32 << 10;

/// A header block never has more pieces: a flood of empty ones would cost us and not the sender.
const MAX_PIECES: usize = 8;

/// Frames that ask for nothing, beside those of calls: whoever sends more is read in small pieces, for each is work.
const SMALL_TALK: u32 = 256;

/// So many of them go with a call.
const WITH_A_CALL: u32 = 8;

/// How much is read at once of one who talks much and asks for little.
const SIP: usize = 1 << 10;

const DATA: u8 = 0x0;
const HEADERS: u8 = 0x1;
const PING: u8 = 0x6;
const CONTINUATION: u8 = 0x9;
const ACK: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

/// What a client of ours never sends.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum FrameError {
    /// A header block without end.
    #[error("its header block is larger than 32 KiB or in more than 8 pieces")]
    HeaderBlock,
    /// Another frame amid a header block, padding longer than its frame, and the like.
    #[error("its frames do not follow each other as RFC 9113 demands")]
    Order,
    /// Not HTTP/2.
    #[error("it does not speak HTTP/2")]
    Preface,
    /// Larger than announced.
    #[error("a frame is larger than the 16 KiB announced")]
    Size,
}

/// Follows one connection.
#[derive(Debug)]
pub(super) struct Frames {
    state: State,
    challenge: Arc<Challenge>,
    /// The header block under way: the frames as they came, the fragments alone, and what the first frame was.
    raw: Vec<u8>,
    block: Vec<u8>,
    opening: Option<Opening>,
    pieces: usize,
    /// Frames that asked for nothing, less those that calls account for.
    small_talk: u32,
}

#[derive(Debug)]
enum State {
    Preface(usize),
    Header { bytes: [u8; 9], have: usize },
    Pass { left: usize },
    Gather { kind: u8, flags: u8, left: usize, from: usize },
    Pong { frame: [u8; 17], have: usize },
}

#[derive(Debug)]
struct Opening {
    flags: u8,
    stream: [u8; 4],
    priority: Vec<u8>,
}

impl Frames {
    /// Follows a connection whose process has to answer `challenge`.
    pub(super) fn new(challenge: Arc<Challenge>) -> Self {
        let state = State::Preface(0);
        Self { state, challenge, raw: vec![], block: vec![], opening: None, pieces: 0, small_talk: 0 }
    }

    /// How much is to be read at once, at most `usual`: a thousand PINGs or SETTINGS fit into 16 KiB, and a turn in which all of
    /// them are answered is a long one for everybody else (ATT-26).
    pub(super) fn appetite(&self, usual: usize) -> usize {
        if self.small_talk > SMALL_TALK { usual.min(SIP) } else { usual }
    }

    /// Takes `input` and appends to `out` what h2 shall see.
    pub(super) fn push(&mut self, mut input: &[u8], out: &mut Vec<u8>) -> Result<(), FrameError> {
        out.reserve(input.len());
        while !input.is_empty() {
            match &mut self.state {
                State::Preface(have) => {
                    let take = input.len().min(PREFACE.len() - *have);
                    if input[..take] != PREFACE[*have..*have + take] {
                        return Err(FrameError::Preface);
                    }
                    out.extend_from_slice(&input[..take]);
                    input = &input[take..];
                    *have += take;
                    if *have == PREFACE.len() {
                        self.state = State::Header { bytes: [0; 9], have: 0 };
                    }
                }
                State::Header { bytes, have } => {
                    let take = input.len().min(9 - *have);
                    bytes[*have..*have + take].copy_from_slice(&input[..take]);
                    input = &input[take..];
                    *have += take;
                    if *have == 9 {
                        let header = *bytes;
                        self.begin(header, out)?;
                    }
                }
                State::Pass { left } => {
                    let take = input.len().min(*left);
                    out.extend_from_slice(&input[..take]);
                    input = &input[take..];
                    *left -= take;
                    if *left == 0 {
                        self.state = State::Header { bytes: [0; 9], have: 0 };
                    }
                }
                State::Pong { frame, have } => {
                    let take = input.len().min(17 - *have);
                    frame[*have..*have + take].copy_from_slice(&input[..take]);
                    input = &input[take..];
                    *have += take;
                    if let ([.., a, b, c, d, e, f, g, h], 17) = (&*frame, *have) {
                        if !self.challenge.answer([*a, *b, *c, *d, *e, *f, *g, *h]) {
                            out.extend_from_slice(frame);
                        }
                        self.state = State::Header { bytes: [0; 9], have: 0 };
                    }
                }
                State::Gather { kind, flags, left, from } => {
                    let take = input.len().min(*left);
                    self.raw.extend_from_slice(&input[..take]);
                    input = &input[take..];
                    *left -= take;
                    if *left == 0 {
                        let (kind, flags, from) = (*kind, *flags, *from);
                        self.gathered(kind, flags, from, out)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn begin(&mut self, header: [u8; 9], out: &mut Vec<u8>) -> Result<(), FrameError> {
        let length = usize::from(header[0]) << 16 | usize::from(header[1]) << 8 | usize::from(header[2]);
        let (kind, flags) = (header[3], header[4]);
        if length > MAX_FRAME {
            return Err(FrameError::Size);
        }
        let in_block = self.opening.is_some();
        if in_block != (kind == CONTINUATION) {
            return Err(FrameError::Order);
        }
        match kind {
            DATA | CONTINUATION => {}
            HEADERS => self.small_talk = self.small_talk.saturating_sub(WITH_A_CALL),
            _ => self.small_talk = self.small_talk.saturating_add(1).min(2 * SMALL_TALK),
        }
        if kind == PING && flags & ACK != 0 && length == 8 {
            let mut frame = [0; 17];
            frame[..9].copy_from_slice(&header);
            self.state = State::Pong { frame, have: 9 };
            return Ok(());
        }
        if kind != HEADERS && kind != CONTINUATION {
            out.extend_from_slice(&header);
            self.state = if length == 0 {
                State::Header { bytes: [0; 9], have: 0 }
            } else {
                State::Pass { left: length }
            };
            return Ok(());
        }
        self.pieces += 1;
        if self.pieces > MAX_PIECES || self.raw.len() + length > MAX_BLOCK {
            return Err(FrameError::HeaderBlock);
        }
        if kind == HEADERS {
            let stream = [header[5], header[6], header[7], header[8]];
            self.opening = Some(Opening { flags, stream, priority: vec![] });
        }
        self.raw.reserve(header.len() + length);
        self.raw.extend_from_slice(&header);
        let from = self.raw.len();
        if length == 0 {
            return self.gathered(kind, flags, from, out);
        }
        self.state = State::Gather { kind, flags, left: length, from };
        Ok(())
    }

    /// A frame of a header block is whole: its payload is `raw[from..]`.
    fn gathered(&mut self, kind: u8, flags: u8, from: usize, out: &mut Vec<u8>) -> Result<(), FrameError> {
        let mut payload = &self.raw[from..];
        if kind == HEADERS && flags & PADDED != 0 {
            let (pad, rest) = payload.split_first().ok_or(FrameError::Order)?;
            let kept = rest.len().checked_sub(usize::from(*pad)).ok_or(FrameError::Order)?;
            payload = &rest[..kept];
        }
        if kind == HEADERS && flags & PRIORITY != 0 {
            let (priority, rest) = payload.split_at_checked(5).ok_or(FrameError::Order)?;
            if let Some(opening) = &mut self.opening {
                opening.priority = priority.to_vec();
            }
            payload = rest;
        }
        self.block.extend_from_slice(payload);
        self.state = State::Header { bytes: [0; 9], have: 0 };
        if flags & END_HEADERS == 0 {
            return Ok(());
        }
        let opening = self.opening.take().ok_or(FrameError::Order)?;
        match hpack::mended(&self.block) {
            None => out.extend_from_slice(&self.raw),
            Some(block) => put_block(&opening, &block, out),
        }
        // Given back, not kept: an idle connection holds no memory here.
        (self.raw, self.block, self.pieces) = (vec![], vec![], 0);
        Ok(())
    }
}

/// The challenge as a frame on the connection (RFC 9113 6.7).
pub(super) fn ping(challenge: &Challenge) -> [u8; 17] {
    let mut frame = [0; 17];
    frame[..9].copy_from_slice(&[0, 0, 8, PING, 0, 0, 0, 0, 0]);
    frame[9..].copy_from_slice(&challenge.put());
    frame
}

fn put_block(opening: &Opening, block: &[u8], out: &mut Vec<u8>) {
    let payload = [&opening.priority[..], block].concat();
    let pieces = payload.chunks(MAX_FRAME).count();
    for (at, piece) in payload.chunks(MAX_FRAME).enumerate() {
        let end = if at + 1 == pieces { END_HEADERS } else { 0 };
        let (kind, flags) = match at {
            0 => (HEADERS, opening.flags & !(PADDED | END_HEADERS) | end),
            _ => (CONTINUATION, end),
        };
        let length = (piece.len() as u32).to_be_bytes();
        out.extend_from_slice(&[length[1], length[2], length[3], kind, flags]);
        out.extend_from_slice(&opening.stream);
        out.extend_from_slice(piece);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::clock::SeededDice;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = (payload.len() as u32).to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
    }

    fn challenge() -> Arc<Challenge> {
        Arc::new(Challenge::new(&*SeededDice::from_seed(1)))
    }

    fn through(pieces: &[&[u8]]) -> Result<Vec<u8>, FrameError> {
        let mut frames = Frames::new(challenge());
        let mut out = vec![];
        for piece in pieces {
            frames.push(piece, &mut out)?;
        }
        Ok(out)
    }

    #[test]
    fn who_talks_much_and_asks_for_little_is_read_in_small_pieces() {
        // ATT-26
        let (mut frames, mut out) = (Frames::new(challenge()), vec![]);
        frames.push(PREFACE, &mut out).unwrap();
        let call = frame(HEADERS, END_HEADERS, b"\x83");
        let with_its_talk =
            [call.clone(), frame(0x8, 0, &[0, 0, 0, 1]), frame(PING, 0, b"12345678")].concat();
        for _ in 0..10_000 {
            frames.push(&with_its_talk, &mut out).unwrap();
        }
        assert_eq!(frames.appetite(16_384), 16_384, "a client at work, whatever it sends beside its calls");
        for kind in [PING, 0x4, 0x8, 0x2] {
            let mut frames = Frames::new(challenge());
            frames.push(PREFACE, &mut out).unwrap();
            for _ in 0..10_000 {
                frames.push(&frame(kind, 0, b"12345678"), &mut out).unwrap();
            }
            assert_eq!(frames.appetite(16_384), SIP, "{kind}");
            for _ in 0..64 {
                frames.push(&call, &mut out).unwrap();
            }
            assert_eq!(frames.appetite(16_384), 16_384, "it may come to its senses");
        }
    }

    const BAD: &[u8] = b"\x41\x04/a/b";
    const GOOD: &[u8] = b"\x41\x04-a-b";

    #[test]
    fn a_bad_authority_is_mended_wherever_it_stands() {
        let padded = [&[2], BAD, &[0, 0]].concat();
        let with_priority = [&[0, 0, 0, 0, 9], BAD].concat();
        for (sent, seen) in [
            (frame(HEADERS, END_HEADERS | 1, BAD), frame(HEADERS, END_HEADERS | 1, GOOD)),
            (frame(HEADERS, END_HEADERS | PADDED, &padded), frame(HEADERS, END_HEADERS, GOOD)),
            (
                frame(HEADERS, END_HEADERS | PRIORITY, &with_priority),
                frame(HEADERS, END_HEADERS | PRIORITY, &[&[0, 0, 0, 0, 9], GOOD].concat()),
            ),
            (
                [frame(HEADERS, 1, &BAD[..3]), frame(CONTINUATION, END_HEADERS, &BAD[3..])].concat(),
                frame(HEADERS, END_HEADERS | 1, GOOD),
            ),
        ] {
            let data = frame(0, 1, b"data");
            assert_eq!(through(&[PREFACE, &sent, &data]).unwrap(), [PREFACE, &seen[..], &data].concat());
        }
    }

    #[tokio::test]
    async fn the_answer_to_the_challenge_is_taken_out_and_no_other() {
        // ATT-17
        let challenge = challenge();
        let mut asked = ping(&challenge);
        asked[4] = ACK;
        let other = [&asked[..9], &[7; 8]].concat();
        for cut in 0..=asked.len() {
            let mut frames = Frames::new(Arc::clone(&challenge));
            let mut out = vec![];
            for piece in [PREFACE, &other[..], &asked[..cut], &asked[cut..], &frame(0, 0, b"x")] {
                frames.push(piece, &mut out).unwrap();
            }
            assert_eq!(out, [PREFACE, &other[..], &frame(0, 0, b"x")].concat());
        }
        challenge.answered().await.unwrap();
    }

    #[test]
    fn what_is_no_client_of_ours_ends_at_once() {
        let preface = &PREFACE[..];
        for (sent, error) in [
            (b"GET / HTTP/1.1\r\n".to_vec(), FrameError::Preface),
            ([preface, &[0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1]].concat(), FrameError::Size),
            ([preface, &frame(CONTINUATION, 0, b"x")].concat(), FrameError::Order),
            ([preface, &frame(HEADERS, 0, b"x"), &frame(0, 0, b"x")].concat(), FrameError::Order),
            ([preface, &frame(HEADERS, END_HEADERS | PADDED, &[9, 0])].concat(), FrameError::Order),
            // ATT-26: a CONTINUATION flood, in empty pieces and in large ones.
            (
                [preface, &frame(HEADERS, 0, b""), &frame(CONTINUATION, 0, b"").repeat(9)].concat(),
                FrameError::HeaderBlock,
            ),
            (
                [preface, &frame(HEADERS, 0, b""), &frame(CONTINUATION, 0, &[0; 16_000]).repeat(3)].concat(),
                FrameError::HeaderBlock,
            ),
        ] {
            assert_eq!(through(&[&sent]), Err(error));
        }
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(cuts in prop::collection::vec(0usize..200, 0..20)) {
            let whole = [
                &PREFACE[..],
                &frame(4, 0, &[]),
                &frame(HEADERS, END_HEADERS, BAD),
                &frame(0, 0, &[7; 50]),
                &frame(HEADERS, 0, &BAD[..2]),
                &frame(CONTINUATION, END_HEADERS, &BAD[2..]),
            ].concat();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(whole.len())).collect();
            cuts.extend([0, whole.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|pair| &whole[pair[0]..pair[1]]).collect();
            prop_assert_eq!(through(&pieces), through(&[&whole]));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = through(&[PREFACE, &bytes]);
        }
    }
}

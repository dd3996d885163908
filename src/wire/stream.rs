//! One connection as a stream whose every chunk was written by the pinned peer. In go reads with the sender's stamp;
//! out come bytes, or the end of the connection with the reason in its [`Fate`]. Writes are corked: what one turn of
//! the connection produces leaves in one write ([`Corked`]).

use std::{
    io,
    mem::{self, MaybeUninit},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    task::{Context, Poll, Waker, ready},
};

use bytes::{Buf as _, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::UnixStream,
};

use super::frames::{FrameError, Frames, ping};
use crate::attest::{AttestError, Challenge, Peer, kernel};

/// What waits to be written at most, before the connection is told to wait.
const MAX_CORKED: usize = 256 << 10;

/// What there is room for from the start of a turn.
const CORKED: usize = 4 << 10;

/// What is read at once, and in one turn: as long as the peer has more to say, others have theirs in between (ATT-26).
const READ: usize = 16 << 10;

/// Why a connection had to end, if it was our doing.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Fate {
    /// Somebody else spoke on it, or its process changed.
    Attest(AttestError),
    /// It broke the protocol below h2.
    Frame(FrameError),
}

/// A stream of the peer's own words.
#[derive(Debug)]
pub struct Stamped {
    socket: Arc<UnixStream>,
    peer: Arc<Peer>,
    frames: Option<(Frames, Vec<u8>, usize)>,
    fate: Arc<OnceLock<Fate>>,
    turn: Arc<Mutex<Turn>>,
    /// Whether the last read took less than it could: nothing is left, and asking again would cost a call to hear so.
    emptied: bool,
    /// Still to be put, at the first boundary between our frames.
    challenge: Option<Arc<Challenge>>,
}

/// What one turn of a connection has done.
#[derive(Debug, Default)]
struct Turn {
    /// What it has to write.
    out: BytesMut,
    /// Whether it has read.
    has_read: bool,
    /// Who would have read on, and does so in the next turn.
    reads_on: Option<Waker>,
}

/// The other handle on a connection: ends its turns, and writes what is corked.
#[derive(Clone, Debug)]
pub struct Corked {
    socket: Arc<UnixStream>,
    turn: Arc<Mutex<Turn>>,
    fate: Arc<OnceLock<Fate>>,
}

/// Takes a connection over. With a `challenge` it is one of HTTP/2, whose header blocks are mended on the way in.
pub fn stamped(socket: UnixStream, peer: Arc<Peer>, challenge: Option<Arc<Challenge>>) -> (Stamped, Corked) {
    let socket = Arc::new(socket);
    let turn = Arc::default();
    let fate = Arc::default();
    let corked = Corked { socket: Arc::clone(&socket), turn: Arc::clone(&turn), fate: Arc::clone(&fate) };
    let frames = challenge.clone().map(|challenge| (Frames::new(challenge), Vec::new(), 0));
    (Stamped { socket, peer, frames, fate, turn, emptied: false, challenge }, corked)
}

impl Stamped {
    /// Reads one chunk of the peer's, or ends the connection.
    fn read<'a>(&mut self, space: &'a mut [MaybeUninit<u8>]) -> io::Result<&'a [u8]> {
        let (emptied, room) = (mem::take(&mut self.emptied), space.len());
        let chunk = self.socket.try_io(Interest::READABLE, || {
            // The next chunk wakes us: the socket's readiness is told anew at every arrival.
            if emptied {
                Err(io::ErrorKind::WouldBlock.into())
            } else {
                kernel::receive(&*self.socket, space)
            }
        })?;
        self.emptied = !chunk.bytes.is_empty() && chunk.bytes.len() < room;
        if chunk.bytes.is_empty() {
            return Ok(chunk.bytes);
        }
        let checked = match chunk.sender {
            Some(sender) if !chunk.smuggled => self.peer.wrote(sender),
            _ => Err(AttestError::Smuggled),
        };
        checked.map(|()| chunk.bytes).map_err(|error| self.doom(Fate::Attest(error)))
    }

    fn doom(&self, fate: Fate) -> io::Error {
        let _ = self.fate.set(fate);
        io::ErrorKind::ConnectionAborted.into()
    }
}

impl AsyncRead for Stamped {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.fate.get().is_some() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        loop {
            if let Some((_, ready, at)) = &mut self.frames
                && *at < ready.len()
            {
                let take = buf.remaining().min(ready.len() - *at);
                buf.put_slice(&ready[*at..*at + take]);
                *at += take;
                if *at == ready.len() {
                    (*ready, *at) = (vec![], 0);
                }
                return Poll::Ready(Ok(()));
            }
            ready!(self.socket.poll_read_ready(cx))?;
            // There is more, and others have had no turn since the last.
            if !self.emptied {
                let mut turn = lock(&self.turn);
                if turn.has_read {
                    turn.reads_on = Some(cx.waker().clone());
                    return Poll::Pending;
                }
            }
            let mut space = [MaybeUninit::uninit(); READ];
            let room = match &self.frames {
                Some((frames, ..)) => frames.appetite(READ),
                None => buf.remaining().min(READ),
            };
            match self.read(&mut space[..room]) {
                Ok([]) => return Poll::Ready(Ok(())),
                Ok(bytes) => {
                    lock(&self.turn).has_read = true;
                    let Some((frames, ready, _)) = &mut self.frames else {
                        buf.put_slice(bytes);
                        return Poll::Ready(Ok(()));
                    };
                    if let Err(error) = frames.push(bytes, ready) {
                        return Poll::Ready(Err(self.doom(Fate::Frame(error))));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Stamped {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.fate.get().is_some() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        let out = &mut lock(&self.turn).out;
        if out.len() >= MAX_CORKED {
            ready!(drain(&self.socket, out, cx))?;
        }
        if out.is_empty() {
            // One turn has more to say than the first piece.
            out.reserve(bytes.len().max(CORKED));
        }
        out.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // What is flushed first is our SETTINGS, whole, before anything was read.
        if let Some(challenge) = self.challenge.take() {
            lock(&self.turn).out.extend_from_slice(&ping(&challenge));
        }
        // The driver drains once a turn: that is the cork.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(drain(&self.socket, &mut lock(&self.turn).out, cx))?;
        Poll::Ready(rustix::net::shutdown(&*self.socket, rustix::net::Shutdown::Write).map_err(Into::into))
    }
}

impl Corked {
    /// Ends the turn: whoever has more to read may do so in the next.
    pub fn end_turn(&self) {
        let reads_on = {
            let mut turn = lock(&self.turn);
            turn.has_read = false;
            turn.reads_on.take()
        };
        if let Some(reads_on) = reads_on {
            reads_on.wake();
        }
    }

    /// Writes what is corked. Ready when nothing is left.
    pub fn poll_drain(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Nothing more is said on a connection that was taken over: not even what was meant for its peer.
        if self.fate.get().is_some() {
            lock(&self.turn).out.clear();
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        drain(&self.socket, &mut lock(&self.turn).out, cx)
    }

    /// Why the connection had to end, if it was our doing.
    pub fn fate(&self) -> Option<Fate> {
        self.fate.get().cloned()
    }
}

fn drain(socket: &UnixStream, out: &mut BytesMut, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
    while !out.is_empty() {
        ready!(socket.poll_write_ready(cx))?;
        match socket.try_write(out) {
            Ok(written) => out.advance(written),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Poll::Ready(Err(error)),
        }
    }
    // Given back, not kept: an idle connection holds no memory here.
    *out = BytesMut::new();
    Poll::Ready(Ok(()))
}

/// The lock is never held across a wait, and never by two at once: both handles live in one task.
fn lock(turn: &Mutex<Turn>) -> MutexGuard<'_, Turn> {
    turn.lock().unwrap_or_else(PoisonError::into_inner)
}

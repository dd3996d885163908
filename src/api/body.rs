//! Bodies on their way. In goes what a program or an API sends; out comes the same, piece by piece as the other end takes
//! it. A request's body that is not long is kept until the API has answered, so that it can be sent once more if the API said
//! that it did not take it (MT-09); what is kept for that is bounded, for all callers together.

use std::{
    convert::Infallible,
    error::Error,
    future::Future as _,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt as _, combinators::UnsyncBoxBody};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, Sleep, sleep, timeout},
};

pub(super) type BoxError = Box<dyn Error + Send + Sync>;

/// A body as it comes.
pub type Coming = UnsyncBoxBody<Bytes, BoxError>;

/// The longest body that is kept: what calls of APIs usually bring. One that is longer goes on as it comes, once.
const KEPT: usize = 1 << 20;

/// So much is kept for all callers together. Where there is no room, a body goes on as it comes, once.
const KEPT_BY_ALL: usize = 64 << 20;

/// Room is counted in pieces of this size.
const PIECE: usize = 4 << 10;

/// The room for what is kept.
#[derive(Clone, Debug)]
pub(super) struct Room(Arc<Semaphore>);

impl Default for Room {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(KEPT_BY_ALL / PIECE)))
    }
}

/// A request's body: the part of it that was read, and the part that was not. By default there is none.
#[derive(Default)]
pub struct Asking {
    front: Bytes,
    rest: Option<Coming>,
    /// Whether there was more than `front` in the beginning.
    is_longer: bool,
    /// For as long as `front` is kept.
    _room: Option<OwnedSemaphorePermit>,
}

/// Why a request's body did not come.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum BodyError {
    /// The program stopped sending.
    #[error("nothing of the request's body came for {0:?}")]
    Late(Duration),
    /// The program broke it off.
    #[error("the request's body broke off")]
    Broken,
}

impl Asking {
    /// Reads `body` whole, if it is short enough and there is room to keep it. `patience` is for each piece.
    pub(super) async fn take(mut body: Coming, room: &Room, patience: Duration) -> Result<Self, BodyError> {
        if body.is_end_stream() {
            return Ok(Self::default());
        }
        let least = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
        let most = body.size_hint().exact().and_then(|exact| usize::try_from(exact).ok()).unwrap_or(KEPT);
        let pieces = u32::try_from(most.div_ceil(PIECE)).unwrap_or(u32::MAX);
        let room = (least <= KEPT).then(|| Arc::clone(&room.0).try_acquire_many_owned(pieces).ok()).flatten();
        if room.is_none() {
            return Ok(Self { front: Bytes::new(), rest: Some(body), is_longer: true, _room: None });
        }
        let mut front = BytesMut::new();
        loop {
            let frame = timeout(patience, body.frame()).await.map_err(|_| BodyError::Late(patience))?;
            match frame {
                None => return Ok(Self { front: front.freeze(), _room: room, ..Self::default() }),
                Some(Err(_)) => return Err(BodyError::Broken),
                Some(Ok(frame)) => {
                    front.extend_from_slice(frame.data_ref().map_or(&[][..], |piece| piece));
                    if front.len() > KEPT {
                        return Ok(Self {
                            front: front.freeze(),
                            rest: Some(body),
                            is_longer: true,
                            _room: room,
                        });
                    }
                }
            }
        }
    }

    /// Whether all of it is kept, so that it can be sent once more.
    pub fn is_whole(&self) -> bool {
        !self.is_longer
    }

    /// What goes out with one attempt. None if it would go out for the second time and was not kept.
    pub(super) fn outgoing(&mut self, moved: &Moved) -> Option<Outgoing> {
        let rest = self.rest.take();
        (rest.is_some() == self.is_longer).then(|| Outgoing {
            front: self.front.clone(),
            rest,
            moved: moved.clone(),
        })
    }
}

/// Counts what moves, so that whoever waits can tell slow from stuck.
#[derive(Clone, Debug, Default)]
pub(super) struct Moved(Arc<AtomicU64>);

impl Moved {
    /// Waits until nothing has moved for `patience`.
    pub(super) async fn stuck(&self, patience: Duration) {
        let mut seen = self.0.load(Ordering::Relaxed);
        loop {
            sleep(patience).await;
            let now = self.0.load(Ordering::Relaxed);
            if now == seen {
                return;
            }
            seen = now;
        }
    }
}

/// A request's body as the API gets it. Trailers end here: they are of a connection, or sign what is ours to sign.
pub(super) struct Outgoing {
    front: Bytes,
    rest: Option<Coming>,
    moved: Moved,
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let next = if !self.front.is_empty() {
            Some(Ok(Frame::data(std::mem::take(&mut self.front))))
        } else {
            match &mut self.rest {
                None => None,
                Some(rest) => ready!(poll_data(rest, cx)),
            }
        };
        self.moved.0.fetch_add(1, Ordering::Relaxed);
        Poll::Ready(next)
    }

    fn is_end_stream(&self) -> bool {
        self.front.is_empty() && self.rest.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let front = self.front.len() as u64;
        let Some(rest) = self.rest.as_ref().map(Body::size_hint) else { return SizeHint::with_exact(front) };
        let mut hint = SizeHint::new();
        hint.set_lower(front + rest.lower());
        if let Some(upper) = rest.upper() {
            hint.set_upper(front + upper);
        }
        hint
    }
}

/// The next piece that is data.
fn poll_data<B: Body<Data = Bytes> + Unpin>(
    body: &mut B,
    cx: &mut Context<'_>,
) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
    loop {
        match ready!(Pin::new(&mut *body).poll_frame(cx)) {
            Some(Ok(frame)) if !frame.is_data() => {}
            next => return Poll::Ready(next),
        }
    }
}

/// Says before each piece whether it may still be handed on.
pub type MayGoOn = Box<dyn FnMut() -> bool + Send>;

/// An answer's body as the program gets it: as fast as the program takes it, for as long as the API goes on sending and the
/// program is still entitled to it (GA-10). What ends too soon ends in an error, so that nobody takes it for whole.
pub struct Answering {
    body: Coming,
    patience: Duration,
    stuck: Pin<Box<Sleep>>,
    /// Whether the program waits: only then does the clock count against the API.
    waiting: bool,
    may_go_on: MayGoOn,
    /// For as long as the call goes on.
    _place: OwnedSemaphorePermit,
}

impl Answering {
    pub(super) fn new<B>(body: B, patience: Duration, may_go_on: MayGoOn, place: OwnedSemaphorePermit) -> Self
    where
        B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    {
        let body = body.map_err(Into::into).boxed_unsync();
        Self { body, patience, stuck: Box::pin(sleep(patience)), waiting: false, may_go_on, _place: place }
    }
}

impl Body for Answering {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Poll::Ready(next) = poll_data(&mut self.body, cx) {
            self.waiting = false;
            let ended = matches!(next, Some(Ok(_))) && !(self.may_go_on)();
            return Poll::Ready(match ended {
                true => Some(Err("the caller is no longer entitled to the answer".into())),
                false => next,
            });
        }
        if !std::mem::replace(&mut self.waiting, true) {
            let until = Instant::now() + self.patience;
            self.stuck.as_mut().reset(until);
        }
        ready!(self.stuck.as_mut().poll(cx));
        Poll::Ready(Some(Err("the API stopped sending".into())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A body that is whole from the start.
pub fn whole(bytes: impl Into<Bytes>) -> Coming {
    http_body_util::Full::new(bytes.into()).map_err(|never: Infallible| match never {}).boxed_unsync()
}

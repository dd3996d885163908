//! The calls of one connection, worked on in the connection's own task. In go the futures that hyper makes of requests; out
//! come their answers within the same turn, if nothing has to be awaited: a lone call never leaves its task, and what a
//! crowd of them has to say leaves in one write. A task for each would be two switches and one more turn of the
//! connection for every call.

use std::{
    future::Future,
    mem,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use hyper::rt::Executor;

/// How often a turn goes round at most, before other connections have theirs.
const ROUNDS: usize = 8;

/// So many places are kept for calls to come.
const KEPT: usize = 4;

type Call = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The calls under way.
pub(super) struct Calls {
    board: Arc<Board>,
    connection: Arc<Bell>,
    connection_waker: Waker,
    places: Vec<Place>,
    free: Vec<usize>,
    due: Vec<usize>,
}

/// Where hyper leaves what it makes of a request.
#[derive(Clone)]
pub(super) struct Door(Arc<Board>);

/// Who has something to do.
#[derive(Default)]
struct Board(Mutex<Notes>);

#[derive(Default)]
struct Notes {
    new: Vec<Call>,
    rung: Vec<usize>,
    connection: bool,
    /// Whom to wake; nobody during a turn, which looks here itself.
    task: Option<Waker>,
}

/// A call, and the bell that says it can go on. The bell stays for the next call: one that rings late rings in vain.
struct Place {
    call: Option<Call>,
    bell: Arc<Bell>,
    waker: Waker,
}

/// What a waker does: it notes whom it is for.
struct Bell {
    board: Arc<Board>,
    /// None for the connection itself.
    place: Option<usize>,
    rung: AtomicBool,
}

impl Calls {
    /// None yet.
    pub(super) fn new() -> Self {
        let board = Arc::<Board>::default();
        let (connection, connection_waker) = bell(&board, None);
        Self { board, connection, connection_waker, places: vec![], free: vec![], due: vec![] }
    }

    /// For hyper.
    pub(super) fn door(&self) -> Door {
        Door(Arc::clone(&self.board))
    }

    /// One turn: the connection and all calls that can go on, round after round until nobody can; then `last`, on behalf of
    /// the connection. Ready when the connection is.
    pub(super) fn turn<T>(
        &mut self,
        cx: &mut Context<'_>,
        mut connection: impl FnMut(&mut Context<'_>) -> Poll<()>,
        last: impl FnOnce(Poll<()>, &mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        // Whoever woke this task without ringing did not say for whom.
        let mut connection_due = {
            let mut notes = self.board.lock();
            notes.task = None;
            mem::take(&mut notes.connection) || notes.rung.is_empty()
        };
        let mut served = Poll::Pending;
        for _ in 0..ROUNDS {
            if connection_due {
                self.connection.rung.store(false, Ordering::Relaxed);
                served = connection(&mut Context::from_waker(&self.connection_waker));
                if served.is_ready() {
                    break;
                }
            }
            if !self.work() && !connection_due {
                break;
            }
            connection_due = mem::take(&mut self.board.lock().connection);
        }
        let done = last(served, &mut Context::from_waker(&self.connection_waker));
        let mut notes = self.board.lock();
        notes.connection |= connection_due;
        if notes.connection || !notes.rung.is_empty() || !notes.new.is_empty() {
            cx.waker().wake_by_ref();
        } else {
            notes.task = Some(cx.waker().clone());
        }
        done
    }

    /// Lets every call that can go on do so once. False if none could.
    fn work(&mut self) -> bool {
        let mut due = mem::take(&mut self.due);
        let new = {
            let mut notes = self.board.lock();
            mem::swap(&mut due, &mut notes.rung);
            mem::take(&mut notes.new)
        };
        for call in new {
            due.push(self.admit(call));
        }
        let worked = !due.is_empty();
        for place in due.drain(..) {
            self.go_on(place);
        }
        self.due = due;
        if self.free.len() == self.places.len() && self.places.len() > KEPT {
            // Given back, not kept: an idle connection holds little memory here.
            (self.places, self.free, self.due) = (vec![], vec![], vec![]);
        }
        worked
    }

    fn admit(&mut self, call: Call) -> usize {
        let at = self.free.pop().unwrap_or_else(|| {
            let (bell, waker) = bell(&self.board, Some(self.places.len()));
            self.places.push(Place { call: None, bell, waker });
            self.places.len() - 1
        });
        self.places[at].call = Some(call);
        at
    }

    fn go_on(&mut self, at: usize) {
        let Some(place) = self.places.get_mut(at) else { return };
        place.bell.rung.store(false, Ordering::Release);
        let Some(call) = &mut place.call else { return };
        if call.as_mut().poll(&mut Context::from_waker(&place.waker)).is_ready() {
            place.call = None;
            self.free.push(at);
        }
    }
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Door {
    fn execute(&self, call: F) {
        self.0.lock().new.push(Box::pin(call));
    }
}

impl Board {
    /// Never held across a call or a wait.
    fn lock(&self) -> MutexGuard<'_, Notes> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.rung.swap(true, Ordering::AcqRel) {
            return;
        }
        let task = {
            let mut notes = self.board.lock();
            match self.place {
                None => notes.connection = true,
                Some(place) => notes.rung.push(place),
            }
            notes.task.take()
        };
        if let Some(task) = task {
            task.wake();
        }
    }
}

fn bell(board: &Arc<Board>, place: Option<usize>) -> (Arc<Bell>, Waker) {
    let bell = Arc::new(Bell { board: Arc::clone(board), place, rung: AtomicBool::new(false) });
    (Arc::clone(&bell), Waker::from(bell))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use tokio::sync::{Notify, oneshot};

    use super::*;

    /// One turn of a connection that has nothing to do but count.
    fn turn(calls: &mut Calls, cx: &mut Context<'_>, polls: &mut usize) {
        let connection = |_: &mut Context<'_>| {
            *polls += 1;
            Poll::<()>::Pending
        };
        assert!(calls.turn(cx, connection, |_, _| Poll::<()>::Pending).is_pending());
    }

    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_call_that_waits_for_nobody_is_done_in_its_turn() {
        let (woken, mut polls) = (Arc::new(Woken(AtomicUsize::new(0))), 0);
        let waker = Waker::from(Arc::clone(&woken));
        let mut calls = Calls::new();
        let (done, mut is_done) = oneshot::channel();
        calls.door().execute(async move { done.send(()).unwrap() });
        turn(&mut calls, &mut Context::from_waker(&waker), &mut polls);
        assert_eq!(is_done.try_recv(), Ok(()));
        assert_eq!((woken.0.load(Ordering::Relaxed), calls.free.len()), (0, calls.places.len()));
    }

    #[test]
    fn whoever_is_rung_for_goes_on_and_nobody_else() {
        let (woken, mut polls) = (Arc::new(Woken(AtomicUsize::new(0))), 0);
        let waker = Waker::from(Arc::clone(&woken));
        let mut calls = Calls::new();
        let went_on = Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]);
        let bells: Vec<_> = (0..2).map(|_| Arc::new(Notify::new())).collect();
        for at in 0..2 {
            let (went_on, bell) = (Arc::clone(&went_on), Arc::clone(&bells[at]));
            calls.door().execute(async move {
                loop {
                    bell.notified().await;
                    went_on[at].fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let mut go = |calls: &mut Calls| turn(calls, &mut Context::from_waker(&waker), &mut polls);
        go(&mut calls);
        bells[1].notify_one();
        assert_eq!(woken.0.load(Ordering::Relaxed), 1, "the task is told once");
        go(&mut calls);
        let counts = || [0, 1].map(|at: usize| went_on[at].load(Ordering::Relaxed));
        assert_eq!(counts(), [0, 1]);
        bells[0].notify_one();
        bells[1].notify_one();
        assert_eq!(woken.0.load(Ordering::Relaxed), 2, "and once for both");
        go(&mut calls);
        assert_eq!(counts(), [1, 2]);
        // The connection had a turn of its own only in the beginning: nobody rang for it.
        assert_eq!(polls, 1);
    }

    #[test]
    fn a_call_that_rings_without_end_lets_others_have_their_turn() {
        let (woken, mut polls) = (Arc::new(Woken(AtomicUsize::new(0))), 0);
        let waker = Waker::from(Arc::clone(&woken));
        let mut calls = Calls::new();
        calls.door().execute(std::future::poll_fn(|cx| {
            cx.waker().wake_by_ref();
            Poll::<()>::Pending
        }));
        turn(&mut calls, &mut Context::from_waker(&waker), &mut polls);
        assert_eq!(woken.0.load(Ordering::Relaxed), 1, "it goes on at the next turn");
    }

    #[test]
    fn a_crowd_leaves_few_places_behind_and_late_bells_ring_in_vain() {
        let (woken, mut polls) = (Arc::new(Woken(AtomicUsize::new(0))), 0);
        let waker = Waker::from(Arc::clone(&woken));
        let mut calls = Calls::new();
        let mut go = |calls: &mut Calls| turn(calls, &mut Context::from_waker(&waker), &mut polls);
        let kept = Arc::new(Mutex::new(vec![]));
        for _ in 0..10 {
            let kept = Arc::clone(&kept);
            let mut turns = 0;
            calls.door().execute(std::future::poll_fn(move |cx| {
                kept.lock().unwrap().push(cx.waker().clone());
                cx.waker().wake_by_ref();
                turns += 1;
                if turns == 2 { Poll::Ready(()) } else { Poll::Pending }
            }));
        }
        go(&mut calls);
        assert!(calls.places.is_empty());
        kept.lock().unwrap().drain(..).for_each(Waker::wake);
        go(&mut calls);
        assert!(calls.places.is_empty());
    }
}

//! The connections of each user, worked on by one task a user. The agent is one thread, and everybody's turn on it comes around: if
//! each connection had turns of its own, whoever opens sixty and floods them all would have sixty between two of anybody else's. In
//! go connections and whose they are; between two turns of anybody's, a user has one, on the connection that has waited longest
//! (ATT-26, TM-20). A user who is granted nothing waits when it has had its share ([`Share`]), and what others sent meanwhile is looked at
//! after each of its turns.

use std::{
    collections::{HashMap, VecDeque},
    future::Future,
    mem,
    pin::{Pin, pin},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker, ready},
};

use tokio::{
    task::{JoinSet, yield_now},
    time::{Sleep, sleep},
};

use super::{
    Share,
    share::{Shares, Turn},
};
use crate::clock::Boot;

type Connection = Pin<Box<dyn Future<Output = ()> + Send>>;

/// All users that are connected to one socket.
pub struct Users {
    shares: Arc<Shares>,
    boards: HashMap<u32, Arc<Board>>,
    crowds: JoinSet<u32>,
}

impl Users {
    /// Nobody yet. The shares are those on all sockets.
    pub fn new(shares: Arc<Shares>) -> Self {
        Self { shares, boards: HashMap::new(), crowds: JoinSet::new() }
    }

    /// The share of this user, on whatever socket.
    pub fn share(&self, uid: u32) -> Arc<Share> {
        self.shares.of(uid)
    }

    /// Works on `connection`, which is this user's, until it ends.
    pub fn admit(&mut self, uid: u32, connection: impl Future<Output = ()> + Send + 'static) {
        let mut connection: Connection = Box::pin(connection);
        if let Some(board) = self.boards.get(&uid) {
            match board.take_in(connection) {
                None => return,
                Some(refused) => connection = refused,
            }
        }
        let board = Arc::<Board>::default();
        // One that has just been made is not over.
        let _ = board.take_in(connection);
        self.boards.insert(uid, Arc::clone(&board));
        let crowd = Crowd { board, share: self.shares.of(uid), pause: None, places: vec![], free: vec![] };
        self.crowds.spawn(async move {
            crowd.await;
            uid
        });
    }

    /// Whether nobody is connected, or all that were have ended and [`Self::ended`] was told so.
    pub fn is_empty(&self) -> bool {
        self.crowds.is_empty()
    }

    /// Waits until the last connection of some user has ended. False if there is no user. Nothing is lost by not waiting for it.
    pub async fn ended(&mut self) -> bool {
        let Some(ended) = self.crowds.join_next().await else { return false };
        if let Ok(uid) = ended
            && self.boards.get(&uid).is_some_and(|board| board.lock().over)
        {
            self.boards.remove(&uid);
        }
        true
    }

    /// How many are connected.
    pub fn connections(&self) -> usize {
        self.boards.values().map(|board| board.lock().connections).sum()
    }

    /// Drops all connections.
    pub fn abort(&mut self) {
        self.crowds.abort_all();
    }
}

/// The connections of one user, as one task.
struct Crowd {
    board: Arc<Board>,
    share: Arc<Share>,
    /// Until its next turn, if it has had its share.
    pause: Option<Pin<Box<Sleep>>>,
    places: Vec<Place>,
    free: Vec<usize>,
}

/// A connection, and the bell that says it can go on. The bell stays for the next: one that rings late rings in vain.
struct Place {
    connection: Option<Connection>,
    bell: Arc<Bell>,
    waker: Waker,
}

/// Who has something to do.
#[derive(Default)]
struct Board(Mutex<Notes>);

#[derive(Default)]
struct Notes {
    new: Vec<Connection>,
    /// In the order in which they rang.
    rung: VecDeque<usize>,
    connections: usize,
    /// Whom to wake, while nobody has anything to do.
    task: Option<Waker>,
    over: bool,
}

/// What a waker does: it notes whom it is for.
struct Bell {
    board: Arc<Board>,
    place: usize,
    rung: AtomicBool,
}

impl Future for Crowd {
    type Output = ();

    /// One turn, on one connection.
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let crowd = &mut *self;
        let counted = match crowd.turn(cx) {
            Poll::Ready(counted) => counted,
            Poll::Pending => return Poll::Pending,
        };
        let (new, mut next) = {
            let mut notes = crowd.board.lock();
            notes.task = None;
            (mem::take(&mut notes.new), notes.rung.pop_front())
        };
        for connection in new {
            let at = crowd.admit(connection);
            if next.is_none() {
                next = Some(at);
            } else {
                crowd.board.lock().rung.push_back(at);
            }
        }
        let ended = next.is_some_and(|at| crowd.go_on(at));
        if let Some(from) = counted {
            crowd.share.took(from);
        }
        let mut notes = crowd.board.lock();
        notes.connections -= usize::from(ended);
        if notes.connections == 0 {
            notes.over = true;
            return Poll::Ready(());
        }
        match notes.rung.is_empty() && notes.new.is_empty() {
            true => notes.task = Some(cx.waker().clone()),
            // Behind everybody who waits already; and if it is granted nothing, behind those too who have sent something by now.
            false if counted.is_some() => drop(pin!(yield_now()).poll(cx)),
            false => cx.waker().wake_by_ref(),
        }
        Poll::Pending
    }
}

impl Crowd {
    /// Ready when it may have a turn: with the moment from which it counts, if it does.
    fn turn(&mut self, cx: &mut Context<'_>) -> Poll<Option<Boot>> {
        loop {
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(cx));
                self.pause = None;
            }
            match self.share.turn() {
                Turn::Free => return Poll::Ready(None),
                Turn::From(now) => return Poll::Ready(Some(now)),
                Turn::After(wait) => self.pause = Some(Box::pin(sleep(wait))),
            }
        }
    }

    fn admit(&mut self, connection: Connection) -> usize {
        let at = self.free.pop().unwrap_or_else(|| {
            let place = self.places.len();
            let bell = Arc::new(Bell { board: Arc::clone(&self.board), place, rung: AtomicBool::new(false) });
            let waker = Waker::from(Arc::clone(&bell));
            self.places.push(Place { connection: None, bell, waker });
            place
        });
        self.places[at].connection = Some(connection);
        at
    }

    /// Whether it has ended.
    fn go_on(&mut self, at: usize) -> bool {
        let place = &mut self.places[at];
        place.bell.rung.store(false, Ordering::Release);
        let Some(connection) = &mut place.connection else { return false };
        let ended = connection.as_mut().poll(&mut Context::from_waker(&place.waker)).is_ready();
        if ended {
            place.connection = None;
            self.free.push(at);
        }
        ended
    }
}

impl Board {
    /// Gives it back if the task has ended.
    fn take_in(&self, connection: Connection) -> Option<Connection> {
        let mut notes = self.lock();
        if notes.over {
            return Some(connection);
        }
        notes.connections += 1;
        notes.new.push(connection);
        let task = notes.task.take();
        drop(notes);
        task.inspect(Waker::wake_by_ref);
        None
    }

    /// Never held across a turn or a wait.
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
            notes.rung.push_back(self.place);
            notes.task.take()
        };
        if let Some(task) = task {
            task.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::{pending, poll_fn},
        time::Duration,
    };

    use tokio::{sync::Notify, time::advance};

    use super::*;
    use crate::{
        clock::{Clock as _, ManualClock},
        wire::Voucher,
    };

    const MS: Duration = Duration::from_millis(1);

    fn users() -> (Arc<ManualClock>, Users) {
        let clock = ManualClock::at("2026-01-01T00:00:00Z".parse().unwrap());
        (Arc::clone(&clock), Users::new(Arc::new(Shares::new(clock))))
    }

    /// A connection that always has something to do, and notes each turn.
    fn flood(turns: &Arc<Mutex<Vec<&'static str>>>, who: &'static str) -> impl Future<Output = ()> + use<> {
        let turns = Arc::clone(turns);
        poll_fn(move |cx| {
            turns.lock().unwrap().push(who);
            cx.waker().wake_by_ref();
            Poll::Pending
        })
    }

    #[tokio::test]
    async fn whoever_floods_on_sixty_connections_has_one_turn_to_each_of_others() {
        // ATT-26, TM-20
        let turns = Arc::default();
        let (_clock, mut users) = users();
        for _ in 0..60 {
            users.admit(65_533, flood(&turns, "hostile"));
        }
        for uid in 1..=3 {
            users.admit(uid, flood(&turns, "other"));
        }
        for _ in 0..1000 {
            yield_now().await;
        }
        let turns = turns.lock().unwrap();
        let of = |who| turns.iter().filter(|turn| **turn == who).count();
        let (hostile, others) = (of("hostile"), of("other"));
        assert!(hostile > 100, "the control: {hostile}");
        assert!((2 * hostile..=4 * hostile).contains(&others), "{hostile} to {others} of three others");
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_is_granted_nothing_waits_when_it_has_had_its_share() {
        // ATT-26, TM-20
        let (clock, mut users) = users();
        let turns = Arc::<Mutex<Vec<&str>>>::default();
        let turn = |who| {
            let (turns, clock) = (Arc::clone(&turns), Arc::clone(&clock));
            move || {
                turns.lock().unwrap().push(who);
                clock.advance(MS / 10);
            }
        };
        for _ in 0..60 {
            let turn = turn("hostile");
            users.admit(65_533, async move {
                loop {
                    turn();
                    yield_now().await;
                }
            });
        }
        let voucher = Voucher::new(users.share(1000));
        voucher.vouch();
        let granted = turn("granted");
        users.admit(1000, async move {
            loop {
                granted();
                sleep(MS).await;
            }
        });
        let began = clock.boot();
        while clock.boot().since(began) < 2000 * MS {
            let before = clock.boot();
            yield_now().await;
            if clock.boot() == before {
                clock.advance(MS / 10);
            }
            advance(clock.boot().since(before)).await;
        }
        let turns = turns.lock().unwrap();
        let of = |who| turns.iter().filter(|turn| **turn == who).count();
        let (hostile, granted) = (of("hostile"), of("granted"));
        // 50 ms at once and a tenth of 2 s, less what waking some milliseconds late costs.
        assert!((1000..=2500).contains(&hostile), "{hostile} to {granted}");
        assert!(granted > 600, "{hostile} to {granted}");
    }

    #[tokio::test]
    async fn each_connection_of_a_user_has_its_turn() {
        let turns = Arc::default();
        let (_clock, mut users) = users();
        for who in ["a", "b", "c"] {
            users.admit(1, flood(&turns, who));
        }
        while turns.lock().unwrap().len() < 30 {
            yield_now().await;
        }
        let turns = turns.lock().unwrap();
        for three in turns[3..30].chunks(3) {
            let mut three = three.to_vec();
            three.sort_unstable();
            assert_eq!(three, ["a", "b", "c"], "{turns:?}");
        }
    }

    #[tokio::test]
    async fn what_ends_is_forgotten_and_whoever_comes_again_is_worked_on() {
        let (_clock, mut users) = users();
        let (bell, done) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        for _ in 0..100 {
            for _ in 0..3 {
                let bell = Arc::clone(&bell);
                users.admit(7, async move { bell.notified().await });
            }
            assert_eq!(users.connections(), 3);
            for _ in 0..3 {
                yield_now().await;
            }
            bell.notify_waiters();
            assert!(users.ended().await);
            assert!(users.is_empty() && users.boards.is_empty());
        }
        // One that comes after the last has ended, before that was heard of.
        users.admit(7, async {});
        for _ in 0..3 {
            yield_now().await;
        }
        let told = Arc::clone(&done);
        users.admit(7, async move { told.notify_one() });
        done.notified().await;
        assert!(users.ended().await && users.ended().await);
        assert!(!users.ended().await && users.boards.is_empty());
    }

    #[tokio::test]
    async fn who_is_dropped_lets_go_of_all() {
        struct Held(Arc<Notify>);
        impl Drop for Held {
            fn drop(&mut self) {
                self.0.notify_one();
            }
        }
        let dropped = Arc::new(Notify::new());
        let (_clock, mut users) = users();
        let held = Held(Arc::clone(&dropped));
        users.admit(1, async move {
            let _held = held;
            pending::<()>().await;
        });
        yield_now().await;
        users.abort();
        dropped.notified().await;
        while users.ended().await {}
        assert!(users.is_empty());
    }
}

use std::collections::HashSet;
use std::sync::{
    Mutex,
    atomic::{AtomicUsize, Ordering},
};

use jiff::Timestamp;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use super::*;
use crate::{
    clock::SeededDice,
    credential::{Binding, Bound, Form, Payload, Window},
    issuer::{
        Instance, Issued, Pending,
        terms::{LeaseTerms, Terms, Wants},
    },
    jose::Algorithm,
    keys::{Custody, KeySettings, Now},
    secret::Secret,
};

/// Time since boot that is tokio's paused time. The wall goes where it is pushed.
#[derive(Debug)]
pub(super) struct PausedClock {
    start: Instant,
    wall: Mutex<Timestamp>,
}

impl PausedClock {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { start: Instant::now(), wall: Mutex::new("2026-01-01T00:00:00Z".parse().unwrap()) })
    }

    pub(super) fn seconds(&self) -> f64 {
        self.start.elapsed().as_secs_f64()
    }

    /// The wall says so many days more.
    pub(super) fn push_wall(&self, days: i64) {
        let mut wall = self.wall.lock().unwrap();
        *wall += jiff::SignedDuration::from_hours(24 * days);
    }
}

impl Clock for PausedClock {
    fn wall(&self) -> Timestamp {
        *self.wall.lock().unwrap()
    }

    fn boot(&self) -> Boot {
        Boot::from_nanos(1_000_000_000) + self.start.elapsed()
    }
}

/// An issuer that keeps a diary.
#[derive(Debug)]
pub(super) struct FakeIssuer {
    clock: Arc<PausedClock>,
    /// How long it thinks.
    pub(super) latency: Mutex<Duration>,
    life: Duration,
    fails: Mutex<Vec<IssueError>>,
    always: Mutex<Option<IssueError>>,
    /// It is down for this credential alone.
    lacks: Mutex<Option<(&'static str, IssueError)>>,
    diary: Mutex<Vec<f64>>,
    pub(super) revoked: AtomicUsize,
    /// Whether it gives the same again, as for a lease that is renewed.
    pub(super) same: Mutex<bool>,
    /// What it binds tokens to, where an order wants that; the certificate is what it gives under the name of tls.
    pub(super) bound: Mutex<Option<Arc<dyn Signer>>>,
    pub(super) certificate: Mutex<Option<Arc<ClientCertificate>>>,
    /// Whether it does not even take tokens back.
    pub(super) deaf: std::sync::atomic::AtomicBool,
    serial: AtomicUsize,
    endpoints: Arc<Vec<Target>>,
}

impl FakeIssuer {
    pub(super) fn new(clock: &Arc<PausedClock>, life: u64) -> Arc<Self> {
        Arc::new(Self {
            clock: Arc::clone(clock),
            latency: Mutex::new(Duration::from_millis(50)),
            life: Duration::from_secs(life),
            fails: Mutex::default(),
            always: Mutex::default(),
            diary: Mutex::default(),
            revoked: AtomicUsize::new(0),
            same: Mutex::default(),
            lacks: Mutex::default(),
            bound: Mutex::default(),
            certificate: Mutex::default(),
            deaf: false.into(),
            endpoints: Arc::default(),
            serial: AtomicUsize::new(0),
        })
    }

    pub(super) fn diary(&self) -> Vec<f64> {
        self.diary.lock().unwrap().clone()
    }

    pub(super) fn down(&self, error: Option<IssueError>) {
        *self.always.lock().unwrap() = error;
    }

    pub(super) fn down_for(&self, credential: &'static str, error: IssueError) {
        *self.lacks.lock().unwrap() = Some((credential, error));
    }

    fn bound(&self, order: &Order) -> Bound {
        match order.binding {
            Binding::Bearer => Bound::Bearer,
            Binding::Dpop => Bound::Dpop(self.bound.lock().unwrap().clone().unwrap()),
            Binding::Mtls => Bound::Mtls(self.certificate.lock().unwrap().clone().unwrap()),
        }
    }
}

impl Issuer for FakeIssuer {
    fn issue<'a>(
        &'a self,
        order: &'a Order,
        _: &'a Signers,
        _: Option<&'a Credential>,
    ) -> Pending<'a, Issued> {
        self.diary.lock().unwrap().push(self.clock.seconds());
        Box::pin(async move {
            let latency = *self.latency.lock().unwrap();
            sleep(latency).await;
            let mut fails = self.fails.lock().unwrap();
            let lacks = self.lacks.lock().unwrap().clone();
            let lacks = lacks.filter(|(name, _)| **name == *order.credential).map(|(_, error)| error);
            let failed =
                if fails.is_empty() { self.always.lock().unwrap().clone() } else { Some(fails.remove(0)) };
            let failed = failed.or(lacks);
            let result = match failed {
                Some(error) => Err(error),
                None => {
                    let next = usize::from(!*self.same.lock().unwrap());
                    let serial = self.serial.fetch_add(next, Ordering::Relaxed);
                    let token = format!("token-{serial}");
                    let minted = minted(&token, self.clock.boot(), self.clock.wall(), self.life);
                    let minted = Credential { bound: self.bound(order), ..minted };
                    Ok(match order.terms.wants {
                        _ if &*order.credential == "tls" => {
                            let certificate = self.certificate.lock().unwrap().clone().unwrap();
                            let payload = Payload::Certificate { certificate, bundle: "".into() };
                            Credential { payload, ..minted }
                        }
                        Wants::Lease(_) => Credential {
                            payload: Payload::Values {
                                values: vec![],
                                // What is only read hangs on nothing.
                                handle: Secret::new(if order.credential == "app".into() {
                                    ""
                                } else {
                                    &token
                                }),
                            },
                            ..minted
                        },
                        _ => minted,
                    })
                }
            };
            Issued { result, facts: IssueFacts::default() }
        })
    }

    fn revoke<'a>(
        &'a self,
        _: &'a Order,
        _: &'a Signers,
        _: &'a Credential,
    ) -> Pending<'a, Result<(), IssueError>> {
        if self.deaf.load(Ordering::Relaxed) {
            return Box::pin(async { Err(retry(None)) });
        }
        self.revoked.fetch_add(1, Ordering::Relaxed);
        Box::pin(async { Ok(()) })
    }

    fn endpoints(&self) -> Arc<Vec<Target>> {
        Arc::clone(&self.endpoints)
    }
}

pub(super) fn retry(after: Option<u64>) -> IssueError {
    IssueError::Retry {
        reason: Reason::IssuerUnavailable,
        detail: "503".into(),
        after: after.map(Duration::from_secs),
    }
}

fn refused() -> IssueError {
    IssueError::Refused { reason: Reason::ScopeDenied, detail: "no".into() }
}

pub(super) fn keys() -> Keyring {
    let now = Now { wall: Timestamp::UNIX_EPOCH, boot: Boot::from_nanos(0) };
    let settings = KeySettings {
        custody: Custody::Memory,
        algorithm: Algorithm::EdDsa,
        client: true,
        rotation: Default::default(),
        dpop: ["corp".into()].into(),
    };
    Keyring::open(&[("payments".into(), settings)].into(), &Keyring::default(), now).unwrap()
}

pub(super) fn credential(from: Boot, life: Duration) -> Credential {
    minted("token", from, "2026-01-01T00:00:00Z".parse().unwrap(), life)
}

pub(super) fn minted(token: &str, from: Boot, wall: Timestamp, life: Duration) -> Credential {
    let token = crate::secret::Secret::new(token);
    Credential {
        fingerprint: token.fingerprint(),
        payload: Payload::Token(token),
        window: Window::opening(from, wall, life),
        bound: Bound::Bearer,
        scope: vec![],
        audience: None,
        jti: None,
        form: Form::default(),
    }
}

pub(super) fn order(issuer: &str, credential: &str) -> Order {
    Order {
        identity: "payments".into(),
        credential: credential.into(),
        issuer: issuer.into(),
        client_id: "payments".into(),
        resource: None,
        scope: ["read".into()].into(),
        require_aud: false,
        max_ttl: Duration::from_secs(3600),
        binding: Binding::Bearer,
        terms: Arc::default(),
        max_uses: None,
        instance: None,
    }
}

pub(super) struct House {
    pub(super) clock: Arc<PausedClock>,
    pub(super) corp: Arc<FakeIssuer>,
    other: Arc<FakeIssuer>,
    pub(super) broker: Broker,
    pub(super) keeper: tokio::task::JoinHandle<()>,
    pub(super) told: mpsc::UnboundedReceiver<News>,
}

pub(super) fn house() -> House {
    house_keeping(|_| None)
}

/// One that may keep what it could not finish.
fn house_keeping(pending: impl FnOnce(&Arc<PausedClock>) -> Option<PendingFile>) -> House {
    house_of(|_| {}, pending)
}

/// The same, with other settings.
pub(super) fn house_of(
    settings: impl FnOnce(&mut Books),
    pending: impl FnOnce(&Arc<PausedClock>) -> Option<PendingFile>,
) -> House {
    let clock = PausedClock::new();
    let (corp, other) = (FakeIssuer::new(&clock, 300), FakeIssuer::new(&clock, 300));
    let issuers: HashMap<Arc<str>, Arc<dyn Issuer>> = HashMap::from([
        ("corp".into(), Arc::clone(&corp) as Arc<dyn Issuer>),
        ("other".into(), Arc::clone(&other) as _),
    ]);
    let mut books = Books { issuers, keys: keys(), ..Books::default() };
    settings(&mut books);
    let pending = pending(&clock);
    let (telling, told) = mpsc::unbounded_channel();
    let (broker, keeper) = new(books, Arc::clone(&clock) as _, SeededDice::from_seed(3), telling, pending);
    House { clock, corp, other, broker, keeper: tokio::spawn(keeper.run()), told }
}

/// What became of the next credential that had to die; renewals are passed over.
pub(super) async fn next_revoked(told: &mut mpsc::UnboundedReceiver<News>) -> Revoked {
    loop {
        if let News::Revoked(revoked) = told.recv().await.unwrap() {
            return revoked;
        }
    }
}

impl House {
    pub(super) async fn get(&self, credential: &str) -> Result<Fetched, Failure> {
        self.get_within(credential, 30).await
    }

    async fn get_within(&self, credential: &str, patience: u64) -> Result<Fetched, Failure> {
        let order = order("corp", credential);
        self.broker.fetch_order(order, Duration::ZERO, Duration::from_secs(patience)).await
    }

    fn token(fetched: &Fetched) -> &str {
        fetched.credential.handle().expose_str().unwrap()
    }
}

#[tokio::test(start_paused = true)]
async fn five_hundred_callers_are_one_call_to_the_issuer() {
    // CLK-08
    let house = house();
    let mut callers = JoinSet::new();
    for _ in 0..500 {
        let broker = house.broker.clone();
        callers.spawn(async move {
            broker.fetch_order(order("corp", "a"), Duration::ZERO, Duration::from_secs(30)).await.unwrap();
        });
    }
    assert_eq!(callers.join_all().await.len(), 500);
    assert_eq!(house.corp.diary().len(), 1);
    assert_eq!(house.get("a").await.unwrap().source, Source::Cache);
}

#[tokio::test(start_paused = true)]
async fn one_that_an_api_does_not_take_is_replaced_by_one_order() {
    // MT-09
    let house = house();
    let renew = |rejected: &Arc<Credential>| {
        let (broker, rejected) = (house.broker.clone(), Arc::clone(rejected));
        async move { broker.renew_order(order("corp", "a"), &rejected, Duration::from_secs(10)).await }
    };
    let first = house.get("a").await.unwrap().credential;
    // Who comes while another is fetched waits for that; whoever only wants one has what there is.
    let (one, two, cached) = tokio::join!(renew(&first), renew(&first), house.get("a"));
    let (one, two) = (one.unwrap(), two.unwrap());
    assert_eq!((House::token(&one), House::token(&two)), ("token-1", "token-1"));
    assert_eq!(House::token(&cached.unwrap()), "token-0", "valid is not taken away before there is another");
    assert_eq!(House::token(&house.get("a").await.unwrap()), "token-1");
    // Who comes late with the first has the second, and nobody is asked.
    let late = renew(&first).await.unwrap();
    assert_eq!((House::token(&late), &late.source), ("token-1", &Source::Cache));
    assert_eq!(house.corp.diary().len(), 2);
    // An API that takes neither is no reason to ask for ever.
    for _ in 0..10 {
        assert_eq!(House::token(&renew(&one.credential).await.unwrap()), "token-1");
    }
    assert_eq!(house.corp.diary().len(), 2);
    sleep(Duration::from_secs(6)).await;
    assert_eq!(House::token(&renew(&one.credential).await.unwrap()), "token-2");
    // And what was rejected lives on for those that hold it, as anything that is replaced.
    let live = house.broker.shared.live.load();
    let before = live[&order("corp", "a")].before.iter().map(|before| before.fingerprint).collect::<Vec<_>>();
    assert_eq!(before, [one.credential.fingerprint, first.fingerprint]);
    assert_eq!(house.corp.revoked.load(Ordering::Relaxed), 0, "one API's word is not the issuer's");
}

#[tokio::test(start_paused = true)]
async fn one_that_an_api_does_not_take_stays_if_there_is_no_other() {
    // MT-09, CLK-07
    let house = house();
    let first = house.get("a").await.unwrap().credential;
    house.corp.down(Some(refused()));
    let renewed = house.broker.renew_order(order("corp", "a"), &first, Duration::from_secs(10)).await;
    assert!(matches!(renewed, Err(Failure::Issue { error: IssueError::Refused { .. }, .. })), "{renewed:?}");
    assert_eq!(House::token(&house.get("a").await.unwrap()), "token-0");
}

#[tokio::test(start_paused = true)]
async fn what_is_used_is_refreshed_once_around_two_thirds() {
    // CLK-08
    let house = house();
    house.get("a").await.unwrap();
    sleep(Duration::from_secs(160)).await;
    assert_eq!(house.corp.diary().len(), 1, "not before 0.57 of life");
    sleep(Duration::from_secs(75)).await;
    let diary = house.corp.diary();
    assert_eq!(diary.len(), 2, "and by 0.78 of life: {diary:?}");
    assert_eq!(House::token(&house.get("a").await.unwrap()), "token-1");
}

#[tokio::test(start_paused = true)]
async fn what_nobody_uses_lapses() {
    let house = house();
    house.get("a").await.unwrap();
    sleep(Duration::from_secs(280)).await;
    let refreshed = house.corp.diary().len();
    assert_eq!(refreshed, 2, "asked for once since it came, so refreshed once");
    sleep(Duration::from_secs(2000)).await;
    assert_eq!(house.corp.diary().len(), refreshed, "and then nobody asked");
    assert_eq!(house.broker.live_count(), 0);
}

#[tokio::test(start_paused = true)]
async fn valid_is_never_replaced_by_failed_and_expired_is_never_served() {
    // CLK-07
    let house = house();
    house.get("a").await.unwrap();
    house.corp.down(Some(retry(None)));
    sleep(Duration::from_secs(269)).await;
    assert_eq!(House::token(&house.get("a").await.unwrap()), "token-0", "served until its margin of 30 s");
    sleep(Duration::from_secs(2)).await;
    let failure = house.get_within("a", 1).await.unwrap_err();
    let Failure::Issue { error: IssueError::Retry { .. }, retry_after: Some(_), .. } = failure else {
        panic!("{failure:?}")
    };
    // And back, once the issuer is.
    house.corp.down(None);
    sleep(Duration::from_secs(61)).await;
    assert_eq!(House::token(&house.get("a").await.unwrap()), "token-1");
}

#[tokio::test(start_paused = true)]
async fn a_cached_fetch_waits_for_nobody() {
    let house = house();
    house.get("a").await.unwrap();
    house.corp.down(Some(retry(None)));
    sleep(Duration::from_secs(240)).await;
    let before = Instant::now();
    house.get("a").await.unwrap();
    assert_eq!(before.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn retry_after_binds_every_order_of_that_issuer_and_no_other() {
    // CLK-06
    let house = house();
    house.corp.fails.lock().unwrap().push(retry(Some(3)));
    let (one, two) = tokio::join!(house.get("a"), async {
        sleep(Duration::from_secs(1)).await;
        house.get("b").await
    });
    one.unwrap();
    two.unwrap();
    let diary = house.corp.diary();
    assert_eq!(diary[0], 0.0);
    assert!(diary[1..].iter().all(|at| *at >= 3.05), "{diary:?}");
    let other = house.broker.fetch_order(order("other", "a"), Duration::ZERO, Duration::from_secs(1)).await;
    other.unwrap();
    assert_eq!(house.other.diary().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn one_issuers_silence_never_delays_anothers_callers() {
    let clock = PausedClock::new();
    let silent = FakeIssuer::new(&clock, 300);
    *silent.latency.lock().unwrap() = Duration::from_secs(3600);
    let quick = FakeIssuer::new(&clock, 300);
    let issuers: HashMap<Arc<str>, Arc<dyn Issuer>> =
        HashMap::from([("corp".into(), silent as Arc<dyn Issuer>), ("other".into(), quick as _)]);
    let books = Books { issuers, keys: keys(), ..Books::default() };
    let (telling, _told) = mpsc::unbounded_channel();
    let (broker, keeper) = new(books, clock, SeededDice::from_seed(3), telling, None);
    tokio::spawn(keeper.run());
    let hung = broker.clone();
    let hung = tokio::spawn(async move {
        hung.fetch_order(order("corp", "a"), Duration::ZERO, Duration::from_secs(30)).await
    });
    let before = Instant::now();
    broker.fetch_order(order("other", "a"), Duration::ZERO, Duration::from_secs(30)).await.unwrap();
    assert_eq!(before.elapsed(), Duration::from_millis(50));
    // And the caller of the silent one is told when its patience ends.
    assert!(hung.await.unwrap().is_err());
    assert_eq!(before.elapsed().as_secs(), 30);
}

#[tokio::test(start_paused = true)]
async fn the_breaker_opens_after_five_and_lets_one_try_through() {
    // CLK-07, CLK-05
    let house = house();
    house.corp.down(Some(retry(None)));
    let failure = house.get_within("a", 600).await.unwrap_err();
    assert!(matches!(failure, Failure::Issue { attempts: 5, retry_after: Some(_), .. }), "{failure:?}");
    assert_eq!(house.corp.diary().len(), 5);
    let before = Instant::now();
    house.get_within("b", 600).await.unwrap_err();
    assert_eq!(before.elapsed(), Duration::ZERO, "answered at once while open");
    assert_eq!(house.corp.diary().len(), 5);
    house.corp.down(None);
    sleep(Duration::from_secs(61)).await;
    house.get("b").await.unwrap();
    assert_eq!(house.corp.diary().len(), 6);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_final_and_remembered_for_a_moment() {
    // TM-20, ER-05
    let house = house();
    house.corp.down(Some(refused()));
    for _ in 0..10 {
        let failure = house.get("a").await.unwrap_err();
        assert!(matches!(failure, Failure::Issue { error: IssueError::Refused { .. }, .. }));
    }
    assert_eq!(house.corp.diary().len(), 1);
    sleep(Duration::from_secs(6)).await;
    house.get("a").await.unwrap_err();
    assert_eq!(house.corp.diary().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn min_ttl_is_honoured_or_refused() {
    let house = house();
    let ask =
        |ttl| house.broker.fetch_order(order("corp", "a"), Duration::from_secs(ttl), Duration::from_secs(30));
    ask(200).await.unwrap();
    sleep(Duration::from_secs(120)).await;
    assert_eq!(House::token(&ask(200).await.unwrap()), "token-1", "180 s left were too few");
    assert_eq!(ask(301).await.unwrap_err(), Failure::TtlUnmet { life: Duration::from_secs(300) });
    assert_eq!(
        house.corp.diary().len(),
        2,
        "a wish that cannot be met costs no call while the credential is new"
    );
}

#[tokio::test(start_paused = true)]
async fn a_listener_hears_each_rotation_once_and_keeps_it_fresh() {
    let house = house();
    let mut subscription = house.broker.watch_order(order("corp", "a")).await.unwrap();
    house.get("a").await.unwrap();
    subscription.changed().await.unwrap();
    for rotation in 1..4 {
        subscription.changed().await.unwrap();
        assert_eq!(house.corp.diary().len(), rotation + 1);
    }
    assert!(timeout(Duration::from_secs(100), subscription.changed()).await.is_err(), "no rotation, no word");
    drop(subscription);
    sleep(Duration::from_secs(2000)).await;
    assert!(house.corp.diary().len() <= 6, "nobody listens, nobody asks: {:?}", house.corp.diary());
}

#[tokio::test(start_paused = true)]
async fn a_stepped_wall_clock_changes_nothing() {
    // CLK-01
    let house = house();
    house.get("a").await.unwrap();
    *house.clock.wall.lock().unwrap() = "2020-01-01T00:00:00Z".parse().unwrap();
    assert_eq!(house.get("a").await.unwrap().source, Source::Cache);
    house.corp.down(Some(retry(None)));
    sleep(Duration::from_secs(271)).await;
    house.get_within("a", 1).await.unwrap_err();
}

#[tokio::test(start_paused = true)]
async fn what_the_settings_dropped_is_forgotten_and_revoked() {
    let mut house = house();
    house.get("a").await.unwrap();
    house.get("b").await.unwrap();
    let mut listening = house.broker.watch_order(order("corp", "b")).await.unwrap();
    let books =
        Books { issuers: house.broker.shared.books.load().issuers.clone(), keys: keys(), ..Books::default() };
    house.broker.replace(books, |kept| *kept == order("corp", "a"));
    listening.changed().await.unwrap_err();
    assert_eq!(house.broker.live_count(), 1);
    assert_eq!(house.get("a").await.unwrap().source, Source::Cache);
    let revoked = next_revoked(&mut house.told).await;
    assert_eq!((&*revoked.order.credential, revoked.cause, revoked.error), ("b", Cause::Settings, None));
    assert_eq!(house.corp.revoked.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn what_was_ordered_a_moment_before_the_settings_changed_is_judged_by_them_too() {
    let house = house();
    let books = Books::clone(&house.broker.shared.books.load());
    let changed = async { house.broker.replace(books, |placed| *placed == order("corp", "a")) };
    let (stays, ends, ()) = tokio::join!(house.get("a"), house.get("b"), changed);
    stays.unwrap();
    assert!(ends.unwrap_err().to_string().contains("taken out of the settings"));
}

#[tokio::test(start_paused = true)]
async fn whoever_comes_while_an_issuer_is_left_alone_hears_the_cause() {
    let house = house();
    let clock = IssueError::Retry { reason: Reason::ClockUntrusted, detail: "an hour".into(), after: None };
    house.corp.down(Some(clock));
    let reason = |failure: Failure| match failure {
        Failure::Issue { error, .. } => error.reason(),
        other => panic!("{other}"),
    };
    assert_eq!(reason(house.get_within("a", 60).await.unwrap_err()), Reason::ClockUntrusted);
    let asked = house.corp.diary().len();
    assert_eq!(reason(house.get_within("b", 1).await.unwrap_err()), Reason::ClockUntrusted);
    assert_eq!(house.corp.diary().len(), asked, "it is left alone");
}

/// An order of one process.
fn of_process(pid: u32) -> Order {
    Order { instance: Some(Instance { pid, start: 7 }), ..order("corp", "a") }
}

#[tokio::test(start_paused = true)]
async fn what_was_one_processs_dies_with_it() {
    // S37, ATT-09
    let mut house = house();
    let patience = Duration::from_secs(30);
    let get = async |house: &House, pid| {
        house
            .broker
            .fetch_order(of_process(pid), Duration::ZERO, patience)
            .await
            .unwrap()
            .credential
            .fingerprint
    };
    let (one, other) = (get(&house, 1).await, get(&house, 2).await);
    assert_ne!(one, other, "each has its own");
    let instance = |pid| Which::Instance(Instance { pid, start: 7 });
    assert_eq!(house.broker.retire(instance(1), Cause::Exited).await, Ok(1));
    let revoked = next_revoked(&mut house.told).await;
    assert_eq!((revoked.credential.fingerprint, revoked.cause, revoked.error), (one, Cause::Exited, None));
    assert!(revoked.took < Duration::from_secs(1));
    assert_eq!(get(&house, 2).await, other, "nobody else's");
    // One that exits while its credential is on the way: what comes is revoked too.
    let broker = house.broker.clone();
    let asked =
        tokio::spawn(async move { broker.fetch_order(of_process(3), Duration::ZERO, patience).await });
    sleep(Duration::from_millis(20)).await;
    house.broker.retire(instance(3), Cause::Exited).await.unwrap();
    asked.await.unwrap().unwrap_err();
    assert_eq!(next_revoked(&mut house.told).await.cause, Cause::Unclaimed);
}

#[tokio::test(start_paused = true)]
async fn an_operator_ends_them_and_whoever_may_gets_others() {
    // KEY-07, GA-10
    let mut house = house();
    let first = house.get("a").await.unwrap().credential.fingerprint;
    let mut listening = house.broker.watch_order(order("corp", "a")).await.unwrap();
    let all = Which::Identity("payments".into(), None);
    assert_eq!(house.broker.retire(all, Cause::Operator).await, Ok(1));
    let revoked = next_revoked(&mut house.told).await;
    assert_eq!((revoked.credential.fingerprint, revoked.cause), (first, Cause::Operator));
    listening.changed().await.unwrap();
    assert_ne!(house.get("a").await.unwrap().credential.fingerprint, first);
    let none = Which::Identity("payments".into(), Some("b".into()));
    assert_eq!(house.broker.retire(none, Cause::Operator).await, Ok(0));
}

#[tokio::test(start_paused = true)]
async fn what_was_ordered_before_the_end_is_not_used_after_it() {
    let mut house = house();
    let broker = house.broker.clone();
    let asked = tokio::spawn(async move {
        broker.fetch_order(order("corp", "a"), Duration::ZERO, Duration::from_secs(30)).await
    });
    sleep(Duration::from_millis(20)).await;
    house.broker.retire(Which::Identity("payments".into(), None), Cause::Operator).await.unwrap();
    let given = asked.await.unwrap().unwrap().credential.fingerprint;
    let revoked = next_revoked(&mut house.told).await;
    assert_eq!(revoked.cause, Cause::Unclaimed);
    assert_ne!(given, revoked.credential.fingerprint);
    assert_eq!(house.corp.diary().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_identity_that_is_switched_off_gets_no_other_whoever_waits() {
    // GA-10
    let mut house = house();
    house.get("b").await.unwrap();
    let mut listening = house.broker.watch_order(order("corp", "b")).await.unwrap();
    let broker = house.broker.clone();
    let asked = tokio::spawn(async move {
        broker.fetch_order(order("corp", "a"), Duration::ZERO, Duration::from_secs(30)).await
    });
    sleep(Duration::from_millis(20)).await;
    assert_eq!(house.broker.retire(Which::Disabled("payments".into()), Cause::Operator).await, Ok(1));
    asked.await.unwrap().unwrap_err();
    listening.changed().await.unwrap_err();
    let causes = [next_revoked(&mut house.told).await.cause, next_revoked(&mut house.told).await.cause];
    assert_eq!(causes, [Cause::Operator, Cause::Unclaimed], "what was on its way is revoked too");
    sleep(Duration::from_secs(600)).await;
    assert_eq!((house.corp.diary().len(), house.broker.live_count()), (2, 0), "none is fetched for it");
}

#[tokio::test(start_paused = true)]
async fn what_was_on_its_way_when_it_ended_is_not_used_once_it_is_allowed_again() {
    // GA-10, S37: a lease that was being renewed when it was revoked is dead, whatever its issuer said before that.
    let mut house = house();
    let patience = Duration::from_secs(30);
    let get =
        |broker: Broker| async move { broker.fetch_order(leased(None), Duration::ZERO, patience).await };
    let first = tokio::spawn(get(house.broker.clone()));
    sleep(Duration::from_millis(20)).await;
    house.broker.retire(Which::Disabled("payments".into()), Cause::Operator).await.unwrap();
    first.await.unwrap().unwrap_err();
    // Switched on again, before the answer has come.
    let given = get(house.broker.clone()).await.unwrap().credential.fingerprint;
    let revoked = timeout(patience, next_revoked(&mut house.told)).await.unwrap();
    assert_eq!(revoked.cause, Cause::Unclaimed);
    assert_ne!(given, revoked.credential.fingerprint);
    assert_eq!(house.corp.diary().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn what_an_issuer_made_for_who_is_gone_is_told_all_the_same() {
    // AUD-02: a credential that is nowhere on record.
    let mut house = house();
    house.get_within("a", 0).await.unwrap_err();
    sleep(Duration::from_secs(1)).await;
    assert_eq!(house.corp.diary().len(), 1);
    let Some(News::Renewed(made)) = house.told.recv().await else { panic!("nothing is told") };
    assert_eq!((&*made.order.credential, made.result.is_ok()), ("a", true));
    // Where one of two has gone, the other's record tells.
    let (gone, stays) = tokio::join!(house.get_within("b", 0), house.get("b"));
    assert!(gone.is_err() && stays.is_ok());
    sleep(Duration::from_secs(1)).await;
    assert!(house.told.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn whoever_gives_one_back_and_hangs_up_has_given_it_back() {
    // OA-43, TM-08
    let mut house = house();
    let held = house.get("a").await.unwrap().credential;
    house.corp.deaf.store(true, Ordering::Relaxed);
    let (done, tried) = oneshot::channel();
    house.broker.sender.send(Request::Release(order("corp", "a"), done)).unwrap();
    drop(tried);
    // Before the issuer hears of it, it is on record that it waits.
    let waits = next_revoked(&mut house.told).await;
    assert_eq!((waits.cause, waits.credential.fingerprint), (Cause::GivenBack, held.fingerprint));
    assert!(waits.waits && house.broker.live_count() == 0);
    house.corp.deaf.store(false, Ordering::Relaxed);
    let revoked = next_revoked(&mut house.told).await;
    assert_eq!((revoked.cause, revoked.error, revoked.waits), (Cause::GivenBack, None, false));
    // Of two that give it back at once, one hears that there is nothing.
    house.get("a").await.unwrap();
    let [one, two] = [(); 2].map(|()| {
        let (done, tried) = oneshot::channel();
        house.broker.sender.send(Request::Release(order("corp", "a"), done)).unwrap();
        tried
    });
    assert!(one.await.unwrap().is_ok() && two.await.is_err());
}

#[tokio::test(start_paused = true)]
async fn what_is_given_back_while_it_is_renewed_does_not_come_back() {
    // OA-43, S37
    let mut house = house();
    *house.corp.same.lock().unwrap() = true;
    let patience = Duration::from_secs(30);
    let get = |broker: Broker, least| async move {
        broker.fetch_order(leased(None), Duration::from_secs(least), patience).await
    };
    let first = get(house.broker.clone(), 0).await.unwrap().credential;
    sleep(Duration::from_secs(20)).await;
    // Whoever wants more life has it renewed.
    let renewing = tokio::spawn(get(house.broker.clone(), 295));
    sleep(Duration::from_millis(20)).await;
    house.broker.sender.send(Request::Release(leased(None), oneshot::channel().0)).unwrap();
    *house.corp.same.lock().unwrap() = false;
    sleep(Duration::from_secs(1)).await;
    let revoked = next_revoked(&mut house.told).await;
    assert_eq!((revoked.cause, revoked.credential.fingerprint), (Cause::GivenBack, first.fingerprint));
    let revoked = timeout(patience, next_revoked(&mut house.told)).await.unwrap();
    assert_eq!((revoked.cause, revoked.error), (Cause::Unclaimed, None), "what it was renewed to");
    let given = renewing.await.unwrap().unwrap().credential.fingerprint;
    assert_ne!(given, revoked.credential.fingerprint);
    assert_eq!(house.corp.diary().len(), 3, "whoever waits gets another");
}

#[tokio::test]
async fn an_issuers_endpoints_stay_its_own_over_a_reload() {
    // DPOP-20
    let clock = PausedClock::new();
    let target = |path: &str| Target::parse(&format!("https://idp.corp.example{path}")).unwrap();
    let books = |told: &[&str]| {
        let mut corp = FakeIssuer::new(&clock, 300);
        Arc::get_mut(&mut corp).unwrap().endpoints = Arc::new(told.iter().map(|path| target(path)).collect());
        let issuers = HashMap::from([("corp".into(), corp as Arc<dyn Issuer>)]);
        Books { issuers, keys: keys(), ..Books::default() }
    };
    let (telling, _told) = mpsc::unbounded_channel();
    let dice = SeededDice::from_seed(3);
    let (broker, _keeper) = new(books(&["/token"]), Arc::clone(&clock) as _, dice, telling, None);
    // An issuer that was made anew has not been asked yet what it has: not once, and not twice.
    for _ in 0..2 {
        broker.replace(books(&[]), |_| false);
        assert!(broker.is_issuers(&target("/token")) && !broker.is_issuers(&target("/orders")));
    }
    broker.replace(books(&["/oauth/token"]), |_| false);
    broker.replace(books(&[]), |_| false);
    assert!(broker.is_issuers(&target("/oauth/token")) && !broker.is_issuers(&target("/token")));
}

#[tokio::test(start_paused = true)]
async fn what_is_handed_out_no_more_is_held_until_it_ends() {
    // TM-08
    let mut house = house();
    let held = house.get("a").await.unwrap().credential.fingerprint;
    house.corp.down(Some(retry(None)));
    sleep(Duration::from_secs(280)).await;
    assert_eq!(house.broker.live_count(), 0, "its margin of 30 s has begun");
    house.get_within("a", 1).await.unwrap_err();
    assert_eq!(house.broker.retire(Which::Identity("payments".into(), None), Cause::Operator).await, Ok(1));
    assert_eq!(next_revoked(&mut house.told).await.credential.fingerprint, held);
    // One that nobody ends is forgotten with its last moment.
    house.corp.down(None);
    sleep(Duration::from_secs(60)).await;
    house.get("a").await.unwrap();
    house.corp.down(Some(retry(None)));
    sleep(Duration::from_secs(310)).await;
    assert_eq!(house.broker.retire(Which::Identity("payments".into(), None), Cause::Operator).await, Ok(0));
}

#[tokio::test(start_paused = true)]
async fn one_that_may_be_used_once_is_used_once() {
    // S29
    let house = house();
    let once = || Order { max_uses: Some(1), ..order("corp", "a") };
    let mut callers = JoinSet::new();
    for _ in 0..20 {
        let broker = house.broker.clone();
        callers.spawn(async move {
            let fetched = broker.fetch_order(once(), Duration::ZERO, Duration::from_secs(30)).await.unwrap();
            fetched.credential.fingerprint.to_string()
        });
    }
    let given: HashSet<String> = callers.join_all().await.into_iter().collect();
    assert_eq!((given.len(), house.corp.diary().len()), (20, 20));
    sleep(Duration::from_secs(250)).await;
    assert_eq!(house.corp.diary().len(), 20, "none is fetched for nobody");
}

#[tokio::test(start_paused = true)]
async fn revocations_that_wait_survive_a_restart_and_are_no_clear_text() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("revocations");
    let file = |_: &Arc<PausedClock>| {
        let key = crate::keys::SealingKey::of(&crate::secret::Secret::new("seed"));
        Some(PendingFile::new(path.clone(), key, SeededDice::from_seed(9)))
    };
    let house = house_keeping(file);
    let token = house.get("a").await.unwrap().credential.fingerprint;
    house.corp.deaf.store(true, Ordering::Relaxed);
    house.broker.retire(Which::Identity("payments".into(), None), Cause::Operator).await.unwrap();
    sleep(Duration::from_secs(5)).await;
    house.keeper.abort();
    let kept = std::fs::read(&path).unwrap();
    assert!(!kept.windows(5).any(|window| window == b"token" || window == b"payme"), "sealed");

    let mut next = house_keeping(file);
    let revoked = next_revoked(&mut next.told).await;
    assert_eq!(
        (revoked.credential.fingerprint, revoked.cause, revoked.error),
        (token, Cause::Operator, None)
    );
    assert_eq!(next.corp.revoked.load(Ordering::Relaxed), 1);
    sleep(Duration::from_secs(1)).await;
    assert!(!path.exists(), "nothing waits, so nothing is kept");
    // Where it cannot be written, it is tried until it can.
    std::fs::create_dir(path.with_extension("new")).unwrap();
    let full = house_keeping(file);
    full.get("a").await.unwrap();
    full.corp.deaf.store(true, Ordering::Relaxed);
    full.broker.retire(Which::Identity("payments".into(), None), Cause::Operator).await.unwrap();
    sleep(Duration::from_secs(2)).await;
    assert!(!path.exists());
    std::fs::remove_dir(path.with_extension("new")).unwrap();
    sleep(Duration::from_secs(2)).await;
    assert!(path.exists(), "though nothing happened since");
    full.keeper.abort();
    // What was changed on the way is not believed.
    std::fs::write(&path, &kept[1..]).unwrap();
    let mut third = house_keeping(file);
    third.get("a").await.unwrap();
    assert!(third.told.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn an_unknown_issuer_is_a_setting_to_mend() {
    let house = house();
    let failure = house.broker.fetch_order(order("gone", "a"), Duration::ZERO, Duration::from_secs(1)).await;
    let Err(Failure::Issue { error: IssueError::Misconfigured { .. }, .. }) = failure else {
        panic!("{failure:?}")
    };
}

#[tokio::test(start_paused = true)]
async fn the_keeper_ends_with_the_last_broker() {
    let House { broker, keeper, told: _told, .. } = house();
    drop(broker);
    timeout(Duration::from_secs(1), keeper).await.unwrap().unwrap();
}

/// A lease, for one process or for all of an identity.
fn leased(instance: Option<Instance>) -> Order {
    let wants = Wants::Lease(LeaseTerms { at: "database/creds/a".into(), fields: vec![], unleased: false });
    let terms = Arc::new(Terms { wants, ..Terms::default() });
    Order { instance, terms, ..order("corp", "database") }
}

#[tokio::test(start_paused = true)]
async fn a_lease_lives_as_long_as_the_process_that_asked_for_it_once() {
    // S37
    let house = house();
    *house.corp.same.lock().unwrap() = true;
    let (clock, process) = (&house.clock, Instance { pid: 7, start: 1 });
    let get = |order: Order| house.broker.fetch_order(order, Duration::ZERO, Duration::from_secs(5));
    let first = get(leased(Some(process))).await.unwrap();
    let shared = get(leased(None)).await.unwrap();
    let mut listening = house.broker.watch_order(leased(Some(process))).await.unwrap();
    drop(house.broker.watch_order(leased(Some(process))).await.unwrap());
    listening.catch_up();
    let heard = tokio::spawn(async move { listening.changed().await });
    sleep(Duration::from_secs(3000)).await;
    let asked = house.corp.diary().len();
    assert!(
        (12..=20).contains(&asked),
        "ten lives of one, and two of what nobody asks for any more: {asked}"
    );
    let live = house.broker.shared.live.load();
    let kept = &live[&leased(Some(process))];
    assert_eq!(kept.credential.fingerprint, first.credential.fingerprint);
    assert!(clock.boot() < kept.serve_until && kept.before.is_empty(), "it is one and the same");
    assert!(!live.contains_key(&leased(None)), "what all share lapses when nobody asks");
    assert!(!heard.is_finished(), "a lease that goes on is no news");
    heard.abort();
    drop((live, shared));

    // Other values are news, kept from then on only if somebody asks for them.
    sleep(Duration::from_secs(1)).await;
    *house.corp.same.lock().unwrap() = false;
    sleep(Duration::from_secs(300)).await;
    let after = house.corp.diary().len();
    sleep(Duration::from_secs(1200)).await;
    assert_eq!(house.corp.diary().len(), after, "nobody has them");
    let again = get(leased(Some(process))).await.unwrap();
    assert_ne!(again.credential.fingerprint, first.credential.fingerprint);
    *house.corp.same.lock().unwrap() = true;
    let ended = house.broker.retire(Which::Instance(process), Cause::Exited).await.unwrap();
    assert_eq!(ended, 1);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(house.corp.revoked.load(Ordering::Relaxed), 1);
    let after = house.corp.diary().len();
    sleep(Duration::from_secs(3000)).await;
    assert_eq!(house.corp.diary().len(), after, "and no other comes after it");
}

#[tokio::test(start_paused = true)]
async fn what_was_only_read_is_dropped_and_nobody_says_that_it_was_revoked() {
    // S37
    let mut house = house();
    let process = Instance { pid: 7, start: 1 };
    for credential in ["app", "database"] {
        let order = Order { credential: credential.into(), ..leased(Some(process)) };
        house.broker.fetch_order(order, Duration::ZERO, Duration::from_secs(5)).await.unwrap();
    }
    assert_eq!(house.broker.retire(Which::Instance(process), Cause::Exited).await.unwrap(), 2);
    assert_eq!(&*next_revoked(&mut house.told).await.order.credential, "database");
    sleep(Duration::from_secs(5)).await;
    assert_eq!(house.corp.revoked.load(Ordering::Relaxed), 1);
    assert!(house.told.try_recv().is_err());
}

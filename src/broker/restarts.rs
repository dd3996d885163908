//! What one agent leaves and the next takes up: the same clock and the same issuer, two shelves.

use tokio::time::sleep;

use super::{
    tests::{FakeIssuer, PausedClock, keys, next_revoked, order, retry},
    *,
};
use crate::{
    clock::SeededDice,
    credential::{Binding, Payload},
    issuer::{
        Instance,
        terms::{LeaseTerms, Terms, Wants},
    },
    keys::SealingKey,
    secret::Secret,
};

const BOOT: &str = "8d1b0c3e-0000-4000-8000-000000000001";

struct Stage {
    clock: Arc<PausedClock>,
    corp: Arc<FakeIssuer>,
    keys: Keyring,
    dir: tempfile::TempDir,
}

/// One agent.
struct Agent {
    broker: Broker,
    told: mpsc::UnboundedReceiver<News>,
    keeper: tokio::task::JoinHandle<()>,
}

impl Stage {
    fn new() -> Self {
        let clock = PausedClock::new();
        let corp = FakeIssuer::new(&clock, 300);
        Self { clock, corp, keys: keys(), dir: tempfile::tempdir().unwrap() }
    }

    fn agent(&self) -> Agent {
        self.agent_of(BOOT, "seed")
    }

    fn agent_of(&self, boot: &str, seed: &str) -> Agent {
        let issuers = HashMap::from([("corp".into(), Arc::clone(&self.corp) as Arc<dyn Issuer>)]);
        let books = Books { issuers, keys: self.keys.clone(), ..Books::default() };
        let (telling, told) = mpsc::unbounded_channel();
        let (broker, keeper) =
            new(books, Arc::clone(&self.clock) as _, SeededDice::from_seed(3), telling, None);
        let key = SealingKey::of(&Secret::new(seed));
        let file =
            StowFile::new(self.dir.path().join("live"), key, boot.to_owned(), SeededDice::from_seed(9));
        Agent { broker, told, keeper: tokio::spawn(keeper.stowing(file).run()) }
    }
}

impl Agent {
    async fn get(&self, order: Order) -> Result<Fetched, Failure> {
        self.broker.fetch_order(order, Duration::ZERO, Duration::from_secs(10)).await
    }

    /// Stops in order. How many orders it left.
    async fn stops(self) -> usize {
        let left = self.broker.leave().await;
        self.keeper.abort();
        left
    }
}

fn once() -> Order {
    Order { max_uses: Some(2), ..order("corp", "once") }
}

/// A lease of one process.
fn leased() -> Order {
    let lease = LeaseTerms { at: "database/creds/payments".into(), fields: vec![], unleased: false };
    let terms = Terms { wants: Wants::Lease(lease), ..Terms::default() };
    let instance = Some(Instance { pid: 7, start: 77 });
    Order { instance, terms: Arc::new(terms), ..order("corp", "database") }
}

#[tokio::test(start_paused = true)]
async fn a_restart_with_the_issuer_down_costs_nobody_a_credential() {
    let stage = Stage::new();
    let first = stage.agent();
    let shared = first.get(order("corp", "a")).await.unwrap().credential;
    let used = first.get(once()).await.unwrap().credential;
    let lease = first.get(leased()).await.unwrap().credential;
    stage.corp.down(Some(retry(None)));
    assert_eq!(first.stops().await, 3);
    let kept = std::fs::read(stage.dir.path().join("live")).unwrap();
    assert!(!kept.windows(5).any(|window| window == b"token" || window == b"payme"), "sealed");

    let asked = stage.corp.diary().len();
    let mut next = stage.agent();
    for (order, held) in [(order("corp", "a"), &shared), (once(), &used), (leased(), &lease)] {
        let fetched = next.get(order).await.unwrap();
        assert_eq!(fetched.source, Source::Cache);
        assert_eq!(fetched.credential.fingerprint, held.fingerprint);
        assert_eq!(fetched.credential.window.until, held.window.until);
        let handle = |credential: &Credential| credential.handle().expose_str().unwrap().to_owned();
        assert_eq!(handle(&fetched.credential), handle(held));
    }
    assert_eq!(stage.corp.diary().len(), asked, "nothing was asked for");
    // S29: it may be used twice, and was.
    next.get(once()).await.unwrap_err();
    // Whoever holds it is told of, so that it dies with its process and raises no alarm.
    let mut told = vec![];
    while let Ok(News::TakenUp(order, held)) = next.told.try_recv() {
        told.push((order.instance, held[0].fingerprint));
    }
    assert!(told.contains(&(leased().instance, lease.fingerprint)) && told.len() == 3, "{told:?}");
    assert!(!stage.dir.path().join("live").exists(), "it is taken up once");
}

#[tokio::test(start_paused = true)]
async fn what_is_under_way_at_a_stop_is_waited_for_a_moment_and_left() {
    for (latency, left) in [(50, 1), (900, 1), (1100, 0)] {
        let stage = Stage::new();
        *stage.corp.latency.lock().unwrap() = Duration::from_millis(latency);
        let mut first = stage.agent();
        // It is asked, and whoever wanted it goes away.
        let asking = first.broker.fetch_order(order("corp", "a"), Duration::ZERO, Duration::from_secs(10));
        tokio::time::timeout(Duration::from_millis(1), asking).await.unwrap_err();
        let began = stage.clock.boot();
        assert_eq!(first.broker.leave().await, left, "{latency} ms");
        assert!(stage.clock.boot().since(began) <= Duration::from_millis(1002));
        if left > 0 {
            // It is on record although nobody was there to hear of it.
            assert!(matches!(first.told.try_recv(), Ok(News::Renewed(_))));
        }
        // Nothing is asked for any more.
        let none = first.broker.fetch_order(order("corp", "b"), Duration::ZERO, Duration::from_secs(5));
        assert!(none.await.is_err());
        first.keeper.abort();
        assert_eq!(stage.corp.diary().len(), 1);
        *stage.corp.latency.lock().unwrap() = Duration::from_millis(50);
        let source = stage.agent().get(order("corp", "a")).await.unwrap().source;
        assert_eq!(source == Source::Cache, left > 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_goes_on_over_a_restart_as_the_same_one() {
    let stage = Stage::new();
    *stage.corp.same.lock().unwrap() = true;
    let first = stage.agent();
    let lease = first.get(leased()).await.unwrap().credential;
    first.stops().await;
    let next = stage.agent();
    sleep(Duration::from_secs(290)).await;
    // Nobody asked again, and it was renewed: its process lives.
    let goes_on = next.get(leased()).await.unwrap().credential;
    assert!(lease.goes_on_as(&goes_on) && goes_on.window.until > lease.window.until);
    assert_eq!(stage.corp.revoked.load(std::sync::atomic::Ordering::Relaxed), 0);
}

#[tokio::test(start_paused = true)]
async fn what_was_left_counts_for_the_same_boot_key_and_hour_only() {
    // CLK-01
    for (boot, seed, days) in [("another", "seed", 0), (BOOT, "seeds", 0), (BOOT, "seed", 1)] {
        let stage = Stage::new();
        let first = stage.agent();
        first.get(order("corp", "a")).await.unwrap();
        first.stops().await;
        stage.corp.down(Some(retry(None)));
        stage.clock.push_wall(days);
        let next = stage.agent_of(boot, seed);
        next.get(order("corp", "a")).await.unwrap_err();
        assert!(!stage.dir.path().join("live").exists());
    }
    // A clock that was set back makes nothing live longer.
    let stage = Stage::new();
    let first = stage.agent();
    let held = first.get(order("corp", "a")).await.unwrap().credential;
    first.stops().await;
    stage.clock.push_wall(-1);
    let fetched = stage.agent().get(order("corp", "a")).await.unwrap();
    assert_eq!((fetched.source, fetched.credential.window.until), (Source::Cache, held.window.until));
}

#[tokio::test(start_paused = true)]
async fn what_is_granted_no_more_dies_at_the_start() {
    let stage = Stage::new();
    let first = stage.agent();
    first.get(order("corp", "a")).await.unwrap();
    first.get(order("corp", "b")).await.unwrap();
    first.stops().await;
    let mut next = stage.agent();
    next.broker.settle(|kept| *kept == order("corp", "a"));
    let revoked = next_revoked(&mut next.told).await;
    assert_eq!((&*revoked.order.credential, revoked.cause, revoked.error), ("b", Cause::Settings, None));
    assert_eq!(next.get(order("corp", "a")).await.unwrap().source, Source::Cache);
}

#[tokio::test(start_paused = true)]
async fn what_is_bound_comes_back_with_its_key_or_not_at_all() {
    // DPOP-14, MT-08
    let bound = || Order { binding: Binding::Dpop, ..order("corp", "bound") };
    for same in [true, false] {
        let mut stage = Stage::new();
        let first = stage.agent();
        let signer = stage.keys.signer(&"payments".into(), Purpose::Dpop("corp".into())).unwrap();
        *stage.corp.bound.lock().unwrap() = Some(signer);
        first.get(bound()).await.unwrap();
        first.stops().await;
        stage.corp.down(Some(retry(None)));
        if !same {
            stage.keys = keys();
        }
        let next = stage.agent().get(bound()).await;
        assert_eq!(next.is_ok(), same);
        if let Ok(fetched) = next {
            assert_eq!(fetched.credential.binding(), Binding::Dpop);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_bound_to_a_certificate_waits_for_it() {
    // MT-08: the certificate is kept elsewhere, and on the shelf only once it was ordered.
    let mut stage = Stage::new();
    stage.keys = keys();
    let bound = || Order { binding: Binding::Mtls, ..order("corp", "bound") };
    let shown = || order("corp", "tls");
    let certificate = Arc::new(super::tended::certificate());
    let showing = |agent: &Agent| {
        agent.broker.shared.books.rcu(|books| Books {
            shown: HashMap::from([("payments".into(), shown())]),
            ..Books::clone(books)
        });
    };
    let first = stage.agent();
    showing(&first);
    *stage.corp.certificate.lock().unwrap() = Some(Arc::clone(&certificate));
    let held = first.get(bound()).await.unwrap().credential;
    assert_eq!(held.binding(), Binding::Mtls);
    first.stops().await;
    // One that stops before it has the certificate leaves what it found.
    assert_eq!(stage.agent().stops().await, 1);
    // The issuer of tokens is down; that of certificates has what it kept.
    stage.corp.down_for("bound", retry(None));
    let next = stage.agent();
    showing(&next);
    let fetched = next.get(bound()).await.unwrap();
    assert_eq!((fetched.source, fetched.credential.fingerprint), (Source::Cache, held.fingerprint));
    assert!(matches!(&fetched.credential.payload, Payload::Token(_)));
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_its_certificate_is_revoked_with_the_rest_and_does_not_come_back() {
    // GA-10
    for which in [Which::Identity("payments".into(), None), Which::Disabled("payments".into())] {
        let stage = Stage::new();
        let bound = || Order { binding: Binding::Mtls, ..order("corp", "bound") };
        let showing = |agent: &Agent| {
            agent.broker.shared.books.rcu(|books| Books {
                shown: HashMap::from([("payments".into(), order("corp", "tls"))]),
                ..Books::clone(books)
            });
        };
        *stage.corp.certificate.lock().unwrap() = Some(Arc::new(super::tended::certificate()));
        let first = stage.agent();
        showing(&first);
        let held = first.get(bound()).await.unwrap().credential;
        first.stops().await;
        // An operator acts before the certificate is on the shelf.
        let mut next = stage.agent();
        assert_eq!(next.broker.retire(which, Cause::Operator).await.unwrap(), 1);
        let revoked = next_revoked(&mut next.told).await;
        assert_eq!((revoked.cause, revoked.credential.fingerprint), (Cause::Operator, held.fingerprint));
        stage.corp.down_for("bound", retry(None));
        showing(&next);
        next.get(order("corp", "tls")).await.unwrap();
        next.get(bound()).await.unwrap_err();
    }
}

#[tokio::test(start_paused = true)]
async fn what_an_issuer_made_is_not_shown_to_another_that_has_its_name_now() {
    for (who, is_same) in [("https://a.example", true), ("https://b.example", false)] {
        let stage = Stage::new();
        let of = |agent: &Agent, who: &str| {
            let who = HashMap::from([("corp".into(), who.to_owned())]);
            agent.broker.shared.books.rcu(|books| Books { who: who.clone(), ..Books::clone(books) });
        };
        let first = stage.agent();
        of(&first, "https://a.example");
        first.get(order("corp", "a")).await.unwrap();
        first.stops().await;
        let next = stage.agent();
        of(&next, who);
        let fetched = next.get(order("corp", "a")).await.unwrap();
        assert_eq!(fetched.source == Source::Cache, is_same);
        assert_eq!(stage.corp.revoked.load(std::sync::atomic::Ordering::Relaxed), 0);
    }
}

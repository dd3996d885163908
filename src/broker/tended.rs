//! What is kept fresh without being asked for, on a virtual clock: certificates of many identities, at a CA that is not always
//! there.

use std::sync::{
    Mutex,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use tokio::time::sleep;

use super::{
    tests::{PausedClock, minted, order},
    *,
};
use crate::{
    clock::{SeededDice, fraction},
    credential::Payload,
    issuer::{
        Advice, Issued, Pending,
        terms::{ClientAuth, Terms},
    },
    keys::{Certificates, ClientCertificate, Enrolment, KeyKind, Subject},
};

/// A CA that is up or down.
#[derive(Debug)]
struct Ca {
    clock: Arc<PausedClock>,
    life: Duration,
    up: AtomicBool,
    refuses: AtomicBool,
    busy: AtomicUsize,
    busiest: AtomicUsize,
    /// When it would have them renewed, from when it gave them on, and how often it was asked.
    window: Mutex<Option<(i64, i64)>>,
    advised: AtomicUsize,
    /// When each was asked for, and whether it was given.
    diary: Mutex<Vec<(f64, bool)>>,
}

impl Issuer for Ca {
    fn issue<'a>(
        &'a self,
        order: &'a Order,
        _: &'a Signers,
        _: Option<&'a Credential>,
    ) -> Pending<'a, Issued> {
        Box::pin(async move {
            let busy = self.busy.fetch_add(1, Ordering::Relaxed) + 1;
            self.busiest.fetch_max(busy, Ordering::Relaxed);
            sleep(Duration::from_millis(200)).await;
            self.busy.fetch_sub(1, Ordering::Relaxed);
            let up = self.up.load(Ordering::Relaxed);
            self.diary.lock().unwrap().push((self.clock.seconds(), up));
            let given = || {
                let (boot, wall) = (self.clock.boot(), self.clock.wall());
                let minted = minted(&order.credential, boot, wall, self.life);
                if self.window.lock().unwrap().is_none() {
                    return minted;
                }
                let certificate = Arc::new(certificate());
                let bound = crate::credential::Bound::Mtls(Arc::clone(&certificate));
                Credential {
                    bound,
                    payload: Payload::Certificate { certificate, bundle: "".into() },
                    ..minted
                }
            };
            let result = if self.refuses.load(Ordering::Relaxed) {
                Err(IssueError::Refused { reason: Reason::GrantRejected, detail: "no".into() })
            } else if up {
                Ok(given())
            } else {
                let detail = "down".to_owned();
                Err(IssueError::Retry { reason: Reason::IssuerUnavailable, detail, after: None })
            };
            Issued { result, facts: IssueFacts::default() }
        })
    }

    fn advice<'a>(&'a self, _: &'a Order, _: &'a Credential) -> Pending<'a, Option<Advice>> {
        self.advised.fetch_add(1, Ordering::Relaxed);
        let wall = self.clock.wall();
        let window = self.window.lock().unwrap().map(|(start, end)| {
            (wall + jiff::SignedDuration::from_secs(start), wall + jiff::SignedDuration::from_secs(end))
        });
        Box::pin(async move { Some(Advice { window, again: Duration::from_secs(600) }) })
    }

    fn revoke<'a>(
        &'a self,
        _: &'a Order,
        _: &'a Signers,
        _: &'a Credential,
    ) -> Pending<'a, Result<(), IssueError>> {
        Box::pin(async { Ok(()) })
    }

    fn endpoints(&self) -> Arc<Vec<Target>> {
        Arc::default()
    }
}

struct House {
    clock: Arc<PausedClock>,
    ca: Arc<Ca>,
    broker: Broker,
}

fn house(life: u64) -> House {
    let clock = PausedClock::new();
    let ca = Arc::new(Ca {
        clock: Arc::clone(&clock),
        life: Duration::from_secs(life),
        up: AtomicBool::new(true),
        refuses: AtomicBool::new(false),
        busy: AtomicUsize::new(0),
        busiest: AtomicUsize::new(0),
        window: Mutex::default(),
        advised: AtomicUsize::new(0),
        diary: Mutex::default(),
    });
    let issuers: HashMap<Arc<str>, Arc<dyn Issuer>> =
        HashMap::from([("ca".into(), Arc::clone(&ca) as Arc<dyn Issuer>)]);
    let books = Books { issuers, ..Books::default() };
    let (telling, _) = mpsc::unbounded_channel();
    let (broker, keeper) = new(books, Arc::clone(&clock) as _, SeededDice::from_seed(5), telling, None);
    tokio::spawn(keeper.run());
    House { clock, ca, broker }
}

/// Of an identity that needs no key here.
fn tended(name: &str) -> Order {
    let client_auth = ClientAuth::Bootstrap("/token".into());
    Order { terms: Arc::new(Terms { client_auth, ..Terms::default() }), ..order("ca", name) }
}

impl House {
    fn is_live(&self, order: &Order) -> bool {
        let live = self.broker.shared.live.load();
        live.get(order).is_some_and(|live| self.clock.boot() < live.credential.window.until)
    }

    fn asked(&self) -> usize {
        self.ca.diary.lock().unwrap().len()
    }
}

#[tokio::test(start_paused = true)]
async fn a_host_that_starts_is_no_flood_for_its_ca() {
    // X5-03
    let house = house(86_400);
    let orders: Vec<Order> = (0..500).map(|at| tended(&format!("tls-{at}"))).collect();
    house.broker.tend(orders.clone());
    sleep(Duration::from_secs(40)).await;
    assert!(orders.iter().all(|order| house.is_live(order)));
    let diary = house.ca.diary.lock().unwrap().clone();
    assert_eq!(diary.len(), 500, "each is asked for once");
    let busiest = (0..40).map(|second| {
        diary.iter().filter(|(at, _)| (f64::from(second)..f64::from(second + 1)).contains(at)).count()
    });
    assert!(busiest.max().unwrap() < 50, "spread over half a minute");
    assert!(house.ca.busiest.load(Ordering::Relaxed) <= 16);
}

#[tokio::test(start_paused = true)]
async fn a_ca_that_is_back_is_not_overrun() {
    // X5-03
    let house = house(86_400);
    house.ca.up.store(false, Ordering::Relaxed);
    let orders: Vec<Order> = (0..500).map(|at| tended(&format!("tls-{at}"))).collect();
    house.broker.tend(orders.clone());
    sleep(Duration::from_secs(1200)).await;
    assert!(house.asked() < 100, "twenty minutes of outage: {} calls for 500 certificates", house.asked());
    house.ca.up.store(true, Ordering::Relaxed);
    sleep(Duration::from_secs(120)).await;
    assert!(orders.iter().all(|order| house.is_live(order)));
    assert!(house.ca.busiest.load(Ordering::Relaxed) <= 16);
}

#[tokio::test(start_paused = true)]
async fn a_thousand_renewals_at_a_ca_that_is_up_four_fifths_of_the_time() {
    // X5-03: certificates of five minutes, so that an outage of half a minute matters.
    let house = house(300);
    let tls = tended("tls");
    let dice = SeededDice::from_seed(11);
    house.broker.tend(vec![tls.clone()]);
    sleep(Duration::from_secs(5)).await;
    assert!(house.is_live(&tls));
    let (mut up, mut windows, mut lapses) = (0, 0, 0);
    while house.ca.diary.lock().unwrap().iter().filter(|(_, given)| *given).count() < 1000 {
        let is_up = fraction(&*dice) < 0.8;
        house.ca.up.store(is_up, Ordering::Relaxed);
        (up, windows) = (up + u32::from(is_up), windows + 1);
        for _ in 0..30 {
            sleep(Duration::from_secs(1)).await;
            if !house.is_live(&tls) {
                // It could not have been had: whenever the CA was asked since the renewal was due, it was down.
                let diary = house.ca.diary.lock().unwrap();
                let asked = diary.iter().rev().take_while(|(_, given)| !given).count();
                let since = diary.iter().rev().find(|(_, given)| *given).unwrap().0;
                assert!(asked >= 4, "asked {asked} times only, since {since}");
                lapses += 1;
            }
        }
    }
    let availability = f64::from(up) / f64::from(windows);
    assert!((0.75..0.85).contains(&availability), "{availability}");
    // Three and more windows down in a row do happen; that it was then without one is all there was to be had.
    let hours = house.clock.seconds() / 3600.0;
    assert!(f64::from(lapses) < hours * 3600.0 / 100.0, "{lapses} s of {hours} h without a certificate");
}

#[tokio::test(start_paused = true)]
async fn a_ca_that_says_no_is_not_asked_in_a_loop() {
    let house = house(300);
    house.ca.refuses.store(true, Ordering::Relaxed);
    house.broker.tend(vec![tended("tls")]);
    sleep(Duration::from_secs(3600)).await;
    let asked = house.asked();
    assert!((8..16).contains(&asked), "5 s, 10 s, .. ten minutes: {asked} calls in an hour");
    // Somebody who asks is heard all the same, and once it is given it is kept.
    house.ca.refuses.store(false, Ordering::Relaxed);
    house.broker.fetch_order(tended("tls"), Duration::ZERO, Duration::from_secs(30)).await.unwrap();
    sleep(Duration::from_secs(3600)).await;
    assert!(house.is_live(&tended("tls")));
}

#[tokio::test(start_paused = true)]
async fn a_ca_that_does_not_renew_is_not_asked_in_a_loop_either() {
    // TM-20, X5-03
    let house = house(86_400);
    house.broker.tend(vec![tended("a")]);
    sleep(Duration::from_secs(5)).await;
    house.ca.refuses.store(true, Ordering::Relaxed);
    sleep(Duration::from_secs(79_000)).await;
    let asked = house.asked();
    sleep(Duration::from_secs(3600)).await;
    assert!((5..=7).contains(&(house.asked() - asked)), "{} in an hour", house.asked() - asked);
    assert!(house.is_live(&tended("a")), "valid is never replaced by failed");
}

#[tokio::test(start_paused = true)]
async fn a_ca_that_advises_is_followed() {
    // ACM-04: the wall stands still here, so what is told in seconds from now is the same window each time.
    let house = house(86_400);
    *house.ca.window.lock().unwrap() = Some((1000, 3000));
    house.broker.tend(vec![tended("tls")]);
    sleep(Duration::from_secs(990)).await;
    assert_eq!(
        (house.asked(), house.ca.advised.load(Ordering::Relaxed)),
        (1, 2),
        "asked when it came, and again"
    );
    sleep(Duration::from_secs(2100)).await;
    let renewed = house.ca.diary.lock().unwrap()[1].0;
    assert!((1000.0..3010.0).contains(&renewed), "once, somewhere within: {renewed}");
    // Moved to the past, as before a mass revocation: now.
    *house.ca.window.lock().unwrap() = Some((-3000, -1000));
    let before = house.asked();
    sleep(Duration::from_secs(700)).await;
    assert!(house.asked() > before);
    // And not for ever at once, though it says the same of each that it gives.
    let before = house.asked();
    sleep(Duration::from_secs(3600)).await;
    let more = house.asked() - before;
    assert!((6..=13).contains(&more), "{more} in an hour");
    // One that would have it renewed when it has ended is renewed while there is time.
    *house.ca.window.lock().unwrap() = Some((200_000, 300_000));
    sleep(Duration::from_secs(80_000)).await;
    assert!(house.is_live(&tended("tls")));
    sleep(Duration::from_secs(80_000)).await;
    assert!(house.is_live(&tended("tls")));
}

#[tokio::test(start_paused = true)]
async fn only_what_is_in_the_settings_is_tended() {
    let house = house(300);
    house.broker.tend(vec![tended("a"), tended("b")]);
    sleep(Duration::from_secs(5)).await;
    house.broker.tend(vec![tended("b")]);
    sleep(Duration::from_secs(1000)).await;
    assert!(!house.is_live(&tended("a")) && house.is_live(&tended("b")));
}

#[tokio::test(start_paused = true)]
async fn a_certificate_that_is_shown_is_had_first_and_outlives_its_tokens() {
    // MT-08: the certificate is another after a renewal, and each token keeps the one that it is bound to.
    let clock = PausedClock::new();
    let ca = Arc::new(Enrolled::new(&clock));
    let issuers: HashMap<Arc<str>, Arc<dyn Issuer>> =
        ["ca", "corp"].into_iter().map(|name| (name.into(), Arc::clone(&ca) as Arc<dyn Issuer>)).collect();
    let terms = |client_auth| Arc::new(Terms { client_auth, ..Terms::default() });
    let shown = tended("tls");
    let token = Order { terms: terms(ClientAuth::TlsClientAuth), ..order("corp", "ledger") };
    let books = Books {
        issuers,
        certificates: Certificates::default(),
        shown: HashMap::from([(Arc::clone(&shown.identity), shown.clone())]),
        ..Books::default()
    };
    let (telling, _) = mpsc::unbounded_channel();
    let (broker, keeper) = new(books, Arc::clone(&clock) as _, SeededDice::from_seed(5), telling, None);
    tokio::spawn(keeper.run());
    let patience = Duration::from_secs(30);
    broker.fetch_order(token.clone(), Duration::ZERO, patience).await.unwrap();
    let first = ca.shown.lock().unwrap()[0].clone();
    assert_eq!(first.len(), 1, "it was had first");
    // Past its renewal: what is ordered next shows the new one, and the one before is still at hand.
    broker.tend(vec![shown]);
    sleep(Duration::from_secs(240)).await;
    broker
        .fetch_order(Order { credential: "other".into(), ..token }, Duration::ZERO, patience)
        .await
        .unwrap();
    let second = ca.shown.lock().unwrap()[1].clone();
    assert_eq!(second.len(), 2);
    assert_eq!((second[1].as_str(), second[0] != first[0]), (first[0].as_str(), true));
}

#[tokio::test(start_paused = true)]
async fn what_has_to_die_after_a_restart_waits_for_the_certificate_to_show() {
    // OA-43, X5-07: and what is shown itself is revoked by what it was ordered with.
    let dir = tempfile::tempdir().unwrap();
    let clock = PausedClock::new();
    let ca = Arc::new(Enrolled::new(&clock));
    let issuers: HashMap<Arc<str>, Arc<dyn Issuer>> =
        ["ca", "corp"].into_iter().map(|name| (name.into(), Arc::clone(&ca) as Arc<dyn Issuer>)).collect();
    let by_certificate = || Arc::new(Terms { client_auth: ClientAuth::TlsClientAuth, ..Terms::default() });
    let shown = Order { terms: by_certificate(), ..tended("tls") };
    let token = Order { terms: by_certificate(), ..order("corp", "ledger") };
    let file = || {
        let key = crate::keys::SealingKey::of(&crate::secret::Secret::new("seed"));
        PendingFile::new(dir.path().join("revocations"), key, SeededDice::from_seed(9))
    };
    let life = Duration::from_secs(3000);
    let waits = |order: &Order, life| revocations::Revocation {
        order: order.clone(),
        credential: Arc::new(minted("token", clock.boot(), clock.wall(), life)),
        cause: Cause::Operator,
        placed: Err(absent("payments", "issuer")),
        who: String::new(),
        since: clock.boot(),
    };
    // As the restart finds it: the certificate's terms as far as they were kept.
    let before = Order { max_ttl: life, ..shown.clone() };
    file().keep([waits(&token, life), waits(&before, life)].iter());
    let books = Books {
        issuers,
        shown: HashMap::from([(Arc::clone(&shown.identity), shown.clone())]),
        ..Books::default()
    };
    let (telling, mut told) = mpsc::unbounded_channel();
    let (broker, keeper) =
        new(books, Arc::clone(&clock) as _, SeededDice::from_seed(5), telling, Some(file()));
    tokio::spawn(keeper.run());
    sleep(Duration::from_secs(20)).await;
    assert_eq!(*ca.revoked.lock().unwrap(), [("tls".to_owned(), 0)], "the other waits, and is not given up");
    broker.tend(vec![shown]);
    sleep(Duration::from_secs(120)).await;
    assert_eq!(ca.revoked.lock().unwrap()[1..], [("ledger".to_owned(), 1)]);
    while let Ok(news) = told.try_recv() {
        assert!(!matches!(news, News::Revoked(Revoked { error: Some(_), waits: false, .. })), "{news:?}");
    }
}

/// Gives a self-signed certificate for `tls` and a token for all else, and writes down what was shown to it.
#[derive(Debug)]
struct Enrolled {
    clock: Arc<PausedClock>,
    shown: Mutex<Vec<Vec<String>>>,
    /// What was revoked, and how many certificates there were to show for that.
    revoked: Mutex<Vec<(String, usize)>>,
}

impl Enrolled {
    fn new(clock: &Arc<PausedClock>) -> Self {
        Self { clock: Arc::clone(clock), shown: Mutex::default(), revoked: Mutex::default() }
    }
}

impl Issuer for Enrolled {
    fn issue<'a>(
        &'a self,
        order: &'a Order,
        signers: &'a Signers,
        _: Option<&'a Credential>,
    ) -> Pending<'a, Issued> {
        let token = minted("token", self.clock.boot(), self.clock.wall(), Duration::from_secs(300));
        let made = if *order.credential == *"tls" {
            let certificate = Arc::new(certificate());
            Credential {
                bound: crate::credential::Bound::Mtls(Arc::clone(&certificate)),
                payload: Payload::Certificate { certificate, bundle: "".into() },
                ..token
            }
        } else {
            let shown = signers.certificates.iter().map(|one| one.thumbprint().to_owned()).collect();
            self.shown.lock().unwrap().push(shown);
            token
        };
        Box::pin(async { Issued { result: Ok(made), facts: IssueFacts::default() } })
    }

    fn revoke<'a>(
        &'a self,
        order: &'a Order,
        signers: &'a Signers,
        _: &'a Credential,
    ) -> Pending<'a, Result<(), IssueError>> {
        let count = signers.certificates.len();
        if order.terms.client_auth.is_mtls() && *order.credential != *"tls" && count == 0 {
            let (reason, detail) = (Reason::KeyUnavailable, "no certificate".into());
            return Box::pin(async move { Err(IssueError::Misconfigured { reason, detail }) });
        }
        self.revoked.lock().unwrap().push((order.credential.to_string(), count));
        Box::pin(async { Ok(()) })
    }

    fn endpoints(&self) -> Arc<Vec<Target>> {
        Arc::default()
    }
}

pub(super) fn certificate() -> ClientCertificate {
    use rcgen::{CertificateParams, CertificateSigningRequestParams, KeyPair, date_time_ymd};
    let request = Enrolment::begin(&Subject::default(), KeyKind::P256).unwrap();
    let mut asked = CertificateSigningRequestParams::from_der(&request.csr().into()).unwrap();
    (asked.params.not_before, asked.params.not_after) =
        (date_time_ymd(2020, 1, 1), date_time_ymd(2040, 1, 1));
    let (params, key) = (CertificateParams::default(), KeyPair::generate().unwrap());
    let signed = asked.signed_by(&rcgen::Issuer::new(params, key)).unwrap();
    request.finish(vec![signed.der().clone()], false, None).unwrap()
}

/// Knows its client by a key, and takes the next one when the one before vouches for it.
#[derive(Debug, Default)]
struct Adopting {
    known: Mutex<String>,
}

impl Issuer for Adopting {
    fn issue<'a>(
        &'a self,
        _: &'a Order,
        signers: &'a Signers,
        _: Option<&'a Credential>,
    ) -> Pending<'a, Issued> {
        let mut known = self.known.lock().unwrap();
        let kid =
            |key: &Option<Arc<dyn Signer>>| key.as_ref().map(|key| key.kid().to_owned()).unwrap_or_default();
        if kid(&signers.before) == *known {
            *known = kid(&signers.client);
        }
        let result = if kid(&signers.client) == *known {
            Ok(minted("token", Boot::default(), jiff::Timestamp::UNIX_EPOCH, Duration::from_secs(60)))
        } else {
            Err(IssueError::Refused { reason: Reason::ClientAuthRejected, detail: "who?".into() })
        };
        Box::pin(async { Issued { result, facts: IssueFacts::default() } })
    }

    fn revoke<'a>(
        &'a self,
        _: &'a Order,
        _: &'a Signers,
        _: &'a Credential,
    ) -> Pending<'a, Result<(), IssueError>> {
        Box::pin(async { Ok(()) })
    }

    fn adopts_keys(&self) -> bool {
        true
    }

    fn endpoints(&self) -> Arc<Vec<Target>> {
        Arc::default()
    }
}

#[tokio::test(start_paused = true)]
async fn an_account_that_is_its_key_is_handed_over_before_the_key_is_destroyed() {
    // KEY-05, ACM-01: afterwards nobody could speak for it.
    let keys = super::tests::keys();
    let payments: Arc<str> = "payments".into();
    let kid = keys.signer(&payments, Purpose::ClientAuth).unwrap().kid().to_owned();
    let issuer = Arc::new(Adopting { known: Mutex::new(kid) });
    let issuers = HashMap::from([("ca".into(), Arc::clone(&issuer) as Arc<dyn Issuer>)]);
    let books = Books { issuers, keys, ..Books::default() };
    let (telling, _) = mpsc::unbounded_channel();
    let (broker, keeper) = new(books, PausedClock::new() as _, SeededDice::from_seed(5), telling, None);
    tokio::spawn(keeper.run());
    let next: Arc<dyn Signer> = Arc::new(crate::keys::Key::generate(crate::jose::Algorithm::Es256).unwrap());
    let rule = super::rotor::tests::rule("ca", ClientAuth::Bootstrap("/once".into()));
    broker.try_key(&payments, &rule, &next).await.unwrap();
    assert_eq!(*issuer.known.lock().unwrap(), next.kid());
}

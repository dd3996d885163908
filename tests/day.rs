//! A day of life in virtual time: the whole daemon and its issuers in this process, on clocks that go as fast as there is work, and
//! fifty identities, each a process of its own that the kernel vouches for. In go callers who ask at moments of chance, two outages,
//! a clock that is stepped and a key that makes room for another; out comes, of every answer and every refusal, whether it was
//! right at that moment, how often issuers were asked, and what the day has left in memory.
//!
//! All but the callers' sockets is as it runs: policy, shelf, keys, ledger, the steward, requests over loopback and an issuer that
//! forgives nothing. Callers come straight to the journey, by what they connected with; one more listens over the real socket.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    collections::{BTreeMap, HashMap},
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};
use jiff::{SignedDuration, Timestamp};
use keybearer::{
    attest::Peer,
    audit,
    client::{Agent, operator},
    clock::{Boot, Clock, SeededDice, SystemDice, fraction},
    config::load,
    credential::{Credential, Payload},
    daemon::{Daemon, Origin},
    dev::{Client, DevIssuer, DevIssuerSettings, Fault, Handle},
    jose::{Algorithm, PublicKey},
    journey::{Journey, Refusal, Request, Session},
    keys::Purpose,
    policy::Door,
    proto::v1::{RotateRequest, WatchResponse, credential::Kind},
};
use serde_json::Value;
use support::{BINARY, RESOURCE, install, is_root, skip};
use tokio::{
    net::UnixListener,
    sync::oneshot,
    task::JoinSet,
    time::{Instant, interval, sleep, sleep_until},
};

/// Time leaps from one thing that is due to the next, also while a request is under way on loopback. With a beat in between, each
/// look for what has come costs so much virtual time at most, and an exchange with an issuer takes a second or two.
const BEAT: Duration = Duration::from_millis(200);

const HOUR: Duration = Duration::from_secs(3600);

/// How long one outage lasts.
const OUTAGE: Duration = Duration::from_secs(20 * 60);

/// What the issuer asks for in the second one.
const RETRY_AFTER: Duration = Duration::from_secs(120);

/// Nothing is left waiting longer than this for an issuer that is back: its longest back-off, and an exchange.
const BACK_WITHIN: Duration = Duration::from_secs(60 + 10);

/// How long an answer of an issuer may take here, the keeper's longest nap included.
const SLOW: Duration = Duration::from_secs(15);

/// What an identity lives on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Lives {
    /// Bearer tokens of five minutes.
    Bearer,
    /// Bound tokens of five minutes.
    Bound,
    /// Bound tokens of an hour.
    Long,
    /// Certificates of a day.
    Certificate,
}

/// Forty-nine; and one more that lives on bearer tokens and listens.
const OTHERS: [(Lives, usize); 4] =
    [(Lives::Bearer, 8), (Lives::Bound, 6), (Lives::Long, 28), (Lives::Certificate, 7)];
const LISTENER: &str = "listener";

impl Lives {
    fn life(self) -> Duration {
        match self {
            Self::Bearer | Self::Bound => Duration::from_secs(300),
            Self::Long => HOUR,
            Self::Certificate => 24 * HOUR,
        }
    }

    /// The least and the longest time between two questions.
    fn pause(self) -> (f64, f64) {
        match self {
            Self::Bearer | Self::Bound => (20.0, 120.0),
            Self::Long => (60.0, 600.0),
            Self::Certificate => (300.0, 1800.0),
        }
    }
}

#[test]
fn a_day_of_fifty_identities() {
    // CLK-01, CLK-03, CLK-05, CLK-06, CLK-07, CLK-08, KEY-05, X5-03, TM-20
    if !is_root() {
        return skip("a_day_of_fifty_identities", "only root can be fifty users");
    }
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(day());
}

async fn day() {
    let mut house = House::open().await;
    let mut callers = house.callers().await;
    let began = house.start;
    let listening = tokio::spawn(listen(Arc::clone(&house.world)));

    house.clerk_until(2 * HOUR).await;
    let morning = house.live_bytes().await;

    // Every issuer is down.
    house.clerk_until(6 * HOUR).await;
    let first = house.outage(Fault::Unavailable, BACK_WITHIN).await;
    // A back-off of half a minute on average is forty attempts at each of the two, give or take four, and a few come together.
    assert!(first.asked <= 130, "80 were planned: {first:?}");

    // The host's clock runs ahead until somebody sets it right.
    house.clerk_until(9 * HOUR).await;
    house.world.clock.step(200);
    house.clerk_until(10 * HOUR).await;
    house.world.clock.step(-200);

    house.clerk_until(12 * HOUR).await;
    house.rotate("bearer-0").await;

    // Every issuer is there, and has enough.
    house.clerk_until(18 * HOUR).await;
    let limited = Fault::RateLimited { retry_after: RETRY_AFTER };
    let second = house.outage(limited, BACK_WITHIN + RETRY_AFTER).await;
    // Once in two minutes at each of the two, and a few come together.
    let planned = 2 * OUTAGE.as_secs() / RETRY_AFTER.as_secs();
    assert!(second.asked <= 2 * planned, "{planned} were planned: {second:?}");

    house.clerk_until(24 * HOUR).await;
    let evening = house.live_bytes().await;
    assert!(callers.try_join_next().is_none(), "nobody has stopped asking");
    assert!(!listening.is_finished(), "nor listening");
    callers.shutdown().await;
    listening.abort();

    house.as_planned(began.elapsed());
    let world = &house.world;
    let (answers, refusals) = (world.answers.load(Ordering::Relaxed), world.refusals.load(Ordering::Relaxed));
    let fetched: u64 = house.clerk.tokens.values().sum();
    println!(
        "{answers} answers, {refusals} refusals; {fetched} tokens, {} requests to issuers; outages: {first:?}, {second:?}; \
         {morning} bytes live after 2 hours, {evening} after 24",
        house.clerk.asked
    );
    assert!(answers > 20_000 && refusals > 100, "the control: {answers} answers, {refusals} refusals");
    // What was there in the morning, and nothing for each token that came since: the least that could be kept of one is its
    // fingerprint, of sixteen bytes.
    let grown = evening - morning;
    assert!(grown < 16 * i64::try_from(fetched).unwrap(), "{grown} bytes more than in the morning");
    house.close().await;
}

/// What everybody looks at.
struct World {
    clock: Arc<VirtualClock>,
    journey: Arc<Journey>,
    socket: Arc<str>,
    dir: tempfile::TempDir,
    answers: AtomicU64,
    refusals: AtomicU64,
    /// From when issuers were down, and until when some may have to wait for them.
    down: Mutex<Vec<(Boot, Boot)>>,
}

/// The agent, its issuers and its callers.
struct House {
    start: Instant,
    world: Arc<World>,
    issuers: [Handle; 2],
    clerk: Clerk,
    crowd: Vec<Crowd>,
    stop: oneshot::Sender<()>,
    ran: tokio::task::JoinHandle<Result<(), audit::LedgerError>>,
    _beat: JoinSet<()>,
}

impl House {
    async fn open() -> Self {
        let start = Instant::now();
        let (clock, theirs) = (VirtualClock::from(start), VirtualClock::from(start));
        let issuer = |life: Duration| {
            let settings = DevIssuerSettings { token_life: life, ..DevIssuerSettings::default() };
            let issuer =
                DevIssuer::bind(settings, Arc::clone(&theirs) as Arc<dyn Clock>, SystemDice::shared())
                    .unwrap();
            let handle = issuer.handle();
            tokio::spawn(issuer.run(std::future::pending()));
            handle
        };
        let issuers = [issuer(Lives::Bearer.life()), issuer(Lives::Long.life())];
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let path = dir.path().join("agent.toml");
        fs::write(&path, settings(dir.path(), &issuers, clock.wall())).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let settings = load(&path, &BTreeMap::new(), clock.wall()).unwrap();
        let origin = Origin { path, environment: BTreeMap::new() };
        let dice = SystemDice::shared();
        let daemon = Daemon::build(settings, origin, Arc::clone(&clock) as Arc<dyn Clock>, dice).unwrap();
        let journey = Arc::clone(daemon.journey());
        let (stop, stopped) = oneshot::channel::<()>();
        let ran = tokio::spawn(daemon.run(async {
            let _ = stopped.await;
        }));
        let mut beat = JoinSet::new();
        beat.spawn(async {
            let mut beat = interval(BEAT);
            loop {
                beat.tick().await;
            }
        });
        let socket = dir.path().join("run/agent.sock").display().to_string().into();
        let world = Arc::new(World {
            clock,
            journey,
            socket,
            dir,
            answers: AtomicU64::new(0),
            refusals: AtomicU64::new(0),
            down: Mutex::default(),
        });
        let clerk = Clerk::default();
        let house = Self { start, world, issuers, clerk, crowd: vec![], stop, ran, _beat: beat };
        for (lives, name, _) in identities() {
            house.register(lives, &name);
        }
        house
    }

    /// Has the issuers know the keys that an identity has now.
    fn register(&self, lives: Lives, name: &str) {
        let keys = self.world.journey.broker().books().keys.clone();
        let identity: Arc<str> = name.into();
        let signers = [keys.signer(&identity, Purpose::ClientAuth), keys.next(&identity)];
        let signers = signers.into_iter().flatten();
        let public = signers.map(|key| {
            let algorithm = key.algorithm();
            (PublicKey::from_jwk(&key.public().jwk(algorithm)).unwrap(), algorithm)
        });
        let public: Vec<(PublicKey, Algorithm)> = public.collect();
        assert!(!public.is_empty());
        let client = Client {
            client_id: name.into(),
            keys: public,
            scope: vec!["orders:read".into()],
            resources: vec![RESOURCE.into()],
            dpop_bound_access_tokens: matches!(lives, Lives::Bound | Lives::Long),
            certificate_names: vec![format!("spiffe://example.org/{name}")],
            ..Client::default()
        };
        for issuer in &self.issuers {
            issuer.register(client.clone()).unwrap();
        }
    }

    /// Everybody who asks, each with what it connected with.
    async fn callers(&mut self) -> JoinSet<()> {
        let program = self.world.dir.path().join("caller");
        install(Path::new(BINARY), &program);
        let place = self.world.dir.path().join("callers.sock");
        let listener = UnixListener::bind(&place).unwrap();
        fs::set_permissions(&place, fs::Permissions::from_mode(0o666)).unwrap();
        let mut callers = JoinSet::new();
        for (lives, name, uid) in identities().filter(|(_, name, _)| name != LISTENER) {
            let who = uid.to_string();
            let child = Command::new("setpriv")
                .args(["--reuid", &who, "--regid", &who, "--clear-groups"])
                .arg(&program)
                .args(["dev-workload", "--socket"])
                .arg(&place)
                .stdin(Stdio::piped())
                .spawn()
                .unwrap();
            self.crowd.push(Crowd(child));
            let (connection, _) = listener.accept().await.unwrap();
            let peer = Peer::pin(&connection).unwrap();
            assert_eq!(peer.uid(), uid);
            let caller = Caller {
                world: Arc::clone(&self.world),
                name,
                lives,
                dice: SeededDice::from_seed(u64::from(uid)),
                last: None,
            };
            callers.spawn(caller.ask_all_day(connection, Arc::new(peer)));
        }
        callers
    }

    /// Lets time go on until so long after the start. The issuers' diaries keep the last thousand only, so they are read meanwhile.
    async fn clerk_until(&mut self, moment: Duration) {
        loop {
            let next = (self.start.elapsed() + Duration::from_secs(600)).min(moment);
            sleep_until(self.start + next).await;
            self.clerk.read(&self.issuers);
            if next == moment {
                return;
            }
        }
    }

    /// What is allocated at a quiet moment: the least of many looks. The issuers' diaries are not the agent's, and fill up to a
    /// thousand requests.
    async fn live_bytes(&mut self) -> i64 {
        let mut least = i64::MAX;
        for _ in 0..200 {
            sleep(Duration::from_secs(3)).await;
            let live = LIVE.load(Ordering::Relaxed);
            let diaries = self.issuers.each_ref().map(Handle::diary);
            least = least.min(live - (LIVE.load(Ordering::Relaxed) - live));
            drop(diaries);
        }
        self.clerk.read(&self.issuers);
        least
    }

    /// All issuers behave like this for a while, and nobody has to wait for them when so long has passed after it. How often they
    /// were asked meanwhile, and then.
    async fn outage(&mut self, fault: Fault, back_within: Duration) -> Outage {
        self.clerk.read(&self.issuers);
        let (before, began) = (self.clerk.asked, self.world.clock.boot());
        self.world.down.lock().unwrap().push((began, began + OUTAGE + back_within));
        for issuer in &self.issuers {
            issuer.set_fault(fault.clone(), None);
        }
        sleep(OUTAGE).await;
        for issuer in &self.issuers {
            issuer.set_fault(Fault::None, None);
        }
        self.clerk.read(&self.issuers);
        let asked = self.clerk.asked - before;
        let over = self.world.clock.true_wall();
        sleep(back_within).await;
        let mut then = 0;
        for issuer in &self.issuers {
            let (mut seconds, mut clients) = (BTreeMap::<_, u64>::new(), BTreeMap::<_, u64>::new());
            for entry in issuer.diary().entries.into_iter().filter(|entry| entry.at >= over) {
                *seconds.entry(entry.at.as_second()).or_default() += 1;
                if entry.outcome == "ok" && entry.path == "/token" {
                    *clients.entry(entry.client_id.unwrap()).or_default() += 1;
                }
            }
            then = then.max(seconds.into_values().max().unwrap_or_default());
            let again: Vec<_> = clients.iter().filter(|(_, tokens)| **tokens > 1).collect();
            assert!(again.is_empty() || back_within > BACK_WITHIN, "fetched again at once: {again:?}");
        }
        // Sixteen at once, each with a second request for its nonce, and those that callers wait for.
        assert!(then <= 40, "{then} in one second at one issuer that is back");
        Outage { asked, then }
    }

    /// An operator has one identity's key make room for another, and registers the next one.
    async fn rotate(&mut self, name: &str) {
        let identity: Arc<str> = name.into();
        let world = Arc::clone(&self.world);
        let keys = || world.journey.broker().books().keys.clone();
        let kid = || keys().signer(&identity, Purpose::ClientAuth).unwrap().kid().to_owned();
        let before = kid();
        let socket = self.world.dir.path().join("run/operator.sock");
        let mut operator = operator(&socket).await.unwrap();
        operator.rotate(RotateRequest { identity: name.into() }).await.unwrap();
        let next = keys().next(&identity).expect("the next key is published").kid().to_owned();
        sleep(Duration::from_secs(300)).await;
        assert_eq!(kid(), before, "nobody has registered it yet");
        self.register(Lives::Bearer, name);
        self.clerk_until(self.start.elapsed() + Duration::from_secs(40 * 60)).await;
        assert_eq!(kid(), next, "it signs, once it was published long enough and its issuer takes it");
        // From here on, the issuer takes nothing that the one before signs.
        self.register(Lives::Bearer, name);
    }

    /// What issuers were asked for, against what lives and chance allow.
    fn as_planned(&self, day: Duration) {
        let down = 2 * (OUTAGE + BACK_WITHIN) + RETRY_AFTER;
        let mut short = vec![];
        for (lives, name, _) in identities() {
            let life = lives.life().as_secs_f64();
            let tokens = self.clerk.tokens.get(&name).copied().unwrap_or_default();
            // A refresh falls between 17/30 and 23/30 of a life (CLK-08): no sooner, and each outage may cost one more.
            let most = (day.as_secs_f64() / (life * 17.0 / 30.0)).floor() as u64 + 1 + 2;
            // And no later but by what it takes to hear of it and to get it. Each is asked for again within its life, or else it lapses.
            let longest = life * 23.0 / 30.0 + SLOW.as_secs_f64();
            let least = ((day - down).as_secs_f64() / longest).floor() as u64;
            // The key that made room was tried with one more.
            let tried = u64::from(name == "bearer-0");
            let planned = least..=most + tried;
            assert!(planned.contains(&tokens), "{name}: {tokens} were got, {planned:?} are planned");
            if lives == Lives::Bearer || lives == Lives::Bound {
                short.push(tokens as f64);
            }
        }
        // On average, a refresh falls at two thirds: many together come closer to that than one.
        let up = (day - 2 * OUTAGE).as_secs_f64();
        let average = short.iter().sum::<f64>() / short.len() as f64;
        let planned = up / 200.0;
        assert!(
            (planned * 0.95..planned * 1.05).contains(&average),
            "{average:.1} tokens of five minutes each, {planned:.1} are planned"
        );
        // A nonce is good for five to ten minutes, and is kept for the key that it was given to (DPOP-10): a bound token of an hour
        // costs one more request, and others do after an outage.
        let vain = &self.clerk.vain;
        let of = |lives: Lives| {
            let theirs = identities().filter(move |(their, ..)| *their == lives);
            theirs.map(|(_, name, _)| self.clerk.tokens.get(&name).copied().unwrap_or_default()).sum::<u64>()
        };
        let nonces = vain.get("use_dpop_nonce").copied().unwrap_or_default();
        let planned = of(Lives::Long) + 6 * 3;
        assert!(nonces <= planned + planned / 10, "{nonces} for want of a nonce, {planned} are planned");
        // Nothing else comes to nothing, but while issuers are down.
        let known = |outcome: &str| outcome.starts_with("fault:") || outcome == "use_dpop_nonce";
        let others: Vec<_> = vain.iter().filter(|(outcome, _)| !known(outcome)).collect();
        assert!(others.is_empty(), "{others:?}");
        println!("{average:.1} tokens of five minutes each, {:.1} planned; in vain: {vain:?}", up / 200.0);
    }

    /// Stops it as a service manager does; what it wrote is whole.
    async fn close(self) {
        self.stop.send(()).unwrap();
        self.ran.await.unwrap().unwrap();
        let report = audit::verify(&self.world.dir.path().join("state/audit"), None).unwrap();
        let told = self.world.answers.load(Ordering::Relaxed) + self.world.refusals.load(Ordering::Relaxed);
        assert!(report.records >= told, "{} records of {told} exchanges", report.records);
    }
}

/// What became of an outage.
#[derive(Debug)]
struct Outage {
    /// How often issuers were asked meanwhile.
    asked: u64,
    /// How often one of them was in the busiest second after it.
    #[expect(dead_code, reason = "it is printed")]
    then: u64,
}

/// Everybody: what it lives on, its name, its user.
fn identities() -> impl Iterator<Item = (Lives, String, u32)> {
    let all = OTHERS
        .into_iter()
        .flat_map(|(lives, many)| (0..many).map(move |n| (lives, format!("{lives:?}-{n}").to_lowercase())));
    let all = all.zip(200_001..).map(|((lives, name), uid)| (lives, name, uid));
    all.chain([(Lives::Bearer, LISTENER.to_owned(), 0)])
}

fn settings(dir: &Path, [short, long]: &[Handle; 2], now: Timestamp) -> String {
    let until = now + 30 * 24 * HOUR;
    let mut text = format!(
        r#"environment = "test"
state_directory = "{0}/state"
runtime_directory = "{0}/run"

[issuers.short]
kind = "oauth"
issuer = "{1}"
dev = true
timeout = "30s"

[issuers.long]
kind = "oauth"
issuer = "{2}"
dev = true
timeout = "30s"

[issuers.mesh]
kind = "step-ca"
url = "{2}"
root_sha256 = "{3}"
dev = true
timeout = "30s"
"#,
        dir.display(),
        short.url(),
        long.url(),
        long.root_sum(),
    );
    for (lives, name, uid) in identities() {
        text.push_str(&format!(
            r#"
[identities.{name}]
owner = "{name}@example.com"
assurance = "interim"
humans = "allowed"
match = {{ uid = {uid} }}
[identities.{name}.key]
custody = "memory"
[identities.{name}.credentials.it]
client_id = "{name}"
"#
        ));
        let token = format!("resource = \"{RESOURCE}\"\nscope = [\"orders:read\"]\n");
        text.push_str(&match lives {
            Lives::Bearer => format!(
                "issuer = \"short\"\n{token}binding = \"bearer\"\nexception = {{ owner = \"{name}@example.com\", reason = \"a \
                 test\", until = \"{until:.0}\" }}\n"
            ),
            Lives::Bound => format!("issuer = \"short\"\n{token}"),
            Lives::Long => format!("issuer = \"long\"\n{token}"),
            Lives::Certificate => format!(
                "issuer = \"mesh\"\nmax_ttl = \"24h\"\ncertificate = {{ uri = [\"spiffe://example.org/{name}\"], custody = \
                 \"memory\" }}\n"
            ),
        });
    }
    text
}

/// One who asks.
struct Caller {
    world: Arc<World>,
    name: String,
    lives: Lives,
    dice: Arc<SeededDice>,
    /// Until when the last one that it was given is handed out.
    last: Option<Boot>,
}

impl Caller {
    async fn ask_all_day(mut self, _connection: tokio::net::UnixStream, peer: Arc<Peer>) {
        let (journey, socket) = (&Arc::clone(&self.world.journey), Arc::clone(&self.world.socket));
        let session = Arc::new(journey.begin(peer, socket, Door::Own).await);
        let request = Request { name: "it".into(), patience: Duration::from_secs(10), ..Request::default() };
        loop {
            let (least, most) = self.lives.pause();
            sleep(Duration::from_secs_f64(least + (most - least) * fraction(&*self.dice))).await;
            self.ask(journey, &session, &request).await;
        }
    }

    async fn ask(&mut self, journey: &Journey, session: &Arc<Session>, request: &Request) {
        let asked = self.world.clock.boot();
        let call = session.enter();
        match journey.fulfil(&call, request).await {
            Ok(answer) => {
                self.world.is_alive(&self.name, answer.credential());
                let window = answer.credential().window;
                self.last = Some(window.until - (window.life() / 10).min(Duration::from_secs(30)));
            }
            Err(Refusal::Unavailable(_, failure)) => {
                self.world.refusals.fetch_add(1, Ordering::Relaxed);
                let live = self.last.is_some_and(|last| asked < last);
                assert!(!live, "{} was refused what it holds: {failure}", self.name);
                self.world.was_to_be_refused(&self.name, &failure.to_string());
            }
            Err(other) => panic!("{}: {other:?}", self.name),
        }
    }
}

impl World {
    /// Whether what was handed out this moment has not ended, by what the agent says and by what its issuer wrote into it.
    fn is_alive(&self, name: &str, credential: &Credential) {
        self.answers.fetch_add(1, Ordering::Relaxed);
        let (boot, wall) = (self.clock.boot(), self.clock.wall());
        let window = credential.window;
        assert!(boot < window.until, "{name} was given one that is over");
        assert!(!window.left(boot).is_zero());
        let ends = match &credential.payload {
            Payload::Token(token) => ends(token.expose_str().unwrap()),
            Payload::Certificate { certificate, .. } => certificate.until(),
            _ => unreachable!("nobody leases here"),
        };
        assert!(ends > self.clock.true_wall(), "{name}: its issuer says that it is over since {ends}");
        // By the wall as it was when it came: it may have been stepped since.
        if self.clock.is_steady_since(window.from) {
            assert!(window.until_wall > wall, "{name}: by the wall it is over since {}", window.until_wall);
        }
    }

    /// Whether nothing was on the shelf for whoever was refused, and its issuer is down, or was a moment ago.
    fn was_to_be_refused(&self, name: &str, why: &str) {
        let now = self.clock.boot();
        let report = self.journey.broker().report();
        let shelved = report.shelf.iter().find(|shelved| *shelved.order.identity == *name);
        if let Some(credential) = shelved.and_then(|shelved| shelved.credential.as_ref()) {
            let left = credential.window.left(now);
            assert!(
                left <= Duration::from_secs(30),
                "{name} was refused, and there is one for {left:?}: {why}"
            );
        }
        let down = self.down.lock().unwrap();
        let excused = down.iter().any(|(from, back)| *from <= now && now < *back);
        assert!(excused, "{name} was refused, and its issuer is there: {why}");
    }
}

/// One who listens over the socket: it hears of each, before the one before is over.
async fn listen(world: Arc<World>) {
    let mut agent = Agent::connect(&*world.socket).await.unwrap();
    let mut watching = agent.watch("it", &[]).await.unwrap();
    let mut last: Option<Timestamp> = None;
    loop {
        let WatchResponse { credential } = watching.message().await.unwrap().expect("it goes on all day");
        let credential = credential.unwrap();
        let Some(Kind::AccessToken(token)) = credential.kind else { panic!("a token") };
        let (now, ends) = (world.clock.true_wall(), ends(&token.token));
        assert!(ends > now && credential.expires_in.unwrap().seconds > 0);
        let was_down =
            world.down.lock().unwrap().last().is_some_and(|(_, back)| world.clock.boot() < *back + SLOW);
        assert!(was_down || last.is_none_or(|last| now < last), "it was without one until {now}");
        last = Some(ends);
    }
}

/// When a token ends, as its issuer wrote it.
fn ends(token: &str) -> Timestamp {
    let claims = BASE64URL.decode(token.split('.').nth(1).unwrap()).unwrap();
    let claims: Value = serde_json::from_slice(&claims).unwrap();
    Timestamp::from_second(claims["exp"].as_i64().unwrap()).unwrap()
}

/// Who reads the issuers' diaries.
#[derive(Default)]
struct Clerk {
    read: [u64; 2],
    /// Tokens and certificates, by client.
    tokens: HashMap<String, u64>,
    asked: u64,
    /// What else requests ended in.
    vain: BTreeMap<String, u64>,
}

impl Clerk {
    fn read(&mut self, issuers: &[Handle; 2]) {
        for (issuer, read) in issuers.iter().zip(&mut self.read) {
            let entries = issuer.diary().entries;
            let first = entries.front().map_or(0, |entry| entry.number);
            assert!(first <= *read, "the diary was read too late: {first}, {read}");
            let from = *read;
            let new = entries.into_iter().skip_while(|entry| entry.number < from);
            // What is under way is read the next time.
            for entry in new.take_while(|entry| entry.status != 0) {
                *read = entry.number + 1;
                if !["/token", "/1.0/sign"].contains(&entry.path) {
                    continue;
                }
                self.asked += 1;
                match (entry.outcome.as_str(), entry.client_id) {
                    ("ok", Some(client)) => *self.tokens.entry(client).or_default() += 1,
                    (outcome, _) => *self.vain.entry(outcome.to_owned()).or_default() += 1,
                }
            }
        }
    }
}

/// A process that only is there. It ends with the test.
struct Crowd(Child);

impl Drop for Crowd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The runtime's paused time, as a host has it: a wall that may be stepped, and the time since boot.
#[derive(Debug)]
struct VirtualClock {
    start: Instant,
    /// By how many seconds the wall is off.
    off: AtomicI64,
    stepped: Mutex<Option<Boot>>,
}

impl VirtualClock {
    fn from(start: Instant) -> Arc<Self> {
        Arc::new(Self { start, off: AtomicI64::new(0), stepped: Mutex::default() })
    }

    fn step(&self, seconds: i64) {
        self.off.fetch_add(seconds, Ordering::Relaxed);
        *self.stepped.lock().unwrap() = Some(self.boot());
    }

    fn is_steady_since(&self, moment: Boot) -> bool {
        self.stepped.lock().unwrap().is_none_or(|stepped| stepped < moment)
    }

    /// What the wall says where nobody has stepped it.
    fn true_wall(&self) -> Timestamp {
        let midnight: Timestamp = "2026-03-01T00:00:00Z".parse().unwrap();
        midnight + self.start.elapsed()
    }
}

impl Clock for VirtualClock {
    fn wall(&self) -> Timestamp {
        self.true_wall() + SignedDuration::from_secs(self.off.load(Ordering::Relaxed))
    }

    fn boot(&self) -> Boot {
        Boot::from_nanos(0) + HOUR + self.start.elapsed()
    }
}

/// How many bytes are allocated and not given back.
static LIVE: AtomicI64 = AtomicI64::new(0);

/// The system's allocator, which counts.
struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

#[expect(
    unsafe_code,
    reason = "an allocator is unsafe by its trait; this one counts, and hands on what it was asked"
)]
// SAFETY: everything is done by the system's allocator, with the arguments as they came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size() as i64, Ordering::Relaxed);
        // SAFETY: as the caller promised.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size() as i64, Ordering::Relaxed);
        // SAFETY: as the caller promised.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        LIVE.fetch_add(size as i64 - layout.size() as i64, Ordering::Relaxed);
        // SAFETY: as the caller promised.
        unsafe { System.realloc(at, layout, size) }
    }
}

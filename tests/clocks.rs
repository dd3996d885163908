//! Clocks that are stepped, and a host that sleeps, under the running binary. In go changes of the agent's own clocks (see
//! support/preload/clocks.rs) and an issuer that knows the time; out comes what is still handed out, and whether anything was
//! signed.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "support/scripted.rs"]
mod scripted;
mod support;

use std::{
    fs::{self, File},
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::PathBuf,
    process::{Child, Command},
    time::Duration,
};

use jiff::Timestamp;
use keybearer::{
    clock::SystemClock,
    proto::v1::{WatchResponse, credential::Kind},
};
use scripted::{Says, Scripted, json, token};
use support::{Setup, TestAgent, body, built, get, is_root, skip};
use tokio::time::timeout;

const HOUR: i64 = 3600;
const ORDERS: &str = "/v1/credentials/orders";

/// Another order at the same issuer, for which there is nothing on the shelf.
const READ: &str = "/v1/credentials/orders?scope=orders:read";

#[tokio::test(flavor = "multi_thread")]
async fn a_step_forward_ends_nothing_and_signs_nothing() {
    stepped(HOUR);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_back_lengthens_nothing_and_signs_nothing() {
    stepped(-HOUR);
}

fn stepped(by: i64) {
    // CLK-01, CLK-03, TM-19
    let issuer = Scripted::start(Says::Bytes(token()));
    let (agent, clocks) = agent(&issuer, None);
    let (_, first) = get(&agent.socket("http.sock"), ORDERS);
    let life = body(&first)["expires_in"].as_u64().unwrap();

    clocks.step(by);
    let (status, again) = get(&agent.socket("http.sock"), ORDERS);
    let off = last_time(&agent).duration_since(SystemClock::shared().wall()).as_secs();
    assert!((off - by).abs() <= 2, "its wall clock was stepped: {off}");
    assert_eq!((status, issuer.asked()), (200, 1), "what is live stays live: {again}");
    let left = body(&again)["expires_in"].as_u64().unwrap();
    assert!(left <= life && left + 20 >= life, "{left} of {life} s are left, by the time since boot");
    assert_eq!(body(&again)["access_token"], body(&first)["access_token"]);

    let (status, refused) = get(&agent.socket("http.sock"), READ);
    assert_eq!((status, body(&refused)["error"].as_str()), (503, Some("CLOCK_UNTRUSTED")), "{refused}");
    assert_eq!(issuer.asked(), 1, "no assertion has left");

    clocks.step(0);
    let (status, mended) = patiently(&agent, READ);
    assert_eq!((status, issuer.asked()), (200, 2), "a clock that was set right is believed: {mended}");
    agent.verify().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_back_revives_nothing() {
    // CLK-01
    const LIFE: u64 = 6;
    let short = format!(r#"{{"access_token":"short","token_type":"Bearer","expires_in":{LIFE}}}"#);
    let issuer = Scripted::start(Says::Bytes(json(200, &short)));
    let (agent, clocks) = agent(&issuer, None);
    assert_eq!(get(&agent.socket("http.sock"), ORDERS).0, 200);
    clocks.step(-HOUR);
    assert_eq!(get(&agent.socket("http.sock"), ORDERS).0, 200, "the control: it still lives");
    // Its end is what is waited for, and nobody tells of it.
    std::thread::sleep(Duration::from_secs(LIFE));
    let (status, answer) = get(&agent.socket("http.sock"), ORDERS);
    assert_eq!((status, body(&answer)["error"].as_str()), (503, Some("CLOCK_UNTRUSTED")), "{answer}");
    assert_eq!(issuer.asked(), 1);
    // By that clock it would be good for an hour yet.
    let until: Timestamp = issued_until(&agent).parse().unwrap();
    assert!(until > last_time(&agent) + Duration::from_secs(1800), "the control: {until}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_slept_hands_out_nothing_that_ended_meanwhile() {
    // CLK-01: time since boot goes on while the host sleeps, and the monotonic time, by which timers run, does not.
    let asleep = match Asleep::an_hour() {
        Ok(asleep) => asleep,
        Err(why) => return skip("a_host_that_slept_hands_out_nothing_that_ended_meanwhile", why),
    };
    let issuer = Scripted::start(Says::Bytes(token()));
    let (agent, clocks) = agent(&issuer, Some(&asleep));
    let mut watching = agent.client().await.watch("orders", &[]).await.unwrap();
    let first = expires_at(watching.message().await.unwrap().unwrap());
    assert_eq!((get(&agent.socket("http.sock"), ORDERS).0, issuer.asked()), (200, 1), "the control");
    let before = agent.records().pop().unwrap();

    // The clock that runs on a battery went on, and so did the issuer's.
    issuer.skewed_by(HOUR);
    clocks.step(HOUR);
    clocks.sleep();
    while !clocks.slept() {
        // Whoever has more than one thread keeps the clocks; one that waited for a disk ends when it has had nothing to do for a while.
        until_it_has_one_thread(&agent);
        // Refused, but it looks at the clock.
        assert_eq!(get(&agent.socket("http.sock"), "/v1/credentials/none").0, 403);
    }
    let (status, answer) = get(&agent.socket("http.sock"), ORDERS);
    assert_eq!((status, issuer.asked()), (200, 2), "what it had is over: {answer}");
    let left = body(&answer)["expires_in"].as_u64().unwrap();
    assert!((280..=300).contains(&left), "{left}");
    // Whoever listens is not left with what is over, either.
    let next = timeout(Duration::from_secs(30), watching.message()).await.expect("a rotation is told");
    assert!(expires_at(next.unwrap().unwrap()) >= first + HOUR - 1);
    let after = agent.records().pop().unwrap();
    let slept = Duration::from_nanos(after.boot_ns - before.boot_ns).as_secs();
    assert!(slept >= HOUR.unsigned_abs(), "the control: {slept} s since boot went by");
    agent.verify().unwrap();
}

/// There is nothing to wait on for the end of another process's thread.
fn until_it_has_one_thread(agent: &TestAgent) {
    let threads = || fs::read_dir(format!("/proc/{}/task", agent.pid())).unwrap().count();
    while threads() > 1 {
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Asks, and comes back when it is told to, as a caller does.
fn patiently(agent: &TestAgent, path: &str) -> (u16, String) {
    for _ in 0..10 {
        let (status, answer) = get(&agent.socket("http.sock"), path);
        let Some(after) = answer.lines().find_map(|line| line.strip_prefix("retry-after: ")) else {
            return (status, answer);
        };
        std::thread::sleep(Duration::from_secs(after.trim().parse().unwrap()));
    }
    panic!("it was told ten times to come back");
}

/// When what a listener was told ends.
fn expires_at(told: WatchResponse) -> i64 {
    let credential = told.credential.unwrap();
    assert!(matches!(credential.kind, Some(Kind::AccessToken(_))));
    credential.expires_at.unwrap().seconds
}

/// The agent's wall clock, as its last record has it.
fn last_time(agent: &TestAgent) -> Timestamp {
    agent.records().pop().unwrap().time.parse().unwrap()
}

fn issued_until(agent: &TestAgent) -> String {
    let issued = agent.records().into_iter().find_map(|record| record.entry.credential?.not_after);
    issued.unwrap()
}

/// An agent whose clocks are ours to set.
fn agent(issuer: &Scripted, asleep: Option<&Asleep>) -> (TestAgent, Clocks) {
    let setup = Setup::new(&issuer.url);
    setup.write();
    let path = setup.dir.path().join("clocks");
    fs::write(&path, [0; 16]).unwrap();
    let variables = [
        format!("LD_PRELOAD={}", built("libclocks.so").display()),
        format!("KB_CLOCKS={}", path.display()),
        format!(
            "KB_CLOCKS_ASLEEP={}",
            asleep.map(|asleep| asleep.path.display().to_string()).unwrap_or_default()
        ),
    ];
    let wrapper: Vec<&str> = ["env"].into_iter().chain(variables.iter().map(String::as_str)).collect();
    let agent = TestAgent::start_under(setup.dir.clone(), &wrapper);
    (agent, Clocks(File::options().read(true).write(true).open(path).unwrap()))
}

/// The clocks of one agent, as the file that it looks into.
struct Clocks(File);

impl Clocks {
    /// Sets the wall clock off by so many seconds.
    fn step(&self, seconds: i64) {
        self.0.write_all_at(&seconds.to_ne_bytes(), 0).unwrap();
    }

    /// Lets the host sleep, at the agent's next look at the clock.
    fn sleep(&self) {
        self.0.write_all_at(&1i64.to_ne_bytes(), 8).unwrap();
    }

    fn slept(&self) -> bool {
        let mut number = [0; 8];
        self.0.read_exact_at(&mut number, 8).unwrap();
        i64::from_ne_bytes(number) == 2
    }
}

/// A time namespace whose time since boot is an hour later than this one's, kept by a process in it.
struct Asleep {
    keeper: Child,
    path: PathBuf,
}

impl Asleep {
    fn an_hour() -> Result<Self, &'static str> {
        if !is_root() {
            return Err("only root can make a time namespace");
        }
        let boottime = HOUR.to_string();
        let mut keeper = Command::new("unshare")
            .args(["--time", "--boottime", &boottime, "sleep", "600"])
            .spawn()
            .map_err(|_| "unshare, of util-linux, is not here")?;
        let path = PathBuf::from(format!("/proc/{}/ns/time_for_children", keeper.id()));
        let ours =
            fs::metadata("/proc/self/ns/time").map_err(|_| "this kernel has no time namespaces")?.ino();
        while keeper.try_wait().unwrap().is_none() {
            if fs::metadata(&path).is_ok_and(|theirs| theirs.ino() != ours) {
                return Ok(Self { keeper, path });
            }
            std::thread::yield_now();
        }
        Err("no time namespace is to be had here")
    }
}

impl Drop for Asleep {
    fn drop(&mut self) {
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}

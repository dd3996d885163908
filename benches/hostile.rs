//! What others notice of a hostile client: 500 programs of ten users call for a cached credential, each on a connection of its own and
//! at a fixed rate, beside 10,000 open watches, while a user who is nobody does at once whatever the tests of floods do one by one.
//! In go phases in turns, undisturbed, hostile, undisturbed, all in one run; out comes the 99th percentile of each, and their ratio. A
//! call counts from the moment that it was due, not from when there was time to send it.
//!
//! The agent is as it is shipped, with the limits that it has if nobody sets any. The hostile client is one thread: what more of them
//! would take is the host's processor, which is the service manager's to share out.
//!
//! `cargo bench --bench hostile` (as root; add `-- --rounds 9`, `-- --seconds 5`, `-- --only rapid` for one kind of attack).
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on has failed")]
#![allow(clippy::disallowed_methods, reason = "a benchmark measures real time")]

mod support;

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    rc::Rc,
    time::Duration,
};

use keybearer::proto::v1::{WatchRequest, credentials_client::CredentialsClient};
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime,
    timerfd_create, timerfd_settime,
};
use support::{argument, connect, cpu, register, request, spread, start_agent, start_issuer};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, unix::AsyncFd},
    net::UnixStream,
    task::{LocalSet, spawn_local},
};
use tonic::Code;

/// So many users, with so many programs each, that call once a second each; and what each user listens to.
const USERS: usize = 10;
const PROGRAMS: usize = 50;
const WATCHES: usize = 1000;
/// On so many connections more: with the programs', as many as one user may have.
const LISTENERS: usize = 13;

const FIRST_USER: u32 = 60_001;
const HOSTILE_USER: u32 = 65_533;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let told =
        |name: &str| arguments.iter().position(|argument| argument == name).map(|at| &arguments[at + 1..]);
    if let Some(rest) = told("--user") {
        return alone(user(rest[0].as_ref(), rest[1].parse().unwrap()));
    }
    if let Some(rest) = told("--hostile") {
        return alone(hostile(rest[0].as_ref(), &rest[1]));
    }
    if !rustix::process::geteuid().is_root() {
        println!("hostile: NOT measured, only root can be several users");
        return;
    }
    let only = told("--only").map_or("all", |rest| &rest[0]);
    compare(argument("--rounds", 5), Duration::from_secs(argument("--seconds", 6) as u64), only);
}

fn alone(work: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(LocalSet::new().run_until(work));
}

fn compare(rounds: usize, phase: Duration, only: &str) {
    let dir = tempfile::tempdir().unwrap();
    configure(dir.path(), &start_issuer(Duration::from_secs(3000)));
    let (agent, _) = start_agent(dir.path());
    let pid = agent.0.id();
    let program = dir.path().join("hostile");
    let me = std::env::current_exe().unwrap();
    assert!(Command::new("install").args(["-m", "755"]).args([&me, &program]).status().unwrap().success());
    let socket = support::socket(dir.path());
    let users: Vec<Helper> = (0..USERS)
        .map(|n| Helper::start(&program, FIRST_USER + n as u32, ["--user", &path(&socket), &n.to_string()]))
        .collect();
    let resident = support::resident_kib(pid);
    let records = || fs::metadata(dir.path().join("state/audit/ledger.jsonl")).unwrap().len();
    println!(
        "{} programs of {USERS} users call once a second each, {} watches; {rounds} rounds of {phase:?}; the agent has {resident} KiB \
         resident; load of the machine {}",
        USERS * PROGRAMS,
        USERS * WATCHES,
        fs::read_to_string("/proc/loadavg").unwrap().trim()
    );
    // A phase that counts for nothing, to warm all.
    std::thread::sleep(phase);
    let (mut phases, mut seen) = (vec![], BTreeMap::<String, u64>::new());
    let mut undisturbed = || {
        let (from, used) = (now(), cpu(pid));
        std::thread::sleep(phase);
        phases.push(Phase { from, until: now(), cores: (cpu(pid) - used) / phase.as_secs_f64(), grown: 0 });
    };
    let mut hostile = vec![];
    for _ in 0..rounds {
        undisturbed();
        let attacker = Helper::start(&program, HOSTILE_USER, ["--hostile", &path(&socket), only]);
        let (from, used, before) = (now(), cpu(pid), records());
        std::thread::sleep(phase);
        let cores = (cpu(pid) - used) / phase.as_secs_f64();
        hostile.push(Phase { from, until: now(), cores, grown: records() - before });
        for line in attacker.stop() {
            let (name, times) = line.split_once(' ').unwrap();
            *seen.entry(name.into()).or_default() += times.parse::<u64>().unwrap();
        }
        // What it left open ends now: nobody's.
        std::thread::sleep(Duration::from_secs(1));
    }
    undisturbed();
    let calls: Vec<Call> =
        users.into_iter().flat_map(|user| user.stop()).map(|line| Call::read(&line)).collect();
    let samples = |phase: &Phase| {
        let within = calls.iter().filter(|call| (phase.from..phase.until).contains(&call.due));
        let mut micros: Vec<f64> = within.map(|call| call.micros).collect();
        micros.sort_by(f64::total_cmp);
        micros
    };
    let at = |micros: &[f64], share: f64| micros[((micros.len() - 1) as f64 * share) as usize];
    println!(
        "{:>6} {:>8} {:>8} {:>8} | {:>8} {:>8} {:>8} {:>8} | {:>6} {:>6} {:>10}",
        "round", "p50", "p99", "max", "calls", "p50", "p99", "max", "ratio", "cores", "ledger, KB"
    );
    let mut ratios = vec![];
    for (n, phase) in hostile.iter().enumerate() {
        // Beside it on both sides: what else the machine does is as likely to hit one as the other.
        let mut calm = [samples(&phases[n]), samples(&phases[n + 1])].concat();
        calm.sort_by(f64::total_cmp);
        let harassed = samples(phase);
        let ratio = at(&harassed, 0.99) / at(&calm, 0.99);
        ratios.push(ratio);
        println!(
            "{:>6} {:>8.0} {:>8.0} {:>8.0} | {:>8} {:>8.0} {:>8.0} {:>8.0} | {ratio:>6.2} {:>6.2} {:>10}",
            n + 1,
            at(&calm, 0.5),
            at(&calm, 0.99),
            at(&calm, 1.0),
            harassed.len(),
            at(&harassed, 0.5),
            at(&harassed, 0.99),
            at(&harassed, 1.0),
            phase.cores,
            phase.grown >> 10
        );
    }
    let (median, least, most) = spread(ratios);
    let failed = calls.iter().filter(|call| call.micros.is_infinite()).count();
    let idle = phases.iter().map(|phase| phase.cores).sum::<f64>() / phases.len() as f64;
    println!(
        "p99 hostile / undisturbed: {median:.2} ({least:.2} - {most:.2}), goal 2; {failed} of {} calls failed",
        calls.len()
    );
    println!(
        "cores of the agent undisturbed: {idle:.2}; resident afterwards: {} KiB; what the hostile client did: {seen:?}",
        support::resident_kib(pid)
    );
}

struct Phase {
    from: u64,
    until: u64,
    cores: f64,
    grown: u64,
}

/// When a call was due, and how long after that it was answered.
struct Call {
    due: u64,
    micros: f64,
}

impl Call {
    fn read(line: &str) -> Self {
        let (due, micros) = line.split_once(' ').unwrap();
        Self { due: due.parse().unwrap(), micros: micros.parse().unwrap() }
    }
}

fn configure(dir: &Path, issuer: &keybearer::dev::Handle) {
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
    let until = jiff::Timestamp::from_second(jiff::Timestamp::now().as_second() + 86_400).unwrap();
    let users: Vec<String> = (FIRST_USER..).take(USERS).map(|uid| format!("{{ uid = {uid} }}")).collect();
    let text = format!(
        r#"environment = "bench"
state_directory = "{0}/state"
runtime_directory = "{0}/run"
[listen]
workload_mode = "0666"
http_mode = "0666"
[log]
filter = "error"
[issuers.dev]
kind = "oauth"
issuer = "{1}"
dev = true
[identities.shop]
owner = "shop@example.com"
assurance = "interim"
humans = "allowed"
match = [{2}]
[identities.shop.credentials.orders]
issuer = "dev"
client_id = "shop"
resource = "https://orders.example"
scope = ["orders:read"]
binding = "bearer"
exception = {{ owner = "shop@example.com", reason = "a benchmark", until = "{until:.0}" }}
"#,
        dir.display(),
        issuer.url(),
        users.join(", ")
    );
    let config = dir.join("agent.toml");
    fs::write(&config, text).unwrap();
    fs::set_permissions(&config, fs::Permissions::from_mode(0o600)).unwrap();
    register(issuer, &config);
}

fn path(path: &Path) -> String {
    path.display().to_string()
}

/// Nanoseconds of the clock that all processes share.
fn now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// A process of another user's, which works until its standard input ends, and then says what came of it.
struct Helper {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Helper {
    /// Returns once it says that it is at work.
    fn start(program: &Path, uid: u32, arguments: [&str; 3]) -> Self {
        let who = uid.to_string();
        let mut child = Command::new("setpriv")
            .args(["--reuid", &who, "--regid", &who, "--clear-groups"])
            .arg(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (input, output) = (child.stdin.take(), BufReader::new(child.stdout.take().unwrap()));
        let mut helper = Self { child, input, output };
        let mut line = String::new();
        helper.output.read_line(&mut line).unwrap();
        assert_eq!(line.trim(), "ready");
        helper
    }

    fn stop(mut self) -> Vec<String> {
        drop(self.input.take());
        let mut text = String::new();
        self.output.read_to_string(&mut text).unwrap();
        text.lines().map(str::to_owned).collect()
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Says that it is at work, and returns when it is to stop.
async fn until_told() {
    println!("ready");
    std::io::stdout().flush().unwrap();
    let mut rest = vec![];
    tokio::io::stdin().read_to_end(&mut rest).await.unwrap();
}

/// One user: its programs call in turns, each once a second, and its listeners listen.
async fn user(socket: &Path, number: u64) {
    let mut listening = vec![];
    for n in 0..LISTENERS {
        let client = CredentialsClient::new(connect(socket).await);
        for _ in 0..WATCHES / LISTENERS + usize::from(n < WATCHES % LISTENERS) {
            let mut asked = tonic::Request::new(WatchRequest { name: "orders".into(), scope: vec![] });
            asked.metadata_mut().insert("keybearer", "v1".parse().unwrap());
            let mut stream = client.clone().watch(asked).await.unwrap().into_inner();
            stream.message().await.unwrap().unwrap();
            listening.push(stream);
        }
    }
    let mut programs = vec![];
    for _ in 0..PROGRAMS {
        let mut client = CredentialsClient::new(connect(socket).await);
        client.get(request()).await.unwrap();
        programs.push(client);
    }
    let calls = Rc::new(RefCell::new(vec![]));
    let calling = spawn_local(call(programs, number, Rc::clone(&calls)));
    until_told().await;
    calling.abort();
    let mut out = String::new();
    for (due, micros) in calls.borrow().iter() {
        out.push_str(&format!("{due} {micros}\n"));
    }
    std::io::stdout().write_all(out.as_bytes()).unwrap();
}

type Client = CredentialsClient<tonic::transport::Channel>;

/// Open loop: what is due is sent, whatever became of the calls before.
async fn call(programs: Vec<Client>, number: u64, calls: Rc<RefCell<Vec<(u64, f64)>>>) {
    let timer =
        timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC).unwrap();
    #[expect(deprecated, reason = "its successor is unsafe; the descriptor is owned here")]
    let timer = AsyncFd::new(timer).unwrap();
    // Each program has a slot of the second, and its moment in the slot is one of chance.
    let slot = 1_000_000_000 / PROGRAMS as u64;
    let (mut at, mut dice) = (now() + slot, number + 1);
    loop {
        for program in &programs {
            at += slot;
            dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let due = at + (dice >> 33) % slot;
            let moment =
                Timespec { tv_sec: (due / 1_000_000_000) as i64, tv_nsec: (due % 1_000_000_000) as i64 };
            let once = Itimerspec { it_interval: Timespec::default(), it_value: moment };
            timerfd_settime(&timer, TimerfdTimerFlags::ABSTIME, &once).unwrap();
            while now() < due {
                let mut ready = timer.readable().await.unwrap();
                // It may not have gone off yet.
                let _ = ready.try_io(|timer| Ok(rustix::io::read(timer, &mut [0; 8])?));
            }
            let (mut client, calls) = (program.clone(), Rc::clone(&calls));
            spawn_local(async move {
                let answer = client.get(request()).await;
                let micros = (now() - due) as f64 / 1e3;
                calls.borrow_mut().push((due, if answer.is_ok() { micros } else { f64::INFINITY }));
            });
        }
    }
}

/// What every HTTP/2 client begins with (RFC 9113 3.4), and frames to follow it.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// HEADERS of a call.
fn headers(stream: u32) -> Vec<u8> {
    let path = "/keybearer.v1.Credentials/Get";
    let mut block = vec![0x83, 0x86, 0x04, path.len() as u8];
    block.extend(path.as_bytes());
    block.extend(b"\x01\x01x\x00\x02te\x08trailers\x0f\x10\x10application/grpc\x00\x09keybearer\x02v1");
    frame(1, 4, stream, &block)
}

/// A way to harass, and how many do it at once. The last is the control: a client that has work of its own, takes a core for it, and
/// leaves the agent alone. It counts only when it is asked for by name.
const ATTACKS: [(&str, usize); 11] = [
    ("knock", 6),
    ("silent", 12),
    ("half", 8),
    ("garbage", 4),
    ("rapid", 4),
    ("bomb", 4),
    ("ping", 3),
    ("settings", 3),
    ("nobody", 4),
    ("nobody-http", 4),
    ("control", 1),
];

/// All of it at once, or one kind.
async fn hostile(socket: &Path, only: &str) {
    let counts = Rc::new(RefCell::new(BTreeMap::<&str, u64>::new()));
    let wanted = |name: &str| if only == "all" { name != "control" } else { name == only };
    for (name, many) in ATTACKS.into_iter().filter(|(name, _)| wanted(name)) {
        for _ in 0..many {
            let (socket, counts) = (socket.to_owned(), Rc::clone(&counts));
            spawn_local(async move {
                loop {
                    attack(name, &socket, &counts).await;
                    tokio::task::yield_now().await;
                }
            });
        }
    }
    until_told().await;
    for (name, times) in counts.borrow().iter() {
        println!("{name} {times}");
    }
}

/// One attempt, until the agent has had enough of it.
async fn attack(name: &'static str, socket: &Path, counts: &Rc<RefCell<BTreeMap<&'static str, u64>>>) {
    let count = || *counts.borrow_mut().entry(name).or_default() += 1;
    let http = socket.with_file_name("http.sock");
    let rapid = |n: u32| [headers(2 * n + 1), frame(3, 0, 2 * n + 1, &[0, 0, 0, 8])].concat();
    match name {
        "knock" => {
            count();
            let _ = UnixStream::connect(socket).await;
            let _ = UnixStream::connect(http).await;
        }
        "silent" => {
            count();
            pour(socket, vec![], |_| None).await;
        }
        "half" => {
            count();
            pour(socket, [PREFACE, &headers(1)[..20]].concat(), |_| None).await;
        }
        "garbage" => {
            count();
            pour(socket, vec![b'x'; 4096], |_| None).await;
        }
        "rapid" => {
            pour(socket, PREFACE.to_vec(), |n| {
                count();
                Some((100 * n..100 * n + 100).flat_map(rapid).collect())
            })
            .await;
        }
        "bomb" => {
            pour(socket, [PREFACE, &frame(1, 0, 1, b"")].concat(), |_| {
                count();
                Some(frame(9, 0, 1, &[0; 8192]))
            })
            .await;
        }
        "ping" => {
            let ping = frame(6, 0, 0, b"12345678").repeat(100);
            pour(socket, PREFACE.to_vec(), |_| {
                count();
                Some(ping.clone())
            })
            .await;
        }
        "settings" => {
            let settings = frame(4, 0, 0, &[0, 4, 0, 0, 0xff, 0xff]).repeat(100);
            pour(socket, PREFACE.to_vec(), |_| {
                count();
                Some(settings.clone())
            })
            .await;
        }
        "nobody" => {
            let Ok(stream) = UnixStream::connect(socket).await else { return };
            drop(stream);
            let client = CredentialsClient::new(connect(socket).await);
            let all: Vec<_> = (0..16)
                .map(|_| {
                    let (mut client, counts) = (client.clone(), Rc::clone(counts));
                    spawn_local(async move {
                        while let Err(status) = client.get(request()).await {
                            if status.code() != Code::PermissionDenied {
                                return;
                            }
                            *counts.borrow_mut().entry(name).or_default() += 1;
                        }
                    })
                })
                .collect();
            for calling in all {
                let _ = calling.await;
            }
        }
        "nobody-http" => {
            count();
            let asks = b"GET /v1/credentials/orders HTTP/1.1\r\nhost: x\r\nkeybearer: v1\r\nconnection: close\r\n\r\n";
            pour(&http, asks.to_vec(), |_| None).await;
        }
        "control" => {
            count();
            // A millisecond of work between two looks at whether it is to stop.
            let until = now() + 1_000_000;
            while now() < until {}
        }
        other => panic!("{other} is no attack"),
    }
}

/// Writes `first`, and what `more` gives for as long as it gives something, and reads what comes until the agent hangs up.
async fn pour(socket: &Path, first: Vec<u8>, mut more: impl FnMut(u32) -> Option<Vec<u8>>) {
    let Ok(stream) = UnixStream::connect(socket).await else { return };
    let (mut from, mut to) = stream.into_split();
    let reading = spawn_local(async move {
        let mut heard = vec![0; 16 << 10];
        while from.read(&mut heard).await.is_ok_and(|len| len > 0) {}
    });
    let mut next = Some(first);
    let mut n = 0;
    while let Some(bytes) = next {
        if to.write_all(&bytes).await.is_err() {
            break;
        }
        next = more(n);
        n += 1;
    }
    let _ = reading.await;
}

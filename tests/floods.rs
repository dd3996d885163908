//! Floods and stalls under the real binary (ATT-14, ATT-26, TM-20): whoever floods is cut off or waits, everybody else is
//! served meanwhile, and the agent keeps neither memory nor descriptors of it.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::{
    fs,
    io::{ErrorKind, Read as _, Write as _},
    mem::MaybeUninit,
    os::{fd::AsFd as _, unix::net::UnixStream},
    path::Path,
    process::{Command, Output},
    time::Duration,
};

use support::{Setup, TestAgent, attacker, get, is_root, issuer, skip};

/// What every HTTP/2 client begins with (RFC 9113 3.4), and frames to follow it.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const CONTINUATION: u8 = 9;

/// How much more memory a flood may have cost the agent, in KiB.
const MAX_GROWTH: u64 = 16 << 10;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// HEADERS of a call: POST, http, :path, content-type, te, and what every call of ours carries.
fn call(stream: u32, path: &str) -> Vec<u8> {
    let mut block = vec![0x83, 0x86, 0x04, path.len() as u8];
    block.extend(path.as_bytes());
    block.extend(b"\x01\x01x\x00\x02te\x08trailers\x0f\x10\x10application/grpc\x00\x09keybearer\x02v1");
    frame(HEADERS, 4, stream, &block)
}

fn connect(agent: &TestAgent) -> UnixStream {
    let stream = UnixStream::connect(agent.socket("agent.sock")).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

/// Writes as long as the agent takes it. True if it hung up.
fn pour(stream: &mut UnixStream, bytes: &[u8]) -> bool {
    match stream.write_all(bytes) {
        Ok(()) => false,
        Err(error) => {
            assert_ne!(error.kind(), ErrorKind::WouldBlock, "the agent neither reads nor hangs up");
            true
        }
    }
}

/// Reads until the agent hangs up.
fn drain(stream: &mut UnixStream) {
    let mut chunk = [0; 4096];
    loop {
        match stream.read(&mut chunk) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => panic!("the agent does not hang up"),
            Err(_) => return,
        }
    }
}

/// The most memory the agent ever had, in KiB.
fn high_water(agent: &TestAgent) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn descriptors(agent: &TestAgent) -> usize {
    fs::read_dir(format!("/proc/{}/fd", agent.pid())).unwrap().count()
}

/// An agent that has served once, and what it needed for that.
async fn warm(more: &str) -> (support::Issuer, TestAgent, u64) {
    let issuer = issuer(300);
    let agent = Setup::new(issuer.handle.url()).and(more).start(Some(&issuer.handle));
    agent.client().await.get("orders", &[]).await.unwrap();
    let before = high_water(&agent);
    (issuer, agent, before)
}

async fn unharmed(agent: &TestAgent, before: u64) {
    agent.client().await.get("orders", &[]).await.unwrap();
    let grown = high_water(agent) - before;
    assert!(grown < MAX_GROWTH, "the flood cost {grown} KiB");
    agent.verify().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn floods_of_frames_end_the_connection_or_change_nothing() {
    let (_issuer, agent, before) = warm("").await;
    let path = "/keybearer.v1.Credentials/Get";
    // Calls taken back at once (rapid reset, CVE-2023-44487).
    let rapid = |n: u32| [call(2 * n + 1, path), frame(RST_STREAM, 0, 2 * n + 1, &[0, 0, 0, 8])].concat();
    // Header blocks without end (CVE-2024-27316), in full pieces.
    let endless = |n: u32| {
        if n == 0 { frame(HEADERS, 0, 1, b"") } else { frame(CONTINUATION, 0, 1, &[0; 8192]) }
    };
    let ping = |_: u32| frame(PING, 0, 0, b"12345678");
    let settings = |_: u32| frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0xff, 0xff]);
    type Flood<'a> = &'a dyn Fn(u32) -> Vec<u8>;
    let floods: [(&str, Flood<'_>, bool); 4] = [
        ("rapid reset", &rapid, true),
        ("CONTINUATION", &endless, true),
        ("PING", &ping, false),
        ("SETTINGS", &settings, false),
    ];
    for (name, flood, ends) in floods {
        let mut stream = connect(&agent);
        stream.write_all(PREFACE).unwrap();
        let mut reader = stream.try_clone().unwrap();
        let reading = std::thread::spawn(move || drain(&mut reader));
        let ended = (0..20_000).any(|n| pour(&mut stream, &flood(n)));
        // What the agent bears to the end, it bears without harm; then it is we who hang up.
        assert!(ended || !ends, "{name}: twenty thousand frames and still connected");
        stream.shutdown(std::net::Shutdown::Both).ok();
        reading.join().unwrap();
        unharmed(&agent, before).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_nobody_reads_are_not_gathered_without_end() {
    let (_issuer, agent, before) = warm("").await;
    let mut stream = connect(&agent);
    stream.write_all(PREFACE).unwrap();
    stream.set_nonblocking(true).unwrap();
    // Each PING is answered; nobody reads the answers, so at some point the agent stops reading too.
    let ping = frame(PING, 0, 0, b"12345678").repeat(1000);
    let mut poured = 0;
    let mut refused = 0;
    while refused < 1000 && poured < (64 << 20) {
        match stream.write(&ping) {
            Ok(written) => poured += written,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                refused += 1;
                tokio::task::yield_now().await;
            }
            Err(_) => break,
        }
    }
    assert!(poured < (64 << 20), "the agent takes whatever comes");
    unharmed(&agent, before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_broken_connections_leaves_a_few_records_which_count_all() {
    // TM-20: whoever fills the ledger fills the disk, and then nobody is answered.
    let (_issuer, agent, before) = warm("").await;
    for _ in 0..300 {
        let mut stream = connect(&agent);
        stream.write_all(b"this is no preface, and no HTTP/2 at all").unwrap();
        drain(&mut stream);
    }
    unharmed(&agent, before).await;
    let dir = std::sync::Arc::clone(&agent.dir);
    agent.stop();
    let records: Vec<_> = keybearer::audit::read(&dir.path().join("state/audit"), 0).unwrap().collect();
    let cut = records.iter().filter(|record| record.entry.event.reason.as_deref() == Some("PROTOCOL"));
    let words: Vec<String> = cut.map(|record| record.entry.detail.clone().unwrap()).collect();
    let gathered: Vec<u64> = words
        .iter()
        .filter_map(|words| words.split_once("the last of ")?.1.split(' ').next()?.parse().ok())
        .collect();
    let (alone, gathered_in_all) = ((words.len() - gathered.len()) as u64, gathered.iter().sum::<u64>());
    assert_eq!(alone + gathered_in_all, 300, "{words:?}");
    assert!(words.len() < 30, "{} records", words.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_refused_without_end_is_on_record_each_time_and_waits() {
    // TM-20, AUD-01
    let (_issuer, agent, before) = warm("").await;
    let mut client = agent.client().await;
    let records = agent.records().len();
    let began = uptime();
    let mut refused = 0;
    while uptime() - began < 3.0 {
        client.get("none", &[]).await.unwrap_err();
        refused += 1;
    }
    assert!((200..=200 + 4 * 10).contains(&refused), "{refused} refusals in three seconds");
    assert_eq!(agent.records().len() - records, refused);
    unharmed(&agent, before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_silent_are_ended_and_the_many_of_one_user_wait_at_their_own_door() {
    if !is_root() {
        return skip("silent connections", "only root can be two users");
    }
    let limits = "\n[limits]\nconnections_per_uid = 8\nfirst_request_within = \"2s\"\n";
    let issuer = issuer(300);
    let agent = Setup::matching(issuer.handle.url(), "match = { uid = 65533 }")
        .and(limits)
        .start(Some(&issuer.handle));
    let mut silent: Vec<UnixStream> = (0..8).map(|_| connect(&agent)).collect();
    // One more of this user is turned away at once, and another user is served.
    drain(&mut connect(&agent));
    let other = as_nobody(&agent, "http.sock", "/v1/credentials/orders");
    assert!(String::from_utf8_lossy(&other.stdout).contains("access_token"), "{other:?}");
    // A stall is no request: half a preface keeps nothing open either.
    silent[0].write_all(&PREFACE[..10]).unwrap();
    silent.iter_mut().for_each(drain);
    assert_ne!(get(&agent.socket("http.sock"), "/ready").0, 0, "and this user may come again");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_and_fifty_three_descriptors_are_closed_with_their_connection() {
    // ATT-04: as many as one message can carry.
    let (_issuer, agent, before) = warm("").await;
    let open = descriptors(&agent);
    let null = fs::File::open("/dev/null").unwrap();
    for _ in 0..20 {
        let mut stream = connect(&agent);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
        let mut control = rustix::net::SendAncillaryBuffer::new(&mut space);
        let load = [null.as_fd(); 253];
        assert!(control.push(rustix::net::SendAncillaryMessage::ScmRights(&load)));
        let bytes = [std::io::IoSlice::new(PREFACE)];
        rustix::net::sendmsg(&stream, &bytes, &mut control, rustix::net::SendFlags::empty()).unwrap();
        drain(&mut stream);
    }
    unharmed(&agent, before).await;
    // The connection that has just asked may not be closed yet.
    assert!(descriptors(&agent) <= open + 8, "{} descriptors were {open}", descriptors(&agent));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_of_400_megabytes_keeps_nobody_waiting() {
    // ATT-14: each connection finds a file that was touched, so that it has to be hashed again.
    if !is_root() {
        return skip("a program of 400 MB", "only root can be two users");
    }
    let issuer = issuer(300);
    let sum = "0".repeat(64);
    let agent = Setup::new(issuer.handle.url())
        .also("big", "interim", &format!("match = {{ uid = 65533, sha256 = \"{sum}\" }}"))
        .start(Some(&issuer.handle));
    agent.client().await.get("orders", &[]).await.unwrap();
    let program = attacker(&agent);
    fs::OpenOptions::new().write(true).open(&program).unwrap().set_len(400 << 20).unwrap();
    let (began, used) = (uptime(), cpu(&agent));
    let socket = agent.socket("http.sock");
    let flood = std::thread::spawn({
        let (program, socket) = (program.clone(), socket.clone());
        move || {
            for _ in 0..4 {
                assert!(Command::new("touch").arg(&program).status().unwrap().success());
                let refused = run_as_nobody(&program, &socket, "/v1/credentials/orders");
                assert!(!String::from_utf8_lossy(&refused.stdout).contains("access_token"), "{refused:?}");
            }
        }
    });
    let mut served = 0;
    while !flood.is_finished() {
        agent.client().await.get("orders", &[]).await.unwrap();
        served += 1;
    }
    flood.join().unwrap();
    assert!(served > 20, "others were served only {served} times meanwhile");
    let (elapsed, used) = (uptime() - began, cpu(&agent) - used);
    println!("served {served} others meanwhile; the agent used {:.2} of a core", used / elapsed);
}

fn as_nobody(agent: &TestAgent, socket: &str, path: &str) -> Output {
    run_as_nobody(&attacker(agent), &agent.socket(socket), path)
}

fn run_as_nobody(program: &Path, socket: &Path, path: &str) -> Output {
    let nobody = ["--reuid", "65533", "--regid", "65533", "--clear-groups"];
    Command::new("setpriv").args(nobody).arg(program).arg("honest").arg(socket).arg(path).output().unwrap()
}

/// Seconds since boot.
fn uptime() -> f64 {
    let text = fs::read_to_string("/proc/uptime").unwrap();
    text.split(' ').next().unwrap().parse().unwrap()
}

/// Seconds of processor the agent has used.
fn cpu(agent: &TestAgent) -> f64 {
    let mut nanos = 0.0;
    for task in fs::read_dir(format!("/proc/{}/task", agent.pid())).unwrap() {
        let schedstat = fs::read_to_string(task.unwrap().path().join("schedstat")).unwrap_or_default();
        nanos += schedstat.split(' ').next().and_then(|run| run.parse::<f64>().ok()).unwrap_or(0.0);
    }
    nanos / 1e9
}

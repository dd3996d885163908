//! The agent killed at random moments while callers press it. In go kill -9 and a crowd; out comes, each time, a ledger that
//! verifies, and in it every exchange that anybody was answered.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::{
    collections::HashSet,
    fs::{self, OpenOptions},
    hash::{BuildHasher as _, RandomState},
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use keybearer::{audit::EventType, clock::SystemClock};
use support::{Setup, TestAgent, get, issuer};

/// How many agents die: some each time, 200 with `tests/run --long`.
fn crashes() -> usize {
    if std::env::var_os("KEYBEARER_TESTS_LONG").is_some() { 200 } else { 20 }
}

/// How many of them share a ledger, so that each has a history to keep.
const SHARING: usize = 10;

const CALLERS: usize = 6;

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_moment_it_has_recorded_every_answer() {
    // AUD-02, AUD-22
    let issuer = issuer(300);
    let (mut answered, mut recorded, mut files) = (0, 0, 0);
    for _ in 0..crashes().div_ceil(SHARING) {
        // Small files, so that some die while the ledger turns to another.
        let setup =
            Setup::new(issuer.handle.url()).and("\n[audit]\nrotate_at = 65536\ncheckpoint_records = 10\n");
        let mut agent = setup.start(Some(&issuer.handle));
        let mut known = HashSet::new();
        for _ in 0..SHARING {
            let stop = Arc::new(AtomicBool::new(false));
            let callers: Vec<_> = (0..CALLERS)
                .map(|_| {
                    let (socket, stop) = (agent.socket("http.sock"), Arc::clone(&stop));
                    thread::spawn(move || call_until(&socket, &stop))
                })
                .collect();
            // The moment is the point: nothing can be awaited that would not make it less random.
            thread::sleep(Duration::from_micros(RandomState::new().hash_one(()) % 60_000));
            agent.kill();
            stop.store(true, Ordering::Relaxed);
            known.extend(callers.into_iter().flat_map(|caller| caller.join().unwrap()));
            agent = TestAgent::start(Arc::clone(&setup.dir));
            agent.verify().unwrap();
        }
        let records = agent.records();
        let written: HashSet<String> =
            records.iter().map(|record| record.entry.exchange_id.0.to_string()).collect();
        let lost: Vec<_> = known.difference(&written).collect();
        assert!(lost.is_empty(), "{} answers without a record, such as {:?}", lost.len(), lost[0]);
        answered += known.len();
        recorded += records.len();
        files += agent.verify().unwrap().files;
    }
    assert!(answered > 0, "nobody was answered, so nothing was tried");
    assert!(files > 2 * crashes().div_ceil(SHARING) as u64, "{files} files: hardly any turned");
    println!("{} crashes, {answered} answers seen, {recorded} records in {files} files", crashes());
}

#[tokio::test(flavor = "multi_thread")]
async fn out_of_memory_it_ends_and_has_recorded_every_answer() {
    // AUD-02, AUD-22, TM-20: a flood of requests that never end, and hardly more memory than the agent has already.
    let issuer = issuer(300);
    let setup = Setup::new(issuer.handle.url())
        .and("\n[limits]\nconnections_per_uid = 1000\nfirst_request_within = \"60s\"\n");
    let mut agent = setup.start(Some(&issuer.handle));
    assert_eq!(get(&agent.socket("http.sock"), "/v1/credentials/orders").0, 200, "the control");
    let limit = memory(&agent) + ROOM;
    let limited =
        Command::new("prlimit").args(["--pid", &agent.pid().to_string(), &format!("--as={limit}")]).status();
    assert!(limited.unwrap().success());

    let stop = Arc::new(AtomicBool::new(false));
    let callers: Vec<_> = (0..CALLERS)
        .map(|_| {
            let (socket, stop) = (agent.socket("http.sock"), Arc::clone(&stop));
            thread::spawn(move || call_until(&socket, &stop))
        })
        .collect();
    while agent.records().len() < 50 {
        thread::yield_now();
    }
    let endless = format!("GET /live HTTP/1.1\r\nx: {}", "x".repeat(7 << 10));
    let mut held = vec![];
    let clock = SystemClock::shared();
    let until = clock.boot() + Duration::from_secs(30);
    while !agent.has_ended() && clock.boot() < until {
        // At its end it takes no more of them; until then it takes as many as it may.
        if let Ok(mut stream) = UnixStream::connect(agent.socket("http.sock")) {
            let _ = stream.set_write_timeout(Some(Duration::from_secs(1)));
            let _ = stream.write_all(endless.as_bytes());
            held.push(stream);
        }
    }
    assert!(agent.has_ended(), "{} requests fit into {} KiB", held.len(), ROOM >> 10);
    let log = agent.kill();
    assert!(log.contains("memory allocation of"), "{log}");
    stop.store(true, Ordering::Relaxed);
    let answered: HashSet<String> = callers.into_iter().flat_map(|caller| caller.join().unwrap()).collect();

    let agent = TestAgent::start(Arc::clone(&setup.dir));
    agent.verify().unwrap();
    let written: HashSet<String> =
        agent.records().iter().map(|record| record.entry.exchange_id.0.to_string()).collect();
    assert!(answered.is_subset(&written), "{:?}", answered.difference(&written).next());
    assert!(!answered.is_empty(), "nobody was answered, so nothing was tried");
    assert_eq!(get(&agent.socket("http.sock"), "/v1/credentials/orders").0, 200, "it goes on");
    println!("{} requests held, {} answers seen", held.len(), answered.len());
}

/// How much more memory than at rest the agent may have, in bytes.
const ROOM: u64 = 4 << 20;

/// The size of its address space, in bytes.
fn memory(agent: &TestAgent) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    let size = status.lines().find_map(|line| line.strip_prefix("VmSize:")).unwrap();
    size.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

#[tokio::test(flavor = "multi_thread")]
async fn a_torn_last_line_is_cut_off_and_told() {
    // AUD-22
    let issuer = issuer(300);
    let agent = Setup::new(issuer.handle.url()).start(Some(&issuer.handle));
    agent.client().await.get("orders", &[]).await.unwrap();
    let (dir, ledger, before) = (Arc::clone(&agent.dir), agent.ledger(), agent.records().len());
    agent.kill();
    let file = ledger.join("ledger.jsonl");
    OpenOptions::new().append(true).open(file).unwrap().write_all(br#"{"v":1,"seq":"#).unwrap();
    assert!(keybearer::audit::verify(&ledger, None).unwrap().torn, "told before it is mended");

    let agent = TestAgent::start(dir);
    assert!(!agent.verify().unwrap().torn);
    let records = agent.records();
    let repaired = records.iter().find(|record| record.entry.event.kind == EventType::LedgerRepaired);
    let detail = repaired.unwrap().entry.detail.clone().unwrap();
    assert!(detail.contains("13 bytes"), "{detail}");
    assert_eq!(records[before].seq, repaired.unwrap().seq, "it stands where the torn line stood");
}

/// Calls, each time on a new connection, until told to stop; the exchanges that were answered whole with a credential.
fn call_until(socket: &Path, stop: &AtomicBool) -> Vec<String> {
    let mut exchanges = vec![];
    while !stop.load(Ordering::Relaxed) {
        let Ok(mut stream) = UnixStream::connect(socket) else { return exchanges };
        let request =
            b"GET /v1/credentials/orders HTTP/1.1\r\nhost: x\r\nkeybearer: v1\r\nconnection: close\r\n\r\n";
        let mut answer = String::new();
        if stream.write_all(request).is_err() || stream.read_to_string(&mut answer).is_err() {
            return exchanges;
        }
        if answer.starts_with("HTTP/1.1 200") {
            let exchange = answer.lines().find_map(|line| line.strip_prefix("keybearer-exchange: "));
            exchanges.push(exchange.expect("an answer names its exchange").to_owned());
        }
    }
    exchanges
}

//! The agent killed at random moments while callers press it. In go kill -9 and a crowd; out comes, each time, a ledger that
//! verifies, and in it every exchange that anybody was answered.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::{
    collections::HashSet,
    fs::OpenOptions,
    hash::{BuildHasher as _, RandomState},
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use keybearer::audit::EventType;
use support::{Setup, TestAgent, issuer};

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
    let (mut answered, mut recorded) = (0, 0);
    for _ in 0..crashes().div_ceil(SHARING) {
        let setup = Setup::new(issuer.handle.url());
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
    }
    assert!(answered > 0, "nobody was answered, so nothing was tried");
    println!("{} crashes, {answered} answers seen, {recorded} records", crashes());
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

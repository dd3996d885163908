//! Ten thousand open watches of the agent beside those of a stock tonic server: memory a stream, and how long it takes until all
//! of them have heard of one rotation, in turns in one run.
//!
//! `cargo bench --bench watches` (add `-- --rounds 7`, `-- --streams 1000`).
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on has failed")]
#![allow(clippy::disallowed_methods, reason = "a benchmark measures real time")]

mod support;

use std::{
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use keybearer::proto::v1::{WatchRequest, credentials_client::CredentialsClient};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use support::{
    Running, argument, configure, connect, cpu, request, resident_kib, serve_if_asked, spread, start_agent,
    start_issuer, start_stock,
};
use tokio::sync::mpsc;

/// A credential lives so long, and is replaced after two thirds of that.
const LIFE: Duration = Duration::from_secs(30);

fn main() {
    if serve_if_asked() {
        return;
    }
    let (rounds, streams) = (argument("--rounds", 3), argument("--streams", 10_000));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    println!("{streams} watches, {rounds} rotations each, agent against stock tonic");
    // What stands behind a connection of the agent: socket, pidfd, its directory in /proc and its memory map, and room for as
    // many; in the client it is one descriptor.
    let need = Rlimit { current: Some(200_000), maximum: Some(200_000) };
    // Where that is not allowed, there is what there is.
    let _ = setrlimit(Resource::Nofile, need);
    let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let most = (descriptors.saturating_sub(100) / 8) as usize;
    if most < streams {
        println!(
            "{streams} connections: NOT measured, the limit of descriptors is {descriptors}; {most} instead"
        );
    }
    for connections in [streams / 50, streams.min(most)] {
        runtime.block_on(compare(rounds, streams, connections.max(1)));
    }
}

async fn compare(rounds: usize, streams: usize, connections: usize) {
    let dir = tempfile::tempdir().unwrap();
    configure(dir.path(), &start_issuer(LIFE), 0);
    let (agent, _) = start_agent(dir.path());
    let agent_socket = support::socket(dir.path());
    let mut client = CredentialsClient::new(connect(&agent_socket).await);
    let answer = client.get(request()).await.unwrap().into_inner();
    let bytes = dir.path().join("answer");
    fs::write(&bytes, prost::Message::encode_to_vec(&answer)).unwrap();
    let stock_socket = dir.path().join("stock.sock");
    let stock = start_stock(&stock_socket, &bytes, dir.path());

    let ours = watched(&agent, &agent_socket, streams, connections, rounds, || ()).await;
    let pid = stock.0.id().to_string();
    let rotate = || assert!(Command::new("kill").args(["-HUP", &pid]).status().unwrap().success());
    let theirs = watched(&stock, &stock_socket, streams, connections, rounds, rotate).await;
    let row = |name: &str, ours: f64, theirs: f64| {
        println!(
            "{connections:>6} connections: {name:<40} {ours:>10.1} {theirs:>10.1}   {:.2}",
            ours / theirs
        );
    };
    row("memory a stream, KiB", ours.kib, theirs.kib);
    row("one rotation to all, ms", ours.push_ms, theirs.push_ms);
    row("the same: server CPU a stream, us", ours.cpu_us, theirs.cpu_us);
}

struct Watched {
    kib: f64,
    push_ms: f64,
    cpu_us: f64,
}

/// Opens all watches, then measures rotations: from the first stream that hears of it to the last.
async fn watched(
    server: &Running,
    socket: &Path,
    streams: usize,
    connections: usize,
    rounds: usize,
    rotate: impl Fn(),
) -> Watched {
    let pid = server.0.id();
    let before = resident_kib(pid);
    let (heard, mut hears) = mpsc::channel::<()>(streams);
    let mut listeners = tokio::task::JoinSet::new();
    for n in 0..connections {
        let client = CredentialsClient::new(connect(socket).await);
        for _ in 0..streams / connections + usize::from(n < streams % connections) {
            let (mut client, heard) = (client.clone(), heard.clone());
            listeners.spawn(async move {
                let mut asked = tonic::Request::new(WatchRequest { name: "orders".into(), scope: vec![] });
                asked.metadata_mut().insert("keybearer", "v1".parse().unwrap());
                let mut stream = client.watch(asked).await.unwrap().into_inner();
                while stream.message().await.unwrap().is_some() {
                    heard.send(()).await.unwrap();
                }
            });
        }
        // What was opened is answered before the next is, so that nobody is turned away.
        for _ in 0..streams / connections + usize::from(n < streams % connections) {
            hears.recv().await.unwrap();
        }
    }
    let kib = (resident_kib(pid) - before) / streams as f64;
    let (mut pushes, mut costs) = (vec![], vec![]);
    for _ in 0..rounds {
        let used = cpu(pid);
        rotate();
        hears.recv().await.unwrap();
        let first = Instant::now();
        for _ in 1..streams {
            hears.recv().await.unwrap();
        }
        pushes.push(first.elapsed().as_secs_f64() * 1e3);
        costs.push((cpu(pid) - used) * 1e6 / streams as f64);
    }
    Watched { kib, push_ms: spread(pushes).0, cpu_us: spread(costs).0 }
}

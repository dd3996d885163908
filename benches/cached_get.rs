//! The cached `Get` of the agent beside a bare tonic server that answers the same bytes over the same kind of socket, in
//! turns in one run. Prints ratios with their spread: absolute figures say more about the machine than about us.
//!
//! `cargo bench --bench cached_get` (add `-- --rounds 15` for more rounds).
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on has failed")]
#![allow(clippy::disallowed_methods, reason = "a benchmark measures real time")]

mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use keybearer::proto::v1::credentials_client::CredentialsClient;
use support::{
    argument, configure, connect, cpu, request, serve_if_asked, spread, start_agent, start_issuer,
    start_stock,
};
use tokio::io::{AsyncBufReadExt as _, BufReader};

const IN_FLIGHT: usize = 64;
const ROUND: Duration = Duration::from_millis(700);

fn main() {
    if serve_if_asked() {
        return;
    }
    let rounds = argument("--rounds", 9);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(compare(rounds));
}

async fn compare(rounds: usize) {
    let dir = tempfile::tempdir().unwrap();
    configure(dir.path(), &start_issuer(Duration::from_secs(3000)), 0);
    let (agent, _) = start_agent(dir.path());
    let agent_socket = support::socket(dir.path());

    // The bare server answers exactly what the agent answered.
    let mut client = CredentialsClient::new(connect(&agent_socket).await);
    let answer = client.get(request()).await.unwrap().into_inner();
    let bytes = dir.path().join("answer");
    fs::write(&bytes, prost::Message::encode_to_vec(&answer)).unwrap();
    let bare_socket = dir.path().join("bare.sock");
    let bare = start_stock(&bare_socket, &bytes, dir.path());

    println!(
        "cached Get, agent (attestation, policy, ledger) against bare tonic (multi-threaded, generated service), \
         {} bytes, {rounds} rounds of {} ms in turns",
        prost::Message::encoded_len(&answer),
        ROUND.as_millis()
    );
    println!("{:<46} {:>10} {:>10}   agent / tonic, median (min - max)", "", "agent", "tonic");
    let (agent_at, bare_at) = ((agent_socket.as_path(), agent.0.id()), (bare_socket.as_path(), bare.0.id()));

    // One kind of load alone, for a look at where its time goes: `--only 1` to `--only 4`.
    let only = argument("--only", 0);
    let wanted = |kind| only == 0 || only == kind;
    if wanted(1) {
        let one_after_another = pairs(rounds, agent_at, bare_at, one_after_another).await;
        row("one after another: p50, us", &one_after_another, |sample| sample.p50_us);
        row("one after another: server CPU us/call", &one_after_another, |sample| sample.cpu_us);
    }
    if wanted(2) {
        let one = pairs(rounds, agent_at, bare_at, |socket| in_flight(socket, 1)).await;
        row("64 in flight, 1 connection: calls/s", &one, |sample| sample.rate);
        row("64 in flight, 1 connection: server CPU us/call", &one, |sample| sample.cpu_us);
    }
    if wanted(3) {
        let sixteen = pairs(rounds, agent_at, bare_at, |socket| in_flight(socket, 16)).await;
        row("64 in flight, 16 connections: calls/s", &sixteen, |sample| sample.rate);
        row("64 in flight, 16 connections: server CPU us/call", &sixteen, |sample| sample.cpu_us);
    }
    if wanted(4) {
        let fresh = pairs(rounds, agent_at, bare_at, fresh_connections).await;
        row("new connection per call: p50, us", &fresh, |sample| sample.p50_us);
        row("new connection per call: server CPU us/call", &fresh, |sample| sample.cpu_us);
    }
    if wanted(1) {
        match system_calls(&agent_socket, agent.0.id(), dir.path()).await {
            Some(calls) => println!("one after another: system calls of the agent a call: {calls:.1}"),
            None => println!("system calls: NOT counted, there is no strace here"),
        }
    }
    println!("idle resident memory of the agent before load: {} KiB, of tonic: {} KiB", agent.1, bare.1);
}

#[derive(Clone, Copy, Default)]
struct Sample {
    rate: f64,
    p50_us: f64,
    cpu_us: f64,
}

type Served<'a> = (&'a Path, u32);

async fn pairs<F: Future<Output = (usize, Vec<Duration>, Duration)>>(
    rounds: usize,
    agent: Served<'_>,
    bare: Served<'_>,
    load: impl Fn(PathBuf) -> F,
) -> Vec<(Sample, Sample)> {
    let one = async |(socket, pid): Served<'_>| {
        let before = cpu(pid);
        let (calls, mut times, elapsed) = load(socket.to_owned()).await;
        times.sort_unstable();
        Sample {
            rate: calls as f64 / elapsed.as_secs_f64(),
            p50_us: times.get(times.len() / 2).map_or(0.0, |time| time.as_secs_f64() * 1e6),
            cpu_us: (cpu(pid) - before) * 1e6 / calls as f64,
        }
    };
    // A round that counts for nothing, to warm both.
    one(agent).await;
    one(bare).await;
    let mut samples = vec![];
    for _ in 0..rounds {
        samples.push((one(agent).await, one(bare).await));
    }
    samples
}

fn row(name: &str, samples: &[(Sample, Sample)], figure: fn(&Sample) -> f64) {
    let (agent, ..) = spread(samples.iter().map(|(agent, _)| figure(agent)).collect());
    let (bare, ..) = spread(samples.iter().map(|(_, bare)| figure(bare)).collect());
    let (ratio, least, most) =
        spread(samples.iter().map(|(agent, bare)| figure(agent) / figure(bare)).collect());
    println!("{name:<46} {agent:>10.1} {bare:>10.1}   {ratio:.2} ({least:.2} - {most:.2})");
}

async fn one_after_another(socket: PathBuf) -> (usize, Vec<Duration>, Duration) {
    let mut client = CredentialsClient::new(connect(&socket).await);
    let (start, mut times) = (Instant::now(), vec![]);
    while start.elapsed() < ROUND {
        let asked = Instant::now();
        client.get(request()).await.unwrap();
        times.push(asked.elapsed());
    }
    (times.len(), times, start.elapsed())
}

/// How many system calls the agent makes for one call, counted by strace.
async fn system_calls(socket: &Path, pid: u32, dir: &Path) -> Option<f64> {
    let table = dir.join("strace");
    let mut strace = tokio::process::Command::new("strace")
        .args(["-f", "-c", "-U", "calls,name", "-o"])
        .arg(&table)
        .args(["-p", &pid.to_string()])
        .stderr(Stdio::piped())
        .spawn()
        .ok()?;
    // It says when it has taken hold.
    BufReader::new(strace.stderr.take()?).lines().next_line().await.ok()??;
    let (calls, ..) = one_after_another(socket.to_owned()).await;
    let stop = Command::new("kill").args(["-INT", &strace.id()?.to_string()]).status();
    assert!(stop.is_ok_and(|stop| stop.success()));
    strace.wait().await.ok()?;
    let table = fs::read_to_string(table).ok()?;
    let total = table.lines().find_map(|line| line.strip_suffix("total")?.trim().parse::<f64>().ok())?;
    Some(total / calls as f64)
}

async fn in_flight(socket: PathBuf, connections: usize) -> (usize, Vec<Duration>, Duration) {
    let mut channels = vec![];
    for _ in 0..connections {
        channels.push(connect(&socket).await);
    }
    let start = Instant::now();
    let mut callers = tokio::task::JoinSet::new();
    for caller in 0..IN_FLIGHT {
        let mut client = CredentialsClient::new(channels[caller % connections].clone());
        callers.spawn(async move {
            let mut calls = 0;
            while start.elapsed() < ROUND {
                client.get(request()).await.unwrap();
                calls += 1;
            }
            calls
        });
    }
    let calls: usize = callers.join_all().await.into_iter().sum();
    (calls, vec![], start.elapsed())
}

async fn fresh_connections(socket: PathBuf) -> (usize, Vec<Duration>, Duration) {
    let (start, mut times) = (Instant::now(), vec![]);
    while start.elapsed() < ROUND {
        let asked = Instant::now();
        CredentialsClient::new(connect(&socket).await).get(request()).await.unwrap();
        times.push(asked.elapsed());
    }
    (times.len(), times, start.elapsed())
}

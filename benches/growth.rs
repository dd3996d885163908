//! What grows with what: start to ready, memory and cached `Get` with more and more identities, and a long ledger, which is
//! verified, and opened again at start. Compared with the smallest in the same run.
//!
//! `cargo bench --bench growth` (add `-- --records 1000000`).
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on has failed")]
#![allow(clippy::disallowed_methods, reason = "a benchmark measures real time")]

mod support;

use std::{
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use keybearer::proto::v1::credentials_client::CredentialsClient;
use support::{BINARY, argument, configure, connect, cpu, request, spread, start_agent, start_issuer};

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let issuer = start_issuer(Duration::from_secs(3000));
    println!(
        "{:>10} {:>14} {:>14} {:>14} {:>12}",
        "identities", "ready, ms", "resident, KiB", "Get, calls/s", "CPU, us"
    );
    for others in [0, 9, 99, 999] {
        let dir = tempfile::tempdir().unwrap();
        configure(dir.path(), &issuer, others);
        let starts = (0..11).map(|_| start_agent(dir.path()).1.as_secs_f64() * 1e3).collect();
        let (agent, _) = start_agent(dir.path());
        let (rate, cost) = runtime.block_on(load(
            &support::socket(dir.path()),
            agent.0.id(),
            Duration::from_secs(3),
            usize::MAX,
        ));
        println!("{:>10} {:>14.1} {:>14.0} {rate:>14.0} {cost:>12.1}", others + 1, spread(starts).0, agent.1);
    }
    let records = argument("--records", 1_000_000);
    let dir = tempfile::tempdir().unwrap();
    configure(dir.path(), &issuer, 0);
    let (agent, _) = start_agent(dir.path());
    runtime.block_on(load(&support::socket(dir.path()), agent.0.id(), Duration::from_secs(600), records));
    assert!(Command::new("kill").arg(agent.0.id().to_string()).status().unwrap().success());
    let ledger = dir.path().join("state/audit");
    drop(agent);
    let began = Instant::now();
    let verified = Command::new(BINARY)
        .args(["audit", "verify", "--dir"])
        .arg(dir.path().join("state/audit"))
        .output()
        .unwrap();
    println!("{}", String::from_utf8_lossy(&verified.stdout).trim());
    assert!(verified.status.success(), "{verified:?}");
    println!(
        "verified in {:.2} s, {} MB",
        began.elapsed().as_secs_f64(),
        fs::read_dir(&ledger).unwrap().map(|file| file.unwrap().metadata().unwrap().len()).sum::<u64>() >> 20
    );
    println!("start to ready with that ledger: {:.0} ms", start_agent(dir.path()).1.as_secs_f64() * 1e3);
}

/// 64 calls in flight on one connection; calls a second, and the agent's processor time for one.
async fn load(socket: &Path, pid: u32, most: Duration, calls: usize) -> (f64, f64) {
    let client = CredentialsClient::new(connect(socket).await);
    let (began, used) = (Instant::now(), cpu(pid));
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..64 {
        let mut client = client.clone();
        callers.spawn(async move {
            let mut done = 0;
            while began.elapsed() < most && done < calls / 64 {
                client.get(request()).await.unwrap();
                done += 1;
            }
            done
        });
    }
    let done: usize = callers.join_all().await.into_iter().sum();
    (done as f64 / began.elapsed().as_secs_f64(), (cpu(pid) - used) * 1e6 / done as f64)
}

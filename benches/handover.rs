//! What `keybearer exec` costs a program: from its start to its end, bare and by hand-over, in turns in one run. By flags there is one
//! question to the agent, by what agent.toml declares there are two; under supervision there are two processes more.
//!
//! `cargo bench --bench handover` (add `-- --rounds 1000`).
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on has failed")]
#![allow(clippy::disallowed_methods, reason = "a benchmark measures real time")]

mod support;

use std::{
    fs::OpenOptions,
    io::Write as _,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use support::{BINARY, argument, configure, start_agent, start_issuer};

const PROGRAM: &str = "/bin/true";

fn main() {
    let rounds = argument("--rounds", 500);
    let issuer = start_issuer(Duration::from_secs(3000));
    let dir = tempfile::tempdir().unwrap();
    configure(dir.path(), &issuer, 0);
    let mut settings = OpenOptions::new().append(true).open(dir.path().join("agent.toml")).unwrap();
    settings.write_all(b"[identities.shop.deliver]\nenv = { TOKEN = \"orders.token\" }\n").unwrap();
    let _agent = start_agent(dir.path());
    let exec = |flags: &[&str]| {
        let mut command = Command::new(BINARY);
        command.arg("exec").args(flags).args(["--", PROGRAM]);
        command.env("KEYBEARER_SOCKET", support::socket(dir.path()));
        command
    };
    let mut commands = [
        ("bare", Command::new(PROGRAM)),
        ("--env", exec(&["--env", "TOKEN=orders.token"])),
        ("as declared", exec(&[])),
        ("--supervise", exec(&["--env", "TOKEN=orders.token", "--supervise"])),
        ("--version", Command::new(BINARY)),
    ];
    commands[4].1.arg("--version");
    let mut took: Vec<Vec<f64>> = commands.iter().map(|_| Vec::with_capacity(rounds)).collect();
    for round in 0..rounds + 20 {
        for (at, (name, command)) in commands.iter_mut().enumerate() {
            let began = Instant::now();
            let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status().unwrap();
            let length = began.elapsed();
            assert!(status.success(), "{name}: {status}");
            if round >= 20 {
                took[at].push(length.as_secs_f64() * 1e3);
            }
        }
    }
    println!("{:>14} {:>22} {:>28}", "", "ms: p50 (p10 - p90)", "over bare: p50 (p10 - p90)");
    for (at, (name, _)) in commands.iter().enumerate() {
        let over: Vec<f64> = took[at].iter().zip(&took[0]).map(|(with, bare)| with - bare).collect();
        println!("{name:>14} {:>22} {:>28}", quantiles(&took[at]), quantiles(&over));
    }
}

fn quantiles(values: &[f64]) -> String {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let at = |part: f64| values[((values.len() - 1) as f64 * part).round() as usize];
    format!("{:.2} ({:.2} - {:.2})", at(0.5), at(0.1), at(0.9))
}

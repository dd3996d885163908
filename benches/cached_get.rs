//! The cached `Get` of the agent beside a bare tonic server that answers the same bytes over the same kind of socket, in
//! turns in one run. Prints ratios with their spread: absolute figures say more about the machine than about us.
//!
//! `cargo bench --bench cached_get` (add `-- --rounds 15` for more rounds).
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on has failed")]
#![allow(clippy::disallowed_methods, reason = "a benchmark measures real time")]

use std::{
    fs,
    os::unix::{fs::PermissionsExt as _, net::UnixDatagram},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use hyper_util::rt::TokioIo;
use keybearer::{
    clock::{SystemClock, SystemDice},
    dev::{Client, DevIssuer, DevIssuerSettings},
    jose::{Algorithm, PublicKey},
    proto::v1::{
        Credential, DescribeRequest, DescribeResponse, GetRequest, GetResponse, ReleaseRequest,
        ReleaseResponse, WatchRequest, WatchResponse,
        credentials_client::CredentialsClient,
        credentials_server::{Credentials, CredentialsServer},
    },
};
use tokio::net::{UnixListener, UnixStream};
use tonic::{
    Request, Response, Status,
    transport::{Channel, Endpoint, Server, Uri},
};

const IN_FLIGHT: usize = 64;
const ROUND: Duration = Duration::from_millis(700);

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let Some(at) = arguments.iter().position(|argument| argument == "--serve") {
        return bare_tonic(Path::new(&arguments[at + 1]), Path::new(&arguments[at + 2]));
    }
    let rounds = arguments
        .iter()
        .position(|argument| argument == "--rounds")
        .and_then(|at| arguments.get(at + 1)?.parse().ok())
        .unwrap_or(9);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(compare(rounds));
}

async fn compare(rounds: usize) {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let issuer_thread = start_issuer();
    let agent = start_agent(dir.path(), &issuer_thread);
    let agent_socket = dir.path().join("run/agent.sock");

    // The bare server answers exactly what the agent answered.
    let mut client = CredentialsClient::new(connect(&agent_socket).await);
    let answer = client.get(request()).await.unwrap().into_inner();
    let bytes = dir.path().join("answer");
    fs::write(&bytes, prost::Message::encode_to_vec(&answer)).unwrap();
    let bare_socket = dir.path().join("bare.sock");
    let bare = start_bare(&bare_socket, &bytes, dir.path());

    println!(
        "cached Get, agent (attestation, policy, ledger) against bare tonic (multi-threaded, generated service), \
         {} bytes, {rounds} rounds of {} ms in turns",
        prost::Message::encoded_len(&answer),
        ROUND.as_millis()
    );
    println!("{:<46} {:>10} {:>10}   agent / tonic, median (min - max)", "", "agent", "tonic");
    let (agent_at, bare_at) = ((agent_socket.as_path(), agent.0.id()), (bare_socket.as_path(), bare.0.id()));

    let one_after_another = pairs(rounds, agent_at, bare_at, one_after_another).await;
    row("one after another: p50, us", &one_after_another, |sample| sample.p50_us);
    row("one after another: server CPU us/call", &one_after_another, |sample| sample.cpu_us);
    let one = pairs(rounds, agent_at, bare_at, |socket| in_flight(socket, 1)).await;
    row("64 in flight, 1 connection: calls/s", &one, |sample| sample.rate);
    row("64 in flight, 1 connection: server CPU us/call", &one, |sample| sample.cpu_us);
    let sixteen = pairs(rounds, agent_at, bare_at, |socket| in_flight(socket, 16)).await;
    row("64 in flight, 16 connections: calls/s", &sixteen, |sample| sample.rate);
    row("64 in flight, 16 connections: server CPU us/call", &sixteen, |sample| sample.cpu_us);
    let fresh = pairs(rounds, agent_at, bare_at, fresh_connections).await;
    row("new connection per call: p50, us", &fresh, |sample| sample.p50_us);
    println!("idle resident memory of the agent before load: {} KiB", agent.1);
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
    let median = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        (values[values.len() / 2], values[0], values[values.len() - 1])
    };
    let (agent, ..) = median(samples.iter().map(|(agent, _)| figure(agent)).collect());
    let (bare, ..) = median(samples.iter().map(|(_, bare)| figure(bare)).collect());
    let (ratio, least, most) =
        median(samples.iter().map(|(agent, bare)| figure(agent) / figure(bare)).collect());
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

fn request() -> Request<GetRequest> {
    let mut request = Request::new(GetRequest { name: "orders".into(), scope: vec![], min_ttl: None });
    request.metadata_mut().insert("keybearer", "v1".parse().unwrap());
    request
}

async fn connect(socket: &Path) -> Channel {
    let socket = socket.to_owned();
    let connector = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(socket).await?)) }
    });
    Endpoint::from_static("http://localhost").connect_with_connector(connector).await.unwrap()
}

/// User and system time of a process and its threads, in seconds.
fn cpu(pid: u32) -> f64 {
    let mut nanos = 0.0;
    for task in fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let schedstat = fs::read_to_string(task.unwrap().path().join("schedstat")).unwrap_or_default();
        nanos += schedstat.split(' ').next().and_then(|run| run.parse::<f64>().ok()).unwrap_or(0.0);
    }
    nanos / 1e9
}

fn resident_kib(pid: u32) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").to_owned()
}

struct Running(Child, String);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start_bare(socket: &Path, bytes: &Path, dir: &Path) -> Running {
    let told = told_at(dir);
    let child = Command::new(std::env::current_exe().unwrap())
        .arg("--serve")
        .args([socket, bytes])
        .env("NOTIFY_SOCKET", dir.join("notify"))
        .spawn()
        .unwrap();
    told.recv(&mut [0; 256]).unwrap();
    Running(child, String::new())
}

fn told_at(dir: &Path) -> UnixDatagram {
    let _ = fs::remove_file(dir.join("notify"));
    let told = UnixDatagram::bind(dir.join("notify")).unwrap();
    told.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    told
}

/// The stock server: tonic's own transport on tokio's multi-threaded runtime.
fn bare_tonic(socket: &Path, bytes: &Path) {
    struct Bare(GetResponse);

    #[tonic::async_trait]
    impl Credentials for Bare {
        async fn describe(&self, _: Request<DescribeRequest>) -> Result<Response<DescribeResponse>, Status> {
            Err(Status::unimplemented(""))
        }

        async fn get(&self, _: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
            Ok(Response::new(self.0.clone()))
        }

        type WatchStream = tokio_stream::Empty<Result<WatchResponse, Status>>;

        async fn watch(&self, _: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
            Err(Status::unimplemented(""))
        }

        async fn release(&self, _: Request<ReleaseRequest>) -> Result<Response<ReleaseResponse>, Status> {
            Err(Status::unimplemented(""))
        }
    }

    let answer: GetResponse = prost::Message::decode(&*fs::read(bytes).unwrap()).unwrap();
    assert!(matches!(answer.credential, Some(Credential { .. })));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = UnixListener::bind(socket).unwrap();
        sd_notify::notify(&[sd_notify::NotifyState::Ready]).unwrap();
        let incoming = tokio_stream::wrappers::UnixListenerStream::new(listener);
        let service = CredentialsServer::new(Bare(answer));
        Server::builder().add_service(service).serve_with_incoming(incoming).await.unwrap();
    });
}

/// The issuer on a thread of its own: the client's thread is busy.
fn start_issuer() -> keybearer::dev::Handle {
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let settings =
                DevIssuerSettings { token_life: Duration::from_secs(3000), ..DevIssuerSettings::default() };
            let issuer = DevIssuer::bind(settings, SystemClock::shared(), SystemDice::shared()).unwrap();
            sender.send(issuer.handle()).unwrap();
            issuer.run(std::future::pending()).await.unwrap();
        });
    });
    receiver.recv().unwrap()
}

fn start_agent(dir: &Path, issuer: &keybearer::dev::Handle) -> Running {
    let config = dir.join("agent.toml");
    let until = jiff::Timestamp::from_second(jiff::Timestamp::now().as_second() + 86_400).unwrap();
    let text = format!(
        r#"environment = "bench"
state_directory = "{0}/state"
runtime_directory = "{0}/run"
[limits]
connections_per_uid = 1000
[log]
filter = "warn"
[issuers.dev]
kind = "oauth"
issuer = "{1}"
dev = true
[identities.shop]
owner = "shop@example.com"
assurance = "interim"
match = {{ uid = {2} }}
[identities.shop.credentials.orders]
issuer = "dev"
client_id = "shop"
resource = "https://orders.example"
scope = ["orders:read"]
exception = {{ owner = "shop@example.com", reason = "a benchmark", until = "{until:.0}" }}
"#,
        dir.display(),
        issuer.url(),
        rustix::process::geteuid().as_raw()
    );
    fs::write(&config, text).unwrap();
    fs::set_permissions(&config, fs::Permissions::from_mode(0o600)).unwrap();
    let binary = env!("CARGO_BIN_EXE_keybearer");
    let exported = Command::new(binary).args(["keys", "export", "--config"]).arg(&config).output().unwrap();
    let jwks: serde_json::Value = serde_json::from_slice(&exported.stdout).unwrap();
    let key = PublicKey::from_jwk(&jwks["keys"][0]).unwrap();
    let client = Client {
        client_id: "shop".into(),
        keys: vec![(key, Algorithm::Es256)],
        scope: vec!["orders:read".into()],
        resources: vec!["https://orders.example".into()],
    };
    issuer.register(client).unwrap();
    let told = told_at(dir);
    let child = Command::new(binary)
        .args(["agent", "--config"])
        .arg(&config)
        .env("NOTIFY_SOCKET", dir.join("notify"))
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    told.recv(&mut [0; 256]).unwrap();
    let resident = resident_kib(child.id());
    Running(child, resident)
}

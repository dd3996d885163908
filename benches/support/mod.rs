//! What the benchmarks share: an agent, a stock tonic server beside it, an issuer, and how they are measured.
#![allow(dead_code, reason = "each benchmark uses its part")]

use std::{
    convert::Infallible,
    fs,
    future::Future,
    os::unix::{fs::PermissionsExt as _, net::UnixDatagram},
    path::{Path, PathBuf},
    pin::Pin,
    process::{Child, Command, Stdio},
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use hyper_util::rt::TokioIo;
use keybearer::{
    clock::{SystemClock, SystemDice},
    dev::{Client, DevIssuer, DevIssuerSettings, Handle},
    jose::{Algorithm, PublicKey},
    proto::v1::{GetRequest, GetResponse, WatchRequest, WatchResponse},
};
use tokio::{
    net::{UnixListener, UnixStream},
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use tokio_stream::{StreamExt as _, wrappers::WatchStream};
use tonic::{
    Request, Response, Status,
    body::Body,
    codegen::Service,
    server::{NamedService, ServerStreamingService, UnaryService},
    transport::{Channel, Endpoint, Server, Uri},
};
use tonic_prost::ProstCodec;

/// Middle, least and most.
pub fn spread(mut values: Vec<f64>) -> (f64, f64, f64) {
    values.sort_by(f64::total_cmp);
    (values[values.len() / 2], values[0], values[values.len() - 1])
}

/// The number after a flag on the command line.
pub fn argument(name: &str, default: usize) -> usize {
    let arguments: Vec<String> = std::env::args().collect();
    let at = arguments.iter().position(|argument| argument == name);
    at.and_then(|at| arguments.get(at + 1)?.parse().ok()).unwrap_or(default)
}

/// Becomes the stock server if it was started as such.
pub fn serve_if_asked() -> bool {
    let arguments: Vec<String> = std::env::args().collect();
    let Some(at) = arguments.iter().position(|argument| argument == "--serve") else { return false };
    stock_tonic(Path::new(&arguments[at + 1]), Path::new(&arguments[at + 2]));
    true
}

pub fn request() -> Request<GetRequest> {
    let mut request = Request::new(GetRequest { name: "orders".into(), scope: vec![], min_ttl: None });
    request.metadata_mut().insert("keybearer", "v1".parse().unwrap());
    request
}

pub async fn connect(socket: &Path) -> Channel {
    let socket = socket.to_owned();
    let connector = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(socket).await?)) }
    });
    Endpoint::from_static("http://localhost").connect_with_connector(connector).await.unwrap()
}

/// User and system time of a process and its threads, in seconds.
pub fn cpu(pid: u32) -> f64 {
    let mut nanos = 0.0;
    for task in fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let schedstat = fs::read_to_string(task.unwrap().path().join("schedstat")).unwrap_or_default();
        nanos += schedstat.split(' ').next().and_then(|run| run.parse::<f64>().ok()).unwrap_or(0.0);
    }
    nanos / 1e9
}

pub fn resident_kib(pid: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse().unwrap_or(0.0)
}

/// A server that ends with the benchmark, and what it had resident when it was ready, in KiB.
pub struct Running(pub Child, pub f64);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The stock server, which answers what lies in `bytes`.
pub fn start_stock(socket: &Path, bytes: &Path, dir: &Path) -> Running {
    let told = told_at(dir);
    let child = Command::new(std::env::current_exe().unwrap())
        .arg("--serve")
        .args([socket, bytes])
        .env("NOTIFY_SOCKET", dir.join("notify"))
        .spawn()
        .unwrap();
    told.recv(&mut [0; 256]).unwrap();
    let resident = resident_kib(child.id());
    Running(child, resident)
}

fn told_at(dir: &Path) -> UnixDatagram {
    let _ = fs::remove_file(dir.join("notify"));
    let told = UnixDatagram::bind(dir.join("notify")).unwrap();
    told.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    told
}

/// tonic's own transport and codec on tokio's multi-threaded runtime, as its documentation shows it.
fn stock_tonic(socket: &Path, bytes: &Path) {
    let answer: GetResponse = prost::Message::decode(&*fs::read(bytes).unwrap()).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = UnixListener::bind(socket).unwrap();
        let (rotate, _) = watch::channel(());
        let mut hangup = signal(SignalKind::hangup()).unwrap();
        let stock = Stock { answer: Arc::new(answer), rotated: rotate.subscribe() };
        tokio::spawn(async move {
            while hangup.recv().await.is_some() {
                let _ = rotate.send(());
            }
        });
        sd_notify::notify(&[sd_notify::NotifyState::Ready]).unwrap();
        let incoming = tokio_stream::wrappers::UnixListenerStream::new(listener);
        Server::builder().add_service(stock).serve_with_incoming(incoming).await.unwrap();
    });
}

/// What the generated service does, with tonic's own codec: ours has smaller buffers.
#[derive(Clone)]
struct Stock {
    answer: Arc<GetResponse>,
    rotated: watch::Receiver<()>,
}

type Answered<T> = Pin<Box<dyn Future<Output = Result<T, Status>> + Send>>;

impl UnaryService<GetRequest> for Stock {
    type Response = GetResponse;
    type Future = Answered<Response<GetResponse>>;

    fn call(&mut self, _: Request<GetRequest>) -> Self::Future {
        let answer = Arc::clone(&self.answer);
        Box::pin(async move { Ok(Response::new((*answer).clone())) })
    }
}

impl ServerStreamingService<WatchRequest> for Stock {
    type Response = WatchResponse;
    type ResponseStream = Pin<Box<dyn tokio_stream::Stream<Item = Result<WatchResponse, Status>> + Send>>;
    type Future = Answered<Response<Self::ResponseStream>>;

    fn call(&mut self, _: Request<WatchRequest>) -> Self::Future {
        let (answer, rotated) = (Arc::clone(&self.answer), self.rotated.clone());
        let message = move |()| Ok(WatchResponse { credential: answer.credential.clone() });
        Box::pin(async move { Ok(Response::new(Box::pin(WatchStream::new(rotated).map(message)) as _)) })
    }
}

impl NamedService for Stock {
    const NAME: &'static str = "keybearer.v1.Credentials";
}

impl Service<http::Request<Body>> for Stock {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let service = self.clone();
        Box::pin(async move {
            Ok(match request.uri().path() {
                "/keybearer.v1.Credentials/Get" => {
                    tonic::server::Grpc::new(ProstCodec::default()).unary(service, request).await
                }
                "/keybearer.v1.Credentials/Watch" => {
                    tonic::server::Grpc::new(ProstCodec::default()).server_streaming(service, request).await
                }
                _ => Status::unimplemented("").into_http(),
            })
        })
    }
}

/// The issuer on a thread of its own: the client's thread is busy.
pub fn start_issuer(token_life: Duration) -> Handle {
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let settings = DevIssuerSettings { token_life, ..DevIssuerSettings::default() };
            let issuer = DevIssuer::bind(settings, SystemClock::shared(), SystemDice::shared()).unwrap();
            sender.send(issuer.handle()).unwrap();
            issuer.run(std::future::pending()).await.unwrap();
        });
    });
    receiver.recv().unwrap()
}

/// Writes the settings of an agent: the identity `shop`, which is whoever runs this, and `others` that are somebody else.
pub fn configure(dir: &Path, issuer: &Handle, others: usize) {
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
    let until = jiff::Timestamp::from_second(jiff::Timestamp::now().as_second() + 86_400).unwrap();
    let mut text = format!(
        r#"environment = "bench"
state_directory = "{0}/state"
runtime_directory = "{0}/run"
[limits]
connections = 20000
connections_per_uid = 20000
[log]
filter = "warn"
[issuers.dev]
kind = "oauth"
issuer = "{1}"
dev = true
"#,
        dir.display(),
        issuer.url(),
    );
    let own = rustix::process::geteuid().as_raw();
    for n in 0..=others {
        let (name, selectors) = match n {
            0 => ("shop".to_owned(), format!("uid = {own}")),
            n => (format!("other-{n}"), format!("uid = {}, unit = \"other-{n}.service\"", 100_000 + n)),
        };
        text.push_str(&format!(
            r#"[identities.{name}]
owner = "{name}@example.com"
assurance = "interim"
match = {{ {selectors} }}
[identities.{name}.credentials.orders]
issuer = "dev"
client_id = "{name}"
resource = "https://orders.example"
scope = ["orders:read"]
binding = "bearer"
exception = {{ owner = "shop@example.com", reason = "a benchmark", until = "{until:.0}" }}
"#
        ));
    }
    let config = dir.join("agent.toml");
    fs::write(&config, text).unwrap();
    fs::set_permissions(&config, fs::Permissions::from_mode(0o600)).unwrap();
    register(issuer, &config);
}

/// Makes the key of the agent's client `shop`, and registers it.
pub fn register(issuer: &Handle, config: &Path) {
    let exported = Command::new(BINARY).args(["keys", "export", "--config"]).arg(config).output().unwrap();
    let jwks: serde_json::Value = serde_json::from_slice(&exported.stdout).unwrap();
    let keys = jwks["keys"].as_array().unwrap();
    let client = Client {
        client_id: "shop".into(),
        keys: keys.iter().map(|jwk| (PublicKey::from_jwk(jwk).unwrap(), Algorithm::Es256)).collect(),
        scope: vec!["orders:read".into()],
        resources: vec!["https://orders.example".into()],
        ..Client::default()
    };
    issuer.register(client).unwrap();
}

pub const BINARY: &str = env!("CARGO_BIN_EXE_keybearer");

/// Starts the agent that is configured in `dir`; how long it took to be ready.
pub fn start_agent(dir: &Path) -> (Running, Duration) {
    let told = told_at(dir);
    let began = Instant::now();
    let child = Command::new(BINARY)
        .args(["agent", "--config"])
        .arg(dir.join("agent.toml"))
        .env("NOTIFY_SOCKET", dir.join("notify"))
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    told.recv(&mut [0; 256]).unwrap();
    let ready = began.elapsed();
    let resident = resident_kib(child.id());
    (Running(child, resident), ready)
}

/// Where the agent listens.
pub fn socket(dir: &Path) -> PathBuf {
    dir.join("run/agent.sock")
}

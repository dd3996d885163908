//! The real binary on a real socket, with the development issuer in this process. In goes what a test wants of the
//! settings; out comes an agent that is ready, because it said so.
#![allow(dead_code, reason = "each test program uses its part")]

pub mod mutual;

use std::{
    fs,
    io::{Read as _, Seek as _, SeekFrom},
    os::unix::{fs::PermissionsExt as _, net::UnixDatagram},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::Arc,
    time::Duration,
};

use keybearer::{
    audit::{EventType, Record, Report, VerifyError, read, verify},
    client::Agent,
    clock::{SystemClock, SystemDice},
    dev::{Client, DemoApi, DemoApiSettings, DevIssuer, DevIssuerSettings, Handle},
    jose::{Algorithm, PublicKey},
};
use serde_json::Value;

pub const BINARY: &str = env!("CARGO_BIN_EXE_keybearer");
pub const RESOURCE: &str = "https://orders.example";

/// Root on a machine to be thrown away can try what others cannot.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Says that a test cannot run here, by name. `tests/run` gives a file for these lines, and shows and counts them.
pub fn skip(test: &str, why: &str) {
    let line = format!("SKIPPED {test}: {why}\n");
    print!("{line}");
    if let Some(list) = std::env::var_os("KEYBEARER_TESTS_SKIPPED") {
        let mut list = fs::OpenOptions::new().append(true).create(true).open(list).unwrap();
        std::io::Write::write_all(&mut list, line.as_bytes()).unwrap();
    }
}

/// An issuer in this process.
pub struct Issuer {
    pub handle: Handle,
    _stop: tokio::sync::oneshot::Sender<()>,
}

/// Starts the development issuer.
pub fn issuer(life: u64) -> Issuer {
    issuer_at(0, life)
}

pub fn issuer_at(port: u16, life: u64) -> Issuer {
    let settings =
        DevIssuerSettings { port, token_life: Duration::from_secs(life), ..DevIssuerSettings::default() };
    let issuer = DevIssuer::bind(settings, SystemClock::shared(), SystemDice::shared()).unwrap();
    let handle = issuer.handle();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    tokio::spawn(issuer.run(async {
        let _ = stopped.await;
    }));
    Issuer { handle, _stop: stop }
}

/// The demo API in this process, which takes tokens for [`RESOURCE`].
pub struct Api {
    /// Its origin.
    pub url: String,
    _stop: tokio::sync::oneshot::Sender<()>,
}

/// Starts the demo API of an issuer.
pub fn demo_api(issuer: &Issuer) -> Api {
    let settings = DemoApiSettings {
        audience: RESOURCE.into(),
        scope: "orders:read".into(),
        ..DemoApiSettings::default()
    };
    let api = DemoApi::bind(settings, issuer.handle.clone(), SystemClock::shared()).unwrap();
    let url = api.url();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    tokio::spawn(api.run(async {
        let _ = stopped.await;
    }));
    Api { url, _stop: stop }
}

impl Api {
    /// What there is to fetch.
    pub fn orders(&self) -> String {
        format!("{}/orders", self.url)
    }

    /// One call: the status, the nonce it wants next, and the body.
    pub async fn get(&self, headers: &[(&str, &str)]) -> (u16, Option<String>, Value) {
        use http_body_util::{BodyExt as _, Empty};
        use hyper_util::{client::legacy::Client, rt::TokioExecutor};
        let client: Client<_, Empty<bytes::Bytes>> = Client::builder(TokioExecutor::new()).build_http();
        let mut request = http::Request::get(self.orders()).header("connection", "close");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = client.request(request.body(Empty::new()).unwrap()).await.unwrap();
        let status = response.status().as_u16();
        let nonce = response.headers().get("dpop-nonce").map(|nonce| nonce.to_str().unwrap().to_owned());
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, nonce, serde_json::from_slice(&body).unwrap_or_default())
    }
}

/// An agent at work.
pub struct TestAgent {
    pub dir: Arc<tempfile::TempDir>,
    child: Child,
    log: Option<std::thread::JoinHandle<String>>,
}

/// What a test wants.
pub struct Setup {
    pub dir: Arc<tempfile::TempDir>,
    config: String,
}

impl Setup {
    /// An agent whose identity `shop` is whoever runs this test.
    pub fn new(issuer: &str) -> Self {
        Self::matching(issuer, &format!("match = {{ uid = {} }}", rustix::process::geteuid().as_raw()))
    }

    pub fn matching(issuer: &str, selectors: &str) -> Self {
        Self::within(tempfile::tempdir().unwrap(), issuer, selectors)
    }

    /// In a directory of the test's own choice.
    pub fn within(dir: tempfile::TempDir, issuer: &str, selectors: &str) -> Self {
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let config = format!(
            r#"environment = "test"
state_directory = "{0}/state"
runtime_directory = "{0}/run"
drain = "2s"

[listen]
workload_mode = "0666"
http_mode = "0666"
operator_mode = "0600"

[log]
filter = "trace"
format = "json"

[issuers.dev]
kind = "oauth"
issuer = "{issuer}"
dev = true
timeout = "3s"
"#,
            dir.path().display()
        );
        Self { dir: Arc::new(dir), config }.also("shop", "interim", selectors)
    }

    /// With one more identity, which has the credential `orders`.
    pub fn also(self, name: &str, assurance: &str, selectors: &str) -> Self {
        let until = SystemClock::shared().wall().as_second() + 86_400;
        let until = jiff::Timestamp::from_second(until).unwrap();
        self.and(&format!(
            r#"
[identities.{name}]
owner = "{name}@example.com"
assurance = "{assurance}"
{selectors}

[identities.{name}.credentials.orders]
issuer = "dev"
client_id = "{name}"
resource = "{RESOURCE}"
scope = ["orders:read", "orders:write"]
binding = "bearer"
exception = {{ owner = "{name}@example.com", reason = "a test", until = "{until:.0}" }}
"#
        ))
    }

    /// With bound tokens everywhere, and proofs for the API at `origin`.
    pub fn bound(mut self, origin: &str) -> Self {
        let lines = self.config.lines().filter(|line| !line.starts_with("exception = "));
        let lines: Vec<String> = lines
            .map(|line| line.replace("binding = \"bearer\"", &format!("origins = [\"{origin}\"]")))
            .collect();
        self.config = lines.join("\n") + "\n";
        self
    }

    /// The credential is for each process alone.
    pub fn per_process(self) -> Self {
        let scope = "scope = [\"orders:read\", \"orders:write\"]";
        self.with(scope, &format!("{scope}\nper = \"process\""))
    }

    /// With one text for another in the settings.
    pub fn with(mut self, from: &str, to: &str) -> Self {
        assert!(self.config.contains(from), "{from}");
        self.config = self.config.replace(from, to);
        self
    }

    pub fn and(mut self, more: &str) -> Self {
        self.config.push_str(more);
        self
    }

    pub fn write(&self) -> PathBuf {
        let path = self.dir.path().join("agent.toml");
        fs::write(&path, &self.config).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    /// Starts the agent, registers its key at the issuer, and waits until it says that it is ready.
    pub fn start(&self, issuer: Option<&Handle>) -> TestAgent {
        let config = self.write();
        if let Some(issuer) = issuer {
            register(issuer, &config);
        }
        TestAgent::start(Arc::clone(&self.dir))
    }
}

/// Makes the key, exports its public half with the real command, and registers it.
pub fn register(issuer: &Handle, config: &Path) {
    register_as(issuer, config, "shop");
}

/// The same for a client of another name.
pub fn register_as(issuer: &Handle, config: &Path, client_id: &str) {
    let exported = Command::new(BINARY).args(["keys", "export", "--config"]).arg(config).output().unwrap();
    assert!(exported.status.success(), "{exported:?}");
    register_keys(issuer, &exported.stdout, client_id);
}

/// Registers keys that were exported as a JWK set.
pub fn register_keys(issuer: &Handle, jwks: &[u8], client_id: &str) {
    let jwks: Value = serde_json::from_slice(jwks).unwrap();
    let keys = jwks["keys"].as_array().unwrap().iter().map(|jwk| {
        let algorithm: Algorithm = jwk["alg"].as_str().unwrap().parse().unwrap();
        (PublicKey::from_jwk(jwk).unwrap(), algorithm)
    });
    let client = Client {
        client_id: client_id.into(),
        keys: keys.collect(),
        scope: vec!["orders:read".into(), "orders:write".into()],
        resources: vec![RESOURCE.into()],
        ..Client::default()
    };
    issuer.register(client).unwrap();
}

impl TestAgent {
    pub fn start(dir: Arc<tempfile::TempDir>) -> Self {
        Self::start_under(dir, &[])
    }

    /// Started by another program, which gets the agent's command line behind its own arguments.
    pub fn start_under(dir: Arc<tempfile::TempDir>, wrapper: &[&str]) -> Self {
        let notify = dir.path().join("notify");
        let _ = fs::remove_file(&notify);
        let told = UnixDatagram::bind(&notify).unwrap();
        // The agent may run as somebody else.
        fs::set_permissions(&notify, fs::Permissions::from_mode(0o666)).unwrap();
        told.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let line = [wrapper, &[BINARY, "agent", "--config"]].concat();
        let mut child = Command::new(line[0])
            .args(&line[1..])
            .arg(dir.path().join("agent.toml"))
            .env("NOTIFY_SOCKET", &notify)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut errors = child.stderr.take().unwrap();
        let log = std::thread::spawn(move || {
            let mut text = String::new();
            let _ = errors.read_to_string(&mut text);
            text
        });
        let mut agent = Self { dir, child, log: Some(log) };
        let mut message = [0; 256];
        match told.recv(&mut message) {
            Ok(len) => assert_eq!(&message[..len], b"READY=1\n".get(..len).unwrap_or_default()),
            Err(error) => {
                let _ = agent.child.kill();
                panic!("the agent did not become ready ({error}): {}", agent.log_text());
            }
        }
        agent
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn socket(&self, name: &str) -> PathBuf {
        self.dir.path().join("run").join(name)
    }

    pub async fn client(&self) -> Agent {
        Agent::connect(self.socket("agent.sock")).await.unwrap()
    }

    /// The command line, with the sockets of this agent.
    pub fn keybearer(&self, arguments: &[&str]) -> Output {
        Command::new(BINARY)
            .args(arguments)
            .env("KEYBEARER_CONFIG", self.dir.path().join("agent.toml"))
            .env("KEYBEARER_SOCKET", self.socket("agent.sock"))
            .env("KEYBEARER_OPERATOR_SOCKET", self.socket("operator.sock"))
            .env("KEYBEARER_HTTP_SOCKET", self.socket("http.sock"))
            .output()
            .unwrap()
    }

    pub fn ledger(&self) -> PathBuf {
        self.dir.path().join("state/audit")
    }

    pub fn records(&self) -> Vec<Record> {
        read(&self.ledger(), 0).unwrap().collect()
    }

    /// The same, but for what is told of whoever runs this test: a developer's login is a person's.
    pub fn records_but_of_people(&self) -> Vec<Record> {
        let is_of_people = |record: &Record| record.entry.event.kind == EventType::HumanSession;
        self.records().into_iter().filter(|record| !is_of_people(record)).collect()
    }

    pub fn verify(&self) -> Result<Report, VerifyError> {
        verify(&self.ledger(), None)
    }

    pub fn signal(&self, name: &str) {
        assert!(Command::new("kill").args([name, &self.pid().to_string()]).status().unwrap().success());
    }

    /// Asks it to stop; its exit code and its log.
    pub fn stop(mut self) -> (Option<i32>, String) {
        self.signal("-TERM");
        let status = self.child.wait().unwrap();
        (status.code(), self.log_text())
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Ends it at once, as a crash would.
    pub fn kill(mut self) -> String {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.log_text()
    }

    fn log_text(&mut self) -> String {
        self.log.take().map(|log| log.join().unwrap()).unwrap_or_default()
    }
}

impl Drop for TestAgent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The attacker, where anybody may run it.
pub fn attacker(agent: &TestAgent) -> PathBuf {
    let copy = agent.dir.path().join("attacker");
    if !copy.exists() {
        install(&built("attacker"), &copy);
    }
    copy
}

/// A program, or a shared object to be loaded into one, that was built for these tests.
pub fn built(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.parent().unwrap().parent().unwrap().join("examples").join(name)
}

/// Copies a program by a process of its own: a descriptor that is open for writing here would be inherited by whatever
/// another test starts in this moment, and then the copy could not be run ("text file busy").
pub fn install(program: &Path, at: &Path) {
    assert!(Command::new("install").args(["-m", "755"]).args([program, at]).status().unwrap().success());
}

/// The beginning of any JWT that stands in a text.
pub fn jwt_in(text: &str) -> Option<&str> {
    let mut words = text.split(|c: char| !(c.is_ascii_alphanumeric() || "-_.".contains(c)));
    let jwt = words.find(|word| word.starts_with("eyJ") && word.matches('.').count() == 2)?;
    Some(jwt.get(..20).unwrap_or(jwt))
}

/// One HTTP/1.1 exchange on a Unix socket: status and whole answer.
pub fn http(socket: &Path, request: &str) -> (u16, String) {
    use std::io::Write as _;
    let mut stream = std::os::unix::net::UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(40))).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    (status, answer)
}

/// A GET with the header that our HTTP face wants.
pub fn get(socket: &Path, path: &str) -> (u16, String) {
    http(socket, &format!("GET {path} HTTP/1.1\r\nhost: x\r\nkeybearer: v1\r\nconnection: close\r\n\r\n"))
}

/// The JSON of an HTTP answer.
pub fn body(answer: &str) -> Value {
    serde_json::from_str(answer.split("\r\n\r\n").nth(1).unwrap_or_default().trim()).unwrap_or(Value::Null)
}

/// How often `secret` lies in the memory of a process that can be written.
pub fn copies(pid: u32, secret: &[u8]) -> usize {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let mut memory = fs::File::open(format!("/proc/{pid}/mem")).unwrap();
    let mut found = 0;
    for line in maps.lines().filter(|line| line.contains(" rw")) {
        let (from, to) = line.split(' ').next().unwrap().split_once('-').unwrap();
        let [from, to] = [from, to].map(|text| u64::from_str_radix(text, 16).unwrap());
        let mut bytes = vec![0; (to - from) as usize];
        if memory.seek(SeekFrom::Start(from)).is_ok() && memory.read_exact(&mut bytes).is_ok() {
            found += bytes.windows(secret.len()).filter(|window| *window == secret).count();
        }
    }
    found
}

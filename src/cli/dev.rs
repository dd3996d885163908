//! `keybearer dev`: the whole journey on this machine. Starts the development issuer, a demo API and an agent in a
//! directory of its own, has a workload fetch a credential and use it, has a stranger try the same, tells what
//! happened from the ledger, and stays up to be played with. Nothing of it is for production.

use std::{
    fs,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
};

use bytes::Bytes;
use clap::Args;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::{client::legacy::Client as HttpClient, rt::TokioExecutor};
use ring::digest;
use serde_json::{Value, json};
use tokio::{process::Command, sync::watch};

use super::{
    Exit,
    agent::{begin_log, mistaken, told_to_stop, unbuilt},
    environment, on_runtime, paint,
};
use crate::{
    audit::{EventType, Record, read, verify},
    client::Agent,
    clock::{Clock, Dice, SystemClock, SystemDice},
    config::{Log, LogFormat, Settings, load},
    daemon::{Daemon, Origin},
    dev::{Client, DemoApi, DemoApiSettings, DevError, DevIssuer, DevIssuerSettings},
    journey::Journey,
    proto::v1::credential::Kind,
    secret::hex,
};

/// The one API of the story. A name, not a place: tokens are for it and for nothing else.
const ORDERS: &str = "https://orders.example";

#[derive(Args, Debug)]
pub(super) struct Dev {
    /// Tell the story and end, with an exit code that says whether all of it came true.
    #[arg(long)]
    once: bool,
    /// The issuer's port; 0 for any that is free.
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// How many seconds a token lives.
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u64).range(10..=3600))]
    token_life: u64,
}

/// The demo workload: asks the agent for a token, calls the API with it, says in JSON how it went.
#[derive(Args, Debug)]
pub(super) struct Workload {
    #[arg(long)]
    socket: PathBuf,
    #[arg(long)]
    api: String,
}

impl Dev {
    pub(super) fn run(self) -> Result<(), Exit> {
        let clock = SystemClock::shared();
        let dice = SystemDice::shared();
        let stage = Stage::new(&*dice)?;
        let told = on_runtime(self.play(&stage, &clock, &dice));
        // Kept if something went wrong: that is when somebody wants to look.
        if told.is_ok() {
            stage.strike()?;
        } else {
            eprintln!("keybearer: what happened is kept in {}", stage.directory.display());
        }
        told
    }

    async fn play(&self, stage: &Stage, clock: &Arc<dyn Clock>, dice: &Arc<dyn Dice>) -> Result<(), Exit> {
        begin_log(&Log { filter: "warn".into(), format: LogFormat::Text });
        let (stop, stopped) = watch::channel(false);
        let mut issuer_settings = DevIssuerSettings { port: self.port, ..DevIssuerSettings::default() };
        issuer_settings.token_life = std::time::Duration::from_secs(self.token_life);
        let issuer =
            DevIssuer::bind(issuer_settings, Arc::clone(clock), Arc::clone(dice)).map_err(undeveloped)?;
        let handle = issuer.handle();
        let api_settings = DemoApiSettings {
            audience: ORDERS.into(),
            scope: "orders:read".into(),
            ..DemoApiSettings::default()
        };
        let api = DemoApi::bind(api_settings, handle.clone(), Arc::clone(clock)).map_err(undeveloped)?;
        let api_url = format!("{}/orders", api.url());

        let settings = stage.write_settings(handle.url(), &**clock)?;
        let origin = Origin { path: stage.file("agent.toml"), environment: environment() };
        let daemon = Daemon::build(settings, origin, Arc::clone(clock), Arc::clone(dice)).map_err(unbuilt)?;
        let keys =
            daemon.keys().to_register().map(|(_, key)| (key.public().clone(), key.algorithm())).collect();
        let client = Client {
            client_id: "demo-shop".into(),
            keys,
            scope: vec!["orders:read".into(), "orders:write".into()],
            resources: vec![ORDERS.into()],
            ..Client::default()
        };
        handle.register(client).map_err(|error| Exit::new(Exit::SOFTWARE, error.to_string()))?;

        let journey = Arc::clone(daemon.journey());
        let waits = |mut stopped: watch::Receiver<bool>| async move {
            // The sender lives as long as the story.
            let _ = stopped.wait_for(|stop| *stop).await;
        };
        let running = [
            tokio::spawn({
                let stop = waits(stopped.clone());
                async move { issuer.run(stop).await.map_err(|error| error.to_string()) }
            }),
            tokio::spawn({
                let stop = waits(stopped.clone());
                async move { api.run(stop).await.map_err(|error| error.to_string()) }
            }),
            tokio::spawn({
                let stop = waits(stopped);
                async move { daemon.run(stop).await.map_err(|error| error.to_string()) }
            }),
        ];
        let told = stage.tell(&journey, handle.url(), &api_url).await;
        if told.is_ok() && !self.once {
            stage.invite(handle.url(), &api_url)?;
            told_to_stop().await;
        }
        drop(journey);
        let _ = stop.send(true);
        for task in running {
            let ended = task.await.map_err(|error| error.to_string()).and_then(|ended| ended);
            ended.map_err(|error| Exit::new(Exit::SOFTWARE, error))?;
        }
        told
    }
}

fn undeveloped(error: DevError) -> Exit {
    let code = if matches!(error, DevError::Environment { .. }) { Exit::CONFIG } else { Exit::UNAVAILABLE };
    Exit::new(code, error.to_string())
}

/// A directory of its own, 0700.
struct Stage {
    directory: PathBuf,
    program: PathBuf,
}

impl Stage {
    fn new(dice: &dyn Dice) -> Result<Self, Exit> {
        let mut name = [0; 8];
        dice.fill(&mut name);
        let directory = std::env::temp_dir().join(format!("keybearer-dev-{}", hex(&name)));
        fs::DirBuilder::new().mode(0o700).create(&directory)?;
        Ok(Self { directory, program: std::env::current_exe()? })
    }

    fn strike(&self) -> Result<(), Exit> {
        Ok(fs::remove_dir_all(&self.directory)?)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// agent.toml as an operator would write it: this very program, run by this very user, is the demo shop.
    fn write_settings(&self, issuer: &str, clock: &dyn Clock) -> Result<Settings, Exit> {
        let program = fs::read(&self.program)?;
        let sum = hex(digest::digest(&digest::SHA256, &program).as_ref());
        let tomorrow = clock.wall().as_second() + 86_400;
        let until = jiff::Timestamp::from_second(tomorrow)
            .map_err(|error| Exit::new(Exit::SOFTWARE, error.to_string()))?;
        let text = format!(
            r#"# Written by `keybearer dev`; for development only.
environment = "dev"
state_directory = "{directory}/state"
runtime_directory = "{directory}"

[listen]
workload_mode = "0600"
operator_mode = "0600"
http_mode = "0600"
reflection = true

[issuers.dev]
kind = "oauth"
issuer = "{issuer}"
dev = true

[identities.demo-shop]
owner = "you@localhost"
assurance = "interim"
match = {{ uid = {uid}, sha256 = "{sum}" }}

[identities.demo-shop.credentials.orders]
issuer = "dev"
client_id = "demo-shop"
resource = "{ORDERS}"
scope = ["orders:read"]
binding = "bearer"
exception = {{ owner = "you@localhost", reason = "a demonstration", until = "{until:.0}" }}
"#,
            directory = self.directory.display(),
            uid = rustix::process::geteuid().as_raw(),
        );
        let path = self.file("agent.toml");
        let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        std::io::Write::write_all(&mut &file, text.as_bytes())?;
        load(&path, &environment(), clock.wall()).map_err(mistaken)
    }

    /// The story. Every sentence is what was found on record or answered, and each that does not come true ends it.
    async fn tell(&self, journey: &Journey, issuer: &str, api: &str) -> Result<(), Exit> {
        let scene =
            |name: &str, text: String| paint::line(&format!("{} {text}", paint::bold(&format!("{name:<9}"))));
        paint::line(&paint::dim(
            "Development only: the issuer, its keys and all of this are gone when it ends.",
        ))?;
        scene("issuer", format!("{issuer} takes signed assertions, each once, and no shared secret"))?;
        scene(
            "agent",
            format!(
                "{} serves the identities of {}",
                self.file("agent.sock").display(),
                self.file("agent.toml").display()
            ),
        )?;

        let shop = self.run_workload(&self.program, api).await?;
        let issued = self.find(journey, EventType::CredentialIssue)?;
        let peer = issued.entry.peer.clone().unwrap_or_default();
        let what = issued.entry.credential.clone().unwrap_or_default();
        let sum = peer.exe.and_then(|exe| exe.sha256).unwrap_or_default();
        let who = issued.entry.workload.clone().unwrap_or_default();
        scene(
            "workload",
            format!(
                "pid {} uid {} program sha256 {}.. is attested as {} at level {}",
                peer.pid,
                peer.uid,
                sum.get(..12).unwrap_or_default(),
                paint::bold(&who.id),
                peer.level.unwrap_or_default()
            ),
        )?;
        scene(
            "asked",
            format!(
                "as client {} with an assertion signed by a key that never leaves the agent: {} for {}",
                what.client_id.unwrap_or_default(),
                what.scope_granted.unwrap_or_default().join(" "),
                what.resource.unwrap_or_default()
            ),
        )?;
        scene(
            "got",
            format!(
                "a {} token {}.. until {} ({} s), on record as {} before it was handed out",
                what.binding.unwrap_or_default(),
                what.token_hash.as_deref().and_then(|hash| hash.get(..12)).unwrap_or_default(),
                what.not_after.unwrap_or_default(),
                what.ttl_s.unwrap_or_default(),
                issued.seq
            ),
        )?;
        expect(shop["api_status"] == 200, "the API should have answered the workload", &shop)?;
        scene(
            "API",
            format!(
                "{} to the workload: {}",
                paint::good("200"),
                shop["api_body"].as_str().unwrap_or_default().trim()
            ),
        )?;
        let without = call(api, None).await?;
        expect(without.0 == 401, "the API should have refused a call without a token", &json!(without.1))?;
        scene("API", format!("{} to a call without a token", paint::bad("401")))?;

        // The same program with one byte more: another program, by its digest.
        let copy = self.file("stranger");
        let mut bytes = fs::read(&self.program)?;
        bytes.push(0);
        {
            let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o700).open(&copy)?;
            std::io::Write::write_all(&mut &file, &bytes)?;
        }
        let stranger = self.run_workload(&copy, api).await?;
        expect(stranger["error"] == "NOT_ENTITLED", "the stranger should have been refused", &stranger)?;
        let denial = self.find(journey, EventType::Denial)?;
        let missing = denial.entry.policy.map(|policy| policy.missing.join("; ")).unwrap_or_default();
        scene(
            "stranger",
            format!(
                "the same program with one byte added gets {} and learns nothing",
                paint::bad("NOT_ENTITLED")
            ),
        )?;
        scene("why", format!("is in the ledger, for operators: {}", shortened(&missing)))?;

        let report = verify(&journey.ledger().health().directory, None)
            .map_err(|error| Exit::new(Exit::DATA, format!("the ledger does not verify: {error}")))?;
        let records = report.records;
        expect(
            records >= 4,
            "the ledger should hold the start, the key, the yes and the no",
            &json!(records),
        )?;
        scene(
            "ledger",
            format!("{records} records, each naming the hash of the one before: {}", paint::good("verified")),
        )?;
        scene("honestly", "a bearer token works for whoever has it until it ends; so it is short, for one API, and under a dated exception".into())
    }

    fn invite(&self, issuer: &str, api: &str) -> Result<(), Exit> {
        let program = self.program.display();
        let directory = self.directory.display();
        paint::line(&format!(
            "\nIt stays up until Ctrl-C. Try, in another terminal:\n\
             \x20 {program} whoami --socket {directory}/agent.sock\n\
             \x20 {program} get orders --json --socket {directory}/agent.sock\n\
             \x20 curl -H \"$({program} get orders --header --socket {directory}/agent.sock)\" {api}\n\
             \x20 curl --unix-socket {directory}/http.sock -H 'keybearer: v1' http://localhost/v1/credentials/orders   # refused: not that program\n\
             \x20 {program} explain --pid $$ orders --socket {directory}/operator.sock\n\
             \x20 {program} status --socket {directory}/operator.sock\n\
             \x20 {program} audit tail --dir {directory}/state/audit\n\
             \x20 curl -X POST {issuer}/dev/fault -H 'Content-Type: application/json' -d '{{\"fault\":\"unavailable\",\"times\":3}}'"
        ))
    }

    async fn run_workload(&self, program: &Path, api: &str) -> Result<Value, Exit> {
        let output = Command::new(program)
            .arg("dev-workload")
            .args(["--api", api, "--socket"])
            .arg(self.file("agent.sock"))
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .await?;
        serde_json::from_slice(&output.stdout)
            .map_err(|_| Exit::new(Exit::SOFTWARE, format!("the workload said nothing ({})", output.status)))
    }

    fn find(&self, journey: &Journey, kind: EventType) -> Result<Record, Exit> {
        let directory = journey.ledger().health().directory;
        let found = read(&directory, 0)?.filter(|record| record.entry.event.kind == kind).last();
        found.ok_or_else(|| Exit::new(Exit::SOFTWARE, format!("the ledger should hold a record of {kind:?}")))
    }
}

fn expect(came_true: bool, what: &str, instead: &Value) -> Result<(), Exit> {
    if came_true { Ok(()) } else { Err(Exit::new(Exit::SOFTWARE, format!("{what}; instead: {instead}"))) }
}

/// Digests in a sentence are shortened for eyes.
fn shortened(text: &str) -> String {
    let word = |word: &str| {
        let hex = word.trim_end_matches([',', ';']);
        let long = hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit());
        if long { format!("{}..{}", &hex[..12], &word[64..]) } else { word.to_owned() }
    };
    text.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

impl Workload {
    pub(super) async fn run(self) -> Result<(), Exit> {
        let mut agent = Agent::connect(&self.socket).await?;
        let said = match agent.get("orders", &[]).await {
            Ok(credential) => {
                let Some(Kind::AccessToken(token)) = credential.kind else {
                    return Err(Exit::new(Exit::SOFTWARE, "not a token"));
                };
                let (status, body) = call(&self.api, Some(&token.token)).await?;
                json!({"api_status": status, "api_body": body})
            }
            Err(status) => {
                use tonic_types::StatusExt as _;
                let info = status.get_details_error_info();
                json!({"error": info.map_or_else(|| status.code().to_string(), |info| info.reason)})
            }
        };
        paint::line(&said.to_string())
    }
}

/// One GET, with the token if there is one.
async fn call(url: &str, token: Option<&str>) -> Result<(u16, String), Exit> {
    let failed = |error: &dyn std::fmt::Display| Exit::new(Exit::UNAVAILABLE, format!("{url}: {error}"));
    let mut request = http::Request::get(url);
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|error| failed(&error))?;
    let client: HttpClient<_, Empty<Bytes>> = HttpClient::builder(TokioExecutor::new()).build_http();
    let response = client.request(request).await.map_err(|error| failed(&error))?;
    let status = response.status().as_u16();
    let body =
        Limited::new(response.into_body(), 64 << 10).collect().await.map_err(|error| failed(&error))?;
    Ok((status, String::from_utf8_lossy(&body.to_bytes()).into_owned()))
}

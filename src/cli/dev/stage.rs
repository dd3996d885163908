//! The stage: a directory of its own, the settings in it, and the programs that come on. In go orders for them; out comes
//! what they tell. Everything is gone when it is struck.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    process::Stdio,
};

use ring::digest;
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
};
use zeroize::Zeroizing;

use crate::{
    audit::{EventType, Record, read},
    cli::{Exit, agent::mistaken, environment},
    clock::{Clock, Dice},
    config::{Settings, load},
    journey::Journey,
    keys::CREDENTIAL,
    secret::hex,
};

/// The one API of the story. A name, not a place: tokens are for it and for nothing else.
pub(super) const ORDERS: &str = "https://orders.example";

/// Where what the service manager gives lies.
const CREDENTIALS: &str = "credentials";

/// Two directories: the agent's, 0700, and one that others can read, for programs that run as others.
#[derive(Clone)]
pub(super) struct Stage {
    pub(super) directory: PathBuf,
    pub(super) elsewhere: PathBuf,
    pub(super) program: PathBuf,
}

impl Stage {
    pub(super) fn new(dice: &dyn Dice) -> Result<Self, Exit> {
        let mut name = [0; 8];
        dice.fill(&mut name);
        let directory = std::env::temp_dir().join(format!("keybearer-dev-{}", hex(&name)));
        let elsewhere = directory.with_extension("elsewhere");
        fs::DirBuilder::new().mode(0o700).create(&directory)?;
        fs::DirBuilder::new().mode(0o755).create(&elsewhere)?;
        let stage = Self { directory, elsewhere, program: std::env::current_exe()? };
        let mut sealing_key = [0; 32];
        dice.fill(&mut sealing_key);
        stage.give_sealing_key(&sealing_key)?;
        Ok(stage)
    }

    /// Gives the agent a sealing key as the service manager does: in a directory that is not the state directory.
    pub(super) fn give_sealing_key(&self, key: &[u8]) -> Result<(), Exit> {
        fs::DirBuilder::new().mode(0o700).create(self.file(CREDENTIALS))?;
        let path = self.file(CREDENTIALS).join(CREDENTIAL);
        let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o400).open(path)?;
        Ok(std::io::Write::write_all(&mut &file, key)?)
    }

    /// What was given.
    pub(super) fn sealing_key(&self) -> Result<Zeroizing<Vec<u8>>, Exit> {
        Ok(Zeroizing::new(fs::read(self.file(CREDENTIALS).join(CREDENTIAL))?))
    }

    /// The environment of the agent here, as the service manager makes it.
    pub(super) fn environment(&self) -> BTreeMap<String, String> {
        let credentials = self.file(CREDENTIALS).display().to_string();
        let mut environment = environment();
        environment.insert("CREDENTIALS_DIRECTORY".into(), credentials);
        environment
    }

    pub(super) fn strike(&self) -> Result<(), Exit> {
        fs::remove_dir_all(&self.elsewhere)?;
        Ok(fs::remove_dir_all(&self.directory)?)
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// agent.toml as an operator would write it: this very program, run by this very user, is the demo shop, and its tokens
    /// are for the API at the origin `api`. `more` goes at the end.
    pub(super) fn write_settings(
        &self,
        issuer: &str,
        api: &str,
        more: &str,
        clock: &dyn Clock,
    ) -> Result<Settings, Exit> {
        let program = fs::read(&self.program)?;
        let sum = hex(digest::digest(&digest::SHA256, &program).as_ref());
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
origins = ["{api}"]
{more}"#,
            directory = self.directory.display(),
            uid = rustix::process::geteuid().as_raw(),
        );
        let path = self.file("agent.toml");
        let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        std::io::Write::write_all(&mut &file, text.as_bytes())?;
        load(&path, &self.environment(), clock.wall()).map_err(mistaken)
    }

    /// The same program with one byte more: another program, by its digest.
    pub(super) fn stranger(&self) -> Result<PathBuf, Exit> {
        let copy = self.elsewhere.join("stranger");
        let mut bytes = fs::read(&self.program)?;
        bytes.push(0);
        let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o755).open(&copy)?;
        std::io::Write::write_all(&mut &file, &bytes)?;
        Ok(copy)
    }

    /// Starts the demo workload, or whatever calls itself so.
    pub(super) fn start(&self, program: &Path) -> Result<Running, Exit> {
        let mut child = Command::new(program)
            .args(["dev-workload", "--socket"])
            .arg(self.file("agent.sock"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let gone = || Exit::new(Exit::SOFTWARE, "the workload has no standard input and output");
        let orders = child.stdin.take().ok_or_else(gone)?;
        let told = BufReader::new(child.stdout.take().ok_or_else(gone)?).lines();
        Ok(Running { child, orders, told })
    }

    /// The last record of its kind.
    pub(super) fn find(&self, journey: &Journey, kind: EventType) -> Result<Record, Exit> {
        let directory = journey.ledger().health().directory;
        let found = read(&directory, 0)?.filter(|record| record.entry.event.kind == kind).last();
        found.ok_or_else(|| Exit::new(Exit::SOFTWARE, format!("the ledger should hold a record of {kind:?}")))
    }

    /// The last record of the credential of this name, fetched for whoever got it or not.
    pub(super) fn find_of(&self, journey: &Journey, name: &str) -> Result<Record, Exit> {
        let directory = journey.ledger().health().directory;
        let is_of = |record: &Record| {
            record.entry.credential.as_ref().is_some_and(|what| what.name.as_deref() == Some(name))
        };
        let found = read(&directory, 0)?.filter(is_of).last();
        found.ok_or_else(|| Exit::new(Exit::SOFTWARE, format!("the ledger should hold a record of {name}")))
    }
}

/// A program that came on. It is ended when it is dropped.
pub(super) struct Running {
    child: Child,
    orders: ChildStdin,
    told: Lines<BufReader<ChildStdout>>,
}

impl Running {
    /// Gives it an order, and hears what came of it.
    pub(super) async fn ask(&mut self, order: &str) -> Result<Value, Exit> {
        self.orders.write_all(format!("{order}\n").as_bytes()).await?;
        let told = self.told.next_line().await?.and_then(|line| serde_json::from_str(&line).ok());
        told.ok_or_else(|| Exit::new(Exit::SOFTWARE, format!("the workload said nothing to {order:?}")))
    }

    /// Its process id.
    pub(super) fn pid(&self) -> u32 {
        self.child.id().unwrap_or_default()
    }
}

/// Ends the story where something did not come true.
pub(super) fn expect(came_true: bool, what: &str, instead: &Value) -> Result<(), Exit> {
    if came_true { Ok(()) } else { Err(Exit::new(Exit::SOFTWARE, format!("{what}; instead: {instead}"))) }
}

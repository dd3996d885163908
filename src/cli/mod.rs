//! The command line. In goes argv; out come a command's words and an exit code of sysexits(3). One file per command;
//! every command that talks to an agent is a client like any other.

mod agent;
mod assigned;
mod audit;
mod check;
mod credential;
mod credential_helper;
mod delivered;
mod dev;
mod docs;
mod doctor;
mod drop_in;
mod env_file;
mod exec;
mod health;
mod keys;
mod migrate;
mod operator;
mod paint;
mod posture;
mod registration;
mod scan;
mod seal;
mod status;
mod template;

use std::{collections::BTreeMap, future::Future, path::PathBuf, process::ExitCode};

use clap::{Args, CommandFactory as _, Parser, Subcommand};
use tonic::{Code, Status};

use crate::{
    client::ConnectError,
    config::{DEFAULT_PATH, Listen},
    shim::{FetchError, tools::ToolError},
};

/// A per-host agent that attests local programs and serves them short-lived credentials, so that none of them stores a
/// secret.
#[derive(Debug, Parser)]
#[command(name = "keybearer", version, max_term_width = 100, after_help = "Try it: keybearer dev")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent.
    Agent(ConfigFile),
    /// Look at the ledger: verify it, follow it, explain a record.
    Audit(audit::Audit),
    /// Read agent.toml as the agent would, and name every mistake.
    Check(check::Check),
    /// Print shell completions.
    Completions(docs::Completions),
    /// Run issuer, agent, API and workload on this machine, for development, and tell what happens.
    Dev(dev::Dev),
    #[command(hide = true)]
    DevWorkload(dev::Workload),
    /// Print the drop-in that has a systemd unit get its credentials from the agent.
    DropIn(drop_in::DropIn),
    /// What is wrong with this host as a place for the agent, each with its remedy.
    Doctor(doctor::Doctor),
    /// Run a program with credentials in its environment or in files.
    Exec(exec::Exec),
    #[command(hide = true)]
    ExecStage(exec::Stage),
    /// Write the variables that a program gets into a file, as systemd, docker, dotenv, a shell or Kubernetes reads them.
    EnvFile(env_file::EnvFile),
    /// Why a process gets a credential, or gets none.
    Explain(operator::Explain),
    /// Get one credential, as the program that runs this.
    Get(credential::Get),
    /// Answer aws, docker, gcp, git or kubectl, which run this to get a credential (docs/tools.md).
    Helper(credential_helper::Helper),
    /// Ask the agent whether it is ready.
    Health(health::Health),
    /// List the keys of this host's identities, or export their public halves.
    Keys(keys::Keys),
    /// Write the man pages into a directory.
    Man(docs::Man),
    /// Propose how a program's env files and units move over: identity, credentials, what to run, whom to ask.
    Migrate(migrate::Migrate),
    Posture(posture::Posture),
    /// Have the agent read its settings again.
    Reload(OperatorSocket),
    /// Publish an identity's next key, which signs once every issuer takes it; again, to try it now.
    Rotate(operator::Rotate),
    /// End an identity's live credentials before their time, here and at their issuers.
    Revoke(operator::Revoke),
    /// Switch an identity off, at once and across restarts.
    Disable(operator::Disable),
    /// Switch an identity on again.
    Enable(operator::Enable),
    /// Put in a secret that cannot be dynamic yet, for a credential of kind = "sealed".
    ///
    /// It is read from standard input: one value, without the one line feed that may stand at its end; on a terminal, what you type
    /// is not shown. The agent keeps it sealed and hands it out from now on.
    Seal(seal::Seal),
    /// Find static secrets in units, env files, settings and pipelines, and say what takes their place. Exits with 65 if there are any.
    Scan(scan::Scan),
    /// How the agent, its issuers, its shelf and its ledger are.
    Status(status::StatusCommand),
    /// Print the two headers of one request with a bound credential: the credential, and a proof that is good once.
    Prove(credential::Prove),
    /// Write a configuration file from a template, with credentials in it.
    Template(template::TemplateCommand),
    /// Get a credential now and again at every rotation.
    Watch(credential::Watch),
    /// Who this program is to the agent, and what it may have.
    Whoami(credential::Whoami),
}

/// Where the settings are.
#[derive(Args, Debug)]
struct ConfigFile {
    /// The settings.
    #[arg(long, env = "KEYBEARER_CONFIG", default_value = DEFAULT_PATH, value_name = "FILE")]
    config: PathBuf,
}

/// Where the workloads' socket is.
#[derive(Args, Debug)]
struct WorkloadSocket {
    /// The agent's socket.
    #[arg(long, env = "KEYBEARER_SOCKET", default_value = Listen::WORKLOAD, value_name = "PATH")]
    socket: PathBuf,
}

/// Where the operators' socket is.
#[derive(Args, Debug)]
struct OperatorSocket {
    /// The operators' socket.
    #[arg(long, env = "KEYBEARER_OPERATOR_SOCKET", default_value = Listen::OPERATOR, value_name = "PATH")]
    socket: PathBuf,
}

/// How a command ends: sysexits(3), with a sentence for people.
#[derive(Debug)]
pub struct Exit {
    code: u8,
    message: String,
}

impl Exit {
    /// EX_DATAERR: what was looked at is wrong.
    const DATA: u8 = 65;
    /// EX_NOINPUT: what is to be read cannot be.
    const NO_INPUT: u8 = 66;
    /// EX_UNAVAILABLE: no agent, or not now.
    const UNAVAILABLE: u8 = 69;
    /// EX_SOFTWARE: our fault.
    const SOFTWARE: u8 = 70;
    /// EX_IOERR.
    const IO: u8 = 74;
    /// EX_TEMPFAIL: try again.
    const TEMPORARY: u8 = 75;
    /// EX_NOPERM: denied.
    const DENIED: u8 = 77;
    /// EX_CONFIG: the settings are wrong.
    const CONFIG: u8 = 78;
    /// EX_USAGE.
    const USAGE: u8 = 64;
    /// A program that cannot be run, as shells have it.
    const CANNOT_RUN: u8 = 126;
    /// A program that is not there, as shells have it.
    const NOT_FOUND: u8 = 127;

    fn new(code: u8, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

impl From<ConnectError> for Exit {
    fn from(error: ConnectError) -> Self {
        Self::new(Self::UNAVAILABLE, error.to_string())
    }
}

impl From<FetchError> for Exit {
    fn from(error: FetchError) -> Self {
        match error {
            FetchError::NoAgent(error) => error.into(),
            FetchError::Refused { credential, status } => {
                let Self { code, message } = status.into();
                Self { code, message: format!("{credential}: {message}") }
            }
            FetchError::Field(_) | FetchError::Declared(_) => Self::new(Self::CONFIG, error.to_string()),
        }
    }
}

impl From<ToolError> for Exit {
    fn from(error: ToolError) -> Self {
        let code = match error {
            ToolError::Asked { .. } | ToolError::Plain { .. } => Self::DATA,
            ToolError::Useless { .. } | ToolError::Elsewhere { .. } | ToolError::Several { .. } => {
                Self::CONFIG
            }
        };
        Self::new(code, error.to_string())
    }
}

impl From<std::io::Error> for Exit {
    fn from(error: std::io::Error) -> Self {
        Self::new(Self::IO, error.to_string())
    }
}

impl From<Status> for Exit {
    fn from(status: Status) -> Self {
        use tonic_types::StatusExt as _;
        let code = match status.code() {
            Code::PermissionDenied | Code::Unauthenticated => Self::DENIED,
            Code::Unavailable | Code::ResourceExhausted | Code::DeadlineExceeded => Self::TEMPORARY,
            Code::FailedPrecondition => Self::CONFIG,
            Code::InvalidArgument => Self::USAGE,
            _ => Self::SOFTWARE,
        };
        let details = status.get_error_details();
        let mut message = status.message().to_owned();
        if let Some(info) = details.error_info() {
            message = format!("{}: {message}", info.reason);
        }
        if let Some(wait) = details.retry_info().and_then(|retry| retry.retry_delay) {
            message.push_str(&format!(" (again in {} s)", wait.as_secs().max(1)));
        }
        if let Some(exchange) = status.metadata().get("keybearer-exchange").and_then(|id| id.to_str().ok()) {
            message.push_str(&format!("\nlook it up: keybearer audit tail --exchange {exchange}"));
            if code == Self::DENIED {
                message.push_str(&format!("\nor ask why:  keybearer explain --pid {}", std::process::id()));
            }
        }
        Self::new(code, message)
    }
}

/// Runs what argv asks for.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse_from(credential_helper::by_name(std::env::args_os())) {
        Ok(cli) => cli,
        Err(error) => {
            let asked_for = !error.use_stderr();
            // Nothing is left to tell if not even this can be printed.
            let _ = error.print();
            return if asked_for { ExitCode::SUCCESS } else { ExitCode::from(Exit::USAGE) };
        }
    };
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(exit) => {
            if !exit.message.is_empty() {
                eprintln!("keybearer: {}", exit.message);
            }
            ExitCode::from(exit.code)
        }
    }
}

fn run(command: Command) -> Result<(), Exit> {
    match command {
        Command::Agent(file) => agent::run(&file.config),
        Command::Audit(command) => command.run(),
        Command::Check(command) => command.run(),
        Command::Completions(command) => command.run(&mut Cli::command()),
        Command::Dev(command) => command.run(),
        Command::DevWorkload(command) => on_runtime(command.run()),
        Command::DropIn(command) => command.run(),
        Command::Doctor(command) => on_runtime(command.run()),
        Command::Exec(command) => command.run(),
        Command::ExecStage(command) => command.run(),
        Command::EnvFile(command) => on_runtime(command.run()),
        Command::Explain(command) => on_runtime(command.run()),
        Command::Get(command) => on_runtime(command.run()),
        Command::Health(command) => on_runtime(command.run()),
        Command::Helper(command) => on_runtime(command.run()),
        Command::Keys(command) => command.run(),
        Command::Man(command) => command.run(Cli::command()),
        Command::Migrate(command) => command.run(),
        Command::Posture(command) => command.run(),
        Command::Disable(command) => on_runtime(command.run()),
        Command::Enable(command) => on_runtime(command.run()),
        Command::Revoke(command) => on_runtime(command.run()),
        Command::Rotate(command) => on_runtime(command.run()),
        Command::Reload(socket) => on_runtime(operator::reload(socket.socket)),
        Command::Seal(command) => on_runtime(command.run()),
        Command::Scan(command) => command.run(),
        Command::Status(command) => on_runtime(command.run()),
        Command::Prove(command) => on_runtime(command.run()),
        Command::Template(command) => on_runtime(command.run()),
        Command::Watch(command) => on_runtime(command.run()),
        Command::Whoami(command) => on_runtime(command.run()),
    }
}

/// One thread is enough for everything here, and quicker than several.
fn on_runtime<T>(work: impl Future<Output = Result<T, Exit>>) -> Result<T, Exit> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Exit::new(Exit::SOFTWARE, format!("no runtime: {error}")))?;
    runtime.block_on(work)
}

/// The environment, as text, for overrides of settings.
fn environment() -> BTreeMap<String, String> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

/// Prints JSON for machines.
fn print_json(value: &serde_json::Value) -> Result<(), Exit> {
    paint::verbatim(&format!("{value:#}"))
}

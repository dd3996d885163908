//! `keybearer helper`: the command that aws, docker, gcp, git and kubectl run to get a credential. In goes what they say, in their own
//! words; out comes the answer in them, and an error where each of them looks for one: on standard error, of docker and gcp on standard
//! output. What is asked and answered is decided in `shim::tools`; this file reads, asks the agent, and writes. The agent attests this
//! very process, so a client gets what an identity that matches it gets.

use std::{
    ffi::OsString,
    io::{BufRead as _, Read as _, Write as _},
    path::Path,
    time::Duration,
};

use clap::{Args, Subcommand};

use super::{Exit, WorkloadSocket, environment};
use crate::{
    proto::v1::{Credential, Offer},
    secret::Secret,
    shim::{
        FetchError, fetch_living, give_back, offers,
        tools::{Tool, ToolError, aws, choose, docker, gcp, git, kubectl, usable},
    },
};

/// How long a client waits for a credential that is its, at most: a person may sit there. All of them give a helper longer.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long it waits to hear whether there is anything for a host: that may be none of ours, and nothing of an issuer's is needed.
const TO_HEAR: Duration = Duration::from_secs(3);

/// How long it waits for a credential that lives longer than the one there is.
const FOR_LONGER: Duration = Duration::from_secs(5);

#[derive(Args, Debug)]
pub(super) struct Helper {
    #[command(subcommand)]
    tool: Client,
}

#[derive(Debug, Subcommand)]
enum Client {
    /// credential_process of the AWS SDKs and command line: a lease with an access key.
    Aws(Named),
    /// git's credential helper, also as git-credential-keybearer: what is for the host that git names.
    Git(Git),
    /// docker's credential helper, as docker-credential-keybearer: what is for the registry that docker names.
    Docker(Docker),
    /// The executable credential source of Google's auth libraries: a JWT.
    Gcp(Named),
    /// The exec plugin of kubectl: a token, or a certificate and its key.
    Kubectl(Named),
}

#[derive(Args, Debug)]
struct Named {
    /// The credential's name within the identity.
    credential: String,
    #[command(flatten)]
    socket: WorkloadSocket,
}

#[derive(Args, Debug)]
struct Git {
    /// get, store or erase; git says which.
    operation: String,
    /// The credential's name within the identity; by default the one that is for the host.
    #[arg(long, value_name = "NAME")]
    credential: Option<String>,
    #[command(flatten)]
    socket: WorkloadSocket,
}

#[derive(Args, Debug)]
struct Docker {
    /// get, store, erase, list or version; docker says which.
    operation: String,
    #[command(flatten)]
    socket: WorkloadSocket,
}

/// The command line that is meant by the name this program was started under: git and docker know their helpers by name only.
pub(super) fn by_name(arguments: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = arguments.collect();
    let name = arguments.first().map(Path::new).and_then(Path::file_name);
    let tool = match name.and_then(|name| name.to_str()) {
        Some("git-credential-keybearer") => "git",
        Some("docker-credential-keybearer") => "docker",
        _ => return arguments,
    };
    arguments.splice(1..1, ["helper", tool].map(OsString::from));
    arguments
}

impl Helper {
    pub(super) async fn run(self) -> Result<(), Exit> {
        match self.tool {
            Client::Aws(named) => tell(&named.aws().await.map_err(Exit::on_one_line)?),
            Client::Docker(docker) => match docker.answer().await.map_err(Exit::on_one_line) {
                Ok(answer) => tell(&answer),
                // docker reads errors on standard output, and has no other code for them.
                Err(exit) => tell(&Secret::new(format!("{}\n", exit.message))).and(Err(Exit::new(1, ""))),
            },
            Client::Gcp(named) => {
                let answer = named.gcp(&environment()).await.map_err(Exit::on_one_line);
                tell(&answer.unwrap_or_else(|exit| gcp::failure(exit.of_http(), &exit.message)))
            }
            Client::Git(git) => git.run().await.map_err(Exit::on_one_line),
            Client::Kubectl(named) => tell(&named.kubectl(&environment()).await.map_err(Exit::on_one_line)?),
        }
    }
}

impl Named {
    async fn aws(&self) -> Result<Secret, Exit> {
        let offer = self.offer().await?;
        usable(Tool::Aws, &offer)?;
        let (first, long) = (self.get(Duration::ZERO, PATIENCE).await?, aws::min_ttl(&offer));
        let left = first.expires_in.and_then(|left| Duration::try_from(left).ok()).unwrap_or_default();
        if left >= long {
            return Ok(aws::answer(&first)?);
        }
        let credential = match self.get(long, FOR_LONGER).await {
            // None lives longer, or none is to be had just now: what is live will do.
            Err(error) if error.is_too_short() || error.may_pass() => {
                self.get(Duration::ZERO, PATIENCE).await
            }
            longer => longer,
        };
        Ok(aws::answer(&credential?)?)
    }

    async fn gcp(&self, environment: &std::collections::BTreeMap<String, String>) -> Result<Secret, Exit> {
        let request = gcp::Request::read(environment)?;
        let offer = self.offer().await?;
        usable(Tool::Gcp, &offer)?;
        match request {
            gcp::Request::Token(token_type) => {
                Ok(gcp::answer(token_type, &self.get(Duration::ZERO, PATIENCE).await?)?)
            }
            gcp::Request::Revoke => {
                give_back(&self.socket.socket, &self.credential, PATIENCE).await?;
                Ok(gcp::revoked())
            }
        }
    }

    async fn kubectl(
        &self,
        environment: &std::collections::BTreeMap<String, String>,
    ) -> Result<Secret, Exit> {
        let request = kubectl::Request::read(environment.get("KUBERNETES_EXEC_INFO").map(String::as_str))?;
        request.permits(&self.offer().await?)?;
        Ok(request.answer(&self.get(Duration::ZERO, PATIENCE).await?)?)
    }

    /// What the agent offers under this name.
    async fn offer(&self) -> Result<Offer, Exit> {
        let offers = offers(&self.socket.socket, PATIENCE).await.map_err(|error| match error {
            FetchError::Refused { status, .. } => {
                FetchError::Refused { credential: self.credential.as_str().into(), status }
            }
            other => other,
        })?;
        if let Some(offer) = offers.into_iter().find(|offer| offer.name == self.credential) {
            return Ok(offer);
        }
        // The agent says no in its own words, and has it on record.
        self.get(Duration::ZERO, PATIENCE).await?;
        Err(Exit::new(
            Exit::TEMPORARY,
            format!("{}: the settings have just changed: try again", self.credential),
        ))
    }

    async fn get(&self, min_ttl: Duration, within: Duration) -> Result<Credential, FetchError> {
        fetch_living(&self.socket.socket, &self.credential, min_ttl, within).await
    }
}

impl Git {
    async fn run(&self) -> Result<(), Exit> {
        // Operations that are not known are nobody's business (git-credential(1)).
        if !["get", "store", "erase"].contains(&self.operation.as_str()) {
            return Ok(());
        }
        let text = read(git::LONGEST, Tool::Git)?;
        // What was given is the agent's to keep.
        if self.operation == "store" {
            return Ok(());
        }
        let request = match git::Request::read(text.expose()) {
            Ok(Some(request)) => request,
            Ok(None) => return Ok(()),
            // Somebody made git say that: nobody else is to answer it either.
            Err(error @ ToolError::Asked { .. }) => return self.quit(error.into()),
            Err(error) => return Err(error.into()),
        };
        let mut there = offers(&self.socket.socket, TO_HEAR).await?;
        there.retain(|offer| !request.is_for_another(offer));
        there.retain(|offer| self.credential.as_ref().is_none_or(|named| *named == offer.name));
        let offer = match choose(Tool::Git, &there, &request.place) {
            Ok(Some(offer)) => offer,
            Ok(None) => return Ok(()),
            Err(error) => return self.quit(error.into()),
        };
        match self.done(&request, offer).await {
            Ok(answer) => tell(&answer),
            Err(exit) => self.quit(exit),
        }
    }

    async fn done(&self, request: &git::Request, offer: &Offer) -> Result<Secret, Exit> {
        let socket = &self.socket.socket;
        let credential = fetch_living(socket, &offer.name, Duration::ZERO, PATIENCE).await?;
        if self.operation == "get" {
            return Ok(request.answer(offer, &credential)?);
        }
        // The server did not take it: another takes its place.
        if request.refuses(offer, &credential) {
            give_back(socket, &offer.name, PATIENCE).await?;
        }
        Ok(Secret::new(""))
    }

    /// The host is ours, and there is nothing for it: git asks nobody else, and no person for a password.
    fn quit(&self, exit: Exit) -> Result<(), Exit> {
        if self.operation == "get" {
            tell(&Secret::new(git::QUIT))?;
        }
        Err(exit)
    }
}

impl Docker {
    async fn answer(&self) -> Result<Secret, Exit> {
        let socket = &self.socket.socket;
        match self.operation.as_str() {
            "get" => {
                let text = read(docker::LONGEST, Tool::Docker)?;
                let (server, offer) = self.offer(text.expose()).await?;
                let credential = fetch_living(socket, &offer.name, Duration::ZERO, PATIENCE).await?;
                Ok(docker::answer(server, &offer, &credential)?)
            }
            "erase" => {
                let text = read(docker::LONGEST, Tool::Docker)?;
                let (_, offer) = self.offer(text.expose()).await?;
                give_back(socket, &offer.name, PATIENCE).await?;
                Ok(Secret::new(""))
            }
            "list" => match offers(socket, TO_HEAR).await.map_err(Exit::from) {
                Ok(offers) => Ok(Secret::new(docker::list(&offers) + "\n")),
                // Whoever is nobody here has nothing.
                Err(exit) if exit.code == Exit::DENIED => Ok(Secret::new("{}\n")),
                Err(exit) => Err(exit),
            },
            "store" => Err(Exit::new(Exit::USAGE, docker::KEEPS_NOTHING)),
            "version" => {
                Ok(Secret::new(format!("docker-credential-keybearer v{}\n", env!("CARGO_PKG_VERSION"))))
            }
            _ => Err(Exit::new(Exit::USAGE, "there is get, store, erase, list and version")),
        }
    }

    /// What the agent offers for the registry that docker names.
    async fn offer<'a>(&self, text: &'a [u8]) -> Result<(&'a str, Offer), Exit> {
        let (server, place) = docker::read(text)?;
        let offers = offers(&self.socket.socket, TO_HEAR).await?;
        let offer = choose(Tool::Docker, &offers, &place)?;
        let offer = offer.ok_or_else(|| Exit::new(Exit::DENIED, docker::NOT_FOUND))?;
        Ok((server, offer.clone()))
    }
}

impl Exit {
    /// Clients show the message in a message of their own.
    fn on_one_line(self) -> Self {
        Self { code: self.code, message: self.message.replace('\n', "; ") }
    }

    /// The status of HTTP that says the same.
    fn of_http(&self) -> &'static str {
        match self.code {
            Self::DENIED => "403",
            Self::UNAVAILABLE | Self::TEMPORARY => "503",
            Self::USAGE | Self::DATA | Self::CONFIG => "400",
            _ => "500",
        }
    }
}

/// What the client says, up to a blank line or the end.
fn read(longest: u64, tool: Tool) -> Result<Secret, Exit> {
    let mut text = Vec::with_capacity(4096);
    let mut input = std::io::stdin().lock().take(longest + 1);
    loop {
        let line = input.read_until(b'\n', &mut text)?;
        if line == 0 || text.ends_with(b"\n\n") || text == b"\n" {
            break;
        }
    }
    if input.limit() == 0 {
        return Err(ToolError::Asked { tool, why: "it says more than any of its like does" }.into());
    }
    Ok(Secret::new(text))
}

/// Writes the answer. A client that has gone needs none.
fn tell(answer: &Secret) -> Result<(), Exit> {
    let mut out = std::io::stdout().lock();
    match out.write_all(answer.expose()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands_that_the_page_says_to_paste_are_there() {
        use clap::Parser as _;
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/tools.md");
        let page = std::fs::read_to_string(page).unwrap().replace(", ", " ");
        let commands: Vec<&str> =
            page.split("keybearer helper ").skip(1).chain(page.split("[helper ").skip(1)).collect();
        for command in &commands {
            let words =
                command.split(|c: char| !c.is_ascii_alphanumeric()).take_while(|word| !word.is_empty());
            // git says itself what it wants.
            let words: Vec<&str> = words.chain(command.starts_with("git").then_some("get")).collect();
            let line = ["keybearer", "helper"].into_iter().chain(words.iter().copied());
            assert!(crate::cli::Cli::try_parse_from(line).is_ok(), "{words:?}");
        }
        assert_eq!(commands.len(), 4, "{commands:?}");
    }

    #[test]
    fn a_name_says_which_client_is_meant() {
        let meant = |line: &[&str]| {
            let words = by_name(line.iter().map(OsString::from));
            words.into_iter().map(|word| word.into_string().unwrap()).collect::<Vec<_>>()
        };
        let docker = meant(&["/usr/local/bin/docker-credential-keybearer", "get"]);
        assert_eq!(docker[1..], ["helper", "docker", "get"]);
        assert_eq!(meant(&["git-credential-keybearer", "store"])[1..], ["helper", "git", "store"]);
        assert_eq!(meant(&["git-credential-keybearer"])[1..], ["helper", "git"]);
        for other in ["keybearer", "docker-credential-keybearer-x", "xgit-credential-keybearer"] {
            assert_eq!(meant(&[other, "get"]), [other, "get"]);
        }
        assert!(meant(&[]).is_empty());
    }
}

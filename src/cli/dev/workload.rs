//! The demo workload, a hidden command. In go orders on standard input, a line each; out comes a line of JSON for each. It is a
//! careless program: it tells the tokens and proofs that it holds, as programs do in logs and dumps. Without a socket to
//! connect to, standard input is a connection that somebody left to it.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
    process::Stdio,
};

use clap::Args;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    net::UnixStream,
    process::Command,
};
use tonic::Status;
use tonic_types::StatusExt as _;

use super::call::call;
use crate::{
    cli::{Exit, paint},
    client::{Agent, connect},
    proto::v1::{Credential, credential::Kind},
};

/// What the story is about.
const ORDERS: &str = "orders";

#[derive(Args, Debug)]
pub(in crate::cli) struct Workload {
    #[arg(long)]
    socket: Option<PathBuf>,
}

impl Workload {
    pub(in crate::cli) async fn run(self) -> Result<(), Exit> {
        let Some(socket) = &self.socket else {
            let said = match Agent::over(left_to_us()?).get(ORDERS, &[]).await {
                Ok(credential) => shown(&credential),
                Err(status) => refused(&status),
            };
            return paint::line(&said.to_string());
        };
        let mut agent = Agent::connect(socket).await?;
        let mut orders = BufReader::new(tokio::io::stdin()).lines();
        while let Some(order) = orders.next_line().await? {
            let words: Vec<&str> = order.split_whitespace().collect();
            let done = match words.as_slice() {
                ["errand", api] => errand(&mut agent, api).await?,
                ["get", name] => agent.get(name, &[]).await.map(|credential| shown(&credential)),
                ["prove", name, fingerprint, method, url] => {
                    let held = Credential {
                        name: (*name).into(),
                        fingerprint: (*fingerprint).into(),
                        ..Credential::default()
                    };
                    agent.prove(&held, method, url, None).await.map(|proof| json!({"proof": proof}))
                }
                ["release", name] => {
                    agent.release(name, &[]).await.map(|revoked| json!({"revoked": revoked}))
                }
                ["lend", program] => Ok(lend(socket, program, None).await?),
                ["lend", program, uid] => Ok(lend(socket, program, uid.parse().ok()).await?),
                _ => return Err(Exit::new(Exit::USAGE, format!("the workload knows no order {order:?}"))),
            };
            paint::line(&done.unwrap_or_else(|status| refused(&status)).to_string())?;
        }
        Ok(())
    }
}

/// Gets a token and calls the API with it: once without the nonce that the API wants, and again with it (DPOP-08).
async fn errand(agent: &mut Agent, api: &str) -> Result<Result<Value, Status>, Exit> {
    let credential = match agent.get(ORDERS, &[]).await {
        Ok(credential) => credential,
        Err(status) => return Ok(Err(status)),
    };
    let mut told = shown(&credential);
    let authorization = format!("DPoP {}", told["token"].as_str().unwrap_or_default());
    let (mut nonce, mut statuses) = (None, vec![]);
    loop {
        let proof = match agent.prove(&credential, "GET", api, nonce.as_deref()).await {
            Ok(proof) => proof,
            Err(status) => return Ok(Err(status)),
        };
        let heard = call("GET", api, Some(&authorization), Some(&proof)).await?;
        statuses.push(heard.status);
        let again = statuses.len() == 1 && heard.status == 401 && heard.nonce.is_some();
        nonce = heard.nonce;
        if !again {
            told["api_statuses"] = json!(statuses);
            told["api_body"] = json!(heard.body.trim());
            told["proof"] = json!(proof);
            return Ok(Ok(told));
        }
    }
}

/// Connects, and leaves the connection to another program, perhaps another user's; tells what came of it there.
async fn lend(socket: &Path, program: &str, uid: Option<u32>) -> Result<Value, Exit> {
    let stream = connect(socket).await?.into_std()?;
    stream.set_nonblocking(false)?;
    let mut command = Command::new(program);
    command.arg("dev-workload").stdin(OwnedFd::from(stream)).stderr(Stdio::inherit());
    if let Some(uid) = uid {
        command.uid(uid).gid(uid);
    }
    let output = match command.output().await {
        Ok(output) => output,
        Err(error) => return Ok(json!({"untried": format!("{program} cannot be run: {error}")})),
    };
    serde_json::from_slice(&output.stdout)
        .map_err(|_| Exit::new(Exit::SOFTWARE, format!("{program} said nothing ({})", output.status)))
}

fn left_to_us() -> io::Result<UnixStream> {
    let stream = std::os::unix::net::UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

fn shown(credential: &Credential) -> Value {
    let token = match &credential.kind {
        Some(Kind::AccessToken(token)) => token.clone(),
        _ => Default::default(),
    };
    let shown = credential.client_certificate.clone().unwrap_or_default();
    json!({
        "token": token.token,
        "token_type": token.token_type,
        "fingerprint": credential.fingerprint,
        "left": credential.expires_in.map(|left| left.seconds),
        "chain": shown.chain_pem,
        "key": shown.key_pem,
    })
}

fn refused(status: &Status) -> Value {
    match status.get_details_error_info() {
        Some(info) => json!({"error": info.reason}),
        // The agent gives a reason for every no of its own: this is a connection that ended.
        None => json!({"hung_up": status.code().to_string()}),
    }
}

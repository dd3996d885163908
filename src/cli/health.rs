//! `keybearer health`: asks the HTTP socket, as a probe would.

use std::{path::PathBuf, time::Duration};

use bytes::Bytes;
use clap::Args;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use hyperlocal::{UnixConnector, Uri};

use super::{Exit, paint};
use crate::{client::connect, config::Listen};

#[derive(Args, Debug)]
pub(super) struct Health {
    /// The HTTP socket.
    #[arg(long, env = "KEYBEARER_HTTP_SOCKET", default_value = Listen::HTTP, value_name = "PATH")]
    socket: PathBuf,
    /// Only whether it is alive, not whether it is ready.
    #[arg(long)]
    live: bool,
}

impl Health {
    pub(super) async fn run(self) -> Result<(), Exit> {
        // Looks at the socket first: a stranger's answer is no answer (ATT-24).
        drop(connect(&self.socket).await?);
        let client: Client<UnixConnector, Empty<Bytes>> =
            Client::builder(TokioExecutor::new()).build(UnixConnector);
        let path = if self.live { "/live" } else { "/ready" };
        let asked = async {
            let response =
                client.get(Uri::new(&self.socket, path).into()).await.map_err(|error| error.to_string())?;
            let status = response.status();
            let body = Limited::new(response.into_body(), 64 << 10)
                .collect()
                .await
                .map_err(|error| error.to_string())?;
            Ok::<_, String>((status, body.to_bytes()))
        };
        let asked = tokio::time::timeout(Duration::from_secs(5), asked).await;
        let answered = asked.unwrap_or_else(|_| Err("no answer in 5 s".into()));
        let (status, body) = answered.map_err(|error| Exit::new(Exit::UNAVAILABLE, error))?;
        paint::line(String::from_utf8_lossy(&body).trim_end())?;
        if status.is_success() { Ok(()) } else { Err(Exit::new(Exit::UNAVAILABLE, "")) }
    }
}

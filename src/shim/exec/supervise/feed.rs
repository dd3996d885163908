//! One credential, now and at each rotation, whatever becomes of the agent meanwhile. In go its name and where the agent listens;
//! out come the credential each time it is told, and trouble each time there is some. Each credential has a feed of its own, so
//! that trouble with one neither keeps the others waiting nor has them asked for again.

use std::{path::Path, sync::Arc, time::Duration};

use tokio::sync::mpsc::UnboundedSender;
use tonic::{Status, Streaming};

use crate::{
    client::Agent,
    clock::{Dice, fraction},
    proto::v1::{Credential, WatchResponse},
    shim::FetchError,
};

/// Between two attempts: a while of chance, up to this at first, doubled each time, up to the longest.
const FIRST_WAIT: Duration = Duration::from_millis(250);
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// What a feed has to say.
#[derive(Debug)]
pub struct News {
    /// Of which credential.
    pub credential: Arc<str>,
    /// The credential as it is now, or why nobody knows.
    pub what: Result<Box<Credential>, FetchError>,
}

/// Follows one credential for as long as somebody listens. There is one connection at a time, and one attempt.
pub async fn follow(
    socket: Arc<Path>,
    credential: Arc<str>,
    dice: Arc<dyn Dice>,
    listener: UnboundedSender<News>,
) {
    let tell = |what| listener.send(News { credential: Arc::clone(&credential), what }).is_ok();
    let mut longest = FIRST_WAIT;
    loop {
        let trouble = match watch(&socket, &credential).await {
            Ok(mut stream) => loop {
                match next(&mut stream, &credential).await {
                    Ok(fresh) => {
                        longest = FIRST_WAIT;
                        if !tell(Ok(fresh)) {
                            return;
                        }
                    }
                    Err(trouble) => break trouble,
                }
            },
            Err(trouble) => trouble,
        };
        let wait = longest.mul_f64(fraction(&*dice)).max(trouble.wait().unwrap_or_default());
        if !tell(Err(trouble)) {
            return;
        }
        tokio::time::sleep(wait).await;
        longest = (longest * 2).min(LONGEST_WAIT);
    }
}

async fn watch(socket: &Path, credential: &Arc<str>) -> Result<Streaming<WatchResponse>, FetchError> {
    let mut agent = Agent::connect(socket).await?;
    agent.watch(credential, &[]).await.map_err(|status| refused(credential, status))
}

async fn next(
    stream: &mut Streaming<WatchResponse>,
    credential: &Arc<str>,
) -> Result<Box<Credential>, FetchError> {
    loop {
        match stream.message().await.map_err(|status| refused(credential, status))? {
            Some(WatchResponse { credential: Some(fresh) }) => return Ok(Box::new(fresh)),
            Some(_) => {}
            None => return Err(refused(credential, Status::unavailable("the agent has ended"))),
        }
    }
}

fn refused(credential: &Arc<str>, status: Status) -> FetchError {
    FetchError::Refused { credential: Arc::clone(credential), status }
}

//! One credential as it is and as it becomes, for as long as a stream lasts. In go where the agent listens and a name; out comes each
//! credential of that name, and at the end why there are no more. Whoever reads it decides when to open another.

use std::{path::Path, sync::Arc};

use tonic::{Status, Streaming};

use super::fetch::FetchError;
use crate::{
    client::Agent,
    proto::v1::{Credential, WatchResponse},
};

/// An open stream of one credential.
#[derive(Debug)]
pub(super) struct Stream {
    credential: Arc<str>,
    messages: Streaming<WatchResponse>,
}

impl Stream {
    /// Opens one.
    ///
    /// # Errors
    /// [`FetchError`]: there is no agent, or it says no.
    pub async fn open(socket: &Path, credential: &Arc<str>) -> Result<Self, FetchError> {
        let mut agent = Agent::connect(socket).await?;
        let messages = agent.watch(credential, &[]).await.map_err(|status| refused(credential, status))?;
        Ok(Self { credential: Arc::clone(credential), messages })
    }

    /// The credential at first, and then each that takes its place.
    ///
    /// # Errors
    /// [`FetchError`]: the stream has ended, and why.
    pub async fn next(&mut self) -> Result<Box<Credential>, FetchError> {
        loop {
            match self.messages.message().await.map_err(|status| refused(&self.credential, status))? {
                Some(WatchResponse { credential: Some(fresh) }) => return Ok(Box::new(fresh)),
                Some(WatchResponse { credential: None }) => {}
                None => {
                    let ended = Status::unavailable("the agent ended the stream");
                    return Err(refused(&self.credential, ended));
                }
            }
        }
    }
}

fn refused(credential: &Arc<str>, status: Status) -> FetchError {
    FetchError::Refused { credential: Arc::clone(credential), status }
}

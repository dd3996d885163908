//! Several credentials kept fresh as one. In go the agent's socket and what is wanted; out come all of them, of one moment, whenever
//! one has rotated: once for all changes of two seconds, so that what rotates together is delivered together. The streams end with
//! the right to them. An agent that is away is waited for, and nothing that was delivered is taken back meanwhile.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep, timeout_at},
};
use tonic::Code;

use super::fetch::{FIRST_WAIT, FetchError, Fetched, LONGEST_WAIT};
use crate::{client::Agent, proto::v1::Credential};

/// How long changes are waited for that come with the first.
const TOGETHER: Duration = Duration::from_secs(2);

/// What happens to credentials that somebody holds.
#[derive(Debug)]
pub enum Turn<'a> {
    /// One or more are new; these are all.
    Fresh(&'a Fetched),
    /// The agent cannot be asked now; it is tried again.
    Interrupted(FetchError),
}

/// Open streams of credentials.
#[derive(Debug)]
pub struct Rotations {
    fetched: Fetched,
    arriving: mpsc::Receiver<Result<Credential, FetchError>>,
    _streams: JoinSet<()>,
}

impl Rotations {
    /// Watches all credentials that were fetched from the agent at `socket`.
    pub fn of(fetched: Fetched, socket: &Path) -> Self {
        let names: BTreeSet<Arc<str>> =
            fetched.credentials().map(|credential| credential.name.as_str().into()).collect();
        let (sender, arriving) = mpsc::channel(names.len().max(1));
        let mut streams = JoinSet::new();
        for name in names {
            streams.spawn(follow(socket.to_owned(), name, sender.clone()));
        }
        Self { fetched, arriving, _streams: streams }
    }

    /// All of them, as they are now.
    pub fn fetched(&self) -> &Fetched {
        &self.fetched
    }

    /// What happens next. Whoever gives up waiting loses no credential: what has come is in [`Rotations::fetched`].
    ///
    /// # Errors
    /// [`FetchError`]: the right to one of them has ended, or this can never be had again. There is nothing more to wait for.
    pub async fn next(&mut self) -> Result<Turn<'_>, FetchError> {
        match self.arriving.recv().await {
            Some(Ok(credential)) => self.fetched.put(credential),
            Some(Err(error)) if is_the_end(&error) => return Err(error),
            Some(Err(error)) => return Ok(Turn::Interrupted(error)),
            // Every stream goes on until it has sent an error that is the end.
            None => return std::future::pending().await,
        }
        let until = Instant::now() + TOGETHER;
        while let Ok(Some(next)) = timeout_at(until, self.arriving.recv()).await {
            match next {
                Ok(credential) => self.fetched.put(credential),
                Err(error) if is_the_end(&error) => return Err(error),
                // Told when it lasts: the stream says so again.
                Err(_) => {}
            }
        }
        Ok(Turn::Fresh(&self.fetched))
    }
}

/// Sends what one stream brings, and opens it again when it breaks; ends with the right, or with whoever listens.
async fn follow(socket: PathBuf, name: Arc<str>, sender: mpsc::Sender<Result<Credential, FetchError>>) {
    let mut wait = FIRST_WAIT;
    loop {
        let error = match listen(&socket, &name, &sender, &mut wait).await {
            // Nobody listens any more.
            None => return,
            Some(error) => error,
        };
        let over = is_the_end(&error);
        let pause = error.wait().unwrap_or(wait);
        if sender.send(Err(error)).await.is_err() || over {
            return;
        }
        sleep(pause).await;
        wait = (wait * 2).min(LONGEST_WAIT);
    }
}

/// One stream until it breaks: why, or nothing if nobody wants to know.
async fn listen(
    socket: &Path,
    name: &Arc<str>,
    sender: &mpsc::Sender<Result<Credential, FetchError>>,
    wait: &mut Duration,
) -> Option<FetchError> {
    let refused = |status| FetchError::Refused { credential: Arc::clone(name), status };
    let mut agent = match Agent::connect(socket).await {
        Ok(agent) => agent,
        Err(error) => return Some(error.into()),
    };
    let mut stream = match agent.watch(name, &[]).await {
        Ok(stream) => stream,
        Err(status) => return Some(refused(status)),
    };
    loop {
        match stream.message().await {
            Ok(Some(message)) => {
                *wait = FIRST_WAIT;
                if let Some(credential) = message.credential {
                    sender.send(Ok(credential)).await.ok()?;
                }
            }
            Ok(None) => return Some(refused(tonic::Status::unavailable("the agent ended the stream"))),
            Err(status) => return Some(refused(status)),
        }
    }
}

/// Whether asking again is of no use: a no, or something that only an operator changes. A connection that broke is neither.
fn is_the_end(error: &FetchError) -> bool {
    match error {
        FetchError::Refused { status, .. } => matches!(
            status.code(),
            Code::PermissionDenied
                | Code::Unauthenticated
                | Code::InvalidArgument
                | Code::NotFound
                | Code::FailedPrecondition
        ),
        error => !error.may_pass(),
    }
}

#[cfg(test)]
mod tests {
    use tonic::Status;

    use super::*;

    fn credential(name: &str, fingerprint: &str) -> Credential {
        Credential { name: name.into(), fingerprint: fingerprint.into(), ..Credential::default() }
    }

    fn refused(code: Code) -> FetchError {
        FetchError::Refused { credential: "a".into(), status: Status::new(code, "") }
    }

    fn stage() -> (Rotations, mpsc::Sender<Result<Credential, FetchError>>) {
        let fetched = [credential("a", "a1"), credential("b", "b1")].into_iter().collect();
        let (sender, arriving) = mpsc::channel(8);
        (Rotations { fetched, arriving, _streams: JoinSet::new() }, sender)
    }

    async fn fresh(rotations: &mut Rotations) -> Vec<String> {
        let Turn::Fresh(all) = rotations.next().await.unwrap() else { panic!("an interruption") };
        all.credentials().map(|credential| credential.fingerprint.clone()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn what_changes_within_two_seconds_is_one_change() {
        let (mut rotations, sender) = stage();
        let started = Instant::now();
        tokio::spawn(async move {
            for (after, name, fingerprint) in [(1, "a", "a2"), (1, "b", "b2"), (0, "a", "a3"), (2, "b", "b3")]
            {
                sleep(Duration::from_secs(after)).await;
                sender.send(Ok(credential(name, fingerprint))).await.unwrap();
            }
            std::future::pending::<()>().await;
        });
        assert_eq!(fresh(&mut rotations).await, ["a3", "b2"]);
        assert_eq!(
            started.elapsed(),
            Duration::from_secs(3),
            "two seconds after the first, whatever comes then"
        );
        assert_eq!(fresh(&mut rotations).await, ["a3", "b3"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_no_is_the_end_and_a_broken_connection_is_not() {
        for code in
            [Code::Unavailable, Code::Unknown, Code::Internal, Code::Cancelled, Code::ResourceExhausted]
        {
            let (mut rotations, sender) = stage();
            sender.send(Err(refused(code))).await.unwrap();
            assert!(matches!(rotations.next().await, Ok(Turn::Interrupted(_))), "{code}");
        }
        for code in [Code::PermissionDenied, Code::Unauthenticated, Code::FailedPrecondition] {
            let (mut rotations, sender) = stage();
            sender.send(Err(refused(code))).await.unwrap();
            assert!(rotations.next().await.is_err(), "{code}");
            // Nor is it passed over when something else has just changed.
            let (mut rotations, sender) = stage();
            sender.send(Ok(credential("a", "a2"))).await.unwrap();
            sender.send(Err(refused(code))).await.unwrap();
            assert!(rotations.next().await.is_err(), "{code}");
        }
    }
}

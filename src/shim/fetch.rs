//! One round of fetching. In go the agent's socket, what is wanted and how long that may take; out come the credentials, all of them,
//! or why a program cannot have what it needs.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
    time::Duration,
};

use tokio::time::{Instant, sleep_until, timeout_at};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::{
    client::{Agent, ConnectError},
    deliver::{Delivery, NoField, Source},
    proto::v1::{Credential, DescribeResponse, Offer},
    secret::Secret,
};

/// Between two attempts where nobody says how long to wait: doubled each time, up to the longest.
pub(super) const FIRST_WAIT: Duration = Duration::from_millis(250);
pub(super) const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// Why there is not everything.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Nobody to ask.
    #[error(transparent)]
    NoAgent(#[from] ConnectError),
    /// The agent said no, or not now for as long as we could wait.
    #[error("{credential}: {}", .status.message())]
    Refused {
        /// What was asked for.
        credential: Arc<str>,
        /// What the agent said.
        status: Status,
    },
    /// A credential is there, but not what is wanted of it.
    #[error(transparent)]
    Field(#[from] NoField),
    /// The agent would not say what is declared, or says it in words that this version does not know.
    #[error("what this program is to get cannot be learned: {0}")]
    Declared(String),
}

/// Credentials by name, all of one moment.
#[derive(Debug, Default)]
pub struct Fetched(BTreeMap<Arc<str>, Credential>);

impl Fetched {
    /// The value of one field.
    ///
    /// # Errors
    /// [`FetchError::Field`]. Panics if the credential was not among those fetched.
    pub fn value(&self, source: &Source) -> Result<Secret, FetchError> {
        Ok(source.value(&self.0[&source.credential])?)
    }

    /// One of them. Panics if it was not among those fetched.
    pub fn credential(&self, name: &Arc<str>) -> &Credential {
        &self.0[name]
    }

    /// A newer one in its place.
    pub(super) fn put(&mut self, credential: Credential) {
        self.0.insert(credential.name.as_str().into(), credential);
    }

    /// All of them.
    pub fn credentials(&self) -> impl Iterator<Item = &Credential> {
        self.0.values()
    }
}

impl FromIterator<Credential> for Fetched {
    fn from_iter<T: IntoIterator<Item = Credential>>(credentials: T) -> Self {
        let named = |credential: Credential| (credential.name.as_str().into(), credential);
        Self(credentials.into_iter().map(named).collect())
    }
}

/// What the operator declares for this very process (`[identities.NAME.deliver]`).
///
/// # Errors
/// [`FetchError`].
pub async fn declared(socket: &Path, within: Duration) -> Result<Delivery, FetchError> {
    let who = described(socket, within).await?;
    Delivery::heard(&who.delivery.unwrap_or_default()).map_err(FetchError::Declared)
}

/// Every one of these credentials, trying again `within` that time while the agent says that it may help.
///
/// # Errors
/// [`FetchError`]; nothing is given out unless there is everything.
pub async fn fetch(
    socket: &Path,
    wanted: &BTreeSet<Arc<str>>,
    within: Duration,
) -> Result<Fetched, FetchError> {
    let until = Instant::now() + within;
    let mut fetched = BTreeMap::new();
    for name in wanted {
        let credential = asked(socket, until, name, async |agent| agent.get(name, &[]).await).await?;
        fetched.insert(Arc::clone(name), credential);
    }
    Ok(Fetched(fetched))
}

/// What this very process may have.
///
/// # Errors
/// [`FetchError`].
pub async fn offers(socket: &Path, within: Duration) -> Result<Vec<Offer>, FetchError> {
    Ok(described(socket, within).await?.credentials)
}

async fn described(socket: &Path, within: Duration) -> Result<DescribeResponse, FetchError> {
    asked(socket, Instant::now() + within, "describe", async |agent| agent.describe().await).await
}

/// One credential that lives at least `min_ttl`.
///
/// # Errors
/// [`FetchError`].
pub async fn fetch_living(
    socket: &Path,
    name: &str,
    min_ttl: Duration,
    within: Duration,
) -> Result<Credential, FetchError> {
    let until = Instant::now() + within;
    asked(socket, until, name, async |agent| agent.get_living(name, &[], min_ttl).await).await
}

/// Gives a credential back: it is revoked where that can be done, and who asks next gets another.
///
/// # Errors
/// [`FetchError`].
pub async fn give_back(socket: &Path, name: &str, within: Duration) -> Result<(), FetchError> {
    let until = Instant::now() + within;
    asked(socket, until, name, async |agent| agent.release(name, &[]).await).await.map(drop)
}

/// One question, again while it helps.
async fn asked<T>(
    socket: &Path,
    until: Instant,
    what: &str,
    ask: impl AsyncFn(&mut Agent) -> Result<T, Status>,
) -> Result<T, FetchError> {
    let mut wait = FIRST_WAIT;
    loop {
        let late = |_| Status::deadline_exceeded("the agent did not answer in time");
        let failed = match timeout_at(until, Agent::connect(socket)).await.map_err(late) {
            Ok(Ok(mut agent)) => match timeout_at(until, ask(&mut agent)).await.map_err(late) {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(status)) | Err(status) => FetchError::Refused { credential: what.into(), status },
            },
            Ok(Err(error)) => FetchError::NoAgent(error),
            Err(status) => FetchError::Refused { credential: what.into(), status },
        };
        let next = Instant::now() + failed.wait().unwrap_or(wait);
        if !failed.may_pass() || next >= until {
            return Err(failed);
        }
        sleep_until(next).await;
        wait = (wait * 2).min(LONGEST_WAIT);
    }
}

impl FetchError {
    /// Whether asking again can help: an agent that is not up yet, an issuer in trouble. Never a no.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::NoAgent(ConnectError::Connect { .. }) => true,
            Self::Refused { status, .. } => {
                matches!(status.code(), Code::Unavailable | Code::ResourceExhausted)
            }
            Self::NoAgent(ConnectError::Untrusted { .. }) | Self::Field(_) | Self::Declared(_) => false,
        }
    }

    /// Whether there is a credential, but none that lives as long as was asked.
    pub fn is_too_short(&self) -> bool {
        let Self::Refused { status, .. } = self else { return false };
        status.get_error_details().error_info().is_some_and(|info| info.reason == "TTL_UNMET")
    }

    /// How long the agent would have us wait.
    pub fn wait(&self) -> Option<Duration> {
        let Self::Refused { status, .. } = self else { return None };
        let delay = status.get_error_details().retry_info()?.retry_delay?;
        Some(delay)
    }
}

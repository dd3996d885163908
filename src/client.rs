//! A client of our own sockets, for Rust programs, for the command line and for tests. In goes a path; out comes a
//! channel, once it is sure that an agent is at the other end: a socket anybody could have put there is not asked
//! for anything (ATT-24).
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let mut agent = keybearer::client::Agent::connect("/run/keybearer/agent.sock").await?;
//! let credential = agent.get("ledger", &[]).await?;
//! # Ok(()) }
//! ```

use std::{
    io,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::{
    Request, Status, Streaming,
    metadata::MetadataValue,
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint, Uri},
};
use tower::service_fn;

use crate::{
    attest::server_is_trusted,
    proto::v1::{
        Credential, DescribeRequest, DescribeResponse, GetRequest, ProveRequest, ReleaseRequest,
        WatchRequest, WatchResponse, credentials_client::CredentialsClient, operator_client::OperatorClient,
    },
};

/// Why there is no agent to talk to.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nobody listens, or we may not connect.
    #[error("{path}: {error}{}", hint(.error))]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        error: io::Error,
    },
    /// Something else than an agent could be there.
    #[error("{path} cannot be trusted: {why}; nothing was asked of it")]
    Untrusted {
        /// The socket.
        path: PathBuf,
        /// Why.
        why: String,
    },
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            ": no agent listens there; start it with `keybearer agent`, or name its socket with --socket"
        }
        io::ErrorKind::PermissionDenied => ": the socket's group may connect; are you in it?",
        _ => "",
    }
}

/// Connects to the socket at `path`, if its server runs as root or as the owner of the socket file, and nobody else
/// could have put it there.
///
/// # Errors
/// [`ConnectError`].
pub async fn connect(path: &Path) -> Result<UnixStream, ConnectError> {
    let failed = |error| ConnectError::Connect { path: path.into(), error };
    let untrusted = |why: String| ConnectError::Untrusted { path: path.into(), why };
    let meta = std::fs::symlink_metadata(path).map_err(failed)?;
    if !meta.file_type().is_socket() {
        return Err(untrusted("it is not a socket".into()));
    }
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let around = std::fs::metadata(directory).map_err(failed)?;
    if around.mode() & 0o022 != 0 || (around.uid() != 0 && around.uid() != meta.uid()) {
        return Err(untrusted(format!(
            "others can replace it ({} has mode {:04o}, uid {})",
            directory.display(),
            around.mode() & 0o7777,
            around.uid()
        )));
    }
    let stream = UnixStream::connect(path).await.map_err(failed)?;
    match server_is_trusted(&stream, meta.uid()) {
        Ok(true) => Ok(stream),
        Ok(false) => Err(untrusted("its server runs as somebody else than its owner".into())),
        Err(error) => Err(untrusted(error.to_string())),
    }
}

async fn channel(path: &Path) -> Result<Channel, ConnectError> {
    // Tried once here, so that an error is the connection's own and not the channel's wrapping of it.
    Ok(channel_over(connect(path).await?, Some(path.to_owned())))
}

/// A channel that begins with `first`, and goes on with connections to `path`, if there is one.
fn channel_over(first: UnixStream, path: Option<PathBuf>) -> Channel {
    let first = std::sync::Mutex::new(Some(first));
    let connector = service_fn(move |_: Uri| {
        let first = first.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        let path = path.clone();
        async move {
            let stream = match (first, path) {
                (Some(stream), _) => stream,
                (None, Some(path)) => connect(&path).await.map_err(io::Error::other)?,
                (None, None) => return Err(io::ErrorKind::NotConnected.into()),
            };
            Ok::<_, io::Error>(TokioIo::new(stream))
        }
    });
    // The name means nothing on a Unix socket; it only has to be one.
    Endpoint::from_static("http://localhost").connect_with_connector_lazy(connector)
}

/// Puts `keybearer: v1` on every call.
#[derive(Clone, Copy, Debug)]
pub struct Marked;

impl Interceptor for Marked {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("keybearer", MetadataValue::from_static("v1"));
        Ok(request)
    }
}

/// The workloads' API.
#[derive(Clone, Debug)]
pub struct Agent(CredentialsClient<InterceptedService<Channel, Marked>>);

impl Agent {
    /// Connects to an agent.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub async fn connect(path: impl AsRef<Path>) -> Result<Self, ConnectError> {
        Ok(Self(CredentialsClient::with_interceptor(channel(path.as_ref()).await?, Marked)))
    }

    /// An agent at the other end of a connection that is open already. When that ends, no other is made.
    pub fn over(stream: UnixStream) -> Self {
        Self(CredentialsClient::with_interceptor(channel_over(stream, None), Marked))
    }

    /// One credential, with all its scope or with less.
    ///
    /// # Errors
    /// The agent's status.
    pub async fn get(&mut self, name: &str, scope: &[String]) -> Result<Credential, Status> {
        self.get_living(name, scope, std::time::Duration::ZERO).await
    }

    /// One credential that lives at least `min_ttl`.
    ///
    /// # Errors
    /// The agent's status.
    pub async fn get_living(
        &mut self,
        name: &str,
        scope: &[String],
        min_ttl: std::time::Duration,
    ) -> Result<Credential, Status> {
        let min_ttl = prost_types::Duration::try_from(min_ttl).ok();
        let request = GetRequest { name: name.to_owned(), scope: scope.to_vec(), min_ttl };
        let response = self.0.get(request).await?.into_inner();
        response.credential.ok_or_else(|| Status::internal("the agent answered without a credential"))
    }

    /// One credential now and at each rotation.
    ///
    /// # Errors
    /// The agent's status.
    pub async fn watch(&mut self, name: &str, scope: &[String]) -> Result<Streaming<WatchResponse>, Status> {
        let request = WatchRequest { name: name.to_owned(), scope: scope.to_vec() };
        Ok(self.0.watch(request).await?.into_inner())
    }

    /// Who we are to the agent.
    ///
    /// # Errors
    /// The agent's status.
    pub async fn describe(&mut self) -> Result<DescribeResponse, Status> {
        Ok(self.0.describe(DescribeRequest {}).await?.into_inner())
    }

    /// A proof of possession for one request with `credential`: the value of its DPoP header. `nonce` is what the API's last
    /// answer had as DPoP-Nonce.
    ///
    /// # Errors
    /// The agent's status.
    pub async fn prove(
        &mut self,
        credential: &Credential,
        method: &str,
        url: &str,
        nonce: Option<&str>,
    ) -> Result<String, Status> {
        let request = ProveRequest {
            name: credential.name.clone(),
            fingerprint: credential.fingerprint.clone(),
            method: method.to_owned(),
            url: url.to_owned(),
            nonce: nonce.unwrap_or_default().to_owned(),
        };
        Ok(self.0.prove(request).await?.into_inner().proof)
    }

    /// Gives a credential back. True if the issuer confirmed that it is revoked.
    ///
    /// # Errors
    /// The agent's status.
    pub async fn release(&mut self, name: &str, scope: &[String]) -> Result<bool, Status> {
        let request = ReleaseRequest { name: name.to_owned(), scope: scope.to_vec() };
        Ok(self.0.release(request).await?.into_inner().revoked)
    }
}

/// The operators' API.
///
/// # Errors
/// [`ConnectError`].
pub async fn operator(path: &Path) -> Result<OperatorClient<Channel>, ConnectError> {
    Ok(OperatorClient::new(channel(path).await?))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[tokio::test]
    async fn a_socket_anybody_could_have_put_there_is_not_asked() {
        // ATT-24
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert!(connect(&path).await.is_ok());
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o1777)).unwrap();
        assert!(matches!(connect(&path).await, Err(ConnectError::Untrusted { .. })));
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(matches!(connect(&file).await, Err(ConnectError::Untrusted { .. })));
        let missing = connect(&dir.path().join("none")).await.unwrap_err().to_string();
        assert!(missing.contains("keybearer agent"), "{missing}");
    }
}

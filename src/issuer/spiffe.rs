//! The SPIFFE Workload API, asked as a client for a JWT-SVID (SPF-08). In go a socket, an identity and an audience; out
//! comes one JWT-SVID, or why there is none. Whoever serves the socket is not believed: what comes is held against the
//! same conditions as the token of a file.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use tokio::net::UnixStream;
use tonic::{
    Code, Status,
    metadata::AsciiMetadataValue,
    transport::{Endpoint, Uri},
};
use tower::service_fn;

use super::{
    IssueError, Reason,
    conditions::{Conditions, Form},
    token_file::MAX_FILE,
};
use crate::{
    proto::spiffe::{JwtsvidRequest, spiffe_workload_api_client::SpiffeWorkloadApiClient},
    secret::{Secret, scrubbed},
};

/// Without it a server answers nobody: a browser or a proxy that was tricked cannot send it.
const HEADER: &str = "workload.spiffe.io";

/// Asks at `socket` for a JWT-SVID of `spiffe_id` for `audience` alone, and holds it against both at `now`.
///
/// # Errors
/// [`SvidError`]; nothing of the SVID is in it.
pub async fn fetch_jwt_svid(
    socket: &Path,
    spiffe_id: &str,
    audience: &str,
    now: Timestamp,
    patience: Duration,
) -> Result<Secret, SvidError> {
    let unavailable = |what: String| SvidError::Unavailable(socket.into(), what);
    let asked = tokio::time::timeout(patience, ask(socket, spiffe_id, audience)).await;
    let svid = asked.map_err(|_| unavailable("it did not answer in time".into()))??;
    let conditions = Conditions {
        audience: Some(audience.into()),
        claims: BTreeMap::from([("sub".into(), spiffe_id.into())]),
        ..Conditions::default()
    };
    match conditions.check(svid.expose_str().unwrap_or_default(), Form::JwtSvid, now) {
        Ok(()) => Ok(svid),
        Err(what) => Err(SvidError::Unfit(socket.into(), what)),
    }
}

async fn ask(socket: &Path, spiffe_id: &str, audience: &str) -> Result<Secret, SvidError> {
    let unavailable = |what: String| SvidError::Unavailable(socket.into(), what);
    let path = socket.to_owned();
    let connector = service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    let endpoint = Endpoint::from_static("http://localhost");
    let channel = endpoint
        .connect_with_connector(connector)
        .await
        .map_err(|_| unavailable("nobody listens there, or this agent may not connect".into()))?;
    let mut client = SpiffeWorkloadApiClient::new(channel).max_decoding_message_size(2 * MAX_FILE);
    let message = JwtsvidRequest { audience: vec![audience.into()], spiffe_id: spiffe_id.into() };
    let mut request = tonic::Request::new(message);
    request.metadata_mut().insert(HEADER, AsciiMetadataValue::from_static("true"));
    let answer = client.fetch_jwtsvid(request).await;
    let answer = answer.map_err(|status| refused(socket, &status))?.into_inner();
    let ours = answer.svids.into_iter().find(|svid| svid.spiffe_id == spiffe_id);
    let svid = ours.ok_or_else(|| unavailable("it gave no SVID of this identity".into()))?;
    Ok(Secret::new(svid.svid))
}

fn refused(socket: &Path, status: &Status) -> SvidError {
    let hint = match status.code() {
        Code::PermissionDenied => "register this agent for that SPIFFE ID",
        Code::InvalidArgument => "look at the SPIFFE ID and at the issuer's name, which is the audience",
        _ => "see whether its server is well",
    };
    let what = format!("{:?} \"{}\": {hint}", status.code(), scrubbed(status.message(), 200));
    SvidError::Unavailable(socket.into(), what)
}

/// Why there is no JWT-SVID to send.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum SvidError {
    /// The Workload API gave none.
    #[error("the SPIFFE Workload API at {}: {_1}", .0.display())]
    Unavailable(PathBuf, String),
    /// It gave one that is not ours to send.
    #[error("the JWT-SVID of the SPIFFE Workload API at {}: {_1}; nothing was sent", .0.display())]
    Unfit(PathBuf, String),
}

impl From<SvidError> for IssueError {
    fn from(error: SvidError) -> Self {
        let detail = error.to_string();
        match error {
            // Not to be tried again by itself: that would count against the issuer, whose trouble it is not.
            SvidError::Unavailable(..) => {
                Self::Misconfigured { reason: Reason::SourceTokenUnavailable, detail }
            }
            SvidError::Unfit(..) => Self::Refused { reason: Reason::SourceTokenUnfit, detail },
        }
    }
}

/// Whether `id` names one workload (SPF-01): a trust domain and a path, nothing to be decoded and nothing to be resolved.
pub fn is_id(id: &str) -> bool {
    let Some((domain, path)) = id.strip_prefix("spiffe://").and_then(|rest| rest.split_once('/')) else {
        return false;
    };
    let in_domain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-_".contains(&byte);
    let in_path = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    let segment = |part: &str| !part.is_empty() && part != "." && part != ".." && part.bytes().all(in_path);
    id.len() <= 2048
        && (1..=255).contains(&domain.len())
        && domain.bytes().all(in_domain)
        && path.split('/').all(segment)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_names_one_workload_and_needs_no_decoding() {
        // SPF-01
        for id in ["spiffe://e.org/a", "spiffe://e.org/a/b", "spiffe://1_e-x/A.b-C_9", "spiffe://e/..a"] {
            assert!(is_id(id), "{id}");
        }
        let long = format!("spiffe://e.org/{}", "a".repeat(2048));
        let wide = format!("spiffe://{}/a", "e".repeat(256));
        for id in [
            "",
            "e.org/a",
            "spiffe:/e.org/a",
            "SPIFFE://e.org/a",
            "spiffe://e.org",
            "spiffe://e.org/",
            "spiffe:///a",
            "spiffe://E.org/a",
            "spiffe://e.org/a/",
            "spiffe://e.org//a",
            "spiffe://e.org/./a",
            "spiffe://e.org/a/..",
            "spiffe://e.org/%61",
            "spiffe://e.org/a?b",
            "spiffe://e.org/a#b",
            "spiffe://e.org:1/a",
            "spiffe://u@e.org/a",
            "spiffe://e.org/a b",
            "spiffe://e.org/*",
            "spiffe://e.org/\u{e9}",
            &long,
            &wide,
        ] {
            assert!(!is_id(id), "{id}");
        }
    }
}

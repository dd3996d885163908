//! The same way out for what is passed on while it comes: calls of an API. In goes a request whose body may still be on its
//! way; out come the head of the answer and its body, to be read as it is wanted. What holds for issuers holds here: TLS or
//! loopback, no redirect followed, nothing sent twice (`http.rs`). Bounds of time and size are the caller's, who knows which
//! side is slow.

use std::{fmt, path::Path, sync::Arc};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, header::InvalidHeaderValue};
use http_body::Body;
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;

use super::{
    door::Door,
    http::{HttpError, Wiped, client, door, fault, may_go},
};
use crate::{keys::ClientCertificate, secret::Secret};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A client for one API and one identity.
pub struct Streams<B> {
    client: Client<Door, B>,
    door: Door,
    allow_plain_loopback: bool,
}

impl<B> Streams<B>
where
    B: Body<Data: Send, Error: Into<BoxError>> + Send + Unpin + 'static,
{
    /// Reads the roots, which are the host's without a file, and builds the client. Nothing is sent yet. With a `certificate`,
    /// each of its connections shows it, or there is none (MT-10, MT-14).
    ///
    /// # Errors
    /// [`HttpError::CaFile`] or [`HttpError::NoRoots`].
    pub fn new(
        ca_file: Option<&Path>,
        allow_plain_loopback: bool,
        certificate: Option<Arc<ClientCertificate>>,
    ) -> Result<Self, HttpError> {
        let plain = door(ca_file, allow_plain_loopback)?;
        let door = match certificate {
            Some(certificate) => plain.showing(certificate),
            None => plain,
        };
        Ok(Self { client: client(door.clone()), door, allow_plain_loopback })
    }

    /// Sends `request` once, and waits for the head of the answer. Whoever stops waiting ends the exchange.
    ///
    /// # Errors
    /// [`HttpError`], by what went wrong. After [`HttpError::Protocol`] the API may or may not have acted.
    pub async fn send(&self, request: Request<B>) -> Result<Response<Incoming>, HttpError> {
        may_go(request.uri(), &self.door, self.allow_plain_loopback)?;
        self.client.request(request).await.map_err(|error| match fault(&error) {
            // Past the handshake, something may have arrived.
            HttpError::Tls(_) if !error.is_connect() => HttpError::Protocol,
            fault => fault,
        })
    }
}

impl<B> fmt::Debug for Streams<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Streams(certificate: {})", self.door.shows_certificate())
    }
}

/// The value of a header that holds a secret: no log shows it, and it is wiped when the connection is done with it. What TLS
/// buffers is out of our hands.
///
/// # Errors
/// [`InvalidHeaderValue`] if it is no value of a header.
pub fn secret_header(value: Secret) -> Result<HeaderValue, InvalidHeaderValue> {
    let mut value = HeaderValue::from_maybe_shared(Bytes::from_owner(Wiped(value)))?;
    value.set_sensitive(true);
    Ok(value)
}

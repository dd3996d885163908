//! APIs, called by the agent for a program, which so needs neither token nor key (MT-11, DPOP-27). In goes a request that
//! was decided about, with what proves the credential; out comes the API's answer, or why there is none. What a path may
//! say is in `path`, how a secret goes along that is no token in `carry`, which headers go on and come back in `headers`, what a 401 asks for in `challenge`, how bodies pass in
//! `body`. Connections are those of one identity and one certificate, never shared (MT-10).

mod body;
mod carry;
mod challenge;
mod headers;
mod path;
#[cfg(any(test, fuzzing))]
pub(crate) mod properties;

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{sleep, timeout},
};

use self::body::{Moved, Outgoing, Room};
pub use self::{
    body::{Answering, Asking, BodyError, Coming, MayGoOn, whole},
    carry::Carry,
    challenge::{Asks, asks},
    headers::{HeaderError, back, onward},
    path::{Path, PathError},
};
use crate::{
    clock::{Boot, Clock},
    credential::{Bound, Credential},
    issuer::{
        http::HttpError,
        stream::{Streams, secret_header},
    },
    keys::ClientCertificate,
    secret::Secret,
};

/// Calls of one identity at once. Half of the connections that one user has by default: a slow API of one identity is not in the
/// way of others that run as the same user.
const AT_ONCE: usize = 32;

/// How often connections are looked through for those that no credential needs any more.
const SWEEP: Duration = Duration::from_secs(60);

/// How one API is reached, as the operator describes it.
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq)]
pub struct Reach {
    /// The only roots to trust, PEM; without it, the host's.
    pub ca_file: Option<PathBuf>,
    /// Whether `http://` to a loopback host is allowed: development only.
    pub plain: bool,
}

impl Reach {
    /// Whether it can be used: reads the roots and lets them go.
    ///
    /// # Errors
    /// [`ApiError::Unusable`] says what is wrong with the file.
    pub fn check(&self) -> Result<(), ApiError> {
        self.streams(None).map(|_| ())
    }

    fn streams(&self, certificate: Option<Arc<ClientCertificate>>) -> Result<Client, ApiError> {
        Ok(Arc::new(Streams::new(self.ca_file.as_deref(), self.plain, certificate)?))
    }
}

/// One attempt: everything but the body.
#[derive(Debug)]
pub struct Attempt<'a> {
    /// The method.
    pub method: &'a Method,
    /// Where to, with the query.
    pub url: &'a str,
    /// The program's headers, as far as they go on.
    pub headers: &'a HeaderMap,
    /// What goes with it.
    pub credential: &'a Credential,
    /// How it goes along, where it is no token.
    pub carry: Option<&'a Carry>,
    /// The proof for this attempt and no other, where the credential needs one (DPOP-12).
    pub proof: Option<Secret>,
    /// Whose it is.
    pub identity: &'a Arc<str>,
    /// How the API is reached.
    pub reach: &'a Reach,
    /// How long nothing may move.
    pub patience: Duration,
}

/// Why an API did not answer, or is not asked.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ApiError {
    /// The request's body did not come.
    #[error("{0}: send it whole and without pauses")]
    Body(#[from] BodyError),
    /// It answered, or broke off, in a way that is not HTTP. It may have acted.
    #[error(
        "the connection broke off or did not speak HTTP, and the API may have acted all the same: look at it and what stands before it"
    )]
    Broken,
    /// So many calls of one identity are under way.
    #[error("this identity has {AT_ONCE} calls under way: wait for one of them to end")]
    Busy,
    /// The certificate was not shown, or the API would not have it (MT-14).
    #[error("{0}")]
    Certificate(String),
    /// Nothing moved for too long. It may have acted.
    #[error(
        "the API did not answer in time, and may have acted all the same: see whether it is overloaded, or raise api_timeout"
    )]
    Late,
    /// TLS failed, and nothing was sent.
    #[error("TLS with the API failed, and nothing was sent: {0}: check its certificate and api_ca_file")]
    Tls(String),
    /// No connection, and nothing was sent.
    #[error(
        "no connection to the API, and nothing was sent: {0}: check the origin, the network and the proxy"
    )]
    Unreachable(String),
    /// It cannot be called as it is set up, and nothing was sent.
    #[error("the API cannot be called as it is set up, and nothing was sent: {0}")]
    Unusable(String),
}

impl ApiError {
    /// The stable name.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Body(_) => "REQUEST_BODY",
            Self::Broken => "API_BROKEN",
            Self::Busy => "FORWARD_BUSY",
            Self::Certificate(_) => "CERT_NOT_ACCEPTED",
            Self::Late => "API_TIMEOUT",
            Self::Tls(_) => "API_TLS",
            Self::Unreachable(_) => "API_UNREACHABLE",
            Self::Unusable(_) => "API_CONFIG",
        }
    }
}

impl From<HttpError> for ApiError {
    fn from(error: HttpError) -> Self {
        match error {
            HttpError::CaFile { path, what } => {
                let path = path.display();
                Self::Unusable(format!(
                    "api_ca_file {path}: {what}: name a readable PEM file with the API's root certificates"
                ))
            }
            HttpError::CertNotAccepted(what) => {
                Self::Certificate(format!("the client certificate is of no use here: {what}"))
            }
            HttpError::Connect(what) => Self::Unreachable(what),
            HttpError::NoRoots => Self::Unusable(
                "the host has no root certificates: install ca-certificates or set api_ca_file".into(),
            ),
            HttpError::Plain => Self::Unusable("its origin is not https".into()),
            // The others speak of whole answers, which are not read here.
            HttpError::Protocol | HttpError::Redirect { .. } | HttpError::TooLarge => Self::Broken,
            HttpError::Timeout => Self::Late,
            HttpError::Tls(what) => Self::Tls(what),
        }
    }
}

type Client = Arc<Streams<Outgoing>>;

/// All APIs: the connections to them, and how many calls are under way.
#[derive(Clone, Debug)]
pub struct Apis {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    pools: Mutex<Vec<Pool>>,
    /// Whether somebody looks through `pools`, which is read and written with them locked.
    is_swept: AtomicBool,
    places: Mutex<HashMap<Arc<str>, Arc<Semaphore>>>,
    room: Room,
    clock: Arc<dyn Clock>,
}

#[derive(Debug)]
struct Pool {
    identity: Arc<str>,
    certificate: Option<Arc<ClientCertificate>>,
    reach: Reach,
    client: Client,
    /// When the last credential ends that was sent over it: a key ends with that (MT-08).
    until: Boot,
}

impl Apis {
    /// No connections yet.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        let (pools, places, room) = (Mutex::default(), Mutex::default(), Room::default());
        Self { inner: Arc::new(Inner { pools, is_swept: AtomicBool::new(false), places, room, clock }) }
    }

    /// A place for one call, until it is dropped.
    ///
    /// # Errors
    /// [`ApiError::Busy`] if the identity has none left.
    pub fn enter(&self, identity: &Arc<str>) -> Result<OwnedSemaphorePermit, ApiError> {
        let mut places = lock(&self.inner.places);
        let place = places.entry(Arc::clone(identity)).or_insert_with(|| Arc::new(Semaphore::new(AT_ONCE)));
        Arc::clone(place).try_acquire_owned().map_err(|_| ApiError::Busy)
    }

    /// Reads a request's body, as far as it is kept for a second attempt. `patience` is for each piece.
    ///
    /// # Errors
    /// [`ApiError::Body`] if it does not come.
    pub async fn take(&self, body: Coming, patience: Duration) -> Result<Asking, ApiError> {
        Ok(Asking::take(body, &self.inner.room, patience).await?)
    }

    /// Sends one attempt, and waits for the head of the answer. Whoever stops waiting ends the exchange.
    ///
    /// # Errors
    /// [`ApiError`] says whether the API may have acted.
    pub async fn send(
        &self,
        attempt: Attempt<'_>,
        body: &mut Asking,
    ) -> Result<Response<Incoming>, ApiError> {
        let client = self.client(&attempt)?;
        let moved = Moved::default();
        let patience = attempt.patience;
        let outgoing = body.outgoing(&moved).ok_or_else(|| ApiError::Unusable("its body is gone".into()))?;
        let request = request(attempt, outgoing)?;
        let answer = tokio::select! {
            answer = client.send(request) => answer?,
            () = moved.stuck(patience) => return Err(ApiError::Late),
        };
        // Nobody asked for another protocol.
        if answer.status() == StatusCode::SWITCHING_PROTOCOLS { Err(ApiError::Broken) } else { Ok(answer) }
    }

    /// Lets all connections go: settings and roots may be others now. Calls under way keep theirs.
    pub fn forget(&self) {
        lock(&self.inner.pools).clear();
    }

    fn client(&self, attempt: &Attempt<'_>) -> Result<Client, ApiError> {
        let certificate = match &attempt.credential.bound {
            Bound::Mtls(certificate) => Some(certificate),
            Bound::Bearer | Bound::Dpop(_) => None,
        };
        let until = attempt.credential.window.until;
        let mut pools = lock(&self.inner.pools);
        let theirs = pools.iter_mut().find(|pool| {
            pool.identity == *attempt.identity
                && pool.reach == *attempt.reach
                && pool.certificate.as_ref().map(Arc::as_ptr) == certificate.map(Arc::as_ptr)
        });
        if let Some(pool) = theirs {
            pool.until = pool.until.max(until);
            return Ok(Arc::clone(&pool.client));
        }
        let client = attempt.reach.streams(certificate.cloned())?;
        if !self.inner.is_swept.swap(true, Ordering::Relaxed) {
            tokio::spawn(sweep(Arc::downgrade(&self.inner)));
        }
        pools.push(Pool {
            identity: Arc::clone(attempt.identity),
            certificate: certificate.cloned(),
            reach: attempt.reach.clone(),
            client: Arc::clone(&client),
            until,
        });
        Ok(client)
    }
}

/// Lets connections go that no live credential needs, until there are none.
async fn sweep(inner: Weak<Inner>) {
    loop {
        sleep(SWEEP).await;
        let Some(inner) = inner.upgrade() else { return };
        let now = inner.clock.boot();
        let mut pools = lock(&inner.pools);
        pools.retain(|pool| now < pool.until);
        if pools.is_empty() {
            inner.is_swept.store(false, Ordering::Relaxed);
            return;
        }
    }
}

fn request(attempt: Attempt<'_>, body: Outgoing) -> Result<Request<Outgoing>, ApiError> {
    let unusable = |what: &str| ApiError::Unusable(format!("{what} cannot be sent"));
    let mut request = Request::new(body);
    *request.method_mut() = attempt.method.clone();
    *request.uri_mut() = attempt.url.parse().map_err(|_| unusable("its URL"))?;
    *request.headers_mut() = attempt.headers.clone();
    // In HTTP/1.1, hyper leaves the body of a GET out where it knows no length and nobody says that there is one; HTTP/2 needs
    // no such word, and it takes it out.
    let has_length = http_body::Body::size_hint(request.body()).exact().is_some();
    if !has_length && [Method::GET, Method::HEAD].contains(attempt.method) {
        request.headers_mut().insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    let credential = attempt.credential;
    if let Some(carry) = attempt.carry {
        carry.put(credential, request.headers_mut()).map_err(unusable)?;
        return Ok(request);
    }
    // One Authorization header, by the scheme of what binds the token (DPOP-06).
    let token = credential.token().ok_or_else(|| unusable("a credential that is no token"))?;
    let value = [credential.binding().scheme().as_bytes(), b" ", token.expose()].concat();
    let secret = |value: Secret, what: &str| secret_header(value).map_err(|_| unusable(what));
    let value: HeaderValue = secret(Secret::new(value), "the token")?;
    request.headers_mut().insert(header::AUTHORIZATION, value);
    if let Some(proof) = attempt.proof {
        request.headers_mut().insert("dpop", secret(proof, "the proof")?);
    }
    Ok(request)
}

/// The answer as the program gets it.
pub fn answer(
    answer: Response<Incoming>,
    method: &Method,
    patience: Duration,
    may_go_on: MayGoOn,
    place: OwnedSemaphorePermit,
) -> Response<Answering> {
    let (head, body) = answer.into_parts();
    let mut headers = back(&head.headers);
    // Where there is no body, the length tells of the one that there would be.
    if (method == Method::HEAD || head.status == StatusCode::NOT_MODIFIED)
        && let Some(length) = head.headers.get(header::CONTENT_LENGTH)
    {
        headers.insert(header::CONTENT_LENGTH, length.clone());
    }
    let mut response = Response::new(Answering::new(body, patience, may_go_on, place));
    (*response.status_mut(), *response.headers_mut()) = (head.status, headers);
    response
}

/// Reads a body that nobody gets, if it is short, so that its connection can be used again.
pub async fn let_go(answer: Response<Incoming>) {
    use http_body_util::{BodyExt as _, Limited};
    const SHORT: usize = 16 << 10;
    const SOON: Duration = Duration::from_millis(250);
    // A connection that cannot be used again is no trouble.
    let _ = timeout(SOON, Limited::new(answer.into_body(), SHORT).collect()).await;
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;

//! The faces of the agent: what comes in as bytes of some protocol goes out as a walk through the journey. In go
//! listeners; out come answers in the words of gRPC or HTTP. How little a stranger learns is decided in one place
//! ([`status`]).

mod forward;
mod framed;
pub mod grpc;
pub mod http;
pub mod metrics;
pub mod operator;
mod ready;
pub mod service_manager;
pub mod status;

use std::{convert::Infallible, future::Future, sync::Arc, time::Duration};

use ::http::{Request, Response};
use hyper::{body::Incoming, service::service_fn};
use tokio::{
    sync::watch,
    task::yield_now,
    time::{sleep, timeout},
};

use crate::{
    attest::AttestError,
    journey::{Journey, Proving, Session},
    policy::Door,
    proof::{Nonce, Target},
    wire::{Accepted, Arrival, Ended, Fate, Knock, Listener, Protocol, Shares, Users, Voucher, serve},
};

/// What is spoken on a listener.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Speaks {
    /// gRPC, over HTTP/2.
    Grpc,
    /// HTTP/1.1.
    Http,
}

/// What all faces have in common.
#[derive(Clone)]
pub struct Common {
    /// The way that every call walks.
    pub journey: Arc<Journey>,
    /// How much of the agent each user takes, on all sockets together.
    pub shares: Arc<Shares>,
    /// Until when there is an answer.
    pub stop: watch::Receiver<bool>,
    /// How long calls under way may take to finish then.
    pub drain: Duration,
}

/// Serves on `listener`, which is this door, until it is time to stop.
pub async fn serve_on<F, B>(
    listener: Listener,
    door: Door,
    speaks: Speaks,
    common: Common,
    answer: impl Fn(Arc<Session>, Request<Incoming>) -> F + Clone + Send + Sync + 'static,
) where
    F: Future<Output = Response<B>> + Send + 'static,
    B: http_body::Body<Data: Send, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + 'static,
{
    let door = move |_: &Accepted| Ok(door.clone());
    let (limits, stop) = (listener.limits(), common.stop.clone());
    accept_all(listener, door, common, move |accepted, session, voucher| async move {
        let protocol = match speaks {
            Speaks::Grpc => Protocol::Http2(Arc::clone(session.challenge())),
            Speaks::Http => Protocol::Http1,
        };
        let voucher = Arc::new(voucher);
        let service = service_fn(move |request| {
            let (session, voucher) = (Arc::clone(&session), Arc::clone(&voucher));
            let answered = answer(Arc::clone(&session), request);
            async move {
                let answer = answered.await;
                if session.was_granted() {
                    voucher.vouch();
                }
                Ok::<_, Infallible>(answer)
            }
        });
        serve(protocol, accepted.socket, accepted.peer, service, limits, stop).await
    })
    .await;
}

async fn accept_all<F>(
    listener: Listener,
    door: impl Fn(&Accepted) -> Result<Door, AttestError> + Clone + Send + 'static,
    common: Common,
    serve: impl FnOnce(Accepted, Arc<Session>, Voucher) -> F + Clone + Send + 'static,
) where
    F: Future<Output = Ended> + Send + 'static,
{
    let Common { journey, shares, mut stop, drain } = common;
    let socket: Arc<str> = listener.settings().path.to_string_lossy().into();
    let mut users = Users::new(shares);
    loop {
        // One at a time: whoever knocks without end has no more than others of the thread that serves all.
        yield_now().await;
        let arrival = tokio::select! {
            arrival = listener.accept() => arrival,
            _ = users.ended(), if !users.is_empty() => continue,
            _ = stop.wait_for(|stop| *stop) => break,
        };
        match arrival {
            Ok(Arrival::Accepted(knock, permit)) => {
                let uid = knock.uid();
                let voucher = Voucher::new(users.share(uid));
                let (journey, socket) = (Arc::clone(&journey), Arc::clone(&socket));
                let (door, serve) = (door.clone(), serve.clone());
                users.admit(uid, async move {
                    let serve = |accepted, session| serve(accepted, session, voucher);
                    receive(knock, &journey, socket, door, serve).await;
                    drop(permit);
                });
            }
            Ok(Arrival::Nobody(AttestError::PeerExited)) | Ok(Arrival::TurnedAway) => {}
            Ok(Arrival::Nobody(error)) => {
                journey.cut(None, &socket, error.reason(), &error.to_string()).await
            }
            Err(error) => {
                tracing::error!(%error, %socket, "cannot accept");
                sleep(Duration::from_secs(1)).await;
            }
        }
    }
    drop(listener);
    let finished = async { while users.ended().await {} };
    if timeout(drain, finished).await.is_err() {
        tracing::warn!(%socket, left = users.connections(), "calls that did not finish in time are dropped");
        users.abort();
    }
}

/// One connection, from the knock to its end.
async fn receive<F: Future<Output = Ended>>(
    knock: Knock,
    journey: &Journey,
    socket: Arc<str>,
    door: impl FnOnce(&Accepted) -> Result<Door, AttestError>,
    serve: impl FnOnce(Accepted, Arc<Session>) -> F,
) {
    if knock.is_over() {
        return;
    }
    let accepted = match knock.look() {
        Ok(accepted) => accepted,
        Err(AttestError::PeerExited) => return,
        Err(error) => return journey.cut(None, &socket, error.reason(), &error.to_string()).await,
    };
    let peer = Arc::clone(&accepted.peer);
    let door = match door(&accepted) {
        Ok(door) => door,
        Err(error) => return journey.cut(Some(&peer), &socket, error.reason(), &error.to_string()).await,
    };
    // Begun before anything is read: what the process is now is what counts. A program that has to be hashed first keeps nobody
    // else waiting.
    let session = Arc::new(journey.begin(Arc::clone(&peer), Arc::clone(&socket), door).await);
    if let Ended::Cut(fate) = serve(accepted, session).await {
        let (reason, detail) = told(&fate);
        journey.cut(Some(&peer), &socket, reason, &detail).await;
    }
}

fn told(fate: &Fate) -> (&'static str, String) {
    match fate {
        Fate::Attest(error) => (error.reason(), error.to_string()),
        Fate::Frame(error) => ("PROTOCOL", error.to_string()),
    }
}

/// The request that a proof is wanted for, as any face heard it; the error says what is wrong.
fn proving(fingerprint: &str, method: String, url: &str, nonce: &str) -> Result<Proving, &'static str> {
    /// Longer than any URL of an API has to be.
    const MAX_URL: usize = 8192;
    let credential = fingerprint
        .parse()
        .map_err(|()| "`fingerprint` is the 32 hexadecimal digits that came with the credential")?;
    if method.is_empty() || method.len() > 32 {
        return Err("`method` is the method of the request, in capitals");
    }
    let target = (url.len() <= MAX_URL).then(|| Target::parse(url).ok()).flatten();
    let target =
        target.ok_or("`url` is the URL of the request: https://HOST/PATH, without a user, at most 8 KiB")?;
    let nonce = match nonce {
        "" => None,
        nonce => {
            Some(Nonce::parse(nonce).ok_or("`nonce` is the DPoP-Nonce as the API sent it (RFC 9449 8.1)")?)
        }
    };
    Ok(Proving { credential, method, target, nonce })
}

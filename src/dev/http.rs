//! The plumbing under both servers: a listener on 127.0.0.1, HTTP/1.1, bodies of at most 64 KiB, a limit on
//! connections and on patience, and a stop that lets answers finish. In goes a function from request to
//! answer. Nothing is ever served to another host, nor to a web page that reached us by a name of its own
//! (the `Host` is checked).

use std::{
    convert::Infallible,
    future::Future,
    net::{Ipv4Addr, TcpListener as Listener},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{clock::Clock, dev::DevError};

/// The longest request body.
pub(super) const MAX_BODY: usize = 64 * 1024;

/// What every answer says about itself, in the header `keybearer-development`.
pub(super) const NOTE: &str = "for development only";

/// How many connections are held at once; the next ones wait in the kernel's queue.
const SEATS: usize = 256;

/// How long a client may take to send its head, and again its body.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a stop waits for answers under way.
const GRACE: Duration = Duration::from_secs(1);

/// A whole request, body and all.
pub(super) type Ask = Request<Bytes>;

/// A whole answer.
pub(super) type Answer = Response<Full<Bytes>>;

/// A socket on 127.0.0.1 that is bound but not yet served.
#[derive(Debug)]
pub(super) struct Door {
    listener: Listener,
    port: u16,
}

impl Door {
    /// Binds 127.0.0.1:`port`; 0 takes any free port.
    pub(super) fn bind(port: u16) -> Result<Self, DevError> {
        let refused = |error: std::io::Error| DevError::Bind { port, kind: error.kind() };
        let listener = Listener::bind((Ipv4Addr::LOCALHOST, port)).map_err(refused)?;
        listener.set_nonblocking(true).map_err(refused)?;
        let port = listener.local_addr().map_err(refused)?.port();
        Ok(Self { listener, port })
    }

    /// Where it is: `http://127.0.0.1:PORT`, without a slash at the end.
    pub(super) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Answers until `shutdown` ends, then lets what is under way finish for a second.
    pub(super) async fn serve<A, F>(
        self,
        clock: Arc<dyn Clock>,
        answer: A,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), DevError>
    where
        A: Fn(Ask) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Answer> + Send + 'static,
    {
        let port = self.port;
        let listener = TcpListener::from_std(self.listener)
            .map_err(|error| DevError::Bind { port, kind: error.kind() })?;
        let (stop, stopping) = watch::channel(false);
        let seats = Arc::new(Semaphore::new(SEATS));
        let mut guests = JoinSet::new();
        let mut shutdown = pin!(shutdown);
        loop {
            let arrival = async {
                let seat = Arc::clone(&seats).acquire_owned().await;
                (seat, listener.accept().await)
            };
            tokio::select! {
                () = &mut shutdown => break,
                Some(_) = guests.join_next() => {}
                (seat, accepted) = arrival => match accepted {
                    Ok((stream, _)) => {
                        let guest = converse(stream, port, Arc::clone(&clock), answer.clone(), stopping.clone());
                        guests.spawn(async move {
                            let _seat = seat;
                            guest.await;
                        });
                    }
                    // Out of descriptors, or a client that left again: neither ends the server.
                    Err(_) => sleep(Duration::from_millis(50)).await,
                },
            }
        }
        drop(listener);
        // Nobody listening any more is as good as everybody told.
        let _ = stop.send(true);
        let _ = timeout(GRACE, async { while guests.join_next().await.is_some() {} }).await;
        guests.shutdown().await;
        Ok(())
    }
}

async fn converse<A, F>(
    stream: TcpStream,
    port: u16,
    clock: Arc<dyn Clock>,
    answer: A,
    mut stopping: watch::Receiver<bool>,
) where
    A: Fn(Ask) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Answer> + Send + 'static,
{
    let service = service_fn(move |request: Request<Incoming>| {
        let (answer, clock) = (answer.clone(), Arc::clone(&clock));
        async move {
            let mut reply = match whole(request, port).await {
                Ok(ask) => answer(ask).await,
                Err(refusal) => refusal,
            };
            let headers = reply.headers_mut();
            headers.insert("keybearer-development", HeaderValue::from_static(NOTE));
            if let Some(date) = date(&*clock) {
                headers.insert(header::DATE, date);
            }
            Ok::<_, Infallible>(reply)
        }
    });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(PATIENCE)
            .auto_date_header(false)
            .serve_connection(TokioIo::new(stream), service)
    );
    let stopped = async {
        // An error means the server is gone, which is a stop as well.
        let _ = stopping.wait_for(|stop| *stop).await;
    };
    // A broken connection is the client's affair; there is nobody left to tell.
    tokio::select! {
        _ = connection.as_mut() => {}
        () = stopped => {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
}

/// The request with its whole body, or the refusal it gets.
async fn whole(request: Request<Incoming>, port: u16) -> Result<Ask, Answer> {
    let (head, body) = request.into_parts();
    // DNS rebinding: a page from elsewhere may resolve its own name to 127.0.0.1, but cannot change `Host`.
    let host = head.headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    if ![format!("127.0.0.1:{port}"), format!("localhost:{port}")].iter().any(|ours| ours == host) {
        return Err(refuse(StatusCode::MISDIRECTED_REQUEST, "name 127.0.0.1 and the port as the host"));
    }
    match timeout(PATIENCE, Limited::new(body, MAX_BODY).collect()).await {
        Ok(Ok(body)) => Ok(Request::from_parts(head, body.to_bytes())),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            Err(refuse(StatusCode::PAYLOAD_TOO_LARGE, "send at most 64 KiB"))
        }
        Ok(Err(_)) => Err(refuse(StatusCode::BAD_REQUEST, "send the whole body")),
        Err(_) => Err(refuse(StatusCode::REQUEST_TIMEOUT, "send the body within 10 seconds")),
    }
}

/// A JSON answer that nobody may store.
pub(super) fn json(status: StatusCode, body: &Value) -> Answer {
    typed(status, "application/json", body.to_string())
}

/// An answer of any type that nobody may store.
pub(super) fn typed(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::PRAGMA, HeaderValue::from_static("no-cache"));
    answer
}

/// A refusal below any protocol: wrong place, wrong method, wrong size.
pub(super) fn refuse(status: StatusCode, what_to_do: &str) -> Answer {
    json(status, &json!({"error": "invalid_request", "error_description": what_to_do, "note": NOTE}))
}

/// A refusal of the method, with the one that works.
pub(super) fn allow(method: &'static str) -> Answer {
    let mut answer = refuse(StatusCode::METHOD_NOT_ALLOWED, &format!("use {method}"));
    answer.headers_mut().insert(header::ALLOW, HeaderValue::from_static(method));
    answer
}

/// `Date` by our clock and not by hyper's, so that a test can put the issuer's clock wrong (CLK-02).
fn date(clock: &dyn Clock) -> Option<HeaderValue> {
    let text = jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&clock.wall()).ok()?;
    HeaderValue::from_str(&text).ok()
}

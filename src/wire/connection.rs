//! One connection, served until it ends: by itself, because its process has exited, because the agent stops, because
//! it never said anything, or because somebody else spoke on it. In go a stamped stream and a service; out comes how
//! it ended.

use std::{
    convert::Infallible,
    future::{Future, poll_fn},
    io,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
    time::Duration,
};

use http::{Request, Response};
use http_body::Body;
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::{Service, service_fn},
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{Interest, unix::AsyncFd},
    net::UnixStream,
    sync::watch,
    time::sleep,
};

use super::{
    calls::{Calls, Door},
    stream::{Corked, Fate, stamped},
};
use crate::attest::{AttestError, Challenge, Peer};

/// When the agent stops, whoever has just connected may still say what for. A client that connects to speak does so at once.
const FIRST_WORDS: Duration = Duration::from_secs(1);

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What one connection may do.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How long it may be open before its first whole request.
    pub first_bytes_within: Duration,
    /// HTTP/2 streams at once.
    pub max_streams: u32,
}

/// How a connection ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Ended {
    /// We ended it.
    Cut(Fate),
    /// It, or the transport, ended it.
    Closed,
    /// It said nothing in time.
    Idle,
    /// Its process has exited (ATT-09).
    PeerExited,
    /// The agent stops.
    Shutdown,
}

/// What is spoken on a connection.
#[derive(Clone, Debug)]
pub enum Protocol {
    /// HTTP/1.1, on the socket for curl and probes.
    Http1,
    /// HTTP/2 with prior knowledge, as gRPC speaks it, and what its peer has to answer.
    Http2(Arc<Challenge>),
}

/// Serves `peer` on `socket` until the connection ends.
pub async fn serve<S, B>(
    protocol: Protocol,
    socket: UnixStream,
    peer: Arc<Peer>,
    service: S,
    limits: Limits,
    shutdown: watch::Receiver<bool>,
) -> Ended
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    let challenge = match &protocol {
        Protocol::Http1 => None,
        Protocol::Http2(challenge) => Some(Arc::clone(challenge)),
    };
    let (stream, corked) = stamped(socket, Arc::clone(&peer), challenge);
    let spoke = Arc::new(AtomicBool::new(false));
    let (io, service) = (TokioIo::new(stream), heard(service, &spoke));
    let mut stopping = shutdown.clone();
    let mut stopping = move || *stopping.borrow_and_update();
    let served = async {
        match protocol {
            Protocol::Http1 => {
                let mut connection = pin!(http1(limits).serve_connection(io, service));
                // Told to stop, hyper hangs up on a connection that has said nothing yet; HTTP/1.1 has no goodbye that its client
                // could tell from a lost answer.
                let mut silent = pin!(async { sleep(FIRST_WORDS).await });
                let mut leaving = false;
                poll_fn(|cx| {
                    let mut served = connection.as_mut().poll(cx).map(|_| ());
                    let may_leave = served.is_pending() && !leaving && stopping();
                    if may_leave && (spoke.load(Ordering::Relaxed) || silent.as_mut().poll(cx).is_ready()) {
                        leaving = true;
                        connection.as_mut().graceful_shutdown();
                        served = connection.as_mut().poll(cx).map(|_| ());
                    }
                    turn(served, &corked, cx)
                })
                .await
            }
            Protocol::Http2(_) => {
                let mut calls = Calls::new();
                let mut connection = pin!(http2(limits, calls.door()).serve_connection(io, service));
                poll_fn(|cx| {
                    if stopping() {
                        connection.as_mut().graceful_shutdown();
                    }
                    calls.turn(
                        cx,
                        |cx| connection.as_mut().poll(cx).map(|_| ()),
                        |served, cx| turn(served, &corked, cx),
                    )
                })
                .await
            }
        }
    };
    until(served, &corked, &peer, &spoke, limits, shutdown).await
}

fn http1(limits: Limits) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(limits.first_bytes_within).max_buf_size(16 << 10);
    builder
}

fn http2(limits: Limits, door: Door) -> http2::Builder<Door> {
    let mut builder = http2::Builder::new(door);
    builder
        .max_concurrent_streams(limits.max_streams)
        .max_header_list_size(16 << 10)
        .initial_stream_window_size(64 << 10)
        .initial_connection_window_size(256 << 10)
        .max_pending_accept_reset_streams(20)
        .max_local_error_reset_streams(64)
        .max_send_buf_size(256 << 10)
        // gRPC asks for no date, and whoever is on this host has a clock.
        .auto_date_header(false);
    builder
}

/// The service, which notes that a whole request has come.
fn heard<S, B>(
    service: S,
    spoke: &Arc<AtomicBool>,
) -> impl Service<Request<Incoming>, Response = Response<B>, Error = Infallible, Future = S::Future> + Clone
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone,
    B: Body,
{
    let spoke = Arc::clone(spoke);
    service_fn(move |request| {
        spoke.store(true, Ordering::Relaxed);
        service.call(request)
    })
}

/// The end of a turn of the connection, and one write of all it produced.
fn turn(served: Poll<()>, corked: &Corked, cx: &mut std::task::Context<'_>) -> Poll<io::Result<()>> {
    corked.end_turn();
    match (served, corked.poll_drain(cx)) {
        (_, Poll::Ready(Err(error))) => Poll::Ready(Err(error)),
        (Poll::Ready(()), Poll::Ready(Ok(()))) => Poll::Ready(Ok(())),
        _ => Poll::Pending,
    }
}

async fn until(
    served: impl Future<Output = io::Result<()>>,
    corked: &Corked,
    peer: &Peer,
    spoke: &AtomicBool,
    limits: Limits,
    mut shutdown: watch::Receiver<bool>,
) -> Ended {
    #[expect(
        deprecated,
        reason = "its successor is unsafe; here the descriptor is the peer's, which outlives this"
    )]
    let Ok(pidfd) = AsyncFd::with_interest(peer.pidfd(), Interest::READABLE) else {
        return Ended::Closed;
    };
    let silence = async {
        sleep(limits.first_bytes_within).await;
        while spoke.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
    };
    let mut served = pin!(served);
    let stops = async {
        if shutdown.wait_for(|stop| *stop).await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    let (mut silence, mut stops) = (pin!(silence), pin!(stops));
    let mut stopping = false;
    loop {
        tokio::select! {
            _ = &mut served => {
                return match corked.fate() {
                    // The last words of a process that has exited: no attack, and nobody to answer.
                    Some(Fate::Attest(AttestError::PeerExited)) => Ended::PeerExited,
                    Some(fate) => Ended::Cut(fate),
                    None if stopping => Ended::Shutdown,
                    None => Ended::Closed,
                };
            }
            _ = pidfd.readable() => return Ended::PeerExited,
            () = &mut silence => return Ended::Idle,
            // `served` sees the same signal on its next turn, which this wakes: it says goodbye and finishes.
            () = &mut stops, if !stopping => stopping = true,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http_body_util::{BodyExt as _, Full};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::clock::SeededDice;

    fn pair() -> (UnixStream, Arc<Peer>, UnixStream) {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        rustix::net::sockopt::set_socket_passcred(&ours, true).unwrap();
        ours.set_nonblocking(true).unwrap();
        theirs.set_nonblocking(true).unwrap();
        let peer = Arc::new(Peer::pin(&ours).unwrap());
        (UnixStream::from_std(ours).unwrap(), peer, UnixStream::from_std(theirs).unwrap())
    }

    fn http2() -> Protocol {
        Protocol::Http2(Arc::new(Challenge::new(&*SeededDice::from_seed(1))))
    }

    const LIMITS: Limits = Limits { first_bytes_within: Duration::from_secs(5), max_streams: 8 };

    async fn echo(request: Request<Incoming>) -> Result<Response<Full<bytes::Bytes>>, Infallible> {
        let authority = request.uri().authority().map(ToString::to_string).unwrap_or_default();
        let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        Ok(Response::new(Full::new([authority.as_bytes(), b"|", &body].concat().into())))
    }

    /// Preface, SETTINGS, and a POST whose `:authority` is `authority`, as C-core sends it.
    fn request(authority: &str) -> Vec<u8> {
        let mut block = b"\x83\x86\x84\x41".to_vec();
        block.push(authority.len() as u8);
        block.extend(authority.as_bytes());
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
        bytes.extend([0, 0, block.len() as u8, 1, 5, 0, 0, 0, 1]);
        bytes.extend(block);
        bytes
    }

    #[tokio::test]
    async fn h2_serves_clients_that_send_the_socket_path_as_authority() {
        // grpcio's two forms, and one that needs nothing.
        for (sent, seen) in [
            ("run%2Fkb%2Fagent.sock", "run-2Fkb-2Fagent.sock|"),
            ("/run/kb/agent.sock", "-run-kb-agent.sock|"),
            ("localhost", "localhost|"),
        ] {
            let (ours, peer, mut theirs) = pair();
            let (_stop, stopped) = watch::channel(false);
            let served = tokio::spawn(serve(http2(), ours, peer, service_fn(echo), LIMITS, stopped));
            theirs.write_all(&request(sent)).await.unwrap();
            let mut answer = vec![];
            let mut buffer = [0; 4096];
            while !answer.windows(seen.len()).any(|window| window == seen.as_bytes()) {
                let len = theirs.read(&mut buffer).await.unwrap();
                assert_ne!(len, 0, "h2 hung up on {sent}");
                answer.extend_from_slice(&buffer[..len]);
            }
            drop(theirs);
            assert_eq!(served.await.unwrap(), Ended::Closed);
        }
    }

    #[tokio::test]
    async fn http1_answers_and_ends() {
        let (ours, peer, mut theirs) = pair();
        let (_stop, stopped) = watch::channel(false);
        let served = tokio::spawn(serve(Protocol::Http1, ours, peer, service_fn(echo), LIMITS, stopped));
        theirs
            .write_all(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\nconnection: close\r\n\r\nhi")
            .await
            .unwrap();
        let mut answer = String::new();
        theirs.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("|hi"), "{answer}");
        assert_eq!(served.await.unwrap(), Ended::Closed);
    }

    #[tokio::test]
    async fn http1_on_the_grpc_socket_is_cut() {
        // ATT-28
        let (ours, peer, mut theirs) = pair();
        let (_stop, stopped) = watch::channel(false);
        let served = tokio::spawn(serve(http2(), ours, peer, service_fn(echo), LIMITS, stopped));
        theirs.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let cut = Ended::Cut(Fate::Frame(crate::wire::FrameError::Preface));
        assert_eq!(served.await.unwrap(), cut);
    }

    #[tokio::test]
    async fn a_smuggled_descriptor_ends_the_connection() {
        // ATT-04
        let (ours, peer, theirs) = pair();
        let (_stop, stopped) = watch::channel(false);
        let served = tokio::spawn(serve(Protocol::Http1, ours, peer, service_fn(echo), LIMITS, stopped));
        let file = std::fs::File::open("/dev/null").unwrap();
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = rustix::net::SendAncillaryBuffer::new(&mut space);
        let fds = [std::os::fd::AsFd::as_fd(&file)];
        assert!(control.push(rustix::net::SendAncillaryMessage::ScmRights(&fds)));
        let request = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";
        rustix::net::sendmsg(
            &theirs,
            &[io::IoSlice::new(request)],
            &mut control,
            rustix::net::SendFlags::empty(),
        )
        .unwrap();
        assert_eq!(served.await.unwrap(), Ended::Cut(Fate::Attest(AttestError::Smuggled)));
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_a_connection() {
        // ATT-26
        for protocol in [http2(), Protocol::Http1] {
            let (ours, peer, _theirs) = pair();
            let (_stop, stopped) = watch::channel(false);
            let ended = serve(protocol, ours, peer, service_fn(echo), LIMITS, stopped).await;
            assert!(matches!(ended, Ended::Idle | Ended::Closed), "{ended:?}");
        }
    }

    #[tokio::test]
    async fn a_stop_lets_calls_finish_and_says_goodbye() {
        let (ours, peer, mut theirs) = pair();
        let (stop, stopped) = watch::channel(false);
        let served = tokio::spawn(serve(http2(), ours, peer, service_fn(echo), LIMITS, stopped));
        theirs.write_all(&request("localhost")).await.unwrap();
        stop.send(true).unwrap();
        // The answer, and a GOAWAY (RFC 9113 6.8): frame type 7 on stream 0.
        let goaway = [7, 0, 0, 0, 0, 0];
        let has = |answer: &[u8], wanted: &[u8]| answer.windows(wanted.len()).any(|window| window == wanted);
        let mut answer = vec![];
        while !(has(&answer, b"localhost|") && has(&answer, &goaway)) {
            assert_ne!(theirs.read_buf(&mut answer).await.unwrap(), 0, "hung up without an answer");
        }
        drop(theirs);
        assert_eq!(served.await.unwrap(), Ended::Shutdown);
    }

    #[tokio::test]
    async fn whoever_connects_at_the_last_moment_is_answered_and_whoever_says_nothing_holds_nobody_up() {
        let (stop, stopped) = watch::channel(false);
        let (ours, peer, mut late) = pair();
        let served =
            tokio::spawn(serve(Protocol::Http1, ours, peer, service_fn(echo), LIMITS, stopped.clone()));
        let (ours, peer, mut silent) = pair();
        let ended = tokio::spawn(serve(Protocol::Http1, ours, peer, service_fn(echo), LIMITS, stopped));
        stop.send(true).unwrap();
        // Both have seen it: on this one thread, everybody who was woken has had a turn.
        tokio::task::yield_now().await;
        assert!(!served.is_finished());
        let request = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\nlate";
        late.write_all(request).await.unwrap();
        let mut answer = vec![];
        late.read_to_end(&mut answer).await.unwrap();
        let answer = String::from_utf8(answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("|late"), "{answer:?}");
        assert_eq!(served.await.unwrap(), Ended::Shutdown);
        assert_eq!(silent.read(&mut [0]).await.unwrap(), 0);
        assert_eq!(ended.await.unwrap(), Ended::Shutdown);
    }

    #[tokio::test]
    async fn ten_megabytes_pass_the_cork_whole() {
        let (ours, peer, mut theirs) = pair();
        let (_stop, stopped) = watch::channel(false);
        let big = service_fn(async |_: Request<Incoming>| {
            Ok::<_, Infallible>(Response::new(Full::new(bytes::Bytes::from(vec![7u8; 10 << 20]))))
        });
        tokio::spawn(serve(Protocol::Http1, ours, peer, big, LIMITS, stopped));
        theirs.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut answer = vec![];
        theirs.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer.iter().filter(|byte| **byte == 7).count(), 10 << 20);
    }
}

//! The server under attack: what is asked of it, in HTTP/1.1 or as bare gRPC frames, and what it answers.

use std::{
    env,
    io::{self, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::PathBuf,
    process,
    time::Duration,
};

use keybearer::clock::SystemClock;
use serde::{Deserialize, Serialize};

/// How long a speaker listens for the answer.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// The server and what is asked of it.
pub struct Target {
    pub socket: PathBuf,
    pub request_path: String,
}

/// What the server said, and how it went.
#[derive(Deserialize, Serialize)]
pub struct Heard {
    pub answer: String,
    pub note: String,
}

impl Target {
    pub fn connect(&self) -> Result<UnixStream, String> {
        UnixStream::connect(&self.socket).map_err(|error| {
            format!("connect to {}: {error}; start the server or let us in", self.socket.display())
        })
    }

    pub fn request(&self) -> Vec<u8> {
        let path = &self.request_path;
        if self.is_grpc() {
            return grpc_request(path);
        }
        format!("GET {path} HTTP/1.1\r\nhost: x\r\nkeybearer: v1\r\nconnection: close\r\n\r\n").into_bytes()
    }

    /// Sends the request and hears the answer out, as an honest client does. A server that has hung up by now has
    /// answered, too.
    pub fn speak(&self, mut stream: UnixStream) -> Heard {
        let written = stream.write_all(&self.request());
        let heard = match stream.try_clone() {
            Ok(mut echo) => self.hear(stream, PATIENCE, Some(&mut echo)),
            Err(_) => self.hear(stream, PATIENCE, None),
        };
        match written {
            Ok(()) => heard,
            Err(error) => Heard { note: format!("request not taken: {error}; {}", heard.note), ..heard },
        }
    }

    /// Hears the answer out. A PING of HTTP/2 is answered on `echo`, if there is one.
    pub fn hear(&self, stream: UnixStream, patience: Duration, echo: Option<&mut dyn io::Write>) -> Heard {
        if !self.is_grpc() {
            return hear(stream, patience);
        }
        let mut frames = Frames { echo, pending: vec![], over: false };
        listen(stream, patience, |chunk| frames.take(chunk))
    }

    fn is_grpc(&self) -> bool {
        self.request_path.starts_with("/keybearer.v1.")
    }
}

/// Reads until the end, for `patience` at most.
pub fn hear(stream: UnixStream, patience: Duration) -> Heard {
    listen(stream, patience, |_| false)
}

/// Reads until the end, until `over`, or until `patience` ends.
fn listen(mut stream: UnixStream, patience: Duration, mut over: impl FnMut(&[u8]) -> bool) -> Heard {
    let clock = SystemClock::shared();
    let start = clock.boot();
    let (mut answer, mut chunk) = (Vec::new(), [0; 4096]);
    let ending = loop {
        let left = patience.saturating_sub(clock.boot().since(start));
        // A timeout of zero would mean none at all.
        if left.is_zero() || stream.set_read_timeout(Some(left)).is_err() {
            break "still open".to_owned();
        }
        match stream.read(&mut chunk) {
            Ok(0) => break "closed by the server".to_owned(),
            Ok(len) => {
                answer.extend_from_slice(&chunk[..len]);
                if over(&chunk[..len]) {
                    break "answered".to_owned();
                }
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {}
            Err(error) => break format!("cut by the server ({error})"),
        }
    };
    let after = clock.boot().since(start).as_millis();
    let exe = env::current_exe().unwrap_or_default();
    let (pid, uid) = (process::id(), rustix::process::geteuid().as_raw());
    let note = format!("speaker pid {pid} uid {uid} exe {}; {ending} after {after} ms", exe.display());
    Heard { answer: String::from_utf8_lossy(&answer).into_owned(), note }
}

/// Preface, SETTINGS, HEADERS and DATA of one call for the credential `orders` (RFC 9113; gRPC over HTTP/2).
fn grpc_request(path: &str) -> Vec<u8> {
    // POST, http, and literals without Huffman: :path, :authority, te, content-type, keybearer.
    let mut block = vec![0x83, 0x86, 0x04, path.len() as u8];
    block.extend(path.as_bytes());
    block.extend(b"\x01\x01x\x00\x02te\x08trailers\x0f\x10\x10application/grpc\x00\x09keybearer\x02v1");
    let message = b"\0\0\0\0\x08\x0a\x06orders";
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    for (kind, flags, stream, payload) in [(4, 0, 0, &[][..]), (1, 4, 1, &block), (0, 1, 1, message)] {
        bytes.extend([0, 0, payload.len() as u8, kind, flags, 0, 0, 0, stream]);
        bytes.extend(payload);
    }
    bytes
}

/// What the server sends, frame by frame.
struct Frames<'a> {
    echo: Option<&'a mut dyn io::Write>,
    pending: Vec<u8>,
    over: bool,
}

impl Frames<'_> {
    /// Takes a chunk. True once the call is over.
    fn take(&mut self, chunk: &[u8]) -> bool {
        self.pending.extend_from_slice(chunk);
        while let Some((header, rest)) = self.pending.split_at_checked(9) {
            let length = usize::from(header[0]) << 16 | usize::from(header[1]) << 8 | usize::from(header[2]);
            let (kind, flags) = (header[3], header[4]);
            let Some(payload) = rest.get(..length) else { break };
            if (kind, flags) == (6, 0)
                && let Some(echo) = &mut self.echo
            {
                // Whoever cannot answer will see what comes of it.
                let _ = echo.write_all(&[&[0, 0, 8, 6, 1, 0, 0, 0, 0], payload].concat());
            }
            // HEADERS with END_STREAM are the trailers; a GOAWAY ends everything.
            self.over |= kind == 1 && flags & 1 != 0 || kind == 7;
            self.pending.drain(..9 + length);
        }
        self.over
    }
}

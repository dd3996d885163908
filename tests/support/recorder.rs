//! Whoever sits between an agent and its issuer and writes down what is said: each request, byte by byte, before it is passed on.
//! And whoever says it again. In go bytes; out comes what the server answers.
#![allow(dead_code, reason = "each test program uses its part")]

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    os::unix::process::CommandExt as _,
    process::{Command, Stdio},
    sync::{Arc, Mutex},
};

use serde_json::Value;

/// A user that owns nothing here.
pub const NOBODY: u32 = 65533;

/// A running one. It ends with the test.
pub struct Recorder {
    pub port: u16,
    heard: Arc<Mutex<Vec<String>>>,
}

impl Recorder {
    /// Passes everything on to the server at `port`, one request a connection.
    pub fn before(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let own = listener.local_addr().unwrap().port();
        let heard = Arc::new(Mutex::new(vec![]));
        let book = Arc::clone(&heard);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let book = Arc::clone(&book);
                std::thread::spawn(move || pass_on(stream, port, &book));
            }
        });
        Self { port: own, heard }
    }

    /// The requests to `path` so far, each as it can be said again.
    pub fn heard(&self, path: &str) -> Vec<String> {
        let heard = self.heard.lock().unwrap();
        heard.iter().filter(|request| request.split(' ').nth(1) == Some(path)).cloned().collect()
    }
}

fn pass_on(mut stream: TcpStream, port: u16, book: &Mutex<Vec<String>>) {
    let Some(request) = whole(&mut stream) else { return };
    // What is said is said on a connection of its own, so that the answer has an end.
    let request = request.replacen("\r\n\r\n", "\r\nconnection: close\r\n\r\n", 1);
    book.lock().unwrap().push(request.clone());
    let Ok(mut server) = TcpStream::connect(("127.0.0.1", port)) else { return };
    let _ = server.write_all(request.as_bytes());
    let mut answer = vec![];
    let _ = server.read_to_end(&mut answer);
    // An agent that has had enough hangs up.
    let _ = stream.write_all(&answer);
}

/// A request with its body.
fn whole(stream: &mut TcpStream) -> Option<String> {
    let (mut bytes, mut chunk) = (vec![], [0; 4096]);
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| {
                line.to_ascii_lowercase().strip_prefix("content-length:")?.trim().parse::<usize>().ok()
            });
            if body.len() >= length.unwrap_or(0) {
                return Some(text);
            }
        }
        match stream.read(&mut chunk) {
            Ok(0) | Err(_) => return None,
            Ok(len) => bytes.extend_from_slice(&chunk[..len]),
        }
    }
}

/// Says it again to the server at `port`, on a connection of its own: the status, and the body.
pub fn again(request: &str, port: u16) -> (u16, Value) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    read(&answer)
}

/// The same as another user, which only root can.
pub fn again_as_nobody(request: &str, port: u16) -> (u16, Value) {
    let mut child = Command::new("bash")
        .args(["-c", "exec 3<>/dev/tcp/127.0.0.1/$0; cat >&3; id -u; cat <&3", &port.to_string()])
        .uid(NOBODY)
        .gid(NOBODY)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(request.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    let (uid, answer) = said.split_once('\n').unwrap();
    assert_eq!(uid, NOBODY.to_string(), "it really was another user");
    read(answer)
}

fn read(answer: &str) -> (u16, Value) {
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body).unwrap_or_default();
    (status, serde_json::from_str(body).unwrap_or_default())
}

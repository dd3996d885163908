//! A crowd: many callers of the HTTP socket, each over a new connection at each call, until standard input ends. In go a socket,
//! a path, how many there are and how many calls a second they make together; out comes one line of JSON: how many calls there
//! were, and what became of those that did not get what they came for.
#![allow(clippy::unwrap_used, reason = "a test's tool that cannot go on has failed")]

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

/// Why a call got nothing, in words that are the same for the same reason.
fn call(socket: &str, path: &str) -> Result<(), String> {
    let mut stream = UnixStream::connect(socket).map_err(|error| format!("connect: {:?}", error.kind()))?;
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nkeybearer: v1\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).map_err(|error| format!("write: {:?}", error.kind()))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(|error| format!("read: {:?}", error.kind()))?;
    match answer.split(' ').nth(1) {
        Some("200") if answer.contains("access_token") => Ok(()),
        _ => Err(format!("answered: {:.600}", answer.replace("\r\n", " "))),
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [socket, path, callers, rate] = &arguments[..] else { panic!("crowd SOCKET PATH CALLERS RATE") };
    let (callers, rate): (u32, u32) = (callers.parse().unwrap(), rate.parse().unwrap());
    let done = Arc::new(AtomicBool::new(false));
    let failed: Arc<Mutex<BTreeMap<String, u64>>> = Arc::default();
    let each = Duration::from_secs(1) * callers / rate;
    let threads: Vec<_> = (0..callers)
        .map(|nth| {
            let (socket, path) = (socket.clone(), path.clone());
            let (done, failed) = (Arc::clone(&done), Arc::clone(&failed));
            thread::spawn(move || {
                let mut calls = 0u64;
                thread::sleep(each * nth / callers);
                while !done.load(Ordering::Relaxed) {
                    calls += 1;
                    if let Err(why) = call(&socket, &path) {
                        *failed.lock().unwrap().entry(why).or_default() += 1;
                    }
                    // The pace is what is wanted here, and no event.
                    thread::sleep(each);
                }
                calls
            })
        })
        .collect();
    // Whoever drives this says when it is enough by closing it.
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    done.store(true, Ordering::Relaxed);
    let calls: u64 = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
    println!("{}", serde_json::json!({"calls": calls, "failed": *failed.lock().unwrap()}));
}

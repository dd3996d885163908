//! Calls that the agent makes for programs, on the real binary: how answers come back, for how long, what becomes of those that
//! nobody waits for, and what is told where there is none.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;
#[path = "support/vault.rs"]
mod vault;

use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use keybearer::audit::Outcome;
use support::{body, get, http};
use tokio::sync::Notify;
use vault::{Says, Vault, apart, calls, invalid_token, on_record, post};

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_handed_on_as_they_are_and_no_redirect_is_followed() {
    // DPOP-27, PKJ-17
    let vault = Vault::open().await;
    let agent = vault.agent();
    let socket = agent.socket("http.sock");
    for (status, headers) in [
        (302, "location: http://169.254.169.254/latest/meta-data\r\n"),
        (307, "location: https://evil.example/\r\n"),
        (204, ""),
        (304, "etag: \"7\"\r\n"),
        (418, "content-type: text/plain\r\n"),
        (500, ""),
    ] {
        let body = if matches!(status, 204 | 304) { "" } else { "tea" };
        vault.will([Says::Full(status, headers, body.into())]);
        let (got, answer) = get(&socket, "/v1/forward/vault/x");
        assert_eq!(got, status, "{answer}");
        assert!(answer.to_lowercase().contains(headers.trim_end()) && answer.ends_with(body), "{answer}");
        assert!(!answer.contains("keybearer-error"));
    }
    assert_eq!(vault.diary().len(), 6, "one call each");
    vault.will([Says::Full(200, "", String::new())]);
    let head = "HEAD /v1/forward/vault/x HTTP/1.1\r\nhost: x\r\nkeybearer: v1\r\nconnection: close\r\n\r\n";
    assert_eq!(http(&socket, head).0, 200);
    assert!(vault.diary().pop().unwrap().line.starts_with("HEAD /x"));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_hangs_up_ends_the_call_and_a_slow_api_holds_up_nobody_else() {
    let vault = Vault::open().await;
    let agent = vault.agent();
    let socket = agent.socket("http.sock");
    vault.will([Says::Nothing]);
    let mut gone = UnixStream::connect(&socket).unwrap();
    gone.write_all(b"GET /v1/forward/vault/slow HTTP/1.1\r\nhost: x\r\nkeybearer: v1\r\n\r\n").unwrap();
    vault.asked(1).await;
    assert_eq!(get(&socket, "/v1/forward/vault/quick").0, 200, "another is served meanwhile");
    drop(gone);
    vault.hung_up(1).await;
    let entry = on_record(&agent, "CALLER_GONE").await;
    assert_eq!(
        (entry.event.outcome, entry.target.unwrap().path.as_deref()),
        (Outcome::Failed, Some("/slow"))
    );
    // And in the middle of an answer.
    let sent = Arc::new(AtomicUsize::new(0));
    vault.will([Says::Endless(Arc::clone(&sent))]);
    let mut gone = UnixStream::connect(&socket).unwrap();
    gone.write_all(b"GET /v1/forward/vault/endless HTTP/1.1\r\nhost: x\r\nkeybearer: v1\r\n\r\n").unwrap();
    gone.read_exact(&mut [0; 64 << 10]).unwrap();
    drop(gone);
    vault.hung_up(2).await;
    agent.verify().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_comes_as_fast_as_it_is_taken() {
    let vault = Vault::open().await;
    let agent = vault.agent();
    let sent = Arc::new(AtomicUsize::new(0));
    vault.will([Says::Endless(Arc::clone(&sent))]);
    let mut slow = UnixStream::connect(agent.socket("http.sock")).unwrap();
    slow.write_all(b"GET /v1/forward/vault/endless HTTP/1.1\r\nhost: x\r\nkeybearer: v1\r\n\r\n").unwrap();
    slow.read_exact(&mut [0; 1024]).unwrap();
    // It fills what lies between, and no more: it stands still long before it is out of hand.
    let mut before = usize::MAX;
    while before != sent.load(Ordering::SeqCst) {
        before = sent.load(Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(before < 32 << 20, "{before} bytes for a program that takes none");
    }
    // And goes on when it is taken.
    let more = before + (4 << 20);
    let mut chunk = vec![0; 1 << 20];
    while sent.load(Ordering::SeqCst) < more {
        slow.read_exact(&mut chunk).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pieces_pass_when_they_come_and_end_when_the_right_does() {
    // GA-10: an operator's no counts in the middle of an answer, too.
    let vault = Vault::open().await;
    let agent = vault.agent();
    let socket = agent.socket("http.sock");
    let next = Arc::new(Notify::new());
    let head = "HTTP/1.1 200 x\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n";
    vault.will([Says::Pieces(vec![head, "6\r\nsecond\r\n", "5\r\nthird\r\n0\r\n\r\n"], Arc::clone(&next))]);
    let mut stream = UnixStream::connect(&socket).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(b"GET /v1/forward/vault/events HTTP/1.1\r\nhost: x\r\nkeybearer: v1\r\n\r\n").unwrap();
    let mut heard = String::new();
    let mut hear = |stream: &mut UnixStream, wanted: &str| {
        let mut byte = [0; 1];
        while !heard.contains(wanted) {
            match stream.read(&mut byte) {
                Ok(1) => heard.push(char::from(byte[0])),
                _ => break,
            }
        }
        heard.clone()
    };
    assert!(hear(&mut stream, "first").ends_with("first"));
    next.notify_one();
    assert!(hear(&mut stream, "second").ends_with("second"));
    // Other settings that still allow it change nothing; a no ends it.
    let disabled = agent.keybearer(&["disable", "shop", "--reason", "a test"]);
    assert!(disabled.status.success(), "{disabled:?}");
    next.notify_one();
    let all = hear(&mut stream, "third");
    assert!(!all.contains("third") && !all.ends_with("0\r\n\r\n"), "{all}");
    assert_eq!(get(&socket, "/v1/forward/vault/x").0, 403);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_disabled_while_the_api_thinks_hears_nothing_of_its_answer() {
    // GA-10: neither status nor headers, which may be all that an answer says.
    let vault = Vault::open().await;
    let agent = vault.agent();
    let socket = agent.socket("http.sock");
    let next = Arc::new(Notify::new());
    let answer = "HTTP/1.1 201 x\r\nlocation: /canary\r\ncontent-length: 0\r\n\r\n";
    vault.will([Says::Pieces(vec!["", answer], Arc::clone(&next))]);
    let call = tokio::spawn(apart(move || get(&socket, "/v1/forward/vault/slow")));
    while vault.diary().is_empty() {
        tokio::task::yield_now().await;
    }
    assert!(agent.keybearer(&["disable", "shop", "--reason", "a test"]).status.success());
    next.notify_one();
    let (status, answer) = call.await.unwrap();
    assert!(status == 403 && !answer.contains("canary"), "{status} {answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_body_goes_on_as_it_comes_and_only_once() {
    // MT-09: what cannot be sent again is not; the next call has another token all the same.
    let vault = Vault::open().await;
    let agent = vault.agent();
    let socket = agent.socket("http.sock");
    let long = "x".repeat(3 << 20);
    let (status, answer) = {
        let (socket, long) = (socket.clone(), long.clone());
        apart(move || post(&socket, "/v1/forward/vault/upload", &long)).await
    };
    assert_eq!((status, vault.diary().pop().unwrap().body.0), (200, 3 << 20), "{answer}");
    assert!(vault.diary().pop().unwrap().head.contains(&format!("content-length: {}", 3 << 20)));
    vault.will([invalid_token()]);
    let (status, _) = {
        let socket = socket.clone();
        apart(move || post(&socket, "/v1/forward/vault/upload", &long)).await
    };
    assert_eq!((status, vault.diary().len(), vault.tokens().len()), (401, 2, 2));
    assert_eq!(get(&socket, "/v1/forward/vault/x").0, 200);
    assert_eq!(vault.diary().pop().unwrap().token, vault.tokens()[1]);
    // In chunks, short: kept, and sent again whole.
    vault.will([Says::Full(200, "", "{}".into())]);
    let chunked = "POST /v1/forward/vault/x HTTP/1.1\r\nhost: x\r\nkeybearer: v1\r\nconnection: close\r\n\
                   transfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\nx-sum: 1\r\n\r\n";
    assert_eq!(http(&socket, chunked).0, 200);
    assert_eq!(vault.diary().pop().unwrap().body, (5, "abcde".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_that_fails_is_told_from_one_that_refuses() {
    // MT-06, MT-14: and nothing that may have been taken is sent again.
    let vault = Vault::open().await;
    let stranger = Vault::open().await;
    let unasking = Vault::asking(false).await;
    let nobody = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        format!("https://localhost:{}", listener.local_addr().unwrap().port())
    };
    let origins =
        [&vault.url, &stranger.url, &nobody, &unasking.url].map(|url| format!("\"{url}\"")).join(", ");
    let setup = vault.setup(&vault.url, "forward = \"allowed\"\napi_timeout = \"1s\"");
    let roots = setup.dir.path().join("roots.pem");
    fs::write(&roots, format!("{}{}", vault.root, unasking.root)).unwrap();
    let root = setup.dir.path().join("root.pem");
    let agent = setup
        .with(&format!("origins = [\"{}\"]", vault.url), &format!("origins = [{origins}]"))
        .with(&format!("api_ca_file = {root:?}"), &format!("api_ca_file = {roots:?}"))
        .start(None);
    let socket = agent.socket("http.sock");
    let call = |origin: &str| {
        let head = format!(
            "POST /v1/forward/vault/x HTTP/1.1\r\nhost: x\r\nkeybearer: v1\r\nkeybearer-origin: {origin}\r\n"
        );
        let (status, answer) =
            http(&socket, &format!("{head}connection: close\r\ncontent-length: 2\r\n\r\n{{}}"));
        let reason = body(&answer)["error"].as_str().unwrap_or_default().to_owned();
        assert!(!body(&answer)["message"].as_str().unwrap_or_default().is_empty(), "{answer}");
        (status, reason)
    };
    vault.will([Says::HangUp, Says::Nothing]);
    assert_eq!(call(&vault.url), (502, "API_BROKEN".into()));
    assert_eq!(call(&vault.url), (504, "API_TIMEOUT".into()));
    assert_eq!(vault.diary().len(), 2, "each was sent once");
    assert_eq!(call(&nobody), (502, "API_UNREACHABLE".into()));
    assert_eq!(call(&stranger.url), (502, "API_TLS".into()));
    assert_eq!(call(&unasking.url), (502, "CERT_NOT_ACCEPTED".into()));
    assert!(stranger.diary().is_empty() && unasking.diary().is_empty(), "a token goes to no stranger");
    let failed: Vec<_> =
        calls(&agent).into_iter().filter(|entry| entry.event.outcome == Outcome::Failed).collect();
    assert_eq!(failed.len(), 5);
    assert!(failed.iter().all(|entry| entry.detail.is_some() && entry.credential.is_some()));
    // A program that does not go on with its body gets no other's time.
    let head = "POST /v1/forward/vault/x HTTP/1.1\r\nhost: x\r\nkeybearer: v1\r\nconnection: close\r\ncontent-length: 9\r\n\r\nabc";
    let (status, answer) = http(&socket, head);
    assert_eq!((status, body(&answer)["error"].as_str()), (400, Some("REQUEST_BODY")), "{answer}");
    assert_eq!(vault.diary().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_identity_that_rests_on_its_program_is_called_for_on_the_workloads_socket() {
    // ATT-17: HTTP/2 carries the challenge, HTTP/1.1 does not.
    use http_body_util::{BodyExt as _, Full};
    use hyper_util::rt::{TokioExecutor, TokioIo};
    let vault = Vault::open().await;
    let program = std::env::current_exe().unwrap();
    let setup = vault.setup(&vault.url, "forward = \"only\"");
    let uid = rustix::process::geteuid().as_raw();
    let agent = setup
        .with(&format!("match = {{ uid = {uid} }}"), &format!("match = {{ uid = {uid}, exe = {program:?} }}"))
        .start(None);
    assert_eq!(get(&agent.socket("http.sock"), "/v1/forward/vault/x").0, 403);
    let stream = tokio::net::UnixStream::connect(agent.socket("agent.sock")).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = |path: &str, header: &str| {
        let request = http::Request::post(format!("http://keybearer/v1/forward/{path}"));
        request.header("keybearer", header).body(Full::new(bytes::Bytes::from_static(b"amount"))).unwrap()
    };
    vault.will([invalid_token()]);
    let answer = sender.send_request(request("vault/entries?a=b", "v1")).await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "{\"ok\":true}");
    let seen = vault.diary();
    assert_eq!((seen[1].line.as_str(), seen[1].body.1.as_str()), ("POST /entries?a=b HTTP/1.1", "amount"));
    assert!(seen.len() == 2 && seen[1].is_bound && !seen[1].head.contains("host: keybearer"));
    for (path, header, status) in
        [("vault/../token", "v1", 400), ("vault/x", "v2", 400), ("none/x", "v1", 403)]
    {
        assert_eq!(sender.send_request(request(path, header)).await.unwrap().status(), status, "{path}");
    }
    assert_eq!(vault.diary().len(), 2);
    assert_eq!(calls(&agent)[0].peer.as_ref().unwrap().challenge, Some(true));
    // Calls on one connection do not wait for one another, and one that is given up is ended.
    vault.will([Says::Nothing]);
    let slow = sender.send_request(request("vault/slow", "v1"));
    let slow = tokio::spawn(slow);
    vault.asked(3).await;
    assert_eq!(sender.send_request(request("vault/quick", "v1")).await.unwrap().status(), 200);
    slow.abort();
    vault.hung_up(1).await;
    on_record(&agent, "CALLER_GONE").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_that_speaks_http_2_is_called_the_same_way() {
    // MT-10, MT-13: one connection for all calls of the identity, each given up by itself.
    use http_body_util::BodyExt as _;
    use hyper_util::rt::{TokioExecutor, TokioIo};
    let vault = Vault::open().await;
    let mut tls = (*vault.tls).clone();
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://localhost:{}", listener.local_addr().unwrap().port());
    let (connections, seen) =
        (Arc::new(AtomicUsize::new(0)), Arc::<std::sync::Mutex<Vec<String>>>::default());
    let (counted, noted) = (Arc::clone(&connections), Arc::clone(&seen));
    let slow = Arc::new(Notify::new());
    let (given_up, waits) = (Arc::new(AtomicUsize::new(0)), Arc::clone(&slow));
    let ended = Arc::clone(&given_up);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::SeqCst);
            let stream = acceptor.accept(stream).await.unwrap();
            assert!(stream.get_ref().1.peer_certificates().is_some(), "it shows its certificate");
            let (noted, waits, ended) = (Arc::clone(&noted), Arc::clone(&waits), Arc::clone(&ended));
            let service = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
                let (noted, waits, ended) = (Arc::clone(&noted), Arc::clone(&waits), Arc::clone(&ended));
                async move {
                    let (head, body) = request.into_parts();
                    let body = body.collect().await.unwrap().to_bytes();
                    noted.lock().unwrap().push(format!("{head:?} {body:?}"));
                    if head.uri.path() == "/slow" {
                        struct Ended(Arc<AtomicUsize>, Arc<Notify>);
                        impl Drop for Ended {
                            fn drop(&mut self) {
                                self.0.fetch_add(1, Ordering::SeqCst);
                                self.1.notify_one();
                            }
                        }
                        let _ended = Ended(ended, waits);
                        std::future::pending::<()>().await;
                    }
                    let answer = http_body_util::Full::new(bytes::Bytes::from_static(b"{\"two\":2}"));
                    Ok::<_, std::convert::Infallible>(http::Response::new(answer))
                }
            });
            let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(serving.serve_connection(TokioIo::new(stream), service));
        }
    });
    let agent = vault.setup(&url, "forward = \"only\"").start(None);
    let socket = agent.socket("http.sock");
    let mut gone = UnixStream::connect(&socket).unwrap();
    gone.write_all(b"GET /v1/forward/vault/slow HTTP/1.1\r\nhost: x\r\nkeybearer: v1\r\n\r\n").unwrap();
    while seen.lock().unwrap().is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let (status, answer) = {
        let socket = socket.clone();
        apart(move || post(&socket, "/v1/forward/vault/entries?a=b", "amount")).await
    };
    assert_eq!((status, body(&answer)["two"].as_u64()), (200, Some(2)), "{answer}");
    let said = seen.lock().unwrap()[1].clone();
    for part in ["/entries?a=b", "\"via\": \"1.1 keybearer\"", "b\"amount\"", "\"content-length\": \"6\""] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(said.contains(url.trim_start_matches("https://")) && !said.contains("\"host\": \"x\""), "{said}");
    drop(gone);
    slow.notified().await;
    assert_eq!(get(&socket, "/v1/forward/vault/x").0, 200, "the connection outlives the call");
    assert_eq!((connections.load(Ordering::SeqCst), given_up.load(Ordering::SeqCst)), (1, 1));
}

//! Calls that the agent makes for programs, on the real binary: what leaves and with what, what comes back, and what never
//! leaves. The API is a script that shows what it was sent, or the demo API, which wants proofs with nonces.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;
#[path = "support/vault.rs"]
mod vault;

use std::{fs, io::Read as _, io::Write as _, process::Command, sync::Arc};

use keybearer::audit::{Entry, EventType};
use serde_json::Value;
use support::{Setup, attacker, body, copies, demo_api, get, http, issuer, jwt_in, skip};
use tokio::sync::Notify;
use tonic::Code;
use tonic_types::StatusExt as _;
use vault::{Says, Vault, calls, invalid_token, post};

#[tokio::test(flavor = "multi_thread")]
async fn a_program_calls_an_api_with_a_certificate_bound_token_and_never_holds_token_or_key() {
    // MT-08, MT-10, MT-11, AUD-02
    let vault = Vault::open().await;
    let agent = vault.agent();
    let socket = agent.socket("http.sock");
    let (status, first) = get(&socket, "/v1/forward/vault/entries/7?page=2&q=a%2Fb");
    assert_eq!((status, body(&first)["ok"].as_bool()), (200, Some(true)), "{first}");
    let (status, second) = post(&socket, "/v1/forward/vault/entries", "{\"amount\":1}");
    assert_eq!(status, 200, "{second}");

    let seen = vault.diary();
    assert_eq!(seen.len(), 2);
    assert_eq!(seen[0].line, "GET /entries/7?page=2&q=a%2Fb HTTP/1.1");
    assert_eq!(
        (seen[1].line.as_str(), seen[1].body.clone()),
        ("POST /entries HTTP/1.1", (12, "{\"amount\":1}".into()))
    );
    assert!(seen.iter().all(|seen| seen.is_bound), "{seen:?}");
    assert!(seen.iter().all(|seen| seen.head.contains("authorization: bearer eyj")));
    assert_eq!(vault.tokens().len(), 1, "one token for both");
    assert_eq!(seen[0].connection, seen[1].connection, "and one connection of this identity");

    // All that a program ever gets: neither token nor key is in it, nor to be had otherwise.
    let no = agent.client().await.get("vault", &[]).await.unwrap_err();
    assert_eq!(no.code(), Code::PermissionDenied);
    assert_eq!(no.get_details_error_info().unwrap().reason, "FORWARD_ONLY");
    let (status, refused) = get(&socket, "/v1/credentials/vault");
    assert_eq!((status, body(&refused)["error"].as_str()), (403, Some("FORWARD_ONLY")), "{refused}");
    let key = fs::read_to_string(agent.dir.path().join("state/keys/shop.client-certificate.pem")).unwrap();
    let key = key.lines().nth(1).unwrap();
    for text in [&first, &second, &refused, &format!("{no:?}")] {
        assert!(!text.contains(key) && jwt_in(text).is_none(), "{text}");
    }

    // Each is on record before it leaves and after it came back, without its query.
    let calls = calls(&agent);
    let kinds: Vec<EventType> = calls.iter().map(|entry| entry.event.kind).collect();
    let pair = [EventType::ForwardSend, EventType::ForwardAnswer];
    assert_eq!(kinds, [pair, pair].concat());
    let (sent, answered) = (&calls[0], &calls[1]);
    assert!(first.contains(&format!("keybearer-exchange: {}", sent.exchange_id.0)), "{first}");
    assert_eq!(sent.exchange_id, answered.exchange_id);
    let target = sent.target.clone().unwrap();
    assert_eq!((target.htm.as_str(), target.origin.as_str()), ("GET", vault.url.as_str()));
    assert_eq!(target.path.as_deref(), Some("/entries/7"));
    let what = sent.credential.clone().unwrap();
    let fingerprint = keybearer::secret::Fingerprint::of(seen[0].token.as_bytes()).to_string();
    assert_eq!(what.token_hash, Some(fingerprint));
    assert_eq!((what.source.as_deref(), what.binding.as_deref()), (Some("issuer"), Some("mtls")));
    assert_eq!(calls[2].credential.as_ref().unwrap().source.as_deref(), Some("cache"));
    assert!(sent.issuer_response.is_some() && sent.workload.as_ref().unwrap().id == "shop");
    let said = answered.api_response.clone().unwrap();
    assert_eq!((said.http_status, said.attempts), (Some(200), 1));
    let last =
        agent.records().into_iter().rfind(|record| record.entry.event.kind == EventType::ForwardAnswer);
    let explained = agent.keybearer(&["audit", "explain", &last.unwrap().seq.to_string()]);
    let explained = String::from_utf8(explained.stdout).unwrap();
    assert!(explained.contains(&format!("POST {}/entries", vault.url)), "{explained}");
    assert!(explained.contains("status 200"), "{explained}");
    agent.verify().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_token_or_key_is_in_the_memory_of_the_program() {
    // MT-11: the app never holds the key. The program is curl, in the middle of an answer.
    let vault = Vault::open().await;
    let agent = vault.agent();
    let head = "HTTP/1.1 200 x\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n";
    vault.will([Says::Pieces(vec![head, "0\r\n\r\n"], Arc::new(Notify::new()))]);
    let canary = "canary-of-the-program-itself";
    let mut curl = Command::new("curl");
    curl.args(["-sSN", "--http1.1", "--unix-socket"]).arg(agent.socket("http.sock"));
    curl.args([
        "-H",
        "keybearer: v1",
        "-H",
        &format!("x-mine: {canary}"),
        "http://keybearer/v1/forward/vault/x",
    ]);
    let Ok(mut program) = curl.stdout(std::process::Stdio::piped()).spawn() else {
        return skip("nothing_of_token_or_key_is_in_the_memory_of_the_program", "curl is not here");
    };
    program.stdout.as_mut().unwrap().read_exact(&mut [0; 5]).unwrap();
    let (key, token) =
        (agent.dir.path().join("state/keys/shop.client-certificate.pem"), vault.tokens().remove(0));
    let pem = fs::read_to_string(key).unwrap();
    let der = <rustls_pki_types::PrivatePkcs8KeyDer<'_> as rustls_pki_types::pem::PemObject>::from_pem_slice(
        pem.as_bytes(),
    );
    let der = der.unwrap().secret_pkcs8_der().to_vec();
    // The private number of a P-256 key in PKCS#8 (RFC 5915): an OCTET STRING of 32 bytes.
    let at = der.windows(2).position(|window| window == [4, 32]).unwrap() + 2;
    assert!(copies(program.id(), canary.as_bytes()) > 0, "the search finds what is there");
    for secret in [&der[at..at + 32], pem.lines().nth(1).unwrap().as_bytes(), &token.as_bytes()[20..60]] {
        assert_eq!(copies(program.id(), secret), 0);
    }
    program.kill().unwrap();
    program.wait().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_with_a_dpop_token_has_a_proof_of_its_own_and_the_nonce_that_the_api_wants() {
    // DPOP-06, DPOP-08, DPOP-09, DPOP-11, DPOP-12
    let issuer = issuer(300);
    let api = demo_api(&issuer);
    let setup = Setup::new(issuer.handle.url()).bound(&api.url);
    let agent = setup
        .with(
            "scope = [\"orders:read\", \"orders:write\"]",
            "scope = [\"orders:read\"]\nforward = \"allowed\"",
        )
        .start(Some(&issuer.handle));
    let socket = agent.socket("http.sock");
    for attempts in [2, 1, 1] {
        let (status, answer) = get(&socket, "/v1/forward/orders/orders?a=b");
        assert_eq!(status, 200, "{answer}");
        assert_eq!(body(&answer)["client_id"], "shop");
        assert!(!answer.to_lowercase().contains("dpop-nonce") && jwt_in(&answer).is_none(), "{answer}");
        let said = calls(&agent).pop().unwrap().api_response.unwrap();
        assert_eq!(said.attempts, attempts, "the nonce is asked for once, and remembered");
    }
    let sent: Vec<Entry> =
        calls(&agent).into_iter().filter(|entry| entry.event.kind == EventType::ForwardSend).collect();
    let mut proofs: Vec<_> =
        sent.iter().map(|entry| entry.target.clone().unwrap().jti_hash.unwrap()).collect();
    proofs.sort();
    proofs.dedup();
    assert_eq!(proofs.len(), 4, "no two attempts had the same proof");
    // What the API says of its own is handed on as it is.
    let (status, answer) = get(&socket, "/v1/forward/orders/nothing");
    assert_eq!(status, 404, "{answer}");
    assert!(!answer.contains("keybearer-error"), "{answer}");
    let (status, answer) = post(&socket, "/v1/forward/orders/orders", "");
    assert_eq!(status, 405, "{answer}");
    // Allowed is not only: the token can still be had.
    assert_eq!(get(&socket, "/v1/credentials/orders").0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_the_api_does_not_take_is_replaced_once() {
    // MT-09: one refresh, then success.
    let vault = Vault::open().await;
    let agent = vault.agent();
    let socket = agent.socket("http.sock");
    vault.will([invalid_token()]);
    let (status, answer) = post(&socket, "/v1/forward/vault/entries", "{\"amount\":1}");
    assert_eq!(status, 200, "{answer}");
    let seen = vault.diary();
    assert_eq!((seen.len(), vault.tokens().len()), (2, 2));
    assert_ne!(seen[0].token, seen[1].token);
    assert!(seen.iter().all(|seen| seen.is_bound && seen.body == (12, "{\"amount\":1}".into())), "{seen:?}");
    let (sent, answered): (Vec<Entry>, Vec<Entry>) =
        calls(&agent).into_iter().partition(|entry| entry.event.kind == EventType::ForwardSend);
    let hash = |entry: &Entry| entry.credential.clone().unwrap().token_hash.unwrap();
    assert_ne!(hash(&sent[0]), hash(&sent[1]), "each attempt is on record with its own token");
    assert_eq!((answered.len(), answered[0].api_response.clone().unwrap().attempts), (1, 2));
    // The rejected one is retired: the next call has the other.
    assert_eq!(get(&socket, "/v1/forward/vault/entries").0, 200);
    assert_eq!((vault.diary()[2].token.clone(), vault.tokens().len()), (seen[1].token.clone(), 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_that_takes_no_token_gets_two_calls_and_the_issuer_one_order() {
    // MT-09: then fail. TM-20: nor does a program that asks in a loop become our loop at the issuer.
    let vault = Vault::open().await;
    let agent = vault.agent();
    let socket = agent.socket("http.sock");
    vault.will((0..5).map(|_| invalid_token()));
    let (status, answer) = get(&socket, "/v1/forward/vault/entries");
    assert_eq!((status, body(&answer)["no"].as_bool()), (401, Some(true)), "the API's answer: {answer}");
    assert!(answer.contains("www-authenticate: Bearer realm=\"x\", error=\"invalid_token\""), "{answer}");
    assert_eq!((vault.diary().len(), vault.tokens().len()), (2, 2));
    for more in [3, 4, 5] {
        assert_eq!(get(&socket, "/v1/forward/vault/entries").0, 401);
        assert_eq!((vault.diary().len(), vault.tokens().len()), (more, 2));
    }
    // Other refusals are no reason to ask again.
    for (status, headers) in [
        (401, ""),
        (401, "www-authenticate: Bearer error=\"insufficient_scope\"\r\n"),
        (403, "www-authenticate: Bearer error=\"invalid_token\"\r\n"),
        (503, "retry-after: 3\r\n"),
    ] {
        let asked = vault.diary().len();
        vault.will([Says::Full(status, headers, "{}".into())]);
        assert_eq!(get(&socket, "/v1/forward/vault/entries").0, status);
        assert_eq!((vault.diary().len(), vault.tokens().len()), (asked + 1, 2), "{status} {headers}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_gives_a_rejected_token_back_and_gets_another_has_a_fresh_one() {
    // MT-09 for programs that call the API themselves: Release, then Get.
    let issuer = issuer(300);
    let agent = Setup::new(issuer.handle.url()).start(Some(&issuer.handle));
    let mut client = agent.client().await;
    let rejected = client.get("orders", &[]).await.unwrap();
    assert_eq!(client.get("orders", &[]).await.unwrap().fingerprint, rejected.fingerprint, "the control");
    assert!(client.release("orders", &[]).await.unwrap());
    let fresh = client.get("orders", &[]).await.unwrap();
    assert_ne!(fresh.fingerprint, rejected.fingerprint);
    assert_eq!(client.get("orders", &[]).await.unwrap().fingerprint, fresh.fingerprint);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_not_entitled_has_nothing_sent() {
    // DPOP-18, DPOP-19, DPOP-20, DPOP-21, ATT-27, ATT-28
    let vault = Vault::open().await;
    let uid = rustix::process::geteuid().as_raw();
    let other = format!("match = {{ uid = {} }}", uid + 4242);
    let more = "forward = \"only\"\n\n[identities.cart.certificate]\n[identities.cart.credentials.carts]\nissuer = \"dev\"\n\
                client_id = \"carts\"\nclient_auth = \"self_signed_tls_client_auth\"\nresource = \"https://orders.example\"\n\
                binding = \"mtls\"\nforward = \"only\"\n";
    let agent = vault.setup(&vault.url, more).also("cart", "interim", &other).start(None);
    let socket = agent.socket("http.sock");
    let ask = |line: &str, headers: &str| {
        http(&socket, &format!("{line} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}\r\n"))
    };
    let ours = "keybearer: v1\r\n";
    let elsewhere = format!("{ours}keybearer-origin: https://evil.example\r\n");
    let smuggled = format!("{ours}keybearer-origin: {}/x\r\n", vault.url);
    let user = format!("{ours}keybearer-origin: {}\r\n", vault.url.replace("https://", "https://me@"));
    let token = "POST /v1/forward/vault/token";
    for (line, headers, status, reason) in [
        // Another identity's credential, and one that nobody has, are answered alike.
        ("GET /v1/forward/carts/x", ours, 403, "NOT_ENTITLED"),
        ("GET /v1/forward/none/x", ours, 403, "NOT_ENTITLED"),
        // Nobody said that the agent may call with it.
        ("GET /v1/forward/orders/x", ours, 403, "FORWARD_NOT_ALLOWED"),
        ("GET /v1/forward/vault/x", "", 400, "INVALID_REQUEST"),
        ("GET /v1/forward/vault/x", "keybearer: v2\r\n", 400, "INVALID_REQUEST"),
        ("GET /v1/forward/vault/x", &elsewhere, 403, "HTU_NOT_ALLOWED"),
        ("GET /v1/forward/vault/x", &smuggled, 403, "HTU_NOT_ALLOWED"),
        ("GET /v1/forward/vault/x", &user, 403, "HTU_NOT_ALLOWED"),
        ("OPTIONS /v1/forward/vault/x", ours, 403, "HTM_NOT_ALLOWED"),
        ("TRACE /v1/forward/vault/x", ours, 403, "HTM_NOT_ALLOWED"),
        ("get /v1/forward/vault/x", ours, 403, "HTM_NOT_ALLOWED"),
        // The same host is the issuer, which would take the certificate for a client's.
        (token, ours, 403, "HTU_NOT_ALLOWED"),
        ("POST /v1/forward/vault/%74oken?x=y", ours, 403, "HTU_NOT_ALLOWED"),
        ("POST /v1/forward/vault/TOKEN/", ours, 403, "HTU_NOT_ALLOWED"),
        ("GET /v1/forward/No_Name/x", ours, 400, "INVALID_REQUEST"),
    ] {
        let (got, answer) = ask(line, headers);
        assert_eq!(
            (got, body(&answer)["error"].as_str()),
            (status, Some(reason)),
            "{line} {headers}: {answer}"
        );
        assert!(answer.contains(&format!("keybearer-error: {reason}")), "{answer}");
        assert!(body(&answer)["exchange"].is_string(), "on record: {answer}");
    }
    assert!(vault.diary().is_empty(), "{:?}", vault.diary());
    assert!(vault.tokens().len() <= 1, "nor was anything fetched for those who may not");
    assert_eq!(ask("GET /v1/forward/vault/x", ours).0, 200, "the control");
    let named = format!("{ours}keybearer-origin: {}\r\n", vault.url);
    assert_eq!(ask("GET /v1/forward/vault/x", &named).0, 200, "one of its origins may be named");
    let denied = agent
        .records()
        .into_iter()
        .map(|record| record.entry)
        .find(|entry| entry.event.reason.as_deref() == Some("HTU_NOT_ALLOWED"));
    assert_eq!(denied.unwrap().target.unwrap().path.as_deref(), Some("/x"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_that_could_lead_elsewhere_leads_nowhere() {
    // DPOP-19, DPOP-20, DPOP-27: on the wire, as an attacker would write it.
    let vault = Vault::open().await;
    let agent = vault.agent();
    let socket = agent.socket("http.sock");
    for target in [
        "/v1/forward/vault/..",
        "/v1/forward/vault/../token",
        "/v1/forward/vault/a/../../token",
        "/v1/forward/vault/%2e%2e/token",
        "/v1/forward/vault/%252e%252e/token",
        "/v1/forward/vault/..;/token",
        "/v1/forward/vault//token",
        "/v1/forward/vault//evil.example/x",
        "/v1/forward/vault/https://evil.example/x",
        "/v1/forward/vault/a%2f..%2ftoken",
        "/v1/forward/vault/a%5c..%5ctoken",
        "/v1/forward/vault/a%00",
        "/v1/forward/vault/a%0d%0ahost:%20evil.example",
        "/v1/forward/vault/%c0%ae%c0%ae/token",
        "/v1/forward/vault/a?access_token=x",
        "/v1/forward/../forward/vault/x",
        "/v1/forward//vault/x",
        "/v1/forward/vault@evil.example/x",
        "/v1/forward/vault%2f..%2fx/y",
        "http://evil.example/v1/forward/vault/x",
        "https://me:secret@evil.example/v1/forward/vault/x",
        "/v1/forward/",
        "/v1/forward",
        "/v1/./forward/vault/x",
        "/V1/forward/vault/x",
    ] {
        let (status, answer) = get(&socket, target);
        assert!(matches!(status, 400 | 404), "{target}: {answer}");
    }
    assert!(vault.diary().is_empty() && vault.tokens().is_empty(), "{:?}", vault.diary());
    // What is odd and clear goes on as it was written.
    for path in ["", "/", "/@evil.example/x", "/a%20b;v=1/?q=../x", "/%7Eme/100%25"] {
        assert_eq!(get(&socket, &format!("/v1/forward/vault{path}")).0, 200, "{path}");
        let line = vault.diary().pop().unwrap().line;
        assert_eq!(line, format!("GET {} HTTP/1.1", if path.is_empty() { "/" } else { path }));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn neither_end_hears_what_is_of_the_others_connection_or_who_else_might_call() {
    // MT-13, DPOP-06, DPOP-27, RFC 9110 7.6.1
    let vault = Vault::open().await;
    let agent = vault.agent();
    let socket = agent.socket("http.sock");
    vault.will([Says::Full(
        200,
        "set-cookie: session=canary\r\nconnection: x-hop\r\nx-hop: 1\r\nkeep-alive: timeout=5\r\nalt-svc: h3=\":1\"\r\n\
         dpop-nonce: canary\r\nkeybearer-exchange: forged\r\nkeybearer-error: forged\r\nproxy-authenticate: Basic\r\netag: \"7\"\r\n\
         x-theirs: 1\r\n",
        "{}".into(),
    )]);
    let headers = "authorization: Bearer stolen\r\ndpop: stolen\r\ncookie: a=b\r\nx-client-cert: forged\r\n\
                   x_client_cert: forged\r\nclient-cert: :forged:\r\nx-forwarded-for: 1.2.3.4\r\nforwarded: for=forged\r\n\
                   x-forwarded-client-cert: forged\r\nte: trailers\r\nupgrade: websocket\r\nproxy-authorization: Basic forged\r\n\
                   connection: close, x-mine-hop\r\nx-mine-hop: forged\r\nexpect: 100-continue\r\nkeep-alive: 1\r\n\
                   x-mine: kept\r\naccept: text/x-kept\r\nif-match: \"kept\"\r\n";
    let request =
        format!("GET /v1/forward/vault/x HTTP/1.1\r\nhost: evil.example\r\nkeybearer: v1\r\n{headers}\r\n");
    let (status, answer) = http(&socket, &request);
    assert_eq!(status, 200, "{answer}");
    let seen = vault.diary().pop().unwrap();
    for gone in
        ["stolen", "forged", "evil.example", "cookie", "keybearer:", "upgrade", "te:", "expect", "x-mine-hop"]
    {
        assert!(!seen.head.contains(gone), "{gone}: {}", seen.head);
    }
    let host = vault.url.trim_start_matches("https://");
    for kept in [
        "x-mine: kept",
        "accept: text/x-kept",
        "if-match: \"kept\"",
        "via: 1.1 keybearer",
        &format!("host: {host}"),
    ] {
        assert_eq!(seen.head.matches(kept).count(), 1, "{kept}: {}", seen.head);
    }
    assert_eq!(seen.head.matches("authorization:").count(), 1);
    let (head, _) = answer.split_once("\r\n\r\n").unwrap();
    let head = head.to_lowercase();
    for gone in
        ["set-cookie", "canary", "x-hop", "keep-alive", "alt-svc", "dpop-nonce", "forged", "proxy-auth"]
    {
        assert!(!head.contains(gone), "{gone}: {head}");
    }
    assert!(head.contains("etag: \"7\"") && head.contains("x-theirs: 1"), "{head}");
    assert_eq!(head.matches("keybearer-exchange: ").count(), 1, "ours");
    // Another method in disguise is refused, not mended.
    let disguised = "POST /v1/forward/vault/x HTTP/1.1\r\nhost: x\r\nkeybearer: v1\r\nx-http-method-override: DELETE\r\n\
                     content-length: 0\r\nconnection: close\r\n\r\n";
    assert_eq!(http(&socket, disguised).0, 400);
    assert_eq!(vault.diary().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_that_cannot_work_are_refused_with_their_key() {
    let vault = Vault::open().await;
    let refused = |api: &str, more: &str| {
        let setup = vault.setup(api, more);
        let path = setup.write();
        let output = Command::new(support::BINARY).args(["agent", "--config"]).arg(path).output().unwrap();
        assert_eq!(output.status.code(), Some(78), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    let http = vault.url.replace("https:", "http:");
    for (said, key) in [
        (refused(&vault.url, "forward = \"maybe\""), "credentials.vault.forward"),
        (refused(&vault.url, ""), "credentials.vault.api_ca_file"),
        (refused(&vault.url, "forward = \"only\"\nkey_export = \"allowed\""), "credentials.vault.forward"),
        (refused(&vault.url, "forward = \"only\"\napi_timeout = \"0s\""), "credentials.vault.api_timeout"),
        (refused(&http, "forward = \"only\""), "credentials.vault.origins"),
        (refused("https://a.example/x", "forward = \"only\""), "credentials.vault.origins"),
    ] {
        assert!(said.contains(key), "{key}: {said}");
    }
    let setup = vault.setup(&vault.url, "forward = \"only\"");
    let root = setup.dir.path().join("root.pem");
    let gone = setup.dir.path().join("gone.pem");
    let setup = setup.with(&format!("api_ca_file = {root:?}"), &format!("api_ca_file = {gone:?}"));
    let path = setup.write();
    let output = Command::new(support::BINARY).args(["agent", "--config"]).arg(path).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("credentials.vault") && said.contains("gone.pem"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn neither_token_nor_proof_nor_key_stands_in_an_answer_a_log_or_the_ledger() {
    // MT-11, AUD-05, PKJ-15
    let vault = Vault::open().await;
    let agent = vault.agent();
    let socket = agent.socket("http.sock");
    let mut said = String::new();
    vault.will([invalid_token(), Says::Full(200, "", "{}".into()), Says::HangUp]);
    for path in ["a?secret=canary-in-a-query", "b", "c/../d"] {
        said.push_str(&get(&socket, &format!("/v1/forward/vault/{path}")).1);
    }
    said.push_str(&post(&socket, "/v1/forward/vault/e", "canary-in-a-body").1);
    for arguments in [&["status", "--json"][..], &["audit", "tail", "--json", "-n", "1000"]] {
        said.push_str(&String::from_utf8(agent.keybearer(arguments).stdout).unwrap());
    }
    for file in fs::read_dir(agent.ledger()).unwrap() {
        said.push_str(&String::from_utf8_lossy(&fs::read(file.unwrap().path()).unwrap()));
    }
    let key = fs::read_to_string(agent.dir.path().join("state/keys/shop.client-certificate.pem")).unwrap();
    let (_, log) = agent.stop();
    assert!(log.contains("ready"), "the log was really captured, at TRACE");
    said.push_str(&log);
    assert_eq!(jwt_in(&said), None, "a JWT was said");
    let tokens = vault.tokens();
    assert_eq!(tokens.len(), 2);
    let secrets = tokens.iter().map(|token| &token[20..80]).chain([key.lines().nth(1).unwrap()]);
    for secret in secrets.chain(["canary-in-a-query", "canary-in-a-body"]) {
        assert!(!said.contains(secret), "{secret} was said");
    }
    assert!(
        said.contains("forward_send") && said.contains("/v1/forward") || said.contains("\"path\":\"/a\"")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn nonces_are_asked_for_once_and_no_more() {
    // DPOP-08, DPOP-09: an API that always wants another nonce gets two requests, and its last word is handed on.
    let issuer = issuer(300);
    let api = Scripted::listen();
    let agent = Setup::new(issuer.handle.url())
        .bound(&api.url)
        .with("origins = ", "forward = \"only\"\norigins = ")
        .start(Some(&issuer.handle));
    let socket = agent.socket("http.sock");
    let wants = |nonce: &str| {
        format!(
            "HTTP/1.1 401 x\r\nwww-authenticate: DPoP error=\"use_dpop_nonce\"\r\ndpop-nonce: {nonce}\r\n"
        )
    };
    let invalid = "HTTP/1.1 401 x\r\nwww-authenticate: DPoP error=\"invalid_token\"\r\n".to_owned();
    let fine = "HTTP/1.1 200 x\r\ndpop-nonce: six\r\n".to_owned();
    type Row<'a> = (&'a [String], u16, &'a [Option<&'a str>]);
    let rows: [Row<'_>; 6] = [
        (&[wants("one"), wants("two")], 401, &[None, Some("one")]),
        // What came with any answer is used next.
        (std::slice::from_ref(&fine), 200, &[Some("two")]),
        (&[wants("three"), invalid.clone(), fine.clone()], 200, &[Some("six"), Some("three"), Some("three")]),
        // Without a nonce that can be used, asking again is of no use.
        (&[wants("a b")], 401, &[Some("six")]),
        (&[wants("x\r\ndpop-nonce: y")], 401, &[Some("six")]),
        (
            &["HTTP/1.1 401 x\r\nwww-authenticate: Bearer error=\"use_dpop_nonce\"\r\n".to_owned()],
            401,
            &[Some("six")],
        ),
    ];
    for (answers, status, nonces) in rows {
        let before = api.proofs().len();
        api.will(answers);
        let (got, answer) = get(&socket, "/v1/forward/orders/x");
        assert_eq!(got, status, "{answer}");
        let proofs = api.proofs().split_off(before);
        let used: Vec<Option<&str>> = proofs.iter().map(|proof| proof["nonce"].as_str()).collect();
        assert_eq!(used, nonces, "{answers:?}");
        assert!(proofs.iter().all(|proof| proof["htm"] == "GET" && proof["htu"] == format!("{}/x", api.url)));
    }
    let mut jtis: Vec<String> = api.proofs().iter().map(|proof| proof["jti"].to_string()).collect();
    let all = jtis.len();
    jtis.sort();
    jtis.dedup();
    assert_eq!(jtis.len(), all, "DPOP-12: one proof, one attempt");
    let no = agent.client().await.get("orders", &[]).await.unwrap_err();
    assert_eq!(no.get_details_error_info().unwrap().reason, "FORWARD_ONLY");
    // Whoever may not have it may still see that it is there, and end it.
    let offered = agent.client().await.describe().await.unwrap().credentials;
    assert_eq!(offered.len(), 1);
    assert!(agent.client().await.release("orders", &[]).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_became_anothers_makes_no_call() {
    // ATT-16, DPOP-23: the attackers of E1, E3 and E10.
    let vault = Vault::open().await;
    let agent = vault.agent();
    let ask = |experiment: &str| {
        let mut command = Command::new(attacker(&agent));
        let output =
            command.arg(experiment).arg(agent.socket("http.sock")).arg("/v1/forward/vault/x").output();
        let said: Value = serde_json::from_slice(&output.unwrap().stdout).unwrap();
        assert_eq!(said["ran"], true, "{experiment}: {said}");
        said["answer"].as_str().unwrap().to_owned()
    };
    assert!(ask("honest").contains("\"ok\":true"), "the control");
    for experiment in ["E1", "E3", "E10"] {
        let answer = ask(experiment);
        assert!(!answer.contains("\"ok\":true"), "{experiment}: {answer}");
    }
    assert_eq!(vault.diary().len(), 1, "nothing was sent");
}

/// An API without TLS that says what it is told to say, and keeps the proofs that it was sent.
struct Scripted {
    url: String,
    book: Arc<std::sync::Mutex<(Vec<String>, Vec<Value>)>>,
}

impl Scripted {
    fn listen() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let book = Arc::<std::sync::Mutex<(Vec<String>, Vec<Value>)>>::default();
        let kept = Arc::clone(&book);
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let mut head = vec![];
                let mut byte = [0; 1];
                while !head.ends_with(b"\r\n\r\n") && stream.read_exact(&mut byte).is_ok() {
                    head.push(byte[0]);
                }
                let head = String::from_utf8(head).unwrap();
                let Some(proof) = head.lines().find_map(|line| line.strip_prefix("dpop: ")) else { continue };
                assert!(head.contains("authorization: DPoP "), "{head}");
                let claims = keybearer::jose::Unverified::parse(proof).unwrap().claims().unwrap();
                let mut book = kept.lock().unwrap();
                book.1.push(claims);
                let answer = book.0.remove(0);
                let _ = stream
                    .write_all(format!("{answer}content-length: 0\r\nconnection: close\r\n\r\n").as_bytes());
            }
        });
        Self { url, book }
    }

    fn will(&self, answers: &[String]) {
        self.book.lock().unwrap().0.extend_from_slice(answers);
    }

    fn proofs(&self) -> Vec<Value> {
        self.book.lock().unwrap().1.clone()
    }
}

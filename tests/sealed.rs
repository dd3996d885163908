//! Secrets that cannot be dynamic yet, on the real binary (S1, S34, S36, S46). In go what an operator puts in, crashes, a full disk,
//! copies; out comes the secret for whom the settings say so, for as long as they say so, and nowhere a byte of it that lies open.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "support/disk.rs"]
mod disk;
mod support;
#[path = "support/vault.rs"]
mod vault;

use std::{
    collections::BTreeSet,
    fs,
    hash::{BuildHasher as _, RandomState},
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::Arc,
    thread,
    time::Duration,
};

use disk::Disk;
use keybearer::{
    audit::EventType,
    proto::v1::{Credential, credential::Kind},
    shim,
};
use serde_json::Value;
use support::{BINARY, RESOURCE, Setup, TestAgent, body, copies, get, http, is_root, issuer, skip};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;
use vault::{Says, Vault, calls, invalid_token};

const KEY: &[u8] = b"a sealing key that is kept elsewhere, canary";
const CANARY: &str = "canary-of-a-password-7f3a";

/// When an exception ends, so many seconds from now.
fn until(seconds: i64) -> String {
    let now = keybearer::clock::SystemClock::shared().wall().as_second();
    jiff::Timestamp::from_second(now + seconds).unwrap().to_string()
}

/// A file with a sealing key, outside the state directory.
fn sealing_key(setup: &Setup) -> PathBuf {
    let directory = setup.dir.path().join("given");
    fs::create_dir_all(&directory).unwrap();
    let path = directory.join("keybearer.sealing-key");
    if !path.exists() {
        fs::write(&path, KEY).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
    }
    path
}

fn table(name: &str, fields: &str, more: &str) -> String {
    format!(
        "\n[identities.shop.credentials.{name}]\nkind = \"sealed\"\nfields = {fields}\nexception = {{ owner = \
         \"shop@example.com\", reason = \"the mail server knows no OAuth yet\", until = \"{}\" }}\n{more}\n",
        until(86_400)
    )
}

/// An agent with a sealing key, and the credential `smtp` with these fields.
fn setup(fields: &str, more: &str) -> Setup {
    with_key(Setup::new("http://127.0.0.1:9")).and(&table("smtp", fields, more))
}

fn with_key(setup: Setup) -> Setup {
    let key = sealing_key(&setup);
    setup.and(&format!("\n[keys]\nsealing_key = \"{}\"\n", key.display()))
}

/// `keybearer seal`, with this on its standard input.
fn seal(agent: &TestAgent, arguments: &[&str], text: &str) -> Output {
    let mut command = Command::new(BINARY);
    command.arg("seal").args(arguments).env("KEYBEARER_OPERATOR_SOCKET", agent.socket("operator.sock"));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // One that refuses its arguments reads nothing.
    let _ = child.stdin.take().unwrap().write_all(text.as_bytes());
    child.wait_with_output().unwrap()
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn sealed(agent: &TestAgent, arguments: &[&str], text: &str) -> String {
    let output = seal(agent, arguments, text);
    assert!(output.status.success(), "{}", said(&output));
    said(&output)
}

fn value(credential: &Credential, field: &str) -> String {
    let Some(Kind::StaticValues(sealed)) = &credential.kind else { panic!("not static: {credential:?}") };
    sealed.values[field].clone()
}

fn reason(no: &Status) -> String {
    no.get_details_error_info().unwrap().reason
}

/// Where `needle` lies open below a directory.
fn found(below: &Path, needle: &str) -> Vec<PathBuf> {
    let mut all = vec![];
    for entry in fs::read_dir(below).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(found(&path, needle));
        } else if fs::read(&path)
            .is_ok_and(|text| text.windows(needle.len()).any(|window| window == needle.as_bytes()))
        {
            all.push(path);
        }
    }
    all
}

fn records(agent: &TestAgent, kind: EventType) -> Vec<keybearer::audit::Entry> {
    let all = agent.records().into_iter().map(|record| record.entry);
    all.filter(|entry| entry.event.kind == kind).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_operator_puts_in_a_program_gets_and_nobody_else_ever_sees() {
    // S1, S36, AUD-05
    let agent = setup("[\"password\"]", "").start(None);
    let mut client = agent.client().await;
    let no = client.get("smtp", &[]).await.unwrap_err();
    assert_eq!((no.code(), reason(&no).as_str()), (Code::Unavailable, "SECRET_UNAVAILABLE"));
    let status = said(&agent.keybearer(&["status"]));
    assert!(status.contains("not there") && status.contains("keybearer seal shop smtp"), "{status}");

    let told = sealed(&agent, &["shop", "smtp"], &format!("{CANARY}\n"));
    let credential = client.get("smtp", &[]).await.unwrap();
    assert_eq!(value(&credential, "password"), CANARY, "at once, and without its line feed");
    assert!(told.contains(&credential.fingerprint), "{told}");
    assert_eq!((credential.binding.as_str(), credential.audience.as_str()), ("bearer", ""));
    let (status, answer) = get(&agent.socket("http.sock"), "/v1/credentials/smtp");
    assert_eq!((status, body(&answer)["static"].as_bool()), (200, Some(true)), "{answer}");
    assert_eq!(body(&answer)["values"]["password"], CANARY);
    let printed = agent.keybearer(&["get", "smtp", "--field", "password"]);
    assert_eq!(String::from_utf8_lossy(&printed.stdout), format!("{CANARY}\n"));

    // What there is, since when, until when, and what it would take.
    let status: Value = serde_json::from_slice(&agent.keybearer(&["status", "--json"]).stdout).unwrap();
    let listed = &status["sealed"][0];
    assert_eq!(listed["reason"], "the mail server knows no OAuth yet");
    assert_eq!((&listed["fields"][0], &listed["trouble"]), (&"password".into(), &"".into()));
    assert_eq!(listed["fingerprint"], credential.fingerprint);
    assert!(listed["since"].is_string() && listed["until"].is_string(), "{listed}");
    let status = said(&agent.keybearer(&["status"]));
    assert!(
        status.contains("static secrets")
            && status
                .lines()
                .any(|line| line.starts_with("  shop.smtp ") && line.contains(" a static secret ")),
        "{status}"
    );
    let keys = said(&agent.keybearer(&["keys", "list"]));
    assert!(keys.contains("sealed-values smtp") && keys.contains(&credential.fingerprint), "{keys}");

    // A watch hears of another, and of nothing else.
    let mut watch = client.watch("smtp", &[]).await.unwrap();
    let first = watch.message().await.unwrap().unwrap().credential.unwrap();
    assert_eq!(first.fingerprint, credential.fingerprint);
    let another = format!("{CANARY}-2");
    sealed(&agent, &["shop", "smtp"], &another);
    let second = watch.message().await.unwrap().unwrap().credential.unwrap();
    assert_eq!(value(&second, "password"), another);
    drop(watch);
    assert!(!client.release("smtp", &[]).await.unwrap(), "nobody can end it but where it is checked");
    assert_eq!(value(&client.get("smtp", &[]).await.unwrap(), "password"), another);

    // Who, what and when, never the value; and who had which.
    let entries = records(&agent, EventType::SecretSeal);
    assert_eq!(entries.len(), 2);
    let detail = entries[0].detail.clone().unwrap();
    for words in ["shop.smtp: password sealed", &credential.fingerprint, "uid ", "pid "] {
        assert!(detail.contains(words), "{words}: {detail}");
    }
    let issued = records(&agent, EventType::CredentialIssue);
    let part = issued[0].credential.clone().unwrap();
    assert_eq!(part.token_hash.as_deref(), Some(credential.fingerprint.as_str()));
    assert_eq!((part.kind.as_deref(), part.issuer.as_deref()), (Some("static_values"), Some("sealed")));

    let mut words = String::new();
    for arguments in [
        &["status"][..],
        &["status", "--json"],
        &["audit", "tail", "--json", "-n", "1000"],
        &["keys", "list"],
    ] {
        words.push_str(&said(&agent.keybearer(arguments)));
    }
    for file in ["cmdline", "environ"] {
        let text = fs::read(format!("/proc/{}/{file}", agent.pid())).unwrap_or_default();
        words.push_str(&String::from_utf8_lossy(&text));
    }
    words.push_str(&told);
    agent.verify().unwrap();
    let dir = Arc::clone(&agent.dir);
    let (_, log) = agent.stop();
    assert!(log.contains("ready"), "the log was really captured, at TRACE");
    words.push_str(&log);
    assert!(!words.contains(CANARY), "the secret was said");
    assert_eq!(found(dir.path(), CANARY), Vec::<PathBuf>::new());
    fs::write(dir.path().join("run-it-again"), CANARY).unwrap();
    assert_eq!(found(dir.path(), CANARY).len(), 1, "the search finds what is there");

    // Over a restart it is there still, and the same.
    let agent = TestAgent::start(dir);
    let kept = agent.client().await.get("smtp", &[]).await.unwrap();
    assert_eq!((value(&kept, "password"), kept.fingerprint), (another, second.fingerprint));
    let mut client = agent.client().await;
    let mut watch = client.watch("smtp", &[]).await.unwrap();
    watch.message().await.unwrap().unwrap();
    let told = sealed(&agent, &["shop", "smtp", "--remove"], "");
    assert!(told.contains("it is good there still"), "{told}");
    let no = client.get("smtp", &[]).await.unwrap_err();
    assert_eq!(reason(&no), "SECRET_UNAVAILABLE");
    assert_eq!(fs::read_dir(agent.dir.path().join("state/sealed")).unwrap().count(), 0);
    // Whoever watches waits for what comes in its place.
    sealed(&agent, &["shop", "smtp"], "the next");
    let next = tokio::time::timeout(Duration::from_secs(20), watch.message()).await.expect("it is told");
    assert_eq!(value(&next.unwrap().unwrap().credential.unwrap(), "password"), "the next");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_put_in_wrongly_is_told_and_what_was_there_stays() {
    // S1
    let agent = setup("[\"username\", \"password\"]", "").and(&table("key", "[\"key\"]", "")).start(None);
    let mut client = agent.client().await;
    let both = format!("{{\"username\": \"postman\", \"password\": \"{CANARY}\"}}");
    let told = said(&seal(&agent, &["shop", "smtp", "--field", "password"], CANARY));
    assert!(told.contains("shop.smtp: there is no username yet"), "{told}");
    sealed(&agent, &["shop", "smtp", "--json"], &both);
    // One of several leaves the others.
    sealed(&agent, &["shop", "smtp", "--field", "username"], "p\u{f6}stman");
    let credential = client.get("smtp", &[]).await.unwrap();
    assert_eq!(
        (value(&credential, "username"), value(&credential, "password")),
        ("p\u{f6}stman".into(), CANARY.into())
    );

    let long = "x".repeat(17 << 10);
    let longer = "x".repeat(49 << 10);
    let number = format!("{{\"username\": 7, \"password\": \"{CANARY}\"}}");
    for (arguments, text, code, what) in [
        (&["shop", "smtp"][..], CANARY, 65, "shop.smtp has the fields username, password: say which"),
        (
            &["shop", "smtp", "--field", CANARY],
            "x",
            65,
            "shop.smtp has the fields username, password: say which",
        ),
        (&["shop", "smtp", "--field", "password"], "", 65, "holds no secret"),
        (&["shop", "smtp", "--field", "password"], "\n", 65, "holds no secret"),
        (&["shop", "smtp", "--field", "password"], "a\0b", 65, "password has a NUL byte"),
        (&["shop", "smtp", "--field", "password"], &long, 65, "password is longer than 16 KiB"),
        (&["shop", "smtp", "--field", "password"], &longer, 65, "longer than any secret"),
        (&["shop", "smtp", "--json"], CANARY, 65, "no JSON object of texts"),
        (&["shop", "smtp", "--json"], &number, 65, "no JSON object of texts"),
        (&["shop", "smtp", "--json"], "{}", 65, "has no values"),
        (&["shop", "orders"], "x", 65, "shop.orders is made by the issuer dev"),
        (&["shop", "none"], "x", 65, "shop has no credential none: it has key, orders, smtp"),
        (&["none", "smtp"], "x", 65, "there is no identity none"),
        (&["shop", "../smtp"], "x", 64, "a name is 1 to 63"),
        (&["shop", "none", "--remove"], "", 65, "shop.none: nothing is sealed for it"),
        // What stands on a command line, everybody can read.
        (&["shop", "smtp", CANARY], "", 64, "unexpected argument"),
    ] {
        let output = seal(&agent, arguments, text);
        let told = said(&output);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {told}");
        assert!(told.contains(what), "{what}: {told}");
        let repeats = told.contains(CANARY) && code != 64;
        assert!(!repeats && !told.contains("xx"), "{told}");
    }
    let raw = {
        let mut command = Command::new(BINARY);
        command.args(["seal", "shop", "key"]).env("KEYBEARER_OPERATOR_SOCKET", agent.socket("operator.sock"));
        let mut child = command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(&[0xff, 0xfe]).unwrap();
        said(&child.wait_with_output().unwrap())
    };
    assert!(raw.contains("key is no UTF-8: write it in base64"), "{raw}");
    let credential = client.get("smtp", &[]).await.unwrap();
    assert_eq!(value(&credential, "password"), CANARY);
    let failed = records(&agent, EventType::SecretSeal);
    let failed = failed.iter().filter(|entry| entry.event.outcome == keybearer::audit::Outcome::Failed);
    assert!(failed.count() >= 8, "what could not be done is on record too");
    assert_eq!(found(agent.dir.path(), CANARY), Vec::<PathBuf>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_sealing_key_it_does_not_load() {
    // S1
    let plain = Setup::new("http://127.0.0.1:9").and(&table("smtp", "[\"password\"]", ""));
    let run = || {
        let line = ["20", BINARY, "agent", "--config"];
        Command::new("timeout").args(line).arg(plain.write()).stdin(Stdio::null()).output().unwrap()
    };
    let told = run();
    assert_eq!(told.status.code(), Some(78), "{}", said(&told));
    for words in ["shop.smtp: keys.sealed: ", "systemd-creds", "keys.sealing_key"] {
        assert!(said(&told).contains(words), "{}", said(&told));
    }
    let checked = Command::new(BINARY).arg("check").arg(plain.write()).output().unwrap();
    assert!(said(&checked).contains("it does not start: kind = \"sealed\" needs one"), "{}", said(&checked));
    // Nor is it taken up by a reload: the settings before stay.
    let bare = Setup::new("http://127.0.0.1:9");
    let agent = bare.start(None);
    let config = agent.dir.path().join("agent.toml");
    let before = fs::read_to_string(&config).unwrap();
    fs::write(&config, before + &table("smtp", "[\"password\"]", "")).unwrap();
    let told = agent.keybearer(&["reload"]);
    assert!(!told.status.success() && said(&told).contains("shop.smtp: keys.sealed: "), "{}", said(&told));
    assert_eq!(get(&agent.socket("http.sock"), "/v1/credentials/smtp").0, 403);
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_denied_when_its_exception_is_over_and_told_before() {
    // S36
    let ended = table("old", "[\"key\"]", "").replace(&until(86_400)[..13], &until(-86_400)[..13]);
    let soon = table("soon", "[\"key\"]", "");
    let ends = format!("until = \"{}\"", until(40));
    let soon = soon.split("until = ").next().unwrap().to_owned() + &ends + " }\n";
    let agent = with_key(Setup::new("http://127.0.0.1:9")).and(&ended).and(&soon).start(None);
    for name in ["old", "soon"] {
        sealed(&agent, &["shop", name], CANARY);
    }
    let mut client = agent.client().await;
    let no = client.get("old", &[]).await.unwrap_err();
    assert_eq!((no.code(), reason(&no).as_str()), (Code::PermissionDenied, "NOT_ENTITLED"));
    let denial = records(&agent, EventType::Denial).pop().unwrap();
    assert_eq!(denial.event.reason.as_deref(), Some("EXCEPTION_EXPIRED"));
    // Nothing that is handed out outlives it.
    let credential = client.get("soon", &[]).await.unwrap();
    let left = credential.expires_in.unwrap().seconds;
    assert!((1..=40).contains(&left), "{left}");
    let ending = records(&agent, EventType::ExceptionEnding);
    let told = |name: &str| {
        let words = format!("shop.{name} is a static secret until");
        ending.iter().any(|entry| entry.detail.as_ref().unwrap().contains(&words))
    };
    assert!(told("old") && told("soon"), "{ending:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_calls_an_api_and_never_sees_its_key_and_goes_on_unchanged_when_there_is_none_any_more() {
    // S46, MT-13
    let api = Vault::open().await;
    let root = |setup: &Setup| {
        let root = setup.dir.path().join("root.pem");
        fs::write(&root, &api.root).unwrap();
        root
    };
    let bare = with_key(Setup::new(&api.url));
    let root = root(&bare);
    let carried = |name: &str, forward_as: &str| {
        let more = format!(
            "forward = \"only\"\nforward_as = {forward_as:?}\norigins = [\"{}\"]\napi_ca_file = {root:?}",
            api.url
        );
        let fields = if name == "basic" { "[\"username\", \"password\"]" } else { "[\"key\"]" };
        table(name, fields, &more)
    };
    let setup = bare
        .with("dev = true", &format!("ca_file = {root:?}"))
        .and(&carried("vault", "X-Api-Key: {key}"))
        .and(&carried("bearer", "Authorization: Bearer {key}"))
        .and(&carried("basic", "Authorization: Basic {username}:{password}"));
    let agent = setup.start(None);
    sealed(&agent, &["shop", "vault"], CANARY);
    sealed(&agent, &["shop", "bearer"], CANARY);
    sealed(
        &agent,
        &["shop", "basic", "--json"],
        "{\"username\": \"Aladdin\", \"password\": \"open sesame\"}",
    );
    // What no header can carry is refused where somebody reads why.
    let told = said(&seal(&agent, &["shop", "vault"], "two\nlines"));
    assert!(told.contains("shop.vault: key has a control character in it"), "{told}");
    let told = said(&seal(&agent, &["shop", "basic", "--field", "username"], "a:b"));
    assert!(told.contains("has a colon in it"), "{told}");

    let socket = agent.socket("http.sock");
    let ask = |name: &str, more: &str| {
        let head = "HTTP/1.1\r\nhost: x\r\nkeybearer: v1\r\nconnection: close\r\n";
        http(&socket, &format!("GET /v1/forward/{name}/entries?page=2 {head}{more}\r\n"))
    };
    let theirs = "x-api-key: mine\r\nX_Api_Key: mine\r\nauthorization: Bearer mine\r\naccept: */*\r\n";
    let (status, answer) = ask("vault", theirs);
    assert_eq!((status, body(&answer)["ok"].as_bool()), (200, Some(true)), "{answer}");
    let (status, other) = ask("bearer", theirs);
    assert_eq!(status, 200, "{other}");
    assert_eq!(ask("basic", "").0, 200);
    let seen = api.diary();
    assert_eq!(seen[0].line, "GET /entries?page=2 HTTP/1.1");
    assert!(
        seen[0].head.contains(&format!("x-api-key: {CANARY}")) && !seen[0].head.contains("mine"),
        "{seen:?}"
    );
    assert!(!seen[0].head.contains("authorization"), "{seen:?}");
    assert!(seen[1].head.contains(&format!("authorization: bearer {CANARY}")), "{seen:?}");
    assert_eq!(seen[2].token, "QWxhZGRpbjpvcGVuIHNlc2FtZQ==");

    // That is all there is of it: neither the secret nor proofs.
    let mut client = agent.client().await;
    let mut words = format!("{answer}{other}");
    let got = client.get("vault", &[]).await.unwrap_err();
    let watched = match client.watch("vault", &[]).await {
        Ok(mut stream) => stream.message().await.unwrap_err(),
        Err(no) => no,
    };
    let names = BTreeSet::from(["vault".into()]);
    let fetched = shim::fetch(&agent.socket("agent.sock"), &names, Duration::from_secs(5)).await.unwrap_err();
    for no in [&got, &watched] {
        assert_eq!((no.code(), reason(no).as_str()), (Code::PermissionDenied, "FORWARD_ONLY"), "{no}");
        words.push_str(&format!("{no:?}"));
    }
    assert!(fetched.to_string().starts_with("vault: "), "{fetched}");
    let (status, refused) = get(&socket, "/v1/credentials/vault");
    assert_eq!((status, body(&refused)["error"].as_str()), (403, Some("FORWARD_ONLY")), "{refused}");
    let printed = said(&agent.keybearer(&["get", "vault", "--field", "key"]));
    assert!(printed.contains("FORWARD_ONLY"), "{printed}");
    words.push_str(&format!("{refused}{printed}{fetched:?}"));

    // An API that does not take it hears it once: a second time is one more failed login.
    let asked = api.diary().len();
    api.will([invalid_token()]);
    assert_eq!(ask("vault", "").0, 401);
    assert_eq!(api.diary().len(), asked + 1);
    // Nor does it go anywhere else.
    let elsewhere = ask("vault", "keybearer-origin: https://evil.example\r\n");
    assert_eq!(elsewhere.0, 403, "{}", elsewhere.1);
    assert_eq!(api.diary().len(), asked + 1);
    let sent = calls(&agent).into_iter().find(|entry| entry.event.kind == EventType::ForwardSend).unwrap();
    let part = sent.credential.clone().unwrap();
    assert_eq!(part.kind.as_deref(), Some("static_values"));
    for arguments in [&["status"][..], &["audit", "tail", "--json", "-n", "1000"]] {
        words.push_str(&said(&agent.keybearer(arguments)));
    }

    // The day has come: the same request, and what proves it is a token that is bound to a certificate.
    let config = agent.dir.path().join("agent.toml");
    let text = fs::read_to_string(&config).unwrap();
    let before = carried("vault", "X-Api-Key: {key}");
    // The dates of both tables are those of their making.
    let head = before.split("until").next().unwrap();
    let at = text.find(head).unwrap();
    let end = at + text[at..].find("api_ca_file").unwrap();
    let dynamic = format!(
        "\n[identities.shop.certificate]\n\n[identities.shop.credentials.vault]\nissuer = \"dev\"\nclient_id = \"shop-mtls\"\n\
         client_auth = \"self_signed_tls_client_auth\"\nresource = \"{RESOURCE}\"\nscope = [\"orders:read\"]\nbinding = \"mtls\"\n\
         forward = \"only\"\norigins = [\"{}\"]\n",
        api.url
    );
    fs::write(&config, format!("{}{dynamic}{}", &text[..at], &text[end..])).unwrap();
    let told = agent.keybearer(&["reload"]);
    assert!(told.status.success(), "{}", said(&told));
    let (status, answer) = ask("vault", theirs);
    assert_eq!((status, body(&answer)["ok"].as_bool()), (200, Some(true)), "{answer}");
    let last = api.diary().pop().unwrap();
    assert!(last.is_bound && !last.head.contains(CANARY), "{last:?}");
    // What was sealed is left, and told of, until somebody takes it away.
    let status = said(&agent.keybearer(&["status"]));
    assert!(status.contains("keybearer seal shop vault --remove"), "{status}");
    sealed(&agent, &["shop", "vault", "--remove"], "");
    assert!(!said(&agent.keybearer(&["status"])).contains("--remove"));
    let dir = Arc::clone(&agent.dir);
    words.push_str(&agent.stop().1);
    assert!(!words.contains(CANARY), "the secret was said");
    assert_eq!(found(dir.path(), CANARY), Vec::<PathBuf>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_it_is_in_the_memory_of_the_program_whose_calls_carry_it() {
    // S46. The program is curl, in the middle of an answer.
    let api = Vault::open().await;
    let bare = with_key(Setup::new("http://127.0.0.1:9"));
    let root = bare.dir.path().join("root.pem");
    fs::write(&root, &api.root).unwrap();
    let more = format!(
        "forward = \"only\"\nforward_as = \"X-Api-Key: {{key}}\"\norigins = [\"{}\"]\napi_ca_file = {root:?}",
        api.url
    );
    let agent = bare.and(&table("partner", "[\"key\"]", &more)).start(None);
    sealed(&agent, &["shop", "partner"], CANARY);
    let head = "HTTP/1.1 200 x\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n";
    api.will([Says::Pieces(vec![head, "0\r\n\r\n"], Arc::default())]);
    let mine = "canary-of-the-program-itself";
    let mut curl = Command::new("curl");
    curl.args(["-sSN", "--http1.1", "-H", "keybearer: v1", "-H", &format!("x-mine: {mine}")]);
    curl.arg("--unix-socket").arg(agent.socket("http.sock")).arg("http://keybearer/v1/forward/partner/x");
    let Ok(mut program) = curl.stdout(Stdio::piped()).spawn() else {
        return skip(
            "nothing_of_it_is_in_the_memory_of_the_program_whose_calls_carry_it",
            "curl is not here",
        );
    };
    std::io::Read::read_exact(program.stdout.as_mut().unwrap(), &mut [0; 5]).unwrap();
    assert!(api.diary()[0].head.contains(&format!("x-api-key: {CANARY}")));
    assert!(copies(program.id(), mine.as_bytes()) > 0, "the search finds what is there");
    assert_eq!(copies(program.id(), CANARY.as_bytes()), 0);
    program.kill().unwrap();
    program.wait().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_reads_the_same_name_when_an_issuer_takes_its_place() {
    // S46
    let issuer = issuer(300);
    let deliver = "\n[identities.shop.deliver]\nenv = { API_TOKEN = \"orders.token\" }\n";
    let dynamic = with_key(Setup::new(issuer.handle.url())).and(deliver);
    let config = dynamic.write();
    support::register(&issuer.handle, &config);
    let text = fs::read_to_string(&config).unwrap();
    let (head, rest) = text.split_once("\n[identities.shop.credentials.orders]").unwrap();
    let (_, rest) = rest.split_once("\n\n").unwrap_or(("", ""));
    fs::write(&config, format!("{head}{}\n{rest}", table("orders", "[\"token\"]", ""))).unwrap();
    let agent = TestAgent::start(Arc::clone(&dynamic.dir));
    sealed(&agent, &["shop", "orders"], CANARY);
    let socket = agent.socket("agent.sock");
    let within = Duration::from_secs(10);
    // As `keybearer exec` and its like do: what is declared, and its value.
    let program = async || {
        let delivery = shim::declared(&socket, within).await.unwrap();
        let source = delivery.env.values().next().unwrap().clone();
        let names = BTreeSet::from([Arc::clone(&source.credential)]);
        let fetched = shim::fetch(&socket, &names, within).await.unwrap();
        fetched.value(&source).unwrap().expose_str().unwrap().to_owned()
    };
    let shell = || {
        let output = agent.keybearer(&["get", "orders", "--field", "token"]);
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    assert_eq!((program().await, shell()), (CANARY.into(), CANARY.into()));
    fs::write(&config, &text).unwrap();
    let told = agent.keybearer(&["reload"]);
    assert!(told.status.success(), "{}", said(&told));
    let token = program().await;
    assert!(token.starts_with("eyJ"), "the same program has an access token now");
    assert_eq!(shell(), token);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_service_manager_keeps_is_read_where_it_puts_it() {
    // S1
    let setup = Setup::new("http://127.0.0.1:9").and(&table(
        "smtp",
        "[\"password\"]",
        "systemd_credential = \"smtp-password\"",
    ));
    // No sealing key: the service manager has its own.
    let config = setup.write();
    let directory = setup.dir.path().join("given");
    fs::create_dir_all(&directory).unwrap();
    let give = |text: &str| {
        let path = directory.join("smtp-password");
        let _ = fs::remove_file(&path);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
    };
    let variable = format!("CREDENTIALS_DIRECTORY={}", directory.display());
    let told = Command::new("timeout")
        .args(["20", "env", &variable, BINARY, "agent", "--config"])
        .arg(&config)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(told.status.code(), Some(78), "{}", said(&told));
    assert!(
        said(&told).contains("shop.smtp: ") && said(&told).contains("LoadCredentialEncrypted=smtp-password")
    );
    give(&format!("{CANARY}\n"));
    let agent = TestAgent::start_under(Arc::clone(&setup.dir), &["env", &variable]);
    let mut client = agent.client().await;
    assert_eq!(value(&client.get("smtp", &[]).await.unwrap(), "password"), CANARY);
    // `seal` is not its way.
    let told = said(&seal(&agent, &["shop", "smtp"], "x"));
    assert!(told.contains("is kept by the service manager, as smtp-password"), "{told}");
    // It is read anew each time that it is issued.
    give("another");
    assert!(!client.release("smtp", &[]).await.unwrap());
    assert_eq!(value(&client.get("smtp", &[]).await.unwrap(), "password"), "another");
    let status = said(&agent.keybearer(&["status"]));
    assert!(status.contains("systemd credential smtp-password"), "{status}");
    assert!(!agent.dir.path().join("state/sealed").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_opens_for_no_other_credential_and_on_no_other_machine() {
    // S1, S9, TM-14
    let fields = "[\"password\"]";
    let cart = table("smtp", fields, "").replace("shop.", "cart.");
    let setup = setup(fields, "")
        .and(&table("imap", fields, ""))
        .also("cart", "interim", "match = { uid = 65533 }")
        .and(&cart);
    let agent = setup.start(None);
    sealed(&agent, &["shop", "smtp"], CANARY);
    let home = agent.dir.path().join("state/sealed");
    let kept = fs::read(home.join("shop.smtp.sealed")).unwrap();
    for name in ["shop.imap.sealed", "cart.smtp.sealed"] {
        fs::write(home.join(name), &kept).unwrap();
        fs::set_permissions(home.join(name), fs::Permissions::from_mode(0o600)).unwrap();
    }
    let no = agent.client().await.get("imap", &[]).await.unwrap_err();
    assert_eq!(reason(&no), "SECRET_UNAVAILABLE");
    let failed = records(&agent, EventType::IssueFailure).pop().unwrap();
    let detail = failed.detail.unwrap();
    assert!(detail.contains("shop.imap: ") && detail.contains("does not open"), "{detail}");
    assert!(agent.keybearer(&["reload"]).status.success());
    let status = said(&agent.keybearer(&["status"]));
    assert!(status.contains("cart.smtp: ") && status.contains("keybearer seal cart smtp"), "{status}");
    agent.stop();

    let name = "a_copy_opens_for_no_other_credential_and_on_no_other_machine (another machine)";
    if !is_root() || !Path::new("/etc/machine-id").exists() {
        return skip(name, "only root can give a process another /etc/machine-id");
    }
    let fake = setup.dir.path().join("machine-id");
    let script = format!("mount --bind {} /etc/machine-id && exec \"$0\" \"$@\"", fake.display());
    let elsewhere = ["unshare", "--mount", "sh", "-c", &script];
    fs::write(&fake, "fedcba9876543210fedcba9876543210\n").unwrap();
    let adopt = |line: &[&str]| {
        let mut command = Command::new(elsewhere[0]);
        command.args(&elsewhere[1..]).args(line).arg("--config").arg(setup.dir.path().join("agent.toml"));
        command.stdin(Stdio::null()).output().unwrap()
    };
    let machine = setup.dir.path().join("state/machine");
    // Whoever copies this one file into another host's state directory, with the sealing key of both.
    let whose = fs::read(&machine).unwrap();
    fs::remove_file(&machine).unwrap();
    if !adopt(&["true"]).status.success() {
        return skip(name, "no mount namespace here");
    }
    let agent = TestAgent::start_under(Arc::clone(&setup.dir), &elsewhere);
    let no = agent.client().await.get("smtp", &[]).await.unwrap_err();
    assert_eq!(reason(&no), "SECRET_UNAVAILABLE");
    let detail = records(&agent, EventType::IssueFailure).pop().unwrap().detail.unwrap();
    assert!(detail.contains("was sealed on another machine"), "{detail}");
    agent.stop();
    // An operator who says that the directory is this machine's says it of all that is in it.
    fs::write(&machine, whose).unwrap();
    let adopted = adopt(&[BINARY, "keys", "adopt"]);
    assert!(adopted.status.success(), "{}", said(&adopted));
    let agent = TestAgent::start_under(Arc::clone(&setup.dir), &elsewhere);
    assert_eq!(value(&agent.client().await.get("smtp", &[]).await.unwrap(), "password"), CANARY);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_sealing_key_takes_the_place_of_the_one_before() {
    // K57-6: as agent.toml.example has it, at the start.
    let setup = setup("[\"password\"]", "");
    let agent = setup.start(None);
    sealed(&agent, &["shop", "smtp"], CANARY);
    let before = agent.client().await.get("smtp", &[]).await.unwrap().fingerprint;
    agent.stop();
    let given = sealing_key(&setup);
    fs::rename(&given, given.with_extension("old")).unwrap();
    fs::write(&given, b"the sealing key of another year, which is longer").unwrap();
    fs::set_permissions(&given, fs::Permissions::from_mode(0o400)).unwrap();
    let old = given.with_extension("old").display().to_string();
    let both = setup.with("[keys]\n", &format!("[keys]\nold_sealing_key = \"{old}\"\n"));
    both.start(None).stop();
    let setup = both.with(&format!("old_sealing_key = \"{old}\"\n"), "");
    let after = setup.start(None).client().await.get("smtp", &[]).await.unwrap();
    assert_eq!((value(&after, "password"), after.fingerprint), (CANARY.into(), before));
}

#[tokio::test(flavor = "multi_thread")]
async fn under_load_another_secret_takes_its_place_and_nobody_goes_without() {
    // S34
    let agent = setup("[\"password\"]", "").start(None);
    sealed(&agent, &["shop", "smtp"], "secret-0");
    let mut client = agent.client().await;
    let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
    let load = tokio::spawn(async move {
        let mut seen = vec![];
        while stopped.try_recv().is_err() {
            seen.push(value(&client.get("smtp", &[]).await.unwrap(), "password"));
        }
        seen
    });
    let agent = vault::apart(move || {
        for round in 1..=10 {
            sealed(&agent, &["shop", "smtp"], &format!("secret-{round}"));
        }
        agent
    })
    .await;
    assert_eq!(value(&agent.client().await.get("smtp", &[]).await.unwrap(), "password"), "secret-10");
    stop.send(()).unwrap();
    let seen = load.await.unwrap();
    assert!(seen.len() > 10, "{}", seen.len());
    let mut in_order = seen.clone();
    in_order.sort_by_key(|secret| secret.trim_start_matches("secret-").parse::<u32>().unwrap());
    assert_eq!(seen, in_order, "none comes back once another was there");
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_another_is_sealed_it_has_the_one_or_the_other() {
    // S1, S34
    let setup = setup("[\"password\"]", "");
    let mut agent = setup.start(None);
    sealed(&agent, &["shop", "smtp"], "secret-0");
    let (mut last, mut changed) = (0, 0);
    for round in 1..=20 {
        let mut order = Command::new(BINARY)
            .args(["seal", "shop", "smtp"])
            .env("KEYBEARER_OPERATOR_SOCKET", agent.socket("operator.sock"))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let _ = order.stdin.take().unwrap().write_all(format!("secret-{round}").as_bytes());
        // The moment is the point: nothing can be awaited that would not make it less random.
        thread::sleep(Duration::from_micros(RandomState::new().hash_one(()) % 30_000));
        agent.kill();
        let told = order.wait().unwrap();
        agent = TestAgent::start(Arc::clone(&setup.dir));
        let now = value(&agent.client().await.get("smtp", &[]).await.unwrap(), "password");
        let now: u32 = now.strip_prefix("secret-").unwrap().parse().unwrap();
        assert!(now == last || now == round, "round {round}: {now}, and {last} before");
        assert!(!told.success() || now == round, "what was confirmed is there");
        changed += usize::from(now == round);
        last = now;
    }
    println!("{changed} of 20 were sealed before the end");
    let home = setup.dir.path().join("state/sealed");
    sealed(&agent, &["shop", "smtp"], "secret-21");
    assert_eq!(fs::read_dir(home).unwrap().count(), 1, "nothing half done is left");
    agent.verify().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_costs_no_secret() {
    // S1
    let name = "a_full_disk_costs_no_secret";
    if !is_root() {
        return skip(name, "only root can mount a small disk");
    }
    let setup = setup("[\"password\"]", "");
    let home = setup.dir.path().join("state/sealed");
    let Some(disk) = Disk::mount(&home) else {
        return skip(name, "a tmpfs cannot be mounted here");
    };
    let agent = setup.start(None);
    sealed(&agent, &["shop", "smtp"], CANARY);
    disk.fill();
    let long = "x".repeat(16 << 10);
    let output = seal(&agent, &["shop", "smtp"], &long);
    let told = said(&output);
    assert_eq!(output.status.code(), Some(65), "{told}");
    for words in ["shop.smtp: ", "No space left", "what was sealed before stays"] {
        assert!(told.contains(words), "{told}");
    }
    assert_eq!(value(&agent.client().await.get("smtp", &[]).await.unwrap(), "password"), CANARY);
    let left: Vec<_> = fs::read_dir(&home).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().ends_with(".new")), "{left:?}");
    disk.clear();
    sealed(&agent, &["shop", "smtp"], &long);
    assert_eq!(value(&agent.client().await.get("smtp", &[]).await.unwrap(), "password"), long);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_typed_on_a_terminal_is_not_shown() {
    // S1
    let agent = setup("[\"password\"]", "").start(None);
    let line = format!(
        "{BINARY} seal shop smtp --socket {}; stty -a | grep -o -E -- '-?echo\\b'",
        agent.socket("operator.sock").display()
    );
    let mut command = Command::new("script");
    command.args(["-q", "-e", "-c", &line, "/dev/null"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let Ok(mut script) = command.spawn() else {
        return skip("what_is_typed_on_a_terminal_is_not_shown", "script, of util-linux, is not here");
    };
    let mut screen = String::new();
    let mut shown = script.stdout.take().unwrap();
    // Whoever types waits for the question.
    while !screen.contains("not shown): ") {
        let mut some = [0; 256];
        let read = std::io::Read::read(&mut shown, &mut some).unwrap();
        assert!(read > 0, "{screen}");
        screen.push_str(&String::from_utf8_lossy(&some[..read]));
    }
    let mut keyboard = script.stdin.take().unwrap();
    keyboard.write_all(format!("{CANARY}\n").as_bytes()).unwrap();
    std::io::Read::read_to_string(&mut shown, &mut screen).unwrap();
    drop(keyboard);
    script.wait().unwrap();
    assert!(screen.contains("password sealed"), "{screen}");
    assert!(!screen.contains(CANARY), "{screen}");
    assert!(screen.trim_end().ends_with("echo") && !screen.contains("-echo"), "it is as it was: {screen}");
    assert_eq!(value(&agent.client().await.get("smtp", &[]).await.unwrap(), "password"), CANARY);
}

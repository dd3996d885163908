//! No secret in any log line, error, record, listing, file or dump: a running agent at its most talkative is searched for what
//! it must never say, in every form it could say it in (PKJ-15, AUD-05, BCP-04, KEY-02). That the search finds what is there is
//! shown where it belongs.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "support/scripted.rs"]
mod scripted;
mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose};
use keybearer::{dev::Fault, proto::v1::credential::Kind};
use scripted::{Says, Scripted, token};
use support::{Setup, TestAgent, copies, get, is_root, issuer, jwt_in, skip};

#[tokio::test(flavor = "multi_thread")]
async fn a_talkative_agent_says_no_secret() {
    let issuer = issuer(300);
    let agent = Setup::new(issuer.handle.url()).start(Some(&issuer.handle));
    let mut client = agent.client().await;
    let credential = client.get("orders", &[]).await.unwrap();
    let Some(Kind::AccessToken(token)) = &credential.kind else { panic!("not a token") };
    get(&agent.socket("http.sock"), "/v1/credentials/orders");
    // What an issuer says in anger must not be repeated either; nor is any other no of ours to give something away.
    let mut said = String::new();
    let mut refused = |no: tonic::Status| said.push_str(&format!("{no} {no:?}"));
    issuer.handle.set_fault(Fault::Garbage, None);
    refused(client.get("orders", &["orders:read".into()]).await.unwrap_err());
    issuer.handle.set_fault(Fault::InvalidClient, None);
    refused(client.get("orders", &["orders:write".into()]).await.unwrap_err());
    refused(client.get("none", &[]).await.unwrap_err());
    refused(client.get("No name", &[]).await.unwrap_err());
    refused(client.get("orders", &["admin".into()]).await.unwrap_err());
    refused(client.get_living("orders", &[], Duration::from_secs(86_401)).await.unwrap_err());

    for arguments in [
        &["status"][..],
        &["status", "--json"],
        &["whoami"],
        &["explain", "--pid", "1", "orders"],
        &["audit", "tail", "--json", "-n", "1000"],
        &["audit", "explain", "2"],
        &["keys", "list"],
        &["keys", "export"],
    ] {
        let output = agent.keybearer(arguments);
        said.push_str(&String::from_utf8_lossy(&output.stdout));
        said.push_str(&String::from_utf8_lossy(&output.stderr));
    }
    let pid = agent.pid();
    for file in ["cmdline", "environ"] {
        said.push_str(&String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default()));
    }
    let state = agent.dir.path().join("state");
    let key_file = state.join("keys/shop.client-auth.pem");
    let key = fs::read_to_string(&key_file).unwrap();
    let mut kept = vec![];
    files(&state, &mut kept);
    for file in kept.iter().filter(|file| **file != key_file && !file.ends_with("checkpoint.key")) {
        said.push_str(&String::from_utf8_lossy(&fs::read(file).unwrap()));
    }
    let (_, log) = agent.stop();
    assert!(log.contains("ready"), "the log was really captured, at TRACE");
    said.push_str(&log);

    let pem: String = key.lines().filter(|line| !line.starts_with("-----")).collect();
    let der = general_purpose::STANDARD.decode(&pem).unwrap();
    // The private number of a P-256 key in PKCS#8 (RFC 5915): an OCTET STRING of 32 bytes.
    let at = der.windows(2).position(|window| window == [4, 32]).unwrap() + 2;
    let scalar = &der[at..at + 32];
    let signature = token.token.rsplit('.').next().unwrap();
    let mut secrets = vec![("the token", token.token.clone()), ("its signature", signature.to_owned())];
    // The body of the key, line by line; its first line is the same for every P-256 key's header.
    secrets.extend(
        key.lines().filter(|line| !line.starts_with("-----")).map(|line| ("the key file", line.to_owned())),
    );
    secrets.push(("the private number, hex", scalar.iter().map(|byte| format!("{byte:02x}")).collect()));
    secrets.push(("the private number, base64", general_purpose::STANDARD_NO_PAD.encode(scalar)));
    secrets.push(("the private number, base64url", general_purpose::URL_SAFE_NO_PAD.encode(scalar)));
    secrets.push(("the token, base64", general_purpose::STANDARD_NO_PAD.encode(&token.token[..30])));
    secrets.push((
        "the private number, as Debug",
        format!("{:?}", &scalar[..8]).replace('[', "").replace(']', ""),
    ));
    for (what, secret) in secrets {
        assert!(!said.contains(&secret), "{what} was said");
    }
    assert!(key.contains(&pem[..40]), "the search finds what is there");
    // Any JWT at all: assertions are of no use to anybody but their issuer.
    assert_eq!(jwt_in(&said), None, "a JWT was said");
    assert_eq!(jwt_in(&format!("token={};", token.token)), Some(&token.token[..20]), "it would be found");
    assert!(said.contains(&credential.fingerprint), "what may be said is said");
}

/// An answer that ends where the issuer hangs up, so that what it throws back may have any length.
fn thrown_back(status: u16, headers: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status} x\r\ndate: @DATE@\r\n{headers}connection: close\r\n\r\n{body}").into_bytes()
}

#[test]
fn no_failure_repeats_what_was_sent_or_nearly_accepted() {
    // PKJ-15, ER-13, AUD-05: issuers throw our assertion back in every place that an answer has, or send a token with
    // something wrong about it. Neither is in the caller's error, a record, a status or a log line.
    const JSON: &str = "content-type: application/json\r\n";
    let described =
        |code: &str| format!(r#"{{"error":"{code}","error_description":"not @ASSERTION@ please"}}"#);
    let almost = |more: &str| format!(r#"{{"access_token":"canary-of-a-token",{more}"expires_in":300}}"#);
    let header =
        |name: &str| format!("{JSON}{name}: Bearer error=\"x\", error_description=\"@ASSERTION@\"\r\n");
    let rows = [
        ("invalid_request", thrown_back(400, JSON, &described("invalid_request"))),
        ("invalid_client", thrown_back(401, JSON, &described("invalid_client"))),
        ("an unknown code", thrown_back(403, JSON, &described("@ASSERTION@"))),
        ("the code itself", thrown_back(400, JSON, r#"{"error":"@ASSERTION@"}"#)),
        ("trouble", thrown_back(503, JSON, &described("temporarily_unavailable"))),
        ("a page", thrown_back(500, "content-type: text/html\r\n", "<p>@ASSERTION@</p>")),
        ("no JSON", thrown_back(200, JSON, "@ASSERTION@")),
        ("a header", thrown_back(401, &header("www-authenticate"), "{}")),
        ("a redirect", thrown_back(307, "location: http://127.0.0.1:1/?a=@ASSERTION@\r\n", "")),
        ("a kind of token", thrown_back(200, JSON, &almost(r#""token_type":"@ASSERTION@","#))),
        ("no kind of token", thrown_back(200, JSON, &almost(""))),
        ("more scope", thrown_back(200, JSON, &almost(r#""token_type":"Bearer","scope":"@ASSERTION@","#))),
        ("another issuer", thrown_back(200, JSON, &almost(r#""token_type":"Bearer","iss":"@ASSERTION@","#))),
        ("the end missing", thrown_back(200, JSON, almost("").trim_end_matches('}'))),
    ];
    // A thread for each, because the commands that are run wait: on a shared runtime, one row would hold up another's client.
    let row = |name: &str, says: Vec<u8>| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let issuer = Scripted::start(Says::Bytes(says));
            let agent = Setup::new(&issuer.url).start(None);
            let no = agent.client().await.get("orders", &[]).await.unwrap_err();
            let mut said = format!("{no} {no:?}");
            for arguments in
                [&["status"][..], &["audit", "tail", "--json", "-n", "1000"], &["audit", "explain", "2"]]
            {
                let output = agent.keybearer(arguments);
                said.push_str(&String::from_utf8_lossy(&output.stdout));
                said.push_str(&String::from_utf8_lossy(&output.stderr));
            }
            said.push_str(&agent.stop().1);
            let assertion = issuer.assertion();
            let signature = assertion.rsplit('.').next().unwrap();
            assert!(signature.len() > 80, "{name}: the assertion was really sent");
            assert!(!said.contains(signature), "{name}: the assertion was said");
            assert!(!said.contains("canary-of-a-token"), "{name}: a token was said that nobody got");
            assert_eq!(jwt_in(&said), None, "{name}");
        });
    };
    std::thread::scope(|threads| {
        for (name, says) in rows {
            threads.spawn(move || row(name, says));
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_agent_holds_no_assertion_that_was_used() {
    // PKJ-15: all its pages, as a swap would have them.
    if !is_root() {
        return skip(
            "a_stopped_agent_holds_no_assertion_that_was_used",
            "only root can read another process's memory",
        );
    }
    let issuer = Scripted::start(Says::Bytes(token()));
    let agent = Setup::new(&issuer.url).start(None);
    assert_eq!(get(&agent.socket("http.sock"), "/v1/credentials/orders").0, 200);
    agent.signal("-STOP");
    assert!(copies(agent.pid(), b"honest-and-opaque") > 0, "the search finds what is there");
    let assertion = issuer.assertion();
    let left = copies(agent.pid(), assertion.rsplit('.').next().unwrap().as_bytes());
    agent.signal("-CONT");
    println!("{left} copies of a used assertion");
    assert_eq!(left, 0);
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
    if swaps.lines().count() < 2 {
        skip(
            "swap of a stopped agent",
            "this host has no swap; the pages that would be in it were searched in memory",
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_of_the_agents_user_can_dump_it() {
    // KEY-02, E28: another program of the user that it runs as, with the debugger's own means where there is one.
    if !is_root() {
        return skip("nobody_of_the_agents_user_can_dump_it", "only root can start an agent as another user");
    }
    let issuer = issuer(300);
    let setup = Setup::new(issuer.handle.url());
    support::register(&issuer.handle, &setup.write());
    let given = Command::new("chown").args(["-R", "65533:65533"]).arg(setup.dir.path()).status();
    assert!(given.unwrap().success());
    let nobody = ["setpriv", "--reuid=65533", "--regid=65533", "--clear-groups"];
    let agent = TestAgent::start_under(setup.dir.clone(), &nobody);
    let as_nobody = |line: &[&str]| Command::new(nobody[0]).args(&nobody[1..]).args(line).output();
    let mut open = Command::new(nobody[0]).args(&nobody[1..]).args(["sleep", "60"]).spawn().unwrap();
    let read = |pid: u32| as_nobody(&["head", "-c", "1", &format!("/proc/{pid}/environ")]).unwrap();
    while fs::read_to_string(format!("/proc/{}/comm", open.id())).unwrap().trim() != "sleep" {
        std::thread::yield_now();
    }
    assert!(read(open.id()).status.success(), "the control: {:?}", read(open.id()));
    assert!(!read(agent.pid()).status.success());
    let core = setup.dir.path().join("core").display().to_string();
    let dumped = |pid: u32| as_nobody(&["gcore", "-o", &core, &pid.to_string()]);
    match dumped(open.id()) {
        Ok(control) if control.status.success() => {
            let refused = dumped(agent.pid()).unwrap();
            assert!(!refused.status.success(), "{refused:?}");
            assert!(!Path::new(&format!("{core}.{}", agent.pid())).exists());
        }
        _ => skip(
            "nobody_of_the_agents_user_can_dump_it (gcore)",
            "gcore, of gdb, is not here or cannot work here",
        ),
    }
    open.kill().unwrap();
    open.wait().unwrap();
}

fn files(at: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(at).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files(&path, found) } else { found.push(path) }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_leaves_no_core() {
    // KEY-02
    let issuer = issuer(300);
    let agent = Setup::new(issuer.handle.url()).start(Some(&issuer.handle));
    agent.client().await.get("orders", &[]).await.unwrap();
    let limits = fs::read_to_string(format!("/proc/{}/limits", agent.pid())).unwrap();
    let cores: Vec<&str> = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"))
        .unwrap()
        .split_whitespace()
        .collect();
    assert_eq!(cores[4..6], ["0", "0"], "nobody raises it again");
    // The kernel gives the files of an undumpable process to root, whoever it runs as.
    agent.signal("-ABRT");
    let pid = agent.pid();
    let log = agent.kill();
    assert!(!log.contains("core dumped"), "{log}");
    let here =
        fs::read_dir(".").unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    let cores: Vec<String> = here.filter(|name| name == "core" || *name == format!("core.{pid}")).collect();
    assert!(cores.is_empty(), "{cores:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_was_given_back_is_wiped_where_it_was_kept() {
    // What root can read of the agent, and so what a stopped agent's swap could hold.
    if !is_root() {
        return skip("memory after release", "only root can read another process's memory");
    }
    let issuer = issuer(300);
    let agent = Setup::new(issuer.handle.url()).start(Some(&issuer.handle));
    let mut client = agent.client().await;
    let credential = client.get("orders", &[]).await.unwrap();
    let Some(Kind::AccessToken(token)) = &credential.kind else { panic!("not a token") };
    let token = token.token.clone();
    let live = copies(agent.pid(), token.as_bytes());
    assert!(live > 0, "the search finds what is there");
    client.release("orders", &[]).await.unwrap();
    drop(client);
    let after = copies(agent.pid(), token.as_bytes());
    println!("{live} copies while it was live, {after} after it was given back");
    // Ours is wiped; buffers that were freed are not, until they are used again (SECURITY.md, "What remains").
    assert!(after <= live, "giving it back made more copies of it");
    let swapped = fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    println!("{}", swapped.lines().find(|line| line.starts_with("VmSwap")).unwrap_or("no swap"));
}

/// What the kernel says of a process's locked memory, in KiB.
fn locked(agent: &TestAgent) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmLck:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn its_memory_is_locked_where_there_is_no_limit_and_otherwise_it_says_so_and_works() {
    // KEY-02
    let issuer = issuer(300);
    let setup = Setup::new(issuer.handle.url());
    support::register(&issuer.handle, &setup.write());
    // Somebody has set a limit that the agent may not lift, whoever it is.
    let mut limited = vec!["prlimit", "--memlock=65536:65536"];
    if is_root() {
        limited.extend([
            "setpriv",
            "--bounding-set=-sys_resource,-ipc_lock",
            "--inh-caps=-sys_resource,-ipc_lock",
        ]);
    }
    let agent = TestAgent::start_under(setup.dir.clone(), &limited);
    assert_eq!(locked(&agent), 0);
    // It does not run out of what it may lock: forty programs at once have more than that between them.
    let mut clients = vec![];
    for _ in 0..40 {
        let mut client = agent.client().await;
        client.get("orders", &[]).await.unwrap();
        clients.push(client);
    }
    let status = String::from_utf8(agent.keybearer(&["status"]).stdout).unwrap();
    assert!(status.contains("\nmemory    not locked"), "{status}");
    drop(clients);
    let (code, log) = agent.stop();
    assert_eq!(code, Some(0));
    assert!(log.contains("not kept out of swap") && log.contains("LimitMEMLOCK=infinity"), "{log}");

    let agent = TestAgent::start(setup.dir.clone());
    if locked(&agent) == 0 {
        let log = agent.stop().1;
        assert!(log.contains("not kept out of swap"), "it says why: {log}");
        let name = "its_memory_is_locked_where_there_is_no_limit_and_otherwise_it_says_so_and_works (locked)";
        return skip(name, "the limit of locked memory cannot be lifted here, nor is this beyond it");
    }
    let status = String::from_utf8(agent.keybearer(&["status"]).stdout).unwrap();
    assert!(status.contains("\nmemory    locked"), "{status}");
    // Pages that nobody has touched are locked once they are: they take no memory before.
    let resident = fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    println!("{}", resident.lines().filter(|line| line.starts_with("Vm")).collect::<Vec<_>>().join(" "));
    assert!(agent.client().await.get("orders", &[]).await.is_ok());
}

//! No secret in any log line, error, record, listing, file or dump: a running agent at its most talkative is searched for what
//! it must never say, in every form it could say it in (PKJ-15, AUD-05, BCP-04, KEY-02). That the search finds what is there is
//! shown where it belongs.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::{
    fs,
    io::{Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose};
use keybearer::{dev::Fault, proto::v1::credential::Kind};
use support::{Setup, TestAgent, get, is_root, issuer, jwt_in, skip};

#[tokio::test(flavor = "multi_thread")]
async fn a_talkative_agent_says_no_secret() {
    let issuer = issuer(300);
    let agent = Setup::new(issuer.handle.url()).start(Some(&issuer.handle));
    let mut client = agent.client().await;
    let credential = client.get("orders", &[]).await.unwrap();
    let Some(Kind::AccessToken(token)) = &credential.kind else { panic!("not a token") };
    get(&agent.socket("http.sock"), "/v1/credentials/orders");
    // What an issuer says in anger must not be repeated either.
    issuer.handle.set_fault(Fault::Garbage, None);
    client.get("orders", &["orders:read".into()]).await.unwrap_err();
    issuer.handle.set_fault(Fault::InvalidClient, None);
    client.get("orders", &["orders:write".into()]).await.unwrap_err();

    let mut said = String::new();
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
    let live = copies(&agent, token.as_bytes());
    assert!(live > 0, "the search finds what is there");
    client.release("orders", &[]).await.unwrap();
    drop(client);
    let after = copies(&agent, token.as_bytes());
    println!("{live} copies while it was live, {after} after it was given back");
    // Ours is wiped; buffers that were freed are not, until they are used again (SECURITY.md, "What remains").
    assert!(after <= live, "giving it back made more copies of it");
    let swapped = fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    println!("{}", swapped.lines().find(|line| line.starts_with("VmSwap")).unwrap_or("no swap"));
}

/// How often `secret` lies in the memory of the agent that can be written.
fn copies(agent: &TestAgent, secret: &[u8]) -> usize {
    let maps = fs::read_to_string(format!("/proc/{}/maps", agent.pid())).unwrap();
    let mut memory = fs::File::open(format!("/proc/{}/mem", agent.pid())).unwrap();
    let mut found = 0;
    for line in maps.lines().filter(|line| line.contains(" rw")) {
        let (from, to) = line.split(' ').next().unwrap().split_once('-').unwrap();
        let [from, to] = [from, to].map(|text| u64::from_str_radix(text, 16).unwrap());
        let mut bytes = vec![0; (to - from) as usize];
        if memory.seek(SeekFrom::Start(from)).is_ok() && memory.read_exact(&mut bytes).is_ok() {
            found += bytes.windows(secret.len()).filter(|window| *window == secret).count();
        }
    }
    found
}

//! Key files at rest under the real binary (KEY-11, TM-14, S9, K57-6). In go a sealing key, crashes, a full disk, another machine;
//! out come state directories in which nobody finds a key, and agents that go on with theirs.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "support/disk.rs"]
mod disk;
mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    hash::{BuildHasher as _, RandomState},
    io::{BufRead as _, BufReader},
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::Arc,
    thread,
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use disk::Disk;
use keybearer::{audit::EventType, keys::SealingKey, secret::Secret};
use serde_json::Value;
use support::{BINARY, Setup, TestAgent, get, is_root, issuer, register, skip};

const KEY: &[u8] = b"a sealing key that is kept elsewhere, canary";
const OTHER: &[u8] = b"the sealing key of another host or of another year";
const SHOPS: &str = "shop.client-auth.pem";

/// A file with a sealing key, outside the state directory.
fn sealing_key(setup: &Setup, name: &str, key: &[u8]) -> PathBuf {
    let directory = setup.dir.path().join("given");
    fs::create_dir_all(&directory).unwrap();
    let path = directory.join(name);
    let _ = fs::remove_file(&path);
    fs::write(&path, key).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
    path
}

fn sealed(setup: Setup) -> Setup {
    let path = sealing_key(&setup, "key", KEY);
    setup.and(&format!("\n[keys]\nsealing_key = \"{}\"\n", path.display()))
}

/// Every file below a directory.
fn files(below: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = vec![];
    for entry in fs::read_dir(below).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if let Ok(bytes) = fs::read(&path) {
            found.push((path, bytes));
        }
    }
    found
}

/// The bytes of the first PEM block in a text, and what stands behind it.
fn block(text: &str) -> Option<(Vec<u8>, &str)> {
    let body = text.strip_prefix("-----BEGIN ")?.split_once("-----\n")?.1;
    let (body, rest) = body.split_once("-----END ")?;
    Some((STANDARD.decode(body.replace('\n', "")).ok()?, rest.split_once('\n')?.1))
}

/// The private keys that are sealed below a directory: what the agent would know of them. Form and purposes are told here a
/// second time, so that a change of theirs, which would cost every key that is sealed already, does not pass by mistake.
fn scalars(below: &Path) -> BTreeSet<Vec<u8>> {
    let key = SealingKey::of(&Secret::new(KEY));
    let roles = [
        ("client-auth", "shop"),
        ("client-auth", "vault"),
        ("client-certificate", "vault"),
        ("checkpoint", ""),
        ("revocations", ""),
    ];
    let mut found = BTreeSet::new();
    for (path, bytes) in files(below) {
        let text = String::from_utf8_lossy(&bytes);
        let Some(("", text)) = text.split_once("-----BEGIN KEYBEARER SEALED KEY-----\n") else { continue };
        let text = format!("-----BEGIN X-----\n{text}");
        let (sealed, open) = block(&text).unwrap();
        let pkcs8 = roles
            .iter()
            .find_map(|(role, whose)| key.unseal(format!("key file\n{role}\n{whose}\n{open}"), &sealed));
        let pkcs8 = pkcs8.unwrap_or_else(|| panic!("{} does not open", path.display()));
        // RFC 5915 and RFC 8410: what stands before the private bytes.
        let before: [&[u8]; 2] = [&[0x02, 0x01, 0x01, 0x04, 0x20], &[0x04, 0x22, 0x04, 0x20]];
        let scalar = before.iter().find_map(|before| {
            let bytes = pkcs8.expose();
            let at = bytes.windows(before.len()).position(|window| window == *before)? + before.len();
            bytes.get(at..at + 32).map(<[u8]>::to_vec)
        });
        found.insert(scalar.unwrap());
    }
    found
}

/// Looks at every byte below a directory for private keys: for those that are known, and for anything of their form.
fn no_key_in(below: &Path, known: &BTreeSet<Vec<u8>>) {
    assert!(!known.is_empty(), "there is nothing to look for");
    assert_eq!(key_in(below, known), None);
}

/// What says that a private key lies below a directory, and where.
fn key_in(below: &Path, known: &BTreeSet<Vec<u8>>) -> Option<String> {
    for (path, bytes) in files(below) {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let found = |what: &str| Some(format!("{}: {what}", path.display()));
        if text.contains("PRIVATE KEY") {
            return found("PEM");
        }
        let mut seen = vec![bytes];
        let mut rest = text.as_str();
        while let Some(at) = rest.find("-----BEGIN ") {
            let Some((decoded, behind)) = block(&rest[at..]) else { break };
            seen.push(decoded);
            rest = behind;
        }
        for bytes in seen {
            let holds = |wanted: &[u8]| bytes.windows(wanted.len()).any(|window| window == wanted);
            if known.iter().any(|scalar| holds(scalar)) {
                return found("the private bytes of a key");
            }
            let pkcs8: [&[u8]; 2] = [&[0x02, 0x01, 0x00, 0x30, 0x13, 0x06, 0x07], &[0x04, 0x22, 0x04, 0x20]];
            if pkcs8.iter().any(|form| holds(form)) {
                return found("PKCS#8");
            }
        }
    }
    None
}

#[test]
fn the_search_for_keys_finds_them() {
    let dir = tempfile::tempdir().unwrap();
    let pkcs8 = [&[0x30, 0x51, 0x02, 0x01, 0x01, 0x04, 0x22, 0x04, 0x20][..], &[7; 32]].concat();
    let pem = format!("x\n-----BEGIN X-----\n{}\n-----END X-----\n", STANDARD.encode(&pkcs8));
    for (bytes, what) in [
        (&[b"log: ", &[7; 32][..]].concat()[..], "the private bytes"),
        (pem.as_bytes(), "the private bytes"),
        (&pkcs8[..20], "PKCS#8"),
        (b"-----BEGIN PRIVATE KEY-----", "PEM"),
    ] {
        fs::write(dir.path().join("file"), bytes).unwrap();
        let found = key_in(dir.path(), &BTreeSet::from([vec![7; 32]])).unwrap();
        assert!(found.contains(what), "{found}");
    }
}

fn run(config: &Path, environment: &[(&str, &str)], arguments: &[&str]) -> Output {
    // An agent that starts though it should not is ended, and has not failed.
    let mut command = Command::new("timeout");
    command
        .args(["20", BINARY])
        .args(arguments)
        .arg("--config")
        .arg(config)
        .envs(environment.iter().copied());
    command.stdin(Stdio::null()).output().unwrap()
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn exported(config: &Path) -> Value {
    let output = run(config, &[], &["keys", "export"]);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", said(&output)))
}

#[tokio::test(flavor = "multi_thread")]
async fn no_byte_of_a_key_is_in_the_state_directory_whatever_is_done_with_keys() {
    // KEY-05, KEY-07, KEY-11, S9
    let issuer = issuer(300);
    let vault = r#"
[issuers.corp]
kind = "oauth"
issuer = "https://idp.example.com"

[identities.vault]
owner = "vault@example.com"
assurance = "interim"
match = { uid = 65533 }
certificate = {}

[identities.vault.credentials.vault]
issuer = "corp"
client_id = "vault"
resource = "https://vault.example.com"
binding = "mtls"
"#;
    let setup = Setup::new(issuer.handle.url()).and(vault);
    let state = setup.dir.path().join("state");
    // Plain first, as an older agent left it, with a rotation under way.
    let agent = setup.start(Some(&issuer.handle));
    let status = said(&agent.keybearer(&["status"]));
    assert!(status.contains("key files are not sealed: whoever copies"), "{status}");
    let checked = said(&agent.keybearer(&["check"]));
    assert!(checked.contains("sound") && checked.contains("key files are not sealed: whoever"), "{checked}");
    let checked: Value = serde_json::from_slice(&agent.keybearer(&["check", "--json"]).stdout).unwrap();
    assert!(checked["ok"] == true && checked["warnings"][0].is_string(), "{checked}");
    assert!(agent.keybearer(&["rotate", "shop"]).status.success());
    let before = exported(&setup.write());
    agent.stop();
    assert!(
        files(&state).iter().filter(|(_, text)| text.starts_with(b"-----BEGIN PRIVATE KEY")).count() >= 5
    );

    let setup = sealed(setup);
    let agent = setup.start(None);
    assert_eq!(get(&agent.socket("http.sock"), "/v1/credentials/orders").0, 200, "it is the same client");
    assert_eq!(exported(&setup.write()), before);
    let mut known = scalars(&state);
    assert_eq!(known.len(), 6, "three of assertions, one is the next; certificate, checkpoints, revocations");
    no_key_in(&state, &known);
    let status = said(&agent.keybearer(&["status"]));
    assert!(!status.contains("sealed"), "nothing to tell: {status}");
    let checked = said(&agent.keybearer(&["check"]));
    assert!(checked.contains("sound") && !checked.contains("sealed"), "nor here: {checked}");
    let begun = agent.records().into_iter().rfind(|record| record.entry.event.kind == EventType::AgentStart);
    let detail = begun.unwrap().entry.detail.unwrap();
    assert!(detail.contains("key files are sealed by"), "{detail}");

    // What seals is what sealed at the start: another is another start.
    let given = sealing_key(&setup, "other", OTHER).display().to_string();
    let other = fs::read_to_string(setup.write()).unwrap().replace("given/key", "given/other");
    assert!(other.contains(&given));
    fs::write(setup.dir.path().join("agent.toml"), other).unwrap();
    let reloaded = said(&agent.keybearer(&["reload"]));
    assert!(reloaded.contains("[keys]") && reloaded.contains("at the next restart"), "{reloaded}");

    register(&issuer.handle, &setup.write());
    // The next one is known now: it is tried, and signs.
    for step in [&["rotate", "shop"][..], &["rotate", "shop"], &["revoke", "shop", "--keys"]] {
        assert!(agent.keybearer(step).status.success(), "{step:?}");
        known.extend(scalars(&state));
        no_key_in(&state, &known);
    }
    agent.stop();
    let agent = TestAgent::start(Arc::clone(&setup.dir));
    known.extend(scalars(&state));
    no_key_in(&state, &known);
    agent.verify().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_keys_are_made_and_destroyed_it_leaves_none_that_can_be_read_and_goes_on() {
    // KEY-05, KEY-07, KEY-11
    let issuer = issuer(300);
    let setup = sealed(Setup::new(issuer.handle.url()));
    let state = setup.dir.path().join("state");
    let mut agent = setup.start(Some(&issuer.handle));
    let mut known = scalars(&state);
    for crash in 0..20 {
        let orders: &[&str] =
            if crash % 2 == 0 { &["rotate", "shop"] } else { &["revoke", "shop", "--keys"] };
        let mut order = Command::new(BINARY)
            .args(orders)
            .env("KEYBEARER_OPERATOR_SOCKET", agent.socket("operator.sock"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // The moment is the point: nothing can be awaited that would not make it less random.
        thread::sleep(Duration::from_micros(RandomState::new().hash_one(()) % 30_000));
        agent.kill();
        order.wait().unwrap();
        known.extend(scalars(&state));
        no_key_in(&state, &known);
        agent = TestAgent::start(Arc::clone(&setup.dir));
    }
    assert!(known.len() > 4, "no key was made in all this: {}", known.len());
    println!("{} keys, and none to be read", known.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_it_seals_what_was_plain_it_keeps_every_key() {
    // KEY-11
    let issuer = issuer(300);
    let plain = Setup::new(issuer.handle.url());
    let config = plain.write();
    register(&issuer.handle, &config);
    let before = exported(&config);
    let keys = plain.dir.path().join("state/keys");
    let kept = fs::read(keys.join(SHOPS)).unwrap();
    let setup = sealed(plain);
    setup.write();
    let (mut as_it_was, mut done) = (0, 0);
    for _ in 0..40 {
        fs::write(keys.join(SHOPS), &kept).unwrap();
        let mut agent = Command::new(BINARY)
            .args(["agent", "--config"])
            .arg(&config)
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // The moment is the point, as above.
        thread::sleep(Duration::from_micros(RandomState::new().hash_one(()) % 20_000));
        agent.kill().unwrap();
        agent.wait().unwrap();
        assert_eq!(exported(&config), before);
        *(if fs::read(keys.join(SHOPS)).unwrap() == kept { &mut as_it_was } else { &mut done }) += 1;
    }
    println!("{as_it_was} as they were, {done} sealed");
    let agent = TestAgent::start(Arc::clone(&setup.dir));
    assert_eq!(get(&agent.socket("http.sock"), "/v1/credentials/orders").0, 200);
    let state = setup.dir.path().join("state");
    no_key_in(&state, &scalars(&state));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_while_it_seals_costs_no_key() {
    // KEY-11
    let name = "a_full_disk_while_it_seals_costs_no_key";
    if !is_root() {
        return skip(name, "only root can mount a small disk");
    }
    let issuer = issuer(300);
    let setup = Setup::new(issuer.handle.url());
    let state = setup.dir.path().join("state");
    let Some(disk) = Disk::mount(&state) else {
        return skip(name, "a tmpfs cannot be mounted here");
    };
    setup.start(Some(&issuer.handle)).stop();
    let kept: BTreeMap<PathBuf, Vec<u8>> = files(&state.join("keys")).into_iter().collect();
    let setup = sealed(setup);
    let config = setup.write();
    disk.fill();
    // Whether it starts is the ledger's to say, which may have room for a record in its last page. No key is lost by it.
    let mut agent = Command::new(BINARY)
        .args(["agent", "--config"])
        .arg(&config)
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let log = BufReader::new(agent.stderr.take().unwrap());
    assert!(log.lines().any(|line| line.unwrap().contains("it is not sealed yet")), "it is told");
    let _ = agent.kill();
    agent.wait().unwrap();
    assert_eq!(files(&state.join("keys")).into_iter().collect::<BTreeMap<_, _>>(), kept);
    // Where sealing is a must, it is what fails.
    let required = setup.with("[keys]\n", "[keys]\nsealed = \"required\"\n");
    let told = run(&required.write(), &[], &["agent"]);
    assert!(said(&told).contains(".pem: No space left"), "{}", said(&told));
    assert_eq!(files(&state.join("keys")).into_iter().collect::<BTreeMap<_, _>>(), kept);

    disk.clear();
    let agent = TestAgent::start(Arc::clone(&required.dir));
    assert_eq!(get(&agent.socket("http.sock"), "/v1/credentials/orders").0, 200);
    no_key_in(&state, &scalars(&state));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_service_manager_gives_comes_first_and_a_shell_without_it_can_still_export() {
    // KEY-09, KEY-11
    let issuer = issuer(300);
    let setup = Setup::new(issuer.handle.url()).and("\n[keys]\nsealed = \"required\"\n");
    let config = setup.write();
    // There is no agent, and no key is made, without one.
    let told = run(&config, &[], &["agent"]);
    assert_eq!(told.status.code(), Some(78), "{}", said(&told));
    assert!(said(&told).contains("keys.sealed = \"required\""), "{}", said(&told));
    let told = run(&config, &[], &["keys", "export"]);
    assert!(said(&told).contains("there is no sealing key here"), "{}", said(&told));
    assert!(!setup.dir.path().join("state").exists());

    let given = sealing_key(&setup, "keybearer.sealing-key", KEY);
    let directory = format!("CREDENTIALS_DIRECTORY={}", given.parent().unwrap().display());
    let start = || TestAgent::start_under(Arc::clone(&setup.dir), &["env", &directory]);
    let agent = start();
    // An operator's shell has no credential: what anybody may know, it sees all the same.
    register(&issuer.handle, &config);
    assert_eq!(get(&agent.socket("http.sock"), "/v1/credentials/orders").0, 200);
    assert!(run(&config, &[], &["keys", "list"]).status.success());
    let jwks = exported(&config).to_string();
    assert!(!jwks.contains("\"d\""), "{jwks}");
    agent.stop();

    // Another host's sealing key, and none: no start, and nothing is made in the place of what is there.
    let state = setup.dir.path().join("state");
    let kept = files(&state.join("keys"));
    for (given, what) in [(OTHER, "does not open"), (b"short", "is shorter than 32 bytes")] {
        sealing_key(&setup, "keybearer.sealing-key", given);
        let environment = directory.split_once('=').unwrap();
        let told = run(&config, &[environment], &["agent"]);
        assert_eq!(told.status.code(), Some(78), "{}", said(&told));
        assert!(said(&told).contains(what), "{}", said(&told));
        assert_eq!(files(&state.join("keys")), kept);
    }
    // One that sealed before opens, once it is named as that; from then on it is of no use.
    sealing_key(&setup, "keybearer.old-sealing-key", KEY);
    sealing_key(&setup, "keybearer.sealing-key", OTHER);
    let agent = start();
    assert_eq!(
        get(&agent.socket("http.sock"), "/v1/credentials/orders").0,
        200,
        "K57-6: it is the same client"
    );
    agent.stop();
    fs::remove_file(given.with_file_name("keybearer.old-sealing-key")).unwrap();
    let agent = start();
    assert_eq!(get(&agent.socket("http.sock"), "/v1/credentials/orders").0, 200);
    agent.verify().unwrap();
    agent.stop();
    // Not even sealed does a file count that is somebody else's.
    if is_root() {
        chown(state.join("keys").join(SHOPS), Some(65533), None).unwrap();
        let told = run(&config, &[directory.split_once('=').unwrap()], &["agent"]);
        assert!(said(&told).contains("KEY_PERM"), "{}", said(&told));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_directory_on_another_machine_is_refused_until_an_operator_adopts_it() {
    // TM-14
    let name = "a_state_directory_on_another_machine_is_refused_until_an_operator_adopts_it";
    if !is_root() {
        return skip(name, "only root can give a process another /etc/machine-id");
    }
    let issuer = issuer(300);
    let setup = Setup::new(issuer.handle.url());
    let fake = setup.dir.path().join("machine-id");
    let script = format!("mount --bind {} /etc/machine-id && exec \"$0\" \"$@\"", fake.display());
    let elsewhere = ["unshare", "--mount", "sh", "-c", &script];
    let on = |id: &str| fs::write(&fake, id).unwrap();
    let try_to = |arguments: &[&str]| {
        let mut command = Command::new(elsewhere[0]);
        command
            .args(&elsewhere[1..])
            .args(["timeout", "20", BINARY])
            .args(arguments)
            .arg("--config")
            .arg(setup.write());
        command.stdin(Stdio::null()).output().unwrap()
    };
    on("0123456789abcdef0123456789abcdef\n");
    if !Path::new("/etc/machine-id").exists() || !try_to(&["keys", "list"]).status.success() {
        return skip(name, "no mount namespace, or no /etc/machine-id, here");
    }
    register(&issuer.handle, &setup.write());
    let start = || TestAgent::start_under(Arc::clone(&setup.dir), &elsewhere);
    start().stop();
    start().stop();

    on("fedcba9876543210fedcba9876543210\n");
    let told = try_to(&["agent"]);
    assert_eq!(told.status.code(), Some(78), "{}", said(&told));
    assert!(said(&told).contains("CLONE_DETECTED") && said(&told).contains("keys adopt"), "{}", said(&told));
    assert!(try_to(&["keys", "adopt"]).status.success());
    let agent = start();
    assert_eq!(get(&agent.socket("http.sock"), "/v1/credentials/orders").0, 200);
    let begun = agent.records().into_iter().rfind(|record| record.entry.event.kind == EventType::AgentStart);
    let detail = begun.unwrap().entry.detail.unwrap();
    assert!(detail.contains("an operator adopted the state directory"), "{detail}");
    agent.stop();
    on("uninitialized\n");
    assert!(said(&try_to(&["agent"])).contains("systemd-machine-id-setup"));
    let setup = setup.and("\n[keys]\nclone_detection = false\n");
    setup.write();
    TestAgent::start_under(Arc::clone(&setup.dir), &elsewhere).stop();
}

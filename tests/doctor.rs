//! `keybearer doctor`, the real binary, on setups that are broken in one way each: the fault is named, and what to do about it. Nothing
//! is changed by looking, and nothing secret is said or sent.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::{
    collections::BTreeSet,
    fs,
    net::TcpListener,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex},
};

use keybearer::clock::SystemClock;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};
use support::{Setup, issuer};

/// An issuer of which only the outside is there. What it is sent is kept.
struct Front {
    url: String,
    heard: Arc<Mutex<Vec<String>>>,
}

/// Answers everything with this document, dated so many seconds from now; over TLS if there is a certificate.
fn front(ahead: i64, tls: Option<Arc<ServerConfig>>, change: fn(&mut Value)) -> Front {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let scheme = if tls.is_some() { "https://localhost" } else { "http://127.0.0.1" };
    let url = format!("{scheme}:{}", listener.local_addr().unwrap().port());
    let mut document = json!({
        "issuer": url,
        "token_endpoint": format!("{url}/token"),
        "token_endpoint_auth_methods_supported": ["private_key_jwt"],
        "token_endpoint_auth_signing_alg_values_supported": ["ES256"],
        "dpop_signing_alg_values_supported": ["ES256"],
    });
    change(&mut document);
    let heard: Arc<Mutex<Vec<String>>> = Arc::default();
    let kept = Arc::clone(&heard);
    // Ends with the test's process.
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.unwrap();
            stream.set_read_timeout(Some(std::time::Duration::from_secs(5))).unwrap();
            let answer = |stream: &mut dyn ReadWrite| {
                let mut request = [0; 4096];
                let read = stream.read(&mut request).unwrap_or(0);
                kept.lock().unwrap().push(String::from_utf8_lossy(&request[..read]).into_owned());
                let now = SystemClock::shared().wall().as_second() + ahead;
                let date = jiff::Timestamp::from_second(now).unwrap();
                let date =
                    jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&date).unwrap();
                let body = document.to_string();
                let head = format!(
                    "HTTP/1.1 200 OK\r\ndate: {date}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                    body.len()
                );
                // A client that does not trust us hangs up.
                let _ = stream.write_all((head + &body).as_bytes());
                let _ = stream.flush();
            };
            match &tls {
                None => answer(&mut { stream }),
                Some(tls) => {
                    let connection = ServerConnection::new(Arc::clone(tls)).unwrap();
                    answer(&mut StreamOwned::new(connection, stream));
                }
            }
        }
    });
    Front { url, heard }
}

trait ReadWrite: std::io::Read + std::io::Write {}
impl<T: std::io::Read + std::io::Write> ReadWrite for T {}

/// A CA, and a server for localhost that it vouches for.
fn authority() -> (String, Arc<ServerConfig>) {
    let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let key = rcgen::KeyPair::generate().unwrap();
    let ca = params.self_signed(&key).unwrap();
    let of_ca = rcgen::Issuer::from_params(&params, &key);
    let own = rcgen::KeyPair::generate().unwrap();
    let leaf =
        rcgen::CertificateParams::new(vec!["localhost".into()]).unwrap().signed_by(&own, &of_ca).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![leaf.der().clone()],
            rustls_pki_types::PrivateKeyDer::Pkcs8(own.serialize_der().into()),
        );
    (ca.pem(), Arc::new(config.unwrap()))
}

/// The findings, and how it ended.
fn doctor(dir: &Path) -> (i32, Vec<Value>, String) {
    let config = dir.join("agent.toml");
    let mut command = Command::new(env!("CARGO_BIN_EXE_keybearer"));
    for proxy in ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"] {
        command.env_remove(proxy);
    }
    let output = command.args(["doctor", "--json", "--config"]).arg(config).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let told: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text} {:?}", output.stderr));
    let findings = told["findings"].as_array().unwrap().clone();
    assert_eq!(told["ok"] == json!(true), output.status.code() == Some(0));
    (output.status.code().unwrap(), findings, text)
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// A key and a certificate of two different ones, as an identity's.
fn mismatched(dir: &Path) -> String {
    let (one, other) = (rcgen::KeyPair::generate().unwrap(), rcgen::KeyPair::generate().unwrap());
    let certificate = rcgen::CertificateParams::new(vec![]).unwrap().self_signed(&one).unwrap();
    chmod(dir, 0o700);
    for (name, text) in [("pay.crt", certificate.pem()), ("pay.key", other.serialize_pem())] {
        fs::write(dir.join(name), text).unwrap();
        chmod(&dir.join(name), 0o600);
    }
    format!(
        "\n[identities.pay]\nowner = \"pay@example.com\"\nassurance = \"interim\"\nmatch = {{ uid = 64001 }}\n\
         [identities.pay.certificate]\ncertificate = \"{0}/pay.crt\"\nkey = \"{0}/pay.key\"\n\
         [identities.pay.credentials.bank]\nissuer = \"dev\"\nclient_id = \"pay\"\nclient_auth = \"tls_client_auth\"\n\
         resource = \"https://bank.example.com\"\nbinding = \"mtls\"\n",
        dir.display()
    )
}

/// One way to break a setup, and what has to be said of it.
struct Broken {
    how: &'static str,
    setup: Setup,
    /// Done once there is a key and a ledger.
    then: fn(&Path),
    about: &'static str,
    /// Where a second may pass between two clocks, either of two.
    what: &'static str,
    remedy: &'static str,
}

fn none(_: &Path) {}

/// statfs(2).
const TMPFS: i64 = 0x0102_1994;

#[test]
fn each_of_many_broken_setups_is_named_with_its_remedy() {
    let good = front(0, None, |_| {});
    let (ca, tls) = authority();
    let secure = front(0, Some(Arc::clone(&tls)), |_| {});
    let (other_ca, _) = authority();
    let with_ca = |url: &str, ca: &str| {
        let setup = Setup::new(url);
        let file = setup.dir.path().join("ca.pem");
        fs::write(&file, ca).unwrap();
        setup.with("dev = true\n", &format!("dev = true\nca_file = \"{}\"\n", file.display()))
    };
    let fast = front(3600, None, |_| {});
    let unable = front(0, None, |document| {
        document["token_endpoint_auth_methods_supported"] = json!(["client_secret_basic"]);
    });
    let unbound = front(0, None, |document| document["dpop_signing_alg_values_supported"] = json!(["RS256"]));
    let slashed = front(0, None, |document| {
        document["issuer"] = json!(format!("{}/", document["issuer"].as_str().unwrap()));
    });
    let base = || Setup::new(&good.url);
    let broken = |how, setup, then, about, what, remedy| Broken { how, setup, then, about, what, remedy };
    let mismatch = with_ca(&secure.url, &ca);
    let pair = mismatched(mismatch.dir.path());
    let sealing = base();
    let unsealed = base();
    let given = unsealed.dir.path().join("sealing.key");
    fs::write(&given, "a sealing key that is kept elsewhere").unwrap();
    chmod(&given, 0o400);
    let until = jiff::Timestamp::from_second(SystemClock::shared().wall().as_second() + 86_400 * 30).unwrap();
    let unsealed = unsealed.and(&format!(
        "\n[keys]\nsealing_key = \"{}\"\n\n[identities.shop.credentials.smtp]\nkind = \"sealed\"\nfields = [\"password\"]\n\
         exception = {{ owner = \"shop@example.com\", reason = \"the mail server knows no OAuth yet\", until = \"{until:.0}\" }}\n",
        given.display()
    ));
    let mut cases = vec![
        broken(
            "a key of the settings is misspelt",
            base().with("timeout =", "time_out ="),
            none,
            "settings",
            "issuers.dev.time_out",
            "timeout",
        ),
        broken(
            "the key can be read by others",
            base(),
            |dir| chmod(&dir.join("state/keys/shop.client-auth.pem"), 0o644),
            "key of shop",
            "0644",
            "chmod 0600",
        ),
        broken(
            "the key is spoilt",
            base(),
            |dir| fs::write(dir.join("state/keys/shop.client-auth.pem"), "no key").unwrap(),
            "key of shop",
            "shop.client-auth.pem",
            "keybearer revoke",
        ),
        broken(
            "the key's directory is open",
            base(),
            |dir| chmod(&dir.join("state/keys"), 0o755),
            "private directory",
            "0755",
            "chmod 0700",
        ),
        broken(
            "others can put a socket in place",
            base(),
            |dir| chmod(&dir.join("run"), 0o777),
            "runtime directory",
            "0777",
            "chmod go-w",
        ),
        broken(
            "something else is where a socket goes",
            base(),
            |dir| fs::write(dir.join("run/agent.sock"), "").unwrap(),
            "listen.workload",
            "is no socket",
            "move it away",
        ),
        broken(
            "the issuer's name is not known",
            Setup::new("https://no-such-host.invalid"),
            none,
            "issuers.dev dns",
            "no-such-host.invalid",
            "/etc/resolv.conf",
        ),
        broken(
            "nobody listens at the issuer's",
            Setup::new("https://127.0.0.1:1"),
            none,
            "issuers.dev connection",
            "127.0.0.1:1",
            "firewall",
        ),
        broken(
            "the issuer's certificate is of another CA",
            with_ca(&secure.url, &other_ca),
            none,
            "issuers.dev tls",
            "TLS with the issuer failed",
            "ca_file",
        ),
        broken(
            "the file of roots is no such file",
            with_ca(&secure.url, "no certificate"),
            none,
            "issuers.dev tls",
            "ca.pem",
            "ca_file",
        ),
        broken(
            "the issuer lives in another hour",
            Setup::new(&fast.url),
            none,
            "issuers.dev clock",
            "it is 3600 s ahead|it is 3599 s ahead",
            "timedatectl",
        ),
        broken(
            "the issuer takes no assertions",
            Setup::new(&unable.url),
            none,
            "identities.shop.credentials.orders",
            "private_key_jwt",
            "switched on",
        ),
        broken(
            "the issuer cannot bind as it is asked to",
            Setup::new(&unbound.url).bound("https://orders.example.com"),
            none,
            "identities.shop.credentials.orders",
            "ES256",
            "switched on",
        ),
        broken(
            "the issuer's name differs by a slash",
            Setup::new(&slashed.url),
            none,
            "issuers.dev metadata",
            "to the last slash",
            "issuer",
        ),
        broken(
            "the certificate is of another key",
            mismatch.and(&pair),
            none,
            "key of pay's certificate",
            "pay",
            "openssl",
        ),
        broken(
            "the sealing key is not there",
            sealing.and("\n[keys]\nsealing_key = \"/nowhere/sealing.key\"\n"),
            none,
            "sealing key",
            "/nowhere/sealing.key",
            "sealing_key",
        ),
        broken(
            "the state directory is another machine's",
            base(),
            |dir| fs::write(dir.join("state/machine"), format!("{} adopted\n", "0".repeat(64))).unwrap(),
            "machine",
            "belongs to a",
            "keybearer keys adopt",
        ),
        broken(
            "who is switched off cannot be told",
            base(),
            |dir| fs::write(dir.join("state/disabled.json"), "shop").unwrap(),
            "disabled identities",
            "disabled.json",
            "on purpose",
        ),
        broken(
            "a sealed secret was never put in",
            unsealed,
            none,
            "sealed secret of shop.smtp",
            "nothing is sealed for it yet",
            "keybearer seal shop smtp",
        ),
        broken("somebody changed the ledger", base(), spoil_ledger, "ledger", "record 0", "as evidence"),
        broken(
            "an exception has hardly a day left",
            base(),
            none,
            "identities.shop.credentials.orders",
            "its exception ends",
            "bind it",
        ),
    ];
    // Where even what is built lies in memory, there is no such setup to be had.
    let place = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    if rustix::fs::statfs(place.path()).unwrap().f_type != TMPFS {
        cases.push(broken(
            "what is kept for the next start outlives the host's power",
            Setup::within(place, &good.url, "match = { uid = 64001 }"),
            none,
            "runtime directory",
            "is on a disk",
            "runtime_directory below /run",
        ));
    }
    let mut named = BTreeSet::new();
    for Broken { how, setup, then, about, what, remedy } in cases {
        let dir = setup.dir.path().to_owned();
        if how != "a key of the settings is misspelt"
            && how != "the sealing key is not there"
            && how != "the certificate is of another key"
        {
            prepare(&setup);
        } else {
            setup.write();
        }
        then(&dir);
        let before = tree(&dir);
        let (code, findings, text) = doctor(&dir);
        let says = |it: &Value| what.split('|').any(|what| it["what"].as_str().unwrap().contains(what));
        let found = findings.iter().find(|it| it["about"] == about && says(it));
        let found = found.unwrap_or_else(|| panic!("{how}: nothing about {about} with {what:?} in {text}"));
        let said = found["remedy"].as_str().unwrap();
        assert!(said.contains(remedy) || (about == "settings" && !said.is_empty()), "{how}: {said}");
        let soon = how == "an exception has hardly a day left" || how.contains("outlives the host's power");
        assert_eq!(
            (found["verdict"].as_str().unwrap(), code),
            if soon { ("warn", 0) } else { ("fail", 65) },
            "{how}: {text}"
        );
        assert_eq!(before, tree(&dir), "{how}: looking changes nothing");
        let key = fs::read_to_string(dir.join("state/keys/shop.client-auth.pem")).unwrap_or_default();
        let secret = key.lines().nth(1).unwrap_or("no key at all");
        assert!(!text.contains(secret), "{how}");
        named.insert(how);
    }
    assert!(named.len() >= 10);
    // Nothing but a question that anybody may ask reached any issuer.
    for front in [&good, &secure, &fast, &unable, &unbound, &slashed] {
        for request in front.heard.lock().unwrap().iter().filter(|request| !request.is_empty()) {
            let lower = request.to_ascii_lowercase();
            assert!(request.starts_with("GET /.well-known/"), "{request}");
            assert!(
                !lower.contains("authorization:") && !lower.contains("assertion") && !lower.contains("dpop:"),
                "{request}"
            );
        }
    }
    // The same issuer over TLS, with its own root, is as it should be.
    let sound = with_ca(&secure.url, &ca);
    prepare(&sound);
    let (code, findings, text) = doctor(sound.dir.path());
    assert_eq!(code, 0, "{text}");
    assert!(findings.iter().any(|it| it["about"] == "issuers.dev tls" && it["verdict"] == "ok"), "{text}");
}

/// Has the keys made by the real command, and a ledger begun.
fn prepare(setup: &Setup) -> PathBuf {
    let config = setup.write();
    let made = Command::new(env!("CARGO_BIN_EXE_keybearer"))
        .args(["keys", "export", "--config"])
        .arg(&config)
        .output();
    assert!(made.as_ref().unwrap().status.success(), "{made:?}");
    fs::create_dir_all(setup.dir.path().join("run")).unwrap();
    chmod(&setup.dir.path().join("run"), 0o755);
    config
}

/// A ledger that never was whole.
fn spoil_ledger(dir: &Path) {
    let audit = dir.join("state/audit");
    fs::create_dir_all(&audit).unwrap();
    chmod(&audit, 0o700);
    let key = "keybearer/test+00000000+AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    fs::write(audit.join("checkpoint.pub"), key).unwrap();
    fs::write(audit.join("ledger.jsonl"), "no record\n").unwrap();
}

/// Every file with its mode and what is in it.
fn tree(dir: &Path) -> Vec<(PathBuf, u32, Vec<u8>)> {
    let mut found = vec![];
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let meta = fs::symlink_metadata(&path).unwrap();
        if meta.is_dir() {
            found.push((path.clone(), meta.permissions().mode(), vec![]));
            found.extend(tree(&path));
        } else {
            found.push((path.clone(), meta.permissions().mode(), fs::read(&path).unwrap_or_default()));
        }
    }
    found.sort();
    found
}

// The issuer answers while this test waits for the command.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_runs_is_compared_with_what_is_written() {
    let issuer = issuer(300);
    let setup = Setup::new(issuer.handle.url());
    let agent = setup.start(Some(&issuer.handle));
    let (code, findings, text) = doctor(agent.dir.path());
    assert_eq!(code, 0, "{text}");
    let about = |findings: &[Value], about: &str| findings.iter().find(|it| it["about"] == about).cloned();
    assert!(about(&findings, "agent").unwrap()["what"].as_str().unwrap().contains("it runs"), "{text}");
    // What is written and not read yet.
    setup.with("drain = \"2s\"", "drain = \"3s\"").write();
    let (code, findings, text) = doctor(agent.dir.path());
    let found = about(&findings, "agent settings").unwrap();
    assert_eq!((code, found["verdict"].as_str()), (0, Some("warn")), "{text}");
    assert!(found["remedy"].as_str().unwrap().contains("keybearer reload"), "{text}");
    // A socket that somebody opened to all.
    chmod(&agent.socket("operator.sock"), 0o666);
    let (code, findings, text) = doctor(agent.dir.path());
    assert_eq!(code, 65, "{text}");
    assert!(
        about(&findings, "listen.operator").unwrap()["what"].as_str().unwrap().contains("0666"),
        "{text}"
    );
    // For people: the worst first, with what to do under it.
    let output = agent.keybearer(&[
        "doctor",
        "--quiet",
        "--config",
        agent.dir.path().join("agent.toml").to_str().unwrap(),
    ]);
    let words = String::from_utf8(output.stdout).unwrap();
    assert!(words.starts_with("fail  listen.operator: "), "{words}");
    assert!(words.lines().nth(1).unwrap().contains("-> restart the agent"), "{words}");
}

//! `keybearer helper` over the real binary and a real agent: what git, docker, kubectl, Google's libraries and the AWS SDKs write and
//! read, where errors go, and what is on record. The clients themselves are in tests/peers/tools.sh.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    os::unix::fs::symlink,
    process::{Command, Output, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use keybearer::{audit::EventType, clock::SystemClock, jose::Unverified, proto::v1::credential::Kind};
use serde_json::{Value, json};
use support::{BINARY, Issuer, Setup, TestAgent, issuer};

const GIT: &str = "protocol=https\nhost=orders.example\n";

/// A client that runs a helper: the name it knows it by, its arguments, what it says, and its variables.
fn run(agent: &TestAgent, line: &[&str], says: &str, variables: &[(&str, &str)]) -> Output {
    let program = agent.dir.path().join(line[0]);
    if !program.exists() {
        symlink(BINARY, &program).unwrap();
    }
    let mut child = Command::new(program)
        .args(&line[1..])
        .env("KEYBEARER_SOCKET", agent.socket("agent.sock"))
        .envs(variables.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A helper that reads nothing has ended by now, perhaps.
    let _ = child.stdin.take().unwrap().write_all(says.as_bytes());
    child.wait_with_output().unwrap()
}

fn git(agent: &TestAgent, operation: &str, says: &str) -> Output {
    run(agent, &["git-credential-keybearer", operation], says, &[])
}

fn docker(agent: &TestAgent, operation: &str, says: &str) -> Output {
    run(agent, &["docker-credential-keybearer", operation], says, &[])
}

fn out(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

fn err(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

async fn token(agent: &TestAgent) -> String {
    let credential = agent.client().await.get("orders", &[]).await.unwrap();
    let Some(Kind::AccessToken(token)) = credential.kind else { panic!("no token") };
    token.token
}

fn is_revoked(issuer: &Issuer, token: &str) -> bool {
    let claims: Value = Unverified::parse(token).unwrap().claims().unwrap();
    issuer.handle.is_revoked(claims["jti"].as_str().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn git_gets_what_is_for_its_host_and_no_other() {
    // LEGACY 4.8
    let issuer = issuer(300);
    let agent = Setup::new(issuer.handle.url()).start(Some(&issuer.handle));
    let token = token(&agent).await;
    let got = git(&agent, "get", &format!("capability[]=authtype\n{GIT}path=shop.git\n\n"));
    let (fields, end) = out(&got).split_once("\npassword_expiry_utc=").unwrap();
    assert_eq!(fields, format!("username=x-access-token\npassword={token}"));
    let left = end.trim().parse::<i64>().unwrap() - SystemClock::shared().wall().as_second();
    assert!((200..=300).contains(&left), "{left}");
    assert_eq!((got.status.code(), err(&got)), (Some(0), ""));
    // As `helper = /usr/bin/keybearer helper git` in git's settings, too.
    let by_command = run(&agent, &["keybearer", "helper", "git", "--credential", "orders", "get"], GIT, &[]);
    assert_eq!(out(&by_command), out(&got));

    for other in ["orders.example.evil.test", "xorders.example", "orders.example:8443", "github.com"] {
        let nothing = git(&agent, "get", &format!("protocol=https\nhost={other}\n\n"));
        assert_eq!((nothing.status.code(), out(&nothing), err(&nothing)), (Some(0), "", ""), "{other}");
    }
    let plain = git(&agent, "get", "protocol=http\nhost=orders.example\n\n");
    assert_eq!(
        (plain.status.code(), out(&plain)),
        (Some(65), ""),
        "somebody else may have a password for that"
    );
    assert!(err(&plain).contains("https"), "{plain:?}");
    for hostile in [
        "host=orders.example\rx",
        "host=orders.example%0a",
        "host=orders.example\nhost=evil.test",
        "host=orders.example.",
    ] {
        let refused = git(&agent, "get", &format!("protocol=https\n{hostile}\n\n"));
        assert_eq!((refused.status.code(), out(&refused)), (Some(65), "quit=1\n"), "{hostile:?}");
        assert!(!err(&refused).contains("evil") && err(&refused).lines().count() == 1, "{refused:?}");
    }
    let long = git(&agent, "get", &format!("{GIT}path={}\n\n", "x".repeat(70_000)));
    assert_eq!(out(&long), "", "{long:?}");
    // What comes some day is none of this version's business.
    for operation in ["store", "capability", "approve"] {
        let done = git(&agent, operation, &format!("{GIT}username=u\npassword=typed\n\n"));
        assert_eq!((done.status.code(), out(&done), err(&done)), (Some(0), "", ""), "{operation}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_server_refuses_is_revoked_and_another_takes_its_place() {
    // LEGACY 4.8: erase
    let issuer = issuer(300);
    let agent = Setup::new(issuer.handle.url()).start(Some(&issuer.handle));
    let first = token(&agent).await;
    let erase = |password: &str| {
        git(&agent, "erase", &format!("{GIT}username=x-access-token\npassword={password}\n\n"))
    };
    let typed = erase("typed");
    assert_eq!((typed.status.code(), out(&typed)), (Some(0), ""));
    assert!(!is_revoked(&issuer, &first), "what somebody typed was wrong, not this");
    assert_eq!(erase(&first).status.code(), Some(0));
    assert!(is_revoked(&issuer, &first));
    let second = token(&agent).await;
    assert_ne!(first, second);
    erase(&first);
    assert!(!is_revoked(&issuer, &second), "who comes late ends nothing");
    let returned = |records: &[keybearer::audit::Record]| {
        records.iter().filter(|record| record.entry.event.kind == EventType::CredentialReturn).count()
    };
    assert_eq!(returned(&agent.records()), 1);
    assert!(docker(&agent, "erase", "orders.example\n").status.success());
    assert!(is_revoked(&issuer, &second));
    assert_eq!(returned(&agent.records()), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_gets_what_is_for_its_registry_and_hears_of_errors_where_it_looks() {
    // LEGACY 4.9
    let issuer = issuer(300);
    let setup = Setup::new(issuer.handle.url())
        .with("binding = \"bearer\"", "binding = \"bearer\"\nusername = \"oauth2accesstoken\"");
    let agent = setup.start(Some(&issuer.handle));
    let token = token(&agent).await;
    let got = docker(&agent, "get", "orders.example\n");
    let wanted = json!({"ServerURL": "orders.example", "Username": "oauth2accesstoken", "Secret": token});
    assert_eq!(serde_json::from_str::<Value>(out(&got)).unwrap(), wanted);
    assert_eq!((got.status.code(), err(&got)), (Some(0), ""));
    let unknown = docker(&agent, "get", "https://index.docker.io/v1/\n");
    assert_eq!(
        (unknown.status.code(), out(&unknown), err(&unknown)),
        (Some(1), "credentials not found in native keychain\n", "")
    );
    let listed = docker(&agent, "list", "");
    assert_eq!(
        (listed.status.code(), out(&listed)),
        (Some(0), "{\"orders.example\":\"oauth2accesstoken\"}\n")
    );
    let stored = docker(
        &agent,
        "store",
        &json!({"ServerURL": "orders.example", "Username": "u", "Secret": "typed"}).to_string(),
    );
    assert_eq!((stored.status.code(), err(&stored)), (Some(1), ""));
    assert!(out(&stored).contains("do not log in") && !out(&stored).contains("typed"));
    let plain = docker(&agent, "get", "http://orders.example");
    assert!(plain.status.code() == Some(1) && out(&plain).contains("https"), "{plain:?}");
    assert!(out(&docker(&agent, "version", "")).starts_with("docker-credential-keybearer v"));

    let stranger = Setup::matching(issuer.handle.url(), "match = { uid = 54321 }").start(None);
    let listed = docker(&stranger, "list", "");
    assert_eq!((listed.status.code(), out(&listed)), (Some(0), "{}\n"));
    let denied = docker(&stranger, "get", "orders.example");
    assert!(denied.status.code() == Some(1) && out(&denied).contains("NOT_ENTITLED"), "{denied:?}");
    assert_eq!(out(&denied).lines().count(), 1);
    // Who is nobody is told so by name, and git may ask somebody else.
    let named = run(&stranger, &["keybearer", "helper", "aws", "orders"], "", &[]);
    assert_eq!((named.status.code(), out(&named)), (Some(77), ""));
    assert!(
        err(&named).starts_with("keybearer: orders: NOT_ENTITLED") && err(&named).lines().count() == 1,
        "{named:?}"
    );
    assert_eq!(out(&git(&stranger, "get", GIT)), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_gets_a_token_for_the_cluster_that_it_names() {
    // LEGACY 4.7
    let issuer = issuer(300);
    let agent = Setup::new(issuer.handle.url()).start(Some(&issuer.handle));
    let ask = |version: &str, server: &str| {
        let spec = json!({"cluster": {"server": server}, "interactive": false});
        let info = json!({"apiVersion": version, "kind": "ExecCredential", "spec": spec}).to_string();
        run(&agent, &["keybearer", "helper", "kubectl", "orders"], "", &[("KUBERNETES_EXEC_INFO", &info)])
    };
    let v1 = "client.authentication.k8s.io/v1";
    let got = ask(v1, "https://orders.example");
    let answer: Value = serde_json::from_str(out(&got)).unwrap();
    assert_eq!((answer["apiVersion"].as_str(), answer["kind"].as_str()), (Some(v1), Some("ExecCredential")));
    assert_eq!(answer["status"]["token"].as_str(), Some(token(&agent).await.as_str()));
    assert!(answer["status"]["expirationTimestamp"].as_str().unwrap().ends_with('Z'));
    for (version, server, told) in [
        (v1, "https://evil.example", "origins"),
        ("client.authentication.k8s.io/v2", "https://orders.example", "apiVersion"),
    ] {
        let refused = ask(version, server);
        assert!(
            !refused.status.success() && out(&refused).is_empty() && err(&refused).contains(told),
            "{refused:?}"
        );
    }
    let by_hand = run(&agent, &["keybearer", "helper", "kubectl", "orders"], "", &[]);
    assert_eq!((by_hand.status.code(), out(&by_hand)), (Some(65), ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn google_reads_errors_where_it_reads_tokens() {
    // LEGACY 4.6: standard error is merged into standard output, and a code that is not 0 hides the message.
    let issuer = issuer(300);
    let agent = Setup::new(issuer.handle.url()).start(Some(&issuer.handle));
    let ask = |credential: &str, more: &[(&str, &str)]| {
        let got = run(&agent, &["keybearer", "helper", "gcp", credential], "", more);
        assert_eq!((got.status.code(), err(&got), out(&got).lines().count()), (Some(0), "", 1));
        serde_json::from_str::<Value>(out(&got)).unwrap()
    };
    let jwt = "urn:ietf:params:oauth:token-type:jwt";
    let got = ask(
        "orders",
        &[("GOOGLE_EXTERNAL_ACCOUNT_TOKEN_TYPE", jwt), ("GOOGLE_EXTERNAL_ACCOUNT_REVOKE", "0")],
    );
    let first = token(&agent).await;
    assert_eq!(
        (&got["success"], &got["version"], &got["token_type"]),
        (&json!(true), &json!(1), &json!(jwt))
    );
    assert_eq!(got["id_token"], *first);
    let left = got["expiration_time"].as_i64().unwrap() - SystemClock::shared().wall().as_second();
    assert!((200..=300).contains(&left), "{left}");
    // Nothing is left lying about.
    let file = agent.dir.path().join("cache.json");
    ask("orders", &[("GOOGLE_EXTERNAL_ACCOUNT_OUTPUT_FILE", file.to_str().unwrap())]);
    assert!(!file.exists());
    let unknown = ask("no-such-thing", &[]);
    assert_eq!((&unknown["success"], &unknown["code"]), (&json!(false), &json!("403")));
    assert!(unknown["message"].as_str().unwrap().contains("NOT_ENTITLED"), "{unknown}");
    let saml =
        ask("orders", &[("GOOGLE_EXTERNAL_ACCOUNT_TOKEN_TYPE", "urn:ietf:params:oauth:token-type:saml2")]);
    assert_eq!((&saml["success"], &saml["code"]), (&json!(false), &json!("400")));
    let revoked = ask(
        "orders",
        &[("GOOGLE_EXTERNAL_ACCOUNT_REVOKE", "1"), ("GOOGLE_EXTERNAL_ACCOUNT_INTERACTIVE", "1")],
    );
    assert_eq!(revoked, json!({"version": 1, "success": true}));
    assert!(is_revoked(&issuer, &first));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_client_can_use_is_not_even_fetched() {
    // MT-11, S37: tokens that a key binds, and what ends with the helper.
    let issuer = issuer(300);
    let bound = Setup::new(issuer.handle.url()).bound("https://orders.example").start(Some(&issuer.handle));
    let scope = "scope = [\"orders:read\", \"orders:write\"]";
    let alone = Setup::new(issuer.handle.url())
        .with(scope, &format!("{scope}\nper = \"process\""))
        .start(Some(&issuer.handle));
    for (agent, told) in [(&bound, "dated exception"), (&alone, "per = \"identity\"")] {
        let of_git = git(agent, "get", GIT);
        assert_eq!(
            (of_git.status.code(), out(&of_git)),
            (Some(78), "quit=1\n"),
            "it is for this host: nobody else is asked"
        );
        let of_docker = docker(agent, "get", "orders.example");
        assert_eq!((of_docker.status.code(), err(&of_docker)), (Some(1), ""));
        let of_aws = run(agent, &["keybearer", "helper", "aws", "orders"], "", &[]);
        assert_eq!((of_aws.status.code(), out(&of_aws)), (Some(78), ""));
        let of_gcp = run(agent, &["keybearer", "helper", "gcp", "orders"], "", &[]);
        for text in [err(&of_git), out(&of_docker), err(&of_aws), out(&of_gcp).replace("\\\"", "\"").as_str()]
        {
            assert!(text.contains("orders is nothing that") && text.contains(told), "{text}");
        }
        assert_eq!(out(&docker(agent, "list", "")), "{}\n");
    }
    assert_eq!(issuer.handle.diary().requests("/token"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_agent_or_its_issuer_the_reason_is_told() {
    let issuer = issuer(300);
    let agent = Setup::new(issuer.handle.url()).start(Some(&issuer.handle));
    issuer.handle.set_fault(keybearer::dev::Fault::InvalidClient, None);
    let refused = git(&agent, "get", GIT);
    assert_eq!(
        (refused.status.code(), out(&refused)),
        (Some(75), "quit=1\n"),
        "no other helper, and no person is asked"
    );
    assert!(err(&refused).starts_with("keybearer: orders: CLIENT_AUTH_REJECTED"), "{refused:?}");
    let dir = Arc::clone(&agent.dir);
    agent.stop();
    let nowhere = dir.path().join("run/agent.sock");
    let alone = Command::new(BINARY)
        .args(["helper", "git", "get", "--socket"])
        .arg(&nowhere)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!((alone.status.code(), out(&alone)), (Some(65), "quit=1\n"), "it said nothing");
    let down = Command::new("sh")
        .args([
            "-c",
            "printf 'protocol=https\\nhost=orders.example\\n\\n' | \"$0\" helper git get --socket \"$1\"",
        ])
        .arg(BINARY)
        .arg(&nowhere)
        .output()
        .unwrap();
    assert_eq!((down.status.code(), out(&down)), (Some(69), ""), "whether the host is ours is not known");
    assert!(err(&down).contains("keybearer agent"), "{down:?}");
}

// --- aws ------------------------------------------------------------------------------------------------------------------

/// A server that logs in whom it is asked to, and leases access keys that live `life` seconds.
fn keys(life: u64) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let leased = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&leased);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            answer(stream, life, &count);
        }
    });
    (url, leased)
}

fn answer(mut stream: TcpStream, life: u64, leased: &AtomicUsize) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let (mut first, mut length) = (String::new(), 0);
    let _ = reader.read_line(&mut first);
    for line in reader.by_ref().lines().map_while(Result::ok).take_while(|line| !line.is_empty()) {
        if let Some(said) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = said.trim().parse().unwrap();
        }
    }
    let _ = reader.take(length).read_to_end(&mut vec![]);
    let body = if first.contains("/auth/jwt/login") {
        let auth = json!({"client_token": "s.token", "accessor": "a", "policies": [], "lease_duration": life, "renewable": false});
        json!({"auth": auth})
    } else if first.contains("/aws/creds/deploy") {
        let n = leased.fetch_add(1, Ordering::SeqCst) + 1;
        let data =
            json!({"access_key": "ASIAX", "secret_key": format!("secret-{n}"), "security_token": "st"});
        json!({"lease_id": format!("aws/creds/deploy/{n}"), "lease_duration": life, "renewable": false, "data": data})
    } else {
        json!({})
    };
    let body = body.to_string();
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close";
    let _ = write!(stream, "{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
}

fn leasing(issuer: &Issuer, url: &str, more: &str) -> TestAgent {
    let until = jiff::Timestamp::from_second(SystemClock::shared().wall().as_second() + 86_400).unwrap();
    let settings = format!(
        r#"
[issuers.bao]
kind = "openbao"
url = "{url}"
dev = true
timeout = "3s"

[identities.shop.credentials.deploy]
issuer = "bao"
client_id = "deploy"
lease = {{ at = "aws/creds/deploy" }}
{more}
exception = {{ owner = "shop@example.com", reason = "a test", until = "{until:.0}" }}
"#
    );
    Setup::new(issuer.handle.url()).and(&settings).start(Some(&issuer.handle))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_aws_sdk_gets_a_key_that_it_may_keep() {
    // LEGACY 4.2
    let issuer = issuer(300);
    let (url, leased) = keys(3600);
    let agent = leasing(&issuer, &url, "per = \"identity\"");
    for _ in 0..3 {
        let got = run(&agent, &["keybearer", "helper", "aws", "deploy"], "", &[]);
        assert_eq!((got.status.code(), err(&got)), (Some(0), ""));
        let answer: Value = serde_json::from_str(out(&got)).unwrap();
        assert_eq!((&answer["Version"], &answer["AccessKeyId"]), (&json!(1), &json!("ASIAX")));
        assert_eq!((&answer["SecretAccessKey"], &answer["SessionToken"]), (&json!("secret-1"), &json!("st")));
        let end: jiff::Timestamp = answer["Expiration"].as_str().unwrap().parse().unwrap();
        let left = end.as_second() - SystemClock::shared().wall().as_second();
        assert!((3000..=3600).contains(&left), "{left}");
    }
    assert_eq!(leased.load(Ordering::SeqCst), 1, "all processes share it");
    let token = run(&agent, &["keybearer", "helper", "aws", "orders"], "", &[]);
    assert!(err(&token).contains("AWS_WEB_IDENTITY_TOKEN_FILE") && out(&token).is_empty(), "{token:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_aws_key_that_lives_too_short_is_better_than_none() {
    // LEGACY 4.1: a whole life of less than fifteen minutes.
    let issuer = issuer(300);
    let (url, leased) = keys(300);
    let agent = leasing(&issuer, &url, "per = \"identity\"");
    for _ in 0..3 {
        let got = run(&agent, &["keybearer", "helper", "aws", "deploy"], "", &[]);
        assert_eq!((got.status.code(), err(&got)), (Some(0), ""));
        assert!(out(&got).contains("secret-"));
    }
    assert!(leased.load(Ordering::SeqCst) <= 2, "and another is not asked for each time");
    // Where the settings say that it cannot live long, nobody asks for it.
    let (url, leased) = keys(300);
    let agent = leasing(&issuer, &url, "per = \"identity\"\nmax_ttl = \"10m\"");
    assert!(run(&agent, &["keybearer", "helper", "aws", "deploy"], "", &[]).status.success());
    assert_eq!(leased.load(Ordering::SeqCst), 1);
    // A lease is one process's own unless the settings say otherwise.
    let (url, leased) = keys(300);
    let agent = leasing(&issuer, &url, "");
    let alone = run(&agent, &["keybearer", "helper", "aws", "deploy"], "", &[]);
    assert!(err(&alone).contains("per = \"identity\"") && out(&alone).is_empty(), "{alone:?}");
    assert_eq!(leased.load(Ordering::SeqCst), 0);
}

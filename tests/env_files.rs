//! Environment files and configuration files over the real binary and a real agent, read by those who read them: shells, curl and psql
//! here, the service manager in `systemd.rs`, docker, compose and python-dotenv in `tests/peers`. And what must not happen: a secret
//! in the wrong place, half a file, an old one lost.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "support/disk.rs"]
mod disk;
#[path = "support/lessor.rs"]
mod lessor;
mod support;

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpListener,
    os::unix::{
        fs::{MetadataExt as _, PermissionsExt as _, symlink},
        net::UnixDatagram,
    },
    path::{Path, PathBuf},
    process::{Child, ChildStderr, Command, Output, Stdio},
    time::Duration,
};

use disk::Disk;
use lessor::Lessor;
use serde_json::Value;
use support::{BINARY, Issuer, Setup, TestAgent, demo_api, is_root, issuer, skip};

/// A password that every reader stumbles over in its own way, and that docker's files can carry.
const NASTY: &str = "p'a\"s\\s:w$o`r #d%n=1 ";

struct Stage {
    agent: TestAgent,
    lessor: Lessor,
    place: tempfile::TempDir,
    issuer: Issuer,
}

/// An agent whose program gets a token, and a database's user and password.
fn stage(values: &[(&str, &str)], seconds: u64, deliver: &str) -> Stage {
    let issuer = issuer(300);
    let lessor = Lessor::of(seconds, values);
    let setup = Setup::new(issuer.handle.url()).and(&lessor.settings("database")).and(deliver);
    let agent = setup.start(Some(&issuer.handle));
    // In memory where there is some: /dev/shm is a tmpfs nearly everywhere.
    let place = tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| tempfile::tempdir().unwrap());
    Stage { agent, lessor, place, issuer }
}

impl Stage {
    fn path(&self, name: &str) -> String {
        self.place.path().join(name).display().to_string()
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    /// Runs `keybearer env-file` with these arguments; where a `@` begins one, it is a path in our place.
    fn env_file(&self, arguments: &[&str]) -> Output {
        self.run("env-file", arguments)
    }

    fn run(&self, command: &str, arguments: &[&str]) -> Output {
        let arguments = self.arguments(command, arguments);
        self.agent.keybearer(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn arguments(&self, command: &str, arguments: &[&str]) -> Vec<String> {
        let own = |argument: &&str| match argument.strip_prefix('@') {
            Some(name) => self.path(name),
            None => (*argument).to_owned(),
        };
        std::iter::once(command.to_owned()).chain(arguments.iter().map(own)).collect()
    }

    /// Starts a command that stays, and waits until it says that it is ready.
    fn watch(&self, command: &str, arguments: &[&str]) -> Watcher {
        let notify = self.agent.dir.path().join("watcher");
        let _ = fs::remove_file(&notify);
        let told = UnixDatagram::bind(&notify).unwrap();
        told.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut child = Command::new(BINARY)
            .args(self.arguments(command, arguments))
            .env("KEYBEARER_SOCKET", self.agent.socket("agent.sock"))
            .env("NOTIFY_SOCKET", &notify)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut message = [0; 64];
        let length = told.recv(&mut message).unwrap();
        assert_eq!(&message[..length], b"READY=1\n");
        let errors = BufReader::new(child.stderr.take().unwrap());
        Watcher { child, errors, said: String::new() }
    }

    fn names(&self) -> Vec<String> {
        let names = fs::read_dir(self.place.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<String> = names.map(|name| name.into_string().unwrap()).collect();
        names.sort();
        names
    }
}

/// Waits until something is so that another process brings about.
fn until(what: impl Fn() -> bool) {
    for _ in 0..400 {
        if what() {
            return;
        }
        // It tells nobody when it has: a look costs nothing.
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("it did not come to be");
}

/// A command that stays, which ends with the test.
struct Watcher {
    child: Child,
    errors: BufReader<ChildStderr>,
    said: String,
}

impl Watcher {
    /// Waits until it says this.
    fn says(&mut self, words: &str) {
        while !self.said.contains(words) {
            assert_ne!(self.errors.read_line(&mut self.said).unwrap(), 0, "it ended: {}", self.said);
        }
    }

    /// Its exit code and what it said.
    fn ended(mut self) -> (Option<i32>, String) {
        self.errors.read_to_string(&mut self.said).unwrap();
        (self.child.wait().unwrap().code(), std::mem::take(&mut self.said))
    }

    fn stop(self) -> (Option<i32>, String) {
        assert!(Command::new("kill").arg(self.child.id().to_string()).status().unwrap().success());
        self.ended()
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn done(output: &Output) {
    assert_eq!((output.status.code(), said(output).as_str()), (Some(0), ""));
}

fn said(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Exit code and words of a refusal, which holds no secret.
fn refused(output: &Output, code: i32, words: &[&str]) {
    let told = said(output);
    assert_eq!(output.status.code(), Some(code), "{told}");
    for word in words {
        assert!(told.contains(word), "{word}: {told}");
    }
    assert!(!told.contains("canary") && support::jwt_in(&told).is_none(), "{told}");
}

/// What a shell has after reading a file.
fn sourced(file: &str, name: &str) -> String {
    let script = format!(". \"$0\"; printf %s \"${name}\"");
    let output = Command::new("sh").args(["-c", &script, file]).env_clear().output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

const DECLARED: &str = r#"
[identities.shop.deliver]
env = { ORDERS_TOKEN = "orders.token", DB_PASSWORD = "database.password" }
"#;

#[tokio::test(flavor = "multi_thread")]
async fn what_is_declared_is_written_for_each_reader() {
    // LEGACY 2.4
    let stage = stage(&[("username", "u"), ("password", NASTY)], 300, DECLARED);
    let token = String::from_utf8(stage.agent.keybearer(&["get", "orders"]).stdout).unwrap();
    let token = token.trim();
    let write = |format: &str| {
        let name = ["--name", "shop-env"];
        let more: &[&str] = if format == "k8s-secret" { &name } else { &[] };
        done(&stage.env_file(&[&["--format", format, "--out", "@env"], more].concat()));
        stage.read("env")
    };

    assert_eq!(
        write("systemd"),
        format!("DB_PASSWORD=\"p'a\\\"s\\\\s:w\\$o\\`r #d%n=1 \"\nORDERS_TOKEN=\"{token}\"\n")
    );
    assert_eq!(write("docker"), format!("DB_PASSWORD={NASTY}\nORDERS_TOKEN={token}\n"));
    write("sh");
    assert_eq!(sourced(&stage.path("env"), "DB_PASSWORD"), NASTY);
    assert_eq!(sourced(&stage.path("env"), "ORDERS_TOKEN"), token);
    let read: BTreeMap<String, String> = serde_json::from_str(&write("json")).unwrap();
    assert_eq!((read["DB_PASSWORD"].as_str(), read["ORDERS_TOKEN"].as_str()), (NASTY, token));
    let secret: Value = serde_json::from_str(&write("k8s-secret")).unwrap();
    assert_eq!((&secret["kind"], &secret["metadata"]["name"]), (&"Secret".into(), &"shop-env".into()));
    assert_eq!(secret["data"]["DB_PASSWORD"], "cCdhInNcczp3JG9gciAjZCVuPTEg");

    let meta = fs::metadata(stage.path("env")).unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.uid()), (0o400, rustix::process::geteuid().as_raw()));
    assert_eq!(stage.names(), ["env"], "nothing beside it");
    // Each is a call like any other: attested, and on record.
    let released =
        stage.agent.records().into_iter().filter(|record| record.entry.credential.is_some()).count();
    assert!(released >= 2 * 5, "{released}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_dialect_cannot_carry_leaves_the_old_file_and_names_who_can() {
    // "Bad input": newline, `$`, quotes.
    let stage = stage(&[("password", "canary\n'$x")], 300, "");
    fs::write(stage.path("env"), "old").unwrap();
    let write =
        |format: &str| stage.env_file(&["--format", format, "--env", "P=database.password", "--out", "@env"]);
    let words = [
        "P (database.password)",
        "docker's --env-file",
        "line break",
        "--format systemd or sh or json or k8s-secret",
    ];
    refused(&write("docker"), 65, &words);
    refused(&write("dotenv"), 65, &["P (database.password)", "dotenv", "\"$\"", "--format systemd or sh"]);
    assert_eq!((stage.read("env").as_str(), stage.names()), ("old", vec!["env".to_owned()]));
    done(&write("sh"));
    assert_eq!(sourced(&stage.path("env"), "P"), "canary\n'$x");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_the_command_is_said_before_anything_is_fetched() {
    let stage = stage(&[("password", "canary")], 300, "");
    let tried = |arguments: &[&str]| stage.env_file(&[arguments, &["--format", "sh"]].concat());
    let out = ["--out", "@env"];
    let loader = tried(&[&["--env", "LD_PRELOAD=database.password"], &out[..]].concat());
    refused(&loader, 64, &["--env LD_PRELOAD", "--allow-loader-variables"]);
    done(&tried(
        &[&["--env", "LD_PRELOAD=database.password", "--allow-loader-variables"], &out[..]].concat(),
    ));
    fs::remove_file(stage.path("env")).unwrap();
    for (arguments, code, words) in [
        (vec!["--env", "A=database.password", "--env", "A=orders.token"], 64, "A is there twice"),
        (vec!["--env", "A=database"], 64, "CREDENTIAL.FIELD"),
        (vec!["--env", "A-B=database.password"], 64, "name of a variable"),
        (vec!["--env", "A"], 64, "NAME=CREDENTIAL.FIELD"),
        (vec!["--file", "A=database.password"], 64, "--files-in"),
        (vec!["--env", "A=database.password", "--mode", "0644"], 64, "nobody else"),
        (vec!["--env", "A=database.password", "--owner", "no such"], 64, "no user"),
        (vec!["--env", "A=database.password", "--name", "x"], 64, "k8s-secret"),
        (vec!["--env", "A=database.nosuch"], 78, "it has expires_at, password"),
        (vec!["--env", "A=nosuch.token"], 77, "NOT_ENTITLED"),
        (vec![], 78, "nothing is declared"),
    ] {
        refused(&tried(&[&arguments, &out[..]].concat()), code, &[words]);
        assert_eq!(stage.names(), [""; 0], "{arguments:?}");
    }
    let secret = stage.env_file(&["--format", "k8s-secret", "--env", "A=orders.token", "--out", "@env"]);
    refused(&secret, 64, &["--name"]);
    let nobody = Command::new(BINARY)
        .args([
            "env-file",
            "--format",
            "sh",
            "--env",
            "A=a.b",
            "--start-timeout",
            "0",
            "--socket",
            "/nonexistent/sock",
        ])
        .args(["--out", &stage.path("env")])
        .output()
        .unwrap();
    refused(&nobody, 69, &["no agent listens there"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_that_others_can_get_at_is_refused_before_anything_is_fetched() {
    // LEGACY 2.5
    let stage = stage(&[("password", "canary")], 300, "");
    let write = |out: &str, more: &[&str]| {
        let start = ["--format", "sh", "--env", "P=database.password", "--out", out];
        stage.env_file(&[&start[..], more].concat())
    };
    fs::create_dir(stage.path("dir")).unwrap();
    symlink("dir", stage.path("link")).unwrap();
    symlink("/etc/passwd", stage.path("dir/env")).unwrap();
    refused(&write("@link/env", &[]), 78, &["link is a symbolic link"]);
    refused(&write("@dir/env", &[]), 78, &["a symbolic link is there"]);
    refused(&write("@dir", &[]), 78, &["a directory is there"]);
    refused(&write("@gone/env", &[]), 74, &["gone", "cannot open the directory"]);
    fs::set_permissions(stage.path("dir"), fs::Permissions::from_mode(0o777)).unwrap();
    refused(&write("@dir/other", &[]), 78, &["others can put files"]);

    let disk = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let out = disk.path().join("env").display().to_string();
    let tried = write(&out, &[]);
    if tried.status.success() {
        return skip(
            "a_place_that_others_can_get_at_is_refused: on a disk",
            "what is built here is built in memory",
        );
    }
    refused(&tried, 78, &["is on a disk", "--allow-disk"]);
    assert!(!Path::new(&out).exists());
    let told = write(&out, &["--allow-disk"]);
    assert_eq!(told.status.code(), Some(0));
    assert!(said(&told).contains("is on a disk ("), "{}", said(&told));
    assert_eq!(fs::read_to_string(&out).unwrap(), "export P='canary'\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_leaves_the_old_file_and_nothing_beside_it() {
    // "Bad input": a full tmpfs.
    let stage = stage(&[("password", "canary")], 300, "");
    let at = stage.agent.dir.path().join("small");
    let Some(disk) = is_root().then(|| Disk::mount(&at)).flatten() else {
        return skip(
            "a_full_disk_leaves_the_old_file_and_nothing_beside_it",
            "only root can mount a small disk",
        );
    };
    let out = at.join("env").display().to_string();
    let set = at.join("set").display().to_string();
    fs::create_dir(&set).unwrap();
    let start = [
        "--format",
        "sh",
        "--file",
        "F=database.password",
        "--files-in",
        &set,
        "--env",
        "P=database.password",
    ];
    let write = || stage.env_file(&[&start[..], &["--out", &out]].concat());
    done(&write());
    let before = fs::read_to_string(&out).unwrap();
    disk.fill();
    refused(&write(), 74, &["No space left", "untouched"]);
    let single = stage.env_file(&["--format", "sh", "--env", "P=database.password", "--out", &out]);
    refused(&single, 74, &[&out, "No space left", "untouched"]);
    assert_eq!(fs::read_to_string(&out).unwrap(), before);
    assert_eq!(sourced(&out, "P"), "canary");
    assert_eq!(fs::read_to_string(sourced(&out, "F")).unwrap(), "canary");
    let count = |path: &Path| fs::read_dir(path).unwrap().count();
    assert_eq!(
        (count(&at), count(Path::new(&set))),
        (3, 3),
        "env, set, ballast; F, ..data and what it leads to"
    );
    disk.clear();
    done(&write());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_is_killed_at_any_moment_leaves_a_whole_file() {
    let (old, new) = ("o".repeat(60_000), "n".repeat(50_000));
    let stage = stage(&[("password", &old)], 300, "");
    let arguments =
        stage.arguments("env-file", &["--format", "sh", "--env", "P=database.password", "--out", "@env"]);
    done(&stage.run("env-file", &["--format", "sh", "--env", "P=database.password", "--out", "@env"]));
    let whole = |value: &str| format!("export P='{value}'\n");
    let released = stage.agent.keybearer(&["revoke", "shop"]);
    assert!(released.status.success(), "{released:?}");
    stage.lessor.leases(300, &[("password", &new)]);
    let mut killed = 0;
    for attempt in 0..60 {
        let mut writer = Command::new(BINARY)
            .args(&arguments)
            .env("KEYBEARER_SOCKET", stage.agent.socket("agent.sock"))
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Later each time, so that every moment of its short life is met.
        std::thread::sleep(Duration::from_micros(500 * attempt));
        writer.kill().unwrap();
        killed += usize::from(!writer.wait().unwrap().success());
        let read = stage.read("env");
        assert!(read == whole(&old) || read == whole(&new), "{} bytes after {attempt}", read.len());
    }
    assert!(killed > 0);
    done(&stage.run("env-file", &["--format", "sh", "--env", "P=database.password", "--out", "@env"]));
    assert_eq!(
        (stage.read("env"), stage.names()),
        (whole(&new), vec!["env".to_owned()]),
        "what they left is gone"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn standard_output_is_for_pipes() {
    let stage = stage(&[("password", "canary")], 300, "");
    let arguments = ["--format", "sh", "--env", "P=database.password", "--out", "-"];
    let piped = stage.env_file(&arguments);
    assert_eq!(String::from_utf8(piped.stdout.clone()).unwrap(), "export P='canary'\n");
    done(&piped);
    refused(&stage.env_file(&[&arguments[..], &["--watch"]].concat()), 64, &["name one"]);
    // util-linux has a terminal for us.
    let line = format!(
        "{BINARY} env-file --format sh --env P=database.password --out - --socket {}",
        stage.agent.socket("agent.sock").display()
    );
    match Command::new("script").args(["-qec", &line, "/dev/null"]).stdin(Stdio::null()).output() {
        Ok(shown) => {
            let shown = String::from_utf8(shown.stdout).unwrap();
            assert!(shown.contains("is a terminal") && !shown.contains("canary"), "{shown}");
        }
        Err(_) => skip("standard_output_is_for_pipes: a terminal", "script (util-linux) is not here"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_go_along_and_their_paths_stand_in_the_variables() {
    let declared = r#"
[identities.shop.deliver]
env = { DB_USER = "database.username" }
file = { DB_PASSWORD_FILE = "database.password", ORDERS_FILE = "orders.authorization" }
"#;
    let stage = stage(&[("username", "u1"), ("password", "p\n1")], 300, declared);
    refused(
        &stage.env_file(&["--format", "docker", "--out", "@env"]),
        78,
        &["DB_PASSWORD_FILE", "--files-in"],
    );
    refused(
        &stage.env_file(&["--format", "docker", "--files-in", "@files", "--out", "@env"]),
        74,
        &["files"],
    );
    fs::create_dir(stage.path("files")).unwrap();
    fs::set_permissions(stage.path("files"), fs::Permissions::from_mode(0o750)).unwrap();
    let write = ["--format", "docker", "--files-in", "@files", "--out", "@env", "--mode", "0440"];
    done(&stage.env_file(&write));
    let files = stage.path("files");
    let wanted =
        format!("DB_PASSWORD_FILE={files}/DB_PASSWORD_FILE\nDB_USER=u1\nORDERS_FILE={files}/ORDERS_FILE\n");
    assert_eq!(stage.read("env"), wanted);
    assert_eq!(stage.read("files/DB_PASSWORD_FILE"), "p\n1", "what docker's file cannot carry, a file can");
    assert!(stage.read("files/ORDERS_FILE").starts_with("Bearer eyJ"));
    assert_eq!(fs::metadata(stage.path("files/ORDERS_FILE")).unwrap().mode() & 0o7777, 0o440);
    assert_eq!(fs::metadata(stage.path("files/..data")).unwrap().mode() & 0o7777, 0o750);
    // Only what is named, where something is.
    done(&stage.env_file(&["--format", "docker", "--env", "U=database.username", "--out", "@other"]));
    assert_eq!(stage.read("other"), "U=u1\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn watched_files_are_fresh_until_the_right_ends() {
    let stage = stage(&[("username", "u1"), ("password", "p1")], 5, "");
    fs::create_dir(stage.path("files")).unwrap();
    let mut watcher = stage.watch(
        "env-file",
        &[
            "--format",
            "sh",
            "--env",
            "U=database.username",
            "--file",
            "P=database.password",
            "--files-in",
            "@files",
            "--out",
            "@env",
            "--watch",
        ],
    );
    assert_eq!(stage.read("env"), format!("export P='{}'\nexport U='u1'\n", stage.path("files/P")));
    stage.lessor.leases(5, &[("username", "u2"), ("password", "p2")]);
    until(|| sourced(&stage.path("env"), "U") == "u2");
    assert_eq!(stage.read("files/P"), "p2", "the files first: the variables lead to them");

    // A new value that cannot be written leaves the old file, and the next one that can is written.
    stage.lessor.leases(5, &[("username", "canary\0"), ("password", "p3")]);
    watcher.says("is tried again");
    assert_eq!((stage.read("files/P").as_str(), sourced(&stage.path("env"), "U").as_str()), ("p2", "u2"));
    stage.lessor.leases(300, &[("username", "u4"), ("password", "p4")]);
    until(|| sourced(&stage.path("env"), "U") == "u4");

    let disabled = stage.agent.keybearer(&["disable", "shop", "--reason", "a test"]);
    assert!(disabled.status.success(), "{disabled:?}");
    let (code, told) = watcher.ended();
    assert_eq!(code, Some(77), "{told}");
    for words in [
        "U (database.username) cannot be written",
        "byte 0",
        "is tried again",
        "database: NOT_ENTITLED",
        "stays as it is",
    ] {
        assert!(told.contains(words), "{words}: {told}");
    }
    assert!(!told.contains("canary") && !told.contains("p4"), "{told}");
    assert_eq!(sourced(&stage.path("env"), "U"), "u4");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_outlives_the_agent_and_ends_when_it_is_told_to() {
    let stage = stage(&[("username", "u1")], 300, "");
    let watch = ["--format", "sh", "--env", "U=database.username", "--out", "@env", "--watch"];
    let mut watcher = stage.watch("env-file", &watch);
    let Stage { agent, lessor, place, .. } = stage;
    let env = place.path().join("env").display().to_string();
    let dir = agent.dir.clone();
    // Killed, it leaves nothing for the next one.
    agent.kill();
    watcher.says("is tried again");
    assert_eq!(sourced(&env, "U"), "u1");
    lessor.leases(300, &[("username", "u2")]);
    let agent = TestAgent::start(dir);
    until(|| sourced(&env, "U") == "u2");
    let (code, told) = watcher.stop();
    assert_eq!(code, Some(0), "{told}");
    drop(agent);
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_calls_an_api_with_a_token_in_its_config() {
    // Must-show 2.
    if Command::new("curl").arg("--version").output().is_err() {
        return skip("curl_calls_an_api_with_a_token_in_its_config", "curl is not here");
    }
    let stage = stage(&[("token", "to\"k\\e:n'$x\t#1")], 300, "");
    let api = demo_api(&stage.issuer);
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/examples/templates/curlrc");
    done(&stage.run("template", &[example, "@curlrc"]));
    let called = tokio::task::spawn_blocking({
        let (config, url) = (stage.path("curlrc"), api.orders());
        move || {
            Command::new("curl")
                .args(["-sS", "-o", "/dev/null", "-w", "%{http_code}", "-K", &config, &url])
                .output()
        }
    });
    let called = called.await.unwrap().unwrap();
    assert_eq!(String::from_utf8(called.stdout).unwrap(), "200", "{:?}", called.stderr);

    // A token with what curl's quotes are about, as a server gets it.
    let template = "header = {{ ('X-Token: ' ~ database.token) | curlrc }}\n";
    fs::write(stage.path("curlrc.tmpl"), template).unwrap();
    done(&stage.run("template", &["@curlrc.tmpl", "@curlrc"]));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let mut curl = Command::new("curl")
        .args(["-sS", "-K", &stage.path("curlrc"), &url])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let (mut stream, _) = listener.accept().unwrap();
    let head = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    let head: Vec<String> = head.take_while(|line| !line.is_empty()).collect();
    stream.write_all(b"HTTP/1.1 204 x\r\nconnection: close\r\n\r\n").unwrap();
    drop(stream);
    curl.wait().unwrap();
    assert!(head.contains(&"X-Token: to\"k\\e:n'$x\t#1".to_owned()), "{head:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn psql_finds_the_password_in_a_pgpass_file() {
    // LEGACY 4.10
    let Some(psql) = psql() else {
        return skip("psql_finds_the_password_in_a_pgpass_file", "psql is not here");
    };
    let stage = stage(&[("username", "u:s\\er"), ("password", NASTY)], 300, "");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let example =
        fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/examples/templates/pgpass"))
            .unwrap();
    let template =
        example.replace("db.example.com", "127.0.0.1").replace("5432", &port).replace(":shop:", ":*:");
    fs::write(stage.path("pgpass.tmpl"), template).unwrap();
    done(&stage.run("template", &["@pgpass.tmpl", "@pgpass"]));
    let mut client = Command::new(psql)
        .args(["-w", "-h", "127.0.0.1", "-p", &port, "-U", "u:s\\er", "-d", "shop", "-c", "select 1"])
        .env("PGPASSFILE", stage.path("pgpass"))
        .env("PGSSLMODE", "disable")
        .env("PGGSSENCMODE", "disable")
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let (mut stream, _) = listener.accept().unwrap();
    let mut message = |tagged: bool| {
        let mut head = vec![0; if tagged { 5 } else { 4 }];
        stream.read_exact(&mut head).unwrap();
        let length = u32::from_be_bytes(head[head.len() - 4..].try_into().unwrap()) as usize;
        let mut body = vec![0; length - 4];
        stream.read_exact(&mut body).unwrap();
        // "Give me your password", in the clear.
        stream.write_all(&[b'R', 0, 0, 0, 8, 0, 0, 0, 3]).unwrap();
        body
    };
    message(false);
    let password = message(true);
    drop(stream);
    client.wait().unwrap();
    assert_eq!(String::from_utf8(password).unwrap().trim_end_matches('\0'), NASTY);
}

fn psql() -> Option<PathBuf> {
    let installed = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .map(|at| at.path().join("bin/psql"));
    installed.chain(["/usr/bin/psql".into()]).find(|path| path.exists())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_template_is_checked_without_an_agent_and_its_mistakes_name_a_line() {
    let stage = stage(&[("password", "canary")], 300, "");
    fs::write(stage.path("good"), "a\n{{ my_db.password | sh }} {{ orders.token }}\n").unwrap();
    let checked = Command::new(BINARY).args(["template", "--check", &stage.path("good")]).output().unwrap();
    assert_eq!(checked.status.code(), Some(0));
    assert_eq!(String::from_utf8(checked.stdout).unwrap(), format!("{}: my_db orders\n", stage.path("good")));

    let render = |text: &str| {
        fs::write(stage.path("bad"), text).unwrap();
        stage.run("template", &["@bad", "@out"])
    };
    refused(&render("a\n{{ database.password | nosuch }}"), 65, &["bad:2: ", "unknown filter"]);
    refused(
        &render("a\nb\n{{ datebase.password }}"),
        65,
        &["bad:3: datebase is no credential", "database, orders"],
    );
    refused(
        &render("{{ database.pasword }}"),
        65,
        &["bad:1: database.pasword is not there: it has expires_at, password"],
    );
    refused(
        &render("{{ database.password | int }}"),
        65,
        &["bad:1: ", "could quote a value", "it is in database.password"],
    );
    refused(&stage.run("template", &["@none", "@out"]), 66, &["none"]);
    refused(&stage.run("template", &["@good"]), 64, &["FILE"]);
    assert!(!stage.names().contains(&"out".to_owned()));
    // Only what it names is fetched.
    done(&{
        fs::write(stage.path("few"), "{{ database.password }}").unwrap();
        stage.run("template", &["@few", "@out", "--mode", "0600"])
    });
    assert_eq!(stage.read("out"), "canary");
    assert_eq!(fs::metadata(stage.path("out")).unwrap().mode() & 0o7777, 0o600);
    assert_eq!(stage.issuer.handle.diary().requests("/token"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watched_template_is_written_again_at_each_rotation() {
    let stage = stage(&[("password", "p1")], 5, "");
    fs::write(stage.path("t"), "password = {{ database.password | mycnf }}\n").unwrap();
    fs::create_dir(stage.path("etc")).unwrap();
    let mut watcher = stage.watch("template", &["@t", "@etc/my.cnf", "--watch"]);
    assert_eq!(stage.read("etc/my.cnf"), "password = \"p1\"\n");
    stage.lessor.leases(5, &[("password", "p\"2")]);
    until(|| stage.read("etc/my.cnf") == "password = \"p\\\"2\"\n");

    // "Bad input": a vanished directory. It is told, and the file is there once the directory is.
    fs::rename(stage.path("etc"), stage.path("away")).unwrap();
    stage.lessor.leases(300, &[("password", "p3")]);
    watcher.says("etc: cannot open the directory");
    assert_eq!(stage.read("away/my.cnf"), "password = \"p\\\"2\"\n");
    fs::create_dir(stage.path("etc")).unwrap();
    watcher.says("fresh again");
    assert_eq!(stage.read("etc/my.cnf"), "password = \"p3\"\n");
    assert_eq!(watcher.stop().0, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_leaves_no_core_and_is_open_to_nobody_who_does_not_have_to_look_at_it() {
    // KEY-02
    let stage = stage(&[("password", "p1")], 300, "");
    fs::write(stage.path("t"), "{{ database.password }}\n").unwrap();
    for (command, arguments) in [
        ("template", &["@t", "@out", "--watch"][..]),
        ("env-file", &["--format", "sh", "--env", "P=database.password", "--out", "@env", "--watch"]),
    ] {
        let watcher = stage.watch(command, arguments);
        let limits = fs::read_to_string(format!("/proc/{}/limits", watcher.child.id())).unwrap();
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
        assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"], "{core}");
        assert_eq!(watcher.stop().0, Some(0));
    }
    if !is_root() {
        let name =
            "a_watcher_leaves_no_core_and_is_open_to_nobody_who_does_not_have_to_look_at_it (another user)";
        return skip(name, "only root can run the agent's client as another user");
    }
    // Nobody but root can look into what is not dumpable: its files in /proc are root's.
    const NOBODY: u32 = 65_533;
    let issuer = issuer(300);
    let setup = Setup::matching(issuer.handle.url(), &format!("match = {{ uid = {NOBODY} }}"));
    let agent = setup.start(Some(&issuer.handle));
    let place = tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| tempfile::tempdir().unwrap());
    std::os::unix::fs::chown(place.path(), Some(NOBODY), Some(NOBODY)).unwrap();
    let program = agent.dir.path().join("keybearer");
    support::install(Path::new(BINARY), &program);
    let mut child = Command::new("setpriv")
        .args([format!("--reuid={NOBODY}"), format!("--regid={NOBODY}"), "--clear-groups".into()])
        .arg(&program)
        .args(["env-file", "--format", "sh", "--env", "T=orders.token", "--watch", "--out"])
        .arg(place.path().join("env"))
        .env("KEYBEARER_SOCKET", agent.socket("agent.sock"))
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    until(|| place.path().join("env").exists());
    let owner = fs::metadata(format!("/proc/{}/environ", child.id())).unwrap().uid();
    let _ = child.kill();
    let _ = child.wait();
    assert_eq!(owner, 0, "it is not dumpable, and got its credential all the same");
}

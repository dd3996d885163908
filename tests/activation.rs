//! An agent under a service manager that is no more than this test: sockets that it is started with, and the heartbeat that is asked
//! of it. In go descriptors and an environment; out comes who is served, and what the manager is told.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::{
    fs,
    os::{
        fd::OwnedFd,
        unix::{
            fs::PermissionsExt as _,
            net::{UnixDatagram, UnixListener},
        },
    },
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use rustix::net::sockopt::set_socket_passcred;
use support::{BINARY, Setup, get, is_root, issuer, register, skip};

/// As the service manager makes it before the agent is there.
fn socket(path: &Path, stamps: bool) -> UnixListener {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let listener = UnixListener::bind(path).unwrap();
    set_socket_passcred(&listener, stamps).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o666)).unwrap();
    listener
}

/// Starts an agent with one socket, as sd_listen_fds(3) says it is handed over. `whose` is a shell word for the process it is for.
fn start(config: &Path, socket: &UnixListener, whose: &str, environment: &[(&str, &str)]) -> Child {
    let script = format!(
        "exec 3<&0 </dev/null; LISTEN_FDS=1 LISTEN_PID={whose} LISTEN_FDNAMES=http exec \"$0\" agent --config \"$1\""
    );
    Command::new("sh")
        .args(["-c", &script, BINARY])
        .arg(config)
        .envs(environment.iter().copied())
        .stdin(OwnedFd::from(socket.try_clone().unwrap()))
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Asks it to stop; its exit code and its log.
fn end(agent: Child) -> (Option<i32>, String) {
    let _ = Command::new("kill").args(["-TERM", &agent.id().to_string()]).status();
    ended(agent)
}

/// The same of one that ends by itself.
fn ended(mut agent: Child) -> (Option<i32>, String) {
    let mut log = String::new();
    std::io::Read::read_to_string(&mut agent.stderr.take().unwrap(), &mut log).unwrap();
    (agent.wait().unwrap().code(), log)
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_connects_before_the_agent_is_there_is_served_when_it_is() {
    let issuer = issuer(300);
    let setup = Setup::new(issuer.handle.url());
    let config = setup.write();
    register(&issuer.handle, &config);
    let path = setup.dir.path().join("run/http.sock");
    let managers = socket(&path, true);
    let mut last = None;
    for _ in 0..3 {
        let early = tokio::task::spawn_blocking({
            let path = path.clone();
            move || get(&path, "/v1/credentials/orders")
        });
        let agent = start(&config, &managers, "$$", &[]);
        let (status, answer) = early.await.unwrap();
        assert_eq!(status, 200, "{answer}");
        let (code, log) = end(agent);
        assert_eq!(code, Some(0), "{log}");
        assert!(path.exists(), "the socket is the manager's, and stays");
        last = Some(log);
    }
    // Its other sockets it made itself, and took away with it.
    assert_eq!(last.unwrap().matches("listening where the service manager does").count(), 1);
    assert!(!setup.dir.path().join("run/agent.sock").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_does_not_stamp_or_is_somebody_elses_is_not_served() {
    // ATT-02
    let issuer = issuer(300);
    let setup = Setup::new(issuer.handle.url());
    let config = setup.write();
    let run = setup.dir.path().join("run");
    let (code, log) = ended(start(&config, &socket(&run.join("http.sock"), false), "$$", &[]));
    assert_eq!(code, Some(69), "{log}");
    assert!(log.contains("\"http\"") && log.contains("PassCredentials=yes"), "{log}");
    let (code, log) = ended(start(&config, &socket(&run.join("strange.sock"), true), "$$", &[]));
    assert_eq!(code, Some(69), "{log}");
    assert!(log.contains("strange.sock") && log.contains("ListenStream="), "{log}");
    // One that was meant for another process is none of this one's, whatever its number.
    let other = socket(&run.join("http.sock"), true);
    let (code, log) = ended(start(&config, &other, "1", &[]));
    assert_eq!(code, Some(69), "{log}");
    assert!(log.contains("another agent listens there"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operators_socket_is_for_no_other_group_than_the_agents_where_the_settings_name_none() {
    // ATT-11: whoever may connect there may order.
    if !is_root() {
        let name = "the_operators_socket_is_for_no_other_group_than_the_agents_where_the_settings_name_none";
        return skip(name, "only root gives a socket to another group");
    }
    let issuer = issuer(300);
    let setup = Setup::new(issuer.handle.url()).with("operator_mode = \"0600\"", "operator_mode = \"0660\"");
    let config = setup.write();
    let run = setup.dir.path().join("run");
    let given = |file: &str| {
        let managers = socket(&run.join(file), true);
        fs::set_permissions(run.join(file), fs::Permissions::from_mode(0o660)).unwrap();
        std::os::unix::fs::chown(run.join(file), None, Some(54_321)).unwrap();
        managers
    };
    let (code, log) = ended(start(&config, &given("operator.sock"), "$$", &[]));
    assert_eq!(code, Some(69), "{log}");
    assert!(log.contains("group 54321") && log.contains("SocketGroup="), "{log}");
    // Of the others evidence decides who gets anything, and the log says whom the unit lets in.
    fs::remove_file(run.join("operator.sock")).unwrap();
    let http = given("http.sock");
    let agent = start(&config, &http, "$$", &[]);
    let answered = tokio::task::spawn_blocking(move || get(&run.join("http.sock"), "/live").0).await.unwrap();
    let (code, log) = end(agent);
    assert_eq!((answered, code), (200, Some(0)), "{log}");
    assert!(log.contains("54321") && log.contains("which group may connect"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn it_beats_as_often_as_it_is_asked_to() {
    let issuer = issuer(300);
    let setup = Setup::new(issuer.handle.url());
    let config = setup.write();
    let managers = socket(&setup.dir.path().join("run/http.sock"), true);
    let notify = setup.dir.path().join("notify");
    let told = UnixDatagram::bind(&notify).unwrap();
    told.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let environment = [("NOTIFY_SOCKET", notify.to_str().unwrap()), ("WATCHDOG_USEC", "200000")];
    let agent = start(&config, &managers, "$$", &environment);
    let hear = || {
        let mut message = [0; 256];
        let length = told.recv(&mut message).unwrap();
        String::from_utf8(message[..length].to_vec()).unwrap()
    };
    assert_eq!(hear(), "READY=1\n");
    for _ in 0..5 {
        assert_eq!(hear(), "WATCHDOG=1\n");
    }
    let (code, log) = end(agent);
    assert_eq!(code, Some(0), "{log}");
    let rest: Vec<String> = std::iter::from_fn(|| {
        told.set_nonblocking(true).unwrap();
        let mut message = [0; 256];
        let length = told.recv(&mut message).ok()?;
        Some(String::from_utf8(message[..length].to_vec()).unwrap())
    })
    .collect();
    assert!(rest.contains(&"STOPPING=1\n".to_owned()), "{rest:?}");
}

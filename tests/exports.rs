//! Sockets for one trust boundary each (ATT-23), on the real binary: who is served at which, what a container sees of them, and
//! what a reload changes at once.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use keybearer::{
    client::{Agent, operator},
    proto::v1::ReloadRequest,
};
use support::{BINARY, Issuer, Setup, TestAgent, install, is_root, issuer, skip};
use tonic::{Code, Status};

/// A user that owns nothing here, and is the identity `other`.
const NOBODY: u32 = 65533;

/// An agent that exports one socket for `shop`, which is whoever runs this test, and one for `other`.
fn exporting(issuer: &Issuer) -> (Setup, TestAgent) {
    let setup =
        Setup::new(issuer.handle.url()).also("other", "interim", &format!("match = {{ uid = {NOBODY} }}"));
    let export = |name: &str, identity: &str| {
        let path = at(&setup, name).display().to_string();
        format!("\n[exports.{name}]\npath = \"{path}\"\nmode = \"0666\"\nidentities = [\"{identity}\"]\n")
    };
    let exports = export("web", "shop") + &export("batch", "other");
    let setup = setup.and(&exports);
    let agent = setup.start(Some(&issuer.handle));
    (setup, agent)
}

/// Where the socket of an export is.
fn at(setup: &Setup, export: &str) -> PathBuf {
    setup.dir.path().join(export).join("agent.sock")
}

fn why(agent: &TestAgent) -> (String, String) {
    let entry = agent.records().pop().unwrap().entry;
    (entry.event.reason.unwrap_or_default(), entry.socket.unwrap_or_default())
}

fn told(no: &Status) -> (Code, String) {
    (no.code(), no.message().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_served_at_one_socket_is_refused_at_the_other() {
    // ATT-23
    let issuer = issuer(300);
    let (setup, agent) = exporting(&issuer);
    let mut web = Agent::connect(at(&setup, "web")).await.unwrap();
    web.get("orders", &[]).await.unwrap();
    assert_eq!(web.describe().await.unwrap().identity, "shop");
    agent.client().await.get("orders", &[]).await.unwrap();

    let mut batch = Agent::connect(at(&setup, "batch")).await.unwrap();
    let no = batch.get("orders", &[]).await.unwrap_err();
    let batch_path = at(&setup, "batch").display().to_string();
    assert_eq!(why(&agent), ("NOT_AT_THIS_SOCKET".into(), batch_path));
    // ATT-27: the caller learns no more than that it is not entitled, as if it were nobody.
    assert_eq!(told(&no), told(&web.get("none", &[]).await.unwrap_err()));
    assert_eq!(batch.describe().await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(batch.release("orders", &[]).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(batch.watch("orders", &[]).await.unwrap_err().code(), Code::PermissionDenied);
    if is_root() {
        let copy = setup.dir.path().join("keybearer");
        install(Path::new(BINARY), &copy);
        let who = |export: &str| {
            let user = NOBODY.to_string();
            let mut line = Command::new("setpriv");
            line.args(["--reuid", &user, "--regid", &user, "--clear-groups"]).arg(&copy);
            let output =
                line.args(["whoami", "--json", "--socket"]).arg(at(&setup, export)).output().unwrap();
            String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
        };
        assert!(who("batch").contains("\"other\""), "{}", who("batch"));
        assert!(who("web").contains("NOT_ENTITLED"), "{}", who("web"));
    } else {
        skip("exports, for another user", "only root can be two users");
    }
    agent.verify().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_sees_the_socket_that_is_for_it_and_no_other() {
    // ATT-23, TM-09: what makes a container here is a mount namespace in which the export lies where the agent's own sockets
    // would be.
    if !is_root() {
        return skip("a_container_sees_the_socket_that_is_for_it_and_no_other", "only root can mount");
    }
    let issuer = issuer(300);
    let (setup, agent) = exporting(&issuer);
    let run = setup.dir.path().join("run");
    let within = |given: &Path| {
        let script = "mount --bind \"$1\" \"$2\" && echo \"sockets: $(ls \"$2\" | xargs)\" && \"$3\" get orders --socket \"$2/agent.sock\"";
        let line = ["--mount", "sh", "-c", script, "sh"];
        let output =
            Command::new("unshare").args(line).args([given, &run, Path::new(BINARY)]).output().unwrap();
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    };
    let web = within(at(&setup, "web").parent().unwrap());
    assert!(web.starts_with("sockets: agent.sock\n") && web.contains("eyJ"), "{web}");
    let batch = within(at(&setup, "batch").parent().unwrap());
    assert!(batch.starts_with("sockets: agent.sock\n") && batch.contains("NOT_ENTITLED"), "{batch}");
    let nothing = setup.dir.path().join("nothing");
    fs::create_dir(&nothing).unwrap();
    let without = within(&nothing);
    assert!(without.starts_with("sockets: \n") && without.contains("no agent listens there"), "{without}");
    agent.verify().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_exported_to_nobody_does_not_listen_and_what_is_taken_back_serves_nobody() {
    // ATT-23, S18
    let issuer = issuer(300);
    let (setup, agent) = exporting(&issuer);
    let mut web = Agent::connect(at(&setup, "web")).await.unwrap();
    web.get("orders", &[]).await.unwrap();
    let mut operator = operator(&agent.socket("operator.sock")).await.unwrap();
    let mut reload = async || operator.reload(ReloadRequest {}).await.unwrap().into_inner();

    let swapped = setup.with("identities = [\"shop\"]", "identities = [\"other\"]");
    swapped.write();
    let answer = reload().await;
    assert!(answer.messages.contains(&"export web is for others than before".to_owned()), "{answer:?}");
    web.get("orders", &[]).await.unwrap_err();
    assert_eq!(why(&agent).0, "NOT_AT_THIS_SOCKET", "on a connection that was open, too");

    let web_path = at(&swapped, "web");
    let without = Setup::new(issuer.handle.url());
    let config = fs::read_to_string(without.write()).unwrap();
    let own = |dir: &Path| dir.display().to_string();
    fs::write(
        swapped.dir.path().join("agent.toml"),
        config.replace(&own(without.dir.path()), &own(swapped.dir.path())),
    )
    .unwrap();
    let answer = reload().await;
    assert!(answer.messages.contains(&"export web is for nobody from now on".to_owned()), "{answer:?}");
    assert!(
        answer.messages.iter().any(|message| message.contains("[exports] change at the next restart")),
        "{answer:?}"
    );
    let mut late = Agent::connect(&web_path).await.unwrap();
    late.get("orders", &[]).await.unwrap_err();
    assert_eq!(why(&agent).0, "NOT_AT_THIS_SOCKET", "it listens until the restart, for nobody");
    drop((web, late));
    let dir = agent.dir.clone();
    assert_eq!(agent.stop().0, Some(0));
    let agent = TestAgent::start(dir);
    assert!(!web_path.exists() && agent.socket("agent.sock").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_into_a_directory_that_others_can_write_is_refused() {
    // ATT-01, ATT-23
    use std::os::unix::fs::PermissionsExt as _;
    let setup = Setup::new("http://127.0.0.1:1");
    let path = at(&setup, "web");
    fs::create_dir(path.parent().unwrap()).unwrap();
    fs::set_permissions(path.parent().unwrap(), fs::Permissions::from_mode(0o777)).unwrap();
    let export = format!("\n[exports.web]\npath = \"{}\"\nidentities = [\"shop\"]\n", path.display());
    let setup = setup.and(&export);
    let config = setup.write();
    let output = Command::new(BINARY).args(["agent", "--config"]).arg(config).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("its directory can be written by others"), "{said}");
    assert!(!path.exists());
}

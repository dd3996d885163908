//! Experiments about who may see and do what: names that lie, namespaces, an agent without its capability, modes of sockets. In
//! each the agent, which sees less than it would like to, says no rather than guess.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::{
    os::unix::fs::chown,
    path::Path,
    process::{Command, Output},
};

use support::{Setup, TestAgent, attacker, install, is_root, issuer, skip};

const NOBODY: u32 = 65533;
const PATH: &str = "/v1/credentials/orders";

/// Runs the honest client by the words of `wrapper`.
fn honest(agent: &TestAgent, wrapper: &[&str]) -> (String, Output) {
    let program = attacker(agent).display().to_string();
    let socket = agent.socket("http.sock").display().to_string();
    let line = [wrapper, &[&program, "honest", &socket, PATH]].concat();
    let output = Command::new(line[0]).args(&line[1..]).output().unwrap();
    (String::from_utf8_lossy(&output.stdout).into_owned(), output)
}

/// Why callers were refused so far: reasons, and what policy missed.
fn why(agent: &TestAgent) -> Vec<String> {
    let entries = agent.records().into_iter().map(|record| record.entry);
    entries
        .flat_map(|entry| {
            let missing = entry.policy.map(|policy| policy.missing).unwrap_or_default();
            missing.into_iter().chain(entry.event.reason).chain(entry.detail)
        })
        .collect()
}

/// Waits until it is on record that somebody was refused for this: whoever is cut off may be gone before it is written.
async fn refused_for(agent: &TestAgent, wanted: impl Fn(&str) -> bool) {
    let look = async {
        while !why(agent).iter().any(|why| wanted(why)) {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    let found = tokio::time::timeout(std::time::Duration::from_secs(10), look).await;
    assert!(found.is_ok(), "{:?}", why(agent));
}

#[tokio::test(flavor = "multi_thread")]
async fn e8_a_command_line_proves_nothing() {
    // E8: a process may call itself what it likes.
    if !is_root() {
        return skip("E8", "the trusted program has to be root's");
    }
    let issuer = issuer(300);
    let dir = tempfile::tempdir().unwrap();
    let trusted = dir.path().join("trusted").display().to_string();
    let agent =
        Setup::within(dir, issuer.handle.url(), &format!("match = {{ uid = 0, exe = \"{trusted}\" }}"));
    install(Path::new("/bin/true"), Path::new(&trusted));
    let agent = agent.start(Some(&issuer.handle));
    let disguise = format!("exec -a {trusted} \"$0\" \"$@\"");
    let (said, output) = honest(&agent, &["bash", "-c", &disguise]);
    assert!(said.contains("NOT_ENTITLED"), "{said} {output:?}");
    refused_for(&agent, |why| why.contains("exe should be")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn e11_root_of_a_user_namespace_is_not_root() {
    // E11, ATT-13
    let issuer = issuer(300);
    let agent = Setup::new(issuer.handle.url()).start(Some(&issuer.handle));
    assert!(honest(&agent, &["env"]).0.contains("access_token"), "the control");
    let (said, output) = honest(&agent, &["unshare", "-U", "-r"]);
    if said.is_empty() {
        return skip("E11", &String::from_utf8_lossy(&output.stderr));
    }
    assert!(said.contains("NOT_ATTESTED"), "{said}");
    refused_for(&agent, |why| why == "USER_NAMESPACE").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn e12_an_agent_that_cannot_see_its_callers_serves_none() {
    // E12, ATT-06: from a PID namespace of its own, those outside have no number.
    if !is_root() {
        return skip("E12", "only root can make a PID namespace");
    }
    let issuer = issuer(300);
    let setup = Setup::new(issuer.handle.url());
    support::register(&issuer.handle, &setup.write());
    let wrapper = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"];
    let agent = TestAgent::start_under(setup.dir.clone(), &wrapper);
    let (said, _) = honest(&agent, &["env"]);
    assert!(!said.contains("access_token"), "{said}");
    refused_for(&agent, |why| why == "PEER_INVISIBLE").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn e13_an_agent_without_its_capability_proves_less_and_says_so() {
    // E13, ATT-25: without CAP_SYS_PTRACE nobody can look into processes of other users.
    if !is_root() {
        return skip("E13", "only root can start an agent as another user");
    }
    let issuer = issuer(300);
    let setup = Setup::new(issuer.handle.url());
    support::register(&issuer.handle, &setup.write());
    give(setup.dir.path());
    let nobody = NOBODY.to_string();
    let drop = ["setpriv", "--reuid", &nobody, "--regid", &nobody, "--clear-groups"];
    let agent = TestAgent::start_under(setup.dir.clone(), &drop);
    let (said, _) = honest(&agent, &["env"]);
    assert!(said.contains("NOT_ENTITLED"), "{said}");
    let status = agent.keybearer(&["status"]);
    assert!(String::from_utf8_lossy(&status.stdout).contains("CAP_SYS_PTRACE"), "{status:?}");
    // With it, and as little else, the same caller is served.
    drop_agent(agent);
    let ptrace =
        [&drop[..], &["--inh-caps", "-all,+sys_ptrace", "--ambient-caps", "-all,+sys_ptrace"]].concat();
    let agent = TestAgent::start_under(setup.dir.clone(), &ptrace);
    let (said, output) = honest(&agent, &["env"]);
    assert!(said.contains("access_token"), "{said} {output:?} {:?}", why(&agent));
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
    assert_eq!(
        u64::from_str_radix(effective.trim(), 16).unwrap(),
        1 << 19,
        "CAP_SYS_PTRACE and nothing else"
    );
}

fn drop_agent(agent: TestAgent) {
    assert_eq!(agent.stop().0, Some(0));
}

/// Gives a directory and all in it to nobody.
fn give(at: &Path) {
    give_to(NOBODY, at);
}

fn give_to(uid: u32, at: &Path) {
    chown(at, Some(uid), Some(uid)).unwrap();
    if at.is_dir() {
        std::fs::read_dir(at).unwrap().for_each(|entry| give_to(uid, &entry.unwrap().path()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn e14_a_server_that_is_not_the_owner_of_its_socket_is_asked_nothing() {
    // E14, ATT-24, TM-01: somebody had the directory once and still listens there, now that all of it is root's again.
    if !is_root() {
        return skip("E14 (squatter)", "only root can be two users");
    }
    let issuer = issuer(300);
    let setup = Setup::new(issuer.handle.url());
    support::register(&issuer.handle, &setup.write());
    give(setup.dir.path());
    let nobody = NOBODY.to_string();
    let wrapper = ["setpriv", "--reuid", &nobody, "--regid", &nobody, "--clear-groups"];
    let squatter = TestAgent::start_under(setup.dir.clone(), &wrapper);
    let ask = || {
        let output = squatter.keybearer(&["get", "orders"]);
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    };
    assert!(ask().contains("NOT_ENTITLED"), "the control: asked, as long as it owns its socket: {}", ask());
    let asked = squatter.records().len();
    give_to(0, setup.dir.path());
    assert!(ask().contains("its server runs as somebody else than its owner"), "{}", ask());
    assert_eq!(squatter.records().len(), asked, "nothing was asked of it");
}

#[tokio::test(flavor = "multi_thread")]
async fn e16_the_mode_of_the_socket_keeps_others_out() {
    // E16, ATT-11, TM-01
    if !is_root() {
        return skip("E16", "only root can be two users");
    }
    let issuer = issuer(300);
    let setup = Setup::new(issuer.handle.url()).with("http_mode = \"0666\"", "http_mode = \"0660\"");
    let agent = setup.start(Some(&issuer.handle));
    let nobody = NOBODY.to_string();
    let (said, _) = honest(&agent, &["setpriv", "--reuid", &nobody, "--regid", &nobody, "--clear-groups"]);
    assert!(said.contains("Permission denied"), "{said}");
    assert!(honest(&agent, &["env"]).0.contains("access_token"), "the control");
}

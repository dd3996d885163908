//! The experiments E1 to E26 against the real binary: each is carried out for real by the program `attacker`, and
//! each is refused, leaves its record, and disturbs nobody else; but for E9 and E21c, which succeed, as the documents
//! say. The honest control gets its credential by the same words, so that a refusal means what it says.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use keybearer::audit::EventType;
use serde_json::Value;
use support::{Issuer, Setup, TestAgent, attacker, built, install, is_root, issuer, skip};

/// A user that owns nothing here.
const NOBODY: u32 = 65533;

struct Attack {
    ran: bool,
    answer: String,
    why: String,
}

impl Attack {
    fn got_a_token(&self) -> bool {
        // As HTTP/1.1 names it, or as any JWT begins.
        self.answer.contains("access_token") || self.answer.contains("eyJ")
    }
}

/// The sockets of the agent, and what asks for the credential there.
const HTTP: (&str, &str) = ("http.sock", "/v1/credentials/orders");
const GRPC: (&str, &str) = ("agent.sock", "/keybearer.v1.Credentials/Get");

fn attack(agent: &TestAgent, arguments: &[&str], environment: &[(&str, String)]) -> Attack {
    attack_on(HTTP, agent, arguments, environment)
}

fn attack_on(
    (socket, path): (&str, &str),
    agent: &TestAgent,
    arguments: &[&str],
    environment: &[(&str, String)],
) -> Attack {
    let mut command = Command::new(attacker(agent));
    command.arg(arguments[0]).arg(agent.socket(socket)).arg(path).args(&arguments[1..]);
    let output: Output =
        command.envs(environment.iter().map(|(name, value)| (name, value))).output().unwrap();
    let said: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("{arguments:?}: {}", String::from_utf8_lossy(&output.stderr)));
    Attack {
        ran: said["ran"] == true,
        answer: said["answer"].as_str().unwrap_or_default().to_owned(),
        why: said["why"].as_str().unwrap_or_default().to_owned(),
    }
}

/// Waits for the record of a cut connection: it is written after the attacker is gone.
async fn reasons_until(agent: &TestAgent, wanted: &str) {
    let seen = || {
        let records = agent.records().into_iter();
        let failures = records.filter(|record| record.entry.event.kind == EventType::AttestationFailure);
        failures.filter_map(|record| record.entry.event.reason).collect::<Vec<_>>()
    };
    let found = tokio::time::timeout(std::time::Duration::from_secs(10), async {
        while !seen().iter().any(|reason| reason == wanted) {
            tokio::task::yield_now().await;
        }
    });
    assert!(found.await.is_ok(), "no record says {wanted}: {:?}", seen());
}

async fn refused(test: &str, arguments: &[&str], reason: &str) {
    let issuer = issuer(300);
    let agent = Setup::new(issuer.handle.url()).start(Some(&issuer.handle));
    let honest = attack(&agent, &["honest"], &[]);
    assert!(honest.got_a_token(), "the control: {} {}", honest.answer, honest.why);
    let attack = attack(&agent, arguments, &[]);
    if !attack.ran {
        return skip(test, &attack.why);
    }
    assert!(!attack.got_a_token(), "{test}: the attacker got a token: {}", attack.answer);
    reasons_until(&agent, reason).await;
    // Others are not disturbed.
    agent.client().await.get("orders", &[]).await.unwrap();
    agent.verify().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn e1_a_fork_that_speaks_after_its_parent_is_gone() {
    // E1, ATT-05: whoever connected has exited; the connection ends with it or with the stranger's first word.
    let issuer = issuer(300);
    let agent = Setup::new(issuer.handle.url()).start(Some(&issuer.handle));
    let attack = attack(&agent, &["E1"], &[]);
    assert!(attack.ran, "{}", attack.why);
    assert!(!attack.got_a_token(), "{}", attack.answer);
    agent.client().await.get("orders", &[]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn e2_root_that_became_somebody_else() {
    // E2, ATT-07
    if !is_root() {
        return skip("E2", "only root can become another user");
    }
    refused("E2", &["E2", &NOBODY.to_string()], "CRED_CHANGED").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn e3_exec_while_a_forked_child_keeps_the_socket() {
    // E3, ATT-05
    refused("E3", &["E3"], "SENDER_CHANGED").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn e4_a_descriptor_passed_to_another_user() {
    // E4, ATT-05
    if !is_root() {
        return skip("E4", "only root can become another user");
    }
    refused("E4", &["E4", &NOBODY.to_string()], "SENDER_CHANGED").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn e5_a_pid_that_was_given_to_another_process() {
    // E5, ATT-08: the pinned process is gone, whatever has its pid now.
    if !is_root() {
        return skip("E5", "only root can choose the next pid");
    }
    let issuer = issuer(300);
    let agent = Setup::new(issuer.handle.url()).start(Some(&issuer.handle));
    let attack = attack(&agent, &["E5"], &[]);
    if !attack.ran {
        return skip("E5", &attack.why);
    }
    assert!(!attack.got_a_token(), "{}", attack.answer);
    agent.client().await.get("orders", &[]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn e10_a_socket_stolen_by_pidfd_getfd() {
    // E10, ATT-05
    refused("E10", &["E10"], "SENDER_CHANGED").await;
}

/// Settings whose identity is one program of one user's, by its path.
fn only(issuer: &Issuer, uid: u32, program: &str) -> (Setup, String) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(program).display().to_string();
    let selectors = format!("match = {{ uid = {uid}, exe = \"{path}\" }}");
    (Setup::within(dir, issuer.handle.url(), &selectors), path)
}

/// A trusted program that is not the file at its path any more, or never was one: nobody.
async fn no_program(test: &str) {
    if !is_root() {
        return skip(test, "the trusted program has to be root's");
    }
    let issuer = issuer(300);
    let agent = only(&issuer, 0, "attacker").0.start(Some(&issuer.handle));
    assert!(attack_on(GRPC, &agent, &["honest"], &[]).got_a_token(), "the control");
    let attack = attack_on(GRPC, &agent, &[test], &[]);
    assert!(attack.ran, "{}", attack.why);
    assert!(!attack.got_a_token(), "{}", attack.answer);
    assert!(missing(&agent).iter().any(|missed| missed.contains("replaced")), "{test}");
}

#[tokio::test(flavor = "multi_thread")]
async fn e6_a_program_whose_file_was_replaced() {
    // E6, ATT-12
    no_program("E6").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn e7_a_program_out_of_memory() {
    // E7, ATT-12
    no_program("E7").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn e9_code_that_rides_in_the_trusted_program_is_the_trusted_program() {
    // E9, TM-08: the residual that the documents name. Path, digest and challenge are all right, because it is that process
    // that asks. If this fails because no token came, mend the documents.
    if !is_root() {
        return skip("E9", "the trusted program has to be root's");
    }
    let sum = Command::new("sha256sum").arg("/bin/sleep").output().unwrap();
    let sum = String::from_utf8(sum.stdout).unwrap()[..64].to_owned();
    let issuer = issuer(300);
    let dir = tempfile::tempdir().unwrap();
    let trusted = dir.path().join("trusted").display().to_string();
    let selectors = format!("match = {{ uid = 0, exe = \"{trusted}\", sha256 = \"{sum}\" }}");
    let setup = Setup::within(dir, issuer.handle.url(), &selectors);
    install(Path::new("/bin/sleep"), Path::new(&trusted));
    let agent = setup.start(Some(&issuer.handle));
    let other = attack_on(GRPC, &agent, &["honest"], &[]);
    assert!(!other.got_a_token(), "the control: {}", other.answer);
    assert!(missing(&agent).iter().any(|missed| missed.contains("sha256")), "{:?}", missing(&agent));

    let output = Command::new(&trusted)
        .arg("0")
        .env("LD_PRELOAD", built("libpassenger.so"))
        .env("KB_PASSENGER_SOCKET", agent.socket(GRPC.0))
        .env("KB_PASSENGER_PATH", GRPC.1)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("eyJ"), "{said} {}", String::from_utf8_lossy(&output.stderr));
    let record = agent.records().pop().unwrap();
    let peer = record.entry.peer.unwrap();
    assert_eq!(peer.exe.unwrap().sha256, Some(sum), "nothing on record tells it from the program");
    assert_eq!((peer.challenge, record.entry.workload.unwrap().id.as_str()), (Some(true), "shop"));
}

#[tokio::test(flavor = "multi_thread")]
async fn e17_a_forged_stamp() {
    // E17, ATT-05: whoever may forge a stamp is root; it still speaks for nobody but itself.
    if !is_root() {
        return skip("E17", "only root can forge a stamp");
    }
    refused("E17", &["E17"], "SENDER_CHANGED").await;
}

/// What policy missed in the callers so far.
fn missing(agent: &TestAgent) -> Vec<String> {
    let decisions = agent.records().into_iter().filter_map(|record| record.entry.policy);
    decisions.flat_map(|policy| policy.missing).collect()
}

/// An agent whose identity is a copy of `program`, which the attacker will become.
fn trusting(issuer: &Issuer, program: &str) -> (TestAgent, String) {
    let (setup, trusted) = only(issuer, rustix::process::geteuid().as_raw(), "trusted");
    install(Path::new(program), Path::new(&trusted));
    (setup.start(Some(&issuer.handle)), trusted)
}

#[tokio::test(flavor = "multi_thread")]
async fn e21_a_sibling_that_waits_for_the_trusted_programs_answer() {
    // E21, ATT-17: every fact is the trusted program's, but it does not answer the challenge.
    if !is_root() {
        return skip("E21", "the trusted program has to be root's");
    }
    let issuer = issuer(300);
    let (agent, trusted) = trusting(&issuer, "/bin/sleep");
    let stop = [("KB_STOP_PID", agent.pid().to_string())];
    let attack = attack_on(GRPC, &agent, &["E21", &trusted], &stop);
    assert!(attack.ran, "{}", attack.why);
    assert!(!attack.got_a_token(), "{}", attack.answer);
    let missing = missing(&agent);
    assert!(missing.iter().any(|missed| missed.contains("has not answered the challenge")), "{missing:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn e21b_a_sibling_that_answers_the_challenge_itself() {
    // E21b, ATT-05, ATT-17
    if !is_root() {
        return skip("E21b", "the trusted program has to be root's");
    }
    let issuer = issuer(300);
    let (agent, trusted) = trusting(&issuer, "/bin/sleep");
    let stop = [("KB_STOP_PID", agent.pid().to_string())];
    let attack = attack_on(GRPC, &agent, &["E21b", &trusted], &stop);
    assert!(attack.ran, "{}", attack.why);
    assert!(!attack.got_a_token(), "{}", attack.answer);
    reasons_until(&agent, "SENDER_CHANGED").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn e21c_a_trusted_program_that_copies_what_it_is_given() {
    // E21c: the residual that the documents name. If this fails because no token came, mend the documents.
    if !is_root() {
        return skip("E21c", "the trusted program has to be root's");
    }
    let issuer = issuer(300);
    let (agent, trusted) = trusting(&issuer, "/bin/cat");
    let stop = [("KB_STOP_PID", agent.pid().to_string())];
    let attack = attack_on(GRPC, &agent, &["E21c", &trusted], &stop);
    assert!(attack.ran && attack.got_a_token(), "{} {}", attack.answer, attack.why);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_counts_only_where_it_can_be_challenged() {
    // ATT-17: HTTP/1.1 has no challenge, so E21 over it must not work either.
    if !is_root() {
        return skip("a program without a challenge", "the trusted program has to be root's");
    }
    let issuer = issuer(300);
    let agent = only(&issuer, 0, "attacker").0.start(Some(&issuer.handle));
    assert!(attack_on(GRPC, &agent, &["honest"], &[]).got_a_token(), "the control");
    let refused = attack(&agent, &["honest"], &[]);
    assert!(!refused.got_a_token() && refused.answer.contains("NOT_ENTITLED"), "{}", refused.answer);
    let missing = missing(&agent);
    assert!(missing.iter().any(|missed| missed.contains("ask on the gRPC socket")), "{missing:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn e22_a_forged_link_text() {
    // E22, ATT-12, ATT-13: the identity is a program by its path; the attacker binds its own over that path.
    if !is_root() {
        return skip("E22", "the trusted program has to be root's and the attacker somebody else");
    }
    let issuer = issuer(300);
    let (setup, trusted) = only(&issuer, NOBODY, "trusted");
    install(Path::new("/bin/true"), Path::new(&trusted));
    let agent = setup.start(Some(&issuer.handle));
    let attack = attack(&agent, &["E22", &trusted, &NOBODY.to_string()], &[]);
    if !attack.ran {
        return skip("E22", &attack.why);
    }
    assert!(!attack.got_a_token(), "{}", attack.answer);
    reasons_until(&agent, "USER_NAMESPACE").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_by_its_path_is_served() {
    // The control of E22: the same rule, without a forgery.
    if !is_root() {
        return skip("control of E22", "the program has to be root's and its user somebody else");
    }
    let issuer = issuer(300);
    let (setup, path) = only(&issuer, NOBODY, "attacker");
    let agent = setup.start(Some(&issuer.handle));
    attacker(&agent);
    let output = Command::new("setpriv")
        .args([
            "--reuid",
            &NOBODY.to_string(),
            "--regid",
            &NOBODY.to_string(),
            "--clear-groups",
            &path,
            "honest",
        ])
        .arg(agent.socket(GRPC.0))
        .arg(GRPC.1)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("eyJ"), "{said} {}", String::from_utf8_lossy(&output.stderr));
    // The same program as another user: refused.
    let other = attack(&agent, &["honest"], &[]);
    assert!(!other.got_a_token() && other.answer.contains("NOT_ENTITLED"), "{}", other.answer);
}

#[tokio::test(flavor = "multi_thread")]
async fn e26_words_written_before_the_agent_could_accept_carry_their_writer() {
    // E26, ATT-02: the stamp is asked for before `listen`, so even the earliest chunk names who wrote it. Were it not,
    // the honest early writer would be cut off as unstamped; a stranger's early words are as foreign as late ones.
    let issuer = issuer(300);
    let agent = Setup::new(issuer.handle.url()).start(Some(&issuer.handle));
    agent.client().await.get("orders", &[]).await.unwrap();
    let early = attack(&agent, &["E26"], &[("KB_STOP_PID", agent.pid().to_string())]);
    assert!(early.ran, "{}", early.why);
    assert!(early.got_a_token(), "{}", early.answer);
    let records = agent.records();
    let last =
        records.iter().rev().find(|record| record.entry.event.kind == EventType::CredentialRelease).unwrap();
    assert_ne!(last.entry.peer.as_ref().unwrap().pid, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn descriptors_that_ride_along_end_the_connection() {
    // ATT-04
    refused("smuggle", &["smuggle"], "SMUGGLED").await;
    let issuer = issuer(300);
    let agent = Setup::new(issuer.handle.url()).start(Some(&issuer.handle));
    let open = || fs::read_dir(format!("/proc/{}/fd", agent.pid())).unwrap().count();
    attack(&agent, &["honest"], &[]);
    let before = open();
    for _ in 0..20 {
        attack(&agent, &["smuggle"], &[]);
    }
    // Each is on record after its connection is gone.
    let cut = || {
        let reasons = agent.records().into_iter().filter_map(|record| record.entry.event.reason);
        reasons.filter(|reason| reason == "SMUGGLED").count()
    };
    let all = async {
        while cut() < 20 {
            tokio::task::yield_now().await
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(10), all).await.expect("each is on record");
    assert!(open() <= before + 3, "the agent kept descriptors that were not its own");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exec_between_connect_and_request_is_told() {
    // ATT-16: the same process, the same program even, but another run of it.
    let issuer = issuer(300);
    let agent = Setup::new(issuer.handle.url()).start(Some(&issuer.handle));
    let script = format!(
        "import os,socket,sys\n\
         s=socket.socket(socket.AF_UNIX); s.connect({:?}); os.set_inheritable(s.fileno(),True)\n\
         import time; s.sendall(b'GET /live HTTP/1.1\\r\\nhost: x\\r\\n\\r\\n'); s.recv(4096)\n\
         os.execv(sys.executable,[sys.executable,'-c','import socket,sys; s=socket.socket(fileno=%d); s.sendall(b\"GET /v1/credentials/orders HTTP/1.1\\\\r\\\\nhost: x\\\\r\\\\nkeybearer: v1\\\\r\\\\nconnection: close\\\\r\\\\n\\\\r\\\\n\"); print(s.makefile().read())' % s.fileno()])\n",
        agent.socket("http.sock")
    );
    let Ok(output) = Command::new("python3").args(["-c", &script]).output() else {
        return skip("exec between connect and request", "it is written in Python, which is not here");
    };
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("NOT_ATTESTED"), "{said} {}", String::from_utf8_lossy(&output.stderr));
    reasons_until(&agent, "EVIDENCE_CHANGED").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_of_another_user_is_refused() {
    // TM-02
    if !is_root() {
        return skip("a caller of another user", "only root can become another user");
    }
    let issuer = issuer(300);
    let agent = Setup::new(issuer.handle.url()).start(Some(&issuer.handle));
    let output = Command::new("setpriv")
        .args(["--reuid", &NOBODY.to_string(), "--regid", &NOBODY.to_string(), "--clear-groups"])
        .arg(attacker(&agent))
        .arg("honest")
        .arg(agent.socket("http.sock"))
        .arg("/v1/credentials/orders")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("NOT_ENTITLED") && !said.contains("access_token"), "{said}");
}

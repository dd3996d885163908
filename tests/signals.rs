//! What operators want to know of a use before anything is handed out for it (S17), on the real binary over real sockets: a person who
//! comes as a service, a place that an identity was never used from, two that use it at once. Each is on record once, before the
//! credential, in status and in the log; and ordinary use raises none. That a proof is replayed is in `reuse.rs`.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "support/puppet.rs"]
mod puppet;
mod support;

use std::{fs, process::Command, sync::Arc};

use keybearer::audit::{EventType, Outcome, Record};
use puppet::Puppet;
use serde_json::Value;
use support::{Issuer, Setup, TestAgent, is_root, issuer, skip};

/// A uid that is nobody here.
const LOGIN: &str = "4711";

/// The signals on record.
fn signals(agent: &TestAgent) -> Vec<Record> {
    let kinds = [EventType::HumanSession, EventType::NewPlace, EventType::TwoPlaces];
    agent.records().into_iter().filter(|record| kinds.contains(&record.entry.event.kind)).collect()
}

/// Those that are about places, whoever runs this test.
fn of_places(agent: &TestAgent) -> Vec<Record> {
    let all = signals(agent).into_iter();
    all.filter(|record| record.entry.event.kind != EventType::HumanSession).collect()
}

fn kinds(agent: &TestAgent) -> Vec<EventType> {
    signals(agent).iter().map(|record| record.entry.event.kind).collect()
}

/// What came of the exchange that raised a signal, and that it came after the signal.
fn came_of(agent: &TestAgent, signal: &Record) -> EventType {
    let exchange = |record: &Record| record.entry.exchange_id == signal.entry.exchange_id;
    let last = agent.records().into_iter().rfind(exchange).unwrap();
    assert!(signal.seq < last.seq, "before anything is answered");
    last.entry.event.kind
}

fn warnings(agent: &TestAgent, about: &str) -> Vec<String> {
    let status: Value = serde_json::from_slice(&agent.keybearer(&["status", "--json"]).stdout).unwrap();
    let warnings = status["warnings"].as_array().unwrap().iter();
    warnings
        .map(|warning| warning.as_str().unwrap().to_owned())
        .filter(|words| words.contains(about))
        .collect()
}

/// The level of the first line of the log about something.
fn logged(log: &str, about: &str) -> Option<String> {
    let line = log.lines().find(|line| line.contains(about) && !line.contains("\"level\":\"TRACE\""))?;
    let line: Value = serde_json::from_str(line).ok()?;
    line["level"].as_str().map(str::to_owned)
}

/// What has a program run as what a login of uid 4711 started. Whoever has no login uid may take one; who has one keeps it.
const BY_LOGIN: [&str; 4] = ["sh", "-c", "echo 4711 > /proc/self/loginuid && exec \"$0\" \"$@\"", "env"];

/// Whether this test can be a service and a person both.
fn can_log_in(test: &str) -> bool {
    let why = match fs::read_to_string("/proc/self/loginuid") {
        Err(_) => "this kernel is built without audit",
        Ok(uid) if uid.trim() != u32::MAX.to_string() => "it runs in a login's session itself",
        Ok(_) => {
            let tried = Command::new(BY_LOGIN[0]).args(&BY_LOGIN[1..]).arg("true").output().unwrap();
            match tried.status.success() {
                true => return true,
                false => "it may not take a login uid",
            }
        }
    };
    skip(test, why);
    false
}

fn agent_with(issuer: &Issuer, humans: &str) -> TestAgent {
    let setup = Setup::new(issuer.handle.url());
    let assurance = "assurance = \"interim\"";
    setup.with(assurance, &format!("{assurance}\n{humans}")).start(Some(&issuer.handle))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_who_comes_as_a_service_is_told_of_before_a_credential_leaves() {
    // NHI-10, S17
    if !can_log_in("a_person_who_comes_as_a_service_is_told_of_before_a_credential_leaves") {
        return;
    }
    let issuer = issuer(300);
    let agent = agent_with(&issuer, "");
    let mut service = Puppet::start(&agent);
    service.get();
    assert_eq!(kinds(&agent), [], "nobody is behind it");

    let mut person = Puppet::under(&BY_LOGIN, &agent);
    for _ in 0..20 {
        person.get();
    }
    let [signal] = &signals(&agent)[..] else { panic!("{:?}", signals(&agent)) };
    let entry = &signal.entry;
    assert_eq!((entry.event.kind, entry.event.outcome), (EventType::HumanSession, Outcome::Success));
    assert_eq!(entry.event.reason.as_deref(), Some("LOGIN_UID"));
    assert_eq!(entry.workload.as_ref().unwrap().id, "shop");
    let peer = entry.peer.as_ref().unwrap();
    assert_eq!((peer.pid, peer.loginuid), (person.pid(), Some(LOGIN.parse().unwrap())));
    assert!(entry.detail.as_deref().unwrap().contains(&format!("a login of uid {LOGIN}")));
    assert_eq!(came_of(&agent, signal), EventType::CredentialRelease);

    // On another connection it is the same person; another process is told of too, and status says it once.
    drop(person);
    Puppet::under(&BY_LOGIN, &agent).get();
    assert_eq!(kinds(&agent), [EventType::HumanSession; 2]);
    let told = warnings(&agent, "human session");
    assert!(
        matches!(&told[..], [one] if one.contains("shop") && one.contains("humans = \"refused\"")),
        "{told:?}"
    );
    agent.verify().unwrap();
    assert_eq!(logged(&agent.stop().1, "human session").as_deref(), Some("WARN"));
}

#[tokio::test(flavor = "multi_thread")]
async fn where_people_are_refused_a_person_gets_nothing_and_the_operator_learns_why() {
    // NHI-10, S17
    if !can_log_in("where_people_are_refused_a_person_gets_nothing_and_the_operator_learns_why") {
        return;
    }
    let issuer = issuer(300);
    let agent = agent_with(&issuer, "humans = \"refused\"");
    Puppet::start(&agent).get();
    let mut person = Puppet::under(&BY_LOGIN, &agent);
    for _ in 0..3 {
        assert_eq!(person.ask("get orders")["error"], "NOT_ENTITLED");
    }
    let [signal] = &signals(&agent)[..] else { panic!("{:?}", signals(&agent)) };
    let event = &signal.entry.event;
    assert_eq!((event.kind, event.outcome), (EventType::HumanSession, Outcome::Denied));
    assert_eq!(came_of(&agent, signal), EventType::Denial);
    let denials = agent.records().into_iter().filter(|record| record.entry.event.kind == EventType::Denial);
    let reasons: Vec<_> = denials.map(|record| record.entry.event.reason.unwrap()).collect();
    assert_eq!(reasons, ["HUMAN_SESSION"; 3]);

    // As curl in an ssh session would.
    let socket = agent.socket("http.sock");
    let arguments = ["-s", "-H", "keybearer: v1", "--unix-socket"];
    let mut curl = Command::new(BY_LOGIN[0]);
    curl.args(&BY_LOGIN[1..]).arg("curl").args(arguments).arg(socket);
    let said = curl.arg("http://x/v1/credentials/orders").output().unwrap();
    let said = String::from_utf8(said.stdout).unwrap();
    let has_curl = Command::new("curl").arg("--version").output().is_ok();
    assert!(!has_curl || said.contains("NOT_ENTITLED"), "{said}");
    assert!(!has_curl || signals(&agent).len() == 2, "another process");

    let pid = person.pid().to_string();
    let why = agent.keybearer(&["explain", "--pid", &pid, "orders"]);
    let why = String::from_utf8(why.stdout).unwrap();
    for words in ["HUMAN_SESSION", "a person is behind it", LOGIN, "humans = \"allowed\""] {
        assert!(why.contains(words), "{words}: {why}");
    }
    assert_eq!(warnings(&agent, "human session").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_identity_for_people_serves_them_on_record_and_warns_nobody() {
    // NHI-10: break-glass.
    if !can_log_in("an_identity_for_people_serves_them_on_record_and_warns_nobody") {
        return;
    }
    let issuer = issuer(300);
    let agent = agent_with(&issuer, "humans = \"allowed\"");
    Puppet::under(&BY_LOGIN, &agent).get();
    let [signal] = &signals(&agent)[..] else { panic!("{:?}", signals(&agent)) };
    assert_eq!(signal.entry.event.kind, EventType::HumanSession);
    assert_eq!(came_of(&agent, signal), EventType::CredentialIssue);
    assert_eq!(warnings(&agent, "human session").len(), 0);
    assert_eq!(logged(&agent.stop().1, "human session").as_deref(), Some("INFO"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_tells_of_a_person_where_nobody_logged_in() {
    // NHI-10
    let test = "a_terminal_tells_of_a_person_where_nobody_logged_in";
    if Command::new("script").arg("--version").output().is_err() {
        return skip(test, "there is no script(1)");
    }
    if fs::read_to_string("/proc/self/loginuid").is_ok_and(|uid| uid.trim() != u32::MAX.to_string()) {
        return skip(test, "it runs in a login's session itself");
    }
    let issuer = issuer(300);
    let agent = agent_with(&issuer, "");
    let command = format!("{} get orders --socket {}", support::BINARY, agent.socket("agent.sock").display());
    let said = Command::new("script").args(["-qec", &command, "/dev/null"]).output().unwrap();
    assert!(said.status.success(), "{said:?}");
    let [signal] = &signals(&agent)[..] else { panic!("{:?}", signals(&agent)) };
    assert_eq!(signal.entry.event.reason.as_deref(), Some("TERMINAL"));
    assert_eq!(came_of(&agent, signal), EventType::CredentialIssue);
}

/// An identity of two users, one after the other.
fn of_two_users(issuer: &Issuer) -> Setup {
    Setup::matching(issuer.handle.url(), "match = [{ uid = 0 }, { uid = 4711 }]")
}

const AS_OTHER: [&str; 6] = ["setpriv", "--reuid", LOGIN, "--regid", LOGIN, "--clear-groups"];

#[tokio::test(flavor = "multi_thread")]
async fn a_place_that_was_never_used_is_told_of_once_and_known_at_the_next_start() {
    // S17
    if !is_root() {
        return skip(
            "a_place_that_was_never_used_is_told_of_once_and_known_at_the_next_start",
            "it takes root",
        );
    }
    let issuer = issuer(300);
    let setup = of_two_users(&issuer);
    let agent = setup.start(Some(&issuer.handle));
    for _ in 0..3 {
        Puppet::start(&agent).get();
    }
    assert_eq!(of_places(&agent), [], "the first place is the measure");
    let dir = Arc::clone(&agent.dir);
    agent.stop();

    // Nothing of it is in use any more: the agent that knew is gone.
    let agent = TestAgent::start(Arc::clone(&dir));
    Puppet::under(&AS_OTHER, &agent).get();
    Puppet::under(&AS_OTHER, &agent).get();
    let [signal] = &of_places(&agent)[..] else { panic!("{:?}", of_places(&agent)) };
    let entry = &signal.entry;
    assert_eq!((entry.event.kind, entry.event.reason.as_deref()), (EventType::NewPlace, Some("NEW_PLACE")));
    assert_eq!(entry.peer.as_ref().unwrap().uid, LOGIN.parse::<u32>().unwrap());
    let words = entry.detail.as_deref().unwrap();
    assert!(words.contains(&format!("user {LOGIN} outside any unit")), "{words}");
    let after = came_of(&agent, signal);
    assert!([EventType::CredentialIssue, EventType::CredentialRelease].contains(&after), "{after:?}");
    assert_eq!(warnings(&agent, "new place").len(), 1);
    let (_, log) = agent.stop();
    assert_eq!(logged(&log, "new place").as_deref(), Some("WARN"));

    // A reload that changes who matches resets nothing.
    let agent = TestAgent::start(Arc::clone(&dir));
    setup.with("{ uid = 4711 }", "{ uid = 4711, gid = 4711 }").write();
    assert!(agent.keybearer(&["reload"]).status.success());
    Puppet::under(&AS_OTHER, &agent).get();
    assert_eq!(of_places(&agent).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_identity_from_two_places_at_once_is_told_of_once() {
    // NHI-9, S17
    if !is_root() {
        return skip("one_identity_from_two_places_at_once_is_told_of_once", "it takes root");
    }
    let issuer = issuer(300);
    let setup = of_two_users(&issuer);
    let agent = setup.start(Some(&issuer.handle));
    Puppet::start(&agent).get();
    let dir = Arc::clone(&agent.dir);
    agent.stop();
    let agent = TestAgent::start(Arc::clone(&dir));
    Puppet::under(&AS_OTHER, &agent).get();
    agent.stop();

    // Both places are known by now.
    let agent = TestAgent::start(dir);
    let before = of_places(&agent).len();
    let (mut one, mut same, mut other) =
        (Puppet::apart(&agent), Puppet::apart(&agent), Puppet::under(&AS_OTHER, &agent));
    one.get();
    same.get();
    assert_eq!(of_places(&agent).len(), before, "several processes of one place are no two");
    for _ in 0..3 {
        other.get();
        one.get();
        Puppet::under(&AS_OTHER, &agent).get();
        Puppet::start(&agent).get();
    }
    let [signal] = &of_places(&agent)[before..] else { panic!("{:?}", of_places(&agent)) };
    let entry = &signal.entry;
    assert_eq!((entry.event.kind, entry.event.reason.as_deref()), (EventType::TwoPlaces, Some("TWO_PLACES")));
    assert_eq!(entry.peer.as_ref().unwrap().pid, other.pid());
    let words = entry.detail.as_deref().unwrap();
    assert!(words.contains("while user 0 outside any unit uses it too"), "{words}");
    assert_eq!(came_of(&agent, signal), EventType::CredentialRelease);
    assert_eq!(warnings(&agent, "two places").len(), 1);
    agent.verify().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_user_in_a_mount_namespace_of_its_own_is_another_place() {
    // S17
    let apart = ["unshare", "-m"];
    if !is_root()
        || !Command::new("unshare").args(["-m", "true"]).status().is_ok_and(|status| status.success())
    {
        return skip(
            "the_same_user_in_a_mount_namespace_of_its_own_is_another_place",
            "it takes root and unshare(1)",
        );
    }
    let issuer = issuer(300);
    let agent = Setup::new(issuer.handle.url()).start(Some(&issuer.handle));
    Puppet::start(&agent).get();
    Puppet::under(&apart, &agent).get();
    Puppet::under(&apart, &agent).get();
    let [signal] = &of_places(&agent)[..] else { panic!("{:?}", of_places(&agent)) };
    assert_eq!(signal.entry.event.kind, EventType::NewPlace);
    assert!(signal.entry.detail.as_deref().unwrap().contains("a mount namespace of its own"));
    assert_eq!(came_of(&agent, signal), EventType::CredentialRelease);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_memory_of_places_is_said_and_begun_anew() {
    // S17
    let issuer = issuer(300);
    let agent = Setup::new(issuer.handle.url()).start(Some(&issuer.handle));
    Puppet::start(&agent).get();
    let dir = Arc::clone(&agent.dir);
    let path = dir.path().join("state/places.json");
    agent.stop();
    assert!(fs::read_to_string(&path).unwrap().contains("outside any unit"));

    fs::write(&path, "{").unwrap();
    let agent = TestAgent::start(Arc::clone(&dir));
    let start = agent.records().into_iter().rfind(|record| record.entry.event.kind == EventType::AgentStart);
    let said = start.unwrap().entry.detail.unwrap();
    assert!(said.contains("places.json") && said.contains("is forgotten"), "{said}");
    Puppet::start(&agent).get();
    let (_, log) = agent.stop();
    assert_eq!(logged(&log, "is forgotten").as_deref(), Some("ERROR"));
    assert!(fs::read_to_string(&path).unwrap().contains("outside any unit"), "begun anew");

    // What cannot be kept is said, and nobody is refused for it: the ledger has it.
    fs::remove_file(&path).unwrap();
    fs::create_dir(dir.path().join("state/places.new")).unwrap();
    let agent = TestAgent::start(dir);
    Puppet::start(&agent).get();
    assert_eq!(logged(&agent.stop().1, "is not kept").as_deref(), Some("ERROR"));
}

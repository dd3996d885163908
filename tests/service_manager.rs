//! Who is no service manager: each asks at its socket for real, as another user, from another user namespace, outside every unit, from
//! an address that says nothing. Nobody gets a byte, and each is on record. Whom it serves is in tests/systemd.rs, which has one.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::{
    fs,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
    process::{Command, Output},
};

use keybearer::audit::{EventType, Record};
use support::{Setup, TestAgent, built, install, is_root, issuer, jwt_in, skip};

/// A user that owns nothing here.
const NOBODY: &str = "65533";

const ADDRESS: &str = "b172944aab594534/unit/shop.service/orders";

/// An agent that would serve the unit `shop.service`.
fn agent(issuer: &support::Issuer) -> TestAgent {
    Setup::matching(issuer.handle.url(), "match = { unit = \"shop.service\" }\nservice_manager = \"allowed\"")
        .with(r#"assurance = "interim""#, r#"assurance = "standard""#)
        .start(Some(&issuer.handle))
}

fn ask(agent: &TestAgent, wrapper: &[&str], address: &str) -> Output {
    let copy = agent.dir.path().join("manager");
    if !copy.exists() {
        install(&built("manager"), &copy);
    }
    let (copy, socket) = (copy.display().to_string(), agent.socket("systemd.sock").display().to_string());
    let line = [wrapper, &[&copy, &socket, address]].concat();
    Command::new(line[0]).args(&line[1..]).output().unwrap()
}

/// The record of whoever asked last: it is written before the connection ends.
fn refused(agent: &TestAgent, wrapper: &[&str], address: &str) -> Record {
    let answer = ask(agent, wrapper, address);
    assert!(answer.status.success(), "it could not ask: {answer:?}");
    assert!(answer.stdout.is_empty(), "{answer:?}");
    agent.records().pop().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_socket_is_roots_alone_and_whoever_is_not_root_is_refused_all_the_same() {
    // LEGACY 2.6
    let issuer = issuer(300);
    let agent = agent(&issuer);
    let socket = agent.socket("systemd.sock");
    let meta = fs::symlink_metadata(&socket).unwrap();
    assert!(meta.file_type().is_socket());
    assert_eq!(meta.mode() & 0o777, 0o600);
    let as_another: &[&str] = if is_root() {
        let wrapper = &["setpriv", "--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"];
        let shut = ask(&agent, wrapper, ADDRESS);
        assert!(String::from_utf8_lossy(&shut.stderr).contains("Permission denied"), "{shut:?}");
        // Whatever becomes of the mode, the uid is looked at.
        fs::set_permissions(&socket, fs::Permissions::from_mode(0o666)).unwrap();
        wrapper
    } else {
        &[]
    };
    let record = refused(&agent, as_another, ADDRESS);
    let event = &record.entry.event;
    assert_eq!(
        (event.kind, event.reason.as_deref()),
        (EventType::AttestationFailure, Some("NOT_SERVICE_MANAGER"))
    );
    assert!(record.entry.detail.unwrap().contains("it is not root"));
    assert_ne!(record.entry.peer.unwrap().uid, 0);
    agent.verify().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn root_is_not_enough() {
    if !is_root() {
        return skip("root_is_not_enough", "only root gets past the first question");
    }
    let issuer = issuer(300);
    let agent = agent(&issuer);

    // From no address, and from one that is nearly right.
    for address in
        ["-", "1/unit/shop.service", "1/unit/shop.service/orders/token", "x/unit/shop.service/orders"]
    {
        let record = refused(&agent, &[], address);
        assert_eq!(record.entry.event.reason.as_deref(), Some("NOT_SERVICE_MANAGER"), "{address}");
    }

    // The right address, from outside the unit.
    let record = refused(&agent, &[], ADDRESS);
    let event = &record.entry.event;
    assert_eq!((event.kind, event.reason.as_deref()), (EventType::Denial, Some("UNIT_CONFLICT")));
    let errand = record.entry.service_manager.unwrap();
    assert_eq!((errand.unit.as_str(), errand.credential.as_str()), ("shop.service", "orders"));
    assert!(record.entry.policy.unwrap().missing[0].starts_with("it asks for shop.service"));

    // ATT-13: root of a user namespace is root of nothing here, even where it is root outside too.
    let record = refused(&agent, &["unshare", "--user", "--map-root-user"], ADDRESS);
    let event = &record.entry.event;
    assert_eq!(
        (event.kind, event.reason.as_deref()),
        (EventType::AttestationFailure, Some("USER_NAMESPACE"))
    );
    assert_eq!(record.entry.peer.unwrap().uid, 0);

    // An operator can ask what would come of it where the unit starts, and of one that is not its.
    let explain = |unit: &str, name: &str| {
        let output = agent.keybearer(&["explain", "--unit", unit, name]);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let yes = explain("shop.service", "orders.token");
    assert!(
        yes.contains("shop.service, for which the service manager asks,") && yes.contains(": yes"),
        "{yes}"
    );
    let no = explain("other.service", "orders");
    assert!(
        no.contains("no, NO_IDENTITY") && no.contains("unit should be shop.service, is other.service"),
        "{no}"
    );
    let last = agent.records().pop().unwrap();
    assert_eq!(last.entry.event.kind, EventType::Explain);
    assert_eq!(last.entry.detail.as_deref(), Some("other.service: NO_IDENTITY"));
    assert!(!agent.keybearer(&["explain", "--unit", "../shop.service"]).status.success());

    // An id that is none is not taken for another, and costs the issuer nothing.
    let (_, log) = agent.stop();
    assert!(log.contains("a unit gets no credential") && log.contains("UNIT_CONFLICT"), "{log}");
    assert_eq!(jwt_in(&log), None);
}

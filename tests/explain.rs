//! `keybearer explain`, the real binary, about programs that are denied for one reason each: it says what missed, by how little, and what
//! to change. In go settings and a process; out come the words an operator reads.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use keybearer::clock::SystemClock;
use support::{Setup, TestAgent, install};
use tokio::time::timeout;

/// Nobody is asked for anything.
const ISSUER: &str = "http://127.0.0.1:1";

fn me() -> u32 {
    rustix::process::geteuid().as_raw()
}

fn mine() -> String {
    format!("match = {{ uid = {} }}", me())
}

/// What it says about this very process, or with other arguments.
fn explained(agent: &TestAgent, arguments: &[&str]) -> String {
    let pid = std::process::id().to_string();
    let whom: &[&str] =
        if arguments.iter().any(|it| ["--pid", "--unit"].contains(it)) { &[] } else { &["--pid", &pid] };
    let output = agent.keybearer(&[&["explain"], whom, arguments].concat());
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert!(output.status.success(), "{said}");
    said
}

/// All of these, in this order: the answer first, then what missed, then what to do, and the evidence last.
#[track_caller]
fn in_order(said: &str, wanted: &[&str]) {
    let mut rest = said;
    for words in wanted.iter().chain(&["\nevidence\n"]) {
        let Some(at) = rest.find(words) else { panic!("{words:?} is not there, or not there yet:\n{said}") };
        rest = &rest[at + words.len()..];
    }
}

/// A program that waits, and is no more when it is dropped.
struct Program(Child);

impl Program {
    fn of(file: &Path) -> Self {
        let child = Command::new(file).arg("60").stdin(Stdio::null()).spawn().unwrap();
        // Until it is that program: before, it is a copy of this one.
        let exe = format!("/proc/{}/exe", child.id());
        while fs::read_link(&exe).is_ok_and(|it| it == std::env::current_exe().unwrap()) {
            std::thread::yield_now();
        }
        Self(child)
    }

    fn pid(&self) -> String {
        self.0.id().to_string()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn sleep_at(setup: &tempfile::TempDir, name: &str) -> PathBuf {
    let at = setup.path().join(name);
    install(Path::new("/usr/bin/sleep"), &at);
    at
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_nobody_learns_by_what_and_what_to_change() {
    let groups = fs::read_to_string("/etc/group").unwrap();
    let mine = rustix::process::getgroups().unwrap();
    let is_mine = |gid: &str| mine.iter().any(|mine| mine.as_raw().to_string() == gid);
    let not_mine =
        groups.lines().find(|line| line.split(':').nth(2).is_some_and(|gid| gid != "0" && !is_mine(gid)));
    let group = not_mine.unwrap().split(':').next().unwrap();
    let cases: [(&str, &[&str]); 6] = [
        (
            "match = { uid = 54321 }",
            &[
                "no, NO_IDENTITY",
                "not shop, 1 of 1 selectors missed:\n  user should be 54321, is ",
                "what to do: if it is shop: run it as 54321 (User= in its unit), or correct user",
            ],
        ),
        (
            "match = { gid = 54321 }",
            &["  group should be 54321, is ", "run it with the group 54321 (Group= in its unit)"],
        ),
        (
            "match = { uid = ME, supplementary_group = \"GROUP\" }",
            &["1 of 2 selectors missed", "  supplementary_group should be ", "), is [", "start it anew"],
        ),
        (
            "match = { uid = ME, unit = \"shop.service\" }",
            &["1 of 2 selectors missed", "  unit should be shop.service: ", "what to do: ", "shop.service"],
        ),
        (
            "match = { uid = ME, exe = \"/usr/bin/sleep\" }",
            &[
                "  exe should be /usr/bin/sleep, is /",
                "what to do: if it is shop: start /usr/bin/sleep itself",
            ],
        ),
        (
            "match = { uid = ME, sha256 = \"4242424242424242424242424242424242424242424242424242424242424242\" }",
            &["  sha256 should be 4242", ", is ", "if not, find out who changed it"],
        ),
    ];
    for (selectors, wanted) in cases {
        let selectors = selectors.replace("ME", &me().to_string()).replace("GROUP", group);
        let agent = Setup::matching(ISSUER, &selectors).start(None);
        in_order(&explained(&agent, &["orders"]), wanted);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_nearest_comes_first_and_those_far_off_are_only_counted() {
    let near = format!("match = {{ uid = {}, gid = 54321 }}", me());
    let mut setup =
        Setup::matching(ISSUER, "match = { uid = 54321, gid = 54321 }").also("zebra", "interim", &near);
    for far in 0..3 {
        let selectors = format!("match = {{ uid = {}, gid = 54321 }}", 60_000 + far);
        setup = setup.also(&format!("far{far}"), "interim", &selectors);
    }
    let agent = setup.start(None);
    let said = explained(&agent, &["orders"]);
    in_order(
        &said,
        &[
            "not zebra, 1 of 2 selectors missed:\n  group should be 54321",
            "not far0, 2 of 2 selectors missed:\n  user should be 60000, is ",
            "    run it as 60000",
            "and 2 other identities, further off (--all)",
            "what to do: if it is zebra: run it with the group 54321",
        ],
    );
    assert!(!said.contains("not shop"), "{said}");
    in_order(&explained(&agent, &["orders", "--all"]), &["not zebra", "not far0", "not far2", "not shop"]);
    // What is on record names the nearest too.
    agent.client().await.get("orders", &[]).await.unwrap_err();
    let missing = agent.records().pop().unwrap().entry.policy.unwrap().missing;
    assert!(missing[0].starts_with("zebra: group should be 54321"), "{missing:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_was_replaced_under_itself_is_to_be_restarted() {
    // ATT-12
    let dir = tempfile::tempdir().unwrap();
    let program = sleep_at(&dir, "batch");
    let selectors = format!("match = {{ uid = {}, exe = \"{}\" }}", me(), program.display());
    let agent = Setup::within(dir, ISSUER, &selectors).start(None);
    let before = Program::of(&program);
    let ask = || explained(&agent, &["--pid", &before.pid(), "orders"]);
    if me() == 0 {
        in_order(&ask(), &["is shop at level", "credential orders: yes", "if it was refused all the same"]);
    } else {
        in_order(&ask(), &["EXE_WRITABLE", "have root own the program's file"]);
    }
    // As a package's upgrade does it: the same path, another file.
    fs::remove_file(&program).unwrap();
    install(Path::new("/usr/bin/sleep"), &program);
    in_order(
        &ask(),
        &[
            "no, NO_IDENTITY",
            "its program file was deleted, replaced or changed",
            "restart it, so that it runs",
        ],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_known_and_gets_nothing_learns_what_its_identity_lacks() {
    let export = |setup: Setup| {
        let path = setup.dir.path().join("web/agent.sock").display().to_string();
        setup
            .also("other", "interim", "match = { uid = 54321 }")
            .and(&format!("\n[exports.web]\npath = \"{path}\"\nidentities = [\"other\"]\n"))
    };
    let agent = export(Setup::matching(ISSUER, &mine())).start(None);
    in_order(
        &explained(&agent, &["orderz"]),
        &[
            "is shop at",
            "no, NO_CREDENTIAL",
            "missing: shop has orders",
            "[identities.shop.credentials.orderz]",
        ],
    );
    in_order(
        &explained(&agent, &["orders", "--scope", "orders:read", "orders:destroy"]),
        &[
            "no, SCOPE",
            "missing: scope \"orders:destroy\" is not among those granted: orders:read, orders:write",
            "add the scope to orders",
        ],
    );
    in_order(
        &explained(&agent, &["orders", "--at", "web"]),
        &[
            "no, NOT_AT_THIS_SOCKET",
            "shop is not served at this socket",
            "add shop to the identities of this export",
        ],
    );
    in_order(&explained(&agent, &[]), &["an identity: yes", "shop has orders"]);
    let (no, other) = (agent.keybearer(&["explain", "--pid", "1", "--at", "wep"]), "there are web");
    assert!(!no.status.success() && String::from_utf8_lossy(&no.stderr).contains(other), "{no:?}");
    assert!(agent.keybearer(&["disable", "shop", "--reason", "its host was broken into"]).status.success());
    in_order(
        &explained(&agent, &["orders"]),
        &[
            "no, DISABLED",
            "missing: the reason given: its host was broken into",
            "keybearer enable shop, once",
        ],
    );
    // Whoever asks learns none of it.
    let told = agent.keybearer(&["get", "orders"]);
    let told = String::from_utf8_lossy(&told.stderr).into_owned();
    assert!(!told.contains("broken into") && !told.contains("DISABLED"), "{told}");

    let agent = Setup::matching(ISSUER, &mine()).with(r#""interim""#, r#""standard""#).start(None);
    in_order(
        &explained(&agent, &["orders"]),
        &[
            "no, LEVEL",
            "assurance standard needs level L3, this is L",
            ": ",
            "lower the assurance of shop on purpose",
        ],
    );
    let forwarded = Setup::matching(ISSUER, &mine())
        .bound("https://orders.example")
        .with("origins = [", "forward = \"only\"\norigins = [");
    let agent = forwarded.start(None);
    in_order(
        &explained(&agent, &["orders"]),
        &[
            "no, FORWARD_ONLY",
            "it does not leave the agent",
            "/v1/forward, or set forward = \"allowed\" for orders",
        ],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exception_that_is_over_is_said_to_be_with_where_it_stands() {
    // S36
    let until = jiff::Timestamp::from_second(SystemClock::shared().wall().as_second() + 2).unwrap();
    let setup = Setup::matching(ISSUER, &mine());
    let text = fs::read_to_string(setup.write()).unwrap();
    let line = text.lines().find(|line| line.starts_with("exception")).unwrap();
    let soon = format!(
        "exception = {{ owner = \"shop@example.com\", reason = \"a test\", until = \"{until:.0}\" }}"
    );
    let agent = setup.with(line, &soon).start(None);
    let over = async {
        loop {
            let said = explained(&agent, &["orders"]);
            if said.contains("no, ") {
                return said;
            }
        }
    };
    let said = timeout(Duration::from_secs(20), over).await.unwrap();
    in_order(
        &said,
        &[
            "no, EXCEPTION_EXPIRED",
            &format!("missing: its exception ended at {until:.0}"),
            "until in [identities.shop.credentials.orders]",
        ],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unit_is_explained_before_it_runs() {
    // LEGACY 2.6
    let manager = "service_manager = \"allowed\"";
    let shop = format!("match = {{ unit = \"shop.service\" }}\n{manager}");
    let agent = Setup::matching(ISSUER, &shop)
        .with(r#""interim""#, r#""standard""#)
        .also("batch", "standard", "match = { unit = \"batch.service\", uid = 54321 }")
        .start(None);
    let unit = |unit: &str| explained(&agent, &["--unit", unit, "orders"]);
    in_order(
        &unit("other.service"),
        &[
            "other.service, for which the service manager asks, is nobody",
            "no, NO_IDENTITY",
            // Its user is nobody's business yet.
            "not batch, 1 of 1 selectors missed",
            "unit should be ",
            ", is other.service",
            "what to do: if it is ",
            "start it with systemctl start ",
        ],
    );
    in_order(
        &unit("batch.service"),
        &["is batch at", "no, NOT_FOR_SERVICE_MANAGER", "set service_manager = \"allowed\" for batch"],
    );
    let apart = Setup::matching(ISSUER, &shop)
        .with(r#""interim""#, r#""standard""#)
        .with("binding = \"bearer\"", "binding = \"bearer\"\nper = \"process\"");
    let agent = apart.start(None);
    in_order(
        &explained(&agent, &["--unit", "shop.service", "orders"]),
        &["is shop at", "no, NO_PROCESS", "that does not run yet", "start the program with keybearer exec"],
    );
}

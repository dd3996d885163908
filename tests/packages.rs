//! The packages, as an operator meets them: the deb is installed under a real service manager, an identity is written down, the unit
//! enabled, and a program gets its credential; it is started anew and upgraded under load, hangs, is reloaded, removed and purged. In go
//! packages that `packaging/build` makes of this very program; out comes what the programs on that host notice.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "support/container.rs"]
mod container;
mod support;

use std::{
    collections::BTreeSet,
    io::Read as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use container::{Container, can_boot, text, until};
use keybearer::{
    audit::{EventType, read},
    dev::Fault,
};
use serde_json::Value;
use support::{BINARY, RESOURCE, built, install, issuer, register_keys, skip};

/// Who runs the demo application.
const USER: &str = "games";

/// What systemd may find, in tenths: `systemd-analyze security` calls less than 2 OK.
const EXPOSURE: f64 = 1.5;

/// How often it is started anew under load.
const RESTARTS: usize = 8;

/// Everything that is installed, but for documentation.
const FILES: &[&str] = &[
    "/etc/keybearer/agent.toml",
    "/usr/bin/docker-credential-keybearer",
    "/usr/bin/git-credential-keybearer",
    "/usr/bin/keybearer",
    "/usr/lib/systemd/system/keybearer-http.socket",
    "/usr/lib/systemd/system/keybearer-operator.socket",
    "/usr/lib/systemd/system/keybearer-systemd.socket",
    "/usr/lib/systemd/system/keybearer-workload.socket",
    "/usr/lib/systemd/system/keybearer.service",
    "/usr/lib/sysusers.d/keybearer.conf",
    "/usr/lib/tmpfiles.d/keybearer.conf",
    "/usr/share/bash-completion/completions/keybearer",
    "/usr/share/doc/keybearer/README.md",
    "/usr/share/doc/keybearer/SECURITY.md",
    "/usr/share/doc/keybearer/agent.toml.example",
    "/usr/share/doc/keybearer/examples/client.conf",
    "/usr/share/doc/keybearer/examples/templates/pgpass",
    "/usr/share/fish/vendor_completions.d/keybearer.fish",
    "/usr/share/keybearer/grafana/keybearer.json",
    "/usr/share/keybearer/prometheus/keybearer.rules.yml",
    "/usr/share/man/man1/keybearer.1.gz",
    "/usr/share/man/man1/keybearer-agent.1.gz",
];

fn has(tool: &str) -> bool {
    Command::new(tool)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|it| it.success())
}

/// Makes one package of this program.
fn build(kind: &str, revision: &str, out: &Path) -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/build");
    let made = Command::new(script)
        .args([kind, "--fast", "--binary", BINARY, "--revision", revision, "--out"])
        .arg(out)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", text(&made));
    String::from_utf8(made.stdout).unwrap().trim().into()
}

#[test]
fn the_rpm_has_the_files_of_the_deb() {
    if !has("rpmbuild") || !has("dpkg-deb") {
        return skip("the_rpm_has_the_files_of_the_deb", "rpmbuild and dpkg-deb are not both here");
    }
    let dir = tempfile::tempdir().unwrap();
    let (deb, rpm) = (build("deb", "1", dir.path()), build("rpm", "1", dir.path()));
    let rpm_says = |query: &[&str]| {
        let said = Command::new("rpm").args(query).arg(&rpm).output().unwrap();
        assert!(said.status.success(), "{}", text(&said));
        String::from_utf8(said.stdout).unwrap()
    };
    let in_rpm: BTreeSet<String> = rpm_says(&["-qlp"]).lines().map(str::to_owned).collect();
    for file in FILES {
        assert!(in_rpm.contains(*file), "{file} is not in the rpm: {in_rpm:?}");
    }
    let listed = Command::new("dpkg-deb").arg("--contents").arg(&deb).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let in_deb: BTreeSet<String> = listed
        .lines()
        .filter(|line| !line.starts_with('d'))
        .map(|line| line.split(" -> ").next().unwrap())
        .map(|line| line.split(" ./").nth(1).map(|path| format!("/{path}")).unwrap())
        .collect();
    // Where the families of distributions differ.
    let theirs = |path: &&String| {
        ![
            "/usr/share/zsh/",
            "/usr/share/licenses/",
            "/copyright",
            "/changelog.",
            "/agent.toml.d",
            "/etc/keybearer",
        ]
        .iter()
        .any(|own| path.contains(own))
    };
    let (deb, rpm): (BTreeSet<_>, BTreeSet<_>) =
        (in_deb.iter().filter(theirs).collect(), in_rpm.iter().filter(theirs).collect());
    assert_eq!(deb, rpm);

    let modes = rpm_says(&[
        "-qp",
        "--queryformat",
        "[%{FILEMODES:perms} %{FILEUSERNAME}:%{FILEGROUPNAME} %{FILENAMES}\n]",
    ]);
    assert!(modes.contains("-rwxr-xr-x root:root /usr/bin/keybearer\n"), "{modes}");
    assert!(modes.contains("-rw-r--r-- root:root /etc/keybearer/agent.toml\n"), "{modes}");
    assert!(
        !modes
            .lines()
            .filter(|line| !line.starts_with('l'))
            .any(|line| line.contains("rws") || line.contains("w-rw") || line.contains("rwx ")),
        "{modes}"
    );
    assert_eq!(
        rpm_says(&["-qcp"]).trim(),
        "/etc/keybearer/agent.toml",
        "what an upgrade leaves as the operator has it"
    );
    let scripts = rpm_says(&["-qp", "--scripts"]);
    assert!(scripts.contains("try-restart keybearer.service"), "{scripts}");
    assert!(!scripts.contains("enable --now") && !scripts.contains("rm -r"), "{scripts}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_from_installation_to_purge() {
    let name = "a_host_from_installation_to_purge";
    if let Err(why) = can_boot() {
        return skip(name, why);
    }
    if !has("dpkg-deb") {
        return skip(name, "dpkg-deb is not here: this is no Debian");
    }
    let issuer = issuer(300);
    let dir = tempfile::Builder::new().prefix("packages").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (first, second) = (build("deb", "1", dir.path()), build("deb", "2", dir.path()));
    install(&built("crowd"), &dir.path().join("crowd"));
    let Some(host) = Container::boot(dir.path()) else {
        return skip(name, "there can be no overlay over / here");
    };

    installed_it_starts_nothing(&host, &first);
    enabled_it_serves_as_installed(&host);
    configured_and_reloaded_it_serves_a_program(&host, &issuer);
    the_journal_says_who_got_what(&host);
    it_is_locked_down(&host);
    a_program_can_be_named_by_its_path(&host);
    a_broken_file_is_refused_at_reload_and_the_old_one_goes_on(&host);
    // What was live outlives the agent: no call may need the issuer.
    issuer.handle.set_fault(Fault::Unavailable, None);
    nobody_notices_that_it_is_started_anew_or_upgraded(&host, dir.path(), &second);
    issuer.handle.set_fault(Fault::None, None);
    what_hangs_is_started_anew(&host);
    a_socket_that_lets_in_more_than_the_settings_is_refused(&host);
    removed_and_purged_it_leaves_the_ledger(&host);
}

fn installed_it_starts_nothing(host: &Container, deb: &Path) {
    host.must(&["dpkg", "--install", deb.to_str().unwrap()]);
    for file in FILES {
        assert!(host.at(file).exists(), "{file}");
    }
    let units = [
        "keybearer.service",
        "keybearer-workload.socket",
        "keybearer-operator.socket",
        "keybearer-http.socket",
        "keybearer-systemd.socket",
    ];
    for unit in units {
        assert_eq!(text(&host.run(&["systemctl", "is-enabled", unit])).trim(), "disabled", "{unit}");
        assert_eq!(text(&host.run(&["systemctl", "is-active", unit])).trim(), "inactive", "{unit}");
    }
    let places = host.must(&[
        "stat",
        "--format=%A %U:%G %n",
        "/run/keybearer",
        "/var/lib/keybearer",
        "/etc/keybearer/agent.toml",
    ]);
    let wanted = "drwxr-xr-x keybearer:keybearer /run/keybearer\ndrwx------ keybearer:keybearer /var/lib/keybearer\n\
                  -rw-r--r-- root:root /etc/keybearer/agent.toml\n";
    assert_eq!(places, wanted);
    let verified = host.run(&[
        "systemd-analyze",
        "verify",
        "--man=no",
        "keybearer.service",
        "keybearer-workload.socket",
    ]);
    // What it finds wrong it only prints.
    let found = text(&verified);
    assert!(!found.contains("keybearer"), "{found}");
    host.must(&["keybearer", "check"]);
}

fn enabled_it_serves_as_installed(host: &Container) {
    host.must(&["systemctl", "enable", "--now", "keybearer.service"]);
    let status = host.must(&["keybearer", "status"]);
    assert!(status.contains("prod"), "{status}");
    let sockets = host.must(&["sh", "-c", "stat --format='%A %U:%G %n' /run/keybearer/*.sock"]);
    let wanted = "srw-rw---- keybearer:keybearer-clients /run/keybearer/agent.sock\n\
                  srw-rw---- keybearer:keybearer-clients /run/keybearer/http.sock\n\
                  srw-rw---- keybearer:keybearer /run/keybearer/operator.sock\n\
                  srw------- keybearer:keybearer /run/keybearer/systemd.sock\n";
    assert_eq!(sockets, wanted);
    let journal = host.must(&["journalctl", "--no-pager", "--output=cat", "--unit=keybearer.service"]);
    assert_eq!(journal.matches("listening where the service manager does").count(), 4, "{journal}");
    assert!(host.run(&["systemctl", "is-enabled", "keybearer-workload.socket"]).status.success());
}

fn configured_and_reloaded_it_serves_a_program(host: &Container, issuer: &support::Issuer) {
    let config = format!(
        r#"environment = "test"

[issuers.dev]
kind = "oauth"
issuer = "{}"
dev = true

[identities.shop]
owner = "shop@example.com"
assurance = "standard"
match = {{ unit = "shop.service", user = "{USER}" }}

[identities.shop.credentials.orders]
issuer = "dev"
client_id = "shop"
resource = "{RESOURCE}"
scope = ["orders:read", "orders:write"]
origins = ["https://orders.example"]

[identities.exact]
owner = "shop@example.com"
assurance = "high"
match = {{ unit = "exact.service", user = "{USER}", exe = "/usr/bin/keybearer" }}

[identities.exact.credentials.orders]
issuer = "dev"
client_id = "exact"
resource = "{RESOURCE}"
scope = ["orders:read"]
origins = ["https://orders.example"]
"#,
        issuer.handle.url()
    );
    host.write("/etc/keybearer/agent.toml", &config);
    host.must(&["systemctl", "reload", "keybearer.service"]);
    // The agent has made the keys; who may read them is its user.
    for identity in ["shop", "exact"] {
        let jwks = host.must(&[
            "runuser",
            "-u",
            "keybearer",
            "--",
            "keybearer",
            "keys",
            "export",
            "--identity",
            identity,
        ]);
        register_keys(&issuer.handle, jwks.as_bytes(), identity);
    }
    let user = format!("User={USER}");
    let get = ["keybearer", "get", "orders"];
    let got = host.unit("shop.service", &[&user, "SupplementaryGroups=keybearer-clients"], &get);
    assert!(got.status.success(), "{}{}", text(&got), host.must(&["keybearer", "audit", "tail"]));
    assert_eq!(text(&got).trim().split('.').count(), 3, "a JWT");
    let who = host.unit(
        "shop.service",
        &[&user, "SupplementaryGroups=keybearer-clients"],
        &["keybearer", "whoami", "--json"],
    );
    let who: Value = serde_json::from_slice(&who.stdout).unwrap();
    // As another identity names its program, everybody's is looked at.
    assert_eq!((&who["identity"], &who["level"]), (&"shop".into(), &"L4".into()), "{who}");
    // TM-01: the sockets are for a group.
    let outside = host.unit("shop.service", &[&user], &get);
    assert!(text(&outside).contains("Permission denied"), "{}", text(&outside));
    let other = host.unit("other.service", &[&user, "SupplementaryGroups=keybearer-clients"], &get);
    assert!(text(&other).contains("NOT_ENTITLED"), "{}", text(&other));
}

fn it_is_locked_down(host: &Container) {
    let found = host.must(&["systemd-analyze", "security", "--no-pager", "keybearer.service"]);
    let figure =
        found.lines().find_map(|line| line.split("exposure level for keybearer.service: ").nth(1)).unwrap();
    let figure: f64 = figure.split(' ').next().unwrap().parse().unwrap();
    println!("exposure {figure}");
    assert!(figure <= EXPOSURE, "{found}");

    let pid = host.must(&["systemctl", "show", "--property=MainPID", "--value", "keybearer.service"]);
    let status = host.must(&["cat", &format!("/proc/{}/status", pid.trim())]);
    let field =
        |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
    for set in ["CapEff:", "CapPrm:", "CapBnd:", "CapAmb:"] {
        assert_eq!(field(set), format!("{:016x}", 1 << 19), "{set} CAP_SYS_PTRACE and nothing else");
    }
    assert_eq!((field("NoNewPrivs:"), field("Seccomp:")), ("1".into(), "2".into()));
    assert_ne!(field("Uid:").split('\t').next(), Some("0"));
    // KEY-02: no limit binds what it locks, as far as this machine lets its service manager grant that.
    let limits = host.must(&["cat", &format!("/proc/{}/limits", pid.trim())]);
    let unbound =
        limits.lines().any(|line| line.starts_with("Max locked memory") && line.contains("unlimited"));
    assert_eq!(field("VmLck:") != "0 kB", unbound, "{status}");
    let told = host.must(&["keybearer", "status"]);
    assert!(told.contains(if unbound { "\nmemory    locked" } else { "\nmemory    not locked" }), "{told}");
    let asked = host.must(&["systemctl", "show", "--property=LimitMEMLOCK", "--value", "keybearer.service"]);
    assert_eq!(asked.trim(), "infinity");
    if !unbound {
        skip(
            "it_is_locked_down (memory)",
            "this machine does not let its service manager lift the limit of locked memory",
        );
    }
    // It can write where it has to, and start nothing.
    let mounts = host.must(&["cat", &format!("/proc/{}/mountinfo", pid.trim())]);
    let options = |place: &str| {
        let line = mounts.lines().rev().find(|line| line.split(' ').nth(4) == Some(place));
        line.unwrap_or_else(|| panic!("{place}: {mounts}")).split(' ').nth(5).unwrap().to_owned()
    };
    assert!(options("/").starts_with("ro,") && options("/").contains("noexec"), "{}", options("/"));
    assert!(options("/var/lib/keybearer").starts_with("rw,"), "{mounts}");
}

fn a_program_can_be_named_by_its_path(host: &Container) {
    // ATT-12: the unit gives the agent a mount namespace of its own, and the program has the host's.
    let user = format!("User={USER}");
    let properties = [user.as_str(), "SupplementaryGroups=keybearer-clients"];
    let who = host.unit("exact.service", &properties, &["keybearer", "whoami", "--json"]);
    let who: Value = serde_json::from_slice(&who.stdout).unwrap_or_else(|_| panic!("{}", text(&who)));
    assert_eq!((&who["identity"], &who["level"]), (&"exact".into(), &"L4".into()), "{who}");
    // In a mount namespace of its own that path could be any file.
    let elsewhere = [&properties[..], &["PrivateTmp=yes"]].concat();
    let who = host.unit("exact.service", &elsewhere, &["keybearer", "get", "orders"]);
    assert!(text(&who).contains("NOT_ENTITLED"), "{}", text(&who));
    let record =
        host.must(&["runuser", "-u", "keybearer", "--", "keybearer", "audit", "tail", "-n", "1", "--json"]);
    assert!(record.contains("mount namespace"), "{record}");
}

fn the_journal_says_who_got_what(host: &Container) {
    // AUD-26: as the settings come, from within the unit's sandbox.
    host.must(&["journalctl", "--sync"]);
    let asked = |fields: &[&str]| -> Vec<Value> {
        let command = [&["journalctl", "--no-pager", "--output=json"], fields].concat();
        host.must(&command).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let handed_out = "MESSAGE_ID=7fe6bde771224e228edec20964ed3014";
    let got = asked(&["KEYBEARER_IDENTITY=shop", handed_out]);
    let [entry, ..] = &got[..] else { panic!("{:?}", asked(&["-u", "keybearer.service"])) };
    for (field, value) in [
        ("KEYBEARER_CREDENTIAL", "orders"),
        ("KEYBEARER_OUTCOME", "success"),
        ("KEYBEARER_PEER_UNIT", "shop.service"),
        ("_SYSTEMD_UNIT", "keybearer.service"),
        ("PRIORITY", "6"),
    ] {
        assert_eq!(entry[field], value, "{field}: {entry}");
    }
    let seq = entry["KEYBEARER_SEQ"].as_str().unwrap();
    let record = host.must(&["runuser", "-u", "keybearer", "--", "keybearer", "audit", "explain", seq]);
    assert!(record.contains("shop in test") && record.contains("shop.service"), "{record}");
    // What the agent logs is there once, with its level, by the socket for it.
    let log = asked(&["-u", "keybearer.service"]);
    let is_told = |entry: &&Value| {
        entry["MESSAGE"]
            .as_str()
            .is_some_and(|text| text.starts_with("listening where the service manager does"))
    };
    let listening: Vec<&Value> = log.iter().filter(is_told).collect();
    assert_eq!(listening.len(), 4, "{listening:?}");
    assert!(listening.iter().all(|entry| entry["_TRANSPORT"] == "journal" && entry["PRIORITY"] == "6"));
}

fn a_broken_file_is_refused_at_reload_and_the_old_one_goes_on(host: &Container) {
    host.write("/etc/keybearer/agent.toml.d/broken.toml", "[audit]\nsync = \"never\"\n");
    let reload = host.run(&["systemctl", "reload", "keybearer.service"]);
    assert!(!reload.status.success(), "{}", text(&reload));
    let journal = host.must(&["journalctl", "--no-pager", "--output=cat", "--unit=keybearer.service"]);
    assert!(journal.contains("reload refused") && journal.contains("audit.sync"), "{journal}");
    let user = format!("User={USER}");
    let properties = [user.as_str(), "SupplementaryGroups=keybearer-clients"];
    assert!(host.unit("shop.service", &properties, &["keybearer", "get", "orders"]).status.success());
    host.must(&["rm", "/etc/keybearer/agent.toml.d/broken.toml"]);
    host.must(&["systemctl", "reload", "keybearer.service"]);
}

/// Callers at work.
struct Crowd(Child);

impl Crowd {
    fn begin(host: &Container, dir: &Path) -> Self {
        let program = dir.join("crowd").display().to_string();
        let line = ["/run/keybearer/http.sock", "/v1/credentials/orders", "16", "200"];
        let user = format!("--property=User={USER}");
        let start = ["systemd-run", "--quiet", "--wait", "--pipe", "--collect", "--unit=shop.service", &user];
        let start =
            [&start[..], &["--property=SupplementaryGroups=keybearer-clients", &program], &line].concat();
        Self(host.command(&start).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap())
    }

    /// How many calls there were, and what became of those that got nothing.
    fn end(mut self) -> (u64, Value) {
        drop(self.0.stdin.take());
        let mut said = String::new();
        self.0.stdout.take().unwrap().read_to_string(&mut said).unwrap();
        self.0.wait().unwrap();
        let told: Value = serde_json::from_str(&said).unwrap_or_else(|_| panic!("{said}"));
        (told["calls"].as_u64().unwrap(), told["failed"].clone())
    }
}

fn nobody_notices_that_it_is_started_anew_or_upgraded(host: &Container, dir: &Path, deb: &Path) {
    let pid = || host.must(&["systemctl", "show", "--property=MainPID", "--value", "keybearer.service"]);
    let before = pid();
    let crowd = Crowd::begin(host, dir);
    for _ in 0..RESTARTS {
        host.must(&["systemctl", "restart", "keybearer.service"]);
    }
    let restarted = pid();
    assert_ne!(before, restarted);
    host.must(&["systemctl", "reload", "keybearer.service"]);
    host.must(&["dpkg", "--install", deb.to_str().unwrap()]);
    assert_ne!(restarted, pid(), "an upgrade starts it anew");
    let (calls, failed) = crowd.end();
    println!("{calls} calls over {RESTARTS} restarts, a reload and an upgrade, failed: {failed}");
    assert!(calls > 200, "{calls}");
    assert_eq!(failed, serde_json::json!({}), "of {calls}");
    let version = host.must(&["dpkg-query", "--show", "--showformat=${Version}", "keybearer"]);
    assert!(version.ends_with("-2"), "{version}");
    // What the operator wrote is as he wrote it.
    assert!(host.must(&["cat", "/etc/keybearer/agent.toml"]).contains("identities.shop"));
}

fn what_hangs_is_started_anew(host: &Container) {
    host.write("/run/systemd/system/keybearer.service.d/soon.conf", "[Service]\nWatchdogSec=2s\n");
    host.must(&["systemctl", "daemon-reload"]);
    host.must(&["systemctl", "restart", "keybearer.service"]);
    let show = |host: &Container, what: &str| {
        host.must(&["systemctl", "show", &format!("--property={what}"), "--value", "keybearer.service"])
            .trim()
            .to_owned()
    };
    let pid = show(host, "MainPID");
    // Well: it beats.
    let first = show(host, "WatchdogTimestampMonotonic");
    let beat = until(Duration::from_secs(10), || show(host, "WatchdogTimestampMonotonic") != first);
    assert!(beat && show(host, "MainPID") == pid, "{}", show(host, "NRestarts"));
    let restarts = show(host, "NRestarts");
    host.must(&["kill", "-STOP", &pid]);
    let anew = until(Duration::from_secs(30), || {
        show(host, "NRestarts") != restarts && show(host, "ActiveState") == "active"
    });
    let journal =
        host.must(&["journalctl", "--no-pager", "--output=cat", "--unit=keybearer.service", "--lines=80"]);
    assert!(anew && journal.contains("Watchdog timeout"), "{journal}");
    let user = format!("User={USER}");
    let properties = [user.as_str(), "SupplementaryGroups=keybearer-clients"];
    assert!(host.unit("shop.service", &properties, &["keybearer", "get", "orders"]).status.success());
    host.must(&["rm", "-r", "/run/systemd/system/keybearer.service.d"]);
    host.must(&["systemctl", "daemon-reload"]);
}

fn a_socket_that_lets_in_more_than_the_settings_is_refused(host: &Container) {
    // ATT-02, ATT-11
    let sockets = [
        "keybearer-workload.socket",
        "keybearer-operator.socket",
        "keybearer-http.socket",
        "keybearer-systemd.socket",
    ];
    let stop = [&["systemctl", "stop"], &sockets[..], &["keybearer.service"]].concat();
    for (drop_in, says) in
        [("SocketMode=0666", "has mode 0666"), ("PassCredentials=no", "PassCredentials=yes")]
    {
        host.must(&stop);
        let path = "/run/systemd/system/keybearer-operator.socket.d/test.conf";
        host.write(path, &format!("[Socket]\n{drop_in}\n"));
        host.must(&["systemctl", "daemon-reload"]);
        let started = host.run(&["systemctl", "start", "keybearer.service"]);
        host.must(&stop);
        let lines = "--lines=30";
        let journal =
            host.must(&["journalctl", "--no-pager", "--output=cat", "--unit=keybearer.service", lines]);
        assert!(!started.status.success() && journal.contains(says), "{drop_in}: {journal}");
        host.must(&["rm", path]);
        host.must(&["systemctl", "daemon-reload"]);
        host.run(&["systemctl", "reset-failed"]);
    }
    host.must(&["systemctl", "start", "keybearer.service"]);
}

fn removed_and_purged_it_leaves_the_ledger(host: &Container) {
    host.must(&["dpkg", "--remove", "keybearer"]);
    assert!(!host.at("/run/keybearer/agent.sock").exists());
    assert!(!host.run(&["systemctl", "is-active", "keybearer.service"]).status.success());
    let purged = host.run(&["dpkg", "--purge", "keybearer"]);
    assert!(purged.status.success(), "{}", text(&purged));
    assert!(
        text(&purged).contains("the ledger and the keys are kept in /var/lib/keybearer"),
        "{}",
        text(&purged)
    );
    assert!(!host.at("/etc/keybearer/agent.toml").exists());
    let left = host.run(&["find", "/etc/systemd/system", "/usr/lib/systemd", "-name", "keybearer*"]);
    assert_eq!(text(&left), "", "no link of an enabled unit is left");
    let ledger = host.at("/var/lib/keybearer/audit");
    let verified = keybearer::audit::verify(&ledger, None).expect("it is whole");
    let stops =
        read(&ledger, 0).unwrap().filter(|record| record.entry.event.kind == EventType::AgentStop).count();
    assert!(verified.records > 10 && stops > 3, "{verified:?}");
}

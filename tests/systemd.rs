//! Units under a real service manager: this machine's own systemd, booted in a container over a throw-away overlay, with the
//! agent as a unit in it. In goes the real binary; out comes who is served and who is not, and what an operator is told.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "support/disk.rs"]
mod disk;
mod support;

use std::{
    fs,
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use disk::Disk;
use keybearer::{
    audit::EventType,
    deliver::{Dialect, Entry},
    secret::Secret,
};
use serde_json::Value;
use support::{BINARY, Setup, built, is_root, issuer, jwt_in, register, register_as, skip};

/// A user that the container knows and that owns nothing there: games, by tradition.
const USER: u32 = 5;

#[tokio::test(flavor = "multi_thread")]
async fn units_of_a_real_service_manager() {
    if let Err(why) = can_boot() {
        return skip("units_of_a_real_service_manager", why);
    }
    let issuer = issuer(300);
    let dir = tempfile::Builder::new().prefix("systemd").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let setup = Setup::within(dir, issuer.handle.url(), r#"match = { unit = "shop.service" }"#)
        .with(r#"assurance = "interim""#, r#"assurance = "standard""#)
        .also("team", "standard", r#"match = { unit = "tool.service", slice = "team.slice" }"#)
        .also("desk", "interim", &format!(r#"match = {{ user_unit = "shop.service", uid = {USER} }}"#));
    let setup = setup
        .also("loaded", "standard", &loaded("loaded.service"))
        .also("silent", "standard", "match = { unit = \"silent.service\" }")
        .also("wrapped", "standard", &format!("match = {{ unit = \"wrapped.service\", uid = {USER} }}"))
        .also("written", "standard", &format!("match = {{ unit = \"written.service\", uid = {USER} }}"))
        .and("\n[identities.loaded.deliver]\nfile = { TOKEN_FILE = \"orders.token\" }\n")
        .and("\n[identities.wrapped.deliver]\nenv = { TOKEN = \"orders.token\" }\nat_rotation = { orders = \"restart\" }\n")
        .and("\n[identities.written.deliver]\nenv = { TOKEN = \"orders.token\" }\n");
    register(&issuer.handle, &setup.write());
    for client in ["loaded", "wrapped", "written"] {
        register_as(&issuer.handle, &setup.write(), client);
    }
    let other_issuer = support::issuer(300);
    let careless = careless(setup.dir.path(), other_issuer.handle.url());
    let disk = Disk::mount(&careless.dir.path().join("state")).expect("root can mount a small disk");
    register(&other_issuer.handle, &careless.write());
    let kept = kept(setup.dir.path(), issuer.handle.url());
    let host = Host::boot(setup.dir.path());
    host.agent("keybearer.service", setup.dir.path(), &[]);

    the_unit_that_is_named_is_served(&host);
    an_unmodified_program_has_its_credential_by_load_credential(&host);
    an_unmodified_program_has_its_credential_by_exec(&host);
    an_unmodified_program_has_its_credential_by_an_environment_file(&host);
    whoever_the_service_manager_asks_for_is_the_unit_that_starts_and_nobody_else(&host);
    a_root_process_that_plays_the_service_manager_gets_no_other_units_credential(&host);
    without_an_agent_a_unit_fails_and_systemd_says_why(&host);
    another_unit_of_the_same_user_is_refused_and_the_operator_learns_why(&host);
    a_slice_is_matched_and_a_unit_outside_it_is_not(&host);
    a_delegated_subtree_proves_nothing(&host);
    what_a_users_own_manager_says_is_only_that_users_word(&host);
    a_process_outside_every_unit_is_nobody(&host);
    where_the_operator_chose_so_it_goes_on_without_a_record_and_tells_later(
        &host,
        careless.dir.path(),
        &disk,
    );

    an_environment_file_is_read_as_it_was_meant(&host);
    a_unit_writes_its_own_environment_file_before_it_starts(&host);
    a_credential_of_the_service_manager_seals_key_files(&host, &kept);
    an_agent_that_is_not_root_is_asked_by_the_service_manager_too(&host, &kept);
    a_secret_that_cannot_be_dynamic_yet_is_kept_by_the_service_manager_or_under_its_key(&host, kept);
    the_journal_of_a_talkative_agent_holds_no_token(&host);

    let verified = host.inside(&[BINARY, "audit", "verify", "--dir", &host.path("state/audit")]);
    assert!(verified.status.success(), "{}", text(&verified));
}

fn the_unit_that_is_named_is_served(host: &Host) {
    // ATT-15
    let answer = host.unit("shop.service", &[], &["get", "orders"]);
    assert!(answer.status.success(), "{}", text(&answer));
    assert_eq!(String::from_utf8_lossy(&answer.stdout).trim().split('.').count(), 3, "a JWT");

    let who: Value = host.json("shop.service", &[], &["whoami", "--json"]);
    assert_eq!((&who["identity"], &who["level"]), (&"shop".into(), &"L3".into()), "{who}");
    let record = host.last_record();
    assert_eq!(record["peer"]["unit"]["name"], "shop.service", "{record}");
}

/// Selectors for a unit that runs as a user of its own, which the service manager may ask for.
fn loaded(unit: &str) -> String {
    format!("match = {{ unit = {unit:?}, uid = {USER} }}\nservice_manager = \"allowed\"")
}

/// A unit whose program is as it always was: it finds a token where it looks for it (`reads` is a command that prints it), and shows
/// what it read to root and itself alone.
fn unmodified(unit: &str, reads: &str) -> String {
    let name = unit.trim_end_matches(".service");
    format!(
        "[Service]\nUser={USER}\nRuntimeDirectory={name}\nRuntimeDirectoryMode=0700\nRestartSec=0\n\
         ExecStart=/bin/sh -c 'umask 077; {reads} > /run/{name}/new && mv /run/{name}/new /run/{name}/seen; exec sleep 600'\n"
    )
}

/// What the program of a unit has read, a token that is not `before`, as soon as it has.
fn seen(host: &Host, unit: &str, before: &str) -> String {
    let path = format!("/run/{}/seen", unit.trim_end_matches(".service"));
    let token = host.until_said(|| {
        let said = String::from_utf8(host.inside(&["cat", &path]).stdout).unwrap();
        if said == before { String::new() } else { said }
    });
    assert_eq!(token.split('.').count(), 3, "a JWT: {token:?}");
    assert_eq!(token.trim(), token, "as it is, with no line end");
    token
}

/// What a unit's identity has comes to its end, as it does at each rotation.
fn ended(host: &Host, identity: &str) {
    let ended = host.inside(&[BINARY, "revoke", identity, "--socket", &host.path("run/operator.sock")]);
    assert!(ended.status.success(), "{}", text(&ended));
}

fn an_unmodified_program_has_its_credential_by_load_credential(host: &Host) {
    // LEGACY 2.6; the first thing that "legacy programs" has to show.
    let unit = "loaded.service";
    host.install(unit, &unmodified(unit, "cat \"$TOKEN_FILE\""));
    host.moved_over(unit, "load-credential");
    let first = seen(host, unit, "");

    // LoadCredential= has it read-only and the unit's alone.
    let at = format!("/run/credentials/{unit}");
    let modes = host.inside(&["stat", "-c", "%a %u", &at, &format!("{at}/orders.token")]);
    let modes = String::from_utf8(modes.stdout).unwrap();
    assert_eq!(modes, format!("500 {USER}\n400 {USER}\n"));
    no_other_user_sees(host, unit, &first);

    // It is asked for once for each command of the unit: the check, and the program.
    let records: Vec<Value> =
        host.records().into_iter().filter(|record| record["service_manager"]["unit"] == unit).collect();
    let [record, again] = &records[..] else { panic!("{records:?}") };
    assert_eq!(again["event"]["type"], "credential_release", "{again}");
    let event = &record["event"];
    assert_eq!(
        (&event["type"], &event["outcome"]),
        (&"credential_issue".into(), &"success".into()),
        "{record}"
    );
    assert_eq!(record["workload"]["id"], "loaded");
    assert_eq!(record["service_manager"]["credential"], "orders.token");
    assert_eq!(record["service_manager"]["promised"], serde_json::json!(["user"]), "{record}");
    assert_eq!(
        (&record["peer"]["uid"], &record["peer"]["unit"]["name"]),
        (&0.into(), &unit.into()),
        "{record}"
    );
    assert_eq!((&record["peer"]["level"], &record["credential"]["name"]), (&"L3".into(), &"orders".into()));
    assert_eq!(record["socket"], host.path("run/systemd.sock"));
    assert_eq!(record["policy"]["rule"], "loaded.orders");

    // The credential comes to its end: the unit starts anew and has another, by hand and then by itself.
    ended(host, "loaded");
    host.install(&format!("{unit}.d/90-soon.conf"), "[Service]\nRuntimeMaxSec=1\nRestart=on-failure\n");
    host.inside(&["systemctl", "daemon-reload"]);
    host.inside(&["systemctl", "restart", "--no-block", unit]);
    let second = seen(host, unit, &first);
    ended(host, "loaded");
    seen(host, unit, &second);
    host.inside(&["systemctl", "stop", unit]);
    host.remove(unit);
}

fn an_unmodified_program_has_its_credential_by_exec(host: &Host) {
    // LEGACY 2.2: keybearer exec in ExecStart, which stays here, because a rotation is to start the program again.
    let unit = "wrapped.service";
    host.install(unit, &unmodified(unit, "echo -n \"$TOKEN\""));
    host.moved_over(unit, "exec");
    let first = seen(host, unit, "");
    no_other_user_sees(host, unit, &first);
    ended(host, "wrapped");
    let second = seen(host, unit, &first);
    no_other_user_sees(host, unit, &second);
    let restarts = host.inside(&["systemctl", "show", "-P", "NRestarts", unit]);
    assert_eq!(text(&restarts).trim(), "0", "the unit itself went on");
    host.inside(&["systemctl", "stop", unit]);
    assert!(
        host.inside(&["systemctl", "is-failed", unit]).status.code() != Some(0),
        "{}",
        host.journal(unit)
    );
    host.remove(unit);
}

fn an_unmodified_program_has_its_credential_by_an_environment_file(host: &Host) {
    // LEGACY 2.4: written in ExecStartPre by the unit's own user, read by systemd as root.
    let unit = "written.service";
    host.install(unit, &unmodified(unit, "echo -n \"$TOKEN\""));
    host.moved_over(unit, "env-file");
    let first = seen(host, unit, "");
    no_other_user_sees(host, unit, &first);
    let modes = host.inside(&["stat", "-c", "%a %u", "/run/keybearer-written/environment"]);
    assert_eq!(text(&modes), format!("400 {USER}\n"));
    ended(host, "written");
    host.inside(&["systemctl", "restart", unit]);
    seen(host, unit, &first);
    host.inside(&["systemctl", "stop", unit]);
    host.remove(unit);
}

/// Nothing that a user who is neither root nor the unit's own can read holds the secret; and of what the unit's own settings are,
/// nothing at all, whoever asks.
fn no_other_user_sees(host: &Host, unit: &str, secret: &str) {
    const OTHER: &str = "2";
    let script = format!(
        "for pid in /proc/[0-9]*; do cat $pid/environ $pid/cmdline $pid/status 2>/dev/null; done; \
         cat /run/credentials/{unit}/* /run/{}/* 2>&1; systemctl show {unit}; systemctl cat {unit}; systemctl status {unit}; \
         id -u; true",
        unit.trim_end_matches(".service")
    );
    let as_other = ["setpriv", "--reuid", OTHER, "--regid", OTHER, "--clear-groups"];
    let looked = host.inside(&[&as_other[..], &["sh", &host.script(&script)]].concat());
    let looked = text(&looked);
    assert!(
        looked.ends_with("2\n") && looked.contains("ExecStart") && looked.contains("Permission denied"),
        "{looked}"
    );
    assert!(!looked.contains(secret), "uid {OTHER} sees it");
    let shown = text(&host.inside(&[
        "sh",
        "-c",
        &format!("systemctl show {unit}; systemctl cat {unit}; journalctl --no-pager"),
    ]));
    assert!(!shown.contains(secret), "root sees it where it does not belong");
}

fn whoever_the_service_manager_asks_for_is_the_unit_that_starts_and_nobody_else(host: &Host) {
    let socket = host.path("run/systemd.sock");
    // What its program read, or nothing if it was not started.
    let start = |unit: &str, id: &str, more: &str| {
        host.install(
            unit,
            &format!(
                "[Service]\nType=oneshot\nLoadCredential={id}:{socket}\nExecStartPre=/usr/bin/test -s %d/{id}\n\
                 ExecStart=/bin/cat %d/{id}\nStandardOutput=truncate:/run/said\n{more}\n"
            ),
        );
        host.inside(&["systemctl", "daemon-reload"]);
        host.inside(&["rm", "-f", "/run/said"]);
        let started = host.inside(&["systemctl", "start", unit]).status.success();
        let said = String::from_utf8(host.inside(&["cat", "/run/said"]).stdout).unwrap();
        assert_eq!(started, !said.is_empty(), "{unit} {id} {more}: {}", host.journal(unit));
        host.remove(unit);
        said
    };

    // By its name alone, and whatever the unit is walled in with.
    for more in [
        "",
        "DynamicUser=yes",
        "Delegate=yes",
        "PrivateUsers=yes\nUser=5",
        "ProtectSystem=strict\nPrivateTmp=yes\nProtectProc=invisible\nUser=5",
        "NoNewPrivileges=yes\nCapabilityBoundingSet=\nPrivateNetwork=yes\nUser=5",
    ] {
        let said = start("loaded.service", "orders", more);
        assert_eq!(said.split('.').count(), 3, "{more}: {}", host.journal("loaded.service"));
    }

    // A unit that nobody knows, and one whose identity does not say so: an empty file, which the check tells.
    for (unit, reason) in [("other.service", "NO_IDENTITY"), ("silent.service", "NOT_FOR_SERVICE_MANAGER")] {
        assert_eq!(start(unit, "orders", ""), "");
        let record = host.last_record();
        let event = &record["event"];
        assert_eq!((&event["type"], &event["reason"]), (&"denial".into(), &reason.into()), "{record}");
        assert_eq!(record["service_manager"]["unit"], unit);
        host.until_journal_says("keybearer.service", &["a unit gets no credential", unit, reason]);
        host.until_journal_says(unit, &["Control process exited, code=exited, status=1/FAILURE"]);
    }

    // What is no credential of it, and what is no field of one.
    for (id, kind) in [("nothing", "denial"), ("orders.password", "protocol"), ("Orders!", "protocol")] {
        assert_eq!(start("loaded.service", id, ""), "");
        assert_eq!(host.last_record()["event"]["type"], kind, "{id}");
    }
}

fn a_root_process_that_plays_the_service_manager_gets_no_other_units_credential(host: &Host) {
    let (manager, socket) = (built("manager").display().to_string(), host.path("run/systemd.sock"));
    let address = "1/unit/loaded.service/orders.token";
    // It is the words that count and not who says them: the control, in the unit itself.
    let own = host.run("loaded.service", &[], &[&manager, &socket, address]);
    assert_eq!(String::from_utf8_lossy(&own.stdout).split('.').count(), 3, "{}", text(&own));
    let liar = host.run("liar.service", &[], &[&manager, &socket, address]);
    assert!(liar.status.success() && liar.stdout.is_empty(), "{}", text(&liar));
    let record = host.last_record();
    assert_eq!(record["event"]["reason"], "UNIT_CONFLICT", "{record}");
    assert_eq!(record["peer"]["unit"]["name"], "liar.service");
    assert_eq!(record["service_manager"]["unit"], "loaded.service");
}

fn without_an_agent_a_unit_fails_and_systemd_says_why(host: &Host) {
    let nobody = host.path("run/nobody.sock");
    let load = format!("--property=LoadCredential=orders:{nobody}");
    let answer = host.run("loaded.service", &[&load], &["true"]);
    assert_eq!(answer.status.code(), Some(243), "EXIT_CREDENTIALS: {}", text(&answer));
    // Told by the process that was to become the program: whether the journal still finds its unit is a matter of luck.
    host.until_said(|| {
        let journal = text(&host.inside(&["journalctl", "--no-pager"]));
        journal
            .lines()
            .find(|line| line.contains("loaded.service: Failed to set up credentials"))
            .unwrap_or_default()
            .into()
    });
}

fn another_unit_of_the_same_user_is_refused_and_the_operator_learns_why(host: &Host) {
    // TM-03: the same user, the same program, another unit.
    let answer = host.unit("other.service", &[], &["get", "orders"]);
    assert!(!answer.status.success(), "{}", text(&answer));
    assert!(text(&answer).contains("NOT_ENTITLED"), "{}", text(&answer));
    assert!(!text(&answer).contains("shop.service"), "a stranger learns nothing: {}", text(&answer));
    let record = host.last_record();
    assert_eq!(
        (&record["event"]["type"], &record["peer"]["unit"]["name"]),
        (&"denial".into(), &"other.service".into())
    );

    host.systemctl_run("sleeper.service", &["sleep", "60"]);
    let pid = host.inside(&["systemctl", "show", "-P", "MainPID", "sleeper.service"]);
    let pid = String::from_utf8(pid.stdout).unwrap();
    let operator = host.path("run/operator.sock");
    let why = host.inside(&[BINARY, "explain", "--pid", pid.trim(), "orders", "--socket", &operator]);
    assert!(text(&why).contains("should be shop.service"), "{}", text(&why));
    assert!(text(&why).contains("sleeper.service"), "{}", text(&why));
    host.inside(&["systemctl", "stop", "sleeper.service"]);
}

fn a_slice_is_matched_and_a_unit_outside_it_is_not(host: &Host) {
    let within = host.json("tool.service", &["--slice=team.slice"], &["whoami", "--json"]);
    assert_eq!(within["identity"], "team", "{within}");
    let deeper = host.json("tool.service", &["--slice=team-tools.slice"], &["whoami", "--json"]);
    assert_eq!(deeper["identity"], "team", "a slice holds the slices below it: {deeper}");
    let outside = host.unit("tool.service", &["--slice=teams.slice"], &["whoami"]);
    assert!(text(&outside).contains("NOT_ENTITLED"), "{}", text(&outside));
}

fn a_delegated_subtree_proves_nothing(host: &Host) {
    // E23: whoever owns a delegated cgroup names cgroups in it as he likes.
    let script = format!(
        "set -e; for tree in systemd unified .; do own=/sys/fs/cgroup/$tree/system.slice/mine.service; \
         [ -d $own ] || continue; mkdir $own/shop.service; echo $$ > $own/shop.service/cgroup.procs; done; \
         cat /proc/self/cgroup >&2; exec {BINARY} get orders"
    );
    let user = format!("User={USER}");
    let properties = ["-p", "Delegate=yes", "-p", &user];
    let answer = host.run("mine.service", &properties, &["sh", &host.script(&script)]);
    let said = text(&answer);
    assert!(said.contains("mine.service/shop.service"), "the attack did not take place: {said}");
    assert!(said.contains("NOT_ENTITLED"), "{said}");
    let record = host.last_record();
    assert_eq!(record["event"]["type"], "denial", "{record}");
    assert!(record["policy"]["missing"].to_string().contains("delegated"), "{record}");
}

fn what_a_users_own_manager_says_is_only_that_users_word(host: &Host) {
    // A real user manager. It needs no PAM here, and no login.
    let script = format!(
        "set -e; own=/run/systemd/system/user@{USER}.service.d; home=/run/user/{USER}; mkdir -p $own $home; chown {USER} $home; \
         printf '[Unit]\\nRequires=\\n[Service]\\nPAMName=\\nEnvironment=XDG_RUNTIME_DIR=%s HOME=%s\\n' $home $home > $own/test.conf; \
         systemctl daemon-reload; systemctl start user@{USER}.service; \
         exec setpriv --reuid {USER} --regid {USER} --clear-groups env XDG_RUNTIME_DIR=$home \
         systemd-run --user --quiet --wait --pipe --unit=shop.service {BINARY} whoami --json --socket {}",
        host.path("run/agent.sock")
    );
    let answer = host.inside(&["sh", &host.script(&script)]);
    let who: Value = serde_json::from_slice(&answer.stdout).unwrap_or_else(|_| panic!("{}", text(&answer)));
    assert_eq!(who["identity"], "desk", "a user-unit, never the system's shop.service: {who}");
    assert_eq!(who["level"], "L2", "{who}");
}

fn a_process_outside_every_unit_is_nobody(host: &Host) {
    let answer = host.inside(&[BINARY, "get", "orders", "--socket", &host.path("run/agent.sock")]);
    assert!(text(&answer).contains("NOT_ENTITLED"), "{}", text(&answer));
}

fn the_journal_of_a_talkative_agent_holds_no_token(host: &Host) {
    // PKJ-15, AUD-05: what leaks.rs searches, where it ends up on a host.
    let token = host.unit("shop.service", &[], &["get", "orders"]).stdout;
    let token = String::from_utf8(token).unwrap();
    for unit in ["keybearer.service", "careless.service"] {
        let journal = text(&host.inside(&["journalctl", "--no-pager", "--output=json", "--unit", unit]));
        assert!(journal.contains("ready"), "{unit}: the journal is really here: {journal}");
        assert!(!journal.contains(token.trim().rsplit('.').next().unwrap()), "{unit}: the token's signature");
        assert_eq!(jwt_in(&journal), None, "{unit}");
    }
}

fn an_environment_file_is_read_as_it_was_meant(host: &Host) {
    // LEGACY 2.4: byte for byte, by the reader itself. Its noncharacters and other bytes are refused: src/deliver/dialect.
    let pieces = [
        "'",
        "\"",
        "\\",
        "$",
        "${",
        "}",
        "`",
        "#",
        " #",
        ";",
        "=",
        " ",
        "\t",
        "\n",
        "\r",
        "%",
        "%%",
        "%n",
        "!",
        "$(id)",
        "${HOME}",
        "$HOME",
        "\\n",
        "\\'",
        "\\\"",
        "\\\\",
        "\\\n",
        "export ",
        "A=b",
        "\u{7f}",
        "\u{1}",
        "\u{1b}[0m",
        "\u{feff}",
        "\u{85}",
        "\u{a0}",
        "\u{2028}",
        "é",
        "𝄞",
        "",
    ];
    let mut values: Vec<String> = pieces.iter().map(|piece| (*piece).to_owned()).collect();
    for (at, one) in pieces.iter().enumerate() {
        for other in &pieces[at % 5..] {
            values.push(format!("{one}{other}a{other}{one}"));
        }
    }
    values.push("a".repeat(100_000));
    let wanted = |at: usize| (format!("V{at:04}"), &values[at]);
    // As many at a time as a program may be started with.
    for chunk in (0..values.len()).collect::<Vec<_>>().chunks(300) {
        let entry = |at: &usize| Entry {
            variable: wanted(*at).0.parse().unwrap(),
            source: "ledger.token".parse().unwrap(),
            value: Secret::new(wanted(*at).1.as_str()),
        };
        let file = Dialect::Systemd.write(&chunk.iter().map(entry).collect::<Vec<_>>()).unwrap();
        fs::write(host.path("environment"), file.expose()).unwrap();
        let file = format!("EnvironmentFile={}", host.path("environment"));
        let read = host.run("reader.service", &["-p", &file], &["env", "-0"]);
        assert!(read.status.success(), "{}", text(&read));
        let read: Vec<&[u8]> = read.stdout.split(|byte| *byte == 0).collect();
        for at in chunk {
            let (name, value) = wanted(*at);
            let line = format!("{name}={value}");
            let has = read
                .iter()
                .find(|line| line.starts_with(name.as_bytes()))
                .map(|line| String::from_utf8_lossy(line));
            assert!(read.contains(&line.as_bytes()), "{value:?}: {has:?}");
        }
    }
}

fn a_unit_writes_its_own_environment_file_before_it_starts(host: &Host) {
    // Must-show 1: EnvironmentFile written in ExecStartPre, by the unit's own user, into its own directory.
    let user = format!("User={USER}");
    let before = format!(
        "ExecStartPre={BINARY} env-file --format systemd --env TOKEN=orders.token --out /run/shop/env"
    );
    let properties = [
        "RuntimeDirectory=shop",
        "RuntimeDirectoryMode=0700",
        "EnvironmentFile=-/run/shop/env",
        &user,
        &before,
    ];
    let socket = format!("--setenv=KEYBEARER_SOCKET={}", host.path("run/agent.sock"));
    let mut start = vec!["systemd-run", "--quiet", "--unit=shop.service", &socket];
    start.extend(properties.iter().flat_map(|property| ["-p", property]));
    start.extend(["sleep", "60"]);
    let started = host.inside(&start);
    let journal = || text(&host.inside(&["journalctl", "--no-pager", "-u", "shop.service"]));
    assert!(started.status.success(), "{}{}", text(&started), journal());
    assert_eq!(host.last_record()["peer"]["unit"]["name"], "shop.service");
    let mode = host.inside(&["stat", "-c", "%u %a", "/run/shop/env"]);
    assert_eq!(text(&mode).trim(), format!("{USER} 400"), "{}", journal());

    let shown = text(&host.inside(&["systemctl", "show", "shop.service"]));
    let pid = shown.lines().find_map(|line| line.strip_prefix("MainPID=")).unwrap();
    let environ = format!("/proc/{pid}/environ");
    let has = text(&host.inside(&["cat", &environ]));
    let token = jwt_in(&has).unwrap_or_else(|| panic!("no token: {has}{}", journal()));
    assert!(shown.contains("/run/shop/env") && !shown.contains(token) && jwt_in(&shown).is_none(), "{shown}");
    assert!(!journal().contains(token));
    let other = (USER + 1).to_string();
    let looked =
        host.inside(&["setpriv", "--reuid", &other, "--clear-groups", "cat", &environ, "/run/shop/env"]);
    assert!(!looked.status.success() && !text(&looked).contains(token), "{}", text(&looked));
    host.inside(&["systemctl", "stop", "shop.service"]);
    let gone = host.inside(&["cat", "/run/shop/env"]);
    assert!(!gone.status.success(), "what the unit had goes with it");
}

/// A second agent, that goes on when it cannot record. No "interim" identity may have such a one, so it needs units.
fn careless(within: &Path, issuer: &str) -> Setup {
    let dir = tempfile::Builder::new().prefix("careless").tempdir_in(within).unwrap();
    Setup::within(dir, issuer, r#"match = { unit = "shop.service" }"#)
        .with(r#"assurance = "interim""#, r#"assurance = "standard""#)
        .and("\n[audit]\non_failure = \"allow\"\n")
}

/// A third agent, a user's that is not root, for what is kept.
fn kept(within: &Path, issuer: &str) -> Setup {
    let dir = tempfile::Builder::new().prefix("kept").tempdir_in(within).unwrap();
    let selectors = "match = { unit = \"shop.service\" }\nservice_manager = \"allowed\"";
    let setup = Setup::within(dir, issuer, selectors);
    let owner = Some(USER);
    std::os::unix::fs::chown(setup.write(), owner, owner).unwrap();
    std::os::unix::fs::chown(setup.dir.path(), owner, owner).unwrap();
    setup
}

fn a_credential_of_the_service_manager_seals_key_files(host: &Host, kept: &Setup) {
    // KEY-11, as agent.toml.example says it is done.
    let user = format!("--property=User={USER}");
    let properties = [&user, "--property=LoadCredentialEncrypted=keybearer.sealing-key"];
    let key = kept.dir.path().join("state/keys/shop.client-auth.pem");
    let status = || {
        let operator = kept.dir.path().join("run/operator.sock").display().to_string();
        text(&host.inside(&[BINARY, "status", "--socket", &operator]))
    };
    host.agent("kept.service", kept.dir.path(), &properties);
    assert!(status().contains("key files are not sealed"), "without the credential it starts: {}", status());
    assert!(fs::read_to_string(&key).unwrap().starts_with("-----BEGIN PRIVATE KEY-----"));
    host.inside(&["systemctl", "stop", "kept.service"]);

    // By the host's key, and said so: the container's is on no disk.
    let made = host.inside(&[
        "sh",
        &host.script(
            "set -e; mkdir -p /etc/credstore.encrypted; head -c 32 /dev/urandom | systemd-creds encrypt \\
             --with-key=host --name=keybearer.sealing-key - /etc/credstore.encrypted/keybearer.sealing-key",
        ),
    ]);
    assert!(made.status.success(), "{}", text(&made));
    host.agent("kept.service", kept.dir.path(), &properties);
    assert!(!status().contains("not sealed") && status().contains("shop"), "{}", status());
    let sealed = fs::read_to_string(&key).unwrap();
    assert!(sealed.starts_with("-----BEGIN KEYBEARER SEALED KEY-----"), "{sealed}");
    host.inside(&["systemctl", "stop", "kept.service"]);
}

fn a_secret_that_cannot_be_dynamic_yet_is_kept_by_the_service_manager_or_under_its_key(
    host: &Host,
    kept: Setup,
) {
    // S1, as agent.toml.example says it is done; the agent is a user's that is not root.
    let now = keybearer::clock::SystemClock::shared().wall().as_second();
    let until = jiff::Timestamp::from_second(now + 86_400).unwrap();
    let exception = format!("exception = {{ owner = \"shop\", reason = \"a test\", until = \"{until}\" }}");
    let table = |name: &str, more: &str| {
        format!(
            "\n[identities.shop.credentials.{name}]\nkind = \"sealed\"\nfields = [\"password\"]\n{exception}\n{more}\n"
        )
    };
    let kept = kept.and(&table("smtp", "systemd_credential = \"smtp-password\"")).and(&table("imap", ""));
    std::os::unix::fs::chown(kept.write(), Some(USER), Some(USER)).unwrap();
    let made = host.inside(&[
        "sh",
        &host.script(
            "printf 'canary-of-the-manager\\n' | systemd-creds encrypt --with-key=host --name=smtp-password - \\
             /etc/credstore.encrypted/smtp-password",
        ),
    ]);
    assert!(made.status.success(), "{}", text(&made));
    let user = format!("--property=User={USER}");
    let properties = [
        &user,
        "--property=LoadCredentialEncrypted=keybearer.sealing-key",
        "--property=LoadCredentialEncrypted=smtp-password",
    ];
    host.agent("static.service", kept.dir.path(), &properties);
    let at = |name: &str| kept.dir.path().join(name).display().to_string();
    let (agent, operator) = (at("run/agent.sock"), at("run/operator.sock"));
    let sealed = host.inside(&[
        "sh",
        &host.script(&format!("printf canary-of-the-agent | {BINARY} seal shop imap --socket {operator}")),
    ]);
    assert!(sealed.status.success(), "{}", text(&sealed));
    for (name, secret) in [("smtp", "canary-of-the-manager\n"), ("imap", "canary-of-the-agent\n")] {
        let line = ["get", name, "--field", "password", "--socket", &agent];
        let answer = host.unit("shop.service", &[&user], &line);
        assert_eq!(String::from_utf8_lossy(&answer.stdout), secret, "{}", text(&answer));
        let refused = host.unit("other.service", &[&user], &line);
        assert!(text(&refused).contains("NOT_ENTITLED") && !text(&refused).contains("canary"));
    }
    let status = text(&host.inside(&[BINARY, "status", "--socket", &operator]));
    assert!(status.contains("systemd credential smtp-password"), "{status}");
    let journal =
        text(&host.inside(&["journalctl", "--no-pager", "--output=json", "--unit", "static.service"]));
    assert!(journal.contains("ready") && !journal.contains("canary"), "{journal}");
    let grep = host.inside(&["grep", "-r", "-l", "canary-of", &at("state"), "/etc/credstore.encrypted"]);
    assert_eq!(text(&grep), "", "none of it lies open");
    host.inside(&["systemctl", "stop", "static.service"]);
}

fn an_agent_that_is_not_root_is_asked_by_the_service_manager_too(host: &Host, kept: &Setup) {
    // As packages run it: a user of its own, and the one capability that evidence needs.
    let user = format!("--property=User={USER}");
    let properties = [
        &user,
        "--property=LoadCredentialEncrypted=keybearer.sealing-key",
        "--property=AmbientCapabilities=CAP_SYS_PTRACE",
    ];
    host.agent("kept.service", kept.dir.path(), &properties);
    let socket = kept.dir.path().join("run/systemd.sock").display().to_string();
    let mode = host.inside(&["stat", "-c", "%a %u", &socket]);
    assert_eq!(text(&mode), format!("600 {USER}\n"));
    let load = format!("--property=LoadCredential=orders:{socket}");
    let answer =
        host.run("shop.service", &[&load], &["sh", &host.script("wc -c < $CREDENTIALS_DIRECTORY/orders")]);
    assert_eq!(text(&answer).trim(), "0", "its issuer does not know this agent");
    let ledger = kept.dir.path().join("state/audit");
    let record = keybearer::audit::read(&ledger, 0).unwrap().last().unwrap();
    assert_eq!(record.entry.event.kind, EventType::IssueFailure, "policy said yes: {record:?}");
    assert_eq!(record.entry.policy.unwrap().decision, "grant");
    let peer = record.entry.peer.unwrap();
    assert_eq!(
        (peer.uid, peer.unit.unwrap().name.as_str(), peer.level.as_deref()),
        (0, "shop.service", Some("L3"))
    );
    host.inside(&["systemctl", "stop", "kept.service"]);
}

fn where_the_operator_chose_so_it_goes_on_without_a_record_and_tells_later(
    host: &Host,
    dir: &Path,
    disk: &Disk,
) {
    // AUD-02, the other way: audit.on_failure = "allow". The way that denies is in faults.rs.
    host.agent("careless.service", dir, &[]);
    let at = |name: &str| dir.join(name).display().to_string();
    let get = || {
        let socket = at("run/agent.sock");
        let answer = host.unit("shop.service", &[], &["get", "orders", "--socket", &socket]);
        assert!(answer.status.success(), "{}", text(&answer));
    };
    let ledger = || text(&host.inside(&[BINARY, "status", "--socket", &at("run/operator.sock")]));
    let records = || keybearer::audit::read(&dir.join("state/audit"), 0).unwrap().collect::<Vec<_>>();
    get();
    disk.fill();
    // The last page of the ledger may still have room for a record or two.
    let lost = (0..8).find(|_| {
        get();
        ledger().contains("cannot be written")
    });
    assert!(lost.is_some(), "{}", ledger());
    let before = records();
    get();
    assert_eq!(records().len(), before.len(), "it was served without a record");
    disk.clear();
    get();
    let after = records();
    let gap = &after[before.len()].entry;
    assert_eq!(gap.event.kind, EventType::LedgerGap, "told before anything else: {gap:?}");
    let detail = gap.detail.as_deref().unwrap();
    assert!(detail.starts_with("2 records could not be written"), "{detail}");
    assert_eq!(after.len(), before.len() + 2);
    assert!(!ledger().contains("cannot be written"), "{}", ledger());
    let verified = host.inside(&[BINARY, "audit", "verify", "--dir", &at("state/audit")]);
    assert!(verified.status.success(), "{}", text(&verified));
    host.inside(&["systemctl", "stop", "careless.service"]);
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn can_boot() -> Result<(), &'static str> {
    if !is_root() {
        return Err("only root can boot a container");
    }
    let found = Command::new("systemd-nspawn").arg("--version").stdout(Stdio::null()).status();
    if !found.is_ok_and(|status| status.success()) {
        return Err("systemd-nspawn is not here; the package is called systemd-container");
    }
    if !Path::new("/lib/systemd/systemd").exists() {
        return Err("systemd is not installed here");
    }
    Ok(())
}

/// A booted container, which ends with the test.
struct Host {
    nspawn: Child,
    leader: u32,
    dir: String,
}

impl Host {
    fn boot(dir: &Path) -> Self {
        let binaries = Path::new(BINARY).parent().unwrap().display().to_string();
        let dir = dir.display().to_string();
        let log = fs::File::create(format!("{dir}/boot.log")).unwrap();
        let nspawn = Command::new("systemd-nspawn")
            .args(["--boot", "--directory=/", "--volatile=yes", "--register=no", "--keep-unit", "--quiet"])
            .args(["--console=pipe", &format!("--bind-ro={binaries}"), &format!("--bind={dir}")])
            .args(["systemd.unit=basic.target", "systemd.firstboot=off"])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut host = Self { nspawn, leader: 0, dir };
        let booted = until(|| {
            host.leader = child_of(host.nspawn.id()).unwrap_or(0);
            let state = host.inside(&["systemctl", "is-system-running"]);
            ["running", "degraded"].contains(&text(&state).trim())
        });
        assert!(booted, "systemd did not come up: {}", fs::read_to_string(host.path("boot.log")).unwrap());
        host
    }

    /// Starts an agent as a unit, which is up once it has said so.
    fn agent(&self, unit: &str, dir: &Path, properties: &[&str]) {
        let config = dir.join("agent.toml").display().to_string();
        let named = format!("--unit={unit}");
        let start = ["systemd-run", "--quiet", &named, "--service-type=notify"];
        let started = self.inside(&[&start, properties, &[BINARY, "agent", "--config", &config]].concat());
        let journal = || text(&self.inside(&["journalctl", "-u", unit]));
        assert!(started.status.success(), "{}{}", text(&started), journal());
    }

    /// Runs a command of ours in a unit of its own.
    fn unit(&self, name: &str, properties: &[&str], arguments: &[&str]) -> Output {
        self.run(name, properties, &[&[BINARY], arguments].concat())
    }

    fn json(&self, name: &str, properties: &[&str], arguments: &[&str]) -> Value {
        let output = self.unit(name, properties, arguments);
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(&output)))
    }

    fn run(&self, name: &str, properties: &[&str], command: &[&str]) -> Output {
        let unit = format!("--unit={name}");
        let socket = format!("--setenv=KEYBEARER_SOCKET={}", self.path("run/agent.sock"));
        let start = ["systemd-run", "--quiet", "--wait", "--pipe", "--collect", &unit, &socket];
        self.inside(&[&start, properties, command].concat())
    }

    /// A shell script, as a file: `systemd-run` would expand its variables.
    fn script(&self, text: &str) -> String {
        let path = self.path("script");
        fs::write(&path, text).unwrap();
        path
    }

    /// Starts a unit that stays.
    fn systemctl_run(&self, name: &str, command: &[&str]) {
        let started =
            self.inside(&[&["systemd-run", "--quiet", &format!("--unit={name}")], command].concat());
        assert!(started.status.success(), "{}", text(&started));
    }

    /// Runs a command in the container, outside every unit.
    fn inside(&self, command: &[&str]) -> Output {
        Command::new("nsenter")
            .args(["--target", &self.leader.to_string(), "--all", "--wdns=/"])
            .args(["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"])
            .args(command)
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// Puts a unit file or a drop-in into place.
    fn install(&self, name: &str, content: &str) {
        fs::write(self.path("unit"), content).unwrap();
        let at = format!("/run/systemd/system/{name}");
        let put = self.inside(&["install", "-D", "-m", "644", &self.path("unit"), &at]);
        assert!(put.status.success(), "{}", text(&put));
    }

    /// Takes a unit file and its drop-ins away.
    fn remove(&self, name: &str) {
        let at = format!("/run/systemd/system/{name}");
        self.inside(&["rm", "-r", &at, &format!("{at}.d")]);
        self.inside(&["systemctl", "daemon-reload"]);
        self.inside(&["systemctl", "reset-failed", name]);
    }

    /// Moves a unit over this way, by the drop-in that the real command prints, and starts it.
    fn moved_over(&self, unit: &str, way: &str) {
        let config = self.path("agent.toml");
        self.inside(&["systemctl", "daemon-reload"]);
        let printed = self.inside(&[BINARY, "drop-in", unit, "--way", way, "--config", &config]);
        assert!(printed.status.success(), "{}", text(&printed));
        self.install(&format!("{unit}.d/50-keybearer.conf"), &String::from_utf8(printed.stdout).unwrap());
        self.inside(&["systemctl", "daemon-reload"]);
        let started = self.inside(&["systemctl", "start", unit]);
        let journal =
            || text(&self.inside(&["journalctl", "--no-pager", "-u", unit, "-u", "keybearer.service"]));
        assert!(started.status.success(), "{}{}", text(&started), journal());
    }

    /// What a unit and the agent have told people.
    fn journal(&self, unit: &str) -> String {
        text(&self.inside(&["journalctl", "--no-pager", "-u", unit, "-u", "keybearer.service"]))
    }

    /// Waits until one line of a unit's journal has all these words: it is written by another process than whoever speaks.
    fn until_journal_says(&self, unit: &str, words: &[&str]) {
        let said = until(|| {
            let journal = text(&self.inside(&["journalctl", "--no-pager", "-u", unit]));
            journal.lines().any(|line| words.iter().all(|word| line.contains(word)))
        });
        assert!(said, "{unit} does not say {words:?}: {}", self.journal(unit));
    }

    /// What is said at last, once it is not nothing.
    fn until_said(&self, mut say: impl FnMut() -> String) -> String {
        let mut said = String::new();
        let done = until(|| {
            said = say();
            !said.is_empty()
        });
        assert!(done, "nothing was said");
        said
    }

    fn last_record(&self) -> Value {
        self.records().pop().unwrap()
    }

    fn records(&self) -> Vec<Value> {
        let ledger = self.path("state/audit");
        let records = keybearer::audit::read(Path::new(&ledger), 0).unwrap();
        records.map(|record| serde_json::to_value(record).unwrap()).collect()
    }

    fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.dir)
    }
}

fn until(mut done: impl FnMut() -> bool) -> bool {
    #[allow(clippy::disallowed_methods, reason = "what another init does is waited for in real time")]
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(60) {
        if done() {
            return true;
        }
        // There is no event to wait for: the container has no way to tell us.
        std::thread::sleep(Duration::from_millis(50));
    }
    false
}

impl Drop for Host {
    fn drop(&mut self) {
        // The end of its init is the end of the container.
        let _ = Command::new("kill").args(["-KILL", &self.leader.to_string()]).status();
        let _ = self.nspawn.wait();
    }
}

fn child_of(parent: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}

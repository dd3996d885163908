//! `keybearer drop-in`: units as people write them, moved over by the real command, which asks a systemctl of ours. In go settings and
//! units; out come drop-ins that systemd reads without a word (`systemd-analyze verify`), or reasons why there is none.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    process::{Command, Output},
};

use support::{BINARY, Setup, skip};

const UNIT: &str = "payments.service";

/// A host with one unit, and the identity that it is.
struct Desk {
    setup: Setup,
}

impl Desk {
    /// With this in `[identities.shop.deliver]`, and this in the unit's [Service] section.
    fn new(also: &str, deliver: &str, service: &str) -> Self {
        let selectors = format!("match = {{ unit = {UNIT:?} }}\n{also}");
        let setup = Setup::matching("http://127.0.0.1:1", &selectors)
            .with(r#"assurance = "interim""#, r#"assurance = "standard""#)
            .and(&format!("\n[identities.shop.deliver]\n{deliver}\n"));
        setup.write();
        let desk = Self { setup };
        desk.put(UNIT, &format!("[Unit]\nDescription=Payments\n\n[Service]\n{service}\n"));
        desk.put("keybearer.service", "[Service]\nExecStart=/bin/true\n");
        desk.systemd(252);
        desk
    }

    fn put(&self, name: &str, text: &str) {
        let path = self.setup.dir.path().join("units").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// A systemctl that knows the units of this desk, and says that it is of that version.
    fn systemd(&self, version: u32) {
        let at = self.setup.dir.path().join("bin");
        fs::create_dir_all(&at).unwrap();
        let script = format!(
            "#!/bin/sh\ncd {}/units || exit 1\n[ \"$1\" = --version ] && {{ echo 'systemd {version} ({version}-1)'; exit; }}\n\
             [ -f \"$3\" ] || {{ echo no >&2; exit 1; }}\n\
             for file in \"$3\" \"$3\".d/*.conf; do [ -f \"$file\" ] && echo \"# /etc/systemd/system/$file\" && cat \"$file\"; done\nexit 0\n",
            self.setup.dir.path().display()
        );
        let path = at.join("systemctl");
        // Written by another process: a descriptor that is open here could be inherited by what another test starts.
        let made =
            Command::new("sh").args(["-c", "printf %s \"$1\" > \"$2\"", "sh", &script]).arg(&path).status();
        assert!(made.unwrap().success());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn drop_in(&self, arguments: &[&str]) -> Output {
        let path = format!("{}/bin:/usr/bin:/bin", self.setup.dir.path().display());
        Command::new(BINARY)
            .args(["drop-in", UNIT, "--config"])
            .arg(self.setup.dir.path().join("agent.toml"))
            .args(arguments)
            .env("PATH", path)
            .output()
            .unwrap()
    }

    /// The text, which systemd takes without a word.
    fn sound(&self, arguments: &[&str]) -> String {
        let output = self.drop_in(arguments);
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        if !Command::new("systemd-analyze").arg("--version").output().is_ok_and(|it| it.status.success()) {
            skip("drop_in", "systemd-analyze is not here: nothing was verified");
            return text;
        }
        self.put(&format!("{UNIT}.d/50-keybearer.conf"), &text);
        let units = self.setup.dir.path().join("units");
        let verified = Command::new("systemd-analyze")
            .args(["verify", "--man=no"])
            .arg(units.join(UNIT))
            .output()
            .unwrap();
        assert!(verified.status.success() && verified.stderr.is_empty(), "{text}\n{verified:?}");
        text
    }

    /// Every reason why there is none.
    fn refused(&self, arguments: &[&str]) -> String {
        let output = self.drop_in(arguments);
        assert_eq!((output.status.code(), output.stdout.len()), (Some(78), 0), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    }
}

/// The lines that say something.
fn lines(text: &str) -> Vec<&str> {
    text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect()
}

#[test]
fn a_program_of_long_lived_files_loads_credentials_and_starts_anew_in_time() {
    // A certificate of a day; a file that lives as long as the unit does.
    let desk = Desk::new(
        "service_manager = \"allowed\"",
        "file = { TLS_PAIR = \"tls.pair\", ROOTS = \"tls.bundle\" }\nsplay = \"30s\"",
        "ExecStart=/bin/sleep 9",
    );
    let setup = desk.setup.and(CERTIFICATE);
    setup.write();
    let desk = Desk { setup };
    let socket = desk.setup.dir.path().join("run/systemd.sock").display().to_string();
    let text = desk.sound(&[]);
    assert_eq!(
        lines(&text),
        [
            "[Unit]",
            "Wants=keybearer.service",
            "After=keybearer.service",
            "[Service]",
            &format!("LoadCredential=tls.bundle:{socket}"),
            &format!("LoadCredential=tls.pair:{socket}"),
            "ExecStartPre=/usr/bin/test -s %d/tls.bundle",
            "ExecStartPre=/usr/bin/test -s %d/tls.pair",
            "Environment=ROOTS=%d/tls.bundle",
            "Environment=TLS_PAIR=%d/tls.pair",
            "RuntimeMaxSec=8640",
            "RuntimeRandomizedExtraSec=30",
            "Restart=on-failure",
        ]
    );

    // Its own Restart= is left as it is, if it starts again what ran out.
    desk.put(UNIT, "[Service]\nExecStart=/bin/sleep 9\nRestart=always\n");
    assert!(!desk.sound(&[]).contains("\nRestart="));
    // What runs once reads what is new each time.
    desk.put(UNIT, "[Service]\nType=oneshot\nExecStart=/bin/sleep 9\n");
    assert!(!desk.sound(&[]).contains("RuntimeMaxSec"));
    // A systemd that reads credentials again is told to. This one does not know the word.
    desk.systemd(260);
    desk.put(UNIT, "[Service]\nExecStart=/bin/sleep 9\n");
    let text = String::from_utf8(desk.drop_in(&[]).stdout).unwrap();
    assert!(
        lines(&text).contains(&"RefreshOnReload=credentials") && !text.contains("\nRuntimeMaxSec"),
        "{text}"
    );
}

const CERTIFICATE: &str = r#"
[issuers.mesh]
kind = "step-ca"
url = "https://127.0.0.1:1"
roots = "/etc/ssl/certs/ca-certificates.crt"

[identities.shop.credentials.tls]
issuer = "mesh"
client_id = "payments"
certificate = { uri = ["spiffe://example.com/payments"] }
key_export = "allowed"
max_ttl = "24h"
"#;

#[test]
fn what_ends_soon_or_is_a_variable_goes_by_exec_and_the_drop_in_says_why() {
    let desk = Desk::new(
        "service_manager = \"allowed\"",
        "file = { TOKEN_FILE = \"orders.token\" }",
        "ExecStart=-/bin/sleep \\\n  # in between\n  9 \"a b\" $ARG %i",
    );
    let text = desk.sound(&[]);
    let wrapped = format!("ExecStart=-{BINARY} exec -- /bin/sleep 9 \"a b\" $ARG %i");
    assert!(
        lines(&text).ends_with(&[
            "ExecStart=",
            &wrapped,
            "KillMode=mixed",
            &format!("Environment=KEYBEARER_SOCKET={}/run/agent.sock", desk.setup.dir.path().display())
        ]),
        "{text}"
    );
    assert!(text.contains("# Not by LoadCredential=: what it gets lives 15 minutes at most"), "{text}");
    assert_eq!(desk.sound(&[]), text, "where it is in place already, nothing is wrapped twice");

    // Said explicitly, it is had, with the warning.
    let loaded = desk.sound(&["--way", "load-credential"]);
    assert!(
        loaded.contains("# Mind: what it gets lives 15 minutes") && !loaded.contains("RuntimeMaxSec="),
        "{loaded}"
    );
    assert!(lines(&loaded).contains(&"ExecStartPre=/usr/bin/test -s %d/orders.token"), "{loaded}");

    let desk = Desk::new(
        "",
        "env = { TOKEN = \"orders.token\" }\nat_rotation = { orders = \"restart\" }",
        "Type=notify\nExecStart=/bin/sleep 9",
    );
    let text = desk.sound(&[]);
    assert!(text.contains("service_manager = \"allowed\"") && text.contains("TOKEN holds a value"), "{text}");
    assert!(lines(&text).contains(&"NotifyAccess=all"), "{text}");
    let why = desk.refused(&["--way", "load-credential"]);
    assert!(why.contains("service_manager = \"allowed\"") && why.contains("TOKEN holds a value"), "{why}");
}

#[test]
fn a_unit_that_must_not_be_wrapped_has_a_file_of_variables() {
    let desk = Desk::new(
        "",
        "env = { TOKEN = \"orders.token\" }\nat_rotation = { orders = \"restart\" }",
        "Type=forking\nExecStart=/bin/sleep 9",
    );
    let why = desk.refused(&["--way", "exec"]);
    assert!(why.contains("Type=forking"), "{why}");

    let desk = Desk::new("", "env = { TOKEN = \"orders.token\" }", "ExecStart=@/bin/sleep other 9");
    let why = desk.refused(&["--way", "exec"]);
    assert!(why.contains("begins with \"@\""), "{why}");
    let text = desk.sound(&["--way", "env-file"]);
    let written =
        format!("ExecStartPre={BINARY} env-file --format systemd --out %t/keybearer-shop/environment");
    for line in
        ["RuntimeDirectory=keybearer-shop", &written, "EnvironmentFile=-%t/keybearer-shop/environment"]
    {
        assert!(lines(&text).contains(&line), "{text}");
    }
    let files = Desk::new("", "file = { TOKEN = \"orders.token\" }", "ExecStart=/bin/sleep 9");
    assert!(files.refused(&["--way", "env-file"]).contains("use --way exec"));
}

#[test]
fn what_is_missing_is_named() {
    let desk = Desk::new("service_manager = \"allowed\"", "", "ExecStart=/bin/sleep 9");
    // Nothing is declared: all its credentials can be loaded by their names, but exec would not know what to give.
    let loaded = desk.sound(&["--way", "load-credential"]);
    assert!(
        loaded.contains("\nLoadCredential=orders:") && loaded.contains("$CREDENTIALS_DIRECTORY/orders"),
        "{loaded}"
    );
    assert!(desk.refused(&[]).contains("declare env or file in [identities.shop.deliver]"));

    let said = |arguments: &[&str]| {
        let output = Command::new(BINARY)
            .args(["drop-in", "--config"])
            .arg(desk.setup.dir.path().join("agent.toml"))
            .args(arguments)
            .output()
            .unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(said(&["other.service"]).contains("no identity has match"));
    assert!(said(&["other.service", "--for", "other"]).contains("there is no [identities.other]"));
    assert!(said(&["payments"]).contains("name a service"));
    assert!(said(&["payments.service", "--way", "magic"]).contains("load-credential, exec or env-file"));

    // A unit that this host does not have is written for all the same, with a place for its command.
    let desk = Desk::new("", "env = { TOKEN = \"orders.token\" }", "ExecStart=/bin/sleep 9");
    fs::remove_file(desk.setup.dir.path().join("units").join(UNIT)).unwrap();
    let text = String::from_utf8(desk.drop_in(&[]).stdout).unwrap();
    assert!(text.contains("put its command here"), "{text}");
}

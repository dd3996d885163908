//! `keybearer scan` and `keybearer migrate`, the real binary: ten secrets and twenty decoys in a fixture, and a program's files that
//! are moved over. In go files; out comes what an operator reads, which never holds a value.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    fs,
    os::unix::{ffi::OsStrExt as _, fs::PermissionsExt as _},
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use serde_json::Value;

const BINARY: &str = env!("CARGO_BIN_EXE_keybearer");

/// Where each secret of the fixture stands, its name, what it is, and a piece of it that must not be seen.
const SEEDED: [(&str, u64, Option<&str>, &str, &str); 10] = [
    ("ci/.github/workflows/release.yml", 5, Some("AWS_SECRET_ACCESS_KEY"), "aws_key", "pX7dQ2mVb9KzL4"),
    ("ci/.gitlab-ci.yml", 2, Some("DEPLOY_TOKEN"), "gitlab_token", "t3sT0nLyNotReal"),
    (
        "config/application.properties",
        3,
        Some("spring.datasource.password"),
        "database_password",
        "winter-harbour",
    ),
    ("config/appsettings.json", 5, Some("ClientSecret"), "client_secret", "q7Vw2LmNz4"),
    ("env/.env.production", 2, Some("STRIPE_SECRET_KEY"), "vendor_key", "t3sT0nLyNotAKey"),
    ("env/shop.env", 3, Some("DATABASE_URL"), "database_url", "Quay-Side"),
    ("k8s/shop.yaml", 4, Some("session-key"), "kubernetes_secret", "VGhyZWUtU2hpcHM"),
    ("keys/shop.key", 1, None, "private_key", "dGhpcyBpcyBh"),
    ("systemd/report.service.d/10-arguments.conf", 3, Some("api-token"), "secret", "Zx81kQ0vTq3L"),
    ("systemd/shop.service", 6, Some("SMTP_PASSWORD"), "password", "Harbour-Lights"),
];

/// What is none, by a piece of its line.
const DECOYS: [(&str, &str); 20] = [
    ("systemd/clean.service", "SECRET_NAME="),
    ("systemd/clean.service", "LoadCredential="),
    ("systemd/clean.service", "SetCredentialEncrypted="),
    ("systemd/clean.service", "--password-file="),
    ("env/shop.env", "TOKEN_ENDPOINT="),
    ("env/clean.env", "DB_PASSWORD=${"),
    ("env/clean.env", "API_TOKEN=changeme"),
    ("env/clean.env", "REDIS_PASSWORD_FILE="),
    ("env/clean.env", "TENANT_ID="),
    ("env/clean.env", "AWS_ACCESS_KEY_ID="),
    ("env/clean.env", "OLD_ID_TOKEN="),
    ("config/application.properties", "{bcrypt}"),
    ("config/appsettings.json", "ENC[AES256_GCM"),
    ("config/values.yaml", "!vault"),
    ("ci/.gitlab-ci.yml", "TOOL_SHA256:"),
    ("ci/.github/workflows/release.yml", "secrets.NPM_TOKEN"),
    ("k8s/shop.yaml", "password: AgBy3i4"),
    ("keys/shop.crt", "BEGIN CERTIFICATE"),
    ("keys/backup.key", "ENCRYPTED"),
    ("docs/README.md", "user:password@"),
];

/// The fixture, put together: `~~` parts what scanners of other people would take for a leak.
fn fixture() -> tempfile::TempDir {
    fn copy(from: &Path, to: &Path) {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
            let to = to.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                copy(&entry.path(), &to);
            } else {
                fs::write(to, fs::read_to_string(entry.path()).unwrap().replace("~~", "")).unwrap();
            }
        }
    }
    let directory = tempfile::tempdir().unwrap();
    copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/scan"), directory.path());
    directory
}

fn keybearer(directory: &Path, arguments: &[&str]) -> Output {
    Command::new(BINARY).args(arguments).current_dir(directory).env_clear().output().unwrap()
}

fn said(output: &Output) -> String {
    [output.stdout.as_slice(), &output.stderr].concat().iter().map(|byte| char::from(*byte)).collect()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn ten_of_ten_secrets_are_found_and_none_of_twenty_decoys() {
    // S14, NHI-2
    let fixture = fixture();
    for (file, piece) in DECOYS {
        let text = fs::read_to_string(fixture.path().join(file)).unwrap();
        assert!(text.lines().any(|line| line.contains(piece)), "{file} has no {piece} any more");
    }
    let output = keybearer(fixture.path(), &["scan", ".", "--json"]);
    assert_eq!(output.status.code(), Some(65));
    let seen = json(&output);
    let mut found: Vec<_> = seen["findings"].as_array().unwrap().iter().collect();
    found.sort_by_key(|one| one["path"].as_str().unwrap().to_owned());
    let told: Vec<_> = found
        .iter()
        .map(|one| {
            let path = one["path"].as_str().unwrap().trim_start_matches("./");
            (path, one["line"].as_u64().unwrap(), one["name"].as_str(), one["kind"].as_str().unwrap())
        })
        .collect();
    let expected: Vec<_> =
        SEEDED.iter().map(|(path, line, name, kind, _)| (*path, *line, *name, *kind)).collect();
    assert_eq!(told, expected);
    // Neither they nor a part of them, for people or for machines.
    let people = keybearer(fixture.path(), &["scan", ".", "--verbose"]);
    assert_eq!(people.status.code(), Some(65));
    for (path, .., piece) in SEEDED {
        assert!(!said(&output).contains(piece) && !said(&people).contains(piece), "{path} is told");
    }
    // What everybody can read, though the file's mode says otherwise.
    let unit = found.iter().find(|one| one["name"] == "SMTP_PASSWORD").unwrap();
    assert_eq!(unit["exposure"], "everybody");
    assert!(said(&people).contains("password in a unit's Environment="));
}

#[test]
fn nothing_found_is_told_apart_from_not_looked_at() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("a.env"), "LOG_LEVEL=info\n").unwrap();
    let clean = keybearer(directory.path(), &["scan", "."]);
    assert_eq!(
        (clean.status.code(), said(&clean).as_str()),
        (Some(0), "No static secret found in 1 file.\n")
    );
    let missing = keybearer(directory.path(), &["scan", ".", "nowhere"]);
    assert_eq!(missing.status.code(), Some(74));
    assert!(said(&missing).contains("1 place could not be read"), "{}", said(&missing));
    assert_eq!(keybearer(directory.path(), &["scan"]).status.code(), Some(64));
}

#[test]
fn one_secret_in_two_files_is_said_to_be_one() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("a.env"), "SMTP_PASSWORD=Harbour-Lights-41\n").unwrap();
    fs::write(directory.path().join("b.yaml"), "smtp:\n  password: Harbour-Lights-41\n").unwrap();
    let seen = json(&keybearer(directory.path(), &["scan", "a.env", "b.yaml", "--json"]));
    let same: Vec<_> =
        seen["findings"].as_array().unwrap().iter().map(|one| one["same_as"][0].as_str().unwrap()).collect();
    assert_eq!(same, ["b.yaml:2", "a.env:1"]);
}

#[test]
fn what_is_accepted_is_accepted_until_its_day() {
    // S36
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("a.env"), "SMTP_PASSWORD=Harbour-Lights-41\n").unwrap();
    let scan = |list: Option<&str>| {
        let mut arguments = vec!["scan", "a.env", "--json"];
        if let Some(list) = list {
            fs::write(directory.path().join("list"), list).unwrap();
            arguments.extend(["--accept", "list"]);
        }
        keybearer(directory.path(), &arguments)
    };
    let id = json(&scan(None))["findings"][0]["id"].as_str().unwrap().to_owned();
    let day = |days: i64| {
        let now = keybearer::clock::SystemClock::shared().wall();
        jiff::tz::TimeZone::UTC
            .to_datetime(now + jiff::SignedDuration::from_hours(24 * days))
            .date()
            .to_string()
    };
    let accepted =
        scan(Some(&format!("{id} {} shop@example.com the relay is replaced in spring\n", day(30))));
    assert_eq!((accepted.status.code(), json(&accepted)["accepted"].as_u64()), (Some(0), Some(1)));
    let over = scan(Some(&format!("{id} {} shop@example.com the relay is replaced in spring\n", day(-2))));
    assert_eq!(over.status.code(), Some(65));
    let too_long =
        scan(Some(&format!("{id} {} shop@example.com the relay is replaced in spring\n", day(200))));
    assert_eq!(too_long.status.code(), Some(78));
    assert!(said(&too_long).contains("line 1: it ends more than 90 days ahead"), "{}", said(&too_long));
}

#[test]
fn hostile_names_and_lines_do_not_reach_the_terminal() {
    let directory = tempfile::tempdir().unwrap();
    let name = std::ffi::OsStr::from_bytes(b"a\x1b[2J\n\xff\xc2\x9b.env");
    fs::write(
        directory.path().join(name),
        "SMTP_PASSWORD=Harbour-Lights-41\nX\x1b[2J_PASSWORD=Harbour-Lights-42\n",
    )
    .unwrap();
    let output = keybearer(directory.path(), &["scan", "."]);
    assert!(
        output.stdout.iter().all(|byte| *byte == b'\n' || (0x20..0x7f).contains(byte)),
        "{}",
        said(&output)
    );
    let seen = json(&keybearer(directory.path(), &["scan", ".", "--json"]));
    assert_eq!(seen["findings"][0]["path_hex"], "2e2f611b5b324a0affc29b2e656e76");
}

#[test]
fn a_pipe_in_the_way_is_passed_by() {
    let directory = tempfile::tempdir().unwrap();
    let pipe = directory.path().join("pipe.env");
    let status = Command::new("mkfifo").arg(&pipe).status().unwrap();
    assert!(status.success());
    for arguments in [["scan", "."], ["scan", "pipe.env"], ["migrate", "pipe.env"]] {
        let mut child = Command::new(BINARY).args(arguments).current_dir(directory.path()).spawn().unwrap();
        let (said, hears) = std::sync::mpsc::channel();
        let id = child.id();
        std::thread::spawn(move || said.send(child.wait().unwrap().code()));
        let ended = hears.recv_timeout(Duration::from_secs(30));
        if ended.is_err() {
            let _ = Command::new("kill").arg(id.to_string()).status();
        }
        assert!(ended.is_ok(), "{arguments:?} waits for somebody to write");
    }
}

/// The files of one program, and pieces of values that must not be seen.
fn program(directory: &Path) -> [&'static str; 6] {
    let stripe = ["sk_", "live_t3sT0nLyNotAKey9xYzQ"].concat();
    let env = format!(
        "LOG_LEVEL=info\nPGHOST=db.internal\nPGUSER=shop_rw\nPGPASSWORD=Quay-Side-77x\nSTRIPE_API_KEY=\"{stripe}\"\n\
         CRM_CLIENT_ID=shop-client-17\nCRM_CLIENT_SECRET=q7Vw2LmNz4Rt8Yb1Kc6H\nTLS_KEY_FILE=/etc/shop/tls.key\n\
         TLS_CERT_FILE=/etc/shop/tls.crt\nAWS_SECRET_ACCESS_KEY=pX7dQ2mVb9KzL4wTn8RfYc1HsJ6gEu3a0NkBvWqZ\n"
    );
    fs::write(directory.join("shop.env"), env).unwrap();
    let unit =
        "[Service]\nUser=root\nEnvironment=\"SMTP_PASSWORD=Harbour-Lights-41\"\nExecStart=/usr/bin/shop\n";
    fs::write(directory.join("shop.service"), unit).unwrap();
    ["Quay-Side", "shop_rw", "t3sT0nLyNotAKey", "q7Vw2LmNz4", "pX7dQ2mVb9", "Harbour-Lights"]
}

#[test]
fn a_program_is_moved_over_without_a_value_being_told() {
    // S1, S47
    let directory = tempfile::tempdir().unwrap();
    let pieces = program(directory.path());
    let output =
        keybearer(directory.path(), &["migrate", "shop.env", "shop.service", "--owner", "shop@example.com"]);
    assert!(output.status.success(), "{}", said(&output));
    let plan = said(&output);
    for piece in pieces {
        assert!(!plan.contains(piece), "{piece} is told: {plan}");
    }
    for wanted in [
        "[identities.shop]\nowner = \"shop@example.com\"\nassurance = \"standard\"\nmatch = { unit = \"shop.service\", user = \"root\" }",
        "lease = { at = \"database/creds/shop\"",
        "PGUSER = \"database.username\", PGPASSWORD = \"database.password\"",
        "kind = \"sealed\"\nfields = [\"key\"]\nexception = { owner = \"shop@example.com\", reason = \"no dynamic way for this Stripe key yet\"",
        "STRIPE_API_KEY = \"stripe.key\"",
        "CRM_TOKEN = \"crm.token\"",
        "AWS_WEB_IDENTITY_TOKEN_FILE = \"aws.token\"",
        "TLS_KEY_FILE = \"tls.key\", TLS_CERT_FILE = \"tls.chain\"",
        "#   keybearer check\n",
        "#   sed -n '5s/^STRIPE_API_KEY=\"\\(.*\\)\"$/\\1/p' shop.env | keybearer seal shop stripe\n",
        "#   sed -n '3s/^Environment=\"SMTP_PASSWORD=\\(.*\\)\"$/\\1/p' shop.service | keybearer seal shop smtp\n",
        "#   keybearer drop-in shop.service",
        "whoever runs the AWS account:",
    ] {
        assert!(plan.contains(wanted), "{wanted} is missing: {plan}");
    }
    assert!(!plan.contains("LOG_LEVEL"), "what is no secret stays where it is: {plan}");
}

#[test]
fn what_is_proposed_is_sound_once_its_issuers_are_filled_in() {
    let directory = tempfile::tempdir().unwrap();
    program(directory.path());
    let about = ["migrate", "shop.env", "--owner", "shop@example.com", "--user", "root"];
    let plan = said(&keybearer(directory.path(), &about));
    let (before, issuers) = plan.split_once("# The issuers that these name.").unwrap();
    let (issuers, _) = issuers.split_once("# What to run").unwrap();
    let issuers: String =
        issuers.lines().skip(1).map(|line| format!("{}\n", line.trim_start_matches("# "))).collect();
    let filled = format!("{before}{issuers}");
    let settings = directory.path().join("agent.toml");
    fs::write(&settings, "environment = \"test\"\n").unwrap();
    fs::create_dir(directory.path().join("agent.toml.d")).unwrap();
    let put = |text: &str| fs::write(directory.path().join("agent.toml.d/shop.toml"), text).unwrap();
    let check = || keybearer(directory.path(), &["check", "agent.toml"]);
    put(&filled);
    let sound = check();
    assert!(sound.status.success(), "{}\n{filled}", said(&sound));
    assert!(said(&sound).contains("sound, 1 identities, 3 issuers"), "{}", said(&sound));
    // And not for nothing.
    put(&filled.replace("database.password", "database.nothing"));
    assert_eq!(check().status.code(), Some(78));
    // As it is printed it is TOML too, which wants its issuers.
    put(&plan);
    assert!(said(&check()).contains("there is no [issuers.NAME] of that name"), "{}", said(&check()));
}

#[test]
fn the_commands_that_seal_print_the_value_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    program(directory.path());
    let plan = said(&keybearer(directory.path(), &["migrate", "shop.env", "shop.service"]));
    let commands: Vec<&str> = plan.lines().filter_map(|line| line.strip_prefix("#   sed ")).collect();
    let values = commands.iter().map(|command| {
        let (cut, into) = command.split_once(" | keybearer seal ").unwrap();
        let output = Command::new("sh")
            .args(["-c", &format!("sed {cut}")])
            .current_dir(directory.path())
            .output()
            .unwrap();
        // The one line feed at the end is none of the value: seal takes it off.
        let value = String::from_utf8(output.stdout).unwrap();
        (into.to_owned(), value.strip_suffix('\n').unwrap().to_owned())
    });
    let stripe = ["sk_", "live_t3sT0nLyNotAKey9xYzQ"].concat();
    assert_eq!(
        values.collect::<Vec<_>>(),
        [("shop stripe".to_owned(), stripe), ("shop smtp".to_owned(), "Harbour-Lights-41".to_owned())]
    );
}

#[test]
fn a_proposal_is_a_new_file_that_only_its_owner_reads() {
    let directory = tempfile::tempdir().unwrap();
    program(directory.path());
    let migrate = || keybearer(directory.path(), &["migrate", "shop.env", "--out", "shop.toml"]);
    assert!(migrate().status.success());
    let made = directory.path().join("shop.toml");
    assert_eq!(fs::metadata(&made).unwrap().permissions().mode() & 0o777, 0o600);
    fs::write(&made, "mine").unwrap();
    assert_eq!(migrate().status.code(), Some(74));
    assert_eq!(fs::read_to_string(&made).unwrap(), "mine");
    // Nor through a link to somebody else's.
    let target: PathBuf = directory.path().join("target");
    fs::remove_file(&made).unwrap();
    std::os::unix::fs::symlink(&target, &made).unwrap();
    assert_eq!(migrate().status.code(), Some(74));
    assert!(!target.exists());
}

#[test]
fn what_cannot_be_migrated_says_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("notes.md"), "Some words.\n").unwrap();
    fs::write(directory.path().join("a.env"), "LOG_LEVEL=info\n").unwrap();
    for (file, words) in
        [("notes.md", "there is no NAME=value in it"), ("a.env", "see what keybearer scan says")]
    {
        let output = keybearer(directory.path(), &["migrate", file]);
        assert_eq!(output.status.code(), Some(65));
        assert!(said(&output).contains(words), "{}", said(&output));
    }
    let named = keybearer(directory.path(), &["migrate", "a.env", "--identity", "Not A Name"]);
    assert_eq!(named.status.code(), Some(64));
}

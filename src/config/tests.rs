use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
};

use super::*;
use crate::{
    audit::{OnFailure, Sync},
    credential::Binding,
    issuer::{
        oauth::OnChange,
        terms::{ClientAuth, GrantType, SealedBy, SvidSource, Terms, Wants},
        token_type::TokenType,
        x509::RootSource,
    },
    keys::{Custody, KeySettings},
    policy::{Forward, Proofs},
};

const NOW: &str = "2026-11-01T00:00:00Z";

const GOOD: &str = r#"
environment = "prod"

[issuers.corp]
kind = "oauth"
issuer = "https://idp.example.com"

[identities.payments]
owner = "payments@example.com"
assurance = "interim"
match = { uid = 1000 }

[identities.payments.credentials.ledger]
issuer = "corp"
client_id = "payments"
resource = "https://ledger.example.com"
scope = ["ledger:write"]
binding = "bearer"
exception = { owner = "payments@example.com", reason = "not bound yet", until = "2026-12-31" }
"#;

/// Another credential, and the shortest certificate table.
const CERTIFIED: &str = r#"
[identities.payments.certificate]

[identities.payments.credentials.vault]
issuer = "corp"
client_id = "payments"
resource = "https://vault.example.com"
binding = "mtls"
"#;

struct Desk(tempfile::TempDir);

impl Desk {
    fn with(text: &str) -> Self {
        let desk = Self(tempfile::tempdir().unwrap());
        desk.write("agent.toml", text);
        desk
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.0.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    }

    fn load(&self, overrides: &[(&str, &str)]) -> Result<Settings, Vec<String>> {
        let environment: BTreeMap<String, String> =
            overrides.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let root = format!("{}/", self.0.path().display());
        load(&self.0.path().join("agent.toml"), &environment, NOW.parse().unwrap())
            .map_err(|mistakes| mistakes.iter().map(|it| it.to_string().replace(&root, "")).collect())
    }
}

fn mistakes(text: &str) -> Vec<String> {
    Desk::with(text).load(&[]).unwrap_err()
}

#[test]
fn the_example_loads_and_its_defaults_are_the_defaults() {
    let example =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("agent.toml.example")).unwrap();
    let example = Desk::with(&example).load(&[]).unwrap();
    let plain = Desk::with(GOOD).load(&[]).unwrap();
    assert_eq!(example.listen, plain.listen);
    let export = &example.exports["web"];
    let path = export.path.clone();
    assert_eq!(*export, crate::wire::ListenSettings { path, ..plain.listen.workload.clone() });
    assert!(plain.exports.is_empty(), "without it, nothing more listens");
    assert_eq!((example.audit.sync, example.audit.on_failure), (Sync::Checkpoint, OnFailure::Deny));
    assert_eq!(example.audit.checkpoint_every, plain.audit.checkpoint_every);
    assert_eq!((example.audit.rotate_at, example.audit.keep), (plain.audit.rotate_at, plain.audit.keep));
    assert_eq!((example.audit.keep, &example.audit.journal), (None, &plain.audit.journal));
    assert_eq!(example.log, plain.log);
    assert_eq!(example.drain, plain.drain);
    assert_eq!((&example.kept.sealing, &example.kept.home), (&plain.kept.sealing, &plain.kept.home));
    let key =
        |settings: &Settings| KeySettings { dpop: BTreeSet::new(), ..settings.keys["payments"].clone() };
    assert_eq!(key(&example), key(&plain));
    let identity = example.policy.identities().next().unwrap();
    let (bound, bearer) = (&identity.credentials["ledger"], &identity.credentials["archive"]);
    assert_eq!((bound.binding, bearer.binding), (Binding::Dpop, Binding::Bearer));
    let vault = &identity.credentials["vault"];
    assert_eq!((vault.binding, vault.key_export), (Binding::Mtls, false));
    assert_eq!(bound.forward, None, "never, unless somebody says so");
    let patience = std::time::Duration::from_secs(30);
    assert_eq!(vault.forward, Some(Forward { only: true, carry: None, ca_file: None, patience }));
    assert_eq!(vault.proofs.origins, ["https://vault.example.com"], "by default that of the resource");
    let with_certificate = Desk::with(&format!("{GOOD}{CERTIFIED}")).load(&[]).unwrap();
    assert_eq!(example.certificates, with_certificate.certificates);
    let registration = format!(
        "{GOOD}[identities.payments.registrations.corp]\nissuer = \"corp\"\nclient_id = \"payments\"\n\
         uri = \"https://idp.example.com/register/payments\"\n"
    );
    assert_eq!(example.registrations, Desk::with(&registration).load(&[]).unwrap().registrations);
    let home = ["https://ledger.example.com".to_owned()].into();
    assert_eq!(bound.proofs, Proofs { origins: home, ..Proofs::default() });
    assert_eq!(*bound.terms, Terms::default());
    assert_eq!(example.keys["payments"].dpop, BTreeSet::from(["corp".into()]));
    let oauth = |settings: &Settings| {
        let IssuerSettings::OAuth(oauth) = settings.issuers["corp"].clone() else { panic!("not oauth") };
        oauth
    };
    let issuer = oauth(&plain).issuer;
    assert_eq!(crate::issuer::oauth::OAuthSettings { issuer, ..oauth(&example) }, oauth(&plain));
}

#[test]
fn a_short_file_is_enough() {
    let settings = Desk::with(GOOD).load(&[]).unwrap();
    let identity = settings.policy.identities().next().unwrap();
    let rule = &identity.credentials["ledger"];
    assert_eq!(rule.max_ttl.as_secs(), 3600);
    assert!(rule.require_aud);
    // A date means through that day.
    assert_eq!(rule.exception.as_ref().unwrap().until.to_string(), "2027-01-01T00:00:00Z");
    let Custody::File { path } = &settings.keys["payments"].custody else { panic!("a file by default") };
    assert_eq!(path.to_str(), Some("/var/lib/keybearer/keys/payments.client-auth.pem"));
    assert!(settings.kept.keys.named.contains(path), "nobody's remains");
    assert_eq!(settings.digest.len(), 64);
}

#[test]
fn every_mistake_is_told_at_once_with_its_line() {
    let told = mistakes(
        r#"environment = "prod"
colour = "blue"

[issuers.corp]
kind = "oauth"
issuer = "http://idp.example.com"
timeout = "ten"

[identities.payments]
owner = "payments@example.com"
asurance = "interim"
match = { unit = "payments" }

[identities.payments.credentials.ledger]
issuer = "corpp"
client_id = "payments"
client_secret = "hunter2"
scope = "ledger:write"
binding = "bearer"
"#,
    );
    let expected = [
        "agent.toml:2: colour: there is no such key",
        "agent.toml:6: issuers.corp.issuer: it is not https: use https",
        "agent.toml:7: issuers.corp.timeout: it has to be a length of time",
        "agent.toml:9: identities.payments.assurance: say how much it matters",
        "agent.toml:11: identities.payments.asurance: there is no such key: did you mean assurance?",
        "agent.toml:12: identities.payments.match.unit: it has to end in .service",
        "agent.toml:14: identities.payments.credentials.ledger.exception: whoever steals a bearer token",
        "agent.toml:15: identities.payments.credentials.ledger.issuer: there is no [issuers.NAME]",
        "agent.toml:17: identities.payments.credentials.ledger.client_secret: there is no such key, and no shared secret",
        "agent.toml:18: identities.payments.credentials.ledger.scope: it has to be a list of strings, not a string",
    ];
    for expected in expected {
        assert!(
            told.iter().any(|line| line.starts_with(expected)),
            "{expected}\nis not in\n{}",
            told.join("\n")
        );
    }
    // Values are never repeated: any of them could be a secret in the wrong place (BCP-03).
    assert!(!told.join("\n").contains("hunter2"));
}

#[test]
fn a_file_that_is_not_toml_names_its_line_and_not_its_content() {
    let told = mistakes("environment = \"prod\"\npassword = hunter2 hunter2\n");
    assert_eq!(told.len(), 1);
    assert!(told[0].starts_with("agent.toml:2: this is not TOML"), "{told:?}");
    assert!(!told[0].contains("hunter2"), "{told:?}");
}

#[test]
fn files_that_others_can_write_are_refused() {
    let desk = Desk::with(GOOD);
    let path = desk.0.path().join("agent.toml");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o664)).unwrap();
    assert!(desk.load(&[]).unwrap_err()[0].contains("chmod go-w"));
    fs::remove_file(&path).unwrap();
    assert!(desk.load(&[]).unwrap_err()[0].contains("cannot be opened"));
    fs::create_dir(&path).unwrap();
    assert!(desk.load(&[]).unwrap_err()[0].contains("not a regular file"));
}

#[test]
fn drop_ins_add_and_the_environment_has_the_last_word() {
    let desk = Desk::with(GOOD);
    desk.write("agent.toml.d/10-audit.toml", "[audit]\nsync = \"always\"\non_failure = \"deny\"\n");
    desk.write(
        "agent.toml.d/20-more.toml",
        &GOOD[GOOD.find("[identities").unwrap()..].replace("payments", "billing").replace("1000", "1001"),
    );
    desk.write("agent.toml.d/ignored.txt", "nonsense");
    let settings = desk
        .load(&[("KEYBEARER_CONFIG__AUDIT__CHECKPOINT_RECORDS", "7"), ("KEYBEARER_SOCKET", "/x")])
        .unwrap();
    assert_eq!(settings.policy.identities().count(), 2);
    assert_eq!((settings.audit.sync, settings.audit.checkpoint_records), (Sync::Always, 7));
    assert_ne!(settings.digest, desk.load(&[]).unwrap().digest, "overrides are part of what was in force");
    let wrong = desk.load(&[("KEYBEARER_CONFIG__AUDIT__SYNC", "sometimes")]).unwrap_err();
    assert!(wrong[0].contains("audit.sync: it has to be one of \"checkpoint\", \"always\""), "{wrong:?}");
}

#[test]
fn an_identity_in_two_files_is_refused() {
    let desk = Desk::with(GOOD);
    desk.write("agent.toml.d/10.toml", "[identities.payments]\nowner = \"somebody@else\"\n");
    let told = desk.load(&[]).unwrap_err();
    assert!(told[0].starts_with("agent.toml.d/10.toml:1: identities.payments: it is also in"), "{told:?}");
}

#[test]
fn a_development_issuer_is_refused_in_production() {
    // S11
    let dev =
        GOOD.replace("https://idp.example.com", "http://127.0.0.1:9").replace("kind =", "dev = true\nkind =");
    assert!(mistakes(&dev).iter().any(|line| line.contains("issuers.corp.dev") && line.contains("S11")));
    Desk::with(&dev.replace("\"prod\"", "\"dev\"")).load(&[]).unwrap();
}

#[test]
fn the_audience_override_needs_its_pin() {
    // PKJ-05
    let text = GOOD.replace("kind =", "audience = \"token_endpoint\"\nkind =");
    assert!(mistakes(&text).iter().any(|line| line.contains("CFG_AUD_PIN")), "{:?}", mistakes(&text));
    let pinned = text.replace("kind =", "token_endpoint = \"https://idp.example.com/token\"\nkind =");
    Desk::with(&pinned).load(&[]).unwrap();
}

#[test]
fn two_identities_are_never_one_client() {
    // NHI-9
    let second = GOOD[GOOD.find("[identities").unwrap()..]
        .replace("identities.payments", "identities.billing")
        .replace("1000", "1001");
    let told = mistakes(&format!("{GOOD}{second}"));
    assert!(told.iter().any(|line| line.contains("same client of this issuer")), "{told:?}");
}

#[test]
fn an_export_has_a_directory_of_its_own_and_somebody_that_it_is_for() {
    // ATT-23
    let export = |name: &str, rest: &str| format!("[exports.{name}]\n{rest}\n");
    let good = r#"path = "/run/kb-web/agent.sock"
identities = ["payments"]"#;
    let settings = Desk::with(&format!("{GOOD}{}", export("web", good))).load(&[]).unwrap();
    assert_eq!(settings.exports["web"].path.to_str(), Some("/run/kb-web/agent.sock"));
    assert!(settings.policy.exports()["web"].identities.contains("payments"));
    let place = |path: &str| good.replace("/run/kb-web/agent.sock", path);
    let own = "exports.web.path: it needs a directory of its own";
    for (rest, expected) in [
        (place("/run/keybearer/agent.sock"), own),
        (place("/run/keybearer/web.sock"), own),
        (place("/run/web.sock"), own),
        (place("/run/kb-web/../keybearer/web.sock"), own),
        (place("web/agent.sock"), "exports.web.path: it has to be an absolute path"),
        (good.replace("path", "mode"), "exports.web.path: it is required"),
        (good.replace(r#"["payments"]"#, "[]"), "exports.web.identities: it is for nobody"),
        (good.replace("identities", "identity"), "exports.web.identity: there is no such key"),
        (good.replace(r#"["payments"]"#, r#"["hunter2"]"#), "exports.web.identities: one of them is no"),
        (format!("{good}\nmode = \"0755\""), "exports.web.mode: it has to be an octal mode"),
    ] {
        let told = mistakes(&format!("{GOOD}{}", export("web", &rest)));
        assert!(told.iter().any(|line| line.contains(expected)), "{rest}: {told:?}");
        assert!(!told.join(" ").contains("hunter2"));
    }
    for (name, path) in [
        ("batch", "/run/kb-web/b.sock"),
        ("batch", "/run/kb-web/in/b.sock"),
        ("zone", "/run/kb-web/in/z.sock"),
    ] {
        let two = format!("{GOOD}{}{}", export("web", good), export(name, &place(path)));
        assert!(mistakes(&two).iter().any(|line| line.contains("a directory of its own")), "{path}");
    }
}

#[test]
fn two_identities_never_show_the_same_subject() {
    // NHI-9, WIM-03
    let first = GOOD.replace(
        "scope =",
        "client_auth = \"spiffe_jwt\"\nassertion = { socket = \"/s\", subject = \"spiffe://e.org/a\" }\nscope =",
    );
    let second = first[first.find("[identities").unwrap()..]
        .replace("identities.payments", "identities.billing")
        .replace("\"payments\"", "\"billing\"")
        .replace("1000", "1001");
    let told = mistakes(&format!("{first}{second}"));
    assert!(told.iter().any(|line| line.contains("shows the same subject")), "{told:?}");
    Desk::with(&format!("{first}{}", second.replace("e.org/a", "e.org/b"))).load(&[]).unwrap();
}

#[test]
fn what_becomes_of_old_records_is_said_in_days_and_bytes() {
    // AUD-25, AUD-26
    let audit = |lines: &str| format!("{GOOD}\n[audit]\n{lines}\n");
    let kept = |lines: &str| Desk::with(&audit(lines)).load(&[]).unwrap().audit;
    let day = std::time::Duration::from_secs(24 * 60 * 60);
    assert_eq!(kept("keep = \"400d\"").keep, Some(day * 400));
    assert_eq!(kept("keep = \"forever\"").keep, None);
    assert_eq!(kept("rotate_at = 1048576").rotate_at, 1 << 20);
    assert_eq!(kept("journal = \"on\"").journal.as_deref(), Some(Path::new("/run/systemd/journal/socket")));
    assert_eq!(kept("journal = \"off\"").journal, None);
    assert_eq!(kept("").journal, None, "standard error does not lead there");
    for (lines, says) in [
        ("keep = \"23h\"", "audit.keep: it has to be \"forever\" or at least a day"),
        ("keep = \"never\"", "audit.keep: it has to be a length of time"),
        ("keep = 8.5", "audit.keep: it has to be a length of time"),
        ("rotate_at = 1000", "audit.rotate_at: it has to be from 65536"),
        ("journal = true", "audit.journal"),
        ("journal = \"maybe\"", "audit.journal: it has to be one of \"auto\", \"on\", \"off\""),
    ] {
        let told = mistakes(&audit(lines));
        assert!(told.iter().any(|line| line.contains(says)), "{lines}: {told:?}");
    }
}

#[test]
fn interim_needs_a_ledger_that_denies() {
    // S40
    let told = mistakes(&format!("{GOOD}\n[audit]\non_failure = \"allow\"\n"));
    assert!(told.iter().any(|line| line.contains("S40")), "{told:?}");
}

#[test]
fn unknown_users_groups_and_names_are_told() {
    for (from, to, expected) in [
        ("uid = 1000", "user = \"no-such-user-here\"", "match.user: this host knows no such user"),
        ("uid = 1000", "group = \"no-such-group-here\"", "match.group: this host knows no such group"),
        ("uid = 1000", "sha256 = \"abc\"", "match.sha256: it has to be 64 hexadecimal digits"),
        ("uid = 1000", "uid = -1", "match.uid: it has to be from 0"),
        ("uid = 1000", "exe = \"bin/x\"", "match.exe: it has to be an absolute path"),
        ("identities.payments", "identities.\"Pay ments\"", "a name is 1 to 63 of"),
        ("[\"ledger:write\"]", "[\"*\"]", "S41"),
        ("2026-12-31", "soon", "until: it has to be a date"),
        ("2026-12-31", "2027-12-31", "more than 90 days ahead"),
    ] {
        let told = mistakes(&GOOD.replace(from, to));
        assert!(told.iter().any(|line| line.contains(expected)), "{to}: {told:?}");
    }
}

#[test]
fn a_certificate_has_what_its_use_needs() {
    // MT-04, MT-11, MT-12
    let vault = |lines: &str| CERTIFIED.replace("binding = \"mtls\"", lines);
    let table = |lines: &str| CERTIFIED.replace("certificate]\n", &format!("certificate]\n{lines}\n"));
    let none = CERTIFIED.replace("[identities.payments.certificate]", "");
    for (text, told) in [
        (none.clone(), "credentials.vault.binding: it needs a certificate"),
        (
            none.replace("binding = \"mtls\"", "client_auth = \"tls_client_auth\""),
            "credentials.vault.client_auth: it needs a certificate",
        ),
        (
            vault("client_auth = \"tls_client_auth\""),
            "client_auth: it is for certificates that a CA vouches for",
        ),
        (vault(""), "identities.payments.certificate: none of its credentials uses it"),
        (vault("key_export = \"allowed\""), "key_export: it is only used with binding"),
        (
            vault("binding = \"mtls\"\nclient_auth = \"self_signed_tls_client_auth\""),
            "an issuer knows one way",
        ),
        (table("lifetime = \"366d\""), "certificate.lifetime: it has to be between"),
        (table("lifetime = \"12h\""), "certificate.lifetime: it has to be between"),
        (table("san_uri = \"payments\""), "certificate.san_uri: it has to be an absolute URI"),
        (table("custody = \"memory\"\nkey = \"/k\""), "certificate.key: a key in memory has no path"),
        (
            table("custody = \"memory\"\ncertificate = \"/c\""),
            "certificate.custody: a certificate that was made elsewhere",
        ),
        (table("certificate = \"/c\""), "certificate.key: name the file with the key"),
        (
            table("certificate = \"/c\"\nkey = \"/k\"\nsan_uri = \"a:b\""),
            "certificate.san_uri: it is only for",
        ),
        (
            vault(
                "binding = \"mtls\"\nexception = { owner = \"abc\", reason = \"abc\", until = \"2026-12-01\" }",
            ),
            "a bound credential needs none",
        ),
    ] {
        let all = mistakes(&format!("{GOOD}{text}"));
        assert!(all.iter().any(|it| it.contains(told)), "{told}\n{all:#?}");
    }
    let plain = GOOD
        .replace("environment = \"prod\"", "environment = \"dev\"")
        .replace("issuer = \"https://idp.example.com\"", "issuer = \"http://127.0.0.1:9\"\ndev = true");
    let all = mistakes(&format!("{plain}{CERTIFIED}"));
    assert!(all.iter().any(|it| it.contains("plain http, which carries no certificate")), "{all:#?}");
    let allowed = vault("binding = \"mtls\"\nkey_export = \"allowed\"");
    let settings = Desk::with(&format!("{GOOD}{allowed}")).load(&[]).unwrap();
    assert!(settings.certificates["payments"].export);
    // Bound is bound: "high" takes either kind.
    let high = GOOD.replace("uid = 1000", "unit = \"payments.service\"").replace("interim", "high").replace(
        "binding = \"bearer\"\nexception = { owner = \"payments@example.com\", reason = \"not bound yet\", until = \"2026-12-31\" }",
        "binding = \"dpop\"",
    );
    Desk::with(&format!("{high}{CERTIFIED}")).load(&[]).unwrap();
}

#[test]
fn a_certificate_or_a_lease_is_wanted_in_its_own_words() {
    // X5-01, S2, K57-3, S36
    let wants = |lines: &str| {
        format!(
            "{GOOD}\n[identities.payments.credentials.tls]\nissuer = \"corp\"\nclient_id = \"payments\"\n{lines}\n"
        )
    };
    const TABLE: &str = "certificate = { uri = [\"spiffe://e.org/a\"] }";
    for (lines, told) in [
        (TABLE, "tls.certificate: an \"oauth\" issuer makes no certificates"),
        ("lease = { at = \"database/creds/a\" }", "tls.lease: an \"oauth\" issuer leases nothing"),
        ("lease = {}", "tls.lease.at: it is required"),
        ("certificate = {}", "tls.certificate.uri: name whom it is for"),
        ("certificate = { uri = [\"payments\"] }", "certificate.uri: each has to be an absolute URI"),
        ("certificate = { uri = [\"spiffe://e.org/*\"] }", "certificate.uri: each has to be an absolute URI"),
        ("certificate = { dns = [\"*.e.org\"] }", "certificate.dns: each has to be a host name"),
        ("certificate = { ip = [\"e.org\"] }", "certificate.ip: each has to be an address"),
        (
            "certificate = { dns = [\"e.org\"], custody = \"memory\", renewal = \"same_key\" }",
            "certificate.renewal: a key is kept",
        ),
        (
            "certificate = { dns = [\"e.org\"], custody = \"memory\", path = \"/k\" }",
            "certificate.path: a key in memory",
        ),
        (
            "certificate = { dns = [\"e.org\"], custody = \"file\" }\nper = \"process\"",
            "certificate.custody: with per",
        ),
        (&format!("{TABLE}\nmax_ttl = \"8d\""), "tls.max_ttl: it is 691200 s"),
        (&format!("{TABLE}\nmax_uses = 3"), "tls.max_uses: a certificate is used without being asked for"),
        (&format!("{TABLE}\nresource = \"https://e.org\""), "tls.resource: it is for access tokens"),
        (&format!("{TABLE}\nbinding = \"bearer\""), "tls.binding: it is for access tokens"),
        (
            &format!("{TABLE}\nlease = {{ at = \"a\" }}"),
            "tls.lease: it is a certificate or a lease, not both",
        ),
        ("lease = { at = \"a\" }\nper = \"identity\"", "tls.exception: whoever steals leased values"),
        ("lease = { at = \"a\" }\nmax_ttl = \"2h\"", "tls.max_ttl: it is 7200 s"),
        ("client_auth = \"bootstrap\"\nresource = \"https://e.org\"", "tls.bootstrap: it is required"),
        (
            "bootstrap = \"/once\"\nresource = \"https://e.org\"",
            "tls.bootstrap: it is only used with client_auth",
        ),
    ] {
        let all = mistakes(&wants(lines));
        assert!(all.iter().any(|it| it.contains(told)), "{told}\n{all:#?}");
    }
    let shows = |name: &str| {
        format!("{}\n[identities.payments.certificate]\ncredential = \"{name}\"\n", wants(TABLE))
    };
    for name in ["ledger", "nothing"] {
        let all = mistakes(&shows(name));
        assert!(all.iter().any(|it| it.contains("certificate.credential: it has to be one of")), "{all:#?}");
    }
    let all = mistakes(&format!("{}custody = \"file\"\n", shows("tls")));
    assert!(
        all.iter().any(|it| it.contains("certificate.custody: it is for a certificate of the agent's own")),
        "{all:#?}"
    );
}

#[test]
fn the_commented_example_of_openbao_loads_and_its_mistakes_are_told() {
    // CA-04, S36
    let example =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("agent.toml.example")).unwrap();
    let is_written = |line: &&str| {
        line.starts_with('[') || line.split_once(" = ").is_some_and(|(key, _)| !key.contains(' '))
    };
    let uncommented = |from: &str| -> String {
        let lines =
            example.lines().skip_while(|line| *line != from).take_while(|line| line.starts_with("# "));
        lines
            .filter_map(|line| line.strip_prefix("# "))
            .filter(is_written)
            .map(|line| format!("{line}\n"))
            .collect()
    };
    let issuer = uncommented("# [issuers.bao]");
    let database = uncommented("# [identities.payments.credentials.database]");
    let all =
        format!("{GOOD}{issuer}{database}{}", uncommented("# [identities.payments.credentials.bao-tls]"));
    let settings = Desk::with(&all).load(&[]).unwrap();
    let IssuerSettings::OpenBao(server) = &settings.issuers["bao"] else { panic!("it is OpenBao") };
    // What the example calls a default is one.
    let keys = ["kind", "url", "namespace", "ca_file", "roots"].map(|key| format!("{key} = "));
    let kept = |line: &&str| line.starts_with('[') || keys.iter().any(|key| line.starts_with(key));
    let short: String = issuer.lines().filter(kept).map(|line| format!("{line}\n")).collect();
    assert!(short.len() < issuer.len());
    let plain = Desk::with(&format!("{GOOD}{short}{database}")).load(&[]).unwrap();
    let IssuerSettings::OpenBao(plain) = &plain.issuers["bao"] else { panic!("it is OpenBao") };
    let named = Some("jwt".to_owned());
    let spelled = crate::issuer::openbao::OpenBaoSettings {
        auth_mount: named,
        audience: Some(plain.url.clone()),
        ..plain.clone()
    };
    assert_eq!(*server, spelled);
    let identity = settings.policy.identities().next().unwrap();
    let (leased, signed) = (&identity.credentials["database"], &identity.credentials["bao-tls"]);
    assert_eq!((leased.per, leased.binding), (crate::policy::Per::Process, Binding::Bearer));
    assert_eq!(signed.max_ttl.as_secs(), 24 * 3600);
    for (was, is, told) in [
        (
            "url = \"https://bao.example.com:8200\"",
            "url = \"http://bao\"",
            "issuers.bao.url: it is not https",
        ),
        ("dev = false", "dev = true", "issuers.bao.dev: a development issuer is never used in production"),
        ("namespace = \"team/payments\"", "namespace = \"/a\"", "issuers.bao.namespace: write it as"),
        ("timeout = \"10s\"", "timeout = \"2m\"", "issuers.bao.timeout: it is not between"),
        ("roots = ", "# roots = ", "bao-tls.certificate: set roots for this issuer first"),
        ("at = \"pki/sign/payments\"", "at = \"pki/issue/payments\"", "bao-tls.certificate.at: say where"),
        ("at = \"database/creds/payments\"", "at = \"../sys/seal\"", "database.lease.at: write the path"),
        (
            "lease = { at",
            "# lease = { at",
            "database.issuer: an \"openbao\" issuer gives certificates and leases",
        ),
        ("per = \"process\"", "max_uses = 2", "database.max_uses: a lease is one and the same"),
        (
            "per = \"process\"",
            "client_auth = \"bootstrap\"\nbootstrap = \"/x\"",
            "database.client_auth: an \"openbao\" issuer",
        ),
        (
            "inline_auth = false",
            "token = \"canary\"",
            "issuers.bao.token: there is no such key, and no shared secret",
        ),
    ] {
        let all = mistakes(&all.replace(was, is));
        assert!(all.iter().any(|it| it.contains(told)), "{told}\n{all:#?}");
    }
}

/// The terms of the one credential of [`GOOD`] with these lines more.
#[test]
fn the_commented_example_of_a_sealed_secret_loads_and_its_mistakes_are_told() {
    // S1, S36, S46
    let example =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("agent.toml.example")).unwrap();
    let lines = example
        .lines()
        .skip_while(|line| *line != "# [identities.payments.credentials.smtp]")
        .filter_map(|line| line.strip_prefix("# "))
        .filter(|line| {
            line.starts_with('[') || line.split_once(" = ").is_some_and(|(key, _)| !key.contains(' '))
        });
    let smtp: String = lines.map(|line| format!("{line}\n")).collect();
    let all = format!("{GOOD}\n{smtp}");
    let settings = Desk::with(&all).load(&[]).unwrap();
    let identity = settings.policy.identities().next().unwrap();
    let rule = &identity.credentials["smtp"];
    let Wants::Sealed(terms) = &rule.terms.wants else { panic!("it is sealed") };
    assert_eq!(terms.fields, ["password"]);
    assert_eq!(terms.keeper, SealedBy::ServiceManager("smtp-password".into()));
    assert_eq!(terms.until.to_string(), "2027-01-01T00:00:00Z");
    assert_eq!((rule.binding, rule.max_ttl.as_secs(), &*rule.issuer), (Binding::Bearer, 900, "sealed"));
    let forward = rule.forward.as_ref().unwrap();
    assert!(forward.only && forward.carry.as_ref().unwrap().fields().eq(["password"]));
    assert_eq!(settings.kept.sealed.to_str(), Some("/var/lib/keybearer/sealed"));
    let own = all
        .replace("systemd_credential = \"smtp-password\"\n", "")
        .replace("[\"password\"]", "[\"user\", \"password\"]");
    let settings = Desk::with(&own).load(&[]).unwrap();
    let rule = &settings.policy.identities().next().unwrap().credentials["smtp"];
    assert!(matches!(&rule.terms.wants, Wants::Sealed(terms) if terms.keeper == SealedBy::Agent));
    let shared = own.replace("forward = \"only\"", "forward = \"allowed\"");
    let deliver = |text: &str, field: &str| {
        format!("{text}\n[identities.payments.deliver]\nenv = {{ SMTP_PASSWORD = \"smtp.{field}\" }}\n")
    };
    Desk::with(&deliver(&shared, "password")).load(&[]).unwrap();
    for (text, field, why) in [
        (&shared, "token", "it has user, password, expires_at"),
        (&own, "password", "does not leave the agent"),
    ] {
        let told = mistakes(&deliver(text, field));
        assert!(
            told.iter().any(|it| it.contains("deliver.env.SMTP_PASSWORD") && it.contains(why)),
            "{told:#?}"
        );
    }
    let alone = GOOD.split_once("[identities.payments.credentials").unwrap().0;
    let settings = Desk::with(&format!("{alone}{smtp}")).load(&[]).unwrap();
    assert!(!settings.keys["payments"].client, "it has no use for a key of its own, and none is made");
    for (was, is, told) in [
        ("kind = \"sealed\"", "kind = \"oauth\"", "smtp.kind: it has to be one of \"sealed\""),
        ("kind = \"sealed\"\n", "", "smtp.fields: it is for a secret that stays as it is"),
        (
            "kind = \"sealed\"",
            "kind = \"sealed\"\nissuer = \"corp\"",
            "smtp.issuer: it is for what an issuer makes",
        ),
        (
            "kind = \"sealed\"",
            "kind = \"sealed\"\nper = \"process\"",
            "smtp.per: it is for what an issuer makes",
        ),
        (
            "kind = \"sealed\"",
            "kind = \"sealed\"\npassword = \"canary\"",
            "smtp.password: there is no such key, and no shared secret",
        ),
        ("fields = [\"password\"]\n", "", "smtp.fields: name its values"),
        ("[\"password\"]", "[\"password\", \"password\"]", "smtp.fields: each is another name"),
        ("[\"password\"]", "[\"pass word\"]", "smtp.fields: each is another name"),
        (
            "[\"password\"]",
            "[\"password\", \"user\"]",
            "smtp.fields: a credential of the service manager is one value",
        ),
        ("\"smtp-password\"", "\"../smtp\"", "smtp.systemd_credential: it has to be a name"),
        ("\"smtp-password\"", "\"keybearer.sealing-key\"", "smtp.systemd_credential: it has to be a name"),
        (
            "exception = { owner = \"payments@example.com\", reason = \"the mail",
            "# ",
            "smtp.exception: a secret that stays as it is needs",
        ),
        ("max_ttl = \"15m\"", "max_ttl = \"2h\"", "smtp.max_ttl: it is 7200 s"),
        ("forward = \"only\"\n", "", "smtp.forward_as: it is only used with forward"),
        ("forward_as = \"X-Api-Key: {password}\"\n", "", "smtp.forward_as: say in which header"),
        (
            "X-Api-Key: {password}",
            "Cookie: {password}",
            "smtp.forward_as: the header cookie is not to be set",
        ),
        (
            "X-Api-Key: {password}",
            "X-Api-Key: {key}",
            "smtp.forward_as: what stands in its braces has to be one of",
        ),
        (
            "origins = [\"https://mail.example.com\"]",
            "origins = [\"http://mail.example.com\"]",
            "smtp.origins: an origin is https",
        ),
        ("origins = [\"https://mail.example.com\"]\n", "", "smtp.origins: name where it is used"),
    ] {
        assert!(smtp.contains(was), "{was}");
        let told_all = mistakes(&format!("{GOOD}\n{}", smtp.replacen(was, is, 1)));
        assert!(told_all.iter().any(|it| it.contains(told)), "{told}\n{told_all:#?}");
        assert!(!told_all.join("\n").contains("canary"));
    }
    let far =
        mistakes(&all.replace("release 4\", until = \"2026-12-31\"", "release 4\", until = \"2027-12-31\""));
    assert!(
        far.iter().any(|it| it.contains("smtp.exception.until: it ends") && it.contains("90 days")),
        "{far:#?}"
    );
    // What one identity's secret is, another has no business with (NHI-9).
    let second = format!("{}\n{smtp}", GOOD.split_once("[identities.payments]").unwrap().1);
    let second = format!("[identities.payments]{second}").replace("payments", "invoices");
    let second = second.replace("uid = 1000", "uid = 1001");
    let told = mistakes(&format!("{all}\n{second}"));
    let both = told.iter().find(|it| it.contains("identities.payments.credentials.smtp.systemd_credential"));
    assert!(both.is_some_and(|it| it.contains("identities.invoices has \"smtp-password\" too")), "{told:#?}");
    let apart = second.replace("smtp-password", "invoices-password");
    Desk::with(&format!("{all}\n{apart}")).load(&[]).unwrap();
    // No exception makes it good enough for what matters most (S39).
    let high = all.replace("uid = 1000", "unit = \"payments.service\"").replace("interim", "high");
    let told = mistakes(&high);
    assert!(told.iter().any(|it| it.contains("smtp.binding: \"high\" is only for")), "{told:#?}");
    let taken =
        mistakes(&format!("{GOOD}\n[issuers.sealed]\nkind = \"oauth\"\nissuer = \"https://e.org\"\n"));
    assert!(taken.iter().any(|it| it.contains("issuers.sealed.kind: this name stands for")), "{taken:#?}");
    let token = mistakes(&GOOD.replace("scope =", "forward_as = \"X-Api-Key: {a}\"\nscope ="));
    assert!(
        token.iter().any(|it| it.contains("ledger.forward_as: it is for a secret that stays")),
        "{token:#?}"
    );
}

fn terms(more: &str) -> (Terms, bool) {
    let settings = Desk::with(&GOOD.replace("scope =", &format!("{more}\nscope ="))).load(&[]).unwrap();
    let identity = settings.policy.identities().next().unwrap();
    let terms = Terms::clone(&identity.credentials["ledger"].terms);
    (terms, settings.keys["payments"].client)
}

#[test]
fn every_commented_example_of_terms_means_what_it_says() {
    // OA-22, OA-26, DR-05
    let example =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("agent.toml.example")).unwrap();
    let commented = |start: &str| {
        let line = example.lines().find(|line| line.starts_with(&format!("# {start}"))).unwrap();
        line.trim_start_matches("# ").to_owned()
    };
    let (subject, actor) = (commented("subject = { file"), commented("actor = { file"));
    let requested = commented("requested_token_type =");
    let (exchanging, key) = terms(&format!("grant = \"token_exchange\"\n{subject}\n{actor}\n{requested}"));
    let GrantType::TokenExchange(exchange) = exchanging.grant else { panic!("{exchanging:?}") };
    assert_eq!(exchange.subject.kind, TokenType::Jwt);
    assert_eq!(exchange.subject.file.conditions.claims["repository"], "org/repo");
    assert_eq!(exchange.subject.file.conditions.audience.as_deref(), Some("https://idp.example.com"));
    assert_eq!(exchange.actor.unwrap().file.path.to_str(), Some("/var/run/secrets/tokens/actor"));
    assert_eq!((exchange.requested, key), (Some(TokenType::AccessToken), true));

    let (bearing, _) = terms(&format!("grant = \"jwt_bearer\"\n{subject}"));
    assert!(matches!(bearing.grant, GrantType::JwtBearer(_)));

    let (federated, key) =
        terms(&format!("client_auth = \"federated_jwt\"\n{}", commented("assertion = { file")));
    let ClientAuth::FederatedJwt(file) = federated.client_auth else { panic!("{federated:?}") };
    assert_eq!(file.conditions.claims["sub"], "system:serviceaccount:shop:payments");
    assert!(!key, "no key is made that nothing uses");

    let (spiffe, key) =
        terms(&format!("client_auth = \"spiffe_jwt\"\n{}", commented("assertion = { socket")));
    let ClientAuth::SpiffeJwt(SvidSource::WorkloadApi { spiffe_id, .. }) = spiffe.client_auth else {
        panic!("{spiffe:?}")
    };
    assert_eq!((&*spiffe_id, key), ("spiffe://example.com/payments", false));
}

#[test]
fn names_that_others_chose_are_kept_to_the_letter() {
    // OA-27, WIM-11
    let (asked, _) = terms(
        "authorization_details = [ { type = \"payment\", instructedAmount = { currency = \"EUR\", \"max.value\" = 10, share = 0.5 }, \
         actions = [\"Read\"], once = true } ]",
    );
    let expected = serde_json::json!({
        "type": "payment", "instructedAmount": {"currency": "EUR", "max.value": 10, "share": 0.5}, "actions": ["Read"],
        "once": true,
    });
    assert_eq!(asked.details, [expected]);
    let (bearing, _) = terms(
        "grant = \"jwt_bearer\"\nsubject = { file = \"/t\", issuer = \"https://ci.example\", audience = \"https://a\", \
         claims = { \"https://ci.example/Ref\" = \"Main\", run = 7, protected = true } }",
    );
    let GrantType::JwtBearer(file) = bearing.grant else { panic!("{bearing:?}") };
    let claims: Vec<(&str, &str)> =
        file.conditions.claims.iter().map(|(name, is)| (&**name, &**is)).collect();
    assert_eq!(claims, [("https://ci.example/Ref", "Main"), ("protected", "true"), ("run", "7")]);
}

#[test]
fn each_mistake_in_terms_is_told() {
    // OA-22, OA-27, OA-28, OA-42, NHI-6
    let subject = "subject = { file = \"/t\", issuer = \"https://ci.example\", audience = \"https://a\" }";
    let jwt_bearer = |subject: &str| format!("grant = \"jwt_bearer\"\n{subject}");
    let exchange = |more: &str| format!("grant = \"token_exchange\"\n{subject}\n{more}");
    for (lines, expected) in [
        ("grant = \"password\"".into(), "ledger.grant: it has to be one of \"client_credentials\""),
        ("grant = \"implicit\"".into(), "ledger.grant: it has to be one of \"client_credentials\""),
        ("grant = \"token_exchange\"".into(), "ledger.subject: it is required"),
        (subject.into(), "ledger.subject: it is not used with this grant"),
        (jwt_bearer("subject = \"/t\""), "ledger.subject: it has to be a table"),
        (jwt_bearer("subject = { issuer = \"i\", audience = \"a\" }"), "subject.file: it is required"),
        (jwt_bearer("subject = { file = \"t\", issuer = \"i\", audience = \"a\" }"), "an absolute path"),
        (jwt_bearer("subject = { file = \"/t\", audience = \"a\" }"), "ledger.subject: name who has to have made"),
        (jwt_bearer("subject = { file = \"/t\", issuer = \"i\" }"), "ledger.subject: name whom the token has to be for"),
        (jwt_bearer(&subject.replace("/t", "/t\", type = \"id_token")), "its type is \"jwt\""),
        (jwt_bearer(&subject.replace("/t", "/t\", type = \"saml2")), "subject.type: it has to be one of"),
        (jwt_bearer(&subject.replace("/t", "/t\", claims = { ref = \"refs/*\" }, type = \"jwt")), "letter by letter"),
        (jwt_bearer(&subject.replace("/t", "/t\", claims = { ref = [] }, type = \"jwt")), "claims.ref: it has to be a string, not a list"),
        (jwt_bearer(&subject.replace("ci.example", "gitlab.com")), "everybody gets tokens of this issuer"),
        (jwt_bearer(&format!("{subject}\nactor = {{ file = \"/a\" }}")), "ledger.actor: it is not used with this grant"),
        (exchange("actor = { type = \"jwt\" }"), "actor.file: it is required"),
        (exchange("requested_token_type = \"id-jag\""), "requested_token_type: it has to be one of"),
        ("client_auth = \"client_secret_post\"".into(), "client_auth: it has to be one of \"private_key_jwt\""),
        ("client_auth = \"federated_jwt\"".into(), "ledger.assertion: it is required"),
        ("assertion = { file = \"/t\", subject = \"s\" }".into(), "ledger.assertion: it is not used with"),
        ("client_auth = \"federated_jwt\"\nassertion = { file = \"/t\" }".into(), "assertion.subject: it is required"),
        ("client_auth = \"federated_jwt\"\nassertion = { socket = \"/s\", subject = \"s\" }".into(), "assertion.socket: there is no such key"),
        ("client_auth = \"spiffe_jwt\"\nassertion = { socket = \"/s\", subject = \"s\" }".into(), "SPF-01"),
        ("client_auth = \"spiffe_jwt\"\nassertion = { socket = \"/s\", file = \"/t\", subject = \"spiffe://e/a\" }".into(), "not both"),
        ("authorization_details = [ \"payment\" ]".into(), "authorization_details: it has to be a list of tables, not a string"),
        ("authorization_details = [ { actions = [] } ]".into(), "authorization_details: each of them has a type"),
        ("introspect = true".into(), "ledger.introspect: it is only used with a binding"),
    ] {
        let told = mistakes(&GOOD.replace("scope =", &format!("{lines}\nscope =")));
        assert!(told.iter().any(|line| line.contains(expected)), "{lines}: {told:?}");
    }
}

#[test]
fn the_example_of_a_step_ca_is_one_once_its_marks_are_taken_away() {
    // CA-01
    let example =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("agent.toml.example")).unwrap();
    let block = |head: &str| {
        let lines = example.lines().skip_while(|line| *line != head).take_while(|line| line.starts_with('#'));
        // What is given instead of another key stays a comment.
        let keys = lines.filter_map(|line| line.strip_prefix("# ")).filter(|line| {
            let is_key = line.split_once(" = ").is_some_and(|(key, _)| !key.contains(' '));
            (is_key || line.starts_with('[')) && !line.starts_with("root_sha256")
        });
        keys.collect::<Vec<_>>().join("\n")
    };
    let (ca, tls) = (block("# [issuers.mesh]"), block("# [identities.payments.credentials.tls]"));
    assert!(ca.contains("timeout = \"10s\"") && tls.contains("max_ttl = \"24h\""), "{ca}\n{tls}");
    let told = Desk::with(&format!("{example}\n{ca}\n\n{tls}\n")).load(&[]).unwrap();
    let IssuerSettings::StepCa(given) = &told.issuers["mesh"] else { panic!("not a step-ca") };
    let plain = Desk::with(&format!("{GOOD}{ENROLLED}")).load(&[]).unwrap();
    let IssuerSettings::StepCa(plain) = &plain.issuers["mesh"] else { panic!("not a step-ca") };
    assert_eq!((given.dev, given.timeout), (plain.dev, plain.timeout), "its defaults are the defaults");
}

/// A CA, and an identity that gets a certificate from it.
const ENROLLED: &str = r#"
[issuers.mesh]
kind = "step-ca"
url = "https://ca.example.com:9000"
roots = "/etc/keybearer/ca.pem"

[identities.payments.credentials.tls]
issuer = "mesh"
client_id = "payments"
certificate = { uri = ["spiffe://example.com/payments"] }
"#;

#[test]
fn a_step_ca_is_read_and_mistakes_about_it_are_told() {
    // CA-01, CA-03
    let enrolled = format!("{GOOD}{ENROLLED}");
    let step = |text: &str| {
        let settings = Desk::with(text).load(&[]).unwrap();
        let IssuerSettings::StepCa(step) = settings.issuers["mesh"].clone() else { panic!("not a step-ca") };
        step
    };
    // KEY-01: what is kept is overwritten at each renewal.
    let taken = "certificate = { path = \"/var/lib/keybearer/keys/payments.client-auth.pem\",";
    let told = mistakes(&enrolled.replace("certificate = {", taken));
    assert!(told[0].contains("tls.certificate.path: another key or certificate is in this file"), "{told:?}");
    let plain = step(&enrolled);
    assert_eq!(plain.roots, RootSource::File("/etc/keybearer/ca.pem".into()));
    assert_eq!((plain.kept_root, plain.ca_file, plain.dev), (None, None, false));
    let digits = "ab".repeat(32);
    let pinned = |sum: &str| {
        enrolled.replace("roots = \"/etc/keybearer/ca.pem\"", &format!("root_sha256 = \"{sum}\""))
    };
    let by_sum = step(&pinned(&digits));
    assert_eq!(by_sum.roots, RootSource::Pinned([0xab; 32]));
    assert!(by_sum.kept_root.unwrap().ends_with("mesh.root.pem"));
    assert_eq!(step(&pinned(&["ab"; 32].join(":"))).roots, RootSource::Pinned([0xab; 32]));
    for (from, to, expected) in [
        ("roots =", "# roots =", "issuers.mesh.roots: say what its certificates lead to"),
        ("roots =", "root_sha256 = \"ab\"\nroots =", "root_sha256: it has to be 64 hexadecimal digits"),
        (
            "roots =",
            &format!("root_sha256 = \"{digits}\"\nroots ="),
            "root_sha256: give the roots or the sum",
        ),
        ("url = \"https", "url = \"http", "issuers.mesh.url: it is not https"),
        (":9000\"", ":9000/\"", "issuers.mesh.url: write it without a slash"),
        ("url =", "issuer = \"https://ca.example.com\"\nurl =", "issuers.mesh.issuer: there is no such key"),
        ("kind = \"step-ca\"", "kind = \"step\"", "this version knows the kinds"),
        ("url =", "dev = true\nurl =", "issuers.mesh.dev: a development issuer is never used in production"),
        ("certificate =", "# certificate =", "credentials.tls.certificate: a \"step-ca\" makes certificates"),
        (
            "certificate = {",
            "certificate = { at = \"pki\",",
            "tls.certificate.at: a \"step-ca\" has one place",
        ),
        (
            "certificate =",
            "client_auth = \"bootstrap\"\nbootstrap = \"/b\"\ncertificate =",
            "tls.client_auth: a step-ca knows two ways",
        ),
        (
            "certificate =",
            "client_auth = \"tls_client_auth\"\ncertificate =",
            "tls.client_auth: it needs a certificate",
        ),
    ] {
        let told = mistakes(&enrolled.replace(from, to));
        assert!(told.iter().any(|line| line.contains(expected)), "{to}: {told:?}");
    }
}

#[test]
fn pins_are_read_and_their_mistakes_told() {
    // OA-05
    let with = |lines: &str| GOOD.replace("kind =", &format!("{lines}\nkind ="));
    let digits = "ab".repeat(32);
    let pinned = with(&format!("metadata_pin = \"sha256:{digits}\"\nmetadata_change = \"strict\""));
    let settings = Desk::with(&pinned).load(&[]).unwrap();
    let IssuerSettings::OAuth(oauth) = &settings.issuers["corp"] else { panic!("not oauth") };
    assert_eq!((oauth.pins.document, oauth.pins.on_change), (Some([0xab; 32]), OnChange::Strict));
    Desk::with(&with("endpoint_pins = { token_endpoint = \"https://idp.example.com/token\" }"))
        .load(&[])
        .unwrap();
    for (lines, expected) in [
        (format!("metadata_pin = \"{digits}\""), "metadata_pin: it has to be \"sha256:\""),
        ("metadata_pin = \"sha256:ab\"".into(), "metadata_pin: it has to be \"sha256:\""),
        ("metadata_change = \"strict\"".into(), "metadata_change: strict about what?"),
        ("metadata_change = \"deny\"".into(), "metadata_change: it has to be one of"),
        (
            "endpoint_pins = { token = \"https://idp.example.com/token\" }".into(),
            "endpoint_pins: each is the name",
        ),
    ] {
        let told = mistakes(&with(&lines));
        assert!(told.iter().any(|line| line.contains(expected)), "{lines}: {told:?}");
    }
}

#[test]
fn a_registration_is_of_a_client_whose_keys_are_registered_and_at_its_issuer() {
    // KEY-09, OA-04
    let with = |registrations: &str| format!("{GOOD}{registrations}");
    let one = |name: &str, client: &str, uri: &str| {
        format!(
            "[identities.payments.registrations.{name}]\nissuer = \"corp\"\nclient_id = \"{client}\"\nuri = \"{uri}\"\n"
        )
    };
    const URI: &str = "https://idp.example.com/register/payments";
    let settings = Desk::with(&with(&one("a", "payments", URI))).load(&[]).unwrap();
    let registration = &settings.registrations[0];
    assert_eq!(registration.token_file.to_str(), Some("/var/lib/keybearer/registrations/payments.a.token"));
    assert_eq!(registration.kept.to_str(), Some("/var/lib/keybearer/registrations/payments.a.sealed"));
    assert_eq!(registration.client_auth, ClientAuth::PrivateKeyJwt);
    assert_eq!(registration.grants, BTreeSet::from(["client_credentials"]));
    let cases = [
        (one("a", "other", URI), "client_id: none of this identity's credentials is of this client"),
        (one("a", "payments", "http://idp.example.com/r"), "uri: it is not https"),
        (one("a", "payments", "https://idp.example.org/r"), "uri: it is not at a host of this issuer"),
        (one("a", "payments", "https://a:b@idp.example.com/r"), "uri: it holds a user name"),
        (one("a", "payments", URI) + &one("b", "payments", URI), "client_id: another registration"),
        (
            one("a", "payments", URI) + "token = \"hunter2\"\n",
            "token: there is no such key, and no shared secret",
        ),
        (one("a", "payments", URI) + "token_file = \"token\"\n", "token_file: it has to be an absolute path"),
        ("[identities.payments.registrations.a]\n".into(), "uri: it is required"),
        (one("A", "payments", URI), "a name is 1 to 63 of a-z"),
    ];
    for (text, expected) in cases {
        let told = mistakes(&with(&text)).join("\n");
        assert!(told.contains(expected) && !told.contains("hunter2"), "{expected}\nis not in\n{told}");
    }
    let named = format!("{GOOD}{CERTIFIED}{}", one("a", "payments", URI)).replace(
        "client_id = \"payments\"\nresource",
        "client_id = \"payments\"\nclient_auth = \"tls_client_auth\"\nresource",
    );
    assert!(mistakes(&named).join("\n").contains("an issuer is told of no key"));
}

#[test]
fn a_sealing_key_is_the_service_managers_or_lies_outside_the_state_directory() {
    // KEY-11, S9
    let with = |keys: &str| {
        GOOD.replace("environment = \"prod\"\n", &format!("environment = \"prod\"\n[keys]\n{keys}\n"))
    };
    let sealing = |keys: &str, environment: &[(&str, &str)]| {
        Desk::with(&with(keys)).load(environment).map(|settings| (settings.kept.sealing, settings.kept.home))
    };
    let (given, home) =
        sealing("", &[("CREDENTIALS_DIRECTORY", "/run/credentials/keybearer.service")]).unwrap();
    assert_eq!(given.credentials.as_deref(), Some(Path::new("/run/credentials/keybearer.service")));
    assert!(!given.required && given.key.is_none() && home.is_some());
    let (given, home) = sealing(
        "sealing_key = \"/etc/keybearer/key\"\nold_sealing_key = \"/etc/keybearer/old\"\nsealed = \"required\"\nclone_detection = false",
        &[],
    )
    .unwrap();
    assert_eq!(given.key.as_deref(), Some(Path::new("/etc/keybearer/key")));
    assert_eq!(given.old_key.as_deref(), Some(Path::new("/etc/keybearer/old")));
    assert!(given.required && given.credentials.is_none() && home.is_none());
    for (wrong, key) in [
        ("sealing_key = \"/var/lib/keybearer/sealing.key\"", "keys.sealing_key: whoever copies"),
        ("sealing_key = \"/etc/../var/lib/keybearer/key\"", "keys.sealing_key: whoever copies"),
        ("old_sealing_key = \"/var/lib/keybearer/keys/old\"", "keys.old_sealing_key: whoever copies"),
        ("sealing_key = \"key\"", "keys.sealing_key: it has to be an absolute path"),
        ("sealed = true", "keys.sealed: "),
        ("clone_detection = \"no\"", "keys.clone_detection: "),
    ] {
        let told = sealing(wrong, &[]).unwrap_err();
        assert!(told.len() == 1 && told[0].contains(key), "{wrong}: {told:?}");
    }
}

/// An EST server, and a certificate from it.
const EST: &str = r#"
[issuers.devices]
kind = "est"
url = "https://est.example.com"
roots = "/etc/keybearer/devices.pem"

[identities.payments.credentials.device]
issuer = "devices"
client_id = "payments"
client_auth = "bootstrap"
bootstrap = "/var/lib/keybearer/once"
certificate = { uri = ["spiffe://example.com/payments"] }
"#;

#[test]
fn an_est_server_has_roots_and_gives_certificates_to_those_it_can_know() {
    // EST-01, EST-02
    let whole = format!("{GOOD}{EST}");
    let settings = Desk::with(&whole).load(&[]).unwrap();
    assert!(
        matches!(&settings.issuers["devices"], IssuerSettings::Est(est) if est.csr_attributes && !est.dev)
    );
    let pin = format!("root_sha256 = \"{}\"", "ab".repeat(32));
    let pinned = whole.replace("roots = \"/etc/keybearer/devices.pem\"", &pin);
    Desk::with(&pinned).load(&[]).unwrap();
    for (from, to, key) in [
        ("roots = \"/etc/keybearer/devices.pem\"", "", "issuers.devices.roots"),
        ("roots = \"/etc/keybearer/devices.pem\"", "root_sha256 = \"ab\"", "issuers.devices.root_sha256"),
        ("url = \"https://est.example.com\"", "url = \"https://est.example.com/est\"", "issuers.devices.url"),
        ("kind = \"est\"", "kind = \"est\"\nlabel = \"simpleenroll\"", "issuers.devices.label"),
        ("kind = \"est\"", "kind = \"est\"\ndev = true", "issuers.devices.dev"),
        (
            "client_auth = \"bootstrap\"\nbootstrap = \"/var/lib/keybearer/once\"",
            "client_auth = \"private_key_jwt\"",
            "credentials.device.client_auth",
        ),
        ("/payments\"] }", "/payments\"], custody = \"memory\" }", "credentials.device.certificate.custody"),
        ("/payments\"] }", "/payments\"], at = \"pki\" }", "credentials.device.certificate.at"),
        (
            "certificate = { uri = [\"spiffe://example.com/payments\"] }",
            "lease = { at = \"a\" }",
            "device.certificate",
        ),
    ] {
        assert!(whole.contains(from), "{from}");
        let told = mistakes(&whole.replace(from, to));
        assert!(told.iter().any(|told| told.contains(key)), "{key} in {told:?}");
    }
    let both = whole.replace("roots = ", &format!("{pin}\nroots = "));
    assert!(mistakes(&both)[0].contains("not both"), "{:?}", mistakes(&both));
}

/// An ACME server, and a certificate from it.
const ACME: &str = r#"
[issuers.edge]
kind = "acme"
directory = "https://acme.example.com/directory"
roots = "/etc/keybearer/edge.pem"

[identities.payments.key]

[identities.payments.credentials.edge]
issuer = "edge"
client_id = "kid-1"
client_auth = "bootstrap"
bootstrap = "/var/lib/keybearer/once"
certificate = { dns = ["payments.example.com"] }
"#;

#[test]
fn an_acme_server_has_roots_and_certifies_names_of_hosts_for_a_key_that_stays() {
    // ACM-02, ACM-03
    let whole = format!("{}{ACME}", GOOD.replace("\nbinding = \"bearer\"", "\nclient_auth = \"federated_jwt\"\nassertion = { file = \"/t\", subject = \"s\" }\nbinding = \"bearer\""));
    let settings = Desk::with(&whole).load(&[]).unwrap();
    assert!(
        matches!(&settings.issuers["edge"], IssuerSettings::Acme(acme) if !acme.agree_to_terms && !acme.dev)
    );
    assert!(settings.keys["payments"].client, "the account's key is made, though no assertion needs it");
    for (from, to, key) in [
        ("roots = \"/etc/keybearer/edge.pem\"", "", "issuers.edge.roots"),
        ("directory = \"https", "directory = \"http", "issuers.edge.directory"),
        ("kind = \"acme\"", "kind = \"acme\"\ndev = true", "issuers.edge.dev"),
        (
            "{ dns = [\"payments.example.com\"] }",
            "{ uri = [\"spiffe://example.com/a\"] }",
            "edge.certificate.uri",
        ),
        ("com\"] }", "com\"], common_name = \"payments\" }", "edge.certificate.common_name"),
        ("certificate = { dns = [\"payments.example.com\"] }", "lease = { at = \"a\" }", "edge.certificate"),
        (
            "client_auth = \"bootstrap\"\nbootstrap = \"/var/lib/keybearer/once\"",
            "client_auth = \"tls_client_auth\"",
            "edge.client_auth",
        ),
        (
            "[identities.payments.key]",
            "[identities.payments.key]\ncustody = \"memory\"",
            "payments.key.custody",
        ),
    ] {
        assert!(whole.contains(from), "{from}");
        let told = mistakes(&whole.replace(from, to));
        assert!(told.iter().any(|told| told.contains(key)), "{key} in {told:?}");
    }
    for good in [
        "com\"], common_name = \"payments.example.com\" }",
        "com\"], at = \"shortlived\", ip = [\"192.0.2.7\"] }",
    ] {
        Desk::with(&whole.replace("com\"] }", good)).load(&[]).unwrap();
    }
}

#[test]
fn what_is_delivered_can_be_had() {
    let table = |lines: &str| format!("[identities.payments.deliver]\n{lines}");
    let good = "env = { LEDGER_TOKEN = \"ledger.token\", UNTIL = \"ledger.expires_at\" }\nat_rotation = { ledger = \"restart\" }";
    let settings = Desk::with(&format!("{GOOD}{CERTIFIED}{}", table(good))).load(&[]).unwrap();
    let identity = settings.policy.identities().find(|identity| &*identity.name == "payments").unwrap();
    assert_eq!(identity.delivery.env.len(), 2);
    for (line, key, word) in [
        ("env = { T = \"ledger.password\" }", "deliver.env.T", "authorization"),
        ("env = { T = \"nothing.token\" }", "deliver.env.T", "no credential"),
        ("env = { T = \"ledger\" }", "deliver.env.T", "CREDENTIAL.FIELD"),
        ("env = { \"T-1\" = \"ledger.token\" }", "deliver.env.T-1", "name of a variable"),
        ("env = { LD_PRELOAD = \"ledger.token\" }", "deliver.env.LD_PRELOAD", "loader_variables"),
        ("file = { T = \"vault.key\" }", "deliver.file.T", "key_export"),
        (
            "at_rotation = { ledger = \"restart\" }",
            "deliver.at_rotation.ledger",
            "nothing of this credential",
        ),
        ("at_rotation = { ledger = \"dance\" }", "deliver.at_rotation.ledger", "dance"),
        ("stop_signal = \"KILL\"", "deliver.stop_signal", "TERM"),
    ] {
        let mistakes = mistakes(&format!("{GOOD}{CERTIFIED}{}", table(line)));
        let key = format!("identities.payments.{key}:");
        let found = mistakes.iter().any(|mistake| mistake.contains(&key) && mistake.contains(word));
        assert!(found, "{line}: {mistakes:?}");
    }
}

#[test]
fn what_the_page_on_tools_says_to_paste_loads() {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/tools.md")).unwrap();
    let settings = page.split("```toml\n").nth(1).unwrap().split("```").next().unwrap();
    let settings = Desk::with(&format!("{GOOD}{settings}")).load(&[]).unwrap();
    let identity = settings.policy.identities().next().unwrap();
    assert_eq!(identity.credentials["forge"].username.as_deref(), Some("oauth2"));
}

#[test]
fn where_a_credential_may_be_taken_and_under_which_name() {
    let rule = |more: &str| {
        let text = format!("{GOOD}{more}\n");
        let settings = Desk::with(&text).load(&[]).unwrap();
        let identity = settings.policy.identities().next().unwrap();
        let ledger = &identity.credentials["ledger"];
        (ledger.proofs.origins.clone(), ledger.username.as_deref().map(str::to_owned))
    };
    assert_eq!(
        rule(""),
        (vec!["https://ledger.example.com".into()], None),
        "by default that of the resource"
    );
    let elsewhere = "origins = [\"https://git.example.com:8443\"]\nusername = \"oauth2\"";
    assert_eq!(rule(elsewhere), (vec!["https://git.example.com:8443".into()], Some("oauth2".into())));
    let plain = GOOD.replace("https://ledger.example.com", "http://ledger.example.com");
    let settings = Desk::with(&plain).load(&[]).unwrap();
    let identity = settings.policy.identities().next().unwrap();
    assert_eq!(identity.credentials["ledger"].proofs.origins, [""; 0], "nowhere by plain HTTP");
    for (more, told) in [
        ("origins = [\"http://git.example.com\"]", "ledger.origins: an origin is https://HOST"),
        ("origins = [\"https://git.example.com/x\"]", "ledger.origins: an origin is https://HOST"),
        ("origins = [\"https://Git.example.com\"]", "ledger.origins: an origin is https://HOST"),
        ("origins = [\"git.example.com\"]", "ledger.origins: an origin is https://HOST"),
        ("methods = [\"GET\"]", "ledger.methods: it is only used with"),
        (
            "username = \"u\"\n[identities.payments.credentials.bound]\nissuer = \"corp\"\nclient_id = \"payments\"\nresource = \"https://a.example\"\n\
          username = \"u\"",
            "bound.username: it is only used with binding = \"bearer\"",
        ),
        ("username = \"a:b\"", "ledger.username: it has to be 1 to 255 characters"),
        ("username = \"\"", "ledger.username: it has to be 1 to 255 characters"),
        ("username = \"a\\u0000\"", "ledger.username: it holds a control character"),
    ] {
        let mistakes = mistakes(&format!("{GOOD}{more}\n"));
        assert!(mistakes.iter().any(|mistake| mistake.contains(told)), "{more}: {mistakes:?}");
    }
}

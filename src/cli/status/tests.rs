use std::collections::HashMap;

use super::*;
use crate::proto::v1::{LedgerStatus, SealedStatus};

const PLAIN: Look = Look { painted: false, ascii: true, wrap: Some(WIDTH) };

fn length(seconds: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos: 0 })
}

fn moment(seconds: i64) -> Option<prost_types::Timestamp> {
    Some(prost_types::Timestamp { seconds, nanos: 0 })
}

fn identity(name: &str, credentials: &[&str]) -> IdentityStatus {
    IdentityStatus {
        name: name.into(),
        owner: format!("{name}@example.com"),
        assurance: "standard".into(),
        credentials: credentials.iter().map(ToString::to_string).collect(),
        kid: "kid-of-a-key".into(),
        algorithm: "ES256".into(),
        bindings: credentials.iter().map(|name| (name.to_string(), "dpop".to_owned())).collect(),
        ..IdentityStatus::default()
    }
}

fn shelved(identity: &str, credential: &str, left: i64) -> ShelfStatus {
    ShelfStatus {
        identity: identity.into(),
        credential: credential.into(),
        issuer: "corp".into(),
        expires_in: length(left),
        refresh_in: length(left / 2),
        ..ShelfStatus::default()
    }
}

/// A bad night: one issuer is away, one identity is off, an exception ends soon, the disk is full.
fn night() -> StatusResponse {
    let mut web = identity("web", &["api", "mail"]);
    web.disabled = "its host was broken into".into();
    let mut failing = shelved("shop", "orders", 240);
    failing.last_error = "the issuer answered 503 Service Unavailable".into();
    StatusResponse {
        version: "0.1.0".into(),
        environment: "prod".into(),
        config_digest: "0123456789abcdef".into(),
        uptime: length(3 * 3600),
        max_level: "L2".into(),
        max_level_why: "no systemd runs here to vouch for units".into(),
        identities: vec![web, identity("shop", &["orders", "bank"])],
        issuers: vec![
            IssuerStatus {
                name: "corp".into(),
                url: "https://issuer.corp.example".into(),
                state: "open".into(),
                failures: 6,
                next_try: length(40),
                last_error: "the issuer answered 503 Service Unavailable".into(),
                skew_ms: Some(-250),
                last_success: length(700),
                failing_for: length(600),
            },
            IssuerStatus { name: "ca".into(), state: "unused".into(), ..IssuerStatus::default() },
        ],
        shelf: vec![failing, shelved("shop", "orders", 90)],
        ledger: Some(LedgerStatus {
            directory: "/var/lib/keybearer/audit".into(),
            records: 1235,
            healthy: false,
            unsigned: 3,
            checkpoint_age: length(12),
        }),
        connections: 7,
        turned_away: 2,
        warnings: vec![
            "the ledger in /var/lib/keybearer/audit cannot be written: make room or mend it".into(),
            "old is in the settings no more, but its keys are there, and are not sealed, which nobody wants to have lying about: keybearer keys destroy old".into(),
            "shop.bank is bearer until 2026-12-01T00:00:00Z: the bank (owner a)".into(),
        ],
        sealed: vec![SealedStatus {
            identity: "web".into(),
            credential: "mail".into(),
            fields: vec!["password".into()],
            until: moment(1_782_864_000),
            ..SealedStatus::default()
        }],
        readiness: "down".into(),
        readiness_why: vec!["the ledger in /var/lib/keybearer/audit cannot be written".into()],
        exceptions: vec![ExceptionStatus {
            identity: "shop".into(),
            credential: "bank".into(),
            weakness: "bearer".into(),
            until: moment(1_796_083_200),
            left: length(5 * 86_400),
            reason: "the bank".into(),
            owner: "a".into(),
        }],
        descriptors: 34,
        descriptors_limit: 1024,
        memory: "locked: keys and tokens do not go to swap".into(),
        ..StatusResponse::default()
    }
}

#[test]
fn a_bad_night_reads_from_the_top() {
    let expected = "\
DOWN  keybearer 0.1.0, environment prod, up 3 h, settings 0123456789ab
  the ledger in /var/lib/keybearer/audit cannot be written
note  the ledger in /var/lib/keybearer/audit cannot be written: make room or mend it
note  old is in the settings no more, but its keys are there, and are not sealed, which nobody wants
      to have lying about: keybearer keys destroy old

issuers  state          for     failures  next try  last answer  clock
  ca     not asked yet
  corp   left alone     10 min  6         in 40 s   11 min ago   -0.2 s
      https://issuer.corp.example
      the issuer answered 503 Service Unavailable

identities  state  assurance  key             owner
  shop      on     standard   ES256 kid-of-a  shop@example.com
  web       off    standard   ES256 kid-of-a  web@example.com
      disabled: its host was broken into

credentials    state            bound by  ends in  refresh in  issuer
  shop.bank    not asked for    dpop
  shop.orders  2 live, failing  dpop      90 s     45 s        corp
      the issuer answered 503 Service Unavailable
  web.api      denied           dpop
  web.mail     denied           dpop

exceptions   is      until                 left       owner
  shop.bank  bearer  2026-12-01T00:00:00Z  soon, 5 d  a
      the bank

static secrets  fields    kept       until they are dynamic
  web.mail      password  not there  denied from 2026-07-01T00:00:00Z

ledger    cannot be written, last record 1234, signed 12 s ago, 3 records since,
          /var/lib/keybearer/audit
evidence  up to L2 only, L3 and L4 cannot be had: no systemd runs here to vouch for units
callers   34 of 1024 descriptors open, 7 connected, 2 turned away at the limits
memory    locked: keys and tokens do not go to swap";
    let lines = table(&night(), &PLAIN);
    let text = lines.join("\n");
    assert_eq!(text, expected, "\n{text}");
    assert!(lines.iter().all(|line| width(line) <= WIDTH));
}

#[test]
fn colour_says_nothing_that_words_do_not() {
    let painted = table(&night(), &Look { painted: true, ..PLAIN }).join("\n");
    assert!(painted.contains("\x1b[31mDOWN\x1b[0m"), "{painted}");
    let mut bare = painted;
    for code in ["0", "1", "2", "31", "32"] {
        bare = bare.replace(&format!("\x1b[{code}m"), "");
    }
    assert_eq!(bare, table(&night(), &PLAIN).join("\n"));
}

#[test]
fn what_strangers_and_settings_say_does_nothing_to_a_terminal() {
    let mut status = night();
    status.issuers[0].last_error = "\x1b[2Jgone\u{7}".into();
    status.identities[0].owner = "Zoë".into();
    status.warnings = vec!["two\nlines".into()];
    let ascii = table(&status, &PLAIN).join("\n");
    assert!(ascii.is_ascii() && !ascii.contains('\x1b') && ascii.contains("?[2Jgone?"), "{ascii}");
    assert!(ascii.contains("Zo?") && ascii.contains("note  two lines"), "{ascii}");
    assert!(table(&status, &Look { ascii: false, ..PLAIN }).join("\n").contains("Zoë"));
}

#[test]
fn a_command_stays_in_one_line_and_a_sentence_is_whole_where_nobody_breaks_lines() {
    assert_eq!(
        words("take it away: keybearer seal a b --remove; or not"),
        ["take", "it", "away:", "keybearer seal a b --remove;", "or", "not"]
    );
    let mut status = night();
    status.warnings = vec!["word ".repeat(60)];
    let lines = table(&status, &Look { wrap: None, ..PLAIN });
    assert_eq!(lines.iter().filter(|line| line.contains("word word")).count(), 1);
}

#[test]
fn an_agent_that_says_less_is_shown_as_far_as_it_goes() {
    let old = StatusResponse {
        version: "0.0.9".into(),
        identities: vec![IdentityStatus {
            name: "shop".into(),
            credentials: vec!["orders".into()],
            bindings: HashMap::new(),
            ..IdentityStatus::default()
        }],
        ..StatusResponse::default()
    };
    let text = table(&old, &PLAIN).join("\n");
    assert!(text.starts_with("RUNNING  keybearer 0.0.9") && text.contains("shop.orders"), "{text}");
    assert!(!text.contains("memory") && !text.contains("exceptions"), "{text}");
    // What lives on of a credential that the settings name no more.
    let text = table(&StatusResponse { shelf: vec![shelved("was", "here", 60)], ..old }, &PLAIN).join("\n");
    assert!(text.contains("was.here") && text.contains("live"), "{text}");
}

//! The theft drill (S9, S45): what is stolen from a workload, tried elsewhere, and for how long it is of use. The real command, row
//! by row, and then the two numbers that take time: a bound token is of no use for its whole life, a bearer token until it
//! ends and no longer.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::{process::Command, time::Duration};

use keybearer::{clock::SystemClock, proto::v1::credential::Kind};
use support::{Api, BINARY, Setup, demo_api, is_root, issuer, skip};

/// What the drill says of one theft: what came of it, and how long it was of use.
fn row<'a>(told: &'a str, stolen: &str, tried: &str) -> (&'a str, &'a str) {
    let columns = |line: &'a str| line.split("  ").map(str::trim).filter(|cell| !cell.is_empty());
    let rows = told.lines().map(|line| columns(line).collect::<Vec<_>>());
    let found = rows.filter(|row| row.len() == 4 && row[0] == stolen && row[1] == tried).collect::<Vec<_>>();
    assert_eq!(found.len(), 1, "{stolen}, {tried}:\n{told}");
    (found[0][2], found[0][3])
}

#[test]
fn what_is_stolen_is_of_no_use_but_for_what_the_drill_says() {
    // S9 (key file: 0 s, sealed), S45, KEY-11, TM-08, TM-12, TM-13, TM-14, TM-24
    let told = Command::new(BINARY).args(["dev", "--drill"]).output().unwrap();
    let text = String::from_utf8(told.stdout).unwrap();
    assert!(told.status.success(), "{text}\n{}", String::from_utf8_lossy(&told.stderr));
    const SEALED: &str = "it does not start: the key is sealed";
    let (connection, both) = ("open connection to the agent", "state directory and sealing key");
    for (stolen, tried, came) in [
        ("bound token", "without a proof", "401: send a DPoP header"),
        ("bound token", "as a bearer token", "401: the token is bound to a key"),
        ("bound token", "with a proof by the thief's key", "401: the proof is by another key"),
        ("token and proof", "the same request again", "401: the proof's jti was used before"),
        ("token and unused proof", "for another method", "401: the proof's htm is not the method"),
        ("token and unused proof", "at another API", "401: the proof's htu is not the URL"),
        ("token and unused proof", "the same a second time", "401: the proof's jti was used before"),
        (connection, "passed to another program", "the agent hung up"),
        ("environment, command line", "look for credentials", ""),
        ("handle of the token", "pasted into another program", "NOT_ENTITLED"),
        ("bearer token", "after the workload gave it back", "401: the token was revoked"),
        ("state directory", "custody = \"memory\": look for the key", "not among the 2 files there"),
        ("state directory", "custody = \"file\", sealed: run an agent on a copy", SEALED),
        ("state directory", "the same, with a sealing key of the thief's", SEALED),
        ("state directory", "sign in as the client with another key", "CLIENT_AUTH_REJECTED"),
        (both, "the same, once the key is replaced", "CLIENT_AUTH_REJECTED"),
    ] {
        let (said, of_use) = row(&text, stolen, tried);
        assert!(said.starts_with(came) && of_use == "0 s", "{stolen}, {tried}: {said}, {of_use}");
    }
    if is_root() {
        assert_eq!(row(&text, connection, "passed to another user"), ("the agent hung up", "0 s"), "{text}");
    } else {
        skip("a connection passed to another user", "only root can become another user");
    }
    // What is of use, as the documents say. If this fails because it is not, mend the documents.
    let seconds = |of_use: &str| of_use.strip_suffix(" s, until it ends").unwrap().parse::<u64>().unwrap();
    assert_eq!(row(&text, "token and unused proof", "the request it is for"), ("200", "1 request"));
    assert!((200..=300).contains(&seconds(row(&text, "bearer token", "as it is").1)), "{text}");
    let copied = row(&text, both, "run an agent on a copy");
    assert_eq!(copied, ("200, with a token of its own", "until the key is replaced"));
    assert!(seconds(row(&text, both, "the token got with it before that").1) <= 300);
    let hung_up =
        if is_root() { "2 connections cut (SENDER_CHANGED, SENDER_CHANGED)" } else { "1 connections cut" };
    assert!(text.contains(&format!("1 denied, {hung_up}")), "{text}");
}

/// What the API says to a token sent as `scheme` by whoever has it.
async fn stolen(api: &Api, scheme: &str, token: &str) -> u16 {
    api.get(&[("authorization", &format!("{scheme} {token}"))]).await.0
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bound_token_is_of_use_for_no_time_and_a_bearer_token_until_it_ends() {
    // S9: usable time after theft, measured over a whole life.
    const LIFE: u64 = 4;
    let (issuer, clock) = (issuer(LIFE), SystemClock::shared());
    let api = demo_api(&issuer);
    for bound in [true, false] {
        let setup = Setup::new(issuer.handle.url());
        let setup = if bound { setup.bound(&api.url) } else { setup };
        let agent = setup.start(Some(&issuer.handle));
        let before = clock.boot();
        let credential = agent.client().await.get("orders", &[]).await.unwrap();
        let Some(Kind::AccessToken(token)) = credential.kind else { panic!("not a token") };
        let (mut tries, mut used, mut last) = (0, 0, Duration::ZERO);
        // A second more than it lives, for the API counts whole ones.
        while clock.boot().since(before) < Duration::from_secs(LIFE + 1) {
            tries += 1;
            for scheme in ["DPoP", "Bearer"] {
                if stolen(&api, scheme, &token.token).await == 200 {
                    (used, last) = (used + 1, clock.boot().since(before));
                }
            }
        }
        println!("bound {bound}: {tries} tries, {used} of use, the last after {} ms", last.as_millis());
        assert!(tries > 20, "{tries}");
        if bound {
            assert_eq!(used, 0, "the last after {last:?}");
        } else {
            let whole = Duration::from_secs(LIFE);
            assert!(
                used > 10 && last > whole / 2 && last < whole + Duration::from_secs(1),
                "{used}, {last:?}"
            );
        }
    }
}

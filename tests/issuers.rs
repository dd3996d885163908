//! What an issuer can do to us, on the real binary: each row of ER and CLK, each lie of a hostile one, and that the trouble of
//! one is never the trouble of another's callers. Every row has an agent and an issuer of its own.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "support/scripted.rs"]
mod scripted;
mod support;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};
use keybearer::{audit::Record, clock::SystemClock};
use scripted::{Says, Scripted, json, metadata, token, with};
use serde_json::json as value;
use support::{RESOURCE, Setup, TestAgent, body, get};
use tokio::task::{JoinSet, spawn_blocking};

const PATH: &str = "/v1/credentials/orders";

/// What a caller is told, how often the issuer was asked, and when to come back.
#[derive(Debug, PartialEq)]
struct Seen {
    status: u16,
    reason: String,
    asked: usize,
    retry: bool,
}

/// Asks once; what the caller sees, and the record of it. Whatever the row, no token is in the answer of a refusal.
fn ask(agent: &TestAgent, issuer: &Scripted) -> (Seen, String, Record) {
    let (status, answer) = get(&agent.socket("http.sock"), PATH);
    let said = body(&answer);
    let reason = said["error"].as_str().unwrap_or_default().to_owned();
    assert_eq!(status == 200, said["access_token"].is_string(), "{answer}");
    let retry = answer.to_ascii_lowercase().contains("\r\nretry-after:");
    let record = agent.records().pop().unwrap();
    (Seen { status, reason, asked: issuer.asked(), retry }, answer, record)
}

struct Row {
    name: &'static str,
    says: Vec<u8>,
    status: u16,
    reason: &'static str,
    /// At least and at most.
    asked: (usize, usize),
    retry: bool,
}

fn row(name: &'static str, says: Vec<u8>, status: u16, reason: &'static str) -> Row {
    Row { name, says, status, reason, asked: (1, 1), retry: false }
}

/// Temporary trouble: tried again a few times, and the caller is told when to come back.
fn passing(name: &'static str, says: Vec<u8>, reason: &'static str) -> Row {
    Row { name, says, status: 503, reason, asked: (2, 5), retry: true }
}

fn error(status: u16, code: &str) -> Vec<u8> {
    json(
        status,
        &value!({"error": code, "error_description": "the \u{1b}[31mwords\r\n of the issuer"}).to_string(),
    )
}

async fn hold(rows: Vec<Row>) {
    let mut under_way = JoinSet::new();
    for row in rows {
        under_way.spawn_blocking(move || {
            let issuer = Scripted::start(Says::Bytes(row.says));
            let agent = Setup::new(&issuer.url).start(None);
            let (seen, answer, record) = ask(&agent, &issuer);
            let name = row.name;
            assert_eq!(
                (seen.status, seen.reason.as_str(), seen.retry),
                (row.status, row.reason, row.retry),
                "{name}: {answer}"
            );
            assert!((row.asked.0..=row.asked.1).contains(&seen.asked), "{name}: asked {} times", seen.asked);
            // ER-13: the issuer's own words are for the record, cleaned, and never for the caller.
            assert!(!answer.contains("words") && !answer.contains('\u{1b}'), "{name}: {answer}");
            let detail = record.entry.detail.clone().unwrap_or_default();
            assert!(detail.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' '), "{name}: {detail:?}");
            if row.status != 200 {
                assert_eq!(record.entry.event.reason.as_deref(), Some(row.reason), "{name}");
                assert!(record.entry.issuer_response.is_some(), "{name}: {record:?}");
                // Nothing was kept of it.
                assert!(
                    agent.records().iter().all(|record| {
                        record
                            .entry
                            .credential
                            .as_ref()
                            .is_none_or(|credential| credential.token_hash.is_none())
                    }),
                    "{name}"
                );
            }
            assert_eq!(get(&agent.socket("http.sock"), "/live").0, 200, "{name}: it lives");
            agent.verify().unwrap();
            println!("{name}: {} {}, asked {}", seen.status, seen.reason, seen.asked);
        });
    }
    while let Some(done) = under_way.join_next().await {
        done.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_issuer_refuses_is_told_by_its_row() {
    let slow_down = |status| with(status, "retry-after: 60\r\ncontent-type: application/json\r\n", "{}");
    let told_to_wait = |name, status, says, reason| Row { retry: true, ..row(name, says, status, reason) };
    let ended = |name, says| Row { retry: true, ..row(name, says, 503, "CLIENT_AUTH_REJECTED") };
    hold(vec![
        row("ER-01", error(400, "invalid_request"), 500, "AGENT_BUG_REQUEST"),
        ended("ER-02 401", error(401, "invalid_client")),
        ended("ER-02 400", error(400, "invalid_client")),
        ended("ER-02 403 without words", with(403, "", "")),
        ended("ER-02 401 in HTML", with(401, "content-type: text/html\r\n", "<p>words")),
        row("ER-03", error(400, "invalid_grant"), 409, "GRANT_REJECTED"),
        row("ER-04 client", error(400, "unauthorized_client"), 409, "ISSUER_CONFIG"),
        row("ER-04 grant", error(400, "unsupported_grant_type"), 409, "ISSUER_CONFIG"),
        row("ER-05", error(400, "invalid_scope"), 403, "SCOPE_DENIED"),
        row("ER-06", error(400, "invalid_target"), 403, "AUDIENCE_DENIED"),
        row("ER-07", error(400, "invalid_authorization_details"), 403, "RAR_DENIED"),
        told_to_wait("ER-08", 503, error(400, "invalid_dpop_proof"), "DPOP_REJECTED"),
        Row {
            asked: (2, 2),
            ..told_to_wait("ER-09", 503, error(400, "use_attestation_challenge"), "ATTESTATION_REJECTED")
        },
        Row {
            asked: (2, 2),
            ..told_to_wait("ER-09 fresh", 503, error(400, "use_fresh_attestation"), "ATTESTATION_REJECTED")
        },
        told_to_wait("ER-09 401", 503, error(401, "invalid_client_attestation"), "ATTESTATION_REJECTED"),
        Row { asked: (2, 2), ..row("ER-10", error(400, "jti_known"), 500, "ONE_TIME_REUSE") },
        told_to_wait("ER-11", 429, slow_down(429), "ISSUER_RATE_LIMIT"),
        told_to_wait("ER-12 503 with a time", 503, slow_down(503), "ISSUER_UNAVAILABLE"),
        passing("ER-12 500", error(500, "server_error"), "ISSUER_UNAVAILABLE"),
        passing(
            "ER-12 502 in HTML",
            with(502, "content-type: text/html\r\n", "<p>words"),
            "ISSUER_UNAVAILABLE",
        ),
        passing(
            "ER-12 cut off",
            b"HTTP/1.1 200 x\r\ncontent-length: 100\r\n\r\n{\"acc".to_vec(),
            "ISSUER_UNAVAILABLE",
        ),
        passing("ER-12 not JSON", json(200, "{\"access_token\": words"), "ISSUER_PROTOCOL"),
        passing(
            "ER-12 HTML with 200",
            with(200, "content-type: text/html\r\n", "<p>words"),
            "ISSUER_PROTOCOL",
        ),
    ])
    .await;
}

fn reply(members: serde_json::Value) -> Vec<u8> {
    let mut reply = value!({"access_token": "words-of-a-token", "token_type": "Bearer", "expires_in": 300});
    for (name, value) in members.as_object().unwrap() {
        reply[name] = value.clone();
    }
    json(200, &reply.to_string())
}

/// A JWT that nobody signed: its signature is for the API to check, its claims are held against the order.
fn jwt(claims: serde_json::Value) -> Vec<u8> {
    let now = SystemClock::shared().wall().as_second();
    let mut all = value!({"aud": RESOURCE, "iat": now, "exp": now + 300, "scope": "orders:read"});
    for (name, value) in claims.as_object().unwrap() {
        all[name] = value.clone();
    }
    let part = |text: String| BASE64URL.encode(text);
    let token =
        format!("{}.{}.c2ln", part(r#"{"alg":"ES256","typ":"at+jwt"}"#.into()), part(all.to_string()));
    reply(value!({"access_token": token}))
}

#[tokio::test(flavor = "multi_thread")]
async fn no_lie_of_an_issuer_becomes_a_credential() {
    let now = SystemClock::shared().wall().as_second();
    let deep = format!("{}1{}", "[".repeat(200), "]".repeat(200));
    let deep = format!(r#"{{"access_token":"words","token_type":"Bearer","x":{deep}}}"#);
    let twice = r#"{"access_token":"words","token_type":"Bearer","token_type":"Bearer","expires_in":300}"#;
    let bomb: String = (0..500).map(|n| format!("x-{n}: {}\r\n", "words".repeat(20))).collect();
    hold(
        vec![
            row("no token", reply(value!({"access_token": null})), 503, "ISSUER_PROTOCOL"),
            row(
                "a header line's end in the token",
                reply(value!({"access_token": "words\r\nx: y"})),
                503,
                "ISSUER_PROTOCOL",
            ),
            row("NUL in the token", reply(value!({"access_token": "words\0"})), 503, "ISSUER_PROTOCOL"),
            row(
                "a token of 17 KiB",
                reply(value!({"access_token": "w".repeat(17 << 10)})),
                503,
                "ISSUER_PROTOCOL",
            ),
            row("no token_type", reply(value!({"token_type": null})), 503, "ISSUER_PROTOCOL"),
            row("token_type of another kind", reply(value!({"token_type": "mac"})), 409, "TOKEN_NOT_BOUND"),
            row("token_type DPoP unasked", reply(value!({"token_type": "DPoP"})), 409, "TOKEN_NOT_BOUND"),
            row(
                "another issuer",
                reply(value!({"iss": "https://elsewhere.example"})),
                409,
                "ISSUER_MISMATCH",
            ),
            row("more scope", reply(value!({"scope": "orders:read admin"})), 409, "SCOPE_ESCALATED"),
            row("more scope inside", jwt(value!({"scope": "orders:read admin"})), 409, "SCOPE_ESCALATED"),
            row(
                "details nobody asked for",
                reply(value!({"authorization_details": [{"type": "all"}]})),
                409,
                "RAR_ESCALATED",
            ),
            row("another audience", jwt(value!({"aud": "https://elsewhere.example"})), 409, "AUD_MISMATCH"),
            row("no audience", jwt(value!({"aud": null})), 409, "AUD_MISMATCH"),
            row("bound to a key unasked", jwt(value!({"cnf": {"jkt": "x"}})), 409, "TOKEN_NOT_BOUND"),
            row("ended already", jwt(value!({"iat": now - 600, "exp": now - 300})), 503, "ISSUER_PROTOCOL"),
            row("CLK-04 expires_in 0", reply(value!({"expires_in": 0})), 503, "ISSUER_PROTOCOL"),
            row("CLK-04 expires_in -1", reply(value!({"expires_in": -1})), 503, "ISSUER_PROTOCOL"),
            row("CLK-04 expires_in in words", reply(value!({"expires_in": "soon"})), 503, "ISSUER_PROTOCOL"),
            row("a redirect", with(307, "location: http://127.0.0.1:1/\r\n", ""), 409, "ISSUER_REDIRECT"),
            passing("200 levels deep", json(200, &deep), "ISSUER_PROTOCOL"),
            passing("a member twice", json(200, twice), "ISSUER_PROTOCOL"),
            passing("2 MB", json(200, &format!(r#"{{"x":"{}"}}"#, "w".repeat(2 << 20))), "ISSUER_PROTOCOL"),
            passing("500 headers", with(200, &bomb, "{}"), "ISSUER_PROTOCOL"),
        ]
        .into_iter()
        .map(|row| Row { retry: row.status == 503, ..row })
        .collect(),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_life_is_read_leniently_and_used_strictly() {
    // CLK-04
    let rows = [
        (value!({"expires_in": null}), 60),
        (value!({"expires_in": "300"}), 300),
        (value!({"expires_in": 299.9}), 299),
        (value!({"expires_in": 1e9}), 3600),
    ];
    for (members, most) in rows {
        let seen = spawn_blocking(move || {
            let issuer = Scripted::start(Says::Bytes(reply(members)));
            let agent = Setup::new(&issuer.url).start(None);
            let (seen, answer, record) = ask(&agent, &issuer);
            (
                seen,
                body(&answer)["expires_in"].as_u64().unwrap(),
                record.entry.credential.unwrap().ttl_s.unwrap(),
            )
        });
        let (seen, left, recorded) = seen.await.unwrap();
        assert_eq!(seen.status, 200);
        assert!(left <= most && recorded <= most && recorded + 2 >= most, "{left} {recorded} of {most}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn metadata_that_lie_get_no_assertion() {
    // OA-01, OA-06, PKJ-03: nothing is signed for an issuer that cannot be told from another.
    let lies = |url: &str| {
        let good = metadata(url);
        [
            ("another issuer", json(200, &good.replacen(url, "http://127.0.0.1:2", 1)), "ISSUER_MISMATCH"),
            (
                "an endpoint elsewhere",
                json(200, &good.replace(&format!("{url}/token"), "http://elsewhere.example/token")),
                "ENDPOINT_FOREIGN",
            ),
            ("no endpoint", json(200, &good.replace("token_endpoint\"", "x\"")), "ISSUER_PROTOCOL"),
            (
                "other methods only",
                json(200, &good.replace("private_key_jwt", "client_secret_basic")),
                "ISSUER_CONFIG",
            ),
            ("a redirect", with(302, "location: http://127.0.0.1:2/\r\n", ""), "ISSUER_REDIRECT"),
        ]
    };
    let mut under_way = JoinSet::new();
    for n in 0..5 {
        under_way.spawn_blocking(move || {
            let issuer = Scripted::start(Says::Bytes(token()));
            let (name, says, reason) = lies(&issuer.url).into_iter().nth(n).unwrap();
            issuer.metadata_is(Says::Bytes(says));
            let agent = Setup::new(&issuer.url).start(None);
            let (seen, answer, _) = ask(&agent, &issuer);
            assert_eq!((seen.reason.as_str(), seen.asked), (reason, 0), "{name}: {answer}");
        });
    }
    while let Some(done) = under_way.join_next().await {
        done.unwrap();
    }
}

/// One more issuer, and an identity of another user that orders from it.
fn second_issuer(setup: Setup, url: &str) -> Setup {
    let until = jiff::Timestamp::from_second(SystemClock::shared().wall().as_second() + 86_400).unwrap();
    setup.and(&format!(
        r#"
[issuers.second]
kind = "oauth"
issuer = "{url}"
dev = true

[identities.shop.credentials.stock]
issuer = "second"
client_id = "shop"
resource = "{RESOURCE}"
scope = ["stock:read"]
binding = "bearer"
exception = {{ owner = "shop@example.com", reason = "a test", until = "{until:.0}" }}
"#
    ))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_trouble_of_one_issuer_delays_nobody_elses_callers() {
    let (stuck, sound) = (Scripted::start(Says::Nothing), Scripted::start(Says::Bytes(token())));
    let setup =
        second_issuer(Setup::new(&stuck.url), &sound.url).and("\n[limits]\nconnections_per_uid = 1000\n");
    let agent = setup.with("timeout = \"3s\"", "timeout = \"20s\"").start(None);
    let socket = agent.socket("http.sock");
    let mut waiting = JoinSet::new();
    for _ in 0..200 {
        let socket = socket.clone();
        waiting.spawn_blocking(move || get(&socket, PATH));
    }
    while stuck.waiting() == 0 {
        tokio::task::yield_now().await;
    }
    // All of these are answered while the other issuer still has its request open.
    let answers =
        spawn_blocking(move || (0..20).map(|_| get(&socket, "/v1/credentials/stock").0).collect::<Vec<_>>());
    assert_eq!(answers.await.unwrap(), [200; 20]);
    assert_eq!((stuck.waiting(), stuck.asked()), (1, 1), "200 callers are one request, which is still open");
    assert_eq!(waiting.len(), 200);
    assert!(waiting.try_join_next().is_none(), "and none of them has given up");
    drop(agent.kill());
    while waiting.join_next().await.is_some() {}
}

#[tokio::test(flavor = "multi_thread")]
async fn an_issuer_that_asked_for_time_gets_it_from_all_of_its_callers() {
    // CLK-06
    let issuer = Scripted::start(Says::Bytes(with(429, "retry-after: 600\r\n", "")));
    let sound = Scripted::start(Says::Bytes(token()));
    let agent = second_issuer(Setup::new(&issuer.url), &sound.url).start(None);
    let (first, ..) = ask(&agent, &issuer);
    assert_eq!((first.status, first.asked), (429, 1));
    // Another order of the same issuer is told so without a request; another issuer is none the wiser.
    let (status, answer) = get(&agent.socket("http.sock"), "/v1/credentials/orders?scope=orders:read");
    assert_eq!((status, issuer.asked()), (429, 1), "{answer}");
    let after = answer.lines().find_map(|line| line.strip_prefix("retry-after: ")).unwrap();
    assert!((590..=600).contains(&after.trim().parse::<u64>().unwrap()), "{after}");
    assert_eq!(get(&agent.socket("http.sock"), "/v1/credentials/stock").0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_signed_for_an_issuer_that_lives_in_another_hour() {
    // CLK-02, CLK-03
    let far = Scripted::skewed(Says::Bytes(token()), 3600);
    let agent = Setup::new(&far.url).start(None);
    let (seen, answer, record) = ask(&agent, &far);
    assert_eq!((seen.reason.as_str(), seen.asked), ("CLOCK_UNTRUSTED", 0), "{answer}");
    assert!(record.entry.detail.unwrap().contains("clock"));
    let status = String::from_utf8(agent.keybearer(&["status"]).stdout).unwrap();
    assert!(status.contains("clock") || status.contains("CLOCK"), "{status}");

    let near = Scripted::skewed(Says::Bytes(token()), 90);
    let agent = Setup::new(&near.url).start(None);
    assert_eq!(ask(&agent, &near).0.status, 200, "a minute and a half is corrected");
}

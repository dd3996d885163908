//! No secret in any log line, error, record or listing: a running agent at its most talkative is searched for what it
//! must never say (PKJ-15, AUD-05, BCP-04).
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::fs;

use keybearer::{dev::Fault, proto::v1::credential::Kind};
use support::{Setup, get, issuer};

#[tokio::test(flavor = "multi_thread")]
async fn a_talkative_agent_says_no_secret() {
    let issuer = issuer(300);
    let agent = Setup::new(issuer.handle.url()).start(Some(&issuer.handle));
    let mut client = agent.client().await;
    let credential = client.get("orders", &[]).await.unwrap();
    let Some(Kind::AccessToken(token)) = &credential.kind else { panic!("not a token") };
    get(&agent.socket("http.sock"), "/v1/credentials/orders");
    // What an issuer says in anger must not be repeated either.
    issuer.handle.set_fault(Fault::Garbage, None);
    client.get("orders", &["orders:read".into()]).await.unwrap_err();
    issuer.handle.set_fault(Fault::InvalidClient, None);
    client.get("orders", &["orders:write".into()]).await.unwrap_err();

    let mut said = String::new();
    for arguments in [
        &["status"][..],
        &["status", "--json"],
        &["whoami"],
        &["explain", "--pid", "1", "orders"],
        &["audit", "tail", "--json", "-n", "1000"],
        &["audit", "explain", "2"],
        &["keys", "list"],
        &["keys", "export"],
    ] {
        let output = agent.keybearer(arguments);
        said.push_str(&String::from_utf8_lossy(&output.stdout));
        said.push_str(&String::from_utf8_lossy(&output.stderr));
    }
    let pid = agent.pid();
    for file in ["cmdline", "environ"] {
        said.push_str(&String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default()));
    }
    let (state, ledger) = (agent.dir.path().join("state"), agent.ledger().join("ledger.jsonl"));
    said.push_str(&fs::read_to_string(ledger).unwrap());
    let key = fs::read_to_string(state.join("keys/shop.client-auth.pem")).unwrap();
    let (_, log) = agent.stop();
    assert!(log.contains("ready"), "the log was really captured, at TRACE");
    said.push_str(&log);

    let signature = token.token.rsplit('.').next().unwrap();
    assert!(!said.contains(signature), "the token's signature");
    assert!(!said.contains(&token.token), "the token");
    // The body of the key, line by line; its first line is the same for every P-256 key's header.
    for line in key.lines().filter(|line| !line.starts_with("-----")) {
        assert!(!said.contains(line), "a line of the private key");
    }
    // Any JWT at all: assertions are of no use to anybody but their issuer.
    for word in said.split(|c: char| !(c.is_ascii_alphanumeric() || "-_.".contains(c))) {
        let jwt = word.starts_with("eyJ") && word.matches('.').count() == 2;
        assert!(!jwt, "a JWT was said: {}..", word.get(..20).unwrap_or(word));
    }
    assert!(said.contains(&credential.fingerprint), "what may be said is said");
}

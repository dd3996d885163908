//! Bound tokens from end to end, on the real binary with the development issuer and the demo API: what they open, what no proof
//! is made for, whom nothing is made for, and what becomes of issuers that do not bind.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "support/puppet.rs"]
mod puppet;
mod support;

use std::{fs, process::Command, time::Duration};

use keybearer::{
    audit::{Entry, EventType, Outcome},
    dev::Fault,
    jose::Unverified,
    proto::v1::{Credential, credential::Kind},
};
use puppet::Puppet;
use ring::digest;
use serde_json::Value;
use support::{
    Api, BINARY, Issuer, Setup, TestAgent, attacker, body, demo_api, get, install, issuer, jwt_in,
    register_as,
};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// An agent whose tokens are bound, for the demo API.
fn bound(issuer: &Issuer) -> (Api, TestAgent) {
    let api = demo_api(issuer);
    let agent = Setup::new(issuer.handle.url()).bound(&api.url).start(Some(&issuer.handle));
    (api, agent)
}

fn token(credential: &Credential) -> &str {
    let Some(Kind::AccessToken(token)) = &credential.kind else { panic!("not a token") };
    assert_eq!((token.token_type.as_str(), credential.binding.as_str()), ("DPoP", "dpop"));
    &token.token
}

/// One call with a proof: the status, and the nonce that the API wants next.
async fn call(api: &Api, credential: &Credential, proof: &str) -> (u16, Option<String>) {
    let authorization = format!("DPoP {}", token(credential));
    let (status, nonce, _) = api.get(&[("authorization", &authorization), ("dpop", proof)]).await;
    (status, nonce)
}

fn reason(no: &Status) -> (Code, String) {
    (no.code(), no.get_details_error_info().map(|info| info.reason).unwrap_or_default())
}

/// What is on record about proofs.
fn mints(agent: &TestAgent) -> Vec<Entry> {
    let entries = agent.records().into_iter().map(|record| record.entry);
    entries.filter(|entry| entry.event.kind == EventType::ProofMint).collect()
}

/// What is on record about askings in vain.
fn failures(agent: &TestAgent) -> Vec<String> {
    let events = agent.records().into_iter().map(|record| record.entry.event);
    events.filter(|event| event.kind == EventType::IssueFailure).filter_map(|event| event.reason).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_and_its_proof_open_the_api() {
    // S4, DPOP-05 to DPOP-09, DPOP-11, DPOP-12, DPOP-26
    let issuer = issuer(300);
    let (api, agent) = bound(&issuer);
    let mut client = agent.client().await;
    let credential = client.get("orders", &[]).await.unwrap();
    let claims: Value = Unverified::parse(token(&credential)).unwrap().claims().unwrap();
    let issued =
        agent.records().into_iter().find(|record| record.entry.event.kind == EventType::CredentialIssue);
    let what = issued.unwrap().entry.credential.unwrap();
    assert_eq!(
        what.thumbprint.as_deref(),
        claims["cnf"]["jkt"].as_str(),
        "bound, and on record to which key"
    );
    assert!(what.thumbprint.is_some());

    // The issuer wanted a nonce, and got assertion and proof anew.
    let diary = issuer.handle.diary();
    let asked: Vec<_> = diary.entries.iter().filter(|entry| entry.path == "/token").collect();
    assert_eq!(
        asked.iter().map(|entry| entry.outcome.as_str()).collect::<Vec<_>>(),
        ["use_dpop_nonce", "ok"]
    );
    assert_ne!(asked[0].jti, asked[1].jti);
    assert_ne!(asked[0].proof.as_ref().unwrap().jti, asked[1].proof.as_ref().unwrap().jti);

    // So does the API; whoever hands its nonce back is served, and it is remembered.
    let url = api.orders();
    let first = client.prove(&credential, "GET", &url, None).await.unwrap();
    let (status, nonce) = call(&api, &credential, &first).await;
    assert_eq!(status, 401);
    let second = client.prove(&credential, "GET", &url, nonce.as_deref()).await.unwrap();
    assert_eq!(call(&api, &credential, &second).await, (200, None));
    let third = client.prove(&credential, "GET", &format!("{url}?id=7#top"), None).await.unwrap();
    assert_eq!(call(&api, &credential, &third).await, (200, None));

    // By every way in.
    let path =
        format!("/v1/credentials/orders/proof?fingerprint={}&method=GET&url={url}", credential.fingerprint);
    let (status, answer) = get(&agent.socket("http.sock"), &path);
    assert_eq!(status, 200, "{answer}");
    assert_eq!(call(&api, &credential, body(&answer)["proof"].as_str().unwrap()).await.0, 200);
    let printed = agent.keybearer(&["prove", "orders", "GET", &url]);
    let printed = String::from_utf8(printed.stdout).unwrap();
    let headers: Vec<(&str, &str)> = printed.lines().filter_map(|line| line.split_once(": ")).collect();
    assert_eq!(headers.len(), 2, "{printed}");
    assert_eq!(api.get(&headers).await.0, 200);

    let mints = mints(&agent);
    assert_eq!(mints.len(), 5, "one record each");
    let target = mints[1].target.clone().unwrap();
    assert_eq!((target.htm.as_str(), target.origin.as_str()), ("GET", api.url.as_str()));
    assert!(mints.iter().all(|mint| mint.target.as_ref().unwrap().jti_hash.is_some()));
    agent.verify().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn no_proof_is_made_for_an_issuer_another_origin_or_another_method() {
    // DPOP-19, DPOP-20, DPOP-21, DPOP-25: the settings even name the issuer among the origins.
    let issuer = issuer(300);
    let api = demo_api(&issuer);
    let (own, at) = (format!("origins = [\"{}\"]", api.url), issuer.handle.url());
    let both = format!("origins = [\"{}\", \"{at}\"]", api.url);
    let setup = Setup::new(at).bound(&api.url).with(&own, &both);
    let agent = setup.start(Some(&issuer.handle));
    let mut client = agent.client().await;
    let credential = client.get("orders", &[]).await.unwrap();
    let orders = api.orders();
    let (foreign, method, off) = ("HTU_NOT_ALLOWED", "HTM_NOT_ALLOWED", Code::PermissionDenied);
    for (wanted, url, why) in [
        ("POST", format!("{at}/token"), foreign),
        ("POST", format!("{at}/x/../token?a=b"), foreign),
        ("POST", format!("{at}/%74oken"), foreign),
        ("POST", format!("{at}/revoke"), foreign),
        ("POST", format!("{at}/introspect"), foreign),
        ("GET", "https://other.example/orders".into(), foreign),
        ("GET", orders.replace("http:", "https:"), foreign),
        ("GET", orders.replace("127.0.0.1", "localhost"), foreign),
        ("CONNECT", orders.clone(), method),
        ("TRACE", orders.clone(), method),
        ("get", orders.clone(), method),
    ] {
        let no = client.prove(&credential, wanted, &url, None).await.unwrap_err();
        assert_eq!(reason(&no), (off, why.into()), "{wanted} {url}");
    }
    for (url, nonce) in [
        (orders.as_str(), "a b"),
        (&orders, "a\r\nb: c"),
        (&orders, "a\u{1}b"),
        (&orders, "a\"b"),
        ("ftp://api.example/", "n"),
        ("/orders", "n"),
    ] {
        let no = client.prove(&credential, "GET", url, Some(nonce)).await.unwrap_err();
        assert_eq!(no.code(), Code::InvalidArgument, "{url} {nonce:?}");
    }
    let refused = mints(&agent);
    assert!(refused.is_empty() || refused.iter().all(|mint| mint.event.outcome == Outcome::Denied));
    let denials = agent.records().into_iter().filter(|record| {
        matches!(record.entry.event.kind, EventType::Denial | EventType::ProofMint)
            && record.entry.event.outcome == Outcome::Denied
    });
    assert_eq!(denials.count(), 11, "each on record");
    client.prove(&credential, "GET", &orders, None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_handle_of_another_identity_makes_no_proof() {
    // DPOP-18, S12, S45
    let issuer = issuer(300);
    let api = demo_api(&issuer);
    let dir = tempfile::tempdir().unwrap();
    let own = fs::read(BINARY).unwrap();
    let (other, copy) = ([&own[..], &[0]].concat(), dir.path().join("cart"));
    fs::write(dir.path().join("bytes"), &other).unwrap();
    install(&dir.path().join("bytes"), &copy);
    let uid = rustix::process::geteuid().as_raw();
    let only = |program: &[u8]| {
        let sum = digest::digest(&digest::SHA256, program);
        format!("match = {{ uid = {uid}, sha256 = \"{}\" }}", keybearer::secret::hex(sum.as_ref()))
    };
    let setup = Setup::matching(issuer.handle.url(), &only(&own)).also("cart", "interim", &only(&other));
    let setup = setup.bound(&api.url);
    let agent = setup.start(Some(&issuer.handle));
    register_as(&issuer.handle, &agent.dir.path().join("agent.toml"), "cart");

    let (mut shop, mut cart) = (Puppet::start(&agent), Puppet::of(&copy, &agent));
    let ((_, shops), (_, carts)) = (shop.get(), cart.get());
    assert_ne!(shops, carts);
    let prove = |who: &mut Puppet, what: &str| who.ask(&format!("prove orders {what} GET {}", api.orders()));
    assert!(prove(&mut shop, &shops)["proof"].is_string() && prove(&mut cart, &carts)["proof"].is_string());
    assert_eq!(prove(&mut cart, &shops)["error"], "NOT_HELD");
    assert_eq!(prove(&mut shop, &carts)["error"], "NOT_HELD");
    let refused = mints(&agent).pop().unwrap();
    assert_eq!((refused.event.outcome, refused.event.reason.as_deref()), (Outcome::Denied, Some("NOT_HELD")));
    assert_eq!((refused.workload.unwrap().id.as_str(), refused.peer.unwrap().pid), ("shop", shop.pid()));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_proof_leaves_for_a_process_that_is_gone_or_to_another() {
    // DPOP-23: the attackers of E1, E3 and E10 ask for a proof on a connection that was another's.
    let issuer = issuer(300);
    let (api, agent) = bound(&issuer);
    let credential = agent.client().await.get("orders", &[]).await.unwrap();
    let path = format!(
        "/v1/credentials/orders/proof?fingerprint={}&method=GET&url={}",
        credential.fingerprint,
        api.orders()
    );
    let ask = |experiment: &str| {
        let mut command = Command::new(attacker(&agent));
        let output = command.arg(experiment).arg(agent.socket("http.sock")).arg(&path).output().unwrap();
        let said: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(said["ran"], true, "{experiment}: {said}");
        said["answer"].as_str().unwrap().to_owned()
    };
    assert!(ask("honest").contains("\"proof\":\"eyJ"), "the control");
    let made = mints(&agent).len();
    for experiment in ["E1", "E3", "E10"] {
        let answer = ask(experiment);
        assert!(!answer.contains("eyJ"), "{experiment}: {answer}");
    }
    assert_eq!(mints(&agent).len(), made, "none was made");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_for_too_many_proofs_is_told_when_to_come_back() {
    // DPOP-22
    let issuer = issuer(300);
    let (api, agent) = bound(&issuer);
    let mut client = agent.client().await;
    let credential = client.get("orders", &[]).await.unwrap();
    let (url, mut asked) = (api.orders(), 0);
    let no = 'asking: loop {
        let mut burst = tokio::task::JoinSet::new();
        for _ in 0..100 {
            let (mut client, credential, url) = (client.clone(), credential.clone(), url.clone());
            burst.spawn(async move { client.prove(&credential, "GET", &url, None).await });
        }
        for answer in burst.join_all().await {
            asked += 1;
            if let Err(no) = answer {
                break 'asking no;
            }
        }
        assert!(asked < 20_000, "nobody was told to slow down");
    };
    assert!(asked > 400, "{asked} are not too many");
    assert_eq!(reason(&no), (Code::ResourceExhausted, "PROOF_RATE".into()));
    let wait = no.get_details_retry_info().unwrap().retry_delay.unwrap();
    assert!(!wait.is_zero() && wait.as_secs() < 5, "{wait:?}");
    let refused = mints(&agent).into_iter().find(|mint| mint.event.outcome == Outcome::Denied).unwrap();
    assert_eq!(refused.event.reason.as_deref(), Some("PROOF_RATE"));
    // Credentials are not proofs, and neither is refused for ever.
    client.get("orders", &[]).await.unwrap();
    // It is the agent who says how long.
    tokio::time::sleep(wait).await;
    client.prove(&credential, "GET", &url, None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn neither_proofs_nor_tokens_stand_in_a_log_or_the_ledger() {
    // DPOP-26, AUD-05
    let issuer = issuer(300);
    let (api, agent) = bound(&issuer);
    let mut client = agent.client().await;
    let credential = client.get("orders", &[]).await.unwrap();
    let nonce =
        call(&api, &credential, &client.prove(&credential, "GET", &api.orders(), None).await.unwrap())
            .await
            .1;
    let proof = client.prove(&credential, "GET", &api.orders(), nonce.as_deref()).await.unwrap();
    let path =
        format!("/v1/credentials/orders/proof?fingerprint={}&method=GET&url=x", credential.fingerprint);
    assert_eq!(get(&agent.socket("http.sock"), &path).0, 400);
    let other = client.prove(&credential, "GET", "https://other.example/", None).await.unwrap_err();
    let mut said = format!("{other} {other:?}");
    for arguments in
        [&["status", "--json"][..], &["audit", "tail", "--json", "-n", "1000"], &["audit", "explain", "4"]]
    {
        said.push_str(&String::from_utf8(agent.keybearer(arguments).stdout).unwrap());
    }
    for file in fs::read_dir(agent.ledger()).unwrap() {
        said.push_str(&String::from_utf8_lossy(&fs::read(file.unwrap().path()).unwrap()));
    }
    let jti: Value = Unverified::parse(&proof).unwrap().claims().unwrap();
    let (_, log) = agent.stop();
    assert!(log.contains("ready"), "the log was really captured, at TRACE");
    said.push_str(&log);
    assert_eq!(jwt_in(&said), None, "a JWT was said");
    for (what, secret) in [
        ("the proof's jti", jti["jti"].as_str().unwrap()),
        ("the API's nonce", nonce.as_deref().unwrap()),
        ("the proof's signature", proof.rsplit('.').next().unwrap()),
        ("the token's signature", token(&credential).rsplit('.').next().unwrap()),
    ] {
        assert!(secret.len() > 20 && !said.contains(secret), "{what} was said");
    }
    assert!(said.contains(&credential.fingerprint), "what may be said is said");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_not_bound_as_it_was_ordered_is_refused_and_the_old_one_kept() {
    // S4, DPOP-04, DPOP-05, MT-07
    for fault in [Fault::Unbound, Fault::ForeignCnf] {
        let issuer = issuer(300);
        let (api, agent) = bound(&issuer);
        let mut client = agent.client().await;
        let before = client.get("orders", &[]).await.unwrap();
        let asked = issuer.handle.diary().requests("/token");
        issuer.handle.set_fault(fault.clone(), None);
        // More life than is left: the issuer is asked again, once what it gave is not the freshest that is to be had.
        let no = loop {
            let no = client.get_living("orders", &[], Duration::from_secs(300)).await.unwrap_err();
            if reason(&no).1 != "TTL_UNMET" {
                break no;
            }
        };
        assert_eq!(reason(&no), (Code::FailedPrecondition, "TOKEN_NOT_BOUND".into()), "{fault:?}");
        assert_eq!(issuer.handle.diary().requests("/token"), asked + 1, "{fault:?}");
        assert_eq!(failures(&agent).pop().as_deref(), Some("TOKEN_NOT_BOUND"), "{fault:?}");
        let during = client.get("orders", &[]).await.unwrap();
        assert_eq!(during.fingerprint, before.fingerprint, "{fault:?}");
        let nonce =
            call(&api, &before, &client.prove(&before, "GET", &api.orders(), None).await.unwrap()).await.1;
        let proof = client.prove(&before, "GET", &api.orders(), nonce.as_deref()).await.unwrap();
        assert_eq!(call(&api, &before, &proof).await.0, 200, "what was kept is good");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_issuer_whose_nonces_cannot_be_used_gives_nothing() {
    // DPOP-07, DPOP-09, DPOP-10: nobody is asked for ever, and a nonce that is none goes nowhere.
    for (fault, requests) in
        [(Fault::BadNonce, 1), (Fault::TwoNonces, 1), (Fault::NoNonceHeader, 1), (Fault::StubbornNonce, 2)]
    {
        let issuer = issuer(300);
        let (_api, agent) = bound(&issuer);
        let mut client = agent.client().await;
        issuer.handle.set_fault(fault.clone(), None);
        let no = client.get("orders", &[]).await.unwrap_err();
        assert_eq!(reason(&no).1, "DPOP_REJECTED", "{fault:?}: {no:?}");
        assert_eq!(failures(&agent), ["DPOP_REJECTED"], "{fault:?}");
        assert_eq!(issuer.handle.diary().requests("/token"), requests, "{fault:?}");
        let proofs = issuer.handle.diary().entries.into_iter().filter_map(|entry| entry.proof?.jti);
        let mut proofs: Vec<String> = proofs.collect();
        proofs.dedup();
        assert_eq!(proofs.len() as u64, requests, "{fault:?}: each with a proof of its own");
    }
}

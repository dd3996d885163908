//! Certificates from a CA on the real binary: had and kept fresh, shown without their key, outliving their CA for a while, and
//! ended with the right to them.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::{collections::BTreeSet, fs, path::PathBuf, time::Duration};

use keybearer::{
    audit::EventType,
    dev::{Client, Fault},
    jose::{Algorithm, PublicKey},
    proto::v1::{Credential, credential::Kind},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use serde_json::Value;
use support::{Issuer, Setup, TestAgent, body, get, issuer};
use tonic::Code;

const NAME: &str = "spiffe://example.org/shop";

/// An agent that has a certificate of the issuer's CA, which lives for so many seconds.
fn setup(issuer: &Issuer, life: u64) -> Setup {
    let (url, sum) = (issuer.handle.url(), issuer.handle.root_sum());
    Setup::new(url).and(&format!(
        r#"
[issuers.mesh]
kind = "step-ca"
url = "{url}"
root_sha256 = "{sum}"
dev = true
timeout = "3s"

[identities.shop.credentials.tls]
issuer = "mesh"
client_id = "shop"
certificate = {{ uri = ["{NAME}"] }}
max_ttl = "{life}s"
"#
    ))
}

/// The keys of the identity, as the real command exports them, registered with the name that its certificates say.
fn register(issuer: &Issuer, setup: &Setup) {
    let config = setup.write();
    let exported = std::process::Command::new(support::BINARY)
        .args(["keys", "export", "--config"])
        .arg(&config)
        .output()
        .unwrap();
    assert!(exported.status.success(), "{exported:?}");
    let jwks: Value = serde_json::from_slice(&exported.stdout).unwrap();
    let keys = jwks["keys"].as_array().unwrap().iter().map(|jwk| {
        let algorithm: Algorithm = jwk["alg"].as_str().unwrap().parse().unwrap();
        (PublicKey::from_jwk(jwk).unwrap(), algorithm)
    });
    issuer
        .handle
        .register(Client {
            client_id: "shop".into(),
            keys: keys.collect(),
            scope: vec!["orders:read".into(), "orders:write".into()],
            resources: vec![support::RESOURCE.into()],
            certificate_names: vec![NAME.into()],
            ..Client::default()
        })
        .unwrap();
}

fn start(issuer: &Issuer, setup: &Setup) -> TestAgent {
    register(issuer, setup);
    setup.start(None)
}

fn kept(agent: &TestAgent) -> PathBuf {
    agent.dir.path().join("state/keys/shop.tls.certificate.pem")
}

/// How many certificates the CA has made for the agent, and how many of these are revoked.
fn made(issuer: &Issuer) -> (usize, usize) {
    let all = issuer.handle.certificates("shop");
    (all.len(), all.iter().filter(|(_, revoked)| *revoked).count())
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    for _ in 0..400 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("in vain: {what}");
}

fn chain_of(credential: &Credential) -> (String, String) {
    let shown = credential.client_certificate.clone().unwrap();
    (shown.chain_pem, shown.key_pem)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_comes_with_its_chain_and_bundle_and_with_the_key_only_where_that_is_allowed() {
    // X5-02, MT-11
    let issuer = issuer(300);
    let setup = setup(&issuer, 3600).and(&format!(
        r#"
[identities.shop.credentials.open]
issuer = "mesh"
client_id = "shop"
certificate = {{ uri = ["{NAME}"], custody = "memory" }}
max_ttl = "1h"
key_export = "allowed"
"#
    ));
    let agent = start(&issuer, &setup);
    let mut client = agent.client().await;
    let (closed, open) = (client.get("tls", &[]).await.unwrap(), client.get("open", &[]).await.unwrap());
    let Some(Kind::X509Certificate(certificate)) = &closed.kind else { panic!("a certificate") };
    assert_eq!(certificate.bundle_pem.matches("BEGIN CERTIFICATE").count(), 1);
    assert_eq!((closed.binding.as_str(), closed.audience.as_str()), ("mtls", ""));
    let (chain, key) = chain_of(&closed);
    assert_eq!((chain.matches("BEGIN CERTIFICATE").count(), key.as_str()), (2, ""), "with the intermediate");
    assert!(fs::read_to_string(kept(&agent)).unwrap().contains(chain.lines().nth(1).unwrap()));
    // Where the key goes out, it is the one of the certificate.
    let (chain, key) = chain_of(&open);
    let ders = CertificateDer::pem_slice_iter(chain.as_bytes()).collect::<Result<Vec<_>, _>>().unwrap();
    let private = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let provider = rustls::crypto::ring::default_provider();
    rustls::sign::CertifiedKey::from_der(ders, private, &provider).unwrap();
    let by_http = |name: &str| body(&get(&agent.socket("http.sock"), &format!("/v1/credentials/{name}")).1);
    assert_eq!(by_http("tls")["client_certificate"]["key_pem"], Value::Null);
    assert_eq!(by_http("open")["client_certificate"]["key_pem"], key);
    // Each time it went out is on record, and no other time.
    let reasons = |name: &str| -> BTreeSet<Option<String>> {
        let records = agent.records_but_of_people().into_iter().filter(|record| {
            // Had before anybody asked, it went out to nobody.
            record.entry.event.kind != EventType::CredentialRenew
                && record.entry.credential.as_ref().is_some_and(|what| what.name.as_deref() == Some(name))
        });
        records.map(|record| record.entry.event.reason).collect()
    };
    assert_eq!(reasons("open"), [Some("KEY_EXPORTED".to_owned())].into());
    assert_eq!(reasons("tls"), [None].into());
    let ledger = agent.ledger();
    let dir = std::sync::Arc::clone(&agent.dir);
    let secrets = [key.lines().nth(1).unwrap().to_owned(), {
        let kept = fs::read_to_string(kept(&agent)).unwrap();
        kept.lines().nth(1).unwrap().to_owned()
    }];
    let (code, log) = agent.stop();
    assert_eq!(code, Some(0));
    let state = fs::read_dir(&ledger).unwrap().map(|file| fs::read(file.unwrap().path()).unwrap());
    for text in state.chain([log.into_bytes()]) {
        let text = String::from_utf8_lossy(&text);
        assert!(
            secrets.iter().all(|secret| !text.contains(secret.as_str())),
            "a key is on record or in the log"
        );
    }
    drop(dir);
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_kept_fresh_and_outlives_its_ca_until_it_ends() {
    // X5-03, X5-05, CA-02
    let issuer = issuer(300);
    let agent = start(&issuer, &setup(&issuer, 10));
    let mut client = agent.client().await;
    let mut stream = client.watch("tls", &[]).await.unwrap();
    let mut next = async || stream.message().await.unwrap().unwrap().credential.unwrap();
    let (first, second) = (next().await, next().await);
    assert_ne!(first.thumbprint, second.thumbprint);
    let keys = [&first, &second].map(|credential| {
        let der = CertificateDer::from_pem_slice(chain_of(credential).0.as_bytes()).unwrap();
        x509_parser::parse_x509_certificate(&der).unwrap().1.public_key().raw.to_vec()
    });
    assert_ne!(keys[0], keys[1], "with a key of its own");
    assert_eq!(made(&issuer).1, 0, "the one before ends by itself");
    // The CA is down: what is live is handed out until it ends, and no longer.
    issuer.handle.set_fault(Fault::Unavailable, None);
    let mut client = agent.client().await;
    assert_eq!(client.get("tls", &[]).await.unwrap().thumbprint, second.thumbprint);
    let gone = loop {
        match client.get("tls", &[]).await {
            Ok(live) => assert_eq!(live.thumbprint, second.thumbprint),
            Err(status) => break status,
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_eq!(gone.code(), Code::Unavailable, "{gone:?}");
    // Back: what has ended is asked for as if for the first time.
    issuer.handle.set_fault(Fault::None, None);
    let third = next().await;
    assert!(![&first, &second].iter().any(|old| old.thumbprint == third.thumbprint));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_without_the_ca_takes_up_what_is_kept() {
    // X5-03, CA-03
    let issuer = issuer(300);
    let agent = start(&issuer, &setup(&issuer, 3600));
    let before = agent.client().await.get("tls", &[]).await.unwrap();
    let dir = std::sync::Arc::clone(&agent.dir);
    agent.stop();
    let url = issuer.handle.url().to_owned();
    drop(issuer);
    until("the CA is gone", || std::net::TcpStream::connect(url.trim_start_matches("http://")).is_err())
        .await;
    let agent = TestAgent::start(dir);
    assert_eq!(agent.client().await.get("tls", &[]).await.unwrap().thumbprint, before.thumbprint);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_settings_no_longer_name_is_revoked_once_and_kept_no_more() {
    // X5-07
    let issuer = issuer(300);
    let setup = setup(&issuer, 3600);
    let agent = start(&issuer, &setup);
    agent.client().await.get("tls", &[]).await.unwrap();
    assert!(kept(&agent).exists());
    assert_eq!(made(&issuer), (1, 0));
    // The CA is down when it happens: it is told when it is back.
    issuer.handle.set_fault(Fault::Unavailable, Some(2));
    let config = agent.dir.path().join("agent.toml");
    let text = fs::read_to_string(&config).unwrap();
    let (without, _) = text.split_once("[identities.shop.credentials.tls]").unwrap();
    fs::write(&config, without).unwrap();
    assert!(agent.keybearer(&["reload"]).status.success());
    until("the file is gone", || !kept(&agent).exists()).await;
    until("it is revoked", || made(&issuer) == (1, 1)).await;
    assert_eq!(issuer.handle.diary().requests("/1.0/revoke"), 3, "twice in vain, and once");
    assert_eq!(agent.client().await.get("tls", &[]).await.unwrap_err().code(), Code::PermissionDenied);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_taken_out_of_the_settings_has_no_certificate_left() {
    // X5-07, NHI-1
    let issuer = issuer(300);
    let setup = setup(&issuer, 3600);
    let agent = start(&issuer, &setup.also("other", "interim", "match = { uid = 65533 }"));
    agent.client().await.get("tls", &[]).await.unwrap();
    let config = agent.dir.path().join("agent.toml");
    let text = fs::read_to_string(&config).unwrap();
    let (before, rest) = text.split_once("[identities.shop]").unwrap();
    let (_, mesh) = rest.split_once("[issuers.mesh]").unwrap();
    let (mesh, rest) = mesh.split_once("[identities.shop.credentials.tls]").unwrap();
    let (_, other) = rest.split_once("[identities.other]").unwrap();
    let without = format!("{before}[issuers.mesh]{mesh}[identities.other]{other}");
    fs::write(&config, without).unwrap();
    let told = agent.keybearer(&["reload"]);
    assert!(told.status.success(), "{told:?}");
    until("the file is gone", || !kept(&agent).exists()).await;
    until("it is revoked", || made(&issuer) == (1, 1)).await;
    assert_eq!(issuer.handle.diary().requests("/1.0/revoke"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_saw_to_is_told_and_destroyed_by_hand() {
    // NHI-1
    let issuer = issuer(300);
    let agent = start(&issuer, &setup(&issuer, 3600));
    agent.client().await.get("tls", &[]).await.unwrap();
    let (dir, file) = (std::sync::Arc::clone(&agent.dir), kept(&agent));
    agent.stop();
    let config = dir.path().join("agent.toml");
    let text = fs::read_to_string(&config).unwrap();
    let (without, _) = text.split_once("[identities.shop.credentials.tls]").unwrap();
    fs::write(&config, without).unwrap();
    let agent = TestAgent::start(dir);
    let told = String::from_utf8(agent.keybearer(&["status"]).stdout).unwrap();
    assert!(told.contains("keybearer keys destroy shop.tls"), "{told}");
    assert!(file.exists());
    let done = agent.keybearer(&["keys", "destroy", "shop.tls"]);
    assert!(done.status.success() && !file.exists(), "{done:?}");
    assert!(!agent.keybearer(&["keys", "destroy", "shop.tls"]).status.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_operator_revokes_is_replaced_at_once_and_never_taken_up_again() {
    // X5-07, KEY-07
    let issuer = issuer(300);
    let agent = start(&issuer, &setup(&issuer, 3600));
    let mut client = agent.client().await;
    let first = client.get("tls", &[]).await.unwrap();
    assert!(agent.keybearer(&["revoke", "shop", "tls"]).status.success());
    let second = client.get("tls", &[]).await.unwrap();
    assert_ne!(first.thumbprint, second.thumbprint);
    until("it is revoked", || made(&issuer) == (2, 1)).await;
    // Nor by the next start.
    let dir = std::sync::Arc::clone(&agent.dir);
    agent.stop();
    let agent = TestAgent::start(dir);
    assert_eq!(agent.client().await.get("tls", &[]).await.unwrap().thumbprint, second.thumbprint);
    // Given back, it is gone too.
    assert!(agent.client().await.release("tls", &[]).await.unwrap());
    let third = agent.client().await.get("tls", &[]).await.unwrap();
    assert_ne!(second.thumbprint, third.thumbprint);
    until("it is revoked", || made(&issuer) == (3, 2)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_tried_at_the_ca_and_costs_no_certificate() {
    // KEY-06
    let issuer = issuer(300);
    let setup = setup(&issuer, 3600);
    let agent = start(&issuer, &setup);
    let mut client = agent.client().await;
    let before = client.get("tls", &[]).await.unwrap();
    assert!(agent.keybearer(&["rotate", "shop"]).status.success());
    // One that the CA does not know is not taken.
    agent.keybearer(&["rotate", "shop"]);
    until("it was tried", || {
        let records = agent.records();
        records.iter().any(|record| {
            record.entry.detail.as_deref().is_some_and(|said| said.contains("is not taken yet"))
        })
    })
    .await;
    assert_eq!(made(&issuer), (1, 0));
    register(&issuer, &setup);
    agent.keybearer(&["rotate", "shop"]);
    // The one that it was tried with is given back; the live one stays.
    until("the new key signs, and what it was tried with is revoked", || made(&issuer) == (2, 1)).await;
    assert_eq!(client.get("tls", &[]).await.unwrap().thumbprint, before.thumbprint);
    assert!(kept(&agent).exists());
}

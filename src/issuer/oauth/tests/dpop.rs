//! Token requests with a proof, and again where the issuer says how to do better.

use serde_json::{Value, json};

use super::*;
use crate::{jose::PublicKey, proof::Target};

impl Stage {
    /// Tokens are to be bound.
    async fn bound() -> Self {
        let mut stage = Self::new().await;
        stage.order.binding = Binding::Dpop;
        stage
    }

    fn jkt(&self) -> String {
        self.signers.dpop.as_ref().unwrap().kid().to_owned()
    }

    fn bound_token(&self) -> Answer {
        let body = json!({"access_token": "canary-token", "token_type": "DPoP", "expires_in": 300});
        Answer::json(200, body)
    }

    /// The claims of the one proof of each POST.
    fn proofs(&self) -> Vec<Value> {
        let claims = |seen: Seen| {
            let proof = proof(&seen).expect("there is a proof");
            let jws = Unverified::parse(&proof).unwrap();
            let key = PublicKey::from_jwk(&jws.header["jwk"]).unwrap();
            assert_eq!((key.thumbprint(), jws.header_str("typ")), (self.jkt(), Some("dpop+jwt")));
            jws.claims().unwrap()
        };
        self.script.posts().into_iter().map(claims).collect()
    }
}

fn proof(seen: &Seen) -> Option<String> {
    let mut proofs = seen.head.lines().filter_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("dpop").then(|| value.trim().to_owned())
    });
    let first = proofs.next();
    assert_eq!(proofs.next(), None, "never two");
    first
}

fn wants_nonce(nonce: &str) -> Answer {
    error(400, "use_dpop_nonce").with("dpop-nonce", nonce)
}

#[tokio::test]
async fn a_token_request_carries_one_proof_and_only_if_it_is_to_be_bound() {
    // DPOP-03, DPOP-04
    let stage = Stage::bound().await;
    stage.script.will([Answer::json(200, stage.metadata()), stage.bound_token()]);
    let credential = stage.issue().await.result.unwrap();
    assert_eq!(credential.bound.thumbprint(), Some(&*stage.jkt()));
    let claims = &stage.proofs()[0];
    assert_eq!(
        (&claims["htm"], &claims["htu"]),
        (&json!("POST"), &json!(format!("{}/token", stage.script.url)))
    );
    assert_eq!(claims["iat"], NOW);
    assert!(claims.get("ath").is_none() && claims.get("nonce").is_none(), "{claims}");
    let stage = Stage::new().await;
    stage.script.will([Answer::json(200, stage.metadata()), token()]);
    stage.issue().await.result.unwrap();
    assert_eq!(proof(&stage.script.posts()[0]), None);
}

#[tokio::test]
async fn a_nonce_is_taken_and_everything_made_anew() {
    // DPOP-07, DPOP-09, DPOP-11, PKJ-12
    let stage = Stage::bound().await;
    stage.script.will([
        Answer::json(200, stage.metadata()),
        wants_nonce("one"),
        stage.bound_token().with("dpop-nonce", "two"),
        stage.bound_token(),
        error(503, "temporarily_unavailable").with("dpop-nonce", "three"),
        stage.bound_token(),
    ]);
    for works in [true, true, false, true] {
        assert_eq!(stage.issue().await.result.is_ok(), works);
    }
    let proofs = stage.proofs();
    let nonces: Vec<_> = proofs.iter().map(|claims| claims["nonce"].as_str()).collect();
    assert_eq!(nonces, [None, Some("one"), Some("two"), Some("two"), Some("three")]);
    let posts = stage.script.posts();
    for jtis in [
        proofs.iter().map(|claims| claims["jti"].to_string()).collect::<std::collections::HashSet<_>>(),
        posts.iter().map(|post| claims(post)["jti"].to_string()).collect(),
    ] {
        assert_eq!(jtis.len(), 5, "{jtis:?}");
    }
}

#[tokio::test]
async fn an_issuer_that_is_never_content_is_asked_twice() {
    // DPOP-07
    let stage = Stage::bound().await;
    stage.script.will([Answer::json(200, stage.metadata()), wants_nonce("one"), wants_nonce("two")]);
    assert_eq!(stage.reason().await, Reason::DpopRejected);
    assert_eq!(stage.script.posts().len(), 2);
}

#[tokio::test]
async fn a_nonce_that_is_none_is_not_sent_back() {
    // DPOP-07, DPOP-09, DPOP-10
    for bad in [
        error(400, "use_dpop_nonce"),
        wants_nonce("a b"),
        wants_nonce("a\"b"),
        wants_nonce("a\u{e9}b"),
        wants_nonce(&"n".repeat(4097)),
        wants_nonce("one").and("dpop-nonce", "two"),
    ] {
        let stage = Stage::bound().await;
        stage.script.will([Answer::json(200, stage.metadata()), bad, stage.bound_token()]);
        let refused = stage.issue().await.result.unwrap_err();
        assert!(matches!(refused, IssueError::Refused { reason: Reason::DpopRejected, .. }), "{refused}");
        assert_eq!(stage.script.posts().len(), 1);
        // A token that comes with such a nonce is none the worse for it.
        stage.issue().await.result.unwrap();
        assert_eq!(stage.proofs()[1].get("nonce"), None);
    }
}

#[tokio::test]
async fn a_proof_that_was_refused_for_its_time_is_made_once_more_by_the_issuers_clock() {
    // DPOP-13, CLK-02
    let stage = Stage::bound().await;
    stage.script.will([
        Answer::json(200, stage.metadata()),
        dated(error(400, "invalid_dpop_proof"), NOW + 120),
        stage.bound_token(),
        error(400, "invalid_dpop_proof"),
        error(400, "invalid_dpop_proof"),
    ]);
    stage.issue().await.result.unwrap();
    let proofs = stage.proofs();
    let ahead = proofs[1]["iat"].as_i64().unwrap() - proofs[0]["iat"].as_i64().unwrap();
    assert_eq!(ahead, 120);
    assert_eq!(stage.reason().await, Reason::DpopRejected);
    assert_eq!(stage.script.posts().len(), 4, "the clock was known to be off: tried twice and no more");
    // Where the clocks agree, the proof is not what an attempt more would mend.
    let stage = Stage::bound().await;
    stage.script.will([
        Answer::json(200, stage.metadata()),
        dated(error(400, "invalid_dpop_proof"), NOW),
        stage.bound_token(),
    ]);
    assert_eq!(stage.reason().await, Reason::DpopRejected);
    assert_eq!(stage.script.posts().len(), 1);
}

#[tokio::test]
async fn nothing_more_is_signed_once_the_clock_is_known_to_be_wrong() {
    // CLK-03
    let stage = Stage::bound().await;
    stage.script.will([
        Answer::json(200, stage.metadata()),
        dated(wants_nonce("one"), NOW + 3600),
        stage.bound_token(),
    ]);
    assert_eq!(stage.reason().await, Reason::ClockUntrusted);
    assert_eq!(stage.script.posts().len(), 1);
}

#[tokio::test]
async fn a_bearer_token_in_answer_to_a_proof_is_thrown_away() {
    // DPOP-04
    let stage = Stage::bound().await;
    stage.script.will([Answer::json(200, stage.metadata()), token()]);
    let refused = stage.issue().await.result.unwrap_err();
    assert!(matches!(refused, IssueError::Refused { reason: Reason::TokenNotBound, .. }), "{refused}");
}

#[tokio::test]
async fn an_issuer_that_reads_other_proofs_gets_none() {
    // DPOP-01
    let stage = Stage::bound().await;
    let mut metadata = stage.metadata();
    metadata["dpop_signing_alg_values_supported"] = json!(["PS256"]);
    stage.script.will([Answer::json(200, metadata)]);
    assert_eq!(stage.reason().await, Reason::IssuerConfig);
    assert!(stage.script.posts().is_empty());
}

#[tokio::test]
async fn the_key_before_is_tried_once_while_it_is_kept() {
    // KEY-06
    let mut stage = Stage::new().await;
    stage.script.will([
        Answer::json(200, stage.metadata()),
        error(401, "invalid_client"),
        token(),
        error(401, "invalid_client"),
        error(401, "invalid_client"),
        error(401, "invalid_client"),
    ]);
    let before: Arc<dyn Signer> = Arc::new(Key::generate(Algorithm::EdDsa).unwrap());
    stage.signers.before = Some(Arc::clone(&before));
    let issued = stage.issue().await;
    assert!(issued.result.is_ok() && issued.facts.key_fallback);
    let kids: Vec<_> = stage.script.posts().iter().map(kid).collect();
    assert_eq!(kids, [stage.signers.client.as_ref().unwrap().kid(), before.kid()]);
    let issued = stage.issue().await;
    assert_eq!(issued.result.unwrap_err().reason(), Reason::ClientAuthRejected);
    assert!(!issued.facts.key_fallback);
    assert_eq!(stage.script.posts().len(), 4);
    stage.signers.before = None;
    assert_eq!(stage.reason().await, Reason::ClientAuthRejected);
    assert_eq!(stage.script.posts().len(), 5, "never after the window");
}

#[tokio::test]
async fn so_it_is_where_an_issuer_refuses_without_words() {
    // KEY-06, ER-02, CLK-05
    let bare = || Answer::Full { status: 403, headers: vec![], body: String::new() };
    let mut stage = Stage::new().await;
    stage.script.will([Answer::json(200, stage.metadata()), bare(), token(), bare(), bare(), bare()]);
    let before: Arc<dyn Signer> = Arc::new(Key::generate(Algorithm::EdDsa).unwrap());
    stage.signers.before = Some(Arc::clone(&before));
    let issued = stage.issue().await;
    assert!(issued.result.is_ok() && issued.facts.key_fallback);
    let kids: Vec<_> = stage.script.posts().iter().map(kid).collect();
    assert_eq!(kids, [stage.signers.client.as_ref().unwrap().kid(), before.kid()]);
    let issued = stage.issue().await;
    assert_eq!((issued.facts.http_status, issued.facts.key_fallback), (Some(403), false));
    let error = issued.result.unwrap_err();
    assert!(matches!(error, IssueError::Misconfigured { reason: Reason::ClientAuthRejected, .. }), "{error}");
    assert_eq!(stage.script.posts().len(), 4, "once");
    stage.signers.before = None;
    assert_eq!(stage.reason().await, Reason::ClientAuthRejected);
    assert_eq!(stage.script.posts().len(), 5, "never after the window");
}

fn kid(seen: &Seen) -> String {
    Unverified::parse(&seen.form("client_assertion")[0]).unwrap().header_str("kid").unwrap().to_owned()
}

#[tokio::test]
async fn an_issuers_endpoints_are_its_own() {
    // DPOP-20
    let stage = Stage::new().await;
    let url = stage.script.url.clone();
    let owns =
        |path: &str| stage.oauth.endpoints().contains(&Target::parse(&format!("{url}{path}")).unwrap());
    assert!(!owns("/token"), "nothing is known of it yet");
    let mut metadata = stage.metadata();
    metadata["pushed_authorization_request_endpoint"] = json!(format!("{url}/par"));
    metadata["userinfo_endpoint"] = json!(format!("{url}/me"));
    metadata["mtls_endpoint_aliases"] = json!({"token_endpoint": format!("{url}/mtls/token")});
    stage.script.will([Answer::json(200, metadata), token()]);
    stage.issue().await.result.unwrap();
    for path in ["/token", "/token?a=b", "/./token", "/%74oken", "/revoke", "/par", "/mtls/token"] {
        assert!(owns(path), "{path}");
    }
    assert!(!owns("/me") && !owns("/orders"));
}

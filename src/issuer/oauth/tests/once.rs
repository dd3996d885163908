//! One-time values that an issuer says it has seen before, and what vouches for the client that it wants anew.

use std::collections::HashSet;

use serde_json::json;

use super::*;

fn reuse(status: u16, code: &str, words: &str) -> Answer {
    Answer::json(status, json!({"error": code, "error_description": words}))
}

#[tokio::test]
async fn a_reuse_is_drawn_anew_once_and_told() {
    // ER-10, PKJ-12
    let known = || reuse(400, "jti_known", "The jti was already used.");
    let keycloak = || reuse(401, "invalid_client", "Token reuse detected");
    let oidc_provider = || reuse(401, "invalid_client", "client assertion tokens must only be used once");
    for again in [known, keycloak, oidc_provider] as [fn() -> Answer; 3] {
        let stage = Stage::new().await;
        stage.script.will([Answer::json(200, stage.metadata()), again(), token(), again(), again()]);
        let issued = stage.issue().await;
        assert!(issued.result.is_ok() && issued.facts.one_time_reuse);
        let issued = stage.issue().await;
        assert!(issued.facts.one_time_reuse);
        assert_eq!(issued.result.unwrap_err().reason(), Reason::OneTimeReuse);
        let posts = stage.script.posts();
        let jtis: HashSet<String> = posts.iter().map(|post| claims(post)["jti"].to_string()).collect();
        assert_eq!((posts.len(), jtis.len()), (4, 4));
    }
}

#[tokio::test]
async fn other_refusals_of_a_client_are_not_asked_again() {
    // PKJ-06, ER-09, ER-10
    for (answer, reason) in [
        (reuse(401, "invalid_client", "Invalid client credentials"), Reason::ClientAuthRejected),
        (reuse(400, "invalid_request", "Token reuse detected"), Reason::AgentBugRequest),
        (error(401, "invalid_client_attestation"), Reason::AttestationRejected),
    ] {
        let stage = Stage::new().await;
        stage.script.will([Answer::json(200, stage.metadata()), answer]);
        let issued = stage.issue().await;
        assert!(!issued.facts.one_time_reuse);
        assert_eq!(issued.result.unwrap_err().reason(), reason);
        assert_eq!(stage.script.posts().len(), 1);
    }
}

#[tokio::test]
async fn what_vouches_for_the_client_is_had_anew_once() {
    // ER-09
    for code in ["use_attestation_challenge", "use_fresh_attestation"] {
        let stage = Stage::new().await;
        stage.script.will([Answer::json(200, stage.metadata()), error(400, code), token()]);
        assert!(stage.issue().await.result.is_ok(), "{code}");
        stage.script.will([error(400, code), error(400, code)]);
        assert_eq!(stage.issue().await.result.unwrap_err().reason(), Reason::AttestationRejected);
        let posts = stage.script.posts();
        let shown: HashSet<String> = posts.iter().map(|post| claims(post)["jti"].to_string()).collect();
        assert_eq!((posts.len(), shown.len()), (4, 4), "{code}: each time another");
    }
}

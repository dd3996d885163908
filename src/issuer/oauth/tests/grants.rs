//! Grants that bring a token of somebody else's: what is sent, what is read when, and what is taken as an answer.

use std::{fs, path::PathBuf};

use serde_json::{Value, json};

use super::*;
use crate::issuer::{
    conditions::{Conditions, tests::jwt},
    terms::{Brought, Exchange, GrantType, Terms},
    token_file::TokenFile,
    token_type::TokenType,
};

const URI: &str = "urn:ietf:params:oauth:token-type:";

/// Writes a token that meets [`file`]'s conditions, and tells it.
pub(super) fn write(path: &std::path::Path, jti: &str) -> String {
    let token = jwt(
        json!({"alg": "RS256", "kid": "k", "typ": "JWT"}),
        json!({
            "iss": "https://platform.example", "aud": ["https://issuer.example"], "sub": "system:serviceaccount:shop:billing",
            "exp": NOW + 600, "jti": jti, "ref": "refs/heads/main",
        }),
    );
    fs::write(path, &token).unwrap();
    token
}

fn file(path: PathBuf) -> TokenFile {
    let conditions = Conditions {
        issuer: Some("https://platform.example".into()),
        audience: Some("https://issuer.example".into()),
        claims: [("ref".into(), "refs/heads/main".into())].into(),
    };
    TokenFile { path, conditions }
}

impl Stage {
    async fn granted(grant: GrantType) -> Self {
        let mut stage = Self::new().await;
        stage.order.terms = Arc::new(Terms { grant, ..Terms::default() });
        stage.script.will([Answer::json(200, stage.metadata())]);
        stage
    }
}

struct Desk(tempfile::TempDir);

impl Desk {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn brought(&self, name: &str, kind: TokenType) -> Brought {
        Brought { file: file(self.at(name)), kind }
    }

    fn exchange(&self, actor: bool, requested: Option<TokenType>) -> GrantType {
        GrantType::TokenExchange(Exchange {
            subject: self.brought("subject", TokenType::IdToken),
            actor: actor.then(|| self.brought("actor", TokenType::Jwt)),
            requested,
        })
    }
}

fn exchanged(kind: &str) -> Value {
    json!({
        "access_token": "canary-token", "token_type": "Bearer", "expires_in": 300,
        "issued_token_type": format!("{URI}{kind}"),
    })
}

fn names(seen: &Seen) -> Vec<&str> {
    seen.body.split('&').map(|pair| pair.split('=').next().unwrap()).collect()
}

#[tokio::test]
async fn an_exchange_says_what_it_brings_and_never_a_token_without_its_kind() {
    // OA-22, OA-24, OA-25
    let desk = Desk::new();
    let (subject, actor) = (write(&desk.at("subject"), "1"), write(&desk.at("actor"), "2"));
    let stage = Stage::granted(desk.exchange(true, Some(TokenType::AccessToken))).await;
    stage.script.will([Answer::json(200, exchanged("access_token"))]);
    stage.issue().await.result.unwrap();
    let post = &stage.script.posts()[0];
    let told = [
        "grant_type",
        "subject_token",
        "subject_token_type",
        "actor_token",
        "actor_token_type",
        "requested_token_type",
        "scope",
        "resource",
        "client_assertion_type",
        "client_assertion",
    ];
    assert_eq!(names(post), told);
    assert_eq!(post.form("grant_type"), ["urn:ietf:params:oauth:grant-type:token-exchange"]);
    assert_eq!((post.form("subject_token"), post.form("actor_token")), (vec![subject], vec![actor]));
    assert_eq!(post.form("subject_token_type"), [format!("{URI}id_token")]);
    assert_eq!(post.form("actor_token_type"), [format!("{URI}jwt")]);
    assert_eq!(post.form("requested_token_type"), [format!("{URI}access_token")]);

    // Nobody acts for somebody unless the operator says so.
    let stage = Stage::granted(desk.exchange(false, None)).await;
    stage.script.will([Answer::json(200, exchanged("jwt"))]);
    stage.issue().await.result.unwrap();
    let post = &stage.script.posts()[0];
    assert!(!post.body.contains("actor") && !post.body.contains("requested_token_type"), "{}", post.body);
}

#[tokio::test]
async fn a_jwt_grant_and_the_clients_own_assertion_are_two() {
    // OA-26, PKJ-18
    let desk = Desk::new();
    let granted = write(&desk.at("subject"), "1");
    let stage = Stage::granted(GrantType::JwtBearer(file(desk.at("subject")))).await;
    let mut reply = json!({"access_token": "canary-token", "token_type": "Bearer", "expires_in": 300});
    reply["refresh_token"] = json!("canary-refresh");
    stage.script.will([Answer::json(200, reply)]);
    let issued = stage.issue().await;
    // OA-29
    assert!(issued.facts.refresh_token_ignored);
    assert!(!format!("{issued:?}").contains("canary"));
    let post = &stage.script.posts()[0];
    assert_eq!(post.form("grant_type"), ["urn:ietf:params:oauth:grant-type:jwt-bearer"]);
    assert_eq!(post.form("assertion")[..], [&*granted]);
    let grant: Value = Unverified::parse(&granted).unwrap().claims().unwrap();
    let own = claims(post);
    assert_ne!(own["jti"], grant["jti"]);
    assert_eq!((&own["aud"], &grant["aud"]), (&json!(stage.script.url), &json!(["https://issuer.example"])));
}

#[tokio::test]
async fn what_comes_of_an_exchange_is_an_access_token_or_nothing() {
    // OA-23
    let desk = Desk::new();
    write(&desk.at("subject"), "1");
    let without = {
        let mut reply = exchanged("access_token");
        reply.as_object_mut().unwrap().remove("issued_token_type");
        reply
    };
    let mut not_applicable = exchanged("access_token");
    not_applicable["token_type"] = json!("N_A");
    let wanted = Some(TokenType::AccessToken);
    for (requested, reply, expected) in [
        (None, exchanged("access_token"), None),
        (None, exchanged("jwt"), None),
        (wanted, exchanged("access_token"), None),
        (wanted, exchanged("jwt"), Some(Reason::IssuerProtocol)),
        (Some(TokenType::Jwt), exchanged("access_token"), Some(Reason::IssuerProtocol)),
        (None, exchanged("id_token"), Some(Reason::IssuerProtocol)),
        (None, exchanged("txn_token"), Some(Reason::IssuerProtocol)),
        (None, exchanged("new_token"), Some(Reason::IssuerProtocol)),
        (None, without, Some(Reason::IssuerProtocol)),
        (None, not_applicable, Some(Reason::TokenNotBound)),
    ] {
        let stage = Stage::granted(desk.exchange(false, requested)).await;
        stage.script.will([Answer::json(200, reply.clone())]);
        let reason = stage.issue().await.result.err().map(|error| error.reason());
        assert_eq!(reason, expected, "{reply} for {requested:?}");
    }
    // Another grant's answer need not say.
    let stage = Stage::new().await;
    stage.script.will([Answer::json(200, stage.metadata()), token()]);
    stage.issue().await.result.unwrap();
}

#[tokio::test]
async fn nothing_is_sent_that_does_not_meet_its_conditions() {
    // WIM-11, S44: a job of another branch, and what is not there or over.
    let desk = Desk::new();
    let path = desk.at("subject");
    let token = |change: Value| {
        let mut claims = json!({
            "iss": "https://platform.example", "aud": "https://issuer.example", "exp": NOW + 600, "ref": "refs/heads/main",
        });
        for (name, value) in change.as_object().unwrap() {
            claims[name] = value.clone();
        }
        jwt(json!({"alg": "RS256"}), claims)
    };
    let stage = Stage::granted(desk.exchange(false, None)).await;
    assert_eq!(stage.reason().await, Reason::SourceTokenUnavailable);
    for change in [
        json!({"ref": "refs/heads/feature"}),
        json!({"iss": "https://other.example"}),
        json!({"aud": ["https://issuer.example", "https://api.example"]}),
        json!({"exp": NOW}),
    ] {
        fs::write(&path, token(change.clone())).unwrap();
        let error = stage.issue().await.result.unwrap_err();
        assert!(
            matches!(error, IssueError::Refused { reason: Reason::SourceTokenUnfit, .. }),
            "{change}: {error}"
        );
        assert!(!error.to_string().contains("eyJ") && !error.to_string().contains("feature"), "{error}");
    }
    assert!(stage.script.posts().is_empty());
    fs::write(&path, token(json!({}))).unwrap();
    stage.script.will([Answer::json(200, exchanged("jwt"))]);
    stage.issue().await.result.unwrap();
}

#[tokio::test]
async fn a_grant_that_is_refused_is_read_anew_and_asked_with_once() {
    // ER-03
    let desk = Desk::new();
    let path = desk.at("subject");
    write(&path, "1");
    let stage = Stage::granted(desk.exchange(false, None)).await;
    // Nobody wrote another: the same again would be refused again.
    stage.script.will([error(400, "invalid_grant")]);
    assert_eq!(stage.reason().await, Reason::GrantRejected);
    assert_eq!(stage.script.posts().len(), 1);

    let rotates = |jti: &'static str, answer: Answer| {
        let path = path.clone();
        Answer::After(Box::new(move || drop(write(&path, jti))), Box::new(answer))
    };
    stage.script.will([
        rotates("2", error(400, "invalid_request")),
        rotates("3", error(400, "invalid_grant")),
        rotates("4", error(503, "temporarily_unavailable")),
        Answer::json(200, exchanged("jwt")),
    ]);
    assert_eq!(stage.reason().await, Reason::GrantRejected);
    assert_eq!(stage.reason().await, Reason::IssuerUnavailable);
    stage.issue().await.result.unwrap();
    let posts = stage.script.posts();
    let brought: Vec<Value> = posts
        .iter()
        .map(|post| {
            Unverified::parse(&post.form("subject_token")[0]).unwrap().claims::<Value>().unwrap()["jti"]
                .clone()
        })
        .collect();
    assert_eq!(brought, [json!("1"), json!("1"), json!("2"), json!("3"), json!("4")]);

    // RFC 8693 2.2.2, ER-01: for an exchange it is the token that is wrong, for others it is we.
    stage.script.will([error(400, "invalid_request")]);
    assert_eq!(stage.reason().await, Reason::GrantRejected);

    // A grant that brings nothing has nothing to bring anew.
    let stage = Stage::new().await;
    stage.script.will([
        Answer::json(200, stage.metadata()),
        error(400, "invalid_grant"),
        error(400, "invalid_request"),
    ]);
    assert_eq!(stage.reason().await, Reason::GrantRejected);
    assert_eq!(stage.reason().await, Reason::AgentBugRequest);
    assert_eq!(stage.script.posts().len(), 2);
}

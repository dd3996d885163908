//! Clients that prove themselves by what others signed: assertions of a platform, JWT-SVIDs of a file and of the SPIFFE
//! Workload API.

use std::{fs, path::Path};

use serde_json::{Value, json};
use tokio::net::UnixListener;
use tonic::{Request as GrpcRequest, Response as GrpcResponse, Status};

use super::{grants::write, *};
use crate::{
    issuer::{
        conditions::{Conditions, tests::jwt},
        terms::{ClientAuth, SvidSource, Terms},
        token_file::TokenFile,
    },
    proto::spiffe::{
        Jwtsvid, JwtsvidRequest, JwtsvidResponse,
        spiffe_workload_api_server::{SpiffeWorkloadApi, SpiffeWorkloadApiServer},
    },
};

const SUBJECT: &str = "system:serviceaccount:shop:billing";
const SPIFFE_ID: &str = "spiffe://shop.example/billing";

fn file(path: &Path, subject: &str) -> TokenFile {
    let conditions = Conditions { claims: [("sub".into(), subject.into())].into(), ..Conditions::default() };
    TokenFile { path: path.into(), conditions }
}

impl Stage {
    /// Has no key: none is needed.
    async fn known_by(client_auth: ClientAuth) -> Self {
        let mut stage = Self::new().await;
        stage.order.terms = Arc::new(Terms { client_auth, ..Terms::default() });
        stage.signers.client = None;
        stage.script.will([Answer::json(200, stage.metadata())]);
        stage
    }
}

#[tokio::test]
async fn a_platforms_assertion_is_sent_as_it_is() {
    // PKJ-01, PKJ-12, WIM-11
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    let stage = Stage::known_by(ClientAuth::FederatedJwt(file(&path, SUBJECT))).await;
    let written = |claims: Value, header: Value| {
        let mut all = json!({"sub": SUBJECT, "aud": [stage.script.url], "exp": NOW + 60});
        for (name, value) in claims.as_object().unwrap() {
            all[name] = value.clone();
        }
        let text = jwt(header, all);
        fs::write(&path, &text).unwrap();
        text
    };
    let header = || json!({"alg": "RS256", "kid": "k"});
    for (claims, header) in [
        (json!({"sub": "system:serviceaccount:shop:other"}), header()),
        (json!({"aud": format!("{}/", stage.script.url)}), header()),
        (json!({"aud": format!("{}/token", stage.script.url)}), header()),
        (json!({"aud": [stage.script.url, "https://api.example"]}), header()),
        (json!({"exp": NOW}), header()),
        (json!({}), json!({"alg": "RS256", "jwk": {}})),
        (json!({}), json!({"alg": "HS256"})),
        (json!({}), json!({"alg": "RS256", "typ": "at+jwt"})),
    ] {
        written(claims.clone(), header.clone());
        assert_eq!(stage.reason().await, Reason::SourceTokenUnfit, "{claims} {header}");
    }
    assert!(stage.script.posts().is_empty());
    for jti in ["1", "2"] {
        let text = written(json!({"jti": jti}), header());
        stage.script.will([token()]);
        stage.issue().await.result.unwrap();
        let post = stage.script.posts().pop().unwrap();
        assert_eq!(post.form("client_assertion"), [text]);
        assert_eq!(post.form("client_assertion_type"), [client::JWT_BEARER]);
    }
}

#[tokio::test]
async fn a_jwt_svid_has_a_type_of_its_own_and_its_closed_header() {
    // DR-05, SPF-03
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("svid");
    let source = SvidSource::File(file(&path, SPIFFE_ID));
    let mut stage = Stage::known_by(ClientAuth::SpiffeJwt(source)).await;
    let claims = json!({"sub": SPIFFE_ID, "aud": [stage.script.url], "exp": NOW + 60});
    fs::write(&path, jwt(json!({"alg": "ES256", "typ": "client-authentication+jwt"}), claims.clone()))
        .unwrap();
    assert_eq!(stage.reason().await, Reason::SourceTokenUnfit);
    fs::write(&path, jwt(json!({"alg": "ES256", "kid": "k", "typ": "JWT"}), claims)).unwrap();
    stage.script.will([token()]);
    stage.issue().await.result.unwrap();
    let post = &stage.script.posts()[0];
    assert_eq!(
        post.form("client_assertion_type"),
        ["urn:ietf:params:oauth:client-assertion-type:jwt-spiffe"]
    );
    // A key that happens to be there is not used.
    stage.signers = signers();
    stage.signers.before = stage.signers.client.clone();
    stage.script.will([error(401, "invalid_client")]);
    assert_eq!(stage.reason().await, Reason::ClientAuthRejected);
    assert_eq!(stage.script.posts().len(), 2);
}

#[tokio::test]
async fn without_the_key_that_it_needs_nothing_is_sent() {
    // KEY-01
    let stage = Stage::known_by(ClientAuth::PrivateKeyJwt).await;
    assert_eq!(stage.reason().await, Reason::KeyUnavailable);
    assert!(stage.script.posts().is_empty());
}

#[tokio::test]
async fn an_issuer_that_lists_other_methods_gets_nothing() {
    // MT-01 in spirit, DR-05
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    write(&path, "1");
    let federated = || ClientAuth::FederatedJwt(file(&path, SUBJECT));
    let spiffe = || ClientAuth::SpiffeJwt(SvidSource::File(file(&path, SPIFFE_ID)));
    for (client_auth, listed, taken) in [
        (federated(), "private_key_jwt", true),
        (federated(), "spiffe_jwt", false),
        (spiffe(), "spiffe_jwt", true),
        (spiffe(), "private_key_jwt", true),
        (spiffe(), "client_secret_post", false),
    ] {
        let mut stage = Stage::new().await;
        stage.order.terms = Arc::new(Terms { client_auth, ..Terms::default() });
        let mut metadata = stage.metadata();
        metadata["token_endpoint_auth_methods_supported"] = json!([listed]);
        stage.script.will([Answer::json(200, metadata)]);
        // What is taken goes on to the file, which is for somebody else.
        let expected = if taken { Reason::SourceTokenUnfit } else { Reason::IssuerConfig };
        assert_eq!(stage.reason().await, expected, "{listed}");
    }
}

/// Stands in for SPIRE's agent.
struct WorkloadApi(Mutex<Vec<(Option<String>, JwtsvidRequest)>>, Box<Answering>);

type Answering = dyn Fn(&JwtsvidRequest) -> Result<Vec<Jwtsvid>, Status> + Send + Sync;

#[tonic::async_trait]
impl SpiffeWorkloadApi for Arc<WorkloadApi> {
    async fn fetch_jwtsvid(
        &self,
        request: GrpcRequest<JwtsvidRequest>,
    ) -> Result<GrpcResponse<JwtsvidResponse>, Status> {
        let header =
            request.metadata().get("workload.spiffe.io").map(|value| value.to_str().unwrap().to_owned());
        let request = request.into_inner();
        let svids = (self.1)(&request);
        self.0.lock().unwrap().push((header, request));
        Ok(GrpcResponse::new(JwtsvidResponse { svids: svids? }))
    }
}

fn served(at: &Path, answer: Box<Answering>) -> Arc<WorkloadApi> {
    let api = Arc::new(WorkloadApi(Mutex::default(), answer));
    let listener = UnixListener::bind(at).unwrap();
    let incoming = tokio_stream::wrappers::UnixListenerStream::new(listener);
    let service = SpiffeWorkloadApiServer::new(Arc::clone(&api));
    tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
    api
}

fn svid(spiffe_id: &str, audience: &str, more: Value) -> Jwtsvid {
    let mut claims = json!({"sub": spiffe_id, "aud": [audience], "exp": NOW + 60});
    for (name, value) in more.as_object().unwrap() {
        claims[name] = value.clone();
    }
    let svid = jwt(json!({"alg": "ES256", "kid": "k", "typ": "JWT"}), claims);
    Jwtsvid { spiffe_id: spiffe_id.into(), svid, hint: String::new() }
}

#[tokio::test]
async fn the_workload_api_is_asked_for_this_identity_and_this_issuer() {
    // SPF-08, DR-05
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("agent.sock");
    let api = served(
        &socket,
        Box::new(|request| {
            let audience = &request.audience[0];
            Ok(vec![
                svid("spiffe://shop.example/other", audience, json!({})),
                svid(&request.spiffe_id, audience, json!({})),
            ])
        }),
    );
    let source = SvidSource::WorkloadApi { socket, spiffe_id: SPIFFE_ID.into() };
    let stage = Stage::known_by(ClientAuth::SpiffeJwt(source)).await;
    for _ in 0..2 {
        stage.script.will([token()]);
        stage.issue().await.result.unwrap();
    }
    let post = &stage.script.posts()[0];
    assert_eq!(post.form("client_assertion_type"), [client::JWT_SPIFFE]);
    let claims = claims(post);
    assert_eq!((&claims["sub"], &claims["aud"]), (&json!(SPIFFE_ID), &json!([stage.script.url])));
    let asked = api.0.lock().unwrap();
    // PKJ-12: each attempt has its own.
    assert_eq!(asked.len(), 2);
    let wanted = JwtsvidRequest { audience: vec![stage.script.url.clone()], spiffe_id: SPIFFE_ID.into() };
    assert_eq!(asked[0], (Some("true".into()), wanted));
}

#[tokio::test]
async fn what_the_workload_api_gives_is_doubted() {
    // SPF-03, SPF-08
    let dir = tempfile::tempdir().unwrap();
    let other = "spiffe://shop.example/other";
    type Given = fn(&JwtsvidRequest) -> Result<Vec<Jwtsvid>, Status>;
    let cases: [(Given, Reason, &str); 6] = [
        (
            |_| Err(Status::permission_denied("no identity issued")),
            Reason::SourceTokenUnavailable,
            "register this agent",
        ),
        (
            |_| Err(Status::unavailable("\u{1b}[31mstarting")),
            Reason::SourceTokenUnavailable,
            "see whether its server",
        ),
        (|_| Ok(vec![]), Reason::SourceTokenUnavailable, "no SVID of this identity"),
        (
            |asked| Ok(vec![svid(SPIFFE_ID, "https://other.example", json!({"x": asked.audience.len()}))]),
            Reason::SourceTokenUnfit,
            "aud",
        ),
        (
            |asked| {
                Ok(vec![svid(SPIFFE_ID, &asked.audience[0], json!({"sub": "spiffe://shop.example/other"}))])
            },
            Reason::SourceTokenUnfit,
            "sub",
        ),
        (
            |asked| Ok(vec![svid(SPIFFE_ID, &asked.audience[0], json!({"exp": NOW}))]),
            Reason::SourceTokenUnfit,
            "ended",
        ),
    ];
    for (number, (given, reason, told)) in cases.into_iter().enumerate() {
        let socket = dir.path().join(number.to_string());
        served(&socket, Box::new(given));
        let source = SvidSource::WorkloadApi { socket, spiffe_id: SPIFFE_ID.into() };
        let stage = Stage::known_by(ClientAuth::SpiffeJwt(source)).await;
        let error = stage.issue().await.result.unwrap_err();
        assert_eq!(error.reason(), reason, "{error}");
        let words = error.to_string();
        assert!(words.contains(told) && !words.contains(other) && !words.contains('\u{1b}'), "{words}");
        assert!(stage.script.posts().is_empty());
    }
    let nobody = SvidSource::WorkloadApi { socket: dir.path().join("none"), spiffe_id: SPIFFE_ID.into() };
    let stage = Stage::known_by(ClientAuth::SpiffeJwt(nobody)).await;
    assert_eq!(stage.reason().await, Reason::SourceTokenUnavailable);
}

#[tokio::test]
async fn a_workload_api_that_says_nothing_is_not_waited_for() {
    // SPF-08, ER-12
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("agent.sock");
    let _silent = UnixListener::bind(&socket).unwrap();
    let source = SvidSource::WorkloadApi { socket, spiffe_id: SPIFFE_ID.into() };
    let mut stage = Stage::with(|settings| settings.timeout = Duration::from_millis(200)).await;
    stage.order.terms = Arc::new(Terms { client_auth: ClientAuth::SpiffeJwt(source), ..Terms::default() });
    stage.script.will([Answer::json(200, stage.metadata())]);
    assert_eq!(stage.reason().await, Reason::SourceTokenUnavailable);
}

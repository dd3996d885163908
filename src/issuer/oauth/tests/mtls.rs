//! Certificates that prove who asks, and tokens that are bound to them (RFC 8705).

use std::{collections::BTreeMap, fs};

use rustls::HandshakeKind;
use rustls_pki_types::CertificateDer;
use serde_json::{Value, json};

use super::*;
use crate::{
    issuer::{script::Asks, terms::ClientAuth},
    jose::b64,
    keys::{CertificateSettings, Certificates, ClientCertificate, Custody, Keyring, SignedBy},
};

fn certificate(identity: &str) -> Arc<ClientCertificate> {
    let settings = CertificateSettings {
        custody: Custody::Memory,
        signed_by: SignedBy::Itself,
        san_uri: None,
        lifetime: Duration::from_secs(30 * 24 * 3600),
        export: false,
    };
    let wanted = BTreeMap::from([(Arc::from(identity), settings)]);
    let now = Timestamp::from_second(NOW).unwrap();
    let opened = Certificates::open(&wanted, &Certificates::default(), &Keyring::default(), now).unwrap();
    opened.of(&identity.into(), now).remove(0)
}

impl Order {
    fn proved_by(&mut self, client_auth: ClientAuth) {
        Arc::make_mut(&mut self.terms).client_auth = client_auth;
    }
}

/// An issuer over TLS that asks for client certificates as `asks` says.
struct Hall {
    stage: Stage,
    directory: tempfile::TempDir,
}

impl Hall {
    async fn new(asks: Option<Asks>) -> Self {
        Self::with(asks, |_| {}).await
    }

    async fn with(asks: Option<Asks>, change: impl FnOnce(&mut OAuthSettings)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (script, root) = Script::asking(&directory, &["localhost"], asks).await;
        let mut settings = settings(&script.url);
        settings.ca_file = Some(root);
        change(&mut settings);
        let mut stage = Stage::of(script, settings);
        stage.order.proved_by(ClientAuth::SelfSignedTlsClientAuth);
        stage.order.binding = Binding::Mtls;
        stage.signers.certificates = vec![certificate("billing")];
        Self { stage, directory }
    }

    /// Another host of the same issuer, trusted like it, under its own name for loopback.
    async fn alias(&mut self, asks: Option<Asks>) -> Script {
        let (alias, root) = Script::asking(&self.directory, &["localhost", "alias.example"], asks).await;
        let settings = &mut self.stage.oauth.settings;
        let both = self.directory.path().join("both.pem");
        let roots = [settings.ca_file.clone().unwrap(), root].map(|root| fs::read_to_string(root).unwrap());
        fs::write(&both, roots.concat()).unwrap();
        settings.ca_file = Some(both);
        let clock = Arc::clone(&self.stage.clock);
        self.stage.oauth = OAuth::new(settings.clone(), clock, SystemDice::shared()).unwrap();
        alias
    }

    fn metadata(&self) -> Value {
        let mut metadata = self.stage.metadata();
        metadata["token_endpoint_auth_methods_supported"] =
            json!(["private_key_jwt", "tls_client_auth", "self_signed_tls_client_auth"]);
        metadata
    }

    fn ours(&self) -> &ClientCertificate {
        &self.stage.signers.certificates[0]
    }

    fn will(&self, answers: impl IntoIterator<Item = Answer>) {
        self.stage.script.will([Answer::json(200, self.metadata())]);
        self.stage.script.will(answers);
    }
}

/// A token whose `cnf` is this.
fn confirming(cnf: &Value) -> Answer {
    let header = b64(br#"{"alg":"ES256","typ":"at+jwt"}"#);
    let claims = json!({"exp": NOW + 300, "iat": NOW, "cnf": cnf}).to_string();
    let token = format!("{header}.{}.c2ln", b64(claims.as_bytes()));
    Answer::json(200, json!({"access_token": token, "token_type": "Bearer", "expires_in": 300}))
}

fn bound_to(certificate: &ClientCertificate) -> Answer {
    confirming(&json!({"x5t#S256": certificate.thumbprint()}))
}

fn thumbprint(seen: &Seen) -> Option<String> {
    let digest =
        |shown: &CertificateDer<'_>| b64(ring::digest::digest(&ring::digest::SHA256, shown).as_ref());
    seen.certificate.as_ref().map(digest)
}

#[tokio::test]
async fn a_certificate_stands_in_for_the_assertion() {
    // MT-02, MT-07, MT-13, PKJ-13
    for method in [ClientAuth::TlsClientAuth, ClientAuth::SelfSignedTlsClientAuth] {
        let mut hall = Hall::new(Some(Asks::anybody())).await;
        hall.stage.order.proved_by(method);
        hall.will([bound_to(hall.ours())]);
        let credential = hall.stage.issue().await.result.unwrap();
        assert_eq!(credential.binding().scheme(), "Bearer");
        assert_eq!(credential.bound.thumbprint(), Some(hall.ours().thumbprint()));
        let diary = hall.stage.script.diary();
        assert_eq!(thumbprint(&diary[0]), None, "metadata is for everybody");
        let post = &diary[1];
        assert_eq!(thumbprint(post).as_deref(), Some(hall.ours().thumbprint()));
        assert_eq!(post.form("client_id"), ["billing:1&x=y"]);
        assert!(post.form("client_assertion").is_empty() && post.form("client_assertion_type").is_empty());
        let head = post.head.to_ascii_lowercase();
        let names: Vec<&str> =
            head.lines().skip(1).filter_map(|line| Some(line.split_once(':')?.0)).collect();
        assert_eq!(names, ["accept", "user-agent", "content-type", "host", "content-length"], "{head}");
    }
}

#[tokio::test]
async fn an_assertion_and_a_bound_token_go_together() {
    // MT-03, MT-07
    let mut hall = Hall::new(Some(Asks::anybody())).await;
    hall.stage.order.proved_by(ClientAuth::PrivateKeyJwt);
    hall.will([bound_to(hall.ours())]);
    hall.stage.issue().await.result.unwrap();
    let post = &hall.stage.script.posts()[0];
    assert_eq!(claims(post)["sub"], "billing:1&x=y");
    assert!(post.form("client_id").is_empty());
    assert_eq!(thumbprint(post).as_deref(), Some(hall.ours().thumbprint()));
}

#[tokio::test]
async fn a_way_to_prove_oneself_is_listed_or_pinned() {
    // MT-01
    for listed in [json!(["private_key_jwt", "tls_client_auth"]), Value::Null] {
        let hall = Hall::new(Some(Asks::anybody())).await;
        let mut metadata = hall.metadata();
        metadata["token_endpoint_auth_methods_supported"] = listed.clone();
        hall.stage.script.will([Answer::json(200, metadata.clone()), bound_to(hall.ours())]);
        let refused = hall.stage.issue().await.result.unwrap_err();
        assert!(
            matches!(refused, IssueError::Misconfigured { reason: Reason::AuthmUnsupported, .. }),
            "{refused}"
        );
        assert!(hall.stage.script.posts().is_empty());
        let hall = Hall::with(Some(Asks::anybody()), |settings| {
            settings.client_auth_methods = vec![ClientAuth::SelfSignedTlsClientAuth];
        })
        .await;
        let mut metadata = hall.metadata();
        metadata["token_endpoint_auth_methods_supported"] = listed;
        hall.stage.script.will([Answer::json(200, metadata), bound_to(hall.ours())]);
        hall.stage.issue().await.result.unwrap();
    }
}

#[tokio::test]
async fn what_shows_a_certificate_goes_to_the_alias_and_what_has_none_to_the_endpoint() {
    // MT-03
    for (method, revokes_with) in [(ClientAuth::TlsClientAuth, true), (ClientAuth::PrivateKeyJwt, false)] {
        let mut hall = Hall::new(Some(Asks::anybody())).await;
        let alias = hall.alias(Some(Asks::anybody())).await;
        hall.stage.order.proved_by(method);
        let mut metadata = hall.metadata();
        metadata["mtls_endpoint_aliases"] =
            json!({"token_endpoint": format!("{}/mtls/token", alias.url), "unheard_of": 7});
        hall.stage.script.will([Answer::json(200, metadata), Answer::json(200, "")]);
        alias.will([bound_to(hall.ours())]);
        let credential = hall.stage.issue().await.result.unwrap();
        assert_eq!(alias.posts()[0].line, "POST /mtls/token HTTP/1.1");
        let Stage { oauth, order, signers, .. } = &hall.stage;
        oauth.revoke(order, signers, &credential).await.unwrap();
        let posts = hall.stage.script.posts();
        assert_eq!((posts.len(), posts[0].line.as_str()), (1, "POST /revoke HTTP/1.1"));
        assert_eq!(posts[0].certificate.is_some(), revokes_with);
        assert_eq!(posts[0].form("client_assertion").is_empty(), revokes_with);
    }
    // A token that is not to be bound, by an assertion, is had where everybody has theirs.
    let mut hall = Hall::new(None).await;
    hall.stage.order.proved_by(ClientAuth::PrivateKeyJwt);
    hall.stage.order.binding = Binding::Bearer;
    let mut metadata = hall.metadata();
    metadata["mtls_endpoint_aliases"] = json!({"token_endpoint": "https://foreign.example/token"});
    hall.stage.script.will([Answer::json(200, metadata), token(), token()]);
    hall.stage.issue().await.result.unwrap();
    // OA-04: and a foreign alias is gone to by nobody.
    hall.stage.order.binding = Binding::Mtls;
    assert_eq!(hall.stage.reason().await, Reason::EndpointForeign);
    assert_eq!(hall.stage.script.posts().len(), 1);
}

#[tokio::test]
async fn a_server_that_is_not_the_issuers_sees_no_request_and_no_certificate() {
    // MT-06
    let mut hall = Hall::new(Some(Asks::anybody())).await;
    let directory = tempfile::tempdir().unwrap();
    let (misnamed, _) = Script::asking(&directory, &["elsewhere.example"], Some(Asks::anybody())).await;
    let (untrusted, _) = Script::asking(&directory, &["localhost"], Some(Asks::anybody())).await;
    let good = hall.alias(Some(Asks::anybody())).await;
    for (there, reason) in
        [(&misnamed, Some(Reason::IssuerTls)), (&untrusted, Some(Reason::IssuerTls)), (&good, None)]
    {
        let settings = hall.stage.oauth.settings.clone();
        let clock = Arc::clone(&hall.stage.clock);
        hall.stage.oauth = OAuth::new(settings, clock, SystemDice::shared()).unwrap();
        let mut metadata = hall.metadata();
        metadata["mtls_endpoint_aliases"] = json!({"token_endpoint": format!("{}/token", there.url)});
        hall.stage.script.will([Answer::json(200, metadata)]);
        there.will([bound_to(hall.ours())]);
        assert_eq!(hall.stage.issue().await.result.err().map(|error| error.reason()), reason);
        assert_eq!(there.diary().is_empty(), reason.is_some());
    }
}

#[tokio::test]
async fn a_token_of_another_binding_is_thrown_away() {
    // MT-07
    for (answer, issuer_binds) in [
        (confirming(&Value::Null), true),
        (confirming(&json!({"x5t#S256": certificate("other").thumbprint()})), true),
        (confirming(&json!({"jkt": "x"})), true),
        (token(), false),
    ] {
        let hall = Hall::new(Some(Asks::anybody())).await;
        let mut metadata = hall.metadata();
        metadata["tls_client_certificate_bound_access_tokens"] = json!(issuer_binds);
        hall.stage.script.will([Answer::json(200, metadata), answer]);
        let refused = hall.stage.issue().await.result.unwrap_err();
        assert!(matches!(refused, IssueError::Refused { reason: Reason::TokenNotBound, .. }), "{refused}");
    }
    // An opaque one is taken at the issuer's word, if it gave it.
    let hall = Hall::new(Some(Asks::anybody())).await;
    let mut metadata = hall.metadata();
    metadata["tls_client_certificate_bound_access_tokens"] = json!(true);
    hall.stage.script.will([Answer::json(200, metadata), token()]);
    assert_eq!(hall.stage.issue().await.result.unwrap().binding(), Binding::Mtls);
    // And a bearer token is not one that is bound.
    let mut hall = Hall::new(Some(Asks::anybody())).await;
    hall.stage.order.binding = Binding::Bearer;
    hall.will([bound_to(hall.ours())]);
    assert_eq!(hall.stage.reason().await, Reason::TokenNotBound);
}

#[tokio::test]
async fn no_connection_and_no_session_is_shared_by_two_identities() {
    // MT-10
    let mut hall = Hall::new(Some(Asks::anybody())).await;
    let kept = |hall: &Hall| {
        let Answer::Full { body, .. } = bound_to(hall.ours()) else { panic!("a whole answer") };
        Answer::KeptOpen { body }
    };
    hall.will([kept(&hall), kept(&hall)]);
    for _ in 0..2 {
        hall.stage.issue().await.result.unwrap();
    }
    hall.stage.order.identity = "shipping".into();
    hall.stage.signers.certificates = vec![certificate("shipping")];
    hall.stage.script.will([bound_to(hall.ours()), bound_to(hall.ours())]);
    for _ in 0..2 {
        hall.stage.issue().await.result.unwrap();
    }
    let posts = hall.stage.script.posts();
    let connections: Vec<usize> = posts.iter().map(|post| post.connection.0).collect();
    assert_eq!(connections[0], connections[1], "of one identity it is used again");
    assert!(connections[1] != connections[2] && connections[2] != connections[3], "{connections:?}");
    let shown: Vec<_> = posts.iter().map(thumbprint).collect();
    assert_eq!((&shown[0], &shown[2]), (&shown[1], &shown[3]));
    assert!(shown[0].is_some() && shown[0] != shown[2], "{shown:?}");
    for post in &posts {
        assert_eq!(post.connection.1, Some(HandshakeKind::Full), "{:?}", post.connection);
    }
}

#[tokio::test]
async fn without_a_certificate_sessions_are_picked_up_again() {
    // MT-10: what the test above says is full could be otherwise.
    let mut hall = Hall::new(None).await;
    hall.stage.order.proved_by(ClientAuth::PrivateKeyJwt);
    hall.stage.order.binding = Binding::Bearer;
    hall.will([token(), token()]);
    for _ in 0..2 {
        hall.stage.issue().await.result.unwrap();
    }
    let last = hall.stage.script.posts().pop().unwrap();
    assert_eq!(last.connection.1, Some(HandshakeKind::Resumed));
}

#[tokio::test]
async fn where_the_certificate_is_not_taken_nothing_is_asked() {
    // MT-14
    let other = Asks { authorities: vec![vec![0x30, 0].into()], takes: true };
    let refusing = Asks { authorities: vec![], takes: false };
    for (asks, why) in [
        (Some(other), "other authorities"),
        (None, "asks for no client certificate"),
        (Some(refusing), "the server refused it (UnknownCA)"),
    ] {
        for method in [ClientAuth::SelfSignedTlsClientAuth, ClientAuth::PrivateKeyJwt] {
            let asks = asks.as_ref().map(|asks| Asks { authorities: asks.authorities.clone(), ..*asks });
            let mut hall = Hall::new(None).await;
            let alias = hall.alias(asks).await;
            hall.stage.order.proved_by(method);
            let mut metadata = hall.metadata();
            metadata["mtls_endpoint_aliases"] = json!({"token_endpoint": format!("{}/token", alias.url)});
            hall.stage.script.will([Answer::json(200, metadata)]);
            alias.will([bound_to(hall.ours())]);
            let refused = hall.stage.issue().await.result.unwrap_err();
            let IssueError::Misconfigured { reason: Reason::CertNotAccepted, detail } = &refused else {
                panic!("{refused}")
            };
            assert!(detail.contains(why), "{detail}");
            assert!(alias.diary().is_empty() && hall.stage.script.posts().is_empty());
        }
    }
}

#[tokio::test]
async fn a_certificate_of_a_named_authority_is_shown() {
    // MT-14
    let ours = certificate("billing");
    let leaf = CertificateDer::from(pem(&ours.chain_pem()));
    let (_, read) =
        <x509_parser::certificate::X509Certificate<'_> as x509_parser::prelude::FromDer<_>>::from_der(&leaf)
            .unwrap();
    let authorities = vec![vec![0x30, 0].into(), read.issuer().as_raw().to_vec().into()];
    let mut hall = Hall::new(Some(Asks { authorities, takes: true })).await;
    hall.stage.signers.certificates = vec![ours];
    hall.will([bound_to(hall.ours())]);
    hall.stage.issue().await.result.unwrap();
}

fn pem(text: &str) -> Vec<u8> {
    use rustls_pki_types::pem::PemObject as _;
    CertificateDer::from_pem_slice(text.as_bytes()).unwrap().to_vec()
}

#[tokio::test]
async fn plain_http_carries_no_certificate() {
    // MT-14
    let mut stage = Stage::new().await;
    stage.order.binding = Binding::Mtls;
    stage.signers.certificates = vec![certificate("billing")];
    stage.script.will([Answer::json(200, stage.metadata())]);
    assert_eq!(stage.reason().await, Reason::CertNotAccepted);
    stage.signers.certificates.clear();
    assert_eq!(stage.reason().await, Reason::KeyUnavailable);
    assert!(stage.script.posts().is_empty());
}

#[tokio::test]
async fn the_certificate_before_is_tried_once_and_binds_what_comes() {
    // MT-05, MT-08, KEY-06
    let mut hall = Hall::new(Some(Asks::anybody())).await;
    let before = certificate("before");
    hall.stage.signers.certificates.push(Arc::clone(&before));
    hall.will([
        error(401, "invalid_client"),
        bound_to(&before),
        error(401, "invalid_client"),
        error(401, "invalid_client"),
    ]);
    let issued = hall.stage.issue().await;
    assert!(issued.facts.key_fallback);
    assert_eq!(issued.result.unwrap().bound.thumbprint(), Some(before.thumbprint()));
    let shown: Vec<_> = hall.stage.script.posts().iter().filter_map(thumbprint).collect();
    assert_eq!(shown, [hall.ours().thumbprint(), before.thumbprint()]);
    hall.stage.signers.certificates.pop();
    assert_eq!(hall.stage.reason().await, Reason::ClientAuthRejected);
    assert_eq!(hall.stage.script.posts().len(), 3, "never after it has ended");
}

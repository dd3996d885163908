//! Who asks, and how the server learns it.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

use super::*;
use crate::issuer::{
    conditions::{Conditions, tests::jwt},
    terms::SvidSource,
    token_file::TokenFile,
};

#[tokio::test]
async fn whoever_proves_who_asks_is_shown_where_it_is_known() {
    // CA-04, WIM-11, MT-03
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    let written = jwt(
        json!({"alg": "RS256"}),
        json!({"sub": "system:a:b", "aud": ["https://bao.example"], "exp": NOW + 60}),
    );
    fs::write(&path, &written).unwrap();
    let conditions =
        Conditions { claims: [("sub".into(), "system:a:b".into())].into(), ..Conditions::default() };
    let mut stage =
        Stage::with(database(&[]), |settings| settings.auth_mount = Some("kubernetes".into())).await;
    stage.proved_by(ClientAuth::FederatedJwt(TokenFile { path, conditions }));
    stage.script.will([login(), leased(300)]);
    stage.get().await.unwrap();
    let asked = &stage.script.diary()[0];
    assert_eq!(asked.line, "POST /v1/auth/kubernetes/login HTTP/1.1");
    assert_eq!(body(asked), json!({"role": "payments", "jwt": written}));

    let path = dir.path().join("svid");
    let id = "spiffe://example.org/payments";
    let claims = json!({"sub": id, "aud": ["https://bao.example"], "exp": NOW + 60});
    let svid = jwt(json!({"alg": "ES256", "kid": "k", "typ": "JWT"}), claims);
    fs::write(&path, &svid).unwrap();
    let conditions = Conditions { claims: [("sub".into(), id.into())].into(), ..Conditions::default() };
    let mut stage = Stage::new(database(&[])).await;
    stage.proved_by(ClientAuth::SpiffeJwt(SvidSource::File(TokenFile { path, conditions })));
    stage.script.will([login(), leased(300)]);
    stage.get().await.unwrap();
    assert_eq!(body(&stage.script.diary()[0]), json!({"role": "payments", "jwt": svid}));

    let stage = Stage::asking(database(&[])).await;
    stage.script.will([login(), leased(300)]);
    let credential = stage.get().await.unwrap();
    let [asked, read] = &stage.script.diary()[..] else { panic!("two requests") };
    assert_eq!(asked.line, "POST /v1/auth/cert/login HTTP/1.1");
    assert_eq!(body(asked), json!({"name": "payments"}));
    let ours = &stage.signers.certificates[0].chain()[0];
    assert_eq!([asked.certificate.as_ref(), read.certificate.as_ref()], [Some(ours), Some(ours)]);
    stage.script.will([done()]);
    stage.bao.revoke(&stage.order, &stage.signers, &credential).await.unwrap();
    assert_eq!(stage.last().certificate.as_ref(), Some(ours));
}

#[tokio::test]
async fn the_key_and_the_certificate_before_stand_in_until_the_server_knows_the_new_ones() {
    // KEY-06, MT-05
    let mut stage = Stage::new(database(&[])).await;
    stage.signers.before = Some(Arc::new(Key::generate(Algorithm::Es256).unwrap()));
    stage.script.will([refused(400, &["error validating token"]), login(), leased(300)]);
    let issued = stage.issue(None).await;
    assert!(issued.facts.key_fallback);
    issued.result.unwrap();
    let kids: Vec<String> = stage
        .script
        .posts()
        .iter()
        .map(|post| {
            let said = body(post);
            let token = Unverified::parse(said["jwt"].as_str().unwrap()).unwrap();
            token.header["kid"].as_str().unwrap().to_owned()
        })
        .collect();
    let known = |key: &Option<Arc<dyn Signer>>| key.as_ref().unwrap().kid().to_owned();
    assert_eq!(kids, [known(&stage.signers.client), known(&stage.signers.before)]);

    let stage = Stage::asking(database(&[])).await;
    stage.script.will([refused(400, &["invalid certificate"]), login(), leased(300)]);
    assert!(stage.issue(None).await.facts.key_fallback);
    let before = &stage.signers.certificates[1].chain()[0];
    assert_eq!(stage.last().certificate.as_ref(), Some(before));
    // The second no holds.
    stage.script.will([refused(400, &["invalid certificate"]), refused(403, &["permission denied"])]);
    assert_eq!(stage.reason().await, Reason::ClientAuthRejected);
    // Without any, nothing is sent.
    let mut stage = Stage::asking(database(&[])).await;
    stage.signers.certificates.clear();
    assert_eq!(stage.reason().await, Reason::KeyUnavailable);
    assert!(stage.script.diary().is_empty());
}

#[tokio::test]
async fn a_login_may_go_with_the_request_where_nothing_is_leased() {
    // CA-04: OpenBao's inline auth.
    let kv = || {
        Wants::Lease(LeaseTerms { at: "secret/data/app".into(), fields: vec!["key".into()], unleased: true })
    };
    let stage = Stage::with(kv(), |settings| {
        settings.inline_auth = true;
        settings.namespace = Some("team".into());
    })
    .await;
    let entry = json!({"lease_id": "", "lease_duration": 0, "renewable": false,
        "data": {"data": {"key": "canary", "other": "o"}, "metadata": {"version": 1}}});
    stage.script.will([Answer::json(200, entry)]);
    let credential = stage.get().await.unwrap();
    assert_eq!(told(&credential), [("key", "canary")]);
    // S1: a record tells what was leased from what stays as it is.
    assert_eq!(credential.payload.as_str(), "unleased_values");
    assert_eq!(stage.lines(), ["GET secret/data/app"]);
    let seen = stage.last();
    assert_eq!(header(&seen, "x-vault-inline-auth-path").as_deref(), Some("auth/jwt/login"));
    assert_eq!(header(&seen, "x-vault-token"), None);
    let parameter = |name: &str| -> Value {
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(header(&seen, name).unwrap()).unwrap()).unwrap()
    };
    assert_eq!(parameter("x-vault-inline-auth-parameter-1"), json!({"key": "role", "value": "payments"}));
    let jwt = parameter("x-vault-inline-auth-parameter-2");
    assert_eq!(jwt["key"], "jwt");
    Unverified::parse(jwt["value"].as_str().unwrap()).unwrap();
    // Whose failure it is, is told by a header.
    let failed = refused(403, &["permission denied"]).with("x-vault-inline-auth-failed", "true");
    stage.script.will([failed, refused(403, &["1 error occurred:\n\t* permission denied\n\n"])]);
    assert_eq!(stage.reason().await, Reason::ClientAuthRejected);
    let error = stage.get().await.unwrap_err();
    assert!(
        matches!(&error, IssueError::Refused { detail, .. } if detail.contains("a policy for secret/data/app")),
        "{error}"
    );
    assert!(error.to_string().contains("inline_auth = false"), "{error}");

    // What is leased is had with a token, and the server is not asked twice for what it said once.
    let stage = Stage::with(database(&[]), |settings| settings.inline_auth = true).await;
    let no = || refused(400, &["requests with inline authentication cannot generate leases"]);
    stage.script.will([no(), login(), leased(300), login(), leased(300)]);
    stage.get().await.unwrap();
    assert_eq!(stage.get().await.unwrap().payload.as_str(), "leased_values");
    let at = "GET database/creds/payments";
    assert_eq!(stage.lines(), [at, "POST auth/jwt/login", at, "POST auth/jwt/login", at]);
    // With a certificate.
    let mut stage = Stage::asking(kv()).await;
    let (script, directory) = (stage.script.clone(), tempfile::tempdir().unwrap());
    let root = stage.directory.path().join("localhost.pem");
    let other = Stage::of(script, directory, kv(), |settings| {
        (settings.ca_file, settings.inline_auth) = (Some(root), true);
    });
    stage.bao = other.bao;
    stage.script.will([Answer::json(200, json!({"data": {"key": "b"}, "lease_id": ""}))]);
    stage.get().await.unwrap();
    let seen = stage.last();
    let named = URL_SAFE_NO_PAD.decode(header(&seen, "x-vault-inline-auth-parameter-1").unwrap()).unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&named).unwrap(), json!({"key": "name", "value": "payments"}));
    assert_eq!(header(&seen, "x-vault-inline-auth-path").as_deref(), Some("auth/cert/login"));
    assert!(seen.certificate.is_some());
}

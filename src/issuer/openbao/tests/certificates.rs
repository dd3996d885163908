//! Certificates of the PKI engine. What is doubted of them has tests with the engine of `x509`.

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, IsCa, Issuer as Ca,
    KeyPair, date_time_ymd,
};

use super::*;
use crate::{
    issuer::{
        Rejected,
        x509::{Ask, Authority as _, Signed},
    },
    keys::{Enrolment, KeyKind},
};

type Bend = fn(&mut Value);

/// A root, an intermediate, and the certificate that the latter makes for a request.
struct Cas {
    root: rcgen::Certificate,
    between: rcgen::Certificate,
    signs: Ca<'static, KeyPair>,
}

impl Cas {
    fn new() -> Self {
        let authority = |name: &str| {
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, name);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.not_after = date_time_ymd(2040, 1, 1);
            (params, KeyPair::generate().unwrap())
        };
        let ((above, above_key), (below, below_key)) = (authority("root"), authority("between"));
        let root = above.self_signed(&above_key).unwrap();
        let between = below.signed_by(&below_key, &Ca::new(above, above_key)).unwrap();
        Self { root, between, signs: Ca::new(below, below_key) }
    }

    fn answer(&self, request: &Enrolment, change: impl FnOnce(&mut Value)) -> Answer {
        let mut params = CertificateSigningRequestParams::from_der(&request.csr().into()).unwrap();
        let at = |seconds: i64| date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds.try_into().unwrap());
        (params.params.not_before, params.params.not_after) = (at(NOW - 30), at(NOW + 900));
        params.params.serial_number = Some(vec![0xf1, 2, 3].into());
        params.params.is_ca = IsCa::ExplicitNoCa;
        let leaf = params.signed_by(&self.signs).unwrap();
        let mut said = json!({"lease_id": "", "lease_duration": 0, "data": {
            "certificate": leaf.pem(), "issuing_ca": self.between.pem(), "serial_number": "f1:02:03",
            "ca_chain": [self.between.pem(), self.root.pem()],
        }});
        change(&mut said);
        Answer::json(200, said)
    }
}

/// Has a certificate signed, with the edge alone: the engine has tests of its own.
async fn sign(stage: &Stage, request: &Enrolment) -> Result<Vec<Vec<u8>>, IssueError> {
    let Wants::Certificate(terms) = &stage.order.terms.wants else { panic!("a certificate") };
    let ask = Ask { order: &stage.order, terms, signers: &stage.signers, request, held: None };
    match stage.bao.certificates.authority().sign(ask, &mut IssueFacts::default()).await? {
        Signed::Chain(chain) => Ok(chain.into_iter().map(|one| one.to_vec()).collect()),
        Signed::Later(_) => panic!("this one never says later"),
    }
}

#[tokio::test]
async fn a_certificate_is_asked_for_by_all_its_names_and_its_chain_comes_without_the_root() {
    // CA-04, X5-01, X5-02
    let cas = Cas::new();
    let terms = signed_at("team/pki/sign/payments");
    let request = Enrolment::begin(&terms.subject, KeyKind::P256).unwrap();
    let stage = Stage::new(Wants::Certificate(terms)).await;
    stage.script.will([login(), cas.answer(&request, |_| {}), done()]);
    let chain = sign(&stage, &request).await.unwrap();
    assert_eq!((chain.len(), chain[1].as_slice()), (2, cas.between.der().as_ref()));
    assert_eq!(
        stage.lines(),
        ["POST auth/jwt/login", "POST team/pki/sign/payments", "POST auth/token/revoke-self"]
    );
    assert_eq!(
        body(&stage.script.diary()[1]),
        json!({
            "csr": request.csr_pem(), "common_name": "", "uri_sans": URI, "alt_names": "a.example,b.example",
            "ip_sans": "192.0.2.7", "ttl": "900s", "exclude_cn_from_sans": true, "format": "pem",
        })
    );
    // A server that sends no chain sends who signed.
    stage.script.will([login(), cas.answer(&request, |said| said["data"]["ca_chain"] = Value::Null), done()]);
    assert_eq!(sign(&stage, &request).await.unwrap().len(), 2);
    // With the login in the request there is no token to end.
    let inline = Stage::with(stage.order.terms.wants.clone(), |settings| settings.inline_auth = true).await;
    inline.script.will([cas.answer(&request, |_| {})]);
    sign(&inline, &request).await.unwrap();
    assert_eq!(inline.lines(), ["POST team/pki/sign/payments"]);

    let bend: [(Bend, Reason); 6] = [
        (|said| said["data"]["certificate"] = "none".into(), Reason::CertRejected(Rejected::Form)),
        (|said| said["data"]["certificate"] = Value::Null, Reason::CertRejected(Rejected::Form)),
        (|said| said["data"]["serial_number"] = "f1:02:04".into(), Reason::CertRejected(Rejected::Form)),
        (|said| said["data"]["serial_number"] = Value::Null, Reason::CertRejected(Rejected::Form)),
        (|said| said["data"]["ca_chain"] = json!(["none"]), Reason::CertRejected(Rejected::Form)),
        (|said| said["lease_id"] = "pki/sign/payments/l".into(), Reason::IssuerConfig),
    ];
    for (at, (bend, reason)) in bend.into_iter().enumerate() {
        stage.script.will([login(), cas.answer(&request, bend), done()]);
        assert_eq!(sign(&stage, &request).await.unwrap_err().reason(), reason, "{at}");
    }
    let late = "cannot satisfy request, as TTL would result in notAfter of X that is beyond the expiration of the CA certificate at Y";
    stage.script.will([login(), refused(400, &[late]), done()]);
    let error = sign(&stage, &request).await.unwrap_err();
    assert!(
        matches!(&error, IssueError::Misconfigured { detail, .. } if detail.contains("lower max_ttl")),
        "{error}"
    );
}

#[tokio::test]
async fn the_whole_way_to_a_certificate_needs_the_roots() {
    // CA-04, X5-02
    let stage = Stage::new(Wants::Certificate(signed_at("pki/sign/payments"))).await;
    let error = stage.get().await.unwrap_err();
    assert!(
        matches!(&error, IssueError::Misconfigured { detail, .. } if detail.contains("set roots")),
        "{error}"
    );
    let nowhere = Some("/nowhere/roots.pem".into());
    let stage =
        Stage::with(Wants::Certificate(signed_at("pki/sign/payments")), |settings| settings.roots = nowhere)
            .await;
    assert!(stage.get().await.unwrap_err().to_string().contains("/nowhere/roots.pem"));
    assert!(stage.script.diary().is_empty(), "nothing is asked for that could not be checked");
    let stage = Stage::new(Wants::Token).await;
    assert_eq!(stage.reason().await, Reason::IssuerConfig);
}

#[tokio::test]
async fn a_certificate_is_revoked_by_its_serial_at_its_own_engine() {
    // X5-07
    let cas = Cas::new();
    let terms = signed_at("team/pki/issuer/default/sign/payments");
    let request = Enrolment::begin(&terms.subject, KeyKind::P256).unwrap();
    let stage = Stage::new(Wants::Certificate(terms)).await;
    stage.script.will([login(), cas.answer(&request, |_| {}), done()]);
    let leaf = sign(&stage, &request).await.unwrap().remove(0);
    let pki = stage.bao.certificates.authority();
    stage.script.will([login(), Answer::json(200, json!({"data": {"revocation_time": NOW}})), done()]);
    pki.revoke(&stage.order, &stage.signers, &leaf).await.unwrap();
    assert_eq!(
        stage.lines()[3..],
        ["POST auth/jwt/login", "POST team/pki/revoke", "POST auth/token/revoke-self"]
    );
    // DER has a zero before it, and the server's index has none.
    assert_eq!(body(&stage.script.diary()[4]), json!({"serial_number": "f1:02:03"}));
    stage.script.will([login(), refused(503, &["Vault is sealed"]), done()]);
    assert!(matches!(pki.revoke(&stage.order, &stage.signers, &leaf).await, Err(IssueError::Retry { .. })));
    let garbage = pki.revoke(&stage.order, &stage.signers, b"garbage").await.unwrap_err();
    assert!(matches!(garbage, IssueError::Refused { .. }), "{garbage}");
}

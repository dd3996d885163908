//! What must hold of any answer of an issuer.

use std::{sync::Arc, time::Duration};

use http::{HeaderMap, HeaderValue, Uri, header};
use jiff::{SignedDuration, Timestamp};

use super::{
    AssertionTyp, Audience, OAuthSettings, WellKnown,
    metadata::Metadata,
    refusal,
    reply::{self, Moment},
};
use crate::{
    clock::Boot,
    credential::Binding,
    issuer::{IssueFacts, Order, http::Response},
    jose::Algorithm,
    keys::Key,
    secret::Secret,
};

const ISSUER: &str = "https://issuer.example";

/// Never more than was ordered; never a character that could end a header; what is quoted is fit to be written; endpoints are
/// at home. The first byte chooses the status.
pub fn reply(bytes: &[u8]) {
    let Some((status, body)) = bytes.split_first() else { return };
    let status = [200, 400, 401, 403, 429, 500, 503][usize::from(*status) % 7];
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let response = Response { status, headers, body: Secret::new(body.to_vec()) };
    let order = order();
    let wall = Timestamp::UNIX_EPOCH + SignedDuration::from_secs(1_700_000_000);
    let boot = Boot::from_nanos(3_600_000_000_000);
    let now = Moment { sent: boot, received: boot, wall, correction: SignedDuration::ZERO };
    if status == 200 {
        if let Ok(credential) = reply::accept(&response, &order, ISSUER, now, &mut IssueFacts::default()) {
            assert!(credential.window.life() <= order.max_ttl && !credential.window.life().is_zero());
            assert!(credential.scope.iter().all(|scope| order.scope.iter().any(|asked| **asked == **scope)));
            assert_eq!(credential.audience.as_deref(), order.resource.as_deref());
            let token = credential.token.expose();
            assert!(!token.is_empty() && token.iter().all(u8::is_ascii_graphic));
        }
        if let Ok(metadata) = Metadata::read(body, &settings()) {
            let endpoint: Uri = metadata.token_endpoint.parse().expect("an endpoint is a URL");
            assert_eq!(endpoint.scheme_str(), Some("https"));
            assert!(
                endpoint.host().is_some_and(|host| host.eq_ignore_ascii_case("issuer.example")),
                "{endpoint}"
            );
        }
    } else {
        let detail = refusal::classify(&response, wall).to_string();
        assert!(detail.len() < 1024 && detail.bytes().all(|byte| matches!(byte, b' '..=b'~')), "{detail:?}");
    }
}

fn order() -> Order {
    Order {
        identity: "billing".into(),
        credential: "orders".into(),
        issuer: "corp".into(),
        client_id: "billing".into(),
        resource: Some("https://api.example".into()),
        scope: ["orders.read".into(), "orders.write".into()].into(),
        require_aud: true,
        max_ttl: Duration::from_secs(900),
        binding: Binding::Bearer,
        signer: Arc::new(Key::generate(Algorithm::EdDsa).expect("a key can be made")),
    }
}

fn settings() -> OAuthSettings {
    OAuthSettings {
        name: "corp".into(),
        issuer: ISSUER.into(),
        well_known: WellKnown::Both,
        audience: Audience::default(),
        allowed_endpoint_hosts: vec![],
        ca_file: None,
        dev: false,
        assertion_life: Duration::from_secs(60),
        assertion_typ: AssertionTyp::default(),
        send_client_id: false,
        timeout: Duration::from_secs(5),
    }
}

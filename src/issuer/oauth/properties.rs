//! What must hold of any answer of an issuer.

use std::{collections::BTreeSet, time::Duration};

use http::{HeaderMap, HeaderValue, Uri, header};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::{
    AssertionTyp, Audience, OAuthSettings, Pins, WellKnown,
    metadata::Metadata,
    refusal, registration,
    reply::{self, Moment},
};
use crate::{
    clock::Boot,
    credential::{Binding, Bound, Credential},
    issuer::{
        IssueError, IssueFacts, Order,
        http::Response,
        json as strict,
        registration::{Access, ISSUERS_OWN, Registration, Wanted},
    },
    jose::Unverified,
    secret::Secret,
};

const ISSUER: &str = "https://issuer.example";

/// What the wall clock says here.
const NOW: i64 = 1_700_000_000;

/// Never more than was ordered; never a character that could end a header; what is quoted is fit to be written; endpoints are
/// at home. The first byte chooses the status.
pub fn reply(bytes: &[u8]) {
    let Some((status, body)) = bytes.split_first() else { return };
    let status = [200, 400, 401, 403, 429, 500, 503][usize::from(*status) % 7];
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    // The same bytes as a wish for when to come back.
    if let Ok(wish) = HeaderValue::from_bytes(body) {
        headers.insert(header::RETRY_AFTER, wish);
    }
    let response = Response { status, headers, body: Secret::new(body.to_vec()) };
    let order = order();
    let wall = Timestamp::UNIX_EPOCH + SignedDuration::from_secs(NOW);
    strictly(body);
    let boot = Boot::from_nanos(3_600_000_000_000);
    let now = Moment { sent: boot, received: boot, wall, correction: SignedDuration::ZERO };
    if status == 200 {
        if let Ok(credential) =
            reply::accept(&response, &order, Bound::Bearer, ISSUER, now, &mut IssueFacts::default())
        {
            assert!(credential.window.life() <= order.max_ttl && !credential.window.life().is_zero());
            assert!(credential.scope.iter().all(|scope| order.scope.iter().any(|asked| **asked == **scope)));
            assert_eq!(credential.audience.as_deref(), order.resource.as_deref());
            let token = credential.handle().expose();
            assert!(!token.is_empty() && token.iter().all(u8::is_ascii_graphic));
            claims_fit(&credential, &order);
        }
        registration(&response);
        match Metadata::read(body, &settings()) {
            Err(error) => fit_to_write(&error),
            Ok(metadata) => {
                let named = [false, true].map(|mtls| {
                    [
                        metadata.token_endpoint(mtls).map(Some),
                        metadata.revocation_endpoint(mtls),
                        metadata.introspection_endpoint(mtls),
                    ]
                });
                // An alias that may not be used is told as an error, and never as a URL.
                for url in named.into_iter().flatten().filter_map(Result::ok).flatten() {
                    let endpoint: Uri = url.parse().expect("an endpoint is a URL");
                    assert_eq!(endpoint.scheme_str(), Some("https"));
                    let home = |host: &str| {
                        let host = host.to_ascii_lowercase();
                        host == "issuer.example" || host.ends_with(".issuer.example")
                    };
                    assert!(endpoint.host().is_some_and(home), "{endpoint}");
                }
            }
        }
    } else {
        let error = refusal::classify(&response, wall);
        fit_to_write(&error);
        if let IssueError::Retry { after, .. } = error {
            assert!(after.is_none_or(|after| after <= Duration::from_secs(3600)), "{after:?}");
        }
    }
}

/// A registration goes back with our keys and otherwise as it came, and the right to it to no other host (KEY-09, OA-04).
fn registration(response: &Response) {
    let access = Access { uri: format!("{ISSUER}/r"), token: Secret::new("right") };
    let told = match registration::read(response, &access, &settings()) {
        Err(error) => return fit_to_write(&error),
        Ok(told) => told,
    };
    if let Some(renewed) = &told.renewed {
        let token = renewed.token.expose();
        assert!(!token.is_empty() && token.iter().all(u8::is_ascii_graphic));
        assert!(super::misplaced(&renewed.uri, &settings()).is_none(), "{}", renewed.uri);
    }
    if let Some(error) = &told.misplaced {
        fit_to_write(error);
    }
    let wanted = Wanted {
        client_id: "billing".into(),
        client_auth: Default::default(),
        grants: ["client_credentials"].into(),
        keys: [("unknown ours".into(), json!({"kid": "ours"}))].into(),
    };
    match told.revised(&wanted) {
        Err(error) => fit_to_write(&error),
        Ok(None) => assert_eq!(told.ids(), wanted.ids()),
        Ok(Some(Value::Object(mut sent))) => {
            let whole = Value::Object(sent.clone());
            let back = Registration { metadata: sent.clone(), renewed: None, misplaced: None };
            assert!(back.confirm(&whole, &wanted).is_ok(), "{whole}");
            if let Err(error) = told.confirm(&whole, &wanted) {
                fit_to_write(&error);
            }
            let mut came = told.metadata.clone();
            came.retain(|name, _| {
                !["jwks", "client_id"].contains(&name.as_str()) && !ISSUERS_OWN.contains(&name.as_str())
            });
            sent.retain(|name, _| !["jwks", "client_id"].contains(&name.as_str()));
            assert_eq!(sent, came);
        }
        Ok(Some(other)) => panic!("{other}"),
    }
}

/// Short and printable, and what it quotes holds no JWT (ER-13).
fn fit_to_write(error: &IssueError) {
    let detail = error.to_string();
    assert!(detail.len() < 600 && detail.bytes().all(|byte| matches!(byte, b' '..=b'~')), "{detail:?}");
    let mut words = detail.split(|c: char| !(c.is_ascii_alphanumeric() || "-_.".contains(c)));
    assert!(!words.any(|word| word.starts_with("eyJ") && word.matches('.').count() >= 2), "{detail:?}");
}

/// Where the strict reader reads, the lenient one reads the same, and no name stands twice in what is written again.
fn strictly(document: &[u8]) {
    if let Ok(value) = strict::parse(document) {
        assert_eq!(serde_json::from_slice::<Value>(document).ok().as_ref(), Some(&value));
        let again = serde_json::to_vec(&value).expect("JSON can be written");
        assert!(strict::parse(&again).is_ok());
    }
}

/// A JWT that was taken is ours by its own account too: issuer, audience, scope and end.
fn claims_fit(credential: &Credential, order: &Order) {
    let token = credential.handle().expose_str().unwrap_or_default();
    let Ok(jwt) = Unverified::parse(token) else { return };
    let Ok(claims) = jwt.claims::<Value>() else { return };
    if !claims.is_object() {
        return;
    }
    let texts = |claim: &str| match &claims[claim] {
        Value::String(text) => text.split(' ').map(str::to_owned).collect(),
        Value::Array(list) => list.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        _ => BTreeSet::new(),
    };
    let resource = order.resource.as_deref().expect("this order names one");
    assert!(texts("aud").contains(resource), "{claims}");
    assert!(claims["iss"].is_null() || claims["iss"] == ISSUER, "{claims}");
    assert!(claims["cnf"].is_null(), "{claims}");
    let asked = |word: &String| word.is_empty() || order.scope.iter().any(|scope| **scope == **word);
    assert!(texts("scope").iter().all(asked), "{claims}");
    if let Some(end) = claims["exp"].as_f64() {
        assert!(credential.window.life().as_secs_f64() <= end - NOW as f64, "{claims}");
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
        terms: std::sync::Arc::default(),
        max_uses: None,
        instance: None,
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
        client_auth_methods: Vec::new(),
        send_client_id: false,
        pins: Pins::default(),
        timeout: Duration::from_secs(5),
    }
}

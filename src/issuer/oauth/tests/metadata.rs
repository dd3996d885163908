//! Metadata against the settings: names, hosts, pins, algorithms, and how long it may be kept.

use std::time::Duration;

use http::{HeaderMap, HeaderValue, header};
use serde_json::{Value, json};

use crate::{
    issuer::{
        IssueError, Reason,
        oauth::{
            Audience, WellKnown,
            metadata::{Metadata, addresses, life},
            problems,
            tests::settings,
        },
        terms::ClientAuth,
    },
    jose::Algorithm,
};

fn document() -> Value {
    json!({
        "issuer": "https://h.example/a/b",
        "token_endpoint": "https://h.example/a/b/token",
        "revocation_endpoint": "https://h.example/a/b/revoke",
    })
}

fn read(document: &Value) -> Result<Metadata, IssueError> {
    Metadata::read(document.to_string().as_bytes(), &settings("https://h.example/a/b"))
}

#[test]
fn the_first_address_has_the_well_known_part_before_the_path() {
    // OA-01
    for (issuer, oauth, openid) in [
        (
            "https://h/a/b",
            "https://h/.well-known/oauth-authorization-server/a/b",
            "https://h/a/b/.well-known/openid-configuration",
        ),
        (
            "https://h:8443/",
            "https://h:8443/.well-known/oauth-authorization-server",
            "https://h:8443/.well-known/openid-configuration",
        ),
    ] {
        let mut settings = settings(issuer);
        assert_eq!(addresses(&settings), [oauth, openid]);
        settings.well_known = WellKnown::OAuth;
        assert_eq!(addresses(&settings), [oauth]);
        settings.well_known = WellKnown::OpenId;
        assert_eq!(addresses(&settings), [openid]);
    }
}

#[test]
fn a_near_miss_of_the_name_is_a_miss() {
    // OA-02
    assert!(read(&document()).is_ok());
    for issuer in [
        json!("https://h.example/a/b/"),
        json!("https://H.example/a/b"),
        json!("https://h.example:443/a/b"),
        json!("http://h.example/a/b"),
        json!("https://h.example/a"),
        json!("https://h.example/{tenantid}/b"),
        json!(" https://h.example/a/b"),
        json!(["https://h.example/a/b"]),
        json!(null),
    ] {
        let mut near = document();
        near["issuer"] = issuer.clone();
        assert_eq!(read(&near).unwrap_err().reason(), Reason::IssuerMismatch, "{issuer}");
    }
}

#[test]
fn endpoints_are_at_home_or_listed() {
    // OA-04
    for (url, fits) in [
        ("https://h.example/token?tenant=1", true),
        ("https://H.EXAMPLE/token", true),
        ("https://mtls.h.example/token", true),
        ("https://listed.example/token", true),
        ("https://evil.example/token", false),
        ("https://evilh.example/token", false),
        ("https://h.example.evil.example/token", false),
        ("https://example/token", false),
        ("https://h.example@evil.example/token", false),
        ("https://user@h.example/token", false),
        ("http://h.example/token", false),
        ("https://h.example/token#x", false),
        ("/token", false),
        ("", false),
    ] {
        for member in ["token_endpoint", "revocation_endpoint"] {
            let mut moved = document();
            moved[member] = json!(url);
            let mut settings = settings("https://h.example/a/b");
            settings.allowed_endpoint_hosts = vec!["listed.example".into()];
            let read = Metadata::read(moved.to_string().as_bytes(), &settings);
            match fits {
                true => assert!(read.is_ok(), "{url}"),
                false => assert_eq!(read.unwrap_err().reason(), Reason::EndpointForeign, "{url}"),
            }
        }
    }
}

#[test]
fn a_broken_document_is_trouble() {
    // OA-03
    let twice = br#"{"issuer":"https://h.example/a/b","issuer":"https://h.example/a/b"}"#;
    let homeless = br#"{"issuer":"https://h.example/a/b"}"#;
    for text in [&b"{"[..], b"[]", twice, homeless] {
        let error = Metadata::read(text, &settings("https://h.example/a/b")).unwrap_err();
        assert!(matches!(error.reason(), Reason::IssuerProtocol | Reason::IssuerMismatch), "{error}");
    }
}

#[test]
fn the_pin_and_the_metadata_agree() {
    // PKJ-05
    let mut settings = settings("https://h.example/a/b");
    for (pinned, fits) in [("https://h.example/a/b/token", true), ("https://h.example/a/b/token/", false)] {
        settings.audience = Audience::TokenEndpoint { pinned: pinned.into() };
        let read =
            Metadata::read(document().to_string().as_bytes(), &settings).map_err(|error| error.reason());
        assert_eq!(read.err(), if fits { None } else { Some(Reason::CfgAudPin) });
    }
}

#[test]
fn an_algorithm_in_common_is_needed() {
    // PKJ-10
    let with = |member: &str, list: Value| {
        let mut document = document();
        document[member] = list;
        read(&document).unwrap().accepts(&ClientAuth::PrivateKeyJwt, Some(Algorithm::Es256))
    };
    let algorithms = "token_endpoint_auth_signing_alg_values_supported";
    assert_eq!(
        read(&document()).unwrap().accepts(&ClientAuth::PrivateKeyJwt, Some(Algorithm::Es256)),
        Ok(())
    );
    assert_eq!(with(algorithms, json!(["RS256", "ES256"])), Ok(()));
    for list in [json!(["HS256"]), json!(["PS256", "none"]), json!([])] {
        let error = with(algorithms, list).unwrap_err();
        assert_eq!(error.reason(), Reason::IssuerConfig);
        assert!(error.to_string().contains("ES256"), "{error}");
    }
    assert!(with(algorithms, json!(["PS256"])).unwrap_err().to_string().contains("PS256"));
    let methods = "token_endpoint_auth_methods_supported";
    assert_eq!(with(methods, json!(["client_secret_basic", "private_key_jwt"])), Ok(()));
    assert_eq!(with(methods, json!(["client_secret_basic"])).unwrap_err().reason(), Reason::IssuerConfig);
}

#[test]
fn a_document_lives_as_long_as_it_says_within_bounds() {
    // OA-07
    for (said, minutes) in [
        (None, 60),
        (Some("max-age=1"), 5),
        (Some("public, max-age=1800"), 30),
        (Some("Max-Age=\"1800\""), 30),
        (Some("max-age=31536000"), 24 * 60),
        (Some("no-store"), 5),
        (Some("no-cache, max-age=1800"), 5),
        (Some("max-age=soon"), 60),
    ] {
        let mut headers = HeaderMap::new();
        if let Some(said) = said {
            headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(said));
        }
        assert_eq!(life(&headers), Duration::from_secs(minutes * 60), "{said:?}");
    }
}

#[test]
fn settings_that_cannot_work_are_named() {
    // OA-01, PKJ-05, PKJ-07
    assert_eq!(problems(&settings("https://h.example/a/b")), []);
    assert_eq!(problems(&settings("http://127.0.0.1:8080")), []);
    for issuer in [
        "http://h.example",
        "https://h.example/a?b=c",
        "https://h.example/#x",
        "https://u@h.example/",
        "h.example",
        "",
        "ftp://h.example",
        "https://",
    ] {
        let found = problems(&settings(issuer));
        assert!(found.iter().any(|(key, _)| *key == "issuer"), "{issuer}");
    }
    let mut strict = settings("http://127.0.0.1:8080");
    strict.dev = false;
    assert_eq!(problems(&strict).len(), 1);
    for pinned in ["", "http://h.example/token", "https://evil.example/token"] {
        let mut settings = settings("https://h.example/a/b");
        settings.audience = Audience::TokenEndpoint { pinned: pinned.into() };
        let found = problems(&settings);
        assert!(
            matches!(&found[..], [("token_endpoint", what)] if what.starts_with("CFG_AUD_PIN")),
            "{pinned}"
        );
    }
    let mut odd = settings("https://h.example");
    odd.assertion_life = Duration::from_secs(61);
    odd.timeout = Duration::ZERO;
    odd.allowed_endpoint_hosts =
        vec!["https://x.example".into(), "x.example:8443".into(), "*.x.example".into()];
    let keys: Vec<_> = problems(&odd).into_iter().map(|(key, _)| key).collect();
    let hosts = "allowed_endpoint_hosts";
    assert_eq!(keys, [hosts, hosts, hosts, "assertion_life", "timeout"]);
}

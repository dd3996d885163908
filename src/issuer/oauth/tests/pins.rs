//! Metadata that are pinned, and change.

use ring::digest;
use serde_json::json;

use super::*;

fn pin(document: &str) -> Option<[u8; 32]> {
    digest::digest(&digest::SHA256, document.as_bytes()).as_ref().try_into().ok()
}

#[tokio::test]
async fn a_change_is_told_and_strict_signs_nothing() {
    // OA-05
    let metadata = |url: &str, more: bool| {
        let path = if more { "token2" } else { "token" };
        json!({"issuer": url, "token_endpoint": format!("{url}/{path}")}).to_string()
    };
    for by_endpoint in [false, true] {
        for (on_change, changed, expected) in [
            (OnChange::Warn, false, None),
            (OnChange::Strict, false, None),
            (OnChange::Warn, true, None),
            (OnChange::Strict, true, Some(Reason::MetadataChanged)),
        ] {
            let stage = Stage::with(|settings| {
                let url = settings.issuer.clone();
                settings.pins = if by_endpoint {
                    let endpoints = vec![("token_endpoint".into(), format!("{url}/token"))];
                    Pins { endpoints, on_change, ..Pins::default() }
                } else {
                    Pins { document: pin(&metadata(&url, false)), on_change, ..Pins::default() }
                };
            })
            .await;
            let document = metadata(&stage.script.url, changed);
            stage.script.will([Answer::json(200, &document), token(), token()]);
            let first = stage.issue().await;
            let reason = first.result.as_ref().err().map(IssueError::reason);
            assert_eq!(reason, expected, "{on_change:?} {changed}");
            let signed = stage.script.posts().len();
            assert_eq!(signed, usize::from(expected.is_none()));
            if expected.is_none() {
                // Every record says so, not only the one of the fetch.
                assert_eq!(
                    [first.facts.metadata_changed, stage.issue().await.facts.metadata_changed],
                    [changed; 2]
                );
            } else {
                let told = first.result.unwrap_err().to_string();
                let now = crate::secret::hex(&pin(&document).unwrap());
                let hint = if by_endpoint { "token_endpoint is now" } else { now.as_str() };
                assert!(told.contains(hint), "the operator sees what to pin: {told}");
            }
        }
    }
}

#[tokio::test]
async fn a_change_while_it_runs_stops_what_was_signed_for_before() {
    // OA-05, OA-07
    let stage = Stage::with(|settings| {
        let endpoints = vec![("revocation_endpoint".into(), format!("{}/revoke", settings.issuer))];
        settings.pins = Pins { endpoints, on_change: OnChange::Strict, ..Pins::default() };
    })
    .await;
    stage.script.will([Answer::json(200, stage.metadata()), token(), error(404, "gone")]);
    stage.issue().await.result.unwrap();
    stage.issue().await.result.unwrap_err();
    stage.clock.advance(Duration::from_secs(60));
    let mut moved = stage.metadata();
    moved["revocation_endpoint"] = Value::Null;
    stage.script.will([Answer::json(200, moved)]);
    assert_eq!(stage.reason().await, Reason::MetadataChanged);
    assert_eq!(stage.script.posts().len(), 2);
}

#[test]
fn a_pin_that_says_nothing_is_a_mistake() {
    // OA-05
    let keys = |pins: Pins| -> Vec<_> {
        let settings = OAuthSettings { pins, ..settings("https://h.example") };
        problems(&settings).into_iter().map(|(key, _)| key).collect()
    };
    let strict = Pins { on_change: OnChange::Strict, ..Pins::default() };
    assert_eq!(keys(strict.clone()), ["metadata_change"]);
    assert!(keys(Pins { document: Some([0; 32]), ..strict.clone() }).is_empty());
    for (name, url, sound) in [
        ("token_endpoint", "https://h.example/token", true),
        ("token", "https://h.example/token", false),
        ("token_endpoint", "http://h.example/token", false),
    ] {
        let pins = Pins { endpoints: vec![(name.into(), url.into())], ..strict.clone() };
        assert_eq!(keys(pins).is_empty(), sound, "{name} {url}");
    }
}

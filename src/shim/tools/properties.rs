//! What must hold of anything that a client asks for, whoever made it ask.

use super::{Place, Tool, choose, docker, git, kubectl};
use crate::proto::v1::{AccessToken, Credential, Offer, credential::Kind};

/// The one place of the one credential.
const HOME: &str = "a.example:8443";

/// A place is one place, however it was written; a credential is given out only where its very host stands in the question and no
/// other does; and an answer to git has the lines that it should have and none of anybody else's.
pub fn asked(bytes: &[u8]) {
    let offer = Offer {
        name: "c".into(),
        origins: vec![format!("https://{HOME}")],
        binding: "bearer".into(),
        per: "identity".into(),
        ..Offer::default()
    };
    let text = String::from_utf8_lossy(bytes);
    for place in [Place::of_host(&text), Place::of_url(&text)].into_iter().flatten() {
        is_one(&place);
    }
    let is_given = |tool, place: &Place| {
        is_one(place);
        choose(tool, std::slice::from_ref(&offer), place).is_ok_and(|chosen| chosen.is_some())
    };
    if let Ok(Some(request)) = git::Request::read(bytes) {
        let question: Vec<&str> = text.split('\n').take_while(|line| !line.is_empty()).collect();
        let hosts: Vec<_> = question.iter().filter_map(|line| line.strip_prefix("host=")).collect();
        let is_home = hosts.len() == 1 && hosts[0].eq_ignore_ascii_case(HOME);
        assert!(question.contains(&"protocol=https"), "{question:?}");
        assert_eq!(is_given(Tool::Git, &request.place), is_home, "{question:?}");
        answers(&request, &offer);
    }
    if let Ok((server, place)) = docker::read(bytes) {
        let name = server.strip_prefix("https://").unwrap_or(server);
        let host = name.split('/').next().unwrap_or_default();
        assert_eq!(is_given(Tool::Docker, &place), host.eq_ignore_ascii_case(HOME), "{server:?}");
        assert!(!server.contains(char::is_control), "{server:?}");
    }
    if let Ok(request) = kubectl::Request::read(Some(&text))
        && request.permits(&offer).is_ok()
    {
        assert!(text.contains("8443"), "{text:?}");
    }
}

fn is_one(place: &Place) {
    let written = place.to_string();
    assert_eq!(Place::of_host(&written).as_ref(), Some(place));
    assert_eq!(Place::of_url(&format!("https://{written}")).as_ref(), Some(place));
    assert!(
        written.bytes().all(|byte| byte.is_ascii_graphic() && !b"@/%?#\\".contains(&byte)),
        "{written:?}"
    );
}

fn answers(request: &git::Request, offer: &Offer) {
    let credential = Credential {
        name: "c".into(),
        kind: Some(Kind::AccessToken(AccessToken { token: "t".into(), token_type: "Bearer".into() })),
        binding: "bearer".into(),
        expires_at: Some(prost_types::Timestamp { seconds: 1, nanos: 0 }),
        ..Credential::default()
    };
    let Ok(answer) = request.answer(offer, &credential) else { return };
    let answer = answer.expose_str().expect("it is made of text");
    let keys: Vec<_> = answer.lines().filter_map(|line| Some(line.split_once('=')?.0)).collect();
    assert!(!answer.contains(|c: char| c != '\n' && c.is_control()), "{answer:?}");
    let basic: &[&str] = &["username", "password", "password_expiry_utc"];
    let bearer: &[&str] = &["capability[]", "authtype", "ephemeral", "credential", "password_expiry_utc"];
    assert!(keys == basic || keys == bearer, "{answer:?}");
    assert_eq!(answer.lines().count(), keys.len(), "{answer:?}");
}

//! What must hold of a call that a program asks for, and of what an API says of it, whoever wrote either.

use http::{HeaderMap, HeaderName, HeaderValue, Uri, header};

use super::{Asks, Path, asks, back, onward};

const ORIGIN: &str = "https://api.example:8443";

/// A path leads to the origin that was decided and nowhere else, whoever reads it; what speaks of a connection or of who calls
/// does not pass; and nobody is asked again who did not say so. The first line is a path, each after it a header.
pub fn forward(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let mut lines = text.lines();
    let target = lines.next().unwrap_or_default();
    let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
    if let Ok(parsed) = Path::parse(path, query) {
        leads_home(&parsed);
    }
    let mut headers = HeaderMap::new();
    for (name, value) in lines.filter_map(|line| line.split_once(':')).take(64) {
        if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), HeaderValue::from_str(value.trim())) {
            headers.append(name, value);
        }
    }
    passes(&headers);
    headers.append(
        header::WWW_AUTHENTICATE,
        HeaderValue::from_bytes(bytes).unwrap_or(HeaderValue::from_static("")),
    );
    let said: String = headers
        .get_all(header::WWW_AUTHENTICATE)
        .iter()
        .map(|value| String::from_utf8_lossy(value.as_bytes()).replace('\\', ""))
        .collect();
    match asks(&headers) {
        Asks::Nonce => assert!(said.contains("use_dpop_nonce"), "{said:?}"),
        Asks::Token => assert!(said.contains("invalid_token"), "{said:?}"),
        Asks::Nothing => {}
    }
}

fn leads_home(path: &Path) {
    let target = path.at(ORIGIN).expect("a path at an origin is a target");
    assert_eq!(target.origin(), ORIGIN, "{path:?}");
    let url: Uri = path.url(&target).parse().expect("what is sent is a URL");
    assert_eq!(
        (url.scheme_str(), url.host(), url.port_u16()),
        (Some("https"), Some("api.example"), Some(8443))
    );
    assert_eq!(
        (url.path(), target.htu()),
        (path.as_str(), &*format!("{ORIGIN}{}", path.as_str())),
        "as it was written"
    );
    // As any reader may have it: decoded, cut at semicolons, in small letters.
    let mut text = path.as_str().to_owned();
    for (code, plain) in (0x21u8..0x7f).map(|byte| (format!("%{byte:02x}"), char::from(byte).to_string())) {
        text = text.replace(&code, &plain).replace(&code.to_uppercase(), &plain);
    }
    let mut steps: Vec<&str> =
        text[1..].split('/').map(|step| step.split(';').next().unwrap_or_default()).collect();
    // A slash at the end is none between steps.
    steps.pop_if(|last| last.is_empty());
    assert!(steps.iter().all(|step| !matches!(*step, "" | "." | "..")), "{path:?}");
    assert!(!text.contains('\\'), "{path:?}");
}

fn passes(headers: &HeaderMap) {
    let Ok(gone_on) = onward(headers) else { return };
    for name in [
        "authorization",
        "dpop",
        "cookie",
        "host",
        "connection",
        "transfer-encoding",
        "content-length",
        "x-client-cert",
    ] {
        assert!(!gone_on.contains_key(name) || name == "via", "{name}");
    }
    // Whoever is asked twice says the same, and once more that it stands between.
    let again = onward(&gone_on).expect("what went on once goes on");
    assert_eq!(again.len(), gone_on.len() + 1);
    let came_back = back(headers);
    assert!(!came_back.contains_key(header::SET_COOKIE) && !came_back.contains_key(header::CONNECTION));
    assert_eq!(back(&came_back), came_back);
}

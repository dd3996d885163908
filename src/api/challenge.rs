//! What an API says about the token that it will not take (RFC 9110 11.6.1, RFC 6750 3, RFC 9449 7.1 and 9). In go the headers
//! of a 401; out comes whether trying again makes sense, and with what.

use http::{HeaderMap, header};

/// What a 401 asks for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Asks {
    /// The same token with a proof that holds the nonce that came with it.
    Nonce,
    /// Another token: this one is not, or no longer, good.
    Token,
    /// Nothing that the agent could give.
    Nothing,
}

/// Reads all challenges of an answer. A nonce is asked for before anything is said about the token.
pub fn asks(headers: &HeaderMap) -> Asks {
    let mut found = Asks::Nothing;
    for value in headers.get_all(header::WWW_AUTHENTICATE) {
        // Bytes that are no text stand for themselves at most: what we look for is ASCII.
        for (scheme, error) in errors(&String::from_utf8_lossy(value.as_bytes())) {
            match (scheme.to_ascii_lowercase().as_str(), error.as_str()) {
                ("dpop", "use_dpop_nonce") => return Asks::Nonce,
                ("dpop" | "bearer", "invalid_token") => found = Asks::Token,
                _ => {}
            }
        }
    }
    found
}

/// The scheme and the `error` of each challenge in one header that has one. What cannot be read ends the list: nothing is
/// guessed from it.
fn errors(mut rest: &str) -> Vec<(&str, String)> {
    let mut found = Vec::new();
    let mut scheme = "";
    loop {
        // The sign is the padding of a `token68`, which is no parameter.
        rest = rest.trim_start_matches([' ', '\t', ',', '=']);
        let (word, after) = rest.split_at(rest.find(|c: char| !is_token(c)).unwrap_or(rest.len()));
        if word.is_empty() {
            return found;
        }
        let after = after.trim_start_matches([' ', '\t']);
        // A word with a value belongs to the challenge before it; one without begins another.
        let Some(value) = after.strip_prefix('=').map(|value| value.trim_start_matches([' ', '\t'])) else {
            (scheme, rest) = (word, after);
            continue;
        };
        let Some((value, after)) = value_of(value) else { return found };
        if word.eq_ignore_ascii_case("error") && !scheme.is_empty() {
            found.push((scheme, value));
        }
        rest = after;
    }
}

/// A token or a quoted string, and what follows it.
fn value_of(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(|c: char| !is_token(c)).unwrap_or(text.len());
        return Some((text[..end].to_owned(), &text[end..]));
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '"' => return Some((value, &quoted[at + 1..])),
            '\\' => value.push(characters.next()?.1),
            c => value.push(c),
        }
    }
    None
}

fn is_token(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~/".contains(c)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn challenges_are_read_as_they_may_be_written() {
        // MT-09, DPOP-08: several challenges, quotes, escapes, case, and bytes that are none of it.
        let nonce = "DPoP error=\"use_dpop_nonce\", error_description=\"Resource server requires nonce\"";
        for (values, wanted) in [
            (&[nonce][..], Asks::Nonce),
            (&["dpop  ERROR = use_dpop_nonce"], Asks::Nonce),
            (&["Bearer realm=\"a, b\", DPoP algs=\"ES256\", error=\"use_dpop_nonce\""], Asks::Nonce),
            (&["Bearer error=\"invalid_token\"", nonce], Asks::Nonce),
            (&["Bearer error=\"invalid_token\""], Asks::Token),
            (&["DPoP algs=\"ES256 EdDSA\", error=\"invalid_token\""], Asks::Token),
            (&[",, Basic realm=\"x\" ,BEARER error=\"invalid\\_token\",, scope=\"a\""], Asks::Token),
            (&["Negotiate dG9rZQ==, Bearer error=\"invalid_token\""], Asks::Token),
            (&["Negotiate dG9rZW4=, Bearer error=\"invalid_token\""], Asks::Token),
            (&["Negotiate, Bearer error=invalid_token"], Asks::Token),
            (&["Bearer error=\"use_dpop_nonce\""], Asks::Nothing),
            (&["Basic error=\"invalid_token\""], Asks::Nothing),
            (&["error=\"invalid_token\""], Asks::Nothing),
            (&["Bearer realm=\"error=\\\"invalid_token\\\"\""], Asks::Nothing),
            (&["Bearer realm=\"open, error=invalid_token"], Asks::Nothing),
            (&["Bearer error=\"insufficient_scope\""], Asks::Nothing),
            (&["DPoP error=\"invalid_dpop_proof\""], Asks::Nothing),
            (&["Bearer error_description=\"invalid_token\""], Asks::Nothing),
            (&["Bearer"], Asks::Nothing),
            (&["\u{1}"][..0], Asks::Nothing),
        ] {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::WWW_AUTHENTICATE, HeaderValue::from_str(value).unwrap());
            }
            assert_eq!(asks(&headers), wanted, "{values:?}");
        }
        let mut headers = HeaderMap::new();
        headers.append(
            header::WWW_AUTHENTICATE,
            HeaderValue::from_bytes(b"Bearer \xff error=invalid_token").unwrap(),
        );
        assert_eq!(asks(&headers), Asks::Nothing);
    }
}

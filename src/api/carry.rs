//! How a secret that stays as it is goes to an API: in one header, as the operator wrote it (S46). In goes a text such as
//! `X-Api-Key: {key}`; out come the header, and its value once the secret is there.
//!
//! Names in braces are fields of the secret; there is one. Behind `Authorization: Basic` stands what is encoded there (RFC 7617),
//! `{username}:{password}`, of which one may be written out, or left empty as APIs have it that take a key for a name.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderName, HeaderValue, header};

use super::headers::is_free;
use crate::{credential::Credential, issuer::stream::secret_header, secret::Secret};

/// A header, and what of a secret goes into it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Carry {
    header: HeaderName,
    /// Whether what the pieces say is encoded behind `Basic`.
    basic: bool,
    pieces: Vec<Piece>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum Piece {
    Text(String),
    Field(String),
}

impl Carry {
    /// Reads what an operator wrote.
    ///
    /// # Errors
    /// What is wrong with it and what to do.
    pub fn parse(text: &str) -> Result<Self, String> {
        const FORM: &str = "write a header with one field in braces: \"X-Api-Key: {key}\" or \"Authorization: Bearer {token}\"";
        let (name, value) = text.split_once(':').ok_or(FORM)?;
        let header: HeaderName =
            name.parse().map_err(|_| format!("what stands before the colon is no header: {FORM}"))?;
        if header != header::AUTHORIZATION && !is_free(&header) {
            return Err(format!(
                "the header {header} is not to be set: it says who calls, or is of one connection, or makes another request of it"
            ));
        }
        let value = value.trim_matches(' ');
        if !value.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
            return Err("what stands behind the colon has to be printable ASCII".into());
        }
        let scheme = value.split_once(' ').filter(|(scheme, _)| scheme.eq_ignore_ascii_case("basic"));
        let basic = scheme.filter(|_| header == header::AUTHORIZATION);
        let pieces = pieces(basic.map_or(value, |(_, pair)| pair.trim_start_matches(' '))).ok_or(FORM)?;
        let carry = Self { header, basic: basic.is_some(), pieces };
        let fields = carry.fields().count();
        if !carry.basic {
            return if fields == 1 { Ok(carry) } else { Err(format!("it has {fields} fields: {FORM}")) };
        }
        let colons: usize = carry.texts().map(|text| text.matches(':').count()).sum();
        if !(1..=2).contains(&fields) || colons != 1 {
            let what = "behind Basic stands a name, a colon and a password: \"Authorization: Basic {username}:{password}\" \
                        (RFC 7617)";
            return Err(what.into());
        }
        Ok(carry)
    }

    /// The fields of the secret that it needs.
    pub fn fields(&self) -> impl Iterator<Item = &str> {
        self.pieces.iter().filter_map(|piece| match piece {
            Piece::Field(name) => Some(name.as_str()),
            Piece::Text(_) => None,
        })
    }

    /// What is wrong with sending `field` of the secret in this way, if anything.
    pub fn unfit(&self, field: &str, value: &Secret) -> Option<&'static str> {
        if !self.fields().any(|one| one == field) {
            return None;
        }
        let text = value.expose_str().unwrap_or("\0");
        if text.chars().any(char::is_control) {
            return Some("has a control character in it, which a header cannot carry (forward_as)");
        }
        if !self.basic && (!text.is_ascii() || text.trim_matches(' ') != text) {
            return Some(
                "is not printable ASCII, or has blanks around it, and forward_as writes it as it is",
            );
        }
        // RFC 7617 2: whoever reads it takes the first colon for the one between name and password.
        if self.basic && text.contains(':') && self.is_before_the_colon(field) {
            return Some("has a colon in it, which no name behind Basic may have (RFC 7617)");
        }
        None
    }

    /// Puts the secret of `credential` into the headers of a request, and takes away whatever a server could read as the same
    /// header. Why not, if that cannot be done.
    pub(super) fn put(&self, credential: &Credential, headers: &mut HeaderMap) -> Result<(), &'static str> {
        let value = self.value(credential)?;
        let value: HeaderValue = secret_header(value).map_err(|_| "the secret as a header")?;
        let same: Vec<HeaderName> =
            headers.keys().filter(|name| as_read(name) == as_read(&self.header)).cloned().collect();
        for name in same {
            headers.remove(name);
        }
        headers.insert(self.header.clone(), value);
        Ok(())
    }

    fn value(&self, credential: &Credential) -> Result<Secret, &'static str> {
        let mut parts: Vec<&[u8]> = Vec::with_capacity(self.pieces.len());
        for piece in &self.pieces {
            match piece {
                Piece::Text(text) => parts.push(text.as_bytes()),
                Piece::Field(name) => {
                    let value = credential.static_value(name).ok_or("a credential without that field")?;
                    if self.unfit(name, value).is_some() {
                        return Err("a secret that does not fit into its header");
                    }
                    parts.push(value.expose());
                }
            }
        }
        // Room for all at once: a buffer that grows leaves copies behind.
        let whole = Secret::new(parts.concat());
        if !self.basic {
            return Ok(whole);
        }
        let mut text = String::with_capacity("Basic ".len() + whole.len().div_ceil(3) * 4);
        text.push_str("Basic ");
        STANDARD.encode_string(whole.expose(), &mut text);
        Ok(Secret::new(text))
    }

    fn texts(&self) -> impl Iterator<Item = &str> {
        self.pieces.iter().filter_map(|piece| match piece {
            Piece::Text(text) => Some(text.as_str()),
            Piece::Field(_) => None,
        })
    }

    fn is_before_the_colon(&self, field: &str) -> bool {
        let colon =
            self.pieces.iter().position(|piece| matches!(piece, Piece::Text(text) if text.contains(':')));
        let at = self.pieces.iter().position(|piece| matches!(piece, Piece::Field(name) if name == field));
        at < colon
    }
}

/// CGI and its heirs read an underscore as a dash.
fn as_read(name: &HeaderName) -> String {
    name.as_str().replace('_', "-")
}

/// None for braces that do not fit together, or are empty.
fn pieces(text: &str) -> Option<Vec<Piece>> {
    let (mut pieces, mut rest) = (Vec::new(), text);
    while !rest.is_empty() {
        let end = rest.find(['{', '}']).unwrap_or(rest.len());
        let (before, behind) = rest.split_at(end);
        if !before.is_empty() {
            pieces.push(Piece::Text(before.to_owned()));
        }
        if behind.is_empty() {
            break;
        }
        let (name, behind) = behind.strip_prefix('{')?.split_once('}')?;
        if name.is_empty() || name.contains('{') {
            return None;
        }
        pieces.push(Piece::Field(name.to_owned()));
        rest = behind;
    }
    Some(pieces)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        clock::Boot,
        credential::{Bound, Form, Payload, Window},
        secret::Fingerprint,
    };

    fn secret(values: &[(&str, &str)]) -> Credential {
        let values = values.iter().map(|(name, value)| ((*name).to_owned(), Secret::new(*value))).collect();
        let wall = jiff::Timestamp::UNIX_EPOCH;
        Credential {
            payload: Payload::Static(values),
            window: Window::opening(Boot::from_nanos(0), wall, Duration::from_secs(60)),
            bound: Bound::Bearer,
            scope: vec![],
            audience: None,
            fingerprint: Fingerprint::of(b"x"),
            jti: None,
            form: Form::default(),
        }
    }

    fn sent(carry: &str, values: &[(&str, &str)], theirs: &[(&str, &str)]) -> Result<String, &'static str> {
        let mut headers = HeaderMap::new();
        for (name, value) in theirs {
            headers.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        Carry::parse(carry).unwrap().put(&secret(values), &mut headers)?;
        let lines = headers.iter().map(|(name, value)| {
            assert!(theirs.iter().any(|(_, theirs)| value == theirs) || value.is_sensitive());
            format!("{name}: {}", value.to_str().unwrap())
        });
        Ok(lines.collect::<Vec<_>>().join("\n"))
    }

    #[test]
    fn a_secret_goes_into_the_header_that_the_operator_wrote() {
        // S46, RFC 7617
        let both = [("username", "Aladdin"), ("password", "open sesame")];
        for (carry, expected) in [
            ("X-Api-Key: {password}", "x-api-key: open sesame"),
            ("Authorization: Bearer {password}", "authorization: Bearer open sesame"),
            ("authorization:Token token=\"{username}\"", "authorization: Token token=\"Aladdin\""),
            (
                "Authorization: Basic {username}:{password}",
                "authorization: Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==",
            ),
            ("Authorization: basic {username}:", "authorization: Basic QWxhZGRpbjo="),
            ("Authorization: Basic api:{password}", "authorization: Basic YXBpOm9wZW4gc2VzYW1l"),
            ("X-Basic: Basic {username}", "x-basic: Basic Aladdin"),
        ] {
            assert_eq!(sent(carry, &both, &[]).unwrap(), expected, "{carry}");
        }
        // A program's word for it is dropped, however a server may read it (MT-13).
        let theirs = [("X-Api-Key", "a"), ("X_Api_Key", "b"), ("x-api-key", "c"), ("accept", "*/*")];
        let lines = sent("X-Api-Key: {password}", &both, &theirs).unwrap();
        assert_eq!(lines, "accept: */*\nx-api-key: open sesame");
    }

    #[test]
    fn what_cannot_be_sent_is_not() {
        for value in ["a\r\nx-evil: 1", "a\n", "\ta", "a\u{7f}", "caf\u{e9}", " a", "a "] {
            assert!(sent("X-Api-Key: {key}", &[("key", value)], &[]).is_err(), "{value:?}");
        }
        let basic = "Authorization: Basic {username}:{password}";
        for (username, password, sound) in
            [("a", "b:c", true), ("a", "caf\u{e9} ", true), ("a:b", "c", false), ("a", "b\n", false)]
        {
            let values = [("username", username), ("password", password)];
            assert_eq!(sent(basic, &values, &[]).is_ok(), sound, "{values:?}");
        }
        assert!(sent("X-Api-Key: {key}", &[("other", "a")], &[]).is_err());
        let carry = Carry::parse("X-Api-Key: {key}").unwrap();
        assert!(carry.unfit("key", &Secret::new([0xff])).is_some());
        assert_eq!(carry.unfit("another", &Secret::new("a\nb")), None, "it goes nowhere");
    }

    #[test]
    fn a_header_has_one_field_and_is_none_that_says_who_calls() {
        // MT-13, DPOP-06
        for text in [
            "",
            "{key}",
            "X-Api-Key",
            "X-Api-Key: key",
            "X-Api-Key: {}",
            "X-Api-Key: {key",
            "X-Api-Key: key}",
            "X-Api-Key: {{key}}",
            "X-Api-Key: {a} {b}",
            "X Api Key: {key}",
            "X-Api-Key: {key}\u{e9}",
            "Authorization: Basic {token}",
            "Authorization: Basic {a}:{b}:{c}",
            "Authorization: Basic a:b",
        ] {
            assert!(Carry::parse(text).is_err(), "{text}");
        }
        for name in [
            "Connection",
            "Content-Length",
            "Transfer-Encoding",
            "Host",
            "Cookie",
            "DPoP",
            "Via",
            "Forwarded",
            "X-Forwarded-For",
            "X_Forwarded_For",
            "X-Client-Cert",
            "Keybearer-Origin",
            "X-HTTP-Method-Override",
            "X-Original-URL",
            "Proxy-Authorization",
        ] {
            let told = Carry::parse(&format!("{name}: {{key}}")).unwrap_err();
            assert!(told.contains("is not to be set"), "{told}");
        }
        let carry = Carry::parse("Authorization: Basic {a}:{b}").unwrap();
        assert_eq!(carry.fields().collect::<Vec<_>>(), ["a", "b"]);
    }
}

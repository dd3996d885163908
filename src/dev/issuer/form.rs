//! `application/x-www-form-urlencoded`, strictly. In goes a body; out come its parameters, each at most once
//! (RFC 6749 3.2). Nothing is guessed: a broken escape or a second value is an error.

use http::{HeaderMap, header};

/// More parameters than any request of ours has.
const MAX_PARAMETERS: usize = 32;

/// The parameters of one request. No `Debug`: they hold assertions and tokens.
pub(super) struct Form(Vec<(String, String)>);

impl Form {
    /// Reads `body`, whose type `headers` must name. A second `resource` is kept for [`Form::all`], because
    /// its refusal has a name of its own (RFC 8707).
    pub(super) fn parse(headers: &HeaderMap, body: &[u8]) -> Result<Self, FormError> {
        let content_type =
            headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
        let media_type = content_type.split(';').next().unwrap_or("").trim();
        if !media_type.eq_ignore_ascii_case("application/x-www-form-urlencoded") {
            return Err(FormError::ContentType);
        }
        let mut pairs: Vec<(String, String)> = Vec::new();
        for pair in body.split(|byte| *byte == b'&').filter(|pair| !pair.is_empty()) {
            let cut = pair.iter().position(|byte| *byte == b'=').unwrap_or(pair.len());
            let name = decode(&pair[..cut])?;
            let value = decode(pair.get(cut + 1..).unwrap_or_default())?;
            if name != "resource" && pairs.iter().any(|(other, _)| *other == name) {
                return Err(FormError::Twice);
            }
            if pairs.len() == MAX_PARAMETERS {
                return Err(FormError::TooMany);
            }
            pairs.push((name, value));
        }
        // RFC 6749 3.2: a parameter without a value counts as left out.
        pairs.retain(|(_, value)| !value.is_empty());
        Ok(Self(pairs))
    }

    /// The parameter called `name`.
    pub(super) fn one(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }

    /// Every value of the parameter called `name`.
    pub(super) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(other, _)| other == name).map(|(_, value)| value.as_str())
    }
}

/// Why a body is no form.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum FormError {
    /// JSON, or nothing at all.
    #[error("send application/x-www-form-urlencoded")]
    ContentType,
    /// A `%` without two hex digits, or bytes that are no UTF-8.
    #[error("a parameter is not percent-encoded UTF-8: encode it again")]
    Escape,
    /// More parameters than are read.
    #[error("send at most 32 parameters")]
    TooMany,
    /// RFC 6749 3.2.
    #[error("send each parameter once")]
    Twice,
}

fn decode(text: &[u8]) -> Result<String, FormError> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.iter();
    while let Some(byte) = rest.next() {
        out.push(match byte {
            b'+' => b' ',
            b'%' => {
                let mut digit = || {
                    let digit = rest.next().and_then(|byte| char::from(*byte).to_digit(16));
                    digit.and_then(|digit| u8::try_from(digit).ok()).ok_or(FormError::Escape)
                };
                digit()? << 4 | digit()?
            }
            plain => *plain,
        });
    }
    String::from_utf8(out).map_err(|_| FormError::Escape)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn parse(body: &str) -> Result<Form, FormError> {
        let mut headers = HeaderMap::new();
        let form = HeaderValue::from_static("application/x-www-form-urlencoded; charset=UTF-8");
        headers.insert(header::CONTENT_TYPE, form);
        Form::parse(&headers, body.as_bytes())
    }

    #[test]
    fn escapes_and_pluses_are_read() {
        // PKJ-01
        let form = parse("a=urn%3Aietf%3ax&b=orders.read+orders.write&c=&d&e=1=2").ok().unwrap();
        assert_eq!(form.one("a"), Some("urn:ietf:x"));
        assert_eq!(form.one("b"), Some("orders.read orders.write"));
        assert_eq!((form.one("c"), form.one("d")), (None, None), "without a value is left out");
        assert_eq!(form.one("e"), Some("1=2"));
    }

    #[test]
    fn a_broken_form_is_refused() {
        // PKJ-01
        for (body, why) in [
            ("a=%", FormError::Escape),
            ("a=%4", FormError::Escape),
            ("a=%+4", FormError::Escape),
            ("a=%ff", FormError::Escape),
            ("a=1&a=1", FormError::Twice),
            ("a=&a=1", FormError::Twice),
        ] {
            assert_eq!(parse(body).err(), Some(why), "{body}");
        }
        let many: Vec<String> = (0..=MAX_PARAMETERS).map(|number| format!("p{number}=1")).collect();
        assert_eq!(parse(&many.join("&")).err(), Some(FormError::TooMany));
        assert_eq!(Form::parse(&HeaderMap::new(), b"a=1").err(), Some(FormError::ContentType));
    }

    #[test]
    fn only_the_resource_may_come_twice_to_be_refused_by_name() {
        // OA-21
        let form = parse("resource=https%3A%2F%2Fa&resource=https%3A%2F%2Fb").ok().unwrap();
        assert_eq!(form.all("resource").count(), 2);
    }
}

//! The path of a call, as a program wrote it. In goes everything behind the credential's name; out comes a path that every
//! server reads alike, or why it is none. What one server takes for a name and the next for a way up is refused, never mended:
//! whoever decided about a call decided about what is sent.

use std::fmt;

use crate::proof::{Target, TargetError};

/// The longest path and query together. Our own socket takes heads of 16 KiB.
const MAX: usize = 8192;

/// A path, and a query if there is one.
#[derive(Clone, Eq, PartialEq)]
pub struct Path {
    path: String,
    query: Option<String>,
}

impl Path {
    /// Takes `path` (from its first slash on; none at all is the root) and `query` (without the question mark).
    ///
    /// # Errors
    /// [`PathError`] says what is wrong with it.
    pub fn parse(path: &str, query: Option<&str>) -> Result<Self, PathError> {
        let path = if path.is_empty() { "/" } else { path };
        if path.len() + query.map_or(0, str::len) > MAX {
            return Err(PathError::Long);
        }
        let sound = |text: &str, more: &[u8]| text.bytes().all(|byte| is_plain(byte) || more.contains(&byte));
        if !path.starts_with('/') || !sound(path, b"") || !query.is_none_or(|query| sound(query, b"?")) {
            return Err(PathError::Form);
        }
        // The query is passed on as it is; only a token has no place in it (RFC 6750 5.3, BCP-04).
        let mut names =
            query.iter().flat_map(|query| query.split(['&', ';'])).map(|pair| pair.split('=').next());
        if names.any(|name| {
            name.is_some_and(|name| decoded(name, false).is_ok_and(|name| name == b"access_token"))
        }) {
            return Err(PathError::Token);
        }
        judge(path)?;
        let once = String::from_utf8(decoded(path, true)?).map_err(|_| PathError::Form)?;
        judge(&once)?;
        // Some servers decode twice, and have another path then.
        if decoded(&once, false)? != once.as_bytes() {
            return Err(PathError::Hidden);
        }
        Ok(Self { path: path.to_owned(), query: query.map(str::to_owned) })
    }

    /// The path, without the query: what may be on record.
    pub fn as_str(&self) -> &str {
        &self.path
    }

    /// Where it leads at `origin`.
    ///
    /// # Errors
    /// [`TargetError`] if that is no origin.
    pub fn at(&self, origin: &str) -> Result<Target, TargetError> {
        Target::parse(&format!("{origin}{}", self.path))
    }

    /// The same as a URL to send to.
    pub fn url(&self, target: &Target) -> String {
        match &self.query {
            Some(query) => format!("{}?{query}", target.htu()),
            None => target.htu().to_owned(),
        }
    }
}

impl fmt::Debug for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A query is the API's business.
        write!(f, "Path({})", self.path)
    }
}

/// Why a path is none.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum PathError {
    /// Some servers see a slash, the end of the text, or another name where others see part of this one.
    #[error(
        "a slash, a backslash or a control character in a path stands there as itself or not at all: not as %2F, %5C or %00, and nothing is \
         encoded twice"
    )]
    Hidden,
    /// It steps through directories.
    #[error(
        "a path says where it leads: leave out `.`, `..` and empty steps (`//`), however they are written"
    )]
    Steps,
    /// Not a path.
    #[error("it is no path: write /PATH?QUERY in the characters of RFC 3986, others percent-encoded UTF-8")]
    Form,
    /// Too long.
    #[error("path and query are longer than 8 KiB")]
    Long,
    /// A token in the query.
    #[error("a query holds no access_token: the agent adds the token, as a header")]
    Token,
}

/// RFC 3986 `pchar`, with the slash and the percent sign.
fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/%".contains(&byte)
}

/// What servers differ about.
fn judge(path: &str) -> Result<(), PathError> {
    if path.bytes().any(|byte| byte == b'\\' || byte.is_ascii_control()) {
        return Err(PathError::Hidden);
    }
    let mut steps = path[1..].split('/').peekable();
    while let Some(step) = steps.next() {
        // What follows a semicolon is cut off by some before they look for dots.
        let name = step.split(';').next().unwrap_or_default();
        let empty = name.is_empty() && !(step.is_empty() && steps.peek().is_none());
        if empty || matches!(name, "." | "..") {
            return Err(PathError::Steps);
        }
    }
    Ok(())
}

/// The text with its percent-encoding undone once. A percent sign that encodes nothing is an error if `strict`, or itself.
fn decoded(text: &str, strict: bool) -> Result<Vec<u8>, PathError> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let (mut out, mut rest) = (Vec::with_capacity(text.len()), text.as_bytes());
    while let [first, after @ ..] = rest {
        let encoded = match (first, after) {
            (b'%', [high, low, ..]) => digit(high).zip(digit(low)).map(|(high, low)| high << 4 | low),
            _ => None,
        };
        match encoded {
            Some(byte) if matches!(byte, b'/' | b'\\') || byte.is_ascii_control() => {
                return Err(PathError::Hidden);
            }
            Some(byte) => out.push(byte),
            None if *first == b'%' && strict => return Err(PathError::Form),
            None => out.push(*first),
        }
        rest = if encoded.is_some() { &after[2..] } else { after };
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_goes_on_as_it_was_written() {
        let origin = "https://api.example:8443";
        for (path, query, url) in [
            ("", None, "/"),
            ("/", None, "/"),
            ("/orders", None, "/orders"),
            ("/orders/", Some("id=7"), "/orders/?id=7"),
            ("/orders/7:cancel", Some(""), "/orders/7:cancel?"),
            ("/a%20b/%C3%A9;v=1", Some("q=a/../b%2Fc?d"), "/a%20b/%C3%A9;v=1?q=a/../b%2Fc?d"),
            ("/~me/.well-known/...", None, "/~me/.well-known/..."),
            ("/100%25", None, "/100%25"),
            ("/@evil.example/x", None, "/@evil.example/x"),
        ] {
            let parsed = Path::parse(path, query).unwrap();
            let target = parsed.at(origin).unwrap();
            assert_eq!(parsed.url(&target), format!("{origin}{url}"));
            assert_eq!(target.origin(), origin, "{path}");
        }
    }

    #[test]
    fn what_two_servers_could_read_differently_is_refused() {
        // DPOP-19, DPOP-20, DPOP-27: the path confusion table.
        for (path, error) in [
            ("/..", PathError::Steps),
            ("/a/../token", PathError::Steps),
            ("/./token", PathError::Steps),
            ("/a/.", PathError::Steps),
            ("/%2e%2e/token", PathError::Steps),
            ("/%2E./token", PathError::Steps),
            ("/.%2e;x/token", PathError::Steps),
            ("/..;/token", PathError::Steps),
            ("/%252e%252e/token", PathError::Hidden),
            ("/%25252e%25252e/token", PathError::Hidden),
            ("/%25zz/%252e%252e/token", PathError::Hidden),
            ("//token", PathError::Steps),
            ("/a//b", PathError::Steps),
            ("/a//", PathError::Steps),
            ("/;x/b", PathError::Steps),
            ("//evil.example/x", PathError::Steps),
            ("/https://evil.example/x", PathError::Steps),
            ("/a%2fb", PathError::Hidden),
            ("/a%2F..%2Ftoken", PathError::Hidden),
            ("/a%252fb", PathError::Hidden),
            ("/%2574oken", PathError::Hidden),
            ("/a%5cb", PathError::Hidden),
            ("/a%00", PathError::Hidden),
            ("/a%0d%0ax:%20y", PathError::Hidden),
            ("/a%7f", PathError::Hidden),
            ("/a\\..\\b", PathError::Form),
            ("/a b", PathError::Form),
            ("/a\"b", PathError::Form),
            ("/a#b", PathError::Form),
            ("/a?b", PathError::Form),
            ("/a\u{e9}", PathError::Form),
            ("/a%c0%ae%c0%ae", PathError::Form),
            ("/a%ff", PathError::Form),
            ("/a%", PathError::Form),
            ("/a%2", PathError::Form),
            ("/a%zz", PathError::Form),
            ("orders", PathError::Form),
            ("@evil.example/", PathError::Form),
            (":8443/", PathError::Form),
        ] {
            assert_eq!(Path::parse(path, None), Err(error), "{path:?}");
        }
        assert_eq!(Path::parse(&format!("/{}", "a".repeat(MAX)), None), Err(PathError::Long));
        for query in ["access_token=x", "a=b&access_token=", "a;access_token", "%61ccess_token=x"] {
            assert_eq!(Path::parse("/", Some(query)), Err(PathError::Token), "{query}");
        }
        assert_eq!(Path::parse("/", Some("a#b")), Err(PathError::Form));
        assert!(Path::parse("/", Some("no_access_token=1")).is_ok());
    }
}

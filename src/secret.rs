//! Bytes that must not be seen: wiped when dropped, without `Display`, without a telling `Debug`, and with
//! one loud way in. In goes whatever must stay hidden; out comes a [`Fingerprint`], which may be logged.

use std::{fmt, str::FromStr};

use ring::digest;
use zeroize::Zeroizing;

/// Secret bytes. Not `Clone`: share it by reference or `Arc`, so that it is wiped once and everywhere.
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// Takes the bytes over. The caller's copy is gone, because it was moved.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(Zeroizing::new(bytes.into()))
    }

    /// The bytes themselves. Every call of this is a place to review: where do they go from here?
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// The bytes as text, where they are text. The same care as [`Secret::expose`].
    pub fn expose_str(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok()
    }

    /// Length in bytes. Not secret.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What may be written down about it (AUD-05).
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.0)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// The first 16 bytes of a SHA-256: enough to recognise a secret that is in hand, useless to rebuild it (AUD-05).
#[derive(Clone, Copy, Eq, Hash, PartialEq)]
pub struct Fingerprint([u8; 16]);

impl Fingerprint {
    /// The fingerprint of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        let mut short = [0; 16];
        short.copy_from_slice(&digest::digest(&digest::SHA256, bytes).as_ref()[..16]);
        Self(short)
    }
}

impl FromStr for Fingerprint {
    type Err = ();

    /// Reads what [`fmt::Display`] writes.
    fn from_str(text: &str) -> Result<Self, ()> {
        let digits: Option<Vec<u8>> =
            text.chars().map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok())).collect();
        let digits = <[u8; 32]>::try_from(digits.ok_or(())?).map_err(|_| ())?;
        Ok(Self(std::array::from_fn(|at| digits[2 * at] << 4 | digits[2 * at + 1])))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

/// Bytes that are no secret, as they are written down: lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    let mut text = Vec::with_capacity(2 * bytes.len());
    put_hex(bytes, &mut text);
    text.into_iter().map(char::from).collect()
}

/// The same, appended to `out`.
pub fn put_hex(bytes: &[u8], out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = |byte: &u8| [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]];
    out.extend(bytes.iter().flat_map(digits));
}

/// Foreign text made fit to be written down: printable ASCII only, cut at `most` bytes, and whatever looks like a
/// JWT replaced, because error texts have been known to echo tokens (AUD-05, ER-13).
pub fn scrubbed(text: &str, most: usize) -> String {
    let is_token = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let mut out = String::new();
    let mut rest = text;
    while !rest.is_empty() {
        let word = rest.find(|c| !is_token(c)).unwrap_or(rest.len());
        let (token, after) = rest.split_at(word);
        // A JOSE header begins with `{"`, which is `eyJ` in base64url.
        match token.find("eyJ") {
            Some(at) if token[at..].matches('.').count() >= 2 => out.push_str("[jwt]"),
            _ => out.push_str(token),
        }
        let gap = after.find(is_token).unwrap_or(after.len());
        let (between, next) = after.split_at(gap);
        out.extend(between.chars().map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' }));
        rest = next;
    }
    out.truncate(most);
    out
}

/// Whether whoever shows text obeys `c` instead of showing it: controls, separators of lines, and marks that turn the direction of text
/// and let it say something else (TM-27). None is above U+FFFF.
pub fn is_obeyed(c: char) -> bool {
    let is_mark = matches!(
        c,
        '\u{200e}' | '\u{200f}' | '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
    );
    c.is_control() || is_mark
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_tells_nothing() {
        let secret = Secret::new("canary-5d1f");
        assert_eq!(format!("{secret:?}"), "Secret(..)");
        assert!(!format!("{:?}", Some(&secret)).contains("canary"));
    }

    #[test]
    fn a_fingerprint_is_the_head_of_a_sha256() {
        // FIPS 180-2, the SHA-256 of "abc".
        assert_eq!(Fingerprint::of(b"abc").to_string(), "ba7816bf8f01cfea414140de5dae2223");
        assert_eq!("ba7816bf8f01cfea414140de5dae2223".parse(), Ok(Fingerprint::of(b"abc")));
        for bad in ["", "ba", "ba7816bf8f01cfea414140de5dae222g", "ba7816bf8f01cfea414140de5dae2223ff"] {
            assert_eq!(bad.parse::<Fingerprint>(), Err(()), "{bad}");
        }
    }

    #[test]
    fn foreign_text_loses_tokens_and_control_characters() {
        // AUD-05, ER-13
        let text = "bad token 'eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJhIn0.c2ln' \u{1b}[31m\nline\u{e9}";
        assert_eq!(scrubbed(text, 200), "bad token '[jwt]' ?[31m?line?");
        assert_eq!(scrubbed("version 1.2.3 of eyJ", 200), "version 1.2.3 of eyJ");
        assert_eq!(scrubbed(&"x".repeat(500), 200).len(), 200);
    }
}

//! The filters of templates. In goes a text; out comes the same as one kind of file has it, or a refusal in words that are the same for
//! every value.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use minijinja::{Environment, Error, ErrorKind, Value};

use crate::deliver::shell_word;

const NO_TEXT: &str = "this filter takes a text";
const NUL: &str = "the value has a byte 0, which no argument of a program can have";
const LINE: &str = "the value has a line break or a byte 0, which a line of this file cannot carry";

/// All that a filter says when it refuses.
pub(super) const REFUSALS: [&str; 3] = [NO_TEXT, NUL, LINE];

pub(super) fn add_to(environment: &mut Environment<'_>) {
    for (name, filter) in ALL {
        environment.add_filter(name, move |value: &Value| {
            let refused = |why: &'static str| Error::new(ErrorKind::InvalidOperation, why);
            value.as_str().ok_or(NO_TEXT).and_then(filter).map_err(refused)
        });
    }
}

type Filter = fn(&str) -> Result<String, &'static str>;

const ALL: [(&str, Filter); 7] = [
    ("base64", |value| Ok(BASE64_STANDARD.encode(value))),
    ("curlrc", curlrc),
    ("json", |value| Ok(serde_json::Value::from(value).to_string())),
    ("mycnf", mycnf),
    ("pgpass", pgpass),
    ("sh", |value| shell_word(value).ok_or(NUL)),
    ("urlencode", |value| Ok(urlencode(value))),
];

/// The value of an option in curl's `-K` file, in double quotes. A line break would be a second header.
fn curlrc(value: &str) -> Result<String, &'static str> {
    Ok(format!("\"{}\"", escaped(one_line(value)?, &[('\\', "\\\\"), ('"', "\\\""), ('\t', "\\t")])))
}

/// The value of an option of MySQL's option files, in double quotes, so that a `#` begins no comment.
fn mycnf(value: &str) -> Result<String, &'static str> {
    Ok(format!("\"{}\"", escaped(one_line(value)?, &[('\\', "\\\\"), ('"', "\\\""), ('\t', "\\t")])))
}

/// A field of libpq's password file (PostgreSQL, "The Password File").
fn pgpass(value: &str) -> Result<String, &'static str> {
    Ok(escaped(one_line(value)?, &[('\\', "\\\\"), (':', "\\:")]))
}

/// RFC 3986 2.3: everything but the unreserved characters.
fn urlencode(value: &str) -> String {
    use std::fmt::Write as _;
    let mut out = String::new();
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            write!(out, "%{byte:02X}").expect("a String takes everything");
        }
    }
    out
}

fn one_line(value: &str) -> Result<&str, &'static str> {
    if value.contains(['\n', '\r', '\0']) { Err(LINE) } else { Ok(value) }
}

fn escaped(value: &str, special: &[(char, &str)]) -> String {
    let mut out = String::with_capacity(value.len() + 8);
    for c in value.chars() {
        match special.iter().find(|(from, _)| *from == c) {
            Some((_, to)) => out.push_str(to),
            None => out.push(c),
        }
    }
    out
}

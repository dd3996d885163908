//! YAML, line by line: keys and plain, quoted and block values; lists of `NAME=value`; `name:` with `value:` below; pipelines, whose
//! lines of script are read as such; and Kubernetes Secrets, whose entries are decoded.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use zeroize::Zeroizing;

use super::{
    Each, Place, Spot, is_comment,
    quoted::{Pending, pairs},
    shell,
};

pub(super) fn spots(text: &str, each: Each<'_>) {
    let lines: Vec<&str> = text.lines().collect();
    let mut from = 0;
    for document in lines.split(|line| *line == "---") {
        let is = |kind: &str| document.iter().any(|line| line.trim_end().trim_start_matches("- ") == kind);
        // All that looks like a secret in it is sealed.
        if !is("kind: SealedSecret") {
            self::document(from, document, is("kind: Secret"), each);
        }
        from += document.len() + 1;
    }
}

fn document(from: usize, lines: &[&str], secret: bool, each: Each<'_>) {
    let mut pending = Pending::default();
    // Where the entries of a Secret begin, how far they are indented, and whether they are in base64.
    let mut data: Option<(usize, bool)> = None;
    for (at, line) in lines.iter().enumerate() {
        let number = from + at + 1;
        let indent = line.len() - line.trim_start().len();
        let line = line.trim();
        if line.is_empty() || is_comment(line) {
            continue;
        }
        if data.is_some_and(|(outer, _)| indent <= outer) {
            data = None;
        }
        let line = line.trim_start_matches("- ").trim_start();
        let Some((name, value)) = key_and_value(line) else {
            other(number, line, &mut pending, each);
            continue;
        };
        if secret && ["data", "stringData"].contains(&name) && value.is_empty() {
            data = Some((indent, name == "data"));
            continue;
        }
        if value.starts_with(['{', '[']) {
            flow(number, value, &mut pending, each);
            continue;
        }
        let (line, value) = match value {
            block if block.starts_with(['|', '>']) && block.len() <= 3 => {
                match lines
                    .get(at + 1..)
                    .and_then(|rest| rest.iter().position(|line| !line.trim().is_empty()))
                {
                    Some(below) => (number + below + 1, lines[at + 1 + below].trim()),
                    None => continue,
                }
            }
            "" => continue,
            value => (number, bare(value)),
        };
        match data {
            Some((_, encoded)) => {
                let decoded = if encoded { decoded(value) } else { None };
                let value = decoded.as_deref().map_or(value, String::as_str);
                each(Spot { line, name, value, place: Place::KubernetesSecret });
            }
            None => {
                let real = pending.of(name, number).to_owned();
                each(Spot { line, name: &real, value, place: Place::Text });
                if ["name", "key"].contains(&name) {
                    pending.is(value, number);
                }
            }
        }
    }
}

/// What is no key: an item `NAME=value`, a line of a script.
fn other(number: usize, line: &str, pending: &mut Pending, each: Each<'_>) {
    if line.starts_with(['{', '[', '"']) && line.contains(':') {
        return flow(number, line, pending, each);
    }
    shell::command(number, line.trim_matches(['"', '\'']), each);
}

/// `{a: b, "c": "d"}`.
fn flow(number: usize, text: &str, pending: &mut Pending, each: Each<'_>) {
    pairs(number, text, pending, each);
    for part in text.trim_matches(['{', '}', '[', ']', ' ']).split(',') {
        if let Some((name, value)) = key_and_value(part.trim().trim_start_matches('{'))
            && !value.starts_with(['"', '\'', '{', '['])
        {
            let value = value.trim_end_matches(['}', ']', ' ']);
            let real = pending.of(name, number).to_owned();
            each(Spot { line: number, name: &real, value, place: Place::Text });
            if ["name", "key"].contains(&name) {
                pending.is(value, number);
            }
        }
    }
}

fn key_and_value(line: &str) -> Option<(&str, &str)> {
    let (name, value) = match line.strip_suffix(':') {
        Some(name) if !name.contains(": ") => (name, ""),
        _ => line.split_once(": ").or_else(|| line.split_once(":\t"))?,
    };
    let name = name.trim().trim_matches(['"', '\'']);
    let is = |c: char| c.is_ascii_alphanumeric() || "_-./@".contains(c);
    (!name.is_empty() && name.len() <= 128 && name.chars().all(is)).then(|| (name, value.trim()))
}

/// A plain or quoted value without the comment behind it.
fn bare(value: &str) -> &str {
    super::assigned::bare(value)
}

fn decoded(value: &str) -> Option<Zeroizing<String>> {
    let bytes = Zeroizing::new(BASE64_STANDARD.decode(value).ok()?);
    std::str::from_utf8(&bytes).ok().map(|text| Zeroizing::new(text.trim().to_owned()))
}

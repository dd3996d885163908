//! `NAME=value` and its kin. Programs disagree about quotes and comments (systemd, docker, dotenv, sh); this reads what any of them
//! could take for the value.

use zeroize::Zeroizing;

use super::{Each, Place, Spot, is_comment};

/// Env files, in all dialects.
pub(super) fn env(text: &str, each: Each<'_>) {
    let mut rest = text;
    let mut number = 0;
    while !rest.is_empty() {
        let (line, after) = rest.split_once('\n').unwrap_or((rest, ""));
        number += 1;
        let begin = number;
        let whole = line.trim_end_matches('\r').trim_start();
        rest = after;
        let whole = ["export ", "declare -x ", "setenv "]
            .iter()
            .find_map(|word| whole.strip_prefix(word))
            .unwrap_or(whole);
        if is_comment(whole) {
            continue;
        }
        let Some((name, value)) = whole.split_once('=') else { continue };
        let (name, value) = (name.trim(), value.trim());
        if !is_name(name) {
            continue;
        }
        // A quote may end lines further down; one that never ends is part of the value, as docker has it.
        if value.starts_with(['"', '\'']) {
            let offset = value.as_ptr() as usize - text.as_ptr() as usize;
            if let Some((inside, length)) = unquoted(&text[offset..]) {
                let end = offset + length;
                let more = text[offset..end].matches('\n').count();
                if more > 0 {
                    number += more;
                    rest = text[end..].split_once('\n').map_or("", |(_, rest)| rest);
                }
                each(Spot { line: begin, name, value: &inside, place: Place::Text });
                continue;
            }
        }
        let value = value.split_once(" #").map_or(value, |(value, _)| value.trim_end());
        each(Spot { line: begin, name, value, place: Place::Text });
    }
}

/// The text within the quotes that `text` begins with, and how long it was with them. A quote is looked for no further than a
/// secret can be.
fn unquoted(text: &str) -> Option<(Zeroizing<String>, usize)> {
    const MOST: usize = 65_536;
    let mut chars = text.char_indices();
    let (_, quote) = chars.next()?;
    let mut inside = Zeroizing::new(String::new());
    while let Some((at, c)) = chars.next() {
        match c {
            _ if at > MOST => return None,
            c if c == quote => return Some((inside, at + 1)),
            '\\' if quote == '"' => match chars.next() {
                Some((_, c @ ('"' | '\\' | '`' | '$'))) => inside.push(c),
                Some((_, 'n')) => inside.push('\n'),
                Some((_, '\n')) => {}
                Some((_, c)) => {
                    inside.push('\\');
                    inside.push(c);
                }
                None => return None,
            },
            c => inside.push(c),
        }
    }
    None
}

fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 128
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}

/// INI, properties, and the many that are like them.
pub(super) fn settings(text: &str, each: Each<'_>) {
    for (at, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || is_comment(line) || line.starts_with('[') {
            continue;
        }
        if let Some((name, value)) = setting(line) {
            each(Spot { line: at + 1, name, value, place: Place::Text });
        }
    }
}

fn setting(line: &str) -> Option<(&str, &str)> {
    let separator = line.find(['=', ':']).filter(|at| {
        let name = line[..*at].trim_end();
        !name.contains(char::is_whitespace) || name.len() < 24 && is_name(&name.replace(' ', "_"))
    });
    // npm names the registry first: `//registry/:_authToken=..`.
    let separator = match line.find(":_") {
        Some(_) if line.starts_with("//") => line.find('='),
        _ => separator,
    };
    let Some(at) = separator else {
        // `requirepass ..`: two words, or it is a sentence.
        let mut words = line.split_whitespace();
        let (name, value) = (words.next()?, words.next()?);
        let ends = words.next().is_none_or(|word| word.starts_with('#'));
        return (ends && is_name(name)).then(|| (name, bare(value)));
    };
    let name = line[..at].trim_end().rsplit([':', ' ']).next()?.trim_matches(['"', '\'']);
    is_name(name).then(|| (name, bare(&line[at + 1..])))
}

/// A value without its quotes, and without what follows it.
pub(super) fn bare(value: &str) -> &str {
    let value = value.trim().trim_start_matches(['=', '>']).trim_start();
    if let Some(quote @ ('"' | '\'')) = value.chars().next()
        && let Some(end) = value[1..].find(quote)
    {
        return &value[1..=end];
    }
    let value = [" #", " ;", "\t#"]
        .iter()
        .fold(value, |value, mark| value.split_once(mark).map_or(value, |(value, _)| value));
    value.trim_end_matches([',', ';']).trim_end()
}

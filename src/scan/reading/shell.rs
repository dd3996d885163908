//! Shell scripts, Dockerfiles, crontabs, and the command lines in units and pipelines: assignments, options, and what a few programs
//! take as a password.

use std::borrow::Cow;

use zeroize::Zeroizing;

use super::{Each, Place, Spot, is_comment, joined};

pub(super) fn spots(text: &str, each: Each<'_>) {
    for (number, line) in joined(text) {
        command(number, &line, each);
    }
}

/// One line of a script.
pub(super) fn command(number: usize, line: &str, each: Each<'_>) {
    let line = line.trim();
    if line.is_empty() || is_comment(line) {
        return;
    }
    let words = words(line);
    let words: Vec<&str> = words.iter().map(|word| word.as_str()).collect();
    match words.as_slice() {
        // What a Dockerfile sets is in the image, for whoever can pull it.
        ["ENV" | "ARG", name, value, ..] if !name.contains('=') => {
            each(Spot { line: number, name, value, place: Place::Image });
        }
        ["ENV" | "ARG", rest @ ..] => {
            for (name, value) in rest.iter().filter_map(|word| word.split_once('=')) {
                each(Spot { line: number, name, value, place: Place::Image });
            }
        }
        words => arguments(number, words, Place::Text, each),
    }
}

/// The words of one command.
pub(super) fn arguments(number: usize, words: &[&str], place: Place, each: Each<'_>) {
    within(number, words, place, 2, each);
}

fn within(number: usize, words: &[&str], place: Place, depth: u8, each: Each<'_>) {
    let runs =
        |names: &[&str]| words.iter().any(|word| names.contains(&word.rsplit('/').next().unwrap_or(word)));
    let mysql = runs(&["mysql", "mysqldump", "mysqladmin", "mariadb", "mariadb-dump"]);
    let sshpass = runs(&["sshpass"]);
    let short_p = runs(&["sshpass", "docker", "podman", "mongo", "mongosh", "mongodump", "htpasswd"]);
    let (curl, redis, ldap) =
        (runs(&["curl"]), runs(&["redis-cli"]), runs(&["ldapsearch", "ldapmodify", "ldapadd"]));
    let mut told = |name: &str, value: &str| each(Spot { line: number, name, value, place });
    let mut nested = vec![];
    for (at, word) in words.iter().enumerate() {
        let next = words.get(at + 1).copied().filter(|next| !next.starts_with('-'));
        if word.contains(char::is_whitespace) && depth > 0 && !word.starts_with('-') && !is_assignment(word) {
            nested.push(*word);
            continue;
        }
        if let Some((user, password)) = next.and_then(|next| next.split_once(':'))
            && curl
            && ["-u", "--user", "--proxy-user", "-U"].contains(word)
            && !user.is_empty()
        {
            told("password", password);
            continue;
        }
        let takes = *word == "-p" && short_p || *word == "-a" && redis || *word == "-w" && ldap;
        if let Some(next) = next.filter(|_| takes) {
            told("password", next);
            continue;
        }
        if let Some(value) = word.strip_prefix("-p").filter(|value| !value.is_empty() && (mysql || sshpass)) {
            told("password", value);
            continue;
        }
        let option = word.strip_prefix("-D").filter(|_| word.contains('=')).unwrap_or(word);
        let name = option.trim_start_matches('-');
        match (name.split_once('='), option.starts_with('-')) {
            (Some((name, value)), _) if is_name(name) => told(name, value),
            (None, true) if word.starts_with("--") && is_name(name) => {
                if let Some(next) = next.filter(|_| crate::scan::name::says(name).is_some()) {
                    told(name, next);
                }
            }
            _ => {}
        }
    }
    for word in nested {
        let words = self::words(word);
        let words: Vec<&str> = words.iter().map(|word| word.as_str()).collect();
        within(number, &words, place, depth - 1, each);
    }
}

fn is_assignment(word: &str) -> bool {
    word.split_once('=').is_some_and(|(name, _)| is_name(name.trim_start_matches('-')))
}

fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 128
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}

/// A line cut into words as a shell or the service manager cuts it, quotes and escapes undone, nothing replaced. A substitution in
/// parentheses stays one word.
pub(super) fn words(line: &str) -> Vec<Zeroizing<String>> {
    let (mut words, mut word, mut open): (Vec<Zeroizing<String>>, Zeroizing<String>, bool) =
        (vec![], Zeroizing::default(), false);
    let mut quote: Option<char> = None;
    let mut nesting = 0usize;
    let mut before = ' ';
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some('\''), '\'') | (Some('"'), '"') => quote = None,
            (Some('"') | None, '\\') => word.extend(chars.next()),
            (None, '\'' | '"') => (quote, open) = (Some(c), true),
            (None, '(') if before == '$' || nesting > 0 => {
                nesting += 1;
                word.push(c);
            }
            (None, ')') if nesting > 0 => {
                nesting -= 1;
                word.push(c);
            }
            (None, '#') if word.is_empty() && !open && before.is_whitespace() && !words.is_empty() => break,
            (None, c) if nesting == 0 && (c.is_whitespace() || matches!(c, ';' | '|' | '&')) => {
                if !word.is_empty() || open {
                    words.push(std::mem::take(&mut word));
                }
                open = false;
            }
            (_, c) => {
                word.push(c);
                open = true;
            }
        }
        before = c;
    }
    if !word.is_empty() || open {
        words.push(word);
    }
    words
}

/// Escapes of the service manager in a literal (`\x20`, `\n`; systemd.syntax(7)), as far as they matter here.
pub(super) fn unescaped(text: &str) -> Cow<'_, str> {
    if text.contains('\\') { text.replace("\\x20", " ").replace("\\n", "\n").into() } else { text.into() }
}

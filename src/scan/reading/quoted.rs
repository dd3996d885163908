//! Quoted values behind names, in whatever language: JSON, TOML, HCL, XML, programs. A quoted text counts as a value if a name and
//! `=`, `:`, `=>` or a comma of a call stand before it.

use zeroize::Zeroizing;

use super::{Each, Place, Spot, is_comment};

pub(super) fn spots(text: &str, each: Each<'_>) {
    let mut pending = Pending::default();
    let mut comment = false;
    for (at, line) in text.lines().enumerate() {
        let trimmed = line.trim_start();
        // XML's comments go over lines, and are full of examples.
        let was = comment;
        if let Some(last) = line.rfind("<!--").max(line.rfind("-->")) {
            comment = line[last..].starts_with("<!--");
        }
        if is_comment(trimmed) || was || comment {
            continue;
        }
        // `variable "db_password" {`: its value is called default.
        if let Some(name) = trimmed.strip_prefix("variable \"").and_then(|rest| rest.split('"').next()) {
            pending.is(name, at);
        }
        pairs(at + 1, line, &mut pending, each);
        elements(at + 1, line, each);
    }
}

/// The name that was told last by itself, as in `{"name": "X", "value": ".."}`, and the line where.
#[derive(Default)]
pub(super) struct Pending {
    name: String,
    line: usize,
}

impl Pending {
    pub(super) fn is(&mut self, name: &str, line: usize) {
        (self.name, self.line) = (name.chars().take(128).collect(), line);
    }

    /// The name that a value called `name` really has.
    pub(super) fn of<'a>(&'a self, name: &'a str, line: usize) -> &'a str {
        let near = line.saturating_sub(self.line) <= 6 && !self.name.is_empty();
        if near && ["value", "default", "stringValue"].contains(&name) { &self.name } else { name }
    }
}

/// All values in quotes in one line.
pub(super) fn pairs(number: usize, line: &str, pending: &mut Pending, each: Each<'_>) {
    let mut at = 0;
    // The last quoted text: a name if a colon or a comma follows.
    let mut before: Option<(usize, usize, usize)> = None;
    while let Some(found) = line[at..].find(['"', '\'', '`']) {
        let open = at + found;
        let Some((inside, length)) = text_of(&line[open..]) else { break };
        let close = open + length;
        let name = name_before(line, open, before);
        if let Some(name) = name {
            let real = pending.of(name, number).to_owned();
            each(Spot { line: number, name: &real, value: &inside, place: Place::Text });
            if ["name", "key", "Name", "Key"].contains(&name) {
                pending.is(&inside, number);
            }
        }
        before = Some((open + 1, close - 1, close));
        at = close;
    }
}

/// The text in the quotes that `text` begins with, escapes undone, and its length with them.
fn text_of(text: &str) -> Option<(Zeroizing<String>, usize)> {
    let mut chars = text.char_indices();
    let (_, quote) = chars.next()?;
    let mut inside = Zeroizing::new(String::new());
    while let Some((at, c)) = chars.next() {
        match c {
            c if c == quote => return Some((inside, at + 1)),
            '\\' => match chars.next()?.1 {
                'n' => inside.push('\n'),
                c => inside.push(c),
            },
            c => inside.push(c),
        }
    }
    None
}

/// The name before the quote at `open`.
fn name_before(line: &str, open: usize, before: Option<(usize, usize, usize)>) -> Option<&str> {
    let head = line[..open].trim_end();
    let (head, comma) = match head.strip_suffix("=>").or_else(|| head.strip_suffix(":=")) {
        Some(head) => (head, false),
        None => match head.bytes().last()? {
            b'=' | b':' => (&head[..head.len() - 1], false),
            b',' => (&head[..head.len() - 1], true),
            // @ in C#, f and r in Python.
            b'@' | b'f' | b'r' | b'b' | b'$' => {
                let head = head[..head.len() - 1].trim_end();
                let cut = head.strip_suffix(['=', ':'])?;
                (cut, false)
            }
            _ => return None,
        },
    };
    // A comparison is no assignment.
    if head.ends_with(['=', '!', '<', '>']) {
        return None;
    }
    let head = head.trim_end().trim_end_matches(']').trim_end();
    if let Some((from, to, end)) = before
        && head.len() == end
    {
        // `define('NAME', '..')` and `setenv("NAME", "..")`, but no list of words.
        let call = comma && line[..from.saturating_sub(1)].trim_end().ends_with('(');
        return (!comma || call).then(|| &line[from..to]).filter(|name| name.len() <= 128);
    }
    if comma {
        return None;
    }
    let is = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    let name = head.rsplit(|c: char| !is(c)).next()?;
    (!name.is_empty() && name.len() <= 128).then_some(name)
}

/// `<password>..</password>`.
fn elements(number: usize, line: &str, each: Each<'_>) {
    let mut rest = line;
    while let Some((_, after)) = rest.split_once('<') {
        rest = after;
        // A tag that has no end nearby is none: all of a line is looked through once.
        let Some(end) = after.bytes().take(1024).position(|byte| byte == b'>') else { continue };
        let (tag, inside) = (&after[..end], &after[end + 1..]);
        let name = tag.split_whitespace().next().unwrap_or("");
        let is = |c: char| c.is_ascii_alphanumeric() || "_-.:".contains(c);
        if name.is_empty() || name.len() > 128 || !name.chars().all(is) {
            continue;
        }
        if let Some((value, end)) = inside.split_once('<')
            && end.starts_with('/')
            && !value.trim().is_empty()
        {
            each(Spot { line: number, name, value: value.trim(), place: Place::Text });
        }
    }
}

//! Words on a terminal: bold and dim where there is one and nobody objects (`NO_COLOR`), plain elsewhere.

use std::io::{IsTerminal as _, Write as _};

use super::Exit;
use crate::secret::is_obeyed;

/// Whether standard output is a terminal that may be painted.
pub(super) fn wanted() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

pub(super) fn bold(text: &str) -> String {
    painted("1", text)
}

pub(super) fn dim(text: &str) -> String {
    painted("2", text)
}

pub(super) fn good(text: &str) -> String {
    painted("32", text)
}

pub(super) fn bad(text: &str) -> String {
    painted("31", text)
}

fn painted(code: &str, text: &str) -> String {
    painted_if(wanted(), code, text)
}

/// The same for whoever knows already whether it is wanted.
pub(super) fn painted_if(wanted: bool, code: &str, text: &str) -> String {
    if wanted { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}

/// Prints words, a line or several. Some of them others have written, such as whoever named a program: what a terminal would obey is
/// shown as a question mark, but for the colours that are ours (TM-27).
pub(super) fn line(text: &str) -> Result<(), Exit> {
    verbatim(&harmless(text))
}

fn harmless(text: &str) -> String {
    const OURS: [&str; 5] = ["\x1b[0m", "\x1b[1m", "\x1b[2m", "\x1b[31m", "\x1b[32m"];
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let ours = OURS.iter().find(|code| rest.starts_with(**code)).filter(|_| wanted());
        let taken = ours.map_or(first.len_utf8(), |code| code.len());
        let obeyed = ours.is_none() && is_obeyed(first) && first != '\n';
        shown.push_str(if obeyed { "?" } else { &rest[..taken] });
        rest = &rest[taken..];
    }
    shown
}

/// Prints what was asked for, as it is, and ends the line. A reader that has gone ends the program quietly, as in any pipe.
pub(super) fn verbatim(text: &str) -> Result<(), Exit> {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Err(Exit::new(0, "")),
        done => Ok(done?),
    }
}

/// Rows under a heading, columns as wide as they need.
pub(super) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut out = String::new();
    for row in rows {
        let mut line = String::from("  ");
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(cell);
            line.extend(std::iter::repeat_n(' ', width + 2 - cell.chars().count()));
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// A length of time as people say it.
pub(super) fn length(seconds: i64) -> String {
    match seconds {
        ..0 => "over".into(),
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_writes_to_an_operators_terminal_by_the_name_of_a_program() {
        // TM-27. A test's output is no terminal: not even colours are ours.
        let named = "/tmp/\x1b[2K\r\u{9b}31myes\u{202e}\x07\x1b[31m";
        assert_eq!(harmless(named), "/tmp/?[2K??31myes???[31m");
        assert_eq!(harmless("two\nlines: \u{e9}\u{4e2d}"), "two\nlines: \u{e9}\u{4e2d}");
    }
}

//! Variables as the readers of one kind of file take them. In go variables with their values and where those come from; out come
//! the bytes of a file that its reader turns into exactly these values, or which variable cannot be carried and who could carry it.
//! Pure, and closed: what a reader would change, cut or read as something else is refused, and what several readers of one format
//! read differently is refused too. One file a dialect says whose rules it keeps; `tests.rs` holds each against those rules, and
//! `tests/env_files.rs` and `tests/peers` against the readers themselves.

mod docker;
mod dotenv;
mod json;
mod kubernetes;
mod sh;
mod systemd;
#[cfg(test)]
mod tests;

use std::{fmt, str::FromStr};

use zeroize::Zeroizing;

pub use kubernetes::{Manifest, ObjectName};

use super::{Source, Variable};
use crate::secret::Secret;

/// The longest variable that the kernel lets a program start with, with its name, `=` and the end (MAX_ARG_STRLEN, execve(2)).
const LONGEST: usize = 128 * 1024 - 1;

/// One variable, its value, and the field that the value is from, or that the file is from whose path the value is.
#[derive(Debug)]
pub struct Entry {
    /// The variable.
    pub variable: Variable,
    /// Where the value comes from, for messages.
    pub source: Source,
    /// The value.
    pub value: Secret,
}

/// Who is to read the file.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Dialect {
    /// `EnvironmentFile=` of systemd.
    Systemd,
    /// `--env-file` of docker and podman.
    Docker,
    /// compose, and programs with a dotenv library.
    Dotenv,
    /// A shell, by `. FILE`.
    Sh,
    /// One object of names and values.
    Json,
    /// A Secret for `kubectl apply`.
    KubernetesSecret(Manifest),
}

/// What a value has that a reader does not take as it stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Trouble {
    /// A byte 0, which no environment can hold.
    Nul,
    /// It is no UTF-8.
    NotText,
    /// A character that Unicode keeps for nobody (U+FFFE and others).
    Noncharacter,
    /// A line break, where every line is a variable of its own.
    LineBreak,
    /// A quote at its beginning, which some versions of the reader take away.
    LeadingQuote,
    /// `${`, which some readers expand even within single quotes.
    Expanded,
    /// A backslash at its end, which hides the closing quote.
    TrailingBackslash,
    /// Something that only double quotes carry, beside a `$`, which they do not.
    DollarAndQuote,
    /// The same beside a backtick, between which a shell runs what it finds.
    BacktickAndQuote,
    /// It is longer than so many bytes, with its name.
    TooLong(usize),
}

/// A variable that a dialect cannot carry.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
#[error("{variable} ({from}) cannot be written for {dialect}: {trouble}; {}", instead(.carried_by))]
pub struct CannotCarry {
    /// Which variable.
    pub variable: Variable,
    /// Which field of which credential it is.
    pub from: Source,
    /// Who would have read it.
    pub dialect: &'static str,
    /// What is in the way.
    pub trouble: Trouble,
    /// The formats that can carry this very value.
    pub carried_by: Vec<&'static str>,
}

fn instead(carried_by: &[&str]) -> String {
    match carried_by {
        [] => "have it in a file of its own (--file), and the file's path in the variable".into(),
        formats => {
            format!("--format {} can carry it, and so can a file of its own (--file)", formats.join(" or "))
        }
    }
}

impl Dialect {
    /// The formats, as they are named on a command line.
    pub const NAMES: [&str; 6] = ["systemd", "docker", "dotenv", "sh", "json", "k8s-secret"];

    /// The file for these variables, in their order.
    ///
    /// # Errors
    /// [`CannotCarry`], of the first variable that its reader would not read as it is.
    pub fn write(&self, entries: &[Entry]) -> Result<Secret, CannotCarry> {
        // Never grown, so that no copy of a secret stays behind where it was: the longest form of a byte is \u0000.
        let room = entries
            .iter()
            .map(|entry| 6 * entry.value.len() + entry.variable.as_str().len() + 64)
            .sum::<usize>();
        let mut out = Zeroizing::new(Vec::with_capacity(room + 1024));
        self.opening(&mut out);
        let mut whole = 0;
        for (at, Entry { variable, source, value }) in entries.iter().enumerate() {
            whole += value.len();
            let written = match self {
                Self::KubernetesSecret(_) if whole > kubernetes::MOST => {
                    Err(Trouble::TooLong(kubernetes::MOST))
                }
                _ => self.put(variable.as_str(), value.expose(), at == 0, &mut out),
            };
            written.map_err(|trouble| CannotCarry {
                variable: variable.clone(),
                from: source.clone(),
                dialect: self.reader(),
                trouble,
                carried_by: carriers(variable.as_str(), value.expose()),
            })?;
        }
        self.closing(&mut out);
        Ok(Secret::new(std::mem::take(&mut *out)))
    }

    fn opening(&self, out: &mut Vec<u8>) {
        match self {
            Self::Json => out.extend(b"{"),
            Self::KubernetesSecret(manifest) => manifest.open(out),
            Self::Systemd | Self::Docker | Self::Dotenv | Self::Sh => {}
        }
    }

    fn closing(&self, out: &mut Vec<u8>) {
        match self {
            Self::Json => out.extend(b"\n}\n"),
            Self::KubernetesSecret(_) => out.extend(b"\n  }\n}\n"),
            Self::Systemd | Self::Docker | Self::Dotenv | Self::Sh => {}
        }
    }

    fn put(&self, name: &str, value: &[u8], first: bool, out: &mut Vec<u8>) -> Result<(), Trouble> {
        match self {
            Self::Systemd => systemd::put(name, variable(name, value)?, out),
            Self::Docker => docker::put(name, variable(name, value)?, out),
            Self::Dotenv => dotenv::put(name, variable(name, value)?, out),
            Self::Sh => sh::put(name, value, out),
            Self::Json => json::put(name, value, first, out),
            Self::KubernetesSecret(_) => {
                kubernetes::put(name, value, first, out);
                Ok(())
            }
        }
    }

    fn reader(&self) -> &'static str {
        match self {
            Self::Systemd => "systemd's EnvironmentFile=",
            Self::Docker => "docker's --env-file",
            Self::Dotenv => "dotenv (compose, python-dotenv)",
            Self::Sh => "a shell",
            Self::Json => "JSON",
            Self::KubernetesSecret(_) => "a Kubernetes Secret",
        }
    }

    fn name(&self) -> &'static str {
        let [systemd, docker, dotenv, sh, json, kubernetes] = Self::NAMES;
        match self {
            Self::Systemd => systemd,
            Self::Docker => docker,
            Self::Dotenv => dotenv,
            Self::Sh => sh,
            Self::Json => json,
            Self::KubernetesSecret(_) => kubernetes,
        }
    }
}

/// Every format that carries this value, found by trying.
fn carriers(name: &str, value: &[u8]) -> Vec<&'static str> {
    let all = [
        Dialect::Systemd,
        Dialect::Docker,
        Dialect::Dotenv,
        Dialect::Sh,
        Dialect::Json,
        Dialect::KubernetesSecret(Manifest::default()),
    ];
    let carries = |dialect: &Dialect| {
        let mut tried = Zeroizing::new(Vec::with_capacity(6 * value.len() + name.len() + 64));
        value.len() <= kubernetes::MOST && dialect.put(name, value, true, &mut tried).is_ok()
    };
    all.iter().filter(|dialect| carries(dialect)).map(Dialect::name).collect()
}

/// What an environment can hold at all, as text.
fn variable<'a>(name: &str, value: &'a [u8]) -> Result<&'a str, Trouble> {
    settable(name, value)?;
    std::str::from_utf8(value).map_err(|_| Trouble::NotText)
}

/// What an environment can hold at all.
fn settable(name: &str, value: &[u8]) -> Result<(), Trouble> {
    if value.contains(&0) {
        return Err(Trouble::Nul);
    }
    if name.len() + 1 + value.len() > LONGEST {
        return Err(Trouble::TooLong(LONGEST));
    }
    Ok(())
}

/// `value` as one word of a POSIX shell, if an argument can be that.
pub fn shell_word(value: &str) -> Option<String> {
    let mut word = Vec::with_capacity(value.len() + 2);
    sh::put_quoted(value.as_bytes(), &mut word);
    String::from_utf8(word).ok().filter(|_| !value.contains('\0'))
}

/// Appends `value` with a `\` before each of `special`.
fn put_escaped(value: &str, special: &[u8], out: &mut Vec<u8>) {
    for byte in value.bytes() {
        if special.contains(&byte) {
            out.push(b'\\');
        }
        out.push(byte);
    }
}

impl FromStr for Dialect {
    type Err = String;

    /// Of a Kubernetes Secret, one without a name.
    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "systemd" => Ok(Self::Systemd),
            "docker" => Ok(Self::Docker),
            "dotenv" => Ok(Self::Dotenv),
            "sh" => Ok(Self::Sh),
            "json" => Ok(Self::Json),
            "k8s-secret" => Ok(Self::KubernetesSecret(Manifest::default())),
            _ => Err(format!("it has to be one of {}", Self::NAMES.join(", "))),
        }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nul => "it has a byte 0, which no environment can hold",
            Self::NotText => "it is no UTF-8, which this reader insists on",
            Self::Noncharacter => "it has a character that is none (as U+FFFE), which this reader drops with the variable",
            Self::LineBreak => "it has a line break, and here every line is a variable of its own",
            Self::LeadingQuote => "it begins with a quote, which some versions of this reader take away",
            Self::Expanded => "it has \"${\", which some of these readers expand even within single quotes",
            Self::TrailingBackslash => "it ends in a backslash, which hides the closing quote from some of these readers",
            Self::DollarAndQuote => {
                "it has a \"$\" and something that only double quotes carry (a single quote, a carriage return or two \
                 backslashes), and within those these readers expand \"$\" each in its own way"
            }
            Self::BacktickAndQuote => {
                "it has a backtick and something that only double quotes carry (a single quote, a carriage return or two \
                 backslashes), and within those a shell that reads the file runs what follows a backtick"
            }
            Self::TooLong(most) => return write!(f, "it is longer than {most} bytes"),
        })
    }
}

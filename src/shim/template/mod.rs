//! Templates of configuration files. In go a template (minijinja, the language of Jinja) and credentials; out comes the file, or the
//! template's file, line and variable, and never a value: `{{ ledger.token }}` is the field `token` of the credential `ledger`.
//!
//! A template can do nothing but write: there is no include, no function that reads a file, runs a program or asks for the
//! environment, so whoever may write a template gets no more by it than the credentials of whoever renders it. Nothing is escaped unless
//! a filter says so: a filter is of one kind of file (`sh`, `json`, `curlrc`, `pgpass`, `mycnf`, `urlencode`, `base64`), and refuses
//! what that file cannot carry. What is undefined is an error. Steps and size are bounded.
//!
//! What is wrong with a template whatever the values are, such as a filter that there is none of, is found when it is read, with made-up
//! values. What minijinja says about real ones could quote them (CVE-2022-38149): of that, only the line and the kind are told, and
//! the words of the filters here, which are the same for every value.
//!
//! minijinja holds its values as plain strings, so what is rendered is wiped when it is dropped, but not what it was rendered from.

mod filters;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use minijinja::{
    AutoEscape, Environment, ErrorKind, UndefinedBehavior, Value,
    syntax::SyntaxConfig,
    value::{Object, ObjectRepr},
};
use zeroize::Zeroizing;

use super::Fetched;
use crate::{deliver::Source, proto::v1::Credential, secret::Secret};

/// How many steps a template may take: more than any configuration file needs, and over in a moment.
const STEPS: u64 = 200_000;

/// How long a template and what it makes may be.
const LONGEST: usize = Template::LONGEST;

/// What of the language's own is of no use here, or tells too much.
const LEFT_OUT: [&str; 1] = ["debug"];

/// Why there is no file.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
#[error("{}{}: {what}", .file.display(), .line.map(|line| format!(":{line}")).unwrap_or_default())]
pub struct TemplateError {
    /// The template.
    pub file: PathBuf,
    /// The line, counted from 1, if it is about one.
    pub line: Option<usize>,
    /// What is wrong there.
    pub what: String,
}

/// A template that can be read.
#[derive(Debug)]
pub struct Template {
    file: PathBuf,
    text: String,
    /// What it names that it does not define itself.
    names: BTreeSet<String>,
}

/// The credentials that a template is about, by the names that it has for them.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Cast(BTreeMap<String, Arc<str>>);

impl Template {
    /// How many bytes a template may have, and what it makes.
    pub const LONGEST: usize = 1024 * 1024;

    /// Reads the template in `text`, which is what `file` holds.
    ///
    /// # Errors
    /// [`TemplateError`]: it is no template, or cannot be one of a file.
    pub fn parse(file: &Path, text: String) -> Result<Self, TemplateError> {
        let mut template = Self { file: file.into(), text, names: BTreeSet::new() };
        if template.text.len() > LONGEST {
            return Err(template.wrong(None, format!("it is longer than {LONGEST} bytes")));
        }
        let environment = environment();
        let parsed = environment.template_from_str(&template.text);
        let names = match parsed {
            Ok(parsed) => parsed.undeclared_variables(false),
            Err(error) => return Err(template.wrong(error.line(), error_text(&error))),
        };
        let globals: BTreeSet<&str> = environment.globals().map(|(name, _)| name).collect();
        template.names = names.into_iter().filter(|name| !globals.contains(name.as_str())).collect();
        template.rehearse()?;
        Ok(template)
    }

    /// The names in it that stand for credentials.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(String::as_str)
    }

    /// Who is meant, of the credentials that are `offered`: a name in a template has `_` where a credential's has `-`.
    ///
    /// # Errors
    /// [`TemplateError`]: it names something that is not offered, or two at once.
    pub fn cast(&self, offered: &[&str]) -> Result<Cast, TemplateError> {
        let mut cast = BTreeMap::new();
        for name in &self.names {
            let exact = offered.iter().filter(|other| *other == name);
            let spelled = offered.iter().filter(|other| *other != name && other.replace('-', "_") == *name);
            let mut meant = exact.chain(spelled);
            let wrong = |what| self.wrong(self.line_of(name), what);
            let Some(first) = meant.next() else {
                let has = if offered.is_empty() { "none".to_owned() } else { offered.join(", ") };
                return Err(wrong(format!(
                    "{name} is no credential that this program may have; it may have {has}"
                )));
            };
            if let Some(other) = meant.next() {
                return Err(wrong(format!(
                    "{name} can be {first} or {other}: rename one of them in agent.toml"
                )));
            }
            cast.insert(name.clone(), Arc::from(*first));
        }
        Ok(Cast(cast))
    }

    /// The file, with the credentials' values in it.
    ///
    /// # Errors
    /// [`TemplateError`], without any value in it. Panics if one of the cast was not fetched.
    pub fn render(&self, cast: &Cast, fetched: &Fetched) -> Result<Secret, TemplateError> {
        let (rendered, note) = self.run(|name| Some(fetched.credential(&cast.0[name]).clone()));
        match rendered {
            Ok(out) => self.in_fields(note.whole).map(|()| out),
            Err(error) => Err(self.wrong(error.line(), self.untelling(&error, note.missed))),
        }
    }

    /// What went wrong with real values, in words that hold none of them.
    fn untelling(&self, error: &minijinja::Error, missed: Option<(String, String)>) -> String {
        let line =
            error.line().and_then(|line| self.text.lines().nth(line.checked_sub(1)?)).unwrap_or_default();
        let variables = || match self.fields_in(line).join(", ") {
            none if none.is_empty() => String::new(),
            fields => format!("; it is in {fields}"),
        };
        match (error.kind(), error.detail()) {
            (ErrorKind::UndefinedError, _) => {
                // A field can be asked for by what another's value is: told is one that the template names itself.
                let named = |field: &str| {
                    [format!(".{field}"), format!("'{field}'"), format!("\"{field}\"")]
                        .iter()
                        .any(|it| line.contains(it))
                };
                let said = missed.filter(|(field, _)| named(field));
                said.map_or_else(
                    || format!("something in this line is not defined{}", variables()),
                    |(_, why)| why,
                )
            }
            (ErrorKind::OutOfFuel, _) => format!("it takes more than {STEPS} steps"),
            (ErrorKind::WriteFailure, _) => format!("what it makes is longer than {LONGEST} bytes"),
            (kind, Some(detail)) if of_the_template(kind) => detail.to_owned(),
            (_, Some(detail)) if filters::REFUSALS.contains(&detail) => format!("{detail}{}", variables()),
            (kind, _) => format!("{kind} (more is not told: it could quote a value){}", variables()),
        }
    }

    /// The fields of credentials that a line of the template names.
    fn fields_in<'a>(&self, line: &'a str) -> Vec<&'a str> {
        let words = line.split(|c: char| !c.is_alphanumeric() && c != '_' && c != '.');
        words.filter(|word| word.split_once('.').is_some_and(|(name, _)| self.names.contains(name))).collect()
    }

    /// Renders it with made-up values. Most of what goes wrong then may go well with real ones.
    fn rehearse(&self) -> Result<(), TemplateError> {
        let (rendered, note) = self.run(|_| None);
        match rendered {
            Err(error) if of_the_template(error.kind()) => Err(self.wrong(error.line(), error_text(&error))),
            _ => self.in_fields(note.whole),
        }
    }

    fn run(&self, of: impl Fn(&str) -> Option<Credential>) -> (Result<Secret, minijinja::Error>, Note) {
        let notes = Notes::default();
        let named = |name: &String| Named { name: name.clone(), credential: of(name), notes: notes.clone() };
        let context =
            Value::from_pairs(self.names.iter().map(|name| (name.as_str(), Value::from_object(named(name)))));
        let environment = environment();
        let mut out = Bounded(Zeroizing::new(Vec::with_capacity(LONGEST)));
        let rendered = environment
            .template_from_str(&self.text)
            .and_then(|template| template.render_captured_to(context, &mut out).map(drop));
        let note = std::mem::take(&mut *notes.0.lock().unwrap_or_else(PoisonError::into_inner));
        (rendered.map(|()| Secret::new(std::mem::take(&mut *out.0))), note)
    }

    /// A credential as a whole has no meaning in a file.
    fn in_fields(&self, whole: Option<String>) -> Result<(), TemplateError> {
        let Some(name) = whole else { return Ok(()) };
        let what = format!("{name} is a credential: write which field of it is meant, as in {name}.token");
        Err(self.wrong(self.line_of(&name), what))
    }

    fn wrong(&self, line: Option<usize>, what: impl Into<String>) -> TemplateError {
        TemplateError { file: self.file.clone(), line, what: what.into() }
    }

    /// The first line with that name as a word.
    fn line_of(&self, name: &str) -> Option<usize> {
        let word =
            |line: &str| line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == name);
        self.text.lines().position(word).map(|at| at + 1)
    }
}

impl Cast {
    /// The credentials.
    pub fn credentials(&self) -> BTreeSet<Arc<str>> {
        self.0.values().cloned().collect()
    }
}

fn error_text(error: &minijinja::Error) -> String {
    error.detail().map_or_else(|| error.kind().to_string(), |detail| format!("{}: {detail}", error.kind()))
}

/// The language as it is here.
fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_fuel(Some(STEPS));
    // A file ends as its template does.
    let syntax = SyntaxConfig::builder().keep_trailing_newline(true).build();
    environment.set_syntax(syntax.expect("the usual delimiters are valid"));
    for name in LEFT_OUT {
        environment.remove_global(name);
    }
    filters::add_to(&mut environment);
    environment
}

/// Whether it is wrong whatever the values are, and is said in the template's own words.
fn of_the_template(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::SyntaxError
            | ErrorKind::UnknownFilter
            | ErrorKind::UnknownFunction
            | ErrorKind::UnknownTest
    )
}

/// What a template did, in its own words.
#[derive(Default)]
struct Note {
    /// The last field that was not there, and what there is.
    missed: Option<(String, String)>,
    /// A credential that was written as a whole.
    whole: Option<String>,
}

#[derive(Clone, Default)]
struct Notes(Arc<Mutex<Note>>);

impl Notes {
    fn take(&self, note: impl FnOnce(&mut Note)) {
        note(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// What stands for a name in a template: a credential, or while nothing is fetched yet one that has every field.
struct Named {
    name: String,
    credential: Option<Credential>,
    notes: Notes,
}

impl Named {
    fn field(&self, name: &str) -> Result<String, String> {
        let Some(credential) = &self.credential else { return Ok("x".into()) };
        let source = Source { credential: credential.name.as_str().into(), field: name.to_owned() };
        let value = source.value(credential).map_err(|error| error.to_string())?;
        value.expose_str().map(str::to_owned).ok_or_else(|| format!("{source} is no text"))
    }
}

impl Object for Named {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let field = key.as_str()?;
        match self.field(field) {
            Ok(value) => Some(Value::from(value)),
            Err(why) => {
                self.notes.take(|note| note.missed = Some((field.to_owned(), why)));
                None
            }
        }
    }

    /// Writing it as a whole means nothing; that it was done is noted, and is an error in the end.
    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

impl fmt::Debug for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.notes.take(|note| note.whole = Some(self.name.clone()));
        f.write_str("credential")
    }
}

/// Takes as much as a file may have.
struct Bounded(Zeroizing<Vec<u8>>);

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > LONGEST {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.0.extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

//! agent.toml as written: found, opened with care, parsed, layered. In goes a path; out comes one tree of values
//! that still knows which line of which file each came from. Drop-ins of `agent.toml.d/` come after the file, in
//! order of name; the environment (`KEYBEARER_CONFIG__AUDIT__SYNC=always`) comes last.

use std::{
    collections::BTreeMap,
    fs::File,
    io::Read as _,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use config::{Environment, FileFormat, Map, Value};
use ring::digest;
use toml_edit::{Document, Item};

use super::Mistake;
use crate::secret::hex;

/// A settings file larger than this is not one.
const MAX_FILE: u64 = 1 << 20;

/// The prefix of overrides in the environment.
const PREFIX: &str = "KEYBEARER_CONFIG";

/// What was written, all files together.
#[derive(Debug)]
pub(super) struct Written {
    pub(super) tree: Map<String, Value>,
    /// SHA-256 over all files, hexadecimal: which settings were in force (TM-23).
    pub(super) digest: String,
    places: BTreeMap<String, Place>,
}

/// Where a key stands.
#[derive(Clone, Debug)]
struct Place {
    file: PathBuf,
    line: usize,
}

impl Written {
    /// Reads `path` and its drop-ins.
    pub(super) fn read(path: &Path, environment: &BTreeMap<String, String>) -> Result<Self, Vec<Mistake>> {
        let mut mistakes = Vec::new();
        let mut places = BTreeMap::new();
        let mut builder = config::Config::builder();
        let mut digest = digest::Context::new(&digest::SHA256);
        for file in files(path).map_err(|mistake| vec![mistake])? {
            let text = match read_careful(&file) {
                Ok(text) => text,
                Err(mistake) => {
                    mistakes.push(mistake);
                    continue;
                }
            };
            digest.update(text.as_bytes());
            digest.update(&[0]);
            let lines = Lines::of(&text);
            match Document::parse(text.as_str()) {
                Ok(document) => {
                    let mut here = BTreeMap::new();
                    locate(document.as_item(), "", &lines, &file, &mut here);
                    mistakes.extend(twice(&places, &here));
                    places.extend(here);
                    builder = builder.add_source(config::File::from_str(&text, FileFormat::Toml));
                }
                // Not the parser's own text: it quotes the line, and a line may hold what nobody should see.
                Err(error) => mistakes.push(Mistake {
                    file: file.clone(),
                    line: error.span().map(|span| lines.at(span.start)),
                    key: String::new(),
                    message: format!("this is not TOML: {}", error.message().replace('\n', ", ")),
                }),
            }
        }
        if !mistakes.is_empty() {
            return Err(mistakes);
        }
        let overrides: BTreeMap<&String, &String> =
            environment.iter().filter(|(name, _)| name.starts_with(PREFIX)).collect();
        for (name, value) in &overrides {
            digest.update(format!("{name}={value}\0").as_bytes());
        }
        let from_environment =
            Environment::with_prefix(PREFIX).prefix_separator("__").separator("__").try_parsing(true).source(
                Some(overrides.into_iter().map(|(name, value)| (name.clone(), value.clone())).collect()),
            );
        let tree = builder.add_source(from_environment).build().map(|merged| merged.cache.into_table());
        match tree {
            Ok(Ok(tree)) => Ok(Self { tree, digest: hex(digest.finish().as_ref()), places }),
            Ok(Err(error)) | Err(error) => Err(vec![Mistake {
                file: path.into(),
                line: None,
                key: String::new(),
                message: format!("the files and the environment do not fit together: {error}"),
            }]),
        }
    }

    /// A mistake about `key`, with the place it stands at, or the place of the nearest table around it.
    pub(super) fn mistake(&self, path: &Path, key: &str, message: String) -> Mistake {
        let mut at = key;
        let place = loop {
            match (self.places.get(at), at.rsplit_once('.')) {
                (Some(place), _) => break Some(place),
                (None, Some((around, _))) => at = around,
                (None, None) => break None,
            }
        };
        Mistake {
            file: place.map_or_else(|| path.into(), |place| place.file.clone()),
            line: place.map(|place| place.line),
            key: key.into(),
            message,
        }
    }
}

fn files(path: &Path) -> Result<Vec<PathBuf>, Mistake> {
    let mut files = vec![path.to_owned()];
    let mut directory = path.as_os_str().to_owned();
    directory.push(".d");
    let directory = PathBuf::from(directory);
    if directory.is_dir() {
        let unreadable = |error: std::io::Error| Mistake {
            file: directory.clone(),
            line: None,
            key: String::new(),
            message: format!("the drop-ins cannot be listed: {error}"),
        };
        let mut drop_ins = Vec::new();
        for entry in std::fs::read_dir(&directory).map_err(unreadable)? {
            let entry = entry.map_err(unreadable)?.path();
            if entry.extension().is_some_and(|extension| extension == "toml") {
                drop_ins.push(entry);
            }
        }
        drop_ins.sort();
        files.extend(drop_ins);
    }
    Ok(files)
}

fn read_careful(path: &Path) -> Result<String, Mistake> {
    let wrong = |message: String| Mistake { file: path.into(), line: None, key: String::new(), message };
    let file = File::open(path).map_err(|error| wrong(format!("it cannot be opened: {error}")))?;
    let meta = file.metadata().map_err(|error| wrong(format!("it cannot be looked at: {error}")))?;
    if !meta.is_file() {
        return Err(wrong("it is not a regular file".into()));
    }
    // Whoever writes this file decides who gets which credential.
    if meta.mode() & 0o022 != 0 {
        let mode = meta.mode() & 0o7777;
        return Err(wrong(format!("others may write it (mode {mode:04o}): chmod go-w {}", path.display())));
    }
    let ours = rustix::process::geteuid().as_raw();
    if meta.uid() != 0 && meta.uid() != ours {
        return Err(wrong(format!(
            "it belongs to uid {}, neither root nor this agent: chown it",
            meta.uid()
        )));
    }
    if meta.len() > MAX_FILE {
        return Err(wrong("it is larger than 1 MiB".into()));
    }
    let mut text = String::new();
    (&file)
        .take(MAX_FILE)
        .read_to_string(&mut text)
        .map_err(|error| wrong(format!("it cannot be read: {error}")))?;
    Ok(text)
}

fn locate(item: &Item, path: &str, lines: &Lines, file: &Path, places: &mut BTreeMap<String, Place>) {
    let mut tables: Vec<&dyn toml_edit::TableLike> = Vec::new();
    match item {
        Item::ArrayOfTables(array) => {
            tables.extend(array.iter().map(|table| table as &dyn toml_edit::TableLike))
        }
        Item::Value(toml_edit::Value::Array(array)) => {
            tables.extend(
                array
                    .iter()
                    .filter_map(|value| value.as_inline_table())
                    .map(|table| table as &dyn toml_edit::TableLike),
            );
        }
        _ => tables.extend(item.as_table_like()),
    }
    for table in tables {
        for (key, value) in table.iter() {
            let below = if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
            let span = table.key(key).and_then(toml_edit::Key::span).or_else(|| value.span());
            if let Some(span) = span {
                let place = Place { file: file.into(), line: lines.at(span.start) };
                places.entry(below.clone()).or_insert(place);
            }
            locate(value, &below, lines, file, places);
        }
    }
}

/// Identities are never put together from two files: who may do what is read in one place.
fn twice(before: &BTreeMap<String, Place>, here: &BTreeMap<String, Place>) -> Vec<Mistake> {
    let is_identity = |key: &str| key.strip_prefix("identities.").is_some_and(|rest| !rest.contains('.'));
    let clash = |(key, place): (&String, &Place)| {
        let first = before.get(key).filter(|_| is_identity(key))?;
        Some(Mistake {
            file: place.file.clone(),
            line: Some(place.line),
            key: key.clone(),
            message: format!(
                "it is also in {}:{}: write an identity in one file only",
                first.file.display(),
                first.line
            ),
        })
    };
    here.iter().filter_map(clash).collect()
}

/// Where each line of a text ends.
struct Lines(Vec<usize>);

impl Lines {
    fn of(text: &str) -> Self {
        Self(text.match_indices('\n').map(|(at, _)| at).collect())
    }

    /// The line, from 1, that a byte is on.
    fn at(&self, offset: usize) -> usize {
        self.0.partition_point(|end| *end < offset) + 1
    }
}

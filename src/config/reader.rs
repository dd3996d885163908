//! Reads one table of the tree, key by key. In goes a table; out come typed values, every mistake on the way, and
//! at the end each key nobody asked for. Values are never repeated in a message, only their kind: any of them could
//! be a secret that was put in the wrong place.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::Duration,
};

use config::{Map, Value, ValueKind};

/// Mistakes, as key and message.
pub(super) type Mistakes = RefCell<Vec<(String, String)>>;

pub(super) struct Reader<'a> {
    table: &'a Map<String, Value>,
    path: String,
    seen: BTreeSet<&'static str>,
    mistakes: &'a Mistakes,
}

impl<'a> Reader<'a> {
    pub(super) fn new(
        table: &'a Map<String, Value>,
        path: impl Into<String>,
        mistakes: &'a Mistakes,
    ) -> Self {
        Self { table, path: path.into(), seen: BTreeSet::new(), mistakes }
    }

    /// The full name of `key` in this table.
    pub(super) fn key(&self, key: &str) -> String {
        if self.path.is_empty() { key.into() } else { format!("{}.{key}", self.path) }
    }

    /// Notes a mistake about `key`.
    pub(super) fn wrong(&self, key: &str, message: impl Into<String>) {
        self.mistakes.borrow_mut().push((self.key(key), message.into()));
    }

    pub(super) fn has(&mut self, key: &'static str) -> bool {
        self.value(key).is_some()
    }

    pub(super) fn string(&mut self, key: &'static str) -> Option<String> {
        match &self.value(key)?.kind {
            ValueKind::String(text) if text.chars().any(char::is_control) => {
                self.wrong(key, "it holds a control character");
                None
            }
            ValueKind::String(text) => Some(text.clone()),
            other => self.not_a(key, "a string", other),
        }
    }

    pub(super) fn required(&mut self, key: &'static str, example: &str) -> Option<String> {
        if !self.table.contains_key(key) {
            self.seen.insert(key);
            self.wrong(key, format!("it is required, for example {example}"));
            return None;
        }
        self.string(key)
    }

    pub(super) fn path(&mut self, key: &'static str) -> Option<PathBuf> {
        let path = PathBuf::from(self.string(key)?);
        if path.is_absolute() {
            return Some(path);
        }
        self.wrong(key, "it has to be an absolute path");
        None
    }

    pub(super) fn boolean(&mut self, key: &'static str, default: bool) -> bool {
        match self.value(key).map(|value| &value.kind) {
            None => default,
            Some(ValueKind::Boolean(value)) => *value,
            Some(other) => self.not_a(key, "true or false", other).unwrap_or(default),
        }
    }

    pub(super) fn integer(
        &mut self,
        key: &'static str,
        default: u64,
        range: std::ops::RangeInclusive<u64>,
    ) -> u64 {
        let number = match self.value(key).map(|value| &value.kind) {
            None => return default,
            Some(ValueKind::I64(number)) => u64::try_from(*number).ok(),
            Some(ValueKind::U64(number)) => Some(*number),
            Some(other) => return self.not_a(key, "a whole number", other).unwrap_or(default),
        };
        match number.filter(|number| range.contains(number)) {
            Some(number) => number,
            None => {
                self.wrong(key, format!("it has to be from {} to {}", range.start(), range.end()));
                default
            }
        }
    }

    /// An id: a number, which is not a name.
    pub(super) fn id(&mut self, key: &'static str) -> Option<u32> {
        self.value(key)?;
        let none = u64::from(u32::MAX);
        let id = self.integer(key, none, 0..=none - 1);
        u32::try_from(id).ok().filter(|id| *id != u32::MAX)
    }

    /// A length of time: whole seconds, or words such as "90s", "5m", "1h 30m", "30d".
    pub(super) fn duration(&mut self, key: &'static str, default: Duration) -> Duration {
        let read = match self.value(key).map(|value| &value.kind) {
            None => return default,
            Some(ValueKind::I64(seconds)) => u64::try_from(*seconds).ok().map(Duration::from_secs),
            Some(ValueKind::String(words)) => {
                let days = words.strip_suffix('d').and_then(|days| days.parse::<u32>().ok());
                match days {
                    Some(days) => Some(Duration::from_secs(u64::from(days) * 24 * 60 * 60)),
                    None => words
                        .parse::<jiff::SignedDuration>()
                        .ok()
                        .and_then(|length| Duration::try_from(length).ok()),
                }
            }
            Some(other) => {
                return self.not_a(key, "a length of time such as \"60s\"", other).unwrap_or(default);
            }
        };
        read.unwrap_or_else(|| {
            self.wrong(key, "it has to be a length of time, such as \"60s\", \"5m\", \"1h\" or \"30d\"");
            default
        })
    }

    /// A length of time, or a word that says that there is no end.
    pub(super) fn duration_unless(&mut self, key: &'static str, word: &str) -> Option<Duration> {
        match self.value(key).map(|value| &value.kind) {
            None => None,
            Some(ValueKind::String(text)) if text == word => None,
            Some(_) => Some(self.duration(key, Duration::MAX)),
        }
    }

    pub(super) fn strings(&mut self, key: &'static str) -> Vec<String> {
        let items = match self.value(key).map(|value| &value.kind) {
            None => return vec![],
            Some(ValueKind::Array(items)) => items,
            Some(other) => return self.not_a(key, "a list of strings", other).unwrap_or_default(),
        };
        let mut strings = Vec::new();
        for item in items {
            match &item.kind {
                ValueKind::String(text) => strings.push(text.clone()),
                other => return self.not_a(key, "a list of strings", other).unwrap_or_default(),
            }
        }
        strings
    }

    /// One of several words.
    pub(super) fn word<T: Copy>(&mut self, key: &'static str, default: T, words: &[(&str, T)]) -> T {
        let Some(text) = self.string(key) else { return default };
        match words.iter().find(|(word, _)| *word == text) {
            Some((_, value)) => *value,
            None => {
                let known: Vec<String> = words.iter().map(|(word, _)| format!("{word:?}")).collect();
                self.wrong(key, format!("it has to be one of {}", known.join(", ")));
                default
            }
        }
    }

    /// A list of words out of several.
    pub(super) fn words<T: Clone>(&mut self, key: &'static str, words: &[(&str, T)]) -> Vec<T> {
        let mut meant = Vec::new();
        for text in self.strings(key) {
            match words.iter().find(|(word, _)| *word == text) {
                Some((_, value)) => meant.push(value.clone()),
                None => {
                    let known: Vec<String> = words.iter().map(|(word, _)| format!("{word:?}")).collect();
                    self.wrong(key, format!("each of them has to be one of {}", known.join(", ")));
                }
            }
        }
        meant
    }

    /// A table below this one; an empty one if it is not there.
    pub(super) fn table(&mut self, key: &'static str) -> Option<Reader<'a>> {
        match &self.value(key)?.kind {
            ValueKind::Table(table) => Some(Reader::new(table, self.key(key), self.mistakes)),
            other => self.not_a(key, "a table", other),
        }
    }

    /// A table, or a list of tables.
    pub(super) fn table_or_tables(&mut self, key: &'static str) -> Vec<Reader<'a>> {
        let path = self.key(key);
        match self.value(key).map(|value| &value.kind) {
            None => vec![],
            Some(ValueKind::Table(table)) => vec![Reader::new(table, path, self.mistakes)],
            Some(ValueKind::Array(items)) => {
                let mut tables = Vec::new();
                for item in items {
                    match &item.kind {
                        ValueKind::Table(table) => {
                            tables.push(Reader::new(table, path.clone(), self.mistakes))
                        }
                        other => {
                            return self.not_a(key, "a table or a list of tables", other).unwrap_or_default();
                        }
                    }
                }
                tables
            }
            Some(other) => self.not_a(key, "a table or a list of tables", other).unwrap_or_default(),
        }
    }

    /// A table of texts whose names somebody else chose.
    pub(super) fn texts(&mut self, key: &'static str) -> BTreeMap<String, String> {
        let Some(inner) = self.table(key) else { return BTreeMap::new() };
        let mut texts = BTreeMap::new();
        for (name, value) in inner.table {
            match &value.kind {
                ValueKind::String(text) => drop(texts.insert(name.clone(), text.clone())),
                ValueKind::Boolean(_) | ValueKind::I64(_) => {
                    drop(texts.insert(name.clone(), value.to_string()))
                }
                other => inner.wrong(name, format!("it has to be a string, not {}", kind(other))),
            }
        }
        texts
    }

    /// A list of tables that are passed on as JSON objects.
    pub(super) fn objects(&mut self, key: &'static str) -> Vec<serde_json::Value> {
        let items = match self.value(key).map(|value| &value.kind) {
            None => return vec![],
            Some(ValueKind::Array(items)) => items,
            Some(other) => return self.not_a(key, "a list of tables", other).unwrap_or_default(),
        };
        for item in items {
            if !matches!(item.kind, ValueKind::Table(_)) {
                return self.not_a(key, "a list of tables", &item.kind).unwrap_or_default();
            }
        }
        items.iter().map(|item| as_json(&item.kind)).collect()
    }

    /// Tables whose names the operator chose.
    pub(super) fn named_tables(&mut self, key: &'static str) -> BTreeMap<String, Reader<'a>> {
        let Some(outer) = self.table(key) else { return BTreeMap::new() };
        let mut named = BTreeMap::new();
        for (name, value) in outer.table {
            if !crate::policy::name_is_sound(name) {
                outer.wrong(name, "a name is 1 to 63 of a-z, 0-9, - and _, beginning with a letter or digit");
                continue;
            }
            match &value.kind {
                ValueKind::Table(table) => {
                    named.insert(name.clone(), Reader::new(table, outer.key(name), self.mistakes));
                }
                other => outer.wrong(name, format!("it has to be a table, not {}", kind(other))),
            }
        }
        named
    }

    /// Ends the reading: every key that nobody asked for is a mistake.
    pub(super) fn finish(self) {
        for name in self.table.keys().filter(|name| !self.seen.contains(name.as_str())) {
            let lower = name.to_lowercase();
            if ["secret", "password", "passwd", "token", "api_key", "apikey"]
                .iter()
                .any(|word| lower.contains(word))
            {
                self.wrong(name, "there is no such key, and no shared secret has a place here (BCP-03): take it out of the file");
            } else {
                let mut nearest: Vec<(usize, &&str)> =
                    self.seen.iter().map(|known| (distance(name, known), known)).collect();
                nearest.sort();
                let hint = match nearest.first() {
                    Some((far, known)) if *far <= 2 => format!(": did you mean {known}?"),
                    _ => format!("; there are {}", self.seen.iter().copied().collect::<Vec<_>>().join(", ")),
                };
                self.wrong(name, format!("there is no such key{hint}"));
            }
        }
    }

    fn value(&mut self, key: &'static str) -> Option<&'a Value> {
        self.seen.insert(key);
        self.table.get(key)
    }

    fn not_a<T>(&self, key: &str, wanted: &str, is: &ValueKind) -> Option<T> {
        self.wrong(key, format!("it has to be {wanted}, not {}", kind(is)));
        None
    }
}

fn kind(value: &ValueKind) -> &'static str {
    match value {
        ValueKind::Nil => "nothing",
        ValueKind::Boolean(_) => "true or false",
        ValueKind::I64(_) | ValueKind::I128(_) | ValueKind::U64(_) | ValueKind::U128(_) => "a whole number",
        ValueKind::Float(_) => "a fraction",
        ValueKind::String(_) => "a string",
        ValueKind::Table(_) => "a table",
        ValueKind::Array(_) => "a list",
    }
}

fn as_json(value: &ValueKind) -> serde_json::Value {
    match value {
        ValueKind::Nil => serde_json::Value::Null,
        ValueKind::Boolean(flag) => (*flag).into(),
        ValueKind::I64(number) => (*number).into(),
        ValueKind::U64(number) => (*number).into(),
        // TOML has no such numbers; an override in the environment could.
        ValueKind::I128(number) => number.to_string().into(),
        ValueKind::U128(number) => number.to_string().into(),
        ValueKind::Float(number) => (*number).into(),
        ValueKind::String(text) => text.as_str().into(),
        ValueKind::Table(table) => {
            table.iter().map(|(name, value)| (name.clone(), as_json(&value.kind))).collect()
        }
        ValueKind::Array(items) => items.iter().map(|item| as_json(&item.kind)).collect(),
    }
}

/// 64 hexadecimal digits.
pub(super) fn parse_sha256(text: &str) -> Option<[u8; 32]> {
    let digits = text.as_bytes();
    let mut sum = [0; 32];
    if digits.len() != 64 {
        return None;
    }
    for (byte, pair) in sum.iter_mut().zip(digits.chunks(2)) {
        let high = char::from(pair[0]).to_digit(16)?;
        let low = char::from(pair[1]).to_digit(16)?;
        *byte = u8::try_from(high * 16 + low).ok()?;
    }
    Some(sum)
}

/// How many letters to add, drop or change (Levenshtein).
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, left) in one.chars().enumerate() {
        let mut corner = row[0];
        row[0] = i + 1;
        for (j, right) in other.iter().enumerate() {
            let change = corner + usize::from(left != *right);
            corner = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(corner + 1);
        }
    }
    row[other.len()]
}

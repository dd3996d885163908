//! The agent's own log in the journal: each line with its fields. In go events of `tracing`; out come entries. `MESSAGE` has the fields too,
//! as text, because that is all that `journalctl` shows unless it is asked; tracing-journald, which would be the library for this,
//! leaves them out there, and waits for a journal that is slow. What the journal does not take at once goes to standard error, so no line is
//! lost for that.

use std::{
    fmt::{self, Write as _},
    io,
    path::Path,
};

use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{Layer, layer::Context};

use super::{Journal, Priority, put, put_head};

/// Writes the log into the journal.
#[derive(Debug)]
pub struct Log(Journal);

impl Log {
    /// Into the journal that listens at `path`.
    ///
    /// # Errors
    /// As [`Journal::at`].
    pub fn to(path: &Path) -> io::Result<Self> {
        Journal::at(path).map(Self)
    }
}

impl<S: Subscriber> Layer<S> for Log {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut said = Said::default();
        event.record(&mut said);
        let (entry, text) = said.told(*event.metadata().level(), event.metadata().target());
        if self.0.send(&entry).is_err() {
            eprintln!("{text}");
        }
    }
}

/// What an event says.
#[derive(Default)]
struct Said {
    message: String,
    fields: Vec<(&'static str, String)>,
}

impl Said {
    /// As an entry, and as one line.
    fn told(mut self, level: Level, target: &str) -> (Vec<u8>, String) {
        let priority = match level {
            Level::ERROR => Priority::Error,
            Level::WARN => Priority::Warning,
            Level::INFO => Priority::Info,
            _ => Priority::Debug,
        };
        let mut entry = Vec::new();
        put_head(&mut entry, priority);
        put(&mut entry, "TARGET", target);
        for (name, value) in &self.fields {
            // Writing to a String cannot fail.
            let _ = write!(self.message, " {name}={value}");
            let upper = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
            let name: String = "KEYBEARER_".chars().chain(name.chars().map(upper)).take(64).collect();
            put(&mut entry, &name, value);
        }
        put(&mut entry, "MESSAGE", &self.message);
        (entry, self.message)
    }

    fn take(&mut self, field: &Field, value: String) {
        match field.name() {
            "message" => self.message = value,
            name => self.fields.push((name, value)),
        }
    }
}

impl Visit for Said {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.take(field, format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.take(field, value.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use tracing_subscriber::layer::SubscriberExt as _;

    use super::{super::tests::fields, *};

    #[test]
    fn a_line_comes_with_its_fields_and_can_be_read_without_them() {
        // AUD-26
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let journal = UnixDatagram::bind(&path).unwrap();
        let log = tracing_subscriber::registry().with(Log::to(&path).unwrap());
        tracing::subscriber::with_default(log, || {
            let error = std::io::Error::other("no\nroom");
            tracing::warn!(%error, size = 3, name = "x", "it fails");
        });
        let mut entry = [0; 1 << 12];
        let length = journal.recv(&mut entry).unwrap();
        let said = fields(&entry[..length]);
        assert_eq!(said["MESSAGE"], "it fails error=no\nroom size=3 name=x");
        assert_eq!((&*said["PRIORITY"], &*said["SYSLOG_IDENTIFIER"]), ("4", "keybearer"));
        assert_eq!(
            (&*said["KEYBEARER_ERROR"], &*said["KEYBEARER_SIZE"], &*said["KEYBEARER_NAME"]),
            ("no\nroom", "3", "x")
        );
        assert!(said["TARGET"].starts_with("keybearer::journal"));
    }
}

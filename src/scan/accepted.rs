//! What an operator lives with for a while, on record beside what was scanned: one line each, `ID UNTIL OWNER REASON`, with the id
//! that `keybearer scan` prints. In goes the text of the list; out comes which findings are not told of today. None of them is
//! accepted for ever (S36).

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp, civil::Date, tz::TimeZone};

use super::Finding;

/// The longest anything is accepted, as an exception of the policy (S36).
const MOST_DAYS: i64 = 90;

/// Findings that are accepted for now.
#[derive(Debug, Default)]
pub struct Accepted(BTreeMap<String, Timestamp>);

/// Why a list is none.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("line {line}: {what}")]
pub struct NotAccepted {
    /// The line, from 1.
    pub line: usize,
    /// What is wrong and what to do.
    pub what: &'static str,
}

impl Accepted {
    /// Reads a list.
    ///
    /// # Errors
    /// [`NotAccepted`], for the first line that is not whole.
    pub fn parse(text: &str, now: Timestamp) -> Result<Self, NotAccepted> {
        let mut accepted = BTreeMap::new();
        for (at, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let wrong = |what| NotAccepted { line: at + 1, what };
            let mut words = line.split_whitespace();
            let (id, until, owner) = (words.next(), words.next(), words.next());
            let id = id
                .filter(|id| id.len() == 12 && id.bytes().all(|byte| byte.is_ascii_hexdigit()))
                .ok_or_else(|| wrong("it begins with the id of a finding, 12 hexadecimal digits"))?;
            let until = until
                .and_then(|date| date.parse::<Date>().ok())
                .and_then(|date| date.tomorrow().ok()?.to_zoned_datetime(TimeZone::UTC).ok())
                .map(|end| end.timestamp())
                .ok_or_else(|| wrong("after the id comes the last day, such as 2027-01-31"))?;
            if owner.is_none_or(|owner| owner.len() < 3) || words.next().is_none() {
                return Err(wrong("after the day come an owner and a reason (S36)"));
            }
            let latest =
                now.checked_add(SignedDuration::from_hours(24 * (MOST_DAYS + 1))).unwrap_or(Timestamp::MAX);
            if until > latest {
                return Err(wrong("it ends more than 90 days ahead: nothing is accepted for longer (S36)"));
            }
            accepted.insert(id.to_ascii_lowercase(), until);
        }
        Ok(Self(accepted))
    }

    /// Whether `finding` is accepted at `now`.
    pub fn has(&self, finding: &Finding, now: Timestamp) -> bool {
        self.0.get(&finding.id()).is_some_and(|until| now < *until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_accepted_for_ever_nor_by_nobody() {
        // S36
        let now: Timestamp = "2026-11-01T00:00:00Z".parse().unwrap();
        let read = |line: &str| Accepted::parse(line, now).map(|list| list.0.len());
        assert_eq!(read("# why\n\n0123456789ab 2026-12-31 payments@example.com the vendor cannot\n"), Ok(1));
        for (line, what) in [
            ("0123456789ab 2027-06-01 a@example.com it is so", "90 days"),
            ("0123456789ab never a@example.com it is so", "last day"),
            ("0123456789ab 2026-12-31 a@example.com", "owner and a reason"),
            ("0123456789ab 2026-12-31", "owner and a reason"),
            ("app.env 2026-12-31 a@example.com it is so", "id of a finding"),
        ] {
            let error = Accepted::parse(line, now).unwrap_err();
            assert!(error.line == 1 && error.what.contains(what), "{line}: {error}");
        }
    }
}

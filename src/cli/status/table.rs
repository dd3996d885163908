//! The table of `keybearer status`, pure: in goes what the agent said of itself, out come lines. Whoever was woken reads from the
//! top: whether it works, what is wrong and what to do, then issuers, identities, credentials, what is allowed until a date, and the
//! host. Each section is sorted, has a heading of its own and columns as wide as they need; what takes a sentence stands under its
//! row. Nothing is said by colour alone.

use super::{day, seconds};
use crate::{
    cli::paint,
    proto::v1::{ExceptionStatus, IdentityStatus, IssuerStatus, ShelfStatus, StatusResponse},
    secret::is_obeyed,
};

/// How wide a line may be, where it can be so.
pub(super) const WIDTH: usize = 100;

/// A week before its end, an exception is a matter for somebody.
const SOON: i64 = 7 * 86_400;

/// What whoever reads this can be shown.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    /// With colours.
    pub(super) painted: bool,
    /// Nothing but ASCII.
    pub(super) ascii: bool,
    /// Where sentences are broken; none where a sentence is one line.
    pub(super) wrap: Option<usize>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Tone {
    Plain,
    Bold,
    Dim,
    Good,
    Bad,
}

impl Tone {
    fn code(self) -> Option<&'static str> {
        match self {
            Self::Plain => None,
            Self::Bold => Some("1"),
            Self::Dim => Some("2"),
            Self::Good => Some("32"),
            Self::Bad => Some("31"),
        }
    }
}

/// One field of a row.
#[derive(Debug)]
struct Cell(Tone, String);

fn plain(text: impl Into<String>) -> Cell {
    Cell(Tone::Plain, text.into())
}

fn bad(text: impl Into<String>) -> Cell {
    Cell(Tone::Bad, text.into())
}

/// One row, and the sentences under it.
#[derive(Debug)]
struct Row {
    cells: Vec<Cell>,
    under: Vec<Cell>,
}

impl Row {
    fn of(cells: impl IntoIterator<Item = Cell>) -> Self {
        Self { cells: cells.into_iter().collect(), under: vec![] }
    }

    fn saying(mut self, cell: Cell) -> Self {
        if !cell.1.is_empty() {
            self.under.push(cell);
        }
        self
    }
}

/// All of it, a line each.
pub(super) fn table(status: &StatusResponse, look: &Look) -> Vec<String> {
    let mut page = Page { look, lines: vec![] };
    page.head(status);
    page.issuers(&status.issuers);
    page.identities(&status.identities);
    page.credentials(status);
    page.exceptions(&status.exceptions);
    page.sealed(status);
    page.host(status);
    page.lines
}

struct Page<'a> {
    look: &'a Look,
    lines: Vec<String>,
}

impl Page<'_> {
    fn head(&mut self, status: &StatusResponse) {
        let (tone, word) = match &*status.readiness {
            "ready" => (Tone::Good, "READY"),
            "stale" => (Tone::Bad, "STALE"),
            "down" => (Tone::Bad, "DOWN"),
            // An agent older than this program does not say.
            _ => (Tone::Bold, "RUNNING"),
        };
        let words = format!(
            "keybearer {}, environment {}, up {}, settings {}",
            status.version,
            status.environment,
            paint::length(seconds(status.uptime).unwrap_or(0)),
            status.config_digest.get(..12).unwrap_or(&status.config_digest),
        );
        let line = format!("{}  {}", self.dyed(tone, word), self.clean(&words));
        self.lines.push(line);
        for why in &status.readiness_why {
            self.sentence("  ", &bad(why));
        }
        if !status.reload_error.is_empty() {
            self.sentence("", &bad("the settings in force are older than the file:"));
            for line in status.reload_error.lines() {
                self.sentence("  ", &plain(line));
            }
        }
        // What stands in a section of its own is said there.
        let elsewhere = |warning: &&String| {
            status.exceptions.iter().any(|it| {
                let begins = format!("{}.{} is {} until ", it.identity, it.credential, it.weakness);
                warning.starts_with(&begins)
            })
        };
        for warning in status.warnings.iter().filter(|warning| !elsewhere(warning)) {
            let words: Vec<&str> = warning.lines().collect();
            self.sentence("note  ", &plain(words.join(" ")));
        }
    }

    fn issuers(&mut self, issuers: &[IssuerStatus]) {
        let mut all: Vec<&IssuerStatus> = issuers.iter().collect();
        all.sort_by(|one, other| one.name.cmp(&other.name));
        let rows = all.into_iter().map(|it| {
            let ago = |length| seconds(length).map(|ago| format!("{} ago", paint::length(ago)));
            let since = match &*it.state {
                "ok" | "unused" => String::new(),
                _ => seconds(it.failing_for).map(paint::length).unwrap_or_default(),
            };
            let state = match &*it.state {
                "ok" => Cell(Tone::Good, "ok".into()),
                "unused" => Cell(Tone::Dim, "not asked yet".into()),
                "open" => bad("left alone"),
                "failing" => bad("failing"),
                other => plain(other),
            };
            let failures = if it.failures == 0 { String::new() } else { it.failures.to_string() };
            let next = seconds(it.next_try).filter(|_| it.failures > 0);
            let skew = it.skew_ms.map(|skew| format!("{:+.1} s", skew as f64 / 1000.0));
            Row::of([
                plain(&it.name),
                state,
                plain(since),
                plain(failures),
                plain(next.map(|wait| format!("in {}", paint::length(wait))).unwrap_or_default()),
                plain(ago(it.last_success).unwrap_or_default()),
                plain(skew.unwrap_or_default()),
            ])
            .saying(Cell(Tone::Dim, it.url.clone()))
            .saying(bad(&it.last_error))
        });
        let head = ["issuers", "state", "for", "failures", "next try", "last answer", "clock"];
        self.section(head, rows.collect(), "none");
    }

    fn identities(&mut self, identities: &[IdentityStatus]) {
        let mut all: Vec<&IdentityStatus> = identities.iter().collect();
        all.sort_by(|one, other| one.name.cmp(&other.name));
        let rows = all.into_iter().map(|it| {
            let short = |kid: &str| kid.get(..8).unwrap_or(kid).to_owned();
            let state = if it.disabled.is_empty() { plain("on") } else { bad("off") };
            let row = Row::of([
                plain(&it.name),
                state,
                plain(&it.assurance),
                plain(format!("{} {}", it.algorithm, short(&it.kid)).trim()),
                plain(&it.owner),
            ]);
            let row = match &*it.disabled {
                "" => row,
                why => row.saying(bad(format!("disabled: {why}"))),
            };
            match &*it.next_kid {
                "" => row,
                next => row.saying(plain(format!(
                    "next key {} is published, and signs once every issuer takes it",
                    short(next)
                ))),
            }
        });
        self.section(["identities", "state", "assurance", "key", "owner"], rows.collect(), "none");
    }

    fn credentials(&mut self, status: &StatusResponse) {
        let mut rows: Vec<((String, String), Row)> = vec![];
        for identity in &status.identities {
            for name in &identity.credentials {
                let shelved: Vec<&ShelfStatus> = status
                    .shelf
                    .iter()
                    .filter(|it| it.identity == identity.name && it.credential == *name)
                    .collect();
                let binding = identity.bindings.get(name).map_or("", String::as_str);
                rows.push((
                    (identity.name.clone(), name.clone()),
                    credential(identity, name, binding, &shelved),
                ));
            }
        }
        // What is live of a credential that the settings name no more ends by itself, and is told as long.
        for it in &status.shelf {
            let key = (it.identity.clone(), it.credential.clone());
            if !rows.iter().any(|(known, _)| *known == key) {
                let identity = IdentityStatus { name: it.identity.clone(), ..IdentityStatus::default() };
                rows.push((key, credential(&identity, &it.credential, "", &[it])));
            }
        }
        rows.sort_by(|(one, _), (other, _)| one.cmp(other));
        let rows = rows.into_iter().map(|(_, row)| row).collect();
        let head = ["credentials", "state", "bound by", "ends in", "refresh in", "issuer"];
        self.section(head, rows, "none");
    }

    fn exceptions(&mut self, exceptions: &[ExceptionStatus]) {
        if exceptions.is_empty() {
            return;
        }
        let rows = exceptions.iter().map(|it| {
            let left = match seconds(it.left).unwrap_or(0) {
                ..=0 => bad("over: denied"),
                left @ 1..SOON => bad(format!("soon, {}", paint::length(left))),
                left => plain(paint::length(left)),
            };
            Row::of([
                plain(format!("{}.{}", it.identity, it.credential)),
                plain(&it.weakness),
                plain(it.until.map(day).unwrap_or_default()),
                left,
                plain(&it.owner),
            ])
            .saying(Cell(Tone::Dim, it.reason.clone()))
        });
        self.section(["exceptions", "is", "until", "left", "owner"], rows.collect(), "none");
    }

    fn sealed(&mut self, status: &StatusResponse) {
        if status.sealed.is_empty() {
            return;
        }
        let mut all: Vec<_> = status.sealed.iter().collect();
        all.sort_by_key(|it| (&it.identity, &it.credential));
        let rows = all.into_iter().map(|it| {
            let since = match (it.since, &*it.systemd_credential) {
                (Some(since), _) => plain(format!("sealed {}", day(since))),
                (None, "") => bad("not there"),
                (None, name) => plain(format!("systemd credential {name}")),
            };
            let denied = format!("denied from {}", it.until.map(day).unwrap_or_default());
            let name = format!("{}.{}", it.identity, it.credential);
            Row::of([plain(name), plain(it.fields.join(" ")), since, plain(denied)])
        });
        self.section(["static secrets", "fields", "kept", "until they are dynamic"], rows.collect(), "none");
    }

    fn host(&mut self, status: &StatusResponse) {
        let ledger = status.ledger.clone().unwrap_or_default();
        let state =
            if ledger.healthy { Cell(Tone::Good, "healthy".into()) } else { bad("cannot be written") };
        let last = match ledger.records {
            0 => "no record yet".to_owned(),
            records => format!("last record {}", records - 1),
        };
        let signed = match (seconds(ledger.checkpoint_age), ledger.unsigned) {
            (Some(age), 0) => format!("signed whole, {} ago", paint::length(age)),
            (Some(age), unsigned) => format!("signed {} ago, {unsigned} records since", paint::length(age)),
            (None, 0) => "signed whole, before this start".to_owned(),
            (None, unsigned) => format!("{unsigned} records that no checkpoint covers yet"),
        };
        let levels = ["L0", "L1", "L2", "L3", "L4"];
        let lost: Vec<&str> = levels.into_iter().filter(|level| **level > *status.max_level).collect();
        let level = match (lost.is_empty(), &*status.max_level_why) {
            (true, why) => plain(format!("up to {}, {why}", status.max_level)),
            (false, why) => {
                bad(format!("up to {} only, {} cannot be had: {why}", status.max_level, lost.join(" and ")))
            }
        };
        let descriptors = match status.descriptors_limit {
            0 => String::new(),
            limit => format!("{} of {limit} descriptors open, ", status.descriptors),
        };
        let away = match status.turned_away {
            0 => "nobody turned away".to_owned(),
            away => format!("{away} turned away at the limits"),
        };
        let mut rows = vec![
            ("ledger", state, vec![last, signed, ledger.directory]),
            ("evidence", level, vec![]),
            ("callers", plain(format!("{descriptors}{} connected, {away}", status.connections)), vec![]),
        ];
        if !status.memory.is_empty() {
            let tone = if status.memory_locked { Tone::Plain } else { Tone::Bold };
            rows.push(("memory", Cell(tone, status.memory.clone()), vec![]));
        }
        self.lines.push(String::new());
        for (name, Cell(tone, first), rest) in rows {
            let title = self.dyed(Tone::Bold, &format!("{name:<10}"));
            let rest: String = rest.iter().map(|it| format!(", {it}")).collect();
            let (first, rest) = (self.clean(&first), self.clean(&rest));
            let mut broken = self.broken(&format!("{first}{rest}"), 10).into_iter();
            let begun = broken.next().unwrap_or_default();
            let begun = match begun.strip_prefix(&*first) {
                Some(rest) => format!("{}{rest}", self.dyed(tone, &first)),
                None => self.dyed(tone, &begun),
            };
            self.lines.push(format!("{title}{begun}"));
            for line in broken {
                self.lines.push(format!("{:10}{line}", ""));
            }
        }
    }

    /// A heading, rows in columns, and the sentences under them.
    fn section<const N: usize>(&mut self, head: [&str; N], rows: Vec<Row>, none: &str) {
        self.lines.push(String::new());
        let named = head
            .iter()
            .enumerate()
            .map(|(at, name)| Cell(if at == 0 { Tone::Bold } else { Tone::Dim }, (*name).to_owned()));
        if rows.is_empty() {
            self.row("", &[Cell(Tone::Bold, head[0].to_owned())], &[0]);
            self.lines.push(format!("  {none}"));
            return;
        }
        let head = Row::of(named);
        let wide = |at: usize| {
            let own = rows
                .iter()
                .filter_map(|row| row.cells.get(at))
                .map(|cell| 2 * usize::from(at == 0) + width(&cell.1));
            own.chain([width(&head.cells[at].1)]).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..N).map(wide).collect();
        self.row("", &head.cells, &widths);
        for row in &rows {
            self.row("  ", &row.cells, &widths);
            for sentence in &row.under {
                self.sentence("      ", sentence);
            }
        }
    }

    fn row(&mut self, indent: &str, cells: &[Cell], widths: &[usize]) {
        let mut line = indent.to_owned();
        let last = cells.iter().rposition(|cell| !cell.1.is_empty()).unwrap_or(0);
        for (at, (Cell(tone, text), wide)) in cells.iter().zip(widths).enumerate().take(last + 1) {
            let text = self.clean(text);
            let wide = wide.saturating_sub(if at == 0 { indent.len() } else { 0 });
            let fill = if at == last { 0 } else { (wide + 2).saturating_sub(width(&text)) };
            line.push_str(&self.dyed(*tone, &text));
            line.extend(std::iter::repeat_n(' ', fill));
        }
        self.lines.push(line);
    }

    /// A sentence under a mark, its further lines as far in as the first.
    fn sentence(&mut self, mark: &str, Cell(tone, text): &Cell) {
        let broken = self.broken(&self.clean(text), mark.len());
        for (at, line) in broken.iter().enumerate() {
            let mark = if at == 0 { mark.to_owned() } else { " ".repeat(mark.len()) };
            let mark = if mark.trim().is_empty() { mark } else { self.dyed(Tone::Bold, &mark) };
            let line = self.dyed(*tone, line);
            self.lines.push(format!("{mark}{line}"));
        }
    }

    /// Broken between words where lines are broken at all, and never within what is to be typed.
    fn broken(&self, text: &str, indent: usize) -> Vec<String> {
        let Some(wide) = self.look.wrap else { return vec![text.to_owned()] };
        let wide = wide.saturating_sub(indent).max(20);
        let (mut lines, mut line) = (vec![], String::new());
        for word in words(text) {
            if !line.is_empty() && width(&line) + 1 + width(&word) > wide {
                lines.push(std::mem::take(&mut line));
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(&word);
        }
        lines.push(line);
        lines
    }

    fn dyed(&self, tone: Tone, text: &str) -> String {
        match tone.code() {
            Some(code) if !text.is_empty() => paint::painted_if(self.look.painted, code, text),
            _ => text.to_owned(),
        }
    }

    /// What strangers and settings say, as far as this reader's terminal can and may show it.
    fn clean(&self, text: &str) -> String {
        let shown = |c: char| !is_obeyed(c) && (c.is_ascii() || !self.look.ascii);
        text.chars().map(|c| if shown(c) { c } else { '?' }).collect()
    }
}

/// One credential of the settings: all that is on the shelf of it in one row, which tells the worst of it.
fn credential(identity: &IdentityStatus, name: &str, binding: &str, shelved: &[&ShelfStatus]) -> Row {
    let live = shelved.iter().filter(|it| seconds(it.expires_in).is_some_and(|left| left > 0)).count();
    let error = shelved.iter().map(|it| &it.last_error).find(|error| !error.is_empty());
    let state = match (live, error) {
        _ if !identity.disabled.is_empty() => bad("denied"),
        (0, Some(_)) => bad("none, failing"),
        (0, None) => Cell(Tone::Dim, "not asked for".into()),
        (1, Some(_)) => bad("live, failing"),
        (1, None) => Cell(Tone::Good, "live".into()),
        (live, Some(_)) => bad(format!("{live} live, failing")),
        (live, None) => Cell(Tone::Good, format!("{live} live")),
    };
    let least = |of: fn(&ShelfStatus) -> Option<i64>| {
        shelved.iter().filter_map(|it| of(it)).min().map(paint::length).unwrap_or_default()
    };
    Row::of([
        plain(format!("{}.{name}", identity.name)),
        state,
        plain(binding),
        plain(least(|it| seconds(it.expires_in))),
        plain(least(|it| seconds(it.refresh_in))),
        plain(shelved.first().map(|it| it.issuer.clone()).unwrap_or_default()),
    ])
    .saying(bad(error.cloned().unwrap_or_default()))
}

/// The words of a sentence; a command is one.
fn words(text: &str) -> Vec<String> {
    let mut all: Vec<String> = vec![];
    let mut command = false;
    for word in text.split(' ').filter(|word| !word.is_empty()) {
        match all.last_mut().filter(|_| command) {
            Some(last) => {
                last.push(' ');
                last.push_str(word);
            }
            None => {
                command = matches!(word, "keybearer" | "systemctl" | "chmod");
                all.push(word.to_owned());
            }
        }
        command = command && !word.ends_with([',', ';', ':', ')', '.']);
    }
    all
}

fn width(text: &str) -> usize {
    text.chars().count()
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;

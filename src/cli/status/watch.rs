//! `keybearer status --watch`: the table, kept up to date. On a terminal it is drawn over itself, in one write and without wiping the
//! screen first, so that nothing flickers; elsewhere it is printed again when more changed than times and counts. An agent that
//! stops answering is said to be gone, since when, and asked again each second: a restart is what one watches for.

use std::{
    io::{IsTerminal as _, Write as _},
    path::Path,
    time::Duration,
};

use jiff::Timestamp;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::{
    look, seconds,
    table::{Look, table},
};
use crate::{
    cli::{Exit, paint},
    client::{ConnectError, operator},
    clock::SystemClock,
    proto::v1::{StatusRequest, StatusResponse, operator_client::OperatorClient},
};

/// How often the agent is asked.
const EVERY: Duration = Duration::from_secs(1);

/// How long an answer may take before the agent counts as not there.
const PATIENCE: Duration = Duration::from_secs(5);

/// Watches until it is interrupted.
///
/// # Errors
/// Where no agent could ever be asked: the socket is not to be trusted, or not for this user.
pub(super) async fn run(socket: &Path) -> Result<(), Exit> {
    let clock = SystemClock::shared();
    let mut asking = Asking { socket, client: None };
    let mut shown = Shown { terminal: std::io::stdout().is_terminal(), last: None, gone: None, drawn: false };
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut interrupted = std::pin::pin!(tokio::signal::ctrl_c());
    loop {
        let answer = async {
            ticks.tick().await;
            timeout(PATIENCE, asking.status())
                .await
                .unwrap_or_else(|_| Err(Trouble::Gone("no answer in 5 s".into())))
        };
        let answer = tokio::select! {
            biased;
            _ = &mut interrupted => return shown.end(),
            answer = answer => answer,
        };
        match answer {
            Ok(status) => shown.show(status)?,
            Err(Trouble::Gone(why)) => {
                asking.client = None;
                shown.miss(&why, clock.wall())?;
            }
            Err(Trouble::Never(exit)) => {
                shown.end()?;
                return Err(exit);
            }
        }
    }
}

enum Trouble {
    /// It may come back.
    Gone(String),
    /// It is not to be asked, now or later.
    Never(Exit),
}

struct Asking<'a> {
    socket: &'a Path,
    client: Option<OperatorClient<tonic::transport::Channel>>,
}

impl Asking<'_> {
    async fn status(&mut self) -> Result<StatusResponse, Trouble> {
        if self.client.is_none() {
            self.client = Some(operator(self.socket).await.map_err(|error| match &error {
                ConnectError::Untrusted { .. } => Trouble::Never(error.into()),
                ConnectError::Connect { error: io, .. }
                    if io.kind() == std::io::ErrorKind::PermissionDenied =>
                {
                    Trouble::Never(error.into())
                }
                ConnectError::Connect { error: io, .. } => Trouble::Gone(io.to_string()),
            })?);
        }
        let client = self.client.as_mut().expect("made above");
        match client.status(StatusRequest {}).await {
            Ok(status) => Ok(status.into_inner()),
            Err(status) if status.code() == tonic::Code::PermissionDenied => {
                Err(Trouble::Never(status.into()))
            }
            Err(status) => Err(Trouble::Gone(status.message().to_owned())),
        }
    }
}

/// What the reader has seen.
struct Shown {
    terminal: bool,
    last: Option<StatusResponse>,
    /// Since when the agent is not there.
    gone: Option<Timestamp>,
    drawn: bool,
}

impl Shown {
    fn show(&mut self, status: StatusResponse) -> Result<(), Exit> {
        let back = self.gone.take().is_some();
        let news = self.last.as_ref().is_none_or(|last| back || has_changed(last, &status));
        if self.terminal {
            self.draw(&table(&status, &look()))?;
        } else if news {
            self.print(&table(&status, &look()))?;
        }
        self.last = Some(status);
        Ok(())
    }

    fn miss(&mut self, why: &str, now: Timestamp) -> Result<(), Exit> {
        let first = self.gone.is_none();
        let since = *self.gone.get_or_insert(now);
        let said = not_there(why, since, now, &look());
        if !self.terminal {
            return if first { paint::line(&said) } else { Ok(()) };
        }
        let mut lines = vec![said];
        if let Some(last) = &self.last {
            lines.push("as it was before:".into());
            lines.extend(table(last, &Look { painted: false, ..look() }));
        }
        self.draw(&lines)
    }

    /// Over what stands there: from the top, each line to its end, and what is left of the old below.
    fn draw(&mut self, lines: &[String]) -> Result<(), Exit> {
        let rows =
            rustix::termios::tcgetwinsize(std::io::stdout()).map_or(24, |size| usize::from(size.ws_row));
        let text = frame(lines, rows.max(2), !self.drawn);
        self.drawn = true;
        put(&text)
    }

    fn print(&mut self, lines: &[String]) -> Result<(), Exit> {
        let gap = if self.drawn { "\n" } else { "" };
        self.drawn = true;
        paint::line(&format!("{gap}{}", lines.join("\n")))
    }

    fn end(&self) -> Result<(), Exit> {
        if self.terminal && self.drawn { put("\n") } else { Ok(()) }
    }
}

fn not_there(why: &str, since: Timestamp, now: Timestamp, look: &Look) -> String {
    let gone = paint::length(now.duration_since(since).as_secs().max(0));
    let words = paint::painted_if(look.painted, "31", "NOT THERE");
    format!("{words}  since {since:.0} ({gone}), and asked again each second: {why}")
}

/// One picture. What has no room on the terminal is counted, as it would push the rest out at the top.
fn frame(lines: &[String], rows: usize, first: bool) -> String {
    let room = rows - 1;
    let shown = if lines.len() > room { room - 1 } else { lines.len() };
    // Without the wrapping of long lines, which would make two of one.
    let mut text = String::from(if first { "\x1b[?7l\x1b[2J\x1b[H" } else { "\x1b[?7l\x1b[H" });
    let mut rest: Vec<String> = lines[..shown].to_vec();
    if shown < lines.len() {
        rest.push(format!(
            "... and {} more lines: a higher terminal, or keybearer status",
            lines.len() - shown
        ));
    }
    text.push_str(&rest.join("\x1b[K\r\n"));
    text.push_str("\x1b[K\x1b[J\x1b[?7h");
    text
}

/// A reader that has gone ends the program quietly.
fn put(text: &str) -> Result<(), Exit> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Err(Exit::new(0, "")),
        done => Ok(done?),
    }
}

/// Whether more changed than what changes all the time. Another agent is news even if it says the same.
fn has_changed(last: &StatusResponse, now: &StatusResponse) -> bool {
    seconds(now.uptime) < seconds(last.uptime) || steady(last) != steady(now)
}

/// Without lengths of time and counts.
fn steady(status: &StatusResponse) -> StatusResponse {
    let mut status = status.clone();
    (status.uptime, status.connections, status.descriptors, status.turned_away) = (None, 0, 0, 0);
    for issuer in &mut status.issuers {
        (issuer.next_try, issuer.last_success, issuer.failing_for) = (None, None, None);
        (issuer.failures, issuer.skew_ms) = (0, None);
    }
    for shelved in &mut status.shelf {
        (shelved.expires_in, shelved.refresh_in) = (None, None);
    }
    for exception in &mut status.exceptions {
        exception.left = None;
    }
    if let Some(ledger) = &mut status.ledger {
        (ledger.records, ledger.unsigned, ledger.checkpoint_age) = (0, 0, None);
    }
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    fn length(seconds: i64) -> Option<prost_types::Duration> {
        Some(prost_types::Duration { seconds, nanos: 0 })
    }

    #[test]
    fn times_and_counts_are_no_news_and_another_agent_is() {
        let before = StatusResponse { uptime: length(10), connections: 3, ..StatusResponse::default() };
        let later = StatusResponse { uptime: length(12), connections: 4, ..before.clone() };
        assert!(!has_changed(&before, &later));
        assert!(has_changed(&before, &StatusResponse { uptime: length(2), ..before.clone() }), "a restart");
        assert!(has_changed(&before, &StatusResponse { readiness: "stale".into(), ..later }));
    }

    #[test]
    fn a_picture_is_drawn_over_the_last_and_never_higher_than_the_terminal() {
        let lines: Vec<String> = (0..30).map(|n| format!("line {n}")).collect();
        let text = frame(&lines, 10, false);
        assert!(text.starts_with("\x1b[?7l\x1b[Hline 0\x1b[K\r\n") && !text.contains("\x1b[2J"), "{text:?}");
        assert_eq!(text.matches("\r\n").count(), 8, "{text:?}");
        assert!(
            text.contains("line 7") && !text.contains("line 8") && text.contains("and 22 more lines"),
            "{text:?}"
        );
        assert!(text.ends_with("\x1b[K\x1b[J\x1b[?7h"));
        assert!(frame(&lines[..3], 10, true).starts_with("\x1b[?7l\x1b[2J\x1b[Hline 0"));
    }
}

//! Whether the agent can do its work. In goes what the rooms publish; out comes one of three words, and why it is not the first.
//! A probe asks for it (`GET /ready`), and so does an operator (`keybearer status`): both get the same.

use crate::journey::Journey;

/// How ready the agent is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Readiness {
    /// ready, stale (what is live is served, but an issuer is out of reach) or down.
    pub(super) state: &'static str,
    /// What is wrong, the worst first.
    pub(super) why: Vec<String>,
}

impl Readiness {
    pub(super) fn of(journey: &Journey, stopping: bool) -> Self {
        let report = journey.broker().report();
        let ledger = journey.ledger().health();
        let mut why = Vec::new();
        if stopping {
            why.push("the agent is shutting down".to_owned());
        }
        if !ledger.healthy {
            why.push(format!("the ledger in {} cannot be written", ledger.directory.display()));
        }
        let mut down = !why.is_empty();
        let failing = report.issuers.iter().filter(|(_, health)| health.failures > 0);
        let mut failing: Vec<String> = failing
            .map(|(name, health)| {
                format!("issuer {name}: {}", health.last_error.as_deref().unwrap_or("it fails"))
            })
            .collect();
        failing.sort();
        let stale = !failing.is_empty();
        if stale && failing.len() == report.issuers.len() && journey.broker().live_count() == 0 {
            down = true;
        }
        why.extend(failing);
        let state = match (down, stale) {
            (true, _) => "down",
            (false, true) => "stale",
            (false, false) => "ready",
        };
        Self { state, why }
    }
}

//! An operator's why: the way of a request as far as the decision, for a process or unit that did not ask. In go who is meant and what
//! for; out comes the evidence, what it was weighed as, and what is missing. It makes no slip that anything could be had for, and that
//! it was asked is on record.

use std::sync::Arc;

use tokio::task::spawn_blocking;

use super::{Journey, Refusal, Rules, Session, account};
use crate::{
    attest::{AttestError, Errand, Evidence, Hold},
    audit::{EventType, Outcome, Receipt},
    policy::{Door, Explanation, Reason, Wish},
};

/// The answer to an operator's why.
#[derive(Debug)]
pub struct Explained {
    /// Why not; None if it would be granted.
    pub reason: Option<Reason>,
    /// What was weighed.
    pub explanation: Explanation,
    /// The evidence, a line each: name, value or why it is missing.
    pub facts: Vec<account::Fact>,
    /// That it was asked is on record.
    pub receipt: Receipt,
}

impl Journey {
    /// Who a process would be and what it would get at this socket, for an operator. Grants nothing.
    ///
    /// # Errors
    /// A [`Refusal`] if the operator's question cannot be recorded; the inner error if the process is gone.
    pub async fn explain(
        &self,
        session: &Session,
        pid: u32,
        (name, scope, door): (&str, &[String], &Door),
    ) -> Result<Result<Explained, AttestError>, Refusal> {
        let rules = self.rules.load_full();
        let (attestor, interests) = (Arc::clone(&self.attestor), Arc::clone(&rules.interests));
        let read = spawn_blocking(move || attestor.evidence(pid, Hold::Socket, &interests)).await;
        let evidence = match read.unwrap_or(Err(AttestError::PeerExited)) {
            Ok(evidence) => evidence,
            Err(error) => return Ok(Err(error)),
        };
        let facts = account::facts(&evidence);
        let wish = Wish { credential: name, scope, ..Wish::at(door) };
        Ok(Ok(self.explained(session, &rules, (format!("pid {pid}"), &wish), (&evidence, facts)).await?))
    }

    /// The same of a unit, as if the service manager asked for a credential of it: a unit in this slice.
    ///
    /// # Errors
    /// A [`Refusal`] if the operator's question cannot be recorded.
    pub async fn explain_errand(
        &self,
        session: &Session,
        errand: Errand,
        slice: &str,
        name: &str,
    ) -> Result<Explained, Refusal> {
        let rules = self.rules.load_full();
        let evidence = errand.evidence(slice);
        let of_the_unit = |(fact, _): &(&str, _)| fact.starts_with("unit") || *fact == "slices";
        let facts = account::facts(&evidence).into_iter().filter(of_the_unit).collect();
        let whom = errand.unit.clone();
        let door = Door::ServiceManager(Arc::new(errand));
        let wish = Wish { credential: name, ..Wish::at(&door) };
        self.explained(session, &rules, (whom, &wish), (&evidence, facts)).await
    }

    async fn explained(
        &self,
        session: &Session,
        rules: &Rules,
        (whom, wish): (String, &Wish<'_>),
        (evidence, facts): (&Evidence, Vec<account::Fact>),
    ) -> Result<Explained, Refusal> {
        let (reason, explanation) = rules.policy.explain(evidence, wish, self.clock.wall());
        // Asked only who it is: that it names no credential is no fault.
        let reason = reason.filter(|reason| !(wish.credential.is_empty() && *reason == Reason::NoCredential));
        let mut entry = self.entry(EventType::Explain, Outcome::Success);
        entry.peer = Some(account::bare_peer(session.peer()));
        entry.socket = Some(session.socket.to_string());
        let entry = entry.detail(format!("{whom}: {}", reason.map_or("granted", Reason::as_str)));
        let receipt = self.ledger.record(entry).await?;
        Ok(Explained { reason, explanation, facts, receipt })
    }
}

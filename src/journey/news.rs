//! What the broker tells that no caller waits for. In go its news; out come records: what had to die before its time, what an issuer was
//! asked for nobody in particular, what an issuer has seen before.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::{Journey, account, reuse::Owner};
use crate::{
    audit::{EventType, Outcome},
    broker::News,
    credential::Credential,
    issuer::Order,
};

impl Journey {
    /// Writes down what became of credentials that had to die before their time, what issuers were asked for nobody in particular,
    /// what they have seen before, and what was gathered of cut connections, until nobody tells any more.
    pub async fn write_down(&self, mut told: mpsc::UnboundedReceiver<News>) {
        let outcome = |done: bool| if done { Outcome::Success } else { Outcome::Failed };
        loop {
            let news = tokio::select! {
                news = told.recv() => news,
                () = self.broker.hears_of_reuse() => {
                    self.tell_of_reuse().await;
                    continue;
                }
                () = self.cuts.are_due(&*self.clock) => {
                    self.tell_of_cuts().await;
                    continue;
                }
            };
            let Some(news) = news else { return };
            let environment = self.rules.load().environment.clone();
            let entry = match &news {
                News::Revoked(revoked) => {
                    let entry = self.entry(EventType::CredentialRevoke, outcome(revoked.error.is_none()));
                    account::revoked(entry, revoked, &environment)
                }
                News::TakenUp(order, held) => {
                    self.taken_up(order, held);
                    continue;
                }
                News::Renewed(renewed) => {
                    let entry = self.entry(EventType::CredentialRenew, outcome(renewed.result.is_ok()));
                    account::renewed(entry, renewed, &environment)
                }
            };
            // Nobody is answered, so nothing is held back if it cannot be written; the ledger's health says so.
            if let Err(error) = self.ledger.record(entry).await {
                tracing::error!(%error, "what an issuer did for nobody in particular could not be recorded");
            }
        }
    }

    /// What an agent before this one gave to somebody dies with that process still, and raises no alarm for being used.
    fn taken_up(&self, order: &Order, held: &[Arc<Credential>]) {
        for credential in held {
            let owner = Owner {
                identity: Arc::clone(&order.identity),
                credential: Arc::clone(&order.credential),
                instance: order.instance,
            };
            self.handles.take_up(credential.fingerprint, owner, credential.window.until, self.clock.boot());
        }
        if let Some(instance) = order.instance {
            self.lives.take_up(instance, &self.broker);
        }
    }
}

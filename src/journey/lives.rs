//! Processes that have credentials of their own. In go the processes that are given some; out comes, for each, the end of all it
//! had as soon as it exits, whether or not its connection is still open (ATT-09, S37).

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{
    attest::{AttestError, Peer, outlived},
    broker::{Broker, Cause, Which},
    issuer::Instance,
};

/// Those that are watched.
#[derive(Clone, Debug, Default)]
pub(super) struct Lives(Arc<Mutex<HashSet<Instance>>>);

impl Lives {
    /// Sees to it that nothing outlives `peer` that is given to it alone. Has to be asked before anything is.
    pub(super) fn watch(&self, instance: Instance, peer: &Peer, broker: &Broker) -> Result<(), AttestError> {
        if self.all().contains(&instance) {
            return Ok(());
        }
        let outlived = peer.outlived()?;
        if !self.all().insert(instance) {
            return Ok(());
        }
        let (lives, broker) = (self.clone(), broker.clone());
        tokio::spawn(async move {
            outlived.await;
            lives.all().remove(&instance);
            // The broker is gone only when the agent is.
            let _ = broker.retire(Which::Instance(instance), Cause::Exited).await;
        });
        Ok(())
    }

    /// The same for a process that an agent before this one gave something to: that ends at once if the process is gone.
    pub(super) fn take_up(&self, instance: Instance, broker: &Broker) {
        if !self.all().insert(instance) {
            return;
        }
        let (lives, broker) = (self.clone(), broker.clone());
        tokio::spawn(async move {
            match outlived(instance.pid, instance.start) {
                Ok(outlived) => outlived.await,
                Err(error) => {
                    tracing::debug!(%error, pid = instance.pid, "a process that had something of its own is gone")
                }
            }
            lives.all().remove(&instance);
            // The broker is gone only when the agent is.
            let _ = broker.retire(Which::Instance(instance), Cause::Exited).await;
        });
    }

    fn all(&self) -> MutexGuard<'_, HashSet<Instance>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

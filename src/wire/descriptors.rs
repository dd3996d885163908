//! The descriptors of this process, shared by all its listeners. A connection that was accepted with too few of them left could
//! not be attested, and its caller would be sent away for a lack that is ours: so it stays in the backlog until another ends.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use rustix::process::{Resource, getrlimit};
use tokio::sync::Notify;

/// What a connection holds (socket, pidfd, its directory in /proc, its memory map), and as many while its evidence is taken.
const OF_A_CONNECTION: u64 = 8;

/// For the ledger, the listeners, the issuers and the runtime.
const RESERVED: u64 = 64;

static CONNECTIONS: AtomicUsize = AtomicUsize::new(0);
static FREED: Notify = Notify::const_new();
static WAITS: AtomicU64 = AtomicU64::new(0);

/// Descriptors of one connection, given back with it.
#[derive(Debug)]
pub(super) struct Held(());

impl Held {
    pub(super) fn take() -> Self {
        CONNECTIONS.fetch_add(1, Ordering::Relaxed);
        Self(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        CONNECTIONS.fetch_sub(1, Ordering::Relaxed);
        FREED.notify_waiters();
    }
}

/// Returns once there are descriptors for one connection more.
pub(super) async fn enough() {
    loop {
        // Registered before the look, so that what is freed between the two is not missed.
        let freed = FREED.notified();
        let open = CONNECTIONS.load(Ordering::Relaxed);
        let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        if (open as u64) < most(limit) {
            return;
        }
        // Logged now and then only: a flood must not become one of log lines.
        if WAITS.fetch_add(1, Ordering::Relaxed).is_multiple_of(1000) {
            tracing::warn!(open, limit, "no descriptors for more connections, they wait: raise LimitNOFILE");
        }
        freed.await;
    }
}

/// One at a time always goes, however low the limit.
fn most(limit: u64) -> u64 {
    (limit.saturating_sub(RESERVED) / OF_A_CONNECTION).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_low_limit_lets_one_by_one_in() {
        // ATT-26
        assert_eq!([0, 64, 72, 80, 1024].map(most), [1, 1, 1, 2, 120]);
        assert!(most(u64::MAX) > 1_000_000);
    }
}

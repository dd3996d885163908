//! How fast proofs are made. In go moments; out comes whether another may be made for this identity now, or when. Pure: a
//! bucket of tokens for each identity, so that a workload that asks in a loop does not become our load (DPOP-22).

use std::{collections::HashMap, sync::Arc, time::Duration};

use super::bucket::{Bucket, Measure};
use crate::clock::Boot;

/// Proofs for one identity.
const PROOFS: Measure = Measure { size: 400.0, rate: 200.0 };

/// All buckets. There are as many as identities, which settings name.
#[derive(Debug, Default)]
pub(super) struct Pace(HashMap<Arc<str>, Bucket>);

impl Pace {
    /// Takes one from the identity's bucket; if it is empty, how long until there is one again.
    pub(super) fn take(&mut self, identity: &Arc<str>, now: Boot) -> Result<(), Duration> {
        self.0.entry(Arc::clone(identity)).or_insert_with(|| Bucket::full(PROOFS, now)).take(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_a_rate_and_nobody_pays_for_another() {
        // DPOP-22
        let (mut pace, start) = (Pace::default(), Boot::from_nanos(0));
        let (loud, quiet): (Arc<str>, Arc<str>) = ("loud".into(), "quiet".into());
        assert_eq!((0..1000).filter(|_| pace.take(&loud, start).is_ok()).count(), 400);
        assert_eq!(pace.take(&quiet, start), Ok(()));
        assert_eq!(pace.take(&loud, start), Err(Duration::from_millis(5)));
        let later = start + Duration::from_secs(1);
        assert_eq!((0..1000).filter(|_| pace.take(&loud, later).is_ok()).count(), 200);
        let much_later = start + Duration::from_secs(3600);
        assert_eq!(
            (0..1000).filter(|_| pace.take(&loud, much_later).is_ok()).count(),
            400,
            "no more is saved up"
        );
    }
}

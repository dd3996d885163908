//! Which identities a process could be at all, without weighing each: on a host with a thousand of them, one or two. In go the
//! identities of a policy; out come those whose unit or user is that of the evidence, and those that name neither.

use std::{collections::HashMap, sync::Arc};

use super::Identity;
use crate::attest::Evidence;

type Found = Vec<Arc<Identity>>;

/// Identities by what most of them name. An identity stands under the first of unit, user's unit and user that a set of its
/// selectors names, once for each set.
#[derive(Debug, Default)]
pub(super) struct Index {
    by_unit: HashMap<String, Found>,
    by_user: HashMap<u32, Found>,
    others: Found,
}

impl Index {
    pub(super) fn over<'a>(identities: impl Iterator<Item = &'a Arc<Identity>>) -> Self {
        let mut index = Self::default();
        for identity in identities {
            for selectors in &identity.selectors {
                let place = match (selectors.unit.as_ref().or(selectors.user_unit.as_ref()), &selectors.user)
                {
                    (Some(unit), _) => index.by_unit.entry(unit.clone()).or_default(),
                    (None, Some(user)) => index.by_user.entry(user.id).or_default(),
                    (None, None) => &mut index.others,
                };
                place.push(Arc::clone(identity));
            }
        }
        index
    }

    /// All that can match; some may not, and one may come twice.
    pub(super) fn candidates(&self, evidence: &Evidence) -> impl Iterator<Item = &Arc<Identity>> {
        let by_unit = evidence.unit.as_ref().ok().and_then(|unit| self.by_unit.get(&unit.name));
        let by_user = self.by_user.get(&evidence.uid());
        by_unit.into_iter().chain(by_user).flatten().chain(&self.others)
    }
}

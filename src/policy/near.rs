//! By how little an identity was missed, and what to change. In go identities that did not match, and a reason; out come words
//! for whoever is on duty, the nearest first. Never for a caller.

use std::{fmt, sync::Arc};

use super::{Explanation, Reason};
use crate::attest::{Level, Missing};

/// An identity that did not match.
#[derive(Clone, Debug, PartialEq)]
pub struct Near {
    /// Which.
    pub identity: Arc<str>,
    /// How many of its selectors were weighed.
    pub of: usize,
    /// Which of them missed, and by what.
    pub missed: Vec<Miss>,
    /// Whether it has the credential that is wished for.
    pub has_it: bool,
}

impl Near {
    /// The nearest first: those that have what is wished for before the others, and then by the part of their selectors that missed.
    pub(super) fn sort(all: &mut [Self]) {
        all.sort_by(|one, other| {
            let part = |near: &Self, against: &Self| near.missed.len() * against.of.max(1);
            other
                .has_it
                .cmp(&one.has_it)
                .then_with(|| part(one, other).cmp(&part(other, one)))
                .then_with(|| one.missed.len().cmp(&other.missed.len()))
        });
    }
}

/// A selector that missed.
#[derive(Clone, Debug, PartialEq)]
pub struct Miss {
    pub(super) key: &'static str,
    pub(super) wanted: String,
    /// Why there was nothing to compare, if there was nothing.
    pub(super) why: Option<Missing>,
    pub(super) words: String,
}

impl Miss {
    /// What to change about the program, or in the settings if they are what is wrong.
    pub fn remedy(&self) -> String {
        let Self { key, wanted, why, .. } = self;
        match (*key, why) {
            (_, Some(Missing::ExeReplaced)) => {
                "restart it, so that it runs the file that is there now".into()
            }
            (_, Some(Missing::ExeTooLarge)) => "match exe or its unit instead".into(),
            (_, Some(Missing::ExeWritable)) => {
                "have root own the program's file and nobody else write it, or match its sha256".into()
            }
            (_, Some(Missing::Exited)) => "start it again".into(),
            (_, Some(Missing::MountNamespace)) => "match sha256 instead of exe".into(),
            (_, Some(Missing::NotChallenged | Missing::Unanswered)) => {
                "have the program itself ask, on the gRPC socket".into()
            }
            (_, Some(Missing::NotPermitted)) => "give the agent's service CAP_SYS_PTRACE".into(),
            ("unit" | "slice", Some(Missing::Delegated)) => {
                "take Delegate= from the unit above it: what is below such a unit, its owner decides".into()
            }
            ("unit" | "slice" | "user_unit", Some(Missing::NoServiceManager)) => {
                format!("run it where systemd does: nobody else vouches for {wanted}")
            }
            ("exe", _) => format!("start {wanted} itself, or correct exe"),
            ("group", _) => format!("run it with the group {wanted} (Group= in its unit), or correct group"),
            ("sha256", _) => {
                "if it was meant to change, put the new digest into sha256; if not, find out who changed it"
                    .into()
            }
            ("slice", _) => format!("set Slice={wanted} in its unit and restart it, or correct slice"),
            ("supplementary_group", _) => format!(
                "put its user into the group {wanted} and start it anew (a process keeps the groups it began with), or correct it"
            ),
            ("unit", Some(_)) => {
                format!("start it with systemctl start {wanted}, not by hand, or correct unit")
            }
            ("unit", None) => format!("start it with systemctl start {wanted}, or correct unit"),
            ("user", _) => format!("run it as {wanted} (User= in its unit), or correct user"),
            ("user_unit", _) => {
                format!("start it with systemctl --user start {wanted}, or correct user_unit")
            }
            _ => "give it a unit to match".into(),
        }
    }
}

impl fmt::Display for Miss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words)
    }
}

impl Explanation {
    /// What to do about `reason`, by the names of this very case; `credential` is what was wished for.
    pub fn remedy(&self, reason: Reason, credential: &str) -> String {
        let words = match (reason, self.near.first(), self.level) {
            (Reason::NoIdentity, None, _) => {
                "there is no identity in the settings: add one that matches this evidence"
            }
            (Reason::NoIdentity, Some(near), _) => {
                return format!(
                    "if it is {0}: {1}; if it is somebody else, add an identity that matches this evidence",
                    near.identity,
                    near.missed.iter().map(Miss::remedy).collect::<Vec<_>>().join("; and ")
                );
            }
            (Reason::Level, _, Level::L1) => {
                "have it run where the kernel can pin it (its user namespace, the kernel's version), or lower the assurance of IDENTITY on purpose"
            }
            (Reason::Level, _, Level::L3) => {
                "have the program itself ask, on the gRPC socket, or lower the assurance of IDENTITY on purpose"
            }
            _ => reason.remedy(),
        };
        let identity = self.identity.as_deref().unwrap_or("IDENTITY");
        let credential = if credential.is_empty() { "CREDENTIAL" } else { credential };
        words.replace("IDENTITY", identity).replace("CREDENTIAL", credential)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(identity: &str, missed: usize, of: usize, has_it: bool) -> Near {
        let miss = Miss { key: "user", wanted: "1".into(), why: None, words: String::new() };
        Near { identity: identity.into(), of, missed: vec![miss; missed], has_it }
    }

    #[test]
    fn the_nearest_comes_first() {
        let mut all = [
            near("none of two", 2, 2, true),
            near("has it not", 1, 9, false),
            near("none of one", 1, 1, true),
            near("two of three fit", 1, 3, true),
            near("one of three fits", 2, 3, true),
        ];
        Near::sort(&mut all);
        let names: Vec<_> = all.iter().map(|near| &*near.identity).collect();
        assert_eq!(
            names,
            ["two of three fit", "one of three fits", "none of one", "none of two", "has it not"]
        );
    }
}

//! Selectors match evidence. In goes one process's evidence; out comes what missed, in words an operator can act
//! on. Evidence that is missing never matches.

use std::{fmt::Display, path::PathBuf};

use crate::{
    attest::{Evidence, Manager, Missing, Unit},
    secret::hex,
};

/// An id, and the name it was written as.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Named {
    /// The number that is compared.
    pub id: u32,
    /// The name the operator wrote, if it was one.
    pub name: Option<String>,
}

impl Display for Named {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.name {
            Some(name) => write!(f, "{name} ({})", self.id),
            None => write!(f, "{}", self.id),
        }
    }
}

/// What a process must be, all of it.
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq)]
pub struct Selectors {
    /// `uid` or `user`: the effective uid.
    pub user: Option<Named>,
    /// `gid` or `group`: the effective primary gid.
    pub group: Option<Named>,
    /// `supplementary_group`: one of its supplementary groups (ATT-10).
    pub supplementary: Option<Named>,
    /// `exe`: the program, as the inode this path has for the agent (ATT-12).
    pub exe: Option<PathBuf>,
    /// `sha256`: the program, by its content.
    pub sha256: Option<[u8; 32]>,
    /// `unit`: the systemd unit of the host (ATT-15).
    pub unit: Option<String>,
    /// `slice`: a slice above that unit.
    pub slice: Option<String>,
    /// `user_unit`: a unit of the user's own manager; that user's word, no more.
    pub user_unit: Option<String>,
}

impl Selectors {
    /// How many there are.
    pub fn len(&self) -> usize {
        let set = [
            self.user.is_some(),
            self.group.is_some(),
            self.supplementary.is_some(),
            self.exe.is_some(),
            self.sha256.is_some(),
            self.unit.is_some(),
            self.slice.is_some(),
            self.user_unit.is_some(),
        ];
        set.into_iter().filter(|set| *set).count()
    }

    /// Whether there is none: such a rule would match everybody.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether they match a program: then it has to answer the challenge (ATT-17).
    pub fn rest_on_the_program(&self) -> bool {
        self.exe.is_some() || self.sha256.is_some()
    }

    /// Whether they match a unit, which the cgroup tells.
    pub fn rest_on_the_unit(&self) -> bool {
        self.unit.is_some() || self.slice.is_some() || self.user_unit.is_some()
    }

    /// What `evidence` does not match. Empty for a match; for no selectors it is never empty.
    pub fn missed(&self, evidence: &Evidence) -> Vec<String> {
        let mut missed = Vec::new();
        let mut weigh = |key: &str, wanted: Option<String>, has: Result<(bool, String), Missing>| {
            let Some(wanted) = wanted else { return };
            match has {
                Ok((true, _)) => {}
                Ok((false, is)) => missed.push(format!("{key} should be {wanted}, is {is}")),
                Err(why) => missed.push(format!("{key} should be {wanted}: {why}")),
            }
        };
        let text = |wanted: &Option<Named>| wanted.as_ref().map(Named::to_string);
        let id = |wanted: &Option<Named>, is: u32| {
            Ok((wanted.as_ref().is_some_and(|wanted| wanted.id == is), is.to_string()))
        };
        weigh("user", text(&self.user), id(&self.user, evidence.uid()));
        weigh("group", text(&self.group), id(&self.group, evidence.gid()));
        let groups = &evidence.status.groups;
        let is_member = self.supplementary.as_ref().is_some_and(|wanted| groups.contains(&wanted.id));
        weigh("supplementary_group", text(&self.supplementary), Ok((is_member, format!("{groups:?}"))));
        // The right program counts only if it is the one that reads the answer; the wrong one is wrong without that.
        let heard = |matched: (bool, String)| match evidence.answered {
            Err(why) if matched.0 => Err(why),
            _ => Ok(matched),
        };
        weigh(
            "exe",
            self.exe.as_ref().map(|path| path.display().to_string()),
            evidence.exe_paths.as_ref().map_err(|why| *why).and_then(|paths| {
                let is = evidence.path_hint.clone().unwrap_or_else(|| "another program".into());
                heard((self.exe.as_ref().is_some_and(|wanted| paths.contains(wanted)), is))
            }),
        );
        weigh(
            "sha256",
            self.sha256.as_ref().map(|sum| hex(sum)),
            evidence.sha256.and_then(|sum| heard((self.sha256 == Some(sum), hex(&sum)))),
        );
        let unit = |manager: fn(&Unit) -> bool| match &evidence.unit {
            Ok(unit) if manager(unit) => Ok(unit),
            Ok(_) => Err(Missing::NoUnit),
            Err(why) => Err(*why),
        };
        let of_system = unit(|unit| unit.manager == Manager::System);
        let of_user = unit(|unit| matches!(unit.manager, Manager::User(_)));
        let named = |wanted: &Option<String>, unit: Result<&Unit, Missing>| {
            unit.map(|unit| (wanted.as_ref() == Some(&unit.name), unit.name.clone()))
        };
        weigh("unit", self.unit.clone(), named(&self.unit, of_system));
        weigh(
            "slice",
            self.slice.clone(),
            of_system.map(|unit| {
                (self.slice.as_ref().is_some_and(|slice| unit.slices.contains(slice)), unit.slices.join("/"))
            }),
        );
        weigh("user_unit", self.user_unit.clone(), named(&self.user_unit, of_user));
        if self.is_empty() {
            missed.push("it has no selectors".into());
        }
        missed
    }

    /// Whether no process can match both: some selector with only one value at a time differs.
    pub(super) fn excludes(&self, other: &Self) -> bool {
        let differ = |ours: Option<u32>, theirs: Option<u32>| matches!((ours, theirs), (Some(ours), Some(theirs)) if ours != theirs);
        let id = |named: &Option<Named>| named.as_ref().map(|named| named.id);
        differ(id(&self.user), id(&other.user))
            || differ(id(&self.group), id(&other.group))
            || matches!((self.sha256, other.sha256), (Some(ours), Some(theirs)) if ours != theirs)
            || matches!((&self.unit, &other.unit), (Some(ours), Some(theirs)) if ours != theirs)
            || matches!((&self.user_unit, &other.user_unit), (Some(ours), Some(theirs)) if ours != theirs)
            // A process is in a unit of the host's manager or of a user's, never both.
            || (self.user_unit.is_some() && (other.unit.is_some() || other.slice.is_some()))
            || (other.user_unit.is_some() && (self.unit.is_some() || self.slice.is_some()))
            // Two names can become one file, so this is not proof for ever; the judge looks again each time.
            || matches!((&self.exe, &other.exe), (Some(ours), Some(theirs)) if ours != theirs)
    }
}

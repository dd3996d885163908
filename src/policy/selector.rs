//! Selectors match evidence. In goes one process's evidence; out comes what missed, in words an operator can act
//! on. Evidence that is missing never matches.

use std::{
    fmt::{self, Display},
    path::PathBuf,
};

use super::near::Miss;
use crate::{
    attest::{Evidence, Manager, Missing},
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
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "{name} ({})", self.id),
            None => write!(f, "{}", self.id),
        }
    }
}

/// Groups as an operator reads them.
struct Listed<'a>(&'a [u32]);

impl Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

/// A digest as an operator reads it.
struct Hex<'a>(&'a [u8; 32]);

impl Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(self.0))
    }
}

/// Is told of each miss: the key, what is wanted, why there was nothing to compare, and all of it in words.
type Listener<'a> = &'a mut dyn FnMut(&'static str, &dyn Display, Option<Missing>, fmt::Arguments<'_>);

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

    /// What can be told of them before the program runs: its unit and slice. None if they name no unit of the host's manager.
    pub(super) fn of_the_unit(&self) -> Option<Self> {
        let unit = Some(self.unit.clone()?);
        Some(Self { unit, slice: self.slice.clone(), ..Self::default() })
    }

    /// The rest of them, which is then the service manager's to bring about: by their keys.
    pub(super) fn beyond_the_unit(&self) -> Vec<&'static str> {
        let all = [
            ("user", self.user.is_some()),
            ("group", self.group.is_some()),
            ("supplementary_group", self.supplementary.is_some()),
        ];
        all.into_iter().filter_map(|(key, set)| set.then_some(key)).collect()
    }

    /// Whether `evidence` matches all of them; no evidence matches none.
    pub fn match_all(&self, evidence: &Evidence) -> bool {
        let mut all = true;
        self.weigh(evidence, &mut |_, _, _, _| all = false);
        all
    }

    /// What `evidence` does not match. Empty for a match; for no selectors it is never empty.
    pub fn missed(&self, evidence: &Evidence) -> Vec<String> {
        self.misses(evidence).iter().map(ToString::to_string).collect()
    }

    /// The same, with what tells what to do about each.
    pub(super) fn misses(&self, evidence: &Evidence) -> Vec<Miss> {
        let mut missed = Vec::new();
        self.weigh(evidence, &mut |key, wanted, why, words| {
            missed.push(Miss { key, wanted: wanted.to_string(), why, words: words.to_string() });
        });
        missed
    }

    /// Weighs every selector and tells the misses, in words that are made only for whoever listens.
    fn weigh(&self, evidence: &Evidence, miss: Listener<'_>) {
        let mut weigh =
            |key, wanted: &dyn Display, is: &dyn Display, matches: Result<bool, Missing>| match matches {
                Ok(true) => {}
                Ok(false) => miss(key, wanted, None, format_args!("{key} should be {wanted}, is {is}")),
                Err(why) => miss(key, wanted, Some(why), format_args!("{key} should be {wanted}: {why}")),
            };
        if let Some(user) = &self.user {
            weigh("user", user, &evidence.uid(), Ok(user.id == evidence.uid()));
        }
        if let Some(group) = &self.group {
            weigh("group", group, &evidence.gid(), Ok(group.id == evidence.gid()));
        }
        if let Some(group) = &self.supplementary {
            let groups = evidence.status.as_ref().map(|status| &status.groups[..]);
            let matches = groups.map(|groups| groups.contains(&group.id)).map_err(|why| *why);
            weigh("supplementary_group", group, &Listed(groups.unwrap_or_default()), matches);
        }
        // The right program counts only if it is the one that reads the answer; the wrong one is wrong without that.
        let heard = |right: bool| match evidence.answered {
            Err(why) if right => Err(why),
            _ => Ok(right),
        };
        if let Some(exe) = &self.exe {
            let is = evidence.path_hint.as_deref().unwrap_or("another program");
            let paths = evidence.exe_paths.as_ref().map_err(|why| *why);
            weigh("exe", &exe.display(), &is, paths.and_then(|paths| heard(paths.contains(exe))));
        }
        if let Some(sum) = &self.sha256 {
            let is = evidence.sha256.unwrap_or_default();
            weigh("sha256", &Hex(sum), &Hex(&is), evidence.sha256.and_then(|is| heard(is == *sum)));
        }
        let managed = |by: fn(Manager) -> bool| match &evidence.unit {
            Ok(unit) if by(unit.manager) => Ok(unit),
            Ok(_) => Err(Missing::NoUnit),
            Err(why) => Err(*why),
        };
        let name = evidence.unit.as_ref().map_or("", |unit| &unit.name);
        let of_system = managed(|manager| manager == Manager::System);
        if let Some(wanted) = &self.unit {
            weigh("unit", wanted, &name, of_system.map(|unit| unit.name == *wanted));
        }
        if let Some(wanted) = &self.slice {
            let slices = evidence.unit.as_ref().map(|unit| unit.slices.join("/")).unwrap_or_default();
            weigh("slice", wanted, &slices, of_system.map(|unit| unit.slices.contains(wanted)));
        }
        if let Some(wanted) = &self.user_unit {
            let of_user = managed(|manager| matches!(manager, Manager::User(_)));
            weigh("user_unit", wanted, &name, of_user.map(|unit| unit.name == *wanted));
        }
        if self.is_empty() {
            miss("", &"", None, format_args!("it has no selectors"));
        }
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

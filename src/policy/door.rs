//! At which socket somebody asks. The agent's own are for every identity; one that was exported into a container is for those
//! that the settings name there, and for nobody else, whoever it is (ATT-23). At one of its own, the host's service manager asks for
//! programs that do not run yet.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::attest::{Errand, Evidence, Manager};

/// The exported sockets, by name.
pub type Exports = BTreeMap<Arc<str>, Export>;

/// A socket for one trust boundary.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Export {
    /// Where it is.
    pub path: PathBuf,
    /// The identities that count there.
    pub identities: BTreeSet<Arc<str>>,
}

/// The socket that somebody came through.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Door {
    /// One of the agent's own.
    Own,
    /// An exported one, by its path: names can be given to another. One that the settings name no more is for nobody.
    Export(Arc<Path>),
    /// The one for the host's service manager, which asks for a unit that is about to start.
    ServiceManager(Arc<Errand>),
}

impl Door {
    /// Whether `identity` counts here.
    pub(super) fn is_for(&self, identity: &str, exports: &Exports) -> bool {
        match self {
            Self::Own | Self::ServiceManager(_) => true,
            Self::Export(path) => {
                exports.values().any(|export| export.path == **path && export.identities.contains(identity))
            }
        }
    }

    /// What the service manager came for, where it is the one who asks.
    pub fn errand(&self) -> Option<&Errand> {
        match self {
            Self::ServiceManager(errand) => Some(errand),
            Self::Own | Self::Export(_) => None,
        }
    }
}

/// Why the kernel does not bear out what the service manager says: the process that asks is in the cgroup of the unit that it asks
/// for, or it is not the service manager's.
pub(super) fn contradicted(errand: &Errand, evidence: &Evidence) -> Option<String> {
    let Errand { unit: said, .. } = errand;
    match &evidence.unit {
        Ok(unit) if unit.manager == Manager::System && unit.name == *said => None,
        Ok(unit) => Some(format!("it asks for {said}, but it runs in {}", unit.name)),
        Err(why) => Some(format!("it asks for {said}, but of its own unit it is only known that {why}")),
    }
}

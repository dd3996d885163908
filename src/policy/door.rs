//! At which socket somebody asks. The agent's own are for every identity; one that was exported into a container is for those
//! that the settings name there, and for nobody else, whoever it is (ATT-23).

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
};

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
}

impl Door {
    /// Whether `identity` counts here.
    pub(super) fn is_for(&self, identity: &str, exports: &Exports) -> bool {
        match self {
            Self::Own => true,
            Self::Export(path) => {
                exports.values().any(|export| export.path == **path && export.identities.contains(identity))
            }
        }
    }
}

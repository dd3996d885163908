//! Whether the keys that the settings name could be used, for whoever only looks. In go settings and a vault that was opened to look;
//! out comes each file, and what is wrong with it. Nothing is made and nothing is sealed.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use super::{
    CLIENT_AUTH, CertificateSettings, Custody, FileError, KeySettings, SignedBy, Slot, Vault,
    certificate::look, file,
};

/// One file with a key.
#[derive(Debug)]
pub struct Looked {
    /// Whose, and what for.
    pub of: String,
    /// Which.
    pub path: PathBuf,
    /// Whether it is there, and what is wrong with it, or with the certificate that goes with it.
    pub seen: Result<bool, FileError>,
    /// The certificate of others that goes with it.
    certificate: Option<PathBuf>,
}

impl Looked {
    /// What goes with it, in words.
    pub fn pair(&self) -> String {
        self.certificate
            .as_ref()
            .map(|path| format!(", and {} is its certificate", path.display()))
            .unwrap_or_default()
    }
}

/// All that are named.
pub fn looked(
    keys: &BTreeMap<Arc<str>, KeySettings>,
    certificates: &BTreeMap<Arc<str>, CertificateSettings>,
    vault: &Vault,
) -> Vec<Looked> {
    let mut found = Vec::new();
    for (identity, settings) in keys {
        let Custody::File { path } = &settings.custody else { continue };
        if !settings.client {
            continue;
        }
        let seen = match path.exists() {
            true => file::open_or_make(path, settings.algorithm, Slot::of(vault, CLIENT_AUTH, identity))
                .map(|_| true),
            false => Ok(false),
        };
        found.push(Looked { of: identity.to_string(), path: path.clone(), seen, certificate: None });
    }
    for (identity, settings) in certificates {
        let Custody::File { path } = &settings.custody else { continue };
        let certificate = match &settings.signed_by {
            SignedBy::Itself => None,
            SignedBy::Others(file) => Some(file.clone()),
        };
        let seen = look(identity, settings, vault);
        found.push(Looked { of: format!("{identity}'s certificate"), path: path.clone(), seen, certificate });
    }
    found
}

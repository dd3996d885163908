//! Keys of identities and credentials that are no more. In goes the directory where keys are made; out come the files there that
//! nobody's are, and their end. A reload destroys nothing by itself: a drop-in that is missing for a moment would cost a key.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::ffi::OsStrExt as _,
    path::PathBuf,
};

/// What is put behind a key's name for the files beside it.
const BESIDE: [&str; 6] = ["", ".new", ".next", ".next.new", ".before", ".before.new"];

/// Where keys are made that the settings name no other place for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Workshop {
    /// The directory.
    pub directory: PathBuf,
    /// Every file, there or elsewhere, that the settings name. One that is there may be called like a key of
    /// somebody who is gone: it is in use all the same, and what lies beside it too.
    pub named: BTreeSet<PathBuf>,
}

/// The files in `workshop` that belong to nobody whom `is_known` knows, by the name they were made for: that of an identity, or
/// IDENTITY.CREDENTIAL where only that one of its certificates is no more.
///
/// # Errors
/// What the file system says, but for a directory that is not there: nothing was made yet.
pub fn remains(
    workshop: &Workshop,
    is_known: impl Fn(&str, Option<&str>) -> bool,
) -> io::Result<BTreeMap<String, Vec<PathBuf>>> {
    let mut remains: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    let entries = match fs::read_dir(&workshop.directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(remains),
        entries => entries?,
    };
    let in_use = in_use(workshop)?;
    for entry in entries {
        let path = entry?.path();
        let Some(file_name) = path.file_name() else { continue };
        let is_in_use = in_use.iter().any(|used| {
            let rest = file_name.as_bytes().strip_prefix(used.as_slice());
            rest.is_some_and(|rest| BESIDE.iter().any(|beside| beside.as_bytes() == rest))
        });
        let name = file_name.to_string_lossy().into_owned();
        // IDENTITY.PURPOSE.pem or IDENTITY.CREDENTIAL.certificate.pem, and beside it what a rotation makes. Names hold no dots.
        let parts: Vec<&str> = name.split('.').collect();
        let whose = match parts.as_slice() {
            [identity, _, "pem", ..] | [identity, _, "certificate", "pem", ..]
                if !is_known(identity, None) =>
            {
                (*identity).to_owned()
            }
            [identity, credential, "certificate", "pem", ..] if !is_known(identity, Some(credential)) => {
                format!("{identity}.{credential}")
            }
            _ => continue,
        };
        if !is_in_use {
            remains.entry(whose).or_default().push(path);
        }
    }
    Ok(remains)
}

/// The names in the directory that the settings name, whatever way there they take.
fn in_use(workshop: &Workshop) -> io::Result<Vec<Vec<u8>>> {
    let directory = workshop.directory.canonicalize()?;
    let names = workshop.named.iter().filter_map(|path| {
        let (parent, name) = (path.parent()?, path.file_name()?);
        // A directory that is not there is not this one.
        (parent.canonicalize().ok()? == directory).then(|| name.as_bytes().to_vec())
    });
    Ok(names.collect())
}

/// Unlinks them, and has the directory forget them too (NHI-1, K57-7).
///
/// # Errors
/// What the file system says; those before it are gone.
pub fn destroy(files: &[PathBuf]) -> io::Result<()> {
    for path in files {
        fs::remove_file(path)?;
        if let Some(directory) = path.parent() {
            fs::File::open(directory)?.sync_all()?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_made_for_somebody_who_is_gone_is_found_and_destroyed() {
        // NHI-1
        let dir = tempfile::tempdir().unwrap();
        let files = [
            "shop.client-auth.pem",
            "gone.client-auth.pem",
            "gone.client-auth.pem.next",
            "gone.tls-client.pem",
            "gone.tls.certificate.pem",
            "shop.tls.certificate.pem",
            "shop.old.certificate.pem",
            "shop.old.certificate.pem.next",
            "sealing.pem",
            "notes.txt",
        ];
        files.iter().for_each(|name| fs::write(dir.path().join(name), "x").unwrap());
        let workshop = Workshop { directory: dir.path().into(), named: BTreeSet::new() };
        let known = |name: &str, credential: Option<&str>| {
            name == "shop" && credential.is_none_or(|credential| credential == "tls")
        };
        let found = remains(&workshop, known).unwrap();
        assert_eq!(
            found.iter().map(|(name, files)| (name.as_str(), files.len())).collect::<Vec<_>>(),
            [("gone", 4), ("shop.old", 2)]
        );
        destroy(&found["gone"]).unwrap();
        destroy(&found["shop.old"]).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 4);
        let none = Workshop { directory: dir.path().join("none"), ..workshop };
        assert!(remains(&none, |_, _| false).unwrap().is_empty());
    }

    #[test]
    fn what_the_settings_name_is_in_use_whatever_it_is_called() {
        // NHI-1
        let dir = tempfile::tempdir().unwrap();
        let keys = dir.path().join("keys");
        fs::create_dir(&keys).unwrap();
        let files = ["old.payments.pem", "old.payments.pem.next", "old.payments.pem.before", "old.shop.pem"];
        files.iter().for_each(|name| fs::write(keys.join(name), "x").unwrap());
        std::os::unix::fs::symlink(&keys, dir.path().join("link")).unwrap();
        for way in ["keys", "link", "keys/../keys"] {
            let way_there = dir.path().join(way);
            let named = BTreeSet::from([way_there.join("old.payments.pem"), way_there.join("old")]);
            let found = remains(&Workshop { directory: keys.clone(), named }, |_, _| false).unwrap();
            assert_eq!(found, BTreeMap::from([("old".into(), vec![keys.join("old.shop.pem")])]), "{way}");
        }
        // The same name elsewhere is another file.
        let named = BTreeSet::from([dir.path().join("old.payments.pem")]);
        let found = remains(&Workshop { directory: keys, named }, |_, _| false).unwrap();
        assert_eq!(found["old"].len(), 4);
    }
}

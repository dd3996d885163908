//! Keys of identities that are no more. In goes the directory where keys are made; out come the files there that no identity's
//! are, and their end. A reload destroys nothing by itself: a drop-in that is missing for a moment would cost a key.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

/// The files in `directory` that belong to nobody whom `is_known` knows, by the name they were made for.
///
/// # Errors
/// What the file system says, but for a directory that is not there: nothing was made yet.
pub fn remains(
    directory: &Path,
    is_known: impl Fn(&str) -> bool,
) -> io::Result<BTreeMap<String, Vec<PathBuf>>> {
    let mut remains: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(remains),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        // NAME.PURPOSE.pem, and beside it what a rotation makes. Names hold no dots.
        let mut parts = name.split('.');
        if let (Some(identity), Some(_), Some("pem")) = (parts.next(), parts.next(), parts.next())
            && !is_known(identity)
        {
            remains.entry(identity.to_owned()).or_default().push(path);
        }
    }
    Ok(remains)
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
            "sealing.pem",
            "notes.txt",
        ];
        files.iter().for_each(|name| fs::write(dir.path().join(name), "x").unwrap());
        let found = remains(dir.path(), |name| name == "shop").unwrap();
        assert_eq!(
            found.iter().map(|(name, files)| (name.as_str(), files.len())).collect::<Vec<_>>(),
            [("gone", 3)]
        );
        destroy(&found["gone"]).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
        assert!(remains(&dir.path().join("none"), |_| false).unwrap().is_empty());
    }
}

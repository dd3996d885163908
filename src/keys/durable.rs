//! Files that a power cut leaves whole. In go a path and what is to be there; when a call returns, it is there to stay.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

/// Puts `bytes` at `path`, mode 0600: written beside it and renamed, so that there is always the old file or the new one, whole.
/// Half of one, from whoever was killed while it wrote, is written over.
///
/// # Errors
/// What the file system says; the old file is there still, or the new one that may not outlive a power cut.
pub fn put_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let beside = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    settled(path)
}

/// The directory of `path` forgets nothing of what was done in it, whatever happens to the power.
///
/// # Errors
/// What the file system says.
pub fn settled(path: &Path) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    // A name alone lies in the directory we are in.
    let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn there_is_the_old_one_or_the_new_one_and_it_is_ours_alone() {
        // KEY-11
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kept.json");
        put_whole(&path, b"one").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        // As a disk that is full, also if we are root.
        fs::create_dir(path.with_extension("new")).unwrap();
        put_whole(&path, b"two").unwrap_err();
        assert_eq!(fs::read(&path).unwrap(), b"one");
        fs::remove_dir(path.with_extension("new")).unwrap();
        fs::write(path.with_extension("new"), "half of something longer").unwrap();
        put_whole(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
    }
}

//! A secret that is good once, to begin with: it proves who asks before there is a key that could, and is destroyed when it has
//! (ACM-02, EST-02). In goes the path of a file that only this agent can read and replace; out comes what is in it, or a MAC
//! over something that `jose` built. The one MAC of this house is here and not in `jose`, because it is no signature of anybody:
//! whoever issued the secret could have made it as well.

use std::{fs::File, path::Path};

use base64::{
    Engine as _,
    alphabet::URL_SAFE,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use ring::hmac;

use super::{FileError, file};
use crate::{jose::SigningInput, secret::Secret};

/// CAs write the key with or without padding.
const BASE64URL: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The secret in a file.
#[derive(Debug)]
pub struct Bootstrap(Secret);

impl Bootstrap {
    /// Reads it: one line, without the blanks around it. The file is checked like one that holds a key (KEY-11).
    ///
    /// # Errors
    /// [`FileError`]; one that is not there is [`FileError::Io`] of the kind `NotFound`.
    pub fn read(path: &Path) -> Result<Self, FileError> {
        let (read, _) = file::read_private(path)?;
        let text = read.trim_ascii();
        if text.is_empty() || !text.iter().all(u8::is_ascii_graphic) {
            let what = "it holds no secret: write it there as one line of printable ASCII without blanks";
            return Err(FileError::Certificate { place: path.display().to_string(), what: what.into() });
        }
        Ok(Self(Secret::new(text)))
    }

    /// What is in it, to be shown.
    pub fn secret(&self) -> &Secret {
        &self.0
    }

    /// HMAC with SHA-256 under the key that it is in base64url (RFC 7518 3.2), for the one who issued it (RFC 8555 7.3.4).
    /// None if it is no such key.
    pub fn mac(&self, input: &SigningInput<'_>) -> Option<Vec<u8>> {
        let key = Secret::new(BASE64URL.decode(self.0.expose()).ok().filter(|key| !key.is_empty())?);
        let key = hmac::Key::new(hmac::HMAC_SHA256, key.expose());
        Some(hmac::sign(&key, input.as_bytes()).as_ref().to_vec())
    }
}

/// Unlinks the file, if it is there, and has the directory forget it before this returns.
///
/// # Errors
/// [`FileError::Io`]: it is there still.
pub fn spend(path: &Path) -> Result<(), FileError> {
    if std::fs::symlink_metadata(path).is_err() {
        return Ok(());
    }
    file::destroy(path)?;
    let directory = path.parent().unwrap_or(Path::new("/"));
    let synced = File::open(directory).and_then(|directory| directory.sync_all());
    synced.map_err(|error| FileError::Io { path: directory.into(), error })
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;

    fn file(text: &str, mode: u32) -> (tempfile::TempDir, std::path::PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let path = directory.path().join("secret");
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        (directory, path)
    }

    #[test]
    fn it_is_read_like_a_key_and_gone_when_it_is_spent() {
        // ACM-02, EST-02, KEY-11
        let (_directory, path) = file("user:pass\n", 0o600);
        assert_eq!(Bootstrap::read(&path).unwrap().secret().expose(), b"user:pass");
        spend(&path).unwrap();
        assert!(!path.exists());
        spend(&path).unwrap();
        assert!(
            matches!(Bootstrap::read(&path), Err(FileError::Io { error, .. }) if error.kind() == std::io::ErrorKind::NotFound)
        );
        for (text, mode) in
            [("user:pass", 0o640), ("user:pass", 0o644), ("", 0o600), (" \n", 0o600), ("a\nb", 0o600)]
        {
            let (_directory, path) = file(text, mode);
            let error = Bootstrap::read(&path).unwrap_err().to_string();
            assert!(!error.contains("pass"), "{error}");
        }
        let (directory, path) = file("x", 0o600);
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o770)).unwrap();
        assert!(matches!(Bootstrap::read(&path), Err(FileError::Perm { .. })));
    }
}

//! A token that something else on this host writes into a file: the kubelet, a CI runner, a SPIFFE helper. In go a path and
//! [`Conditions`]; out comes the token, read anew and fit to be sent, or why not. It is never kept and never logged.
//!
//! What is checked is the descriptor that was opened, not the path that was named: Kubernetes swaps such files by links.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{
    IssueError, Reason,
    conditions::{Conditions, Form},
};
use crate::secret::Secret;

/// The longest token that is read from a file.
pub const MAX_FILE: usize = 16 * 1024;

/// A file with a token in it, and what the token has to say.
#[derive(Clone, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
pub struct TokenFile {
    /// The file; links are followed.
    pub path: PathBuf,
    /// What must hold before the token is sent.
    pub conditions: Conditions,
}

impl TokenFile {
    /// Reads the token as it is now, and holds it against its conditions at `now`, the issuer's time.
    ///
    /// # Errors
    /// [`TokenFileError`]; nothing of the token is in it.
    pub async fn read(&self, form: Form, now: Timestamp) -> Result<Secret, TokenFileError> {
        let path = self.path.clone();
        // A file may be on a disk that is slow, and this thread has others to serve.
        let token = tokio::task::spawn_blocking(move || read(&path)).await;
        let token =
            token.unwrap_or_else(|_| Err(TokenFileError::Io(self.path.clone(), "it was not read".into())))?;
        let text = token.expose_str().unwrap_or_default();
        match self.conditions.check(text, form, now) {
            Ok(()) => Ok(token),
            Err(what) => Err(TokenFileError::Unfit(self.path.clone(), what)),
        }
    }
}

/// Why the token of a file is not sent.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum TokenFileError {
    /// The file system said no.
    #[error("{}: {_1}: see whether whoever writes this token still does, and whether the agent may read it", .0.display())]
    Io(PathBuf, String),
    /// Somebody else could have written it, or it is no file.
    #[error("{}: {_1}", .0.display())]
    Unsafe(PathBuf, String),
    /// It does not meet its conditions.
    #[error("the token in {}: {_1}; nothing was sent", .0.display())]
    Unfit(PathBuf, String),
}

impl From<TokenFileError> for IssueError {
    fn from(error: TokenFileError) -> Self {
        let detail = error.to_string();
        match error {
            // Not to be tried again by itself: that would count against the issuer, whose trouble it is not.
            TokenFileError::Io(..) | TokenFileError::Unsafe(..) => {
                Self::Misconfigured { reason: Reason::SourceTokenUnavailable, detail }
            }
            TokenFileError::Unfit(..) => Self::Refused { reason: Reason::SourceTokenUnfit, detail },
        }
    }
}

fn read(path: &Path) -> Result<Secret, TokenFileError> {
    let io = |error: io::Error| TokenFileError::Io(path.into(), error.to_string());
    // NONBLOCK: a pipe in its place would keep this thread for ever.
    let flags = (OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY).bits();
    let file = OpenOptions::new().read(true).custom_flags(flags.cast_signed()).open(path).map_err(io)?;
    check(path, &file)?;
    let mut read = Zeroizing::new(Vec::with_capacity(MAX_FILE + 1));
    (&file).take(MAX_FILE as u64 + 1).read_to_end(&mut read).map_err(io)?;
    if read.len() > MAX_FILE {
        return Err(TokenFileError::Unsafe(
            path.into(),
            "it is longer than 16 KiB: it holds more than a token".into(),
        ));
    }
    let end = read.iter().rposition(|byte| !byte.is_ascii_whitespace()).map_or(0, |last| last + 1);
    read.truncate(end);
    Ok(Secret::new(std::mem::take(&mut *read)))
}

fn check(path: &Path, file: &File) -> Result<(), TokenFileError> {
    let refuse = |what: String| Err(TokenFileError::Unsafe(path.into(), what));
    let meta = file.metadata().map_err(|error| TokenFileError::Io(path.into(), error.to_string()))?;
    if !meta.is_file() {
        return refuse("it is not a regular file".into());
    }
    let ours = rustix::process::geteuid().as_raw();
    if meta.uid() != 0 && meta.uid() != ours {
        return refuse(format!(
            "it belongs to uid {}, neither root nor this agent (uid {ours}): chown it",
            meta.uid()
        ));
    }
    if meta.mode() & 0o022 != 0 {
        return refuse(format!("others can write it (mode {:04o}): chmod go-w", meta.mode() & 0o7777));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use serde_json::json;

    use super::*;
    use crate::issuer::conditions::tests::jwt;

    fn now() -> Timestamp {
        Timestamp::from_second(1_700_000_000).unwrap()
    }

    fn file(path: PathBuf) -> TokenFile {
        TokenFile { path, conditions: Conditions::default() }
    }

    #[tokio::test]
    async fn a_file_is_read_anew_each_time_and_through_links() {
        // WIM-11
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("token");
        for subject in ["one", "two"] {
            let text = jwt(json!({"alg": "ES256"}), json!({"sub": subject, "exp": 1_700_000_001}));
            let real = dir.path().join(subject);
            fs::write(&real, format!("{text}\n")).unwrap();
            let _ = fs::remove_file(&link);
            std::os::unix::fs::symlink(&real, &link).unwrap();
            assert_eq!(
                file(link.clone()).read(Form::Subject, now()).await.unwrap().expose(),
                text.as_bytes()
            );
        }
    }

    #[tokio::test]
    async fn what_others_could_have_written_is_not_read() {
        // WIM-11
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let told = async |path: &Path| file(path.into()).read(Form::Subject, now()).await.unwrap_err();
        assert!(matches!(told(&path).await, TokenFileError::Io(..)));
        fs::write(&path, jwt(json!({"alg": "ES256"}), json!({"exp": 1_700_000_001}))).unwrap();
        for mode in [0o620, 0o602, 0o666] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert!(told(&path).await.to_string().contains("chmod go-w"), "{mode:o}");
        }
        for mode in [0o400, 0o440, 0o644] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            file(path.clone()).read(Form::Subject, now()).await.unwrap();
        }
        assert!(told(dir.path()).await.to_string().contains("not a regular file"));
        let pipe = dir.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        assert!(told(&pipe).await.to_string().contains("not a regular file"));
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&path, Some(4711), None).unwrap();
            assert!(told(&path).await.to_string().contains("belongs to uid 4711"));
        }
    }

    #[tokio::test]
    async fn size_is_bounded_and_an_error_quotes_nothing() {
        // WIM-11
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        for (text, expected) in [
            ("canary".repeat(3000), "longer than 16 KiB"),
            ("canary".into(), "not a JWT"),
            (String::new(), "not a JWT"),
        ] {
            fs::write(&path, &text).unwrap();
            let error = file(path.clone()).read(Form::Subject, now()).await.unwrap_err();
            let told = format!("{error} {error:?} {}", IssueError::from(error.clone()));
            assert!(told.contains(expected) && !told.contains("canary"), "{told}");
        }
    }
}

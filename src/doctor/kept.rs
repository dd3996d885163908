//! What is kept on disk: directories, keys and their certificates, the sealing key, the ledger. Keys are opened only by whoever
//! they belong to; others are told how to have that done.

use std::{
    collections::BTreeMap,
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{Finding, fail, ok, warn};
use crate::{
    audit::{Report, VerifyError, exists, verify},
    clock::Dice,
    config::Settings,
    issuer::terms::{SealedBy, SealedTerms, Wants},
    keys::{FileError, Looked, Safe, Vault, looked},
};

/// So little room is none.
const NO_ROOM: u64 = 16 << 20;
const LITTLE_ROOM: u64 = 256 << 20;

/// What was found.
#[derive(Debug)]
pub(super) struct Kept {
    /// Who asks.
    user: u32,
    /// Whose the state is: the agent's.
    agent: u32,
    state: Directory,
    private: Vec<Directory>,
    runtime: Directory,
    /// Why the vault does not open, or where its key is from.
    vault: Result<Option<String>, FileError>,
    /// The keys, if whoever asks is the agent's user.
    keys: Option<Vec<Looked>>,
    /// For others, what can be seen of the files from outside.
    files: Vec<(PathBuf, Option<(u32, u32)>)>,
    ledger: Option<Result<Report, VerifyError>>,
    room: Option<u64>,
    /// Why the state directory is not this machine's, if it is not.
    stranger: Option<String>,
    /// The file that names whom an operator switched off, and why it cannot be read, if it cannot.
    disabled: Option<(PathBuf, String)>,
    /// The secrets that the agent keeps sealed, and what is wrong with each.
    sealed: Vec<(String, Result<(), String>)>,
}

/// A directory: owner and mode, if it is there.
#[derive(Debug)]
struct Directory {
    path: PathBuf,
    seen: Option<(u32, u32)>,
    in_memory: bool,
}

impl Directory {
    fn look(path: &Path) -> Self {
        /// statfs(2).
        const TMPFS: i64 = 0x0102_1994;
        let seen = std::fs::metadata(path).ok().map(|meta| (meta.uid(), meta.mode() & 0o7777));
        let nearest = path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
        let in_memory = rustix::fs::statfs(nearest).is_ok_and(|fs| fs.f_type == TMPFS);
        Self { path: path.into(), seen, in_memory }
    }
}

pub(super) fn look(settings: &Settings, dice: Arc<dyn Dice>) -> Kept {
    let kept = &settings.kept;
    let user = rustix::process::geteuid().as_raw();
    let state = settings.kept.disabled.parent().unwrap_or(Path::new("/")).to_owned();
    let (keys, audit) = (settings.kept.keys.directory.clone(), settings.audit.directory.clone());
    let owner = |path: &Path| std::fs::metadata(path).ok().map(|meta| meta.uid());
    let agent = [&audit, &keys, &state].into_iter().find_map(|path| owner(path)).unwrap_or(user);
    let runtime = settings.kept.revocations.parent().unwrap_or(Path::new("/"));
    let vault = Vault::to_look(&settings.kept.sealing, Arc::clone(&dice));
    let opened = match &vault {
        Ok(vault) if user == agent => Some(looked(&settings.keys, &settings.certificates, vault)),
        _ => None,
    };
    let from_outside = |path: &Path| {
        let meta = std::fs::symlink_metadata(path).ok();
        (path.to_owned(), meta.map(|meta| (meta.uid(), meta.mode() & 0o7777)))
    };
    // From outside only whether it is there and as it should be; whether it opens, its user can tell.
    let safe = vault.as_ref().ok().map(|vault| {
        Safe::new(vault.clone(), kept.sealed.clone(), kept.home.clone(), None, Arc::clone(&dice))
    });
    let sealed = |identity: &str, credential: &str| match &safe {
        Some(safe) if user == agent => {
            safe.open(identity, credential).map(drop).map_err(|error| error.to_string())
        }
        _ => Ok(()),
    };
    let room = audit.ancestors().find(|path| path.exists());
    let room = room.and_then(|path| rustix::fs::statvfs(path).ok()).map(|fs| fs.f_bavail * fs.f_frsize);
    Kept {
        user,
        agent,
        state: Directory::look(&state),
        private: [&keys, &audit].into_iter().map(|path| Directory::look(path)).collect(),
        runtime: Directory::look(runtime),
        vault: vault.map(|vault| vault.sealed_by().map(str::to_owned)),
        keys: opened,
        files: settings.key_files().map(from_outside).collect(),
        ledger: exists(&audit).then(|| verify(&audit, None)),
        room,
        stranger: kept.home.as_ref().and_then(|home| home.look().err()).map(|error| error.to_string()),
        disabled: disabled(&kept.disabled).err().map(|why| (kept.disabled.clone(), why)),
        sealed: settings
            .policy
            .identities()
            .flat_map(|identity| identity.credentials.values().map(move |rule| (&identity.name, rule)))
            .filter(|(_, rule)| {
                matches!(&rule.terms.wants, Wants::Sealed(SealedTerms { keeper: SealedBy::Agent, .. }))
            })
            .map(|(identity, rule)| (format!("{identity} {}", rule.name), sealed(identity, &rule.name)))
            .collect(),
    }
}

/// As the agent reads it at its start.
fn disabled(path: &Path) -> Result<(), String> {
    let text = match std::fs::read_to_string(path) {
        Err(error) if is_missing(&error) => return Ok(()),
        // Others cannot look, and are told so of the keys.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(()),
        read => read.map_err(|error| error.to_string())?,
    };
    let read: Result<BTreeMap<String, String>, _> = serde_json::from_str(&text);
    read.map(drop).map_err(|error| error.to_string())
}

pub(super) fn judge(kept: &Kept, settings: &Settings) -> Vec<Finding> {
    let mut found = vec![open_to_others(&kept.state, kept.agent, "state directory")];
    found.extend(kept.private.iter().map(|directory| private(directory, kept.agent)));
    found.push(open_to_others(&kept.runtime, kept.agent, "runtime directory"));
    if kept.runtime.in_memory {
        found.push(ok("runtime directory", format!("{} is in memory", kept.runtime.path.display())));
    } else {
        found.push(warn(
            "runtime directory",
            format!(
                "{} is on a disk: what is kept there for the next start outlives the host's power",
                kept.runtime.path.display()
            ),
            "set runtime_directory below /run, which is in memory (tmpfs)",
        ));
    }
    found.push(match &kept.vault {
        Ok(Some(from)) => ok("sealing key", format!("key files are sealed by {from}")),
        Ok(None) => warn(
            "sealing key",
            "there is none in sight: unless the service manager gives the agent one, a copied state directory is the client",
            "systemd-creds encrypt --name=keybearer.sealing-key, and LoadCredentialEncrypted= in the unit; or keys.sealing_key",
        ),
        Err(error) => fail("sealing key", error.to_string(), "mend or name it in [keys] sealing_key"),
    });
    if let Some(why) = &kept.stranger {
        found.push(fail(
            "machine",
            why.as_str(),
            "the agent does not start on it: move the directory away, so that keys are made here, and register those; only if the other \
             host is gone for good: keybearer keys adopt",
        ));
    }
    if let Some((path, why)) = &kept.disabled {
        found.push(fail(
            "disabled identities",
            format!("{} cannot be read: {why}", path.display()),
            "mend it, or take it away on purpose: whoever was switched off is on again then, and the agent does not start before",
        ));
    }
    found.extend(kept.sealed.iter().map(|(of, opened)| {
        let about = format!("sealed secret of {}", of.replace(' ', "."));
        match opened {
            Ok(()) if kept.user == kept.agent => ok(about, "it is there, and opens"),
            Ok(()) => ok(about, "it is for the agent's user to open, and was not looked at"),
            Err(why) => fail(about, why.as_str(), format!("put it in: keybearer seal {of}")),
        }
    }));
    found.extend(keys(kept));
    found.extend(ledger(kept, settings));
    found
}

fn keys(kept: &Kept) -> Vec<Finding> {
    if let Some(all) = &kept.keys {
        return all
            .iter()
            .map(|key| {
                let about = format!("key of {}", key.of);
                match &key.seen {
                    Ok(true) => ok(about, format!("{} is sound{}", key.path.display(), key.pair())),
                    Ok(false) => ok(about, format!("{} is made at the next start", key.path.display())),
                    Err(error @ FileError::Certificate { .. }) => fail(
                        about,
                        error.to_string(),
                        "put the certificate of this key beside it (openssl x509 -noout -pubkey against openssl pkey -pubout), \
                         or have one made for it",
                    ),
                    Err(error) => fail(
                        about,
                        error.to_string(),
                        format!(
                            "chown {} and chmod 0600 what is wide or foreign; a key that is spoilt makes room for another: \
                             keybearer revoke IDENTITY --keys",
                            kept.agent
                        ),
                    ),
                }
            })
            .collect();
    }
    let mut found: Vec<Finding> = kept
        .files
        .iter()
        .filter_map(|(path, seen)| Some((path, (*seen)?)))
        .map(|(path, (owner, mode))| {
            let about = format!("key {}", path.display());
            let remedy = format!("chown {0} {1} && chmod 0600 {1}", kept.agent, path.display());
            match () {
                () if mode & 0o177 != 0 => fail(about, format!("it has mode {mode:04o}"), remedy),
                () if owner != kept.agent => fail(about, format!("it belongs to uid {owner}"), remedy),
                () => ok(about, "its owner and mode are right"),
            }
        })
        .collect();
    if kept.user != kept.agent && kept.vault.is_ok() {
        found.push(warn(
            "keys",
            format!("they are uid {}'s and were not opened", kept.agent),
            format!(
                "run this as that user too: setpriv --reuid={} --clear-groups keybearer doctor",
                kept.agent
            ),
        ));
    }
    found
}

fn ledger(kept: &Kept, settings: &Settings) -> Vec<Finding> {
    let directory = settings.audit.directory.display();
    let mut found = Vec::new();
    found.push(match &kept.ledger {
        None => ok("ledger", format!("{directory}: it is begun at the first start")),
        Some(Ok(report)) => {
            let tail = report.records - report.signed;
            ok("ledger", format!("{} records whole, {tail} after the last checkpoint", report.records))
        }
        Some(Err(error)) => fail(
            "ledger",
            format!("{directory}: {error}"),
            format!(
                "keep {directory} as evidence, look with keybearer audit verify, then move it away: the agent begins another and \
                 does not start on this one"
            ),
        ),
    });
    found.push(match kept.room {
        Some(room) if room < NO_ROOM => fail(
            "ledger room",
            format!("{} MiB are free below {directory}", room >> 20),
            "make room: what cannot be recorded is not answered (audit.on_failure = \"deny\")",
        ),
        Some(room) if room < LITTLE_ROOM => {
            warn("ledger room", format!("{} MiB are free below {directory}", room >> 20), "make room soon")
        }
        Some(room) => ok("ledger room", format!("{} MiB are free", room >> 20)),
        None => warn("ledger room", "it cannot be told", "see whether the file system is mounted"),
    });
    found
}

/// One that nobody else may look into.
fn private(directory: &Directory, agent: u32) -> Finding {
    let (about, path) = ("private directory", directory.path.display());
    match directory.seen {
        None => ok(about, format!("{path} is made at the first start")),
        Some((_, mode)) if mode & 0o077 != 0 => fail(
            about,
            format!("{path} has mode {mode:04o}: others can look into it"),
            format!("chmod 0700 {path}"),
        ),
        Some((owner, _)) if owner != agent => fail(
            about,
            format!("{path} belongs to uid {owner}, not to the agent's"),
            format!("chown {agent} {path}"),
        ),
        Some(_) => ok(about, format!("{path} is the agent's alone")),
    }
}

/// One that nobody else may write.
fn open_to_others(directory: &Directory, agent: u32, about: &str) -> Finding {
    let path = directory.path.display();
    match directory.seen {
        None => ok(about, format!("{path} is made at the first start")),
        Some((_, mode)) if mode & 0o022 != 0 => fail(
            about,
            format!(
                "{path} can be written by others (mode {mode:04o}): they could put their own socket or key there"
            ),
            format!("chmod go-w {path}"),
        ),
        Some((owner, _)) if owner != 0 && owner != agent => {
            fail(about, format!("{path} belongs to uid {owner}"), format!("chown {agent} {path}"))
        }
        Some(_) => ok(about, format!("{path} can be written by the agent alone")),
    }
}

/// Whether there is nothing, which is no fault before the first start.
pub(super) fn is_missing(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
}

//! The sockets, and the agent behind them: whether they are where the settings say, whose they are, and whether what runs is what
//! is installed and read what is written.

use std::{
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::Path,
};

use super::{Finding, fail, kept::is_missing, ok, warn};
use crate::{
    client::{ConnectError, operator},
    config::Settings,
    proto::v1::StatusRequest,
    wire::ListenSettings,
};

/// What lies where a socket should be.
#[derive(Debug)]
enum Place {
    Nothing,
    Socket { uid: u32, gid: u32, mode: u32 },
    Other,
}

pub(super) fn sockets(settings: &Settings) -> Vec<Finding> {
    let listen = &settings.listen;
    let own = [("workload", &listen.workload), ("operator", &listen.operator), ("http", &listen.http)];
    let own = own.into_iter().map(|(name, socket)| (format!("listen.{name}"), socket));
    let exports = settings.exports.iter().map(|(name, socket)| (format!("exports.{name}"), socket));
    let agent = std::fs::metadata(&settings.audit.directory).ok().map(|meta| meta.uid());
    own.chain(exports)
        .flat_map(|(about, socket)| judge(&about, socket, &place(&socket.path), agent))
        .collect()
}

fn place(path: &Path) -> Place {
    match std::fs::symlink_metadata(path) {
        Ok(meta) if meta.file_type().is_socket() => {
            Place::Socket { uid: meta.uid(), gid: meta.gid(), mode: meta.mode() & 0o777 }
        }
        Ok(_) => Place::Other,
        Err(error) if is_missing(&error) => Place::Nothing,
        Err(_) => Place::Other,
    }
}

fn judge(about: &str, socket: &ListenSettings, place: &Place, agent: Option<u32>) -> Vec<Finding> {
    let path = socket.path.display();
    let mut found = Vec::new();
    if let Some(directory) = socket.path.parent()
        && let Ok(meta) = std::fs::metadata(directory)
        && meta.mode() & 0o022 != 0
    {
        found.push(fail(
            about,
            format!("{} can be written by others (mode {:04o})", directory.display(), meta.mode() & 0o7777),
            format!(
                "chmod go-w {}: the agent does not listen where others can put their own socket",
                directory.display()
            ),
        ));
    }
    found.push(match place {
        Place::Nothing => ok(about, format!("{path} is free: the agent makes it")),
        Place::Other => fail(
            about,
            format!("{path} is there and is no socket, or cannot be looked at"),
            format!("find out what it is and move it away, or set {about} to another path"),
        ),
        Place::Socket { uid, .. } if *uid != 0 && agent.is_some_and(|agent| agent != *uid) => fail(
            about,
            format!("{path} belongs to uid {uid}, which is not the agent's"),
            "somebody else listens there: end that program, take the socket away, and see how it could be put there",
        ),
        Place::Socket { mode, gid, .. } if *mode != socket.mode || socket.group.is_some_and(|group| group != *gid) => {
            let wanted = socket.group.map(|group| format!(" and group {group}")).unwrap_or_default();
            let remedy = "restart the agent: sockets have the mode and group of the settings from its start on";
            fail(about, format!("{path} has mode {mode:04o} and group {gid}, not mode {:04o}{wanted}", socket.mode), remedy)
        }
        Place::Socket { mode, .. } => ok(about, format!("{path}, mode {mode:04o}")),
    });
    found
}

/// The agent that runs, if one does.
pub(super) async fn running(settings: &Settings) -> Vec<Finding> {
    let path = &settings.listen.operator.path;
    let asked = async {
        let mut agent = operator(path).await.map_err(Trouble::from)?;
        agent.status(StatusRequest {}).await.map_err(|status| Trouble::Deaf(status.message().to_owned()))
    };
    let answered = tokio::time::timeout(std::time::Duration::from_secs(5), asked).await;
    let status = match answered.unwrap_or_else(|_| Err(Trouble::Deaf("no answer in 5 s".into()))) {
        Ok(status) => status.into_inner(),
        Err(trouble) => return vec![trouble.finding()],
    };
    let version = env!("CARGO_PKG_VERSION");
    let mut found = vec![if status.version == version {
        ok("agent", format!("it runs, version {version}, evidence up to {}", status.max_level))
    } else {
        let what = format!("version {} runs, {version} is installed", status.version);
        fail("agent", what, "restart it: systemctl restart keybearer")
    }];
    if status.config_digest != settings.digest {
        found.push(warn(
            "agent settings",
            "the settings in force are not those of the file (or of this environment)",
            "keybearer reload; what is read only at start needs systemctl restart keybearer",
        ));
    }
    if !status.reload_error.is_empty() {
        found.push(fail(
            "agent settings",
            format!("its last reload failed: {}", status.reload_error),
            "mend the file, then keybearer reload",
        ));
    }
    if status.ledger.is_some_and(|ledger| !ledger.healthy) {
        found.push(fail(
            "agent ledger",
            "it cannot be written",
            "make room, and see whether the disk is sound",
        ));
    }
    found.extend(memory(status.memory_locked, &status.memory, super::host::look().swap));
    for issuer in status.issuers.iter().filter(|issuer| issuer.failures > 0) {
        let what =
            format!("it fails for the agent, {} times in a row: {}", issuer.failures, issuer.last_error);
        found.push(warn(
            format!("agent, issuers.{}", issuer.name),
            what,
            "see what is found about the issuer below",
        ));
    }
    found
}

/// Whether keys and tokens of the agent that runs can go to swap (KEY-02). One that is older does not say.
fn memory(locked: bool, words: &str, swap: Option<bool>) -> Option<Finding> {
    match (locked, swap) {
        _ if words.is_empty() => None,
        (true, _) | (false, Some(false)) => Some(ok("agent memory", words)),
        (false, _) => Some(warn(
            "agent memory",
            "it is not locked: keys and tokens may go to swap",
            "LimitMEMLOCK=infinity in the agent's unit (the packaged one has it) and a restart; or encrypt swap, or swapoff -a",
        )),
    }
}

/// Why the agent did not tell.
enum Trouble {
    Away(String),
    Forbidden(String),
    Deaf(String),
    Untrusted(String),
}

impl From<ConnectError> for Trouble {
    fn from(error: ConnectError) -> Self {
        let words = error.to_string();
        match error {
            ConnectError::Untrusted { .. } => Self::Untrusted(words),
            ConnectError::Connect { error, .. } => match error.kind() {
                std::io::ErrorKind::PermissionDenied => Self::Forbidden(words),
                _ => Self::Away(words),
            },
        }
    }
}

impl Trouble {
    fn finding(self) -> Finding {
        match self {
            Self::Away(words) => {
                warn("agent", format!("it does not run: {words}"), "systemctl start keybearer")
            }
            Self::Forbidden(words) => warn(
                "agent",
                words,
                "run this as root, or as a member of the operators' group (listen.operator_group)",
            ),
            Self::Deaf(words) => fail(
                "agent",
                format!("it does not answer: {words}"),
                "systemctl restart keybearer, and look at journalctl -u keybearer",
            ),
            Self::Untrusted(words) => {
                fail("agent", words, "see who put that there, before anything is asked of it")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::doctor::Verdict;

    #[test]
    fn memory_that_can_go_to_swap_is_told_with_what_to_do() {
        // KEY-02
        for (locked, words, swap, verdict) in [
            (true, "locked", Some(true), Some(Verdict::Ok)),
            (false, "not locked", Some(false), Some(Verdict::Ok)),
            (false, "not locked", Some(true), Some(Verdict::Warn)),
            (false, "not locked", None, Some(Verdict::Warn)),
            (false, "", Some(true), None),
        ] {
            let found = memory(locked, words, swap);
            assert_eq!(found.as_ref().map(|found| found.verdict), verdict, "{locked} {swap:?}");
            let remedy = found.filter(|found| found.verdict == Verdict::Warn).map(|found| found.remedy);
            assert!(remedy.is_none_or(|remedy| remedy.contains("LimitMEMLOCK=infinity")));
        }
    }

    #[test]
    fn a_socket_that_is_not_ours_or_not_as_the_settings_say_is_told() {
        let socket = ListenSettings {
            path: "/nowhere/at/all/agent.sock".into(),
            mode: 0o660,
            group: Some(7),
            max_connections: 1,
            max_per_uid: 1,
            first_bytes_within: Duration::from_secs(1),
            max_streams: 1,
        };
        for (place, verdict, words) in [
            (Place::Nothing, Verdict::Ok, "is free"),
            (Place::Other, Verdict::Fail, "no socket"),
            (Place::Socket { uid: 5, gid: 7, mode: 0o660 }, Verdict::Fail, "belongs to uid 5"),
            (Place::Socket { uid: 9, gid: 7, mode: 0o666 }, Verdict::Fail, "mode 0666"),
            (Place::Socket { uid: 9, gid: 8, mode: 0o660 }, Verdict::Fail, "group 8"),
            (Place::Socket { uid: 9, gid: 7, mode: 0o660 }, Verdict::Ok, "mode 0660"),
        ] {
            let found = judge("listen.workload", &socket, &place, Some(9));
            assert_eq!(found.len(), 1);
            assert_eq!((found[0].verdict, found[0].what.contains(words)), (verdict, true), "{found:?}");
            assert_eq!(found[0].remedy.is_empty(), verdict == Verdict::Ok);
        }
    }
}

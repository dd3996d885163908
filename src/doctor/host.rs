//! What the kernel of this host can prove, and whether that is enough for the identities of the settings.

use super::{Finding, fail, ok, warn};
use crate::{
    attest::{Hold, Peer, kernel::landlock_abi},
    config::Settings,
    policy::Assurance,
};

/// What was found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Host {
    /// How a process can be pinned; none if it cannot.
    pub(super) hold: Option<Hold>,
    /// Whether system calls can be given up.
    pub(super) seccomp: bool,
    /// Whether there is somewhere for pages to go; none if it cannot be told.
    pub(super) swap: Option<bool>,
    /// The version of Landlock.
    pub(super) landlock: Option<u32>,
    /// Whether systemd vouches for units here.
    pub(super) systemd: bool,
}

pub(super) fn look() -> Host {
    let pair = std::os::unix::net::UnixStream::pair().ok();
    let hold = pair.and_then(|(ours, _theirs)| Peer::pin(&ours).ok().map(|peer| peer.hold()));
    Host {
        hold,
        seccomp: std::fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail")
            .is_ok_and(|actions| actions.split_whitespace().any(|action| action == "errno")),
        swap: std::fs::read_to_string("/proc/swaps").ok().map(|swaps| swaps.lines().count() > 1),
        landlock: landlock_abi(),
        systemd: std::path::Path::new("/run/systemd/system").is_dir(),
    }
}

pub(super) fn judge(host: &Host, settings: Option<&Settings>) -> Vec<Finding> {
    let identities = || settings.into_iter().flat_map(|settings| settings.policy.identities());
    let demanding = identities().find(|identity| identity.assurance != Assurance::Interim);
    let in_unit = identities().find(|identity| {
        identity.selectors.iter().any(|selectors| selectors.unit.is_some() || selectors.slice.is_some())
    });
    let mut found = Vec::new();
    found.push(match (host.hold, demanding) {
        (Some(Hold::Socket), _) => ok("kernel pidfd", "SO_PEERPIDFD: callers are pinned by the kernel"),
        (Some(Hold::Opened), Some(identity)) => fail(
            "kernel pidfd",
            format!("no SO_PEERPIDFD: evidence is L1 at most, and identities.{} demands more", identity.name),
            "Linux 6.5 or newer; until then such identities get nothing",
        ),
        (Some(Hold::Opened), None) => {
            warn("kernel pidfd", "no SO_PEERPIDFD: evidence is L1 at most", "Linux 6.5 or newer")
        }
        (None, _) => fail(
            "kernel pidfd",
            "a process cannot be pinned here",
            "Linux 5.10 or newer, with /proc mounted and readable",
        ),
    });
    found.push(match (host.systemd, in_unit) {
        (true, _) => ok("systemd", "it runs here, and vouches for units"),
        (false, Some(identity)) => fail(
            "systemd",
            format!("it does not run here, and identities.{} is known by its unit", identity.name),
            "run the agent on a host with systemd, or match by user and exe",
        ),
        (false, None) => {
            warn("systemd", "it does not run here: evidence is L2 at most", "a host with systemd")
        }
    });
    found.push(if host.seccomp {
        ok("kernel seccomp", "the agent gives up the system calls that it never makes")
    } else {
        let what = "no seccomp filters: whoever takes the agent over may start programs and listen elsewhere";
        warn(
            "kernel seccomp",
            what,
            "a kernel with CONFIG_SECCOMP_FILTER; the unit's own confinement needs it too",
        )
    });
    found.push(match host.swap {
        Some(false) => ok("swap", "this host has none"),
        // Whether the agent that runs is kept out of it, it says itself.
        Some(true) => {
            ok("swap", "this host has swap: the agent keeps its memory out of it where its unit lets it")
        }
        None => warn(
            "swap",
            "/proc/swaps cannot be read: whether keys could go to swap is not known",
            "mount /proc, or encrypt swap",
        ),
    });
    found.push(match host.landlock {
        Some(version) => ok("kernel landlock", format!("version {version}")),
        None => warn(
            "kernel landlock",
            "not there: a program cannot confine itself",
            "Linux 5.13 or newer with landlock in the lsm= boot parameter; the unit's own confinement holds all the same",
        ),
    });
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    #[test]
    fn what_a_kernel_lacks_is_told_with_what_to_do() {
        let whole = Host {
            hold: Some(Hold::Socket),
            seccomp: true,
            swap: Some(false),
            landlock: Some(6),
            systemd: true,
        };
        assert!(judge(&whole, None).iter().all(|finding| finding.verdict == Verdict::Ok));
        let bare =
            Host { hold: Some(Hold::Opened), seccomp: false, swap: None, landlock: None, systemd: false };
        let found = judge(&bare, None);
        assert!(found.iter().all(|finding| finding.verdict == Verdict::Warn && !finding.remedy.is_empty()));
        let blind = judge(&Host { hold: None, ..bare }, None);
        assert_eq!(blind[0].verdict, Verdict::Fail);
    }
}

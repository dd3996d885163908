//! Keeps keys and tokens out of swap (KEY-02). In goes nothing; out comes a process whose pages stay in memory, or the reason why
//! they may leave it. The agent starts all the same: an operator sees it in `status` and `doctor`.
//!
//! **All or nothing.** ring keeps parsed keys where the allocator puts them, a token passes through buffers of TLS and HTTP/2 on its
//! way, and stacks hold what is computed: locking a few pages that are called secret would lock the smaller half. So the whole process
//! is locked (mlockall(2)), each page as it is first used (`MCL_ONFAULT`): what is reserved and never touched costs nothing.
//!
//! **Only without a limit.** Locked memory counts by the size of the mapping against RLIMIT_MEMLOCK, which is 8 MiB where nobody
//! changed it, and with `MCL_FUTURE` a mapping beyond it is refused: under a bounded limit whoever opens many connections would end the
//! agent's allocations, and the agent with them. So it locks where it is bound by no limit, and where it is nothing is locked. The
//! packaged unit grants it (`LimitMEMLOCK=infinity`), and has no swap anyway (`MemorySwapMax=0`).
//!
//! memfd_secret(2) would hide pages from the kernel's own debugger too. It is memory of a file's kind, which no allocator of ours can
//! be told to use, and none of what is said above of ring would lie in it.

use std::fmt;

use rustix::{
    io::Errno,
    mm::{MlockAllFlags, mlockall},
    process::{Resource, Rlimit, getrlimit, setrlimit},
};

/// Why pages are not locked.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum SwapError {
    /// There is a limit, and it stays.
    #[error(
        "at most {} KiB may be locked here (RLIMIT_MEMLOCK): start the agent without that limit (LimitMEMLOCK=infinity), \
         encrypt swap, or have none", .0 >> 10
    )]
    Limited(u64),
    /// The kernel would not.
    #[error("the kernel locks no memory: {0}: encrypt swap, or have none")]
    Kernel(Errno),
}

/// Locks what this process has and will have in memory. Once only, before there is anything to hide.
///
/// # Errors
/// [`SwapError`]; nothing is locked then, and nothing else is different.
pub fn keep_out_of_swap() -> Result<(), SwapError> {
    // Whoever may raise limits (CAP_SYS_RESOURCE) has none then; for whoever may not, the one there is may be none already.
    let _ = setrlimit(Resource::Memlock, Rlimit { current: None, maximum: None });
    let limit = getrlimit(Resource::Memlock);
    let all = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
    let Some(most) = limit.maximum else {
        if limit.current.is_some() {
            setrlimit(Resource::Memlock, Rlimit { current: None, ..limit }).map_err(SwapError::Kernel)?;
        }
        return mlockall(all).map_err(SwapError::Kernel);
    };
    // Whoever may lock where the limit is nothing is bound by none (CAP_IPC_LOCK, in the first user namespace): a try tells that
    // better than a set of capabilities does, which says nothing of the namespace.
    setrlimit(Resource::Memlock, Rlimit { current: Some(0), ..limit }).map_err(SwapError::Kernel)?;
    let locked = mlockall(all);
    let _ = setrlimit(Resource::Memlock, limit);
    locked.map_err(|_| SwapError::Limited(most))
}

/// Where the pages of this process can go.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Memory {
    /// Nowhere.
    Locked,
    /// Nowhere, as long as nobody gives this host swap.
    NoSwap,
    /// To swap.
    Swapped,
}

impl Memory {
    /// As it is now, by what the kernel says.
    pub fn look() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let swaps = std::fs::read_to_string("/proc/swaps").ok();
        Self::told(&status, swaps.as_deref())
    }

    /// By the text of /proc/PID/status and of /proc/swaps. Whatever cannot be read is taken for the worse.
    pub fn told(status: &str, swaps: Option<&str>) -> Self {
        let locked = status.lines().find_map(|line| line.strip_prefix("VmLck:"));
        let locked = locked.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        match (locked, swaps) {
            (Some(1..), _) => Self::Locked,
            (_, Some(swaps)) if swaps.lines().skip(1).all(|line| line.trim().is_empty()) => Self::NoSwap,
            _ => Self::Swapped,
        }
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Locked => "locked: keys and tokens do not go to swap",
            Self::NoSwap => "not locked, and this host has no swap now",
            Self::Swapped => {
                "not locked: keys and tokens may go to swap; start the agent with LimitMEMLOCK=infinity, encrypt swap, or have none"
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_to_be_locked_is_not_said_to_be() {
        // KEY-02
        let head = "Filename\tType\tSize\tUsed\tPriority\n";
        let swap = format!("{head}/dev/sda2 partition 1 0 -2\n");
        let status = |kib: &str| format!("Name:\tx\nVmLck:\t   {kib} kB\nVmPin:\t 0 kB\n");
        assert_eq!(Memory::told(&status("81920"), Some(&swap)), Memory::Locked);
        assert_eq!(Memory::told(&status("0"), Some(head)), Memory::NoSwap);
        for (status, swaps) in [
            (status("0"), Some(&*swap)),
            (status("0"), None),
            (String::new(), None),
            (status("x"), Some(&*swap)),
        ] {
            assert_eq!(Memory::told(&status, swaps), Memory::Swapped);
            assert!(Memory::Swapped.to_string().contains("LimitMEMLOCK=infinity"));
        }
    }
}

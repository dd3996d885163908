//! What the agent gives up once it is built: system calls that it never makes, and that whoever took it over would. In goes nothing;
//! out comes a process that starts no program, listens nowhere else, looks into no memory, becomes nobody else, and makes itself
//! no more dumpable. A service manager can do more (packaging/systemd); this holds wherever the agent is started from.
//!
//! Everything else is allowed: what is denied here is denied for good reason, and a list of all that a resolver, an allocator or a
//! kernel to come may need would fail at the wrong moment. A denied call fails with EPERM, so that its caller says what it wanted.
//!
//! There is no Landlock here: a process in a Landlock domain may not look at processes outside it (ptrace access, of which reading
//! /proc/PID/exe and maps is a kind), and that is what attestation rests on.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

/// Why nothing was given up.
#[derive(Debug, thiserror::Error)]
pub enum LockdownError {
    /// This machine's instructions are not known here.
    #[error("system calls of this kind of machine are not known here: {0}")]
    Machine(#[from] seccompiler::BackendError),
    /// The kernel would not.
    #[error("the kernel takes no filter of system calls: {0}")]
    Kernel(#[from] seccompiler::Error),
}

/// Gives up, in all threads and for good.
///
/// # Errors
/// [`LockdownError`]; everything is allowed still.
pub fn give_up() -> Result<(), LockdownError> {
    Ok(seccompiler::apply_filter_all_threads(&program()?)?)
}

fn program() -> Result<BpfProgram, LockdownError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for number in NEVER.iter().flat_map(|number| also_as_x32(*number)) {
        rules.insert(number, vec![]);
    }
    // prctl(PR_SET_DUMPABLE, anything but 0): KEY-02.
    let conditions = vec![
        SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, libc::PR_SET_DUMPABLE as u64)?,
        SeccompCondition::new(1, SeccompCmpArgLen::Qword, SeccompCmpOp::Ne, 0)?,
    ];
    rules.insert(libc::SYS_prctl, vec![SeccompRule::new(conditions)?]);
    // Into no namespace but one of time, which shows no other world and lets nobody in: a host that sleeps is tested by one.
    let other = SeccompCondition::new(1, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, CLONE_NEWTIME)?;
    for number in also_as_x32(libc::SYS_setns) {
        rules.insert(number, vec![SeccompRule::new(vec![other.clone()])?]);
    }
    let denied = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let machine = std::env::consts::ARCH.try_into()?;
    Ok(SeccompFilter::new(rules, SeccompAction::Allow, denied, machine)?.try_into()?)
}

/// The same call by the numbers of x32, where a kernel has them: a filter that forgets them denies nothing there.
fn also_as_x32(number: i64) -> Vec<i64> {
    if !cfg!(target_arch = "x86_64") {
        return vec![number];
    }
    const X32: i64 = 0x4000_0000;
    // Some have a number of their own there (arch/x86/entry/syscalls/syscall_64.tbl, from 512 on).
    let own = match number {
        libc::SYS_execve => Some(520),
        libc::SYS_ptrace => Some(521),
        libc::SYS_kexec_load => Some(528),
        libc::SYS_process_vm_readv => Some(539),
        libc::SYS_process_vm_writev => Some(540),
        libc::SYS_execveat => Some(545),
        _ => None,
    };
    [Some(number), Some(X32 | number), own.map(|own| X32 | own)].into_iter().flatten().collect()
}

/// A namespace of time (clone(2)).
const CLONE_NEWTIME: u64 = 0x80;

/// What the agent never does.
const NEVER: &[i64] = &[
    // Start a program.
    libc::SYS_execve,
    libc::SYS_execveat,
    // Wait for anybody but those who know its sockets, which are bound by now.
    libc::SYS_listen,
    // Look into other processes, or take from them.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    // Become somebody else.
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setfsuid,
    libc::SYS_setfsgid,
    libc::SYS_setgroups,
    libc::SYS_capset,
    libc::SYS_personality,
    // See another world, or show one to others.
    libc::SYS_unshare,
    libc::SYS_chroot,
    libc::SYS_pivot_root,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_open_by_handle_at,
    libc::SYS_name_to_handle_at,
    libc::SYS_fanotify_init,
    // Change the host.
    libc::SYS_bpf,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_quotactl,
    libc::SYS_acct,
    libc::SYS_syslog,
    libc::SYS_vhangup,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    // Leave keys with the kernel, or take them; and the ways around a filter of system calls.
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
];

#[cfg(test)]
mod tests {
    use std::{io, os::unix::net::UnixListener, process::Command, thread};

    use super::*;

    #[test]
    fn whoever_takes_the_agent_over_starts_nothing_and_listens_nowhere() {
        // KEY-02, S11: in a thread, which keeps it to itself.
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("socket");
        thread::spawn(move || {
            assert!(Command::new("true").status().unwrap().success());
            seccompiler::apply_filter(&program().unwrap()).unwrap();
            let denied = |what: &str, error: io::Error| {
                assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{what}: {error}");
            };
            denied("execve", Command::new("true").status().unwrap_err());
            denied("listen", UnixListener::bind(socket).unwrap_err());
            let raised = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::Dumpable);
            denied("prctl", raised.unwrap_err().into());
            // What it lives on.
            assert!(std::fs::read_to_string("/proc/thread-self/status").unwrap().contains("Seccomp:\t2"));
            thread::spawn(|| ()).join().unwrap();
        })
        .join()
        .unwrap();
    }

    #[test]
    fn a_number_of_another_abi_is_no_way_around() {
        if cfg!(target_arch = "x86_64") {
            assert!(also_as_x32(libc::SYS_execve).contains(&(0x4000_0000 | 520)));
            assert!(also_as_x32(libc::SYS_listen).contains(&(0x4000_0000 | libc::SYS_listen)));
        }
    }
}

//! What the agent gives up once it is built: system calls that it never makes, and that whoever took it over would. In goes nothing;
//! out comes a process that starts no program and no other process, listens nowhere else, traces nobody, becomes nobody else,
//! puts nothing into a terminal, and makes itself no more dumpable and its memory no more swappable. A service manager can do more (packaging/systemd); this holds wherever the agent is started from.
//!
//! Everything else is allowed: what is denied here is denied for good reason, and a list of all that a resolver, an allocator or a
//! kernel to come may need would fail at the wrong moment. A denied call fails with EPERM, so that its caller says what it wanted.
//!
//! What it does not hold: a filter sees numbers, not paths, so with CAP_SYS_PTRACE, which attestation needs, /proc/PID/mem of other
//! users' processes can be opened still.
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
    seccompiler::apply_filter_all_threads(&without_clone3()?)?;
    Ok(seccompiler::apply_filter_all_threads(&program()?)?)
}

/// clone3(2) has its flags in memory, where no filter looks. As if the kernel were older than it (5.3), the C library takes clone(2).
fn without_clone3() -> Result<BpfProgram, LockdownError> {
    let rules = also_as_x32(libc::SYS_clone3).into_iter().map(|number| (number, vec![])).collect();
    let unknown = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    Ok(SeccompFilter::new(rules, SeccompAction::Allow, unknown, std::env::consts::ARCH.try_into()?)?
        .try_into()?)
}

fn program() -> Result<BpfProgram, LockdownError> {
    let mut rules = narrowed()?;
    for number in NEVER.iter().flat_map(|number| also_as_x32(*number)) {
        rules.insert(number, vec![]);
    }
    // Threads only: a child that is no thread would have the keys and none of the tasks that look after them.
    for number in also_as_x32(libc::SYS_clone) {
        let whole = is(0, libc::CLONE_THREAD as u64, 0)?;
        rules.entry(number).or_default().push(SeccompRule::new(vec![whole])?);
    }
    filter(rules)
}

/// The calls of which only some are ever made.
fn narrowed() -> Result<BTreeMap<i64, Vec<SeccompRule>>, LockdownError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    // prctl(PR_SET_DUMPABLE, anything but 0): KEY-02.
    let conditions = vec![
        SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, libc::PR_SET_DUMPABLE as u64)?,
        SeccompCondition::new(1, SeccompCmpArgLen::Qword, SeccompCmpOp::Ne, 0)?,
    ];
    for number in also_as_x32(libc::SYS_prctl) {
        rules.insert(number, vec![SeccompRule::new(conditions.clone())?]);
    }
    // Into no namespace but one of time, which shows no other world and lets nobody in: a host that sleeps is tested by one.
    let other = SeccompCondition::new(1, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, CLONE_NEWTIME)?;
    for number in also_as_x32(libc::SYS_setns) {
        rules.insert(number, vec![SeccompRule::new(vec![other.clone()])?]);
    }
    // Nor is one made on the way to a thread. Time has no flag here: its bit is part of the signal at the end.
    for number in also_as_x32(libc::SYS_clone) {
        let flags = WORLDS.iter().map(|flag| Ok(SeccompRule::new(vec![is(0, *flag as u64, *flag as u64)?])?));
        rules.insert(number, flags.collect::<Result<_, LockdownError>>()?);
    }
    // Words put into a terminal are the next command of whoever sits there (ioctl_tty(2)).
    for number in also_as_x32(libc::SYS_ioctl) {
        let told = |request: u64| {
            let asked = SeccompCondition::new(1, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, request)?;
            Ok(SeccompRule::new(vec![asked])?)
        };
        rules.insert(
            number,
            [TIOCSTI, TIOCLINUX].into_iter().map(told).collect::<Result<_, LockdownError>>()?,
        );
    }
    Ok(rules)
}

/// Whether these bits of an argument are these.
fn is(argument: u8, mask: u64, value: u64) -> Result<SeccompCondition, LockdownError> {
    Ok(SeccompCondition::new(argument, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(mask), value)?)
}

fn filter(rules: BTreeMap<i64, Vec<SeccompRule>>) -> Result<BpfProgram, LockdownError> {
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

/// The namespaces that clone(2) makes.
const WORLDS: [libc::c_int; 7] = [
    libc::CLONE_NEWNS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
];

/// Puts a byte into a terminal as if somebody had typed it, and does the same with what is selected on a console (ioctl_tty(2)).
const TIOCSTI: u64 = 0x5412;
const TIOCLINUX: u64 = 0x541C;

/// What the agent never does.
const NEVER: &[i64] = &[
    // Start a program.
    libc::SYS_execve,
    libc::SYS_execveat,
    // Or another process.
    #[cfg(target_arch = "x86_64")]
    libc::SYS_fork,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_vfork,
    // Let go of memory that is locked (memory.rs).
    libc::SYS_mlock,
    libc::SYS_mlock2,
    libc::SYS_mlockall,
    libc::SYS_munlock,
    libc::SYS_munlockall,
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
    use std::{
        io,
        os::unix::net::UnixListener,
        process::{Command, Stdio},
        thread,
    };

    use super::*;

    #[test]
    fn whoever_takes_the_agent_over_starts_nothing_and_listens_nowhere() {
        // KEY-02, S11: in a thread, which keeps it to itself.
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("socket");
        thread::spawn(move || {
            assert!(Command::new("true").status().unwrap().success());
            seccompiler::apply_filter(&without_clone3().unwrap()).unwrap();
            seccompiler::apply_filter(&program().unwrap()).unwrap();
            let denied = |what: &str, error: io::Error| {
                assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{what}: {error}");
            };
            denied("execve", nix::unistd::execv(c"/bin/true", &[c"true"]).unwrap_err().into());
            denied("another process", Command::new("true").status().unwrap_err());
            denied("listen", UnixListener::bind(socket).unwrap_err());
            let raised = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::Dumpable);
            denied("prctl", raised.unwrap_err().into());
            denied("munlockall", rustix::mm::munlockall().unwrap_err().into());
            // What it lives on.
            assert!(std::fs::read_to_string("/proc/thread-self/status").unwrap().contains("Seccomp:\t2"));
            thread::spawn(|| ()).join().unwrap();
        })
        .join()
        .unwrap();
    }

    #[test]
    fn no_namespace_is_made_by_the_way_and_nothing_put_into_a_terminal() {
        // KEY-02, S11: as another program sees it that a thread starts which has given up all but starting programs.
        fn perl(script: &str) -> String {
            let script = format!("$! = 0; my $r = {script}; print $! + 0; POSIX::_exit(0)");
            let mut perl = Command::new("perl");
            let output =
                perl.args(["-MPOSIX", "-e", &format!("$| = 1; {script}")]).stdin(Stdio::null()).output();
            String::from_utf8(output.unwrap().stdout).unwrap()
        }
        if Command::new("perl").arg("-v").output().is_err() {
            println!(
                "SKIPPED no_namespace_is_made_by_the_way_and_nothing_put_into_a_terminal: perl is not here"
            );
            return;
        }
        let clone3 = || perl(&format!("syscall({}, 0, 0)", libc::SYS_clone3));
        let terminal = || perl(&format!("syscall({}, 0, {TIOCSTI}, my $x = 'x')", libc::SYS_ioctl));
        // With CLONE_THREAD and nothing that has to go with it, the kernel itself says that the argument is wrong.
        let world = |flag: libc::c_int| {
            perl(&format!("syscall({}, {}, 0, 0, 0, 0)", libc::SYS_clone, flag | libc::CLONE_THREAD))
        };
        thread::spawn(move || {
            assert_ne!(clone3(), libc::ENOSYS.to_string(), "this kernel has it");
            assert_ne!(terminal(), libc::EPERM.to_string());
            assert!(WORLDS.iter().all(|flag| world(*flag) == libc::EINVAL.to_string()));
            seccompiler::apply_filter(&without_clone3().unwrap()).unwrap();
            seccompiler::apply_filter(&filter(narrowed().unwrap()).unwrap()).unwrap();
            assert_eq!(clone3(), libc::ENOSYS.to_string());
            assert_eq!(terminal(), libc::EPERM.to_string());
            for flag in WORLDS {
                assert_eq!(world(flag), libc::EPERM.to_string(), "{flag:#x}");
            }
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

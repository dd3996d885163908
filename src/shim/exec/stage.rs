//! The last steps before a supervised program, in its own process: what can only be set there. In go the supervisor's pid and the
//! signals that it had blocked; nothing comes out, for the process becomes the program. It is a start of this same binary, because
//! what runs between fork(2) and execve(2) in a process of a runtime would be unsafe code.

use std::ffi::{OsStr, OsString};

use nix::sys::signal::{SigSet, Signal};
use rustix::process::{Pid, getppid, set_parent_process_death_signal};

use super::{ExecError, environment::Environment, handover};

/// The name of the hidden command.
pub const COMMAND: &str = "exec-stage";

/// Its arguments, up to the program's.
pub fn arguments(supervisor: Pid, unblock: &[i32]) -> Vec<OsString> {
    let mut arguments = vec![COMMAND.to_owned(), format!("--supervisor={}", supervisor.as_raw_nonzero())];
    arguments.extend(unblock.iter().map(|number| format!("--unblock={number}")));
    arguments.push("--".to_owned());
    arguments.into_iter().map(OsString::from).collect()
}

/// Becomes the program, which ends when its supervisor is killed.
pub fn become_program(
    supervisor: i32,
    unblock: &[i32],
    program: &OsStr,
    arguments: &[OsString],
    mut environment: Environment,
) -> ExecError {
    // Kept across the execve(2) that follows, but for a program that changes its user (prctl(2)).
    if let Err(error) = set_parent_process_death_signal(Some(rustix::process::Signal::TERM)) {
        return ExecError::Io(error.into());
    }
    // It may have been killed before that.
    if getppid().map(|pid| pid.as_raw_nonzero().get()) != Some(supervisor) {
        return ExecError::Orphaned;
    }
    let mut mask = SigSet::empty();
    unblock.iter().filter_map(|number| Signal::try_from(*number).ok()).for_each(|signal| mask.add(signal));
    if let Err(error) = mask.thread_unblock() {
        return ExecError::Io(error.into());
    }
    readdress(&mut environment, supervisor, std::process::id());
    handover::become_program(program, arguments, environment)
}

/// What the service manager passed to its main process, by pid: sockets and the watchdog. Both are the program's.
fn readdress(environment: &mut Environment, from: i32, to: u32) {
    for name in ["LISTEN_PID", "WATCHDOG_PID"] {
        if let Some(pid) = environment.get_mut(OsStr::new(name)).filter(|pid| **pid == *from.to_string()) {
            *pid = to.to_string().into();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_of_the_service_manager_are_passed_on_to_the_program_they_were_for() {
        let pairs = [("LISTEN_PID", "7"), ("LISTEN_FDS", "7"), ("WATCHDOG_PID", "8")];
        let mut environment: Environment =
            pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        readdress(&mut environment, 7, 9);
        let values: Vec<&OsStr> = environment.values().map(OsString::as_os_str).collect();
        assert_eq!(values, ["7", "9", "8"]);
    }
}

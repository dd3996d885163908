//! Keeps what this process was given out of cores. In goes nothing, or where the agent listens; out comes a process that leaves none
//! behind when it crashes (KEY-02).

use std::{os::unix::fs::MetadataExt as _, path::Path};

use rustix::process::{DumpableBehavior, Resource, Rlimit, geteuid, set_dumpable_behavior, setrlimit};

/// No core, and nothing of this process for others of its user: for one that asks nobody for anything any more.
pub fn leave_no_core() {
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    // Lowering a limit is allowed to everybody, and so is being less dumpable.
    let _ = setrlimit(Resource::Core, none);
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
}

/// The same for one that goes on asking the agent at `socket`, which has to look at it each time. An agent of another user can do
/// that only with CAP_SYS_PTRACE, and then dumpable or not is the same to it. One of our own user may have no such privilege, and
/// would take us for less than we are: to that one we stay open, and only leave no core.
pub fn leave_no_core_beside(socket: &Path) {
    let other = std::fs::metadata(socket).is_ok_and(|meta| meta.uid() != geteuid().as_raw());
    if other {
        return leave_no_core();
    }
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
}

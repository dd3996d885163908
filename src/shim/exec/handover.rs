//! Hand-over: this process becomes the program. In go a program and its environment; nothing comes out, unless it could not be run.
//! From then on process id, terminal, signals and exit status are between the program and the kernel, and what was given to
//! this process alone lives as long as the program, because it is the same process. Every descriptor of ours closes with it (they
//! are all made close-on-exec), and what whoever started us left open, ignored or blocked is as it was, but for SIGPIPE: a Rust
//! program begins by ignoring it, so nobody can say what it was, and the program gets the default.

use std::{
    ffi::{OsStr, OsString},
    os::unix::process::CommandExt as _,
    process::Command,
};

use super::{ExecError, environment::Environment};

/// Becomes the program, which is looked for along its own PATH.
pub fn become_program(program: &OsStr, arguments: &[OsString], environment: Environment) -> ExecError {
    // `Command` sets SIGPIPE back to its default and passes the mask of signals on.
    let error = Command::new(program).args(arguments).env_clear().envs(environment).exec();
    ExecError::cannot_run(program, error)
}

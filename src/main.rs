//! The door: argv to a command, a command's result to an exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    keybearer::cli::main()
}

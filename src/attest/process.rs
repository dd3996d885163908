//! What /proc says about one process.

use super::AttestError;

/// When the process started, in clock ticks since boot (field 22 of proc_pid_stat(5)).
pub(super) fn start_time(pid: u32) -> Result<u64, AttestError> {
    let text = std::fs::read(format!("/proc/{pid}/stat")).map_err(|_| AttestError::PeerExited)?;
    parse_start_time(&text).ok_or(AttestError::Proc { file: "stat", what: "no start time".into() })
}

fn parse_start_time(stat: &[u8]) -> Option<u64> {
    // The command name may hold anything, blanks and parentheses included: the fields begin after the last one.
    let after = stat.iter().rposition(|byte| *byte == b')')? + 1;
    let fields = std::str::from_utf8(stat.get(after..)?).ok()?;
    fields.split_ascii_whitespace().nth(19)?.parse().ok()
}

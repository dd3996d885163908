//! `--env-file` of docker and podman (docker/cli, pkg/kvfile). In goes a value; out comes `NAME=VALUE`, without quotes: they would be
//! part of the value. There are no escapes, so a value with a line break cannot be carried. One that begins with a quote is carried
//! by docker as it is, but there have been versions, and there are readers of the same files, that take quotes away: refused.
//! White space at either end of a value is kept, and `#` begins a comment only at the beginning of a line, where a name stands.

use super::Trouble;

/// A line is read into a buffer of 64 KiB, with its end (bufio.MaxScanTokenSize).
const LONGEST_LINE: usize = 64 * 1024 - 1;

pub(super) fn put(name: &str, value: &str, out: &mut Vec<u8>) -> Result<(), Trouble> {
    if value.contains(['\n', '\r']) {
        return Err(Trouble::LineBreak);
    }
    if value.starts_with(['"', '\'']) {
        return Err(Trouble::LeadingQuote);
    }
    if name.len() + 1 + value.len() > LONGEST_LINE {
        return Err(Trouble::TooLong(LONGEST_LINE));
    }
    out.extend(name.bytes());
    out.push(b'=');
    out.extend(value.bytes());
    out.push(b'\n');
    Ok(())
}

//! A POSIX shell, by `. FILE` (POSIX.1-2017, 2.2.2). In goes a value; out comes `export NAME='VALUE'`, and a single quote as `'\''`.
//! Within single quotes nothing means anything, so whatever is no byte 0 is carried.

use super::{Trouble, settable};

pub(super) fn put(name: &str, value: &[u8], out: &mut Vec<u8>) -> Result<(), Trouble> {
    settable(name, value)?;
    out.extend(b"export ");
    out.extend(name.bytes());
    out.push(b'=');
    put_quoted(value, out);
    out.push(b'\n');
    Ok(())
}

/// Appends `value` as one word of a shell.
pub(super) fn put_quoted(value: &[u8], out: &mut Vec<u8>) {
    out.push(b'\'');
    for (at, piece) in value.split(|byte| *byte == b'\'').enumerate() {
        if at > 0 {
            out.extend(b"'\\''");
        }
        out.extend(piece);
    }
    out.push(b'\'');
}

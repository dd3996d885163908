//! `EnvironmentFile=` of systemd (systemd.exec(5), src/basic/env-file.c). In goes a value; out comes `NAME="VALUE"`. Within double
//! quotes a backslash is taken away before `"`, `\`, `` ` `` and `$` only, line breaks stand as they are, and nothing is expanded.
//! A file with one value that is no UTF-8 is not read at all, and a variable with a noncharacter is dropped in silence: both are
//! refused here.

use super::{Trouble, put_escaped};

pub(super) fn put(name: &str, value: &str, out: &mut Vec<u8>) -> Result<(), Trouble> {
    if value.chars().any(is_noncharacter) {
        return Err(Trouble::Noncharacter);
    }
    out.extend(name.bytes());
    out.extend(b"=\"");
    put_escaped(value, b"\"\\`$", out);
    out.extend(b"\"\n");
    Ok(())
}

/// Unicode 16, 23.7: U+FDD0 to U+FDEF, and the last two of each plane.
fn is_noncharacter(c: char) -> bool {
    let code = u32::from(c);
    (0xFDD0..=0xFDEF).contains(&code) || code & 0xFFFE == 0xFFFE
}

//! JSON (RFC 8259): one object whose members are the variables. In goes a value; out comes its member. Text only: whatever is no
//! UTF-8 is refused, because every way to write it down as a string would have to be agreed on with the reader.

use super::Trouble;

pub(super) fn put(name: &str, value: &[u8], first: bool, out: &mut Vec<u8>) -> Result<(), Trouble> {
    let value = std::str::from_utf8(value).map_err(|_| Trouble::NotText)?;
    out.extend(if first { b"\n  ".as_slice() } else { b",\n  " });
    put_string(name, out);
    out.extend(b": ");
    put_string(value, out);
    Ok(())
}

/// Appends a string, escaped where it has to be.
pub(super) fn put_string(text: &str, out: &mut Vec<u8>) {
    serde_json::to_writer(out, text).expect("a text is JSON, and a Vec takes everything");
}

//! dotenv: what compose reads (compose-go, dotenv/parser.go) and what python-dotenv reads (parser.py, variables.py). In goes a value;
//! out comes a quoted form that both read as that value, or why there is none.
//!
//! Single quotes wherever they can be: within them compose takes everything as it stands, so a bcrypt hash stays one. The two differ
//! there in backslashes: python-dotenv makes one of two, compose keeps both. A carriage return is lost in Python, whose files have one
//! kind of line end. Values with these, and with a single quote, go into double quotes, where both know `\\`, `\"` and `\r`.
//!
//! Many a file of this kind is also read by a shell (`set -a; . FILE`), which is not promised, but must not be made to run anything:
//! within single quotes nothing means anything there either, and within double quotes a backtick would start a command, for which
//! compose and python-dotenv know no escape.
//!
//! Refused is what neither form carries to both. A `$` beside something that needs double quotes: compose wants `\$` there, which
//! python-dotenv leaves as it is. A backslash at the end: before a closing quote python-dotenv takes it for the quote's own, in either
//! form, and goes on into the next line that has one. And `${`: python-dotenv expands `${NAME}` within any quotes, and knows no way to
//! say that it should not.

use super::{Trouble, put_escaped};

pub(super) fn put(name: &str, value: &str, out: &mut Vec<u8>) -> Result<(), Trouble> {
    if value.contains("${") {
        return Err(Trouble::Expanded);
    }
    if value.ends_with('\\') {
        return Err(Trouble::TrailingBackslash);
    }
    let doubled = value.contains(['\'', '\r']) || value.contains("\\\\");
    if doubled && value.contains('$') {
        return Err(Trouble::DollarAndQuote);
    }
    if doubled && value.contains('`') {
        return Err(Trouble::BacktickAndQuote);
    }
    out.extend(name.bytes());
    out.push(b'=');
    if doubled {
        out.push(b'"');
        for (at, piece) in value.split('\r').enumerate() {
            if at > 0 {
                out.extend(b"\\r");
            }
            put_escaped(piece, b"\"\\", out);
        }
        out.push(b'"');
    } else {
        out.push(b'\'');
        out.extend(value.bytes());
        out.push(b'\'');
    }
    out.push(b'\n');
    Ok(())
}

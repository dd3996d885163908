//! The `:authority` of a header block, made one that h2 takes. In goes a block as it came (RFC 7541); out comes the
//! same block, with each character of the authority that an authority may not hold replaced. Clients of a Unix
//! socket put its path there, escaped or not; it means nothing here and no decision ever looks at it. The
//! replacement has the same decoded length, so both ends keep the same dynamic table.
//!
//! A block that is malformed passes unchanged: h2 refuses it better than we could.

use http::uri::Authority;

/// The static table's index of `:authority` (RFC 7541 Appendix A).
const AUTHORITY: usize = 1;

/// The block with its authority mended, or None if there is nothing to mend.
pub(super) fn mended(block: &[u8]) -> Option<Vec<u8>> {
    let mut out: Option<Vec<u8>> = None;
    let mut at = 0;
    let mut copied = 0;
    while let Some(first) = block.get(at) {
        // RFC 7541 6: which representation, and how many bits of its first byte are a number.
        let prefix = match first {
            0x80.. => {
                integer(block, &mut at, 7)?;
                continue;
            }
            0x40..0x80 => 6,
            0x20..0x40 => {
                integer(block, &mut at, 5)?;
                continue;
            }
            _ => 4,
        };
        let name = integer(block, &mut at, prefix)?;
        let is_authority = match name {
            0 => text(block, &mut at)?.decoded()? == b":authority",
            index => index == AUTHORITY,
        };
        let value_at = at;
        let value = text(block, &mut at)?;
        if !is_authority {
            continue;
        }
        let value = value.decoded()?;
        if value.is_empty() || Authority::try_from(&value[..]).is_ok() {
            continue;
        }
        let replaced: Vec<u8> = value.iter().map(|byte| if plain(*byte) { *byte } else { b'-' }).collect();
        let out = out.get_or_insert_with(|| Vec::with_capacity(block.len() + 64));
        out.extend_from_slice(&block[copied..value_at]);
        put_raw(&replaced, out);
        copied = at;
    }
    let mut out = out?;
    out.extend_from_slice(&block[copied..]);
    Some(out)
}

fn plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'.' || byte == b'-'
}

/// RFC 7541 5.1.
pub(super) fn integer(block: &[u8], at: &mut usize, prefix: u32) -> Option<usize> {
    let most = (1usize << prefix) - 1;
    let mut value = usize::from(*block.get(*at)?) & most;
    *at += 1;
    if value < most {
        return Some(value);
    }
    for shift in (0..28).step_by(7) {
        let byte = usize::from(*block.get(*at)?);
        *at += 1;
        value += (byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// RFC 7541 5.2.
pub(super) struct Text<'a> {
    huffman: bool,
    bytes: &'a [u8],
}

impl Text<'_> {
    pub(super) fn decoded(&self) -> Option<Vec<u8>> {
        if self.huffman { huffman_decoded(self.bytes) } else { Some(self.bytes.to_vec()) }
    }
}

pub(super) fn text<'a>(block: &'a [u8], at: &mut usize) -> Option<Text<'a>> {
    let huffman = block.get(*at)? & 0x80 != 0;
    let length = integer(block, at, 7)?;
    let bytes = block.get(*at..at.checked_add(length)?)?;
    *at += length;
    Some(Text { huffman, bytes })
}

fn put_raw(bytes: &[u8], out: &mut Vec<u8>) {
    let mut length = bytes.len();
    if length < 0x7f {
        out.push(length as u8);
    } else {
        out.push(0x7f);
        length -= 0x7f;
        while length >= 0x80 {
            out.push((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        out.push(length as u8);
    }
    out.extend_from_slice(bytes);
}

/// The code lengths of RFC 7541 Appendix B, by symbol. The code is canonical: codes of one length are consecutive in
/// the order of their symbols, so the lengths are the whole table.
#[rustfmt::skip]
const LENGTHS: [u8; 256] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28,
    28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6,
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5,
    6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23,
    21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25,
    19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
];

/// For each length, the first code and the symbols in order.
struct Canonical {
    first: [u32; 31],
    symbols: [Vec<u8>; 31],
}

fn canonical() -> &'static Canonical {
    static TABLE: std::sync::OnceLock<Canonical> = std::sync::OnceLock::new();
    TABLE.get_or_init(|| {
        let mut table = Canonical { first: [0; 31], symbols: std::array::from_fn(|_| vec![]) };
        for (symbol, length) in (0..=255u8).zip(LENGTHS) {
            table.symbols[usize::from(length)].push(symbol);
        }
        for length in 1..31 {
            table.first[length] = (table.first[length - 1] + table.symbols[length - 1].len() as u32) << 1;
        }
        table
    })
}

/// RFC 7541 5.2: at the end fewer than eight bits are left, all of them ones.
fn huffman_decoded(bytes: &[u8]) -> Option<Vec<u8>> {
    let table = canonical();
    let mut out = Vec::with_capacity(bytes.len() * 8 / 5);
    let (mut code, mut length) = (0u32, 0usize);
    for bit in bytes.iter().flat_map(|byte| (0..8).rev().map(move |shift| u32::from(byte >> shift & 1))) {
        code = code << 1 | bit;
        length += 1;
        if length > 30 {
            return None;
        }
        let offset = code.checked_sub(table.first[length]);
        if let Some(symbol) = offset.and_then(|offset| table.symbols[length].get(offset as usize)) {
            out.push(*symbol);
            (code, length) = (0, 0);
        }
    }
    (length < 8 && code == (1 << length) - 1).then_some(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn huffman_encoded(text: &[u8]) -> Vec<u8> {
        let table = canonical();
        let mut bits = String::new();
        for byte in text {
            let length = usize::from(LENGTHS[usize::from(*byte)]);
            let offset = table.symbols[length].iter().position(|symbol| symbol == byte).unwrap();
            bits.push_str(&format!("{:0length$b}", table.first[length] as usize + offset));
        }
        while !bits.len().is_multiple_of(8) {
            bits.push('1');
        }
        bits.as_bytes()
            .chunks(8)
            .map(|byte| u8::from_str_radix(std::str::from_utf8(byte).unwrap(), 2).unwrap())
            .collect()
    }

    #[test]
    fn the_derived_code_is_that_of_the_rfc() {
        // RFC 7541 C.4.1, C.4.2 and C.6.1.
        let hex = |text: &str| {
            (0..text.len())
                .step_by(2)
                .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
                .collect::<Vec<_>>()
        };
        for (code, text) in [
            ("f1e3c2e5f23a6ba0ab90f4ff", "www.example.com"),
            ("a8eb10649cbf", "no-cache"),
            ("d07abe941054d444a8200595040b8166e082a62d1bff", "Mon, 21 Oct 2013 20:13:21 GMT"),
        ] {
            assert_eq!(huffman_decoded(&hex(code)).unwrap(), text.as_bytes());
            assert_eq!(huffman_encoded(text.as_bytes()), hex(code));
        }
        assert_eq!(huffman_decoded(&[0xff]), None, "eight bits of padding");
        assert_eq!(huffman_decoded(&[0b0000_0000]), None, "padding with zeros");
    }

    /// A literal with incremental indexing: `:authority` by index, then `x: y`.
    fn block(value: &[u8], huffman: bool) -> Vec<u8> {
        let mut block = vec![0x82, 0x41];
        let coded = if huffman { huffman_encoded(value) } else { value.to_vec() };
        let at = block.len();
        put_raw(&coded, &mut block);
        if huffman {
            block[at] |= 0x80;
        }
        block.extend(b"\x40\x01x\x01y");
        block
    }

    #[test]
    fn paths_become_authorities_of_the_same_length() {
        for path in ["run%2Fkeybearer%2Fagent.sock", "/var/run/x.sock", "%2Ftmp%2Fa", "a b"] {
            for huffman in [false, true] {
                let mended = mended(&block(path.as_bytes(), huffman)).unwrap();
                let mut at = 2;
                let value = text(&mended, &mut at).unwrap().decoded().unwrap();
                assert_eq!(value.len(), path.len());
                assert!(Authority::try_from(&value[..]).is_ok());
                assert!(mended.ends_with(b"\x40\x01x\x01y"));
            }
        }
    }

    #[test]
    fn what_needs_no_mending_is_left_alone() {
        for good in ["localhost", "127.0.0.1:50051", "[::1]:80", ""] {
            assert_eq!(mended(&block(good.as_bytes(), false)), None, "{good}");
        }
        // The same value under another name.
        assert_eq!(mended(b"\x40\x04path\x04/a/b"), None);
        // Malformed: h2's to refuse.
        for broken in [&b"\x41"[..], b"\x41\x05ab", b"\x7f\xff\xff\xff\xff\xff", b"\x41\x81\x00"] {
            assert_eq!(mended(broken), None);
        }
    }

    #[test]
    fn a_name_in_letters_is_known_too() {
        let mended = mended(b"\x10\x0a:authority\x04/a/b").unwrap();
        assert_eq!(mended, b"\x10\x0a:authority\x04-a-b");
    }

    proptest! {
        #[test]
        fn no_block_makes_it_panic_and_mending_once_is_enough(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Some(once) = mended(&bytes) {
                prop_assert_eq!(mended(&once), None);
            }
        }

        #[test]
        fn huffman_round_trips(text in prop::collection::vec(any::<u8>(), 0..64)) {
            prop_assert_eq!(huffman_decoded(&huffman_encoded(&text)), Some(text));
        }
    }
}

//! What an operator pins of an issuer's metadata (OA-05). In goes the issuer's table; out come its [`Pins`].

use super::reader::{Reader, parse_sha256};
use crate::issuer::oauth::{OnChange, Pins};

/// What is pinned of an issuer's metadata.
pub(super) fn pins(reader: &mut Reader<'_>) -> Pins {
    let document = reader.string("metadata_pin").and_then(|text| {
        let sum = text.strip_prefix("sha256:").and_then(parse_sha256);
        if sum.is_none() {
            reader.wrong(
                "metadata_pin",
                "it has to be \"sha256:\" and 64 hexadecimal digits, as sha256sum prints them",
            );
        }
        sum
    });
    let words = [("warn", OnChange::Warn), ("strict", OnChange::Strict)];
    Pins {
        document,
        endpoints: reader.texts("endpoint_pins").into_iter().collect(),
        on_change: reader.word("metadata_change", OnChange::Warn, &words),
    }
}

//! What must hold of anything that an EST server sends.

use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::{
    csrattrs,
    pkcs7::{self, MOST},
};

/// Certificates come out byte for byte as they are in there, not more than a few, and the same however the answer was encoded;
/// what cannot be read is told in words that may be logged.
pub fn est(bytes: &[u8]) {
    let read = pkcs7::certificates(bytes);
    let der = pkcs7::decoded(bytes);
    match &read {
        Ok(found) => {
            assert!((1..=MOST).contains(&found.len()));
            let der = der.as_ref().expect("what was read could be decoded");
            for one in found {
                assert!(
                    one.first() == Some(&0x30) && der.windows(one.len()).any(|part| part == one.as_ref())
                );
            }
        }
        Err(error) => assert!(error.to_string().bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic())),
    }
    let kind = csrattrs::key_kind(bytes);
    if let Ok(der) = der
        && der.first() == Some(&0x30)
    {
        let text = STANDARD.encode(&der);
        let lines: Vec<u8> = text.as_bytes().chunks(64).flat_map(|line| [line, b"\r\n"].concat()).collect();
        for again in [der, text.into_bytes(), lines] {
            assert_eq!(pkcs7::certificates(&again), read);
            assert_eq!(csrattrs::key_kind(&again), kind);
        }
    }
}

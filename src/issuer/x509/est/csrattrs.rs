//! What an EST server wants to see in a request (RFC 7030 4.5.2, RFC 9908). In goes its answer; out comes the one thing that is
//! honoured: the kind of the key. Names and extensions that it asks for are not the server's to choose: a request says what
//! policy says, and nothing else (X5-01). Whatever is unknown is passed over (EST-04).

use x509_parser::asn1_rs::{Any, Class, Tag};

use super::pkcs7::{Fields, Unreadable, decoded, is, one, sequence};
use crate::keys::KeyKind;

/// id-ecPublicKey, 1.2.840.10045.2.1.
const EC: [u8; 7] = [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
/// secp256r1, 1.2.840.10045.3.1.7.
const P256: [u8; 8] = [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
/// secp384r1, 1.3.132.0.34.
const P384: [u8; 5] = [0x2b, 0x81, 0x04, 0x00, 0x22];
/// id-Ed25519, 1.3.101.112.
const ED25519: [u8; 3] = [0x2b, 0x65, 0x70];
/// id-aa-certificationRequestInfoTemplate, 1.2.840.113549.1.9.16.2.61 (RFC 9908 3.4).
const TEMPLATE: [u8; 11] = [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x10, 0x02, 0x3d];

/// So many of them are looked at.
const MOST: usize = 256;

/// The kind of key that `body` asks for, if it asks for one that is made here. A template counts more than what stands beside it.
pub(super) fn key_kind(body: &[u8]) -> Result<Option<KeyKind>, Unreadable> {
    let der = decoded(body)?;
    let mut wanted = Fields(sequence(one(&der)?)?);
    let mut kind = None;
    for _ in 0..MOST {
        let Some(wish) = wanted.next()? else { return Ok(kind) };
        if is(&wish, Class::Universal, Tag::Oid) {
            kind = kind.or(named(wish.data));
            continue;
        }
        let mut attribute = Fields(sequence(wish)?);
        let name =
            attribute.next()?.filter(|name| is(name, Class::Universal, Tag::Oid)).ok_or(Unreadable::Form)?;
        let values = attribute.next()?.filter(|values| is(values, Class::Universal, Tag::Set));
        let Some(values) = values else { continue };
        if name.data == TEMPLATE {
            if let Some(kind) = of_template(one(values.data)?)? {
                return Ok(Some(kind));
            }
        } else if name.data == EC {
            let curve = Fields(values.data).next()?.filter(|curve| is(curve, Class::Universal, Tag::Oid));
            kind = kind.or(curve.and_then(|curve| named(curve.data)));
        }
    }
    Err(Unreadable::TooMany)
}

/// CertificationRequestInfoTemplate: version, subject, `[0]` the algorithm of the key, `[1]` attributes.
fn of_template(template: Any<'_>) -> Result<Option<KeyKind>, Unreadable> {
    let mut fields = Fields(sequence(template)?);
    while let Some(field) = fields.next()? {
        if is(&field, Class::ContextSpecific, Tag(0)) {
            let algorithm = Fields(field.data).next()?.ok_or(Unreadable::Form)?;
            let mut algorithm = Fields(sequence(algorithm)?);
            let name = algorithm
                .next()?
                .filter(|name| is(name, Class::Universal, Tag::Oid))
                .ok_or(Unreadable::Form)?;
            if name.data != EC {
                return Ok(named(name.data));
            }
            let curve = algorithm.next()?.filter(|curve| is(curve, Class::Universal, Tag::Oid));
            return Ok(curve.and_then(|curve| named(curve.data)));
        }
    }
    Ok(None)
}

fn named(oid: &[u8]) -> Option<KeyKind> {
    match oid {
        oid if oid == P256 => Some(KeyKind::P256),
        oid if oid == P384 => Some(KeyKind::P384),
        oid if oid == ED25519 => Some(KeyKind::Ed25519),
        _ => None,
    }
}

//! A certs-only PKCS#7 (RFC 5652, RFC 7030 4.1.3), as EST servers send certificates. In go the bytes of an answer; out come the
//! certificates in it as they came, or what is wrong with it. Nothing is verified: what such a message carries is doubted like
//! certificates that came any other way.
//!
//! BER is read and not only DER, because CAs that are written in Java send lengths that are not known beforehand. The certificates
//! in it are cut out byte for byte: whoever wrote them anew would break their signatures.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rustls_pki_types::CertificateDer;
use x509_parser::asn1_rs::{Any, Class, FromBer as _, Tag};

/// id-signedData (RFC 5652 5.1), 1.2.840.113549.1.7.2.
const SIGNED_DATA: [u8; 9] = [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x02];

/// So many certificates are in one at most: a CA with all its intermediates has fewer.
pub(super) const MOST: usize = 32;

/// What is wrong with an answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum Unreadable {
    #[error("it is neither base64 nor DER (RFC 8951 3)")]
    Encoding,
    #[error("it is cut off, or no ASN.1 of the form it should have")]
    Form,
    #[error("it is PKCS#7, but not SignedData (RFC 7030 4.2.3)")]
    NotSignedData,
    #[error("it holds no certificate")]
    Empty,
    #[error("it holds more than 32 certificates")]
    TooMany,
    #[error("it holds something beside X.509 certificates")]
    Foreign,
    #[error("it holds revocation lists, and was asked for certificates only")]
    Crls,
    #[error("something stands behind its end")]
    Trailing,
}

/// The certificates in `body`, in the order they have there.
pub(super) fn certificates(body: &[u8]) -> Result<Vec<CertificateDer<'static>>, Unreadable> {
    let der = decoded(body)?;
    let content_info = sequence(one(&der)?)?;
    let mut fields = Fields(content_info);
    let kind =
        fields.next()?.filter(|field| is(field, Class::Universal, Tag::Oid)).ok_or(Unreadable::Form)?;
    if kind.data != SIGNED_DATA {
        return Err(Unreadable::NotSignedData);
    }
    let content = fields.next()?.filter(|field| is(field, Class::ContextSpecific, Tag(0)));
    let signed_data = sequence(one(content.ok_or(Unreadable::Form)?.data)?)?;
    fields.end()?;

    // version, digestAlgorithms, encapContentInfo, certificates [0], crls [1], signerInfos
    let mut fields = Fields(signed_data);
    for tag in [Tag::Integer, Tag::Set, Tag::Sequence] {
        fields.next()?.filter(|field| is(field, Class::Universal, tag)).ok_or(Unreadable::Form)?;
    }
    let mut found = Vec::new();
    let mut field = fields.next()?;
    if let Some(set) = field.take_if(|field| is(field, Class::ContextSpecific, Tag(0))) {
        found = listed(set.data)?;
        field = fields.next()?;
    }
    if let Some(crls) = field.take_if(|field| is(field, Class::ContextSpecific, Tag(1))) {
        // Some libraries write an empty list of them.
        if !crls.data.is_empty() {
            return Err(Unreadable::Crls);
        }
        field = fields.next()?;
    }
    field.filter(|field| is(field, Class::Universal, Tag::Set)).ok_or(Unreadable::Form)?;
    fields.end()?;
    if found.is_empty() { Err(Unreadable::Empty) } else { Ok(found) }
}

/// The body without its base64, wrapped into lines or not; or as it is, where a server sends DER (RFC 8951 3).
pub(super) fn decoded(body: &[u8]) -> Result<Vec<u8>, Unreadable> {
    // A SEQUENCE begins with 0x30, and base64 of one with an M.
    if body.first() == Some(&0x30) {
        return Ok(body.to_vec());
    }
    let text: Vec<u8> = body.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect();
    STANDARD.decode(text).map_err(|_| Unreadable::Encoding)
}

fn listed(mut set: &[u8]) -> Result<Vec<CertificateDer<'static>>, Unreadable> {
    let mut found = Vec::new();
    while !set.is_empty() {
        if found.len() == MOST {
            return Err(Unreadable::TooMany);
        }
        let (rest, choice) = Any::from_ber(set).map_err(|_| Unreadable::Form)?;
        if !is(&choice, Class::Universal, Tag::Sequence) {
            return Err(Unreadable::Foreign);
        }
        found.push(CertificateDer::from(set[..set.len() - rest.len()].to_vec()));
        set = rest;
    }
    Ok(found)
}

/// The fields of a SEQUENCE, one after the other.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    /// The next one; none at the end.
    pub(super) fn next(&mut self) -> Result<Option<Any<'a>>, Unreadable> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let (rest, field) = Any::from_ber(self.0).map_err(|_| Unreadable::Form)?;
        self.0 = rest;
        Ok(Some(field))
    }

    fn end(&self) -> Result<(), Unreadable> {
        if self.0.is_empty() { Ok(()) } else { Err(Unreadable::Trailing) }
    }
}

/// The one thing that `bytes` are.
pub(super) fn one(bytes: &[u8]) -> Result<Any<'_>, Unreadable> {
    let (rest, one) = Any::from_ber(bytes).map_err(|_| Unreadable::Form)?;
    if rest.is_empty() { Ok(one) } else { Err(Unreadable::Trailing) }
}

pub(super) fn sequence(any: Any<'_>) -> Result<&[u8], Unreadable> {
    if is(&any, Class::Universal, Tag::Sequence) { Ok(any.data) } else { Err(Unreadable::Form) }
}

pub(super) fn is(any: &Any<'_>, class: Class, tag: Tag) -> bool {
    any.class() == class && any.tag() == tag
}

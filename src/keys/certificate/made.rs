//! A certificate that an identity signs for itself (RFC 8705 2.2): P-256, a fixed subject, for clients only. In go a name
//! and a moment; out come a key and a certificate, and both in one file, so that they never part.

use std::{path::Path, time::Duration};

use jiff::Timestamp;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, SanType, SerialNumber, date_time_ymd,
};
use ring::digest;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer, pem::PemObject as _};

use super::{CertificateSettings, ClientCertificate};
use crate::{
    jose::Algorithm,
    keys::{FileError, Key, file, vault::Slot},
    secret::Secret,
};

/// How far back it begins, so that a server whose clock is a little behind takes it.
const BACKDATE: Duration = Duration::from_secs(5 * 60);

/// A key and its certificate.
pub(super) struct Made {
    /// None if it is sealed and only the certificate is wanted.
    pub(super) pkcs8: Option<Secret>,
    pub(super) chain: Vec<CertificateDer<'static>>,
}

impl Made {
    /// Makes both.
    pub(super) fn now(
        identity: &str,
        settings: &CertificateSettings,
        now: Timestamp,
    ) -> Result<Self, FileError> {
        let pkcs8 = Key::generate_pkcs8(Algorithm::Es256)?;
        let key = PrivatePkcs8KeyDer::from(pkcs8.expose());
        let pair = KeyPair::from_pkcs8_der_and_sign_algo(&key, &PKCS_ECDSA_P256_SHA256)
            .map_err(|_| FileError::Unusable)?;
        let mut subject = DistinguishedName::new();
        // Never of user input (MT-04): the identity's name is checked where settings are read.
        subject.push(DnType::CommonName, identity);
        let mut params = CertificateParams::default();
        params.distinguished_name = subject;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if let Some(uri) = &settings.san_uri {
            let uri = uri.as_str().try_into().map_err(|_| FileError::Certificate {
                place: "san_uri".into(),
                what: "it is not ASCII: write it percent-encoded (RFC 3986)".into(),
            })?;
            params.subject_alt_names = vec![SanType::URI(uri)];
        }
        let epoch = date_time_ymd(1970, 1, 1);
        let begun = Duration::from_secs(now.as_second().max(0).cast_unsigned()).saturating_sub(BACKDATE);
        params.not_before = epoch + begun;
        params.not_after = epoch + begun + settings.lifetime;
        params.serial_number = Some(serial(&pair, begun));
        let certificate = params.self_signed(&pair).map_err(|_| FileError::Unusable)?;
        Ok(Self { pkcs8: Some(pkcs8), chain: vec![certificate.der().clone()] })
    }

    /// These.
    pub(super) fn of(pkcs8: &Secret, chain: &[CertificateDer<'static>]) -> Self {
        Self { pkcs8: Some(Secret::new(pkcs8.expose())), chain: chain.to_vec() }
    }

    /// The key alone; none if it is sealed and cannot be opened here.
    pub(super) fn into_key(self) -> Option<Secret> {
        self.pkcs8
    }

    /// Reads both from one file of mode 0600.
    pub(super) fn read(path: &Path, slot: Slot<'_>) -> Result<Self, FileError> {
        let found = file::read_keeping(path, slot, |found| Ok(shown(&chain(path, &found.open)?)))?;
        Ok(Self { chain: chain(path, &found.open)?, pkcs8: found.pkcs8 })
    }

    /// Writes both into one new file.
    pub(super) fn write(&self, path: &Path, slot: Slot<'_>) -> Result<(), FileError> {
        let pkcs8 = self.pkcs8.as_ref().ok_or_else(|| FileError::NoSealingKey { path: path.into() })?;
        file::write_private(path, &slot.text(path, pkcs8, &shown(&self.chain))?)
    }

    pub(super) fn certificate(self, place: &str, keep: bool) -> Result<ClientCertificate, FileError> {
        match &self.pkcs8 {
            Some(pkcs8) => ClientCertificate::new(self.chain, pkcs8, place, keep),
            None => ClientCertificate::without_key(self.chain, place),
        }
    }
}

/// The certificates in PEM.
fn shown(chain: &[CertificateDer<'_>]) -> String {
    chain.iter().map(|one| file::pem("CERTIFICATE", one).to_string()).collect()
}

/// The certificates in a PEM file.
pub(super) fn chain(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, FileError> {
    let unreadable = |_| FileError::Certificate {
        place: path.display().to_string(),
        what: "it is no PEM file of certificates: each begins with BEGIN CERTIFICATE".into(),
    };
    CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(unreadable)
}

/// A serial number that no other certificate of this key has (RFC 5280 4.1.2.2): positive, 16 bytes.
fn serial(pair: &KeyPair, begun: Duration) -> SerialNumber {
    let unique = [pair.public_key_raw(), &begun.as_secs().to_be_bytes()].concat();
    let mut bytes = digest::digest(&digest::SHA256, &unique).as_ref()[..16].to_vec();
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    SerialNumber::from_slice(&bytes)
}

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
use zeroize::Zeroizing;

use super::{CertificateSettings, ClientCertificate};
use crate::{
    jose::Algorithm,
    keys::{FileError, Key, file},
    secret::Secret,
};

/// How far back it begins, so that a server whose clock is a little behind takes it.
const BACKDATE: Duration = Duration::from_secs(5 * 60);

/// A key and its certificate.
pub(super) struct Made {
    pkcs8: Secret,
    chain: Vec<CertificateDer<'static>>,
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
        Ok(Self { pkcs8, chain: vec![certificate.der().clone()] })
    }

    /// These.
    pub(super) fn of(pkcs8: &Secret, chain: &[CertificateDer<'static>]) -> Self {
        Self { pkcs8: Secret::new(pkcs8.expose()), chain: chain.to_vec() }
    }

    /// The key alone.
    pub(super) fn into_key(self) -> Secret {
        self.pkcs8
    }

    /// Reads both from one file of mode 0600.
    pub(super) fn read(path: &Path) -> Result<Self, FileError> {
        let pem = file::read_private(path)?;
        let key = PrivatePkcs8KeyDer::from_pem_slice(&pem)
            .map_err(|_| FileError::NotPkcs8 { path: path.into() })?;
        Ok(Self { pkcs8: Secret::new(key.secret_pkcs8_der()), chain: chain(path, &pem)? })
    }

    /// Writes both into one new file.
    pub(super) fn write(&self, path: &Path) -> Result<(), FileError> {
        let mut pem = file::pem("PRIVATE KEY", self.pkcs8.expose());
        for one in &self.chain {
            let certificate = file::pem("CERTIFICATE", one);
            // A string that grows leaves a copy of the key behind.
            let mut longer = Zeroizing::new(String::with_capacity(pem.len() + certificate.len()));
            longer.extend([pem.as_str(), certificate.as_str()]);
            pem = longer;
        }
        file::write_private(path, &pem)
    }

    pub(super) fn certificate(self, place: &str, keep: bool) -> Result<ClientCertificate, FileError> {
        ClientCertificate::new(self.chain, &self.pkcs8, place, keep)
    }
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

//! A key that is to be certified by a CA (RFC 2986). In goes what the certificate is to say; out comes a request for it, then
//! the certificate, once a chain comes back that is for this key. What is kept over a restart is one file with key and chain
//! in it, replaced in one step, so that no reader ever sees a key beside another key's certificate (X5-06).

use std::{
    fmt, fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, SanType, SignatureAlgorithm,
};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};

use super::{ClientCertificate, made::Made};
use crate::{
    keys::{CREDENTIAL_CERTIFICATE, FileError, Vault, file, settled, vault::Slot},
    secret::Secret,
};

/// What a certificate is to say about its holder (X5-01): these names and no other.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Subject {
    /// URIs, such as a SPIFFE ID.
    pub uris: Vec<String>,
    /// DNS names, without wildcards.
    pub dns: Vec<String>,
    /// Addresses.
    pub ips: Vec<IpAddr>,
    /// A common name that the operator fixed; without it the subject is empty.
    pub common_name: Option<String>,
    /// Whether it may be shown by servers too.
    pub server: bool,
}

/// The kinds of keys that are made for certificates.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub enum KeyKind {
    /// P-256, which every CA signs.
    #[default]
    P256,
    /// P-384.
    P384,
    /// Ed25519.
    Ed25519,
}

impl KeyKind {
    fn algorithm(self) -> &'static SignatureAlgorithm {
        match self {
            Self::P256 => &PKCS_ECDSA_P256_SHA256,
            Self::P384 => &PKCS_ECDSA_P384_SHA384,
            Self::Ed25519 => &PKCS_ED25519,
        }
    }
}

/// A key and the request to certify it.
pub struct Enrolment {
    subject: Subject,
    pkcs8: Secret,
    csr: Vec<u8>,
}

impl Enrolment {
    /// Makes a fresh key, and a request for `subject` (X5-01, X5-05).
    ///
    /// # Errors
    /// [`FileError::Certificate`] if a name cannot be written into a request.
    pub fn begin(subject: &Subject, kind: KeyKind) -> Result<Self, FileError> {
        let pair = KeyPair::generate_for(kind.algorithm()).map_err(|_| FileError::Unusable)?;
        let pkcs8 = Secret::new(pair.serialize_der());
        Ok(Self { csr: request(subject, &pair)?, pkcs8, subject: subject.clone() })
    }

    /// The same for the key that is kept in `file`, where policy wants certificates renewed with the key they have.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn again(subject: &Subject, file: &PairFile<'_>) -> Result<Self, FileError> {
        let kept = Made::read(file.path, file.slot())?.into_key();
        let pkcs8 = kept.ok_or_else(|| FileError::NoSealingKey { path: file.path.into() })?;
        let key = PrivatePkcs8KeyDer::from(pkcs8.expose());
        let pair = KeyPair::try_from(&key).map_err(|_| FileError::Unusable)?;
        Ok(Self { csr: request(subject, &pair)?, pkcs8, subject: subject.clone() })
    }

    /// Whether it says this, and nothing else.
    pub fn is_for(&self, subject: &Subject) -> bool {
        self.subject == *subject
    }

    /// The request in DER (PKCS#10).
    pub fn csr(&self) -> &[u8] {
        &self.csr
    }

    /// The request in PEM.
    pub fn csr_pem(&self) -> String {
        file::pem("CERTIFICATE REQUEST", &self.csr).to_string()
    }

    /// The certificate, if `chain` is for this key and a chain. `keep_private` keeps the key in a form that can be handed out;
    /// `file` is where both are kept for the next start, on disk before this returns.
    ///
    /// # Errors
    /// [`FileError`]; what is kept stays as it was.
    pub fn finish(
        &self,
        chain: Vec<CertificateDer<'static>>,
        keep_private: bool,
        file: Option<&PairFile<'_>>,
    ) -> Result<ClientCertificate, FileError> {
        let made = ClientCertificate::new(chain, &self.pkcs8, "what the CA sent", keep_private)?;
        if let Some(file) = file {
            file.replace(&Made::of(&self.pkcs8, made.chain()))?;
        }
        Ok(made)
    }
}

impl fmt::Debug for Enrolment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Enrolment({} bytes of request)", self.csr.len())
    }
}

/// Where the pair of one credential is kept over a restart, sealed as every key file is.
#[derive(Debug)]
pub struct PairFile<'a> {
    path: &'a Path,
    vault: &'a Vault,
    /// Whose: identity and credential.
    whose: String,
}

impl<'a> PairFile<'a> {
    /// The file at `path`, for a credential of an identity.
    pub fn new(path: &'a Path, vault: &'a Vault, identity: &str, credential: &str) -> Self {
        Self { path, vault, whose: format!("{identity}.{credential}") }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.path
    }

    /// What is kept, if anything is.
    ///
    /// # Errors
    /// [`FileError`] for a file that is there and cannot be used.
    pub fn read(&self, keep_private: bool) -> Result<Option<ClientCertificate>, FileError> {
        match Made::read(self.path, self.slot()) {
            Ok(made) => made.certificate(&self.path.display().to_string(), keep_private).map(Some),
            Err(FileError::Io { error, .. }) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Destroys what is kept, if it is the pair of `leaf`: one that has to die is not taken up again by the next start.
    /// Whether it was.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn forget(&self, leaf: &[u8]) -> Result<bool, FileError> {
        match self.read(false)? {
            Some(kept) if kept.chain().first().is_some_and(|kept| kept.as_ref() == leaf) => {
                file::destroy(&file::beside(self.path, ".next"))?;
                file::destroy(self.path)?;
                // A power cut does not bring it back.
                self.settle().map(|()| true)
            }
            _ => Ok(false),
        }
    }

    /// Puts `made` in the place of what is kept, in one step.
    fn replace(&self, made: &Made) -> Result<(), FileError> {
        let next: PathBuf = file::beside(self.path, ".next");
        // Whoever made it was killed before it counted.
        file::destroy(&next)?;
        made.write(&next, self.slot())?;
        fs::rename(&next, self.path).map_err(|error| FileError::Io { path: self.path.into(), error })?;
        self.settle()
    }

    fn settle(&self) -> Result<(), FileError> {
        settled(self.path).map_err(|error| FileError::Io { path: self.path.into(), error })
    }

    fn slot(&self) -> Slot<'_> {
        Slot::of(self.vault, CREDENTIAL_CERTIFICATE, &self.whose)
    }
}

fn request(subject: &Subject, pair: &KeyPair) -> Result<Vec<u8>, FileError> {
    let unfit = |what: &str| FileError::Certificate { place: "certificate".into(), what: what.into() };
    let mut params = CertificateParams::default();
    // Never of a caller's input (X5-01): empty, or what the operator fixed.
    params.distinguished_name = DistinguishedName::new();
    if let Some(name) = &subject.common_name {
        params.distinguished_name.push(DnType::CommonName, name.as_str());
    }
    let ascii = |name: &str| {
        name.try_into()
            .map_err(|_| unfit("a name is ASCII: write it percent-encoded, or in its A-label form"))
    };
    for uri in &subject.uris {
        params.subject_alt_names.push(SanType::URI(ascii(uri)?));
    }
    for host in &subject.dns {
        params.subject_alt_names.push(SanType::DnsName(ascii(host)?));
    }
    params.subject_alt_names.extend(subject.ips.iter().copied().map(SanType::IpAddress));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    if subject.server {
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
    }
    let request = params.serialize_request(pair).map_err(|_| unfit("these names make no request"))?;
    Ok(request.der().to_vec())
}

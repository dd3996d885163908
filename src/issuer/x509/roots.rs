//! The roots that certificates of a CA have to lead to. In goes PEM that an operator wrote, or a root that a pin vouches for;
//! out comes what a chain is held against, and the bundle that programs get (CA-03).

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use ring::digest;
use rustls::{
    RootCertStore,
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
};
use rustls_pki_types::{CertificateDer, UnixTime, pem::PemObject as _};

use crate::secret::hex;

/// Where roots come from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum RootSource {
    /// A PEM file.
    File(PathBuf),
    /// The CA, held against the SHA-256 of the root's DER that an operator wrote (CA-03).
    Pinned([u8; 32]),
}

/// A set of roots.
pub struct Roots {
    verifier: Arc<dyn ClientCertVerifier>,
    all: Vec<CertificateDer<'static>>,
    pem: Arc<str>,
}

/// Why there are none.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum RootsError {
    /// The file cannot be used.
    #[error("{path}: {what}: name a PEM file with the root certificates of the CA")]
    File {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// What came is no certificate that could be a root.
    #[error("{0}")]
    Unusable(String),
    /// What came is not what the pin is for.
    #[error(
        "the CA's root has the SHA-256 {got}, and root_sha256 says {wanted}: nothing is trusted on first use"
    )]
    Pin {
        /// What came.
        got: String,
        /// What should have come.
        wanted: String,
    },
}

impl Roots {
    /// Reads a PEM file.
    ///
    /// # Errors
    /// [`RootsError::File`].
    pub fn read(path: &Path) -> Result<Self, RootsError> {
        let unusable = |what: String| RootsError::File { path: path.into(), what };
        let listed = CertificateDer::pem_file_iter(path).map_err(|error| unusable(error.to_string()))?;
        let all = listed.collect::<Result<Vec<_>, _>>().map_err(|error| unusable(error.to_string()))?;
        Self::of(all).map_err(|error| unusable(error.to_string()))
    }

    /// These.
    ///
    /// # Errors
    /// [`RootsError::Unusable`].
    pub fn of(all: Vec<CertificateDer<'static>>) -> Result<Self, RootsError> {
        let unusable = |what: String| RootsError::Unusable(what);
        let pem: Arc<str> =
            all.iter().map(|one| crate::keys::certificate_pem(one)).collect::<String>().into();
        let mut store = RootCertStore::empty();
        for one in &all {
            store.add(one.clone()).map_err(|error| unusable(error.to_string()))?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(store), provider)
            .build()
            .map_err(|error| unusable(error.to_string()))?;
        Ok(Self { verifier, all, pem })
    }

    /// The one of `sent` that the pin is for, and nothing else (CA-03).
    ///
    /// # Errors
    /// [`RootsError::Pin`], [`RootsError::Unusable`].
    pub fn pinned(sent: Vec<CertificateDer<'static>>, pin: &[u8; 32]) -> Result<Self, RootsError> {
        let sum = |one: &CertificateDer<'_>| digest::digest(&digest::SHA256, one);
        let got = sent.first().map(|one| hex(sum(one).as_ref())).unwrap_or_default();
        match sent.into_iter().find(|one| sum(one).as_ref() == pin) {
            Some(root) => Self::of(vec![root]),
            None => Err(RootsError::Pin { got, wanted: hex(pin) }),
        }
    }

    /// The root that an agent before this one kept at `path`, if it is the one of the pin.
    pub(super) fn kept(path: &Path, pin: &[u8; 32]) -> Option<Self> {
        let pem = match fs::read(path) {
            Ok(pem) => pem,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "the CA's root that was kept cannot be read: the CA is asked");
                return None;
            }
        };
        let sent = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>().unwrap_or_default();
        Self::pinned(sent, pin).ok()
    }

    /// Keeps them for the next start. They are public, and held against the pin when they are read.
    pub(super) fn keep(&self, path: &Path) {
        let beside = path.with_extension("new");
        let kept = fs::write(&beside, &*self.pem).and_then(|()| fs::rename(&beside, path));
        if let Err(error) = kept {
            tracing::warn!(%error, path = %path.display(), "the CA's root is not kept: the next start needs the CA");
        }
    }

    /// They, in DER.
    pub(super) fn all(&self) -> &[CertificateDer<'static>] {
        &self.all
    }

    /// The SHA-256 of the first of them, in hexadecimal digits.
    pub(super) fn sum(&self) -> String {
        self.all.first().map(|one| hex(digest::digest(&digest::SHA256, one).as_ref())).unwrap_or_default()
    }

    /// They, in PEM.
    pub fn pem(&self) -> Arc<str> {
        Arc::clone(&self.pem)
    }

    /// Whether `chain`, leaf first, leads to one of them at `seconds` since 1970 and may be shown by clients.
    pub(super) fn lead_to(&self, chain: &[CertificateDer<'_>], seconds: u64) -> Result<(), rustls::Error> {
        let (leaf, between) = chain.split_first().ok_or(rustls::Error::NoCertificatesPresented)?;
        let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds));
        self.verifier.verify_client_cert(leaf, between, now).map(drop)
    }
}

impl fmt::Debug for Roots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Roots({} bytes of PEM)", self.pem.len())
    }
}

//! A certificate that an identity shows in TLS (RFC 8705), with the key behind it. In go a chain and a key that fit each
//! other; out comes what may be said about them, and a TLS configuration that shows them. The key signs handshakes and
//! nothing else; it is kept in a form that can be handed out only where the operator allowed that (MT-11).

mod custody;
mod ending;
mod enrolment;
mod made;
mod name;
mod ordered;
mod shown;
#[cfg(test)]
mod tests;

use std::{fmt, sync::Arc};

use jiff::Timestamp;
use ring::digest;
use rustls::{
    SignatureAlgorithm, SignatureScheme,
    sign::{CertifiedKey, SigningKey},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use x509_parser::{certificate::X509Certificate, prelude::FromDer as _};

pub(in crate::keys) use custody::look;
pub use custody::{CertificateError, CertificateSettings, Certificates, SignedBy};
pub use ending::{Ending, Place, Urgency, endings};
pub use enrolment::{Enrolment, KeyKind, PairFile, Subject};
pub use name::Name;
pub use ordered::Rotated;
pub use shown::{NotShown, Showing};

use super::{FileError, file, memory::Key};
use crate::{
    jose::{self, Algorithm, PublicKey, Signer},
    secret::Secret,
};

/// A chain, leaf first, and the private key of the leaf. It lives as long as a credential that is bound to it: a newer one
/// strands nobody (MT-08).
pub struct ClientCertificate {
    key: Arc<CertifiedKey>,
    thumbprint: String,
    /// The key as a JWK; none for a curve that this house does not write down.
    public: Option<PublicKey>,
    /// The same key for assertions that carry the chain (RFC 7515 4.1.6); none for a curve that JOSE has no name for here.
    signer: Option<Arc<Key>>,
    kid: String,
    name: Name,
    handle: Secret,
    from: Timestamp,
    until: Timestamp,
    /// Who signed what, as CertificateRequest names authorities: distinguished names in DER.
    issuers: Vec<Vec<u8>>,
    /// The private key in PEM, where it may be handed out.
    private: Option<Secret>,
}

impl ClientCertificate {
    /// Puts a chain and a key together, if they fit. `place` says where they are from, for messages; `keep_private` keeps the
    /// key in a form that can be handed out.
    pub(super) fn new(
        chain: Vec<CertificateDer<'static>>,
        pkcs8: &Secret,
        place: &str,
        keep_private: bool,
    ) -> Result<Self, FileError> {
        let wrong = |what: &str| FileError::Certificate { place: place.into(), what: what.into() };
        let (issuers, facts) = read(&chain).map_err(wrong)?;
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pkcs8.expose().to_vec()));
        let key = CertifiedKey::from_der(chain, der, &rustls::crypto::ring::default_provider());
        let key = key.map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => {
                wrong("its first certificate is for another key: put the leaf first, and name the key it was made for")
            }
            _ => wrong("the key beside it cannot be used in TLS: P-256, P-384, Ed25519 and RSA from 2048 bits can"),
        })?;
        let signer = [Algorithm::Es256, Algorithm::EdDsa, Algorithm::Rs256]
            .iter()
            .find_map(|algorithm| Key::from_pkcs8(pkcs8, *algorithm).ok())
            .map(Arc::new);
        let public = signer.as_ref().map(|key| key.public().clone());
        let private = keep_private.then(|| Secret::new(file::pem("PRIVATE KEY", pkcs8.expose()).as_str()));
        Ok(Self { private, signer, ..Self::of(key, public, issuers, facts) })
    }

    /// A certificate whose key is sealed here: it can be registered, and not be shown.
    pub(super) fn without_key(chain: Vec<CertificateDer<'static>>, place: &str) -> Result<Self, FileError> {
        let wrong = |what: &str| FileError::Certificate { place: place.into(), what: what.into() };
        let (issuers, facts) = read(&chain).map_err(wrong)?;
        let public = facts.public.clone();
        Ok(Self::of(CertifiedKey::new(chain, Arc::new(Sealed)), public, issuers, facts))
    }

    fn of(key: CertifiedKey, public: Option<PublicKey>, issuers: Vec<Vec<u8>>, facts: Facts) -> Self {
        let leaf = key.cert.first().map(|leaf| leaf.as_ref()).unwrap_or_default();
        Self {
            kid: public.as_ref().map_or(facts.spki_digest, PublicKey::thumbprint),
            thumbprint: thumbprint(leaf),
            handle: Secret::new(jose::b64(leaf)),
            key: Arc::new(key),
            signer: None,
            public,
            name: facts.name,
            from: facts.from,
            until: facts.until,
            issuers,
            private: None,
        }
    }

    /// The SHA-256 of the leaf, as `cnf["x5t#S256"]` has it (RFC 8705 3.1).
    pub fn thumbprint(&self) -> &str {
        &self.thumbprint
    }

    /// The RFC 7638 thumbprint of its key: two identities never share one (KEY-01).
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// What an issuer that trusts its CA knows it by (RFC 8705 2.1.2; MT-04).
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// From when it is good, by the wall.
    pub fn from(&self) -> Timestamp {
        self.from
    }

    /// When it ends, by the wall.
    pub fn until(&self) -> Timestamp {
        self.until
    }

    /// The chain in DER, leaf first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.key.cert
    }

    /// What its CA is told to revoke it: base64url of the leaf in DER. Nothing secret, but told where secrets are.
    pub fn handle(&self) -> &Secret {
        &self.handle
    }

    /// Its key, to sign assertions that carry the chain. None for a kind of key that JOSE has no name for here.
    pub fn signer(&self) -> Option<Arc<dyn Signer>> {
        self.signer.clone().map(|key| key as Arc<dyn Signer>)
    }

    /// Whether it has begun at `now`, and not ended.
    pub fn is_good(&self, now: Timestamp) -> bool {
        self.from <= now && now < self.until
    }

    /// The chain in PEM, leaf first.
    pub fn chain_pem(&self) -> String {
        self.key.cert.iter().map(certificate_pem).collect()
    }

    /// The private key in PEM (PKCS#8). None unless the operator allowed that it be handed out (MT-11).
    pub fn private_pem(&self) -> Option<&Secret> {
        self.private.as_ref()
    }

    /// The public JWK with the chain in it, as an issuer takes it that trusts this certificate and no CA (RFC 8705 2.2.2,
    /// RFC 7517 4.7; MT-05). None for a key that has no JWK here.
    pub fn jwk(&self) -> Option<Value> {
        let mut jwk = self.public.as_ref()?.jwk(Algorithm::Es256);
        // What signs in TLS is the handshake's business, not a JOSE algorithm's.
        jwk.as_object_mut()?.remove("alg");
        let standard = |one: &CertificateDer<'_>| {
            use base64::{Engine as _, engine::general_purpose::STANDARD};
            STANDARD.encode(one)
        };
        jwk["x5c"] = json!(self.key.cert.iter().map(standard).collect::<Vec<_>>());
        jwk["x5t#S256"] = json!(self.thumbprint);
        Some(jwk)
    }
}

impl fmt::Debug for ClientCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClientCertificate({} until {})", self.thumbprint, self.until)
    }
}

/// One certificate in PEM.
pub fn certificate_pem(der: &CertificateDer<'_>) -> String {
    file::pem("CERTIFICATE", der).to_string()
}

/// base64url of the SHA-256 of a certificate (RFC 8705 3.1).
pub(super) fn thumbprint(certificate: &[u8]) -> String {
    jose::b64(digest::digest(&digest::SHA256, certificate).as_ref())
}

/// The thumbprint of the leaf, and from when until when it is good.
fn leaf_facts(chain: &[CertificateDer<'_>]) -> Result<(String, Timestamp, Timestamp), &'static str> {
    let (_, facts) = read(chain)?;
    Ok((chain.first().map(|leaf| thumbprint(leaf)).unwrap_or_default(), facts.from, facts.until))
}

/// What the leaf says.
struct Facts {
    name: Name,
    from: Timestamp,
    until: Timestamp,
    spki_digest: String,
    /// The key as this house writes it down, if it is P-256 as we make them.
    public: Option<PublicKey>,
}

/// A key that is sealed here, and signs nothing.
#[derive(Debug)]
struct Sealed;

impl SigningKey for Sealed {
    fn choose_scheme(&self, _offered: &[SignatureScheme]) -> Option<Box<dyn rustls::sign::Signer>> {
        None
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ECDSA
    }
}

/// Reads the chain: who signed each certificate, and what the leaf says.
fn read(chain: &[CertificateDer<'_>]) -> Result<(Vec<Vec<u8>>, Facts), &'static str> {
    let mut issuers: Vec<Vec<u8>> = Vec::new();
    let mut facts = None;
    for one in chain {
        let (rest, certificate) = X509Certificate::from_der(one)
            .map_err(|_| "one of its certificates cannot be read (RFC 5280)")?;
        if !rest.is_empty() {
            return Err(
                "something stands behind one of its certificates: write each as a PEM block of its own",
            );
        }
        match issuers.last() {
            Some(issuer) if **issuer != *certificate.subject().as_raw() => {
                return Err("its certificates are no chain: put the leaf first, then whoever signed it");
            }
            Some(_) => {}
            None => facts = Some(leaf(&certificate)?),
        }
        issuers.push(certificate.issuer().as_raw().to_vec());
    }
    Ok((issuers, facts.ok_or("it holds no certificate: PEM begins with BEGIN CERTIFICATE")?))
}

fn leaf(certificate: &X509Certificate<'_>) -> Result<Facts, &'static str> {
    let moment = |seconds| Timestamp::from_second(seconds).map_err(|_| "its validity cannot be read");
    let validity = certificate.validity();
    if let Ok(Some(usage)) = certificate.extended_key_usage()
        && !(usage.value.client_auth || usage.value.any)
    {
        return Err("it may not be shown by clients: have it made with the extended key usage clientAuth");
    }
    Ok(Facts {
        name: Name::of(certificate),
        from: moment(validity.not_before.timestamp())?,
        until: moment(validity.not_after.timestamp())?,
        spki_digest: thumbprint(certificate.public_key().raw),
        public: p256(&certificate.public_key().subject_public_key.data)
            .filter(|public| public.spki_der() == certificate.public_key().raw),
    })
}

/// The key of an uncompressed point: 0x04, x, y (SEC 1, 2.3.3).
fn p256(point: &[u8]) -> Option<PublicKey> {
    let (x, y) = point.get(1..)?.split_at_checked(32)?;
    Some(PublicKey::P256 { x: x.try_into().ok()?, y: y.try_into().ok()? })
}

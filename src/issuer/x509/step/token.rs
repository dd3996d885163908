//! The one-time token that a step-ca takes for proof of who asks (CA-01). In go who vouches, what for, and the time; out comes
//! a JWT for one attempt. What a certificate is asked for stands in it twice: as names, and as the sum of the one request
//! that it is good for.

use std::sync::Arc;

use jiff::Timestamp;
use ring::digest;
use serde::Serialize;

use crate::{
    clock::Dice,
    jose::{self, Header, SignError, Signer},
    keys::{ClientCertificate, Subject},
    secret::Secret,
};

/// How long one is good, in seconds, as an assertion is (PKJ-07); step-ca takes five minutes and forgives a minute.
const LIFE: i64 = 60;

/// Whose word it is.
#[derive(Clone, Debug)]
pub(super) enum Voucher {
    /// The key of a JWK provisioner.
    Key(Arc<dyn Signer>),
    /// The certificate that an X5C provisioner trusts the CA of, and its key.
    Chain(Arc<ClientCertificate>, Arc<dyn Signer>),
}

/// What it is good for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Purpose<'a> {
    /// A certificate with these names, by this request.
    Sign { subject: &'a Subject, csr: &'a [u8] },
    /// The end of the certificate with this serial number.
    Revoke { serial: &'a str },
}

/// One token.
#[derive(Clone, Copy, Debug)]
pub(super) struct Token<'a> {
    /// The provisioner, by its name at the CA.
    pub(super) provisioner: &'a str,
    /// The endpoint it is shown at.
    pub(super) endpoint: &'a str,
    /// The SHA-256 of the CA's root, in hexadecimal digits.
    pub(super) root: &'a str,
    pub(super) purpose: Purpose<'a>,
    /// The CA's now.
    pub(super) now: Timestamp,
}

#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a str,
    sub: &'a str,
    aud: &'a str,
    iat: i64,
    nbf: i64,
    exp: i64,
    jti: &'a str,
    sha: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    sans: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cnf: Option<Confirmation>,
}

#[derive(Serialize)]
struct Confirmation {
    #[serde(rename = "x5rt#S256")]
    request: String,
}

impl Token<'_> {
    /// Signs it, with a `jti` fresh from `dice`: the CA takes each once.
    pub(super) fn sign(self, voucher: &Voucher, dice: &dyn Dice) -> Result<Secret, SignError> {
        let mut chance = [0; 16];
        dice.fill(&mut chance);
        let jti = jose::b64(&chance);
        // Not backdated: the CA forgives a minute, but takes no token that is older than its own start.
        let iat = self.now.as_second();
        let audience = match voucher {
            Voucher::Key(_) => self.endpoint.to_owned(),
            Voucher::Chain(..) => format!("{}#x5c/{}", self.endpoint, fragment(self.provisioner)),
        };
        let (sans, cnf) = match self.purpose {
            Purpose::Sign { subject, csr } => {
                let sum = digest::digest(&digest::SHA256, csr);
                (Some(names(subject)), Some(Confirmation { request: jose::b64(sum.as_ref()) }))
            }
            Purpose::Revoke { .. } => (None, None),
        };
        let sub = match self.purpose {
            // The CA writes it into the certificate as its common name.
            Purpose::Sign { subject, .. } => subject
                .common_name
                .clone()
                .or_else(|| sans.as_ref().and_then(|names| names.first().cloned()))
                .unwrap_or_default(),
            Purpose::Revoke { serial } => serial.to_owned(),
        };
        let claims = Claims {
            iss: self.provisioner,
            sub: &sub,
            aud: &audience,
            iat,
            nbf: iat,
            exp: iat + LIFE,
            jti: &jti,
            sha: self.root,
            sans,
            cnf,
        };
        let header = Header { typ: "JWT" };
        match voucher {
            Voucher::Key(key) => jose::sign(&**key, header, &claims),
            Voucher::Chain(certificate, key) => {
                jose::sign_showing_chain(&**key, header, certificate.chain(), &claims)
            }
        }
    }
}

/// The names that a request asks for, each as text: the CA sorts them by what they look like.
fn names(subject: &Subject) -> Vec<String> {
    let (uris, dns) = (subject.uris.iter().cloned(), subject.dns.iter().cloned());
    uris.chain(dns).chain(subject.ips.iter().map(ToString::to_string)).collect()
}

/// A provisioner's name as the CA writes it into the fragment of the URL that tokens are addressed to (RFC 3986 3.5).
fn fragment(name: &str) -> String {
    let mut written = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~$&+,/:;=?@!()*".contains(&byte) {
            written.push(char::from(byte));
        } else {
            written.push_str(&format!("%{byte:02X}"));
        }
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_in_a_fragment_is_written_as_the_ca_writes_it() {
        // CA-01: as Go's net/url does, which the CA compares with.
        for (name, written) in [
            ("x5c", "x5c"),
            ("ops@example.com", "ops@example.com"),
            ("my ca", "my%20ca"),
            ("a#b%", "a%23b%25"),
            ("é", "%C3%A9"),
        ] {
            assert_eq!(fragment(name), written);
        }
    }
}

//! Compact JWS (RFC 7515), public JWK (RFC 7517) and thumbprints (RFC 7638), over a [`Signer`] and never over
//! a raw key. In go claims we built ourselves; out comes a signed token.
//!
//! A [`SigningInput`] can only be made here, from a header and claims: there is no way to have a key of this
//! agent sign bytes that a caller chose.

use std::{fmt, str::FromStr};

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use ring::{digest, signature};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};

use crate::secret::Secret;

/// The signature algorithms of this house (RFC 7518, RFC 8037). No `none`, no HMAC: there is no variant for it.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Algorithm {
    /// ECDSA on P-256 with SHA-256; the default.
    Es256,
    /// Ed25519.
    EdDsa,
    /// RSASSA-PSS with SHA-256.
    Ps256,
    /// RSASSA-PKCS1-v1_5 with SHA-256, for issuers that know nothing better (PKJ-10).
    Rs256,
}

impl Algorithm {
    /// The `alg` value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Es256 => "ES256",
            Self::EdDsa => "EdDSA",
            Self::Ps256 => "PS256",
            Self::Rs256 => "RS256",
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Algorithm {
    type Err = ();

    /// Reads an `alg` value; `Ed25519` (RFC 9864) is the same as `EdDSA` here.
    fn from_str(name: &str) -> Result<Self, ()> {
        match name {
            "ES256" => Ok(Self::Es256),
            "EdDSA" | "Ed25519" => Ok(Self::EdDsa),
            "PS256" => Ok(Self::Ps256),
            "RS256" => Ok(Self::Rs256),
            _ => Err(()),
        }
    }
}

/// The public half of a key. Holds no private member, so none can be exported (KEY-03).
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum PublicKey {
    /// A point on P-256, uncompressed coordinates.
    P256 {
        /// The x coordinate, big endian.
        x: [u8; 32],
        /// The y coordinate, big endian.
        y: [u8; 32],
    },
    /// An Ed25519 key.
    Ed25519 {
        /// The encoded point.
        x: [u8; 32],
    },
    /// An RSA key.
    Rsa {
        /// The modulus, big endian without leading zeros.
        n: Vec<u8>,
        /// The exponent, big endian without leading zeros.
        e: Vec<u8>,
    },
}

impl PublicKey {
    /// The RFC 7638 SHA-256 thumbprint, base64url: the `kid` of every key in this house (PKJ-10).
    pub fn thumbprint(&self) -> String {
        // RFC 7638 3.2: the required members only, in lexicographic order, without white space.
        let canonical = match self {
            Self::P256 { x, y } => {
                format!(r#"{{"crv":"P-256","kty":"EC","x":"{}","y":"{}"}}"#, b64(x), b64(y))
            }
            Self::Ed25519 { x } => format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{}"}}"#, b64(x)),
            Self::Rsa { n, e } => format!(r#"{{"e":"{}","kty":"RSA","n":"{}"}}"#, b64(e), b64(n)),
        };
        b64(digest::digest(&digest::SHA256, canonical.as_bytes()).as_ref())
    }

    /// The members that make the key, public ones only (KEY-03).
    pub(crate) fn members(&self) -> Value {
        match self {
            Self::P256 { x, y } => json!({"kty": "EC", "crv": "P-256", "x": b64(x), "y": b64(y)}),
            Self::Ed25519 { x } => json!({"kty": "OKP", "crv": "Ed25519", "x": b64(x)}),
            Self::Rsa { n, e } => json!({"kty": "RSA", "n": b64(n), "e": b64(e)}),
        }
    }

    /// The public JWK, with `use`, `alg` and `kid` (KEY-04).
    pub fn jwk(&self, algorithm: Algorithm) -> Value {
        let mut jwk = self.members();
        jwk["use"] = json!("sig");
        jwk["alg"] = json!(algorithm.as_str());
        jwk["kid"] = json!(self.thumbprint());
        jwk
    }

    /// Reads the public members of a JWK. Anything private in it is refused, not ignored (KEY-03).
    ///
    /// # Errors
    /// [`JoseError::Key`] if it is not a P-256, Ed25519 or RSA public key.
    pub fn from_jwk(jwk: &Value) -> Result<Self, JoseError> {
        const PRIVATE: [&str; 8] = ["d", "p", "q", "dp", "dq", "qi", "oth", "k"];
        if PRIVATE.iter().any(|member| jwk.get(member).is_some()) {
            return Err(JoseError::Key("it holds a private member"));
        }
        let member = |name: &str| {
            let text = jwk.get(name).and_then(Value::as_str).ok_or(JoseError::Key("a member is missing"))?;
            URL_SAFE_NO_PAD.decode(text).map_err(|_| JoseError::Key("a member is not base64url"))
        };
        let coordinate = |name: &str| {
            <[u8; 32]>::try_from(member(name)?).map_err(|_| JoseError::Key("a coordinate is not 32 bytes"))
        };
        match (jwk["kty"].as_str(), jwk["crv"].as_str()) {
            (Some("EC"), Some("P-256")) => Ok(Self::P256 { x: coordinate("x")?, y: coordinate("y")? }),
            (Some("OKP"), Some("Ed25519")) => Ok(Self::Ed25519 { x: coordinate("x")? }),
            (Some("RSA"), _) => Ok(Self::Rsa { n: member("n")?, e: member("e")? }),
            _ => Err(JoseError::Key("it is neither P-256, Ed25519 nor RSA")),
        }
    }

    /// The SubjectPublicKeyInfo (RFC 5480, RFC 8410, RFC 3279) as DER.
    pub fn spki_der(&self) -> Vec<u8> {
        const P256: [u8; 26] = [
            0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
            0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
        ];
        const ED25519: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
        const RSA: [u8; 15] =
            [0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00];
        match self {
            Self::P256 { x, y } => [&P256[..], &[0x04], x, y].concat(),
            Self::Ed25519 { x } => [&ED25519[..], x].concat(),
            Self::Rsa { n, e } => {
                let key = der(0x30, &[der_integer(n), der_integer(e)].concat());
                let bits = der(0x03, &[&[0x00], &key[..]].concat());
                der(0x30, &[&RSA[..], &bits].concat())
            }
        }
    }

    /// The SubjectPublicKeyInfo as PEM, as `openssl pkey -pubin` reads it.
    pub fn pem(&self) -> String {
        let body = STANDARD.encode(self.spki_der());
        let mut pem = String::from("-----BEGIN PUBLIC KEY-----\n");
        for line in body.as_bytes().chunks(64) {
            // The alphabet of base64 is ASCII.
            pem.push_str(std::str::from_utf8(line).expect("base64 is ASCII"));
            pem.push('\n');
        }
        pem.push_str("-----END PUBLIC KEY-----\n");
        pem
    }

    fn verify(&self, algorithm: Algorithm, message: &[u8], sig: &[u8]) -> Result<(), JoseError> {
        let verified = match (self, algorithm) {
            (Self::P256 { x, y }, Algorithm::Es256) => signature::UnparsedPublicKey::new(
                &signature::ECDSA_P256_SHA256_FIXED,
                [&[0x04], &x[..], &y[..]].concat(),
            )
            .verify(message, sig),
            (Self::Ed25519 { x }, Algorithm::EdDsa) => {
                signature::UnparsedPublicKey::new(&signature::ED25519, x).verify(message, sig)
            }
            (Self::Rsa { n, e }, Algorithm::Ps256) => signature::RsaPublicKeyComponents { n, e }.verify(
                &signature::RSA_PSS_2048_8192_SHA256,
                message,
                sig,
            ),
            (Self::Rsa { n, e }, Algorithm::Rs256) => signature::RsaPublicKeyComponents { n, e }.verify(
                &signature::RSA_PKCS1_2048_8192_SHA256,
                message,
                sig,
            ),
            _ => return Err(JoseError::Algorithm),
        };
        verified.map_err(|_| JoseError::Signature)
    }
}

/// What a key may sign: made here from a header and claims, nowhere else.
#[derive(Debug)]
pub struct SigningInput<'a>(&'a [u8]);

impl SigningInput<'_> {
    /// The bytes to be signed.
    pub fn as_bytes(&self) -> &[u8] {
        self.0
    }
}

/// A key that signs without ever being seen. Implemented by custody (the room `keys`), and by nobody else.
pub trait Signer: fmt::Debug + Send + Sync {
    /// Which algorithm its signatures have.
    fn algorithm(&self) -> Algorithm;

    /// Its public half.
    fn public(&self) -> &PublicKey;

    /// The RFC 7638 thumbprint of its public half.
    fn kid(&self) -> &str;

    /// Signs what this file built.
    ///
    /// # Errors
    /// [`SignError`] if the key cannot sign now: custody is out of reach or refuses.
    fn sign(&self, input: SigningInput<'_>) -> Result<Vec<u8>, SignError>;
}

/// Custody could not sign.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the key's custody could not sign")]
pub struct SignError;

/// The protected header of what we sign. Nothing else ever stands in it (PKJ-10, PKJ-11).
#[derive(Clone, Copy, Debug)]
pub struct Header<'a> {
    /// The `typ` value.
    pub typ: &'a str,
}

/// Signs `claims` under `signer`, with `alg` and `kid` of the signer. The result is a secret until it expires.
///
/// # Errors
/// [`SignError`] from custody.
pub fn sign(signer: &dyn Signer, header: Header<'_>, claims: &impl Serialize) -> Result<Secret, SignError> {
    let header = json!({"alg": signer.algorithm().as_str(), "kid": signer.kid(), "typ": header.typ});
    signed(signer, &header, claims)
}

/// The same for whoever reads it without knowing the key: the header holds the key itself, public members only
/// (RFC 9449 4.2).
///
/// # Errors
/// [`SignError`] from custody.
pub fn sign_showing_key(
    signer: &dyn Signer,
    header: Header<'_>,
    claims: &impl Serialize,
) -> Result<Secret, SignError> {
    let jwk = signer.public().members();
    let header = json!({"alg": signer.algorithm().as_str(), "jwk": jwk, "typ": header.typ});
    signed(signer, &header, claims)
}

/// The same for whoever knows a CA and not the key: the header holds the certificate of the key and what leads to that CA, leaf
/// first (RFC 7515 4.1.6).
///
/// # Errors
/// [`SignError`] from custody.
pub fn sign_showing_chain<C: AsRef<[u8]>>(
    signer: &dyn Signer,
    header: Header<'_>,
    chain: &[C],
    claims: &impl Serialize,
) -> Result<Secret, SignError> {
    // Not base64url, and padded: the one exception in JOSE.
    let x5c: Vec<String> = chain.iter().map(|one| STANDARD.encode(one)).collect();
    let header = json!({"alg": signer.algorithm().as_str(), "typ": header.typ, "x5c": x5c});
    signed(signer, &header, claims)
}

/// Who signs a request of ACME, and where it goes (RFC 8555 6.2).
#[derive(Clone, Copy, Debug)]
pub struct Envelope<'a> {
    /// The URL it is sent to.
    pub url: &'a str,
    /// A nonce of the server's; none in what stands inside another request.
    pub nonce: Option<&'a str>,
    /// The account, by its URL. Without one, the key itself is shown.
    pub account: Option<&'a str>,
}

/// A flattened JWS in JSON over `payload`, or over nothing (RFC 8555 6.2, 6.3).
///
/// # Errors
/// [`SignError`] from custody.
pub fn sign_flattened(
    signer: &dyn Signer,
    envelope: Envelope<'_>,
    payload: Option<&Value>,
) -> Result<Value, SignError> {
    let mut header = json!({"alg": signer.algorithm().as_str(), "url": envelope.url});
    if let Some(nonce) = envelope.nonce {
        header["nonce"] = json!(nonce);
    }
    match envelope.account {
        Some(account) => header["kid"] = json!(account),
        None => header["jwk"] = signer.public().members(),
    }
    flattened(&header, payload, |input| signer.sign(input))
}

/// The request of `new` to take the place of `old` for an account, to be signed by `old` around it (RFC 8555 7.3.5).
///
/// # Errors
/// [`SignError`] from custody.
pub fn sign_key_change(
    new: &dyn Signer,
    old: &PublicKey,
    url: &str,
    account: &str,
) -> Result<Value, SignError> {
    let payload = json!({"account": account, "oldKey": old.members()});
    sign_flattened(new, Envelope { url, nonce: None, account: None }, Some(&payload))
}

/// What binds the key of an account to one that a CA knows by `kid`: a flattened JWS with HMAC (RFC 8555 7.3.4). The MAC is made by
/// whoever holds the CA's key.
///
/// # Errors
/// [`SignError`] if it cannot be made.
pub fn external_account_binding(
    account: &PublicKey,
    kid: &str,
    url: &str,
    mac: impl FnOnce(&SigningInput<'_>) -> Option<Vec<u8>>,
) -> Result<Value, SignError> {
    let header = json!({"alg": "HS256", "kid": kid, "url": url});
    flattened(&header, Some(&account.members()), |input| mac(&input).ok_or(SignError))
}

fn flattened(
    header: &Value,
    payload: Option<&Value>,
    sign: impl FnOnce(SigningInput<'_>) -> Result<Vec<u8>, SignError>,
) -> Result<Value, SignError> {
    let protected = b64(header.to_string().as_bytes());
    let payload = payload.map(|payload| b64(payload.to_string().as_bytes())).unwrap_or_default();
    let signature = sign(SigningInput(format!("{protected}.{payload}").as_bytes()))?;
    Ok(json!({"protected": protected, "payload": payload, "signature": b64(&signature)}))
}

fn signed(signer: &dyn Signer, header: &Value, claims: &impl Serialize) -> Result<Secret, SignError> {
    // Claims are structs of this crate: strings and numbers, which always serialize.
    let claims = serde_json::to_vec(claims).expect("claims serialize");
    let mut token = format!("{}.{}", b64(header.to_string().as_bytes()), b64(&claims));
    let signed = signer.sign(SigningInput(token.as_bytes()))?;
    token.push('.');
    URL_SAFE_NO_PAD.encode_string(signed, &mut token);
    Ok(Secret::new(token))
}

/// A compact JWS, taken apart but not believed.
#[derive(Debug)]
pub struct Unverified<'a> {
    /// The protected header.
    pub header: Map<String, Value>,
    /// The payload, as sent.
    pub payload: Vec<u8>,
    signed: &'a str,
    signature: Vec<u8>,
}

impl<'a> Unverified<'a> {
    /// Takes a compact JWS apart.
    ///
    /// # Errors
    /// [`JoseError::Form`] if it is not three base64url parts with a JSON object in front.
    pub fn parse(token: &'a str) -> Result<Self, JoseError> {
        let (signed, signature) = token.rsplit_once('.').ok_or(JoseError::Form)?;
        let (header, payload) = signed.split_once('.').ok_or(JoseError::Form)?;
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| JoseError::Form);
        Ok(Self {
            header: serde_json::from_slice(&decode(header)?).map_err(|_| JoseError::Form)?,
            payload: decode(payload)?,
            signed,
            signature: decode(signature)?,
        })
    }

    /// The claims, not believed: whoever made the token could write anything here.
    ///
    /// # Errors
    /// [`JoseError::Form`] if the payload is not JSON of that shape.
    pub fn claims<T: DeserializeOwned>(&self) -> Result<T, JoseError> {
        serde_json::from_slice(&self.payload).map_err(|_| JoseError::Form)
    }

    /// A header member as text.
    pub fn header_str(&self, name: &str) -> Option<&str> {
        self.header.get(name).and_then(Value::as_str)
    }

    /// Checks the signature by `key`; the algorithm must be one of `allowed` and fit the key (OA-41).
    ///
    /// # Errors
    /// [`JoseError::Header`] for `crit` or an embedded key, [`JoseError::Algorithm`] or [`JoseError::Signature`].
    pub fn verify(&self, key: &PublicKey, allowed: &[Algorithm]) -> Result<(), JoseError> {
        if ["crit", "jwk", "jku", "x5u"].iter().any(|name| self.header.contains_key(*name)) {
            return Err(JoseError::Header);
        }
        let algorithm =
            self.header_str("alg").and_then(|alg| alg.parse().ok()).ok_or(JoseError::Algorithm)?;
        if !allowed.contains(&algorithm) {
            return Err(JoseError::Algorithm);
        }
        key.verify(algorithm, self.signed.as_bytes(), &self.signature)
    }

    /// Checks the signature by the public key that the header itself brings as `jwk`, and hands that key out. This
    /// proves that the sender has the key, and nothing about who the sender is: it is for proofs of possession, whose
    /// key is then held against one that is known (RFC 9449 4.3).
    ///
    /// # Errors
    /// [`JoseError::Header`] for `crit`, for no key, or for one that lies elsewhere, [`JoseError::Key`] for a private or
    /// unusable one, [`JoseError::Algorithm`] or [`JoseError::Signature`].
    pub fn verify_possession(&self, allowed: &[Algorithm]) -> Result<PublicKey, JoseError> {
        if ["crit", "jku", "x5u", "x5c"].iter().any(|name| self.header.contains_key(*name)) {
            return Err(JoseError::Header);
        }
        let key = PublicKey::from_jwk(self.header.get("jwk").ok_or(JoseError::Header)?)?;
        let algorithm =
            self.header_str("alg").and_then(|alg| alg.parse().ok()).ok_or(JoseError::Algorithm)?;
        if !allowed.contains(&algorithm) {
            return Err(JoseError::Algorithm);
        }
        key.verify(algorithm, self.signed.as_bytes(), &self.signature)?;
        Ok(key)
    }
}

/// What is wrong with a token or a key.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum JoseError {
    /// The algorithm is unknown, not allowed, or not the key's.
    #[error("its algorithm is not allowed here")]
    Algorithm,
    /// Not a compact JWS.
    #[error("it is not a compact JWS")]
    Form,
    /// The header demands or brings what we do not take (`crit`, `jwk`, `jku`, `x5u`).
    #[error("its header holds a member that is not accepted")]
    Header,
    /// Not a public key we can use.
    #[error("the key cannot be used: {0}")]
    Key(&'static str),
    /// The signature is wrong.
    #[error("its signature does not verify")]
    Signature,
}

/// base64url without padding, as everywhere in JOSE.
pub fn b64(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len();
    let mut out = vec![tag];
    if length < 0x80 {
        out.push(length as u8);
    } else {
        let bytes: Vec<u8> = length.to_be_bytes().into_iter().skip_while(|byte| *byte == 0).collect();
        out.push(0x80 | bytes.len() as u8);
        out.extend(bytes);
    }
    out.extend(content);
    out
}

/// A positive INTEGER: a leading zero where the first bit would read as a sign.
fn der_integer(magnitude: &[u8]) -> Vec<u8> {
    match magnitude.first() {
        Some(first) if *first >= 0x80 => der(0x02, &[&[0], magnitude].concat()),
        _ => der(0x02, magnitude),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_thumbprint_of_rfc_9449() {
        // standards-vectors.json, rfc7638_rfc9449_jkt (DPOP-05, PKJ-10).
        let jwk = json!({
            "kty": "EC", "crv": "P-256",
            "x": "l8tFrhx-34tV3hRICRDY9zCkDlpBhF42UQUfWVAWBFs",
            "y": "9VE4jf_Ok_o64zbTTlcuNJajHmt6v9TDVrU0CdvGRDA",
        });
        let key = PublicKey::from_jwk(&jwk).unwrap();
        assert_eq!(key.thumbprint(), "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I");
    }

    #[test]
    fn the_thumbprint_of_rfc_7638() {
        // RFC 7638 3.1.
        let jwk = json!({
            "kty": "RSA", "e": "AQAB", "alg": "RS256", "kid": "2011-04-29",
            "n": "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw",
        });
        let key = PublicKey::from_jwk(&jwk).unwrap();
        assert_eq!(key.thumbprint(), "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs");
    }

    #[test]
    fn signatures_that_others_made_verify() {
        // standards-vectors.json, wimse_wit_wpt: an ES256 and an EdDSA signature of another implementation, the second by the
        // key that the first one names.
        let wit = "eyJhbGciOiJFUzI1NiIsImtpZCI6Ikp1bmUgNSIsInR5cCI6IndpdCtqd3QifQ.eyJjbmYiOnsiandrIjp7ImFsZyI6IkVkRFNBIiwiY3J2IjoiRWQyNTUxOSIsImt0eSI6Ik9LUCIsIngiOiIxQ1hYdmZsTl9MVlZzSXNZWHNVdkIwM0ptbEdXZUNIcVFWdW91Q0Y5MmJnIn19LCJleHAiOjE3NDU1MTI1MTAsImlhdCI6MTc0NTUwODkxMCwianRpIjoieC1fMUNUTDJjY2EzQ1NFNGN3Yl9sIiwic3ViIjoid2ltc2U6Ly9leGFtcGxlLmNvbS9zcGVjaWZpYy13b3JrbG9hZCJ9.6KraSQUxWdl9dxFQ3Fj6dPY0Vi88OkwFwZpAIOhLeq6AbXAnLLQgOp8U9UDGcBuYF3KiNv6oKQD1ZWAzrMZOJw";
        let wpt = "eyJhbGciOiJFZERTQSIsInR5cCI6IndwdCtqd3QifQ.eyJhdGgiOiJDTDR3amZwUm1OZi1iZFlJYllMblY5ZDVyTUFSR3dLWUUxMHdVd3pDMGpJIiwiYXVkIjoiaHR0cHM6Ly93b3JrbG9hZC5leGFtcGxlLmNvbS9wYXRoIiwiZXhwIjoxNzQ1NTEwMDE2LCJqdGkiOiJfX2J3YzRFU0MzYWNjMkxUQzEtX3giLCJ3dGgiOiJBYVlVZkMzNEQxZGkyRnhRTHBpSUpKN1NnOFZaNm84T0Nkd1NmOUlUb0xnIn0.PI7d9AcYhLoEgPgbJvcM132lkBKnM1NXU-5hZUzVTIyj2dRJaTLFs6e5NYv5gg6AqcV7NvkYCwfgMgWasWQzCA";
        let issuer = json!({
            "kty": "EC", "crv": "P-256", "x": "kXqnA2Op7hgd4zRMbw0iFcc_hDxUxhojxOFVGjE2gks",
            "y": "n__VndPMR021-59UAs0b9qDTFT-EZtT6xSNs_xFskLo",
        });
        let (wit_jws, wpt_jws) = (Unverified::parse(wit).unwrap(), Unverified::parse(wpt).unwrap());
        wit_jws.verify(&PublicKey::from_jwk(&issuer).unwrap(), &[Algorithm::Es256]).unwrap();
        let claims: Value = wit_jws.claims().unwrap();
        let bound = PublicKey::from_jwk(&claims["cnf"]["jwk"]).unwrap();
        wpt_jws.verify(&bound, &[Algorithm::EdDsa]).unwrap();
        let proof: Value = wpt_jws.claims().unwrap();
        let hash = |text: &str| b64(digest::digest(&digest::SHA256, text.as_bytes()).as_ref());
        assert_eq!(proof["wth"], hash(wit));
        assert_eq!(proof["ath"], hash("16_mAd0GiwaZokU26_0902100"));
        // One bit of it changed, by either key.
        let changed = wit.replace("6KraSQ", "6KrbSQ");
        let changed = Unverified::parse(&changed).unwrap();
        let wrong = changed.verify(&PublicKey::from_jwk(&issuer).unwrap(), &[Algorithm::Es256]);
        assert_eq!(wrong, Err(JoseError::Signature));
        assert_eq!(wit_jws.verify(&bound, &[Algorithm::EdDsa]), Err(JoseError::Algorithm));
    }

    #[test]
    fn a_private_jwk_is_refused() {
        // KEY-03
        let jwk = json!({"kty": "OKP", "crv": "Ed25519", "x": b64(&[1; 32]), "d": b64(&[2; 32])});
        assert_eq!(PublicKey::from_jwk(&jwk), Err(JoseError::Key("it holds a private member")));
    }

    #[test]
    fn none_and_hmac_have_no_variant() {
        // OA-41, PKJ-10
        for name in ["none", "HS256", "HS512", "ES512", ""] {
            assert!(name.parse::<Algorithm>().is_err(), "{name}");
        }
    }
}

//! A DPoP proof (RFC 9449 4). In goes the text of the `DPoP` header and what the request really is; out comes whose key it
//! was made with, or the one rule it broke. Whether it was used before, and whether its nonce is good, is for whoever
//! remembers. Both of our servers hold proofs against the rules of this file, and against all of them.

use http::HeaderMap;
use ring::digest;
use serde::Deserialize;

use super::{once::Spent, target};
use crate::jose::{Algorithm, JoseError, Unverified, b64};

/// How far from now `iat` may lie, either way, in seconds (RFC 9449 11.1).
const WINDOW: i64 = 60;

/// The longest `jti`.
const MAX_JTI: usize = 128;

/// What a proof is held against.
#[derive(Clone, Copy, Debug)]
pub(super) struct Expected<'a> {
    /// What it may be signed with.
    pub(super) algorithms: &'a [Algorithm],
    /// The method of the request.
    pub(super) method: &'a str,
    /// Where the request went, without query and fragment.
    pub(super) url: &'a str,
    /// The access token that came with it, if the request uses one.
    pub(super) token: Option<&'a str>,
    /// The server's now, in seconds since the epoch.
    pub(super) now: i64,
}

/// What a good proof says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Proof {
    /// The thumbprint of its key (RFC 7638), as `cnf.jkt` has it.
    pub(super) jkt: String,
    /// Its one-time value.
    pub(super) jti: String,
    /// The server's nonce, if it has one.
    pub(super) nonce: Option<String>,
    /// Until when it could be sent again, in seconds since the epoch.
    pub(super) until: i64,
}

/// Only for the diary: what a proof says of itself. Not believed.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
pub(super) struct Glimpse {
    #[serde(skip)]
    pub(super) jkt: Option<String>,
    pub(super) jti: Option<String>,
    pub(super) nonce: Option<String>,
}

impl Glimpse {
    pub(super) fn of(proof: &str) -> Self {
        let Ok(jws) = Unverified::parse(proof) else { return Self::default() };
        let key = jws.header.get("jwk").and_then(|jwk| crate::jose::PublicKey::from_jwk(jwk).ok());
        Self { jkt: key.map(|key| key.thumbprint()), ..jws.claims().unwrap_or_default() }
    }
}

#[derive(Deserialize)]
struct Claims {
    jti: String,
    htm: String,
    htu: String,
    iat: i64,
    ath: Option<String>,
    nonce: Option<String>,
}

/// The proof of a request: none, or the one that is there (RFC 9449 4.3, step 1).
pub(super) fn sole(headers: &HeaderMap) -> Result<Option<&str>, ProofError> {
    let mut all = headers.get_all("dpop").iter();
    let first = all.next();
    if all.next().is_some() {
        return Err(ProofError::Twice);
    }
    first.map(|proof| proof.to_str().map_err(|_| ProofError::Form)).transpose()
}

/// Holds `proof` against everything but replay and nonce (RFC 9449 4.3, steps 2 to 12).
pub(super) fn check(proof: &str, expected: Expected<'_>) -> Result<Proof, ProofError> {
    let jws = Unverified::parse(proof).map_err(|_| ProofError::Form)?;
    let claims: Claims = jws.claims().map_err(|_| ProofError::Form)?;
    if jws.header_str("typ") != Some("dpop+jwt") {
        return Err(ProofError::Typ);
    }
    let key = jws.verify_possession(expected.algorithms).map_err(|error| match error {
        JoseError::Algorithm => ProofError::Algorithm,
        JoseError::Header | JoseError::Key(_) => ProofError::Key,
        JoseError::Form | JoseError::Signature => ProofError::Signature,
    })?;
    if claims.htm != expected.method {
        return Err(ProofError::Method);
    }
    if !target::same(&claims.htu, expected.url) {
        return Err(ProofError::Target);
    }
    // The clock may stand anywhere: an age that no number holds is too old as well.
    if !expected.now.checked_sub(claims.iat).is_some_and(|age| (-WINDOW..=WINDOW).contains(&age)) {
        return Err(ProofError::Time);
    }
    if claims.ath != expected.token.map(ath) {
        return Err(ProofError::Token);
    }
    if !(1..=MAX_JTI).contains(&claims.jti.len()) {
        return Err(ProofError::Jti);
    }
    // The last second it is good in is `iat + WINDOW`.
    let until = claims.iat + WINDOW + 1;
    Ok(Proof { jkt: key.thumbprint(), jti: claims.jti, nonce: claims.nonce, until })
}

/// `ath`: what a proof says of the token it comes with (DPOP-03).
fn ath(token: &str) -> String {
    b64(digest::digest(&digest::SHA256, token.as_bytes()).as_ref())
}

/// The rule a proof broke.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum ProofError {
    #[error("the proof's alg is not one that is taken here, or not its key's")]
    Algorithm,
    #[error("the proof is not a compact JWS with jti, htm, htu and iat")]
    Form,
    #[error("too many proofs are remembered: try again in a minute")]
    Full,
    #[error("the proof's jti must have 1 to 128 characters")]
    Jti,
    #[error("the proof's header must hold a public jwk and nothing private, nor crit, jku, x5u or x5c")]
    Key,
    #[error("the proof's htm is not the method of this request, in upper case")]
    Method,
    #[error("send a DPoP header, made for this request alone")]
    Missing,
    #[error("put the nonce of the DPoP-Nonce header into a new proof")]
    Nonce,
    #[error("the proof's jti was used before: make a new proof for every attempt")]
    Replay,
    #[error("the proof's signature is not by the key in its header")]
    Signature,
    #[error("the proof's htu is not the URL of this request, without query and fragment")]
    Target,
    #[error("the proof's iat is more than 60 seconds from now: look at the clock")]
    Time,
    #[error("the proof's ath must be the hash of the access token it comes with, and is for nothing else")]
    Token,
    #[error("send one DPoP header, not two")]
    Twice,
    #[error("the proof's typ must be dpop+jwt")]
    Typ,
}

impl ProofError {
    /// The error code (RFC 9449 5, 8 and 9).
    pub(super) fn code(self) -> &'static str {
        match self {
            Self::Nonce => "use_dpop_nonce",
            Self::Full => "temporarily_unavailable",
            _ => "invalid_dpop_proof",
        }
    }
}

impl From<Spent> for ProofError {
    fn from(spent: Spent) -> Self {
        match spent {
            Spent::Before => Self::Replay,
            Spent::Full => Self::Full,
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        dev::tests::Holder,
        jose::{self, Header, PublicKey},
        keys::Key,
    };

    const NOW: i64 = 1_800_000_000;
    const TOKEN: &str = "Kz~8mXK1EalYznwH-LC-1fBAo.4Ljp~zsPE_NeO.gxU";
    const URL: &str = "https://orders.test/orders";

    fn expected(token: Option<&str>) -> Expected<'_> {
        let algorithms = &[Algorithm::Es256, Algorithm::EdDsa];
        Expected { algorithms, method: "GET", url: URL, token, now: NOW }
    }

    fn good() -> Value {
        json!({"jti": "1", "htm": "GET", "htu": URL, "iat": NOW, "nonce": "n"})
    }

    #[test]
    fn the_proofs_of_rfc_9449() {
        // RFC 9449 4.1 and 7.1 (DPOP-01, DPOP-02, DPOP-03, DPOP-05).
        let head = "eyJ0eXAiOiJkcG9wK2p3dCIsImFsZyI6IkVTMjU2IiwiandrIjp7Imt0eSI6IkVDIiwieCI6Imw4dEZyaHgtMzR0VjNoUkl\
                    DUkRZOXpDa0RscEJoRjQyVVFVZldWQVdCRnMiLCJ5IjoiOVZFNGpmX09rX282NHpiVFRsY3VOSmFqSG10NnY5VERWclUwQ2R\
                    2R1JEQSIsImNydiI6IlAtMjU2In19";
        let first = "eyJqdGkiOiItQndDM0VTYzZhY2MybFRjIiwiaHRtIjoiUE9TVCIsImh0dSI6Imh0dHBzOi8vc2VydmVyLmV4YW1wbGUuY29\
                     tL3Rva2VuIiwiaWF0IjoxNTYyMjYyNjE2fQ.2-GxA6T8lP4vfrg8v-FdWP0A0zdrj8igiMLvqRMUvwnQg4PtFLbdLXiOSsX\
                     0x7NVY-FNyJK70nfbV37xRZT3Lg";
        let second = "eyJqdGkiOiJlMWozVl9iS2ljOC1MQUVCIiwiaHRtIjoiR0VUIiwiaHR1IjoiaHR0cHM6Ly9yZXNvdXJjZS5leGFtcGxlLm9\
                      yZy9wcm90ZWN0ZWRyZXNvdXJjZSIsImlhdCI6MTU2MjI2MjYxOCwiYXRoIjoiZlVIeU8ycjJaM0RaNTNFc05yV0JiMHhXW\
                      G9hTnk1OUlpS0NBcWtzbVFFbyJ9.2oW9RP35yRqzhrtNP86L-Ey71EOptxRimPPToA1plemAgR6pxHF8y6-yqyVnmcw6Fy1\
                      dqd-jfxSYoMxhAJpLjA";
        let at_token = Expected {
            algorithms: &[Algorithm::Es256],
            method: "POST",
            url: "https://server.example.com/token",
            token: None,
            now: 1_562_262_616,
        };
        let proof = check(&format!("{head}.{first}"), at_token).unwrap();
        assert_eq!((proof.jti.as_str(), proof.until), ("-BwC3ESc6acc2lTc", 1_562_262_677));
        assert_eq!(proof.jkt, "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I");
        let at_api = Expected {
            method: "GET",
            url: "https://resource.example.org/protectedresource",
            token: Some(TOKEN),
            now: 1_562_262_618,
            ..at_token
        };
        assert_eq!(check(&format!("{head}.{second}"), at_api).unwrap().jti, "e1j3V_bKic8-LAEB");
    }

    #[test]
    fn the_hash_of_a_token() {
        // standards-vectors.json, rfc9449_ath (DPOP-03)
        assert_eq!(ath(TOKEN), "fUHyO2r2Z3DZ53EsNrWBb0xWXoaNy59IiKCAqksmQEo");
    }

    #[test]
    fn every_claim_counts() {
        // DPOP-02, DPOP-03, DPOP-12
        let holder = Holder::from_seed(1);
        let judge = |claims: &Value, expected| check(&holder.proof(claims), expected).map(|proof| proof.jkt);
        assert_eq!(judge(&good(), expected(None)), Ok(holder.jkt()));
        for (name, value, error) in [
            ("htm", json!("get"), ProofError::Method),
            ("htm", json!("POST"), ProofError::Method),
            ("htu", json!("https://orders.test/order"), ProofError::Target),
            ("htu", json!("https://orders.test/orders?a=b"), ProofError::Target),
            ("iat", json!(NOW - 61), ProofError::Time),
            ("iat", json!(NOW + 61), ProofError::Time),
            ("iat", json!(i64::MIN), ProofError::Time),
            ("iat", json!(i64::MAX), ProofError::Time),
            ("iat", json!("now"), ProofError::Form),
            ("ath", json!(ath(TOKEN)), ProofError::Token),
            ("jti", json!(""), ProofError::Jti),
            ("jti", json!("j".repeat(129)), ProofError::Jti),
            ("nonce", json!(7), ProofError::Form),
        ] {
            let mut claims = good();
            claims[name] = value;
            assert_eq!(judge(&claims, expected(None)), Err(error), "{claims}");
        }
        for name in ["jti", "htm", "htu", "iat"] {
            let mut claims = good();
            claims.as_object_mut().unwrap().remove(name);
            assert_eq!(judge(&claims, expected(None)), Err(ProofError::Form), "without {name}");
        }
        for iat in [NOW - 60, NOW + 60] {
            let mut claims = good();
            claims["iat"] = json!(iat);
            assert!(judge(&claims, expected(None)).is_ok(), "{iat}");
        }
        // With a token, its hash is wanted, and no other's.
        assert_eq!(judge(&good(), expected(Some(TOKEN))), Err(ProofError::Token));
        let mut claims = good();
        claims["ath"] = json!(ath(TOKEN));
        assert!(judge(&claims, expected(Some(TOKEN))).is_ok());
        assert_eq!(judge(&claims, expected(Some("other"))), Err(ProofError::Token));
    }

    #[test]
    fn the_header_names_its_own_public_key_and_the_proof_is_signed_by_it() {
        // DPOP-01, KEY-03
        let holder = Holder::from_seed(1);
        let header = holder.header();
        let judge = |header: &Value| check(&holder.sign(header, &good()), expected(None)).err();
        assert_eq!(judge(&header), None);
        let changed = |name: &str, value: Value| {
            let mut header = header.clone();
            header[name] = value;
            header
        };
        let other = Holder::from_seed(2).header()["jwk"].clone();
        for (name, value, error) in [
            ("typ", json!("JWT"), ProofError::Typ),
            ("typ", json!("DPoP+JWT"), ProofError::Typ),
            ("typ", Value::Null, ProofError::Typ),
            ("alg", json!("none"), ProofError::Algorithm),
            ("alg", json!("HS256"), ProofError::Algorithm),
            ("alg", json!("RS256"), ProofError::Algorithm),
            ("alg", json!("ES256"), ProofError::Algorithm),
            ("jwk", Value::Null, ProofError::Key),
            ("jwk", json!("key"), ProofError::Key),
            ("jwk", json!({"kty": "oct", "k": "AAAA"}), ProofError::Key),
            ("jwk", other, ProofError::Signature),
            ("crit", json!(["exp"]), ProofError::Key),
            ("jku", json!("https://other.test/jwks"), ProofError::Key),
            ("x5u", json!("https://other.test/cert"), ProofError::Key),
            ("x5c", json!([]), ProofError::Key),
        ] {
            let header = changed(name, value);
            assert_eq!(judge(&header), Some(error), "{header}");
        }
        let mut private = header.clone();
        private["jwk"]["d"] = json!("AAAA");
        assert_eq!(judge(&private), Some(ProofError::Key));
        let mut none = header.clone();
        none.as_object_mut().unwrap().remove("jwk");
        assert_eq!(judge(&none), Some(ProofError::Key));
        // What is not on the list is not taken, whoever signed.
        let es256 = Expected { algorithms: &[Algorithm::Es256], ..expected(None) };
        assert_eq!(check(&holder.proof(&good()), es256), Err(ProofError::Algorithm));
        // A key of ours under its name only, as our other JWTs are signed.
        let key = Key::generate(Algorithm::EdDsa).unwrap();
        let named = jose::sign(&key, Header { typ: "dpop+jwt" }, &good()).unwrap();
        assert_eq!(check(named.expose_str().unwrap(), expected(None)), Err(ProofError::Key));
        for text in ["", "a.b", "a.b.c", "e30.e30.e30"] {
            assert_eq!(check(text, expected(None)), Err(ProofError::Form), "{text:?}");
        }
        // One bit of the payload.
        let proof = holder.proof(&good());
        let mut later = good();
        later["iat"] = json!(NOW + 1);
        let (_, signature) = proof.rsplit_once('.').unwrap();
        let swapped = holder.proof(&later);
        let (signed, _) = swapped.rsplit_once('.').unwrap();
        assert_eq!(check(&format!("{signed}.{signature}"), expected(None)), Err(ProofError::Signature));
    }

    #[test]
    fn one_header_or_none() {
        // DPOP-04, RFC 9449 4.3, step 1
        let mut headers = HeaderMap::new();
        assert_eq!(sole(&headers), Ok(None));
        headers.append("DPoP", HeaderValue::from_static("a.b.c"));
        assert_eq!(sole(&headers), Ok(Some("a.b.c")));
        headers.append("dpop", HeaderValue::from_static("a.b.c"));
        assert_eq!(sole(&headers), Err(ProofError::Twice));
        headers.insert("dpop", HeaderValue::from_bytes(b"\xff").unwrap());
        assert_eq!(sole(&headers), Err(ProofError::Form));
    }

    #[test]
    fn the_diary_sees_names_only() {
        let holder = Holder::from_seed(1);
        let seen = Glimpse::of(&holder.proof(&good()));
        assert_eq!(seen.jkt, Some(holder.jkt()));
        assert_eq!((seen.jti.as_deref(), seen.nonce.as_deref()), (Some("1"), Some("n")));
        assert_eq!(Glimpse::of("x"), Glimpse::default());
        assert_eq!(PublicKey::from_jwk(&holder.header()["jwk"]).unwrap().thumbprint(), holder.jkt());
    }
}

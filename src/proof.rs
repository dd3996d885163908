//! Proofs of possession: DPoP (RFC 9449). In go a key, a method, where the request goes, and the token that goes with it; out
//! comes a signed proof, good for that one request. Nothing a caller chose is signed as it came: the URL is taken
//! apart and put together again, the method is one of a list, and no claim can be added (DPOP-24).

use std::{collections::BTreeMap, fmt, time::Duration};

use fluent_uri::Uri;
use http::HeaderMap;
use jiff::Timestamp;
use ring::digest;
use serde::Serialize;

use crate::{
    clock::{Boot, Dice},
    jose::{self, Header, SignError, Signer},
    secret::{Fingerprint, Secret},
};

/// The longest nonce that is kept (DPOP-10).
const MAX_NONCE: usize = 4096;

/// How long a nonce is used at most that no newer one replaces (DPOP-10).
const NONCE_LIFE: Duration = Duration::from_secs(24 * 60 * 60);

/// Nonces of so many servers and keys are kept; beyond, the oldest is forgotten.
const MAX_NONCES: usize = 1024;

/// Where a request goes, as a proof names it. Equal are two that a server may take for the same.
#[derive(Clone, Debug)]
pub struct Target {
    htu: String,
    origin: usize,
    normal: String,
}

impl Eq for Target {}

impl PartialEq for Target {
    fn eq(&self, other: &Self) -> bool {
        self.normal == other.normal
    }
}

impl Target {
    /// Reads a URL: query and fragment fall away, the rest is brought to its normal form (RFC 9449 4.2, RFC 3986 6.2.2;
    /// DPOP-02). Only percent-encoding stays as it was written: it comes over the wire like that, and servers that
    /// compare `htu` without decoding it are many.
    ///
    /// # Errors
    /// [`TargetError`] says what is wrong with it.
    pub fn parse(url: &str) -> Result<Self, TargetError> {
        let written = Uri::parse(url).map_err(|_| TargetError::Form)?;
        let uri = written.normalize();
        let scheme = uri.scheme().as_str();
        if !matches!(scheme, "http" | "https") {
            return Err(TargetError::Scheme);
        }
        let authority = uri.authority().filter(|at| !at.host().is_empty()).ok_or(TargetError::Form)?;
        if authority.userinfo().is_some() {
            return Err(TargetError::User);
        }
        let mut htu = format!("{scheme}://{authority}");
        let origin = htu.len();
        let [written, resolved] =
            [&written.path(), &uri.path()].map(|path| if path.is_empty() { "/" } else { path.as_str() });
        let normal = format!("{htu}{resolved}");
        // Clients resolve dots before they send.
        let dotted = written.split('/').any(|part| matches!(part, "." | ".."));
        htu.push_str(if dotted { resolved } else { written });
        Ok(Self { htu, origin, normal })
    }

    /// The whole of it, as `htu` has it.
    pub fn htu(&self) -> &str {
        &self.htu
    }

    /// Scheme, host and port.
    pub fn origin(&self) -> &str {
        &self.htu[..self.origin]
    }

    /// Whether a server that is careless about letters, slashes at the end and parameters of a path would take one for the other.
    pub fn resembles(&self, other: &Self) -> bool {
        let steps = |target: &Self| -> Vec<String> {
            let path = target.normal.get(target.origin..).unwrap_or_default().trim_end_matches('/');
            path.split('/')
                .map(|step| step.split(';').next().unwrap_or_default().to_ascii_lowercase())
                .collect()
        };
        self.origin() == other.origin() && steps(self) == steps(other)
    }

    /// Whether it goes over TLS.
    pub fn is_https(&self) -> bool {
        self.htu.starts_with("https:")
    }

    /// Whether it goes no further than this host.
    pub fn is_loopback(&self) -> bool {
        let host = &self.origin()[if self.is_https() { "https://" } else { "http://" }.len()..];
        ["127.0.0.1", "[::1]", "localhost"]
            .iter()
            .any(|own| host.strip_prefix(own).is_some_and(|port| port.is_empty() || port.starts_with(':')))
    }
}

/// Why a URL is no target of a proof.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum TargetError {
    /// Not a URL with a host.
    #[error("it is not a URL: write it as https://host/path")]
    Form,
    /// Another scheme.
    #[error("it is neither https nor http: write it as https://host/path")]
    Scheme,
    /// It names a user.
    #[error("it holds a user name: leave out everything before the @")]
    User,
}

/// What one proof says.
#[derive(Clone, Copy, Debug)]
pub struct Claim<'a> {
    /// The method, as it will be sent.
    pub method: &'a str,
    /// Where to.
    pub target: &'a Target,
    /// The token it goes with; none at a token endpoint (DPOP-03).
    pub token: Option<&'a Secret>,
    /// What the server wants to see in it.
    pub nonce: Option<&'a Nonce>,
    /// The server's now.
    pub now: Timestamp,
}

/// A proof, and what may be said of it.
#[derive(Debug)]
pub struct Proof {
    /// The value of the `DPoP` header, good once.
    pub text: Secret,
    /// The fingerprint of its `jti` (AUD-05).
    pub jti: Fingerprint,
}

#[derive(Serialize)]
struct Claims<'a> {
    jti: &'a str,
    htm: &'a str,
    htu: &'a str,
    iat: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    ath: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nonce: Option<&'a str>,
}

impl Claim<'_> {
    /// Signs it with a `jti` fresh from `dice` (DPOP-01, DPOP-02, DPOP-12).
    ///
    /// # Errors
    /// [`SignError`] from custody.
    pub fn sign(self, signer: &dyn Signer, dice: &dyn Dice) -> Result<Proof, SignError> {
        let mut chance = [0; 16];
        dice.fill(&mut chance);
        let jti = jose::b64(&chance);
        let claims = Claims {
            jti: &jti,
            htm: self.method,
            htu: self.target.htu(),
            iat: self.now.as_second(),
            ath: self.token.map(ath),
            nonce: self.nonce.map(|nonce| &*nonce.0),
        };
        let text = jose::sign_showing_key(signer, Header { typ: "dpop+jwt" }, &claims)?;
        Ok(Proof { text, jti: Fingerprint::of(jti.as_bytes()) })
    }
}

/// The hash of a token that a proof carries (RFC 9449 4.2).
fn ath(token: &Secret) -> String {
    jose::b64(digest::digest(&digest::SHA256, token.expose()).as_ref())
}

/// What a server wants to see in the next proof: printable, and not long.
#[derive(Clone, Eq, PartialEq)]
pub struct Nonce(String);

impl Nonce {
    /// Takes a nonce as a server sent it. `None` if it holds what none may hold (RFC 9449 8.1: `NQCHAR`; DPOP-10).
    pub fn parse(text: &str) -> Option<Self> {
        let sound = |byte: u8| matches!(byte, 0x21 | 0x23..=0x5b | 0x5d..=0x7e);
        ((1..=MAX_NONCE).contains(&text.len()) && text.bytes().all(sound)).then(|| Self(text.to_owned()))
    }
}

/// What an answer said about the next proof.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Told {
    /// It is to hold this.
    New(Nonce),
    /// Nothing.
    Nothing,
    /// Something that is not to be used, and why (DPOP-09, DPOP-10).
    Unusable(&'static str),
}

impl Told {
    /// Reads the `DPoP-Nonce` of any answer, whatever its status (RFC 9449 8.2, DPOP-09).
    pub fn by(headers: &HeaderMap) -> Self {
        let mut sent = headers.get_all("dpop-nonce").into_iter();
        match (sent.next(), sent.next()) {
            (None, _) => Self::Nothing,
            (Some(_), Some(_)) => Self::Unusable("there are two of them"),
            (Some(only), None) => only.to_str().ok().and_then(Nonce::parse).map_or(
                Self::Unusable("it is longer than 4 KiB or holds characters that no nonce may hold"),
                Self::New,
            ),
        }
    }
}

impl fmt::Debug for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Nonce(..)")
    }
}

/// The last nonce of each server, for each key: that of one is never sent to another (DPOP-10). In memory only.
#[derive(Debug, Default)]
pub struct Nonces(BTreeMap<(String, String), (Boot, Nonce)>);

impl Nonces {
    /// What `origin` wants to see in the next proof by the key `kid` (DPOP-11).
    pub fn current(&self, kid: &str, origin: &str, now: Boot) -> Option<Nonce> {
        let (since, nonce) = self.0.get(&(kid.to_owned(), origin.to_owned()))?;
        (now.since(*since) < NONCE_LIFE).then(|| nonce.clone())
    }

    /// The server said it anew; what it said before is void (DPOP-09).
    pub fn keep(&mut self, kid: &str, origin: &str, nonce: Nonce, now: Boot) {
        self.0.insert((kid.to_owned(), origin.to_owned()), (now, nonce));
        if self.0.len() > MAX_NONCES {
            let oldest = self.0.iter().min_by_key(|(_, (since, _))| *since).map(|(slot, _)| slot.clone());
            oldest.and_then(|slot| self.0.remove(&slot));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        clock::{SeededDice, SystemDice},
        jose::{Algorithm, Unverified},
        keys::Key,
    };

    fn claim<'a>(target: &'a Target, token: Option<&'a Secret>, nonce: Option<&'a Nonce>) -> Claim<'a> {
        Claim { method: "POST", target, token, nonce, now: Timestamp::from_second(1_700_000_000).unwrap() }
    }

    #[test]
    fn a_url_becomes_its_normal_form_without_query_and_fragment() {
        // DPOP-02
        for (url, htu) in [
            ("https://api.example/orders", "https://api.example/orders"),
            ("https://api.example/orders/", "https://api.example/orders/"),
            ("https://api.example", "https://api.example/"),
            ("https://api.example?a=1", "https://api.example/"),
            ("https://api.example/orders?a=1&b=2", "https://api.example/orders"),
            ("https://api.example/orders#top", "https://api.example/orders"),
            ("https://api.example/orders?a#b?c", "https://api.example/orders"),
            ("HTTPS://API.Example/Orders", "https://api.example/Orders"),
            ("https://api.example:443/orders", "https://api.example/orders"),
            ("https://api.example:/orders", "https://api.example/orders"),
            ("https://api.example:8443/orders", "https://api.example:8443/orders"),
            ("http://127.0.0.1:80/orders", "http://127.0.0.1/orders"),
            ("http://127.0.0.1:443/orders", "http://127.0.0.1:443/orders"),
            ("https://api.example/a/./b/../c", "https://api.example/a/c"),
            ("https://api.example/../../a", "https://api.example/a"),
            ("https://api.example/%7euser/%2f", "https://api.example/%7euser/%2f"),
            ("https://api.example/%6Frders", "https://api.example/%6Frders"),
            ("https://api.example/a%20b", "https://api.example/a%20b"),
            ("https://[2001:DB8::1]:443/x", "https://[2001:db8::1]/x"),
            ("https://api.example//a//b", "https://api.example//a//b"),
        ] {
            assert_eq!(Target::parse(url).unwrap().htu(), htu, "{url}");
        }
        for (url, error) in [
            ("orders", TargetError::Form),
            ("https:///orders", TargetError::Form),
            ("https://api.example/a b", TargetError::Form),
            ("https://api.example/\r\nx: y", TargetError::Form),
            ("https://me@api.example/", TargetError::User),
            ("file:///etc/passwd", TargetError::Scheme),
            ("ftp://api.example/", TargetError::Scheme),
        ] {
            assert_eq!(Target::parse(url), Err(error), "{url:?}");
        }
    }

    #[test]
    fn targets_are_equal_if_a_server_may_take_one_for_the_other() {
        // DPOP-20: or a workload could write the issuer's endpoint in a way that only the issuer sees through.
        let token = Target::parse("https://op.example/token").unwrap();
        for url in [
            "https://op.example/%74oken",
            "https://op.example/x/%2e%2e/token?a",
            "HTTPS://OP.example:443/./token",
        ] {
            assert_eq!(Target::parse(url).unwrap(), token, "{url}");
        }
        for url in ["https://op.example/Token", "https://op.example/token/", "https://op.example:8443/token"]
        {
            assert_ne!(Target::parse(url).unwrap(), token, "{url}");
        }
    }

    #[test]
    fn targets_resemble_each_other_if_a_careless_server_takes_one_for_the_other() {
        // DPOP-20: routers that ignore case and a slash at the end are many.
        let token = Target::parse("https://op.example/a/token").unwrap();
        for url in [
            "https://op.example/a/token",
            "https://op.example/a/token/",
            "https://op.example/A/TOKEN",
            "https://op.example/a/%54oken;x=y//?z",
            "https://op.example/a;b/token",
        ] {
            assert!(Target::parse(url).unwrap().resembles(&token), "{url}");
        }
        for url in [
            "https://op.example/a/tokens",
            "https://op.example/a",
            "https://op.example/a/token/x",
            "https://op.example:1/a/token",
        ] {
            assert!(!Target::parse(url).unwrap().resembles(&token), "{url}");
        }
        let root = Target::parse("https://op.example").unwrap();
        assert!(root.resembles(&Target::parse("https://op.example/").unwrap()) && !root.resembles(&token));
    }

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        // DPOP-19
        for (url, origin, loopback) in [
            ("https://API.example:443/a/b?c", "https://api.example", false),
            ("https://api.example:8443", "https://api.example:8443", false),
            ("https://127.0.0.1/", "https://127.0.0.1", true),
            ("http://127.0.0.1:9/x", "http://127.0.0.1:9", true),
            ("http://[::1]/", "http://[::1]", true),
            ("http://localhost.evil.example/", "http://localhost.evil.example", false),
            ("http://127.0.0.1.evil.example/", "http://127.0.0.1.evil.example", false),
            ("http://api.example/", "http://api.example", false),
        ] {
            let target = Target::parse(url).unwrap();
            assert_eq!((target.origin(), target.is_loopback()), (origin, loopback), "{url}");
            assert_eq!(target.is_https(), url.starts_with("https"));
        }
    }

    #[test]
    fn the_hash_of_a_token_is_that_of_rfc_9449() {
        // DPOP-03, standards-vectors.json rfc9449_ath
        let token = Secret::new("Kz~8mXK1EalYznwH-LC-1fBAo.4Ljp~zsPE_NeO.gxU");
        assert_eq!(ath(&token), "fUHyO2r2Z3DZ53EsNrWBb0xWXoaNy59IiKCAqksmQEo");
        // The same of wimse_wit_wpt.
        let token = Secret::new("16_mAd0GiwaZokU26_0902100");
        assert_eq!(ath(&token), "CL4wjfpRmNf-bdYIbYLnV9d5rMARGwKYE10wUwzC0jI");
    }

    #[test]
    fn a_proof_says_this_and_nothing_else() {
        // DPOP-01, DPOP-02, DPOP-03
        for algorithm in [Algorithm::Es256, Algorithm::EdDsa] {
            let key = Key::generate(algorithm).unwrap();
            let target = Target::parse("https://api.example/orders?id=7").unwrap();
            let (token, nonce) = (Secret::new("canary"), Nonce::parse("n-1").unwrap());
            for (token, nonce, claims) in [
                (None, None, vec!["htm", "htu", "iat", "jti"]),
                (Some(&token), Some(&nonce), vec!["ath", "htm", "htu", "iat", "jti", "nonce"]),
            ] {
                let proof = claim(&target, token, nonce).sign(&key, &*SystemDice::shared()).unwrap();
                let jws = Unverified::parse(proof.text.expose_str().unwrap()).unwrap();
                assert_eq!(jws.header.keys().collect::<Vec<_>>(), ["alg", "jwk", "typ"]);
                assert_eq!(jws.header["typ"], "dpop+jwt");
                let jwk = &jws.header["jwk"];
                assert_eq!(jose::PublicKey::from_jwk(jwk).as_ref(), Ok(key.public()), "public members only");
                let said: Value = jws.claims().unwrap();
                assert_eq!(said.as_object().unwrap().keys().collect::<Vec<_>>(), claims);
                assert_eq!(
                    (&said["htm"], &said["htu"]),
                    (&json!("POST"), &json!("https://api.example/orders"))
                );
                assert_eq!(said["iat"], 1_700_000_000);
                let jti = said["jti"].as_str().unwrap();
                assert_eq!((jti.len(), Fingerprint::of(jti.as_bytes())), (22, proof.jti));
            }
        }
    }

    #[test]
    fn no_two_proofs_are_the_same() {
        // DPOP-12
        let key = Key::generate(Algorithm::Es256).unwrap();
        let target = Target::parse("https://api.example/").unwrap();
        let dice = SeededDice::from_seed(1);
        let jtis: std::collections::HashSet<_> =
            (0..1000).map(|_| claim(&target, None, None).sign(&key, &*dice).unwrap().jti).collect();
        assert_eq!(jtis.len(), 1000);
    }

    #[test]
    fn a_nonce_holds_nothing_that_could_end_a_header_or_a_string() {
        // DPOP-10
        assert!(Nonce::parse("eyJ7S_zG.eyJH0-Z.HX4w-7v!#~[]").is_some());
        for text in ["", "a b", "a\"b", "a\\b", "a\r\nb", "a\tb", "\u{7f}", "\u{e9}", &"n".repeat(4097)] {
            assert_eq!(Nonce::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn nonces_are_kept_by_server_and_key_and_not_for_ever() {
        // DPOP-09, DPOP-10, DPOP-11
        let (nonce, start) = (|text: &str| Nonce::parse(text).unwrap(), Boot::from_nanos(0));
        let mut nonces = Nonces::default();
        nonces.keep("k1", "https://a.example", nonce("one"), start);
        nonces.keep("k1", "https://a.example", nonce("two"), start);
        assert_eq!(nonces.current("k1", "https://a.example", start), Some(nonce("two")));
        assert_eq!(nonces.current("k1", "https://b.example", start), None);
        assert_eq!(nonces.current("k2", "https://a.example", start), None);
        assert_eq!(nonces.current("k1", "https://a.example", start + NONCE_LIFE), None);
        for n in 0..2 * MAX_NONCES as u64 {
            nonces.keep("k1", &format!("https://{n}.example"), nonce("x"), start + Duration::from_secs(n));
        }
        assert_eq!(nonces.0.len(), MAX_NONCES);
        assert_eq!(nonces.current("k1", "https://0.example", start), None, "the oldest is forgotten");
    }
}

//! Whom else we believe. In goes an issuer with its public keys, registered by hand and never fetched; later, a JWT of
//! it; out come the claims, or the one rule that was broken. An issuer may be a URL, or a SPIFFE trust domain
//! (`spiffe://example.org`) whose JWT-SVIDs name it in `sub`.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::{
    register::{RegisterError, algorithm_of},
    spiffe,
};
use crate::jose::{Algorithm, PublicKey, Unverified};

/// How far an issuer's clock may be ahead of ours, in seconds.
const SKEW: i64 = 15;

/// More issuers than a development host has.
const MAX_ISSUERS: usize = 100;

/// More keys than an issuer has.
const MAX_KEYS: usize = 32;

/// The issuers whose JWTs count here.
#[derive(Debug, Default)]
pub(super) struct Trust(BTreeMap<String, Vec<Trusted>>);

#[derive(Debug)]
struct Trusted {
    /// As its issuer names it, which need not be a thumbprint.
    kid: Option<String>,
    key: PublicKey,
    algorithm: Algorithm,
}

/// What a JWT of somebody else is held against.
#[derive(Clone, Copy, Debug)]
pub(super) struct Demands<'a> {
    /// Us: its one audience (DR-02).
    pub(super) audience: &'a str,
    /// The kinds it may be; `None` stands for no `typ` at all.
    pub(super) kinds: &'a [Option<&'a str>],
    /// The longest it may still live, in seconds.
    pub(super) most: i64,
    /// Now, in seconds since the epoch.
    pub(super) now: i64,
}

/// What a good JWT of somebody else says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Foreign {
    pub(super) issuer: String,
    pub(super) subject: String,
    /// Its one-time value, where it has one.
    pub(super) jti: Option<String>,
    pub(super) exp: i64,
    /// Who acts for the subject already (RFC 8693 4.1).
    pub(super) act: Option<Value>,
}

#[derive(Deserialize)]
struct Claims {
    iss: Option<String>,
    sub: String,
    aud: Value,
    exp: i64,
    iat: Option<i64>,
    nbf: Option<i64>,
    jti: Option<String>,
    act: Option<Value>,
}

impl Trust {
    /// Reads `{issuer, jwks: {keys: [..]}}` and believes that issuer from now on, by these keys alone. Keys that are not
    /// for signing are left out. The issuer's name comes back.
    pub(super) fn add_json(&mut self, body: &[u8]) -> Result<String, RegisterError> {
        let written: Written = serde_json::from_slice(body).map_err(|_| RegisterError::TrustJson)?;
        self.add(&written.issuer, &written.jwks)?;
        Ok(written.issuer)
    }

    /// Believes `issuer` from now on, by the keys of `jwks` alone.
    pub(super) fn add(&mut self, issuer: &str, jwks: &Value) -> Result<(), RegisterError> {
        let known = |scheme: &&str| issuer.len() > scheme.len() && issuer.starts_with(scheme);
        let schemes = ["https://", "http://", "spiffe://"];
        if !schemes.iter().any(known) || !issuer.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(RegisterError::Issuer);
        }
        let written = jwks["keys"].as_array().ok_or(RegisterError::TrustJson)?;
        let signs =
            |jwk: &&Value| jwk.get("use").is_none_or(|purpose| purpose == "sig" || purpose == "jwt-svid");
        let keys = written.iter().filter(signs).map(Trusted::read).collect::<Result<Vec<_>, _>>()?;
        if keys.is_empty() {
            return Err(RegisterError::NoKey);
        }
        if keys.len() > MAX_KEYS || (self.0.len() >= MAX_ISSUERS && !self.0.contains_key(issuer)) {
            return Err(RegisterError::TooMuchTrust);
        }
        self.0.insert(issuer.to_owned(), keys);
        Ok(())
    }

    /// Whether an issuer of that name is believed.
    pub(super) fn knows(&self, issuer: &str) -> bool {
        self.0.contains_key(issuer)
    }

    /// Holds a JWT, whose issuer is its `iss`, against `demands`.
    pub(super) fn check(&self, token: &str, demands: Demands<'_>) -> Result<Foreign, ForeignError> {
        let jws = Unverified::parse(token).map_err(|_| ForeignError::Form)?;
        let claims: Claims = jws.claims().map_err(|_| ForeignError::Form)?;
        let issuer = claims.iss.clone().ok_or(ForeignError::Form)?;
        self.judge(&jws, issuer, claims, demands)
    }

    /// Holds a JWT-SVID against `demands`: its issuer is the trust domain of its `sub`, and its header is closed (SPF-03).
    pub(super) fn check_svid(&self, token: &str, demands: Demands<'_>) -> Result<Foreign, ForeignError> {
        let jws = Unverified::parse(token).map_err(|_| ForeignError::Form)?;
        let claims: Claims = jws.claims().map_err(|_| ForeignError::Form)?;
        let closed = jws.header.keys().all(|name| ["alg", "kid", "typ"].contains(&name.as_str()));
        if !closed || !matches!(jws.header_str("alg"), Some("ES256" | "PS256" | "RS256")) {
            return Err(ForeignError::Svid);
        }
        let domain = spiffe::trust_domain(&claims.sub).ok_or(ForeignError::SpiffeId)?.to_owned();
        self.judge(&jws, domain, claims, demands)
    }

    fn judge(
        &self,
        jws: &Unverified<'_>,
        issuer: String,
        claims: Claims,
        demands: Demands<'_>,
    ) -> Result<Foreign, ForeignError> {
        let typ = jws.header.get("typ").map(|typ| typ.as_str().unwrap_or_default());
        if !demands.kinds.contains(&typ) {
            return Err(ForeignError::Kind);
        }
        let keys = self.0.get(&issuer).ok_or(ForeignError::Issuer)?;
        // A JWT without a kid may be by any of them; the key says which algorithm is used, not the token.
        let kid = jws.header.get("kid").map(|kid| kid.as_str().unwrap_or_default());
        let mut named = keys.iter().filter(|trusted| kid.is_none_or(|kid| trusted.is_called(kid))).peekable();
        if named.peek().is_none() {
            return Err(ForeignError::Key);
        }
        if !named.any(|trusted| jws.verify(&trusted.key, &[trusted.algorithm]).is_ok()) {
            return Err(ForeignError::Signature);
        }
        let audience = match &claims.aud {
            Value::Array(list) if list.len() == 1 => list[0].as_str(),
            aud => aud.as_str(),
        };
        if audience != Some(demands.audience) {
            return Err(ForeignError::Audience);
        }
        if claims.exp <= demands.now {
            return Err(ForeignError::Expired);
        }
        if claims.exp > demands.now.saturating_add(demands.most) {
            return Err(ForeignError::Life { most: demands.most });
        }
        if [claims.iat, claims.nbf].into_iter().flatten().any(|at| at > demands.now.saturating_add(SKEW)) {
            return Err(ForeignError::Future);
        }
        if claims.sub.is_empty() {
            return Err(ForeignError::Form);
        }
        Ok(Foreign { issuer, subject: claims.sub, jti: claims.jti, exp: claims.exp, act: claims.act })
    }
}

impl Trusted {
    fn read(jwk: &Value) -> Result<Self, RegisterError> {
        let (key, algorithm) = algorithm_of(jwk)?;
        let kid = jwk.get("kid").and_then(Value::as_str).map(str::to_owned);
        Ok(Self { kid, key, algorithm })
    }

    fn is_called(&self, kid: &str) -> bool {
        match &self.kid {
            Some(own) => own == kid,
            None => self.key.thumbprint() == kid,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    issuer: String,
    jwks: Value,
}

/// The rule that a JWT of somebody else broke.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum ForeignError {
    #[error("aud must be this issuer's identifier and nothing else")]
    Audience,
    #[error("no client is registered for its subject: POST /dev/clients registers one")]
    Client,
    #[error("it has expired")]
    Expired,
    #[error("it is not a compact JWS with iss, sub, aud and exp")]
    Form,
    #[error("it was issued in the future: look at the clocks")]
    Future,
    #[error("its issuer is not trusted here: POST /dev/trust registers it")]
    Issuer,
    #[error("its jti must have 1 to 128 characters")]
    Jti,
    #[error("its kid names no key of its issuer")]
    Key,
    #[error("its typ is of another kind of token")]
    Kind,
    #[error("it may live at most {most} s from now")]
    Life {
        /// How long, in seconds.
        most: i64,
    },
    #[error("its jti was used before: get a new one for every attempt")]
    Replay,
    #[error("its signature or algorithm is not its issuer's")]
    Signature,
    #[error("its sub is no SPIFFE ID with a path")]
    SpiffeId,
    #[error("its sub is the name of a client here")]
    Subject,
    #[error(
        "the header of a JWT-SVID holds alg (ES256, PS256 or RS256), kid, typ (JWT or JOSE) and nothing else"
    )]
    Svid,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        jose::{self, Header, Signer as _},
        keys::Key,
    };

    const NOW: i64 = 1_800_000_000;
    const US: &str = "http://127.0.0.1:1";
    const THEM: &str = "https://ci.test";

    fn demands() -> Demands<'static> {
        Demands { audience: US, kinds: &[None, Some("JWT")], most: 300, now: NOW }
    }

    fn good() -> Value {
        json!({"iss": THEM, "sub": "job:7", "aud": US, "exp": NOW + 300, "iat": NOW, "jti": "1"})
    }

    fn signed(key: &Key, typ: &str, claims: &Value) -> String {
        jose::sign(key, Header { typ }, claims).unwrap().expose_str().unwrap().to_owned()
    }

    fn trusting(key: &Key) -> Trust {
        let mut trust = Trust::default();
        trust.add(THEM, &json!({"keys": [key.public().jwk(key.algorithm())]})).unwrap();
        trust
    }

    #[test]
    fn every_claim_of_a_strangers_jwt_counts() {
        // OA-22, OA-26, DR-02
        let key = Key::generate(Algorithm::Es256).unwrap();
        let trust = trusting(&key);
        let judge = |typ: &str, claims: &Value| trust.check(&signed(&key, typ, claims), demands());
        let read = judge("JWT", &good()).unwrap();
        assert_eq!(
            (read.issuer.as_str(), read.subject.as_str(), read.jti.as_deref()),
            (THEM, "job:7", Some("1"))
        );
        for (name, value, error) in [
            ("iss", json!("https://ci.test/"), ForeignError::Issuer),
            ("iss", Value::Null, ForeignError::Form),
            ("sub", Value::Null, ForeignError::Form),
            ("sub", json!(""), ForeignError::Form),
            ("aud", json!(format!("{US}/")), ForeignError::Audience),
            ("aud", json!(format!("{US}/token")), ForeignError::Audience),
            ("aud", json!([US, "https://other.test"]), ForeignError::Audience),
            ("aud", json!([US, US]), ForeignError::Audience),
            ("aud", json!([]), ForeignError::Audience),
            ("aud", Value::Null, ForeignError::Audience),
            ("exp", json!(NOW), ForeignError::Expired),
            ("exp", json!(NOW + 301), ForeignError::Life { most: 300 }),
            ("exp", json!(i64::MAX), ForeignError::Life { most: 300 }),
            ("exp", Value::Null, ForeignError::Form),
            ("iat", json!(NOW + 16), ForeignError::Future),
            ("nbf", json!(NOW + 16), ForeignError::Future),
        ] {
            let mut claims = good();
            claims[name] = value;
            assert_eq!(judge("JWT", &claims), Err(error), "{claims}");
        }
        let mut listed = good();
        listed["aud"] = json!([US]);
        assert!(judge("JWT", &listed).is_ok(), "one value in a list is one value");
        for typ in ["at+jwt", "dpop+jwt", "JOSE", "client-authentication+jwt", ""] {
            assert_eq!(judge(typ, &good()), Err(ForeignError::Kind), "{typ}");
        }
    }

    #[test]
    fn a_strangers_keys_are_those_that_were_registered() {
        // OA-41, RFC 8725
        let (key, other) =
            (Key::generate(Algorithm::Es256).unwrap(), Key::generate(Algorithm::Es256).unwrap());
        let mut trust = trusting(&key);
        assert_eq!(trust.check(&signed(&other, "JWT", &good()), demands()), Err(ForeignError::Key));
        // Their kid is their own affair; without one, their name for it must be its thumbprint.
        let named = |key: &Key, kid: &str| {
            let mut jwk = key.public().jwk(Algorithm::Es256);
            jwk["kid"] = json!(kid);
            jwk
        };
        trust.add(THEM, &json!({"keys": [named(&key, "2026")]})).unwrap();
        assert_eq!(trust.check(&signed(&key, "JWT", &good()), demands()), Err(ForeignError::Key));
        trust.add(THEM, &json!({"keys": [named(&other, key.kid())]})).unwrap();
        assert_eq!(trust.check(&signed(&key, "JWT", &good()), demands()), Err(ForeignError::Signature));
        assert_eq!(trust.check("a.b", demands()), Err(ForeignError::Form));
    }

    #[test]
    fn a_jwt_svid_is_of_its_trust_domain_and_has_a_closed_header() {
        // DR-05, SPF-03
        let key = Key::generate(Algorithm::Es256).unwrap();
        let mut trust = Trust::default();
        let mut jwk = key.public().jwk(Algorithm::Es256);
        jwk["use"] = json!("jwt-svid");
        let x509 = json!({"kty": "EC", "crv": "P-384", "use": "x509-svid"});
        trust.add("spiffe://example.org", &json!({"keys": [x509, jwk]})).unwrap();
        let demands = Demands { kinds: &[None, Some("JWT"), Some("JOSE")], ..demands() };
        let good = json!({"sub": "spiffe://example.org/shop", "aud": [US], "exp": NOW + 300});
        for typ in ["JWT", "JOSE"] {
            let read = trust.check_svid(&signed(&key, typ, &good), demands).unwrap();
            assert_eq!(
                (read.issuer.as_str(), read.subject.as_str()),
                ("spiffe://example.org", "spiffe://example.org/shop")
            );
        }
        let wrong = trust.check_svid(&signed(&key, "client-authentication+jwt", &good), demands);
        assert_eq!(wrong, Err(ForeignError::Kind));
        for (name, value, error) in [
            ("sub", json!("spiffe://other.test/shop"), ForeignError::Issuer),
            ("sub", json!("spiffe://example.org"), ForeignError::SpiffeId),
            ("sub", json!("shop"), ForeignError::SpiffeId),
            ("aud", json!([US, "https://other.test"]), ForeignError::Audience),
            ("exp", json!(NOW), ForeignError::Expired),
        ] {
            let mut claims = good.clone();
            claims[name] = value;
            assert_eq!(trust.check_svid(&signed(&key, "JWT", &claims), demands), Err(error), "{claims}");
        }
        // Anything more in the header, or an algorithm that SVIDs do not have.
        let forged = |header: Value| {
            let part = |value: &Value| jose::b64(value.to_string().as_bytes());
            format!("{}.{}.c2ln", part(&header), part(&good))
        };
        for header in [
            json!({"alg": "ES256", "kid": key.kid(), "typ": "JWT", "cty": "JWT"}),
            json!({"alg": "ES256", "jku": "https://other.test"}),
            json!({"alg": "EdDSA", "kid": key.kid()}),
            json!({"alg": "none", "kid": key.kid()}),
        ] {
            assert_eq!(
                trust.check_svid(&forged(header.clone()), demands),
                Err(ForeignError::Svid),
                "{header}"
            );
        }
        let unsigned = forged(json!({"alg": "ES256"}));
        assert_eq!(trust.check_svid(&unsigned, demands), Err(ForeignError::Signature));
    }

    #[test]
    fn trust_without_a_name_or_a_key_is_refused() {
        // KEY-03
        let key = Key::generate(Algorithm::Es256).unwrap();
        let jwk = key.public().jwk(Algorithm::Es256);
        let mut trust = Trust::default();
        for issuer in ["", "ci", "https://", "https://a b", "ftp://ci.test"] {
            assert_eq!(trust.add(issuer, &json!({"keys": [jwk]})), Err(RegisterError::Issuer), "{issuer}");
        }
        let mut encrypts = jwk.clone();
        encrypts["use"] = json!("enc");
        for keys in [json!([]), json!([encrypts])] {
            assert_eq!(trust.add(THEM, &json!({"keys": keys})), Err(RegisterError::NoKey));
        }
        assert_eq!(trust.add(THEM, &json!({})), Err(RegisterError::TrustJson));
        let mut private = jwk.clone();
        private["d"] = json!("AAAA");
        let refused = trust.add(THEM, &json!({"keys": [private]}));
        assert_eq!(refused, Err(RegisterError::Key("it holds a private member")));
        let many: Vec<&Value> = std::iter::repeat_n(&jwk, MAX_KEYS + 1).collect();
        assert_eq!(trust.add(THEM, &json!({"keys": many})), Err(RegisterError::TooMuchTrust));
        for number in 0..MAX_ISSUERS {
            trust.add(&format!("https://ci{number}.test"), &json!({"keys": [jwk]})).unwrap();
        }
        assert_eq!(trust.add(THEM, &json!({"keys": [jwk]})), Err(RegisterError::TooMuchTrust));
        assert!(trust.add("https://ci0.test", &json!({"keys": [jwk]})).is_ok(), "it is there already");
    }
}

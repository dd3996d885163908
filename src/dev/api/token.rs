//! What the demo API believes of a token (RFC 9068 4). In goes its text and the issuer's keys; out come its claims, or the
//! one rule it broke. Whether it was revoked, and whether its key was proved, is for whoever asks.

use serde::Deserialize;
use serde_json::Value;

use super::denial::Denial;
use crate::jose::{Algorithm, PublicKey, Unverified};

/// What a token is held against.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules<'a> {
    pub(super) issuer: &'a str,
    pub(super) audience: &'a str,
    pub(super) scope: &'a str,
}

/// The claims of RFC 9068, all of them required, and the key that the token is bound to.
#[derive(Debug, Deserialize)]
pub(super) struct Claims {
    iss: String,
    aud: Value,
    exp: i64,
    iat: i64,
    #[serde(rename = "sub")]
    _sub: String,
    pub(super) client_id: String,
    pub(super) jti: String,
    pub(super) cnf: Option<Confirmation>,
    #[serde(default)]
    scope: String,
}

/// Whose key the token needs. What is bound in a way we do not know is bound, and to nobody here.
#[derive(Debug, Deserialize)]
pub(super) struct Confirmation {
    /// The RFC 7638 thumbprint (RFC 9449 6.1).
    pub(super) jkt: Option<String>,
}

/// Holds `token` against everything but revocation, at `now` in seconds since the epoch.
pub(super) fn check(
    token: &str,
    keys: &[(PublicKey, Algorithm)],
    rules: Rules<'_>,
    now: i64,
) -> Result<Claims, Denial> {
    let jws = Unverified::parse(token).map_err(|_| Denial::Form)?;
    // RFC 9068 4: no other kind of token passes for an access token.
    if !matches!(jws.header_str("typ"), Some("at+jwt" | "application/at+jwt")) {
        return Err(Denial::Typ);
    }
    let kid = jws.header_str("kid").ok_or(Denial::Key)?;
    let (key, algorithm) = keys.iter().find(|(key, _)| key.thumbprint() == kid).ok_or(Denial::Key)?;
    jws.verify(key, &[*algorithm]).map_err(|_| Denial::Signature)?;
    let claims: Claims = jws.claims().map_err(|_| Denial::Form)?;
    if claims.iss != rules.issuer {
        return Err(Denial::Issuer);
    }
    let names_us = match &claims.aud {
        Value::String(aud) => aud == rules.audience,
        Value::Array(list) => list.iter().any(|aud| aud == rules.audience),
        _ => false,
    };
    if !names_us {
        return Err(Denial::Audience);
    }
    if claims.exp <= now {
        return Err(Denial::Expired);
    }
    if claims.iat > now {
        return Err(Denial::Future);
    }
    if !claims.scope.split(' ').any(|word| word == rules.scope) {
        return Err(Denial::Scope);
    }
    Ok(claims)
}

#[cfg(test)]
mod tests {
    use ring::hmac;
    use serde_json::json;

    use super::*;
    use crate::{
        jose::{self, Header, Signer as _, b64},
        keys::Key,
    };

    const NOW: i64 = 1_800_000_000;
    const RULES: Rules<'_> =
        Rules { issuer: "http://127.0.0.1:1", audience: "https://orders.test", scope: "orders.read" };

    fn good() -> Value {
        json!({
            "iss": RULES.issuer, "aud": RULES.audience, "scope": "orders.read orders.write", "exp": NOW + 300,
            "iat": NOW, "sub": "shop", "client_id": "shop", "jti": "1",
        })
    }

    fn judge(key: &Key, typ: &str, claims: &Value) -> Result<(), Denial> {
        let token = jose::sign(key, Header { typ }, claims).unwrap();
        let keys = [(key.public().clone(), key.algorithm())];
        check(token.expose_str().unwrap(), &keys, RULES, NOW).map(|_| ())
    }

    #[test]
    fn every_claim_counts() {
        // OA-40
        let key = Key::generate(Algorithm::Es256).unwrap();
        assert_eq!(judge(&key, "at+jwt", &good()), Ok(()));
        for (name, value, denial) in [
            ("iss", json!("http://127.0.0.1:1/"), Denial::Issuer),
            ("aud", json!("https://orders.test/"), Denial::Audience),
            ("aud", json!(["https://other.test"]), Denial::Audience),
            ("aud", json!(7), Denial::Audience),
            ("exp", json!(NOW), Denial::Expired),
            ("exp", json!("never"), Denial::Form),
            ("iat", json!(NOW + 60), Denial::Future),
            ("scope", json!("orders.readonly"), Denial::Scope),
            ("scope", json!(""), Denial::Scope),
            ("cnf", json!("key"), Denial::Form),
        ] {
            let mut claims = good();
            claims[name] = value;
            assert_eq!(judge(&key, "at+jwt", &claims), Err(denial), "{claims}");
        }
        for name in ["iss", "aud", "exp", "iat", "sub", "client_id", "jti"] {
            let mut claims = good();
            claims.as_object_mut().unwrap().remove(name);
            assert_eq!(judge(&key, "at+jwt", &claims), Err(Denial::Form), "without {name}");
        }
        let mut two = good();
        two["aud"] = json!(["https://other.test", RULES.audience]);
        assert_eq!(judge(&key, "at+jwt", &two), Ok(()));
        assert_eq!(judge(&key, "client-authentication+jwt", &good()), Err(Denial::Typ));
        assert_eq!(judge(&key, "JWT", &good()), Err(Denial::Typ));
    }

    #[test]
    fn a_binding_that_nobody_here_knows_is_a_binding_still() {
        // DPOP-06, MT-07
        let key = Key::generate(Algorithm::Es256).unwrap();
        let mut claims = good();
        claims["cnf"] = json!({"x5t#S256": "A4DtL2JmUMhAsvJj5tKyn64SqzmuXbMrJa0n761y5v0"});
        let token = jose::sign(&key, Header { typ: "at+jwt" }, &claims).unwrap();
        let keys = [(key.public().clone(), key.algorithm())];
        let read = check(token.expose_str().unwrap(), &keys, RULES, NOW).unwrap();
        assert_eq!(read.cnf.map(|cnf| cnf.jkt), Some(None));
    }

    #[test]
    fn none_hmac_foreign_and_embedded_keys_are_refused() {
        // OA-41, RFC 8725
        let key = Key::generate(Algorithm::Es256).unwrap();
        let keys = [(key.public().clone(), Algorithm::Es256)];
        let judge = |token: &str| check(token, &keys, RULES, NOW).err();
        let unsigned = |header: Value| {
            format!("{}.{}", b64(header.to_string().as_bytes()), b64(good().to_string().as_bytes()))
        };

        let none = unsigned(json!({"alg": "none", "kid": key.kid(), "typ": "at+jwt"}));
        assert_eq!(judge(&format!("{none}.")), Some(Denial::Signature));

        // The public key, which everybody has, as the HMAC secret: in PEM, in DER.
        let hs256 = unsigned(json!({"alg": "HS256", "kid": key.kid(), "typ": "at+jwt"}));
        for secret in [key.public().pem().into_bytes(), key.public().spki_der()] {
            let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &secret), hs256.as_bytes());
            assert_eq!(judge(&format!("{hs256}.{}", b64(tag.as_ref()))), Some(Denial::Signature));
        }

        let stranger = Key::generate(Algorithm::Es256).unwrap();
        let token = jose::sign(&stranger, Header { typ: "at+jwt" }, &good()).unwrap();
        assert_eq!(judge(token.expose_str().unwrap()), Some(Denial::Key));
        // Under our kid, and with the key brought along.
        let (_, signature) = token.expose_str().unwrap().rsplit_once('.').unwrap();
        let ours = unsigned(json!({"alg": "ES256", "kid": key.kid(), "typ": "at+jwt"}));
        assert_eq!(judge(&format!("{ours}.{signature}")), Some(Denial::Signature));
        let jwk = stranger.public().jwk(Algorithm::Es256);
        let brought = unsigned(json!({"alg": "ES256", "kid": key.kid(), "typ": "at+jwt", "jwk": jwk}));
        assert_eq!(judge(&format!("{brought}.{signature}")), Some(Denial::Signature));
        assert_eq!(judge("opaque"), Some(Denial::Form));
    }
}

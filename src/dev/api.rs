//! The demo API: a resource server on 127.0.0.1 with one thing to fetch, `GET /orders`. In goes a request; out
//! come orders, or a refusal as RFC 6750 writes it. It believes only what the development issuer signed for
//! this API, unexpired, wide enough and not revoked; the token is read from the header and nowhere else
//! (BCP-04).

use std::{future::Future, sync::Arc};

use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    clock::Clock,
    dev::{
        DevError,
        http::{Answer, Ask, Door, NOTE, allow, json, refuse},
        issuer::{Handle, is_scope_token},
    },
    jose::{Algorithm, PublicKey, Unverified},
};

/// The longest token that is looked at (OA-45).
const MAX_TOKEN: usize = 16 * 1024;

/// How the demo API is set up.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DemoApiSettings {
    /// The port on 127.0.0.1; 0 takes any free one.
    pub port: u16,
    /// What the token's `aud` must name: the resource that clients register and ask for.
    pub audience: String,
    /// The scope that `GET /orders` needs.
    pub scope: String,
}

/// The demo API, bound but not running.
#[derive(Debug)]
pub struct DemoApi {
    door: Door,
    desk: Arc<Desk>,
}

impl DemoApi {
    /// Binds the port. Keys, issuer identifier and revocations come from `issuer`, in memory, so a revoked token
    /// is refused at once.
    ///
    /// # Errors
    /// [`DevError::Setting`] for an empty audience or a scope that is no word, [`DevError::Bind`] from below.
    pub fn bind(settings: DemoApiSettings, issuer: Handle, clock: Arc<dyn Clock>) -> Result<Self, DevError> {
        if settings.audience.is_empty() {
            return Err(DevError::Setting { key: "audience", what: "name the API's own resource URI" });
        }
        if !is_scope_token(&settings.scope) {
            return Err(DevError::Setting {
                key: "scope",
                what: "write one scope word, such as orders.read",
            });
        }
        let door = Door::bind(settings.port)?;
        Ok(Self { door, desk: Arc::new(Desk { settings, issuer, clock }) })
    }

    /// Where it is: `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        self.door.url()
    }

    /// Serves until `shutdown` ends, then a second more for answers under way.
    ///
    /// # Errors
    /// [`DevError::Bind`] if the socket cannot be served.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), DevError> {
        let clock = Arc::clone(&self.desk.clock);
        let desk = self.desk;
        let answer = move |ask: Ask| {
            let answer = desk.answer(&ask);
            async move { answer }
        };
        self.door.serve(clock, answer, shutdown).await
    }
}

#[derive(Debug)]
struct Desk {
    settings: DemoApiSettings,
    issuer: Handle,
    clock: Arc<dyn Clock>,
}

impl Desk {
    fn answer(&self, ask: &Ask) -> Answer {
        if ask.uri().path() != "/orders" {
            return refuse(StatusCode::NOT_FOUND, "there is GET /orders");
        }
        if ask.method() != Method::GET {
            return allow("GET");
        }
        match self.admit(ask) {
            Ok(client_id) => json(
                StatusCode::OK,
                &json!({
                    "note": NOTE,
                    "client_id": client_id,
                    "orders": [{"id": 1, "item": "blue kettle"}, {"id": 2, "item": "two cups"}],
                }),
            ),
            Err(denial) => denial.answer(&self.settings.scope),
        }
    }

    fn admit(&self, ask: &Ask) -> Result<String, Denial> {
        let in_query = ask
            .uri()
            .query()
            .is_some_and(|query| query.split('&').any(|pair| pair.split('=').next() == Some("access_token")));
        if in_query {
            return Err(Denial::Query);
        }
        let token = bearer(ask.headers())?;
        let rules = Rules {
            issuer: self.issuer.url(),
            audience: &self.settings.audience,
            scope: &self.settings.scope,
        };
        let claims = check(token, &self.issuer.keys(), rules, self.clock.wall().as_second())?;
        if self.issuer.is_revoked(&claims.jti) {
            return Err(Denial::Revoked);
        }
        Ok(claims.client_id)
    }
}

/// What a token is held against.
#[derive(Clone, Copy, Debug)]
struct Rules<'a> {
    issuer: &'a str,
    audience: &'a str,
    scope: &'a str,
}

/// The claims of RFC 9068, all of them required.
#[derive(Debug, Deserialize)]
struct Claims {
    iss: String,
    aud: Value,
    exp: i64,
    iat: i64,
    #[serde(rename = "sub")]
    _sub: String,
    client_id: String,
    jti: String,
    #[serde(default)]
    scope: String,
}

/// The token of the one `Authorization` header.
fn bearer(headers: &HeaderMap) -> Result<&str, Denial> {
    let mut all = headers.get_all(header::AUTHORIZATION).iter();
    let Some(value) = all.next() else { return Err(Denial::Missing) };
    if all.next().is_some() {
        return Err(Denial::Malformed);
    }
    let (scheme, token) =
        value.to_str().ok().and_then(|value| value.split_once(' ')).ok_or(Denial::Malformed)?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(Denial::Missing);
    }
    // RFC 6750 2.1, `b64token`.
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte);
    if token.is_empty() || token.len() > MAX_TOKEN || !token.bytes().all(known) {
        return Err(Denial::Malformed);
    }
    Ok(token)
}

/// Holds `token` against everything but revocation, at `now` in seconds since the epoch.
fn check(token: &str, keys: &[(PublicKey, Algorithm)], rules: Rules<'_>, now: i64) -> Result<Claims, Denial> {
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

/// Why a request gets no orders.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
enum Denial {
    #[error("the token is for another audience: ask for one with this API as the resource")]
    Audience,
    #[error("the token has expired: ask for a new one")]
    Expired,
    #[error("the token is not a JWT with the claims of RFC 9068")]
    Form,
    #[error("the token was issued in the future: look at the clocks")]
    Future,
    #[error("the token is from another issuer")]
    Issuer,
    #[error("the token's kid names no key of the issuer")]
    Key,
    #[error("send one header: Authorization: Bearer TOKEN")]
    Malformed,
    #[error("send Authorization: Bearer TOKEN")]
    Missing,
    #[error("a token in the URL ends up in logs: send it in the Authorization header")]
    Query,
    #[error("the token was revoked")]
    Revoked,
    #[error("the token's scope is too narrow")]
    Scope,
    #[error("the token's signature or algorithm is not the issuer's")]
    Signature,
    #[error("the token's typ is not at+jwt")]
    Typ,
}

impl Denial {
    /// The status and the error code of RFC 6750 3.1; no code where nothing was tried.
    fn code(self) -> (StatusCode, Option<&'static str>) {
        match self {
            Self::Missing => (StatusCode::UNAUTHORIZED, None),
            Self::Malformed | Self::Query => (StatusCode::BAD_REQUEST, Some("invalid_request")),
            Self::Scope => (StatusCode::FORBIDDEN, Some("insufficient_scope")),
            Self::Audience
            | Self::Expired
            | Self::Form
            | Self::Future
            | Self::Issuer
            | Self::Key
            | Self::Revoked
            | Self::Signature
            | Self::Typ => (StatusCode::UNAUTHORIZED, Some("invalid_token")),
        }
    }

    fn answer(self, scope: &str) -> Answer {
        let (status, code) = self.code();
        let mut answer =
            json(status, &json!({"error": code, "error_description": self.to_string(), "note": NOTE}));
        let challenge = match code {
            None => "Bearer realm=\"keybearer demo API\"".to_owned(),
            Some(code) => format!("Bearer error=\"{code}\", error_description=\"{self}\", scope=\"{scope}\""),
        };
        // Our own words and a checked scope word: visible ASCII, which a header holds.
        let challenge = HeaderValue::from_str(&challenge).expect("the challenge is visible ASCII");
        answer.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        answer
    }
}

#[cfg(test)]
mod tests {
    use ring::hmac;

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

//! Who may ask. In goes a registration, from Rust or as JSON; out comes a [`Client`] whose keys, scope and
//! resources make sense, or a [`RegisterError`]. No secret is ever registered: there is no field for one
//! (BCP-03).

use serde::Deserialize;
use serde_json::Value;

use super::spiffe;
use crate::jose::{Algorithm, JoseError, PublicKey};

/// More clients than a development host has.
pub(super) const MAX_CLIENTS: usize = 1000;

/// Names of people begin so: a client must never pass for one (BCP-06).
const SUBJECTS: &str = "user:";

/// A registered client: what it may sign with, and what it may ask for.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Client {
    /// Its name: `iss` and `sub` of its assertions, `sub` of its tokens.
    pub client_id: String,
    /// Its public keys, each for one algorithm. `kid` is the thumbprint.
    pub keys: Vec<(PublicKey, Algorithm)>,
    /// What it may ask for.
    pub scope: Vec<String>,
    /// For whom it may ask: absolute URIs without a fragment (RFC 8707). A token that is asked without a
    /// resource is for the issuer itself.
    pub resources: Vec<String>,
    /// Whether it gets no token without a DPoP proof (RFC 9449 5.2, DPOP-15).
    pub dpop_bound_access_tokens: bool,
    /// Whose JWTs are its client assertions, besides those that its own keys sign.
    pub federated: Option<Federated>,
    /// The SPIFFE ID whose JWT-SVIDs are its client assertions; a last segment `*` stands for any (DR-05).
    pub spiffe_id: Option<String>,
    /// The `type` values it may ask for in `authorization_details` (RFC 9396 10).
    pub authorization_details_types: Vec<String>,
    /// The names that its certificates may say, to the letter: URIs, hosts, addresses.
    pub certificate_names: Vec<String>,
}

/// A subject of another issuer, both to the letter.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Federated {
    /// `iss`, which must be trusted for it to count.
    pub issuer: String,
    /// `sub`.
    pub subject: String,
}

impl Client {
    /// Reads `{client_id, jwks: {keys: [..]}, scope, resources, dpop_bound_access_tokens, federated: {issuer, subject},
    /// spiffe_id, authorization_details_types, certificate_names}`; `scope` is one string as in RFC 7591, or a list. A JWK without `alg` gets the algorithm of its kind (RSA: PS256).
    ///
    /// # Errors
    /// [`RegisterError::Json`] or [`RegisterError::Key`]; the rest is [`Client::checked`].
    pub(super) fn from_json(body: &[u8]) -> Result<Self, RegisterError> {
        let written: Written = serde_json::from_slice(body).map_err(|_| RegisterError::Json)?;
        let keys = written.jwks.keys.iter().map(read_key).collect::<Result<_, _>>()?;
        let scope = match written.scope {
            Scope::List(list) => list,
            Scope::Text(text) => text.split(' ').filter(|word| !word.is_empty()).map(str::to_owned).collect(),
        };
        Ok(Self {
            client_id: written.client_id,
            keys,
            scope,
            resources: written.resources,
            dpop_bound_access_tokens: written.dpop_bound_access_tokens,
            federated: written.federated,
            spiffe_id: written.spiffe_id,
            authorization_details_types: written.authorization_details_types,
            certificate_names: written.certificate_names,
        })
    }

    /// The client, if everything in it can be used; its scope sorted and without duplicates.
    pub(super) fn checked(mut self) -> Result<Self, RegisterError> {
        if self.client_id.starts_with(SUBJECTS) {
            return Err(RegisterError::Subject);
        }
        let printable = self.client_id.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ');
        if !printable || !(1..=256).contains(&self.client_id.len()) {
            return Err(RegisterError::ClientId);
        }
        if self.keys.is_empty() && self.federated.is_none() && self.spiffe_id.is_none() {
            return Err(RegisterError::NoKey);
        }
        if self.federated.as_ref().is_some_and(|named| named.issuer.is_empty() || named.subject.is_empty()) {
            return Err(RegisterError::Federated);
        }
        if self.spiffe_id.as_ref().is_some_and(|pattern| !spiffe::is_pattern(pattern)) {
            return Err(RegisterError::SpiffeId);
        }
        let mut kids: Vec<String> = self.keys.iter().map(|(key, _)| key.thumbprint()).collect();
        kids.sort();
        kids.dedup();
        if kids.len() != self.keys.len() {
            return Err(RegisterError::Key("it is there twice"));
        }
        if self.keys.iter().any(|(key, algorithm)| !fits(key, *algorithm)) {
            return Err(RegisterError::Key("alg is not one of its kind"));
        }
        if let Some(word) = self.scope.iter().find(|word| !is_scope_token(word)) {
            return Err(RegisterError::Scope(word.clone()));
        }
        if let Some(resource) = self.resources.iter().find(|resource| !is_resource(resource)) {
            return Err(RegisterError::Resource(resource.clone()));
        }
        self.scope.sort();
        self.scope.dedup();
        Ok(self)
    }
}

/// Why a client is not registered, or an issuer not trusted.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum RegisterError {
    /// Empty, too long, or not printable ASCII.
    #[error("client_id must be 1 to 256 printable ASCII characters")]
    ClientId,
    /// A subject without an issuer, or the other way round.
    #[error("federated must hold issuer and subject, as the JWTs of that issuer write them")]
    Federated,
    /// As many as fit are there.
    #[error("1000 clients are registered already: start the development issuer anew")]
    Full,
    /// An issuer without a name that tokens could have.
    #[error("issuer must begin with https://, http:// or spiffe:// and hold no space")]
    Issuer,
    /// Not the JSON that was expected.
    #[error(
        "send JSON {{client_id, jwks: {{keys: [..]}}, scope, resources}} and, if wanted, dpop_bound_access_tokens, \
         federated: {{issuer, subject}}, spiffe_id, authorization_details_types and certificate_names, and nothing else"
    )]
    Json,
    /// A key that cannot be used, or a private one.
    #[error("a key of jwks cannot be used: {0}")]
    Key(&'static str),
    /// Nothing that it could prove itself with.
    #[error("jwks must hold at least one public key for signing")]
    NoKey,
    /// RFC 8707 2.
    #[error("resource {0:?} is not an absolute URI without a fragment")]
    Resource(String),
    /// RFC 6749 3.3.
    #[error("scope {0:?} is not a scope word (printable ASCII without space, quote and backslash)")]
    Scope(String),
    /// DR-05.
    #[error("spiffe_id must be spiffe://TRUST-DOMAIN/PATH, whose last segment may be *")]
    SpiffeId,
    /// Two clients for one subject: nobody could tell who asks.
    #[error("{0:?} is registered for the same federated subject or spiffe_id: each has one client")]
    Taken(String),
    /// As many issuers as fit are there, or one has more keys than one has.
    #[error("at most 100 issuers are trusted, with 32 keys each")]
    TooMuchTrust,
    /// Not the JSON that was expected.
    #[error("send JSON {{issuer, jwks: {{keys: [..]}}}} and nothing else")]
    TrustJson,
    /// BCP-06.
    #[error("client_id must not begin with \"user:\": that is how people are named")]
    Subject,
}

/// RFC 6749 3.3, `scope-token`.
pub(in crate::dev) fn is_scope_token(word: &str) -> bool {
    !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\')
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    client_id: String,
    #[serde(default)]
    jwks: Jwks,
    #[serde(default)]
    scope: Scope,
    #[serde(default)]
    resources: Vec<String>,
    #[serde(default)]
    dpop_bound_access_tokens: bool,
    federated: Option<Federated>,
    spiffe_id: Option<String>,
    #[serde(default)]
    authorization_details_types: Vec<String>,
    #[serde(default)]
    certificate_names: Vec<String>,
}

#[derive(Default, Deserialize)]
struct Jwks {
    keys: Vec<Value>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Scope {
    List(Vec<String>),
    Text(String),
}

impl Default for Scope {
    fn default() -> Self {
        Self::List(Vec::new())
    }
}

fn read_key(jwk: &Value) -> Result<(PublicKey, Algorithm), RegisterError> {
    let (key, algorithm) = algorithm_of(jwk)?;
    if jwk.get("kid").is_some_and(|kid| kid.as_str() != Some(&key.thumbprint())) {
        return Err(RegisterError::Key("kid is not its RFC 7638 SHA-256 thumbprint"));
    }
    Ok((key, algorithm))
}

/// The key of a JWK and the one algorithm that it is for, whoever named it and how.
pub(super) fn algorithm_of(jwk: &Value) -> Result<(PublicKey, Algorithm), RegisterError> {
    let key = PublicKey::from_jwk(jwk).map_err(|error| match error {
        JoseError::Key(why) => RegisterError::Key(why),
        _ => RegisterError::Key("it is no public JWK"),
    })?;
    let algorithm = match (jwk.get("alg"), &key) {
        (Some(alg), _) => {
            let named = alg.as_str().and_then(|alg| alg.parse().ok());
            named.ok_or(RegisterError::Key("alg is not ES256, EdDSA, PS256 or RS256"))?
        }
        (None, PublicKey::P256 { .. }) => Algorithm::Es256,
        (None, PublicKey::Ed25519 { .. }) => Algorithm::EdDsa,
        (None, PublicKey::Rsa { .. }) => Algorithm::Ps256,
    };
    Ok((key, algorithm))
}

fn fits(key: &PublicKey, algorithm: Algorithm) -> bool {
    match key {
        PublicKey::P256 { .. } => algorithm == Algorithm::Es256,
        PublicKey::Ed25519 { .. } => algorithm == Algorithm::EdDsa,
        PublicKey::Rsa { .. } => matches!(algorithm, Algorithm::Ps256 | Algorithm::Rs256),
    }
}

/// RFC 3986 4.3 as far as it matters: a scheme, something behind it, no fragment, no space.
fn is_resource(resource: &str) -> bool {
    resource.split_once(':').is_some_and(|(scheme, rest)| {
        scheme.starts_with(|first: char| first.is_ascii_alphabetic())
            && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
            && !rest.is_empty()
            && rest.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#')
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn key() -> PublicKey {
        PublicKey::Ed25519 { x: [7; 32] }
    }

    fn client(client_id: &str) -> Client {
        let keys = vec![(key(), Algorithm::EdDsa)];
        Client { client_id: client_id.into(), keys, ..Client::default() }
    }

    #[test]
    fn a_client_cannot_pass_for_a_person() {
        // BCP-06
        assert_eq!(client("user:orders").checked(), Err(RegisterError::Subject));
        assert!(client("users-of-orders").checked().is_ok());
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        // OA-21, KEY-04
        assert_eq!(client("").checked(), Err(RegisterError::ClientId));
        assert_eq!(client("a\nb").checked(), Err(RegisterError::ClientId));
        assert_eq!(Client { keys: vec![], ..client("a") }.checked(), Err(RegisterError::NoKey));
        let twice = vec![(key(), Algorithm::EdDsa), (key(), Algorithm::EdDsa)];
        assert_eq!(
            Client { keys: twice, ..client("a") }.checked(),
            Err(RegisterError::Key("it is there twice"))
        );
        let other = vec![(key(), Algorithm::Rs256)];
        assert_eq!(
            Client { keys: other, ..client("a") }.checked(),
            Err(RegisterError::Key("alg is not one of its kind"))
        );
        for resource in ["orders", "/orders", "https://orders.test/#top", "https:", "https://a b"] {
            let asked = Client { resources: vec![resource.into()], ..client("a") };
            assert_eq!(asked.checked(), Err(RegisterError::Resource(resource.into())));
        }
        for pattern in ["spiffe://e", "spiffe://e/a*", "https://e/a"] {
            let asked = Client { spiffe_id: Some(pattern.into()), ..client("a") };
            assert_eq!(asked.checked(), Err(RegisterError::SpiffeId), "{pattern}");
        }
        for (issuer, subject) in [("", "job:7"), ("https://ci.test", "")] {
            let federated = Some(Federated { issuer: issuer.into(), subject: subject.into() });
            assert_eq!(Client { federated, ..client("a") }.checked(), Err(RegisterError::Federated));
        }
        for word in ["", "a b", "a\"b"] {
            let asked = Client { scope: vec![word.into()], ..client("a") };
            assert_eq!(asked.checked(), Err(RegisterError::Scope(word.into())));
        }
    }

    #[test]
    fn json_is_read_without_private_members_and_without_surprises() {
        // KEY-03, BCP-03
        let read = |value: &Value| Client::from_json(value.to_string().as_bytes());
        let jwk = key().jwk(Algorithm::EdDsa);
        let good = json!({"client_id": "a", "jwks": {"keys": [jwk]}, "scope": "x y", "resources": ["urn:o"]});
        let client = read(&good).unwrap().checked().unwrap();
        assert_eq!(
            (client.scope, client.resources),
            (vec!["x".into(), "y".into()], vec!["urn:o".to_owned()])
        );

        let mut private = good.clone();
        private["jwks"]["keys"][0]["d"] = json!("AAAA");
        assert_eq!(read(&private), Err(RegisterError::Key("it holds a private member")));
        let mut foreign = good.clone();
        foreign["jwks"]["keys"][0]["kid"] = json!("mine");
        assert!(matches!(read(&foreign), Err(RegisterError::Key(why)) if why.contains("thumbprint")));
        let mut hmac = good.clone();
        hmac["jwks"]["keys"][0]["alg"] = json!("HS256");
        assert!(matches!(read(&hmac), Err(RegisterError::Key(why)) if why.contains("ES256")));
        let mut secret = good;
        secret["client_secret"] = json!("s");
        assert_eq!(read(&secret), Err(RegisterError::Json));
    }
}

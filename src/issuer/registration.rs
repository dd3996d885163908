//! What an issuer has on its books about a client, and how that is put right (RFC 7592). In go what the issuer told and the keys
//! that it should know; out comes the document to put in its place, which differs in its keys and in nothing else, or why
//! there is none. Pure: whoever sends it is `oauth/registration.rs`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ring::digest;
use serde_json::{Map, Value, json};

use super::{IssueError, Reason, terms::ClientAuth};
use crate::{
    jose::{PublicKey, b64},
    secret::{Secret, scrubbed},
};

/// What only the issuer says: a client that sends it back is refused (RFC 7592 2.2).
pub(super) const ISSUERS_OWN: [&str; 4] = [
    "client_id_issued_at",
    "client_secret_expires_at",
    "registration_access_token",
    "registration_client_uri",
];

/// What this agent relies on: an update must not change it.
const RELIED_ON: [&str; 6] = [
    "dpop_bound_access_tokens",
    "grant_types",
    "scope",
    "tls_client_certificate_bound_access_tokens",
    "token_endpoint_auth_method",
    "token_endpoint_auth_signing_alg",
];

/// Where one client's registration is, and the right to read and to change it (RFC 7592 3).
#[derive(Debug)]
pub struct Access {
    /// `registration_client_uri`.
    pub uri: String,
    /// `registration_access_token`.
    pub token: Secret,
}

/// What is done with a registration.
#[derive(Clone, Debug)]
pub enum Ask {
    /// RFC 7592 2.1.
    Read,
    /// RFC 7592 2.2, with the whole of it.
    Replace(Value),
}

/// A registration as its issuer told it.
pub struct Registration {
    /// The client's metadata, without what belongs to [`Self::renewed`].
    pub metadata: Map<String, Value>,
    /// The place and the right from now on, if they are not those it was asked with. It has to be kept before anything else is
    /// done: the old right may be gone.
    pub renewed: Option<Access>,
    /// Why the place that the issuer names from now on is not gone to, if it is not (OA-04).
    pub misplaced: Option<IssueError>,
}

/// What an issuer should know of a client.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The client.
    pub client_id: Arc<str>,
    /// How it proves who asks.
    pub client_auth: ClientAuth,
    /// The grants that it uses.
    pub grants: BTreeSet<&'static str>,
    /// Its keys as JWKs, each by what it is recognised by: a key by its RFC 7638 thumbprint, a certificate by its own (RFC
    /// 8705 3.1).
    pub keys: BTreeMap<String, Value>,
}

impl Wanted {
    /// What its keys are recognised by.
    pub fn ids(&self) -> BTreeSet<String> {
        self.keys.keys().cloned().collect()
    }
}

impl Registration {
    /// What its keys are recognised by. A key that cannot be read is one that is not ours.
    pub fn ids(&self) -> BTreeSet<String> {
        let keys = self.metadata.get("jwks").and_then(|jwks| jwks.get("keys")).and_then(Value::as_array);
        keys.into_iter().flatten().map(id).collect()
    }

    /// The registration as it should be, if it is not; `None` if it is. Every member that is not about keys stays as it came.
    ///
    /// # Errors
    /// [`IssueError::Misconfigured`], if it is not this client's, or not one that this agent can put right.
    pub fn revised(&self, wanted: &Wanted) -> Result<Option<Value>, IssueError> {
        self.doubt(wanted)?;
        if self.ids() == wanted.ids() {
            return Ok(None);
        }
        let mut document = self.metadata.clone();
        document.retain(|name, _| !ISSUERS_OWN.contains(&name.as_str()));
        document.insert("client_id".into(), json!(*wanted.client_id));
        document.insert("jwks".into(), json!({"keys": wanted.keys.values().collect::<Vec<_>>()}));
        Ok(Some(Value::Object(document)))
    }

    /// Whether this, the answer to `sent`, has the keys and nothing else that is new.
    ///
    /// # Errors
    /// [`IssueError`], with what differs.
    pub fn confirm(&self, sent: &Value, wanted: &Wanted) -> Result<(), IssueError> {
        self.doubt(wanted)?;
        let (ids, wanted) = (self.ids(), wanted.ids());
        if ids != wanted {
            return Err(IssueError::Refused {
                reason: Reason::IssuerConfig,
                detail: format!(
                    "the issuer took the update, and has {} keys of which {} are those that were sent ({}): see the \
                     client's jwks there",
                    ids.len(),
                    ids.intersection(&wanted).count(),
                    wanted.len(),
                ),
            });
        }
        for name in RELIED_ON {
            let Some(before) = sent.get(name).filter(|value| !value.is_null()) else { continue };
            let after = self.metadata.get(name).unwrap_or(&Value::Null);
            if normal(before) != normal(after) {
                return Err(IssueError::Refused {
                    reason: Reason::IssuerConfig,
                    detail: format!(
                        "the issuer took the keys, and changed {name} from {} to {}: put that right there",
                        scrubbed(&before.to_string(), 200),
                        scrubbed(&after.to_string(), 200),
                    ),
                });
            }
        }
        Ok(())
    }

    fn doubt(&self, wanted: &Wanted) -> Result<(), IssueError> {
        let text = |name: &str| self.metadata.get(name).and_then(Value::as_str);
        let named = text("client_id").unwrap_or_default();
        if *named != *wanted.client_id {
            return Err(IssueError::Misconfigured {
                reason: Reason::IssuerMismatch,
                detail: format!(
                    "the registration is that of the client \"{}\", not of \"{}\": set uri and token_file to this \
                     client's",
                    scrubbed(named, 200),
                    wanted.client_id,
                ),
            });
        }
        let wrong = |detail: String| Err(IssueError::Misconfigured { reason: Reason::IssuerConfig, detail });
        if self.metadata.get("jwks_uri").is_some_and(|uri| !uri.is_null()) {
            return wrong(
                "the client is registered with a jwks_uri: its keys are published there, by whoever serves it; take \
                 the registration out of the settings, or have the client registered with jwks"
                    .into(),
            );
        }
        let method = text("token_endpoint_auth_method").unwrap_or(wanted.client_auth.as_str());
        if method != wanted.client_auth.as_str() {
            return wrong(format!(
                "the client is registered for {}, and the settings say {}: one of the two is wrong",
                scrubbed(method, 200),
                wanted.client_auth.as_str(),
            ));
        }
        if let Some(allowed) = self.metadata.get("grant_types").and_then(Value::as_array)
            && let Some(missing) =
                wanted.grants.iter().find(|grant| !allowed.iter().any(|known| known == *grant))
        {
            return wrong(format!("the client is not registered for the grant {missing}: allow it there"));
        }
        Ok(())
    }
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Some issuers have secrets among the metadata: the names are all that is safe to show.
        let names: Vec<&String> = self.metadata.keys().collect();
        write!(f, "Registration({names:?}, renewed {})", self.renewed.is_some())
    }
}

/// What the key is recognised by.
fn id(jwk: &Value) -> String {
    let leaf = jwk.get("x5c").and_then(|chain| chain.get(0)).and_then(Value::as_str);
    if let Some(leaf) = leaf.and_then(|leaf| STANDARD.decode(leaf).ok()) {
        return b64(digest::digest(&digest::SHA256, &leaf).as_ref());
    }
    match PublicKey::from_jwk(jwk) {
        Ok(key) => key.thumbprint(),
        Err(_) => format!("unknown {}", scrubbed(jwk["kid"].as_str().unwrap_or_default(), 64)),
    }
}

/// The same for what means the same: the order of words and of lists is nobody's, and what is not there is not so.
fn normal(value: &Value) -> Value {
    match value {
        Value::Array(items) => {
            let sorted: BTreeSet<String> = items.iter().map(Value::to_string).collect();
            json!(sorted)
        }
        Value::String(words) => json!(words.split_whitespace().collect::<BTreeSet<_>>()),
        Value::Null => Value::Bool(false),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        jose::{Algorithm, Signer as _},
        keys::Key,
    };

    fn jwk() -> (String, Value) {
        let key = Key::generate(Algorithm::Es256).unwrap();
        (key.kid().to_owned(), key.public().jwk(Algorithm::Es256))
    }

    fn wanted(keys: &[(String, Value)]) -> Wanted {
        Wanted {
            client_id: "payments".into(),
            client_auth: ClientAuth::PrivateKeyJwt,
            grants: ["client_credentials"].into(),
            keys: keys.iter().cloned().collect(),
        }
    }

    fn told(document: Value) -> Registration {
        let Value::Object(metadata) = document else { panic!("an object") };
        Registration { metadata, renewed: None, misplaced: None }
    }

    fn document(keys: &[(String, Value)]) -> Value {
        json!({
            "client_id": "payments",
            "client_name": "Payments",
            "client_id_issued_at": 7, "client_secret_expires_at": 0,
            "registration_access_token": "canary", "registration_client_uri": "https://idp.example/r",
            "token_endpoint_auth_method": "private_key_jwt",
            "grant_types": ["client_credentials"],
            "scope": "b a",
            "of_the_vendor": {"deep": [1, null]},
            "logo_uri": null,
            "jwks": {"keys": keys.iter().map(|(_, jwk)| jwk).collect::<Vec<_>>()},
        })
    }

    #[test]
    fn the_keys_are_replaced_and_nothing_else() {
        // KEY-09, RFC 7592 2.2
        let (old, new, foreign) = (jwk(), jwk(), jwk());
        let wanted = wanted(&[old.clone(), new.clone()]);
        let before = document(&[old.clone(), foreign]);
        let sent = told(before.clone()).revised(&wanted).unwrap().unwrap();
        assert_eq!(told(sent.clone()).ids(), wanted.ids(), "both, and nobody else's");
        let (before, sent) = (before.as_object().unwrap(), sent.as_object().unwrap());
        for name in ISSUERS_OWN {
            assert!(before.contains_key(name) && !sent.contains_key(name), "{name}");
        }
        for (name, value) in before.iter().filter(|(name, _)| !ISSUERS_OWN.contains(&name.as_str())) {
            assert!(name == "jwks" || sent.get(name) == Some(value), "{name}");
        }
        assert_eq!(sent.len(), before.len() - ISSUERS_OWN.len());
        // As it should be, whatever its order and whatever else is said of the keys.
        let mut same = document(&[new, old]);
        same["jwks"]["keys"][0]["x"] = same["jwks"]["keys"][0]["x"].clone();
        same["jwks"]["keys"][0]["kid"] = json!("its own name for it");
        assert!(told(same).revised(&wanted).unwrap().is_none());
    }

    #[test]
    fn what_is_not_ours_or_cannot_be_put_right_is_left_alone() {
        // KEY-09
        let wanted = wanted(&[jwk()]);
        let cases = [
            ("client_id", json!("other"), "not of \"payments\""),
            ("client_id", Value::Null, "not of \"payments\""),
            ("jwks_uri", json!("https://payments.example/jwks"), "jwks_uri"),
            (
                "token_endpoint_auth_method",
                json!("client_secret_basic"),
                "registered for client_secret_basic",
            ),
            ("grant_types", json!(["authorization_code"]), "not registered for the grant client_credentials"),
        ];
        for (name, value, words) in cases {
            let mut changed = document(&[jwk()]);
            changed[name] = value;
            let error = told(changed).revised(&wanted).unwrap_err();
            assert!(
                matches!(&error, IssueError::Misconfigured { detail, .. } if detail.contains(words)),
                "{error}"
            );
        }
        // Nothing of it is there to be wrong.
        let bare = told(json!({"client_id": "payments", "jwks_uri": null}));
        assert!(bare.revised(&wanted).unwrap().is_some());
    }

    #[test]
    fn an_answer_that_is_not_what_was_sent_confirms_nothing() {
        // KEY-09
        let (old, new) = (jwk(), jwk());
        let wanted = wanted(&[old.clone(), new.clone()]);
        let sent = told(document(std::slice::from_ref(&old))).revised(&wanted).unwrap().unwrap();
        let mut same = sent.clone();
        same["scope"] = json!("a b");
        told(same).confirm(&sent, &wanted).unwrap();
        let kept = document(&[old]);
        assert!(
            told(kept).confirm(&sent, &wanted).unwrap_err().to_string().contains("has 1 keys of which 1")
        );
        let mut wider = sent.clone();
        wider["jwks"]["keys"].as_array_mut().unwrap().push(jwk().1);
        assert!(told(wider).confirm(&sent, &wanted).is_err(), "a key that nobody sent");
        for (name, value) in [
            ("scope", json!("a b admin")),
            ("grant_types", json!(["client_credentials", "implicit"])),
            ("grant_types", Value::Null),
        ] {
            let mut changed = sent.clone();
            changed[name] = value;
            let error = told(changed).confirm(&sent, &wanted).unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
        }
        let mut method = sent.clone();
        method["token_endpoint_auth_method"] = json!("none");
        assert!(told(method).confirm(&sent, &wanted).is_err());
    }

    #[test]
    fn a_certificate_is_recognised_by_itself() {
        // MT-05: the next one may have the same key.
        let (_, mut one) = jwk();
        one["x5c"] = json!([STANDARD.encode("one certificate")]);
        let mut other = one.clone();
        other["x5c"] = json!([STANDARD.encode("another certificate")]);
        assert_ne!(id(&one), id(&other));
        assert_eq!(id(&one), b64(digest::digest(&digest::SHA256, b"one certificate").as_ref()));
        // KEY-03: what holds a private member is not ours.
        one.as_object_mut().unwrap().remove("x5c");
        one["d"] = json!("AAAA");
        assert!(id(&one).starts_with("unknown "));
    }

    #[test]
    fn nothing_of_it_is_shown() {
        let mut shown = told(document(&[jwk()]));
        shown.metadata.insert("client_secret".into(), json!("canary"));
        let token = Secret::new("canary");
        shown.renewed = Some(Access { uri: "https://idp.example/r".into(), token });
        assert!(!format!("{shown:?} {:?}", shown.renewed).contains("canary"));
    }
}

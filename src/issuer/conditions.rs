//! What a token that others wrote has to say before this agent sends it anywhere (WIM-11). In goes the token; out comes
//! nothing, or what is wrong with it, in words that quote nothing of it. Its signature is the issuer's to check: it alone
//! knows the keys.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::json;

/// What must hold of a token. Whatever is not named here is not looked at, except its end.
#[derive(Clone, Debug, Default, Deserialize, Eq, Hash, PartialEq, Serialize)]
pub struct Conditions {
    /// `iss`.
    pub issuer: Option<String>,
    /// `aud`: the one it is for.
    pub audience: Option<String>,
    /// Other claims, equal as text; `sub` among them.
    pub claims: BTreeMap<String, String>,
}

/// What a token is sent as, which decides what its header may hold.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Form {
    /// A subject or an actor: its header is between its two issuers.
    Subject,
    /// A client assertion (RFC 7523): a signature by a key that is known, and a hint to which.
    Assertion,
    /// A JWT-SVID, whose header is closed (SPF-03).
    JwtSvid,
}

impl Form {
    fn members(self) -> Option<&'static [&'static str]> {
        match self {
            Self::Subject => None,
            // Thumbprints are hints as `kid` is: CI issuers send them. Keys and addresses of keys are not.
            Self::Assertion => Some(&["alg", "kid", "typ", "x5t", "x5t#S256"]),
            Self::JwtSvid => Some(&["alg", "kid", "typ"]),
        }
    }

    fn takes(self, algorithm: &str) -> bool {
        const SIGNED: [&str; 9] =
            ["ES256", "ES384", "ES512", "PS256", "PS384", "PS512", "RS256", "RS384", "RS512"];
        match self {
            Self::Subject => !algorithm.is_empty() && !algorithm.eq_ignore_ascii_case("none"),
            Self::Assertion => SIGNED.contains(&algorithm) || ["EdDSA", "Ed25519"].contains(&algorithm),
            Self::JwtSvid => SIGNED.contains(&algorithm),
        }
    }
}

impl Conditions {
    /// Holds `token` against all of it, at `now`.
    ///
    /// # Errors
    /// What is wrong, without a word of the token.
    pub fn check(&self, token: &str, form: Form, now: Timestamp) -> Result<(), String> {
        let parts: Vec<&str> = token.split('.').collect();
        let [header, claims, _signature] = parts[..] else { return Err("it is not a JWT".into()) };
        check_header(&object(header)?, form)?;
        let claims = object(claims)?;
        match claims.get("exp").and_then(Value::as_f64) {
            // Seconds of the wall clock are far below 2^53.
            Some(end) if end > now.as_second() as f64 => {}
            Some(_) => return Err("it has ended: whoever writes it has to write a new one".into()),
            None => return Err("it does not say when it ends (exp)".into()),
        }
        if let Some(issuer) = &self.issuer
            && claims.get("iss").and_then(Value::as_str) != Some(issuer)
        {
            return Err(format!("its iss is not {issuer}"));
        }
        if let Some(audience) = &self.audience
            && !is_only(claims.get("aud"), audience)
        {
            return Err(format!("its aud is not {audience}, and that alone"));
        }
        for (name, wanted) in &self.claims {
            let is = match claims.get(name) {
                Some(Value::String(text)) => text == wanted,
                Some(Value::Number(number)) => number.to_string() == *wanted,
                Some(Value::Bool(flag)) => flag.to_string() == *wanted,
                _ => false,
            };
            if !is {
                return Err(format!("its {name} is not what the settings demand"));
            }
        }
        Ok(())
    }
}

fn check_header(header: &Map<String, Value>, form: Form) -> Result<(), String> {
    if let Some(known) = form.members()
        && header.keys().any(|name| !known.contains(&name.as_str()))
    {
        return Err(format!("its header holds more than {} (RFC 8725)", known.join(", ")));
    }
    if !header.get("alg").and_then(Value::as_str).is_some_and(|algorithm| form.takes(algorithm)) {
        return Err("its alg is not one that this use of it allows".into());
    }
    // What is said to be an access token or a proof is not taken for an assertion because it is a JWT as well.
    let typ = header.get("typ").map(|typ| typ.as_str().unwrap_or_default());
    let fits = |typ: &str| match form {
        Form::Subject => true,
        Form::Assertion => {
            typ.eq_ignore_ascii_case("JWT") || typ.eq_ignore_ascii_case("client-authentication+jwt")
        }
        Form::JwtSvid => ["JWT", "JOSE"].contains(&typ),
    };
    if typ.is_some_and(|typ| !fits(typ)) {
        return Err("its typ is that of another kind of token".into());
    }
    Ok(())
}

/// An `aud` for one and nobody else, in either form (RFC 7519 4.1.3).
fn is_only(aud: Option<&Value>, audience: &str) -> bool {
    match aud {
        Some(Value::String(one)) => one == audience,
        Some(Value::Array(list)) => matches!(&list[..], [Value::String(one)] if one == audience),
        _ => false,
    }
}

/// Strict JSON only: a document that two readers could read differently is not held against anything.
fn object(part: &str) -> Result<Map<String, Value>, String> {
    let bytes = URL_SAFE_NO_PAD.decode(part).map_err(|_| "it is not a JWT")?;
    match json::parse(&bytes) {
        Ok(Value::Object(members)) => Ok(members),
        Ok(_) => Err("it is not a JWT".into()),
        Err(error) => Err(format!("it is not a JWT: {error}")),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::*;
    use crate::jose::b64;

    /// A JWT whose signature says nothing.
    pub(in crate::issuer) fn jwt(header: Value, claims: Value) -> String {
        format!(
            "{}.{}.{}",
            b64(header.to_string().as_bytes()),
            b64(claims.to_string().as_bytes()),
            b64(b"sig")
        )
    }

    const NOW: i64 = 1_700_000_000;

    fn check(token: &str, form: Form) -> Result<(), String> {
        let conditions = Conditions {
            issuer: Some("https://ci.example".into()),
            audience: Some("https://issuer.example".into()),
            claims: [("ref".into(), "refs/heads/main".into()), ("run".into(), "7".into())].into(),
        };
        conditions.check(token, form, Timestamp::from_second(NOW).unwrap())
    }

    fn claims() -> Value {
        json!({
            "iss": "https://ci.example", "aud": "https://issuer.example", "exp": NOW + 1, "ref": "refs/heads/main", "run": 7,
        })
    }

    #[test]
    fn every_condition_is_held_and_no_value_is_quoted() {
        // WIM-11, S44, NHI-6
        let header = json!({"alg": "RS256", "kid": "k", "typ": "JWT"});
        assert_eq!(check(&jwt(header.clone(), claims()), Form::Subject), Ok(()));
        let mut listed = claims();
        listed["aud"] = json!(["https://issuer.example"]);
        assert_eq!(check(&jwt(header.clone(), listed), Form::Subject), Ok(()));
        for (claim, value, expected) in [
            ("iss", json!("https://ci.example/"), "its iss is not"),
            ("iss", json!(null), "its iss is not"),
            ("aud", json!("https://issuer.example/"), "its aud is not"),
            ("aud", json!(["https://issuer.example", "https://canary.example"]), "its aud is not"),
            ("aud", json!([]), "its aud is not"),
            ("exp", json!(NOW), "it has ended"),
            ("exp", json!("2100000000"), "does not say when it ends"),
            ("exp", json!(null), "does not say when it ends"),
            ("ref", json!("refs/heads/canary"), "its ref is not"),
            ("ref", json!("refs/heads/main "), "its ref is not"),
            ("ref", json!(["refs/heads/main"]), "its ref is not"),
            ("ref", json!(null), "its ref is not"),
            ("run", json!(7.5), "its run is not"),
        ] {
            let mut wrong = claims();
            wrong[claim] = value;
            let told = check(&jwt(header.clone(), wrong), Form::Subject).unwrap_err();
            assert!(told.contains(expected) && !told.contains("canary"), "{claim}: {told}");
        }
    }

    #[test]
    fn a_header_holds_what_its_use_allows() {
        // SPF-03, OA-41, WIM-11
        use Form::{Assertion, JwtSvid, Subject};
        for (header, allowed) in [
            (json!({"alg": "ES256"}), &[Subject, Assertion, JwtSvid][..]),
            (json!({"alg": "PS512", "kid": "k", "typ": "JWT"}), &[Subject, Assertion, JwtSvid]),
            (json!({"alg": "RS256", "typ": "JOSE"}), &[Subject, JwtSvid]),
            (json!({"alg": "RS256", "typ": "JWT", "x5t": "x"}), &[Subject, Assertion]),
            (json!({"alg": "ES256", "typ": "client-authentication+jwt"}), &[Subject, Assertion]),
            (json!({"alg": "EdDSA"}), &[Subject, Assertion]),
            (json!({"alg": "ES256", "typ": "at+jwt"}), &[Subject]),
            (json!({"alg": "ES256", "typ": 7}), &[Subject]),
            (json!({"alg": "HS256"}), &[Subject]),
            (json!({"alg": "ES2566"}), &[Subject]),
            (json!({"alg": "ES256", "jwk": {}}), &[Subject]),
            (json!({"alg": "ES256", "jku": "https://x"}), &[Subject]),
            (json!({"alg": "ES256", "crit": ["x"]}), &[Subject]),
            (json!({"alg": "none"}), &[]),
            (json!({"alg": "NONE"}), &[]),
            (json!({"typ": "JWT"}), &[]),
        ] {
            for form in [Subject, Assertion, JwtSvid] {
                let taken = check(&jwt(header.clone(), claims()), form).is_ok();
                assert_eq!(taken, allowed.contains(&form), "{header} as {form:?}");
            }
        }
    }

    #[test]
    fn what_two_readers_could_read_differently_is_no_token() {
        // OA-03
        let twice = b64(br#"{"exp":1700000001,"ref":"x","ref":"refs/heads/main"}"#);
        let header = b64(br#"{"alg":"ES256"}"#);
        for text in [
            format!("{header}.{twice}.c2ln"),
            format!(
                "{}.{}.c2ln",
                b64(br#"{"alg":"none","alg":"ES256"}"#),
                b64(claims().to_string().as_bytes())
            ),
            format!("{header}.c2ln"),
            format!("{header}.{twice}.c2ln.c2ln"),
            format!("{header}.W10.c2ln"),
            "..".into(),
        ] {
            assert!(check(&text, Form::Subject).unwrap_err().starts_with("it is not a JWT"), "{text}");
        }
    }
}

//! Where a delivered value comes from: one field of one credential. In goes `credential.field`, and a credential as the agent tells
//! it; out comes the field's value, or why there is none.

use std::{fmt, str::FromStr, sync::Arc};

use crate::{
    proto::v1::{Credential, LeasedValues, StaticValues, credential::Kind},
    secret::{Secret, scrubbed},
};

/// One field of one credential.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Source {
    /// The credential's name within the identity.
    pub credential: Arc<str>,
    /// The field's name.
    pub field: String,
}

/// Why a credential has no such field.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum NoField {
    /// It has others.
    #[error("{wanted} is not there: it has {}", .has.join(", "))]
    Unknown {
        /// What was asked for.
        wanted: Source,
        /// What there is.
        has: Vec<String>,
    },
    /// It has a key that is not handed out.
    #[error(
        "{0} does not leave the agent: say key_export = \"allowed\" for this credential, or have the agent use it (forward)"
    )]
    KeyStays(Source),
    /// This version does not know what it is.
    #[error(
        "{0}: this version does not know that kind of credential; bring the command and the agent to one version"
    )]
    UnknownKind(Source),
}

impl Source {
    /// The value in `credential`, which is the one that is named:
    ///
    /// - an access token has `token` and `authorization`, the value of that header;
    /// - a certificate has `chain`, `bundle` (the roots), and where it is handed out `key`, and `pair`, the key before the chain;
    ///   an access token that is bound to a certificate has `chain`, `key` and `pair` too;
    /// - leased values and static ones have their own names;
    /// - all have `expires_at`, as RFC 3339 writes it.
    ///
    /// # Errors
    /// [`NoField`].
    pub fn value(&self, credential: &Credential) -> Result<Secret, NoField> {
        let kind = credential.kind.as_ref().ok_or_else(|| NoField::UnknownKind(self.clone()))?;
        let text = |text: &str| Ok(Secret::new(text));
        let shown = credential.client_certificate.as_ref();
        if let Kind::LeasedValues(LeasedValues { values }) | Kind::StaticValues(StaticValues { values }) =
            kind
            && let Some(value) = values.get(&self.field)
        {
            return text(value);
        }
        match (self.field.as_str(), kind, shown) {
            ("expires_at", ..) if credential.expires_at.is_some() => {
                let seconds = credential.expires_at.map_or(0, |at| at.seconds);
                text(&jiff::Timestamp::from_second(seconds).unwrap_or_default().to_string())
            }
            ("token", Kind::AccessToken(token), _) => text(&token.token),
            ("authorization", Kind::AccessToken(token), _) => {
                text(&format!("{} {}", token.token_type, token.token))
            }
            ("bundle", Kind::X509Certificate(certificate), _) => text(&certificate.bundle_pem),
            ("chain", _, Some(shown)) => text(&shown.chain_pem),
            ("key" | "pair", _, Some(shown)) if shown.key_pem.is_empty() => {
                Err(NoField::KeyStays(self.clone()))
            }
            ("key", _, Some(shown)) => text(&shown.key_pem),
            ("pair", _, Some(shown)) => text(&format!("{}{}", shown.key_pem, shown.chain_pem)),
            _ => Err(NoField::Unknown { wanted: self.clone(), has: fields(credential, kind) }),
        }
    }
}

/// What there is to choose from.
fn fields(credential: &Credential, kind: &Kind) -> Vec<String> {
    let mut has: Vec<String> = match kind {
        Kind::AccessToken(_) => ["token", "authorization"].map(str::to_owned).into(),
        Kind::X509Certificate(_) => vec!["bundle".to_owned()],
        Kind::LeasedValues(LeasedValues { values }) | Kind::StaticValues(StaticValues { values }) => {
            values.keys().cloned().collect()
        }
    };
    if credential.client_certificate.is_some() {
        has.extend(["chain", "key", "pair"].map(str::to_owned));
    }
    has.push("expires_at".to_owned());
    has.sort();
    has.dedup();
    has
}

impl FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('.').filter(|(credential, field)| {
            let of = |text: &str, also: &[u8]| {
                (1..=64).contains(&text.len())
                    && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || also.contains(&byte))
            };
            of(credential, b"-_") && of(field, b"-_.")
        });
        let Some((credential, field)) = parts else {
            let shown = scrubbed(text, 64);
            return Err(format!(
                "{shown:?} is no field of a credential: write CREDENTIAL.FIELD, as in ledger.token"
            ));
        };
        Ok(Self { credential: credential.into(), field: field.to_owned() })
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.credential, self.field)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::v1::{AccessToken, ClientCertificate, X509Certificate};

    fn of(kind: Kind) -> Credential {
        let expires_at = Some(prost_types::Timestamp { seconds: 1_767_225_600, nanos: 0 });
        Credential { name: "c".into(), kind: Some(kind), expires_at, ..Credential::default() }
    }

    fn value(field: &str, credential: &Credential) -> Result<String, NoField> {
        let source: Source = format!("c.{field}").parse().unwrap();
        source.value(credential).map(|value| value.expose_str().unwrap().to_owned())
    }

    #[test]
    fn each_kind_has_its_fields() {
        let token = of(Kind::AccessToken(AccessToken { token: "t".into(), token_type: "DPoP".into() }));
        assert_eq!(value("token", &token).unwrap(), "t");
        assert_eq!(value("authorization", &token).unwrap(), "DPoP t");
        assert_eq!(value("expires_at", &token).unwrap(), "2026-01-01T00:00:00Z");
        let NoField::Unknown { has, .. } = value("password", &token).unwrap_err() else { panic!() };
        assert_eq!(has, ["authorization", "expires_at", "token"]);
        let values = [("username".into(), "u".into()), ("expires_at".into(), "mine".into())].into();
        let leased = of(Kind::LeasedValues(LeasedValues { values }));
        assert_eq!(value("username", &leased).unwrap(), "u");
        assert_eq!(value("expires_at", &leased).unwrap(), "mine", "its own names come first");
        // S46: a program that reads `token` of it reads that of the access token that takes its place.
        let values = [("token".into(), "s".into())].into();
        let sealed = of(Kind::StaticValues(StaticValues { values }));
        assert_eq!(
            (value("token", &sealed).unwrap(), value("token", &token).unwrap()),
            ("s".into(), "t".into())
        );
        assert!(value("authorization", &sealed).is_err() && value("expires_at", &sealed).is_ok());
        let mut certificate = of(Kind::X509Certificate(X509Certificate { bundle_pem: "R".into() }));
        certificate.client_certificate =
            Some(ClientCertificate { chain_pem: "C".into(), key_pem: String::new() });
        assert_eq!(value("bundle", &certificate).unwrap(), "R");
        assert_eq!(value("chain", &certificate).unwrap(), "C");
        assert!(matches!(value("key", &certificate), Err(NoField::KeyStays(_))));
        certificate.client_certificate =
            Some(ClientCertificate { chain_pem: "C".into(), key_pem: "K".into() });
        assert_eq!(value("pair", &certificate).unwrap(), "KC");
    }

    #[test]
    fn a_source_is_two_names() {
        let source: Source = "ledger.a.b".parse().unwrap();
        assert_eq!((&*source.credential, source.field.as_str()), ("ledger", "a.b"));
        for bad in ["", "ledger", ".token", "ledger.", "a b.c", "a.b\n", "a=b.c"] {
            assert!(bad.parse::<Source>().is_err(), "{bad:?}");
        }
    }
}

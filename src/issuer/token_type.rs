//! Kinds of tokens, as an exchange names them (RFC 8693 3). In goes a short name or a URI; out comes a [`TokenType`].

use std::fmt;

use serde::{Deserialize, Serialize};

/// What every URI of a kind begins with.
const PREFIX: &str = "urn:ietf:params:oauth:token-type:";

/// A kind of token (OA-24). Those of drafts are read so that they can be named in a refusal, and are never asked for.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
pub enum TokenType {
    /// An OAuth access token.
    AccessToken,
    /// An OAuth refresh token.
    RefreshToken,
    /// An OpenID Connect id token.
    IdToken,
    /// A SAML 1.1 assertion.
    Saml1,
    /// A SAML 2.0 assertion.
    Saml2,
    /// Any JWT.
    Jwt,
    /// draft-ietf-oauth-transaction-tokens.
    TransactionToken,
    /// draft-ietf-oauth-transaction-tokens: a JWT that the asker signed.
    SelfSigned,
    /// draft-ietf-oauth-transaction-tokens: bare JSON.
    UnsignedJson,
    /// draft-ietf-oauth-identity-assertion-authz-grant.
    IdentityAssertion,
}

impl TokenType {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::AccessToken,
        Self::RefreshToken,
        Self::IdToken,
        Self::Saml1,
        Self::Saml2,
        Self::Jwt,
        Self::TransactionToken,
        Self::SelfSigned,
        Self::UnsignedJson,
        Self::IdentityAssertion,
    ];

    /// The last part of its URI, as the settings name it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AccessToken => "access_token",
            Self::RefreshToken => "refresh_token",
            Self::IdToken => "id_token",
            Self::Saml1 => "saml1",
            Self::Saml2 => "saml2",
            Self::Jwt => "jwt",
            Self::TransactionToken => "txn_token",
            Self::SelfSigned => "self_signed",
            Self::UnsignedJson => "unsigned_json",
            Self::IdentityAssertion => "id-jag",
        }
    }

    /// Its URI.
    pub fn uri(self) -> String {
        format!("{PREFIX}{}", self.as_str())
    }

    /// Reads a URI, to the letter; `None` if it names no kind that is known.
    pub fn from_uri(uri: &str) -> Option<Self> {
        let name = uri.strip_prefix(PREFIX)?;
        Self::ALL.into_iter().find(|known| known.as_str() == name)
    }
}

impl fmt::Display for TokenType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_read_as_it_is_written_and_nothing_else_is() {
        // OA-24
        for kind in TokenType::ALL {
            assert_eq!(TokenType::from_uri(&kind.uri()), Some(kind));
        }
        assert_eq!(TokenType::AccessToken.uri(), "urn:ietf:params:oauth:token-type:access_token");
        assert_eq!(TokenType::IdentityAssertion.uri(), "urn:ietf:params:oauth:token-type:id-jag");
        for other in [
            "",
            "jwt",
            "urn:ietf:params:oauth:token-type:",
            "urn:ietf:params:oauth:token-type:JWT",
            "urn:ietf:params:oauth:token-type:password",
            "urn:ietf:params:oauth:token-type:jwt ",
        ] {
            assert_eq!(TokenType::from_uri(other), None, "{other}");
        }
    }
}

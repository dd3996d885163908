//! How a credential is asked for: by which grant, by which proof of who asks, with which details. In goes the room
//! `config`'s reading; out comes every mistake in it. There is no variant for a password and none for an implicit grant
//! (OA-28): what cannot be written cannot be sent.

use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{spiffe, token_file::TokenFile, token_type::TokenType};
use crate::keys::{KeyKind, Subject};

/// How a credential is asked for. Two orders that differ in it are two orders.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Terms {
    /// What is wanted.
    pub wants: Wants,
    /// The grant.
    pub grant: GrantType,
    /// How the issuer learns who asks.
    pub client_auth: ClientAuth,
    /// What it is for beside its scope: `authorization_details` (RFC 9396), each an object with a `type`.
    pub details: Vec<Value>,
    /// Whether an opaque token that has to be bound is looked up at the issuer before it is used (RFC 7662).
    pub introspect: bool,
}

/// What an order is for.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub enum Wants {
    /// An access token.
    #[default]
    Token,
    /// A certificate for a key of the agent's own.
    Certificate(CertificateTerms),
    /// Values that are leased, such as the user of a database.
    Lease(LeaseTerms),
    /// A secret that cannot be made anew for the caller yet (S1): nobody is asked for it, it lies on this host.
    #[serde(skip)] // never kept over a restart: it lies sealed already
    Sealed(SealedTerms),
}

impl Wants {
    /// Whether it is the same secret each time, whoever has it (S36).
    pub fn is_static(&self) -> bool {
        matches!(self, Self::Sealed(_))
    }
}

/// What a certificate has to be.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct CertificateTerms {
    /// What it says, exactly (X5-01, X5-02).
    pub subject: Subject,
    /// The kind of its key.
    pub key: KeyKind,
    /// Whether a renewal keeps the key; by default each certificate has its own (X5-05).
    pub same_key: bool,
    /// Where key and chain are kept over a restart; without it, in memory only.
    pub path: Option<PathBuf>,
    /// Whether the key may be handed out with it (MT-11).
    pub export: bool,
    /// Where it is asked for, at issuers that have more than one place: `pki/sign/payments`.
    pub at: Option<String>,
}

/// What is leased.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct LeaseTerms {
    /// Where: `database/creds/payments`.
    pub at: String,
    /// The values to hand out, by their names there; without any, all of them.
    pub fields: Vec<String>,
    /// Whether it may turn out to have no lease, as an entry of a KV engine has none: that is a static secret, and needs an exception
    /// (S36).
    #[serde(default)]
    pub unleased: bool,
}

/// A secret that stays as it is until somebody changes it where it is checked.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SealedTerms {
    /// The names of its values.
    pub fields: Vec<String>,
    /// Who keeps it.
    pub keeper: SealedBy,
    /// When its exception ends: nothing that is handed out lives longer (S36).
    pub until: Timestamp,
}

/// Who keeps a secret sealed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum SealedBy {
    /// The agent, since an operator put it in.
    Agent,
    /// The service manager, which gives it to the agent under this name.
    ServiceManager(String),
}

/// The grants of this house.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub enum GrantType {
    /// RFC 6749 4.4.
    #[default]
    ClientCredentials,
    /// RFC 7523 2.1: this token is the grant.
    JwtBearer(TokenFile),
    /// RFC 8693.
    TokenExchange(Exchange),
}

impl GrantType {
    /// The `grant_type` value.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::ClientCredentials => "client_credentials",
            Self::JwtBearer(_) => "urn:ietf:params:oauth:grant-type:jwt-bearer",
            Self::TokenExchange(_) => "urn:ietf:params:oauth:grant-type:token-exchange",
        }
    }
}

/// What is exchanged (RFC 8693 2.1).
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Exchange {
    /// On whose behalf.
    pub subject: Brought,
    /// Who acts. Nobody is claimed to unless the operator says so (OA-25).
    pub actor: Option<Brought>,
    /// What is wanted; the issuer's choice if unsaid.
    pub requested: Option<TokenType>,
}

/// A token of somebody else's, with its kind: one is never sent without the other (OA-22).
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Brought {
    /// Where it is.
    pub file: TokenFile,
    /// What it is.
    pub kind: TokenType,
}

/// How the issuer learns who asks.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub enum ClientAuth {
    /// An assertion signed with the identity's own key (RFC 7523 2.2).
    #[default]
    PrivateKeyJwt,
    /// The certificate of the TLS connection, which a CA vouches for (RFC 8705 2.1).
    TlsClientAuth,
    /// The certificate of the TLS connection, which the issuer was shown beforehand (RFC 8705 2.2).
    SelfSignedTlsClientAuth,
    /// An assertion that a platform wrote, which the issuer trusts (RFC 7523 2.2): the kubelet, a CI.
    FederatedJwt(TokenFile),
    /// A JWT-SVID (draft-ietf-oauth-spiffe-client-auth, DR-05).
    SpiffeJwt(SvidSource),
    /// A secret in a file that is good once, to begin with: it is destroyed after use (ACM-02, EST-02).
    Bootstrap(PathBuf),
    /// Nobody asks anybody: what is wanted lies on this host.
    Nobody,
}

impl ClientAuth {
    /// As the settings and the metadata name it.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::PrivateKeyJwt => "private_key_jwt",
            Self::TlsClientAuth => "tls_client_auth",
            Self::SelfSignedTlsClientAuth => "self_signed_tls_client_auth",
            Self::FederatedJwt(_) => "federated_jwt",
            Self::SpiffeJwt(_) => "spiffe_jwt",
            Self::Bootstrap(_) => "bootstrap",
            Self::Nobody => "none",
        }
    }

    /// Whom the assertion of others speaks of; `None` where the identity makes its own.
    pub fn subject(&self) -> Option<&str> {
        match self {
            Self::PrivateKeyJwt
            | Self::TlsClientAuth
            | Self::SelfSignedTlsClientAuth
            | Self::Bootstrap(_)
            | Self::Nobody => None,
            Self::FederatedJwt(file) | Self::SpiffeJwt(SvidSource::File(file)) => Some(subject_of(file)),
            Self::SpiffeJwt(SvidSource::WorkloadApi { spiffe_id, .. }) => Some(spiffe_id),
        }
    }

    /// Whether the certificate of the connection proves who asks, and no assertion.
    pub fn is_mtls(&self) -> bool {
        matches!(self, Self::TlsClientAuth | Self::SelfSignedTlsClientAuth)
    }

    /// Whether a key of the identity's own proves who asks, by what it signs.
    pub fn needs_key(&self) -> bool {
        matches!(self, Self::PrivateKeyJwt)
    }
}

/// Where a JWT-SVID comes from.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum SvidSource {
    /// A file that a SPIFFE helper writes.
    File(TokenFile),
    /// The SPIFFE Workload API, asked for each attempt.
    WorkloadApi {
        /// Its socket.
        socket: PathBuf,
        /// Which identity is wanted.
        spiffe_id: String,
    },
}

/// Issuers whose tokens anybody can get: what their `iss` says is no condition at all (NHI-6).
const SHARED: [&str; 11] = [
    "accounts.google.com",
    "agent.buildkite.com",
    "api.bitbucket.org",
    "app.harness.io",
    "app.terraform.io",
    "gitlab.com",
    "oidc.circleci.com",
    "oidc.codefresh.io",
    "oidc.fly.io",
    "token.actions.githubusercontent.com",
    "vstoken.dev.azure.com",
];

/// What is wrong with `terms` of a credential that is bound or not: all of it, as a key and what to do about it.
pub fn problems(terms: &Terms, bound: bool) -> Vec<(&'static str, String)> {
    let mut found = Vec::new();
    match &terms.grant {
        GrantType::ClientCredentials => {}
        GrantType::JwtBearer(file) => of_subject(&mut found, "subject", file),
        GrantType::TokenExchange(exchange) => {
            of_subject(&mut found, "subject", &exchange.subject.file);
            if let Some(actor) = &exchange.actor {
                of_claims(&mut found, "actor", &actor.file);
            }
        }
    }
    match &terms.client_auth {
        ClientAuth::PrivateKeyJwt
        | ClientAuth::TlsClientAuth
        | ClientAuth::SelfSignedTlsClientAuth
        | ClientAuth::Bootstrap(_)
        | ClientAuth::Nobody => {}
        ClientAuth::FederatedJwt(file) => {
            if terms.client_auth.subject().is_none_or(str::is_empty) {
                let what =
                    "name whom the token has to speak of: subject = \"system:serviceaccount:NAMESPACE:NAME\"";
                found.push(("assertion.subject", what.into()));
            }
            of_claims(&mut found, "assertion", file);
        }
        ClientAuth::SpiffeJwt(source) => {
            if let SvidSource::File(file) = source {
                of_claims(&mut found, "assertion", file);
            }
            if !terms.client_auth.subject().is_some_and(spiffe::is_id) {
                let what = "name the one SPIFFE ID that the issuer knows: subject = \"spiffe://example.org/payments\" (SPF-01)";
                found.push(("assertion.subject", what.into()));
            }
        }
    }
    let typed =
        |detail: &Value| detail.get("type").and_then(Value::as_str).is_some_and(|name| !name.is_empty());
    if !terms.details.iter().all(typed) {
        found.push(("authorization_details", "each of them has a type, a text (RFC 9396 2)".into()));
    }
    if terms.introspect && !bound {
        let what = "it is only used with a binding: nothing else of an opaque token has to be looked up";
        found.push(("introspect", what.into()));
    }
    found
}

fn of_subject(found: &mut Vec<(&'static str, String)>, key: &'static str, file: &TokenFile) {
    if file.conditions.issuer.as_deref().unwrap_or_default().is_empty() {
        found.push((
            key,
            "name who has to have made the token: issuer = \"https://kubernetes.default.svc\"".into(),
        ));
    }
    if file.conditions.audience.as_deref().unwrap_or_default().is_empty() {
        found.push((
            key,
            "name whom the token has to be for, and nobody else: audience = \"https://idp.example.com\""
                .into(),
        ));
    }
    of_claims(found, key, file);
}

fn of_claims(found: &mut Vec<(&'static str, String)>, key: &'static str, file: &TokenFile) {
    let claims = &file.conditions.claims;
    if claims.values().any(|value| value.contains('*') || value.is_empty()) {
        let what = "a claim is compared letter by letter: write out each value, without * (NHI-6)";
        found.push((key, what.into()));
    }
    let host = file.conditions.issuer.as_deref().and_then(|issuer| issuer.strip_prefix("https://"));
    let host = host.and_then(|rest| rest.split('/').next()).unwrap_or_default();
    if SHARED.contains(&host) && claims.is_empty() {
        let what = "everybody gets tokens of this issuer: name whose they have to be, as claims = { repository = \"org/repo\", \
                    ref = \"refs/heads/main\" } (NHI-6)";
        found.push((key, what.into()));
    }
}

fn subject_of(file: &TokenFile) -> &str {
    file.conditions.claims.get("sub").map(String::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;
    use crate::issuer::conditions::Conditions;

    fn file(issuer: &str, claims: &[(&str, &str)]) -> TokenFile {
        let claims: BTreeMap<_, _> = claims.iter().map(|(name, is)| ((*name).into(), (*is).into())).collect();
        let text = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        let audience = text("https://idp.example.com");
        TokenFile { path: "/t".into(), conditions: Conditions { issuer: text(issuer), audience, claims } }
    }

    fn keys(terms: Terms) -> Vec<&'static str> {
        problems(&terms, true).into_iter().map(|(key, _)| key).collect()
    }

    #[test]
    fn a_token_anybody_can_get_needs_claims_and_no_claim_is_a_pattern() {
        // NHI-6, S44, WIM-11
        const CI: &str = "https://token.actions.githubusercontent.com";
        for (issuer, claims, told) in [
            (CI, &[("repository", "org/repo")][..], false),
            (CI, &[], true),
            ("https://gitlab.com", &[], true),
            ("https://oidc.circleci.com/org/0000", &[], true),
            ("https://gitlab.example.com", &[], false),
            (CI, &[("sub", "repo:org/repo:*")], true),
            ("https://kubernetes.default.svc", &[("sub", "system:serviceaccount:*:payments")], true),
            ("https://kubernetes.default.svc", &[("sub", "")], true),
            ("", &[("sub", "x")], true),
        ] {
            let grant = GrantType::JwtBearer(file(issuer, claims));
            let expected: &[&str] = if told { &["subject"] } else { &[] };
            assert_eq!(keys(Terms { grant, ..Terms::default() }), expected, "{issuer} {claims:?}");
        }
        let mut for_anybody = file(CI, &[("sub", "x")]);
        for_anybody.conditions.audience = None;
        assert_eq!(keys(Terms { grant: GrantType::JwtBearer(for_anybody), ..Terms::default() }), ["subject"]);
        let subject = Brought { file: file(CI, &[("sub", "x")]), kind: TokenType::Jwt };
        let actor = Some(Brought { file: file(CI, &[]), kind: TokenType::Jwt });
        let grant = GrantType::TokenExchange(Exchange { subject, actor, requested: None });
        assert_eq!(keys(Terms { grant, ..Terms::default() }), ["actor"]);
    }

    #[test]
    fn an_assertion_of_others_names_its_subject() {
        // DR-05, SPF-01
        let socket = |id: &str| SvidSource::WorkloadApi { socket: "/s".into(), spiffe_id: id.into() };
        for (client_auth, sound) in [
            (ClientAuth::FederatedJwt(file("", &[("sub", "system:serviceaccount:a:b")])), true),
            (ClientAuth::FederatedJwt(file("", &[])), false),
            (ClientAuth::SpiffeJwt(SvidSource::File(file("", &[("sub", "spiffe://e.org/a")]))), true),
            (ClientAuth::SpiffeJwt(SvidSource::File(file("", &[("sub", "e.org/a")]))), false),
            (ClientAuth::SpiffeJwt(socket("spiffe://e.org/a")), true),
            (ClientAuth::SpiffeJwt(socket("spiffe://e.org/*")), false),
        ] {
            assert!(!client_auth.needs_key());
            let expected: &[&str] = if sound { &[] } else { &["assertion.subject"] };
            assert_eq!(keys(Terms { client_auth, ..Terms::default() }), expected);
        }
        assert!(ClientAuth::default().needs_key());
    }

    #[test]
    fn details_have_types_and_only_what_is_bound_is_looked_up() {
        // OA-27, OA-42
        for (detail, sound) in [
            (json!({"type": "payment", "actions": ["read"]}), true),
            (json!({"actions": ["read"]}), false),
            (json!({"type": ""}), false),
            (json!({"type": 7}), false),
        ] {
            let told = keys(Terms { details: vec![detail], ..Terms::default() });
            assert_eq!(told.is_empty(), sound, "{told:?}");
        }
        let terms = Terms { introspect: true, ..Terms::default() };
        assert_eq!(problems(&terms, true), []);
        assert_eq!(problems(&terms, false)[0].0, "introspect");
    }

    #[test]
    fn there_is_no_grant_but_these() {
        // OA-28: whoever adds a variant comes by here.
        let name = |grant: &GrantType| match grant {
            GrantType::ClientCredentials | GrantType::JwtBearer(_) | GrantType::TokenExchange(_) => {
                grant.as_str()
            }
        };
        assert_eq!(name(&GrantType::default()), "client_credentials");
        assert!(!name(&GrantType::JwtBearer(file("", &[]))).contains("password"));
    }
}

//! What an issuer has to know about a client, as client metadata (RFC 7591, RFC 8705, RFC 9449). In go the settings and the
//! public halves of the keys; out comes one JSON object, which a person or a program hands to the issuer.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::Exit;
use crate::{
    credential::Binding,
    issuer::terms::{ClientAuth, Wants},
    jose::Signer,
    keys::ClientCertificate,
    policy::{CredentialRule, Policy},
};

/// One client at one issuer.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct ClientOf<'a> {
    issuer: &'a str,
    client_id: &'a str,
    identity: &'a str,
}

/// Which client is meant: what is not said is anything.
#[derive(Clone, Copy, Debug)]
pub(super) struct Which<'a> {
    pub(super) identity: Option<&'a str>,
    pub(super) issuer: Option<&'a str>,
    pub(super) client: Option<&'a str>,
}

impl Which<'_> {
    fn is(self, client: &ClientOf<'_>) -> bool {
        let fits = |wanted: Option<&str>, is: &str| wanted.is_none_or(|wanted| wanted == is);
        fits(self.identity, client.identity)
            && fits(self.issuer, client.issuer)
            && fits(self.client, client.client_id)
    }
}

/// The metadata of the one client that `which` leaves.
pub(super) fn registration(
    policy: &Policy,
    which: Which<'_>,
    key: impl Fn(&str) -> Option<Value>,
    certificates: &BTreeMap<&str, Vec<std::sync::Arc<ClientCertificate>>>,
) -> Result<Value, Exit> {
    let mut clients: BTreeMap<ClientOf<'_>, Vec<&CredentialRule>> = BTreeMap::new();
    for of in policy.identities() {
        // CAs and vaults have no such thing.
        for rule in of.credentials.values().filter(|rule| rule.terms.wants == Wants::Token) {
            let client = ClientOf { issuer: &rule.issuer, client_id: &rule.client_id, identity: &of.name };
            clients.entry(client).or_default().push(rule);
        }
    }
    clients.retain(|client, _| which.is(client));
    let mut each = clients.into_iter();
    match (each.next(), each.next()) {
        (Some((client, rules)), None) => metadata(&client, &rules, key, certificates),
        (None, _) => {
            Err(Exit::new(Exit::DATA, "there is no such client: see --identity, --issuer and --client"))
        }
        (Some(_), Some(_)) => Err(Exit::new(
            Exit::USAGE,
            "these are several clients, and each is registered by itself: choose one by --identity, --issuer and --client",
        )),
    }
}

fn metadata(
    client: &ClientOf<'_>,
    rules: &[&CredentialRule],
    key: impl Fn(&str) -> Option<Value>,
    certificates: &BTreeMap<&str, Vec<std::sync::Arc<ClientCertificate>>>,
) -> Result<Value, Exit> {
    let missing = |what: &str| {
        let name = client.identity;
        Exit::new(
            Exit::DATA,
            format!("identity {name} has no {what} in a file: one in memory cannot be registered"),
        )
    };
    // Where one of its credentials is not bound in this way, the issuer must not demand it of the client.
    let all = |binding| rules.iter().all(|rule| rule.binding == binding);
    let scope: BTreeSet<&str> = rules.iter().flat_map(|rule| rule.scope.iter().map(|word| &**word)).collect();
    let method = rules.first().map(|rule| rule.terms.client_auth.clone()).unwrap_or_default();
    let grants: BTreeSet<&str> = rules.iter().map(|rule| rule.terms.grant.as_str()).collect();
    let mut metadata = json!({
        "client_id": client.client_id,
        "client_name": client.identity,
        "grant_types": grants,
        "response_types": [],
        "redirect_uris": [],
        "token_endpoint_auth_method": method.as_str(),
        "scope": scope.into_iter().collect::<Vec<_>>().join(" "),
        // DPOP-15
        "dpop_bound_access_tokens": all(Binding::Dpop),
        "tls_client_certificate_bound_access_tokens": all(Binding::Mtls),
    });
    let shown = certificates.get(client.identity).map(Vec::as_slice).unwrap_or_default();
    match method {
        // What others sign, the issuer knows from them.
        ClientAuth::FederatedJwt(_)
        | ClientAuth::SpiffeJwt(_)
        | ClientAuth::Bootstrap(_)
        | ClientAuth::Nobody => {}
        ClientAuth::PrivateKeyJwt => {
            let jwk = key(client.identity).ok_or_else(|| missing("key"))?;
            metadata["token_endpoint_auth_signing_alg"] = jwk["alg"].clone();
            metadata["jwks"] = json!({"keys": [jwk]});
        }
        ClientAuth::TlsClientAuth => {
            // MT-04: exactly one.
            let name = shown.first().ok_or_else(|| missing("certificate"))?.name();
            metadata[name.member] = json!(name.value);
        }
        ClientAuth::SelfSignedTlsClientAuth => {
            let jwks: Vec<Value> = shown.iter().filter_map(|one| one.jwk()).collect();
            if jwks.is_empty() {
                return Err(missing("certificate"));
            }
            metadata["jwks"] = json!({"keys": jwks});
        }
    }
    Ok(metadata)
}

/// The JWK of a key that signs assertions.
pub(super) fn jwk(key: &dyn Signer) -> Value {
    key.public().jwk(key.algorithm())
}

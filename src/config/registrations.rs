//! `[identities.NAME.registrations.NAME]` as meant: where an issuer lets us put the keys of a client right (RFC 7592). In go the
//! tables of one identity and its credentials; out come registrations, each of a client that the identity is.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
};

use super::{issuers::IssuerSettings, reader::Reader};
use crate::{
    broker::RegistrationSettings,
    issuer::{oauth, terms::ClientAuth},
    policy::CredentialRule,
};

/// All registrations of all identities.
pub(super) type Registrations = Vec<Arc<RegistrationSettings>>;

/// Reads the tables of `identity`.
pub(super) fn registrations(
    reader: &mut Reader<'_>,
    identity: &Arc<str>,
    state: &Path,
    issuers: &BTreeMap<Arc<str>, IssuerSettings>,
    credentials: &BTreeMap<Arc<str>, Arc<CredentialRule>>,
) -> Registrations {
    let mut seen = BTreeSet::new();
    let mut registrations = Vec::new();
    for (name, mut reader) in reader.named_tables("registrations") {
        let issuer: Arc<str> = reader.required("issuer", "issuer = \"corp\"").unwrap_or_default().into();
        let client_id: Arc<str> =
            reader.required("client_id", "client_id = \"payments\"").unwrap_or_default().into();
        let example = "uri = \"https://idp.example.com/register/payments\"";
        let uri = reader.required("uri", example).unwrap_or_default();
        let directory = state.join("registrations");
        let token_file = reader.path("token_file");
        let token_file = token_file.unwrap_or_else(|| directory.join(format!("{identity}.{name}.token")));
        if !uri.is_empty()
            && let Some(IssuerSettings::OAuth(settings)) = issuers.get(&issuer)
            && let Some(what) = oauth::misplaced(&uri, settings)
        {
            reader.wrong("uri", what);
        }
        let theirs = |rule: &&Arc<CredentialRule>| rule.issuer == issuer && rule.client_id == client_id;
        let rules: Vec<&Arc<CredentialRule>> = credentials.values().filter(theirs).collect();
        let client_auth = rules.first().map(|rule| rule.terms.client_auth.clone()).unwrap_or_default();
        match &client_auth {
            _ if client_id.is_empty() || issuer.is_empty() => {}
            _ if rules.is_empty() => {
                let message = "none of this identity's credentials is of this client at this issuer";
                reader.wrong("client_id", message);
            }
            ClientAuth::PrivateKeyJwt | ClientAuth::SelfSignedTlsClientAuth => {}
            other => {
                let message = format!(
                    "with client_auth = \"{}\" an issuer is told of no key: take the registration out",
                    other.as_str()
                );
                reader.wrong("client_id", message);
            }
        }
        if !seen.insert((Arc::clone(&issuer), Arc::clone(&client_id))) {
            reader.wrong("client_id", "another registration of this identity is of the same client");
        }
        reader.finish();
        registrations.push(Arc::new(RegistrationSettings {
            identity: Arc::clone(identity),
            issuer,
            client_id,
            client_auth,
            grants: rules.iter().map(|rule| rule.terms.grant.as_str()).collect(),
            uri,
            token_file,
            kept: directory.join(format!("{identity}.{name}.sealed")),
        }));
    }
    registrations
}

//! What the issuer says about itself (RFC 8414). In goes the fault that is set; out comes the document.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{
    binding::ALGORITHMS,
    desk::{Desk, Endpoint},
    faults::Fault,
    grants::GRANTS,
    token::OTHER_ISSUER,
};
use crate::{dev::http::NOTE, jose::Algorithm};

impl Desk {
    pub(super) fn metadata(&self, fault: &Fault) -> Value {
        let at = |endpoint: Endpoint| format!("{}{}", self.url, endpoint.path());
        let issuer = if *fault == Fault::WrongIssuer { OTHER_ISSUER } else { self.url.as_str() };
        let methods = json!(["private_key_jwt", "spiffe_jwt"]);
        let algorithms = json!(["ES256", "EdDSA", "PS256", "RS256"]);
        let types: BTreeSet<String> = self
            .books()
            .clients
            .values()
            .flat_map(|client| &client.authorization_details_types)
            .cloned()
            .collect();
        json!({
            "issuer": issuer,
            "token_endpoint": at(Endpoint::Token),
            "jwks_uri": at(Endpoint::Jwks),
            "revocation_endpoint": at(Endpoint::Revoke),
            "introspection_endpoint": at(Endpoint::Introspect),
            // RFC 8414 2: required even of a server that has no authorization endpoint, and then empty.
            "response_types_supported": [],
            "grant_types_supported": GRANTS,
            "token_endpoint_auth_methods_supported": methods,
            "token_endpoint_auth_signing_alg_values_supported": algorithms,
            "revocation_endpoint_auth_methods_supported": methods,
            "revocation_endpoint_auth_signing_alg_values_supported": algorithms,
            "introspection_endpoint_auth_methods_supported": methods,
            "introspection_endpoint_auth_signing_alg_values_supported": algorithms,
            "authorization_details_types_supported": types,
            "dpop_signing_alg_values_supported": ALGORITHMS.map(Algorithm::as_str),
            "keybearer_development": NOTE,
        })
    }
}

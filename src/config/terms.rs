//! How a credential is asked for, as written in its table. In goes the table; out come its [`Terms`]. What they may not say
//! together is the lint's to tell (`issuer::terms::problems`); what belongs to another word of the same table is told here.

use super::reader::Reader;
use crate::issuer::{
    conditions::Conditions,
    terms::{Brought, ClientAuth, Exchange, GrantType, SvidSource, Terms, Wants},
    token_file::TokenFile,
    token_type::TokenType,
};

#[derive(Clone, Copy, Eq, PartialEq)]
enum Grant {
    ClientCredentials,
    JwtBearer,
    TokenExchange,
}

#[derive(Clone, Copy, Eq, PartialEq)]
enum Proof {
    Bootstrap,
    Certificate,
    CertificateItself,
    Federated,
    OwnKey,
    Spiffe,
}

/// Reads the terms of one credential. A key that is missing where it must not be is told and stood in for.
pub(super) fn terms(reader: &mut Reader<'_>, wants: Wants) -> Terms {
    Terms {
        wants,
        grant: grant(reader),
        client_auth: client_auth(reader),
        details: reader.objects("authorization_details"),
        introspect: reader.boolean("introspect", false),
    }
}

fn grant(reader: &mut Reader<'_>) -> GrantType {
    let words = [
        ("client_credentials", Grant::ClientCredentials),
        ("token_exchange", Grant::TokenExchange),
        ("jwt_bearer", Grant::JwtBearer),
    ];
    let grant = reader.word("grant", Grant::ClientCredentials, &words);
    for (key, used) in [
        ("subject", grant != Grant::ClientCredentials),
        ("actor", grant == Grant::TokenExchange),
        ("requested_token_type", grant == Grant::TokenExchange),
    ] {
        if !used && reader.has(key) {
            reader.wrong(key, "it is not used with this grant");
        }
    }
    if grant == Grant::ClientCredentials {
        return GrantType::ClientCredentials;
    }
    let subject = match reader.table("subject") {
        Some(table) => brought(table),
        None => {
            if !reader.has("subject") {
                reader.wrong("subject", "it is required, for example subject = { file = \"/var/run/secrets/tokens/api\", \
                                         issuer = \"https://kubernetes.default.svc\", audience = \"https://idp.example.com\" }");
            }
            // Told already, and never used: a file with a mistake in it does not load.
            return GrantType::ClientCredentials;
        }
    };
    if grant == Grant::JwtBearer {
        if subject.kind != TokenType::Jwt {
            reader.wrong("subject", "with grant = \"jwt_bearer\" its type is \"jwt\" (RFC 7523)");
        }
        return GrantType::JwtBearer(subject.file);
    }
    let requested = reader.has("requested_token_type").then(|| {
        let usable = [("access_token", TokenType::AccessToken), ("jwt", TokenType::Jwt)];
        reader.word("requested_token_type", TokenType::AccessToken, &usable)
    });
    let actor = reader.table("actor").map(brought);
    GrantType::TokenExchange(Exchange { subject, actor, requested })
}

fn client_auth(reader: &mut Reader<'_>) -> ClientAuth {
    let words = [
        ("private_key_jwt", Proof::OwnKey),
        ("tls_client_auth", Proof::Certificate),
        ("self_signed_tls_client_auth", Proof::CertificateItself),
        ("federated_jwt", Proof::Federated),
        ("spiffe_jwt", Proof::Spiffe),
        ("bootstrap", Proof::Bootstrap),
    ];
    let proof = reader.word("client_auth", Proof::OwnKey, &words);
    let bootstrap = reader.path("bootstrap");
    let own = match proof {
        Proof::Bootstrap => Some(ClientAuth::Bootstrap(bootstrap.clone().unwrap_or_default())),
        Proof::OwnKey => Some(ClientAuth::PrivateKeyJwt),
        Proof::Certificate => Some(ClientAuth::TlsClientAuth),
        Proof::CertificateItself => Some(ClientAuth::SelfSignedTlsClientAuth),
        Proof::Federated | Proof::Spiffe => None,
    };
    match (proof, &bootstrap) {
        (Proof::Bootstrap, None) => reader.wrong(
            "bootstrap",
            "it is required: name the file with the secret to begin with, which is destroyed after use",
        ),
        (Proof::Bootstrap, Some(_)) | (_, None) => {}
        (_, Some(_)) => reader.wrong("bootstrap", "it is only used with client_auth = \"bootstrap\""),
    }
    if let Some(own) = own {
        if reader.has("assertion") {
            let what = format!(
                "it is not used with client_auth = \"{}\", which needs nothing of others",
                own.as_str()
            );
            reader.wrong("assertion", what);
        }
        return own;
    }
    let Some(mut table) = reader.table("assertion") else {
        if !reader.has("assertion") {
            reader.wrong(
                "assertion",
                "it is required, for example assertion = { file = \"/var/run/secrets/tokens/idp\", \
                                       subject = \"system:serviceaccount:NAMESPACE:NAME\" }",
            );
        }
        return ClientAuth::PrivateKeyJwt;
    };
    let socket = if proof == Proof::Spiffe { table.path("socket") } else { None };
    let subject =
        table.required("subject", "subject = \"spiffe://example.org/payments\"").unwrap_or_default();
    if let Some(socket) = socket {
        if table.has("file") {
            table.wrong("socket", "give the file or the socket, not both");
        }
        table.finish();
        return ClientAuth::SpiffeJwt(SvidSource::WorkloadApi { socket, spiffe_id: subject });
    }
    let mut file = token_file(&mut table);
    table.finish();
    file.conditions.claims.insert("sub".into(), subject);
    match proof {
        Proof::Spiffe => ClientAuth::SpiffeJwt(SvidSource::File(file)),
        _ => ClientAuth::FederatedJwt(file),
    }
}

/// A token with its kind.
fn brought(mut table: Reader<'_>) -> Brought {
    let kinds =
        [("jwt", TokenType::Jwt), ("access_token", TokenType::AccessToken), ("id_token", TokenType::IdToken)];
    let kind = table.word("type", TokenType::Jwt, &kinds);
    let audience = table.string("audience");
    let mut file = token_file(&mut table);
    file.conditions.audience = audience;
    table.finish();
    Brought { file, kind }
}

fn token_file(table: &mut Reader<'_>) -> TokenFile {
    if !table.has("file") {
        table.wrong("file", "it is required, for example file = \"/var/run/secrets/tokens/api\"");
    }
    let path = table.path("file").unwrap_or_default();
    let conditions =
        Conditions { issuer: table.string("issuer"), audience: None, claims: table.texts("claims") };
    TokenFile { path, conditions }
}

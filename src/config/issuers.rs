//! `[issuers.NAME]` as meant: whoever mints credentials, and how to reach them.

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

use super::{acme, est, openbao::openbao_issuer, pins::pins, reader::Reader, step};
use crate::{
    issuer::{
        oauth::{self, AssertionTyp, Audience, OAuthSettings, WellKnown},
        openbao::{self, OpenBaoSettings},
        sealed,
        terms::{ClientAuth, Wants},
        x509::{acme::AcmeSettings, est::EstSettings, step::StepSettings},
    },
    policy::CredentialRule,
};

/// One issuer, by kind.
#[derive(Clone, Debug)]
pub enum IssuerSettings {
    /// `kind = "acme"`.
    Acme(AcmeSettings),
    /// `kind = "est"`.
    Est(EstSettings),
    /// `kind = "oauth"`.
    OAuth(OAuthSettings),
    /// `kind = "step-ca"`.
    StepCa(StepSettings),
    /// `kind = "openbao"`: OpenBao, and HashiCorp Vault.
    OpenBao(OpenBaoSettings),
}

impl IssuerSettings {
    /// Who it is: what another issuer by the same name would not share with it.
    pub fn who(&self) -> String {
        match self {
            Self::Acme(acme) => acme.directory.clone(),
            Self::Est(est) => format!("{} {}", est.url, est.label.as_deref().unwrap_or_default()),
            Self::OAuth(oauth) => oauth.issuer.clone(),
            Self::StepCa(ca) => ca.url.clone(),
            Self::OpenBao(server) => {
                format!("{} {}", server.url, server.namespace.as_deref().unwrap_or_default())
            }
        }
    }

    /// What is wrong with asking this issuer for `rule`, as a key of its table and what to do.
    pub(super) fn misfit(&self, rule: &CredentialRule) -> Option<(&'static str, String)> {
        match self {
            Self::Acme(_) => acme::misfit(rule),
            Self::Est(_) => est::misfit(rule),
            Self::OAuth(_) => match (&rule.terms.wants, &rule.terms.client_auth) {
                (Wants::Certificate(_), _) => {
                    let what = "an \"oauth\" issuer makes no certificates: name an issuer that is a CA";
                    Some(("certificate", what.into()))
                }
                (Wants::Lease(_), _) => {
                    Some(("lease", "an \"oauth\" issuer leases nothing: name one that does".into()))
                }
                (Wants::Sealed(_), _) => Some(sealed_here()),
                (Wants::Token, ClientAuth::Bootstrap(_)) => Some((
                    "client_auth",
                    "\"bootstrap\" is to enrol at a CA: an \"oauth\" issuer has no use for it".into(),
                )),
                (Wants::Token, _) => None,
            },
            Self::StepCa(_) => step::misfit(rule),
            Self::OpenBao(server) => openbao::misfit(server, &rule.terms),
        }
    }
}

/// What is kept on this host is no issuer's to make.
pub(super) fn sealed_here() -> (&'static str, String) {
    ("issuer", "what is kept sealed on this host is asked of no issuer: take it out".into())
}

/// The methods that show a certificate, which an issuer may have to be said to know (MT-01).
const CERTIFICATE_METHODS: [(&str, ClientAuth); 2] = [
    ("tls_client_auth", ClientAuth::TlsClientAuth),
    ("self_signed_tls_client_auth", ClientAuth::SelfSignedTlsClientAuth),
];

pub(super) fn issuers(
    top: &mut Reader<'_>,
    environment: &str,
    state: &Path,
) -> BTreeMap<Arc<str>, IssuerSettings> {
    let is_production = ["prod", "production"].contains(&environment);
    let mut issuers = BTreeMap::new();
    for (name, mut reader) in top.named_tables("issuers") {
        let name: Arc<str> = name.into();
        if *name == *sealed::NAME {
            let what = "this name stands for what is kept sealed on this host (kind = \"sealed\" of a credential): give it another";
            reader.wrong("kind", what);
        }
        match reader.required("kind", "kind = \"oauth\"").as_deref() {
            Some("oauth") => {
                let settings = oauth_issuer(&mut reader, &name, is_production);
                issuers.insert(name, IssuerSettings::OAuth(settings));
                reader.finish();
            }
            Some("step-ca") => {
                let settings = step::step_ca(&mut reader, &name, state, is_production);
                issuers.insert(name, IssuerSettings::StepCa(settings));
                reader.finish();
            }
            Some("openbao") => {
                let settings = openbao_issuer(&mut reader, &name, environment);
                issuers.insert(name, IssuerSettings::OpenBao(settings));
                reader.finish();
            }
            Some("acme") => {
                let settings = acme::acme_issuer(&mut reader, &name, environment);
                issuers.insert(name, IssuerSettings::Acme(settings));
                reader.finish();
            }
            Some("est") => {
                let settings = est::est_issuer(&mut reader, &name, state, environment);
                issuers.insert(name, IssuerSettings::Est(settings));
                reader.finish();
            }
            Some(_) => reader.wrong(
                "kind",
                "this version knows the kinds \"oauth\", \"acme\", \"est\", \"openbao\" and \"step-ca\"",
            ),
            None => reader.finish(),
        }
    }
    issuers
}

fn oauth_issuer(reader: &mut Reader<'_>, name: &Arc<str>, is_production: bool) -> OAuthSettings {
    let issuer = reader.required("issuer", "issuer = \"https://idp.example.com\"").unwrap_or_default();
    let pinned = reader.string("token_endpoint");
    let by_endpoint = reader.word("audience", false, &[("issuer", false), ("token_endpoint", true)]);
    let well_known = reader.word(
        "well_known",
        WellKnown::Both,
        &[
            ("both", WellKnown::Both),
            ("oauth-authorization-server", WellKnown::OAuth),
            ("openid-configuration", WellKnown::OpenId),
        ],
    );
    let typ = [("client-authentication+jwt", AssertionTyp::ClientAuthentication), ("JWT", AssertionTyp::Jwt)];
    if !by_endpoint && pinned.is_some() {
        reader.wrong("token_endpoint", "it is only used with audience = \"token_endpoint\"");
    }
    let settings = OAuthSettings {
        name: Arc::clone(name),
        issuer,
        well_known,
        // CFG_AUD_PIN: an empty pin is told by oauth::problems.
        audience: if by_endpoint {
            Audience::TokenEndpoint { pinned: pinned.unwrap_or_default() }
        } else {
            Audience::Issuer
        },
        allowed_endpoint_hosts: reader.strings("allowed_endpoint_hosts"),
        ca_file: reader.path("ca_file"),
        dev: reader.boolean("dev", false),
        assertion_life: reader.duration("assertion_life", Duration::from_secs(60)),
        assertion_typ: reader.word("assertion_typ", AssertionTyp::ClientAuthentication, &typ),
        client_auth_methods: reader.words("client_auth_methods", &CERTIFICATE_METHODS),
        send_client_id: reader.boolean("send_client_id", false),
        pins: pins(reader),
        timeout: reader.duration("timeout", Duration::from_secs(10)),
    };
    if settings.dev && is_production {
        reader.wrong("dev", "a development issuer is never used in production (S11)");
    }
    for (key, message) in oauth::problems(&settings) {
        reader.wrong(key, message);
    }
    settings
}

//! What an operator says about one OpenBao server, or HashiCorp Vault, which speaks the same. In go the words of the settings; out
//! comes every mistake in them, and what of a credential does not fit such a server.

use std::{path::PathBuf, sync::Arc, time::Duration};

use crate::issuer::{
    route::is_loopback,
    terms::{ClientAuth, Terms, Wants},
};

/// One server.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct OpenBaoSettings {
    /// Its name in the settings.
    pub name: Arc<str>,
    /// Where it is: `https://bao.example.com:8200`, without `/v1`.
    pub url: String,
    /// The namespace that all requests are for, if it has any.
    pub namespace: Option<String>,
    /// Where its auth method is mounted; by default "cert" where a certificate proves who asks, else "jwt".
    pub auth_mount: Option<String>,
    /// What our assertions are addressed to, as the role's `bound_audiences` has it; by default the url.
    pub audience: Option<String>,
    /// Whether each request that leases nothing carries its login with it, so that no token is made. OpenBao only.
    pub inline_auth: bool,
    /// The only roots to trust for its TLS, PEM; without it, the host's (OA-06).
    pub ca_file: Option<PathBuf>,
    /// What its certificates have to lead to, PEM (X5-02). Only certificates need it.
    pub roots: Option<PathBuf>,
    /// Whether it is a development server, which may speak plain HTTP on loopback.
    pub dev: bool,
    /// The longest one HTTP exchange may take.
    pub timeout: Duration,
}

impl OpenBaoSettings {
    /// What our assertions are addressed to (PKJ-03).
    pub(super) fn audience(&self) -> &str {
        self.audience.as_deref().unwrap_or(&self.url)
    }

    /// The path to log in at, without `/v1/`.
    pub(super) fn login_path(&self, auth: &ClientAuth) -> String {
        let usual = if auth.is_mtls() { "cert" } else { "jwt" };
        format!("auth/{}/login", self.auth_mount.as_deref().unwrap_or(usual))
    }

    /// The URL of a path below `/v1/`.
    pub(super) fn at(&self, path: &str) -> String {
        format!("{}/v1/{path}", self.url.trim_end_matches('/'))
    }
}

/// What is wrong with `settings`: all of it, as a key and what to do about it.
pub fn problems(settings: &OpenBaoSettings) -> Vec<(&'static str, String)> {
    let mut found = Vec::new();
    let mut wrong = |key, what: &str| found.push((key, what.to_owned()));
    if let Some(fault) = fault_of(&settings.url, settings.dev) {
        wrong("url", fault);
    }
    if settings.namespace.as_deref().is_some_and(|name| !is_path(name)) {
        wrong("namespace", "write it as team/payments, without slashes at its ends");
    }
    if settings.auth_mount.as_deref().is_some_and(|mount| !is_path(mount)) {
        wrong(
            "auth_mount",
            "write it as `bao auth list` does, without auth/ and the slash at its end: \"kubernetes\"",
        );
    }
    if settings.audience.as_deref().is_some_and(str::is_empty) {
        wrong("audience", "write one of the role's bound_audiences, or leave it out");
    }
    if settings.timeout.is_zero() || settings.timeout > Duration::from_secs(60) {
        wrong("timeout", "it is not between 1ms and 60s: 10s is usual");
    }
    found
}

/// What is wrong with asking such a server for a credential with these terms, as a key of its table and what to do.
pub fn misfit(settings: &OpenBaoSettings, terms: &Terms) -> Option<(&'static str, String)> {
    match &terms.wants {
        Wants::Token => {
            let what = "an \"openbao\" issuer gives certificates and leases: say certificate = { at = \"pki/sign/ROLE\", .. } or \
                        lease = { at = \"database/creds/ROLE\" }";
            return Some(("issuer", what.into()));
        }
        Wants::Certificate(_) if settings.roots.is_none() => {
            let what = "set roots for this issuer first: the root certificates that its PKI leads to (X5-02)";
            return Some(("certificate", what.into()));
        }
        Wants::Certificate(wanted) => {
            if wanted.at.as_deref().is_none_or(|at| !is_path(at) || mount_of(at).is_none()) {
                let what = "say where: at = \"pki/sign/ROLE\", or \"pki/issuer/REF/sign/ROLE\"";
                return Some(("certificate.at", what.into()));
            }
        }
        Wants::Lease(lease) if !is_path(&lease.at) => {
            let what =
                "write the path without /v1/ and without slashes at its ends: \"database/creds/payments\"";
            return Some(("lease.at", what.into()));
        }
        Wants::Lease(_) => {}
        Wants::Sealed(_) => {
            return Some((
                "issuer",
                "what is kept sealed on this host is asked of no issuer: take it out".into(),
            ));
        }
    }
    if matches!(terms.client_auth, ClientAuth::Bootstrap(_)) {
        let what = "an \"openbao\" issuer has no use for \"bootstrap\": log in by a key, a token file or a certificate";
        return Some(("client_auth", what.into()));
    }
    if terms.client_auth.is_mtls() && !settings.url.starts_with("https:") {
        let what = "this issuer speaks plain http, which carries no certificate: it needs one with https";
        return Some(("client_auth", what.into()));
    }
    None
}

/// The PKI engine that a path to sign at belongs to: `pki` of `pki/sign/payments`.
pub(super) fn mount_of(at: &str) -> Option<&str> {
    let (before, role) = at.rsplit_once("/sign/")?;
    let mount = before.rsplit_once("/issuer/").map_or(before, |(mount, _)| mount);
    (!mount.is_empty() && !role.is_empty() && !role.contains('/')).then_some(mount)
}

/// Whether it is a path that leads where it says: no segment is empty or goes up, and nothing in it ends a path (HCSEC-2026-05).
fn is_path(path: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.@:+".contains(c);
    path.len() <= 512
        && !path.starts_with("v1/")
        && path
            .split('/')
            .all(|part| !part.is_empty() && part.chars().any(|c| c != '.') && part.chars().all(is_plain))
}

fn fault_of(url: &str, dev: bool) -> Option<&'static str> {
    let Ok(uri) = url.parse::<http::Uri>() else {
        return Some("it is not a URL: write it as https://host:8200");
    };
    if uri.host().is_none_or(str::is_empty) {
        return Some("it names no host: write it as https://host:8200");
    }
    if url.contains(['#', '?', '@']) {
        return Some("it has a query, a fragment or a user name: write it as https://host:8200");
    }
    if uri.path().trim_end_matches('/').ends_with("/v1") {
        return Some("leave out /v1: it is added");
    }
    match uri.scheme_str() {
        Some("https") => None,
        Some("http") if dev && is_loopback(&uri) => None,
        Some("http") if dev => Some("it is http to another host: use https, or a loopback address"),
        _ => Some("it is not https: use https"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::issuer::terms::{CertificateTerms, LeaseTerms};

    fn settings(url: &str) -> OpenBaoSettings {
        OpenBaoSettings {
            name: "bao".into(),
            url: url.into(),
            namespace: None,
            auth_mount: None,
            audience: None,
            inline_auth: false,
            ca_file: None,
            roots: None,
            dev: false,
            timeout: Duration::from_secs(10),
        }
    }

    #[test]
    fn a_server_is_named_by_a_url_and_paths_that_lead_where_they_say() {
        // CA-04, OA-01
        let keys = |settings: OpenBaoSettings| -> Vec<&str> {
            problems(&settings).into_iter().map(|(key, _)| key).collect()
        };
        for url in ["https://bao.example.com:8200", "https://bao.example.com/", "https://h/behind/a/proxy"] {
            assert_eq!(keys(settings(url)), [""; 0], "{url}");
        }
        for url in [
            "",
            "bao.example.com",
            "http://bao.example.com",
            "http://127.0.0.1:8200",
            "https://u@h",
            "https://h?a",
            "https://h#a",
            "https://h/v1",
            "https://h/v1/",
        ] {
            assert_eq!(keys(settings(url)), ["url"], "{url}");
        }
        let dev = |url| OpenBaoSettings { dev: true, ..settings(url) };
        assert_eq!(keys(dev("http://127.0.0.1:8200")), [""; 0]);
        assert_eq!(keys(dev("http://192.0.2.1:8200")), ["url"]);
        let named = |text: &str| OpenBaoSettings {
            namespace: Some(text.into()),
            auth_mount: Some(text.into()),
            ..settings("https://h")
        };
        assert_eq!(keys(named("team/payments")), [""; 0]);
        for bad in ["", "/a", "a/", "a//b", "a/../b", ".", "a b", "a%2fb", "a?b", "v1/a"] {
            assert_eq!(keys(named(bad)), ["namespace", "auth_mount"], "{bad}");
        }
    }

    #[test]
    fn what_it_cannot_give_is_told_by_its_key() {
        // CA-04
        let with_roots = OpenBaoSettings { roots: Some("/roots.pem".into()), ..settings("https://h") };
        let told = |settings: &OpenBaoSettings, wants: Wants, client_auth: ClientAuth| {
            misfit(settings, &Terms { wants, client_auth, ..Terms::default() }).map(|(key, _)| key)
        };
        let certificate = |at: Option<&str>| {
            Wants::Certificate(CertificateTerms { at: at.map(str::to_owned), ..CertificateTerms::default() })
        };
        let lease =
            |at: &str| Wants::Lease(LeaseTerms { at: at.into(), fields: Vec::new(), unleased: false });
        let own = || ClientAuth::PrivateKeyJwt;
        assert_eq!(told(&with_roots, Wants::Token, own()), Some("issuer"));
        assert_eq!(told(&settings("https://h"), certificate(Some("pki/sign/a")), own()), Some("certificate"));
        for (at, sound) in [
            (Some("pki/sign/a"), true),
            (Some("team/pki/issuer/default/sign/a"), true),
            (None, false),
            (Some("pki/issue/a"), false),
            (Some("pki/sign/"), false),
            (Some("/sign/a"), false),
            (Some("pki/sign/../../sys/seal"), false),
        ] {
            let expected = (!sound).then_some("certificate.at");
            assert_eq!(told(&with_roots, certificate(at), own()), expected, "{at:?}");
        }
        assert_eq!(told(&with_roots, lease("database/creds/a"), own()), None);
        assert_eq!(told(&with_roots, lease("/v1/database/creds/a"), own()), Some("lease.at"));
        assert_eq!(told(&with_roots, lease("a/b"), ClientAuth::Bootstrap("/x".into())), Some("client_auth"));
        assert_eq!(told(&with_roots, lease("a/b"), ClientAuth::TlsClientAuth), None);
        let plain = OpenBaoSettings { dev: true, ..settings("http://127.0.0.1:8200") };
        assert_eq!(told(&plain, lease("a/b"), ClientAuth::TlsClientAuth), Some("client_auth"));
        assert_eq!(mount_of("team/pki/issuer/default/sign/a"), Some("team/pki"));
        assert_eq!(mount_of("pki/sign/a"), Some("pki"));
    }
}

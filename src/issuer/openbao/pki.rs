//! Certificates from the PKI engine. In goes a request for one; out comes the chain as the server sent it, for the engine of
//! `x509` to doubt (X5-02). A renewal is another signing: the engine brings a fresh key for it (X5-05).

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use serde_json::{Value, json};
use x509_parser::{certificate::X509Certificate, prelude::FromDer as _};

use super::{
    ask::{Answered, Wish},
    reply::Document,
    server::{Caller, Server},
    settings::mount_of,
};
use crate::{
    issuer::{
        IssueError, IssueFacts, Order, Pending, Reason, Rejected, Signers,
        terms::{CertificateTerms, Wants},
        x509::{Ask, Authority, Roots, Signed, rejected},
    },
    proof::Target,
};

/// The PKI engines of a server.
#[derive(Debug)]
pub(super) struct Pki {
    server: Arc<Server>,
    roots: ArcSwapOption<Roots>,
}

impl Pki {
    pub(super) fn new(server: Arc<Server>) -> Self {
        Self { server, roots: ArcSwapOption::empty() }
    }

    async fn signed(&self, ask: Ask<'_>, facts: &mut IssueFacts) -> Result<Signed, IssueError> {
        let at = place(ask.terms)?;
        let body = body(ask).to_string();
        let caller = Caller { order: ask.order, signers: ask.signers };
        let wish = Wish { at, body: Some(&body), inline: self.server.settings.inline_auth };
        let Answered { document, login } = self.server.ask(caller, wish, facts).await?;
        if let Some(login) = login {
            // A lease of the certificate's would end with the token, and the certificate with the lease.
            self.server.let_go(&login.token, caller).await;
        }
        if document.text("/lease_id").is_some() {
            return Err(IssueError::Misconfigured {
                reason: Reason::IssuerConfig,
                detail: "the role leases its certificates, so that each is revoked when the login ends: set generate_lease = false"
                    .into(),
            });
        }
        chain(&document).map(Signed::Chain)
    }

    async fn revoked(&self, order: &Order, signers: &Signers, certificate: &[u8]) -> Result<(), IssueError> {
        let Wants::Certificate(terms) = &order.terms.wants else { return Err(unplaced()) };
        let at = format!("{}/revoke", mount_of(place(terms)?).ok_or_else(unplaced)?);
        let body = json!({ "serial_number": serial(certificate).ok_or_else(unreadable)? }).to_string();
        let caller = Caller { order, signers };
        let wish = Wish { at: &at, body: Some(&body), inline: self.server.settings.inline_auth };
        let answered = self.server.ask(caller, wish, &mut IssueFacts::default()).await?;
        if let Some(login) = answered.login {
            self.server.let_go(&login.token, caller).await;
        }
        Ok(())
    }

    /// The roots, read when they are needed first; a reload reads them anew.
    fn read(&self) -> Result<Arc<Roots>, IssueError> {
        if let Some(roots) = self.roots.load_full() {
            return Ok(roots);
        }
        let misconfigured = |detail| IssueError::Misconfigured { reason: Reason::IssuerConfig, detail };
        let path = self.server.settings.roots.as_ref().ok_or_else(|| {
            misconfigured("set roots for this issuer: the root certificates that its PKI leads to".into())
        })?;
        let roots = Arc::new(Roots::read(path).map_err(|error| misconfigured(error.to_string()))?);
        self.roots.store(Some(Arc::clone(&roots)));
        Ok(roots)
    }
}

impl Authority for Pki {
    fn roots<'a>(&'a self, _: &'a mut IssueFacts) -> Pending<'a, Result<Arc<Roots>, IssueError>> {
        Box::pin(async { self.read() })
    }

    fn sign<'a>(
        &'a self,
        ask: Ask<'a>,
        facts: &'a mut IssueFacts,
    ) -> Pending<'a, Result<Signed, IssueError>> {
        Box::pin(self.signed(ask, facts))
    }

    fn revoke<'a>(
        &'a self,
        order: &'a Order,
        signers: &'a Signers,
        certificate: &'a [u8],
    ) -> Pending<'a, Result<(), IssueError>> {
        Box::pin(self.revoked(order, signers, certificate))
    }

    fn endpoints(&self) -> Arc<Vec<Target>> {
        // It takes no proofs, so none of them could be turned against it.
        Arc::default()
    }
}

/// What is asked for: the same names that the request says, because a role may be set to read either.
fn body(ask: Ask<'_>) -> Value {
    let subject = &ask.terms.subject;
    let ips: Vec<String> = subject.ips.iter().map(ToString::to_string).collect();
    json!({
        "csr": ask.request.csr_pem(),
        "common_name": subject.common_name.as_deref().unwrap_or_default(),
        "uri_sans": subject.uris.join(","),
        "alt_names": subject.dns.join(","),
        "ip_sans": ips.join(","),
        "ttl": format!("{}s", ask.order.max_ttl.as_secs()),
        "exclude_cn_from_sans": true,
        "format": "pem",
    })
}

/// The chain of an answer, leaf first and without roots: whoever checks it has those.
fn chain(document: &Document) -> Result<Vec<CertificateDer<'static>>, IssueError> {
    let form = |what: &str| rejected(Rejected::Form, format!("the server's answer {what}"));
    let pem = document.text("/data/certificate").ok_or_else(|| form("holds no certificate"))?;
    let mut chain = vec![read(pem).ok_or_else(|| form("holds a certificate that is no PEM"))?];
    let said = document.text("/data/serial_number").ok_or_else(|| form("holds no serial number"))?;
    if serial(&chain[0]).as_deref() != Some(&*said.replace('-', ":").to_ascii_lowercase()) {
        return Err(form("names another serial number than the certificate does: it could not be revoked"));
    }
    let above = document.value().pointer("/data/ca_chain").and_then(Value::as_array);
    let mut above: Vec<&str> = above.into_iter().flatten().filter_map(Value::as_str).collect();
    if above.is_empty() {
        above.extend(document.text("/data/issuing_ca"));
    }
    for pem in above {
        let one = read(pem).ok_or_else(|| form("holds a chain that is no PEM"))?;
        if !is_root(&one) {
            chain.push(one);
        }
    }
    Ok(chain)
}

fn read(pem: &str) -> Option<CertificateDer<'static>> {
    CertificateDer::from_pem_slice(pem.as_bytes()).ok()
}

fn is_root(certificate: &CertificateDer<'_>) -> bool {
    X509Certificate::from_der(certificate).is_ok_and(|(_, read)| read.subject() == read.issuer())
}

/// The serial number as the server writes it: `17:67:16:b0`.
fn serial(certificate: &[u8]) -> Option<String> {
    let (_, read) = X509Certificate::from_der(certificate).ok()?;
    let digits = read.raw_serial_as_string();
    // DER writes a zero before a high first bit.
    Some(digits.strip_prefix("00:").map_or_else(|| digits.clone(), str::to_owned))
}

fn place(terms: &CertificateTerms) -> Result<&str, IssueError> {
    terms.at.as_deref().ok_or_else(unplaced)
}

fn unplaced() -> IssueError {
    IssueError::Misconfigured {
        reason: Reason::IssuerConfig,
        detail: "it is not said where certificates are signed: certificate = { at = \"pki/sign/ROLE\", .. }"
            .into(),
    }
}

fn unreadable() -> IssueError {
    IssueError::Refused {
        reason: Reason::AgentBugRequest,
        detail: "what is kept of this certificate cannot be read: it ends by itself".into(),
    }
}

//! EST, enrolment over TLS (RFC 7030 as RFC 8951 and RFC 9908 mended it). In goes a request for a certificate; out come the
//! certificates that the server sent for it. The first one is asked for with a certificate of another CA or with a secret that is
//! good once; each after it with the one that is held. A key is never made there: there is no way here to ask for one (EST-05).

mod csrattrs;
mod pkcs7;
#[cfg(any(test, fuzzing))]
pub(crate) mod properties;
mod settings;
#[cfg(test)]
mod tests;

use std::{
    path::Path,
    sync::{Arc, OnceLock},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderName, header};
use x509_parser::{
    certificate::X509Certificate, certification_request::X509CertificationRequest,
    extensions::ParsedExtension, prelude::FromDer as _,
};

pub use self::settings::{EstSettings, problems};
use super::{
    super::{
        IssueError, IssueFacts, Issuer, Order, Pending, Reason, Rejected, Signers, answer,
        contact::{Contact, Shown},
        http::{Body, HttpError, HttpSettings, Request, Response, USER_AGENT},
        terms::ClientAuth,
    },
    Ask, Authority, RootSource, Roots, Signed, X509, chain, rejected,
};
use crate::{
    clock::Clock,
    keys::{ClientCertificate, FileError, KeyKind, Vault, bootstrap},
    proof::Target,
    secret::Secret,
};

/// How long an undecided request waits where the server does not say.
const UNDECIDED: Duration = Duration::from_secs(60);

const CERTS_ONLY: &str = "application/pkcs7-mime";
const CSR_ATTRIBUTES: &str = "application/csrattrs";

/// The issuer that `settings` describe. Nothing is sent yet.
///
/// # Errors
/// [`HttpError::CaFile`] or [`HttpError::NoRoots`].
pub fn open(
    settings: EstSettings,
    vault: Vault,
    clock: Arc<dyn Clock>,
) -> Result<Arc<dyn Issuer>, HttpError> {
    Ok(Arc::new(X509::new(Est::new(settings, Arc::clone(&clock))?, vault, clock)))
}

/// One EST server.
#[derive(Debug)]
struct Est {
    settings: EstSettings,
    contact: Contact,
    clock: Arc<dyn Clock>,
    endpoints: Arc<Vec<Target>>,
    /// What the settings name, or what the pin vouched for when it was first asked for.
    roots: OnceLock<Arc<Roots>>,
}

impl Est {
    fn new(settings: EstSettings, clock: Arc<dyn Clock>) -> Result<Self, HttpError> {
        let http = HttpSettings {
            ca_file: settings.ca_file.clone(),
            allow_plain_loopback: settings.dev,
            timeout: settings.timeout,
            user_agent: USER_AGENT.into(),
        };
        let contact = Contact::new(http, Arc::clone(&clock))?;
        let est = Self { settings, contact, clock, endpoints: Arc::default(), roots: OnceLock::new() };
        let targets = ["simpleenroll", "simplereenroll"].map(|name| Target::parse(&est.at(name)).ok());
        Ok(Self { endpoints: Arc::new(targets.into_iter().flatten().collect()), ..est })
    }

    /// The URL of an operation (RFC 7030 3.2.2).
    fn at(&self, operation: &str) -> String {
        let host = self.settings.url.trim_end_matches('/');
        match &self.settings.label {
            Some(label) => format!("{host}/.well-known/est/{label}/{operation}"),
            None => format!("{host}/.well-known/est/{operation}"),
        }
    }

    /// EST-01: what a file names, or what the server sends and the pin is for. Nothing is trusted on first use.
    async fn trusted(&self, facts: &mut IssueFacts) -> Result<Arc<Roots>, IssueError> {
        if let Some(roots) = self.roots.get() {
            return Ok(Arc::clone(roots));
        }
        let roots = match &self.settings.roots {
            RootSource::File(path) => Roots::read(path),
            RootSource::Pinned(pin) => {
                let kept_at = self.settings.kept_root.as_deref();
                if let Some(kept) = kept_at.and_then(|path| Roots::kept(path, pin)) {
                    return Ok(Arc::clone(self.roots.get_or_init(|| Arc::new(kept))));
                }
                let request = Request::get(self.at("cacerts")).with(header::ACCEPT, Secret::new(CERTS_ONLY));
                let response = self.contact.send(None, request, facts).await?;
                if response.status != 200 {
                    return Err(self.refused(&response));
                }
                let sent = Roots::pinned(certificates(&response)?, pin);
                if let (Ok(roots), Some(path)) = (&sent, kept_at) {
                    roots.keep(path);
                }
                sent
            }
        };
        let roots = roots.map(Arc::new).map_err(|error| misconfigured(error.to_string()))?;
        // Another order may have been quicker: both are what the pin is for.
        Ok(Arc::clone(self.roots.get_or_init(|| roots)))
    }

    /// EST-02: the first certificate, or one more for somebody who cannot renew.
    async fn enrol(&self, ask: Ask<'_>, facts: &mut IssueFacts) -> Result<Response, IssueError> {
        let request = self.request("simpleenroll", ask.request.csr());
        match &ask.order.terms.client_auth {
            ClientAuth::TlsClientAuth => {
                let certificate = ask.signers.certificates.first().ok_or_else(|| {
                    misconfigured("there is no certificate to enrol with: set [identities.NAME.certificate]")
                })?;
                let shown = Shown { certificate, order: ask.order, signers: ask.signers };
                self.contact.send(Some(shown), request, facts).await
            }
            ClientAuth::Bootstrap(path) => {
                let request = request.with(header::AUTHORIZATION, authorization(path)?);
                self.contact.send(None, request, facts).await
            }
            other => Err(misconfigured(format!(
                "EST knows no client_auth = \"{}\": say \"tls_client_auth\" or \"bootstrap\"",
                other.as_str()
            ))),
        }
    }

    /// EST-03: another one for the certificate that is held, shown by it.
    async fn reenrol(
        &self,
        ask: Ask<'_>,
        held: &Arc<ClientCertificate>,
        facts: &mut IssueFacts,
    ) -> Result<Response, IssueError> {
        same_names(ask.request.csr(), held)?;
        let signers =
            Signers { certificates: vec![Arc::clone(held)], client: None, before: None, dpop: None };
        let shown = Shown { certificate: held, order: ask.order, signers: &signers };
        self.contact.send(Some(shown), self.request("simplereenroll", ask.request.csr()), facts).await
    }

    fn request(&self, operation: &str, csr: &[u8]) -> Request {
        let body = Body { media_type: "application/pkcs10", content: Secret::new(STANDARD.encode(csr)) };
        // RFC 8951 has servers ignore this header; those that follow RFC 7030 alone refuse what comes without it.
        let encoding = HeaderName::from_static("content-transfer-encoding");
        Request::post(self.at(operation), body)
            .with(header::ACCEPT, Secret::new(CERTS_ONLY))
            .with(encoding, Secret::new("base64"))
    }

    fn signed(&self, csr: &[u8], response: &Response) -> Result<Signed, IssueError> {
        match response.status {
            200 => chain::for_request(csr, certificates(response)?).map(Signed::Chain),
            // EST-02: the wait is an hour at most.
            202 => Ok(Signed::Later(self.wait(response).unwrap_or(UNDECIDED))),
            _ => Err(self.refused(response)),
        }
    }

    fn wait(&self, response: &Response) -> Option<Duration> {
        answer::retry_after(response, self.clock.wall())
    }

    /// An answer that is none of those hoped for, by what to do next.
    fn refused(&self, response: &Response) -> IssueError {
        let status = response.status;
        let text = std::str::from_utf8(response.body.expose()).unwrap_or_default();
        let said = answer::clean(text.lines().next().unwrap_or_default(), 120);
        match status {
            401 | 403 => IssueError::Refused {
                reason: Reason::ClientAuthRejected,
                detail: format!(
                    "the EST server does not take who asks ({status}: {said}): look at the certificate or the secret to begin with"
                ),
            },
            404 | 405 | 501 => misconfigured(format!(
                "the EST server has no such thing there ({status}): look at url and label"
            )),
            408 | 425 | 429 | 500.. => {
                let reason = if status == 429 { Reason::IssuerRateLimit } else { Reason::IssuerUnavailable };
                let detail = format!("the EST server answered {status}: {said}");
                IssueError::Retry { reason, detail, after: self.wait(response) }
            }
            400..=499 => IssueError::Refused {
                reason: Reason::GrantRejected,
                detail: format!(
                    "the EST server refused the request ({status}: {said}): look at what its CA allows"
                ),
            },
            _ => protocol(format!("the EST server answered {status}, which means nothing here")),
        }
    }
}

impl Authority for Est {
    fn roots<'a>(&'a self, facts: &'a mut IssueFacts) -> Pending<'a, Result<Arc<Roots>, IssueError>> {
        Box::pin(self.trusted(facts))
    }

    fn sign<'a>(
        &'a self,
        ask: Ask<'a>,
        facts: &'a mut IssueFacts,
    ) -> Pending<'a, Result<Signed, IssueError>> {
        Box::pin(async move {
            let response = match ask.held {
                Some(held) => self.reenrol(ask, held, facts).await?,
                None => self.enrol(ask, facts).await?,
            };
            self.signed(ask.request.csr(), &response)
        })
    }

    /// EST-04.
    fn key_kind<'a>(
        &'a self,
        order: &'a Order,
        signers: &'a Signers,
        facts: &'a mut IssueFacts,
    ) -> Pending<'a, Result<Option<KeyKind>, IssueError>> {
        Box::pin(async move {
            if !self.settings.csr_attributes {
                return Ok(None);
            }
            let request = Request::get(self.at("csrattrs")).with(header::ACCEPT, Secret::new(CSR_ATTRIBUTES));
            // A server that lets nobody in without a certificate does not do so here either.
            let certificate = signers.certificates.first().filter(|_| order.terms.client_auth.is_mtls());
            let shown = certificate.map(|certificate| Shown { certificate, order, signers });
            let response = self.contact.send(shown, request, facts).await?;
            match response.status {
                200 if is(&response, CSR_ATTRIBUTES) => csrattrs::key_kind(response.body.expose())
                    .map_err(|error| protocol(format!("the csrattrs of the EST server: {error}"))),
                429 | 500 | 502.. => Err(self.refused(&response)),
                // It has no wishes, or tells them to nobody who has no certificate yet (RFC 7030 4.5.2).
                _ => Ok(None),
            }
        })
    }

    fn settled(&self, order: &Order) {
        let ClientAuth::Bootstrap(path) = &order.terms.client_auth else { return };
        if let Err(error) = bootstrap::spend(path) {
            tracing::error!(
                identity = %order.identity, credential = %order.credential, %error,
                "the secret to begin with has been used and is on disk still: take it away"
            );
        }
    }

    fn revoke<'a>(
        &'a self,
        _: &'a Order,
        _: &'a Signers,
        _: &'a [u8],
    ) -> Pending<'a, Result<(), IssueError>> {
        Box::pin(async {
            Err(IssueError::Refused {
                reason: Reason::IssuerConfig,
                detail: "EST revokes nothing: the certificate ends by itself, or have the CA revoke it"
                    .into(),
            })
        })
    }

    fn endpoints(&self) -> Arc<Vec<Target>> {
        Arc::clone(&self.endpoints)
    }
}

/// HTTP Basic for a user and a password, a bearer token for anything else (RFC 7030 3.2.3).
fn authorization(path: &Path) -> Result<Secret, IssueError> {
    let read = bootstrap::Bootstrap::read(path).map_err(|error| match error {
        FileError::Io { path, error } if error.kind() == std::io::ErrorKind::NotFound => misconfigured(format!(
            "{}: the secret to begin with is not there: it is good once and was used, or has to be put there (mode 0600, \
             owned by the agent)",
            path.display()
        )),
        error => misconfigured(error.to_string()),
    })?;
    let secret = read.secret().expose();
    Ok(Secret::new(if secret.contains(&b':') {
        format!("Basic {}", STANDARD.encode(secret)).into_bytes()
    } else {
        [b"Bearer ", secret].concat()
    }))
}

/// EST-03: a renewal is for the same names, and says so before anybody is asked.
fn same_names(csr: &[u8], held: &ClientCertificate) -> Result<(), IssueError> {
    let unreadable = |_| rejected(Rejected::Form, "what is held, or the request, cannot be read");
    let (_, request) = X509CertificationRequest::from_der(csr).map_err(unreadable)?;
    let leaf = held.chain().first().map(|leaf| leaf.as_ref()).unwrap_or_default();
    let (_, certificate) = X509Certificate::from_der(leaf).map_err(unreadable)?;
    let refuse = |what: &str| {
        Err(IssueError::Refused {
            reason: Reason::CertRejected(Rejected::Names),
            detail: format!(
                "not sent: a renewal has to be for the {what} of the certificate that is held (RFC 7030 4.2.2)"
            ),
        })
    };
    // Compared as text: a CA may have written the same name as a string of another kind.
    if request.certification_request_info.subject.to_string() != certificate.subject().to_string() {
        return refuse("subject");
    }
    let names = |found: &x509_parser::extensions::GeneralName<'_>| format!("{found:?}");
    let wanted = request.requested_extensions().into_iter().flatten().find_map(|extension| match extension {
        ParsedExtension::SubjectAlternativeName(found) => Some(found.general_names.iter().map(names)),
        _ => None,
    });
    let mut wanted: Vec<String> = wanted.into_iter().flatten().collect();
    let has = certificate.subject_alternative_name().ok().flatten();
    let mut has: Vec<String> =
        has.iter().flat_map(|found| found.value.general_names.iter().map(names)).collect();
    wanted.sort();
    has.sort();
    if wanted == has { Ok(()) } else { refuse("subjectAltName") }
}

fn certificates(response: &Response) -> Result<Vec<rustls_pki_types::CertificateDer<'static>>, IssueError> {
    if !is(response, CERTS_ONLY) {
        return Err(protocol(format!("the EST server sent no {CERTS_ONLY}: look at url and label")));
    }
    pkcs7::certificates(response.body.expose())
        .map_err(|error| rejected(Rejected::Form, format!("what the EST server sent: {error}")))
}

fn is(response: &Response, kind: &str) -> bool {
    let sent = response.header(header::CONTENT_TYPE).unwrap_or_default();
    sent.split(';').next().is_some_and(|sent| sent.trim().eq_ignore_ascii_case(kind))
}

fn misconfigured(detail: impl Into<String>) -> IssueError {
    IssueError::Misconfigured { reason: Reason::IssuerConfig, detail: detail.into() }
}

fn protocol(detail: String) -> IssueError {
    IssueError::Retry { reason: Reason::IssuerProtocol, detail, after: None }
}

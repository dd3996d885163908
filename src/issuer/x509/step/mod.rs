//! A step-ca (CA-01, CA-02): JSON over HTTPS. In goes what the engine asks for; out comes the chain the CA sent, or the next
//! move. A certificate is first asked for with a one-time token that this identity signs, and renewed over TLS that shows the
//! one that is held: with another key by default, with the same where policy says so (X5-05).
//!
//! ```text
//!  POST /1.0/sign   {csr, ott, notAfter}      POST /1.0/revoke {serial, ott, reasonCode, passive}
//!  POST /1.0/rekey  {csr}      over mTLS      GET  /root/SHA-256, where a pin is all there is to begin with (CA-03)
//!  POST /1.0/renew             over mTLS
//! ```

mod reply;
mod settings;
#[cfg(test)]
mod tests;
mod token;

use std::{fmt, sync::Arc};

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::OnceCell;
use x509_parser::{certificate::X509Certificate, prelude::FromDer as _};
use zeroize::Zeroizing;

pub use self::settings::{StepSettings, misfit, problems};
use self::{
    reply::Asked,
    token::{Purpose, Token, Voucher},
};
use super::{Ask, Authority, RootSource, Roots, Signed, Unbuilt, X509};
use crate::{
    clock::{Clock, Dice},
    issuer::{
        IssueError, IssueFacts, Issuer, Order, Pending, Reason, Signers,
        assertion::no_signature,
        bootstrap,
        contact::{Contact, Shown},
        http::{Body, Http, HttpSettings, Request, Response, USER_AGENT},
    },
    keys::{ClientCertificate, Vault},
    proof::Target,
    secret::{Secret, hex},
};

/// Makes an issuer of a step-ca. Nothing is sent yet. [`problems`] should have been asked first.
///
/// # Errors
/// [`Unbuilt`] if its roots cannot be used.
pub fn issuer(
    settings: StepSettings,
    vault: Vault,
    clock: Arc<dyn Clock>,
    dice: Arc<dyn Dice>,
) -> Result<Arc<dyn Issuer>, Unbuilt> {
    let step = Step::new(settings, Arc::clone(&clock), dice)?;
    Ok(Arc::new(X509::new(step, vault, clock)))
}

/// One step-ca.
struct Step {
    settings: StepSettings,
    clock: Arc<dyn Clock>,
    dice: Arc<dyn Dice>,
    /// Known once the roots are.
    reached: OnceCell<Reached>,
    endpoints: Arc<Vec<Target>>,
}

/// Whom we talk to, and what that one's certificates lead to.
struct Reached {
    contact: Contact,
    roots: Arc<Roots>,
    /// The SHA-256 of the root, as tokens tell it.
    sum: String,
}

/// The endpoints that a proof is never made for (DPOP-20): those of the versioned API, and their older names.
const ENDPOINTS: [&str; 5] = ["sign", "renew", "rekey", "revoke", "re-sign"];

impl Step {
    fn new(settings: StepSettings, clock: Arc<dyn Clock>, dice: Arc<dyn Dice>) -> Result<Self, Unbuilt> {
        let reached = match &settings.roots {
            RootSource::File(path) => OnceCell::new_with(Some(reach(&settings, Roots::read(path)?, &clock)?)),
            RootSource::Pinned(pin) => {
                match settings.kept_root.as_ref().and_then(|path| Roots::kept(path, pin)) {
                    Some(roots) => OnceCell::new_with(Some(reach(&settings, roots, &clock)?)),
                    None => OnceCell::new(),
                }
            }
        };
        let urls =
            ENDPOINTS.iter().flat_map(|end| ["/1.0/", "/"].map(|api| format!("{}{api}{end}", settings.url)));
        let endpoints = Arc::new(urls.filter_map(|url| Target::parse(&url).ok()).collect());
        Ok(Self { settings, clock, dice, reached, endpoints })
    }

    /// The CA, once it is clear which (CA-03). However many ask at once, it is looked for once.
    async fn reached(&self) -> Result<&Reached, IssueError> {
        self.reached
            .get_or_try_init(async || {
                let RootSource::Pinned(pin) = &self.settings.roots else {
                    return Err(unusable("its roots were not read: reload the settings".into()));
                };
                let url = format!("{}/root/{}", self.settings.url, hex(pin));
                let roots = bootstrap::pinned_root(http_settings(&self.settings), url, pin).await?;
                if let Some(path) = &self.settings.kept_root {
                    roots.keep(path);
                }
                reach(&self.settings, roots, &self.clock).map_err(|error| unusable(error.to_string()))
            })
            .await
    }

    fn url(&self, end: &str) -> String {
        format!("{}/1.0/{end}", self.settings.url)
    }

    /// By a one-time token, each attempt with one of its own (CA-01); by the key before, where the CA may not know the new one
    /// yet (KEY-06).
    async fn enrol(&self, ask: Ask<'_>, facts: &mut IssueFacts) -> Result<Signed, IssueError> {
        let reached = self.reached().await?;
        let endpoint = self.url("sign");
        let mut vouchers = vouchers(ask.order, ask.signers)?.into_iter();
        let mut voucher = vouchers.next().ok_or_else(|| no_voucher(ask.order))?;
        let (mut may_draw_again, mut fell_back) = (true, false);
        loop {
            let now = reached.contact.now()?;
            let purpose = Purpose::Sign { subject: &ask.terms.subject, csr: ask.request.csr() };
            let token = Token {
                provisioner: &ask.order.client_id,
                endpoint: &endpoint,
                root: &reached.sum,
                purpose,
                now,
            };
            let token = token.sign(&voucher, &*self.dice).map_err(no_signature)?;
            let body = json!({"csr": ask.request.csr_pem(), "notAfter": not_after(ask, &voucher, now)});
            let response = reached.contact.send(None, shown_with(&endpoint, &body, &token), facts).await?;
            match response.status {
                200 | 201 => {
                    facts.key_fallback = fell_back;
                    return reply::chain(&response).map(Signed::Chain);
                }
                // ER-10: the next one is drawn anew.
                _ if reply::is_reuse(&response) => {
                    facts.one_time_reuse = true;
                    tracing::error!(issuer = %self.settings.name, "ONE_TIME_REUSE: it has seen a one-time token of this agent before");
                    if !std::mem::take(&mut may_draw_again) {
                        return Err(self.refused(&response, Asked::Sign));
                    }
                }
                401 => {
                    let Some(before) = vouchers.next() else {
                        return Err(self.refused(&response, Asked::Sign));
                    };
                    tracing::warn!(issuer = %self.settings.name, "the new key is not known yet: falling back to the one before");
                    (voucher, fell_back) = (before, true);
                }
                _ => return Err(self.refused(&response, Asked::Sign)),
            }
        }
    }

    /// By the certificate that is held (CA-02).
    async fn renew(
        &self,
        ask: Ask<'_>,
        held: &Arc<ClientCertificate>,
        facts: &mut IssueFacts,
    ) -> Result<Signed, IssueError> {
        let reached = self.reached().await?;
        let shown = Shown { certificate: held, order: ask.order, signers: ask.signers };
        let request = if ask.terms.same_key {
            Request::json(self.url("renew"), &json!({}))
        } else {
            Request::json(self.url("rekey"), &json!({"csr": ask.request.csr_pem()}))
        };
        let answered = reached.contact.send(Some(shown), request, facts).await;
        reached.contact.let_go(held);
        let response = answered?;
        match response.status {
            200 | 201 => reply::chain(&response).map(Signed::Chain),
            _ => Err(self.refused(&response, Asked::Renew)),
        }
    }

    /// By a one-time token for this serial number (X5-07).
    async fn end(&self, order: &Order, signers: &Signers, certificate: &[u8]) -> Result<(), IssueError> {
        let serial = serial(certificate)?;
        let reached = self.reached().await?;
        let endpoint = self.url("revoke");
        let mut facts = IssueFacts::default();
        let mut error = no_voucher(order);
        for voucher in vouchers(order, signers)? {
            let token = Token {
                provisioner: &order.client_id,
                endpoint: &endpoint,
                root: &reached.sum,
                purpose: Purpose::Revoke { serial: &serial },
                now: reached.contact.now()?,
            };
            let token = token.sign(&voucher, &*self.dice).map_err(no_signature)?;
            // cessationOfOperation (RFC 5280 5.3.1): nobody says that the key was stolen.
            let body = json!({"serial": serial, "reasonCode": 5, "passive": true});
            let response =
                reached.contact.send(None, shown_with(&endpoint, &body, &token), &mut facts).await?;
            match response.status {
                200 | 201 => return Ok(()),
                _ if reply::is_revoked_already(&response) => return Ok(()),
                401 => error = self.refused(&response, Asked::Revoke),
                _ => return Err(self.refused(&response, Asked::Revoke)),
            }
        }
        Err(error)
    }

    fn refused(&self, response: &Response, asked: Asked) -> IssueError {
        reply::refusal(response, asked, self.clock.wall())
    }
}

impl Authority for Step {
    fn roots<'a>(&'a self, _: &'a mut IssueFacts) -> Pending<'a, Result<Arc<Roots>, IssueError>> {
        Box::pin(async { Ok(Arc::clone(&self.reached().await?.roots)) })
    }

    fn sign<'a>(
        &'a self,
        ask: Ask<'a>,
        facts: &'a mut IssueFacts,
    ) -> Pending<'a, Result<Signed, IssueError>> {
        Box::pin(async move {
            match ask.held {
                Some(held) => self.renew(ask, held, facts).await,
                None => self.enrol(ask, facts).await,
            }
        })
    }

    fn revoke<'a>(
        &'a self,
        order: &'a Order,
        signers: &'a Signers,
        certificate: &'a [u8],
    ) -> Pending<'a, Result<(), IssueError>> {
        Box::pin(self.end(order, signers, certificate))
    }

    fn endpoints(&self) -> Arc<Vec<Target>> {
        Arc::clone(&self.endpoints)
    }
}

impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Step({} at {})", self.settings.name, self.settings.url)
    }
}

fn http_settings(settings: &StepSettings) -> HttpSettings {
    HttpSettings {
        ca_file: settings.ca_file.clone(),
        allow_plain_loopback: settings.dev,
        timeout: settings.timeout,
        user_agent: USER_AGENT.into(),
    }
}

/// A client for the CA whose roots are known: by default, it is they that vouch for its TLS too.
fn reach(settings: &StepSettings, roots: Roots, clock: &Arc<dyn Clock>) -> Result<Reached, Unbuilt> {
    let http = match settings.ca_file {
        Some(_) => Http::new(http_settings(settings)),
        None => Http::trusting(http_settings(settings), roots.all()),
    }?;
    let sum = roots.sum();
    Ok(Reached { contact: Contact::over(http, Arc::clone(clock)), roots: Arc::new(roots), sum })
}

/// A request that shows a token beside what `document` says. The token is good until the CA has seen it, so no copy of it stays
/// behind: what is sent is written into room for all of it, and wiped.
fn shown_with(endpoint: &str, document: &Value, token: &Secret) -> Request {
    let document = document.to_string();
    let mut content = Zeroizing::new(Vec::with_capacity(document.len() + token.len() + 16));
    // What is signed here is base64url and dots, which JSON takes as they are.
    for piece in
        [document.strip_suffix('}').unwrap_or_default().as_bytes(), br#","ott":""#, token.expose(), br#""}"#]
    {
        content.extend_from_slice(piece);
    }
    let content = Secret::new(std::mem::take(&mut *content));
    Request::post(endpoint, Body { media_type: "application/json", content })
}

/// Who can vouch for this order: what signs now, then what did before.
fn vouchers(order: &Order, signers: &Signers) -> Result<Vec<Voucher>, IssueError> {
    if !order.terms.client_auth.is_mtls() {
        let keys = [&signers.client, &signers.before].into_iter().flatten();
        return Ok(keys.map(|key| Voucher::Key(Arc::clone(key))).collect());
    }
    let all = signers.certificates.iter().map(|certificate| {
        let key = certificate.signer().ok_or_else(|| IssueError::Misconfigured {
            reason: Reason::IssuerConfig,
            detail: "the key of this identity's certificate signs no token: have it made for P-256, Ed25519 or RSA".into(),
        })?;
        Ok(Voucher::Chain(Arc::clone(certificate), key))
    });
    all.collect()
}

fn unusable(detail: String) -> IssueError {
    IssueError::Misconfigured { reason: Reason::IssuerConfig, detail }
}

fn no_voucher(order: &Order) -> IssueError {
    let detail = if order.terms.client_auth.is_mtls() {
        "this identity has no certificate that is good, and an X5C provisioner wants one: have it made anew"
    } else {
        "this identity has no key to sign a token with: reload the settings"
    };
    IssueError::Misconfigured { reason: Reason::ClientAuthRejected, detail: detail.into() }
}

/// How long the certificate is to live: as policy has it. By the CA's own clock, which a span needs no agreement about; by the
/// moment where a certificate vouches that ends before that, since the CA makes none that outlives it.
fn not_after(ask: Ask<'_>, voucher: &Voucher, now: Timestamp) -> String {
    let seconds = ask.order.max_ttl.as_secs();
    if let Voucher::Chain(certificate, _) = voucher
        && u64::try_from(certificate.until().as_second() - now.as_second()).is_ok_and(|left| left < seconds)
    {
        return certificate.until().to_string();
    }
    format!("{seconds}s")
}

/// The serial number of a certificate as the CA takes it: in decimal digits.
fn serial(certificate: &[u8]) -> Result<String, IssueError> {
    let (_, certificate) = X509Certificate::from_der(certificate).map_err(|_| IssueError::Refused {
        reason: Reason::AgentBugRequest,
        detail: "what is to be revoked is no certificate: it ends by itself".into(),
    })?;
    Ok(certificate.tbs_certificate.serial.to_string())
}

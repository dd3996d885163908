//! Any OAuth issuer: the grants and proofs of who asks that [`crate::issuer::terms`] names (RFC 7523, RFC 8414, RFC 8693,
//! RFC 8705, RFC 8707, RFC 9396), bound by DPoP (RFC 9449) or to a certificate where the order wants it. In goes an [`Order`];
//! out comes what one attempt came to. One attempt is: the issuer's metadata, if none is at hand, then one token request with
//! an assertion made for it alone, and another where the protocol has us ask again. The issuer's name in an assertion comes
//! from the settings, and an assertion goes to no host that the settings do not vouch for (PKJ-04, OA-08).

mod capable;
mod client;
mod details;
mod dpop;
mod introspection;
mod metadata;
mod mtls;
mod pins;
#[cfg(any(test, fuzzing))]
pub(crate) mod properties;
mod refusal;
mod registration;
mod reply;
mod request;
mod settings;
#[cfg(test)]
mod tests;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use http::{HeaderName, header};

pub(in crate::issuer) use self::metadata::fault_of as fault_of_url;
pub use self::{
    capable::{Wanted, capable, metadata_addresses},
    pins::{OnChange, Pins},
    settings::{AssertionTyp, Audience, OAuthSettings, WellKnown, misplaced, problems},
};
use self::{
    dpop::{Heard, Prover},
    metadata::Metadata,
    mtls::Way,
    reply::Moment,
    request::Asked,
};
use crate::{
    clock::{Boot, Clock, Dice},
    credential::{Binding, Bound, Credential},
    issuer::{
        IssueError, IssueFacts, Issued, Issuer, Order, Pending, Reason, Signers, answer,
        contact::{Contact, Shown},
        http::{HttpError, HttpSettings, Request, Response, USER_AGENT},
        registration::{Access, Ask, Registration},
        skew::Estimate,
        terms::Wants,
    },
    proof::Target,
    secret::Secret,
};

/// The header of a proof (RFC 9449 4.1).
const DPOP: HeaderName = HeaderName::from_static("dpop");

/// A document that seems wrong is fetched anew at most this often (OA-07).
const REFETCH: Duration = Duration::from_secs(60);

/// A document that could not be renewed is used until it is this old (OA-07).
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// One OAuth issuer: its client, its clock, its metadata. Nothing of it is shared with another (OA-08).
pub struct OAuth {
    settings: OAuthSettings,
    contact: Contact,
    clock: Arc<dyn Clock>,
    dice: Arc<dyn Dice>,
    prover: Prover,
    /// Its own endpoints, as it told them last.
    endpoints: ArcSwap<Vec<Target>>,
    /// Held while fetching, so that many callers make one fetch.
    shelf: tokio::sync::Mutex<Shelf>,
    /// How many fetches have ended: tells a caller that waited for one from a caller that came later.
    fetches: AtomicU64,
}

/// An order, and how it is placed this time.
#[derive(Clone, Copy)]
struct Placed<'a> {
    order: &'a Order,
    signers: &'a Signers,
    way: &'a Way,
}

#[derive(Default)]
struct Shelf {
    document: Option<Document>,
    /// The last fetch: when it was tried, and how it failed if it did.
    tried: Option<Boot>,
    failure: Option<IssueError>,
    /// Whether the issuer answered as if the document were wrong.
    doubted: bool,
}

struct Document {
    metadata: Arc<Metadata>,
    fetched: Boot,
    life: Duration,
}

impl OAuth {
    /// Makes the client. Nothing is sent yet. [`problems`] should have been asked first.
    ///
    /// # Errors
    /// [`HttpError::CaFile`] or [`HttpError::NoRoots`].
    pub fn new(
        settings: OAuthSettings,
        clock: Arc<dyn Clock>,
        dice: Arc<dyn Dice>,
    ) -> Result<Self, HttpError> {
        let http = HttpSettings {
            ca_file: settings.ca_file.clone(),
            allow_plain_loopback: settings.dev,
            timeout: settings.timeout,
            user_agent: USER_AGENT.into(),
        };
        Ok(Self {
            contact: Contact::new(http, Arc::clone(&clock))?,
            settings,
            prover: Prover::new(Arc::clone(&clock), Arc::clone(&dice)),
            endpoints: ArcSwap::default(),
            clock,
            dice,
            shelf: tokio::sync::Mutex::default(),
            fetches: AtomicU64::new(0),
        })
    }

    /// How far the issuer's clock is ahead of ours, in milliseconds; zero within the noise, `None` if unknown.
    pub fn skew_ms(&self) -> Option<i64> {
        self.contact.estimate().millis()
    }

    async fn attempt(
        &self,
        order: &Order,
        signers: &Signers,
        facts: &mut IssueFacts,
    ) -> Result<Credential, IssueError> {
        let metadata = self.ready(order, signers, facts).await?;
        metadata.accepts_details(&order.terms.details)?;
        let (sent, response, bound) = self.ask(order, signers, &metadata, facts).await?;
        if response.status != 200 {
            return Err(request::meant(order, self.refused(&response)));
        }
        let no_store = response.header(header::CACHE_CONTROL).is_some_and(|value| value.contains("no-store"));
        if !no_store {
            // OA-44: ours is kept in memory only, but what stands between may not know better.
            tracing::warn!(issuer = %self.settings.name, "a token came without Cache-Control: no-store");
        }
        let mut credential =
            reply::accept(&response, order, bound, &self.settings.issuer, self.moment(sent), facts)?;
        if let Some(life) = self.look_up(order, signers, &credential, &metadata, facts).await? {
            credential.window.shorten(self.clock.boot(), self.clock.wall(), life);
        }
        reply::check_shown(&credential, metadata.binds_to_certificates || order.terms.introspect)?;
        Ok(credential)
    }

    /// This moment, for an answer to what was `sent`.
    fn moment(&self, sent: Boot) -> Moment {
        Moment {
            sent,
            received: self.clock.boot(),
            wall: self.clock.wall(),
            correction: self.contact.estimate().correction(),
        }
    }

    /// A token request, and again where the protocol has us ask again: each time with an assertion, a proof and the tokens of
    /// others made or read anew (PKJ-12, DPOP-07, WIM-11), and for each cause once.
    async fn ask(
        &self,
        order: &Order,
        signers: &Signers,
        metadata: &Metadata,
        facts: &mut IssueFacts,
    ) -> Result<(Boot, Response, Bound), IssueError> {
        let mut ways = Way::all(order, signers)?.into_iter();
        let mut way = ways.next().ok_or_else(mtls::no_certificate)?;
        let (mut may_prove_again, mut fell_back) = (order.binding == Binding::Dpop, false);
        let (mut may_bring_again, mut may_draw_again) = (true, way.client.is_some());
        let mut may_attest_again = true;
        let mut asked = Asked::gather(order, self.contact.now()?).await?;
        loop {
            let bound = dpop::bound(order.binding, signers, &way, metadata)?;
            let endpoint = metadata.token_endpoint(way.certificate.is_some())?;
            let placed = Placed { order, signers, way: &way };
            let sent = self.clock.boot();
            let (response, heard) = self.post(placed, &bound, endpoint, &asked.fields(), facts).await?;
            let reused = refusal::is_reuse(&response);
            if reused {
                facts.one_time_reuse = true;
                tracing::error!(issuer = %self.settings.name, "ONE_TIME_REUSE: it has seen a one-time value of this agent before");
            }
            match (facts.oauth_error.as_deref(), ways.as_slice().first()) {
                (Some("use_dpop_nonce"), _) if may_prove_again && heard != Heard::New => {
                    return Err(dpop::no_usable_nonce(&heard));
                }
                (Some("use_dpop_nonce"), _) if may_prove_again => may_prove_again = false,
                // DPOP-13: the answer told the nonce or the time that the proof lacked.
                (Some("invalid_dpop_proof"), _)
                    if may_prove_again && (heard == Heard::New || self.contact.estimate().is_telling()) =>
                {
                    may_prove_again = false;
                }
                // ER-09: what vouches for the client is made, read or fetched anew, once. A platform's token or SVID may be
                // fresher by now; an attestation with the challenge in it is not made here, which the refusal then says.
                (Some("use_attestation_challenge" | "use_fresh_attestation"), _) if may_attest_again => {
                    may_attest_again = false;
                }
                // ER-10: the next one is drawn anew.
                _ if reused && may_draw_again => may_draw_again = false,
                // KEY-06, MT-05: the issuer may not have heard of the new key or certificate yet.
                (_, Some(before)) if !reused && refusal::is_of_client(&response) => {
                    tracing::warn!(issuer = %self.settings.name, "the new key is not known yet: falling back to the one before");
                    (way, fell_back) = (before.clone(), true);
                    ways.next();
                }
                // ER-03: whoever writes the file may have written another one since; the same again is of no use.
                (Some(code), _) if may_bring_again && request::is_refused_grant(order, code) => {
                    may_bring_again = false;
                    let again = Asked::gather(order, self.contact.now()?).await?;
                    if again.brings() == asked.brings() {
                        return Ok((sent, response, bound));
                    }
                    asked = again;
                    continue;
                }
                _ => {
                    facts.key_fallback = fell_back && response.status == 200;
                    return Ok((sent, response, bound));
                }
            }
            asked = Asked::gather(order, self.contact.now()?).await?;
        }
    }

    async fn give_back(
        &self,
        order: &Order,
        signers: &Signers,
        credential: &Credential,
    ) -> Result<(), IssueError> {
        // The settings may name another kind of issuer by this name since: what somebody else made is not for this one to see.
        let token = credential.token().filter(|_| order.terms.wants == Wants::Token);
        let token = token.and_then(Secret::expose_str).ok_or_else(|| IssueError::Refused {
            reason: Reason::IssuerConfig,
            detail: "this issuer did not make it, and cannot end it: it ends by itself".into(),
        })?;
        let mut facts = IssueFacts::default();
        let metadata = self.ready(order, signers, &mut facts).await?;
        let way = Way::plain(order, signers)?;
        let endpoint =
            metadata.revocation_endpoint(way.certificate.is_some())?.ok_or_else(|| IssueError::Refused {
                reason: Reason::IssuerConfig,
                detail: "the issuer offers no revocation: the token lives until it ends by itself".into(),
            })?;
        let fields = [("token", token), ("token_type_hint", "access_token")];
        let placed = Placed { order, signers, way: &way };
        let (response, _) = self.post(placed, &Bound::Bearer, endpoint, &fields, &mut facts).await?;
        if response.status == 200 { Ok(()) } else { Err(self.refused(&response)) }
    }

    /// The metadata, once it is clear that the issuer takes our way to prove who asks.
    async fn ready(
        &self,
        order: &Order,
        signers: &Signers,
        facts: &mut IssueFacts,
    ) -> Result<Arc<Metadata>, IssueError> {
        let metadata = self.metadata(facts).await?;
        facts.metadata_changed = metadata.changed;
        let auth = &order.terms.client_auth;
        if auth.is_mtls() {
            metadata.accepts_certificate(auth, &self.settings)?;
        } else {
            let key = client::key(order, signers)?;
            metadata.accepts(auth, key.map(|key| key.algorithm()))?;
        }
        Ok(metadata)
    }

    /// One POST with one fresh assertion (PKJ-01, PKJ-12, PKJ-13) or a certificate, and a fresh proof if what comes is to be
    /// bound by one.
    async fn post(
        &self,
        Placed { order, signers, way }: Placed<'_>,
        bound: &Bound,
        endpoint: &str,
        fields: &[(&str, &str)],
        facts: &mut IssueFacts,
    ) -> Result<(Response, Heard), IssueError> {
        let correction = self.contact.correction()?;
        let by_certificate = order.terms.client_auth.is_mtls();
        let assertion = match by_certificate {
            true => None,
            false => Some(self.show(order, way.client.as_ref(), self.contact.now()?).await?),
        };
        let mut fields = fields.to_vec();
        // MT-02: without an assertion it is all that says who asks.
        if self.settings.send_client_id || by_certificate {
            fields.push(("client_id", &order.client_id));
        }
        if let Some((kind, shown)) = &assertion {
            let shown = shown.expose_str().unwrap_or_default();
            fields.extend([("client_assertion_type", *kind), ("client_assertion", shown)]);
        }
        let proof = self.prover.prove(bound, endpoint, correction)?;
        let mut request = Request::form(endpoint, request::encode(&fields));
        if let Some(proof) = proof {
            request = request.with(DPOP, proof);
        }
        let shown = way.certificate.as_ref().map(|certificate| Shown { certificate, order, signers });
        let response = self.exchange(shown, request, facts).await?;
        let heard = self.prover.hear(bound, endpoint, &response);
        if let Heard::Unusable(what) = heard {
            tracing::warn!(issuer = %self.settings.name, "its DPoP-Nonce is ignored: {what}");
        }
        Ok((response, heard))
    }

    async fn exchange(
        &self,
        shown: Option<Shown<'_>>,
        request: Request,
        facts: &mut IssueFacts,
    ) -> Result<Response, IssueError> {
        let response = self.contact.send(shown, request, facts).await?;
        facts.oauth_error = refusal::oauth_error(&response);
        Ok(response)
    }

    fn refused(&self, response: &Response) -> IssueError {
        // OA-07: the endpoint may have moved. Seen to before the next attempt, not in this one (PKJ-06). Where the
        // shelf is taken, somebody is fetching anew already.
        if (response.status == 404 || refusal::is_of_client(response))
            && let Ok(mut shelf) = self.shelf.try_lock()
        {
            shelf.doubted = true;
        }
        refusal::classify(response, self.clock.wall())
    }

    /// The metadata, fetched if there is none that may be used (OA-07).
    async fn metadata(&self, facts: &mut IssueFacts) -> Result<Arc<Metadata>, IssueError> {
        let before = self.fetches.load(Ordering::Acquire);
        let mut shelf = self.shelf.lock().await;
        let now = self.clock.boot();
        let waited = self.fetches.load(Ordering::Acquire) != before;
        if let Some(document) = &shelf.document {
            let age = now.since(document.fetched);
            // Nothing is signed then, so no other answer would bring a newer sample.
            let untrusted = matches!(self.contact.estimate(), Estimate::Untrusted(_));
            let wanted = age >= document.life || shelf.doubted || untrusted;
            let allowed = !waited && shelf.tried.is_none_or(|tried| now.since(tried) >= REFETCH);
            // A document past its time may stand in while a newer one cannot be had, but not for longer than a day.
            if !(wanted && allowed) && age < LONGEST {
                return Ok(Arc::clone(&document.metadata));
            }
        } else if let Some(failure) = shelf.failure.as_ref().filter(|_| waited) {
            return Err(failure.clone());
        }
        shelf.tried = Some(now);
        let fetched = self.fetch(facts).await;
        self.fetches.fetch_add(1, Ordering::AcqRel);
        match fetched {
            Ok((metadata, life)) => {
                self.endpoints.store(Arc::new(metadata.endpoints.clone()));
                let metadata = Arc::new(metadata);
                let document = Document { metadata: Arc::clone(&metadata), fetched: self.clock.boot(), life };
                *shelf = Shelf { document: Some(document), tried: Some(now), failure: None, doubted: false };
                Ok(metadata)
            }
            Err(failure) => {
                shelf.failure = Some(failure.clone());
                let old = shelf.document.as_ref().filter(|old| now.since(old.fetched) < LONGEST);
                match (&failure, old) {
                    (IssueError::Retry { .. }, Some(old)) => Ok(Arc::clone(&old.metadata)),
                    // What was said before holds no longer: the issuer now says something that must not be used.
                    (
                        IssueError::Refused { .. }
                        | IssueError::Misconfigured { .. }
                        | IssueError::Later { .. },
                        _,
                    ) => {
                        shelf.document = None;
                        Err(failure)
                    }
                    (IssueError::Retry { .. }, None) => Err(failure),
                }
            }
        }
    }

    async fn fetch(&self, facts: &mut IssueFacts) -> Result<(Metadata, Duration), IssueError> {
        let mut missing = String::new();
        for url in metadata::addresses(&self.settings) {
            let response = self.exchange(None, Request::get(&url), facts).await?;
            match response.status {
                200 if answer::is_json(&response) => {
                    let metadata = Metadata::read(response.body.expose(), &self.settings)?;
                    return Ok((metadata, metadata::life(&response.headers)));
                }
                // Not there, or hidden behind a page for people: it may be at the other address.
                200 | 400..=428 | 430..=499 => missing = format!("{url} answered {}", response.status),
                _ => return Err(refusal::classify(&response, self.clock.wall())),
            }
        }
        Err(IssueError::Retry {
            reason: Reason::IssuerProtocol,
            detail: format!(
                "no metadata where it should be ({missing}, not with JSON): check issuer and well_known"
            ),
            after: None,
        })
    }
}

impl Issuer for OAuth {
    fn issue<'a>(
        &'a self,
        order: &'a Order,
        signers: &'a Signers,
        _held: Option<&'a Credential>,
    ) -> Pending<'a, Issued> {
        Box::pin(async move {
            let started = self.clock.boot();
            let mut facts = IssueFacts::default();
            let result = self.attempt(order, signers, &mut facts).await;
            facts.latency = self.clock.boot().since(started);
            Issued { result, facts }
        })
    }

    fn revoke<'a>(
        &'a self,
        order: &'a Order,
        signers: &'a Signers,
        credential: &'a Credential,
    ) -> Pending<'a, Result<(), IssueError>> {
        Box::pin(self.give_back(order, signers, credential))
    }

    fn endpoints(&self) -> Arc<Vec<Target>> {
        self.endpoints.load_full()
    }

    fn registration<'a>(
        &'a self,
        access: &'a Access,
        ask: Ask,
    ) -> Pending<'a, Result<Registration, IssueError>> {
        Box::pin(self.ask_registration(access, ask))
    }
}

impl fmt::Debug for OAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OAuth({} at {})", self.settings.name, self.settings.issuer)
    }
}

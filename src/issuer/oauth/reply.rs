//! What an issuer answers, held against what was ordered. In go an answer and the order; out comes a credential, or
//! the class of trouble. Pure. A token that is more than was ordered is not a gift: it is refused (OA-20).

use std::time::Duration;

use http::header;
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use crate::{
    clock::Boot,
    credential::{Binding, Credential, Window},
    issuer::{IssueError, IssueFacts, Order, Reason, http::Answer, json, skew::http_date},
    jose::Unverified,
    secret::{Fingerprint, Secret, scrubbed},
};

/// No token is larger (OA-45).
const MAX_TOKEN: usize = 16 << 10;

/// How long a token lives that does not say (CLK-04).
const UNSAID_LIFE: Duration = Duration::from_secs(60);

/// The issuer may ask for no longer (CLK-06).
const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);

/// What was asked, and of whom.
pub(super) struct Asked<'a> {
    pub(super) order: &'a Order,
    pub(super) issuer: &'a str,
}

/// The credential in a token answer.
pub(super) fn credential(
    asked: &Asked<'_>,
    answer: &Answer,
    now: Boot,
    wall: Timestamp,
    facts: &mut IssueFacts,
) -> Result<Credential, IssueError> {
    if answer.status.as_u16() != 200 {
        facts.oauth_error = oauth_error(answer).map(|(code, _)| code);
        return Err(trouble(answer, wall));
    }
    if !answer.is_json() {
        return Err(protocol("the token answer is not JSON"));
    }
    let stored = answer.headers.get_all(header::CACHE_CONTROL).iter().any(|value| {
        value
            .to_str()
            .is_ok_and(|value| value.split(',').any(|word| word.trim().eq_ignore_ascii_case("no-store")))
    });
    if !stored {
        // OA-44: it is never cached on disk here, whatever it says.
        tracing::warn!(issuer = asked.issuer, "its token answers lack Cache-Control: no-store");
    }
    let reply = json::parse(answer.body.expose()).map_err(protocol)?;
    let token = reply
        .get("access_token")
        .and_then(Value::as_str)
        .ok_or_else(|| protocol("there is no access_token"))?;
    if token.is_empty() || token.len() > MAX_TOKEN || !token.bytes().all(is_b64token) {
        return Err(protocol("the access_token is empty, too long, or holds characters no token has"));
    }
    let token_type = reply.get("token_type").and_then(Value::as_str).unwrap_or_default();
    match asked.order.binding {
        Binding::Bearer if token_type.eq_ignore_ascii_case("Bearer") => {}
        Binding::Bearer => {
            return Err(refused(Reason::TokenNotBound, "the token_type is not the Bearer that was ordered"));
        }
    }
    let claims = Jwt::of(token);
    let life = life(reply.get("expires_in"), claims.as_ref(), wall)?.min(asked.order.max_ttl);
    let scope = granted_scope(asked, reply.get("scope"))?;
    if let Some(claims) = &claims {
        claims.fit(asked, &scope)?;
    } else if asked.order.require_aud {
        return Err(refused(
            Reason::AudMismatch,
            "the token is opaque, so its audience cannot be seen: set require_aud = false if that is meant",
        ));
    }
    let token = Secret::new(token);
    Ok(Credential {
        fingerprint: token.fingerprint(),
        token,
        window: Window::opening(now, wall, life),
        binding: asked.order.binding,
        scope,
        audience: asked.order.resource.as_deref().map(str::to_owned),
        jti: claims.and_then(|claims| claims.text("jti").map(|jti| Fingerprint::of(jti.as_bytes()))),
    })
}

/// Whether a revocation was taken (RFC 7009).
pub(super) fn revoked(answer: &Answer, wall: Timestamp) -> Result<(), IssueError> {
    if answer.status.is_success() { Ok(()) } else { Err(trouble(answer, wall)) }
}

/// What an answer that is no success means (STANDARDS 4.4, one arm a row).
pub(super) fn trouble(answer: &Answer, wall: Timestamp) -> IssueError {
    let status = answer.status.as_u16();
    let after = retry_after(answer, wall);
    let (code, description) = oauth_error(answer).unwrap_or_default();
    let detail = match (code.is_empty(), description.is_empty()) {
        (true, _) => format!("it answered {status}"),
        (false, true) => format!("it answered {status} {code}"),
        (false, false) => format!("it answered {status} {code}: {description}"),
    };
    let retry = |reason| IssueError::Retry { reason, detail: detail.clone(), after };
    let refused = |reason| IssueError::Refused { reason, detail: detail.clone() };
    let config = |reason| IssueError::Misconfigured { reason, detail: detail.clone() };
    match (status, code.as_str()) {
        (429, _) => retry(Reason::IssuerRateLimit),
        (500.., _) | (_, "temporarily_unavailable") => retry(Reason::IssuerUnavailable),
        (_, "invalid_request") => config(Reason::AgentBugRequest),
        (_, "invalid_client") => config(Reason::ClientAuthRejected),
        (_, "invalid_grant") => refused(Reason::GrantRejected),
        (_, "unauthorized_client" | "unsupported_grant_type") => config(Reason::IssuerConfig),
        (_, "invalid_scope") => refused(Reason::ScopeDenied),
        (_, "invalid_target") => refused(Reason::AudienceDenied),
        (_, "invalid_authorization_details") => refused(Reason::RarDenied),
        (_, "use_dpop_nonce" | "invalid_dpop_proof") => retry(Reason::DpopRejected),
        (_, "jti_known") => retry(Reason::OneTimeReuse),
        (401, _) => config(Reason::ClientAuthRejected),
        _ => retry(Reason::IssuerProtocol),
    }
}

/// The error code and its description, fit to be written down (ER-13).
fn oauth_error(answer: &Answer) -> Option<(String, String)> {
    let reply = json::parse(answer.body.expose()).ok().filter(|_| answer.is_json())?;
    let text = |name: &str| reply.get(name).and_then(Value::as_str).unwrap_or_default();
    // RFC 6749 5.2: a code is letters and underscores; anything else is not repeated.
    let code = text("error");
    let sound = code.len() <= 64 && code.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    (sound && !code.is_empty()).then(|| (code.to_owned(), scrubbed(text("error_description"), 200)))
}

/// Seconds or a date; garbage counts as nothing (CLK-06).
fn retry_after(answer: &Answer, wall: Timestamp) -> Option<Duration> {
    let text = answer.headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = match text.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => Duration::try_from(http_date(text)?.duration_since(wall)).unwrap_or_default(),
    };
    Some(wait.min(MAX_RETRY_AFTER))
}

/// CLK-04.
fn life(said: Option<&Value>, claims: Option<&Jwt>, wall: Timestamp) -> Result<Duration, IssueError> {
    let seconds = match said {
        None | Some(Value::Null) => {
            let own = claims.and_then(|claims| Some(claims.number("exp")? - claims.number("iat")?));
            own.map_or(UNSAID_LIFE.as_secs_f64(), |own| own.min(UNSAID_LIFE.as_secs_f64()))
        }
        Some(Value::Number(number)) => number.as_f64().unwrap_or(-1.0),
        Some(Value::String(text)) => text.trim().parse().unwrap_or(-1.0),
        Some(_) => -1.0,
    };
    if !seconds.is_finite() || seconds < 1.0 {
        return Err(protocol("expires_in is not a length of time ahead"));
    }
    let said = Duration::from_secs(seconds.min(1e9).floor() as u64);
    // A JWT that ends earlier than its answer says ends earlier. Ours may be the clock that is wrong, so a little
    // is allowed; an end that is long past is not.
    let Some(exp) = claims.and_then(|claims| claims.number("exp")) else { return Ok(said) };
    let own = SignedDuration::from_secs(exp.clamp(0.0, 1e12) as i64 - wall.as_second());
    match Duration::try_from(own) {
        Ok(own) if own.as_secs() > 0 => Ok(said.min(own + Duration::from_secs(5))),
        _ if own > SignedDuration::from_secs(-300) => Ok(said),
        _ => Err(protocol("the token had expired when it came")),
    }
}

/// The scope we got: as asked, or less (OA-20).
fn granted_scope(asked: &Asked<'_>, said: Option<&Value>) -> Result<Vec<String>, IssueError> {
    let ordered = || asked.order.scope.iter().map(|scope| scope.to_string()).collect();
    let Some(said) = said.filter(|said| !said.is_null()) else { return Ok(ordered()) };
    let said = said.as_str().ok_or_else(|| protocol("scope is not a string"))?;
    let mut granted: Vec<String> =
        said.split(' ').filter(|scope| !scope.is_empty()).map(str::to_owned).collect();
    granted.sort();
    granted.dedup();
    within(asked, &granted)?;
    Ok(granted)
}

fn within(asked: &Asked<'_>, granted: &[String]) -> Result<(), IssueError> {
    // Whoever asked for no scope left the choice to the issuer.
    let ordered = &asked.order.scope;
    match granted
        .iter()
        .find(|scope| !ordered.is_empty() && !ordered.iter().any(|ordered| **ordered == ***scope))
    {
        Some(extra) => {
            let detail = format!("the token has more scope than was ordered: {}", scrubbed(extra, 100));
            Err(IssueError::Refused { reason: Reason::ScopeEscalated, detail })
        }
        None => Ok(()),
    }
}

/// A JWT's claims, as far as they bear on the order. Not verified: whoever the token is for does that (OA-40).
struct Jwt(Value);

impl Jwt {
    fn of(token: &str) -> Option<Self> {
        let parsed = Unverified::parse(token).ok()?;
        json::parse(&parsed.payload).ok().filter(Value::is_object).map(Self)
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name)?.as_str()
    }

    fn number(&self, name: &str) -> Option<f64> {
        self.0.get(name)?.as_f64()
    }

    fn fit(&self, asked: &Asked<'_>, scope: &[String]) -> Result<(), IssueError> {
        // OA-09
        if self.0.get("iss").is_some() && self.text("iss") != Some(asked.issuer) {
            return Err(refused(Reason::IssuerMismatch, "the token names another issuer"));
        }
        if asked.order.require_aud {
            let wanted = asked.order.resource.as_deref().unwrap_or_default();
            let fits = match self.0.get("aud") {
                Some(Value::String(aud)) => aud == wanted,
                // BCP-02: for one API, not for this one among others.
                Some(Value::Array(list)) => list.len() == 1 && list[0].as_str() == Some(wanted),
                _ => false,
            };
            if !fits {
                return Err(refused(
                    Reason::AudMismatch,
                    "the token is not for the resource that was ordered, and for it alone",
                ));
            }
        }
        let claimed = match (self.0.get("scope"), self.0.get("scp")) {
            (Some(Value::String(text)), _) | (None, Some(Value::String(text))) => {
                text.split(' ').filter(|word| !word.is_empty()).map(str::to_owned).collect()
            }
            (_, Some(Value::Array(list))) | (Some(Value::Array(list)), _) => {
                list.iter().filter_map(Value::as_str).map(str::to_owned).collect()
            }
            _ => scope.to_vec(),
        };
        within(asked, &claimed)?;
        if self.0.get("cnf").is_some() && asked.order.binding == Binding::Bearer {
            return Err(refused(
                Reason::TokenNotBound,
                "the token is bound to a key that is not ours to prove",
            ));
        }
        if self.0.get("exp").is_some() && self.number("exp").is_none() {
            return Err(protocol("the token's exp is not a number"));
        }
        Ok(())
    }
}

/// RFC 6750 2.1.
fn is_b64token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte)
}

fn protocol(what: &str) -> IssueError {
    IssueError::Retry { reason: Reason::IssuerProtocol, detail: what.into(), after: None }
}

fn refused(reason: Reason, what: &str) -> IssueError {
    IssueError::Refused { reason, detail: what.into() }
}

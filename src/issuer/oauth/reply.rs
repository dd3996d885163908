//! A success, doubted. In goes a token reply and the order it should fit; out comes a [`Credential`], or why the
//! token is thrown away. We are not who the token is for: its signature is for others to check, but what it
//! says of itself must fit what was asked (OA-40).

use std::{collections::BTreeSet, time::Duration};

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::details;
use crate::{
    clock::Boot,
    credential::{Binding, Bound, Credential, Form, Payload, Window},
    issuer::{
        IssueError, IssueFacts, Order, Reason, answer,
        http::Response,
        json,
        terms::{Exchange, GrantType},
        token_type::TokenType,
    },
    jose::Unverified,
    secret::{Fingerprint, Secret},
};

/// The longest token that is taken (OA-45).
pub(super) const MAX_TOKEN: usize = 16 * 1024;

/// How long a token is used whose issuer does not say how long it lives (CLK-04).
const UNSAID: Duration = Duration::from_secs(60);

/// When an answer was asked for and came.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    /// When the request left: the token cannot have been made earlier, so its life is counted from here.
    pub(super) sent: Boot,
    /// When the answer was there.
    pub(super) received: Boot,
    /// The same by our wall clock.
    pub(super) wall: Timestamp,
    /// What to add to the wall clock to read the issuer's. Only ever shortens a life.
    pub(super) correction: SignedDuration,
}

/// Makes a credential of an answer with status 200, if it fits `order`.
pub(super) fn accept(
    response: &Response,
    order: &Order,
    bound: Bound,
    issuer: &str,
    now: Moment,
    facts: &mut IssueFacts,
) -> Result<Credential, IssueError> {
    let garbled = |detail: String| IssueError::Retry { reason: Reason::IssuerProtocol, detail, after: None };
    if !answer::is_json(response) {
        return Err(garbled("the issuer answered 200 with something that is not JSON (Content-Type)".into()));
    }
    let mut reply = json::parse(response.body.expose())
        .map_err(|error| garbled(format!("the issuer's token reply: {error}")))?;
    // Out of the document first, so that every way out of here wipes them.
    let token = take_secret(&mut reply, "access_token");
    facts.refresh_token_ignored = take_secret(&mut reply, "refresh_token").is_some();
    let _never_used = take_secret(&mut reply, "id_token");
    let token = token.ok_or_else(|| broken("the issuer's token reply holds no access_token"))?;
    check_form(&token)?;
    check_type(reply.get("token_type"), &bound)?;
    check_issuer(reply.get("iss"), issuer)?;
    if let GrantType::TokenExchange(exchange) = &order.terms.grant {
        check_issued(reply.get("issued_token_type"), exchange)?;
    }
    let claims = jwt_claims(&token)?;
    let asked: BTreeSet<&str> = order.scope.iter().map(|scope| &**scope).collect();
    let mut granted = scope_of(reply.get("scope"))?;
    let mut life = life_of(reply.get("expires_in"))?;
    let mut jti = None;
    if let Some(claims) = &claims {
        let inner = check_claims(claims, order, &bound, issuer, &asked)?;
        granted = granted.or(inner);
        let left = jwt_life(claims, now)?;
        life = match (life, left) {
            (Some(said), Some(left)) => Some(said.min(left)),
            (None, Some(left)) => Some(left.min(UNSAID)),
            (said, None) => said,
        };
        jti = claims.get("jti").and_then(Value::as_str).map(|jti| Fingerprint::of(jti.as_bytes()));
    }
    escalated(granted.as_ref(), &asked)?;
    let detailed = |holder: &Value| holder.get("authorization_details").cloned();
    let inner = claims.as_ref().and_then(detailed);
    // In the token too, if it tells: the answer and the token are two things.
    if inner.is_some() {
        details::check(inner.as_ref(), &order.terms.details)?;
    }
    details::check(detailed(&reply).or(inner).as_ref(), &order.terms.details)?;
    let given = life.unwrap_or(UNSAID);
    facts.cut_life_from = (given > order.max_ttl).then_some(given);
    let life = given.min(order.max_ttl).saturating_sub(now.received.since(now.sent));
    if life.is_zero() {
        return Err(garbled("the issuer's answer took longer than its token lives".into()));
    }
    Ok(Credential {
        fingerprint: token.fingerprint(),
        payload: Payload::Token(token),
        window: Window::opening(now.received, now.wall, life),
        bound,
        scope: granted
            .unwrap_or_else(|| asked.into_iter().map(str::to_owned).collect())
            .into_iter()
            .collect(),
        audience: order.resource.as_deref().map(str::to_owned),
        jti,
        form: Form::default(),
    })
}

/// What a token says of itself, or its issuer of it, against the order; the scope, if it is told.
pub(super) fn check_claims(
    claims: &Value,
    order: &Order,
    bound: &Bound,
    issuer: &str,
    asked: &BTreeSet<&str>,
) -> Result<Option<BTreeSet<String>>, IssueError> {
    check_issuer(claims.get("iss"), issuer)?;
    check_audience(claims.get("aud"), order)?;
    check_confirmation(claims.get("cnf"), bound)?;
    let scope = scope_of(claims.get("scope").or(claims.get("scp")))?;
    escalated(scope.as_ref(), asked)?;
    Ok(scope)
}

/// OA-23: what came of an exchange is an access token, or a JWT that serves as one, and what was asked for.
fn check_issued(named: Option<&Value>, exchange: &Exchange) -> Result<(), IssueError> {
    let named = named.and_then(Value::as_str);
    let named = named
        .ok_or_else(|| broken("the answer to an exchange holds no issued_token_type (RFC 8693 2.2.1)"))?;
    let usable = [TokenType::AccessToken, TokenType::Jwt];
    match TokenType::from_uri(named) {
        Some(kind) if exchange.requested.map_or(usable.contains(&kind), |wanted| wanted == kind) => Ok(()),
        _ => Err(broken(
            "the issued_token_type is not what was asked for: nothing but an access token is used as one",
        )),
    }
}

/// The issuer spoke clearly and broke the protocol; a token was made, so asking again only makes more.
fn broken(detail: &str) -> IssueError {
    IssueError::Refused { reason: Reason::IssuerProtocol, detail: detail.into() }
}

fn unbound(detail: &str) -> IssueError {
    IssueError::Refused { reason: Reason::TokenNotBound, detail: detail.into() }
}

fn take_secret(reply: &mut Value, member: &str) -> Option<Secret> {
    match reply.get_mut(member)?.take() {
        Value::String(text) => Some(Secret::new(text)),
        _ => None,
    }
}

/// OA-45: nothing that could end a header line early or fill a memory.
fn check_form(token: &Secret) -> Result<(), IssueError> {
    if token.len() > MAX_TOKEN {
        return Err(broken("the token is longer than 16 KiB"));
    }
    // b64token (RFC 6750 2.1).
    let padding = token.expose().iter().rev().take_while(|byte| **byte == b'=').count();
    let body = &token.expose()[..token.len() - padding];
    if body.is_empty() || !body.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-._~+/".contains(byte)) {
        return Err(broken("the token holds characters that no token may hold (RFC 6750 2.1)"));
    }
    Ok(())
}

/// DPOP-04: an issuer that ignores the proof sends a token that whoever has it can use.
pub(super) fn check_type(named: Option<&Value>, bound: &Bound) -> Result<(), IssueError> {
    let named = named.and_then(Value::as_str).ok_or_else(|| broken("the token reply holds no token_type"))?;
    let scheme = bound.binding().scheme();
    if named.eq_ignore_ascii_case(scheme) {
        return Ok(());
    }
    Err(unbound(&format!(
        "the token_type is not {scheme}, which was asked for: switch it on for this client"
    )))
}

/// MT-07: a token that cannot be read shows no binding, so it is taken only from an issuer that says it binds.
pub(super) fn check_shown(credential: &Credential, issuer_binds: bool) -> Result<(), IssueError> {
    if issuer_binds || credential.binding() != Binding::Mtls || jwt_claims(credential.handle())?.is_some() {
        return Ok(());
    }
    Err(unbound(
        "the token is opaque, and the metadata does not say tls_client_certificate_bound_access_tokens: nothing shows that \
         it is bound to our certificate",
    ))
}

/// DPOP-05, MT-07: what the token itself says of its key. A token that is not read here can only be taken at its word.
fn check_confirmation(cnf: Option<&Value>, bound: &Bound) -> Result<(), IssueError> {
    let cnf = cnf.filter(|cnf| !cnf.is_null());
    match (bound, cnf) {
        (Bound::Bearer, None) => Ok(()),
        (Bound::Bearer, Some(_)) => {
            Err(unbound("the token is bound to a key (cnf), a bearer token was asked for"))
        }
        (Bound::Dpop(_), None) => Err(unbound("the token names no key (cnf), though it is said to be bound")),
        (Bound::Dpop(key), Some(cnf)) if cnf.get("jkt").and_then(Value::as_str) == Some(key.kid()) => Ok(()),
        (Bound::Dpop(_), Some(_)) => Err(unbound("the token is bound to another key (cnf.jkt) than ours")),
        (Bound::Mtls(_), None) => Err(unbound(
            "the token names no certificate (cnf): switch on certificate-bound tokens for this client",
        )),
        (Bound::Mtls(certificate), Some(cnf))
            if cnf.get("x5t#S256").and_then(Value::as_str) == Some(certificate.thumbprint()) =>
        {
            Ok(())
        }
        (Bound::Mtls(_), Some(_)) => Err(unbound(
            "the token is bound to another certificate (cnf x5t#S256) than ours, or to none: does TLS end at a proxy that \
             hands on another?",
        )),
    }
}

/// OA-09: in the reply and in the token alike.
fn check_issuer(named: Option<&Value>, issuer: &str) -> Result<(), IssueError> {
    match named {
        None => Ok(()),
        Some(Value::String(named)) if named == issuer => Ok(()),
        Some(_) => Err(IssueError::Refused {
            reason: Reason::IssuerMismatch,
            detail: format!("the token names another issuer than {issuer}: it was thrown away"),
        }),
    }
}

/// OA-21: a token for another resource is of no use here and of danger elsewhere.
fn check_audience(named: Option<&Value>, order: &Order) -> Result<(), IssueError> {
    let Some(resource) = order.resource.as_deref().filter(|_| order.require_aud) else { return Ok(()) };
    let fits = match named {
        Some(Value::String(one)) => one == resource,
        Some(Value::Array(several)) => several.iter().any(|one| one.as_str() == Some(resource)),
        _ => false,
    };
    if fits {
        return Ok(());
    }
    Err(IssueError::Refused {
        reason: Reason::AudMismatch,
        detail: format!(
            "the token's aud does not name {resource}: have the issuer honour resource, or set require_aud = false"
        ),
    })
}

/// A `scope` in either form: a string with spaces, or a list (`scp`).
fn scope_of(named: Option<&Value>) -> Result<Option<BTreeSet<String>>, IssueError> {
    let unreadable = || broken("the scope that came back is neither text nor a list of texts");
    match named {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.split_ascii_whitespace().map(str::to_owned).collect())),
        Some(Value::Array(list)) => {
            let texts = list.iter().map(|one| one.as_str().map(str::to_owned).ok_or_else(unreadable));
            texts.collect::<Result<_, _>>().map(Some)
        }
        Some(_) => Err(unreadable()),
    }
}

/// OA-20: less is a shorter arm, more is somebody else's.
fn escalated(granted: Option<&BTreeSet<String>>, asked: &BTreeSet<&str>) -> Result<(), IssueError> {
    match granted {
        Some(granted) if granted.iter().any(|scope| !asked.contains(scope.as_str())) => Err(IssueError::Refused {
            reason: Reason::ScopeEscalated,
            detail: "the token carries more scope than was asked for: stop the issuer adding default scopes to this \
                     client, or name them in scope"
                .into(),
        }),
        _ => Ok(()),
    }
}

/// `expires_in`, read leniently (CLK-04): a number or the text of one, floored.
fn life_of(named: Option<&Value>) -> Result<Option<Duration>, IssueError> {
    let seconds = match named {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Number(number)) => number.as_f64(),
        Some(Value::String(text))
            if text.bytes().all(|byte| byte.is_ascii_digit() || b".-".contains(&byte)) =>
        {
            text.parse::<f64>().ok()
        }
        Some(_) => None,
    };
    match seconds.map(f64::floor) {
        Some(seconds) if seconds >= 1.0 => {
            // Longer than a Duration holds is longer than any max_ttl all the same.
            Ok(Some(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)))
        }
        _ => Err(broken("expires_in is not a positive number of seconds")),
    }
}

/// The claims, if the token is a JWT. Anything else is opaque and none of our business.
pub(super) fn jwt_claims(token: &Secret) -> Result<Option<Value>, IssueError> {
    let Some(jwt) = token.expose_str().and_then(|text| Unverified::parse(text).ok()) else { return Ok(None) };
    match json::parse(&jwt.payload) {
        Ok(claims) if claims.is_object() => Ok(Some(claims)),
        Ok(_) | Err(json::JsonError::Syntax) => Ok(None),
        // A JWT that two readers could read differently.
        Err(_) => Err(broken("the token's claims are not strict JSON")),
    }
}

/// How long a JWT lives by its own account: the shorter of `exp - iat` and what is left. `None` without `exp`.
pub(super) fn jwt_life(claims: &Value, now: Moment) -> Result<Option<Duration>, IssueError> {
    let moment = |claim: &str| match claims.get(claim) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Number(number)) => Ok(number.as_f64().map(f64::floor)),
        Some(_) => Err(broken("the token's exp or iat is not a number")),
    };
    let Some(exp) = moment("exp")? else { return Ok(None) };
    // Seconds of the wall clock are far below 2^53.
    let theirs = now.wall.checked_add(now.correction).unwrap_or(now.wall).as_second() as f64;
    let left = (exp - theirs).min(exp - moment("iat")?.unwrap_or(theirs));
    if left < 1.0 {
        return Err(broken("the token has already ended by its own exp"));
    }
    Ok(Some(Duration::try_from_secs_f64(left).unwrap_or(Duration::MAX)))
}

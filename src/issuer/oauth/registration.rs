//! One exchange with the client configuration endpoint (RFC 7592). In go where it is, the right to it and what is wanted; out comes the
//! registration as the issuer has it, with the place and the right to use from now on. The right goes to no host that the
//! settings do not vouch for (OA-04).

use http::{Method, header};
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use super::{OAuth, OAuthSettings, refusal, settings::misplaced};
use crate::{
    issuer::{
        IssueError, IssueFacts, Reason, answer,
        http::{Request, Response},
        json,
        registration::{Access, Ask, Registration},
    },
    secret::{Secret, scrubbed},
};

/// The longest right to a registration that is kept; a JWT has room in it.
const LONGEST_TOKEN: usize = 8 * 1024;

/// The longest place.
const LONGEST_URI: usize = 2 * 1024;

impl OAuth {
    pub(super) async fn ask_registration(
        &self,
        access: &Access,
        ask: Ask,
    ) -> Result<Registration, IssueError> {
        if let Some(what) = misplaced(&access.uri, &self.settings) {
            return Err(foreign(&access.uri, &what));
        }
        let request = match &ask {
            Ask::Read => Request::get(&access.uri),
            Ask::Replace(document) => Request { method: Method::PUT, ..Request::json(&access.uri, document) },
        };
        // Room for all of it at once: a buffer that grows leaves copies of the token behind.
        let mut bearer = Zeroizing::new(Vec::with_capacity(7 + access.token.len()));
        bearer.extend_from_slice(b"Bearer ");
        bearer.extend_from_slice(access.token.expose());
        let bearer = Secret::new(std::mem::take(&mut *bearer));
        let request = request.with(header::AUTHORIZATION, bearer);
        let mut facts = IssueFacts::default();
        let response = self.exchange(None, request, &mut facts).await?;
        if response.status != 200 {
            return Err(self.no_registration(&response));
        }
        read(&response, access, &self.settings)
    }

    /// Sorts an answer that is no registration.
    fn no_registration(&self, response: &Response) -> IssueError {
        let status = response.status;
        let words = refusal::quoted(response);
        match status {
            401 | 403 => IssueError::Misconfigured {
                reason: Reason::ClientAuthRejected,
                detail: format!(
                    "the issuer answered {words}: the registration access token is good no more; have the issuer give \
                     you another and put it into token_file"
                ),
            },
            404 | 405 | 410 | 501 => IssueError::Misconfigured {
                reason: Reason::IssuerConfig,
                detail: format!(
                    "the issuer answered {words}: it lets no registration be read or changed there (RFC 7592); see \
                     whether uri is right, or take the registration out of the settings"
                ),
            },
            408 | 409 | 425 => IssueError::Retry {
                reason: Reason::IssuerUnavailable,
                detail: format!("the issuer answered {words}"),
                after: answer::retry_after(response, self.clock.wall()),
            },
            400..=428 | 430..=499 => IssueError::Refused {
                reason: Reason::IssuerConfig,
                detail: format!("the issuer refused the registration: it answered {words}"),
            },
            // 429, what is broken there, and what is no answer to this question.
            _ => refusal::classify(response, self.clock.wall()),
        }
    }
}

/// The registration of an answer.
pub(super) fn read(
    response: &Response,
    access: &Access,
    settings: &OAuthSettings,
) -> Result<Registration, IssueError> {
    if !answer::is_json(response) {
        return Err(broken("it is no JSON"));
    }
    let document = json::parse(response.body.expose()).map_err(|error| broken(&error.to_string()))?;
    let Value::Object(mut metadata) = document else { return Err(broken("it is no JSON object")) };
    let (renewed, misplaced) = renewed(access, &mut metadata, settings)?;
    Ok(Registration { metadata, renewed, misplaced })
}

/// The place and the right from now on, if the answer names others (RFC 7592 3). A place that is not the issuer's, or
/// is none, is not gone to; the right counts all the same.
fn renewed(
    used: &Access,
    metadata: &mut Map<String, Value>,
    settings: &OAuthSettings,
) -> Result<(Option<Access>, Option<IssueError>), IssueError> {
    let mut take = |name: &str, longest: usize| match metadata.remove(name) {
        None | Some(Value::Null) => Ok(None),
        // The text is moved: it is wiped with the secret.
        Some(Value::String(text)) => {
            let text = Secret::new(text.into_bytes());
            let fits = !text.is_empty() && text.len() <= longest;
            match fits && text.expose().iter().all(u8::is_ascii_graphic) {
                true => Ok(Some(text)),
                false => Err(broken(&format!("its {name} cannot be one"))),
            }
        }
        Some(_) => Err(broken(&format!("its {name} is not text"))),
    };
    let token = take("registration_access_token", LONGEST_TOKEN)?;
    let (uri, mut fault) = match take("registration_client_uri", LONGEST_URI) {
        Ok(uri) => (uri, None),
        Err(error) => (None, Some(error)),
    };
    let token = token.filter(|token| token.expose() != used.token.expose());
    let mut uri = uri.and_then(|uri| uri.expose_str().map(str::to_owned)).filter(|uri| *uri != used.uri);
    if let Some(named) = &uri
        && let Some(what) = misplaced(named, settings)
    {
        fault = Some(foreign(named, &what));
        uri = None;
    }
    let renewed = (token.is_some() || uri.is_some()).then(|| Access {
        uri: uri.unwrap_or_else(|| used.uri.clone()),
        token: token.unwrap_or_else(|| Secret::new(used.token.expose())),
    });
    Ok((renewed, fault))
}

fn foreign(uri: &str, what: &str) -> IssueError {
    IssueError::Misconfigured {
        reason: Reason::EndpointForeign,
        detail: format!("the registration is said to be at {}: {what}", scrubbed(uri, 200)),
    }
}

fn broken(what: &str) -> IssueError {
    IssueError::Retry {
        reason: Reason::IssuerProtocol,
        detail: format!("the issuer's answer about the registration: {what}"),
        after: None,
    }
}

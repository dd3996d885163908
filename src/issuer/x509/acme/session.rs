//! One attempt's conversation with an ACME server: its directory, its nonces, and signed requests (RFC 8555 6, 7.1.1, 7.2).
//! In go an account's key and what is to be said; out come answers, or the next move. Every URL that the server hands out has to
//! be at the host of the directory: it could have our key sign for, or certificates fetched from, somebody else's.

use std::{collections::BTreeMap, sync::Arc};

use http::{HeaderName, Method, header};
use jiff::Timestamp;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use super::{AcmeSettings, problem::Problem, settings::origin};
use crate::{
    clock::Clock,
    issuer::{
        IssueError, IssueFacts, Reason, answer,
        assertion::no_signature,
        contact::Contact,
        http::{Body, Request, Response},
    },
    jose::{self, Envelope, Signer},
    secret::Secret,
};

/// ACM-01: so often a request is sent with another nonce, because the server did not take the one before.
const NONCES: u32 = 5;

const NONCE: HeaderName = HeaderName::from_static("replay-nonce");
const JOSE: &str = "application/jose+json";

/// Where things are (RFC 8555 7.1.1). What is not used here is not read.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "camelCase")]
pub(super) struct Directory {
    pub(super) new_nonce: String,
    pub(super) new_account: String,
    pub(super) new_order: String,
    #[serde(default)]
    pub(super) revoke_cert: Option<String>,
    #[serde(default)]
    pub(super) key_change: Option<String>,
    /// RFC 9773.
    #[serde(default)]
    pub(super) renewal_info: Option<String>,
    #[serde(default)]
    pub(super) meta: Meta,
}

#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Meta {
    pub(super) terms_of_service: Option<String>,
    /// By name; what they are is told to people.
    pub(super) profiles: BTreeMap<String, Value>,
}

/// One attempt.
pub(super) struct Session<'a> {
    settings: &'a AcmeSettings,
    contact: &'a Contact,
    clock: &'a dyn Clock,
    pub(super) directory: Arc<Directory>,
    nonce: Option<String>,
    pub(super) facts: &'a mut IssueFacts,
}

/// Who signs, and as whom.
#[derive(Clone, Copy)]
pub(super) struct By<'a> {
    pub(super) key: &'a Arc<dyn Signer>,
    /// The account's URL; without it the key is shown.
    pub(super) account: Option<&'a str>,
}

impl<'a> Session<'a> {
    /// Reads the directory.
    pub(super) async fn begin(
        settings: &'a AcmeSettings,
        contact: &'a Contact,
        clock: &'a dyn Clock,
        facts: &'a mut IssueFacts,
    ) -> Result<Self, IssueError> {
        let response = contact.send(None, Request::get(&settings.directory), facts).await?;
        if response.status != 200 {
            return Err(Problem::of(&response).next(response.status, &response, clock.wall()));
        }
        let directory: Directory = read(&response)?;
        let all = [&directory.new_nonce, &directory.new_account, &directory.new_order];
        let more = [&directory.revoke_cert, &directory.key_change, &directory.renewal_info];
        for url in all.into_iter().chain(more.into_iter().flatten()) {
            at_home(settings, url)?;
        }
        Ok(Self { settings, contact, clock, directory: Arc::new(directory), nonce: None, facts })
    }

    pub(super) fn now(&self) -> Timestamp {
        self.clock.wall()
    }

    /// ACM-01: a signed POST, with another nonce where the server wants one. Answers with a status of 400 and above are problems.
    pub(super) async fn post(
        &mut self,
        by: By<'_>,
        url: &str,
        payload: Option<&Value>,
    ) -> Result<Result<Response, (Problem, IssueError)>, IssueError> {
        at_home(self.settings, url)?;
        for _ in 0..NONCES {
            let nonce = self.take_nonce().await?;
            let envelope = Envelope { url, nonce: Some(&nonce), account: by.account };
            let jws = jose::sign_flattened(&**by.key, envelope, payload).map_err(no_signature)?;
            let body = Body { media_type: JOSE, content: Secret::new(jws.to_string()) };
            // A certificate is asked for in the one form that every server has (RFC 8555 7.4.2).
            let request = Request::post(url, body)
                .with(header::ACCEPT, Secret::new("application/json, application/pem-certificate-chain"));
            let response = self.contact.send(None, request, self.facts).await?;
            self.keep_nonce(&response);
            if response.status < 400 {
                return Ok(Ok(response));
            }
            let problem = Problem::of(&response);
            if problem.name() != "badNonce" {
                let next = problem.next(response.status, &response, self.now());
                return Ok(Err((problem, next)));
            }
        }
        let detail = format!("the ACME server took none of {NONCES} nonces of its own");
        Err(IssueError::Retry { reason: Reason::IssuerProtocol, detail, after: None })
    }

    /// The same, where a problem is not mended here.
    pub(super) async fn ask(
        &mut self,
        by: By<'_>,
        url: &str,
        payload: Option<&Value>,
    ) -> Result<Response, IssueError> {
        self.post(by, url, payload).await?.map_err(|(_, next)| next)
    }

    async fn take_nonce(&mut self) -> Result<String, IssueError> {
        if let Some(nonce) = self.nonce.take() {
            return Ok(nonce);
        }
        let request = Request { method: Method::HEAD, ..Request::get(&self.directory.new_nonce) };
        let response = self.contact.send(None, request, self.facts).await?;
        self.keep_nonce(&response);
        self.nonce.take().ok_or_else(|| match response.status {
            ..400 => protocol("the ACME server gave no nonce"),
            status => Problem::of(&response).next(status, &response, self.now()),
        })
    }

    /// RFC 8555 6.5.1: base64url, or it is none.
    fn keep_nonce(&mut self, response: &Response) {
        let sound = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        let nonce = response.header(NONCE).filter(|nonce| (1..=512).contains(&nonce.len()));
        self.nonce = nonce.filter(|nonce| nonce.bytes().all(sound)).map(str::to_owned);
    }
}

/// Where a resource is that was made.
pub(super) fn location(response: &Response) -> Result<String, IssueError> {
    let told = response.header(header::LOCATION).map(str::to_owned);
    told.ok_or_else(|| protocol("the ACME server did not say where it put what it made (Location)"))
}

pub(super) fn read<T: DeserializeOwned>(response: &Response) -> Result<T, IssueError> {
    if !answer::is_json(response) {
        return Err(protocol("the ACME server answered with something that is no JSON"));
    }
    serde_json::from_slice(response.body.expose())
        .map_err(|_| protocol("the ACME server answered with JSON of another form (RFC 8555 7.1)"))
}

/// Whether `url` is at the host of the directory.
pub(super) fn at_home(settings: &AcmeSettings, url: &str) -> Result<(), IssueError> {
    let home = origin(&settings.directory);
    if home.is_some() && origin(url) == home && !url.contains('@') {
        return Ok(());
    }
    Err(IssueError::Misconfigured {
        reason: Reason::EndpointForeign,
        detail: format!(
            "the ACME server names a URL that is not at the host of its directory ({}): nothing was sent there",
            answer::clean(url, 80)
        ),
    })
}

pub(super) fn protocol(detail: &str) -> IssueError {
    IssueError::Retry { reason: Reason::IssuerProtocol, detail: detail.into(), after: None }
}

//! The embedded development issuer: an authorization server for machines that knows no shared secret. Its grants are
//! `client_credentials`, token exchange and the JWT of an issuer it trusts; its tokens are bearers' or bound to a
//! key. In go requests; out come RFC 9068 tokens. It never forgives: what the standards demand of an authorization
//! server is enforced.
//!
//! ```text
//!  GET  /.well-known/oauth-authorization-server   RFC 8414      POST /dev/clients   register a client
//!  GET  /jwks                                     RFC 7517      POST /dev/trust     believe another issuer
//!  POST /token                                    RFC 6749      POST /dev/fault     behave badly
//!  POST /revoke                                   RFC 7009      GET  /dev/diary     what was asked
//!  POST /introspect                               RFC 7662      ... /1.0/*, /root*  a small CA
//!  POST /introspect                               RFC 7662
//!  GET  PUT /register/CLIENT                      RFC 7592
//! ```

mod afterwards;
mod assertion;
mod authority;
mod binding;
mod chaining;
mod desk;
mod details;
mod develop;
mod diary;
mod entrance;
mod exchange;
mod faults;
mod form;
mod grants;
mod metadata;
mod refusal;
mod register;
mod registration;
mod spiffe;
mod token;
mod trust;
mod vouched;

use std::{future::Future, sync::Arc, time::Duration};

use serde_json::Value;

pub use diary::{Counts, Diary, DiaryEntry, DiaryProof};
pub use faults::{Fault, FaultError};
pub use register::{Client, Federated, RegisterError};

pub(in crate::dev) use register::is_scope_token;

use self::{authority::Authority, desk::Desk};
use crate::{
    clock::{Clock, Dice},
    dev::{
        DevError,
        http::{Ask, Door},
    },
    jose::{Algorithm, PublicKey, Signer},
    keys::Key,
};

/// How the development issuer is set up.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DevIssuerSettings {
    /// The port on 127.0.0.1; 0 takes any free one.
    pub port: u16,
    /// How long its tokens live, in whole seconds; 300 s by default.
    pub token_life: Duration,
    /// The longest `exp - iat` of a client assertion, in whole seconds; 60 s by default (PKJ-07).
    pub assertion_life: Duration,
    /// The host's environment; `prod` and `production` are refused.
    pub environment: String,
    /// Whether a DPoP proof needs a nonce of the issuer's (RFC 9449 8); it does by default (DPOP-07).
    pub dpop_nonces: bool,
    /// How long its certificates live at most, and if nobody says; in whole seconds, 24 hours by default.
    pub certificate_life: Duration,
}

impl Default for DevIssuerSettings {
    fn default() -> Self {
        Self {
            port: 0,
            token_life: Duration::from_secs(300),
            assertion_life: Duration::from_secs(60),
            environment: "dev".into(),
            dpop_nonces: true,
            certificate_life: Duration::from_secs(24 * 60 * 60),
        }
    }
}

/// The issuer, bound but not running.
#[derive(Debug)]
pub struct DevIssuer {
    door: Door,
    handle: Handle,
}

impl DevIssuer {
    /// Binds the port and makes a signing key; serves nothing yet.
    ///
    /// # Errors
    /// [`DevError::Environment`] on a production host, [`DevError::Setting`] for a life of zero,
    /// [`DevError::Bind`] and [`DevError::Key`] from below.
    pub fn bind(
        settings: DevIssuerSettings,
        clock: Arc<dyn Clock>,
        dice: Arc<dyn Dice>,
    ) -> Result<Self, DevError> {
        let environment = settings.environment.trim().to_ascii_lowercase();
        if environment == "prod" || environment == "production" {
            return Err(DevError::Environment { name: settings.environment });
        }
        if settings.token_life.as_secs() == 0 {
            return Err(DevError::Setting { key: "token_life", what: "a token lives at least one second" });
        }
        if !(1..=3600).contains(&settings.assertion_life.as_secs()) {
            return Err(DevError::Setting { key: "assertion_life", what: "write 1 s to 3600 s" });
        }
        if !(10..=7 * 24 * 60 * 60).contains(&settings.certificate_life.as_secs()) {
            return Err(DevError::Setting { key: "certificate_life", what: "write 10 s to 7 days" });
        }
        let key = Key::generate(Algorithm::Es256).map_err(|_| DevError::Key)?;
        let door = Door::bind(settings.port)?;
        let authority = Authority::new(clock.wall())?;
        let desk = Desk::new(door.url(), key, authority, settings, clock, dice);
        Ok(Self { door, handle: Handle(Arc::new(desk)) })
    }

    /// The issuer identifier: `http://127.0.0.1:PORT`.
    pub fn url(&self) -> &str {
        self.handle.url()
    }

    /// A door of its own to registration, faults and the diary, while it runs and after.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Registers a client, or replaces the one of that name.
    ///
    /// # Errors
    /// [`RegisterError`] says which part cannot be used.
    pub fn register(&self, client: Client) -> Result<(), RegisterError> {
        self.handle.register(client)
    }

    /// The public keys of its tokens, as a JWK set.
    pub fn jwks(&self) -> Value {
        self.handle.jwks()
    }

    /// Serves until `shutdown` ends, then a second more for answers under way.
    ///
    /// # Errors
    /// [`DevError::Bind`] if the socket cannot be served.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), DevError> {
        let clock = Arc::clone(&self.handle.0.clock);
        let desk = self.handle.0;
        let answer = move |ask: Ask| {
            let desk = Arc::clone(&desk);
            async move { desk.answer(ask).await }
        };
        self.door.serve(clock, answer, shutdown).await
    }
}

/// A cheap handle to a development issuer, running or not.
#[derive(Clone, Debug)]
pub struct Handle(Arc<Desk>);

impl Handle {
    /// The issuer identifier: `http://127.0.0.1:PORT`.
    pub fn url(&self) -> &str {
        &self.0.url
    }

    /// Registers a client, or replaces the one of that name.
    ///
    /// # Errors
    /// [`RegisterError`] says which part cannot be used.
    pub fn register(&self, client: Client) -> Result<(), RegisterError> {
        self.0.register(client).map(|_| ())
    }

    /// Where the registration of a client is (RFC 7592), and another right to it: the one before is good no more. None if there is
    /// no such client.
    pub fn registration(&self, client_id: &str) -> Option<(String, String)> {
        self.0.right(client_id)
    }

    /// Believes the JWTs of `issuer` from now on, by the keys of the JWK set `jwks` alone. A name that begins with
    /// `spiffe://` is a trust domain's.
    ///
    /// # Errors
    /// [`RegisterError`] says which part cannot be used.
    pub fn trust(&self, issuer: &str, jwks: &Value) -> Result<(), RegisterError> {
        self.0.books().trust.add(issuer, jwks)
    }

    /// Behaves badly in this way for the next `times` requests that the fault bites, or until further notice.
    pub fn set_fault(&self, fault: Fault, times: Option<u32>) {
        self.0.books().knob.set(fault, times);
    }

    /// What was asked so far.
    pub fn diary(&self) -> Diary {
        self.0.books().diary.clone()
    }

    /// The public keys of its tokens, as a JWK set.
    pub fn jwks(&self) -> Value {
        self.0.jwks()
    }

    /// The public keys of its tokens, each with its algorithm.
    pub fn keys(&self) -> Vec<(PublicKey, Algorithm)> {
        vec![(self.0.key.public().clone(), self.0.key.algorithm())]
    }

    /// The SHA-256 of the root of its CA, in hexadecimal digits.
    pub fn root_sum(&self) -> String {
        self.0.authority.root_sum().to_owned()
    }

    /// The certificates that it made for a client, by serial number in decimal digits, and whether each was revoked.
    pub fn certificates(&self, client_id: &str) -> Vec<(String, bool)> {
        let books = self.0.books();
        let theirs = books.certified.iter().filter(|(_, (owner, _))| owner == client_id);
        theirs.map(|(serial, (_, revoked))| (serial.clone(), *revoked)).collect()
    }

    /// The dice it was given.
    pub(in crate::dev) fn dice(&self) -> &dyn Dice {
        &*self.0.dice
    }

    /// Whether the token with this `jti` was revoked before its time.
    pub fn is_revoked(&self, jti: &str) -> bool {
        self.0.books().revoked.holds(jti)
    }
}

//! `keybearer.v1.Operator`: what the agent tells whoever runs it. In goes a question on the operators' socket; out comes how
//! things are and why. No call here hands out a credential.

use std::{collections::BTreeMap, future::Future, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use hyper::body::Incoming;
use prost_types::Timestamp;
use tokio::sync::{mpsc, oneshot, watch};
use tonic::{Request, Response, Status, body::Body, service::Routes};
use tower::Service as _;

use super::{
    framed::{Framed, foreign},
    ready::Readiness,
    status::told,
};
use crate::{
    attest::Errand,
    broker::Health,
    clock::{Boot, Clock},
    journey::{Journey, Session},
    keys::{Ending, Values},
    policy::{Door, Miss, Reason, name_is_sound},
    proto::v1::{
        ActResponse, DisableRequest, EnableRequest, ExceptionStatus, ExplainRequest, ExplainResponse, Fact,
        IdentityStatus, IssuerStatus, LedgerStatus, NearMiss, ReloadRequest, ReloadResponse, RevokeRequest,
        RotateRequest, SealRequest, SealedStatus, ShelfStatus, StatusRequest, StatusResponse,
        operator_server::{Operator, OperatorServer},
    },
    secret::Secret,
    wire::Admission,
};

/// What the daemon knows and the rooms do not.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Name of the environment.
    pub environment: String,
    /// The strongest level this host and these privileges can prove, and why not more.
    pub max_level: (String, String),
    /// The keys of each identity.
    pub keys: BTreeMap<String, KeyFacts>,
    /// The identities that are switched off, and why.
    pub disabled: BTreeMap<String, String>,
    /// The URL of each issuer.
    pub issuers: BTreeMap<String, String>,
    /// The certificates that the agent cannot make anew; what is to be said of them depends on when it is asked.
    pub endings: Vec<Ending>,
    /// The secrets that are the same each time.
    pub sealed: Vec<SealedStatus>,
    /// What is wrong, worst first.
    pub warnings: Vec<String>,
    /// Why the last reload failed, if the settings in force are older than the file.
    pub reload_error: String,
    /// Whether keys and tokens are kept out of swap for certain, and in words.
    pub memory: (bool, String),
}

/// The keys of an identity that issuers have to know, by their ids.
#[derive(Clone, Debug, Default)]
pub struct KeyFacts {
    /// The one that signs.
    pub kid: String,
    /// With what.
    pub algorithm: String,
    /// The one that is published and will sign once every issuer takes it.
    pub next: Option<String>,
    /// The one that signed before, as long as what it signed is good.
    pub before: Option<String>,
    /// How long it had signed, and when that was.
    pub age: Option<(Duration, Boot)>,
    /// How old it may become.
    pub every: Option<Duration>,
}

/// What an operator may have the daemon do.
#[derive(Debug)]
pub enum Act {
    /// Read the settings again.
    Reload,
    /// Publish the identity's next key, or try now whether its issuers take it.
    Rotate {
        /// Whose.
        identity: String,
    },
    /// End credentials before their time.
    Revoke {
        /// Whose.
        identity: String,
        /// Only the one of this name.
        credential: Option<String>,
        /// Destroy the identity's keys too, and make others.
        keys: bool,
    },
    /// Switch an identity off.
    Disable {
        /// Which.
        identity: String,
        /// Why.
        reason: String,
    },
    /// Switch it on again.
    Enable {
        /// Which.
        identity: String,
    },
    /// Put in what a sealed credential hands out.
    Seal {
        /// Whose.
        identity: String,
        /// Which of its credentials.
        credential: String,
        /// Its values by name; what is not named stays.
        values: Values,
        /// Who says so, for the record.
        by: String,
    },
    /// Take it away.
    Unseal {
        /// Whose.
        identity: String,
        /// Which of its credentials.
        credential: String,
        /// Who says so, for the record.
        by: String,
    },
}

/// An act, and where to say what came of it: what was done, or what is wrong.
pub type Ordered = (Act, oneshot::Sender<Result<Vec<String>, Vec<String>>>);

/// The face.
#[derive(Debug)]
pub struct Face {
    /// The rooms.
    pub journey: Arc<Journey>,
    /// What the daemon knows.
    pub facts: Arc<ArcSwap<Facts>>,
    /// Who is connected where.
    pub admissions: Vec<Arc<Admission>>,
    /// The way to the daemon.
    pub orders: mpsc::Sender<Ordered>,
    /// For lengths of time.
    pub clock: Arc<dyn Clock>,
    /// When the agent started.
    pub started: Boot,
    /// Says that the agent is stopping.
    pub stop: watch::Receiver<bool>,
}

/// Everything on the operators' socket.
#[derive(Clone, Debug)]
pub struct Operators(Routes);

impl Operators {
    /// The services of the operators' socket.
    pub fn new(face: Face) -> Self {
        Self(Routes::new(OperatorServer::new(face).max_decoding_message_size(64 << 10)).prepare())
    }

    /// Answers one call.
    pub fn answer(
        &self,
        session: Arc<Session>,
        request: http::Request<Incoming>,
    ) -> impl Future<Output = http::Response<Framed>> + Send + use<> {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(session);
        let answered = self.0.clone().call(request);
        async move { foreign(answered.await) }
    }
}

impl Face {
    fn issuer(&self, name: &str, url: &str, health: Option<&Health>, now: Boot) -> IssuerStatus {
        let health = health.cloned().unwrap_or_default();
        let state = match (&health.last_ok, health.failures) {
            _ if health.open(now) => "open",
            (_, 1..) => "failing",
            (Some(_), 0) => "ok",
            (None, 0) => "unused",
        };
        IssuerStatus {
            name: name.into(),
            url: url.into(),
            state: state.into(),
            failures: health.failures,
            next_try: health.next_try.and_then(|next| prost_types::Duration::try_from(next.since(now)).ok()),
            last_error: health.last_error.unwrap_or_default(),
            skew_ms: health.skew_ms,
            last_success: health.last_ok.and_then(|at| length(now.since(at))),
            failing_for: health.failing_since.and_then(|at| length(now.since(at))),
        }
    }

    /// What is weaker than it should be, as long as that is allowed; what ends first comes first.
    fn exceptions(&self) -> Vec<ExceptionStatus> {
        let (rules, wall) = (self.journey.rules(), self.clock.wall());
        let mut all: Vec<ExceptionStatus> = rules
            .policy
            .identities()
            .flat_map(|identity| identity.credentials.values().map(move |rule| (identity, rule)))
            .filter_map(|(identity, rule)| {
                let exception = rule.exception.as_ref()?;
                let left = exception.until.duration_since(wall);
                Some(ExceptionStatus {
                    identity: identity.name.to_string(),
                    credential: rule.name.to_string(),
                    weakness: rule.weakness().into(),
                    until: Some(Timestamp { seconds: exception.until.as_second(), nanos: 0 }),
                    left: Some(prost_types::Duration { seconds: left.as_secs(), nanos: 0 }),
                    reason: exception.reason.clone(),
                    owner: exception.owner.clone(),
                })
            })
            .collect();
        all.sort_by_key(|one| {
            (one.until.map_or(0, |until| until.seconds), one.identity.clone(), one.credential.clone())
        });
        all
    }
}

fn length(length: Duration) -> Option<prost_types::Duration> {
    prost_types::Duration::try_from(length).ok()
}

/// How many descriptors are open, and how many may be.
fn descriptors() -> (u32, u64) {
    // The one that reads the directory is open while it is counted.
    let open = std::fs::read_dir("/proc/self/fd").map_or(0, |all| all.count().saturating_sub(1));
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    (u32::try_from(open).unwrap_or(u32::MAX), limit.unwrap_or(u64::MAX))
}

#[tonic::async_trait]
impl Operator for Face {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let now = self.clock.boot();
        let (facts, report, rules) =
            (self.facts.load(), self.journey.broker().report(), self.journey.rules());
        let ledger = self.journey.ledger().health();
        let identities = rules.policy.identities().map(|identity| {
            let keys = facts.keys.get(&*identity.name).cloned().unwrap_or_default();
            IdentityStatus {
                name: identity.name.to_string(),
                owner: identity.owner.clone(),
                assurance: identity.assurance.as_str().into(),
                credentials: identity.credentials.keys().map(ToString::to_string).collect(),
                kid: keys.kid,
                algorithm: keys.algorithm,
                next_kid: keys.next.unwrap_or_default(),
                kid_before: keys.before.unwrap_or_default(),
                disabled: facts.disabled.get(&*identity.name).cloned().unwrap_or_default(),
                bindings: identity
                    .credentials
                    .values()
                    .map(|rule| (rule.name.to_string(), rule.binding.to_string()))
                    .collect(),
            }
        });
        let issuers = facts
            .issuers
            .iter()
            .map(|(name, url)| self.issuer(name, url, report.issuers.get(name.as_str()), now));
        let shelf = report.shelf.iter().map(|entry| {
            let window = entry.credential.as_ref().map(|credential| credential.window);
            let until = window.map(|window| window.until_wall);
            ShelfStatus {
                identity: entry.order.identity.to_string(),
                credential: entry.order.credential.to_string(),
                issuer: entry.order.issuer.to_string(),
                expires_at: until.map(|until| Timestamp { seconds: until.as_second(), nanos: 0 }),
                expires_in: window.and_then(|window| length(window.left(now))),
                refresh_in: entry.refresh_at.and_then(|at| length(at.since(now))),
                scope: entry.order.scope.iter().map(ToString::to_string).collect(),
                fingerprint: entry
                    .credential
                    .as_ref()
                    .map(|it| it.fingerprint.to_string())
                    .unwrap_or_default(),
                last_error: entry.last_error.clone().unwrap_or_default(),
            }
        });
        let mut shelf: Vec<ShelfStatus> = shelf.collect();
        shelf.sort_by(|one, other| {
            (&one.identity, &one.credential).cmp(&(&other.identity, &other.credential))
        });
        let readiness = Readiness::of(&self.journey, *self.stop.borrow());
        let (descriptors, descriptors_limit) = descriptors();
        let mut warnings = self.journey.alarms();
        let wall = self.clock.wall();
        let mut endings: Vec<Ending> = facts.endings.iter().cloned().chain(report.endings()).collect();
        endings.sort_by_key(|ending| std::cmp::Reverse(ending.urgency(wall)));
        warnings.extend(endings.into_iter().filter_map(|ending| ending.words(wall)));
        warnings.extend(facts.warnings.iter().cloned());
        if !ledger.healthy {
            warnings.insert(
                0,
                format!(
                    "the ledger in {} cannot be written: make room or mend it",
                    ledger.directory.display()
                ),
            );
        }
        Ok(Response::new(StatusResponse {
            version: env!("CARGO_PKG_VERSION").into(),
            environment: facts.environment.clone(),
            config_digest: self.journey.ledger().config_digest(),
            uptime: length(now.since(self.started)),
            max_level: facts.max_level.0.clone(),
            max_level_why: facts.max_level.1.clone(),
            identities: identities.collect(),
            issuers: issuers.collect(),
            shelf,
            ledger: Some(LedgerStatus {
                directory: ledger.directory.display().to_string(),
                records: ledger.records,
                healthy: ledger.healthy,
                unsigned: ledger.unsigned,
                checkpoint_age: ledger.kept.and_then(|at| length(now.since(at))),
            }),
            connections: self.admissions.iter().map(|admission| admission.connected() as u32).sum(),
            turned_away: self.admissions.iter().map(|admission| admission.turned_away()).sum(),
            warnings,
            reload_error: facts.reload_error.clone(),
            sealed: facts.sealed.clone(),
            readiness: readiness.state.into(),
            readiness_why: readiness.why,
            exceptions: self.exceptions(),
            descriptors,
            descriptors_limit,
            memory: facts.memory.1.clone(),
            memory_locked: facts.memory.0,
        }))
    }

    async fn explain(&self, request: Request<ExplainRequest>) -> Result<Response<ExplainResponse>, Status> {
        let session = request.extensions().get::<Arc<Session>>().cloned();
        let session = session.ok_or_else(|| Status::internal("no session"))?;
        let ExplainRequest { pid, name, unit, slice, scope, export } = request.into_inner();
        if (pid == 0) == unit.is_empty() || name.len() > 255 || slice.len() > 255 {
            return Err(Status::invalid_argument(
                "give the pid of a process of this host or the name of a unit, and a credential's name or none",
            ));
        }
        let explained = if unit.is_empty() {
            let door = self.door(&export)?;
            let explained = self.journey.explain(&session, pid, (&name, &scope, &door)).await;
            let explained = explained.map_err(|no| told(&no).status())?;
            explained.map_err(|error| Status::not_found(format!("pid {pid}: {error}")))?
        } else {
            let errand = Errand::imagined(&unit, if name.is_empty() { "-" } else { &name });
            let errand =
                errand.ok_or_else(|| Status::invalid_argument("that is no unit that could ask for that"))?;
            let slice = if slice.is_empty() { "system.slice" } else { &slice };
            // The unit may want one field of it.
            let name = name.split('.').next().unwrap_or_default();
            if !scope.is_empty() || !export.is_empty() {
                return Err(Status::invalid_argument(
                    "a unit asks at the service manager's socket, for all of it",
                ));
            }
            let explained = self.journey.explain_errand(&session, errand, slice, name).await;
            explained.map_err(|no| told(&no).status())?
        };
        let explanation = &explained.explanation;
        let identity = explanation.identity.as_deref().unwrap_or_default();
        let mut missing = explanation.missed.clone();
        if explained.reason == Some(Reason::Disabled)
            && let Some(why) = self.facts.load().disabled.get(identity)
        {
            missing.push(format!("the reason given: {why}"));
        }
        let fact = |(name, value): &(&'static str, Result<String, String>)| Fact {
            name: (*name).into(),
            value: value.clone().unwrap_or_default(),
            missing: value.clone().err().unwrap_or_default(),
        };
        Ok(Response::new(ExplainResponse {
            granted: explained.reason.is_none(),
            reason: explained.reason.map(|reason| reason.as_str().to_owned()).unwrap_or_default(),
            remedy: explained.reason.map(|reason| explanation.remedy(reason, &name)).unwrap_or_default(),
            identity: identity.into(),
            rule: explanation.rule().unwrap_or_default(),
            level: explanation.level.to_string(),
            evidence: explained.facts.iter().map(fact).collect(),
            missing,
            near: explanation
                .near
                .iter()
                .map(|near| NearMiss {
                    identity: near.identity.to_string(),
                    selectors: near.of as u32,
                    missed: near.missed.iter().map(ToString::to_string).collect(),
                    remedies: near.missed.iter().map(Miss::remedy).collect(),
                })
                .collect(),
        }))
    }

    async fn reload(&self, _: Request<ReloadRequest>) -> Result<Response<ReloadResponse>, Status> {
        let (reloaded, messages) = self.have(Act::Reload).await?;
        Ok(Response::new(ReloadResponse { reloaded, messages }))
    }

    async fn rotate(&self, request: Request<RotateRequest>) -> Result<Response<ActResponse>, Status> {
        let RotateRequest { identity } = request.into_inner();
        self.done(Act::Rotate { identity }).await
    }

    async fn revoke(&self, request: Request<RevokeRequest>) -> Result<Response<ActResponse>, Status> {
        let RevokeRequest { identity, credential, keys } = request.into_inner();
        let credential = Some(credential).filter(|name| !name.is_empty());
        self.done(Act::Revoke { identity, credential, keys }).await
    }

    async fn disable(&self, request: Request<DisableRequest>) -> Result<Response<ActResponse>, Status> {
        let DisableRequest { identity, reason } = request.into_inner();
        if !(3..=256).contains(&reason.len()) || reason.chars().any(char::is_control) {
            return Err(Status::invalid_argument(
                "give a reason, 3 to 256 printable characters: it is on record",
            ));
        }
        self.done(Act::Disable { identity, reason }).await
    }

    async fn enable(&self, request: Request<EnableRequest>) -> Result<Response<ActResponse>, Status> {
        let EnableRequest { identity } = request.into_inner();
        self.done(Act::Enable { identity }).await
    }

    async fn seal(&self, request: Request<SealRequest>) -> Result<Response<ActResponse>, Status> {
        let session = request.extensions().get::<Arc<Session>>().cloned();
        let session = session.ok_or_else(|| Status::internal("no session"))?;
        let by = format!("uid {}, pid {}", session.peer().uid(), session.peer().pid());
        let SealRequest { identity, credential, values, remove } = request.into_inner();
        let values: Values = values.into_iter().map(|(name, value)| (name, Secret::new(value))).collect();
        // Both become part of a file's name.
        if !name_is_sound(&identity) || !name_is_sound(&credential) {
            return Err(Status::invalid_argument("a name is 1 to 63 of a-z, 0-9, - and _"));
        }
        if values.is_empty() != remove {
            return Err(Status::invalid_argument(
                "give values to put in, or say that all is to be taken away",
            ));
        }
        self.done(match remove {
            true => Act::Unseal { identity, credential, by },
            false => Act::Seal { identity, credential, values, by },
        })
        .await
    }
}

impl Face {
    /// The socket that an operator means: an exported one, by its name or its path, or else the agent's own.
    fn door(&self, export: &str) -> Result<Door, Status> {
        if export.is_empty() {
            return Ok(Door::Own);
        }
        let rules = self.journey.rules();
        let mut exports = rules.policy.exports().iter();
        let found = exports.find(|(name, it)| ***name == *export || it.path.as_os_str() == export);
        let Some((_, found)) = found else {
            let names: Vec<&str> = rules.policy.exports().keys().map(|name| &**name).collect();
            let there = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            return Err(Status::invalid_argument(format!("there is no such export; there are {there}")));
        };
        Ok(Door::Export(found.path.clone().into()))
    }

    /// Has the daemon do it.
    async fn have(&self, act: Act) -> Result<(bool, Vec<String>), Status> {
        let (answer, answered) = oneshot::channel();
        let closed = || Status::unavailable("the agent is shutting down");
        self.orders.send((act, answer)).await.map_err(|_| closed())?;
        Ok(match answered.await.map_err(|_| closed())? {
            Ok(messages) => (true, messages),
            Err(messages) => (false, messages),
        })
    }

    async fn done(&self, act: Act) -> Result<Response<ActResponse>, Status> {
        let (done, messages) = self.have(act).await?;
        Ok(Response::new(ActResponse { done, messages }))
    }
}

//! How an exchange is written down. In go the slips it collected on its way; out comes an entry for the ledger, which
//! answers who called what, from where, under which decision (S28).
//! Over 400 lines, because records of all kinds have the same parts, and each is filled in one place.

use std::{sync::Arc, time::Duration};

use uuid::Uuid;

use super::{
    Journey, Party, Request, Rules, Session,
    reuse::{Owner, Reuse, Why},
    session::Release,
};
use crate::{
    attest::{AttestError, Errand, Evidence, Manager, Missing, Peer, Status, Workload},
    audit::{
        ApiPart, CredentialPart, Entry, ErrandPart, EventType, ExePart, HolderPart, IssuerPart, Line,
        Outcome, PeerPart, PolicyPart, ProcessPart, TargetPart, UnitPart, WorkloadPart,
    },
    broker::{Failure, Fetched, Renewed, Reused, Revoked, Source},
    clock::uuid_v7,
    credential::{Bound, Credential},
    issuer::{Instance, IssueFacts, Order},
    policy::{Denial, Door, Entitlement, Explanation, Grant, Purpose},
    proof::{Proof, Target},
    secret::{Fingerprint, hex, scrubbed},
};

/// One exchange under way.
pub(super) struct Account<'a> {
    exchange: Uuid,
    session: &'a Session,
    request: &'a Request,
    /// The request to an API that it is about, if it is about one.
    target: Option<TargetPart>,
    /// The handle of a credential that the caller says it holds.
    handle: Option<Fingerprint>,
    rules: &'a Arc<Rules>,
}

impl<'a> Account<'a> {
    pub(super) fn open(
        journey: &Journey,
        session: &'a Session,
        request: &'a Request,
        rules: &'a Arc<Rules>,
    ) -> Self {
        Self {
            exchange: uuid_v7(journey.clock.wall(), &*journey.dice),
            session,
            request,
            target: None,
            handle: None,
            rules,
        }
    }

    /// An exchange with a credential that the caller says it holds.
    pub(super) fn with(self, handle: Option<Fingerprint>) -> Self {
        Self { handle, ..self }
    }

    /// An exchange for this purpose.
    pub(super) fn about(self, purpose: &Purpose<'_>) -> Self {
        let target = match purpose {
            Purpose::Nothing | Purpose::Take => None,
            Purpose::Prove(wanted) => Some(TargetPart {
                htm: wanted.method.to_owned(),
                origin: wanted.target.origin().to_owned(),
                ..TargetPart::default()
            }),
            // Where it goes is decided by policy: until then, only what was asked for is known.
            Purpose::Forward(wanted) => Some(TargetPart {
                htm: wanted.method.to_owned(),
                origin: scrubbed(wanted.origin.unwrap_or_default(), 256),
                path: Some(wanted.path.as_str().to_owned()),
                ..TargetPart::default()
            }),
        };
        Self { target, ..self }
    }

    /// It goes there, by a grant.
    pub(super) fn bound_for(mut self, target: &Target) -> Self {
        if let Some(part) = &mut self.target {
            part.origin = target.origin().to_owned();
        }
        self
    }

    /// Whose it is.
    pub(super) fn uid(&self) -> u32 {
        self.session.peer().uid()
    }

    pub(super) fn unattested(self, error: &AttestError) -> Entry {
        let mut entry = self.entry(EventType::AttestationFailure, Outcome::Denied);
        entry.peer = Some(bare_peer(self.session.peer()));
        entry.credential = Some(self.wished());
        entry.because(error.reason()).detail(error.to_string())
    }

    pub(super) fn denied(self, workload: &Workload, denial: &Denial) -> Entry {
        let explanation = &denial.explanation;
        let mut entry = self.entry(EventType::Denial, Outcome::Denied);
        entry.workload = explanation.identity.as_ref().map(|identity| self.workload(identity, None, None));
        entry.peer = Some(peer(workload));
        entry.credential = Some(self.wished());
        entry.policy = Some(self.policy("deny", explanation));
        entry.because(denial.reason.as_str())
    }

    pub(super) fn failed(self, workload: &Workload, grant: &Grant, failure: &Failure) -> Entry {
        let mut entry = self.granted(EventType::IssueFailure, Outcome::Failed, workload, grant);
        let reason = match failure {
            Failure::Issue { error, attempts, facts, .. } => {
                entry.issuer_response = Some(issuer(facts, Some(*attempts)));
                error.reason().as_str()
            }
            Failure::TtlUnmet { .. } => "TTL_UNMET",
            Failure::Closed => "CLOSED",
        };
        entry.because(reason).detail(failure.to_string())
    }

    /// The handle that is used here, and by whom.
    pub(super) fn uses(&self) -> Option<(Party, Fingerprint)> {
        self.handle.map(|handle| (Party::of(self.session.peer()), handle))
    }

    /// An alarm: a handle is used by somebody to whom it was not given.
    pub(super) fn reused(&self, workload: Option<&Workload>, identity: Option<&str>, reuse: &Reuse) -> Entry {
        let outcome = if reuse.why.is_refused() { Outcome::Denied } else { Outcome::Success };
        let mut entry = self.entry(EventType::ReuseDetected, outcome);
        entry.workload = identity.map(|identity| self.workload(identity, None, None));
        entry.peer = Some(workload.map_or_else(|| bare_peer(self.session.peer()), peer));
        entry.credential = Some(CredentialPart {
            token_hash: self.handle.map(|handle| handle.to_string()),
            ..self.wished()
        });
        let process = |one: &Instance| ProcessPart { pid: one.pid, start: one.start };
        entry.holder = Some(HolderPart {
            id: reuse.owner.identity.to_string(),
            credential: reuse.owner.credential.to_string(),
            processes: reuse.given_to.iter().map(process).collect(),
        });
        let (pid, uid) = (self.session.peer().pid(), self.session.peer().uid());
        let who = identity.unwrap_or("nobody this agent knows");
        let pids: Vec<String> = reuse.given_to.iter().map(|one| one.pid.to_string()).collect();
        let given = if pids.is_empty() { "others".into() } else { format!("pid {}", pids.join(", ")) };
        let Owner { identity, credential, .. } = &reuse.owner;
        let what = match reuse.why {
            Why::ForeignIdentity => "which is another's",
            Why::ForeignProcess => "which is another process's alone",
            Why::NeverGiven => "which its identity may use, but which was never given to it",
        };
        entry.because(reuse.why.as_str()).detail(format!(
            "pid {pid} of uid {uid}, {who}, used the handle of {identity}.{credential}, {what}; it was given to {given}"
        ))
    }

    /// A signal: something about who uses an identity, or from where, that somebody should know before it goes on.
    pub(super) fn signal(
        &self,
        (kind, outcome): (EventType, Outcome),
        workload: &Workload,
        identity: &str,
        (reason, detail): (&str, &str),
    ) -> Entry {
        let mut entry = self.entry(kind, outcome);
        entry.workload = Some(self.workload(identity, None, None));
        entry.peer = Some(peer(workload));
        entry.credential = Some(self.wished());
        entry.because(reason).detail(detail)
    }

    /// A credential was handed out, and whether that is told anew: what was said last on this connection is said again without
    /// being spelled out, if nothing of it has changed.
    pub(super) fn released(
        self,
        workload: &Arc<Workload>,
        grant: &Grant,
        credential: &Arc<Credential>,
        source: &Source,
    ) -> (Line, bool) {
        if *source != Source::Cache {
            return (self.release(workload, grant, credential, source).into(), true);
        }
        let of = Release {
            workload: Arc::downgrade(workload),
            rules: Arc::downgrade(self.rules),
            credential: Arc::downgrade(credential),
            name: self.request.name.clone(),
            scope: self.request.scope.clone(),
        };
        if let Some(told) = self.session.told(&of) {
            return (Line::again(&told, self.exchange, self.request.trace_id.clone()), false);
        }
        let session = self.session;
        let line = Line::from(self.release(workload, grant, credential, source));
        session.tell(of, line.told());
        (line, true)
    }

    fn release(self, workload: &Workload, grant: &Grant, credential: &Credential, source: &Source) -> Entry {
        let kind = match source {
            Source::Cache => EventType::CredentialRelease,
            Source::Issuer(_) => EventType::CredentialIssue,
        };
        let entry = supplied(self.granted(kind, Outcome::Success, workload, grant), credential, source);
        if exports_key(grant, credential) { entry.because("KEY_EXPORTED") } else { entry }
    }

    /// A proof was made for a credential that the caller holds.
    pub(super) fn proved(
        self,
        workload: &Workload,
        grant: &Grant,
        credential: &Credential,
        proof: &Proof,
    ) -> Entry {
        let entry = self.granted(EventType::ProofMint, Outcome::Success, workload, grant);
        with_proof(with_credential(entry, credential), Some(proof))
    }

    /// A request is about to leave for an API.
    pub(super) fn forwarding(
        &self,
        workload: &Workload,
        grant: &Grant,
        fetched: &Fetched,
        proof: Option<&Proof>,
    ) -> Entry {
        let entry = self.granted(EventType::ForwardSend, Outcome::Success, workload, grant);
        with_proof(supplied(entry, &fetched.credential, &fetched.source), proof)
    }

    /// A request is not made, though policy grants the credential.
    pub(super) fn unforwarded(
        &self,
        workload: &Workload,
        grant: &Grant,
        reason: &str,
        detail: &str,
    ) -> Entry {
        let entry = self.granted(EventType::ForwardAnswer, Outcome::Denied, workload, grant);
        entry.because(reason).detail(detail)
    }

    /// What became of a request that was made, or could not be made though policy grants it.
    pub(super) fn forwarded(
        &self,
        workload: &Workload,
        grant: &Grant,
        credential: Option<&Credential>,
        went: Went<'_>,
    ) -> Entry {
        let outcome = if went.error.is_none() { Outcome::Success } else { Outcome::Failed };
        let mut entry = self.granted(EventType::ForwardAnswer, outcome, workload, grant);
        if let Some(credential) = credential {
            entry = with_credential(entry, credential);
        }
        entry.api_response = Some(ApiPart {
            http_status: went.status,
            latency_ms: went.latency.and_then(|latency| u64::try_from(latency.as_millis()).ok()),
            attempts: went.attempts,
        });
        match went.error {
            Some((reason, detail)) => entry.because(reason).detail(detail),
            None => entry,
        }
    }

    /// A proof was not made, though policy grants the credential.
    pub(super) fn unproved(self, workload: &Workload, grant: &Grant, reason: &str, detail: &str) -> Entry {
        let entry = self.granted(EventType::ProofMint, Outcome::Denied, workload, grant);
        entry.because(reason).detail(detail)
    }

    pub(super) fn returned(self, workload: &Workload, grant: &Grant, revoked: bool, detail: &str) -> Entry {
        let outcome = if revoked { Outcome::Success } else { Outcome::Failed };
        self.granted(EventType::CredentialReturn, outcome, workload, grant).detail(detail)
    }

    pub(super) fn described(self, workload: &Workload, entitlement: &Entitlement) -> Entry {
        let mut entry = self.entry(EventType::Describe, Outcome::Success);
        let who = self.workload(
            &entitlement.identity,
            Some(entitlement.owner.clone()),
            Some(entitlement.assurance.as_str().into()),
        );
        entry.workload = Some(who);
        entry.peer = Some(peer(workload));
        entry.policy = Some(self.policy("grant", &entitlement.explanation));
        entry
    }

    fn granted(&self, kind: EventType, outcome: Outcome, workload: &Workload, grant: &Grant) -> Entry {
        let rule = grant.rule();
        let mut entry = self.entry(kind, outcome);
        let assurance = grant.assurance().as_str().to_owned();
        entry.workload = Some(self.workload(grant.identity(), Some(grant.owner().into()), Some(assurance)));
        entry.peer = Some(peer(workload));
        entry.credential = Some(CredentialPart {
            issuer: Some(rule.issuer.to_string()),
            client_id: Some(rule.client_id.to_string()),
            resource: rule.resource.as_deref().map(str::to_owned),
            ..self.wished()
        });
        entry.policy = Some(self.policy("grant", grant.explanation()));
        if let Some(errand) = &mut entry.service_manager {
            errand.promised = grant.explanation().promised.iter().map(|key| (*key).to_owned()).collect();
        }
        entry
    }

    fn entry(&self, kind: EventType, outcome: Outcome) -> Entry {
        let mut entry = Entry::new(kind, outcome, self.exchange);
        entry.trace_id.clone_from(&self.request.trace_id);
        entry.socket = Some(self.session.socket.to_string());
        entry.service_manager = errand(&self.session.door);
        entry.target.clone_from(&self.target);
        entry
    }

    fn wished(&self) -> CredentialPart {
        CredentialPart {
            name: Some(self.request.name.clone()).filter(|name| !name.is_empty()),
            scope_requested: self.request.scope.clone(),
            ..CredentialPart::default()
        }
    }

    fn workload(&self, identity: &str, owner: Option<String>, assurance: Option<String>) -> WorkloadPart {
        WorkloadPart { id: identity.to_string(), env: self.rules.environment.clone(), owner, assurance }
    }

    fn policy(&self, decision: &str, explanation: &Explanation) -> PolicyPart {
        PolicyPart {
            rule: explanation.rule(),
            decision: decision.into(),
            digest: self.rules.digest.clone(),
            exception_until: explanation.exception_until.map(|until| until.to_string()),
            missing: explanation.missing(),
        }
    }
}

/// How a call of an API went.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Went<'a> {
    pub(super) status: Option<u16>,
    pub(super) latency: Option<Duration>,
    pub(super) attempts: u32,
    /// The reason code and what it means here.
    pub(super) error: Option<(&'a str, &'a str)>,
}

/// With all that may be said of a credential that is used now, and of where it came from.
fn supplied(entry: Entry, credential: &Credential, source: &Source) -> Entry {
    let mut entry = with_credential(entry, credential);
    if let Some(what) = &mut entry.credential {
        what.kind = Some(credential.payload.as_str().into());
        what.scope_granted = Some(credential.scope.clone());
        what.ttl_s = Some(credential.window.life().as_secs());
        what.not_after = Some(format!("{:.0}", credential.window.until_wall));
        what.jti_hash = credential.jti.map(|jti| jti.to_string());
        what.source = Some(if *source == Source::Cache { "cache" } else { "issuer" }.into());
    }
    if let Source::Issuer(facts) = source {
        entry.issuer_response = Some(issuer(facts, None));
    }
    entry
}

/// With what tells which credential it is.
fn with_credential(mut entry: Entry, credential: &Credential) -> Entry {
    if let Some(what) = &mut entry.credential {
        what.binding = Some(credential.binding().as_str().into());
        what.thumbprint = credential.bound.thumbprint().map(str::to_owned);
        what.token_hash = Some(credential.fingerprint.to_string());
    }
    entry
}

/// With what may be said of the proof.
fn with_proof(mut entry: Entry, proof: Option<&Proof>) -> Entry {
    if let Some(target) = &mut entry.target {
        target.jti_hash = proof.map(|proof| proof.jti.to_string());
    }
    entry
}

/// What came of asking an issuer for nobody in particular.
pub(super) fn renewed(entry: Entry, renewed: &Renewed, environment: &str) -> Entry {
    let mut entry = ordered(entry, &renewed.order, environment);
    entry.issuer_response = Some(issuer(&renewed.facts, None));
    match (&renewed.result, &mut entry.credential) {
        (Ok(credential), Some(what)) => {
            what.kind = Some(credential.payload.as_str().into());
            what.ttl_s = Some(credential.window.life().as_secs());
            what.not_after = Some(format!("{:.0}", credential.window.until_wall));
            what.binding = Some(credential.binding().as_str().into());
            what.thumbprint = credential.bound.thumbprint().map(str::to_owned);
            what.token_hash = Some(credential.fingerprint.to_string());
            entry
        }
        (Ok(_), None) => entry,
        (Err(error), _) => entry.because(error.reason().as_str()).detail(error.to_string()),
    }
}

/// What was ordered, for whom.
fn ordered(mut entry: Entry, order: &Order, environment: &str) -> Entry {
    entry.workload = Some(WorkloadPart {
        id: order.identity.to_string(),
        env: environment.into(),
        ..WorkloadPart::default()
    });
    entry.credential = Some(CredentialPart {
        name: Some(order.credential.to_string()),
        issuer: Some(order.issuer.to_string()),
        client_id: Some(order.client_id.to_string()),
        ..CredentialPart::default()
    });
    entry
}

/// What became of a credential that had to die before its time.
pub(super) fn revoked(entry: Entry, revoked: &Revoked, environment: &str) -> Entry {
    let (order, credential) = (&revoked.order, &revoked.credential);
    let mut entry = ordered(entry, order, environment);
    entry.credential = entry.credential.map(|what| CredentialPart {
        kind: Some(credential.payload.as_str().into()),
        not_after: Some(format!("{:.0}", credential.window.until_wall)),
        binding: Some(credential.binding().as_str().into()),
        token_hash: Some(credential.fingerprint.to_string()),
        jti_hash: credential.jti.map(|jti| jti.to_string()),
        ..what
    });
    let process = order.instance.map(|instance| format!(", of pid {}", instance.pid)).unwrap_or_default();
    let ended = match &revoked.error {
        None => "its issuer confirmed".to_owned(),
        Some(error) if revoked.waits => {
            format!("it works meanwhile, and is tried again until it ends: {error}")
        }
        Some(error) => format!("it works until it ends: {error}"),
    };
    let (tries, took) = (revoked.tries, revoked.took.as_millis());
    entry.because(revoked.cause.as_str()).detail(format!("{ended}; {tries} tries, {took} ms{process}"))
}

/// An alarm: an issuer says that it has seen a one-time value of this agent before (ER-10).
pub(super) fn seen_before(mut entry: Entry, reused: &Reused, environment: &str) -> Entry {
    let order = &reused.order;
    entry.workload = Some(WorkloadPart {
        id: order.identity.to_string(),
        env: environment.into(),
        ..WorkloadPart::default()
    });
    entry.credential = Some(CredentialPart {
        name: Some(order.credential.to_string()),
        issuer: Some(order.issuer.to_string()),
        client_id: Some(order.client_id.to_string()),
        resource: order.resource.as_deref().map(str::to_owned),
        ..CredentialPart::default()
    });
    entry.issuer_response = Some(issuer(&reused.facts, None));
    let (identity, credential, issuer) = (&order.identity, &order.credential, &order.issuer);
    entry.because("ONE_TIME_REUSE").detail(format!(
        "issuer {issuer} says that it has seen a one-time value of {identity}.{credential} before; this agent makes each once:          somebody else may have its key (keybearer revoke {identity} --keys), or what was sent was sent again on the way"
    ))
}

/// Whether the private key of the certificate that binds `credential` goes out with it: where its rule allows that, and custody
/// kept it for that (MT-11).
pub(super) fn exports_key(grant: &Grant, credential: &Credential) -> bool {
    grant.rule().key_export
        && matches!(&credential.bound, Bound::Mtls(certificate) if certificate.private_pem().is_some())
}

/// What the service manager came for, if it came through this door.
pub(super) fn errand(door: &Door) -> Option<ErrandPart> {
    let Errand { unit, credential } = door.errand()?;
    Some(ErrandPart { unit: unit.clone(), credential: credential.clone(), promised: vec![] })
}

/// A process of which no more is known than who connected.
pub(super) fn bare_peer(peer: &Peer) -> PeerPart {
    PeerPart { pid: peer.pid(), start: peer.start(), uid: peer.uid(), gid: peer.gid(), ..PeerPart::default() }
}

fn peer(workload: &Workload) -> PeerPart {
    let seen = workload.evidence();
    PeerPart {
        pid: seen.pid,
        start: seen.start,
        uid: seen.uid(),
        gid: seen.gid(),
        loginuid: seen.login.uid.ok().flatten(),
        exe: seen.exe.as_ref().ok().map(|exe| ExePart {
            dev: exe.dev,
            ino: exe.ino,
            sha256: seen.sha256.ok().map(|sum| hex(&sum)),
            path_hint: seen.path_hint.clone(),
        }),
        unit: seen.unit.as_ref().ok().map(|unit| UnitPart {
            name: unit.name.clone(),
            invocation_id: unit.invocation.clone(),
            manager: manager(unit.manager),
        }),
        container: None,
        same_userns: seen.same_user_namespace.ok(),
        mntns: seen.mount_namespace.ok(),
        challenge: match seen.answered {
            Err(Missing::NotAsked) => None,
            answered => Some(answered.is_ok()),
        },
        level: Some(seen.level().to_string()),
    }
}

/// One line of it: a name, and the value or why there is none.
pub type Fact = (&'static str, Result<String, String>);

/// The evidence, a line each, for an operator.
pub(super) fn facts(seen: &Evidence) -> Vec<Fact> {
    let status = |told: fn(&Status) -> String| seen.status.as_ref().map(told).map_err(ToString::to_string);
    vec![
        ("pid", Ok(seen.pid.to_string())),
        ("uid", Ok(seen.uid().to_string())),
        ("gid", Ok(seen.gid().to_string())),
        ("groups", status(|status| status.groups.iter().map(u32::to_string).collect::<Vec<_>>().join(" "))),
        ("program (hint)", seen.path_hint.clone().ok_or_else(|| "it cannot be read".into())),
        (
            "program paths",
            seen.exe_paths.as_ref().map(|paths| format!("{paths:?}")).map_err(ToString::to_string),
        ),
        ("sha256", seen.sha256.map(|sum| hex(&sum)).map_err(|why| why.to_string())),
        ("unit", seen.unit.as_ref().map(|unit| unit.name.clone()).map_err(ToString::to_string)),
        ("slices", seen.unit.as_ref().map(|unit| unit.slices.join("/")).map_err(ToString::to_string)),
        ("unit manager", seen.unit.as_ref().map(|unit| manager(unit.manager)).map_err(ToString::to_string)),
        (
            "own user namespace",
            seen.same_user_namespace
                .map(|same| if same { "no" } else { "yes" }.into())
                .map_err(|why| why.to_string()),
        ),
        (
            "a person behind it",
            match seen.login.sign() {
                Ok(None) => Ok("no sign of one".into()),
                Ok(Some(sign)) => Ok(format!("yes: {}", sign.words())),
                Err(why) => Err(why.to_string()),
            },
        ),
        ("no new privileges", status(|status| if status.no_new_privs { "yes" } else { "no" }.into())),
        ("seccomp", status(|status| status.seccomp.to_string())),
        ("traced by", status(|status| status.tracer.to_string())),
    ]
}

fn manager(manager: Manager) -> String {
    match manager {
        Manager::System => "system".into(),
        Manager::User(uid) => format!("user:{uid}"),
    }
}

fn issuer(facts: &IssueFacts, attempts: Option<u32>) -> IssuerPart {
    IssuerPart {
        http_status: facts.http_status,
        oauth_error: facts.oauth_error.clone(),
        latency_ms: u64::try_from(facts.latency.as_millis()).ok(),
        attempts,
        date_skew_ms: facts.date_skew_ms,
        cut_life_from_s: facts.cut_life_from.map(|life| life.as_secs()),
        key_fallback: facts.key_fallback,
        refresh_token_ignored: facts.refresh_token_ignored,
        one_time_reuse: facts.one_time_reuse,
        metadata_changed: facts.metadata_changed,
        lease_replaced: facts.lease_replaced.map(str::to_owned),
    }
}

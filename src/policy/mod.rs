//! May it. In goes a [`Workload`] and a wish; out comes a [`Grant`] or a [`Denial`], each able to explain itself to
//! the ledger and to an operator, never to the caller. Pure, and deny by default: nothing here reads a file or a
//! clock.

mod door;
mod identity;
mod index;
mod lint;
mod near;
#[cfg(any(test, fuzzing))]
pub(crate) mod properties;
mod reason;
mod selector;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use jiff::Timestamp;

pub use door::{Door, Export, Exports};
pub use identity::{
    Assurance, CERTIFICATE_TTL, CredentialRule, Exception, Forward, Forwarding, Humans, Identity, OWNER_FORM,
    Per, Proofs, Proving, name_is_sound,
};
use index::Index;
pub use lint::Problem;
pub use near::{Miss, Near};
pub use reason::Reason;
pub use selector::{Named, Selectors};

use crate::{
    attest::{Evidence, Interests, Level, Missing, Sign, Workload},
    deliver::Delivery,
    issuer::{Instance, Scope},
    proof::Target,
};

/// All identities of this host, proved not to overlap.
#[derive(Debug, Default)]
pub struct Policy {
    identities: BTreeMap<Arc<str>, Arc<Identity>>,
    exports: Exports,
    index: Index,
    /// Those that an operator has switched off.
    disabled: BTreeSet<Arc<str>>,
}

impl Policy {
    /// Takes the identities over, and which of them count at which exported socket, if they are sound at `now`.
    ///
    /// # Errors
    /// Every [`Problem`] at once: the lint rows, and each pair of identities that one process could
    /// both be.
    pub fn new(
        identities: Vec<Identity>,
        exports: Exports,
        environment: &str,
        now: Timestamp,
    ) -> Result<Self, Vec<Problem>> {
        let problems = lint::problems(&identities, &exports, environment, now);
        if !problems.is_empty() {
            return Err(problems);
        }
        let identities: BTreeMap<_, _> =
            identities.into_iter().map(|identity| (Arc::clone(&identity.name), Arc::new(identity))).collect();
        Ok(Self { index: Index::over(identities.values()), identities, exports, disabled: BTreeSet::new() })
    }

    /// The identities, by name.
    pub fn identities(&self) -> impl Iterator<Item = &Identity> {
        self.identities.values().map(|identity| &**identity)
    }

    /// The same, with these identities switched off, whether or not they are in it (GA-10).
    #[must_use]
    pub fn without(&self, disabled: BTreeSet<Arc<str>>) -> Self {
        let identities = self.identities.clone();
        let exports = self.exports.clone();
        Self { index: Index::over(identities.values()), identities, exports, disabled }
    }

    /// Those that are switched off.
    pub fn disabled(&self) -> &BTreeSet<Arc<str>> {
        &self.disabled
    }

    /// The exported sockets, and which identities count there.
    pub fn exports(&self) -> &Exports {
        &self.exports
    }

    /// What evidence these identities ask for.
    pub fn interests(&self) -> Interests {
        let selectors = || self.identities.values().flat_map(|identity| &identity.selectors);
        let demands = |level| self.identities.values().any(|identity| identity.assurance.level() >= level);
        Interests {
            exe_paths: selectors().filter_map(|selectors| selectors.exe.clone()).collect(),
            sha256: selectors().any(|selectors| selectors.sha256.is_some()),
            groups: selectors().any(|selectors| selectors.supplementary.is_some()),
            unit: demands(Level::L3) || selectors().any(Selectors::rest_on_the_unit),
            challenge: demands(Level::L4) || selectors().any(Selectors::rest_on_the_program),
        }
    }

    /// Whether `workload` may have what it wishes, at `now`.
    ///
    /// # Errors
    /// A [`Denial`] with its reason and all that was weighed.
    pub fn decide(&self, workload: &Workload, wish: &Wish<'_>, now: Timestamp) -> Result<Grant, Denial> {
        match self.judge(workload.evidence(), wish, now) {
            (Ok((identity, rule, scope, target)), explanation) => Ok(Grant {
                identity: Arc::clone(identity),
                level: workload.evidence().level(),
                instance: (rule.per == Per::Process)
                    .then(|| Instance { pid: workload.peer().pid(), start: workload.peer().start() }),
                rule: Arc::clone(rule),
                scope,
                target,
                explanation,
            }),
            (Err(reason), explanation) => Err(Denial { reason, explanation }),
        }
    }

    /// Who `workload` is and what it may have at this socket: the whole of its entitlement.
    ///
    /// # Errors
    /// A [`Denial`] if it is nobody.
    pub fn describe(&self, workload: &Workload, door: &Door, now: Timestamp) -> Result<Entitlement, Denial> {
        let mut explanation = Explanation::of(workload.evidence());
        match self.identify(workload.evidence(), &Wish::at(door), &mut explanation) {
            Ok(identity) => {
                let usable = |rule: &&Arc<CredentialRule>| {
                    let wish = Wish { credential: &rule.name, purpose: Purpose::Nothing, ..Wish::at(door) };
                    self.judge(workload.evidence(), &wish, now).0.is_ok()
                };
                let credentials = identity.credentials.values().filter(usable).cloned().collect();
                Ok(Entitlement {
                    identity: Arc::clone(&identity.name),
                    owner: identity.owner.clone(),
                    assurance: identity.assurance,
                    credentials,
                    delivery: Arc::clone(&identity.delivery),
                    explanation,
                })
            }
            Err(reason) => Err(Denial { reason, explanation }),
        }
    }

    /// The same judgement for an operator who asks about a process. It grants nothing.
    pub fn explain(
        &self,
        evidence: &Evidence,
        wish: &Wish<'_>,
        now: Timestamp,
    ) -> (Option<Reason>, Explanation) {
        let (judged, explanation) = self.judge(evidence, wish, now);
        (judged.err(), explanation)
    }

    fn judge<'a>(
        &'a self,
        evidence: &Evidence,
        wish: &Wish<'_>,
        now: Timestamp,
    ) -> (Judged<'a>, Explanation) {
        let mut explanation = Explanation::of(evidence);
        let judged = self.identify(evidence, wish, &mut explanation).and_then(|identity| {
            let Some(rule) = identity.credentials.get(wish.credential) else {
                let has = listed(identity.credentials.keys());
                explanation.missed.push(format!("{} has {has}", identity.name));
                return Err(Reason::NoCredential);
            };
            explanation.credential = Some(Arc::clone(&rule.name));
            let needs = identity.assurance.level();
            if wish.door.errand().is_some() && rule.per == Per::Process {
                explanation.missed.push("it is for one process, and that does not run yet".into());
                return Err(Reason::NoProcess);
            }
            if evidence.level() < needs {
                let has = evidence.level();
                let why = evidence.weakness().map(|why| format!(": {why}")).unwrap_or_default();
                explanation.missed.push(format!(
                    "assurance {} needs level {needs}, this is {has}{why}",
                    identity.assurance
                ));
                return Err(Reason::Level);
            }
            if identity.assurance == Assurance::High {
                let traced = match &evidence.status {
                    Ok(status) if status.tracer == 0 => None,
                    Ok(status) => Some(format!("pid {} traces it", status.tracer)),
                    Err(why) => Some(format!("whether anybody traces it: {why}")),
                };
                if let Some(traced) = traced {
                    explanation.missed.push(traced);
                    return Err(Reason::Traced);
                }
            }
            if let Some(exception) = &rule.exception {
                explanation.exception_until = Some(exception.until);
                if exception.until <= now {
                    explanation.missed.push(format!("its exception ended at {}", exception.until));
                    return Err(Reason::ExceptionExpired);
                }
            }
            let scope = rule.narrowed(wish.scope).map_err(|wider| {
                let granted = listed(rule.scope.iter());
                explanation.missed.push(format!("scope {wider:?} is not among those granted: {granted}"));
                Reason::Scope
            })?;
            match rule.purpose(&wish.purpose) {
                Ok(target) => Ok((identity, rule, scope, target)),
                Err((reason, missed)) => {
                    explanation.missed.push(missed);
                    Err(reason)
                }
            }
        });
        (judged, explanation)
    }

    fn identify(
        &self,
        evidence: &Evidence,
        wish: &Wish<'_>,
        explanation: &mut Explanation,
    ) -> Result<&Arc<Identity>, Reason> {
        let door = wish.door;
        let errand = door.errand();
        if let Some(missed) = errand.and_then(|errand| door::contradicted(errand, evidence)) {
            explanation.missed.push(missed);
            return Err(Reason::UnitConflict);
        }
        // Of a program that does not run yet, its unit is all that can be told.
        let matches = |selectors: &&Selectors| match errand {
            None => selectors.match_all(evidence),
            Some(_) => selectors.of_the_unit().is_some_and(|unit| unit.match_all(evidence)),
        };
        let mut found: Option<(&Arc<Identity>, &Selectors)> = None;
        for identity in self.index.candidates(evidence) {
            // Overlap is refused at load, but two paths may have become one file since.
            if let Some(selectors) = identity.selectors.iter().find(matches)
                && found.replace((identity, selectors)).is_some_and(|(other, _)| other.name != identity.name)
            {
                explanation.missed.push("two identities match it".into());
                return Err(Reason::Ambiguous);
            }
        }
        let Some((identity, selectors)) = found else {
            explanation.near = self.near(evidence, wish);
            return Err(Reason::NoIdentity);
        };
        explanation.identity = Some(Arc::clone(&identity.name));
        if self.disabled.contains(&identity.name) {
            explanation.missed.push("an operator has disabled it".into());
            return Err(Reason::Disabled);
        }
        if !door.is_for(&identity.name, &self.exports) {
            explanation.missed.push(format!("{} is not served at this socket", identity.name));
            return Err(Reason::NotAtThisSocket);
        }
        if errand.is_some() {
            if !identity.service_manager {
                explanation
                    .missed
                    .push(format!("{} is not for the service manager to ask for", identity.name));
                return Err(Reason::NotForServiceManager);
            }
            explanation.promised = selectors.beyond_the_unit();
        }
        let human = human(evidence, selectors);
        explanation.human = human.ok().flatten();
        if identity.humans == Humans::Refused
            && let Some(missed) = refused(human)
        {
            explanation.missed.push(missed);
            return Err(Reason::HumanSession);
        }
        Ok(identity)
    }

    /// By what each identity does not match, the nearest first.
    fn near(&self, evidence: &Evidence, wish: &Wish<'_>) -> Vec<Near> {
        let by_unit = wish.door.errand().is_some();
        let missed = |selectors: &Selectors| match selectors.of_the_unit() {
            _ if !by_unit => (selectors.len(), selectors.misses(evidence)),
            // Only what was weighed is counted.
            Some(unit) => (unit.len(), unit.misses(evidence)),
            None => {
                let words = "it names no unit, and nothing else is known of a program that does not run yet";
                (1, vec![Miss { key: "", wanted: String::new(), why: None, words: words.into() }])
            }
        };
        let all = self.identities.values().flat_map(|identity| {
            identity.selectors.iter().map(|selectors| {
                let (of, missed) = missed(selectors);
                let has_it = identity.credentials.contains_key(wish.credential);
                Near { identity: Arc::clone(&identity.name), of, missed, has_it }
            })
        });
        let mut all: Vec<Near> = all.collect();
        Near::sort(&mut all);
        all
    }
}

/// The sign of a person in a process that these selectors match (NHI-10). One whose user's own manager is meant to run it has that
/// user's login, which tells nothing; and where the identity names a unit of the host's, what this kernel cannot tell of logins is made
/// up for by the unit, which is nobody's session.
fn human(evidence: &Evidence, selectors: &Selectors) -> Result<Option<Sign>, Missing> {
    if selectors.user_unit.is_some() {
        return evidence.login.sign_in_users_manager();
    }
    match evidence.login.sign() {
        Err(_) if selectors.unit.is_some() => Ok(None),
        sign => sign,
    }
}

/// Why it is not served where people are refused.
fn refused(human: Result<Option<Sign>, Missing>) -> Option<String> {
    match human {
        Ok(None) => None,
        Ok(Some(sign)) => Some(format!("a person is behind it: {}", sign.words())),
        Err(why) => Some(format!("whether a person is behind it: {why}")),
    }
}

type Judged<'a> = Result<(&'a Arc<Identity>, &'a Arc<CredentialRule>, Scope, Option<Target>), Reason>;

/// What a caller wants with a credential.
#[derive(Clone, Copy, Debug, Default)]
pub enum Purpose<'a> {
    /// To have the agent call its API with it.
    Forward(Forwarding<'a>),
    /// Nothing that would leave the agent: it is named, or given back.
    Nothing,
    /// A proof of possession for a request.
    Prove(Proving<'a>),
    /// To have it.
    #[default]
    Take,
}

/// What a caller asks for.
#[derive(Clone, Copy, Debug)]
pub struct Wish<'a> {
    /// The credential's name within the caller's identity.
    pub credential: &'a str,
    /// A narrower scope than policy grants; empty for all of it.
    pub scope: &'a [String],
    /// What it wants with it.
    pub purpose: Purpose<'a>,
    /// The socket that it asks at.
    pub door: &'a Door,
}

impl<'a> Wish<'a> {
    /// A wish for no credential yet, at this socket.
    pub fn at(door: &'a Door) -> Self {
        Self { credential: "", scope: &[], door, purpose: Purpose::Take }
    }
}

/// Policy's yes. Only [`Policy::decide`] makes one.
#[derive(Debug)]
pub struct Grant {
    identity: Arc<Identity>,
    level: Level,
    instance: Option<Instance>,
    rule: Arc<CredentialRule>,
    scope: Scope,
    target: Option<Target>,
    explanation: Explanation,
}

impl Grant {
    /// Who the workload is.
    pub fn identity(&self) -> &Arc<str> {
        &self.identity.name
    }

    /// Who answers for it.
    pub fn owner(&self) -> &str {
        &self.identity.owner
    }

    /// What becomes of people who come as it.
    pub fn humans(&self) -> Humans {
        self.identity.humans
    }

    /// What it demands.
    pub fn assurance(&self) -> Assurance {
        self.identity.assurance
    }

    /// How strongly the workload was attested.
    pub fn level(&self) -> Level {
        self.level
    }

    /// The process that the credential is for and dies with, if it is not shared.
    pub fn instance(&self) -> Option<Instance> {
        self.instance
    }

    /// The credential it may have.
    pub fn rule(&self) -> &CredentialRule {
        &self.rule
    }

    /// The scope it gets: policy's, or the caller's narrower one.
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    /// Where the agent may call for the workload, and how: only in a grant of that.
    pub fn forward(&self) -> Option<(&Target, &Forward)> {
        self.target.as_ref().zip(self.rule.forward.as_ref())
    }

    /// What was weighed.
    pub fn explanation(&self) -> &Explanation {
        &self.explanation
    }
}

/// Who a workload is, and which credentials are its.
#[derive(Debug)]
pub struct Entitlement {
    /// Who it is.
    pub identity: Arc<str>,
    /// Who answers for it.
    pub owner: String,
    /// What it demands.
    pub assurance: Assurance,
    /// What it may have now.
    pub credentials: Vec<Arc<CredentialRule>>,
    /// What its programs get that know no gRPC.
    pub delivery: Arc<Delivery>,
    /// What was weighed.
    pub explanation: Explanation,
}

/// Policy's no.
#[derive(Debug)]
pub struct Denial {
    /// Why, in one word.
    pub reason: Reason,
    /// What was weighed.
    pub explanation: Explanation,
}

/// What a decision weighed: for the ledger and for operators.
#[derive(Clone, Debug, PartialEq)]
pub struct Explanation {
    /// The identity that matched.
    pub identity: Option<Arc<str>>,
    /// The credential whose rule was applied.
    pub credential: Option<Arc<str>>,
    /// The level of the evidence.
    pub level: Level,
    /// What was missing, in words.
    pub missed: Vec<String>,
    /// If none matched: by what each did not, the nearest first.
    pub near: Vec<Near>,
    /// The keys of selectors that the service manager will have to bring about, where it is the one who asks: nobody can look yet.
    pub promised: Vec<&'static str>,
    /// What gives a person away, if anything does.
    pub human: Option<Sign>,
    /// When the exception that was used ends.
    pub exception_until: Option<Timestamp>,
}

impl Explanation {
    fn of(evidence: &Evidence) -> Self {
        Self {
            identity: None,
            credential: None,
            level: evidence.level(),
            missed: vec![],
            near: vec![],
            promised: vec![],
            human: None,
            exception_until: None,
        }
    }

    /// The rule that was applied, as `identity.credential`.
    pub fn rule(&self) -> Option<String> {
        Some(format!("{}.{}", self.identity.as_ref()?, self.credential.as_ref()?))
    }

    /// What was missing, the nearest identity's misses included when none matched; for a record.
    pub fn missing(&self) -> Vec<String> {
        match (self.near.first(), &self.identity) {
            (Some(near), None) => {
                let misses = near.missed.iter().map(|miss| format!("{}: {miss}", near.identity));
                self.missed.iter().cloned().chain(misses).collect()
            }
            _ => self.missed.clone(),
        }
    }
}

/// Names as an operator reads them.
fn listed<'a>(names: impl Iterator<Item = &'a Arc<str>>) -> String {
    let names: Vec<&str> = names.map(|name| &**name).collect();
    if names.is_empty() { "none".into() } else { names.join(", ") }
}

#[cfg(test)]
mod tests;

//! Keys that make room for others, while orders are placed with them. In go keys with what is due, and the time; out come turns:
//! what was made, what signs now, what is destroyed. A new key signs only once every issuer has taken it: it is tried
//! there, so that a key nobody has registered yet never costs a workload its token (KEY-05). So is the next client certificate,
//! which is shown before its time where every issuer takes it (MT-05). Over 400 lines, because a key and a certificate of one
//! identity are turned together, and what each does can only be judged beside the other.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use tokio::{task::JoinSet, time::sleep};

use super::{Broker, Registrar};
use crate::{
    clock::{Boot, Clock},
    issuer::{IssueError, terms::ClientAuth},
    jose::Signer,
    keys::{
        CertificateError, Certificates, ClientCertificate, Due, KeyError, Keyring, Now, Purpose, Rotated,
        rotation::{PROPAGATION, RETRY},
    },
    policy::{CredentialRule, Policy},
};

/// How old a key becomes that binds tokens (K57-2).
const PROOF_KEY_AGE: Duration = Duration::from_secs(24 * 60 * 60);

/// Nothing that is due waits longer to be seen: after a suspend the time since boot has jumped.
const LOOK: Duration = Duration::from_secs(10);

/// What was done with a key.
#[derive(Debug)]
pub struct Turn {
    /// Whose.
    pub identity: Arc<str>,
    /// What.
    pub what: Turned,
}

/// What was done with a key.
#[derive(Debug)]
pub enum Turned {
    /// It was made and is published; it does not sign yet.
    Published {
        /// Its id.
        kid: String,
    },
    /// It signs from now on.
    Signs {
        /// Its id.
        kid: String,
    },
    /// An issuer does not take it yet: it is tried again later, and the one before goes on.
    NotTaken {
        /// Its id.
        kid: String,
        /// What the issuer said.
        why: String,
    },
    /// The one before is destroyed.
    Destroyed,
    /// An issuer has these keys on its books and no others (KEY-09).
    Registered {
        /// Which issuer.
        issuer: Arc<str>,
        /// Of which client.
        client_id: Arc<str>,
        /// What they are recognised by.
        kids: Vec<String>,
        /// Those that were there and are not ours, or not ours any more.
        removed: Vec<String>,
    },
    /// It has not, and what signed before goes on. It is tried again.
    NotRegistered {
        /// Which issuer.
        issuer: Arc<str>,
        /// Of which client.
        client_id: Arc<str>,
        /// What happened.
        why: String,
    },
    /// What is bound from now on is bound by another key.
    Proofs,
    /// The next client certificate was made, and can be registered; it is not shown yet.
    CertificatePublished {
        /// Its thumbprint (RFC 8705 3.1).
        thumbprint: String,
    },
    /// It is shown from now on.
    CertificateShown {
        /// Its thumbprint.
        thumbprint: String,
    },
    /// An issuer does not take it yet: it is tried again later, and the one before goes on.
    CertificateNotTaken {
        /// Its thumbprint.
        thumbprint: String,
        /// What the issuer said.
        why: String,
    },
    /// A certificate could not be made, or not be put in its place.
    CertificateFailed(CertificateError),
    /// The certificate is of others: nothing was done with it, and this is to be done instead.
    NotOurs {
        /// By whom, and where.
        instead: String,
    },
    /// It could not be done.
    Failed(KeyError),
    /// There is none that proves who asks: nothing was done, and this is to be done instead.
    NoKey {
        /// By whom, and where.
        instead: String,
    },
}

/// The task's state: all keys, and the trials under way.
#[derive(Debug)]
pub struct Rotor {
    keys: Keyring,
    certificates: Certificates,
    policy: Arc<Policy>,
    broker: Broker,
    clock: Arc<dyn Clock>,
    trials: JoinSet<Trial>,
    /// Who tells issuers of keys, where there is somebody.
    registrar: Option<Registrar>,
    trying: HashSet<(Arc<str>, Kind)>,
    /// Whose keys are left alone until then: an issuer did not take one, or something could not be done.
    not_before: HashMap<(Arc<str>, Kind), Boot>,
    /// Which next certificates were seen, and since when.
    published: HashMap<Arc<str>, (String, Boot)>,
}

/// What is turned.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
enum Kind {
    /// A client certificate.
    Certificate,
    /// A key that signs assertions.
    Key,
}

#[derive(Debug)]
struct Trial {
    identity: Arc<str>,
    kind: Kind,
    /// The key's id, or the certificate's thumbprint.
    id: String,
    began: Boot,
    result: Result<(), IssueError>,
}

/// What is tried.
enum Candidate {
    Certificate(Arc<ClientCertificate>),
    Key(Arc<dyn Signer>),
}

impl Candidate {
    fn kind(&self) -> Kind {
        match self {
            Self::Certificate(_) => Kind::Certificate,
            Self::Key(_) => Kind::Key,
        }
    }

    fn id(&self) -> &str {
        match self {
            Self::Certificate(next) => next.thumbprint(),
            Self::Key(next) => next.kid(),
        }
    }

    /// Whether an issuer has to know it for what `rule` orders.
    fn proves(&self, rule: &CredentialRule) -> bool {
        match self {
            Self::Certificate(_) => rule.terms.client_auth.is_mtls(),
            Self::Key(_) => {
                rule.terms.client_auth.needs_key()
                    || matches!(rule.terms.client_auth, ClientAuth::Bootstrap(_))
            }
        }
    }

    async fn try_at(
        &self,
        broker: &Broker,
        identity: &Arc<str>,
        rule: &CredentialRule,
    ) -> Result<(), IssueError> {
        match self {
            Self::Certificate(next) => broker.try_certificate(identity, rule, next).await,
            Self::Key(next) => broker.try_key(identity, rule, next).await,
        }
    }
}

impl Rotor {
    /// Takes charge of `keys` and `certificates`.
    pub fn new(
        keys: Keyring,
        certificates: Certificates,
        policy: Arc<Policy>,
        broker: Broker,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            keys,
            certificates,
            policy,
            broker,
            clock,
            trials: JoinSet::new(),
            trying: HashSet::new(),
            not_before: HashMap::new(),
            published: HashMap::new(),
            registrar: None,
        }
    }

    /// The same, which has issuers told of keys where the settings name a registration (KEY-09).
    #[must_use]
    pub fn telling(self, registrar: Registrar) -> Self {
        Self { registrar: Some(registrar), ..self }
    }

    /// What is wrong with registrations, for an operator.
    pub fn troubles(&self) -> impl Iterator<Item = String> {
        self.registrar.iter().flat_map(Registrar::troubles)
    }

    /// Lets what is under way at issuers end where it must not be broken off.
    pub async fn finish(&mut self) {
        if let Some(registrar) = &mut self.registrar {
            registrar.finish().await;
        }
    }

    /// Whether an issuer is told of the keys of `identity` without anybody's doing.
    pub fn registers(&self, identity: &Arc<str>) -> bool {
        let books = self.broker.shared.books.load();
        self.registrar.is_some() && books.registrations.iter().any(|one| one.identity == *identity)
    }

    /// The keys as they are.
    pub fn keys(&self) -> &Keyring {
        &self.keys
    }

    /// The certificates as they are.
    pub fn certificates(&self) -> &Certificates {
        &self.certificates
    }

    /// From now on, these keys and this policy: the settings were read again.
    pub fn follow(&mut self, keys: Keyring, certificates: Certificates, policy: Arc<Policy>) {
        (self.keys, self.certificates, self.policy) = (keys, certificates, policy);
        if let Some(registrar) = &mut self.registrar {
            // What was wrong may be mended.
            registrar.hurry(None);
        }
    }

    /// Waits until something was due, and does it. Whoever stops waiting loses nothing: between what is done
    /// and its being told there is no wait.
    pub async fn turn(&mut self) -> Vec<Turn> {
        loop {
            let turns = self.look();
            if !turns.is_empty() {
                return turns;
            }
            tokio::select! {
                Some(trial) = self.trials.join_next() => match trial {
                    Ok(trial) => if let Some(turn) = self.tried(trial) {
                        return vec![turn];
                    },
                    // A trial that panicked is one that is tried again.
                    Err(_) => self.trying.clear(),
                },
                Some(turn) = ended(&mut self.registrar, &*self.clock) => if let Some(turn) = turn {
                    if matches!(turn.what, Turned::Registered { .. }) {
                        // What was not taken before may be now.
                        self.not_before.remove(&(Arc::clone(&turn.identity), Kind::Key));
                    }
                    return vec![turn];
                },
                () = sleep(LOOK) => {}
            }
        }
    }

    /// Publishes the next key and the next certificate of `identity` now, or, if they are published already, tries them now.
    pub fn rotate(&mut self, identity: &Arc<str>) -> Vec<Turn> {
        let mut turns = Vec::new();
        // An operator does not wait.
        self.wait_no_more(identity);
        self.hurry(identity);
        match self.keys.next(identity) {
            None if self.signs(identity) => turns.push(self.begin(identity)),
            None => {}
            Some(next) => self.try_out(identity, Candidate::Key(next)),
        }
        let begun = self.certificates.begin(identity, self.clock.wall());
        turns.extend(self.certified(identity, begun));
        turns.extend(self.no_key(identity));
        if self.proves(identity) {
            turns.push(self.renew_proofs(identity));
        }
        turns
    }

    /// Destroys the keys of `identity`, that of its certificate too, and makes others at once (KEY-07). What binds tokens is in
    /// memory: it is renewed also where the file of another key cannot be.
    pub fn replace(&mut self, identity: &Arc<str>) -> Vec<Turn> {
        let mut turns = Vec::new();
        self.wait_no_more(identity);
        self.hurry(identity);
        if self.signs(identity) {
            let replaced = self.keys.replace(identity, Now::by(&*self.clock));
            turns.push(self.turned(identity, replaced, |kid| Turned::Signs { kid }));
        }
        let replaced = self.certificates.replace(identity, self.clock.wall());
        turns.extend(self.certified(identity, replaced));
        turns.extend(self.no_key(identity));
        if self.proves(identity) {
            turns.push(self.renew_proofs(identity));
        }
        turns
    }

    fn hurry(&mut self, identity: &Arc<str>) {
        if let Some(registrar) = &mut self.registrar {
            registrar.hurry(Some(identity));
        }
    }

    /// Whether it is too early to try the next key of `identity`.
    fn is_telling(&self, identity: &Arc<str>, now: Boot) -> bool {
        let Some(registrar) = &self.registrar else { return false };
        let propagation = self.keys.propagation(identity).unwrap_or_default();
        registrar.is_telling(&self.broker.shared.books.load(), identity, propagation, now)
    }

    fn wait_no_more(&mut self, identity: &Arc<str>) {
        self.not_before.retain(|(waiting, _), _| waiting != identity);
    }

    /// What came of an order about a certificate. One that is published already is tried now.
    fn certified(&mut self, identity: &Arc<str>, done: Result<Rotated, CertificateError>) -> Option<Turn> {
        let thumbprint = |of: &ClientCertificate| of.thumbprint().to_owned();
        let what = match done {
            Ok(Rotated::None) => return None,
            Ok(Rotated::Next { next, made: false }) => {
                self.try_out(identity, Candidate::Certificate(next));
                return None;
            }
            Ok(Rotated::Next { next, made: true }) => {
                Turned::CertificatePublished { thumbprint: thumbprint(&next) }
            }
            Ok(Rotated::Shown(shown)) => Turned::CertificateShown { thumbprint: thumbprint(&shown) },
            Ok(Rotated::OfOthers { certificate, key }) => {
                let key = key.map(|key| format!(" and its key {}", key.display())).unwrap_or_default();
                let instead = format!(
                    "have its CA revoke it if its key is in wrong hands, and issue another for a new key; put them \
                     in place of {}{key}, then run: keybearer reload",
                    certificate.display()
                );
                Turned::NotOurs { instead }
            }
            Err(error) => Turned::CertificateFailed(error),
        };
        Some(Turn { identity: Arc::clone(identity), what })
    }

    /// Whether `identity` has a key that signs assertions.
    fn signs(&self, identity: &Arc<str>) -> bool {
        self.keys.signer(identity, Purpose::ClientAuth).is_some()
    }

    /// Whether `identity` has keys that bind tokens.
    fn proves(&self, identity: &Arc<str>) -> bool {
        self.keys.iter().any(|(name, purpose, _)| *name == **identity && matches!(purpose, Purpose::Dpop(_)))
    }

    /// What an operator does where a platform proves who asks, or nothing does: that is not ours to turn.
    fn no_key(&self, identity: &Arc<str>) -> Option<Turn> {
        if self.signs(identity) {
            return None;
        }
        let rules = self.policy.identities().filter(|known| known.name == *identity);
        let mut ways = rules.flat_map(|known| known.credentials.values()).map(|rule| &rule.terms.client_auth);
        let instead = if ways.any(|way| way.subject().is_some()) {
            "revoke it at the platform that vouches for it, which keybearer cannot do"
        } else if self.certificates.has(identity) {
            return None;
        } else {
            "give it a credential with client_auth = \"private_key_jwt\", or leave it as it is"
        };
        Some(Turn { identity: Arc::clone(identity), what: Turned::NoKey { instead: instead.into() } })
    }

    /// Does what is due.
    fn look(&mut self) -> Vec<Turn> {
        let now = self.clock.boot();
        let mut turns = Vec::new();
        if let Some(registrar) = &mut self.registrar {
            registrar.look(&self.broker.shared.books.load(), now);
        }
        // Before anything is done: what fails now makes nothing else of the same identity wait.
        self.not_before.retain(|_, then| now < *then);
        let waiting: HashSet<(Arc<str>, Kind)> = self.not_before.keys().cloned().collect();
        let waits = |identity: &Arc<str>, kind| waiting.contains(&(Arc::clone(identity), kind));
        for (identity, due) in self.keys.due(now) {
            match due {
                _ if waits(&identity, Kind::Key) => {}
                Due::Begin => turns.push(self.begin(&identity)),
                Due::Finish => {
                    let finished = self.keys.finish(&identity);
                    turns.push(self.turned(&identity, finished, |_| Turned::Destroyed));
                }
                Due::Try if self.is_telling(&identity, now) => {}
                Due::Try => {
                    if let Some(next) = self.keys.next(&identity) {
                        self.try_out(&identity, Candidate::Key(next));
                    }
                }
            }
        }
        for identity in self.keys.with_old_proofs(PROOF_KEY_AGE, now) {
            if !waits(&identity, Kind::Key) {
                turns.push(self.renew_proofs(&identity));
            }
        }
        for (identity, next) in self.certificates.next(self.clock.wall()) {
            if self.is_known_by_now(&identity, &next, now) && !waits(&identity, Kind::Certificate) {
                self.try_out(&identity, Candidate::Certificate(next));
            }
        }
        turns
    }

    /// Whether issuers have had time to hear of `next`. Since boot, not by its dates: the wall may be wrong (CLK-01).
    fn is_known_by_now(&mut self, identity: &Arc<str>, next: &ClientCertificate, now: Boot) -> bool {
        let seen = self.published.entry(Arc::clone(identity)).or_insert_with(|| (String::new(), now));
        if seen.0 != next.thumbprint() {
            *seen = (next.thumbprint().to_owned(), now);
        }
        now.since(seen.1) >= PROPAGATION
    }

    fn begin(&mut self, identity: &Arc<str>) -> Turn {
        let begun = self.keys.begin(identity, Now::by(&*self.clock));
        let kid = begun.as_ref().ok().and_then(|keys| keys.next(identity)).map(|key| key.kid().to_owned());
        self.turned(identity, begun, |_| Turned::Published { kid: kid.unwrap_or_default() })
    }

    fn renew_proofs(&mut self, identity: &Arc<str>) -> Turn {
        let renewed = self.keys.with_new_proofs(identity, Now::by(&*self.clock));
        self.turned(identity, renewed, |_| Turned::Proofs)
    }

    /// Places one order of each client of `identity` with its next key or certificate, and gives back what comes.
    fn try_out(&mut self, identity: &Arc<str>, next: Candidate) {
        if !self.trying.insert((Arc::clone(identity), next.kind())) {
            return;
        }
        let rules = self.policy.identities().find(|known| known.name == *identity);
        // Each client of it is registered by itself.
        let mut clients = BTreeSet::new();
        let mut is_another =
            |rule: &CredentialRule| clients.insert((Arc::clone(&rule.issuer), Arc::clone(&rule.client_id)));
        let rules: Vec<Arc<CredentialRule>> = rules
            .into_iter()
            .flat_map(|known| known.credentials.values())
            .filter(|rule| next.proves(rule) && is_another(rule))
            .cloned()
            .collect();
        let (broker, identity) = (self.broker.clone(), Arc::clone(identity));
        let began = self.clock.boot();
        self.trials.spawn(async move {
            let mut result = Ok(());
            for rule in rules {
                result = next.try_at(&broker, &identity, &rule).await;
                if result.is_err() {
                    break;
                }
            }
            Trial { identity, kind: next.kind(), id: next.id().to_owned(), began, result }
        });
    }

    fn tried(&mut self, trial: Trial) -> Option<Turn> {
        let Trial { identity, kind, id, began, result } = trial;
        let (whose, wall) = ((Arc::clone(&identity), kind), self.clock.wall());
        self.trying.remove(&whose);
        let next = match kind {
            Kind::Key => self.keys.next(&identity).map(|next| next.kid().to_owned()),
            Kind::Certificate => {
                let mut all = self.certificates.next(wall).into_iter();
                all.find(|(of, _)| *of == identity).map(|(_, next)| next.thumbprint().to_owned())
            }
        };
        // The keys were replaced meanwhile: what was found out says nothing of the one that is next now.
        if next.is_none_or(|next| next != id) {
            return None;
        }
        if let Err(why) = result {
            // One that its issuer was told of meanwhile may be taken now.
            let told = self.registrar.as_ref().and_then(|registrar| registrar.told(&identity));
            if told.is_none_or(|told| told < began) {
                self.not_before.insert(whose, self.clock.boot() + RETRY);
            }
            let why = why.to_string();
            let what = match kind {
                Kind::Key => Turned::NotTaken { kid: id, why },
                Kind::Certificate => Turned::CertificateNotTaken { thumbprint: id, why },
            };
            return Some(Turn { identity, what });
        }
        self.not_before.remove(&whose);
        if kind == Kind::Key {
            let switched = self.keys.switch(&identity, Now::by(&*self.clock));
            return Some(self.turned(&identity, switched, |kid| Turned::Signs { kid }));
        }
        let what = match self.certificates.show(&identity, &id, wall) {
            Ok(true) => Turned::CertificateShown { thumbprint: id },
            // It was shown in its time meanwhile, or made anew.
            Ok(false) => return None,
            Err(error) => {
                self.not_before.insert(whose, self.clock.boot() + RETRY);
                Turned::CertificateFailed(error)
            }
        };
        Some(Turn { identity, what })
    }

    fn turned(
        &mut self,
        identity: &Arc<str>,
        keys: Result<Keyring, KeyError>,
        what: impl FnOnce(String) -> Turned,
    ) -> Turn {
        let what = match keys {
            Err(error) => {
                // It stays due. Without a pause it would be tried again at once, and fill the ledger.
                self.not_before.insert((Arc::clone(identity), Kind::Key), self.clock.boot() + RETRY);
                Turned::Failed(error)
            }
            Ok(keys) => {
                let signing = keys.signer(identity, Purpose::ClientAuth);
                self.broker.rekey(keys.clone());
                self.keys = keys;
                what(signing.map(|key| key.kid().to_owned()).unwrap_or_default())
            }
        };
        Turn { identity: Arc::clone(identity), what }
    }
}

/// What [`Registrar::ended`] says, if there is one.
async fn ended(registrar: &mut Option<Registrar>, clock: &dyn Clock) -> Option<Option<Turn>> {
    registrar.as_mut()?.ended(clock).await
}

#[cfg(test)]
pub(super) mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _, sync::Mutex};

    use tokio::{sync::mpsc, time::timeout};

    use super::*;
    use crate::{
        broker::{
            Books, Cause, RegistrationSettings, Rights,
            tests::{PausedClock, minted, order},
        },
        clock::SeededDice,
        credential::{Binding, Bound, Credential},
        issuer::{
            IssueFacts, Issued, Issuer, Order, Pending, Reason, Signers,
            registration::{Access, Ask, Registration},
            terms::{ClientAuth, SvidSource, Terms},
        },
        jose::Algorithm,
        keys::{
            CertificateSettings, Custody, KeySettings, RotationSettings, SealingKey, SignedBy,
            rotation::PROPAGATION,
        },
        policy::{Assurance, Humans, Identity, Per, Proofs, Selectors},
        proof::Target,
        secret::Secret,
    };

    /// An issuer that keeps the set of keys and certificates it fetched for ten minutes.
    #[derive(Debug)]
    struct Caching {
        clock: Arc<PausedClock>,
        published: Mutex<HashSet<String>>,
        document: Mutex<serde_json::Value>,
        cache: Mutex<(Boot, HashSet<String>)>,
        refused: Mutex<u32>,
    }

    impl Issuer for Caching {
        fn issue<'a>(
            &'a self,
            order: &'a Order,
            signers: &'a Signers,
            _: Option<&'a Credential>,
        ) -> Pending<'a, Issued> {
            Box::pin(async {
                let now = self.clock.boot();
                let mut cache = self.cache.lock().unwrap();
                if cache.1.is_empty() || now.since(cache.0) >= Duration::from_secs(600) {
                    *cache = (now, self.published.lock().unwrap().clone());
                }
                let kid = match order.terms.client_auth.is_mtls() {
                    true => signers.certificates[0].thumbprint(),
                    false => signers.client.as_ref().unwrap().kid(),
                };
                let result = if cache.1.contains(kid) {
                    let token = format!("{kid}-{}", now.as_nanos());
                    let minted = minted(&token, now, self.clock.wall(), Duration::from_secs(300));
                    let bound = Bound::Dpop(Arc::clone(signers.dpop.as_ref().unwrap()));
                    Ok(Credential { bound, ..minted })
                } else {
                    *self.refused.lock().unwrap() += 1;
                    let detail = "invalid_client".into();
                    Err(IssueError::Misconfigured { reason: Reason::ClientAuthRejected, detail })
                };
                Issued { result, facts: IssueFacts::default() }
            })
        }

        fn revoke<'a>(
            &'a self,
            _: &'a Order,
            _: &'a Signers,
            _: &'a Credential,
        ) -> Pending<'a, Result<(), IssueError>> {
            Box::pin(async { Ok(()) })
        }

        fn endpoints(&self) -> Arc<Vec<Target>> {
            Arc::default()
        }

        /// As one whose registrations are down for an hour.
        fn registration<'a>(
            &'a self,
            _: &'a Access,
            ask: Ask,
        ) -> Pending<'a, Result<Registration, IssueError>> {
            Box::pin(async move {
                if self.clock.seconds() < 3600.0 {
                    let detail = "503".into();
                    return Err(IssueError::Retry { reason: Reason::IssuerUnavailable, detail, after: None });
                }
                let mut published = self.published.lock().unwrap();
                let mut document = self.document.lock().unwrap();
                if let Ask::Replace(sent) = ask {
                    let keys = sent["jwks"]["keys"].as_array().unwrap();
                    *published = keys.iter().map(|key| key["kid"].as_str().unwrap().to_owned()).collect();
                    *document = sent;
                }
                let metadata = document.as_object().unwrap().clone();
                Ok(Registration { metadata, renewed: None, misplaced: None })
            })
        }
    }

    struct Stage {
        issuer: Arc<Caching>,
        clock: Arc<PausedClock>,
        broker: Broker,
        rotor: Rotor,
        told: mpsc::UnboundedReceiver<crate::broker::News>,
    }

    fn bound() -> Order {
        Order { binding: Binding::Dpop, ..order("corp", "a") }
    }

    fn policy() -> Arc<Policy> {
        policy_by(ClientAuth::PrivateKeyJwt)
    }

    /// A rule that orders from `issuer`.
    pub(in crate::broker) fn rule(issuer: &str, client_auth: ClientAuth) -> CredentialRule {
        let order = bound();
        CredentialRule {
            name: order.credential,
            issuer: issuer.into(),
            client_id: order.client_id,
            resource: None,
            require_aud: false,
            scope: order.scope,
            binding: Binding::Dpop,
            key_export: false,
            proofs: Proofs { origins: ["https://a.example".into()].into(), ..Proofs::default() },
            username: None,
            forward: None,
            per: Per::Identity,
            max_uses: None,
            max_ttl: order.max_ttl,
            exception: None,
            terms: Arc::new(Terms { client_auth, ..Terms::clone(&order.terms) }),
        }
    }

    fn policy_by(client_auth: ClientAuth) -> Arc<Policy> {
        let rule = rule(&bound().issuer, client_auth);
        let identity = Identity {
            name: "payments".into(),
            owner: "payments@example.com".into(),
            assurance: Assurance::Interim,
            selectors: vec![Selectors { slice: Some("a.slice".into()), ..Selectors::default() }],
            credentials: [(Arc::clone(&rule.name), Arc::new(rule))].into(),
            shows: None,
            humans: Humans::Told,
            service_manager: false,
            delivery: Arc::default(),
        };
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        Arc::new(Policy::new(vec![identity], Default::default(), "test", now).unwrap())
    }

    fn in_memory() -> KeySettings {
        KeySettings {
            custody: Custody::Memory,
            algorithm: Algorithm::Es256,
            client: true,
            rotation: Default::default(),
            dpop: ["corp".into()].into(),
        }
    }

    fn stage() -> Stage {
        stage_with(in_memory(), policy())
    }

    fn stage_with(settings: KeySettings, policy: Arc<Policy>) -> Stage {
        certified(settings, policy, None)
    }

    /// One whose identity shows a certificate.
    fn certified(
        settings: KeySettings,
        policy: Arc<Policy>,
        certificate: Option<CertificateSettings>,
    ) -> Stage {
        let clock = PausedClock::new();
        let now = Now::by(&*clock);
        let keys = Keyring::open(&[("payments".into(), settings)].into(), &Keyring::default(), now).unwrap();
        let wanted = certificate.map(|settings| ("payments".into(), settings)).into_iter().collect();
        let certificates = Certificates::open(&wanted, &Certificates::default(), &keys, now.wall).unwrap();
        let issuer = Arc::new(Caching {
            clock: Arc::clone(&clock),
            published: Mutex::default(),
            document: Mutex::new(serde_json::json!({"client_id": "payments"})),
            cache: Mutex::new((clock.boot(), HashSet::new())),
            refused: Mutex::default(),
        });
        let issuers = [("corp".into(), Arc::clone(&issuer) as Arc<dyn Issuer>)].into();
        let (telling, told) = mpsc::unbounded_channel();
        let dice = SeededDice::from_seed(3);
        let books =
            Books { issuers, keys: keys.clone(), certificates: certificates.clone(), ..Books::default() };
        let (broker, keeper) = crate::broker::new(books, Arc::clone(&clock) as _, dice, telling, None);
        tokio::spawn(keeper.run());
        let rotor = Rotor::new(keys, certificates, policy, broker.clone(), Arc::clone(&clock) as _);
        let stage = Stage { issuer, clock, broker, rotor, told };
        stage.publish();
        stage
    }

    impl Stage {
        /// What whoever serves the key set does with every export.
        fn publish(&self) {
            let kids = self.rotor.keys().to_register().map(|(_, key)| key.kid().to_owned());
            let all = self.rotor.certificates().to_register().flat_map(|(_, all)| all);
            let kids = kids.chain(all.map(|one| one.thumbprint().to_owned()));
            *self.issuer.published.lock().unwrap() = kids.collect();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_notices_a_rotation() {
        // KEY-05, DPOP-14, S34: fifty requests a second through one whole rotation, at an issuer that caches keys for ten
        // minutes.
        let mut stage = stage();
        let broker = stage.broker.clone();
        let clock = Arc::clone(&stage.clock);
        let load = tokio::spawn(async move {
            let mut proofs = HashSet::new();
            let began = clock.boot();
            let mut asked = 0;
            while clock.boot().since(began) < Duration::from_secs(40 * 60) {
                let got = broker.fetch_order(bound(), Duration::ZERO, Duration::from_secs(1)).await;
                let got = got.expect("not one request fails").credential;
                assert!(!got.window.left(clock.boot()).is_zero(), "nor is an expired one handed out");
                proofs.insert(got.bound.thumbprint().unwrap().to_owned());
                asked += 1;
                sleep(Duration::from_millis(20)).await;
            }
            (asked, proofs.len())
        });
        let first = stage.rotor.keys().signer(&"payments".into(), Purpose::ClientAuth).unwrap();
        sleep(Duration::from_secs(60)).await;
        let mut turns = stage.rotor.rotate(&"payments".into());
        stage.publish();
        while turns.len() < 4 {
            turns.extend(stage.rotor.turn().await);
            stage.publish();
        }
        let kinds: Vec<String> = turns
            .iter()
            .map(|turn| format!("{:?}", turn.what).chars().take_while(|c| c.is_alphabetic()).collect())
            .collect();
        assert_eq!(kinds, ["Published", "Proofs", "Signs", "Destroyed"]);
        let last: Vec<_> = stage.rotor.keys().to_register().map(|(_, key)| key.kid().to_owned()).collect();
        assert!(last.len() == 1 && last[0] != first.kid());
        let (asked, proofs) = load.await.unwrap();
        assert!(asked > 100_000, "{asked}");
        assert_eq!((proofs, *stage.issuer.refused.lock().unwrap()), (2, 0));
        // The token of the trial was given back.
        assert_eq!(crate::broker::tests::next_revoked(&mut stage.told).await.cause, Cause::Unclaimed);
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_that_nobody_registered_never_signs() {
        // KEY-05: the gate is that the issuer takes it, not the time.
        let mut stage = stage();
        let first = stage.rotor.keys().signer(&"payments".into(), Purpose::ClientAuth).unwrap();
        stage.rotor.rotate(&"payments".into());
        for _ in 0..5 {
            let turns = stage.rotor.turn().await;
            assert!(
                matches!(&turns[..], [Turn { what: Turned::NotTaken { why, .. }, .. }] if why.contains("invalid_client"))
            );
        }
        let now = stage.rotor.keys().signer(&"payments".into(), Purpose::ClientAuth).unwrap();
        assert_eq!(now.kid(), first.kid());
        stage.broker.fetch_order(bound(), Duration::ZERO, Duration::from_secs(1)).await.unwrap();
        // Registered at last, and an operator does not wait for the next trial.
        stage.publish();
        sleep(Duration::from_secs(600)).await;
        stage.rotor.rotate(&"payments".into());
        let turns = stage.rotor.turn().await;
        assert!(matches!(&turns[..], [Turn { what: Turned::Signs { .. }, .. }]), "{turns:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_that_registers_itself_signs_when_caches_have_heard_of_it_and_not_before() {
        // KEY-05, KEY-09: the issuer cannot be told for an hour, then it can, and keeps sets for ten minutes.
        let stage = stage();
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let token_file = dir.path().join("token");
        fs::write(&token_file, "canary").unwrap();
        fs::set_permissions(&token_file, fs::Permissions::from_mode(0o600)).unwrap();
        let of = RegistrationSettings {
            identity: "payments".into(),
            issuer: "corp".into(),
            client_id: "payments".into(),
            client_auth: ClientAuth::PrivateKeyJwt,
            grants: BTreeSet::new(),
            uri: "https://idp.example/r".into(),
            token_file,
            kept: dir.path().join("sealed"),
        };
        let books =
            Books { registrations: vec![Arc::new(of)], ..Books::clone(&stage.broker.shared.books.load()) };
        stage.broker.replace(books, |_| false);
        let dice = SeededDice::from_seed(4);
        let rights = Rights::new(SealingKey::of(&Secret::new("seed")), Arc::clone(&dice) as _);
        let Stage { rotor, clock, issuer, .. } = stage;
        let mut rotor = rotor.telling(Registrar::new(rights, dice));
        let payments: Arc<str> = "payments".into();
        let first = rotor.keys().signer(&payments, Purpose::ClientAuth).unwrap();
        rotor.rotate(&payments);
        let mut told = None;
        loop {
            for turn in rotor.turn().await {
                match turn.what {
                    Turned::NotRegistered { .. } | Turned::NotTaken { .. } => {
                        assert!(told.is_none(), "once it was told, the issuer takes it: {turn:?}");
                        let signs = rotor.keys().signer(&payments, Purpose::ClientAuth).unwrap();
                        assert_eq!(signs.kid(), first.kid(), "and until then the one before goes on");
                    }
                    Turned::Registered { kids, .. } if told.is_none() => {
                        assert_eq!(kids.len(), 2);
                        told = Some(clock.boot());
                    }
                    Turned::Signs { .. } => {
                        assert!(clock.boot().since(told.unwrap()) >= PROPAGATION);
                        assert_eq!(issuer.published.lock().unwrap().len(), 2);
                        // Nobody is asked before it is known.
                        return;
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn keys_rotate_by_themselves_when_they_are_old() {
        // KEY-08, K57-1, K57-2
        let mut stage = stage();
        let mut seen = Vec::new();
        while stage.clock.seconds() < 31.0 * 86_400.0 && !seen.contains(&"Published") {
            for turn in stage.rotor.turn().await {
                seen.push(match turn.what {
                    Turned::Published { .. } => "Published",
                    Turned::Proofs => "Proofs",
                    other => panic!("{other:?}"),
                });
            }
        }
        assert_eq!(seen.iter().filter(|what| **what == "Proofs").count(), 30, "one a day");
        assert!(seen.contains(&"Published"));
    }

    /// As a disk that is full: no key can be made in `dir`, also if we are root.
    fn shut(dir: &tempfile::TempDir, shut: bool) {
        let mode = if shut { 0o755 } else { 0o700 };
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(mode)).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_done_is_tried_again_after_a_pause() {
        // KEY-05
        let dir = tempfile::tempdir().unwrap();
        shut(&dir, false);
        let path = dir.path().join("payments.pem");
        let every = Duration::from_secs(3600);
        let rotation = RotationSettings { every, ..Default::default() };
        let settings = KeySettings { custody: Custody::File { path }, rotation, ..in_memory() };
        let mut stage = stage_with(settings, policy());
        let payments: Arc<str> = "payments".into();
        let failed = |turns: &[Turn]| matches!(turns, [Turn { what: Turned::Failed(_), .. }]);
        shut(&dir, true);
        let turns = stage.rotor.turn().await;
        let first = stage.clock.boot();
        assert!(failed(&turns), "{turns:?}");
        let turns = stage.rotor.turn().await;
        assert!(failed(&turns) && stage.clock.boot().since(first) >= RETRY, "{turns:?}");
        // An operator does not wait.
        shut(&dir, false);
        let turns = stage.rotor.rotate(&payments);
        assert!(matches!(turns[0].what, Turned::Published { .. }), "{turns:?}");
        // The issuer takes it, but it cannot be put in its place.
        stage.publish();
        fs::remove_file(dir.path().join("payments.pem.next")).unwrap();
        let turns = stage.rotor.turn().await;
        let first = stage.clock.boot();
        assert!(failed(&turns), "{turns:?}");
        let turns = stage.rotor.turn().await;
        assert!(failed(&turns) && stage.clock.boot().since(first) >= RETRY, "{turns:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_trial_of_a_key_that_is_no_more_says_nothing_of_the_next() {
        // KEY-05, KEY-07
        let mut stage = stage();
        let payments: Arc<str> = "payments".into();
        stage.rotor.rotate(&payments);
        stage.publish();
        // The trial begins; then the keys are destroyed, and the issuer takes the one that is no more.
        stage.rotor.rotate(&payments);
        stage.rotor.replace(&payments);
        let turned = timeout(Duration::from_secs(60), stage.rotor.turn()).await;
        assert!(turned.is_err() && stage.rotor.trying.is_empty(), "{turned:?}");

        stage.publish();
        sleep(Duration::from_secs(600)).await;
        stage.rotor.rotate(&payments);
        stage.publish();
        sleep(Duration::from_secs(600)).await;
        stage.rotor.rotate(&payments);
        stage.rotor.replace(&payments);
        stage.rotor.rotate(&payments);
        let next = stage.rotor.keys().next(&payments).unwrap();
        let began = stage.clock.boot();
        stage.publish();
        let turns = stage.rotor.turn().await;
        assert!(matches!(&turns[..], [Turn { what: Turned::Signs { kid }, .. }] if kid == next.kid()));
        assert!(stage.clock.boot().since(began) >= PROPAGATION, "only once it was tried itself");
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_no_key_that_signs_is_told_what_to_do_instead() {
        // KEY-07
        let payments: Arc<str> = "payments".into();
        let spiffe = SvidSource::WorkloadApi {
            socket: "/run/spire.sock".into(),
            spiffe_id: "spiffe://example.com/payments".into(),
        };
        let cases = [
            (ClientAuth::PrivateKeyJwt, "give it a credential with client_auth"),
            (ClientAuth::SpiffeJwt(spiffe), "at the platform"),
        ];
        for (client_auth, words) in cases {
            for dpop in [BTreeSet::new(), ["corp".into()].into()] {
                let proofs = dpop.len();
                let settings = KeySettings { client: false, dpop, ..in_memory() };
                let mut stage = stage_with(settings, policy_by(client_auth.clone()));
                let binds = |rotor: &Rotor| {
                    rotor.keys().iter().map(|(_, _, key)| key.kid().to_owned()).collect::<Vec<_>>()
                };
                for act in [Rotor::rotate, Rotor::replace] {
                    let before = binds(&stage.rotor);
                    let turns = act(&mut stage.rotor, &payments);
                    assert_eq!(turns.len(), 1 + proofs, "{turns:?}");
                    let told = matches!(&turns[0].what, Turned::NoKey { instead } if instead.contains(words));
                    assert!(told, "{turns:?}");
                    assert!(turns[1..].iter().all(|turn| matches!(turn.what, Turned::Proofs)), "{turns:?}");
                    assert_eq!(before != binds(&stage.rotor), proofs == 1, "what binds tokens is renewed");
                }
            }
        }
    }

    const SHOWS: ClientAuth = ClientAuth::SelfSignedTlsClientAuth;

    /// One whose identity shows a certificate of its own in `dir`, and signs nothing.
    fn showing(dir: &tempfile::TempDir, signed_by: SignedBy) -> Stage {
        shut(dir, false);
        let certificate = CertificateSettings {
            custody: Custody::File { path: dir.path().join("payments.pem") },
            signed_by,
            san_uri: None,
            lifetime: Duration::from_secs(30 * 86_400),
            export: false,
        };
        let client_auth = match certificate.signed_by {
            SignedBy::Itself => SHOWS,
            SignedBy::Others(_) => ClientAuth::TlsClientAuth,
        };
        certified(KeySettings { client: false, ..in_memory() }, policy_by(client_auth), Some(certificate))
    }

    impl Stage {
        /// The thumbprints of what is shown: what is now, then what was.
        fn shown(&self) -> Vec<String> {
            let all = self.rotor.certificates().of(&"payments".into(), self.clock.wall());
            all.iter().map(|one| one.thumbprint().to_owned()).collect()
        }

        async fn ordered(&self) -> Result<crate::broker::Fetched, crate::broker::Failure> {
            let terms = Arc::new(Terms { client_auth: SHOWS, ..Terms::clone(&bound().terms) });
            let order = Order { terms, ..bound() };
            self.broker.fetch_order(order, Duration::ZERO, Duration::from_secs(1)).await
        }
    }

    fn published(turns: &[Turn]) -> Option<String> {
        turns.iter().find_map(|turn| match &turn.what {
            Turned::CertificatePublished { thumbprint } => Some(thumbprint.clone()),
            _ => None,
        })
    }

    #[tokio::test(start_paused = true)]
    async fn the_next_certificate_is_shown_once_its_issuers_take_it() {
        // MT-05, KEY-05, S34
        let dir = tempfile::tempdir().unwrap();
        let mut stage = showing(&dir, SignedBy::Itself);
        let payments: Arc<str> = "payments".into();
        let first = stage.shown();
        let turns = stage.rotor.rotate(&payments);
        let next = published(&turns).unwrap();
        assert_eq!((stage.shown(), turns.len()), (first.clone(), 2), "{turns:?}");
        // Nobody registers it: it is tried after a while, again and again, and not shown.
        let began = stage.clock.boot();
        for _ in 0..3 {
            let turns = stage.rotor.turn().await;
            assert!(
                matches!(&turns[..], [Turn { what: Turned::CertificateNotTaken { thumbprint, why }, .. }]
                    if *thumbprint == next && why.contains("invalid_client")),
                "{turns:?}"
            );
        }
        assert!(stage.clock.boot().since(began) >= PROPAGATION + RETRY + RETRY);
        assert_eq!(stage.shown(), first);
        stage.ordered().await.unwrap();
        // Registered at last, and an operator does not wait for the next trial.
        stage.publish();
        sleep(Duration::from_secs(600)).await;
        assert_eq!(published(&stage.rotor.rotate(&payments)), None, "it is the same still");
        let turns = stage.rotor.turn().await;
        assert!(
            matches!(&turns[..], [Turn { what: Turned::CertificateShown { thumbprint }, .. }] if *thumbprint == next),
            "{turns:?}"
        );
        assert_eq!(stage.shown(), [next, first[0].clone()], "the one before is at hand until it ends");
        assert_eq!(crate::broker::tests::next_revoked(&mut stage.told).await.cause, Cause::Unclaimed);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_made_in_its_time_is_tried_too() {
        // MT-05
        let dir = tempfile::tempdir().unwrap();
        let mut stage = showing(&dir, SignedBy::Itself);
        let payments: Arc<str> = "payments".into();
        stage.clock.push_wall(21);
        stage.rotor.certificates().tend(&payments, Now::by(&*stage.clock));
        stage.publish();
        let turns = timeout(Duration::from_secs(86_400), stage.rotor.turn()).await.expect("before its time");
        assert!(matches!(&turns[..], [Turn { what: Turned::CertificateShown { .. }, .. }]), "{turns:?}");
        assert!(stage.clock.seconds() >= PROPAGATION.as_secs_f64());
    }

    #[tokio::test(start_paused = true)]
    async fn in_an_emergency_the_key_of_the_certificate_goes_too() {
        // KEY-07, MT-05
        let dir = tempfile::tempdir().unwrap();
        let mut stage = showing(&dir, SignedBy::Itself);
        let payments: Arc<str> = "payments".into();
        stage.rotor.rotate(&payments);
        stage.publish();
        sleep(Duration::from_secs(600)).await;
        // One is tried while all of them are replaced: what comes of that says nothing of what is shown now.
        stage.rotor.rotate(&payments);
        let pem = fs::read_to_string(dir.path().join("payments.pem")).unwrap();
        let gone = stage.rotor.certificates().to_register().flat_map(|(_, all)| all);
        let gone: Vec<String> = gone.map(|one| one.thumbprint().to_owned()).collect();
        assert_eq!(gone.len(), 2);
        let turns = stage.rotor.replace(&payments);
        let [Turn { what: Turned::CertificateShown { thumbprint }, .. }, _] = &turns[..] else {
            panic!("{turns:?}");
        };
        assert_eq!(stage.shown().iter().collect::<Vec<_>>(), [thumbprint]);
        assert!(!gone.contains(thumbprint));
        let files: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|file| file.unwrap().path()).collect();
        assert_eq!(files, [dir.path().join("payments.pem")], "nothing of the others is left");
        assert_ne!(fs::read_to_string(&files[0]).unwrap(), pem);
        let turned = timeout(Duration::from_secs(60), stage.rotor.turn()).await;
        assert!(turned.is_err() && stage.rotor.trying.is_empty(), "{turned:?}");
        // It has to be registered first.
        assert!(stage.ordered().await.is_err());
        stage.publish();
        sleep(Duration::from_secs(600)).await;
        stage.ordered().await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_certificate_that_cannot_be_made_leaves_the_one_before() {
        // KEY-07
        let dir = tempfile::tempdir().unwrap();
        let mut stage = showing(&dir, SignedBy::Itself);
        let (payments, first): (Arc<str>, _) = ("payments".into(), stage.shown());
        shut(&dir, true);
        for act in [Rotor::rotate, Rotor::replace] {
            let turns = act(&mut stage.rotor, &payments);
            assert!(
                matches!(&turns[0].what, Turned::CertificateFailed(error) if error.to_string().contains("KEY_PERM"))
            );
            assert!(matches!(turns[1].what, Turned::Proofs), "what binds tokens is renewed all the same");
            assert_eq!(stage.shown(), first);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_shows_a_certificate_of_a_ca_is_told_what_to_do_there() {
        // KEY-07, X5-03
        let dir = tempfile::tempdir().unwrap();
        shut(&dir, false);
        let key = rcgen::KeyPair::generate().unwrap();
        let leaf = rcgen::CertificateParams::new(vec![]).unwrap().self_signed(&key).unwrap();
        let chain = dir.path().join("payments.crt");
        for (path, text) in [(&chain, leaf.pem()), (&dir.path().join("payments.pem"), key.serialize_pem())] {
            fs::write(path, text).unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
        }
        let mut stage = showing(&dir, SignedBy::Others(chain.clone()));
        for act in [Rotor::rotate, Rotor::replace] {
            let before = fs::read_to_string(&chain).unwrap();
            let turns = act(&mut stage.rotor, &"payments".into());
            let Turned::NotOurs { instead } = &turns[0].what else { panic!("{turns:?}") };
            for words in ["its CA", "payments.crt", "payments.pem", "keybearer reload"] {
                assert!(instead.contains(words), "{instead}");
            }
            assert_eq!(fs::read_to_string(&chain).unwrap(), before);
            assert_eq!(turns.len(), 2, "what binds tokens is renewed");
        }
    }
}

//! What must hold of any policy and any evidence.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;

use super::{
    Assurance, CredentialRule, Door, Export, Exports, Humans, Identity, Named, Per, Policy, Proofs, Reason,
    Selectors, Wish, index::Index,
};
use crate::{
    attest::{Errand, Evidence, Executable, Hold, Login, Manager, Missing, Status, Unit},
    credential::Binding,
};

/// Evidence that is missing matches nothing; one selector more never lets somebody in; the index leaves nobody out; what is
/// granted was asked for and is in the rule; an exported socket takes away whom it is not for and changes nothing else; the
/// same question has the same answer.
pub fn policy(bytes: &[u8]) {
    let mut chance = Chance(bytes.iter());
    let identities: Vec<Identity> =
        (0..=chance.below(4)).map(|n| identity(&format!("i{n}"), &mut chance)).collect();
    let evidence = evidence(&mut chance);
    let all: Vec<Arc<Identity>> = identities.iter().cloned().map(Arc::new).collect();
    let index = Index::over(all.iter());
    for identity in &all {
        for selectors in &identity.selectors {
            let matches = selectors.match_all(&evidence);
            assert_eq!(matches, selectors.missed(&evidence).is_empty());
            if matches {
                assert!(index.candidates(&evidence).any(|candidate| candidate.name == identity.name));
            } else if !selectors.is_empty() {
                let group = Some(Named { id: evidence.gid(), name: None });
                let narrower = Selectors { group: selectors.group.clone().or(group), ..selectors.clone() };
                assert!(!narrower.match_all(&evidence), "one selector more let somebody in");
            }
            let nothing = without_evidence(&evidence);
            let names_evidence = selectors.supplementary.is_some()
                || selectors.exe.is_some()
                || selectors.sha256.is_some()
                || selectors.rest_on_the_unit();
            assert!(!(names_evidence && selectors.match_all(&nothing)), "missing evidence matched");
        }
    }
    let words = ["read", "write", "admin"].map(str::to_owned);
    let scope: Vec<String> = words.into_iter().filter(|_| chance.below(2) == 1).collect();
    let names = all.iter().map(|identity| Arc::clone(&identity.name));
    let served: BTreeSet<Arc<str>> = names.filter(|_| chance.below(2) == 1).collect();
    let export = Export { path: "/e".into(), identities: served.clone() };
    let exports = Exports::from_iter((!served.is_empty()).then_some(("e".into(), export)));
    let Ok(policy) = Policy::new(identities, exports, "fuzz", Timestamp::UNIX_EPOCH) else { return };
    let wish = Wish { credential: "c", scope: &scope, ..Wish::at(&Door::Own) };
    let (reason, explanation) = policy.explain(&evidence, &wish, Timestamp::UNIX_EPOCH);
    assert_eq!(policy.explain(&evidence, &wish, Timestamp::UNIX_EPOCH), (reason, explanation.clone()));
    let who: Vec<&Arc<Identity>> = all
        .iter()
        .filter(|identity| identity.selectors.iter().any(|selectors| selectors.match_all(&evidence)))
        .collect();
    match (&who[..], reason) {
        ([], reason) => assert_eq!(reason, Some(Reason::NoIdentity)),
        ([_, _, ..], reason) => assert_eq!(reason, Some(Reason::Ambiguous)),
        ([one], None) => {
            assert_eq!(explanation.identity.as_ref(), Some(&one.name));
            assert!(evidence.level() >= one.assurance.level());
            let rule = &one.credentials["c"];
            assert!(scope.iter().all(|word| rule.scope.iter().any(|granted| **granted == **word)));
        }
        ([_], Some(_)) => {}
    }
    by_the_unit_alone(&policy, &all, &evidence, &wish);
    let door = Door::Export(Path::new("/e").into());
    let there = policy.explain(&evidence, &Wish { door: &door, ..wish }, Timestamp::UNIX_EPOCH).0;
    match &who[..] {
        [one] if !served.contains(&one.name) => assert_eq!(there, Some(Reason::NotAtThisSocket)),
        _ => assert_eq!(there, reason),
    }
}

/// At the service manager's door: the kernel's unit and the manager's are one, it is that of the identity, which says that the manager
/// may ask; and nothing else that the evidence says has any weight.
fn by_the_unit_alone(policy: &Policy, all: &[Arc<Identity>], evidence: &Evidence, wish: &Wish<'_>) {
    for unit in ["u0.service", "u1.service", "u2.service"] {
        let errand = Errand { unit: unit.into(), credential: "c".into() };
        let door = Door::ServiceManager(Arc::new(errand));
        let at_door = Wish { door: &door, ..*wish };
        let (reason, explanation) = policy.explain(evidence, &at_door, Timestamp::UNIX_EPOCH);
        let root = Evidence { uids: [0; 4], gids: [0; 4], ..without_all_but_the_unit(evidence) };
        assert_eq!(policy.explain(&root, &at_door, Timestamp::UNIX_EPOCH).0, reason);
        if reason.is_none() {
            let is = evidence.unit.as_ref().expect("a grant by the unit has one");
            assert_eq!((is.name.as_str(), is.manager), (unit, Manager::System));
            let who = all.iter().find(|identity| Some(&identity.name) == explanation.identity.as_ref());
            let who = who.expect("one of them");
            assert!(who.service_manager && who.selectors.iter().any(|of| of.unit.as_deref() == Some(unit)));
        }
    }
}

fn without_all_but_the_unit(evidence: &Evidence) -> Evidence {
    Evidence { unit: evidence.unit.clone(), ..without_evidence(evidence) }
}

/// Bytes as decisions; zeros when they are used up.
struct Chance<'a>(std::slice::Iter<'a, u8>);

impl Chance<'_> {
    fn below(&mut self, end: u8) -> u8 {
        self.0.next().copied().unwrap_or(0) % end
    }

    fn maybe<T>(&mut self, make: impl FnOnce(u8) -> T) -> Option<T> {
        let drawn = self.below(8);
        (drawn < 4).then(|| make(drawn % 2))
    }
}

fn identity(name: &str, chance: &mut Chance<'_>) -> Identity {
    let rule = CredentialRule {
        name: "c".into(),
        issuer: "corp".into(),
        client_id: name.into(),
        resource: None,
        require_aud: false,
        scope: ["read".into(), "write".into()].into(),
        binding: Binding::Bearer,
        key_export: false,
        terms: Arc::default(),
        proofs: Proofs::default(),
        username: None,
        forward: None,
        per: Per::Identity,
        max_uses: None,
        max_ttl: Duration::from_secs(300),
        exception: Some(super::Exception {
            owner: "team@example.com".into(),
            reason: "fuzzing".into(),
            until: Timestamp::UNIX_EPOCH + jiff::SignedDuration::from_hours(24),
        }),
    };
    Identity {
        name: name.into(),
        owner: "team@example.com".into(),
        assurance: [Assurance::Interim, Assurance::Standard][usize::from(chance.below(2))],
        selectors: (0..=chance.below(2)).map(|_| selectors(chance)).collect(),
        credentials: BTreeMap::from([(Arc::clone(&rule.name), Arc::new(rule))]),
        shows: None,
        humans: Humans::Told,
        service_manager: chance.below(4) == 1,
        delivery: Arc::default(),
    }
}

fn selectors(chance: &mut Chance<'_>) -> Selectors {
    let named = |drawn: u8| Named { id: 1000 + u32::from(drawn), name: None };
    Selectors {
        user: chance.maybe(named),
        group: chance.maybe(named),
        supplementary: chance.maybe(named),
        exe: chance.maybe(|drawn| format!("/usr/bin/p{drawn}").into()),
        sha256: chance.maybe(|drawn| [drawn; 32]),
        unit: chance.maybe(|drawn| format!("u{drawn}.service")),
        slice: chance.maybe(|drawn| format!("s{drawn}.slice")),
        user_unit: chance.maybe(|drawn| format!("u{drawn}.service")),
    }
}

fn evidence(chance: &mut Chance<'_>) -> Evidence {
    let uid = 1000 + u32::from(chance.below(2));
    let gid = 1000 + u32::from(chance.below(2));
    let drawn = usize::from(chance.below(3));
    let manager = [Manager::System, Manager::User(uid)][usize::from(chance.below(2))];
    let unit = Unit {
        name: format!("u{drawn}.service"),
        manager,
        slices: vec![format!("s{drawn}.slice")],
        invocation: None,
    };
    Evidence {
        pid: 7,
        start: 1,
        uids: [uid; 4],
        gids: [gid; 4],
        status: Ok(Status {
            uids: [uid; 4],
            gids: [gid; 4],
            groups: vec![1000 + u32::from(chance.below(2))],
            tracer: 0,
            no_new_privs: false,
            seccomp: 0,
        }),
        login: Login::NONE,
        exe: Err::<Executable, _>(Missing::NotPermitted),
        exe_paths: chance
            .maybe(|drawn| vec![format!("/usr/bin/p{drawn}").into()])
            .ok_or(Missing::ExeReplaced),
        sha256: chance.maybe(|drawn| [drawn; 32]).ok_or(Missing::ExeTooLarge),
        path_hint: None,
        exec: Ok(()),
        answered: chance.maybe(|_| ()).ok_or(Missing::Unanswered),
        unit: chance.maybe(|_| unit).ok_or(Missing::NoUnit),
        same_user_namespace: Ok(true),
        mount_namespace: Ok(1),
        hosts_files: Ok(true),
        cgroup: String::new(),
        hold: Hold::Socket,
    }
}

fn without_evidence(evidence: &Evidence) -> Evidence {
    Evidence {
        exe_paths: Err(Missing::Exited),
        sha256: Err(Missing::Exited),
        unit: Err(Missing::Exited),
        status: Err(Missing::Exited),
        ..evidence.clone()
    }
}

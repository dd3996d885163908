use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::{
    api::Path,
    attest::{Errand, Executable, Hold, Login, Manager, Missing, Status, Unit},
    credential::Binding,
    issuer::terms::{ClientAuth, SealedBy, SealedTerms, Terms, Wants},
    proof::Target,
};

const NOW: &str = "2026-01-01T00:00:00Z";

fn now() -> Timestamp {
    NOW.parse().unwrap()
}

fn evidence(uid: u32, unit: Option<&str>) -> Evidence {
    Evidence {
        pid: 4242,
        start: 1,
        uids: [uid; 4],
        gids: [uid; 4],
        status: Ok(Status {
            uids: [uid; 4],
            gids: [uid; 4],
            groups: vec![27],
            tracer: 0,
            no_new_privs: false,
            seccomp: 0,
        }),
        login: Login::NONE,
        exe: Err::<Executable, _>(Missing::NotPermitted),
        exe_paths: Ok(vec!["/usr/bin/payments".into()]),
        sha256: Ok([9; 32]),
        path_hint: Some("/usr/bin/payments".into()),
        exec: Ok(()),
        answered: Ok(()),
        unit: unit
            .map(|name| Unit {
                name: name.into(),
                manager: Manager::System,
                slices: vec!["system.slice".into()],
                invocation: None,
            })
            .ok_or(Missing::NoUnit),
        same_user_namespace: Ok(true),
        mount_namespace: Ok(1),
        hosts_files: Ok(true),
        cgroup: String::new(),
        hold: Hold::Socket,
    }
}

fn user(id: u32) -> Selectors {
    Selectors { user: Some(Named { id, name: None }), ..Selectors::default() }
}

fn unit(name: &str) -> Selectors {
    Selectors { unit: Some(name.into()), ..Selectors::default() }
}

fn identity(name: &str, selectors: Selectors) -> Identity {
    let rule = CredentialRule {
        name: "ledger".into(),
        issuer: "corp".into(),
        client_id: name.into(),
        resource: Some("https://ledger.example.com".into()),
        require_aud: true,
        scope: ["ledger:read".into(), "ledger:write".into()].into(),
        binding: Binding::Bearer,
        key_export: false,
        terms: Arc::default(),
        proofs: Proofs::default(),
        username: None,
        forward: None,
        per: Per::Identity,
        max_uses: None,
        max_ttl: Duration::from_secs(300),
        exception: Some(Exception {
            owner: "ops@example.com".into(),
            reason: "not bound yet".into(),
            until: "2026-03-01T00:00:00Z".parse().unwrap(),
        }),
    };
    Identity {
        name: name.into(),
        owner: "ops@example.com".into(),
        assurance: Assurance::Interim,
        selectors: vec![selectors],
        credentials: BTreeMap::from([(Arc::clone(&rule.name), Arc::new(rule))]),
        shows: None,
        humans: Humans::Told,
        service_manager: false,
        delivery: Arc::default(),
    }
}

fn policy(identities: Vec<Identity>) -> Policy {
    Policy::new(identities, Exports::new(), "prod", now()).unwrap()
}

fn refused(identities: Vec<Identity>) -> Vec<String> {
    let problems = Policy::new(identities, Exports::new(), "prod", now()).unwrap_err();
    problems.into_iter().map(|problem| format!("{}: {}", problem.key, problem.message)).collect()
}

const LEDGER: Wish<'static> =
    Wish { credential: "ledger", scope: &[], door: &Door::Own, purpose: Purpose::Take };

fn reason(policy: &Policy, evidence: &Evidence, wish: &Wish<'_>, at: Timestamp) -> Option<Reason> {
    policy.explain(evidence, wish, at).0
}

#[test]
fn the_index_leaves_out_nobody_who_matches() {
    let slice = Selectors { slice: Some("system.slice".into()), ..Selectors::default() };
    let exe = Selectors { exe: Some("/usr/bin/payments".into()), ..Selectors::default() };
    let unit_and_user = Selectors { user: user(1000).user, ..unit("payments.service") };
    let all: Vec<Arc<Identity>> = [user(1000), unit("payments.service"), slice, exe, unit_and_user, user(7)]
        .into_iter()
        .enumerate()
        .map(|(n, selectors)| Arc::new(identity(&format!("i{n}"), selectors)))
        .collect();
    let index = Index::over(all.iter());
    for evidence in
        [evidence(1000, Some("payments.service")), evidence(1000, None), evidence(7, Some("x.service"))]
    {
        let names = |identities: Vec<&Arc<Identity>>| {
            identities
                .iter()
                .map(|identity| identity.name.to_string())
                .collect::<std::collections::BTreeSet<_>>()
        };
        let matches = |identity: &&Arc<Identity>| identity.selectors[0].match_all(&evidence);
        let weighed = names(all.iter().filter(matches).collect());
        assert!(!weighed.is_empty());
        assert_eq!(names(index.candidates(&evidence).filter(matches).collect()), weighed);
    }
}

#[test]
fn nobody_is_entitled_by_default() {
    assert_eq!(reason(&Policy::default(), &evidence(0, None), &LEDGER, now()), Some(Reason::NoIdentity));
}

#[test]
fn a_match_needs_every_selector() {
    let both = Selectors { unit: Some("payments.service".into()), ..user(1000) };
    let policy = policy(vec![identity("payments", both)]);
    assert_eq!(reason(&policy, &evidence(1000, Some("payments.service")), &LEDGER, now()), None);
    for other in
        [evidence(1000, None), evidence(1001, Some("payments.service")), evidence(1000, Some("x.service"))]
    {
        assert_eq!(reason(&policy, &other, &LEDGER, now()), Some(Reason::NoIdentity));
    }
    let (_, why) = policy.explain(&evidence(1000, None), &LEDGER, now());
    assert_eq!(why.missing(), ["payments: unit should be payments.service: it runs in no unit of this host"]);
}

#[test]
fn every_selector_matches_and_misses() {
    let named = |id| Some(Named { id, name: None });
    let none = Selectors::default;
    let cases = [
        (Selectors { user: named(1000), ..none() }, Selectors { user: named(1), ..none() }),
        (Selectors { group: named(1000), ..none() }, Selectors { group: named(27), ..none() }),
        // ATT-10
        (
            Selectors { supplementary: named(27), ..none() },
            Selectors { supplementary: named(1000), ..none() },
        ),
        (
            Selectors { exe: Some("/usr/bin/payments".into()), ..none() },
            Selectors { exe: Some("/usr/bin/other".into()), ..none() },
        ),
        (Selectors { sha256: Some([9; 32]), ..none() }, Selectors { sha256: Some([8; 32]), ..none() }),
        (unit("payments.service"), unit("other.service")),
        (
            Selectors { slice: Some("system.slice".into()), ..none() },
            Selectors { slice: Some("user.slice".into()), ..none() },
        ),
    ];
    let seen = evidence(1000, Some("payments.service"));
    for (hit, miss) in cases {
        assert_eq!(hit.missed(&seen), Vec::<String>::new(), "{hit:?}");
        assert_eq!(miss.missed(&seen).len(), 1, "{miss:?}");
    }
    let mut of_user = seen.clone();
    of_user.unit.as_mut().unwrap().manager = Manager::User(1000);
    let user_unit = Selectors { user_unit: Some("payments.service".into()), ..none() };
    assert!(user_unit.missed(&of_user).is_empty());
    assert_eq!(user_unit.missed(&seen).len(), 1, "the host's unit is no user's unit");
    // ATT-15: and a user's unit never passes for the host's.
    assert_eq!(unit("payments.service").missed(&of_user).len(), 1);
}

#[test]
fn weak_evidence_is_denied_with_what_it_lacks() {
    // ATT-03
    let policy =
        policy(vec![Identity { assurance: Assurance::Standard, ..identity("payments", user(1000)) }]);
    assert_eq!(reason(&policy, &evidence(1000, None), &LEDGER, now()), Some(Reason::Level));
    assert_eq!(reason(&policy, &evidence(1000, Some("a.service")), &LEDGER, now()), None);
    let opened = Evidence { hold: Hold::Opened, ..evidence(1000, Some("a.service")) };
    let (why, explanation) = policy.explain(&opened, &LEDGER, now());
    assert_eq!(why, Some(Reason::Level));
    assert_eq!(
        explanation.missing(),
        [
            "assurance standard needs level L3, this is L1: the kernel does not say by the socket who connected"
        ]
    );
}

/// Evidence of the process that asks for a unit, as measured: root, in the unit's cgroup, with a program that answers nothing.
fn managers(unit_of_cgroup: Option<&str>) -> Evidence {
    Evidence { answered: Err(Missing::NotChallenged), ..evidence(0, unit_of_cgroup) }
}

fn at_the_managers_door(policy: &Policy, says: &str, evidence: &Evidence) -> (Option<Reason>, Explanation) {
    let errand = Errand { unit: says.into(), credential: "ledger".into() };
    let door = Door::ServiceManager(Arc::new(errand));
    policy.explain(evidence, &Wish { door: &door, ..LEDGER }, now())
}

fn for_the_manager(selectors: Selectors) -> Identity {
    Identity { service_manager: true, assurance: Assurance::Standard, ..identity("payments", selectors) }
}

#[test]
fn the_service_manager_has_it_for_the_unit_that_says_so_and_for_no_other() {
    // LEGACY 2.6
    let team = |slice: &str| Selectors { slice: Some(slice.into()), ..unit("payments.service") };
    let of_user = Selectors { user: user(1000).user, ..team("system.slice") };
    let reason = |policy: &Policy, says, evidence: &Evidence| at_the_managers_door(policy, says, evidence).0;
    let open = policy(vec![for_the_manager(of_user.clone())]);
    let (granted, explanation) =
        at_the_managers_door(&open, "payments.service", &managers(Some("payments.service")));
    assert_eq!((granted, explanation.level), (None, Level::L3));
    assert_eq!(explanation.promised, ["user"], "what nobody could look at is said");
    assert_eq!(reason(&open, "other.service", &managers(Some("other.service"))), Some(Reason::NoIdentity));

    // Its own door alone: elsewhere the manager is whoever its evidence says, and that is not this identity.
    let evidence = managers(Some("payments.service"));
    assert_eq!(open.explain(&evidence, &LEDGER, now()).0, Some(Reason::NoIdentity));

    let closed = policy(vec![Identity { service_manager: false, ..for_the_manager(of_user) }]);
    let (refused, why) = at_the_managers_door(&closed, "payments.service", &evidence);
    assert_eq!(refused, Some(Reason::NotForServiceManager));
    assert_eq!(why.missing(), ["payments is not for the service manager to ask for"]);

    let elsewhere = policy(vec![for_the_manager(team("team.slice"))]);
    let (refused, why) = at_the_managers_door(&elsewhere, "payments.service", &evidence);
    assert_eq!(refused, Some(Reason::NoIdentity));
    assert_eq!(why.missing(), ["payments: slice should be team.slice, is system.slice"]);
}

#[test]
fn what_the_manager_says_counts_only_where_the_kernel_says_the_same() {
    let policy = policy(vec![for_the_manager(unit("payments.service"))]);
    for unit_of_cgroup in [None, Some("other.service")] {
        let (reason, why) = at_the_managers_door(&policy, "payments.service", &managers(unit_of_cgroup));
        assert_eq!(reason, Some(Reason::UnitConflict), "{unit_of_cgroup:?}");
        assert!(why.missing()[0].starts_with("it asks for payments.service, but "), "{:?}", why.missing());
    }
    let mut of_a_user = managers(Some("payments.service"));
    of_a_user.unit.as_mut().unwrap().manager = Manager::User(0);
    assert_eq!(
        at_the_managers_door(&policy, "payments.service", &of_a_user).0,
        Some(Reason::UnitConflict),
        "root's own user manager is not the host's"
    );
    // The other way round: the kernel's unit is this one, the manager's is not.
    let (reason, _) = at_the_managers_door(&policy, "other.service", &managers(Some("payments.service")));
    assert_eq!(reason, Some(Reason::UnitConflict));
}

#[test]
fn what_is_for_one_process_is_not_for_one_that_does_not_run_yet() {
    let mut identity = for_the_manager(unit("payments.service"));
    let rule = CredentialRule { per: Per::Process, ..(*identity.credentials["ledger"]).clone() };
    identity.credentials.insert("ledger".into(), Arc::new(rule));
    let policy = policy(vec![identity]);
    let (reason, _) = at_the_managers_door(&policy, "payments.service", &managers(Some("payments.service")));
    assert_eq!(reason, Some(Reason::NoProcess));
    assert!(Reason::NoProcess.remedy().contains("keybearer exec"));
}

#[test]
fn what_the_manager_may_ask_for_is_told_by_the_unit_alone() {
    let exe = Selectors { exe: Some("/usr/bin/payments".into()), ..unit("payments.service") };
    let high = Identity { assurance: Assurance::High, ..for_the_manager(unit("payments.service")) };
    for (identity, word) in [
        (for_the_manager(user(1000)), "name one in match"),
        (for_the_manager(exe), "exe and sha256"),
        (high, "L4"),
    ] {
        let said = refused(vec![identity]);
        let of_this = |line: &&String| line.starts_with("identities.payments.service_manager: ");
        assert!(said.iter().any(|line| of_this(&line) && line.contains(word)), "{word}: {said:?}");
    }
    // Told apart by their users, which nobody can see yet.
    let as_user = |id| Selectors { user: user(id).user, ..unit("payments.service") };
    let other = Identity { assurance: Assurance::Standard, ..identity("billing", as_user(1001)) };
    let said = refused(vec![for_the_manager(as_user(1000)), other.clone()]);
    assert!(said[0].starts_with("identities.payments.service_manager: identities.payments and"), "{said:?}");
    assert_eq!(said.len(), 1);
    policy(vec![Identity { service_manager: false, ..for_the_manager(as_user(1000)) }, other]);
}

#[test]
fn at_an_exported_socket_only_those_count_that_it_is_for() {
    // ATT-23
    let identities = || vec![identity("payments", user(1000)), identity("billing", user(1001))];
    let exports = |served: &[&str]| {
        let identities = served.iter().map(|name| Arc::from(*name)).collect();
        Exports::from([("web".into(), Export { path: "/run/web/agent.sock".into(), identities })])
    };
    let policy = Policy::new(identities(), exports(&["payments"]), "prod", now()).unwrap();
    let at = |uid, door: &Door| {
        let (reason, why) = policy.explain(&evidence(uid, None), &Wish { door, ..LEDGER }, now());
        (reason, why.missing())
    };
    let web = Door::Export(std::path::Path::new("/run/web/agent.sock").into());
    assert_eq!((at(1000, &web).0, at(1001, &Door::Own).0), (None, None));
    let refused = (Some(Reason::NotAtThisSocket), vec!["billing is not served at this socket".to_owned()]);
    assert_eq!(at(1001, &web), refused);
    assert_eq!(at(7, &web).0, Some(Reason::NoIdentity), "whoever is nobody is nobody here too");
    // The settings name it no more, or its name is another's now, but it listens until the restart.
    let gone = Door::Export(std::path::Path::new("/run/gone/agent.sock").into());
    assert_eq!(at(1000, &gone).0, Some(Reason::NotAtThisSocket));

    let said = |served| {
        let problems = Policy::new(identities(), exports(served), "prod", now()).unwrap_err();
        problems
            .into_iter()
            .map(|problem| format!("{}: {}", problem.key, problem.message))
            .collect::<String>()
    };
    assert!(said(&[]).starts_with("exports.web.identities: it is for nobody"), "{}", said(&[]));
    assert!(said(&["payments", "paymnts"]).contains("no [identities.NAME]"), "{}", said(&["paymnts"]));
}

#[test]
fn scope_is_only_ever_narrowed() {
    // OA-20, S3
    let policy = policy(vec![identity("payments", user(1000))]);
    let ask = |scope: &[&str]| {
        let scope: Vec<String> = scope.iter().map(|word| (*word).to_owned()).collect();
        reason(&policy, &evidence(1000, None), &Wish { scope: &scope, ..LEDGER }, now())
    };
    assert_eq!(ask(&["ledger:read"]), None);
    assert_eq!(ask(&["ledger:read", "admin"]), Some(Reason::Scope));
    assert_eq!(ask(&[""]), Some(Reason::Scope));
}

#[test]
fn an_exception_ends_on_its_date() {
    // S36
    let policy = policy(vec![identity("payments", user(1000))]);
    let seen = evidence(1000, None);
    assert_eq!(reason(&policy, &seen, &LEDGER, "2026-02-28T23:59:59Z".parse().unwrap()), None);
    let over = "2026-03-01T00:00:00Z".parse().unwrap();
    assert_eq!(reason(&policy, &seen, &LEDGER, over), Some(Reason::ExceptionExpired));
}

#[test]
fn a_static_secret_needs_a_dated_exception_and_is_denied_after_it() {
    // S1, S36, S39
    let until: Timestamp = "2026-03-01T00:00:00Z".parse().unwrap();
    let sealed = |change: fn(&mut CredentialRule)| {
        let mut identity = identity("payments", user(1000));
        let terms = SealedTerms { fields: vec!["password".into()], keeper: SealedBy::Agent, until };
        for rule in identity.credentials.values_mut().map(Arc::make_mut) {
            (rule.resource, rule.scope, rule.require_aud) = (None, [].into(), false);
            let wants = Wants::Sealed(terms.clone());
            rule.terms = Arc::new(Terms { wants, client_auth: ClientAuth::Nobody, ..Terms::default() });
            change(rule);
        }
        identity
    };
    let policy = policy(vec![sealed(|_| ())]);
    let seen = evidence(1000, None);
    assert_eq!(reason(&policy, &seen, &LEDGER, "2026-02-28T23:59:59Z".parse().unwrap()), None);
    assert_eq!(reason(&policy, &seen, &LEDGER, until), Some(Reason::ExceptionExpired));
    let target = Target::parse("https://ledger.example.com/").unwrap();
    let proving = Purpose::Prove(Proving { method: "GET", target: &target });
    assert_eq!(reason(&policy, &seen, &Wish { purpose: proving, ..LEDGER }, now()), Some(Reason::NotBound));
    for per in [Per::Identity, Per::Process] {
        let mut without = sealed(|rule| rule.exception = None);
        without.credentials.values_mut().for_each(|rule| Arc::make_mut(rule).per = per);
        let told = refused(vec![without]);
        assert!(
            told.iter().any(|it| it.contains("ledger.exception: ") && it.contains("(S1, S36)")),
            "{told:?}"
        );
    }
    let long =
        sealed(|rule| rule.exception.as_mut().unwrap().until = "2026-04-02T00:00:00Z".parse().unwrap());
    assert!(refused(vec![long]).iter().any(|it| it.contains("exception.until") && it.contains("90 days")));
    let high =
        Identity { assurance: Assurance::High, ..sealed(|rule| rule.max_ttl = Duration::from_secs(60)) };
    assert!(refused(vec![high]).iter().any(|it| it.contains("ledger.binding")), "S39");
}

#[test]
fn two_identities_that_one_process_could_be_are_refused() {
    // S22
    let clash = refused(vec![identity("a", user(1000)), identity("b", unit("b.service"))]);
    assert_eq!(clash.len(), 1);
    assert!(clash[0].contains("identities.a and identities.b"), "{clash:?}");
    for (one, other) in [
        (user(1), user(2)),
        (unit("a.service"), unit("b.service")),
        (
            Selectors { unit: Some("a.service".into()), ..user(1) },
            Selectors { unit: Some("b.service".into()), ..user(1) },
        ),
        (Selectors { sha256: Some([1; 32]), ..user(1) }, Selectors { sha256: Some([2; 32]), ..user(1) }),
        (unit("a.service"), Selectors { user_unit: Some("a.service".into()), ..Selectors::default() }),
    ] {
        policy(vec![identity("a", one), identity("b", other)]);
    }
}

#[test]
fn people_are_refused_where_the_identity_says_so_and_what_cannot_be_told_is_refused_too() {
    // NHI-10
    use crate::attest::Sign;
    let by_login = Login { uid: Ok(Some(1000)), ..Login::NONE };
    let at_terminal = Login { terminal: Ok(true), ..Login::NONE };
    let below = Login { user_slice: Ok(true), ..Login::NONE };
    let no_audit = Login { uid: Err(Missing::NoAudit), ..Login::NONE };
    let by_user = || user(1000);
    let by_unit = || Selectors { unit: Some("payments.service".into()), ..user(1000) };
    let by_user_unit = || Selectors { user_unit: Some("payments.service".into()), ..user(1000) };
    let seen = |selectors: &Selectors, login| {
        let mut seen = evidence(
            1000,
            selectors.unit.as_ref().or(selectors.user_unit.as_ref()).map(|_| "payments.service"),
        );
        if let (Ok(unit), true) = (&mut seen.unit, selectors.user_unit.is_some()) {
            unit.manager = Manager::User(1000);
        }
        Evidence { login, ..seen }
    };
    type Case = (fn() -> Selectors, Login, Option<Sign>, Option<&'static str>);
    let cases: [Case; 11] = [
        (by_user, Login::NONE, None, None),
        (by_user, by_login, Some(Sign::LoginUid(1000)), Some("a login of uid 1000")),
        (by_user, at_terminal, Some(Sign::Terminal), Some("a controlling terminal")),
        (by_user, below, Some(Sign::UserSlice), Some("below user.slice")),
        (by_user, no_audit, None, Some("built without audit")),
        (by_unit, Login::NONE, None, None),
        (by_unit, by_login, Some(Sign::LoginUid(1000)), Some("a login of uid 1000")),
        // The unit says what the kernel cannot.
        (by_unit, no_audit, None, None),
        // That user's own manager has that user's login.
        (by_user_unit, Login { user_slice: Ok(true), ..by_login }, None, None),
        (by_user_unit, no_audit, None, None),
        (by_user_unit, at_terminal, Some(Sign::Terminal), Some("a controlling terminal")),
    ];
    for (selectors, login, sign, refused) in cases {
        let (seen, selectors) = (seen(&selectors(), login), selectors());
        for humans in [Humans::Allowed, Humans::Refused, Humans::Told] {
            let policy = policy(vec![Identity { humans, ..identity("payments", selectors.clone()) }]);
            let (reason, why) = policy.explain(&seen, &LEDGER, now());
            let no = refused.filter(|_| humans == Humans::Refused);
            assert_eq!(reason, no.map(|_| Reason::HumanSession), "{humans:?} {login:?}");
            assert_eq!(why.human, sign, "{humans:?} {login:?}");
            assert!(no.is_none_or(|words| why.missed[0].contains(words)), "{:?}", why.missed);
        }
    }
}

#[test]
fn the_lint_names_the_key_and_the_row() {
    let base = || identity("payments", user(1000));
    let with_rule = |change: fn(&mut CredentialRule)| {
        let mut identity = base();
        identity.credentials.values_mut().map(Arc::make_mut).for_each(change);
        identity
    };
    let python = Selectors { exe: Some("/usr/bin/python3.11".into()), ..user(1000) };
    let only_exe = Selectors { exe: Some("/opt/app".into()), ..Selectors::default() };
    for (identity, key, row) in [
        (with_rule(|rule| rule.exception = None), "credentials.ledger.exception", "BCP-01"),
        (with_rule(|rule| rule.scope = ["*".into()].into()), "credentials.ledger.scope", "S41"),
        (
            with_rule(|rule| rule.scope = ["https://x/.default".into()].into()),
            "credentials.ledger.scope",
            "S41",
        ),
        (with_rule(|rule| rule.max_ttl = Duration::from_secs(3601)), "credentials.ledger.max_ttl", "S2"),
        (
            with_rule(|rule| {
                rule.exception.as_mut().unwrap().until = "2027-01-01T00:00:00Z".parse().unwrap()
            }),
            "credentials.ledger.exception.until",
            "S36",
        ),
        (
            with_rule(|rule| rule.resource = Some("ledger#x".into())),
            "credentials.ledger.resource",
            "RFC 8707",
        ),
        (identity("payments", python), "match.exe", "ATT-18"),
        (Identity { assurance: Assurance::Standard, ..identity("payments", only_exe) }, "match", "ATT-18"),
        (
            Identity {
                assurance: Assurance::High,
                ..with_rule(|rule| rule.max_ttl = Duration::from_secs(60))
            },
            "credentials.ledger.binding",
            "MT-12",
        ),
        (with_rule(|rule| rule.binding = Binding::Dpop), "credentials.ledger.exception", "BCP-01"),
        (bound(|_| ()), "credentials.ledger.origins", "DPOP-19"),
        (
            bound(|proofs| proofs.origins = ["http://127.0.0.1:80".into()].into()),
            "credentials.ledger.origins",
            "DPOP-19",
        ),
        (
            bound(|proofs| proofs.origins = ["https://a.example/x".into()].into()),
            "credentials.ledger.origins",
            "DPOP-19",
        ),
        (with_rule(|rule| rule.forward = Some(forwarded(false))), "credentials.ledger.origins", "DPOP-19"),
        (
            with_rule(|rule| {
                (rule.binding, rule.exception) = (Binding::Mtls, None);
                rule.proofs = Proofs { plain: true, ..Proofs::default() };
                rule.proofs.origins = ["http://127.0.0.1:80".into()].into();
                rule.forward = Some(forwarded(false));
            }),
            "credentials.ledger.origins",
            "DPOP-19",
        ),
        (
            with_rule(|rule| {
                (rule.binding, rule.exception, rule.key_export) = (Binding::Mtls, None, true);
                rule.forward = Some(forwarded(true));
            }),
            "credentials.ledger.forward",
            "key_export",
        ),
        (bound(|proofs| proofs.methods = ["TRACE".into()].into()), "credentials.ledger.methods", "DPOP-21"),
        (bound(|proofs| proofs.methods = ["get".into()].into()), "credentials.ledger.methods", "DPOP-21"),
        (
            Identity { assurance: Assurance::Standard, ..with_rule(|rule| rule.resource = None) },
            "credentials.ledger.resource",
            "BCP-02",
        ),
        (identity("payments", Selectors::default()), "match", "selector"),
    ] {
        let said = refused(vec![identity]);
        let wanted = format!("identities.payments.{key}: ");
        assert!(
            said.iter().any(|line| line.starts_with(&wanted) && line.contains(row)),
            "{wanted} {row}: {said:#?}"
        );
    }
}

/// An identity whose credential is bound by DPoP.
fn bound(change: impl FnOnce(&mut Proofs)) -> Identity {
    let mut identity = identity("payments", user(1000));
    for rule in identity.credentials.values_mut() {
        let rule = Arc::make_mut(rule);
        (rule.binding, rule.exception) = (Binding::Dpop, None);
    }
    let rule = Arc::make_mut(identity.credentials.get_mut("ledger").unwrap());
    change(&mut rule.proofs);
    identity
}

#[test]
fn a_proof_is_for_a_bound_credential_an_origin_and_a_method() {
    // DPOP-19, DPOP-21
    let ours = |proofs: &mut Proofs| proofs.origins = ["https://ledger.example.com".into()].into();
    let policy = policy(vec![bound(ours), identity("other", user(2000))]);
    let judged = |uid, method, url: &str| {
        let target = Target::parse(url).unwrap();
        let wish = Wish { purpose: Purpose::Prove(Proving { method, target: &target }), ..LEDGER };
        reason(&policy, &evidence(uid, None), &wish, now())
    };
    assert_eq!(judged(1000, "GET", "https://ledger.example.com/a?b"), None);
    assert_eq!(judged(1000, "GET", "https://LEDGER.example.com:443/"), None);
    for url in [
        "https://ledger.example.com:8443/a",
        "https://ledger.example.com.evil.example/",
        "https://evil.example/https://ledger.example.com/",
        "http://ledger.example.com/a",
    ] {
        assert_eq!(judged(1000, "GET", url), Some(Reason::HtuNotAllowed), "{url}");
    }
    for method in ["TRACE", "CONNECT", "get", "", "GET "] {
        assert_eq!(
            judged(1000, method, "https://ledger.example.com/a"),
            Some(Reason::HtmNotAllowed),
            "{method}"
        );
    }
    assert_eq!(judged(2000, "GET", "https://ledger.example.com/a"), Some(Reason::NotBound));
    assert_eq!(
        judged(3000, "GET", "https://ledger.example.com/a"),
        Some(Reason::NoIdentity),
        "and a stranger hears less"
    );
}

/// What is allowed by `forward = "allowed"`, or "only".
fn forwarded(only: bool) -> Forward {
    Forward { only, carry: None, ca_file: None, patience: Duration::from_secs(30) }
}

#[test]
fn a_call_goes_to_an_origin_that_the_operator_named_and_nowhere_else() {
    // DPOP-19, DPOP-21, DPOP-27, MT-11
    let (first, second) = ("https://ledger.example.com", "https://b.example.com:8443");
    let with = |binding, forward: Option<Forward>| {
        let mut identity = bound(|proofs| proofs.origins = vec![first.into(), second.into()]);
        let rule = Arc::make_mut(identity.credentials.get_mut("ledger").unwrap());
        (rule.binding, rule.forward) = (binding, forward);
        policy(vec![identity])
    };
    let path = Path::parse("/entries/7", Some("a=b")).unwrap();
    let call = |method, origin| Purpose::Forward(Forwarding { method, origin, path: &path });
    for binding in [Binding::Dpop, Binding::Mtls] {
        let open = with(binding, Some(forwarded(false)));
        let judged = |purpose| open.judge(&evidence(1000, None), &Wish { purpose, ..LEDGER }, now()).0;
        let goes = |purpose| judged(purpose).map(|(.., target)| target.map(|target| target.htu().to_owned()));
        assert_eq!(
            goes(call("GET", None)),
            Ok(Some(format!("{first}/entries/7"))),
            "the first, if nobody says so"
        );
        assert_eq!(goes(call("PUT", Some(second))), Ok(Some(format!("{second}/entries/7"))));
        for origin in [
            "https://evil.example",
            "https://b.example.com",
            "http://ledger.example.com",
            "https://ledger.example.com/",
            "https://ledger.example.com/x",
            "https://ledger.example.com?",
            "https://ledger.example.com#",
            "https://ledger.example.com:443",
            "https://LEDGER.example.com",
            "https://me@ledger.example.com",
            "https://ledger.example.com@evil.example",
            "https://ledger.example.com.evil.example",
            "",
        ] {
            assert_eq!(goes(call("GET", Some(origin))), Err(Reason::HtuNotAllowed), "{origin:?}");
        }
        for method in ["TRACE", "CONNECT", "get", ""] {
            assert_eq!(goes(call(method, None)), Err(Reason::HtmNotAllowed), "{method:?}");
        }
        assert_eq!(goes(Purpose::Take), Ok(None), "allowed is not only");

        // Only: nothing but calls, and it can be given back.
        let only = with(binding, Some(forwarded(true)));
        let target = Target::parse(first).unwrap();
        let prove = Purpose::Prove(Proving { method: "GET", target: &target });
        let judged = |purpose| reason(&only, &evidence(1000, None), &Wish { purpose, ..LEDGER }, now());
        assert_eq!(judged(call("GET", None)), None);
        assert_eq!(judged(Purpose::Nothing), None);
        assert_eq!(
            (judged(Purpose::Take), judged(prove)),
            (Some(Reason::ForwardOnly), Some(Reason::ForwardOnly))
        );

        let never = with(binding, None);
        let judged = |purpose| reason(&never, &evidence(1000, None), &Wish { purpose, ..LEDGER }, now());
        assert_eq!(judged(call("GET", None)), Some(Reason::ForwardNotAllowed));
        let stranger = Wish { purpose: call("GET", None), ..LEDGER };
        assert_eq!(reason(&open, &evidence(3000, None), &stranger, now()), Some(Reason::NoIdentity));
    }
}

#[test]
fn an_ambiguous_match_is_denied_even_if_it_slipped_in() {
    // Two paths that have become one file after load.
    let exe = |path: &str| Selectors { exe: Some(path.into()), ..Selectors::default() };
    let policy = policy(vec![identity("a", exe("/opt/a")), identity("b", exe("/opt/b"))]);
    let both = Evidence { exe_paths: Ok(vec!["/opt/a".into(), "/opt/b".into()]), ..evidence(1, None) };
    assert_eq!(reason(&policy, &both, &LEDGER, now()), Some(Reason::Ambiguous));
}

prop_compose! {
    fn any_selectors()(
        uid in prop::option::of(0u32..4),
        gid in prop::option::of(0u32..4),
        sum in prop::option::of(0u8..3),
        unit in prop::option::of(0u8..3),
        user_unit in prop::option::of(0u8..3),
    ) -> Selectors {
        let named = |id: Option<u32>| id.map(|id| Named { id, name: None });
        Selectors {
            user: named(uid),
            group: named(gid),
            sha256: sum.map(|sum| [sum; 32]),
            unit: unit.map(|unit| format!("u{unit}.service")),
            user_unit: user_unit.map(|unit| format!("u{unit}.service")),
            ..Selectors::default()
        }
    }
}

prop_compose! {
    fn any_evidence()(
        uid in 0u32..4,
        gid in 0u32..4,
        sum in prop::option::of(0u8..3),
        unit in prop::option::of((0u8..3, any::<bool>())),
    ) -> Evidence {
        let mut seen = evidence(uid, None);
        seen.gids = [gid; 4];
        seen.sha256 = sum.map(|sum| [sum; 32]).ok_or(Missing::NotPermitted);
        seen.unit = unit
            .map(|(unit, system)| Unit {
                name: format!("u{unit}.service"),
                manager: if system { Manager::System } else { Manager::User(uid) },
                slices: vec![],
                invocation: None,
            })
            .ok_or(Missing::NoUnit);
        seen
    }
}

proptest! {
    #[test]
    fn adding_an_identity_never_changes_anothers_decision(
        all in prop::collection::vec(any_selectors(), 2..6),
        seen in any_evidence(),
    ) {
        let named = |count: usize| {
            all.iter().take(count).enumerate().map(|(n, selectors)| identity(&format!("i{n}"), selectors.clone())).collect::<Vec<_>>()
        };
        let load = |count| Policy::new(named(count), Exports::new(), "prod", now());
        let (fewer, more) = (load(all.len() - 1), load(all.len()));
        // Only sets that load can serve; the others are refused whole.
        if let (Ok(fewer), Ok(more)) = (fewer, more) {
            let (before, why_before) = fewer.explain(&seen, &LEDGER, now());
            let (after, why_after) = more.explain(&seen, &LEDGER, now());
            if before.is_none() {
                prop_assert_eq!(after, None);
                prop_assert_eq!(why_before.identity, why_after.identity);
            } else if after.is_none() {
                let newest = format!("i{}", all.len() - 1);
                prop_assert_eq!(why_after.identity.as_deref(), Some(newest.as_str()));
            }
        }
    }

    #[test]
    fn evidence_that_matches_nothing_never_turns_a_denial_into_a_grant(
        selectors in any_selectors(),
        seen in any_evidence(),
    ) {
        if let Ok(policy) = Policy::new(vec![identity("i", selectors)], Exports::new(), "prod", now()) {
            let mut more = seen.clone();
            more.status.as_mut().unwrap().groups.push(4711);
            more.exe_paths = Ok(vec!["/nobody/asks".into()]);
            more.login.uid = Ok(Some(4711));
            more.path_hint = Some("/nobody/asks".into());
            prop_assert_eq!(policy.explain(&seen, &LEDGER, now()).0, policy.explain(&more, &LEDGER, now()).0);
        }
    }

    #[test]
    fn selectors_that_exclude_each_other_never_both_match(
        one in any_selectors(),
        other in any_selectors(),
        seen in any_evidence(),
    ) {
        if one.excludes(&other) {
            prop_assert!(!(one.missed(&seen).is_empty() && other.missed(&seen).is_empty()));
        }
    }
}

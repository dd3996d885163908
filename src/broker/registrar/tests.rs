use std::{
    fs,
    io::Write as _,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    sync::Mutex,
};

use serde_json::{Map, json};

use super::*;
use crate::{
    clock::{ManualClock, SeededDice},
    credential::Credential,
    issuer::{Issued, Order, Pending, Signers, registration::Access},
    jose::Algorithm,
    keys::{CertificateSettings, Certificates, Custody, KeySettings, Keyring, Now, SealingKey, SignedBy},
    proof::Target,
    secret::Secret,
};

pub(super) fn settings() -> RegistrationSettings {
    RegistrationSettings {
        identity: "payments".into(),
        issuer: "corp".into(),
        client_id: "payments".into(),
        client_auth: ClientAuth::PrivateKeyJwt,
        grants: ["client_credentials"].into(),
        uri: "https://idp.example/register/payments".into(),
        token_file: "/nowhere/token".into(),
        kept: "/nowhere/sealed".into(),
    }
}

/// An issuer whose every answer holds another right, and which forgets the one before unless it is told not to.
#[derive(Debug, Default)]
struct Books592 {
    document: Mutex<Map<String, Value>>,
    good: Mutex<Vec<String>>,
    number: Mutex<u32>,
    asked: Mutex<Vec<&'static str>>,
    /// What it says instead, once each, before anything changes.
    says: Mutex<Vec<IssueError>>,
    /// It answers with another right, and does not keep it itself.
    forgets: Mutex<bool>,
}

impl Books592 {
    fn new(token: &str) -> Arc<Self> {
        let Value::Object(document) = json!({
            "client_id": "payments", "token_endpoint_auth_method": "private_key_jwt",
            "grant_types": ["client_credentials"], "jwks": {"keys": []}, "client_name": "Payments",
        }) else {
            panic!("an object")
        };
        let (document, good) = (Mutex::new(document), Mutex::new(vec![token.to_owned()]));
        Arc::new(Self { document, good, ..Self::default() })
    }

    fn kids(&self) -> BTreeSet<String> {
        let document = self.document.lock().unwrap();
        let keys = document["jwks"]["keys"].as_array().unwrap();
        keys.iter().map(|key| key["kid"].as_str().unwrap().to_owned()).collect()
    }

    fn asked(&self) -> Vec<&'static str> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }

    fn say(&self, error: IssueError) {
        self.says.lock().unwrap().insert(0, error);
    }

    fn answer(&self, access: &Access, ask: Ask) -> Result<Registration, IssueError> {
        self.asked.lock().unwrap().push(if matches!(ask, Ask::Read) { "read" } else { "replace" });
        if !self.good.lock().unwrap().iter().any(|good| good.as_bytes() == access.token.expose()) {
            let detail = "the issuer answered 401".into();
            return Err(IssueError::Misconfigured { reason: Reason::ClientAuthRejected, detail });
        }
        if let Some(error) = self.says.lock().unwrap().pop() {
            return Err(error);
        }
        if let Ask::Replace(Value::Object(document)) = ask {
            *self.document.lock().unwrap() = document;
        }
        let mut number = self.number.lock().unwrap();
        *number += 1;
        let next = format!("canary-{number}");
        if !*self.forgets.lock().unwrap() {
            *self.good.lock().unwrap() = vec![next.clone()];
        }
        let renewed = Access { uri: access.uri.clone(), token: Secret::new(next) };
        let metadata = self.document.lock().unwrap().clone();
        Ok(Registration { metadata, renewed: Some(renewed), misplaced: None })
    }
}

impl Issuer for Books592 {
    fn issue<'a>(&'a self, _: &'a Order, _: &'a Signers, _: Option<&'a Credential>) -> Pending<'a, Issued> {
        Box::pin(async { panic!("nobody asks for credentials here") })
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

    fn registration<'a>(
        &'a self,
        access: &'a Access,
        ask: Ask,
    ) -> Pending<'a, Result<Registration, IssueError>> {
        Box::pin(async move { self.answer(access, ask) })
    }
}

struct House {
    dir: tempfile::TempDir,
    issuer: Arc<Books592>,
    books: Books,
    registrar: Registrar,
    clock: Arc<ManualClock>,
}

fn registrar() -> Registrar {
    let dice = SeededDice::from_seed(5);
    let key = SealingKey::of(&Secret::new("seed"));
    Registrar::new(Rights::new(key, Arc::clone(&dice) as _), dice)
}

fn house() -> House {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let clock = ManualClock::at("2026-01-01T00:00:00Z".parse().unwrap());
    clock.advance(Duration::from_secs(3600));
    let of = RegistrationSettings {
        token_file: dir.path().join("given"),
        kept: dir.path().join("kept/payments.sealed"),
        ..settings()
    };
    let mut file =
        fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&of.token_file).unwrap();
    file.write_all(b"canary-given\n").unwrap();
    let key = KeySettings {
        custody: Custody::Memory,
        algorithm: Algorithm::Es256,
        client: true,
        rotation: Default::default(),
        dpop: BTreeSet::new(),
    };
    let keys =
        Keyring::open(&[("payments".into(), key)].into(), &Keyring::default(), Now::by(&*clock)).unwrap();
    let issuer = Books592::new("canary-given");
    let issuers = [("corp".into(), Arc::clone(&issuer) as Arc<dyn Issuer>)].into();
    let books = Books { issuers, keys, registrations: vec![Arc::new(of)], ..Books::default() };
    House { dir, issuer, books, registrar: registrar(), clock }
}

impl House {
    /// Looks, and what came of it: nothing, if nothing was due.
    async fn look(&mut self) -> Option<Option<Turned>> {
        self.registrar.look(&self.books, self.clock.boot());
        let ended = self.registrar.ended(&*self.clock).await?;
        Some(ended.map(|turn| turn.what))
    }

    fn ours(&self) -> BTreeSet<String> {
        self.books.keys.to_register().map(|(_, key)| key.kid().to_owned()).collect()
    }

    fn turn(&mut self, turn: impl FnOnce(&Keyring, &Arc<str>, Now) -> Keyring) {
        self.books.keys = turn(&self.books.keys, &"payments".into(), Now::by(&*self.clock));
    }

    fn is_telling(&self) -> bool {
        self.registrar.is_telling(&self.books, "payments", Duration::from_secs(1200), self.clock.boot())
    }
}

fn down() -> IssueError {
    IssueError::Retry { reason: Reason::IssuerUnavailable, detail: "503".into(), after: None }
}

#[tokio::test]
async fn what_the_issuer_knows_is_kept_true_through_a_whole_rotation_and_an_emergency() {
    // KEY-05, KEY-07, KEY-09
    let mut house = house();
    assert!(house.is_telling(), "nobody has looked yet");
    assert!(matches!(house.look().await, Some(Some(Turned::Registered { .. }))));
    assert_eq!((house.issuer.kids(), house.issuer.asked()), (house.ours(), vec!["read", "replace"]));
    assert!(house.look().await.is_none(), "nothing is due");
    house.turn(|keys, whose, now| keys.begin(whose, now).unwrap());
    assert!(house.is_telling());
    let both = house.ours();
    house.look().await.unwrap();
    assert_eq!((house.issuer.kids(), both.len()), (both.clone(), 2));
    // The wait for those who have older keys in a cache begins when the issuer confirmed.
    assert!(house.is_telling());
    house.clock.advance(Duration::from_secs(1199));
    assert!(house.is_telling());
    house.clock.advance(Duration::from_secs(1));
    assert!(!house.is_telling());
    house.turn(|keys, whose, now| keys.switch(whose, now).unwrap());
    assert!(house.look().await.is_none(), "it knows both");
    house.turn(|keys, whose, _| keys.finish(whose).unwrap());
    let Some(Some(Turned::Registered { kids, removed, .. })) = house.look().await else { panic!("told") };
    assert_eq!((house.issuer.kids(), kids.len()), (house.ours(), 1));
    assert_eq!(removed, both.difference(&house.ours()).cloned().collect::<Vec<_>>());
    house.turn(|keys, whose, now| keys.replace(whose, now).unwrap());
    house.look().await.unwrap();
    assert_eq!(house.issuer.kids(), house.ours(), "what was stolen is known no more");
    assert_eq!(house.issuer.document.lock().unwrap()["client_name"], "Payments");
}

#[tokio::test]
async fn after_a_restart_it_goes_on_with_the_right_that_the_issuer_gave_last() {
    // KEY-09
    let mut house = house();
    house.look().await.unwrap();
    house.registrar = registrar();
    assert!(house.look().await.is_none(), "it is known what the issuer knows");
    // Made and not told of, when the agent before was killed.
    house.turn(|keys, whose, now| keys.begin(whose, now).unwrap());
    house.registrar = registrar();
    assert!(matches!(house.look().await, Some(Some(Turned::Registered { .. }))));
    assert_eq!(house.issuer.kids(), house.ours());
}

#[tokio::test]
async fn trouble_is_told_once_and_tried_again_later_and_then_at_the_issuers_pace() {
    // KEY-09, CLK-05
    let mut house = house();
    house.issuer.say(down());
    let Some(Some(Turned::NotRegistered { why, .. })) = house.look().await else { panic!("told") };
    assert!(why.contains("503"));
    assert!(!house.is_telling(), "a person may have registered it: it holds up nothing");
    let troubles: Vec<String> = house.registrar.troubles().collect();
    assert!(
        troubles[0].contains("503") && troubles[0].contains("keys export --registration"),
        "{troubles:?}"
    );
    assert!(house.look().await.is_none(), "not at once");
    house.clock.advance(Duration::from_secs(60));
    house.issuer.say(down());
    assert!(matches!(house.look().await, Some(None)), "the same again is no news");
    let after = Some(Duration::from_secs(900));
    house.clock.advance(Duration::from_secs(60));
    house.issuer.say(IssueError::Retry { reason: Reason::IssuerRateLimit, detail: "429".into(), after });
    assert!(matches!(house.look().await, Some(Some(Turned::NotRegistered { .. }))), "another trouble is");
    house.clock.advance(Duration::from_secs(899));
    assert!(house.look().await.is_none());
    house.clock.advance(Duration::from_secs(1));
    assert!(matches!(house.look().await, Some(Some(Turned::Registered { .. }))));
    assert_eq!(house.registrar.troubles().count(), 0);
    // What a person has to mend waits longer, but for an operator.
    house.turn(|keys, whose, now| keys.begin(whose, now).unwrap());
    let detail = "400 invalid_client_metadata".into();
    house.issuer.say(IssueError::Refused { reason: Reason::IssuerConfig, detail });
    house.look().await.unwrap();
    house.clock.advance(RETRY - Duration::from_secs(1));
    assert!(house.look().await.is_none());
    house.registrar.hurry(Some("shop"));
    assert!(house.look().await.is_none());
    house.registrar.hurry(Some("payments"));
    assert!(matches!(house.look().await, Some(Some(Turned::Registered { .. }))));
}

#[tokio::test]
async fn an_issuer_that_forgot_what_it_gave_is_asked_by_the_right_before() {
    // KEY-09
    let mut house = house();
    *house.issuer.forgets.lock().unwrap() = true;
    // It answers the read, and then knows only what it was asked with.
    let refused = house.look().await.unwrap().unwrap();
    assert!(matches!(&refused, Turned::NotRegistered { why, .. } if why.contains("401")), "{refused:?}");
    *house.issuer.forgets.lock().unwrap() = false;
    house.registrar.hurry(None);
    let done = house.look().await.unwrap().unwrap();
    assert!(matches!(done, Turned::Registered { .. }), "{done:?}");
    // Where neither is good, the first refusal is told.
    house.turn(|keys, whose, now| keys.begin(whose, now).unwrap());
    house.issuer.good.lock().unwrap().clear();
    let refused = house.look().await.unwrap().unwrap();
    assert!(matches!(&refused, Turned::NotRegistered { why, .. } if why.contains("401")), "{refused:?}");
}

#[tokio::test]
async fn nothing_is_asked_whose_answer_could_not_be_kept() {
    // KEY-09: the answer holds the only right that there is from then on.
    let mut house = house();
    let shut = house.dir.path().join("kept");
    fs::write(&shut, "no directory").unwrap();
    let turned = house.look().await.unwrap().unwrap();
    assert!(matches!(&turned, Turned::NotRegistered { why, .. } if why.contains("make room")), "{turned:?}");
    assert!(house.issuer.asked().is_empty());
    fs::remove_file(&shut).unwrap();
    house.registrar.hurry(None);
    assert!(matches!(house.look().await, Some(Some(Turned::Registered { .. }))));
}

#[tokio::test]
async fn a_place_that_is_not_the_issuers_is_not_gone_to_and_the_right_is_kept() {
    // KEY-09, OA-04
    let house = house();
    let of = &house.books.registrations[0];
    let rights = Arc::clone(&house.registrar.rights);
    let update = Update { issuer: Arc::clone(&house.issuer) as _, settings: of, rights };
    let mut kept = update.rights.open(of).unwrap();
    let misplaced = IssueError::Misconfigured { reason: Reason::EndpointForeign, detail: "there".into() };
    let renewed = Access { uri: of.uri.clone(), token: Secret::new("canary-next") };
    let answered = Registration { metadata: Map::new(), renewed: Some(renewed), misplaced: Some(misplaced) };
    let error = update.accept(&mut kept, answered).unwrap_err();
    assert_eq!(error.reason(), Reason::EndpointForeign);
    assert_eq!(update.rights.open(of).unwrap().access().token.expose(), b"canary-next");
}

#[tokio::test]
async fn what_is_under_way_is_let_end_whatever_the_settings_say_since() {
    // KEY-09
    let mut house = house();
    house.registrar.look(&house.books, house.clock.boot());
    let before = house.books.registrations.clone();
    house.books.registrations.clear();
    house.registrar.look(&house.books, house.clock.boot());
    house.registrar.finish().await;
    assert_eq!(house.issuer.kids(), house.ours());
    // And what it was given is there for the next agent.
    (house.registrar, house.books.registrations) = (registrar(), before);
    assert!(house.look().await.is_none());
}

#[tokio::test]
async fn a_certificate_that_is_registered_itself_is_told_of_with_its_chain() {
    // KEY-09, MT-05
    let mut house = house();
    let certificate = CertificateSettings {
        custody: Custody::Memory,
        signed_by: SignedBy::Itself,
        san_uri: None,
        lifetime: Duration::from_secs(30 * 86_400),
        export: false,
    };
    let wanted = [("payments".into(), certificate)].into();
    let none = Certificates::default();
    house.books.certificates =
        Certificates::open(&wanted, &none, &house.books.keys, house.clock.wall()).unwrap();
    let of = RegistrationSettings {
        client_auth: ClientAuth::SelfSignedTlsClientAuth,
        ..RegistrationSettings::clone(&house.books.registrations[0])
    };
    house.books.registrations = vec![Arc::new(of)];
    house.issuer.document.lock().unwrap()["token_endpoint_auth_method"] =
        json!("self_signed_tls_client_auth");
    let turned = house.look().await.unwrap().unwrap();
    let Turned::Registered { kids, .. } = turned else { panic!("{turned:?}") };
    let theirs = house.issuer.document.lock().unwrap()["jwks"].clone();
    assert_eq!((kids.len(), theirs["keys"][0]["x5t#S256"].as_str()), (1, Some(kids[0].as_str())));
    assert_eq!(theirs["keys"][0]["x5c"].as_array().unwrap().len(), 1);
    // The next one is made at two thirds of its life, and told of before it is shown.
    house.clock.advance(Duration::from_secs(21 * 86_400));
    house.books.certificates.tend(&"payments".into(), Now::by(&*house.clock));
    house.look().await.unwrap();
    let theirs = house.issuer.document.lock().unwrap()["jwks"].clone();
    assert_eq!(theirs["keys"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn without_a_key_nothing_is_taken_out() {
    // KEY-09: an empty set would lock the client out.
    let mut house = house();
    house.look().await.unwrap();
    house.books.keys = Keyring::default();
    assert!(house.look().await.is_none());
    assert_eq!(house.issuer.kids().len(), 1);
}

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use serde_json::{Value, json};

use super::*;
use crate::{
    clock::SeededDice,
    jose::{self, Header, PublicKey, Unverified},
    secret::Secret,
};

fn wanted(entries: &[(&str, Custody, Algorithm)]) -> BTreeMap<Arc<str>, KeySettings> {
    entries
        .iter()
        .map(|(name, custody, algorithm)| {
            (
                Arc::from(*name),
                KeySettings {
                    custody: custody.clone(),
                    algorithm: *algorithm,
                    rotation: RotationSettings::default(),
                    client: true,
                    dpop: BTreeSet::new(),
                },
            )
        })
        .collect()
}

fn now() -> Now {
    Now { wall: "2026-01-01T00:00:00Z".parse().unwrap(), boot: Boot::from_nanos(0) }
}

fn private_dir() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
    dir
}

fn file(dir: &Path, name: &str) -> Custody {
    Custody::File { path: dir.join(name) }
}

#[test]
fn every_identity_has_a_key_of_its_own() {
    // KEY-01
    let entries = [("a", Custody::Memory, Algorithm::Es256), ("b", Custody::Memory, Algorithm::EdDsa)];
    let ring = Keyring::open(&wanted(&entries), &Keyring::default(), now()).unwrap();
    let kids: Vec<String> = ring.iter().map(|(_, _, key)| key.kid().to_owned()).collect();
    assert_eq!(kids.len(), 2);
    assert_ne!(kids[0], kids[1]);
}

#[test]
fn a_shared_file_is_refused() {
    // KEY-01
    let dir = private_dir();
    let custody = file(dir.path(), "same.pem");
    let entries = [("a", custody.clone(), Algorithm::Es256), ("b", custody, Algorithm::Es256)];
    let errors = Keyring::open(&wanted(&entries), &Keyring::default(), now()).unwrap_err();
    assert_eq!(errors.len(), 1);
    assert!(errors[0].to_string().contains("same key as that of identity a"), "{}", errors[0]);
}

#[test]
fn a_file_key_is_made_once_and_found_again() {
    // KEY-11
    let dir = private_dir();
    let entries = [("a", file(dir.path(), "keys/a.pem"), Algorithm::EdDsa)];
    let first = Keyring::open(&wanted(&entries), &Keyring::default(), now()).unwrap();
    let again = Keyring::open(&wanted(&entries), &Keyring::default(), now()).unwrap();
    let kid = |ring: &Keyring| ring.signer(&"a".into(), Purpose::ClientAuth).unwrap().kid().to_owned();
    assert_eq!(kid(&first), kid(&again));
    let mode = fs::metadata(dir.path().join("keys/a.pem")).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
    assert!(!dir.path().join("keys/a.pem.new").exists());
}

#[test]
fn wide_modes_links_and_foreign_content_are_refused() {
    // KEY-11
    let dir = private_dir();
    let path = dir.path().join("a.pem");
    let entries = [("a", file(dir.path(), "a.pem"), Algorithm::Es256)];
    Keyring::open(&wanted(&entries), &Keyring::default(), now()).unwrap();
    let refusal =
        || Keyring::open(&wanted(&entries), &Keyring::default(), now()).unwrap_err().remove(0).to_string();

    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(refusal().contains("KEY_PERM"), "{}", refusal());
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();

    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    assert!(refusal().contains("chmod 0700"), "{}", refusal());
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();

    fs::rename(&path, dir.path().join("real.pem")).unwrap();
    std::os::unix::fs::symlink(dir.path().join("real.pem"), &path).unwrap();
    assert!(refusal().starts_with("identities.a.key:"), "{}", refusal());
    fs::remove_file(&path).unwrap();

    fs::write(&path, "hunter2").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    assert!(refusal().contains("no PKCS#8 PEM") && !refusal().contains("hunter2"), "{}", refusal());
    assert_eq!(fs::read_to_string(&path).unwrap(), "hunter2", "a file that is there is left alone");
}

#[test]
fn memory_keys_outlive_a_reload() {
    let entries = [("a", Custody::Memory, Algorithm::Es256)];
    let first = Keyring::open(&wanted(&entries), &Keyring::default(), now()).unwrap();
    let second = Keyring::open(&wanted(&entries), &first, now()).unwrap();
    let kid = |ring: &Keyring| ring.signer(&"a".into(), Purpose::ClientAuth).unwrap().kid().to_owned();
    assert_eq!(kid(&first), kid(&second));
}

#[test]
fn rsa_is_read_but_not_made() {
    let errors =
        Keyring::open(&wanted(&[("a", Custody::Memory, Algorithm::Ps256)]), &Keyring::default(), now())
            .unwrap_err();
    assert!(errors[0].to_string().contains("openssl genpkey"), "{}", errors[0]);
}

#[test]
fn what_a_key_signs_its_public_half_verifies() {
    // KEY-03, KEY-04: through the exported JWK, which holds nothing private.
    for algorithm in [Algorithm::Es256, Algorithm::EdDsa] {
        let key = Key::generate(algorithm).unwrap();
        let jwk = key.public().jwk(algorithm);
        for private in ["d", "p", "q", "dp", "dq", "qi", "oth", "k", "priv"] {
            assert!(jwk.get(private).is_none(), "{private}");
        }
        assert_eq!(jwk["kid"], key.kid());
        let token = jose::sign(&key, Header { typ: "JWT" }, &serde_json::json!({"a": 1})).unwrap();
        let text = token.expose_str().unwrap();
        let public = PublicKey::from_jwk(&jwk).unwrap();
        let parsed = Unverified::parse(text).unwrap();
        assert_eq!(parsed.verify(&public, &[algorithm]), Ok(()));
        assert_eq!(parsed.header.len(), 3, "alg, kid, typ and nothing else");
        let other = Key::generate(algorithm).unwrap();
        assert_eq!(parsed.verify(other.public(), &[algorithm]), Err(jose::JoseError::Signature));
        assert_eq!(parsed.verify(&public, &[Algorithm::Rs256]), Err(jose::JoseError::Algorithm));
    }
}

#[test]
fn debug_shows_no_private_byte() {
    let key = Key::generate(Algorithm::Es256).unwrap();
    assert_eq!(format!("{key:?}"), format!("Key(ES256 {})", key.kid()));
}

/// The ring of one identity with its key in a file, as it is opened at this moment.
fn ring(dir: &Path, now: Now) -> Keyring {
    let entries = [("a", file(dir, "a.pem"), Algorithm::Es256)];
    Keyring::open(&wanted(&entries), &Keyring::default(), now).unwrap()
}

fn later(seconds: u64) -> Now {
    let wall = now().wall.checked_add(jiff::SignedDuration::from_secs(seconds.cast_signed())).unwrap();
    // Another boot: only the files tell how much time has passed.
    Now { wall, boot: Boot::from_nanos(5) }
}

#[test]
fn a_rotation_goes_on_where_a_restart_left_it() {
    // KEY-05, K57-7
    let dir = private_dir();
    let identity: Arc<str> = "a".into();
    let sign = |ring: &Keyring| ring.signer(&identity, Purpose::ClientAuth).unwrap().kid().to_owned();
    let first = sign(&ring(dir.path(), now()));
    let begun = ring(dir.path(), now()).begin(&identity, now()).unwrap();
    let next = begun.next(&identity).unwrap().kid().to_owned();
    assert_eq!((sign(&begun), begun.to_register().count()), (first.clone(), 2));
    // Files are dated by the real clock; what is asked here is measured from it.
    let made = std::fs::metadata(dir.path().join("a.pem.next")).unwrap().modified().unwrap();
    let made = jiff::Timestamp::try_from(made).unwrap();
    let after = |seconds: i64| Now {
        wall: made.checked_add(jiff::SignedDuration::from_secs(seconds)).unwrap(),
        boot: Boot::from_nanos(5),
    };
    let again = ring(dir.path(), after(60));
    assert_eq!(again.next(&identity).unwrap().kid(), next);
    assert_eq!(again.due(after(60).boot), []);
    let ripe = ring(dir.path(), after(1201));
    assert_eq!(ripe.due(after(0).boot), [(Arc::clone(&identity), Due::Try)]);

    let switched = ripe.switch(&identity, later(2000)).unwrap();
    assert_eq!((sign(&switched), switched.before(&identity).unwrap().kid()), (next.clone(), &*first));
    let again = ring(dir.path(), later(2060));
    assert_eq!((sign(&again), again.before(&identity).unwrap().kid()), (next.clone(), &*first));
    assert_eq!(again.due(later(0).boot), []);
    let over = ring(dir.path(), later(2301));
    assert_eq!(over.due(later(0).boot), [(Arc::clone(&identity), Due::Finish)]);
    let finished = over.finish(&identity).unwrap();
    assert_eq!((finished.to_register().count(), finished.before(&identity).is_none()), (1, true));
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["a.pem"], "the one before is destroyed");
    assert_eq!(sign(&ring(dir.path(), later(2400))), next);
}

#[test]
fn a_switch_that_was_cut_in_two_is_finished() {
    let dir = private_dir();
    let identity: Arc<str> = "a".into();
    let begun = ring(dir.path(), now()).begin(&identity, now()).unwrap();
    let next = begun.next(&identity).unwrap().kid().to_owned();
    fs::rename(dir.path().join("a.pem"), dir.path().join("a.pem.before")).unwrap();
    let again = ring(dir.path(), now());
    assert_eq!(again.signer(&identity, Purpose::ClientAuth).unwrap().kid(), next);
    assert!(again.before(&identity).is_some());
}

#[test]
fn a_switch_that_failed_in_the_middle_can_be_tried_again() {
    // KEY-05
    for moved in [1, 2] {
        let dir = private_dir();
        let identity: Arc<str> = "a".into();
        let first = ring(dir.path(), now());
        let begun = first.begin(&identity, now()).unwrap();
        let next = begun.next(&identity).unwrap().kid().to_owned();
        let moves = [("a.pem", "a.pem.before"), ("a.pem.next", "a.pem")];
        for (from, to) in &moves[..moved] {
            fs::rename(dir.path().join(from), dir.path().join(to)).unwrap();
        }
        begun.switch(&identity, now()).unwrap();
        let again = ring(dir.path(), now());
        assert_eq!(again.signer(&identity, Purpose::ClientAuth).unwrap().kid(), next);
        let before = first.signer(&identity, Purpose::ClientAuth).unwrap();
        assert_eq!(again.before(&identity).unwrap().kid(), before.kid());
    }
}

#[test]
fn an_emergency_leaves_nothing_of_the_old_keys() {
    // KEY-07
    let dir = private_dir();
    let identity: Arc<str> = "a".into();
    let begun = ring(dir.path(), now()).begin(&identity, now()).unwrap();
    let old: Vec<String> = begun.to_register().map(|(_, key)| key.kid().to_owned()).collect();
    let replaced = begun.replace(&identity, now()).unwrap();
    let new: Vec<String> = replaced.to_register().map(|(_, key)| key.kid().to_owned()).collect();
    assert!(new.len() == 1 && !old.contains(&new[0]));
    assert_eq!(
        ring(dir.path(), now()).to_register().map(|(_, key)| key.kid().to_owned()).collect::<Vec<_>>(),
        new
    );
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn what_a_killed_maker_left_is_no_hindrance_and_no_second_key() {
    // KEY-05, KEY-11
    let dir = private_dir();
    let (path, left) = (dir.path().join("a.pem"), dir.path().join("a.pem.new"));
    let vault = Vault::default();
    let slot = Slot::of(&vault, CLIENT_AUTH, "a");
    // Killed before it was linked: half a key lies there.
    fs::write(&left, "-----BEGIN PRI").unwrap();
    let made = file::open_or_make_pkcs8(&path, Algorithm::Es256, slot).unwrap();
    assert!(!left.exists());
    // Killed after: opened, the key has one name again, and destroyed it has none.
    fs::hard_link(&path, &left).unwrap();
    let opened = file::open_or_make_pkcs8(&path, Algorithm::Es256, slot).unwrap();
    assert_eq!(opened.expose(), made.expose());
    assert!(!left.exists());
    fs::hard_link(&path, &left).unwrap();
    file::destroy(&path).unwrap();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_flattened_jws_is_the_compact_one_taken_apart() {
    // ACM-01: RFC 8555 6.2, 6.3, 7.3.4
    let key = Key::generate(Algorithm::Es256).unwrap();
    let compact = |jws: &Value| {
        let part = |name: &str| jws[name].as_str().unwrap().to_owned();
        format!("{}.{}.{}", part("protected"), part("payload"), part("signature"))
    };
    for (account, payload) in [(Some("https://ca.example/1"), None), (None, Some(json!({"a": 1})))] {
        let envelope = jose::Envelope { url: "https://ca.example/order", nonce: Some("n-1"), account };
        let text = compact(&jose::sign_flattened(&key, envelope, payload.as_ref()).unwrap());
        let read = jose::Unverified::parse(&text).unwrap();
        let mut header = json!({"alg": "ES256", "nonce": "n-1", "url": "https://ca.example/order"});
        match account {
            Some(account) => {
                header["kid"] = json!(account);
                read.verify(key.public(), &[Algorithm::Es256]).unwrap();
            }
            None => {
                header["jwk"] = key.public().members();
                assert_eq!(&read.verify_possession(&[Algorithm::Es256]).unwrap(), key.public());
            }
        }
        assert_eq!(Value::Object(read.header), header);
        assert_eq!(read.payload, payload.map(|payload| payload.to_string()).unwrap_or_default().as_bytes());
    }
    let bound = jose::external_account_binding(key.public(), "kid-1", "https://ca.example/new", |input| {
        Some(input.as_bytes().to_vec())
    });
    let text = compact(&bound.unwrap());
    let read = jose::Unverified::parse(&text).unwrap();
    assert_eq!(
        Value::Object(read.header.clone()),
        json!({"alg": "HS256", "kid": "kid-1", "url": "https://ca.example/new"})
    );
    assert_eq!(read.claims::<Value>().unwrap(), key.public().members());
}

#[test]
fn a_key_that_was_left_is_taken_up_at_the_start_or_never() {
    // DPOP-14, KEY-07
    let dir = private_dir();
    let keeper = || {
        let sealing = SealingKey::of(&Secret::new("seed"));
        ProofKeeper::taking_up(dir.path().join("proofs"), sealing, "boot".into(), SeededDice::from_seed(1))
    };
    let begin = || Keyring::default().keeping_proofs(keeper());
    let mut settings = wanted(&[("payments", Custody::Memory, Algorithm::Es256)]);
    settings.get_mut("payments").unwrap().dpop = [Arc::from("corp")].into();
    let kid = |ring: &Keyring| {
        ring.signer(&"payments".into(), Purpose::Dpop("corp".into())).unwrap().kid().to_owned()
    };
    let first = Keyring::open(&settings, &begin(), now()).unwrap();
    first.leave_proofs(now().boot).unwrap();
    let next = Keyring::open(&settings, &begin(), now()).unwrap();
    assert_eq!(kid(&next), kid(&first));
    next.forget_left();
    // It is replaced, and its identity leaves the settings and comes again.
    let without = Keyring::open(&BTreeMap::new(), &next, now()).unwrap();
    assert_ne!(kid(&Keyring::open(&settings, &without, now()).unwrap()), kid(&first));
    assert!(!dir.path().join("proofs").exists());
}

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use super::*;
use crate::jose::{self, Header, PublicKey, Unverified};

fn wanted(entries: &[(&str, Custody, Algorithm)]) -> BTreeMap<Arc<str>, KeySettings> {
    entries
        .iter()
        .map(|(name, custody, algorithm)| {
            (
                Arc::from(*name),
                KeySettings {
                    custody: custody.clone(),
                    algorithm: *algorithm,
                    client: true,
                    dpop: BTreeSet::new(),
                },
            )
        })
        .collect()
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
    let ring = Keyring::open(&wanted(&entries), &Keyring::default()).unwrap();
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
    let errors = Keyring::open(&wanted(&entries), &Keyring::default()).unwrap_err();
    assert_eq!(errors.len(), 1);
    assert!(errors[0].to_string().contains("same key as that of identity a"), "{}", errors[0]);
}

#[test]
fn a_file_key_is_made_once_and_found_again() {
    // KEY-11
    let dir = private_dir();
    let entries = [("a", file(dir.path(), "keys/a.pem"), Algorithm::EdDsa)];
    let first = Keyring::open(&wanted(&entries), &Keyring::default()).unwrap();
    let again = Keyring::open(&wanted(&entries), &Keyring::default()).unwrap();
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
    Keyring::open(&wanted(&entries), &Keyring::default()).unwrap();
    let refusal = || Keyring::open(&wanted(&entries), &Keyring::default()).unwrap_err().remove(0).to_string();

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
    let first = Keyring::open(&wanted(&entries), &Keyring::default()).unwrap();
    let second = Keyring::open(&wanted(&entries), &first).unwrap();
    let kid = |ring: &Keyring| ring.signer(&"a".into(), Purpose::ClientAuth).unwrap().kid().to_owned();
    assert_eq!(kid(&first), kid(&second));
}

#[test]
fn rsa_is_read_but_not_made() {
    let errors =
        Keyring::open(&wanted(&[("a", Custody::Memory, Algorithm::Ps256)]), &Keyring::default()).unwrap_err();
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

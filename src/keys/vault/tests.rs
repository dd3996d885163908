use std::{
    collections::{BTreeMap, BTreeSet},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    time::{Duration, SystemTime},
};

use super::*;
use crate::{
    clock::{Boot, SystemDice},
    jose::{Algorithm, Header, sign},
    keys::{
        CLIENT_AUTH, CLIENT_CERTIFICATE, CertificateSettings, Certificates, Custody, KeySettings, Keyring,
        Now, Purpose, RotationSettings, SignedBy,
    },
};

/// A state directory, and beside it the sealing keys that the agent is given.
struct Desk {
    dir: tempfile::TempDir,
    settings: SealSettings,
}

impl Desk {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let settings = SealSettings {
            credentials: Some(dir.path().join("credentials")),
            directory: dir.path().join("state/keys"),
            ..SealSettings::default()
        };
        fs::create_dir(dir.path().join("credentials")).unwrap();
        Self { dir, settings }
    }

    /// One that has a sealing key.
    fn sealed() -> Self {
        let desk = Self::new();
        desk.give(CREDENTIAL, &[*b"one sealing key, from the host; "; 1].concat());
        desk
    }

    fn give(&self, name: &str, key: &[u8]) {
        let path = self.dir.path().join("credentials").join(name);
        fs::write(&path, key).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
    }

    fn take(&self, name: &str) {
        fs::remove_file(self.dir.path().join("credentials").join(name)).unwrap();
    }

    fn vault(&self) -> Vault {
        Vault::open(&self.settings, SystemDice::shared()).unwrap()
    }

    fn to_look(&self) -> Vault {
        Vault::to_look(&self.settings, SystemDice::shared()).unwrap()
    }

    fn file(&self, identity: &str) -> PathBuf {
        default_path(&self.settings.directory, identity, CLIENT_AUTH)
    }

    /// The keys of `identities`, as an agent that starts opens them.
    fn ring(&self, identities: &[&str], vault: Vault) -> Result<Keyring, FileError> {
        let wanted = identities.iter().map(|name| (Arc::from(*name), wish(self.file(name)))).collect();
        Keyring::open(&wanted, &Keyring::within(vault), now()).map_err(|mut errors| errors.remove(0).error)
    }

    /// A wish for a certificate that the identity signs itself.
    fn certified(&self, identity: &str) -> BTreeMap<Arc<str>, CertificateSettings> {
        let path = default_path(&self.settings.directory, identity, CLIENT_CERTIFICATE);
        let (custody, signed_by) = (Custody::File { path }, SignedBy::Itself);
        let (san_uri, lifetime) = (None, Duration::from_secs(30 * 86_400));
        let settings = CertificateSettings { custody, signed_by, san_uri, lifetime, export: true };
        [(identity.into(), settings)].into()
    }

    fn kid(&self, identity: &str, vault: Vault) -> String {
        signer(&self.ring(&[identity], vault).unwrap(), identity).kid().to_owned()
    }
}

fn wish(path: PathBuf) -> KeySettings {
    KeySettings {
        custody: Custody::File { path },
        algorithm: Algorithm::Es256,
        rotation: RotationSettings::default(),
        client: true,
        dpop: BTreeSet::new(),
    }
}

fn signer(ring: &Keyring, identity: &str) -> Arc<dyn crate::jose::Signer> {
    ring.signer(&identity.into(), Purpose::ClientAuth).unwrap()
}

fn now() -> Now {
    Now { wall: "2026-01-01T00:00:00Z".parse().unwrap(), boot: Boot::from_nanos(0) }
}

fn names(directory: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(directory).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn a_sealed_key_is_found_again_and_no_byte_of_it_is_in_the_file() {
    // KEY-11, S9
    let desk = Desk::sealed();
    let path = desk.file("a");
    let vault = desk.vault();
    let slot = Slot::of(&vault, CLIENT_AUTH, "a");
    let made = file::open_or_make_pkcs8(&path, Algorithm::Es256, slot).unwrap();
    let text = fs::read(&path).unwrap();
    assert!(
        text.starts_with(b"-----BEGIN KEYBEARER SEALED KEY-----\n"),
        "{}",
        String::from_utf8_lossy(&text)
    );
    // RFC 5915: the private scalar stands behind `02 01 01 04 20`.
    let at = made.expose().windows(5).position(|window| window == [2, 1, 1, 4, 32]).unwrap() + 5;
    let scalar = &made.expose()[at..at + 32];
    let (sealed, _) = parts(&text).unwrap();
    for hidden in [scalar, &made.expose()[..16]] {
        assert!(
            ![&text, &sealed].iter().any(|bytes| bytes.windows(hidden.len()).any(|window| window == hidden))
        );
    }
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
    let again = file::open(&path, Slot::of(&desk.vault(), CLIENT_AUTH, "a")).unwrap();
    assert_eq!(again.expose(), made.expose());
}

#[test]
fn it_opens_as_nothing_else_and_with_no_other_key() {
    // KEY-01, KEY-11, TM-14
    let desk = Desk::sealed();
    desk.ring(&["a", "b"], desk.vault()).unwrap();
    let kept = fs::read(desk.file("a")).unwrap();
    // Another identity's file in its place.
    fs::copy(desk.file("b"), desk.file("a")).unwrap();
    let refusal = desk.ring(&["a"], desk.vault()).unwrap_err();
    assert!(matches!(refusal, FileError::Sealed { .. }), "{refusal}");
    assert!(refusal.to_string().contains("client-auth key of a"), "{refusal}");
    fs::write(desk.file("a"), &kept).unwrap();
    // Another host, and then a host without a key: nothing is made in its place.
    desk.give(OLD_CREDENTIAL, b"one sealing key, from the host; ");
    desk.take(CREDENTIAL);
    desk.give(CREDENTIAL, b"the sealing key of another host.");
    desk.take(OLD_CREDENTIAL);
    assert!(matches!(desk.ring(&["a"], desk.vault()), Err(FileError::Sealed { .. })));
    desk.take(CREDENTIAL);
    let refusal = desk.ring(&["a"], desk.vault()).unwrap_err();
    assert!(matches!(refusal, FileError::NoSealingKey { .. }), "{refusal}");
    assert_eq!(fs::read(desk.file("a")).unwrap(), kept);
    assert_eq!(names(&desk.settings.directory).len(), 2);
}

#[test]
fn not_one_byte_can_be_changed() {
    // KEY-11
    let desk = Desk::sealed();
    let ring = desk.ring(&["a"], desk.vault()).unwrap();
    let wanted = desk.certified("a");
    Certificates::open(&wanted, &Certificates::default(), &ring, now().wall).unwrap();
    let open = |name: &str| match name {
        "a.client-auth.pem" => desk.ring(&["a"], desk.vault()).map(drop).map_err(|error| error.to_string()),
        _ => Certificates::open(&wanted, &Certificates::default(), &ring, now().wall)
            .map(drop)
            .map_err(|errors| errors[0].to_string()),
    };
    for name in names(&desk.settings.directory) {
        let path = desk.settings.directory.join(&name);
        let kept = fs::read(&path).unwrap();
        assert!(open(&name).is_ok(), "{name}: the control");
        for at in 0..kept.len() {
            let mut changed = kept.clone();
            changed[at] ^= 1;
            fs::write(&path, &changed).unwrap();
            assert!(open(&name).is_err(), "{name}: byte {at} of {}", String::from_utf8_lossy(&changed));
        }
        for changed in [&kept[..kept.len() - 1], &[&kept[..], b"\n"].concat(), &kept[1..]] {
            fs::write(&path, changed).unwrap();
            assert!(open(&name).is_err(), "{name}");
        }
        fs::write(&path, &kept).unwrap();
        assert!(open(&name).is_ok(), "{name}: nothing was made in its place");
    }
}

#[test]
fn a_plain_file_of_our_own_is_sealed_where_it_is_and_keeps_its_age() {
    // KEY-08, KEY-11
    let desk = Desk::new();
    let identity: Arc<str> = "a".into();
    let begun = desk.ring(&["a"], desk.vault()).unwrap().begin(&identity, now()).unwrap();
    let (kid, next) = (signer(&begun, "a").kid().to_owned(), begun.next(&identity).unwrap().kid().to_owned());
    let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let files = [desk.file("a"), file::beside(&desk.file("a"), ".next")];
    for path in &files {
        fs::File::options().write(true).open(path).unwrap().set_modified(old).unwrap();
    }
    // Another name of the same key, by whoever made it and was killed.
    fs::hard_link(&files[0], file::beside(&files[0], ".new")).unwrap();
    assert_eq!(unsealed([files[0].as_path()]).len(), 2);

    desk.give(CREDENTIAL, b"one sealing key, from the host; ");
    // Whoever only looks changes nothing.
    assert_eq!(desk.kid("a", desk.to_look()), kid);
    assert_eq!(unsealed([files[0].as_path()]).len(), 2);
    let again = desk.ring(&["a"], desk.vault()).unwrap();
    assert_eq!((signer(&again, "a").kid(), again.next(&identity).unwrap().kid()), (&*kid, &*next));
    assert!(unsealed([files[0].as_path()]).is_empty());
    for path in &files {
        let meta = fs::metadata(path).unwrap();
        assert_eq!((meta.modified().unwrap(), meta.mode() & 0o7777, meta.nlink()), (old, 0o600, 1));
    }
    assert_eq!(names(&desk.settings.directory).len(), 2, "nothing plain is left under another name");
    // What is made from here on is sealed, and goes its way by renaming.
    let over = again.switch(&identity, now()).unwrap().finish(&identity).unwrap();
    over.replace(&identity, now()).unwrap();
    assert!(unsealed([files[0].as_path()]).is_empty());
    assert_eq!(names(&desk.settings.directory).len(), 1);
}

#[test]
fn what_waits_sealed_for_the_next_start_still_opens_once_its_key_is_sealed() {
    // KEY-07, KEY-11
    let desk = Desk::new();
    let path = desk.settings.directory.join("sealing.pem");
    let (plain, dice) = (SealingKey::open(&path, &desk.vault()).unwrap(), SystemDice::shared());
    let waits = plain.seal("revocations", &Secret::new("a token"), &*dice).unwrap();
    desk.give(CREDENTIAL, b"one sealing key, from the host; ");
    let opens = |vault: &Vault| {
        let key = SealingKey::open(&path, vault).unwrap();
        key.unseal("revocations", &waits).is_some_and(|token| token.expose() == b"a token")
    };
    assert!(opens(&desk.vault()) && opens(&desk.vault()));
    assert!(unsealed([path.as_path()]).is_empty());
    desk.take(CREDENTIAL);
    assert!(matches!(SealingKey::open(&path, &desk.to_look()), Err(FileError::NoSealingKey { .. })));
}

#[test]
fn a_file_that_the_settings_name_is_left_as_it_is() {
    // KEY-11
    let desk = Desk::new();
    let path = desk.settings.directory.join("mine.pem");
    let wanted = BTreeMap::from([("a".into(), wish(path.clone()))]);
    let open = || Keyring::open(&wanted, &Keyring::within(desk.vault()), now()).unwrap();
    let kid = signer(&open(), "a").kid().to_owned();
    let kept = fs::read(&path).unwrap();
    desk.give(CREDENTIAL, b"one sealing key, from the host; ");
    let ring = open();
    assert_eq!((signer(&ring, "a").kid(), fs::read(&path).unwrap()), (&*kid, kept));
    assert_eq!(unsealed([path.as_path()]), std::slice::from_ref(&path), "and status names it");
    // The one that takes its place is the agent's.
    let identity: Arc<str> = "a".into();
    ring.begin(&identity, now()).unwrap().switch(&identity, now()).unwrap().finish(&identity).unwrap();
    assert!(unsealed([path.as_path()]).is_empty());
}

#[test]
fn another_sealing_key_takes_the_place_of_the_one_before() {
    // K57-6
    let desk = Desk::sealed();
    let kid = desk.kid("a", desk.vault());
    let old = b"one sealing key, from the host; ";
    desk.take(CREDENTIAL);
    desk.give(CREDENTIAL, b"the sealing key of another year.");
    let named = desk.dir.path().join("old.key");
    fs::write(&named, old).unwrap();
    fs::set_permissions(&named, fs::Permissions::from_mode(0o600)).unwrap();
    let both = SealSettings { old_key: Some(named), ..desk.settings.clone() };
    let vault = |settings| Vault::open(settings, SystemDice::shared()).unwrap();
    let kept = fs::read(desk.file("a")).unwrap();
    assert_eq!(desk.kid("a", Vault::to_look(&both, SystemDice::shared()).unwrap()), kid);
    assert_eq!(fs::read(desk.file("a")).unwrap(), kept, "whoever only looks changes nothing");
    assert_eq!(desk.kid("a", vault(&both)), kid);
    assert_eq!(desk.kid("a", desk.vault()), kid, "the old one is of no use any more");
    // The same with both from the service manager.
    desk.take(CREDENTIAL);
    desk.give(CREDENTIAL, b"the sealing key of the year next");
    desk.give(OLD_CREDENTIAL, b"the sealing key of another year.");
    assert_eq!(desk.kid("a", desk.vault()), kid);
    desk.take(OLD_CREDENTIAL);
    assert_eq!(desk.kid("a", desk.vault()), kid);
}

#[test]
fn without_a_sealing_key_public_halves_can_be_seen_and_nothing_more() {
    // KEY-03, KEY-09
    let desk = Desk::sealed();
    let certificate = |ring: &Keyring| {
        let open = Certificates::open(&desk.certified("a"), &Certificates::default(), ring, now().wall);
        open.map(|all| all.to_register().next().unwrap().1.remove(0))
            .map_err(|mut errors| errors.remove(0).error)
    };
    let whole = desk.ring(&["a"], desk.vault()).unwrap();
    let with_key = certificate(&whole).unwrap();
    desk.take(CREDENTIAL);
    let looked = desk.ring(&["a"], desk.to_look()).unwrap();
    let without = certificate(&looked).unwrap();
    assert_eq!((with_key.kid(), with_key.jwk()), (without.kid(), without.jwk()));
    assert_eq!((with_key.chain_pem(), with_key.until()), (without.chain_pem(), without.until()));
    assert!(with_key.private_pem().is_some() && without.private_pem().is_none());
    let (one, other) = (signer(&whole, "a"), signer(&looked, "a"));
    assert_eq!((one.kid(), one.public()), (other.kid(), other.public()));
    let claims = serde_json::json!({});
    assert!(sign(&*one, Header { typ: "JWT" }, &claims).is_ok());
    assert!(sign(&*other, Header { typ: "JWT" }, &claims).is_err());
    // Nor is a key made that would lie there plain.
    assert!(matches!(desk.ring(&["a", "b"], desk.to_look()), Err(FileError::NoSealingKey { .. })));
    assert!(!desk.file("b").exists());
    fs::remove_file(default_path(&desk.settings.directory, "a", CLIENT_CERTIFICATE)).unwrap();
    assert!(matches!(certificate(&looked), Err(FileError::NoSealingKey { .. })));
}

#[test]
fn where_one_is_required_nothing_goes_without() {
    // KEY-11
    let mut desk = Desk::new();
    desk.settings.required = true;
    let open = |settings: &SealSettings| Vault::open(settings, SystemDice::shared());
    assert!(matches!(open(&desk.settings), Err(FileError::Unsealed)));
    assert!(matches!(desk.ring(&["a"], desk.to_look()), Err(FileError::NoSealingKey { .. })));
    // One that is named and not there is a mistake in any case.
    let named =
        SealSettings { key: Some(desk.dir.path().join("none")), required: false, ..desk.settings.clone() };
    assert!(matches!(open(&named), Err(FileError::SealingKey { .. })));
    desk.give(CREDENTIAL, b"one sealing key, from the host; ");
    assert_eq!(open(&desk.settings).unwrap().sealed_by(), Some("the credential keybearer.sealing-key"));
}

#[test]
fn a_sealing_key_that_others_can_read_or_that_is_none_is_refused() {
    // KEY-11
    let desk = Desk::sealed();
    let path = desk.dir.path().join("credentials").join(CREDENTIAL);
    let refusal = || Vault::open(&desk.settings, SystemDice::shared()).unwrap_err();
    for mode in [0o404, 0o620, 0o602] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        assert!(matches!(refusal(), FileError::Perm { .. }), "{mode:o}");
    }
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    for none in [&b"canary of 31 bytes of no chance"[..], &[0; 64], b""] {
        fs::write(&path, none).unwrap();
        let refusal = refusal();
        assert!(matches!(refusal, FileError::SealingKey { .. }), "{refusal}");
        assert!(!refusal.to_string().contains("canary"), "{refusal}");
    }
    fs::rename(&path, desk.dir.path().join("elsewhere")).unwrap();
    std::os::unix::fs::symlink(desk.dir.path().join("elsewhere"), &path).unwrap();
    assert!(matches!(refusal(), FileError::Io { .. }));
    fs::remove_file(&path).unwrap();
    fs::set_permissions(desk.dir.path().join("credentials"), fs::Permissions::from_mode(0o777)).unwrap();
    fs::rename(desk.dir.path().join("elsewhere"), &path).unwrap();
    assert!(matches!(refusal(), FileError::Perm { .. }));
}

#[test]
fn whoever_is_killed_while_he_seals_leaves_one_good_key() {
    // KEY-11
    let desk = Desk::new();
    let kid = desk.kid("a", desk.vault());
    let plain = fs::read(desk.file("a")).unwrap();
    desk.give(CREDENTIAL, b"one sealing key, from the host; ");
    // Before the rename: half of it, or all of it, lies beside the plain one.
    let other = Desk::sealed();
    other.ring(&["a"], other.vault()).unwrap();
    let sealed = fs::read(other.file("a")).unwrap();
    for written in [&sealed[..0], &sealed[..40], &sealed[..]] {
        fs::write(desk.file("a"), &plain).unwrap();
        fs::write(file::beside(&desk.file("a"), ".new"), written).unwrap();
        assert_eq!(desk.kid("a", desk.vault()), kid);
        assert!(unsealed([desk.file("a").as_path()]).is_empty());
        assert_eq!(names(&desk.settings.directory).len(), 1);
    }
}

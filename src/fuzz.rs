//! What must hold of anything that strangers can make us read. In go bytes; nothing comes out, or a panic that names what did
//! not hold. The same functions serve the fuzzer of tests/fuzz, which looks for such bytes, and the test below, which goes
//! through those that were kept.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::LazyLock,
};

use jiff::Timestamp;
use serde_json::Value;

pub use crate::{
    api::properties::forward,
    attest::properties::{errand, proc},
    issuer::oauth::properties::reply,
    issuer::x509::est::properties::est,
    policy::properties::policy,
    scan::properties::scan,
    shim::tools::properties::asked,
    wire::properties::frames,
};
use crate::{
    audit::{self, Fault, Record, Report, VerifyError, properties::Files},
    clock::SeededDice,
    config,
    jose::{Algorithm, Header, PublicKey, Signer, Unverified, sign},
    keys::{CheckpointKey, Key, Verifier},
    proof::{Claim, Nonce, Target},
    secret::Secret,
};

/// A stranger's bytes, and what must hold of them.
type Property = fn(&[u8]);

/// Every target, by the name of its corpus.
pub const TARGETS: [(&str, Property); 14] = [
    ("asked", asked),
    ("checkpoint", checkpoint),
    ("errand", errand),
    ("est", est),
    ("forward", forward),
    ("frames", frames),
    ("jose", jose),
    ("ledger", ledger),
    ("policy", policy),
    ("proc", proc),
    ("proof", proof),
    ("reply", reply),
    ("scan", scan),
    ("settings", settings),
];

/// What each `@` of the settings becomes: a secret in the wrong place. No name may hold these characters.
const SECRET: &str = "Kb.C4n4ry!";

/// Settings are used whole, or refused with the place of each mistake and without a word of what was written (BCP-03).
pub fn settings(bytes: &[u8]) {
    let text = std::str::from_utf8(bytes).map(|text| text.replace('@', SECRET));
    let path = own_path("settings.toml");
    put(&path, text.as_ref().map_or(bytes, |text| text.as_bytes()));
    let read = config::load(&path, &Default::default(), Timestamp::UNIX_EPOCH);
    let _ = fs::remove_file(&path);
    for mistake in read.err().into_iter().flatten() {
        assert!(!mistake.message.is_empty());
        assert!(mistake.line.is_some() || !mistake.key.is_empty() || text.is_err(), "where is {mistake:?}");
        assert!(mistake.message.bytes().all(|byte| byte != 0x1b), "a terminal would obey {mistake:?}");
        assert!(!mistake.message.contains(SECRET), "{mistake:?}");
    }
}

/// A path that no other thread of these has.
fn own_path(name: &str) -> PathBuf {
    let thread = format!("{:?}", std::thread::current().id());
    std::env::temp_dir().join(format!("keybearer-fuzz-{}-{thread}-{name}", std::process::id()))
}

fn put(path: &Path, bytes: &[u8]) {
    use std::{io::Write as _, os::unix::fs::OpenOptionsExt as _};
    let mut options = fs::OpenOptions::new();
    let file = options.create(true).truncate(true).write(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(bytes)).expect("the temporary directory can be written");
}

/// Always the same key, so that what was found once is found again: Ed25519 in PKCS#8 (RFC 8410), and a seed of sevens.
fn pkcs8() -> Secret {
    const HEAD: [u8; 16] = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
    Secret::new([&HEAD[..], &[7; 32]].concat())
}

static KEY: LazyLock<Key> =
    LazyLock::new(|| Key::from_pkcs8(&pkcs8(), Algorithm::EdDsa).expect("it is a key"));

/// The same for checkpoints.
static CHECKPOINTS: LazyLock<CheckpointKey> =
    LazyLock::new(|| CheckpointKey::from_pkcs8(&pkcs8(), "keybearer/fuzz").expect("it is a key"));

/// `bytes` with one of them changed, as three more of a stranger's say; nothing if they say to change none.
fn flipped(mut bytes: Vec<u8>, [high, low, by]: [u8; 3]) -> Option<Vec<u8>> {
    let at = usize::from(u16::from_be_bytes([high, low])) % bytes.len();
    bytes[at] ^= by;
    (by != 0).then_some(bytes)
}

const ALL: [Algorithm; 4] = [Algorithm::Es256, Algorithm::EdDsa, Algorithm::Ps256, Algorithm::Rs256];

/// What is parsed is not trusted; a key's name does not hang on how it was written; a changed token never verifies.
pub fn jose(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(token) = Unverified::parse(&text) {
        assert!(token.verify(KEY.public(), &ALL).is_err(), "nobody else has this key");
    }
    if let Ok(jwk) = serde_json::from_str::<Value>(&text)
        && let Ok(key) = PublicKey::from_jwk(&jwk)
    {
        // The name of an algorithm beside a key is not part of its name.
        let again = PublicKey::from_jwk(&key.jwk(Algorithm::Es256)).expect("what we write can be read");
        assert_eq!(again.thumbprint(), key.thumbprint());
    }
    let claims = serde_json::json!({"said": text});
    let token = sign(&*KEY, Header { typ: "JWT" }, &claims).expect("this key signs");
    let token = token.expose_str().expect("a compact JWS is text").to_owned();
    let verifies =
        |token: &str| Unverified::parse(token).is_ok_and(|token| token.verify(KEY.public(), &ALL).is_ok());
    assert!(verifies(&token));
    // The last character of a part may hold bits that no byte needs; decoding is strict about those.
    if let Some(at) = bytes.first_chunk()
        && let Some(changed) = flipped(token.clone().into_bytes(), *at)
        && let Ok(changed) = String::from_utf8(changed)
    {
        assert!(!verifies(&changed), "{token} and {changed}");
    }
}

/// A target is one place, however it was written, and nothing in it could end a header line or hide a host; a nonce goes into
/// a proof as it came, or not at all.
pub fn proof(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(target) = Target::parse(&text) {
        let again = Target::parse(target.htu()).expect("what we write can be read");
        assert_eq!((again.htu(), again.origin(), &again), (target.htu(), target.origin(), &target));
        assert!(target.htu().bytes().all(|byte| byte.is_ascii_graphic()), "{target:?}");
        let path = target.htu().strip_prefix(target.origin()).expect("an origin is where it begins");
        assert!(path.starts_with('/') && !path.contains(['?', '#']), "{target:?}");
        assert!(!target.origin().contains('@') && target.origin().matches('/').count() == 2, "{target:?}");
    }
    if let Some(nonce) = Nonce::parse(&text) {
        let target = Target::parse("https://api.example/").expect("it is one");
        let claim = Claim {
            method: "GET",
            target: &target,
            token: None,
            nonce: Some(&nonce),
            now: Timestamp::UNIX_EPOCH,
        };
        let proof = claim.sign(&*KEY, &*SeededDice::from_seed(1)).expect("this key signs");
        let proof = proof.text.expose_str().expect("a compact JWS is text");
        let claims: Value = Unverified::parse(proof).and_then(|jws| jws.claims()).expect("we wrote it");
        assert_eq!(claims["nonce"].as_str(), Some(&*text));
    }
}

/// No note is believed that the key did not sign, however like one it looks.
pub fn checkpoint(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let verifier = CHECKPOINTS.verifier();
    assert!(verifier.verify(&text).is_err(), "nobody else has this key");
    if let Ok(verifier) = Verifier::parse(&text) {
        assert_eq!(Verifier::parse(&verifier.to_string()).as_ref(), Ok(&verifier));
    }
    let good = CHECKPOINTS.sign(bytes.len() as u64, [7; 32]);
    let signed = verifier.verify(&good).expect("what we sign we believe");
    assert_eq!((signed.size, signed.root), (bytes.len() as u64, [7; 32]));
    if let Some(at) = bytes.first_chunk()
        && let Some(changed) = flipped(good.into_bytes(), *at)
        && let Ok(changed) = String::from_utf8(changed)
    {
        assert!(verifier.verify(&changed).is_err(), "{changed:?}");
    }
}

/// A ledger in which one byte was changed is not believed, in whichever of its files. Any text is read to its first fault
/// without a panic, and what is believed of it is a chain from the first record on, of which only the last may be torn. The first
/// four bytes say what is changed in a good ledger; all of them are tried as a ledger that nobody signed.
pub fn ledger(bytes: &[u8]) {
    let good = audit::properties::good(&CHECKPOINTS);
    let whole = verified(&good).expect("a good ledger is believed");
    assert_eq!((whole.records, whole.signed, whole.files, whole.torn), (6, 6, 2, false));
    if let Some([which, change @ ..]) = bytes.first_chunk::<4>() {
        let which = usize::from(*which) % good.len();
        if let Some(changed) = flipped(good[which].1.clone(), *change) {
            let mut files = good;
            files[which].1 = changed;
            assert!(
                verified(&files).is_err(),
                "{}: {:?}",
                files[which].0,
                String::from_utf8_lossy(&files[which].1)
            );
        }
    }
    let lines = bytes.split_inclusive(|byte| *byte == b'\n').count() as u64;
    match verified(&audit::properties::unsigned(bytes)) {
        Ok(report) => {
            assert_eq!((report.checkpoints, report.signed), (0, 0));
            assert_eq!(report.records + u64::from(report.torn), lines);
        }
        Err(error) => {
            assert!(error.seq <= lines && !matches!(error.fault, Fault::Unreadable { .. }), "{error}");
        }
    }
    for record in audit::read(&own_path("ledger"), 0).expect("it is there") {
        let again = serde_json::to_string(&record).expect("a record can be written");
        assert_eq!(serde_json::from_str::<Record>(&again).ok(), Some(record));
    }
}

fn verified(files: &Files) -> Result<Report, VerifyError> {
    let directory = own_path("ledger");
    // Left there for the next bytes: making it is the slow part.
    fs::create_dir_all(&directory).expect("the temporary directory can be written");
    // Of the ledger before this one, nothing may be left.
    for entry in fs::read_dir(&directory).expect("it is there").flatten() {
        if !files.iter().any(|(name, _)| entry.file_name() == name.as_str()) {
            fs::remove_file(entry.path()).expect("it is ours");
        }
    }
    for (name, content) in files {
        put(&directory.join(name), content);
    }
    audit::verify(&directory, Some(CHECKPOINTS.verifier()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_kept_of_fuzzing_holds() {
        for (name, property) in TARGETS {
            let corpus = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(name);
            let files: Vec<PathBuf> =
                fs::read_dir(&corpus).unwrap().map(|file| file.unwrap().path()).collect();
            assert!(!files.is_empty(), "{} is empty", corpus.display());
            for file in files {
                property(&fs::read(file).unwrap());
            }
        }
        // An empty input is one too.
        TARGETS.iter().for_each(|(_, property)| property(b""));
        fs::remove_dir_all(own_path("ledger")).unwrap();
    }
}

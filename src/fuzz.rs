//! What must hold of anything that strangers can make us read. In go bytes; nothing comes out, or a panic that names what did
//! not hold. The same functions serve the fuzzer of tests/fuzz, which looks for such bytes, and the test below, which goes
//! through those that were kept.

use std::{fs, path::PathBuf};

use jiff::Timestamp;
use serde_json::Value;

pub use crate::{
    attest::properties::proc, issuer::oauth::properties::reply, policy::properties::policy,
    wire::properties::frames,
};
use crate::{
    config,
    jose::{Algorithm, Header, PublicKey, Signer, Unverified, sign},
    keys::{CheckpointKey, Key, Verifier},
};

/// A stranger's bytes, and what must hold of them.
type Property = fn(&[u8]);

/// Every target, by the name of its corpus.
pub const TARGETS: [(&str, Property); 7] = [
    ("checkpoint", checkpoint),
    ("frames", frames),
    ("jose", jose),
    ("policy", policy),
    ("proc", proc),
    ("reply", reply),
    ("settings", settings),
];

/// Settings are used whole or refused with the place of each mistake.
pub fn settings(bytes: &[u8]) {
    let thread = format!("{:?}", std::thread::current().id());
    let name = format!("keybearer-fuzz-{}-{thread}.toml", std::process::id());
    let path = std::env::temp_dir().join(name);
    put(&path, bytes);
    let read = config::load(&path, &Default::default(), Timestamp::UNIX_EPOCH);
    let _ = fs::remove_file(&path);
    for mistake in read.err().into_iter().flatten() {
        assert!(!mistake.message.is_empty());
        assert!(mistake.message.bytes().all(|byte| byte != 0x1b), "a terminal would obey {mistake:?}");
    }
}

fn put(path: &PathBuf, bytes: &[u8]) {
    use std::{io::Write as _, os::unix::fs::OpenOptionsExt as _};
    let mut options = fs::OpenOptions::new();
    let file = options.create(true).truncate(true).write(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(bytes)).expect("the temporary directory can be written");
}

const ALL: [Algorithm; 4] = [Algorithm::Es256, Algorithm::EdDsa, Algorithm::Ps256, Algorithm::Rs256];

/// What is parsed is not trusted; a key's name does not hang on how it was written; a changed token never verifies.
pub fn jose(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(token) = Unverified::parse(&text) {
        let key = Key::generate(Algorithm::Es256).expect("a key can be made");
        assert!(token.verify(key.public(), &ALL).is_err(), "nobody has this key");
    }
    if let Ok(jwk) = serde_json::from_str::<Value>(&text)
        && let Ok(key) = PublicKey::from_jwk(&jwk)
    {
        // The name of an algorithm beside a key is not part of its name.
        let again = PublicKey::from_jwk(&key.jwk(Algorithm::Es256)).expect("what we write can be read");
        assert_eq!(again.thumbprint(), key.thumbprint());
    }
    let key = Key::generate(Algorithm::EdDsa).expect("a key can be made");
    let claims = serde_json::json!({"said": text});
    let header = Header { typ: "JWT" };
    let Ok(token) = sign(&key, header, &claims) else { return };
    let token = token.expose_str().expect("a compact JWS is text").to_owned();
    let verifies =
        |token: &str| Unverified::parse(token).is_ok_and(|token| token.verify(key.public(), &ALL).is_ok());
    assert!(verifies(&token));
    let at = bytes.iter().fold(0usize, |at, byte| at.wrapping_mul(31).wrapping_add(usize::from(*byte)))
        % token.len();
    let mut changed = token.clone().into_bytes();
    changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
    let changed = String::from_utf8(changed).expect("ASCII stays ASCII");
    // The last character of a part may hold bits that no byte needs; decoding is strict about those.
    assert!(!verifies(&changed), "{token} and {changed}");
}

/// No note is believed that the key did not sign, however like one it looks.
pub fn checkpoint(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let key = CheckpointKey::generate("keybearer/fuzz").expect("a key can be made");
    assert!(key.verifier().verify(&text).is_err(), "nobody has this key");
    if let Ok(verifier) = Verifier::parse(&text) {
        assert_eq!(Verifier::parse(&verifier.to_string()).as_ref(), Ok(&verifier));
    }
    let good = key.sign(bytes.len() as u64, [7; 32]);
    let signed = key.verifier().verify(&good).expect("what we sign we believe");
    let (at, by) = match bytes {
        [at, by, ..] => (usize::from(*at) % good.len(), *by),
        _ => return,
    };
    let mut changed = good.clone().into_bytes();
    changed[at] ^= by;
    if let Ok(believed) = key.verifier().verify(&String::from_utf8_lossy(&changed)) {
        assert_eq!(believed, signed, "{changed:?}");
    }
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
    }
}

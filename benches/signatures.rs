//! What the agent signs, beside bare ring signing the same bytes with the same kind of key, in turns in one run: proofs of
//! possession, and the client assertions of token requests. Prints ratios with their spread.
//!
//! `cargo bench --bench signatures` (add `-- --rounds 15` for more rounds).
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on has failed")]
#![allow(
    clippy::disallowed_methods,
    reason = "a benchmark measures real time, and bare ring needs its own dice"
)]

mod support;

use std::time::{Duration, Instant};

use keybearer::{
    clock::SystemDice,
    jose::{Algorithm, Header, sign},
    keys::Key,
    proof::{Claim, Nonce, Target},
    secret::Secret,
};
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair},
};
use support::{argument, spread};

const ROUND: Duration = Duration::from_millis(300);

fn main() {
    let rounds = argument("--rounds", 9);
    println!("{:<34} {:>10} {:>10}   agent / ring, median (min - max)", "", "agent /s", "ring /s");
    for algorithm in [Algorithm::Es256, Algorithm::EdDsa] {
        let (key, dice) = (Key::generate(algorithm).unwrap(), SystemDice::shared());
        let target = Target::parse("https://ledger.example.com/entries/17").unwrap();
        let (token, nonce) =
            (Secret::new(vec![b'x'; 800]), Nonce::parse("eyJ7S_zG.eyJH0-Z.HX4w-7v").unwrap());
        let proof = || {
            let now = jiff::Timestamp::from_second(1_700_000_000).unwrap();
            let claim =
                Claim { method: "POST", target: &target, token: Some(&token), nonce: Some(&nonce), now };
            claim.sign(&key, &*dice).unwrap().text
        };
        compare(&format!("{algorithm} proofs"), rounds, algorithm, &proof);
        let claims = serde_json::json!({
            "iss": "payments", "sub": "payments", "aud": "https://idp.example.com/realms/prod",
            "jti": "mWQx6vJkq0h0bXn5wC9y0Q", "iat": 1_700_000_000, "exp": 1_700_000_060,
        });
        let assertion = || sign(&key, Header { typ: "client-authentication+jwt" }, &claims).unwrap();
        compare(&format!("{algorithm} assertions"), rounds, algorithm, &assertion);
    }
}

fn compare(name: &str, rounds: usize, algorithm: Algorithm, ours: &dyn Fn() -> Secret) {
    let text = ours();
    // What is signed is everything before the last dot.
    let message = text.expose_str().unwrap().rsplit_once('.').unwrap().0.as_bytes().to_vec();
    let chance = SystemRandom::new();
    let bare: Box<dyn Fn()> = match algorithm {
        Algorithm::Es256 => {
            let signing = &ECDSA_P256_SHA256_FIXED_SIGNING;
            let made = EcdsaKeyPair::generate_pkcs8(signing, &chance).unwrap();
            let pair = EcdsaKeyPair::from_pkcs8(signing, made.as_ref(), &chance).unwrap();
            let chance = chance.clone();
            Box::new(move || {
                std::hint::black_box(pair.sign(&chance, &message).unwrap());
            })
        }
        _ => {
            let made = Ed25519KeyPair::generate_pkcs8(&chance).unwrap();
            let pair = Ed25519KeyPair::from_pkcs8(made.as_ref()).unwrap();
            Box::new(move || {
                std::hint::black_box(pair.sign(&message));
            })
        }
    };
    let pairs: Vec<(f64, f64)> =
        (0..rounds).map(|_| (rate(&|| drop(std::hint::black_box(ours()))), rate(&*bare))).collect();
    let ratios = spread(pairs.iter().map(|(ours, bare)| ours / bare).collect());
    let (ours, bare) = (
        spread(pairs.iter().map(|(ours, _)| *ours).collect()).0,
        spread(pairs.iter().map(|(_, bare)| *bare).collect()).0,
    );
    println!("{name:<34} {ours:>10.0} {bare:>10.0}   {:.2} ({:.2} - {:.2})", ratios.0, ratios.1, ratios.2);
}

fn rate(work: &dyn Fn()) -> f64 {
    let (start, mut done) = (Instant::now(), 0);
    while start.elapsed() < ROUND {
        work();
        done += 1;
    }
    f64::from(done) / start.elapsed().as_secs_f64()
}

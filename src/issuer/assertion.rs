//! An assertion of who asks, as one JWT: our own (RFC 7523), a platform's that the issuer trusts, or a JWT-SVID. In go a client,
//! a key and an audience that come from the settings; out comes what is shown in one HTTP attempt and never kept (PKJ-12,
//! PKJ-15). `aud` is as the settings have it, whoever made the assertion (PKJ-03, PKJ-04).

use std::{sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use super::{
    IssueError, Reason,
    conditions::Form,
    spiffe,
    terms::{ClientAuth, SvidSource},
    token_file::TokenFile,
};
use crate::{
    clock::Dice,
    jose::{self, Header, SignError, Signer},
    secret::Secret,
};

/// `iat` lies this far back, so that an issuer whose clock is a little behind does not read the future (PKJ-08).
const BACKDATE: SignedDuration = SignedDuration::from_secs(5);

/// The shortest and the longest life of an assertion, in seconds (PKJ-07).
pub(super) const LIFE: std::ops::RangeInclusive<u64> = 10..=60;

/// To whom one is shown, and by whom.
#[derive(Clone, Copy, Debug)]
pub(super) struct Showing<'a> {
    /// What our own would say.
    pub(super) own: Assertion<'a>,
    /// What a JWT-SVID has to be for (DR-05).
    pub(super) svid_audience: &'a str,
    /// How long the Workload API may take.
    pub(super) timeout: Duration,
}

impl Showing<'_> {
    /// One assertion for one attempt (PKJ-12), signed with `key` where it is our own.
    ///
    /// # Errors
    /// [`IssueError`] if it cannot be had.
    pub(super) async fn take(
        self,
        auth: &ClientAuth,
        key: Option<&Arc<dyn Signer>>,
        dice: &dyn Dice,
    ) -> Result<Secret, IssueError> {
        let now = self.own.now;
        let file = async |file: &TokenFile, audience: &str, form| {
            let mut file = file.clone();
            file.conditions.audience = Some(audience.to_owned());
            file.read(form, now).await.map_err(IssueError::from)
        };
        match (auth, key) {
            (ClientAuth::FederatedJwt(from), _) => file(from, self.own.audience, Form::Assertion).await,
            (ClientAuth::SpiffeJwt(SvidSource::File(from)), _) => {
                file(from, self.svid_audience, Form::JwtSvid).await
            }
            (ClientAuth::SpiffeJwt(SvidSource::WorkloadApi { socket, spiffe_id }), _) => {
                let fetching =
                    spiffe::fetch_jwt_svid(socket, spiffe_id, self.svid_audience, now, self.timeout);
                Ok(fetching.await?)
            }
            (ClientAuth::PrivateKeyJwt, Some(key)) => self.own.sign(&**key, dice).map_err(no_signature),
            // A certificate, or a secret to begin with, says who asks without one.
            (ClientAuth::PrivateKeyJwt, None)
            | (
                ClientAuth::TlsClientAuth
                | ClientAuth::SelfSignedTlsClientAuth
                | ClientAuth::Bootstrap(_)
                | ClientAuth::Nobody,
                _,
            ) => Err(no_signature(SignError)),
        }
    }
}

pub(super) fn no_signature(error: SignError) -> IssueError {
    // Not the issuer's trouble: others prove who they are with keys of their own.
    IssueError::Later {
        reason: Reason::KeyUnavailable,
        detail: format!("{error}: see whether the key is still where it was"),
        after: Duration::ZERO,
    }
}

/// What one assertion of our own says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Assertion<'a> {
    /// The `typ` of the header.
    pub(super) typ: &'a str,
    /// `iss` and `sub` (PKJ-02).
    pub(super) client_id: &'a str,
    /// `aud`: one string (PKJ-03).
    pub(super) audience: &'a str,
    /// The issuer's now.
    pub(super) now: Timestamp,
    /// `exp - iat`, in seconds; held to [`LIFE`].
    pub(super) life: u64,
}

#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a str,
    sub: &'a str,
    aud: &'a str,
    jti: &'a str,
    iat: i64,
    exp: i64,
}

impl Assertion<'_> {
    /// Signs it, with a `jti` fresh from `dice` (PKJ-09).
    pub(super) fn sign(self, signer: &dyn Signer, dice: &dyn Dice) -> Result<Secret, SignError> {
        let mut chance = [0; 16];
        dice.fill(&mut chance);
        let jti = jose::b64(&chance);
        let iat = self.now.as_second() - BACKDATE.as_secs();
        // The range ends at 60.
        let life = self.life.clamp(*LIFE.start(), *LIFE.end()).cast_signed();
        let claims = Claims {
            iss: self.client_id,
            sub: self.client_id,
            aud: self.audience,
            jti: &jti,
            iat,
            exp: iat + life,
        };
        jose::sign(signer, Header { typ: self.typ }, &claims)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use serde_json::{Value, json};

    use super::*;
    use crate::{
        clock::{SeededDice, SystemDice},
        jose::{Algorithm, Unverified},
        keys::Key,
    };

    const NOW: i64 = 1_700_000_000;

    fn assertion(life: u64) -> Assertion<'static> {
        Assertion {
            typ: "client-authentication+jwt",
            client_id: "https://client.example/metadata?a=1",
            audience: "https://issuer.example/",
            now: Timestamp::from_second(NOW).unwrap(),
            life,
        }
    }

    #[test]
    fn it_says_exactly_this() {
        // PKJ-02, PKJ-03, PKJ-08, PKJ-10, PKJ-11
        for algorithm in [Algorithm::Es256, Algorithm::EdDsa] {
            let key = Key::generate(algorithm).unwrap();
            let token = assertion(60).sign(&key, &*SeededDice::from_seed(1)).unwrap();
            let token = Unverified::parse(token.expose_str().unwrap()).unwrap();
            token.verify(key.public(), &[algorithm]).unwrap();
            let header =
                json!({"alg": algorithm.as_str(), "kid": key.kid(), "typ": "client-authentication+jwt"});
            assert_eq!(Value::Object(token.header.clone()), header);
            let mut claims: Value = token.claims().unwrap();
            let jti = claims["jti"].take();
            assert_eq!(jti.as_str().unwrap().len(), 22);
            let client = "https://client.example/metadata?a=1";
            assert_eq!(
                claims,
                json!({
                    "iss": client, "sub": client, "aud": "https://issuer.example/", "jti": null,
                    "iat": NOW - 5, "exp": NOW + 55,
                })
            );
        }
    }

    #[test]
    fn its_life_is_short_and_its_end_ahead() {
        // PKJ-07
        let key = Key::generate(Algorithm::EdDsa).unwrap();
        for life in (0..1000).chain([u64::MAX]) {
            let token = assertion(life).sign(&key, &*SeededDice::from_seed(life)).unwrap();
            let claims: Value = Unverified::parse(token.expose_str().unwrap()).unwrap().claims().unwrap();
            let (iat, exp) = (claims["iat"].as_i64().unwrap(), claims["exp"].as_i64().unwrap());
            assert!((10..=60).contains(&(exp - iat)), "{life}");
            assert!(exp > NOW, "{life}");
        }
    }

    #[test]
    fn its_jti_comes_from_the_dice_alone() {
        // PKJ-09: 10,000 here, standing for the million of the row; the dice decide and nothing else does.
        let key = Key::generate(Algorithm::EdDsa).unwrap();
        let jti = |dice: &dyn Dice| {
            let token = assertion(60).sign(&key, dice).unwrap();
            let claims: Value = Unverified::parse(token.expose_str().unwrap()).unwrap().claims().unwrap();
            claims["jti"].as_str().unwrap().to_owned()
        };
        assert_eq!(jti(&*SeededDice::from_seed(9)), jti(&*SeededDice::from_seed(9)));
        let dice = SystemDice::shared();
        let drawn: HashSet<String> = (0..10_000).map(|_| jti(&*dice)).collect();
        assert_eq!(drawn.len(), 10_000);
    }
}

//! Revocations that wait, kept for the next start: sealed, in a file that no key lies beside. In go those that wait; out come,
//! after a restart, those whose credential still lives. A file that does not open is said to be so and left behind: its
//! credentials end by themselves.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use zeroize::Zeroize as _;

use super::revocations::{Cause, Revocation};
use crate::{
    clock::{Boot, Clock, Dice},
    credential::{Binding, Bound, Credential, Form, Payload, Window},
    issuer::{
        Order,
        terms::{CertificateTerms, ClientAuth, LeaseTerms, Terms, Wants},
    },
    keys::{SealedFile, SealingKey},
    secret::Secret,
};

/// What the bytes are sealed for.
const PURPOSE: &str = "pending revocations";

/// Where they are kept.
#[derive(Debug)]
pub struct PendingFile {
    file: SealedFile,
    /// Where an agent kept them that kept its keys in another way.
    before: Option<SealedFile>,
}

/// A revocation that an agent before this one could not finish.
#[derive(Debug)]
pub(super) struct Left {
    /// Who its issuer is.
    pub(super) who: String,
    pub(super) order: Order,
    pub(super) credential: Credential,
    pub(super) cause: Cause,
}

/// As little of a revocation as its issuer has to be told.
#[derive(Deserialize, Serialize)]
struct Kept {
    identity: String,
    credential: String,
    issuer: String,
    /// Who that is: the name may be another's at the next start.
    #[serde(default)]
    who: String,
    client_id: String,
    token: String,
    /// What it is to its issuer.
    #[serde(default)]
    wants: KeptWants,
    /// As records have it.
    #[serde(default)]
    fingerprint: String,
    /// How its issuer learns who asks.
    #[serde(default)]
    client_auth: ClientAuth,
    /// By the wall clock, in seconds.
    until: i64,
    cause: String,
}

/// As much of [`Wants`] as its issuer has to be told.
#[derive(Default, Deserialize, Serialize)]
enum KeptWants {
    #[default]
    Token,
    Certificate {
        at: Option<String>,
        path: Option<PathBuf>,
    },
    Lease(LeaseTerms),
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.token.zeroize();
    }
}

impl PendingFile {
    /// A file at `path`, sealed with `key`.
    pub fn new(path: PathBuf, key: SealingKey, dice: Arc<dyn Dice>) -> Self {
        Self { file: SealedFile::new(path, key, PURPOSE, dice), before: None }
    }

    /// What an agent before this one kept at `path` counts too, and moves here.
    #[must_use]
    pub fn moved_from(self, path: PathBuf) -> Self {
        Self { before: Some(self.file.elsewhere(path)), ..self }
    }

    /// Writes down all that wait, or takes the file away if none does. False if that failed, which is told.
    pub(super) fn keep<'a>(&self, waiting: impl Iterator<Item = &'a Revocation>) -> bool {
        let kept = |revocation: &Revocation| {
            Some(Kept {
                identity: revocation.order.identity.to_string(),
                credential: revocation.order.credential.to_string(),
                issuer: revocation.order.issuer.to_string(),
                who: revocation.who.clone(),
                client_id: revocation.order.client_id.to_string(),
                client_auth: revocation.order.terms.client_auth.clone(),
                wants: match &revocation.order.terms.wants {
                    Wants::Token => KeptWants::Token,
                    Wants::Certificate(terms) => {
                        KeptWants::Certificate { at: terms.at.clone(), path: terms.path.clone() }
                    }
                    Wants::Lease(terms) => KeptWants::Lease(terms.clone()),
                    // There is nobody who could end it.
                    Wants::Sealed(_) => return None,
                },
                fingerprint: revocation.credential.fingerprint.to_string(),
                token: revocation.credential.handle().expose_str().unwrap_or_default().to_owned(),
                until: revocation.credential.window.until_wall.as_second(),
                cause: revocation.cause.as_str().into(),
            })
        };
        let kept: Vec<Kept> = waiting.filter_map(kept).collect();
        let written = self.write(&kept);
        if let Err(error) = &written {
            let path = self.file.path().display();
            tracing::error!(%error, %path, "revocations that wait are not kept for the next start: make room");
        }
        written.is_ok()
    }

    fn write(&self, kept: &[Kept]) -> io::Result<()> {
        match kept {
            [] => self.file.remove()?,
            _ => self.file.write(&kept)?,
        }
        self.before.as_ref().map_or(Ok(()), SealedFile::remove)
    }

    /// What an agent before this one left behind, as far as it still lives.
    pub(super) fn left_behind(&self, clock: &dyn Clock) -> Vec<Left> {
        let (wall, boot) = (clock.wall(), clock.boot());
        let files = [Some(&self.file), self.before.as_ref()].into_iter().flatten();
        files.flat_map(read).filter_map(|kept| revived(&kept, wall, boot)).collect()
    }
}

fn read(file: &SealedFile) -> Vec<Kept> {
    file.read().map(Option::unwrap_or_default).unwrap_or_else(|error| {
        let path = file.path().display();
        tracing::error!(%error, %path, "revocations left behind cannot be read: their credentials end by themselves");
        vec![]
    })
}

fn revived(kept: &Kept, wall: Timestamp, boot: Boot) -> Option<Left> {
    let left = u64::try_from(kept.until - wall.as_second()).ok().filter(|left| *left > 0)?;
    let left = Duration::from_secs(left);
    let token = Secret::new(kept.token.as_str());
    let wants = match &kept.wants {
        KeptWants::Token => Wants::Token,
        KeptWants::Certificate { at, path } => {
            let (at, path) = (at.clone(), path.clone());
            Wants::Certificate(CertificateTerms { at, path, ..CertificateTerms::default() })
        }
        KeptWants::Lease(terms) => Wants::Lease(terms.clone()),
    };
    let fingerprint = kept.fingerprint.parse().unwrap_or_else(|()| token.fingerprint());
    let order = Order {
        identity: kept.identity.as_str().into(),
        credential: kept.credential.as_str().into(),
        issuer: kept.issuer.as_str().into(),
        client_id: kept.client_id.as_str().into(),
        resource: None,
        scope: Arc::from([]),
        require_aud: false,
        max_ttl: left,
        binding: Binding::Bearer,
        max_uses: None,
        instance: None,
        terms: Arc::new(Terms { client_auth: kept.client_auth.clone(), wants, ..Terms::default() }),
    };
    let credential = Credential {
        fingerprint,
        payload: match &kept.wants {
            // What it hangs on is enough to end it.
            KeptWants::Lease(_) => Payload::Values { values: vec![], handle: token },
            KeptWants::Token | KeptWants::Certificate { .. } => Payload::Token(token),
        },
        window: Window::opening(boot, wall, left),
        bound: Bound::Bearer,
        scope: vec![],
        audience: None,
        jti: None,
        form: Form::default(),
    };
    Some(Left { who: kept.who.clone(), order, credential, cause: Cause::named(&kept.cause)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        broker::tests::{credential, order},
        clock::{ManualClock, SeededDice},
        issuer::{IssueError, Reason, conditions::Conditions, token_file::TokenFile},
    };

    fn clock() -> Arc<ManualClock> {
        ManualClock::at(Timestamp::from_second(1_700_000_000).unwrap())
    }

    /// One that waits.
    fn waiting(clock: &ManualClock, terms: Terms) -> Revocation {
        let mut waits = credential(clock.boot(), Duration::from_secs(300));
        waits.window = Window::opening(clock.boot(), clock.wall(), Duration::from_secs(300));
        let error = IssueError::Refused { reason: Reason::IssuerConfig, detail: "none here".into() };
        Revocation {
            order: Order { terms: Arc::new(terms), ..order("corp", "ledger") },
            credential: Arc::new(waits),
            cause: Cause::Operator,
            placed: Err(error),
            who: String::new(),
            since: clock.boot(),
        }
    }

    #[test]
    fn who_asked_is_remembered_by_how_it_was_proved() {
        // OA-43: an identity without a key of its own has to be able to revoke after a restart too.
        let dir = tempfile::tempdir().unwrap();
        let key = SealingKey::of(&Secret::new("seed"));
        let file = PendingFile::new(dir.path().join("revocations"), key, SeededDice::from_seed(1));
        let clock = clock();
        let client_auth =
            ClientAuth::FederatedJwt(TokenFile { path: "/token".into(), conditions: Conditions::default() });
        let terms = Terms { client_auth: client_auth.clone(), ..Terms::default() };
        file.keep([&waiting(&clock, terms)].into_iter());
        let left = file.left_behind(&*clock);
        assert_eq!(left.len(), 1);
        assert_eq!(left[0].order.terms.client_auth, client_auth);
    }

    #[test]
    fn what_was_kept_elsewhere_counts_until_it_is_kept_here() {
        let dir = tempfile::tempdir().unwrap();
        let key = SealingKey::of(&Secret::new("seed"));
        let (there, here) = (dir.path().join("there"), dir.path().join("here"));
        let file = |path: &PathBuf| PendingFile::new(path.clone(), key.clone(), SeededDice::from_seed(1));
        let clock = clock();
        let waits = waiting(&clock, Terms::default());
        assert!(file(&there).keep([&waits].into_iter()));
        let moved = file(&here).moved_from(there.clone());
        assert_eq!(moved.left_behind(&*clock).len(), 1);
        assert!(there.exists(), "it is not taken away before it is kept");
        assert!(moved.keep([&waits].into_iter()));
        assert!(here.exists() && !there.exists());
        assert_eq!(moved.left_behind(&*clock).len(), 1);
        // One of the two that does not open takes nothing from the other.
        std::fs::write(&there, "x").unwrap();
        assert_eq!(moved.left_behind(&*clock).len(), 1);
        assert!(moved.keep([].into_iter()));
        assert!(!here.exists() && !there.exists());
    }

    #[test]
    fn what_it_was_is_remembered_as_far_as_its_issuer_has_to_know() {
        // X5-07, S37: a certificate is revoked where it was made, and a lease by what it hangs on.
        let dir = tempfile::tempdir().unwrap();
        let key = SealingKey::of(&Secret::new("seed"));
        let file = PendingFile::new(dir.path().join("revocations"), key, SeededDice::from_seed(1));
        let clock = clock();
        let lease = Wants::Lease(LeaseTerms {
            at: "database/creds/a".into(),
            fields: vec!["username".into()],
            unleased: false,
        });
        let at = Some("pki/sign/a".to_owned());
        let path = Some("/state/keys/a.pem".into());
        let certificate = Wants::Certificate(CertificateTerms { at, path, ..CertificateTerms::default() });
        let all: Vec<Revocation> = [lease.clone(), certificate.clone()]
            .into_iter()
            .map(|wants| {
                let mut waits = credential(clock.boot(), Duration::from_secs(300));
                waits.fingerprint = crate::secret::Fingerprint::of(b"values");
                if let Wants::Lease(_) = wants {
                    let values = vec![("username".to_owned(), Secret::new("canary"))];
                    waits.payload = Payload::Values { values, handle: Secret::new("token lease 300 -") };
                }
                let of = waiting(&clock, Terms { wants, ..Terms::default() });
                waits.window = of.credential.window;
                Revocation { credential: Arc::new(waits), cause: Cause::Exited, ..of }
            })
            .collect();
        file.keep(all.iter());
        let [leased, signed] = &file.left_behind(&*clock)[..] else { panic!("both") };
        let ((leased, one), (signed, two)) =
            ((&leased.order, &leased.credential), (&signed.order, &signed.credential));
        assert_eq!((&leased.terms.wants, &signed.terms.wants), (&lease, &certificate));
        assert_eq!(one.handle().expose_str(), Some("token lease 300 -"));
        assert_eq!(one.payload.as_str(), "leased_values");
        assert!(
            matches!(&one.payload, Payload::Values { values, .. } if values.is_empty()),
            "values are not kept"
        );
        assert_eq!([one.fingerprint, two.fingerprint], [crate::secret::Fingerprint::of(b"values"); 2]);
    }
}

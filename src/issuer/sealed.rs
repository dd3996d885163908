//! Secrets that cannot be made anew for a program yet (S1, S36). In go an order and what is kept sealed on this host; out comes
//! that, for a while: until it is to be asked for again, and no longer than its exception. It is read anew each time, and nobody
//! is told that it has changed unless it has. Nobody can end one but where it is checked.

use std::sync::Arc;

use tokio::task::spawn_blocking;

use super::{
    IssueError, IssueFacts, Issued, Issuer, Order, Pending, Reason, Signers,
    terms::{SealedBy, SealedTerms, Wants},
};
use crate::{
    clock::{Clock, Dice},
    credential::{Bound, Credential, Form, Payload, Window},
    keys::{NotSafe, Safe, SafeError, Values},
    proof::Target,
    secret::{Fingerprint, Secret},
};

/// The name of this issuer, which no other may have.
pub const NAME: &str = "sealed";

/// What lives shorter is not handed out any more.
const LEAST: std::time::Duration = std::time::Duration::from_secs(10);

/// After so long a file that could not be read is tried again.
const AGAIN: std::time::Duration = std::time::Duration::from_secs(5);

/// What is kept on this host.
#[derive(Debug)]
pub struct Sealed {
    safe: Arc<Safe>,
    /// Drawn at each start: what people chose may be guessed, and a fingerprint must not tell.
    salt: [u8; 32],
    clock: Arc<dyn Clock>,
}

impl Sealed {
    /// What it is taken out of.
    pub fn safe(&self) -> &Arc<Safe> {
        &self.safe
    }

    /// What is in this safe, and what the service manager gives it.
    pub fn new(safe: Arc<Safe>, clock: Arc<dyn Clock>, dice: &dyn Dice) -> Self {
        let mut salt = [0; 32];
        dice.fill(&mut salt);
        Self { safe, salt, clock }
    }

    async fn attempt(&self, order: &Order) -> Result<Credential, IssueError> {
        let Wants::Sealed(terms) = &order.terms.wants else {
            return Err(IssueError::Misconfigured {
                reason: Reason::IssuerConfig,
                detail: "this is not kept sealed here: name an issuer that makes it".into(),
            });
        };
        let (now, wall) = (self.clock.boot(), self.clock.wall());
        let left = terms.until.duration_since(wall).try_into().unwrap_or_default();
        let life = order.max_ttl.min(left);
        if life < LEAST {
            let detail = format!("its exception ends at {}", terms.until);
            return Err(IssueError::Refused { reason: Reason::SecretUnavailable, detail });
        }
        let (safe, wanted) = (Arc::clone(&self.safe), terms.clone());
        let (identity, credential) = (Arc::clone(&order.identity), Arc::clone(&order.credential));
        let salt = self.salt;
        // A file may be on a disk that is slow, and this thread has others to serve.
        let read = spawn_blocking(move || read(&safe, &identity, &credential, &wanted, &salt)).await;
        let (values, fingerprint) = read.unwrap_or_else(|_| Err(unavailable("it was not read".into())))?;
        Ok(Credential {
            payload: Payload::Static(values),
            window: Window::opening(now, wall, life),
            bound: Bound::Bearer,
            scope: Vec::new(),
            audience: None,
            fingerprint,
            jti: None,
            form: Form::default(),
        })
    }
}

/// The values that are wanted, in the order of their names, and what may be told of them.
fn read(
    safe: &Safe,
    identity: &str,
    credential: &str,
    wanted: &SealedTerms,
    salt: &[u8],
) -> Result<(Vec<(String, Secret)>, Fingerprint), IssueError> {
    let (mut all, fingerprint) = match &wanted.keeper {
        SealedBy::Agent => {
            let (values, kept) = safe.open(identity, credential).map_err(of_safe)?;
            (values, kept.fingerprint)
        }
        SealedBy::ServiceManager(name) => {
            let value = safe.given(identity, credential, name).map_err(of_safe)?;
            let salted = Secret::new([salt, value.expose()].concat());
            let field = wanted.fields.first().cloned().unwrap_or_default();
            (Values::from([(field, value)]), salted.fingerprint())
        }
    };
    let mut values = Vec::with_capacity(wanted.fields.len());
    let mut names: Vec<&String> = wanted.fields.iter().collect();
    names.sort();
    for name in names {
        let Some((name, value)) = all.remove_entry(name) else {
            return Err(unavailable(format!(
                "{identity}.{credential}: no {name} is sealed for it: keybearer seal {identity} {credential} --field {name}"
            )));
        };
        values.push((name, value));
    }
    Ok((values, fingerprint))
}

fn unavailable(detail: String) -> IssueError {
    IssueError::Misconfigured { reason: Reason::SecretUnavailable, detail }
}

fn of_safe(error: SafeError) -> IssueError {
    let detail = error.to_string();
    match error.why {
        // A disk in trouble may be out of it. One credential's is no other's: what lies here fails file by file.
        NotSafe::File(_) => IssueError::Later { reason: Reason::SecretUnavailable, detail, after: AGAIN },
        _ => unavailable(detail),
    }
}

impl Issuer for Sealed {
    fn issue<'a>(
        &'a self,
        order: &'a Order,
        _: &'a Signers,
        _: Option<&'a Credential>,
    ) -> Pending<'a, Issued> {
        Box::pin(async move {
            let began = self.clock.boot();
            let result = self.attempt(order).await;
            let latency = self.clock.boot().since(began);
            Issued { result, facts: IssueFacts { latency, ..IssueFacts::default() } }
        })
    }

    fn revoke<'a>(
        &'a self,
        _: &'a Order,
        _: &'a Signers,
        _: &'a Credential,
    ) -> Pending<'a, Result<(), IssueError>> {
        Box::pin(async { Err(not_ours_to_end()) })
    }

    fn endpoints(&self) -> Arc<Vec<Target>> {
        Arc::default()
    }
}

/// Why giving one back ends nothing.
pub fn not_ours_to_end() -> IssueError {
    let detail = "nobody can end it but where it is checked: change it there, then keybearer seal".into();
    IssueError::Refused { reason: Reason::IssuerConfig, detail }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _, time::Duration};

    use jiff::{SignedDuration, Timestamp};

    use super::*;
    use crate::{
        clock::{ManualClock, SystemDice},
        credential::Binding,
        issuer::terms::{ClientAuth, Terms},
        keys::{SealSettings, Vault},
    };

    struct House {
        dir: tempfile::TempDir,
        clock: Arc<ManualClock>,
        safe: Arc<Safe>,
        issuer: Sealed,
    }

    fn house() -> House {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let clock = ManualClock::at("2026-01-01T00:00:00Z".parse().unwrap());
        let dice = SystemDice::shared();
        let house = |safe: Arc<Safe>| Sealed::new(safe, clock.clone(), &*SystemDice::shared());
        let key = dir.path().join("keybearer.sealing-key");
        fs::write(&key, "a sealing key of more than 32 bytes").unwrap();
        fs::set_permissions(&key, fs::Permissions::from_mode(0o400)).unwrap();
        let settings = SealSettings { credentials: Some(dir.path().into()), ..SealSettings::default() };
        let vault = Vault::open(&settings, Arc::clone(&dice)).unwrap();
        let safe = Safe::new(vault, dir.path().join("sealed"), None, Some(dir.path().into()), dice);
        let safe = Arc::new(safe);
        House { issuer: house(Arc::clone(&safe)), dir, clock, safe }
    }

    fn order(keeper: SealedBy, fields: &[&str], until: &str) -> Order {
        let fields = fields.iter().map(|field| (*field).to_owned()).collect();
        let until: Timestamp = until.parse().unwrap();
        let wants = Wants::Sealed(SealedTerms { fields, keeper, until });
        Order {
            identity: "shop".into(),
            credential: "smtp".into(),
            issuer: NAME.into(),
            client_id: "shop".into(),
            resource: None,
            scope: Arc::from([]),
            require_aud: false,
            max_ttl: Duration::from_secs(900),
            binding: Binding::Bearer,
            terms: Arc::new(Terms { wants, client_auth: ClientAuth::Nobody, ..Terms::default() }),
            max_uses: None,
            instance: None,
        }
    }

    const LATER: &str = "2026-03-01T00:00:00Z";

    impl House {
        fn put(&self, values: &[(&str, &str)]) -> Fingerprint {
            let values =
                values.iter().map(|(name, value)| ((*name).to_owned(), Secret::new(*value))).collect();
            self.safe.put("shop", "smtp", &values, self.clock.wall()).unwrap().fingerprint
        }

        async fn ask(&self, order: &Order) -> Result<Credential, IssueError> {
            let signers = Signers { client: None, before: None, dpop: None, certificates: vec![] };
            self.issuer.issue(order, &signers, None).await.result
        }
    }

    #[tokio::test]
    async fn what_is_sealed_is_told_as_a_static_secret_until_its_exception_ends_at_most() {
        // S1, S36
        let house = house();
        let ask = |until| order(SealedBy::Agent, &["username", "password"], until);
        let nothing = house.ask(&ask(LATER)).await.unwrap_err();
        assert!(matches!(&nothing, IssueError::Misconfigured { reason: Reason::SecretUnavailable, .. }));
        assert!(nothing.to_string().contains("keybearer seal shop smtp"), "{nothing}");
        let put = house.put(&[("password", "canary"), ("username", "u"), ("more", "m")]);
        let one = house.ask(&ask(LATER)).await.unwrap();
        assert_eq!(
            (one.payload.as_str(), one.binding(), one.fingerprint),
            ("static_values", Binding::Bearer, put)
        );
        let Payload::Static(values) = &one.payload else { panic!() };
        let names: Vec<_> = values.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(
            names,
            ["password", "username"],
            "those that the settings name, in the order of their names"
        );
        assert_eq!((one.window.life().as_secs(), one.handle().is_empty()), (900, true));
        let again = house.ask(&ask(LATER)).await.unwrap();
        assert!(one.goes_on_as(&again), "nobody is told of what has not changed");
        house.put(&[("password", "another"), ("username", "u")]);
        assert!(!one.goes_on_as(&house.ask(&ask(LATER)).await.unwrap()));
        let short = house.ask(&ask("2026-01-01T00:01:00Z")).await.unwrap();
        assert_eq!(short.window.until_wall.to_string(), "2026-01-01T00:01:00Z");
        house.clock.step_wall(SignedDuration::from_secs(55));
        for until in ["2026-01-01T00:01:00Z", "2025-12-31T00:00:00Z"] {
            let over = house.ask(&ask(until)).await.unwrap_err();
            assert!(matches!(over, IssueError::Refused { .. }), "{over}");
        }
        let fewer = house.ask(&order(SealedBy::Agent, &["password", "realm"], LATER)).await.unwrap_err();
        assert!(fewer.to_string().contains("keybearer seal shop smtp --field realm"), "{fewer}");
        let (order, signers) =
            (ask(LATER), Signers { client: None, before: None, dpop: None, certificates: vec![] });
        let no = house.issuer.revoke(&order, &signers, &one);
        assert!(no.await.unwrap_err().to_string().contains("where it is checked"));
    }

    #[tokio::test]
    async fn what_the_service_manager_keeps_is_read_anew_and_trouble_with_one_is_no_others() {
        // S1
        let house = house();
        let given = order(SealedBy::ServiceManager("smtp-password".into()), &["password"], LATER);
        let nothing = house.ask(&given).await.unwrap_err().to_string();
        assert!(nothing.contains("LoadCredentialEncrypted=smtp-password"), "{nothing}");
        let path = house.dir.path().join("smtp-password");
        let give = |text: &str, mode| {
            let _ = fs::remove_file(&path);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        };
        give("one\n", 0o400);
        let one = house.ask(&given).await.unwrap();
        assert_eq!(one.static_value("password").unwrap().expose_str(), Some("one"));
        assert_ne!(one.fingerprint, Fingerprint::of(b"one"), "nobody can try what it is");
        assert!(one.goes_on_as(&house.ask(&given).await.unwrap()));
        give("two", 0o400);
        assert!(!one.goes_on_as(&house.ask(&given).await.unwrap()));
        give("two", 0o444);
        let refused = house.ask(&given).await.unwrap_err();
        // The shelf leaves an issuer alone that is in trouble: here that would be everybody's.
        assert!(matches!(refused, IssueError::Later { .. }), "{refused}");
        assert!(refused.to_string().contains("shop.smtp: KEY_PERM"), "{refused}");
    }
}

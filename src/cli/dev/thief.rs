//! The thief: somebody elsewhere, with keys and clocks of their own, and with what was stolen. In go tokens, proofs and copied
//! files; out comes what the servers say to them. It has no other way in than anybody has.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use super::{
    call::{Heard, call},
    stage::ORDERS,
};
use crate::{
    cli::Exit,
    clock::{Clock, Dice},
    credential::{Binding, Bound, Credential},
    issuer::{
        IssueError, Issuer as _, Order, Signers,
        oauth::{AssertionTyp, Audience, OAuth, OAuthSettings, WellKnown},
    },
    jose::{Algorithm, Signer},
    keys::{Custody, Key, KeySettings, Keyring, Purpose},
    proof::{Claim, Nonce, Target},
    secret::Secret,
};

/// The client whose key was copied.
const VICTIM: &str = "demo-shop";

pub(super) struct Thief {
    key: Arc<dyn Signer>,
    clock: Arc<dyn Clock>,
    dice: Arc<dyn Dice>,
}

impl Thief {
    pub(super) fn new(clock: Arc<dyn Clock>, dice: Arc<dyn Dice>) -> Result<Self, Exit> {
        let key = Key::generate(Algorithm::Es256).map_err(|error| failed(&error))?;
        Ok(Self { key: Arc::new(key), clock, dice })
    }

    /// Sends a token with proofs by the thief's own key, with the nonce that the API wants.
    pub(super) async fn spend(&self, token: &str, api: &str) -> Result<Heard, Exit> {
        let token = Secret::new(token);
        self.spend_by(&*self.key, &token, api).await
    }

    /// Spends a token that was got with a copied key, by the key that it is bound to.
    pub(super) async fn spend_own(&self, got: &Credential, api: &str) -> Result<Heard, Exit> {
        match &got.bound {
            Bound::Dpop(key) => self.spend_by(&**key, &got.token, api).await,
            Bound::Bearer => Err(failed(&"a token that was ordered bound is not")),
        }
    }

    async fn spend_by(&self, key: &dyn Signer, token: &Secret, api: &str) -> Result<Heard, Exit> {
        let authorization = format!("DPoP {}", token.expose_str().unwrap_or_default());
        let mut nonce = None;
        loop {
            let proof = self.prove(key, token, api, nonce.as_ref())?;
            let proof = proof.expose_str().unwrap_or_default();
            let heard = call("GET", api, Some(&authorization), Some(proof)).await?;
            match heard.nonce.as_deref().and_then(Nonce::parse) {
                Some(wanted) if nonce.is_none() && heard.status == 401 => nonce = Some(wanted),
                _ => return Ok(heard),
            }
        }
    }

    fn prove(
        &self,
        key: &dyn Signer,
        token: &Secret,
        api: &str,
        nonce: Option<&Nonce>,
    ) -> Result<Secret, Exit> {
        let target = Target::parse(api).map_err(|error| failed(&error))?;
        let claim =
            Claim { method: "GET", target: &target, token: Some(token), nonce, now: self.clock.wall() };
        Ok(claim.sign(key, &*self.dice).map_err(|error| failed(&error))?.text)
    }

    /// Asks the issuer for a token as the client whose key file was copied to `key`, bound to a key of the thief's own.
    pub(super) async fn pass_for(
        &self,
        key: &Path,
        issuer: &str,
    ) -> Result<Result<Credential, IssueError>, Exit> {
        let name: Arc<str> = "dev".into();
        let victim: Arc<str> = VICTIM.into();
        let wanted = KeySettings {
            custody: Custody::File { path: key.to_owned() },
            algorithm: Algorithm::Es256,
            dpop: BTreeSet::from([Arc::clone(&name)]),
        };
        let ring = Keyring::open(&BTreeMap::from([(Arc::clone(&victim), wanted)]), &Keyring::default());
        let ring = ring.map_err(|errors| failed(&format!("{errors:?}")))?;
        let client = ring.signer(&victim, Purpose::ClientAuth).ok_or_else(|| failed(&"no key was copied"))?;
        let signers =
            Signers { client, before: None, dpop: ring.signer(&victim, Purpose::Dpop(Arc::clone(&name))) };
        let settings = OAuthSettings {
            name: Arc::clone(&name),
            issuer: issuer.into(),
            well_known: WellKnown::default(),
            audience: Audience::default(),
            allowed_endpoint_hosts: vec![],
            ca_file: None,
            dev: true,
            assertion_life: Duration::from_secs(60),
            assertion_typ: AssertionTyp::default(),
            send_client_id: false,
            timeout: Duration::from_secs(10),
        };
        let order = Order {
            identity: Arc::clone(&victim),
            credential: "orders".into(),
            issuer: name,
            client_id: victim,
            resource: Some(ORDERS.into()),
            scope: Arc::from([Arc::from("orders:read")]),
            require_aud: true,
            max_ttl: Duration::from_secs(3600),
            binding: Binding::Dpop,
            max_uses: None,
            instance: None,
        };
        let issuer = OAuth::new(settings, Arc::clone(&self.clock), Arc::clone(&self.dice))
            .map_err(|error| failed(&error))?;
        Ok(issuer.issue(&order, &signers).await.result)
    }
}

/// Copies the agent's keys, as whoever reads its files can, and names the copies.
pub(super) fn copy_keys(from: &Path, to: &Path) -> Result<Vec<PathBuf>, Exit> {
    fs::DirBuilder::new().mode(0o700).create(to)?;
    let mut copies = vec![];
    for file in fs::read_dir(from)? {
        let file = file?;
        let copy = to.join(file.file_name());
        fs::copy(file.path(), &copy)?;
        copies.push(copy);
    }
    Ok(copies)
}

fn failed(error: &dyn std::fmt::Display) -> Exit {
    Exit::new(Exit::SOFTWARE, format!("the thief cannot go to work: {error}"))
}

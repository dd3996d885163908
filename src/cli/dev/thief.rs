//! The thief: somebody elsewhere, with a key and clocks of their own, and with what was stolen. In go tokens and copied files; out
//! comes what the servers say to them. It has no other way in than anybody has.

use std::{fs, os::unix::fs::DirBuilderExt as _, sync::Arc};

use tokio::{sync::watch, task::JoinHandle};

use super::{
    call::{Heard, call},
    served,
    stage::{Running, Stage},
    stop_told,
};
use crate::{
    cli::{Exit, agent::unbuilt, environment},
    clock::{Clock, Dice},
    daemon::{Daemon, Origin},
    jose::Algorithm,
    keys::Key,
    proof::{Claim, Nonce, Target},
    secret::Secret,
};

pub(super) struct Thief {
    key: Key,
    clock: Arc<dyn Clock>,
    dice: Arc<dyn Dice>,
}

impl Thief {
    pub(super) fn new(clock: Arc<dyn Clock>, dice: Arc<dyn Dice>) -> Result<Self, Exit> {
        let key = Key::generate(Algorithm::Es256).map_err(|error| failed(&error))?;
        Ok(Self { key, clock, dice })
    }

    /// Sends a token with proofs by the thief's own key, with the nonce that the API wants.
    pub(super) async fn spend(&self, token: &str, api: &str) -> Result<Heard, Exit> {
        let (authorization, token) = (format!("DPoP {token}"), Secret::new(token));
        let mut nonce = None;
        loop {
            let proof = self.prove(&token, api, nonce.as_ref())?;
            let proof = proof.expose_str().unwrap_or_default();
            let heard = call("GET", api, Some(&authorization), Some(proof)).await?;
            match heard.nonce.as_deref().and_then(Nonce::parse) {
                Some(wanted) if nonce.is_none() && heard.status == 401 => nonce = Some(wanted),
                _ => return Ok(heard),
            }
        }
    }

    fn prove(&self, token: &Secret, api: &str, nonce: Option<&Nonce>) -> Result<Secret, Exit> {
        let target = Target::parse(api).map_err(|error| failed(&error))?;
        let claim =
            Claim { method: "GET", target: &target, token: Some(token), nonce, now: self.clock.wall() };
        Ok(claim.sign(&self.key, &*self.dice).map_err(|error| failed(&error))?.text)
    }

    /// Copies the agent's keys, as whoever reads its files can, and runs an agent of its own with them, for whom the thief's
    /// program is the demo shop.
    pub(super) fn run_on_copy(&self, of: &Stage, issuer: &str, api: &str) -> Result<Twin, Exit> {
        let stage = Stage { directory: of.elsewhere.join("agent"), ..of.clone() };
        let keys = stage.file("state/keys");
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&keys)?;
        let mut files = vec![];
        for file in fs::read_dir(of.file("state/keys"))? {
            let file = file?;
            fs::copy(file.path(), keys.join(file.file_name()))?;
            files.push(file.file_name().to_string_lossy().into_owned());
        }
        // Each token once, so that every asking is the issuer's to answer.
        let settings = stage.write_settings(issuer, api, "max_uses = 1\n", &*self.clock)?;
        let origin = Origin { path: stage.file("agent.toml"), environment: environment() };
        let daemon = Daemon::build(settings, origin, Arc::clone(&self.clock), Arc::clone(&self.dice));
        let (stop, stopped) = watch::channel(false);
        let agent = served(daemon.map_err(unbuilt)?.run(stop_told(&stopped)));
        Ok(Twin { workload: stage.start(&stage.program)?, files, stop, agent })
    }
}

/// The agent on the copy, at work.
pub(super) struct Twin {
    /// What asks it.
    pub(super) workload: Running,
    /// What was copied.
    pub(super) files: Vec<String>,
    stop: watch::Sender<bool>,
    agent: JoinHandle<Result<(), String>>,
}

impl Twin {
    pub(super) async fn end(self) -> Result<(), Exit> {
        drop(self.workload);
        let _ = self.stop.send(true);
        let ended = self.agent.await.map_err(|error| error.to_string()).and_then(|ended| ended);
        ended.map_err(|error| failed(&error))
    }
}

fn failed(error: &dyn std::fmt::Display) -> Exit {
    Exit::new(Exit::SOFTWARE, format!("the thief cannot go to work: {error}"))
}

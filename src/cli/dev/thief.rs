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
    cli::Exit,
    clock::{Clock, Dice},
    daemon::{BuildError, Daemon, Origin},
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

    /// Copies the agent's keys, as whoever reads its files or a backup of them can, into a place of the thief's own. What is not
    /// of use to him, he leaves out: whose machine it is, and the key of revocations.
    pub(super) fn copy(of: &Stage, into: &str) -> Result<Copied, Exit> {
        let stage = Stage { directory: of.elsewhere.join(into), ..of.clone() };
        let keys = stage.file("state/keys");
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&keys)?;
        let mut files = vec![];
        for file in fs::read_dir(of.file("state/keys"))? {
            let file = file?;
            let name = file.file_name().to_string_lossy().into_owned();
            if name.contains("client-auth") {
                fs::copy(file.path(), keys.join(&name))?;
            }
            files.push(name);
        }
        Ok(Copied { stage, files })
    }

    /// Runs an agent of his own on a copy, for whom his program is the demo shop; or what it says instead of starting.
    pub(super) fn run_on(
        &self,
        copied: Copied,
        issuer: &str,
        api: &str,
    ) -> Result<Result<Twin, BuildError>, Exit> {
        let stage = copied.stage;
        // Each token once, so that every asking is the issuer's to answer.
        let settings = stage.write_settings(issuer, api, "max_uses = 1\n", &*self.clock)?;
        let origin = Origin { path: stage.file("agent.toml"), environment: stage.environment() };
        let daemon = match Daemon::build(settings, origin, Arc::clone(&self.clock), Arc::clone(&self.dice)) {
            Ok(daemon) => daemon,
            Err(error) => return Ok(Err(error)),
        };
        let (stop, stopped) = watch::channel(false);
        let agent = served(daemon.run(stop_told(&stopped)));
        Ok(Ok(Twin { workload: stage.start(&stage.program)?, stop, agent }))
    }
}

/// What was copied, and where it lies.
pub(super) struct Copied {
    stage: Stage,
    /// Every file that lay there.
    pub(super) files: Vec<String>,
}

impl Copied {
    /// With a sealing key beside it.
    pub(super) fn and_sealing_key(self, key: &[u8]) -> Result<Self, Exit> {
        self.stage.give_sealing_key(key)?;
        Ok(self)
    }

    /// With the keys taken away, so that an agent makes its own.
    pub(super) fn but_for_the_keys(self) -> Result<Self, Exit> {
        fs::remove_dir_all(self.stage.file("state/keys"))?;
        Ok(self)
    }
}

/// The agent on the copy, at work.
pub(super) struct Twin {
    /// What asks it.
    pub(super) workload: Running,
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

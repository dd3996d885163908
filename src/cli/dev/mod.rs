//! `keybearer dev`: the whole journey on this machine. Starts the development issuer, a demo API and an agent in a
//! directory of its own, has a workload fetch a credential and use it, has a thief and a stranger try the same, tells what
//! happened from the ledger, and stays up to be played with. Nothing of it is for production.

mod call;
mod drill;
mod stage;
mod story;
mod thief;
mod workload;

use std::{future::Future, sync::Arc, time::Duration};

use clap::Args;
use tokio::{sync::watch, task::JoinHandle};

pub(super) use self::workload::Workload;
use self::{
    drill::Drill,
    stage::{ORDERS, Stage},
};
use super::{
    Exit,
    agent::{begin_log, told_to_stop, unbuilt},
    on_runtime,
};
use crate::{
    clock::{Clock, Dice, SystemClock, SystemDice},
    config::{Log, LogFormat},
    daemon::{Daemon, Origin},
    dev::{Client, DemoApi, DemoApiSettings, DevError, DevIssuer, DevIssuerSettings, Handle},
};

#[derive(Args, Debug)]
pub(super) struct Dev {
    /// Tell the story and end, with an exit code that says whether all of it came true.
    #[arg(long)]
    once: bool,
    /// Instead of the story: steal whatever there is to steal, try to use it, tell how long it was of use, and end.
    #[arg(long, conflicts_with = "once")]
    drill: bool,
    /// The issuer's port; 0 for any that is free.
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// How many seconds a token lives.
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u64).range(10..=3600))]
    token_life: u64,
}

impl Dev {
    pub(super) fn run(self) -> Result<(), Exit> {
        let clock = SystemClock::shared();
        let dice = SystemDice::shared();
        let stage = Stage::new(&*dice)?;
        let told = on_runtime(self.play(&stage, &clock, &dice));
        // Kept if something went wrong: that is when somebody wants to look.
        if told.is_ok() {
            stage.strike()?;
        } else {
            eprintln!("keybearer: what happened is kept in {}", stage.directory.display());
        }
        told
    }

    async fn play(&self, stage: &Stage, clock: &Arc<dyn Clock>, dice: &Arc<dyn Dice>) -> Result<(), Exit> {
        begin_log(&Log { filter: "warn".into(), format: LogFormat::Text });
        let (stop, stopped) = watch::channel(false);
        let issuer_settings = DevIssuerSettings {
            port: self.port,
            token_life: Duration::from_secs(self.token_life),
            ..DevIssuerSettings::default()
        };
        let issuer =
            DevIssuer::bind(issuer_settings, Arc::clone(clock), Arc::clone(dice)).map_err(undeveloped)?;
        let handle = issuer.handle();
        let first = api(&handle, clock)?;
        let (api_origin, api_url) = (first.url(), format!("{}/orders", first.url()));
        // Another API that takes the same tokens: what is proved to the one is not proved to the other.
        let other = api(&handle, clock)?;
        let other_url = format!("{}/orders", other.url());

        let more = if self.drill { drill::settings(&**clock)? } else { story::settings(&handle) };
        let settings = stage.write_settings(handle.url(), &api_origin, &more, &**clock)?;
        let origin = Origin { path: stage.file("agent.toml"), environment: stage.environment() };
        let daemon = Daemon::build(settings, origin, Arc::clone(clock), Arc::clone(dice)).map_err(unbuilt)?;
        let shops = daemon.keys().to_register().filter(|(identity, _)| *identity == "demo-shop");
        let client = Client {
            client_id: "demo-shop".into(),
            keys: shops.map(|(_, key)| (key.public().clone(), key.algorithm())).collect(),
            scope: vec!["orders:read".into(), "orders:write".into()],
            resources: vec![ORDERS.into()],
            certificate_names: vec![story::NAME.into()],
            ..Client::default()
        };
        handle.register(client.clone()).map_err(|error| Exit::new(Exit::SOFTWARE, error.to_string()))?;

        let journey = Arc::clone(daemon.journey());
        let running = [
            served(issuer.run(stop_told(&stopped))),
            served(first.run(stop_told(&stopped))),
            served(other.run(stop_told(&stopped))),
            served(daemon.run(stop_told(&stopped))),
        ];
        let told = if self.drill {
            Drill::new(stage, &journey, handle, client, clock, dice).run(&api_url, &other_url).await
        } else {
            let told = stage.tell(&journey, handle.url(), &api_url).await;
            if told.is_ok() && !self.once {
                stage.invite(handle.url(), &api_url)?;
                told_to_stop().await;
            }
            told
        };
        drop(journey);
        let _ = stop.send(true);
        for task in running {
            let ended = task.await.map_err(|error| error.to_string()).and_then(|ended| ended);
            ended.map_err(|error| Exit::new(Exit::SOFTWARE, error))?;
        }
        told
    }
}

fn api(issuer: &Handle, clock: &Arc<dyn Clock>) -> Result<DemoApi, Exit> {
    let settings = DemoApiSettings {
        audience: ORDERS.into(),
        scope: "orders:read".into(),
        ..DemoApiSettings::default()
    };
    DemoApi::bind(settings, issuer.clone(), Arc::clone(clock)).map_err(undeveloped)
}

fn undeveloped(error: DevError) -> Exit {
    let code = if matches!(error, DevError::Environment { .. }) { Exit::CONFIG } else { Exit::UNAVAILABLE };
    Exit::new(code, error.to_string())
}

/// Ends when the story does.
fn stop_told(stopped: &watch::Receiver<bool>) -> impl Future<Output = ()> + Send + use<> {
    let mut stopped = stopped.clone();
    async move {
        // The sender lives as long as the story.
        let _ = stopped.wait_for(|stop| *stop).await;
    }
}

fn served<E: std::fmt::Display>(
    serving: impl Future<Output = Result<(), E>> + Send + 'static,
) -> JoinHandle<Result<(), String>> {
    tokio::spawn(async move { serving.await.map_err(|error| error.to_string()) })
}

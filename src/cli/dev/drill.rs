//! The theft drill (S9): whatever there is to steal is stolen, and tried. In go the stage and its servers; out comes a table of
//! what was stolen, what was tried with it, what came of it, and how long it was of use. Every line is from an attempt that
//! was made there and then; one that ends otherwise than this file expects ends the drill.

use std::{fs, path::Path, sync::Arc};

use serde_json::{Value, json};

use super::{
    call::{Heard, call},
    stage::{ORDERS, Running, Stage, expect},
    thief::Thief,
};
use crate::{
    audit::{EventType, read},
    cli::{Exit, agent::unbuilt, paint},
    clock::{Boot, Clock, Dice},
    daemon::BuildError,
    dev::{Client, Handle},
    jose::{Algorithm, Signer as _},
    journey::Journey,
    keys::{FileError, Key},
};

/// A user that owns nothing here.
const NOBODY: u32 = 65533;

/// No use at all.
const NONE: &str = "0 s";

/// What the drill has in agent.toml beside the story's: a bearer token to compare with, and a key that is in no file.
pub(super) fn settings(clock: &dyn Clock) -> Result<String, Exit> {
    let until = jiff::Timestamp::from_second(clock.wall().as_second() + 60 * 86_400)
        .map_err(|error| Exit::new(Exit::SOFTWARE, error.to_string()))?;
    let nobodys_program = "0".repeat(64);
    Ok(format!(
        r#"
[identities.demo-shop.credentials.legacy]
issuer = "dev"
client_id = "demo-shop"
resource = "{ORDERS}"
scope = ["orders:read"]
binding = "bearer"
exception = {{ owner = "you@localhost", reason = "to compare with", until = "{until:.0}" }}

[identities.demo-memory]
owner = "you@localhost"
assurance = "interim"
match = {{ uid = {uid}, sha256 = "{nobodys_program}" }}
key = {{ custody = "memory" }}

[identities.demo-memory.credentials.orders]
issuer = "dev"
client_id = "demo-memory"
resource = "{ORDERS}"
scope = ["orders:read"]
"#,
        uid = rustix::process::geteuid().as_raw(),
    ))
}

pub(super) struct Drill<'a> {
    stage: &'a Stage,
    journey: &'a Journey,
    issuer: Handle,
    client: Client,
    clock: &'a Arc<dyn Clock>,
    dice: &'a Arc<dyn Dice>,
    rows: Vec<Vec<String>>,
}

/// What the workload holds, and lost.
struct Loot {
    token: String,
    proof: String,
    fingerprint: String,
}

impl<'a> Drill<'a> {
    pub(super) fn new(
        stage: &'a Stage,
        journey: &'a Journey,
        issuer: Handle,
        client: Client,
        clock: &'a Arc<dyn Clock>,
        dice: &'a Arc<dyn Dice>,
    ) -> Self {
        let heading = ["STOLEN", "TRIED", "CAME OF IT", "OF USE FOR"].map(str::to_owned).to_vec();
        Self { stage, journey, issuer, client, clock, dice, rows: vec![heading] }
    }

    pub(super) async fn run(mut self, api: &str, other: &str) -> Result<(), Exit> {
        paint::line(&paint::dim(
            "Development only. A workload gets a bound token and uses it; then a thief comes.",
        ))?;
        let thief = Thief::new(Arc::clone(self.clock), Arc::clone(self.dice))?;
        let stranger = self.stage.stranger()?;
        let mut shop = self.stage.start(&self.stage.program)?;
        let errand = shop.ask(&format!("errand {api}")).await?;
        expect(errand["api_statuses"] == json!([401, 200]), "the workload should have been served", &errand)?;
        let loot = Loot {
            token: text(&errand["token"]),
            proof: text(&errand["proof"]),
            fingerprint: text(&errand["fingerprint"]),
        };
        self.token(&thief, &loot, api).await?;
        self.proofs(&mut shop, &loot, api, other).await?;
        self.descriptor(&mut shop, &stranger).await?;
        self.environment(&shop, &loot)?;
        self.handle(&stranger, &loot, api).await?;
        self.bearer(&mut shop, api).await?;
        self.sealed(&thief, api).await?;
        self.keys(&thief, api).await?;
        paint::line(paint::table(&self.rows).trim_end())?;
        self.close()
    }

    /// The token, out of a log or a dump.
    async fn token(&mut self, thief: &Thief, loot: &Loot, api: &str) -> Result<(), Exit> {
        let (dpop, bearer) = (format!("DPoP {}", loot.token), format!("Bearer {}", loot.token));
        let heard = call("GET", api, Some(&dpop), None).await?;
        self.refused("bound token", "without a proof", &heard)?;
        let heard = call("GET", api, Some(&bearer), None).await?;
        self.refused("bound token", "as a bearer token", &heard)?;
        let heard = thief.spend(&loot.token, api).await?;
        self.refused("bound token", "with a proof by the thief's key", &heard)
    }

    /// Token and proofs, on the way: by whoever takes TLS apart in front of the API.
    async fn proofs(&mut self, shop: &mut Running, loot: &Loot, api: &str, other: &str) -> Result<(), Exit> {
        let dpop = format!("DPoP {}", loot.token);
        let heard = call("GET", api, Some(&dpop), Some(&loot.proof)).await?;
        self.refused("token and proof", "the same request again", &heard)?;
        let caught = async |shop: &mut Running, method: &str| {
            let order = format!("prove orders {} {method} {api}", loot.fingerprint);
            let proof = shop.ask(&order).await?;
            expect(proof["proof"].is_string(), "the workload should have got a proof", &proof)?;
            Ok::<_, Exit>(text(&proof["proof"]))
        };
        let proof = caught(shop, "POST").await?;
        let heard = call("GET", api, Some(&dpop), Some(&proof)).await?;
        self.refused("token and unused proof", "for another method", &heard)?;
        let proof = caught(shop, "GET").await?;
        let heard = call("GET", other, Some(&dpop), Some(&proof)).await?;
        self.refused("token and unused proof", "at another API", &heard)?;
        // What is held back on its way is not used up yet: the one request that it is for can be made in the workload's place.
        let heard = call("GET", api, Some(&dpop), Some(&proof)).await?;
        expect(heard.status == 200, "a proof that was not used should be good", &json!(heard.body))?;
        self.row("token and unused proof", "the request it is for", heard.in_short(), "1 request");
        let heard = call("GET", api, Some(&dpop), Some(&proof)).await?;
        self.refused("token and unused proof", "the same a second time", &heard)
    }

    /// A connection that was attested, in other hands.
    async fn descriptor(&mut self, shop: &mut Running, stranger: &Path) -> Result<(), Exit> {
        let stranger = stranger.display();
        let told = shop.ask(&format!("lend {stranger}")).await?;
        self.hung_up("passed to another program", &told)?;
        let tried = "passed to another user";
        if !rustix::process::geteuid().is_root() {
            self.row(
                "open connection to the agent",
                tried,
                "not tried: only root can become another user",
                "-",
            );
            return Ok(());
        }
        let told = shop.ask(&format!("lend {stranger} {NOBODY}")).await?;
        if let Some(why) = told["untried"].as_str() {
            self.row("open connection to the agent", tried, format!("not tried: {why}"), "-");
            return Ok(());
        }
        self.hung_up(tried, &told)
    }

    /// What everybody may read of the workload who is its user.
    fn environment(&mut self, shop: &Running, loot: &Loot) -> Result<(), Exit> {
        let mut seen = vec![];
        for file in ["environ", "cmdline"] {
            seen.extend(fs::read(format!("/proc/{}/{file}", shop.pid()))?);
        }
        let seen = String::from_utf8_lossy(&seen);
        let key = fs::read_to_string(self.stage.file("state/keys/demo-shop.client-auth.pem"))?;
        let secrets = [&loot.token, &loot.proof].into_iter().map(String::as_str);
        let found = secrets.chain(key.lines()).any(|secret| seen.contains(secret));
        expect(
            !found && seen.contains("dev-workload"),
            "nothing should stand in the environment",
            &json!(found),
        )?;
        let read = format!("{} bytes read, neither token nor proof nor key in them", seen.len());
        self.row("environment, command line", "look for credentials", read, NONE);
        Ok(())
    }

    /// What a workload passes to `Prove`: it says which credential, and nothing else.
    async fn handle(&mut self, stranger: &Path, loot: &Loot, api: &str) -> Result<(), Exit> {
        let mut pasted = self.stage.start(stranger)?;
        let told = pasted.ask(&format!("prove orders {} GET {api}", loot.fingerprint)).await?;
        expect(told["error"] == "NOT_ENTITLED", "a pasted handle should be of no use", &told)?;
        self.row("handle of the token", "pasted into another program", text(&told["error"]), NONE);
        Ok(())
    }

    /// What all of this is to be better than.
    async fn bearer(&mut self, shop: &mut Running, api: &str) -> Result<(), Exit> {
        let legacy = shop.ask("get legacy").await?;
        let got = self.clock.boot();
        let bearer = format!("Bearer {}", text(&legacy["token"]));
        let heard = call("GET", api, Some(&bearer), None).await?;
        expect(heard.status == 200, "a bearer token should be good", &json!(heard.body))?;
        self.row("bearer token", "as it is", heard.in_short(), self.left(&legacy, got));
        let returned = shop.ask("release legacy").await?;
        expect(returned["revoked"] == true, "the token should have been revoked", &returned)?;
        let heard = call("GET", api, Some(&bearer), None).await?;
        self.refused("bearer token", "after the workload gave it back", &heard)
    }

    /// The key files, as whoever reads them, or has a backup, can copy them: sealed, they are of no use.
    async fn sealed(&mut self, thief: &Thief, api: &str) -> Result<(), Exit> {
        let stolen = "state directory";
        let origin = api.trim_end_matches("/orders");
        let copy = Thief::copy(self.stage, "copy")?;
        let of_memory = copy.files.iter().any(|name| name.starts_with("demo-memory"));
        expect(!of_memory, "a key in memory should be in no file", &json!(copy.files))?;
        let none = format!("not among the {} files there", copy.files.len());
        self.row(stolen, "custody = \"memory\": look for the key", none, NONE);

        let told = thief.run_on(copy, self.issuer.url(), origin)?.err();
        let came = refused_to_start(told, |error| matches!(error, FileError::NoSealingKey { .. }))?;
        self.row(stolen, "custody = \"file\", sealed: run an agent on a copy", came, NONE);

        let mut own = [0; 32];
        self.dice.fill(&mut own);
        let copy = Thief::copy(self.stage, "copy-and-own-sealing-key")?.and_sealing_key(&own)?;
        let told = thief.run_on(copy, self.issuer.url(), origin)?.err();
        let came = refused_to_start(told, |error| matches!(error, FileError::Sealed { .. }))?;
        self.row(stolen, "the same, with a sealing key of the thief's", came, NONE);

        // What is left to try without a key: to be the client with another one.
        let copy = Thief::copy(self.stage, "own-keys")?.but_for_the_keys()?;
        let mut twin = thief.run_on(copy, self.issuer.url(), origin)?.map_err(unbuilt)?;
        let refused = twin.workload.ask("get orders").await?;
        expect(refused["error"] == "CLIENT_AUTH_REJECTED", "a stranger's key should be of no use", &refused)?;
        self.row(stolen, "sign in as the client with another key", text(&refused["error"]), NONE);
        twin.end().await
    }

    /// The key files and what they are sealed with, as whoever is root while the agent runs can have both.
    async fn keys(&mut self, thief: &Thief, api: &str) -> Result<(), Exit> {
        let stolen = "state directory and sealing key";
        let origin = api.trim_end_matches("/orders");
        let stolen_at = self.clock.boot();
        let copy = Thief::copy(self.stage, "agent")?.and_sealing_key(&self.stage.sealing_key()?)?;
        let mut copy = thief.run_on(copy, self.issuer.url(), origin)?.map_err(unbuilt)?;
        let got = copy.workload.ask(&format!("errand {api}")).await?;
        let taken = self.clock.boot();
        expect(got["api_statuses"] == json!([401, 200]), "an agent on copied keys should be served", &got)?;
        let tried = "run an agent on a copy";
        self.row(stolen, tried, "200, with a token of its own", "until the key is replaced");

        // What an operator does about it; the agent's own key is out of use from here on, too.
        let fresh =
            Key::generate(Algorithm::Es256).map_err(|error| Exit::new(Exit::SOFTWARE, error.to_string()))?;
        let client = Client { keys: vec![(fresh.public().clone(), Algorithm::Es256)], ..self.client.clone() };
        self.issuer.register(client).map_err(|error| Exit::new(Exit::SOFTWARE, error.to_string()))?;
        let after = self.clock.boot().since(stolen_at).as_millis();
        let refused = copy.workload.ask("get orders").await?;
        expect(refused["error"] == "CLIENT_AUTH_REJECTED", "a replaced key should be of no use", &refused)?;
        let came = format!("{}, {after} ms after the theft", text(&refused["error"]));
        self.row(stolen, "the same, once the key is replaced", came, NONE);

        let order = format!("prove orders {} GET {api}", text(&got["fingerprint"]));
        let proof = copy.workload.ask(&order).await?;
        let authorization = format!("DPoP {}", text(&got["token"]));
        let heard = call("GET", api, Some(&authorization), proof["proof"].as_str()).await?;
        expect(heard.status == 200, "a token is good until it ends", &json!(heard.body))?;
        let left = self.left(&got, taken);
        self.row(stolen, "the token got with it before that", heard.in_short(), left);
        copy.end().await
    }

    /// How long a token is of use that was told at `then`, and that nobody ends.
    fn left(&self, told: &Value, then: Boot) -> String {
        let left = told["left"].as_u64().unwrap_or_default();
        format!("{} s, until it ends", left.saturating_sub(self.clock.boot().since(then).as_secs()))
    }

    fn close(&self) -> Result<(), Exit> {
        let directory = self.journey.ledger().health().directory;
        let of_kind =
            |kind| Ok::<_, Exit>(read(&directory, 0)?.filter(move |record| record.entry.event.kind == kind));
        let cut: Vec<String> =
            of_kind(EventType::AttestationFailure)?.filter_map(|record| record.entry.event.reason).collect();
        paint::line(&format!(
            "On record at the agent: {} denied, {} connections cut ({}). What was tried at the API or with a copied key \
             is on record there, not here.\n\
             Honestly: sealed key files are worth what their sealing key is. The service manager's, bound to this host or its \
             TPM, is in no copy of the state directory; whoever is root while the agent runs has it all the same. Without one, a key file \
             is mode 0600 and no more, and status says so. custody = \"memory\" leaves nothing to copy, and wants its key \
             registered at each start.",
            of_kind(EventType::Denial)?.count(),
            cut.len(),
            cut.join(", "),
        ))
    }

    fn refused(&mut self, stolen: &str, tried: &str, heard: &Heard) -> Result<(), Exit> {
        expect(heard.status == 401, "the API should have refused it", &json!([stolen, tried, heard.body]))?;
        self.row(stolen, tried, heard.in_short(), NONE);
        Ok(())
    }

    fn hung_up(&mut self, tried: &str, told: &Value) -> Result<(), Exit> {
        expect(told["hung_up"].is_string(), "a passed connection should be of no use", told)?;
        self.row("open connection to the agent", tried, "the agent hung up", NONE);
        Ok(())
    }

    fn row(&mut self, stolen: &str, tried: &str, came: impl Into<String>, of_use: impl Into<String>) {
        self.rows.push(vec![stolen.into(), tried.into(), came.into(), of_use.into()]);
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// Why an agent on a copy did not start, if it did not, for the reason that is expected.
fn refused_to_start(
    told: Option<BuildError>,
    expected: impl Fn(&FileError) -> bool,
) -> Result<&'static str, Exit> {
    let as_expected = match &told {
        Some(BuildError::Keys(errors)) => errors.iter().all(|error| expected(&error.error)),
        _ => false,
    };
    let instead = told.map_or_else(|| "it started".to_owned(), |error| error.to_string());
    expect(as_expected, "an agent on a sealed copy should not start", &json!(instead))?;
    Ok("it does not start: the key is sealed")
}

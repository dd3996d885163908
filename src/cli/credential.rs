//! `keybearer get`, `prove`, `watch`, `whoami`: a workload's calls, from a shell. The agent attests this very process, so a shell
//! gets what an identity that matches this program gets.

use std::{collections::BTreeMap, time::Duration};

use clap::Args;
use serde_json::{Value, json};

use super::{Exit, WorkloadSocket, paint, print_json};
use crate::{
    client::Agent,
    deliver::Source,
    proto::v1::{AccessToken, Credential, LeasedValues, StaticValues, credential::Kind},
};

/// What to ask for and how to print it.
#[derive(Args, Debug)]
struct Wanted {
    /// The credential's name within the identity.
    name: String,
    /// Less scope than policy grants; may be repeated.
    #[arg(long, value_name = "SCOPE")]
    scope: Vec<String>,
    /// All about it, for machines.
    #[arg(long, conflicts_with = "header")]
    json: bool,
    /// As an HTTP header line: `Authorization: Bearer ...`.
    #[arg(long)]
    header: bool,
    /// Only this field of it, as `deliver` names them: token, password, chain, ...
    #[arg(long, value_name = "FIELD", conflicts_with_all = ["json", "header"])]
    field: Option<String>,
    #[command(flatten)]
    socket: WorkloadSocket,
}

#[derive(Args, Debug)]
pub(super) struct Get {
    #[command(flatten)]
    wanted: Wanted,
    /// How many seconds it has to live at least.
    #[arg(long, default_value_t = 0, value_name = "SECONDS")]
    min_ttl: u64,
}

#[derive(Args, Debug)]
pub(super) struct Prove {
    /// The credential's name within the identity.
    name: String,
    /// The method of the request, as it will be sent.
    method: String,
    /// The URL of the request.
    url: String,
    /// The DPoP-Nonce of the API's last answer, if there was one.
    #[arg(long)]
    nonce: Option<String>,
    /// Less scope than policy grants; may be repeated.
    #[arg(long, value_name = "SCOPE")]
    scope: Vec<String>,
    #[command(flatten)]
    socket: WorkloadSocket,
}

#[derive(Args, Debug)]
pub(super) struct Watch {
    #[command(flatten)]
    wanted: Wanted,
}

#[derive(Args, Debug)]
pub(super) struct Whoami {
    /// For machines.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: WorkloadSocket,
}

impl Get {
    pub(super) async fn run(self) -> Result<(), Exit> {
        let wanted = &self.wanted;
        let mut agent = Agent::connect(&wanted.socket.socket).await?;
        let min_ttl = Duration::from_secs(self.min_ttl);
        let credential = agent.get_living(&wanted.name, &wanted.scope, min_ttl).await?;
        wanted.print(&credential)
    }
}

impl Prove {
    pub(super) async fn run(self) -> Result<(), Exit> {
        let mut agent = Agent::connect(&self.socket.socket).await?;
        let credential = agent.get(&self.name, &self.scope).await?;
        let proof = agent.prove(&credential, &self.method, &self.url, self.nonce.as_deref()).await?;
        let token = access_token(&credential)?;
        paint::verbatim(&format!("Authorization: {} {}\nDPoP: {proof}", token.token_type, token.token))
    }
}

impl Watch {
    pub(super) async fn run(self) -> Result<(), Exit> {
        let wanted = &self.wanted;
        let mut agent = Agent::connect(&wanted.socket.socket).await?;
        let mut stream = agent.watch(&wanted.name, &wanted.scope).await?;
        while let Some(message) = stream.message().await? {
            if let Some(credential) = message.credential {
                wanted.print(&credential)?;
            }
        }
        Ok(())
    }
}

impl Wanted {
    fn print(&self, credential: &Credential) -> Result<(), Exit> {
        if let Some(field) = &self.field {
            let source = format!("{}.{field}", self.name).parse::<Source>();
            let source = source.map_err(|what| Exit::new(Exit::USAGE, what))?;
            let value = source.value(credential).map_err(|no| Exit::new(Exit::DATA, no.to_string()))?;
            return paint::verbatim(value.expose_str().unwrap_or_default());
        }
        if self.json {
            let mut shown = about(credential);
            match &credential.kind {
                Some(Kind::AccessToken(token)) => {
                    shown["access_token"] = json!(token.token);
                    shown["token_type"] = json!(token.token_type);
                }
                Some(Kind::X509Certificate(certificate)) => {
                    shown["bundle_pem"] = json!(certificate.bundle_pem);
                }
                Some(Kind::LeasedValues(leased)) => shown["values"] = json!(leased.values),
                Some(Kind::StaticValues(sealed)) => {
                    shown["values"] = json!(sealed.values);
                    shown["static"] = json!(true);
                }
                None => return Err(unknown_kind()),
            }
            // One line each, so that a stream of them can be read line by line.
            return paint::verbatim(&shown.to_string());
        }
        match &credential.kind {
            Some(Kind::AccessToken(token)) if self.header => {
                paint::verbatim(&format!("Authorization: {} {}", token.token_type, token.token))
            }
            Some(Kind::AccessToken(token)) => paint::verbatim(&token.token),
            _ if self.header => {
                Err(Exit::new(Exit::USAGE, "only an access token goes into a header: leave --header out"))
            }
            // As programs read them from one file: the leaf first, and the key, where it is handed out, before it.
            Some(Kind::X509Certificate(_)) => {
                let pair = credential.client_certificate.clone().unwrap_or_default();
                paint::verbatim(format!("{}{}", pair.key_pem, pair.chain_pem).trim_end())
            }
            Some(
                Kind::LeasedValues(LeasedValues { values }) | Kind::StaticValues(StaticValues { values }),
            ) => {
                let names: BTreeMap<_, _> = values.iter().collect();
                // A line more would read as a value more.
                let broken = names.iter().find(|(_, value)| value.contains(['\n', '\r', '\0']));
                if let Some((name, _)) = broken {
                    let what = format!("{name} has more than one line: say --json");
                    return Err(Exit::new(Exit::DATA, what));
                }
                names.iter().try_for_each(|(name, value)| paint::verbatim(&format!("{name}={value}")))
            }
            None => Err(unknown_kind()),
        }
    }
}

fn access_token(credential: &Credential) -> Result<&AccessToken, Exit> {
    match &credential.kind {
        Some(Kind::AccessToken(token)) => Ok(token),
        Some(_) => Err(Exit::new(Exit::USAGE, "proofs are for access tokens: this credential is none")),
        None => Err(unknown_kind()),
    }
}

fn unknown_kind() -> Exit {
    Exit::new(Exit::SOFTWARE, "this version of the command does not know that kind of credential")
}

fn about(credential: &Credential) -> Value {
    let expires_at = credential.expires_at.and_then(|at| jiff::Timestamp::from_second(at.seconds).ok());
    let mut about = json!({
        "name": credential.name,
        "expires_at": expires_at.map(|at| at.to_string()),
        "expires_in": credential.expires_in.map(|left| left.seconds),
        "scope": credential.scope.join(" "),
        "audience": credential.audience,
        "binding": credential.binding,
        "fingerprint": credential.fingerprint,
        "thumbprint": credential.thumbprint,
    });
    if let Some(certificate) = &credential.client_certificate {
        about["client_certificate"] =
            json!({"chain_pem": certificate.chain_pem, "key_pem": certificate.key_pem});
    }
    about
}

impl Whoami {
    pub(super) async fn run(self) -> Result<(), Exit> {
        let mut agent = Agent::connect(&self.socket.socket).await?;
        let who = agent.describe().await?;
        let caller = who.caller.unwrap_or_default();
        if self.json {
            let credentials: Vec<Value> = who
                .credentials
                .iter()
                .map(|offer| {
                    json!({
                        "name": offer.name,
                        "resource": offer.resource,
                        "scope": offer.scope.join(" "),
                        "binding": offer.binding,
                        "max_ttl": offer.max_ttl.map(|ttl| ttl.seconds),
                        "origins": offer.origins,
                        "username": offer.username,
                        "per": offer.per,
                    })
                })
                .collect();
            return print_json(&json!({
                "identity": who.identity,
                "level": who.level,
                "assurance": who.assurance,
                "caller": {"pid": caller.pid, "uid": caller.uid, "gid": caller.gid, "unit": caller.unit},
                "credentials": credentials,
            }));
        }
        let unit = if caller.unit.is_empty() { "no unit".to_owned() } else { caller.unit };
        paint::line(&format!(
            "{}  level {}, assurance {}, pid {} uid {} gid {}, {unit}",
            paint::bold(&who.identity),
            who.level,
            who.assurance,
            caller.pid,
            caller.uid,
            caller.gid
        ))?;
        let rows: Vec<Vec<String>> = who
            .credentials
            .iter()
            .map(|offer| {
                let ttl = offer.max_ttl.map_or(0, |ttl| ttl.seconds);
                let most = format!("at most {}", paint::length(ttl));
                vec![
                    offer.name.clone(),
                    offer.binding.clone(),
                    most,
                    offer.resource.clone(),
                    offer.scope.join(" "),
                ]
            })
            .collect();
        paint::line(paint::table(&rows).trim_end())
    }
}

//! `keybearer keys`: the public halves of this host's keys, for people and for issuers. The private halves have no command.

use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;

use super::{ConfigFile, Exit, agent::mistaken, environment, paint, print_json};
use crate::{
    clock::SystemClock,
    config::load,
    jose::Signer,
    keys::{Custody, Keyring, Now, Purpose},
};

#[derive(Args, Debug)]
pub(super) struct Keys {
    #[command(subcommand)]
    command: KeysCommand,
}

#[derive(Debug, Subcommand)]
enum KeysCommand {
    /// Print public keys, for registration at the issuer.
    Export {
        #[command(flatten)]
        file: ConfigFile,
        /// Only this identity's.
        #[arg(long)]
        identity: Option<String>,
        /// How.
        #[arg(long, default_value = "jwks")]
        format: Format,
    },
    /// List identities, key ids and algorithms.
    List {
        #[command(flatten)]
        file: ConfigFile,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// A JWK set (RFC 7517).
    Jwks,
    /// SubjectPublicKeyInfo, as openssl reads it.
    Pem,
}

impl Keys {
    pub(super) fn run(self) -> Result<(), Exit> {
        match self.command {
            KeysCommand::Export { file, identity, format } => {
                let ring = open(&file)?;
                let keys: Vec<(&str, &dyn Signer)> = ring
                    .to_register()
                    .filter(|(name, _)| identity.as_deref().is_none_or(|wanted| wanted == *name))
                    .collect();
                if keys.is_empty() {
                    return Err(Exit::new(Exit::DATA, "no identity of that name has a key in a file"));
                }
                match format {
                    Format::Jwks => {
                        let keys: Vec<_> =
                            keys.iter().map(|(_, key)| key.public().jwk(key.algorithm())).collect();
                        print_json(&json!({"keys": keys}))
                    }
                    Format::Pem => {
                        let pems: Vec<String> = keys.iter().map(|(_, key)| key.public().pem()).collect();
                        paint::line(pems.concat().trim_end())
                    }
                }
            }
            KeysCommand::List { file } => {
                let ring = open(&file)?;
                let rows: Vec<Vec<String>> = ring
                    .to_register()
                    .map(|(name, key)| {
                        let purpose = Purpose::ClientAuth.to_string();
                        vec![name.into(), purpose, key.algorithm().to_string(), key.kid().into()]
                    })
                    .collect();
                paint::line(paint::table(&rows).trim_end())
            }
        }
    }
}

/// The keys in files: those in memory are the running agent's alone, and `status` names them.
fn open(file: &ConfigFile) -> Result<Keyring, Exit> {
    let clock = SystemClock::shared();
    let now = Now { wall: clock.wall(), boot: clock.boot() };
    let settings = load(&file.config, &environment(), now.wall).map_err(mistaken)?;
    let in_files =
        settings.keys.into_iter().filter(|(_, key)| matches!(key.custody, Custody::File { .. })).collect();
    Keyring::open(&in_files, &Keyring::default(), now).map_err(|errors| {
        let lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
        Exit::new(Exit::CONFIG, lines.join("\n"))
    })
}

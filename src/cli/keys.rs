//! `keybearer keys`: the public halves of this host's keys, for people and for issuers. The private halves have no command
//! but their end.

use std::{collections::BTreeMap, sync::Arc};

use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;

use super::{
    ConfigFile, Exit,
    agent::mistaken,
    environment, paint, print_json,
    registration::{Which, jwk, registration},
};
use crate::{
    clock::{SystemClock, SystemDice},
    config::{Settings, load},
    issuer::terms::ClientAuth,
    jose::Signer,
    keys::{
        Certificates, ClientCertificate, Custody, Keyring, Now, Purpose, SEALED_VALUES, Safe, Vault, destroy,
        remains,
    },
};

#[derive(Args, Debug)]
pub(super) struct Keys {
    #[command(subcommand)]
    command: KeysCommand,
}

#[derive(Debug, Subcommand)]
enum KeysCommand {
    /// Make the state directory this machine's, where CLONE_DETECTED says that it is another's. Only if that machine is gone
    /// for good, or this is that machine with a new machine-id.
    Adopt {
        #[command(flatten)]
        file: ConfigFile,
    },
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
        /// Print the client metadata of one client (RFC 7591), for registration as a whole.
        #[arg(long, conflicts_with = "format")]
        registration: bool,
        /// Only the client at this issuer, by its name in the settings.
        #[arg(long, value_name = "NAME", requires = "registration")]
        issuer: Option<String>,
        /// Only the client of this id.
        #[arg(long, value_name = "ID", requires = "registration")]
        client: Option<String>,
    },
    /// Destroy the keys of an identity, or of a certificate, that the settings do not name any more.
    Destroy {
        #[command(flatten)]
        file: ConfigFile,
        /// Whose they were: IDENTITY, or IDENTITY.CREDENTIAL.
        identity: String,
    },
    /// List identities, key ids and algorithms.
    List {
        #[command(flatten)]
        file: ConfigFile,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// Client certificates as PEM, leaf first: what is shown now, and what will be shown next.
    Cert,
    /// A JWK set (RFC 7517), with those certificates in it that are registered themselves (RFC 8705).
    Jwks,
    /// SubjectPublicKeyInfo, as openssl reads it.
    Pem,
}

/// Only of those who are no more: `revoke --keys` is for the others, and makes them new ones.
fn destroy_of(file: &ConfigFile, identity: &str) -> Result<(), Exit> {
    let now = SystemClock::shared().wall();
    let settings = load(&file.config, &environment(), now).map_err(mistaken)?;
    let known = |name: &str, credential: Option<&str>| {
        let known = settings.policy.identities().find(|known| *known.name == *name);
        known.is_some_and(|known| {
            credential.is_none_or(|credential| known.credentials.contains_key(credential))
        })
    };
    if known(identity, None) {
        let message =
            format!("the settings name {identity}: keybearer revoke {identity} --keys gives it others");
        return Err(Exit::new(Exit::DATA, message));
    }
    let directory = settings.kept.keys.directory.display().to_string();
    let failed = |error: std::io::Error| Exit::new(Exit::IO, format!("{directory}: {error}"));
    let remains = remains(&settings.kept.keys, known).map_err(failed)?;
    let files = remains.get(identity).ok_or_else(|| {
        let message = format!("there is no key of {identity} in {directory} that the settings do not use");
        Exit::new(Exit::DATA, message)
    })?;
    destroy(files).map_err(failed)?;
    let names: Vec<String> = files.iter().map(|path| path.display().to_string()).collect();
    paint::line(&format!("destroyed {}", names.join(", ")))
}

/// The agent writes it into the ledger at its next start.
fn adopt(file: &ConfigFile) -> Result<(), Exit> {
    let settings = load(&file.config, &environment(), SystemClock::shared().wall()).map_err(mistaken)?;
    let Some(home) = &settings.kept.home else {
        return Err(Exit::new(Exit::DATA, "keys.clone_detection = false: there is nothing to adopt"));
    };
    home.adopt().map_err(|error| Exit::new(Exit::IO, error.to_string()))?;
    paint::line(&format!("{} is this machine's from the next start of the agent on", home.state.display()))
}

const NO_KEY: &str = "no identity of that name has a key in a file";

impl Keys {
    pub(super) fn run(self) -> Result<(), Exit> {
        match self.command {
            KeysCommand::Export { file, identity, format, registration: whole, issuer, client } => {
                let held = Held::open(&file)?;
                let wanted = |name: &str| identity.as_deref().is_none_or(|wanted| wanted == name);
                let keys: Vec<(&str, &dyn Signer)> =
                    held.ring.to_register().filter(|(name, _)| wanted(name)).collect();
                let mut certificates: BTreeMap<_, _> = held.certificates.to_register().collect();
                certificates.retain(|name, _| wanted(name));
                if whole {
                    let key = |of: &str| keys.iter().find(|(name, _)| *name == of).map(|(_, key)| jwk(*key));
                    let which = Which {
                        identity: identity.as_deref(),
                        issuer: issuer.as_deref(),
                        client: client.as_deref(),
                    };
                    return print_json(&registration(&held.settings.policy, which, key, &certificates)?);
                }
                let all = || certificates.values().flatten();
                match format {
                    Format::Cert if certificates.is_empty() => {
                        Err(Exit::new(Exit::DATA, "no identity of that name has a certificate in a file"))
                    }
                    Format::Cert => {
                        let chains: String = all().map(|one| one.chain_pem()).collect();
                        paint::line(chains.trim_end())
                    }
                    Format::Jwks => {
                        certificates.retain(|name, _| held.registers_certificate(name));
                        if keys.is_empty() && certificates.is_empty() {
                            return Err(Exit::new(Exit::DATA, NO_KEY));
                        }
                        let signing = keys.iter().map(|(_, key)| jwk(*key));
                        let shown = certificates.values().flatten().filter_map(|one| one.jwk());
                        print_json(&json!({"keys": signing.chain(shown).collect::<Vec<_>>()}))
                    }
                    Format::Pem if keys.is_empty() => Err(Exit::new(Exit::DATA, NO_KEY)),
                    Format::Pem => {
                        let pems: Vec<String> = keys.iter().map(|(_, key)| key.public().pem()).collect();
                        paint::line(pems.concat().trim_end())
                    }
                }
            }
            KeysCommand::Adopt { file } => adopt(&file),
            KeysCommand::Destroy { file, identity } => destroy_of(&file, &identity),
            KeysCommand::List { file } => {
                let held = Held::open(&file)?;
                let mut rows: Vec<Vec<String>> = held
                    .ring
                    .to_register()
                    .map(|(name, key)| {
                        let purpose = Purpose::ClientAuth.to_string();
                        vec![name.into(), purpose, key.algorithm().to_string(), key.kid().into()]
                    })
                    .collect();
                for (name, all) in held.certificates.to_register() {
                    let row = |one: Arc<ClientCertificate>| {
                        let until = format!("until {:.0}", one.until());
                        vec![name.into(), "client-certificate".into(), until, one.thumbprint().into()]
                    };
                    rows.extend(all.into_iter().map(row));
                }
                rows.extend(held.sealed());
                paint::line(paint::table(&rows).trim_end())
            }
        }
    }
}

/// The keys and certificates in files: those in memory are the running agent's alone, and `status` names them.
struct Held {
    settings: Settings,
    ring: Keyring,
    certificates: Certificates,
}

impl Held {
    fn open(file: &ConfigFile) -> Result<Self, Exit> {
        let clock = SystemClock::shared();
        let now = Now::by(&*clock);
        let settings = load(&file.config, &environment(), now.wall).map_err(mistaken)?;
        let in_file = |custody: &Custody| matches!(custody, Custody::File { .. });
        let keys = settings.keys.clone().into_iter().filter(|(_, key)| in_file(&key.custody)).collect();
        let vault = Vault::to_look(&settings.kept.sealing, SystemDice::shared());
        let vault = vault.map_err(|error| unopened(&[error]))?;
        let ring = Keyring::open(&keys, &Keyring::within(vault), now).map_err(|errors| unopened(&errors))?;
        let wanted =
            settings.certificates.clone().into_iter().filter(|(_, one)| in_file(&one.custody)).collect();
        let certificates = Certificates::open(&wanted, &Certificates::default(), &ring, now.wall)
            .map_err(|errors| unopened(&errors))?;
        Ok(Self { settings, ring, certificates })
    }

    /// What lies sealed that is no key.
    fn sealed(&self) -> Vec<Vec<String>> {
        let kept = &self.settings.kept;
        let (vault, dice) = (self.ring.vault().clone(), SystemDice::shared());
        let safe = Safe::new(vault, kept.sealed.clone(), kept.home.clone(), None, dice);
        let all = safe.all().into_iter().filter_map(|(identity, credential)| {
            let said = match safe.look(&identity, &credential) {
                Ok(kept) => {
                    kept.map(|kept| (format!("since {:.0}", kept.since), kept.fingerprint.to_string()))?
                }
                Err(error) => (error.why.to_string(), String::new()),
            };
            Some(vec![identity, format!("{SEALED_VALUES} {credential}"), said.0, said.1])
        });
        all.collect()
    }

    /// Whether an issuer has to be shown the certificate itself, and not only a name of it (MT-05).
    fn registers_certificate(&self, identity: &str) -> bool {
        let identity = self.settings.policy.identities().find(|known| *known.name == *identity);
        identity.is_some_and(|identity| {
            let mut rules = identity.credentials.values();
            rules.any(|rule| rule.terms.client_auth == ClientAuth::SelfSignedTlsClientAuth)
        })
    }
}

fn unopened<E: ToString>(errors: &[E]) -> Exit {
    let lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
    Exit::new(Exit::CONFIG, lines.join("\n"))
}

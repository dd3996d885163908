//! What the daemon knows and the rooms do not, for an operator who asks how things are.

use std::{path::PathBuf, sync::Arc};

use jiff::Timestamp;

use super::Memory;
use crate::{
    attest::{Evidence, Hold, Level},
    clock::Boot,
    config::{IssuerSettings, Settings},
    issuer::terms::{SealedBy, Wants},
    keys::{Certificates, Keyring, Purpose, Safe, remains, unsealed},
    proto::v1::SealedStatus,
    serve::operator::{Facts, KeyFacts},
};

pub(super) fn facts(
    settings: &Settings,
    keys: &Keyring,
    certificates: &Certificates,
    safe: &Safe,
    probed: Option<&Evidence>,
    now: Boot,
) -> Facts {
    let url = |issuer: &IssuerSettings| match issuer {
        IssuerSettings::Acme(acme) => acme.directory.clone(),
        IssuerSettings::Est(est) => est.url.clone(),
        IssuerSettings::OAuth(oauth) => oauth.issuer.clone(),
        IssuerSettings::StepCa(step) => step.url.clone(),
        IssuerSettings::OpenBao(server) => server.url.clone(),
    };
    let mut warnings = Vec::new();
    for identity in settings.policy.identities() {
        for rule in identity.credentials.values() {
            if let Some(exception) = &rule.exception {
                warnings.push(format!(
                    "{}.{} is {} until {}: {} (owner {})",
                    identity.name,
                    rule.name,
                    rule.weakness(),
                    exception.until,
                    exception.reason,
                    exception.owner
                ));
            }
        }
    }
    let known = |name: &str, credential: Option<&str>| {
        let known = settings.policy.identities().find(|identity| *identity.name == *name);
        known.is_some_and(|known| {
            credential.is_none_or(|credential| known.credentials.contains_key(credential))
        })
    };
    // Where it cannot be looked, keys could not be made either, and that is told elsewhere.
    for (name, files) in remains(&settings.kept.keys, known).unwrap_or_default() {
        let plain =
            keys.vault().sealed_by().is_some() && !unsealed(files.iter().map(PathBuf::as_path)).is_empty();
        let plain = if plain { ", and are not sealed" } else { "" };
        warnings.push(format!(
            "{name} is in the settings no more, but its keys are there{plain}: keybearer keys destroy {name}"
        ));
    }
    warnings.extend(copies(settings, keys));
    let sealed = sealed(settings, safe);
    warnings.extend(sealed.iter().filter(|one| !one.trouble.is_empty()).map(|one| one.trouble.clone()));
    for (identity, credential) in safe.all() {
        if !sealed.iter().any(|one| {
            (one.identity.as_str(), one.credential.as_str(), one.systemd_credential.as_str())
                == (&*identity, &*credential, "")
        }) {
            warnings.push(format!(
                "{identity}.{credential} is no sealed credential of the settings any more, but what was sealed for it is there: \
                 keybearer seal {identity} {credential} --remove"
            ));
        }
    }
    let memory = Memory::look();
    Facts {
        environment: settings.environment.clone(),
        max_level: max_level(probed),
        keys: settings
            .policy
            .identities()
            .filter_map(|identity| {
                Some((identity.name.to_string(), key_facts(settings, keys, &identity.name, now)?))
            })
            .collect(),
        disabled: Default::default(),
        issuers: settings.issuers.iter().map(|(name, issuer)| (name.to_string(), url(issuer))).collect(),
        endings: certificates.of_others(),
        sealed,
        warnings,
        reload_error: String::new(),
        memory: (memory == Memory::Locked, memory.to_string()),
    }
}

/// The secrets that are the same each time, and what is wrong with them.
fn sealed(settings: &Settings, safe: &Safe) -> Vec<SealedStatus> {
    let mut all = Vec::new();
    for identity in settings.policy.identities() {
        for rule in identity.credentials.values() {
            let Wants::Sealed(terms) = &rule.terms.wants else { continue };
            let at = |at: Timestamp| prost_types::Timestamp { seconds: at.as_second(), nanos: 0 };
            let mut one = SealedStatus {
                identity: identity.name.to_string(),
                credential: rule.name.to_string(),
                fields: terms.fields.clone(),
                until: Some(at(terms.until)),
                ..SealedStatus::default()
            };
            if let Some(exception) = &rule.exception {
                (one.reason, one.owner) = (exception.reason.clone(), exception.owner.clone());
            }
            let looked = match &terms.keeper {
                SealedBy::ServiceManager(name) => {
                    one.systemd_credential.clone_from(name);
                    safe.given(&identity.name, &rule.name, name).map(drop)
                }
                SealedBy::Agent => safe.open(&identity.name, &rule.name).map(|(values, kept)| {
                    (one.since, one.fingerprint) = (Some(at(kept.since)), kept.fingerprint.to_string());
                    let missing = terms.fields.iter().find(|field| !values.contains_key(*field));
                    if let Some(field) = missing {
                        one.trouble = format!(
                            "{}.{}: no {field} is sealed for it: keybearer seal {0} {1} --field {field}",
                            identity.name, rule.name
                        );
                    }
                }),
            };
            if let Err(error) = looked {
                one.trouble = error.to_string();
            }
            all.push(one);
        }
    }
    all
}

/// What a copy of the state directory is good for.
fn copies(settings: &Settings, keys: &Keyring) -> Vec<String> {
    let (kept, mut warnings) = (&settings.kept, Vec::new());
    if keys.vault().sealed_by().is_none() {
        warnings.push(kept.sealing.advice());
    } else {
        for path in unsealed(settings.key_files()) {
            warnings.push(format!(
                "{} is not sealed: whoever copies it can use it until it is rotated. A file that the settings name is left as \
                 it is; the next key, which keybearer rotate makes, is sealed",
                path.display()
            ));
        }
    }
    if kept.home.as_ref().is_some_and(|home| !home.has_machine_id()) {
        warnings.push(
            "this host has no machine-id: a state directory that is copied elsewhere is not known for one"
                .into(),
        );
    }
    warnings
}

/// The strongest level this host and these privileges can prove (ATT-03), by trying on ourselves.
fn max_level(probed: Option<&Evidence>) -> (String, String) {
    let pinned = std::os::unix::net::UnixStream::pair()
        .ok()
        .and_then(|(ours, _theirs)| crate::attest::Peer::pin(&ours).ok().map(|peer| peer.hold()));
    let systemd = std::path::Path::new("/run/systemd/system").is_dir();
    let root = rustix::process::geteuid().is_root();
    let (level, why) = match (pinned, probed) {
        (Some(Hold::Socket), Some(_)) if systemd => {
            (Level::L4, "for identities that name a program, which then answers the challenge")
        }
        (Some(Hold::Socket), Some(_)) => (Level::L2, "no systemd runs here to vouch for units"),
        (Some(Hold::Opened), _) => (Level::L1, "this kernel has no SO_PEERPIDFD (Linux 6.5)"),
        _ => (Level::L0, "this kernel does not let a process be pinned, or /proc cannot be read"),
    };
    let mut why = why.to_owned();
    if !root && level >= Level::L2 {
        why.push_str("; programs of other users need CAP_SYS_PTRACE");
    }
    (level.to_string(), why)
}

fn key_facts(settings: &Settings, keys: &Keyring, identity: &Arc<str>, now: Boot) -> Option<KeyFacts> {
    let key = keys.signer(identity, Purpose::ClientAuth)?;
    Some(KeyFacts {
        kid: key.kid().to_owned(),
        algorithm: key.algorithm().to_string(),
        next: keys.next(identity).map(|next| next.kid().to_owned()),
        before: keys.before(identity).map(|before| before.kid().to_owned()),
        age: keys.age(identity, now).map(|age| (age, now)),
        every: settings.keys.get(identity).map(|key| key.rotation.every),
    })
}

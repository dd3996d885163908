//! What the daemon knows and the rooms do not, for an operator who asks how things are.

use std::{path::PathBuf, sync::Arc};

use crate::{
    attest::{Evidence, Hold, Level},
    clock::Boot,
    config::{IssuerSettings, Settings},
    keys::{Certificates, Keyring, Purpose, remains, unsealed},
    serve::operator::{Facts, KeyFacts},
};

pub(super) fn facts(
    settings: &Settings,
    keys: &Keyring,
    certificates: &Certificates,
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
                    rule.binding,
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
        warnings,
        reload_error: String::new(),
    }
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

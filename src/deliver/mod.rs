//! What a program gets that knows no gRPC: fields of credentials, as variables of its environment and as files. In goes what an
//! operator declares for an identity (`[identities.NAME.deliver]`) or a command line says; out come names that are safe to set
//! and values that are safe to write. Pure: whoever delivers, in the agent or as its client, asks here what and in which form.

mod dialect;
mod rotation;
mod source;
mod variable;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

pub use dialect::{CannotCarry, Dialect, Entry, Manifest, ObjectName, Trouble, shell_word};
pub use rotation::{AtRotation, Signal};
pub use source::{NoField, Source};
pub use variable::Variable;

use crate::proto::v1;

/// How long a program that is to be started again has to end by itself.
pub const STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// What the programs of an identity get, and what happens to them when it changes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Delivery {
    /// Variables that hold a value.
    pub env: BTreeMap<Variable, Source>,
    /// Variables that hold the path of a file with the value, which is replaced at each rotation.
    pub files: BTreeMap<Variable, Source>,
    /// What a rotation of a credential does to the program, by the credential's name; nothing for those that are not here.
    pub at_rotation: BTreeMap<Arc<str>, AtRotation>,
    /// What asks the program to end before it is started again.
    pub stop_signal: Signal,
    /// How long it has for that before it is killed.
    pub stop_timeout: Duration,
    /// A restart or signal waits a while of chance, up to this long, so that a fleet does not move at once.
    pub splay: Duration,
    /// Whether variables that make the loader or an interpreter run something else may be set.
    pub loader_variables: bool,
}

impl Default for Delivery {
    fn default() -> Self {
        Self {
            env: BTreeMap::new(),
            files: BTreeMap::new(),
            at_rotation: BTreeMap::new(),
            stop_signal: Signal::TERM,
            stop_timeout: STOP_TIMEOUT,
            splay: Duration::ZERO,
            loader_variables: false,
        }
    }
}

impl Delivery {
    /// Every mistake in what somebody declares, with the key it stands under: names that may not be set, two meanings of one name,
    /// and what happens at rotations of something that is not delivered.
    pub fn problems(&self) -> Vec<(String, String)> {
        let mut problems = Vec::new();
        for (key, names) in [("env", self.env.keys()), ("file", self.files.keys())] {
            for name in names.filter(|name| name.steers_the_loader() && !self.loader_variables) {
                let message = "it makes the loader or an interpreter run something else: say loader_variables = true if that is \
                               what you want";
                problems.push((format!("{key}.{name}"), message.into()));
            }
        }
        for name in self.env.keys().filter(|name| self.files.contains_key(name)) {
            problems.push((format!("file.{name}"), "it is in env too: a variable has one meaning".into()));
        }
        for credential in self.at_rotation.keys() {
            if !self.sources().any(|source| *source.credential == **credential) {
                let message = "nothing of this credential is delivered: name one of its fields in env or file, or take this out";
                problems.push((format!("at_rotation.{credential}"), message.into()));
            }
        }
        problems
    }

    /// All that is delivered, in the order of the variables.
    pub fn sources(&self) -> impl Iterator<Item = &Source> {
        self.env.values().chain(self.files.values())
    }

    /// As `Describe` tells it to the program.
    pub fn told(&self) -> v1::Delivery {
        let texts = |sources: &BTreeMap<Variable, Source>| {
            sources.iter().map(|(name, source)| (name.to_string(), source.to_string())).collect()
        };
        let at_rotation = self.at_rotation.iter().map(|(name, does)| (name.to_string(), does.to_string()));
        v1::Delivery {
            env: texts(&self.env),
            file: texts(&self.files),
            at_rotation: at_rotation.collect(),
            stop_signal: self.stop_signal.to_string(),
            stop_timeout: prost_types::Duration::try_from(self.stop_timeout).ok(),
            splay: prost_types::Duration::try_from(self.splay).ok(),
            loader_variables: self.loader_variables,
        }
    }

    /// What `Describe` told.
    ///
    /// # Errors
    /// What cannot be read, in words: an agent of another version says something that this one does not know.
    pub fn heard(told: &v1::Delivery) -> Result<Self, String> {
        let sources = |texts: &std::collections::HashMap<String, String>| {
            let read = |(name, source): (&String, &String)| Ok((name.parse()?, source.parse()?));
            texts.iter().map(read).collect::<Result<BTreeMap<Variable, Source>, String>>()
        };
        let at_rotation = |(name, does): (&String, &String)| Ok((name.as_str().into(), does.parse()?));
        let length = |told: Option<prost_types::Duration>, usual| {
            told.and_then(|length| Duration::try_from(length).ok()).unwrap_or(usual)
        };
        Ok(Self {
            env: sources(&told.env)?,
            files: sources(&told.file)?,
            at_rotation: told.at_rotation.iter().map(at_rotation).collect::<Result<_, String>>()?,
            stop_signal: told.stop_signal.parse()?,
            stop_timeout: length(told.stop_timeout, STOP_TIMEOUT),
            splay: length(told.splay, Duration::ZERO),
            loader_variables: told.loader_variables,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn declared() -> Delivery {
        Delivery {
            env: [("LEDGER_TOKEN".parse().unwrap(), "ledger.token".parse().unwrap())].into(),
            files: [("TLS_KEY".parse().unwrap(), "tls.key".parse().unwrap())].into(),
            at_rotation: [("tls".into(), "signal:HUP".parse().unwrap())].into(),
            splay: Duration::from_secs(3),
            ..Delivery::default()
        }
    }

    #[test]
    fn what_is_told_is_heard() {
        assert_eq!(Delivery::heard(&declared().told()), Ok(declared()));
        assert_eq!(Delivery::heard(&Delivery::default().told()), Ok(Delivery::default()));
    }

    #[test]
    fn what_an_agent_of_another_version_says_is_named() {
        let mut told = declared().told();
        told.at_rotation.insert("ledger".into(), "dance".into());
        assert!(Delivery::heard(&told).unwrap_err().contains("dance"));
    }

    #[test]
    fn every_mistake_has_its_key() {
        // LEGACY 2.2 step 4: loader names are refused unless somebody says otherwise.
        let mut delivery = declared();
        assert_eq!(delivery.problems(), vec![]);
        delivery.env.insert("LD_PRELOAD".parse().unwrap(), "ledger.token".parse().unwrap());
        delivery.files.insert("LEDGER_TOKEN".parse().unwrap(), "ledger.token".parse().unwrap());
        delivery.at_rotation.insert("other".into(), AtRotation::Restart);
        let keys: Vec<String> = delivery.problems().into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys, ["env.LD_PRELOAD", "file.LEDGER_TOKEN", "at_rotation.other"]);
        delivery.loader_variables = true;
        assert_eq!(delivery.problems().len(), 2);
    }
}

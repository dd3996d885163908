//! What an operator puts in for a credential of `kind = "sealed"`, or takes away. In go values by name; out come words for the
//! operator, a record of who did it, and another secret for whoever may have it. No value is in any of the words.

use std::sync::Arc;

use super::steward::{Said, Steward};
use crate::{
    audit::{EventType, Outcome},
    broker::Which,
    issuer::terms::{SealedBy, Wants},
    keys::{NotSafe, Values},
    policy::CredentialRule,
};

impl Steward {
    /// Puts in what a sealed credential hands out, or takes it away, and ends what is live of it here: whoever may have it gets what
    /// there is from now on.
    pub(super) async fn seal(
        &self,
        (identity, credential): (String, String),
        values: Option<Values>,
        by: &str,
    ) -> Said {
        let removes = values.is_none();
        let done = match values {
            Some(values) => self.put_in(&identity, &credential, values),
            None => self.take_away(&identity, &credential),
        };
        let outcome = if done.is_ok() { Outcome::Success } else { Outcome::Failed };
        let (Ok(words) | Err(words)) = &done;
        let entry = self.entry(EventType::SecretSeal, outcome).detail(format!("{words} (by {by})"));
        self.record(entry.because(if removes { "REMOVED" } else { "SEALED" })).await;
        if done.is_ok() {
            self.retire(Which::Identity(identity.into(), Some(credential.into()))).await;
            self.refresh_facts();
        }
        match done {
            Ok(words) => Ok(vec![words]),
            Err(words) => Err(vec![words]),
        }
    }

    fn put_in(&self, identity: &str, credential: &str, values: Values) -> Result<String, String> {
        let rule = self.rule(identity, credential)?;
        let Wants::Sealed(terms) = &rule.terms.wants else {
            return Err(format!(
                "{identity}.{credential} is made by the issuer {}: nothing is sealed for it",
                rule.issuer
            ));
        };
        if let SealedBy::ServiceManager(name) = &terms.keeper {
            return Err(format!(
                "{identity}.{credential} is kept by the service manager, as {name}: give it another with systemd-creds encrypt, and \
                 restart the agent's unit"
            ));
        }
        let carry = rule.forward.as_ref().and_then(|forward| forward.carry.as_deref());
        let mut all = Values::new();
        for (name, value) in values {
            let name = match (name.as_str(), terms.fields.as_slice()) {
                ("", [field]) => field.clone(),
                _ if terms.fields.contains(&name) => name,
                _ => {
                    let fields = terms.fields.join(", ");
                    return Err(format!(
                        "{identity}.{credential} has the fields {fields}: say which it is (--field)"
                    ));
                }
            };
            if let Some(what) = carry.and_then(|carry| carry.unfit(&name, &value)) {
                return Err(format!("{identity}.{credential}: {name} {what}"));
            }
            all.insert(name, value);
        }
        let safe = self.sealed.safe();
        let missing: Vec<&String> = terms.fields.iter().filter(|field| !all.contains_key(*field)).collect();
        if !missing.is_empty() {
            let before = match safe.open(identity, credential) {
                Ok((before, _)) => before,
                Err(error) if matches!(error.why, NotSafe::Nothing) => Values::new(),
                Err(error) => return Err(error.to_string()),
            };
            all.extend(before.into_iter().filter(|(field, _)| missing.contains(&field)));
        }
        if let Some(field) = terms.fields.iter().find(|field| !all.contains_key(*field)) {
            return Err(format!(
                "{identity}.{credential}: there is no {field} yet: give all of its fields at once (--json)"
            ));
        }
        let kept = safe
            .put(identity, credential, &all, self.clock.wall())
            .map_err(|error| format!("{error}; what was sealed before stays"))?;
        Ok(format!(
            "{identity}.{credential}: {} sealed, fingerprint {}; whoever may have it gets it from now on",
            kept.fields.join(", "),
            kept.fingerprint
        ))
    }

    /// Also of what the settings do not name any more.
    fn take_away(&self, identity: &str, credential: &str) -> Result<String, String> {
        match self.sealed.safe().remove(identity, credential) {
            Ok(true) => Ok(format!(
                "{identity}.{credential}: what was sealed is gone here; change it where it is checked, for it is good there still"
            )),
            Ok(false) => Err(format!("{identity}.{credential}: nothing is sealed for it")),
            Err(error) => Err(error.to_string()),
        }
    }

    fn rule(&self, identity: &str, credential: &str) -> Result<&Arc<CredentialRule>, String> {
        let known = self.settings.policy.identities().find(|known| *known.name == *identity);
        let known = known.ok_or_else(|| format!("there is no identity {identity}"))?;
        known.credentials.get(credential).ok_or_else(|| {
            let names: Vec<&str> = known.credentials.keys().map(|name| &**name).collect();
            format!("{identity} has no credential {credential}: it has {}", names.join(", "))
        })
    }
}

//! `[identities.NAME.deliver]`: what the programs of an identity get that know no gRPC. In goes the table and the identity's
//! credentials; out comes a [`Delivery`] whose every value can be had.

use std::{collections::BTreeMap, sync::Arc};

use super::reader::Reader;
use crate::{
    credential::Binding,
    deliver::{AtRotation, Delivery, Signal, Source, Variable},
    issuer::terms::{LeaseTerms, SealedTerms, Wants},
    policy::CredentialRule,
};

/// Reads the table, if there is one.
pub(super) fn delivery(
    reader: &mut Reader<'_>,
    credentials: &BTreeMap<Arc<str>, Arc<CredentialRule>>,
) -> Delivery {
    let Some(mut reader) = reader.table("deliver") else { return Delivery::default() };
    let usual = Delivery::default();
    let stop_signal = reader.string("stop_signal").map(|name| name.parse::<Signal>());
    let delivery = Delivery {
        env: sources(&mut reader, "env", credentials),
        files: sources(&mut reader, "file", credentials),
        at_rotation: rotations(&mut reader),
        stop_timeout: reader.duration("stop_timeout", usual.stop_timeout),
        splay: reader.duration("splay", usual.splay),
        loader_variables: reader.boolean("loader_variables", false),
        stop_signal: match stop_signal {
            None => usual.stop_signal,
            Some(Ok(signal)) => signal,
            Some(Err(why)) => {
                reader.wrong("stop_signal", why);
                usual.stop_signal
            }
        },
    };
    for (key, message) in delivery.problems() {
        reader.wrong(&key, message);
    }
    reader.finish();
    delivery
}

fn sources(
    reader: &mut Reader<'_>,
    key: &'static str,
    credentials: &BTreeMap<Arc<str>, Arc<CredentialRule>>,
) -> BTreeMap<Variable, Source> {
    let mut sources = BTreeMap::new();
    for (name, text) in reader.texts(key) {
        let read = name.parse::<Variable>().and_then(|name| Ok((name, text.parse::<Source>()?)));
        match read.and_then(|(name, source)| deliverable(&source, credentials).map(|()| (name, source))) {
            Ok((name, source)) => drop(sources.insert(name, source)),
            Err(why) => reader.wrong(&format!("{key}.{name}"), why),
        }
    }
    sources
}

fn rotations(reader: &mut Reader<'_>) -> BTreeMap<Arc<str>, AtRotation> {
    let mut rotations = BTreeMap::new();
    for (credential, text) in reader.texts("at_rotation") {
        match text.parse() {
            Ok(does) => drop(rotations.insert(credential.into(), does)),
            Err(why) => reader.wrong(&format!("at_rotation.{credential}"), why),
        }
    }
    rotations
}

/// Whether there can ever be a value.
fn deliverable(source: &Source, credentials: &BTreeMap<Arc<str>, Arc<CredentialRule>>) -> Result<(), String> {
    let Some(rule) = credentials.get(&source.credential) else {
        return Err(format!("this identity has no credential {:?}", &*source.credential));
    };
    if rule.forward.as_ref().is_some_and(|forward| forward.only) {
        return Err(
            "with forward = \"only\" it does not leave the agent: take it out, or say \"allowed\"".into()
        );
    }
    let field = source.field.as_str();
    let shows = rule.binding == Binding::Mtls || matches!(rule.terms.wants, Wants::Certificate(_));
    let there = match (&rule.terms.wants, field) {
        (_, "expires_at") => true,
        (_, "key" | "pair") if shows && !rule.key_export => {
            return Err(
                "its key does not leave the agent: say key_export = \"allowed\" for this credential".into()
            );
        }
        (Wants::Lease(lease), field) => {
            lease.fields.is_empty() || lease.fields.iter().any(|one| one == field)
        }
        (Wants::Sealed(sealed), field) => sealed.fields.iter().any(|one| one == field),
        (Wants::Token, "token" | "authorization") | (Wants::Certificate(_), "bundle") => true,
        (_, "chain" | "key" | "pair") => shows,
        _ => false,
    };
    let has = match &rule.terms.wants {
        Wants::Token if shows => "token, authorization, chain, key, pair, expires_at".into(),
        Wants::Token => "token, authorization, expires_at".into(),
        Wants::Certificate(_) => "chain, key, pair, bundle, expires_at".into(),
        Wants::Lease(LeaseTerms { fields, .. }) | Wants::Sealed(SealedTerms { fields, .. }) => {
            format!("{}, expires_at", fields.join(", "))
        }
    };
    if there { Ok(()) } else { Err(format!("that credential has no field {field:?}: it has {has}")) }
}

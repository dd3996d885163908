//! `kind = "sealed"` in the table of a credential: a secret that cannot be dynamic yet (S1, S36). In goes the table; out comes its
//! rule, which names no issuer.

use std::{collections::BTreeSet, sync::Arc};

use super::{
    identities::{Kind, exception, forward, proofs},
    reader::Reader,
};
use crate::{
    api::Carry,
    credential::Binding,
    issuer::{
        sealed,
        terms::{ClientAuth, SealedBy, SealedTerms, Terms, Wants},
    },
    policy::{Assurance, CredentialRule, Forward, Per},
};

/// Keys that only make sense where an issuer makes something.
const OF_ISSUERS: [&str; 12] = [
    "binding",
    "certificate",
    "client_auth",
    "client_id",
    "grant",
    "issuer",
    "key_export",
    "lease",
    "max_uses",
    "per",
    "resource",
    "scope",
];

/// More than any secret has that people keep.
const MOST_FIELDS: usize = 16;

pub(super) fn credential(
    mut reader: Reader<'_>,
    (identity, name): (&str, String),
    assurance: Assurance,
) -> CredentialRule {
    reader.word("kind", (), &[("sealed", ())]);
    for key in OF_ISSUERS {
        if reader.has(key) {
            reader.wrong(key, "it is for what an issuer makes: a sealed secret is one and the same for all its identity's processes");
        }
    }
    let fields = fields(&mut reader);
    let keeper = match reader.string("systemd_credential") {
        None => SealedBy::Agent,
        Some(name) => {
            if !is_credential_name(&name) {
                let what = "it has to be a name of LoadCredentialEncrypted= in the agent's unit, such as \"smtp-password\", and none \
                            of the agent's own";
                reader.wrong("systemd_credential", what);
            }
            if fields.len() > 1 {
                let what = "a credential of the service manager is one value: name one field, or keybearer seal all of them";
                reader.wrong("fields", what);
            }
            SealedBy::ServiceManager(name)
        }
    };
    let forward = forward(&mut reader);
    let carry = carry(&mut reader, forward.is_some(), &fields);
    let proofs = proofs(&mut reader, None, Kind::Lease, forward.is_some(), false);
    let exception = reader.table("exception").and_then(exception);
    // One without an exception does not load.
    let until = exception.as_ref().map_or(jiff::Timestamp::MIN, |exception| exception.until);
    let wants = Wants::Sealed(SealedTerms { fields, keeper, until });
    let rule = CredentialRule {
        name: name.as_str().into(),
        issuer: sealed::NAME.into(),
        client_id: identity.into(),
        resource: None,
        require_aud: false,
        scope: Arc::from([]),
        binding: Binding::Bearer,
        key_export: false,
        terms: Arc::new(Terms { wants, client_auth: ClientAuth::Nobody, ..Terms::default() }),
        proofs,
        username: None,
        forward: forward.map(|forward| Forward { carry, ..forward }),
        per: Per::Identity,
        max_uses: None,
        max_ttl: reader.duration("max_ttl", assurance.max_ttl()),
        exception,
    };
    reader.finish();
    rule
}

fn fields(reader: &mut Reader<'_>) -> Vec<String> {
    let fields = reader.strings("fields");
    let is_name = |field: &String| {
        (1..=64).contains(&field.len())
            && field.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    };
    let distinct: BTreeSet<&String> = fields.iter().collect();
    if fields.is_empty() || fields.len() > MOST_FIELDS {
        reader.wrong(
            "fields",
            "name its values, best as what will take its place has them: [\"username\", \"password\"]",
        );
    } else if !fields.iter().all(is_name) || distinct.len() < fields.len() {
        reader.wrong("fields", "each is another name of 1 to 64 letters, digits, dots, - and _");
    }
    fields
}

/// How it goes to its API, where the agent calls that.
fn carry(reader: &mut Reader<'_>, forwards: bool, fields: &[String]) -> Option<Arc<Carry>> {
    let written = reader.string("forward_as");
    match (&written, forwards) {
        (None, true) => reader.wrong(
            "forward_as",
            "say in which header the API takes it: \"X-Api-Key: {key}\", \"Authorization: Bearer {token}\" or \"Authorization: \
             Basic {username}:{password}\"",
        ),
        (Some(_), false) => {
            reader.wrong("forward_as", "it is only used with forward = \"allowed\" or \"only\"")
        }
        (None, false) | (Some(_), true) => {}
    }
    let carry = match Carry::parse(&written?) {
        Ok(carry) => carry,
        Err(why) => {
            reader.wrong("forward_as", why);
            return None;
        }
    };
    if carry.fields().any(|name| fields.iter().all(|field| field != name)) {
        reader.wrong("forward_as", "what stands in its braces has to be one of the fields");
    }
    Some(Arc::new(carry))
}

/// Whether it can be a credential's name (systemd.exec(5)), and is not a key that seals others.
fn is_credential_name(name: &str) -> bool {
    (1..=255).contains(&name.len())
        && !name.starts_with('.')
        && !name.starts_with("keybearer.")
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:@".contains(&byte))
}

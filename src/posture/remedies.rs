//! What to do, and first what is most needed (S47). In go identities; out come remedies sorted by (assurance, exposure, age), each
//! with a reason code that keeps its meaning. What is mended is gone from the list.

use serde::Serialize;

use super::{CredentialPart, IdentityPart, Kind, Life, count};

/// Who could use it, the most first.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Exposure {
    /// Somebody has or had it who should not.
    Seen,
    /// Whoever reads the program's environment, and each program it starts.
    Environment,
    /// Whoever gets it out of the program.
    Program,
    /// Whoever reads this host's disk or takes the agent over.
    Host,
    /// Nobody but who has a key besides.
    Bound,
}

impl Exposure {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Seen => "seen",
            Self::Environment => "environment",
            Self::Program => "program",
            Self::Host => "host",
            Self::Bound => "bound",
        }
    }
}

/// Something to do.
#[derive(Clone, Debug, Serialize)]
pub struct Remedy {
    /// Why, in one word.
    pub code: &'static str,
    /// The identity.
    pub identity: String,
    /// The credential, if it is about one.
    pub credential: Option<String>,
    /// What the identity demands: what matters most is the highest.
    pub assurance: String,
    /// Who could use it.
    pub exposure: Exposure,
    /// For how many days the ledger has known it.
    pub age_days: Option<i64>,
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub remedy: String,
}

/// An exception that ends within so many days is something to do now.
const SOON: i64 = 30;

/// How a key is kept that whoever copies the disk has.
const PLAIN: (&str, Option<bool>) = ("file", Some(false));

/// What ends that.
const SEAL: &str = "give the agent a sealing key: the credential keybearer.sealing-key, or keys.sealing_key";

pub(super) fn remedies(identities: &[IdentityPart]) -> Vec<Remedy> {
    let mut all = vec![];
    for identity in identities {
        of_identity(&mut all, identity);
        for credential in &identity.credentials {
            of_credential(&mut all, identity, credential);
        }
    }
    all.sort_by_cached_key(|one| {
        let rank = ["high", "standard", "interim"].iter().position(|name| *name == one.assurance);
        let age = std::cmp::Reverse(one.age_days);
        (rank, one.exposure, age, one.identity.clone(), one.credential.clone(), one.code)
    });
    all
}

fn of_identity(all: &mut Vec<Remedy>, identity: &IdentityPart) {
    let age = identity.credentials.iter().filter_map(|one| one.known_for_days).max();
    let mut add = |code, exposure, what: String, remedy: String| {
        all.push(Remedy {
            code,
            identity: identity.name.clone(),
            credential: None,
            assurance: identity.assurance.clone(),
            exposure,
            age_days: age,
            what,
            remedy,
        });
    };
    if !identity.humans.is_empty() && !identity.is_for_people() {
        let sessions = count(identity.humans.values().sum::<u64>(), "session");
        let signs: Vec<&str> = identity.humans.keys().map(String::as_str).collect();
        let what = format!("{sessions} of people served ({})", signs.join(", "));
        let remedy = "humans = \"refused\", or match the unit, so that a shell of the same user is somebody else; give people an identity of their own";
        add("HUMAN_USE", Exposure::Seen, what, remedy.into());
    }
    if identity.units.len() > 1 {
        let what = format!("it is several programs: {}", identity.units.join(", "));
        add("SEVERAL_UNITS", Exposure::Seen, what, "make an identity for each of these units".into());
    }
    let plain = [
        ("key", identity.key.as_ref().map(|key| (key.custody, key.sealed))),
        ("certificate's key", identity.certificate.as_ref().map(|own| (own.custody, own.sealed))),
    ];
    let plain = plain.iter().filter(|(_, kept)| *kept == Some(PLAIN)).map(|(what, _)| *what);
    let plain = plain.collect::<Vec<_>>().join(" and its ");
    if !plain.is_empty() {
        let what =
            format!("its {plain}: plain on this disk; whoever copies it, or a backup of it, is this client");
        add("KEY_PLAIN", Exposure::Host, what, SEAL.into());
    }
    if identity.life == Life::Stale && identity.disabled.is_none() {
        let what = match &identity.last_used {
            Some(last) => format!("it was used last at {last}"),
            None => "it was never used, as far as the ledger goes back".into(),
        };
        let remedy = format!(
            "ask {}; then keybearer disable {}, and take it out of the settings and the issuer's books",
            identity.owner, identity.name
        );
        add("STALE", Exposure::Bound, what, remedy);
    }
}

fn of_credential(all: &mut Vec<Remedy>, identity: &IdentityPart, credential: &CredentialPart) {
    let mut add = |code, exposure, what: String, remedy: String| {
        all.push(Remedy {
            code,
            identity: identity.name.clone(),
            credential: Some(credential.name.clone()),
            assurance: identity.assurance.clone(),
            exposure,
            age_days: credential.known_for_days,
            what,
            remedy,
        });
    };
    let in_variables = !credential.variables.is_empty();
    let open = match credential.forward {
        _ if in_variables => Exposure::Environment,
        "only" => Exposure::Host,
        _ => Exposure::Program,
    };
    match credential.kind {
        Kind::Static => {
            let what = "a secret that stays the same is handed out".into();
            let remedy = "have an issuer make it anew (a token, a lease, a certificate); until then forward = \"only\", so that no \
                          program sees it";
            add("STATIC", open, what, remedy.into());
        }
        Kind::Bridged => {
            let what = "a secret that stays the same lies on this host; the agent alone uses it".into();
            let remedy = "have an issuer make it anew: the program will not notice, only this table of the settings changes";
            add("STATIC_BRIDGED", Exposure::Host, what, remedy.into());
        }
        Kind::Dynamic if credential.wants == "lease" && credential.per == "process" => {}
        Kind::Dynamic => {
            let what = format!("whoever has the {} can use it until it ends", credential.wants);
            let remedy = match credential.wants {
                "lease" => "say per = \"process\", so that it ends with the process that has it",
                _ => "binding = \"dpop\" or \"mtls\" once the API checks it; until then forward = \"only\"",
            };
            add("NOT_BOUND", open, what, remedy.into());
        }
        Kind::Bound => {}
    }
    if in_variables {
        let what = format!("it is in the environment of programs ({})", credential.variables.join(", "));
        let remedy = "deliver it as a file, or have the program ask: [identities.NAME.deliver] file = { .. }";
        add("IN_ENVIRONMENT", Exposure::Environment, what, remedy.into());
    }
    if credential.key_export {
        let what = "the key that binds it is handed out with it, so it binds nothing any more".into();
        add(
            "KEY_EXPORTED",
            Exposure::Program,
            what,
            "forward = \"allowed\", and key_export = \"never\"".into(),
        );
    }
    if credential.key_custody.map(|custody| (custody, credential.key_sealed)) == Some(PLAIN) {
        let what = "its key is plain on this disk: whoever copies it, or a backup of it, has the certificate";
        add("KEY_PLAIN", Exposure::Host, what.into(), SEAL.into());
    }
    if let Some(exception) = &credential.exception {
        let (until, owner) = (&exception.until, &exception.owner);
        let mend = match credential.kind {
            Kind::Static | Kind::Bridged => "have an issuer make it anew",
            Kind::Dynamic | Kind::Bound => "bind it",
        };
        if exception.days_left < 0 {
            let what = format!("its exception ended at {until}: it is denied");
            let remedy = format!("{mend} and take the exception out, or have {owner} decide again");
            add("EXCEPTION_ENDED", open, what, remedy);
        } else if exception.days_left < SOON {
            let what = format!("its exception ends in {} ({until})", count_days(exception.days_left));
            add("EXCEPTION_ENDING", open, what, format!("{mend} before then, or have {owner} decide again"));
        }
    }
    if credential.wants == "token" && (credential.audience.is_none() || !credential.audience_checked) {
        let what = "nothing says which API it is for, so every API may take it".into();
        let exposure = if credential.kind == Kind::Bound { Exposure::Bound } else { open };
        add("NO_AUDIENCE", exposure, what, "name its API as resource, and leave require_aud as it is".into());
    }
    if !credential.scopes_unused.is_empty() {
        let what = format!("no token had {} in this time", credential.scopes_unused.join(" "));
        add("SCOPE_UNUSED", Exposure::Bound, what, "take it out of scope".into());
    }
    if credential.brought.iter().any(|one| one.role == "assertion") {
        let what = "who asks is proved by a token that can be shown again until it ends".into();
        let remedy =
            "client_auth = \"private_key_jwt\" or a certificate; or have the platform make it for minutes";
        add("PROOF_REPLAYABLE", Exposure::Host, what, remedy.into());
    }
}

fn count_days(days: i64) -> String {
    if days == 0 { "less than a day".into() } else { count(days.unsigned_abs(), "day") }
}

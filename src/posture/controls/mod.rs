//! The controls of three catalogues, each a pure function over the facts (S16). What the agent does not check is never a pass: it
//! does not apply, with the reason, or it fails.

mod agentic;
mod assurance;
mod nhi;

use serde::Serialize;

use super::{CredentialPart, Facts, IdentityPart};

/// How a control stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It is violated.
    Fail,
    /// There is nothing it could be held against, or nothing here that could tell.
    NotApplicable,
    /// It holds.
    Pass,
}

impl Verdict {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fail => "fail",
            Self::NotApplicable => "n/a",
            Self::Pass => "pass",
        }
    }
}

/// One control of a catalogue.
#[derive(Clone, Debug, Serialize)]
pub struct Control {
    /// Its id: NHI-1 to NHI-10, GA-01 to GA-10, N63-1 to N63-8.
    pub id: &'static str,
    /// Its name in its catalogue.
    pub title: &'static str,
    /// How it stands.
    pub verdict: Verdict,
    /// Why, in one sentence.
    pub evidence: String,
    /// What to do, where it fails.
    pub remedy: Option<String>,
}

/// What a control says.
struct Said {
    verdict: Verdict,
    evidence: String,
    remedy: Option<String>,
}

type Check = fn(&Facts<'_>) -> Said;

pub(super) fn controls(facts: &Facts<'_>) -> Vec<Control> {
    let all = nhi::ALL.iter().chain(&agentic::ALL).chain(&assurance::ALL);
    all.map(|(id, title, check)| {
        let Said { verdict, evidence, remedy } = check(facts);
        Control { id, title, verdict, evidence, remedy }
    })
    .collect()
}

fn pass(evidence: impl Into<String>) -> Said {
    Said { verdict: Verdict::Pass, evidence: evidence.into(), remedy: None }
}

fn fail(evidence: impl Into<String>, remedy: impl Into<String>) -> Said {
    Said { verdict: Verdict::Fail, evidence: evidence.into(), remedy: Some(remedy.into()) }
}

fn not_applicable(evidence: impl Into<String>) -> Said {
    Said { verdict: Verdict::NotApplicable, evidence: evidence.into(), remedy: None }
}

/// How many names a sentence holds.
const NAMED: usize = 4;

/// Names for a sentence: a few, and how many more.
fn names(all: &[String]) -> String {
    match all.len().checked_sub(NAMED) {
        None | Some(0) => all.join(", "),
        Some(more) => format!("{} and {more} more", all[..NAMED].join(", ")),
    }
}

impl Facts<'_> {
    /// Every credential with its identity.
    fn credentials(&self) -> impl Iterator<Item = (&IdentityPart, &CredentialPart)> {
        self.identities
            .iter()
            .flat_map(|identity| identity.credentials.iter().map(move |credential| (identity, credential)))
    }

    /// Those of which this is true, as identity.credential.
    fn those(&self, is: impl Fn(&IdentityPart, &CredentialPart) -> bool) -> Vec<String> {
        let named = self.credentials().filter(|(identity, credential)| is(identity, credential));
        named.map(|(identity, credential)| format!("{}.{}", identity.name, credential.name)).collect()
    }

    /// The identities of which this is true.
    fn who(&self, is: impl Fn(&IdentityPart) -> bool) -> Vec<String> {
        self.identities.iter().filter(|one| is(one)).map(|one| one.name.clone()).collect()
    }

    /// Those with a private key in a file that is sealed, plain, or nobody can tell which: identities, and credentials that are
    /// certificates of a CA's.
    fn key_files(&self, sealed: Option<bool>) -> Vec<String> {
        let kept = Some(("file", sealed));
        let own = |one: &IdentityPart| {
            one.key.as_ref().map(|key| (key.custody, key.sealed)) == kept
                || one.certificate.as_ref().map(|own| (own.custody, own.sealed)) == kept
        };
        let given = |one: &CredentialPart| one.key_custody.map(|custody| (custody, one.key_sealed)) == kept;
        [self.who(own), self.those(|_, one| given(one))].concat()
    }

    /// How often anything was handed out.
    fn handed_out(&self) -> u64 {
        self.identities.iter().map(|identity| identity.handed_out).sum()
    }
}

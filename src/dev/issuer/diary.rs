//! What was asked and how it ended. In goes every request to the issuer, before it is answered; out come the
//! last thousand and the counts. Never a token, an assertion or a proof: only the
//! names in it.

use std::collections::{BTreeMap, VecDeque};

use http::HeaderMap;
use jiff::Timestamp;
use serde::{Serialize, Serializer};

use crate::dev::proof::Glimpse;

/// How many requests are kept.
const KEPT: usize = 1000;

/// The longest name kept: what callers write is theirs to choose.
const MAX_NAME: usize = 256;

/// One request.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct DiaryEntry {
    /// Counts up from 0 and never repeats.
    pub number: u64,
    /// When it came.
    #[serde(serialize_with = "as_text")]
    pub at: Timestamp,
    /// The path, or `other` for one the issuer does not have.
    pub path: &'static str,
    /// Who it said it was from; believed only if it ended well.
    pub client_id: Option<String>,
    /// The one-time value of its assertion.
    pub jti: Option<String>,
    /// The `grant_type`, if it is a token request.
    pub grant: Option<String>,
    /// What the DPoP proof of a token request says of itself; none came if it is empty.
    pub proof: Option<DiaryProof>,
    /// The HTTP status of the answer; 0 while there is none.
    pub status: u16,
    /// `pending`, `ok`, the OAuth error, or `fault:` and its name.
    pub outcome: String,
    /// The rule that was broken, for people.
    pub detail: Option<String>,
}

/// The names in a DPoP proof; believed only if the request ended well.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
pub struct DiaryProof {
    /// The thumbprint of its key.
    pub jkt: Option<String>,
    /// Its one-time value.
    pub jti: Option<String>,
    /// The nonce in it.
    pub nonce: Option<String>,
}

/// How often what happened.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
pub struct Counts {
    /// Requests, by path.
    pub requests: BTreeMap<&'static str, u64>,
    /// Ended requests, by outcome.
    pub outcomes: BTreeMap<String, u64>,
    /// Tokens that were handed out.
    pub tokens: u64,
}

/// The counts since the start, and the last requests, oldest first.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
pub struct Diary {
    /// The counts.
    pub counts: Counts,
    /// The last 1000 requests.
    pub entries: VecDeque<DiaryEntry>,
}

impl Diary {
    /// Requests to `path` so far.
    pub fn requests(&self, path: &str) -> u64 {
        self.counts.requests.get(path).copied().unwrap_or(0)
    }

    /// A request that came in; its number is for [`Diary::close`].
    pub(super) fn open(&mut self, at: Timestamp, path: &'static str) -> u64 {
        let number = self.counts.requests.values().sum();
        *self.counts.requests.entry(path).or_default() += 1;
        if self.entries.len() == KEPT {
            self.entries.pop_front();
        }
        self.entries.push_back(DiaryEntry {
            number,
            at,
            path,
            client_id: None,
            jti: None,
            grant: None,
            proof: None,
            status: 0,
            outcome: "pending".into(),
            detail: None,
        });
        number
    }

    /// Who the request says it is from, and what it is for.
    pub(super) fn sign(
        &mut self,
        number: u64,
        client_id: Option<String>,
        jti: Option<String>,
        grant: Option<String>,
    ) {
        if let Some(entry) = self.entry(number) {
            entry.client_id = client_id.map(short);
            entry.jti = jti.map(short);
            entry.grant = grant.map(short);
        }
    }

    /// Who the request is from, as it turned out: a subject of somebody else's may be a client of ours.
    pub(super) fn identify(&mut self, number: u64, client_id: &str) {
        if let Some(entry) = self.entry(number) {
            entry.client_id = Some(client_id.to_owned());
        }
    }

    /// Which proof the request came with.
    pub(super) fn show(&mut self, number: u64, headers: &HeaderMap) {
        let Some(proof) = headers.get("dpop") else { return };
        let glimpse = proof.to_str().map(Glimpse::of).unwrap_or_default();
        if let Some(entry) = self.entry(number) {
            entry.proof = Some(DiaryProof {
                jkt: glimpse.jkt,
                jti: glimpse.jti.map(short),
                nonce: glimpse.nonce.map(short),
            });
        }
    }

    /// How the request ended.
    pub(super) fn close(&mut self, number: u64, status: u16, outcome: String, detail: Option<String>) {
        *self.counts.outcomes.entry(outcome.clone()).or_default() += 1;
        if let Some(entry) = self.entry(number) {
            (entry.status, entry.outcome, entry.detail) = (status, outcome, detail);
        }
    }

    /// A token went out.
    pub(super) fn token(&mut self) {
        self.counts.tokens += 1;
    }

    fn entry(&mut self, number: u64) -> Option<&mut DiaryEntry> {
        self.entries.iter_mut().rev().find(|entry| entry.number == number)
    }
}

fn short(name: String) -> String {
    name.chars().take(MAX_NAME).collect()
}

/// RFC 3339, as everywhere people read a time.
fn as_text<S: Serializer>(at: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_thousand_are_kept_and_all_are_counted() {
        let mut diary = Diary::default();
        for number in 0..1500 {
            assert_eq!(diary.open(Timestamp::UNIX_EPOCH, "/token"), number);
        }
        diary.sign(1499, Some("x".repeat(1000)), Some("j".into()), None);
        diary.close(1499, 200, "ok".into(), None);
        diary.close(0, 200, "ok".into(), None);
        assert_eq!((diary.requests("/token"), diary.entries.len()), (1500, KEPT));
        assert_eq!(diary.entries[0].number, 500);
        let last = diary.entries.back().unwrap();
        assert_eq!((last.status, last.outcome.as_str(), last.jti.as_deref()), (200, "ok", Some("j")));
        assert_eq!(last.client_id.as_ref().unwrap().len(), MAX_NAME);
        assert_eq!(diary.counts.outcomes["ok"], 2);
    }
}

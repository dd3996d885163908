//! An entry spelled out, so that the scribe has little to do and what was said once can be said again. In goes an entry,
//! by whoever makes it; out comes the part of its line that the ledger does not add.

use std::{
    io::Write as _,
    sync::{Arc, OnceLock},
};

use serde::Serialize;
use uuid::Uuid;

use super::{
    counts::Tally,
    record::{
        ApiPart, CredentialPart, Entry, ErrandPart, HolderPart, IssuerPart, LedgerPart, PeerPart, PolicyPart,
        TargetPart, WorkloadPart,
    },
};

/// What is to be recorded about one exchange, spelled out.
#[derive(Clone, Debug)]
pub struct Line {
    exchange: Uuid,
    trace_id: Option<String>,
    told: Told,
}

/// What an entry tells beside its exchange: the same for each exchange of the same kind.
#[derive(Clone, Debug)]
pub struct Told(Arc<Said>);

#[derive(Debug)]
struct Said {
    event: String,
    facts: String,
    tally: Tally,
    /// The same for the journal, once it was told.
    copied: OnceLock<Box<[u8]>>,
}

impl From<Entry> for Line {
    fn from(entry: Entry) -> Self {
        let entry = entry.capped();
        let facts = Facts {
            workload: &entry.workload,
            peer: &entry.peer,
            socket: &entry.socket,
            service_manager: &entry.service_manager,
            credential: &entry.credential,
            target: &entry.target,
            holder: &entry.holder,
            policy: &entry.policy,
            issuer_response: &entry.issuer_response,
            api_response: &entry.api_response,
            ledger: &entry.ledger,
            detail: &entry.detail,
        };
        let said = Said {
            facts: members(&facts),
            event: json(&entry.event),
            tally: Tally::of(&entry),
            copied: OnceLock::new(),
        };
        let told = Told(Arc::new(said));
        Self { exchange: entry.exchange_id.0, trace_id: entry.trace_id, told }
    }
}

impl Line {
    /// The same told of another exchange, by a caller with a trace that is valid or none.
    pub fn again(told: &Told, exchange: Uuid, trace_id: Option<String>) -> Self {
        Self { exchange, trace_id, told: told.clone() }
    }

    /// What it tells.
    pub fn told(&self) -> &Told {
        &self.told
    }

    /// The exchange it is about.
    pub fn exchange(&self) -> Uuid {
        self.exchange
    }

    /// The caller's trace.
    pub(super) fn trace_id(&self) -> Option<&str> {
        self.trace_id.as_deref()
    }

    /// What it tells as `copy` says it. That is read back from what was spelled out: a host without a journal has nothing of it in
    /// memory, and what is said again is not read again.
    pub(super) fn copied(&self, copy: impl FnOnce(&Entry) -> Vec<u8>) -> &[u8] {
        self.told.0.copied.get_or_init(|| {
            let mut text = vec![b'{'];
            self.write(&mut text);
            text.push(b'}');
            let entry = serde_json::from_slice(&text).expect("an entry that was spelled out can be read");
            copy(&entry).into()
        })
    }

    /// Where it is counted.
    pub(super) fn tally(&self) -> &Tally {
        &self.told.0.tally
    }

    /// Writes its members as they stand in a line, without braces.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        let trace_id = self.trace_id.as_ref().map_or_else(|| "null".into(), json);
        let exchange = self.exchange.hyphenated();
        // A Vec takes every byte.
        let _ = write!(
            out,
            r#""event":{},"exchange_id":"{exchange}","trace_id":{trace_id},{}"#,
            self.told.0.event, self.told.0.facts
        );
    }
}

/// The entry from its facts on, in the order of a record.
#[derive(Serialize)]
struct Facts<'a> {
    workload: &'a Option<WorkloadPart>,
    peer: &'a Option<PeerPart>,
    socket: &'a Option<String>,
    service_manager: &'a Option<ErrandPart>,
    credential: &'a Option<CredentialPart>,
    target: &'a Option<TargetPart>,
    holder: &'a Option<HolderPart>,
    policy: &'a Option<PolicyPart>,
    issuer_response: &'a Option<IssuerPart>,
    api_response: &'a Option<ApiPart>,
    ledger: &'a Option<LedgerPart>,
    detail: &'a Option<String>,
}

/// A struct as JSON, without its braces.
pub(super) fn members(of: &impl Serialize) -> String {
    let mut text = json(of);
    text.pop();
    text.remove(0);
    text
}

fn json(of: &impl Serialize) -> String {
    serde_json::to_string(of).expect("text, numbers and structs of them serialize")
}

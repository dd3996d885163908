//! A ledger in order, for whoever wants to put one out of order.

use super::{
    Agent, Entry, EventType, Host, LedgerPart, Outcome, Record,
    chain::Chain,
    files::{HISTORY, LATEST, LINES, leaves_from, lines_from},
    tree::leaf,
};
use crate::{keys::CheckpointKey, secret::hex};

/// The files of a ledger, by name.
pub type Files = Vec<(String, Vec<u8>)>;

/// A ledger of which only these lines are known: nobody has signed anything.
pub fn unsigned(lines: &[u8]) -> Files {
    vec![(LINES.into(), lines.to_vec()), (HISTORY.into(), vec![]), (LATEST.into(), vec![])]
}

/// Six records in two files, of which the first is closed, and checkpoints of all but the first.
pub fn good(key: &CheckpointKey) -> Files {
    let (mut files, mut leaves) = ([String::new(), String::new()], Vec::new());
    let (mut history, mut latest) = (String::new(), String::new());
    let mut chain = Chain::default();
    for seq in 0..6 {
        let line = serde_json::to_string(&record(seq, hex(&chain.prev))).expect("a record can be written");
        chain.push(leaf(line.as_bytes()));
        if seq < CLOSED {
            leaves.extend(chain.prev);
        }
        let file = &mut files[usize::from(seq >= CLOSED)];
        file.push_str(&line);
        file.push('\n');
        if seq > 0 {
            latest = key.sign(chain.size(), chain.tree.root());
            history.push_str(&latest);
        }
    }
    let [closed, current] = files;
    vec![
        (LINES.into(), current.into()),
        (HISTORY.into(), history.into()),
        (LATEST.into(), latest.into()),
        (lines_from(0), closed.into()),
        (leaves_from(0), leaves),
    ]
}

/// How many records are in the first file.
const CLOSED: u64 = 3;

fn record(seq: u64, prev: String) -> Record {
    let mut entry = Entry::new(EventType::Denial, Outcome::Denied, uuid::Uuid::nil());
    if seq + 1 == CLOSED {
        entry = Entry::new(EventType::LedgerTurned, Outcome::Success, uuid::Uuid::nil());
        entry.ledger = Some(LedgerPart { first: 0, kept_from: 0 });
    }
    Record {
        v: 1,
        seq,
        time: "2026-01-01T00:00:00.000Z".into(),
        boot_ns: 0,
        boot_id: "b".into(),
        host: Host { id: None, name: "h".into() },
        agent: Agent { version: "0".into(), instance: "i".into(), config_digest: "d".into() },
        entry,
        prev,
    }
}

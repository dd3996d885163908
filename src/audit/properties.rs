//! A ledger in order, for whoever wants to put one out of order.

use super::{
    files::{HISTORY, LATEST, LINES},
    tree::{Frontier, leaf},
};
use crate::{keys::CheckpointKey, secret::hex};

/// The files of a ledger, by name.
pub type Files = [(&'static str, Vec<u8>); 3];

/// A ledger of which only these lines are known: nobody has signed anything.
pub fn unsigned(lines: &[u8]) -> Files {
    [(LINES, lines.to_vec()), (HISTORY, vec![]), (LATEST, vec![])]
}

/// Three records, a checkpoint of two and one of all three.
pub fn good(key: &CheckpointKey) -> Files {
    let (mut lines, mut history, mut latest) = (String::new(), String::new(), String::new());
    let (mut frontier, mut prev) = (Frontier::default(), [0; 32]);
    for seq in 0..3 {
        let line = format!(r#"{{"v":1,"seq":{seq},"prev":"{}","time":"2026-01-01T00:00:00Z"}}"#, hex(&prev));
        prev = leaf(line.as_bytes());
        frontier.push(prev);
        lines.push_str(&line);
        lines.push('\n');
        if seq > 0 {
            latest = key.sign(frontier.size(), frontier.root());
            history.push_str(&latest);
        }
    }
    [(LINES, lines.into()), (HISTORY, history.into()), (LATEST, latest.into())]
}

//! What must hold of any text that is looked through, whoever wrote it.

use std::path::Path;

use jiff::Timestamp;

use super::{Form, Salt, look, plan};
use crate::clock::SeededDice;

/// What each `@` becomes: a secret that no name can hold.
const SECRET: &str = "C4n4ry!Kb9+";

const FILES: [&str; 10] =
    ["a.env", "a.service", "a.conf", "a.yaml", "a.json", "a.sh", ".netrc", ".pgpass", "a.md", "Dockerfile"];

/// Nothing panics; lines are lines of the text; and neither a finding nor a plan holds a secret.
pub fn scan(bytes: &[u8]) {
    let Some((which, bytes)) = bytes.split_first() else { return };
    let text = String::from_utf8_lossy(bytes).replace('@', SECRET);
    let path = Path::new(FILES[usize::from(*which) % FILES.len()]);
    let salt = Salt::new(&*SeededDice::from_seed(1));
    let lines = text.lines().count();
    for hit in look(path, &text, Timestamp::UNIX_EPOCH, &salt) {
        assert!((1..=lines).contains(&hit.line), "{hit:?}");
        let name = hit.name.as_deref().unwrap_or_default();
        assert!(name.bytes().all(|byte| byte.is_ascii_graphic()) && name.len() <= 64, "{hit:?}");
        assert!(!format!("{hit:?}").contains(SECRET));
    }
    if [Form::Env, Form::Unit].contains(&Form::of(path, &text)) {
        let about = plan::About { owner: "shop@example.com".into(), ..plan::About::default() };
        if let Ok(plan) = plan::plan(&[(path.to_owned(), text.into())], &about, Timestamp::UNIX_EPOCH) {
            let told = plan.text();
            assert!(!told.contains(SECRET), "{told}");
            assert!(told.bytes().all(|byte| byte == b'\n' || (0x20..0x7f).contains(&byte)), "{told:?}");
        }
    }
}

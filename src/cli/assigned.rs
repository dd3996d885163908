//! `NAME=CREDENTIAL.FIELD`, as `exec` and `env-file` take it. In go words of the command line; out comes what each variable means.

use std::collections::{BTreeMap, btree_map::Entry};

use super::Exit;
use crate::deliver::{Source, Variable};

/// Reads one.
pub(super) fn assignment(text: &str) -> Result<(Variable, Source), String> {
    let (variable, source) =
        text.split_once('=').ok_or("write NAME=CREDENTIAL.FIELD, as in TOKEN=ledger.token")?;
    Ok((variable.parse()?, source.parse()?))
}

/// All that `flag` was said for, each variable once.
pub(super) fn assigned(flag: &str, said: &[(Variable, Source)]) -> Result<BTreeMap<Variable, Source>, Exit> {
    let mut all = BTreeMap::new();
    for (variable, source) in said {
        match all.entry(variable.clone()) {
            Entry::Vacant(place) => drop(place.insert(source.clone())),
            Entry::Occupied(_) => {
                let twice = format!("{flag} {variable} is there twice: a variable has one meaning");
                return Err(Exit::new(Exit::USAGE, twice));
            }
        }
    }
    Ok(all)
}

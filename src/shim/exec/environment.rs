//! What the program's environment is. In go the environment that we were started with and the values; out comes the program's, or
//! the name of the variable that cannot be. Pure, and tells names only, never a value.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::{OsStr, OsString},
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
};

use crate::{
    deliver::{Source, Variable},
    secret::Secret,
};

/// What a kernel takes as one variable, with its name, the `=` and the end (`MAX_ARG_STRLEN`, execve(2)).
const LONGEST: usize = 128 * 1024;

/// Variables and their values. What is said twice is there once.
pub type Environment = BTreeMap<OsString, OsString>;

/// What is passed on of the environment that we were started with.
#[derive(Clone, Debug, Default)]
pub struct Passes {
    /// Nothing but what is kept by name.
    pub clean: bool,
    /// What is passed on by name, those included that say where the agent is.
    pub keep: BTreeSet<Variable>,
}

/// Why a value cannot be in a variable.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Uncarried {
    /// An environment is a list of texts that end with NUL.
    #[error(
        "{variable}: {source_of} has a NUL in it, which no environment can carry: deliver it as a file (--file)"
    )]
    Nul {
        /// The variable.
        variable: Variable,
        /// Where its value comes from.
        source_of: Source,
    },
    /// The kernel would refuse to start the program.
    #[error(
        "{variable}: {source_of} is longer than the 128 KiB that one variable can have: deliver it as a file (--file)"
    )]
    TooLong {
        /// The variable.
        variable: Variable,
        /// Where its value comes from.
        source_of: Source,
    },
}

/// What we were started with, less what is not passed on: the variables that tell where the agent is are for whoever asks it. Of
/// a name that is there twice, what counts is the first, as for getenv(3).
pub fn base(given: impl IntoIterator<Item = (OsString, OsString)>, passes: &Passes) -> Environment {
    let mut environment = Environment::new();
    for (name, value) in given {
        let known = name.to_str().and_then(|name| name.parse::<Variable>().ok());
        let kept = known.as_ref().is_some_and(|name| passes.keep.contains(name));
        let brokers = name.as_bytes().starts_with(b"KEYBEARER_");
        if kept || !(passes.clean || brokers) {
            environment.entry(name).or_insert(value);
        }
    }
    environment
}

/// Whether a value can be in a variable at all.
///
/// # Errors
/// [`Uncarried`].
pub fn carries(variable: &Variable, source: &Source, value: &Secret) -> Result<(), Uncarried> {
    let (variable, source_of) = (variable.clone(), source.clone());
    if value.expose().contains(&0) {
        return Err(Uncarried::Nul { variable, source_of });
    }
    if variable.as_str().len() + value.len() + 2 > LONGEST {
        return Err(Uncarried::TooLong { variable, source_of });
    }
    Ok(())
}

/// Adds values, over what is there of the same name.
pub fn add<'a>(environment: &mut Environment, values: impl IntoIterator<Item = (&'a Variable, &'a Secret)>) {
    for (variable, value) in values {
        // What the program is started with: from here on it is the program's.
        let value = OsString::from_vec(value.expose().to_vec());
        environment.insert(OsStr::new(variable.as_str()).to_owned(), value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(pairs: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
        pairs.iter().map(|(name, value)| (name.into(), value.into())).collect()
    }

    fn names(environment: &Environment) -> Vec<&str> {
        environment.keys().map(|name| name.to_str().unwrap()).collect()
    }

    #[test]
    fn what_tells_where_the_agent_is_is_not_passed_on_unless_it_is_asked_for() {
        // LEGACY 2.1, environment base: an agent's own variables reached the child.
        let all = given(&[("PATH", "/bin"), ("KEYBEARER_SOCKET", "/run/x"), ("KEYBEARER_CONFIG", "/etc/x")]);
        assert_eq!(names(&base(all.clone(), &Passes::default())), ["PATH"]);
        let keep = ["KEYBEARER_SOCKET".parse().unwrap()].into();
        assert_eq!(names(&base(all.clone(), &Passes { clean: false, keep })), ["KEYBEARER_SOCKET", "PATH"]);
        let keep = ["PATH".parse().unwrap(), "HOME".parse().unwrap()].into();
        assert_eq!(names(&base(all, &Passes { clean: true, keep })), ["PATH"]);
    }

    #[test]
    fn what_is_there_twice_is_passed_on_once_and_the_first_counts() {
        let environment = base(given(&[("A", "1"), ("B", "x"), ("A", "2")]), &Passes::default());
        assert_eq!(environment.get(OsStr::new("A")), Some(&"1".into()));
        assert_eq!(environment.len(), 2);
    }

    #[test]
    fn names_and_values_that_are_no_text_are_passed_on_as_they_are() {
        let odd = OsString::from_vec(vec![b'A', 0xff]);
        let environment = base([(odd.clone(), odd.clone())], &Passes::default());
        assert_eq!(environment.get(&odd), Some(&odd));
    }

    #[test]
    fn a_value_replaces_what_had_its_name() {
        let mut environment = base(given(&[("TOKEN", "old"), ("A", "1")]), &Passes::default());
        let (name, value) = ("TOKEN".parse().unwrap(), Secret::new("a $b 'c' \"d\"\n\\e"));
        add(&mut environment, [(&name, &value)]);
        assert_eq!(environment.get(OsStr::new("TOKEN")), Some(&"a $b 'c' \"d\"\n\\e".into()));
        assert_eq!(environment.len(), 2);
    }

    #[test]
    fn what_no_environment_carries_is_named_and_not_shown() {
        let (variable, source) = ("TOKEN".parse().unwrap(), "ledger.token".parse().unwrap());
        assert_eq!(carries(&variable, &source, &Secret::new("line\nline")), Ok(()));
        let nul = carries(&variable, &source, &Secret::new("canary\0")).unwrap_err().to_string();
        assert!(nul.contains("TOKEN") && nul.contains("ledger.token") && nul.contains("--file"), "{nul}");
        assert!(!nul.contains("canary"));
        let longest = Secret::new(vec![b'x'; LONGEST - "TOKEN=".len() - 1]);
        assert_eq!(carries(&variable, &source, &longest), Ok(()));
        let longer = Secret::new(vec![b'x'; LONGEST - "TOKEN=".len()]);
        assert!(matches!(carries(&variable, &source, &longer), Err(Uncarried::TooLong { .. })));
    }
}

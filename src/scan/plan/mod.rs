//! How one program's secrets move over. In go its env files and units; out comes a plan: an identity in the form of agent.toml, what
//! to run next, and whom to ask for what, so that as little as possible stays as it is. Values are read to be recognised, and never
//! written anywhere.

mod asks;
mod group;
mod settings;

use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp, civil::Date, tz::TimeZone};
use zeroize::Zeroizing;

pub use asks::Ask;

use super::{Form, Kind, Place, judge, reading, shown};
use group::Proposal;

/// How long an exception is proposed for: the days of S36, whole ones.
const EXCEPTION_DAYS: i64 = 89;

/// What an operator says of the program.
#[derive(Clone, Debug, Default)]
pub struct About {
    /// The identity's name; by default that of the unit or of the first file.
    pub identity: Option<String>,
    /// The unit it runs in.
    pub unit: Option<String>,
    /// The user it runs as.
    pub user: Option<String>,
    /// Who answers for it; empty if nobody was named.
    pub owner: String,
}

/// Why there is no plan.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum NoPlan {
    /// Nothing in it looks like an assignment.
    #[error("{0}: there is no NAME=value in it: name env files and units")]
    NoVariables(String),
    /// There is nothing to move.
    #[error("there is no secret in it that is known as one: see what keybearer scan says")]
    NoSecrets,
}

/// A variable of a program.
pub(super) struct Found {
    name: String,
    value: Zeroizing<String>,
    /// What it is, if it is a secret.
    kind: Option<Kind>,
    place: Place,
    file: usize,
    line: usize,
}

/// What to do.
#[derive(Debug)]
pub struct Plan {
    /// The identity's name.
    pub identity: String,
    /// Its match, as written.
    matches: String,
    owner: String,
    until: Date,
    today: Date,
    proposals: Vec<Proposal>,
    /// The names of the variables that stay where they are.
    pub stay: Vec<String>,
    files: Vec<PathBuf>,
    /// Env files of the unit that were not given.
    unnamed: Vec<PathBuf>,
    unit: Option<String>,
}

/// Makes a plan for the program whose files these are, each with its text.
///
/// # Errors
/// [`NoPlan`].
pub fn plan(files: &[(PathBuf, Zeroizing<String>)], about: &About, now: Timestamp) -> Result<Plan, NoPlan> {
    let mut found: Vec<Found> = vec![];
    let (mut unit, mut user) = (about.unit.clone(), about.user.clone());
    let mut unnamed: Vec<PathBuf> = vec![];
    for (file, (path, text)) in files.iter().enumerate() {
        let form = if Form::of(path, text) == Form::Unit { Form::Unit } else { Form::Env };
        if form == Form::Unit {
            unit = unit.or_else(|| unit_of(path));
            user = user.or_else(|| setting(text, "User"));
            unnamed.extend(reading::environment_files(text).into_iter().map(PathBuf::from));
        }
        let before = found.len();
        let mut others = 0;
        reading::spots(form, text, &mut |spot| {
            if form == Form::Unit && spot.place == Place::Text {
                others += 1;
                return;
            }
            if super::fit(spot.name, spot.value, now).is_none() {
                return;
            }
            // The last one counts, as everywhere.
            found.retain(|other| other.name != spot.name);
            found.push(Found {
                name: spot.name.to_owned(),
                value: Zeroizing::new(spot.value.to_owned()),
                kind: judge(form, &spot, now).map(|(kind, _)| kind),
                place: spot.place,
                file,
                line: spot.line,
            });
        });
        if found.len() == before && others == 0 {
            return Err(NoPlan::NoVariables(shown(path)));
        }
    }
    let stem =
        |path: &Path| path.file_name().map(|name| name.to_string_lossy().trim_start_matches('.').to_owned());
    let given = about
        .identity
        .clone()
        .or_else(|| unit.clone())
        .or_else(|| stem(&files.first()?.0))
        .unwrap_or_default();
    let identity = group::name_of(given.split(['.', '@']).next().unwrap_or(""), "app");
    let today = TimeZone::UTC.to_datetime(now).date();
    let until = now.checked_add(SignedDuration::from_hours(24 * EXCEPTION_DAYS)).unwrap_or(Timestamp::MAX);
    let plain = |file: &Path| {
        file.to_string_lossy().bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/._-@+".contains(&byte))
    };
    unnamed.retain(|file| plain(file) && files.iter().all(|(given, _)| !same_file(given, file)));
    // As sed reads them: what ends a line of DOS is part of it.
    let lines: Vec<Vec<&str>> = files.iter().map(|(_, text)| text.split('\n').collect()).collect();
    let (proposals, stay) = group::proposals(&found, &lines);
    if proposals.is_empty() {
        return Err(NoPlan::NoSecrets);
    }
    Ok(Plan {
        matches: settings::matches(&identity, unit.as_deref(), user.as_deref()),
        identity,
        owner: about.owner.clone(),
        until: TimeZone::UTC.to_datetime(until).date(),
        today,
        proposals,
        stay,
        files: files.iter().map(|(path, _)| path.clone()).collect(),
        unnamed,
        unit,
    })
}

/// Whether `given`, relative or not, can be the file that a unit names.
fn same_file(given: &Path, named: &Path) -> bool {
    given == named || given.file_name() == named.file_name() && !given.is_absolute()
}

/// `shop.service`, of the unit itself or of a drop-in of it.
fn unit_of(path: &Path) -> Option<String> {
    const KINDS: [&str; 3] = [".service", ".scope", ".socket"];
    let names =
        path.ancestors().take(2).filter_map(Path::file_name).map(|name| name.to_string_lossy().into_owned());
    let unit = |name: String| {
        let name = name.strip_suffix(".d").map_or(name.clone(), str::to_owned);
        let plain =
            |name: &str| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.@:".contains(&byte));
        (KINDS.iter().any(|kind| name.ends_with(kind)) && plain(&name)).then_some(name)
    };
    names.filter_map(unit).next()
}

fn setting(text: &str, key: &str) -> Option<String> {
    let value = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix(key)?.trim_start().strip_prefix('='))
        .next_back()?
        .trim();
    let plain =
        !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    plain.then(|| value.to_owned())
}

#[cfg(test)]
mod tests;

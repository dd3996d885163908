//! `keybearer migrate`: a proposal for one program's env files and units. It reads them and changes nothing.

use std::{
    fs::OpenOptions,
    io::{Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use clap::Args;
use zeroize::Zeroizing;

use super::{Exit, paint};
use crate::{
    clock::SystemClock,
    scan::{
        plan::{About, plan},
        shown,
    },
};

/// More than any env file has.
const MOST: u64 = 1 << 20;

#[derive(Args, Debug)]
pub(super) struct Migrate {
    /// Env files and units of one program, of any dialect; where two set one variable, the last counts.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The identity's name; by default that of the unit or of the first file.
    #[arg(long, value_name = "NAME")]
    identity: Option<String>,
    /// The unit that the program runs in; by default the one that is read.
    #[arg(long, value_name = "UNIT")]
    unit: Option<String>,
    /// The user that the program runs as; by default the User= of the unit that is read.
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// Who answers for it.
    #[arg(long, value_name = "WHO")]
    owner: Option<String>,
    /// A new file for the proposal, with mode 0600; by default it is printed.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

impl Migrate {
    pub(super) fn run(self) -> Result<(), Exit> {
        let usage = |message: &str| Err(Exit::new(Exit::USAGE, message));
        if self.identity.as_deref().is_some_and(|name| !crate::policy::name_is_sound(name)) {
            return usage(
                "--identity: a name is 1 to 63 of a-z, 0-9, - and _, beginning with a letter or digit",
            );
        }
        if self
            .unit
            .as_deref()
            .is_some_and(|unit| ![".service", ".scope", ".socket"].iter().any(|kind| unit.ends_with(kind)))
        {
            return usage("--unit: it has to end in .service, .scope or .socket");
        }
        let plain =
            |text: &str| text.bytes().all(|byte| (0x20..0x7f).contains(&byte) && !b"\"\\".contains(&byte));
        if [&self.unit, &self.user, &self.owner].into_iter().flatten().any(|text| !plain(text)) {
            return usage("--unit, --user and --owner are printable ASCII without quotes and backslashes");
        }
        let files = self
            .files
            .iter()
            .map(|file| Ok((file.clone(), text_of(file)?)))
            .collect::<Result<Vec<_>, Exit>>()?;
        let about = About {
            identity: self.identity,
            unit: self.unit,
            user: self.user,
            owner: self.owner.unwrap_or_default(),
        };
        let now = SystemClock::shared().wall();
        let plan = plan(&files, &about, now).map_err(|error| Exit::new(Exit::DATA, error.to_string()))?;
        let text = plan.text();
        let Some(out) = self.out else { return paint::line(text.trim_end()) };
        // A new file or none: what lies there already, a link for instance, is somebody's.
        let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&out);
        let written =
            made.and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()));
        written.map_err(|error| Exit::new(Exit::IO, format!("{}: {error}", shown(&out))))?;
        paint::line(&format!(
            "{}: the proposal for {}; read it before you use it",
            shown(&out),
            plan.identity
        ))
    }
}

/// The text of a regular file. Nothing else is waited for.
fn text_of(path: &Path) -> Result<Zeroizing<String>, Exit> {
    let failed = |what: String| Exit::new(Exit::IO, format!("{}: {what}", shown(path)));
    let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOCTTY;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits().cast_signed())
        .open(path)
        .map_err(|error| failed(error.to_string()))?;
    if !file.metadata().is_ok_and(|about| about.is_file()) {
        return Err(failed("it is no regular file".into()));
    }
    let mut bytes = Zeroizing::new(Vec::new());
    file.take(MOST + 1).read_to_end(&mut bytes).map_err(|error| failed(error.to_string()))?;
    if bytes.len() as u64 > MOST {
        return Err(failed("it is larger than 1 MiB, which no env file is".into()));
    }
    match std::str::from_utf8(&bytes) {
        Ok(text) => Ok(Zeroizing::new(text.to_owned())),
        Err(_) => Err(failed("it is no UTF-8".into())),
    }
}

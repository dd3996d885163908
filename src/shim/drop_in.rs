//! The override that moves a unit over (`keybearer drop-in UNIT`). In go the unit as systemd has it, and the identity that its programs
//! are; out comes the text of a drop-in, with the reasons in it, or why there can be none. Pure: whoever calls asks systemd.
//!
//! Three ways. `LoadCredential=` needs no wrapper, and its files are the unit's alone, on a file system that is never swapped out; but
//! before systemd 260 a unit reads them only when it starts. `keybearer exec` delivers variables and files, and keeps up with
//! rotations. `EnvironmentFile=` is for variables of programs that must not be wrapped.

use std::{path::Path, str::FromStr, time::Duration};

use crate::{
    deliver::AtRotation,
    policy::{Identity, Per},
};

/// The name of the file in the unit's directory of drop-ins.
pub const FILE: &str = "50-keybearer.conf";

/// systemd reads credentials again at a reload from this version on (`RefreshOnReload=`).
const REFRESHES: u32 = 260;

/// A unit is not restarted more often than this for the sake of a credential.
const SELDOM: Duration = Duration::from_secs(2 * 3600);

/// The longest unit name and credential id together: `\0`, 16 digits, `/unit/` and a `/` go with them into an address of 108 bytes.
const MAX_ADDRESS: usize = 108 - 1 - 16 - 6 - 1;

/// How credentials get into a unit.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Way {
    /// `LoadCredential=`.
    LoadCredential,
    /// `keybearer exec` in `ExecStart=`.
    Exec,
    /// `EnvironmentFile=`, written in `ExecStartPre=`.
    EnvFile,
}

impl FromStr for Way {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "load-credential" => Ok(Self::LoadCredential),
            "exec" => Ok(Self::Exec),
            "env-file" => Ok(Self::EnvFile),
            _ => Err("it has to be load-credential, exec or env-file".into()),
        }
    }
}

/// A unit as systemd has it, as far as it is known.
#[derive(Clone, Debug, Default)]
pub struct Unit {
    /// Its name.
    pub name: String,
    /// What `systemctl cat` says of it; none if there is no such unit here.
    pub text: Option<String>,
    /// The version of systemd that runs it; none if it is not known, and then it is taken for an old one.
    pub systemd: Option<u32>,
}

/// Where things are on this host.
#[derive(Clone, Copy, Debug)]
pub struct Places<'a> {
    /// This program.
    pub program: &'a Path,
    /// The agent's socket for programs, where it is not the one that they look for.
    pub workload: Option<&'a Path>,
    /// The agent's socket for the service manager.
    pub systemd: &'a Path,
}

/// Why there is no drop-in of that kind.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct NoDropIn(Vec<String>);

/// The drop-in for `unit`, whose programs are `identity`: the way that is asked for, or the first that will do.
///
/// # Errors
/// [`NoDropIn`] with every reason, each of which says what to do.
pub fn drop_in(
    unit: &Unit,
    identity: &Identity,
    places: Places<'_>,
    way: Option<Way>,
) -> Result<String, NoDropIn> {
    let of = Of { unit, identity, places };
    let (way, because) = match way {
        Some(way) => (way, vec![]),
        None => {
            let against = [of.against_load(), of.against_loading_once()].concat();
            match against.is_empty() {
                true => (Way::LoadCredential, vec![]),
                false => (Way::Exec, against),
            }
        }
    };
    let (against, body) = match way {
        Way::LoadCredential => (of.against_load(), of.load_credential()),
        Way::Exec => (of.against_exec(), of.exec(&because)),
        Way::EnvFile => (of.against_env_file(), of.env_file()),
    };
    if against.is_empty() { Ok(of.headed(&body)) } else { Err(NoDropIn(against)) }
}

/// What a drop-in is made of.
struct Of<'a> {
    unit: &'a Unit,
    identity: &'a Identity,
    places: Places<'a>,
}

impl Of<'_> {
    /// The ids of the credentials that the unit loads, with the variable that says where each is.
    fn ids(&self) -> Vec<(Option<String>, String)> {
        let files = &self.identity.delivery.files;
        if files.is_empty() {
            return self.identity.credentials.keys().map(|name| (None, name.to_string())).collect();
        }
        files.iter().map(|(variable, source)| (Some(variable.to_string()), source.to_string())).collect()
    }

    /// The credentials that the unit gets in any way.
    fn names(&self) -> Vec<&str> {
        let delivery = &self.identity.delivery;
        let mut names: Vec<&str> = match delivery.sources().next() {
            Some(_) => delivery.sources().map(|source| &*source.credential).collect(),
            None => self.identity.credentials.keys().map(|name| &**name).collect(),
        };
        names.sort_unstable();
        names.dedup();
        names
    }

    /// The shortest life that one of them has.
    fn life(&self) -> Duration {
        let lives = self.names().into_iter().filter_map(|name| self.identity.credentials.get(name));
        lives.map(|rule| rule.max_ttl).min().unwrap_or_default()
    }

    /// How often what the unit read at its start has to be read again: as long as the issuer answers, the agent hands out nothing that
    /// has less than a tenth of its life left. It renews at two thirds, give or take a tenth; but a CA may say when, up to nine tenths.
    fn every(&self) -> Duration {
        self.life() / 10
    }

    /// Why `LoadCredential=` cannot be.
    fn against_load(&self) -> Vec<String> {
        let identity = &self.identity;
        let name = &identity.name;
        let mut against = Vec::new();
        if !identity.service_manager {
            against.push(format!("say service_manager = \"allowed\" in [identities.{name}] to have the service manager ask for it"));
        }
        if let Some(variable) = identity.delivery.env.keys().next() {
            against.push(format!("{variable} holds a value, and LoadCredential= gives files only"));
        }
        for credential in self.names() {
            let of_one = identity.credentials.get(credential).is_some_and(|rule| rule.per == Per::Process);
            if of_one {
                against.push(format!("{credential} is for one process (per = \"process\"), and that does not run yet when systemd asks"));
            }
        }
        for (_, id) in self.ids() {
            if self.unit.name.len() + id.len() > MAX_ADDRESS {
                against.push(format!(
                    "{id} cannot be asked for: the unit's name and the credential's have at most {MAX_ADDRESS} characters together"
                ));
            }
        }
        against
    }

    /// Why it should not be: what is read once would not be good for long enough, or its program knows better.
    fn against_loading_once(&self) -> Vec<String> {
        if self.refreshes() || self.setting("Type").as_deref() == Some("oneshot") {
            return vec![];
        }
        let mut against = Vec::new();
        if self.every() < SELDOM {
            against.push(format!(
                "what it gets lives {} at most, and systemd before {REFRESHES} reads credentials only when the unit starts",
                length(self.life())
            ));
        }
        let gentle = |does: &&AtRotation| matches!(does, AtRotation::Signal(_) | AtRotation::Command(_));
        if self.identity.delivery.at_rotation.values().find(gentle).is_some() {
            against.push(format!(
                "it takes a rotation without a restart (at_rotation), and systemd before {REFRESHES} cannot give it one"
            ));
        }
        against
    }

    fn against_exec(&self) -> Vec<String> {
        let mut against = self.nothing_declared();
        if let Some(Err(why)) = self.exec_start() {
            against.push(why);
        }
        if self.stays() && self.setting("Type").as_deref() == Some("forking") {
            against.push(
                "with Type=forking its program leaves, and keybearer exec could not stay with it to keep it fresh: have it stay in the \
                 foreground, with another Type="
                    .into(),
            );
        }
        against
    }

    /// Whether `keybearer exec` stays with the program: for files, which it replaces, or because a rotation has to reach it.
    fn stays(&self) -> bool {
        let delivery = &self.identity.delivery;
        !delivery.files.is_empty() || delivery.at_rotation.values().any(|does| *does != AtRotation::Nothing)
    }

    fn against_env_file(&self) -> Vec<String> {
        let mut against = self.nothing_declared();
        if let Some(variable) = self.identity.delivery.files.keys().next() {
            against.push(format!(
                "{variable} holds the path of a file, which an EnvironmentFile= does not keep: use --way exec"
            ));
        }
        against
    }

    fn nothing_declared(&self) -> Vec<String> {
        if self.identity.delivery.sources().next().is_some() {
            return vec![];
        }
        let name = &self.identity.name;
        vec![format!(
            "nothing says what its programs get: declare env or file in [identities.{name}.deliver], as env = {{ TOKEN = \"CREDENTIAL.token\" }}"
        )]
    }

    fn refreshes(&self) -> bool {
        self.unit.systemd.is_some_and(|version| version >= REFRESHES)
    }

    /// The last value of a key of its `[Service]` section.
    fn setting(&self, key: &str) -> Option<String> {
        assignments(self.unit.text.as_deref()?, key).pop()
    }

    /// Its commands, wrapped; none if they are not known.
    fn exec_start(&self) -> Option<Result<Vec<String>, String>> {
        let mut commands: Vec<String> = Vec::new();
        for command in assignments(self.unit.text.as_deref()?, "ExecStart") {
            // An empty one takes back those before it.
            if command.is_empty() { commands.clear() } else { commands.push(command) }
        }
        if commands.is_empty() {
            return None;
        }
        Some(commands.iter().map(|command| self.wrapped(command)).collect())
    }

    fn wrapped(&self, command: &str) -> Result<String, String> {
        let rest = command.trim_start_matches(['-', ':', '+', '!', '@', '|']);
        let prefix = &command[..command.len() - rest.len()];
        if prefix.contains(['@', '|']) {
            return Err(format!(
                "its ExecStart= begins with {prefix:?}: keybearer exec passes no name of the program on and starts no shell; write \
                 that line without it, or use another way"
            ));
        }
        Ok(format!("{prefix}{} exec -- {rest}", word(self.places.program)))
    }

    fn load_credential(&self) -> String {
        let mut text = String::new();
        let mut out = |line: &str| say(&mut text, line);
        for against in self.against_loading_once() {
            out(&format!("# Mind: {against}."));
        }
        out(
            "# The service manager asks the agent as the unit starts, and its file is this unit's alone. It cannot be told that there is",
        );
        out(
            "# nothing: it makes an empty file, and the unit fails because of the check, with the reason in the agent's log and ledger.",
        );
        let socket = self.places.systemd.display().to_string().replace('%', "%%");
        for (_, id) in self.ids() {
            out(&format!("LoadCredential={id}:{socket}"));
        }
        for (_, id) in self.ids() {
            out(&format!("ExecStartPre=/usr/bin/test -s %d/{id}"));
        }
        for (variable, id) in self.ids() {
            match variable {
                Some(variable) => out(&format!("Environment={variable}=%d/{id}")),
                None => out(&format!("# Its program finds it at $CREDENTIALS_DIRECTORY/{id}.")),
            }
        }
        self.renewal(&mut text, true);
        text
    }

    /// How what was read at the start is read again while it is good.
    fn renewal(&self, text: &mut String, loaded: bool) {
        let (life, every) = (length(self.life()), self.every().as_secs().max(1));
        let name = &self.unit.name;
        let mut out = |line: &str| say(text, line);
        out("");
        if self.setting("Type").as_deref() == Some("oneshot") {
            out(&format!(
                "# It runs once and ends: what it reads lives {life} at most, and is new at each start."
            ));
        } else if loaded && self.refreshes() {
            out(&format!(
                "# What it reads lives {life} at most. A reload has systemd read it again; a timer has to say when, for example"
            ));
            out("# (as systemd describes it; this was tested with systemd 252, which has none of it):");
            let timer = format!("keybearer-reload-{}", name.replace(['.', '@', '\\'], "-"));
            out(&format!(
                "#   systemd-run --on-active={every} --on-unit-active={every} --unit={timer} systemctl reload {name}"
            ));
            out("RefreshOnReload=credentials");
        } else if self.every() < SELDOM {
            out(&format!(
                "# It lives {life} at most and is read at the start only. To have a good one always, the unit would have to start"
            ));
            out(
                "# anew every few minutes: this is for a program that needs it at its start and not afterwards.",
            );
        } else {
            out(&format!(
                "# It lives {life} at most and is read at the start only, so the unit starts anew while it is good."
            ));
            out(&format!("RuntimeMaxSec={every}"));
            let splay = self.identity.delivery.splay.as_secs();
            if splay > 0 {
                out(&format!("RuntimeRandomizedExtraSec={splay}"));
            }
            match self.setting("Restart").as_deref() {
                Some("always" | "on-failure" | "on-abnormal") => out("# Its own Restart= starts it again."),
                _ => out("Restart=on-failure"),
            }
        }
    }

    fn exec(&self, because: &[String]) -> String {
        let mut text = String::new();
        let mut out = |line: &str| say(&mut text, line);
        for why in because {
            out(&format!("# Not by LoadCredential=: {why}."));
        }
        out(&format!(
            "# keybearer exec fetches what [identities.{}.deliver] declares and becomes the program, or stays with",
            self.identity.name
        ));
        out("# it where a rotation has to reach it. It asks as this very process, in this unit.");
        out("ExecStart=");
        match self.exec_start() {
            Some(Ok(commands)) => commands.iter().for_each(|command| out(&format!("ExecStart={command}"))),
            // Of commands that cannot be wrapped the caller is told.
            Some(Err(_)) => {}
            None => {
                out("# This unit is not on this host, or has no ExecStart=: put its command here.");
                out(&format!("ExecStart={} exec -- /path/to/program", word(self.places.program)));
            }
        }
        let notifies = matches!(self.setting("Type").as_deref(), Some("notify" | "notify-reload"));
        if self.stays() {
            out("# Who stays hands the stop on: systemd tells it alone, and ends what is left afterwards.");
            out("KillMode=mixed");
        }
        if self.stays() && notifies {
            out("# The program is not the main process now, but it is the one that says when it is ready.");
            out("NotifyAccess=all");
        }
        self.socket(&mut text);
        text
    }

    fn env_file(&self) -> String {
        let mut text = String::new();
        let mut out = |line: &str| say(&mut text, line);
        let directory = format!("keybearer-{}", self.identity.name);
        let program = word(self.places.program);
        out(
            "# Written by the unit itself, as its own user, before its program starts; systemd reads it as root. `-`, because it reads it",
        );
        out(
            "# for the command that writes it, too: that this fails the unit is what says that there is nothing.",
        );
        out(&format!("RuntimeDirectory={directory}"));
        out(&format!("ExecStartPre={program} env-file --format systemd --out %t/{directory}/environment"));
        out(&format!("EnvironmentFile=-%t/{directory}/environment"));
        self.socket(&mut text);
        self.renewal(&mut text, false);
        text
    }

    /// Where the agent is, if it is not where every program looks.
    fn socket(&self, text: &mut String) {
        if let Some(socket) = self.places.workload {
            say(
                text,
                &format!("Environment=KEYBEARER_SOCKET={}", socket.display().to_string().replace('%', "%%")),
            );
        }
    }

    fn headed(&self, body: &str) -> String {
        let Unit { name, .. } = self.unit;
        let identity = &self.identity.name;
        format!(
            "# {name} gets its credentials from Keybearer, as {identity}. This belongs at\n\
             #   /etc/systemd/system/{name}.d/{FILE}\n\
             # and counts after `systemctl daemon-reload` and the next start.\n\
             [Unit]\n\
             Wants=keybearer.service\n\
             After=keybearer.service\n\
             \n\
             [Service]\n\
             {body}"
        )
    }
}

/// Every value that a key of `[Service]` is given in what `systemctl cat` shows, in order; our own drop-in aside.
fn assignments(text: &str, key: &str) -> Vec<String> {
    let (mut values, mut in_service, mut ours) = (Vec::new(), false, false);
    let mut pending: Option<String> = None;
    for line in text.lines() {
        let trimmed = line.trim();
        if let Some(comment) = trimmed.strip_prefix(['#', ';']) {
            // `systemctl cat` heads each file with its path; elsewhere a comment is left out, even within a line that goes on.
            if pending.is_none() && comment.trim().starts_with('/') {
                (in_service, ours) = (false, comment.trim().ends_with(&format!("/{FILE}")));
            }
            continue;
        }
        let whole = pending.take().map_or_else(|| trimmed.to_owned(), |before| format!("{before} {trimmed}"));
        if let Some(before) = whole.strip_suffix('\\') {
            pending = Some(before.trim_end().to_owned());
            continue;
        }
        if whole.starts_with('[') {
            in_service = whole == "[Service]";
        } else if let Some((name, value)) = whole.split_once('=')
            && in_service
            && !ours
            && name.trim() == key
        {
            values.push(value.trim().to_owned());
        }
    }
    values
}

/// A path as one word of a command line of systemd's.
fn word(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/._-+@:".contains(&byte));
    if plain {
        return text;
    }
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            '%' | '$' => quoted.extend([c, c]),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// A length of time for people.
fn length(length: Duration) -> String {
    match length.as_secs() {
        seconds if seconds >= 7200 && seconds.is_multiple_of(3600) => format!("{} hours", seconds / 3600),
        seconds if seconds >= 120 && seconds.is_multiple_of(60) => format!("{} minutes", seconds / 60),
        seconds => format!("{seconds} seconds"),
    }
}

fn say(text: &mut String, line: &str) {
    text.push_str(line);
    text.push('\n');
}

//! A plan as text: the identity in the form of agent.toml, the commands that come after it, and the list of wishes. In goes a
//! [`Plan`]; out comes what an operator reads, fills in and runs.

use std::fmt::Write as _;

use super::{
    Plan,
    group::{Cut, From, Proposal, Way, field},
};
use crate::scan::{Place, shown};

const FILL_IN: &str = "# FILL IN";

/// The table that says which processes are meant.
pub(super) fn matches(identity: &str, unit: Option<&str>, user: Option<&str>) -> String {
    let user = user.map(|user| format!("user = \"{}\"", quoted(user)));
    let (unit, guessed) = match (unit, &user) {
        (Some(unit), _) => (Some(format!("unit = \"{}\"", quoted(unit))), false),
        (None, Some(_)) => (None, false),
        (None, None) => (Some(format!("unit = \"{identity}.service\"")), true),
    };
    let parts: Vec<String> = unit.into_iter().chain(user).collect();
    let mark = if guessed { format!(" {FILL_IN}: the unit that it runs in") } else { String::new() };
    format!("match = {{ {} }}{mark}", parts.join(", "))
}

impl Plan {
    /// All of it: settings with comments, which as a whole are TOML.
    pub fn text(&self) -> String {
        let mut out = self.settings();
        out.push_str("\n# What to run, in this order.\n");
        for step in self.steps() {
            let _ = writeln!(out, "#   {step}");
        }
        out.push_str("\n# Whom to ask for what, so that it becomes dynamic.\n");
        for (number, ask) in self.asks().into_iter().enumerate() {
            let _ = writeln!(out, "#   {}. {}:", number + 1, ask.whom);
            wrapped(&mut out, "#      ", &ask.what);
        }
        out
    }

    /// The settings alone.
    pub fn settings(&self) -> String {
        let identity = &self.identity;
        let mut out = String::new();
        let files: Vec<String> = self.files.iter().map(|file| shown(file)).collect();
        let _ = writeln!(
            out,
            "# Proposed on {} for {}. No value of it is in here.",
            self.today,
            files.join(", ")
        );
        let _ = writeln!(
            out,
            "# Put it into /etc/keybearer/agent.toml.d/{identity}.toml, and fill in what is marked."
        );
        for file in &self.unnamed {
            let _ = writeln!(
                out,
                "# Note: the unit reads {} too, which is not among these: name it as well.",
                shown(file)
            );
        }
        let _ = writeln!(out, "\n[identities.{identity}]");
        let mark = if self.owner.is_empty() { format!(" {FILL_IN}") } else { String::new() };
        let _ = writeln!(out, "owner = \"{}\"{mark}", quoted(self.owner()));
        let _ = writeln!(out, "assurance = \"standard\"");
        let _ = writeln!(out, "{}", self.matches);
        for proposal in &self.proposals {
            self.credential(&mut out, proposal);
        }
        self.delivery(&mut out);
        self.issuers(&mut out);
        out
    }

    fn owner(&self) -> &str {
        if self.owner.is_empty() { "owner@example.com" } else { &self.owner }
    }

    fn credential(&self, out: &mut String, proposal: &Proposal) {
        let identity = &self.identity;
        let was: Vec<String> = proposal.from.iter().map(|from| from.variable.clone()).collect();
        out.push('\n');
        let what = match (proposal.way, was.is_empty()) {
            (_, true) => "A certificate in the place of the one whose key lies in a file.".to_owned(),
            (Way::Sealed, _) => {
                format!("{} ({}): it stays as it is for now, sealed.", was.join(", "), proposal.kind.words())
            }
            (way, _) => {
                format!("{} ({}): in its place {}.", was.join(", "), proposal.kind.words(), way.words())
            }
        };
        wrapped(out, "# ", &what);
        for note in &proposal.notes {
            wrapped(out, "# ", &format!("Note: {note}."));
        }
        let _ = writeln!(out, "[identities.{identity}.credentials.{}]", proposal.name);
        match proposal.way {
            Way::Sealed => out.push_str(&self.sealed(proposal)),
            Way::Lease => {
                let _ = writeln!(out, "issuer = \"bao\"\nclient_id = \"{identity}\"");
                let _ = writeln!(
                    out,
                    "lease = {{ at = \"database/creds/{identity}\", fields = [\"username\", \"password\"] }} {FILL_IN}: the role"
                );
            }
            Way::Client => {
                let _ = writeln!(out, "issuer = \"corp\"\nclient_id = \"{identity}\" {FILL_IN}");
                let _ = writeln!(
                    out,
                    "resource = \"https://{}.example.com\" {FILL_IN}: the API it is for",
                    proposal.name
                );
                self.bearer(
                    out,
                    "the program sends it as it is; with forward, or once it sends DPoP proofs, this can go",
                );
            }
            Way::Role => {
                let _ = writeln!(out, "issuer = \"corp\"\nclient_id = \"{identity}\" {FILL_IN}");
                let _ = writeln!(out, "resource = \"https://sts.amazonaws.com\"");
                self.bearer(out, "AWS STS takes bearer tokens only");
            }
            Way::Certificate => {
                let _ = writeln!(
                    out,
                    "issuer = \"mesh\"\nclient_id = \"{identity}\" {FILL_IN}: the provisioner or role"
                );
                let _ = writeln!(
                    out,
                    "certificate = {{ uri = [\"spiffe://example.com/{identity}\"] }} {FILL_IN}: its name"
                );
                let _ = writeln!(out, "key_export = \"allowed\"");
            }
        }
    }

    fn bearer(&self, out: &mut String, reason: &str) {
        let _ = writeln!(out, "binding = \"bearer\"\n{}", self.exception(reason));
    }

    fn exception(&self, reason: &str) -> String {
        let owner = quoted(self.owner());
        format!("exception = {{ owner = \"{owner}\", reason = \"{reason}\", until = \"{}\" }}", self.until)
    }

    /// The table of a secret that stays as it is: the one place that knows how such a one is written.
    fn sealed(&self, proposal: &Proposal) -> String {
        let exception = self.exception(&format!("no dynamic way for this {} yet", proposal.kind.words()));
        format!("kind = \"sealed\"\nfields = [\"{}\"]\n{exception}\n", field(proposal.kind))
    }

    fn delivery(&self, out: &mut String) {
        let _ = writeln!(
            out,
            "\n# The program gets them by the names it knows, through keybearer exec or a drop-in."
        );
        let _ = writeln!(out, "[identities.{}.deliver]", self.identity);
        let list = |sources: &dyn Fn(&Proposal) -> Vec<(String, &'static str)>| {
            let all = self.proposals.iter().flat_map(|one| {
                sources(one)
                    .into_iter()
                    .map(move |(variable, field)| format!("{variable} = \"{}.{field}\"", one.name))
            });
            all.collect::<Vec<_>>().join(", ")
        };
        for (key, list) in [("env", list(&|one| one.env.clone())), ("file", list(&|one| one.files.clone()))] {
            if !list.is_empty() {
                let _ = writeln!(out, "{key} = {{ {list} }}");
            }
        }
        // A variable of a running program cannot be changed.
        let again = self.proposals.iter().filter(|one| !one.env.is_empty());
        let again: Vec<String> = again.map(|one| format!("{} = \"restart\"", one.name)).collect();
        if !again.is_empty() {
            let _ = writeln!(out, "at_rotation = {{ {} }}", again.join(", "));
        }
    }

    fn issuers(&self, out: &mut String) {
        let has = |ways: &[Way]| self.proposals.iter().any(|one| ways.contains(&one.way));
        if !has(&[Way::Lease, Way::Client, Way::Role, Way::Certificate]) {
            return;
        }
        out.push_str(
            "\n# The issuers that these name. Leave out what agent.toml has already, and fill in the rest.\n",
        );
        if has(&[Way::Lease]) {
            out.push_str("# [issuers.bao]\n# kind = \"openbao\"\n# url = \"https://bao.example.com:8200\"\n");
        }
        if has(&[Way::Client, Way::Role]) {
            out.push_str("# [issuers.corp]\n# kind = \"oauth\"\n# issuer = \"https://idp.example.com\"\n");
        }
        if has(&[Way::Certificate]) {
            out.push_str("# [issuers.mesh]\n# kind = \"step-ca\"\n# url = \"https://ca.example.com:9000\"\n# roots = \"/etc/keybearer/mesh-root.pem\"\n");
        }
    }

    /// Commands and deeds, in order.
    pub fn steps(&self) -> Vec<String> {
        let identity = &self.identity;
        let mut steps = vec!["keybearer check".to_owned(), "keybearer reload".to_owned()];
        for proposal in self.proposals.iter().filter(|one| one.way == Way::Sealed) {
            steps.extend(proposal.from.iter().map(|from| self.seal(proposal, from)));
        }
        if self.proposals.iter().any(|one| one.way != Way::Sealed) {
            steps.push(format!("keybearer keys export {identity}    # for whoever is asked below"));
        }
        match &self.unit {
            Some(unit) => steps.push(format!(
                "keybearer drop-in {unit}    # prints the override; then daemon-reload and restart"
            )),
            None => steps.push(
                "keybearer exec -- PROGRAM    # or keybearer drop-in UNIT, if it runs in one".to_owned(),
            ),
        }
        let mut old: Vec<String> = vec![];
        for (at, file) in self.files.iter().enumerate() {
            let here = self.proposals.iter().flat_map(|one| &one.from).filter(|from| from.file == at);
            let names: Vec<&str> = here.map(|from| from.variable.as_str()).collect();
            if !names.is_empty() {
                old.push(format!("{} out of {}", names.join(", "), shown(file)));
            }
        }
        if !old.is_empty() {
            steps.push(format!("then take {}", old.join(", and ")));
            steps.push("and have each of them changed where it is checked: it has lain in a file".to_owned());
        }
        steps
    }

    /// How a value gets from its file to the agent without being seen.
    fn seal(&self, proposal: &Proposal, from: &From) -> String {
        let into = format!("keybearer seal {} {}", self.identity, proposal.name);
        let path = &self.files[from.file];
        let plain = path.to_str().filter(|path| {
            path.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/._-@+".contains(&byte))
                && *path == shown(path.as_ref())
        });
        let by_hand = format!(
            "{into}    # asks for the value of {} ({}:{}), which is not shown",
            from.variable,
            shown(path),
            from.line
        );
        let (Some(path), true) = (plain, from.place != Place::UnitArguments) else { return by_hand };
        let path = if path.starts_with('-') { format!("./{path}") } else { path.to_owned() };
        match from.how {
            Cut::Between(head, tail) => {
                let head = head.replacen('N', &from.variable, 1).replace('.', "\\.");
                let script = if tail.is_empty() {
                    format!("{}s/^{head}//p", from.line)
                } else {
                    format!("{}s/^{head}\\(.*\\){tail}$/\\1/p", from.line)
                };
                // The quotes around the script are those that it does not hold.
                let script = if script.contains('\'') {
                    format!("\"{}\"", script.replace('$', "\\$"))
                } else {
                    format!("'{script}'")
                };
                format!("sed -n {script} {path} | {into}")
            }
            Cut::Read if from.place == Place::Text && path.starts_with('/') => format!(
                "systemd-run --quiet --wait --pipe -p EnvironmentFile={path} sh -c 'printf %s \"${}\"' | {into}",
                from.variable
            ),
            Cut::Read => by_hand,
        }
    }
}

impl Way {
    fn words(self) -> &'static str {
        match self {
            Self::Lease => "a user of the database for each process, made and ended by OpenBao",
            Self::Client => "access tokens, fetched with the identity's key",
            Self::Role => "a token that AWS takes for a role",
            Self::Certificate => "a certificate of a CA, renewed by the agent",
            Self::Sealed => "nothing yet",
        }
    }
}

/// For a TOML string in quotes.
fn quoted(text: &str) -> String {
    text.chars().filter(|c| (' '..='~').contains(c) && !['"', '\\'].contains(c)).collect()
}

fn wrapped(out: &mut String, head: &str, text: &str) {
    let mut line = head.to_owned();
    for word in text.split_whitespace() {
        if line.len() + word.len() > 110 && line.len() > head.len() {
            let _ = writeln!(out, "{}", line.trim_end());
            line = head.to_owned();
        }
        line.push_str(word);
        line.push(' ');
    }
    let _ = writeln!(out, "{}", line.trim_end());
}

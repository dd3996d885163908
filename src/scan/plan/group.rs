//! Which variables belong together, and which way each group takes. In go a program's variables; out come proposals, each one
//! credential, and the names of what is no secret and stays.

use std::collections::BTreeSet;

use super::{Found, Kind, Place};
use crate::scan::name;

/// The way that ends a static secret.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Way {
    /// A user of a database for each process.
    Lease,
    /// A client that proves itself by its key, and gets tokens.
    Client,
    /// A token that AWS takes for a role.
    Role,
    /// A certificate of a CA.
    Certificate,
    /// It stays as it is for now, sealed.
    Sealed,
}

/// One credential.
#[derive(Debug)]
pub(super) struct Proposal {
    pub(super) name: String,
    pub(super) way: Way,
    pub(super) kind: Kind,
    /// Variables that get a field's value.
    pub(super) env: Vec<(String, &'static str)>,
    /// Variables that get the path of a file with a field's value.
    pub(super) files: Vec<(String, &'static str)>,
    /// The variables that hold a secret now.
    pub(super) from: Vec<From>,
    /// What the program has to be told, beside the settings.
    pub(super) notes: Vec<String>,
}

/// Where a secret lies now.
#[derive(Debug)]
pub(super) struct From {
    pub(super) variable: String,
    pub(super) file: usize,
    pub(super) line: usize,
    pub(super) place: Place,
    pub(super) how: Cut,
}

/// How the line of a secret is cut so that the value is left, quotes undone.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Cut {
    /// All behind this is the value, up to that.
    Between(&'static str, &'static str),
    /// It takes somebody who reads the file as the service manager does.
    Read,
}

/// The proposals for `found`, and the names of the variables that stay.
pub(super) fn proposals(found: &[Found], lines: &[Vec<&str>]) -> (Vec<Proposal>, Vec<String>) {
    let mut groups = Groups { found, lines, taken: BTreeSet::new(), made: vec![] };
    for (at, one) in found.iter().enumerate() {
        if groups.taken.contains(&at) {
            continue;
        }
        if let Some(kind) = one.kind {
            groups.secret(at, kind);
        } else if is_key_file(&one.name, &one.value) {
            groups.key_file(at);
        }
    }
    let stay = found
        .iter()
        .enumerate()
        .filter(|(at, _)| !groups.taken.contains(at))
        .map(|(_, one)| one.name.clone())
        .collect();
    (groups.made, stay)
}

struct Groups<'a> {
    found: &'a [Found],
    lines: &'a [Vec<&'a str>],
    /// Those that belong to a proposal.
    taken: BTreeSet<usize>,
    made: Vec<Proposal>,
}

impl Groups<'_> {
    fn secret(&mut self, at: usize, kind: Kind) {
        let one = &self.found[at];
        match kind {
            Kind::DatabaseUrl => {
                let libpq = one.value.starts_with("postgres");
                let stem = stem(&one.name, &["URL", "URI", "DSN"]);
                let names = if libpq {
                    ("PGUSER".to_owned(), "PGPASSWORD".to_owned())
                } else {
                    (format!("{stem}_USERNAME"), format!("{stem}_PASSWORD"))
                };
                let mut proposal = self.begin(at, kind, Way::Lease, "database");
                proposal.notes.push(format!(
                    "{} stays without user and password; the program takes them from {} and {}{}",
                    one.name,
                    names.0,
                    names.1,
                    if libpq {
                        ", as libpq does by itself"
                    } else {
                        ", or from a file that keybearer template writes"
                    }
                ));
                proposal.env = vec![(names.0, "username"), (names.1, "password")];
                self.made.push(proposal);
            }
            Kind::DatabasePassword => {
                let stem = stem(&one.name, &["PASSWORD", "PASSWD", "PASS", "PWD"]);
                let user = self.sibling(&stem, &["USER", "USERNAME", "LOGIN"]);
                let mut proposal = self.begin(at, kind, Way::Lease, "database");
                let variable = match user {
                    Some(user) => {
                        self.taken.insert(user);
                        self.found[user].name.clone()
                    }
                    None => {
                        let variable = if stem == "PG" { "PGUSER".into() } else { format!("{stem}_USER") };
                        proposal.notes.push(format!(
                            "each lease has a user of its own: the program has to take it from {variable}"
                        ));
                        variable
                    }
                };
                proposal.env = vec![(variable, "username"), (one.name.clone(), "password")];
                self.made.push(proposal);
            }
            Kind::ClientSecret => {
                let stem = stem(&one.name, &["SECRET", "CLIENT_SECRET", "CLIENTSECRET"]);
                let mut proposal = self.begin(at, kind, Way::Client, "client");
                let variable = format!("{}_TOKEN", stem.trim_end_matches("_CLIENT"));
                proposal.notes.push(format!(
                    "the program asks for no tokens any more: it takes the one in {variable}; or the agent calls the API for it (forward)"
                ));
                if let Some(id) = self.sibling(&stem, &["ID", "CLIENT_ID"]) {
                    proposal.notes.push(format!(
                        "{} is the client_id, unless a new client is registered",
                        self.found[id].name
                    ));
                }
                proposal.env = vec![(variable, "token")];
                self.made.push(proposal);
            }
            Kind::AwsKey => {
                let mut proposal = self.begin(at, kind, Way::Role, "aws");
                for (other, two) in self.found.iter().enumerate() {
                    let of_aws = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"]
                        .contains(&two.name.as_str());
                    if other != at && (two.kind == Some(Kind::AwsKey) || of_aws) && self.taken.insert(other) {
                        proposal.from.push(self.from(other));
                    }
                }
                proposal.files = vec![("AWS_WEB_IDENTITY_TOKEN_FILE".into(), "token")];
                proposal
                    .notes
                    .push("AWS_ROLE_ARN goes beside it, in Environment= of the unit: it is no secret".into());
                self.made.push(proposal);
            }
            Kind::PrivateKey if of_tls(&one.name) => {
                let mut proposal = self.begin(at, kind, Way::Certificate, "tls");
                proposal.env = vec![(one.name.clone(), "key")];
                let stem = stem(&one.name, &["PRIVATE_KEY", "KEY", "KEY_PEM"]);
                if let Some(chain) = self.sibling(&stem, &["CERT", "CERTIFICATE", "CRT", "CERT_PEM"]) {
                    self.taken.insert(chain);
                    proposal.env.push((self.found[chain].name.clone(), "chain"));
                }
                self.made.push(proposal);
            }
            kind => {
                let mut proposal = self.begin(at, kind, Way::Sealed, "secret");
                let field = field(kind);
                match one.place {
                    Place::UnitArguments => proposal.notes.push(format!(
                        "the program takes it as the argument --{}: it has to take it from a variable or a file, since arguments are open to \
                         every user",
                        one.name.trim_start_matches('-')
                    )),
                    _ if is_variable(&one.name) => proposal.env = vec![(one.name.clone(), field)],
                    _ => proposal.notes.push(format!("{} is no name that a variable can have: name one in deliver.env", one.name)),
                }
                self.made.push(proposal);
            }
        }
    }

    /// A variable that names the file of a private key: the key of a certificate.
    fn key_file(&mut self, at: usize) {
        let one = &self.found[at];
        let mut proposal = self.begin(at, Kind::PrivateKey, Way::Certificate, "tls");
        proposal.from.clear();
        proposal.files = vec![(one.name.clone(), "key")];
        for (ends, field) in [
            (
                &["CERT", "CERT_FILE", "CERT_PATH", "CERTIFICATE", "CERTIFICATE_FILE", "CRT", "CRT_FILE"][..],
                "chain",
            ),
            (&["CA", "CA_FILE", "CA_CERT", "CACERT", "CA_PATH", "ROOTCERT", "CA_BUNDLE"][..], "bundle"),
        ] {
            let stem = stem(&one.name, &["PRIVATE_KEY_FILE", "KEY_FILE", "KEY_PATH", "KEYFILE", "KEY"]);
            if let Some(other) = self.sibling(&stem, ends) {
                self.taken.insert(other);
                proposal.files.push((self.found[other].name.clone(), field));
            }
        }
        proposal.notes.push("the files are replaced at each renewal: a program that reads them once is told by signal:HUP or restart".into());
        self.made.push(proposal);
    }

    fn begin(&mut self, at: usize, kind: Kind, way: Way, otherwise: &str) -> Proposal {
        self.taken.insert(at);
        let name = match way {
            Way::Lease | Way::Role | Way::Certificate => otherwise.to_owned(),
            Way::Client | Way::Sealed => credential_name(&self.found[at].name, otherwise),
        };
        let numbered = (2..).map(|number| format!("{name}-{number}"));
        let free = |name: &String| self.made.iter().all(|other| other.name != *name);
        let name = std::iter::once(name.clone()).chain(numbered).find(free).expect("numbers do not end");
        let from = vec![self.from(at)];
        Proposal { name, way, kind, env: vec![], files: vec![], from, notes: vec![] }
    }

    fn from(&self, at: usize) -> From {
        let one = &self.found[at];
        let line = self
            .lines
            .get(one.file)
            .and_then(|lines| lines.get(one.line.checked_sub(1)?))
            .copied()
            .unwrap_or("");
        From {
            variable: one.name.clone(),
            file: one.file,
            line: one.line,
            place: one.place,
            how: cut(line, &one.name, &one.value),
        }
    }

    /// The variable that is called like `stem` with another end.
    fn sibling(&self, stem: &str, ends: &[&str]) -> Option<usize> {
        self.found.iter().enumerate().position(|(at, one)| {
            !self.taken.contains(&at)
                && ends.iter().any(|end| {
                    let joined = [format!("{stem}_{end}"), format!("{stem}{end}")];
                    joined.iter().any(|name| name.eq_ignore_ascii_case(&one.name))
                })
        })
    }
}

/// How the value is had from its line, if it stands there as it is.
fn cut(line: &str, name: &str, value: &str) -> Cut {
    let whole = [
        ("", "=", ""),
        ("", "=\"", "\""),
        ("", "='", "'"),
        ("export ", "=", ""),
        ("export ", "=\"", "\""),
        ("export ", "='", "'"),
        ("Environment=", "=", ""),
        ("Environment=\"", "=", "\""),
        ("Environment='", "=", "'"),
    ];
    let same = |(head, mark, tail): &(&str, &str, &str)| {
        !value.is_empty()
            && line
                .strip_prefix(head)
                .and_then(|rest| rest.strip_prefix(name)?.strip_prefix(mark)?.strip_suffix(tail))
                == Some(value)
    };
    match whole.iter().find(|form| same(form)) {
        Some((head, mark, tail)) => Cut::Between(form_of(head, mark), tail),
        None => Cut::Read,
    }
}

/// What stands around the name, with `N` for it: a pattern of sed's.
fn form_of(head: &str, mark: &str) -> &'static str {
    match (head, mark) {
        ("", "=") => "N=",
        ("", "=\"") => "N=\"",
        ("", "='") => "N='",
        ("export ", "=") => "export N=",
        ("export ", "=\"") => "export N=\"",
        ("export ", "='") => "export N='",
        ("Environment=", _) => "Environment=N=",
        ("Environment=\"", _) => "Environment=\"N=",
        _ => "Environment='N=",
    }
}

/// `name` without the first of `ends` that it ends in.
fn stem(name: &str, ends: &[&str]) -> String {
    let small = name.to_ascii_uppercase();
    let cut = ends.iter().filter(|end| small.ends_with(*end)).map(|end| end.len()).max().unwrap_or(0);
    let stem = &name[..name.len() - cut];
    let stem = stem.trim_end_matches('_');
    if stem.is_empty() { "DATABASE".into() } else { stem.to_ascii_uppercase().replace(['-', '.'], "_") }
}

fn is_variable(name: &str) -> bool {
    name.parse::<crate::deliver::Variable>()
        .is_ok_and(|name| !name.steers_the_loader() && !name.is_the_brokers())
}

/// The name of the one value that is sealed: as what will take its place has it.
pub(super) fn field(kind: Kind) -> &'static str {
    match kind {
        Kind::Password | Kind::DatabasePassword | Kind::UrlPassword | Kind::DatabaseUrl => "password",
        Kind::PrivateKey
        | Kind::GoogleServiceAccount
        | Kind::AgeKey
        | Kind::Key
        | Kind::VendorKey(_)
        | Kind::AzureKey => "key",
        _ => "token",
    }
}

fn of_tls(name: &str) -> bool {
    name::words(name).iter().any(|word| {
        ["tls", "ssl", "https", "mtls", "cert", "certificate", "server", "x509"].contains(&word.as_str())
            || word.contains("ssl")
    })
}

fn is_key_file(variable: &str, value: &str) -> bool {
    let words = name::words(variable);
    let key = words.iter().any(|word| word.ends_with("key") || word == "keyfile");
    let public = words
        .iter()
        .any(|word| ["public", "pub", "ssh", "host", "gpg", "signing", "api"].contains(&word.as_str()));
    let path = value.starts_with('/') && [".pem", ".key"].iter().any(|end| value.ends_with(end));
    key && !public && path
}

/// A name for the credential, from that of the variable.
fn credential_name(variable: &str, otherwise: &str) -> String {
    const ROLES: [&str; 17] = [
        "password",
        "passwd",
        "pass",
        "pwd",
        "secret",
        "token",
        "key",
        "api",
        "apikey",
        "access",
        "auth",
        "client",
        "private",
        "url",
        "uri",
        "dsn",
        "credentials",
    ];
    let words = name::words(variable);
    let kept = words.iter().rposition(|word| !ROLES.contains(&word.as_str())).map_or(0, |last| last + 1);
    name_of(&words[..kept].join("-"), otherwise)
}

/// A name that the settings take (`policy::name_is_sound`).
pub(super) fn name_of(text: &str, otherwise: &str) -> String {
    let mut name: String = text
        .to_ascii_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' })
        .collect();
    name.truncate(48);
    let name = name.trim_matches(['-', '_']);
    if crate::policy::name_is_sound(name) { name.to_owned() } else { otherwise.to_owned() }
}

//! Static secrets: where they stand, and what would take their place. In go texts (`look`) or paths (`walk`); out come findings
//! that name the place and never the secret, and for the files of one program a plan to move it over (`plan`).
//!
//! Nothing here talks to an agent, and nothing here changes a file.

mod accepted;
mod exclude;
mod form;
mod kind;
mod name;
pub mod plan;
#[cfg(any(test, fuzzing))]
pub(crate) mod properties;
mod reading;
mod shape;
mod value;
mod walk;

use std::{
    fmt,
    path::{Path, PathBuf},
};

use jiff::Timestamp;

pub use accepted::{Accepted, NotAccepted};
pub use exclude::Pattern;
pub use form::Form;
pub use kind::{Kind, Weight};
pub use walk::{Looked, Scope, Why, walk};

use crate::{
    clock::Dice,
    secret::{Fingerprint, scrubbed},
};
use name::Says;
use reading::Spot;

/// A file with more findings than these is told of once more, not each time.
const MOST_IN_A_FILE: usize = 500;

/// Where in a file a value stands, as far as that says who can read it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Place {
    /// Nowhere in particular: whoever can read the file.
    Text,
    /// `Environment=` of a unit, which the service manager tells everybody.
    UnitEnvironment,
    /// Arguments of a command in a unit, which /proc shows to everybody.
    UnitArguments,
    /// `SetCredential=`, which is as open as the unit's file.
    UnitCredential,
    /// An image's `ENV` or `ARG`.
    Image,
    /// An entry of a Kubernetes Secret.
    KubernetesSecret,
}

impl Place {
    /// Where it is, after the word for the secret; empty if that says nothing.
    pub fn words(self) -> &'static str {
        match self {
            Self::Text => "",
            Self::UnitEnvironment => "in a unit's Environment=",
            Self::UnitArguments => "in a unit's command line",
            Self::UnitCredential => "in a unit's SetCredential=",
            Self::Image => "in an image's ENV or ARG",
            Self::KubernetesSecret => "in a manifest",
        }
    }
}

/// Makes likenesses that mean something in this run only: who sees one learns nothing of the secret, however weak.
#[derive(Debug)]
pub struct Salt([u8; 16]);

impl Salt {
    /// A new one.
    pub fn new(dice: &dyn Dice) -> Self {
        let mut salt = [0; 16];
        dice.fill(&mut salt);
        Self(salt)
    }

    fn likeness(&self, value: &str) -> Likeness {
        let salted = zeroize::Zeroizing::new([&self.0, value.as_bytes()].concat());
        Likeness(Fingerprint::of(&salted))
    }
}

/// Whether two findings are of one secret.
#[derive(Clone, Copy, Eq, Hash, PartialEq)]
pub struct Likeness(Fingerprint);

impl fmt::Debug for Likeness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Likeness(..)")
    }
}

/// A secret in a text.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Hit {
    /// The line, from 1.
    pub line: usize,
    /// The name it stands behind, if it has one that is fit to be shown.
    pub name: Option<String>,
    /// What it is.
    pub kind: Kind,
    /// Where it stands.
    pub place: Place,
    /// How many of its name and kind stand before it in the file.
    nth: usize,
    like: Likeness,
}

/// Who can read a secret, the most first (S47).
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Exposure {
    /// Every user of this host.
    Everybody,
    /// A group besides the owner.
    Group,
    /// The owner and root.
    Owner,
}

impl Exposure {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Everybody => "everybody",
            Self::Group => "group",
            Self::Owner => "owner",
        }
    }
}

/// A secret in a file.
#[derive(Clone, Debug)]
pub struct Finding {
    /// The file.
    pub path: PathBuf,
    /// What was found in it.
    pub hit: Hit,
    /// Who can read it.
    pub exposure: Exposure,
    /// The file's mode.
    pub mode: u32,
    /// When the file was last changed: so old is the secret at least.
    pub modified: Timestamp,
    /// Whether the file is in a git repository, whose history may keep what is taken out.
    pub repository: bool,
}

impl Finding {
    /// What stays the same from run to run, and says nothing of the secret: where it is and what it is. For lists of what is accepted.
    pub fn id(&self) -> String {
        let name = self.hit.name.as_deref().unwrap_or("");
        let told = format!("{}\0{name}\0{}\0{}", self.path.display(), self.hit.kind.code(), self.hit.nth);
        Fingerprint::of(told.as_bytes()).to_string()[..12].to_owned()
    }

    /// The order in which to see to them: what opens most, is most open and has lain there longest comes first (S47).
    fn order(&self) -> (Weight, Exposure, Timestamp, PathBuf, usize) {
        (self.hit.kind.weight(), self.exposure, self.modified, self.path.clone(), self.hit.line)
    }

    /// Whether it is the secret of `other` too.
    pub fn is_like(&self, other: &Self) -> bool {
        self.hit.like == other.hit.like
    }
}

/// A path fit to be printed: no control characters, and no secret if somebody has made one a name.
pub fn shown(path: &Path) -> String {
    let text = path.to_string_lossy();
    let mut out = String::new();
    let mut from = 0;
    for (at, _) in shape::shapes(&text, Timestamp::UNIX_EPOCH) {
        out.push_str(&text[from..at.start]);
        out.push_str("[secret]");
        from = at.end;
    }
    out.push_str(&text[from..]);
    scrubbed(&out, 4096)
}

/// Looks for secrets in a text that is named `path`.
pub fn look(path: &Path, text: &str, now: Timestamp, salt: &Salt) -> Vec<Hit> {
    let form = Form::of(path, text);
    let mut found: Vec<(Hit, String)> = vec![];
    let google = text.contains("\"service_account\"");
    reading::spots(form, text, &mut |spot| {
        if found.len() < MOST_IN_A_FILE
            && let Some((kind, value)) = judge(form, &spot, now)
        {
            let hit = Hit {
                line: spot.line,
                name: fit(spot.name, value, now),
                kind,
                place: spot.place,
                nth: 0,
                like: salt.likeness(value),
            };
            let again = found.iter().rev().take_while(|(other, _)| other.line == spot.line);
            if !again.into_iter().any(|(other, _)| other.like == hit.like) {
                found.push((hit, value.to_owned()));
            }
        }
    });
    for (at, line) in text.lines().enumerate() {
        for (range, kind) in shape::shapes(line, now) {
            let value = &line[range];
            let there = |(hit, other): &(Hit, String)| {
                hit.line == at + 1
                    && (other.contains(value) || value.contains(other.as_str()) || hit.kind == kind)
            };
            if found.len() < MOST_IN_A_FILE && !found.iter().any(there) {
                let hit = Hit {
                    line: at + 1,
                    name: None,
                    kind,
                    place: Place::Text,
                    nth: 0,
                    like: salt.likeness(value),
                };
                found.push((hit, value.to_owned()));
            }
        }
    }
    // They held the secrets.
    let mut hits: Vec<Hit> = found
        .into_iter()
        .map(|(hit, value)| {
            drop(zeroize::Zeroizing::new(value));
            hit
        })
        .collect();
    hits.sort_by_key(|hit| hit.line);
    let lines: Vec<&str> = text.lines().collect();
    hits.retain(|hit| hit.kind != Kind::PrivateKey || is_open_key(&lines[hit.line.saturating_sub(1)..]));
    for hit in &mut hits {
        if google && hit.kind == Kind::PrivateKey {
            hit.kind = Kind::GoogleServiceAccount;
        }
    }
    // The identifier of a key is no secret, and says only that there is one: not twice.
    let secret_half =
        |hit: &Hit| hit.kind == Kind::AwsKey && is_aws_secret(hit.name.as_deref().unwrap_or(""));
    if hits.iter().any(secret_half) {
        hits.retain(|hit| hit.kind != Kind::AwsKey || secret_half(hit));
    }
    for at in 0..hits.len() {
        let (before, hit) = (&hits[..at], &hits[at]);
        hits[at].nth =
            before.iter().filter(|other| (&other.name, other.kind) == (&hit.name, hit.kind)).count();
    }
    hits
}

/// A line of a key, without what a program's text has around it.
fn body(line: &str) -> &str {
    let line = line.trim_start_matches(['"', '\'', '+', ' ', '\t', '\\', ',']);
    line.trim_start_matches(['n', 'r', '\\'])
}

/// Whether the key that begins in the first of `lines` is there and open: programs write its first line without one, and some
/// forms say only below it that they are under a passphrase (RFC 1421 4.6.1.1, OpenSSH's PROTOCOL.key).
fn is_open_key(lines: &[&str]) -> bool {
    let Some((_, rest)) = lines.first().and_then(|line| line.rsplit_once("KEY-----")) else { return true };
    // Within a text in quotes, its lines are parted by escapes.
    let mut below = std::iter::once(rest).chain(lines.iter().skip(1).take(4).copied()).map(body);
    let first = below.find(|line| {
        line.len() >= 16
            && line.bytes().take(16).all(|byte| byte.is_ascii_alphanumeric() || b"+/".contains(&byte))
    });
    let encrypted = |line: &&str| line.contains("Proc-Type: 4,ENCRYPTED");
    let openssh = |line: &str| line.starts_with("b3BlbnNzaC1rZXktdjE") && !line.contains("AAAABG5vbmU");
    first.is_some_and(|line| !openssh(line)) && !lines.iter().take(4).any(encrypted)
}

fn is_aws_secret(name: &str) -> bool {
    let words = name::words(name);
    words.ends_with(&["secret".into(), "access".into(), "key".into()])
        || words.concat().ends_with("secretaccesskey")
}

/// What a value behind a name is, and the part of it that is the secret.
fn judge<'a>(form: Form, spot: &Spot<'a>, now: Timestamp) -> Option<(Kind, &'a str)> {
    let Spot { name, value, place, .. } = *spot;
    let value = value.trim();
    let shaped = shape::shapes(value, now);
    if let Some((range, kind)) = shaped.into_iter().next() {
        return Some((kind, &value[range]));
    }
    if ["auth", "_auth"].contains(&name) && shape::is_basic(value) {
        return Some((Kind::RegistryToken, value));
    }
    if place == Place::KubernetesSecret {
        let open = name::words(name).iter().any(|word| {
            ["user", "username", "host", "port", "namespace", "crt", "ca", "url", "name", "database", "type"]
                .contains(&word.as_str())
        });
        let secret = value.len() >= 4 && !open && value::is_plain(value) && !value::is_stand_in(value);
        return secret.then_some((Kind::KubernetesSecret, value));
    }
    // What names itself a credential, but is one only if chance made it.
    let says = name::says(name).or((place == Place::UnitCredential).then_some(Says::Key))?;
    // Wi-Fi, tunnels and the like: base64 of 32 bytes is what it looks like.
    if !value::is_secret(says, name, value) {
        return None;
    }
    // Between quotes of a program or page, words with blanks are for people.
    if form == Form::Quoted
        && says == Says::Password
        && value.contains(' ')
        && !name.to_ascii_lowercase().contains("phrase")
    {
        return None;
    }
    let words = name::words(name);
    let has = |word: &str| words.iter().any(|one| one == word);
    let kind = match says {
        _ if form == Form::Pgpass => Kind::DatabasePassword,
        _ if is_aws_secret(name) => Kind::AwsKey,
        Says::Password if name::of_database(name) || has("datasource") => Kind::DatabasePassword,
        Says::Password => Kind::Password,
        _ if has("client") && (has("secret") || words.concat().contains("clientsecret")) => {
            Kind::ClientSecret
        }
        _ if has("vault") || has("bao") => Kind::VaultToken,
        _ if has("github") || has("gh") => Kind::GithubToken,
        _ if has("gitlab") => Kind::GitlabToken,
        _ if has("npm") || has("authtoken") || has("pypi") => Kind::RegistryToken,
        _ if has("slack") => Kind::VendorKey("Slack"),
        _ if has("stripe") => Kind::VendorKey("Stripe"),
        _ if has("azure") && has("account") => Kind::AzureKey,
        Says::Key => Kind::Key,
        Says::Secret if has("private") || has("signing") => Kind::Key,
        Says::Secret => Kind::Secret,
    };
    Some((kind, value))
}

/// A name that can be shown: short, plain, and neither a secret itself nor a piece of the one that it stands before.
fn fit(name: &str, value: &str, now: Timestamp) -> Option<String> {
    let plain = (1..=64).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
        && shape::shapes(name, now).is_empty();
    let chance = |part: &str| part.len() >= 10 && value::looks_random(part);
    let piece = name::says(name).is_none() && (value.contains(name) || chance(name));
    (plain && !piece && !name.split(['_', '.', '-']).any(chance)).then(|| name.to_owned())
}

#[cfg(test)]
mod tests;

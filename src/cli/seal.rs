//! `keybearer seal`: an operator puts in a secret that cannot be dynamic yet, or takes it away. It comes by standard input and by
//! nothing else: what stands on a command line, every user of the host can read.

use std::{
    collections::BTreeMap,
    io::{self, BufRead as _, IsTerminal as _, Read as _},
    thread,
};

use clap::Args;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use tokio::sync::oneshot;
use zeroize::Zeroizing;

use super::{Exit, OperatorSocket, agent::told_to_stop, operator::told};
use crate::{client::operator, proto::v1::SealRequest, secret::Secret};

/// As much as the agent takes, and more than any secret is.
const MOST: u64 = 48 << 10;

#[derive(Args, Debug)]
pub(super) struct Seal {
    /// Whose it is.
    identity: String,
    /// For which of its credentials.
    credential: String,
    /// Which of its values, where it has more than one; the others stay as they are.
    #[arg(long, value_name = "NAME")]
    field: Option<String>,
    /// Read all of its values, as one JSON object: {"username": "..", "password": ".."}.
    #[arg(long, conflicts_with = "field")]
    json: bool,
    /// Take away what is sealed for it.
    #[arg(long, conflicts_with_all = ["field", "json"])]
    remove: bool,
    #[command(flatten)]
    socket: OperatorSocket,
}

impl Seal {
    pub(super) async fn run(self) -> Result<(), Exit> {
        // Nobody types a secret for an agent that is not there.
        let mut agent = operator(&self.socket.socket).await?;
        let values = match (self.remove, self.json) {
            (true, _) => BTreeMap::new(),
            (false, true) => all()?,
            (false, false) => {
                let name = self.field.clone().unwrap_or_default();
                BTreeMap::from([(name, one(&self).await?)])
            }
        };
        let request = SealRequest {
            identity: self.identity,
            credential: self.credential,
            values: values.into_iter().map(|(name, value)| (name, value.expose().to_vec())).collect(),
            remove: self.remove,
        };
        told(agent.seal(request).await?.into_inner())
    }
}

/// One value.
async fn one(of: &Seal) -> Result<Secret, Exit> {
    let value = if io::stdin().is_terminal() {
        let field = of.field.as_ref().map(|field| format!(".{field}")).unwrap_or_default();
        typed(&format!("the secret of {}.{}{field} (it is not shown): ", of.identity, of.credential)).await?
    } else {
        given()?
    };
    match value.is_empty() {
        true => Err(Exit::new(Exit::DATA, "standard input holds no secret: nothing was sealed")),
        false => Ok(value),
    }
}

/// What stands in a file or comes through a pipe, but for one line feed at its end.
fn given() -> Result<Secret, Exit> {
    // Room for all of it at once: a buffer that grows leaves copies behind.
    let mut text = Zeroizing::new(Vec::with_capacity(usize::try_from(MOST).unwrap_or_default() + 1));
    io::stdin().lock().take(MOST + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MOST {
        return Err(Exit::new(Exit::DATA, "that is longer than any secret: nothing was sealed"));
    }
    if text.last() == Some(&b'\n') {
        text.pop();
    }
    Ok(Secret::new(std::mem::take(&mut *text)))
}

/// All values at once.
fn all() -> Result<BTreeMap<String, Secret>, Exit> {
    if io::stdin().is_terminal() {
        let message = "--json is for a file or a pipe: type one value with --field NAME";
        return Err(Exit::new(Exit::USAGE, message));
    }
    let text = given()?;
    // What is wrong is told by its place: the reader's own words repeat what it read.
    let values: BTreeMap<String, String> = serde_json::from_slice(text.expose()).map_err(|error| {
        let message = format!(
            "standard input is no JSON object of texts, as {{\"username\": \"..\", \"password\": \"..\"}} is (line {}, column {}): \
             nothing was sealed",
            error.line(),
            error.column()
        );
        Exit::new(Exit::DATA, message)
    })?;
    match values.is_empty() {
        true => Err(Exit::new(Exit::DATA, "the JSON object has no values: nothing was sealed")),
        false => Ok(values.into_iter().map(|(name, value)| (name, Secret::new(value))).collect()),
    }
}

/// A line that somebody types and nobody sees. Whoever interrupts it has his terminal back as it was.
async fn typed(prompt: &str) -> Result<Secret, Exit> {
    let _hidden = Hidden::begin().map_err(|error| {
        let message = format!(
            "what is typed here would be shown ({error}): write the secret into a file, and give that as standard input"
        );
        Exit::new(Exit::IO, message)
    })?;
    eprint!("{prompt}");
    let (tell, told) = oneshot::channel();
    // A thread that nobody waits for: one that reads cannot be told to stop.
    thread::spawn(move || {
        let mut line = Zeroizing::new(String::with_capacity(4096));
        let read = io::stdin().lock().read_line(&mut line);
        if line.ends_with('\n') {
            line.pop();
        }
        // Whoever asked may have been interrupted.
        let _ = tell.send(read.map(|_| Secret::new(std::mem::take(&mut *line))));
    });
    tokio::select! {
        line = told => Ok(line.map_err(|_| Exit::new(Exit::IO, "nothing could be read"))??),
        () = told_to_stop() => Err(Exit::new(Exit::TEMPORARY, "interrupted: nothing was sealed")),
    }
}

/// A terminal that does not show what is typed, until this is dropped.
struct Hidden(Termios);

impl Hidden {
    fn begin() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut hidden = before.clone();
        hidden.local_modes.remove(LocalModes::ECHO);
        // The line's end is shown: without it, what comes next would stand behind the prompt.
        hidden.local_modes.insert(LocalModes::ECHONL);
        tcsetattr(io::stdin(), OptionalActions::Flush, &hidden)?;
        // It answers yes if any of it was done.
        if tcgetattr(io::stdin())?.local_modes.contains(LocalModes::ECHO) {
            return Err(io::Error::other("this terminal does not stop showing it"));
        }
        Ok(Self(before))
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        // There is nothing left to do about a terminal that is gone.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
    }
}

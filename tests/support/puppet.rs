//! The demo workload of the real binary as a test's puppet: a living program that gets credentials and proofs when told to, and
//! can be killed. In go orders; out come its answers in JSON.
#![allow(dead_code, reason = "each test program uses its part")]

use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use serde_json::Value;

use super::support::{BINARY, TestAgent};

/// One of them. It is killed when it is dropped.
pub struct Puppet {
    child: Child,
    orders: ChildStdin,
    told: BufReader<ChildStdout>,
}

impl Puppet {
    /// Started by the real binary.
    pub fn start(agent: &TestAgent) -> Self {
        Self::of(Path::new(BINARY), agent)
    }

    /// Started by a copy of it, which may be another program to the agent.
    pub fn of(program: &Path, agent: &TestAgent) -> Self {
        Self::by(&mut Command::new(program), agent)
    }

    /// Started in a session of its own (setsid(2)), as the service manager starts a service: no kin of any other.
    pub fn apart(agent: &TestAgent) -> Self {
        Self::by(Command::new("setsid").arg(BINARY), agent)
    }

    /// Started by a shell in a session of its own, which has another process carry out the first order: the two are kin.
    pub fn after_a_sibling(agent: &TestAgent) -> Self {
        let shell = r#"IFS= read -r first; echo "$first" | "$0" "$@"; exec "$0" "$@""#;
        Self::under(&["setsid", "sh", "-c", shell], agent)
    }

    /// Started by another program, which gets its command line behind its own arguments.
    pub fn under(wrapper: &[&str], agent: &TestAgent) -> Self {
        Self::by(Command::new(wrapper[0]).args(&wrapper[1..]).arg(BINARY), agent)
    }

    fn by(command: &mut Command, agent: &TestAgent) -> Self {
        let mut child = command
            .args(["dev-workload", "--socket"])
            .arg(agent.socket("agent.sock"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let orders = child.stdin.take().unwrap();
        let told = BufReader::new(child.stdout.take().unwrap());
        Self { child, orders, told }
    }

    /// Gives it an order, and hears what came of it.
    pub fn ask(&mut self, order: &str) -> Value {
        writeln!(self.orders, "{order}").unwrap();
        let mut line = String::new();
        self.told.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|_| panic!("{order}: {line:?}"))
    }

    /// Gets the credential `orders`: its token and its fingerprint.
    pub fn get(&mut self) -> (String, String) {
        let got = self.ask("get orders");
        let text = |name: &str| got[name].as_str().unwrap_or_else(|| panic!("{got}")).to_owned();
        (text("token"), text("fingerprint"))
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Puppet {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

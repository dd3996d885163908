//! `keybearer exec` on the real binary and a real agent: what an unmodified program gets, by hand-over and under supervision, and each
//! of the bugs that programs of this kind are known for, under its name (LEGACY 2.3 in the comments).
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "support/disk.rs"]
mod disk;
mod support;

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::{fs::MetadataExt as _, fs::PermissionsExt as _, process::ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, ExitStatus, Output, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    time::Duration,
};

use disk::Disk;
use keybearer::{clock::SystemClock, dev::Fault, jose::Unverified};
use serde_json::Value;
use support::{BINARY, Issuer, Setup, TestAgent, demo_api, is_root, issuer, jwt_in, skip};

/// Longer than the 30 s that what a program leaves behind has to end by itself: a shell's child to which a signal comes between its fork
/// and its exec loses it, and then it takes those.
const PATIENCE: Duration = Duration::from_secs(60);
const BOTH: [&str; 2] = ["--handover", "--supervise"];
const ENV: [&str; 2] = ["--env", "TOKEN=orders.token"];
/// What makes rotations quick to follow.
const QUICK: [&str; 4] = ["--debounce", "50ms", "--back-off", "20ms"];

/// A loop that obeys traps at once.
const FOREVER: &str = "while :; do sleep 1000 & wait $!; done";

/// An agent whose tokens live for so many seconds.
fn agent(life: u64) -> (Issuer, TestAgent) {
    let issuer = issuer(life);
    let agent = Setup::new(issuer.handle.url()).start(Some(&issuer.handle));
    (issuer, agent)
}

/// `keybearer exec FLAGS -- PROGRAM`, with the agent's socket.
fn exec(agent: &TestAgent, flags: &[&[&str]], program: &[&str]) -> Command {
    let mut command = Command::new(BINARY);
    command.arg("exec").args(flags.concat()).arg("--").args(program);
    command.env("KEYBEARER_SOCKET", agent.socket("agent.sock"));
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A program that runs, line by line. It is killed when it is dropped.
struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
}

impl Running {
    fn start(command: &mut Command) -> Self {
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (sender, lines) = channel();
        let out: Box<dyn std::io::Read + Send> = Box::new(child.stdout.take().unwrap());
        let err: Box<dyn std::io::Read + Send> = Box::new(child.stderr.take().unwrap());
        for stream in [out, err] {
            let sender = sender.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
                    let line = String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned();
                    // What a shell says about others that it has started.
                    if line != "Terminated" && sender.send(line).is_err() {
                        return;
                    }
                }
            });
        }
        let stdin = child.stdin.take();
        Self { child, stdin, lines }
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next line.
    fn line(&self) -> String {
        self.lines.recv_timeout(PATIENCE).expect("a line")
    }

    /// Skips to the line that begins like this; what follows on it.
    fn skip_to(&self, beginning: &str) -> String {
        loop {
            if let Some(at) = self.line().split_once(beginning) {
                return at.1.to_owned();
            }
        }
    }

    fn say(&mut self, bytes: &[u8]) {
        let stdin = self.stdin.as_mut().unwrap();
        stdin.write_all(bytes).unwrap();
        stdin.flush().unwrap();
    }

    fn signal(&self, name: &str) {
        signal(self.pid(), name);
    }

    /// Its end, and all lines that were left.
    fn end(mut self) -> (ExitStatus, Vec<String>) {
        let status = ended(&mut self.child);
        let mut lines = vec![];
        loop {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(line) => lines.push(line),
                Err(RecvTimeoutError::Disconnected) => return (status, lines),
                Err(RecvTimeoutError::Timeout) => panic!("somebody still holds its output: {lines:?}"),
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn ended(child: &mut Child) -> ExitStatus {
    let clock = SystemClock::shared();
    let began = clock.boot();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if clock.boot().since(began) > PATIENCE {
            let all = ["-e", "--forest", "-o", "pid,ppid,pgid,sid,tpgid,stat,wchan:20,args"];
            let seen = Command::new("ps").args(all).output();
            let seen = seen.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
            panic!("{} never ends: {}", child.id(), seen.unwrap_or_default());
        }
        std::thread::yield_now();
    }
}

fn signal(pid: u32, name: &str) {
    assert!(Command::new("kill").args([name, &pid.to_string()]).status().unwrap().success());
}

/// Waits until something is so.
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let clock = SystemClock::shared();
    let began = clock.boot();
    while !is_so() {
        assert!(clock.boot().since(began) < PATIENCE, "never: {what}");
        std::thread::yield_now();
    }
}

/// Whether a process is there; one that only waits to be reaped is not.
fn lives(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, after)| !after.trim_start().starts_with('Z'))
}

fn is_jwt(text: &str) -> bool {
    text.starts_with("eyJ") && text.split('.').count() == 3
}

/// The children of a process.
fn children(pid: u32) -> Vec<u32> {
    let all =
        fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    let is_child = |child: &u32| {
        let stat = fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        let parent =
            stat.rsplit_once(')').and_then(|(_, after)| after.split_whitespace().nth(1)?.parse().ok());
        parent == Some(pid)
    };
    all.filter(is_child).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unmodified_program_gets_a_variable_and_is_the_same_process() {
    // LEGACY 2.2 steps 1, 4
    let (_issuer, agent) = agent(300);
    let script = "echo $$; echo \"$TOKEN\"; env | grep -c KEYBEARER_; echo \"$KEPT\"";
    let mut program = Running::start(exec(&agent, &[&ENV], &["sh", "-c", script]).env("KEPT", "kept"));
    assert_eq!(program.line(), program.pid().to_string(), "hand-over keeps the process id");
    assert!(is_jwt(&program.line()));
    assert_eq!(program.line(), "0", "where the agent is, is not passed on");
    assert_eq!(program.line(), "kept");
    assert!(ended(&mut program.child).success());

    let flags = ["--clean-env", "--keep", "KEYBEARER_SOCKET", "--keep", "PATH"];
    let output = exec(&agent, &[&ENV, &flags], &["env"]).env("OTHER", "x").output().unwrap();
    let mut names: Vec<String> =
        text(&output.stdout).lines().map(|line| line.split('=').next().unwrap().to_owned()).collect();
    names.sort();
    assert_eq!(names, ["KEYBEARER_SOCKET", "PATH", "TOKEN"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unit_needs_no_flags_where_agent_toml_declares_what_it_gets() {
    let issuer = issuer(300);
    let setup = Setup::new(issuer.handle.url()).and(
        "[identities.shop.deliver]\nenv = { TOKEN = \"orders.token\" }\nfile = { HEADER_FILE = \"orders.authorization\" }\n",
    );
    let agent = setup.start(Some(&issuer.handle));
    let output = exec(&agent, &[], &["sh", "-c", "echo \"$TOKEN\"; cat \"$HEADER_FILE\""]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let told = text(&output.stdout);
    let (token, header) = told.trim().split_once('\n').unwrap();
    assert_eq!(header, format!("Bearer {token}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_follows_the_dashes_is_the_programs_and_no_shell_sees_it() {
    // LEGACY 2.3: argument parsing of the child command.
    let (_issuer, agent) = agent(300);
    for mode in BOTH {
        let arguments = ["printf", "%s|", "-x", "--", "--env", "a b", "$HOME", "; exit 3", "", "\u{e9}"];
        let output = exec(&agent, &[&ENV, &[mode]], &arguments).output().unwrap();
        assert_eq!(text(&output.stdout), "-x|--|--env|a b|$HOME|; exit 3||\u{e9}|", "{mode} {output:?}");
    }
    let without = Command::new(BINARY).args(["exec", "--env", "T=orders.token", "true"]).output().unwrap();
    assert_eq!(without.status.code(), Some(64), "a command without -- is no command: {without:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exit_status_is_the_programs_own() {
    // LEGACY 2.3: exit code lost or wrong. LEGACY 2.2 step 10.
    let (_issuer, agent) = agent(300);
    for mode in BOTH {
        let run = |script: &str| exec(&agent, &[&ENV, &[mode]], &["sh", "-c", script]).status().unwrap();
        for code in [0, 1, 3, 77, 126, 255] {
            assert_eq!(run(&format!("exit {code}")).code(), Some(code), "{mode}");
        }
        for signal in [1, 2, 6, 9, 11, 13, 15] {
            let status = run(&format!("kill -{signal} $$"));
            assert_eq!((status.code(), status.signal()), (None, Some(signal)), "{mode}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_dumps_core_is_the_program_and_not_the_supervisor() {
    // LEGACY 2.2 step 10
    let (_issuer, agent) = agent(300);
    let dir = tempfile::tempdir().unwrap();
    let script = "ulimit -c unlimited; exec \"$@\"";
    let mut wrapped = Command::new("sh");
    wrapped.args(["-c", script, "sh", BINARY, "exec", "--supervise"]).args(ENV);
    wrapped.args(["--", "sh", "-c", "kill -ABRT $$"]).current_dir(dir.path());
    let status = wrapped.env("KEYBEARER_SOCKET", agent.socket("agent.sock")).status().unwrap();
    assert_eq!((status.signal(), status.core_dumped()), (Some(6), false));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_cannot_have_everything_is_not_started_and_the_code_says_why() {
    // LEGACY 2.3: 0 on a fetch error. LEGACY 2.2 step 3.
    let (_issuer, agent) = agent(300);
    let started = agent.dir.path().join("started");
    let touch = ["touch", started.to_str().unwrap()];
    let soon = ["--start-timeout", "400ms"];
    let cases: [(&[&str], i32, &str); 9] = [
        (&["--env", "T=other.token"], 77, "other"),
        (&["--env", "T=orders.password"], 78, "authorization"),
        (&["--env", "LD_PRELOAD=orders.token"], 78, "LD_PRELOAD"),
        (&["--env", "T=orders.token", "--at-rotation", "other=restart"], 78, "other"),
        (&["--env", "T=orders.token", "--at-rotation", "orders=restart", "--handover"], 78, "orders=none"),
        (&["--env", "1T=orders.token"], 64, "1T"),
        (&["--env", "T=orders.token", "--env", "T=orders.expires_at"], 64, "twice"),
        (&["--env", "T=orders.token", "--socket", "/nowhere/agent.sock"], 69, "/nowhere"),
        (&[], 78, "nothing is declared"),
    ];
    for (flags, code, word) in cases {
        for mode in [&[][..], &["--supervise"]] {
            if flags.contains(&"--handover") && !mode.is_empty() {
                continue;
            }
            let output = exec(&agent, &[flags, mode, &soon], &touch).output().unwrap();
            let said = text(&output.stderr);
            assert_eq!(output.status.code(), Some(code), "{flags:?} {mode:?}: {said}");
            assert!(said.contains(word), "{flags:?} {mode:?}: {said}");
        }
    }
    let (down, forsaken) = self::agent(300);
    down.handle.set_fault(Fault::Unavailable, None);
    for mode in BOTH {
        let output = exec(&forsaken, &[&ENV, &[mode], &soon], &touch).output().unwrap();
        assert_eq!(output.status.code(), Some(75), "{mode}: {output:?}");
    }
    assert!(!started.exists());

    for mode in BOTH {
        let missing = exec(&agent, &[&ENV, &[mode]], &["no-such-program"]).output().unwrap();
        assert_eq!(missing.status.code(), Some(127), "{missing:?}");
        assert!(text(&missing.stderr).contains("no-such-program"));
        let directory = exec(&agent, &[&ENV, &[mode]], &["/"]).output().unwrap();
        assert_eq!(directory.status.code(), Some(126), "{directory:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_program_inherits_nothing_that_is_ours() {
    // LEGACY 2.2 steps 2, 12: descriptors, signals, the mask.
    let (_issuer, agent) = agent(300);
    let told = |output: Output| {
        assert!(output.status.success(), "{output:?}");
        text(&output.stdout)
    };
    let descriptors = ["ls", "/proc/self/fd"];
    let signals = ["grep", "^Sig[BI]", "/proc/self/status"];
    for program in [&descriptors[..], &signals] {
        let bare = told(Command::new(program[0]).args(&program[1..]).output().unwrap());
        for mode in BOTH {
            assert_eq!(told(exec(&agent, &[&ENV, &[mode]], program).output().unwrap()), bare, "{mode}");
        }
    }
    // What whoever starts us has blocked, it has blocked for the program.
    let blocked = ["env", "--block-signal=TERM,USR1"];
    let bare = Command::new(blocked[0]).arg(blocked[1]).args(signals).output().unwrap();
    if !bare.status.success() {
        return skip("the_program_inherits_nothing_that_is_ours", "env(1) cannot block signals here");
    }
    for mode in BOTH {
        let mut command = Command::new(blocked[0]);
        command.args([blocked[1], BINARY, "exec", mode]).args(ENV).arg("--").args(signals);
        let output = command.env("KEYBEARER_SOCKET", agent.socket("agent.sock")).output().unwrap();
        assert_eq!(told(output), text(&bare.stdout), "{mode}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_argument_and_no_word_holds_the_secret() {
    // LEGACY 2.3: secrets printed. LEGACY 2.2 step 12.
    let (_issuer, agent) = agent(4);
    let flags: [&[&str]; 3] = [&ENV, &["--at-rotation", "orders=restart"], &QUICK];
    let program = Running::start(&mut exec(&agent, &flags, &["sh", "-c", "echo up $TOKEN; exec sleep 1000"]));
    let mut held = vec![];
    for _ in 0..2 {
        held.push(program.skip_to("up "));
        let child = children(program.pid())[0];
        for pid in [program.pid(), child] {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap();
            assert_eq!(jwt_in(&text(&line)), None, "{}", text(&line));
        }
        // Our own environment never has it, so nothing that we start beside the program has it by accident.
        let own = fs::read(format!("/proc/{}/environ", program.pid())).unwrap();
        assert_eq!(jwt_in(&text(&own)), None);
    }
    assert_ne!(held[0], held[1]);
    program.signal("-TERM");
    let (_, said) = program.end();
    assert!(
        said.iter().filter(|line| !line.starts_with("up ")).all(|line| jwt_in(line).is_none()),
        "{said:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn who_ends_the_wrapper_gives_the_program_its_time() {
    // LEGACY 2.3: SIGTERM ends the wrapper at once, child not given time.
    let (_issuer, agent) = agent(300);
    let script = format!("trap 'sleep 0.3; echo bye; exit 7' TERM; echo up; {FOREVER}");
    let program = Running::start(&mut exec(&agent, &[&ENV, &["--supervise"]], &["sh", "-c", &script]));
    program.skip_to("up");
    program.signal("-TERM");
    let (status, said) = program.end();
    assert_eq!((status.code(), said), (Some(7), vec!["bye".to_owned()]));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_program_has_started_ends_with_it() {
    // LEGACY 2.3: only the shell is killed, grandchildren survive.
    let (_issuer, agent) = agent(300);
    let deaf = "setsid sh -c 'trap \"\" TERM HUP; echo pid $$; while :; do sleep 1000; done' &";
    let script = format!("sleep 1000 & echo pid $!; setsid sleep 1000 & echo pid $!; {deaf} {FOREVER}");
    let flags: [&[&str]; 3] = [&ENV, &["--supervise"], &["--stop-timeout", "300ms"]];
    let program = Running::start(&mut exec(&agent, &flags, &["sh", "-c", &script]));
    let pids: Vec<u32> = (0..3).map(|_| program.skip_to("pid ").parse().unwrap()).collect();
    assert!(pids.iter().all(|pid| lives(*pid)));
    program.signal("-TERM");
    let (status, _) = program.end();
    assert_eq!(status.signal(), Some(15));
    assert_eq!(pids.into_iter().filter(|pid| lives(*pid)).collect::<Vec<_>>(), Vec::<u32>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_whose_supervisor_is_killed_is_told_to_end() {
    // LEGACY 2.3: child orphaned when the wrapper dies. LEGACY 2.2 step 11.
    let (_issuer, agent) = agent(300);
    let script = format!("trap 'echo told; exit' TERM; echo up $$; {FOREVER}");
    let program = Running::start(&mut exec(&agent, &[&ENV, &["--supervise"]], &["sh", "-c", &script]));
    let pid: u32 = program.skip_to("up ").parse().unwrap();
    program.signal("-KILL");
    program.skip_to("told");
    until("the program ends", || !lives(pid));
    // What it had started is nobody's any more; this test ends it.
    let _ = Command::new("pkill").args(["-KILL", "-g", &pid.to_string()]).status();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_wrapper_ends_when_the_program_ends() {
    // LEGACY 2.3: wrapper does not die when the child dies.
    let (_issuer, agent) = agent(300);
    let flags: [&[&str]; 2] = [&ENV, &["--at-rotation", "orders=restart"]];
    let program = Running::start(&mut exec(&agent, &flags, &["sh", "-c", "echo up; read line; exit 9"]));
    program.skip_to("up");
    let mut program = program;
    program.say(b"end\n");
    assert_eq!(program.end().0.code(), Some(9));
}

#[tokio::test(flavor = "multi_thread")]
async fn signals_that_mean_something_are_forwarded_and_noise_is_not() {
    // LEGACY 2.3: runtime noise forwarded (SIGURG, SIGCHLD).
    let (_issuer, agent) = agent(300);
    let traps = ["HUP", "USR1", "USR2", "URG", "INT", "QUIT", "WINCH"];
    let traps: String = traps.map(|name| format!("trap 'echo {name}' {name}; ")).concat();
    let script = format!("{traps} echo up; {FOREVER}");
    let program = Running::start(&mut exec(&agent, &[&ENV, &["--supervise"]], &["sh", "-c", &script]));
    program.skip_to("up");
    let mut heard = vec![];
    for name in ["URG", "HUP", "CHLD", "USR1", "USR2", "INT", "QUIT", "WINCH", "URG", "USR1"] {
        program.signal(&format!("-{name}"));
        if !["URG", "CHLD"].contains(&name) {
            heard.push(program.line());
        }
    }
    assert_eq!(heard, ["HUP", "USR1", "USR2", "INT", "QUIT", "WINCH", "USR1"]);
    program.signal("-TERM");
    program.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_whoever_started_us_ignores_stays_ignored_and_ends_are_seen_all_the_same() {
    // LEGACY 2.2 step 2. A parent that ignores SIGCHLD has the kernel reap our children before we see how they ended.
    let (_issuer, agent) = agent(300);
    let socket = agent.socket("agent.sock");
    let outer = "trap '' HUP CHLD; exec \"$0\" exec --supervise --env TOKEN=orders.token -- sh -c \"$1\"";
    let script = "echo up; read line; exit 5";
    let mut command = Command::new("bash");
    command.args(["-c", outer, BINARY, script]).env("KEYBEARER_SOCKET", socket);
    let mut program = Running::start(&mut command);
    program.skip_to("up");
    program.signal("-HUP");
    program.say(b"end\n");
    assert_eq!(program.end().0.code(), Some(5));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_restarts_the_program_with_the_new_value_after_the_old_one_is_gone() {
    // LEGACY 2.3: agent exits during intended restart. LEGACY 2.2 step 8.
    let (_issuer, agent) = agent(4);
    let lock = agent.dir.path().join("lock");
    // Ends slowly, and so does what it has started: none may be left when the next one begins.
    let script = format!(
        "trap 'echo ends; exit 0' TERM; \
         mkdir {lock} || echo overlap; echo start $TOKEN; \
         setsid sh -c 'trap \"sleep 0.3; rmdir {lock}; exit\" TERM; while :; do sleep 1000 & wait $!; done' & \
         {FOREVER}",
        lock = lock.display(),
    );
    let flags: [&[&str]; 3] = [&ENV, &["--at-rotation", "orders=restart"], &QUICK];
    let program = Running::start(&mut exec(&agent, &flags, &["sh", "-c", &script]));
    let mut tokens = vec![];
    for _ in 0..3 {
        let line = loop {
            let line = program.line();
            assert!(!line.contains("overlap"), "two at a time");
            if line.starts_with("start ") {
                break line;
            }
        };
        tokens.push(line);
    }
    tokens.dedup();
    assert_eq!(tokens.len(), 3);
    program.signal("-TERM");
    let (status, said) = program.end();
    assert_eq!(status.code(), Some(0), "{said:?}");
    assert!(!said.iter().any(|line| line.contains("overlap")), "{said:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_does_not_take_what_is_new_is_tried_some_times_and_then_we_end_as_it_did() {
    // LEGACY 2.3: restart storms. LEGACY 2.2 step 8.
    let (_issuer, agent) = agent(4);
    let ran = agent.dir.path().join("ran");
    let script = format!("echo start; [ -e {ran} ] && exit 7; touch {ran}; {FOREVER}", ran = ran.display());
    let flags: [&[&str]; 3] = [&ENV, &["--at-rotation", "orders=restart"], &QUICK];
    let program = Running::start(&mut exec(&agent, &flags, &["sh", "-c", &script]));
    let (status, said) = program.end();
    assert_eq!(status.code(), Some(7), "{said:?}");
    assert_eq!(said.iter().filter(|line| *line == "start").count(), 1 + 1 + 5, "{said:?}");
    assert!(said.iter().any(|line| line.contains("attempt 6 of 6")), "{said:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_cannot_be_held_does_not_run() {
    // LEGACY 2.3: a child that nobody holds goes on without its supervisor.
    let (_issuer, agent) = agent(4);
    let script = format!("trap 'exit 0' TERM; echo start; {FOREVER}");
    let flags: [&[&str]; 3] = [&ENV, &["--at-rotation", "orders=restart"], &QUICK];
    let program = Running::start(&mut exec(&agent, &flags, &["sh", "-c", &script]));
    program.skip_to("start");
    // From now on no descriptor can have the number of the one that holds it, so the next one cannot be held.
    let held = || {
        let descriptors = fs::read_dir(format!("/proc/{}/fd", program.pid())).unwrap().filter_map(|entry| {
            let path = entry.unwrap().path();
            let is_pidfd = fs::read_link(&path).is_ok_and(|to| to.to_string_lossy().contains("pidfd"));
            is_pidfd.then(|| path.file_name().unwrap().to_str().unwrap().parse::<u32>().unwrap())
        });
        descriptors.min()
    };
    // The program may be quicker than whoever started it.
    let mut number = None;
    until("it is held by a pidfd", || {
        number = held();
        number.is_some()
    });
    let number = number.unwrap();
    let limit = format!("--nofile={number}:");
    let limited = Command::new("prlimit").args(["--pid", &program.pid().to_string(), &limit]).status();
    assert!(limited.unwrap().success());
    let said = program.skip_to("nothing can be started: ");
    assert!(said.contains("cannot be held") && said.contains("was killed"), "{said}");
    // Others may have been started since, and none of them goes on either: each is there for a moment.
    until("none goes on", || children(program.pid()).is_empty());
    program.signal("-KILL");
}

#[tokio::test(flavor = "multi_thread")]
async fn where_there_is_no_room_for_a_file_the_old_one_is_kept_and_nothing_is_started_with_a_part() {
    let test = "where_there_is_no_room_for_a_file_the_old_one_is_kept_and_nothing_is_started_with_a_part";
    let (_issuer, agent) = agent(4);
    let place = agent.dir.path().join("small");
    let Some(disk) = is_root().then(|| Disk::mount(&place)).flatten() else {
        return skip(test, "no small disk can be mounted here");
    };
    let place = place.to_str().unwrap();
    let rotation = ["--at-rotation", "orders=signal:HUP"];
    let flags: [&[&str]; 4] =
        [&["--file", "TOKEN_FILE=orders.token"], &["--file-directory", place], &rotation, &QUICK];
    let script = format!("trap 'echo told' HUP; echo path $TOKEN_FILE; {FOREVER}");
    let program = Running::start(&mut exec(&agent, &flags, &["sh", "-c", &script]));
    let path = PathBuf::from(program.skip_to("path "));
    let before = fs::read_to_string(&path).unwrap();
    assert!(is_jwt(&before));
    disk.fill();
    let said = program.line();
    assert!(said.contains("orders.token") && said.contains("TOKEN_FILE") && said.contains("kept"), "{said}");
    assert_eq!(fs::read_to_string(&path).unwrap(), before, "and nobody is told");
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no part of the new one is left");

    let touch = agent.dir.path().join("started");
    let output = exec(&agent, &flags[..2], &["touch", touch.to_str().unwrap()]).output().unwrap();
    assert_eq!(output.status.code(), Some(74), "{output:?}");
    assert!(text(&output.stderr).contains("orders.token"), "{output:?}");
    assert!(!touch.exists());
    disk.clear();
    program.skip_to("told");
    assert_ne!(fs::read_to_string(&path).unwrap(), before, "once there is room it is new, and it is told");
    program.signal("-TERM");
    program.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_rotated_in_place_and_nothing_else_happens() {
    // LEGACY 2.3: no "do nothing, just rewrite" option. LEGACY 2.2 step 11.
    let (_issuer, agent) = agent(4);
    let script = format!("echo path $TOKEN_FILE; trap 'echo told' HUP; {FOREVER}");
    let flags: [&[&str]; 2] = [&["--file", "TOKEN_FILE=orders.token"], &QUICK];
    let program = Running::start(&mut exec(&agent, &flags, &["sh", "-c", &script]));
    let path = PathBuf::from(program.skip_to("path "));
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
    assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o400, 0o700));
    let mut tokens = vec![];
    until("three tokens at one path", || {
        // Whoever reads finds one value or the next, whole, at any moment.
        let token = fs::read_to_string(&path).unwrap();
        assert!(is_jwt(&token), "{token:?}");
        if tokens.last() != Some(&token) {
            tokens.push(token);
        }
        tokens.len() == 3
    });
    program.signal("-TERM");
    let (status, said) = program.end();
    assert_eq!((status.signal(), said), (Some(15), vec![]));
    assert!(!path.parent().unwrap().exists(), "it goes with us");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_tells_the_program_once_the_file_is_new() {
    let (_issuer, agent) = agent(4);
    let script = format!("trap 'echo told $(cat $TOKEN_FILE)' HUP; echo told $(cat $TOKEN_FILE); {FOREVER}");
    let flags: [&[&str]; 3] =
        [&["--file", "TOKEN_FILE=orders.token"], &["--at-rotation", "orders=signal:HUP"], &QUICK];
    let program = Running::start(&mut exec(&agent, &flags, &["sh", "-c", &script]));
    let mut tokens: Vec<String> = (0..3).map(|_| program.skip_to("told ")).collect();
    tokens.dedup();
    assert_eq!(tokens.len(), 3);
    program.signal("-TERM");
    program.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_runs_a_command_beside_the_program() {
    let (_issuer, agent) = agent(4);
    let command = agent.dir.path().join("reload");
    fs::write(&command, "#!/bin/sh\necho reload $# $(cat \"$TOKEN_FILE\")\nexit 3\n").unwrap();
    fs::set_permissions(&command, fs::Permissions::from_mode(0o755)).unwrap();
    let rotation = format!("orders=command:{}", command.display());
    let flags: [&[&str]; 3] = [&["--file", "TOKEN_FILE=orders.token"], &["--at-rotation", &rotation], &QUICK];
    let program = Running::start(&mut exec(&agent, &flags, &["sh", "-c", "echo up; exec sleep 1000"]));
    program.skip_to("up");
    assert!(is_jwt(&program.skip_to("reload 0 ")));
    assert!(program.skip_to("reload: ").contains("exit code 3"), "people learn that it failed");
    program.signal("-TERM");
    assert_eq!(program.end().0.signal(), Some(15), "and the program is untouched");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_hand_over_writes_is_where_somebody_else_removes_it() {
    let (_issuer, agent) = agent(300);
    let flags: [&[&str]; 2] = [&["--file", "TOKEN_FILE=orders.token"], &["--handover"]];
    let bare = |command: &mut Command| {
        command.env_remove("RUNTIME_DIRECTORY").env_remove("XDG_RUNTIME_DIR").output().unwrap()
    };
    let output = bare(&mut exec(&agent, &flags, &["true"]));
    assert_eq!(output.status.code(), Some(78), "{output:?}");
    assert!(text(&output.stderr).contains("--file-directory"), "{output:?}");
    let named = ["--file-directory", agent.dir.path().to_str().unwrap()];
    let output = bare(&mut exec(&agent, &[flags[0], flags[1], &named], &["sh", "-c", "cat $TOKEN_FILE"]));
    assert!(is_jwt(&text(&output.stdout)), "{output:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn trouble_with_the_agent_later_is_told_once_and_leaves_the_program_alone() {
    // LEGACY 2.1: fetch fails later. LEGACY 2.3: tight retry.
    let (issuer, agent) = agent(300);
    let dir = std::sync::Arc::clone(&agent.dir);
    let flags: [&[&str]; 3] = [&ENV, &["--at-rotation", "orders=restart"], &QUICK];
    let script = format!("echo start $TOKEN; trap 'echo told' HUP INT USR1; {FOREVER}");
    let mut program = Running::start(&mut exec(&agent, &flags, &["sh", "-c", &script]));
    let first = program.skip_to("start ");
    agent.kill();
    assert!(program.skip_to("keybearer: ").contains("the program keeps what it has"));
    // It goes on asking, seldom; nothing is said again while it is the same trouble.
    assert!(program.child.try_wait().unwrap().is_none());
    let agent = TestAgent::start(dir);
    let mut lines = vec![];
    let second = loop {
        let line = program.line();
        match line.strip_prefix("start ") {
            Some(token) => break token.to_owned(),
            None => lines.push(line),
        }
    };
    assert_ne!(first, second, "the new agent's token is another");
    let again = lines.iter().filter(|line| line.contains("there is one again")).count();
    assert_eq!(again, 1, "{lines:?}");
    assert!(lines.len() <= 4, "{lines:?}");
    assert!(!lines.iter().any(|line| line == "told"), "{lines:?}");
    program.signal("-TERM");
    program.end();
    drop((agent, issuer));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_given_to_one_process_lives_as_long_as_the_program() {
    // ATT-09: with hand-over the program is the process it was given to; under supervision the supervisor is.
    let issuer = issuer(300);
    let api = demo_api(&issuer);
    let setup = Setup::new(issuer.handle.url()).bound(&api.url).per_process();
    let agent = setup.start(Some(&issuer.handle));
    let is_revoked = |token: &str| {
        let claims: Value = Unverified::parse(token).unwrap().claims().unwrap();
        issuer.handle.is_revoked(claims["jti"].as_str().unwrap())
    };
    for mode in BOTH {
        let script = "echo up $TOKEN; read line";
        let mut program = Running::start(&mut exec(&agent, &[&ENV, &[mode]], &["sh", "-c", script]));
        let token = program.skip_to("up ");
        // Another process that comes and goes meanwhile: what was its own is revoked, so ours would be by now.
        let other = exec(&agent, &[&ENV, &[mode]], &["sh", "-c", "echo $TOKEN"]).output().unwrap();
        let other = text(&other.stdout).trim().to_owned();
        until("the other is revoked", || is_revoked(&other));
        assert!(!is_revoked(&token), "{mode}");
        program.say(b"end\n");
        assert!(program.end().0.success());
        until("revoked at its end", || is_revoked(&token));
    }
}

/// Our command on a terminal of its own, with what is typed and what is seen.
fn on_a_terminal(test: &str, agent: &TestAgent, command: &str) -> Option<Running> {
    if Command::new("script").arg("--version").output().is_err() {
        skip(test, "there is no script(1)");
        return None;
    }
    let mut script = Command::new("script");
    script.args(["-qec", command, "/dev/null"]).env("KEYBEARER_SOCKET", agent.socket("agent.sock"));
    Some(Running::start(&mut script))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_on_the_terminal_reaches_the_program_once() {
    // LEGACY 2.3: Ctrl-C delivered twice.
    let (_issuer, agent) = agent(300);
    let script = agent.dir.path().join("counts");
    fs::write(
        &script,
        "sleep 1000 &\ntrap 'n=$((n+1)); echo int $n' INT; trap 'echo total $n; exit 4' TERM\necho up $PPID; while :; do wait $!; done\n",
    )
    .unwrap();
    // In place of the shell that script(1) starts: dash would wait in the same group, and end by the keys that are for the program.
    let command = format!("exec {BINARY} exec --supervise --env T=orders.token -- sh {}", script.display());
    let test = "a_key_on_the_terminal_reaches_the_program_once";
    let Some(mut program) = on_a_terminal(test, &agent, &command) else { return };
    let wrapper: u32 = program.skip_to("up ").trim().parse().unwrap();
    for n in 1..=3 {
        program.say(b"\x03");
        assert_eq!(program.skip_to("int ").trim(), n.to_string());
    }
    signal(wrapper, "-TERM");
    assert_eq!(program.skip_to("total ").trim(), "3");
    assert_eq!(program.end().0.code(), Some(4));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_on_a_terminal_is_in_the_foreground_even_if_it_reads_from_a_pipe() {
    // LEGACY 2.3: interactive programs broken.
    let (_issuer, agent) = agent(300);
    let script = agent.dir.path().join("asks");
    fs::write(&script, "read piped; echo up; read typed < /dev/tty; echo got $piped $typed\n").unwrap();
    let command =
        format!("echo one | {BINARY} exec --supervise --env T=orders.token -- sh {}", script.display());
    let test = "a_program_on_a_terminal_is_in_the_foreground_even_if_it_reads_from_a_pipe";
    let Some(mut program) = on_a_terminal(test, &agent, &command) else { return };
    program.skip_to("up");
    program.say(b"two\n");
    assert_eq!(program.skip_to("got ").trim(), "one two");
    assert!(program.end().0.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shell_stops_and_continues_the_program_as_a_job() {
    // LEGACY 2.3: interactive programs broken. LEGACY 2.2 steps 6, 7.
    let (_issuer, agent) = agent(300);
    let script = agent.dir.path().join("job");
    fs::write(&script, "echo up; read line; echo got $line; exit 6\n").unwrap();
    let test = "a_shell_stops_and_continues_the_program_as_a_job";
    let shell = "bash --norc --noprofile -i";
    let Some(mut program) = on_a_terminal(test, &agent, shell) else { return };
    let line = format!("{BINARY} exec --supervise --env T=orders.token -- sh {}\n", script.display());
    program.say(line.as_bytes());
    while !program.line().ends_with("up") {}
    program.say(b"\x1a");
    program.skip_to("Stopped");
    program.say(b"fg\n");
    program.say(b"words\n");
    assert_eq!(program.skip_to("got ").trim(), "words");
    program.say(b"echo status $?\n");
    while !program.line().ends_with("status 6") {}
    program.say(b"exit 0\n");
    program.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn as_the_first_process_of_a_namespace_it_reaps_and_forwards() {
    // LEGACY 2.3: zombies in containers. LEGACY 2.2 step 9.
    let test = "as_the_first_process_of_a_namespace_it_reaps_and_forwards";
    let first = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"];
    let can = Command::new(first[0]).args(&first[1..]).arg("true").output();
    if !is_root() || !can.is_ok_and(|output| output.status.success()) {
        return skip(test, "no PID namespace can be made here");
    }
    let (_issuer, agent) = agent(300);
    let in_namespace = |script: &str| {
        let mut command = Command::new(first[0]);
        // A shell that is told to end while it forks may leave somebody who was not told.
        let flags = ["--stop-timeout", "1s", "--", "sh", "-c", script];
        command.args(&first[1..]).arg(BINARY).arg("exec").args(ENV).args(flags);
        command.env("KEYBEARER_SOCKET", agent.socket("agent.sock"));
        Running::start(&mut command)
    };
    // An orphan ends; it is there until its new parent has reaped it.
    let reaps = "echo parent $PPID; orphan=$(sh -c 'sleep 0.1 >/dev/null & echo $!'); \
                 while [ -e /proc/$orphan ]; do :; done; echo reaped";
    let elsewhere = exec(&agent, &[&ENV, &["--supervise"]], &["sh", "-c", reaps]).output().unwrap();
    assert!(text(&elsewhere.stdout).ends_with("reaped\n"), "{elsewhere:?}");
    let traps = "trap 'echo told; exit 8' TERM";
    let program = in_namespace(&format!("{reaps}; {traps}; echo up; {FOREVER}"));
    assert_eq!(program.skip_to("parent "), "1", "it stays, to be the first process");
    program.skip_to("reaped");
    program.skip_to("up");
    let init = children(program.pid())[0];
    signal(init, "-TERM");
    program.skip_to("told");
    assert_eq!(program.end().0.code(), Some(8));
    // The kernel ends no first process by a signal of its own: a shell's way to say it remains.
    assert_eq!(in_namespace("kill -KILL $$").end().0.code(), Some(128 + 9));
    // Where /proc is another namespace's, it still ends what is left.
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--kill-child", BINARY, "exec", "--stop-timeout", "200ms"]).args(ENV);
    command.args(["--", "sh", "-c", "setsid sh -c 'trap \"\" TERM; sleep 1000' & exit 3"]);
    let program = Running::start(command.env("KEYBEARER_SOCKET", agent.socket("agent.sock")));
    assert_eq!(program.end().0.code(), Some(3));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_service_manager_passes_by_process_id_reaches_the_program() {
    let (_issuer, agent) = agent(300);
    for mode in BOTH {
        // As the service manager does: the id is that of the process that it starts.
        let outer = format!(
            "LISTEN_PID=$$ LISTEN_FDS=1; export LISTEN_PID LISTEN_FDS; exec {BINARY} exec {mode} --env T=orders.token \
             -- sh -c '[ $LISTEN_PID = $$ ] && echo same; read line <&3 && echo $line' 3<\"$0\""
        );
        let passed = agent.dir.path().join("passed");
        fs::write(&passed, "from a descriptor\n").unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", &outer]).arg(&passed).env("KEYBEARER_SOCKET", agent.socket("agent.sock"));
        let output = command.output().unwrap();
        assert_eq!(text(&output.stdout), "same\nfrom a descriptor\n", "{mode}: {output:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_interrupts_the_fetching_ends_it() {
    // LEGACY 2.2 step 2: nothing is lost between fetch and fork.
    let (issuer, agent) = agent(300);
    issuer.handle.set_fault(Fault::Unavailable, None);
    for mode in BOTH {
        let mut command = exec(&agent, &[&ENV, &[mode]], &["echo", "started"]);
        let program = Running::start(&mut command);
        let asked = issuer.handle.diary().requests("/token");
        until("it asks", || issuer.handle.diary().requests("/token") > asked || asked > 0);
        program.signal("-TERM");
        let (status, said) = program.end();
        assert_eq!((status.signal(), said), (Some(15), vec![]), "{mode}");
    }
}

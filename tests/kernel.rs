//! What this kernel does that attestation rests on, asked of the kernel itself: where one of these is not so, the rest of the
//! house proves less than it says. Experiments that need an attacker are in attackers.rs and privileges.rs.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    mem::MaybeUninit,
    os::{
        fd::OwnedFd,
        linux::net::SocketAddrExt as _,
        unix::{
            fs::{FileExt as _, MetadataExt as _},
            net::{SocketAddr, UnixListener, UnixStream},
        },
    },
    process::{Command, Stdio},
};

use keybearer::attest::kernel::receive;
use rustix::{
    fs::fstat,
    net::sockopt::{set_socket_passcred, socket_peercred},
    process::{Pid, PidfdFlags, geteuid, pidfd_open},
};
use support::{Setup, is_root, issuer, skip};

/// A connection whose near end is stamped, and `words` in it, written by a process that is gone.
fn said_by_another(words: &str) -> (UnixStream, UnixStream, u32) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    set_socket_passcred(&ours, true).unwrap();
    let copy = OwnedFd::from(theirs.try_clone().unwrap());
    let mut child = Command::new("printf").arg(words).stdout(Stdio::from(copy)).spawn().unwrap();
    assert!(child.wait().unwrap().success());
    (ours, theirs, child.id())
}

#[test]
fn e14_a_client_sees_who_began_to_listen() {
    // E14, ATT-24: not who holds the socket now. So a client that looks at the server learns who made it, and no squatter can
    // borrow a name by handing a socket of its own to somebody else.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let mut heir = Command::new("sleep").arg("60").stdin(OwnedFd::from(listener)).spawn().unwrap();
    let client = UnixStream::connect(&path).unwrap();
    let server = socket_peercred(&client).unwrap();
    heir.kill().unwrap();
    heir.wait().unwrap();
    assert_eq!(u32::try_from(server.pid.as_raw_pid()).unwrap(), std::process::id());
    assert_ne!(u32::try_from(server.pid.as_raw_pid()).unwrap(), heir.id());
    assert_eq!(server.uid, geteuid());
}

#[test]
fn e18_what_two_have_written_is_never_one_chunk() {
    // E18, ATT-04: a buffer with room for both gets the words of one.
    let (ours, mut theirs, child) = said_by_another("child");
    theirs.write_all(b"parent").unwrap();
    let mut buffer = [MaybeUninit::uninit(); 64];
    let chunk = receive(&ours, &mut buffer).unwrap();
    assert_eq!((chunk.bytes, chunk.sender.unwrap().pid), (&b"child"[..], child));
    let chunk = receive(&ours, &mut buffer).unwrap();
    assert_eq!((chunk.bytes, chunk.sender.unwrap().pid), (&b"parent"[..], std::process::id()));
}

#[test]
fn e19_a_pidfd_is_one_process_for_ever() {
    // E19: its inode is a name that no other process gets.
    let inode = |pid: u32| {
        let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
        fstat(pidfd_open(pid, PidfdFlags::empty()).unwrap()).unwrap().st_ino
    };
    let mut child = Command::new("sleep").arg("60").spawn().unwrap();
    let (ours, childs, again) = (inode(std::process::id()), inode(child.id()), inode(child.id()));
    child.kill().unwrap();
    child.wait().unwrap();
    if ours == childs {
        return skip(
            "E19",
            "before Linux 6.9 all pidfds have one inode; the agent compares stamps, not inodes",
        );
    }
    assert_eq!(childs, again);
}

#[test]
fn e24_an_abstract_socket_has_no_permissions_and_is_not_to_be_had() {
    // E24, ATT-01: whoever shares the network namespace may connect, whatever the umask; so no such path is taken.
    let name = format!("keybearer-e24-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    let _listener = UnixListener::bind_addr(&address).unwrap();
    assert!(UnixStream::connect_addr(&address).is_ok());
    for path in [format!("@{name}"), format!("\\u0000{name}")] {
        let listen = format!("[listen]\nworkload = \"{path}\"\n");
        let setup = Setup::new("http://127.0.0.1:1").with("[listen]\n", &listen);
        let output =
            Command::new(env!("CARGO_BIN_EXE_keybearer")).arg("check").arg(setup.write()).output().unwrap();
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(!output.status.success() && said.contains("listen.workload"), "{path}: {said}");
    }
}

#[test]
fn e25_an_exec_ends_the_list_of_mappings_that_was_opened_before() {
    // E20, E25, ATT-16: even where the same program runs again, and nothing else of the process tells. The agent holds this
    // very list, and not auxv, whose addresses only chance makes different.
    let script = "echo runs; read go; exec sh -c 'echo runs; read stay'";
    let mut child =
        Command::new("sh").args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    // Looked at only while it waits to be told: in the midst of an exec the lists are of neither program, or empty.
    let mut said = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut runs = || assert_eq!(said.next().unwrap().unwrap(), "runs");
    runs();
    let process = format!("/proc/{}", child.id());
    let of = |name: &str| format!("{process}/{name}");
    let (maps, auxv) = (fs::File::open(of("maps")).unwrap(), fs::read(of("auxv")).unwrap());
    let (stat, exe) = (start_time(&of("stat")), fs::metadata(of("exe")).unwrap().ino());
    let listed = || maps.read_at(&mut [0; 16], 0).unwrap();
    assert!(listed() > 0);
    // Kept open: at its end the program would go on to its own.
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"go\n").unwrap();
    runs();
    assert_eq!(listed(), 0);
    let after =
        (start_time(&of("stat")), fs::metadata(of("exe")).unwrap().ino(), fs::read(of("auxv")).unwrap());
    assert!(fs::read(of("maps")).unwrap().len() > 16, "the new list is another file");
    drop(stdin);
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!((after.0, after.1), (stat, exe), "start time and program say that nothing was");
    match fs::read_to_string("/proc/sys/kernel/randomize_va_space").unwrap().trim() {
        "0" => skip("E25 (auxv)", "addresses are not random here; nothing rests on them"),
        _ => assert_ne!(after.2, auxv),
    }
}

/// Field 22 of stat, behind a name that may hold anything.
fn start_time(stat: &str) -> String {
    let text = fs::read_to_string(stat).unwrap();
    text.rsplit_once(") ").unwrap().1.split(' ').nth(19).unwrap().to_owned()
}

#[test]
fn e27_a_plain_read_loses_who_wrote() {
    // E27, ATT-04: what is taken without asking for the stamp is nobody's, so the wire has one way to read.
    let (mut ours, mut theirs, _) = said_by_another("child");
    assert_eq!(ours.read(&mut [0; 64]).unwrap(), 5);
    theirs.write_all(b"parent").unwrap();
    let mut buffer = [MaybeUninit::uninit(); 64];
    let chunk = receive(&ours, &mut buffer).unwrap();
    assert_eq!(chunk.sender.unwrap().pid, std::process::id(), "the child's stamp is gone with its words");
    for file in fs::read_dir("src/wire").unwrap() {
        let file = file.unwrap().path();
        let text = fs::read_to_string(&file).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap();
        for plain in [".try_read(", ".try_read_buf(", "socket.read(", ".peek(", "into_split("] {
            assert!(!code.contains(plain), "{} reads by {plain}", file.display());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn e28_hardening_is_told_and_the_agent_cannot_be_looked_into() {
    // E28, KEY-02: an undumpable process belongs to root in /proc, so that no user of the agent's uid reads its memory.
    let issuer = issuer(300);
    let agent = Setup::new(issuer.handle.url()).start(Some(&issuer.handle));
    let mut child = Command::new("setpriv").args(["--no-new-privs", "sleep", "60"]).spawn().unwrap();
    let told = |pid: u32| {
        let output = agent.keybearer(&["explain", "--pid", &pid.to_string()]);
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    };
    let line = |said: &str| said.lines().find(|line| line.contains("no new privileges")).unwrap().to_owned();
    let hardened = loop {
        // Until setpriv has become what it starts.
        if fs::read_to_string(format!("/proc/{}/comm", child.id())).unwrap().trim() == "sleep" {
            break line(&told(child.id()));
        }
        std::thread::yield_now();
    };
    child.kill().unwrap();
    child.wait().unwrap();
    assert_ne!(hardened, line(&told(std::process::id())), "it is told which of them is hardened");
    // What it gives up once it is built: src/daemon/lockdown.rs.
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    assert!(status.contains("Seccomp:\t2") && status.contains("NoNewPrivs:\t1"), "{status}");
    if !is_root() {
        let denied = fs::File::open(format!("/proc/{}/mem", agent.pid()));
        assert_eq!(denied.unwrap_err().kind(), std::io::ErrorKind::PermissionDenied);
    }
    match fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope") {
        Ok(_) => {}
        Err(error) => skip("E28 (Yama)", &format!("this kernel has no Yama: {error}; nothing rests on it")),
    }
}

#[test]
fn e15_labels_of_a_security_module() {
    // E15: no evidence comes of them yet, so there is nothing to be deceived about.
    let modules = fs::read_to_string("/sys/kernel/security/lsm").unwrap_or_default();
    skip("E15", &format!("SO_PEERSEC is no evidence of the agent's; modules here: \"{}\"", modules.trim()));
}

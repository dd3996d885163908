//! The questions to the kernel that no safe wrapper asks: who connected, by number and by pidfd, who that is
//! now, who wrote this chunk, and what it has to confine a program with; and the descriptors that are this process's since it began.
//! The only unsafe code of the house. In goes a socket; out come plain values; a descriptor that a stranger passed along is closed
//! here and never seen by anybody else.
#![expect(
    unsafe_code,
    reason = "SO_PEERCRED with pid 0, SO_PEERPIDFD, PIDFD_GET_INFO, SCM_CREDENTIALS beside SCM_RIGHTS and the version of Landlock \
              have no safe wrapper, and a descriptor that one is born with is only a number"
)]

use std::{
    io,
    mem::{self, MaybeUninit},
    os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
    ptr,
    sync::atomic::{AtomicBool, Ordering},
};

/// A process as the kernel names it in this PID namespace. `pid` 0: one we cannot see.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Sender {
    /// Thread group id.
    pub pid: u32,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

impl From<libc::ucred> for Sender {
    fn from(cred: libc::ucred) -> Self {
        Self { pid: u32::try_from(cred.pid).unwrap_or(0), uid: cred.uid, gid: cred.gid }
    }
}

/// One read from a socket with `SO_PASSCRED`: what, by whom, and whether it was clean.
#[derive(Debug)]
pub struct Chunk<'a> {
    /// What was read; nothing at the end.
    pub bytes: &'a [u8],
    /// Who wrote them. None where the kernel did not say.
    pub sender: Option<Sender>,
    /// Whether descriptors came along or the control data did not fit: a reason to hang up (ATT-04).
    pub smuggled: bool,
}

/// The version of Landlock here (landlock_create_ruleset(2)); `None` where there is none.
pub fn landlock_abi() -> Option<u32> {
    const VERSION: u32 = 1;
    // SAFETY: with this flag and no attributes it reads nothing, and gives a number.
    let version =
        unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, ptr::null::<u8>(), 0_usize, VERSION) };
    u32::try_from(version).ok().filter(|version| *version > 0)
}

/// `SO_PEERCRED`: who called `connect()`.
///
/// # Errors
/// What `getsockopt(2)` says.
pub fn peer_cred(socket: impl AsFd) -> io::Result<Sender> {
    // SAFETY: ucred is three integers; any bit pattern is one.
    unsafe { sockopt::<libc::ucred>(socket, libc::SO_PEERCRED) }.map(Sender::from)
}

/// `SO_PEERPIDFD`: a hold on the process that called `connect()`, immune to pid reuse. `None` on a kernel
/// before 6.5, which has no such option, or for a peer that is gone.
///
/// # Errors
/// What `getsockopt(2)` says beyond that.
pub fn peer_pidfd(socket: impl AsFd) -> io::Result<Option<OwnedFd>> {
    // SAFETY: RawFd is an integer; any bit pattern is one.
    match unsafe { sockopt::<RawFd>(socket, libc::SO_PEERPIDFD) } {
        // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
        Ok(fd) => Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) })),
        Err(error) => match error.raw_os_error() {
            Some(libc::ENOPROTOOPT | libc::EINVAL | libc::ENODATA | libc::ESRCH) => Ok(None),
            _ => Err(error),
        },
    }
}

/// What `PIDFD_GET_INFO` says of a process, in one call.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Ids {
    /// Real, effective, saved and file-system uid.
    pub uids: [u32; 4],
    /// Real, effective, saved and file-system gid.
    pub gids: [u32; 4],
    /// Its cgroup of the v2 hierarchy, as that directory's inode.
    pub cgroup: Option<u64>,
}

/// Who the process behind `pidfd` is now. `None` on a kernel before 6.13, which has no such call, or for a process that is
/// gone.
///
/// # Errors
/// What `ioctl(2)` says beyond that.
pub fn ids(pidfd: impl AsFd) -> io::Result<Option<Ids>> {
    // SAFETY: pidfd_info is plain integers for which all zeros is a question about nothing.
    let mut info: libc::pidfd_info = unsafe { mem::zeroed() };
    info.mask = u64::from(libc::PIDFD_INFO_CREDS | libc::PIDFD_INFO_CGROUPID);
    // SAFETY: the request's number carries the size of pidfd_info, and the kernel writes no more than that.
    let done = unsafe { libc::ioctl(pidfd.as_fd().as_raw_fd(), libc::PIDFD_GET_INFO, &raw mut info) };
    if done != 0 {
        let error = io::Error::last_os_error();
        return match error.raw_os_error() {
            Some(libc::ENOTTY | libc::EINVAL | libc::ESRCH) => Ok(None),
            _ => Err(error),
        };
    }
    let has = |flag| info.mask & u64::from(flag) != 0;
    Ok(has(libc::PIDFD_INFO_CREDS).then(|| Ids {
        uids: [info.ruid, info.euid, info.suid, info.fsuid],
        gids: [info.rgid, info.egid, info.sgid, info.fsgid],
        cgroup: has(libc::PIDFD_INFO_CGROUPID).then_some(info.cgroupid),
    }))
}

/// Reads once from `socket` into `space`, without waiting, with the sender's stamp (ATT-02, ATT-04). Nothing is zeroed
/// first: that would cost more than a call.
///
/// # Errors
/// What `recvmsg(2)` says, `WouldBlock` included.
pub fn receive(socket: impl AsFd, space: &mut [MaybeUninit<u8>]) -> io::Result<Chunk<'_>> {
    // Room for the credentials and for the most descriptors one message can carry (SCM_MAX_FD, 253), so that
    // each of them reaches us and is closed. usize elements, because cmsghdr wants its alignment.
    let mut control = [MaybeUninit::<usize>::uninit(); 160];
    let mut io = libc::iovec { iov_base: space.as_mut_ptr().cast(), iov_len: space.len() };
    // SAFETY: msghdr is plain data for which all zeros is the empty message.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &raw mut io;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    // A size_t to glibc, a socklen_t to musl; so is the length below.
    message.msg_controllen = mem::size_of_val(&control) as _;
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: message points at live buffers with their true lengths; the kernel writes within them.
    let len = unsafe { libc::recvmsg(socket.as_fd().as_raw_fd(), &raw mut message, flags) };
    let len = usize::try_from(len).map_err(|_| io::Error::last_os_error())?;

    let mut sender = None;
    let mut smuggled = message.msg_flags & libc::MSG_CTRUNC != 0;
    // SAFETY: the CMSG macros walk the control buffer that the kernel filled and bounded by msg_controllen.
    let mut cmsg = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    while !cmsg.is_null() {
        // SAFETY: not null, so CMSG_FIRSTHDR/NXTHDR found a whole header within the buffer.
        let header = unsafe { ptr::read_unaligned(cmsg) };
        // SAFETY: as above; the data lies behind the header.
        let data = unsafe { libc::CMSG_DATA(cmsg) };
        let length: usize = header.cmsg_len as _;
        // SAFETY: pure arithmetic on a constant.
        let payload = length.saturating_sub(unsafe { libc::CMSG_LEN(0) } as usize);
        match (header.cmsg_level, header.cmsg_type) {
            (libc::SOL_SOCKET, libc::SCM_CREDENTIALS) if payload >= mem::size_of::<libc::ucred>() => {
                // SAFETY: the payload holds at least a ucred.
                sender = Some(unsafe { ptr::read_unaligned(data.cast::<libc::ucred>()) }.into());
            }
            (libc::SOL_SOCKET, libc::SCM_RIGHTS) => {
                smuggled = true;
                for slot in 0..payload / mem::size_of::<RawFd>() {
                    // SAFETY: within the payload; the kernel installed this descriptor for us to own.
                    drop(unsafe {
                        OwnedFd::from_raw_fd(ptr::read_unaligned(data.cast::<RawFd>().add(slot)))
                    });
                }
            }
            _ => {}
        }
        // SAFETY: cmsg came from this message.
        cmsg = unsafe { libc::CMSG_NXTHDR(&raw const message, cmsg) };
    }
    // SAFETY: the kernel has written `len` bytes, and no more than there is space; the minimum says so once more.
    let bytes = unsafe { std::slice::from_raw_parts(space.as_ptr().cast::<u8>(), len.min(space.len())) };
    Ok(Chunk { bytes, sender, smuggled })
}

/// The descriptors that the service manager left open for this very process, with the names that it gave them
/// (sd_listen_fds(3)); none if there are none, or if they are somebody else's. From here on they are closed at an exec. Asked
/// again, there are none any more: each has one owner.
///
/// To be asked before anything is opened: what the environment says was true when this program was started.
///
/// # Errors
/// What is wrong with what the environment says.
pub fn handed_over() -> io::Result<Vec<(OwnedFd, String)>> {
    static ASKED: AtomicBool = AtomicBool::new(false);
    if ASKED.swap(true, Ordering::Relaxed) {
        return Ok(vec![]);
    }
    // Names alone are no matter of ours: the environment may be that of a process which was given something.
    if sd_notify::listen_fds()?.len() == 0 {
        return Ok(vec![]);
    }
    let handed = sd_notify::listen_fds_with_names()?;
    // SAFETY: LISTEN_PID names this process, so these descriptors were opened for it before it began; each was just seen to be
    // open, nothing was opened since that could have its number, and nobody is given one twice.
    Ok(handed.map(|(fd, name)| (unsafe { OwnedFd::from_raw_fd(fd) }, name)).collect())
}

/// # Safety
/// `T` must be valid for any bit pattern.
unsafe fn sockopt<T>(socket: impl AsFd, name: libc::c_int) -> io::Result<T> {
    let mut value = MaybeUninit::<T>::zeroed();
    let mut length = libc::socklen_t::try_from(mem::size_of::<T>()).unwrap_or(0);
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: value and length describe each other; the kernel writes at most `length` bytes.
    let done =
        unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, name, value.as_mut_ptr().cast(), &raw mut length) };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: zeroed at first, then filled; any bit pattern is a T by the caller's promise.
    Ok(unsafe { value.assume_init() })
}

#[cfg(test)]
mod tests {
    use std::{
        io::{IoSlice, Write as _},
        os::unix::net::UnixStream,
    };

    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg, sockopt};

    use super::*;

    fn stamped_pair() -> (UnixStream, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        sockopt::set_socket_passcred(&ours, true).unwrap();
        (ours, theirs)
    }

    #[test]
    fn a_chunk_names_its_writer() {
        // ATT-02
        let (ours, mut theirs) = stamped_pair();
        theirs.write_all(b"hello").unwrap();
        let mut space = [MaybeUninit::uninit(); 64];
        let chunk = receive(&ours, &mut space).unwrap();
        assert_eq!(chunk.bytes, b"hello");
        assert!(!chunk.smuggled);
        assert_eq!(chunk.sender.unwrap().pid, std::process::id());
        assert_eq!(peer_cred(&ours).unwrap().pid, std::process::id());
    }

    #[test]
    fn smuggled_descriptors_are_closed_and_told() {
        // ATT-04: 253 of them, the most the kernel lets through.
        let (ours, theirs) = stamped_pair();
        let file = std::fs::File::open("/dev/null").unwrap();
        let many = vec![file.as_fd(); 253];
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&many)));
        sendmsg(&theirs, &[IoSlice::new(b"x")], &mut control, SendFlags::empty()).unwrap();
        let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
        let before = open();
        let mut space = [MaybeUninit::uninit(); 64];
        let chunk = receive(&ours, &mut space).unwrap();
        assert!(chunk.smuggled);
        // Other tests open and close files beside this one; 253 leaked ones would stand out.
        assert!(open() < before + 100, "descriptors leaked");
    }

    #[test]
    fn nothing_there_is_would_block() {
        let (ours, _theirs) = stamped_pair();
        let error = receive(&ours, &mut [MaybeUninit::uninit(); 8]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }
}

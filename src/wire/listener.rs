//! A listening socket. In goes a path; out come connections whose process is pinned, within the limits, before a
//! byte is read. Admission is never identity: that is for attest and policy.

use std::{
    collections::HashMap,
    fs, io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
    },
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen, recv,
        socket_with, sockopt,
    },
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    net::UnixStream,
    task::yield_now,
};

use super::{Inherited, Limits, ListenSettings, WireError, descriptors};
use crate::attest::{AttestError, Peer, Pinned};

/// How many connections may wait to be accepted.
const BACKLOG: i32 = 1024;

/// So many of those who have hung up again are let go at a time, before others have their turn.
const GONE_AT_A_TIME: u32 = 16;

/// A socket that listens.
#[derive(Debug)]
pub struct Listener {
    inner: AsyncFd<OwnedFd>,
    settings: ListenSettings,
    admission: Arc<Admission>,
    /// Device and inode of the socket file, if it is ours to take away.
    file: Option<(u64, u64)>,
}

/// Somebody connected.
#[derive(Debug)]
pub enum Arrival {
    /// And is let in, for as long as the permit is held.
    Accepted(Knock, Permit),
    /// And cannot be pinned: a matter for the ledger.
    Nobody(AttestError),
    /// And is turned away at the limits.
    TurnedAway,
}

/// A connection within the limits, whose process has not been looked at yet: that costs more than to accept it, and is for a turn of
/// its user's ([`super::Users`]).
#[derive(Debug)]
pub struct Knock {
    socket: OwnedFd,
    process: Pinned,
}

impl Knock {
    /// The user who connected.
    pub fn uid(&self) -> u32 {
        self.process.uid()
    }

    /// Whether whoever connected has hung up again, and said nothing.
    pub fn is_over(&self) -> bool {
        is_over(&self.socket)
    }

    /// Looks at who it is.
    ///
    /// # Errors
    /// Those of [`Pinned::look`], and [`AttestError::Kernel`] if the connection cannot be waited on.
    pub fn look(self) -> Result<Accepted, AttestError> {
        let peer = Arc::new(self.process.look()?);
        let socket = UnixStream::from_std(self.socket.into());
        Ok(Accepted { socket: socket.map_err(|error| AttestError::kernel("epoll_ctl", &error))?, peer })
    }
}

/// A connection, and who is at its other end.
#[derive(Debug)]
pub struct Accepted {
    /// The connection.
    pub socket: UnixStream,
    /// The process at the other end.
    pub peer: Arc<Peer>,
}

impl Listener {
    /// The socket of the service manager's that lies where `settings` want one; where there is none, one of our own
    /// ([`Self::bind`]). What is the service manager's stays where it is when the agent ends, and so do those who wait there.
    ///
    /// # Errors
    /// [`WireError`] if the place is not safe, not free, or not ours, or the socket is not as the settings want it.
    pub fn open(settings: ListenSettings, inherited: &mut Inherited) -> Result<Self, WireError> {
        match inherited.take(&settings)? {
            None => Self::bind(settings),
            Some(socket) => {
                check_directory(&settings.path)?;
                tracing::info!(socket = %settings.path.display(), "listening where the service manager does");
                Self::from_socket(socket, settings, None)
            }
        }
    }

    /// Begins to listen. The socket file has its mode and group before anybody can connect, and the kernel stamps
    /// every chunk from the first on (ATT-01, ATT-02, ATT-11).
    ///
    /// # Errors
    /// [`WireError`] if the place is not safe, not free, or not ours.
    pub fn bind(settings: ListenSettings) -> Result<Self, WireError> {
        let path = settings.path.clone();
        let io = |doing| {
            let path = path.clone();
            move |error: io::Error| WireError::Io { path, doing, error }
        };
        check_directory(&path)?;
        make_room(&path)?;
        let socket = socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )
        .map_err(|error| io("make a socket")(error.into()))?;
        sockopt::set_socket_passcred(&socket, true).map_err(|error| io("set SO_PASSCRED")(error.into()))?;
        let address = SocketAddrUnix::new(&path).map_err(|error| io("use the path")(error.into()))?;
        bind(&socket, &address).map_err(|error| io("bind")(error.into()))?;
        // Until `listen` nobody can connect, so there is no moment with another mode.
        fs::set_permissions(&path, fs::Permissions::from_mode(settings.mode)).map_err(io("chmod"))?;
        if let Some(group) = settings.group {
            std::os::unix::fs::chown(&path, None, Some(group)).map_err(io("chown"))?;
        }
        listen(&socket, BACKLOG).map_err(|error| io("listen")(error.into()))?;
        let meta = fs::symlink_metadata(&path).map_err(io("look at the socket"))?;
        Self::from_socket(socket, settings, Some((meta.dev(), meta.ino())))
    }

    fn from_socket(
        socket: OwnedFd,
        settings: ListenSettings,
        file: Option<(u64, u64)>,
    ) -> Result<Self, WireError> {
        #[expect(
            deprecated,
            reason = "its successor is unsafe; here the descriptor is owned by what waits on it"
        )]
        let inner = AsyncFd::with_interest(socket, Interest::READABLE).map_err(|error| WireError::Io {
            path: settings.path.clone(),
            doing: "register the socket",
            error,
        })?;
        Ok(Self { inner, settings, admission: Arc::default(), file })
    }

    /// The settings it was made with.
    pub fn settings(&self) -> &ListenSettings {
        &self.settings
    }

    /// The limits of each connection.
    pub fn limits(&self) -> Limits {
        Limits {
            first_bytes_within: self.settings.first_bytes_within,
            max_streams: self.settings.max_streams,
        }
    }

    /// Who is connected, for status.
    pub fn admission(&self) -> &Arc<Admission> {
        &self.admission
    }

    /// The next to connect. Whoever has hung up again and said nothing is let go at once: nothing of it costs more than to accept it.
    ///
    /// # Errors
    /// What `accept(2)` says, if it is no passing trouble.
    pub async fn accept(&self) -> io::Result<Arrival> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let mut gone = 0_u32;
        loop {
            descriptors::enough().await;
            let next = |listener: &OwnedFd| Ok(accept_with(listener, flags)?);
            match self.inner.async_io(Interest::READABLE, next).await {
                Ok(socket) if is_over(&socket) => {
                    gone += 1;
                    if gone.is_multiple_of(GONE_AT_A_TIME) {
                        yield_now().await;
                    }
                }
                Ok(socket) => {
                    return Ok(match Pinned::by(&socket) {
                        Err(error) => Arrival::Nobody(error),
                        Ok(process) => match self.admission.admit(process.uid(), &self.settings) {
                            Some(permit) => Arrival::Accepted(Knock { socket, process }, permit),
                            None => Arrival::TurnedAway,
                        },
                    });
                }
                Err(error) => match error.raw_os_error() {
                    // It went away before we came to it.
                    Some(libc::ECONNABORTED | libc::EINTR) => {}
                    // Ours to wait out: connections will end and give descriptors back.
                    Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => {
                        tracing::warn!(%error, "cannot accept; raise LimitNOFILE if this stays");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                    _ => return Err(error),
                },
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let path = &self.settings.path;
        // Only our own: a successor may have put its socket there.
        let ours = fs::symlink_metadata(path).is_ok_and(|meta| Some((meta.dev(), meta.ino())) == self.file);
        if ours && let Err(error) = fs::remove_file(path) {
            tracing::warn!(path = %path.display(), %error, "the socket file stays");
        }
    }
}

/// Whether whoever connected has hung up again, and said nothing. Who only says that it has nothing to say, as the service manager does,
/// still listens.
fn is_over(socket: impl AsFd) -> bool {
    let mut polled = [PollFd::new(&socket, PollFlags::empty())];
    if !matches!(poll(&mut polled, Some(&Timespec::default())), Ok(1))
        || !polled[0].revents().contains(PollFlags::HUP)
    {
        return false;
    }
    let said = recv(socket, &mut [0; 1], RecvFlags::PEEK | RecvFlags::DONTWAIT);
    matches!(said, Ok((_, 0)) | Err(Errno::CONNRESET))
}

/// How many are connected, in all and by user.
#[derive(Debug, Default)]
pub struct Admission {
    all: AtomicUsize,
    by_uid: Mutex<HashMap<u32, usize>>,
    turned_away: AtomicU64,
}

impl Admission {
    /// How many are connected.
    pub fn connected(&self) -> usize {
        self.all.load(Ordering::Relaxed)
    }

    /// How many were turned away since the start.
    pub fn turned_away(&self) -> u64 {
        self.turned_away.load(Ordering::Relaxed)
    }

    fn admit(self: &Arc<Self>, uid: u32, settings: &ListenSettings) -> Option<Permit> {
        let mut by_uid = self.by_uid.lock().unwrap_or_else(PoisonError::into_inner);
        let of_user = by_uid.entry(uid).or_default();
        if self.connected() >= settings.max_connections || *of_user >= settings.max_per_uid {
            // Logged now and then only: a flood must not become one of log lines.
            if self.turned_away.fetch_add(1, Ordering::Relaxed).is_multiple_of(1000) {
                tracing::warn!(uid, socket = %settings.path.display(), "too many connections: turned away");
            }
            return None;
        }
        *of_user += 1;
        self.all.fetch_add(1, Ordering::Relaxed);
        Some(Permit { admission: Arc::clone(self), uid, _descriptors: descriptors::Held::take() })
    }
}

/// A place among the connections.
#[derive(Debug)]
pub struct Permit {
    admission: Arc<Admission>,
    uid: u32,
    _descriptors: descriptors::Held,
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut by_uid = self.admission.by_uid.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(of_user) = by_uid.get_mut(&self.uid) {
            *of_user -= 1;
            if *of_user == 0 {
                by_uid.remove(&self.uid);
            }
        }
        self.admission.all.fetch_sub(1, Ordering::Relaxed);
    }
}

fn check_directory(path: &Path) -> Result<(), WireError> {
    let wrong = |what: String| WireError::Directory { path: path.into(), what };
    let directory =
        path.parent().filter(|_| path.is_absolute()).ok_or_else(|| wrong("is not absolute".into()))?;
    if !directory.exists() {
        use std::os::unix::fs::DirBuilderExt as _;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(directory)
            .map_err(|error| wrong(format!("cannot be made ({error})")))?;
    }
    let meta = fs::metadata(directory).map_err(|error| wrong(format!("cannot be looked at ({error})")))?;
    let ours = rustix::process::geteuid().as_raw();
    if meta.uid() != 0 && meta.uid() != ours {
        return Err(wrong(format!("belongs to uid {}", meta.uid())));
    }
    // The sticky bit is no excuse: it lets others put their socket there first.
    if meta.mode() & 0o022 != 0 {
        return Err(wrong(format!("can be written by others (mode {:04o})", meta.mode() & 0o7777)));
    }
    Ok(())
}

/// Takes away what an agent before us left behind, and nothing else.
fn make_room(path: &Path) -> Result<(), WireError> {
    let meta = match fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(WireError::Io { path: path.into(), doing: "look at the path", error }),
    };
    if !meta.file_type().is_socket() || meta.uid() != rustix::process::geteuid().as_raw() {
        return Err(WireError::Occupied(path.into()));
    }
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(WireError::InUse(path.into()));
    }
    fs::remove_file(path).map_err(|error| WireError::Io {
        path: path.into(),
        doing: "unlink the old socket",
        error,
    })
}

#[cfg(test)]
mod tests {
    use std::{io::Write as _, os::unix::fs::symlink};

    use super::*;

    fn settings(path: &Path) -> ListenSettings {
        ListenSettings {
            path: path.into(),
            mode: 0o600,
            group: None,
            max_connections: 10,
            max_per_uid: 2,
            first_bytes_within: Duration::from_secs(5),
            max_streams: 8,
        }
    }

    #[tokio::test]
    async fn the_socket_has_its_mode_and_leaves_no_file_behind() {
        // ATT-01, ATT-11
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let listener = Listener::bind(settings(&path)).unwrap();
        assert_eq!(fs::symlink_metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert!(matches!(Listener::bind(settings(&path)), Err(WireError::InUse(_))));
        drop(listener);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_socket_of_the_service_managers_stays_with_those_who_wait_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let managers = std::os::unix::net::UnixListener::bind(&path).unwrap();
        sockopt::set_socket_passcred(&managers, true).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let open = || {
            let ours = OwnedFd::from(managers.try_clone().unwrap());
            let mut inherited = Inherited::of(vec![(ours, "workload".into())]).unwrap();
            Listener::open(settings(&path), &mut inherited)
        };
        let listener = open().unwrap();
        drop(listener);
        // The agent is gone, and somebody connects.
        let _waits = UnixStream::connect(&path).await.unwrap();
        let listener = open().unwrap();
        assert!(matches!(listener.accept().await.unwrap(), Arrival::Accepted(..)));
        // ATT-01: the place is looked at as for one of our own.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(open(), Err(WireError::Directory { .. })));
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_anything_else_is_not() {
        // ATT-01
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        drop(Listener::bind(settings(&path)).unwrap());
        fs::write(&path, "precious").unwrap();
        assert!(matches!(Listener::bind(settings(&path)), Err(WireError::Occupied(_))));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        fs::remove_file(&path).unwrap();
        symlink(dir.path().join("elsewhere"), &path).unwrap();
        assert!(matches!(Listener::bind(settings(&path)), Err(WireError::Occupied(_))));
    }

    #[tokio::test]
    async fn a_directory_that_others_can_write_is_refused() {
        // ATT-01
        let dir = tempfile::tempdir().unwrap();
        for mode in [0o777, 0o1777, 0o770] {
            fs::set_permissions(dir.path(), fs::Permissions::from_mode(mode)).unwrap();
            let error = Listener::bind(settings(&dir.path().join("a.sock"))).unwrap_err();
            assert!(matches!(error, WireError::Directory { .. }), "{mode:o}: {error}");
        }
        let relative = Listener::bind(settings(Path::new("a.sock"))).unwrap_err();
        assert!(matches!(relative, WireError::Directory { .. }));
    }

    #[tokio::test]
    async fn whoever_has_hung_up_again_is_let_go_and_whoever_has_said_something_is_not() {
        // ATT-26, TM-20
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let listener = Listener::bind(settings(&path)).unwrap();
        for _ in 0..3 * GONE_AT_A_TIME {
            drop(std::os::unix::net::UnixStream::connect(&path).unwrap());
        }
        let mut speaks = std::os::unix::net::UnixStream::connect(&path).unwrap();
        speaks.write_all(b"x").unwrap();
        drop(speaks);
        let next = async || match listener.accept().await.unwrap() {
            Arrival::Accepted(knock, _) => knock,
            other => panic!("{other:?}"),
        };
        assert!(!next().await.is_over());
        // And one that goes later.
        let goes = UnixStream::connect(&path).await.unwrap();
        let knock = next().await;
        assert!(!knock.is_over());
        drop(goes);
        assert!(knock.is_over());
        // Who has nothing to say and listens, as the service manager does.
        let listens = std::os::unix::net::UnixStream::connect(&path).unwrap();
        listens.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(!next().await.is_over());
    }

    #[tokio::test]
    async fn a_user_gets_so_many_connections_and_no_more() {
        // ATT-26
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let listener = Listener::bind(settings(&path)).unwrap();
        let mut held = vec![];
        let mut clients = vec![];
        for _ in 0..2 {
            clients.push(UnixStream::connect(&path).await.unwrap());
            held.push(listener.accept().await.unwrap());
        }
        clients.push(UnixStream::connect(&path).await.unwrap());
        assert!(matches!(listener.accept().await.unwrap(), Arrival::TurnedAway));
        assert_eq!((listener.admission().connected(), listener.admission().turned_away()), (2, 1));
        held.clear();
        assert_eq!(listener.admission().connected(), 0);
        clients.push(UnixStream::connect(&path).await.unwrap());
        assert!(matches!(listener.accept().await.unwrap(), Arrival::Accepted(..)));
    }
}

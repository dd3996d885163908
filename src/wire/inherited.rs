//! Sockets that the service manager listens on, so that nobody who connects finds nobody there while the agent starts anew
//! (systemd.socket(5)). In go the descriptors that this process was started with; out comes each socket to the listener whose path
//! it has, looked at as if a stranger had handed it over: a socket that would not stamp its chunks is no socket of ours.

use std::{
    fs, io,
    os::{
        fd::OwnedFd,
        unix::{
            ffi::OsStrExt as _,
            fs::{FileTypeExt as _, MetadataExt as _},
        },
    },
    path::{Path, PathBuf},
};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, getsockname, sockopt};

use super::{ListenSettings, WireError};
use crate::attest::kernel;

/// What the service manager handed over and nobody has taken yet.
#[derive(Debug, Default)]
pub struct Inherited(Vec<Handed>);

/// One socket of the service manager's.
#[derive(Debug)]
struct Handed {
    socket: OwnedFd,
    name: String,
    path: PathBuf,
}

impl Inherited {
    /// What this process was started with; nothing for a process that no service manager gave anything.
    ///
    /// # Errors
    /// [`WireError::HandedOver`] for whatever is not a socket that could be one of ours.
    pub fn from_manager() -> Result<Self, WireError> {
        let handed = kernel::handed_over()
            .map_err(|error| wrong("LISTEN_FDS", format!("the environment is not true: {error}")))?;
        Self::of(handed)
    }

    pub(super) fn of(handed: Vec<(OwnedFd, String)>) -> Result<Self, WireError> {
        let mut all: Vec<Handed> = Vec::new();
        for (socket, name) in handed {
            let path = listens_at(&socket).map_err(|what| wrong(&name, what))?;
            if all.iter().any(|other| other.path == path) {
                return Err(wrong(&name, format!("another of them is at {}, too", path.display())));
            }
            all.push(Handed { socket, name, path });
        }
        Ok(Self(all))
    }

    /// The socket that lies where `settings` want one, if there is one, held against them: the service manager may not have let
    /// in more than they do.
    ///
    /// # Errors
    /// [`WireError::HandedOver`] if it has.
    pub(super) fn take(&mut self, settings: &ListenSettings) -> Result<Option<OwnedFd>, WireError> {
        let Some(at) = self.0.iter().position(|handed| handed.path == settings.path) else { return Ok(None) };
        let Handed { socket, name, path } = self.0.swap_remove(at);
        let meta = fs::symlink_metadata(&path).map_err(|error| {
            wrong(&name, format!("{} is gone ({error}): restart its unit", path.display()))
        })?;
        fits(&meta, settings).map_err(|what| wrong(&name, what))?;
        if settings.group.is_none() && meta.mode() & 0o070 != 0 {
            // Its unit may let in whom it wants to: evidence decides who gets anything. The operators' socket always has a group here.
            tracing::info!(socket = %path.display(), group = meta.gid(), "its unit says which group may connect, and the settings none");
        }
        // It comes from a process that may have used it otherwise.
        rustix::io::ioctl_fionbio(&socket, true)
            .map_err(|error| wrong(&name, format!("it cannot be used: {}", io::Error::from(error))))?;
        Ok(Some(socket))
    }

    /// Sees that nothing is left over: whoever connects there would wait for ever.
    ///
    /// # Errors
    /// [`WireError::HandedOver`] naming what nobody took.
    pub fn finish(self) -> Result<(), WireError> {
        match self.0.first() {
            None => Ok(()),
            Some(Handed { name, path, .. }) => Err(wrong(
                name,
                format!(
                    "no socket of the settings is at {}: make ListenStream= of its unit and the path in [listen] or [exports] the \
                     same",
                    path.display()
                ),
            )),
        }
    }
}

fn wrong(name: &str, what: String) -> WireError {
    WireError::HandedOver { name: name.into(), what }
}

/// Where a socket listens that may be one of ours.
fn listens_at(socket: &OwnedFd) -> Result<PathBuf, String> {
    let is = |said: rustix::io::Result<bool>| said.unwrap_or(false);
    let stream = is(sockopt::socket_domain(socket).map(|domain| domain == AddressFamily::UNIX))
        && is(sockopt::socket_type(socket).map(|kind| kind == SocketType::STREAM));
    if !stream {
        return Err("it is not a Unix stream socket: its unit needs ListenStream= with a path".into());
    }
    if !is(sockopt::socket_acceptconn(socket)) {
        return Err("it does not listen: its unit needs Accept=no".into());
    }
    // ATT-02: without it nobody could tell who wrote a chunk.
    if !is(sockopt::socket_passcred(socket)) {
        return Err("it does not say who writes: its unit needs PassCredentials=yes".into());
    }
    let address = getsockname(socket).ok().and_then(|address| SocketAddrUnix::try_from(address).ok());
    let path = address.as_ref().and_then(SocketAddrUnix::path_bytes).map(|path| {
        // The kernel counts the byte that ends it.
        Path::new(std::ffi::OsStr::from_bytes(path.strip_suffix(b"\0").unwrap_or(path))).to_owned()
    });
    // ATT-01
    path.filter(|path| path.is_absolute())
        .ok_or_else(|| "it has no path: anybody could have taken an abstract name first".into())
}

/// Whether a socket file lets in nobody whom the settings do not (ATT-01, ATT-11).
fn fits(meta: &fs::Metadata, settings: &ListenSettings) -> Result<(), String> {
    let path = settings.path.display();
    if !meta.file_type().is_socket() {
        return Err(format!("{path} is no socket any more: restart its unit"));
    }
    let ours = rustix::process::geteuid().as_raw();
    if meta.uid() != 0 && meta.uid() != ours {
        return Err(format!(
            "{path} belongs to uid {}: its unit needs SocketUser= with the agent's user, {ours}",
            meta.uid()
        ));
    }
    let mode = meta.mode() & 0o777;
    if mode & !settings.mode != 0 {
        return Err(format!(
            "{path} has mode {mode:04o}, more than the {:04o} of the settings: make SocketMode= of its unit and the mode in \
             [listen] or [exports] the same",
            settings.mode
        ));
    }
    match settings.group {
        Some(group) if mode & 0o070 != 0 && meta.gid() != group => Err(format!(
            "{path} belongs to group {}, and the settings say {group}: make SocketGroup= of its unit and the group in [listen] or \
             [exports] the same",
            meta.gid()
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        net::TcpListener,
        os::{
            linux::net::SocketAddrExt as _,
            unix::{
                fs::PermissionsExt as _,
                net::{SocketAddr, UnixDatagram, UnixListener, UnixStream},
            },
        },
        time::Duration,
    };

    use super::*;

    fn settings(path: &Path) -> ListenSettings {
        ListenSettings {
            path: path.into(),
            mode: 0o660,
            group: None,
            max_connections: 10,
            max_per_uid: 2,
            first_bytes_within: Duration::from_secs(5),
            max_streams: 8,
        }
    }

    /// As the unit of a socket makes it.
    fn made(path: &Path, mode: u32) -> OwnedFd {
        let listener = UnixListener::bind(path).unwrap();
        sockopt::set_socket_passcred(&listener, true).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        listener.into()
    }

    fn refused(socket: impl Into<OwnedFd>) -> String {
        Inherited::of(vec![(socket.into(), "workload".into())]).unwrap_err().to_string()
    }

    #[test]
    fn what_is_no_stamping_unix_listener_with_a_path_is_refused_with_its_remedy() {
        // ATT-01, ATT-02
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        assert!(refused(UnixListener::bind(at("a")).unwrap()).contains("PassCredentials=yes"));
        assert!(refused(UnixStream::pair().unwrap().0).contains("Accept=no"));
        for other in [
            refused(TcpListener::bind("127.0.0.1:0").unwrap()),
            refused(UnixDatagram::bind(at("b")).unwrap()),
            refused(fs::File::open("/dev/null").unwrap()),
        ] {
            assert!(other.contains("not a Unix stream socket") && other.contains("\"workload\""), "{other}");
        }
        let name = format!("keybearer-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(name.as_bytes()).unwrap();
        let nameless = UnixListener::bind_addr(&address).unwrap();
        sockopt::set_socket_passcred(&nameless, true).unwrap();
        assert!(refused(nameless).contains("no path"));
    }

    #[test]
    fn each_goes_to_where_the_settings_want_it_and_none_is_left_over() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("agent.sock"), dir.path().join("other.sock"));
        let handed = vec![(made(&path, 0o660), "workload".into()), (made(&other, 0o600), "strange".into())];
        let mut inherited = Inherited::of(handed).unwrap();
        assert!(inherited.take(&settings(&dir.path().join("third.sock"))).unwrap().is_none());
        assert!(inherited.take(&settings(&path)).unwrap().is_some());
        assert!(inherited.take(&settings(&path)).unwrap().is_none(), "once");
        let left = inherited.finish().unwrap_err().to_string();
        assert!(left.contains("\"strange\"") && left.contains("other.sock"), "{left}");
        Inherited::default().finish().unwrap();
    }

    #[test]
    fn a_socket_that_lets_in_more_than_the_settings_is_refused() {
        // ATT-11
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.sock");
        let take = |socket: OwnedFd, settings: &ListenSettings| {
            Inherited::of(vec![(socket, "workload".into())])
                .unwrap()
                .take(settings)
                .map(drop)
                .map_err(|why| why.to_string())
        };
        let socket = made(&path, 0o666);
        let why = take(socket.try_clone().unwrap(), &settings(&path)).unwrap_err();
        assert!(why.contains("0666") && why.contains("SocketMode="), "{why}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        take(socket.try_clone().unwrap(), &settings(&path)).expect("less is no matter of ours");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o660)).unwrap();
        let strange = fs::metadata(&path).unwrap().gid() + 1;
        let why =
            take(socket.try_clone().unwrap(), &ListenSettings { group: Some(strange), ..settings(&path) });
        assert!(why.unwrap_err().contains("SocketGroup="));
        fs::remove_file(&path).unwrap();
        assert!(take(socket.try_clone().unwrap(), &settings(&path)).unwrap_err().contains("gone"));
        fs::write(&path, "").unwrap();
        assert!(take(socket, &settings(&path)).unwrap_err().contains("no socket any more"));
    }
}

//! The host's journal (systemd-journald), in its own words: fields that can be asked for, not lines of text. In goes what somebody
//! says, field by field; out comes one datagram on its socket (systemd.io/JOURNAL_NATIVE_PROTOCOL). It is never waited for: whoever
//! sends is told if the journal did not take it. A host without one is no error.

mod log;

use std::{
    io,
    os::{
        fd::AsFd,
        unix::net::{SocketAddr, UnixDatagram},
    },
    path::Path,
};

pub use log::Log;

/// Where it listens.
pub const SOCKET: &str = "/run/systemd/journal/socket";

/// Whether `output` leads to the journal, which is what the service manager says of one it connected itself
/// (`$JOURNAL_STREAM`, systemd.exec(5)): programs inherit the variable, and their output may go elsewhere by then.
pub fn is_behind(stream: Option<&str>, output: impl AsFd) -> bool {
    let named = stream.and_then(|stream| {
        let (device, inode) = stream.split_once(':')?;
        Some((device.parse::<u64>().ok()?, inode.parse::<u64>().ok()?))
    });
    named.is_some_and(|named| rustix::fs::fstat(output).is_ok_and(|stat| (stat.st_dev, stat.st_ino) == named))
}

/// How urgent an entry is (syslog(3)).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Priority {
    /// Somebody should come.
    Critical = 2,
    /// Something does not work.
    Error = 3,
    /// Something is not as it should be.
    Warning = 4,
    /// As usual.
    Info = 6,
    /// For whoever looks for a fault.
    Debug = 7,
}

/// Adds a field. `name` is one of ours: capitals, digits and underscores, not beginning with an underscore, 64 at most. `value` may be anybody's:
/// it can end neither the field nor the entry.
pub fn put(entry: &mut Vec<u8>, name: &str, value: &str) {
    entry.extend_from_slice(name.as_bytes());
    if value.contains('\n') {
        entry.push(b'\n');
        entry.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        entry.push(b'=');
    }
    entry.extend_from_slice(value.as_bytes());
    entry.push(b'\n');
}

/// Adds how urgent it is, and whose it is.
pub fn put_head(entry: &mut Vec<u8>, priority: Priority) {
    put(entry, "PRIORITY", &(priority as u8).to_string());
    put(entry, "SYSLOG_IDENTIFIER", "keybearer");
}

/// A way to the journal.
#[derive(Debug)]
pub struct Journal {
    socket: UnixDatagram,
    at: SocketAddr,
}

impl Journal {
    /// A way to the journal that listens at `path`, whether it does already or not.
    ///
    /// # Errors
    /// What the kernel says: there are no descriptors left, or the path is too long for a socket.
    pub fn at(path: &Path) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket, at: SocketAddr::from_pathname(path)? })
    }

    /// Sends an entry, or does not: nothing is waited for.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] if the journal is slow, others if it is not there or the entry is too long for a datagram.
    pub fn send(&self, entry: &[u8]) -> io::Result<()> {
        self.socket.send_to_addr(entry, &self.at).map(drop)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// An entry as journald reads it.
    pub(crate) fn fields(mut entry: &[u8]) -> BTreeMap<String, String> {
        let mut fields = BTreeMap::new();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        while !entry.is_empty() {
            let feed = entry.iter().position(|byte| *byte == b'\n').unwrap();
            let (line, rest) = (&entry[..feed], &entry[feed + 1..]);
            let (name, value, rest) = match line.iter().position(|byte| *byte == b'=') {
                Some(equals) => (&line[..equals], &line[equals + 1..], rest),
                None => {
                    let (length, rest) = rest.split_first_chunk::<8>().unwrap();
                    let length = usize::try_from(u64::from_le_bytes(*length)).unwrap();
                    assert_eq!(rest[length], b'\n');
                    (line, &rest[..length], &rest[length + 1..])
                }
            };
            let twice = fields.insert(text(name), text(value));
            assert_eq!(twice, None, "{}", text(name));
            entry = rest;
        }
        fields
    }

    #[test]
    fn a_value_cannot_end_its_field() {
        let mut entry = Vec::new();
        put(&mut entry, "A", "one");
        put(&mut entry, "B", "two\nPRIORITY=0\n");
        put(&mut entry, "C", "=\u{1f511}=");
        put(&mut entry, "D", "");
        let said: Vec<_> = fields(&entry).into_iter().collect();
        let said: Vec<_> = said.iter().map(|(name, value)| (&**name, &**value)).collect();
        assert_eq!(said, [("A", "one"), ("B", "two\nPRIORITY=0\n"), ("C", "=\u{1f511}="), ("D", "")]);
    }

    #[test]
    fn output_leads_to_the_journal_only_if_it_is_what_was_connected_to_it() {
        let (one, other) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let stat = rustix::fs::fstat(&one).unwrap();
        let stream = format!("{}:{}", stat.st_dev, stat.st_ino);
        assert!(is_behind(Some(&stream), &one));
        assert!(!is_behind(Some(&stream), &other));
        for wrong in [None, Some(""), Some(":"), Some("1"), Some("x:y")] {
            assert!(!is_behind(wrong, &one), "{wrong:?}");
        }
    }
}

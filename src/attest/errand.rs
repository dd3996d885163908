//! For which unit the host's service manager asks. In goes a live connection; out comes the unit that is about to start and the
//! credential that it should find (`LoadCredential=`, systemd.exec(5)), as the manager says it: its process binds the abstract address
//! `\0RANDOM/unit/UNIT/CREDENTIAL` before it connects, and says nothing else.
//!
//! An address proves nothing, anybody can bind one. What counts is that root of this host did, and that the kernel has the process in
//! the cgroup of that very unit (measured with systemd 252: `(sd-mkdcreds)`, uid 0, a grandchild of PID 1 in the unit's cgroup and in a
//! mount namespace of its own, in the host's user namespace even with `PrivateUsers=`; it exits once it has read). The first is looked
//! at here, the second is for policy to weigh. That its program is the manager's is not asked: another root process could become that
//! program by exec and leave the socket with somebody else (E21), so it would prove nothing, and it is not to be had for a while after
//! each update of systemd.

use std::os::fd::AsFd;

use rustix::net::{SocketAddrUnix, getpeername};

use super::{
    AttestError, Evidence, Hold, Login, Manager, Missing, Peer, Unit,
    unit::{plausible, slices_down_to},
};

/// The longest id of a credential (systemd's own limit is that of a file name).
const MAX_ID: usize = 255;

/// The units that have programs, and so credentials.
const KINDS: [&str; 4] = ["service", "socket", "mount", "swap"];

/// What the service manager came for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Errand {
    /// The unit that is about to start.
    pub unit: String,
    /// The id of the credential, as the unit names it: printable ASCII without `/` and `:`.
    pub credential: String,
}

impl Errand {
    /// What `peer` came for, by the address that it connected `socket` from.
    ///
    /// # Errors
    /// [`AttestError::NotServiceManager`] if it is not root, or its address is none of a service manager's.
    pub fn of(socket: impl AsFd, peer: &Peer) -> Result<Self, AttestError> {
        if peer.uid() != 0 {
            return Err(AttestError::NotServiceManager("it is not root"));
        }
        let address =
            getpeername(socket).map_err(|error| AttestError::kernel("getpeername", &error.into()))?;
        let address = address.and_then(|address| SocketAddrUnix::try_from(address).ok());
        let name = address.as_ref().and_then(SocketAddrUnix::abstract_name);
        name.and_then(Self::parse)
            .ok_or(AttestError::NotServiceManager("it connected from no address that names a unit"))
    }

    /// The errand for `credential` of `unit`, for an operator who asks what would come of it; none if there can be no such.
    pub fn imagined(unit: &str, credential: &str) -> Option<Self> {
        Self::parse(format!("0/unit/{unit}/{credential}").as_bytes())
    }

    /// What would be known of the service manager's process if it came on this errand, for a unit in `slice`. No workload comes of
    /// it.
    pub fn evidence(&self, slice: &str) -> Evidence {
        let unit = Unit {
            name: self.unit.clone(),
            manager: Manager::System,
            slices: slices_down_to(slice),
            invocation: None,
        };
        let nothing = Missing::NotAsked;
        Evidence {
            pid: 0,
            start: 0,
            uids: [0; 4],
            gids: [0; 4],
            status: Err(nothing),
            // Its process is the service manager's, which nobody logged in to.
            login: Login::NONE,
            exe: Err(nothing),
            exe_paths: Err(nothing),
            sha256: Err(nothing),
            path_hint: None,
            exec: Ok(()),
            answered: Err(Missing::NotChallenged),
            unit: Ok(unit),
            same_user_namespace: Ok(true),
            mount_namespace: Err(nothing),
            hosts_files: Err(nothing),
            cgroup: String::new(),
            hold: Hold::Socket,
        }
    }

    /// Reads `RANDOM/unit/UNIT/CREDENTIAL`, where RANDOM is 64 bits in hexadecimal without zeros before them.
    pub(super) fn parse(name: &[u8]) -> Option<Self> {
        let name = std::str::from_utf8(name).ok()?;
        let (random, rest) = name.split_once("/unit/")?;
        let (unit, credential) = rest.split_once('/')?;
        let hexadecimal = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        let sound = (1..=16).contains(&random.len())
            && random.bytes().all(hexadecimal)
            && plausible(unit)
            && unit.rsplit_once('.').is_some_and(|(name, kind)| !name.is_empty() && KINDS.contains(&kind))
            && (1..=MAX_ID).contains(&credential.len())
            && ![".", ".."].contains(&credential)
            && credential.bytes().all(|byte| matches!(byte, b' '..=b'~') && !b"/:".contains(&byte));
        sound.then(|| Self { unit: unit.to_owned(), credential: credential.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::attest::properties::errand;

    proptest! {
        #[test]
        fn what_was_bound_is_what_is_read(
            random in any::<u64>(),
            unit in r"[a-zA-Z0-9:_.\\@-]{1,30}\.service",
            credential in "[a-zA-Z0-9_.-]{0,20}[a-zA-Z0-9]",
        ) {
            let read = Errand::parse(format!("{random:x}/unit/{unit}/{credential}").as_bytes());
            prop_assert_eq!(read, Some(Errand { unit, credential }));
        }

        #[test]
        fn one_byte_more_or_other_is_another_errand_or_none(at in 0_usize..60, byte in any::<u8>(), insert in any::<bool>()) {
            let mut name = b"b172944aab594534/unit/shop.service/orders.token".to_vec();
            let at = at.min(name.len() - 1);
            if insert { name.insert(at, byte) } else { name[at] = byte }
            errand(&name);
        }
    }

    #[test]
    fn an_address_as_systemd_binds_it() {
        // Measured with systemd 252.
        for (name, unit, credential) in [
            ("b172944aab594534/unit/shop.service/orders.token", "shop.service", "orders.token"),
            ("0/unit/worker@7.service/tls", "worker@7.service", "tls"),
            (r"6f17f06f5e386910/unit/my\x2dapp.service/a b", r"my\x2dapp.service", "a b"),
        ] {
            let errand = Errand { unit: unit.into(), credential: credential.into() };
            assert_eq!(Errand::parse(name.as_bytes()), Some(errand), "{name}");
        }
    }

    #[test]
    fn anything_else_is_nobodys_errand() {
        let long = format!("1/unit/a.service/{}", "x".repeat(256));
        for name in [
            "",
            "1",
            "1/unit/a.service",
            "1/unit/a.service/",
            "1/unit//orders",
            "/unit/a.service/orders",
            "1/unit/a.service/orders/more",
            "1/unit/../orders",
            "1/unit/.service/orders",
            "1/unit/a.scope/orders",
            "1/unit/a.service/..",
            "1/unit/a.service/a:b",
            "1/unit/a.service/a\nb",
            "1/unit/a.service/a\0",
            "1/unit/a service/orders",
            "1/user/a.service/orders",
            "G/unit/a.service/orders",
            "A/unit/a.service/orders",
            "12345678901234567/unit/a.service/orders",
            "x1/unit/a.service/orders",
            &long,
        ] {
            assert_eq!(Errand::parse(name.as_bytes()), None, "{name:?}");
        }
        assert_eq!(Errand::parse(b"1/unit/a.service/\xff"), None);
    }
}

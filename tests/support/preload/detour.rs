//! A detour on a program's way to a server: `connect` of the C library, put before the real one by `LD_PRELOAD`. In goes
//! `KB_DETOUR`, two ports as `FROM:TO`; out come connections to TO wherever the program meant FROM on IPv4, so that whoever
//! listens there sees what the program says to whom it takes for the other.
#![expect(
    unsafe_code,
    reason = "a function of the C library is replaced by one that makes its own system call"
)]

use std::{env, mem::size_of, sync::OnceLock};

use libc::{AF_INET, SYS_connect, c_int, sa_family_t, sockaddr, sockaddr_in, socklen_t};

// SAFETY: the name, the arguments and the result are those of connect(2).
#[unsafe(no_mangle)]
extern "C" fn connect(socket: c_int, address: *const sockaddr, length: socklen_t) -> c_int {
    let there = (length as usize >= size_of::<sockaddr_in>())
        // SAFETY: the caller says that so many bytes stand there.
        .then(|| unsafe { address.cast::<sockaddr_in>().read_unaligned() })
        .filter(|there| there.sin_family == AF_INET as sa_family_t);
    let failed = match (there, ports()) {
        (Some(mut there), Some((from, to))) if u16::from_be(there.sin_port) == from => {
            there.sin_port = to.to_be();
            // SAFETY: the address is ours, and of this length.
            unsafe { libc::syscall(SYS_connect, socket, &raw const there, length) }
        }
        // SAFETY: the caller's pointer is the kernel's to check.
        _ => unsafe { libc::syscall(SYS_connect, socket, address, length) },
    };
    c_int::try_from(failed).unwrap_or(-1)
}

fn ports() -> Option<(u16, u16)> {
    static PORTS: OnceLock<Option<(u16, u16)>> = OnceLock::new();
    *PORTS.get_or_init(|| {
        let written = env::var("KB_DETOUR").ok()?;
        let (from, to) = written.split_once(':')?;
        Some((from.parse().ok()?, to.parse().ok()?))
    })
}

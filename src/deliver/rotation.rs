//! What happens to a program when what it was given changes. In goes a word of the settings; out comes what is to be done.

use std::{fmt, path::PathBuf, str::FromStr};

use crate::secret::scrubbed;

/// What a rotation does to the program that was given the credential before.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum AtRotation {
    /// Nothing: it reads its file again by itself, or goes on with what it has.
    #[default]
    Nothing,
    /// It is told.
    Signal(Signal),
    /// It is ended and started again.
    Restart,
    /// A program is run beside it, without arguments and without a shell.
    Command(PathBuf),
}

impl FromStr for AtRotation {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "none" => Ok(Self::Nothing),
            None if text == "restart" => Ok(Self::Restart),
            Some(("signal", name)) => Ok(Self::Signal(name.parse()?)),
            Some(("command", path)) if path.starts_with('/') => Ok(Self::Command(path.into())),
            _ => Err(format!(
                "{:?} is nothing to do at a rotation: it has to be \"none\", \"restart\", \"signal:HUP\" or \"command:/PATH\"",
                scrubbed(text, 64)
            )),
        }
    }
}

impl fmt::Display for AtRotation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("none"),
            Self::Signal(signal) => write!(f, "signal:{signal}"),
            Self::Restart => f.write_str("restart"),
            Self::Command(path) => write!(f, "command:{}", path.display()),
        }
    }
}

/// A signal that programs are told things by.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Signal(rustix::process::Signal);

impl Signal {
    /// SIGTERM.
    pub const TERM: Self = Self(rustix::process::Signal::TERM);

    const KNOWN: [(&str, rustix::process::Signal); 7] = [
        ("HUP", rustix::process::Signal::HUP),
        ("INT", rustix::process::Signal::INT),
        ("QUIT", rustix::process::Signal::QUIT),
        ("USR1", rustix::process::Signal::USR1),
        ("USR2", rustix::process::Signal::USR2),
        ("TERM", rustix::process::Signal::TERM),
        ("WINCH", rustix::process::Signal::WINCH),
    ];

    /// As the kernel takes it.
    pub fn raw(self) -> rustix::process::Signal {
        self.0
    }
}

impl FromStr for Signal {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bare = text.strip_prefix("SIG").unwrap_or(text);
        let found = Self::KNOWN.iter().find(|(name, _)| *name == bare);
        found.map(|(_, signal)| Self(*signal)).ok_or_else(|| {
            let names = Self::KNOWN.map(|(name, _)| name).join(", ");
            format!("{:?} is none of the signals {names}", scrubbed(text, 32))
        })
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = Self::KNOWN.iter().find(|(_, signal)| *signal == self.0);
        f.write_str(known.map_or("?", |(name, _)| name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_round_trip() {
        for word in ["none", "restart", "signal:HUP", "signal:USR1", "command:/usr/bin/true"] {
            assert_eq!(word.parse::<AtRotation>().unwrap().to_string(), word);
        }
        assert_eq!("signal:SIGHUP".parse::<AtRotation>().unwrap().to_string(), "signal:HUP");
        for bad in ["", "signal", "signal:KILL", "signal:", "command:true", "reload", "none:"] {
            assert!(bad.parse::<AtRotation>().is_err(), "{bad:?}");
        }
    }
}

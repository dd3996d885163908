//! The name of an environment variable, and whether it is one that makes other code run. In goes a text; out comes a name that
//! every shell, service manager and program can read.

use std::{fmt, str::FromStr};

/// The name of an environment variable: a letter or `_`, then letters, digits and `_` (POSIX.1-2017, 3.235).
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Variable(String);

/// Names by which somebody makes a loader or an interpreter run something else, or read its settings elsewhere.
const STEERING: [&str; 58] = [
    "BASH_ENV",
    "BUNDLE_GEMFILE",
    "CLASSPATH",
    "CORECLR_PROFILER_PATH",
    "DOTNET_STARTUP_HOOKS",
    "EDITOR",
    "ENV",
    "ERL_AFLAGS",
    "ERL_FLAGS",
    "GCONV_PATH",
    "GEM_HOME",
    "GEM_PATH",
    "GIT_ASKPASS",
    "GIT_CONFIG_COUNT",
    "GIT_CONFIG_GLOBAL",
    "GIT_CONFIG_PARAMETERS",
    "GIT_CONFIG_SYSTEM",
    "GIT_EDITOR",
    "GIT_EXEC_PATH",
    "GIT_EXTERNAL_DIFF",
    "GIT_PAGER",
    "GIT_PROXY_COMMAND",
    "GIT_SSH",
    "GIT_SSH_COMMAND",
    "GLIBC_TUNABLES",
    "IFS",
    "JAVA_TOOL_OPTIONS",
    "JDK_JAVA_OPTIONS",
    "LESSOPEN",
    "LUA_CPATH",
    "LUA_INIT",
    "LUA_PATH",
    "MALLOC_CHECK_",
    "NODE_OPTIONS",
    "NODE_PATH",
    "OPENSSL_CONF",
    "OPENSSL_ENGINES",
    "OPENSSL_MODULES",
    "PAGER",
    "PATH",
    "PERL5DB",
    "PERL5LIB",
    "PERL5OPT",
    "PHPRC",
    "PHP_INI_SCAN_DIR",
    "PROMPT_COMMAND",
    "PS4",
    "PYTHONBREAKPOINT",
    "PYTHONHOME",
    "PYTHONPATH",
    "PYTHONSTARTUP",
    "PYTHONUSERBASE",
    "RUBYLIB",
    "RUBYOPT",
    "SHELLOPTS",
    "SSH_ASKPASS",
    "VISUAL",
    "_JAVA_OPTIONS",
];

impl Variable {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is a name that a loader or an interpreter obeys: a value from an issuer must not get there by mistake.
    pub fn steers_the_loader(&self) -> bool {
        self.0.starts_with("LD_") || self.0.starts_with("DYLD_") || STEERING.contains(&self.0.as_str())
    }

    /// Whether it tells a program where its agent is: nothing that a program gets to see unless it is asked for.
    pub fn is_the_brokers(&self) -> bool {
        self.0.starts_with("KEYBEARER_")
    }
}

impl FromStr for Variable {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let mut bytes = name.bytes();
        let sound = bytes.next().is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
            && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
            && name.len() <= 255;
        if !sound {
            let shown = crate::secret::scrubbed(name, 64);
            return Err(format!(
                "{shown:?} is no name of a variable: it has to be letters, digits and _, not beginning with a digit"
            ));
        }
        Ok(Self(name.to_owned()))
    }
}

impl fmt::Display for Variable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_what_every_shell_takes() {
        for good in ["A", "_", "LEDGER_TOKEN", "a1"] {
            assert_eq!(good.parse::<Variable>().unwrap().as_str(), good);
        }
        for bad in ["", "1A", "A-B", "A=B", "A B", "Ä", "A\n", "A\0", &"A".repeat(256)] {
            assert!(bad.parse::<Variable>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn names_that_run_other_code_are_known() {
        for name in [
            "LD_PRELOAD",
            "LD_AUDIT",
            "DYLD_INSERT_LIBRARIES",
            "NODE_OPTIONS",
            "PATH",
            "IFS",
            "_JAVA_OPTIONS",
            "GIT_SSH",
            "OPENSSL_CONF",
        ] {
            assert!(name.parse::<Variable>().unwrap().steers_the_loader(), "{name}");
        }
        for name in ["LEDGER_TOKEN", "PGUSER", "ENVIRONMENT", "OLD_TOKEN"] {
            assert!(!name.parse::<Variable>().unwrap().steers_the_loader(), "{name}");
        }
    }
}

//! Whether a value can be the secret that its name promises. In goes the value; out comes yes or no. References to a secret, what is
//! encrypted, hashes, public halves, paths and what stands there to be replaced are none.

use super::name::Says;

/// Whether `value`, under `name`, is a secret in clear.
pub(super) fn is_secret(says: Says, name: &str, value: &str) -> bool {
    if !is_plain(value) || is_stand_in(value) || same_words(name, value) {
        return false;
    }
    match says {
        Says::Password => (4..=256).contains(&value.len()) && !is_name(value) && !is_sentence(value),
        Says::Secret => {
            (8..=4096).contains(&value.len())
                && !value.contains(char::is_whitespace)
                && !is_name(value)
                && !is_number(value)
                && (is_mixed(value) || looks_random(value))
        }
        Says::Key => looks_random(value),
    }
}

/// Whether it is what it is: no reference, not encrypted, no hash, no public half, no path, no place on the net.
pub(super) fn is_plain(value: &str) -> bool {
    // Of a JWT its shape tells more: one that has ended is nothing any more.
    let jwt = value.starts_with("eyJ") && value.split('.').count() == 3;
    !(is_reference(value)
        || is_encrypted(value)
        || is_hash(value)
        || is_public(value)
        || is_path(value)
        || is_place(value)
        || jwt)
}

/// Something that is replaced by a value, or names one that is elsewhere.
pub(super) fn is_reference(value: &str) -> bool {
    const ANYWHERE: [&str; 14] = [
        "${",
        "$(",
        "{{",
        "}}",
        "<%",
        "%(",
        "$[[",
        "process.env",
        "os.environ",
        "getenv(",
        "env::var",
        "System.get",
        "[[",
        "#{",
    ];
    const HEADS: [&str; 35] = [
        "!",
        "@Microsoft.KeyVault",
        "arn:",
        "credentials(",
        "data.",
        "env.",
        "env:",
        "ENV[",
        "env(",
        "file:",
        "file(",
        "gcp-sm:",
        "keyring:",
        "local.",
        "lookup(",
        "module.",
        "op://",
        "params.",
        "projects/",
        "ref+",
        "resolve:",
        "secret:",
        "secret://",
        "secrets.",
        "secrets/",
        "secretRef",
        "ssm:",
        "var.",
        "vault:",
        "vault://",
        "vault(",
        "bao:",
        "from_secret",
        "awssm:",
        "sm://",
    ];
    if ANYWHERE.iter().any(|part| value.contains(part)) || HEADS.iter().any(|head| value.starts_with(head)) {
        return true;
    }
    let is_variable = |text: &str| {
        !text.is_empty()
            && !text.starts_with(|c: char| c.is_ascii_digit())
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    };
    let between = |mark: char| {
        value.len() > 2
            && value.starts_with(mark)
            && value.ends_with(mark)
            && is_variable(&value[1..value.len() - 1])
    };
    // $VAR in capitals, or the like of a positional parameter; a password may well begin with a dollar.
    let dollar = value.strip_prefix('$').is_some_and(|name| {
        is_variable(name) && !name.bytes().any(|byte| byte.is_ascii_lowercase())
            || is_variable(name) && (name.contains('_') || !name.bytes().any(|byte| byte.is_ascii_digit()))
            || name.len() == 1
    });
    // systemd's specifiers, and those of shells on Windows and of autoconf.
    dollar || between('%') || between('@') || value.starts_with("%d/") || value.starts_with("%t/")
}

/// What only somebody with another key can read.
pub(super) fn is_encrypted(value: &str) -> bool {
    const HEADS: [&str; 13] = [
        "ENC[",
        "ENC(",
        "$ANSIBLE_VAULT",
        "{cipher}",
        "{DES",
        "{AES",
        "vault:v",
        "k8s:enc:",
        "-----BEGIN AGE ENCRYPTED",
        "-----BEGIN PGP MESSAGE",
        "AQICAH",
        "enc:",
        "encrypted:",
    ];
    // Maven writes what it encrypts in braces.
    let braces = value.len() > 20 && value.starts_with('{') && value.ends_with("=}");
    braces || HEADS.iter().any(|head| value.starts_with(head))
}

/// What was made from a secret and does not lead back to it.
pub(super) fn is_hash(value: &str) -> bool {
    const HEADS: [&str; 24] = [
        "$1$",
        "$2a$",
        "$2b$",
        "$2y$",
        "$5$",
        "$6$",
        "$7$",
        "$y$",
        "$gy$",
        "$apr1$",
        "$argon2",
        "$pbkdf2",
        "$scrypt",
        "pbkdf2_",
        "{bcrypt}",
        "{pbkdf2",
        "{argon2",
        "{scrypt",
        "SCRAM-SHA-",
        "{SSHA",
        "{SHA",
        "{CRYPT}",
        "sha256:",
        "argon2:",
    ];
    let sri =
        ["sha1-", "sha256-", "sha384-", "sha512-", "sha512:"].iter().any(|head| value.starts_with(head));
    let postgres = value.len() == 35
        && value.starts_with("md5")
        && value[3..].bytes().all(|byte| byte.is_ascii_hexdigit());
    sri || postgres || HEADS.iter().any(|head| value.starts_with(head))
}

fn is_public(value: &str) -> bool {
    const HEADS: [&str; 10] = [
        "ssh-",
        "ecdsa-sha2-",
        "sk-ssh-",
        "sk-ecdsa-",
        "-----BEGIN CERT",
        "-----BEGIN PUBLIC",
        "-----BEGIN X509",
        "age1",
        "LS0tLS1CRUdJTiBDRVJU",
        "MFkwEwYHKoZIzj0",
    ];
    HEADS.iter().any(|head| value.starts_with(head))
}

fn is_path(value: &str) -> bool {
    let absolute = value.starts_with("./")
        || value.starts_with("../")
        || value.starts_with("~/")
        || value.get(1..3) == Some(":\\")
        // What is base64 may begin with a slash too, but its parts are long or hold a plus.
        || value.starts_with('/') && !value.contains(['+', '=']) && value.split('/').all(|part| part.len() < 28);
    let file = [
        ".pem", ".key", ".crt", ".txt", ".json", ".yaml", ".yml", ".env", ".conf", ".jks", ".p12", ".secret",
        ".toml",
    ];
    let is_file = !value.contains(char::is_whitespace) && file.iter().any(|end| value.ends_with(end));
    absolute && (value.len() > 1) || is_file
}

/// A URL without a password in it, which is looked for elsewhere.
fn is_place(value: &str) -> bool {
    value.contains("://") || value.starts_with("urn:") || value.starts_with("mailto:")
}

/// What stands there to be replaced, and words that are settings.
pub(super) fn is_stand_in(value: &str) -> bool {
    const PARTS: [&str; 24] = [
        "changeme",
        "change-me",
        "change_me",
        "changeit",
        "changethis",
        "change-this",
        "change_this",
        "replaceme",
        "replace-me",
        "replace_me",
        "replace-with",
        "replace_with",
        "your-",
        "your_",
        "yourpass",
        "yoursecret",
        "yourtoken",
        "example",
        "placeholder",
        "dummy",
        "redacted",
        "fill-in",
        "fill_in",
        "insert-",
    ];
    const WORDS: [&str; 86] = [
        "abc123",
        "admin_password",
        "always",
        "any",
        "apikey",
        "ask",
        "auto",
        "bool",
        "boolean",
        "bytes",
        "char",
        "compat",
        "cram-md5",
        "db",
        "default",
        "disabled",
        "empty",
        "enabled",
        "env",
        "exec",
        "fake",
        "false",
        "file",
        "files",
        "fixme",
        "foo",
        "foobar",
        "generate",
        "generated",
        "hidden",
        "inherit",
        "int",
        "integer",
        "invalid",
        "keyring",
        "ldap",
        "literal",
        "login",
        "md5",
        "missing",
        "my-password",
        "mypassword",
        "mysecret",
        "never",
        "nil",
        "nis",
        "none",
        "not-set",
        "null",
        "object",
        "off",
        "optional",
        "pam",
        "pass",
        "passphrase",
        "passwd",
        "password",
        "plain",
        "prompt",
        "pwd",
        "random",
        "required",
        "secret",
        "sensitive",
        "sha256",
        "sha512",
        "some",
        "sss",
        "stdin",
        "str",
        "string",
        "systemd",
        "tbd",
        "test",
        "text",
        "todo",
        "token",
        "true",
        "undef",
        "undefined",
        "unknown",
        "unset",
        "varchar",
        "winbind",
        "xxx",
        "yes",
    ];
    let small = value.trim_matches(['"', '\'', '`']).to_ascii_lowercase();
    let first = small.bytes().next();
    let marked = ("<", ">");
    WORDS.contains(&small.as_str())
        || PARTS.iter().any(|part| small.contains(part))
        || small.starts_with(marked.0) && small.ends_with(marked.1)
        || small.starts_with('[') && small.ends_with(']')
        || small.contains("xxxx")
        || small.contains("****")
        || small.contains("...")
        || small.bytes().all(|byte| Some(byte) == first)
        || small.bytes().all(|byte| !byte.is_ascii_alphanumeric() && byte.is_ascii())
}

/// The value repeats its name, which nobody does with a secret.
fn same_words(name: &str, value: &str) -> bool {
    let only = |text: &str| -> String {
        text.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
    };
    let (name, value) = (only(name), only(value));
    !value.is_empty() && (name == value || name.ends_with(&value))
}

/// What names a secret that lies elsewhere, such as `shop-db-password`: small words, and one of them is the secret's.
fn is_name(value: &str) -> bool {
    const OF: [&str; 10] = [
        "password",
        "passwords",
        "passwd",
        "secret",
        "secrets",
        "token",
        "key",
        "credentials",
        "creds",
        "pass",
    ];
    let lettered = value.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_./".contains(&byte));
    lettered
        && !value.bytes().any(|byte| byte.is_ascii_digit())
        && value.split(['-', '_', '.', '/']).any(|word| OF.contains(&word.to_ascii_lowercase().as_str()))
}

fn is_sentence(value: &str) -> bool {
    const SMALL: [&str; 22] = [
        "a", "and", "are", "be", "by", "can", "enter", "for", "if", "in", "is", "must", "not", "of", "or",
        "please", "the", "this", "to", "use", "with", "your",
    ];
    let mut words = value.split_whitespace();
    value.contains(char::is_whitespace)
        && words.any(|word| SMALL.contains(&word.to_ascii_lowercase().as_str()))
}

fn is_number(value: &str) -> bool {
    value.bytes().all(|byte| byte.is_ascii_digit() || b".,-+_".contains(&byte))
}

/// Of several sorts of characters, as what a machine or a careful person makes.
fn is_mixed(value: &str) -> bool {
    let has = |sort: fn(&u8) -> bool| value.bytes().any(|byte| sort(&byte));
    let marks = value.bytes().any(|byte| b"!@#$%^&*?+=~".contains(&byte));
    let sorts = [has(u8::is_ascii_lowercase), has(u8::is_ascii_uppercase), has(u8::is_ascii_digit), marks];
    // Calls and expressions of a program are no values.
    sorts.iter().filter(|has| **has).count() >= 3 && !value.contains(['(', ')', '[', ']', '{', '}', '<', '>'])
}

/// Whether chance made it, not a person who names things: its letters and digits change places all the time.
pub(super) fn looks_random(value: &str) -> bool {
    let lettered = |byte: u8| byte.is_ascii_alphanumeric() || b"+/=_.~-:!@#$%^&*?".contains(&byte);
    if value.len() < 8 || value.len() > 4096 || !value.bytes().all(lettered) {
        return false;
    }
    let sort = |byte: u8| match byte {
        b'a'..=b'z' => Some(0),
        b'A'..=b'Z' => Some(1),
        b'0'..=b'9' => Some(2),
        _ => None,
    };
    let sorts: Vec<Option<u8>> = value.bytes().map(sort).collect();
    let turns =
        sorts.windows(2).filter(|pair| matches!(pair, [Some(one), Some(other)] if one != other)).count();
    let alphanumeric = sorts.iter().flatten().count();
    let digits = sorts.iter().filter(|sort| **sort == Some(2)).count();
    digits > 0 && digits < alphanumeric && turns * 5 >= alphanumeric && entropy(value) >= 2.5
}

/// Shannon's, in bits for each byte.
pub(super) fn entropy(value: &str) -> f64 {
    let mut counts = [0u32; 256];
    value.bytes().for_each(|byte| counts[usize::from(byte)] += 1);
    let all = value.len().max(1) as f64;
    let of = |count: &u32| {
        let share = f64::from(*count) / all;
        -share * share.log2()
    };
    counts.iter().filter(|count| **count > 0).map(of).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_may_be_weak() {
        for value in ["hunter22", "Summer2024!", "postgres", "12345678", "correct horse battery", "$ommer24"]
        {
            assert!(is_secret(Says::Password, "DB_PASSWORD", value), "{value}");
        }
    }

    #[test]
    fn what_is_no_value_in_clear_is_left_alone() {
        for value in [
            "",
            "x",
            "changeme",
            "CHANGE_ME_NOW",
            "<your password>",
            "your-password-here",
            "${DB_PASSWORD}",
            "$DB_PASSWORD",
            "$(cat /run/secrets/db)",
            "{{ vault_db_password }}",
            "%(password)s",
            "vault:secret/data/db#password",
            "op://shop/db/pw",
            "ENC[AES256_GCM,data:abcd,iv:..,tag:..]",
            "$ANSIBLE_VAULT;1.1;AES256",
            "{cipher}AQB0",
            "$2y$10$N9qo8uLOickgx2ZMRZoMy.",
            "$6$rounds=5000$salt$hash",
            "/run/secrets/db",
            "./db.key",
            "********",
            "xxxxxxxx",
            "password",
            "DB_PASSWORD",
            "null",
            "shop-db-password",
            "Enter your password",
            "arn:aws:secretsmanager:eu-west-1:1:secret:db",
            "%d/db",
            "SCRAM-SHA-256$4096:salt$a:b",
            "secrets.DB_PASSWORD",
        ] {
            assert!(!is_secret(Says::Password, "DB_PASSWORD", value), "{value}");
        }
        for value in [
            "shop-tls-2024",
            "my-app-secret",
            "4096",
            "true",
            "string",
            "bearer",
            "not_before",
            "get_token(x1Y)",
        ] {
            assert!(!is_secret(Says::Secret, "token", value), "{value}");
        }
        for value in
            ["primary", "actions-cache-v1-linux-2024", "user_id", "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI"]
        {
            assert!(!is_secret(Says::Key, "cache_key", value), "{value}");
        }
    }

    #[test]
    fn chance_is_told_from_names() {
        for value in ["9f8a1c3e5b7d2046", "Zx81kQ0vTq3LmNw7", "3f2504e0-4f89-41d3-9a0c-0305e82c3301"] {
            assert!(looks_random(value), "{value}");
        }
        for value in ["aaaaaaaaaaaaaaaa", "shop-payments-service", "1234567890123456", "release-2024-11-07"] {
            assert!(!looks_random(value), "{value}");
        }
    }
}

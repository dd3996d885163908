//! What a name says of its value. In goes the name of a variable or key; out comes whether it is one of a secret, and of which sort.
//! Names that speak about a secret (`password_file`, `token_endpoint`, `secretName`) are none.

/// The sort of secret that a name promises. The value has to keep the promise, each sort in its own way.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Says {
    /// A password: people choose those, so anything can be one.
    Password,
    /// A token or a secret: machines make those.
    Secret,
    /// A key, which is a word of many meanings: only chance tells.
    Key,
}

/// After the word for a secret, these say that it is about the secret.
const ABOUT: [&str; 102] = [
    "age",
    "alg",
    "algorithm",
    "algo",
    "algorithms",
    "arn",
    "attempts",
    "attribute",
    "auth",
    "authentication",
    "bits",
    "cache",
    "check",
    "class",
    "column",
    "command",
    "count",
    "created",
    "curve",
    "days",
    "digest",
    "dir",
    "directory",
    "enabled",
    "encoding",
    "encryption",
    "endpoint",
    "env",
    "exchange",
    "expiration",
    "expires",
    "expiry",
    "field",
    "file",
    "filename",
    "fingerprint",
    "format",
    "grace",
    "hash",
    "header",
    "hint",
    "host",
    "id",
    "ids",
    "issuer",
    "label",
    "length",
    "lifetime",
    "limit",
    "location",
    "max",
    "method",
    "min",
    "mode",
    "mount",
    "name",
    "names",
    "namespace",
    "param",
    "parameter",
    "path",
    "paths",
    "policy",
    "prefix",
    "prompt",
    "property",
    "provider",
    "ref",
    "reference",
    "regex",
    "reset",
    "rotation",
    "scope",
    "selector",
    "store",
    "suffix",
    "timeout",
    "ttl",
    "type",
    "uri",
    "url",
    "version",
    // What an interface says of them.
    "button",
    "confirm",
    "description",
    "disabled",
    "error",
    "handler",
    "help",
    "input",
    "invalid",
    "keep",
    "manager",
    "match",
    "message",
    "mgr",
    "ph",
    "placeholder",
    "set",
    "success",
    "title",
    "tooltip",
];

/// Anywhere, these say that nobody has to hide it.
const OPEN: [&str; 14] = [
    "encrypted",
    "hashed",
    "hash",
    "public",
    "pub",
    "sealed",
    "checksum",
    "digest",
    "fingerprint",
    "sha256",
    "nopasswd",
    "integrity",
    "thumbprint",
    "csrf",
];

/// Before `key`, these make it a key that has to be hidden.
const KEYS: [&str; 30] = [
    "access",
    "account",
    "admin",
    "api",
    "app",
    "application",
    "auth",
    "client",
    "cookie",
    "cookies",
    "crypt",
    "data",
    "deploy",
    "encrypt",
    "encryption",
    "hmac",
    "jwt",
    "license",
    "master",
    "preshared",
    "private",
    "root",
    "secret",
    "service",
    "session",
    "shared",
    "sign",
    "signing",
    "storage",
    "webhook",
];

/// What `name` says its value is.
pub(super) fn says(name: &str) -> Option<Says> {
    let words = words(name);
    if words.iter().any(|word| OPEN.contains(&word.as_str())) {
        return None;
    }
    let (at, says) = words.iter().enumerate().rev().find_map(|(at, word)| {
        let before = at.checked_sub(1).and_then(|before| words.get(before)).map(String::as_str);
        Some((at, word_says(word, before)?))
    })?;
    let after = &words[at + 1..];
    // The secret half of an AppRole is called an id.
    let secret_id = says == Says::Secret && after == ["id"] && words[at] == "secret";
    let about = after.iter().any(|word| ABOUT.contains(&word.as_str()));
    (!about || secret_id).then_some(says)
}

fn word_says(word: &str, before: Option<&str>) -> Option<Says> {
    const PASSWORDS: [&str; 4] = ["password", "passwd", "passphrase", "passcode"];
    const SECRETS: [&str; 7] =
        ["secret", "token", "secrets", "credential", "credentials", "bearer", "webhook"];
    const TOGETHER: [&str; 7] =
        ["apikey", "accesskey", "secretkey", "privatekey", "authkey", "signingkey", "sharedkey"];
    if PASSWORDS.iter().any(|one| word.ends_with(one))
        || ["pass", "pwd", "pw", "psk", "passwords", "requirepass", "masterauth", "storepass", "keypass"]
            .contains(&word)
    {
        return Some(Says::Password);
    }
    if SECRETS.contains(&word) || word.ends_with("secret") || word.ends_with("token") {
        return Some(Says::Secret);
    }
    if TOGETHER.iter().any(|one| word.ends_with(one)) {
        return Some(Says::Secret);
    }
    match word {
        "key" if before.is_some_and(|before| KEYS.contains(&before)) => Some(Says::Secret),
        "key" if before.is_some() => Some(Says::Key),
        _ => None,
    }
}

/// The words of a name in small letters: `clientSecret`, `CLIENT_SECRET` and `client-secret` are the same.
pub(super) fn words(name: &str) -> Vec<String> {
    let (mut words, mut word) = (vec![], String::new());
    let letters: Vec<char> = name.chars().take(256).collect();
    for (at, c) in letters.iter().copied().enumerate() {
        let before = at.checked_sub(1).map(|before| letters[before]);
        let after = letters.get(at + 1).copied();
        let begins = c.is_ascii_uppercase()
            && (before.is_some_and(|before| before.is_ascii_lowercase() || before.is_ascii_digit())
                || before.is_some_and(|before| before.is_ascii_uppercase())
                    && after.is_some_and(|after| after.is_ascii_lowercase()));
        if (!c.is_ascii_alphanumeric() || begins) && !word.is_empty() {
            words.push(std::mem::take(&mut word));
        }
        if c.is_ascii_alphanumeric() {
            word.push(c.to_ascii_lowercase());
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

/// Whether `name` is of a database, by its words.
pub(super) fn of_database(name: &str) -> bool {
    const DATABASES: [&str; 16] = [
        "database",
        "db",
        "pg",
        "postgres",
        "postgresql",
        "pgpassword",
        "mysql",
        "mariadb",
        "mongo",
        "mongodb",
        "mssql",
        "oracle",
        "redis",
        "sql",
        "sqlserver",
        "cassandra",
    ];
    words(name).iter().any(|word| DATABASES.contains(&word.as_str()) || word.starts_with("pgpass"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_what_its_value_is() {
        for (name, sort) in [
            ("DB_PASSWORD", Says::Password),
            ("dbPass", Says::Password),
            ("PGPASSWORD", Says::Password),
            ("spring.datasource.password", Says::Password),
            ("requirepass", Says::Password),
            ("clientSecret", Says::Secret),
            ("VAULT_SECRET_ID", Says::Secret),
            ("_authToken", Says::Secret),
            ("aws_secret_access_key", Says::Secret),
            ("SECRET_KEY_BASE", Says::Secret),
            ("apikey", Says::Secret),
            ("PrivateKey", Says::Secret),
            ("STRIPE_KEY", Says::Key),
        ] {
            assert_eq!(says(name), Some(sort), "{name}");
        }
    }

    #[test]
    fn a_name_about_a_secret_is_none() {
        for name in [
            "password_file",
            "token_endpoint",
            "secretName",
            "tokenURL",
            "access_key_id",
            "AWS_SECRET_ACCESS_KEY_ARN",
            "PASS_MAX_DAYS",
            "PasswordAuthentication",
            "public_key",
            "password_hash",
            "token_ttl_seconds",
            "bypass",
            "compass",
            "key",
            "monkey",
            "tokenizer",
            "max_tokens",
            "NOPASSWD",
        ] {
            assert_eq!(says(name), None, "{name}");
        }
    }
}

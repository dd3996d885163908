//! Secrets that give themselves away by their shape, wherever they stand. In goes a line; out come places in it and what stands
//! there. The prefixes are those that their issuers document, most of them so that scanners can know them.

use std::ops::Range;

use base64::{Engine as _, prelude::BASE64_STANDARD, prelude::BASE64_URL_SAFE_NO_PAD};
use jiff::Timestamp;
use serde_json::Value;

use super::{
    Kind,
    value::{entropy, is_encrypted, is_hash, is_reference, is_stand_in},
};

/// A documented prefix, what follows it, and how much of it at least and at most.
struct Shape(&'static str, Tail, usize, usize, Kind);

#[derive(Clone, Copy)]
enum Tail {
    Capital,
    Hex,
    Letter,
    Word,
    Dotted,
}

impl Tail {
    fn has(self, byte: u8) -> bool {
        match self {
            Self::Capital => byte.is_ascii_uppercase() || byte.is_ascii_digit(),
            Self::Hex => byte.is_ascii_hexdigit(),
            Self::Letter => byte.is_ascii_alphanumeric(),
            Self::Word => byte.is_ascii_alphanumeric() || b"-_".contains(&byte),
            Self::Dotted => byte.is_ascii_alphanumeric() || b"-_.".contains(&byte),
        }
    }
}

const LONG: usize = 512;

const SHAPES: [Shape; 52] = [
    Shape("AKIA", Tail::Capital, 16, 16, Kind::AwsKey),
    Shape("ASIA", Tail::Capital, 16, 16, Kind::AwsKey),
    Shape("ABIA", Tail::Capital, 16, 16, Kind::AwsKey),
    Shape("AGE-SECRET-KEY-1", Tail::Capital, 50, 64, Kind::AgeKey),
    Shape("ghp_", Tail::Letter, 36, LONG, Kind::GithubToken),
    Shape("gho_", Tail::Letter, 36, LONG, Kind::GithubToken),
    Shape("ghu_", Tail::Letter, 36, LONG, Kind::GithubToken),
    Shape("ghs_", Tail::Letter, 36, LONG, Kind::GithubToken),
    Shape("ghr_", Tail::Letter, 36, LONG, Kind::GithubToken),
    Shape("github_pat_", Tail::Word, 40, LONG, Kind::GithubToken),
    Shape("glpat-", Tail::Dotted, 20, LONG, Kind::GitlabToken),
    Shape("gldt-", Tail::Dotted, 20, LONG, Kind::GitlabToken),
    Shape("glrt-", Tail::Dotted, 20, LONG, Kind::GitlabToken),
    Shape("glptt-", Tail::Dotted, 20, LONG, Kind::GitlabToken),
    Shape("glagent-", Tail::Dotted, 20, LONG, Kind::GitlabToken),
    Shape("hvs.", Tail::Word, 24, LONG, Kind::VaultToken),
    Shape("hvb.", Tail::Word, 24, LONG, Kind::VaultToken),
    Shape("hvr.", Tail::Word, 24, LONG, Kind::VaultToken),
    Shape("npm_", Tail::Letter, 36, 36, Kind::RegistryToken),
    Shape("pypi-AgE", Tail::Word, 50, LONG, Kind::RegistryToken),
    Shape("rubygems_", Tail::Hex, 48, 48, Kind::RegistryToken),
    Shape("dckr_pat_", Tail::Word, 20, LONG, Kind::RegistryToken),
    Shape("dckr_oat_", Tail::Word, 20, LONG, Kind::RegistryToken),
    Shape("xoxb-", Tail::Word, 20, LONG, Kind::VendorKey("Slack")),
    Shape("xoxa-", Tail::Word, 20, LONG, Kind::VendorKey("Slack")),
    Shape("xoxp-", Tail::Word, 20, LONG, Kind::VendorKey("Slack")),
    Shape("xoxr-", Tail::Word, 20, LONG, Kind::VendorKey("Slack")),
    Shape("xoxs-", Tail::Word, 20, LONG, Kind::VendorKey("Slack")),
    Shape("xapp-", Tail::Word, 20, LONG, Kind::VendorKey("Slack")),
    Shape("hooks.slack.com/services/T", Tail::Letter, 8, LONG, Kind::VendorKey("Slack webhook")),
    Shape("sk_live_", Tail::Letter, 16, LONG, Kind::VendorKey("Stripe")),
    Shape("rk_live_", Tail::Letter, 16, LONG, Kind::VendorKey("Stripe")),
    Shape("sk_test_", Tail::Letter, 16, LONG, Kind::VendorKey("Stripe test")),
    Shape("whsec_", Tail::Letter, 24, LONG, Kind::VendorKey("Stripe webhook")),
    Shape("AIza", Tail::Word, 35, 35, Kind::VendorKey("Google API")),
    Shape("GOCSPX-", Tail::Word, 28, 28, Kind::ClientSecret),
    Shape("SG.", Tail::Dotted, 60, 80, Kind::VendorKey("SendGrid")),
    Shape("xkeysib-", Tail::Word, 60, LONG, Kind::VendorKey("Brevo")),
    Shape("dop_v1_", Tail::Hex, 64, 64, Kind::VendorKey("DigitalOcean")),
    Shape("shpat_", Tail::Hex, 32, 32, Kind::VendorKey("Shopify")),
    Shape("sk-ant-", Tail::Word, 40, LONG, Kind::VendorKey("Anthropic")),
    Shape("sk-proj-", Tail::Word, 40, LONG, Kind::VendorKey("OpenAI")),
    Shape("hf_", Tail::Letter, 34, 40, Kind::VendorKey("Hugging Face")),
    Shape("glsa_", Tail::Word, 40, LONG, Kind::VendorKey("Grafana")),
    Shape("lin_api_", Tail::Letter, 40, 40, Kind::VendorKey("Linear")),
    Shape("figd_", Tail::Word, 40, 60, Kind::VendorKey("Figma")),
    Shape("sntrys_", Tail::Word, 40, LONG, Kind::VendorKey("Sentry")),
    Shape("ATATT3", Tail::Word, 100, LONG, Kind::VendorKey("Atlassian")),
    Shape("dapi", Tail::Hex, 32, 32, Kind::VendorKey("Databricks")),
    Shape("nvapi-", Tail::Word, 60, LONG, Kind::VendorKey("NVIDIA")),
    Shape("tskey-", Tail::Word, 20, LONG, Kind::VendorKey("Tailscale")),
    Shape("EAAAl", Tail::Word, 59, 59, Kind::VendorKey("Square")),
];

/// The secrets in `line`, from left to right, without overlap.
pub(super) fn shapes(line: &str, now: Timestamp) -> Vec<(Range<usize>, Kind)> {
    let mut found = prefixed(line);
    found.extend(jwts(line, now));
    found.extend(urls(line));
    found.extend(connection_strings(line));
    found.extend(headers(line));
    found.extend(private_keys(line));
    found.sort_by_key(|(at, _)| (at.start, std::cmp::Reverse(at.end)));
    let mut end = 0;
    found.retain(|(at, _)| {
        let free = at.start >= end;
        end = end.max(at.end);
        free
    });
    found
}

fn prefixed(line: &str) -> Vec<(Range<usize>, Kind)> {
    let bytes = line.as_bytes();
    let mut found = vec![];
    for Shape(prefix, tail, least, most, kind) in &SHAPES {
        for (at, _) in line.match_indices(prefix) {
            if at.checked_sub(1).is_some_and(|before| is_word(bytes[before])) {
                continue;
            }
            let from = at + prefix.len();
            let length = bytes[from..].iter().take(most + 1).take_while(|byte| tail.has(**byte)).count();
            let end = from + length;
            // One that goes on is something else.
            let ends = bytes.get(end).is_none_or(|byte| !byte.is_ascii_alphanumeric());
            let rest = &line[from..end];
            if (*least..=*most).contains(&length) && ends && !is_stand_in(rest) && entropy(rest) >= 2.5 {
                found.push((at..end, *kind));
            }
        }
    }
    found
}

/// The beginning of a text, at most so many bytes: whatever stands in a file is looked through once, not once for each of its parts.
fn head(text: &str, most: usize) -> &str {
    let mut end = most.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// Tokens that do not end, or have not ended (RFC 7519).
fn jwts(line: &str, now: Timestamp) -> Vec<(Range<usize>, Kind)> {
    let mut found = vec![];
    let mut from = 0;
    while let Some(at) = line[from..].find("eyJ").map(|at| from + at) {
        let length = line[at..].bytes().take_while(|byte| Tail::Dotted.has(*byte)).count();
        let token = &line[at..at + length];
        from = at + length.max(1);
        let mut parts = token.split('.');
        let object = |part: Option<&str>| -> Option<Value> {
            let bytes = BASE64_URL_SAFE_NO_PAD.decode(part?).ok()?;
            serde_json::from_slice(&bytes).ok().filter(Value::is_object)
        };
        let (Some(header), Some(claims)) = (object(parts.next()), object(parts.next())) else { continue };
        let ended = claims["exp"].as_i64().is_some_and(|end| end <= now.as_second());
        if header["alg"].is_string() && !ended && parts.next().is_some_and(|signature| signature.len() > 8) {
            found.push((at..at + length, Kind::Jwt));
        }
    }
    found
}

/// Passwords in URLs (RFC 3986 3.2.1); the finding is the password.
fn urls(line: &str) -> Vec<(Range<usize>, Kind)> {
    let mut found = vec![];
    for (colon, _) in line.match_indices("://") {
        let scheme = line[..colon]
            .rsplit(|c: char| !c.is_ascii_alphanumeric() && !"+.-".contains(c))
            .next()
            .unwrap_or("");
        let rest = head(&line[colon + 3..], LONG);
        let end = rest.find(|c: char| c.is_whitespace() || "\"'`<>/?#,".contains(c)).unwrap_or(rest.len());
        // A password with a slash in it is against the RFC and common; a port before a path is neither.
        let wide = rest.find(|c: char| c.is_whitespace() || "\"'`<>".contains(c)).unwrap_or(rest.len());
        let at =
            rest[..end].rfind('@').or_else(|| rest[..wide].find('@').filter(|at| rest[..*at].contains(':')));
        let Some(at) = at else { continue };
        let Some(split) = rest[..at].find(':') else { continue };
        let password = &rest[split + 1..at];
        let port =
            password.split_once('/').is_some_and(|(port, _)| port.bytes().all(|byte| byte.is_ascii_digit()));
        let known = !port && password.len() >= 3 && scheme.len() >= 2 && !password.contains("://");
        let decoded = password.replace("%24", "$").replace("%7B", "{");
        if !known
            || is_reference(&decoded)
            || is_encrypted(password)
            || is_stand_in(password)
            || password.starts_with(':')
        {
            continue;
        }
        let user = &rest[..split];
        let sample = ["user", "username", "login", "abc", "foo", ""].contains(&user)
            && ["pass", "password", "pwd", "xyz", "bar", "secret"].contains(&password);
        if !sample {
            let from = colon + 3 + split + 1;
            found.push((from..colon + 3 + at, of_scheme(scheme)));
        }
    }
    found
}

fn of_scheme(scheme: &str) -> Kind {
    const DATABASES: [&str; 14] = [
        "postgres",
        "postgresql",
        "mysql",
        "mysql2",
        "mariadb",
        "mongodb",
        "redis",
        "rediss",
        "amqp",
        "amqps",
        "sqlserver",
        "mssql",
        "oracle",
        "clickhouse",
    ];
    let plain = scheme.split(['+', '.']).next().unwrap_or("");
    let jdbc = scheme.contains("sql");
    if DATABASES.contains(&plain) || jdbc { Kind::DatabaseUrl } else { Kind::UrlPassword }
}

/// `Server=..;Password=..;` and its kin (ADO.NET, libpq, Azure).
fn connection_strings(line: &str) -> Vec<(Range<usize>, Kind)> {
    const KEYS: [(&str, Kind); 7] = [
        ("accountkey=", Kind::AzureKey),
        ("sharedaccesskey=", Kind::AzureKey),
        ("sharedaccesssignature=", Kind::AzureKey),
        ("&sig=", Kind::AzureKey),
        ("password=", Kind::DatabaseUrl),
        ("pwd=", Kind::DatabaseUrl),
        ("password =", Kind::DatabaseUrl),
    ];
    const NEAR: [&str; 9] = [
        "server=",
        "data source=",
        "host=",
        "user id=",
        "uid=",
        "user=",
        "dbname=",
        "endpoint=",
        "accountname=",
    ];
    let small = line.to_ascii_lowercase();
    // One among several, or it is a plain assignment, which is read as such.
    let (near, signed) = (NEAR.iter().any(|other| small.contains(other)), small.contains("sv="));
    let mut found = vec![];
    for (key, kind) in KEYS {
        for (at, _) in small.match_indices(key) {
            let from = at + key.len();
            let rest = head(&line[from..], LONG);
            let from = from + rest.len() - rest.trim_start_matches([' ', '\'']).len();
            let rest = head(&line[from..], LONG);
            let end = rest.find(|c: char| c.is_whitespace() || ";,\"'<>&".contains(c)).unwrap_or(rest.len());
            let value = &rest[..end];
            let signature = key == "&sig=";
            let among = if signature { signed } else { near };
            let sound = value.len() >= if signature { 20 } else { 4 };
            let variable = value.starts_with(['$', '%', '{', '@', '_']) || is_reference(value);
            if among && sound && !variable && !is_stand_in(value) && !is_hash(value) {
                found.push((from..from + end, kind));
            }
        }
    }
    found
}

/// `Authorization: Basic ..` and `Bearer ..` (RFC 9110 11.6.2).
fn headers(line: &str) -> Vec<(Range<usize>, Kind)> {
    let small = line.to_ascii_lowercase();
    let mut found = vec![];
    for (at, _) in small.match_indices("authorization") {
        let after = head(&small[at..], 64);
        for scheme in ["basic ", "bearer ", "token ", "apikey "] {
            let Some(begin) = after.find(scheme).filter(|begin| *begin <= 24) else { continue };
            let from = at + begin + scheme.len();
            let rest = head(&line[from..], 4 * LONG);
            let end =
                rest.find(|c: char| c.is_whitespace() || "\"'`;,<>\\)".contains(c)).unwrap_or(rest.len());
            let value = &rest[..end];
            let worth = if scheme == "basic " {
                is_basic(value)
            } else {
                value.len() >= 16 && value.bytes().any(|b| b.is_ascii_digit())
            };
            if worth && !is_reference(value) && !is_stand_in(value) {
                found.push((from..from + end, Kind::Header));
            }
        }
    }
    found
}

/// Whether it is `user:password` in base64, as Basic authentication and container registries write it.
pub(super) fn is_basic(value: &str) -> bool {
    let Ok(bytes) = BASE64_STANDARD.decode(value) else { return false };
    let bytes = zeroize::Zeroizing::new(bytes);
    std::str::from_utf8(&bytes).ok().and_then(|text| text.split_once(':')).is_some_and(|(_, password)| {
        password.len() >= 3
            && !is_reference(password)
            && !is_stand_in(password)
            && !password.chars().any(char::is_control)
    })
}

/// The first line of a private key in PEM (RFC 7468), plain or once more in base64, as kubeconfig has it.
fn private_keys(line: &str) -> Vec<(Range<usize>, Kind)> {
    const END: &str = "PRIVATE KEY-----";
    let mut found = vec![];
    for (at, begin) in line.match_indices("-----BEGIN ") {
        let rest = head(&line[at + begin.len()..], 40);
        let Some(end) = rest.find(END) else { continue };
        // Encrypted under a passphrase, or a word in a text about keys.
        if rest[..end].contains("ENCRYPTED")
            || !rest[..end].bytes().all(|byte| byte.is_ascii_uppercase() || byte == b' ')
        {
            continue;
        }
        found.push((at..at + begin.len() + end + END.len(), Kind::PrivateKey));
    }
    let mut seen = 0;
    for (at, _) in line.match_indices("LS0tLS1CRUdJTi") {
        if at < seen {
            continue;
        }
        let length = line[at..]
            .bytes()
            .take_while(|byte| byte.is_ascii_alphanumeric() || b"+/".contains(byte))
            .count();
        seen = at + length;
        let decoded = BASE64_STANDARD.decode(&line[at..at + (length.min(60) & !3)]).unwrap_or_default();
        let text = String::from_utf8_lossy(&decoded);
        if text.contains("PRIVATE KEY") && !text.contains("ENCRYPTED") {
            found.push((at..at + length, Kind::PrivateKey));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn kinds(line: &str) -> Vec<Kind> {
        shapes(line, NOW).into_iter().map(|(_, kind)| kind).collect()
    }

    fn jwt(claims: &str) -> String {
        let part = |text: &str| BASE64_URL_SAFE_NO_PAD.encode(text);
        format!("{}.{}.{}", part(r#"{"alg":"ES256"}"#), part(claims), part("no signature at all"))
    }

    #[test]
    fn prefixes_are_known_and_have_to_be_whole() {
        // Put together here, so that nobody's scanner takes this file for a leak.
        let token = ["gl", "pat-", "t3sT0nLyNotReal9xYzQ"].concat();
        assert_eq!(kinds(&format!("a {token} b")), [Kind::GitlabToken]);
        assert_eq!(kinds(&format!("a{token}")), []);
        assert_eq!(kinds(&token[..20]), []);
        let id = ["AK", "IA", "Q3EGRZ7T5UVWXY24"].concat();
        assert_eq!(kinds(&id), [Kind::AwsKey]);
        assert_eq!(kinds(&format!("{id}A")), []);
        // The one of AWS's own documentation.
        assert_eq!(kinds(&["AK", "IA", "IOSFODNN7EXAMPLE"].concat()), []);
        assert_eq!(kinds(&["gh", "p_", &"x".repeat(36)].concat()), []);
    }

    #[test]
    fn a_url_with_a_password_is_found_and_one_with_a_reference_is_not() {
        assert_eq!(kinds("postgres://shop:S3ason-42@db.internal/shop"), [Kind::DatabaseUrl]);
        assert_eq!(kinds("jdbc:mysql://shop:S3ason/42@db/shop"), [Kind::DatabaseUrl]);
        assert_eq!(kinds("https://bot:t0pf-lappen@git.internal/a.git"), [Kind::UrlPassword]);
        for line in [
            "postgres://shop:${DB_PASSWORD}@db/shop",
            "postgres://shop@db/shop",
            "postgres://user:password@localhost/db",
            "http://proxy:3128/a@b",
            "https://example.com/@scope/package",
            "git@host:a/b",
        ] {
            assert_eq!(kinds(line), [], "{line}");
        }
    }

    #[test]
    fn connection_strings_and_headers_are_read() {
        assert_eq!(kinds("Server=db;User Id=shop;Password=S3ason-42;"), [Kind::DatabaseUrl]);
        assert_eq!(kinds("host=db user=shop password=S3ason-42"), [Kind::DatabaseUrl]);
        assert_eq!(kinds("Server=db;Integrated Security=true;"), []);
        assert_eq!(kinds("-H 'Authorization: Bearer 9f8a1c3e5b7d2046aa'"), [Kind::Header]);
        assert_eq!(kinds("Authorization: Bearer $TOKEN"), []);
        let basic = BASE64_STANDARD.encode("shop:S3ason-42");
        assert_eq!(kinds(&format!("Authorization: Basic {basic}")), [Kind::Header]);
    }

    #[test]
    fn private_keys_are_told_from_public_and_encrypted_ones() {
        let head = |words: &str| format!("-----BEGIN {words}-----");
        for words in ["PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY", "OPENSSH PRIVATE KEY"] {
            assert_eq!(kinds(&head(words)), [Kind::PrivateKey], "{words}");
            assert_eq!(
                kinds(&BASE64_STANDARD.encode(head(words) + "\nMIIB\n")),
                [Kind::PrivateKey],
                "{words}"
            );
        }
        for words in ["PUBLIC KEY", "CERTIFICATE", "ENCRYPTED PRIVATE KEY", "PGP MESSAGE"] {
            assert_eq!(kinds(&head(words)), [], "{words}");
            assert_eq!(kinds(&BASE64_STANDARD.encode(head(words) + "\nMIIB\n")), [], "{words}");
        }
    }

    #[test]
    fn a_jwt_that_has_ended_opens_nothing() {
        assert_eq!(kinds(&jwt(r#"{"sub":"shop"}"#)), [Kind::Jwt]);
        assert_eq!(kinds(&jwt(r#"{"sub":"shop","exp":4102444800}"#)), [Kind::Jwt]);
        assert_eq!(kinds(&jwt(r#"{"sub":"shop","exp":-1}"#)), []);
        assert_eq!(kinds("eyJhIjoxfQ and version 1.2.3"), []);
    }
}

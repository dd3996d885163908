//! Each dialect against its readers' rules, written here a second time from the readers' side, and against the shells of this machine.
//! The readers themselves: systemd in `tests/systemd.rs`; docker, compose and python-dotenv in `tests/peers`.

use std::{
    collections::BTreeMap,
    io::Write as _,
    process::{Command, Stdio},
};

use proptest::prelude::*;

use super::*;

fn entry(name: &str, value: impl Into<Vec<u8>>) -> Entry {
    Entry {
        variable: name.parse().unwrap(),
        source: "ledger.token".parse().unwrap(),
        value: Secret::new(value),
    }
}

fn written(dialect: &Dialect, values: &[&[u8]]) -> Result<Vec<u8>, CannotCarry> {
    let entries: Vec<Entry> =
        values.iter().enumerate().map(|(at, value)| entry(&format!("V{at}"), *value)).collect();
    Ok(dialect.write(&entries)?.expose().to_vec())
}

fn text(dialect: &Dialect, value: &str) -> Result<String, Trouble> {
    let written = written(dialect, &[value.as_bytes()]).map_err(|no| no.trouble)?;
    Ok(String::from_utf8(written).unwrap())
}

type Read = BTreeMap<String, Vec<u8>>;

/// systemd.exec(5): names, then unquoted, single and double quoted pieces; a file that is no UTF-8 is not read.
fn systemd_reads(file: &[u8]) -> Option<Read> {
    let mut read = Read::new();
    let mut rest = std::str::from_utf8(file).ok()?.chars();
    'lines: loop {
        let mut name = String::new();
        loop {
            match rest.next() {
                None => break 'lines,
                Some('\n' | '\r') => continue 'lines,
                Some('#' | ';') if name.is_empty() => {
                    rest.by_ref().find(|c| *c == '\n');
                    continue 'lines;
                }
                Some('=') => break,
                Some(c) => name.push(c),
            }
        }
        let mut value = String::new();
        let mut quote = None;
        let mut kept = 0;
        while let Some(c) = rest.next() {
            match (quote, c) {
                (None, '\n' | '\r') => break,
                (None, '"' | '\'') => quote = Some(c),
                (None, '\\') => value.extend(rest.next().filter(|c| *c != '\n')),
                (None, c) if c.is_whitespace() && value.is_empty() => {}
                (Some('"'), '\\') => match rest.next()? {
                    c @ ('"' | '\\' | '`' | '$') => value.push(c),
                    '\n' => {}
                    c => value.extend(['\\', c]),
                },
                (Some(open), c) if c == open => (quote, kept) = (None, value.len()),
                (_, c) => value.push(c),
            }
        }
        let trimmed = value.trim_end().len().max(kept);
        value.truncate(trimmed);
        // What is said to be no character goes without a word.
        if !value.chars().any(|c| u32::from(c) & 0xFFFE == 0xFFFE || ('\u{FDD0}'..='\u{FDEF}').contains(&c)) {
            read.insert(name, value.into_bytes());
        }
    }
    Some(read)
}

/// docker/cli, pkg/kvfile: lines of at most 64 KiB with their ends, as they are.
fn docker_reads(file: &[u8]) -> Option<Read> {
    let mut read = Read::new();
    let file = std::str::from_utf8(file).ok()?;
    for line in file.trim_start_matches('\u{FEFF}').split_inclusive('\n') {
        if line.len() > 64 * 1024 {
            return None;
        }
        let line = line.strip_suffix('\n').unwrap_or(line);
        let line = line.strip_suffix('\r').unwrap_or(line).trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, value) = line.split_once('=')?;
        if name.contains([' ', '\t']) {
            return None;
        }
        read.insert(name.into(), value.into());
    }
    Some(read)
}

/// compose-go, dotenv/parser.go, of what is quoted: `\` hides the quote that is open; within double quotes escapes, then `$`.
fn compose_reads(file: &[u8]) -> Option<Read> {
    let mut read = Read::new();
    let mut rest = std::str::from_utf8(file).ok()?.trim_start();
    while !rest.is_empty() {
        let (name, after) = rest.split_once('=')?;
        let quote = after.chars().next().filter(|c| ['"', '\''].contains(c))?;
        let mut raw = String::new();
        let mut escaped = false;
        let end = after[1..].char_indices().find_map(|(at, c)| {
            match (escaped, c) {
                (false, '\\') => escaped = true,
                (true, c) if c == quote => {
                    escaped = false;
                    raw.push(c);
                }
                (true, c) => {
                    escaped = false;
                    raw.extend(['\\', c]);
                }
                (false, c) if c == quote => return Some(at),
                (false, c) => raw.push(c),
            }
            None
        })?;
        if quote == '"' {
            let mut chars = raw.chars();
            let mut value = String::new();
            while let Some(c) = chars.next() {
                match c {
                    '\\' => value.push(match chars.next()? {
                        'n' => '\n',
                        'r' => '\r',
                        't' => '\t',
                        c @ ('\\' | '"' | '$') => c,
                        _ => return None,
                    }),
                    '$' => return None, // A variable of the environment, or an error.
                    c => value.push(c),
                }
            }
            raw = value;
        }
        read.insert(name.into(), raw.into_bytes());
        rest = after[1 + end + 1..].trim_start();
    }
    Some(read)
}

/// python-dotenv, parser.py and variables.py: text with one kind of line end; escapes within both quotes; `${NAME}` within any.
fn python_reads(file: &[u8]) -> Option<Read> {
    let mut read = Read::new();
    let file = std::str::from_utf8(file).ok()?.replace("\r\n", "\n").replace('\r', "\n");
    let mut rest = file.trim_start();
    while !rest.is_empty() {
        let (name, after) = rest.split_once('=')?;
        let quote = after.chars().next().filter(|c| ['"', '\''].contains(c))?;
        // The expression of its parser takes a backslash with a quote first, and gives it back where nothing fits otherwise.
        let ends: Vec<usize> = after[1..].match_indices(quote).map(|(at, _)| at + 1).collect();
        let open = |at: &usize| !after[..*at].ends_with('\\');
        let end = *ends.iter().find(|at| open(at)).or(ends.last())?;
        let known: &[char] =
            if quote == '"' { &['\\', '\'', '"', 'n', 'r', 't', 'a', 'b', 'f', 'v'] } else { &['\\', '\''] };
        let mut value = String::new();
        let mut chars = after[1..end].chars().peekable();
        while let Some(c) = chars.next() {
            match chars.peek().filter(|next| c == '\\' && known.contains(next)) {
                None => value.push(c),
                Some(_) => value.push(match chars.next()? {
                    'n' => '\n',
                    'r' => '\r',
                    't' => '\t',
                    'a' | 'b' | 'f' | 'v' => return None, // We never write these.
                    c => c,
                }),
            }
        }
        if value.split_once("${").is_some_and(|(_, after)| after.contains('}')) {
            return None;
        }
        read.insert(name.into(), value.into_bytes());
        let line = &after[end + 1..];
        if !line.starts_with('\n') {
            return None;
        }
        rest = line.trim_start();
    }
    Some(read)
}

/// What a shell has in its environment after `. FILE`, by its own `env -0`.
fn shell_reads(shell: &str, file: &[u8]) -> Read {
    let mut place = tempfile::NamedTempFile::new().unwrap();
    place.write_all(file).unwrap();
    let output = Command::new(shell)
        .args(["-c", r#". "$1" && exec /usr/bin/env -0"#, shell])
        .arg(place.path())
        .env_clear()
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success(), "{shell}: {}", String::from_utf8_lossy(&output.stderr));
    let variables = output.stdout.split(|byte| *byte == 0).filter_map(|variable| {
        let at = variable.iter().position(|byte| *byte == b'=')?;
        let name = std::str::from_utf8(&variable[..at]).ok().filter(|name| name.starts_with('V'))?;
        Some((name.to_owned(), variable[at + 1..].to_vec()))
    });
    variables.collect()
}

/// What a shell that reads the file complains of: it finds no program, so whatever it would have run is named.
fn shell_runs(file: &[u8]) -> String {
    let mut place = tempfile::NamedTempFile::new().unwrap();
    place.write_all(file).unwrap();
    let mut shell = Command::new("/bin/sh");
    let output = shell
        .args(["-c", r#"set -a; . "$1""#, "sh"])
        .arg(place.path())
        .env_clear()
        .env("PATH", "/nonexistent");
    let output = output.stdin(Stdio::null()).output().unwrap();
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn wanted(values: &[&[u8]]) -> Read {
    values.iter().enumerate().map(|(at, value)| (format!("V{at}"), value.to_vec())).collect()
}

/// Texts with what readers stumble over.
fn nasty() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        4 => proptest::sample::select(vec![
            "'", "\"", "\\", "$", "${", "}", "`", "#", " #", "=", " ", "\t", "\n", "\r", "\r\n", "%", "%%", ";", "!", "~",
            "*", "$(id)", "`id`", "${HOME}", "$HOME", "\\n", "\\'", "\\\"", "\\\\", "export ", "A=b", "\u{7f}", "\u{1}", "\u{1b}[0m",
            "\u{feff}", "\u{fffe}", "\u{fdd0}", "\u{10ffff}", "\u{85}", "\u{a0}", "\u{2028}", "é", "𝄞",
        ]).prop_map(str::to_owned),
        2 => "[a-zA-Z0-9._-]{1,6}",
        1 => any::<char>().prop_map(String::from),
    ];
    proptest::collection::vec(piece, 0..10).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_is_what_each_reader_reads(values in proptest::collection::vec(nasty(), 1..4)) {
        // LEGACY 2.4: written, read back by the reader's rules, the same bytes; or refused.
        let values: Vec<&[u8]> = values.iter().map(String::as_bytes).collect();
        if let Ok(file) = written(&Dialect::Systemd, &values) {
            prop_assert_eq!(systemd_reads(&file), Some(wanted(&values)));
        }
        if let Ok(file) = written(&Dialect::Docker, &values) {
            prop_assert_eq!(docker_reads(&file), Some(wanted(&values)));
        }
        if let Ok(file) = written(&Dialect::Dotenv, &values) {
            prop_assert_eq!(compose_reads(&file), Some(wanted(&values)), "{}", String::from_utf8_lossy(&file));
            prop_assert_eq!(python_reads(&file), Some(wanted(&values)), "{}", String::from_utf8_lossy(&file));
        }
        let json = written(&Dialect::Json, &values).unwrap();
        let read: BTreeMap<String, String> = serde_json::from_slice(&json).unwrap();
        prop_assert_eq!(read.into_iter().map(|(name, value)| (name, value.into_bytes())).collect::<Read>(), wanted(&values));
    }

    #[test]
    fn a_secret_of_kubernetes_carries_any_bytes(values in proptest::collection::vec(any::<Vec<u8>>(), 1..4)) {
        let values: Vec<&[u8]> = values.iter().map(Vec::as_slice).collect();
        let manifest = Manifest { name: "shop-env".parse().unwrap(), namespace: Some("shop".parse().unwrap()) };
        let file = written(&Dialect::KubernetesSecret(manifest), &values).unwrap();
        let read: serde_json::Value = serde_json::from_slice(&file).unwrap();
        prop_assert_eq!((&read["apiVersion"], &read["kind"]), (&"v1".into(), &"Secret".into()));
        prop_assert_eq!(&read["metadata"], &serde_json::json!({"name": "shop-env", "namespace": "shop"}));
        for (name, value) in wanted(&values) {
            use base64::Engine as _;
            let data = read["data"][&name].as_str().unwrap();
            prop_assert_eq!(base64::prelude::BASE64_STANDARD.decode(data).unwrap(), value);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn the_shells_of_this_machine_read_what_is_written(
        texts in proptest::collection::vec(nasty(), 1..8),
        bytes in proptest::collection::vec(1u8.., 0..40),
    ) {
        let mut values: Vec<&[u8]> = texts.iter().map(String::as_bytes).collect();
        values.push(&bytes);
        let values: Vec<&[u8]> = values.into_iter().filter(|value| !value.contains(&0)).collect();
        let file = written(&Dialect::Sh, &values).unwrap();
        for shell in ["/bin/sh", "/bin/dash", "/bin/bash"] {
            if std::path::Path::new(shell).exists() {
                prop_assert_eq!(shell_reads(shell, &file), wanted(&values), "{}", shell);
            }
        }
        // Not its reader, but a likely one: it may read something else, and runs nothing.
        for text in &texts {
            let Ok(file) = written(&Dialect::Dotenv, &[text.as_bytes()]) else { continue };
            prop_assert_eq!(shell_runs(&file), "", "{}", String::from_utf8_lossy(&file));
        }
    }
}

#[test]
fn systemd_takes_double_quotes_with_four_escapes() {
    let file = text(&Dialect::Systemd, "a\"b\\c`d$e'f %n\ng ");
    assert_eq!(file.unwrap(), "V0=\"a\\\"b\\\\c\\`d\\$e'f %n\ng \"\n");
}

#[test]
fn systemd_is_given_no_nul_no_other_bytes_and_no_noncharacter() {
    assert_eq!(text(&Dialect::Systemd, "a\0b"), Err(Trouble::Nul));
    assert_eq!(text(&Dialect::Systemd, "a\u{fffe}"), Err(Trouble::Noncharacter));
    assert_eq!(written(&Dialect::Systemd, &[b"\xff"]).unwrap_err().trouble, Trouble::NotText);
}

#[test]
fn docker_takes_lines_as_they_are() {
    assert_eq!(text(&Dialect::Docker, " a\"b' #c $d\t").unwrap(), "V0= a\"b' #c $d\t\n");
    for line in ["a\nb", "a\r", "\n"] {
        assert_eq!(text(&Dialect::Docker, line), Err(Trouble::LineBreak), "{line:?}");
    }
    // There are readers that take a pair of quotes away.
    assert_eq!(text(&Dialect::Docker, "'a'"), Err(Trouble::LeadingQuote));
    assert_eq!(written(&Dialect::Docker, &[b"\xff"]).unwrap_err().trouble, Trouble::NotText);
}

#[test]
fn docker_is_given_no_line_longer_than_it_reads() {
    let most = 64 * 1024 - 1 - "V0=".len();
    assert!(text(&Dialect::Docker, &"a".repeat(most)).is_ok());
    assert_eq!(text(&Dialect::Docker, &"a".repeat(most + 1)), Err(Trouble::TooLong(64 * 1024 - 1)));
}

#[test]
fn dotenv_takes_single_quotes_wherever_they_can_be() {
    // compose #3702, #8388, secretspec #73: a bcrypt hash stays what it is.
    assert_eq!(text(&Dialect::Dotenv, "$2a$10$abc #\"x\\n\n").unwrap(), "V0='$2a$10$abc #\"x\\n\n'\n");
    assert_eq!(text(&Dialect::Dotenv, "it's \"so\" \\ \r").unwrap(), "V0=\"it's \\\"so\\\" \\\\ \\r\"\n");
}

#[test]
fn dotenv_refuses_what_its_readers_read_each_in_its_own_way() {
    assert_eq!(text(&Dialect::Dotenv, "a${b}"), Err(Trouble::Expanded));
    assert_eq!(text(&Dialect::Dotenv, "a\\"), Err(Trouble::TrailingBackslash));
    for value in ["it's $5", "$\\\\a", "$\r"] {
        assert_eq!(text(&Dialect::Dotenv, value), Err(Trouble::DollarAndQuote), "{value:?}");
    }
    // A shell that reads the file would run it.
    for value in ["it's `id`", "\\\\`id`", "`id`\r"] {
        assert_eq!(text(&Dialect::Dotenv, value), Err(Trouble::BacktickAndQuote), "{value:?}");
    }
    assert!(shell_runs(b"V0=\"it's `id`\"\n").contains("id"), "which is so");
    assert_eq!(
        shell_runs(text(&Dialect::Dotenv, "`id` $(id)").unwrap().as_bytes()),
        "",
        "within single quotes it stands"
    );
    // Which is so: what single quotes would carry for one, the other reads differently.
    let both =
        |file: &[u8]| (compose_reads(file).unwrap_or_default(), python_reads(file).unwrap_or_default());
    for file in
        [br"V0='a\\b'".as_slice(), b"V0=\"a\\\\\"\nV1=\"b\"", b"V0='a\rb'", b"V0='${a}'", br#"V0="\$""#]
    {
        let (compose, python) = both(&[file, b"\n"].concat());
        assert_ne!(compose, python, "{}", String::from_utf8_lossy(file));
    }
}

#[test]
fn a_shell_is_given_single_quotes() {
    // Never unquoted, not even where it would do.
    assert_eq!(text(&Dialect::Sh, "plain").unwrap(), "export V0='plain'\n");
    assert_eq!(text(&Dialect::Sh, "it's\n$(id)").unwrap(), "export V0='it'\\''s\n$(id)'\n");
    assert_eq!(text(&Dialect::Sh, "a\0"), Err(Trouble::Nul));
    assert!(written(&Dialect::Sh, &[b"\xff"]).is_ok());
}

#[test]
fn no_variable_is_longer_than_the_kernel_takes() {
    let long = "a".repeat(128 * 1024);
    for dialect in [Dialect::Systemd, Dialect::Docker, Dialect::Dotenv, Dialect::Sh] {
        assert!(matches!(text(&dialect, &long), Err(Trouble::TooLong(_))), "{dialect:?}");
    }
    assert!(text(&Dialect::Json, &long).is_ok());
    let halves = "a".repeat(600 * 1024);
    let kubernetes = Dialect::KubernetesSecret(Manifest::default());
    assert!(written(&kubernetes, &[halves.as_bytes()]).is_ok());
    let both = written(&kubernetes, &[halves.as_bytes(), halves.as_bytes()]).unwrap_err();
    assert_eq!(both.trouble, Trouble::TooLong(1024 * 1024));
}

#[test]
fn a_refusal_names_variable_field_reader_and_a_way_out_and_never_the_value() {
    // "Bad input", and CVE-2022-38149: a name and a reason, never the content.
    let entries = [entry("SAFE", "ok"), entry("PASSWORD", "canary'\n$1")];
    let refused = Dialect::Docker.write(&entries).unwrap_err();
    assert_eq!(refused.carried_by, ["systemd", "sh", "json", "k8s-secret"]);
    let told = refused.to_string();
    assert!(told.starts_with("PASSWORD (ledger.token) cannot be written for docker's --env-file:"), "{told}");
    assert!(
        told.ends_with(
            "--format systemd or sh or json or k8s-secret can carry it, and so can a file of its own (--file)"
        ),
        "{told}"
    );
    assert!(!told.contains("canary") && !format!("{refused:?}").contains("canary"));
    let nul = Dialect::Sh.write(&[entry("V", "canary\0")]).unwrap_err();
    assert_eq!(nul.carried_by, ["json", "k8s-secret"]);
}

#[test]
fn formats_and_names_of_kubernetes_are_read_strictly() {
    for name in Dialect::NAMES {
        assert_eq!(name.parse::<Dialect>().unwrap().name(), name);
    }
    assert!("yaml".parse::<Dialect>().unwrap_err().contains("k8s-secret"));
    for good in ["a", "shop-env", "a.b-1"] {
        assert_eq!(good.parse::<ObjectName>().unwrap().to_string(), good);
    }
    for bad in ["", "A", "a_b", "-a", "a-", "a..b", "a\n", "a\"", &"a".repeat(254)] {
        assert!(bad.parse::<ObjectName>().is_err(), "{bad:?}");
    }
}

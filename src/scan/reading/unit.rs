//! Units of systemd and their drop-ins (systemd.syntax(7), systemd.exec(5)).

use super::{Each, Place, Spot, joined, shell};

pub(super) fn spots(text: &str, each: Each<'_>) {
    for (number, line) in joined(text) {
        let Some((key, value)) = assignment(&line) else { continue };
        let words = || shell::words(value);
        match key {
            "Environment" => {
                for word in words() {
                    if let Some((name, value)) = word.split_once('=') {
                        each(Spot { line: number, name, value, place: Place::UnitEnvironment });
                    }
                }
            }
            key if key.starts_with("Exec") => {
                let words = words();
                let words: Vec<&str> = words.iter().map(|word| word.as_str()).collect();
                shell::arguments(number, &words, Place::UnitArguments, each);
            }
            "SetCredential" => {
                if let Some((id, value)) = value.split_once(':') {
                    let value = zeroize::Zeroizing::new(shell::unescaped(value.trim()).into_owned());
                    each(Spot { line: number, name: id.trim(), value: &value, place: Place::UnitCredential });
                }
            }
            // What is encrypted, and what says where something is.
            "SetCredentialEncrypted"
            | "LoadCredential"
            | "LoadCredentialEncrypted"
            | "EnvironmentFile"
            | "PassEnvironment"
            | "UnsetEnvironment"
            | "Description"
            | "Documentation" => {}
            key => each(Spot { line: number, name: key, value, place: Place::Text }),
        }
    }
}

/// The files that the environment comes from too.
pub(super) fn environment_files(text: &str) -> Vec<String> {
    let lines = joined(text);
    let files = lines.filter_map(|(_, line)| match assignment(&line) {
        Some(("EnvironmentFile", value)) => {
            let file = value.trim_start_matches('-').trim_matches('"');
            (file.starts_with('/') && !file.contains(['*', '?', '[', '%'])).then(|| file.to_owned())
        }
        _ => None,
    });
    files.collect()
}

fn assignment(line: &str) -> Option<(&str, &str)> {
    let line = line.trim();
    if line.starts_with(['#', ';', '[']) {
        return None;
    }
    let (key, value) = line.split_once('=')?;
    Some((key.trim(), value.trim()))
}

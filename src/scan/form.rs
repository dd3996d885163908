//! What kind of text a file is, by its name and its first lines, so that it is read as its programs read it. In goes a path and a
//! text; out comes a [`Form`].

use std::path::Path;

/// How a text is read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Form {
    /// A unit of systemd, or a drop-in of one.
    Unit,
    /// `NAME=value`, in any of the dialects of systemd, docker, dotenv and sh.
    Env,
    /// `key = value`, `key: value` or `key value`: INI, properties, most of /etc.
    Settings,
    /// YAML, with pipelines and Kubernetes.
    Yaml,
    /// Quoted values behind names: JSON, TOML, HCL, XML, programs.
    Quoted,
    /// A shell script, or what has commands in it: Dockerfile, crontab.
    Shell,
    /// `.netrc`.
    Netrc,
    /// `.pgpass`.
    Pgpass,
    /// None of these: only shapes count.
    Prose,
}

impl Form {
    /// The form of the file at `path`.
    pub fn of(path: &Path, text: &str) -> Self {
        let lossy = |part: Option<&std::ffi::OsStr>| {
            part.map(|part| part.to_string_lossy().into_owned()).unwrap_or_default()
        };
        let name = lossy(path.file_name()).to_ascii_lowercase();
        // Copies of a file are of its form.
        let name = [".bak", ".old", ".orig", ".dist", ".save", "~"]
            .iter()
            .find_map(|end| name.strip_suffix(end))
            .unwrap_or(&name);
        let extension = name.rsplit_once('.').map_or("", |(_, extension)| extension);
        let within = |part: &str| path.components().any(|one| one.as_os_str() == part);
        let whole = path.to_string_lossy();
        match name {
            ".netrc" | "_netrc" | "netrc" => return Self::Netrc,
            ".pgpass" | "pgpass.conf" | "pgpass" => return Self::Pgpass,
            ".npmrc" | ".pypirc" | ".my.cnf" | ".yarnrc" | "credentials" | ".s3cfg" | ".boto"
            | ".editorconfig" => {
                return Self::Settings;
            }
            "environment" | ".env" | ".envrc" => return Self::Env,
            // Tables of the system, in which the words for secrets mean other things.
            "nsswitch.conf" | "services" | "passwd" | "shadow" | "group" | "gshadow" | "hosts" => {
                return Self::Prose;
            }
            "jenkinsfile" => return Self::Quoted,
            "makefile" | ".bashrc" | ".profile" | ".zshrc" | ".bash_history" | ".zsh_history" | "crontab" => {
                return Self::Shell;
            }
            "config" if whole.contains(".kube") => return Self::Yaml,
            "config" => return Self::Settings,
            _ => {}
        }
        if name.starts_with("dockerfile") || name.starts_with("containerfile") || within("cron.d") {
            return Self::Shell;
        }
        if name.starts_with(".env")
            || name.ends_with(".env")
            || within("environment.d")
            || within("sysconfig")
        {
            return Self::Env;
        }
        // Words for people, among them those for passwords.
        if within("pam.d") || ["locale", "locales", "i18n", "translations"].iter().any(|part| within(part)) {
            return Self::Prose;
        }
        if whole.contains("/etc/default/") {
            return Self::Env;
        }
        match extension {
            "service" | "socket" | "timer" | "mount" | "path" | "scope" | "slice" | "target" | "nspawn"
            | "network" | "netdev" | "container" | "automount" | "swap" => Self::Unit,
            "conf" if is_drop_in(path) => Self::Unit,
            "yaml" | "yml" => Self::Yaml,
            "json" | "jsonc" | "json5" | "toml" | "tf" | "tfvars" | "hcl" | "tfstate" | "xml" | "config"
            | "xhtml" | "plist" | "groovy" | "gradle" | "kts" | "py" | "js" | "ts" | "mjs" | "cjs" | "go"
            | "rs" | "java" | "kt" | "rb" | "php" | "cs" | "c" | "cc" | "cpp" | "h" | "scala" | "swift"
            | "lua" | "pl" | "ipynb" | "nix" => Self::Quoted,
            "ini" | "cfg" | "cnf" | "conf" | "properties" | "props" | "rc" | "cf" | "list" => Self::Settings,
            "sh" | "bash" | "zsh" | "ksh" | "profile" => Self::Shell,
            "md" | "rst" | "adoc" | "txt" | "html" | "htm" | "log" | "csv" | "pem" | "crt" | "key" | "1"
            | "5" | "8" => Self::Prose,
            _ => by_text(&whole, text),
        }
    }
}

/// `/etc/systemd/system/shop.service.d/10-env.conf`.
fn is_drop_in(path: &Path) -> bool {
    let parent = path.parent().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
    parent.is_some_and(|name| {
        name.strip_suffix(".d").is_some_and(|unit| {
            [".service", ".socket", ".timer", ".mount", ".slice", ".scope"]
                .iter()
                .any(|kind| unit.ends_with(kind))
                || unit == "service"
        })
    })
}

fn by_text(path: &str, text: &str) -> Form {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty()).take(64).peekable();
    let first = lines.peek().copied().unwrap_or("");
    if first.starts_with("#!") {
        let quoted =
            ["python", "node", "perl", "ruby", "php", "lua"].iter().any(|program| first.contains(program));
        return if quoted { Form::Quoted } else { Form::Shell };
    }
    if first.starts_with(['{', '<']) {
        return Form::Quoted;
    }
    let lines: Vec<&str> = lines.filter(|line| !line.starts_with(['#', ';'])).collect();
    if lines.iter().any(|line| ["[Service]", "[Unit]", "[Container]"].contains(line)) {
        return Form::Unit;
    }
    let assigned = |line: &&&str| {
        let line = line.strip_prefix("export ").unwrap_or(line);
        line.split_once('=').is_some_and(|(name, _)| {
            !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        })
    };
    if !lines.is_empty() && lines.iter().filter(assigned).count() * 3 >= lines.len() * 2 {
        return Form::Env;
    }
    if lines.iter().any(|line| line.starts_with("apiVersion:")) || first == "---" {
        return Form::Yaml;
    }
    let section = |line: &&&str| line.starts_with('[') && line.ends_with(']');
    if path.contains("/etc/") || lines.iter().any(|line| section(&line)) {
        Form::Settings
    } else {
        Form::Prose
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_as_its_programs_read_it() {
        for (path, text, form) in [
            ("/etc/systemd/system/shop.service", "", Form::Unit),
            ("/etc/systemd/system/shop.service.d/10.conf", "", Form::Unit),
            ("/srv/app/.env.production", "", Form::Env),
            ("/srv/app/shop.env.bak", "", Form::Env),
            ("/etc/default/shop", "", Form::Env),
            ("/etc/shop/secrets", "A=1\nB=2\n", Form::Env),
            ("/home/a/.aws/credentials", "", Form::Settings),
            ("/home/a/.kube/config", "", Form::Yaml),
            ("/home/a/.docker/config.json", "", Form::Quoted),
            ("Dockerfile.prod", "", Form::Shell),
            ("deploy", "#!/bin/sh\n", Form::Shell),
            ("deploy", "#!/usr/bin/env python3\n", Form::Quoted),
            (".gitlab-ci.yml", "", Form::Yaml),
            ("Jenkinsfile", "", Form::Quoted),
            ("README", "Some words.\n", Form::Prose),
        ] {
            assert_eq!(Form::of(Path::new(path), text), form, "{path}");
        }
    }
}

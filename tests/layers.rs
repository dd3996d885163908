//! Rooms depend one way: a room imports only rooms declared above it in lib.rs, and none has a name that says nothing.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    fs,
    path::{Path, PathBuf},
};

fn rooms() -> Vec<String> {
    let lib = fs::read_to_string(src().join("lib.rs")).unwrap();
    lib.lines()
        .filter_map(|line| line.trim().strip_prefix("pub mod ")?.strip_suffix(';'))
        .map(str::to_owned)
        .collect()
}

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn files(at: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(at).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

fn all_files() -> Vec<PathBuf> {
    let mut found = vec![];
    files(&src(), &mut found);
    found
}

/// The names right after `crate::`, in paths and in braces, outside comments.
fn imports(text: &str) -> Vec<String> {
    let code: Vec<&str> = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    let code = code.join("\n");
    let name = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut found = vec![];
    for after in code.split("crate::").skip(1) {
        match after.strip_prefix('{') {
            None => found.push(name(after)),
            Some(group) => {
                let (mut depth, mut start) = (0, true);
                for (at, c) in group.char_indices() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => start = true,
                        c if start && depth == 0 && c.is_alphabetic() => {
                            found.push(name(&group[at..]));
                            start = false;
                        }
                        _ => {}
                    }
                }
            }
        }
    }
    found
}

#[test]
fn a_room_imports_only_rooms_above_it() {
    let rooms = rooms();
    let place = |name: &str| rooms.iter().position(|room| room == name);
    let mut wrong = vec![];
    for file in all_files() {
        let inside = file.strip_prefix(src()).unwrap();
        let room = inside.components().next().unwrap().as_os_str().to_string_lossy().replace(".rs", "");
        let Some(own) = place(&room) else { continue };
        for import in imports(&fs::read_to_string(&file).unwrap()) {
            if place(&import).is_some_and(|other| other > own) {
                wrong.push(format!("{} must not import {import}", inside.display()));
            }
        }
    }
    assert!(rooms.len() > 15, "lib.rs lists the rooms: {rooms:?}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_room_is_a_drawer() {
    for file in all_files() {
        let name = file.file_stem().unwrap().to_string_lossy().into_owned();
        for drawer in ["util", "utils", "common", "helper", "helpers", "manager", "types", "misc"] {
            assert_ne!(name, drawer, "{}", file.display());
        }
        let text = fs::read_to_string(&file).unwrap();
        assert!(!text.contains("super::super"), "{}: name the room instead", file.display());
        assert!(
            text.starts_with("//!")
                || name == "tests"
                || file.components().any(|part| part.as_os_str() == "tests"),
            "{}: a file begins with what comes in and what goes out",
            file.display()
        );
    }
}

#[test]
fn unsafe_code_is_in_one_file() {
    for file in all_files() {
        let kernel = file.ends_with("attest/kernel.rs");
        let text = fs::read_to_string(&file).unwrap();
        let says = text.lines().any(|line| {
            let line = line.trim_start();
            !line.starts_with("//") && (line.contains("unsafe {") || line.contains("unsafe fn"))
        });
        assert!(kernel || !says, "{}: unsafe code is in attest/kernel.rs alone", file.display());
    }
}

/// What a document calls a test is `PATH::NAME` in backquotes.
fn named_tests(document: &str) -> Vec<(String, String)> {
    let quoted = document.split('`').skip(1).step_by(2);
    let named = quoted.filter_map(|text| text.split_once("::").filter(|(path, _)| path.ends_with(".rs")));
    named.map(|(path, name)| (path.to_owned(), name.to_owned())).collect()
}

#[test]
fn documents_name_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for document in ["SECURITY.md", "CONTRIBUTING.md", "ARCHITECTURE.md"] {
        let text = fs::read_to_string(root.join(document)).unwrap();
        for (path, name) in named_tests(&text) {
            let file = fs::read_to_string(root.join(&path)).unwrap_or_default();
            assert!(
                file.contains(&format!("fn {name}(")),
                "{document} names {path}::{name}, which is not there"
            );
        }
        assert!(
            !text.contains("TM-01") || named_tests(&text).len() > 40,
            "{document} names too few to be true"
        );
    }
    assert_eq!(named_tests("by `src/a.rs::b`, `A::b`"), [("src/a.rs".into(), "b".into())]);
}

#[test]
fn the_test_of_imports_sees_them() {
    assert_eq!(imports("use crate::{\n    a::{b, c},\n    d,\n    e::f::{g},\n};"), ["a", "d", "e"]);
    assert_eq!(imports("// crate::no\nlet x = crate::yes::z();"), ["yes"]);
}

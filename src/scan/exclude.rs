//! `--exclude GLOB`. In goes a pattern; out comes whether a path is left out: `*` within one name, `**` across them, `?` one
//! character. A pattern without a slash is for names, wherever they are; one with a slash for the path as it is shown.

use std::path::Path;

/// What is left out.
#[derive(Clone, Debug)]
pub struct Pattern(String);

impl Pattern {
    /// Reads one. Every text is a pattern.
    pub fn new(text: &str) -> Self {
        Self(text.trim_end_matches('/').to_owned())
    }

    /// Whether `path` is left out.
    pub fn has(&self, path: &Path) -> bool {
        let whole = path.to_string_lossy();
        let text = if self.0.contains('/') { &*whole } else { whole.rsplit('/').next().unwrap_or(&whole) };
        matches(self.0.as_bytes(), text.as_bytes())
    }
}

/// Greedy with one way back for each sort of star: linear in the text for each star, whatever the pattern.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut back: Option<(usize, usize, bool)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                let across = pattern.get(p + 1) == Some(&b'*');
                p += if across { 2 } else { 1 };
                back = Some((p, t, across));
            }
            Some(b'?') if text[t] != b'/' => (p, t) = (p + 1, t + 1),
            Some(byte) if *byte == text[t] => (p, t) = (p + 1, t + 1),
            _ => match back {
                Some((after, from, across)) if across || text[from] != b'/' => {
                    (p, t) = (after, from + 1);
                    back = Some((after, from + 1, across));
                }
                _ => return false,
            },
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_for_names_or_for_paths() {
        for (pattern, path, out) in [
            ("node_modules", "a/node_modules", true),
            ("*.md", "a/b/README.md", true),
            ("*.md", "a/b.md/c", false),
            ("a/*/c", "a/b/c", true),
            ("a/*/c", "a/b/b/c", false),
            ("a/**/c", "a/b/b/c", true),
            ("**/test?", "x/y/test1", true),
            ("vendor/", "x/vendor", true),
        ] {
            assert_eq!(Pattern::new(pattern).has(Path::new(path)), out, "{pattern} {path}");
        }
        assert!(!Pattern::new(&"*a".repeat(40)).has(Path::new(&"a".repeat(30))));
    }
}

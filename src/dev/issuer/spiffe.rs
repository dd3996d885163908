//! SPIFFE IDs, as far as the issuer looks into them. In goes text; out comes whether it is an ID, whose trust domain it is
//! in, and which registered pattern it fits (draft-ietf-oauth-spiffe-client-auth).

/// What every ID begins with.
const SCHEME: &str = "spiffe://";

/// The longest ID (SPIFFE-ID 2.3).
const MAX: usize = 2048;

/// The trust domain of a valid SPIFFE ID with a path, as `spiffe://example.org`.
pub(super) fn trust_domain(id: &str) -> Option<&str> {
    let (domain, path) = id.strip_prefix(SCHEME)?.split_once('/')?;
    let in_domain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-_".contains(&byte);
    let in_path = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    let is_segment = |segment: &str| !["", ".", ".."].contains(&segment) && segment.bytes().all(in_path);
    let valid = id.len() <= MAX
        && (1..=255).contains(&domain.len())
        && domain.bytes().all(in_domain)
        && path.split('/').all(is_segment);
    valid.then(|| &id[..SCHEME.len() + domain.len()])
}

/// Whether `pattern` can be registered: an ID, or one whose last segment is `*`.
pub(super) fn is_pattern(pattern: &str) -> bool {
    match pattern.strip_suffix("/*") {
        Some(prefix) => trust_domain(&format!("{prefix}/any")).is_some(),
        None => trust_domain(pattern).is_some(),
    }
}

/// Whether a valid `id` fits `pattern`; `/*` stands for whole segments (DR-05).
pub(super) fn fits(pattern: &str, id: &str) -> bool {
    match pattern.strip_suffix("/*") {
        Some(prefix) => id.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/')),
        None => id == pattern,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_read_to_the_letter() {
        // DR-05, SPIFFE-ID 2
        assert_eq!(trust_domain("spiffe://example.org/a/B-1_.x"), Some("spiffe://example.org"));
        for id in [
            "spiffe://example.org",
            "spiffe://example.org/",
            "spiffe:///a",
            "spiffe://Example.org/a",
            "spiffe://example.org:1/a",
            "spiffe://u@example.org/a",
            "spiffe://example.org/a//b",
            "spiffe://example.org/a/",
            "spiffe://example.org/./a",
            "spiffe://example.org/a/..",
            "spiffe://example.org/a%20",
            "spiffe://example.org/a?b",
            "spiffe://example.org/*",
            "SPIFFE://example.org/a",
            "https://example.org/a",
        ] {
            assert_eq!(trust_domain(id), None, "{id}");
        }
        assert_eq!(trust_domain(&format!("spiffe://example.org/{}", "a".repeat(MAX))), None);
    }

    #[test]
    fn a_pattern_stands_for_whole_segments() {
        // DR-05
        for (pattern, id, fit) in [
            ("spiffe://e/client", "spiffe://e/client", true),
            ("spiffe://e/client", "spiffe://e/client/1", false),
            ("spiffe://e/client/*", "spiffe://e/client/1", true),
            ("spiffe://e/client/*", "spiffe://e/client/1/2", true),
            ("spiffe://e/client/*", "spiffe://e/client1", false),
            ("spiffe://e/client/*", "spiffe://e/client", false),
            ("spiffe://e/*", "spiffe://e/client", true),
            ("spiffe://e/*", "spiffe://ee/client", false),
        ] {
            assert!(is_pattern(pattern));
            assert_eq!(fits(pattern, id), fit, "{pattern} {id}");
        }
        for pattern in
            ["", "*", "spiffe://*", "spiffe://*/a", "spiffe://e/a*", "spiffe://e/*/a", "spiffe://e"]
        {
            assert!(!is_pattern(pattern), "{pattern}");
        }
    }
}

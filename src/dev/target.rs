//! Whether two URLs are the same target (RFC 9449 4.3, step 9). In go the `htu` of a proof and where the request went;
//! both are brought into the form of RFC 3986 6.2.2 and 6.2.3 and compared. An `htu` has neither query nor fragment
//! (RFC 9449 4.2): one that has is the same as nothing.

use crate::proof::Target;

/// Whether `htu` is `url`.
pub(super) fn same(htu: &str, url: &str) -> bool {
    let target = |url: &str| Target::parse(url).ok();
    !htu.contains(['?', '#']) && target(htu).is_some_and(|htu| target(url) == Some(htu))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_target_has_many_spellings() {
        // DPOP-02
        for (htu, normal_form) in [
            ("https://orders.test/a/b", "https://orders.test/a/b"),
            ("HTTPS://orders.test/a/b", "https://orders.test/a/b"),
            ("https://Orders.TEST/a/b", "https://orders.test/a/b"),
            ("https://orders.test:443/a/b", "https://orders.test/a/b"),
            ("https://orders.test:/a/b", "https://orders.test/a/b"),
            ("http://orders.test:80/a/b", "http://orders.test/a/b"),
            ("http://orders.test:443/a/b", "http://orders.test:443/a/b"),
            ("https://orders.test:8443/a/b", "https://orders.test:8443/a/b"),
            ("https://orders.test", "https://orders.test/"),
            ("https://orders.test/", "https://orders.test/"),
            ("https://orders.test/a/", "https://orders.test/a/"),
            ("https://orders.test/A/b", "https://orders.test/A/b"),
            ("https://orders.test/a/./b", "https://orders.test/a/b"),
            ("https://orders.test/c/../a/b", "https://orders.test/a/b"),
            ("https://orders.test/../../a/b/.", "https://orders.test/a/b/"),
            ("https://orders.test/a/b/..", "https://orders.test/a/"),
            ("https://orders.test/%7Ea/%62", "https://orders.test/~a/b"),
            ("https://orders.test/a%2fb", "https://orders.test/a%2Fb"),
            ("https://orders.test/c/%2e%2E/a", "https://orders.test/a"),
            ("https://orders.test/a//b", "https://orders.test/a//b"),
            ("https://[2001:DB8::1]:443/a", "https://[2001:db8::1]/a"),
            ("https://[::1]:8443/a", "https://[::1]:8443/a"),
            ("https://orders.%74est/a", "https://orders.test/a"),
        ] {
            assert!(same(htu, normal_form), "{htu}");
        }
        // And these are others.
        for (htu, url) in [
            ("https://orders.test/a", "http://orders.test/a"),
            ("https://orders.test/a", "https://orders.test/a/"),
            ("https://orders.test/a", "https://orders.test/A"),
            ("https://orders.test/a/b", "https://orders.test/a%2Fb"),
            ("https://orders.test:8443/a", "https://orders.test/a"),
            ("https://orders.test./a", "https://orders.test/a"),
        ] {
            assert!(!same(htu, url), "{htu} {url}");
        }
    }

    #[test]
    fn what_is_no_target_is_the_same_as_nothing() {
        // DPOP-02, RFC 9449 4.2
        for htu in [
            "",
            "/token",
            "https:/orders.test",
            "https://",
            "https:///a",
            "https://orders.test/a?b=c",
            "https://orders.test/a?",
            "https://orders.test/a#b",
            "https://user@orders.test/a",
            "https://orders.test:x/a",
            "https://orders.test/%",
            "https://orders.test/%4",
            "https://orders.test/%+4",
            "https://orders.test/a b",
            "https://orders.test/\u{e9}",
            "ftp://orders.test/a",
        ] {
            assert!(!same(htu, htu), "{htu}");
        }
    }
}

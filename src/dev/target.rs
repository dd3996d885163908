//! Whether two URLs are the same target (RFC 9449 4.3, step 9). In go the `htu` of a proof and where the request went;
//! both are brought into the form of RFC 3986 6.2.2 and 6.2.3 and compared. An `htu` has neither query nor fragment
//! (RFC 9449 4.2): one that has is the same as nothing.

/// Whether `htu` is `url`.
pub(super) fn same(htu: &str, url: &str) -> bool {
    normal(htu).is_some_and(|htu| Some(htu) == normal(url))
}

/// The normal form of an http or https URL without user, query and fragment.
fn normal(url: &str) -> Option<String> {
    if !url.bytes().all(|byte| byte.is_ascii_graphic() && !b"?#\\\"<>^`{|}".contains(&byte)) {
        return None;
    }
    let (scheme, rest) = url.split_once("://")?;
    let scheme = scheme.to_ascii_lowercase();
    let default_port = match scheme.as_str() {
        "http" => "80",
        "https" => "443",
        _ => return None,
    };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    if authority.contains('@') {
        return None;
    }
    // The colons of an IPv6 address are inside its brackets.
    let colon = authority.rfind(':').filter(|at| !authority[*at..].contains(']'));
    let (host, port) = colon.map_or((authority, ""), |at| (&authority[..at], &authority[at + 1..]));
    if host.is_empty() || !port.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let host = decoded(host)?.to_ascii_lowercase();
    let port = if port.is_empty() || port == default_port { String::new() } else { format!(":{port}") };
    Some(format!("{scheme}://{host}{port}{}", without_dots(&decoded(path)?)))
}

/// Escapes of characters that need none are undone; the others are written in upper case (RFC 3986 6.2.2.1, 6.2.2.2).
fn decoded(text: &str) -> Option<String> {
    let mut out = String::with_capacity(text.len());
    let mut parts = text.split('%');
    out.push_str(parts.next().unwrap_or_default());
    for part in parts {
        let byte = part.get(..2).filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()))?;
        let byte = u8::from_str_radix(byte, 16).ok()?;
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
        out.push_str(&part[2..]);
    }
    Some(out)
}

/// `path` without `.` and `..` (RFC 3986 5.2.4); an empty one is `/`.
fn without_dots(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            "." | ".." => {
                if segment == ".." {
                    kept.pop();
                }
                // What ended in dots ends in a slash.
                if last {
                    kept.push("");
                }
            }
            _ => kept.push(segment),
        }
    }
    format!("/{}", kept.join("/"))
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
            assert_eq!(normal(htu).as_deref(), Some(normal_form), "{htu}");
            assert_eq!(normal(normal_form).as_deref(), Some(normal_form), "once is enough: {htu}");
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
            assert_eq!(normal(htu), None, "{htu}");
            assert!(!same(htu, htu), "{htu}");
        }
    }
}

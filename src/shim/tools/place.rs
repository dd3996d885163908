//! Which host a credential is for. In goes what a client calls the place; out comes the place, told letter by letter, and the one
//! credential whose origins name it. What could be read in two ways is no place.

use super::{Tool, ToolError, usable};
use crate::proto::v1::Offer;

/// An https server: a host and a port.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Place {
    host: String,
    port: u16,
}

impl Place {
    /// Of `host` or `host:port`, as git and docker name it. None of a text that anybody could take for another place: no user, no
    /// escapes, no empty labels (so no dot at the end), no blanks, nothing but ASCII (LEGACY 4.8; CVE-2020-5260, CVE-2020-11008).
    pub fn of_host(text: &str) -> Option<Self> {
        let (host, port) = match text.rsplit_once(':') {
            // The colons of an IPv6 address stand in brackets.
            Some((host, port)) if !port.ends_with(']') => (host, port_of(port)?),
            _ => (text, 443),
        };
        let sound = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
            None => host.len() <= 253 && host.split('.').all(is_label),
        };
        // Names of hosts are the same in large and small letters (RFC 3986 3.2.2).
        sound.then(|| Self { host: host.to_ascii_lowercase(), port })
    }

    /// Of an `https` URL; whatever path it has, the server is the same.
    pub fn of_url(text: &str) -> Option<Self> {
        let rest = text.strip_prefix("https://")?;
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        let plain = path.bytes().all(|byte| byte.is_ascii_graphic() && !b"?#\\@".contains(&byte));
        Self::of_host(host).filter(|_| plain)
    }

    /// Whether it is one of the places that a credential is for.
    fn is_of(&self, offer: &Offer) -> bool {
        offer.origins.iter().any(|origin| Self::of_url(origin).as_ref() == Some(self))
    }
}

impl std::fmt::Display for Place {
    /// As docker writes it: without the port that https has anyway.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.port {
            443 => f.write_str(&self.host),
            port => write!(f, "{}:{port}", self.host),
        }
    }
}

fn port_of(text: &str) -> Option<u16> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0');
    text.parse().ok().filter(|_| plain)
}

fn is_label(label: &str) -> bool {
    (1..=63).contains(&label.len())
        && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
}

/// The one credential that is for this place and that the tool can use; `None` if none is for it.
///
/// # Errors
/// [`ToolError::Useless`] if it is there but of no use to the tool, [`ToolError::Several`] if nothing says which.
pub fn choose<'a>(tool: Tool, offers: &'a [Offer], place: &Place) -> Result<Option<&'a Offer>, ToolError> {
    let there: Vec<&Offer> = offers.iter().filter(|offer| place.is_of(offer)).collect();
    let of_use: Vec<&Offer> = there.iter().copied().filter(|offer| usable(tool, offer).is_ok()).collect();
    match (of_use.as_slice(), there.first()) {
        ([one], _) => Ok(Some(one)),
        ([], None) => Ok(None),
        ([], Some(first)) => usable(tool, first).map(|()| None),
        (several, _) => {
            let credentials = several.iter().map(|offer| offer.name.clone()).collect();
            let why = "take the origin from all but one of them (origins), or with git name the one (--credential NAME)";
            Err(ToolError::Several { tool, credentials, why })
        }
    }
}

/// Whether a credential that the caller named is for this place.
pub(super) fn is_for(tool: Tool, offer: &Offer, place: Option<&Place>) -> Result<(), ToolError> {
    if place.is_some_and(|place| place.is_of(offer)) {
        return Ok(());
    }
    let why = match offer.origins.as_slice() {
        [] => "name that as origins = [\"https://HOST:PORT\"] for this credential".to_owned(),
        origins => {
            format!("it is for {}; add the place to its origins if it is for that too", origins.join(", "))
        }
    };
    Err(ToolError::Elsewhere { tool, credential: offer.name.clone(), why })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proof::Target;

    fn of(text: &str) -> Option<String> {
        Place::of_host(text).map(|place| place.to_string())
    }

    #[test]
    fn a_place_is_told_letter_by_letter() {
        // LEGACY 4.8: protocol and host match exactly.
        for (text, place) in [
            ("git.example.com", "git.example.com"),
            ("Git.Example.COM", "git.example.com"),
            ("git.example.com:443", "git.example.com"),
            ("git.example.com:8443", "git.example.com:8443"),
            ("localhost:5000", "localhost:5000"),
            ("127.0.0.1", "127.0.0.1"),
            ("[2001:DB8::1]:8443", "[2001:db8::1]:8443"),
            ("[::1]", "[::1]"),
        ] {
            assert_eq!(of(text).as_deref(), Some(place), "{text}");
        }
    }

    #[test]
    fn what_could_be_another_place_is_none() {
        // LEGACY 4.8, 6.3: CVE-2020-5260, CVE-2020-11008, CVE-2024-50349, CVE-2024-52006.
        for text in [
            "",
            ".",
            "git.example.com.",
            ".git.example.com",
            "git..example.com",
            "git.example.com:",
            "git.example.com:0",
            "git.example.com:0443",
            "git.example.com:+443",
            "git.example.com:65536",
            "git.example.com:443:443",
            "git.example.com/",
            "git.example.com/path",
            "user@git.example.com",
            "git.example.com%0ahost=evil",
            "git%2eexample.com",
            "git.example.com%00",
            "git.example.com\n",
            "git.example.com\r",
            "git.example.com\0",
            " git.example.com",
            "git.example.com ",
            "git.example.com\t",
            "g\u{131}t.example.com",
            "git.example.com\u{3002}",
            "git.example.com?x",
            "git.example.com#x",
            "git.example.com\\x",
            "[::1",
            "::1",
            "[git.example.com]",
            "[::1%25eth0]",
            "*.example.com",
        ] {
            assert_eq!(of(text), None, "{text:?}");
        }
        for text in [
            "http://git.example.com",
            "HTTPS://git.example.com",
            "git.example.com",
            "https:/git.example.com",
            "https://u@git.example.com",
            "https://git.example.com/\n",
            "https://git.example.com/?a",
            "https://git.example.com/a@b",
            "https://git.example.com/a b",
            "",
        ] {
            assert_eq!(Place::of_url(text), None, "{text:?}");
        }
        assert_eq!(Place::of_url("https://index.docker.io/v1/"), Place::of_host("index.docker.io"));
    }

    #[test]
    fn every_origin_that_the_settings_take_is_a_place() {
        for url in [
            "https://a.example",
            "https://a.example:8443",
            "https://[2001:db8::1]",
            "https://a.example:443/x",
            "https://A.example",
        ] {
            let target = Target::parse(url).unwrap();
            assert!(Place::of_url(target.origin()).is_some(), "{}", target.origin());
        }
    }

    #[test]
    fn a_credential_is_for_its_own_places_only() {
        let offer = |name: &str, origins: &[&str], binding: &str| Offer {
            name: name.into(),
            origins: origins.iter().map(ToString::to_string).collect(),
            binding: binding.into(),
            per: "identity".into(),
            ..Offer::default()
        };
        let offers = [
            offer("deploy", &["https://git.example.com", "https://git.example.com:8443"], "bearer"),
            offer("api", &["https://git.example.com"], "dpop"),
            offer("bound", &["https://bound.example.com"], "dpop"),
            offer("one", &["https://twice.example.com"], "bearer"),
            offer("other", &["https://twice.example.com"], "bearer"),
            offer("nowhere", &[], "bearer"),
        ];
        let chosen = |host: &str| {
            choose(Tool::Git, &offers, &Place::of_host(host).unwrap())
                .map(|offer| offer.map(|offer| &*offer.name))
        };
        assert_eq!(chosen("git.example.com"), Ok(Some("deploy")), "what git can use");
        assert_eq!(chosen("git.example.com:8443"), Ok(Some("deploy")));
        for other in [
            "git.example.com:8444",
            "example.com",
            "x.git.example.com",
            "git.example.co",
            "it.example.com",
            "evil.example",
        ] {
            assert_eq!(chosen(other), Ok(None), "{other}");
        }
        assert!(matches!(chosen("bound.example.com"), Err(ToolError::Useless { .. })));
        assert!(matches!(chosen("twice.example.com"), Err(ToolError::Several { .. })));
    }
}

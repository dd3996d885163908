//! Files that are nothing but logins: `.netrc` and `.pgpass`.

use zeroize::Zeroizing;

use super::{Each, Place, Spot};

/// `machine HOST login NAME password SECRET`, in any number of lines.
pub(super) fn netrc(text: &str, each: Each<'_>) {
    let mut is_next = false;
    for (at, line) in text.lines().enumerate() {
        for word in line.split_whitespace() {
            if std::mem::replace(&mut is_next, word == "password") {
                each(Spot { line: at + 1, name: "password", value: word, place: Place::Text });
                is_next = false;
            }
        }
    }
}

/// `host:port:database:user:password`, with `:` and `\` escaped by a backslash.
pub(super) fn pgpass(text: &str, each: Each<'_>) {
    for (at, line) in text.lines().enumerate().filter(|(_, line)| !line.starts_with('#')) {
        let (mut colons, mut password) = (0, Zeroizing::new(String::new()));
        let mut chars = line.chars();
        while let Some(c) = chars.next() {
            let c = match c {
                '\\' => chars.next().unwrap_or('\\'),
                ':' if colons < 4 => {
                    colons += 1;
                    continue;
                }
                c => c,
            };
            if colons == 4 {
                password.push(c);
            }
        }
        if colons == 4 {
            each(Spot { line: at + 1, name: "password", value: &password, place: Place::Text });
        }
    }
}

use proptest::prelude::*;

use super::*;
use crate::clock::SeededDice;

const NOW: Timestamp = Timestamp::UNIX_EPOCH;

fn hits(path: &str, text: &str) -> Vec<Hit> {
    look(Path::new(path), text, NOW, &Salt::new(&*SeededDice::from_seed(7)))
}

fn seen(path: &str, text: &str) -> Vec<String> {
    let words = |hit: Hit| format!("{} {} {}", hit.line, hit.name.unwrap_or_default(), hit.kind.code());
    hits(path, text).into_iter().map(words).collect()
}

#[test]
fn a_secret_is_found_once_with_its_name_and_line() {
    // S14, NHI-2
    let url = "A=1\nDATABASE_URL=postgres://shop:Harbour-Lights-7@db/shop\n";
    assert_eq!(seen("shop.env", url), ["2 DATABASE_URL database_url"]);
    let token = ["gl", "pat-", "t3sT0nLyNotReal9xYzQ"].concat();
    assert_eq!(seen("notes.md", &format!("use {token} here")), ["1  gitlab_token"]);
    assert_eq!(seen("a.json", &format!("{{\"deploy\": \"{token}\"}}")), ["1 deploy gitlab_token"]);
    let aws = [
        "[default]\naws_access_key_id = AK",
        "IAQ3EGRZ7T5UVWXY24\naws_secret_access_key = pX7dQ2mVb9KzL4wTn8RfYc1HsJ6gEu3a0NkBvWqZ\n",
    ];
    assert_eq!(seen(".aws/credentials", &aws.concat()), ["3 aws_secret_access_key aws_key"]);
    assert_eq!(
        seen("x.env", &aws[..1].concat().replace("AK", &["AK", "IAQ3EGRZ7T5UVWXY24"].concat())),
        ["2 aws_access_key_id aws_key"]
    );
    let unit = "[Service]\nEnvironment=SMTP_PASSWORD=Harbour-Lights-7\nExecStart=/bin/a --api-key=Zx81kQ0vTq3LmNw7\n";
    assert_eq!(seen("a.service", unit), ["2 SMTP_PASSWORD password", "3 api-key secret"]);
    assert_eq!(seen(".pgpass", "db:5432:shop:shop:Harbour-Lights-7\n"), ["1 password database_password"]);
}

#[test]
fn commented_lines_count_only_by_their_shape() {
    assert_eq!(seen("a.env", "# DB_PASSWORD=Harbour-Lights-7\n"), Vec::<String>::new());
    assert_eq!(seen("a.env", "# A=postgres://a:Harbour-Lights-7@db/a\n"), ["1  database_url"]);
}

#[test]
fn the_same_secret_is_recognised_and_its_likeness_tells_nothing() {
    let one = hits(
        "a.env",
        "DB_PASSWORD=Harbour-Lights-7\nX=postgres://a:Harbour-Lights-7@db/a\nSMTP_PASSWORD=Other-Lights-8\n",
    );
    assert_eq!(one[0].like, one[1].like);
    assert_ne!(one[0].like, one[2].like);
    let other = look(
        Path::new("a.env"),
        "DB_PASSWORD=Harbour-Lights-7\n",
        NOW,
        &Salt::new(&*SeededDice::from_seed(8)),
    );
    assert_ne!(one[0].like, other[0].like, "each run has its own");
    assert!(format!("{one:?}").contains("Likeness(..)"));
}

#[test]
fn names_and_paths_that_are_secrets_are_not_shown() {
    let token = ["gl", "pat-", "t3sT0nLyNotReal9xYzQ"].concat();
    assert_eq!(shown(Path::new(&format!("/srv/{token}/a\u{1b}[31m.env"))), "/srv/[secret]/a?[31m.env");
    // The name before it is the secret itself, in a list of pairs for instance.
    let pair = "(\"9f8a1c3e5b7d2046aa\", \"authorization: bearer 9f8a1c3e5b7d2046aa\")";
    assert_eq!(seen("a.rs", pair), ["1  header"]);
    let text = format!("{token}_password=Harbour-Lights-7\n");
    assert!(
        hits("a.env", &text).iter().all(|hit| hit.name.as_ref().is_none_or(|name| !name.contains(&token)))
    );
}

#[test]
fn a_hostile_file_is_looked_through_in_time() {
    // What would be looked at once for each of its parts, if something were: 64 KiB would take hours.
    let (said, hears) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let parts = [
            "://",
            "<a",
            "eyJ",
            "LS0tLS1CRUdJTi",
            "authorization: bearer ",
            "password=",
            "-----BEGIN ",
            "hvs.",
            "\"a\":\"",
            "(",
        ];
        for part in parts {
            let text = part.repeat((1 << 16) / part.len());
            for path in ["a.json", "a.env", "a.yaml", "a.sh", "a.conf", "a.service", ".netrc", ".pgpass"] {
                let _ = hits(path, &text);
            }
        }
        said.send(())
    });
    hears.recv_timeout(std::time::Duration::from_secs(120)).expect("it is done in time");
}

#[test]
fn a_key_is_one_if_it_is_there_and_open() {
    let head = |words: &str| format!("-----BEGIN {words}PRIVATE KEY-----");
    let body = "Zm9ydHktdHdvIGlzIG5vIGtleQ";
    let found = |text: &str| !seen("a.txt", text).is_empty();
    assert!(found(&format!("{}\n{body}\n", head(""))));
    assert!(found(&format!("    {}\n    {body}\n", head("RSA "))));
    assert_eq!(
        seen("a.json", &format!("{{\"private_key\": \"{}\\n{body}\\n\"}}", head(""))),
        ["1 private_key private_key"]
    );
    assert!(found(&format!("{}\nb3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQ\n", head("OPENSSH "))));
    assert!(!found(&format!("{}\nb3BlbnNzaC1rZXktdjEAAAAACmFlczI1Ni1jdHIAAAAG\n", head("OPENSSH "))));
    assert!(!found(&format!(
        "{}\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\n{body}\n",
        head("RSA ")
    )));
    assert!(!found(&format!("text.starts_with(\"{}\")\n", head(""))));
}

proptest! {
    /// Texts made of what readers and shapes look for, in any order and any kind of file.
    #[test]
    fn no_text_breaks_what_must_hold(which in any::<u8>(), parts in proptest::collection::vec(0..PARTS.len(), 0..40), cut in 0..400usize) {
        let mut text = vec![which];
        parts.iter().for_each(|part| text.extend(PARTS[*part].bytes()));
        text.truncate(cut.max(1));
        properties::scan(&text);
    }
}

const PARTS: [&str; 44] = [
    "\n",
    "\n",
    "\n",
    "=",
    ": ",
    "\"",
    "'",
    "\\",
    " ",
    "@",
    "@",
    "A_PASSWORD",
    "token",
    "CLIENT_SECRET",
    "DATABASE_URL",
    "AWS_SECRET_ACCESS_KEY",
    "postgres://",
    "://",
    ":",
    "export ",
    "Environment=",
    "ExecStart=",
    "[Service]\n",
    "SetCredential=",
    "kind: Secret\ndata:\n  ",
    "- ",
    "name",
    "value",
    "{",
    "}",
    "<",
    ">",
    "</",
    "password=",
    "host=",
    ";",
    "--token ",
    "curl -u ",
    "eyJ",
    ".",
    "-----BEGIN PRIVATE KEY-----",
    "#",
    "é\u{1b}",
    "TLS_KEY_FILE=/a/b.key",
];

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Value, json};

use super::*;
use crate::proto::v1::{AccessToken, ClientCertificate, LeasedValues, X509Certificate};

const CANARY: &str = "canary-1f6d";
const JWT: &str = "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJhIn0.c2ln";
const AT: i64 = 1_767_225_600; // 2026-01-01T00:00:00Z

fn credential(kind: Kind) -> Credential {
    Credential {
        name: "deploy".into(),
        kind: Some(kind),
        expires_at: Some(prost_types::Timestamp { seconds: AT, nanos: 999_999_999 }),
        binding: "bearer".into(),
        ..Credential::default()
    }
}

fn a_token(token: &str) -> Credential {
    credential(Kind::AccessToken(AccessToken { token: token.into(), token_type: "Bearer".into() }))
}

fn leased(values: &[(&str, &str)]) -> Credential {
    let values = values.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
    credential(Kind::LeasedValues(LeasedValues { values }))
}

fn a_certificate(key: &str) -> Credential {
    let shown = ClientCertificate { chain_pem: "CHAIN".into(), key_pem: key.into() };
    Credential {
        binding: "mtls".into(),
        client_certificate: Some(shown),
        ..credential(Kind::X509Certificate(X509Certificate::default()))
    }
}

fn offer() -> Offer {
    Offer {
        name: "deploy".into(),
        binding: "bearer".into(),
        per: "identity".into(),
        origins: vec!["https://a.example".into(), "https://b.example:6443".into()],
        max_ttl: Some(prost_types::Duration { seconds: 3600, nanos: 0 }),
        ..Offer::default()
    }
}

fn of_json(answer: Result<Secret, ToolError>) -> Value {
    let answer = answer.unwrap();
    assert_eq!(answer.expose().iter().filter(|byte| **byte == b'\n').count(), 1, "one line");
    serde_json::from_slice(answer.expose()).unwrap()
}

fn text(answer: Result<Secret, ToolError>) -> String {
    answer.unwrap().expose_str().unwrap().to_owned()
}

fn asked<T: std::fmt::Debug>(answer: Result<T, ToolError>) -> &'static str {
    let Err(ToolError::Asked { why, .. }) = answer else { panic!("{answer:?}") };
    why
}

/// Why it is of no use, which never says what is in it.
fn useless<T: std::fmt::Debug>(answer: Result<T, ToolError>) -> String {
    let Err(error @ ToolError::Useless { .. }) = answer else { panic!("{answer:?}") };
    let text = error.to_string();
    assert!(text.starts_with("deploy is nothing that ") && !text.contains(CANARY), "{text}");
    text
}

#[test]
fn what_a_client_cannot_use_is_told_and_not_fetched() {
    // MT-11: proofs and keys stay with the agent, and none of these clients asks for any.
    let of = |binding: &str, per: &str| Offer { binding: binding.into(), per: per.into(), ..offer() };
    for tool in [Tool::Aws, Tool::Docker, Tool::Gcp, Tool::Git, Tool::Kubectl] {
        assert_eq!(usable(tool, &offer()), Ok(()));
        let bound = useless(usable(tool, &of("dpop", "identity")));
        assert!(bound.contains("forward") && bound.contains("dated exception"), "{bound}");
        assert_eq!(usable(tool, &of("mtls", "identity")).is_ok(), tool == Tool::Kubectl);
        assert!(useless(usable(tool, &of("bearer", "process"))).contains("keybearer exec"));
        for unknown in [of("", "identity"), of("sealed", "identity"), of("bearer", "")] {
            assert!(usable(tool, &unknown).is_err(), "{unknown:?}");
        }
    }
    // And again of what came, whatever was offered.
    let bound = |credential: Credential| Credential { binding: "dpop".into(), ..credential };
    useless(aws::answer(&bound(leased(&[("access_key", "A"), ("secret_key", CANARY)]))));
    useless(gcp::answer("t", &bound(a_token(JWT))));
    useless(git("").answer(&offer(), &bound(a_token(CANARY))));
    useless(docker::answer("a.example", &offer(), &bound(a_token(CANARY))));
    useless(kubectl(V1, "https://a.example").answer(&bound(a_token(CANARY))));
}

// --- aws (LEGACY 4.2) ---------------------------------------------------------------------------------------------------

#[test]
fn an_aws_lease_is_what_the_sdks_read() {
    let wanted = json!({
        "Version": 1, "AccessKeyId": "ASIAX", "SecretAccessKey": CANARY, "SessionToken": "st", "Expiration": "2026-01-01T00:00:00Z"
    });
    for names in [
        ["access_key", "secret_key", "security_token"],
        ["AccessKeyId", "SecretAccessKey", "SessionToken"],
        ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"],
        ["aws_access_key_id", "aws_secret_access_key", "aws_session_token"],
    ] {
        let values = [(names[0], "ASIAX"), (names[1], CANARY), (names[2], "st")];
        assert_eq!(of_json(aws::answer(&leased(&values))), wanted, "{names:?}");
    }
}

#[test]
fn an_aws_key_of_a_user_goes_without_a_session_token() {
    let keys = |more: &[(&str, &str)]| {
        let all = [&[("access_key", "AKIAX"), ("secret_key", CANARY)], more].concat();
        of_json(aws::answer(&leased(&all)))
    };
    let answer = keys(&[("security_token", "")]);
    assert_eq!(
        (answer.get("SessionToken"), answer["Expiration"].is_string()),
        (None, true),
        "without an end it is kept for ever"
    );
    assert_eq!(keys(&[("account_id", "123456789012")])["AccountId"], "123456789012");
    for bad in ["12345678901", "1234567890123", "12345678901x"] {
        assert_eq!(keys(&[("account_id", bad)]).get("AccountId"), None, "{bad}");
    }
}

#[test]
fn what_is_no_aws_key_says_what_to_do() {
    assert!(useless(aws::answer(&a_token(CANARY))).contains("AWS_WEB_IDENTITY_TOKEN_FILE"));
    assert!(useless(aws::answer(&leased(&[("username", "u"), ("password", CANARY)]))).contains("lease.at"));
    assert!(
        useless(aws::answer(&leased(&[("access_key", "ASIAX"), ("secret_key", CANARY)])))
            .contains("security_token")
    );
    useless(aws::answer(&leased(&[("access_key", ""), ("secret_key", CANARY)])));
    let endless = Credential { expires_at: None, ..leased(&[("access_key", "A"), ("secret_key", CANARY)]) };
    useless(aws::answer(&endless));
}

#[test]
fn an_aws_key_lives_longer_than_botocore_wants_if_it_can() {
    // LEGACY 4.1: within fifteen minutes of its end it is asked for at every use.
    let of = |seconds| Offer { max_ttl: Some(prost_types::Duration { seconds, nanos: 0 }), ..offer() };
    assert_eq!(aws::min_ttl(&of(3600)), Duration::from_secs(900));
    for short in [900, 300, -1] {
        assert_eq!(aws::min_ttl(&of(short)), Duration::ZERO);
    }
    assert_eq!(aws::min_ttl(&Offer { max_ttl: None, ..offer() }), Duration::ZERO);
}

// --- gcp (LEGACY 4.6) ---------------------------------------------------------------------------------------------------

fn google(pairs: &[(&str, &str)]) -> Result<gcp::Request, ToolError> {
    let environment: BTreeMap<String, String> = pairs
        .iter()
        .map(|(name, value)| (format!("GOOGLE_EXTERNAL_ACCOUNT_{name}"), value.to_string()))
        .collect();
    gcp::Request::read(&environment)
}

#[test]
fn google_gets_the_type_of_token_that_it_asks_for() {
    let jwt = "urn:ietf:params:oauth:token-type:jwt";
    assert_eq!(google(&[]), Ok(gcp::Request::Token(jwt)));
    for asked in [jwt, "urn:ietf:params:oauth:token-type:id_token"] {
        let Ok(gcp::Request::Token(token_type)) = google(&[("TOKEN_TYPE", asked), ("INTERACTIVE", "0")])
        else {
            panic!()
        };
        let answer = of_json(gcp::answer(token_type, &a_token(JWT)));
        let wanted = json!({"version": 1, "success": true, "token_type": asked, "id_token": JWT, "expiration_time": AT});
        assert_eq!(answer, wanted);
    }
    asked(google(&[("TOKEN_TYPE", "urn:ietf:params:oauth:token-type:saml2")]));
    asked(google(&[("INTERACTIVE", "1"), ("OUTPUT_FILE", "/tmp/x")]));
    assert_eq!(google(&[("REVOKE", "1"), ("INTERACTIVE", "1")]), Ok(gcp::Request::Revoke));
    assert_eq!(of_json(Ok(gcp::revoked())), json!({"version": 1, "success": true}));
}

#[test]
fn google_gets_a_jwt_or_an_error_in_its_own_words() {
    for other in [CANARY, "eyJhbGciOiJFUzI1NiJ9", "a.b.c"] {
        useless(gcp::answer("t", &a_token(other)));
    }
    useless(gcp::answer("t", &leased(&[("password", CANARY)])));
    let failure = of_json(Ok(gcp::failure("403", "no \"such\"\nthing")));
    assert_eq!(
        failure,
        json!({"version": 1, "success": false, "code": "403", "message": "no \"such\"\nthing"})
    );
}

// --- kubectl (LEGACY 4.7) -----------------------------------------------------------------------------------------------

const V1: &str = "client.authentication.k8s.io/v1";

fn info(version: &str, server: &str) -> Value {
    json!({"apiVersion": version, "kind": "ExecCredential", "spec": {"cluster": {"server": server}, "interactive": false}})
}

fn kubectl(version: &str, server: &str) -> kubectl::Request {
    kubectl::Request::read(Some(&info(version, server).to_string())).unwrap()
}

#[test]
fn kubectl_is_answered_in_the_version_that_it_asks_in() {
    for version in [V1, "client.authentication.k8s.io/v1beta1"] {
        let answer = of_json(kubectl(version, "https://a.example").answer(&a_token("t")));
        let status = json!({"expirationTimestamp": "2026-01-01T00:00:00Z", "token": "t"});
        assert_eq!(answer, json!({"apiVersion": version, "kind": "ExecCredential", "status": status}));
    }
    for other in [
        info("client.authentication.k8s.io/v1alpha1", "https://a.example").to_string(),
        json!({"apiVersion": V1, "kind": "Secret", "spec": {}}).to_string(),
        "{".into(),
        String::new(),
    ] {
        asked(kubectl::Request::read(Some(&other)));
    }
    assert!(asked(kubectl::Request::read(None)).contains("KUBERNETES_EXEC_INFO"));
}

#[test]
fn kubectl_gets_a_certificate_with_its_key_or_neither() {
    let request = kubectl(V1, "https://elsewhere.example");
    let status = of_json(request.answer(&a_certificate("KEY")))["status"].take();
    let both = json!({"expirationTimestamp": "2026-01-01T00:00:00Z", "clientCertificateData": "CHAIN", "clientKeyData": "KEY"});
    assert_eq!(status, both);
    assert!(useless(request.answer(&a_certificate(""))).contains("key_export"));
    let bound = Credential { kind: a_token("t").kind, ..a_certificate("KEY") };
    assert_eq!(
        of_json(request.answer(&bound))["status"]["token"],
        "t",
        "a bound token goes with its certificate"
    );
    useless(request.answer(&Credential { client_certificate: None, ..bound }));
    useless(request.answer(&leased(&[("password", CANARY)])));
    // A certificate's key is sent to nobody, so any server will do.
    assert_eq!(request.permits(&Offer { binding: "mtls".into(), origins: vec![], ..offer() }), Ok(()));
}

#[test]
fn kubectl_gets_a_token_for_its_own_cluster_only() {
    // LEGACY 6.3: a kubeconfig that somebody else wrote names his server and our command.
    for server in ["https://a.example", "https://a.example/k8s/clusters/c-1", "https://b.example:6443"] {
        assert_eq!(kubectl(V1, server).permits(&offer()), Ok(()), "{server}");
    }
    for server in [
        "https://b.example",
        "https://evil.example",
        "http://a.example",
        "https://a.example@evil.example",
        "",
    ] {
        let refused = kubectl(V1, server).permits(&offer());
        assert!(matches!(refused, Err(ToolError::Elsewhere { .. })), "{server}");
    }
    let unnamed = kubectl(V1, "https://a.example").permits(&Offer { origins: vec![], ..offer() });
    assert!(unnamed.unwrap_err().to_string().contains("origins = ["));
    let silent =
        json!({"apiVersion": V1, "kind": "ExecCredential", "spec": {"interactive": false}}).to_string();
    assert!(
        asked(kubectl::Request::read(Some(&silent)).unwrap().permits(&offer()))
            .contains("provideClusterInfo")
    );
    for (member, value) in [
        ("insecure-skip-tls-verify", true.into()),
        ("tls-server-name", "evil.example".into()),
        ("proxy-url", Value::from("http://evil.example")),
    ] {
        let mut elsewhere = info(V1, "https://a.example");
        elsewhere["spec"]["cluster"][member] = value;
        let refused = kubectl::Request::read(Some(&elsewhere.to_string())).unwrap().permits(&offer());
        assert!(asked(refused).contains(member), "{member}");
    }
}

// --- git (LEGACY 4.8) ---------------------------------------------------------------------------------------------------

fn asks(more: &str) -> String {
    format!("protocol=https\nhost=a.example\n{more}\n")
}

fn git(more: &str) -> git::Request {
    git::Request::read(asks(more).as_bytes()).unwrap().unwrap()
}

#[test]
fn git_gets_a_name_a_password_and_their_end() {
    let answer = |more: &str, offer: &Offer| text(git(more).answer(offer, &a_token("t")));
    assert_eq!(answer("", &offer()), "username=x-access-token\npassword=t\npassword_expiry_utc=1767225600\n");
    let named = Offer { username: "oauth2".into(), ..offer() };
    assert_eq!(answer("path=x.git\nunknown=1\n", &named).lines().next(), Some("username=oauth2"));
    assert_eq!(
        answer("username=me\n", &offer()).lines().next(),
        Some("username=me"),
        "the name that stands in the URL"
    );
    assert_eq!(answer("username=me\n", &named), "", "somebody else's login");
    assert!(git("username=me\n").is_for_another(&named) && !git("").is_for_another(&named));
    let lease = leased(&[("username", "u"), ("password", "p")]);
    assert!(text(git("").answer(&named, &lease)).starts_with("username=u\npassword=p\n"));
    assert_eq!(text(git("username=me\n").answer(&offer(), &lease)), "");
    assert!(
        text(git("").answer(&offer(), &leased(&[("token", "p")])))
            .starts_with("username=x-access-token\npassword=p\n")
    );
    useless(git("").answer(&offer(), &leased(&[("access_key", CANARY)])));
}

#[test]
fn git_gets_a_bearer_token_where_both_sides_say_so() {
    let bearer =
        "capability[]=authtype\nauthtype=Bearer\nephemeral=1\ncredential=t\npassword_expiry_utc=1767225600\n";
    let answer = |more: &str| git(more).answer(&offer(), &a_token("t"));
    let only = "wwwauth[]=bearer realm=\"a\tb\"\n";
    assert_eq!(text(answer(&format!("capability[]=state\ncapability[]=authtype\n{only}"))), bearer);
    for basic in [
        "capability[]=authtype\n",
        &format!("capability[]=authtype\n{only}wwwauth[]=Basic realm=x\n"),
        "wwwauth[]=Basic\n",
        "wwwauth[]=Bearer realm=\"a\", error=\"b\", Basic realm=\"a\"\n",
    ] {
        let answer = text(answer(basic));
        assert!(answer.starts_with("username=") && !answer.contains("capability"), "{basic}");
    }
    assert!(useless(answer(only)).contains("2.46"), "a git that cannot sends nothing in vain");
}

#[test]
fn git_is_not_answered_where_a_line_could_be_another() {
    // CVE-2020-5260, CVE-2020-11008, CVE-2024-50349, CVE-2024-52006.
    for hostile in [
        &b"protocol=https\nhost=a.example\rhost=evil\n\n"[..],
        b"protocol=https\r\nhost=a.example\r\n\r\n",
        b"protocol=https\nhost=a.example\nusername=\x1b[31m\n\n",
        b"protocol=https\nhost=a.example\nusername=a\0b\n\n",
        b"protocol=https\nhost=a.example\npath=a\tb\n\n",
        b"protocol=https\nhost=a.example\nwwwauth[]=Basic\r\n\n",
        b"protocol=https\nhost=a.example\nhost=evil.example\n\n",
        b"protocol=https\nprotocol=https\nhost=a.example\n\n",
        b"protocol=https\nhost=a.example\n=\n\x7f\n",
        b"protocol=https\nhost=a.example\nrubbish\n\n",
        b"protocol=https\nhost=\xff\n\n",
        b"protocol=https\nhost=a.example%0ahost=evil\n\n",
        b"protocol=https\nhost=a.example.\n\n",
        b"protocol=https\nhost=\n\n",
        b"protocol=https\n\nhost=a.example\n",
        b"host=a.example\n\n",
        b"\n",
        b"",
    ] {
        asked(git::Request::read(hostile));
    }
    let by =
        |protocol: &str| git::Request::read(format!("protocol={protocol}\nhost=a.example\n\n").as_bytes());
    assert_eq!(by("http").unwrap_err(), ToolError::Plain { tool: Tool::Git });
    for other in ["HTTPS", "HTTP", "ftp", "smtp", "cert", ""] {
        assert!(by(other).unwrap().is_none(), "{other}");
    }
    assert_eq!(
        git::Request::read(b"protocol=https\nhost=A.example:443\n").unwrap().unwrap().place,
        git("").place
    );
}

#[test]
fn git_is_given_no_value_that_holds_a_line() {
    for value in ["p\nhost=evil", "p\r", "p\0", "p\u{85}", ""] {
        useless(git("").answer(&offer(), &a_token(value)));
        useless(git("").answer(&offer(), &leased(&[("username", value), ("password", value)])));
    }
    useless(git("").answer(&offer(), &leased(&[("username", "a\nb"), ("password", CANARY)])));
}

#[test]
fn git_erases_what_was_given_and_nothing_else() {
    let ours = a_token("t");
    assert!(git("username=x-access-token\npassword=t\n").refuses(&offer(), &ours));
    assert!(git("credential=t\nauthtype=Bearer\n").refuses(&offer(), &ours));
    for other in ["", "password=typed\n", "username=t\n"] {
        assert!(!git(other).refuses(&offer(), &ours), "{other}");
    }
}

// --- docker (LEGACY 4.9) ------------------------------------------------------------------------------------------------

#[test]
fn docker_gets_a_login_for_the_name_that_it_knows() {
    for server in ["a.example", "https://a.example/v1/", "A.example:443", "a.example/team"] {
        let (words, place) = docker::read(server.as_bytes()).unwrap();
        assert_eq!((words, Some(place)), (server, Place::of_host("a.example")));
        let answer = of_json(docker::answer(words, &offer(), &a_token("t")));
        assert_eq!(answer, json!({"ServerURL": server, "Username": "x-access-token", "Secret": "t"}));
    }
    assert_eq!(docker::read(b"a.example:5000\n").unwrap().1, Place::of_host("a.example:5000").unwrap());
    let identity_token = Offer { username: "<token>".into(), ..offer() };
    assert_eq!(of_json(docker::answer("a.example", &identity_token, &a_token("t")))["Username"], "<token>");
    let lease = leased(&[("username", "u"), ("password", "p\"q")]);
    assert_eq!(of_json(docker::answer("a.example", &offer(), &lease))["Secret"], "p\"q");
}

#[test]
fn docker_gets_nothing_for_a_name_that_could_be_another() {
    for hostile in [
        &b""[..],
        b"\n",
        b"a.example\n\n",
        b"a.example\r\n",
        b"u@a.example",
        b"a.example%00",
        b"a.example.",
        b"a.example?x",
        b"\xff",
        b"a b",
    ] {
        asked(docker::read(hostile));
    }
    for plain in ["http://a.example", "HTTPS://a.example", "unix://a.example"] {
        assert_eq!(docker::read(plain.as_bytes()), Err(ToolError::Plain { tool: Tool::Docker }));
    }
}

#[test]
fn docker_lists_what_it_can_use() {
    let bound = Offer { binding: "dpop".into(), origins: vec!["https://bound.example".into()], ..offer() };
    let named = Offer { username: "u".into(), origins: vec!["https://c.example".into()], ..offer() };
    let listed: Value = serde_json::from_str(&docker::list(&[offer(), bound, named])).unwrap();
    assert_eq!(
        listed,
        json!({"a.example": "x-access-token", "b.example:6443": "x-access-token", "c.example": "u"})
    );
    assert_eq!(docker::list(&[]), "{}");
}

// --- anybody ------------------------------------------------------------------------------------------------------------

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(4096))]

    #[test]
    fn whatever_is_asked_a_credential_is_for_its_own_place(
        pieces in proptest::collection::vec(proptest::sample::select(PIECES), 0..12),
        odd in ".{0,4}",
        at in 0_usize..12,
    ) {
        let mut pieces = pieces;
        pieces.insert(at.min(pieces.len()), &odd);
        super::properties::asked(pieces.concat().as_bytes());
    }
}

/// What questions are made of, and what turns one into another.
const PIECES: &[&str] = &[
    "protocol=https\n",
    "host=a.example:8443\n",
    "host=",
    "a.example:8443",
    "A.EXAMPLE:8443",
    "a.example",
    ":8443",
    ":443",
    "evil.example",
    "username=me\n",
    "password=p\n",
    "capability[]=authtype\n",
    "wwwauth[]=Bearer x\n",
    "wwwauth[]=Basic x\n",
    "path=a.git\n",
    "\n",
    "\r",
    "\0",
    "\t",
    "=",
    ".",
    "@",
    "/",
    "%0a",
    "%2e",
    "?",
    "#",
    "\\",
    "[",
    "]",
    "::1",
    ":",
    "https://",
    "http://",
    "protocol=http\n",
    " ",
    "\u{85}",
    "\u{3002}",
    "-",
    "_",
    "0",
    "*",
];

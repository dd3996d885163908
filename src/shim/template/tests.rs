//! What templates can do, what they cannot, and that nothing they say holds a value.

use super::*;
use crate::proto::v1::{AccessToken, LeasedValues, credential::Kind};

fn token(name: &str, token: &str) -> Credential {
    let kind = Kind::AccessToken(AccessToken { token: token.into(), token_type: "Bearer".into() });
    Credential { name: name.into(), kind: Some(kind), ..Credential::default() }
}

fn leased(name: &str, values: &[(&str, &str)]) -> Credential {
    let values = values.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Credential {
        name: name.into(),
        kind: Some(Kind::LeasedValues(LeasedValues { values })),
        ..Credential::default()
    }
}

fn parse(text: &str) -> Result<Template, TemplateError> {
    Template::parse(Path::new("app.conf.tmpl"), text.into())
}

fn render_with(text: &str, credentials: Vec<Credential>) -> Result<String, String> {
    let fetched: Fetched = credentials.into_iter().collect();
    let offered: Vec<&str> = fetched.credentials().map(|credential| credential.name.as_str()).collect();
    let rendered = parse(text).and_then(|template| {
        let cast = template.cast(&offered)?;
        template.render(&cast, &fetched)
    });
    rendered.map(|out| out.expose_str().unwrap().to_owned()).map_err(|error| error.to_string())
}

fn render(text: &str) -> Result<String, String> {
    render_with(text, vec![token("ledger", "canary\"'\\:$"), leased("my-database", &[("user-name", "u:1")])])
}

#[test]
fn fields_are_written_as_they_are_and_the_rest_as_it_stands() {
    let text = "# {{ 'x' }} &<>\n  token = {{ ledger.token }}\n{% if ledger.token %}on{% endif %}\n";
    assert_eq!(render(text).unwrap(), "# x &<>\n  token = canary\"'\\:$\non\n");
    assert_eq!(
        render("{{ ledger.authorization }}").unwrap(),
        "Bearer canary\"'\\:$",
        "no newline is added or taken"
    );
    // A name in a template has no `-`.
    assert_eq!(render("{{ my_database['user-name'] }}\n\n").unwrap(), "u:1\n\n");
}

#[test]
fn each_filter_is_of_one_kind_of_file() {
    let filtered = |filter: &str| render(&format!("{{{{ ledger.token | {filter} }}}}")).unwrap();
    assert_eq!(filtered("pgpass"), r#"canary"'\\\:$"#);
    assert_eq!(filtered("curlrc"), r#""canary\"'\\:$""#);
    assert_eq!(filtered("mycnf"), r#""canary\"'\\:$""#);
    assert_eq!(filtered("json"), r#""canary\"'\\:$""#);
    assert_eq!(filtered("sh"), r#"'canary"'\''\:$'"#);
    assert_eq!(filtered("base64"), "Y2FuYXJ5IidcOiQ=");
    assert_eq!(filtered("urlencode"), "canary%22%27%5C%3A%24");
}

#[test]
fn a_filter_refuses_what_its_file_cannot_carry_and_names_line_and_never_the_value() {
    for (filter, value) in
        [("pgpass", "canary\n"), ("curlrc", "canary\r"), ("mycnf", "canary\n"), ("sh", "canary\0")]
    {
        let text = format!("# one\n{{{{ ledger.token | {filter} }}}}");
        let told = render_with(&text, vec![token("ledger", value)]).unwrap_err();
        assert!(told.starts_with("app.conf.tmpl:2: the value has a "), "{told}");
        assert!(told.ends_with("; it is in ledger.token"), "{told}");
        assert!(!told.contains("canary"), "{told}");
    }
    assert!(render("{{ 5 | json }}").unwrap_err().contains("takes a text"));
}

#[test]
fn what_is_not_there_is_an_error_with_line_variable_and_what_there_is() {
    // LEGACY: consul-template renders nothing for what it does not know.
    let told = render("\n\n{{ ledger.tokn }}").unwrap_err();
    assert_eq!(told, "app.conf.tmpl:3: ledger.tokn is not there: it has authorization, expires_at, token");
    let told = render("{{ leger.token }}").unwrap_err();
    assert_eq!(
        told,
        "app.conf.tmpl:1: leger is no credential that this program may have; it may have ledger, my-database"
    );
    assert!(
        render("{{ ledger.tokn | default('x') }}").is_ok(),
        "unless the template says that it need not be there"
    );
    let told = render_with("{{ a_b.token }}", vec![token("a-b", "x"), token("a_b", "x")]).unwrap_err();
    assert!(told.contains("a_b or a-b"), "{told}");
}

#[test]
fn a_credential_as_a_whole_is_an_error() {
    for text in ["\n{{ ledger }}", "\n{{ 'a' ~ ledger }}", "\n{{ [ledger] }}", "\n{{ ledger | string }}"] {
        let told = render(text).unwrap_err();
        assert!(told.starts_with("app.conf.tmpl:2: ") && told.contains("ledger.token"), "{text}: {told}");
    }
}

#[test]
fn only_what_is_named_is_wanted() {
    let template =
        parse("{% set x = ledger.token %}{% for i in range(2) %}{{ x }}{{ i }}{% endfor %}{{ a_b.c }}")
            .unwrap();
    assert_eq!(template.names().collect::<Vec<_>>(), ["a_b", "ledger"]);
    let wanted = template.cast(&["ledger", "other", "a-b"]).unwrap().credentials();
    assert_eq!(wanted.iter().map(|name| &**name).collect::<Vec<_>>(), ["a-b", "ledger"]);
}

#[test]
fn a_template_reads_no_file_runs_no_program_and_asks_for_no_environment() {
    // consul-template GH-2083: no functions that read or write files.
    for text in [
        "{% include '/etc/passwd' %}",
        "{% import '/etc/passwd' as x %}",
        "{% extends '/etc/passwd' %}",
        "{{ file('/etc/passwd') }}",
        "{{ env('HOME') }}",
        "{{ secret('x') }}",
        "{{ plugin('id') }}",
        "{{ debug() }}",
    ] {
        assert!(render(text).is_err(), "{text}");
    }
}

#[test]
fn what_is_wrong_with_a_template_is_told_in_full_before_anything_is_fetched() {
    for (text, word) in [
        ("a\n{{ ledger.token | nosuch }}", ":2: unknown filter: "),
        ("a\n{% if %}", ":2: syntax error"),
        ("a\n{{ ledger.token", ":2: syntax error"),
        ("{{ 1 is nosuch }}", ":1: unknown test"),
    ] {
        let told = parse(text).unwrap_err().to_string();
        assert!(told.contains(word), "{told}");
    }
    // What may go well with a real value is not wrong.
    assert!(parse("{{ ledger.port | int }}").is_ok());
}

#[test]
fn what_is_wrong_with_a_value_is_told_without_it() {
    // CVE-2022-38149: template errors quoted secret values.
    for text in [
        "{{ ledger.token | int }}",
        "{{ ledger.token + 1 }}",
        "{{ ledger.token.nosuch() }}",
        "{{ ledger.token.a }}",
        "{{ ledger.token() }}",
        "{{ {}[ledger.token] }}",
        "{{ dict(ledger.token) }}",
        "{% for a, b in ledger.token %}{% endfor %}",
        "{{ ledger[ledger.token] }}",
        "{{ 'x' | replace(ledger.token) }}",
        "{{ ledger.token | round }}",
        "{{ ledger.token | batch(ledger.token) }}",
        "{{ range(ledger.token) }}",
        "{{ namespace(ledger.token) }}",
    ] {
        let told = render(&format!("\n{text}")).unwrap_err();
        assert!(told.starts_with("app.conf.tmpl:2: ") && !told.contains("canary"), "{text}: {told}");
    }
}

#[test]
fn steps_and_size_are_bounded() {
    let told = render("{% for a in range(9999) %}{% for b in range(9999) %}{{ a }}{% endfor %}{% endfor %}")
        .unwrap_err();
    assert!(told.contains("steps"), "{told}");
    let told = render("{% for a in range(200) %}{{ 'x' * 10000 }}{% endfor %}").unwrap_err();
    assert!(told.contains("1048576 bytes"), "{told}");
    assert!(parse(&"x".repeat(LONGEST + 1)).is_err());
}

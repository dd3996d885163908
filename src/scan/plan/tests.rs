use super::*;

const NOW: Timestamp = Timestamp::UNIX_EPOCH;

fn planned(path: &str, text: &str) -> Plan {
    planned_all(&[(path, text)]).unwrap()
}

fn planned_all(files: &[(&str, &str)]) -> Result<Plan, NoPlan> {
    let file = |(path, text): &(&str, &str)| (PathBuf::from(path), Zeroizing::new((*text).to_owned()));
    plan(&files.iter().map(file).collect::<Vec<_>>(), &About::default(), NOW)
}

fn has(plan: &Plan, wanted: &str) {
    let text = plan.text();
    assert!(text.contains(wanted), "{wanted} is missing: {text}");
}

#[test]
fn each_secret_takes_the_way_that_its_issuer_has() {
    // S1
    let url = planned("shop.env", "DATABASE_URL=postgres://shop:Quay-Side-77x@db/shop\n");
    has(&url, "PGUSER = \"database.username\", PGPASSWORD = \"database.password\"");
    has(&url, "DATABASE_URL stays without user and password");
    let mysql = planned("shop.env", "MYSQL_PASSWORD=Quay-Side-77x\n");
    has(&mysql, "MYSQL_USER = \"database.username\", MYSQL_PASSWORD = \"database.password\"");
    has(&mysql, "has to take it from MYSQL_USER");
    let two = planned("shop.env", "A_DB_PASSWORD=Quay-Side-77x\nB_DB_PASSWORD=Quay-Side-78x\n");
    has(&two, "[identities.shop.credentials.database]");
    has(&two, "[identities.shop.credentials.database-2]");
    let github = planned("shop.env", "GITHUB_TOKEN=Zx81kQ0vTq3LmNw7Yb55\n");
    has(&github, "kind = \"sealed\"");
    has(&github, "a GitHub App with the permissions of this token");
    let vault = planned("shop.env", "VAULT_TOKEN=Zx81kQ0vTq3LmNw7Yb55\n");
    has(&vault, "a login role shop for this agent");
    let pem = [
        "SERVER_TLS_KEY=\"-----BEGIN ",
        "PRIVATE KEY-----\nMIIB\n-----END PRIVATE KEY-----\"\nSERVER_TLS_CERT=x\n",
    ];
    has(&planned("shop.env", &pem.concat()), "SERVER_TLS_KEY = \"tls.key\", SERVER_TLS_CERT = \"tls.chain\"");
    let pg = planned(
        "shop.env",
        "PGSSLKEY=/etc/shop/pg.key\nPGSSLCERT=/etc/shop/pg.crt\nPGSSLROOTCERT=/etc/shop/ca.crt\n",
    );
    has(&pg, "file = { PGSSLKEY = \"tls.key\", PGSSLCERT = \"tls.chain\", PGSSLROOTCERT = \"tls.bundle\" }");
}

#[test]
fn an_exception_ends_within_ninety_days() {
    // S36
    let plan = planned("shop.env", "SMTP_PASSWORD=Harbour-Lights-41\n");
    has(&plan, "until = \"1970-03-31\" }");
    assert!(plan.until < jiff::civil::date(1970, 4, 1), "the end of the last day counts");
}

#[test]
fn the_unit_says_who_it_is() {
    let unit = "[Service]\nUser=shop\nEnvironmentFile=-/etc/default/shop\nEnvironment=SMTP_PASSWORD=Harbour-Lights-41\n";
    let plan = planned("/etc/systemd/system/shop.service.d/10.conf", unit);
    assert_eq!(plan.identity, "shop");
    has(&plan, "match = { unit = \"shop.service\", user = \"shop\" }\n");
    has(&plan, "the unit reads /etc/default/shop too");
    let cut = "sed -n '4s/^Environment=SMTP_PASSWORD=//p' /etc/systemd/system/shop.service.d/10.conf";
    has(&plan, cut);
    let files = [("shop.service", unit), ("/etc/default/shop", "A_TOKEN=Zx81kQ0vTq3LmNw7\n")];
    assert!(!planned_all(&files).unwrap().text().contains("name it as well"));
    let guessed = planned("/srv/My App.env", "SMTP_PASSWORD=Harbour-Lights-41\n");
    has(&guessed, "match = { unit = \"my-app.service\" } # FILL IN");
}

#[test]
fn values_that_stand_in_no_plain_way_are_not_cut_out_of_their_lines() {
    let sealed = |text: &str| {
        let plan = planned("/etc/shop.env", text);
        plan.steps().into_iter().find(|step| step.contains("keybearer seal")).unwrap()
    };
    assert_eq!(
        sealed("SMTP_PASSWORD='Harbour-Lights-41'\n"),
        "sed -n \"1s/^SMTP_PASSWORD='\\(.*\\)'\\$/\\1/p\" /etc/shop.env | keybearer seal shop smtp"
    );
    let read = "systemd-run --quiet --wait --pipe -p EnvironmentFile=/etc/shop.env sh -c 'printf %s \"$SMTP_PASSWORD\"' | \
                keybearer seal shop smtp";
    assert_eq!(sealed("SMTP_PASSWORD=\"Harbour\\\"Lights-41\"\n"), read);
    // A line of DOS.
    assert_eq!(sealed("SMTP_PASSWORD=Harbour-Lights-41\r\n"), read);
    let odd = planned("/etc/a;b.env", "SMTP_PASSWORD=Harbour-Lights-41\n");
    assert!(
        odd.steps().iter().any(|step| step.contains("(/etc/a;b.env:1), which is not shown")),
        "{:?}",
        odd.steps()
    );
}

#[test]
fn no_value_is_in_a_plan_whatever_it_is_called() {
    // S1: a canary in each place.
    let text = "A_PASSWORD=C4n4ry-one-1\nDATABASE_URL=mysql://C4n4ry:C4n4ry-two-2@C4n4ry/x\nX_CLIENT_ID=C4n4ry\n\
                X_CLIENT_SECRET=C4n4ry3three\nTLS_KEY_FILE=/C4n4ry/x.key\nLOG=C4n4ry\n";
    assert!(!planned("shop.env", text).text().contains("C4n4ry"));
}

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::{SignedDuration, Timestamp};
use x509_parser::{certificate::X509Certificate, prelude::FromDer as _};

use super::*;
use crate::{
    clock::Boot,
    keys::{Custody, KeySettings, Keyring, Now, RotationSettings},
};

const DAY: i64 = 24 * 60 * 60;

fn at(day: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + day * DAY).unwrap()
}

fn settings(custody: Custody) -> CertificateSettings {
    CertificateSettings {
        custody,
        signed_by: SignedBy::Itself,
        san_uri: Some("spiffe://example.org/payments".into()),
        lifetime: Duration::from_secs(30 * DAY.cast_unsigned()),
        export: false,
    }
}

fn private_dir() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
    dir
}

fn in_file(dir: &Path) -> (PathBuf, CertificateSettings) {
    let path = dir.join("payments.client-certificate.pem");
    (path.clone(), settings(Custody::File { path }))
}

fn open(
    settings: &CertificateSettings,
    before: &Certificates,
    now: Timestamp,
) -> Result<Certificates, String> {
    let wanted = BTreeMap::from([("payments".into(), settings.clone())]);
    Certificates::open(&wanted, before, &Keyring::default(), now).map_err(|errors| errors[0].to_string())
}

/// What is shown once what was due by `now` had its time: two days of orders, while the wall stands still.
fn shown(certificates: &Certificates, now: Timestamp) -> Vec<String> {
    for minutes in (0..=2 * 24 * 60).step_by(10) {
        tend(certificates, now, minutes);
    }
    shown_at_once(certificates, now)
}

fn tend(certificates: &Certificates, wall: Timestamp, minutes: u64) {
    let boot = Boot::default() + Duration::from_secs(minutes * 60);
    certificates.tend(&"payments".into(), Now { wall, boot });
}

fn shown_at_once(certificates: &Certificates, now: Timestamp) -> Vec<String> {
    certificates.of(&"payments".into(), now).iter().map(|one| one.thumbprint().to_owned()).collect()
}

fn registered(certificates: &Certificates) -> Vec<String> {
    let all = certificates.to_register().flat_map(|(_, all)| all);
    all.map(|one| one.thumbprint().to_owned()).collect()
}

#[test]
fn the_thumbprint_is_that_of_rfc_8705() {
    // MT-07, rfc8705_x5t_S256
    let der = "MIIBBjCBrAIBAjAKBggqhkjOPQQDAjAPMQ0wCwYDVQQDDARtdGxzMB4XDTE4MTAxODEyMzcwOVoXDTIyMDUwMjEyMzcwOVowDzENMAsGA1UE\
               AwwEbXRsczBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABNcnyxwqV6hY8QnhxxzFQ03C7HKW9OylMbnQZjjJ/Au08/coZwxS7LfA4vOLS9Wu\
               neIXhbGGWvsDSb0tH6IxLm8wCgYIKoZIzj0EAwIDSQAwRgIhAP0RC1E+vwJD/D1AGHGzuri+hlV/PpQEKTWUVeORWz83AiEA5x2eXZOVbUlJ\
               SGQgjwD5vaUaKlLR50Q2DmFfQj1L+SY=";
    let der = STANDARD.decode(der).unwrap();
    assert_eq!(thumbprint(&der), "A4DtL2JmUMhAsvJj5tKyn64SqzmuXbMrJa0n761y5v0");
}

#[test]
fn what_an_identity_signs_for_itself_is_for_clients_and_for_nothing_else() {
    // MT-04
    let certificates = open(&settings(Custody::Memory), &Certificates::default(), at(0)).unwrap();
    let certificate = certificates.of(&"payments".into(), at(0)).remove(0);
    let (_, read) = X509Certificate::from_der(&certificate.key.cert[0]).unwrap();
    assert_eq!((read.subject().to_string().as_str(), read.subject()), ("CN=payments", read.issuer()));
    let usage = read.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.client_auth && !usage.server_auth && !usage.any);
    let usage = read.key_usage().unwrap().unwrap().value;
    assert!(usage.digital_signature() && !usage.key_cert_sign());
    assert!(!read.is_ca());
    assert_eq!(certificate.until().duration_since(certificate.from), SignedDuration::from_hours(30 * 24));
    assert!(certificate.from < at(0));
    let name = Name { member: "tls_client_auth_san_uri", value: "spiffe://example.org/payments".into() };
    assert_eq!(*certificate.name(), name);
    let plain = CertificateSettings { san_uri: None, ..settings(Custody::Memory) };
    let plain =
        open(&plain, &Certificates::default(), at(0)).unwrap().of(&"payments".into(), at(0)).remove(0);
    assert_eq!(plain.name(), &Name { member: "tls_client_auth_subject_dn", value: "CN=payments".into() });
    assert_ne!(plain.thumbprint(), certificate.thumbprint());
}

#[test]
fn a_jwk_holds_the_chain_and_nothing_private() {
    // MT-05, KEY-03
    let certificates = open(&settings(Custody::Memory), &Certificates::default(), at(0)).unwrap();
    let certificate = certificates.of(&"payments".into(), at(0)).remove(0);
    let jwk = certificate.jwk().unwrap();
    let members: Vec<&String> = jwk.as_object().unwrap().keys().collect();
    assert_eq!(members, ["crv", "kid", "kty", "use", "x", "x5c", "x5t#S256", "y"]);
    let leaf = STANDARD.decode(jwk["x5c"][0].as_str().unwrap()).unwrap();
    assert_eq!(thumbprint(&leaf), jwk["x5t#S256"]);
    let (_, read) = X509Certificate::from_der(&leaf).unwrap();
    assert_eq!(read.public_key().raw, crate::jose::PublicKey::from_jwk(&jwk).unwrap().spki_der());
}

#[test]
fn the_key_is_kept_for_export_only_where_that_is_allowed() {
    // MT-11
    for export in [false, true] {
        let settings = CertificateSettings { export, ..settings(Custody::Memory) };
        let certificates = open(&settings, &Certificates::default(), at(0)).unwrap();
        let certificate = certificates.of(&"payments".into(), at(0)).remove(0);
        assert_eq!(certificate.private_pem().is_some(), export);
        assert!(!format!("{certificate:?} {certificates:?}").contains("PRIVATE"));
    }
}

#[test]
fn a_certificate_in_a_file_is_made_once_and_found_again() {
    // KEY-11
    let dir = private_dir();
    let (path, settings) = in_file(dir.path());
    let first = open(&settings, &Certificates::default(), at(0)).unwrap();
    let again = open(&settings, &Certificates::default(), at(1)).unwrap();
    assert_eq!(shown(&first, at(1)), shown(&again, at(1)));
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let refused = open(&settings, &Certificates::default(), at(1)).unwrap_err();
    assert!(refused.starts_with("identities.payments.certificate: KEY_PERM"), "{refused}");
}

#[test]
fn the_next_one_is_made_at_two_thirds_and_shown_at_five_sixths() {
    // MT-05, MT-08, KEY-05
    let dir = private_dir();
    let (path, settings) = in_file(dir.path());
    let certificates = open(&settings, &Certificates::default(), at(0)).unwrap();
    let first = shown(&certificates, at(0));
    assert_eq!((shown(&certificates, at(19)), registered(&certificates)), (first.clone(), first.clone()));
    // Made and to be registered, not shown yet: also by an agent that was not there until now.
    assert_eq!(shown(&certificates, at(20)), first);
    let both = registered(&certificates);
    assert_eq!((both.len(), &both[0]), (2, &first[0]));
    assert_eq!(registered(&open(&settings, &Certificates::default(), at(21)).unwrap()), both);
    assert_eq!(shown(&certificates, at(24)), first);
    // Shown, with the old one at hand for an issuer that does not know the new one (KEY-06).
    let second = [both[1].clone(), first[0].clone()];
    assert_eq!(shown(&certificates, at(25)), second);
    assert_eq!(shown(&open(&settings, &Certificates::default(), at(26)).unwrap(), at(26)), second);
    // The old one has ended: its key is gone from the disk.
    assert_eq!(shown(&certificates, at(31)), second[..1]);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    // Nobody was there for a year.
    let late = shown(&certificates, at(400));
    assert_eq!((late.len(), late[0] != second[0]), (1, true));
    assert!(path.exists());
}

#[test]
fn a_change_that_broke_off_half_way_is_finished() {
    // MT-08
    let dir = private_dir();
    let (path, settings) = in_file(dir.path());
    let certificates = open(&settings, &Certificates::default(), at(0)).unwrap();
    shown(&certificates, at(20));
    let next = registered(&certificates)[1].clone();
    fs::rename(&path, dir.path().join("payments.client-certificate.pem.before")).unwrap();
    let again = open(&settings, &Certificates::default(), at(25)).unwrap();
    assert_eq!(shown(&again, at(25))[0], next);
    assert_eq!(shown(&again, at(25)).len(), 2);
}

/// Every file in `dir`, by name, and what is in it.
fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(dir).unwrap().map(Result::unwrap);
    entries.map(|one| (one.file_name().into_string().unwrap(), fs::read(one.path()).unwrap())).collect()
}

#[test]
fn a_step_forward_of_the_wall_costs_no_registered_key() {
    // CLK-01, MT-08
    let dir = private_dir();
    let (path, settings) = in_file(dir.path());
    let certificates = open(&settings, &Certificates::default(), at(0)).unwrap();
    let (first, bytes) = (shown_at_once(&certificates, at(1)), fs::read(&path).unwrap());
    for _ in 0..9 {
        tend(&certificates, at(5 * 365), 0);
    }
    assert!(shown_at_once(&certificates, at(5 * 365)).is_empty(), "it has ended by that clock");
    assert_eq!(
        (shown_at_once(&certificates, at(1)), fs::read(&path).unwrap()),
        (first.clone(), bytes.clone())
    );
    // Nor do starts, however many.
    for _ in 0..9 {
        open(&settings, &Certificates::default(), at(5 * 365)).unwrap();
    }
    assert_eq!(fs::read(&path).unwrap(), bytes);
    let again = open(&settings, &Certificates::default(), at(1)).unwrap();
    assert_eq!(shown_at_once(&again, at(1)), first);
    // What the clock that was ahead made is not what comes next.
    assert_eq!(shown(&again, at(26))[1], first[0]);
    assert!(again.of(&"payments".into(), at(26))[0].from <= at(26));
}

#[test]
fn a_switch_by_a_clock_that_was_ahead_for_long_is_taken_back() {
    // CLK-01, MT-08
    let dir = private_dir();
    let (path, settings) = in_file(dir.path());
    let certificates = open(&settings, &Certificates::default(), at(0)).unwrap();
    let (first, bytes) = (shown_at_once(&certificates, at(1)), fs::read(&path).unwrap());
    for minutes in (0..12 * 60).step_by(10) {
        tend(&certificates, at(5 * 365), minutes);
    }
    let ahead = shown_at_once(&certificates, at(5 * 365));
    assert!(ahead.len() == 1 && ahead != first);
    // At once by what is shown, also after a start, and then by the files.
    let again = open(&settings, &Certificates::default(), at(1)).unwrap();
    for certificates in [&certificates, &again] {
        assert_eq!(shown_at_once(certificates, at(1))[0], first[0]);
        tend(certificates, at(1), 12 * 60);
        assert_eq!(shown_at_once(certificates, at(1)), first);
        assert_eq!(fs::read(&path).unwrap(), bytes);
    }
    assert_eq!(files(dir.path()).len(), 2);
}

#[test]
fn a_switch_waits_since_boot_and_does_one_stage_a_time() {
    // CLK-01, MT-08
    let dir = private_dir();
    let (_, settings) = in_file(dir.path());
    let certificates = open(&settings, &Certificates::default(), at(0)).unwrap();
    let first = shown_at_once(&certificates, at(0));
    let names = || files(dir.path()).into_keys().map(|name| name.replace("payments.client-certificate", ""));
    tend(&certificates, at(25), 0);
    assert!(names().eq([".pem", ".pem.next"]));
    tend(&certificates, at(25), 1);
    tend(&certificates, at(25), 10);
    assert_eq!(shown_at_once(&certificates, at(25)), first, "nine minutes");
    tend(&certificates, at(25), 11);
    assert_ne!(shown_at_once(&certificates, at(25))[0], first[0]);
    assert!(names().eq([".pem", ".pem.before"]));
    tend(&certificates, at(31), 12);
    tend(&certificates, at(31), 11 + 24 * 60);
    assert!(names().eq([".pem", ".pem.before"]));
    tend(&certificates, at(31), 12 + 24 * 60);
    assert!(names().eq([".pem"]));
}

#[test]
fn a_switch_that_costs_the_key_before_waits_longer() {
    // CLK-01, KEY-06: an issuer may know only the one before.
    let dir = private_dir();
    let (_, settings) = in_file(dir.path());
    let certificates = open(&settings, &Certificates::default(), at(0)).unwrap();
    tend(&certificates, at(25), 0);
    [1, 11].into_iter().for_each(|minutes| tend(&certificates, at(25), minutes));
    let both = shown_at_once(&certificates, at(25));
    assert_eq!(both.len(), 2);
    for minutes in 12..70 {
        tend(&certificates, at(5 * 365), minutes);
    }
    assert_eq!(shown_at_once(&certificates, at(25)), both);
    (70..80).for_each(|minutes| tend(&certificates, at(5 * 365), minutes));
    assert_eq!(shown_at_once(&certificates, at(25))[0], both[0]);
}

#[test]
fn one_in_memory_is_not_lost_to_a_step_forward_either() {
    // CLK-01, MT-08
    let certificates = open(&settings(Custody::Memory), &Certificates::default(), at(0)).unwrap();
    let first = shown_at_once(&certificates, at(0));
    for _ in 0..9 {
        tend(&certificates, at(5 * 365), 0);
    }
    assert_eq!(shown_at_once(&certificates, at(1))[0], first[0]);
    tend(&certificates, at(1), 0);
    assert_eq!(shown_at_once(&certificates, at(1)), first);
}

#[test]
fn one_in_memory_outlives_a_reload_and_is_replaced_in_time() {
    // MT-08
    let settings = settings(Custody::Memory);
    let first = open(&settings, &Certificates::default(), at(0)).unwrap();
    let second = open(&settings, &first, at(1)).unwrap();
    assert_eq!(shown(&first, at(1)), shown(&second, at(1)));
    let renewed = shown(&second, at(20));
    assert_eq!((renewed.len(), &renewed[1]), (2, &shown(&first, at(1))[0]));
    assert_eq!(shown(&second, at(31)), renewed[..1]);
}

/// A CA, and what it signs.
struct Authority(rcgen::CertificateParams, rcgen::KeyPair, rcgen::Certificate);

impl Authority {
    fn new() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, "a CA");
        let certificate = params.self_signed(&key).unwrap();
        Self(params, key, certificate)
    }

    fn signs(&self, change: impl FnOnce(&mut rcgen::CertificateParams)) -> (String, String) {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        change(&mut params);
        let leaf = params.signed_by(&key, &rcgen::Issuer::from_params(&self.0, &self.1)).unwrap();
        (leaf.pem(), key.serialize_pem())
    }
}

struct Files(tempfile::TempDir);

impl Files {
    fn new(chain: &str, key: &str) -> Self {
        let files = Self(private_dir());
        files.write("key.pem", key, 0o600);
        files.write("chain.crt", chain, 0o644);
        files
    }

    fn write(&self, name: &str, text: &str, mode: u32) {
        let path = self.0.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn open(&self, now: Timestamp) -> Result<Certificates, String> {
        let custody = Custody::File { path: self.0.path().join("key.pem") };
        let signed_by = SignedBy::Others(self.0.path().join("chain.crt"));
        open(&CertificateSettings { signed_by, ..settings(custody) }, &Certificates::default(), now)
    }
}

#[test]
fn a_chain_of_a_ca_is_read_and_fits_its_key() {
    // MT-04
    let ca = Authority::new();
    let (leaf, key) = ca.signs(|_| ());
    let files = Files::new(&format!("{leaf}{}", ca.2.pem()), &key);
    let certificates = files.open(at(0)).unwrap();
    let certificate = certificates.of(&"payments".into(), at(0)).remove(0);
    assert_eq!(certificate.chain_pem().matches("BEGIN CERTIFICATE").count(), 2);
    assert!(certificate.chain_pem().starts_with(&leaf.replace("\r\n", "\n")[..200]));

    let refused = |chain: &str, key: &str| Files::new(chain, key).open(at(0)).unwrap_err();
    let (other, other_key) = ca.signs(|_| ());
    assert!(refused(&leaf, &other_key).contains("is for another key"));
    assert!(refused(&format!("{}{leaf}", ca.2.pem()), &key).contains("no chain"));
    assert!(refused(&format!("{leaf}{other}"), &key).contains("no chain"));
    assert!(refused("", &key).contains("no certificate"));
    assert!(refused("-----BEGIN CERTIFICATE-----\n????\n-----END CERTIFICATE-----\n", &key).contains("PEM"));
    assert!(refused("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", &key).contains("5280"));
    let server = |params: &mut rcgen::CertificateParams| {
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    };
    let (server, server_key) = ca.signs(server);
    assert!(refused(&server, &server_key).contains("clientAuth"));

    files.write("chain.crt", &leaf, 0o664);
    assert!(files.open(at(0)).unwrap_err().contains("chmod 0644"));
    files.write("chain.crt", &leaf, 0o644);
    files.write("key.pem", &key, 0o644);
    assert!(files.open(at(0)).unwrap_err().contains("KEY_PERM"));
}

#[test]
fn a_certificate_of_a_ca_that_has_ended_is_not_shown() {
    // MT-08
    let (leaf, key) = Authority::new().signs(|params| params.not_after = rcgen::date_time_ymd(2024, 1, 1));
    let certificates = Files::new(&leaf, &key).open(at(0)).unwrap();
    assert_eq!(shown(&certificates, "2023-12-31T23:59:59Z".parse().unwrap()).len(), 1);
    assert!(shown(&certificates, "2024-01-01T00:00:00Z".parse().unwrap()).is_empty());
}

#[test]
fn an_issuer_knows_a_certificate_by_the_name_that_says_most() {
    // MT-04: exactly one, and a URI before anything else; RFC 4514 for a subject.
    let ca = Authority::new();
    let name = |change: &dyn Fn(&mut rcgen::CertificateParams)| {
        let (leaf, key) = ca.signs(|params| change(params));
        let certificates = Files::new(&leaf, &key).open(at(0)).unwrap();
        let name = certificates.of(&"payments".into(), at(0)).remove(0).name().clone();
        (name.member.trim_start_matches("tls_client_auth_"), name.value)
    };
    let dns = rcgen::SanType::DnsName("pay.example".try_into().unwrap());
    let uri = rcgen::SanType::URI("spiffe://example.org/pay".try_into().unwrap());
    let mail = rcgen::SanType::Rfc822Name("pay@example.org".try_into().unwrap());
    let ip = rcgen::SanType::IpAddress([192, 0, 2, 7].into());
    for (names, known) in [
        (vec![dns.clone(), ip.clone(), uri], ("san_uri", "spiffe://example.org/pay")),
        (vec![mail.clone(), ip.clone(), dns], ("san_dns", "pay.example")),
        (vec![mail.clone(), ip], ("san_ip", "192.0.2.7")),
        (vec![mail], ("san_email", "pay@example.org")),
    ] {
        let (member, value) = name(&|params| params.subject_alt_names.clone_from(&names));
        assert_eq!((member, value.as_str()), known);
    }
    let (member, value) = name(&|params| {
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CountryName, "DE");
        params.distinguished_name.push(rcgen::DnType::OrganizationName, "Pay, Inc.");
        params.distinguished_name.push(rcgen::DnType::CommonName, "#pay+1 ");
    });
    assert_eq!((member, value.as_str()), ("subject_dn", "CN=\\#pay\\+1\\ ,O=Pay\\, Inc.,C=DE"));
}

#[test]
fn no_two_purposes_and_no_two_identities_share_a_key() {
    // KEY-01
    let dir = private_dir();
    let (path, settings) = in_file(dir.path());
    let both = BTreeMap::from([("a".into(), settings.clone()), ("b".into(), settings.clone())]);
    let errors = Certificates::open(&both, &Certificates::default(), &Keyring::default(), at(0)).unwrap_err();
    assert_eq!(errors.len(), 1);
    assert!(errors[0].to_string().contains("same key as that of identity a"), "{}", errors[0]);
    let key = KeySettings {
        custody: Custody::File { path },
        algorithm: Algorithm::Es256,
        rotation: RotationSettings::default(),
        client: true,
        dpop: [].into(),
    };
    let wanted: BTreeMap<Arc<str>, _> = [("payments".into(), key)].into();
    let ring =
        Keyring::open(&wanted, &Keyring::default(), Now { wall: at(0), boot: Boot::from_nanos(0) }).unwrap();
    let one = BTreeMap::from([("payments".into(), settings)]);
    let errors = Certificates::open(&one, &Certificates::default(), &ring, at(0)).unwrap_err();
    assert!(errors[0].to_string().contains("KEY-01"), "{}", errors[0]);
}

fn begin(certificates: &Certificates, now: Timestamp) -> Rotated {
    certificates.begin(&"payments".into(), now).unwrap()
}

#[test]
fn an_operator_has_the_next_one_made_early_and_it_goes_on_in_its_time() {
    // MT-05, KEY-05
    let dir = private_dir();
    let (_, settings) = in_file(dir.path());
    let certificates = open(&settings, &Certificates::default(), at(0)).unwrap();
    let first = shown_at_once(&certificates, at(2));
    assert!(certificates.next(at(2)).is_empty());
    let Rotated::Next { next, made: true } = begin(&certificates, at(2)) else { panic!("made") };
    assert!(matches!(begin(&certificates, at(3)), Rotated::Next { made: false, .. }), "there is one");
    assert_eq!(registered(&certificates), [first[0].clone(), next.thumbprint().to_owned()]);
    // Not shown before its time, unless somebody says that it is known; also after a start.
    let again = open(&settings, &Certificates::default(), at(20)).unwrap();
    for certificates in [&certificates, &again] {
        assert_eq!(shown(certificates, at(24)), first);
    }
    assert_eq!(shown(&certificates, at(25))[0], next.thumbprint());
    // One that has ended before anybody showed it makes room for another.
    let dir = private_dir();
    let (_, settings) = in_file(dir.path());
    let certificates = open(&settings, &Certificates::default(), at(0)).unwrap();
    let Rotated::Next { next, .. } = begin(&certificates, at(2)) else { panic!("made") };
    let Rotated::Next { next: another, made: true } = begin(&certificates, at(50)) else { panic!("made") };
    assert_ne!(next.thumbprint(), another.thumbprint());
}

#[test]
fn one_that_is_taken_is_shown_at_once_and_only_that() {
    // MT-05, KEY-06
    let dir = private_dir();
    let (_, settings) = in_file(dir.path());
    let certificates = open(&settings, &Certificates::default(), at(0)).unwrap();
    let (payments, first) = ("payments".into(), shown_at_once(&certificates, at(2)));
    let Rotated::Next { next, .. } = begin(&certificates, at(2)) else { panic!("made") };
    assert!(!certificates.show(&payments, "another", at(2)).unwrap());
    assert!(
        !certificates.show(&payments, next.thumbprint(), at(-9)).unwrap(),
        "not by a clock that is behind"
    );
    assert!(certificates.show(&payments, next.thumbprint(), at(2)).unwrap());
    let both = [next.thumbprint().to_owned(), first[0].clone()];
    assert_eq!(shown_at_once(&certificates, at(2)), both);
    assert_eq!(shown_at_once(&open(&settings, &Certificates::default(), at(2)).unwrap(), at(2)), both);
    assert!(!certificates.show(&payments, next.thumbprint(), at(2)).unwrap(), "it is shown already");
    // In memory there is nothing to be registered beforehand.
    let memory = self::settings(Custody::Memory);
    let certificates = open(&memory, &Certificates::default(), at(0)).unwrap();
    let first = shown_at_once(&certificates, at(2));
    let Rotated::Shown(now) = begin(&certificates, at(2)) else { panic!("shown") };
    assert_eq!(shown_at_once(&certificates, at(2)), [now.thumbprint().to_owned(), first[0].clone()]);
}

#[test]
fn an_emergency_leaves_one_key_wherever_it_broke_off() {
    // KEY-07, MT-08
    let dir = private_dir();
    let (path, settings) = in_file(dir.path());
    let certificates = open(&settings, &Certificates::default(), at(0)).unwrap();
    let payments = "payments".into();
    begin(&certificates, at(1));
    shown(&certificates, at(26));
    begin(&certificates, at(27));
    let before = files(dir.path());
    assert_eq!(before.len(), 3, "one of each");
    let Rotated::Shown(now) = certificates.replace(&payments, at(27)).unwrap() else { panic!("shown") };
    assert_eq!(shown_at_once(&certificates, at(27)), [now.thumbprint()]);
    let after = files(dir.path());
    assert_eq!(after.len(), 1);
    assert!(before.values().all(|old| after.values().all(|new| old != new)));
    assert_eq!(
        shown_at_once(&open(&settings, &Certificates::default(), at(27)).unwrap(), at(27)),
        [now.thumbprint()]
    );

    // Killed when the old ones were gone and the new one was not in its place.
    fs::rename(&path, file::beside(&path, ".next")).unwrap();
    let again = open(&settings, &Certificates::default(), at(27)).unwrap();
    assert_eq!(shown_at_once(&again, at(27)), [now.thumbprint()]);
    assert_eq!(files(dir.path()).len(), 1);

    // Whatever lies there: what cannot be read is destroyed like the rest.
    fs::write(&path, "not a key").unwrap();
    let Rotated::Shown(now) = again.replace(&payments, at(27)).unwrap() else { panic!("shown") };
    assert_eq!(
        shown_at_once(&open(&settings, &Certificates::default(), at(27)).unwrap(), at(27)),
        [now.thumbprint()]
    );

    let memory = self::settings(Custody::Memory);
    let certificates = open(&memory, &Certificates::default(), at(0)).unwrap();
    begin(&certificates, at(1));
    let gone = shown_at_once(&certificates, at(1));
    certificates.replace(&payments, at(1)).unwrap();
    let left = shown_at_once(&certificates, at(1));
    assert!(left.len() == 1 && !gone.contains(&left[0]));
}

#[test]
fn what_a_ca_signed_is_only_told_of() {
    // X5-03, KEY-07
    let (leaf, key) = Authority::new().signs(|params| {
        params.not_before = rcgen::date_time_ymd(2023, 12, 1);
        params.not_after = rcgen::date_time_ymd(2023, 12, 31);
    });
    let files = Files::new(&leaf, &key);
    let certificates = files.open(at(0)).unwrap();
    let payments = "payments".into();
    for done in [certificates.begin(&payments, at(0)), certificates.replace(&payments, at(0))] {
        let Rotated::OfOthers { certificate, key } = done.unwrap() else { panic!("of others") };
        assert!(certificate.ends_with("chain.crt") && key.unwrap().ends_with("key.pem"));
    }
    assert!(matches!(certificates.begin(&"nobody".into(), at(0)), Ok(Rotated::None)));
    let ending = certificates.of_others().remove(0);
    let day = |day: i64| {
        "2023-12-01T00:00:00Z".parse::<Timestamp>().unwrap() + SignedDuration::from_hours(24 * day)
    };
    let told = |on: i64| ending.urgency(day(on));
    assert_eq!(
        [told(23), told(24), told(27), told(30)],
        [None, Some(Urgency::Soon), Some(Urgency::Critical), Some(Urgency::Ended)]
    );
    // The same from the chain alone, by whoever may not read the key.
    let custody = Custody::File { path: files.0.path().join("no-such-key.pem") };
    let signed_by = SignedBy::Others(files.0.path().join("chain.crt"));
    let wanted = BTreeMap::from([(payments, CertificateSettings { signed_by, ..settings(custody) })]);
    let alone: Vec<Ending> = endings(&wanted).map(Result::unwrap).collect();
    assert_eq!(alone, [ending]);
    files.write("chain.crt", "?", 0o644);
    let error = endings(&wanted).next().unwrap().unwrap_err().to_string();
    assert!(error.starts_with("identities.payments.certificate") && error.contains("chain.crt"), "{error}");
}

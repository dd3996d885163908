//! A small CA for development, which speaks as a step-ca does. In goes a request with a one-time token; out comes a chain, or the
//! one rule that was broken. Its keys are made at its start and gone at its stop, its certificates say what their client is
//! registered for, and nothing is renewed: whoever speaks plain HTTP shows no certificate.
//!
//! ```text
//!  POST /1.0/sign     a certificate        GET /root/SHA-256   the root with that sum
//!  POST /1.0/revoke   the end of one       GET /roots          the root
//! ```

use std::{collections::BTreeMap, time::Duration};

use http::StatusCode;
use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType, SerialNumber, date_time_ymd,
};
use ring::digest::{SHA256, digest};
use rustls_pki_types::{CertificateSigningRequestDer, pem::PemObject as _};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::{
    desk::{Books, Desk, Endpoint, outcome_of},
    faults::Fault,
    register::Client,
};
use crate::{
    clock::Dice,
    dev::{
        DevError,
        http::{Answer, Ask, json},
        once::Spent,
    },
    jose::{self, Unverified},
    keys::certificate_pem,
    secret::hex,
};

/// The longest that a token may live, and how far a clock may be off, in seconds: as a step-ca has it.
const LONGEST_TOKEN: i64 = 300;
const SKEW: i64 = 60;

/// How far back a certificate begins.
const BACKDATE: Duration = Duration::from_secs(60);

/// How long the root and the intermediate live: longer than any development issuer runs.
const DAYS: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// More certificates than a development host has.
const MOST: usize = 10_000;

/// The CA.
pub(super) struct Authority {
    below: Issuer<'static, KeyPair>,
    below_pem: String,
    root_pem: String,
    root_sum: String,
}

/// What it has made: the client of each certificate, and whether it has been revoked, by serial number in decimal digits.
pub(super) type Certified = BTreeMap<String, (String, bool)>;

impl Authority {
    /// Makes a root and an intermediate.
    pub(super) fn new(now: Timestamp) -> Result<Self, DevError> {
        let failed = |_: rcgen::Error| DevError::Key;
        let (root_key, key) = (KeyPair::generate().map_err(failed)?, KeyPair::generate().map_err(failed)?);
        let (root, below) = (params("development root", now, None), params("development", now, Some(0)));
        let root_made = root.self_signed(&root_key).map_err(failed)?;
        let below_made = below.signed_by(&key, &Issuer::from_params(&root, &root_key)).map_err(failed)?;
        Ok(Self {
            root_sum: hex(digest(&SHA256, root_made.der()).as_ref()),
            root_pem: certificate_pem(root_made.der()),
            below_pem: certificate_pem(below_made.der()),
            below: Issuer::new(below, key),
        })
    }

    /// The SHA-256 of its root, in hexadecimal digits.
    pub(super) fn root_sum(&self) -> &str {
        &self.root_sum
    }

    /// Makes a certificate with the names of a request. Its serial number in decimal digits, and the leaf in PEM.
    fn make(
        &self,
        request: &CertificateSigningRequestParams,
        now: Timestamp,
        life: Duration,
        dice: &dyn Dice,
    ) -> Result<(String, String), Denied> {
        let mut serial = [0; 16];
        dice.fill(&mut serial);
        // Positive, and of full length (RFC 5280 4.1.2.2).
        serial[0] = (serial[0] & 0x7f) | 0x40;
        let mut leaf = CertificateParams::default();
        leaf.distinguished_name = DistinguishedName::new();
        leaf.subject_alt_names.clone_from(&request.params.subject_alt_names);
        leaf.is_ca = IsCa::ExplicitNoCa;
        leaf.use_authority_key_identifier_extension = true;
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if request.params.extended_key_usages.contains(&ExtendedKeyUsagePurpose::ServerAuth) {
            leaf.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        leaf.serial_number = Some(SerialNumber::from_slice(&serial));
        let moment = since_epoch(now);
        leaf.not_before = date_time_ymd(1970, 1, 1) + moment.saturating_sub(BACKDATE);
        leaf.not_after = date_time_ymd(1970, 1, 1) + moment + life;
        let made = leaf
            .signed_by(&request.public_key, &self.below)
            .map_err(|_| Denied::new(400, "the CSR cannot be signed: use P-256, P-384 or Ed25519"))?;
        Ok((u128::from_be_bytes(serial).to_string(), certificate_pem(made.der())))
    }
}

fn params(name: &str, now: Timestamp, below: Option<u8>) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, format!("Keybearer {name} CA"));
    params.is_ca = IsCa::Ca(below.map_or(BasicConstraints::Unconstrained, BasicConstraints::Constrained));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = below.is_some();
    let moment = since_epoch(now);
    params.not_before = date_time_ymd(1970, 1, 1) + moment.saturating_sub(BACKDATE);
    params.not_after = date_time_ymd(1970, 1, 1) + moment + DAYS;
    params
}

fn since_epoch(now: Timestamp) -> Duration {
    Duration::from_secs(now.as_second().max(0).cast_unsigned())
}

/// A no, as a step-ca says it; but it says why.
struct Denied {
    status: u16,
    why: String,
}

impl Denied {
    fn new(status: u16, why: impl Into<String>) -> Self {
        Self { status, why: why.into() }
    }

    fn answer(&self) -> Answer {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::BAD_REQUEST);
        json(status, &json!({"status": self.status, "message": self.why}))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SignRequest {
    csr: String,
    #[serde(rename = "ott")]
    _ott: String,
    #[serde(rename = "notAfter")]
    not_after: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RevokeRequest {
    serial: String,
    #[serde(rename = "ott")]
    _ott: String,
    #[serde(rename = "reasonCode", default)]
    _reason_code: u8,
    #[serde(default)]
    passive: bool,
}

#[derive(Deserialize)]
struct Claims {
    iss: String,
    sub: String,
    aud: String,
    iat: i64,
    nbf: i64,
    exp: i64,
    jti: String,
    sha: String,
    sans: Option<Vec<String>>,
    cnf: Option<Value>,
}

impl Desk {
    /// What is asked of the CA.
    pub(super) async fn authority(
        &self,
        endpoint: Endpoint,
        ask: &Ask,
        number: u64,
    ) -> (Answer, String, Option<String>) {
        let (shown, fault) = {
            let mut books = self.books();
            let shown = match endpoint {
                Endpoint::Certify | Endpoint::Decertify => {
                    self.one_time_token(&mut books, ask.body(), endpoint, number).map(Some)
                }
                _ => Ok(None),
            };
            (shown, books.knob.bite(endpoint))
        };
        // The token is used up by now (PKJ-12), and nothing else has happened.
        match &fault {
            Fault::Hang => std::future::pending().await,
            Fault::Slow { delay } => sleep(*delay).await,
            _ => {}
        }
        if let Some(answer) = fault.answer() {
            return (answer, outcome_of(&fault), None);
        }
        let served = shown.and_then(|shown| match (endpoint, shown) {
            (Endpoint::Root, _) => self.root(ask),
            (Endpoint::Roots, _) => {
                Ok(json(StatusCode::CREATED, &json!({"crts": [self.authority.root_pem]})))
            }
            (Endpoint::Certify, Some(shown)) => self.certify(&mut self.books(), ask, shown),
            (Endpoint::Decertify, Some(shown)) => self.decertify(&mut self.books(), ask, shown),
            _ => {
                let why =
                    "nothing is renewed here, where TLS shows no certificate: ask as if for the first time";
                Err(Denied::new(401, why))
            }
        });
        match served {
            Ok(answer) => (answer, outcome_of(&fault), None),
            Err(denied) => (denied.answer(), format!("denied:{}", denied.status), Some(denied.why)),
        }
    }

    fn root(&self, ask: &Ask) -> Result<Answer, Denied> {
        let wanted = ask.uri().path().trim_start_matches(Endpoint::Root.path()).to_ascii_lowercase();
        if wanted != self.authority.root_sum {
            return Err(Denied::new(404, "no root has this SHA-256"));
        }
        Ok(json(StatusCode::OK, &json!({"ca": self.authority.root_pem})))
    }

    fn certify(
        &self,
        books: &mut Books,
        ask: &Ask,
        (client, claims): (Client, Claims),
    ) -> Result<Answer, Denied> {
        let asked: SignRequest = serde_json::from_slice(ask.body())
            .map_err(|_| Denied::new(400, "send JSON {csr, ott, notAfter} and nothing else"))?;
        let der = CertificateSigningRequestDer::from_pem_slice(asked.csr.as_bytes())
            .map_err(|_| Denied::new(400, "csr is no CERTIFICATE REQUEST in PEM"))?;
        let request = CertificateSigningRequestParams::from_der(&der)
            .map_err(|_| Denied::new(400, "csr cannot be read, or is not signed by its key"))?;
        let sum = jose::b64(digest(&SHA256, &der).as_ref());
        if claims.cnf.as_ref().and_then(|cnf| cnf.get("x5rt#S256")) != Some(&json!(sum)) {
            return Err(Denied::new(
                403,
                "the token must be for this CSR: cnf[\"x5rt#S256\"] is its SHA-256",
            ));
        }
        let names: Vec<String> = request.params.subject_alt_names.iter().filter_map(spelled).collect();
        if names.is_empty()
            || names.len() != request.params.subject_alt_names.len()
            || claims.sans.as_ref() != Some(&names)
        {
            return Err(Denied::new(403, "sans of the token must be the names of the CSR, one for one"));
        }
        if let Some(name) = names.iter().find(|name| !client.certificate_names.contains(name)) {
            return Err(Denied::new(
                403,
                format!("the client is not registered for the name {name:?}: see certificate_names"),
            ));
        }
        let now = self.clock.wall();
        let longest = self.settings.certificate_life;
        let life = life(asked.not_after.as_deref(), now, longest)?;
        if books.certified.len() >= MOST {
            return Err(Denied::new(
                503,
                "too many certificates are remembered: start the development issuer anew",
            ));
        }
        let (serial, leaf) = self.authority.make(&request, now, life, &*self.dice)?;
        books.certified.insert(serial, (client.client_id, false));
        let below = &self.authority.below_pem;
        Ok(json(StatusCode::CREATED, &json!({"crt": leaf, "ca": below, "certChain": [leaf, below]})))
    }

    fn decertify(
        &self,
        books: &mut Books,
        ask: &Ask,
        (client, claims): (Client, Claims),
    ) -> Result<Answer, Denied> {
        let asked: RevokeRequest = serde_json::from_slice(ask.body())
            .map_err(|_| Denied::new(400, "send JSON {serial, ott, reasonCode, passive} and nothing else"))?;
        if claims.sub != asked.serial {
            return Err(Denied::new(403, "sub of the token must be the serial number"));
        }
        if !asked.passive {
            return Err(Denied::new(501, "non-passive revocation not implemented"));
        }
        match books.certified.get_mut(&asked.serial) {
            Some((owner, revoked)) if *owner == client.client_id => {
                if std::mem::replace(revoked, true) {
                    let serial = &asked.serial;
                    return Err(Denied::new(
                        400,
                        format!("certificate with serial number '{serial}' is already revoked"),
                    ));
                }
                Ok(json(StatusCode::OK, &json!({"status": "ok"})))
            }
            _ => Err(Denied::new(403, "this certificate was not made for this client")),
        }
    }

    /// Whose token it is, and what it says; it is used up.
    fn one_time_token(
        &self,
        books: &mut Books,
        body: &[u8],
        endpoint: Endpoint,
        number: u64,
    ) -> Result<(Client, Claims), Denied> {
        let denied = |why: &str| Denied::new(401, why);
        let body: Value = serde_json::from_slice(body).map_err(|_| Denied::new(400, "send JSON"))?;
        let ott = body.get("ott").and_then(Value::as_str).ok_or_else(|| Denied::new(400, "missing ott"))?;
        let jws = Unverified::parse(ott).map_err(|_| denied("ott is not a compact JWS"))?;
        let claims: Claims =
            jws.claims().map_err(|_| denied("ott must hold iss, sub, aud, iat, nbf, exp, jti and sha"))?;
        books.diary.sign(number, Some(claims.iss.clone()), Some(claims.jti.clone()), None);
        let client = books.clients.get(&claims.iss).cloned();
        let client = client.ok_or_else(|| denied("iss is no client: POST /dev/clients registers it"))?;
        let kid = jws.header_str("kid").ok_or_else(|| denied("kid is missing"))?;
        let (key, algorithm) =
            client.keys.iter().find(|(key, _)| key.thumbprint() == kid).ok_or_else(|| {
                denied("kid names no registered key of this client: it is the RFC 7638 thumbprint")
            })?;
        jws.verify(key, &[*algorithm]).map_err(|error| denied(&error.to_string()))?;
        if claims.aud != format!("{}{}", self.url, endpoint.path()) {
            return Err(denied("aud must be the URL of this endpoint"));
        }
        let now = self.now();
        let life = claims.exp.checked_sub(claims.iat);
        if !life.is_some_and(|life| (1..=LONGEST_TOKEN).contains(&life)) {
            return Err(denied("a token lives five minutes at most"));
        }
        if claims.iat > now + SKEW || claims.nbf > now + SKEW || claims.exp + SKEW <= now {
            return Err(denied("the token is not good now: look at the clock"));
        }
        if claims.sha != self.authority.root_sum {
            return Err(denied("sha must be the SHA-256 of the root: the token is for another CA"));
        }
        if claims.jti.is_empty() || claims.sub.is_empty() {
            return Err(denied("jti and sub must not be empty"));
        }
        match books.used.burn(&client.client_id, &claims.jti, claims.exp + SKEW, now) {
            Ok(()) => Ok((client, claims)),
            Err(Spent::Before) => Err(denied("token already used")),
            Err(Spent::Full) => {
                Err(Denied::new(503, "too many tokens are remembered: try again in a minute"))
            }
        }
    }
}

/// How long a certificate is to live, by what was asked for: a span in seconds, or a moment (RFC 3339).
fn life(asked: Option<&str>, now: Timestamp, longest: Duration) -> Result<Duration, Denied> {
    let Some(asked) = asked else { return Ok(longest) };
    let span = asked.strip_suffix('s').and_then(|seconds| seconds.parse().ok()).map(Duration::from_secs);
    let until = || Duration::try_from(asked.parse::<Timestamp>().ok()?.duration_since(now)).ok();
    let life = span
        .or_else(until)
        .ok_or_else(|| Denied::new(400, "notAfter is neither a span such as \"3600s\" nor a moment ahead"))?;
    if life.is_zero() || life > longest {
        let (life, longest) = (life.as_secs(), longest.as_secs());
        let why = format!(
            "requested duration of {life}s is more than the authorized maximum certificate duration of {longest}s"
        );
        return Err(Denied::new(403, why));
    }
    Ok(life)
}

/// A name as a token spells it; none for a kind that nobody is registered for.
fn spelled(name: &SanType) -> Option<String> {
    match name {
        SanType::DnsName(host) => Some(host.to_string()),
        SanType::URI(uri) => Some(uri.to_string()),
        SanType::IpAddress(address) => Some(address.to_string()),
        _ => None,
    }
}

//! Each issuer: its name in DNS, the way to it, its certificate, its clock, and whether it can do what credentials ask of it. Asked
//! is what anybody may read (metadata, a directory, its health), without a certificate, an assertion or a secret.

use std::{path::PathBuf, sync::Arc, time::Duration};

use http::{Uri, header};
use jiff::{Timestamp, fmt::rfc2822::DateTimeParser};
use tokio::{net::lookup_host, task::JoinSet, time::timeout};

use super::{Finding, fail, ok, warn};
use crate::{
    clock::Clock,
    config::{IssuerSettings, Settings},
    issuer::{
        http::{Http, HttpError, HttpSettings, Request, USER_AGENT, is_loopback},
        oauth::{Wanted, capable, metadata_addresses},
        x509::RootSource,
    },
};

/// Longer than that nobody waits for a doctor.
const PATIENCE: Duration = Duration::from_secs(10);

/// More than the agent forgives (CLK-03), and more than is drift.
const BROKEN: i64 = 300;
const DRIFT: i64 = 5;

/// What was found of one issuer.
#[derive(Debug)]
struct Facts {
    name: Arc<str>,
    host: String,
    /// How many addresses; none if a proxy looks them up.
    dns: Option<Result<usize, String>>,
    /// What was asked, and what came; none if its root is not known yet.
    asked: Option<(String, Result<Answer, HttpError>)>,
}

#[derive(Debug)]
struct Answer {
    status: u16,
    /// Seconds that its clock is ahead of ours.
    ahead: Option<i64>,
    body: Vec<u8>,
}

pub(super) async fn examine(settings: &Settings, clock: &dyn Clock) -> Vec<Finding> {
    let mut looking = JoinSet::new();
    for (name, issuer) in &settings.issuers {
        let way = Way::of(issuer);
        let (name, wall) = (Arc::clone(name), clock.wall());
        looking.spawn(async move { look(name, way, wall).await });
    }
    let mut all = looking.join_all().await;
    all.sort_by(|one, other| one.name.cmp(&other.name));
    all.iter().flat_map(|facts| judge(facts, settings)).collect()
}

/// How to look at an issuer.
#[derive(Clone, Debug)]
struct Way {
    /// In order, until one is there.
    urls: Vec<String>,
    ca_file: Option<PathBuf>,
    dev: bool,
    /// Whether nobody vouches for its TLS but a pin that only the agent uses.
    unknown_root: bool,
}

impl Way {
    fn of(issuer: &IssuerSettings) -> Self {
        let known = |urls: Vec<String>, ca_file: &Option<PathBuf>, dev: bool| Self {
            urls,
            ca_file: ca_file.clone(),
            dev,
            unknown_root: false,
        };
        match issuer {
            IssuerSettings::Acme(acme) => known(vec![acme.directory.clone()], &acme.ca_file, acme.dev),
            IssuerSettings::Est(est) => {
                let url = est.url.trim_end_matches('/');
                known(vec![format!("{url}/.well-known/est/cacerts")], &est.ca_file, est.dev)
            }
            IssuerSettings::OAuth(oauth) => known(metadata_addresses(oauth), &oauth.ca_file, oauth.dev),
            IssuerSettings::OpenBao(server) => {
                let url = server.url.trim_end_matches('/');
                known(vec![format!("{url}/v1/sys/health")], &server.ca_file, server.dev)
            }
            IssuerSettings::StepCa(step) => {
                // It makes its own certificate, so its root is that of its certificates if no other is named.
                let (root, unknown_root) = match (&step.ca_file, &step.roots, &step.kept_root) {
                    (Some(file), ..) | (None, RootSource::File(file), _) => (Some(file.clone()), false),
                    (None, RootSource::Pinned(_), Some(kept)) if kept.exists() => (Some(kept.clone()), false),
                    (None, RootSource::Pinned(_), _) => (None, true),
                };
                Self { unknown_root, ..known(vec![format!("{}/health", step.url)], &root, step.dev) }
            }
        }
    }
}

async fn look(name: Arc<str>, way: Way, wall: Timestamp) -> Facts {
    let first = way.urls.first().cloned().unwrap_or_default();
    let uri: Option<Uri> = first.parse().ok();
    let host = uri.as_ref().and_then(Uri::host).unwrap_or_default().to_owned();
    let plain = uri.as_ref().and_then(Uri::scheme_str) == Some("http");
    let port = uri.as_ref().and_then(Uri::port_u16).unwrap_or(if plain { 80 } else { 443 });
    let loopback = uri.as_ref().is_some_and(is_loopback);
    let proxied = !loopback && !plain && crate::issuer::http::has_proxy(&first);
    let dns = if proxied {
        None
    } else {
        let bare = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        Some(match timeout(PATIENCE, lookup_host((bare, port))).await {
            Ok(Ok(addresses)) => Ok(addresses.count()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("no answer in 10 s".into()),
        })
    };
    let reachable = dns.as_ref().is_none_or(|dns| dns.as_ref().is_ok_and(|count| *count > 0));
    let asked = match reachable && !way.unknown_root {
        true => ask(&way, wall).await,
        false => None,
    };
    Facts { name, host, dns, asked }
}

/// Asks one after the other until one is there; the last answer, or the first that is good.
async fn ask(way: &Way, wall: Timestamp) -> Option<(String, Result<Answer, HttpError>)> {
    let http = Http::new(HttpSettings {
        ca_file: way.ca_file.clone(),
        allow_plain_loopback: way.dev,
        timeout: PATIENCE,
        user_agent: USER_AGENT.into(),
    });
    let first = way.urls.first()?.clone();
    let http = match http {
        Ok(http) => http,
        Err(error) => return Some((first, Err(error))),
    };
    let mut told = None;
    for url in &way.urls {
        let answered = http.send(Request::get(url.clone())).await.map(|response| {
            let date = response
                .header(header::DATE)
                .and_then(|date| DateTimeParser::new().parse_timestamp(date).ok());
            Answer {
                status: response.status,
                ahead: date.map(|date| date.as_second() - wall.as_second()),
                body: response.body.expose().to_vec(),
            }
        });
        let good = answered.as_ref().is_ok_and(|answer| answer.status == 200);
        told = Some((url.clone(), answered));
        if good {
            break;
        }
    }
    told
}

fn judge(facts: &Facts, settings: &Settings) -> Vec<Finding> {
    let name = format!("issuers.{}", facts.name);
    let about = |part: &str| format!("{name} {part}");
    let mut found = Vec::new();
    match &facts.dns {
        None => found.push(ok(about("dns"), "a proxy looks its name up")),
        Some(Ok(0)) => found.push(fail(
            about("dns"),
            format!("{} has no address", facts.host),
            "ask whoever runs the issuer for its name, and mend its url in the settings",
        )),
        Some(Ok(count)) => found.push(ok(about("dns"), format!("{} has {count} addresses", facts.host))),
        Some(Err(error)) => found.push(fail(
            about("dns"),
            format!("{} is not found: {error}", facts.host),
            "see whether the name is right and /etc/resolv.conf names a server that knows it; or set HTTPS_PROXY for the agent",
        )),
    }
    let Some((url, asked)) = &facts.asked else {
        if facts.dns.as_ref().is_none_or(|dns| dns.is_ok()) {
            let remedy = "start the agent once: it takes the root whose SHA-256 is pinned";
            found.push(warn(about("tls"), "its root is pinned and not kept here yet", remedy));
        }
        return found;
    };
    let answer = match asked {
        Ok(answer) => answer,
        Err(error) => {
            found.push(untold(&about, url, error));
            return found;
        }
    };
    let plain = url.starts_with("http://");
    let what =
        if plain { "plain http within this host, for development" } else { "its certificate is trusted" };
    found.push(ok(about("tls"), what));
    found.push(match answer.ahead {
        None => warn(
            about("clock"),
            "it tells no time (no Date)",
            "see whether something before the issuer takes headers away",
        ),
        Some(ahead) if ahead.abs() > BROKEN => fail(
            about("clock"),
            format!("it is {ahead} s ahead of this host (300 s at most): nothing is signed"),
            "set the clock of whichever is wrong: timedatectl timesync-status, chronyc tracking",
        ),
        Some(ahead) if ahead.abs() > DRIFT => warn(
            about("clock"),
            format!("it is {ahead} s ahead of this host"),
            "have both clocks synchronised: what is signed here is dated by this one, corrected",
        ),
        Some(ahead) => ok(about("clock"), format!("within {} s", ahead.abs().max(1))),
    });
    found.push(match answer.status {
        200..=299 => ok(about("answer"), format!("{url}: {}", answer.status)),
        // A vault that is sealed, a standby, or one that is not set up says so by its status.
        status => fail(
            about("answer"),
            format!("{url} answers {status}"),
            "see whether the url is that of the issuer, to the last slash, and whether it is in service (OpenBao: unsealed)",
        ),
    });
    found.extend(capabilities(facts, answer, settings));
    found
}

fn untold(about: &dyn Fn(&str) -> String, url: &str, error: &HttpError) -> Finding {
    let words = error.to_string();
    let (what, remedy) = words.split_once(": ").map_or((words.as_str(), ""), |(what, _)| (what, ""));
    match error {
        HttpError::Tls(_) => fail(
            about("tls"),
            format!("{url}: {words}"),
            "set ca_file to the root of whoever made its certificate; if it has ended or is for another name, it is the issuer's to renew",
        ),
        HttpError::CaFile { .. } | HttpError::NoRoots => {
            fail(about("tls"), words, "mend ca_file, or install ca-certificates")
        }
        HttpError::Plain => fail(about("tls"), format!("{url}: {words}"), "use its https URL"),
        HttpError::Connect(_) | HttpError::Timeout => fail(
            about("connection"),
            format!("{url}: {words}"),
            "see whether it runs and a firewall or proxy lets this host through (nc -vz HOST PORT)",
        ),
        HttpError::Redirect { .. } => fail(
            about("answer"),
            format!("{url}: {words}"),
            "set the URL that it leads to, if that is the issuer's",
        ),
        _ => {
            let remedy = if remedy.is_empty() { "see what stands at this URL" } else { remedy };
            fail(about("answer"), format!("{url}: {what}"), remedy)
        }
    }
}

/// What the credentials of the settings would run into.
fn capabilities(facts: &Facts, answer: &Answer, settings: &Settings) -> Vec<Finding> {
    let Some(IssuerSettings::OAuth(oauth)) = settings.issuers.get(&facts.name) else { return vec![] };
    if answer.status != 200 {
        return vec![];
    }
    let rules = settings.policy.identities().flat_map(|identity| {
        let of_this = identity.credentials.values().filter(|rule| *rule.issuer == *facts.name);
        of_this.map(move |rule| (identity, rule))
    });
    let rules: Vec<_> = rules.collect();
    let asked: Vec<Wanted<'_>> = rules
        .iter()
        .map(|(identity, rule)| {
            let key = settings.keys.get(&identity.name);
            Wanted { terms: &rule.terms, binding: rule.binding, algorithm: key.map(|key| key.algorithm) }
        })
        .collect();
    let about = format!("issuers.{} metadata", facts.name);
    match capable(&answer.body, oauth, &asked) {
        Err(error) => {
            vec![fail(about, error.to_string(), "mend issuer in the settings, or ask whoever runs it")]
        }
        Ok(all) => {
            let misfits = rules.iter().zip(all).filter_map(|((identity, rule), fits)| {
                let about = format!("identities.{}.credentials.{}", identity.name, rule.name);
                let error = fits.err()?;
                Some(fail(
                    about,
                    error.to_string(),
                    "have it switched on at the issuer, or ask for the credential in another way",
                ))
            });
            let mut found: Vec<Finding> = misfits.collect();
            if found.is_empty() {
                found.push(ok(about, format!("it can do what {} credentials ask of it", rules.len())));
            }
            found
        }
    }
}

//! Metrics, for operators: `GET /metrics` on the HTTP socket, as OpenMetrics text. In goes what the rooms publish anyway; out comes
//! one page. Labels are names of the settings and words of this program, never a caller's, so there are as many series as there
//! are identities, credentials, issuers, sockets and reasons.
//!
//! They name identities, so they are not for workloads, which may be on the same socket: for root, the agent's own user, who may
//! open the operators' socket, and the group that the settings name (`listen.metrics_group`). That group can then see, and order
//! nothing.

use std::{
    collections::BTreeMap,
    fmt::{self, Error},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, text},
    metrics::MetricType,
    registry::{Registry, Unit},
};

use super::operator::Facts;
use crate::{
    audit::{EventType, Outcome, Sort},
    clock::{Boot, Clock},
    journey::{Journey, Session},
    wire::Admission,
};

/// What is answered to a scraper.
pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The page.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// The rooms.
    pub journey: Arc<Journey>,
    /// What the daemon knows.
    pub facts: Arc<ArcSwap<Facts>>,
    /// Each socket: its path, the name it goes by, and who is connected.
    pub sockets: Vec<(String, String, Arc<Admission>)>,
    /// The groups that may read it.
    pub groups: Vec<u32>,
    /// For lengths of time.
    pub clock: Arc<dyn Clock>,
    /// When the agent started, by the wall clock of that moment: it says the same at each reading.
    pub started: Timestamp,
}

impl Metrics {
    /// Whether this process may read it, by what the kernel says of it.
    pub(super) fn may_read(&self, session: &Session) -> bool {
        let uid = session.peer().uid();
        uid == 0
            || uid == rustix::process::geteuid().as_raw()
            || (!self.groups.is_empty() && self.journey.is_in_group(session, &self.groups))
    }

    /// The page as it is now.
    ///
    /// # Errors
    /// None that a String could have.
    pub(super) fn page(&self) -> Result<String, Error> {
        let mut registry = Registry::with_prefix("keybearer");
        registry.register_collector(Box::new(self.clone()));
        let mut page = String::new();
        text::encode(&mut page, &registry)?;
        Ok(page)
    }

    /// The name of the socket at a path.
    fn face(&self, path: Option<&Arc<str>>) -> String {
        let path = path.map(|path| &**path);
        let named = self.sockets.iter().find(|(at, ..)| Some(at.as_str()) == path);
        named.map_or_else(|| "none".to_owned(), |(_, name, _)| name.clone())
    }
}

/// The labels of one series, and its value.
type Series<const N: usize> = ([(&'static str, String); N], f64);

/// A page under way.
struct Page<'a>(DescriptorEncoder<'a>);

impl Page<'_> {
    fn gauges<const N: usize>(
        &mut self,
        name: &str,
        unit: Option<&Unit>,
        help: &str,
        all: impl IntoIterator<Item = Series<N>>,
    ) -> fmt::Result {
        self.family(name, unit, help, MetricType::Gauge, all)
    }

    fn counters<const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        all: impl IntoIterator<Item = Series<N>>,
    ) -> fmt::Result {
        self.family(name, None, help, MetricType::Counter, all)
    }

    fn family<const N: usize>(
        &mut self,
        name: &str,
        unit: Option<&Unit>,
        help: &str,
        kind: MetricType,
        all: impl IntoIterator<Item = Series<N>>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, unit, kind)?;
        for (labels, value) in all {
            let mut one = family.encode_family(&labels)?;
            match kind {
                MetricType::Counter => one.encode_counter::<[(&str, &str); 0], f64, f64>(&value, None)?,
                _ => one.encode_gauge(&value)?,
            }
        }
        Ok(())
    }
}

/// Adds up what has the same labels.
fn summed<const N: usize>(
    counts: &[(Sort, u64)],
    labels: impl Fn(&Sort) -> Option<[(&'static str, String); N]>,
) -> Vec<Series<N>> {
    let mut sums: BTreeMap<[(&'static str, String); N], u64> = BTreeMap::new();
    for (sort, count) in counts {
        if let Some(labels) = labels(sort) {
            *sums.entry(labels).or_default() += count;
        }
    }
    sums.into_iter().map(|(labels, sum)| (labels, sum as f64)).collect()
}

/// What is live of one credential of the settings: one for each process and scope.
#[derive(Default)]
struct Live {
    count: u32,
    age: Duration,
    left: Option<Duration>,
    refresh: Option<Duration>,
    failing: bool,
}

impl Collector for Metrics {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut page = Page(encoder);
        let (now, facts) = (self.clock.boot(), self.facts.load());
        let version =
            [("version", env!("CARGO_PKG_VERSION").to_owned()), ("environment", facts.environment.clone())];
        page.gauges("build_info", None, "The agent's version and environment", [(version, 1.0)])?;
        let began = [([], self.started.as_millisecond() as f64 / 1000.0)];
        page.gauges("start_time", Some(&Unit::Seconds), "When the agent started, since 1970", began)?;
        let level = facts.max_level.0.trim_start_matches('L').parse().unwrap_or(0.0);
        page.gauges(
            "evidence_level_max",
            None,
            "The strongest evidence that this host can give",
            [([], level)],
        )?;
        let stale = f64::from(u8::from(!facts.reload_error.is_empty()));
        page.gauges(
            "reload_failed",
            None,
            "Whether the settings in force are older than the file",
            [([], stale)],
        )?;
        self.exchanges(&mut page)?;
        self.credentials(&mut page, now)?;
        self.issuers(&mut page, &facts, now)?;
        self.identities(&mut page, &facts, now)?;
        self.ledger(&mut page, now)?;
        let connected = |(_, name, admission): &(_, String, Arc<Admission>)| {
            ([("face", name.clone())], admission.connected() as f64)
        };
        page.gauges("connections", None, "Who is connected", self.sockets.iter().map(connected))?;
        let away = |(_, name, admission): &(_, String, Arc<Admission>)| {
            ([("face", name.clone())], admission.turned_away() as f64)
        };
        let help = "Connections turned away at the limits";
        page.counters("connections_turned_away", help, self.sockets.iter().map(away))
    }
}

impl Metrics {
    fn exchanges(&self, page: &mut Page<'_>) -> fmt::Result {
        let counts = self.journey.ledger().counts();
        let reason = |sort: &Sort| sort.reason.as_deref().unwrap_or("none").to_owned();
        let exchanges = summed(&counts, |sort| {
            sort.socket.as_ref()?;
            Some([
                ("event", sort.kind.word()),
                ("outcome", sort.outcome.word()),
                ("face", self.face(sort.socket.as_ref())),
                ("level", sort.level.as_deref().unwrap_or("none").to_owned()),
            ])
        });
        page.counters(
            "exchanges",
            "Exchanges on record, by what came of them and the level of evidence",
            exchanges,
        )?;
        let denials = summed(&counts, |sort| {
            let denied = sort.outcome == Outcome::Denied && !sort.kind.is_signal();
            denied.then(|| [("reason", reason(sort)), ("face", self.face(sort.socket.as_ref()))])
        });
        page.counters("denials", "What was refused to callers, by reason", denials)?;
        let failures = summed(&counts, |sort| {
            let failed = sort.outcome == Outcome::Failed && !sort.kind.is_signal();
            failed.then(|| [("event", sort.kind.word()), ("reason", reason(sort))])
        });
        page.counters("failures", "What was tried in vain, by reason", failures)?;
        let signals = summed(&counts, |sort| {
            let signal = sort.kind.is_signal() && sort.kind != EventType::ReuseDetected;
            signal.then(|| [("event", sort.kind.word()), ("reason", reason(sort))])
        });
        page.counters("signals", "What is new of who uses an identity, and from where", signals)?;
        let alarms = summed(&counts, |sort| {
            (sort.kind == EventType::ReuseDetected).then(|| [("reason", reason(sort))])
        });
        page.counters("alarms", "What was given to one and used by another", alarms)
    }

    fn credentials(&self, page: &mut Page<'_>, now: Boot) -> fmt::Result {
        let mut live: BTreeMap<(String, String), Live> = BTreeMap::new();
        for shelved in &self.journey.broker().report().shelf {
            let order = &shelved.order;
            let one = live.entry((order.identity.to_string(), order.credential.to_string())).or_default();
            one.failing |= shelved.last_error.is_some();
            let Some(window) = shelved.credential.as_ref().map(|credential| credential.window) else {
                continue;
            };
            let left = window.left(now);
            one.count += u32::from(!left.is_zero());
            one.age = one.age.max(window.life().saturating_sub(left));
            one.left = Some(one.left.map_or(left, |least| least.min(left)));
            let refresh = shelved.refresh_at.map(|at| at.since(now));
            one.refresh = one.refresh.into_iter().chain(refresh).min();
        }
        let labels = |(identity, credential): &(String, String)| {
            [("identity", identity.clone()), ("credential", credential.clone())]
        };
        let seconds = Some(&Unit::Seconds);
        let of = |what: fn(&Live) -> Option<f64>| {
            live.iter().filter_map(move |(of, one)| Some((labels(of), what(one)?))).collect::<Vec<_>>()
        };
        let help = "Live credentials: one for each scope, and for each process where it is that";
        page.gauges("credentials_live", None, help, of(|one| Some(f64::from(one.count))))?;
        let help = "How old the oldest live one is";
        page.gauges("credential_age", seconds, help, of(|one| one.left.map(|_| one.age.as_secs_f64())))?;
        let help = "How long the one lives that ends first";
        page.gauges("credential_expiry", seconds, help, of(|one| one.left.map(|left| left.as_secs_f64())))?;
        let help = "When the next is fetched";
        page.gauges("credential_refresh", seconds, help, of(|one| one.refresh.map(|at| at.as_secs_f64())))?;
        let help = "Whether the last attempt to get one failed";
        page.gauges("credential_failing", None, help, of(|one| Some(f64::from(u8::from(one.failing)))))?;
        let waiting = self.journey.broker().revoking() as f64;
        page.gauges("revocations_pending", None, "Revocations that no issuer confirmed yet", [([], waiting)])
    }

    fn issuers(&self, page: &mut Page<'_>, facts: &Facts, now: Boot) -> fmt::Result {
        let report = self.journey.broker().report();
        let health = |name: &str| report.issuers.get(name).cloned().unwrap_or_default();
        let all: Vec<_> = facts.issuers.keys().map(|name| (name.clone(), health(name))).collect();
        let label = |name: &String| [("issuer", name.clone())];
        let seconds = Some(&Unit::Seconds);
        let asked = all.iter().filter(|(_, health)| health.last_ok.is_some() || health.failures > 0);
        let up = asked.map(|(name, health)| (label(name), f64::from(u8::from(health.failures == 0))));
        page.gauges("issuer_up", None, "Whether its last answer was good; not there before it is asked", up)?;
        let failures = all.iter().map(|(name, health)| (label(name), f64::from(health.failures)));
        page.gauges("issuer_failures", None, "Failures in a row", failures)?;
        let wait = |(name, health): &(String, crate::broker::Health)| {
            let wait = health.next_try.map_or(Duration::ZERO, |next| next.since(now));
            (label(name), wait.as_secs_f64())
        };
        page.gauges("issuer_backoff", seconds, "How long it is not asked again", all.iter().map(wait))?;
        let ok = all
            .iter()
            .filter_map(|(name, health)| Some((label(name), now.since(health.last_ok?).as_secs_f64())));
        page.gauges("issuer_last_success", seconds, "How long ago it last answered well", ok)?;
        let skew =
            all.iter().filter_map(|(name, health)| Some((label(name), health.skew_ms? as f64 / 1000.0)));
        page.gauges("issuer_clock_skew", seconds, "How far its clock is ahead of ours", skew)
    }

    fn identities(&self, page: &mut Page<'_>, facts: &Facts, now: Boot) -> fmt::Result {
        let rules = self.journey.rules();
        let seconds = Some(&Unit::Seconds);
        let infos = rules.policy.identities().map(|identity| {
            let labels = [
                ("identity", identity.name.to_string()),
                ("assurance", identity.assurance.as_str().to_owned()),
                ("owner", identity.owner.clone()),
            ];
            (labels, 1.0)
        });
        page.gauges("identity_info", None, "The identities of the settings", infos)?;
        let disabled = rules.policy.identities().map(|identity| {
            let off = facts.disabled.contains_key(&*identity.name);
            ([("identity", identity.name.to_string())], f64::from(u8::from(off)))
        });
        page.gauges("identity_disabled", None, "Whether it is switched off", disabled)?;
        let keys: Vec<_> = facts
            .keys
            .iter()
            .filter_map(|(identity, key)| {
                let (age, read) = key.age?;
                Some((
                    [("identity", identity.clone())],
                    age + now.since(read),
                    key.every?,
                    key.next.is_some(),
                ))
            })
            .collect();
        let ages = keys.iter().map(|(label, age, ..)| (label.clone(), age.as_secs_f64()));
        page.gauges("key_age", seconds, "How long the key signs", ages)?;
        let next = keys
            .iter()
            .map(|(label, age, every, _)| (label.clone(), every.saturating_sub(*age).as_secs_f64()));
        page.gauges("key_rotation", seconds, "When its next key is made", next)?;
        let published = keys.iter().map(|(label, .., next)| (label.clone(), f64::from(u8::from(*next))));
        page.gauges(
            "key_next_published",
            None,
            "Whether a next key waits for its issuers to take it",
            published,
        )?;
        let wall = self.clock.wall();
        let exceptions = rules.policy.identities().flat_map(|identity| {
            identity.credentials.values().filter_map(move |rule| {
                let left = rule.exception.as_ref()?.until.duration_since(wall);
                let labels = [("identity", identity.name.to_string()), ("credential", rule.name.to_string())];
                Some((labels, left.as_secs_f64()))
            })
        });
        page.gauges("exception_expiry", seconds, "How long an exception is good", exceptions)
    }

    fn ledger(&self, page: &mut Page<'_>, now: Boot) -> fmt::Result {
        let ledger = self.journey.ledger().health();
        let seconds = Some(&Unit::Seconds);
        page.gauges(
            "ledger_healthy",
            None,
            "Whether the last write and the last checkpoint went well",
            [([], f64::from(u8::from(ledger.healthy)))],
        )?;
        page.counters("ledger_records", "Records in the ledger", [([], ledger.records as f64)])?;
        let help = "Records that have no copy in the host's journal, since the start";
        let uncopied = ledger.uncopied.map(|count| ([], count as f64));
        page.counters("ledger_journal_lost", help, uncopied)?;
        let help = "Files of the ledger that were begun, the one that is written among them";
        page.gauges("ledger_files", None, help, [([], ledger.files as f64)])?;
        let help = "How long the records are, and what is kept of those that retention took";
        page.gauges("ledger_size", Some(&Unit::Bytes), help, [([], ledger.bytes as f64)])?;
        let help = "Records that no checkpoint covers yet";
        page.gauges("ledger_unsigned_records", None, help, [([], ledger.unsigned as f64)])?;
        let ago = |at: Option<Boot>| at.map(|at| ([], now.since(at).as_secs_f64()));
        page.gauges(
            "ledger_last_write_age",
            seconds,
            "How long ago a record was written",
            ago(ledger.written),
        )?;
        let help = "How long ago what is written was flushed and signed";
        page.gauges("ledger_last_checkpoint_age", seconds, help, ago(ledger.kept))
    }
}

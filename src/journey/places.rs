//! From where an identity is used (S17, NHI-9). In go evidence and moments; out comes what is new about it: a place that the identity was
//! never used from, or two that use it at once. Pure; who keeps it for the next start is `remembered.rs`.
//!
//! A place is a unit, a unit of a user's own manager, or else a user; with the program's digest, where it is asked for, and the kind of
//! mount namespace as far as that is known. What nobody asked for makes no place a new one; a program that cannot be read is another
//! than one that can be, because a program can see to it that it is not read (by its mode, or by its size). Units that are made by the number (`worker@7.service`,
//! `run-u12.service`) are one place. The first place of an identity is what it is held against. Who uses it at once is told by the unit
//! or user alone: the processes of one unit are one place, whatever programs they run.
//!
//! Use is judged when a connection first asks for an identity, and once a minute while it goes on asking: a call in between costs one
//! comparison. A place counts as in use for as long as what it asked for may live, from two to fifteen minutes.

use std::{collections::HashMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    attest::{Evidence, Manager, Missing},
    clock::Boot,
    secret::hex,
};

/// So many places of one identity are known; of more, the one that was not used for longest is forgotten.
pub(super) const MOST_PLACES: usize = 32;

/// So many identities are known: settings that change daily must not fill the disk.
pub(super) const MOST_IDENTITIES: usize = 1024;

/// The longest name of a place: a unit's has at most 255 characters.
pub(super) const MOST_NAME: usize = 300;

/// How often a use that goes on is judged.
pub(super) const JUDGE_AGAIN: Duration = Duration::from_secs(60);

/// For how long a place counts as in use, at least and at most.
const IN_USE: (Duration, Duration) = (Duration::from_secs(120), Duration::from_secs(900));

/// Two places that were told of are told of again when they have not been in use at once for so long.
const QUIET: Duration = Duration::from_secs(3600);

/// So many are held to be in use at once, of one identity; so many pairs are told of, and no more until it was quiet.
const MOST_USES: usize = 64;
const MOST_PAIRS: usize = 256;

/// One place.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Place {
    /// The unit or the user, in words.
    pub(super) name: String,
    /// The program's SHA-256 in hexadecimal, if it was asked for and could be read.
    pub(super) sha256: Option<String>,
    /// Whether it was asked for and could not be read.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) unreadable: bool,
    /// Whether the mount namespace is the host's, if that was known.
    pub(super) hosts_files: Option<bool>,
    /// When it was first used, in seconds since 1970.
    pub(super) since: i64,
}

impl Place {
    pub(super) fn of(seen: &Evidence, now: Timestamp) -> Self {
        let name = match &seen.unit {
            Ok(unit) => match unit.manager {
                Manager::System => format!("unit {}", family(&unit.name)),
                Manager::User(uid) => format!("unit {} of user {uid}", family(&unit.name)),
            },
            Err(_) => format!("user {} outside any unit", seen.uid()),
        };
        Self {
            name,
            sha256: seen.sha256.ok().map(|sum| hex(&sum)),
            unreadable: seen.sha256.is_err_and(|missing| missing != Missing::NotAsked),
            hosts_files: seen.hosts_files.ok(),
            since: now.as_second(),
        }
    }

    /// Whether somebody asked for its program.
    fn was_asked(&self) -> bool {
        self.unreadable || self.sha256.is_some()
    }

    /// Whether nothing that is known of both tells them apart.
    fn is_like(&self, other: &Self) -> bool {
        let program = !(self.was_asked() && other.was_asked())
            || (self.unreadable, &self.sha256) == (other.unreadable, &other.sha256);
        let files = match (self.hosts_files, other.hosts_files) {
            (Some(one), Some(other)) => one == other,
            _ => true,
        };
        self.name == other.name && program && files
    }

    /// In words, for a record.
    pub(super) fn words(&self) -> String {
        let mut words = self.name.clone();
        if let Some(sum) = &self.sha256 {
            words.push_str(&format!(", program sha256 {sum}"));
        }
        if self.unreadable {
            words.push_str(", a program that cannot be read");
        }
        match self.hosts_files {
            Some(true) => words.push_str(", the host's files"),
            Some(false) => words.push_str(", a mount namespace of its own"),
            None => {}
        }
        words
    }

    fn learn(&mut self, from: &Self) -> bool {
        let before = (self.was_asked(), self.hosts_files.is_some());
        if !self.was_asked() {
            self.sha256.clone_from(&from.sha256);
            self.unreadable = from.unreadable;
        }
        self.hosts_files = self.hosts_files.or(from.hosts_files);
        before != (self.was_asked(), self.hosts_files.is_some())
    }
}

/// The name that all units have which are made from one template, or by the number.
fn family(unit: &str) -> String {
    let Some((name, kind)) = unit.rsplit_once('.') else { return unit.to_owned() };
    // systemd-run's names: run-u7, run-r and an id, run-p1-i2.
    let numbered = name.strip_prefix("run-").is_some_and(|rest| {
        let id = rest.strip_prefix(['u', 'r', 'p']).unwrap_or("");
        !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_hexdigit() || matches!(byte, b'-' | b'i'))
    });
    match name.split_once('@') {
        _ if numbered => format!("run-*.{kind}"),
        Some((template, _)) => format!("{template}@.{kind}"),
        None => unit.to_owned(),
    }
}

/// What is new about a use.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum News {
    /// A place the identity was never used from, and how many it was used from before.
    NewPlace(usize),
    /// Another place that uses it at the same time: one for each.
    TwoPlaces(String),
}

/// What is known of all identities: their places, by name, and who uses them now.
#[derive(Debug, Default)]
pub(super) struct Places {
    known: HashMap<Arc<str>, Vec<Place>>,
    uses: HashMap<Arc<str>, Uses>,
}

#[derive(Debug, Default)]
struct Uses {
    /// The places in use, and until when they count so.
    live: Vec<(String, Boot)>,
    /// The pairs that were told of, and until when that is enough.
    told: Vec<(String, String, Boot)>,
}

impl Places {
    /// What an agent before this one knew.
    pub(super) fn knowing(known: HashMap<Arc<str>, Vec<Place>>) -> Self {
        Self { known, uses: HashMap::new() }
    }

    /// What is known, for who keeps it.
    pub(super) fn known(&self) -> &HashMap<Arc<str>, Vec<Place>> {
        &self.known
    }

    /// What would be new if `identity` were used from `place` now. Nothing is noted.
    pub(super) fn news(&self, identity: &str, place: &Place, now: Boot) -> Vec<News> {
        let mut news = Vec::new();
        if let Some(places) = self.known.get(identity)
            && !places.is_empty()
            && !places.iter().any(|known| known.is_like(place))
        {
            news.push(News::NewPlace(places.len()));
        }
        if let Some(uses) = self.uses.get(identity)
            && uses.told.len() < MOST_PAIRS
        {
            let others = uses.live.iter().filter(|(name, until)| {
                *until > now && *name != place.name && !uses.is_told(name, &place.name, now)
            });
            news.extend(others.map(|(name, _)| News::TwoPlaces(name.clone())));
        }
        news
    }

    /// `identity` is used from `place`, for something that may live for `life`, and what was new about it is on record. Whether that
    /// is to be kept.
    pub(super) fn note(&mut self, identity: &Arc<str>, place: &Place, life: Duration, now: Boot) -> bool {
        self.use_from(identity, &place.name, life, now);
        if !self.known.contains_key(identity) && self.known.len() >= MOST_IDENTITIES {
            self.forget_one();
        }
        let places = self.known.entry(Arc::clone(identity)).or_default();
        if let Some(at) = places.iter().position(|known| known.is_like(place)) {
            let mut known = places.remove(at);
            let learned = known.learn(place);
            places.push(known);
            return learned;
        }
        if places.len() >= MOST_PLACES {
            places.remove(0);
        }
        places.push(place.clone());
        true
    }

    fn use_from(&mut self, identity: &Arc<str>, name: &str, life: Duration, now: Boot) {
        let uses = self.uses.entry(Arc::clone(identity)).or_default();
        uses.live.retain(|(other, until)| *until > now && other != name);
        uses.told.retain(|(.., until)| *until > now);
        for (other, _) in &uses.live {
            let known = uses.told.iter().position(|(one, two, _)| is_pair((one, two), (other, name)));
            match known {
                Some(at) => uses.told[at].2 = now + QUIET,
                None if uses.told.len() < MOST_PAIRS => {
                    uses.told.push((other.clone(), name.to_owned(), now + QUIET));
                }
                None => {}
            }
        }
        if uses.live.len() >= MOST_USES {
            uses.live.remove(0);
        }
        uses.live.push((name.to_owned(), now + life.clamp(IN_USE.0, IN_USE.1)));
    }

    /// Forgets the identity whose newest place is the oldest of all.
    fn forget_one(&mut self) {
        let newest = |places: &[Place]| places.iter().map(|place| place.since).max();
        let oldest = self.known.iter().min_by_key(|(name, places)| (newest(places), Arc::clone(name)));
        if let Some(oldest) = oldest.map(|(name, _)| Arc::clone(name)) {
            self.known.remove(&oldest);
        }
    }
}

impl Uses {
    fn is_told(&self, one: &str, other: &str, now: Boot) -> bool {
        self.told.iter().any(|(a, b, until)| *until > now && is_pair((a, b), (one, other)))
    }
}

fn is_pair((a, b): (&str, &str), (one, other): (&str, &str)) -> bool {
    a == one && b == other || a == other && b == one
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attest::Errand;

    const LIFE: Duration = Duration::from_secs(300);

    fn at(seconds: u64) -> Boot {
        Boot::from_nanos(0) + Duration::from_secs(seconds)
    }

    fn place(name: &str) -> Place {
        Place { name: name.into(), sha256: None, unreadable: false, hosts_files: Some(true), since: 0 }
    }

    fn shop() -> Arc<str> {
        "shop".into()
    }

    /// What was new about a use, which is noted.
    fn used(places: &mut Places, place: &Place, now: Boot) -> Vec<News> {
        let news = places.news("shop", place, now);
        places.note(&shop(), place, LIFE, now);
        assert!(places.news("shop", place, now).is_empty(), "once");
        news
    }

    #[test]
    fn the_first_place_is_the_measure_and_each_other_is_new_once() {
        // S17
        let mut places = Places::default();
        assert_eq!(used(&mut places, &place("unit shop.service"), at(0)), []);
        assert_eq!(used(&mut places, &place("unit shop.service"), at(10_000)), []);
        assert_eq!(used(&mut places, &place("user 1000 outside any unit"), at(20_000)), [News::NewPlace(1)]);
        assert_eq!(used(&mut places, &place("user 1000 outside any unit"), at(30_000)), []);
        let tenant = Place { hosts_files: Some(false), ..place("unit shop.service") };
        assert_eq!(used(&mut places, &tenant, at(40_000)), [News::NewPlace(2)]);
        assert_eq!(places.news("cart", &place("elsewhere"), at(40_000)), [], "another has its own measure");
    }

    #[test]
    fn what_is_not_known_of_a_place_makes_it_no_new_one() {
        // S17
        let mut places = Places::default();
        let with = |sum: Option<&str>| Place { sha256: sum.map(str::to_owned), ..place("unit shop.service") };
        assert_eq!(used(&mut places, &with(None), at(0)), []);
        // An identity that names a digest was added: now the program of each is read.
        assert_eq!(used(&mut places, &with(Some("aa")), at(1)), []);
        assert_eq!(used(&mut places, &with(None), at(2)), []);
        assert_eq!(used(&mut places, &with(Some("bb")), at(3)), [News::NewPlace(1)], "another program");
        let blind = Place { hosts_files: None, ..with(Some("aa")) };
        assert_eq!(used(&mut places, &blind, at(4)), []);
        assert_eq!(places.known()["shop"].len(), 2);
    }

    #[test]
    fn a_program_that_cannot_be_read_is_another_than_one_that_can_be() {
        // S17: whoever appends to itself what nobody hashes, or takes the right to read it away, is not who was here before.
        let mut places = Places::default();
        let readable = Place { sha256: Some("aa".into()), ..place("unit shop.service") };
        let hidden = Place { unreadable: true, ..place("unit shop.service") };
        assert_eq!(used(&mut places, &readable, at(0)), []);
        assert_eq!(used(&mut places, &hidden, at(1)), [News::NewPlace(1)]);
        assert_eq!(used(&mut places, &hidden, at(2)), [], "once");
        assert!(hidden.words().contains("cannot be read"));
        // The other way round too.
        let mut places = Places::default();
        assert_eq!(used(&mut places, &hidden, at(0)), []);
        assert_eq!(used(&mut places, &readable, at(1)), [News::NewPlace(1)]);
        // Where nobody asked, it is like both.
        assert_eq!(used(&mut places, &place("unit shop.service"), at(2)), []);
    }

    #[test]
    fn only_what_nobody_asked_for_is_not_held_against_a_place() {
        // S17
        let evidence = Errand::imagined("shop.service", "token").unwrap().evidence("system.slice");
        for (missing, unreadable) in [
            (Missing::NotAsked, false),
            (Missing::ExeTooLarge, true),
            (Missing::NotPermitted, true),
            (Missing::ExeReplaced, true),
            (Missing::Exited, true),
        ] {
            let seen = Evidence { sha256: Err(missing), ..evidence.clone() };
            let place = Place::of(&seen, Timestamp::UNIX_EPOCH);
            assert_eq!((place.sha256, place.unreadable), (None, unreadable), "{missing:?}");
        }
        let place = Place::of(&Evidence { sha256: Ok([7; 32]), ..evidence }, Timestamp::UNIX_EPOCH);
        assert!(place.sha256.is_some() && !place.unreadable);
    }

    #[test]
    fn what_an_agent_before_this_one_kept_is_read_and_what_it_could_not_say_is_not_said() {
        // S17
        let old = r#"{"name":"unit a.service","sha256":null,"hosts_files":true,"since":0}"#;
        let place: Place = serde_json::from_str(old).unwrap();
        assert_eq!(serde_json::to_string(&place).unwrap(), old);
        assert!(!place.unreadable);
    }

    #[test]
    fn two_places_at_once_are_told_of_once_until_it_was_quiet() {
        // NHI-9, S17
        let (mut places, a, b) = (Places::default(), place("unit a.service"), place("unit b.service"));
        used(&mut places, &a, at(0));
        used(&mut places, &b, at(10_000));
        let two = |other: &str| vec![News::TwoPlaces(other.to_owned())];
        assert_eq!(used(&mut places, &a, at(10_100)), two("unit b.service"));
        for seconds in [10_200, 10_300, 10_400] {
            assert_eq!(used(&mut places, &b, at(seconds)), []);
            assert_eq!(used(&mut places, &a, at(seconds)), []);
        }
        // One after the other, with time between: no two at once.
        assert_eq!(used(&mut places, &b, at(20_000)), []);
        assert_eq!(used(&mut places, &a, at(20_000 + LIFE.as_secs())), [], "what b had has ended");
        assert_eq!(used(&mut places, &b, at(20_000 + LIFE.as_secs() + 60)), two("unit a.service"));
    }

    #[test]
    fn one_unit_is_one_place_whatever_it_runs() {
        // NHI-9
        let mut places = Places::default();
        used(&mut places, &place("unit a.service"), at(0));
        let other = Place { hosts_files: Some(false), ..place("unit a.service") };
        assert_eq!(used(&mut places, &other, at(1)), [News::NewPlace(1)]);
    }

    #[test]
    fn units_that_are_made_by_the_number_are_one_family() {
        // S17
        for (unit, name) in [
            ("shop.service", "shop.service"),
            ("worker@7.service", "worker@.service"),
            ("run-u12.service", "run-*.service"),
            ("run-r0a1b2c3d.scope", "run-*.scope"),
            ("run-p12-i34.service", "run-*.service"),
            ("run-updates.service", "run-updates.service"),
            ("runner.service", "runner.service"),
        ] {
            assert_eq!(family(unit), name);
        }
    }

    #[test]
    fn what_is_known_is_bounded_and_those_in_use_stay() {
        // S17, TM-20
        let mut places = Places::default();
        for n in 0..1000 {
            used(&mut places, &place("unit shop.service"), at(n));
            places.note(&shop(), &place(&format!("unit {n}.service")), LIFE, at(n));
        }
        assert_eq!(places.known()["shop"].len(), MOST_PLACES);
        assert_eq!(used(&mut places, &place("unit shop.service"), at(1000)), [], "it was used all the time");
        let uses = &places.uses["shop"];
        assert!(uses.live.len() <= MOST_USES && uses.told.len() <= MOST_PAIRS);
        for n in 0..MOST_IDENTITIES + 10 {
            let since = i64::try_from(n).unwrap();
            places.note(&format!("i{n}").into(), &Place { since, ..place("p") }, LIFE, at(2000));
        }
        assert_eq!(places.known().len(), MOST_IDENTITIES);
    }
}

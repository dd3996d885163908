//! When a certificate ends that the agent cannot make anew by itself: one in a file of others, or one that its CA does not renew. In
//! go its dates and a moment; out come words for whoever has to see to it, ahead of its end (X5-03): it is told of at four fifths of
//! its life, urgently at nine tenths, and when it has ended.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use jiff::{SignedDuration, Timestamp};

use super::{
    CertificateError, CertificateSettings, Certificates, ClientCertificate, SignedBy, leaf_facts, made::chain,
};
use crate::keys::{FileError, file};

/// One certificate of others or of a CA, and its dates.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Ending {
    /// Whose.
    pub identity: Arc<str>,
    /// What it is.
    pub place: Place,
    /// Its thumbprint (RFC 8705 3.1).
    pub thumbprint: String,
    from: Timestamp,
    until: Timestamp,
}

/// Which of an identity's certificates it is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Place {
    /// The one in this file, which somebody has to replace.
    File(PathBuf),
    /// A credential, which its CA renews well before; where that fails, the last trouble with it.
    Credential {
        /// Its name.
        name: Arc<str>,
        /// What happened.
        trouble: Option<String>,
    },
}

/// How near the end is.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Urgency {
    /// Four fifths of its life are over.
    Soon,
    /// Nine tenths are.
    Critical,
    /// It has ended: nothing is proved with it any more.
    Ended,
}

impl Urgency {
    const ALL: [Self; 3] = [Self::Soon, Self::Critical, Self::Ended];

    /// The reason code.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Soon => "CERTIFICATE_ENDING",
            Self::Critical => "CERTIFICATE_CRITICAL",
            Self::Ended => "CERTIFICATE_ENDED",
        }
    }
}

impl Ending {
    /// That of `certificate`.
    pub fn of(identity: &Arc<str>, place: Place, certificate: &ClientCertificate) -> Self {
        let thumbprint = certificate.thumbprint().to_owned();
        let (from, until) = (certificate.from, certificate.until);
        Self { identity: Arc::clone(identity), place, thumbprint, from, until }
    }

    /// How near its end is at `now`; none as long as there is time.
    pub fn urgency(&self, now: Timestamp) -> Option<Urgency> {
        Urgency::ALL.into_iter().rev().find(|urgency| now >= self.at(*urgency))
    }

    /// When it becomes more urgent than it is at `now`.
    pub fn next(&self, now: Timestamp) -> Option<Timestamp> {
        Urgency::ALL.into_iter().map(|urgency| self.at(urgency)).find(|at| now < *at)
    }

    /// What to tell whoever runs the agent, if there is anything to tell at `now`.
    pub fn words(&self, now: Timestamp) -> Option<String> {
        let (identity, until) = (&self.identity, self.until);
        let what = match self.urgency(now)? {
            Urgency::Soon => "ends at",
            Urgency::Critical => "is about to end, at",
            Urgency::Ended => "has ended, nothing is issued with it: it ended at",
        };
        Some(match &self.place {
            Place::File(file) => format!(
                "identities.{identity}.certificate: {} {what} {until:.0}: have its CA issue another, replace the files, \
                 then run: keybearer reload",
                file.display()
            ),
            Place::Credential { name, trouble } => format!(
                "identities.{identity}.credentials.{name}: the certificate {what} {until:.0} and is not renewed: {}; \
                 it is tried again until it is",
                trouble.as_deref().unwrap_or("its CA has not been asked yet")
            ),
        })
    }

    fn at(&self, urgency: Urgency) -> Timestamp {
        let life = self.until.as_second().saturating_sub(self.from.as_second());
        // Without overflow, whatever the dates say.
        let tenths = |tenths: i64| SignedDuration::from_secs(life / 10 * tenths + life % 10 * tenths / 10);
        let part = |part: i64| self.from.saturating_add(tenths(part)).unwrap_or(self.until);
        match urgency {
            Urgency::Soon => part(8),
            Urgency::Critical => part(9),
            Urgency::Ended => self.until,
        }
    }
}

impl Certificates {
    /// Those of others, as they are shown: a file that was replaced counts once the settings were read again.
    pub fn of_others(&self) -> Vec<Ending> {
        let of = |custodian: &Arc<super::custody::Custodian>| {
            let SignedBy::Others(file) = &custodian.settings.signed_by else { return None };
            Some(Ending::of(&custodian.identity, Place::File(file.clone()), &custodian.held().now))
        };
        self.custodians().filter_map(of).collect()
    }
}

/// Those of others that `wanted` names, from the files with their chains alone: for whoever may not read their keys.
pub fn endings(
    wanted: &BTreeMap<Arc<str>, CertificateSettings>,
) -> impl Iterator<Item = Result<Ending, CertificateError>> {
    wanted.iter().filter_map(|(identity, settings)| {
        let SignedBy::Others(path) = &settings.signed_by else { return None };
        Some(
            from_file(identity, path)
                .map_err(|error| CertificateError { identity: Arc::clone(identity), error }),
        )
    })
}

fn from_file(identity: &Arc<str>, path: &Path) -> Result<Ending, FileError> {
    let wrong = |what: &str| FileError::Certificate { place: path.display().to_string(), what: what.into() };
    let chain = chain(path, &file::read_public(path)?)?;
    let (thumbprint, from, until) = leaf_facts(&chain).map_err(wrong)?;
    Ok(Ending { identity: Arc::clone(identity), place: Place::File(path.into()), thumbprint, from, until })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + second).unwrap()
    }

    fn ending(life: i64) -> Ending {
        Ending {
            identity: "pay".into(),
            place: Place::File("/etc/pay.crt".into()),
            thumbprint: "t".into(),
            from: at(0),
            until: at(life),
        }
    }

    #[test]
    fn an_end_is_told_ahead_and_ever_more_urgently() {
        // X5-03
        let ending = ending(1000);
        for (second, urgency, next) in [
            (-5, None, Some(800)),
            (799, None, Some(800)),
            (800, Some(Urgency::Soon), Some(900)),
            (899, Some(Urgency::Soon), Some(900)),
            (900, Some(Urgency::Critical), Some(1000)),
            (1000, Some(Urgency::Ended), None),
            (9999, Some(Urgency::Ended), None),
        ] {
            assert_eq!(
                (ending.urgency(at(second)), ending.next(at(second))),
                (urgency, next.map(at)),
                "{second}"
            );
        }
        assert_eq!(ending.words(at(799)), None);
        for (second, words) in [(800, "ends at"), (900, "is about to end"), (1000, "has ended")] {
            let told = ending.words(at(second)).unwrap();
            for words in [words, "/etc/pay.crt", "2023-11-14T22:30:00Z", "identities.pay", "keybearer reload"]
            {
                assert!(told.contains(words), "{told}");
            }
        }
    }

    #[test]
    fn one_that_its_ca_does_not_renew_is_told_of_with_the_reason() {
        // X5-03
        let place = Place::Credential { name: "tls".into(), trouble: Some("503 sealed".into()) };
        let told = Ending { place, ..ending(1000) }.words(at(950)).unwrap();
        for words in ["identities.pay.credentials.tls", "is about to end", "503 sealed", "tried again"] {
            assert!(told.contains(words), "{told}");
        }
    }

    #[test]
    fn odd_dates_are_borne() {
        // X5-03: a CA may write what it likes.
        for life in [0, 1, 9, -7, i64::from(i32::MAX)] {
            let ending = ending(life);
            assert_eq!(ending.urgency(at(life)), Some(Urgency::Ended));
            assert!(ending.next(at(-1_000_000)).is_some());
        }
        let all = Ending { from: Timestamp::MIN, until: Timestamp::MAX, ..ending(1) };
        assert_eq!(all.urgency(at(0)), None);
    }
}

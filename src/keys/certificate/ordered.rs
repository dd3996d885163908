//! What is done with a certificate before its time: by an operator, or because every issuer takes the next one. In go orders; out
//! comes what was made, what is shown now, or whose it is to be done. Each stage is done as it would be in its time, by `custody`.

use std::{path::PathBuf, sync::Arc};

use jiff::Timestamp;

use super::{
    CertificateError, Certificates, ClientCertificate, SignedBy,
    custody::{Custodian, Ready, Stage},
};
use crate::keys::Custody;

/// What came of an order.
#[derive(Debug)]
pub enum Rotated {
    /// The identity has no certificate.
    None,
    /// It is of others: the agent can make no other.
    OfOthers {
        /// The file with the chain.
        certificate: PathBuf,
        /// The file with its key; none that is anybody's but theirs.
        key: Option<PathBuf>,
    },
    /// There is a next one, made now or before: it can be registered, and is not shown yet.
    Next {
        /// It.
        next: Arc<ClientCertificate>,
        /// Whether it was made now.
        made: bool,
    },
    /// It is shown from now on.
    Shown(Arc<ClientCertificate>),
}

impl Certificates {
    /// Makes the next certificate of `identity` now, if there is none. One in memory is shown at once: nobody could register it
    /// beforehand.
    ///
    /// # Errors
    /// [`CertificateError`] if it cannot be made.
    pub fn begin(&self, identity: &Arc<str>, now: Timestamp) -> Result<Rotated, CertificateError> {
        let custodian = match self.own(identity) {
            Ok(custodian) => custodian,
            Err(others) => return Ok(others),
        };
        let before = custodian.held().next.clone();
        let stage = match &before {
            Some(next) if !next.is_good(now) => Stage::Remake,
            _ => Stage::Make,
        };
        if let (Some(next), Stage::Make) = (&before, stage) {
            return Ok(Rotated::Next { next: Arc::clone(next), made: false });
        }
        custodian.does(Ready { stage, ordered: true }, now)?;
        let held = custodian.held();
        Ok(match &held.next {
            Some(next) => Rotated::Next { next: Arc::clone(next), made: true },
            None => Rotated::Shown(Arc::clone(&held.now)),
        })
    }

    /// Shows the next certificate of `identity` from now on, if that still is the one of this thumbprint: its issuers take it. False
    /// if it is another, or not good at `now`.
    ///
    /// # Errors
    /// [`CertificateError`] if it cannot be put in its place.
    pub fn show(
        &self,
        identity: &Arc<str>,
        thumbprint: &str,
        now: Timestamp,
    ) -> Result<bool, CertificateError> {
        let Ok(custodian) = self.own(identity) else { return Ok(false) };
        let is_it = |next: &Arc<ClientCertificate>| next.thumbprint() == thumbprint && next.is_good(now);
        if !custodian.held().next.as_ref().is_some_and(is_it) {
            return Ok(false);
        }
        custodian.does(Ready { stage: Stage::Switch, ordered: true }, now)?;
        Ok(true)
    }

    /// Emergency: whatever keys there were are destroyed, and another certificate is shown at once (KEY-07).
    ///
    /// # Errors
    /// [`CertificateError`] if that could not be done: what was shown may be shown still.
    pub fn replace(&self, identity: &Arc<str>, now: Timestamp) -> Result<Rotated, CertificateError> {
        let custodian = match self.own(identity) {
            Ok(custodian) => custodian,
            Err(others) => return Ok(others),
        };
        custodian.does(Ready { stage: Stage::Replace, ordered: true }, now)?;
        let shown = Arc::clone(&custodian.held().now);
        Ok(Rotated::Shown(shown))
    }

    /// Whether `identity` has one, whoever signed it.
    pub fn has(&self, identity: &Arc<str>) -> bool {
        self.custodian(identity).is_some()
    }

    /// Those that are published and not shown yet, and good at `now`.
    pub fn next(&self, now: Timestamp) -> Vec<(Arc<str>, Arc<ClientCertificate>)> {
        let next = |custodian: &Arc<Custodian>| {
            let next = custodian.held().next.clone().filter(|next| next.is_good(now))?;
            Some((Arc::clone(&custodian.identity), next))
        };
        self.custodians().filter_map(next).collect()
    }

    /// Who keeps the certificate that `identity` signs itself.
    fn own(&self, identity: &Arc<str>) -> Result<&Arc<Custodian>, Rotated> {
        let custodian = self.custodian(identity).ok_or(Rotated::None)?;
        let SignedBy::Others(certificate) = &custodian.settings.signed_by else { return Ok(custodian) };
        let key = match &custodian.settings.custody {
            Custody::File { path } => Some(path.clone()),
            Custody::Memory => None,
        };
        Err(Rotated::OfOthers { certificate: certificate.clone(), key })
    }
}

//! What settings come to, at the start and at each reload. In go settings; out come the books that the broker goes by, the rules that the
//! journey goes by and what is kept fresh without being asked for, or what of it cannot be had. Nothing starts here.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use super::{BuildError, steward};
use crate::{
    api::Reach,
    broker::{Books, Broker},
    clock::{Clock, Dice},
    config::{IssuerSettings, Settings},
    issuer::{
        Issuer, Order, Scope,
        oauth::OAuth,
        openbao::OpenBao,
        sealed::{self, Sealed},
        terms::{SealedBy, Wants},
        x509::{acme, est, step},
    },
    journey::Rules,
    keys::{Certificates, Keyring, Safe},
    policy::{Identity, Per},
};

/// Every issuer that the settings name, and what orders are filled with.
pub(super) fn books(
    settings: &Settings,
    keys: &Keyring,
    certificates: &Certificates,
    sealed: &Arc<Sealed>,
    clock: &Arc<dyn Clock>,
    dice: &Arc<dyn Dice>,
) -> Result<Books, BuildError> {
    let mut issuers: HashMap<Arc<str>, Arc<dyn Issuer>> = HashMap::new();
    issuers.insert(sealed::NAME.into(), Arc::<Sealed>::clone(sealed) as Arc<dyn Issuer>);
    for (name, issuer) in &settings.issuers {
        match issuer {
            IssuerSettings::Acme(acme) => {
                let made = acme::open(acme.clone(), keys.vault().clone(), Arc::clone(clock))
                    .map_err(|error| BuildError::Issuer(name.to_string(), error))?;
                issuers.insert(Arc::clone(name), made);
            }
            IssuerSettings::Est(est) => {
                let made = est::open(est.clone(), keys.vault().clone(), Arc::clone(clock))
                    .map_err(|error| BuildError::Issuer(name.to_string(), error))?;
                issuers.insert(Arc::clone(name), made);
            }
            IssuerSettings::OAuth(oauth) => {
                let made = OAuth::new(oauth.clone(), Arc::clone(clock), Arc::clone(dice))
                    .map_err(|error| BuildError::Issuer(name.to_string(), error))?;
                issuers.insert(Arc::clone(name), Arc::new(made));
            }
            IssuerSettings::StepCa(ca) => {
                let made =
                    step::issuer(ca.clone(), keys.vault().clone(), Arc::clone(clock), Arc::clone(dice))
                        .map_err(|error| BuildError::Authority(name.to_string(), error))?;
                issuers.insert(Arc::clone(name), made);
            }
            IssuerSettings::OpenBao(server) => {
                let made =
                    OpenBao::new(server.clone(), keys.vault().clone(), Arc::clone(clock), Arc::clone(dice))
                        .map_err(|error| BuildError::Issuer(name.to_string(), error))?;
                issuers.insert(Arc::clone(name), Arc::new(made));
            }
        }
    }
    for identity in settings.policy.identities() {
        for rule in identity.credentials.values() {
            let Some(forward) = &rule.forward else { continue };
            let reach = Reach { ca_file: forward.ca_file.clone(), plain: rule.proofs.plain };
            reach.check().map_err(|error| {
                BuildError::Api(format!("identities.{}.credentials.{}", identity.name, rule.name), error)
            })?;
        }
    }
    let mut books = Books {
        issuers,
        keys: keys.clone(),
        certificates: certificates.clone(),
        shown: HashMap::new(),
        registrations: settings.registrations.clone(),
        who: settings.issuers.iter().map(|(name, issuer)| (Arc::clone(name), issuer.who())).collect(),
    };
    let shows = |identity: &Identity| {
        let rule = identity.credentials.get(identity.shows.as_ref()?)?;
        Some((Arc::clone(&identity.name), books.order_for(&identity.name, rule, Scope::default()).ok()?))
    };
    books.shown = settings.policy.identities().filter_map(shows).collect();
    Ok(books)
}

/// Whether what the settings say lies sealed can lie sealed, or is given by the service manager (S1). That nobody has put it in yet
/// is no error: the agent has to run for that.
pub(super) fn can_be_had(settings: &Settings, safe: &Safe) -> Result<(), Vec<String>> {
    let mut wrong = Vec::new();
    for identity in settings.policy.identities() {
        for rule in identity.credentials.values() {
            let Wants::Sealed(terms) = &rule.terms.wants else { continue };
            let had = match &terms.keeper {
                SealedBy::Agent => safe.can_seal(&identity.name, &rule.name),
                SealedBy::ServiceManager(name) => safe.given(&identity.name, &rule.name, name).map(drop),
            };
            wrong.extend(had.err().map(|error| error.to_string()));
        }
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong) }
}

/// Whether the right to each registration is where only we can read it (KEY-09, KEY-11).
pub(super) fn registrable(settings: &Settings) -> Result<(), Vec<String>> {
    let wrong: Vec<String> = settings
        .registrations
        .iter()
        .filter_map(|one| Some(format!("identities.{}.registrations: {}", one.identity, one.check().err()?)))
        .collect();
    if wrong.is_empty() { Ok(()) } else { Err(wrong) }
}

/// The certificates that are had and kept fresh without being asked for: what proves who asks must not have ended when it is
/// asked for, and some can only be renewed while it has not.
pub(super) fn tended(
    settings: &Settings,
    disabled: &BTreeMap<Arc<str>, String>,
    broker: &Broker,
) -> Vec<Order> {
    let mut orders = Vec::new();
    for identity in settings.policy.identities().filter(|identity| !disabled.contains_key(&identity.name)) {
        let certificates = identity
            .credentials
            .values()
            .filter(|rule| matches!(rule.terms.wants, Wants::Certificate(_)) && rule.per == Per::Identity);
        orders.extend(certificates.filter_map(|rule| broker.order_for(&identity.name, rule)));
    }
    orders
}

/// What the journey goes by: policy, without whoever is switched off.
pub(super) fn rules(settings: &Settings, disabled: &BTreeMap<Arc<str>, String>) -> Rules {
    let policy = if disabled.is_empty() {
        Arc::clone(&settings.policy)
    } else {
        Arc::new(settings.policy.without(steward::names(disabled)))
    };
    Rules::new(policy, settings.environment.clone(), settings.digest.clone())
}

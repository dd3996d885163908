//! What one credential, or all of them, come to for a program. In go what is to be delivered and the credentials; out come values by
//! variable, and a sum by which two parcels are compared without keeping the older one.

use std::{collections::BTreeMap, sync::Arc};

use ring::hmac;

use super::{
    ExecError,
    environment::{Uncarried, carries},
};
use crate::{
    clock::Dice,
    deliver::{Delivery, Source, Variable},
    secret::Secret,
};

/// Values of variables, and of the files that variables name.
#[derive(Debug, Default)]
pub struct Parcel {
    /// By the variable that holds it.
    pub env: BTreeMap<Variable, Secret>,
    /// By the variable that holds the path of a file with it.
    pub files: BTreeMap<Variable, Secret>,
}

/// A keyed sum over all values of a parcel. It says nothing about them to anybody without the key, which lives as long as this
/// process.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Sum([u8; 32]);

/// The key of the sums.
pub struct Scales(hmac::Key);

impl Scales {
    /// A key of chance.
    pub fn new(dice: &dyn Dice) -> Self {
        let mut key = [0; 32];
        dice.fill(&mut key);
        Self(hmac::Key::new(hmac::HMAC_SHA256, &key))
    }

    /// The sum of what the program would get.
    pub fn weigh(&self, parcel: &Parcel) -> Sum {
        let mut sum = hmac::Context::with_key(&self.0);
        for (kind, values) in [(b"e", &parcel.env), (b"f", &parcel.files)] {
            for (variable, value) in values {
                // Lengths, so that no two lists look alike; a name has no NUL.
                sum.update(kind);
                sum.update(variable.as_str().as_bytes());
                sum.update(&[0]);
                sum.update(&(value.len() as u64).to_le_bytes());
                sum.update(value.expose());
            }
        }
        let mut bytes = [0; 32];
        bytes.copy_from_slice(sum.sign().as_ref());
        Sum(bytes)
    }
}

impl Parcel {
    /// What is delivered of `credential`, or of all, with the value of each source.
    ///
    /// # Errors
    /// What has no value, or one that no variable can carry.
    pub fn gather<E: Into<ExecError>>(
        delivery: &Delivery,
        credential: Option<&Arc<str>>,
        value: impl Fn(&Source) -> Result<Secret, E>,
    ) -> Result<Self, ExecError> {
        let wanted = |source: &Source| credential.is_none_or(|credential| source.credential == *credential);
        let mut parcel = Self::default();
        for (variable, source) in delivery.env.iter().filter(|(_, source)| wanted(source)) {
            let value = value(source).map_err(Into::into)?;
            carries(variable, source, &value)?;
            parcel.env.insert(variable.clone(), value);
        }
        for (variable, source) in delivery.files.iter().filter(|(_, source)| wanted(source)) {
            parcel.files.insert(variable.clone(), value(source).map_err(Into::into)?);
        }
        Ok(parcel)
    }
}

impl From<Uncarried> for ExecError {
    fn from(error: Uncarried) -> Self {
        Self::Uncarried(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SeededDice;

    fn parcel(env: &[(&str, &str)], files: &[(&str, &str)]) -> Parcel {
        let values = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(name, value)| (name.parse().unwrap(), Secret::new(*value))).collect()
        };
        Parcel { env: values(env), files: values(files) }
    }

    #[test]
    fn sums_tell_parcels_apart_and_need_their_key() {
        let scales = Scales::new(&*SeededDice::from_seed(1));
        let all = [
            parcel(&[], &[]),
            parcel(&[("A", "1"), ("B", "2")], &[]),
            parcel(&[("A", "1")], &[("B", "2")]),
            parcel(&[("A", "1B2")], &[]),
            parcel(&[("A", "1"), ("B", "3")], &[]),
        ];
        for (at, one) in all.iter().enumerate() {
            for (other_at, other) in all.iter().enumerate() {
                assert_eq!(scales.weigh(one) == scales.weigh(other), at == other_at);
            }
        }
        let others = Scales::new(&*SeededDice::from_seed(2));
        assert_ne!(scales.weigh(&all[1]), others.weigh(&all[1]));
    }

    #[test]
    fn a_parcel_is_of_one_credential_or_of_all() {
        let delivery = Delivery {
            env: [("A".parse().unwrap(), "one.token".parse().unwrap())].into(),
            files: [("B".parse().unwrap(), "two.token".parse().unwrap())].into(),
            ..Delivery::default()
        };
        let value = |source: &Source| Ok::<_, ExecError>(Secret::new(source.to_string()));
        let all = Parcel::gather(&delivery, None, value).unwrap();
        assert_eq!((all.env.len(), all.files.len()), (1, 1));
        let two = Parcel::gather(&delivery, Some(&"two".into()), value).unwrap();
        assert_eq!((two.env.len(), two.files.len()), (0, 1));
        let nul = |_: &Source| Ok::<_, ExecError>(Secret::new("\0"));
        assert!(matches!(Parcel::gather(&delivery, None, nul), Err(ExecError::Uncarried(_))));
        assert!(Parcel::gather(&delivery, Some(&"two".into()), nul).is_ok(), "a file carries anything");
    }
}

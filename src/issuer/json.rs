//! JSON as strangers send it. In go bytes; out comes a value, unless a name stands twice in an object, it is nested too
//! deep, or more follows (OA-03): two readers could understand such a text differently.

use std::fmt;

use serde::{
    Deserialize,
    de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Value};

/// Nobody nests deeper in good faith.
const MAX_DEPTH: usize = 16;

/// Reads one JSON text.
pub(super) fn parse(bytes: &[u8]) -> Result<Value, &'static str> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = Strict(MAX_DEPTH)
        .deserialize(&mut reader)
        .map_err(|_| "its JSON is malformed, nested too deep, or names a member twice")?;
    reader.end().map_err(|_| "something follows its JSON")?;
    Ok(value)
}

struct Strict(usize);

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let below = self.0.checked_sub(1).ok_or_else(|| A::Error::custom("too deep"))?;
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(Strict(below))? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let below = self.0.checked_sub(1).ok_or_else(|| A::Error::custom("too deep"))?;
        let mut object = Map::new();
        while let Some(name) = members.next_key::<String>()? {
            let value = members.next_value_seed(Strict(below))?;
            if object.insert(name, value).is_some() {
                return Err(A::Error::custom("a member stands twice"));
            }
        }
        Ok(Value::Object(object))
    }
}

/// A strict object, read into a type.
pub(super) fn parse_as<T: for<'de> Deserialize<'de>>(bytes: &[u8]) -> Result<T, &'static str> {
    T::deserialize(parse(bytes)?)
        .map_err(|_| "its JSON has not the members, or not the types, that it should")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_meanings_are_refused() {
        // OA-03
        let deep = format!("{}1{}", "[".repeat(17), "]".repeat(17));
        for bad in ["", "{", r#"{"a":1,"a":2}"#, r#"{"x":{"a":1,"a":2}}"#, "{} {}", "[1,]", &deep] {
            assert!(parse(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(parse(r#" {"a":[1,-2,3.5,null,true,"x"]} "#.as_bytes()).is_ok());
    }
}

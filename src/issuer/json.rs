//! JSON from outside, read strictly. In go bytes; out comes a value in which no member name stands twice, or
//! the reason why not (OA-03). A lenient reader and a strict one that disagree about a document are a hole.

use std::{cell::Cell, fmt};

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// How deep a document may nest (OA-03); metadata and token replies need three.
const MAX_DEPTH: usize = 16;

/// Reads one JSON document that fills `bytes`.
///
/// # Errors
/// [`JsonError`], by kind and without a word of the document: it may hold secrets.
pub fn parse(bytes: &[u8]) -> Result<Value, JsonError> {
    // serde's errors carry text only, so the kind is noted beside them.
    let kind = Cell::new(JsonError::Syntax);
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = Strict { depth: 0, kind: &kind }.deserialize(&mut reader).map_err(|_| kind.get())?;
    reader.end().map_err(|_| JsonError::Syntax)?;
    Ok(value)
}

/// What is wrong with a document.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum JsonError {
    /// It nests too deep.
    #[error("its JSON nests deeper than {MAX_DEPTH} levels")]
    Depth,
    /// A member name stands twice in one object.
    #[error("its JSON names a member twice")]
    Duplicate,
    /// Not one JSON document.
    #[error("it is not one JSON document")]
    Syntax,
}

#[derive(Clone, Copy)]
struct Strict<'k> {
    depth: usize,
    kind: &'k Cell<JsonError>,
}

impl Strict<'_> {
    fn refuse<E: serde::de::Error>(&self, kind: JsonError) -> E {
        self.kind.set(kind);
        E::custom(kind)
    }

    fn deeper<E: serde::de::Error>(self) -> Result<Self, E> {
        if self.depth == MAX_DEPTH {
            return Err(self.refuse(JsonError::Depth));
        }
        Ok(Self { depth: self.depth + 1, kind: self.kind })
    }
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Value, D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, flag: bool) -> Result<Value, E> {
        Ok(Value::Bool(flag))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Value, E> {
        Ok(Value::Number(number.into()))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Value, E> {
        Ok(Value::Number(number.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<Value, E> {
        Number::from_f64(number).map(Value::Number).ok_or_else(|| E::custom("not finite"))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(Value::String(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Value, E> {
        Ok(Value::String(text))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(inner)? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut object = Map::new();
        while let Some(name) = members.next_key::<String>()? {
            if object.contains_key(&name) {
                return Err(A::Error::custom(self.refuse::<A::Error>(JsonError::Duplicate)));
            }
            let value = members.next_value_seed(inner)?;
            object.insert(name, value);
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_member_named_twice_is_refused_at_any_depth() {
        // OA-03
        for text in [r#"{"a":1,"a":1}"#, r#"{"x":[{"a":1,"b":2,"a":3}]}"#, r#"{"a":1,"\u0061":2}"#] {
            assert_eq!(parse(text.as_bytes()), Err(JsonError::Duplicate), "{text}");
        }
        assert_eq!(parse(br#"{"a":{"a":1},"b":{"a":2}}"#), Ok(json!({"a": {"a": 1}, "b": {"a": 2}})));
    }

    #[test]
    fn depth_is_bounded() {
        // OA-03
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(parse(nested(MAX_DEPTH).as_bytes()).is_ok());
        assert_eq!(parse(nested(MAX_DEPTH + 1).as_bytes()), Err(JsonError::Depth));
        assert_eq!(parse(nested(100_000).as_bytes()), Err(JsonError::Depth));
    }

    #[test]
    fn what_is_not_one_document_is_refused() {
        // OA-03
        for text in ["", "{", "{} {}", "{}x", "<html>", "{'a':1}", "[1,]", "\u{feff}{}", "nul", "1e999"] {
            assert_eq!(parse(text.as_bytes()), Err(JsonError::Syntax), "{text}");
        }
        assert_eq!(parse(b"{\"a\":\"\xff\"}"), Err(JsonError::Syntax));
    }

    proptest! {
        #[test]
        fn it_agrees_with_the_lenient_reader_where_it_accepts(text in "[\\[\\]{}:,\"a0-9. ]{0,40}") {
            // OA-03
            if let Ok(value) = parse(text.as_bytes()) {
                prop_assert_eq!(Some(value), serde_json::from_str(&text).ok());
            }
        }
    }
}

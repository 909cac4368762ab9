//! Visitors that refuse duplicate keys and count values.

use std::fmt;

use serde::de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::{Body, PromptValue};

/// Reads the top level of a body.
pub(super) struct BodyVisitor {
    /// Values the body may hold.
    pub(super) budget: usize,
    /// The field that may hold token ids.
    pub(super) prompt: &'static str,
}

impl<'de> Visitor<'de> for BodyVisitor {
    type Value = Body;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Body, A::Error> {
        let mut body = Body {
            fields: Map::new(),
            prompt: None,
        };
        let mut seen_prompt = false;
        while let Some(key) = map.next_key::<String>()? {
            if key == self.prompt {
                if std::mem::replace(&mut seen_prompt, true) {
                    return Err(duplicate(&key));
                }
                body.prompt = map.next_value::<Option<PromptValue>>()?;
                continue;
            }
            if body.fields.contains_key(&key) {
                return Err(duplicate(&key));
            }
            let value = map.next_value_seed(Strict(&mut self.budget))?;
            body.fields.insert(key, value);
        }
        // Removed only now, so that a key given as null and again as a value is a duplicate.
        body.fields.retain(|_, value| !value.is_null());
        Ok(body)
    }
}

fn duplicate<E: Error>(key: &str) -> E {
    let shown: String = key.chars().take(64).collect();
    E::custom(format!("duplicate key {shown:?}"))
}

/// Reads any value, charging each one to the budget.
struct Strict<'a>(&'a mut usize);

impl Strict<'_> {
    fn charge<E: Error>(&mut self) -> Result<(), E> {
        match self.0.checked_sub(1) {
            Some(rest) => {
                *self.0 = rest;
                Ok(())
            }
            None => Err(E::custom("too many values in the body")),
        }
    }
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: serde::Deserializer<'de>>(mut self, d: D) -> Result<Value, D::Error> {
        self.charge()?;
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
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

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = seq.next_element_seed(Strict(&mut *self.0))? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut values = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            if values.contains_key(&key) {
                return Err(duplicate(&key));
            }
            let value = map.next_value_seed(Strict(&mut *self.0))?;
            values.insert(key, value);
        }
        Ok(Value::Object(values))
    }
}

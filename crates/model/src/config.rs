//! Reading `config.json`: synonyms, nulls, defaults and refusals (both transformers 4 and 5 spellings).

use serde_json::{Map, Value};

use crate::error::{ModelError, Result};

/// The fields of a checkpoint's configuration.
#[derive(Debug, Clone)]
pub struct ModelConfig {
    fields: Map<String, Value>,
}

impl ModelConfig {
    /// Parses the text of a `config.json`.
    ///
    /// # Errors
    /// When it is not a JSON object.
    pub fn parse(text: &[u8]) -> Result<Self> {
        match serde_json::from_slice(text) {
            Ok(Value::Object(fields)) => Ok(Self { fields }),
            Ok(_) => Err(ModelError::malformed("config.json", "not a JSON object")),
            Err(error) => Err(ModelError::malformed("config.json", error)),
        }
    }

    pub(crate) fn from_fields(fields: Map<String, Value>) -> Self {
        Self { fields }
    }

    /// The family's name.
    ///
    /// # Errors
    /// When there is none.
    pub fn model_type(&self) -> Result<&str> {
        self.get(&["model_type"])
            .and_then(Value::as_str)
            .ok_or_else(|| ModelError::config("model_type", "is missing"))
    }

    /// The language model of a checkpoint that also holds an image part: the fields of `text_config`,
    /// and those beside it that it does not repeat.
    pub(crate) fn into_text(mut self) -> Self {
        const WITH_IMAGES: &[&str] = &["gemma3", "mistral3"];
        if !self
            .model_type()
            .is_ok_and(|found| WITH_IMAGES.contains(&found))
        {
            return self;
        }
        if let Some(Value::Object(text)) = self.fields.remove("text_config") {
            let stored = text.into_iter().filter(|(_, value)| !value.is_null());
            self.fields.extend(stored);
        }
        self
    }

    /// The same settings with these counts where there are none.
    pub(crate) fn with_defaults(&self, defaults: &[(&str, u64)]) -> Self {
        let mut filled = self.clone();
        for (key, value) in defaults {
            if self.get(&[key]).is_none() {
                filled.fields.insert((*key).to_owned(), (*value).into());
            }
        }
        filled
    }

    /// The first of the keys that is present and not null.
    pub(crate) fn get(&self, keys: &[&str]) -> Option<&Value> {
        keys.iter()
            .find_map(|key| self.fields.get(*key).filter(|value| !value.is_null()))
    }

    /// Whether a key is there and null, which differs from absent where the default is not null.
    pub(crate) fn is_null(&self, key: &str) -> bool {
        self.fields.get(key).is_some_and(Value::is_null)
    }

    /// A count from 1 up to a bound that keeps every product of sizes far from overflow.
    pub(crate) fn count(&self, keys: &[&str]) -> Result<Option<usize>> {
        const MAX: u64 = 1 << 24;
        let Some(value) = self.get(keys) else {
            return Ok(None);
        };
        match whole(value) {
            Some(count) if (1..=MAX).contains(&count) => Ok(Some(count as usize)),
            _ => Err(ModelError::config(
                keys[0],
                format!("is {value}, not a whole number from 1 to {MAX}"),
            )),
        }
    }

    /// A whole number that may be 0.
    pub(crate) fn index(&self, key: &str) -> Result<Option<usize>> {
        let Some(value) = self.get(&[key]) else {
            return Ok(None);
        };
        match whole(value).and_then(|index| usize::try_from(index).ok()) {
            Some(index) => Ok(Some(index)),
            None => Err(ModelError::config(
                key,
                format!("is {value}, not a whole number"),
            )),
        }
    }

    pub(crate) fn required_count(&self, keys: &[&str]) -> Result<usize> {
        self.count(keys)?
            .ok_or_else(|| ModelError::config(keys[0], "is missing"))
    }

    pub(crate) fn number(&self, keys: &[&str], default: f64) -> Result<f64> {
        match self.get(keys) {
            None => Ok(default),
            Some(value) => number(keys[0], value),
        }
    }

    pub(crate) fn boolean(&self, key: &str, default: bool) -> Result<bool> {
        match self.get(&[key]) {
            None => Ok(default),
            Some(Value::Bool(value)) => Ok(*value),
            Some(value) => Err(ModelError::config(
                key,
                format!("is {value}, not true or false"),
            )),
        }
    }

    pub(crate) fn object(&self, key: &str) -> Result<Option<&Map<String, Value>>> {
        match self.get(&[key]) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(map)),
            Some(value) => Err(ModelError::config(
                key,
                format!("is {value}, not an object"),
            )),
        }
    }

    /// One id or a list of ids.
    pub(crate) fn token_ids(&self, key: &str) -> Result<Vec<u32>> {
        let invalid =
            |value: &Value| ModelError::config(key, format!("is {value}, not a token id"));
        let one = |value: &Value| {
            whole(value)
                .and_then(|id| u32::try_from(id).ok())
                .ok_or_else(|| invalid(value))
        };
        match self.get(&[key]) {
            None => Ok(Vec::new()),
            Some(Value::Array(values)) => values.iter().map(one).collect(),
            Some(value) => Ok(vec![one(value)?]),
        }
    }
}

/// A number as a whole one; writers differ in whether they spell `5` or `5.0`.
fn whole(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| {
        let number = value.as_f64()?;
        (number >= 0.0 && number.fract() == 0.0 && number < 2f64.powi(53)).then_some(number as u64)
    })
}

pub(crate) fn number(key: &str, value: &Value) -> Result<f64> {
    value
        .as_f64()
        .filter(|number| number.is_finite())
        .ok_or_else(|| ModelError::config(key, format!("is {value}, not a number")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> ModelConfig {
        ModelConfig::parse(text.as_bytes()).expect("a JSON object")
    }

    #[test]
    fn synonyms_and_nulls() {
        let config =
            config(r#"{"hidden_size": null, "n_embd": 48.0, "tie": 1, "eos_token_id": [1, 2]}"#);
        assert_eq!(
            config.count(&["hidden_size", "n_embd"]).expect("a count"),
            Some(48)
        );
        assert_eq!(config.count(&["absent"]).expect("optional"), None);
        assert!(config.boolean("tie", false).is_err());
        assert_eq!(config.token_ids("eos_token_id").expect("ids"), [1, 2]);
    }

    #[test]
    fn absurd_sizes_are_refused() {
        for value in ["0", "-1", "1e30", "1.5", "\"8\"", "true", "[]", "16777217"] {
            let config = config(&format!("{{\"hidden_size\": {value}}}"));
            let error = config.count(&["hidden_size"]).expect_err(value).to_string();
            assert!(error.contains("hidden_size"), "{error}");
        }
    }
}

//! Which modules a list of targets names: exact names, patterns after `re:`, and class names.

use regex::Regex;
use serde_json::Value;

use crate::error::{ModelError, Result};

/// What families call the modules that rows are gathered from.
pub(crate) const EMBEDDINGS: &[&str] = &[
    "embed_tokens",
    "embed_in",
    "wte",
    "wpe",
    "embed_positions",
    "word_embeddings",
];

/// One entry of a list of targets.
#[derive(Debug)]
pub(super) struct Target {
    text: String,
    /// Matched from the start of a name on, need not reach its end.
    pattern: Option<Regex>,
}

/// How exactly a target names a module; the more exact one counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Exactness {
    Class,
    Pattern,
    Name,
}

impl Target {
    /// The entries of a list.
    pub fn list(key: &str, value: &Value) -> Result<Vec<Self>> {
        let entries = value
            .as_array()
            .ok_or_else(|| ModelError::config(key, "is not a list of targets"))?;
        entries
            .iter()
            .map(|entry| match entry.as_str() {
                Some(text) => Self::new(key, text),
                None => Err(ModelError::config(
                    key,
                    format!("holds {entry}, not a name"),
                )),
            })
            .collect()
    }

    fn new(key: &str, text: &str) -> Result<Self> {
        let pattern = match text.strip_prefix("re:") {
            None => None,
            Some(pattern) => Some(Regex::new(&format!("^(?:{pattern})")).map_err(|error| {
                ModelError::config(key, format!("holds the pattern {pattern}: {error}"))
            })?),
        };
        Ok(Self {
            text: text.to_owned(),
            pattern,
        })
    }

    pub fn text(&self) -> &str {
        &self.text
    }

    /// How this target names a module, if it does.
    pub fn matches(&self, module: &str) -> Option<Exactness> {
        if self.text == module {
            return Some(Exactness::Name);
        }
        if let Some(pattern) = &self.pattern {
            return pattern.is_match(module).then_some(Exactness::Pattern);
        }
        (self.text == class(module)).then_some(Exactness::Class)
    }
}

/// The class of a module with a matrix, as its name tells.
fn class(module: &str) -> &'static str {
    let last = module.rsplit('.').next().unwrap_or(module);
    match EMBEDDINGS.contains(&last) {
        true => "Embedding",
        false => "Linear",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_before_patterns_before_classes() {
        let target = |text: &str| Target::new("targets", text).expect("a pattern");
        let cases = [
            ("model.layers.0.mlp.up_proj", Some(Exactness::Name)),
            ("re:.*mlp", Some(Exactness::Pattern)),
            ("re:model.layers.0", Some(Exactness::Pattern)),
            ("re:layers.0", None),
            ("re:mlp|model", Some(Exactness::Pattern)),
            ("Linear", Some(Exactness::Class)),
            ("Embedding", None),
            ("mlp.up_proj", None),
        ];
        for (text, expected) in cases {
            let found = target(text).matches("model.layers.0.mlp.up_proj");
            assert_eq!(found, expected, "{text}");
        }
        assert_eq!(
            target("Embedding").matches("model.embed_tokens"),
            Some(Exactness::Class)
        );
        assert!(Exactness::Name > Exactness::Pattern && Exactness::Pattern > Exactness::Class);
        let error = Target::new("targets", "re:(").expect_err("not closed");
        assert!(error.to_string().contains("targets"), "{error}");
    }
}

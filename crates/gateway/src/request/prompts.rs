//! A field that holds a text, texts, token ids or lists of token ids.

use super::reader::too_long;
use crate::error::ApiError;
use crate::json::{IdError, Prompt, PromptValue};

/// The entries of the field `name`: at most `max`, ids below `bound`. None where the field is absent.
pub(super) fn prompts(
    value: Option<PromptValue>,
    name: &str,
    max: usize,
    bound: usize,
) -> Result<Option<Vec<Prompt>>, ApiError> {
    let (prompts, is_list) = match value {
        None => return Ok(None),
        Some(PromptValue::One(prompt)) => (vec![prompt], false),
        Some(PromptValue::Many(prompts)) => (prompts, true),
        Some(PromptValue::Empty) => {
            let message = format!("{name} must not be an empty array");
            return Err(ApiError::field(name, "empty_array", message));
        }
        Some(PromptValue::Invalid(path, error)) => {
            return Err(prompt_error(format!("{name}{path}"), error));
        }
    };
    if prompts.len() > max {
        return Err(too_long(name, prompts.len(), max));
    }
    for (i, prompt) in prompts.iter().enumerate() {
        if let Prompt::Ids(ids) = prompt {
            check_ids(ids, &path(name, is_list.then_some(i)), bound)?;
        }
    }
    Ok(Some(prompts))
}

/// Where an entry stands.
pub(super) fn path(name: &str, entry: Option<usize>) -> String {
    entry.map_or_else(|| name.to_owned(), |i| format!("{name}[{i}]"))
}

/// Refuses token ids of `bound` and above.
pub(super) fn check_ids(ids: &[u32], path: &str, bound: usize) -> Result<(), ApiError> {
    match ids.iter().position(|id| *id as usize >= bound) {
        None => Ok(()),
        Some(i) => Err(ApiError::field(
            format!("{path}[{i}]"),
            "integer_above_max_value",
            format!(
                "{path}[{i}] must be a token id of at most {}, not {}",
                bound.saturating_sub(1),
                ids[i]
            ),
        )),
    }
}

/// What is wrong with an entry, as a field error.
pub(super) fn prompt_error(path: String, error: IdError) -> ApiError {
    let (code, text) = match error {
        IdError::Type => (
            "invalid_type",
            "must be a string, an array of strings, or token ids",
        ),
        IdError::Mixed => (
            "invalid_type",
            "must be of the same type as the entries before it",
        ),
        IdError::Negative => ("integer_below_min_value", "must be a token id, at least 0"),
        IdError::TooLarge => (
            "integer_above_max_value",
            "is larger than the id of any token",
        ),
        IdError::EmptyList => ("empty_array", "must not be empty"),
    };
    let message = format!("{path} {text}");
    ApiError::field(path, code, message)
}

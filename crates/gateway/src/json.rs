//! JSON bodies under bounds: nesting and number of values are limited, duplicate keys are refused,
//! and a prompt of token ids is read straight into a vector.

mod prompt;
mod strict;

use serde::Deserializer as _;
use serde_json::{Map, Value};

use crate::config::RequestLimits;
use crate::error::ApiError;

pub(crate) use prompt::{IdError, Prompt, PromptValue};

/// A request body, its fields still untyped but for the prompt or the texts to embed.
#[derive(Debug)]
pub(crate) struct Body {
    /// Every field but that of the prompt, in the order of the body. Nulls are dropped: null means absent.
    pub(crate) fields: Map<String, Value>,
    /// The prompt of a completions call, the input of an embeddings call.
    pub(crate) prompt: Option<PromptValue>,
}

/// Parses a body that must be a JSON object; `prompt` names the field that may hold token ids.
///
/// # Errors
/// [`ApiError::InvalidJson`] with line and column.
pub(crate) fn parse(
    bytes: &[u8],
    prompt: &'static str,
    limits: &RequestLimits,
) -> Result<Body, ApiError> {
    check_depth(bytes, limits.max_json_depth)?;
    let invalid = |e: serde_json::Error| ApiError::InvalidJson(e.to_string());
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let visitor = strict::BodyVisitor {
        budget: limits.max_json_values,
        prompt,
    };
    let body = deserializer.deserialize_any(visitor).map_err(invalid)?;
    deserializer.end().map_err(invalid)?;
    Ok(body)
}

/// Refuses deep nesting before any recursive code sees the bytes. Brackets inside strings do not
/// count.
fn check_depth(bytes: &[u8], max: usize) -> Result<(), ApiError> {
    let mut depth = 0usize;
    let mut in_string = false;
    let mut escaped = false;
    for &byte in bytes {
        if in_string {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => in_string = false,
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => in_string = true,
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > max {
            return Err(ApiError::InvalidJson(format!(
                "nested more than {max} levels deep"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;

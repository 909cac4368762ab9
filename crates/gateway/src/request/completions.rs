//! The body of `/v1/completions`.

use super::fields::COMPLETIONS;
use super::reader::{Fields, too_long};
use super::sampling::{Context, Generate, count};
use crate::error::ApiError;
use crate::json::{Body, IdError, Prompt, PromptValue};

/// A checked completions request.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct CompletionRequest {
    /// The shared part. Its token limit is always set.
    pub(crate) generate: Generate,
    /// The prompts, at least one; ids are below the bound of the context.
    pub(crate) prompts: Vec<Prompt>,
    /// The answer starts with the prompt.
    pub(crate) echo: bool,
}

/// Tokens generated when a request does not say.
const DEFAULT_MAX_TOKENS: usize = 16;

impl CompletionRequest {
    /// Reads and checks a body.
    pub(crate) fn read(body: Body, context: &Context) -> Result<Self, ApiError> {
        let mut fields = Fields::new(body.fields);
        let service_tier = fields.has("service_tier");
        let ignored = fields.sort_out(COMPLETIONS, context.strict)?;
        let echo = fields.boolean("echo")?.unwrap_or(false);
        let mut generate = Generate::read(&mut fields, context)?;
        let max_tokens = count(&mut fields, "max_tokens", 0)?.unwrap_or(DEFAULT_MAX_TOKENS);
        if max_tokens == 0 && !echo {
            return Err(ApiError::field(
                "max_tokens",
                "integer_below_min_value",
                "max_tokens must be at least 1 unless echo is set, not 0",
            ));
        }
        generate.max_tokens = Some(max_tokens);
        generate.service_tier = service_tier;
        let max_logprobs = i64::from(context.limits.max_logprobs);
        generate.sampling.num_logprobs = fields
            .integer("logprobs", 0..=max_logprobs)?
            .map(|k| k as u32);
        generate.ignored.extend(ignored);
        Ok(Self {
            generate,
            prompts: prompts(body.prompt, context)?,
            echo,
        })
    }

    /// Whether the prompt's log-probabilities are part of the answer.
    pub(crate) fn scores_prompt(&self) -> bool {
        self.echo && self.generate.sampling.num_logprobs.is_some()
    }
}

/// A left-out prompt is the empty one: the start of a document.
fn prompts(prompt: Option<PromptValue>, context: &Context) -> Result<Vec<Prompt>, ApiError> {
    let (prompts, is_list) = match prompt {
        None => (vec![Prompt::Text(String::new())], false),
        Some(PromptValue::One(prompt)) => (vec![prompt], false),
        Some(PromptValue::Many(prompts)) => (prompts, true),
        Some(PromptValue::Empty) => {
            return Err(ApiError::field(
                "prompt",
                "empty_array",
                "prompt must not be an empty array",
            ));
        }
        Some(PromptValue::Invalid(path, error)) => return Err(prompt_error(&path, error)),
    };
    let max = context.limits.max_prompts;
    if prompts.len() > max {
        return Err(too_long("prompt", prompts.len(), max));
    }
    for (i, prompt) in prompts.iter().enumerate() {
        let path = if is_list {
            format!("prompt[{i}]")
        } else {
            "prompt".into()
        };
        check_ids(prompt, &path, context.num_token_ids)?;
    }
    Ok(prompts)
}

fn check_ids(prompt: &Prompt, path: &str, bound: usize) -> Result<(), ApiError> {
    let Prompt::Ids(ids) = prompt else {
        return Ok(());
    };
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

fn prompt_error(path: &str, error: IdError) -> ApiError {
    let path = format!("prompt{path}");
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

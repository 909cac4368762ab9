//! The body of `/v1/completions`.

use super::fields::COMPLETIONS;
use super::prompts::prompts;
use super::reader::Fields;
use super::sampling::{Context, Generate, count};
use crate::error::ApiError;
use crate::json::{Body, Prompt};

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
        let (max, bound) = (context.limits.max_prompts, context.num_token_ids);
        let prompts = prompts(body.prompt, "prompt", max, bound)?;
        Ok(Self {
            generate,
            // A left-out prompt is the empty one: the start of a document.
            prompts: prompts.unwrap_or_else(|| vec![Prompt::Text(String::new())]),
            echo,
        })
    }

    /// Whether the prompt's log-probabilities are part of the answer.
    pub(crate) fn scores_prompt(&self) -> bool {
        self.echo && self.generate.sampling.num_logprobs.is_some()
    }
}

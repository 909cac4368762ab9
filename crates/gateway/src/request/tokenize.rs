//! The bodies of `/tokenize` and `/detokenize`.

use serde_json::{Map, Value, json};

use super::chat::{kwargs, messages};
use super::fields::{DETOKENIZE, TOKENIZE_CONTENT, TOKENIZE_MESSAGES, TOKENIZE_PROMPT};
use super::message::Reading;
use super::prompts::check_ids;
use super::reader::{Fields, missing};
use super::sampling::Context;
use crate::error::ApiError;
use crate::json::{Body, IdError, Prompt, PromptValue};

/// A checked request for tokens.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TokenizeRequest {
    /// The model asked for.
    pub(crate) model: Option<String>,
    /// What is tokenised.
    pub(crate) text: TokenizeText,
    /// How the answer spells tokens.
    pub(crate) spelled: Spelled,
    /// Names of fields that change nothing.
    pub(crate) ignored: Vec<String>,
}

/// How the tokens of an answer are spelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Spelled {
    /// They are numbers only.
    No,
    /// In a list of their own, as vLLM has it.
    Beside,
    /// Each with the text that it adds, as llama.cpp has it.
    AsPieces,
}

/// A text in one of two forms.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum TokenizeText {
    /// As `/v1/completions` takes it.
    Prompt {
        /// The text.
        prompt: String,
        /// The beginning is marked where the checkpoint does so.
        add_special_tokens: bool,
        /// The field that holds it.
        param: &'static str,
    },
    /// As `/v1/chat/completions` takes it.
    Messages {
        /// The conversation, as a template reads it.
        messages: Vec<Value>,
        /// Variables for the template.
        kwargs: Map<String, Value>,
        /// The text ends where an answer begins.
        add_generation_prompt: bool,
    },
}

impl TokenizeRequest {
    /// Reads and checks a body whose field `tokens` may hold token ids.
    pub(crate) fn read(body: Body, context: &Context) -> Result<Self, ApiError> {
        let mut fields = Fields::new(with_tokens(body));
        let form = ["messages", "prompt", "content"]
            .into_iter()
            .find(|name| fields.has(name));
        let (table, spelled, how) = match form {
            Some("messages") => (TOKENIZE_MESSAGES, "return_token_strs", Spelled::Beside),
            Some("content") => (TOKENIZE_CONTENT, "with_pieces", Spelled::AsPieces),
            _ => (TOKENIZE_PROMPT, "return_token_strs", Spelled::Beside),
        };
        let mut ignored = fields.sort_out(table, context.strict)?;
        let text = match form {
            Some("messages") => conversation(&mut fields, context, &mut ignored)?,
            Some("content") => prompt(&mut fields, "content", ("add_special", false))?,
            _ => prompt(&mut fields, "prompt", ("add_special_tokens", true))?,
        };
        Ok(Self {
            model: fields.string("model")?,
            text,
            spelled: match fields.boolean(spelled)? {
                Some(true) => how,
                _ => Spelled::No,
            },
            ignored,
        })
    }
}

fn conversation(
    fields: &mut Fields,
    context: &Context,
    ignored: &mut Vec<String>,
) -> Result<TokenizeText, ApiError> {
    let mut reading = Reading {
        limits: context.limits,
        strict: context.strict,
        ignored: Vec::new(),
    };
    let messages = messages(fields, &mut reading)?;
    ignored.extend(reading.ignored);
    Ok(TokenizeText::Messages {
        messages,
        kwargs: kwargs(fields)?,
        add_generation_prompt: fields.boolean("add_generation_prompt")?.unwrap_or(true),
    })
}

/// A text under the name of its field, and whether it is marked: a field with its default.
fn prompt(
    fields: &mut Fields,
    param: &'static str,
    (marks, default): (&'static str, bool),
) -> Result<TokenizeText, ApiError> {
    Ok(TokenizeText::Prompt {
        prompt: fields.string(param)?.ok_or_else(|| missing(param))?,
        add_special_tokens: fields.boolean(marks)?.unwrap_or(default),
        param,
    })
}

/// `/tokenize` knows no such field: it is reported like any other.
fn with_tokens(body: Body) -> Map<String, Value> {
    let mut fields = body.fields;
    if body.prompt.is_some() {
        fields.insert("tokens".into(), json!(true));
    }
    fields
}

/// A checked request for the text of tokens.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct DetokenizeRequest {
    /// The model asked for.
    pub(crate) model: Option<String>,
    /// Token ids below the bound of the context.
    pub(crate) tokens: Vec<u32>,
    /// Names of fields that change nothing.
    pub(crate) ignored: Vec<String>,
}

impl DetokenizeRequest {
    /// Reads and checks a body whose field `tokens` may hold token ids.
    pub(crate) fn read(body: Body, context: &Context) -> Result<Self, ApiError> {
        let mut fields = Fields::new(body.fields);
        let ignored = fields.sort_out(DETOKENIZE, context.strict)?;
        let tokens = tokens(body.prompt)?;
        check_ids(&tokens, "tokens", context.num_token_ids)?;
        Ok(Self {
            model: fields.string("model")?,
            tokens,
            ignored,
        })
    }
}

fn tokens(value: Option<PromptValue>) -> Result<Vec<u32>, ApiError> {
    match value {
        None => Err(missing("tokens")),
        Some(PromptValue::One(Prompt::Ids(ids))) => Ok(ids),
        Some(PromptValue::Empty) => Ok(Vec::new()),
        Some(PromptValue::Invalid(path, error @ (IdError::Negative | IdError::TooLarge))) => {
            Err(super::prompts::prompt_error(format!("tokens{path}"), error))
        }
        Some(PromptValue::Invalid(..) | PromptValue::One(_) | PromptValue::Many(_)) => {
            let message = "tokens must be an array of token ids";
            Err(ApiError::field("tokens", "invalid_type", message))
        }
    }
}

//! The body of `/v1/embeddings`.

use encoder::TruncationSide;

use super::fields::EMBEDDINGS;
use super::prompts::{path, prompts};
use super::reader::{Fields, invalid, missing};
use super::sampling::{Context, count};
use crate::error::ApiError;
use crate::json::{Body, Prompt};

/// How vectors are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EncodingFormat {
    /// A list of numbers.
    Float,
    /// Little-endian 32-bit floats in base64.
    Base64,
}

/// What happens to a text that is too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Truncation {
    /// Tokens that are kept; none for as many as the model takes.
    pub(crate) max_tokens: Option<usize>,
    /// Which end is given up.
    pub(crate) side: TruncationSide,
}

/// A checked embeddings request.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct EmbeddingRequest {
    /// The model asked for.
    pub(crate) model: Option<String>,
    /// The inputs, at least one and none empty; ids are below the bound of the context.
    pub(crate) inputs: Vec<Prompt>,
    /// How vectors are written.
    pub(crate) encoding_format: EncodingFormat,
    /// Features asked for.
    pub(crate) dimensions: Option<usize>,
    /// None refuses what is too long.
    pub(crate) truncation: Option<Truncation>,
    /// Names of fields that change nothing.
    pub(crate) ignored: Vec<String>,
}

impl EmbeddingRequest {
    /// Reads and checks a body.
    pub(crate) fn read(body: Body, context: &Context) -> Result<Self, ApiError> {
        let mut fields = Fields::new(body.fields);
        let ignored = fields.sort_out(EMBEDDINGS, context.strict)?;
        Ok(Self {
            model: fields.string("model")?,
            encoding_format: choice(
                &mut fields,
                "encoding_format",
                [
                    ("float", EncodingFormat::Float),
                    ("base64", EncodingFormat::Base64),
                ],
            )?,
            dimensions: count(&mut fields, "dimensions", 1)?,
            truncation: truncation(&mut fields)?,
            inputs: inputs(body.prompt, context)?,
            ignored,
        })
    }
}

/// One of two names; the first is the default.
fn choice<T: Copy>(
    fields: &mut Fields,
    name: &str,
    choices: [(&str, T); 2],
) -> Result<T, ApiError> {
    let Some(asked) = fields.string(name)? else {
        return Ok(choices[0].1);
    };
    let known = choices.iter().find(|(known, _)| *known == asked);
    known.map(|(_, value)| *value).ok_or_else(|| {
        let [(a, _), (b, _)] = choices;
        invalid(name, format_args!("must be `{a}` or `{b}`"))
    })
}

fn truncation(fields: &mut Fields) -> Result<Option<Truncation>, ApiError> {
    const NAME: &str = "truncate_prompt_tokens";
    let sides = [
        ("right", TruncationSide::Right),
        ("left", TruncationSide::Left),
    ];
    let side = choice(fields, "truncation_side", sides)?;
    let max_tokens = match fields.integer(NAME, -1..=i64::from(i32::MAX))? {
        None => return Ok(None),
        Some(0) => return Err(invalid(NAME, "must be -1 or at least 1, not 0")),
        // -1 is the limit of the model.
        Some(n) => usize::try_from(n).ok(),
    };
    Ok(Some(Truncation { max_tokens, side }))
}

fn inputs(
    value: Option<crate::json::PromptValue>,
    context: &Context,
) -> Result<Vec<Prompt>, ApiError> {
    let is_list = matches!(value, Some(crate::json::PromptValue::Many(_)));
    let max = context.limits.max_embedding_inputs;
    let inputs = prompts(value, "input", max, context.num_token_ids)?;
    let inputs = inputs.ok_or_else(|| missing("input"))?;
    let is_empty = |input: &Prompt| matches!(input, Prompt::Text(text) if text.is_empty());
    match inputs.iter().position(is_empty) {
        None => Ok(inputs),
        Some(i) => {
            let path = path("input", is_list.then_some(i));
            let message = format!("{path} must not be empty");
            Err(ApiError::field(path, "string_below_min_length", message))
        }
    }
}

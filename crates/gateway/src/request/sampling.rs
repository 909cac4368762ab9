//! The fields that chat and completions share: how much to generate, how to choose, when to stop.

use std::sync::Arc;

use backend::{SamplingParams, TokenId};
use model::GenerationDefaults;
use serde_json::Value;

use super::reader::{Above, Fields, integer, invalid, number, string, too_long, wrong_type};
use crate::config::RequestLimits;
use crate::error::ApiError;

/// What a request is checked against.
pub(crate) struct Context<'a> {
    /// Sizes and counts.
    pub(crate) limits: &'a RequestLimits,
    /// Sampling defaults in force.
    pub(crate) defaults: &'a GenerationDefaults,
    /// Token ids must be below it.
    pub(crate) num_token_ids: usize,
    /// Unknown fields are refused.
    pub(crate) strict: bool,
}

/// When a choice ends, beside the end of the text and the token limit.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Stop {
    /// Texts that end it.
    pub(crate) strings: Arc<[String]>,
    /// Tokens that end it.
    pub(crate) token_ids: Vec<TokenId>,
    /// The text that ended it stays in the answer.
    pub(crate) include: bool,
    /// The model's own end tokens do not end it.
    pub(crate) ignore_eos: bool,
}

/// The shared part of a request.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Generate {
    /// The name asked for.
    pub(crate) model: Option<String>,
    /// The token limit, where the request sets one.
    pub(crate) max_tokens: Option<usize>,
    /// Tokens before which nothing ends a choice.
    pub(crate) min_tokens: usize,
    /// Choices per prompt.
    pub(crate) n: usize,
    /// How tokens are chosen.
    pub(crate) sampling: SamplingParams,
    /// Seed, where the request sets one.
    pub(crate) seed: Option<u64>,
    /// When choices end.
    pub(crate) stop: Stop,
    /// Control tokens are left out of the text.
    pub(crate) skip_special_tokens: bool,
    /// Isolates prefix-cache entries within a key.
    pub(crate) cache_salt: Option<String>,
    /// Answer as a stream.
    pub(crate) stream: bool,
    /// Where the stream tells the usage.
    pub(crate) stream_usage: StreamUsage,
    /// The request named a service tier.
    pub(crate) service_tier: bool,
    /// Names of fields that were ignored.
    pub(crate) ignored: Vec<String>,
}

/// Where a stream tells the usage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StreamUsage {
    /// Nowhere.
    None,
    /// In an event of its own at the end.
    AtEnd,
    /// At the end, and in every event the counts so far.
    Continuous,
}

/// Token counts a request can name; more would never fit a context.
const MAX_COUNT: i64 = 1 << 31;

impl Generate {
    /// Reads the shared fields. `max_tokens` and log-probabilities differ between the routes and are
    /// read by them.
    pub(crate) fn read(fields: &mut Fields, context: &Context) -> Result<Self, ApiError> {
        let limits = context.limits;
        let n = fields
            .integer("n", 1..=i64::from(limits.max_n))?
            .unwrap_or(1);
        let stream = fields.boolean("stream")?.unwrap_or(false);
        let mut ignored = Vec::new();
        let stream_usage = stream_options(fields, stream, context.strict, &mut ignored)?;
        response_format(fields)?;
        Ok(Self {
            model: fields.string("model")?,
            max_tokens: None,
            min_tokens: count(fields, "min_tokens", 0)?.unwrap_or(0),
            n: n as usize,
            sampling: sampling(fields, context)?,
            seed: seed(fields)?,
            stop: Stop {
                strings: stop_strings(fields, limits)?.into(),
                token_ids: stop_token_ids(fields, context)?,
                include: fields
                    .boolean("include_stop_str_in_output")?
                    .unwrap_or(false),
                ignore_eos: fields.boolean("ignore_eos")?.unwrap_or(false),
            },
            skip_special_tokens: fields.boolean("skip_special_tokens")?.unwrap_or(true),
            cache_salt: cache_salt(fields)?,
            stream,
            stream_usage,
            service_tier: false,
            ignored,
        })
    }

    /// Checks what can only be checked once the token limit is known.
    ///
    /// Returns the limit in force: an open one is what the context leaves.
    pub(crate) fn token_limit(
        &self,
        prompt_tokens: usize,
        param: &'static str,
        max_model_len: usize,
    ) -> Result<usize, ApiError> {
        let too_long = |max_tokens| ApiError::ContextTooLong {
            param,
            at_least: "",
            prompt_tokens,
            max_tokens,
            max_model_len,
        };
        let left = max_model_len.saturating_sub(prompt_tokens);
        let limit = match self.max_tokens {
            Some(max_tokens) if max_tokens > left => return Err(too_long(max_tokens)),
            Some(max_tokens) => max_tokens,
            None if left == 0 => return Err(too_long(0)),
            None => left,
        };
        if self.min_tokens > limit {
            return Err(invalid(
                "min_tokens",
                format_args!("of {} exceeds the token limit of {limit}", self.min_tokens),
            ));
        }
        Ok(limit)
    }
}

/// A count of tokens.
pub(super) fn count(fields: &mut Fields, name: &str, min: i64) -> Result<Option<usize>, ApiError> {
    Ok(fields.integer(name, min..=MAX_COUNT)?.map(|n| n as usize))
}

fn sampling(fields: &mut Fields, context: &Context) -> Result<SamplingParams, ApiError> {
    let defaults = context.defaults;
    let greedy = (defaults.do_sample == Some(false)).then_some(0.0);
    let zero = Above::Inclusive(0.0);
    let float = |value: Option<f64>| value.map(|v| v as f32);
    let temperature = float(fields.number("temperature", zero, 2.0)?);
    let top_p = float(fields.number("top_p", Above::Exclusive(0.0), 1.0)?);
    let min_p = float(fields.number("min_p", zero, 1.0)?);
    let top_k = fields.integer("top_k", -1..=i64::from(i32::MAX))?;
    let two = Above::Inclusive(-2.0);
    Ok(SamplingParams {
        temperature: temperature
            .or(greedy)
            .or(defaults.temperature)
            .unwrap_or(1.0),
        top_k: top_k
            .map(|k| k.max(0) as u32)
            .or(defaults.top_k)
            .unwrap_or(0),
        // A share that rounds to zero still keeps the best token.
        top_p: top_p.or(defaults.top_p).unwrap_or(1.0),
        min_p: min_p.or(defaults.min_p).unwrap_or(0.0),
        presence_penalty: float(fields.number("presence_penalty", two, 2.0)?).unwrap_or(0.0),
        frequency_penalty: float(fields.number("frequency_penalty", two, 2.0)?).unwrap_or(0.0),
        repetition_penalty: repetition_penalty(fields)?
            .or(defaults.repetition_penalty)
            .unwrap_or(1.0),
        logit_bias: logit_bias(fields, context)?,
        num_logprobs: None,
    })
}

/// Divides logits, so neither zero nor anything that rounds to it is allowed.
fn repetition_penalty(fields: &mut Fields) -> Result<Option<f32>, ApiError> {
    let mut read = |name| fields.number(name, Above::Inclusive(0.01), 100.0);
    let (own, alias) = (read("repetition_penalty")?, read("repeat_penalty")?);
    Ok(own.or(alias).map(|p| p as f32))
}

fn logit_bias(fields: &mut Fields, context: &Context) -> Result<Vec<(TokenId, f32)>, ApiError> {
    let Some(map) = fields.object("logit_bias")? else {
        return Ok(Vec::new());
    };
    let max = context.limits.max_logit_bias;
    if map.len() > max {
        return Err(ApiError::field(
            "logit_bias",
            "object_above_max_properties",
            format!(
                "logit_bias has {} entries, more than the limit of {max}",
                map.len()
            ),
        ));
    }
    let mut biases: Vec<(TokenId, f32)> = Vec::with_capacity(map.len());
    for (key, value) in map {
        let shown: String = key.chars().take(32).collect();
        let path = format!("logit_bias.{shown}");
        // Parsing alone would let a sign pass.
        let is_number = key.bytes().all(|b| b.is_ascii_digit());
        let id = key.parse::<u32>().ok().filter(|_| is_number);
        let id = id.filter(|id| (*id as usize) < context.num_token_ids);
        let id = id.ok_or_else(|| {
            invalid(
                &path,
                format_args!("names no token: ids are below {}", context.num_token_ids),
            )
        })?;
        let bias = number(&value, &path, Above::Inclusive(-100.0), 100.0)?;
        if biases.iter().any(|(known, _)| *known == id) {
            return Err(invalid(&path, "names a token twice"));
        }
        biases.push((id, bias as f32));
    }
    Ok(biases)
}

/// Negative seeds keep their bits.
fn seed(fields: &mut Fields) -> Result<Option<u64>, ApiError> {
    let seed = fields.integer("seed", i64::MIN..=i64::MAX)?;
    Ok(seed.map(i64::cast_unsigned))
}

fn stop_strings(fields: &mut Fields, limits: &RequestLimits) -> Result<Vec<String>, ApiError> {
    let stops = match fields.take("stop") {
        None => return Ok(Vec::new()),
        Some(Value::String(stop)) => return Ok(vec![stop_string(stop, "stop", limits)?]),
        Some(Value::Array(stops)) => stops,
        Some(other) => {
            return Err(wrong_type(
                "stop",
                "a string or an array of strings",
                &other,
            ));
        }
    };
    if stops.len() > limits.max_stop {
        return Err(too_long("stop", stops.len(), limits.max_stop));
    }
    let read = |(i, stop): (usize, Value)| {
        let path = format!("stop[{i}]");
        stop_string(string(stop, &path)?, &path, limits)
    };
    stops.into_iter().enumerate().map(read).collect()
}

fn stop_string(stop: String, path: &str, limits: &RequestLimits) -> Result<String, ApiError> {
    let (len, max) = (stop.len(), limits.max_stop_bytes);
    let (code, message) = match len {
        0 => (
            "string_below_min_length",
            format!("{path} must not be empty"),
        ),
        _ if len > max => (
            "string_above_max_length",
            format!("{path} has {len} bytes, more than the limit of {max}"),
        ),
        _ => return Ok(stop),
    };
    Err(ApiError::field(path, code, message))
}

fn stop_token_ids(fields: &mut Fields, context: &Context) -> Result<Vec<TokenId>, ApiError> {
    let ids = fields.array("stop_token_ids")?.unwrap_or_default();
    let max = context.limits.max_stop_token_ids;
    if ids.len() > max {
        return Err(too_long("stop_token_ids", ids.len(), max));
    }
    let last = context.num_token_ids as i64 - 1;
    ids.iter()
        .enumerate()
        .map(|(i, id)| Ok(integer(id, &format!("stop_token_ids[{i}]"), 0..=last)? as TokenId))
        .collect()
}

fn cache_salt(fields: &mut Fields) -> Result<Option<String>, ApiError> {
    let salt = fields.string("cache_salt")?;
    match &salt {
        Some(salt) if salt.is_empty() || salt.len() > 1024 => Err(invalid(
            "cache_salt",
            format_args!("must have 1 to 1024 bytes, not {}", salt.len()),
        )),
        _ => Ok(salt),
    }
}

/// Reads `stream_options`.
fn stream_options(
    fields: &mut Fields,
    stream: bool,
    strict: bool,
    ignored: &mut Vec<String>,
) -> Result<StreamUsage, ApiError> {
    let Some(options) = fields.object("stream_options")? else {
        return Ok(StreamUsage::None);
    };
    if !stream {
        return Err(invalid("stream_options", "is only allowed with stream"));
    }
    let mut options = Fields::nested(options, "stream_options");
    let at_end = options.boolean("include_usage")?.unwrap_or(false);
    let continuous = options.boolean("continuous_usage_stats")?.unwrap_or(false);
    // Padding against traffic analysis changes no output.
    if options.take("include_obfuscation").is_some() {
        ignored.push(options.path("include_obfuscation"));
    }
    ignored.extend(options.rest(strict)?);
    Ok(match (at_end, continuous) {
        (false, _) => StreamUsage::None,
        (true, false) => StreamUsage::AtEnd,
        (true, true) => StreamUsage::Continuous,
    })
}

fn response_format(fields: &mut Fields) -> Result<(), ApiError> {
    let Some(format) = fields.object("response_format")? else {
        return Ok(());
    };
    match format.get("type") {
        Some(Value::String(kind)) if kind == "text" => Ok(()),
        Some(Value::String(kind)) if kind == "json_object" || kind == "json_schema" => {
            Err(ApiError::unsupported(
                "response_format",
                "this version only answers with free text",
            ))
        }
        Some(Value::String(_)) => Err(invalid("response_format.type", "is not a known format")),
        Some(other) => Err(wrong_type("response_format.type", "a string", other)),
        None => Err(super::reader::missing("response_format.type")),
    }
}

//! The body of `/v1/chat/completions`.

use serde_json::{Map, Value, json};

use super::fields::CHAT;
use super::message::Reading;
use super::reader::{Fields, invalid, missing, too_long, wrong_type};
use super::sampling::{Context, Generate, count};
use crate::error::ApiError;
use crate::json::Body;
use crate::template::RESERVED;

/// A checked chat request.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ChatRequest {
    /// The shared part.
    pub(crate) generate: Generate,
    /// The conversation, as a template reads it.
    pub(crate) messages: Vec<Value>,
    /// Variables for the template.
    pub(crate) kwargs: Map<String, Value>,
}

impl ChatRequest {
    /// Reads and checks a body.
    pub(crate) fn read(body: Body, context: &Context) -> Result<Self, ApiError> {
        let mut map = body.fields;
        if body.prompt.is_some() {
            map.insert("prompt".into(), json!(true));
        }
        let mut fields = Fields::new(map);
        let service_tier = fields.has("service_tier");
        let mut ignored = fields.sort_out(CHAT, context.strict)?;
        refuse_tools(&mut fields)?;
        modalities(&mut fields)?;
        let mut generate = Generate::read(&mut fields, context)?;
        let old_limit = count(&mut fields, "max_tokens", 1)?;
        generate.max_tokens = count(&mut fields, "max_completion_tokens", 1)?.or(old_limit);
        generate.service_tier = service_tier;
        generate.sampling.num_logprobs = logprobs(&mut fields, context)?;
        let mut reading = Reading {
            limits: context.limits,
            strict: context.strict,
            ignored: Vec::new(),
        };
        let messages = messages(&mut fields, &mut reading)?;
        let kwargs = kwargs(&mut fields)?;
        ignored.extend(reading.ignored);
        generate.ignored.extend(ignored);
        Ok(Self {
            generate,
            messages,
            kwargs,
        })
    }
}

/// The messages of a conversation, at least one.
pub(super) fn messages(fields: &mut Fields, reading: &mut Reading) -> Result<Vec<Value>, ApiError> {
    let messages = fields
        .array("messages")?
        .ok_or_else(|| missing("messages"))?;
    if messages.is_empty() {
        return Err(ApiError::field(
            "messages",
            "empty_array",
            "messages must not be empty",
        ));
    }
    if messages.len() > reading.limits.max_messages {
        return Err(too_long(
            "messages",
            messages.len(),
            reading.limits.max_messages,
        ));
    }
    let read = |(i, message)| reading.message(message, &format!("messages[{i}]"));
    messages.into_iter().enumerate().map(read).collect()
}

/// The number of alternatives, when log-probabilities are wanted.
fn logprobs(fields: &mut Fields, context: &Context) -> Result<Option<u32>, ApiError> {
    let wanted = fields.boolean("logprobs")?.unwrap_or(false);
    let top = fields.integer("top_logprobs", 0..=i64::from(context.limits.max_logprobs))?;
    match (wanted, top) {
        (true, top) => Ok(Some(top.unwrap_or(0) as u32)),
        (false, None) => Ok(None),
        (false, Some(_)) => Err(invalid("top_logprobs", "needs logprobs: true")),
    }
}

/// Variables for the template.
pub(super) fn kwargs(fields: &mut Fields) -> Result<Map<String, Value>, ApiError> {
    let kwargs = fields.object("chat_template_kwargs")?.unwrap_or_default();
    match kwargs.keys().find(|key| RESERVED.contains(&key.as_str())) {
        Some(key) => Err(invalid(
            &format!("chat_template_kwargs.{key}"),
            "is set by the server",
        )),
        None => Ok(kwargs),
    }
}

fn modalities(fields: &mut Fields) -> Result<(), ApiError> {
    match fields.array("modalities")?.as_deref() {
        None => Ok(()),
        Some([Value::String(only)]) if only == "text" => Ok(()),
        Some(_) => Err(ApiError::unsupported(
            "modalities",
            "this server answers with text only",
        )),
    }
}

fn refuse_tools(fields: &mut Fields) -> Result<(), ApiError> {
    if let Some(tools) = fields.array("tools")? {
        if tools.is_empty() {
            return Err(ApiError::field(
                "tools",
                "empty_array",
                "tools must not be empty",
            ));
        }
        return Err(ApiError::unsupported(
            "tools",
            "this version does not call tools",
        ));
    }
    match fields.take("tool_choice") {
        None => {}
        Some(Value::String(choice)) if choice == "none" => {}
        Some(Value::String(_) | Value::Object(_)) => {
            return Err(invalid("tool_choice", "is only allowed with tools"));
        }
        Some(other) => return Err(wrong_type("tool_choice", "a string or an object", &other)),
    }
    // Without tools there are no calls to make in parallel.
    fields.boolean("parallel_tool_calls").map(|_| ())
}

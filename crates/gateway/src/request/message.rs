//! Messages of a conversation, checked and turned into what a chat template reads.

use serde_json::{Map, Value, json};

use super::reader::{Fields, array, invalid, missing, object, string, wrong_type};
use crate::config::RequestLimits;
use crate::error::ApiError;

/// What reading messages yields beside the messages.
pub(super) struct Reading<'a> {
    pub(super) limits: &'a RequestLimits,
    pub(super) strict: bool,
    /// Names of fields that were ignored.
    pub(super) ignored: Vec<String>,
}

const ROLES: &[&str] = &[
    "system",
    "developer",
    "user",
    "assistant",
    "tool",
    "function",
];

impl Reading<'_> {
    /// Reads the message at `path`.
    pub(super) fn message(&mut self, value: Value, path: &str) -> Result<Value, ApiError> {
        let mut fields = Fields::nested(object(value, path)?, path);
        let role_path = fields.path("role");
        let role = fields.string("role")?.ok_or_else(|| missing(&role_path))?;
        if !ROLES.contains(&role.as_str()) {
            let roles = ROLES.join(", ");
            return Err(invalid(&role_path, format_args!("must be one of {roles}")));
        }
        let mut message = Map::new();
        message.insert("role".into(), json!(role));
        let content = self.content(&mut fields, &role)?;
        let calls = match role.as_str() {
            "assistant" => tool_calls(&mut fields)?,
            _ => None,
        };
        if content.is_null() && calls.is_none() && !matches!(role.as_str(), "function") {
            return Err(missing(&fields.path("content")));
        }
        message.insert("content".into(), content);
        if let Some(calls) = calls {
            message.insert("tool_calls".into(), calls);
        }
        if let Some(name) = fields.string("name")? {
            message.insert("name".into(), json!(name));
        }
        match role.as_str() {
            "assistant" => {
                assistant_fields(&mut fields, &mut message)?;
                // Part of every answer, which clients send back as it came.
                if fields.take("annotations").is_some() {
                    self.ignored.push(fields.path("annotations"));
                }
            }
            "tool" => {
                let id_path = fields.path("tool_call_id");
                let id = fields.string("tool_call_id")?;
                let id = id.ok_or_else(|| missing(&id_path))?;
                message.insert("tool_call_id".into(), json!(id));
            }
            _ => {}
        }
        self.ignored.extend(fields.rest(self.strict)?);
        Ok(Value::Object(message))
    }

    /// A string, or text parts joined without anything between them.
    fn content(&mut self, fields: &mut Fields, role: &str) -> Result<Value, ApiError> {
        let path = fields.path("content");
        let parts = match fields.take("content") {
            None => return Ok(Value::Null),
            Some(Value::String(text)) => return Ok(Value::String(text)),
            Some(Value::Array(parts)) => parts,
            Some(other) => {
                return Err(wrong_type(&path, "a string or an array of parts", &other));
            }
        };
        let max = self.limits.max_content_parts;
        if parts.len() > max {
            return Err(super::reader::too_long(&path, parts.len(), max));
        }
        let mut text = String::new();
        for (i, part) in parts.into_iter().enumerate() {
            let path = format!("{path}[{i}]");
            text.push_str(&self.part(part, &path, role)?);
        }
        Ok(Value::String(text))
    }

    fn part(&mut self, part: Value, path: &str, role: &str) -> Result<String, ApiError> {
        let mut part = Fields::nested(object(part, path)?, path);
        let type_path = part.path("type");
        let kind = part.string("type")?.ok_or_else(|| missing(&type_path))?;
        let field = match kind.as_str() {
            "text" => "text",
            "refusal" if role == "assistant" => "refusal",
            "image_url" | "input_audio" | "file" | "video_url" | "audio_url" => {
                return Err(ApiError::field(
                    &type_path,
                    "unsupported_content_type",
                    format!("{type_path} is {kind}; this server handles text only"),
                ));
            }
            _ => return Err(invalid(&type_path, "is not a known content type")),
        };
        let text_path = part.path(field);
        let text = part.string(field)?.ok_or_else(|| missing(&text_path))?;
        self.ignored.extend(part.rest(self.strict)?);
        Ok(text)
    }
}

fn assistant_fields(fields: &mut Fields, message: &mut Map<String, Value>) -> Result<(), ApiError> {
    let old_name = fields.string("reasoning_content")?;
    let reasoning = fields.string("reasoning")?.or(old_name);
    if let Some(reasoning) = reasoning {
        message.insert("reasoning_content".into(), json!(reasoning));
    }
    if let Some(refusal) = fields.string("refusal")? {
        message.insert("refusal".into(), json!(refusal));
    }
    Ok(())
}

/// Earlier tool calls. Arguments stay the text they are, whether or not it is JSON.
fn tool_calls(fields: &mut Fields) -> Result<Option<Value>, ApiError> {
    let path = fields.path("tool_calls");
    let Some(calls) = fields.take("tool_calls") else {
        return Ok(None);
    };
    let calls = array(calls, &path)?;
    if calls.is_empty() {
        return Ok(None);
    }
    let mut read = Vec::with_capacity(calls.len());
    for (i, call) in calls.into_iter().enumerate() {
        let path = format!("{path}[{i}]");
        let mut call = Fields::nested(object(call, &path)?, &path);
        let kind = call.string("type")?.unwrap_or_else(|| "function".into());
        if kind != "function" {
            return Err(ApiError::unsupported(
                call.path("type"),
                "only function tools are supported",
            ));
        }
        let function_path = call.path("function");
        let function = call
            .take("function")
            .ok_or_else(|| missing(&function_path))?;
        let mut function = Fields::nested(object(function, &function_path)?, &function_path);
        let mut required = |name: &str| {
            let path = function.path(name);
            let value = function.take(name).ok_or_else(|| missing(&path))?;
            string(value, &path)
        };
        let (name, arguments) = (required("name")?, required("arguments")?);
        let mut out = Map::new();
        if let Some(id) = call.string("id")? {
            out.insert("id".into(), json!(id));
        }
        out.insert("type".into(), json!("function"));
        out.insert(
            "function".into(),
            json!({"name": name, "arguments": arguments}),
        );
        read.push(Value::Object(out));
    }
    Ok(Some(Value::Array(read)))
}

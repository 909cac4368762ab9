//! How messages are handed to a template. Templates disagree on three points; what fits most is tried
//! first, and what others expect when a template fails on it.

use serde_json::{Value, json};

use super::Conversation;

/// How a message says that it has no content beside its tool calls.
#[derive(Clone, Copy)]
enum NoContent {
    /// The key is absent, as transformers hands it in.
    Absent,
    Null,
    Empty,
}

/// The forms of a conversation's messages, the likeliest first. Arguments of tool calls are objects,
/// because most templates print them as JSON, or else the texts that the client sent. Reasoning stands
/// under both names that templates read.
pub(super) fn forms(conversation: &Conversation) -> impl Iterator<Item = Vec<Value>> + '_ {
    let has_null = conversation.messages.iter().any(|m| m["content"].is_null());
    let ways: &[NoContent] = match has_null {
        true => &[NoContent::Absent, NoContent::Null, NoContent::Empty],
        false => &[NoContent::Absent],
    };
    let parsed = conversation.parsed.as_deref();
    ways.iter().flat_map(move |way| {
        let sources = parsed.into_iter().chain([&conversation.messages[..]]);
        sources.map(|messages| messages.iter().map(|m| form(m, *way)).collect())
    })
}

fn form(message: &Value, no_content: NoContent) -> Value {
    let mut message = message.clone();
    let Some(fields) = message.as_object_mut() else {
        return message;
    };
    if fields.get("content").is_some_and(Value::is_null) {
        match no_content {
            NoContent::Absent => {
                fields.shift_remove("content");
            }
            NoContent::Null => {}
            NoContent::Empty => fields["content"] = json!(""),
        }
    }
    if let Some(reasoning) = fields.get("reasoning_content").cloned() {
        fields.entry("thinking").or_insert(reasoning);
    }
    message
}

/// The messages with JSON texts of tool arguments replaced by what they say; none when no message
/// has any.
pub(crate) fn with_parsed_arguments(messages: &[Value]) -> Option<Vec<Value>> {
    let mut changed = None;
    for (i, message) in messages.iter().enumerate() {
        let calls = message["tool_calls"].as_array().map_or(0, Vec::len);
        for call in 0..calls {
            let text = message["tool_calls"][call]["function"]["arguments"].as_str();
            let Some(Ok(object @ Value::Object(_))) = text.map(serde_json::from_str::<Value>)
            else {
                continue;
            };
            let changed = changed.get_or_insert_with(|| messages.to_vec());
            changed[i]["tool_calls"][call]["function"]["arguments"] = object;
        }
    }
    changed
}

//! Conversations and their ChatML text, as the chat template in `model/tokenizer_config.json` renders
//! them. Owns no tokenisation and no content.

use serde_json::{Value, json};

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Instructions before the conversation.
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
    /// The result of a tool call.
    Tool,
}

impl Role {
    /// The name used in ChatML and in the chat API.
    pub fn name(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::Tool => "tool",
        }
    }
}

/// One turn. A tool call is an assistant turn whose text holds the `<tool_call>` block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A message of the given role.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self {
            role,
            content: content.into(),
        }
    }

    /// The message as the chat API writes it; `<tool_call>` blocks become `tool_calls`.
    pub fn to_json(&self) -> Value {
        let call = (self.role == Role::Assistant)
            .then(|| {
                self.content
                    .strip_prefix("<tool_call>\n")?
                    .strip_suffix("\n</tool_call>")
            })
            .flatten()
            .and_then(|call| serde_json::from_str::<Value>(call).ok());
        match call {
            Some(function) => json!({"role": "assistant", "content": "",
                "tool_calls": [{"type": "function", "function": function}]}),
            None => json!({"role": self.role.name(), "content": self.content}),
        }
    }
}

/// A part of a rendered conversation: its text, and whether the model is to learn to write it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// ChatML text, control tokens spelled out.
    pub text: String,
    /// True for what the assistant says, its `<|im_end|>` included.
    pub learned: bool,
}

/// The text around the list of tools in the system turn.
pub const TOOLS_HEAD: &str = "# Tools\n\nYou can call these functions:\n<tools>";
/// See [`TOOLS_HEAD`].
pub const TOOLS_TAIL: &str = "\n</tools>\n\nTo call one, answer with its name and arguments:\n<tool_call>\n{\"name\": ..., \"arguments\": ...}\n</tool_call>";

/// Renders a conversation; `tools` are function descriptions in the form of the chat API.
pub fn render(tools: &[Value], messages: &[Message]) -> Vec<Piece> {
    let mut pieces: Vec<Piece> = Vec::new();
    let mut push = |text: String, learned: bool| match pieces.last_mut() {
        Some(last) if last.learned == learned => last.text.push_str(&text),
        _ => pieces.push(Piece { text, learned }),
    };
    let (system, turns) = match messages.split_first() {
        Some((first, rest)) if first.role == Role::System => (Some(first.content.as_str()), rest),
        _ => (None, messages),
    };
    if system.is_some() || !tools.is_empty() {
        let mut parts: Vec<String> = system.map(str::to_owned).into_iter().collect();
        if !tools.is_empty() {
            let list: String = tools
                .iter()
                .map(|tool| format!("\n{}", spaced_json(tool)))
                .collect();
            parts.push(format!("{TOOLS_HEAD}{list}{TOOLS_TAIL}"));
        }
        push(
            format!("<|im_start|>system\n{}<|im_end|>\n", parts.join("\n\n")),
            false,
        );
    }
    for message in turns {
        match message.role {
            Role::Assistant => {
                push("<|im_start|>assistant\n".into(), false);
                push(format!("{}<|im_end|>", message.content), true);
                push("\n".into(), false);
            }
            Role::Tool => push(
                format!(
                    "<|im_start|>user\n<tool_response>\n{}\n</tool_response><|im_end|>\n",
                    message.content
                ),
                false,
            ),
            Role::System | Role::User => {
                push(
                    format!(
                        "<|im_start|>{}\n{}<|im_end|>\n",
                        message.role.name(),
                        message.content
                    ),
                    false,
                );
            }
        }
    }
    pieces
}

/// The text the model continues: the conversation so far and the opening of the assistant's turn.
pub fn render_prompt(tools: &[Value], messages: &[Message]) -> String {
    let mut text: String = render(tools, messages)
        .into_iter()
        .map(|piece| piece.text)
        .collect();
    text.push_str("<|im_start|>assistant\n");
    text
}

/// JSON on one line with `", "` and `": "`, as Python's `json.dumps` and chat templates write it.
pub fn spaced_json(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let fields: Vec<String> = map
                .iter()
                .map(|(k, v)| format!("{}: {}", Value::from(k.as_str()), spaced_json(v)))
                .collect();
            format!("{{{}}}", fields.join(", "))
        }
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(spaced_json).collect();
            format!("[{}]", items.join(", "))
        }
        other => other.to_string(),
    }
}

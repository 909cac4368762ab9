//! The fields of a streamed OpenAI object that the load test looks at, read without keeping any of
//! the text. A chunk of either endpoint fits: chat deltas and completion texts.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Visitor};

/// One streamed object.
#[derive(Debug, Deserialize)]
pub struct Chunk {
    /// The model that says it answers.
    #[serde(default)]
    pub model: Option<String>,
    /// The choices that move on, none in a usage chunk.
    #[serde(default)]
    pub choices: Option<Vec<Choice>>,
    /// Token counts.
    #[serde(default)]
    pub usage: Option<Usage>,
    /// An error in the middle of a stream.
    #[serde(default)]
    pub error: Option<serde_json::Value>,
}

/// One choice of a chunk.
#[derive(Debug, Deserialize)]
pub struct Choice {
    /// Which of the request's choices.
    #[serde(default)]
    pub index: u32,
    #[serde(default)]
    delta: Option<Delta>,
    #[serde(default)]
    text: Text,
    /// Set on the last chunk of the choice.
    #[serde(default)]
    pub finish_reason: Option<String>,
}

impl Choice {
    /// Whether a reader sees something new: a non-empty text, reasoning, refusal or tool call.
    /// A role alone or an empty delta is not a token.
    pub fn bears_token(&self) -> bool {
        self.text.0 || self.delta.as_ref().is_some_and(Delta::bears_token)
    }
}

impl Choice {
    /// Whether what a reader came for moves on: text, a refusal or a tool call, but no reasoning.
    pub fn is_visible(&self) -> bool {
        self.text.0 || self.delta.as_ref().is_some_and(Delta::is_visible)
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Delta {
    content: Text,
    reasoning_content: Text,
    reasoning: Text,
    refusal: Text,
    tool_calls: Option<Vec<ToolCall>>,
}

impl Delta {
    fn bears_token(&self) -> bool {
        self.reasoning_content.0 || self.reasoning.0 || self.is_visible()
    }

    fn is_visible(&self) -> bool {
        let call = |call: &ToolCall| {
            call.function
                .as_ref()
                .is_some_and(|f| f.name.0 || f.arguments.0)
        };
        self.content.0
            || self.refusal.0
            || self
                .tool_calls
                .as_ref()
                .is_some_and(|calls| calls.iter().any(call))
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ToolCall {
    function: Option<Function>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Function {
    name: Text,
    arguments: Text,
}

/// The token counts of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Usage {
    /// Prompt tokens, chat template included.
    pub prompt_tokens: u64,
    /// Generated tokens, reasoning included.
    #[serde(default)]
    pub completion_tokens: u64,
    #[serde(default)]
    prompt_tokens_details: Option<PromptDetails>,
}

impl Usage {
    /// Prompt tokens that came from the prefix cache, zero where the server does not say.
    pub fn cached_tokens(&self) -> u64 {
        self.prompt_tokens_details
            .and_then(|d| d.cached_tokens)
            .unwrap_or(0)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
struct PromptDetails {
    #[serde(default)]
    cached_tokens: Option<u64>,
}

/// Whether a string is there and not empty; the string itself is not kept.
#[derive(Debug, Clone, Copy, Default)]
struct Text(bool);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;
        impl Visitor<'_> for TextVisitor {
            type Value = Text;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or null")
            }

            fn visit_str<E>(self, text: &str) -> Result<Text, E> {
                Ok(Text(!text.is_empty()))
            }

            fn visit_unit<E>(self) -> Result<Text, E> {
                Ok(Text(false))
            }
        }
        deserializer.deserialize_any(TextVisitor)
    }
}

/// The visible text of a streamed object, for a conversation that goes on with it. Apart from
/// [`Chunk`], which keeps no text, because most runs need none.
pub fn visible_text(data: &[u8]) -> Option<String> {
    let chunk: serde_json::Value = serde_json::from_slice(data).ok()?;
    let choice = &chunk["choices"][0];
    let text = choice["delta"]["content"].as_str();
    text.or(choice["text"].as_str()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_counts_as_a_token() {
        let cases = [
            (
                r#"{"index":0,"delta":{"role":"assistant","content":""}}"#,
                false,
            ),
            (
                r#"{"index":0,"delta":{"role":"assistant","content":null}}"#,
                false,
            ),
            (r#"{"index":0,"delta":{},"finish_reason":"stop"}"#, false),
            (r#"{"index":0,"delta":{"content":"x"}}"#, true),
            (r#"{"index":0,"delta":{"content":"\u00e9\n"}}"#, true),
            (r#"{"index":0,"delta":{"reasoning_content":"x"}}"#, true),
            (r#"{"index":0,"delta":{"reasoning":"x"}}"#, true),
            (r#"{"index":0,"delta":{"refusal":"x"}}"#, true),
            (
                r#"{"index":0,"delta":{"tool_calls":[{"index":0,"id":"1","function":{"name":"f","arguments":""}}]}}"#,
                true,
            ),
            (
                r#"{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{"}}]}}"#,
                true,
            ),
            (r#"{"index":0,"delta":{"tool_calls":[{"index":0}]}}"#, false),
            (
                r#"{"index":0,"text":"x","logprobs":null,"finish_reason":null}"#,
                true,
            ),
            (r#"{"index":0,"text":"","finish_reason":"length"}"#, false),
        ];
        for (json, expected) in cases {
            let choice: Choice = serde_json::from_str(json).unwrap();
            assert_eq!(choice.bears_token(), expected, "{json}");
            let is_reasoning = json.contains("reasoning");
            assert_eq!(choice.is_visible(), expected && !is_reasoning, "{json}");
        }
    }

    #[test]
    fn usage_and_error_are_read() {
        let json = r#"{"id":"1","choices":[],"usage":{"prompt_tokens":9,"completion_tokens":4,"total_tokens":13,"prompt_tokens_details":{"cached_tokens":3}}}"#;
        let usage = serde_json::from_str::<Chunk>(json).unwrap().usage.unwrap();
        assert_eq!(
            (
                usage.prompt_tokens,
                usage.completion_tokens,
                usage.cached_tokens()
            ),
            (9, 4, 3)
        );
        let none: Chunk =
            serde_json::from_str(r#"{"choices":null,"usage":null,"error":null}"#).unwrap();
        assert!(none.usage.is_none() && none.error.is_none());
        assert!(
            serde_json::from_str::<Chunk>(r#"{"error":{"message":"m"}}"#)
                .unwrap()
                .error
                .is_some()
        );
        assert!(serde_json::from_str::<Chunk>(r#"{"choices":[{"text":5}]}"#).is_err());
    }
}

//! From the texts of a request to the token ids of a language model, and back: what generating and
//! tokenising share.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::info::not_found;
use crate::config::RequestLimits;
use crate::error::ApiError;
use crate::gateway::{Gateway, Model};
use crate::request::Context;
use crate::template::{Conversation, RenderError, with_parsed_arguments};
use crate::text::{Detokenizer, LeadingSpace};

/// A language model's view of text.
pub(super) struct PromptEncoder {
    pub(super) gateway: Gateway,
    pub(super) model: Arc<Model>,
}

impl PromptEncoder {
    /// Sizes and counts a request may have.
    pub(super) fn limits(&self) -> &RequestLimits {
        &self.gateway.config.limits
    }

    /// What its requests are checked against.
    pub(super) fn context(&self) -> Context<'_> {
        let config = &self.gateway.config;
        Context {
            limits: &config.limits,
            defaults: &self.model.defaults,
            num_token_ids: self.model.num_token_ids,
            strict: config.strict_params,
        }
    }

    /// The name under which an answer goes out.
    pub(super) fn served_name(&self, asked: Option<&str>) -> Result<&str, ApiError> {
        let config = &self.gateway.config;
        let main = config.served_model_names.first().map_or("", String::as_str);
        match asked {
            None | Some("" | "default") => Ok(main),
            Some(asked) => match config.served_model_names.iter().find(|name| *name == asked) {
                Some(name) => Ok(name),
                None if embeds(&self.gateway, asked) => Err(ApiError::field(
                    "model",
                    "unsupported_model",
                    format!("the model `{asked}` does not generate text: use /v1/embeddings"),
                )),
                None if config.accept_any_model => Ok(main),
                None => Err(not_found(&self.gateway, asked)),
            },
        }
    }

    /// Tokens of a conversation as the model reads it; `add_generation_prompt` ends them where an
    /// answer begins.
    ///
    /// # Errors
    /// A conversation that the template refuses, or one that cannot fit the model.
    pub(super) fn conversation(
        &self,
        messages: Vec<Value>,
        kwargs: Map<String, Value>,
        add_generation_prompt: bool,
    ) -> Result<Vec<u32>, ApiError> {
        let rendered = self.render(messages, kwargs, add_generation_prompt)?;
        self.check_length(rendered.len(), "messages")?;
        let ids = self.model.tokenizer.encode_rendered(&rendered);
        ids.map_err(|e| ApiError::internal(&format!("tokenizer: {e}")))
    }

    /// Tokens of a raw prompt; its beginning is marked where the checkpoint does so and `marks` asks.
    ///
    /// # Errors
    /// A prompt that cannot fit the model; `param` is the field that holds it.
    pub(super) fn raw(
        &self,
        text: &str,
        marks: bool,
        param: &'static str,
    ) -> Result<Vec<u32>, ApiError> {
        self.check_length(text.len(), param)?;
        let tokenizer = &self.model.tokenizer;
        let ids = if marks {
            tokenizer.encode_raw(text)
        } else {
            tokenizer.encode_rendered(text)
        };
        ids.map_err(|e| ApiError::internal(&format!("tokenizer: {e}")))
    }

    /// The text of tokens.
    pub(super) fn text(&self, ids: &[u32], skip_special: bool) -> String {
        let pieces = self.model.tokenizer.pieces();
        let mut decoder = Detokenizer::new(pieces, LeadingSpace::Decode, skip_special);
        let mut text: String = ids.iter().map(|id| decoder.push(pieces, *id)).collect();
        text.push_str(&decoder.flush());
        text
    }

    /// The prompt of a conversation, with its control tokens and no others.
    fn render(
        &self,
        mut messages: Vec<Value>,
        kwargs: Map<String, Value>,
        add_generation_prompt: bool,
    ) -> Result<String, ApiError> {
        let template = self.model.template.as_ref().ok_or_else(|| {
            ApiError::unsupported(
                "messages",
                "this model has no chat template; use /v1/completions, or start the server with one",
            )
        })?;
        // What is far too long for the model is said to be that, before a template gives up on it.
        let contents = messages
            .iter()
            .filter_map(|message| message["content"].as_str());
        self.check_length(contents.map(str::len).sum(), "messages")?;
        let knows_developer = template.mentions("developer");
        for message in &mut messages {
            if !knows_developer && message["role"] == "developer" {
                message["role"] = "system".into();
            }
        }
        let mut parsed = with_parsed_arguments(&messages);
        for message in messages.iter_mut().chain(parsed.iter_mut().flatten()) {
            self.escape(message);
        }
        let mut own = Value::Object(kwargs);
        self.escape(&mut own);
        let mut variables = self.gateway.config.chat_template_kwargs.clone();
        if let Value::Object(own) = own {
            variables.extend(own);
        }
        let conversation = Conversation {
            messages,
            parsed,
            tools: None,
            kwargs: variables,
            omits_generation_prompt: !add_generation_prompt,
        };
        template.render(&conversation).map_err(|error| match error {
            RenderError::Refused(_) | RenderError::TooLarge => {
                ApiError::field("messages", "invalid_value", error.to_string())
            }
        })
    }

    /// Breaks up spellings of control tokens in every string and key.
    fn escape(&self, value: &mut Value) {
        match value {
            Value::String(text) => {
                if let Some(escaped) = self.model.tokenizer.escape(text) {
                    *text = escaped;
                }
            }
            Value::Array(items) => items.iter_mut().for_each(|item| self.escape(item)),
            Value::Object(fields) => {
                let own = std::mem::take(fields);
                fields.extend(own.into_iter().map(|(mut key, mut field)| {
                    if let Some(escaped) = self.model.tokenizer.escape(&key) {
                        key = escaped;
                    }
                    self.escape(&mut field);
                    (key, field)
                }));
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }

    /// Refuses a text that cannot fit before it is tokenised: no token has more bytes than the longest.
    fn check_length(&self, num_bytes: usize, param: &'static str) -> Result<(), ApiError> {
        let longest = self.model.tokenizer.pieces().longest().max(1);
        let at_least = num_bytes / longest;
        if at_least <= self.model.max_model_len {
            return Ok(());
        }
        Err(ApiError::ContextTooLong {
            param,
            at_least: "at least ",
            prompt_tokens: at_least,
            max_tokens: 0,
            max_model_len: self.model.max_model_len,
        })
    }
}

/// Whether a name is that of the embedding model.
fn embeds(gateway: &Gateway, name: &str) -> bool {
    let served = gateway.any_encoder();
    served.is_some_and(|served| served.names.iter().any(|known| known == name))
}

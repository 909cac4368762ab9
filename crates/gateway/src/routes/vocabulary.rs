//! Whose tokens a request asks for: the language model's, or the embedding model's.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::embeddings;
use super::prompt_encoder::PromptEncoder;
use crate::error::ApiError;
use crate::gateway::{Gateway, ServedEncoder};
use crate::request::Context;

/// What turns texts into token ids and back.
pub(super) enum Vocabulary {
    /// That of the language model.
    Language(PromptEncoder),
    /// That of the embedding model.
    Embedding(Gateway, Arc<ServedEncoder>),
}
use Vocabulary::{Embedding, Language};

impl Vocabulary {
    /// The embedding model's where the request names it or nothing else is served.
    ///
    /// # Errors
    /// The 503 that says why there is none now.
    pub(super) fn choose(gateway: &Gateway, asked: Option<&str>) -> Result<Self, ApiError> {
        let names_it =
            |served: &ServedEncoder| served.names.iter().any(|name| Some(&**name) == asked);
        let is_embedding = gateway.serves_embeddings_only()
            || gateway.any_encoder().is_some_and(|served| names_it(served));
        if is_embedding {
            let served = Arc::clone(gateway.encoder()?);
            return Ok(Embedding(gateway.clone(), served));
        }
        Ok(Language(PromptEncoder {
            gateway: gateway.clone(),
            model: Arc::clone(gateway.model()?),
        }))
    }

    /// What its requests are checked against.
    pub(super) fn context(&self) -> Context<'_> {
        match self {
            Language(encoder) => encoder.context(),
            Embedding(gateway, served) => Context {
                limits: &gateway.config.limits,
                // Nothing is generated.
                defaults: &gateway.config.generation_override,
                num_token_ids: served.encoder.info().num_token_ids,
                strict: gateway.config.strict_params,
            },
        }
    }

    /// Refuses a model that is not this one.
    ///
    /// # Errors
    /// One that names those served.
    pub(super) fn check_name(&self, asked: Option<&str>) -> Result<(), ApiError> {
        match self {
            Language(encoder) => encoder.served_name(asked).map(drop),
            Embedding(gateway, served) => embeddings::served_name(gateway, served, asked).map(drop),
        }
    }

    /// Tokens that the model takes.
    pub(super) fn max_model_len(&self) -> usize {
        match self {
            Language(encoder) => encoder.model.max_model_len,
            Embedding(_, served) => served.encoder.info().max_tokens,
        }
    }

    /// Tokens of a raw text; its marks are those that the model reads, where `marks` asks.
    ///
    /// # Errors
    /// A text that cannot fit the model; `param` is the field that holds it.
    pub(super) fn raw(
        &self,
        text: &str,
        marks: bool,
        param: &'static str,
    ) -> Result<Vec<u32>, ApiError> {
        match self {
            Language(encoder) => encoder.raw(text, marks, param),
            Embedding(_, served) => {
                let at_least = served.tokenizer.min_tokens(text);
                let max_model_len = self.max_model_len();
                if at_least > max_model_len {
                    return Err(ApiError::ContextTooLong {
                        param,
                        at_least: "at least ",
                        prompt_tokens: at_least,
                        max_tokens: 0,
                        max_model_len,
                    });
                }
                let ids = served.tokenizer.encode_marked(text, marks);
                ids.map_err(|error| ApiError::internal(&format!("tokenizer: {error}")))
            }
        }
    }

    /// Tokens of a conversation.
    ///
    /// # Errors
    /// Where the model reads none, or not this one.
    pub(super) fn conversation(
        &self,
        messages: Vec<Value>,
        kwargs: Map<String, Value>,
        add_generation_prompt: bool,
    ) -> Result<Vec<u32>, ApiError> {
        match self {
            Language(encoder) => encoder.conversation(messages, kwargs, add_generation_prompt),
            Embedding(..) => {
                let reason = "an embedding model reads no conversations; use prompt";
                Err(ApiError::unsupported("messages", reason))
            }
        }
    }

    /// The spelling of a token.
    pub(super) fn spelling(&self, id: u32) -> String {
        match self {
            Language(encoder) => encoder.model.tokenizer.spelling(id),
            Embedding(_, served) => served.tokenizer.spelling(id),
        }
    }

    /// What a token adds to a text.
    pub(super) fn piece(&self, id: u32) -> Vec<u8> {
        match self {
            Language(encoder) => encoder.model.tokenizer.pieces().bytes(id).to_vec(),
            Embedding(_, served) => served.tokenizer.spelling(id).into_bytes(),
        }
    }

    /// The text of tokens, control tokens spelled out.
    ///
    /// # Errors
    /// Where the library fails.
    pub(super) fn text(&self, ids: &[u32]) -> Result<String, ApiError> {
        match self {
            Language(encoder) => Ok(encoder.text(ids, false)),
            Embedding(_, served) => {
                let text = served.tokenizer.decode(ids);
                text.map_err(|error| ApiError::internal(&format!("tokenizer: {error}")))
            }
        }
    }
}

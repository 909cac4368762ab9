//! `POST /tokenize` and `POST /detokenize`: what the model makes of a text, without computing it. Names
//! and shapes are those of vLLM.

use std::sync::Arc;

use axum::extract::Request;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::generate::{count_rejection, report_ignored};
use super::prompt_encoder::PromptEncoder;
use crate::body;
use crate::error::ApiError;
use crate::gateway::Gateway;
use crate::json;
use crate::request::{DetokenizeRequest, TokenizeRequest, TokenizeText};

/// `POST /tokenize`.
pub(super) async fn tokenize(gateway: &Gateway, request: Request) -> Result<Response, ApiError> {
    run(gateway, request, tokens).await
}

/// `POST /detokenize`.
pub(super) async fn detokenize(gateway: &Gateway, request: Request) -> Result<Response, ApiError> {
    run(gateway, request, text).await
}

/// The JSON of an answer and the names of ignored fields.
type Answered = Result<(String, Vec<String>), ApiError>;

async fn run(
    gateway: &Gateway,
    request: Request,
    answer: fn(&PromptEncoder, json::Body) -> Answered,
) -> Result<Response, ApiError> {
    let answered = on_worker(gateway, request, answer).await;
    let (body, ignored) = answered.inspect_err(|error| count_rejection(gateway, error))?;
    let kind = [(header::CONTENT_TYPE, "application/json")];
    let mut response = (kind, body).into_response();
    report_ignored(gateway, &ignored, &mut response);
    Ok(response)
}

async fn on_worker(
    gateway: &Gateway,
    request: Request,
    answer: fn(&PromptEncoder, json::Body) -> Answered,
) -> Answered {
    let encoder = PromptEncoder {
        gateway: gateway.clone(),
        model: Arc::clone(gateway.model()?),
    };
    let (parts, body) = request.into_parts();
    let body = body::read(gateway, &parts.headers, body).await?;
    let work = move || {
        let parsed = json::parse(&body.bytes, "tokens", encoder.limits())?;
        drop(body);
        answer(&encoder, parsed)
    };
    gateway.pool.run(work).await
}

#[derive(Serialize)]
struct Tokens<'a> {
    count: usize,
    max_model_len: usize,
    tokens: &'a [u32],
    token_strs: Option<Vec<String>>,
}

fn tokens(encoder: &PromptEncoder, body: json::Body) -> Answered {
    let request = TokenizeRequest::read(body, &encoder.context())?;
    encoder.served_name(request.model.as_deref())?;
    let ids = match request.text {
        TokenizeText::Prompt {
            prompt,
            add_special_tokens,
        } => encoder.raw(&prompt, add_special_tokens)?,
        TokenizeText::Messages {
            messages,
            kwargs,
            add_generation_prompt,
        } => encoder.conversation(messages, kwargs, add_generation_prompt)?,
    };
    let tokenizer = &encoder.model.tokenizer;
    let spellings = || ids.iter().map(|id| tokenizer.spelling(*id)).collect();
    let answer = Tokens {
        count: ids.len(),
        max_model_len: encoder.model.max_model_len,
        tokens: &ids,
        token_strs: request.return_token_strs.then(spellings),
    };
    Ok((write(&answer)?, request.ignored))
}

#[derive(Serialize)]
struct Text<'a> {
    prompt: &'a str,
    /// The same under the name llama.cpp gives it.
    content: &'a str,
}

fn text(encoder: &PromptEncoder, body: json::Body) -> Answered {
    let request = DetokenizeRequest::read(body, &encoder.context())?;
    encoder.served_name(request.model.as_deref())?;
    let max_model_len = encoder.model.max_model_len;
    if request.tokens.len() > max_model_len {
        return Err(ApiError::ContextTooLong {
            param: "tokens",
            at_least: "",
            prompt_tokens: request.tokens.len(),
            max_tokens: 0,
            max_model_len,
        });
    }
    let text = encoder.text(&request.tokens, false);
    let answer = Text {
        prompt: &text,
        content: &text,
    };
    Ok((write(&answer)?, request.ignored))
}

fn write(answer: &impl Serialize) -> Result<String, ApiError> {
    serde_json::to_string(answer).map_err(|error| ApiError::internal(&error.to_string()))
}

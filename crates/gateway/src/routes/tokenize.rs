//! `POST /tokenize` and `POST /detokenize`: what a model makes of a text, without computing it. Names and
//! shapes are those of vLLM, and of llama.cpp where the text is called `content`.

use axum::extract::Request;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::Value;

use super::generate::{count_rejection, report_ignored};
use super::vocabulary::Vocabulary;
use crate::body;
use crate::error::ApiError;
use crate::gateway::Gateway;
use crate::json;
use crate::request::{DetokenizeRequest, Spelled, TokenizeRequest, TokenizeText};

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
    answer: fn(&Vocabulary, json::Body) -> Answered,
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
    answer: fn(&Vocabulary, json::Body) -> Answered,
) -> Answered {
    // Where nothing is served now, that is said before a body is read.
    Vocabulary::choose(gateway, None)?;
    let (parts, body) = request.into_parts();
    let body = body::read(gateway, &parts.headers, body).await?;
    let own = gateway.clone();
    let work = move || {
        let parsed = json::parse(&body.bytes, "tokens", &own.config.limits)?;
        drop(body);
        let asked = parsed.fields.get("model").and_then(Value::as_str);
        answer(&Vocabulary::choose(&own, asked)?, parsed)
    };
    gateway.pool.run(work).await
}

#[derive(Serialize)]
struct Tokens<'a> {
    count: usize,
    max_model_len: usize,
    tokens: Listed<'a>,
    token_strs: Option<Vec<String>>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Listed<'a> {
    Ids(&'a [u32]),
    Pieces(Vec<TokenPiece>),
}

#[derive(Serialize)]
struct TokenPiece {
    id: u32,
    piece: Piece,
}

/// A token of its own may be a part of a character.
#[derive(Serialize)]
#[serde(untagged)]
enum Piece {
    Text(String),
    Bytes(Vec<u8>),
}

fn piece(vocabulary: &Vocabulary, id: u32) -> TokenPiece {
    let piece = String::from_utf8(vocabulary.piece(id));
    let piece = piece.map_or_else(|error| Piece::Bytes(error.into_bytes()), Piece::Text);
    TokenPiece { id, piece }
}

fn tokens(vocabulary: &Vocabulary, body: json::Body) -> Answered {
    let request = TokenizeRequest::read(body, &vocabulary.context())?;
    vocabulary.check_name(request.model.as_deref())?;
    let ids = match request.text {
        TokenizeText::Prompt {
            prompt,
            add_special_tokens,
            param,
        } => vocabulary.raw(&prompt, add_special_tokens, param)?,
        TokenizeText::Messages {
            messages,
            kwargs,
            add_generation_prompt,
        } => vocabulary.conversation(messages, kwargs, add_generation_prompt)?,
    };
    let spellings = || ids.iter().map(|id| vocabulary.spelling(*id)).collect();
    let pieces = || ids.iter().map(|id| piece(vocabulary, *id)).collect();
    let answer = Tokens {
        count: ids.len(),
        max_model_len: vocabulary.max_model_len(),
        tokens: match request.spelled {
            Spelled::AsPieces => Listed::Pieces(pieces()),
            Spelled::No | Spelled::Beside => Listed::Ids(&ids),
        },
        token_strs: (request.spelled == Spelled::Beside).then(spellings),
    };
    Ok((write(&answer)?, request.ignored))
}

#[derive(Serialize)]
struct Text<'a> {
    prompt: &'a str,
    /// The same under the name llama.cpp gives it.
    content: &'a str,
}

fn text(vocabulary: &Vocabulary, body: json::Body) -> Answered {
    let request = DetokenizeRequest::read(body, &vocabulary.context())?;
    vocabulary.check_name(request.model.as_deref())?;
    let max_model_len = vocabulary.max_model_len();
    if request.tokens.len() > max_model_len {
        return Err(ApiError::ContextTooLong {
            param: "tokens",
            at_least: "",
            prompt_tokens: request.tokens.len(),
            max_tokens: 0,
            max_model_len,
        });
    }
    let text = vocabulary.text(&request.tokens)?;
    let answer = Text {
        prompt: &text,
        content: &text,
    };
    Ok((write(&answer)?, request.ignored))
}

fn write(answer: &impl Serialize) -> Result<String, ApiError> {
    serde_json::to_string(answer).map_err(|error| ApiError::internal(&error.to_string()))
}

//! `POST /v1/embeddings`: texts or token ids in, vectors out.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::Request;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use model::GenerationDefaults;
use serde::Serialize;

use super::generate::{count_rejection, report_ignored};
use super::info::not_found;
use crate::body;
use crate::error::{ApiError, from_encoder};
use crate::gateway::{Gateway, ServedEncoder};
use crate::json::{self, Prompt};
use crate::request::{Context, EmbeddingRequest, EncodingFormat, Truncation};

/// `POST /v1/embeddings`.
pub(super) async fn embeddings(gateway: &Gateway, request: Request) -> Result<Response, ApiError> {
    let answer = run(gateway, request).await;
    let (mut response, ignored) = answer.inspect_err(|error| count_rejection(gateway, error))?;
    report_ignored(gateway, &ignored, &mut response);
    Ok(response)
}

async fn run(gateway: &Gateway, request: Request) -> Result<(Response, Vec<String>), ApiError> {
    let served = Arc::clone(gateway.encoder()?);
    let (parts, body) = request.into_parts();
    let body = body::read(gateway, &parts.headers, body).await?;
    let preparation = Preparation {
        gateway: gateway.clone(),
        served: Arc::clone(&served),
    };
    let mut plan = gateway
        .pool
        .run(move || {
            let limits = &preparation.gateway.config.limits;
            let parsed = json::parse(&body.bytes, "input", limits)?;
            drop(body);
            preparation.plan(parsed)
        })
        .await?;
    let submitted = served.encoder.submit(std::mem::take(&mut plan.inputs));
    let vectors = submitted.map_err(|error| from_encoder(error, gateway.completions.expected()))?;
    // Dropping the receiver, as the end of the connection does, cancels the request.
    let vectors = vectors.await.map_err(|_| ApiError::EngineDead)??;
    gateway.completions.completed(Instant::now());
    let ignored = std::mem::take(&mut plan.ignored);
    let body = gateway.pool.run(move || plan.render(vectors)).await?;
    let kind = [(header::CONTENT_TYPE, "application/json")];
    Ok(((kind, body).into_response(), ignored))
}

/// What turns a parsed body into something to compute.
struct Preparation {
    gateway: Gateway,
    served: Arc<ServedEncoder>,
}

/// A request in tokens, and how its answer is written.
struct Plan {
    model: String,
    inputs: Vec<Vec<u32>>,
    num_tokens: usize,
    encoding_format: EncodingFormat,
    dimensions: Option<usize>,
    ignored: Vec<String>,
}

impl Preparation {
    fn plan(&self, body: json::Body) -> Result<Plan, ApiError> {
        let config = &self.gateway.config;
        let info = self.served.encoder.info();
        let context = Context {
            limits: &config.limits,
            defaults: &GenerationDefaults::default(),
            num_token_ids: info.num_token_ids,
            strict: config.strict_params,
        };
        let request = EmbeddingRequest::read(body, &context)?;
        let asked = request.model.as_deref();
        let model = served_name(&self.gateway, &self.served, asked)?.to_owned();
        let dimensions = self.dimensions(request.dimensions)?;
        let truncation = self.truncation(request.truncation)?;
        let tokens = |input| self.tokens(input, truncation);
        let inputs: Vec<Vec<u32>> = request
            .inputs
            .into_iter()
            .map(tokens)
            .collect::<Result<_, _>>()?;
        Ok(Plan {
            model,
            num_tokens: inputs.iter().map(Vec::len).sum(),
            inputs,
            encoding_format: request.encoding_format,
            dimensions,
            ignored: request.ignored,
        })
    }

    /// The number of features, where it is not the model's own.
    fn dimensions(&self, asked: Option<usize>) -> Result<Option<usize>, ApiError> {
        let info = self.served.encoder.info();
        let own = info.dimension;
        match asked {
            None => Ok(None),
            Some(asked) if asked == own => Ok(None),
            Some(asked) if asked > own => Err(ApiError::field(
                "dimensions",
                "integer_above_max_value",
                format!("dimensions must be at most {own}, the model's own, not {asked}"),
            )),
            Some(asked) if info.is_matryoshka => Ok(Some(asked)),
            Some(asked) => Err(ApiError::field(
                "dimensions",
                "unsupported_parameter",
                format!(
                    "dimensions of {asked}: this model's vectors have {own} features, and its \
                     configuration does not say that they can be cut (matryoshka)"
                ),
            )),
        }
    }

    fn truncation(
        &self,
        asked: Option<Truncation>,
    ) -> Result<Option<(usize, Truncation)>, ApiError> {
        let own = self.served.encoder.info().max_tokens;
        let Some(truncation) = asked else {
            return Ok(None);
        };
        let num_marks = self.served.tokenizer.num_marks();
        match truncation.max_tokens {
            Some(max) if max < num_marks => Err(ApiError::field(
                "truncate_prompt_tokens",
                "integer_below_min_value",
                format!(
                    "truncate_prompt_tokens must be at least {num_marks}, the tokens that mark the \
                     beginning and the end of a text, not {max}"
                ),
            )),
            Some(max) if max > own => Err(ApiError::field(
                "truncate_prompt_tokens",
                "integer_above_max_value",
                format!(
                    "truncate_prompt_tokens must be at most {own}, the model's limit, not {max}"
                ),
            )),
            max => Ok(Some((max.unwrap_or(own), truncation))),
        }
    }

    /// Tokens of an input, refused or cut where they are too many.
    fn tokens(
        &self,
        input: Prompt,
        truncation: Option<(usize, Truncation)>,
    ) -> Result<Vec<u32>, ApiError> {
        let tokenizer = &self.served.tokenizer;
        let failed = |error: String| ApiError::internal(&format!("tokenizer: {error}"));
        let ids = match (input, truncation) {
            (Prompt::Text(text), Some((max, truncation))) => tokenizer
                .encode_truncated(&text, max, truncation.side)
                .map_err(failed)?,
            (Prompt::Text(text), None) => {
                self.check_length(tokenizer.min_tokens(&text), "at least ")?;
                tokenizer.encode(&text).map_err(failed)?
            }
            (Prompt::Ids(ids), Some((max, truncation))) => cut(ids, max, truncation),
            (Prompt::Ids(ids), None) => ids,
        };
        self.check_length(ids.len(), "")?;
        if ids.is_empty() {
            let message = "input has a text without tokens, and this model adds none";
            return Err(ApiError::field("input", "invalid_value", message));
        }
        Ok(ids)
    }

    fn check_length(&self, prompt_tokens: usize, at_least: &'static str) -> Result<(), ApiError> {
        let max_model_len = self.served.encoder.info().max_tokens;
        if prompt_tokens <= max_model_len {
            return Ok(());
        }
        Err(ApiError::ContextTooLong {
            param: "input",
            at_least,
            prompt_tokens,
            max_tokens: 0,
            max_model_len,
        })
    }
}

/// The name under which an answer of the embedding model goes out.
///
/// # Errors
/// A name that is not its own.
pub(super) fn served_name<'a>(
    gateway: &Gateway,
    served: &'a ServedEncoder,
    asked: Option<&str>,
) -> Result<&'a str, ApiError> {
    let config = &gateway.config;
    let main = served.names.first().map_or("", String::as_str);
    let Some(asked) = asked.filter(|asked| !["", "default"].contains(asked)) else {
        return Ok(main);
    };
    if let Some(name) = served.names.iter().find(|name| *name == asked) {
        return Ok(name);
    }
    if config.served_model_names.iter().any(|name| name == asked) {
        let message = format!("the model `{asked}` generates text; `{main}` embeds it");
        return Err(ApiError::field("model", "unsupported_model", message));
    }
    if config.accept_any_model {
        return Ok(main);
    }
    Err(not_found(gateway, asked))
}

fn cut(mut ids: Vec<u32>, max: usize, truncation: Truncation) -> Vec<u32> {
    match truncation.side {
        encoder::TruncationSide::Right => ids.truncate(max),
        encoder::TruncationSide::Left => drop(ids.drain(..ids.len().saturating_sub(max))),
    }
    ids
}

#[derive(Serialize)]
struct Answer<'a> {
    object: &'static str,
    data: Vec<Embedding>,
    model: &'a str,
    usage: Usage,
}

#[derive(Serialize)]
struct Embedding {
    object: &'static str,
    index: usize,
    embedding: Written,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Written {
    Float(Vec<f32>),
    Base64(String),
}

#[derive(Serialize)]
struct Usage {
    prompt_tokens: usize,
    total_tokens: usize,
}

impl Plan {
    fn render(&self, vectors: Vec<Vec<f32>>) -> Result<String, ApiError> {
        let data = vectors
            .into_iter()
            .enumerate()
            .map(|(index, vector)| Embedding {
                object: "embedding",
                index,
                embedding: self.write(vector),
            });
        let answer = Answer {
            object: "list",
            data: data.collect(),
            model: &self.model,
            usage: Usage {
                prompt_tokens: self.num_tokens,
                total_tokens: self.num_tokens,
            },
        };
        serde_json::to_string(&answer).map_err(|error| ApiError::internal(&error.to_string()))
    }

    fn write(&self, mut vector: Vec<f32>) -> Written {
        if let Some(dimensions) = self.dimensions {
            vector.truncate(dimensions);
            encoder::normalize(&mut vector);
        }
        match self.encoding_format {
            EncodingFormat::Float => Written::Float(vector),
            EncodingFormat::Base64 => {
                let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
                Written::Base64(STANDARD.encode(bytes))
            }
        }
    }
}

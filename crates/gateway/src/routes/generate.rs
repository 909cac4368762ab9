//! The two routes that generate text: body to checked request, to prompts in tokens, to an answer.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::Request;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde_json::Value;

use super::Arrived;
use super::info::not_found;
use crate::answer::{Answer, AnswerOptions, Kind};
use crate::auth::Caller;
use crate::body;
use crate::error::ApiError;
use crate::gateway::{Gateway, Model};
use crate::generation::{EncodedPrompt, Event, Generation, Plan};
use crate::json::{self, Prompt};
use crate::request::{ChatRequest, CompletionRequest, Context, Generate};
use crate::stream;
use crate::template::{Conversation, RenderError, with_parsed_arguments};
use crate::text::{Detokenizer, LeadingSpace};

/// Bytes of an `x-ignored-params` header at most.
const MAX_IGNORED_HEADER: usize = 1024;

/// `POST /v1/chat/completions`.
pub(super) async fn chat(gateway: &Gateway, request: Request) -> Result<Response, ApiError> {
    run(gateway, request, Kind::Chat).await
}

/// `POST /v1/completions`.
pub(super) async fn completions(gateway: &Gateway, request: Request) -> Result<Response, ApiError> {
    run(gateway, request, Kind::Completion).await
}

async fn run(gateway: &Gateway, request: Request, kind: Kind) -> Result<Response, ApiError> {
    let (mut generation, answer, details) = start(gateway, request, kind)
        .await
        .inspect_err(|error| count_rejection(gateway, error))?;
    let mut response = if details.stream {
        let first = stream::begin(gateway, &mut generation).await?;
        stream::respond(gateway, answer, generation, first)
    } else {
        collect(generation, &answer).await?
    };
    report_ignored(gateway, &details.ignored, &mut response);
    Ok(response)
}

/// What is needed of a request once it runs.
struct Details {
    stream: bool,
    ignored: Vec<String>,
}

/// Reads, checks, tokenises and submits a request.
async fn start(
    gateway: &Gateway,
    request: Request,
    kind: Kind,
) -> Result<(Generation, Answer, Details), ApiError> {
    let model = Arc::clone(gateway.model()?);
    let (parts, body) = request.into_parts();
    let arrived = parts.extensions.get::<Arrived>().map(|arrived| arrived.0);
    let caller = parts.extensions.get::<Caller>().copied();
    let caller = caller.ok_or_else(|| ApiError::internal("a route without a caller"))?;
    let body = body::read(gateway, &parts.headers, body).await?;
    let preparation = Preparation {
        gateway: gateway.clone(),
        model: Arc::clone(&model),
        caller,
        arrived: arrived.unwrap_or_else(Instant::now),
    };
    let (plan, answer) = gateway
        .pool
        .run(move || {
            let parsed = json::parse(&body.bytes, "prompt", &preparation.gateway.config.limits)?;
            drop(body);
            match kind {
                Kind::Chat => preparation.chat(parsed),
                Kind::Completion => preparation.completion(parsed),
            }
        })
        .await?;
    let details = Details {
        stream: plan.generate.stream,
        ignored: plan.generate.ignored.clone(),
    };
    let generation = Generation::start(gateway, &model, plan)?;
    Ok((generation, answer, details))
}

/// Runs a generation to its end.
async fn collect(mut generation: Generation, answer: &Answer) -> Result<Response, ApiError> {
    let mut outputs = Vec::new();
    while let Some(event) = generation.next().await? {
        if let Event::Output(output) = event {
            outputs.push(output);
        }
    }
    let body = answer.whole(outputs, generation.usage());
    let kind = [(header::CONTENT_TYPE, "application/json")];
    Ok((kind, body).into_response())
}

pub(super) fn count_rejection(gateway: &Gateway, error: &ApiError) {
    if let Some(reason) = error.reject_reason() {
        let counter = &gateway.metrics.requests_rejected_total;
        counter.with_label_values(&[reason.as_str()]).inc();
    }
}

/// Tells the client and the operator which fields changed nothing.
pub(super) fn report_ignored(gateway: &Gateway, names: &[String], response: &mut Response) {
    for name in names {
        let known = metrics::IGNORED_PARAMS.iter().find(|known| *known == name);
        let label = known.copied().unwrap_or("other");
        let counter = &gateway.metrics.ignored_params_total;
        counter.with_label_values(&[label]).inc();
    }
    let mut list = names.join(",");
    list.retain(|c| c.is_ascii_graphic());
    list.truncate(MAX_IGNORED_HEADER);
    if let (false, Ok(value)) = (list.is_empty(), HeaderValue::from_str(&list)) {
        response.headers_mut().insert("x-ignored-params", value);
    }
}

/// Whether a name is that of the embedding model.
fn embeds(gateway: &Gateway, name: &str) -> bool {
    let served = gateway.any_encoder();
    served.is_some_and(|served| served.names.iter().any(|known| known == name))
}

/// What turns a parsed body into something to run.
struct Preparation {
    gateway: Gateway,
    model: Arc<Model>,
    caller: Caller,
    arrived: Instant,
}

impl Preparation {
    fn context(&self) -> Context<'_> {
        let config = &self.gateway.config;
        Context {
            limits: &config.limits,
            defaults: &self.model.defaults,
            num_token_ids: self.model.num_token_ids,
            strict: config.strict_params,
        }
    }

    fn chat(&self, body: json::Body) -> Result<(Plan, Answer), ApiError> {
        let request = ChatRequest::read(body, &self.context())?;
        let name = self.served_name(request.generate.model.as_deref())?;
        let rendered = self.render(request.messages, request.kwargs)?;
        self.check_length(rendered.len(), "messages")?;
        let ids = self
            .model
            .tokenizer
            .encode_rendered(&rendered)
            .map_err(|e| ApiError::internal(&format!("tokenizer: {e}")))?;
        let generate = request.generate;
        let prompt = self.limited(ids, None, &generate, "messages")?;
        let answer = self.answer(Kind::Chat, name, &generate, 1);
        let plan = Plan {
            cache_salt: self.cache_salt(&generate),
            generate,
            prompts: vec![prompt],
            scores_prompt: false,
            space: LeadingSpace::Decode,
            param: "messages",
            arrived: self.arrived,
        };
        Ok((plan, answer))
    }

    fn completion(&self, body: json::Body) -> Result<(Plan, Answer), ApiError> {
        let request = CompletionRequest::read(body, &self.context())?;
        let name = self.served_name(request.generate.model.as_deref())?;
        let scores_prompt = request.scores_prompt();
        let generate = request.generate;
        let mut prompts = Vec::with_capacity(request.prompts.len());
        for prompt in request.prompts {
            let (ids, text) = self.encode(prompt, request.echo, &generate)?;
            prompts.push(self.limited(ids, text, &generate, "prompt")?);
        }
        let answer = self.answer(Kind::Completion, name, &generate, prompts.len());
        let plan = Plan {
            cache_salt: self.cache_salt(&generate),
            generate,
            prompts,
            scores_prompt,
            space: LeadingSpace::Keep,
            param: "prompt",
            arrived: self.arrived,
        };
        Ok((plan, answer))
    }

    /// The name under which an answer goes out.
    fn served_name(&self, asked: Option<&str>) -> Result<&str, ApiError> {
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

    /// The prompt of a conversation, with its control tokens and no others.
    fn render(
        &self,
        mut messages: Vec<Value>,
        kwargs: serde_json::Map<String, Value>,
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

    /// Tokens of a raw prompt, and the text that `echo` repeats.
    fn encode(
        &self,
        prompt: Prompt,
        echo: bool,
        generate: &Generate,
    ) -> Result<(Vec<u32>, Option<String>), ApiError> {
        let tokenizer = &self.model.tokenizer;
        match prompt {
            Prompt::Text(text) => {
                self.check_length(text.len(), "prompt")?;
                let ids = tokenizer
                    .encode_raw(&text)
                    .map_err(|e| ApiError::internal(&format!("tokenizer: {e}")))?;
                Ok((ids, echo.then_some(text)))
            }
            Prompt::Ids(ids) => {
                let text = echo.then(|| {
                    let pieces = tokenizer.pieces();
                    let skip_special = generate.skip_special_tokens;
                    let mut decoder = Detokenizer::new(pieces, LeadingSpace::Decode, skip_special);
                    let mut text: String = ids.iter().map(|id| decoder.push(pieces, *id)).collect();
                    text.push_str(&decoder.flush());
                    text
                });
                Ok((ids, text))
            }
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

    fn limited(
        &self,
        ids: Vec<u32>,
        echo: Option<String>,
        generate: &Generate,
        param: &'static str,
    ) -> Result<EncodedPrompt, ApiError> {
        if ids.is_empty() {
            return Err(ApiError::field(
                param,
                "invalid_value",
                format!("{param} has no tokens, and this model has none to start with"),
            ));
        }
        let max_tokens = generate.token_limit(ids.len(), param, self.model.max_model_len)?;
        Ok(EncodedPrompt {
            ids,
            echo,
            max_tokens,
        })
    }

    fn cache_salt(&self, generate: &Generate) -> u64 {
        let own = generate.cache_salt.as_deref();
        self.gateway.keys.cache_salt(self.caller, own)
    }

    fn answer(&self, kind: Kind, name: &str, generate: &Generate, num_prompts: usize) -> Answer {
        Answer::new(AnswerOptions {
            kind,
            model: name.to_owned(),
            fingerprint: self.model.fingerprint.clone(),
            service_tier: generate.service_tier,
            wants_logprobs: generate.sampling.num_logprobs.is_some(),
            stream_usage: generate.stream_usage,
            num_choices: num_prompts * generate.n,
        })
    }
}

//! The two routes that generate text: body to checked request, to prompts in tokens, to an answer.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::Request;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};

use super::Arrived;
use super::prompt_encoder::PromptEncoder;
use crate::answer::{Answer, AnswerOptions, Kind};
use crate::auth::Caller;
use crate::body;
use crate::error::ApiError;
use crate::gateway::Gateway;
use crate::generation::{EncodedPrompt, Event, Generation, Plan};
use crate::json::{self, Prompt};
use crate::request::{ChatRequest, CompletionRequest, Generate};
use crate::serve::LastAnswer;
use crate::stream;
use crate::text::LeadingSpace;

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
        stream::respond(gateway, answer, generation, first, details.connection)
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
    connection: Option<LastAnswer>,
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
    let caller = parts.extensions.get::<Caller>().cloned();
    let caller = caller.ok_or_else(|| ApiError::internal("a route without a caller"))?;
    let body = body::read(gateway, &parts.headers, body).await?;
    let preparation = Preparation {
        encoder: PromptEncoder {
            gateway: gateway.clone(),
            model: Arc::clone(&model),
        },
        caller,
        arrived: arrived.unwrap_or_else(Instant::now),
    };
    let (plan, answer) = gateway
        .pool
        .run(move || {
            let parsed = json::parse(&body.bytes, "prompt", preparation.encoder.limits())?;
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
        connection: parts.extensions.get().cloned(),
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

/// What turns a parsed body into something to run.
struct Preparation {
    encoder: PromptEncoder,
    caller: Caller,
    arrived: Instant,
}

impl Preparation {
    fn chat(&self, body: json::Body) -> Result<(Plan, Answer), ApiError> {
        let request = ChatRequest::read(body, &self.encoder.context())?;
        let name = self
            .encoder
            .served_name(request.generate.model.as_deref())?;
        let ids = self
            .encoder
            .conversation(request.messages, request.kwargs, true)?;
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
        let request = CompletionRequest::read(body, &self.encoder.context())?;
        let name = self
            .encoder
            .served_name(request.generate.model.as_deref())?;
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

    /// Tokens of a raw prompt, and the text that `echo` repeats.
    fn encode(
        &self,
        prompt: Prompt,
        echo: bool,
        generate: &Generate,
    ) -> Result<(Vec<u32>, Option<String>), ApiError> {
        match prompt {
            Prompt::Text(text) => {
                let ids = self.encoder.raw(&text, true, "prompt")?;
                Ok((ids, echo.then_some(text)))
            }
            Prompt::Ids(ids) => {
                let skip_special = generate.skip_special_tokens;
                let text = echo.then(|| self.encoder.text(&ids, skip_special));
                Ok((ids, text))
            }
        }
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
        let max_tokens =
            generate.token_limit(ids.len(), param, self.encoder.model.max_model_len)?;
        Ok(EncodedPrompt {
            ids,
            echo,
            max_tokens,
        })
    }

    fn cache_salt(&self, generate: &Generate) -> u64 {
        let own = generate.cache_salt.as_deref();
        self.encoder.gateway.keys.cache_salt(&self.caller, own)
    }

    fn answer(&self, kind: Kind, name: &str, generate: &Generate, num_prompts: usize) -> Answer {
        Answer::new(AnswerOptions {
            kind,
            model: name.to_owned(),
            fingerprint: self.encoder.model.fingerprint.clone(),
            service_tier: generate.service_tier,
            wants_logprobs: generate.sampling.num_logprobs.is_some(),
            stream_usage: generate.stream_usage,
            num_choices: num_prompts * generate.n,
        })
    }
}

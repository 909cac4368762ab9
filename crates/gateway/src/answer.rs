//! OpenAI's answer types and how pieces of a generation become them.
//!
//! Written as structs rather than as JSON values: their fields are the response schema, and a test
//! compares real answers with `openapi.yaml`.

mod logprobs;
mod types;

use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde_json::Value;

use crate::error::ApiError;
use crate::generation::{Output, StopReason, Usage};
use crate::request::StreamUsage;
use logprobs::Logprobs;
use types::{ChatChoice, ChatChunkChoice, CompletionChoice, Delta, Envelope, Message, UsageBody};

/// Which route an answer is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `/v1/chat/completions`.
    Chat,
    /// `/v1/completions`.
    Completion,
}

/// What is the same in all pieces of an answer.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    kind: Kind,
    id: String,
    created: u64,
    model: String,
    fingerprint: String,
    service_tier: bool,
    wants_logprobs: bool,
    stream_usage: StreamUsage,
    num_choices: usize,
}

/// What an answer is told about its request.
#[derive(Debug, Clone)]
pub(crate) struct AnswerOptions {
    pub(crate) kind: Kind,
    pub(crate) model: String,
    pub(crate) fingerprint: String,
    pub(crate) service_tier: bool,
    pub(crate) wants_logprobs: bool,
    pub(crate) stream_usage: StreamUsage,
    /// Over all prompts.
    pub(crate) num_choices: usize,
}

/// One choice of a whole answer, put together.
#[derive(Debug, Clone, Default)]
struct Collected {
    text: String,
    logprobs: Option<Logprobs>,
    finish_reason: Option<&'static str>,
    stop_reason: Option<Value>,
}

impl Answer {
    /// A new answer with its own id.
    pub(crate) fn new(options: AnswerOptions) -> Self {
        let prefix = match options.kind {
            Kind::Chat => "chatcmpl-",
            Kind::Completion => "cmpl-",
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            kind: options.kind,
            id: prefix.to_owned() + &crate::ids::random(24),
            created: now.map_or(0, |now| now.as_secs()),
            model: options.model,
            fingerprint: options.fingerprint,
            service_tier: options.service_tier,
            wants_logprobs: options.wants_logprobs,
            stream_usage: options.stream_usage,
            num_choices: options.num_choices,
        }
    }

    /// The events that open a stream: the role of every choice, in order. `usage` is that of the moment;
    /// nothing of the answer has been told yet.
    pub(crate) fn opening(&self, usage: Usage) -> Vec<String> {
        if self.kind == Kind::Completion {
            return Vec::new();
        }
        let usage = Usage {
            completion_tokens: 0,
            ..usage
        };
        let role = |index| {
            let choice = ChatChunkChoice {
                index,
                delta: Delta {
                    role: Some("assistant"),
                    content: Some(""),
                },
                logprobs: None,
                finish_reason: None,
                stop_reason: None,
            };
            self.event(&[choice], usage)
        };
        (0..self.num_choices).map(role).collect()
    }

    /// The events of one piece: its text, then its end. `usage` counts up to this piece.
    pub(crate) fn chunks(&self, mut output: Output, usage: Usage) -> Vec<String> {
        let mut events = Vec::with_capacity(2);
        let finish = output.finish.take();
        let has_text = !output.text.is_empty();
        let has_entries = self.wants_logprobs && !output.entries.is_empty();
        if has_text || (has_entries && finish.is_none()) {
            events.push(self.chunk(&output, None, None, usage));
            output.entries.clear();
        }
        if let Some(finish) = finish {
            output.text.clear();
            let stop_reason = finish.stop_reason.as_ref().map(stop_reason);
            let reason = types::finish_reason(finish.kind);
            events.push(self.chunk(&output, Some(reason), stop_reason, usage));
        }
        events
    }

    /// The event with the usage, where it was asked for.
    pub(crate) fn usage_chunk(&self, usage: Usage) -> Option<String> {
        if self.stream_usage == StreamUsage::None {
            return None;
        }
        let envelope: Envelope<'_, CompletionChoice<'_>> = Envelope {
            usage: Some(Some(UsageBody::new(usage))),
            ..self.envelope(self.chunk_object(), &[])
        };
        Some(to_json(&envelope))
    }

    /// The whole answer, from all pieces.
    pub(crate) fn whole(&self, outputs: Vec<Output>, usage: Usage) -> String {
        let mut choices = vec![Collected::default(); self.num_choices];
        for mut output in outputs {
            let choice = &mut choices[output.index];
            choice.text.push_str(&output.text);
            if self.wants_logprobs {
                let logprobs = self.logprobs(std::mem::take(&mut output.entries));
                match &mut choice.logprobs {
                    Some(known) => known.extend(logprobs),
                    unset => *unset = Some(logprobs),
                }
            }
            if let Some(finish) = output.finish {
                choice.finish_reason = Some(types::finish_reason(finish.kind));
                choice.stop_reason = finish.stop_reason.as_ref().map(stop_reason);
            }
        }
        match self.kind {
            Kind::Chat => self.whole_chat(&choices, usage),
            Kind::Completion => self.whole_completion(&choices, usage),
        }
    }

    fn whole_chat(&self, choices: &[Collected], usage: Usage) -> String {
        let choice = |(index, choice): (usize, &Collected)| ChatChoice {
            index,
            finish_reason: choice.finish_reason,
            stop_reason: choice.stop_reason.clone(),
            logprobs: choice.logprobs.clone(),
            message: Message {
                role: "assistant",
                content: choice.text.clone(),
                refusal: None,
                annotations: &[],
            },
        };
        let choices: Vec<ChatChoice> = choices.iter().enumerate().map(choice).collect();
        let envelope = Envelope {
            usage: Some(Some(UsageBody::new(usage))),
            service_tier: Some(self.service_tier.then_some("default")),
            ..self.envelope("chat.completion", &choices)
        };
        to_json(&envelope)
    }

    fn whole_completion(&self, choices: &[Collected], usage: Usage) -> String {
        let choice = |(index, choice): (usize, &'_ Collected)| CompletionChoice {
            index,
            text: choice.text.clone().into(),
            logprobs: choice.logprobs.clone(),
            finish_reason: choice.finish_reason,
            stop_reason: Some(choice.stop_reason.clone()),
        };
        let choices: Vec<CompletionChoice> = choices.iter().enumerate().map(choice).collect();
        let envelope = Envelope {
            usage: Some(Some(UsageBody::new(usage))),
            ..self.envelope("text_completion", &choices)
        };
        to_json(&envelope)
    }

    fn chunk(
        &self,
        output: &Output,
        finish_reason: Option<&'static str>,
        stop_reason: Option<Value>,
        usage: Usage,
    ) -> String {
        let entries = self.wants_logprobs && !output.entries.is_empty();
        let logprobs = entries.then(|| self.logprobs(output.entries.clone()));
        let stop_reason = finish_reason.map(|_| stop_reason);
        match self.kind {
            Kind::Chat => {
                let choice = ChatChunkChoice {
                    index: output.index,
                    delta: Delta {
                        role: None,
                        content: finish_reason.is_none().then_some(&output.text),
                    },
                    logprobs,
                    finish_reason,
                    stop_reason,
                };
                self.event(&[choice], usage)
            }
            Kind::Completion => {
                let choice = CompletionChoice {
                    index: output.index,
                    text: output.text.as_str().into(),
                    logprobs,
                    finish_reason,
                    stop_reason,
                };
                self.event(&[choice], usage)
            }
        }
    }

    /// An event before the last. Its usage is null where only the last one has it.
    fn event<C: Serialize>(&self, choices: &[C], usage: Usage) -> String {
        let usage = match self.stream_usage {
            StreamUsage::None => None,
            StreamUsage::AtEnd => Some(None),
            StreamUsage::Continuous => Some(Some(UsageBody::new(usage))),
        };
        to_json(&Envelope {
            usage,
            ..self.envelope(self.chunk_object(), choices)
        })
    }

    fn chunk_object(&self) -> &'static str {
        match self.kind {
            Kind::Chat => "chat.completion.chunk",
            Kind::Completion => "text_completion",
        }
    }

    fn logprobs(&self, entries: Vec<crate::generation::TokenEntry>) -> Logprobs {
        match self.kind {
            Kind::Chat => Logprobs::chat(entries),
            Kind::Completion => Logprobs::completion(entries),
        }
    }

    /// Everything but the choices and the usage.
    fn envelope<'a, C>(&'a self, object: &'static str, choices: &'a [C]) -> Envelope<'a, C> {
        Envelope {
            id: &self.id,
            object,
            created: self.created,
            model: &self.model,
            system_fingerprint: &self.fingerprint,
            service_tier: self.service_tier.then_some(Some("default")),
            choices,
            usage: None,
        }
    }
}

/// The event that tells of a failure in mid-stream.
pub(crate) fn error_event(error: &ApiError) -> String {
    error.body().to_string()
}

fn stop_reason(reason: &StopReason) -> Value {
    match reason {
        StopReason::Text(text) => Value::from(text.as_str()),
        StopReason::Token(id) => Value::from(*id),
    }
}

fn to_json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("answers have string keys and finite numbers")
}

//! From submitted prompts to pieces of answers. Streamed and whole answers are made from the same
//! pieces, so they hold the same text, log-probabilities and counts.
//!
//! Dropping a [`Generation`] cancels everything it still runs.

mod choice;
mod observation;

use std::collections::VecDeque;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use engine::{EngineError, GenerateRequest, PromptLogprob, StreamEvent, TokenStream};
use tokio::sync::watch;

use crate::error::{ApiError, from_submit};
use crate::gateway::{Gateway, Model};
use crate::request::Generate;
use crate::text::LeadingSpace;

use choice::{Choice, ChoiceRules, PromptEcho};
pub(crate) use choice::{FinishKind, Output, StopReason, TokenEntry};
pub(crate) use observation::{Observation, Usage};

/// A prompt in tokens, with the text that `echo` repeats.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct EncodedPrompt {
    /// Tokens, at least one.
    pub(crate) ids: Vec<u32>,
    /// The text repeated in front of the answer.
    pub(crate) echo: Option<String>,
    /// The token limit in force.
    pub(crate) max_tokens: usize,
}

/// Everything a generation is started from.
pub(crate) struct Plan {
    /// The checked request.
    pub(crate) generate: Generate,
    /// Its prompts.
    pub(crate) prompts: Vec<EncodedPrompt>,
    /// The prompt's log-probabilities are part of the answer.
    pub(crate) scores_prompt: bool,
    /// Whether the answer is a text of its own or continues the prompt.
    pub(crate) space: LeadingSpace,
    /// The request field that holds the prompt.
    pub(crate) param: &'static str,
    /// Salt of the prefix cache.
    pub(crate) cache_salt: u64,
    /// When the request's head had been read.
    pub(crate) arrived: Instant,
}

impl Plan {
    fn request(
        &self,
        prompt: &EncodedPrompt,
        stop_token_ids: &[u32],
        end_token_ids: &[u32],
        seed: u64,
    ) -> GenerateRequest {
        let generate = &self.generate;
        let num_logprobs = generate.sampling.num_logprobs;
        GenerateRequest {
            prompt: prompt.ids.clone(),
            sampling: generate.sampling.clone(),
            num_choices: generate.n,
            max_tokens: prompt.max_tokens,
            min_tokens: generate.min_tokens,
            stop_token_ids: stop_token_ids.to_vec(),
            end_token_ids: end_token_ids.to_vec(),
            prompt_logprobs: num_logprobs.filter(|_| self.scores_prompt),
            seed,
            cache_salt: self.cache_salt,
        }
    }
}

/// What happens in a running generation.
#[derive(Debug)]
pub(crate) enum Event {
    /// A prompt left the waiting queue.
    Started,
    /// A piece of a choice.
    Output(Output),
}

/// The running prompts of one HTTP request.
pub(crate) struct Generation {
    model: Arc<Model>,
    rules: ChoiceRules,
    runs: Vec<Run>,
    /// The run polled first next time.
    turn: usize,
    /// Pieces made but not yet taken.
    ready: VecDeque<Output>,
    given_up: watch::Receiver<bool>,
    observation: Observation,
}

/// One prompt and its choices.
struct Run {
    /// None when nothing more is to come.
    stream: Option<TokenStream>,
    choices: Vec<Choice>,
    echo: PromptEcho,
    /// `index` of the first choice.
    first_index: usize,
}

impl Generation {
    /// Submits every prompt; all or none.
    ///
    /// # Errors
    /// The answer to a refusal.
    pub(crate) fn start(
        gateway: &Gateway,
        model: &Arc<Model>,
        plan: Plan,
    ) -> Result<Self, ApiError> {
        let generate = &plan.generate;
        let own = &generate.stop.token_ids;
        let end_token_ids = [own.as_slice(), &model.eos_token_ids].concat();
        let (stop_token_ids, eos) = if generate.stop.ignore_eos {
            (own.clone(), Vec::new())
        } else {
            (end_token_ids.clone(), model.eos_token_ids.clone())
        };
        let seed = generate.seed.or(gateway.config.default_seed);
        let seed = seed.unwrap_or_else(rand::random);
        let requests = plan.prompts.iter();
        let requests =
            requests.map(|prompt| plan.request(prompt, &stop_token_ids, &end_token_ids, seed));
        let streams = model
            .engine
            .submit_all(requests.collect())
            .map_err(|e| from_submit(e, plan.param, gateway.completions.expected()))?;
        let observation = Observation::new(gateway, &plan);
        let rules = ChoiceRules::new(generate, stop_token_ids, eos);
        let n = generate.n;
        let pieces = model.tokenizer.pieces();
        let run = |(i, (prompt, stream))| {
            let echo = PromptEcho::new(pieces, prompt, plan.scores_prompt);
            let choice = Choice::new(pieces, &rules, plan.space, echo.num_chars());
            Run {
                stream: Some(stream),
                choices: vec![choice; n],
                echo,
                first_index: i * n,
            }
        };
        let runs = plan.prompts.into_iter().zip(streams).enumerate();
        let runs = runs.map(run).collect();
        Ok(Self {
            model: Arc::clone(model),
            rules,
            runs,
            turn: 0,
            ready: VecDeque::new(),
            given_up: gateway.given_up(),
            observation,
        })
    }

    /// The next thing that happens; none when every choice is complete. Safe to cancel.
    ///
    /// # Errors
    /// Why the request failed; nothing follows.
    pub(crate) async fn next(&mut self) -> Result<Option<Event>, EngineError> {
        loop {
            if let Some(output) = self.ready.pop_front() {
                return Ok(Some(Event::Output(output)));
            }
            let Some((run, event)) = self.receive().await else {
                self.observation.completed();
                return Ok(None);
            };
            match event {
                Some(StreamEvent::Started { num_cached_tokens }) => {
                    self.observation.started(num_cached_tokens);
                    return Ok(Some(Event::Started));
                }
                Some(StreamEvent::Prompt(scores)) => self.echo_scores(run, &scores),
                Some(StreamEvent::Token { choice, token }) => self.token(run, choice, &token),
                Some(StreamEvent::Finished { choice, reason }) => {
                    self.finished(run, choice, reason);
                }
                Some(StreamEvent::Failed(error)) => return Err(self.fail(error)),
                None if self.runs[run].choices.iter().all(Choice::is_finished) => {
                    self.runs[run].stream = None;
                }
                // The engine went away without a word; an answer never just ends.
                None => return Err(self.fail(EngineError::StepFailed)),
            }
        }
    }

    fn fail(&mut self, error: EngineError) -> EngineError {
        self.runs.clear();
        self.observation.failed(error);
        error
    }

    /// Token counts so far.
    pub(crate) fn usage(&self) -> Usage {
        self.observation.usage()
    }

    /// Waits for any run, taking turns so that none is favoured.
    async fn receive(&mut self) -> Option<(usize, Option<StreamEvent>)> {
        let len = self.runs.len();
        let open = self.runs.iter().position(|run| run.stream.is_some())?;
        let (runs, turn) = (&mut self.runs, self.turn);
        let received = std::future::poll_fn(|context| {
            for i in (0..len).map(|i| (turn + i) % len) {
                let Some(stream) = &mut runs[i].stream else {
                    continue;
                };
                // Receiving is safe to cancel, so a future per poll loses nothing.
                if let Poll::Ready(event) = pin!(stream.recv()).poll(context) {
                    return Poll::Ready((i, event));
                }
            }
            Poll::Pending
        });
        let (run, event) = tokio::select! {
            biased;
            received = received => received,
            // As if the engine had left; an error means that the gateway has.
            _ = self.given_up.wait_for(|given_up| *given_up) => (open, None),
        };
        self.turn = (run + 1) % len;
        Some((run, event))
    }

    /// The prompt's text, before the first piece of a run: a request that fails before it has nothing
    /// to show yet.
    fn echo_text(&mut self, run: usize) {
        let run = &mut self.runs[run];
        if let Some(text) = run.echo.take_text() {
            for j in 0..run.choices.len() {
                let text = text.clone();
                self.ready
                    .push_back(Output::text(run.first_index + j, text));
            }
        }
    }

    fn echo_scores(&mut self, run: usize, scores: &[PromptLogprob]) {
        self.echo_text(run);
        let run = &mut self.runs[run];
        let pieces = self.model.tokenizer.pieces();
        let entries = run.echo.entries(pieces, scores);
        for j in 0..run.choices.len() {
            let mut output = Output::text(run.first_index + j, String::new());
            output.entries.clone_from(&entries);
            self.ready.push_back(output);
        }
    }

    fn token(&mut self, run: usize, choice: usize, token: &backend::Sampled) {
        self.echo_text(run);
        let run = &mut self.runs[run];
        if run.choices[choice].is_finished() {
            return;
        }
        let index = run.first_index + choice;
        self.observation.token(index);
        let pieces = self.model.tokenizer.pieces();
        let mut output = Output::text(index, String::new());
        let state = &mut run.choices[choice];
        state.push(pieces, &self.rules, token, &mut output);
        if let Some(finish) = &output.finish {
            self.observation.choice_finished(index, finish.kind);
            if let Some(stream) = &mut run.stream {
                stream.finish_choice(choice);
            }
        }
        if !output.is_empty() {
            self.ready.push_back(output);
        }
    }

    fn finished(&mut self, run: usize, choice: usize, reason: engine::FinishReason) {
        self.echo_text(run);
        let run = &mut self.runs[run];
        if run.choices[choice].is_finished() {
            return;
        }
        let index = run.first_index + choice;
        let mut output = Output::text(index, String::new());
        run.choices[choice].finish(&self.rules, reason, &mut output);
        let kind = output.finish.as_ref().map(|f| f.kind);
        self.observation
            .choice_finished(index, kind.unwrap_or(FinishKind::Stop));
        self.ready.push_back(output);
    }
}
